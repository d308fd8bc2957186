//! `POST /api/v1/verify?address=…`: reads everything below an address, or everything there is, and tells what it finds.
//!
//! The answer is one JSON object a line, as it comes; the last one has `"event":"end"`. It goes no faster than it is read,
//! and the work stops when the client goes away.

use std::sync::Arc;

use ::http::header;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;

use crate::address::Address;
use crate::http::ask::parameter;
use crate::http::refusal::Refusal;
use crate::http::services::Services;

use super::Denied;

/// Content type of JSON objects, one a line.
const LINES_TYPE: &str = "application/x-ndjson";

/// The route.
pub async fn verify(State(services): State<Arc<Services>>, RawQuery(query): RawQuery) -> Result<Response, Denied> {
    let address = match parameter(&query.unwrap_or_default(), "address") {
        None => None,
        Some(text) => {
            let parsed = Address::parse(&text);
            Some(parsed.map_err(|error| Refusal::BadPath { path: text.chars().take(512).collect(), error })?)
        }
    };
    let events = services.operations.verify(address.as_ref()).await.map_err(Refusal::from)?;
    let lines = events.map(|event| {
        let mut line = serde_json::to_vec(&event).map_err(std::io::Error::other)?;
        line.push(b'\n');
        Ok::<Bytes, std::io::Error>(line.into())
    });
    Ok(([(header::CONTENT_TYPE, LINES_TYPE)], Body::from_stream(lines)).into_response())
}
