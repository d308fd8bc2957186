//! IPNS: names of keys, and the signed records under them (`ipfs-gateway.md` 5). Pure.
//!
//! A record is a protobuf whose field `data` is DAG-CBOR; `signatureV2` covers the bytes of `data`. Whatever else stands
//! in the protobuf is an older copy that must say the same, and is never trusted. [`verify`] does every check but the
//! one of time: a record that was good when it was stored stays a record, and [`IpnsRecord::expired`] says whether it
//! still holds.

use std::fmt;
use std::time::{Duration, SystemTime};

use libp2p_identity::PublicKey;
use multibase::Base;

use crate::address::{Cid, Multihash, codec, hash, parse_cid};
use crate::records::{Kind, Order, Record, RecordKey};

use super::wire::{CborMap, CborValue, Fields, Malformed, Value};

/// Largest record (IPNS specification, "Record size limit"). Looked at before anything is parsed.
pub const IPNS_RECORD_BYTES_MAX: usize = 10 * 1024;
/// Longest text of a peer id that is decoded: base58 is quadratic, and a key of 42 bytes in it takes 60 characters.
const PEER_ID_TEXT_MAX: usize = 128;
/// Public keys up to this length are inlined in the name, longer ones are hashed (libp2p, "Peer Ids").
const INLINE_KEY_BYTES_MAX: usize = 42;
const SHA2_256_BYTES: usize = 32;
/// In seconds since 1970.
const YEAR_10000: u64 = 253_402_300_800;
/// What the signature covers besides the data.
const SIGNATURE_PREFIX: &[u8] = b"ipns-signature:";

/// The name of a key: the multihash of its public part.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpnsName {
    key: Multihash,
}

impl IpnsName {
    /// Reads a peer id in base58 (`12D3Koo…`, `Qm…`), or a CIDv1 in any base with the codec libp2p-key, or dag-pb as
    /// old programs wrote it. `None` for everything else; domain names have a dot and are never keys.
    pub fn parse(text: &str) -> Option<IpnsName> {
        if text.len() <= PEER_ID_TEXT_MAX && (text.starts_with('1') || text.starts_with("Qm")) {
            let bytes = Base::Base58Btc.decode(text).ok()?;
            return IpnsName::of(Multihash::from_bytes(&bytes).ok()?);
        }
        let cid = parse_cid(text).ok()?;
        let known = cid.version() == cid::Version::V1 && matches!(cid.codec(), codec::LIBP2P_KEY | codec::DAG_PB);
        if known { IpnsName::of(*cid.hash()) } else { None }
    }

    /// Only the two hashes that names of keys have, with the lengths that they have there.
    fn of(key: Multihash) -> Option<IpnsName> {
        let fits = match key.code() {
            hash::SHA2_256 => key.size() as usize == SHA2_256_BYTES,
            hash::IDENTITY => (1..=INLINE_KEY_BYTES_MAX).contains(&(key.size() as usize)),
            _ => false,
        };
        fits.then_some(IpnsName { key })
    }

    /// CIDv1 with the codec libp2p-key.
    pub fn cid(&self) -> Cid {
        Cid::new_v1(codec::LIBP2P_KEY, self.key)
    }

    /// Where its records are kept.
    pub fn record_key(&self) -> RecordKey {
        RecordKey::new(Kind::Ipns, &self.to_string()).expect("base36 of at most 50 bytes fits the grammar of the kind")
    }

    /// The public key: from the record, if it hashes to this name, else out of the name itself.
    fn public_key(&self, given: Option<&[u8]>) -> Result<PublicKey, BadIpnsRecord> {
        let inlined = (self.key.code() == hash::IDENTITY).then(|| self.key.digest());
        let bytes = given.or(inlined).ok_or(BadIpnsRecord::NoKey)?;
        let key = PublicKey::try_decode_protobuf(bytes).map_err(|_| BadIpnsRecord::Key)?;
        match key.to_peer_id().to_bytes() == self.key.to_bytes() {
            true => Ok(key),
            false => Err(BadIpnsRecord::OtherKey),
        }
    }
}

