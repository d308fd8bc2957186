//! Skylinks: 34 bytes that name a skyfile (version 1) or a registry entry (version 2), exactly as Skynet made them.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};

use super::AddressError;

/// Bitfield and hash, as bytes.
pub const SKYLINK_BYTES: usize = 34;

const BASE64_CHARS: usize = 46;
const BASE32_CHARS: usize = 55;
/// Skynet's sector. The address room knows no other room, so the number stands here, too.
const SECTOR_BYTES: u32 = 4 << 20;
/// Offsets and lengths are multiples of this in the smallest mode.
const ALIGN_BYTES: u32 = 4096;
/// Largest stretch of mode 0; each further mode doubles it.
const MODE_0_BYTES: u32 = 8 * ALIGN_BYTES;
/// The only bitfield of version 2.
const V2_BITFIELD: u16 = 1;

/// A checked skylink: every value of this type has a bitfield of a known version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Skylink {
    bitfield: u16,
    hash: [u8; 32],
}

/// What a skylink says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkylinkKind {
    /// A skyfile whose base sector has this root.
    V1 {
        /// Where the base sector's bytes begin in the sector (always 0 in practice).
        offset_bytes: u32,
        /// Upper bound of the used bytes; true lengths stand in the layout.
        fetch_bytes: u32,
        /// Merkle root of the sector.
        root: [u8; 32],
    },
    /// A registry entry that holds another skylink.
    V2 {
        /// Hash of the entry's public key and data key.
        entry_id: [u8; 32],
    },
}

impl Skylink {
    /// Parses 46 characters of base64url or 55 of base32 (any case). The text is first cut at `?`, then at `/`.
    /// `sia://` is not taken here: clients strip it, the original server refused it.
    pub fn parse(text: &str) -> Result<Skylink, AddressError> {
        let text = text.split('?').next().unwrap_or(text);
        let text = text.split('/').next().unwrap_or(text);
        let bytes = match text.len() {
            BASE64_CHARS => BASE64.decode(text.as_bytes()).map_err(|_| AddressError::SkylinkText("base64url"))?,
            BASE32_CHARS => BASE32.decode(text.as_bytes()).map_err(|_| AddressError::SkylinkText("base32"))?,
            other => return Err(AddressError::SkylinkLength(other)),
        };
        let bytes: [u8; SKYLINK_BYTES] = bytes.try_into().expect("46 base64 or 55 base32 characters are 34 bytes");
        Skylink::from_bytes(&bytes)
    }

    /// Has the text the form of base32, as labels of hosts have it? In any case; whether it is a skylink shows when it is parsed.
    pub fn is_base32(text: &str) -> bool {
        text.len() == BASE32_CHARS && text.bytes().all(|byte| matches!(byte.to_ascii_lowercase(), b'0'..=b'9' | b'a'..=b'v'))
    }

