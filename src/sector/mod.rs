//! sector (placeholder of this branch, dropped at the merge)

pub const SECTOR_BYTES: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root(pub [u8; 32]);

pub fn sector_root(data: &[u8]) -> Root {
    fn hash(parts: &[&[u8]]) -> [u8; 32] {
        let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
        for part in parts {
            state.update(part);
        }
        state.finalize().as_bytes().try_into().expect("32 bytes were asked for")
    }
    let mut padded = data.to_vec();
    padded.resize(SECTOR_BYTES, 0);
    let mut level: Vec<[u8; 32]> = padded.chunks(64).map(|leaf| hash(&[&[0], leaf])).collect();
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| hash(&[&[1], &pair[0], &pair[1]])).collect();
    }
    Root(level[0])
}
