//! One storage host, over any object store: what the rest of the renter talks to.
//!
//! **Does**: every call with time-outs (the table below), answers that are never longer than asked for, a state that is true within a minute, and
//! the figures by which hosts are chosen. **Hides**: the object store's trait and its errors. **Must never know**: sectors, placement, other hosts. It does not
//! retry: one layer above does, with a budget. Every call may be dropped at any time.
//!
//! **State**: down until its marker was read and is the right one, and again when it is gone, foreign, or the host stops answering; then calls fail at
//! once, and the marker is tried again every few seconds. Read-only while it has no space or refuses writes; puts are still tried, because the store knows better.

mod hints;
mod latency;

use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind},
    ops::Range,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutOptions, path::Path};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    folder::{FolderError, Space},
    marker::{self, MarkerError, PortalId},
};

use hints::Hints;

pub use latency::{Latency, Operation, Prediction, SizeClass, Spread};

/// The time one kind of call may take.
struct Limits {
    /// Until the store begins to answer.
    first_byte: Duration,
    /// Between two parts of an answer.
    stall: Duration,
    /// All of it.
    whole: Duration,
}

// The outer bounds: readers hedge long before. A sleeping disk needs up to 10 s to spin up and a far bucket under load a few seconds to
// begin, so first bytes get 15 s; a stream that gives nothing for 5 s will not end well; a piece of 4 MiB in 30 s is 140 KiB/s, below which a host is of no use.
const GET: Limits = limits(15, 5, 30);
const SIZE: Limits = limits(15, 5, 15);
/// A page of keys may make a cold disk read many folders.
const LIST: Limits = limits(30, 15, 60);
const DELETE: Limits = limits(15, 5, 15);
/// Somebody waits for a record: better to go on without this host.
const PUT_SMALL: Limits = limits(15, 5, 15);
/// A sector is 4 MiB, up to 30 may be on their way to the same disk.
const PUT_SECTOR: Limits = limits(60, 5, 60);
/// Looking at the marker decides whether a host is up at start: no longer than one may wait then.
const MARKER: Limits = limits(10, 5, 10);

const fn limits(first_byte_s: u64, stall_s: u64, whole_s: u64) -> Limits {
    Limits {
        first_byte: Duration::from_secs(first_byte_s),
        stall: Duration::from_secs(stall_s),
        whole: Duration::from_secs(whole_s),
    }
}

/// The marker is looked at this often: an unmounted disk is known within a minute.
pub const MARKER_EVERY: Duration = Duration::from_secs(60);
/// And this often while something is wrong.
pub const MARKER_RETRY: Duration = Duration::from_secs(5);
/// Calls in a row that fail or take too long, after which a host counts as down: enough not to be chance, few enough to stop waiting.
const FAILURES_IN_A_ROW_MAX: u32 = 8;
/// Begun puts that none of has ended for this long make the next put a call with a time-out. Syncs of a working disk take less.
const BEGUN_STALL_MAX: Duration = Duration::from_secs(2);
/// Looks at the marker in a row that fail for no clear reason before a host counts as down.
const MARKER_MISSES_MAX: u32 = 2;

/// An answer that nobody waits for any more is read to its end if no more than this is left, but no longer than [`DRAIN_MAX`].
pub(super) const DRAIN_MAX_BYTES: u64 = 64 << 10;
pub(super) const DRAIN_MAX: Duration = Duration::from_millis(250);

/// 128 random bits, made once and kept in the host's marker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub [u8; 16]);

impl HostId {
    pub fn random() -> HostId {
        HostId(rand::random())
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "HostId({self})")
    }
}

impl FromStr for HostId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<HostId, hex::FromHexError> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)?;
        Ok(HostId(id))
    }
}

/// Why a host is down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    #[error("not looked at yet")]
    NotCheckedYet,
    #[error("it does not answer")]
    NotAnswering,
    #[error("too many calls in a row failed, last: {0}")]
    Failing(String),
    /// What [`MarkerError`] says.
    #[error("{0}")]
    Marker(String),
}

