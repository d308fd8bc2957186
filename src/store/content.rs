//! Bytes of a skyfile's content, from memory or from hosts: the one place where body bytes are cached and counted.
//!
//! A content is named by its base sector's root, and, inside it, by where it begins. Cached pieces are keyed by (root, begin,
//! offset, length), so a file read by its CID and the same file read by its skylink share them. A reader fetches in units of at most [`UNIT_BYTES`],
//! counted from the start of the file (or block) it reads; whole units are what streams use, the smaller
//! [`SMALL_UNIT_BYTES`] serve short ranges. Equal reads in flight are joined; a joined read has the class of the read
//! it joined (`design.md` 9).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::measure::{Tier, Trace};
use crate::renter::{Expect, Proof, Renter, SlabRef};
use crate::sector::{Root, SECTOR_BYTES};
use crate::tree::pack::SkyfileRef;

use super::StoreError;

/// One read of a stream: large enough that a slab's k requests are paid once a MiB, small enough that a few of them
/// in flight stay within the look-ahead.
pub const UNIT_BYTES: u64 = 1 << 20;
/// One read of a short range, and the first read of every stream.
pub const SMALL_UNIT_BYTES: u64 = 256 << 10;
/// One read of index bytes: a few dozen nodes of a large folder.
const PAGE_BYTES: u64 = 64 << 10;
/// Of a pack that came whole: the interior nodes of some ten thousand files.
const FIRST_PAGES_BYTES_MAX: u64 = 512 << 10;
/// Cores that share one lock of the cache: a hit holds it for some tens of nanoseconds.
const SHARD_CORES: usize = 8;
/// What a cache entry costs besides its bytes: key, counters and the allocation of its buffer.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// A skyfile's content: where its bytes are on hosts. Made from a [`SkyfileRef`] or from a base sector.
#[derive(Clone, Debug)]
pub struct Content {
    pub root: Root,
    pub size: u64,
    place: Place,
}

/// Where a stretch of a content lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lies {
    /// Bytes of the base sector, from its beginning.
    InSector(Range<u64>),
    /// Bytes of the slabs' content.
    InSlabs(Range<u64>),
}

#[derive(Clone, Debug)]
enum Place {
    /// In the base sector, from this offset on. `used` bytes of the sector are used.
    Base {
        at: u32,
        used: u32,
    },
    Slabs {
        k: u8,
        m: u8,
        roots: Arc<[Root]>,
    },
}

impl Content {
    pub fn in_base(root: Root, at: u32, used: u32, size: u64) -> Content {
        Content { root, size, place: Place::Base { at, used } }
    }

    pub fn in_slabs(root: Root, size: u64, k: u8, m: u8, roots: Arc<[Root]>) -> Content {
        Content { root, size, place: Place::Slabs { k, m, roots } }
    }

    /// `None` when the reference leaves the piece roots out: then the base sector has them.
    pub fn from_ref(skyfile: &SkyfileRef) -> Option<Content> {
        if skyfile.k == 0 {
            return Some(Content::in_base(Root(skyfile.root), skyfile.at, skyfile.used, skyfile.size));
        }
        if skyfile.roots.is_empty() {
            return None;
        }
        let roots = skyfile.roots.as_chunks().0.iter().map(|root| Root(*root)).collect();
        Some(Content::in_slabs(Root(skyfile.root), skyfile.size, skyfile.k, skyfile.m, roots))
    }

    /// The slab that a range lies in, and where; `None` if it lies in several, or in none.
    fn slab_of(&self, range: &Range<u64>) -> Option<(SlabRef, Range<u64>)> {
        let Place::Slabs { k, m, roots } = &self.place else { return None };
        slab_of((*k, *m, roots), self.size, range).filter(|_| range.end <= self.size)
    }

    /// Data and parity pieces of a slab; 0 for a small content.
    pub fn redundancy(&self) -> (u8, u8) {
        match self.place {
            Place::Base { .. } => (0, 0),
            Place::Slabs { k, m, .. } => (k, m),
        }
    }

    /// The roots of all pieces, slab by slab, data pieces first. Empty for a small content.
    pub fn piece_roots(&self) -> &[Root] {
        match &self.place {
            Place::Base { .. } => &[],
            Place::Slabs { roots, .. } => roots,
        }
    }

    /// Where bytes of it lie.
    pub fn lies(&self, bytes: Range<u64>) -> Lies {
        match self.place {
            Place::Base { at, .. } => {
                let moved = |byte: u64| byte.saturating_add(at.into());
                Lies::InSector(moved(bytes.start)..moved(bytes.end))
            }
            Place::Slabs { .. } => Lies::InSlabs(bytes),
        }
    }

