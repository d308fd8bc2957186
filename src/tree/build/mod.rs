//! Files and folders become blocks: chunking, hashing, UnixFS nodes, folders and HAMT shards, with the CIDs that kubo gives.
//!
//! **Does**: [`FileBuilder`] cuts a stream of bytes into leaves and lays file nodes over them; [`TreeBuilder`] takes files,
//! symlinks and empty folders in byte order of path and closes each folder as soon as nothing can come into it any more.
//! Both hand blocks to a [`BlockSink`] the moment they are known, children before parents.
//!
//! **Hides**: how dag-pb and UnixFS are encoded for writing, which profile makes which shape, when a folder becomes a HAMT.
//!
//! **Must never know**: where bytes and blocks are stored. The bytes of a leaf are not even copied: a leaf is told by its
//! place in the file ([`LeafRow`]), for the same bytes already lie in a skyfile.
//!
//! **Words**: leaf = block of raw file bytes, wrapped (dag-pb) or raw by profile. node = any other block. tsize = bytes of a
//! block and of everything below it, blocks met twice counted twice (dag-pb's `Tsize`).
//!
//! **Limits**: the constants below, each with its reason. Memory: a file needs one row a link on each level of its tree
//! (at most 1,024 rows of 48 bytes a level) and, with wrapped leaves, one leaf; a tree needs the entries of its open folders.

mod encode;
mod file;
mod hamt;
mod profile;
mod tree;
#[cfg(test)]
mod vectors;

use bytes::Bytes;
use thiserror::Error;

pub use file::{FileBuilder, HashedLeaf, hash_leaf};
pub use profile::Profile;
pub use tree::TreeBuilder;

use crate::address::Cid;

/// Leaves with at most this many file bytes come to the sink with a copy of their bytes, for packs keep them inline
/// (`docs/formats.md` 7): above 32 KiB the copy would cost more of a base sector than the saved host request is worth.
pub const SMALL_LEAF_BYTES: usize = 32 << 10;

/// Longest path of an entry. Linux's PATH_MAX, so that whatever is added can be got back to a disk.
pub const PATH_BYTES_MAX: usize = 4096;

/// Longest name of an entry: what common file systems take (NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;

/// Most names in one path. Deeper trees cost a serial look-up a level for every reader; the deepest npm trees stay below 60.
pub const DEPTH_MAX: usize = 128;

/// Longest target of a symlink: Linux's PATH_MAX.
pub const TARGET_BYTES_MAX: usize = 4096;

/// Most entries of one folder. An open folder is kept in memory, at about 100 bytes an entry.
pub const FOLDER_ENTRIES_MAX: usize = 1 << 20;

/// What takes the blocks of a build, in the order they become known: a node always after all of its children.
///
/// The same block may come more than once (equal leaves, equal folders).
pub trait BlockSink {
    /// A leaf whose bytes have all been pushed.
    fn leaf(&mut self, leaf: LeafRow);
    /// A file node, folder, shard or symlink.
    fn node(&mut self, node: NodeBlock);
}

/// A leaf, told by its place: block = `prefix || file bytes [file_offset .. file_offset + data_len] || suffix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafRow {
    pub cid: Cid,
    /// Where the leaf's bytes begin in the file.
    pub file_offset: u64,
    /// File bytes in the leaf; 0 only for the one leaf of an empty file.
    pub data_len: u32,
    /// dag-pb bytes before the file bytes; empty for raw leaves.
    pub prefix: Vec<u8>,
    /// dag-pb bytes after the file bytes; empty for raw leaves.
    pub suffix: Vec<u8>,
    /// The file bytes themselves, exactly when there are at most [`SMALL_LEAF_BYTES`].
    pub small: Option<Bytes>,
}

/// A block that is not a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBlock {
    pub cid: Cid,
    pub bytes: Vec<u8>,
    /// The CIDs of its links, in link order.
    pub links: Vec<Cid>,
}

/// A finished file, symlink or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    pub cid: Cid,
    /// Content bytes: of the file, or of all files below the folder. A symlink has none.
    pub size: u64,
    /// Bytes of the block and of all blocks below it.
    pub tsize: u64,
}

/// Why an upload cannot become a tree. All are faults of what was sent; repeating does not help.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BuildError {
    #[error("unknown profile {text:?}: known are unixfs-v1-2025, unixfs-v0-2015 and cid-v1")]
    UnknownProfile { text: String },
    #[error("path {path:?}: {fault}")]
    BadPath { path: String, fault: PathFault },
    #[error("path {path:?} came after {after:?}: entries must come in byte order of their paths")]
    OutOfOrder { path: String, after: String },
    #[error("path {path:?} came twice")]
    Duplicate { path: String },
    #[error("path {path:?} goes through {file:?}, which is not a folder")]
    FileAsFolder { path: String, file: String },
    #[error("symlink {path:?}: the target has a NUL or more than {TARGET_BYTES_MAX} bytes")]
    BadTarget { path: String },
    #[error("folder {folder:?} has more than {FOLDER_ENTRIES_MAX} entries")]
    TooManyEntries { folder: String },
    #[error("two names in folder {folder:?} have the same 64-bit hash, a HAMT cannot hold both")]
    NamesCollide { folder: String },
}

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathFault {
    #[error("more than {PATH_BYTES_MAX} bytes")]
    TooLong,
    #[error("more than {DEPTH_MAX} names deep")]
    TooDeep,
    #[error("an empty name (no leading, trailing or double slash is allowed)")]
    EmptyName,
    #[error("a name `.` or `..`")]
    DotName,
    #[error("a NUL in a name")]
    Nul,
    #[error("a name of more than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
}
