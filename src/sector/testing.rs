//! What the room's tests share.

use std::path::PathBuf;

use serde_json::Value;

/// Bytes that look random and are the same for the same seed (SplitMix64).
pub(super) fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(length);
    out
}

/// The pattern bytes of `skynet-vectors/README.md`.
pub(super) fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (7 * i + 13 * (i >> 8) + 31 * (i >> 16) + seed) as u8).collect()
}

/// A file of vectors under `SKYGATE_SHARED`; `None`, and a line that says so, where that is unset.
pub(super) fn vectors(path: &str) -> Option<Value> {
    let Some(shared) = std::env::var_os("SKYGATE_SHARED") else {
        println!("SKIPPED {path}: SKYGATE_SHARED is unset");
        return None;
    };
    let path = PathBuf::from(shared).join(path);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(serde_json::from_slice(&text).unwrap())
}

pub(super) fn hex_of(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

/// A list of hashes; Go writes an empty one as null.
pub(super) fn nodes_of(value: &Value) -> Vec<[u8; 32]> {
    value.as_array().into_iter().flatten().map(|node| hex_of(node).try_into().unwrap()).collect()
}
