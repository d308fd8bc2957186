//! The rows of a pack: held whole while they are few, looked up by pages while they are many, on this node's disk once
//! they are there and on the hosts before.
//!
//! So a block out of a pack of ten million costs an empty node five rounds (pin, start of the pack, its skyfile table, a
//! page of rows, the block), and a node that has the index one read of its own disk.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::address::{Cid, Multihash};
use crate::measure::Trace;
use crate::sector::{Root, SECTOR_BYTES};
use crate::tree::car::{Head, Parsed, parse_head};
use crate::tree::pack::{PackDirectory, PackError, PackHead, PackIndex, ROW_BYTES, Row, SearchStep, SkyfileRef};

use super::blocks::OpenPack;
use super::content::{Content, UNIT_BYTES};
use super::packs::{IndexFile, Kept, WHOLE_INDEX_BYTES_MAX};
use super::{Inner, StoreError};

/// Bytes of rows read at a time where all of them are gone through.
const ROWS_READ_BYTES: u64 = UNIT_BYTES / ROW_BYTES as u64 * ROW_BYTES as u64;
/// What is read first of a pack larger than a sector: its header, and of a pack that holds no nodes the index's start.
const START_BYTES: u64 = 16 << 10;

/// The index of an open pack.
pub enum PackRows {
    Whole(PackIndex),
    Large(LargeRows),
}

/// An index that is not held.
pub struct LargeRows {
    directory: PackDirectory,
    /// `None` until the background has fetched it.
    file: Option<IndexFile>,
}

impl PackRows {
    pub fn row_count(&self) -> u64 {
        match self {
            PackRows::Whole(index) => index.row_count() as u64,
            PackRows::Large(large) => large.directory.row_count(),
        }
    }

    pub fn skyfiles(&self) -> &[SkyfileRef] {
        match self {
            PackRows::Whole(index) => index.skyfiles(),
            PackRows::Large(large) => large.directory.skyfiles(),
        }
    }

    /// Memory that it keeps alive, for caches that count.
    pub fn memory_bytes(&self) -> usize {
        match self {
            PackRows::Whole(index) => index.memory_bytes(),
            PackRows::Large(large) => large.directory.memory_bytes(),
        }
    }

    /// No look-up in it asks a host.
    pub fn is_local(&self) -> bool {
        matches!(self, PackRows::Whole(_) | PackRows::Large(LargeRows { file: Some(_), .. }))
    }

    /// Calls for the key and code of each row. Blocks; only for rows that are local.
    pub fn each_local_key(&self, mut take: impl FnMut(&[u8; 32], u32) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let large = match self {
            PackRows::Whole(index) => return index.rows().try_for_each(|row| take(&row.key, row.code)),
            PackRows::Large(large) => large,
        };
        let file = large.file.as_ref().ok_or_else(|| StoreError::BadPin("its index is not on this node".to_owned()))?;
        for range in pages(large.directory.rows()) {
            each_key(&file.read(range).map_err(unreadable)?, &mut take)?;
        }
        Ok(())
    }
}

impl Inner {
    /// The rows of a pack, from this node's disk or the hosts.
    pub async fn load_pack_rows(
        self: &Arc<Self>,
        root: Root,
        content: &Content,
        trace: &Arc<Trace>,
    ) -> Result<PackRows, StoreError> {
        let (inner, pack_bytes) = (self.clone(), content.size);
        let kept = tokio::task::spawn_blocking(move || inner.packs_on_disk.load(&root, pack_bytes));
        match kept.await.expect("reading an index does not panic") {
            Some(Kept::Whole(bytes)) => {
                let head = PackHead::parse(&bytes, content.size).map_err(bad_pack)?;
                let index = PackIndex::parse(&head, bytes.slice(PackHead::BYTES..)).map_err(bad_pack)?;
                Ok(PackRows::Whole(index))
            }
            Some(Kept::Large(file)) => open_file(file),
            None => self.fetch_pack_rows(root, content, trace).await,
        }
    }

