//! Blocks of JSON and CBOR, as they are: `format=dag-json`, `dag-cbor`, `json`, `cbor`, and what a path that ends in one gives
//! without a format. Nothing is converted (IPIP-0524); a page for people is made of DAG-JSON and DAG-CBOR.

use ::http::header::{self, HeaderValue};
use ::http::{Response, StatusCode};
use bytes::Bytes;

use super::super::ask::{Ask, Format, Reader};
use super::super::page::{self, DAG_VERSION, DagPage};
use super::super::plan::{CACHE_LISTING, Disposition, Representation, ascii, not_modified};
use super::super::refusal::Refusal;
use super::super::reply::{BodySource, Clock, FilePlan, Reply, ReplyBody, made_here, stamp};
use super::super::services::Services;
use super::headers::{self, Kind};
use super::{Target, deliver, redirect};
use crate::address::{Cid, TrailingSlash, codec};
use crate::store::Window;
use crate::tree::TreeError;
use crate::tree::ipld::{self, Event};

/// Links that a page shows; the block itself has them all.
const LINKS_SHOWN_MAX: usize = 1_000;
/// Text that a page shows: more is of no use to a reader, and the block can be had as it is.
const TEXT_SHOWN_BYTES_MAX: usize = 256 << 10;

/// A block at the end of a path.
pub struct Found {
    pub cid: Cid,
    pub roots: Vec<Cid>,
}

/// How a block of `codec` is given when `format` is asked for; an error if it is of another kind.
fn kind_of(codec: u64, format: Format) -> Result<(Format, Kind), Refusal> {
    let own = match codec {
        codec::DAG_JSON => Format::DagJson,
        codec::DAG_CBOR => Format::DagCbor,
        codec::JSON => Format::Json,
        codec::CBOR => Format::Cbor,
        _ => return Err(Refusal::NotUnixfs { codec }),
    };
    let given = match (format, own) {
        (Format::Deserialized, own) => own,
        (asked, own) if asked == own => own,
        (Format::Json, Format::DagJson) => Format::Json,
        (Format::Cbor, Format::DagCbor) => Format::Cbor,
        (asked, _) => return Err(Refusal::CodecMismatch { codec, format: asked.name() }),
    };
    let (disposition, extension) = match given {
        Format::DagJson | Format::Json => (Disposition::Inline, "json"),
        _ => (Disposition::Attachment, "cbor"),
    };
    let media_type = Format::TYPES.iter().find(|(_, format)| *format == given).map_or("", |(name, _)| name);
    Ok((given, Kind { media_type, disposition, extension }))
}

/// The block as it is, or the page that shows it.
pub async fn reply(services: &Services, ask: &Ask, target: &Target, clock: &Clock, found: Found) -> Result<Reply, Refusal> {
    let (given, kind) = kind_of(found.cid.codec(), ask.format)?;
    let shown = ask.format == Format::Deserialized
        && ask.reader == Reader::Html
        && matches!(found.cid.codec(), codec::DAG_JSON | codec::DAG_CBOR);
    if shown {
        return show(services, ask, target, clock, found).await;
    }
    let block = services.content.block(&found.cid, Window::First, &clock.trace).await?;
    let mut headers = headers::of_format(ask, target, (&found.cid, &found.roots), &kind, &[]);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let representation = Representation {
        size_bytes: block.len() as u64,
        etag: ascii(format!("\"{}.{}\"", found.cid, given.name())),
        last_modified: target.last_modified(),
        headers,
    };
    deliver(services, ask, clock, &FilePlan::new(representation, BodySource::Block(block))).await
}

/// A page with the block as text and its links to click on.
async fn show(services: &Services, ask: &Ask, target: &Target, clock: &Clock, found: Found) -> Result<Reply, Refusal> {
    if target.path.trailing_slash() == TrailingSlash::No {
        return Ok(redirect(StatusCode::MOVED_PERMANENTLY, ask, target, clock, &format!("{}/", ask.path)));
    }
    let block = services.content.block(&found.cid, Window::First, &clock.trace).await?;
    let located = clock.started.elapsed();
    let etag = format!("\"DagIndex-skygate{DAG_VERSION}_CID-{}\"", found.cid);
    let mut headers = headers::of_path(ask, &found.roots);
    if let Some(rule) = target.cache_control(CACHE_LISTING) {
        headers.insert(header::CACHE_CONTROL, rule);
    }
    let known = not_modified(&ask.conditions, &etag)?;
    headers.insert(header::ETAG, ascii(etag));
    let mut reply = if known {
        let mut reply = Response::new(ReplyBody::empty());
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply
    } else {
        let page = dag_page(&found.cid, &block).map_err(crate::site::SiteError::from)?;
        made_here(StatusCode::OK, "text/html; charset=utf-8", &ask.method, page::dag(&page))
    };
    reply.headers_mut().extend(headers);
    stamp(reply.headers_mut(), clock, located);
    Ok(reply)
}

fn dag_page(cid: &Cid, block: &Bytes) -> Result<DagPage, TreeError> {
    let links = ipld::links(cid, block)?;
    let text = match cid.codec() {
        codec::DAG_CBOR => cbor_text(block)?,
        _ => String::from_utf8_lossy(&block[..block.len().min(TEXT_SHOWN_BYTES_MAX)]).into_owned(),
    };
    Ok(DagPage {
        cid_text: cid.to_string(),
        codec: if cid.codec() == codec::DAG_CBOR { "dag-cbor" } else { "dag-json" },
        size_bytes: block.len() as u64,
        links_left_out: links.len().saturating_sub(LINKS_SHOWN_MAX),
        links: links.iter().take(LINKS_SHOWN_MAX).map(Cid::to_string).collect(),
        text,
    })
}

/// DAG-CBOR in the notation of DAG-JSON, one value a line.
fn cbor_text(block: &[u8]) -> Result<String, TreeError> {
    let mut text = String::new();
    // The brackets that are due, innermost last.
    let mut due = Vec::new();
    let mut after_key = false;
    ipld::walk_cbor(block, |event| {
        if text.len() > TEXT_SHOWN_BYTES_MAX {
            return Ok(());
        }
        let closing = if event == Event::End { due.pop() } else { None };
        if !std::mem::take(&mut after_key) {
            text.push('\n');
            text.extend(std::iter::repeat_n("  ", due.len()));
        }
        match event {
            Event::MapStart => text.push('{'),
            Event::ListStart => text.push('['),
            Event::End => text.extend(closing),
            Event::Key(key) => {
                text.push_str(&format!("{key:?}: "));
                after_key = true;
            }
            Event::Link(cid) => text.push_str(&format!("{{\"/\": \"{cid}\"}}")),
            Event::Text(value) => text.push_str(&format!("{value:?}")),
            Event::Bytes(value) => text.push_str(&format!("{} bytes: {}", value.len(), hex::encode(&value[..value.len().min(64)]))),
            Event::Integer(number) => text.push_str(&number.to_string()),
            Event::Float(number) => text.push_str(&number.to_string()),
            Event::Bool(value) => text.push_str(&value.to_string()),
            Event::Null => text.push_str("null"),
        }
        match event {
            Event::MapStart => due.push('}'),
            Event::ListStart => due.push(']'),
            _ => {}
        }
        Ok(())
    })?;
    Ok(text.trim_start().to_owned())
}
