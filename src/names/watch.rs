//! Watching entries: whoever asked for an entry is told each better version, or only the newest if it is slow.
//!
//! One hub for all watchers, so that an entry that nobody watches costs one look into a map, however many watchers
//! there are. Versions that this node writes or reads come at once; those that another node wrote on the same hosts
//! come with the next look at the hosts, which is at a bounded rate.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::records::{Kind, Order, Record, Records};

use super::entry::{EntryId, SignedEntry};

/// Entries of one watcher: an application with a feed of a thousand friends. About 700 KiB if all are changed unread.
pub const WATCHED_EACH_MAX: usize = 1_024;
/// Entries of all watchers: about 70 MiB if all are changed unread.
pub const WATCHED_MAX: usize = 100_000;
/// How often a watched entry is read from its hosts, if there are few: what another node wrote arrives this late.
pub const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// Least time between two such reads, whichever entries they are for: twenty a second are a small load on any hosts.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(50);

/// As many entries are watched as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many entries are watched: at most {WATCHED_EACH_MAX} on one connection, {WATCHED_MAX} in all")]
pub struct TooManyWatched;

/// Knows who watches what. A cheap handle.
#[derive(Clone, Default)]
pub struct EntryHub(Arc<Hub>);

#[derive(Default)]
struct Hub {
    watchers: Mutex<BTreeMap<EntryId, Vec<Arc<Watcher>>>>,
    /// Pairs of entry and watcher.
    pairs: AtomicUsize,
    /// Entries to be looked at without a pause, because news of unknown entries was lost.
    urgent: AtomicUsize,
    feeding: OnceLock<()>,
}

/// What one watcher waits for.
#[derive(Default)]
struct Watcher {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    /// With the newest version that was put into `fresh`: nobody is told of an older one afterwards.
    watched: HashMap<EntryId, Option<Order>>,
    /// The newest version not told yet; a second one takes the place of the first.
    fresh: HashMap<EntryId, SignedEntry>,
    /// Order of telling: each key of `fresh` once.
    queue: VecDeque<EntryId>,
}

/// The entries that one connection watches. Watches nothing any more when it is dropped.
pub struct EntryWatch {
    hub: Arc<Hub>,
    watcher: Arc<Watcher>,
}

impl EntryHub {
    pub fn watch(&self) -> EntryWatch {
        EntryWatch { hub: self.0.clone(), watcher: Arc::default() }
    }

    /// Tells whoever watches this entry, unless they know it or a better one.
    pub fn offer(&self, signed: &SignedEntry) {
        self.0.offer(signed);
    }

    /// Starts what brings news from `records`, once. It ends with the hub and its watches.
    pub(super) fn feed(&self, records: &Records) {
        if self.0.feeding.set(()).is_err() {
            return;
        }
        tokio::spawn(pass_on(Arc::downgrade(&self.0), records.subscribe(Kind::Entry)));
        tokio::spawn(look_again(Arc::downgrade(&self.0), records.clone()));
    }
}

