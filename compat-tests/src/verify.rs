//! A client that trusts nothing (`trustless-gateway`): it walks a CAR from front to back by the links of the blocks it has
//! got, knows at each step which block has to come next, and takes no other.

use std::collections::HashMap;

use crate::car::{self, Block, DAG_CBOR, DAG_PB};
use crate::unixfs::{self, Field, bytes_of, fields};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// CID of the root as it stands in the CAR's blocks.
    pub root: &'a str,
    /// Decoded names.
    pub path: Vec<String>,
    pub scope: Scope,
    pub dups: Dups,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Block,
    Entity,
    /// Bytes of a file, both ends inside; negative ones count from its end.
    Bytes(i64, Option<i64>),
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dups {
    Every,
    Once,
}

/// The blocks of a CAR that is exactly what was asked for; `Err` says where it is not.
pub fn verify(bytes: &[u8], asked: &Asked<'_>) -> Result<Vec<Block>, String> {
    let blocks = car::read(bytes)?;
    let mut walk = Walk { left: &blocks, seen: HashMap::new(), dups: asked.dups };
    let mut at = None;
    for name in &asked.path {
        at = Some(walk.below(&at, asked.root, name)?);
    }
    match asked.scope {
        Scope::Block => drop(walk.need(&at, asked.root)?),
        Scope::Entity => walk.entity(&at, asked.root, None)?,
        Scope::Bytes(from, to) => walk.entity(&at, asked.root, Some((from, to)))?,
        Scope::All => walk.all(&at, asked.root)?,
    }
    match walk.left {
        [] => Ok(blocks),
        [surplus, ..] => Err(format!("{} blocks too many, from {}", walk.left.len(), surplus.text())),
    }
}

/// A binary CID; `None` is the root, which is known as text.
type At = Option<Vec<u8>>;

struct Walk<'a> {
    left: &'a [Block],
    /// By the hash alone: the same bytes under another codec are no other block.
    seen: HashMap<Vec<u8>, &'a Block>,
    dups: Dups,
}

impl<'a> Walk<'a> {
    /// The block that has to come now, with its codec.
    fn need(&mut self, at: &At, root: &str) -> Result<(u64, Vec<u8>), String> {
        if let Some([1, codec, 0, _, inline @ ..]) = at.as_deref() {
            return Ok((u64::from(*codec), inline.to_vec()));
        }
        if let (Dups::Once, Some(cid)) = (self.dups, at)
            && let Some(block) = self.seen.get(hash_of(cid))
        {
            return Ok((codec_of(cid), block.bytes.clone()));
        }
        let cid = at.as_ref().map_or_else(|| root.to_owned(), |cid| car::text_of(cid));
        let Some((block, rest)) = self.left.split_first() else { return Err(format!("it ends before {cid}")) };
        if block.text() != cid {
            return Err(format!("{} where {cid} has to be", block.text()));
        }
        self.left = rest;
        self.seen.insert(hash_of(&block.cid).to_vec(), block);
        Ok((codec_of(&block.cid), block.bytes.clone()))
    }

    /// One step of a path, through all shards on the way.
    fn below(&mut self, at: &At, root: &str, name: &str) -> Result<Vec<u8>, String> {
        let (codec, block) = self.need(at, root)?;
        if codec == u64::from(DAG_CBOR) {
            return cbor(&mut &block[..])?.link_at(name).ok_or(format!("no link {name:?}"));
        }
        if !is_shard(codec, &block) {
            let found = unixfs::links(&block).find(|(found, _)| *found == name.as_bytes());
            return found.map(|(_, cid)| cid.to_vec()).ok_or(format!("no entry {name:?}"));
        }
        let mut block = block;
        for byte in murmur3(name.as_bytes()).to_be_bytes() {
            let prefix = format!("{byte:02X}");
            let entry = [prefix.as_bytes(), name.as_bytes()].concat();
            let found = unixfs::links(&block).find(|(found, _)| *found == entry || *found == prefix.as_bytes());
            let Some((found, cid)) = found else { break };
            if found == entry {
                return Ok(cid.to_vec());
            }
            let next = Some(cid.to_vec());
            block = self.need(&next, root)?.1;
        }
        Err(format!("no entry {name:?} in the shards"))
    }