    /// A pack within one base sector comes in one read; a small index of a larger one whole, and from then on it is on this
    /// node's disk; of a large index only what says where its rows are.
    async fn fetch_pack_rows(&self, root: Root, content: &Content, trace: &Arc<Trace>) -> Result<PackRows, StoreError> {
        trace.index_from_hosts();
        let is_whole = content.size <= SECTOR_BYTES as u64;
        let first = if is_whole { content.size } else { START_BYTES };
        let start = self.contents.fetch(content, 0..first, trace).await?;
        let head = PackHead::parse(&start, content.size).map_err(bad_pack)?;
        let index_bytes = head.index.end - head.index.start;
        if index_bytes > WHOLE_INDEX_BYTES_MAX {
            return self.fetch_directory(content, &head, &start, trace).await;
        }
        let mut bytes = BytesMut::from(&start[..PackHead::BYTES]);
        if is_whole {
            self.contents.keep_first_pages(content, &start);
            bytes.extend_from_slice(&start[head.index.start as usize..]);
        } else {
            let units = (head.index.start..head.index.end).step_by(UNIT_BYTES as usize);
            let reads = units.map(|at| self.contents.fetch(content, at..(at + UNIT_BYTES).min(head.index.end), trace));
            let units = futures::future::try_join_all(reads).await?;
            units.iter().for_each(|unit| bytes.extend_from_slice(unit));
        }
        let bytes = bytes.freeze();
        let index = PackIndex::parse(&head, bytes.slice(PackHead::BYTES..)).map_err(bad_pack)?;
        self.packs_on_disk.keep(&root, &bytes[..PackHead::BYTES], &bytes[PackHead::BYTES..]);
        Ok(PackRows::Whole(index))
    }

    async fn fetch_directory(
        &self,
        content: &Content,
        head: &PackHead,
        start: &Bytes,
        trace: &Arc<Trace>,
    ) -> Result<PackRows, StoreError> {
        let want = head.index.start..head.index.start + PackDirectory::START_BYTES as u64;
        let index_start = match start.get(want.start as usize..want.end as usize) {
            Some(at_hand) => Bytes::copy_from_slice(at_hand),
            None => self.contents.fetch(content, want, trace).await?,
        };
        let table = PackDirectory::table(head, &index_start).map_err(bad_pack)?;
        let table = self.fetch_long(content, table, trace).await?;
        let directory = PackDirectory::parse(head, &index_start, table).map_err(bad_pack)?;
        Ok(PackRows::Large(LargeRows { directory, file: None }))
    }

    /// A stretch that may be longer than one read should be.
    async fn fetch_long(&self, content: &Content, range: std::ops::Range<u64>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        let mut bytes = BytesMut::new();
        let mut at = range.start;
        while at < range.end {
            let end = (at + UNIT_BYTES).min(range.end);
            bytes.extend_from_slice(&self.contents.fetch(content, at..end, trace).await?);
            at = end;
        }
        Ok(bytes.freeze())
    }

    /// The row of a block.
    pub async fn find_in_pack(
        &self,
        pack: &OpenPack,
        multihash: &Multihash,
        trace: &Arc<Trace>,
    ) -> Result<Option<Row>, StoreError> {
        let large = match &pack.rows {
            PackRows::Whole(index) => return Ok(index.lookup(multihash)),
            PackRows::Large(large) => large,
        };
        let Some(mut search) = large.directory.search(multihash) else { return Ok(None) };
        let mut step = search.step();
        loop {
            match step {
                SearchStep::Absent => return Ok(None),
                SearchStep::Need(range) => {
                    let rows = self.index_bytes_of(pack, large, range, trace).await?;
                    step = search.give(&rows).map_err(bad_pack)?;
                }
                SearchStep::Found(row) => {
                    let extras = match row.extras() {
                        Some(range) => self.index_bytes_of(pack, large, range, trace).await?,
                        None => Bytes::new(),
                    };
                    return Ok(Some(row.with_extras(extras)));
                }
            }
        }
    }

    async fn index_bytes_of(
        &self,
        pack: &OpenPack,
        large: &LargeRows,
        range: std::ops::Range<u64>,
        trace: &Arc<Trace>,
    ) -> Result<Bytes, StoreError> {
        match &large.file {
            // Some 32 KiB out of the page cache, or one read of a disk: less than a hop to another thread and back costs a
            // reader in the usual case.
            Some(file) => file.read(range).map(Bytes::from).map_err(unreadable),
            None => self.contents.index_bytes(&pack.content, range, trace).await,
        }
    }

