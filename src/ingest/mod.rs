//! Uploads: bytes of an add stream become a tree, slabs, a skyfile, a pack, and at last a pin.
//!
//! What it does: reads the stream once, in bounded memory, on a thread of its own; hashes leaves, encodes slabs while
//! they arrive, writes them through `store`; then base sector, pack, pin. The pin at its quorum is the commit point:
//! before it nothing is visible, after it everything is.
//!
//! Uploads come as add streams (`frames`), as CARs (`import`), and in Skynet's shapes (`skyfile`,
//! `restore`).
//!
//! What it hides: that a folder becomes one skyfile, one DAG over the same bytes, and one pack that maps the one on
//! the other. What it must never know: HTTP, hosts, where a client's files lie.
//!
//! Uploads in pieces wait in the [`spool`] of this node until they are whole.
//!
//! Limits: [`UPLOADS_AT_ONCE_MAX`], [`ENTRIES_MAX`], [`IMPORT_BLOCKS_MAX`], [`IMPORT_ROOTS_MAX`], [`IMPORT_DISK_BYTES_MAX`], [`UPLOAD_STALL`],
//! [`SKY_PATH_BYTES_MAX`], [`CONTENT_TYPE_BYTES_MAX`], the slab memory of the process (`renter`).

mod assemble;
mod frames;
mod import;
mod ledger;
pub mod restore;
mod runs;
mod skyfile;
pub mod spool;
mod writer;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc};

use crate::address::{Cid, Skylink};
use crate::store::{Durability, Pin, Store, StoreError};
use crate::tree::TreeError;
use crate::tree::build::BuildError;
use crate::tree::skyfile::{MetadataError, UploadMetadataError};

pub use crate::store::{Unpinned, Whose};
pub use frames::{UPLOAD_STALL, fuzz};
pub use import::{IMPORT_BLOCKS_MAX, IMPORT_DISK_BYTES_MAX, IMPORT_ROOTS_MAX, ImportReport};
pub use skyfile::{CONTENT_TYPE_BYTES_MAX, SKY_PATH_BYTES_MAX, SkyFile, SkyOptions, SkyPart, SkyPlace, SkyPurpose, SkyReport};

/// Uploads at once. Each has a thread, at most 4 MiB waiting for their slab, and a step buffer.
pub const UPLOADS_AT_ONCE_MAX: usize = 32;
/// Entries of one upload: their names, rows and metadata are kept until its end, about 300 bytes each.
pub const ENTRIES_MAX: u64 = 1_000_000;
/// How long a reply waits for the pieces beyond the acknowledgement, so that it can say "complete".
const COMPLETE_WAIT: Duration = Duration::from_secs(1);

