//! Reading at the quorum: views of hosts, what they agree on, writing the newest back, sweeping older versions.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Extent, Group, HostCallError, Inner, Look, Order, READ_DEADLINE, RECORD_BYTES_MAX, Record, RecordError, RecordKey, asked,
    count, envelope::Checked, join_reasons,
};

/// Versions of one record looked at on one host. There are one or two: older ones are swept.
const VERSIONS_MAX: usize = 32;
/// Versions of one group looked at on one host. At worst 64 MiB of pins, if all were as large as a record can be; beyond
/// it the read is partial.
const GROUP_VERSIONS_MAX: usize = 1_024;
/// Objects tried on one host until one verifies. A host with more bad ones above it is no witness.
const TRIES_MAX: usize = 4;
/// Times a host is listed because a listed version was swept before it was read. Writers of one entry that follow each other as
/// fast as they can sweep about one version for each list, so a few would not do; a host that never gives what it lists costs
/// so many small answers, and nobody waits for it once a quorum has told.
const LISTS_MAX: usize = 32;
/// Objects read from one host at once for one call; only groups have more than one.
const GETS_AT_ONCE: usize = 16;
/// Writes and deletions of one read at once, over all hosts; only groups reach it.
const CHANGES_AT_ONCE: usize = 64;

/// The newest version of each record of a group.
#[derive(Clone, Debug)]
pub struct GroupRead {
    pub records: Vec<Arc<Record>>,
    /// Partial: the group is too large for one read, or for some records too few hosts gave good answers; those are left out.
    pub extent: Extent,
}

pub(super) async fn newest(inner: &Arc<Inner>, key: &RecordKey) -> Result<Option<Checked>, RecordError> {
    if let Some(agreed) = agreed_at_once(inner, key) {
        return Ok(agreed);
    }
    let ask = Ask::new(inner, &key.group(), key.folder(), Some(key.clone()), VERSIONS_MAX);
    let found = read(ask).await?;
    Ok(found.versions.into_iter().next())
}

/// What a quorum of hosts says without anybody waiting, if they all say the same and nothing is left to mend: most reads of hosts
/// that are near. Each read asks others first, so that a host which lags is found out.
fn agreed_at_once(inner: &Inner, key: &RecordKey) -> Option<Option<Checked>> {
    let placed = inner.placed(&key.group());
    let (folder, known) = (key.folder(), inner.floors.get(key));
    let first = inner.counters.reads.load(Relaxed) as usize % placed.hosts.len().max(1);
    let (later, sooner) = placed.hosts.split_at(first);
    let mut agreed: Option<Option<(String, Checked)>> = None;
    let mut witnesses = 0;
    for host in sooner.iter().chain(later) {
        // Two are enough to see that there are several.
        let Some(look) = inner.hosts.look_at_once(*host, &folder, 2, RECORD_BYTES_MAX) else { continue };
        match (look.paths.as_slice(), look.first, &agreed) {
            ([], _, None) => agreed = Some(None),
            ([], _, Some(None)) => {}
            ([path], Some(object), None) => {
                let (_, order) = RecordKey::from_path(path).filter(|(of, _)| of == key)?;
                let version = inner.verify(key, &order, &object, known.as_ref()).ok()?;
                agreed = Some(Some((path.clone(), version)));
            }
            ([path], Some(object), Some(Some((same, version)))) if path == same && object == *version.object() => {}
            _ => return None,
        }
        witnesses += 1;
        if witnesses == placed.need {
            break;
        }
    }
    let version = agreed.filter(|_| witnesses == placed.need)?.map(|(_, version)| version);
    match (&version, &known) {
        (None, Some(_)) => return None,
        (Some(version), Some(known)) if version.rank(known) == Ordering::Less => return None,
        _ => {}
    }
    count(&inner.counters.reads);
    if let Some(version) = &version {
        inner.accept(version);
    }
    Some(version)
}

