//! The portal: content under `/{skylink}` ([`content`]) and the API under `/skynet/` and beside it (`skynet.md` 6).
//!
//! Skynet's clients read errors as JSON and need its own headers and CORS on every reply. The API answers on portal
//! domains only, never on an origin of content (`design.md` 10): [`hosts`](super::hosts) has seen to that before.

pub mod content;
mod handshake;
mod portal;
mod tus;

use ::http::header::{self, HeaderName, HeaderValue};
use ::http::{Method, Response, StatusCode};
use hyper::upgrade::OnUpgrade;

use super::ask::Ask;
use super::caller::Sender;
use super::refusal::Refusal;
use super::reply::{Clock, Reply, ReplyBody};
use super::services::{Services, UploadStream};

const SKYNET_PORTAL_API: HeaderName = HeaderName::from_static("skynet-portal-api");
const SKYNET_SERVER_API: HeaderName = HeaderName::from_static("skynet-server-api");
/// The CID of the same bytes.
const SKYGATE_CID: HeaderName = HeaderName::from_static("skygate-cid");

/// A request for the portal's API.
pub struct Call<'a> {
    pub services: &'a Services,
    pub ask: &'a Ask,
    pub clock: &'a Clock,
    pub sender: Sender<'a>,
    pub body: UploadStream,
    /// Of a request that asks for another protocol.
    pub upgrade: Option<OnUpgrade>,
}

/// Answers the portal's API, by path and method.
pub async fn api(call: Call<'_>) -> Result<Reply, Refusal> {
    // Before the general answer to OPTIONS: tus tells there what it can.
    let ask = call.ask;
    if let Some(place) = tus::place(&ask.path) {
        return Ok(tus::answer(call, place).await);
    }
    if ask.method == Method::OPTIONS {
        return Ok(no_content());
    }
    match ask.path.as_str() {
        path if path.starts_with("/hnsres/") => handshake::pointer(call.services, ask, &path["/hnsres/".len()..]),
        path if portal::answers(path) => portal::answer(call.services, ask).await,
        _ => Err(Refusal::NoRoute),
    }
}

fn no_content() -> Reply {
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

/// What every reply of a portal carries: where its API is, and CORS with credentials for whoever asks.
pub fn with_portal_headers(mut reply: Reply, ask: &Ask) -> Reply {
    const METHODS: &str = "GET, POST, HEAD, OPTIONS, PUT, PATCH, DELETE";
    const ALLOW: &str = "DNT, User-Agent, X-Requested-With, If-Modified-Since, If-None-Match, Cache-Control, Content-Type, Range, \
         X-HTTP-Method-Override, upload-offset, upload-metadata, upload-length, tus-version, tus-resumable, tus-extension, \
         tus-max-size, upload-concat, location, Skynet-API-Key";
    const EXPOSE: &str = "Content-Length, Content-Range, ETag, Accept-Ranges, Skynet-File-Metadata, Skynet-Skylink, Skynet-Proof, \
         Skynet-Portal-Api, Skynet-Server-Api, upload-offset, upload-metadata, upload-length, tus-version, tus-resumable, \
         tus-extension, tus-max-size, upload-concat, location, Skygate-Cid, Cache-Status, Server-Timing";
    /// Preflights are asked anew after twenty days.
    const PREFLIGHT_SECONDS: &str = "1728000";
    let headers = reply.headers_mut();
    if let Some(api) = ask.host.as_ref().and_then(|host| HeaderValue::try_from(format!("http://{host}")).ok()) {
        headers.insert(SKYNET_PORTAL_API, api.clone());
        headers.insert(SKYNET_SERVER_API, api);
    }
    if let Some(origin) = ask.origin.as_ref().and_then(|origin| HeaderValue::try_from(origin).ok()) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOW));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSE));
    if ask.method == Method::OPTIONS {
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_SECONDS));
    }
    reply
}

#[cfg(test)]
mod tests;
