//! The record object: one signed version on a host (`docs/formats.md` 5).
//!
//! Three stages as types: bytes -> [`Unchecked`] (well-formed) -> [`Checked`] (kind, key and order equal the place it
//! came from, and the signature verifies). Only a [`Checked`] is returned, kept or written.

use std::{cmp::Ordering, fmt, sync::Arc};

use bytes::{BufMut, Bytes};

use super::{
    key::{PortalId, PortalKey},
    kind::{Kind, Order, RecordKey, Signer},
};

/// Largest record object, so that a version is one small write and one small read on any host.
pub const RECORD_BYTES_MAX: usize = 65_536;
const MAGIC: &[u8; 8] = b"SKYGREC\n";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 24;
const SIGNATURE_BYTES: usize = 64;
const FLAG_REMOVED: u8 = 1;

/// One version of something that moves.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    pub key: RecordKey,
    pub order: Order,
    /// This version says that the thing is gone; the body is empty. Only for kinds signed by the portal.
    pub removed: bool,
    pub body: Bytes,
}

impl Record {
    pub fn new(key: RecordKey, order: Order, body: impl Into<Bytes>) -> Record {
        Record { key, order, removed: false, body: body.into() }
    }

    /// The version that removes.
    pub fn removal(key: RecordKey, order: Order) -> Record {
        Record { key, order, removed: true, body: Bytes::new() }
    }
}

impl fmt::Debug for Record {
    /// Without the body: it may be an encrypted secret or an API key's hash.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed = if self.removed { ", removed" } else { "" };
        write!(out, "Record({}, {:?}{removed}, {} bytes)", self.key, self.order, self.body.len())
    }
}

/// Why an object does not count, or a record cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    #[error("a record has at most {RECORD_BYTES_MAX} bytes, this one {0}")]
    TooLong(usize),
    #[error("not a record object")]
    NotARecord,
    #[error("record format version {0} is newer than this program knows: use a newer skygate")]
    NewerFormat(u16),
    #[error("record kind code {0} is unknown")]
    UnknownKind(u8),
    #[error("reserved bits or bytes are set")]
    Reserved,
    #[error("the lengths do not fit the object or the kind")]
    Lengths,
    #[error("the key does not fit the kind")]
    Key,
    #[error("the order does not fit the kind")]
    Order,
    #[error("the object belongs to another place")]
    OtherPlace,
    #[error("a removed record has a body, or is of a kind that cannot be removed")]
    Removal,
    #[error("the portal's signature does not verify")]
    Signature,
    #[error("the owner's check failed: {0}")]
    Owner(String),
}

/// Checks a record whose signature is in its body: signature, key and order must all follow from the body.
pub type OwnerCheck = fn(&Record) -> Result<(), String>;

/// The checks of the kinds signed by their owners, brought by whoever knows what the bodies mean.
#[derive(Clone, Copy, Debug)]
pub struct OwnerChecks {
    pub entry: OwnerCheck,
    pub ipns: OwnerCheck,
}

impl OwnerChecks {
    /// No record of an owner counts.
    pub const REFUSE: OwnerChecks = OwnerChecks { entry: refuse, ipns: refuse };
}

fn refuse(record: &Record) -> Result<(), String> {
    Err(format!("records of kind {} are not taken here", record.key.kind()))
}

/// What says whether a record counts.
#[derive(Clone, Copy, Debug)]
pub struct Verifier {
    pub portal: PortalId,
    pub owners: OwnerChecks,
}

/// A well-formed object of which nothing is believed yet.
#[derive(Debug)]
pub struct Unchecked {
    record: Record,
    object: Bytes,
    signature: Option<[u8; SIGNATURE_BYTES]>,
}

