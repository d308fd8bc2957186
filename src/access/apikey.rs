//! API keys of others than the operator: made, revoked, kept as records, hashed (`docs/formats.md` 11).
//!
//! A secret has 256 random bits and is shown once. What is kept, in memory and on the hosts, is its hash. Another node's
//! keys and revocations come in by looking at the records again ([`RESCAN_EVERY`]); this node's are in force at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, SystemTime};

use crate::records::{Followed, Kind, Order, Record, RecordError, RecordKey, Records};
use serde::{Deserialize, Serialize};

use super::{SecretHash, hash_secret, new_secret};

/// Keys of one portal. Each takes about 500 bytes of memory.
pub const KEYS_MAX: usize = 100_000;
/// Longest name of a key, bytes.
pub const KEY_NAME_MAX: usize = 200;
/// How long a revocation on another node may stay unnoticed here. A look lists one folder on each host.
const RESCAN_EVERY: Duration = Duration::from_secs(10);
/// Version of the body that this program writes and reads.
const BODY_VERSION: u32 = 1;

/// Public name of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 16]);

impl KeyId {
    pub fn parse(text: &str) -> Option<KeyId> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).ok()?;
        Some(KeyId(id))
    }

    fn record_key(self) -> RecordKey {
        RecordKey::new(Kind::Key, &self.to_string()).expect("32 digits of hex are a key's text")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "KeyId({self})")
    }
}

/// What a key may do, where it is not what everybody may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyLimits {
    /// Largest upload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploads_per_minute: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploads_at_once: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_per_minute: Option<u32>,
    /// Different registry entries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries_per_day: Option<u32>,
}

/// A key that was made and not revoked. It may have expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    pub id: KeyId,
    /// As owner of what it stores: `key:<id>`.
    pub owner: String,
    pub name: String,
    /// Unix time, milliseconds.
    pub created_ms: u64,
    pub expires_ms: Option<u64>,
    pub limits: KeyLimits,
    hash: [u8; 32],
}

impl ApiKey {
    pub fn has_expired(&self) -> bool {
        self.expires_ms.is_some_and(|end| now_ms() >= end)
    }
}

/// Body of a record, DAG-CBOR.
#[derive(Serialize, Deserialize)]
struct Body {
    v: u32,
    name: String,
    hash: serde_bytes::ByteBuf,
    created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(default)]
    limits: KeyLimits,
}

impl Body {
    fn read(id: KeyId, bytes: &[u8]) -> Option<ApiKey> {
        let body: Body = serde_ipld_dagcbor::from_slice(bytes).ok()?;
        let hash: [u8; 32] = body.hash.as_slice().try_into().ok()?;
        (body.v == BODY_VERSION).then(|| ApiKey {
            id,
            owner: format!("key:{id}"),
            name: body.name,
            created_ms: body.created,
            expires_ms: body.expires,
            limits: body.limits,
            hash,
        })
    }

    fn of(key: &ApiKey) -> Vec<u8> {
        let body = Body {
            v: BODY_VERSION,
            name: key.name.clone(),
            hash: key.hash.to_vec().into(),
            created: key.created_ms,
            expires: key.expires_ms,
            limits: key.limits,
        };
        serde_ipld_dagcbor::to_vec(&body).expect("texts, numbers and bytes are DAG-CBOR")
    }
}

/// Why a key is not made or revoked.
#[derive(Debug, thiserror::Error)]
pub enum KeyRefused {
    #[error("a key has a name of 1 to {KEY_NAME_MAX} bytes")]
    Name,
    #[error("the key would expire before it is made")]
    Expired,
    #[error("this portal has {KEYS_MAX} keys, and takes no more")]
    TooMany,
    #[error("there is no such key")]
    Unknown,
    /// The hosts that keep the records do not answer, or have not been asked yet.
    #[error("the keys cannot be read or written now: {0}")]
    Unavailable(String),
}