    /// All blocks of a file, or of a range of it; what lists a directory; of anything else the block alone.
    fn entity(&mut self, at: &At, root: &str, range: Option<(i64, Option<i64>)>) -> Result<(), String> {
        let (codec, block) = self.need(at, root)?;
        if is_shard(codec, &block) {
            for (_, cid) in unixfs::links(&block).filter(|(name, _)| name.len() == 2) {
                self.entity(&Some(cid.to_vec()), root, None)?;
            }
        } else if codec == u64::from(DAG_PB) && matches!(kind_of(&block), Some(0 | 2)) {
            let sizes = sizes_of(&block);
            let total: i64 = sizes.iter().sum();
            let (from, to) = range.unwrap_or((0, None));
            let from = if from < 0 { (total + from).max(0) } else { from };
            let to = to.map_or(total - 1, |to| if to < 0 { total + to } else { to });
            let mut start = 0;
            for ((_, cid), size) in unixfs::links(&block).zip(&sizes) {
                if start <= to && start + size > from {
                    self.entity(&Some(cid.to_vec()), root, Some(((from - start).max(0), Some(to - start))))?;
                }
                start += size;
            }
        }
        Ok(())
    }

    fn all(&mut self, at: &At, root: &str) -> Result<(), String> {
        let (codec, block) = self.need(at, root)?;
        let links = match codec {
            codec if codec == u64::from(DAG_PB) => unixfs::links(&block).map(|(_, cid)| cid.to_vec()).collect(),
            codec if codec == u64::from(DAG_CBOR) => cbor(&mut &block[..])?.links(),
            _ => Vec::new(),
        };
        for cid in links {
            self.all(&Some(cid), root)?;
        }
        Ok(())
    }
}

fn codec_of(cid: &[u8]) -> u64 {
    match cid {
        [1, rest @ ..] => unixfs::read_varint(rest).map_or(0, |(codec, _)| codec),
        _ => u64::from(DAG_PB),
    }
}

/// The multihash in a CID.
fn hash_of(cid: &[u8]) -> &[u8] {
    match cid {
        [1, rest @ ..] => unixfs::read_varint(rest).map_or(rest, |(_, hash)| hash),
        _ => cid,
    }
}

/// Kind of a UnixFS node.
fn kind_of(block: &[u8]) -> Option<u64> {
    fields(bytes_of(block, 1)?).find_map(|field| match field {
        (1, Field::Number(kind)) => Some(kind),
        _ => None,
    })
}

fn is_shard(codec: u64, block: &[u8]) -> bool {
    codec == u64::from(DAG_PB) && kind_of(block) == Some(5)
}

/// Bytes below each link of a file.
fn sizes_of(block: &[u8]) -> Vec<i64> {
    let data = bytes_of(block, 1).unwrap_or_default();
    let sizes = fields(data).filter_map(|field| match field {
        (4, Field::Number(size)) => Some(size as i64),
        _ => None,
    });
    sizes.collect()
}

/// As much of DAG-CBOR as leads to links.
#[derive(Debug)]
enum Cbor {
    Link(Vec<u8>),
    List(Vec<Cbor>),
    Map(Vec<(Vec<u8>, Cbor)>),
    Text(Vec<u8>),
    Other,
}

impl Cbor {
    fn links(self) -> Vec<Vec<u8>> {
        match self {
            Cbor::Link(cid) => vec![cid],
            Cbor::List(items) => items.into_iter().flat_map(Cbor::links).collect(),
            Cbor::Map(items) => items.into_iter().flat_map(|(_, value)| value.links()).collect(),
            Cbor::Text(_) | Cbor::Other => Vec::new(),
        }
    }

    fn link_at(self, name: &str) -> Option<Vec<u8>> {
        let Cbor::Map(items) = self else { return None };
        items.into_iter().find(|(key, _)| key == name.as_bytes()).and_then(|(_, value)| match value {
            Cbor::Link(cid) => Some(cid),
            _ => None,
        })
    }
}

