//! A block, parsed into what it is: file bytes, a part of a file, a directory, a shard, a symlink.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::dagpb::{self, PbLink, PbNode};
use super::unixfs::{self, Kind, Mtime, UnixFs};
use super::{SYMLINK_BYTES_MAX, ShardNode, TreeError};
use crate::address::{Cid, codec};

const FORMAT: &str = "UnixFS";

/// A parsed block. Cheap to clone, so that caches can hand it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeNode {
    /// A raw leaf: all of it is file bytes.
    Raw(Bytes),
    /// A file, or a part of one, in dag-pb.
    File(Arc<FileNode>),
    /// A directory in one block.
    Dir(Arc<DirNode>),
    /// One shard of a directory; the top one stands for the whole.
    Shard(Arc<ShardNode>),
    /// A symlink's target.
    Symlink(String),
    /// A block that is not UnixFS: another codec, or dag-pb without data.
    Other {
        /// Multicodec number of the block's contents.
        codec: u64,
        /// The whole block.
        bytes: Bytes,
    },
}

/// A file's node: some bytes in the node itself (as a rule none or all), then the children, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNode {
    /// Bytes that come first.
    pub inline: Bytes,
    /// Bytes of the file below this node: `inline` and all children. Checked.
    pub size: u64,
    /// Parts after the inline bytes, in order.
    pub children: Vec<FileChild>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<Mtime>,
}

/// One part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChild {
    /// A raw leaf or another file node.
    pub cid: Cid,
    /// Offset of its first byte in the file of the node that links it.
    pub start: u64,
    /// File bytes below it.
    pub len: u64,
}

/// A stretch of a file as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilePart {
    /// Bytes from the node itself.
    Inline(Bytes),
    /// A range of the file that a child holds.
    Child {
        /// The child's block.
        child: FileChild,
        /// Range in the child's own bytes; never empty.
        within: Range<u64>,
    },
}

/// A directory in one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirNode {
    links: Vec<PbLink>,
    order: LinkOrder,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<Mtime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkOrder {
    ByName,
    Unknown,
}

/// Parses a block whose hash has been checked (or will be: nothing here depends on it).
pub fn parse_node(cid: &Cid, block: &Bytes) -> Result<TreeNode, TreeError> {
    match cid.codec() {
        codec::RAW => Ok(TreeNode::Raw(block.clone())),
        codec::DAG_PB => {
            let PbNode { data, links } = dagpb::decode(block)?;
            match data {
                Some(data) => parse_unixfs(unixfs::decode(&data)?, links),
                None => Ok(TreeNode::Other { codec: codec::DAG_PB, bytes: block.clone() }),
            }
        }
        other => Ok(TreeNode::Other { codec: other, bytes: block.clone() }),
    }
}

fn parse_unixfs(message: UnixFs, links: Vec<PbLink>) -> Result<TreeNode, TreeError> {
    match message.kind {
        Kind::File => Ok(TreeNode::File(Arc::new(FileNode::parse(message, links)?))),
        Kind::Raw if links.is_empty() => Ok(TreeNode::File(Arc::new(FileNode::parse(message, links)?))),
        Kind::Raw => Err(malformed("a raw node has links")),
        Kind::Directory => Ok(TreeNode::Dir(Arc::new(DirNode::new(message, links)))),
        Kind::HamtShard => Ok(TreeNode::Shard(Arc::new(ShardNode::parse(&message, links)?))),
        Kind::Symlink => parse_symlink(&message),
        Kind::Metadata => Err(TreeError::unsupported("UnixFS metadata nodes")),
    }
}

fn parse_symlink(message: &UnixFs) -> Result<TreeNode, TreeError> {
    let target = message.data.as_deref().unwrap_or_default();
    TreeError::check_limit("bytes of a symlink's target", target.len(), SYMLINK_BYTES_MAX)?;
    let target = std::str::from_utf8(target).map_err(|_| malformed("a symlink's target is not UTF-8"))?;
    Ok(TreeNode::Symlink(target.to_owned()))
}

impl FileNode {
    fn parse(message: UnixFs, links: Vec<PbLink>) -> Result<FileNode, TreeError> {
        if message.blocksizes.len() != links.len() {
            return Err(malformed("a file has not as many block sizes as links"));
        }
        let inline = message.data.unwrap_or_default();
        let mut size = inline.len() as u64;
        let mut children = Vec::with_capacity(links.len());
        for (link, len) in links.iter().zip(message.blocksizes) {
            children.push(FileChild { cid: link.cid, start: size, len });
            size = size.checked_add(len).ok_or_else(|| malformed("a file's block sizes add up to more than 64 bits"))?;
        }
        if message.filesize.is_some_and(|said| said != size) {
            return Err(malformed("a file's size is not the sum of its parts"));
        }
        Ok(FileNode { inline, size, children, mode: message.mode, mtime: message.mtime })
    }

