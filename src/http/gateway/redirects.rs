//! `_redirects` at work: asked when a path of a site with an origin of its own does not exist.

use ::http::header::{self, HeaderValue};
use ::http::{Response, StatusCode};
use bytes::BytesMut;
use futures::StreamExt;

use super::super::ask::Ask;
use super::super::plan::CACHE_IMMUTABLE;
use super::super::refusal::Refusal;
use super::super::reply::{Clock, Reply, made_here, stamp};
use super::super::services::Services;
use super::super::walk::walk;
use super::{FileFound, Target, check_target, file_of, send_file};
use crate::address::{SitePath, TrailingSlash};
use crate::site::redirects::{Found, REDIRECTS_BYTES_MAX, REDIRECTS_NAME, Redirects, RedirectsError};
use crate::site::unixfs::{Answer, INDEX_NAME};
use crate::store::Window;

/// What the site says of a path that it does not have: its own rule's answer, or that `missing` is not there.
pub async fn on_missing(services: &Services, ask: &Ask, target: &Target, clock: &Clock, missing: String) -> Result<Reply, Refusal> {
    let Some(redirects) = read(services, target, clock).await? else { return Err(Refusal::NoSuchPath { missing }) };
    match redirects.find(&target.path.segments()[target.hidden..], ask.query.as_deref()) {
        None => Err(Refusal::NoSuchPath { missing }),
        Some(Found::Redirect { status, location }) => {
            redirect(ask, clock, status, &location, target.cache_control(CACHE_IMMUTABLE))
        }
        Some(Found::Rewrite { path }) => send(services, ask, target, clock, StatusCode::OK, &path).await,
        Some(Found::Page { status, path }) => {
            let status = StatusCode::from_u16(status).expect("the format has only real statuses");
            send(services, ask, target, clock, status, &path).await
        }
    }
}

/// The site's rules; `None` if it has none.
async fn read(services: &Services, target: &Target, clock: &Clock) -> Result<Option<Redirects>, Refusal> {
    let Some(file) = find(services, target, clock, REDIRECTS_NAME).await? else { return Ok(None) };
    let size = file.node.size;
    if size > REDIRECTS_BYTES_MAX {
        return Err(RedirectsError::TooLarge.into());
    }
    let mut bytes = BytesMut::new();
    let mut chunks = services.content.stream_file(file.source(), 0..size, Window::First, clock.trace.clone());
    while let Some(chunk) = chunks.next().await.transpose()? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(Redirects::parse(&bytes)?))
}

/// The file at a decoded path of the site, whose root is below the names that a pointer hides.
async fn find(services: &Services, target: &Target, clock: &Clock, path: &str) -> Result<Option<FileFound>, Refusal> {
    let hidden = target.hidden_names();
    let parse = |text: String| SitePath::from_decoded(&text).map_err(|error| Refusal::BadPath { path: text.clone(), error });
    let path = parse(format!("{hidden}/{path}"))?;
    let content = services.content.as_ref();
    let mut answer = walk(content, target.root, path.clone(), &clock.trace).await?;
    if matches!(answer, Answer::AddSlash) && path.trailing_slash() == TrailingSlash::No {
        answer = walk(content, target.root, parse(format!("{}/", path.decoded()))?, &clock.trace).await?;
    }
    file_of(services, clock, answer).await
}

/// Another path's content, in place of what was asked for.
async fn send(
    services: &Services,
    ask: &Ask,
    target: &Target,
    clock: &Clock,
    status: StatusCode,
    path: &str,
) -> Result<Reply, Refusal> {
    let names = path.trim_matches('/');
    check_target(services, target, names)?;
    match find(services, target, clock, path).await? {
        Some(found) if found.dir.is_some() => {
            check_target(services, target, &format!("{names}/{INDEX_NAME}"))?;
            send_file(services, ask, target, clock, status, found).await
        }
        Some(found) => send_file(services, ask, target, clock, status, found).await,
        None => Err(Refusal::NoSuchPath { missing: path.trim_start_matches('/').to_owned() }),
    }
}

/// The reply of a rule that leads elsewhere, of any kind of site.
pub(in crate::http) fn redirect(
    ask: &Ask,
    clock: &Clock,
    status: u16,
    location: &str,
    cache: Option<HeaderValue>,
) -> Result<Reply, Refusal> {
    let status = StatusCode::from_u16(status).expect("the format has only real statuses");
    let value = HeaderValue::try_from(location).map_err(|_| Refusal::BadQuery("it does not fit into an address"))?;
    let mut reply: Response<_> = made_here(status, "text/plain; charset=utf-8", &ask.method, format!("{location}\n"));
    reply.headers_mut().insert(header::LOCATION, value);
    if let Some(rule) = cache {
        reply.headers_mut().insert(header::CACHE_CONTROL, rule);
    }
    stamp(reply.headers_mut(), clock, clock.started.elapsed());
    Ok(reply)
}
