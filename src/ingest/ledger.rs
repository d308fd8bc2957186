//! Which blocks of an import have come, where they are, and which were linked to and have not come.
//!
//! Both are kept in memory up to a bound; beyond it they go, sorted, to the disk (`runs`), and are joined at the end:
//! equal rows to the first of them, links against rows. Blocks mostly come soon after what links to them, so most links
//! are settled in memory.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::IngestError;
use super::runs::{Merge, Runs};
use crate::tree::pack::{KEY_BYTES, Key};

/// A row on the disk: key, offset, length; big-endian, so that of equal keys the first in the content sorts first.
const ROW_BYTES: usize = KEY_BYTES + 8 + 4;

/// How much a ledger keeps where.
#[derive(Clone, Debug)]
pub struct LedgerOptions {
    /// Where the runs go.
    pub folder: PathBuf,
    /// Rows in memory, about 120 bytes each while they are sorted.
    pub rows_max: usize,
    /// Links in memory, about 90 bytes each.
    pub links_max: usize,
    /// Bytes of all runs on the disk.
    pub disk_bytes_max: u64,
}

/// The blocks and links of one import.
pub struct Ledger {
    options: LedgerOptions,
    /// Blocks that came and are not on the disk yet: offset and length.
    came: HashMap<Key, (u64, u32)>,
    /// Links whose blocks are not in `came`, and that are not on the disk yet.
    wanted: HashSet<Key>,
    rows: Runs<ROW_BYTES>,
    links: Runs<KEY_BYTES>,
}

/// What a ledger says at its end.
pub struct Settled {
    /// Different blocks.
    pub blocks: u64,
    /// Different blocks that were linked to and did not come.
    pub missing: u64,
    /// Bytes of the different blocks.
    pub size_bytes: u64,
    /// Blocks by the first byte of their key.
    pub counts: [u32; 256],
    rows: Runs<ROW_BYTES>,
}

impl Ledger {
    pub fn new(options: LedgerOptions) -> Ledger {
        Ledger { options, came: HashMap::new(), wanted: HashSet::new(), rows: Runs::new(), links: Runs::new() }
    }

    /// Whether the block is among those that came last. Of others that came twice the first row counts.
    pub fn came_lately(&self, key: &Key) -> bool {
        self.came.contains_key(key)
    }

    /// Notes a block, `len` bytes from `offset` of the content.
    pub fn came(&mut self, key: Key, offset: u64, len: u32) -> Result<(), IngestError> {
        self.wanted.remove(&key);
        self.came.insert(key, (offset, len));
        if self.came.len() >= self.options.rows_max {
            self.spill_rows()?;
        }
        Ok(())
    }

    /// Notes a link.
    pub fn want(&mut self, key: Key) -> Result<(), IngestError> {
        if !self.came.contains_key(&key) {
            self.wanted.insert(key);
        }
        if self.wanted.len() >= self.options.links_max {
            self.spill_links()?;
        }
        Ok(())
    }

    /// Everything has come.
    pub fn finish(mut self) -> Result<Settled, IngestError> {
        self.spill_rows()?;
        self.spill_links()?;
        let mut settled = Settled { blocks: 0, missing: 0, size_bytes: 0, counts: [0; 256], rows: self.rows };
        let mut rows = Distinct::new(settled.rows.merge().map_err(scratch)?);
        let mut links = Distinct::new(self.links.merge().map_err(scratch)?);
        let mut link = links.next()?;
        let (mut blocks, mut size_bytes, mut missing, mut counts) = (0, 0, 0, [0; 256]);
        while let Some(row) = rows.next()? {
            let (key, _, len) = parts(&row);
            blocks += 1;
            size_bytes += u64::from(len);
            counts[usize::from(key.0[0])] += 1;
            while link.is_some_and(|link| link < key.0) {
                missing += 1;
                link = links.next()?;
            }
            if link == Some(key.0) {
                link = links.next()?;
            }
        }
        while link.is_some() {
            missing += 1;
            link = links.next()?;
        }
        drop(rows);
        (settled.blocks, settled.missing, settled.size_bytes, settled.counts) = (blocks, missing, size_bytes, counts);
        Ok(settled)
    }

    fn spill_rows(&mut self) -> Result<(), IngestError> {
        if self.came.is_empty() {
            return Ok(());
        }
        let mut sorted: Vec<[u8; ROW_BYTES]> = self.came.drain().map(|(key, (offset, len))| row(&key, offset, len)).collect();
        sorted.sort_unstable();
        self.check_disk(sorted.as_flattened().len())?;
        self.rows.spill(&self.options.folder, &sorted).map_err(scratch)
    }

    fn spill_links(&mut self) -> Result<(), IngestError> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let mut sorted: Vec<[u8; KEY_BYTES]> = self.wanted.drain().map(|key| key.0).collect();
        sorted.sort_unstable();
        self.check_disk(sorted.as_flattened().len())?;
        self.links.spill(&self.options.folder, &sorted).map_err(scratch)
    }

    fn check_disk(&self, more: usize) -> Result<(), IngestError> {
        let max = self.options.disk_bytes_max;
        if self.rows.bytes() + self.links.bytes() + more as u64 > max {
            return Err(IngestError::bad(format!(
                "the CAR has so many blocks and links that sorting them takes more than {max} bytes of disk: import it in parts"
            )));
        }
        Ok(())
    }
}

