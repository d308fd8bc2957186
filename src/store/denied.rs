//! What an operator's lists deny, asked for every block before it is fetched, and before any cache is.
//!
//! A rule names a CID. The same bytes also have a skylink, so for a skyfile the pins that made it are looked through once
//! for each version of the lists: which stretches of its content belong to blocks, or to files, that are denied.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use crate::address::{Cid, Multihash, SkylinkKind, cid_v1, codec};
use crate::deny::{DenyList, DenyStatus, Reason, Subject, blocklist_hash};
use crate::measure::Trace;
use crate::sector::Root;
use crate::tree::ipld;

use super::blocklist::Blocklist;
use super::blocks::OpenPin;
use super::{Inner, Pin, StoreError};

/// What the portal's own list is called in refusals.
const PORTAL_LIST: &str = "of this portal";

/// Skyfiles whose denied stretches are remembered.
const SKYFILES_REMEMBERED_MAX: u64 = 16_384;
/// Blocks that are gone through below one denied block, to find the stretches of its file: a file of 256 GiB has as many.
const BLOCKS_BELOW_MAX: usize = 1 << 20;

/// The lists in force.
pub struct Denied {
    list: RwLock<Arc<DenyList>>,
    /// The portal's own.
    pub blocklist: Blocklist,
    /// Counts the changes; 0 while there are no rules at all.
    version: AtomicU64,
    changes: AtomicU64,
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
        let (version, changes) = (AtomicU64::new(0), AtomicU64::new(0));
        Denied { list: RwLock::default(), blocklist: Blocklist::default(), version, changes, stretches }
    }

    pub fn set(&self, list: DenyList) {
        *self.list.write().expect("no panic under this lock") = Arc::new(list);
    }

    /// Something has changed, and is in its place.
    fn changed(&self) {
        let next = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
        let empty = self.list.read().expect("no panic under this lock").is_empty() && self.blocklist.is_empty();
        self.version.store(if empty { 0 } else { next }, Ordering::Release);
        self.stretches.invalidate_all();
    }

    /// Are there any rules? Costs one load.
    pub fn has_rules(&self) -> bool {
        self.version.load(Ordering::Acquire) != 0
    }

    pub fn check(&self, subject: &Subject<'_>) -> Option<Reason> {
        if !self.has_rules() {
            return None;
        }
        if let Subject::Sector { root } = subject
            && self.blocklist.has(&blocklist_hash(root))
        {
            return Some(Reason { list: PORTAL_LIST.into(), line: 0, status: DenyStatus::LegalReasons, text: None });
        }
        let list = self.list.read().expect("no panic under this lock").clone();
        list.check(subject)
    }

    /// Is the skyfile denied that this pin keeps? Then the pin gives nothing away, under whatever CID.
    pub fn of_pin(&self, pin: &Pin) -> Option<Reason> {
        if !self.has_rules() {
            return None;
        }
        match pin.skylink()?.kind() {
            SkylinkKind::V1 { root, .. } => self.check(&Subject::Sector { root: &root }),
            SkylinkKind::V2 { .. } => None,
        }
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
    /// Other rules are in force: what was found under the old ones is forgotten.
    pub fn denied_changed(&self) {
        self.denied.changed();
        self.unpins.fetch_add(1, Ordering::Release);
        self.located.clear();
        self.nodes.invalidate_all();
    }

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
            for (multihash, reason) in self.denied_blocks(&open) {
                self.stretches_below(&open, root, (multihash, reason), &mut stretches, trace).await?;
            }
        }
        Ok(stretches)
    }

    /// The blocks of a pin that are denied. Of blocks whose digest has not 32 bytes a pack keeps no CID; what imports them
    /// makes no skyfile of files.
    fn denied_blocks(&self, open: &OpenPin) -> Vec<(Multihash, Reason)> {
        let in_pin = open.pin.rows.iter().filter_map(|row| Multihash::from_bytes(row.multihash_bytes()).ok());
        let rows = open.pack().into_iter().flat_map(|pack| pack.index.rows());
        let in_pack = rows.filter_map(|row| Multihash::wrap(row.code.into(), &row.key).ok());
        in_pin.chain(in_pack).filter_map(|hash| self.denied.allow_hash(&hash).err().map(|reason| (hash, reason))).collect()
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
            let Some(located) = self.find_row(open, &multihash.to_bytes(), &multihash)? else { continue };
            if let Some(bytes) = located.stretch_of(root) {
                stretches.push(Stretch { bytes, reason: reason.clone() });
                continue;
            }
            // Not in the skyfile: a node, whose children may be.
            let block = self.assemble_index(&located, trace).await?;
            let digest = multihash.digest().try_into().unwrap_or_default();
            if let Ok(links) = ipld::links(&cid_v1(codec::DAG_PB, digest), &block) {
                waiting.extend(links.iter().map(|link| *link.hash()));
            }
        }
        Ok(())
    }
}