impl Unchecked {
    /// Parses any bytes; never panics. The body shares memory with `object`.
    pub fn decode(object: &Bytes) -> Result<Unchecked, InvalidRecord> {
        if object.len() > RECORD_BYTES_MAX {
            return Err(InvalidRecord::TooLong(object.len()));
        }
        if !object.starts_with(MAGIC) || object.len() < HEADER_BYTES {
            return Err(InvalidRecord::NotARecord);
        }
        let u16_at = |at: usize| u16::from_le_bytes([object[at], object[at + 1]]);
        if u16_at(8) != VERSION {
            return Err(match u16_at(8) {
                0 => InvalidRecord::NotARecord,
                newer => InvalidRecord::NewerFormat(newer),
            });
        }
        let kind = Kind::from_code(object[10]).ok_or(InvalidRecord::UnknownKind(object[10]))?;
        if object[11] & !FLAG_REMOVED != 0 || object[21..24] != [0; 3] {
            return Err(InvalidRecord::Reserved);
        }
        let removed = object[11] & FLAG_REMOVED != 0;
        let (order_length, key_length) = (usize::from(u16_at(12)), usize::from(u16_at(14)));
        let body_length = u32::from_le_bytes([object[16], object[17], object[18], object[19]]) as usize;
        let signature_length = usize::from(object[20]);
        let wanted_signature = match kind.signer() {
            Signer::Portal => SIGNATURE_BYTES,
            Signer::Owner => 0,
        };
        // No overflow: three small numbers and one below 2^32 in 64 bits.
        let total = HEADER_BYTES + order_length + key_length + body_length + signature_length;
        if total != object.len() || signature_length != wanted_signature {
            return Err(InvalidRecord::Lengths);
        }
        let key_at = HEADER_BYTES + order_length;
        let body_at = key_at + key_length;
        let signature_at = body_at + body_length;
        let order = Order::from_bytes(kind, &object[HEADER_BYTES..key_at]).ok_or(InvalidRecord::Order)?;
        let text = std::str::from_utf8(&object[key_at..body_at]).map_err(|_| InvalidRecord::Key)?;
        let key = RecordKey::new(kind, text).map_err(|_| InvalidRecord::Key)?;
        let record = Record { key, order, removed, body: object.slice(body_at..signature_at) };
        check_removal(&record)?;
        let signature = object[signature_at..].try_into().ok();
        Ok(Unchecked { record, object: object.clone(), signature })
    }

    /// The record, if it belongs to this place and its signature verifies.
    pub fn check(self, key: &RecordKey, order: &Order, verifier: &Verifier) -> Result<Checked, InvalidRecord> {
        if self.record.key != *key || self.record.order != *order {
            return Err(InvalidRecord::OtherPlace);
        }
        match &self.signature {
            Some(signature) => {
                let signed = &self.object[..self.object.len() - SIGNATURE_BYTES];
                if !verifier.portal.verifies(&signed_hash(signed), signature) {
                    return Err(InvalidRecord::Signature);
                }
            }
            None => verifier.owners.check(&self.record)?,
        }
        Ok(Checked::of(self.record, self.object))
    }
}

impl OwnerChecks {
    fn check(&self, record: &Record) -> Result<(), InvalidRecord> {
        match record.key.kind() {
            Kind::Entry => (self.entry)(record),
            Kind::Ipns => (self.ipns)(record),
            Kind::Pin | Kind::Site | Kind::Hosts | Kind::Key | Kind::Secret | Kind::Block | Kind::Damage => {
                unreachable!("kinds of the portal always have a signature of 64 bytes")
            }
        }
        .map_err(InvalidRecord::Owner)
    }
}

/// A version that counts, with its object as written on hosts. Cheap to clone.
#[derive(Clone)]
pub struct Checked {
    record: Arc<Record>,
    object: Bytes,
    hash: [u8; 32],
}

impl Checked {
    fn of(record: Record, object: Bytes) -> Checked {
        let hash = super::hash_of(&[&object]);
        Checked { record: Arc::new(record), object, hash }
    }

    /// Builds the object of a record, signed by the portal or checked as its owner's.
    pub fn seal(record: Record, signer: &PortalKey, owners: &OwnerChecks) -> Result<Checked, InvalidRecord> {
        let kind = record.key.kind();
        if record.order.as_bytes().len() != kind.order_bytes() {
            return Err(InvalidRecord::Order);
        }
        check_removal(&record)?;
        let signature_length = match kind.signer() {
            Signer::Portal => SIGNATURE_BYTES,
            Signer::Owner => 0,
        };
        let (order, text) = (record.order.as_bytes(), record.key.text().as_bytes());
        let total = HEADER_BYTES + order.len() + text.len() + record.body.len() + signature_length;
        if total > RECORD_BYTES_MAX {
            return Err(InvalidRecord::TooLong(total));
        }
        let mut object = Vec::with_capacity(total);
        object.put_slice(MAGIC);
        object.put_u16_le(VERSION);
        object.put_u8(kind.code());
        object.put_u8(if record.removed { FLAG_REMOVED } else { 0 });
        object.put_u16_le(order.len() as u16);
        object.put_u16_le(text.len() as u16);
        object.put_u32_le(record.body.len() as u32);
        object.put_u8(signature_length as u8);
        object.put_slice(&[0; 3]);
        object.put_slice(order);
        object.put_slice(text);
        object.put_slice(&record.body);
        match kind.signer() {
            Signer::Portal => {
                let signature = signer.sign(&signed_hash(&object));
                object.put_slice(&signature);
            }
            Signer::Owner => owners.check(&record)?,
        }
        Ok(Checked::of(record, object.into()))
    }

    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    pub fn object(&self) -> &Bytes {
        &self.object
    }

