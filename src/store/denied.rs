//! What an operator's lists deny, asked for every block before it is fetched, and before any cache is.
//!
//! A file is served if none of its blocks is denied, whatever part of it is asked for: a HEAD or a 304 must not say yes to
//! what a GET refuses. Its tree is looked through once for each version of the lists.
//!
//! A rule names a CID. The same bytes also have a skylink, so for a skyfile the pins that made it are looked through once
//! for each version of the lists: which stretches of its content belong to blocks, or to files, that are denied. A pack has
//! a skylink, too; while there are rules it is not served, since its index does not name every block in it.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use futures::stream::{FuturesUnordered, StreamExt};

use crate::address::{Cid, Multihash, SkylinkKind, codec, hash};
use crate::deny::{DenyList, DenyStatus, Reason, Subject, blocklist_hash};
use crate::measure::Trace;
use crate::sector::Root;
use crate::tree::pack::SkyfileRef;
use crate::tree::{FileNode, TreeNode, parse_node};

use super::blocklist::Blocklist;
use super::blocks::OpenPin;
use super::content::Lies;
use super::stream::FileSource;
use super::{Inner, Pin, StoreError};

/// What the portal's own list is called in refusals.
const PORTAL_LIST: &str = "of this portal";

/// Skyfiles whose denied stretches are remembered.
const SKYFILES_REMEMBERED_MAX: u64 = 16_384;
/// Files and folders that are looked through, to find which hold a denied block: as many as an upload has. Beyond it the
/// whole skyfile is denied.
const ENTRIES_LOOKED_AT_MAX: usize = 1 << 20;
/// Files whose verdict is remembered.
const FILES_REMEMBERED_MAX: u64 = 65_536;
/// Interior nodes of a file that are looked through before its first byte: of 11 GiB in 256-KiB leaves, or 256 GiB in
/// leaves of a MiB. The leaves of larger files are checked as they are read, and a denied one breaks the reply off.
const FILE_NODES_MAX: usize = 256;
/// The same for the files of a skyfile that is known to hold a denied block: a file with more is denied whole.
const PIN_FILE_NODES_MAX: usize = 16_384;
/// Of them, read at once.
const FILE_NODES_AT_ONCE: usize = 8;
/// Blocks of one file that are remembered while it is looked through, at most about 30 MiB.
const BLOCKS_SEEN_MAX: usize = 1 << 18;

/// The lists in force.
pub struct Denied {
    list: RwLock<Arc<DenyList>>,
    /// The portal's own.
    pub blocklist: Blocklist,
    /// Twice the number of changes so far, and one more while there are rules: no two versions are the same.
    version: AtomicU64,
    changes: AtomicU64,
    stretches: moka::sync::Cache<(Root, u64), Arc<[Stretch]>>,
    files: moka::sync::Cache<(Vec<u8>, u64), Option<Arc<Reason>>>,
}

/// Bytes that are not served, of a base sector or of the slabs of its skyfile. Of a sector they count from its beginning: it
/// can be read by other skylinks than that of the upload, each with a skyfile of its own in it.
#[derive(Clone, Debug)]
struct Stretch {
    lies: Lies,
    reason: Reason,
}

/// What was found below a node.
#[derive(Default)]
struct Below {
    /// Why a block is denied.
    reason: Option<Reason>,
    /// Something could not be read.
    failure: Option<StoreError>,
    /// There is more than was looked at.
    cut: bool,
}

impl Denied {
    pub fn new() -> Denied {
        Denied {
            list: RwLock::default(),
            blocklist: Blocklist::default(),
            version: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            stretches: moka::sync::Cache::new(SKYFILES_REMEMBERED_MAX),
            files: moka::sync::Cache::new(FILES_REMEMBERED_MAX),
        }
    }

    pub fn set(&self, list: DenyList) {
        *self.list.write().expect("no panic under this lock") = Arc::new(list);
    }

