//! Records of one length, sorted on the disk when they are more than the memory should hold.
//!
//! Sorted runs go one after another into one file that has no name (so a crash leaves nothing behind), and are merged
//! from there. The memory of a merge is shared out among its runs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Memory of one merge.
const MERGE_BYTES: usize = 16 << 20;
/// The least that is read of a run at once, whatever their number.
const READ_BYTES_MIN: usize = 16 << 10;
/// The most: more brings nothing.
const READ_BYTES_MAX: usize = 1 << 20;

/// Sorted runs of records of `N` bytes.
pub struct Runs<const N: usize> {
    file: Option<File>,
    /// End of each run, in records.
    ends: Vec<u64>,
}

impl<const N: usize> Runs<N> {
    pub fn new() -> Runs<N> {
        Runs { file: None, ends: Vec::new() }
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> u64 {
        self.ends.last().map_or(0, |end| end * N as u64)
    }

    /// Writes one run, which has to be sorted. The file is made in `folder` at the first.
    pub fn spill(&mut self, folder: &Path, sorted: &[[u8; N]]) -> io::Result<()> {
        debug_assert!(sorted.is_sorted());
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(folder)?);
        }
        let file = self.file.as_mut().expect("it was just made");
        file.write_all(sorted.as_flattened())?;
        let end = self.ends.last().copied().unwrap_or(0);
        self.ends.push(end + sorted.len() as u64);
        Ok(())
    }

    /// All records in order; those that are alike come one after another.
    pub fn merge(&self) -> io::Result<Merge<'_, N>> {
        let mut heap = BinaryHeap::with_capacity(self.ends.len());
        let mut readers = Vec::with_capacity(self.ends.len());
        if let Some(file) = &self.file {
            let read_bytes = (MERGE_BYTES / self.ends.len()).clamp(READ_BYTES_MIN, READ_BYTES_MAX) / N * N;
            let starts = std::iter::once(0).chain(self.ends.iter().copied());
            for (start, end) in starts.zip(&self.ends) {
                let mut reader =
                    Reader { file, next: start * N as u64, end: end * N as u64, read_bytes, buffer: Vec::new(), at: 0 };
                if let Some(record) = reader.next()? {
                    heap.push(Reverse((record, readers.len())));
                }
                readers.push(reader);
            }
        }
        Ok(Merge { heap, readers })
    }
}

/// Runs being merged.
pub struct Merge<'a, const N: usize> {
    heap: BinaryHeap<Reverse<([u8; N], usize)>>,
    readers: Vec<Reader<'a, N>>,
}

impl<const N: usize> Merge<'_, N> {
    /// The least record that has not come yet.
    pub fn next(&mut self) -> io::Result<Option<[u8; N]>> {
        let Some(mut top) = self.heap.peek_mut() else { return Ok(None) };
        let Reverse((record, run)) = *top;
        match self.readers[run].next()? {
            Some(next) => *top = Reverse((next, run)),
            None => drop(std::collections::binary_heap::PeekMut::pop(top)),
        }
        Ok(Some(record))
    }
}

/// One run, read in order.
struct Reader<'a, const N: usize> {
    file: &'a File,
    next: u64,
    end: u64,
    read_bytes: usize,
    buffer: Vec<u8>,
    at: usize,
}

impl<const N: usize> Reader<'_, N> {
    fn next(&mut self) -> io::Result<Option<[u8; N]>> {
        if self.at == self.buffer.len() {
            let bytes = (self.end - self.next).min(self.read_bytes as u64) as usize;
            if bytes == 0 {
                return Ok(None);
            }
            self.buffer.resize(bytes, 0);
            self.file.read_exact_at(&mut self.buffer, self.next)?;
            self.next += bytes as u64;
            self.at = 0;
        }
        let record = *self.buffer[self.at..].first_chunk().expect("whole records were read");
        self.at += N;
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn merged_runs_are_all_records_in_order() {
        let folder = tempfile::tempdir().expect("temp folder");
        let mut random = ChaCha8Rng::seed_from_u64(5);
        for (run_count, records_max) in [(0, 0), (1, 1), (1, 3_000), (7, 2_000), (300, 40)] {
            let mut runs = Runs::<12>::new();
            let mut all = Vec::new();
            for _ in 0..run_count {
                let count = random.random_range(1..=records_max);
                let mut run: Vec<[u8; 12]> = (0..count).map(|_| random.random()).collect();
                // Some stand in several runs.
                run.extend(all.last().copied());
                run.sort_unstable();
                runs.spill(folder.path(), &run).expect("spilled");
                all.extend(run);
            }
            all.sort_unstable();
            assert_eq!(runs.bytes(), all.len() as u64 * 12);
            let (mut merge, mut merged) = (runs.merge().expect("merge"), Vec::new());
            while let Some(record) = merge.next().expect("read") {
                merged.push(record);
            }
            assert!(merged == all, "{run_count} runs");
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0, "the files have no names");
    }
}