    /// Of the content of the base sector, the place of its first byte: other contents may stand in the same sector.
    fn begin(&self) -> u32 {
        match self.place {
            Place::Base { at, .. } => at,
            Place::Slabs { .. } => 0,
        }
    }

    /// The slabs of a large content, in order. Empty for a small one.
    pub fn slabs(&self) -> Vec<SlabRef> {
        let Place::Slabs { k, m, roots } = &self.place else { return Vec::new() };
        let slab_bytes = u64::from(*k) * SECTOR_BYTES as u64;
        roots
            .chunks(usize::from(*k) + usize::from(*m))
            .enumerate()
            .map(|(index, roots)| SlabRef {
                k: *k,
                m: *m,
                roots: roots.into(),
                content_len: self.size.saturating_sub(index as u64 * slab_bytes).min(slab_bytes),
            })
            .collect()
    }
}

impl Lies {
    pub fn overlaps(&self, other: &Lies) -> bool {
        match (self, other) {
            (Lies::InSector(a), Lies::InSector(b)) | (Lies::InSlabs(a), Lies::InSlabs(b)) => a.start < b.end && b.start < a.end,
            (Lies::InSector(_), Lies::InSlabs(_)) | (Lies::InSlabs(_), Lies::InSector(_)) => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    root: Root,
    begin: u32,
    offset: u64,
    length: u32,
}

/// A stretch of a content that is read as a thing of its own: a file, or a block's range.
#[derive(Clone, Debug)]
pub struct Extent {
    pub content: Content,
    pub start: u64,
    pub length: u64,
}

/// Where a stretch stands in its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    ReplyStart,
    Later,
}

pub struct Contents {
    renter: Renter,
    bodies: ByteCache,
    /// Pages of contents that are read as index (nodes in packs), keyed by their place.
    pages: ByteCache,
    /// Bodies are kept at all (`memory_bytes` above zero).
    keep: bool,
}

impl Contents {
    /// `memory_bytes` bounds the bodies kept, `pages_bytes` the index pages.
    pub fn new(renter: Renter, memory_bytes: u64, pages_bytes: u64) -> Contents {
        Contents { renter, bodies: byte_cache(memory_bytes), pages: byte_cache(pages_bytes), keep: memory_bytes > 0 }
    }

    /// Bytes held in memory now.
    pub fn memory_bytes(&self) -> u64 {
        self.bodies.weight()
    }

    /// Cuts `range` of `extent` into reads. Whole units are read whole, parts of a unit and the unit that a reply
    /// begins with in small ones, so that the first bytes come soon and nothing is fetched twice.
    pub fn cut(&self, extent: &Extent, range: Range<u64>, position: Position) -> Vec<Range<u64>> {
        let mut reads = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let unit = unit_of(at, UNIT_BYTES, extent.length);
            let begins = position == Position::ReplyStart && reads.is_empty();
            let whole = at == unit.start && range.end >= unit.end && !begins;
            let end = if whole {
                unit.end
            } else if self.keep {
                unit_of(at, SMALL_UNIT_BYTES, extent.length).end
            } else {
                at + SMALL_UNIT_BYTES
            };
            let end = end.min(range.end);
            reads.push(at..end);
            at = end;
        }
        reads
    }

    /// Reads `range` of `extent`, which lies within one unit, from memory or hosts.
    pub async fn body(&self, extent: &Extent, range: Range<u64>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        debug_assert!(range.end <= extent.length && range.end - range.start <= UNIT_BYTES);
        if !self.keep {
            return self.joined(&extent.content, extent.start + range.start..extent.start + range.end, trace).await;
        }
        if let Some(body) = self.body_at_hand(extent, &range, trace) {
            return Ok(body);
        }
        let unit = unit_of(range.start, UNIT_BYTES, extent.length);
        let small = unit_of(range.start, SMALL_UNIT_BYTES, extent.length);
        let wanted = if range.end <= small.end { small } else { unit };
        let body = self.joined(&extent.content, extent.start + wanted.start..extent.start + wanted.end, trace).await?;
        Ok(body.slice((range.start - wanted.start) as usize..(range.end - wanted.start) as usize))
    }

