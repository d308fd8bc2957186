//! Packs: how a DAG is stored (`docs/formats.md` 7). A CARv2 with the nodes of the DAG and some small leaves, and an index
//! that says of every block where its bytes are: in the pack, or in a range of a skyfile.
//!
//! **Hides**: the layout of rows, extras and tables. **Must never know**: what blocks mean, where skyfiles and packs lie on hosts.
//!
//! **Limits**: rows, skyfiles and bytes of extras fit 32 bits. [`PackBuilder`] keeps all nodes, and small leaves only as far
//! as they can still fit the room. [`PackIndex`] reads rows in place, so it costs the index bytes and the skyfile table.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

mod large;

pub use large::{LargeRow, PackDirectory, PackStream, RowCheck, RowSearch, SearchStep, range_row};

use super::build::{LeafRow, NodeBlock};
use super::car::{CarError, V2_PREFIX_BYTES, V2Header, encode_v1_header, frame_bytes, put_varint};
use crate::address::{Cid, Multihash, hash};
use crate::sector::SECTOR_BYTES;

/// The private codec of the index, and the index's first bytes as a varint.
pub const INDEX_CODEC: u64 = 0x30_534b;
const INDEX_CODEC_VARINT: [u8; 4] = [0xcb, 0xa6, 0xc1, 0x01];

/// Version of the index.
const INDEX_VERSION: u32 = 1;

// Offsets in the index, after the codec.
const HEADER_BYTES: usize = 32;
const FIRST_BYTE_TABLE_BYTES: usize = 256 * 4;
const ROWS_AT: usize = HEADER_BYTES + FIRST_BYTE_TABLE_BYTES;
/// Bytes of a row of an index.
pub const ROW_BYTES: usize = 64;
/// Bytes of a [`Key`].
pub const KEY_BYTES: usize = 36;
const SKYFILE_BYTES: usize = 56;
const PIECE_ROOT_BYTES: usize = 32;

const KIND_INLINE: u8 = 0;
const KIND_RANGE: u8 = 1;

