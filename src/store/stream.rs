//! Bodies as streams: a file of a DAG, or a stretch of a skyfile, read ahead within a bound and stopped when dropped.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesOrdered, StreamExt, TryStreamExt};
use tokio_util::task::AbortOnDropHandle;

use crate::address::{Cid, codec, hash};
use crate::measure::{Tier, Trace};
use crate::renter::Proof;
use crate::tree::{FileChild, FileNode, TreeNode, parse_node};

use super::blocks::Located;
use super::content::{Extent, RUN_BYTES_MAX, UNIT_BYTES};
use super::skyfiles::OpenSkyfile;
use super::{Store, StoreError, Window};

/// Bytes read ahead of what the client took, for one reply. Four units keep two cores and nine hosts busy.
const READ_AHEAD_BYTES: u64 = 4 * UNIT_BYTES;
/// Reads in flight of one reply, whatever their size. Bounds the reads of files made of many tiny leaves.
const READS_AHEAD_MAX: usize = 16;
/// Leaves no further from one another than this are read together: a block's frame in a CAR takes some forty bytes.
const RUN_GAP_BYTES_MAX: u64 = 1 << 10;
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
    Extent(Extent, Range<u64>, Window),
    /// Part of the data of a leaf that has to be fetched whole, hashed and unwrapped.
    Leaf(Leaf, Range<u64>, Window),
    /// Whole leaves, one behind the other.
    Run(Run),
}

impl Read {
    fn bytes(&self) -> u64 {
        match self {
            Read::Here(bytes) => bytes.len() as u64,
            Read::Extent(_, range, _) | Read::Leaf(_, range, _) => range.end - range.start,
            Read::Run(run) => run.extent.length,
        }
    }
}

/// Leaves that lie side by side in one content: a window of a stream costs its hosts one request each, however small the
/// leaves are that it was cut into.
#[derive(Debug)]
struct Run {
    extent: Extent,
    leaves: Vec<RunLeaf>,
    /// Window of the file, so that equal streams have equal runs.
    window_index: u64,
    proved: Proved,
}

#[derive(Debug)]
struct RunLeaf {
    leaf: Leaf,
    located: Located,
    /// In the run's extent.
    at: Range<u64>,
}

/// A block that holds a part of the file itself, as far as it can be told from its length.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    cid: Cid,
    data_bytes: u64,
    /// Levels above it.
    depth: usize,
}

/// What says that a leaf's bytes are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proved {
    /// Its row is proved, and it is nothing but bytes of the file.
    ByRow,
    /// They are hashed and unwrapped.
    ByHash,
}

impl Run {
    /// `None` for a leaf that is read alone: a large one, or one that is at hand.
    fn of(leaf: Leaf, located: &Located, file_at: u64) -> Option<Run> {
        let extent = located.extent().filter(|extent| extent.length > 0 && extent.length <= UNIT_BYTES / 2)?;
        let proved = if leaf.cid.codec() == codec::RAW && located.bare_extent().is_some() { Proved::ByRow } else { Proved::ByHash };
        let leaf = RunLeaf { leaf, located: located.clone(), at: 0..extent.length };
        Some(Run { extent: extent.clone(), leaves: vec![leaf], window_index: file_at / UNIT_BYTES, proved })
    }

    /// Takes the leaf of another one in, or gives it back.
    fn join(&mut self, next: Run) -> Option<Run> {
        let Extent { content, start, length } = &self.extent;
        let shift = next.extent.start.wrapping_sub(*start);
        let fits = next.extent.content.root == content.root
            && (next.window_index, next.proved) == (self.window_index, self.proved)
            && (*length..=length + RUN_GAP_BYTES_MAX).contains(&shift)
            && shift + next.extent.length <= RUN_BYTES_MAX;
        if !fits {
            return Some(next);
        }
        self.extent.length = shift + next.extent.length;
        let moved = |leaf: RunLeaf| RunLeaf { at: leaf.at.start + shift..leaf.at.end + shift, ..leaf };
        self.leaves.extend(next.leaves.into_iter().map(moved));
        None
    }
}

