//! Simulated hosts for the tests of this room: in memory, seeded, with faults on demand. Time is Tokio's paused clock.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Begun, HostCallError, Look, Order, PutTold, Quorum, RecordHosts, RecordKey};
use crate::renter::{
    host::HostId,
    place::{HostRow, HostTable, RowState, place},
};

/// How a host behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Up,
    /// Answers after up to 5 seconds.
    Slow,
    /// Every call fails at once.
    Down,
    /// No call ever answers.
    Hang,
    /// Stores what it is given, but flips a bit in what it gives back.
    Corrupt,
    /// Misses writes, and shows what it had before.
    Stale,
    /// Lists a version newer than any, and gives rubbish for it.
    Forge,
    /// Lists what it does not give.
    Empty,
    /// Lists backwards.
    Backwards,
    /// Has endless names.
    Endless,
}

impl Mode {
    /// The faults of which any e hosts are borne.
    pub(crate) const FAULTS: [Mode; 7] = [Mode::Slow, Mode::Down, Mode::Hang, Mode::Corrupt, Mode::Stale, Mode::Forge, Mode::Empty];
}

pub(crate) struct SimHosts {
    e: usize,
    table: HostTable,
    hosts: Arc<Vec<Mutex<SimHost>>>,
    /// Whether they answer at once what they can, and take puts without anybody waiting.
    pub(crate) near: AtomicBool,
    /// Whether a listing fails if something that it would name goes meanwhile, and so a get: some S3 servers over folders.
    pub(crate) brittle: AtomicBool,
    rng: Mutex<StdRng>,
    pub(crate) in_flight: AtomicI64,
    pub(crate) charged: AtomicU64,
}

struct SimHost {
    mode: Mode,
    objects: BTreeMap<String, Bytes>,
    /// How many of the next calls of a kind fail, though nothing is wrong with the host; by [`Call`].
    failing: [u32; 3],
}

/// Kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    List,
    Get,
    Put,
}

impl Call {
    pub(crate) const ALL: [Call; 3] = [Call::List, Call::Get, Call::Put];
}

impl SimHosts {
    pub(crate) fn new(seed: u64, hosts: usize, e: usize) -> Arc<SimHosts> {
        let row = |index: usize| HostRow { id: HostId([index as u8; 16]), zone: String::new(), weight: 1, state: RowState::Active };
        let host = |_| Mutex::new(SimHost { mode: Mode::Up, objects: BTreeMap::new(), failing: [0; 3] });
        Arc::new(SimHosts {
            e,
            table: HostTable { epoch: 1, hosts: (0..hosts).map(row).collect() },
            hosts: Arc::new((0..hosts).map(host).collect()),
            near: AtomicBool::new(false),
            brittle: AtomicBool::new(false),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            in_flight: AtomicI64::new(0),
            charged: AtomicU64::new(0),
        })
    }

