//! What this room asks of the others, in one place: verified content, uploads, and what an operator sees.
//!
//! Traits stand between HTTP and the rooms behind it, so that the tests of this room run a real server over
//! blocks in memory. [`Content`] is the block source of a reply; [`Operations`] is everything behind the admin
//! listener; [`Uploads`] is what a portal takes in.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::access::Access;
use crate::address::{Address, Cid, Skylink};
use crate::deny::{Reason, Subject};
use crate::ingest::spool::Spool;
use crate::ingest::{AddReport, ImportReport, Ingest, IngestError, SkyOptions, SkyPart, SkyReport, Unpinned, Whose};
use crate::measure::{Measures, Trace};
use crate::names::{
    EntryHealth, EntryId, EntryWatch, HandshakeNames, NameError, NameRow, Names, PutEntryError, Resolved, SignedEntry, StoredRecord,
};
use crate::records::Extent;
use crate::store::{
    Blocked, BodyStream, FileSource, OpenSkyfile, ProvedSlice, SkyfileHealth, Store, StoreError, VerifyEvent, Window,
};
use crate::tree::skyfile::SkyfileHead;

use super::hosts::HostRules;
use super::reply::AnswerCache;
use super::skynet::Subscriptions;

/// Everything the surfaces need. Shared behind an `Arc` by all connections.
pub struct Services {
    pub content: Arc<dyn Content>,
    pub names: Arc<dyn Naming>,
    pub operations: Arc<dyn Operations>,
    pub uploads: Arc<dyn Uploads>,
    /// Uploads that come in pieces.
    pub spool: Spool,
    pub access: Arc<Access>,
    pub measures: Arc<Measures>,
    pub answers: AnswerCache,
    pub subscriptions: Subscriptions,
    /// One permit for each request that may be under way on the public listener.
    pub requests: Arc<Semaphore>,
    pub options: HttpOptions,
}

/// Requests under way at once on the public listener, unless configured: each may read 4 MiB ahead, and has at most some
/// hundred KiB on the average.
pub const REQUESTS_AT_ONCE_DEFAULT: usize = 2048;

/// Are uploads and registry writes taken from those who have no key?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicWrites {
    /// From programs on this machine only.
    Refused,
    /// From everybody, within the limits of an address: as Skynet's public portals did.
    Taken,
}

/// The room's part of the configuration.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Names and addresses, each with or without port, that the admin listener answers to besides loopback ones.
    pub admin_hosts: Vec<String>,
    /// Which hosts are served, and how.
    pub hosts: HostRules,
    /// Blocks, CARs and IPNS records only (`ipfs-gateway.md` 2.2, strict mode).
    pub trustless_only: bool,
    pub public_writes: PublicWrites,
    pub handshake: HandshakeNames,
    /// Requests that may be under way at once: [`Services::requests`] has a permit for each.
    pub requests_max: usize,
    /// Path of the sample site, for the landing page.
    pub sample_site: Option<String>,
    /// Connections served at once on the public listener.
    pub public_connections_max: usize,
    /// Of them, from one address that is not loopback.
    pub connections_per_address_max: usize,
    /// Time for requests under way to end after a shutdown was asked for.
    pub grace: Duration,
    /// Bytes of ready answers kept in memory (root and path -> file and headers).
    pub answers_bytes: u64,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            admin_hosts: Vec::new(),
            hosts: HostRules::default(),
            trustless_only: false,
            public_writes: PublicWrites::Refused,
            handshake: HandshakeNames::default(),
            requests_max: REQUESTS_AT_ONCE_DEFAULT,
            sample_site: None,
            // An idle connection costs about 20 KiB: 4,096 of them stay under 100 MiB.
            public_connections_max: 4096,
            // A browser opens six for each host, and many people may share an address.
            connections_per_address_max: 512,
            // A large slab upload needs some seconds.
            grace: Duration::from_secs(30),
            // An answer takes about 2 KiB: 16 MiB keep the 8,000 most used paths.
            answers_bytes: 16 << 20,
        }
    }
}

