//! Skynet's registry over HTTP: `/skynet/registry`, `/skynet/registrymulti`, `/skynet/health/entry` (`skynet.md` 6, 7).
//!
//! Bodies are JSON whatever Content-Type says: skynet-js sends them as a form, so that browsers ask no leave before.
//! What Skynet's server took is taken, and what it refused is refused (vectors `post_body_shapes`).

use std::fmt;
use std::time::Duration;

use ::http::header::{self, HeaderValue};
use ::http::{Method, StatusCode};
use bytes::Bytes;
use data_encoding::BASE64;
use futures::StreamExt;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::http::ask::Ask;
use crate::http::caller::{Admitted, Work};
use crate::http::refusal::{Refusal, RegistryRefusal, SkyRefusal};
use crate::http::reply::{Reply, made_here};
use crate::http::services::{Services, UploadStream};
use crate::names::{ENTRY_SIGNATURE_BYTES, Entry, EntryId, EntryKey, EntryType, NameError, SignedEntry};

use super::{Call, no_content, subscription};

/// The longest body of one entry: its numbers as text, with spaces and a few fields that nobody reads.
const ENTRY_BODY_BYTES_MAX: usize = 8 << 10;
/// Entries of one `registrymulti`: Skynet's clients sent one for each of some fifty hosts.
const ENTRIES_MAX: usize = 64;
/// Longest wait for the rest of a body, which fits into a few packets.
const BODY_MAX: Duration = Duration::from_secs(30);
/// Time of a read unless it says another, and the longest it may say (`skynet.md` 6), seconds.
const TIMEOUT_DEFAULT_S: u32 = 30;
const TIMEOUT_MAX_S: u32 = 300;
const ALGORITHM: &str = "ed25519";

/// The paths that [`answer`] is for.
pub const PATHS: [&str; 5] = [
    "/skynet/registry",
    "/skynet/registrymulti",
    "/skynet/registry/hosts",
    "/skynet/registry/subscription",
    "/skynet/health/entry",
];

pub async fn answer(call: Call<'_>) -> Result<Reply, Refusal> {
    let reads = matches!(call.ask.method, Method::GET | Method::HEAD);
    let work = if reads { Work::RegistryRead } else { Work::RegistryWrite };
    let admitted = call.sender.admit(call.services, call.ask, work)?;
    match (call.ask.path.as_str(), &call.ask.method) {
        ("/skynet/registry", &Method::POST) => {
            let body = read_body(call.body, ENTRY_BODY_BYTES_MAX).await?;
            put(call.services, &admitted, read_entry(&body)?).await?;
            Ok(no_content())
        }
        ("/skynet/registrymulti", &Method::POST) => {
            let body = read_body(call.body, ENTRIES_MAX * ENTRY_BODY_BYTES_MAX).await?;
            for signed in best_of_each(read_entries(&body)?)? {
                put(call.services, &admitted, signed).await?;
            }
            Ok(no_content())
        }
        ("/skynet/registry", _) if reads => {
            let id = asked_key(call.ask)?;
            let entry = within(call.ask, call.services.names.entry(&id)).await?;
            Ok(json_reply(call.ask, &entry_json(&entry, "publickey")))
        }
        ("/skynet/health/entry", _) if reads => {
            let id = match call.ask.parameter("entryid") {
                Some(text) => EntryId::parse(&text).ok_or(Refusal::BadQuery("entryid is 64 hex digits"))?,
                None => asked_key(call.ask)?,
            };
            let health = within(call.ask, call.services.names.entry_health(&id)).await?;
            let told = json!({
                "revisionnumber": health.newest.entry.revision(),
                "numentries": health.holders,
                "numbestentries": health.holders_of_newest,
                // Every host was waited for: there is no cut-off before which some were left out.
                "numbestentriesbeforecutoff": health.holders_of_newest,
                // No host of this gateway has a key that an entry could be primary for.
                "numbestprimaryentries": 0,
            });
            Ok(json_reply(call.ask, &told))
        }
        // Skynet listed the hosts of its network, so that clients could write entries of type 2 for them. There are none.
        ("/skynet/registry/hosts", _) if reads => Ok(json_reply(call.ask, &json!({ "hosts": [] }))),
        ("/skynet/registry/subscription", &Method::GET) => subscription::open(call),
        ("/skynet/registry", _) => Err(SkyRefusal::OtherMethod("GET, HEAD, POST, OPTIONS").into()),
        ("/skynet/registrymulti", _) => Err(SkyRefusal::OtherMethod("POST, OPTIONS").into()),
        _ => Err(Refusal::Method),
    }
}

