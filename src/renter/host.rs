//! PLACEHOLDER (dropped at the merge): a plain host over any object store.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, path::Path};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub [u8; 16]);
impl fmt::Display for HostId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for HostId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("not found")]
    NotFound,
    #[error("down: {0}")]
    Down(String),
    #[error("read-only")]
    ReadOnly,
    #[error("timed out")]
    TimedOut,
    #[error("too large")]
    TooLarge,
    #[error("full")]
    Full,
    #[error("transient: {0}")]
    Transient(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostState {
    Up,
    ReadOnly,
    Down { reason: String },
}
#[derive(Clone, Debug)]
pub struct HostHealth {
    pub state: HostState,
    pub wrong_pieces: u64,
    pub in_flight: u32,
}
#[derive(Clone, Debug)]
pub enum ReadRange {
    Whole { max: u64 },
    Range(Range<u64>),
    Prefix(u64),
}
#[derive(Clone, Copy, Debug)]
pub enum Deadline {
    Small,
    Sector,
}

#[derive(Clone)]
pub struct Host(Arc<Inner>);
struct Inner {
    id: HostId,
    store: Arc<dyn ObjectStore>,
    state: std::sync::Mutex<HostState>,
    wrong: AtomicU64,
    in_flight: AtomicU32,
}

const CALL_MAX: Duration = Duration::from_secs(10);

fn map(error: object_store::Error) -> HostError {
    match error {
        object_store::Error::NotFound { .. } => HostError::NotFound,
        other => HostError::Transient(other.to_string()),
    }
}

impl Host {
    pub fn new(id: HostId, store: Arc<dyn ObjectStore>) -> Host {
        Host(Arc::new(Inner { id, store, state: HostState::Up.into(), wrong: 0.into(), in_flight: 0.into() }))
    }
    pub fn id(&self) -> HostId {
        self.0.id
    }
    pub fn url(&self) -> &str {
        "mem:"
    }
    pub fn set_state(&self, state: HostState) {
        *self.0.state.lock().unwrap() = state;
    }
    pub fn health(&self) -> HostHealth {
        HostHealth {
            state: self.0.state.lock().unwrap().clone(),
            wrong_pieces: self.0.wrong.load(Relaxed),
            in_flight: self.0.in_flight.load(Relaxed),
        }
    }
    pub fn charge_wrong(&self) {
        self.0.wrong.fetch_add(1, Relaxed);
    }
    async fn call<T>(&self, f: impl Future<Output = Result<T, HostError>>) -> Result<T, HostError> {
        if let HostState::Down { reason } = self.health().state {
            return Err(HostError::Down(reason));
        }
        tokio::time::timeout(CALL_MAX, f).await.unwrap_or(Err(HostError::TimedOut))
    }
    pub async fn put(&self, path: &str, bytes: Bytes, _class: Deadline) -> Result<(), HostError> {
        self.call(async {
            self.0.store.put(&Path::from(path), bytes.into()).await.map_err(map)?;
            Ok(())
        })
        .await
    }
    pub async fn get(&self, path: &str, range: ReadRange) -> Result<Bytes, HostError> {
        self.call(async {
            let range = match range {
                ReadRange::Whole { max } => GetRange::Bounded(0..max + 1),
                ReadRange::Range(range) => GetRange::Bounded(range),
                ReadRange::Prefix(len) => GetRange::Bounded(0..len),
            };
            let options = GetOptions { range: Some(range), ..Default::default() };
            self.0.store.get_opts(&Path::from(path), options).await.map_err(map)?.bytes().await.map_err(map)
        })
        .await
    }
    pub async fn size(&self, path: &str) -> Result<u64, HostError> {
        self.call(async { Ok(self.0.store.head(&Path::from(path)).await.map_err(map)?.size) }).await
    }
    pub async fn delete(&self, path: &str) -> Result<(), HostError> {
        self.call(async { self.0.store.delete(&Path::from(path)).await.map_err(map) }).await
    }
    pub async fn list(&self, prefix: &str, _max: usize) -> Result<Vec<(String, u64)>, HostError> {
        let mut all = self.0.store.list(Some(&Path::from(prefix)));
        let mut out = Vec::new();
        while let Some(item) = all.next().await {
            let item = item.map_err(map)?;
            out.push((item.location.to_string(), item.size));
        }
        Ok(out)
    }
}