/// The one form that names are shown and kept in: base36 (62 characters for ed25519, so that it fits a DNS label).
impl fmt::Display for IpnsName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&multibase::encode(Base::Base36Lower, self.cid().to_bytes()))
    }
}

impl fmt::Debug for IpnsName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "IpnsName({self})")
    }
}

/// Why bytes are no record of a name, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadIpnsRecord {
    #[error("it has {0} bytes, more than {IPNS_RECORD_BYTES_MAX}")]
    TooLong(usize),
    #[error("it is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("it has no signatureV2 and data; records with the first signature alone are no longer taken")]
    NoSignature,
    #[error("it does not bring the public key, and the name holds only its hash")]
    NoKey,
    #[error("its public key is malformed, or of an unknown kind")]
    Key,
    #[error("its public key is not the one of the name")]
    OtherKey,
    #[error("its data lack {0}, or have it in a wrong form")]
    Field(&'static str),
    #[error("its validity is of a kind that is not known ({0})")]
    ValidityType(u64),
    #[error("its end of validity is no time")]
    Validity,
    #[error("its signature does not verify")]
    Signature,
    #[error("its unsigned copy of {0} differs from the signed one")]
    Copy(&'static str),
    #[error("it was valid until {0}")]
    Expired(String),
}

/// A record whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpnsRecord {
    /// What the name points to: a content path, if the owner did it right.
    pub value: Vec<u8>,
    pub sequence: u64,
    /// How long an answer may be kept; 0 and nothing at all are the same.
    pub ttl: Option<Duration>,
    validity: Moment,
    /// As it stands in the record.
    pub validity_text: String,
}

impl IpnsRecord {
    /// Place among the records of one name: the higher sequence wins, of equal ones the later end of validity.
    pub fn order(&self) -> Order {
        Order::ipns(self.sequence, &self.validity.sortable())
    }

    /// The moment from which on it holds no longer.
    pub fn valid_until(&self) -> SystemTime {
        self.validity.time()
    }

    pub fn expired(&self, now: SystemTime) -> bool {
        now >= self.valid_until()
    }

    /// How long an answer made of it may be kept: its TTL, but never past its end (boxo 0.41).
    pub fn lifetime(&self, now: SystemTime, without_ttl: Duration) -> Duration {
        let left = self.valid_until().duration_since(now).unwrap_or_default();
        self.ttl.unwrap_or(without_ttl).min(left)
    }
}

/// Every check of a record but the one of time.
pub fn verify(name: &IpnsName, bytes: &[u8]) -> Result<IpnsRecord, BadIpnsRecord> {
    if bytes.len() > IPNS_RECORD_BYTES_MAX {
        return Err(BadIpnsRecord::TooLong(bytes.len()));
    }
    let entry = Entry::read(bytes)?;
    let (Some(signature), Some(data)) = (entry.signature_v2, entry.data) else { return Err(BadIpnsRecord::NoSignature) };
    let key = name.public_key(entry.public_key.filter(|key| !key.is_empty()))?;
    let signed = Signed::read(data)?;
    let message = [SIGNATURE_PREFIX, data].concat();
    if !key.verify(&message, signature) {
        return Err(BadIpnsRecord::Signature);
    }
    if entry.signature_v1.is_some() || entry.value.is_some() {
        signed.compare(&entry)?;
    }
    if signed.validity_type != 0 {
        return Err(BadIpnsRecord::ValidityType(signed.validity_type));
    }
    let validity_text = std::str::from_utf8(signed.validity).map_err(|_| BadIpnsRecord::Validity)?;
    Ok(IpnsRecord {
        value: signed.value.to_vec(),
        sequence: signed.sequence,
        ttl: signed.ttl.filter(|ttl| *ttl > 0).map(Duration::from_nanos),
        validity: Moment::parse(validity_text).ok_or(BadIpnsRecord::Validity)?,
        validity_text: validity_text.to_owned(),
    })
}

