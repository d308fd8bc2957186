//! What moves: signed versions of registry entries, IPNS records, pins, sites, API keys, secrets, notes about damage and the
//! host table.
//!
//! **Does.** One mechanism for everything that changes (`design.md` 3): a version is an object of its own on the N hosts
//! of its group, never overwritten; the newest version that verifies wins; older ones are swept. A put is acknowledged
//! by a majority of the N hosts (e + 1 of 2e + 1), a read needs the answers of as many, so with any e hosts lost a read
//! after an acknowledged put sees it or something newer. A read that sees disagreement writes the newest back until
//! it is at its quorum, and only then answers: two reads after each other never go back. Late answers go on in the background.
//!
//! **Hides.** Paths, envelopes, signatures, quorums, the floor, repair, sweeping.
//!
//! **Must never know** what bodies mean: checks of owners' signatures are brought by the caller ([`OwnerChecks`]).
//!
//! **Words.** *Record* = one version; *order* = its place among the versions of its key; *group* = records placed and found
//! together; *floor* = newest version this node ever saw; *view* = what one host says about a group; *clean* = a view that
//! holds nothing unreadable above the newest valid version: only clean views count as answers, because the unreadable
//! object may be the damaged copy of an acknowledged version; *tail* = what a call leaves running.
//!
//! **Limits.** Between processes there is no lock: of two writers of one version the greater hash wins and the other's
//! write is lost, although both were acknowledged (within one process the second is refused). A host that shows an
//! old state as if it were the present one counts as a fault only while it misses writes; one that
//! loses writes it acknowledged reduces e.

mod envelope;
mod floor;
mod follow;
mod hosts;
mod key;
mod kind;
mod on_renter;
mod read;
mod scan;
#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod tests;
mod write;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{Semaphore, broadcast};
use tokio_util::task::TaskTracker;

pub use self::on_renter::BareHosts;
use self::{
    envelope::{Checked, Unchecked, Verifier},
    floor::Floors,
    hosts::asked,
    write::Turns,
};
pub use self::{
    envelope::{InvalidRecord, OwnerCheck, OwnerChecks, RECORD_BYTES_MAX, Record},
    follow::Followed,
    hosts::{Begun, HostCallError, Look, PutTold, Quorum, RecordHosts},
    key::{KeyError, Origin, PortalId, PortalKey},
    kind::{BadKey, Group, Kind, Order, RecordKey, Signer},
    read::{Census, GroupRead},
    scan::{Scan, Scanned},
};

/// Longest wait of a read for its quorum. A working host answers in milliseconds; a client waits this long, not longer.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait of a put for its quorum; syncs on busy disks take longer than reads.
const PUT_DEADLINE: Duration = Duration::from_secs(15);
/// Longest life of a tail; Skynet's renters went on as long.
const TAIL_DEADLINE: Duration = Duration::from_secs(60);
/// Tails at once in this process. Each holds few objects of at most 64 KiB: tens of MiB at worst. Beyond it a call leaves
/// nothing running; the next read repairs.
const TAILS_MAX: usize = 512;
/// Records a slow subscriber may lag behind before it loses the oldest and is told so.
const SUBSCRIBER_BACKLOG: usize = 1_024;

/// What this room takes from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct RecordsOptions {
    /// How the kinds signed by their owners are checked.
    pub owners: OwnerChecks,
    /// Memory for the floor, in bytes.
    pub floor_bytes_max: usize,
}

impl Default for RecordsOptions {
    /// No owners' records; 32 MiB of floor are about 45,000 registry entries.
    fn default() -> RecordsOptions {
        RecordsOptions { owners: OwnerChecks::REFUSE, floor_bytes_max: 32 << 20 }
    }
}

/// Whether everything there is was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Complete,
    /// Something may be missing: too few hosts answered, or there was too much.
    Partial,
}

/// What went wrong, by what the caller can do.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The put is at or below what is known; read `newest`, decide anew.
    #[error("a version at least as new is known: {newest:?}")]
    NotNewer { newest: Arc<Record> },
    /// At most `have` hosts could answer well in time. Retrying later may help. A put may or may not take effect.
    #[error("{need} hosts have to answer for this record, at most {have} do: {reasons}")]
    Unavailable { have: usize, need: usize, reasons: String },
    /// The record cannot be written as it is.
    #[error(transparent)]
    Invalid(#[from] InvalidRecord),
    /// The kind has no version numbers, or the last one is used.
    #[error("there is no next version of {0}")]
    NoNextVersion(RecordKey),
}

/// What this room did since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    pub puts_acknowledged: u64,
    pub puts_refused: u64,
    pub puts_failed: u64,
    pub reads: u64,
    pub reads_failed: u64,
    /// Objects on hosts that did not verify, and names that are no records.
    pub invalid_objects: u64,
    /// Versions written to hosts that lacked them.
    pub written_back: u64,
    /// Older versions deleted.
    pub swept: u64,
    /// Tails not started because [`TAILS_MAX`] were running.
    pub tails_dropped: u64,
}