/// Whether a host can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostState {
    Up,
    /// Reads and removals work.
    ReadOnly,
    Down {
        reason: DownReason,
    },
}

/// Why a call to a host failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HostError {
    #[error("there is no such object")]
    NotFound,
    #[error("the host is down: {0}")]
    Down(DownReason),
    #[error("the host takes no writes")]
    ReadOnly,
    #[error("the host is full")]
    Full,
    #[error("the host took too long")]
    TimedOut,
    #[error("the object is longer than the limit")]
    TooLarge,
    /// It answered something else than was asked for; the host is to blame, asking it again does not help.
    #[error("the host answered wrongly: {0}")]
    Misanswered(&'static str),
    /// No object can have this path; our own mistake.
    #[error("no object path: {0}")]
    BadPath(String),
    /// May go better next time.
    #[error("the host failed: {0}")]
    Transient(#[source] Arc<object_store::Error>),
}

/// What of an object is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadRange {
    /// All of it, refused if longer than `max` bytes.
    Whole { max: u64 },
    /// These bytes. The answer is shorter only where the object ends; an object that ends before the first of them is an error.
    Range(Range<u64>),
    /// The first bytes, fewer if the object is shorter.
    Prefix(u64),
}

/// How long a put may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// A record: somebody waits for it.
    Small,
    /// A piece of a slab or a base sector.
    Sector,
}

/// One line of a host's latencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatencyRow {
    pub operation: Operation,
    pub size: SizeClass,
    pub prediction: Prediction,
}

/// What is known of a host.
#[derive(Clone, Debug)]
pub struct HostHealth {
    pub state: HostState,
    /// Bytes of the objects on it, if it counts them and has finished counting.
    pub used_bytes: Option<u64>,
    /// Free bytes, if it knows.
    pub free_bytes: Option<u64>,
    pub latency: Vec<LatencyRow>,
    pub calls: u64,
    /// Calls that failed for the host's fault; time-outs are among them.
    pub failures: u64,
    pub time_outs: u64,
    /// Answers that did not pass the check.
    pub wrong_pieces: u64,
    pub in_flight: u32,
}

/// What a store near by can do for small objects beyond the common trait: list a folder and read its first object in one step,
/// which is what a record's newest version takes, and be told what to do without anybody waiting. Nobody else writes to it:
/// that is why it can know what is in it.
#[async_trait]
pub trait Near: fmt::Debug + Send + Sync {
    /// What is under a folder, if it is known without waiting for anything.
    fn peek(&self, folder: &str, keys_max: usize, bytes_max: u64) -> Option<Peeked>;

    /// The same with waiting.
    async fn look(&self, folder: &str, keys_max: usize, bytes_max: u64) -> object_store::Result<Peeked>;

    /// Takes a put if it can do so without waiting; `done` is then called once, on whatever thread, with how it ended.
    fn begin_put(&self, key: &Arc<str>, bytes: &Bytes, done: PutDone) -> Begun;

    /// Takes a removal that nobody waits for, and that a crash may undo.
    fn begin_remove(&self, key: &str) -> Begun;
}

/// Called with the end of a put. If it is dropped instead, the put was not taken.
pub type PutDone = Box<dyn FnOnce(object_store::Result<()>) + Send>;

/// Whether something was taken without waiting. If not, ask as usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Begun {
    Yes,
    No,
}

/// The first keys under a folder, in order, and the bytes of the first of them, unless they are too many or gone by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    pub keys: Vec<String>,
    pub first: Option<Bytes>,
}

/// Which nodes of a portal can write to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// This process alone, by a lock.
    ThisNode,
    AnyNode,
}

/// What makes a host.
#[derive(Clone, Debug)]
pub struct HostOptions {
    pub id: HostId,
    /// The portal it has to belong to.
    pub portal: PortalId,
    /// As configured; for people.
    pub url: String,
    /// A folder's [`Space`], where there is one.
    pub space: Option<Arc<Space>>,
    /// The store itself, if it is near.
    pub near: Option<Arc<dyn Near>>,
    pub writers: Writers,
}

