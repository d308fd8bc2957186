//! Skylinks of small skyfiles, computed here: layout, metadata and content in one sector, its BLAKE2b Merkle root, and the
//! bits that say how much of it is used (`specs/skynet.md` 2-4).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const SECTOR_BYTES: usize = 4 << 20;
const LEAF_BYTES: usize = 64;
const LAYOUT_BYTES: usize = 99;

/// The skylink of a content that fits its base sector, with these bytes of metadata.
pub fn small(metadata: &str, content: &[u8]) -> String {
    let mut sector = vec![1];
    sector.extend((content.len() as u64).to_le_bytes());
    sector.extend((metadata.len() as u64).to_le_bytes());
    sector.extend([0; 8 + 2 + 7]);
    sector.push(1);
    sector.extend([0; 64]);
    assert_eq!(sector.len(), LAYOUT_BYTES);
    sector.extend_from_slice(metadata.as_bytes());
    sector.extend_from_slice(content);
    let used = sector.len();
    assert!(used <= SECTOR_BYTES, "larger than one sector");
    sector.resize(SECTOR_BYTES, 0);
    let link = [&bitfield(used).to_le_bytes()[..], &root(&sector)].concat();
    URL_SAFE_NO_PAD.encode(link)
}

/// Version 1, offset 0, and the least length of the scheme that holds `used` bytes.
fn bitfield(used: usize) -> u16 {
    let mode = (0..8).find(|mode| used <= (32 << 10) << mode).expect("at most a sector");
    let align = if mode == 0 { 4096 } else { 4096 << (mode - 1) };
    let steps = used.div_ceil(align).max(1) - if mode == 0 { 0 } else { 8 };
    let fetch = (steps - 1) as u16;
    // From the lowest: two bits of version, as many ones as the mode and a zero, three bits of length.
    ((fetch << (mode + 1)) | ((1 << mode) - 1)) << 2
}

fn root(bytes: &[u8]) -> [u8; 32] {
    if bytes.len() == LEAF_BYTES {
        return hash(&[&[0], bytes]);
    }
    let (left, right) = bytes.split_at(bytes.len() / 2);
    hash(&[&[1], &root(left), &root(right)])
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    for part in parts {
        state.update(part);
    }
    state.finalize().as_bytes().try_into().expect("32 bytes were asked for")
}
