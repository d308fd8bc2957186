//! Which blocks a CAR of a path holds, and in which order (`specs/ipfs-gateway.md` 2.2): the blocks of the way, then, depth
//! first, what the scope takes of the block at its end.
//!
//! Pure, like the other walks. [`CarWalk::step`] says [`CarStep::Need`] for a block that tells what comes after it, and
//! [`CarStep::Leaf`] for one that has nothing below it: leaves need not be looked at here, so a caller may fetch several at
//! once. Both are written in the order in which they are told. Memory: the links of the nodes on the way down, and with
//! duplicates left out one key for each block.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;

use super::SiteError;
use crate::address::{Cid, codec, hash};
use crate::tree::pack::block_key;
use crate::tree::{FilePart, TreeNode, ipld, parse_node};

/// Blocks of one CAR. With duplicates a small DAG can stand for any number of them; four millions of 256 KiB are a TiB.
pub const CAR_BLOCKS_MAX: u64 = 1 << 22;
/// Blocks waiting for their turn: the links of all nodes from the root down to where the walk is.
pub const CAR_WAITING_MAX: usize = 1 << 20;

/// `dag-scope`, and what `entity-bytes` narrows it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The block at the end of the path.
    Block,
    /// The file, or all that is needed to list the directory; of other blocks only the block.
    Entity(Option<EntityBytes>),
    /// All that can be reached.
    All,
}

/// `entity-bytes=from:to`: both ends belong to it, negative numbers count from the end, no `to` is `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntityBytes {
    pub from: i64,
    pub to: Option<i64>,
}

impl EntityBytes {
    /// Reads `from:to`.
    pub fn parse(text: &str) -> Option<EntityBytes> {
        let (from, to) = text.split_once(':')?;
        let number = |text: &str| -> Option<i64> {
            let digits = text.strip_prefix('-').unwrap_or(text);
            (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
        };
        Some(EntityBytes { from: number(from)?, to: if to == "*" { None } else { Some(number(to)?) } })
    }

    /// The bytes of an entity of `size` bytes that it takes, clipped; `None` if it lies outside.
    pub fn within(&self, size: u64) -> Option<Range<u64>> {
        let place = |at: i64| if at < 0 { i128::from(size) + i128::from(at) } else { i128::from(at) };
        let start = place(self.from).max(0);
        let end = self.to.map_or(i128::from(size), |to| place(to) + 1).min(i128::from(size));
        // Of an empty entity all of it is asked for, if anything.
        let nothing = size == 0 && start == 0;
        (start < end || nothing).then_some(start as u64..end.max(start) as u64)
    }
}

/// Are blocks told each time they are met?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dups {
    Kept,
    LeftOut,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CarStep {
    /// This block, by [`CarWalk::give`]; it belongs to the CAR unless [`CarWalk::is_written`] says otherwise.
    Need(Cid),
    /// This block belongs to the CAR, and nothing comes from it.
    Leaf(Cid),
    End,
}

/// The way through a DAG. See above.
#[derive(Debug)]
pub struct CarWalk {
    /// The next one last.
    waiting: Vec<Waiting>,
    /// What [`CarStep::Need`] told.
    needed: Option<Waiting>,
    seen: Option<HashSet<[u8; 32]>>,
    /// Nodes below which all that is wanted was told, with their codecs: the same bytes as a raw leaf lead nowhere. Only with
    /// duplicates left out.
    whole: HashSet<(u64, [u8; 32])>,
    blocks: u64,
}

#[derive(Debug, Clone)]
struct Waiting {
    cid: Cid,
    then: Then,
}

/// What is to be done below a block.
#[derive(Debug, Clone)]
enum Then {
    Nothing,
    All,
    /// The end of the path, with the range still to be laid over it.
    Entity(Option<EntityBytes>),
    /// A node of a file of `len` bytes, of which `range` is wanted.
    File {
        range: Range<u64>,
        len: u64,
    },
    Shard,
}

impl CarWalk {
    /// `way` are the blocks that led to `end`, without it.
    pub fn new(way: &[Cid], end: Cid, scope: Scope, dups: Dups) -> CarWalk {
        let then = match scope {
            Scope::Block => Then::Nothing,
            Scope::Entity(bytes) => Then::Entity(bytes),
            Scope::All => Then::All,
        };
        let mut waiting = vec![Waiting { cid: end, then }];
        waiting.extend(way.iter().rev().map(|cid| Waiting { cid: *cid, then: Then::Nothing }));
        CarWalk { waiting, needed: None, seen: (dups == Dups::LeftOut).then(HashSet::new), whole: HashSet::new(), blocks: 0 }
    }

