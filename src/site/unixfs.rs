//! UnixFS sites: from a root CID and a path to an answer, block by block.
//!
//! Both machines here are pure. [`Walk`] says [`Step::Need`] until it says [`Step::Done`]; [`DirListing`] gives entries in
//! order and says [`ListStep::Need`] when the next shard is due. The caller fetches the block, checks its hash, and gives it.
//!
//! Rules (`specs/ipfs-gateway.md` 2.1): those of [`super::slash`]; a folder's index is its `index.html`, and one without is
//! listed; nothing lies below a file. On a subdomain the root is always asked for with a slash. Symlinks are answers, never
//! followed.

use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::SiteError;
use super::slash::{Depth, Habit, LeadsTo, Lies, leads_to};
use crate::address::{Cid, SitePath, codec};
use crate::tree::{DirNode, FileNode, Shard, ShardItem, ShardNode, TreeError, TreeNode, ipld, parse_node};

/// Most blocks of one walk. A path of 256 names through sharded directories of three levels takes 1,024; real ones under 20.
pub const WALK_BLOCKS_MAX: usize = 1_024;

/// Most shards of one listing. Twenty million entries (the largest directory known) at 256 a shard take about 160,000.
pub const LISTING_SHARDS_MAX: usize = 1 << 18;

/// The page of a directory.
pub const INDEX_NAME: &str = "index.html";

/// What a path leads to. In `roots` stands one CID for each step of the path, root first, without HAMT shards and without
/// index.html: the `X-Ipfs-Roots` of the reply.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A file in dag-pb.
    File {
        /// Its top block.
        cid: Cid,
        /// Its length in bytes.
        size: u64,
        /// Its top node, for [`FileNode::parts`].
        node: Arc<FileNode>,
        /// Name to guess the content type by: the last of the path, or `index.html`.
        name: Option<String>,
        /// The directory, when this is its index.html; the Etag is the directory's then.
        dir: Option<Cid>,
        /// See above.
        roots: Vec<Cid>,
    },
    /// A file that is one raw block. It was not needed to know this, so it was not asked for: its length is the store's to say.
    RawBlock {
        /// The block.
        cid: Cid,
        /// As in `File`.
        name: Option<String>,
        /// As in `File`.
        dir: Option<Cid>,
        /// See above.
        roots: Vec<Cid>,
    },
    /// A directory without index.html.
    Listing {
        /// Gives the entries.
        dir: DirListing,
        /// The directory.
        cid: Cid,
        /// See above.
        roots: Vec<Cid>,
    },
    /// A directory asked for without the slash: redirect to the same path with it.
    AddSlash,
    /// Nothing is there.
    NotFound {
        /// The part of the path that is missing, decoded: `name`, `name/below`, or `/` when only the slash is too much.
        missing: String,
        /// CIDs of the steps that are there.
        roots: Vec<Cid>,
    },
    /// A symlink ends the path.
    Symlink {
        /// Where it points, never followed.
        target: String,
        /// Its block.
        cid: Cid,
        /// See above.
        roots: Vec<Cid>,
    },
    /// The path ends inside a block, at a value that is no link: such values have no address of their own.
    InsideBlock {
        /// The block.
        cid: Cid,
        /// See above.
        roots: Vec<Cid>,
    },
    /// The way leads to a block of another kind (dag-cbor, dag-json, dag-pb without UnixFS, …). Names are followed through
    /// links of dag-cbor and dag-json; below other codecs nothing can be found.
    NotUnixfs {
        /// The block. It was fetched only if its codec is dag-pb, or if names led through it.
        cid: Cid,
        /// Multicodec number of its contents.
        codec: u64,
        /// Names still to go, with the path's slash.
        rest: SitePath,
        /// See above.
        roots: Vec<Cid>,
    },
}

/// What a walk wants next.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack for a moment, once a block; boxing would cost an allocation")]
pub enum Step {
    /// The block of this CID, hash checked.
    Need(Cid),
    /// Nothing more: this is where the path leads.
    Done(Answer),
}