/// A host. Cheap to clone; all clones are one host.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: HostOptions,
    store: Arc<dyn ObjectStore>,
    gate: Mutex<Gate>,
    latency: Latency,
    /// First keys of folders, where the store is far.
    hints: Hints,
    calls: AtomicU64,
    failures: AtomicU64,
    time_outs: AtomicU64,
    wrong_pieces: AtomicU64,
    in_flight: AtomicU32,
    failures_in_a_row: AtomicU32,
    /// Puts that were begun and have not ended.
    begun: AtomicU32,
    /// When the last of them ended, or the first one began, in ms since `born`.
    begun_moved_ms: AtomicU64,
    born: Instant,
    /// Gets given up after unusually long, none answered between them.
    unanswered_in_a_row: AtomicU32,
    went_down: Notify,
}

#[derive(Debug)]
struct Gate {
    down: Option<DownReason>,
    refuses_writes: bool,
    marker_misses: u32,
}

impl Host {
    /// A host that is down until [`Host::check`] or [`Host::watch`] has seen its marker. Touches nothing yet.
    pub fn new(store: Arc<dyn ObjectStore>, options: HostOptions) -> Host {
        let gate = Gate { down: Some(DownReason::NotCheckedYet), refuses_writes: false, marker_misses: 0 };
        Host(Arc::new(Inner {
            options,
            store,
            gate: Mutex::new(gate),
            latency: Latency::new(),
            hints: Hints::default(),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            time_outs: AtomicU64::new(0),
            wrong_pieces: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            failures_in_a_row: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            begun_moved_ms: AtomicU64::new(0),
            born: Instant::now(),
            unanswered_in_a_row: AtomicU32::new(0),
            went_down: Notify::new(),
        }))
    }

    /// A host over a store without a marker, up from the start.
    #[cfg(test)]
    pub fn up(id: HostId, store: Arc<dyn ObjectStore>) -> Host {
        let options = HostOptions {
            id,
            portal: PortalId([0; 32]),
            url: format!("test:{id}"),
            space: None,
            near: None,
            writers: Writers::ThisNode,
        };
        let host = Host::new(store, options);
        host.0.gate().down = None;
        host
    }

    pub fn id(&self) -> HostId {
        self.0.options.id
    }

    pub fn url(&self) -> &str {
        &self.0.options.url
    }

    pub fn writers(&self) -> Writers {
        self.0.options.writers
    }

    /// Stores an object, durably by the store's own promise.
    pub async fn put(&self, path: &str, bytes: Bytes, deadline: Deadline) -> Result<(), HostError> {
        let limits = match deadline {
            Deadline::Small => &PUT_SMALL,
            Deadline::Sector => &PUT_SECTOR,
        };
        let size = SizeClass::of(bytes.len() as u64);
        let location = parse(path)?;
        let put = async {
            let put = self.0.store.put_opts(&location, bytes.into(), PutOptions::default());
            put.await.map(|_| ()).map_err(classify)
        };
        let put = self.call(Operation::Put, size, limits, put).await;
        if put.is_ok() && self.0.options.near.is_none() {
            self.0.hints.written(path);
        }
        put
    }

    /// Reads an object or a part of it: never more than asked for.
    pub async fn get(&self, path: &str, range: ReadRange) -> Result<Bytes, HostError> {
        let location = parse(path)?;
        let (wanted, max) = match &range {
            ReadRange::Whole { max } => (None, *max),
            ReadRange::Range(range) => (Some(range.clone()), range.end.saturating_sub(range.start)),
            ReadRange::Prefix(len) => (Some(0..*len), *len),
        };
        if wanted.as_ref().is_some_and(|wanted| wanted.is_empty()) {
            return Ok(Bytes::new());
        }
        let get = self.read(&location, wanted, max);
        self.call(Operation::Get, SizeClass::of(max), &GET, get).await
    }

