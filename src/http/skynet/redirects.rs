//! `_redirects` of a skyfile, by the same rules as of a DAG: asked when a path of a site with an origin of its own does not
//! exist.

use ::http::StatusCode;
use bytes::BytesMut;
use futures::StreamExt;

use crate::site::redirects::{Found as Rule, REDIRECTS_BYTES_MAX, REDIRECTS_NAME, Redirects, RedirectsError};
use crate::site::skynet::{RootSlash, SkyAnswer, SkyAsk, resolve};
use crate::store::Window;

use crate::http::gateway::redirects::redirect;
use crate::http::refusal::Refusal;
use crate::http::reply::Reply;

use super::content::{Request, decoded_path};

/// What the site's own rule says of a path that it does not have; `None` if it has no rule for it. `path` is decoded.
pub(super) async fn on_missing(request: &Request<'_>, path: &str) -> Result<Option<Reply>, Refusal> {
    let hidden = decoded_path(request.ask, request.target.hidden())?;
    let hidden = hidden.trim_end_matches('/');
    let Some(redirects) = read(request, hidden).await? else { return Ok(None) };
    let below = path.strip_prefix(hidden).unwrap_or(path);
    let names: Vec<String> = below.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let (status, to) = match redirects.find(&names, request.ask.query.as_deref()) {
        None => return Ok(None),
        Some(Rule::Redirect { status, location }) => {
            return redirect(request.ask, request.clock, status, &location, request.target.cache_control()).map(Some);
        }
        Some(Rule::Rewrite { path }) => (StatusCode::OK, path),
        Some(Rule::Page { status, path }) => (StatusCode::from_u16(status).expect("the format has only real statuses"), path),
    };
    send(request, status, &format!("{hidden}{to}")).await.map(Some)
}

/// The site's rules; `None` if it has none.
async fn read(request: &Request<'_>, hidden: &str) -> Result<Option<Redirects>, Refusal> {
    let skyfile = &request.found.skyfile;
    let path = format!("{hidden}/{REDIRECTS_NAME}");
    let Some(file) = skyfile.head().metadata.subfiles.get(&path[1..]) else { return Ok(None) };
    if file.len_bytes > REDIRECTS_BYTES_MAX {
        return Err(RedirectsError::TooLarge.into());
    }
    let mut bytes = BytesMut::new();
    // Whether it lies within the content is checked here: it is not what was asked for.
    let sky_ask = SkyAsk { path: &path, format: None, root_slash: RootSlash::Fine };
    if let SkyAnswer::File(file) = resolve(&skyfile.head().metadata, skyfile.head().size_bytes, &sky_ask)? {
        let stretch = file.offset_bytes..file.offset_bytes + file.len_bytes;
        let mut chunks = skyfile.stream(stretch, 0..file.len_bytes, Window::First, request.clock.trace.clone());
        while let Some(chunk) = chunks.next().await.transpose()? {
            bytes.extend_from_slice(&chunk);
        }
    }
    Ok(Some(Redirects::parse(&bytes)?))
}

/// Another path's content, in place of what was asked for.
async fn send(request: &Request<'_>, status: StatusCode, path: &str) -> Result<Reply, Refusal> {
    let head = request.found.skyfile.head();
    let sky_ask = SkyAsk { path, format: None, root_slash: RootSlash::Fine };
    match resolve(&head.metadata, head.size_bytes, &sky_ask)? {
        SkyAnswer::File(file) if file.status == 200 => request.send(status, &request.plan_of_file(&file).await?).await,
        _ => Err(Refusal::NoSuchPath { missing: path.to_owned() }),
    }
}
