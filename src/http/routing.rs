//! The delegated routing API, as far as names go (`ipfs-gateway.md` 6): IPNS records are found and published here without
//! a DHT. Of providers and peers this gateway knows none, and says so.
//!
//! Reading is for everybody. Publishing takes the API key, or a program on this machine (`access`): whoever could make
//! keys and publish their records without limit would fill the hosts.

use std::time::{Duration, SystemTime};

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::{Method, Response, StatusCode};
use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Limited};

use crate::address::parse_cid;
use crate::deny::Subject;
use crate::names::{IPNS_RECORD_BYTES_MAX, IpnsName, NameError};

use super::ask::{Ask, text, whole_list};
use super::caller::{Sender, Work};
use super::gateway::ipns_record::{IPNS_RECORD_TYPE, expires, send};
use super::plan::ascii;
use super::refusal::{IpnsRefusal, Refusal};
use super::reply::{Clock, Reply, ReplyBody, made_here, stamp};
use super::services::Services;

/// A record of 10 KiB takes no longer on the slowest line that is of use.
const BODY_MAX: Duration = Duration::from_secs(20);
/// An empty answer, kept for a moment (`ipfs-gateway.md` 6).
const CACHE_EMPTY: &str = "public, max-age=15";

/// Answers `/routing/v1/...`.
pub async fn answer<B>(services: &Services, ask: &Ask, clock: &Clock, sender: Sender<'_>, body: B) -> Result<Reply, Refusal>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if ask.method == Method::OPTIONS {
        return Ok(Response::new(ReplyBody::empty()));
    }
    let rest = ask.path.strip_prefix("/routing/v1/").ok_or(Refusal::NoRoute)?;
    match (rest.split_once('/'), &ask.method) {
        (Some(("ipns", name)), &Method::PUT) => put_record(services, ask, sender, name, body).await,
        (Some(("ipns", name)), _) => get_record(services, ask, clock, sender.headers, name).await,
        (Some(_), &Method::PUT) => Err(Refusal::Method),
        (Some(("providers", cid)), _) => {
            parse_cid(cid).map_err(|error| ask.bad_path(error))?;
            Ok(empty(ask, sender.headers, "Providers"))
        }
        (Some(("peers", id)), _) if IpnsName::parse(id).is_some() => Ok(empty(ask, sender.headers, "Peers")),
        _ => Err(Refusal::NoRoute),
    }
}

/// Nothing is known: 200 all the same (IPIP-0513), as JSON or as a stream of no lines.
fn empty(ask: &Ask, headers: &HeaderMap, list: &str) -> Reply {
    let lines = whole_list(headers, header::ACCEPT).is_some_and(|accept| names_type(&accept, "application/x-ndjson"));
    let mut reply = match lines {
        true => made_here(StatusCode::OK, "application/x-ndjson", &ask.method, ""),
        false => made_here(StatusCode::OK, "application/json", &ask.method, format!("{{\"{list}\":[]}}\n")),
    };
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE_EMPTY));
    reply
}

async fn get_record(services: &Services, ask: &Ask, clock: &Clock, headers: &HeaderMap, name: &str) -> Result<Reply, Refusal> {
    if !whole_list(headers, header::ACCEPT).is_some_and(|accept| names_type(&accept, IPNS_RECORD_TYPE)) {
        return Err(IpnsRefusal::NotARecord.into());
    }
    check_name(services, name)?;
    let record = match services.names.record(name).await {
        Err(NameError::NoRecord(name)) => return Err(IpnsRefusal::NoRecord(name).into()),
        record => record?,
    };
    let ttl = record.lifetime.as_secs();
    let holds = record.valid_until.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
    // Old is better than nothing, as long as the owner's signature still holds.
    let stale = holds.saturating_sub(ttl);
    let mut own = HeaderMap::new();
    let cache = format!("public, max-age={ttl}, stale-while-revalidate={stale}, stale-if-error={stale}");
    own.insert(header::CACHE_CONTROL, ascii(cache));
    own.insert(header::EXPIRES, expires(record.valid_until));
    send(services, ask, clock, &record, own).await
}

async fn put_record<B>(services: &Services, ask: &Ask, sender: Sender<'_>, name: &str, body: B) -> Result<Reply, Refusal>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let clock = Clock::start(&services.answers);
    let _admitted = sender.admit(services, ask, Work::RegistryWrite)?;
    check_name(services, name)?;
    if !text(sender.headers, header::CONTENT_TYPE).is_some_and(|kind| names_type(kind, IPNS_RECORD_TYPE)) {
        return Err(IpnsRefusal::NotARecord.into());
    }
    let whole = tokio::time::timeout(BODY_MAX, Limited::new(body, IPNS_RECORD_BYTES_MAX).collect()).await;
    let Ok(Ok(whole)) = whole else { return Err(IpnsRefusal::Body.into()) };
    services.names.put_record(name, whole.to_bytes()).await?;
    let mut reply = Response::new(ReplyBody::empty());
    stamp(reply.headers_mut(), &clock, clock.started.elapsed());
    Ok(reply)
}

/// A denied name is neither told nor taken.
fn check_name(services: &Services, name: &str) -> Result<(), Refusal> {
    services.content.denied(&Subject::Ipns { name, path: "" }).map_or(Ok(()), |reason| Err(Refusal::Denied(Box::new(reason))))
}

