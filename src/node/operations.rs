//! What the admin listener shows and does, out of the rooms behind it.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::address::{Address, SkylinkKind};
use crate::http::{HostView, Operations, Overdrive, PinPage, PinView, PortalNumbers, Readiness, UploadStream};
use crate::ingest::{AddOptions, AddReport, ImportReport, Ingest, IngestError};
use crate::records::Records;
use crate::renter::{OverdriveCounts, Renter};
use crate::store::{Blocked, Store, StoreError, UnpinRoot};

/// Owner of what comes in on the admin listener.
const ADMIN: &str = "admin";

pub struct NodeOperations {
    /// Where content is served.
    pub public: SocketAddr,
    pub store: Store,
    pub ingest: Ingest,
    pub renter: Renter,
    pub records: Records,
    /// Bytes of content, when they were summed up, and how long that took.
    pub content_bytes: Mutex<Option<(u64, Instant, Duration)>>,
}

/// Pins summed up in one step.
const PAGE_PINS: usize = 1000;
/// Summing up takes at most this share of the time, however often the figures are asked for.
const SUMMING_SHARE: u32 = 20;

impl NodeOperations {
    async fn content_bytes(&self) -> Result<u64, StoreError> {
        let known = *self.content_bytes.lock().expect("no panic under this lock");
        if let Some((bytes, at, took)) = known
            && at.elapsed() < took * SUMMING_SHARE
        {
            return Ok(bytes);
        }
        let (store, begun) = (self.store.clone(), Instant::now());
        let bytes = tokio::task::spawn_blocking(move || sum_of_pins(&store)).await.expect("reading the catalog does not panic")?;
        *self.content_bytes.lock().expect("no panic under this lock") = Some((bytes, Instant::now(), begun.elapsed()));
        Ok(bytes)
    }
}

fn sum_of_pins(store: &Store) -> Result<u64, StoreError> {
    let (mut sum, mut from) = (0u64, 0);
    loop {
        let pins = store.pins(from, PAGE_PINS)?;
        let Some((last, _)) = pins.last() else { return Ok(sum) };
        from = last.number + 1;
        sum = pins.iter().fold(sum, |sum, (_, pin)| sum.saturating_add(pin.size));
    }
}

fn overdrive(counts: OverdriveCounts) -> Overdrive {
    let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
    Overdrive { share: share(counts.with_spares, counts.reads), average: share(counts.spares, counts.with_spares) }
}

#[async_trait]
impl Operations for NodeOperations {
    fn readiness(&self) -> Readiness {
        match self.store.status() {
            Ok(status) if status.catalog_complete => Readiness::Ok,
            _ => Readiness::Starting,
        }
    }

    fn status(&self) -> Result<serde_json::Value, StoreError> {
        let records = self.records.counts();
        let damages = self.renter.damages();
        Ok(serde_json::json!({
            "public_url": format!("http://{}", self.public),
            "store": self.store.status()?,
            "records": {
                "puts_acknowledged": records.puts_acknowledged,
                "puts_failed": records.puts_failed,
                "reads": records.reads,
                "reads_failed": records.reads_failed,
                "invalid_objects": records.invalid_objects,
                "written_back": records.written_back,
            },
            "damaged_pieces": damages.len(),
            "damages": damages.iter().map(|damage| serde_json::json!({
                "root": damage.root.to_string(),
                "host": damage.host.to_string(),
                "piece": damage.piece_index,
                "kind": format!("{:?}", damage.kind).to_lowercase(),
                "reason": damage.reason,
                "times": damage.times,
            })).collect::<Vec<_>>(),
        }))
    }

