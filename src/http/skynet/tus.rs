//! tus 1.0.0 (`https://tus.io/protocols/resumable-upload`) under `/skynet/tus`, as Skynet's clients speak it (`skynet.md` 8):
//! creation, creation-with-upload, concatenation, termination, expiration. No deferred length.
//!
//! Skynet took bytes only up to multiples of 40 MiB; here any offset is good as long as it is the upload's own. The answer
//! that a file is whole comes when it is acknowledged, with `Skynet-Skylink`; so does HEAD, which waits for it. HEAD answers
//! 423 while it cannot be told, since clients begin anew after any other failure of it.
//!
//! Who may write at all is the caller's matter; an upload is continued by who began it. HEAD and GET only need its name,
//! which nobody can guess: nodejs 2.9.0 sends its key with them alone.

mod headers;

use std::time::{Duration, UNIX_EPOCH};

use ::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, Response, StatusCode};

use crate::address::Skylink;
use crate::http::ask::{Ask, text};
use crate::http::caller::Work;
use crate::http::plan::ascii;
use crate::http::refusal::{Refusal, TusRefusal};
use crate::http::reply::{Reply, ReplyBody, made_here, refuse};
use crate::ingest::spool::{Done, FinishError, Kind, NewUpload, SpoolError, UploadId, UploadStatus};

use self::headers::{Concat, UPLOADS};
use super::content::SKYNET_SKYLINK;
use super::{Call, SKYGATE_CID, no_content};

const VERSION: &str = "1.0.0";
const EXTENSIONS: &str = "creation,creation-with-upload,concatenation,termination,expiration";
const OFFSET_TYPE: &str = "application/offset+octet-stream";
/// Name of a file whose upload says none. Not the upload's own name: the same bytes have the same skylink.
const NAMELESS: &str = "file";

const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const TUS_EXTENSION: HeaderName = HeaderName::from_static("tus-extension");
const TUS_MAX_SIZE: HeaderName = HeaderName::from_static("tus-max-size");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_CONCAT: HeaderName = HeaderName::from_static("upload-concat");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
const METHOD_OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");

/// What a path of tus names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TusPlace<'a> {
    /// Where uploads are made.
    Uploads,
    Upload(&'a str),
    /// What an upload became.
    Outcome(&'a str),
}

/// Is this a path of tus?
pub fn place(path: &str) -> Option<TusPlace<'_>> {
    if let Some(id) = path.strip_prefix("/skynet/upload/tus/") {
        return Some(TusPlace::Outcome(id));
    }
    match path.strip_prefix(UPLOADS) {
        Some("") => Some(TusPlace::Uploads),
        Some(id) => Some(TusPlace::Upload(id)),
        None => (path == UPLOADS.trim_end_matches('/')).then_some(TusPlace::Uploads),
    }
}

