//! Writing replies: bodies with back-pressure, the class stamped before the first byte, everything counted.
//!
//! The head leaves only after the first body bytes are at hand, so a failure up to there is a proper error reply, and
//! the class in `Cache-Status` is known. After that a failure breaks the connection: nobody can take a cut body for a
//! whole one. Dropping the body (the client went away) drops the stream and with it all work under way.

use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, Response, StatusCode};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http_body::{Body, Frame, SizeHint};

use crate::access::OpenPlace;
use crate::measure::{Class, Endpoint, Measures, Trace};
use crate::site::content_type;
use crate::store::{BodyStream, FileSource, StoreError};

use super::ask::Reader;
use super::page;
use super::plan::{self, BodyPlan, Conditions, Decision, Head, Multipart, Representation, ascii};
use super::refusal::{CacheRule, Refusal, SkyRefusal};
use super::services::{Content, Services, Skyfile};

/// A reply of this room.
pub type Reply = Response<ReplyBody>;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// First bytes of a file that its content type may be told from.
const SNIFF_BYTES: u64 = content_type::SNIFF_BYTES as u64;

/// What a parsed answer costs in the answer cache besides its variable parts: header map, sizes, reference counts.
const ANSWER_OVERHEAD_BYTES: usize = 2048;

/// When a request began, and what it has met so far.
pub struct Clock {
    pub started: Instant,
    pub trace: Arc<Trace>,
    /// Which ready answers were good then.
    generation: u64,
}

impl Clock {
    pub fn start(answers: &AnswerCache) -> Clock {
        Clock { started: Instant::now(), trace: Trace::new(), generation: answers.generation.load(Ordering::Acquire) }
    }
}

// ---------------------------------------------------------------- bodies

/// The body of a reply.
pub struct ReplyBody {
    kind: Kind,
    /// Given back when the body is dropped, or by whoever takes it out.
    place: Option<OpenPlace>,
}

enum Kind {
    Empty,
    Once(Bytes),
    Stream(Box<Streaming>),
}

struct Streaming {
    first: Option<Bytes>,
    rest: BodyStream,
    /// Bytes still to come; `None` for bodies whose length is not known before (listings).
    left_bytes: Option<u64>,
    /// Told at the next poll.
    broken: Option<BodyError>,
    meter: Meter,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the stored bytes could not be read: {0}")]
    Store(Box<StoreError>),
    #[error("the body is not as long as its head says")]
    WrongLength,
}

impl ReplyBody {
    fn of(kind: Kind) -> ReplyBody {
        ReplyBody { kind, place: None }
    }

    pub fn empty() -> ReplyBody {
        ReplyBody::of(Kind::Empty)
    }

    /// Holds the place of a client's download.
    pub fn placed(self, place: Option<OpenPlace>) -> ReplyBody {
        ReplyBody { place, ..self }
    }

    /// The place, to be held until the last byte is out.
    pub fn take_place(&mut self) -> Option<OpenPlace> {
        self.place.take()
    }

