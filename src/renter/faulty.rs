//! A store that misbehaves on request: for tests, simulations and `skygate bench`.
//!
//! Wraps any store. Faults are drawn from one seeded generator, so a run with the same seed and the same order of calls has the same faults; they can be changed
//! while the store is in use, through the [`FaultPlan`] it shares. A fresh plan is quiet: it changes nothing.
//!
//! **Forgetting.** A store that syncs what it acknowledges cannot be made to forget from outside. Here that is the lying kind of host: with
//! [`FaultPlan::set_forgetting`] it acknowledges puts and keeps them, but remembers which it would not have synced; [`FaultyStore::crash`] loses them, or puts
//! back what they replaced. That folders do sync is tested below them, on a simulated disk that forgets (`folder/simdisk.rs`).

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, ErrorKind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const STORE: &str = "faulty";

/// The source of the errors a plan asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("no space left: the quota is used up")]
    QuotaUsedUp,
    #[error("an error on request")]
    OnRequest,
    #[error("the host is dead")]
    Dead,
    #[error("read-only on request")]
    ReadOnly,
}

impl Fault {
    /// A full or read-only store fails as a real disk's does.
    fn error(self) -> Error {
        let kind = match self {
            Fault::QuotaUsedUp => ErrorKind::StorageFull,
            Fault::ReadOnly => ErrorKind::ReadOnlyFilesystem,
            Fault::OnRequest | Fault::Dead => ErrorKind::Other,
        };
        Error::Generic { store: STORE, source: io::Error::new(kind, self).into() }
    }
}

/// What goes wrong, how often (in thousandths of calls). All of it may change at any time.
#[derive(Debug)]
pub struct FaultPlan {
    delay_us: AtomicU64,
    delay_spread_us: AtomicU64,
    slow_permille: AtomicU32,
    slow_us: AtomicU64,
    error_permille: AtomicU32,
    loss_permille: AtomicU32,
    corrupt_permille: AtomicU32,
    longer_permille: AtomicU32,
    shorter_permille: AtomicU32,
    hang_permille: AtomicU32,
    stall_permille: AtomicU32,
    forget_permille: AtomicU32,
    dead: AtomicBool,
    read_only: AtomicBool,
    hung: tokio::sync::watch::Sender<bool>,
    quota_bytes: AtomicU64,
    calls: AtomicU64,
    faults: AtomicU64,
}

impl Default for FaultPlan {
    fn default() -> FaultPlan {
        FaultPlan {
            delay_us: AtomicU64::new(0),
            delay_spread_us: AtomicU64::new(0),
            slow_permille: AtomicU32::new(0),
            slow_us: AtomicU64::new(0),
            error_permille: AtomicU32::new(0),
            loss_permille: AtomicU32::new(0),
            corrupt_permille: AtomicU32::new(0),
            longer_permille: AtomicU32::new(0),
            shorter_permille: AtomicU32::new(0),
            hang_permille: AtomicU32::new(0),
            stall_permille: AtomicU32::new(0),
            forget_permille: AtomicU32::new(0),
            dead: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            hung: tokio::sync::watch::Sender::new(false),
            quota_bytes: AtomicU64::new(u64::MAX),
            calls: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        }
    }
}

impl FaultPlan {
    /// Every call takes `base` and, evenly drawn, up to `spread` more.
    pub fn set_delay(&self, base: Duration, spread: Duration) {
        self.delay_us.store(micros(base), Relaxed);
        self.delay_spread_us.store(micros(spread), Relaxed);
    }

    /// Of a thousand calls this many take `more` on top: a tail.
    pub fn set_slow(&self, permille: u32, more: Duration) {
        self.slow_us.store(micros(more), Relaxed);
        self.slow_permille.store(permille, Relaxed);
    }

    /// Calls that fail.
    pub fn set_errors(&self, permille: u32) {
        self.error_permille.store(permille, Relaxed);
    }

    /// Reads at which the object vanishes for good.
    pub fn set_loss(&self, permille: u32) {
        self.loss_permille.store(permille, Relaxed);
    }