/// Does a list of media types name this one, with a weight above zero?
fn names_type(list: &str, wanted: &str) -> bool {
    list.split(',').any(|part| {
        let mut pieces = part.split(';').map(str::trim);
        let same = pieces.next().is_some_and(|kind| kind.eq_ignore_ascii_case(wanted));
        let refused = |piece: &str| piece.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0);
        same && !pieces.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::{KEY, Memory, send as send_to, start};

    const NAME: &str = "k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w";
    const PEER_ID: &str = "12D3KooWLQzUv2FHWGVPXTXSZpdHs7oHbXub2G5WC8Tx4NQhyd2d";
    const TYPE: &str = "Content-Type: application/vnd.ipfs.ipns-record";
    const ACCEPT: &str = "Accept: application/vnd.ipfs.ipns-record";

    #[tokio::test]
    async fn putting_and_getting() {
        let server = start(Memory::default()).await;
        let path = format!("/routing/v1/ipns/{NAME}");
        let put = async |headers: &[&str], body: &[u8]| send_to(server.public, "PUT", &path, headers, body).await;
        let key = format!("Authorization: Bearer {KEY}");
        let long = vec![1; IPNS_RECORD_BYTES_MAX + 1];
        let rows: [(&[&str], &[u8], u16); 12] = [
            (&[TYPE, "Host: example.org"], b"record", 403),
            (&[TYPE, "X-Forwarded-For: 1.2.3.4"], b"record", 403),
            (&[TYPE, "Origin: https://evil.example"], b"record", 403),
            (&[TYPE, "Authorization: Bearer wrong"], b"record", 401),
            (&[TYPE, "Skynet-Api-Key: wrong"], b"record", 401),
            (&[], b"record", 406),
            (&["Content-Type: text/plain"], b"record", 406),
            (&[TYPE], b"", 400),
            (&[TYPE], &long, 400),
            (&[TYPE], b"record", 200),
            (&[TYPE, &key, "Host: example.org"], b"record", 200),
            (&[TYPE, "Origin: http://localhost:3000"], b"the record", 200),
        ];
        for (headers, body, status) in rows {
            let answer = put(headers, body).await;
            assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
        }
        let bad_name = send_to(server.public, "PUT", "/routing/v1/ipns/nobody", &[TYPE], b"record").await;
        assert_eq!(bad_name.status, 400);

        let answer = server.get(&path, &[ACCEPT]).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "the record"));
        assert_eq!(answer.header("content-type"), Some(IPNS_RECORD_TYPE));
        assert_eq!(answer.header("vary"), Some("Accept"));
        assert!(answer.header("expires").is_some());
        let cache = answer.header("cache-control").expect("a rule");
        assert!(cache.starts_with("public, max-age=1800, stale-while-revalidate=53"), "{cache}");
        let etag = answer.header("etag").expect("an etag").to_owned();
        assert!(etag.starts_with("\"bafk") && etag.ends_with(".ipns-record\""), "{etag}");
        let same = server.get(&path, &[ACCEPT, &format!("If-None-Match: {etag}")]).await;
        assert_eq!((same.status, same.body.len()), (304, 0));
        let head = server.ask("HEAD", &path, &[ACCEPT]).await;
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("10"), 0));

        for (target, headers, status) in [
            (path.as_str(), &[][..], 406),
            (path.as_str(), &["Accept: */*"][..], 406),
            (path.as_str(), &["Accept: application/vnd.ipfs.ipns-record;q=0"][..], 406),
            (path.as_str(), &["Accept: text/plain, application/vnd.ipfs.ipns-record;q=0.5"][..], 200),
            ("/routing/v1/ipns/nobody", &[ACCEPT][..], 400),
            ("/routing/v1/ipns/", &[ACCEPT][..], 400),
            (&format!("/routing/v1/ipns/{PEER_ID}"), &[ACCEPT][..], 404),
            (&format!("{path}/x"), &[ACCEPT][..], 400),
        ] {
            assert_eq!(server.get(target, headers).await.status, status, "{target} {headers:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_known_of_providers() {
        let server = start(Memory::default()).await;
        for (target, accept, status, body) in [
            ("/routing/v1/providers/bafkqaaa", "", 200, "{\"Providers\":[]}\n"),
            ("/routing/v1/providers/bafkqaaa", "Accept: application/x-ndjson", 200, ""),
            (&format!("/routing/v1/peers/{PEER_ID}"), "", 200, "{\"Peers\":[]}\n"),
        ] {
            let answer = server.get(target, &[accept]).await;
            assert_eq!((answer.status, answer.text().as_str()), (status, body), "{target}");
            assert_eq!(answer.header("cache-control"), Some(CACHE_EMPTY));
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        }
        for (target, status) in [
            ("/routing/v1/providers/nonsense", 400),
            ("/routing/v1/peers/nonsense", 404),
            ("/routing/v1/", 404),
            ("/routing/v1/dht/closest/peers/x", 404),
        ] {
            assert_eq!(server.get(target, &[]).await.status, status, "{target}");
        }
        assert_eq!(send_to(server.public, "PUT", "/routing/v1/providers/bafkqaaa", &[], b"").await.status, 405);
        assert_eq!(server.ask("OPTIONS", "/routing/v1/providers/bafkqaaa", &[]).await.status, 200);
    }
}