    pub fn full(bytes: impl Into<Bytes>) -> ReplyBody {
        let bytes = bytes.into();
        if bytes.is_empty() { ReplyBody::empty() } else { ReplyBody::of(Kind::Once(bytes)) }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Once(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Stream(streaming) => streaming.poll_next(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Once(_) => false,
            Kind::Stream(streaming) => streaming.left_bytes == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Once(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(streaming) => streaming.left_bytes.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Streaming {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let next = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => std::task::ready!(self.rest.as_mut().poll_next(context)),
        };
        let outcome = match next {
            Some(Ok(chunk)) => self.pass(chunk),
            Some(Err(error)) => Err(BodyError::Store(Box::new(error))),
            None if self.left_bytes.is_none() => {
                self.meter.finish();
                return Poll::Ready(None);
            }
            None if self.left_bytes == Some(0) => return Poll::Ready(None),
            None => Err(BodyError::WrongLength),
        };
        match outcome {
            Ok(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            Err(error) => {
                tracing::warn!(%error, "a reply was broken off after its first byte");
                // The server writes out what it has when a body lets it wait, and drops it when a body fails: the head and the
                // bytes before the fault would never leave.
                self.broken = Some(error);
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// A chunk on its way out. The server may stop polling after the last byte, so the end is noted here.
    fn pass(&mut self, chunk: Bytes) -> Result<Bytes, BodyError> {
        if let Some(left) = &mut self.left_bytes {
            *left = left.checked_sub(chunk.len() as u64).ok_or(BodyError::WrongLength)?;
            if *left == 0 {
                self.meter.finish();
            }
        }
        Ok(chunk)
    }
}

/// Counts one download when its body has ended, whole or not.
struct Meter {
    measures: Arc<Measures>,
    trace: Arc<Trace>,
    started: Instant,
    first_byte: Duration,
    counted: bool,
}

impl Meter {
    fn finish(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            let class = self.trace.class();
            self.measures.observe(Endpoint::DownloadFirstByte, class, self.first_byte);
            self.measures.observe(Endpoint::DownloadWhole, class, self.started.elapsed());
        }
    }
}

impl Drop for Meter {
    /// A body that was not read to its end has a first byte, but no whole.
    fn drop(&mut self) {
        if !self.counted {
            self.measures.observe(Endpoint::DownloadFirstByte, self.trace.class(), self.first_byte);
        }
    }
}

// ---------------------------------------------------------------- files

/// Everything about one file that does not change from request to request: where its bytes are and what its head says.
pub struct FilePlan {
    pub representation: Representation,
    pub source: BodySource,
    /// The type told from the first bytes, when no name told it. Filled by the first request that reads them.
    pub sniffed: OnceLock<HeaderValue>,
}

/// Where a reply's body comes from.
pub enum BodySource {
    File(FileSource),
    /// Stretches of a skyfile's content, one behind the other.
    Skyfile {
        skyfile: Arc<dyn Skyfile>,
        stretches: Vec<Range<u64>>,
    },
    /// A block at hand.
    Block(Bytes),
}

impl BodySource {
    /// Bytes at the start that come out of one block, as far as it is known.
    fn first_leaf_bytes(&self) -> u64 {
        match self {
            BodySource::File(file) if file.node.inline.is_empty() => file.node.children.first().map_or(u64::MAX, |child| child.len),
            BodySource::File(_) | BodySource::Skyfile { .. } | BodySource::Block(_) => u64::MAX,
        }
    }

    fn open(&self, content: &dyn Content, range: Range<u64>, trace: &Arc<Trace>) -> BodyStream {
        match self {
            BodySource::File(file) => content.stream_file(file.clone(), range, trace.clone()),
            BodySource::Skyfile { skyfile, stretches } => match &stretches[..] {
                [only] => skyfile.stream(only.clone(), range, trace.clone()),
                several => open_stretches(skyfile, several, range, trace),
            },
            BodySource::Block(bytes) => {
                let part = bytes.slice(range.start as usize..range.end as usize);
                stream::once(std::future::ready(Ok(part))).boxed()
            }
        }
    }
}

impl BodySource {
    /// Is all of it free of what the operator's lists deny? Asked before the conditions: a 304 would say yes to what a GET
    /// refuses.
    async fn allowed(&self, content: &dyn Content, trace: &Arc<Trace>) -> Result<(), StoreError> {
        if !content.has_deny_rules() {
            return Ok(());
        }
        match self {
            BodySource::File(file) => content.allow_file(file, trace).await,
            BodySource::Skyfile { skyfile, stretches } => {
                for stretch in stretches {
                    skyfile.allow(stretch, trace).await?;
                }
                Ok(())
            }
            // Checked when it was read.
            BodySource::Block(_) => Ok(()),
        }
    }
}

/// The part of `range` that each stretch has, each read when the one before is out.
fn open_stretches(skyfile: &Arc<dyn Skyfile>, stretches: &[Range<u64>], range: Range<u64>, trace: &Arc<Trace>) -> BodyStream {
    let mut parts = Vec::new();
    let mut at = 0;
    for stretch in stretches {
        let length = stretch.end - stretch.start;
        let (start, end) = (range.start.max(at), range.end.min(at + length));
        if start < end {
            parts.push((stretch.clone(), start - at..end - at));
        }
        at += length;
    }
    let (skyfile, trace) = (skyfile.clone(), trace.clone());
    stream::iter(parts).map(move |(stretch, part)| skyfile.stream(stretch, part, trace.clone())).flatten().boxed()
}

impl FilePlan {
    pub fn new(representation: Representation, source: BodySource) -> FilePlan {
        FilePlan { representation, source, sniffed: OnceLock::new() }
    }

    /// Bytes this plan takes in the answer cache, about.
    fn memory_bytes(&self) -> usize {
        let source = match &self.source {
            BodySource::File(file) => file.node.children.len() * 200 + file.node.inline.len(),
            BodySource::Skyfile { stretches, .. } => size_of_val(&stretches[..]),
            BodySource::Block(bytes) => bytes.len(),
        };
        ANSWER_OVERHEAD_BYTES + source
    }

    /// The type by name, or by the first bytes if some request read them before.
    fn known_type(&self) -> Option<&HeaderValue> {
        self.representation.headers.get(header::CONTENT_TYPE).or_else(|| self.sniffed.get())
    }

    fn note_type(&self, first_bytes: &[u8]) -> HeaderValue {
        let value = HeaderValue::from_static(content_type::sniff(first_bytes));
        self.sniffed.get_or_init(|| value).clone()
    }
}

/// Ready answers for addresses that never change: a hit skips parsing and walking. Bounded in bytes.
pub struct AnswerCache {
    plans: moka::sync::Cache<Arc<str>, (u64, Arc<FilePlan>)>,
    /// Counts how often all was forgotten. A request that began before keeps nothing for those that begin after.
    generation: AtomicU64,
}

impl AnswerCache {
    /// `max_bytes` is `HttpOptions::answers_bytes`.
    pub fn new(max_bytes: u64) -> AnswerCache {
        let plans = moka::sync::Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|key: &Arc<str>, (_, plan): &(u64, Arc<FilePlan>)| {
                u32::try_from(key.len() + plan.memory_bytes()).unwrap_or(u32::MAX)
            })
            .build();
        AnswerCache { plans, generation: AtomicU64::new(0) }
    }

    /// `key` is the request path as asked; it starts with an immutable root.
    pub fn get(&self, key: &str, clock: &Clock) -> Option<Arc<FilePlan>> {
        self.plans.get(key).filter(|(generation, _)| *generation == clock.generation).map(|(_, plan)| plan)
    }

    pub fn put(&self, key: &str, plan: Arc<FilePlan>, clock: &Clock) {
        self.plans.insert(key.into(), (clock.generation, plan));
    }

    /// Forgets everything: something was unpinned, and answers may hold small files whole; or other rules are in force.
    pub fn clear(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.plans.invalidate_all();
    }
}

/// One request for a file whose plan is known.
pub struct Delivery<'a> {
    pub services: &'a Services,
    pub method: &'a Method,
    pub conditions: &'a Conditions,
    pub clock: &'a Clock,
    /// Another status than 200 for the whole body: error pages that a site brings along.
    pub status: StatusCode,
}

impl Delivery<'_> {
    /// Conditions, ranges, first bytes, stamp: the whole way from a plan to a reply.
    pub async fn send(self, file: &FilePlan) -> Result<Reply, Refusal> {
        file.source.allowed(self.services.content.as_ref(), &self.clock.trace).await?;
        // An error page is not what the conditions speak of.
        let decision =
            if self.status == StatusCode::OK { plan::decide(self.conditions, &file.representation) } else { Decision::Whole };
        let mut head = match decision {
            Decision::NotModified => Head::not_modified(&file.representation),
            Decision::PreconditionFailed => return Err(Refusal::Precondition),
            Decision::OutOfRange => return Err(Refusal::OutOfRange { size_bytes: file.representation.size_bytes }),
            Decision::BadRange => return Err(Refusal::BadRange),
            Decision::Whole => Head::whole(&file.representation),
            Decision::Partial(range) => Head::partial(&file.representation, range),
            Decision::Several(ranges) => {
                let mut typed = file.representation.clone();
                typed.headers.insert(header::CONTENT_TYPE, self.content_type_if_readable(file).await);
                Head::several(&typed, ranges, &hex::encode(rand::random::<[u8; 16]>()))
            }
        };
        if head.status == StatusCode::OK {
            head.status = self.status;
        }
        let located = self.clock.started.elapsed();
        if head.body == BodyPlan::Nothing {
            return Ok(self.finish(head, ReplyBody::empty(), located));
        }
        if self.method == Method::HEAD {
            if !head.headers.contains_key(header::CONTENT_TYPE) {
                let kind = match head.status {
                    StatusCode::PARTIAL_CONTENT => self.content_type_if_readable(file).await,
                    _ => self.content_type(file).await?,
                };
                head.headers.insert(header::CONTENT_TYPE, kind);
            }
            return Ok(self.finish(head, ReplyBody::empty(), located));
        }
        let body = self.open_body(file, &mut head).await?;
        Ok(self.finish(head, body, located))
    }

    /// Opens the body and waits for its first bytes.
    async fn open_body(&self, file: &FilePlan, head: &mut Head) -> Result<ReplyBody, Refusal> {
        let content = self.services.content.as_ref();
        let trace = &self.clock.trace;
        let whole = head.body == BodyPlan::Stretch(0..file.representation.size_bytes);
        let (mut rest, length) = match &head.body {
            BodyPlan::Nothing => return Ok(ReplyBody::empty()),
            BodyPlan::Stretch(range) if range.is_empty() => (stream::empty().boxed(), 0),
            BodyPlan::Stretch(range) => (file.source.open(content, range.clone(), trace), range.end - range.start),
            BodyPlan::Multipart(multipart) => self.open_parts(file, multipart),
        };
        let first = rest.next().await.transpose()?.unwrap_or_default();
        if !head.headers.contains_key(header::CONTENT_TYPE) {
            let value = match file.known_type() {
                Some(known) => known.clone(),
                None if whole => file.note_type(&first[..first.len().min(SNIFF_BYTES as usize)]),
                None => self.content_type_if_readable(file).await,
            };
            head.headers.insert(header::CONTENT_TYPE, value);
        }
        let mut meter = Meter {
            measures: self.services.measures.clone(),
            trace: trace.clone(),
            started: self.clock.started,
            first_byte: self.clock.started.elapsed(),
            counted: false,
        };
        if first.len() as u64 == length {
            meter.finish();
            return Ok(ReplyBody::full(first));
        }
        Ok(ReplyBody::of(Kind::Stream(Box::new(Streaming {
            first: Some(first),
            rest,
            left_bytes: Some(length),
            broken: None,
            meter,
        }))))
    }

    /// The first part's bytes are fetched before the head leaves: the text before it is joined to them.
    fn open_parts(&self, file: &FilePlan, multipart: &Multipart) -> (BodyStream, u64) {
        let mut length = multipart.tail.len() as u64;
        let mut streams: Vec<BodyStream> = Vec::with_capacity(multipart.parts.len() + 1);
        for (text, range) in &multipart.parts {
            length += text.len() as u64 + (range.end - range.start);
            let mut before = Some(text.clone());
            let opened = file.source.open(self.services.content.as_ref(), range.clone(), &self.clock.trace);
            let part = opened.map(move |chunk| {
                chunk.map(|chunk| match before.take() {
                    Some(text) => Bytes::from([text, chunk].concat()),
                    None => chunk,
                })
            });
            streams.push(part.boxed());
        }
        let tail = multipart.tail.clone();
        streams.push(stream::once(std::future::ready(Ok(tail))).boxed());
        (stream::iter(streams).flatten().boxed(), length)
    }

    /// The type by name, or told from the first chunk of the file, which is then read apart from the body: it counts as
    /// index, because it is not sent. Only the first chunk, so that no other block is needed for it.
    async fn content_type(&self, file: &FilePlan) -> Result<HeaderValue, Refusal> {
        if let Some(known) = file.known_type() {
            return Ok(known.clone());
        }
        let length = file.representation.size_bytes.min(SNIFF_BYTES).min(file.source.first_leaf_bytes());
        let apart = Trace::new();
        let first = match length {
            0 => Bytes::new(),
            _ => {
                let mut chunks = file.source.open(self.services.content.as_ref(), 0..length, &apart);
                chunks.next().await.transpose()?.unwrap_or_default()
            }
        };
        if apart.class() != Class::Memory {
            self.clock.trace.index_from_hosts();
        }
        Ok(file.note_type(&first))
    }

    /// The same for a reply that does not hold the start of the file: it must not fail for a block it does not send.
    async fn content_type_if_readable(&self, file: &FilePlan) -> HeaderValue {
        self.content_type(file).await.unwrap_or(HeaderValue::from_static("application/octet-stream"))
    }

    fn finish(&self, head: Head, body: ReplyBody, located: Duration) -> Reply {
        let mut reply = Response::new(body);
        *reply.status_mut() = head.status;
        *reply.headers_mut() = head.headers;
        stamp(reply.headers_mut(), self.clock, located);
        reply
    }
}

/// A reply whose body is made here and now, whole.
pub fn made_here(status: StatusCode, content_type: &'static str, method: &Method, text: impl Into<Bytes>) -> Reply {
    let text = text.into();
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, text.len().into());
    if method != Method::HEAD {
        *reply.body_mut() = ReplyBody::full(text);
    }
    reply
}

/// A reply whose body is made while it is sent, and whose length may not be known. The first chunk is at hand.
pub fn made_on_the_way(services: &Services, clock: &Clock, first: Bytes, rest: BodyStream, length: Option<u64>) -> ReplyBody {
    let meter = Meter {
        measures: services.measures.clone(),
        trace: clock.trace.clone(),
        started: clock.started,
        first_byte: clock.started.elapsed(),
        counted: false,
    };
    ReplyBody::of(Kind::Stream(Box::new(Streaming { first: Some(first), rest, left_bytes: length, broken: None, meter })))
}

/// Writes where the bytes came from and how long it took (RFC 9211, Server-Timing). No host names.
pub fn stamp(headers: &mut HeaderMap, clock: &Clock, located: Duration) {
    let class = clock.trace.class();
    let status = match class {
        Class::Memory => "skygate; hit; detail=memory",
        Class::Disk => "skygate; hit; detail=disk",
        Class::Hosts => "skygate; fwd=miss; detail=hosts",
        Class::Cold => "skygate; fwd=miss; detail=cold",
        Class::Mixed => "skygate; fwd=miss; detail=mixed",
    };
    headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
    let fetched = clock.started.elapsed().saturating_sub(located);
    let rounds = match clock.trace.serial_rounds() {
        0 => String::new(),
        rounds => format!(", rounds;desc=\"{rounds}\""),
    };
    let text =
        format!("locate;dur={}, fetch;dur={};desc=\"{}\"{rounds}", Milliseconds(located), Milliseconds(fetched), class.as_str());
    headers.insert(SERVER_TIMING, ascii(text));
}

/// A duration in milliseconds with three decimals. Written in whole numbers: every reply has two of them.
struct Milliseconds(Duration);

impl std::fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let us = self.0.as_micros();
        write!(f, "{}.{:03}", us / 1000, us % 1000)
    }
}

