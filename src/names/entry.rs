//! Entries of Skynet's registry: small values of 113 bytes under a public key, with a revision (`skynet.md` 7). Pure.
//!
//! An entry is found by its id, the hash of its public key and its data key; a version 2 skylink is that id. Its owner
//! signs data key, data and revision. Of two entries with one id the higher revision wins; of equal revisions the one
//! with more work, which is the smaller hash.

use std::fmt;

use ed25519_dalek::{Signature, VerifyingKey};

use crate::address::Skylink;
use crate::records::{Kind, Order, Record, RecordKey};

/// Most data of an entry, so that a host's slot is 256 bytes (`skynet.md` 7).
pub const ENTRY_DATA_BYTES_MAX: usize = 113;
/// What comes first in the data of type 2: the start of the hash of a host's public key.
const HOST_KEY_BYTES: usize = 20;
pub const ENTRY_SIGNATURE_BYTES: usize = 64;
const ALGORITHM: &str = "ed25519";
/// Body of a record: type, public key, data key, revision, length of the data; data and signature follow.
const BODY_HEAD_BYTES: usize = 1 + 32 + 32 + 8 + 1;

/// The ed25519 key of an entry's owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryKey(pub [u8; 32]);

impl EntryKey {
    /// Reads `ed25519:` and 64 hex digits.
    pub fn parse(text: &str) -> Option<EntryKey> {
        let (algorithm, hex) = text.split_once(':')?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex, &mut bytes).ok()?;
        (algorithm == ALGORITHM).then_some(EntryKey(bytes))
    }
}

impl fmt::Display for EntryKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{ALGORITHM}:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for EntryKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "EntryKey({self})")
    }
}

/// What an entry is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub [u8; 32]);

impl EntryId {
    pub fn of(key: &EntryKey, datakey: &[u8; 32]) -> EntryId {
        // A public key in Sia's encoding: the algorithm in 16 bytes, the length, the key.
        let mut algorithm = [0; 16];
        algorithm[..ALGORITHM.len()].copy_from_slice(ALGORITHM.as_bytes());
        EntryId(hash_of(&[&algorithm, &number(32), &key.0, datakey]))
    }

    /// The version 2 skylink that is this id.
    pub fn skylink(&self) -> Skylink {
        Skylink::v2(self.0)
    }

    /// Where its records are kept.
    pub fn record_key(&self) -> RecordKey {
        RecordKey::entry(&self.0)
    }

    /// The id that a record of kind `entry` is kept under.
    pub(super) fn of_record(key: &RecordKey) -> Option<EntryId> {
        EntryId::parse(key.text()).filter(|_| key.kind() == Kind::Entry)
    }

    /// Reads 64 hex digits.
    pub fn parse(text: &str) -> Option<EntryId> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(EntryId(bytes))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "EntryId({self})")
    }
}

/// What kind of entry it is, as a number in JSON and in signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryType {
    /// All data are the owner's.
    Plain = 1,
    /// The data begin with the hash of a host's key, and the entry is *primary* on that host. Stored and served here like
    /// any other; no host of this gateway has such a key, so it is primary nowhere.
    Hosted = 2,
}

impl EntryType {
    pub fn from_number(number: u64) -> Option<EntryType> {
        match number {
            1 => Some(EntryType::Plain),
            2 => Some(EntryType::Hosted),
            _ => None,
        }
    }
}

/// Why bytes are no entry, or an entry is not its owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    #[error("an entry has at most {ENTRY_DATA_BYTES_MAX} bytes of data, this one {0}")]
    TooLong(usize),
    #[error("the data of an entry of type 2 begin with the hash of a host's key, {HOST_KEY_BYTES} bytes")]
    NoHostKey,
    #[error("the body is no entry")]
    Body,
    #[error("the public key is no point of the curve")]
    Key,
    #[error("the signature does not verify")]
    Signature,
    #[error("its {0} is not the one of the record")]
    OtherPlace(&'static str),
}

/// Why an entry does not replace the one that is there, in Skynet's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReplacing {
    #[error("provided revision number is invalid")]
    LowerRevision,
    #[error("entry doesn't have enough pow to replace existing entry")]
    LessWork,
    #[error("provided revision number is already registered")]
    SameRevision,
}

/// An entry with its lengths checked; not signed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    key: EntryKey,
    datakey: [u8; 32],
    data: Vec<u8>,
    revision: u64,
    entry_type: EntryType,
}

impl Entry {
    pub fn new(key: EntryKey, datakey: [u8; 32], data: Vec<u8>, revision: u64, entry_type: EntryType) -> Result<Entry, BadEntry> {
        match entry_type {
            _ if data.len() > ENTRY_DATA_BYTES_MAX => Err(BadEntry::TooLong(data.len())),
            EntryType::Hosted if data.len() < HOST_KEY_BYTES => Err(BadEntry::NoHostKey),
            EntryType::Hosted | EntryType::Plain => Ok(Entry { key, datakey, data, revision, entry_type }),
        }
    }

    pub fn key(&self) -> &EntryKey {
        &self.key
    }

    pub fn datakey(&self) -> &[u8; 32] {
        &self.datakey
    }