    /// What comes next. After `Need` it says the same until the block is given.
    pub fn step(&mut self) -> Result<CarStep, SiteError> {
        if let Some(needed) = &self.needed {
            return Ok(CarStep::Need(needed.cid));
        }
        while let Some(next) = self.waiting.pop() {
            let leads_on = match next.then {
                Then::Nothing => false,
                Then::All => !matches!(next.cid.codec(), codec::RAW | codec::JSON | codec::CBOR | codec::LIBP2P_KEY),
                Then::Entity(_) | Then::File { .. } | Then::Shard => next.cid.codec() == codec::DAG_PB,
            };
            let written = self.is_written(&next.cid);
            if leads_on {
                if self.is_exhausted(&next) {
                    continue;
                }
                let cid = next.cid;
                self.needed = Some(next);
                return Ok(CarStep::Need(cid));
            }
            if written && self.note(&next.cid)? {
                return Ok(CarStep::Leaf(next.cid));
            }
        }
        Ok(CarStep::End)
    }

    /// Takes the block that was needed; says whether it is to be written now.
    pub fn give(&mut self, block: &Bytes) -> Result<bool, SiteError> {
        let Some(Waiting { cid, then }) = self.needed.take() else { return Ok(false) };
        let written = self.is_written(&cid) && self.note(&cid)?;
        if let Some(key) = self.whole_key(&cid, &then) {
            self.whole.insert(key);
        }
        match then {
            Then::Nothing => {}
            Then::All => {
                let links = match ipld::links(&cid, block) {
                    // Of a codec that is not known nothing below can be seen.
                    Err(crate::tree::TreeError::Unsupported { .. }) => Vec::new(),
                    links => links?,
                };
                self.wait(links.into_iter().map(|cid| Waiting { cid, then: Then::All }))?;
            }
            Then::Entity(bytes) => self.open_entity(&cid, block, bytes)?,
            Then::File { range, .. } => self.open_file(&cid, block, range)?,
            Then::Shard => self.open_entity(&cid, block, None)?,
        }
        Ok(written)
    }

    /// Identity CIDs hold their own blocks, which never stand in a CAR.
    pub fn is_written(&self, cid: &Cid) -> bool {
        cid.hash().code() != hash::IDENTITY
    }