/// The way from a root along a path.
#[derive(Debug, Clone)]
pub struct Walk {
    path: SitePath,
    /// Names of the path that are behind us.
    passed: usize,
    roots: Vec<Cid>,
    blocks: usize,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// At a step of the path, whose block is needed.
    Node(Cid),
    /// At a block of dag-cbor or dag-json, with names left to go through it.
    Data(Cid),
    /// Inside a sharded directory.
    Shard(ShardSearch),
    /// At a directory's index.html, whose block is needed to know that it is a file.
    Index {
        dir: FoundDir,
        cid: Cid,
    },
    Done(Answer),
}

/// A directory that the walk is at.
#[derive(Debug, Clone)]
struct FoundDir {
    cid: Cid,
    top: DirTop,
}

#[derive(Debug, Clone)]
enum DirTop {
    Plain(Arc<DirNode>),
    Sharded(Arc<ShardNode>),
}

/// Looking for a name below a directory's top shard.
#[derive(Debug, Clone)]
struct ShardSearch {
    dir: FoundDir,
    goal: Goal,
    /// The shard that is needed.
    cid: Cid,
    /// Its level below the top.
    depth: u32,
    above: Arc<ShardNode>,
}

/// Which name a directory is searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// The next one of the path.
    Segment,
    /// `index.html`, at the end of the path.
    Index,
}

impl Walk {
    /// Begins at `root`. Asks for nothing yet.
    pub fn new(root: Cid, path: SitePath) -> Walk {
        let mut walk = Walk { path, passed: 0, roots: Vec::new(), blocks: 0, state: State::Node(root) };
        walk.arrive(root);
        walk
    }

    /// What is needed, or the answer. Asking again without giving says the same again.
    pub fn step(&mut self) -> Step {
        match &self.state {
            State::Node(cid) | State::Data(cid) | State::Index { cid, .. } => Step::Need(*cid),
            State::Shard(search) => Step::Need(search.cid),
            State::Done(answer) => Step::Done(answer.clone()),
        }
    }

    /// Takes the block that was needed. After an error the walk stays where it was.
    pub fn give(&mut self, block: Bytes) -> Result<(), SiteError> {
        if let State::Data(cid) = self.state {
            return self.at_data(cid, &block);
        }
        match self.step() {
            Step::Need(cid) => self.give_node(parse_node(&cid, &block)?),
            Step::Done(_) => Ok(()),
        }
    }

    /// As [`Walk::give`], with the node that a cache has of that block.
    pub fn give_node(&mut self, node: TreeNode) -> Result<(), SiteError> {
        self.check_blocks()?;
        match self.state.clone() {
            State::Node(cid) => self.at_node(cid, node)?,
            State::Shard(search) => self.at_shard(search, node)?,
            State::Index { dir, cid } => self.at_index(dir, cid, node),
            State::Data(_) | State::Done(_) => return Ok(()),
        }
        self.blocks += 1;
        Ok(())
    }

    fn check_blocks(&self) -> Result<(), SiteError> {
        match self.blocks {
            WALK_BLOCKS_MAX => Err(SiteError::TooManyBlocks { max: WALK_BLOCKS_MAX }),
            _ => Ok(()),
        }
    }

    /// Goes through a block as far as the next link. Names that stay inside the block belong to it.
    fn at_data(&mut self, cid: Cid, block: &Bytes) -> Result<(), SiteError> {
        self.check_blocks()?;
        let found = ipld::lookup(&cid, block, &self.path.segments()[self.passed..])?;
        self.blocks += 1;
        match found {
            ipld::Step::Link { cid: link, passed } => {
                self.roots.extend(std::iter::repeat_n(cid, passed.saturating_sub(1)));
                self.passed += passed;
                self.arrive(link);
            }
            ipld::Step::Value => {
                let roots = self.take_roots();
                self.state = State::Done(Answer::InsideBlock { cid, roots });
            }
            ipld::Step::Missing { passed } => {
                self.passed += passed;
                self.end_not_found();
            }
        }
        Ok(())
    }

