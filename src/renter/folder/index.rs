//! What the log says now: for each key with a live entry, where its bytes are or that it is removed.
//!
//! A key that is not here is a file, or nothing. Bounded by the live log (see the limits in `mod.rs`).

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::disk::DiskFile;

/// A segment that has entries in the index. Its file stays readable here even after its name is gone.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub mark: [u8; 8],
    pub file: Arc<dyn DiskFile>,
}

/// What the log says about one key.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    Put(Spot),
    Removed { segment_number: u64 },
}

/// Where an object's bytes are in the log.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub segment: Arc<Segment>,
    /// Segments are far smaller than 4 GiB (`SEGMENT_BYTES`).
    pub offset: u32,
    pub len: u32,
    pub written_ms: u64,
}

impl Spot {
    pub fn modified(&self) -> SystemTime {
        time_of_ms(self.written_ms)
    }
}

/// One key of a listing's snapshot: length and time, or removed.
pub(super) type SnapshotRow = (Arc<str>, Option<(u64, SystemTime)>);

/// A key's new slot; `None` takes the key out.
pub(super) type Change = (Arc<str>, Option<Slot>);

#[derive(Debug, Default)]
pub(super) struct Index {
    map: RwLock<BTreeMap<Arc<str>, Slot>>,
}

impl Index {
    /// The slot of a key; cheap to clone.
    pub fn get(&self, key: &str) -> Option<Slot> {
        self.read().get(key).cloned()
    }

    /// Takes a batch of changes at once.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let mut map = self.write();
        for (key, slot) in changes {
            match slot {
                Some(slot) => drop(map.insert(key, slot)),
                None => drop(map.remove(&key)),
            }
        }
    }

    /// Forgets what still points into a segment, because files say the same now. `keys` are those that may.
    pub fn retire(&self, segment_number: u64, keys: &[Arc<str>]) {
        let mut map = self.write();
        for key in keys {
            if map.get(key).is_some_and(|slot| slot.segment_number() == segment_number) {
                map.remove(key);
            }
        }
    }

    /// The key as the index holds it, if its slot is in this segment (so that lists of keys share the text).
    pub fn key_in(&self, segment_number: u64, key: &str) -> Option<(Arc<str>, Slot)> {
        let map = self.read();
        let (key, slot) = map.get_key_value(key)?;
        (slot.segment_number() == segment_number).then(|| (key.clone(), slot.clone()))
    }

    /// Rows under a prefix (a whole number of parts) and after a key, in key order.
    pub fn snapshot(&self, prefix: &str, after: Option<&str>) -> Vec<SnapshotRow> {
        let start = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let from: Bound<&str> = match after {
            Some(after) if after >= start.as_str() => Bound::Excluded(after),
            _ => Bound::Included(start.as_str()),
        };
        self.read()
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&start))
            .map(|(key, slot)| (key.clone(), slot.len_and_time()))
            .collect()
    }

    /// What the log says of the keys under a folder (a whole number of parts), in key order; `None` marks what was removed. No
    /// answer if there are more than `max`.
    pub fn under(&self, folder: &str, max: usize) -> Option<Vec<(Arc<str>, Option<Spot>)>> {
        let start = format!("{folder}/");
        let map = self.read();
        let mut under =
            map.range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&start));
        let spot = |(key, slot): (&Arc<str>, &Slot)| match slot {
            Slot::Put(spot) => (key.clone(), Some(spot.clone())),
            Slot::Removed { .. } => (key.clone(), None),
        };
        let rows = under.by_ref().take(max).map(spot).collect();
        under.next().is_none().then_some(rows)
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Arc<str>, Slot>> {
        // No code panics between two changes of the map, so a poisoned one is whole.
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Arc<str>, Slot>> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub fn segment_number(&self) -> u64 {
        match self {
            Slot::Put(spot) => spot.segment.number,
            Slot::Removed { segment_number } => *segment_number,
        }
    }

    fn len_and_time(&self) -> Option<(u64, SystemTime)> {
        match self {
            Slot::Put(spot) => Some((u64::from(spot.len), spot.modified())),
            Slot::Removed { .. } => None,
        }
    }
}

pub(super) fn time_of_ms(ms: u64) -> SystemTime {
    // A damaged or hostile time must not overflow; ten thousand years are enough.
    UNIX_EPOCH + Duration::from_millis(ms.min(10_000 * 366 * 86_400_000))
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