/// Verified bytes by address.
#[async_trait]
pub trait Content: Send + Sync + 'static {
    /// The whole block, hashed.
    async fn block(&self, cid: &Cid, window: Window, trace: &Arc<Trace>) -> Result<Bytes, StoreError>;

    /// The same, for a node on the way to what was asked for.
    async fn index_block(&self, cid: &Cid, trace: &Arc<Trace>) -> Result<Bytes, StoreError>;

    /// Length of a block, bytes.
    async fn block_length(&self, cid: &Cid, trace: &Arc<Trace>) -> Result<u64, StoreError>;

    /// Bytes `range` of a file. Bounded look-ahead; dropping the stream stops the work.
    fn stream_file(&self, file: FileSource, range: Range<u64>, window: Window, trace: Arc<Trace>) -> BodyStream;

    /// May this file be served by the operator's lists, whatever part of it is asked for?
    async fn allow_file(&self, file: &FileSource, trace: &Arc<Trace>) -> Result<(), StoreError>;

    /// Which rule of the operator's lists forbids this path or name, if one does. Blocks are checked where they are read.
    fn denied(&self, subject: &Subject<'_>) -> Option<Reason>;

    /// Are there any rules?
    fn has_deny_rules(&self) -> bool;

    /// The skyfile of a version 1 skylink, its head read.
    async fn skyfile(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<Arc<dyn Skyfile>, StoreError>;

    /// What a version 1 skylink names: its stretch of the sector.
    async fn base_sector(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<Bytes, StoreError>;

    /// The same with the hashes that lead to the sector's root.
    async fn proved_base_sector(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<ProvedSlice, StoreError>;

    /// Bytes of a pinned base sector. The range lies within a sector.
    async fn sector_bytes(&self, root: &[u8; 32], range: Range<u32>, trace: &Arc<Trace>) -> Result<Bytes, StoreError>;

    /// How much of a skyfile is at its place now.
    async fn health(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<SkyfileHealth, StoreError>;
}

/// Names to fixed roots.
#[async_trait]
pub trait Naming: Send + Sync + 'static {
    /// What `name` (an IPNS key in any form, or a domain name) points to.
    async fn resolve(&self, name: &str) -> Result<Resolved, NameError>;

    /// Has this host, without its port, a DNSLink? Never asks anybody for single labels and IP addresses.
    async fn has_dnslink(&self, host: &str) -> Result<bool, NameError>;

    /// The newest IPNS record of a key, if it still holds.
    async fn record(&self, name: &str) -> Result<StoredRecord, NameError>;

    /// Keeps an IPNS record; answers with the name in its usual form.
    async fn put_record(&self, name: &str, bytes: Bytes) -> Result<String, NameError>;

    /// The names that are known here, a bounded number.
    async fn list(&self) -> (Vec<NameRow>, Extent);

    /// The newest entry of Skynet's registry with this id. `None` only if it is known that there is none.
    async fn entry(&self, id: &EntryId) -> Result<Option<SignedEntry>, NameError>;

    /// Keeps an entry, at its quorum when this returns.
    async fn put_entry(&self, signed: SignedEntry) -> Result<(), PutEntryError>;

    /// How an entry stands on its hosts.
    async fn entry_health(&self, id: &EntryId) -> Result<Option<EntryHealth>, NameError>;

    /// Watches entries; nothing yet.
    fn watch_entries(&self) -> EntryWatch;
}

/// A skyfile whose head is known.
#[async_trait]
pub trait Skyfile: Send + Sync {
    fn head(&self) -> &SkyfileHead;

    /// May these bytes of its content be served by the operator's lists?
    async fn allow(&self, bytes: &Range<u64>, trace: &Arc<Trace>) -> Result<(), StoreError>;

    /// Bytes `range` of the stretch `file` of its content, counted from the start of the stretch.
    fn stream(&self, file: Range<u64>, range: Range<u64>, window: Window, trace: Arc<Trace>) -> BodyStream;
}

#[async_trait]
impl Content for Store {
    async fn block(&self, cid: &Cid, window: Window, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        Store::block(self, cid, window, trace).await
    }

    async fn index_block(&self, cid: &Cid, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        Store::index_block(self, cid, trace).await
    }

    async fn block_length(&self, cid: &Cid, trace: &Arc<Trace>) -> Result<u64, StoreError> {
        Store::block_length(self, cid, trace).await
    }

    fn stream_file(&self, file: FileSource, range: Range<u64>, window: Window, trace: Arc<Trace>) -> BodyStream {
        Store::stream_file(self, file, range, window, trace)
    }

    async fn allow_file(&self, file: &FileSource, trace: &Arc<Trace>) -> Result<(), StoreError> {
        Store::allow_file(self, file, trace).await
    }

    fn denied(&self, subject: &Subject<'_>) -> Option<Reason> {
        Store::denied(self, subject)
    }

    fn has_deny_rules(&self) -> bool {
        Store::has_deny_rules(self)
    }

    async fn skyfile(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<Arc<dyn Skyfile>, StoreError> {
        let open = Store::skyfile(self, link, trace).await?;
        Ok(Arc::new(StoredSkyfile { store: self.clone(), open }))
    }

    async fn base_sector(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        Store::base_sector(self, link, trace).await
    }

    async fn proved_base_sector(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<ProvedSlice, StoreError> {
        Store::proved_base_sector(self, link, trace).await
    }

    async fn sector_bytes(&self, root: &[u8; 32], range: Range<u32>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        Store::sector_bytes(self, root, range, trace).await
    }

    async fn health(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<SkyfileHealth, StoreError> {
        Store::health(self, link, trace).await
    }
}

#[async_trait]
impl Naming for Names {
    async fn resolve(&self, name: &str) -> Result<Resolved, NameError> {
        Names::resolve(self, name).await
    }

    async fn has_dnslink(&self, host: &str) -> Result<bool, NameError> {
        Names::has_dnslink(self, host).await
    }

    async fn record(&self, name: &str) -> Result<StoredRecord, NameError> {
        Names::record(self, name).await
    }

    async fn put_record(&self, name: &str, bytes: Bytes) -> Result<String, NameError> {
        Names::put_record(self, name, bytes).await
    }

    async fn list(&self) -> (Vec<NameRow>, Extent) {
        Names::list(self).await
    }

    async fn entry(&self, id: &EntryId) -> Result<Option<SignedEntry>, NameError> {
        Names::entry(self, id).await
    }

    async fn put_entry(&self, signed: SignedEntry) -> Result<(), PutEntryError> {
        Names::put_entry(self, signed).await
    }

    async fn entry_health(&self, id: &EntryId) -> Result<Option<EntryHealth>, NameError> {
        Names::entry_health(self, id).await
    }

    fn watch_entries(&self) -> EntryWatch {
        Names::watch_entries(self)
    }
}

struct StoredSkyfile {
    store: Store,
    open: Arc<OpenSkyfile>,
}

#[async_trait]
impl Skyfile for StoredSkyfile {
    fn head(&self) -> &SkyfileHead {
        &self.open.head
    }

    async fn allow(&self, bytes: &Range<u64>, trace: &Arc<Trace>) -> Result<(), StoreError> {
        self.store.allow_stretch(&self.open, bytes, trace).await
    }

    fn stream(&self, file: Range<u64>, range: Range<u64>, window: Window, trace: Arc<Trace>) -> BodyStream {
        self.store.stream_skyfile(&self.open, file, range, window, trace)
    }
}

/// The body of an upload as it comes in; an error is the client's connection failing.
pub type UploadStream = BoxStream<'static, Result<Bytes, std::io::Error>>;

/// The files of a skyfile as they come in.
pub type SkyParts = BoxStream<'static, Result<SkyPart, IngestError>>;

/// A backup as it comes in.
pub type BackupStream = BoxStream<'static, Result<Bytes, IngestError>>;

/// What a portal takes in.
#[async_trait]
pub trait Uploads: Send + Sync + 'static {
    /// Takes in the files of one skyfile; nothing is visible before the answer.
    async fn skyfile(&self, parts: SkyParts, options: SkyOptions) -> Result<SkyReport, IngestError>;

    /// Takes in a skyfile's backup.
    async fn restore(&self, backup: BackupStream, owner: &str) -> Result<SkyReport, IngestError>;

    /// Keeps what is stored under a version 1 skylink alive for this owner, too.
    async fn pin(&self, link: &Skylink, owner: &str) -> Result<(), IngestError>;

    /// Removes pins of a version 1 skylink.
    async fn unpin(&self, link: &Skylink, whose: Whose) -> Result<Unpinned, IngestError>;
}

#[async_trait]
impl Uploads for Ingest {
    async fn skyfile(&self, parts: SkyParts, options: SkyOptions) -> Result<SkyReport, IngestError> {
        Ingest::skyfile(self, parts, options).await
    }

    async fn restore(&self, backup: BackupStream, owner: &str) -> Result<SkyReport, IngestError> {
        Ingest::restore(self, backup, owner.to_owned()).await
    }

    async fn pin(&self, link: &Skylink, owner: &str) -> Result<(), IngestError> {
        Ingest::pin(self, link, owner).await
    }

    async fn unpin(&self, link: &Skylink, whose: Whose) -> Result<Unpinned, IngestError> {
        Ingest::unpin(self, link, whose).await
    }
}

/// Can this node serve?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// The catalog is not complete yet: absences are unknown.
    Starting,
    Ok,
}

/// One storage host as the operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct HostView {
    pub id: String,
    pub url: String,
    /// `up`, `read-only` or `down`.
    pub state: String,
    /// Why it is not up, in words.
    pub reason: Option<String>,
    pub used_bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    pub failures: u64,
    pub wrong_pieces: u64,
    /// Why it is asked last, in words, if it is: it gave wrong pieces again and again.
    pub set_aside: Option<String>,
    /// Pieces on it that are noted as wrong or missing, for the repair.
    pub damage_noted: u64,
    /// What audits and checks of everything found on it since the start.
    pub checked: CheckedView,
    pub in_flight: u64,
    /// Read latency in milliseconds by name of quantile, e.g. `p50`.
    pub latency_ms: BTreeMap<String, f64>,
}

/// Pieces of one host by what was found of them.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct CheckedView {
    pub right: u64,
    pub wrong: u64,
    pub missing: u64,
    /// It did not answer.
    pub unknown: u64,
    /// Unix time of the last answer, milliseconds.
    pub last_ms: Option<u64>,
}

/// One pin as the operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct PinView {
    pub name: String,
    pub owner: String,
    pub cid: Option<String>,
    pub skylink: Option<String>,
    pub size_bytes: u64,
    pub files: u64,
    /// Unix time, milliseconds.
    pub created_ms: u64,
    pub durability: &'static str,
}

/// A page of pins; `next` is given back to get the one after.
#[derive(Debug, Clone, Serialize)]
pub struct PinPage {
    pub pins: Vec<PinView>,
    pub next: Option<u64>,
}

/// How often reads asked spare hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overdrive {
    /// Of all reads, 0 to 1.
    pub share: f64,
    /// Spares of a read that had any.
    pub average: f64,
}

