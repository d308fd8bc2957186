//! Directory listings: small ones whole, sharded ones as a stream whose rows are written as shards arrive.

use std::sync::Arc;

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::{Method, Response, StatusCode};
use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::address::{Cid, codec};
use crate::measure::Trace;
use crate::site::unixfs::{DirListing, ListStep};
use crate::store::StoreError;

use super::super::ask::{Ask, Place};
use super::super::page::{LISTING_VERSION, ListingLinks, ListingPage, ListingRow, LooksLike};
use super::super::plan::{CACHE_LISTING, ascii, not_modified};
use super::super::refusal::Refusal;
use super::super::reply::{Clock, Reply, ReplyBody, made_here, made_on_the_way, stamp};
use super::super::services::{Content, Services};
use super::{Target, on_this_host, store_error};

/// Rows of one listing. A page of a million rows is about 350 MB of HTML and of no use to a browser; what is cut says so.
const ROWS_MAX: usize = 1_000_000;
/// Directories of one block with at most this many entries are sent whole, with a length. More are streamed.
const ROWS_WHOLE_MAX: usize = 1_000;
/// Text gathered before it is sent on: some 100 rows.
const CHUNK_BYTES: usize = 32 << 10;

/// A directory to be listed.
pub struct Listed<'a> {
    pub target: &'a Target,
    pub dir: DirListing,
    pub cid: Cid,
    /// X-Ipfs-Path and X-Ipfs-Roots.
    pub headers: HeaderMap,
}

/// The listing as a reply.
pub async fn reply(services: &Services, ask: &Ask, clock: &Clock, listed: Listed<'_>) -> Result<Reply, Refusal> {
    let etag = format!("\"DirIndex-skygate{LISTING_VERSION}_CID-{}\"", listed.cid);
    let located = clock.started.elapsed();
    let mut headers = listed.headers;
    if let Some(rule) = listed.target.cache_control(CACHE_LISTING) {
        headers.insert(header::CACHE_CONTROL, rule);
    }
    if not_modified(&ask.conditions, &etag)? {
        headers.insert(header::ETAG, ascii(etag));
        return Ok(finish(StatusCode::NOT_MODIFIED, headers, ReplyBody::empty(), clock, located));
    }
    headers.insert(header::ETAG, ascii(etag));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let target = listed.target;
    let page = ListingPage {
        namespace: target.namespace.as_str(),
        root_text: target.root_text.clone(),
        segments: target.path.segments()[target.hidden..].to_vec(),
        request_path: on_this_host(&ask.path).into_owned(),
        links: match &target.place {
            Place::Path | Place::Skylink { .. } => ListingLinks::Here,
            Place::Subdomain { gateway, .. } => ListingLinks::Gateway { host: gateway.clone() },
            Place::DnsLink { host } => ListingLinks::Dnslink { host: host.clone() },
        },
    };
    let mut rows = Rows {
        content: services.content.clone(),
        trace: clock.trace.clone(),
        page,
        dir: listed.dir,
        written: 0,
        stage: Stage::Opening,
    };
    let whole = rows.dir.entries_known().is_some_and(|entries| entries <= ROWS_WHOLE_MAX);
    if whole {
        let mut text = String::new();
        while let Some(chunk) = rows.next().await? {
            text.push_str(&chunk);
        }
        let mut reply = made_here(StatusCode::OK, "text/html; charset=utf-8", &ask.method, text);
        reply.headers_mut().extend(headers);
        stamp(reply.headers_mut(), clock, located);
        return Ok(reply);
    }
    if ask.method == Method::HEAD {
        return Ok(finish(StatusCode::OK, headers, ReplyBody::empty(), clock, located));
    }
    let first = rows.next().await?.unwrap_or_default();
    let rest = stream::try_unfold(rows, |mut rows| async move { Ok(rows.next().await?.map(|chunk| (Bytes::from(chunk), rows))) });
    let body = made_on_the_way(services, clock, Bytes::from(first), rest.boxed(), None);
    Ok(finish(StatusCode::OK, headers, body, clock, located))
}

fn finish(status: StatusCode, headers: HeaderMap, body: ReplyBody, clock: &Clock, located: std::time::Duration) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    stamp(reply.headers_mut(), clock, located);
    reply
}

/// Told by the codec and the name alone, since entries are not fetched: a large file is a node like a folder, but most have
/// an ending. The link is right either way.
fn looks_like(name: &str, cid: &Cid) -> LooksLike {
    match cid.codec() == codec::DAG_PB && crate::site::content_type::by_name(name).is_none() {
        true => LooksLike::Folder,
        false => LooksLike::File,
    }
}

/// A listing on its way out. Holds one shard a level and one chunk of text.
struct Rows {
    content: Arc<dyn Content>,
    trace: Arc<Trace>,
    page: ListingPage,
    dir: DirListing,
    written: usize,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Rows,
    Done,
}

impl Rows {
    /// The next chunk of HTML. It is sent on when it is large enough, or when another shard has to be waited for.
    async fn next(&mut self) -> Result<Option<String>, StoreError> {
        let mut text = match self.stage {
            Stage::Done => return Ok(None),
            Stage::Opening => self.page.opening(),
            Stage::Rows => String::new(),
        };
        self.stage = Stage::Rows;
        loop {
            match self.dir.step().map_err(store_error)? {
                ListStep::Entry(_) if self.written == ROWS_MAX => {
                    text.push_str(&ListingPage::closing(Some("The folder has more entries than a page shows.")));
                    self.stage = Stage::Done;
                    return Ok(Some(text));
                }
                ListStep::Entry(entry) => {
                    let looks_like = looks_like(&entry.name, &entry.cid);
                    let row =
                        ListingRow { name: &entry.name, cid_text: &entry.cid.to_string(), looks_like, size_bytes: entry.tsize };
                    self.page.write_row(&row, &mut text);
                    self.written += 1;
                    if text.len() >= CHUNK_BYTES {
                        return Ok(Some(text));
                    }
                }
                ListStep::Need(cid) => {
                    let block = self.content.index_block(&cid, &self.trace).await?;
                    self.dir.give(block).map_err(store_error)?;
                    if !text.is_empty() {
                        return Ok(Some(text));
                    }
                }
                ListStep::End => {
                    text.push_str(&ListingPage::closing(None));
                    self.stage = Stage::Done;
                    return Ok(Some(text));
                }
            }
        }
    }
}