#[derive(Default)]
struct Counters {
    puts_acknowledged: AtomicU64,
    puts_refused: AtomicU64,
    puts_failed: AtomicU64,
    reads: AtomicU64,
    reads_failed: AtomicU64,
    invalid_objects: AtomicU64,
    written_back: AtomicU64,
    swept: AtomicU64,
    tails_dropped: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// The records of one portal. A cheap handle.
#[derive(Clone)]
pub struct Records {
    inner: Arc<Inner>,
}

struct Inner {
    hosts: Arc<dyn RecordHosts>,
    key: PortalKey,
    verifier: Verifier,
    floors: Floors,
    turns: Turns,
    /// Numbers of versions whose put failed: they may still land on a host, so they are never used again.
    attempts: moka::sync::Cache<RecordKey, u64>,
    /// By [`Kind::index`].
    subscribers: [broadcast::Sender<Arc<Record>>; Kind::ALL.len()],
    tails: TaskTracker,
    tail_permits: Arc<Semaphore>,
    counters: Counters,
}

/// Failed puts remembered, see [`Inner`]. More than this fail only when all hosts are gone for long.
const ATTEMPTS_MAX: u64 = 4_096;

impl Records {
    pub fn new(hosts: Arc<dyn RecordHosts>, key: PortalKey, options: RecordsOptions) -> Records {
        let inner = Inner {
            hosts,
            verifier: Verifier { portal: key.id(), owners: options.owners },
            key,
            floors: Floors::new(options.floor_bytes_max),
            turns: Turns::default(),
            attempts: moka::sync::Cache::new(ATTEMPTS_MAX),
            subscribers: std::array::from_fn(|_| broadcast::channel(SUBSCRIBER_BACKLOG).0),
            tails: TaskTracker::new(),
            tail_permits: Arc::new(Semaphore::new(TAILS_MAX)),
            counters: Counters::default(),
        };
        Records { inner: Arc::new(inner) }
    }

    pub fn portal(&self) -> PortalId {
        self.inner.verifier.portal
    }

    /// Writes a version; Ok once a majority of its hosts has it durably. Puts of one key take turns within this process.
    ///
    /// Refused with [`RecordError::NotNewer`] unless its order is above what this node knows. Where the order comes
    /// from outside (owners' kinds) and nothing is known, the hosts are asked first. After
    /// [`RecordError::Unavailable`] the version may or may not turn up later. Dropping the future leaves it just as open.
    pub async fn put(&self, record: Record) -> Result<(), RecordError> {
        write::put(&self.inner, record).await
    }

    /// The newest version, which may say that the thing is removed. None only if a majority of the hosts has no version.
    pub async fn newest(&self, key: &RecordKey) -> Result<Option<Arc<Record>>, RecordError> {
        let newest = read::newest(&self.inner, key).await?;
        Ok(newest.map(|version| version.record().clone()))
    }

    /// How a record stands on each of its hosts, for an operator's eyes. None only if a majority has no version.
    pub async fn census(&self, key: &RecordKey) -> Result<Option<Census>, RecordError> {
        read::census(&self.inner, key).await
    }

    /// The newest version of each record of a group, in order of their keys, removed ones included.
    pub async fn group(&self, group: &Group) -> Result<GroupRead, RecordError> {
        read::group(&self.inner, group).await
    }

    /// All records of a kind, one after the other, see [`Scan`].
    pub fn scan(&self, kind: Kind) -> Scan {
        scan::start(&self.inner, kind, |_, _| false)
    }

    /// The same without those whose newest version is known: they are listed, but not fetched.
    pub fn scan_unknown(&self, kind: Kind, known: impl Fn(&RecordKey, &Order) -> bool + Send + 'static) -> Scan {
        scan::start(&self.inner, kind, known)
    }

    /// The order for the next put of a record signed by the portal: above the newest, and above all attempts of this process.
    pub async fn next_version(&self, key: &RecordKey) -> Result<Order, RecordError> {
        let newest = self.newest(key).await?.map_or(0, |newest| newest.order.number());
        let attempted = self.inner.attempts.get(key).unwrap_or(0);
        match (key.kind().signer(), newest.max(attempted).checked_add(1)) {
            (Signer::Portal, Some(version)) => Ok(Order::version(version)),
            _ => Err(RecordError::NoNextVersion(key.clone())),
        }
    }

    /// Puts the version that says the record is removed. Nothing is written if there is none, or it is removed already.
    pub async fn remove(&self, key: &RecordKey) -> Result<(), RecordError> {
        match self.newest(key).await? {
            Some(newest) if !newest.removed => {}
            _ => return Ok(()),
        }
        self.put(Record::removal(key.clone(), self.next_version(key).await?)).await
    }

