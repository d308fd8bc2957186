//! The sector's Merkle tree: roots, the table of zero subtrees, and the checked nodes of one sector.

use std::sync::LazyLock;

use super::kernel::{Kernel, LEAF_PREFIX, NODE_PREFIX, grain_nodes, hash_parts, is_zero};
use super::{GRAIN_BYTES, GRAIN_HEIGHT, GRAINS_MAX, NODE_BYTES, ROOT_HEIGHT, Root, SECTOR_BYTES, SEGMENT_BYTES};

/// `Z[i]` of `docs/formats.md` 1: the root of a subtree of zeros of height `height` (0 = one segment).
///
/// # Panics
/// If `height` is above [`ROOT_HEIGHT`].
pub fn zero_node(height: usize) -> [u8; 32] {
    static TABLE: LazyLock<[[u8; 32]; ROOT_HEIGHT + 1]> = LazyLock::new(|| {
        let mut table = [hash_parts(LEAF_PREFIX, &[&[0; SEGMENT_BYTES]]); ROOT_HEIGHT + 1];
        for height in 1..=ROOT_HEIGHT {
            table[height] = hash_parts(NODE_PREFIX, &[&table[height - 1], &table[height - 1]]);
        }
        table
    });
    TABLE[height]
}

/// The root of the sector that starts with `data` and is zero from there on.
///
/// # Panics
/// If `data` is longer than a sector.
pub fn sector_root(data: &[u8]) -> Root {
    assert!(data.len() <= SECTOR_BYTES, "a sector has 4 MiB");
    let mut nodes = vec![[0; NODE_BYTES]; data.len().div_ceil(GRAIN_BYTES)];
    grain_nodes(data, &mut nodes);
    fold_grains(nodes)
}

/// Folds the nodes of a sector's first grains, and zeros for the others, up to the root.
pub(super) fn fold_grains(mut nodes: Vec<[u8; 32]>) -> Root {
    assert!(nodes.len() <= GRAINS_MAX, "a sector has 1,024 grains");
    let kernel = Kernel::detect();
    for height in GRAIN_HEIGHT..ROOT_HEIGHT {
        if nodes.len() % 2 == 1 {
            nodes.push(zero_node(height));
        }
        kernel.parents_in_place(&mut nodes);
        nodes.truncate(nodes.len() / 2);
    }
    Root(nodes.first().copied().unwrap_or_else(|| zero_node(ROOT_HEIGHT)))
}

/// Sia's Merkle root of data of any length, which is *not* padded: a short last segment is hashed as it is, and the left
/// subtree is always the largest complete one. No data has the root of 32 zero bytes.
pub fn merkle_root(data: &[u8]) -> [u8; 32] {
    let (segments, rest) = data.as_chunks::<SEGMENT_BYTES>();
    let mut leaves = vec![[0; NODE_BYTES]; segments.len()];
    Kernel::detect().messages(LEAF_PREFIX, segments, &mut leaves);
    if !rest.is_empty() {
        leaves.push(hash_parts(LEAF_PREFIX, &[rest]));
    }
    fold_any(leaves)
}

/// Sia's root over sector roots ("meta root"): they are the leaves as they are. No roots have the root of 32 zero bytes.
pub fn meta_root(roots: &[Root]) -> [u8; 32] {
    fold_any(roots.iter().map(|root| root.0).collect())
}

/// Folds any number of nodes of one height; a last one without a partner rises as it is.
fn fold_any(mut nodes: Vec<[u8; 32]>) -> [u8; 32] {
    let kernel = Kernel::detect();
    while nodes.len() > 1 {
        let paired = nodes.len() / 2 * 2;
        kernel.parents_in_place(&mut nodes[..paired]);
        if paired < nodes.len() {
            nodes[paired / 2] = nodes[paired];
        }
        nodes.truncate(nodes.len().div_ceil(2));
    }
    nodes.first().copied().unwrap_or_default()
}

/// Bytes are not those of the sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrongData {
    /// The nodes do not fold to the root they were given for.
    #[error("hash-tree nodes do not fold to the sector root")]
    Nodes,
    /// More data than a sector holds, or another number of nodes than the length asks for.
    #[error("the number of hash-tree nodes does not fit the data length")]
    Shape,
    /// The bytes end inside a grain that has more data, or begin past the sector.
    #[error("bytes do not cover whole grains")]
    NotWholeGrains,
    /// A grain's bytes do not hash to its node.
    #[error("grain {grain} of the sector has wrong bytes")]
    Grain {
        /// Index of the first wrong grain.
        grain: usize,
    },
}

/// The nodes of one sector's grains, proved to belong to its root: what checks byte ranges of it.
/// Takes about 32 bytes of memory a grain of data, 32 KiB for a full sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrainTree {
    root: Root,
    data_length: u32,
    nodes: Box<[[u8; 32]]>,
}

