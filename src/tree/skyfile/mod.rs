//! Skyfiles: Skynet's file format, byte for byte. The bytes are described where they are written: `layout`, `metadata`, `base_sector`.
//!
//! A skyfile begins with its *base sector*: layout (99 bytes), *fanout* (piece roots of a large file), metadata JSON, and
//! for a small file the content itself. The root of the base sector is the skyfile's address, so every byte here is
//! part of an address: nothing is "about right".
//!
//! What the room does: writes base sectors ([`build_small`], [`build_large`]), reads them ([`parse`]), and knows which
//! piece roots hold which stretch of the content ([`SkyfileHead::slab`]).
//! What it hides: Go's JSON rules, the recursive base sector of very large files, the one-root fanout of k = 1.
//! What it must never know: hosts, sockets, HTTP, where sectors come from; it never awaits.
//!
//! Words: *base sector*, *layout*, *fanout* as in Skynet; *slab* = k + m pieces of one stretch of k x 4 MiB (Skynet says
//! chunk); *piece root* = sector root of one piece; *extension sectors* = the sectors that a recursive base sector points to.
//!
//! Limits: [`METADATA_BYTES_MAX`], [`SUBFILES_MAX`], [`LIST_ITEMS_MAX`], [`FANOUT_ROOTS_MAX`], all checked before memory is taken.
//! Encrypted skyfiles (skykeys) are recognised and refused with [`SkyfileError::Encrypted`].

mod base_sector;
mod layout;
mod metadata;
mod upload;
mod validate;

#[cfg(test)]
mod tests;

pub use base_sector::{
    BuiltSkyfile, FANOUT_ROOTS_MAX, NeedSectors, Parsed, SkySlab, SkyfileHead, build_large, build_small, fits_small, fuzz, parse,
    slab_bytes, slab_count,
};
pub use layout::{Cipher, LAYOUT_BYTES, Layout};
pub use metadata::{LIST_ITEMS_MAX, METADATA_BYTES_MAX, Metadata, SUBFILES_MAX, Subfile};
pub use upload::{
    DefaultPath, INDEX_TRYFILE, UploadFile, UploadMetadataError, UploadSaid, UploadShape, upload_content_type, upload_metadata,
};
pub use validate::{MetadataError, PathFault, validate, validate_path};

/// Why bytes are not a skyfile that can be read here, or cannot become one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkyfileError {
    /// More of the base sector is needed: ask again with at least `need_bytes` from its start. Where the stored data ends
    /// earlier, the missing bytes are zeros and the caller appends them.
    #[error("the skyfile's head needs {need_bytes} bytes of its base sector, {have_bytes} are at hand")]
    Truncated { have_bytes: usize, need_bytes: usize },
    /// The first byte is not a layout version this program knows.
    #[error("skyfile layout version {0} is not known")]
    UnknownVersion(u8),
    /// Encrypted with a skykey; its sizes and metadata cannot be read without the key.
    #[error("the skyfile is encrypted ({0:?}), a skykey is needed to read it")]
    Encrypted(Cipher),
    /// The bytes contradict themselves. They are checked against the address, so no other copy will be better.
    #[error("malformed skyfile: {0}")]
    Malformed(&'static str),
    /// The metadata is not JSON of the known shape.
    #[error("malformed skyfile metadata: {0}")]
    Metadata(String),
    /// A named limit of this program.
    #[error("{what}: {have} is more than the limit of {limit}")]
    TooLarge { what: &'static str, have: u64, limit: u64 },
}
