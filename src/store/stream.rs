//! Bodies as streams: a file of a DAG, or a stretch of a skyfile, read ahead within a bound and stopped when dropped.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use crate::address::{Cid, codec, hash};
use crate::measure::{Tier, Trace};
use crate::tree::{FileChild, FileNode, TreeNode, parse_node};

use super::content::{Extent, Position, UNIT_BYTES};
use super::skyfiles::OpenSkyfile;
use super::{Store, StoreError};

/// Bytes read ahead of what the client took, for one reply. Four units keep two cores and nine hosts busy.
const READ_AHEAD_BYTES: u64 = 4 * UNIT_BYTES;
/// Reads in flight of one reply, whatever their size. Bounds the reads of files made of many tiny leaves.
const READS_AHEAD_MAX: u64 = 16;
/// Levels of a file's tree. A file of 2^64 bytes in 256-KiB leaves with two children a node has fewer.
const FILE_DEPTH_MAX: usize = 64;

/// A body on its way.
pub type BodyStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// A file of a DAG: its root block, parsed.
#[derive(Clone, Debug)]
pub struct FileSource {
    pub cid: Cid,
    pub node: Arc<FileNode>,
}

/// One read of a body.
#[derive(Debug)]
enum Read {
    /// Bytes at hand: out of a node on the way.
    Here(Bytes),
    /// A stretch of an extent whose row is proved; the sector tree checks it.
    Extent(Extent, Range<u64>),
    /// Part of the data of a leaf that has to be fetched whole, hashed and unwrapped.
    Leaf(Cid, u64, Range<u64>),
}

impl Store {
    /// Bytes `range` of a file. The range must lie within the file.
    pub fn stream_file(&self, file: FileSource, range: Range<u64>, trace: Arc<Trace>) -> BodyStream {
        if let Err(error) = self.inner.denied.allow(&file.cid) {
            return stream::once(std::future::ready(Err(error))).boxed();
        }
        if let Some(body) = self.leaf_at_hand(&file, &range, &trace) {
            return stream::once(std::future::ready(Ok(body))).boxed();
        }
        let leaf_bytes = file.node.children.first().map_or(UNIT_BYTES, |child| child.len).clamp(1, UNIT_BYTES);
        let plan = FilePlan::new(self.clone(), file, range, trace.clone());
        let reads = stream::try_unfold(plan, |mut plan| async move { Ok(plan.next().await?.map(|read| (read, plan))) });
        self.read_ahead(reads.boxed(), leaf_bytes, trace)
    }

    /// A file of one raw leaf whose place and bytes are in memory: the way of most small files that are in demand, so it
    /// does without the stream's machinery, which costs some microseconds.
    fn leaf_at_hand(&self, file: &FileSource, range: &Range<u64>, trace: &Trace) -> Option<Bytes> {
        if !is_single_leaf(file) {
            return None;
        }
        let located = self.inner.located.get(file.cid.hash().to_bytes().as_slice())?;
        let extent = located.bare_extent().filter(|extent| extent.length == file.node.size)?;
        self.inner.contents.body_at_hand(extent, range, trace)
    }

    /// Bytes `range` of the stretch `file` of a skyfile's content. The range counts from the start of the stretch.
    pub fn stream_skyfile(&self, skyfile: &Arc<OpenSkyfile>, file: Range<u64>, range: Range<u64>, trace: Arc<Trace>) -> BodyStream {
        let bytes = file.start + range.start..file.start + range.end;
        let extent = Extent { content: skyfile.content.clone(), start: file.start, length: file.end - file.start };
        let reads = self.inner.contents.cut(&extent, range, Position::ReplyStart);
        let reads = reads.into_iter().map(move |range| Ok(Read::Extent(extent.clone(), range)));
        let body = self.read_ahead(stream::iter(reads).boxed(), UNIT_BYTES, trace.clone());
        if !self.inner.denied.has_rules() {
            return body;
        }
        // Asked first: an error is told before a byte is.
        let (inner, root, lies) = (self.inner.clone(), skyfile.root, skyfile.content.lies(bytes));
        let allowed = async move { inner.allow_stretch(&root, &lies, &trace).await };
        stream::once(allowed).filter_map(|allowed| std::future::ready(allowed.err().map(Err))).chain(body).boxed()
    }

    fn read_ahead(&self, reads: BoxStream<'static, Result<Read, StoreError>>, read_bytes: u64, trace: Arc<Trace>) -> BodyStream {
        let ahead = (READ_AHEAD_BYTES / read_bytes.max(1)).clamp(1, READS_AHEAD_MAX) as usize;
        let store = self.clone();
        reads
            .map_ok(move |read| {
                let (store, trace) = (store.clone(), trace.clone());
                async move { store.read(read, &trace).await }
            })
            .try_buffered(ahead)
            .boxed()
    }