impl From<RecordError> for KeyRefused {
    fn from(error: RecordError) -> KeyRefused {
        KeyRefused::Unavailable(error.to_string())
    }
}

/// What is known of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    Known(Arc<ApiKey>),
    Unknown,
    /// Not all keys have been read since the start: it may be one of the others.
    NotReadYet,
}

#[derive(Default)]
struct Table {
    /// By the first bytes of the secret's hash; the rest is compared in constant time. Nobody can choose these bytes but
    /// by trying secrets, and two keys that share them are 2^64 keys away: then the later one is found.
    by_hash: HashMap<[u8; 8], Arc<ApiKey>>,
    /// Newest version seen, and the key unless that version removed it.
    by_id: HashMap<KeyId, (Order, Option<Arc<ApiKey>>)>,
}

/// All keys of the portal, as far as this node knows them.
#[derive(Default)]
pub struct Keys {
    records: OnceLock<Records>,
    table: RwLock<Table>,
    /// Set once all keys have been read.
    read: OnceLock<()>,
}

impl Keys {
    /// Whose secret is this?
    pub fn find(&self, hash: &SecretHash) -> Lookup {
        let table = self.table.read().expect("no panic under this lock");
        let found = table.by_hash.get(&start_of(hash.as_bytes())).filter(|key| *hash == key.hash[..] && !key.has_expired());
        match found {
            Some(key) => Lookup::Known(key.clone()),
            None if self.records.get().is_some() && self.read.get().is_none() => Lookup::NotReadYet,
            None => Lookup::Unknown,
        }
    }

    /// All keys, oldest first.
    pub fn list(&self) -> Vec<Arc<ApiKey>> {
        let table = self.table.read().expect("no panic under this lock");
        let mut keys: Vec<Arc<ApiKey>> = table.by_id.values().filter_map(|(_, key)| key.clone()).collect();
        keys.sort_by(|a, b| a.created_ms.cmp(&b.created_ms).then(a.id.cmp(&b.id)));
        keys
    }

    /// A new key and its secret, which is not kept.
    pub async fn make(&self, name: &str, expires_ms: Option<u64>, limits: KeyLimits) -> Result<(Arc<ApiKey>, String), KeyRefused> {
        if !(1..=KEY_NAME_MAX).contains(&name.len()) {
            return Err(KeyRefused::Name);
        }
        let created_ms = now_ms();
        if expires_ms.is_some_and(|end| end <= created_ms) {
            return Err(KeyRefused::Expired);
        }
        if self.table.read().expect("no panic under this lock").by_hash.len() >= KEYS_MAX {
            return Err(KeyRefused::TooMany);
        }
        let secret = new_secret();
        let id = KeyId(rand::random());
        let owner = format!("key:{id}");
        let key = ApiKey { id, owner, name: name.to_owned(), created_ms, expires_ms, limits, hash: hash_32(&secret) };
        let record = Record::new(id.record_key(), Order::version(1), Body::of(&key));
        self.records()?.put(record.clone()).await?;
        self.take_in(&record);
        Ok((Arc::new(key), secret))
    }

    /// From now on the key is not taken any more.
    pub async fn revoke(&self, id: KeyId) -> Result<(), KeyRefused> {
        let records = self.records()?;
        match records.newest(&id.record_key()).await? {
            Some(newest) if !newest.removed => {}
            _ => return Err(KeyRefused::Unknown),
        }
        records.remove(&id.record_key()).await?;
        if let Some(removal) = records.newest(&id.record_key()).await? {
            self.take_in(&removal);
        }
        Ok(())
    }

    fn records(&self) -> Result<&Records, KeyRefused> {
        self.records.get().ok_or_else(|| KeyRefused::Unavailable("the gateway is starting".to_owned()))
    }

    /// From now on there may be keys that are not known yet.
    pub fn connect(&self, records: Records) {
        let _ = self.records.set(records);
    }

