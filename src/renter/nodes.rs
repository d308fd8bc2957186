//! What a read wants to know about a sector before it asks for bytes: its checked hash tree, and where it lies.
//!
//! A [`CheckedTree`] exists only if its nodes fold to the root under which it is kept. Of the data length in a header only
//! the number of grains is proved by that, and a host may lie about the rest. So nothing here remembers a length: reads
//! reckon in whole grains, the last one may come short and counts as padded with zeros, and beyond it there are zeros.

use std::{ops::Range, sync::Arc};

use moka::sync::Cache;

use crate::sector::{
    GRAIN_BYTES, GRAIN_HEIGHT, GrainTree, HEADER_BYTES, NODE_BYTES, Root, SECTOR_BYTES, data_offset, parse_header, zero_node,
};

/// What an entry costs beyond its nodes: key, reference counts, moka's own node; measured at about 200 bytes.
const ENTRY_OVERHEAD_BYTES: usize = 256;
/// Placements get one part of this many of the room's metadata bytes: an entry is 30 times smaller than a full tree,
/// and one serves the trees of a whole slab.
const PLACEMENT_SHARE: u64 = 16;

/// The nodes of one sector, proved by its root.
pub(super) struct CheckedTree {
    tree: GrainTree,
    grain_count: u32,
}

/// What the first bytes of a sector object say.
pub(super) enum Prefix {
    Tree(Arc<CheckedTree>),
    /// Header and nodes end beyond the bytes at hand: so many are needed.
    TooShort(u64),
    Wrong(String),
}

impl CheckedTree {
    /// Reads header and nodes and folds them up to `root`. 1,024 nodes cost about 0.1 ms.
    pub(super) fn parse(root: &Root, object: &[u8]) -> Prefix {
        if object.len() < HEADER_BYTES {
            return Prefix::Wrong(format!("the object has only {} bytes", object.len()));
        }
        let data_length = match parse_header(object) {
            Ok(header) => header.data_length,
            Err(error) => return Prefix::Wrong(error.to_string()),
        };
        let Some(nodes) = object.get(HEADER_BYTES..data_offset(data_length)) else {
            return Prefix::TooShort(data_offset(data_length) as u64);
        };
        // A longer tree of the same root would put the data at another offset, and every other host's copy of the
        // sector would then look wrong. Writers cut trailing zeros, so the shortest tree is the only honest one.
        if nodes.ends_with(&zero_node(GRAIN_HEIGHT)) {
            return Prefix::Wrong("the tree ends in a grain of zeros".to_owned());
        }
        let grain_count = (nodes.len() / NODE_BYTES) as u32;
        match GrainTree::new(root, nodes, grain_count * GRAIN_BYTES as u32) {
            Ok(tree) => Prefix::Tree(Arc::new(CheckedTree { tree, grain_count })),
            Err(error) => Prefix::Wrong(error.to_string()),
        }
    }

    /// The whole grains that hold `wanted`, in data bytes; empty if all of it lies beyond the data.
    pub(super) fn grains_of(&self, wanted: &Range<u32>) -> Range<u32> {
        let grain = GRAIN_BYTES as u32;
        let end = self.data_end();
        let start = (wanted.start / grain * grain).min(end);
        start..wanted.end.next_multiple_of(grain).min(end).max(start)
    }

    /// Where whole grains lie in the object, which may end within the last one.
    pub(super) fn in_object(&self, grains: &Range<u32>) -> Range<u64> {
        let offset = data_offset(self.data_end()) as u64;
        offset + u64::from(grains.start)..offset + u64::from(grains.end)
    }

    /// End of the last grain: at most one grain beyond the end of the data.
    pub(super) fn data_end(&self) -> u32 {
        self.grain_count * GRAIN_BYTES as u32
    }

    /// Checks what a host answered for `grains`, and says what is wrong with it.
    pub(super) fn check(&self, grains: &Range<u32>, bytes: &[u8]) -> Result<(), String> {
        let missing_bytes = grains.len().checked_sub(bytes.len());
        let ends_with_data = grains.end == self.data_end() && missing_bytes.is_some_and(|missing| missing < GRAIN_BYTES);
        if missing_bytes != Some(0) && !ends_with_data {
            return Err(format!("{} bytes came where {} should be", bytes.len(), grains.len()));
        }
        let first_grain = grains.start as usize / GRAIN_BYTES;
        let (whole, rest) = bytes.split_at(bytes.len() / GRAIN_BYTES * GRAIN_BYTES);
        let checked = self.tree.check(first_grain, whole).and_then(|()| {
            if rest.is_empty() {
                return Ok(());
            }
            let mut last = [0; GRAIN_BYTES];
            last[..rest.len()].copy_from_slice(rest);
            self.tree.check(first_grain + whole.len() / GRAIN_BYTES, &last)
        });
        checked.map_err(|error| error.to_string())
    }