    /// The parts that cover `range` (clipped to the file), in order. The way down a tree of several levels: ask each child's
    /// node for its `within`, check it by [`FileChild::check`], and stop with an error below [`super::FILE_DEPTH_MAX`] levels.
    pub fn parts(&self, range: Range<u64>) -> impl Iterator<Item = FilePart> + '_ {
        let end = range.end.min(self.size);
        let range = range.start.min(end)..end;
        let inline_end = range.end.min(self.inline.len() as u64);
        // Both ends are within the inline bytes, so the casts lose nothing.
        let inline =
            (range.start < inline_end).then(|| FilePart::Inline(self.inline.slice(range.start as usize..inline_end as usize)));
        let first = self.children.partition_point(|child| child.end() <= range.start);
        let children = self.children[first..].iter().take_while(move |child| child.start < range.end);
        inline.into_iter().chain(children.filter_map(move |child| child.part(range.start, range.end)))
    }
}

impl FileChild {
    /// Offset behind its last byte, in the file of the node that links it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    fn part(&self, start: u64, end: u64) -> Option<FilePart> {
        let within = start.max(self.start) - self.start..end.min(self.end()).saturating_sub(self.start);
        (!within.is_empty()).then(|| FilePart::Child { child: self.clone(), within })
    }

    /// Is `node`, parsed from this child's block, a part of a file of the length that the parent says?
    /// Without this check a wrong length would shift all bytes behind it.
    pub fn check(&self, node: &TreeNode) -> Result<(), TreeError> {
        let len = match node {
            TreeNode::Raw(bytes) => bytes.len() as u64,
            TreeNode::File(file) => file.size,
            TreeNode::Dir(_) | TreeNode::Shard(_) | TreeNode::Symlink(_) | TreeNode::Other { .. } => {
                return Err(malformed("a file's part is not a file"));
            }
        };
        if len == self.len { Ok(()) } else { Err(malformed("a file's part has not the length that its parent says")) }
    }
}

impl DirNode {
    fn new(message: UnixFs, links: Vec<PbLink>) -> DirNode {
        let order = if links.is_sorted_by(|a, b| a.name <= b.name) { LinkOrder::ByName } else { LinkOrder::Unknown };
        DirNode { links, order, mode: message.mode, mtime: message.mtime }
    }

    /// All entries, in the order of the block.
    pub fn links(&self) -> &[PbLink] {
        &self.links
    }

    /// The entry of that name; the first one if a strange writer has used a name twice.
    pub fn lookup(&self, name: &[u8]) -> Option<&PbLink> {
        match self.order {
            LinkOrder::ByName => {
                let at = self.links.partition_point(|link| &link.name[..] < name);
                self.links.get(at).filter(|link| &link.name[..] == name)
            }
            LinkOrder::Unknown => self.links.iter().find(|link| &link.name[..] == name),
        }
    }
}

fn malformed(why: &'static str) -> TreeError {
    TreeError::malformed(FORMAT, why)
}

