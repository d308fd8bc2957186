//! Names, for the operator: which are known, what one points to, and a record brought in.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::http::refusal::{IpnsRefusal, Refusal};
use crate::http::services::Services;
use crate::names::{IPNS_RECORD_BYTES_MAX, NameOrigin, NameRow};
use crate::records::Extent;

use super::Denied;

type Shared = State<Arc<Services>>;

/// The fixed names and those with a record.
pub async fn list(State(services): Shared) -> Json<Value> {
    let (rows, extent) = services.names.list().await;
    let names: Vec<Value> = rows.iter().map(view).collect();
    Json(json!({ "names": names, "complete": extent == Extent::Complete }))
}

fn view(row: &NameRow) -> Value {
    let (name, value) = (&row.name, &row.value);
    match &row.origin {
        NameOrigin::Fixed => json!({ "name": name, "value": value, "origin": "configuration" }),
        NameOrigin::Record { sequence, ttl, valid_until, expired } => json!({
            "name": name,
            "value": value,
            "origin": "record",
            "sequence": sequence,
            "ttl_seconds": ttl.map(|ttl| ttl.as_secs()),
            "valid_until": valid_until,
            "expired": expired,
        }),
    }
}

/// Takes the bytes of an IPNS record.
pub async fn put(State(services): Shared, Path(name): Path<String>, body: Body) -> Result<Json<Value>, Denied> {
    let bytes = to_bytes(body, IPNS_RECORD_BYTES_MAX).await.map_err(|_| Refusal::from(IpnsRefusal::Body))?;
    let name = services.names.put_record(&name, bytes).await.map_err(Refusal::from)?;
    Ok(Json(json!({ "name": name })))
}

/// Follows a name to its end.
pub async fn resolve(State(services): Shared, Path(name): Path<String>) -> Result<Json<Value>, Denied> {
    let resolved = services.names.resolve(&name).await.map_err(Refusal::from)?;
    let found_at = resolved.found_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Json(json!({
        "name": name,
        "path": resolved.pointee.to_string(),
        "ttl_seconds": resolved.ttl.as_ref().map(Duration::as_secs),
        "found_at_ms": u64::try_from(found_at.as_millis()).unwrap_or(u64::MAX),
    })))
}
