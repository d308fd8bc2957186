//! All records of a kind: listings of all hosts merged page by page, in bounded memory.
//!
//! Hosts list in the same order (of bytes), so the listings are merged like sorted files: per host at most a page and a
//! few fetches ahead. What it finds is the newest version on the hosts that answer; it repairs nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{
    StreamExt,
    future::join_all,
    stream::{self, BoxStream},
};
use tokio::time::timeout;

use super::{Extent, HostCallError, Inner, Kind, Order, RECORD_BYTES_MAX, Record, RecordKey, asked, envelope::Checked, read};

/// Paths of one page of one host: what S3 gives in one answer; about 300 KiB.
const PAGE_PATHS: usize = 1_000;
/// Records fetched at once: hides the hosts' latency, holds at most 4 MiB.
const FETCHES_AHEAD: usize = 64;
/// Versions of one record remembered of one host, the newest first.
const VERSIONS_MAX: usize = 4;
/// Bad objects and names after which a host is left out of a scan, so that it cannot keep a scan busy forever.
const FAULTS_MAX: u64 = 10_000;
/// Longest wait for one page or object. A scan waits for slow hosts, because a host left out may make it partial.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// One record of a scan.
#[derive(Clone, Debug)]
pub struct Scanned {
    pub record: Arc<Record>,
    /// Hosts that listed this version.
    pub holders: usize,
    /// Hosts that should have it. If fewer have it, [`super::Records::newest`] brings it to the others.
    pub wanted: usize,
}

/// A scan under way. Dropping it stops it.
pub struct Scan {
    records: BoxStream<'static, Scanned>,
    tally: Arc<Tally>,
    missing_allowed: usize,
    ended: bool,
}

impl Scan {
    /// The next record, in no particular order, removed ones included; None at the end.
    pub async fn next(&mut self) -> Option<Scanned> {
        let next = self.records.next().await;
        self.ended |= next.is_none();
        next
    }

    /// Complete once the end was reached and no record acknowledged before the start can have been missed: at least
    /// hosts - e hosts were listed whole and gave what they listed.
    pub fn extent(&self) -> Extent {
        let missing = self.tally.hosts_failed.load(Relaxed) + self.tally.doubts_most.load(Relaxed);
        match self.ended && missing <= self.missing_allowed {
            true => Extent::Complete,
            false => Extent::Partial,
        }
    }
}

/// What went wrong so far.
struct Tally {
    hosts_failed: AtomicUsize,
    /// Most hosts of one record that listed a newer version than the one returned, but did not give it.
    doubts_most: AtomicUsize,
    /// Bad objects and names, by host.
    faults: BTreeMap<usize, AtomicU64>,
}

impl Tally {
    fn fault(&self, host: usize) {
        self.faults[&host].fetch_add(1, Relaxed);
    }
}

/// The listing of one host.
struct Cursor {
    host: usize,
    /// Listed, not yet merged.
    page: VecDeque<Listed>,
    after: Option<String>,
    state: CursorState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CursorState {
    Open,
    /// Listed whole.
    Ended,
    Failed,
}

struct Listed {
    /// Folder of the record: hosts list in the order of these.
    folder: String,
    key: RecordKey,
    order: Order,
}

/// A record that some hosts list: its versions, newest first, each with the hosts that list it.
struct Sighting {
    key: RecordKey,
    versions: Vec<(Order, Vec<usize>)>,
}

struct Merge {
    inner: Arc<Inner>,
    tally: Arc<Tally>,
    prefix: String,
    cursors: Vec<Cursor>,
}

/// Leaves out records whose newest listed version is `known`.
pub(super) fn start(inner: &Arc<Inner>, kind: Kind, known: impl Fn(&RecordKey, &Order) -> bool + Send + 'static) -> Scan {
    let hosts: BTreeSet<usize> = inner.hosts.all_hosts().into_iter().collect();
    let tally = Arc::new(Tally {
        hosts_failed: AtomicUsize::new(0),
        doubts_most: AtomicUsize::new(0),
        faults: hosts.iter().map(|host| (*host, AtomicU64::new(0))).collect(),
    });
    let cursor = |host| Cursor { host, page: VecDeque::new(), after: None, state: CursorState::Open };
    let merge = Merge {
        inner: inner.clone(),
        tally: tally.clone(),
        prefix: format!("records/{kind}/"),
        cursors: hosts.into_iter().map(cursor).collect(),
    };
    let (inner, fetch_tally) = (inner.clone(), tally.clone());
    let missing_allowed = inner.missing_allowed(kind);
    let is_news = move |sighting: &Sighting| {
        let newest = sighting.versions.first();
        std::future::ready(newest.is_none_or(|(order, _)| !known(&sighting.key, order)))
    };
    let records = stream::unfold(merge, |mut merge| async move { Some((merge.next().await?, merge)) })
        .filter(is_news)
        .map(move |sighting| fetch(inner.clone(), fetch_tally.clone(), sighting))
        .buffer_unordered(FETCHES_AHEAD)
        .filter_map(std::future::ready)
        .boxed();
    Scan { records, tally, missing_allowed, ended: false }
}

impl Merge {
    /// The next record any host lists; None when all listings have ended or failed.
    async fn next(&mut self) -> Option<Sighting> {
        self.fill().await;
        let folder = self.cursors.iter().filter_map(|cursor| cursor.page.front()).map(|listed| &listed.folder).min();
        let folder = folder?.clone();
        let mut key = None;
        let mut by_order: BTreeMap<Order, Vec<usize>> = BTreeMap::new();
        let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
        loop {
            for cursor in &mut self.cursors {
                while let Some(listed) = cursor.page.pop_front_if(|listed| listed.folder == folder) {
                    let taken = taken.entry(cursor.host).or_insert(0);
                    *taken += 1;
                    if *taken <= VERSIONS_MAX {
                        by_order.entry(listed.order).or_default().push(cursor.host);
                    }
                    key = Some(listed.key);
                }
            }
            // The versions of a record may go on in the next page.
            if !self.fill().await {
                break;
            }
        }
        let versions = by_order.into_iter().rev().collect();
        Some(Sighting { key: key.expect("the folder came from a listing"), versions })
    }

