//! Sectors: roots, hash trees, proofs, stored objects, and the Reed-Solomon rows of slabs. Pure.
//!
//! **Does.** Computes Sia's sector roots and keeps the tree's nodes at a grain of 4 KiB, so that any 4 KiB of a sector
//! can be checked alone ([`GrainTree`]); builds and checks the object a host stores (`docs/formats.md` 2); cuts a slab
//! into `k + m` pieces while hashing them in cache ([`SlabEncoder`]), and joins ranges back from any `k` ([`Code`]).
//!
//! **Hides.** The many-lane BLAKE2b kernel, its runtime detection and its fallback; the table of zero subtrees; the
//! order of 64-byte rows; aligned memory and its pool.
//!
//! **Must never know.** Hosts, files, CIDs, any input or output. It knows no other room and never awaits.
//!
//! **Words.** *Segment*: 64 bytes, a leaf of the tree. *Grain*: 64 segments, 4 KiB; its node stands at height 6.
//! *Row*: 64 bytes of each piece, holding `k` x 64 consecutive bytes of content. *Step*: the eighth of a slab one
//! thread works through at a time. *D*: the length of a sector's data without its trailing zeros.
//!
//! **Limits.** A sector is 4 MiB ([`SECTOR_BYTES`]); `k + m` is at most 256 ([`PIECES_MAX`]), the size of GF(2^8);
//! `k` and `m` have one byte each in a header. Recursion and loops are bounded by the tree's height of 16.

mod code;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod kernel_avx2;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512;
mod memory;
mod object;
mod proof;
mod slab;
mod slab_roots;
#[cfg(test)]
mod testing;
mod tree;

use std::fmt;
use std::str::FromStr;

pub use code::{Code, CodeError};
pub use kernel::grain_nodes;
pub use memory::{AlignedBuf, BufferPool, SlabBuffers};
pub use object::{
    CheckedObject, ObjectError, ObjectHeader, SectorObject, build_object, data_offset, node_count, object_len, open_object,
    parse_header,
};
pub use proof::{ProofError, range_proof, verify_range_proof};
pub use slab::{EncodedSlab, SLAB_STEPS, SlabEncoder, slab_id};
pub use slab_roots::SlabRoots;
pub use tree::{GrainTree, WrongData, merkle_root, meta_root, sector_root, zero_node};

/// Bytes of a sector; Sia's constant.
pub const SECTOR_BYTES: usize = 4 << 20;
/// Bytes of a leaf of the sector tree; Sia's constant, and the width of a Reed-Solomon row in one piece.
pub const SEGMENT_BYTES: usize = 64;
/// Bytes whose node is stored with a sector: what is read and checked at the least.
pub const GRAIN_BYTES: usize = 4096;
/// Bytes of a sector object before its nodes.
pub const HEADER_BYTES: usize = 64;
/// Bytes of one node of the tree: a BLAKE2b-256 digest.
pub const NODE_BYTES: usize = 32;
/// Grains in a full sector.
pub const GRAINS_MAX: usize = SECTOR_BYTES / GRAIN_BYTES;
/// Height of a sector's root above its leaves.
pub const ROOT_HEIGHT: usize = 16;
/// Height of a grain's node above the leaves.
pub const GRAIN_HEIGHT: usize = 6;
/// Pieces of one slab at most: GF(2^8) has no more evaluation points.
pub const PIECES_MAX: usize = 256;

/// The Merkle root of a sector; also its name on hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root(pub [u8; 32]);

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({self})")
    }
}

/// The text was not a root: 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sector root is 64 lower-case hex digits")]
pub struct RootTextError;

impl FromStr for Root {
    type Err = RootTextError;

    /// Lower case only: a root is also a storage key, and a key has one spelling.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(RootTextError);
        }
        let mut root = [0; 32];
        hex::decode_to_slice(text, &mut root).map_err(|_| RootTextError)?;
        Ok(Self(root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_text() {
        let root = Root(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(root.to_string().parse(), Ok(root));
        for bad in ["", "00", &"g".repeat(64), &"A".repeat(64), &"a".repeat(63), &"a".repeat(66)] {
            assert_eq!(bad.parse::<Root>(), Err(RootTextError), "{bad}");
        }
    }
}