pub(super) async fn group(inner: &Arc<Inner>, group: &Group) -> Result<GroupRead, RecordError> {
    let found = read(Ask::new(inner, group, group.folder(), None, GROUP_VERSIONS_MAX)).await?;
    let records = found.versions.iter().map(|version| version.record().clone()).collect();
    Ok(GroupRead { records, extent: found.extent })
}

/// How one record stands on its hosts.
#[derive(Clone, Debug)]
pub struct Census {
    /// Hosts that have a version that counts.
    pub holders: usize,
    /// Hosts that have the newest.
    pub holders_of_newest: usize,
    pub newest: Arc<Record>,
}

/// Waits for every host, within the time of a read; changes nothing.
pub(super) async fn census(inner: &Arc<Inner>, key: &RecordKey) -> Result<Option<Census>, RecordError> {
    let ask = Ask::new(inner, &key.group(), key.folder(), Some(key.clone()), VERSIONS_MAX);
    let need = ask.need;
    let deadline = Instant::now() + READ_DEADLINE;
    let views = ask.hosts.iter().map(|host| async {
        match timeout_at(deadline, ask.view(*host)).await {
            Ok(view) => view.map_err(|error| (*host, error.to_string())),
            Err(_) => Err((*host, "did not answer in time".to_owned())),
        }
    });
    let (answered, failed): (Vec<_>, Vec<_>) = futures::future::join_all(views).await.into_iter().partition(Result::is_ok);
    let have = answered.len();
    let tops: Vec<Checked> = answered.into_iter().flatten().filter_map(|view| view.records.get(key)?.top.clone()).collect();
    let Some(newest) = tops.iter().max_by(|one, other| one.rank(other)) else {
        if have < need {
            let reasons: Vec<_> = failed.into_iter().filter_map(Result::err).collect();
            return Err(RecordError::Unavailable { have, need, reasons: join_reasons(&reasons, 0) });
        }
        return Ok(None);
    };
    let holders_of_newest = tops.iter().filter(|top| top.rank(newest) == Ordering::Equal).count();
    Ok(Some(Census { holders: tops.len(), holders_of_newest, newest: newest.record().clone() }))
}

async fn read(ask: Ask) -> Result<Found, RecordError> {
    let inner = ask.inner.clone();
    count(&inner.counters.reads);
    let mut job = ReadJob::start(ask);
    let found = job.reach_quorum().await.inspect_err(|_| count(&inner.counters.reads_failed))?;
    for version in &found.versions {
        inner.accept(version);
    }
    if job.has_tail() {
        inner.leave_running(job.finish());
    }
    Ok(found)
}

/// What is asked of each host.
struct Ask {
    inner: Arc<Inner>,
    hosts: Vec<usize>,
    need: usize,
    /// Folder of a record or of a group.
    folder: String,
    /// The one record that is asked for; else all of the group.
    only: Option<RecordKey>,
    versions_max: usize,
    /// Versions that verified, by path: hosts mostly have the same bytes, which are then checked and kept once.
    verified: Mutex<HashMap<String, Checked>>,
}

/// What one host says.
struct View {
    records: BTreeMap<RecordKey, RecordView>,
    /// The listing was cut at this record; of later ones the host says nothing.
    cut: Option<RecordKey>,
}

#[derive(Default)]
struct RecordView {
    /// The newest version that verifies.
    top: Option<Checked>,
    /// The newest version above it that does not.
    unreadable: Option<Order>,
    listed: Vec<(Order, String)>,
}

impl View {
    /// Whether the host says something about `key`, be it that there is nothing.
    fn covers(&self, key: &RecordKey) -> bool {
        self.cut.as_ref().is_none_or(|cut| key <= cut)
    }
}

impl RecordView {
    /// The host has one more version now.
    fn gained(&mut self, version: Checked) {
        let order = version.record().order;
        if self.listed.iter().all(|(listed, _)| *listed != order) {
            self.listed.push((order, version.record().key.path(&order)));
        }
        // Writes of two versions may end in any order.
        if self.top.as_ref().is_none_or(|top| version.rank(top) == Ordering::Greater) {
            self.top = Some(version);
        }
    }
}