    /// Takes the 34 raw bytes: bitfield (little-endian), hash.
    pub fn from_bytes(bytes: &[u8; SKYLINK_BYTES]) -> Result<Skylink, AddressError> {
        let bitfield = u16::from_le_bytes([bytes[0], bytes[1]]);
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[2..]);
        if bitfield != V2_BITFIELD {
            stretch(bitfield)?;
        }
        Ok(Skylink { bitfield, hash })
    }

    /// Makes a version 1 skylink. A length that no bitfield can say is rounded up; 0 counts as one unit of 4 KiB.
    pub fn v1(offset_bytes: u32, length_bytes: u32, root: [u8; 32]) -> Result<Skylink, AddressError> {
        if length_bytes > SECTOR_BYTES {
            return Err(AddressError::SkylinkStretch);
        }
        let length_bytes = length_bytes.max(1);
        let mode = length_bytes.div_ceil(MODE_0_BYTES).next_power_of_two().trailing_zeros();
        let offset_align_bytes = ALIGN_BYTES << mode;
        if !offset_bytes.is_multiple_of(offset_align_bytes) {
            return Err(AddressError::SkylinkAlign { offset_bytes, align_bytes: offset_align_bytes });
        }
        let size_units = length_bytes.div_ceil(size_align_bytes(mode));
        // Above mode 0 the eight smaller sizes belong to the mode below, so counting starts at nine.
        let size_index = if mode == 0 { size_units - 1 } else { size_units - 9 };
        let offset_index = offset_bytes / offset_align_bytes;
        let bits = (((offset_index << 3) | size_index) << (mode + 1)) | ((1 << mode) - 1);
        let bitfield = u16::try_from(bits << 2).map_err(|_| AddressError::SkylinkStretch)?;
        stretch(bitfield)?;
        Ok(Skylink { bitfield, hash: root })
    }

    /// The version 2 skylink of a registry entry.
    pub fn v2(entry_id: [u8; 32]) -> Skylink {
        Skylink { bitfield: V2_BITFIELD, hash: entry_id }
    }

    /// What it says.
    pub fn kind(&self) -> SkylinkKind {
        if self.bitfield == V2_BITFIELD {
            return SkylinkKind::V2 { entry_id: self.hash };
        }
        let (offset_bytes, fetch_bytes) = stretch(self.bitfield).expect("checked when the value was made");
        SkylinkKind::V1 { offset_bytes, fetch_bytes, root: self.hash }
    }

    /// The 34 raw bytes.
    pub fn to_bytes(&self) -> [u8; SKYLINK_BYTES] {
        let mut bytes = [0; SKYLINK_BYTES];
        bytes[..2].copy_from_slice(&self.bitfield.to_le_bytes());
        bytes[2..].copy_from_slice(&self.hash);
        bytes
    }

    /// The 16 bits before the hash.
    pub fn bitfield(&self) -> u16 {
        self.bitfield
    }

    /// Sector root (version 1) or entry id (version 2).
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The 55 characters of base32, lower-case, as host names have it.
    pub fn base32(&self) -> String {
        data_encoding::BASE32HEX_NOPAD.encode(&self.to_bytes()).to_ascii_lowercase()
    }

    /// What Skynet's blocklists hold: BLAKE2b-256 of the root alone, so that every skylink to it is hit.
    pub fn blocklist_hash(&self) -> [u8; 32] {
        let digest = blake2b_simd::Params::new().hash_length(32).hash(&self.hash);
        digest.as_bytes().try_into().expect("32 bytes were asked for")
    }
}

/// Base64url, the form that people see.
impl fmt::Display for Skylink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        data_encoding::BASE64URL_NOPAD.encode_display(&self.to_bytes()).fmt(out)
    }
}

impl fmt::Debug for Skylink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Skylink({self})")
    }
}

impl FromStr for Skylink {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Skylink, AddressError> {
        Skylink::parse(text)
    }
}

/// Offset and fetch size of a version 1 bitfield, both in bytes (`specs/skynet.md` 2).
fn stretch(bitfield: u16) -> Result<(u32, u32), AddressError> {
    if bitfield & 3 != 0 {
        return Err(AddressError::SkylinkVersion);
    }
    let bits = u32::from(bitfield >> 2);
    let mode = bits.trailing_ones();
    if mode > 7 {
        return Err(AddressError::SkylinkStretch);
    }
    let rest = bits >> (mode + 1);
    let extra_units = if mode == 0 { 0 } else { 8 };
    let fetch_bytes = ((rest & 7) + 1 + extra_units) * size_align_bytes(mode);
    let offset_bytes = (rest >> 3) * (ALIGN_BYTES << mode);
    if offset_bytes + fetch_bytes > SECTOR_BYTES {
        return Err(AddressError::SkylinkStretch);
    }
    Ok((offset_bytes, fetch_bytes))
}

fn size_align_bytes(mode: u32) -> u32 {
    if mode == 0 { ALIGN_BYTES } else { ALIGN_BYTES << (mode - 1) }
}

// The original decoder ignores the unused bits of the last character, so links in the wild may have them set.
static BASE64: LazyLock<Encoding> =
    LazyLock::new(|| lenient("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", "", ""));
static BASE32: LazyLock<Encoding> =
    LazyLock::new(|| lenient("0123456789ABCDEFGHIJKLMNOPQRSTUV", "abcdefghijklmnopqrstuv", "ABCDEFGHIJKLMNOPQRSTUV"));

