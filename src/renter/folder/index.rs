//! What the log says now: for each key with a live entry, where its bytes are or that it is removed.
//!
//! A key that is not here is a file, or nothing. Bounded by the live log (see the limits in `mod.rs`).

use std::{
    borrow::Borrow,
    cmp::Ordering,
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
    pub beside: Beside,
}

/// What there is in the folder of a record beside an object of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// The folder was not there, and the log had nothing under it, when the object was put. Whatever came later is in the index as
    /// long as the object is, as segments become files and leave the index in their order: so the log alone tells what is there. (Objects
    /// too long for the log come into such a folder by nobody: it is a record's, and no record is.)
    Nothing,
    Unknown,
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

/// Bytes of a key that are compared without looking at its text: enough to tell nearly all keys of records and sectors apart
/// (`records/entry/ab/1234567`). Texts lie all over the memory, and a search of a full log compares some thirty of them.
const HEAD_BYTES: usize = 24;

/// A key with its first bytes at hand. Ordered as the text is.
#[derive(Debug)]
struct Key {
    head: Head,
    text: Arc<str>,
}

/// The first bytes of a key, filled up with zeros, as numbers that sort like them.
type Head = [u64; HEAD_BYTES / 8];

fn head_of(text: &str) -> Head {
    let mut bytes = [0; HEAD_BYTES];
    let known = text.len().min(HEAD_BYTES);
    bytes[..known].copy_from_slice(&text.as_bytes()[..known]);
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|index| u64::from_be_bytes(words[index]))
}

/// What keys are looked up by: a key of the map, or a text with its head.
trait Sorted {
    fn parts(&self) -> (&Head, &str);
}

impl Sorted for Key {
    fn parts(&self) -> (&Head, &str) {
        (&self.head, &self.text)
    }
}

struct Sought<'t> {
    head: Head,
    text: &'t str,
}

impl<'t> Sought<'t> {
    fn of(text: &'t str) -> Sought<'t> {
        Sought { head: head_of(text), text }
    }
}

impl Sorted for Sought<'_> {
    fn parts(&self) -> (&Head, &str) {
        (&self.head, self.text)
    }
}

impl<'k> Borrow<dyn Sorted + 'k> for Key {
    fn borrow(&self) -> &(dyn Sorted + 'k) {
        self
    }
}

impl Ord for dyn Sorted + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((head, text), (other_head, other_text)) = (self.parts(), other.parts());
        // A text that ends within its head is filled up with what sorts before everything.
        head.cmp(other_head).then_with(|| text.cmp(other_text))
    }
}

impl PartialOrd for dyn Sorted + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Sorted + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for dyn Sorted + '_ {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        (self as &dyn Sorted).cmp(other)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key {}

#[derive(Debug, Default)]
pub(super) struct Index {
    map: RwLock<BTreeMap<Key, Slot>>,
}

impl Index {
    /// The slot of a key; cheap to clone.
    pub fn get(&self, key: &str) -> Option<Slot> {
        self.read().get(&Sought::of(key) as &dyn Sorted).cloned()
    }

    /// Takes a batch of changes at once.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let mut map = self.write();
        for (key, slot) in changes {
            match slot {
                Some(slot) => drop(map.insert(Key { head: head_of(&key), text: key }, slot)),
                None => drop(map.remove(&Sought::of(&key) as &dyn Sorted)),
            }
        }
    }

    /// Forgets what still points into a segment, because files say the same now. `keys` are those that may.
    pub fn retire(&self, segment_number: u64, keys: &[Arc<str>]) {
        let mut map = self.write();
        for key in keys {
            let sought = Sought::of(key);
            if map.get(&sought as &dyn Sorted).is_some_and(|slot| slot.segment_number() == segment_number) {
                map.remove(&sought as &dyn Sorted);
            }
        }
    }

    /// The key as the index holds it, if its slot is in this segment (so that lists of keys share the text).
    pub fn key_in(&self, segment_number: u64, key: &str) -> Option<(Arc<str>, Slot)> {
        let map = self.read();
        let (key, slot) = map.get_key_value(&Sought::of(key) as &dyn Sorted)?;
        (slot.segment_number() == segment_number).then(|| (key.text.clone(), slot.clone()))
    }

    /// Rows under a prefix (a whole number of parts) and after a key, in key order.
    pub fn snapshot(&self, prefix: &str, after: Option<&str>) -> Vec<SnapshotRow> {
        let start = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let after = after.filter(|after| *after >= start.as_str());
        let sought = Sought::of(after.unwrap_or(&start));
        let from: Bound<&dyn Sorted> = if after.is_some() { Bound::Excluded(&sought) } else { Bound::Included(&sought) };
        self.read()
            .range::<dyn Sorted, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.text.starts_with(&start))
            .map(|(key, slot)| (key.text.clone(), slot.len_and_time()))
            .collect()
    }

    /// What the log says of the keys under a folder (a whole number of parts), in key order; `None` marks what was removed. No
    /// answer if there are more than `max`.
    pub fn under(&self, folder: &str, max: usize) -> Option<Vec<(Arc<str>, Option<Spot>)>> {
        let start = format!("{folder}/");
        let sought = Sought::of(&start);
        let map = self.read();
        let from: Bound<&dyn Sorted> = Bound::Included(&sought);
        let mut under = map.range::<dyn Sorted, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.text.starts_with(&start));
        let spot = |(key, slot): (&Key, &Slot)| match slot {
            Slot::Put(spot) => (key.text.clone(), Some(spot.clone())),
            Slot::Removed { .. } => (key.text.clone(), None),
        };
        let rows = under.by_ref().take(max).map(spot).collect();
        under.next().is_none().then_some(rows)
    }

    /// Whether the log says nothing of keys under a folder (a whole number of parts).
    pub fn has_none_under(&self, folder: &str) -> bool {
        let start = format!("{folder}/");
        let sought = Sought::of(&start);
        let from: Bound<&dyn Sorted> = Bound::Included(&sought);
        let map = self.read();
        map.range::<dyn Sorted, _>((from, Bound::Unbounded)).next().is_none_or(|(key, _)| !key.text.starts_with(&start))
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Slot>> {
        // No code panics between two changes of the map, so a poisoned one is whole.
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Key, Slot>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys sort as their texts do, whatever their heads have in common.
    #[test]
    fn keys_sort_as_their_texts() {
        let long = "records/entry/ab/1234567";
        assert_eq!(long.len(), HEAD_BYTES);
        let mut texts: Vec<String> =
            ["", "a", "b", "records", "records/", "records/entry/ab", "sectors/00/ff", "\u{7f}"].map(String::from).into();
        texts.extend([long.to_owned(), format!("{long}0"), format!("{long}1"), format!("{long}10"), long[..23].to_owned()]);
        for one in &texts {
            for other in &texts {
                let key = Key { head: head_of(one), text: one.as_str().into() };
                let sought = Sought::of(other);
                assert_eq!((&key as &dyn Sorted).cmp(&sought), one.cmp(other), "{one} {other}");
            }
        }
        let index = Index::default();
        index.apply(texts.iter().map(|text| (text.as_str().into(), Some(Slot::Removed { segment_number: 1 }))));
        texts.sort();
        texts.dedup();
        let listed: Vec<String> = index.snapshot("", None).into_iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(listed, texts);
        for text in &texts {
            assert!(index.get(text).is_some(), "{text}");
        }
        assert!(index.get("record").is_none());
        let under = |folder: &str| index.under(folder, 64).expect("few").len();
        assert_eq!((under("records/entry"), under("records/entry/ab"), under("sectors"), under("nothing")), (6, 5, 1, 0));
    }
}