    /// What of an answer for `grains` that is wrong is right all the same, in data bytes; zeros beyond the data are.
    pub(super) fn right_in(&self, grains: &Range<u32>, bytes: &[u8]) -> Vec<Range<u32>> {
        let mut right: Vec<Range<u32>> = Vec::new();
        let mut add = |start: u32, end: u32| match right.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => right.push(start..end),
        };
        let mut padded = [0; GRAIN_BYTES];
        for (start, grain) in grains.clone().step_by(GRAIN_BYTES).zip(bytes.chunks(GRAIN_BYTES)) {
            padded[..grain.len()].copy_from_slice(grain);
            padded[grain.len()..].fill(0);
            if self.tree.check(start as usize / GRAIN_BYTES, &padded).is_ok() {
                add(start, start + GRAIN_BYTES as u32);
            }
        }
        if grains.end == self.data_end() {
            add(grains.end, SECTOR_BYTES as u32);
        }
        right
    }

    fn memory_bytes(&self) -> u32 {
        (self.grain_count as usize * NODE_BYTES + ENTRY_OVERHEAD_BYTES) as u32
    }
}

/// Checked trees by root, bounded in bytes: 64 MiB hold the trees of about 8 GiB of full sectors.
pub(super) struct TreeCache(Cache<Root, Arc<CheckedTree>>);

impl TreeCache {
    pub(super) fn new(max_bytes: u64) -> TreeCache {
        let weigher = |_: &Root, tree: &Arc<CheckedTree>| tree.memory_bytes();
        TreeCache(Cache::builder().weigher(weigher).max_capacity(max_bytes).build())
    }

    pub(super) fn get(&self, root: &Root) -> Option<Arc<CheckedTree>> {
        self.0.get(root)
    }

    pub(super) fn keep(&self, root: Root, tree: Arc<CheckedTree>) {
        self.0.insert(root, tree);
    }
}

/// Rows of the host table by slab id or base sector root. Reckoning a placement costs 9 x 9 hashes and logarithms, about
/// as much as checking 30 KiB; a slab is read many times.
pub(super) struct Placements(Cache<([u8; 32], u16), Arc<[u32]>>);

impl Placements {
    pub(super) fn new(metadata_bytes: u64) -> Placements {
        let weigher = |_: &([u8; 32], u16), rows: &Arc<[u32]>| (size_of_val(&**rows) + ENTRY_OVERHEAD_BYTES) as u32;
        Placements(Cache::builder().weigher(weigher).max_capacity(metadata_bytes / PLACEMENT_SHARE).build())
    }