impl Store {
    /// Bytes `range` of a file. The range must lie within the file. `window`: does a reply begin with them?
    pub fn stream_file(&self, file: FileSource, range: Range<u64>, window: Window, trace: Arc<Trace>) -> BodyStream {
        if let Err(error) = self.inner.denied.allow(&file.cid) {
            return stream::once(std::future::ready(Err(error))).boxed();
        }
        if let Some(body) = self.leaf_at_hand(&file, &range, &trace) {
            return stream::once(std::future::ready(Ok(body))).boxed();
        }
        let plan = FilePlan::new(self.clone(), file, range, window, trace.clone());
        self.read_ahead(plan.reads(), trace)
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
    pub fn stream_skyfile(
        &self,
        skyfile: &Arc<OpenSkyfile>,
        file: Range<u64>,
        range: Range<u64>,
        window: Window,
        trace: Arc<Trace>,
    ) -> BodyStream {
        let bytes = file.start + range.start..file.start + range.end;
        let extent = Extent { content: skyfile.content.clone(), start: file.start, length: file.end - file.start };
        let reads = self.inner.contents.cut(&extent, range, window);
        let windows = std::iter::once(window).chain(std::iter::repeat(Window::Later));
        let reads = reads.into_iter().zip(windows).map(move |(range, window)| Ok(Read::Extent(extent.clone(), range, window)));
        let body = self.read_ahead(stream::iter(reads).boxed(), trace.clone());
        if !self.inner.denied.has_rules() {
            return body;
        }
        // Asked first: an error is told before a byte is.
        let (inner, root, lies) = (self.inner.clone(), skyfile.root, skyfile.content.lies(bytes));
        let allowed = async move { inner.allow_stretch(&root, &lies, &trace).await };
        stream::once(allowed).filter_map(|allowed| std::future::ready(allowed.err().map(Err))).chain(body).boxed()
    }

    fn read_ahead(&self, reads: BoxStream<'static, Result<Read, StoreError>>, trace: Arc<Trace>) -> BodyStream {
        let ahead =
            Ahead { store: self.clone(), trace, reads: Some(reads), flying: FuturesOrdered::new(), flying_bytes: 0, begun: false };
        let parts = stream::unfold(ahead, |mut ahead| async move { Some((ahead.next().await?, ahead)) });
        let parts = parts.flat_map(|parts| match parts {
            Ok(parts) => stream::iter(parts.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        });
        parts.boxed()
    }

    async fn read(&self, read: Read, trace: &Arc<Trace>) -> Parts {
        match read {
            Read::Here(bytes) => {
                trace.body(Tier::Memory, bytes.len() as u64);
                Ok(vec![bytes])
            }
            Read::Extent(extent, range, window) => Ok(vec![self.inner.contents.body(&extent, range, window, trace).await?]),
            Read::Leaf(leaf, range, window) => {
                let block = self.inner.block(&leaf.cid, window, trace).await?;
                self.leaf_data(&leaf, &block, range, trace).await
            }
            Read::Run(run) => self.read_run(&run, trace).await,
        }
    }

    async fn read_run(&self, run: &Run, trace: &Arc<Trace>) -> Parts {
        let stretch = |leaf: &RunLeaf| leaf.at.start as usize..leaf.at.end as usize;
        if run.proved == Proved::ByRow {
            let body = self.inner.contents.run(&run.extent, Window::Later, trace).await?;
            return Ok(run.leaves.iter().map(|leaf| body.slice(stretch(leaf))).collect());
        }
        let proves = |body: &[u8], run: &RunLeaf| run.located.proves(&run.leaf.cid, &body[stretch(run)]);
        let prove = |body: &[u8]| run.leaves.iter().all(|leaf| proves(body, leaf));
        let (body, proof) = self.inner.contents.body_proved(&run.extent, &prove, Window::Later, trace).await?;
        let mut parts = Vec::with_capacity(run.leaves.len());
        for RunLeaf { leaf, located, at } in &run.leaves {
            let bytes = body.slice(at.start as usize..at.end as usize);
            if proof == Proof::Missing && !located.proves(&leaf.cid, &bytes) {
                return Err(StoreError::WrongBlock(Box::new(leaf.cid)));
            }
            parts.extend(self.leaf_data(leaf, &located.wrap(bytes), 0..leaf.data_bytes, trace).await?);
        }
        Ok(parts)
    }

    /// The wanted bytes of the file in a block that was checked.
    async fn leaf_data(&self, leaf: &Leaf, block: &Bytes, wanted: Range<u64>, trace: &Arc<Trace>) -> Parts {
        let (data, size) = match parse_node(&leaf.cid, block)? {
            TreeNode::Raw(data) => {
                let size = data.len() as u64;
                (data, size)
            }
            TreeNode::File(node) if !node.children.is_empty() && node.size == leaf.data_bytes => {
                return self.below(leaf, node, wanted, trace).await;
            }
            TreeNode::File(node) => (node.inline.clone(), node.size),
            _ => return Err(StoreError::BadFile("a leaf of the file is not a leaf")),
        };
        if size != leaf.data_bytes || data.len() as u64 != size {
            return Err(StoreError::BadFile("a leaf of the file has another length than its parent says"));
        }
        Ok(vec![data.slice(wanted.start as usize..wanted.end as usize)])
    }

    /// It was no leaf, but a node that is longer than the file below it: leaves of a few bytes have longer links than themselves.
    fn below<'a>(&'a self, leaf: &Leaf, node: Arc<FileNode>, wanted: Range<u64>, trace: &'a Arc<Trace>) -> BoxFuture<'a, Parts> {
        let mut plan = FilePlan::empty(self.clone(), wanted, Window::Later, trace.clone());
        plan.visit(&node, 0, leaf.depth);
        self.read_ahead(plan.reads(), trace.clone()).try_collect().boxed()
    }
}

/// What a read brings, in order: the leaves of a run come one by one.
type Parts = Result<Vec<Bytes>, StoreError>;
/// A read under way: its bytes, and what came.
type Flying = BoxFuture<'static, (u64, Parts)>;

/// Reads on their way, in order, within bounds of bytes and number.
struct Ahead {
    store: Store,
    trace: Arc<Trace>,
    /// `None` after the last one.
    reads: Option<BoxStream<'static, Result<Read, StoreError>>>,
    flying: FuturesOrdered<Flying>,
    flying_bytes: u64,
    /// Something was given out.
    begun: bool,
}

impl Ahead {
    async fn next(&mut self) -> Option<Parts> {
        loop {
            let room = self.flying_bytes < READ_AHEAD_BYTES && self.flying.len() < READS_AHEAD_MAX;
            tokio::select! {
                biased;
                // Where the next read is may have to be asked of hosts: what is under way goes on meanwhile.
                read = next_of(&mut self.reads), if room && self.reads.is_some() => match read {
                    // Known before the first byte is out: the reply's status can still say so.
                    Some(Err(error)) if !self.begun => {
                        self.reads = None;
                        self.flying.clear();
                        return Some(Err(error));
                    }
                    Some(read) => self.start(read).await,
                    None => self.reads = None,
                },
                Some((bytes, parts)) = self.flying.next(), if !self.flying.is_empty() => {
                    self.flying_bytes -= bytes;
                    self.begun = true;
                    return Some(parts);
                }
                else => return None,
            }
        }
    }

    async fn start(&mut self, read: Result<Read, StoreError>) {
        let bytes = read.as_ref().map_or(0, Read::bytes);
        self.flying_bytes += bytes;
        if read.is_err() {
            self.reads = None;
        }
        let (store, trace) = (self.store.clone(), self.trace.clone());
        let mut reading: Flying = Box::pin(async move {
            let parts = match read {
                Ok(read) => store.read(read, &trace).await,
                Err(error) => Err(error),
            };
            (bytes, parts)
        });
        self.flying.push_back(match futures::poll!(&mut reading) {
            Poll::Ready(done) => Box::pin(std::future::ready(done)),
            // A task of its own goes on while the client takes nothing: hosts are not made to wait for it, nor is their
            // answer's time counted wrong. Dropping the stream stops it.
            Poll::Pending => {
                let task = AbortOnDropHandle::new(tokio::spawn(reading));
                Box::pin(async move { task.await.expect("reading a body does not panic") })
            }
        });
    }
}

async fn next_of<T>(reads: &mut Option<BoxStream<'static, T>>) -> Option<T> {
    reads.as_mut()?.next().await
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
    /// Of the next read.
    window: Window,
}

impl FilePlan {
    fn new(store: Store, file: FileSource, range: Range<u64>, window: Window, trace: Arc<Trace>) -> FilePlan {
        let mut plan = FilePlan::empty(store, range, window, trace);
        if is_single_leaf(&file) {
            plan.open.push((FileChild { cid: file.cid, start: 0, len: file.node.size }, 0, 0));
        } else {
            plan.visit(&file.node, 0, 0);
        }
        plan
    }

    fn empty(store: Store, range: Range<u64>, window: Window, trace: Arc<Trace>) -> FilePlan {
        FilePlan { store, trace, range, open: Vec::new(), ready: VecDeque::new(), window }
    }

    fn reads(self) -> BoxStream<'static, Result<Read, StoreError>> {
        stream::try_unfold(self, |mut plan| async move { Ok(plan.next().await?.map(|read| (read, plan))) }).boxed()
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
            // A run is not asked for while it may still grow.
            let grows = matches!(self.ready.back(), Some(Read::Run(_))) && !self.open.is_empty();
            if self.ready.len() > usize::from(grows) {
                return Ok(self.ready.pop_front());
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
        self.store.inner.denied.allow(&child.cid)?;
        if child.cid.hash().code() == hash::IDENTITY {
            if child.cid.codec() == codec::RAW {
                let leaf = Leaf { cid: child.cid, data_bytes: child.len, depth };
                self.ready.push_back(Read::Leaf(leaf, wanted, Window::Later));
                return Ok(());
            }
        } else {
            let located = self.store.inner.locate(child.cid.hash(), &self.trace).await?;
            // A block as long as the file below it holds that itself; of any other one the links are wanted first.
            if child.cid.codec() == codec::RAW || located.length() >= child.len {
                let leaf = Leaf { cid: child.cid, data_bytes: child.len, depth };
                return self.plan_leaf(leaf, start, wanted, &located);
            }
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

    fn plan_leaf(&mut self, leaf: Leaf, start: u64, wanted: Range<u64>, located: &Located) -> Result<(), StoreError> {
        let is_raw = leaf.cid.codec() == codec::RAW;
        if is_raw && located.length() != leaf.data_bytes {
            return Err(StoreError::BadFile("a leaf of the file has another length than its parent says"));
        }
        let window = std::mem::replace(&mut self.window, Window::Later);
        let contents = &self.store.inner.contents;
        let bare = located.bare_extent().filter(|_| is_raw);
        let at_hand = bare.is_some_and(|extent| contents.holds(extent));
        if window == Window::Later
            && wanted == (0..leaf.data_bytes)
            && !at_hand
            && let Some(run) = Run::of(leaf, located, start)
        {
            let apart = match self.ready.back_mut() {
                Some(Read::Run(before)) => before.join(run),
                _ => Some(run),
            };
            self.ready.extend(apart.map(Read::Run));
            return Ok(());
        }
        match bare {
            Some(extent) => {
                let cut = contents.cut(extent, wanted, window);
                let windows = std::iter::once(window).chain(std::iter::repeat(Window::Later));
                self.ready.extend(cut.into_iter().zip(windows).map(|(range, window)| Read::Extent(extent.clone(), range, window)));
            }
            None => self.ready.push_back(Read::Leaf(leaf, wanted, window)),
        }
        Ok(())
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (both.start < both.end).then_some(both)
}