impl Ask {
    fn new(inner: &Arc<Inner>, group: &Group, folder: String, only: Option<RecordKey>, versions_max: usize) -> Ask {
        let placed = inner.placed(group);
        let verified = Mutex::default();
        Ask { inner: inner.clone(), hosts: placed.hosts, need: placed.need, folder, only, versions_max, verified }
    }

    async fn view(&self, host: usize) -> Result<View, HostCallError> {
        for _ in 0..LISTS_MAX {
            if let Some(view) = self.view_once(host).await? {
                return Ok(view);
            }
        }
        Err(HostCallError::Unavailable("lists versions that it does not give".to_owned()))
    }

    /// None if a listed version was gone when it was read, which happens when a newer one comes in between.
    async fn view_once(&self, host: usize) -> Result<Option<View>, HostCallError> {
        let hosts = &self.inner.hosts;
        let look = match hosts.look_at_once(host, &self.folder, self.versions_max, RECORD_BYTES_MAX) {
            Some(look) => look,
            None => asked(host, || hosts.look(host, &self.folder, self.versions_max, RECORD_BYTES_MAX)).await?,
        };
        let Look { mut paths, first } = look;
        paths.truncate(self.versions_max);
        let full = paths.len() == self.versions_max;
        // The first object that was brought along, with its path.
        let brought = first.and_then(|object| Some((paths.first()?.clone(), object)));
        let mut by_key: BTreeMap<RecordKey, Vec<(Order, String)>> = BTreeMap::new();
        for path in paths {
            match RecordKey::from_path(&path).filter(|_| path.starts_with(&self.folder)) {
                Some((key, order)) => by_key.entry(key).or_default().push((order, path)),
                None => self.inner.charge(host, &path, &"not a name of a record"),
            }
        }
        let cut = by_key.last_key_value().filter(|_| full).map(|(key, _)| key.clone());
        if full && cut.is_none() {
            return Err(HostCallError::Unavailable("lists only names that are no records".to_owned()));
        }
        let mut reads = Vec::new();
        for (key, mut listed) in by_key {
            listed.sort_by_key(|(order, _)| std::cmp::Reverse(*order));
            reads.push(self.view_record(host, key, listed, brought.as_ref()));
        }
        let mut reads = stream::iter(reads).buffer_unordered(GETS_AT_ONCE);
        let mut records = BTreeMap::new();
        while let Some(read) = reads.try_next().await? {
            match read {
                Some((key, view)) => records.insert(key, view),
                None => return Ok(None),
            };
        }
        Ok(Some(View { records, cut }))
    }

    async fn view_record(
        &self,
        host: usize,
        key: RecordKey,
        listed: Vec<(Order, String)>,
        brought: Option<&(String, bytes::Bytes)>,
    ) -> Result<Option<(RecordKey, RecordView)>, HostCallError> {
        let mut view = RecordView::default();
        for (order, path) in listed.iter().take(TRIES_MAX) {
            let got = match brought {
                Some((brought_path, object)) if brought_path == path => Ok(object.clone()),
                _ => asked(host, || self.inner.hosts.get(host, path, RECORD_BYTES_MAX)).await,
            };
            match got {
                Ok(object) => match self.verify(&key, order, path, &object) {
                    Ok(version) => {
                        view.top = Some(version);
                        break;
                    }
                    Err(why) => self.inner.charge(host, path, &why),
                },
                Err(HostCallError::NotFound) => return Ok(None),
                Err(why @ HostCallError::TooLarge) => self.inner.charge(host, path, &why),
                Err(error @ (HostCallError::Transient(_) | HostCallError::Unavailable(_))) => return Err(error),
            }
            view.unreadable.get_or_insert(*order);
        }
        view.listed = listed;
        Ok(Some((key, view)))
    }

