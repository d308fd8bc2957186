//! The portal's content: `GET` and `HEAD` of `/{skylink}[/path]` (`skynet.md` 5), by the pure rules of `site::skynet`.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use ::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, Response, StatusCode};

use crate::address::{AddressError, SitePath, Skylink, SkylinkKind};
use crate::site::content_type;
use crate::site::skynet::{ArchiveFormat, RootSlash, SkyAnswer, SkyAsk, SkyFile, etag, resolve};

use crate::http::ask::{Ask, SkyTarget};
use crate::http::plan::{self, Conditions, Disposition, Representation, ascii};
use crate::http::refusal::Refusal;
use crate::http::reply::{BodySource, Clock, Delivery, FilePlan, Reply, ReplyBody, made_here, stamp};
use crate::http::services::{Services, Skyfile};

pub(super) const SKYNET_SKYLINK: HeaderName = HeaderName::from_static("skynet-skylink");

/// Most seconds a client may ask a portal to look for a skylink.
const TIMEOUT_MAX_S: u32 = 900;

/// Answers a skylink and a path below it.
pub async fn answer(services: &Services, ask: &Ask, clock: &Clock) -> Result<Reply, Refusal> {
    if ask.method == Method::OPTIONS {
        let mut reply = Response::new(ReplyBody::empty());
        *reply.status_mut() = StatusCode::NO_CONTENT;
        return Ok(reply);
    }
    // A query can change anything, so only plain answers are kept ready.
    let ready = if ask.is_plain() { services.answers.get(&ask.path, clock) } else { None };
    if let Some(plan) = ready {
        return send(services, ask, clock, &ask.conditions, StatusCode::OK, &plan).await;
    }
    let SkyTarget { link, path_text } = ask.sky_target()?;
    if let SkylinkKind::V2 { .. } = link.kind() {
        return Err(Refusal::ResolverSkylink);
    }
    let query = SkyQuery::read(ask)?;
    let path = decoded_path(ask, &path_text)?;
    let skyfile = services.content.skyfile(&link, &clock.trace).await?;
    let sky_ask = SkyAsk { path: &path, format: query.format, root_slash: root_slash(ask, &query, &path_text) };
    match resolve(&skyfile.head().metadata, skyfile.head().size_bytes, &sky_ask)? {
        SkyAnswer::File(file) => {
            let plan = Arc::new(plan_of(&skyfile, &link, &file, &query));
            let status = StatusCode::from_u16(file.status).unwrap_or(StatusCode::OK);
            if ask.is_plain() && status == StatusCode::OK && may_be_kept(ask, &path_text, &skyfile) {
                services.answers.put(&ask.path, plan.clone(), clock);
            }
            let conditions = query.conditions(&ask.conditions);
            send(services, ask, clock, &conditions, status, &plan).await
        }
        SkyAnswer::RedirectToSlash => Ok(redirect_to_slash(ask, clock)),
        SkyAnswer::Archive(_) => Err(Refusal::Archive),
        SkyAnswer::NotFound => Err(Refusal::NoSuchPath { missing: path }),
    }
}

