//! What the admin listener shows and does, out of the rooms behind it.

use std::net::SocketAddr;

use async_trait::async_trait;

use crate::address::{Address, SkylinkKind};
use crate::http::{HostView, Operations, PinPage, PinView, Readiness, UploadStream};
use crate::ingest::{AddOptions, AddReport, ImportReport, Ingest, IngestError};
use crate::records::Records;
use crate::renter::Renter;
use crate::store::{Store, StoreError, UnpinRoot};

/// Owner of what comes in on the admin listener.
const ADMIN: &str = "admin";

pub struct NodeOperations {
    /// Where content is served.
    pub public: SocketAddr,
    pub store: Store,
    pub ingest: Ingest,
    pub renter: Renter,
    pub records: Records,
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
                SkylinkKind::V1 { root, .. } => UnpinRoot::Sector(root),
                SkylinkKind::V2 { .. } => {
                    return Err(StoreError::Unsupported("a version 2 skylink is a pointer: unpin what it points to"));
                }
            },
            Address::Ipns { .. } => return Err(StoreError::Unsupported("an IPNS name is a pointer: unpin what it points to")),
        };
        self.store.unpin(&root).await
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