/// Passes on what becomes the newest that this node knows.
async fn pass_on(hub: Weak<Hub>, mut news: broadcast::Receiver<Arc<Record>>) {
    loop {
        let record = news.recv().await;
        let Some(hub) = hub.upgrade() else { return };
        match record {
            Ok(record) => hub.offer_record(&record),
            Err(RecvError::Lagged(lost)) => {
                tracing::debug!(lost, "news of entries were lost: all that are watched are read");
                hub.urgent.store(hub.lock().len(), Relaxed);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Reads what is watched from its hosts, one after the other, round and round.
async fn look_again(hub: Weak<Hub>, records: Records) {
    let mut last = None;
    loop {
        let next = {
            let Some(hub) = hub.upgrade() else { return };
            hub.next_look(last)
        };
        let Some((id, pause)) = next else {
            // The hub is not held while waiting: it ends when its last handle goes.
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            continue;
        };
        tokio::time::sleep(pause).await;
        last = Some(id);
        // One that cannot be read is looked at in the next round.
        let Ok(Some(record)) = records.newest(&id.record_key()).await else { continue };
        let Some(hub) = hub.upgrade() else { return };
        hub.offer_record(&record);
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<EntryId, Vec<Arc<Watcher>>>> {
        self.watchers.lock().expect("no code panics while it holds this lock")
    }

    /// The entry after `last`, and how long to wait before it is read.
    fn next_look(&self, last: Option<EntryId>) -> Option<(EntryId, Duration)> {
        let watchers = self.lock();
        let count = watchers.len();
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = watchers.range((from, Bound::Unbounded)).next().or_else(|| watchers.iter().next());
        let id = *next?.0;
        drop(watchers);
        let urgent = self.urgent.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        let share = LOOK_AGAIN_AFTER / u32::try_from(count).unwrap_or(u32::MAX);
        Some((id, if urgent { Duration::ZERO } else { share.max(LOOK_PAUSE_MIN) }))
    }

    fn watchers_of(&self, id: &EntryId) -> Vec<Arc<Watcher>> {
        self.lock().get(id).cloned().unwrap_or_default()
    }

    fn offer_record(&self, record: &Record) {
        let Some(id) = EntryId::of_record(&record.key) else { return };
        let watchers = self.watchers_of(&id);
        // Parsed only for those that somebody watches.
        if !watchers.is_empty()
            && let Ok(signed) = SignedEntry::from_body(&record.body)
        {
            watchers.iter().for_each(|watcher| watcher.offer(&id, &signed));
        }
    }

    fn offer(&self, signed: &SignedEntry) {
        let id = signed.entry.id();
        self.watchers_of(&id).iter().for_each(|watcher| watcher.offer(&id, signed));
    }

    fn leave(&self, id: &EntryId, watcher: &Arc<Watcher>) {
        let mut watchers = self.lock();
        if let Some(those) = watchers.get_mut(id) {
            those.retain(|other| !Arc::ptr_eq(other, watcher));
            if those.is_empty() {
                watchers.remove(id);
            }
        }
        self.pairs.fetch_sub(1, Relaxed);
    }
}

impl Watcher {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    fn offer(&self, id: &EntryId, signed: &SignedEntry) {
        let mut state = self.lock();
        let order = signed.entry.order();
        match state.watched.get_mut(id) {
            Some(known) if known.is_none_or(|known| known < order) => *known = Some(order),
            Some(_) | None => return,
        }
        if state.fresh.insert(*id, signed.clone()).is_none() {
            state.queue.push_back(*id);
        }
        drop(state);
        self.news.notify_one();
    }
}

impl EntryWatch {
    /// Watches an entry from now on. False if it was watched already.
    pub fn subscribe(&self, id: EntryId) -> Result<bool, TooManyWatched> {
        let mut state = self.watcher.lock();
        if state.watched.contains_key(&id) {
            return Ok(false);
        }
        let room = self.hub.pairs.fetch_update(Relaxed, Relaxed, |pairs| (pairs < WATCHED_MAX).then_some(pairs + 1));
        if state.watched.len() >= WATCHED_EACH_MAX || room.is_err() {
            if room.is_ok() {
                self.hub.pairs.fetch_sub(1, Relaxed);
            }
            return Err(TooManyWatched);
        }
        state.watched.insert(id, None);
        drop(state);
        self.hub.lock().entry(id).or_default().push(self.watcher.clone());
        Ok(true)
    }

    pub fn unsubscribe(&self, id: &EntryId) {
        let mut state = self.watcher.lock();
        if state.watched.remove(id).is_none() {
            return;
        }
        if state.fresh.remove(id).is_some() {
            state.queue.retain(|queued| queued != id);
        }
        drop(state);
        self.hub.leave(id, &self.watcher);
    }

    /// A version that was read for this watcher.
    pub fn offer(&self, signed: &SignedEntry) {
        self.watcher.offer(&signed.entry.id(), signed);
    }

    /// Waits until there is something to tell.
    pub async fn ready(&self) {
        loop {
            let news = self.watcher.news.notified();
            if !self.watcher.lock().queue.is_empty() {
                return;
            }
            news.await;
        }
    }

    /// The next thing to tell.
    pub fn take(&self) -> Option<SignedEntry> {
        let mut state = self.watcher.lock();
        let id = state.queue.pop_front()?;
        state.fresh.remove(&id)
    }
}

impl Drop for EntryWatch {
    fn drop(&mut self) {
        let watched: Vec<EntryId> = self.watcher.lock().watched.drain().map(|(id, _)| id).collect();
        watched.iter().for_each(|id| self.hub.leave(id, &self.watcher));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::testing::sign_entry;

    fn told(watch: &EntryWatch) -> Vec<u64> {
        std::iter::from_fn(|| watch.take()).map(|signed| signed.entry.revision()).collect()
    }

    #[tokio::test]
    async fn the_slow_see_the_newest_and_nobody_goes_back() {
        let hub = EntryHub::default();
        let (slow, other) = (hub.watch(), hub.watch());
        let id = sign_entry(1, [1; 32], b"", 0).entry.id();
        assert_eq!(slow.subscribe(id), Ok(true));
        assert_eq!(slow.subscribe(id), Ok(false));
        for revision in [3, 5, 4, 5, 9] {
            hub.offer(&sign_entry(1, [1; 32], b"", revision));
            hub.offer(&sign_entry(1, [2; 32], b"", revision));
        }
        slow.ready().await;
        assert_eq!((told(&slow), told(&other)), (vec![9], vec![]));
        slow.offer(&sign_entry(1, [1; 32], b"", 8));
        assert!(told(&slow).is_empty());
        hub.offer(&sign_entry(1, [1; 32], b"", 10));
        slow.unsubscribe(&id);
        assert!(told(&slow).is_empty());
        assert!(hub.0.lock().is_empty());
        assert_eq!(slow.subscribe(id), Ok(true));
        drop(slow);
        assert!(hub.0.lock().is_empty());
        assert_eq!(hub.0.pairs.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn as_many_as_there_may_be() {
        let hub = EntryHub::default();
        let watch = hub.watch();
        let id = |number: usize| EntryId([number.to_le_bytes(); 4].concat().try_into().expect("32 bytes"));
        for number in 0..WATCHED_EACH_MAX {
            assert_eq!(watch.subscribe(id(number)), Ok(true));
        }
        assert_eq!(watch.subscribe(id(WATCHED_EACH_MAX)), Err(TooManyWatched));
        watch.unsubscribe(&id(0));
        assert_eq!(watch.subscribe(id(WATCHED_EACH_MAX)), Ok(true));
        hub.0.pairs.store(WATCHED_MAX, Relaxed);
        assert_eq!(hub.watch().subscribe(id(0)), Err(TooManyWatched));
    }

    /// Watched entries are read in turn, faster when news were lost.
    #[test]
    fn looks_go_round() {
        let hub = EntryHub::default();
        assert_eq!(hub.0.next_look(None), None);
        let watch = hub.watch();
        let ids = [1, 2, 3].map(|byte| EntryId([byte; 32]));
        for id in ids {
            watch.subscribe(id).expect("room");
        }
        let pause = LOOK_AGAIN_AFTER / 3;
        assert_eq!(hub.0.next_look(None), Some((ids[0], pause)));
        assert_eq!(hub.0.next_look(Some(ids[0])), Some((ids[1], pause)));
        hub.0.urgent.store(1, Relaxed);
        assert_eq!(hub.0.next_look(Some(ids[2])), Some((ids[0], Duration::ZERO)));
        assert_eq!(hub.0.next_look(Some(EntryId([9; 32]))), Some((ids[0], pause)));
    }
}
