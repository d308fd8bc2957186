//! Putting a version on its hosts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{FuturesUnordered, iter},
};
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, timeout_at},
};

use super::{
    HostCallError, Inner, PUT_DEADLINE, Record, RecordError, RecordKey, Signer, count, envelope::Checked, join_reasons, read,
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
    let mut job = PutJob::start(inner, version.clone(), known);
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
    if job.has_tail() {
        inner.leave_running(job.finish());
    }
    Ok(())
}

/// One version on its way to its hosts.
struct PutJob {
    inner: Arc<Inner>,
    need: usize,
    acknowledged: Vec<usize>,
    failed: Vec<(usize, String)>,
    pending: FuturesUnordered<BoxFuture<'static, (usize, Result<(), HostCallError>)>>,
    /// Path of the version known before, to be swept.
    superseded: Option<String>,
}

impl PutJob {
    fn start(inner: &Arc<Inner>, version: Checked, known: Option<Checked>) -> PutJob {
        let key = &version.record().key;
        let placed = inner.placed(&key.group());
        let path: Arc<str> = key.path(&version.record().order).into();
        let pending = FuturesUnordered::new();
        for host in placed.hosts {
            let (inner, path, object) = (inner.clone(), path.clone(), version.object().clone());
            let call = async move { (host, inner.hosts.put(host, &path, object).await) };
            pending.push(Box::pin(call) as BoxFuture<'static, _>);
        }
        let superseded = known.map(|known| key.path(&known.record().order));
        let (acknowledged, failed) = (Vec::new(), Vec::new());
        PutJob { inner: inner.clone(), need: placed.need, acknowledged, failed, pending, superseded }
    }

    async fn reach_quorum(&mut self) -> Result<(), RecordError> {
        let deadline = Instant::now() + PUT_DEADLINE;
        while self.acknowledged.len() < self.need {
            let possible = self.acknowledged.len() + self.pending.len();
            if possible < self.need {
                return Err(self.unavailable(possible, 0));
            }
            match timeout_at(deadline, self.pending.next()).await {
                Ok(Some((host, Ok(())))) => self.acknowledged.push(host),
                Ok(Some((host, Err(error)))) => self.failed.push((host, error.to_string())),
                Ok(None) | Err(_) => return Err(self.unavailable(self.acknowledged.len(), self.pending.len())),
            }
        }
        Ok(())
    }

    fn unavailable(&self, have: usize, late: usize) -> RecordError {
        RecordError::Unavailable { have, need: self.need, reasons: join_reasons(&self.failed, late) }
    }

    fn has_tail(&self) -> bool {
        !self.pending.is_empty() || self.superseded.is_some()
    }

    /// Brings the version to the other hosts; then sweeps the version before on hosts that have the new one.
    async fn finish(mut self) {
        // The new version is at its quorum, so the one before can go wherever the new one is.
        let early = std::mem::take(&mut self.acknowledged);
        let sweep = |host: usize| sweep_one(self.inner.clone(), host, self.superseded.clone());
        let pending = std::mem::take(&mut self.pending);
        let late = pending.filter_map(|(host, result)| std::future::ready(result.is_ok().then_some(host)));
        // Not one after the other: a host that hangs must not keep the rest from being swept.
        let hosts = futures::stream::select(iter(early), late);
        hosts.for_each_concurrent(None, sweep).await;
    }
}

async fn sweep_one(inner: Arc<Inner>, host: usize, path: Option<String>) {
    if let Some(path) = path
        && inner.hosts.delete(host, &path).await.is_ok()
    {
        count(&inner.counters.swept);
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
