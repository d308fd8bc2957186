//! The tree: blocks into files and directories, and back.
//!
//! *Does*: dag-pb and UnixFS (read here, built in [`build`]), HAMT directories, CARs, packs, skyfiles, TAR and ZIP
//! archives.
//! *Hides*: protobuf, HAMT hashing, layouts of bytes.
//! *Must never know*: where blocks come from, HTTP, clocks. It never awaits and does no IO.
//! *Words*: a **block** has a CID; a **leaf** is a block of raw file bytes; a **node** is a block that was parsed ([`TreeNode`]);
//! a **shard** is one node of a HAMT directory.
//! *Limits*: [`NODE_BYTES_MAX`], [`NODE_LINKS_MAX`], [`FILE_DEPTH_MAX`], [`SYMLINK_BYTES_MAX`], and those of [`hamt`]. Whatever a
//! block says, parsing it takes time and memory in proportion to its own bytes.

pub mod build;
pub mod car;
pub mod dagpb;
pub mod hamt;
pub mod ipld;
mod node;
pub mod pack;
mod proto;
pub mod skyfile;
pub mod tar;
#[cfg(test)]
pub(crate) mod test_dag;
pub mod unixfs;
pub mod zip;

use std::borrow::Cow;

pub use hamt::{Shard, ShardItem, ShardNode};
pub use node::{DirNode, FileChild, FileNode, FilePart, TreeNode, fuzz, parse_node};
pub use unixfs::{Kind, Mtime, UnixFs};

/// Largest block that is parsed as a node. Blocks above 2 MiB do not travel between IPFS nodes; twice that leaves room for
/// archives of odd tools, and bounds what one parse can cost.
pub const NODE_BYTES_MAX: usize = 4 << 20;

/// Most links in a node. A parsed link takes some 200 bytes where the block may spend 8, so without this limit a block of
/// 4 MiB would fill 100 MiB. Real directories of 2 MiB have fewer than 45,000.
pub const NODE_LINKS_MAX: usize = 1 << 16;

/// Deepest file tree that readers follow. At two children a level this is 4 G leaves; real trees have two to five levels.
pub const FILE_DEPTH_MAX: usize = 32;

/// Longest symlink target: `PATH_MAX` of Linux; no system can make a longer one.
pub const SYMLINK_BYTES_MAX: usize = 4096;

/// Why bytes are no part of a tree. The bytes are bad for ever: asking again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The bytes break the rules of their format.
    #[error("malformed {format}: {why}")]
    Malformed {
        /// Which format: `dag-pb`, `UnixFS`, `HAMT`, …
        format: &'static str,
        /// What is wrong, for people.
        why: Cow<'static, str>,
    },
    /// A size or count above a named limit.
    #[error("{what}: {have} is more than the limit of {max}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// What the bytes say or have.
        have: u64,
        /// The limit.
        max: u64,
    },
    /// Well formed as far as can be seen, but of a version or kind that this program does not read.
    #[error("not supported: {what}")]
    Unsupported {
        /// Which version or kind.
        what: Cow<'static, str>,
    },
}

impl TreeError {
    /// Shorthand for [`TreeError::Malformed`].
    pub fn malformed(format: &'static str, why: impl Into<Cow<'static, str>>) -> TreeError {
        TreeError::Malformed { format, why: why.into() }
    }

    /// Shorthand for [`TreeError::Unsupported`].
    pub fn unsupported(what: impl Into<Cow<'static, str>>) -> TreeError {
        TreeError::Unsupported { what: what.into() }
    }

    /// `Ok` while `have` is within `max`.
    pub fn check_limit(what: &'static str, have: usize, max: usize) -> Result<(), TreeError> {
        if have <= max { Ok(()) } else { Err(TreeError::TooLarge { what, have: have as u64, max: max as u64 }) }
    }
}
