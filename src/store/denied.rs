//! What an operator's lists deny, asked for every block before it is fetched, and before any cache is.
//!
//! A rule names a CID. The same bytes also have a skylink, so for a skyfile the pins that made it are looked through once
//! for each version of the lists: which stretches of its content belong to blocks, or to files, that are denied.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use bytes::Bytes;

use crate::address::{Cid, Multihash, cid_v1, codec};
use crate::deny::{DenyList, Reason, Subject};
use crate::measure::Trace;
use crate::sector::Root;
use crate::tree::build::SMALL_LEAF_BYTES;
use crate::tree::ipld;

use super::blocks::OpenPin;
use super::{Inner, StoreError};

/// Skyfiles whose denied stretches are remembered.
const SKYFILES_REMEMBERED_MAX: u64 = 16_384;
/// Blocks that are gone through below one denied block, to find the stretches of its file: a file of 256 GiB has as many.
const BLOCKS_BELOW_MAX: usize = 1 << 20;

/// All chunkers here cut files at multiples of this.
const CHUNK_BYTES_MIN: u64 = 256 << 10;
/// Files of one skyfile that are compared with one denied leaf: at most 128 MiB, once for each version of the lists.
const COMPARED_MAX: usize = 4096;

/// The lists in force.
pub struct Denied {
    list: RwLock<Arc<DenyList>>,
    /// Counts the lists that were in force; 0 while there are no rules at all.
    version: AtomicU64,
    stretches: moka::sync::Cache<(Root, u64), Arc<[Stretch]>>,
}

/// Bytes of a skyfile's content that are not served.
#[derive(Clone, Debug)]
struct Stretch {
    bytes: Range<u64>,
    reason: Reason,
}

impl Denied {
    pub fn new() -> Denied {
        let stretches = moka::sync::Cache::new(SKYFILES_REMEMBERED_MAX);
        Denied { list: RwLock::default(), version: AtomicU64::new(0), stretches }
    }

    pub fn set(&self, list: DenyList) {
        let mut current = self.list.write().expect("no panic under this lock");
        let next = self.version.load(Ordering::Acquire) + 1;
        self.version.store(if list.is_empty() { 0 } else { next }, Ordering::Release);
        self.stretches.invalidate_all();
        *current = Arc::new(list);
    }

    /// Are there any rules? Costs one load.
    pub fn has_rules(&self) -> bool {
        self.version.load(Ordering::Acquire) != 0
    }

    pub fn check(&self, subject: &Subject<'_>) -> Option<Reason> {
        if !self.has_rules() {
            return None;
        }
        let list = self.list.read().expect("no panic under this lock").clone();
        list.check(subject)
    }

    /// May this block be served or walked through?
    pub fn allow(&self, cid: &Cid) -> Result<(), StoreError> {
        self.check(&Subject::Ipfs { root: cid, path: "" }).map_or(Ok(()), |reason| Err(StoreError::denied(reason)))
    }

    fn allow_hash(&self, multihash: &Multihash) -> Result<(), Reason> {
        let cid = Cid::new_v1(codec::RAW, *multihash);
        self.check(&Subject::Ipfs { root: &cid, path: "" }).map_or(Ok(()), Err)
    }
}

impl Inner {
    /// May these bytes of a skyfile's content be served? `Err` if they are denied under their skylink or their CIDs.
    pub async fn allow_stretch(self: &Arc<Self>, root: &Root, bytes: &Range<u64>, trace: &Arc<Trace>) -> Result<(), StoreError> {
        if !self.denied.has_rules() {
            return Ok(());
        }
        if let Some(reason) = self.denied.check(&Subject::Sector { root: &root.0 }) {
            return Err(StoreError::denied(reason));
        }
        let version = self.denied.version.load(Ordering::Acquire);
        let stretches = match self.denied.stretches.get(&(*root, version)) {
            Some(stretches) => stretches,
            None => {
                let found: Arc<[Stretch]> = self.denied_stretches(root, trace).await?.into();
                self.denied.stretches.insert((*root, version), found.clone());
                found
            }
        };
        let hit = stretches.iter().find(|stretch| stretch.bytes.start < bytes.end && bytes.start < stretch.bytes.end);
        hit.map_or(Ok(()), |stretch| Err(StoreError::denied(stretch.reason.clone())))
    }

