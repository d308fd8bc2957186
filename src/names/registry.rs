//! Registry entries on hosts: read and written as records, at their quorum.

use std::time::Instant;

use crate::measure::{Class, Endpoint};
use crate::records::{InvalidRecord, RecordError};

use super::entry::{BadEntry, EntryId, NotReplacing, SignedEntry};
use super::{NameError, Names};

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
        let owners = OwnerChecks { entry: entry_owner_check, ..OwnerChecks::REFUSE };
        let options = RecordsOptions { owners, ..RecordsOptions::default() };
        let records = Records::new(hosts.clone(), PortalKey::from_seed(&[1; 32]), options);
        let names = Names::new(NamesOptions::default(), records.clone(), None, Arc::default()).expect("no fixed names");
        (names, records, hosts)
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
