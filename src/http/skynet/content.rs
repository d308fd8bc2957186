//! The portal's content: `GET` and `HEAD` of `/{skylink}[/path]`, `{skylink}.{portal}/path` and names that point to
//! skylinks (`skynet.md` 5), by the pure rules of `site::skynet`.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use ::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, StatusCode};

use crate::address::{AddressError, SitePath};
use crate::site::content_type;
use crate::site::skynet::{ArchiveFile, ArchiveFormat, RootSlash, SkyAnswer, SkyArchive, SkyAsk, SkyFile, etag, resolve};

use crate::http::ask::{Ask, Place, SkyPath};
use crate::http::plan::{self, Conditions, Disposition, Representation, ascii};
use crate::http::refusal::Refusal;
use crate::http::reply::{BodySource, Clock, Delivery, FilePlan, Reply, made_here, stamp};
use crate::http::services::{Services, Skyfile};

use super::query::{Layout, SkyQuery};
use super::resolve::{Resolved, resolve as resolve_link};
use super::target::{Target, WebOrigin};
use super::{archive, no_content, redirects};

pub(super) const SKYNET_SKYLINK: HeaderName = HeaderName::from_static("skynet-skylink");
const SKYNET_FILE_LAYOUT: HeaderName = HeaderName::from_static("skynet-file-layout");

/// Answers a skylink and a path below it.
pub async fn answer(services: &Services, ask: &Ask, clock: &Clock) -> Result<Reply, Refusal> {
    if ask.method == Method::OPTIONS {
        return Ok(no_content());
    }
    // A query can change anything, so only plain answers are kept ready.
    let ready = if ask.is_plain() { services.answers.get(&ready_key(ask), clock) } else { None };
    if let Some(plan) = ready {
        return send(services, ask, clock, &ask.conditions, StatusCode::OK, &plan).await;
    }
    answer_target(services, ask, &Target::of(ask)?, clock).await
}

/// The same below another route of the portal: `path` is the end of the request's.
pub async fn answer_below(
    services: &Services,
    ask: &Ask,
    clock: &Clock,
    path: &str,
    disposition: Disposition,
) -> Result<Reply, Refusal> {
    let SkyPath { link, path_text } = ask.sky_path(path)?;
    let target = Target { link, path_text, hidden_bytes: 0, origin: WebOrigin::Shared, moving: None };
    let mut query = SkyQuery::read(ask)?;
    if disposition == Disposition::Attachment {
        query.disposition = disposition;
    }
    answer_query(services, ask, &target, &query, clock).await
}

/// Answers a target that the address led to by whatever way.
pub async fn answer_target(services: &Services, ask: &Ask, target: &Target, clock: &Clock) -> Result<Reply, Refusal> {
    answer_query(services, ask, target, &SkyQuery::read(ask)?, clock).await
}

async fn answer_query(services: &Services, ask: &Ask, target: &Target, query: &SkyQuery, clock: &Clock) -> Result<Reply, Refusal> {
    let path = decoded_path(ask, &target.path_text)?;
    let found = query.within(Found::of(services, target, clock)).await?;
    let request = Request { services, ask, target, query, clock, found: &found };
    let head = found.skyfile.head();
    let sky_ask = SkyAsk { path: &path, format: query.format, root_slash: root_slash(ask, query, &target.path_text) };
    let sky_answer = resolve(&head.metadata, head.size_bytes, &sky_ask)?;
    // What is not there may have a rule of the site's own, before it has a page that says so.
    let missing = match &sky_answer {
        SkyAnswer::NotFound => true,
        SkyAnswer::File(file) => file.status != 200,
        SkyAnswer::RedirectToSlash | SkyAnswer::Archive(_) => false,
    };
    if missing
        && target.origin == WebOrigin::Own
        && let Some(reply) = redirects::on_missing(&request, &path).await?
    {
        return Ok(reply);
    }
    match sky_answer {
        SkyAnswer::File(file) => {
            let plan = Arc::new(request.plan_of_file(&file).await?);
            let status = StatusCode::from_u16(file.status).unwrap_or(StatusCode::OK);
            if status == StatusCode::OK && request.may_be_kept() {
                services.answers.put(&ready_key(ask), plan.clone(), clock);
            }
            request.send(status, &plan).await
        }
        SkyAnswer::RedirectToSlash => Ok(redirect_to_slash(ask, clock)),
        SkyAnswer::Archive(archive) if archive.format == ArchiveFormat::Concat => {
            request.send(StatusCode::OK, &request.plan_of_concat(&archive).await?).await
        }
        SkyAnswer::Archive(archive) => archive::reply(&request, &archive).await,
        SkyAnswer::NotFound => Err(Refusal::NoSuchPath { missing: path }),
    }
}