/// A foreign block as dag-pb with UnixFS in it: parts of a file, names of a directory, slots of a shard. Nothing here may
/// panic, and nothing costs more than the block has bytes.
pub fn fuzz(bytes: &[u8]) {
    let block = Bytes::copy_from_slice(bytes);
    if let Ok(node) = dagpb::decode(&block) {
        let again = Bytes::from(dagpb::encode(&node));
        assert_eq!(dagpb::decode(&again).as_ref(), Ok(&node));
    }
    match parse_node(&crate::address::cid_v1(codec::DAG_PB, [0; 32]), &block) {
        Ok(TreeNode::File(file)) => {
            let count = file.parts(0..file.size).count();
            assert!(count <= file.children.len() + 1);
            let _ = file.parts(file.size / 3..file.size / 2).count();
        }
        Ok(TreeNode::Dir(dir)) => dir.links().iter().for_each(|link| assert!(dir.lookup(&link.name).is_some())),
        Ok(TreeNode::Shard(shard)) => {
            assert_eq!(shard.items().count(), shard.len());
            for depth in [0, 1, 7, 20, 64, u32::MAX] {
                let _ = (shard.lookup(b"name", depth), shard.check_depth(depth));
            }
            let _ = shard.check_below(&shard);
            shard.used_slots().for_each(|slot| {
                let _ = shard.trail(u64::MAX, slot);
            });
        }
        Ok(TreeNode::Symlink(_) | TreeNode::Raw(_) | TreeNode::Other { .. }) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::FILE_DEPTH_MAX;
    use super::super::test_dag::{TestDag, pb_block};
    use super::*;
    use crate::address::{cid_v1, parse_cid, sha2_256};

    fn raw_link(seed: u8) -> (&'static str, Cid) {
        ("", cid_v1(codec::RAW, [seed; 32]))
    }

    fn parse(message: UnixFs, links: &[(&str, Cid)]) -> Result<TreeNode, TreeError> {
        parse_node(&cid_v1(codec::DAG_PB, [0; 32]), &Bytes::from(pb_block(&message, links)))
    }

    fn file(data: &'static [u8], filesize: Option<u64>, blocksizes: &[u64]) -> UnixFs {
        UnixFs { data: Some(Bytes::from_static(data)), filesize, blocksizes: blocksizes.to_vec(), ..UnixFs::new(Kind::File) }
    }

    type FileRow<'a> = (UnixFs, &'a [(&'a str, Cid)], Result<u64, &'static str>);

    #[test]
    fn file_checks() {
        let two = [raw_link(1), raw_link(2)];
        let rows: Vec<FileRow> = vec![
            (file(b"", None, &[]), &[], Ok(0)),
            (file(b"abc", None, &[]), &[], Ok(3)),
            (file(b"abc", Some(3), &[]), &[], Ok(3)),
            (file(b"abc", Some(33), &[10, 20]), &two, Ok(33)),
            (file(b"", None, &[10, 20]), &two, Ok(30)),
            (file(b"", Some(u64::MAX), &[u64::MAX - 1, 1]), &two, Ok(u64::MAX)),
            (file(b"abc", Some(4), &[]), &[], Err("a file's size is not the sum of its parts")),
            (file(b"", Some(29), &[10, 20]), &two, Err("a file's size is not the sum of its parts")),
            (file(b"", Some(10), &[10]), &two, Err("a file has not as many block sizes as links")),
            (file(b"", Some(30), &[10, 10, 10]), &two, Err("a file has not as many block sizes as links")),
            (file(b"", Some(0), &[]), &two, Err("a file has not as many block sizes as links")),
            (file(b"", Some(0), &[u64::MAX, 1]), &two, Err("a file's block sizes add up to more than 64 bits")),
            (file(b"a", None, &[u64::MAX, 0]), &two, Err("a file's block sizes add up to more than 64 bits")),
            (UnixFs { kind: Kind::Raw, ..file(b"abc", Some(3), &[]) }, &[], Ok(3)),
            (UnixFs { kind: Kind::Raw, ..file(b"", Some(20), &[10, 10]) }, &two, Err("a raw node has links")),
        ];
        for (message, links, expect) in rows {
            match (parse(message.clone(), links), expect) {
                (Ok(TreeNode::File(node)), Ok(size)) => assert_eq!(node.size, size),
                (Err(error), Err(why)) => assert_eq!(error, malformed(why)),
                (other, _) => panic!("{message:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn other_kinds() {
        let symlink = |target: Vec<u8>| parse(UnixFs { data: Some(target.into()), ..UnixFs::new(Kind::Symlink) }, &[]);
        assert_eq!(symlink(b"../a".to_vec()), Ok(TreeNode::Symlink("../a".into())));
        assert_eq!(symlink(vec![0xff]), Err(malformed("a symlink's target is not UTF-8")));
        assert!(matches!(symlink(vec![b'a'; SYMLINK_BYTES_MAX + 1]), Err(TreeError::TooLarge { .. })));
        assert!(matches!(parse(UnixFs::new(Kind::Metadata), &[]), Err(TreeError::Unsupported { .. })));
        let empty = Bytes::new();
        assert_eq!(parse_node(&cid_v1(codec::RAW, [0; 32]), &empty), Ok(TreeNode::Raw(empty.clone())));
        for codec in [codec::DAG_PB, codec::DAG_CBOR, 0x99] {
            assert_eq!(parse_node(&cid_v1(codec, [0; 32]), &empty), Ok(TreeNode::Other { codec, bytes: empty.clone() }));
        }
    }

    #[test]
    fn directories_are_searched_sorted_or_not() {
        for names in [["a", "b", "b", "c"], ["c", "b", "b", "a"]] {
            let links: Vec<_> = names.iter().zip(1..).map(|(name, seed)| (*name, cid_v1(codec::RAW, [seed; 32]))).collect();
            let Ok(TreeNode::Dir(dir)) = parse(UnixFs::new(Kind::Directory), &links) else { panic!("not a directory") };
            assert_eq!(dir.lookup(b"b").unwrap().cid, links[1].1, "the first of two");
            assert_eq!(dir.lookup(b"a").unwrap().cid, links[if names[0] == "a" { 0 } else { 3 }].1);
            for absent in ["", "0", "bb", "d"] {
                assert_eq!(dir.lookup(absent.as_bytes()), None);
            }
        }
    }

    fn show(part: FilePart) -> String {
        match part {
            FilePart::Inline(bytes) => {
                format!("inline {}", String::from_utf8(bytes.to_vec()).unwrap())
            }
            FilePart::Child { child, within } => format!("{}: {}..{}", child.cid.hash().digest()[0], within.start, within.end),
        }
    }

    #[test]
    fn parts_of_a_range() {
        let links = [raw_link(1), raw_link(2), raw_link(3), raw_link(4)];
        let Ok(TreeNode::File(node)) = parse(file(b"abc", None, &[10, 0, 20, 5]), &links) else { panic!("not a file") };
        let rows: [(Range<u64>, &[&str]); 12] = [
            (0..38, &["inline abc", "1: 0..10", "3: 0..20", "4: 0..5"]),
            (0..u64::MAX, &["inline abc", "1: 0..10", "3: 0..20", "4: 0..5"]),
            (0..0, &[]),
            (1..2, &["inline b"]),
            (2..4, &["inline c", "1: 0..1"]),
            (3..13, &["1: 0..10"]),
            (12..14, &["1: 9..10", "3: 0..1"]),
            (13..14, &["3: 0..1"]),
            (37..38, &["4: 4..5"]),
            (38..40, &[]),
            (40..50, &[]),
            (5..5, &[]),
        ];
        for (range, expect) in rows {
            assert_eq!(node.parts(range.clone()).map(show).collect::<Vec<_>>(), expect, "{range:?}");
        }
    }

    /// Reads a file as the store does, but from memory and leaf by leaf.
    fn read(dag: &TestDag, cid: &Cid, range: Range<u64>, depth: usize, out: &mut Vec<u8>) -> Result<(), TreeError> {
        TreeError::check_limit("levels of a file", depth, FILE_DEPTH_MAX)?;
        match parse_node(cid, &dag.block(cid))? {
            TreeNode::Raw(bytes) => out.extend_from_slice(&bytes[range.start as usize..range.end as usize]),
            TreeNode::File(node) => {
                for part in node.parts(range) {
                    match part {
                        FilePart::Inline(bytes) => out.extend_from_slice(&bytes),
                        FilePart::Child { child, within } => {
                            child.check(&parse_node(&child.cid, &dag.block(&child.cid))?)?;
                            read(dag, &child.cid, within, depth + 1, out)?;
                        }
                    }
                }
            }
            other => panic!("not a file: {other:?}"),
        }
        Ok(())
    }

    #[test]
    fn files_of_several_levels() {
        let mut dag = TestDag::default();
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        let top = dag.file(&bytes, 10, 3);
        for (start, end) in [(0, 1000), (0, 1), (9, 11), (299, 301), (999, 1000), (500, 500)] {
            let mut out = Vec::new();
            read(&dag, &top, start..end, 0, &mut out).unwrap();
            assert_eq!(out, &bytes[start as usize..end as usize], "{start}..{end}");
        }
    }

    #[test]
    fn endless_and_lying_files_are_stopped() {
        let mut dag = TestDag::default();
        // A node that names itself: only possible for a block whose hash nobody checked, or by a very long chain.
        let me = parse_cid("bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354").unwrap();
        dag.insert(me, pb_block(&file(b"", Some(1), &[1]), &[("", me)]));
        assert!(matches!(read(&dag, &me, 0..1, 0, &mut Vec::new()), Err(TreeError::TooLarge { .. })));
        let leaf = dag.raw(b"four");
        let lying = dag.pb(&file(b"", Some(5), &[5]), &[("", leaf)]);
        assert_eq!(
            read(&dag, &lying, 0..5, 0, &mut Vec::new()),
            Err(malformed("a file's part has not the length that its parent says"))
        );
        let dir = dag.dir(&[]);
        let odd = dag.pb(&file(b"", Some(5), &[5]), &[("", dir)]);
        assert_eq!(read(&dag, &odd, 0..5, 0, &mut Vec::new()), Err(malformed("a file's part is not a file")));
    }

    /// A few blocks that say petabytes: each level repeats the level below 1,000 times. Only the way to the range is walked.
    #[test]
    fn repeated_blocks_cost_only_what_is_asked_for() {
        let mut dag = TestDag::default();
        let (mut cid, mut size) = (dag.raw(b"0123456789abcdef"), 16u64);
        for _ in 0..5 {
            let links = vec![("", cid); 1000];
            size *= 1000;
            cid = dag.pb(&file(b"", Some(size), &[size / 1000; 1000]), &links);
        }
        let mut out = Vec::new();
        read(&dag, &cid, size - 17..size, 0, &mut out).unwrap();
        assert_eq!(out, b"f0123456789abcdef");
        // One level more, of 60,000, and the sum is above 64 bits.
        let count = 60_000;
        let block = pb_block(&file(b"", None, &vec![size; count]), &vec![("", cid); count]);
        assert_eq!(
            parse_node(&cid_v1(codec::DAG_PB, [0; 32]), &Bytes::from(block)),
            Err(malformed("a file's block sizes add up to more than 64 bits"))
        );
    }

    /// Every block of every fixture parses as what it is, and files read back with the hash that their raw leaves had.
    #[test]
    fn fixtures() {
        let Some(dag) = TestDag::from_car("conformance/fixtures/path_gateway_unixfs/dir-with-files.car") else {
            return;
        };
        let TreeNode::Dir(dir) = parse_node(&dag.roots[0], &dag.block(&dag.roots[0])).unwrap() else { panic!("not a directory") };
        let multi = dir.lookup(b"multiblock.txt").unwrap().cid;
        let TreeNode::File(node) = parse_node(&multi, &dag.block(&multi)).unwrap() else { panic!("not a file") };
        assert_eq!((node.size, node.children.len()), (1026, 5));
        let mut out = Vec::new();
        read(&dag, &multi, 0..node.size, 0, &mut out).unwrap();
        assert_eq!(out.len(), 1026);
        assert_eq!(node.children[0].cid, cid_v1(codec::RAW, sha2_256(&out[..256])));
        for file in [
            "dir_listing/fixtures.car",
            "path_gateway_tar/outside-root.car",
            "path_gateway_unixfs/symlink.car",
            "subdomain_gateway/fixtures.car",
            "redirects_file/redirects.car",
            "trustless_gateway_car/subdir-with-mixed-block-files.car",
        ] {
            let dag = TestDag::from_car(&format!("conformance/fixtures/{file}")).expect("the folder is there");
            for (cid, block) in dag.blocks() {
                let node = parse_node(cid, block).unwrap_or_else(|error| panic!("{file} {cid}: {error}"));
                assert!(!matches!(node, TreeNode::Other { codec: codec::DAG_PB, .. }), "{file} {cid}");
            }
        }
    }

    proptest! {
        #[test]
        fn parts_add_up(inline in 0usize..5, lens in proptest::collection::vec(0u64..9, 0..8), start in 0u64..80, len in 0u64..80) {
            let links: Vec<_> = lens.iter().zip(1..).map(|(_, seed)| raw_link(seed)).collect();
            let message = UnixFs { blocksizes: lens, data: Some(vec![b'x'; inline].into()), ..UnixFs::new(Kind::File) };
            let Ok(TreeNode::File(node)) = parse(message, &links) else { panic!("not a file") };
            let total: u64 = node.parts(start..start + len).map(|part| match part {
                FilePart::Inline(bytes) => bytes.len() as u64,
                FilePart::Child { within, .. } => within.end - within.start,
            }).sum();
            prop_assert_eq!(total, (start + len).min(node.size).saturating_sub(start));
        }
    }

    #[test]
    fn fuzz_corpus() {
        use crate::tree::test_dag::{TestDag, pb_block, shard_block};
        use crate::tree::unixfs::{Kind, UnixFs};
        let mut dag = TestDag::default();
        let leaf = dag.raw(b"leaf");
        let file = UnixFs { filesize: Some(8), blocksizes: vec![4, 4], mode: Some(0o644), ..UnixFs::new(Kind::File) };
        let corpus = [
            pb_block(&file, &[("", leaf), ("", leaf)]),
            pb_block(&UnixFs::new(Kind::Directory), &[("a", leaf), ("b", leaf)]),
            shard_block(256, &[(3, "name", leaf), (200, "other", leaf)]),
            shard_block(8, &[(1, "", dag.dir(&[])), (7, "x", leaf)]),
            pb_block(&UnixFs { data: Some(Bytes::from_static(b"../target")), ..UnixFs::new(Kind::Symlink) }, &[]),
        ];
        crate::address::test_shared::fuzz_around(fuzz, &corpus, 700);
    }
}
