//! The layout: the first 99 bytes of a base sector.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version = 1 |
//! | 1 | 8 | size of the content |
//! | 9 | 8 | size of the metadata |
//! | 17 | 8 | size of the fanout |
//! | 25 | 1 | data pieces of the fanout |
//! | 26 | 1 | parity pieces of the fanout |
//! | 27 | 8 | cipher type, in its last byte |
//! | 35 | 64 | key data |
//!
//! Integers are little-endian. [`Layout::decode`] only takes the fields apart: the layout of an encrypted skyfile holds
//! keystream in its numbers, so they mean nothing before [`Layout::cipher`] was looked at.

use super::SkyfileError;

/// Bytes of a layout.
pub const LAYOUT_BYTES: usize = 99;

/// The only layout version there ever was.
const VERSION: u8 = 1;

/// How a skyfile is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    Plain,
    Threefish,
    XChaCha20,
    Unknown([u8; 8]),
}

impl Cipher {
    fn from_bytes(bytes: [u8; 8]) -> Cipher {
        match bytes {
            [0, 0, 0, 0, 0, 0, 0, 1] => Cipher::Plain,
            [0, 0, 0, 0, 0, 0, 0, 3] => Cipher::Threefish,
            [0, 0, 0, 0, 0, 0, 0, 4] => Cipher::XChaCha20,
            other => Cipher::Unknown(other),
        }
    }

    fn to_bytes(self) -> [u8; 8] {
        match self {
            Cipher::Plain => [0, 0, 0, 0, 0, 0, 0, 1],
            Cipher::Threefish => [0, 0, 0, 0, 0, 0, 0, 3],
            Cipher::XChaCha20 => [0, 0, 0, 0, 0, 0, 0, 4],
            Cipher::Unknown(bytes) => bytes,
        }
    }
}

/// The fields of a layout, not yet checked against each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the content.
    pub size_bytes: u64,
    /// Bytes of the metadata JSON.
    pub metadata_bytes: u64,
    /// Bytes of the fanout; 0 for a small file.
    pub fanout_bytes: u64,
    /// k of the fanout; 0 for a small file.
    pub data_pieces: u8,
    /// m of the fanout; 0 for a small file.
    pub parity_pieces: u8,
    pub cipher: Cipher,
    /// Skykey id and nonce of an encrypted skyfile, else zeros.
    pub key_data: [u8; 64],
}

impl Layout {
    /// Takes the first [`LAYOUT_BYTES`] of a base sector apart.
    pub fn decode(prefix: &[u8]) -> Result<Layout, SkyfileError> {
        let Some(bytes) = prefix.first_chunk::<LAYOUT_BYTES>() else {
            return Err(SkyfileError::Truncated { have_bytes: prefix.len(), need_bytes: LAYOUT_BYTES });
        };
        if bytes[0] != VERSION {
            return Err(SkyfileError::UnknownVersion(bytes[0]));
        }
        let eight = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("eight bytes inside the layout") };
        Ok(Layout {
            size_bytes: u64::from_le_bytes(eight(1)),
            metadata_bytes: u64::from_le_bytes(eight(9)),
            fanout_bytes: u64::from_le_bytes(eight(17)),
            data_pieces: bytes[25],
            parity_pieces: bytes[26],
            cipher: Cipher::from_bytes(eight(27)),
            key_data: bytes[35..].try_into().expect("64 bytes are left"),
        })
    }

    /// The 99 bytes.
    pub fn encode(&self) -> [u8; LAYOUT_BYTES] {
        let mut bytes = [0; LAYOUT_BYTES];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.metadata_bytes.to_le_bytes());
        bytes[17..25].copy_from_slice(&self.fanout_bytes.to_le_bytes());
        bytes[25] = self.data_pieces;
        bytes[26] = self.parity_pieces;
        bytes[27..35].copy_from_slice(&self.cipher.to_bytes());
        bytes[35..].copy_from_slice(&self.key_data);
        bytes
    }
}