impl Settled {
    /// Calls for each different block, sorted by key: key, offset, length.
    pub fn each(&self, mut take: impl FnMut(&Key, u64, u32) -> Result<(), IngestError>) -> Result<(), IngestError> {
        let mut rows = Distinct::new(self.rows.merge().map_err(scratch)?);
        while let Some(row) = rows.next()? {
            let (key, offset, len) = parts(&row);
            take(&key, offset, len)?;
        }
        Ok(())
    }
}

/// Of records with equal keys only the first.
struct Distinct<'a, const N: usize> {
    merge: Merge<'a, N>,
    last: Option<[u8; KEY_BYTES]>,
}

impl<'a, const N: usize> Distinct<'a, N> {
    fn new(merge: Merge<'a, N>) -> Distinct<'a, N> {
        Distinct { merge, last: None }
    }

    fn next(&mut self) -> Result<Option<[u8; N]>, IngestError> {
        loop {
            let Some(record) = self.merge.next().map_err(scratch)? else { return Ok(None) };
            let key = *record.first_chunk().expect("records begin with a key");
            if self.last.replace(key) != Some(key) {
                return Ok(Some(record));
            }
        }
    }
}

fn row(key: &Key, offset: u64, len: u32) -> [u8; ROW_BYTES] {
    let mut row = [0; ROW_BYTES];
    row[..KEY_BYTES].copy_from_slice(&key.0);
    row[KEY_BYTES..KEY_BYTES + 8].copy_from_slice(&offset.to_be_bytes());
    row[KEY_BYTES + 8..].copy_from_slice(&len.to_be_bytes());
    row
}

fn parts(row: &[u8; ROW_BYTES]) -> (Key, u64, u32) {
    let key = Key(*row.first_chunk().expect("a row begins with a key"));
    let offset = u64::from_be_bytes(row[KEY_BYTES..KEY_BYTES + 8].try_into().expect("eight bytes"));
    (key, offset, u32::from_be_bytes(row[KEY_BYTES + 8..].try_into().expect("four bytes")))
}

pub fn scratch(error: std::io::Error) -> IngestError {
    IngestError::Scratch(error.to_string())
}

/// What an import keeps where; the folder is the store's.
pub fn options(folder: &Path) -> LedgerOptions {
    LedgerOptions {
        folder: folder.to_owned(),
        rows_max: super::import::ROWS_IN_MEMORY,
        links_max: super::import::LINKS_IN_MEMORY,
        disk_bytes_max: super::import::IMPORT_DISK_BYTES_MAX,
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn key(number: u32) -> Key {
        let mut key = [0; KEY_BYTES];
        key[..32].copy_from_slice(&crate::address::sha2_256(&number.to_le_bytes()));
        Key(key)
    }

    /// What the ledger says beside what sets in memory say.
    fn check(rows_max: usize, links_max: usize) {
        let folder = tempfile::tempdir().expect("temp folder");
        let options = LedgerOptions { folder: folder.path().to_owned(), rows_max, links_max, disk_bytes_max: 1 << 30 };
        let mut ledger = Ledger::new(options);
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let (mut came, mut wanted) = (HashMap::new(), HashSet::new());
        for offset in 0..4_000_u64 {
            let block = random.random_range(0..3_000);
            // As an import does: what came lately is not taken again.
            if !ledger.came_lately(&key(block)) {
                ledger.came(key(block), offset, block).expect("came");
                came.entry(block).or_insert(offset);
            }
            for _ in 0..3 {
                let link = random.random_range(0..4_000);
                ledger.want(key(link)).expect("wanted");
                wanted.insert(link);
            }
        }
        let settled = ledger.finish().expect("settled");
        assert_eq!(settled.blocks, came.len() as u64);
        assert_eq!(settled.missing, wanted.iter().filter(|link| !came.contains_key(link)).count() as u64);
        assert_eq!(settled.size_bytes, came.keys().map(|block| u64::from(*block)).sum::<u64>());
        let mut rows: Vec<_> = came.iter().map(|(block, offset)| (key(*block), *offset, *block)).collect();
        rows.sort_unstable();
        let mut told = Vec::new();
        let tell = |key: &Key, offset, len| {
            told.push((*key, offset, len));
            Ok(())
        };
        settled.each(tell).expect("told");
        assert!(told == rows, "{rows_max} rows, {links_max} links");
        assert_eq!(settled.counts.iter().sum::<u32>() as usize, rows.len());
    }

    #[test]
    fn few_or_many_in_memory_say_the_same() {
        for (rows_max, links_max) in [(1 << 20, 1 << 20), (1 << 20, 50), (50, 1 << 20), (100, 70), (1, 1)] {
            check(rows_max, links_max);
        }
    }

    #[test]
    fn the_disk_is_bounded() {
        let folder = tempfile::tempdir().expect("temp folder");
        let options = LedgerOptions { folder: folder.path().to_owned(), rows_max: 10, links_max: 10, disk_bytes_max: 2_000 };
        let mut ledger = Ledger::new(options);
        let failed = (0..100).find_map(|number| ledger.came(key(number), 0, 1).err());
        assert!(matches!(failed, Some(IngestError::Bad(why)) if why.contains("in parts")));
    }
}
