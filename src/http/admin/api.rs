//! JSON and text routes of the admin listener.

use std::sync::Arc;

use ::http::header::{self, HeaderMap};
use ::http::{HeaderName, StatusCode};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::address::Address;
use crate::http::ask::{parameter, text};
use crate::http::pace::watch_upload;
use crate::http::refusal::{PinRefusal, Refusal};
use crate::http::services::{Readiness, Services};

use super::Denied;

/// Pins on one page when the caller names no number.
const PINS_PAGE: usize = 100;
/// Pins on one page at most: about 400 KiB of JSON.
const PINS_PAGE_MAX: usize = 1000;
/// Longest idempotency key (`docs/formats.md` 9).
const IDEMPOTENCY_KEY_MAX: usize = 128;
/// Content type of an add stream.
const ADD_TYPE: &str = "application/vnd.skygate.add";

/// Content type of a CAR.
const CAR_TYPE: &str = "application/vnd.ipld.car";

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

type Shared = State<Arc<Services>>;

/// Open to all: one word.
pub async fn health(State(services): Shared) -> Response {
    match services.operations.readiness() {
        Readiness::Ok => (StatusCode::OK, "ok\n").into_response(),
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
    }
}

/// Prometheus text.
pub async fn metrics(State(services): Shared) -> Response {
    let text = services.measures.prometheus() + &services.operations.metrics();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Counters and sizes.
pub async fn status(State(services): Shared) -> Result<Json<Value>, Denied> {
    let mut status = services.operations.status().map_err(Refusal::from)?;
    if let Value::Object(fields) = &mut status {
        fields.insert("readiness".to_owned(), json!(services.operations.readiness()));
        fields.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    }
    Ok(Json(status))
}

/// Quantiles of every endpoint family and class that has samples.
pub async fn latency(State(services): Shared) -> Json<Value> {
    Json(json!({ "latency": services.measures.summaries() }))
}

/// The hosts and how they do.
pub async fn hosts(State(services): Shared) -> Json<Value> {
    Json(json!({ "hosts": services.operations.hosts() }))
}

/// `?from=NUMBER&limit=NUMBER`; `next` of one page is `from` of the next.
pub async fn pins(State(services): Shared, RawQuery(query): RawQuery) -> Result<Response, Denied> {
    let query = query.unwrap_or_default();
    let number = |name: &str, otherwise: u64| {
        parameter(&query, name)
            .map_or(Ok(otherwise), |text| text.parse().map_err(|_| Refusal::BadQuery("from and limit are numbers")))
    };
    let from = number("from", 0)?;
    let limit = usize::try_from(number("limit", PINS_PAGE as u64)?).unwrap_or(PINS_PAGE_MAX).clamp(1, PINS_PAGE_MAX);
    let page = services.operations.pins(from, limit).await.map_err(Refusal::from)?;
    Ok(Json(page).into_response())
}

/// Removes all pins of a CID or skylink.
pub async fn unpin(State(services): Shared, Path(address): Path<String>) -> Result<Json<Value>, Denied> {
    let parsed = Address::parse(&address).map_err(|error| Refusal::BadPath { path: address.chars().take(512).collect(), error })?;
    let removed = services.operations.unpin(&parsed).await.map_err(Refusal::from)?;
    services.answers.clear();
    if removed == 0 {
        return Err(Refusal::from(PinRefusal::NoPin).into());
    }
    Ok(Json(json!({ "removed": removed })))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=IDEMPOTENCY_KEY_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Refusal::BadHeader("Idempotency-Key")),
    }
}

/// Takes an add stream in. The reply comes when the upload is acknowledged.
pub async fn add(State(services): Shared, headers: HeaderMap, body: Body) -> Result<Json<Value>, Denied> {
    let kind = text(&headers, header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case(ADD_TYPE)) {
        return Err(Refusal::BadHeader("Content-Type").into());
    }
    let key = idempotency_key(&headers)?;
    let stream = watch_upload(body.into_data_stream());
    let report = services.operations.add(stream, key).await.map_err(Refusal::from)?;
    Ok(Json(json!({
        "cid": report.cid.to_string(),
        "skylink": report.skylink.as_ref().map(ToString::to_string),
        "size_bytes": report.size_bytes,
        "files": report.files,
        "durability": report.durability.as_str(),
    })))
}

/// Takes a CAR in. `?name=` names its pins.
pub async fn import(
    State(services): Shared,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Denied> {
    let kind = text(&headers, header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case(CAR_TYPE)) {
        return Err(Refusal::BadHeader("Content-Type").into());
    }
    let name = query.as_deref().and_then(|query| parameter(query, "name"));
    let key = idempotency_key(&headers)?;
    let stream = watch_upload(body.into_data_stream());
    let report = services.operations.import(stream, name, key).await.map_err(Refusal::from)?;
    Ok(Json(json!({
        "roots": report.roots.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "blocks": report.blocks,
        "missing": report.missing,
        "size_bytes": report.size_bytes,
        "durability": report.durability.as_str(),
    })))
}

/// A new one-time login link for the dashboard.
pub async fn login_link(State(services): Shared, headers: HeaderMap) -> Json<Value> {
    let host = text(&headers, header::HOST).unwrap_or("localhost");
    Json(json!({ "url": format!("http://{host}/?login={}", services.access.new_login_token()) }))
}