/// Link and path, as they stand on a path of a portal.
fn ready_key(ask: &Ask) -> Cow<'_, str> {
    match &ask.place {
        Place::Skylink { link, .. } => format!("/{link}{}", ask.path).into(),
        Place::Path | Place::Subdomain { .. } | Place::DnsLink { .. } => ask.path.as_str().into(),
    }
}

async fn send(
    services: &Services,
    ask: &Ask,
    clock: &Clock,
    conditions: &Conditions,
    status: StatusCode,
    plan: &FilePlan,
) -> Result<Reply, Refusal> {
    let delivery = Delivery { services, method: &ask.method, conditions, clock, status };
    delivery.send(plan).await
}

/// The skyfile behind a skylink.
pub(super) struct Found {
    pub resolved: Resolved,
    pub skyfile: Arc<dyn Skyfile>,
}

impl Found {
    pub async fn of(services: &Services, target: &Target, clock: &Clock) -> Result<Found, Refusal> {
        let resolved = resolve_link(services, target.link).await?;
        let skyfile = services.content.skyfile(&resolved.link, &clock.trace).await?;
        Ok(Found { resolved, skyfile })
    }
}

/// A request whose skyfile is open.
pub(super) struct Request<'a> {
    pub services: &'a Services,
    pub ask: &'a Ask,
    pub target: &'a Target,
    pub query: &'a SkyQuery,
    pub clock: &'a Clock,
    pub found: &'a Found,
}

impl Request<'_> {
    /// Headers of every answer out of this skyfile.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(24);
        if let Some(rule) = self.target.cache_control() {
            headers.insert(header::CACHE_CONTROL, rule);
        }
        self.found.resolved.put_headers(&mut headers);
        if self.query.layout == Layout::Told {
            headers.insert(SKYNET_FILE_LAYOUT, ascii(hex::encode(self.found.skyfile.head().layout.encode())));
        }
        headers
    }

    /// Ready answers are for addresses that never change. A HEAD of the bare skylink of a site is answered with a file
    /// where a GET is a redirect: not to be kept for both.
    fn may_be_kept(&self) -> bool {
        let one_answer = self.ask.method == Method::GET
            || !self.target.path_text.is_empty()
            || self.found.skyfile.head().metadata.subfiles.len() <= 1;
        self.ask.is_plain() && one_answer && !self.found.resolved.is_proved()
    }

    pub async fn send(&self, status: StatusCode, plan: &FilePlan) -> Result<Reply, Refusal> {
        let conditions = self.query.conditions(&self.ask.conditions);
        send(self.services, self.ask, self.clock, &conditions, status, plan).await
    }

    pub async fn plan_of_file(&self, file: &SkyFile<'_>) -> Result<FilePlan, Refusal> {
        let stated = file.content_type.map(Cow::Borrowed).or_else(|| content_type::by_name(file.name));
        let stretch = file.offset_bytes..file.offset_bytes + file.len_bytes;
        self.plan(Piece { path: &file.path, name: file.name, content_type: stated, stretches: vec![stretch] }).await
    }

    /// Several files as one: what a single stated type cannot tell is told from the first bytes.
    async fn plan_of_concat(&self, archive: &SkyArchive<'_>) -> Result<FilePlan, Refusal> {
        let metadata = &self.found.skyfile.head().metadata;
        let stated = match &archive.files[..] {
            [only] => metadata.subfiles.get(only.path).map(|file| file.content_type.as_str()).filter(|kind| !kind.is_empty()),
            _ => None,
        };
        let name = archive.name.rsplit('/').next().unwrap_or_default();
        let stretches = joined(&archive.files);
        self.plan(Piece { path: &archive.path, name, content_type: stated.map(Cow::Borrowed), stretches }).await
    }

    async fn plan(&self, piece: Piece<'_>) -> Result<FilePlan, Refusal> {
        for stretch in &piece.stretches {
            self.found.skyfile.allow(stretch, &self.clock.trace).await?;
        }
        let mut headers = self.headers();
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if let Some(kind) = piece.content_type.and_then(|kind| HeaderValue::from_str(&kind).ok()) {
            headers.insert(header::CONTENT_TYPE, kind);
        }
        headers.insert(header::CONTENT_DISPOSITION, plan::content_disposition(self.query.disposition, piece.name));
        Ok(FilePlan {
            representation: Representation {
                size_bytes: piece.stretches.iter().map(|stretch| stretch.end - stretch.start).sum(),
                etag: self.etag(piece.path, self.query.format),
                last_modified: None,
                headers,
            },
            source: BodySource::Skyfile { skyfile: self.found.skyfile.clone(), stretches: piece.stretches },
            sniffed: OnceLock::new(),
        })
    }

    pub fn etag(&self, path: &str, format: Option<ArchiveFormat>) -> HeaderValue {
        let format = format.map_or("", ArchiveFormat::word);
        ascii(format!("\"{}\"", etag(&self.found.resolved.link.to_string(), path, format)))
    }
}