    /// Fetches the next page of every open cursor without one. False if there was none to fetch.
    async fn fill(&mut self) -> bool {
        let (inner, tally, prefix) = (&self.inner, &self.tally, &self.prefix);
        let empty = self.cursors.iter_mut().filter(|cursor| cursor.needs_page());
        let fills: Vec<_> = empty.map(|cursor| cursor.fill(inner, tally, prefix)).collect();
        !join_all(fills).await.is_empty()
    }
}

impl Cursor {
    fn needs_page(&self) -> bool {
        self.page.is_empty() && self.state == CursorState::Open
    }

    async fn fill(&mut self, inner: &Inner, tally: &Tally, prefix: &str) {
        while self.needs_page() {
            self.state = match self.fetch_page(inner, tally, prefix).await {
                Ok(state) => state,
                Err(error) => {
                    tracing::warn!(host = self.host, prefix, "left out of a scan of records: {error}");
                    tally.hosts_failed.fetch_add(1, Relaxed);
                    CursorState::Failed
                }
            };
        }
    }

    async fn fetch_page(&mut self, inner: &Inner, tally: &Tally, prefix: &str) -> Result<CursorState, HostCallError> {
        let failed = |why: &str| Err(HostCallError::Unavailable(why.to_owned()));
        let list = asked(self.host, || inner.hosts.list(self.host, prefix, self.after.as_deref(), PAGE_PATHS));
        let paths = match timeout(CALL_DEADLINE, list).await {
            Err(_) => return failed("timed out"),
            Ok(Err(HostCallError::NotFound)) => Vec::new(),
            Ok(listed) => listed?,
        };
        let state = if paths.len() < PAGE_PATHS { CursorState::Ended } else { CursorState::Open };
        for path in paths {
            // A listing that goes back would never end, and would break the merge.
            if self.after.as_ref().is_some_and(|after| *after >= path) {
                inner.charge(self.host, &path, &"listed out of order");
                return failed("lists out of order");
            }
            match RecordKey::from_path(&path).filter(|_| path.starts_with(prefix)) {
                Some((key, order)) => self.page.push_back(Listed { folder: key.folder(), key, order }),
                None => {
                    inner.charge(self.host, &path, &"not a name of a record");
                    tally.fault(self.host);
                }
            }
            self.after = Some(path);
        }
        match tally.faults[&self.host].load(Relaxed) > FAULTS_MAX {
            true => failed("has too many objects that are no records"),
            false => Ok(state),
        }
    }
}

/// The newest version that a host which lists it also gives. Of versions of equal order it is any.
async fn fetch(inner: Arc<Inner>, tally: Arc<Tally>, sighting: Sighting) -> Option<Scanned> {
    let Sighting { key, versions } = sighting;
    let wanted = inner.placed(&key.group()).hosts.len();
    let mut doubts = BTreeSet::new();
    let mut found = None;
    'versions: for (order, hosts) in &versions {
        // Another host first for another record, to spread the load.
        let first = usize::from(hash_byte(&key)) % hosts.len();
        for host in hosts[first..].iter().chain(&hosts[..first]) {
            match fetch_one(&inner, *host, &key, order).await {
                Ok(version) => {
                    found = Some(Scanned { record: version.record().clone(), holders: hosts.len(), wanted });
                    break 'versions;
                }
                // Swept since it was listed, so there is a newer one; or the host lists what it does not have.
                Err(FetchError::Gone) => match read::newest(&inner, &key).await {
                    Ok(Some(version)) if version.record().order >= *order => {
                        found = Some(Scanned { record: version.record().clone(), holders: wanted, wanted });
                        break 'versions;
                    }
                    _ => tally.fault(*host),
                },
                Err(FetchError::Wrong) => tally.fault(*host),
                Err(FetchError::Unavailable) => {}
            }
            doubts.insert(*host);
        }
    }
    tally.doubts_most.fetch_max(doubts.len(), Relaxed);
    found
}

enum FetchError {
    Gone,
    Wrong,
    Unavailable,
}

async fn fetch_one(inner: &Inner, host: usize, key: &RecordKey, order: &Order) -> Result<Checked, FetchError> {
    let path = key.path(order);
    let object = match timeout(CALL_DEADLINE, asked(host, || inner.hosts.get(host, &path, RECORD_BYTES_MAX))).await {
        Ok(Ok(object)) => object,
        Ok(Err(HostCallError::NotFound)) => return Err(FetchError::Gone),
        Ok(Err(why @ HostCallError::TooLarge)) => {
            inner.charge(host, &path, &why);
            return Err(FetchError::Wrong);
        }
        Ok(Err(HostCallError::Transient(_) | HostCallError::Unavailable(_))) | Err(_) => return Err(FetchError::Unavailable),
    };
    inner.verify(key, order, &object, None).map_err(|why| {
        inner.charge(host, &path, &why);
        FetchError::Wrong
    })
}

fn hash_byte(key: &RecordKey) -> u8 {
    super::hash_of(&[key.text().as_bytes()])[0]
}
