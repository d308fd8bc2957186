//! Records on the renter's hosts.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::renter::Renter;
use crate::renter::host::{Deadline, Host, HostError, ReadRange};

use super::{Begun, HostCallError, Look, PutTold, Quorum, RecordHosts};

#[async_trait]
impl RecordHosts for Renter {
    fn hosts_of(&self, group_id: &[u8; 32]) -> Vec<usize> {
        self.record_rows(group_id)
    }

    fn all_hosts(&self) -> Vec<usize> {
        (0..self.table().hosts.len()).collect()
    }

    fn quorum(&self) -> Quorum {
        Quorum { e: self.e() }
    }

    async fn put(&self, host: usize, path: &str, bytes: Bytes) -> Result<(), HostCallError> {
        put(of(self, host)?, path, bytes).await
    }

    async fn get(&self, host: usize, path: &str, bytes_max: usize) -> Result<Bytes, HostCallError> {
        get(of(self, host)?, path, bytes_max).await
    }

    async fn list(&self, host: usize, prefix: &str, after: Option<&str>, paths_max: usize) -> Result<Vec<String>, HostCallError> {
        list(of(self, host)?, prefix, after, paths_max).await
    }

    async fn look(&self, host: usize, prefix: &str, paths_max: usize, bytes_max: usize) -> Result<Look, HostCallError> {
        let looked = of(self, host)?.look(prefix.trim_end_matches('/'), paths_max, bytes_max as u64).await;
        looked.map(|looked| Look { paths: looked.keys, first: looked.first }).map_err(call_error)
    }

    fn look_at_once(&self, host: usize, prefix: &str, paths_max: usize, bytes_max: usize) -> Option<Look> {
        let peeked = of(self, host).ok()?.peek(prefix.trim_end_matches('/'), paths_max, bytes_max as u64)?;
        Some(Look { paths: peeked.keys, first: peeked.first })
    }

    fn begin_put(&self, host: usize, path: &Arc<str>, bytes: &Bytes, told: &Arc<dyn PutTold>) -> Begun {
        let Ok(on) = of(self, host) else { return Begun::No };
        let told = told.clone();
        on.begin_put(path, bytes, move |result| told.told(host, result.map_err(call_error)))
    }

    fn begin_delete(&self, host: usize, path: &str) -> Begun {
        of(self, host).map_or(Begun::No, |host| host.begin_remove(path))
    }

    async fn delete(&self, host: usize, path: &str) -> Result<(), HostCallError> {
        delete(of(self, host)?, path).await
    }

    fn charge_wrong(&self, host: usize) {
        if let Ok(host) = of(self, host) {
            host.charge_wrong();
        }
    }
}

/// Plain hosts without a table: enough for the one record that comes before it, the table itself.
pub struct BareHosts(pub Vec<Host>);

#[async_trait]
impl RecordHosts for BareHosts {
    fn hosts_of(&self, _group_id: &[u8; 32]) -> Vec<usize> {
        self.all_hosts()
    }

    fn all_hosts(&self) -> Vec<usize> {
        (0..self.0.len()).collect()
    }

    fn quorum(&self) -> Quorum {
        Quorum { e: self.0.len().saturating_sub(1) / 2 }
    }

    async fn put(&self, host: usize, path: &str, bytes: Bytes) -> Result<(), HostCallError> {
        put(&self.0[host], path, bytes).await
    }

    async fn get(&self, host: usize, path: &str, bytes_max: usize) -> Result<Bytes, HostCallError> {
        get(&self.0[host], path, bytes_max).await
    }

    async fn list(&self, host: usize, prefix: &str, after: Option<&str>, paths_max: usize) -> Result<Vec<String>, HostCallError> {
        list(&self.0[host], prefix, after, paths_max).await
    }

    async fn delete(&self, host: usize, path: &str) -> Result<(), HostCallError> {
        delete(&self.0[host], path).await
    }

    fn charge_wrong(&self, host: usize) {
        self.0[host].charge_wrong();
    }
}

fn of(renter: &Renter, row: usize) -> Result<&Host, HostCallError> {
    renter.host_of_row(row).ok_or_else(|| HostCallError::Unavailable("the host is in the table but not configured here".to_owned()))
}

async fn put(host: &Host, path: &str, bytes: Bytes) -> Result<(), HostCallError> {
    host.put(path, bytes, Deadline::Small).await.map_err(call_error)
}

async fn get(host: &Host, path: &str, bytes_max: usize) -> Result<Bytes, HostCallError> {
    host.get(path, ReadRange::Whole { max: bytes_max as u64 }).await.map_err(call_error)
}

async fn list(host: &Host, prefix: &str, after: Option<&str>, paths_max: usize) -> Result<Vec<String>, HostCallError> {
    let found = host.list_after(prefix.trim_end_matches('/'), after, paths_max).await.map_err(call_error)?;
    Ok(found.into_iter().map(|(path, _)| path).collect())
}

async fn delete(host: &Host, path: &str) -> Result<(), HostCallError> {
    match host.delete(path).await {
        Err(HostError::NotFound) => Ok(()),
        done => done.map_err(call_error),
    }
}

fn call_error(error: HostError) -> HostCallError {
    match error {
        HostError::NotFound => HostCallError::NotFound,
        HostError::TooLarge => HostCallError::TooLarge,
        transient @ HostError::Transient(_) => HostCallError::Transient(transient.to_string()),
        other => HostCallError::Unavailable(other.to_string()),
    }
}
