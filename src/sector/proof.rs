//! Sia's range proofs over segments: the subtree hashes left of the range in order, then those right of it.

use std::ops::Range;

use super::kernel::{Kernel, LEAF_PREFIX, NODE_PREFIX, grain_nodes, hash_parts};
use super::{GRAIN_BYTES, GRAIN_HEIGHT, NODE_BYTES, ROOT_HEIGHT, Root, SECTOR_BYTES, SEGMENT_BYTES, zero_node};

/// Segments in a sector.
const SEGMENTS: usize = SECTOR_BYTES / SEGMENT_BYTES;

/// Why a range proof was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The range is empty, reversed or ends past the sector.
    #[error("segments {start}..{end} are not a range of a sector")]
    Range { start: usize, end: usize },
    /// Another number of bytes than the range has.
    #[error("{have} bytes for a range of {need}")]
    Length { have: usize, need: usize },
    /// Another number of hashes than this range's proof has.
    #[error("{have} hashes in a proof of {need}")]
    Hashes { have: usize, need: usize },
    /// Bytes and hashes do not lead to the root.
    #[error("the proof does not lead to the sector root")]
    Wrong,
}

/// The proof that `segments` of the sector that starts with `data` (zeros follow) lie under its root.
///
/// # Panics
/// If `data` is longer than a sector.
pub fn range_proof(data: &[u8], segments: Range<usize>) -> Result<Vec<[u8; 32]>, ProofError> {
    assert!(data.len() <= SECTOR_BYTES, "a sector has 4 MiB");
    check_range(&segments)?;
    let mut nodes = vec![[0; NODE_BYTES]; data.len().div_ceil(GRAIN_BYTES)];
    grain_nodes(data, &mut nodes);
    Ok(outside(&segments).map(|subtree| subtree.root_in(data, &nodes)).collect())
}

/// Checks that `bytes` are the `segments` of the sector with this root.
pub fn verify_range_proof(root: &Root, segments: Range<usize>, bytes: &[u8], proof: &[[u8; 32]]) -> Result<(), ProofError> {
    check_range(&segments)?;
    let need = segments.len() * SEGMENT_BYTES;
    if bytes.len() != need {
        return Err(ProofError::Length { have: bytes.len(), need });
    }
    let need = outside(&segments).count();
    if proof.len() != need {
        return Err(ProofError::Hashes { have: proof.len(), need });
    }
    let mut spine = Spine::default();
    let mut hashes = proof.iter();
    for subtree in subtrees(0..segments.start) {
        spine.push(subtree.height, *hashes.next().ok_or(ProofError::Wrong)?);
    }
    for subtree in subtrees(segments.clone()) {
        let start = (subtree.first - segments.start) * SEGMENT_BYTES;
        let bytes = &bytes[start..start + (SEGMENT_BYTES << subtree.height)];
        spine.push(subtree.height, complete_root(bytes));
    }
    for subtree in subtrees(segments.end..SEGMENTS) {
        spine.push(subtree.height, *hashes.next().ok_or(ProofError::Wrong)?);
    }
    if spine.0 == [(ROOT_HEIGHT, root.0)] { Ok(()) } else { Err(ProofError::Wrong) }
}

fn check_range(segments: &Range<usize>) -> Result<(), ProofError> {
    if segments.start < segments.end && segments.end <= SEGMENTS {
        Ok(())
    } else {
        Err(ProofError::Range { start: segments.start, end: segments.end })
    }
}

/// A complete subtree: `1 << height` segments from `first`, a multiple of that number.
#[derive(Clone, Copy, Debug)]
struct Subtree {
    first: usize,
    height: usize,
}

impl Subtree {
    /// Its root in the sector that starts with `data`, whose grains have these nodes.
    fn root_in(self, data: &[u8], nodes: &[[u8; 32]]) -> [u8; 32] {
        if self.height < GRAIN_HEIGHT {
            let start = (self.first * SEGMENT_BYTES).min(data.len());
            let mut padded = [0; GRAIN_BYTES / 2];
            let padded = &mut padded[..SEGMENT_BYTES << self.height];
            let bytes = &data[start..(start + padded.len()).min(data.len())];
            padded[..bytes.len()].copy_from_slice(bytes);
            return complete_root(padded);
        }
        let grains = 1 << (self.height - GRAIN_HEIGHT);
        let first = self.first >> GRAIN_HEIGHT;
        fold_complete((first..first + grains).map(|grain| nodes.get(grain).copied().unwrap_or(zero_node(GRAIN_HEIGHT))).collect())
    }
}

/// The largest complete subtrees that cover a range, from left to right.
fn subtrees(range: Range<usize>) -> impl Iterator<Item = Subtree> {
    let mut first = range.start;
    std::iter::from_fn(move || {
        let left = range.end.checked_sub(first).filter(|left| *left > 0)?;
        let height = first.trailing_zeros().min(left.ilog2()) as usize;
        let subtree = Subtree { first, height };
        first += 1 << height;
        Some(subtree)
    })
}

/// The subtrees whose hashes make up the proof of a range, in its order.
fn outside(segments: &Range<usize>) -> impl Iterator<Item = Subtree> {
    subtrees(0..segments.start).chain(subtrees(segments.end..SEGMENTS))
}

/// Root of the complete subtree over `1 << n` whole segments.
fn complete_root(bytes: &[u8]) -> [u8; 32] {
    if bytes.len() >= GRAIN_BYTES {
        let mut nodes = vec![[0; NODE_BYTES]; bytes.len() / GRAIN_BYTES];
        grain_nodes(bytes, &mut nodes);
        return fold_complete(nodes);
    }
    let (segments, _) = bytes.as_chunks::<SEGMENT_BYTES>();
    let mut leaves = vec![[0; NODE_BYTES]; segments.len()];
    Kernel::detect().messages(LEAF_PREFIX, segments, &mut leaves);
    fold_complete(leaves)
}

