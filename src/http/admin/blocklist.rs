//! The portal's blocklist, for the operator. Everybody may read it on the public listener; it is changed here only.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::address::{Skylink, SkylinkKind};
use crate::deny::blocklist_hash;
use crate::http::refusal::{PortalRefusal, Refusal};
use crate::http::services::Services;
use crate::store::{BLOCKLIST_CHANGES_MAX, Blocked};

use super::Denied;

/// A line has at most 70 bytes of JSON.
const BODY_BYTES_MAX: usize = 128 * BLOCKLIST_CHANGES_MAX;

type Shared = State<Arc<Services>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Changes {
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
}

/// All lines, the oldest first.
pub async fn list(State(services): Shared) -> Json<Value> {
    Json(json!({ "blocklist": services.operations.blocklist().iter().map(view).collect::<Vec<_>>() }))
}

/// Adds skylinks or hashes, and takes others back: all of them or, if one cannot be read, none.
pub async fn change(State(services): Shared, body: Body) -> Result<Json<Value>, Denied> {
    let bad = || {
        Refusal::from(PortalRefusal::BadBody("{\"add\": [SKYLINK OR HASH], \"remove\": [SKYLINK OR HASH]}, at most 1,000 of them"))
    };
    let bytes = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| bad())?;
    let changes: Changes = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    if changes.add.len() + changes.remove.len() > BLOCKLIST_CHANGES_MAX {
        return Err(bad().into());
    }
    let hashes = |texts: &[String]| texts.iter().map(|text| hash_of(text)).collect::<Result<Vec<_>, _>>();
    let (add, remove) = (hashes(&changes.add)?, hashes(&changes.remove)?);
    services.operations.change_blocklist(&add, &remove).await.map_err(Refusal::from)?;
    services.answers.clear();
    let texts = |hashes: &[[u8; 32]]| hashes.iter().map(hex::encode).collect::<Vec<_>>();
    Ok(Json(json!({ "added": texts(&add), "removed": texts(&remove) })))
}

/// A hash in hex, or the skylink whose root is hashed.
fn hash_of(text: &str) -> Result<[u8; 32], Refusal> {
    let mut hash = [0; 32];
    if hex::decode_to_slice(text, &mut hash).is_ok() {
        return Ok(hash);
    }
    let bare = text.strip_prefix("sia://").unwrap_or(text).split('/').next().unwrap_or_default();
    let link = Skylink::parse(bare).map_err(|error| Refusal::BadPath { path: text.chars().take(512).collect(), error })?;
    match link.kind() {
        SkylinkKind::V1 { root, .. } => Ok(blocklist_hash(&root)),
        SkylinkKind::V2 { .. } => Err(PortalRefusal::BadBody("a version 2 skylink is a pointer: block what it points to").into()),
    }
}

fn view(line: &Blocked) -> Value {
    json!({ "hash": hex::encode(line.hash), "added_ms": line.added_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash is that of `skynet-vectors/skylinks.json`.
    #[test]
    fn hashes_of_skylinks() {
        let hash = hash_of("XABvi7JtJbQSMAcDwnUnmp2FKDPjg8_tTTFP4BwMSxVdEg").expect("a skylink");
        assert_eq!(hex::encode(hash), "ffe6aa4b329fe553a95f88b6a1dc85def5668cbed67f1514494f282e0469a587");
        assert_eq!(hash_of(&hex::encode(hash)).expect("a hash"), hash);
        assert_eq!(hash_of("sia://XABvi7JtJbQSMAcDwnUnmp2FKDPjg8_tTTFP4BwMSxVdEg/a/b").expect("a skylink"), hash);
        for bad in ["", "nonsense", &"0".repeat(63), &Skylink::v2([7; 32]).to_string()] {
            assert!(hash_of(bad).is_err(), "{bad}");
        }
    }
}