impl GrainTree {
    /// The root to which the nodes of the grains of `data_length` bytes of data fold; zeros follow them.
    pub fn fold(nodes: &[[u8; 32]], data_length: u32) -> Result<Root, WrongData> {
        let length = usize::try_from(data_length).map_err(|_| WrongData::Shape)?;
        if length > SECTOR_BYTES || nodes.len() != length.div_ceil(GRAIN_BYTES) {
            return Err(WrongData::Shape);
        }
        Ok(fold_grains(nodes.to_vec()))
    }

    /// Checks nodes, as they stand in a sector object, against the root.
    pub fn new(root: &Root, nodes: &[u8], data_length: u32) -> Result<Self, WrongData> {
        let (nodes, rest) = nodes.as_chunks::<NODE_BYTES>();
        if !rest.is_empty() {
            return Err(WrongData::Shape);
        }
        if Self::fold(nodes, data_length)? != *root {
            return Err(WrongData::Nodes);
        }
        Ok(Self { root: *root, data_length, nodes: nodes.into() })
    }

    /// The tree of data at hand: computed, not checked.
    ///
    /// # Panics
    /// If `data` is longer than a sector.
    pub fn of_data(data: &[u8]) -> Self {
        assert!(data.len() <= SECTOR_BYTES, "a sector has 4 MiB");
        let mut nodes = vec![[0; NODE_BYTES]; data.len().div_ceil(GRAIN_BYTES)];
        grain_nodes(data, &mut nodes);
        Self {
            root: fold_grains(nodes.clone()),
            data_length: u32::try_from(data.len()).expect("a sector has 4 MiB"),
            nodes: nodes.into(),
        }
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    /// D: bytes of data in the object; the sector is zero from there on.
    pub fn data_length(&self) -> u32 {
        self.data_length
    }

    /// Node of a grain; grains past the data are zeros.
    pub fn node(&self, grain: usize) -> [u8; 32] {
        self.nodes.get(grain).copied().unwrap_or_else(|| zero_node(GRAIN_HEIGHT))
    }

    /// Bytes of memory this tree takes, for the budget of a cache.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.nodes.len() * NODE_BYTES
    }