    /// Calls for the key and code of each row, wherever they are.
    pub async fn each_key_of_pack(
        &self,
        pack: &OpenPack,
        trace: &Arc<Trace>,
        mut take: impl FnMut(&[u8; 32], u32) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let PackRows::Large(large) = &pack.rows else { return pack.rows.each_local_key(take) };
        for range in pages(large.directory.rows()) {
            let rows = match &large.file {
                Some(file) => file.read(range).map(Bytes::from).map_err(unreadable)?,
                None => self.contents.fetch(&pack.content, range, trace).await?,
            };
            each_key(&rows, &mut take)?;
            // Other tasks of this thread have waited for a mebibyte of rows.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// The roots that stand in the CAR of a pack.
    pub async fn pack_roots(self: &Arc<Self>, pack: &SkyfileRef, trace: &Arc<Trace>) -> Result<Vec<Cid>, StoreError> {
        let content = self.content_of(pack, trace).await?;
        let mut wanted = START_BYTES;
        loop {
            let bytes = self.fetch_long(&content, 0..wanted.min(content.size), trace).await?;
            let payload = bytes.get(PackHead::BYTES..).unwrap_or_default();
            wanted = match parse_head(payload).map_err(|error| bad_pack(error.into()))? {
                Parsed::Done { value: Head::V1 { roots }, .. } => return Ok(roots),
                Parsed::More { needed_bytes } if wanted < content.size => (PackHead::BYTES + needed_bytes) as u64,
                _ => return Err(StoreError::BadPin("its pack holds no CAR".to_owned())),
            };
        }
    }

    /// Fetches a large index to this node's disk, checking it on the way.
    pub async fn fetch_index_file(&self, root: &Root, pack: &OpenPack, trace: &Arc<Trace>) -> Result<(), StoreError> {
        let PackRows::Large(LargeRows { directory, file: None }) = &pack.rows else { return Ok(()) };
        let start = self.contents.fetch(&pack.content, 0..PackHead::BYTES as u64, trace).await?;
        let head = PackHead::parse(&start, pack.content.size).map_err(bad_pack)?;
        let mut new = self.packs_on_disk.create().map_err(unreadable)?;
        let rows = directory.rows();
        let mut check = directory.check_rows();
        let before = self.contents.fetch(&pack.content, head.index.start..rows.start, trace).await?;
        new.push(&start).and_then(|()| new.push(&before)).map_err(unreadable)?;
        for range in pages(rows.clone()) {
            let bytes = self.contents.fetch(&pack.content, range, trace).await?;
            check.push(&bytes).map_err(bad_pack)?;
            new.push(&bytes).map_err(unreadable)?;
        }
        check.finish().map_err(bad_pack)?;
        let mut at = rows.end;
        while at < head.index.end {
            let end = (at + UNIT_BYTES).min(head.index.end);
            new.push(&self.contents.fetch(&pack.content, at..end, trace).await?).map_err(unreadable)?;
            at = end;
        }
        self.packs_on_disk.persist(root, new).map_err(unreadable)
    }
}

fn open_file(file: IndexFile) -> Result<PackRows, StoreError> {
    let at = file.head.index.start;
    let start = file.read(at..at + PackDirectory::START_BYTES as u64).map_err(unreadable)?;
    let table = PackDirectory::table(&file.head, &start).map_err(bad_pack)?;
    let table = file.read(table).map_err(unreadable)?;
    let directory = PackDirectory::parse(&file.head, &start, table.into()).map_err(bad_pack)?;
    Ok(PackRows::Large(LargeRows { directory, file: Some(file) }))
}

fn pages(rows: std::ops::Range<u64>) -> impl Iterator<Item = std::ops::Range<u64>> {
    let end = rows.end;
    rows.step_by(ROWS_READ_BYTES as usize).map(move |at| at..(at + ROWS_READ_BYTES).min(end))
}

fn each_key(rows: &[u8], take: &mut impl FnMut(&[u8; 32], u32) -> Result<(), StoreError>) -> Result<(), StoreError> {
    rows.as_chunks::<ROW_BYTES>().0.iter().try_for_each(|row| {
        let (key, rest) = row.split_first_chunk::<32>().expect("a row begins with a key");
        take(key, u32::from_le_bytes(*rest.first_chunk().expect("a code follows the key")))
    })
}

pub fn bad_pack(error: PackError) -> StoreError {
    StoreError::BadPin(format!("its pack cannot be read: {error}"))
}

fn unreadable(error: std::io::Error) -> StoreError {
    StoreError::Catalog(super::CatalogError::from(redb::Error::Io(error)))
}