    /// Length of an object in bytes.
    pub async fn size(&self, path: &str) -> Result<u64, HostError> {
        let location = parse(path)?;
        let size = async { self.0.store.head(&location).await.map(|meta| meta.size).map_err(classify) };
        self.call(Operation::Size, SizeClass::Small, &SIZE, size).await
    }

    /// Removes an object; it is no error if there is none.
    pub async fn delete(&self, path: &str) -> Result<(), HostError> {
        let location = parse(path)?;
        let delete = async {
            match self.0.store.delete(&location).await.map_err(classify) {
                Err(HostError::NotFound) => Ok(()),
                other => other,
            }
        };
        self.call(Operation::Delete, SizeClass::Small, &DELETE, delete).await
    }

    /// The first `max_keys` objects under a prefix of whole parts, in key order, with their lengths.
    pub async fn list(&self, prefix: &str, max_keys: usize) -> Result<Vec<(String, u64)>, HostError> {
        self.list_after(prefix, None, max_keys).await
    }

    /// Like [`Host::list`], from after a key on: the last key of one answer asks for the next.
    pub async fn list_after(&self, prefix: &str, after: Option<&str>, max_keys: usize) -> Result<Vec<(String, u64)>, HostError> {
        let prefix = if prefix.is_empty() { None } else { Some(parse(prefix)?) };
        let after = after.map(parse).transpose()?;
        let list = self.read_list(prefix, after, max_keys);
        self.call(Operation::List, SizeClass::Small, &LIST, list).await
    }

    /// What is under a folder, if an answer is at hand. Otherwise, and while the host is down, ask as usual.
    pub fn peek(&self, folder: &str, keys_max: usize, bytes_max: u64) -> Option<Peeked> {
        let near = self.0.options.near.as_ref()?;
        if self.0.gate().down.is_some() {
            return None;
        }
        let peeked = near.peek(folder, keys_max, bytes_max)?;
        self.0.calls.fetch_add(1, Relaxed);
        Some(peeked)
    }

    /// The first keys under a folder, and the first object where that takes no second round.
    ///
    /// A store that is far has no call for both. So the key that was first the last time is read beside the list: if it still is,
    /// one round was enough. If not, nobody waits for it, and its bytes count for nothing.
    pub async fn look(&self, folder: &str, keys_max: usize, bytes_max: u64) -> Result<Peeked, HostError> {
        let Some(near) = &self.0.options.near else { return self.look_far(folder, keys_max, bytes_max).await };
        let look = async { near.look(folder, keys_max, bytes_max).await.map_err(classify) };
        self.call(Operation::List, SizeClass::Small, &LIST, look).await
    }

    async fn look_far(&self, folder: &str, keys_max: usize, bytes_max: u64) -> Result<Peeked, HostError> {
        let hint = self.0.hints.of(folder);
        let list = self.list(folder, keys_max);
        let read = async {
            match &hint {
                Some(key) => self.get(key, ReadRange::Whole { max: bytes_max }).await.ok(),
                None => None,
            }
        };
        tokio::pin!(list, read);
        let mut first = None;
        let listed = tokio::select! {
            listed = &mut list => listed?,
            // It may be there before the list is.
            read = &mut read => {
                first = Some(read);
                list.await?
            }
        };
        let keys: Vec<String> = listed.into_iter().map(|(key, _)| key).collect();
        let is_first = hint.is_some() && keys.first() == hint.as_ref();
        self.0.hints.note(folder, keys.first());
        let first = match first {
            _ if !is_first => None,
            Some(read) => read,
            None => read.await,
        };
        Ok(Peeked { keys, first })
    }

