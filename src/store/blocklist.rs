//! The portal's own blocklist: hashes of sector roots that are not served by any address (`docs/formats.md` 11).
//!
//! Each line is a record of its own, so that two nodes can change the list at once, and one that is taken back says so.
//! Lists of others, which can be long, are files ([`Store::set_denied`]).

use std::collections::HashMap;
use std::sync::RwLock;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::records::{Extent, Followed, Kind, Order, Record, RecordKey};

use super::{Store, StoreError};

/// Lines of the list. Each takes about 150 bytes, and is read from the hosts at every look.
pub const BLOCKLIST_MAX: usize = 50_000;
/// Lines changed by one request.
pub const BLOCKLIST_CHANGES_MAX: usize = 1_000;
/// How long a line that another node wrote may stay unnoticed here.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Records written side by side.
const WRITES_AT_ONCE: usize = 16;
/// Version of the body that this program writes and reads.
const BODY_VERSION: u32 = 1;

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// BLAKE2b-256 of the sector root.
    pub hash: [u8; 32],
    /// Unix time, milliseconds.
    pub added_ms: u64,
}

/// Body of a record, DAG-CBOR.
#[derive(Serialize, Deserialize)]
struct Body {
    v: u32,
    added: u64,
}

/// The newest version of a line, and when it was added unless that version took it back.
type Line = (Order, Option<u64>);

#[derive(Default)]
pub struct Blocklist {
    lines: RwLock<HashMap<[u8; 32], Line>>,
}

impl Blocklist {
    pub fn has(&self, hash: &[u8; 32]) -> bool {
        self.lines.read().expect("no panic under this lock").get(hash).is_some_and(|(_, added)| added.is_some())
    }

    pub fn is_empty(&self) -> bool {
        !self.lines.read().expect("no panic under this lock").values().any(|(_, added)| added.is_some())
    }

    /// All lines, the oldest first.
    fn list(&self) -> Vec<Blocked> {
        let lines = self.lines.read().expect("no panic under this lock");
        let mut list: Vec<Blocked> =
            lines.iter().filter_map(|(hash, (_, added))| Some(Blocked { hash: *hash, added_ms: (*added)? })).collect();
        list.sort_by(|a, b| a.added_ms.cmp(&b.added_ms).then(a.hash.cmp(&b.hash)));
        list
    }

    /// One version of a line, in whatever order they come. Did it change the list?
    fn take_in(&self, record: &Record) -> bool {
        let mut hash = [0; 32];
        if hex::decode_to_slice(record.key.text(), &mut hash).is_err() {
            return false;
        }
        // A body of a later version still blocks: what is blocked stays so.
        let added = match record.removed {
            true => None,
            false => Some(serde_ipld_dagcbor::from_slice::<Body>(&record.body).map_or(0, |body| body.added)),
        };
        let mut lines = self.lines.write().expect("no panic under this lock");
        let before = match lines.get(&hash) {
            Some((known, _)) if *known >= record.order => return false,
            Some((_, added)) => *added,
            None => None,
        };
        lines.insert(hash, (record.order, added));
        before.is_some() != added.is_some()
    }
}

impl Store {
    /// The portal's own blocklist, the oldest line first.
    pub fn blocklist(&self) -> Vec<Blocked> {
        self.inner.denied.blocklist.list()
    }

    /// Adds lines and takes others back. When it returns, each is in force here and at its quorum.
    pub async fn change_blocklist(&self, add: &[[u8; 32]], remove: &[[u8; 32]]) -> Result<(), StoreError> {
        if add.len() + remove.len() > BLOCKLIST_CHANGES_MAX {
            return Err(StoreError::Unsupported("at most 1,000 lines of the blocklist are changed at once"));
        }
        if self.blocklist().len() + add.len() > BLOCKLIST_MAX {
            return Err(StoreError::Unsupported(
                "the portal's blocklist is full: put long lists into files, see [deny] blocklists",
            ));
        }
        let mut changes: Vec<([u8; 32], Change)> = add.iter().map(|hash| (*hash, Change::Add)).collect();
        changes.extend(remove.iter().map(|hash| (*hash, Change::Remove)));
        let writes = stream::iter(changes).map(|(hash, change)| self.change_line(hash, change));
        writes.buffer_unordered(WRITES_AT_ONCE).try_collect::<Vec<()>>().await?;
        Ok(())
    }

    async fn change_line(&self, hash: [u8; 32], change: Change) -> Result<(), StoreError> {
        let records = &self.inner.records;
        let key = RecordKey::block(&hash);
        let blocked = records.newest(&key).await?.filter(|newest| !newest.removed);
        match (change, &blocked) {
            (Change::Add, None) => {
                let added = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
                let body = serde_ipld_dagcbor::to_vec(&Body { v: BODY_VERSION, added }).expect("numbers are DAG-CBOR");
                let record = Record::new(key.clone(), records.next_version(&key).await?, body);
                records.put(record).await?;
            }
            (Change::Remove, Some(_)) => records.remove(&key).await?,
            (Change::Add, Some(_)) | (Change::Remove, None) => {}
        }
        if let Some(newest) = records.newest(&key).await? {
            self.take_line(&newest);
        }
        Ok(())
    }

    /// Reads the list from the hosts once, before anything is served.
    pub async fn read_blocklist(&self) -> Extent {
        let mut scan = self.inner.records.scan(Kind::Block);
        while let Some(found) = scan.next().await {
            self.take_line(&found.record);
        }
        scan.extent()
    }

    /// Reads the list from the hosts and goes on reading it; `changed` is called after each change. Runs until dropped.
    pub async fn follow_blocklist(&self, changed: impl Fn()) {
        let take = |followed: Followed<'_>| {
            if let Followed::Record(record) = followed
                && self.take_line(record)
            {
                changed();
            }
        };
        self.inner.records.follow(Kind::Block, LOOK_EVERY, take).await;
    }

    fn take_line(&self, record: &Record) -> bool {
        let changed = self.inner.denied.blocklist.take_in(record);
        if changed {
            self.inner.denied_changed();
        }
        changed
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add,
    Remove,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_a_line_counts() {
        let key = RecordKey::block(&[7; 32]);
        let body = serde_ipld_dagcbor::to_vec(&Body { v: 1, added: 5 }).expect("encodes");
        let (add, again) =
            (Record::new(key.clone(), Order::version(1), body), Record::new(key.clone(), Order::version(3), &b"?"[..]));
        let back = Record::removal(key, Order::version(2));
        let list = Blocklist::default();
        for (record, changed, blocked) in
            [(&back, false, false), (&add, false, false), (&again, true, true), (&back, false, true), (&again, false, true)]
        {
            assert_eq!((list.take_in(record), list.has(&[7; 32])), (changed, blocked), "{record:?}");
        }
        assert_eq!(list.list(), [Blocked { hash: [7; 32], added_ms: 0 }]);
    }
}
