//! Registry entries on hosts: read and written as records, at their quorum.

use std::time::Instant;

use crate::measure::{Class, Endpoint};
use crate::records::{InvalidRecord, RecordError};

use super::entry::{BadEntry, EntryId, NotReplacing, SignedEntry};
use super::watch::EntryWatch;
use super::{NameError, Names};

/// How an entry stands on its hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryHealth {
    /// Hosts that have a version of it.
    pub holders: usize,
    /// Hosts that have the newest version.
    pub holders_of_newest: usize,
    pub newest: SignedEntry,
}

/// Why an entry was not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutEntryError {
    /// One that is at least as good is known.
    #[error(transparent)]
    NotReplacing(#[from] NotReplacing),
    /// It is not its owner's.
    #[error(transparent)]
    Bad(#[from] BadEntry),
    /// It may or may not turn up later; the same entry may be sent again.
    #[error("the entry could not be kept: {0}")]
    Transient(String),
}

impl Names {
    /// The newest entry. `None` only if a majority of its hosts has none.
    pub async fn entry(&self, id: &EntryId) -> Result<Option<SignedEntry>, NameError> {
        let started = Instant::now();
        let read = self.inner.records.newest(&id.record_key()).await;
        self.inner.measures.observe(Endpoint::RecordRead, Class::Hosts, started.elapsed());
        match read {
            Ok(None) => Ok(None),
            Ok(Some(record)) => match SignedEntry::from_body(&record.body) {
                Ok(signed) => Ok(Some(signed)),
                Err(error) => Err(NameError::BadRecord { name: id.to_string(), why: error.to_string() }),
            },
            Err(error) => Err(NameError::Transient { name: id.to_string(), why: error.to_string() }),
        }
    }

    /// Asks every host of an entry. `None` only if a majority of them has none.
    pub async fn entry_health(&self, id: &EntryId) -> Result<Option<EntryHealth>, NameError> {
        let transient = |error: RecordError| NameError::Transient { name: id.to_string(), why: error.to_string() };
        let Some(census) = self.inner.records.census(&id.record_key()).await.map_err(transient)? else { return Ok(None) };
        match SignedEntry::from_body(&census.newest.body) {
            Ok(newest) => Ok(Some(EntryHealth { holders: census.holders, holders_of_newest: census.holders_of_newest, newest })),
            Err(error) => Err(NameError::BadRecord { name: id.to_string(), why: error.to_string() }),
        }
    }

    /// Watches entries; nothing yet.
    pub fn watch_entries(&self) -> EntryWatch {
        self.inner.entries.feed(&self.inner.records);
        self.inner.entries.watch()
    }

    /// Keeps an entry, at its quorum when this returns. Refused if it is not better than the one that is known.
    pub async fn put_entry(&self, signed: SignedEntry) -> Result<(), PutEntryError> {
        let started = Instant::now();
        // The signature is checked by `records`, with `entry_owner_check`, and only there: it is the dearest step of a put.
        let put = self.inner.records.put(signed.to_record()).await;
        self.inner.measures.observe(Endpoint::RecordWrite, Class::Hosts, started.elapsed());
        match put {
            Ok(()) => Ok(()),
            Err(RecordError::NotNewer { newest }) => {
                let existing = SignedEntry::from_body(&newest.body)?;
                // "Already registered" is taken as kept: what this node saw on one host only is brought to its quorum first.
                if existing == signed {
                    self.inner.records.newest(&newest.key).await.map_err(|error| PutEntryError::Transient(error.to_string()))?;
                }
                Err(signed.entry.replaces(&existing.entry).err().unwrap_or(NotReplacing::SameRevision).into())
            }
            Err(RecordError::Invalid(InvalidRecord::Owner(_))) => Err(signed.verify().err().unwrap_or(BadEntry::Body).into()),
            Err(error @ (RecordError::Unavailable { .. } | RecordError::Invalid(_) | RecordError::NoNextVersion(_))) => {
                Err(PutEntryError::Transient(error.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::names::testing::sign_entry;
    use crate::names::{Entry, NamesOptions, entry_owner_check};
    use crate::records::sim::{Mode, SimHosts};
    use crate::records::{Kind, OwnerChecks, PortalKey, Records, RecordsOptions};

    use super::*;

    fn stage() -> (Names, Records, Arc<SimHosts>) {
        let hosts = SimHosts::new(1, 9, 3);
        let (names, records) = node(&hosts);
        (names, records, hosts)
    }

    /// One process of a portal.
    fn node(hosts: &Arc<SimHosts>) -> (Names, Records) {
        let owners = OwnerChecks { entry: entry_owner_check, ..OwnerChecks::REFUSE };
        let options = RecordsOptions { owners, ..RecordsOptions::default() };
        let records = Records::new(hosts.clone(), PortalKey::from_seed(&[1; 32]), options);
        let names = Names::new(NamesOptions::default(), records.clone(), None, Arc::default()).expect("no fixed names");
        (names, records)
    }

    /// The two entries of one revision, the one with less work first.
    fn rivals(revision: u64) -> [SignedEntry; 2] {
        let mut rivals = [b"one", b"two"].map(|data| sign_entry(1, [7; 32], data, revision));
        rivals.sort_by_key(|rival| rival.entry.order());
        rivals
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_is_kept_replaced_and_told() {
        let (names, records, _) = stage();
        let mut told = records.subscribe(Kind::Entry);
        let [less, more] = rivals(3);
        let id = less.entry.id();
        assert_eq!(names.entry(&id).await, Ok(None));
        assert_eq!(names.put_entry(less.clone()).await, Ok(()));
        assert_eq!(names.entry(&id).await, Ok(Some(less.clone())));
        assert_eq!(names.put_entry(more.clone()).await, Ok(()));
        let refused = |why: NotReplacing| Err(PutEntryError::NotReplacing(why));
        assert_eq!(names.put_entry(less.clone()).await, refused(NotReplacing::LessWork));
        assert_eq!(names.put_entry(more.clone()).await, refused(NotReplacing::SameRevision));
        assert_eq!(names.put_entry(sign_entry(1, [7; 32], b"x", 2)).await, refused(NotReplacing::LowerRevision));
        let last = sign_entry(1, [7; 32], b"", u64::MAX);
        assert_eq!(names.put_entry(last.clone()).await, Ok(()));
        assert_eq!(names.entry(&id).await, Ok(Some(last.clone())));
        for expect in [less, more, last] {
            let record = told.recv().await.expect("told");
            assert_eq!(SignedEntry::from_body(&record.body), Ok(expect));
        }
    }

    /// Two processes on the same hosts write one entry by turns and at once, up to three hosts misbehave and change, and
    /// nobody who reads or writes after another sees less than that one.
    #[tokio::test(start_paused = true)]
    async fn two_nodes_never_go_back() {
        use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
        for seed in 0..30 {
            let hosts = SimHosts::new(seed, 9, 3);
            hosts.near.store(seed % 2 == 1, std::sync::atomic::Ordering::Relaxed);
            let nodes = [node(&hosts).0, node(&hosts).0];
            let id = sign_entry(1, [7; 32], b"", 0).entry.id();
            let (seen, next) = (AtomicU64::new(0), AtomicU64::new(1));
            let write = async |names: &Names| {
                for _ in 0..12 {
                    let revision = next.fetch_add(1, SeqCst);
                    let told = names.put_entry(sign_entry(1, [7; 32], b"race", revision)).await;
                    match told {
                        Ok(()) => drop(seen.fetch_max(revision, SeqCst)),
                        Err(PutEntryError::NotReplacing(_)) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
            };
            let read = async |names: &Names| {
                for _ in 0..20 {
                    let least = seen.load(SeqCst);
                    let found = names.entry(&id).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    let revision = found.map_or(0, |signed| signed.entry.revision());
                    assert!(revision >= least, "seed {seed}: {revision} after {least}");
                    seen.fetch_max(revision, SeqCst);
                }
            };
            let fault = async {
                let of = hosts.of(&id.record_key());
                for _ in 0..6 {
                    // The same three all the time: a host that was stale and is not any more has missed writes for good.
                    for host in &of[..3] {
                        let mode = Mode::FAULTS[hosts.random(0..Mode::FAULTS.len() as u64) as usize];
                        hosts.set(*host, mode);
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(40)).await;
                }
            };
            tokio::join!(write(&nodes[0]), write(&nodes[1]), write(&nodes[1]), read(&nodes[0]), read(&nodes[1]), fault);
            hosts.set_all(Mode::Up);
            let (third, _) = node(&hosts);
            let found = third.entry(&id).await.expect("read").expect("written").entry.revision();
            assert!(found >= seen.load(SeqCst), "seed {seed}");
        }
    }

    /// What another process writes on the same hosts reaches the subscribers of this one.
    #[tokio::test(start_paused = true)]
    async fn news_of_another_node() {
        let hosts = SimHosts::new(1, 9, 3);
        let (here, there) = (node(&hosts).0, node(&hosts).0);
        let watch = here.watch_entries();
        for revision in [4, 7] {
            let signed = sign_entry(1, [7; 32], b"there", revision);
            watch.subscribe(signed.entry.id()).expect("room");
            there.put_entry(signed.clone()).await.expect("kept");
            watch.ready().await;
            assert_eq!(watch.take(), Some(signed));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn health_counts_the_hosts() {
        let (names, _, hosts) = stage();
        let (old, new) = (sign_entry(1, [7; 32], b"old", 1), sign_entry(1, [7; 32], b"new", 2));
        let id = old.entry.id();
        assert_eq!(names.entry_health(&id).await, Ok(None));
        names.put_entry(old).await.expect("kept");
        names.inner.records.settle().await;
        let of = hosts.of(&id.record_key());
        of[..2].iter().for_each(|host| hosts.set(*host, Mode::Stale));
        names.put_entry(new.clone()).await.expect("kept");
        names.inner.records.settle().await;
        hosts.set(of[6], Mode::Down);
        let health = EntryHealth { holders: 6, holders_of_newest: 4, newest: new };
        assert_eq!(names.entry_health(&id).await, Ok(Some(health)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_owner_writes() {
        let (names, _, hosts) = stage();
        let signed = sign_entry(1, [7; 32], b"mine", 3);
        let changed = |data: &[u8], revision: u64| {
            let entry = &signed.entry;
            let entry = Entry::new(*entry.key(), *entry.datakey(), data.to_vec(), revision, entry.entry_type());
            SignedEntry { entry: entry.expect("fits"), signature: signed.signature }
        };
        for stolen in [changed(b"mine", 4), changed(b"ours", 3)] {
            assert_eq!(names.put_entry(stolen).await, Err(PutEntryError::Bad(BadEntry::Signature)));
        }
        assert_eq!(names.entry(&signed.entry.id()).await, Ok(None));
        hosts.set_all(Mode::Down);
        assert!(matches!(names.put_entry(signed.clone()).await, Err(PutEntryError::Transient(_))));
        assert!(matches!(names.entry(&signed.entry.id()).await, Err(NameError::Transient { .. })));
    }
}
