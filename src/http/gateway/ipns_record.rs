//! `format=ipns-record`: the signed record of a key, for clients that check it themselves (`ipfs-gateway.md` 2.2). And
//! the one address that a key's content has on a path gateway.

use std::time::SystemTime;

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::{Method, StatusCode};

use crate::address::{cid_v1, codec, sha2_256};
use crate::names::{IpnsName, StoredRecord};

use super::super::ask::{Ask, FormatBy, Place};
use super::super::plan::{self, Disposition, Representation, X_IPFS_PATH, ascii};
use super::super::refusal::{IpnsRefusal, Refusal};
use super::super::reply::{BodySource, Clock, FilePlan, Reply, made_here};
use super::super::services::Services;
use super::{ContentPath, content_path_text, deliver};

/// Media type of a record.
pub const IPNS_RECORD_TYPE: &str = "application/vnd.ipfs.ipns-record";

/// The record itself. With a path, or under `/ipfs/`, there is none to be had.
pub async fn reply(services: &Services, ask: &Ask, content_path: &ContentPath, clock: &Clock) -> Result<Reply, Refusal> {
    let name = match content_path {
        ContentPath::Ipns { name, path } if path.segments().is_empty() && IpnsName::parse(name).is_some() => name,
        ContentPath::Ipns { .. } | ContentPath::Ipfs { .. } => return Err(IpnsRefusal::NotAKey.into()),
    };
    let record = services.names.record(name).await?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, ascii(format!("public, max-age={}", record.lifetime.as_secs())));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let filename = ask.parameter("filename").filter(|name| !name.is_empty());
    let filename = filename.unwrap_or_else(|| format!("{name}.ipns-record"));
    headers.insert(header::CONTENT_DISPOSITION, plan::content_disposition(Disposition::Attachment, &filename));
    if let Ok(value) = HeaderValue::try_from(content_path_text(ask)) {
        headers.insert(X_IPFS_PATH, value);
    }
    if matches!(ask.format_by, FormatBy::Accept) {
        let query = ask.query.as_ref().map_or_else(String::new, |query| format!("&{query}"));
        if let Ok(value) = HeaderValue::try_from(format!("{}?format=ipns-record{query}", ask.path)) {
            headers.insert(header::CONTENT_LOCATION, value);
        }
    }
    send(services, ask, clock, &record, headers).await
}

/// A record as a body with its type and validators; `headers` are what differs between those who send it.
pub async fn send(
    services: &Services,
    ask: &Ask,
    clock: &Clock,
    record: &StoredRecord,
    mut headers: HeaderMap,
) -> Result<Reply, Refusal> {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(IPNS_RECORD_TYPE));
    let content = cid_v1(codec::RAW, sha2_256(&record.bytes));
    let representation = Representation {
        size_bytes: record.bytes.len() as u64,
        etag: ascii(format!("\"{content}.ipns-record\"")),
        last_modified: None,
        headers,
    };
    deliver(services, ask, clock, &FilePlan::new(representation, BodySource::Block(record.bytes.clone()))).await
}

/// `Expires` of a record: its own end.
pub fn expires(at: SystemTime) -> HeaderValue {
    ascii(httpdate::fmt_http_date(at))
}

/// A redirect from a key as base58 peer id to the CIDv1 in base36, path and query kept. Only on paths: a subdomain has
/// its own rules for labels.
pub fn to_usual_name(ask: &Ask, content_path: &ContentPath) -> Option<Reply> {
    let ContentPath::Ipns { name, .. } = content_path else { return None };
    let base58 = name.starts_with('1') || name.starts_with("Qm");
    if ask.place != Place::Path || !base58 || ask.method == Method::OPTIONS {
        return None;
    }
    let usual = IpnsName::parse(name)?;
    let rest = ask.path.strip_prefix("/ipns/")?.strip_prefix(name.as_str())?;
    let query = ask.query.as_ref().map_or_else(String::new, |query| format!("?{query}"));
    let location = format!("/ipns/{usual}{rest}{query}");
    let text = format!("This key has one address: {location}\n");
    let mut reply = made_here(StatusCode::FOUND, "text/plain; charset=utf-8", &ask.method, text);
    reply.headers_mut().insert(header::LOCATION, HeaderValue::try_from(location).ok()?);
    Some(reply)
}
