//! CIDs: text and bytes in, a checked value out.

use multibase::Base;

use super::hashes::{DIGEST_BYTES_MAX, Multihash, hash};
use super::{AddressError, varint};

/// Content identifier: version, codec and multihash of one block.
pub type Cid = cid::CidGeneric<DIGEST_BYTES_MAX>;

/// Longest text: base 2 of the longest CID (four nine-byte varints at most, 128 bytes of digest), rounded up. It also
/// bounds the work of base58, which is quadratic.
pub const CID_TEXT_BYTES_MAX: usize = 1_320;

/// Multicodec numbers of block contents that skygate tells apart.
pub mod codec {
    /// Plain bytes.
    pub const RAW: u64 = 0x55;
    /// Plain CBOR, without links.
    pub const CBOR: u64 = 0x51;
    /// Merkle DAG protobuf: UnixFS files and directories.
    pub const DAG_PB: u64 = 0x70;
    /// CBOR with links.
    pub const DAG_CBOR: u64 = 0x71;
    /// A public key, as IPNS names have it.
    pub const LIBP2P_KEY: u64 = 0x72;
    /// JSON with links.
    pub const DAG_JSON: u64 = 0x0129;
    /// Plain JSON.
    pub const JSON: u64 = 0x0200;
}

/// Parses a CID as people write it: version 0 (`Qm…`, base58 without prefix) or version 1 in any multibase.
/// The whole text must be the CID; nothing is cut off before or after it.
pub fn parse_cid(text: &str) -> Result<Cid, AddressError> {
    if text.len() > CID_TEXT_BYTES_MAX {
        return Err(AddressError::CidTooLong { have: text.len() });
    }
    let first = text.chars().next().ok_or(AddressError::CidEmpty)?;
    // 46 characters and `Qm` are what 0x12 0x20 and 32 bytes always become in base58; no multibase has the prefix `Q`.
    if text.len() == 46 && text.starts_with("Qm") {
        let bytes = Base::Base58Btc.decode(text).map_err(|_| AddressError::CidText("base58"))?;
        return parse_cid_bytes(&bytes);
    }
    let base = Base::from_code(first).map_err(|_| AddressError::CidBase(first))?;
    if base == Base::Identity {
        return Err(AddressError::CidBase(first));
    }
    let body = &text[first.len_utf8()..];
    let bytes = base.decode(body).map_err(|_| AddressError::CidText(base_name(base)))?;
    if bytes.first() == Some(&0x12) {
        return Err(AddressError::CidBytes("a version 0 CID has no multibase prefix"));
    }
    parse_cid_bytes(&bytes)
}

/// Parses a binary CID that fills `bytes` exactly.
pub fn parse_cid_bytes(bytes: &[u8]) -> Result<Cid, AddressError> {
    let (cid, used_bytes) = read_cid(bytes)?;
    if used_bytes != bytes.len() {
        return Err(AddressError::CidBytes("bytes are left over after it"));
    }
    Ok(cid)
}

/// Reads a binary CID from the start of `bytes` (as in a CAR); answers with it and the number of bytes it took.
pub fn read_cid(bytes: &[u8]) -> Result<(Cid, usize), AddressError> {
    if bytes.starts_with(&[0x12, 0x20]) {
        let digest = bytes.get(2..34).ok_or(AddressError::CidBytes("it ends inside the digest"))?;
        return Ok((cid_v0(digest.try_into().expect("the slice has 32 bytes")), 34));
    }
    let mut at = 0;
    let version = next_varint(bytes, &mut at)?;
    if version != 1 {
        return Err(AddressError::CidVersion(version));
    }
    let codec = next_varint(bytes, &mut at)?;
    let code = next_varint(bytes, &mut at)?;
    let digest_bytes = next_varint(bytes, &mut at)?;
    if digest_bytes > DIGEST_BYTES_MAX as u64 {
        return Err(AddressError::DigestTooLong { have: digest_bytes });
    }
    // The cast cannot lose anything: the line above bounds it.
    let end = at + digest_bytes as usize;
    let digest = bytes.get(at..end).ok_or(AddressError::CidBytes("it ends inside the digest"))?;
    Ok((Cid::new_v1(codec, wrap(code, digest)), end))
}

/// Version 1 CID over a SHA-256 digest.
pub fn cid_v1(codec: u64, sha2_256_digest: [u8; 32]) -> Cid {
    Cid::new_v1(codec, wrap(hash::SHA2_256, &sha2_256_digest))
}

/// Version 0 CID (always dag-pb) over a SHA-256 digest.
pub fn cid_v0(sha2_256_digest: [u8; 32]) -> Cid {
    Cid::new_v0(wrap(hash::SHA2_256, &sha2_256_digest)).expect("SHA-256 with 32 bytes is what version 0 takes")
}

