//! API keys, for the operator: make, list, revoke. Secrets are in no answer but the one that makes them.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::{ApiKey, KeyId, KeyLimits, KeyRefused};
use crate::http::refusal::{PortalRefusal, Refusal};
use crate::http::services::Services;

use super::Denied;

/// A request for a key: its name and a few numbers.
const BODY_BYTES_MAX: usize = 4096;

type Shared = State<Arc<Services>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    /// Unix time, milliseconds.
    #[serde(default)]
    expires_ms: Option<u64>,
    #[serde(default)]
    limits: Value,
}

/// All keys that were not revoked.
pub async fn list(State(services): Shared) -> Json<Value> {
    let keys: Vec<Value> = services.access.keys.list().iter().map(|key| view(key)).collect();
    Json(json!({ "keys": keys }))
}

/// Makes a key. The answer has its secret, which is not kept.
pub async fn make(State(services): Shared, body: Body) -> Result<Json<Value>, Denied> {
    let wanted = read(body).await.ok_or(Refusal::from(PortalRefusal::BadBody(BODY)))?;
    let limits = limits(&wanted.limits).ok_or(Refusal::from(PortalRefusal::BadBody(LIMIT_NAMES)))?;
    let (key, secret) = services.access.keys.make(&wanted.name, wanted.expires_ms, limits).await.map_err(Refusal::from)?;
    let mut answer = view(&key);
    answer["key"] = json!(secret);
    Ok(Json(answer))
}

/// Revokes a key, from this moment on here, and on other nodes as soon as they look.
pub async fn revoke(State(services): Shared, Path(id): Path<String>) -> Result<Json<Value>, Denied> {
    let id = KeyId::parse(&id).ok_or_else(|| Refusal::from(KeyRefused::Unknown))?;
    services.access.keys.revoke(id).await.map_err(Refusal::from)?;
    Ok(Json(json!({ "revoked": id.to_string() })))
}

const BODY: &str = "{\"name\": TEXT, \"expires_ms\": NUMBER, \"limits\": {NAME: NUMBER}}";
const LIMIT_NAMES: &str = "limits may be upload_bytes, bytes_per_day, uploads_per_minute, uploads_at_once, registry_per_minute \
     and entries_per_day, each a number above 0";

async fn read(body: Body) -> Option<Wanted> {
    let bytes = to_bytes(body, BODY_BYTES_MAX).await.ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Unknown names are refused here: a misspelt limit would be none. (In records they are of a later version.)
fn limits(wanted: &Value) -> Option<KeyLimits> {
    if wanted.is_null() {
        return Some(KeyLimits::default());
    }
    let names = wanted.as_object()?.iter().filter(|(_, value)| !value.is_null());
    let count = names.clone().count();
    if names.into_iter().any(|(_, value)| value.as_u64().is_none_or(|number| number == 0)) {
        return None;
    }
    let limits: KeyLimits = serde_json::from_value(wanted.clone()).ok()?;
    let known = serde_json::to_value(limits).ok()?.as_object()?.len();
    (known == count).then_some(limits)
}

fn view(key: &ApiKey) -> Value {
    json!({
        "id": key.id.to_string(),
        "name": key.name,
        "created_ms": key.created_ms,
        "expires_ms": key.expires_ms,
        "expired": key.has_expired(),
        "limits": key.limits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_limit_is_no_limit_and_refused() {
        for (wanted, taken) in [
            (Value::Null, true),
            (json!({}), true),
            (json!({ "upload_bytes": 5 }), true),
            (json!({ "upload_bytes": null }), true),
            (json!({ "upload_bytes": 0 }), false),
            (json!({ "upload_bytes": -1 }), false),
            (json!({ "upload_bytes": "5" }), false),
            (json!({ "uploads_at_once": 1u64 << 40 }), false),
            (json!({ "upload_byte": 5 }), false),
            (json!([]), false),
            (json!(5), false),
        ] {
            assert_eq!(limits(&wanted).is_some(), taken, "{wanted}");
        }
    }
}