/// What a portal tells everybody about itself, in figures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PortalNumbers {
    pub pins: u64,
    /// Bytes of content that pins keep; what two pins keep counts twice.
    pub content_bytes: u64,
    /// Bytes on all hosts, spare pieces included.
    pub host_bytes: u64,
    pub damaged_pieces: u64,
    pub hosts_down: u64,
    pub base_overdrive: Overdrive,
    pub slab_overdrive: Overdrive,
}

/// What the admin listener can show and do, and what the portal tells of the node.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    fn readiness(&self) -> Readiness;

    /// Counters and sizes of this node, as JSON.
    fn status(&self) -> Result<serde_json::Value, StoreError>;

    /// More Prometheus text, to stand behind the latencies.
    fn metrics(&self) -> String;

    fn hosts(&self) -> Vec<HostView>;

    /// Hosts that have to be up for an upload to be acknowledged.
    fn hosts_to_write(&self) -> usize;

    async fn portal_numbers(&self) -> Result<PortalNumbers, StoreError>;

    /// At most `max` pins from `from` on (0 = the first).
    async fn pins(&self, from: u64, max: usize) -> Result<PinPage, StoreError>;

    /// Reads everything below this address, or all there is, piece by piece. Dropping the stream stops the work.
    async fn verify(&self, address: Option<&Address>) -> Result<BoxStream<'static, VerifyEvent>, StoreError>;

    /// Removes every pin of this address and says how many there were.
    async fn unpin(&self, address: &Address) -> Result<usize, StoreError>;

    /// The portal's own blocklist, the oldest line first.
    fn blocklist(&self) -> Vec<Blocked>;

    /// Adds lines to the blocklist and takes others back: BLAKE2b-256 of sector roots.
    async fn change_blocklist(&self, add: &[[u8; 32]], remove: &[[u8; 32]]) -> Result<(), StoreError>;

    /// Reads an add stream (`docs/formats.md` 9) and stores what it holds.
    async fn add(&self, body: UploadStream, idempotency_key: Option<String>) -> Result<AddReport, IngestError>;

    /// Reads a CAR and pins its roots, under this name or their own.
    async fn import(
        &self,
        body: UploadStream,
        name: Option<String>,
        idempotency_key: Option<String>,
    ) -> Result<ImportReport, IngestError>;
}