/// What a pack cannot hold, or why bytes are not a pack.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PackError {
    #[error("the pack's CARv2 header: {0}")]
    Car(#[from] CarError),
    #[error("pack index version {0}; version {INDEX_VERSION} is known")]
    Version(u32),
    #[error("the pack index is broken: {0}")]
    Broken(&'static str),
    #[error("a skyfile reference is broken: {0}")]
    BadSkyfile(&'static str),
    #[error("a pack cannot hold this: {0}")]
    TooLarge(&'static str),
}

// ---------- skyfiles

/// A skyfile and what is needed to read it at once: in pins (`docs/formats.md` 6, where it is a DAG-CBOR map) and in packs.
///
/// What is parsed has passed [`SkyfileRef::check`].
// Fields stand in the order of canonical DAG-CBOR: by length of the key, then by its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SkyfileWire")]
pub struct SkyfileRef {
    /// Data pieces of a chunk; 0 for a small skyfile.
    pub k: u8,
    /// Parity pieces of a chunk; 0 for a small skyfile.
    pub m: u8,
    /// Small: where the content begins in the base sector. Large: 0.
    pub at: u32,
    /// Root of the base sector.
    #[serde(with = "serde_bytes")]
    pub root: [u8; 32],
    /// Bytes of the content.
    pub size: u64,
    /// Used bytes of the base sector.
    pub used: u32,
    /// 32 bytes a piece, k + m pieces a chunk; empty when small, or when only the base sector has them.
    #[serde(serialize_with = "serialize_bytes")]
    pub roots: Bytes,
}

/// As it comes in, not yet checked.
#[derive(Deserialize)]
struct SkyfileWire {
    k: u8,
    m: u8,
    at: u32,
    #[serde(with = "serde_bytes")]
    root: [u8; 32],
    size: u64,
    used: u32,
    roots: serde_bytes::ByteBuf,
}

impl TryFrom<SkyfileWire> for SkyfileRef {
    type Error = PackError;

    fn try_from(wire: SkyfileWire) -> Result<Self, PackError> {
        let SkyfileWire { k, m, at, root, size, used, roots } = wire;
        let skyfile = SkyfileRef { k, m, at, root, size, used, roots: roots.into_vec().into() };
        skyfile.check()?;
        Ok(skyfile)
    }
}

fn serialize_bytes<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

impl SkyfileRef {
    /// Whether the content lies in the base sector.
    pub fn is_small(&self) -> bool {
        self.k == 0
    }

    /// Chunks (slabs) of a large skyfile: k x 4 MiB of content each. 0 for a small one.
    pub fn chunk_count(&self) -> u64 {
        if self.is_small() { 0 } else { self.size.div_ceil(u64::from(self.k) * SECTOR_BYTES as u64) }
    }

    /// The piece roots of one chunk, data pieces first, if this reference has them.
    pub fn chunk_roots(&self, chunk_index: u64) -> Option<&[[u8; 32]]> {
        let pieces = self.piece_count();
        let (roots, _) = self.roots.as_chunks::<PIECE_ROOT_BYTES>();
        let start = usize::try_from(chunk_index).ok()?.checked_mul(pieces)?;
        if pieces == 0 { None } else { roots.get(start..start.checked_add(pieces)?) }
    }

    /// That its numbers can belong to one skyfile.
    pub fn check(&self) -> Result<(), PackError> {
        let fault = |what| Err(PackError::BadSkyfile(what));
        if self.used as usize > SECTOR_BYTES {
            return fault("it uses more than a sector");
        }
        if self.is_small() {
            if self.m != 0 || !self.roots.is_empty() {
                return fault("small, but with pieces");
            }
            if u64::from(self.at).checked_add(self.size).is_none_or(|end| end > u64::from(self.used)) {
                return fault("its content does not end in its base sector");
            }
            return Ok(());
        }
        if self.at != 0 {
            return fault("large, but with an offset in its base sector");
        }
        let all = (self.piece_count() * PIECE_ROOT_BYTES) as u64;
        if !self.roots.is_empty() && self.chunk_count().checked_mul(all) != Some(self.roots.len() as u64) {
            return fault("its piece roots are not those of its chunks");
        }
        Ok(())
    }

    fn piece_count(&self) -> usize {
        usize::from(self.k) + usize::from(self.m)
    }

    fn table_bytes(&self) -> usize {
        SKYFILE_BYTES + self.roots.len()
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), PackError> {
        let chunks_with_roots = if self.roots.is_empty() { 0 } else { self.chunk_count() };
        let chunks_with_roots = u32::try_from(chunks_with_roots).map_err(|_| PackError::TooLarge("a skyfile of 2^32 chunks"))?;
        out.extend_from_slice(&self.root);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.used.to_le_bytes());
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&[self.k, self.m, 0, 0]);
        out.extend_from_slice(&chunks_with_roots.to_le_bytes());
        out.extend_from_slice(&self.roots);
        Ok(())
    }

    /// Cuts one off the front of a table.
    fn parse(table: &mut Bytes) -> Result<SkyfileRef, PackError> {
        const SHORT: PackError = PackError::Broken("the skyfile table is cut short");
        if table.len() < SKYFILE_BYTES {
            return Err(SHORT);
        }
        let fixed = table.split_to(SKYFILE_BYTES);
        let [k, m, 0, 0] = fixed[48..52] else { return Err(PackError::Broken("a skyfile's zero bytes are not zero")) };
        let roots_bytes = u64::from(u32_at(&fixed, 52)) * (u64::from(k) + u64::from(m)) * PIECE_ROOT_BYTES as u64;
        let roots_bytes = usize::try_from(roots_bytes).ok().filter(|&bytes| bytes <= table.len()).ok_or(SHORT)?;
        let skyfile = SkyfileRef {
            k,
            m,
            at: u32_at(&fixed, 44),
            root: fixed[..32].try_into().expect("32 bytes"),
            size: u64_at(&fixed, 32),
            used: u32_at(&fixed, 40),
            roots: table.split_to(roots_bytes),
        };
        skyfile.check()?;
        if u32_at(&fixed, 52) != 0 && roots_bytes == 0 {
            return Err(PackError::BadSkyfile("chunks without pieces"));
        }
        Ok(skyfile)
    }
}

// ---------- keys

/// What rows are sorted by: 32 bytes of digest (or its stand-in), then the multihash code, big-endian so that comparing the
/// bytes compares the number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; KEY_BYTES]);

impl Key {
    /// `None` for what no pack holds: identity hashes (the CID has the bytes), and codes above 32 bits (no such hash is known).
    pub fn of(multihash: &Multihash) -> Option<Key> {
        let code = u32::try_from(multihash.code()).ok()?;
        if multihash.code() == hash::IDENTITY {
            return None;
        }
        let mut key = [0; KEY_BYTES];
        match <&[u8; 32]>::try_from(multihash.digest()) {
            Ok(digest) => key[..32].copy_from_slice(digest),
            Err(_) => key[..32].copy_from_slice(blake2b_256(&multihash.to_bytes()).as_bytes()),
        }
        key[32..].copy_from_slice(&code.to_be_bytes());
        Some(Key(key))
    }

    /// The key of a row as stored, where the code is little-endian.
    fn of_row(row: &[u8; ROW_BYTES]) -> Key {
        let mut key = [0; KEY_BYTES];
        key[..32].copy_from_slice(&row[..32]);
        key[32..].copy_from_slice(&u32_at(row, 32).to_be_bytes());
        Key(key)
    }
}

/// The 32 bytes under which packs and catalogs sort a block: its digest if that has 32 bytes, else `H(multihash bytes)`.
/// `None` for what no pack holds (identity hashes, codes above 32 bits). Hash functions share keys: compare [`Row::code`] too.
pub fn block_key(multihash: &Multihash) -> Option<[u8; 32]> {
    Key::of(multihash).map(|key| *key.0.first_chunk().expect("a key begins with 32 bytes"))
}

fn blake2b_256(bytes: &[u8]) -> blake2b_simd::Hash {
    blake2b_simd::Params::new().hash_length(32).hash(bytes)
}

// ---------- writing

/// Makes a pack. Nodes and leaves are given in any order, each kind in the order of the upload; what comes twice is kept once.
pub struct PackBuilder {
    room_bytes: u64,
    ids: HashMap<Key, u32>,
    /// By id, in the order in which blocks were first named.
    blocks: Vec<Block>,
    /// Ids of nodes and leaves, in the order in which they were given.
    nodes: Vec<u32>,
    leaves: Vec<u32>,
    extras: Extras,
    /// Bytes of the frames of the small leaves so far.
    small_bytes: u64,
}

#[derive(Default)]
struct Block {
    node: Option<Node>,
    leaf: Option<Leaf>,
}

struct Node {
    cid: Box<[u8]>,
    bytes: Vec<u8>,
    links: Vec<u32>,
}

struct Leaf {
    place: RangePlace,
    small: SmallLeaf,
}

/// A leaf's bytes, for those that may still be kept inline.
enum SmallLeaf {
    /// Too large to be kept inline.
    Large,
    /// Small, but it can no longer fit: no smaller leaf after it is kept inline either.
    TooLate,
    Kept {
        cid: Box<Cid>,
        data: Bytes,
    },
}

#[derive(Clone, Copy)]
struct RangePlace {
    skyfile_index: u32,
    offset: u64,
    data_len: u32,
    extras: ExtrasPlace,
}

impl PackBuilder {
    /// A pack that keeps small leaves inline while its content has at most `room_bytes`.
    pub fn new(room_bytes: u64) -> PackBuilder {
        PackBuilder {
            room_bytes,
            ids: HashMap::new(),
            blocks: Vec::new(),
            nodes: Vec::new(),
            leaves: Vec::new(),
            extras: Extras::default(),
            small_bytes: 0,
        }
    }

    /// A block that the pack itself must hold. An identity CID is passed over, for it holds its own bytes.
    pub fn node(&mut self, node: NodeBlock) -> Result<(), PackError> {
        let Some(id) = self.id_of(&node.cid)? else { return Ok(()) };
        if self.blocks[id as usize].node.is_some() {
            return Ok(());
        }
        if u32::try_from(node.bytes.len()).is_err() {
            return Err(PackError::TooLarge("a block of 4 GiB"));
        }
        let mut links = Vec::with_capacity(node.links.len());
        for cid in &node.links {
            links.extend(self.id_of(cid)?);
        }
        let cid = node.cid.to_bytes().into();
        self.blocks[id as usize].node = Some(Node { cid, bytes: node.bytes, links });
        self.nodes.push(id);
        Ok(())
    }

    /// A leaf whose file bytes begin at `offset` of the content of the skyfile with this index (in what
    /// [`PackBuilder::finish`] will be given).
    pub fn leaf(&mut self, leaf: LeafRow, skyfile_index: u32, offset: u64) -> Result<(), PackError> {
        let Some(id) = self.id_of(&leaf.cid)? else { return Ok(()) };
        if self.blocks[id as usize].leaf.is_some() {
            return Ok(());
        }
        let extras = self.extras.place(&leaf.prefix, &leaf.suffix)?;
        let small = match leaf.small {
            None => SmallLeaf::Large,
            Some(data) => {
                let block_bytes = leaf.prefix.len() + data.len() + leaf.suffix.len();
                self.small_bytes += frame_bytes(leaf.cid.encoded_len(), block_bytes);
                // The frames alone do not fit any more: these bytes cannot be needed, whatever else the pack will hold.
                match self.small_bytes <= self.room_bytes {
                    true => SmallLeaf::Kept { cid: Box::new(leaf.cid), data },
                    false => SmallLeaf::TooLate,
                }
            }
        };
        let place = RangePlace { skyfile_index, offset, data_len: leaf.data_len, extras };
        self.blocks[id as usize].leaf = Some(Leaf { place, small });
        self.leaves.push(id);
        Ok(())
    }

    /// The content of the pack. `roots` are the roots of its CAR; `skyfiles` what leaves' skyfile indexes count in.
    pub fn finish(mut self, roots: &[Cid], skyfiles: &[SkyfileRef]) -> Result<Vec<u8>, PackError> {
        self.check_leaves(skyfiles)?;
        let order = self.node_order(roots)?;
        let car_header = encode_v1_header(roots);
        let inline_until = self.choose_inline(&order, car_header.len(), skyfiles);

        let mut out = vec![0; V2_PREFIX_BYTES];
        out.extend_from_slice(&car_header);
        let mut rows = Vec::with_capacity(self.blocks.len());
        let keys = self.keys_by_id();
        for id in order {
            let node = self.blocks[id as usize].node.take().expect("the order holds nodes, each once");
            let offset = put_block(&mut out, &node.cid, &[&node.bytes]);
            rows.push((keys[id as usize], RowPlace::Inline { offset, len: node.bytes.len() as u32 }));
            self.blocks[id as usize].leaf = None;
        }
        for (index, &id) in self.leaves.iter().enumerate() {
            let Some(leaf) = &self.blocks[id as usize].leaf else { continue };
            let row = match &leaf.small {
                SmallLeaf::Kept { cid, data } if index < inline_until => {
                    let (prefix, suffix) = self.extras.parts(leaf.place.extras);
                    let offset = put_block(&mut out, &cid.to_bytes(), &[prefix, data, suffix]);
                    RowPlace::Inline { offset, len: (prefix.len() + data.len() + suffix.len()) as u32 }
                }
                _ => RowPlace::Range(leaf.place),
            };
            rows.push((keys[id as usize], row));
        }
        let index_offset = out.len() as u64;
        let header = V2Header {
            characteristics: [0; 16],
            data_offset: V2_PREFIX_BYTES as u64,
            data_bytes: index_offset - V2_PREFIX_BYTES as u64,
            index_offset,
        };
        out[..V2_PREFIX_BYTES].copy_from_slice(&header.encode());
        self.put_index(&mut out, rows, skyfiles)?;
        Ok(out)
    }

    /// The id of a block, given at its first mention. `None` for identity CIDs.
    fn id_of(&mut self, cid: &Cid) -> Result<Option<u32>, PackError> {
        let Some(key) = Key::of(cid.hash()) else {
            return if cid.hash().code() == hash::IDENTITY {
                Ok(None)
            } else {
                Err(PackError::TooLarge("a multihash code above 32 bits"))
            };
        };
        let next = u32::try_from(self.blocks.len()).map_err(|_| PackError::TooLarge("2^32 blocks"))?;
        let id = *self.ids.entry(key).or_insert(next);
        if id == next {
            self.blocks.push(Block::default());
        }
        Ok(Some(id))
    }

    fn keys_by_id(&self) -> Vec<Key> {
        let mut keys = vec![Key([0; KEY_BYTES]); self.blocks.len()];
        for (key, &id) in &self.ids {
            keys[id as usize] = *key;
        }
        keys
    }

    fn check_leaves(&self, skyfiles: &[SkyfileRef]) -> Result<(), PackError> {
        for skyfile in skyfiles {
            skyfile.check()?;
        }
        for leaf in self.leaves.iter().filter_map(|&id| self.blocks[id as usize].leaf.as_ref()) {
            let Some(skyfile) = skyfiles.get(leaf.place.skyfile_index as usize) else {
                return Err(PackError::Broken("a leaf in a skyfile that was not given"));
            };
            if !ends_within(leaf.place.offset, leaf.place.data_len, skyfile.size) {
                return Err(PackError::Broken("a leaf behind the end of its skyfile"));
            }
        }
        Ok(())
    }

    /// Nodes depth first from the roots in link order, each once; then those that no root leads to, in the order given.
    fn node_order(&mut self, roots: &[Cid]) -> Result<Vec<u32>, PackError> {
        let mut seen = vec![false; self.blocks.len()];
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut stack = Vec::new();
        for root in roots {
            stack.extend(Key::of(root.hash()).and_then(|key| self.ids.get(&key).copied()));
            while let Some(id) = stack.pop() {
                let Some(node) = &self.blocks[id as usize].node else { continue };
                if !std::mem::replace(&mut seen[id as usize], true) {
                    order.push(id);
                    stack.extend(node.links.iter().rev().filter(|&&link| !seen[link as usize]));
                }
            }
        }
        order.extend(self.nodes.iter().filter(|&&id| !seen[id as usize]));
        Ok(order)
    }

    /// Which small leaves are kept inline: those before this index of `leaves`, the first one with which the pack would have
    /// more than `room_bytes`. The extras of all leaves are counted; a leaf that is a node as well is inline already, but counts.
    fn choose_inline(&self, order: &[u32], car_header_bytes: usize, skyfiles: &[SkyfileRef]) -> usize {
        let nodes = order.iter().filter_map(|&id| self.blocks[id as usize].node.as_ref());
        let node_bytes: u64 = nodes.map(|node| frame_bytes(node.cid.len(), node.bytes.len())).sum();
        let leaf_rows = self.leaves.iter().filter(|&&id| self.blocks[id as usize].node.is_none()).count();
        let mut bytes = (V2_PREFIX_BYTES + car_header_bytes + INDEX_CODEC_VARINT.len() + ROWS_AT) as u64
            + node_bytes
            + (ROW_BYTES * (order.len() + leaf_rows)) as u64
            + skyfiles.iter().map(|skyfile| skyfile.table_bytes() as u64).sum::<u64>()
            + self.extras.bytes.len() as u64;
        for (index, &id) in self.leaves.iter().enumerate() {
            let leaf = self.blocks[id as usize].leaf.as_ref().expect("ids in `leaves` have leaves");
            match &leaf.small {
                SmallLeaf::Large => {}
                SmallLeaf::TooLate => return index,
                SmallLeaf::Kept { cid, data } => {
                    bytes += frame_bytes(cid.encoded_len(), data.len() + leaf.place.extras.len());
                    if bytes > self.room_bytes {
                        return index;
                    }
                }
            }
        }
        self.leaves.len()
    }

    fn put_index(&self, out: &mut Vec<u8>, mut rows: Vec<(Key, RowPlace)>, skyfiles: &[SkyfileRef]) -> Result<(), PackError> {
        rows.sort_unstable_by_key(|(key, _)| *key);
        let row_count = u32::try_from(rows.len()).map_err(|_| PackError::TooLarge("2^32 rows"))?;
        let skyfile_count = u32::try_from(skyfiles.len()).map_err(|_| PackError::TooLarge("2^32 skyfiles"))?;
        let mut extras = Extras::default();
        let mut row_bytes = Vec::with_capacity(rows.len() * ROW_BYTES);
        let mut counts = [0u32; 256];
        for (key, place) in &rows {
            counts[usize::from(key.0[0])] += 1;
            put_row(&mut row_bytes, key, place, &self.extras, &mut extras)?;
        }
        let mut table = Vec::new();
        for skyfile in skyfiles {
            skyfile.put(&mut table)?;
        }
        put_index_start(out, skyfile_count, extras.bytes.len() as u32, table.len() as u64, &counts);
        debug_assert_eq!(counts.iter().sum::<u32>(), row_count);
        out.extend_from_slice(&row_bytes);
        out.extend_from_slice(&table);
        out.extend_from_slice(&extras.bytes);
        Ok(())
    }
}

/// Appends what stands before the rows of an index. `counts` are the rows of each first byte.
fn put_index_start(out: &mut Vec<u8>, skyfile_count: u32, extras_bytes: u32, table_bytes: u64, counts: &[u32; 256]) {
    put_varint(out, INDEX_CODEC);
    out.extend_from_slice(&INDEX_VERSION.to_le_bytes());
    out.extend_from_slice(&counts.iter().sum::<u32>().to_le_bytes());
    out.extend_from_slice(&skyfile_count.to_le_bytes());
    out.extend_from_slice(&extras_bytes.to_le_bytes());
    out.extend_from_slice(&table_bytes.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    let mut sum = 0;
    for count in counts {
        sum += count;
        out.extend_from_slice(&sum.to_le_bytes());
    }
}

enum RowPlace {
    Inline { offset: u64, len: u32 },
    Range(RangePlace),
}

/// Appends a frame; gives the offset of the block's first byte.
fn put_block(out: &mut Vec<u8>, cid: &[u8], parts: &[&[u8]]) -> u64 {
    let block_bytes: usize = parts.iter().map(|part| part.len()).sum();
    put_varint(out, (cid.len() + block_bytes) as u64);
    out.extend_from_slice(cid);
    let offset = out.len() as u64;
    parts.iter().for_each(|part| out.extend_from_slice(part));
    offset
}

/// Appends a row; extras of ranges move from where they were collected to where they are written, first come first.
fn put_row(out: &mut Vec<u8>, key: &Key, place: &RowPlace, from: &Extras, to: &mut Extras) -> Result<(), PackError> {
    let (kind, skyfile_index, len, offset, extras) = match *place {
        RowPlace::Inline { offset, len } => (KIND_INLINE, 0, len, offset, ExtrasPlace::default()),
        RowPlace::Range(range) => {
            let (prefix, suffix) = from.parts(range.extras);
            (KIND_RANGE, range.skyfile_index, range.data_len, range.offset, to.place(prefix, suffix)?)
        }
    };
    let code = u32::from_be_bytes(key.0[32..].try_into().expect("four bytes"));
    out.extend_from_slice(&key.0[..32]);
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&[kind, extras.prefix_len, extras.suffix_len, 0]);
    out.extend_from_slice(&skyfile_index.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&extras.at.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    Ok(())
}

/// Prefixes and suffixes, equal ones once: all full leaves of a file have the same.
#[derive(Default)]
struct Extras {
    bytes: Vec<u8>,
    known: HashMap<Box<[u8]>, u32>,
}

#[derive(Clone, Copy, Default)]
struct ExtrasPlace {
    at: u32,
    prefix_len: u8,
    suffix_len: u8,
}

impl Extras {
    fn place(&mut self, prefix: &[u8], suffix: &[u8]) -> Result<ExtrasPlace, PackError> {
        const LONG: PackError = PackError::TooLarge("a prefix or suffix of more than 255 bytes");
        let prefix_len = u8::try_from(prefix.len()).map_err(|_| LONG)?;
        let suffix_len = u8::try_from(suffix.len()).map_err(|_| LONG)?;
        if prefix_len == 0 && suffix_len == 0 {
            return Ok(ExtrasPlace::default());
        }
        let both = [prefix, suffix].concat();
        let at = match self.known.get(both.as_slice()) {
            Some(&at) => at,
            None => {
                let at = u32::try_from(self.bytes.len()).map_err(|_| PackError::TooLarge("4 GiB of extras"))?;
                self.bytes.extend_from_slice(&both);
                self.known.insert(both.into(), at);
                at
            }
        };
        Ok(ExtrasPlace { at, prefix_len, suffix_len })
    }

    fn parts(&self, place: ExtrasPlace) -> (&[u8], &[u8]) {
        let at = place.at as usize;
        self.bytes[at..at + place.len()].split_at(usize::from(place.prefix_len))
    }
}

impl ExtrasPlace {
    fn len(self) -> usize {
        usize::from(self.prefix_len) + usize::from(self.suffix_len)
    }
}

// ---------- reading

/// Where the parts of a pack lie, from its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackHead {
    /// The CARv1 payload.
    pub payload: Range<u64>,
    /// The index, with its codec.
    pub index: Range<u64>,
}

impl PackHead {
    /// How many bytes of a pack [`PackHead::parse`] needs.
    pub const BYTES: usize = V2_PREFIX_BYTES;

    /// Reads the first [`PackHead::BYTES`] bytes of a pack whose content has `pack_bytes`.
    pub fn parse(start: &[u8], pack_bytes: u64) -> Result<PackHead, PackError> {
        let header = V2Header::parse(start)?;
        let payload = header.data_offset..header.data_offset + header.data_bytes;
        if header.characteristics != [0; 16] || payload.start != V2_PREFIX_BYTES as u64 || header.index_offset != payload.end {
            return Err(PackError::Broken("a CARv2 of another shape than packs have"));
        }
        let index = payload.end..pack_bytes;
        if index.end.checked_sub(index.start).is_none_or(|bytes| bytes < (INDEX_CODEC_VARINT.len() + ROWS_AT) as u64) {
            return Err(PackError::Broken("the pack ends before its index does"));
        }
        Ok(PackHead { payload, index })
    }
}

/// Where a block's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the pack itself.
    Inline { offset: u64, len: u32 },
    /// block = prefix || `len` bytes from `offset` of the skyfile's content || suffix.
    Range { skyfile_index: u32, offset: u64, len: u32, prefix: Bytes, suffix: Bytes },
}