    async fn denied_stretches(self: &Arc<Self>, root: &Root, trace: &Arc<Trace>) -> Result<Vec<Stretch>, StoreError> {
        let mut stretches = Vec::new();
        for row in self.catalog.by_root(&root.0)? {
            let open = self.open_pin(&row.key, &row.body, trace).await?;
            if let Some(reason) = open.pin.cid().and_then(|cid| self.denied.allow_hash(cid.hash()).err()) {
                stretches.push(Stretch { bytes: 0..u64::MAX, reason });
                continue;
            }
            for (multihash, reason) in self.denied_blocks(&open, trace).await? {
                self.stretches_below(&open, root, (multihash, reason), &mut stretches, trace).await?;
            }
        }
        Ok(stretches)
    }

    /// The blocks of a pin that are denied. Of blocks whose digest has not 32 bytes a pack keeps no CID; what imports them
    /// makes no skyfile of files.
    async fn denied_blocks(&self, open: &OpenPin, trace: &Arc<Trace>) -> Result<Vec<(Multihash, Reason)>, StoreError> {
        let in_pin = open.pin.rows.iter().filter_map(|row| Multihash::from_bytes(row.multihash_bytes()).ok());
        let mut found: Vec<_> =
            in_pin.filter_map(|hash| self.denied.allow_hash(&hash).err().map(|reason| (hash, reason))).collect();
        if let Some(pack) = open.pack() {
            let look = |key: &[u8; 32], code: u32| {
                let hash = Multihash::wrap(code.into(), key).ok();
                found.extend(hash.and_then(|hash| self.denied.allow_hash(&hash).err().map(|reason| (hash, reason))));
                Ok(())
            };
            self.each_key_of_pack(pack, trace, look).await?;
        }
        Ok(found)
    }

    /// Where the bytes of a denied block and of all below it lie in the skyfile.
    async fn stretches_below(
        self: &Arc<Self>,
        open: &OpenPin,
        root: &Root,
        (top, reason): (Multihash, Reason),
        stretches: &mut Vec<Stretch>,
        trace: &Arc<Trace>,
    ) -> Result<(), StoreError> {
        let mut seen = std::collections::HashSet::new();
        let mut waiting = vec![top];
        while let Some(multihash) = waiting.pop() {
            if !seen.insert(multihash.to_bytes()) || seen.len() > BLOCKS_BELOW_MAX {
                continue;
            }
            let Some(located) = self.find_row(open, &multihash.to_bytes(), &multihash, trace).await? else { continue };
            if let Some(bytes) = located.stretch_of(root) {
                stretches.push(Stretch { bytes, reason: reason.clone() });
                continue;
            }
            // Kept in the pack: a node, whose children may be in the skyfile, or a small leaf, which is there as well.
            let block = self.assemble_index(&located, trace).await?;
            let digest = multihash.digest().try_into().unwrap_or_default();
            if let Ok(links) = ipld::links(&cid_v1(codec::DAG_PB, digest), &block) {
                waiting.extend(links.iter().map(|link| *link.hash()));
            }
            let found = self.copies_of(open, root, &block, trace).await?;
            stretches.extend(found.into_iter().map(|bytes| Stretch { bytes, reason: reason.clone() }));
        }
        Ok(())
    }

    /// Where the bytes of a leaf that a pack keeps by itself lie in the skyfile: the pack's row no longer says. Such a leaf is
    /// a whole file or the end of one, so files of a fitting length are compared.
    async fn copies_of(
        &self,
        open: &OpenPin,
        root: &Root,
        block: &Bytes,
        trace: &Arc<Trace>,
    ) -> Result<Vec<Range<u64>>, StoreError> {
        let length = block.len() as u64;
        let Some(skyfile) = open.pin.skyfiles.iter().find(|skyfile| skyfile.root == root.0) else { return Ok(Vec::new()) };
        if length == 0 || length > SMALL_LEAF_BYTES as u64 {
            return Ok(Vec::new());
        }
        let open = self.skyfile_head(*root, skyfile.used, trace).await?;
        let files = open.head.metadata.subfiles.values().map(|file| (file.offset_bytes, file.len_bytes));
        let whole = Some((0, open.head.size_bytes)).filter(|_| open.head.metadata.subfiles.is_empty());
        let ends = files.chain(whole).filter_map(|(offset, size)| {
            let end = offset.checked_add(size).filter(|end| *end <= open.head.size_bytes)?;
            (size >= length && (size - length).is_multiple_of(CHUNK_BYTES_MIN)).then_some(end - length..end)
        });
        let mut copies = Vec::new();
        for (count, bytes) in ends.enumerate() {
            // What cannot be compared any more is not served either.
            if count >= COMPARED_MAX || self.contents.fetch(&open.content, bytes.clone(), trace).await? == *block {
                copies.push(bytes);
            }
        }
        Ok(copies)
    }
}