    /// A step of the path leads to `cid`. What the codec alone can tell needs no block.
    fn arrive(&mut self, cid: Cid) {
        self.roots.push(cid);
        match cid.codec() {
            codec::DAG_PB => self.state = State::Node(cid),
            codec::RAW => self.end_at_file(|name, roots| Answer::RawBlock { cid, name, dir: None, roots }),
            codec::DAG_CBOR | codec::DAG_JSON if self.passed < self.path.segments().len() => self.state = State::Data(cid),
            _ => self.end_outside_unixfs(cid),
        }
    }

    fn at_node(&mut self, cid: Cid, node: TreeNode) -> Result<(), SiteError> {
        match node {
            TreeNode::Dir(dir) => self.at_dir(FoundDir { cid, top: DirTop::Plain(dir) })?,
            TreeNode::Shard(shard) => self.at_dir(FoundDir { cid, top: DirTop::Sharded(shard) })?,
            TreeNode::File(node) => {
                self.end_at_file(|name, roots| Answer::File { cid, size: node.size, node, name, dir: None, roots })
            }
            TreeNode::Symlink(target) => self.end_at_file(|_, roots| Answer::Symlink { target, cid, roots }),
            TreeNode::Raw(_) | TreeNode::Other { .. } => self.end_outside_unixfs(cid),
        }
        Ok(())
    }

    fn at_dir(&mut self, dir: FoundDir) -> Result<(), SiteError> {
        if self.passed < self.path.segments().len() {
            return self.search(dir, Goal::Segment);
        }
        // Whether it has an index makes no difference without a slash, and is not looked for.
        if self.leads_to(Lies::Folder) == LeadsTo::Slash {
            self.state = State::Done(Answer::AddSlash);
            return Ok(());
        }
        self.search(dir, Goal::Index)
    }

    /// By the table, at the end of the path.
    fn leads_to(&self, lies: Lies) -> LeadsTo {
        let depth = if self.passed == 0 { Depth::Root } else { Depth::Below };
        leads_to(Habit::Unixfs, lies, depth, self.path.trailing_slash())
    }

    fn search(&mut self, dir: FoundDir, goal: Goal) -> Result<(), SiteError> {
        match &dir.top {
            DirTop::Plain(plain) => match plain.lookup(self.wanted(goal).as_bytes()).map(|link| link.cid) {
                Some(cid) => self.found(dir, goal, cid),
                None => self.missing(dir, goal),
            },
            DirTop::Sharded(top) => {
                let top = top.clone();
                self.search_shard(dir, goal, top, 0)?;
            }
        }
        Ok(())
    }

    fn search_shard(&mut self, dir: FoundDir, goal: Goal, shard: Arc<ShardNode>, depth: u32) -> Result<(), SiteError> {
        match shard.lookup(self.wanted(goal).as_bytes(), depth)? {
            Shard::Entry(cid) => self.found(dir, goal, cid),
            Shard::Absent => self.missing(dir, goal),
            Shard::Child(cid) => self.state = State::Shard(ShardSearch { dir, goal, cid, depth: depth + 1, above: shard }),
        }
        Ok(())
    }

    fn at_shard(&mut self, search: ShardSearch, node: TreeNode) -> Result<(), SiteError> {
        let shard = shard_below(&search.above, node)?;
        self.search_shard(search.dir, search.goal, shard, search.depth)
    }

    fn found(&mut self, dir: FoundDir, goal: Goal, cid: Cid) {
        match goal {
            Goal::Segment => {
                self.passed += 1;
                self.arrive(cid);
            }
            Goal::Index => match cid.codec() {
                codec::DAG_PB => self.state = State::Index { dir, cid },
                codec::RAW => {
                    let name = Some(INDEX_NAME.to_owned());
                    let roots = self.take_roots();
                    self.state = State::Done(Answer::RawBlock { cid, name, dir: Some(dir.cid), roots });
                }
                _ => self.end_at_listing(dir),
            },
        }
    }

    fn missing(&mut self, dir: FoundDir, goal: Goal) {
        match goal {
            Goal::Segment => self.end_not_found(),
            Goal::Index => self.end_at_listing(dir),
        }
    }