    /// Puts a small object like [`Host::put`], if the host takes it without waiting: then `told` hears how it ended, be it late.
    /// Not while puts begun before have been waiting for [`BEGUN_STALL_MAX`]: a call with a time-out says what is wrong then.
    pub fn begin_put(&self, path: &Arc<str>, bytes: &Bytes, told: impl FnOnce(Result<(), HostError>) + Send + 'static) -> Begun {
        let Some(near) = &self.0.options.near else { return Begun::No };
        if self.0.gate().down.is_some() || self.0.begun_stall() {
            return Begun::No;
        }
        let (host, started, size) = (self.0.clone(), Instant::now(), SizeClass::of(bytes.len() as u64));
        let done = Box::new(move |result: object_store::Result<()>| {
            let result = result.map_err(classify);
            host.begun_ended();
            host.finished(Operation::Put, size, started, &result);
            told(result);
        });
        self.0.begun_started();
        let begun = near.begin_put(path, bytes, done);
        match begun {
            Begun::Yes => drop(self.0.calls.fetch_add(1, Relaxed)),
            Begun::No => self.0.begun_ended(),
        }
        begun
    }

    /// Removes an object some time soon, if the host takes that without waiting. Nobody hears of it, and a crash may undo it.
    pub fn begin_remove(&self, path: &str) -> Begun {
        match &self.0.options.near {
            Some(near) if self.0.gate().down.is_none() => near.begin_remove(path),
            _ => Begun::No,
        }
    }

    /// What to expect of a call; `None` if there was none of its kind yet.
    pub fn predict(&self, operation: Operation, size: SizeClass) -> Option<Prediction> {
        self.0.latency.predict(operation, size)
    }

    /// How its times are spread; `None` if there was no call of its kind yet.
    pub fn spread(&self, operation: Operation, size: SizeClass) -> Option<Spread> {
        self.0.latency.spread(operation, size)
    }

    /// Reads that were given up after unusually long since it last answered one: many of them, and it hangs.
    pub fn unanswered_in_a_row(&self) -> u32 {
        self.0.unanswered_in_a_row.load(Relaxed)
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        self.0.in_flight.load(Relaxed)
    }

    pub fn state(&self) -> HostState {
        let gate = self.0.gate();
        match &gate.down {
            Some(reason) => HostState::Down { reason: reason.clone() },
            None if gate.refuses_writes || self.below_floor() => HostState::ReadOnly,
            None => HostState::Up,
        }
    }

    pub fn health(&self) -> HostHealth {
        let space = self.0.options.space.as_ref();
        let cells = Operation::ALL.into_iter().flat_map(|operation| SizeClass::ALL.map(|size| (operation, size)));
        let latency = cells.filter_map(|(operation, size)| {
            self.predict(operation, size).map(|prediction| LatencyRow { operation, size, prediction })
        });
        HostHealth {
            state: self.state(),
            used_bytes: space.and_then(|space| space.used_bytes()),
            free_bytes: space.and_then(|space| space.free_bytes()),
            latency: latency.collect(),
            calls: self.0.calls.load(Relaxed),
            failures: self.0.failures.load(Relaxed),
            time_outs: self.0.time_outs.load(Relaxed),
            wrong_pieces: self.0.wrong_pieces.load(Relaxed),
            in_flight: self.in_flight(),
        }
    }

    /// An answer of this host did not pass its check.
    pub fn charge_wrong(&self) {
        self.0.wrong_pieces.fetch_add(1, Relaxed);
    }

    /// Looks at the marker once, within its time-out, and sets the state by it.
    pub async fn check(&self) -> HostState {
        let options = &self.0.options;
        let found = match timeout(MARKER.whole, marker::read(&*self.0.store)).await {
            Ok(found) => found.and_then(|marker| marker.verify(options.portal, Some(options.id))),
            Err(_) => {
                self.0.missed(DownReason::NotAnswering);
                return self.state();
            }
        };
        match found {
            Ok(()) => self.0.came_up(),
            Err(error @ MarkerError::Store(_)) => self.0.missed(DownReason::Marker(error.to_string())),
            Err(error) => self.0.set_down(DownReason::Marker(error.to_string())),
        }
        self.state()
    }