/// A refusal as an error page, in HTML or text as the reader asked.
pub fn refuse(refusal: &Refusal, method: &Method, reader: Reader) -> Reply {
    refuse_at(refusal, method, reader, "/")
}

/// The same for what was asked under this path: a page about a missing name leads to the folder that has no such name.
pub fn refuse_at(refusal: &Refusal, method: &Method, reader: Reader, path: &str) -> Reply {
    let row = refusal.row();
    log(refusal, row.status);
    let above = match refusal {
        Refusal::NoSuchPath { missing } => page::folder_above(path, missing),
        _ => None,
    };
    let mut reply = match reader {
        Reader::Html => made_here(row.status, "text/html; charset=utf-8", method, page::error_html(&row, above.as_deref())),
        Reader::Text => made_here(row.status, "text/plain; charset=utf-8", method, page::error_text(&row)),
        Reader::Json => {
            let text = serde_json::json!({ "message": row.sentence }).to_string() + "\n";
            made_here(row.status, "application/json; charset=utf-8", method, text)
        }
    };
    let headers = reply.headers_mut();
    if let Some(seconds) = row.retry_after_s {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if row.cache == CacheRule::NoStore {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    match refusal {
        Refusal::OutOfRange { size_bytes } => {
            headers.insert(header::CONTENT_RANGE, ascii(format!("bytes */{size_bytes}")));
        }
        Refusal::Method => {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
        }
        Refusal::Sky(SkyRefusal::OtherMethod(allow)) => {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        Refusal::NoKey => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"skygate admin\""));
        }
        _ => {}
    }
    reply
}

