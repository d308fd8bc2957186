//! How long a client may take: bodies that hardly move are cut, and so are connections on which nothing is asked.
//!
//! A reply holds its permit until its last byte is in the socket, wherever in hyper or h2 that byte waits; so a client
//! that does not read would hold it for ever. It is judged by the bytes that went out, not by those that were asked of
//! the body: HTTP/2 asks for nothing while its window is closed. Time in which this side has nothing to send does not
//! count. An HTTP/2 stream that is too slow is reset; once all its bytes are handed over to its connection there is
//! nothing left to reset, and the connection is cut, as one of HTTP/1.1 is.
//!
//! Words: *line* = one connection; *passage* = one reply's body on its way out.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::services::UploadStream;

/// What a reply is judged over. Long, since the kernel's buffer to a slow client empties in steps of a third of it, which
/// at 3 KiB/s may take a minute or two.
pub const REPLY_WINDOW: Duration = Duration::from_secs(180);
/// What all replies of one connection together have to move in a window: 1 KiB/s, a third of what the slowest lines of
/// telephones give. Each reply has to move its share, since they share one line.
pub const REPLY_BYTES_MIN: u64 = 180 << 10;
/// The same for what is sent to this gateway; only time spent waiting for the sender counts. Shorter and twice as much,
/// since an upload holds memory for slabs: 2 KiB/s is what the slowest lines send.
pub const UPLOAD_WINDOW: Duration = Duration::from_secs(60);
pub const UPLOAD_BYTES_MIN: u64 = 128 << 10;
/// From the connection to the end of its first head. Whoever connects has something to ask; browsers that connect in
/// advance come again.
pub const FIRST_HEAD_MAX: Duration = Duration::from_secs(30);
/// A connection without a request for so long is asked to end: longer than the idle gaps of browsers' pools.
pub const IDLE_MAX: Duration = Duration::from_secs(75);
/// Between being asked to end and being cut. A client that is there answers within seconds.
const FAREWELL_MAX: Duration = Duration::from_secs(30);
/// Between two looks at a connection: the limits above are kept to this.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What is to be done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It gets no more requests, and ends when those under way have.
    AskToEnd,
    Cut(Why),
}

/// Why a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    NoHead,
    SlowReader,
    /// It was asked to end, and did not.
    Idle,
}

/// One connection: what it has under way.
pub struct Line {
    opened: Instant,
    /// Requests under way, from their head to the last byte of their reply.
    requests: AtomicUsize,
    asked: AtomicBool,
    passages: Mutex<Vec<Arc<Passage>>>,
}

/// One reply on its way. Held by the body and by each of its pieces that is not in the socket yet.
pub struct Passage {
    moved_bytes: AtomicU64,
    /// The body has nothing to send yet: that is not the client's fault.
    ours: AtomicBool,
    /// It was so since the last look.
    was_ours: AtomicBool,
    stream: Option<Arc<StreamCut>>,
    window: Mutex<Window>,
}

struct Window {
    begun: Instant,
    moved_before: u64,
}

/// A request under way; its end is noted when this is dropped.
pub struct Under {
    line: Arc<Line>,
}

impl Line {
    pub fn new() -> Arc<Line> {
        Arc::new(Line {
            opened: Instant::now(),
            requests: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            passages: Mutex::default(),
        })
    }

    /// A head has come in.
    pub fn request(self: &Arc<Self>) -> Under {
        self.asked.store(true, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Under { line: self.clone() }
    }

    /// Ends when something is to be done with this connection. Streams that are too slow are cut on the way.
    pub async fn watch(&self) -> Verdict {
        let mut idle_since = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = Instant::now();
            if !self.asked.load(Ordering::Relaxed) && now - self.opened >= FIRST_HEAD_MAX {
                return Verdict::Cut(Why::NoHead);
            }
            if self.requests.load(Ordering::Relaxed) > 0 {
                idle_since = None;
            } else if now - *idle_since.get_or_insert(now) >= IDLE_MAX {
                return Verdict::AskToEnd;
            }
            if let Some(why) = self.judge(now) {
                return Verdict::Cut(why);
            }
        }
    }

    /// The same once the connection was asked to end.
    pub async fn watch_farewell(&self) -> Verdict {
        let mut idle_since = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = Instant::now();
            if self.requests.load(Ordering::Relaxed) > 0 {
                idle_since = None;
            } else if now - *idle_since.get_or_insert(now) >= FAREWELL_MAX {
                return Verdict::Cut(Why::Idle);
            }
            if let Some(why) = self.judge(now) {
                return Verdict::Cut(why);
            }
        }
    }

    /// Looks at all replies under way.
    fn judge(&self, now: Instant) -> Option<Why> {
        let passages = self.passages();
        let share = REPLY_BYTES_MIN / (passages.len() as u64).max(1);
        let slow = passages.iter().filter(|passage| passage.is_slow(now, share));
        // All of them, not the first alone: `any` would leave the others for the next look.
        let out_of_reach = slow.filter(|passage| !passage.reset()).count();
        (out_of_reach > 0).then_some(Why::SlowReader)
    }

    fn passages(&self) -> MutexGuard<'_, Vec<Arc<Passage>>> {
        self.passages.lock().expect("no panic under this lock")
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.line.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Passage {
    fn new() -> Passage {
        Passage {
            moved_bytes: AtomicU64::new(0),
            ours: AtomicBool::new(false),
            was_ours: AtomicBool::new(false),
            stream: STREAM.try_with(Arc::clone).ok(),
            window: Mutex::new(Window { begun: Instant::now(), moved_before: 0 }),
        }
    }

    fn is_slow(&self, now: Instant, bytes_min: u64) -> bool {
        let moved = self.moved_bytes.load(Ordering::Relaxed);
        let mut window = self.window.lock().expect("no panic under this lock");
        if self.ours.load(Ordering::Relaxed) || self.was_ours.swap(false, Ordering::Relaxed) {
            *window = Window { begun: now, moved_before: moved };
        } else if now - window.begun >= REPLY_WINDOW {
            if moved - window.moved_before < bytes_min {
                return true;
            }
            *window = Window { begun: now, moved_before: moved };
        }
        false
    }

    /// Resets its HTTP/2 stream; false if it has none that could be.
    fn reset(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.cut())
    }

    fn set_ours(&self, ours: bool) {
        if self.ours.load(Ordering::Relaxed) != ours {
            self.ours.store(ours, Ordering::Relaxed);
            self.was_ours.store(true, Ordering::Relaxed);
        }
    }
}