    /// Keeps the state true until told to stop: looks at the marker every minute, and every few seconds while something is wrong.
    pub async fn watch(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                _ = stop.cancelled() => return,
                _ = self.check() => {}
            }
            let started = Instant::now();
            loop {
                let wait = if self.0.is_well() { MARKER_EVERY } else { MARKER_RETRY };
                let left = wait.saturating_sub(started.elapsed());
                tokio::select! {
                    _ = stop.cancelled() => return,
                    _ = sleep(left) => break,
                    // Then the wait is a shorter one.
                    _ = self.0.went_down.notified() => {}
                }
            }
        }
    }

    fn below_floor(&self) -> bool {
        self.0.options.space.as_ref().is_some_and(|space| space.below_floor())
    }

    async fn call<T: Answer>(
        &self,
        operation: Operation,
        size: SizeClass,
        limits: &Limits,
        work: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, HostError> {
        if let Some(reason) = self.0.gate().down.clone() {
            return Err(HostError::Down(reason));
        }
        let call = Call::start(&self.0, operation, size);
        let result = timeout(limits.whole, work).await.unwrap_or(Err(HostError::TimedOut));
        call.end(&result);
        result
    }

    /// Reads at most `max` bytes; `wanted` is the range to ask for.
    async fn read(&self, location: &Path, wanted: Option<Range<u64>>, max: u64) -> Result<Bytes, HostError> {
        let options = GetOptions { range: wanted.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let asked = self.0.store.get_opts(location, options);
        let found = timeout(GET.first_byte, asked).await.map_err(|_| HostError::TimedOut)?.map_err(classify)?;
        let (range, size) = (found.range.clone(), found.meta.size);
        match &wanted {
            None if size > max => return Err(HostError::TooLarge),
            None => {}
            Some(wanted) if range.start != wanted.start || range.end != wanted.end.min(size) => {
                return Err(HostError::Misanswered("another range"));
            }
            Some(_) => {}
        }
        let bytes = collect(found.into_stream(), range.end - range.start, max).await?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(HostError::Misanswered("another length than it said"));
        }
        Ok(bytes)
    }

    async fn read_list(&self, prefix: Option<Path>, after: Option<Path>, max_keys: usize) -> Result<Vec<(String, u64)>, HostError> {
        let mut listed = match &after {
            Some(after) => self.0.store.list_with_offset(prefix.as_ref(), after),
            None => self.0.store.list(prefix.as_ref()),
        };
        let mut keys: Vec<(String, u64)> = Vec::new();
        let mut patience = LIST.first_byte;
        while keys.len() < max_keys {
            let next = timeout(patience, listed.next()).await.map_err(|_| HostError::TimedOut)?;
            let Some(meta) = next else { break };
            let meta = meta.map_err(classify)?;
            let key = String::from(meta.location);
            // Paging rests on it.
            if keys.last().is_some_and(|(last, _)| *last >= key) {
                return Err(HostError::Misanswered("keys out of order"));
            }
            keys.push((key, meta.size));
            patience = LIST.stall;
        }
        Ok(keys)
    }
}

impl Inner {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_well(&self) -> bool {
        let gate = self.gate();
        gate.down.is_none() && gate.marker_misses == 0
    }

    fn came_up(&self) {
        self.failures_in_a_row.store(0, Relaxed);
        let mut gate = self.gate();
        // Writes are tried again: if they are still refused, the next one says so.
        *gate = Gate { down: None, refuses_writes: false, marker_misses: 0 };
    }

    fn set_down(&self, reason: DownReason) {
        let mut gate = self.gate();
        if gate.down.as_ref() != Some(&reason) {
            tracing::warn!(host = %self.options.url, %reason, "a host is down");
        }
        gate.down = Some(reason);
    }