/// A row of an index.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// The digest if it has 32 bytes, else `H(multihash bytes)`.
    pub key: [u8; 32],
    /// Multihash code.
    pub code: u32,
    pub place: Place,
}

impl Row {
    /// Bytes of the block.
    pub fn block_bytes(&self) -> u64 {
        match &self.place {
            Place::Inline { len, .. } => u64::from(*len),
            Place::Range { len, prefix, suffix, .. } => prefix.len() as u64 + u64::from(*len) + suffix.len() as u64,
        }
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({:#x} {} {:?})", self.code, hex::encode(self.key), self.place)
    }
}

/// The index of a pack: checked once as a whole, then read in place.
#[derive(Clone)]
pub struct PackIndex {
    rows: Bytes,
    first_byte_table: Bytes,
    extras: Bytes,
    skyfiles: Vec<SkyfileRef>,
}

impl PackIndex {
    /// Takes the index bytes (from the codec to the end of the pack) of a pack with this head and checks all of them:
    /// order, tables, and that every row points into the payload, or into its skyfile and the extras.
    pub fn parse(head: &PackHead, index: Bytes) -> Result<PackIndex, PackError> {
        if !index.starts_with(&INDEX_CODEC_VARINT) {
            return Err(PackError::Broken("it does not begin with the codec of pack indexes"));
        }
        let body = index.slice(INDEX_CODEC_VARINT.len()..);
        if body.len() < 4 {
            return Err(PackError::Broken("it is cut short"));
        }
        if u32_at(&body, 0) != INDEX_VERSION {
            return Err(PackError::Version(u32_at(&body, 0)));
        }
        if body.len() < ROWS_AT {
            return Err(PackError::Broken("it is cut short"));
        }
        let (row_count, skyfile_count) = (u32_at(&body, 4), u32_at(&body, 8));
        let (extras_bytes, table_bytes) = (u64::from(u32_at(&body, 12)), u64_at(&body, 16));
        let rows_end = ROWS_AT as u64 + ROW_BYTES as u64 * u64::from(row_count);
        let table_end = rows_end.checked_add(table_bytes);
        if u64_at(&body, 24) != 0 || table_end.and_then(|end| end.checked_add(extras_bytes)) != Some(body.len() as u64) {
            return Err(PackError::Broken("its parts do not add up to its length"));
        }
        // Both ends lie inside `body`, whose length is a usize.
        let (rows_end, table_end) = (rows_end as usize, rows_end as usize + table_bytes as usize);
        let parsed = PackIndex {
            rows: body.slice(ROWS_AT..rows_end),
            first_byte_table: body.slice(HEADER_BYTES..ROWS_AT),
            extras: body.slice(table_end..),
            skyfiles: parse_skyfiles(body.slice(rows_end..table_end), skyfile_count)?,
        };
        parsed.check_rows(&head.payload)?;
        Ok(parsed)
    }

    /// Finds and takes the index in the whole content of a pack.
    pub fn from_pack(content: &Bytes) -> Result<PackIndex, PackError> {
        let head = PackHead::parse(content, content.len() as u64)?;
        // `parse` has made sure that the index begins inside the content.
        PackIndex::parse(&head, content.slice(head.index.start as usize..))
    }

    /// The row of a block.
    pub fn lookup(&self, multihash: &Multihash) -> Option<Row> {
        let key = Key::of(multihash)?;
        let first = usize::from(key.0[0]);
        let start = if first == 0 { 0 } else { self.rows_up_to(first - 1) };
        let rows = &self.raw_rows()[start..self.rows_up_to(first)];
        let found = rows.binary_search_by(|row| Key::of_row(row).cmp(&key)).ok()?;
        Some(self.row(&rows[found]))
    }

    /// All rows, sorted by key, then code.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row> + '_ {
        self.raw_rows().iter().map(|row| self.row(row))
    }

    /// How many blocks the pack knows.
    pub fn row_count(&self) -> usize {
        self.raw_rows().len()
    }

    /// The skyfiles that rows point into, by their indexes.
    pub fn skyfiles(&self) -> &[SkyfileRef] {
        &self.skyfiles
    }

    /// Memory that it keeps alive, for caches that count.
    pub fn memory_bytes(&self) -> usize {
        let roots: usize = self.skyfiles.iter().map(|skyfile| skyfile.roots.len() + size_of::<SkyfileRef>()).sum();
        size_of::<PackIndex>() + self.rows.len() + self.first_byte_table.len() + self.extras.len() + roots
    }

    fn raw_rows(&self) -> &[[u8; ROW_BYTES]] {
        self.rows.as_chunks().0
    }

    /// Rows whose first byte is at most this; the table has been checked against the rows.
    fn rows_up_to(&self, first_byte: usize) -> usize {
        u32_at(&self.first_byte_table, 4 * first_byte) as usize
    }

    fn row(&self, row: &[u8; ROW_BYTES]) -> Row {
        let (offset, len) = (u64_at(row, 48), u32_at(row, 44));
        let place = if row[36] == KIND_INLINE {
            Place::Inline { offset, len }
        } else {
            let at = u32_at(row, 56) as usize;
            let middle = at + usize::from(row[37]);
            let (prefix, suffix) = (self.extras.slice(at..middle), self.extras.slice(middle..middle + usize::from(row[38])));
            Place::Range { skyfile_index: u32_at(row, 40), offset, len, prefix, suffix }
        };
        Row { key: row[..32].try_into().expect("32 bytes"), code: u32_at(row, 32), place }
    }

    fn check_rows(&self, payload: &Range<u64>) -> Result<(), PackError> {
        let mut counts = [0u32; 256];
        for row in self.raw_rows() {
            counts[usize::from(row[0])] += 1;
            check_row(row, payload, &self.skyfiles, self.extras.len() as u64)?;
        }
        let is_sorted = self.raw_rows().windows(2).all(|pair| Key::of_row(&pair[0]).cmp(&Key::of_row(&pair[1])) == Ordering::Less);
        if !is_sorted {
            return Err(PackError::Broken("its rows are not sorted, or one stands twice"));
        }
        let mut sum = 0;
        for (byte, count) in counts.into_iter().enumerate() {
            sum += count as usize;
            if self.rows_up_to(byte) != sum {
                return Err(PackError::Broken("its first-byte table does not count its rows"));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PackIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackIndex").field("rows", &self.row_count()).field("skyfiles", &self.skyfiles.len()).finish_non_exhaustive()
    }
}

/// That a row points into the payload, or into its skyfile and the extras.
fn check_row(row: &[u8; ROW_BYTES], payload: &Range<u64>, skyfiles: &[SkyfileRef], extras_bytes: u64) -> Result<(), PackError> {
    let (offset, len, extras_at) = (u64_at(row, 48), u32_at(row, 44), u32_at(row, 56));
    let extras_len = u32::from(row[37]) + u32::from(row[38]);
    if row[39] != 0 || u32_at(row, 60) != 0 || u64::from(u32_at(row, 32)) == hash::IDENTITY {
        return Err(PackError::Broken("a row's zero bytes are not zero, or it is of an identity hash"));
    }
    match row[36] {
        KIND_INLINE if extras_len != 0 || extras_at != 0 || u32_at(row, 40) != 0 => {
            Err(PackError::Broken("an inline row has fields of a range"))
        }
        KIND_INLINE if offset < payload.start || !ends_within(offset, len, payload.end) => {
            Err(PackError::Broken("an inline row lies outside the payload"))
        }
        KIND_INLINE => Ok(()),
        KIND_RANGE => {
            let Some(skyfile) = skyfiles.get(u32_at(row, 40) as usize) else {
                return Err(PackError::Broken("a row names a skyfile that is not in the table"));
            };
            if !ends_within(offset, len, skyfile.size) {
                return Err(PackError::Broken("a row's range ends behind its skyfile"));
            }
            let is_misplaced = extras_len == 0 && extras_at != 0;
            if is_misplaced || !ends_within(u64::from(extras_at), extras_len, extras_bytes) {
                return Err(PackError::Broken("a row's prefix or suffix lies outside the extras"));
            }
            Ok(())
        }
        _ => Err(PackError::Broken("a row of unknown kind")),
    }
}

fn parse_skyfiles(mut table: Bytes, count: u32) -> Result<Vec<SkyfileRef>, PackError> {
    // Nothing is reserved by the claimed count: each needs its own bytes in the table.
    let mut skyfiles = Vec::new();
    for _ in 0..count {
        skyfiles.push(SkyfileRef::parse(&mut table)?);
    }
    if table.is_empty() { Ok(skyfiles) } else { Err(PackError::Broken("bytes follow the skyfile table's last row")) }
}

fn ends_within(offset: u64, len: u32, end: u64) -> bool {
    offset.checked_add(u64::from(len)).is_some_and(|last| last <= end)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Foreign bytes as a pack, whole and by its directory: what both take gives the same rows. Nothing here may panic.
pub fn fuzz(bytes: &[u8]) {
    let content = Bytes::copy_from_slice(bytes);
    let whole = PackIndex::from_pack(&content);
    let Ok(head) = PackHead::parse(&content, content.len() as u64) else { return };
    let start = content.slice(head.index.start as usize..);
    let table = PackDirectory::table(&head, &start[..start.len().min(PackDirectory::START_BYTES)]);
    let directory =
        table.and_then(|table| PackDirectory::parse(&head, &start, content.slice(table.start as usize..table.end as usize)));
    if let Ok(directory) = &directory {
        let rows = content.slice(directory.rows().start as usize..directory.rows().end as usize);
        let mut check = directory.check_rows();
        let right = check.push(&rows).and_then(|()| check.finish());
        assert_eq!(right.is_ok(), whole.is_ok(), "both ways of reading take the same packs");
        let known = rows
            .as_chunks::<ROW_BYTES>()
            .0
            .iter()
            .take(3)
            .filter_map(|row| Multihash::wrap(u32_at(row, 32).into(), &row[..32]).ok());
        let unknown = Multihash::wrap(hash::SHA2_256, &[7; 32]).expect("32 bytes");
        for multihash in known.chain([unknown]) {
            let Some(mut search) = directory.search(&multihash) else { continue };
            let (mut step, mut steps) = (Ok(search.step()), 0);
            while let Ok(SearchStep::Need(range)) = step {
                steps += 1;
                assert!(steps <= large::SEARCH_STEPS_MAX + 1, "a search ends");
                step = search.give(&content[range.start as usize..range.end as usize]);
            }
            if let Ok(whole) = &whole {
                assert_eq!(whole.lookup(&multihash).is_some(), matches!(step, Ok(SearchStep::Found(_))));
            }
        }
    }
    if let Ok(index) = &whole {
        assert!(directory.is_ok());
        assert_eq!(index.rows().count(), index.row_count());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ring::digest::{SHA256, digest};

    use super::*;
    use crate::address::{cid_v1, codec};
    use crate::tree::build::{BlockSink, Built, FileBuilder, Profile, SMALL_LEAF_BYTES, TreeBuilder};
    use crate::tree::car::{CarDecoder, CarItem};

    /// What a build hands on, and the content of the one skyfile that holds the files one after another.
    #[derive(Default)]
    struct Upload {
        content: Vec<u8>,
        file_starts: u64,
        nodes: Vec<NodeBlock>,
        leaves: Vec<(LeafRow, u64)>,
    }

    impl BlockSink for Upload {
        fn leaf(&mut self, leaf: LeafRow) {
            let offset = self.file_starts + leaf.file_offset;
            self.leaves.push((leaf, offset));
        }

        fn node(&mut self, node: NodeBlock) {
            self.nodes.push(node);
        }
    }

    fn upload(profile: Profile, files: &[(&str, &[u8])]) -> (Upload, Built) {
        let mut upload = Upload::default();
        let mut tree = TreeBuilder::new(profile);
        for (path, bytes) in files {
            upload.file_starts = upload.content.len() as u64;
            upload.content.extend_from_slice(bytes);
            let mut file = FileBuilder::new(profile);
            file.push(bytes, &mut upload);
            let built = file.finish(&mut upload);
            tree.file(path, built, &mut upload).unwrap();
        }
        let root = tree.finish(&mut upload).unwrap();
        (upload, root)
    }

    fn large_skyfile(size: u64) -> SkyfileRef {
        let chunks = size.div_ceil(6 * SECTOR_BYTES as u64) as usize;
        let roots: Vec<u8> = (0..chunks * 9 * 32).map(|i| i as u8).collect();
        SkyfileRef { k: 6, m: 3, at: 0, root: [0xaa; 32], size, used: 1000, roots: roots.into() }
    }

    fn pack(upload: &Upload, root: &Cid, room_bytes: u64) -> Bytes {
        let mut builder = PackBuilder::new(room_bytes);
        upload.nodes.iter().for_each(|node| builder.node(node.clone()).unwrap());
        upload.leaves.iter().for_each(|(leaf, offset)| builder.leaf(leaf.clone(), 0, *offset).unwrap());
        builder.finish(&[*root], &[large_skyfile(upload.content.len() as u64)]).unwrap().into()
    }

    /// The block of a row, from the pack or the skyfile.
    fn block(row: &Row, pack: &[u8], content: &[u8]) -> Vec<u8> {
        let part = |bytes: &[u8], offset: u64, len: u32| bytes[offset as usize..][..len as usize].to_vec();
        match &row.place {
            Place::Inline { offset, len } => part(pack, *offset, *len),
            Place::Range { skyfile_index: 0, offset, len, prefix, suffix } => {
                [prefix.to_vec(), part(content, *offset, *len), suffix.to_vec()].concat()
            }
            Place::Range { .. } => panic!("no such skyfile"),
        }
    }

    /// Blocks inline in the CAR, in their order, as any reader of CARs finds them.
    fn car_blocks(pack: &[u8]) -> (Vec<Cid>, Vec<Cid>) {
        let mut decoder = CarDecoder::new();
        decoder.push(pack);
        let (mut roots, mut cids) = (Vec::new(), Vec::new());
        while let Some(item) = decoder.next_item().unwrap() {
            match item {
                CarItem::Roots(found) => roots = found,
                CarItem::Block { cid, bytes, .. } => {
                    assert_eq!(digest(&SHA256, &bytes).as_ref(), cid.hash().digest());
                    cids.push(cid);
                }
            }
        }
        decoder.finish().unwrap();
        (roots, cids)
    }

    fn site() -> Vec<(&'static str, &'static [u8])> {
        static LARGE: [u8; 600_000] = [5; 600_000];
        vec![
            ("a.txt", b"a\n"),
            ("copy/a.txt", b"a\n"),
            ("copy/empty", b""),
            ("deep/er/large.bin", &LARGE),
            ("z", &LARGE[..SMALL_LEAF_BYTES]),
        ]
    }

    #[test]
    fn every_block_is_found_and_right() {
        for profile in Profile::ALL {
            let (upload, root) = upload(profile, &site());
            let mut sizes = Vec::new();
            for room in [0, 2_000, 10_000, 1 << 22] {
                let pack = pack(&upload, &root.cid, room);
                let index = PackIndex::from_pack(&pack).unwrap();
                let cids = upload.nodes.iter().map(|node| node.cid).chain(upload.leaves.iter().map(|(leaf, _)| leaf.cid));
                let distinct: BTreeMap<_, _> = cids.map(|cid| (cid.hash().to_bytes(), cid)).collect();
                assert_eq!(index.row_count(), distinct.len());
                for cid in distinct.values() {
                    let row = index.lookup(cid.hash()).unwrap();
                    let block = block(&row, &pack, &upload.content);
                    assert_eq!(digest(&SHA256, &block).as_ref(), cid.hash().digest());
                    assert_eq!(row.block_bytes(), block.len() as u64);
                }
                assert_eq!(index.rows().len(), distinct.len());
                assert!(index.lookup(cid_v1(codec::RAW, [3; 32]).hash()).is_none());
                let (roots, _) = car_blocks(&pack);
                assert_eq!(roots, [root.cid]);
                sizes.push(pack.len() as u64);
                let without_leaves = sizes[0];
                assert!(pack.len() as u64 <= room.max(without_leaves), "{profile}: {} in {room}", pack.len());
            }
            assert!(sizes[3] > SMALL_LEAF_BYTES as u64, "{profile}: the small leaves are inline");
            assert_eq!(sizes[1], sizes[0], "{profile}: nothing fits 2,000 bytes");
        }
    }

    #[test]
    fn nodes_come_depth_first_then_leaves_until_the_first_that_does_not_fit() {
        let files: [(&str, &[u8]); 5] = [("a", b"1"), ("b/x", &[2; 9000]), ("b/y", b"3"), ("c/d/e", b"4"), ("f", b"1")];
        let (upload, root) = upload(Profile::default(), &files);
        // Children are handed on before parents: b, c/d, c, root.
        let [b, d, c, top] = upload.nodes.iter().map(|node| node.cid).collect::<Vec<_>>()[..] else { panic!() };
        let [one, two, three, four, _] = upload.leaves.iter().map(|(leaf, _)| leaf.cid).collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!(root.cid, top);
        assert_eq!(car_blocks(&pack(&upload, &top, 1 << 20)).1, [top, b, c, d, one, two, three, four]);
        let bare = pack(&upload, &top, 0);
        assert_eq!(car_blocks(&bare).1, [top, b, c, d]);
        // `two` does not fit, so nothing after it is taken either, though it would fit.
        assert_eq!(car_blocks(&pack(&upload, &top, bare.len() as u64 + 1000)).1, [top, b, c, d, one]);
        // To the byte: a frame of `one` is a length, a CID and one byte.
        assert_eq!(car_blocks(&pack(&upload, &top, bare.len() as u64 + 37)).1, [top, b, c, d]);
        assert_eq!(car_blocks(&pack(&upload, &top, bare.len() as u64 + 38)).1, [top, b, c, d, one]);
    }

    #[test]
    fn packs_are_deterministic_and_take_any_order() {
        let (upload, root) = upload(Profile::UnixfsV0_2015, &site());
        let expect = pack(&upload, &root.cid, 1 << 22);
        let mut builder = PackBuilder::new(1 << 22);
        upload.leaves.iter().for_each(|(leaf, offset)| builder.leaf(leaf.clone(), 0, *offset).unwrap());
        upload.nodes.iter().rev().chain(&upload.nodes).for_each(|node| builder.node(node.clone()).unwrap());
        let again = builder.finish(&[root.cid], &[large_skyfile(upload.content.len() as u64)]).unwrap();
        assert_eq!(expect, again);
    }

    #[test]
    fn golden_pack() {
        let (upload, root) = upload(Profile::UnixfsV0_2015, &site());
        assert_eq!(root.cid.to_string(), GOLDEN_ROOT);
        for (room, bytes, hash) in GOLDEN {
            let pack = pack(&upload, &root.cid, room);
            assert_eq!((pack.len(), blake2b_256(&pack).to_hex().as_str()), (bytes, hash), "room {room}");
        }
        let bare = pack(&upload, &root.cid, 0);
        assert_eq!(hex::encode(&bare[..PackHead::BYTES + 59]), GOLDEN_START);
        let head = PackHead::parse(&bare, bare.len() as u64).unwrap();
        let index = &bare[head.index.start as usize..];
        assert_eq!(hex::encode(&index[..36]), GOLDEN_INDEX_START);
        assert_eq!(hex::encode(&index[4 + ROWS_AT..][..2 * ROW_BYTES]), GOLDEN_ROWS);
    }

    const GOLDEN_ROOT: &str = "QmZK1vurZiep2SW2WEeMfrw1cRLAtvE4BzP9aMuR5u6vAx";
    /// Room, bytes of the pack, its BLAKE2b-256. A reader written after `docs/formats.md` alone has read both.
    const GOLDEN: [(u64, usize, &str); 2] = [
        (0, 2_933, "74b2da99d64323991d2936dd55c827c96db073de1f91f422a5f75b051631a931"),
        (1 << 22, 35_810, "82cb9cd479fae2e7eae98357b54647bcad208228dc2fd3ab9f34db98d7ee66fa"),
    ];
    const GOLDEN_START: &str = concat!(
        "0aa16776657273696f6e02",
        "00000000000000000000000000000000",
        "3300000000000000",
        "0e03000000000000",
        "4103000000000000",
        "38a265726f6f747381d82a5823001220a3056394bfd87677db0b9d8d0782b82ddb5334221131226ae615e15f1933c13d6776657273696f6e01",
        "e001"
    );
    /// Codec, then version, rows, skyfiles, bytes of extras, bytes of the skyfile table, zero.
    const GOLDEN_INDEX_START: &str =
        concat!("cba6c101", "01000000", "0a000000", "01000000", "38000000", "5801000000000000", "0000000000000000");
    /// An inline row and the row of a range with extras.
    const GOLDEN_ROWS: &str = concat!(
        "2345fa61788e3c2b6c0b73113c4293ccc8282ea38ee6309474ddf0ad2156dbf0",
        "12000000",
        "00000000",
        "00000000",
        "62000000",
        "7201000000000000",
        "00000000",
        "00000000",
        "9074ad52a17fa536ddcd6798c4399c1474479593008c7016c2f18c871bba5b3d",
        "12000000",
        "010a0400",
        "00000000",
        "c0270100",
        "0400080000000000",
        "00000000",
        "00000000",
    );

    #[test]
    fn blocks_of_other_hashes_and_no_hash() {
        let other = |code: u64, digest: &[u8]| Cid::new_v1(codec::RAW, Multihash::wrap(code, digest).unwrap());
        let node = |cid, bytes: &[u8]| NodeBlock { cid, bytes: bytes.to_vec(), links: vec![] };
        let (sha512, identity, short) = (other(0x13, &[1; 64]), other(0, b"inside"), other(0x12, &[9; 20]));
        let same_digest = [other(0x12, &[7; 32]), other(0xb220, &[7; 32]), other(0x1e, &[7; 32])];
        let mut builder = PackBuilder::new(0);
        for cid in [sha512, identity, short].into_iter().chain(same_digest) {
            builder.node(node(cid, &cid.to_bytes())).unwrap();
        }
        assert!(builder.node(node(other(1 << 32, &[1; 32]), b"")).is_err());
        // Roots that the pack does not hold are still the roots of its CAR; nodes that no root leads to come as given.
        let pack: Bytes = builder.finish(&[identity], &[]).unwrap().into();
        let head = PackHead::parse(&pack, pack.len() as u64).unwrap();
        assert!(head.payload.end > head.payload.start);
        let index = PackIndex::from_pack(&pack).unwrap();
        assert_eq!(index.row_count(), 5);
        for cid in [sha512, short].into_iter().chain(same_digest) {
            let row = index.lookup(cid.hash()).unwrap();
            assert_eq!(block_key(cid.hash()), Some(row.key));
            assert_eq!((u64::from(row.code), block(&row, &pack, b"")), (cid.hash().code(), cid.to_bytes()));
        }
        assert_eq!((index.lookup(identity.hash()), block_key(identity.hash())), (None, None));
        assert!(index.lookup(&Multihash::wrap(0xd5, &[7; 32]).unwrap()).is_none());
        let empty: Bytes = PackBuilder::new(0).finish(&[], &[]).unwrap().into();
        assert_eq!(PackIndex::from_pack(&empty).unwrap().row_count(), 0);
    }

    #[test]
    fn leaves_must_lie_in_their_skyfiles() {
        let (upload, root) = upload(Profile::default(), &[("a", b"abc")]);
        let try_with = |skyfile_index, offset| {
            let mut builder = PackBuilder::new(0);
            upload.leaves.iter().for_each(|(leaf, _)| builder.leaf(leaf.clone(), skyfile_index, offset).unwrap());
            builder.finish(&[root.cid], &[large_skyfile(4)])
        };
        assert!(try_with(0, 1).is_ok());
        for (skyfile_index, offset) in [(1, 0), (0, 2), (0, u64::MAX)] {
            assert!(matches!(try_with(skyfile_index, offset), Err(PackError::Broken(_))), "{skyfile_index} {offset}");
        }
    }

    /// Writes over some bytes of a good pack; the error it must give.
    #[test]
    fn broken_indexes() {
        let (upload, root) = upload(Profile::UnixfsV0_2015, &site());
        let pack = pack(&upload, &root.cid, 0);
        let head = PackHead::parse(&pack, pack.len() as u64).unwrap();
        let body = head.index.start as usize + 4;
        let rows = PackIndex::from_pack(&pack).unwrap().rows().collect::<Vec<_>>();
        let row_at = |is: fn(&Row) -> bool| body + ROWS_AT + ROW_BYTES * rows.iter().position(is).unwrap();
        let range = row_at(|row| matches!(&row.place, Place::Range { prefix, .. } if !prefix.is_empty()));
        let inline = row_at(|row| matches!(row.place, Place::Inline { .. }));
        let table = body + ROWS_AT + ROW_BYTES * rows.len();
        let check = |at: usize, bytes: &[u8], expect: &str| {
            let mut wrong = pack.to_vec();
            wrong[at..at + bytes.len()].copy_from_slice(bytes);
            let error = PackIndex::from_pack(&wrong.into()).unwrap_err().to_string();
            assert!(error.contains(expect), "at {at}: {error}, not {expect}");
        };
        check(11, &[1], "another shape");
        check(body - 4, &[0], "codec");
        check(body, &[2], "version 2");
        check(body + 4, &[0xff; 4], "add up");
        check(body + 8, &[2], "skyfile table is cut short");
        check(body + 8, &[0], "bytes follow the skyfile table");
        check(body + 12, &[0xff; 4], "add up");
        check(body + 16, &[0xff; 8], "add up");
        check(body + 24, &[1], "add up");
        check(body + 32, &[0xff; 4], "first-byte table");
        check(body + 32 + 4 * 255, &[0], "first-byte table");
        check(range, &[0xff; 32], "sorted");
        check(range + 32, &[0; 4], "identity");
        check(range + 36, &[2], "unknown kind");
        check(range + 37, &[0xff], "extras");
        check(range + 39, &[1], "zero bytes");
        check(range + 40, &[1], "not in the table");
        check(range + 44, &[0xff; 4], "behind its skyfile");
        check(range + 48, &[0xff; 8], "behind its skyfile");
        check(range + 56, &[0xff; 4], "extras");
        check(range + 37, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], "extras");
        check(range + 60, &[1], "zero bytes");
        check(inline + 36, &[0, 1], "fields of a range");
        check(inline + 40, &[1], "fields of a range");
        check(inline + 56, &[1], "fields of a range");
        check(inline + 48, &50u64.to_le_bytes(), "outside the payload");
        check(inline + 48, &[0xff; 8], "outside the payload");
        check(inline + 44, &[0xff; 4], "outside the payload");
        check(table + 48, &[0], "small, but with pieces");
        check(table + 50, &[1], "zero bytes");
        check(table + 52, &[0xff; 4], "skyfile table is cut short");
        check(table + 44, &[1], "offset in its base sector");
        check(table + 40, &[0xff; 4], "more than a sector");
        check(table + 32, &[0xff; 8], "not those of its chunks");
        for cut in 0..pack.len() {
            assert!(PackIndex::from_pack(&pack.slice(..cut)).is_err(), "cut at {cut}");
        }
        let longer = [&pack[..], &[0]].concat();
        assert!(PackIndex::from_pack(&longer.into()).is_err());
        // Two rows of one key.
        let mut twice = pack.to_vec();
        let first = body + ROWS_AT;
        twice.copy_within(first..first + ROW_BYTES, first + ROW_BYTES);
        assert!(PackIndex::from_pack(&twice.into()).is_err());
    }

    proptest::proptest! {
        /// A changed byte gives an error or rows that still point inside; reading them never panics.
        #[test]
        fn changed_bytes(at: proptest::sample::Index, value: u8) {
            let files: [(&str, &[u8]); 3] = [("a", b"1"), ("b/x", &[2; 40_000]), ("c", b"3")];
            let (upload, root) = upload(Profile::UnixfsV0_2015, &files);
            let mut wrong = pack(&upload, &root.cid, 3000).to_vec();
            let at = at.index(wrong.len());
            wrong[at] = value;
            let wrong = Bytes::from(wrong);
            if let Ok(index) = PackIndex::from_pack(&wrong) {
                for row in index.rows() {
                    if let Place::Range { skyfile_index, offset, len, .. } = row.place {
                        assert!(ends_within(offset, len, index.skyfiles()[skyfile_index as usize].size));
                    } else {
                        block(&row, &wrong, b"");
                    }
                }
            }
        }
    }

    #[test]
    fn skyfile_references_in_pins() {
        let small = SkyfileRef { k: 0, m: 0, at: 99, root: [1; 32], size: 5, used: 104, roots: Bytes::new() };
        let cbor = serde_ipld_dagcbor::to_vec(&small).unwrap();
        let expect =
            format!("a7616b00616d00626174186364726f6f745820{}6473697a650564757365641868{}", "01".repeat(32), "65726f6f747340");
        assert_eq!(hex::encode(&cbor), expect);
        let read = |cbor: &[u8]| serde_ipld_dagcbor::from_slice::<SkyfileRef>(cbor);
        assert_eq!(read(&cbor).unwrap(), small);
        let large = large_skyfile(30 << 20);
        assert_eq!(read(&serde_ipld_dagcbor::to_vec(&large).unwrap()).unwrap(), large);
        assert_eq!((large.chunk_count(), large.roots.len()), (2, 2 * 9 * 32));
        assert_eq!(large.chunk_roots(1).unwrap().as_flattened(), &large.roots[9 * 32..]);
        assert_eq!((large.chunk_roots(2), large.chunk_roots(u64::MAX), small.chunk_roots(0)), (None, None, None));
        let without_roots = SkyfileRef { roots: Bytes::new(), ..large.clone() };
        assert_eq!((without_roots.check(), without_roots.chunk_roots(0)), (Ok(()), None));
        let check = |skyfile: SkyfileRef, expect: &str| {
            assert!(skyfile.check().unwrap_err().to_string().contains(expect));
            let text = read(&serde_ipld_dagcbor::to_vec(&skyfile).unwrap()).unwrap_err().to_string();
            assert!(text.contains(expect), "{text}");
        };
        check(SkyfileRef { size: 6, ..small.clone() }, "end in its base sector");
        check(SkyfileRef { size: u64::MAX, ..small.clone() }, "end in its base sector");
        check(SkyfileRef { used: (4 << 20) + 1, ..small.clone() }, "more than a sector");
        check(SkyfileRef { m: 1, ..small.clone() }, "small, but");
        check(SkyfileRef { at: 1, ..large.clone() }, "large, but");
        check(SkyfileRef { size: 1, ..large.clone() }, "not those");
        check(SkyfileRef { size: u64::MAX, k: 1, ..large }, "not those");
    }

    #[test]
    fn the_codec_as_a_varint() {
        let mut varint = Vec::new();
        put_varint(&mut varint, INDEX_CODEC);
        assert_eq!(varint, INDEX_CODEC_VARINT);
    }

    #[test]
    fn fuzz_corpus() {
        let (upload, root) = upload(Profile::ALL[1], &site());
        let corpus = [0, 2_000, 1 << 20].map(|room| pack(&upload, &root.cid, room).to_vec());
        crate::address::test_shared::fuzz_around(fuzz, &corpus, 500);
    }
}