/// Why an upload failed. Nothing of it is visible then.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The client's fault.
    #[error("{0}")]
    Bad(String),
    #[error("the upload has more than the {limit} bytes that are taken here")]
    TooLarge { limit: u64 },
    #[error("the upload ended before its last frame: nothing of it was kept, send it again")]
    Cut,
    #[error("the upload could not be received: {0}")]
    Body(String),
    #[error("nothing came for {} seconds: nothing of the upload was kept, send it again", UPLOAD_STALL.as_secs())]
    Stalled,
    /// Come again.
    #[error("{UPLOADS_AT_ONCE_MAX} uploads are under way, which is as many as this gateway takes: try again later")]
    Busy,
    #[error("an upload with this idempotency key is under way")]
    SameKeyUnderWay,
    /// This node's own disk is at fault, or full.
    #[error("the data directory cannot take what an import sorts there: {0}")]
    Scratch(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IngestError {
    fn bad(why: impl Into<String>) -> IngestError {
        IngestError::Bad(why.into())
    }

    /// Is it of no use to try the same again?
    pub fn is_client_fault(&self) -> bool {
        matches!(self, IngestError::Bad(_) | IngestError::TooLarge { .. })
    }
}

impl From<BuildError> for IngestError {
    fn from(error: BuildError) -> IngestError {
        IngestError::Bad(error.to_string())
    }
}

impl From<MetadataError> for IngestError {
    fn from(error: MetadataError) -> IngestError {
        IngestError::Bad(error.to_string())
    }
}

impl From<UploadMetadataError> for IngestError {
    fn from(error: UploadMetadataError) -> IngestError {
        IngestError::Bad(error.to_string())
    }
}

impl From<TreeError> for IngestError {
    fn from(error: TreeError) -> IngestError {
        IngestError::Bad(error.to_string())
    }
}

/// Who adds, and under which key a repeated add is the same add.
#[derive(Clone, Debug)]
pub struct AddOptions {
    pub owner: String,
    pub idempotency_key: Option<String>,
}

/// What an add gave.
#[derive(Clone, Debug)]
pub struct AddReport {
    pub cid: Cid,
    /// None when there was no file in the upload.
    pub skylink: Option<Skylink>,
    pub size_bytes: u64,
    pub files: u64,
    pub durability: Durability,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    store: Store,
    uploads: Arc<Semaphore>,
    /// One permit a core: encoding is all computing.
    compute: Arc<Semaphore>,
    keys_under_way: Arc<Mutex<HashSet<[u8; 32]>>>,
}

impl Ingest {
    pub fn new(store: Store) -> Ingest {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ingest {
            store,
            uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE_MAX)),
            compute: Arc::new(Semaphore::new(cores)),
            keys_under_way: Arc::default(),
        }
    }

    /// Takes in an add stream (`docs/formats.md` 9). Dropping the future stops the upload; nothing of it is visible.
    pub async fn add<B, E>(&self, mut body: B, options: AddOptions) -> Result<AddReport, IngestError>
    where
        B: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display,
    {
        let _permit = self.uploads.clone().try_acquire_owned().map_err(|_| IngestError::Busy)?;
        let idem = options.idempotency_key.as_deref().map(|key| idem_hash(&options.owner, key));
        let _key = idem.map(|idem| self.hold_key(idem)).transpose()?;
        if let Some(idem) = &idem
            && let Some((pin, durability)) = self.store.pin_by_idem(idem)?
        {
            drain(&mut body).await?;
            return report_of(&pin, durability);
        }
        let (parts, received) = mpsc::channel(frames::PARTS_WAITING_MAX);
        let assembly = assemble::Assembly::new(self.store.clone(), self.compute.clone(), options.owner, idem);
        let work = tokio::task::spawn_blocking(move || assembly.run(frames::FrameReader::new(received)));
        feed(&mut body, parts).await?;
        let assembled = work.await.expect("an upload's thread does not panic")?;
        let stored = assembled.store(&self.store, COMPLETE_WAIT).await?;
        Ok(stored)
    }

    /// Takes in a CAR, pinned under `name` or each root's own. Dropping the future before the first pin stops it, and nothing
    /// of it is visible.
    pub async fn import<B, E>(&self, mut body: B, options: AddOptions, name: Option<String>) -> Result<ImportReport, IngestError>
    where
        B: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display,
    {
        let _permit = self.uploads.clone().try_acquire_owned().map_err(|_| IngestError::Busy)?;
        let AddOptions { owner, idempotency_key } = options;
        let idem = idempotency_key.as_deref().map(|key| import_idem_hash(&owner, key));
        let _key = idem.map(|idem| self.hold_key(idem)).transpose()?;
        if let Some(idem) = &idem
            && let Some((pin, durability)) = self.store.pin_by_idem(idem)?
        {
            drain(&mut body).await?;
            return self.report_of_import(&pin, durability).await;
        }
        let (parts, received) = mpsc::channel(frames::PARTS_WAITING_MAX);
        let labels = import::Labels { owner, name, idem };
        let import = import::Import::new(self.store.clone(), self.compute.clone(), labels, ledger::options(self.store.scratch()));
        let work = tokio::task::spawn_blocking(move || import.run(frames::FrameReader::new(received)));
        feed(&mut body, parts).await?;
        let imported = work.await.expect("an import's thread does not panic")?;
        imported.store(&self.store, COMPLETE_WAIT).await
    }

    async fn report_of_import(&self, pin: &Pin, durability: Durability) -> Result<ImportReport, IngestError> {
        let counts = pin.import.ok_or_else(|| StoreError::BadPin("it is no import's".to_owned()))?;
        let roots = self.store.pack_roots(pin).await?;
        Ok(ImportReport { roots, blocks: counts.blocks, missing: counts.missing, size_bytes: pin.size, durability })
    }

    fn hold_key(&self, idem: [u8; 32]) -> Result<HeldKey, IngestError> {
        let mut keys = self.keys_under_way.lock().expect("no panic under this lock");
        if !keys.insert(idem) {
            return Err(IngestError::SameKeyUnderWay);
        }
        Ok(HeldKey { idem, keys: self.keys_under_way.clone() })
    }
}

struct HeldKey {
    idem: [u8; 32],
    keys: Arc<Mutex<HashSet<[u8; 32]>>>,
}

impl Drop for HeldKey {
    fn drop(&mut self) {
        self.keys.lock().expect("no panic under this lock").remove(&self.idem);
    }
}

/// Passes the body on to the thread. Ends early when the thread has ended, whose error is then the one to tell.
async fn feed<B, E>(body: &mut B, parts: mpsc::Sender<Result<Bytes, String>>) -> Result<(), IngestError>
where
    B: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: std::fmt::Display,
{
    loop {
        let next = tokio::time::timeout(UPLOAD_STALL, body.next()).await.map_err(|_| IngestError::Stalled)?;
        let Some(part) = next else { return Ok(()) };
        if parts.send(part.map_err(|error| error.to_string())).await.is_err() {
            return Ok(());
        }
    }
}

/// Reads a body that is not needed, so that the client hears the answer.
async fn drain<B, E>(body: &mut B) -> Result<(), IngestError>
where
    B: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: std::fmt::Display,
{
    loop {
        let next = tokio::time::timeout(UPLOAD_STALL, body.next()).await.map_err(|_| IngestError::Stalled)?;
        match next {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(IngestError::Body(error.to_string())),
            None => return Ok(()),
        }
    }
}

/// Work that takes long, on a thread for it.
async fn hold_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic")
}

/// Two owners' equal keys are two keys.
fn idem_hash(owner: &str, key: &str) -> [u8; 32] {
    key_hash(b"skygate idempotency v1", owner, key)
}

/// And so are an add's and an import's.
fn import_idem_hash(owner: &str, key: &str) -> [u8; 32] {
    key_hash(b"skygate import idempotency v1", owner, key)
}

fn key_hash(domain: &[u8], owner: &str, key: &str) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    state.update(domain).update(&(owner.len() as u64).to_le_bytes());
    state.update(owner.as_bytes()).update(key.as_bytes());
    state.finalize().as_bytes().try_into().expect("32 bytes were asked for")
}

fn report_of(pin: &Pin, durability: Durability) -> Result<AddReport, IngestError> {
    let cid = pin.cid().ok_or_else(|| StoreError::BadPin("it has no CID".to_owned()))?;
    Ok(AddReport { cid, skylink: pin.skylink(), size_bytes: pin.size, files: pin.files, durability })
}
