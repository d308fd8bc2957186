//! Large folders: a HAMT of 256 slots a shard, slots chosen by murmur3-x64-64 of the name, eight bits a level from the top.
//!
//! A slot with one name holds the entry itself, a slot with more holds a shard of the next level. The shape depends only on
//! the set of names, so it is built from the sorted hashes without ever being changed.

use super::encode::{Link, put_shard_data};
use super::file::sha256;
use super::{BlockSink, NodeBlock, Profile};
use crate::address::Cid;

/// Levels that a 64-bit hash can tell apart.
const LEVELS: u32 = 8;

/// An entry of the folder.
pub(super) struct ShardRow<'a> {
    pub hash: u64,
    pub name: &'a [u8],
    pub cid: &'a [u8],
    pub tsize: u64,
}

/// Two names with one hash.
#[derive(Debug)]
pub(super) struct Collision;

/// The root shard's CID and tsize.
pub(super) fn build(profile: Profile, mut rows: Vec<ShardRow<'_>>, sink: &mut impl BlockSink) -> Result<(Cid, u64), Collision> {
    rows.sort_unstable_by_key(|row| row.hash);
    if rows.windows(2).any(|pair| pair[0].hash == pair[1].hash) {
        return Err(Collision);
    }
    Ok(shard(profile, &rows, 0, sink))
}

/// Writes the shard over rows that agree in the first `level` bytes of their hashes. Distinct hashes differ within
/// [`LEVELS`] bytes, so this never goes deeper.
fn shard(profile: Profile, rows: &[ShardRow<'_>], level: u32, sink: &mut impl BlockSink) -> (Cid, u64) {
    assert!(level < LEVELS, "distinct 64-bit hashes differ in one of eight bytes");
    let slot_of = |row: &ShardRow<'_>| (row.hash >> (56 - 8 * level)) as u8;
    let mut bytes = Vec::new();
    let mut bitfield = [0u8; 32];
    let mut links = Vec::new();
    let mut tsize = 0;
    for group in rows.chunk_by(|a, b| slot_of(a) == slot_of(b)) {
        let slot = slot_of(&group[0]);
        bitfield[31 - usize::from(slot / 8)] |= 1 << (slot % 8);
        let prefix = slot_prefix(slot);
        let (cid, link_tsize, name): (Cid, u64, &[u8]) = match group {
            [row] => (Cid::try_from(row.cid).expect("rows hold the bytes of CIDs"), row.tsize, row.name),
            _ => {
                let (cid, tsize) = shard(profile, group, level + 1, sink);
                (cid, tsize, b"")
            }
        };
        Link { cid: &cid.to_bytes(), name: [&prefix, name], tsize: link_tsize }.put(&mut bytes);
        links.push(cid);
        tsize += link_tsize;
    }
    put_shard_data(&mut bytes, &bitfield);
    let cid = profile.node_cid(sha256(&[&bytes]));
    tsize += bytes.len() as u64;
    sink.node(NodeBlock { cid, bytes, links });
    (cid, tsize)
}

/// Two upper-case hex digits.
fn slot_prefix(slot: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    [DIGITS[usize::from(slot >> 4)], DIGITS[usize::from(slot & 15)]]
}

/// MurmurHash3 x64, first 64 of the 128 bits, seed 0: the hash of UnixFS folders (multihash code 0x22).
pub(super) fn murmur3_x64_64(data: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte));
    let (mut h1, mut h2) = (0u64, 0u64);
    let (blocks, tail) = data.as_chunks::<16>();
    for block in blocks {
        h1 ^= mix1(word(&block[..8]));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix2(word(&block[8..]));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let (low, high) = tail.split_at(tail.len().min(8));
    h1 ^= mix1(word(low));
    h2 ^= mix2(word(high));
    h1 ^= data.len() as u64;
    h2 ^= data.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    final_mix(h1).wrapping_add(final_mix(h2))
}

fn final_mix(mut k: u64) -> u64 {
    k = (k ^ (k >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    k = (k ^ (k >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ (k >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur3_of_known_texts() {
        // The multihash table's reference values for murmur3-x64-64, seed 0.
        for (text, hash) in [("", 0), ("hello", 0xcbd8_a7b3_41bd_9b02), ("hello, world", 0x342f_ac62_3a5e_bc8e)] {
            assert_eq!(murmur3_x64_64(text.as_bytes()), hash, "{text:?}");
        }
    }
}
