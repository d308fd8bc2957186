//! The portal: content under `/{skylink}` ([`content`]) and the API under `/skynet/` and beside it (`skynet.md` 6).
//!
//! Skynet's clients read errors as JSON and need its own headers and CORS on every reply. The API answers on portal
//! domains only, never on an origin of content (`design.md` 10): [`hosts`](super::hosts) has seen to that before.

mod archive;
pub mod content;
pub mod handshake;
pub mod multipart;
mod pin;
mod portal;
mod query;
mod redirects;
mod registry;
mod resolve;
mod sectors;
mod subscription;
mod target;
mod tus;
pub mod upload;

use ::http::header::{self, HeaderName, HeaderValue};
use ::http::{Method, Response, StatusCode};
use hyper::upgrade::OnUpgrade;

pub use target::Target;

use super::ask::{Ask, Place};
use super::caller::Sender;
use super::plan::Disposition;
use super::refusal::{Refusal, SkyRefusal};
use super::reply::{Clock, Reply, ReplyBody};
use super::services::{Services, UploadStream};
use sectors::Wanted;

pub use subscription::Subscriptions;

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
    let path = ask.path.as_str();
    if downloads(path) {
        return download(call.services, read_only(ask)?, call.clock).await;
    }
    if registry::PATHS.contains(&path) {
        return registry::answer(call).await;
    }
    if path.starts_with("/hns/") {
        return handshake::answer(call.services, read_only(ask)?, call.clock).await;
    }
    if let Some(name) = path.strip_prefix("/hnsres/") {
        return handshake::pointer(call.services, ask, name);
    }
    if portal::answers(path) {
        return portal::answer(call.services, ask).await;
    }
    let (route, rest) = path.strip_prefix("/skynet/").map_or((path, ""), |below| below.split_once('/').unwrap_or((below, "")));
    match (route, &ask.method) {
        // What follows was a path on Skynet's own nodes; it means nothing here.
        ("skyfile", &Method::POST) => upload::skyfile(call).await,
        ("restore", &Method::POST) if rest.is_empty() => pin::restore(call).await,
        ("pin", &Method::POST) => pin::pin(call, rest).await,
        ("unpin", &Method::POST) => pin::unpin(call, rest).await,
        ("skyfile" | "restore" | "pin" | "unpin", _) => Err(SkyRefusal::OtherMethod("POST, OPTIONS").into()),
        _ => Err(Refusal::NoRoute),
    }
}

/// Routes that only read skyfiles. The skylink stands behind them.
const OF_SKYLINK: [(&str, Wanted); 5] = [
    ("/skynet/metadata/", Wanted::Metadata),
    ("/skynet/basesector/", Wanted::BaseSector),
    ("/skynet/trustless/basesector/", Wanted::ProvedBaseSector),
    ("/skynet/resolve/", Wanted::Resolved),
    ("/skynet/health/skylink/", Wanted::Health),
];
/// A file or a folder for keeping, and what the portal's own `/{skylink}` was called behind its proxy.
const ATTACHMENT: &str = "/file";
const SKYLINK: &str = "/skynet/skylink";
const ROOT: &str = "/skynet/root";

fn downloads(path: &str) -> bool {
    let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    path == ROOT || below(ATTACHMENT) || below(SKYLINK) || OF_SKYLINK.iter().any(|(prefix, _)| path.starts_with(prefix))
}

async fn download(services: &Services, ask: &Ask, clock: &Clock) -> Result<Reply, Refusal> {
    if ask.path == ROOT {
        return sectors::root(services, ask, clock).await;
    }
    for (prefix, disposition) in [(ATTACHMENT, Disposition::Attachment), (SKYLINK, Disposition::Inline)] {
        if let Some(path) = ask.path.strip_prefix(prefix) {
            return content::answer_below(services, ask, clock, path, disposition).await;
        }
    }
    let found = OF_SKYLINK.iter().find_map(|(prefix, wanted)| Some((*wanted, ask.path.strip_prefix(prefix)?)));
    let (wanted, text) = found.ok_or(Refusal::NoRoute)?;
    sectors::of_skylink(services, ask, clock, wanted, text).await
}

/// A route that takes nothing.
fn read_only(ask: &Ask) -> Result<&Ask, Refusal> {
    match ask.method {
        Method::GET | Method::HEAD => Ok(ask),
        _ => Err(Refusal::Method),
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
    let portal = match &ask.place {
        Place::Skylink { portal, .. } => Some(portal),
        Place::Path | Place::Subdomain { .. } | Place::DnsLink { .. } => ask.host.as_ref(),
    };
    let api = portal.and_then(|portal| HeaderValue::try_from(format!("{}://{portal}", ask.scheme.as_str())).ok());
    if let Some(api) = api {
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
#[cfg(test)]
mod upload_tests;