    /// Reads answered with a few bytes changed.
    pub fn set_corruption(&self, permille: u32) {
        self.corrupt_permille.store(permille, Relaxed);
    }

    /// Reads answered with more bytes than asked for.
    pub fn set_longer(&self, permille: u32) {
        self.longer_permille.store(permille, Relaxed);
    }

    /// Reads answered with fewer bytes than asked for.
    pub fn set_shorter(&self, permille: u32) {
        self.shorter_permille.store(permille, Relaxed);
    }

    /// Calls that never answer.
    pub fn set_hangs(&self, permille: u32) {
        self.hang_permille.store(permille, Relaxed);
    }

    /// Puts that are acknowledged and lost at [`FaultyStore::crash`].
    pub fn set_forgetting(&self, permille: u32) {
        self.forget_permille.store(permille, Relaxed);
    }

    /// Every call fails at once, until it is set back.
    pub fn set_dead(&self, dead: bool) {
        self.dead.store(dead, Relaxed);
    }

    /// Every put and removal fails at once, until it is set back.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Relaxed);
    }

    /// Reads that begin to answer, give half of it, and then nothing more.
    pub fn set_stalls(&self, permille: u32) {
        self.stall_permille.store(permille, Relaxed);
    }

    /// Calls that begin meanwhile wait until it is set back; then they go on.
    pub fn set_hung(&self, hung: bool) {
        self.hung.send_replace(hung);
    }

    /// Puts fail that would take more than this in all, counted from the store's making; removals do not give any back.
    pub fn set_quota_bytes(&self, bytes: u64) {
        self.quota_bytes.store(bytes, Relaxed);
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Faults so far, delays not counted.
    pub fn faults(&self) -> u64 {
        self.faults.load(Relaxed)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The store with faults. Cheap to clone; all clones share one generator.
#[derive(Clone, Debug)]
pub struct FaultyStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    plan: Arc<FaultPlan>,
    draws: Mutex<ChaCha8Rng>,
    put_bytes: AtomicI64,
    /// Puts acknowledged but "not synced", with what they replaced.
    unsynced: Mutex<BTreeMap<Path, Option<Bytes>>>,
}

/// What a call was drawn to suffer.
#[derive(Debug, Default)]
struct Draw {
    lost: bool,
    corrupt: Option<u64>,
    longer: bool,
    shorter: bool,
    stall: bool,
    forget: bool,
}

impl FaultyStore {
    pub fn new(store: Arc<dyn ObjectStore>, seed: u64) -> FaultyStore {
        FaultyStore(Arc::new(Inner {
            store,
            plan: Arc::new(FaultPlan::default()),
            draws: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            put_bytes: AtomicI64::new(0),
            unsynced: Mutex::new(BTreeMap::new()),
        }))
    }

    pub fn plan(&self) -> Arc<FaultPlan> {
        self.0.plan.clone()
    }

    /// The power goes: what was put but "not synced" (see [`FaultPlan::set_forgetting`]) is as before. Answers how many objects that were.
    pub async fn crash(&self) -> Result<usize> {
        let unsynced = std::mem::take(&mut *self.0.unsynced());
        for (location, before) in &unsynced {
            match before {
                Some(bytes) => drop(self.0.store.put(location, bytes.clone().into()).await?),
                None => self.0.store.delete(location).await?,
            }
        }
        Ok(unsynced.len())
    }
}

impl Inner {
    fn unsynced(&self) -> MutexGuard<'_, BTreeMap<Path, Option<Bytes>>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault<T>(&self, fault: Fault) -> Result<T> {
        self.plan.faults.fetch_add(1, Relaxed);
        Err(fault.error())
    }

    /// The start of every call: draws, waits, and fails if drawn so.
    async fn suffer(&self) -> Result<Draw> {
        let plan = &*self.plan;
        plan.calls.fetch_add(1, Relaxed);
        let (draw, delay_us, fails, hangs) = {
            let mut draws = self.draws.lock().unwrap_or_else(PoisonError::into_inner);
            let mut hit = |permille: &AtomicU32| {
                let drawn: u32 = draws.random_range(0..1000);
                drawn < permille.load(Relaxed)
            };
            let (fails, hangs, slow) = (hit(&plan.error_permille), hit(&plan.hang_permille), hit(&plan.slow_permille));
            let corrupt = hit(&plan.corrupt_permille);
            let mut draw = Draw {
                lost: hit(&plan.loss_permille),
                corrupt: None,
                longer: hit(&plan.longer_permille),
                shorter: hit(&plan.shorter_permille),
                stall: hit(&plan.stall_permille),
                forget: hit(&plan.forget_permille),
            };
            let noise: u64 = draws.random();
            draw.corrupt = corrupt.then_some(noise);
            let spread = draws.random_range(0..=plan.delay_spread_us.load(Relaxed));
            let slow_us = if slow { plan.slow_us.load(Relaxed) } else { 0 };
            (draw, plan.delay_us.load(Relaxed) + spread + slow_us, fails, hangs)
        };
        if delay_us > 0 {
            tokio::time::sleep(Duration::from_micros(delay_us)).await;
        }
        if hangs {
            plan.faults.fetch_add(1, Relaxed);
            std::future::pending::<()>().await;
        }
        // The sender lives in the plan: the wait ends only by its word.
        let _ = plan.hung.subscribe().wait_for(|hung| !hung).await;
        if plan.dead.load(Relaxed) {
            return self.fault(Fault::Dead);
        }
        if fails {
            return self.fault(Fault::OnRequest);
        }
        Ok(draw)
    }

    fn check_writable(&self) -> Result<()> {
        if self.plan.read_only.load(Relaxed) { self.fault(Fault::ReadOnly) } else { Ok(()) }
    }

    async fn remember_unsynced(&self, location: &Path) -> Result<()> {
        let known = self.unsynced().contains_key(location);
        if known {
            return Ok(());
        }
        let before = match self.store.get(location).await {
            Ok(found) => Some(found.bytes().await?),
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        self.unsynced().entry(location.clone()).or_insert(before);
        Ok(())
    }

    async fn distort(&self, found: GetResult, draw: Draw) -> Result<GetResult> {
        if draw.corrupt.is_none() && !draw.longer && !draw.shorter && !draw.stall {
            return Ok(found);
        }
        self.plan.faults.fetch_add(1, Relaxed);
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let mut bytes = BytesMut::from(&found.bytes().await?[..]);
        if let (Some(noise), false) = (draw.corrupt, bytes.is_empty()) {
            let at = (noise >> 8) as usize % bytes.len();
            bytes[at] ^= (noise as u8) | 1;
        }
        if draw.longer {
            bytes.extend_from_slice(&[0xee; 100]);
        }
        if draw.shorter || draw.stall {
            bytes.truncate(bytes.len() / 2);
        }
        let bytes = bytes.freeze();
        let first = stream::once(async move { Ok(bytes) });
        let payload = GetResultPayload::Stream(if draw.stall { first.chain(stream::pending()).boxed() } else { first.boxed() });
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "faulty {}", self.0.store)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let inner = &*self.0;
        let draw = inner.suffer().await?;
        inner.check_writable()?;
        let len = i64::try_from(payload.content_length()).unwrap_or(i64::MAX);
        let after = inner.put_bytes.fetch_add(len, Relaxed).saturating_add(len);
        if u64::try_from(after).unwrap_or(0) > inner.plan.quota_bytes.load(Relaxed) {
            inner.put_bytes.fetch_sub(len, Relaxed);
            return inner.fault(Fault::QuotaUsedUp);
        }
        if draw.forget {
            inner.remember_unsynced(location).await?;
        } else {
            // A sync of this object makes an earlier put of it durable, too.
            inner.unsynced().remove(location);
        }
        let result = inner.store.put_opts(location, payload, opts).await;
        if result.is_err() {
            inner.put_bytes.fetch_sub(len, Relaxed);
        }
        result
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart upload".into(), implementer: STORE.into() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let inner = &*self.0;
        let draw = inner.suffer().await?;
        if draw.lost {
            inner.plan.faults.fetch_add(1, Relaxed);
            inner.store.delete(location).await?;
        }
        let found = inner.store.get_opts(location, options).await?;
        inner.distort(found, draw).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let inner = self.0.clone();
        locations
            .then(move |location| {
                let inner = inner.clone();
                async move {
                    let location = location?;
                    inner.suffer().await?;
                    inner.check_writable()?;
                    inner.store.delete(&location).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix) = (self.0.clone(), prefix.cloned());
        let listed = async move {
            inner.suffer().await?;
            Ok::<_, Error>(inner.store.list(prefix.as_ref()))
        };
        stream::once(listed).try_flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix, offset) = (self.0.clone(), prefix.cloned(), offset.clone());
        let listed = async move {
            inner.suffer().await?;
            Ok::<_, Error>(inner.store.list_with_offset(prefix.as_ref(), &offset))
        };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.suffer().await?;
        self.0.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.suffer().await?;
        self.0.check_writable()?;
        self.0.store.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use tokio::time::Instant;

    use super::*;

    fn path(index: u32) -> Path {
        Path::from(format!("records/entry/00/k{index}/o"))
    }

    async fn outcomes(seed: u64) -> Vec<bool> {
        let store = FaultyStore::new(Arc::new(InMemory::new()), seed);
        store.plan().set_errors(500);
        let mut out = Vec::new();
        for index in 0..64 {
            out.push(store.put(&path(index), "x".into()).await.is_ok());
        }
        assert_eq!(store.plan().faults(), out.iter().filter(|fine| !**fine).count() as u64);
        out
    }

    #[tokio::test]
    async fn the_same_seed_has_the_same_faults() {
        assert_eq!(outcomes(1).await, outcomes(1).await);
        assert_ne!(outcomes(1).await, outcomes(2).await);
    }

    #[tokio::test]
    async fn loss_is_for_good() {
        let store = FaultyStore::new(Arc::new(InMemory::new()), 1);
        store.put(&path(1), "x".into()).await.unwrap();
        store.plan().set_loss(1_000);
        assert!(matches!(store.get(&path(1)).await, Err(Error::NotFound { .. })));
        store.plan().set_loss(0);
        assert!(matches!(store.get(&path(1)).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn a_crash_forgets_what_was_not_synced() {
        let store = FaultyStore::new(Arc::new(InMemory::new()), 1);
        store.put(&path(1), "old".into()).await.unwrap();
        store.plan().set_forgetting(1_000);
        store.put(&path(1), "new".into()).await.unwrap();
        store.put(&path(2), "new".into()).await.unwrap();
        store.put(&path(3), "new".into()).await.unwrap();
        store.plan().set_forgetting(0);
        store.put(&path(3), "newer".into()).await.unwrap();
        assert_eq!(store.get(&path(1)).await.unwrap().bytes().await.unwrap(), "new");
        assert_eq!(store.crash().await.unwrap(), 2);
        assert_eq!(store.get(&path(1)).await.unwrap().bytes().await.unwrap(), "old");
        assert!(matches!(store.get(&path(2)).await, Err(Error::NotFound { .. })));
        assert_eq!(store.get(&path(3)).await.unwrap().bytes().await.unwrap(), "newer");
    }

    #[tokio::test(start_paused = true)]
    async fn delays_are_as_set() {
        let store = FaultyStore::new(Arc::new(InMemory::new()), 1);
        store.plan().set_delay(Duration::from_millis(10), Duration::from_millis(5));
        store.plan().set_slow(200, Duration::from_secs(1));
        let mut slow = 0;
        for index in 0..200 {
            let started = Instant::now();
            store.put(&path(index), "x".into()).await.unwrap();
            let took = started.elapsed();
            assert!(took >= Duration::from_millis(10));
            slow += u32::from(took >= Duration::from_secs(1));
            assert!(took < Duration::from_millis(1_020));
        }
        assert!((20..60).contains(&slow), "{slow} of 200");
    }
}
