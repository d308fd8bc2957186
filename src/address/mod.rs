//! Placeholder of the `build` branch: the few words of `address` that `tree::build`, `tree::car` and `tree::pack` use.
//! The room itself comes with the `tree` branch and replaces this file.

/// A CID whose digest may have up to 128 bytes (the longest identity digest a reader takes).
pub type Cid = cid::CidGeneric<128>;
/// A multihash whose digest may have up to 128 bytes.
pub type Multihash = multihash::Multihash<128>;

/// Codes of codecs.
pub mod codec {
    pub const RAW: u64 = 0x55;
    pub const DAG_PB: u64 = 0x70;
}

/// Codes of hash functions.
pub mod hash {
    pub const IDENTITY: u64 = 0;
    pub const SHA2_256: u64 = 0x12;
}

/// The CIDv1 of a block with this codec and SHA-256.
pub fn cid_v1(codec: u64, sha256_digest: [u8; 32]) -> Cid {
    Cid::new_v1(codec, sha256(sha256_digest))
}

/// The CIDv0 (always dag-pb) of a block with this SHA-256.
pub fn cid_v0(sha256_digest: [u8; 32]) -> Cid {
    Cid::new_v0(sha256(sha256_digest)).expect("a SHA-256 digest of 32 bytes is what CIDv0 asks for")
}

fn sha256(digest: [u8; 32]) -> Multihash {
    Multihash::wrap(hash::SHA2_256, &digest).expect("32 bytes fit into 128")
}