    /// Records of a kind as they become the newest this node knows and are at their quorum, whoever wrote them. A record may
    /// come again after the floor forgot it; a receiver that lags loses the oldest and is told how many.
    pub fn subscribe(&self, kind: Kind) -> broadcast::Receiver<Arc<Record>> {
        self.inner.subscribers[kind.index()].subscribe()
    }

    /// Waits until all tails are done, at most about [`TAIL_DEADLINE`] after the last call. For an orderly shutdown.
    pub async fn settle(&self) {
        self.inner.tails.close();
        self.inner.tails.wait().await;
        self.inner.tails.reopen();
    }

    pub fn counts(&self) -> RecordCounts {
        let counters = &self.inner.counters;
        RecordCounts {
            puts_acknowledged: counters.puts_acknowledged.load(Relaxed),
            puts_refused: counters.puts_refused.load(Relaxed),
            puts_failed: counters.puts_failed.load(Relaxed),
            reads: counters.reads.load(Relaxed),
            reads_failed: counters.reads_failed.load(Relaxed),
            invalid_objects: counters.invalid_objects.load(Relaxed),
            written_back: counters.written_back.load(Relaxed),
            swept: counters.swept.load(Relaxed),
            tails_dropped: counters.tails_dropped.load(Relaxed),
        }
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Records({})", self.portal())
    }
}

/// The hosts of a record or group, each once, and how many of them make a quorum.
struct Placed {
    hosts: Vec<usize>,
    need: usize,
}

impl Inner {
    fn placed(&self, group: &Group) -> Placed {
        let mut hosts = match group.kind() {
            Kind::Hosts => self.hosts.all_hosts(),
            _ => self.hosts.hosts_of(&group.id()),
        };
        let mut seen = Vec::with_capacity(hosts.len());
        hosts.retain(|host| {
            let new = !seen.contains(host);
            seen.push(*host);
            new
        });
        // A majority: e + 1 of 2e + 1, and right for fewer or more hosts, too. Any two majorities meet in a host.
        let need = hosts.len() / 2 + 1;
        Placed { hosts, need }
    }

    /// How many hosts may be missing from a listing of all hosts without hiding an acknowledged record of `kind`.
    fn missing_allowed(&self, kind: Kind) -> usize {
        let all = self.hosts.all_hosts().len();
        let placed = match kind {
            Kind::Hosts => all,
            _ => all.min(2 * self.hosts.quorum().e + 1),
        };
        placed / 2
    }

    /// What an object at a place on a host is worth. `known` saves checking the signature of the same bytes again.
    fn verify(
        &self,
        key: &RecordKey,
        order: &Order,
        object: &bytes::Bytes,
        known: Option<&Checked>,
    ) -> Result<Checked, InvalidRecord> {
        match known {
            Some(known) if known.object() == object => Ok(known.clone()),
            _ => Unchecked::decode(object)?.check(key, order, &self.verifier),
        }
    }

    /// A host gave something that is no record. It is charged, and the thing never counts.
    fn charge(&self, host: usize, path: &str, why: &dyn fmt::Display) {
        count(&self.counters.invalid_objects);
        self.hosts.charge_wrong(host);
        tracing::debug!(host, path, "record does not count: {why}");
    }

    /// A version is at its quorum: the floor rises, subscribers are told once.
    fn accept(&self, version: &Checked) {
        if self.floors.accepted(version) {
            // An error says only that nobody listens.
            let _ = self.subscribers[version.record().key.kind().index()].send(version.record().clone());
        }
    }

    /// Lets `work` go on after the call that started it has answered, bounded in number and time.
    fn leave_running(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(permit) = self.tail_permits.clone().try_acquire_owned() else {
            count(&self.counters.tails_dropped);
            return;
        };
        self.tails.spawn(async move {
            // Out of time: what is left is dropped, the next read goes on with it.
            let _ = tokio::time::timeout(TAIL_DEADLINE, work).await;
            drop(permit);
        });
    }
}

/// The reasons of failed hosts in one line, for people.
fn join_reasons(reasons: &[(usize, String)], waiting_for: usize) -> String {
    let mut words: Vec<String> = reasons.iter().map(|(host, reason)| format!("host {host}: {reason}")).collect();
    if waiting_for > 0 {
        words.push(format!("{waiting_for} did not answer in time"));
    }
    if words.is_empty() {
        words.push("there are no hosts".to_owned());
    }
    words.join("; ")
}

/// BLAKE2b-256 of the parts, one after the other.
fn hash_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    for part in parts {
        state.update(part);
    }
    state.finalize().as_bytes().try_into().expect("the hash was asked for with 32 bytes")
}
