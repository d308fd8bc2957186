//! Writing one large object into a temporary file, past the page cache where that is possible.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use super::disk::{DIRECT_ALIGN, DiskFile};

/// Bytes copied at a time where the caller's memory is not aligned: large enough for a disk's full rate.
const COPY_BYTES: usize = 1 << 20;
/// Copy buffers kept for reuse in one folder; more are made while needed.
const COPY_BUFFERS_KEPT: usize = 2;
/// Bytes written at a time through the page cache: small steps let write-back start early (1.5 times the rate of one
/// 4 MiB write in the prototype).
const BUFFERED_STEP_BYTES: usize = 128 * 1024;

/// Writes the parts one after the other from the file's start, cuts the file to their length, and makes it durable.
pub(super) fn write_object(file: &dyn DiskFile, parts: &[Bytes], buffers: &CopyBuffers) -> io::Result<()> {
    if !file.is_direct() {
        write_buffered(file, parts)?;
        return file.sync_data();
    }
    match parts {
        [whole] if whole.as_ptr().align_offset(DIRECT_ALIGN) == 0 => write_aligned(file, whole)?,
        parts => write_copied(file, parts, buffers)?,
    }
    let len: usize = parts.iter().map(Bytes::len).sum();
    if !len.is_multiple_of(DIRECT_ALIGN) {
        file.truncate(len as u64)?;
    }
    file.sync_data()
}

fn write_buffered(file: &dyn DiskFile, parts: &[Bytes]) -> io::Result<()> {
    let mut at = 0u64;
    for step in parts.iter().flat_map(|part| part.chunks(BUFFERED_STEP_BYTES)) {
        file.write_at(at, step)?;
        at += step.len() as u64;
    }
    Ok(())
}

/// One write from the caller's memory, and one for the tail, filled up with zeros.
fn write_aligned(file: &dyn DiskFile, bytes: &[u8]) -> io::Result<()> {
    let whole_len = bytes.len() / DIRECT_ALIGN * DIRECT_ALIGN;
    let (whole, tail) = bytes.split_at(whole_len);
    file.write_at(0, whole)?;
    if !tail.is_empty() {
        let mut block = AlignedBuffer::new(DIRECT_ALIGN);
        block[..tail.len()].copy_from_slice(tail);
        file.write_at(whole_len as u64, &block)?;
    }
    Ok(())
}

fn write_copied(file: &dyn DiskFile, parts: &[Bytes], buffers: &CopyBuffers) -> io::Result<()> {
    let mut buffer = buffers.take();
    let (mut at, mut filled) = (0u64, 0usize);
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let count = rest.len().min(COPY_BYTES - filled);
            buffer[filled..filled + count].copy_from_slice(&rest[..count]);
            filled += count;
            rest = &rest[count..];
            if filled == COPY_BYTES {
                file.write_at(at, &buffer)?;
                at += COPY_BYTES as u64;
                filled = 0;
            }
        }
    }
    if filled > 0 {
        let padded = filled.next_multiple_of(DIRECT_ALIGN);
        buffer[filled..padded].fill(0);
        file.write_at(at, &buffer[..padded])?;
    }
    buffers.give_back(buffer);
    Ok(())
}

/// Aligned memory without unsafe code: a little more than asked for, used from the first aligned byte on.
#[derive(Debug)]
struct AlignedBuffer {
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: usize) -> AlignedBuffer {
        let raw = vec![0u8; len + DIRECT_ALIGN];
        let start = raw.as_ptr().align_offset(DIRECT_ALIGN);
        AlignedBuffer { raw, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.raw[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..self.start + self.len]
    }
}

/// A few copy buffers for reuse.
#[derive(Debug, Default)]
pub(super) struct CopyBuffers(Mutex<Vec<AlignedBuffer>>);

impl CopyBuffers {
    fn take(&self) -> AlignedBuffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| AlignedBuffer::new(COPY_BYTES))
    }

    fn give_back(&self, buffer: AlignedBuffer) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < COPY_BUFFERS_KEPT {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::renter::folder::{
        disk::{Access, Disk, RealDisk, Writing},
        simdisk::SimDisk,
    };

    fn check(disk: &dyn Disk, parts: &[Bytes]) {
        let expect = parts.concat();
        for writing in [Writing::Direct, Writing::Buffered] {
            let file = disk.create("f", writing).unwrap();
            write_object(&*file, parts, &CopyBuffers::default()).unwrap();
            let read = disk.open("f", Access::Read).unwrap();
            assert_eq!(read.stat().unwrap().len, expect.len() as u64);
            assert!(read.read_at(0, expect.len() + 1).unwrap() == expect);
            disk.unlink("f").unwrap();
        }
    }

    #[test]
    fn every_shape_of_payload() {
        let folder = tempfile::tempdir().unwrap();
        let real = RealDisk::open_folder(folder.path()).unwrap().unwrap();
        let sim = SimDisk::new();
        let data: Vec<u8> = (0..3_000_001u32).map(|index| (index * 7) as u8).collect();
        let mut aligned = AlignedBuffer::new(1 << 20);
        aligned.copy_from_slice(&data[..1 << 20]);
        let aligned = Bytes::from_owner(AlignedOwner(aligned));
        assert_eq!(aligned.as_ptr().align_offset(DIRECT_ALIGN), 0);
        for disk in [&real as &dyn Disk, &*sim] {
            for len in [1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 3_000_001] {
                check(disk, &[Bytes::copy_from_slice(&data[..len])]);
            }
            for len in [1, 4096, 5000, 1 << 20, (1 << 20) - 1] {
                check(disk, &[aligned.slice(..len)]);
            }
            check(disk, &[aligned.slice(1..), aligned.clone(), Bytes::from_static(b"tail")]);
        }
    }

    struct AlignedOwner(AlignedBuffer);
    impl AsRef<[u8]> for AlignedOwner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
}
