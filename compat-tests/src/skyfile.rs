//! Skyfiles and their skylinks, made here: layout, fanout, metadata and content in one sector, its BLAKE2b Merkle root, and
//! the bits that say how much of it is used (`specs/skynet.md` 2-4).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const SECTOR_BYTES: usize = 4 << 20;
const LEAF_BYTES: usize = 64;
const LAYOUT_BYTES: usize = 99;

/// What the layout of a skyfile says of where its content is.
#[derive(Clone, Copy, Default)]
pub struct Fanout<'a> {
    pub data_pieces: u8,
    pub parity_pieces: u8,
    /// As they stand in the sector.
    pub roots: &'a [[u8; 32]],
}

/// Layout, fanout and metadata of a skyfile of this size: what its base sector begins with.
pub fn head(metadata: &str, size: u64, fanout: Fanout<'_>) -> Vec<u8> {
    let mut head = vec![1];
    for length in [size, metadata.len() as u64, 32 * fanout.roots.len() as u64] {
        head.extend(length.to_le_bytes());
    }
    head.extend([fanout.data_pieces, fanout.parity_pieces]);
    head.extend([0, 0, 0, 0, 0, 0, 0, 1]);
    head.extend([0; 64]);
    assert_eq!(head.len(), LAYOUT_BYTES);
    head.extend(fanout.roots.as_flattened());
    head.extend_from_slice(metadata.as_bytes());
    head
}

/// The skylink of a content that fits its base sector, with these bytes of metadata.
pub fn small(metadata: &str, content: &[u8]) -> String {
    let sector = [&head(metadata, content.len() as u64, Fanout::default()), content].concat();
    skylink(&sector, 0, sector.len())
}

/// The skylink of what stands at `offset` of a sector and takes `used` bytes. The sector is filled up with zeros.
pub fn skylink(sector: &[u8], offset: usize, used: usize) -> String {
    let link = [&bitfield(offset, used).to_le_bytes()[..], &sector_root(sector)].concat();
    URL_SAFE_NO_PAD.encode(link)
}

/// A backup of what a skylink names (`specs/skynet.md` 4).
pub fn backup(skylink: &str, sector: &[u8], content: &[u8]) -> Vec<u8> {
    let text = |text: &[u8]| [&(text.len() as u64).to_le_bytes(), text].concat();
    let mut sector = sector.to_vec();
    sector.resize(SECTOR_BYTES, 0);
    [&text(b"Skyfile Backup\n")[..], &text(b"v1.5.5\n"), &text(skylink.as_bytes()), &sector, content].concat()
}

/// The Merkle root of a sector that begins with these bytes.
pub fn sector_root(bytes: &[u8]) -> [u8; 32] {
    assert!(bytes.len() <= SECTOR_BYTES, "larger than one sector");
    let mut sector = bytes.to_vec();
    sector.resize(SECTOR_BYTES, 0);
    root(&sector)
}

/// Version 1, and the least length of the scheme that holds `used` bytes.
fn bitfield(offset: usize, used: usize) -> u16 {
    let mode = (0..8).find(|mode| used <= (32 << 10) << mode).expect("at most a sector");
    let align = if mode == 0 { 4096 } else { 4096 << (mode - 1) };
    let steps = used.div_ceil(align).max(1) - if mode == 0 { 0 } else { 8 };
    assert_eq!(offset % (4096 << mode), 0, "an offset is a multiple of the mode's");
    let place = ((offset / (4096 << mode)) << 3 | (steps - 1)) as u16;
    // From the lowest: two bits of version, as many ones as the mode and a zero, three bits of length, the offset.
    ((place << (mode + 1)) | ((1 << mode) - 1)) << 2
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