    fn verify(&self, key: &RecordKey, order: &Order, path: &str, object: &bytes::Bytes) -> Result<Checked, super::InvalidRecord> {
        let verified = || self.verified.lock().expect("no code panics while it holds this lock");
        let known = verified().get(path).cloned().or_else(|| self.inner.floors.get(key));
        let version = self.inner.verify(key, order, object, known.as_ref())?;
        verified().entry(path.to_owned()).or_insert_with(|| version.clone());
        Ok(version)
    }
}

/// What a read found.
struct Found {
    versions: Vec<Checked>,
    extent: Extent,
}

enum Event {
    Viewed(usize, Result<View, HostCallError>),
    Wrote(usize, Checked, Result<(), HostCallError>),
    Swept(Result<(), HostCallError>),
}

/// Whether more answers may be waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    Left,
    Up,
}

/// How the views stand on one record.
#[derive(Default)]
struct Standing {
    best: Option<Checked>,
    /// Hosts that have the best.
    holders: usize,
    /// Hosts that surely have nothing above the best.
    clean: usize,
}

/// One record of the group, while it is read.
#[derive(Default)]
struct Case {
    standing: Standing,
    /// Write-backs planned or under way.
    writes_pending: usize,
    /// Hosts and hashes of versions: each write is tried once.
    written: BTreeSet<(usize, [u8; 32])>,
    /// Each deletion is tried once.
    swept: BTreeSet<(usize, Order)>,
}

/// Something to be done on a host.
enum Change {
    Write(usize, Checked),
    Sweep(usize, String),
}

/// One read, from the first question to the last repair.
struct ReadJob {
    ask: Arc<Ask>,
    pending: FuturesUnordered<BoxFuture<'static, Event>>,
    views_pending: usize,
    changes_pending: usize,
    views: BTreeMap<usize, View>,
    failed: Vec<(usize, String)>,
    cases: BTreeMap<RecordKey, Case>,
    /// Records whose standing has to be worked out again.
    stale: BTreeSet<RecordKey>,
    /// Changes that wait for others to end.
    planned: VecDeque<Change>,
}