fn cbor(from: &mut &[u8]) -> Result<Cbor, String> {
    let cut = || "a block of DAG-CBOR is cut".to_owned();
    let (first, rest) = from.split_first().ok_or_else(cut)?;
    *from = rest;
    let mut take = |count: usize| {
        let (taken, rest) = from.split_at_checked(count).ok_or_else(cut)?;
        *from = rest;
        Ok::<_, String>(taken)
    };
    let argument = match first & 31 {
        short @ 0..24 => u64::from(short),
        long @ 24..28 => take(1 << (long - 24))?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
        _ => return Err("a length that DAG-CBOR does not have".to_owned()),
    };
    match first >> 5 {
        2 => Ok(Cbor::Text(take(argument as usize)?.to_vec())),
        3 => Ok(Cbor::Text(take(argument as usize)?.to_vec())),
        4 => (0..argument).map(|_| cbor(from)).collect::<Result<_, _>>().map(Cbor::List),
        5 => {
            let items = (0..argument).map(|_| match (cbor(from)?, cbor(from)?) {
                (Cbor::Text(key), value) => Ok((key, value)),
                _ => Err("a key that is no text".to_owned()),
            });
            items.collect::<Result<_, _>>().map(Cbor::Map)
        }
        6 => match cbor(from)? {
            Cbor::Text(cid) if argument == 42 && cid.first() == Some(&0) => Ok(Cbor::Link(cid[1..].to_vec())),
            _ => Err("a tag that is no link".to_owned()),
        },
        _ => Ok(Cbor::Other),
    }
}

/// MurmurHash3 x64 128, its first half (Austin Appleby; public domain): the hash of sharded directories.
pub(crate) fn murmur3(bytes: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let last = |mut k: u64| {
        k = (k ^ k >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        k = (k ^ k >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        k ^ k >> 33
    };
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let mut stripes = bytes.chunks_exact(16);
    for stripe in stripes.by_ref() {
        h1 ^= mix1(word(&stripe[..8]));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix2(word(&stripe[8..]));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let tail = stripes.remainder();
    h2 ^= mix2(word(tail.get(8..).unwrap_or_default()));
    h1 ^= mix1(word(&tail[..tail.len().min(8)]));
    h1 ^= bytes.len() as u64;
    h2 ^= bytes.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    last(h1).wrapping_add(last(h2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the digest in the order that shards use, by the reference implementation.
    #[test]
    fn names_are_hashed_as_shards_hash_them() {
        assert_eq!(murmur3(b""), 0);
        assert_eq!(murmur3(b"hello"), 0xcbd8_a7b3_41bd_9b02);
        assert_eq!(murmur3(b"The quick brown fox jumps over the lazy dog"), 0xe34b_bc7b_bc07_1b6c);
    }

    #[test]
    fn what_is_missing_surplus_or_out_of_order_is_seen() {
        let leaves = [Block::new(car::RAW, b"one"), Block::new(car::RAW, b"two")];
        let mut list = vec![0x83];
        [&leaves[0], &leaves[1], &leaves[0]].iter().for_each(|leaf| list.extend(leaf.cbor_link()));
        let root = Block::new(DAG_CBOR, &list);
        let text = root.text();
        let asked = |dups| Asked { root: &text, path: vec![], scope: Scope::All, dups };
        let of = |blocks: &[&Block]| car::write(&[&root], blocks);
        let (once, every) = (of(&[&root, &leaves[0], &leaves[1]]), of(&[&root, &leaves[0], &leaves[1], &leaves[0]]));
        assert!(verify(&once, &asked(Dups::Once)).is_ok() && verify(&every, &asked(Dups::Every)).is_ok());
        assert!(verify(&once, &asked(Dups::Every)).is_err() && verify(&every, &asked(Dups::Once)).is_err());
        for wrong in [of(&[&root, &leaves[1], &leaves[0]]), of(&[&root, &leaves[0]]), of(&[&leaves[0]]), of(&[])] {
            assert!(verify(&wrong, &asked(Dups::Once)).is_err());
        }
        let block = Asked { scope: Scope::Block, ..asked(Dups::Once) };
        assert!(verify(&of(&[&root]), &block).is_ok() && verify(&once, &block).is_err());
    }
}
