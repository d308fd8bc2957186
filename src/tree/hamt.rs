//! HAMT directories: a directory too large for one block, cut into shards by the hash of its names.
//!
//! A name's hash is 64 bits of murmur3; each level takes the next `log2(fanout)` of them, from the top. A shard's data is a
//! bitfield of the slots in use; its links stand in the order of the slots, each named with the slot in upper-case hex,
//! followed by the entry's name, or by nothing if a shard lies below.
//!
//! *Limits*: fanout 8 to [`FANOUT_MAX`], and as many levels as the hash has bits for: whatever links to whatever, a look-up
//! ends after [`HASH_BITS`] / log2(fanout) shards, at most 21.

use bytes::Bytes;

use super::dagpb::PbLink;
use super::unixfs::{Mtime, UnixFs};
use super::{NODE_LINKS_MAX, TreeError};
use crate::address::{Cid, codec};

/// Largest fanout (IPIP-0499, and what other readers take).
pub const FANOUT_MAX: u64 = 1024;

/// Smallest fanout: the bitfield is made of whole bytes.
pub const FANOUT_MIN: u64 = 8;

/// Bits of a name's hash; when they are used up, there is no deeper shard.
pub const HASH_BITS: u32 = 64;

/// Multicodec number of the one hash that HAMTs use: murmur3-x64-64.
pub const HASH_MURMUR3: u64 = 0x22;

const FORMAT: &str = "HAMT";
/// Hex digits of the greatest slot, 3FF.
const SLOT_CHARS_MAX: usize = 3;
const BITFIELD_WORDS: usize = (FANOUT_MAX / 64) as usize;
const _: () = assert!(FANOUT_MAX as usize <= NODE_LINKS_MAX);

/// One checked shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardNode {
    /// Hash bits that a level takes.
    width_bits: u32,
    /// Characters of the slot in a link's name.
    prefix_chars: usize,
    /// Slot `s` is bit `s % 64` of word `s / 64`.
    bitfield: [u64; BITFIELD_WORDS],
    links: Vec<PbLink>,
    /// Permission bits of the directory (on its top shard).
    pub mode: Option<u32>,
    /// Modification time of the directory (on its top shard).
    pub mtime: Option<Mtime>,
}

/// What a shard says about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shard {
    /// Here it is.
    Entry(Cid),
    /// It is in this shard below, or nowhere.
    Child(Cid),
    /// The directory has no such name.
    Absent,
}

/// What one slot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardItem {
    /// A directory entry.
    Entry {
        /// Its name, without the slot.
        name: Bytes,
        /// What it names.
        cid: Cid,
        /// Bytes below, as the writer says; not verified.
        tsize: u64,
    },
    /// A shard below.
    Child(Cid),
}

impl ShardNode {
    /// Checks fanout, hash, bitfield and links against each other.
    pub(super) fn parse(message: &UnixFs, links: Vec<PbLink>) -> Result<ShardNode, TreeError> {
        let fanout = message.fanout.ok_or_else(|| malformed("the fanout is missing"))?;
        if !fanout.is_power_of_two() || !(FANOUT_MIN..=FANOUT_MAX).contains(&fanout) {
            return Err(malformed("the fanout is no power of two from 8 to 1024"));
        }
        match message.hash_type {
            Some(HASH_MURMUR3) => {}
            Some(other) => {
                return Err(TreeError::unsupported(format!("HAMT with hash 0x{other:x}")));
            }
            None => return Err(malformed("the hash is missing")),
        }
        let bitfield = parse_bitfield(message.data.as_deref().unwrap_or_default(), fanout)?;
        let shard = ShardNode {
            width_bits: fanout.trailing_zeros(),
            prefix_chars: (fanout.trailing_zeros() as usize).div_ceil(4),
            bitfield,
            links,
            mode: message.mode,
            mtime: message.mtime,
        };
        shard.check_links()?;
        Ok(shard)
    }

    /// Number of slots.
    pub fn fanout(&self) -> u32 {
        1 << self.width_bits
    }

