//! Multihashes: which are known, and the check of bytes against one.

/// A hash code and a digest of at most [`DIGEST_BYTES_MAX`] bytes.
pub type Multihash = multihash::Multihash<DIGEST_BYTES_MAX>;

/// Longest digest: what IPIP-0512 lets an identity CID hold, and twice the longest real hash.
pub const DIGEST_BYTES_MAX: usize = 128;

/// Multicodec numbers of the hashes that are checked here.
pub mod hash {
    /// The digest is the data.
    pub const IDENTITY: u64 = 0x00;
    /// SHA-256.
    pub const SHA2_256: u64 = 0x12;
    /// SHA-512.
    pub const SHA2_512: u64 = 0x13;
    /// BLAKE2b with 32 bytes of output.
    pub const BLAKE2B_256: u64 = 0xb220;
}

/// Why bytes were not accepted for a multihash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// No known hash: the bytes can be neither trusted nor blamed.
    #[error("hash 0x{code:x} is not supported")]
    Unsupported {
        /// Multicodec number of the hash.
        code: u64,
    },
    /// A shortened digest proves too little (an empty one nothing), so it is refused.
    #[error("a digest of hash 0x{code:x} has {expect} bytes, this has {have}")]
    DigestLength {
        /// Multicodec number of the hash.
        code: u64,
        /// Bytes of the digest.
        have: usize,
        /// Bytes it ought to have.
        expect: usize,
    },
    /// The bytes are not the ones that were named. Corrupt is not missing.
    #[error("the bytes do not have the hash that they were asked by")]
    Mismatch,
}

/// Is `data` what `multihash` names?
pub fn check_bytes(multihash: &Multihash, data: &[u8]) -> Result<(), HashError> {
    check_parts(multihash, &[data])
}

/// [`check_bytes`] for data that lies in several places, one after the other (a dag-pb leaf: prefix, bytes of a file, suffix).
pub fn check_parts(multihash: &Multihash, parts: &[&[u8]]) -> Result<(), HashError> {
    let code = multihash.code();
    match code {
        hash::IDENTITY => compare_parts(multihash.digest(), parts),
        hash::SHA2_256 => compare_digest(multihash, ring_digest(&ring::digest::SHA256, parts).as_ref()),
        hash::SHA2_512 => compare_digest(multihash, ring_digest(&ring::digest::SHA512, parts).as_ref()),
        hash::BLAKE2B_256 => {
            let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
            for part in parts {
                state.update(part);
            }
            compare_digest(multihash, state.finalize().as_bytes())
        }
        _ => Err(HashError::Unsupported { code }),
    }
}

/// SHA-256 of `data`, the hash of every block that is made here.
pub fn sha2_256(data: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn ring_digest(algorithm: &'static ring::digest::Algorithm, parts: &[&[u8]]) -> ring::digest::Digest {
    let mut context = ring::digest::Context::new(algorithm);
    for part in parts {
        context.update(part);
    }
    context.finish()
}

fn compare_digest(multihash: &Multihash, computed: &[u8]) -> Result<(), HashError> {
    let named = multihash.digest();
    if named.len() != computed.len() {
        return Err(HashError::DigestLength { code: multihash.code(), have: named.len(), expect: computed.len() });
    }
    if named == computed { Ok(()) } else { Err(HashError::Mismatch) }
}

fn compare_parts(mut named: &[u8], parts: &[&[u8]]) -> Result<(), HashError> {
    for part in parts {
        named = named.strip_prefix(*part).ok_or(HashError::Mismatch)?;
    }
    if named.is_empty() { Ok(()) } else { Err(HashError::Mismatch) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(code: u64, digest_hex: &str) -> Multihash {
        Multihash::wrap(code, &hex::decode(digest_hex).unwrap()).unwrap()
    }

    #[test]
    fn known_digests_of_abc() {
        let rows = [
            (hash::SHA2_256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                hash::SHA2_512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
            (hash::BLAKE2B_256, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
            (hash::IDENTITY, "616263"),
        ];
        for (code, digest) in rows {
            let multihash = named(code, digest);
            assert_eq!(check_bytes(&multihash, b"abc"), Ok(()), "0x{code:x}");
            assert_eq!(check_parts(&multihash, &[b"a", b"", b"bc"]), Ok(()), "0x{code:x}");
            for wrong in [&b"abd"[..], b"ab", b"abcd", b""] {
                assert_eq!(check_bytes(&multihash, wrong), Err(HashError::Mismatch), "0x{code:x}");
            }
        }
    }

    #[test]
    fn shortened_digests_and_unknown_hashes_prove_nothing() {
        let empty = named(hash::SHA2_256, "");
        assert_eq!(check_bytes(&empty, b"abc"), Err(HashError::DigestLength { code: 0x12, have: 0, expect: 32 }));
        let half = named(hash::SHA2_256, "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(check_bytes(&half, b"abc"), Err(HashError::DigestLength { code: 0x12, have: 16, expect: 32 }));
        assert_eq!(check_bytes(&named(0x16, "00"), b"abc"), Err(HashError::Unsupported { code: 0x16 }));
    }
}