    /// Reads the keys of the hosts, and goes on reading them. Runs until it is dropped.
    pub async fn follow(&self) {
        let Some(records) = self.records.get() else { return };
        let take = |followed: Followed<'_>| match followed {
            Followed::Record(record) => self.take_in(record),
            Followed::Complete => drop(self.read.set(())),
        };
        records.follow(Kind::Key, RESCAN_EVERY, take).await;
    }

    /// One version of a key, in whatever order versions come.
    fn take_in(&self, record: &Record) {
        let Some(id) = KeyId::parse(record.key.text()) else { return };
        let key = match record.removed {
            true => None,
            false => match Body::read(id, &record.body) {
                Some(key) => Some(Arc::new(key)),
                None => return tracing::warn!(%id, "the record of an API key cannot be read: the key is not taken"),
            },
        };
        let mut table = self.table.write().expect("no panic under this lock");
        if table.by_id.get(&id).is_some_and(|(known, _)| *known >= record.order) {
            return;
        }
        if let Some((_, Some(old))) = table.by_id.insert(id, (record.order, key.clone())) {
            table.by_hash.remove(&start_of(&old.hash));
        }
        if let Some(key) = key.filter(|_| table.by_hash.len() < KEYS_MAX) {
            table.by_hash.insert(start_of(&key.hash), key);
        }
    }
}

fn start_of(hash: &[u8]) -> [u8; 8] {
    hash[..8].try_into().expect("a hash has 32 bytes")
}

fn hash_32(secret: &str) -> [u8; 32] {
    hash_secret(secret).as_bytes().try_into().expect("the hash was asked for with 32 bytes")
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u8, secret: &str, expires_ms: Option<u64>) -> ApiKey {
        let id = KeyId([id; 16]);
        let limits = KeyLimits { upload_bytes: Some(7), ..KeyLimits::default() };
        ApiKey {
            id,
            owner: format!("key:{id}"),
            name: "a name".to_owned(),
            created_ms: 5,
            expires_ms,
            limits,
            hash: hash_32(secret),
        }
    }

    fn version(key: &ApiKey, number: u64) -> Record {
        Record::new(key.id.record_key(), Order::version(number), Body::of(key))
    }

    #[test]
    fn a_body_is_read_as_it_was_written() {
        for key in [key(1, "a", None), key(2, "b", Some(u64::MAX))] {
            assert_eq!(Body::read(key.id, &Body::of(&key)), Some(key));
        }
        let text = Body::of(&key(1, "a", None));
        assert!(!text.windows(3).any(|three| three == b"sec"), "the secret is not in it");
        for cut in 0..text.len() {
            assert_eq!(Body::read(KeyId([1; 16]), &text[..cut]), None);
        }
    }

    #[test]
    fn the_newest_version_counts_in_whatever_order_they_come() {
        let one = key(1, "one", None);
        let removal = Record::removal(one.id.record_key(), Order::version(2));
        for order in [[version(&one, 1), removal.clone()], [removal, version(&one, 1)]] {
            let keys = Keys::default();
            order.iter().for_each(|record| keys.take_in(record));
            assert_eq!(keys.find(&hash_secret("one")), Lookup::Unknown);
            assert!(keys.list().is_empty());
        }
    }

    #[test]
    fn a_secret_leads_to_its_key_until_it_expires() {
        let keys = Keys::default();
        for (id, secret, expires) in [(1, "one", None), (2, "two", Some(1)), (3, "three", Some(u64::MAX))] {
            keys.take_in(&version(&key(id, secret, expires), 1));
        }
        for (secret, expect) in [("one", Some(1)), ("two", None), ("three", Some(3)), ("four", None), ("", None)] {
            let found = match keys.find(&hash_secret(secret)) {
                Lookup::Known(key) => Some(key.id.0[0]),
                Lookup::Unknown => None,
                Lookup::NotReadYet => panic!("nothing is waited for"),
            };
            assert_eq!(found, expect, "{secret}");
        }
        assert_eq!(keys.list().len(), 3, "an expired key is shown until it is removed");
    }
}
