//! What this room needs of the storage hosts. The renter has it; tests bring a simulated set.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

pub use crate::renter::host::Begun;

/// How many hosts a record may miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// Hosts of a record that may fail; a record is placed on N = 2e + 1 hosts.
    pub e: usize,
}

/// Why a call to one host gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostCallError {
    /// The host answered: no such object.
    #[error("not found")]
    NotFound,
    /// The object is larger than what was allowed.
    #[error("larger than allowed")]
    TooLarge,
    /// It failed this once, as stores do now and then: asking the same host again may help.
    #[error("{0}")]
    Transient(String),
    /// Down, read-only, full, too slow; trying another host may help.
    #[error("{0}")]
    Unavailable(String),
}

/// Pauses before a host that failed is asked again, in one call to it: a quarter of a second together, far less than anybody
/// waits for a record, and long enough for a version that comes in at this moment. Others are not kept waiting: they go on
/// as soon as a quorum has told.
const AGAIN_AFTER_MS: [u64; 6] = [4, 8, 16, 32, 64, 128];

/// Asks a host, and asks again what failed only this once. A listing of a bucket may fail because an object goes while it is
/// listed, which happens all the time to an entry with busy writers: that says nothing about the host.
pub(super) async fn asked<T, F>(host: usize, mut ask: impl FnMut() -> F) -> Result<T, HostCallError>
where
    F: Future<Output = Result<T, HostCallError>>,
{
    for pause_ms in AGAIN_AFTER_MS {
        match ask().await {
            Err(HostCallError::Transient(why)) => tracing::debug!(host, "asked again: {why}"),
            answer => return answer,
        }
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    ask().await
}

/// What is under a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub paths: Vec<String>,
    /// Of the first path, if it was brought along.
    pub first: Option<Bytes>,
}

/// Hears how a put ended that was begun. Called once for each, on whatever thread: it must not wait.
pub trait PutTold: Send + Sync {
    fn told(&self, host: usize, result: Result<(), HostCallError>);
}

/// Named objects on hosts. Hosts are indexes; every call is for one host and is cancelled by dropping it.
#[async_trait]
pub trait RecordHosts: Send + Sync + 'static {
    /// The N hosts of a group in placement order. The same host may stand there twice if there are fewer than N.
    fn hosts_of(&self, group_id: &[u8; 32]) -> Vec<usize>;

    fn all_hosts(&self) -> Vec<usize>;

    fn quorum(&self) -> Quorum;

    /// Ok once the object is durable on the host. An object that exists is replaced as a whole.
    async fn put(&self, host: usize, path: &str, bytes: Bytes) -> Result<(), HostCallError>;

    /// The whole object.
    async fn get(&self, host: usize, path: &str, bytes_max: usize) -> Result<Bytes, HostCallError>;

    /// The first `paths_max` paths that start with `prefix` (which ends with a slash) and, if given, are greater than
    /// `after`, in the order of their bytes. Fewer paths than `paths_max` mean that there are no more.
    async fn list(&self, host: usize, prefix: &str, after: Option<&str>, paths_max: usize) -> Result<Vec<String>, HostCallError>;

    /// The first `paths_max` paths of [`RecordHosts::list`], and the first object where that takes no second call.
    async fn look(&self, host: usize, prefix: &str, paths_max: usize, _bytes_max: usize) -> Result<Look, HostCallError> {
        match self.list(host, prefix, None, paths_max).await {
            Err(HostCallError::NotFound) => Ok(Look { paths: Vec::new(), first: None }),
            listed => Ok(Look { paths: listed?, first: None }),
        }
    }

    /// The same, if the host knows it without waiting.
    fn look_at_once(&self, _host: usize, _prefix: &str, _paths_max: usize, _bytes_max: usize) -> Option<Look> {
        None
    }

    /// Begins [`RecordHosts::put`], if the host takes it without waiting; if not, nobody is told anything.
    fn begin_put(&self, _host: usize, _path: &Arc<str>, _bytes: &Bytes, _told: &Arc<dyn PutTold>) -> Begun {
        Begun::No
    }

    /// Begins [`RecordHosts::delete`], if the host takes it without waiting. Nobody hears how it ends, and a crash may undo it.
    fn begin_delete(&self, _host: usize, _path: &str) -> Begun {
        Begun::No
    }

    /// Ok if there is no such object afterwards.
    async fn delete(&self, host: usize, path: &str) -> Result<(), HostCallError>;

    /// The host gave bytes that do not verify.
    fn charge_wrong(&self, host: usize);
}