/// The block itself when the CID carries it (identity hash); such blocks are never stored or asked for.
pub fn inline_bytes(cid: &Cid) -> Option<&[u8]> {
    (cid.hash().code() == hash::IDENTITY).then(|| cid.hash().digest())
}

fn wrap(code: u64, digest: &[u8]) -> Multihash {
    Multihash::wrap(code, digest).expect("the digest is not longer than the limit")
}

fn next_varint(bytes: &[u8], at: &mut usize) -> Result<u64, AddressError> {
    use varint::VarintError;
    let (value, used_bytes) = varint::read(&bytes[*at..]).map_err(|error| {
        AddressError::CidBytes(match error {
            VarintError::Short => "it ends inside a number",
            VarintError::Long => "a number has more than nine bytes",
            VarintError::NotShortest => "a number is not in its shortest form",
        })
    })?;
    *at += used_bytes;
    Ok(value)
}

fn base_name(base: Base) -> &'static str {
    match base {
        Base::Base58Btc | Base::Base58Flickr => "base58",
        Base::Base16Lower | Base::Base16Upper => "base16",
        Base::Base36Lower | Base::Base36Upper => "base36",
        Base::Base64 | Base::Base64Pad | Base::Base64Url | Base::Base64UrlPad => "base64",
        Base::Base32Lower | Base::Base32Upper | Base::Base32PadLower | Base::Base32PadUpper => "base32",
        _ => "multibase",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HELLO_V1: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    const HELLO_V0: &str = "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD";

    #[test]
    fn good_text() {
        let hello = parse_cid(HELLO_V1).unwrap();
        assert_eq!((hello.codec(), hello.hash().code()), (codec::RAW, hash::SHA2_256));
        assert_eq!(hello, cid_v1(codec::RAW, super::super::sha2_256(b"hello world")));
        assert_eq!(hello.to_string(), HELLO_V1);
        let old = parse_cid(HELLO_V0).unwrap();
        assert_eq!((old.version(), old.codec(), old.to_string().as_str()), (cid::Version::V0, codec::DAG_PB, HELLO_V0));
        for base in [Base::Base16Lower, Base::Base32Upper, Base::Base36Lower, Base::Base58Btc, Base::Base64Url, Base::Base2] {
            let text = hello.to_string_of_base(base).unwrap();
            assert_eq!(parse_cid(&text).unwrap(), hello, "{text}");
        }
        assert_eq!(inline_bytes(&parse_cid("bafkqaaa").unwrap()), Some(&b""[..]));
        assert_eq!(inline_bytes(&hello), None);
    }

    #[test]
    fn bad_text() {
        use AddressError::*;
        let long = format!("b{}", "a".repeat(CID_TEXT_BYTES_MAX));
        let rows = [
            ("", CidEmpty),
            ("QmInvalidCID", CidBase('Q')),
            ("\0abc", CidBase('\0')),
            ("bafkrei!", CidText("base32")),
            ("Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyf0", CidText("base58")),
            (&long, CidTooLong { have: long.len() }),
            ("b", CidBytes("it ends inside a number")),
            ("f01", CidBytes("it ends inside a number")),
            ("f0155122000", CidBytes("it ends inside the digest")),
            ("f015500000000", CidBytes("bytes are left over after it")),
            ("f0155800000", CidBytes("a number is not in its shortest form")),
            ("f01ffffffffffffffffffff01", CidBytes("a number has more than nine bytes")),
            ("f02550000", CidVersion(2)),
            ("f00550000", CidVersion(0)),
            ("f0155008101", DigestTooLong { have: 129 }),
            ("f015500ffffffff0f", DigestTooLong { have: 0xffff_ffff }),
            ("zQmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD", CidBytes("a version 0 CID has no multibase prefix")),
        ];
        for (text, expect) in rows {
            assert_eq!(parse_cid(text), Err(expect), "{text:?}");
        }
        // The library would take whatever stands behind `/ipfs/`; a CID here is the whole text or none.
        assert!(parse_cid(&format!("x/ipfs/{HELLO_V1}")).is_err());
        assert!(parse_cid(&format!("{HELLO_V1}/")).is_err());
    }

    #[test]
    fn bytes_round_trip_and_prefix() {
        for text in [HELLO_V0, HELLO_V1, "bafkqaaa"] {
            let cid = parse_cid(text).unwrap();
            let mut bytes = cid.to_bytes();
            assert_eq!(parse_cid_bytes(&bytes), Ok(cid));
            let length = bytes.len();
            bytes.extend_from_slice(b"more");
            assert_eq!(read_cid(&bytes), Ok((cid, length)));
            for cut in 0..length {
                assert!(read_cid(&bytes[..cut]).is_err(), "{text} cut at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn random_input_never_panics(text in "\\PC{0,120}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_cid(&text);
            if let Ok((cid, used)) = read_cid(&bytes) {
                prop_assert_eq!(cid.to_bytes(), &bytes[..used]);
            }
        }
    }
}