    /// `H(object)`.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Which of two versions of one record wins: the greater order, then the greater hash of the object.
    pub fn rank(&self, other: &Checked) -> Ordering {
        self.record.order.cmp(&other.record.order).then(self.hash.cmp(&other.hash))
    }
}

impl fmt::Debug for Checked {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.record, out)
    }
}

/// A removal has no body; and an owner's removal could not be signed, so there is none.
fn check_removal(record: &Record) -> Result<(), InvalidRecord> {
    let possible = record.body.is_empty() && record.key.kind().signer() == Signer::Portal;
    if record.removed && !possible { Err(InvalidRecord::Removal) } else { Ok(()) }
}

fn signed_hash(signed: &[u8]) -> [u8; 32] {
    super::hash_of(&[b"skygate record v1", signed])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verifier(key: &PortalKey) -> Verifier {
        let owner: OwnerCheck = |record| match record.body.starts_with(b"owned") {
            true => Ok(()),
            false => Err("not owned".to_owned()),
        };
        Verifier { portal: key.id(), owners: OwnerChecks { entry: owner, ipns: OwnerChecks::REFUSE.ipns } }
    }

    fn portal() -> PortalKey {
        PortalKey::from_seed(&[42; 32])
    }

    fn pin(version: u64, body: &'static [u8]) -> Record {
        Record::new(RecordKey::pin(&[0x12, 0x20, 7], &[5; 16]).unwrap(), Order::version(version), body)
    }

    fn seal(record: Record) -> Result<Checked, InvalidRecord> {
        Checked::seal(record, &portal(), &verifier(&portal()).owners)
    }

    fn reopen(object: &Bytes, like: &Record) -> Result<Checked, InvalidRecord> {
        Unchecked::decode(object)?.check(&like.key, &like.order, &verifier(&portal()))
    }

    #[test]
    fn round_trips() {
        let entry_order = Order::entry(3, &[8; 32]);
        let records = [
            pin(1, b""),
            pin(u64::MAX, b"some body"),
            Record::removal(pin(1, b"").key, Order::version(2)),
            Record::new(RecordKey::entry(&[1; 32]), entry_order, &b"owned by someone"[..]),
            Record::new(RecordKey::host_table(), Order::version(1), vec![0; 65_000]),
        ];
        for record in records {
            let sealed = seal(record.clone()).unwrap();
            let again = reopen(sealed.object(), &record).unwrap();
            assert_eq!(**again.record(), record);
            assert_eq!(again.rank(&sealed), Ordering::Equal);
        }
    }

    #[test]
    fn bytes_of_an_object() {
        let sealed = seal(Record::new(RecordKey::host_table(), Order::version(258), &b"body"[..])).unwrap();
        let head = "534b59475245430a01000500080005000400000040000000\
                    0000000000000102\
                    7461626c65\
                    626f6479";
        let object = sealed.object();
        assert_eq!(hex::encode(&object[..object.len() - 64]), head);
        // Made with an independent program (RFC 8032 in Python).
        let signature = "cdd039fdfad9d6aa90529d4bf539aae01628dd8af4d2f518574f4f2e47672dec\
                         090180c8a812d55c32dfc54a9eb2cf97f4bfe74625fb9fce0e880d67a579d808";
        assert_eq!(hex::encode(&object[object.len() - 64..]), signature);
    }

    #[test]
    fn what_cannot_be_sealed() {
        let fits = RECORD_BYTES_MAX - 24 - 8 - 5 - 64;
        let table = |length: usize| Record::new(RecordKey::host_table(), Order::version(1), vec![1; length]);
        assert!(seal(table(fits)).is_ok());
        assert_eq!(seal(table(fits + 1)).unwrap_err(), InvalidRecord::TooLong(RECORD_BYTES_MAX + 1));
        let mut removed = pin(1, b"body");
        removed.removed = true;
        assert_eq!(seal(removed).unwrap_err(), InvalidRecord::Removal);
        let entry = Record::removal(RecordKey::entry(&[1; 32]), Order::entry(3, &[8; 32]));
        assert_eq!(seal(entry).unwrap_err(), InvalidRecord::Removal);
        let entry = Record::new(RecordKey::entry(&[1; 32]), Order::entry(3, &[8; 32]), &b"stolen"[..]);
        assert!(matches!(seal(entry), Err(InvalidRecord::Owner(_))));
        let entry = Record::new(RecordKey::entry(&[1; 32]), Order::version(3), &b"owned"[..]);
        assert_eq!(seal(entry).unwrap_err(), InvalidRecord::Order);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let record = pin(7, b"the body");
        let object = seal(record.clone()).unwrap().object().to_vec();
        for at in 0..object.len() {
            for bit in [0x01, 0x80] {
                let mut bad = object.clone();
                bad[at] ^= bit;
                assert!(reopen(&bad.into(), &record).is_err(), "byte {at}");
            }
        }
        for cut in 0..object.len() {
            assert!(reopen(&Bytes::copy_from_slice(&object[..cut]), &record).is_err());
        }
        let longer = Bytes::from([&object[..], b"x"].concat());
        assert_eq!(reopen(&longer, &record).unwrap_err(), InvalidRecord::Lengths);
    }

    #[test]
    fn reasons() {
        let record = pin(7, b"the body");
        let object = seal(record.clone()).unwrap().object().clone();
        let spoiled = |at: usize, byte: u8| {
            let mut bad = object.to_vec();
            bad[at] = byte;
            reopen(&bad.into(), &record).unwrap_err()
        };
        assert_eq!(spoiled(0, b'X'), InvalidRecord::NotARecord);
        assert_eq!(spoiled(8, 0), InvalidRecord::NotARecord);
        assert_eq!(spoiled(8, 2), InvalidRecord::NewerFormat(2));
        assert_eq!(spoiled(10, 8), InvalidRecord::UnknownKind(8));
        assert_eq!(spoiled(11, 2), InvalidRecord::Reserved);
        assert_eq!(spoiled(11, 1), InvalidRecord::Removal);
        assert_eq!(spoiled(22, 1), InvalidRecord::Reserved);
        assert_eq!(spoiled(19, 0xff), InvalidRecord::Lengths);
        assert_eq!(spoiled(20, 0), InvalidRecord::Lengths);
        assert_eq!(spoiled(24, 9), InvalidRecord::OtherPlace);
        assert_eq!(spoiled(object.len() - 1, 0xff), InvalidRecord::Signature);

        assert_eq!(reopen(&object, &pin(8, b"")).unwrap_err(), InvalidRecord::OtherPlace);
        let stranger = Verifier { portal: PortalKey::from_seed(&[1; 32]).id(), owners: OwnerChecks::REFUSE };
        let foreign = Unchecked::decode(&object).unwrap().check(&record.key, &record.order, &stranger);
        assert_eq!(foreign.unwrap_err(), InvalidRecord::Signature);
        let long = Bytes::from(vec![0; RECORD_BYTES_MAX + 1]);
        assert_eq!(Unchecked::decode(&long).unwrap_err(), InvalidRecord::TooLong(RECORD_BYTES_MAX + 1));
    }

    #[test]
    fn equal_orders_have_one_winner() {
        let (one, two) = (seal(pin(3, b"one")).unwrap(), seal(pin(3, b"two")).unwrap());
        assert_ne!(one.rank(&two), Ordering::Equal);
        assert_eq!(one.rank(&two), two.rank(&one).reverse());
        assert_eq!(one.rank(&two), one.hash.cmp(&two.hash));
        assert_eq!(seal(pin(4, b"")).unwrap().rank(&one), Ordering::Greater);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Unchecked::decode(&bytes.into());
        }

        #[test]
        fn random_headers_never_panic(
            fields in proptest::collection::vec(any::<u8>(), 14),
            tail in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0u8..9,
            (order, key, body) in (0u16..50, 0u16..80, 0u32..80),
        ) {
            let mut bytes = [MAGIC, &1u16.to_le_bytes()[..], &fields, &tail].concat();
            let _ = Unchecked::decode(&bytes.clone().into());
            bytes[10] = kind;
            bytes[11] &= 1;
            bytes[12..14].copy_from_slice(&order.to_le_bytes());
            bytes[14..16].copy_from_slice(&key.to_le_bytes());
            bytes[16..20].copy_from_slice(&body.to_le_bytes());
            bytes[20] = if kind < 3 { 0 } else { 64 };
            bytes[21..24].fill(0);
            bytes.resize(HEADER_BYTES + usize::from(order) + usize::from(key) + body as usize + usize::from(bytes[20]), 1);
            let _ = Unchecked::decode(&bytes.into());
        }

        #[test]
        fn changed_objects_never_panic_nor_verify(at in 0usize..200, byte: u8, cut in 0usize..250) {
            let record = pin(7, b"a body that is signed");
            let object = seal(record.clone()).unwrap().object().clone();
            let mut bad = object.to_vec();
            let at = at % bad.len();
            bad[at] = byte;
            bad.truncate(cut);
            let same = bad[..] == object[..];
            prop_assert_eq!(reopen(&bad.into(), &record).is_ok(), same);
        }
    }
}