async fn put(services: &Services, admitted: &Admitted, signed: SignedEntry) -> Result<(), Refusal> {
    admitted.allow_entry(&signed.entry.id().0)?;
    services.names.put_entry(signed).await.map_err(|error| RegistryRefusal::Update(error).into())
}

/// A read with the time that the query allows.
async fn within<T>(ask: &Ask, read: impl Future<Output = Result<Option<T>, NameError>>) -> Result<T, Refusal> {
    let seconds = match ask.parameter("timeout") {
        None => TIMEOUT_DEFAULT_S,
        Some(text) => text.parse().map_err(|_| Refusal::BadQuery("timeout is a number of seconds"))?,
    };
    if seconds == 0 || seconds > TIMEOUT_MAX_S {
        return Err(Refusal::BadQuery("timeout is from 1 to 300 seconds"));
    }
    match tokio::time::timeout(Duration::from_secs(seconds.into()), read).await {
        Ok(Ok(Some(found))) => Ok(found),
        Ok(Ok(None)) => Err(RegistryRefusal::NoEntry.into()),
        Ok(Err(error)) => Err(RegistryRefusal::NotRead(error.to_string()).into()),
        Err(_) => Err(RegistryRefusal::NotRead(format!("no quorum of its hosts told within {seconds} s")).into()),
    }
}

/// The id of the public key and data key of a query.
fn asked_key(ask: &Ask) -> Result<EntryId, Refusal> {
    let key = ask.parameter("publickey").and_then(|text| EntryKey::parse(&text));
    let key = key.ok_or(Refusal::BadQuery("publickey is \"ed25519:\" and 64 hex digits"))?;
    let datakey = ask.parameter("datakey").and_then(|text| hash(&text));
    Ok(EntryId::of(&key, &datakey.ok_or(Refusal::BadQuery("datakey is 64 hex digits"))?))
}

fn hash(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

fn json_reply(ask: &Ask, value: &Value) -> Reply {
    let mut reply = made_here(StatusCode::OK, "application/json; charset=utf-8", &ask.method, format!("{value}\n"));
    // The next revision may come at any moment.
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// An entry as Skynet told it; only the name of the key's field differs from place to place.
pub fn entry_json(signed: &SignedEntry, key_field: &str) -> Value {
    let entry = &signed.entry;
    json!({
        "data": hex::encode(entry.data()),
        "revision": entry.revision(),
        "datakey": hex::encode(entry.datakey()),
        key_field: { "algorithm": ALGORITHM, "key": BASE64.encode(&entry.key().0) },
        "signature": hex::encode(signed.signature),
        "type": entry.entry_type() as u8,
    })
}

async fn read_body(mut body: UploadStream, bytes_max: usize) -> Result<Bytes, RegistryRefusal> {
    let read = async {
        let mut whole = Bytes::new();
        while let Some(part) = body.next().await {
            let part = part.map_err(|_| RegistryRefusal::BodyCut)?;
            if whole.len() + part.len() > bytes_max {
                return Err(RegistryRefusal::BodyTooLong { bytes_max });
            }
            // Nearly always there is one part.
            whole = if whole.is_empty() { part } else { [whole, part].concat().into() };
        }
        Ok(whole)
    };
    tokio::time::timeout(BODY_MAX, read).await.unwrap_or(Err(RegistryRefusal::BodyCut))
}

/// An entry as it is posted. A field that is missing is empty or zero, one that nobody knows is passed over.
#[derive(Deserialize)]
#[serde(default)]
struct Posted {
    publickey: PostedKey,
    datakey: String,
    revision: u64,
    data: PostedBytes,
    signature: Vec<u8>,
    #[serde(rename = "type")]
    entry_type: u64,
}

impl Default for Posted {
    fn default() -> Posted {
        let data = PostedBytes::Numbers(Vec::new());
        Posted {
            publickey: PostedKey::Text(String::new()),
            datakey: String::new(),
            revision: 0,
            data,
            signature: Vec::new(),
            entry_type: 0,
        }
    }
}

/// `"ed25519:hex"`, or an object.
pub(super) enum PostedKey {
    Text(String),
    Object(PostedKeyObject),
}

#[derive(Deserialize)]
pub(super) struct PostedKeyObject {
    algorithm: String,
    key: PostedBytes,
}

/// An array of numbers, or base64. A text of hex digits is base64, too.
pub(super) enum PostedBytes {
    Numbers(Vec<u8>),
    Base64(String),
}

/// Reads either form as it comes: serde's untagged enums keep a copy of every number of the data first.
impl<'de> Deserialize<'de> for PostedKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<PostedKey, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = PostedKey;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a key as text, or as an object with algorithm and key")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PostedKey, E> {
                Ok(PostedKey::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PostedKey, A::Error> {
                PostedKeyObject::deserialize(MapAccessDeserializer::new(map)).map(PostedKey::Object)
            }
        }
        from.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for PostedBytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<PostedBytes, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = PostedBytes;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an array of numbers from 0 to 255, or base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PostedBytes, E> {
                Ok(PostedBytes::Base64(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, numbers: A) -> Result<PostedBytes, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(numbers)).map(PostedBytes::Numbers)
            }
        }
        from.deserialize_any(Reader)
    }
}