/// Answers every path of tus; its headers stand on refusals, too.
pub async fn answer(call: Call<'_>, place: TusPlace<'_>) -> Reply {
    let (ask, bytes_max) = (call.ask, call.services.spool.bytes_max());
    let outcome = match method(call.ask, call.sender.headers) {
        Ok(method) => serve(call, place, method).await,
        Err(refusal) => Err(refusal),
    };
    let no_method = matches!(outcome, Err(Refusal::Tus(TusRefusal::Method)));
    let wrong_version = matches!(outcome, Err(Refusal::Tus(TusRefusal::Version)));
    let mut reply = outcome.unwrap_or_else(|refusal| refuse(&refusal, &ask.method, ask.reader));
    let headers = reply.headers_mut();
    headers.insert(TUS_RESUMABLE, HeaderValue::from_static(VERSION));
    if no_method {
        let allow = match place {
            TusPlace::Uploads => "POST, OPTIONS",
            TusPlace::Upload(_) => "GET, HEAD, PATCH, DELETE, OPTIONS",
            TusPlace::Outcome(_) => "GET, OPTIONS",
        };
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    if ask.method == Method::OPTIONS || wrong_version {
        headers.insert(TUS_VERSION, HeaderValue::from_static(VERSION));
    }
    if ask.method == Method::OPTIONS {
        headers.insert(TUS_EXTENSION, HeaderValue::from_static(EXTENSIONS));
        headers.insert(TUS_MAX_SIZE, bytes_max.into());
    }
    reply
}

/// The method that counts: for clients that cannot say PATCH.
fn method(ask: &Ask, headers: &HeaderMap) -> Result<Method, Refusal> {
    match text(headers, METHOD_OVERRIDE) {
        Some(word) => Method::from_bytes(word.trim().to_ascii_uppercase().as_bytes())
            .map_err(|_| Refusal::BadHeader("X-HTTP-Method-Override")),
        None => Ok(ask.method.clone()),
    }
}

async fn serve(call: Call<'_>, place: TusPlace<'_>, method: Method) -> Result<Reply, Refusal> {
    // A preflight is not of tus; of HEAD and GET browsers make some by themselves.
    let version = call.sender.headers.get(TUS_RESUMABLE);
    let may_lack = matches!(method, Method::OPTIONS | Method::HEAD | Method::GET);
    if method != Method::OPTIONS && version.map_or(!may_lack, |version| version != VERSION) {
        return Err(TusRefusal::Version.into());
    }
    match (place, method) {
        (_, Method::OPTIONS) => Ok(no_content()),
        (TusPlace::Uploads, Method::POST) => create(call).await,
        (TusPlace::Upload(id), Method::HEAD) => state(call, id_of(id)?).await,
        (TusPlace::Upload(id), Method::PATCH) => append(call, id_of(id)?).await,
        (TusPlace::Upload(id), Method::DELETE) => {
            let caller = call.sender.writer(call.services, call.ask)?;
            call.services.spool.remove(&id_of(id)?, caller.owner()).await?;
            Ok(no_content())
        }
        (TusPlace::Upload(id) | TusPlace::Outcome(id), Method::GET) => outcome(call, id_of(id)?),
        (TusPlace::Uploads | TusPlace::Upload(_) | TusPlace::Outcome(_), _) => Err(TusRefusal::Method.into()),
    }
}

fn id_of(text: &str) -> Result<UploadId, Refusal> {
    text.parse().map_err(|_| SpoolError::Unknown.into())
}

async fn create(call: Call<'_>) -> Result<Reply, Refusal> {
    let admitted = call.sender.admit(call.services, call.ask, Work::Upload)?;
    let owner = admitted.caller.owner().to_owned();
    let (headers, spool) = (call.sender.headers, &call.services.spool);
    let metadata = header_text(headers, UPLOAD_METADATA, "Upload-Metadata")?.unwrap_or_default();
    let facts = headers::file_facts(metadata).map_err(|why| TusRefusal::BadHeader("Upload-Metadata", why))?;
    let new = NewUpload {
        owner: owner.clone(),
        client: admitted.counted_as(),
        metadata: metadata.to_owned(),
        filename: facts.filename.unwrap_or_else(|| NAMELESS.to_owned()),
        content_type: facts.content_type,
    };
    let said = header_text(headers, UPLOAD_CONCAT, "Upload-Concat")?;
    let concat = said.map(headers::concat).transpose().map_err(|why| TusRefusal::BadHeader("Upload-Concat", why))?;
    let brings = brings_bytes(headers)?;
    let (kind, whole) = match (concat, brings) {
        (Some(Concat::Final(parts)), None) => {
            // Parts that are gone were put together before, and had their limit then.
            if let Ok(whole) = spool.length_of_parts(&owner, &parts) {
                admitted.allow_length(whole)?;
            }
            let status = spool.join(new, parts, said.unwrap_or_default().to_owned()).await?;
            return Ok(created(call.ask, &status, StatusCode::CREATED));
        }
        (Some(Concat::Final(_)), Some(_)) => return Err(SpoolError::IsJoined.into()),
        (Some(Concat::Part), _) => (Kind::Part, length(headers)?),
        (None, _) => (Kind::Whole, length(headers)?),
    };
    admitted.allow_length(whole)?;
    if let Some(Some(announced)) = brings
        && announced > whole
    {
        return Err(SpoolError::TooLong { max: whole }.into());
    }
    let mut status = spool.create(new, whole, kind).await?;
    let Some(announced) = brings else { return Ok(created(call.ask, &status, StatusCode::CREATED)) };
    status = spool.append((&status.id, &owner), 0, announced, admitted.metered(call.body)).await?;
    let mut reply = created(call.ask, &status, StatusCode::CREATED);
    reply.headers_mut().insert(UPLOAD_OFFSET, status.offset.into());
    Ok(reply)
}

/// The length of a new upload; one that is told later is not taken.
fn length(headers: &HeaderMap) -> Result<u64, Refusal> {
    if headers.contains_key(UPLOAD_DEFER_LENGTH) {
        return Err(TusRefusal::BadHeader("Upload-Defer-Length", "the length must be known when an upload begins").into());
    }
    number(headers, UPLOAD_LENGTH, "Upload-Length")?.ok_or_else(|| TusRefusal::BadHeader("Upload-Length", "it is missing").into())
}

/// Does a creation bring bytes, and how many, if that is known?
fn brings_bytes(headers: &HeaderMap) -> Result<Option<Option<u64>>, Refusal> {
    let announced = number(headers, header::CONTENT_LENGTH, "Content-Length")?;
    let typed = has_offset_type(headers);
    match announced {
        Some(0) => Ok(None),
        Some(_) if !typed => Err(TusRefusal::Type.into()),
        None if !typed => Ok(None),
        announced => Ok(Some(announced)),
    }
}

async fn append(call: Call<'_>, id: UploadId) -> Result<Reply, Refusal> {
    let admitted = call.sender.admit(call.services, call.ask, Work::Upload)?;
    let headers = call.sender.headers;
    if !has_offset_type(headers) {
        return Err(TusRefusal::Type.into());
    }
    let offset = number(headers, UPLOAD_OFFSET, "Upload-Offset")?;
    let offset = offset.ok_or(TusRefusal::BadHeader("Upload-Offset", "it is missing"))?;
    let announced = number(headers, header::CONTENT_LENGTH, "Content-Length")?;
    let body = admitted.metered(call.body);
    let status = call.services.spool.append((&id, admitted.caller.owner()), offset, announced, body).await?;
    let mut reply = no_content();
    let headers = reply.headers_mut();
    headers.insert(UPLOAD_OFFSET, status.offset.into());
    tell(headers, &status);
    Ok(reply)
}

async fn state(call: Call<'_>, id: UploadId) -> Result<Reply, Refusal> {
    let status = match call.services.spool.status(&id).await {
        Err(SpoolError::Unfinished(FinishError::Ingest(error))) if error.is_client_fault() => {
            return Err(SpoolError::Unfinished(FinishError::Ingest(error)).into());
        }
        // Clients come back after 423; after anything else they send all of it again.
        Err(SpoolError::Unfinished(error)) => {
            tracing::debug!(%error, "an upload that is whole is not stored yet");
            return Err(SpoolError::Busy.into());
        }
        status => status?,
    };
    let mut reply = Response::new(ReplyBody::empty());
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(UPLOAD_LENGTH, status.length.into());
    let concat = match &status.kind {
        Kind::Whole => None,
        Kind::Part => Some("partial"),
        Kind::Joined { said, .. } => Some(said.as_str()),
    };
    if let Some(concat) = concat {
        headers.insert(UPLOAD_CONCAT, ascii(concat.to_owned()));
    }
    headers.insert(UPLOAD_OFFSET, status.offset.into());
    let metadata = match &status.done {
        Some(done) => headers::metadata_with_skylink(&status.metadata, &done.skylink),
        None => status.metadata.clone(),
    };
    if !metadata.is_empty() {
        headers.insert(UPLOAD_METADATA, ascii(metadata));
    }
    tell(headers, &status);
    Ok(reply)
}

/// What an upload became, as `POST /skynet/skyfile` tells it.
fn outcome(call: Call<'_>, id: UploadId) -> Result<Reply, Refusal> {
    let status = call.services.spool.look_at(&id)?;
    let done = status.done.as_ref().ok_or(TusRefusal::NotFinished)?;
    let mut reply = made_here(StatusCode::OK, "application/json; charset=utf-8", &call.ask.method, outcome_json(done)?);
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    tell(reply.headers_mut(), &status);
    Ok(reply)
}

fn outcome_json(done: &Done) -> Result<String, Refusal> {
    let link = Skylink::parse(&done.skylink).map_err(|error| SpoolError::Io(std::io::Error::other(error.to_string())))?;
    let (root, bitfield) = (hex::encode(link.hash()), link.bitfield());
    let json = serde_json::json!({ "skylink": done.skylink, "merkleroot": root, "bitfield": bitfield, "cid": done.cid });
    Ok(json.to_string() + "\n")
}

/// The reply to a creation. Location is absolute, by the name that the client asked: Skynet's clients need that.
fn created(ask: &Ask, status: &UploadStatus, code: StatusCode) -> Reply {
    let path = format!("{UPLOADS}{}", status.id);
    let location = match &ask.host {
        Some(host) => format!("{}://{host}{path}", ask.scheme.as_str()),
        None => path.clone(),
    };
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = code;
    let headers = reply.headers_mut();
    // A host that is no header value was not sent as one.
    headers.insert(header::LOCATION, HeaderValue::try_from(location).unwrap_or_else(|_| ascii(path)));
    tell(headers, status);
    reply
}

/// What a reply says about an upload: when it expires, or what it became.
fn tell(headers: &mut HeaderMap, status: &UploadStatus) {
    match &status.done {
        Some(done) => {
            headers.insert(SKYNET_SKYLINK, ascii(done.skylink.clone()));
            headers.insert(SKYGATE_CID, ascii(done.cid.clone()));
        }
        None => {
            let expires = UNIX_EPOCH + Duration::from_millis(status.expires_ms.min(EXPIRES_MS_MAX));
            headers.insert(UPLOAD_EXPIRES, ascii(httpdate::fmt_http_date(expires)));
        }
    }
}

/// The year 9999: later dates cannot be written.
const EXPIRES_MS_MAX: u64 = 253_370_764_800_000;

fn has_offset_type(headers: &HeaderMap) -> bool {
    text(headers, header::CONTENT_TYPE)
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case(OFFSET_TYPE))
}

/// A header as text; one that is none is refused rather than overlooked.
fn header_text<'a>(headers: &'a HeaderMap, name: HeaderName, shown: &'static str) -> Result<Option<&'a str>, Refusal> {
    let value = headers.get(name).map(HeaderValue::to_str).transpose();
    value.map_err(|_| TusRefusal::BadHeader(shown, "it has characters that are no ASCII").into())
}

fn number(headers: &HeaderMap, name: HeaderName, shown: &'static str) -> Result<Option<u64>, Refusal> {
    let Some(text) = header_text(headers, name, shown)? else { return Ok(None) };
    headers::number(text).map(Some).ok_or_else(|| TusRefusal::BadHeader(shown, "it is no number of bytes").into())
}

#[cfg(test)]
mod tests;