/// A HEAD of the bare skylink of a site is answered with a file where a GET is a redirect: not to be kept for both.
fn may_be_kept(ask: &Ask, path_text: &str, skyfile: &Arc<dyn Skyfile>) -> bool {
    ask.method == Method::GET || !path_text.is_empty() || skyfile.head().metadata.subfiles.len() <= 1
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

/// The parameters of Skynet's download route.
struct SkyQuery {
    attachment: bool,
    format: Option<ArchiveFormat>,
    /// `start` and `end` as a Range header, if both are there.
    range: Option<String>,
}

impl SkyQuery {
    fn read(ask: &Ask) -> Result<SkyQuery, Refusal> {
        let number = |text: String| text.parse::<u64>().map_err(|_| Refusal::BadQuery("start and end are numbers of bytes"));
        let start = ask.parameter("start").map(number).transpose()?;
        let end = ask.parameter("end").map(number).transpose()?;
        let range = match (start, end) {
            (None, None) => None,
            (Some(_), Some(_)) if ask.conditions.range.is_some() => {
                return Err(Refusal::BadQuery("a range is given twice, in the query and in the Range header"));
            }
            (Some(start), Some(end)) if start <= end => Some(format!("bytes={start}-{end}")),
            (Some(_), Some(_)) => return Err(Refusal::BadQuery("start is behind end")),
            (Some(_), None) | (None, Some(_)) => return Err(Refusal::BadQuery("start and end need each other")),
        };
        if let Some(text) = ask.parameter("timeout") {
            // The store has its own time-outs; the value is only checked, as Skynet did.
            let seconds = text.parse::<u32>().map_err(|_| Refusal::BadQuery("timeout is a number of seconds"))?;
            if seconds == 0 || seconds > TIMEOUT_MAX_S {
                return Err(Refusal::BadQuery("timeout is from 1 to 900 seconds"));
            }
        }
        let attachment = match ask.parameter("attachment").as_deref() {
            None | Some("" | "false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => return Err(Refusal::BadQuery("attachment is true or false")),
        };
        let format = match ask.parameter("format").filter(|word| !word.is_empty()) {
            None => None,
            Some(word) => Some(ArchiveFormat::parse(&word).ok_or(Refusal::BadQuery("format is concat, tar, targz or zip"))?),
        };
        Ok(SkyQuery { attachment, format, range })
    }

    fn conditions(&self, asked: &Conditions) -> Conditions {
        let mut conditions = asked.clone();
        if let Some(range) = &self.range {
            conditions.range = Some(range.clone());
        }
        conditions
    }
}

/// The path behind the skylink, percent-decoded: Skynet's rules read it as text, so doubled slashes and dots stay.
fn decoded_path(ask: &Ask, path_text: &str) -> Result<String, Refusal> {
    // The checks are those of every path; only the text itself is kept as it stood.
    SitePath::parse(path_text).map_err(|error| ask.bad_path(error))?;
    let decoded =
        percent_encoding::percent_decode_str(path_text).decode_utf8().map_err(|_| ask.bad_path(AddressError::PathUtf8))?;
    Ok(if decoded.starts_with('/') { decoded.into_owned() } else { format!("/{decoded}") })
}

/// A redirect serves only a browser that shows the page: a plain GET whose URL ends with the skylink.
fn root_slash(ask: &Ask, query: &SkyQuery, path_text: &str) -> RootSlash {
    if ask.method == Method::GET && !query.attachment && !path_text.ends_with('/') { RootSlash::Missing } else { RootSlash::Fine }
}

fn plan_of(skyfile: &Arc<dyn Skyfile>, link: &Skylink, file: &SkyFile<'_>, query: &SkyQuery) -> FilePlan {
    let link_text = link.to_string();
    let mut headers = HeaderMap::with_capacity(24);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let stated = file.content_type.map(Cow::Borrowed).or_else(|| content_type::by_name(file.name));
    if let Some(kind) = stated.and_then(|kind| HeaderValue::from_str(&kind).ok()) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    let disposition = if query.attachment { Disposition::Attachment } else { Disposition::Inline };
    headers.insert(header::CONTENT_DISPOSITION, plan::content_disposition(disposition, file.name));
    if let Ok(value) = HeaderValue::try_from(&link_text) {
        headers.insert(SKYNET_SKYLINK, value);
    }
    let format = query.format.map_or("", ArchiveFormat::word);
    FilePlan {
        representation: Representation {
            size_bytes: file.len_bytes,
            etag: ascii(format!("\"{}\"", etag(&link_text, &file.path, format))),
            last_modified: None,
            headers,
        },
        source: BodySource::Skyfile { skyfile: skyfile.clone(), stretch: file.offset_bytes..file.offset_bytes + file.len_bytes },
        sniffed: OnceLock::new(),
    }
}

/// 308 to the skylink with a slash; the Location is relative, as Skynet's was, so that it holds under every prefix.
fn redirect_to_slash(ask: &Ask, clock: &Clock) -> Reply {
    let link = ask.path.trim_start_matches('/');
    let location = match &ask.query {
        Some(query) => format!("{link}/?{query}"),
        None => format!("{link}/"),
    };
    let mut reply = made_here(StatusCode::PERMANENT_REDIRECT, "text/plain; charset=utf-8", &ask.method, format!("{location}\n"));
    if let Ok(value) = HeaderValue::try_from(location) {
        reply.headers_mut().insert(header::LOCATION, value);
    }
    stamp(reply.headers_mut(), clock, clock.started.elapsed());
    reply
}
