//! Test only: IPNS records of our own making, a DNS that is a table, a clock that is set by hand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use libp2p_identity::{Keypair, ecdsa, secp256k1};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::dns::{TxtAnswer, TxtError, TxtSource};
use super::{Entry, EntryKey, EntryType, IpnsName, Now, SignedEntry};

/// Good bytes with a few faults. The same for the same seed.
pub(crate) fn mutations(seed: u64, good: &[u8]) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = good.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(0..16)).min(bytes.len());
        match rng.random_range(0..4) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, rng.random()),
            _ => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

/// An ed25519 key.
pub(crate) fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("any 32 bytes are a key")
}

/// One key of each kind that needs no file: names that inline the key, and names that hash it.
pub(crate) fn keys() -> [Keypair; 3] {
    let secp = secp256k1::SecretKey::try_from_bytes([7; 32]).expect("a key");
    let p256 = ecdsa::SecretKey::try_from_bytes([7; 32]).expect("a key");
    [key(7), secp256k1::Keypair::from(secp).into(), ecdsa::Keypair::from(p256).into()]
}

pub(crate) fn name_of(key: &Keypair) -> IpnsName {
    IpnsName::parse(&key.public().to_peer_id().to_base58()).expect("a peer id is a name")
}

/// An entry of the registry, signed by the key of this seed.
pub(crate) fn sign_entry(seed: u8, datakey: [u8; 32], data: &[u8], revision: u64) -> SignedEntry {
    use ed25519_dalek::Signer as _;
    let signing = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let key = EntryKey(signing.verifying_key().to_bytes());
    let entry = Entry::new(key, datakey, data.to_vec(), revision, EntryType::Plain).expect("fits an entry");
    let signature = signing.sign(&entry.signed_hash()).to_bytes();
    SignedEntry { entry, signature }
}

/// What a record is to say.
#[derive(Clone)]
pub(crate) struct Draft {
    pub value: String,
    pub sequence: u64,
    pub validity: String,
    pub ttl_seconds: u64,
    pub validity_type: u64,
    /// With the copies that old programs read.
    pub with_v1: bool,
    pub with_key: bool,
    /// CBOR behind the five pairs, with the number of pairs in it.
    pub more: (u8, Vec<u8>),
}

impl Draft {
    pub(crate) fn of(value: &str) -> Draft {
        Draft {
            value: value.to_owned(),
            sequence: 1,
            validity: "2100-01-01T00:00:00.5Z".to_owned(),
            ttl_seconds: 1800,
            validity_type: 0,
            with_v1: false,
            with_key: false,
            more: (0, Vec::new()),
        }
    }

    fn data(&self) -> Vec<u8> {
        let mut out = vec![0xa5 + self.more.0];
        let text = |out: &mut Vec<u8>, name: &str| {
            cbor_head(3, name.len() as u64, out);
            out.extend_from_slice(name.as_bytes());
        };
        text(&mut out, "TTL");
        cbor_head(0, self.ttl_seconds * 1_000_000_000, &mut out);
        text(&mut out, "Value");
        cbor_head(2, self.value.len() as u64, &mut out);
        out.extend_from_slice(self.value.as_bytes());
        text(&mut out, "Sequence");
        cbor_head(0, self.sequence, &mut out);
        text(&mut out, "Validity");
        cbor_head(2, self.validity.len() as u64, &mut out);
        out.extend_from_slice(self.validity.as_bytes());
        text(&mut out, "ValidityType");
        cbor_head(0, self.validity_type, &mut out);
        out.extend_from_slice(&self.more.1);
        out
    }

    /// The record, signed.
    pub(crate) fn sign(&self, key: &Keypair) -> Vec<u8> {
        let data = self.data();
        let signature = key.sign(&[b"ipns-signature:", &data[..]].concat()).expect("signs");
        let mut out = Vec::new();
        if self.with_v1 {
            put_bytes(1, self.value.as_bytes(), &mut out);
            put_bytes(2, b"never looked at", &mut out);
            put_number(3, self.validity_type, &mut out);
            put_bytes(4, self.validity.as_bytes(), &mut out);
            put_number(5, self.sequence, &mut out);
            put_number(6, self.ttl_seconds * 1_000_000_000, &mut out);
        }
        if self.with_key {
            put_bytes(7, &key.public().encode_protobuf(), &mut out);
        }
        put_bytes(8, &signature, &mut out);
        put_bytes(9, &data, &mut out);
        out
    }
}

fn cbor_head(major: u8, argument: u64, out: &mut Vec<u8>) {
    match argument {
        0..=23 => out.push(major << 5 | argument as u8),
        24..=255 => out.extend([major << 5 | 24, argument as u8]),
        _ => {
            out.push(major << 5 | 27);
            out.extend(argument.to_be_bytes());
        }
    }
}

pub(crate) fn put_number(field: u8, value: u64, out: &mut Vec<u8>) {
    out.push(field << 3);
    put_varint(value, out);
}

pub(crate) fn put_bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A clock that stands still until it is moved. Starts in 2026.
#[derive(Clone)]
pub(crate) struct HandClock(Arc<Mutex<SystemTime>>);

impl HandClock {
    pub(crate) fn new() -> HandClock {
        HandClock(Arc::new(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000))))
    }

    pub(crate) fn pass(&self, seconds: u64) {
        *self.0.lock().expect("lock") += Duration::from_secs(seconds);
    }

    pub(crate) fn now(&self) -> SystemTime {
        *self.0.lock().expect("lock")
    }

    pub(crate) fn function(&self) -> Now {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

/// DNS as a table. Names that are not in it do not exist.
#[derive(Default)]
pub(crate) struct Zone {
    pub rows: Mutex<HashMap<String, Result<TxtAnswer, TxtError>>>,
    pub asked: AtomicUsize,
    /// Answers wait for this many permits.
    pub gate: Option<tokio::sync::Semaphore>,
}

impl Zone {
    pub(crate) fn set(&self, host: &str, values: &[&str], ttl_seconds: u64) {
        let values = values.iter().map(|value| value.as_bytes().to_vec()).collect();
        let answer = TxtAnswer { values, ttl: Duration::from_secs(ttl_seconds) };
        self.rows.lock().expect("lock").insert(format!("_dnslink.{host}"), Ok(answer));
    }

    pub(crate) fn fail(&self, host: &str, error: TxtError) {
        self.rows.lock().expect("lock").insert(format!("_dnslink.{host}"), Err(error));
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl TxtSource for Zone {
    async fn txt(&self, name: &str) -> Result<TxtAnswer, TxtError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            let _permit = gate.acquire().await.expect("open");
        }
        let absent = Err(TxtError::NoRecord { negative_ttl: Duration::from_secs(60) });
        self.rows.lock().expect("lock").get(name).cloned().unwrap_or(absent)
    }
}
