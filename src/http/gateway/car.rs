//! `format=car`: the blocks of a path as a CARv1 stream (`specs/ipfs-gateway.md` 2.2).
//!
//! The path is walked and the first block read before the head leaves, so what does not exist is a 404. After that a block
//! that cannot be had breaks the connection: a CAR that ends properly is whole.

use std::sync::Arc;

use ::http::header::{self, HeaderValue};
use ::http::{Method, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio_util::task::AbortOnDropHandle;

use super::super::ask::Ask;
use super::super::plan::{Disposition, ascii, not_modified};
use super::super::refusal::Refusal;
use super::super::reply::{Clock, Reply, ReplyBody, made_on_the_way, stamp};
use super::super::services::{Content, Services};
use super::headers::{self, Kind};
use super::{Target, block_at, check_block, check_entity, store_error};
use crate::address::{Cid, SitePath, TrailingSlash, codec};
use crate::measure::Trace;
use crate::site::car_walk::{CarStep, CarWalk, Dups, EntityBytes, Scope};
use crate::site::unixfs::{Step, Walk};
use crate::store::{StoreError, Window};
use crate::tree::car::{encode_frame_start, encode_v1_header};
use crate::tree::{TreeNode, parse_node};

/// Leaves fetched ahead of the client: of 1 MiB they keep two cores and nine hosts busy, of 2 MiB they are 16 MiB.
const LEAVES_AHEAD_MAX: usize = 8;
/// Smaller blocks are sent on together, once they are so many bytes: a frame of its own for each of millions of small
/// blocks would cost more than the blocks.
const CHUNK_BYTES: usize = 64 << 10;

/// What is asked of the CAR, by URL or by Accept; the URL wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CarAsk {
    scope: Scope,
    dups: Dups,
}

impl CarAsk {
    fn read(ask: &Ask) -> Result<CarAsk, Refusal> {
        let parameter = |url: &str, accept: &str| ask.parameter(url).or_else(|| accept_parameter(ask, accept));
        match parameter("car-version", "version").as_deref() {
            None | Some("1") => {}
            Some(_) => return Err(Refusal::BadQuery("CARs are made in version 1 only")),
        }
        match parameter("car-order", "order").as_deref() {
            // Depth first is a right answer to "any order".
            None | Some("dfs" | "unk") => {}
            Some(_) => return Err(Refusal::BadQuery("car-order is dfs or unk")),
        }
        let dups = match parameter("car-dups", "dups").as_deref() {
            None | Some("n") => Dups::LeftOut,
            Some("y") => Dups::Kept,
            Some(_) => return Err(Refusal::BadQuery("car-dups is y or n")),
        };
        let bytes = match ask.parameter("entity-bytes") {
            None => None,
            Some(text) => Some(EntityBytes::parse(&text).ok_or(Refusal::BadQuery("entity-bytes is FROM:TO, TO may be *"))?),
        };
        let scope = match (ask.parameter("dag-scope").as_deref(), bytes) {
            // Bytes are those of an entity.
            (None | Some("entity"), Some(_)) | (Some("entity"), None) => Scope::Entity(bytes),
            (None | Some("all"), None) => Scope::All,
            (Some("all"), Some(_)) => Scope::Entity(bytes),
            (Some("block"), _) => Scope::Block,
            (Some(_), _) => return Err(Refusal::BadQuery("dag-scope is block, entity or all")),
        };
        Ok(CarAsk { scope, dups })
    }

    fn media_type(self) -> &'static str {
        match self.dups {
            Dups::Kept => "application/vnd.ipld.car; version=1; order=dfs; dups=y",
            Dups::LeftOut => "application/vnd.ipld.car; version=1; order=dfs; dups=n",
        }
    }

    /// Weak: the same blocks in another order would be as good. Different for all that changes the blocks.
    fn etag(self, target: &Target, end: &Cid) -> String {
        let what = format!("{}{}{end}{:?}{:?}", target.root, target.path.encoded(), self.scope, self.dups);
        let hash = blake2b_simd::Params::new().hash_length(12).hash(what.as_bytes());
        format!("W/\"{end}.car.{}\"", hash.to_hex())
    }
}