impl PostedBytes {
    fn read(self) -> Option<Vec<u8>> {
        match self {
            PostedBytes::Numbers(bytes) => Some(bytes),
            PostedBytes::Base64(text) => BASE64.decode(text.as_bytes()).ok(),
        }
    }
}

impl PostedKey {
    pub(super) fn read(self) -> Option<EntryKey> {
        match self {
            PostedKey::Text(text) => EntryKey::parse(&text),
            PostedKey::Object(object) if object.algorithm == ALGORITHM => Some(EntryKey(object.key.read()?.try_into().ok()?)),
            PostedKey::Object(_) => None,
        }
    }
}

impl Posted {
    fn read(self) -> Result<SignedEntry, RegistryRefusal> {
        let key = self.publickey.read().ok_or(RegistryRefusal::Body("publickey is no ed25519 key"))?;
        let datakey = hash(&self.datakey).ok_or(RegistryRefusal::Body("datakey is not 64 hex digits"))?;
        let data = self.data.read().ok_or(RegistryRefusal::Body("data is neither an array of numbers nor base64"))?;
        let signature: Result<[u8; ENTRY_SIGNATURE_BYTES], _> = self.signature.try_into();
        let signature = signature.map_err(|_| RegistryRefusal::Body("signature is not an array of 64 numbers"))?;
        let entry_type = match self.entry_type {
            0 => Some(EntryType::Plain),
            number => EntryType::from_number(number),
        };
        let entry_type = entry_type.ok_or(RegistryRefusal::Body("type is 1 or 2"))?;
        let entry = Entry::new(key, datakey, data, self.revision, entry_type);
        Ok(SignedEntry { entry: entry.map_err(RegistryRefusal::Entry)?, signature })
    }
}

fn read_entry(body: &[u8]) -> Result<SignedEntry, RegistryRefusal> {
    let posted: Posted = serde_json::from_slice(body).map_err(|error| RegistryRefusal::Json(error.to_string()))?;
    posted.read()
}

fn read_entries(body: &[u8]) -> Result<Vec<SignedEntry>, RegistryRefusal> {
    let posted: Vec<Posted> = serde_json::from_slice(body).map_err(|error| RegistryRefusal::Json(error.to_string()))?;
    if posted.is_empty() || posted.len() > ENTRIES_MAX {
        return Err(RegistryRefusal::Body("1 to 64 entries can be sent at once"));
    }
    posted.into_iter().map(Posted::read).collect()
}

/// Skynet's clients send one entry for each host, which differ only in whose host it is. All the hosts here take the
/// best; the others have to be their owner's as well.
fn best_of_each(mut entries: Vec<SignedEntry>) -> Result<Vec<SignedEntry>, RegistryRefusal> {
    entries.sort_by_cached_key(|signed| (signed.entry.id(), std::cmp::Reverse(signed.entry.order())));
    let mut best: Vec<SignedEntry> = Vec::new();
    for signed in entries {
        match best.last() {
            Some(last) if last.entry.id() == signed.entry.id() => signed.verify().map_err(RegistryRefusal::Entry)?,
            _ => best.push(signed),
        }
    }
    Ok(best)
}

/// Any bytes as bodies: never a panic, and what is taken is within its limits.
#[cfg(test)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(signed) = read_entry(bytes) {
        assert_eq!(SignedEntry::from_body(&signed.to_body()), Ok(signed));
    }
    if let Ok(entries) = read_entries(bytes) {
        assert!(entries.len() <= ENTRIES_MAX);
        let _ = best_of_each(entries);
    }
}

#[cfg(test)]
mod tests;