    pub fn data(&self) -> &[u8] {
        &self.data
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn entry_type(&self) -> EntryType {
        self.entry_type
    }

    pub fn id(&self) -> EntryId {
        EntryId::of(&self.key, &self.datakey)
    }

    /// What the owner signs.
    pub fn signed_hash(&self) -> [u8; 32] {
        let (length, revision) = (number(self.data.len() as u64), number(self.revision));
        match self.entry_type {
            EntryType::Plain => hash_of(&[&self.datakey, &length, &self.data, &revision]),
            EntryType::Hosted => {
                // The type takes eight bytes, as the vectors say and not the single one of `skynet.md`.
                hash_of(&[&self.datakey, &length, &self.data, &revision, &number(EntryType::Hosted as u64)])
            }
        }
    }

    /// The smaller, the more work. Whose host an entry is for makes no difference.
    pub fn work_hash(&self) -> [u8; 32] {
        let data = match self.entry_type {
            EntryType::Plain => &self.data[..],
            EntryType::Hosted => &self.data[HOST_KEY_BYTES..],
        };
        hash_of(&[&self.datakey, &number(data.len() as u64), data, &number(self.revision)])
    }

    /// Place among the entries of one id: revision, then work.
    pub fn order(&self) -> Order {
        Order::entry(self.revision, &self.work_hash().map(|byte| !byte))
    }

    /// May this one stand where `existing` does? Both have the same id.
    pub fn replaces(&self, existing: &Entry) -> Result<(), NotReplacing> {
        use std::cmp::Ordering;
        match self.revision.cmp(&existing.revision) {
            Ordering::Greater => Ok(()),
            Ordering::Less => Err(NotReplacing::LowerRevision),
            Ordering::Equal => match self.work_hash().cmp(&existing.work_hash()) {
                Ordering::Less => Ok(()),
                Ordering::Greater => Err(NotReplacing::LessWork),
                Ordering::Equal => Err(NotReplacing::SameRevision),
            },
        }
    }
}

/// An entry with a signature. Nothing says yet that it is its owner's: [`SignedEntry::verify`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEntry {
    pub entry: Entry,
    pub signature: [u8; ENTRY_SIGNATURE_BYTES],
}

impl SignedEntry {
    /// Strict: no weak keys, no second form of a signature.
    pub fn verify(&self) -> Result<(), BadEntry> {
        let key = VerifyingKey::from_bytes(&self.entry.key.0).map_err(|_| BadEntry::Key)?;
        let signature = Signature::from_bytes(&self.signature);
        key.verify_strict(&self.entry.signed_hash(), &signature).map_err(|_| BadEntry::Signature)
    }

    /// Body of the record of kind `entry` (`docs/formats.md` 5).
    pub fn to_body(&self) -> Vec<u8> {
        let entry = &self.entry;
        let mut body = Vec::with_capacity(BODY_HEAD_BYTES + entry.data.len() + ENTRY_SIGNATURE_BYTES);
        body.push(entry.entry_type as u8);
        body.extend_from_slice(&entry.key.0);
        body.extend_from_slice(&entry.datakey);
        body.extend_from_slice(&number(entry.revision));
        body.push(entry.data.len() as u8);
        body.extend_from_slice(&entry.data);
        body.extend_from_slice(&self.signature);
        body
    }

    /// Reads any bytes; never panics. The signature is not looked at.
    pub fn from_body(body: &[u8]) -> Result<SignedEntry, BadEntry> {
        let (head, rest) = body.split_at_checked(BODY_HEAD_BYTES).ok_or(BadEntry::Body)?;
        let data_length = usize::from(head[BODY_HEAD_BYTES - 1]);
        let (data, signature) = rest.split_at_checked(data_length).ok_or(BadEntry::Body)?;
        let part = |at: usize| <[u8; 32]>::try_from(&head[at..at + 32]).expect("32 bytes were cut out");
        let revision = u64::from_le_bytes(head[65..73].try_into().expect("8 bytes were cut out"));
        let entry_type = EntryType::from_number(u64::from(head[0])).ok_or(BadEntry::Body)?;
        let entry = Entry::new(EntryKey(part(1)), part(33), data.to_vec(), revision, entry_type)?;
        Ok(SignedEntry { entry, signature: signature.try_into().map_err(|_| BadEntry::Body)? })
    }

    /// The version to be kept on hosts.
    pub fn to_record(&self) -> Record {
        Record::new(self.entry.id().record_key(), self.entry.order(), self.to_body())
    }
}

/// The check of [`crate::records`] for stored entries: signature, key and order follow from the body.
pub fn entry_owner_check(record: &Record) -> Result<(), String> {
    check_record(record).map_err(|error| error.to_string())
}

fn check_record(record: &Record) -> Result<(), BadEntry> {
    let signed = SignedEntry::from_body(&record.body)?;
    if signed.entry.id().record_key() != record.key {
        return Err(BadEntry::OtherPlace("id"));
    }
    if signed.entry.order() != record.order {
        return Err(BadEntry::OtherPlace("revision or work"));
    }
    signed.verify()
}

/// The data key that clients make of a name.
pub fn datakey_of(name: &str) -> [u8; 32] {
    hash_of(&[&number(name.len() as u64), name.as_bytes()])
}

/// A number in Sia's encoding.
fn number(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

fn hash_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    for part in parts {
        state.update(part);
    }
    state.finalize().as_bytes().try_into().expect("the hash was asked for with 32 bytes")
}

/// Any bytes: never a panic, and what is taken as a body is written back the same.
#[cfg(test)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(signed) = SignedEntry::from_body(bytes) {
        assert_eq!(signed.to_body(), bytes);
        assert!(signed.entry.data().len() <= ENTRY_DATA_BYTES_MAX);
        assert_eq!(signed.entry.order().number(), signed.entry.revision());
        let _ = signed.verify();
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(key) = EntryKey::parse(text)
    {
        assert_eq!(EntryKey::parse(&key.to_string()), Some(key));
    }
}

#[cfg(test)]
mod tests;
