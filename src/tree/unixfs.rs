//! UnixFS: the protobuf message inside dag-pb data that says file, directory or symlink.
//!
//! Unlike dag-pb this is ordinary protobuf: unknown fields are skipped, of repeated single fields the last counts.

use bytes::Bytes;

use super::proto::{Fields, Value, put_bytes, put_fixed32, put_number};
use super::{NODE_LINKS_MAX, TreeError};

const FORMAT: &str = "UnixFS";
const NANOS_MAX: u32 = 999_999_999;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// File bytes without more (old leaves).
    Raw,
    /// A directory in one block.
    Directory,
    /// A file, or a part of one.
    File,
    /// Never used by any writer.
    Metadata,
    /// Its data is the target.
    Symlink,
    /// One shard of a HAMT directory.
    HamtShard,
}

/// Modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mtime {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after that, below 1,000,000,000. `None`: the field is not there.
    pub nanos: Option<u32>,
}

/// The message, field by field; absent fields are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixFs {
    /// Type.
    pub kind: Kind,
    /// File bytes, symlink target or HAMT bitfield.
    pub data: Option<Bytes>,
    /// Bytes of the whole file below this node.
    pub filesize: Option<u64>,
    /// Bytes of file below each link.
    pub blocksizes: Vec<u64>,
    /// HAMT hash function, a multicodec number.
    pub hash_type: Option<u64>,
    /// HAMT width.
    pub fanout: Option<u64>,
    /// Unix permission bits.
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<Mtime>,
}

impl UnixFs {
    /// A message with only a type.
    pub fn new(kind: Kind) -> UnixFs {
        UnixFs { kind, data: None, filesize: None, blocksizes: Vec::new(), hash_type: None, fanout: None, mode: None, mtime: None }
    }
}

/// Decodes dag-pb data. Byte fields share its memory.
pub fn decode(message: &Bytes) -> Result<UnixFs, TreeError> {
    let mut fields = Fields::new(FORMAT, message, 0..message.len());
    let mut found = UnixFs::new(Kind::Raw);
    let mut kind = None;
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(value)) => kind = Some(kind_of(value)?),
            (2, Value::Bytes(range)) => found.data = Some(message.slice(range)),
            (3, Value::Varint(value)) => found.filesize = Some(value),
            (4, Value::Varint(value)) => push_blocksize(&mut found.blocksizes, value)?,
            // Repeated numbers may come packed: one string of varints.
            (4, Value::Bytes(range)) => {
                let mut packed = Fields::new(FORMAT, message, range);
                while !packed.is_done() {
                    let value = packed.varint()?;
                    push_blocksize(&mut found.blocksizes, value)?;
                }
            }
            (5, Value::Varint(value)) => found.hash_type = Some(value),
            (6, Value::Varint(value)) => found.fanout = Some(value),
            // A uint32 is cut to its low bits, as protobuf says.
            (7, Value::Varint(value)) => found.mode = Some(value as u32),
            (8, Value::Bytes(range)) => found.mtime = Some(decode_mtime(message, range)?),
            (1..=8, _) => return Err(malformed("a field has the wrong type")),
            _ => {}
        }
    }
    found.kind = kind.ok_or_else(|| malformed("the type is missing"))?;
    Ok(found)
}

/// Encodes as kubo does: fields by number, absent ones left out, blocksizes one by one.
pub fn encode(message: &UnixFs) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + message.data.as_ref().map_or(0, Bytes::len) + 6 * message.blocksizes.len());
    put_number(1, kind_number(message.kind), &mut out);
    if let Some(data) = &message.data {
        put_bytes(2, data, &mut out);
    }
    if let Some(filesize) = message.filesize {
        put_number(3, filesize, &mut out);
    }
    for blocksize in &message.blocksizes {
        put_number(4, *blocksize, &mut out);
    }
    if let Some(hash_type) = message.hash_type {
        put_number(5, hash_type, &mut out);
    }
    if let Some(fanout) = message.fanout {
        put_number(6, fanout, &mut out);
    }
    if let Some(mode) = message.mode {
        put_number(7, u64::from(mode), &mut out);
    }
    if let Some(mtime) = message.mtime {
        let mut inner = Vec::new();
        // Two's complement, as protobuf writes an int64.
        put_number(1, mtime.seconds as u64, &mut inner);
        if let Some(nanos) = mtime.nanos {
            put_fixed32(2, nanos, &mut inner);
        }
        put_bytes(8, &inner, &mut out);
    }
    out
}