    /// All of an extent that `prove` can tell right from wrong. Where one read of one slab gives it, the proof stands in for
    /// the pieces' own trees: each byte is hashed once. [`Proof::Missing`] leaves the proof to the caller.
    pub async fn body_proved(
        &self,
        extent: &Extent,
        prove: &(dyn Fn(&[u8]) -> bool + Send + Sync),
        trace: &Arc<Trace>,
    ) -> Result<(Bytes, Proof), StoreError> {
        let (content, range) = (&extent.content, extent.start..extent.start + extent.length);
        let slab = content.slab_of(&range).filter(|_| extent.length <= UNIT_BYTES && extent.length > 0);
        let Some((slab, in_slab)) = slab else {
            let reads = self.cut(extent, 0..extent.length, Position::Later);
            let reads = reads.into_iter().map(|range| self.body(extent, range, trace));
            let mut parts: Vec<Bytes> = futures::future::try_join_all(reads).await?;
            let body = if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat().into() };
            return Ok((body, Proof::Missing));
        };
        let proof = AtomicBool::new(false);
        let fetch = async {
            let read = self.renter.read_slab_proved(&slab, in_slab, prove, trace).await;
            let (body, given) = read.map_err(StoreError::of_pinned)?;
            proof.store(given == Proof::Given, Ordering::Relaxed);
            Ok(body)
        };
        let body = self.joined_by(content, range, fetch, trace).await?;
        let proof = if proof.load(Ordering::Relaxed) { Proof::Given } else { Proof::Missing };
        Ok((body, proof))
    }

    /// `range` of `extent` if it lies within one unit that is in memory.
    pub fn body_at_hand(&self, extent: &Extent, range: &Range<u64>, trace: &Trace) -> Option<Bytes> {
        let unit = unit_of(range.start, UNIT_BYTES, extent.length);
        if !self.keep || range.end > unit.end {
            return None;
        }
        let found = self.bodies.get(&key(&extent.content, extent.start, &unit))?;
        let body = found.slice((range.start - unit.start) as usize..(range.end - unit.start) as usize);
        trace.body(Tier::Memory, body.len() as u64);
        Some(body)
    }

    async fn joined(&self, content: &Content, range: Range<u64>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        self.joined_by(content, range.clone(), self.fetch(content, range, trace), trace).await
    }

    /// One fetch for all who ask for these bytes at the same time; kept if bodies are kept.
    async fn joined_by(
        &self,
        content: &Content,
        range: Range<u64>,
        fetch: impl Future<Output = Result<Bytes, StoreError>>,
        trace: &Arc<Trace>,
    ) -> Result<Bytes, StoreError> {
        let key = key(content, 0, &range);
        if self.keep
            && let Some(body) = self.bodies.get(&key)
        {
            trace.body(Tier::Memory, body.len() as u64);
            return Ok(body);
        }
        let body = self.bodies.get_or_insert_async(&key, fetch).await?;
        // Whether fetched here or joined while under way: from hosts.
        trace.body(Tier::Hosts, body.len() as u64);
        Ok(body)
    }

    /// Index bytes: read in pages, since the nodes of a DAG stand side by side in its pack and are wanted together.
    pub async fn index_bytes(&self, content: &Content, range: Range<u64>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        if range.end > content.size {
            return Err(StoreError::BadPin(format!("bytes {range:?} lie outside a skyfile of {} bytes", content.size)));
        }
        let pages =
            (range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES)).map(|page| self.page(content, page * PAGE_BYTES, trace));
        let pages = futures::future::try_join_all(pages).await?;
        let cut = |(page, start): (&Bytes, u64)| {
            let end = start + page.len() as u64;
            page.slice((range.start.max(start) - start) as usize..(range.end.min(end) - start) as usize)
        };
        let starts = (range.start / PAGE_BYTES..).map(|page| page * PAGE_BYTES);
        let mut parts: Vec<Bytes> = pages.iter().zip(starts).map(cut).collect();
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat().into() })
    }

    async fn page(&self, content: &Content, start: u64, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        let page = unit_of(start, PAGE_BYTES, content.size);
        let fetch = async {
            trace.index_from_hosts();
            self.fetch(content, page.clone(), trace).await
        };
        self.pages.get_or_insert_async(&key(content, 0, &page), fetch).await
    }

    /// Keeps the first pages of a content that came whole with another read, so that its nodes, which stand first, are not
    /// asked for again. Pages are copied: the rest of the read is let go.
    pub fn keep_first_pages(&self, content: &Content, whole: &[u8]) {
        let mut at = 0;
        while at < content.size.min(FIRST_PAGES_BYTES_MAX) {
            let page = unit_of(at, PAGE_BYTES, content.size);
            let bytes = Bytes::copy_from_slice(&whole[page.start as usize..page.end as usize]);
            self.pages.insert(key(content, 0, &page), bytes);
            at = page.end;
        }
    }

    /// Reads from hosts, verified, past the cache. Used for index bytes, which have a cache of their own.
    pub async fn fetch(&self, content: &Content, range: Range<u64>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        if range.end > content.size {
            return Err(StoreError::BadPin(format!("bytes {range:?} lie outside a skyfile of {} bytes", content.size)));
        }
        match &content.place {
            Place::Base { at, used } => {
                let start = u64::from(*at) + range.start;
                let end = u64::from(*at) + range.end;
                if end > SECTOR_BYTES as u64 {
                    return Err(StoreError::BadPin("a small skyfile that ends outside its sector".to_owned()));
                }
                let expect = Expect { data_length: Some(*used) };
                let range = start as u32..end as u32;
                let found = self.renter.read_sector(&content.root, expect, range, trace).await.map_err(StoreError::of_pinned)?;
                Ok(pad(found, (end - start) as usize))
            }
            Place::Slabs { k, m, roots } => self.fetch_from_slabs(content, (*k, *m, roots), range, trace).await,
        }
    }

    async fn fetch_from_slabs(
        &self,
        content: &Content,
        (k, m, roots): (u8, u8, &Arc<[Root]>),
        range: Range<u64>,
        trace: &Arc<Trace>,
    ) -> Result<Bytes, StoreError> {
        let slab_bytes = u64::from(k) * SECTOR_BYTES as u64;
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / slab_bytes + 1) * slab_bytes);
            let Some(part) = slab_of((k, m, roots), content.size, &(at..end)) else {
                return Err(StoreError::BadPin("fewer piece roots than the skyfile's size asks for".to_owned()));
            };
            parts.push(part);
            at = end;
        }
        let reads = parts.iter().map(|(slab, range)| self.renter.read_slab(slab, range.clone(), trace));
        let mut found = futures::future::try_join_all(reads).await.map_err(StoreError::of_pinned)?;
        if found.len() == 1 {
            return Ok(found.swap_remove(0));
        }
        let mut joined = BytesMut::with_capacity((range.end - range.start) as usize);
        found.iter().for_each(|part| joined.extend_from_slice(part));
        Ok(joined.freeze())
    }
}