    /// Something has changed, and is in its place.
    fn changed(&self) {
        let changes = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
        let empty = self.list.read().expect("no panic under this lock").is_empty() && self.blocklist.is_empty();
        self.version.store(2 * changes + u64::from(!empty), Ordering::Release);
        self.stretches.invalidate_all();
        self.files.invalidate_all();
    }

    /// Are there any rules? Costs one load.
    pub fn has_rules(&self) -> bool {
        !self.version.load(Ordering::Acquire).is_multiple_of(2)
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
    /// May this file be served? Asked before a reply's head, so that HEAD, conditions and ranges are refused like the whole.
    /// What cannot be read does not count here: a part that does not need it is served.
    pub async fn allow_file(self: &Arc<Self>, file: &FileSource, trace: &Arc<Trace>) -> Result<(), StoreError> {
        if !self.denied.has_rules() {
            return Ok(());
        }
        self.denied.allow(&file.cid)?;
        if file.node.children.is_empty() {
            return Ok(());
        }
        let key = (file.cid.hash().to_bytes(), self.denied.version.load(Ordering::Acquire));
        let reason = match self.denied.files.get(&key) {
            Some(reason) => reason,
            None => {
                let below = self.look_below(&file.node, FILE_NODES_MAX, trace).await;
                let reason = below.reason.map(Arc::new);
                if reason.is_some() || below.failure.is_none() {
                    self.denied.files.insert(key, reason.clone());
                }
                reason
            }
        };
        reason.map_or(Ok(()), |reason| Err(StoreError::denied((*reason).clone())))
    }

    /// Looks for a denied block below this node, and reads at most `nodes_max` nodes for it.
    async fn look_below(self: &Arc<Self>, top: &Arc<FileNode>, nodes_max: usize, trace: &Arc<Trace>) -> Below {
        let mut open = vec![top.clone()];
        let mut reads = FuturesUnordered::new();
        let mut waiting: Vec<Cid> = Vec::new();
        let (mut seen, mut nodes_left) = (HashSet::new(), nodes_max);
        let mut below = Below::default();
        loop {
            for child in std::mem::take(&mut open).iter().flat_map(|node| &node.children) {
                if let Err(reason) = self.denied.allow_hash(child.cid.hash()) {
                    return Below { reason: Some(reason), ..below };
                }
                if child.cid.codec() == codec::RAW || seen.contains(child.cid.hash()) {
                    continue;
                }
                if seen.len() == BLOCKS_SEEN_MAX {
                    below.cut = true;
                    break;
                }
                seen.insert(*child.cid.hash());
                waiting.push(child.cid);
            }
            while reads.len() < FILE_NODES_AT_ONCE.min(nodes_left)
                && let Some(cid) = waiting.pop()
            {
                reads.push(async move { self.node_below(&cid, trace).await });
            }
            let Some(read) = reads.next().await else {
                below.cut |= !waiting.is_empty();
                return below;
            };
            match read {
                Ok(None) => continue,
                Ok(Some(TreeNode::File(node))) => open.push(node),
                Ok(Some(_)) => {}
                Err(StoreError::Denied(reason)) => return Below { reason: Some(*reason), ..below },
                Err(failure) => below.failure = Some(failure),
            }
            nodes_left -= 1;
        }
    }

    /// A node of a file; `None` if where its bytes lie says that it is a leaf.
    async fn node_below(self: &Arc<Self>, cid: &Cid, trace: &Arc<Trace>) -> Result<Option<TreeNode>, StoreError> {
        if cid.hash().code() != hash::IDENTITY && self.locate(cid.hash(), trace).await?.is_framed_leaf() {
            return Ok(None);
        }
        Ok(Some(parse_node(cid, &self.index_block(cid, trace).await?)?))
    }

    /// Other rules are in force: what was found under the old ones is forgotten.
    pub fn denied_changed(&self) {
        self.denied.changed();
        self.unpins.fetch_add(1, Ordering::Release);
        self.located.clear();
        self.nodes.invalidate_all();
    }

    /// May these bytes of a skyfile's content be served? `Err` if they are denied under their skylink or their CIDs.
    pub async fn allow_stretch(self: &Arc<Self>, root: &Root, lies: &Lies, trace: &Arc<Trace>) -> Result<(), StoreError> {
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
        let hit = stretches.iter().find(|stretch| stretch.lies.overlaps(lies));
        hit.map_or(Ok(()), |stretch| Err(StoreError::denied(stretch.reason.clone())))
    }

    async fn denied_stretches(self: &Arc<Self>, root: &Root, trace: &Arc<Trace>) -> Result<Vec<Stretch>, StoreError> {
        let mut stretches = Vec::new();
        // In this order: a catalog that becomes complete in between may have got the pin after the look.
        let complete = self.catalog.is_complete();
        let rows = self.catalog.by_root(&root.0)?;
        if rows.is_empty() {
            // Which blocks these bytes are cannot be told.
            return Err(if complete { StoreError::NotFound } else { StoreError::Rebuilding });
        }
        for row in rows {
            let open = self.open_pin(&row.key, &row.body, trace).await?;
            if open.pin.pack.as_ref().is_some_and(|pack| pack.root == root.0) {
                return Err(StoreError::NotFound);
            }
            if let Some(reason) = open.pin.cid().and_then(|cid| self.denied.allow_hash(cid.hash()).err()) {
                let skyfile = open.pin.skyfiles.iter().find(|skyfile| skyfile.root == root.0);
                stretches.push(Stretch { lies: lies_in(skyfile, 0..u64::MAX), reason });
                continue;
            }
            if let Some(reason) = self.denied_block(&open, trace).await? {
                self.stretches_of_files(&open, root, &reason, &mut stretches, trace).await?;
            }
        }
        Ok(stretches)
    }

    /// Why some block of a pin is denied, if one is. Of blocks whose digest has not 32 bytes a pack keeps no CID: they come by
    /// import, which makes no skyfile but the pack.
    async fn denied_block(&self, open: &OpenPin, trace: &Arc<Trace>) -> Result<Option<Reason>, StoreError> {
        let in_pin = open.pin.rows.iter().filter_map(|row| Multihash::from_bytes(row.multihash_bytes()).ok());
        let mut found = in_pin.filter_map(|hash| self.denied.allow_hash(&hash).err()).next();
        if let Some(pack) = open.pack()
            && found.is_none()
        {
            let look = |key: &[u8; 32], code: u32| {
                if let Ok(hash) = Multihash::wrap(code.into(), key)
                    && found.is_none()
                {
                    found = self.denied.allow_hash(&hash).err();
                }
                Ok(())
            };
            self.each_key_of_pack(pack, trace, look).await?;
        }
        Ok(found)
    }

    /// Where the files lie that hold a denied block, by the skyfile's own list. A block that stands in several files has one
    /// row, and so one place, in a pack; but its bytes are in each of them.
    async fn stretches_of_files(
        self: &Arc<Self>,
        open: &OpenPin,
        root: &Root,
        some_reason: &Reason,
        stretches: &mut Vec<Stretch>,
        trace: &Arc<Trace>,
    ) -> Result<(), StoreError> {
        let skyfile = open.pin.skyfiles.iter().find(|skyfile| skyfile.root == root.0);
        let (Some(top), Some(skyfile)) = (open.pin.cid(), skyfile) else { return Ok(()) };
        let head = self.skyfile_head(*root, open.pin.stretch_of(skyfile), trace).await?;
        let subfiles = &head.head.metadata.subfiles;
        let mut waiting: Vec<(String, Cid, Option<Reason>)> = vec![(String::new(), top, None)];
        let mut looked_at = 0;
        while let Some((path, cid, above)) = waiting.pop() {
            let reason = above.or_else(|| self.denied.allow_hash(cid.hash()).err());
            looked_at += 1;
            if looked_at > ENTRIES_LOOKED_AT_MAX {
                stretches.push(Stretch { lies: lies_in(Some(skyfile), 0..u64::MAX), reason: some_reason.clone() });
                return Ok(());
            }
            let (below, reason) = self.look_into(open, &path, &cid, (reason, some_reason), trace).await?;
            waiting.extend(below);
            if let Some(reason) = reason {
                let bytes = subfiles
                    .get(&path)
                    .map_or(0..u64::MAX, |file| file.offset_bytes..file.offset_bytes.saturating_add(file.len_bytes));
                stretches.push(Stretch { lies: lies_in(Some(skyfile), bytes), reason });
            }
        }
        Ok(())
    }

    /// What a folder holds, with the reason that forbids all of it; or why a file is forbidden.
    async fn look_into(
        self: &Arc<Self>,
        open: &OpenPin,
        path: &str,
        cid: &Cid,
        (reason, some_reason): (Option<Reason>, &Reason),
        trace: &Arc<Trace>,
    ) -> Result<(Vec<(String, Cid, Option<Reason>)>, Option<Reason>), StoreError> {
        if cid.codec() != codec::DAG_PB {
            return Ok((Vec::new(), reason));
        }
        let Some(located) = self.find_row(open, &cid.hash().to_bytes(), cid.hash(), trace).await? else {
            return Ok((Vec::new(), reason));
        };
        let block = self.assemble_index(&located, trace).await?;
        let below = |name: &[u8]| {
            let name = String::from_utf8_lossy(name);
            if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") }
        };
        Ok(match parse_node(cid, &block)? {
            TreeNode::Dir(dir) => (dir.links().iter().map(|link| (below(&link.name), link.cid, reason.clone())).collect(), None),
            TreeNode::Shard(shard) => {
                let entries = shard.entries().map(|(name, cid, _)| (below(&name), cid, reason.clone()));
                let shards = shard.subshards().map(|cid| (path.to_owned(), cid, reason.clone()));
                (entries.chain(shards).collect(), None)
            }
            TreeNode::File(_) if reason.is_some() => (Vec::new(), reason),
            TreeNode::File(file) => {
                let below = self.look_below(&file, PIN_FILE_NODES_MAX, trace).await;
                match below.failure {
                    Some(failure) if below.reason.is_none() => return Err(failure),
                    _ => (Vec::new(), below.reason.or(below.cut.then(|| some_reason.clone()))),
                }
            }
            _ => (Vec::new(), None),
        })
    }
}

/// Where bytes of a skyfile's content lie.
fn lies_in(skyfile: Option<&SkyfileRef>, bytes: Range<u64>) -> Lies {
    match skyfile {
        Some(skyfile) if !skyfile.is_small() => Lies::InSlabs(bytes),
        // All of a content is all of its sector: its head has names of it.
        _ if bytes == (0..u64::MAX) => Lies::InSector(bytes),
        Some(SkyfileRef { at, .. }) => {
            let moved = |byte: u64| byte.saturating_add((*at).into());
            Lies::InSector(moved(bytes.start)..moved(bytes.end))
        }
        None => Lies::InSector(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty list in between must not bring an old number back: what was found out under it would count again.
    #[test]
    fn no_two_lists_have_the_same_version() {
        let denied = Denied::new();
        let mut seen = HashSet::from([denied.version.load(Ordering::Acquire)]);
        for text in ["/ipns/a.example", "", "/ipns/b.example", "", "", "/ipns/c.example"] {
            let mut list = DenyList::new();
            list.add_list("test", text).expect("a list");
            denied.set(list);
            denied.changed();
            assert_eq!(denied.has_rules(), !text.is_empty());
            assert!(seen.insert(denied.version.load(Ordering::Acquire)), "a version came twice");
        }
    }
}