    /// An index.html that is no file (a directory, a symlink) is an entry like others.
    fn at_index(&mut self, dir: FoundDir, cid: Cid, node: TreeNode) {
        match node {
            TreeNode::File(node) => {
                let name = Some(INDEX_NAME.to_owned());
                let roots = self.take_roots();
                self.state = State::Done(Answer::File { cid, size: node.size, node, name, dir: Some(dir.cid), roots });
            }
            TreeNode::Raw(_) | TreeNode::Dir(_) | TreeNode::Shard(_) | TreeNode::Symlink(_) | TreeNode::Other { .. } => {
                self.end_at_listing(dir)
            }
        }
    }

    fn end_at_listing(&mut self, dir: FoundDir) {
        let listing = match dir.top {
            DirTop::Plain(plain) => DirListing::plain(plain),
            DirTop::Sharded(top) => DirListing::sharded(top),
        };
        let roots = self.take_roots();
        self.state = State::Done(Answer::Listing { dir: listing, cid: dir.cid, roots });
    }

    /// At something that nothing can lie below.
    fn end_at_file(&mut self, answer: impl FnOnce(Option<String>, Vec<Cid>) -> Answer) {
        let names_left = self.passed < self.path.segments().len();
        if names_left || self.leads_to(Lies::File) == LeadsTo::Missing {
            return self.end_not_found();
        }
        let name = self.path.last().map(str::to_owned);
        let roots = self.take_roots();
        self.state = State::Done(answer(name, roots));
    }

    fn end_not_found(&mut self) {
        let rest = self.path.segments()[self.passed..].join("/");
        let missing = if rest.is_empty() { "/".to_owned() } else { rest };
        let roots = self.take_roots();
        self.state = State::Done(Answer::NotFound { missing, roots });
    }

    fn end_outside_unixfs(&mut self, cid: Cid) {
        let rest = self.path.without_first(self.passed);
        let roots = self.take_roots();
        self.state = State::Done(Answer::NotUnixfs { cid, codec: cid.codec(), rest, roots });
    }

    fn wanted(&self, goal: Goal) -> &str {
        match goal {
            Goal::Segment => &self.path.segments()[self.passed],
            Goal::Index => INDEX_NAME,
        }
    }

    fn take_roots(&mut self) -> Vec<Cid> {
        mem::take(&mut self.roots)
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Its name; bytes that are not UTF-8 are shown as replacement characters (and cannot be asked for).
    pub name: String,
    /// What it names.
    pub cid: Cid,
    /// Bytes of all blocks below, as the directory's writer says: for show, never verified.
    pub tsize: u64,
}

/// What a listing says next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListStep {
    /// One more entry.
    Entry(ListEntry),
    /// The block of this shard, hash checked, by [`DirListing::give`].
    Need(Cid),
    /// All entries have been given.
    End,
}

/// A directory's entries, one by one: in the directory's own order, of a HAMT in the order of the slots, so that a reply can
/// be streamed with one shard a level in memory.
#[derive(Debug, Clone)]
pub struct DirListing(Listing);

#[derive(Debug, Clone)]
enum Listing {
    Plain { dir: Arc<DirNode>, next: usize },
    Sharded(ShardListing),
}

#[derive(Debug, Clone)]
struct ShardListing {
    /// Shards from the top down to where the listing is.
    open: Vec<OpenShard>,
    needed: Option<Cid>,
    shards: usize,
}

#[derive(Debug, Clone)]
struct OpenShard {
    shard: Arc<ShardNode>,
    slots: Vec<u32>,
    next: usize,
    /// Hash bits that lead to this shard.
    trail: u64,
}

impl DirListing {
    /// Of a directory in one block.
    pub fn plain(dir: Arc<DirNode>) -> DirListing {
        DirListing(Listing::Plain { dir, next: 0 })
    }

    /// Of a HAMT, from its top shard.
    pub fn sharded(top: Arc<ShardNode>) -> DirListing {
        DirListing(Listing::Sharded(ShardListing { open: vec![OpenShard::new(top, 0)], needed: None, shards: 1 }))
    }