fn decode_mtime(message: &Bytes, range: std::ops::Range<usize>) -> Result<Mtime, TreeError> {
    let mut fields = Fields::new(FORMAT, message, range);
    let (mut seconds, mut nanos) = (None, None);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Varint(value)) => seconds = Some(value as i64),
            (2, Value::Fixed32(value)) if value <= NANOS_MAX => nanos = Some(value),
            (1..=2, _) => return Err(malformed("a time field has the wrong type or value")),
            _ => {}
        }
    }
    let seconds = seconds.ok_or_else(|| malformed("a time has no seconds"))?;
    Ok(Mtime { seconds, nanos })
}

fn push_blocksize(blocksizes: &mut Vec<u64>, value: u64) -> Result<(), TreeError> {
    TreeError::check_limit("block sizes of a node", blocksizes.len() + 1, NODE_LINKS_MAX)?;
    blocksizes.push(value);
    Ok(())
}

fn kind_of(number: u64) -> Result<Kind, TreeError> {
    Ok(match number {
        0 => Kind::Raw,
        1 => Kind::Directory,
        2 => Kind::File,
        3 => Kind::Metadata,
        4 => Kind::Symlink,
        5 => Kind::HamtShard,
        _ => return Err(malformed("the type is not known")),
    })
}

fn kind_number(kind: Kind) -> u64 {
    match kind {
        Kind::Raw => 0,
        Kind::Directory => 1,
        Kind::File => 2,
        Kind::Metadata => 3,
        Kind::Symlink => 4,
        Kind::HamtShard => 5,
    }
}

fn malformed(why: &'static str) -> TreeError {
    TreeError::malformed(FORMAT, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_hex(text: &str) -> Result<UnixFs, TreeError> {
        decode(&Bytes::from(hex::decode(text.replace(' ', "")).unwrap()))
    }

    fn full() -> UnixFs {
        UnixFs {
            data: Some(Bytes::from_static(b"abc")),
            filesize: Some(303),
            blocksizes: vec![100, 200],
            hash_type: Some(0x22),
            fanout: Some(256),
            mode: Some(0o755),
            mtime: Some(Mtime { seconds: -5, nanos: Some(NANOS_MAX) }),
            ..UnixFs::new(Kind::File)
        }
    }

    #[test]
    fn round_trip() {
        for kind in [Kind::Raw, Kind::Directory, Kind::File, Kind::Metadata, Kind::Symlink, Kind::HamtShard] {
            let message = UnixFs::new(kind);
            assert_eq!(decode(&Bytes::from(encode(&message))), Ok(message));
        }
        assert_eq!(decode(&Bytes::from(encode(&full()))), Ok(full()));
    }

    #[test]
    fn rows() {
        assert_eq!(decode_hex("0801").unwrap().kind, Kind::Directory);
        assert_eq!(decode_hex("0801 0802").unwrap().kind, Kind::File, "the last of a repeated field counts");
        assert_eq!(decode_hex("0802 2203 017f05").unwrap().blocksizes, [1, 127, 5], "packed");
        assert_eq!(
            decode_hex("0802 78ff01 7a0161 7d01020304 79 0102030405060708").unwrap(),
            UnixFs::new(Kind::File),
            "unknown fields"
        );
        let rows = [
            ("", "the type is missing"),
            ("1200", "the type is missing"),
            ("0806", "the type is not known"),
            ("08ffffffffffffffffff01", "the type is not known"),
            ("0a00", "a field has the wrong type"),
            ("0801 1001", "a field has the wrong type"),
            ("0802 22 01 80", "it ends inside a number"),
            ("0802 12ffffffff0f", "a length points past the end"),
            ("0802 12ffffffffffffffffff01", "a length points past the end"),
            ("0802 4200", "a time has no seconds"),
            ("0802 42070800 15ffffffff", "a time field has the wrong type or value"),
            ("0802 42020a00", "a time field has the wrong type or value"),
            ("0802 7b", "a field has an unknown wire type"),
        ];
        for (text, expect) in rows {
            assert_eq!(decode_hex(text), Err(TreeError::malformed("UnixFS", expect)), "{text}");
        }
    }

    #[test]
    fn block_sizes_are_bounded() {
        let many = Bytes::from([vec![8, 2], [0x20, 0].repeat(NODE_LINKS_MAX + 1)].concat());
        assert!(matches!(decode(&many), Err(TreeError::TooLarge { what: "block sizes of a node", .. })));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = decode(&Bytes::from(bytes)) {
                prop_assert_eq!(decode(&Bytes::from(encode(&message))), Ok(message));
            }
        }

        #[test]
        fn damaged_messages_never_panic(at in 0usize..60, byte in any::<u8>()) {
            let mut bytes = encode(&full());
            let last = bytes.len() - 1;
            bytes[at.min(last)] = byte;
            let _ = decode(&Bytes::from(bytes));
        }
    }
}
