//! Putting a version on its hosts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, OwnedMutexGuard},
    time::{Instant, timeout_at},
};

use super::{
    Begun, HostCallError, Inner, PUT_DEADLINE, PutTold, Record, RecordError, RecordKey, Signer, asked, count, envelope::Checked,
    join_reasons, read,
};

/// See [`super::Records::put`].
pub(super) async fn put(inner: &Arc<Inner>, record: Record) -> Result<(), RecordError> {
    let version = Checked::seal(record, &inner.key, &inner.verifier.owners)?;
    let key = version.record().key.clone();
    let _turn = inner.turns.take(&key).await;
    let known = match (inner.floors.get(&key), key.kind().signer()) {
        (None, Signer::Owner) => read::newest(inner, &key).await?,
        (known, _) => known,
    };
    if let Some(known) = &known
        && version.record().order <= known.record().order
    {
        count(&inner.counters.puts_refused);
        return Err(RecordError::NotNewer { newest: known.record().clone() });
    }
    let mut job = PutJob::start(inner, &version, known.as_ref());
    if let Err(error) = job.reach_quorum().await {
        count(&inner.counters.puts_failed);
        if key.kind().signer() == Signer::Portal {
            let number = version.record().order.number();
            inner.attempts.insert(key, number);
        }
        return Err(error);
    }
    count(&inner.counters.puts_acknowledged);
    inner.accept(&version);
    if let Some(tail) = job.into_tail() {
        inner.leave_running(tail);
    }
    Ok(())
}

/// One version on its way to its hosts.
struct PutJob {
    votes: Arc<Votes>,
    /// Calls to hosts that take no put without waiting.
    waiting: FuturesUnordered<BoxFuture<'static, ()>>,
}

/// What the hosts of a put say. Hosts tell it from whatever thread; whoever waits is woken when it is decided, not each time.
struct Votes {
    inner: Arc<Inner>,
    need: usize,
    /// Path of the version known before, to be swept.
    superseded: Option<String>,
    state: Mutex<VoteState>,
    decided: Notify,
}

struct VoteState {
    pending: usize,
    acknowledged: Vec<usize>,
    failed: Vec<(usize, String)>,
    /// The new version is at its quorum, so the one before can go wherever the new one is.
    at_quorum: bool,
}

impl PutTold for Votes {
    fn told(&self, host: usize, result: Result<(), HostCallError>) {
        let sweep = self.count(host, result);
        if sweep {
            // If the host does not take it now, the next read sweeps.
            let _ = self.sweep_soon(host);
        }
    }
}

impl Votes {
    /// True if the version before has to be swept on this host.
    fn count(&self, host: usize, result: Result<(), HostCallError>) -> bool {
        let mut state = self.lock();
        state.pending -= 1;
        match result {
            Ok(()) if state.at_quorum => return true,
            Ok(()) => state.acknowledged.push(host),
            Err(error) => state.failed.push((host, error.to_string())),
        }
        let possible = state.acknowledged.len() + state.pending;
        if state.acknowledged.len() == self.need || possible < self.need {
            self.decided.notify_one();
        }
        false
    }

    fn sweep_soon(&self, host: usize) -> Begun {
        let Some(path) = &self.superseded else { return Begun::Yes };
        let begun = self.inner.hosts.begin_delete(host, path);
        if begun == Begun::Yes {
            count(&self.inner.counters.swept);
        }
        begun
    }

    async fn sweep(&self, host: usize) {
        if let Some(path) = &self.superseded
            && self.inner.hosts.delete(host, path).await.is_ok()
        {
            count(&self.inner.counters.swept);
        }
    }

    fn unavailable(&self, state: &VoteState, have: usize, late: usize) -> RecordError {
        RecordError::Unavailable { have, need: self.need, reasons: join_reasons(&state.failed, late) }
    }