    /// The marker could not be read, but nothing says that it is gone.
    fn missed(&self, reason: DownReason) {
        let mut gate = self.gate();
        gate.marker_misses = gate.marker_misses.saturating_add(1);
        let sure = gate.down.is_some() || gate.marker_misses >= MARKER_MISSES_MAX;
        drop(gate);
        if sure {
            self.set_down(reason);
        }
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn begun_started(&self) {
        self.in_flight.fetch_add(1, Relaxed);
        if self.begun.fetch_add(1, Relaxed) == 0 {
            self.begun_moved_ms.store(self.age_ms(), Relaxed);
        }
    }

    fn begun_ended(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.begun.fetch_sub(1, Relaxed);
        self.begun_moved_ms.store(self.age_ms(), Relaxed);
    }

    /// Whether begun puts are waiting and none has ended for too long.
    fn begun_stall(&self) -> bool {
        let quiet_ms = self.age_ms().saturating_sub(self.begun_moved_ms.load(Relaxed));
        self.begun.load(Relaxed) > 0 && Duration::from_millis(quiet_ms) > BEGUN_STALL_MAX
    }

    /// Learns from a call that came to its end.
    fn finished<T>(&self, operation: Operation, size: SizeClass, started: Instant, result: &Result<T, HostError>) {
        // A quick failure must not make a host look fast.
        if matches!(result, Ok(_) | Err(HostError::NotFound | HostError::TimedOut)) {
            self.latency.add(operation, size, started.elapsed());
        }
        if matches!(result, Ok(_) | Err(HostError::NotFound)) && operation == Operation::Get {
            self.unanswered_in_a_row.store(0, Relaxed);
        }
        self.ended(operation, result.as_ref().err());
    }

    /// Counts how a call ended.
    fn ended(&self, operation: Operation, error: Option<&HostError>) {
        match error {
            None | Some(HostError::NotFound | HostError::TooLarge | HostError::BadPath(_) | HostError::Down(_)) => {
                self.failures_in_a_row.store(0, Relaxed);
                if operation == Operation::Put && error.is_none() {
                    self.gate().refuses_writes = false;
                }
            }
            Some(HostError::Full | HostError::ReadOnly) => self.gate().refuses_writes = true,
            Some(error @ (HostError::TimedOut | HostError::Transient(_) | HostError::Misanswered(_))) => {
                self.failures.fetch_add(1, Relaxed);
                if matches!(error, HostError::TimedOut) {
                    self.time_outs.fetch_add(1, Relaxed);
                }
                if self.failures_in_a_row.fetch_add(1, Relaxed) + 1 == FAILURES_IN_A_ROW_MAX {
                    self.set_down(DownReason::Failing(error.to_string()));
                    self.went_down.notify_one();
                }
            }
        }
    }
}

/// How many bytes an answer moved, where only the answer tells.
trait Answer {
    fn bytes(&self) -> Option<u64>;
}

impl Answer for Bytes {
    fn bytes(&self) -> Option<u64> {
        Some(self.len() as u64)
    }
}

impl Answer for () {
    fn bytes(&self) -> Option<u64> {
        None
    }
}

impl Answer for u64 {
    fn bytes(&self) -> Option<u64> {
        None
    }
}

impl Answer for Peeked {
    fn bytes(&self) -> Option<u64> {
        None
    }
}

impl Answer for Vec<(String, u64)> {
    fn bytes(&self) -> Option<u64> {
        None
    }
}

/// A call under way; dropped before its end, it was given up.
struct Call<'a> {
    host: &'a Inner,
    operation: Operation,
    size: SizeClass,
    started: Instant,
    ended: bool,
}

impl Call<'_> {
    fn start(host: &Inner, operation: Operation, size: SizeClass) -> Call<'_> {
        host.calls.fetch_add(1, Relaxed);
        host.in_flight.fetch_add(1, Relaxed);
        Call { host, operation, size, started: Instant::now(), ended: false }
    }

    fn end<T: Answer>(mut self, result: &Result<T, HostError>) {
        self.ended = true;
        let moved = result.as_ref().ok().and_then(Answer::bytes);
        let size = moved.map_or(self.size, SizeClass::of);
        self.host.finished(self.operation, size, self.started, result);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.host.in_flight.fetch_sub(1, Relaxed);
        if self.ended {
            return;
        }
        let is_long = self.host.latency.add_given_up(self.operation, self.size, self.started.elapsed());
        if is_long && self.operation == Operation::Get {
            self.host.unanswered_in_a_row.fetch_add(1, Relaxed);
        }
    }
}