    async fn read(&self, read: Read, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        match read {
            Read::Here(bytes) => {
                trace.body(Tier::Memory, bytes.len() as u64);
                Ok(bytes)
            }
            Read::Extent(extent, range) => self.inner.contents.body(&extent, range, trace).await,
            Read::Leaf(cid, length, range) => {
                let block = self.inner.block(&cid, trace).await?;
                let data = match parse_node(&cid, &block)? {
                    TreeNode::Raw(data) => data,
                    TreeNode::File(file) if file.children.is_empty() => file.inline.clone(),
                    _ => return Err(StoreError::BadFile("a leaf of the file is not a leaf")),
                };
                if data.len() as u64 != length {
                    return Err(StoreError::BadFile("a leaf of the file has another length than its parent says"));
                }
                Ok(data.slice(range.start as usize..range.end as usize))
            }
        }
    }
}

/// A raw block of its own: the walk did not need its bytes.
fn is_single_leaf(file: &FileSource) -> bool {
    file.node.children.is_empty() && file.node.inline.is_empty() && file.node.size > 0
}

/// Walks a file's tree in order and says which reads its range needs. Fetches interior nodes as it meets them.
struct FilePlan {
    store: Store,
    trace: Arc<Trace>,
    /// Range of the file that is still to be planned.
    range: Range<u64>,
    /// Nodes still to visit: (child, its start in the file, its depth), the next one last.
    open: Vec<(FileChild, u64, usize)>,
    ready: VecDeque<Read>,
    position: Position,
}

impl FilePlan {
    fn new(store: Store, file: FileSource, range: Range<u64>, trace: Arc<Trace>) -> FilePlan {
        let mut plan = FilePlan { store, trace, range, open: Vec::new(), ready: VecDeque::new(), position: Position::ReplyStart };
        if is_single_leaf(&file) {
            plan.open.push((FileChild { cid: file.cid, start: 0, len: file.node.size }, 0, 0));
        } else {
            plan.visit(&file.node, 0, 0);
        }
        plan
    }

    /// Puts what the range needs of a node in line.
    fn visit(&mut self, node: &FileNode, start: u64, depth: usize) {
        let inline = start..start + node.inline.len() as u64;
        if let Some(part) = overlap(&inline, &self.range) {
            self.ready.push_back(Read::Here(node.inline.slice((part.start - start) as usize..(part.end - start) as usize)));
        }
        let wanted = node.children.iter().rev().filter_map(|child| {
            let at = start + child.start;
            overlap(&(at..at + child.len), &self.range).map(|_| (child.clone(), at, depth + 1))
        });
        self.open.extend(wanted);
    }

    async fn next(&mut self) -> Result<Option<Read>, StoreError> {
        loop {
            if let Some(read) = self.ready.pop_front() {
                return Ok(Some(read));
            }
            let Some((child, start, depth)) = self.open.pop() else { return Ok(None) };
            if depth > FILE_DEPTH_MAX {
                return Err(StoreError::BadFile("the file's tree is deeper than this gateway follows"));
            }
            self.descend(child, start, depth).await?;
        }
    }

    async fn descend(&mut self, child: FileChild, start: u64, depth: usize) -> Result<(), StoreError> {
        let whole = start..start + child.len;
        let Some(wanted) = overlap(&whole, &self.range) else { return Ok(()) };
        let wanted = wanted.start - start..wanted.end - start;
        if child.cid.codec() == codec::RAW {
            return self.plan_raw_leaf(child, wanted).await;
        }
        let block = self.store.inner.index_block(&child.cid, &self.trace).await?;
        match parse_node(&child.cid, &block)? {
            TreeNode::File(node) if node.size != child.len => {
                Err(StoreError::BadFile("a node of the file has another size than its parent says"))
            }
            TreeNode::File(node) => {
                self.visit(&node, start, depth);
                Ok(())
            }
            _ => Err(StoreError::BadFile("a node of the file is not a file")),
        }
    }

    async fn plan_raw_leaf(&mut self, child: FileChild, wanted: Range<u64>) -> Result<(), StoreError> {
        self.store.inner.denied.allow(&child.cid)?;
        if child.cid.hash().code() == hash::IDENTITY {
            self.ready.push_back(Read::Leaf(child.cid, child.len, wanted));
            return Ok(());
        }
        let located = self.store.inner.locate(child.cid.hash(), &self.trace).await?;
        if located.length() != child.len {
            return Err(StoreError::BadFile("a leaf of the file has another length than its parent says"));
        }
        match located.bare_extent() {
            Some(extent) => {
                let position = std::mem::replace(&mut self.position, Position::Later);
                let cut = self.store.inner.contents.cut(extent, wanted, position);
                self.ready.extend(cut.into_iter().map(|range| Read::Extent(extent.clone(), range)));
            }
            None => self.ready.push_back(Read::Leaf(child.cid, child.len, wanted)),
        }
        Ok(())
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (both.start < both.end).then_some(both)
}