/// What all pieces of one reply hold. The passage leaves its line with the last of them.
struct Hold<H> {
    passage: Arc<Passage>,
    under: Under,
    /// Given back at the same time.
    _held: H,
}

impl<H> Drop for Hold<H> {
    fn drop(&mut self) {
        let mut passages = self.under.line.passages();
        if let Some(at) = passages.iter().position(|passage| Arc::ptr_eq(passage, &self.passage)) {
            passages.swap_remove(at);
        }
    }
}

/// A body whose bytes are counted when they leave.
pub struct Paced<B, H> {
    body: B,
    hold: Arc<Hold<H>>,
}

/// A piece of such a body, until it is in the socket.
pub struct Piece<H> {
    bytes: Bytes,
    hold: Arc<Hold<H>>,
}

impl<B, H> Paced<B, H> {
    /// `held` is given back when the last byte is out, or the reply is given up.
    pub fn new(body: B, under: Under, held: H) -> Paced<B, H> {
        let passage = Arc::new(Passage::new());
        under.line.passages().push(passage.clone());
        Paced { body, hold: Arc::new(Hold { passage, under, _held: held }) }
    }
}

impl<B, H> Body for Paced<B, H>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Piece<H>;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece<H>>, B::Error>>> {
        let poll = Pin::new(&mut self.body).poll_frame(context);
        self.hold.passage.set_ours(poll.is_pending());
        let hold = &self.hold;
        poll.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| Piece { bytes, hold: hold.clone() }))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<H> Piece<H> {
    fn count(&self, bytes: usize) {
        self.hold.passage.moved_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl<H> Buf for Piece<H> {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        self.count(bytes);
    }
}

tokio::task_local! {
    /// Of the HTTP/2 stream that the running task serves.
    static STREAM: Arc<StreamCut>;
}

/// The way to reset a stream from outside: its task is dropped, and h2 resets what was not ended.
struct StreamCut {
    notice: Notify,
    ended: AtomicBool,
}

impl StreamCut {
    fn cut(&self) -> bool {
        self.notice.notify_one();
        !self.ended.load(Ordering::Acquire)
    }
}

/// Runs the tasks of HTTP/2 streams.
#[derive(Clone, Copy)]
pub struct Streams;

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let stream = Arc::new(StreamCut { notice: Notify::new(), ended: AtomicBool::new(false) });
        tokio::spawn(STREAM.scope(stream.clone(), async move {
            tokio::select! {
                biased;
                _ = task => {}
                () = stream.notice.notified() => tracing::debug!("a stream was too slow and is reset"),
            }
            stream.ended.store(true, Ordering::Release);
        }));
    }
}

/// A request's body that fails when its sender is too slow.
pub fn watch_upload<S, E>(body: S) -> UploadStream
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = body.map(|part| part.map_err(io::Error::other)).boxed();
    Upload { body, waited: Duration::ZERO, came_bytes: 0, waiting: None }.boxed()
}

struct Upload {
    body: UploadStream,
    /// In this window, for the sender.
    waited: Duration,
    came_bytes: u64,
    waiting: Option<Waiting>,
}

struct Waiting {
    since: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl Stream for Upload {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let poll = self.body.as_mut().poll_next(context);
        let this = &mut *self;
        if let Poll::Ready(part) = poll {
            if let Some(waiting) = this.waiting.take() {
                this.waited += waiting.since.elapsed();
            }
            this.came_bytes += part.as_ref().and_then(|part| part.as_ref().ok()).map_or(0, |part| part.len() as u64);
            if this.came_bytes >= UPLOAD_BYTES_MIN {
                (this.waited, this.came_bytes) = (Duration::ZERO, 0);
            }
            return Poll::Ready(part);
        }
        let left = UPLOAD_WINDOW.saturating_sub(this.waited);
        let waiting =
            this.waiting.get_or_insert_with(|| Waiting { since: Instant::now(), alarm: Box::pin(tokio::time::sleep(left)) });
        std::task::ready!(waiting.alarm.as_mut().poll(context));
        Poll::Ready(Some(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("less than {} KiB came in {} seconds", UPLOAD_BYTES_MIN >> 10, UPLOAD_WINDOW.as_secs()),
        ))))
    }
}

#[cfg(test)]
mod tests;