/// A parameter of the media type that Accept names.
fn accept_parameter(ask: &Ask, name: &str) -> Option<String> {
    ask.format_parameters.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// The CAR as a reply.
pub async fn reply(services: &Services, ask: &Ask, target: &Target, clock: &Clock) -> Result<Reply, Refusal> {
    let car = CarAsk::read(ask)?;
    let (end, roots) = block_at(services, ask, target, clock).await?;
    let way = way_to(services.content.as_ref(), target, end, &clock.trace).await?;
    if car.scope == Scope::Block {
        check_block(services, &end)?;
    } else {
        check_entity(services, &end, clock).await?;
    }
    check_bytes_asked(services, car, &end, clock).await?;
    let kind = Kind { media_type: car.media_type(), disposition: Disposition::Attachment, extension: "car" };
    let dups = if car.dups == Dups::Kept { "y" } else { "n" };
    let parameters = [("car-version", "1"), ("car-order", "dfs"), ("car-dups", dups)];
    let mut headers = headers::of_format(ask, target, (&end, &roots), &kind, &parameters);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    let etag = car.etag(target, &end);
    let known = not_modified(&ask.conditions, &etag)?;
    headers.insert(header::ETAG, ascii(etag));
    let located = clock.started.elapsed();
    let (status, body) = if known {
        headers.remove(header::CONTENT_TYPE);
        headers.remove(header::CONTENT_DISPOSITION);
        (StatusCode::NOT_MODIFIED, ReplyBody::empty())
    } else if ask.method == Method::HEAD {
        // As for GET the first block has to be there.
        services.content.block_length(way.first().unwrap_or(&end), &clock.trace).await?;
        (StatusCode::OK, ReplyBody::empty())
    } else {
        let walk = CarWalk::new(&way, end, car.scope, car.dups);
        let mut chunks = chunks(services.content.clone(), clock.trace.clone(), target.root, walk).boxed();
        let first = chunks.try_next().await?.unwrap_or_default();
        (StatusCode::OK, made_on_the_way(services, clock, first, chunks, None))
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    stamp(reply.headers_mut(), clock, located);
    Ok(reply)
}

/// The blocks that lead to `end`, without it.
async fn way_to(content: &dyn Content, target: &Target, end: Cid, trace: &Arc<Trace>) -> Result<Vec<Cid>, Refusal> {
    let names = target.path.segments().join("/");
    let path = match names.is_empty() {
        true => SitePath::root(TrailingSlash::No),
        false => SitePath::from_decoded(&names).expect("the names of a path make a path"),
    };
    let mut walk = Walk::new(target.root, path);
    let mut way = Vec::new();
    while let Step::Need(cid) = walk.step() {
        walk.give(content.index_block(&cid, trace).await?)?;
        way.push(cid);
    }
    // The end may be among them (a directory, a dag-pb file) or not (a raw leaf).
    if way.last() == Some(&end) {
        way.pop();
    }
    Ok(way)
}

/// Bytes that lie outside of a file whose length is known are refused, not answered with a block that has none of them.
async fn check_bytes_asked(services: &Services, car: CarAsk, end: &Cid, clock: &Clock) -> Result<(), Refusal> {
    let Scope::Entity(Some(bytes)) = car.scope else { return Ok(()) };
    let size = match end.codec() {
        codec::RAW => Some(services.content.block_length(end, &clock.trace).await?),
        codec::DAG_PB => match parse_node(end, &services.content.index_block(end, &clock.trace).await?) {
            Ok(TreeNode::File(node)) => Some(node.size),
            _ => None,
        },
        _ => None,
    };
    match size {
        Some(size) if bytes.within(size).is_none() => Err(Refusal::BadQuery("entity-bytes lie outside of the file")),
        _ => Ok(()),
    }
}

/// A block that belongs to the CAR: at hand, or still to be fetched.
enum Told {
    Here(Cid, Bytes),
    Leaf(Cid),
}

/// The bytes of the CAR, in chunks.
fn chunks(
    content: Arc<dyn Content>,
    trace: Arc<Trace>,
    root: Cid,
    walk: CarWalk,
) -> impl futures::Stream<Item = Result<Bytes, StoreError>> + Send {
    // The reply begins with the root; everything else is read ahead.
    let window_of = move |cid: &Cid| if *cid == root { Window::First } else { Window::Later };
    let told = {
        let state = (content.clone(), trace.clone(), walk);
        stream::try_unfold(state, move |(content, trace, mut walk)| async move {
            loop {
                match walk.step().map_err(store_error)? {
                    CarStep::End => return Ok(None),
                    CarStep::Leaf(cid) => return Ok(Some((Told::Leaf(cid), (content, trace, walk)))),
                    CarStep::Need(cid) => {
                        let block = content.block(&cid, window_of(&cid), &trace).await?;
                        if walk.give(&block).map_err(store_error)? {
                            return Ok(Some((Told::Here(cid, block), (content, trace, walk))));
                        }
                    }
                }
            }
        })
    };
    let blocks = told
        .map_ok(move |told| {
            let (content, trace) = (content.clone(), trace.clone());
            // A task for each leaf: most of the work is hashing, and one task would have one core for it. Dropping the
            // stream stops them.
            let leaf = match &told {
                Told::Here(..) => None,
                Told::Leaf(cid) => {
                    let cid = *cid;
                    Some(AbortOnDropHandle::new(tokio::spawn(async move { content.block(&cid, window_of(&cid), &trace).await })))
                }
            };
            async move {
                match (told, leaf) {
                    (Told::Leaf(cid), Some(leaf)) => Ok((cid, leaf.await.expect("reading a block does not panic")?)),
                    (Told::Leaf(_), None) => unreachable!("each leaf has a task"),
                    (Told::Here(cid, block), _) => Ok((cid, block)),
                }
            }
        })
        .try_buffered(LEAVES_AHEAD_MAX);
    let waiting = BytesMut::from(&encode_v1_header(&[root])[..]);
    let writer = Writer { blocks: blocks.boxed(), waiting, begun: false, large: None, missing: None };
    stream::try_unfold(writer, |mut writer| async move { Ok(writer.next().await?.map(|chunk| (chunk, writer))) })
}

/// Blocks to chunks: small ones are joined, large ones are passed on as they are.
struct Writer {
    blocks: stream::BoxStream<'static, Result<(Cid, Bytes), StoreError>>,
    waiting: BytesMut,
    /// Is there a block behind the header?
    begun: bool,
    /// A block whose frame's beginning has just gone out.
    large: Option<Bytes>,
    /// What breaks the stream off, once all before it has gone out.
    missing: Option<StoreError>,
}

impl Writer {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if let Some(block) = self.large.take() {
            return Ok(Some(block));
        }
        while self.waiting.len() < CHUNK_BYTES && self.missing.is_none() {
            let (cid, block) = match self.blocks.try_next().await {
                Ok(Some(block)) => block,
                Ok(None) => break,
                // What is here of a partial DAG is handed out, however small it is. Other failures are better told by a
                // status, as long as they can be.
                Err(error) if self.begun && matches!(error.cause(), StoreError::NotFound) => {
                    self.missing = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            };
            self.begun = true;
            self.waiting.extend_from_slice(&encode_frame_start(&cid, block.len()));
            if block.len() >= CHUNK_BYTES {
                self.large = Some(block);
                break;
            }
            self.waiting.extend_from_slice(&block);
        }
        match (self.waiting.is_empty(), self.missing.take()) {
            (true, Some(error)) => Err(error),
            (true, None) => Ok(None),
            (false, missing) => {
                self.missing = missing;
                Ok(Some(self.waiting.split().freeze()))
            }
        }
    }
}