    /// Number of entries, if it is known without reading more blocks.
    pub fn entries_known(&self) -> Option<usize> {
        match &self.0 {
            Listing::Plain { dir, .. } => Some(dir.links().len()),
            Listing::Sharded(_) => None,
        }
    }

    /// The next entry, or the shard that it needs.
    pub fn step(&mut self) -> Result<ListStep, SiteError> {
        match &mut self.0 {
            Listing::Plain { dir, next } => {
                let Some(link) = dir.links().get(*next) else {
                    return Ok(ListStep::End);
                };
                *next += 1;
                Ok(ListStep::Entry(ListEntry::new(&link.name, link.cid, link.tsize)))
            }
            Listing::Sharded(listing) => listing.step(),
        }
    }

    /// Takes the shard that was needed. After an error the listing cannot go on: the reply must be broken off.
    pub fn give(&mut self, block: Bytes) -> Result<(), SiteError> {
        match &self.0 {
            Listing::Sharded(ShardListing { needed: Some(cid), .. }) => {
                let node = parse_node(cid, &block)?;
                self.give_node(node)
            }
            Listing::Sharded(_) | Listing::Plain { .. } => Ok(()),
        }
    }

    /// As [`DirListing::give`], with the node that a cache has of that block.
    pub fn give_node(&mut self, node: TreeNode) -> Result<(), SiteError> {
        match &mut self.0 {
            Listing::Sharded(listing) if listing.needed.is_some() => listing.give_node(node),
            Listing::Sharded(_) | Listing::Plain { .. } => Ok(()),
        }
    }
}

impl ShardListing {
    fn step(&mut self) -> Result<ListStep, SiteError> {
        if let Some(cid) = self.needed {
            return Ok(ListStep::Need(cid));
        }
        loop {
            let levels = self.open.len() as u32;
            let Some(open) = self.open.last_mut() else {
                return Ok(ListStep::End);
            };
            let Some(item) = open.shard.item(open.next) else {
                self.open.pop();
                continue;
            };
            let trail = open.shard.trail(open.trail, open.slots[open.next]);
            open.next += 1;
            match item {
                ShardItem::Entry { name, cid, tsize } => {
                    open.shard.check_trail(&name, trail, levels)?;
                    return Ok(ListStep::Entry(ListEntry::new(&name, cid, tsize)));
                }
                ShardItem::Child(cid) => {
                    open.shard.check_depth(levels)?;
                    self.needed = Some(cid);
                    return Ok(ListStep::Need(cid));
                }
            }
        }
    }

    fn give_node(&mut self, node: TreeNode) -> Result<(), SiteError> {
        if self.shards == LISTING_SHARDS_MAX {
            return Err(SiteError::TooManyBlocks { max: LISTING_SHARDS_MAX });
        }
        let above = self.open.last().expect("a shard is needed only while the one above is open");
        let shard = shard_below(&above.shard, node)?;
        let trail = above.shard.trail(above.trail, above.slots[above.next - 1]);
        self.open.push(OpenShard::new(shard, trail));
        self.needed = None;
        self.shards += 1;
        Ok(())
    }
}

impl OpenShard {
    fn new(shard: Arc<ShardNode>, trail: u64) -> OpenShard {
        let slots = shard.used_slots().collect();
        OpenShard { shard, slots, next: 0, trail }
    }
}

impl ListEntry {
    fn new(name: &[u8], cid: Cid, tsize: u64) -> ListEntry {
        ListEntry { name: String::from_utf8_lossy(name).into_owned(), cid, tsize }
    }
}

/// `node` as a shard that may stand below `above`.
fn shard_below(above: &ShardNode, node: TreeNode) -> Result<Arc<ShardNode>, TreeError> {
    let TreeNode::Shard(shard) = node else {
        return Err(TreeError::malformed("HAMT", "a shard links to something that is no shard"));
    };
    above.check_below(&shard)?;
    Ok(shard)
}

#[cfg(test)]
mod tests;
