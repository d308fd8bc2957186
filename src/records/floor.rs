//! The floor: the newest version of each record that this node ever saw, as far as memory allows.
//!
//! A read never answers below it, whatever hosts say, and a put below it is refused. It keeps whole objects, so that a
//! version which hosts lost can be written back. Forgetting an entry costs that only: the quorum still protects.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

use super::{envelope::Checked, kind::RecordKey};

/// Memory of an entry besides its object and twice its key: maps, handles, the parsed record. Measured roughly.
const ENTRY_BYTES: usize = 400;

/// Least recently used entries go first.
pub(super) struct Floors {
    bytes_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<RecordKey, Entry>,
    by_use: BTreeMap<u64, RecordKey>,
    clock: u64,
    bytes: usize,
}

struct Entry {
    version: Checked,
    announced: Announced,
    used: u64,
}

/// Whether subscribers were told of a version. They are told when it is at its quorum, which may be later than seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Announced {
    Yes,
    NotYet,
}

impl Floors {
    pub(super) fn new(bytes_max: usize) -> Floors {
        Floors { bytes_max, inner: Mutex::default() }
    }

    pub(super) fn get(&self, key: &RecordKey) -> Option<Checked> {
        let mut inner = self.lock();
        inner.touch(key);
        inner.entries.get(key).map(|entry| entry.version.clone())
    }

    /// A version that verifies was seen somewhere.
    pub(super) fn saw(&self, version: &Checked) {
        let mut inner = self.lock();
        if inner.rank(version) == Ordering::Greater {
            inner.set(version, Announced::NotYet);
            inner.shrink(self.bytes_max);
        }
    }

    /// A version is at its quorum. True if subscribers have to be told.
    #[must_use]
    pub(super) fn accepted(&self, version: &Checked) -> bool {
        let mut inner = self.lock();
        let tell = match inner.rank(version) {
            Ordering::Less => false,
            Ordering::Equal => inner.entries[&version.record().key].announced == Announced::NotYet,
            Ordering::Greater => true,
        };
        if tell {
            inner.set(version, Announced::Yes);
            inner.shrink(self.bytes_max);
        }
        tell
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds this lock")
    }
}

impl Inner {
    /// How `version` stands to the known one.
    fn rank(&self, version: &Checked) -> Ordering {
        match self.entries.get(&version.record().key) {
            Some(entry) => version.rank(&entry.version),
            None => Ordering::Greater,
        }
    }

    fn touch(&mut self, key: &RecordKey) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(key)
            && let Some(key) = self.by_use.remove(&entry.used)
        {
            entry.used = self.clock;
            self.by_use.insert(self.clock, key);
        }
    }

    fn set(&mut self, version: &Checked, announced: Announced) {
        let key = version.record().key.clone();
        self.remove(&key);
        self.clock += 1;
        self.bytes += bytes_of(version);
        self.by_use.insert(self.clock, key.clone());
        self.entries.insert(key, Entry { version: version.clone(), announced, used: self.clock });
    }

    fn remove(&mut self, key: &RecordKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.used);
            self.bytes -= bytes_of(&entry.version);
        }
    }

    fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some((_, key)) = self.by_use.first_key_value()
        {
            let key = key.clone();
            self.remove(&key);
        }
    }
}

fn bytes_of(version: &Checked) -> usize {
    version.object().len() + 2 * version.record().key.text().len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Order, OwnerChecks, PortalKey, Record};

    fn version(key: u8, version: u64) -> Checked {
        let key = RecordKey::new(crate::records::Kind::Site, &hex::encode([key; 16])).unwrap();
        let record = Record::new(key, Order::version(version), vec![0; 600]);
        Checked::seal(record, &PortalKey::from_seed(&[1; 32]), &OwnerChecks::REFUSE).unwrap()
    }

    #[test]
    fn it_only_rises() {
        let floors = Floors::new(1 << 20);
        let (one, two, three) = (version(1, 1), version(1, 2), version(1, 3));
        assert!(floors.get(&one.record().key).is_none());
        assert!(floors.accepted(&two));
        assert!(!floors.accepted(&two), "told once");
        assert!(!floors.accepted(&one));
        floors.saw(&one);
        assert_eq!(floors.get(&one.record().key).unwrap().record(), two.record());
        floors.saw(&three);
        assert_eq!(floors.get(&one.record().key).unwrap().record(), three.record());
        assert!(floors.accepted(&three), "seen before, told when at its quorum");
        assert!(!floors.accepted(&three));
    }

    #[test]
    fn memory_is_bounded_and_the_unused_go_first() {
        let floors = Floors::new(10 * bytes_of(&version(0, 0)));
        for key in 0..100 {
            floors.saw(&version(key, 1));
            assert!(floors.get(&version(0, 1).record().key).is_some(), "used all the time");
        }
        let inner = floors.lock();
        assert_eq!((inner.entries.len(), inner.by_use.len()), (10, 10));
        assert!(inner.bytes <= floors.bytes_max);
        assert!(inner.entries.contains_key(&version(99, 1).record().key));
        drop(inner);
        assert!(floors.get(&version(50, 1).record().key).is_none());
        let none = Floors::new(0);
        assert!(none.accepted(&version(1, 1)));
        assert_eq!(none.lock().bytes, 0);
    }
}