    fn metrics(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        if let Ok(status) = self.store.status() {
            let _ = writeln!(text, "# TYPE skygate_pins gauge\nskygate_pins {}", status.pins);
            let _ = writeln!(
                text,
                "# TYPE skygate_catalog_complete gauge\nskygate_catalog_complete {}",
                u8::from(status.catalog_complete)
            );
            let _ = writeln!(text, "# TYPE skygate_memory_body_bytes gauge\nskygate_memory_body_bytes {}", status.memory_bytes);
        }
        let _ = writeln!(text, "# TYPE skygate_damaged_pieces gauge\nskygate_damaged_pieces {}", self.renter.damages().len());
        let _ = writeln!(
            text,
            "# TYPE skygate_host_failures_total counter\n# TYPE skygate_host_wrong_pieces_total counter\n# TYPE skygate_host_up gauge"
        );
        for host in self.hosts() {
            let _ = writeln!(text, "skygate_host_failures_total{{host=\"{}\"}} {}", host.id, host.failures);
            let _ = writeln!(text, "skygate_host_wrong_pieces_total{{host=\"{}\"}} {}", host.id, host.wrong_pieces);
            let _ = writeln!(text, "skygate_host_up{{host=\"{}\"}} {}", host.id, u8::from(host.state == "up"));
        }
        text
    }

    fn hosts(&self) -> Vec<HostView> {
        super::hosts::views(&self.renter)
    }

    fn hosts_to_write(&self) -> usize {
        usize::from(self.renter.options().k) + self.renter.f()
    }

    async fn portal_numbers(&self) -> Result<PortalNumbers, StoreError> {
        let content_bytes = self.content_bytes().await?;
        let hosts = self.hosts();
        let [base_overdrive, slab_overdrive] = self.renter.overdrive().map(overdrive);
        Ok(PortalNumbers {
            pins: self.store.status()?.pins,
            content_bytes,
            host_bytes: hosts.iter().filter_map(|host| host.used_bytes).sum(),
            damaged_pieces: self.renter.damages().len() as u64,
            hosts_down: hosts.iter().filter(|host| host.state != "up").count() as u64,
            base_overdrive,
            slab_overdrive,
        })
    }

    async fn pins(&self, from: u64, max: usize) -> Result<PinPage, StoreError> {
        let rows = self.store.pins(from, max)?;
        let next = (rows.len() == max).then(|| rows.last().map(|(row, _)| row.number + 1)).flatten();
        let pins = rows.into_iter().map(|(row, pin)| PinView {
            name: pin.name.clone(),
            owner: pin.owner.clone(),
            cid: pin.cid().map(|cid| cid.to_string()),
            skylink: pin.skylink().map(|link| link.to_string()),
            size_bytes: pin.size,
            files: pin.files,
            created_ms: pin.created,
            durability: if row.complete { "complete" } else { "acknowledged" },
        });
        Ok(PinPage { pins: pins.collect(), next })
    }

    async fn unpin(&self, address: &Address) -> Result<usize, StoreError> {
        let root = match address {
            Address::Ipfs { root, .. } => UnpinRoot::Cid(*root),
            Address::Skylink { link, .. } => match link.kind() {
                SkylinkKind::V1 { root, offset_bytes, .. } => UnpinRoot::Skyfile { root, offset: offset_bytes },
                SkylinkKind::V2 { .. } => {
                    return Err(StoreError::Unsupported("a version 2 skylink is a pointer: unpin what it points to"));
                }
            },
            Address::Ipns { .. } => return Err(StoreError::Unsupported("an IPNS name is a pointer: unpin what it points to")),
        };
        self.store.unpin(&root).await
    }

    fn blocklist(&self) -> Vec<Blocked> {
        self.store.blocklist()
    }

    async fn change_blocklist(&self, add: &[[u8; 32]], remove: &[[u8; 32]]) -> Result<(), StoreError> {
        self.store.change_blocklist(add, remove).await
    }

    async fn add(&self, body: UploadStream, idempotency_key: Option<String>) -> Result<AddReport, IngestError> {
        self.ingest.add(body, AddOptions { owner: ADMIN.to_owned(), idempotency_key }).await
    }

    async fn import(
        &self,
        body: UploadStream,
        name: Option<String>,
        idempotency_key: Option<String>,
    ) -> Result<ImportReport, IngestError> {
        self.ingest.import(body, AddOptions { owner: ADMIN.to_owned(), idempotency_key }, name).await
    }
}