/// Folds a power of two of nodes.
fn fold_complete(mut nodes: Vec<[u8; 32]>) -> [u8; 32] {
    let mut count = nodes.len();
    while count > 1 {
        Kernel::detect().parents_in_place(&mut nodes[..count]);
        count /= 2;
    }
    nodes[0]
}

/// Complete subtrees from left to right, joined as soon as two neighbours have the same height; heights fall, so there
/// are never more than [`ROOT_HEIGHT`] + 1.
#[derive(Default)]
struct Spine(Vec<(usize, [u8; 32])>);

impl Spine {
    fn push(&mut self, mut height: usize, mut node: [u8; 32]) {
        while let Some((_, left)) = self.0.pop_if(|(left_height, _)| *left_height == height) {
            node = hash_parts(NODE_PREFIX, &[&left, &node]);
            height += 1;
        }
        self.0.push((height, node));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sector::sector_root;
    use crate::sector::testing::{hex_of, nodes_of, pattern, random_bytes, vectors};

    fn check(data: &[u8], segments: Range<usize>, expect: Option<&[[u8; 32]]>) {
        let proof = range_proof(data, segments.clone()).unwrap();
        if let Some(expect) = expect {
            assert_eq!(proof, expect, "{segments:?}");
        }
        let root = sector_root(data);
        let mut bytes: Vec<u8> = data.iter().copied().skip(segments.start * 64).take(segments.len() * 64).collect();
        bytes.resize(segments.len() * 64, 0);
        assert_eq!(verify_range_proof(&root, segments.clone(), &bytes, &proof), Ok(()), "{segments:?}");

        bytes[0] ^= 1;
        assert_eq!(verify_range_proof(&root, segments.clone(), &bytes, &proof), Err(ProofError::Wrong));
        bytes[0] ^= 1;
        if let Some((last, rest)) = proof.split_last() {
            let mut wrong = *last;
            wrong[31] ^= 0x80;
            let wrong = [rest, &[wrong]].concat();
            assert_eq!(verify_range_proof(&root, segments.clone(), &bytes, &wrong), Err(ProofError::Wrong));
            let (have, need) = (rest.len(), proof.len());
            assert_eq!(verify_range_proof(&root, segments, &bytes, rest), Err(ProofError::Hashes { have, need }));
        }
    }

    #[test]
    fn skynet_vectors() {
        let Some(file) = vectors("skynet-vectors/merkle_range_proofs.json") else { return };
        let data = pattern(1, SECTOR_BYTES);
        assert_eq!(sector_root(&data).0.to_vec(), hex_of(&file["root"]));
        for vector in file["range_proofs"].as_array().unwrap() {
            let segment = |name: &str| vector[name].as_u64().unwrap() as usize;
            check(&data, segment("start_segment")..segment("end_segment"), Some(&nodes_of(&vector["proof"])));
        }
    }

    #[test]
    fn sia_vectors() {
        let Some(file) = vectors("sia-vectors/range_proofs.json") else { return };
        let mut data = Vec::new();
        for n in 0..131_072u64 {
            data.extend_from_slice(ring::digest::digest(&ring::digest::SHA256, &n.to_le_bytes()).as_ref());
        }
        assert_eq!(sector_root(&data).0.to_vec(), hex_of(&file["root"]));
        for vector in file["proofs"].as_array().unwrap() {
            let leaf = |name: &str| vector[name].as_u64().unwrap() as usize;
            check(&data, leaf("start_leaf")..leaf("end_leaf"), Some(&nodes_of(&vector["proof"])));
        }
    }

    /// The body libskynet expects of the trustless base sector: a range from the front, and its proof.
    #[test]
    fn trustless_base_sectors() {
        let Some(file) = vectors("skynet-vectors/trustless_basesector.json") else { return };
        for vector in file["vectors"].as_array().unwrap() {
            let size = vector["filesize"].as_u64().unwrap() as usize;
            let seed = vector["data"].as_str().unwrap().strip_prefix("pattern seed=").unwrap().parse().unwrap();
            let sector =
                [&hex_of(&vector["layout_hex"])[..], vector["metadata_json"].as_str().unwrap().as_bytes(), &pattern(seed, size)]
                    .concat();
            let segment = |name: &str| vector[name].as_u64().unwrap() as usize / SEGMENT_BYTES;
            let start = segment("offset");
            check(&sector, start..start + segment("fetchsize"), Some(&nodes_of(&vector["proof"])));
        }
    }

    #[test]
    fn bad_ranges() {
        for (start, end) in [(0, 0), (1, 0), (5, 5), (0, SEGMENTS + 1), (SEGMENTS, SEGMENTS), (usize::MAX - 1, usize::MAX)] {
            let error = ProofError::Range { start, end };
            assert_eq!(range_proof(&[], start..end), Err(error));
            assert_eq!(verify_range_proof(&Root([0; 32]), start..end, &[], &[]), Err(error));
        }
        let error = ProofError::Length { have: 0, need: 64 };
        assert_eq!(verify_range_proof(&Root([0; 32]), 0..1, &[], &[]), Err(error));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_range(seed in any::<u64>(), len in 0usize..200_000, a in 0usize..4000, b in 0usize..4000) {
            prop_assume!(a != b);
            check(&random_bytes(seed, len), a.min(b)..a.max(b), None);
        }
    }
}
