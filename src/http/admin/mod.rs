//! The admin listener: dashboard, metrics, health, hosts, pins, uploads of the CLI. It never serves content, and the
//! public listener has none of its routes.
//!
//! Every request passes [`guard`]: known Host, own Origin, then a key or a session. `/health` alone is open. Pages of
//! other origins get nothing: no CORS, no framing, no embedding.

mod api;
mod blocklist;
mod dashboard;
mod keys;
mod names;
mod tree;

use std::sync::Arc;

use ::http::header::{self, HeaderValue};
use ::http::request::Parts;
use ::http::{HeaderName, Method};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use axum::{Router, response::IntoResponse};

use crate::access::{AdminRefused, Administrator, admin_request_allowed, same_origin};

use super::ask::{Reader, host_of, text};
use super::caller::given_keys;
use super::refusal::Refusal;
use super::reply::{Reply, refuse};
use super::services::Services;

/// Cookie of a session.
const SESSION_COOKIE: &str = "skygate_session";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// All routes of the admin listener.
pub fn router(services: Arc<Services>) -> Router {
    Router::new()
        .route("/", get(dashboard::page))
        .route("/health", get(api::health))
        .route("/metrics", get(api::metrics))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/latency", get(api::latency))
        .route("/api/v1/hosts", get(api::hosts))
        .route("/api/v1/pins", get(api::pins))
        .route("/api/v1/pins/{address}", delete(api::unpin))
        .route("/api/v1/names", get(names::list))
        .route("/api/v1/names/{name}", put(names::put))
        .route("/api/v1/names/{name}/resolve", get(names::resolve))
        .route("/api/v1/keys", get(keys::list).post(keys::make))
        .route("/api/v1/keys/{id}", delete(keys::revoke))
        .route("/api/v1/blocklist", get(blocklist::list).post(blocklist::change))
        .route("/api/v1/add", post(api::add))
        .route("/api/v1/import", post(api::import))
        .route("/api/v1/tree", get(tree::tree))
        .route("/api/v1/login-link", post(api::login_link))
        .fallback(async || Denied(Refusal::NoRoute, Reader::Json))
        .layer(middleware::from_fn_with_state(services.clone(), guard))
        .with_state(services)
}

/// A refusal on its way through axum.
struct Denied(Refusal, Reader);

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Denied {
        Denied(refusal, Reader::Json)
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let reply: Reply = refuse(&self.0, &Method::GET, self.1);
        reply.map(Body::new)
    }
}

/// Who may come in at all, and what every reply carries.
async fn guard(State(services): State<Arc<Services>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let reader = if parts.uri.path() == "/" { Reader::Html } else { Reader::Json };
    let mut response = match admit(&services, &parts) {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(refusal) => Denied(refusal, reader).into_response(),
    };
    const HEADERS: [(HeaderName, &str); 6] = [
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The login link's token stands in a URL.
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The rules, in order: name and origin, what the browser says of the request's source, then the credentials.
fn admit(services: &Services, parts: &Parts) -> Result<(), Refusal> {
    let host = host_of(parts);
    let host = host.as_deref().filter(|_| parts.headers.get_all(header::HOST).iter().count() <= 1);
    let origins = parts.headers.get_all(header::ORIGIN).iter().count();
    // An Origin that is no text is nobody's own.
    let origin = (origins > 0).then(|| text(&parts.headers, header::ORIGIN).filter(|_| origins == 1).unwrap_or("null"));
    admin_request_allowed(host, origin, &services.options.admin_hosts)?;
    let opens_page = parts.method == Method::GET && parts.uri.path() == "/";
    if from_another_site(parts) && !(opens_page && text(&parts.headers, SEC_FETCH_MODE) == Some("navigate")) {
        return Err(AdminRefused::ForeignOrigin.into());
    }
    if parts.uri.path() == "/health" || opens_page {
        // The page itself asks for the login.
        return Ok(());
    }
    match administrator(services, parts) {
        None => Err(Refusal::NoKey),
        Some(Administrator::ByKey) => Ok(()),
        Some(Administrator::BySession) => {
            let reads = matches!(parts.method, Method::GET | Method::HEAD);
            let own = origin.zip(host).is_some_and(|(origin, host)| same_origin(origin, host));
            if reads || own { Ok(()) } else { Err(Refusal::CookieWrite) }
        }
    }
}

/// Browsers say so for requests without an Origin, too: pictures, scripts, frames. The public listener's pages are
/// "same-site" with this one, cookies and all, but of another origin.
fn from_another_site(parts: &Parts) -> bool {
    matches!(text(&parts.headers, SEC_FETCH_SITE), Some("cross-site" | "same-site"))
}

/// The key as bearer token or in Skynet's header, else the session cookie.
fn administrator(services: &Services, parts: &Parts) -> Option<Administrator> {
    let headers = &parts.headers;
    let keys = given_keys(headers);
    // Whoever sends a key does not mean a cookie.
    if !keys.is_empty() {
        return keys.iter().find_map(|key| services.access.check_key(key));
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    // A page of another port on this host can set cookies of the same name, so each is tried.
    pairs.by_ref().filter(|(name, _)| *name == SESSION_COOKIE).find_map(|(_, secret)| services.access.check_session(secret))
}

#[cfg(test)]
mod tests;