/// Faults of this side are told to the operator in full; the public got the table's sentence.
fn log(refusal: &Refusal, status: StatusCode) {
    if status.is_server_error() {
        tracing::warn!(status = status.as_u16(), error = %refusal, "request failed");
    } else {
        tracing::debug!(status = status.as_u16(), error = %refusal, "request refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that began before everything was forgotten (other rules, an unpin) leaves nothing behind.
    #[test]
    fn an_answer_of_before_is_not_kept() {
        let answers = AnswerCache::new(1 << 20);
        let plan = || {
            let representation = Representation {
                size_bytes: 1,
                etag: HeaderValue::from_static("\"x\""),
                last_modified: None,
                headers: HeaderMap::new(),
            };
            Arc::new(FilePlan::new(representation, BodySource::Block(Bytes::from_static(b"x"))))
        };
        let before = Clock::start(&answers);
        answers.put("/ipfs/x", plan(), &before);
        assert!(answers.get("/ipfs/x", &Clock::start(&answers)).is_some());
        answers.clear();
        assert!(answers.get("/ipfs/x", &Clock::start(&answers)).is_none());
        answers.put("/ipfs/x", plan(), &before);
        let after = Clock::start(&answers);
        assert!(answers.get("/ipfs/x", &after).is_none());
        answers.put("/ipfs/x", plan(), &after);
        assert!(answers.get("/ipfs/x", &Clock::start(&answers)).is_some());
    }
}