    fn host(&self, host: usize) -> MutexGuard<'_, SimHost> {
        self.hosts[host].lock().unwrap()
    }

    pub(crate) fn set(&self, host: usize, mode: Mode) {
        self.host(host).mode = mode;
    }

    pub(crate) fn set_all(&self, mode: Mode) {
        (0..self.hosts.len()).for_each(|host| self.set(host, mode));
    }

    /// The next so many calls of a kind fail on this host, others do not.
    pub(crate) fn fail_next(&self, host: usize, call: Call, times: u32) {
        self.host(host).failing[call as usize] = times;
    }

    /// The hosts of a key, each once.
    pub(crate) fn of(&self, key: &RecordKey) -> Vec<usize> {
        let mut hosts = self.hosts_of(&key.group().id());
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// Puts bytes on a host behind everyone's back.
    pub(crate) fn plant(&self, host: usize, path: &str, bytes: &Bytes) {
        self.host(host).objects.insert(path.to_owned(), bytes.clone());
    }

    pub(crate) fn object(&self, host: usize, path: &str) -> Option<Bytes> {
        self.host(host).objects.get(path).cloned()
    }

    /// How many hosts have this version in right bytes or wrong.
    pub(crate) fn holders(&self, key: &RecordKey, order: &Order) -> usize {
        let path = key.path(order);
        (0..self.hosts.len()).filter(|host| self.object(*host, &path).is_some()).count()
    }

    pub(crate) fn snapshot(&self) -> Vec<BTreeMap<String, Bytes>> {
        (0..self.hosts.len()).map(|host| self.host(host).objects.clone()).collect()
    }

    pub(crate) fn restore(&self, snapshot: Vec<BTreeMap<String, Bytes>>) {
        for (host, objects) in snapshot.into_iter().enumerate() {
            self.host(host).objects = objects;
        }
    }

    pub(crate) fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.rng.lock().unwrap().random_range(range)
    }

    /// What every call goes through first.
    async fn enter(&self, host: usize) -> Result<Mode, HostCallError> {
        let mode = self.host(host).mode;
        let delay_ms = match mode {
            Mode::Slow => self.random(0..5_000),
            _ => self.random(0..20),
        };
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        match mode {
            Mode::Down => Err(HostCallError::Unavailable("down".to_owned())),
            Mode::Hang => std::future::pending().await,
            _ => Ok(mode),
        }
    }

    /// One of the calls that were to fail, or something that was there has gone meanwhile.
    fn falter(&self, host: usize, call: Call, before: &[String]) -> Result<(), HostCallError> {
        let mut sim = self.host(host);
        let left = sim.failing[call as usize];
        sim.failing[call as usize] = left.saturating_sub(1);
        let gone = self.brittle.load(Relaxed) && before.iter().any(|path| !sim.objects.contains_key(path));
        if left > 0 || gone { Err(HostCallError::Transient("500".to_owned())) } else { Ok(()) }
    }

    /// The objects that start with `prefix`.
    fn under(&self, host: usize, prefix: &str) -> Vec<String> {
        let sim = self.host(host);
        let paths = sim.objects.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).map(|(path, _)| path.clone());
        paths.take_while(|path| path.starts_with(prefix)).collect()
    }

    fn flight(&self) -> Flight<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        Flight(&self.in_flight)
    }
}

/// A call under way; over when it answers or is dropped.
struct Flight<'f>(&'f AtomicI64);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn flipped(object: &Bytes, at: usize) -> Bytes {
    let mut bytes = object.to_vec();
    if !bytes.is_empty() {
        let at = at % bytes.len();
        bytes[at] ^= 4;
    }
    bytes.into()
}

#[async_trait]
impl RecordHosts for SimHosts {
    fn hosts_of(&self, group_id: &[u8; 32]) -> Vec<usize> {
        place(&self.table, group_id, 2 * self.e + 1)
    }

    fn all_hosts(&self) -> Vec<usize> {
        (0..self.hosts.len()).collect()
    }

    fn quorum(&self) -> Quorum {
        Quorum { e: self.e }
    }

    async fn put(&self, host: usize, path: &str, bytes: Bytes) -> Result<(), HostCallError> {
        let _flight = self.flight();
        let mode = self.enter(host).await?;
        self.falter(host, Call::Put, &[])?;
        match mode {
            Mode::Stale => Err(HostCallError::Unavailable("read-only".to_owned())),
            _ => {
                self.host(host).objects.insert(path.to_owned(), bytes);
                Ok(())
            }
        }
    }

    async fn get(&self, host: usize, path: &str, bytes_max: usize) -> Result<Bytes, HostCallError> {
        let _flight = self.flight();
        let before = self.under(host, path);
        let mode = self.enter(host).await?;
        self.falter(host, Call::Get, &before)?;
        let object = match (self.object(host, path), mode) {
            (_, Mode::Empty) => return Err(HostCallError::NotFound),
            (Some(object), Mode::Corrupt) => flipped(&object, self.random(0..1_000) as usize),
            (Some(object), _) => object,
            (None, Mode::Forge | Mode::Endless) => Bytes::from_static(b"rubbish"),
            (None, _) => return Err(HostCallError::NotFound),
        };
        if object.len() > bytes_max { Err(HostCallError::TooLarge) } else { Ok(object) }
    }