/// The check of [`crate::records`] for stored records. Their end of validity is not looked at: a record that has run
/// out is still the newest one its owner made.
pub fn owner_check(record: &Record) -> Result<(), String> {
    let name = IpnsName::parse(record.key.text()).filter(|name| name.to_string() == record.key.text());
    let name = name.ok_or("the key is not the name of a public key")?;
    let read = verify(&name, &record.body).map_err(|error| error.to_string())?;
    if read.order() == record.order { Ok(()) } else { Err("sequence or validity differ from the order".to_owned()) }
}

/// The fields of the protobuf, as they lie there. Of a field that comes twice the last counts.
#[derive(Default)]
struct Entry<'a> {
    value: Option<&'a [u8]>,
    signature_v1: Option<&'a [u8]>,
    validity_type: Option<u64>,
    validity: Option<&'a [u8]>,
    sequence: Option<u64>,
    ttl: Option<u64>,
    public_key: Option<&'a [u8]>,
    signature_v2: Option<&'a [u8]>,
    data: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    fn read(bytes: &'a [u8]) -> Result<Entry<'a>, Malformed> {
        let mut entry = Entry::default();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Value::Bytes(bytes)) => entry.value = Some(bytes),
                (2, Value::Bytes(bytes)) => entry.signature_v1 = Some(bytes),
                (3, Value::Number(number)) => entry.validity_type = Some(number),
                (4, Value::Bytes(bytes)) => entry.validity = Some(bytes),
                (5, Value::Number(number)) => entry.sequence = Some(number),
                (6, Value::Number(number)) => entry.ttl = Some(number),
                (7, Value::Bytes(bytes)) => entry.public_key = Some(bytes),
                (8, Value::Bytes(bytes)) => entry.signature_v2 = Some(bytes),
                (9, Value::Bytes(bytes)) => entry.data = Some(bytes),
                (1..=9, _) => return Err(Malformed("a field has a wrong type")),
                _ => {}
            }
        }
        Ok(entry)
    }
}

/// The signed fields. Unknown ones are passed over.
struct Signed<'a> {
    value: &'a [u8],
    validity: &'a [u8],
    validity_type: u64,
    sequence: u64,
    ttl: Option<u64>,
}

impl<'a> Signed<'a> {
    fn read(data: &'a [u8]) -> Result<Signed<'a>, BadIpnsRecord> {
        let (mut value, mut validity) = (None, None);
        let (mut validity_type, mut sequence, mut ttl) = (None, None, None);
        let mut map = CborMap::read(data)?;
        while let Some((key, found)) = map.next()? {
            match (key, found) {
                ("Value", CborValue::Bytes(bytes)) => value = Some(bytes),
                ("Validity", CborValue::Bytes(bytes)) => validity = Some(bytes),
                ("ValidityType", CborValue::Number(number)) => validity_type = Some(number),
                ("Sequence", CborValue::Number(number)) => sequence = Some(number),
                ("TTL", CborValue::Number(number)) => ttl = Some(number),
                ("Value", _) => return Err(BadIpnsRecord::Field("Value")),
                ("Validity", _) => return Err(BadIpnsRecord::Field("Validity")),
                ("ValidityType", _) => return Err(BadIpnsRecord::Field("ValidityType")),
                ("Sequence", _) => return Err(BadIpnsRecord::Field("Sequence")),
                // A negative TTL is of another CBOR type and comes here, too.
                ("TTL", _) => return Err(BadIpnsRecord::Field("TTL")),
                _ => {}
            }
        }
        Ok(Signed {
            value: value.ok_or(BadIpnsRecord::Field("Value"))?,
            validity: validity.ok_or(BadIpnsRecord::Field("Validity"))?,
            validity_type: validity_type.ok_or(BadIpnsRecord::Field("ValidityType"))?,
            sequence: sequence.ok_or(BadIpnsRecord::Field("Sequence"))?,
            ttl,
        })
    }

    /// The copies that programs of before 2021 read. A field that is not there has its default, as in all protobufs.
    fn compare(&self, entry: &Entry<'_>) -> Result<(), BadIpnsRecord> {
        let rows = [
            ("value", entry.value.unwrap_or_default() == self.value),
            ("validity", entry.validity.unwrap_or_default() == self.validity),
            ("validityType", entry.validity_type.unwrap_or_default() == self.validity_type),
            ("sequence", entry.sequence.unwrap_or_default() == self.sequence),
            ("ttl", entry.ttl.unwrap_or_default() == self.ttl.unwrap_or_default()),
        ];
        match rows.into_iter().find(|(_, same)| !same) {
            Some((name, _)) => Err(BadIpnsRecord::Copy(name)),
            None => Ok(()),
        }
    }
}

/// A point in time from 1970 on, exact to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    seconds: u64,
    nanos: u32,
}

