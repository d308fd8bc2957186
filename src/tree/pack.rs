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
const ROW_BYTES: usize = 64;
const KEY_BYTES: usize = 36;
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
        let chunks_with_roots =
            u32::try_from(chunks_with_roots).map_err(|_| PackError::TooLarge("a skyfile of 2^32 chunks"))?;
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
struct Key([u8; KEY_BYTES]);

impl Key {
    /// `None` for what no pack holds: identity hashes (the CID has the bytes), and codes above 32 bits (no such hash is known).
    fn of(multihash: &Multihash) -> Option<Key> {
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
    Kept { cid: Box<Cid>, data: Bytes },
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
        put_varint(out, INDEX_CODEC);
        out.extend_from_slice(&INDEX_VERSION.to_le_bytes());
        out.extend_from_slice(&row_count.to_le_bytes());
        out.extend_from_slice(&skyfile_count.to_le_bytes());
        out.extend_from_slice(&(extras.bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&(table.len() as u64).to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        let mut sum = 0;
        for count in counts {
            sum += count;
            out.extend_from_slice(&sum.to_le_bytes());
        }
        out.extend_from_slice(&row_bytes);
        out.extend_from_slice(&table);
        out.extend_from_slice(&extras.bytes);
        Ok(())
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
            self.check_row(row, payload)?;
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

    fn check_row(&self, row: &[u8; ROW_BYTES], payload: &Range<u64>) -> Result<(), PackError> {
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
                let Some(skyfile) = self.skyfiles.get(u32_at(row, 40) as usize) else {
                    return Err(PackError::Broken("a row names a skyfile that is not in the table"));
                };
                if !ends_within(offset, len, skyfile.size) {
                    return Err(PackError::Broken("a row's range ends behind its skyfile"));
                }
                if !ends_within(u64::from(extras_at), extras_len, self.extras.len() as u64) {
                    return Err(PackError::Broken("a row's prefix or suffix lies outside the extras"));
                }
                Ok(())
            }
            _ => Err(PackError::Broken("a row of unknown kind")),
        }
    }
}

impl fmt::Debug for PackIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackIndex").field("rows", &self.row_count()).field("skyfiles", &self.skyfiles.len()).finish_non_exhaustive()
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