    async fn list(&self, host: usize, prefix: &str, after: Option<&str>, paths_max: usize) -> Result<Vec<String>, HostCallError> {
        let _flight = self.flight();
        let before = self.under(host, prefix);
        let mode = self.enter(host).await?;
        self.falter(host, Call::List, &before)?;
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let mut paths: Vec<String> = (self.host(host).objects)
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(path, _)| path.clone())
            .take_while(|path| path.starts_with(prefix))
            .take(paths_max)
            .collect();
        match mode {
            Mode::Forge if prefix.matches('/').count() > 3 => paths.insert(0, format!("{prefix}{}", "0".repeat(16))),
            Mode::Backwards => paths.reverse(),
            Mode::Endless => {
                let number = after.and_then(|after| after.rsplit('x').next()).map_or(0, |n| n.parse().unwrap_or(0));
                paths = (1..=paths_max as u64).map(|step| format!("{prefix}zzzx{:020}", number + step)).collect();
            }
            _ => {}
        }
        Ok(paths)
    }

    fn look_at_once(&self, host: usize, prefix: &str, paths_max: usize, _bytes_max: usize) -> Option<Look> {
        let (near, sim) = (self.near.load(Relaxed), self.host(host));
        if !near || matches!(sim.mode, Mode::Slow | Mode::Down | Mode::Hang | Mode::Backwards | Mode::Endless) {
            return None;
        }
        let found = sim.objects.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let found: Vec<_> = found.take_while(|(path, _)| path.starts_with(prefix)).take(paths_max).collect();
        let mut look = Look {
            paths: found.iter().map(|(path, _)| (*path).clone()).collect(),
            first: found.first().map(|(_, object)| (*object).clone()),
        };
        match sim.mode {
            Mode::Corrupt => look.first = look.first.map(|object| flipped(&object, object.len() / 2)),
            Mode::Forge => {
                look.paths.insert(0, format!("{prefix}{}", "0".repeat(16)));
                look.first = Some(Bytes::from_static(b"rubbish"));
            }
            Mode::Empty => look.first = None,
            _ => {}
        }
        Some(look)
    }

    fn begin_put(&self, host: usize, path: &Arc<str>, bytes: &Bytes, told: &Arc<dyn PutTold>) -> Begun {
        if !self.near.load(Relaxed) || self.host(host).mode == Mode::Down {
            return Begun::No;
        }
        let (hosts, path, bytes, told) = (self.hosts.clone(), path.to_string(), bytes.clone(), told.clone());
        let wait = Duration::from_millis(self.random(0..20));
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let mode = hosts[host].lock().unwrap().mode;
            match mode {
                // Nothing is told any more.
                Mode::Hang => {}
                Mode::Stale | Mode::Down => told.told(host, Err(HostCallError::Unavailable("read-only".to_owned()))),
                _ => {
                    hosts[host].lock().unwrap().objects.insert(path, bytes);
                    told.told(host, Ok(()));
                }
            }
        });
        Begun::Yes
    }

    fn begin_delete(&self, host: usize, path: &str) -> Begun {
        let mut sim = self.host(host);
        if !self.near.load(Relaxed) || sim.mode != Mode::Up {
            return Begun::No;
        }
        sim.objects.remove(path);
        Begun::Yes
    }

    async fn delete(&self, host: usize, path: &str) -> Result<(), HostCallError> {
        let _flight = self.flight();
        match self.enter(host).await? {
            Mode::Stale => Err(HostCallError::Unavailable("read-only".to_owned())),
            _ => {
                self.host(host).objects.remove(path);
                Ok(())
            }
        }
    }

    fn charge_wrong(&self, _host: usize) {
        self.charged.fetch_add(1, Relaxed);
    }
}
