//! Addresses: what a client may name, parsed once into values that cannot be wrong any more.
//!
//! *Does*: CIDs and their hashes, skylinks, content paths (`/ipfs/…`, `/ipns/…`), and the path inside a tree.
//! *Hides*: multibase, multihash and varint bytes, base32 and base64 forms, percent-encoding.
//! *Must never know*: what stands behind an address, HTTP, storage, any other room.
//! *Words*: a **CID** names a block; a **skylink** names a skyfile (v1) or a registry entry (v2); a [`SitePath`] is the
//! way inside a tree, already percent-decoded.
//! *Limits*: [`CID_TEXT_BYTES_MAX`], [`DIGEST_BYTES_MAX`], [`PATH_BYTES_MAX`], [`PATH_SEGMENTS_MAX`], [`NAME_BYTES_MAX`].

mod cid;
mod content_path;
pub mod domain;
mod hashes;
mod site_path;
mod skylink;
#[cfg(test)]
pub(crate) mod test_shared;
pub mod varint;

pub use self::cid::{CID_TEXT_BYTES_MAX, Cid, cid_v0, cid_v1, codec, inline_bytes, parse_cid, parse_cid_bytes, read_cid};
pub use content_path::{Address, NAME_BYTES_MAX};
pub use hashes::{DIGEST_BYTES_MAX, HashError, Multihash, check_bytes, check_parts, hash, sha2_256};
pub use site_path::{PATH_BYTES_MAX, PATH_SEGMENTS_MAX, SitePath, TrailingSlash};
pub use skylink::{SKYLINK_BYTES, Skylink, SkylinkKind};

/// Why a text or bytes are not an address. All of these are the asker's fault (a 400 on the public side); asking again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The CID text is empty.
    #[error("the CID is empty")]
    CidEmpty,
    /// The CID text is longer than any CID of a 128-byte digest can be.
    #[error("the CID has {have} bytes of text, more than {CID_TEXT_BYTES_MAX}")]
    CidTooLong {
        /// Bytes of text that came.
        have: usize,
    },
    /// First character names no multibase.
    #[error("the CID starts with {0:?}, which is no known multibase")]
    CidBase(char),
    /// A character outside the alphabet of the CID's base, or a wrong length.
    #[error("the CID is not valid {0} text")]
    CidText(&'static str),
    /// The bytes end too early, or go on after the CID.
    #[error("the CID's bytes are malformed: {0}")]
    CidBytes(&'static str),
    /// CID version neither 0 nor 1.
    #[error("CID version {0} is not known")]
    CidVersion(u64),
    /// A digest above [`DIGEST_BYTES_MAX`] (IPIP-0512 for identity CIDs).
    #[error("the CID's digest has {have} bytes, more than {DIGEST_BYTES_MAX}")]
    DigestTooLong {
        /// Bytes that the CID claims.
        have: u64,
    },
    /// Not 46 or 55 characters.
    #[error("a skylink has 46 or 55 characters, this has {0}")]
    SkylinkLength(usize),
    /// A character outside base64url or base32.
    #[error("the skylink is not valid {0} text")]
    SkylinkText(&'static str),
    /// Bitfield of no known version.
    #[error("the skylink's version is not known")]
    SkylinkVersion,
    /// Bitfield of version 1 whose mode, or whose stretch, is impossible.
    #[error("the skylink's stretch does not lie inside a sector")]
    SkylinkStretch,
    /// Asked to make a skylink for an offset that its mode cannot express.
    #[error("offset {offset_bytes} is not on a boundary of {align_bytes} bytes")]
    SkylinkAlign {
        /// Offset asked for.
        offset_bytes: u32,
        /// Boundary that the length demands.
        align_bytes: u32,
    },
    /// A path above [`PATH_BYTES_MAX`].
    #[error("the path has {have} bytes, more than {PATH_BYTES_MAX}")]
    PathTooLong {
        /// Bytes that came.
        have: usize,
    },
    /// A path above [`PATH_SEGMENTS_MAX`].
    #[error("the path has more than {PATH_SEGMENTS_MAX} segments")]
    PathTooDeep,
    /// `%` without two hexadecimal digits.
    #[error("the path has a percent sign without two hexadecimal digits after it")]
    PathPercent,
    /// The decoded bytes are not UTF-8.
    #[error("the path is not UTF-8 after percent-decoding")]
    PathUtf8,
    /// NUL is no part of any name.
    #[error("the path holds a NUL")]
    PathNul,
    /// `/ipns/` without a name, or with an impossible one.
    #[error("the name is {0}")]
    Name(&'static str),
    /// None of the known forms.
    #[error("{0:?} is neither an /ipfs/ or /ipns/ path, nor a CID, nor a skylink")]
    NoAddress(String),
}