impl ReadJob {
    fn start(ask: Ask) -> ReadJob {
        let ask = Arc::new(ask);
        let pending = FuturesUnordered::new();
        for host in ask.hosts.iter().copied() {
            let ask = ask.clone();
            let call = async move { Event::Viewed(host, ask.view(host).await) };
            pending.push(Box::pin(call) as BoxFuture<'static, _>);
        }
        ReadJob {
            views_pending: pending.len(),
            changes_pending: 0,
            pending,
            views: BTreeMap::new(),
            failed: Vec::new(),
            cases: BTreeMap::new(),
            stale: ask.only.iter().cloned().collect(),
            planned: VecDeque::new(),
            ask,
        }
    }

    async fn reach_quorum(&mut self) -> Result<Found, RecordError> {
        let deadline = Instant::now() + READ_DEADLINE;
        let mut time = Time::Left;
        loop {
            if let Some(outcome) = self.step(time) {
                return outcome;
            }
            match timeout_at(deadline, self.pending.next()).await {
                Ok(Some(event)) => self.absorb(event),
                // Nothing is under way any more, or the time is up: the next step decides with what there is.
                Ok(None) | Err(_) => time = Time::Up,
            }
            self.absorb_ready();
        }
    }

    /// Takes in what has arrived in the meantime, so that large groups are not judged anew after each event.
    fn absorb_ready(&mut self) {
        while let Some(Some(event)) = self.pending.next().now_or_never() {
            self.absorb(event);
        }
    }

    fn absorb(&mut self, event: Event) {
        match event {
            Event::Viewed(host, Ok(view)) => {
                self.views_pending -= 1;
                let tops = view.records.values().filter_map(|record| record.top.as_ref());
                tops.for_each(|top| self.ask.inner.floors.saw(top));
                // Records this host does not have, too: it is one more witness.
                self.stale.extend(self.cases.keys().cloned());
                self.stale.extend(view.records.keys().cloned());
                self.views.insert(host, view);
            }
            Event::Viewed(host, Err(error)) => {
                self.views_pending -= 1;
                self.failed.push((host, error.to_string()));
            }
            Event::Wrote(host, version, result) => {
                self.changes_pending -= 1;
                let key = version.record().key.clone();
                self.cases.get_mut(&key).expect("made when it was planned").writes_pending -= 1;
                match result {
                    Ok(()) => {
                        count(&self.ask.inner.counters.written_back);
                        let view = self.views.get_mut(&host).expect("only hosts with a view are written to");
                        view.records.entry(key.clone()).or_default().gained(version);
                        self.stale.insert(key);
                    }
                    Err(error) => self.failed.push((host, error.to_string())),
                }
            }
            Event::Swept(result) => {
                self.changes_pending -= 1;
                if result.is_ok() {
                    count(&self.ask.inner.counters.swept);
                }
            }
        }
    }

    /// The outcome if there is one by now; else starts the write-backs that it takes.
    fn step(&mut self, time: Time) -> Option<Result<Found, RecordError>> {
        let need = self.ask.need;
        if self.views.len() < need {
            let late = if time == Time::Left { self.views_pending } else { 0 };
            let possible = self.views.len() + late;
            return (possible < need || time == Time::Up).then(|| Err(self.unavailable(possible, time)));
        }
        for key in self.judge() {
            let standing = &self.cases[&key].standing;
            if standing.clean >= need && standing.holders < need {
                self.plan_writes(&key);
            }
        }
        self.start_changes();
        let mut found = Found { versions: Vec::new(), extent: Extent::Complete };
        // A single record is never cut: its newest version lists first.
        let whole = self.views.values().filter(|view| view.cut.is_none()).count();
        if whole < need && self.ask.only.is_none() {
            found.extent = Extent::Partial;
        }
        let mut waiting = false;
        let mut least = usize::MAX;
        for case in self.cases.values() {
            let standing = &case.standing;
            let have = match &standing.best {
                _ if standing.clean < need => standing.clean,
                // A majority surely has nothing: it does not exist.
                None => continue,
                Some(best) if standing.holders >= need => {
                    found.versions.push(best.clone());
                    continue;
                }
                Some(_) => standing.holders,
            };
            waiting |= self.views_pending > 0 || case.writes_pending > 0;
            least = least.min(have);
        }
        if waiting && time == Time::Left {
            return None;
        }
        if least < need {
            found.extent = Extent::Partial;
            if self.ask.only.is_some() {
                return Some(Err(self.unavailable(least, time)));
            }
        }
        Some(Ok(found))
    }

    fn unavailable(&self, have: usize, time: Time) -> RecordError {
        let late = if time == Time::Up { self.views_pending + self.changes_pending } else { 0 };
        let reasons = match (self.failed.is_empty() && late == 0, self.views.is_empty()) {
            (true, false) => "hosts have newer versions that do not verify".to_owned(),
            _ => join_reasons(&self.failed, late),
        };
        RecordError::Unavailable { have, need: self.ask.need, reasons }
    }

    /// Works out the stale standings; gives the records concerned.
    fn judge(&mut self) -> Vec<RecordKey> {
        let mut stale: Vec<RecordKey> = std::mem::take(&mut self.stale).into_iter().collect();
        stale.retain(|key| self.ask.only.as_ref().is_none_or(|only| only == key));
        for key in &stale {
            let standing = self.standing(key);
            self.cases.entry(key.clone()).or_default().standing = standing;
        }
        stale
    }

    fn standing(&self, key: &RecordKey) -> Standing {
        let views = || self.views.values().filter_map(|view| view.records.get(key));
        let mut best = self.ask.inner.floors.get(key);
        for top in views().filter_map(|record| record.top.as_ref()) {
            if best.as_ref().is_none_or(|best| top.rank(best) == Ordering::Greater) {
                best = Some(top.clone());
            }
        }
        let is_best = |top: &Checked| best.as_ref().is_some_and(|best| top.rank(best) == Ordering::Equal);
        let holders = views().filter(|record| record.top.as_ref().is_some_and(is_best)).count();
        let is_clean = |record: &RecordView| match (&record.unreadable, &best) {
            (None, _) => true,
            (Some(unreadable), Some(best)) => *unreadable <= best.record().order,
            (Some(_), None) => false,
        };
        let clean = (self.views.values()).filter(|view| view.covers(key) && view.records.get(key).is_none_or(is_clean)).count();
        Standing { best, holders, clean }
    }

    /// Plans to write the best version to hosts with a view that lack it.
    ///
    /// Hosts without a view are left alone: they may have another version of the same order, which must not be
    /// overwritten unseen.
    fn plan_writes(&mut self, key: &RecordKey) {
        let case = self.cases.get_mut(key).expect("only judged records are planned for");
        let Some(best) = &case.standing.best else { return };
        let has_best = |record: &RecordView| record.top.as_ref().is_some_and(|top| top.rank(best) != Ordering::Less);
        for (host, view) in &self.views {
            if !view.records.get(key).is_some_and(has_best) && case.written.insert((*host, best.hash())) {
                case.writes_pending += 1;
                self.planned.push_back(Change::Write(*host, best.clone()));
            }
        }
    }

    /// Plans to delete what is older than the best version, which is at its quorum, on hosts that have that one.
    fn plan_sweeps(&mut self, key: &RecordKey) {
        let case = self.cases.get_mut(key).expect("only judged records are planned for");
        let Some(best) = &case.standing.best else { return };
        for (host, view) in &self.views {
            let Some(record) = view.records.get(key) else { continue };
            if record.top.as_ref().is_none_or(|top| top.rank(best) != Ordering::Equal) {
                continue;
            }
            for (order, path) in record.listed.iter().filter(|(order, _)| *order < best.record().order) {
                if case.swept.insert((*host, *order)) {
                    self.planned.push_back(Change::Sweep(*host, path.clone()));
                }
            }
        }
    }

    fn start_changes(&mut self) {
        while self.changes_pending < CHANGES_AT_ONCE
            && let Some(change) = self.planned.pop_front()
        {
            self.changes_pending += 1;
            let inner = self.ask.inner.clone();
            self.pending.push(Box::pin(async move {
                match change {
                    Change::Write(host, version) => {
                        let path = version.record().key.path(&version.record().order);
                        let result = asked(host, || inner.hosts.put(host, &path, version.object().clone())).await;
                        Event::Wrote(host, version, result)
                    }
                    Change::Sweep(host, path) => Event::Swept(inner.hosts.delete(host, &path).await),
                }
            }));
        }
    }

    /// Starts what the views of these records call for: bring the newest to every host, accept what is at its quorum, sweep.
    fn tend(&mut self, keys: &[RecordKey]) {
        for key in keys {
            self.plan_writes(key);
            let standing = &self.cases[key].standing;
            if let Some(best) = &standing.best
                && standing.holders >= self.ask.need
            {
                self.ask.inner.accept(best);
                self.plan_sweeps(key);
            }
        }
        self.start_changes();
    }

    /// Starts what is left to do after the answer. True if there is something.
    fn has_tail(&mut self) -> bool {
        let keys: Vec<RecordKey> = self.cases.keys().cloned().collect();
        self.tend(&keys);
        !self.pending.is_empty()
    }

    /// Goes on after the answer until nothing is left to do.
    async fn finish(mut self) {
        while let Some(event) = self.pending.next().await {
            self.absorb(event);
            self.absorb_ready();
            let keys = self.judge();
            self.tend(&keys);
        }
    }
}