    fn lock(&self) -> MutexGuard<'_, VoteState> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl PutJob {
    fn start(inner: &Arc<Inner>, version: &Checked, known: Option<&Checked>) -> PutJob {
        let key = &version.record().key;
        let placed = inner.placed(&key.group());
        let path: Arc<str> = key.path(&version.record().order).into();
        let state = VoteState { pending: placed.hosts.len(), acknowledged: Vec::new(), failed: Vec::new(), at_quorum: false };
        let votes = Arc::new(Votes {
            inner: inner.clone(),
            need: placed.need,
            superseded: known.map(|known| key.path(&known.record().order)),
            state: Mutex::new(state),
            decided: Notify::new(),
        });
        let waiting = FuturesUnordered::new();
        let told: Arc<dyn PutTold> = votes.clone();
        for host in placed.hosts {
            if inner.hosts.begin_put(host, &path, version.object(), &told) == Begun::Yes {
                continue;
            }
            let (votes, path, object) = (votes.clone(), path.clone(), version.object().clone());
            waiting.push(Box::pin(async move {
                let result = asked(host, || votes.inner.hosts.put(host, &path, object.clone())).await;
                if votes.count(host, result) {
                    votes.sweep(host).await;
                }
            }) as BoxFuture<'static, _>);
        }
        PutJob { votes, waiting }
    }

    async fn reach_quorum(&mut self) -> Result<(), RecordError> {
        let deadline = Instant::now() + PUT_DEADLINE;
        loop {
            {
                let mut state = self.votes.lock();
                let (have, possible) = (state.acknowledged.len(), state.acknowledged.len() + state.pending);
                if have >= self.votes.need {
                    state.at_quorum = true;
                    return Ok(());
                }
                if possible < self.votes.need {
                    return Err(self.votes.unavailable(&state, possible, 0));
                }
            }
            let decided = async {
                tokio::select! {
                    () = self.votes.decided.notified() => {}
                    Some(()) = self.waiting.next() => {}
                }
            };
            if timeout_at(deadline, decided).await.is_err() {
                let state = self.votes.lock();
                return Err(self.votes.unavailable(&state, state.acknowledged.len(), state.pending));
            }
        }
    }

    /// Brings the version to the other hosts; sweeps the version before on hosts that have the new one. None if that needs
    /// nobody who waits.
    fn into_tail(self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let PutJob { votes, waiting } = self;
        // Those that come later sweep by themselves.
        let early = std::mem::take(&mut votes.lock().acknowledged);
        let slow: Vec<usize> = early.into_iter().filter(|host| votes.sweep_soon(*host) == Begun::No).collect();
        if waiting.is_empty() && slow.is_empty() {
            return None;
        }
        // Not one after the other: a host that hangs must not keep the rest from being swept.
        let sweeps = slow.into_iter().map(move |host| {
            let votes = votes.clone();
            async move { votes.sweep(host).await }
        });
        let sweeps: FuturesUnordered<_> = sweeps.collect();
        Some(async move {
            tokio::join!(sweeps.collect::<()>(), waiting.collect::<()>());
        })
    }
}

/// Lets writers of one key take turns. Holds nothing for keys without writers.
#[derive(Default)]
pub(super) struct Turns {
    waiting: Mutex<HashMap<RecordKey, Arc<tokio::sync::Mutex<()>>>>,
}

/// The turn of one writer; the next goes on when it is dropped.
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    key: RecordKey,
    /// None while it waits.
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    pub(super) async fn take(&self, key: &RecordKey) -> Turn<'_> {
        let lock = self.lock().entry(key.clone()).or_default().clone();
        // Built before the wait, so that a writer that is cancelled while it waits cleans up, too.
        let mut turn = Turn { turns: self, key: key.clone(), guard: None };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RecordKey, Arc<tokio::sync::Mutex<()>>>> {
        self.waiting.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = self.turns.lock();
        self.guard = None;
        // Only the map is left: nobody has or waits for the turn, and nobody can start to, as the map is locked.
        if waiting.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            waiting.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_follow_each_other_and_leave_nothing() {
        let turns = Turns::default();
        let key = RecordKey::host_table();
        let first = turns.take(&key).await;
        let mut second = Box::pin(turns.take(&key));
        let mut third = Box::pin(turns.take(&key));
        assert!(futures::poll!(&mut second).is_pending());
        assert!(futures::poll!(&mut third).is_pending());
        let other = turns.take(&RecordKey::entry(&[0; 32])).await;
        drop(first);
        drop(second);
        let third = third.await;
        assert_eq!(turns.lock().len(), 2);
        drop((third, other));
        assert!(turns.lock().is_empty());
    }
}