fn slab_of((k, m, roots): (u8, u8, &Arc<[Root]>), size: u64, range: &Range<u64>) -> Option<(SlabRef, Range<u64>)> {
    let slab_bytes = u64::from(k) * SECTOR_BYTES as u64;
    let pieces = usize::from(k) + usize::from(m);
    let index = range.start / slab_bytes;
    let start = index * slab_bytes;
    let roots = roots.get(index as usize * pieces..(index as usize + 1) * pieces)?;
    let content_len = size.saturating_sub(start).min(slab_bytes);
    let slab = SlabRef { k, m, roots: roots.into(), content_len };
    (range.end <= start + slab_bytes).then_some((slab, range.start - start..range.end - start))
}

/// A cache bounded in bytes. What it evicts is freed at once: the bodies are the bulk of the process's memory.
type ByteCache = Cache<Key, Bytes, Bytewise>;

#[derive(Clone)]
struct Bytewise;

impl Weighter<Key, Bytes> for Bytewise {
    fn weight(&self, _key: &Key, body: &Bytes) -> u64 {
        (body.len() + ENTRY_OVERHEAD_BYTES) as u64
    }
}

fn byte_cache(capacity_bytes: u64) -> ByteCache {
    // Few shards: each has its part of the capacity, and a file that fits the whole has to fit the parts, too.
    let shards = (std::thread::available_parallelism().map_or(1, usize::from) / SHARD_CORES).max(1);
    let items = (capacity_bytes / SMALL_UNIT_BYTES).max(1) as usize;
    let options =
        OptionsBuilder::new().shards(shards).estimated_items_capacity(items).weight_capacity(capacity_bytes.max(1)).build();
    let options = options.expect("capacities were given");
    Cache::with_options(options, Bytewise, DefaultHashBuilder::default(), DefaultLifecycle::default())
}

fn key(content: &Content, start: u64, unit: &Range<u64>) -> Key {
    Key { root: content.root, begin: content.begin(), offset: start + unit.start, length: (unit.end - unit.start) as u32 }
}

fn unit_of(at: u64, unit_bytes: u64, length: u64) -> Range<u64> {
    let start = at / unit_bytes * unit_bytes;
    start..(start + unit_bytes).min(length)
}

/// Zeros that the sector object leaves out are put back.
pub fn pad(found: Bytes, length: usize) -> Bytes {
    if found.len() == length {
        return found;
    }
    let mut padded = BytesMut::with_capacity(length);
    padded.extend_from_slice(&found);
    padded.resize(length, 0);
    padded.freeze()
}