    /// Checks bytes that start with grain `first_grain`. They have to end at a grain's end or at the end of the data;
    /// bytes past the data have to be zero.
    pub fn check(&self, first_grain: usize, bytes: &[u8]) -> Result<(), WrongData> {
        let data_length = self.data_length as usize;
        let end = first_grain.checked_mul(GRAIN_BYTES).and_then(|start| start.checked_add(bytes.len()));
        let end = end.filter(|end| *end <= SECTOR_BYTES).ok_or(WrongData::NotWholeGrains)?;
        if !end.is_multiple_of(GRAIN_BYTES) && end < data_length {
            return Err(WrongData::NotWholeGrains);
        }
        // Batches keep the computed nodes on the stack; 64 grains are enough to fill every lane.
        const BATCH_GRAINS: usize = 64;
        let mut computed = [[0; NODE_BYTES]; BATCH_GRAINS];
        for (batch, bytes) in bytes.chunks(BATCH_GRAINS * GRAIN_BYTES).enumerate() {
            let first = first_grain + batch * BATCH_GRAINS;
            let computed = &mut computed[..bytes.len().div_ceil(GRAIN_BYTES)];
            if first >= self.nodes.len() && is_zero(bytes) {
                continue;
            }
            grain_nodes(bytes, computed);
            if let Some(wrong) = computed.iter().enumerate().position(|(i, node)| *node != self.node(first + i)) {
                return Err(WrongData::Grain { grain: first + wrong });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::sector::testing::{hex_of, pattern, random_bytes, vectors};

    fn sha256(data: &[u8]) -> Vec<u8> {
        ring::digest::digest(&ring::digest::SHA256, data).as_ref().to_vec()
    }

    /// The six inputs of `sia-vectors/sector_roots.json`.
    fn sia_sector(name: &str) -> Vec<u8> {
        let mut data = vec![0; SECTOR_BYTES];
        match name {
            "zero" => {}
            "first-byte-one" => data[0] = 1,
            "last-byte-one" => data[SECTOR_BYTES - 1] = 1,
            "index-mod-256" => data.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8),
            "hello-padded" => data[..11].copy_from_slice(b"hello world"),
            "sha256-counter" => {
                for (n, out) in data.chunks_mut(32).enumerate() {
                    out.copy_from_slice(&sha256(&(n as u64).to_le_bytes()));
                }
            }
            other => panic!("unknown input {other}"),
        }
        data
    }

    #[test]
    fn sia_sector_roots() {
        let Some(file) = vectors("sia-vectors/sector_roots.json") else { return };
        let mut roots = std::collections::BTreeMap::new();
        for sector in file["sectors"].as_array().unwrap() {
            let name = sector["name"].as_str().unwrap();
            let data = sia_sector(name);
            assert_eq!(sha256(&data), hex_of(&sector["sha256_of_input"]), "{name}");
            let root: Root = sector["root"].as_str().unwrap().parse().unwrap();
            assert_eq!(sector_root(&data), root, "{name}");
            assert_eq!(merkle_root(&data), root.0, "{name}");
            assert_eq!(GrainTree::of_data(&data).root(), &root, "{name}");
            roots.insert(name.to_owned(), root);
        }
        assert_eq!(roots.len(), 6);
        for case in vectors("sia-vectors/meta_roots.json").unwrap()["cases"].as_array().unwrap() {
            let sectors: Vec<Root> = case["sectors"].as_array().unwrap().iter().map(|name| roots[name.as_str().unwrap()]).collect();
            assert_eq!(meta_root(&sectors).to_vec(), hex_of(&case["root"]));
        }
    }

    fn input(vector: &Value) -> Vec<u8> {
        let length = vector["length"].as_u64().unwrap() as usize;
        if let Some(text) = vector["data_hex"].as_str() {
            return hex::decode(text).unwrap();
        }
        match vector["input"].as_str().unwrap() {
            "zeros" => vec![0; length],
            name => pattern(name.strip_prefix("pattern seed=").unwrap().parse().unwrap(), length),
        }
    }

    #[test]
    fn skynet_merkle_roots() {
        let Some(file) = vectors("skynet-vectors/merkle_roots.json") else { return };
        for vector in file["vectors"].as_array().unwrap() {
            let data = input(vector);
            assert_eq!(data.len() as u64, vector["length"].as_u64().unwrap());
            assert_eq!(merkle_root(&data).to_vec(), hex_of(&vector["root"]), "{}", vector["input"]);
            if data.len() == SECTOR_BYTES {
                assert_eq!(sector_root(&data).0.to_vec(), hex_of(&vector["root"]));
            }
        }
    }

    #[test]
    fn zeros() {
        assert_eq!(sector_root(&[]).0, zero_node(ROOT_HEIGHT));
        assert_eq!(sector_root(&[0; 5000]).0, zero_node(ROOT_HEIGHT));
        assert_eq!(zero_node(ROOT_HEIGHT), merkle_root(&vec![0; SECTOR_BYTES]));
    }

    #[test]
    fn checks_of_ranges() {
        let data = random_bytes(1, 5 * GRAIN_BYTES + 100);
        let tree = GrainTree::of_data(&data);
        let nodes: Vec<u8> = tree.nodes.as_flattened().to_vec();
        assert_eq!(GrainTree::new(tree.root(), &nodes, data.len() as u32), Ok(tree.clone()));
        let padded = [&data[5 * GRAIN_BYTES..], &vec![0; 2 * GRAIN_BYTES - 100]].concat();
        for (first_grain, bytes, expect) in [
            (0, &data[..], Ok(())),
            (0, &data[..0], Ok(())),
            (2, &data[2 * GRAIN_BYTES..4 * GRAIN_BYTES], Ok(())),
            (1, &data[2 * GRAIN_BYTES..4 * GRAIN_BYTES], Err(WrongData::Grain { grain: 1 })),
            (5, &data[5 * GRAIN_BYTES..], Ok(())),
            (5, &padded, Ok(())),
            (5, &data[5 * GRAIN_BYTES..5 * GRAIN_BYTES + 99], Err(WrongData::NotWholeGrains)),
            (4, &data[4 * GRAIN_BYTES..5 * GRAIN_BYTES - 1], Err(WrongData::NotWholeGrains)),
            (6, &[0; 10], Ok(())),
            (6, &[1; 10], Err(WrongData::Grain { grain: 6 })),
            (1024, &[0; 1], Err(WrongData::NotWholeGrains)),
            (usize::MAX, &[0; 1], Err(WrongData::NotWholeGrains)),
        ] {
            assert_eq!(tree.check(first_grain, bytes), expect, "{first_grain} {}", bytes.len());
        }
        for (nodes, length, expect) in [
            (&nodes[..], data.len() as u32 - 101, WrongData::Shape),
            (&nodes[1..], data.len() as u32, WrongData::Shape),
            (&nodes[32..], data.len() as u32 - 4096, WrongData::Nodes),
            (&nodes[..], u32::MAX, WrongData::Shape),
        ] {
            assert_eq!(GrainTree::new(tree.root(), nodes, length), Err(expect));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Any flipped bit in data or nodes is found, and the right grain is named.
        #[test]
        fn flips_are_found(seed in any::<u64>(), len in 1usize..80 * GRAIN_BYTES, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut data = random_bytes(seed, len);
            let tree = GrainTree::of_data(&data);
            prop_assert_eq!(tree.check(0, &data), Ok(()));
            let at_data = at.index(len);
            data[at_data] ^= 1 << bit;
            prop_assert_eq!(tree.check(0, &data), Err(WrongData::Grain { grain: at_data / GRAIN_BYTES }));
            let mut nodes = tree.nodes.as_flattened().to_vec();
            let at_nodes = at.index(nodes.len());
            nodes[at_nodes] ^= 1 << bit;
            prop_assert_eq!(GrainTree::new(tree.root(), &nodes, len as u32), Err(WrongData::Nodes));
        }
    }
}