fn lenient(symbols: &str, translate_from: &str, translate_to: &str) -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str(symbols);
    specification.translate.from.push_str(translate_from);
    specification.translate.to.push_str(translate_to);
    specification.check_trailing_bits = false;
    specification.encoding().expect("the alphabets are constants that the tests cover")
}

/// Whatever the bytes are, parsing ends, and a skylink that parses has three forms that are read back as the same one.
#[cfg(test)]
pub fn fuzz(data: &[u8]) {
    let texts = [String::from_utf8_lossy(data).into_owned()];
    let raw = data.first_chunk::<SKYLINK_BYTES>().map(Skylink::from_bytes);
    for link in texts.iter().map(|text| Skylink::parse(text)).chain(raw).flatten() {
        assert_eq!(Skylink::parse(&link.to_string()), Ok(link));
        assert_eq!(Skylink::parse(&link.base32()), Ok(link));
        assert_eq!(Skylink::from_bytes(&link.to_bytes()), Ok(link));
        assert!(Skylink::is_base32(&link.base32()));
        match link.kind() {
            SkylinkKind::V1 { offset_bytes, fetch_bytes, .. } => assert!(offset_bytes + fetch_bytes <= SECTOR_BYTES),
            SkylinkKind::V2 { entry_id } => assert_eq!(Skylink::v2(entry_id), link),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::test_shared::{mutations, shared_json};
    use super::*;

    fn text<'a>(row: &'a Value, key: &str) -> &'a str {
        row[key].as_str().unwrap()
    }

    fn number(row: &Value, key: &str) -> u32 {
        u32::try_from(row[key].as_u64().unwrap()).unwrap()
    }

    fn check_forms(link: &Skylink, row: &Value) {
        assert_eq!(link.to_string(), text(row, "base64"));
        assert_eq!(link.base32(), text(row, "base32").to_ascii_lowercase());
        assert_eq!(hex::encode(link.to_bytes()), text(row, "raw_hex"));
        assert_eq!(u32::from(link.bitfield()), number(row, "bitfield"));
        if let SkylinkKind::V1 { offset_bytes, fetch_bytes, root } = link.kind() {
            assert_eq!((offset_bytes, fetch_bytes), (number(row, "offset"), number(row, "fetchsize")));
            assert_eq!(&root, link.hash());
        }
    }

    #[test]
    fn encode_vectors() {
        let Some(file) = shared_json("skynet-vectors/skylinks.json") else {
            return;
        };
        for row in file["encode_v1"].as_array().unwrap() {
            let mut root = [0; 32];
            if let Some(given) = row.get("merkleroot") {
                hex::decode_to_slice(given.as_str().unwrap(), &mut root).unwrap();
            }
            let made = Skylink::v1(number(row, "offset_in"), number(row, "length_in"), root);
            match row.get("error") {
                Some(error) => assert!(made.is_err(), "{row} ought to fail with {error}"),
                None => check_forms(&made.unwrap_or_else(|error| panic!("{row}: {error}")), row),
            }
        }
    }

    #[test]
    fn parse_vectors() {
        let Some(file) = shared_json("skynet-vectors/skylinks.json") else {
            return;
        };
        for row in file["parse"].as_array().unwrap() {
            let parsed = Skylink::parse(text(row, "string"));
            if row.get("error").is_some() {
                assert!(parsed.is_err(), "{row}");
                continue;
            }
            let link = parsed.unwrap_or_else(|error| panic!("{row}: {error}"));
            check_forms(&link, row);
            match link.kind() {
                SkylinkKind::V1 { .. } => {
                    assert_eq!(row["version"], 1);
                    assert_eq!(hex::encode(link.blocklist_hash()), text(row, "blocklist_hash"));
                }
                SkylinkKind::V2 { .. } => assert_eq!(row["version"], 2),
            }
        }
    }

    #[test]
    fn census_of_all_bitfields() {
        let (mut v1, mut v2, mut invalid) = (0, 0, 0);
        for bitfield in 0..=u16::MAX {
            let mut bytes = [7; SKYLINK_BYTES];
            bytes[..2].copy_from_slice(&bitfield.to_le_bytes());
            match Skylink::from_bytes(&bytes).map(|link| (link, link.kind())) {
                Ok((link, SkylinkKind::V1 { offset_bytes, fetch_bytes, root })) => {
                    v1 += 1;
                    assert_eq!(Skylink::v1(offset_bytes, fetch_bytes, root), Ok(link));
                }
                Ok((_, SkylinkKind::V2 { .. })) => v2 += 1,
                Err(_) => invalid += 1,
            }
        }
        assert_eq!((v1, v2, invalid), (15_984, 1, 49_551));
        let Some(file) = shared_json("skynet-vectors/skylinks.json") else {
            return;
        };
        for row in file["bitfield_samples"].as_array().unwrap() {
            let bitfield = u16::try_from(number(row, "bitfield")).unwrap();
            assert_eq!(stretch(bitfield), Ok((number(row, "offset"), number(row, "fetchsize"))), "{row}");
        }
    }

    #[test]
    fn links_of_other_projects_tests() {
        let Some(file) = shared_json("skynet-vectors/skylinks_from_tests.json") else {
            return;
        };
        for pair in file["base64_base32_pairs"].as_array().unwrap() {
            let (base64, base32) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
            assert_eq!(Skylink::parse(base64).unwrap().base32(), base32);
            assert_eq!(Skylink::parse(base32).unwrap().to_string(), base64);
        }
        for row in file["raw"].as_array().unwrap() {
            let link = Skylink::parse(text(row, "base64")).unwrap();
            assert_eq!(hex::encode(link.hash()), text(row, "merkleroot_hex"));
            assert_eq!(u32::from(link.bitfield()), number(row, "bitfield"));
            assert_eq!(Skylink::v2(*link.hash()), link);
        }
        for row in file["resolver_skylinks"].as_array().unwrap() {
            let link = Skylink::parse(text(row, "skylink_v2")).unwrap();
            assert!(matches!(link.kind(), SkylinkKind::V2 { .. }), "{row}");
        }
        for row in file["invalid_for_clients"].as_array().unwrap() {
            assert!(Skylink::parse(row.as_str().unwrap()).is_err(), "{row}");
        }
    }

    #[test]
    fn bad_text() {
        use AddressError::*;
        let rows = [
            ("", SkylinkLength(0)),
            ("sia://XABvi7JtJbQSMAcDwnUnmp2FKDPjg8_tTTFP4BwMSxVdEg", SkylinkLength(4)),
            ("XABvi7JtJbQSMAcDwnUnmp2FKDPjg8+tTTFP4BwMSxVdEg", SkylinkText("base64url")),
            ("zz06v2tidkir84hg0s1s4t97jaeoaa1jse1svrad657u070c9calq4g", SkylinkText("base32")),
            ("_____________________________________________w", SkylinkVersion),
            // 15 umlauts are 30 bytes: not a length, and never a cut inside a character.
            ("ääääääääääääääääääääääa", SkylinkLength(45)),
            ("äääääääääääääääääääääää", SkylinkText("base64url")),
        ];
        for (text, expect) in rows {
            assert_eq!(Skylink::parse(text), Err(expect), "{text:?}");
        }
        assert_eq!(Skylink::v1(0, SECTOR_BYTES + 1, [0; 32]), Err(SkylinkStretch));
        assert_eq!(Skylink::v1(SECTOR_BYTES, 1, [0; 32]), Err(SkylinkStretch));
        assert_eq!(Skylink::v1(0x8000_0000, 1, [0; 32]), Err(SkylinkStretch));
        assert_eq!(Skylink::v1(100, 1, [0; 32]), Err(SkylinkAlign { offset_bytes: 100, align_bytes: 4096 }));
    }

    #[test]
    fn fuzz_corpus() {
        let link = Skylink::v1(0, 99, [7; 32]).unwrap();
        for good in [link.to_string().into_bytes(), link.base32().into_bytes(), link.to_bytes().to_vec()] {
            fuzz(&good);
            for seed in 0..2000 {
                fuzz(&mutations(seed, &good));
            }
        }
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "[A-Za-z0-9_-]{46}|[a-v0-9]{55}|\\PC{0,60}") {
            if let Ok(link) = Skylink::parse(&text) {
                prop_assert_eq!(Skylink::parse(&link.to_string()), Ok(link));
                prop_assert_eq!(Skylink::parse(&link.base32()), Ok(link));
            }
        }
    }
}