    /// Links, used slots and their names belong together, one to one and in order.
    fn check_links(&self) -> Result<(), TreeError> {
        let used_slots: u32 = self.bitfield.iter().map(|word| word.count_ones()).sum();
        if used_slots as usize != self.links.len() {
            return Err(malformed("the bitfield does not have as many bits as there are links"));
        }
        for (slot, link) in self.slots() {
            let prefix = link.name.get(..self.prefix_chars).ok_or_else(|| malformed("a link's name is shorter than its slot"))?;
            if prefix != &slot_hex(slot)[SLOT_CHARS_MAX - self.prefix_chars..] {
                return Err(malformed("a link's name does not begin with its slot"));
            }
            if link.name.len() == self.prefix_chars && link.cid.codec() != codec::DAG_PB {
                return Err(malformed("a shard below is not dag-pb"));
            }
        }
        Ok(())
    }

    /// Used slots in order, each with its link.
    fn slots(&self) -> impl Iterator<Item = (u32, &PbLink)> {
        (0..self.fanout()).filter(|slot| self.is_used(*slot)).zip(&self.links)
    }

    fn is_used(&self, slot: u32) -> bool {
        self.bitfield[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    /// Looks for `name` in this shard, which lies `depth` levels below the directory's top shard (0 = the top itself).
    pub fn lookup(&self, name: &[u8], depth: u32) -> Result<Shard, TreeError> {
        let slot = self.slot_of(name, depth)?;
        if !self.is_used(slot) {
            return Ok(Shard::Absent);
        }
        let word = slot as usize / 64;
        let below_in_word = self.bitfield[word] & ((1 << (slot % 64)) - 1);
        let rank: u32 = self.bitfield[..word].iter().map(|word| word.count_ones()).sum::<u32>() + below_in_word.count_ones();
        let link = &self.links[rank as usize];
        Ok(match &link.name[self.prefix_chars..] {
            [] => Shard::Child(link.cid),
            found if found == name => Shard::Entry(link.cid),
            _ => Shard::Absent,
        })
    }

    /// Number of links, of both kinds.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// True for the one shard of an empty directory.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// What link `index` holds, in the order of the slots.
    pub fn item(&self, index: usize) -> Option<ShardItem> {
        let link = self.links.get(index)?;
        if link.name.len() == self.prefix_chars {
            return Some(ShardItem::Child(link.cid));
        }
        Some(ShardItem::Entry { name: link.name.slice(self.prefix_chars..), cid: link.cid, tsize: link.tsize })
    }

    /// All items, in the order of the slots.
    pub fn items(&self) -> impl Iterator<Item = ShardItem> {
        (0..self.len()).filter_map(|index| self.item(index))
    }

    /// Entries that stand in this shard itself: name, CID, tsize.
    pub fn entries(&self) -> impl Iterator<Item = (Bytes, Cid, u64)> {
        self.items().filter_map(|item| match item {
            ShardItem::Entry { name, cid, tsize } => Some((name, cid, tsize)),
            ShardItem::Child(_) => None,
        })
    }

    /// Shards right below, in the order of the slots.
    pub fn subshards(&self) -> impl Iterator<Item = Cid> {
        self.items().filter_map(|item| match item {
            ShardItem::Child(cid) => Some(cid),
            ShardItem::Entry { .. } => None,
        })
    }

    /// Slots of the links, in the same order: the hash bits that lead to each at this level.
    pub fn used_slots(&self) -> impl Iterator<Item = u32> {
        self.slots().map(|(slot, _)| slot)
    }

    /// Takes a shard that this one links to: it must have the same fanout and hold something. Writers never leave an empty
    /// one, and a tree of empty shards would be a listing without end and without entries.
    pub fn check_below(&self, below: &ShardNode) -> Result<(), TreeError> {
        if below.width_bits != self.width_bits {
            return Err(malformed("a shard has another fanout than the one above it"));
        }
        if below.is_empty() {
            return Err(malformed("a shard below the top is empty"));
        }
        Ok(())
    }

    /// Checks that the top bits of `name`'s hash are `trail`: the slots of the way down, `levels` of them, top shard first.
    /// Listings ask this of every entry, so that they show what look-ups find, and nothing twice.
    pub fn check_trail(&self, name: &[u8], trail: u64, levels: u32) -> Result<(), TreeError> {
        let used_bits = self.used_bits(levels)?;
        if used_bits > 0 && murmur3_x64_64(name) >> (HASH_BITS - used_bits) != trail {
            return Err(malformed("an entry stands in a slot where its name does not belong"));
        }
        Ok(())
    }

    /// May a shard stand `depth` levels below the top? Not when the hash has no bits left for its slots.
    pub fn check_depth(&self, depth: u32) -> Result<(), TreeError> {
        self.used_bits(depth.saturating_add(1)).map(|_| ())
    }

    /// Appends this level's slot to the trail of the levels above.
    pub fn trail(&self, trail_above: u64, slot: u32) -> u64 {
        trail_above << self.width_bits | u64::from(slot)
    }

    fn slot_of(&self, name: &[u8], depth: u32) -> Result<u32, TreeError> {
        let used_bits = self.used_bits(depth.saturating_add(1))?;
        let bits = murmur3_x64_64(name) >> (HASH_BITS - used_bits);
        // The mask leaves at most ten bits.
        Ok((bits & (u64::from(self.fanout()) - 1)) as u32)
    }

    /// Hash bits that `levels` levels use up.
    fn used_bits(&self, levels: u32) -> Result<u32, TreeError> {
        let used_bits = levels.saturating_mul(self.width_bits);
        TreeError::check_limit("bits of a name's hash that a HAMT uses", used_bits as usize, HASH_BITS as usize)?;
        Ok(used_bits)
    }
}

/// Three upper-case hex digits; narrower shards name their slots with the last one or two.
fn slot_hex(slot: u32) -> [u8; SLOT_CHARS_MAX] {
    let digit = |shift: u32| b"0123456789ABCDEF"[(slot >> shift & 15) as usize];
    [digit(8), digit(4), digit(0)]
}

/// The data is one big-endian number without leading zero bytes (writers differ on those, so they are allowed up to the
/// full width).
fn parse_bitfield(data: &[u8], fanout: u64) -> Result<[u64; BITFIELD_WORDS], TreeError> {
    if data.len() as u64 > fanout / 8 {
        return Err(malformed("the bitfield is longer than the fanout"));
    }
    let mut words = [0; BITFIELD_WORDS];
    for (index, byte) in data.iter().rev().enumerate() {
        words[index / 8] |= u64::from(*byte) << (8 * (index % 8));
    }
    Ok(words)
}

/// First half of murmur3-x64-128 with seed 0, as a number whose top bits are used first.
pub fn murmur3_x64_64(data: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mix_1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix_2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let (mut h1, mut h2) = (0u64, 0u64);
    let mut blocks = data.chunks_exact(16);
    for block in &mut blocks {
        let (low, high) = block.split_at(8);
        h1 ^= mix_1(u64::from_le_bytes(low.try_into().expect("half of sixteen")));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix_2(u64::from_le_bytes(high.try_into().expect("half of sixteen")));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let mut tail = [0u8; 16];
    tail[..blocks.remainder().len()].copy_from_slice(blocks.remainder());
    let tail = u128::from_le_bytes(tail);
    // Mixing a zero leaves a zero, so the tail needs no cases. The casts take the halves apart.
    h2 ^= mix_2((tail >> 64) as u64);
    h1 ^= mix_1(tail as u64);
    h1 ^= data.len() as u64;
    h2 ^= data.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    finish_mix(h1).wrapping_add(finish_mix(h2))
}

fn finish_mix(mut k: u64) -> u64 {
    k ^= k >> 33;
    k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
    k ^= k >> 33;
    k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ k >> 33
}

fn malformed(why: &'static str) -> TreeError {
    TreeError::malformed(FORMAT, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_dag::{TestDag, shard_block};
    use super::super::{TreeNode, parse_node, unixfs};
    use super::*;
    use crate::address::{cid_v1, parse_cid};

    // Values of the reference implementation (first eight bytes of MurmurHash3_x64_128, seed 0, as a number).
    #[test]
    fn murmur_vectors() {
        let rows: [(&str, u64); 4] = [
            ("", 0),
            ("hello", 0xcbd8_a7b3_41bd_9b02),
            ("hello, world", 0x342f_ac62_3a5e_bc8e),
            ("The quick brown fox jumps over the lazy dog.", 0xcd99_481f_9ee9_02c9),
        ];
        for (text, expect) in rows {
            assert_eq!(murmur3_x64_64(text.as_bytes()), expect, "{text:?}");
        }
    }

    fn message(fanout: u64, bitfield: &[u8]) -> UnixFs {
        UnixFs {
            data: Some(Bytes::copy_from_slice(bitfield)),
            hash_type: Some(HASH_MURMUR3),
            fanout: Some(fanout),
            ..UnixFs::new(unixfs::Kind::HamtShard)
        }
    }

    fn link(name: &str, codec: u64) -> PbLink {
        PbLink { cid: cid_v1(codec, [9; 32]), name: Bytes::copy_from_slice(name.as_bytes()), tsize: 1 }
    }

    fn entry(name: &str) -> PbLink {
        link(name, codec::RAW)
    }

    #[test]
    fn attacks() {
        let ok = |fanout, bitfield: &[u8], links: Vec<PbLink>| ShardNode::parse(&message(fanout, bitfield), links).map(|_| ());
        assert_eq!(ok(256, &[1], vec![entry("00a")]), Ok(()));
        assert_eq!(ok(256, &[0, 0, 1], vec![entry("00a")]), Ok(()), "leading zero bytes");
        assert_eq!(ok(8, &[0x81], vec![entry("0a"), entry("7b")]), Ok(()));
        assert_eq!(ok(1024, &[1, 0, 0], vec![entry("010x")]), Ok(()));
        assert_eq!(ok(256, &[], vec![]), Ok(()));
        // CVE-2023-23625, -23631 (fanout) and -23626 (bitfield): each was a panic or a large allocation elsewhere.
        let fanout = "the fanout is no power of two from 8 to 1024";
        for bad in [0, 1, 2, 4, 7, 12, 255, 257, 2048, 1 << 32, 1 << 63, u64::MAX, i64::MIN as u64] {
            assert_eq!(ok(bad, &[1], vec![entry("00a")]), Err(malformed(fanout)), "{bad}");
        }
        let count = "the bitfield does not have as many bits as there are links";
        let slot = "a link's name does not begin with its slot";
        let rows: Vec<(u64, &[u8], Vec<PbLink>, &str)> = vec![
            (256, &[1; 33], vec![entry("00a")], "the bitfield is longer than the fanout"),
            (8, &[1, 0], vec![entry("8a")], "the bitfield is longer than the fanout"),
            (256, &[], vec![entry("00a")], count),
            (256, &[3], vec![entry("00a")], count),
            (256, &[1], vec![], count),
            (256, &[1], vec![entry("01a")], slot),
            (256, &[1], vec![entry("0xa")], slot),
            (256, &[4, 0], vec![entry("0aa")], slot),
            (256, &[3], vec![entry("01a"), entry("00b")], slot),
            (256, &[3], vec![entry("00a"), entry("00b")], slot),
            (256, &[1], vec![entry("0")], "a link's name is shorter than its slot"),
            (256, &[1], vec![entry("")], "a link's name is shorter than its slot"),
            (256, &[1], vec![entry("00")], "a shard below is not dag-pb"),
        ];
        for (fanout, bitfield, links, expect) in rows {
            assert_eq!(ok(fanout, bitfield, links), Err(malformed(expect)), "{fanout} {bitfield:02x?}");
        }
        let no_fanout = UnixFs { fanout: None, ..message(256, &[1]) };
        assert_eq!(ShardNode::parse(&no_fanout, vec![entry("00a")]), Err(malformed("the fanout is missing")));
        let no_hash = UnixFs { hash_type: None, ..message(256, &[1]) };
        assert_eq!(ShardNode::parse(&no_hash, vec![entry("00a")]), Err(malformed("the hash is missing")));
        let other_hash = UnixFs { hash_type: Some(0x12), ..message(256, &[1]) };
        assert!(matches!(ShardNode::parse(&other_hash, vec![entry("00a")]), Err(TreeError::Unsupported { .. })));
    }

    #[test]
    fn depth_ends_with_the_hash() {
        for (fanout, levels) in [(8, 21), (16, 16), (256, 8), (1024, 6)] {
            let shard = ShardNode::parse(&message(fanout, &[]), vec![]).unwrap();
            assert_eq!(shard.lookup(b"name", levels - 1), Ok(Shard::Absent));
            for too_deep in [levels, levels + 1, u32::MAX] {
                assert!(matches!(shard.lookup(b"name", too_deep), Err(TreeError::TooLarge { .. })), "{fanout} at {too_deep}");
            }
        }
    }

    #[test]
    fn lower_shards_are_checked_against_upper_ones() {
        let top = ShardNode::parse(&message(256, &[]), vec![]).unwrap();
        let narrow = ShardNode::parse(&message(16, &[1]), vec![entry("0a")]).unwrap();
        let full = ShardNode::parse(&message(256, &[1]), vec![entry("00a")]).unwrap();
        assert_eq!(top.check_below(&full), Ok(()));
        assert_eq!(top.check_below(&top), Err(malformed("a shard below the top is empty")));
        assert_eq!(top.check_below(&narrow), Err(malformed("a shard has another fanout than the one above it")));
    }

    /// Every name is found where the encoder of the tests put it, at every fanout.
    #[test]
    fn look_up_of_many_names() {
        for fanout in [8, 16, 64, 256, 512, 1024] {
            let mut dag = TestDag::default();
            let names: Vec<String> = (0..700).map(|i| format!("file-{i:05}.txt")).collect();
            let entries: Vec<_> = names.iter().map(|name| (name.clone(), dag.raw(name.as_bytes()))).collect();
            let top = dag.shards(&entries, fanout);
            for (name, cid) in &entries {
                assert_eq!(find(&dag, top, name), Some(*cid), "{name} at {fanout}");
            }
            assert_eq!(find(&dag, top, "no such name"), None);
            assert_eq!(find(&dag, top, ""), None);
        }
    }

    fn find(dag: &TestDag, top: Cid, name: &str) -> Option<Cid> {
        let mut cid = top;
        for depth in 0.. {
            let TreeNode::Shard(shard) = parse_node(&cid, &dag.block(&cid)).unwrap() else { panic!("not a shard") };
            match shard.lookup(name.as_bytes(), depth).unwrap() {
                Shard::Entry(found) => return Some(found),
                Shard::Child(below) => cid = below,
                Shard::Absent => return None,
            }
        }
        unreachable!("look-ups end")
    }

    /// A shard made by kubo, from the conformance suite: one level of 256.
    #[test]
    fn kubo_shard() {
        let Some(dag) =
            TestDag::from_car("conformance/fixtures/trustless_gateway_car/single-layer-hamt-with-multi-block-files.car")
        else {
            return;
        };
        let top = dag.roots[0];
        let TreeNode::Shard(shard) = parse_node(&top, &dag.block(&top)).unwrap() else { panic!("not a shard") };
        assert_eq!((shard.fanout(), shard.subshards().count() + shard.entries().count()), (256, shard.len()));
        let mut seen = 0;
        for (index, item) in shard.items().enumerate() {
            if let ShardItem::Entry { name, cid, .. } = item {
                assert_eq!(shard.lookup(&name, 0), Ok(Shard::Entry(cid)));
                let slot = shard.used_slots().nth(index).unwrap();
                assert_eq!(shard.check_trail(&name, shard.trail(0, slot), 1), Ok(()));
                assert!(shard.check_trail(&name, shard.trail(0, slot ^ 1), 1).is_err());
                seen += 1;
            }
        }
        assert_eq!(seen, shard.entries().count());
        assert!(seen > 10, "{seen}");
    }

    proptest! {
        #[test]
        fn random_shards_never_panic(
            fanout in prop_oneof![Just(8u64), Just(256), Just(1024), any::<u64>()],
            bitfield in proptest::collection::vec(any::<u8>(), 0..40),
            names in proptest::collection::vec("[0-9A-F]{0,3}[a-z]{0,2}", 0..6),
            depth in any::<u32>(),
        ) {
            let links = names.iter().map(|name| link(name, codec::DAG_PB)).collect();
            if let Ok(shard) = ShardNode::parse(&message(fanout, &bitfield), links) {
                let _ = shard.lookup(b"name", depth);
                prop_assert_eq!(shard.items().count(), shard.len());
            }
        }

        #[test]
        fn random_blocks_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200, byte in any::<u8>()) {
            let cid = parse_cid("bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354").unwrap();
            let _ = parse_node(&cid, &Bytes::from(bytes));
            let mut damaged = shard_block(256, &[(3, "a", cid), (200, "b", cid)]);
            let last = damaged.len() - 1;
            damaged[at.min(last)] = byte;
            if let Ok(TreeNode::Shard(shard)) = parse_node(&cid, &Bytes::from(damaged)) {
                let _ = shard.lookup(b"a", 0);
            }
        }
    }
}