/// What is sent as one body.
struct Piece<'a> {
    path: &'a str,
    name: &'a str,
    content_type: Option<Cow<'a, str>>,
    stretches: Vec<std::ops::Range<u64>>,
}

/// Files as stretches of the content, neighbours joined.
fn joined(files: &[ArchiveFile<'_>]) -> Vec<std::ops::Range<u64>> {
    let mut stretches: Vec<std::ops::Range<u64>> = Vec::new();
    for file in files {
        let end = file.offset_bytes + file.len_bytes;
        match stretches.last_mut() {
            Some(last) if last.end == file.offset_bytes => last.end = end,
            _ => stretches.push(file.offset_bytes..end),
        }
    }
    stretches
}

/// The path behind the skylink, percent-decoded: Skynet's rules read it as text, so doubled slashes and dots stay.
pub(super) fn decoded_path(ask: &Ask, path_text: &str) -> Result<String, Refusal> {
    // The checks are those of every path; only the text itself is kept as it stood.
    SitePath::parse(path_text).map_err(|error| ask.bad_path(error))?;
    let decoded =
        percent_encoding::percent_decode_str(path_text).decode_utf8().map_err(|_| ask.bad_path(AddressError::PathUtf8))?;
    Ok(if decoded.starts_with('/') { decoded.into_owned() } else { format!("/{decoded}") })
}

/// A redirect serves only a browser that shows the page: a plain GET whose URL ends with the skylink.
fn root_slash(ask: &Ask, query: &SkyQuery, path_text: &str) -> RootSlash {
    let shown = ask.method == Method::GET && query.disposition == Disposition::Inline;
    if shown && !path_text.ends_with('/') { RootSlash::Missing } else { RootSlash::Fine }
}

/// 308 to the same address with a slash; the Location is relative, as Skynet's was, so that it holds under every prefix.
fn redirect_to_slash(ask: &Ask, clock: &Clock) -> Reply {
    let last = ask.path.rsplit('/').next().unwrap_or_default();
    let location = match &ask.query {
        Some(query) => format!("{last}/?{query}"),
        None => format!("{last}/"),
    };
    let mut reply = made_here(StatusCode::PERMANENT_REDIRECT, "text/plain; charset=utf-8", &ask.method, format!("{location}\n"));
    if let Ok(value) = HeaderValue::try_from(location) {
        reply.headers_mut().insert(header::LOCATION, value);
    }
    stamp(reply.headers_mut(), clock, clock.started.elapsed());
    reply
}