    pub(super) fn get(&self, id: &[u8; 32], n: usize, reckon: impl FnOnce() -> Vec<usize>) -> Arc<[u32]> {
        let key = (*id, n as u16);
        if let Some(rows) = self.0.get(&key) {
            return rows;
        }
        let rows: Arc<[u32]> = reckon().into_iter().map(|row| row as u32).collect();
        self.0.insert(key, rows.clone());
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sector::build_object;

    fn tree_of(data: &[u8]) -> (Root, Arc<CheckedTree>) {
        let object = build_object(data, 0, 0, 1);
        match CheckedTree::parse(&object.root, &object.bytes) {
            Prefix::Tree(tree) => (object.root, tree),
            _ => panic!("an honest object parses"),
        }
    }

    #[test]
    fn ranges_are_whole_grains_within_the_data() {
        let (_, tree) = tree_of(&[7; 10_000]);
        let check = |wanted: Range<u32>, grains: Range<u32>, object: Range<u64>| {
            assert_eq!(tree.grains_of(&wanted), grains, "{wanted:?}");
            assert_eq!(tree.in_object(&grains), object, "{wanted:?}");
        };
        let offset = 64 + 3 * 32;
        check(0..1, 0..4096, offset..offset + 4096);
        check(4095..4097, 0..8192, offset..offset + 8192);
        check(9_000..10_000, 8192..12_288, offset + 8192..offset + 12_288);
        check(11_000..12_000, 8192..12_288, offset + 8192..offset + 12_288);
        check(12_288..20_000, 12_288..12_288, offset + 12_288..offset + 12_288);
        check(0..4 << 20, 0..12_288, offset..offset + 12_288);
    }

    #[test]
    fn lies_in_the_prefix_are_found() {
        let object = build_object(&[7; 10_000], 0, 0, 1);
        let wrong = |change: fn(&mut Vec<u8>)| {
            let mut bytes = object.bytes.to_vec();
            change(&mut bytes);
            matches!(CheckedTree::parse(&object.root, &bytes), Prefix::Wrong(_))
        };
        assert!(!wrong(|_| ()));
        assert!(wrong(|bytes| bytes[0] ^= 1), "magic");
        assert!(wrong(|bytes| bytes[64] ^= 1), "first node");
        assert!(wrong(|bytes| bytes[64 + 95] ^= 128), "last node");
        assert!(wrong(|bytes| bytes.truncate(63)), "cut in the header");
        assert!(wrong(|bytes| bytes[16..20].copy_from_slice(&4_000_u32.to_le_bytes())), "shorter tree");
        assert!(
            wrong(|bytes| {
                bytes[16..20].copy_from_slice(&16_000_u32.to_le_bytes());
                bytes.splice(64 + 96..64 + 96, zero_node(GRAIN_HEIGHT));
            }),
            "a longer tree of the same root"
        );
        assert!(matches!(CheckedTree::parse(&object.root, &object.bytes[..100]), Prefix::TooShort(160)));
    }

    #[test]
    fn a_lie_about_the_length_changes_nothing() {
        let object = build_object(&[7; 10_000], 0, 0, 1);
        for length in [8_193_u32, 9_990, 10_000, 12_288] {
            let mut bytes = object.bytes.to_vec();
            bytes[16..20].copy_from_slice(&length.to_le_bytes());
            let Prefix::Tree(tree) = CheckedTree::parse(&object.root, &bytes) else { panic!("the nodes do fold") };
            let check = |bytes: &[u8]| tree.check(&(4096..12_288), bytes).is_ok();
            let right = [7; 10_000 - 4096];
            assert!(check(&right), "{length}");
            assert!(check(&[&right[..], &[0; 100]].concat()), "{length}: padded");
            assert!(!check(&right[1..]) && !check(&right[..4096]) && !check(&[]), "{length}: short");
            assert!(!check(&[&right[..], &[0; 5_000]].concat()), "{length}: long");
            assert!(tree.check(&(0..4096), &[7; 4096]).is_ok() && tree.check(&(0..4096), &[7; 4095]).is_err());
        }
    }

    #[test]
    fn wrong_answers_are_right_in_parts() {
        const END: u32 = 12_288;
        let (_, tree) = tree_of(&[7; 10_000]);
        let check = |grains: Range<u32>, change: &dyn Fn(&mut Vec<u8>), expect: &[(u32, u32)]| {
            let mut bytes = vec![7; grains.len().min(10_000 - grains.start as usize)];
            change(&mut bytes);
            let right: Vec<(u32, u32)> = tree.right_in(&grains, &bytes).iter().map(|right| (right.start, right.end)).collect();
            assert_eq!(right, expect, "{grains:?} of {} bytes", bytes.len());
        };
        let beyond = SECTOR_BYTES as u32;
        check(0..END, &|bytes| bytes[0] = 1, &[(4096, beyond)]);
        check(0..END, &|bytes| bytes[4096] = 1, &[(0, 4096), (8192, beyond)]);
        check(0..END, &|bytes| *bytes.last_mut().expect("some") = 1, &[(0, 8192), (END, beyond)]);
        check(0..8192, &|bytes| bytes[8191] = 1, &[(0, 4096)]);
        check(4096..8192, &|bytes| bytes[0] = 1, &[]);
        // Cut short, and too long.
        check(0..END, &|bytes| bytes.truncate(9_999), &[(0, 8192), (END, beyond)]);
        check(0..END, &|bytes| bytes.truncate(5_000), &[(0, 4096), (END, beyond)]);
        check(0..END, &|bytes| bytes.clear(), &[(END, beyond)]);
        check(0..END, &|bytes| bytes.resize(20_000, 0), &[(0, beyond)]);
        check(0..END, &|bytes| bytes.resize(20_000, 1), &[(0, 8192), (END, beyond)]);
        check(0..4096, &|bytes| bytes.push(7), &[(0, 4096)]);
    }

    #[test]
    fn an_empty_sector_has_an_empty_tree() {
        let (_, tree) = tree_of(&[0; 5_000]);
        assert_eq!((tree.data_end(), tree.grains_of(&(0..4096))), (0, 0..0));
    }
}