/// An answer on its way. Dropped with little left it is read to its end: a connection with bytes under way is closed, and a new
/// one costs more than they do.
struct Answering {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    left_bytes: u64,
}

impl Answering {
    async fn next(&mut self) -> Result<Option<Bytes>, HostError> {
        let part = timeout(GET.stall, self.stream.next()).await.map_err(|_| HostError::TimedOut);
        let part = part.and_then(|part| part.transpose().map_err(classify));
        self.left_bytes = match &part {
            Ok(Some(part)) => self.left_bytes.saturating_sub(part.len() as u64),
            // Nothing more is to be had of it.
            Ok(None) | Err(_) => 0,
        };
        part
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !(1..=DRAIN_MAX_BYTES).contains(&self.left_bytes) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let rest = std::mem::replace(&mut self.stream, futures::stream::empty().boxed());
        runtime.spawn(timeout(DRAIN_MAX, rest.for_each(|_| std::future::ready(()))));
    }
}

/// Joins an answer that says to have `len` bytes, of at most `max`; a single part is passed on as it is.
async fn collect(stream: BoxStream<'static, object_store::Result<Bytes>>, len: u64, max: u64) -> Result<Bytes, HostError> {
    let mut answer = Answering { stream, left_bytes: len };
    let mut first: Option<Bytes> = None;
    let mut joined = BytesMut::new();
    let mut len = 0u64;
    while let Some(part) = answer.next().await? {
        len += part.len() as u64;
        if len > max {
            return Err(HostError::Misanswered("more bytes than asked for"));
        }
        match first.take() {
            None if joined.is_empty() => first = Some(part),
            None => joined.extend_from_slice(&part),
            Some(before) => {
                joined.extend_from_slice(&before);
                joined.extend_from_slice(&part);
            }
        }
    }
    Ok(first.unwrap_or_else(|| joined.freeze()))
}

fn parse(path: &str) -> Result<Path, HostError> {
    Path::parse(path).map_err(|error| HostError::BadPath(error.to_string()))
}

fn classify(error: object_store::Error) -> HostError {
    match &error {
        object_store::Error::NotFound { .. } => return HostError::NotFound,
        object_store::Error::InvalidPath { .. } => return HostError::BadPath(error.to_string()),
        object_store::Error::PermissionDenied { .. } => return HostError::ReadOnly,
        _ => {}
    }
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(inner) = cause {
        let known = match (inner.downcast_ref::<FolderError>(), inner.downcast_ref::<io::Error>()) {
            (Some(folder), _) => classify_folder(folder),
            (None, Some(io)) => classify_io(io),
            (None, None) => None,
        };
        if let Some(known) = known {
            return known;
        }
        cause = inner.source();
    }
    HostError::Transient(Arc::new(error))
}

fn classify_folder(error: &FolderError) -> Option<HostError> {
    match error {
        FolderError::Full { .. } | FolderError::LogTooLong => Some(HostError::Full),
        FolderError::NoMarker => Some(HostError::Down(DownReason::Marker(error.to_string()))),
        FolderError::TooLarge { .. } => Some(HostError::TooLarge),
        FolderError::NotFound => Some(HostError::NotFound),
        FolderError::Key(_) => Some(HostError::BadPath(error.to_string())),
        FolderError::BadRange => Some(HostError::Misanswered("the object ends before the range")),
        FolderError::Io { source, .. } => classify_io(source),
        FolderError::Locked | FolderError::NewerLog { .. } | FolderError::NotEmpty | FolderError::Exists | FolderError::Closed => {
            None
        }
    }
}

fn classify_io(error: &io::Error) -> Option<HostError> {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(HostError::Full),
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => Some(HostError::ReadOnly),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