    fn open_entity(&mut self, cid: &Cid, block: &Bytes, bytes: Option<EntityBytes>) -> Result<(), SiteError> {
        match parse_node(cid, block) {
            Ok(TreeNode::File(node)) => {
                let range = match bytes {
                    None => Some(0..node.size),
                    Some(bytes) => bytes.within(node.size),
                };
                range.map_or(Ok(()), |range| self.open_file(cid, block, range))
            }
            Ok(TreeNode::Shard(shard)) => {
                let below: Vec<Cid> = shard.subshards().collect();
                self.wait(below.into_iter().map(|cid| Waiting { cid, then: Then::Shard }))
            }
            Ok(TreeNode::Dir(_) | TreeNode::Symlink(_) | TreeNode::Raw(_) | TreeNode::Other { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn open_file(&mut self, cid: &Cid, block: &Bytes, range: Range<u64>) -> Result<(), SiteError> {
        let TreeNode::File(node) = parse_node(cid, block)? else { return Ok(()) };
        let mut below = Vec::new();
        for part in node.parts(range) {
            if let FilePart::Child { child, within } = part {
                below.push(Waiting { cid: child.cid, then: Then::File { range: within, len: child.len } });
            }
        }
        self.wait(below.into_iter())
    }

    fn wait(&mut self, below: impl DoubleEndedIterator<Item = Waiting>) -> Result<(), SiteError> {
        self.waiting.extend(below.rev());
        match self.waiting.len() > CAR_WAITING_MAX {
            true => Err(SiteError::TooManyBlocks { max: CAR_WAITING_MAX }),
            false => Ok(()),
        }
    }

    /// Was all that is wanted below this block told before? So a DAG that names one node a thousand times on each of ten
    /// levels is gone through once.
    fn is_exhausted(&self, next: &Waiting) -> bool {
        self.whole_key(&next.cid, &next.then).is_some_and(|key| self.whole.contains(&key))
    }

    /// Under what a block is noted below which everything is wanted.
    fn whole_key(&self, cid: &Cid, then: &Then) -> Option<(u64, [u8; 32])> {
        let everything = match then {
            Then::All | Then::Shard => true,
            Then::File { range, len } => *range == (0..*len),
            Then::Nothing | Then::Entity(_) => false,
        };
        if everything && self.seen.is_some() { Some((cid.codec(), block_key(cid.hash())?)) } else { None }
    }

    /// Counts a block; false if it was told before and is not to be told again.
    fn note(&mut self, cid: &Cid) -> Result<bool, SiteError> {
        if let (Some(seen), Some(key)) = (&mut self.seen, block_key(cid.hash()))
            && !seen.insert(key)
        {
            return Ok(false);
        }
        self.blocks += 1;
        match self.blocks > CAR_BLOCKS_MAX {
            true => Err(SiteError::TooManyBlocks { max: CAR_BLOCKS_MAX as usize }),
            false => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{SitePath, cid_v1, sha2_256};
    use crate::site::unixfs::{Step, Walk};
    use crate::tree::test_dag::TestDag;

    fn walk(dag: &TestDag, way: &[Cid], end: Cid, scope: Scope, dups: Dups) -> Result<Vec<Cid>, SiteError> {
        let mut walk = CarWalk::new(way, end, scope, dups);
        let mut told = Vec::new();
        loop {
            match walk.step()? {
                CarStep::Leaf(cid) => told.push(cid),
                CarStep::Need(cid) => {
                    let block = crate::address::inline_bytes(&cid).map_or_else(|| dag.block(&cid), Bytes::copy_from_slice);
                    if walk.give(&block)? {
                        told.push(cid);
                    }
                }
                CarStep::End => return Ok(told),
            }
        }
    }

    #[test]
    fn ranges_of_an_entity() {
        // Those of the suite (`ipfs-gateway.md` 2.2), on 1,000 bytes.
        #[rustfmt::skip]
        let rows: &[(&str, Option<Range<u64>>)] = &[
            ("0:*", Some(0..1000)), ("0:0", Some(0..1)), ("0:1000", Some(0..1000)), ("512:*", Some(512..1000)), ("512:767", Some(512..768)),
            ("512:-256", Some(512..745)), ("-5:*", Some(995..1000)), ("-9999:*", Some(0..1000)), ("-9999:-3", Some(0..998)),
            ("999:*", Some(999..1000)), ("1000:*", None), ("1000:2000", None), ("5:4", None), ("0:-1001", None), ("499:-1000", None),
        ];
        for (text, expect) in rows {
            assert_eq!(EntityBytes::parse(text).expect(text).within(1000), *expect, "{text}");
        }
        assert_eq!(EntityBytes::parse("0:*").expect("good").within(0), Some(0..0));
        for text in ["", ":", "1", "1:", ":1", "a:b", "*:1", "1:--2", "+1:2", "1:2:3", "99999999999999999999:*", "1 :2"] {
            assert_eq!(EntityBytes::parse(text), None, "{text}");
        }
    }

    #[test]
    fn scopes_orders_and_duplicates() {
        let mut dag = TestDag::default();
        let bytes: Vec<u8> = (0..40).collect();
        let file = dag.file(&bytes, 10, 2);
        let leaves: Vec<Cid> = bytes.chunks(10).map(|leaf| cid_v1(codec::RAW, sha2_256(leaf))).collect();
        let CarStep::Need(_) = CarWalk::new(&[], file, Scope::All, Dups::Kept).step().expect("a step") else { panic!("a node") };
        let nodes = ipld::links(&file, &dag.block(&file)).expect("links");
        let small = dag.raw(b"small");
        let dir = dag.dir(&[("a", small), ("b", file), ("c", small)]);
        let whole_file = vec![file, nodes[0], leaves[0], leaves[1], nodes[1], leaves[2], leaves[3]];
        let entity = |text| Scope::Entity(Some(EntityBytes::parse(text).expect(text)));
        let rows: Vec<(Cid, Scope, Dups, Vec<Cid>)> = vec![
            (dir, Scope::Block, Dups::LeftOut, vec![dir]),
            (dir, Scope::Entity(None), Dups::LeftOut, vec![dir]),
            (dir, Scope::All, Dups::LeftOut, [vec![dir, small], whole_file.clone()].concat()),
            (dir, Scope::All, Dups::Kept, [vec![dir, small], whole_file.clone(), vec![small]].concat()),
            (file, Scope::Entity(None), Dups::LeftOut, whole_file.clone()),
            (file, entity("0:*"), Dups::LeftOut, whole_file.clone()),
            (file, entity("12:21"), Dups::LeftOut, vec![file, nodes[0], leaves[1], nodes[1], leaves[2]]),
            (file, entity("-1:*"), Dups::LeftOut, vec![file, nodes[1], leaves[3]]),
            (file, entity("400:*"), Dups::LeftOut, vec![file]),
            (file, Scope::Block, Dups::LeftOut, vec![file]),
            (small, Scope::All, Dups::LeftOut, vec![small]),
        ];
        for (end, scope, dups, expect) in rows {
            assert_eq!(walk(&dag, &[], end, scope, dups), Ok(expect), "{scope:?} {dups:?}");
        }
        assert_eq!(walk(&dag, &[dir], file, Scope::Block, Dups::LeftOut), Ok(vec![dir, file]), "the way comes first");
    }

    #[test]
    fn identity_blocks_are_gone_through_and_not_told() {
        let mut dag = TestDag::default();
        let leaf = dag.raw(b"leaf");
        let inline = crate::address::parse_cid("bafkqaaa").expect("a CID");
        let dir = dag.dir(&[("inline", inline), ("leaf", leaf)]);
        assert_eq!(walk(&dag, &[], dir, Scope::All, Dups::Kept), Ok(vec![dir, leaf]));
        assert_eq!(walk(&dag, &[], inline, Scope::All, Dups::Kept), Ok(vec![]));
    }

    /// The bytes of a node, named as a raw leaf before they are named as a node: what lies below them is told all the same.
    #[test]
    fn a_node_that_was_told_as_a_leaf() {
        let mut dag = TestDag::default();
        let leaf = dag.raw(b"leaf");
        let node = dag.dir(&[("leaf", leaf)]);
        let bytes = dag.block(&node);
        let as_leaf = dag.raw(&bytes);
        let root = dag.dir(&[("a", as_leaf), ("b", node)]);
        assert_eq!(walk(&dag, &[], root, Scope::All, Dups::LeftOut), Ok(vec![root, as_leaf, leaf]));
        assert_eq!(walk(&dag, &[], root, Scope::All, Dups::Kept), Ok(vec![root, as_leaf, node, leaf]));
    }

    /// A node that names the one below it many times, on many levels: 40^12 ways, twelve blocks.
    #[test]
    fn a_bomb_is_gone_through_once() {
        let mut dag = TestDag::default();
        let mut below = dag.raw(b"bomb");
        let names: Vec<String> = (0..40).map(|name| format!("{name:02}")).collect();
        for _ in 0..12 {
            let links: Vec<(&str, Cid)> = names.iter().map(|name| (name.as_str(), below)).collect();
            below = dag.dir(&links);
        }
        assert_eq!(walk(&dag, &[], below, Scope::All, Dups::LeftOut).expect("ends").len(), 13);
    }

    #[test]
    fn the_public_hamt() {
        let Some(dag) =
            TestDag::from_car("conformance/fixtures/trustless_gateway_car/single-layer-hamt-with-multi-block-files.car")
        else {
            return;
        };
        let root = dag.roots[0];
        let told = walk(&dag, &[], root, Scope::Entity(None), Dups::LeftOut).expect("walks");
        let all = walk(&dag, &[], root, Scope::All, Dups::LeftOut).expect("walks");
        assert!(told.len() > 1 && told.len() < all.len());
        let mut way = Vec::new();
        let mut path = Walk::new(root, SitePath::from_decoded("685.txt").expect("a path"));
        while let Step::Need(cid) = path.step() {
            way.push(cid);
            path.give(dag.block(&cid)).expect("a good block");
        }
        assert!(way.len() >= 2 && told.contains(&way[1]), "a shard lies on the way");
    }
}