impl Moment {
    /// RFC 3339 with up to nine digits behind the point. Earlier than 1970 is no end that a record could have.
    fn parse(text: &str) -> Option<Moment> {
        let bytes = text.as_bytes();
        let digits = |range: std::ops::Range<usize>| -> Option<i64> {
            let part = bytes.get(range)?;
            part.iter().all(u8::is_ascii_digit).then(|| part.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')))
        };
        let marks = [(4, b"-"), (7, b"-"), (10, b"T"), (13, b":"), (16, b":")];
        if !marks.iter().all(|(at, mark)| bytes.get(*at).is_some_and(|byte| mark.contains(&byte.to_ascii_uppercase()))) {
            return None;
        }
        let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
        let (hour, minute, second) = (digits(11..13)?, digits(14..16)?, digits(17..19)?);
        let fits = (1..=12).contains(&month) && (1..=days_of(year, month)).contains(&day);
        if !fits || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let mut at = 19;
        let mut nanos = 0;
        if bytes.get(at) == Some(&b'.') {
            let end = bytes[at + 1..].iter().position(|byte| !byte.is_ascii_digit()).map(|count| at + 1 + count)?;
            let count = u32::try_from(end - at - 1).ok().filter(|count| (1..=9).contains(count))?;
            nanos = u32::try_from(digits(at + 1..end)?).ok()? * 10u32.pow(9 - count);
            at = end;
        }
        let offset = match &bytes[at..] {
            [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
                let (hours, minutes) = (digits(at + 1..at + 3)?, digits(at + 4..at + 6)?);
                let seconds = (hours * 60 + minutes) * 60;
                (hours < 24 && minutes < 60).then_some(if *sign == b'+' { seconds } else { -seconds })?
            }
            _ => return None,
        };
        let seconds = ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second - offset;
        // An offset could lead into the year 10000, which no HTTP date can tell.
        let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds < YEAR_10000)?;
        Some(Moment { seconds, nanos })
    }

    /// Twelve bytes that sort by time: the validity in the order of a stored record (`docs/formats.md` 5).
    fn sortable(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&self.nanos.to_be_bytes());
        bytes
    }

    fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(self.seconds, self.nanos)
    }
}

fn days_of(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the Gregorian calendar, counted in years that begin in March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// Any bytes: never a panic, and what is taken has the form that is written back.
#[cfg(test)]
pub fn fuzz(bytes: &[u8]) {
    let name = IpnsName::parse("k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w").expect("a good name");
    if let Ok(record) = verify(&name, bytes) {
        assert!(bytes.len() <= IPNS_RECORD_BYTES_MAX);
        assert_eq!(record.order().number(), record.sequence);
    }
    let _ = Entry::read(bytes);
    let _ = Signed::read(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Moment::parse(text);
        if let Some(name) = IpnsName::parse(text) {
            assert_eq!(IpnsName::parse(&name.to_string()), Some(name));
            let _ = name.record_key();
        }
    }
}

#[cfg(test)]
mod tests;
