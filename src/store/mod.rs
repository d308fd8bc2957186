//! Stored data: wants become verified bytes, uploads become pins, and every reply gets its class.
//!
//! What it does: finds which pin holds a block (`catalog`, `blocks`), reads contents from memory or hosts
//! (`content`), turns files and skyfiles into streams (`stream`, `skyfiles`), commits pins (`commit`), and keeps the
//! catalog true and uploads complete in the background (`upkeep`).
//!
//! What it hides: where bytes are. Callers name a CID or a skylink and get verified bytes or a [`StoreError`].
//!
//! What it must never know: HTTP, DNS, how bytes came in, which host is which.
//!
//! Limits: bodies in memory (`memory_bytes`), index bytes in memory (`metadata_bytes`), read-ahead of a reply
//! (`stream`), look-ups on hosts for unknown addresses while the catalog is being rebuilt ([`ASKS_AT_ONCE_MAX`]).

mod blocklist;
mod blocks;
pub mod catalog;
mod commit;
mod content;
mod denied;
mod pack_rows;
mod packs;
mod pin;
mod sectors;
mod skyfiles;
mod stream;
mod upkeep;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use moka::future::Cache;
use tokio::sync::Semaphore;

use crate::address::{Cid, Skylink};
use crate::deny::{DenyList, Reason, Subject};
use crate::measure::{Measures, Trace};
use crate::records::{RecordError, Records};
use crate::renter::{Renter, RenterError};
use crate::sector::Root;
use crate::tree::TreeError;
use crate::tree::skyfile::SkyfileError;

pub use crate::renter::{Completion, Written};
pub use blocklist::{BLOCKLIST_CHANGES_MAX, BLOCKLIST_MAX, Blocked};
pub use blocks::BLOCK_BYTES_MAX;
pub use catalog::{CatalogError, PinRow as CatalogPin};
pub use commit::{Commit, Durability, PackCopy, UnpinRoot, Unpinned, Whose};
pub use packs::NewPackIndex;
pub use pin::{ImportCounts, NewPin, PIN_ROW_DATA_MAX, PIN_ROWS_MAX, Pin, PinRow, pin_key};
pub use sectors::{ProvedSlice, SkyfileHealth};
pub use skyfiles::OpenSkyfile;
pub use stream::{BodyStream, FileSource};
pub use upkeep::Status;

/// Look-ups on hosts for addresses that a catalog under rebuild does not know. More callers are told to come again:
/// strangers' addresses must not become a flood of host requests.
const ASKS_AT_ONCE_MAX: usize = 16;

/// Looks at the health of a skyfile at once; others wait. Each may ask every host a thousand times.
const HEALTH_LOOKS_MAX: usize = 2;

/// Why bytes cannot be had, or cannot be stored; each variant says what the caller can do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Known to be absent.
    #[error("nothing is stored under this address")]
    NotFound,
    /// A rule of the operator's lists forbids it. Boxed, since errors travel far and this is rare.
    #[error("denied by {}, line {}", .0.list, .0.line)]
    Denied(Box<Reason>),
    /// The catalog is being rebuilt, so an absence cannot be told yet. Try again.
    #[error("the catalog is being rebuilt and does not know this address yet")]
    Rebuilding,
    #[error("only {have} of the {need} pieces that are needed can be read")]
    TooFewPieces { have: usize, need: usize },
    #[error("the hosts did not answer in time")]
    TimedOut,
    /// Writes only.
    #[error("not enough hosts to store safely: {reason} (have {have}, need {need})")]
    NotEnoughHosts { have: usize, need: usize, reason: String },
    #[error("the stored block is malformed: {0}")]
    Tree(#[from] TreeError),
    #[error("the stored file is malformed: {0}")]
    BadFile(&'static str),
    #[error("the stored skyfile is malformed: {0}")]
    Skyfile(#[from] SkyfileError),
    #[error("the block is {length} bytes long, this gateway handles at most {BLOCK_BYTES_MAX}")]
    BlockTooLarge { length: u64 },
    /// Our own record of an upload is wrong: an older program's fault, or this disk's.
    #[error("the pin that holds this content cannot be used: {0}")]
    BadPin(String),
    #[error("the bytes stored for {0} do not hash to it")]
    WrongBlock(Box<Cid>),
    #[error("{0}")]
    Unsupported(&'static str),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("records cannot be read or written: {0}")]
    Records(String),
    /// One failure told to several readers who joined the same read.
    #[error("{0}")]
    Joined(Arc<StoreError>),
}

impl StoreError {
    fn denied(reason: Reason) -> StoreError {
        StoreError::Denied(Box::new(reason))
    }

    /// The error for one more of those who waited for the same read.
    fn copy(self: &Arc<Self>) -> StoreError {
        match &**self {
            StoreError::NotFound => StoreError::NotFound,
            StoreError::Rebuilding => StoreError::Rebuilding,
            StoreError::TooFewPieces { have, need } => StoreError::TooFewPieces { have: *have, need: *need },
            StoreError::TimedOut => StoreError::TimedOut,
            StoreError::Denied(reason) => StoreError::Denied(reason.clone()),
            _ => StoreError::Joined(self.clone()),
        }
    }

    /// A renter's error about something that a pin keeps alive: it is lost for now, never "not there".
    fn of_pinned(error: RenterError) -> StoreError {
        match error {
            RenterError::NotFound => StoreError::TooFewPieces { have: 0, need: 1 },
            error => error.into(),
        }
    }

    /// The first cause, behind joined reads.
    pub fn cause(&self) -> &StoreError {
        match self {
            StoreError::Joined(error) => error.cause(),
            error => error,
        }
    }
}

/// Sizes and places; each has a name in the configuration.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Folder of the catalog and the pack indexes.
    pub folder: PathBuf,
    /// Body bytes kept in memory; 0 turns it off.
    pub memory_bytes: u64,
    /// Index bytes kept in memory: nodes, pack pages, pins, skyfile heads.
    pub metadata_bytes: u64,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    renter: Renter,
    records: Records,
    measures: Arc<Measures>,
    catalog: catalog::Catalog,
    packs_on_disk: packs::PacksOnDisk,
    contents: content::Contents,
    denied: denied::Denied,
    /// Where blocks are, by multihash: a hit in memory then asks nothing of the catalog, which takes some microseconds.
    located: quick_cache::sync::Cache<Vec<u8>, blocks::Located>,
    /// Pins removed so far; see [`Inner::locate`].
    unpins: AtomicU64,
    /// Verified interior nodes by multihash.
    nodes: Cache<Vec<u8>, Bytes>,
    pins: Cache<String, Arc<Pin>>,
    packs: Cache<Root, Arc<blocks::OpenPack>>,
    heads: Cache<(Root, u32, u32), Arc<OpenSkyfile>>,
    asks: Semaphore,
    health_looks: Semaphore,
    pieces_made: Semaphore,
    /// Pins whose blocks are not all in the catalog's table yet: looked into one by one.
    unindexed: Mutex<BTreeMap<String, catalog::PinRow>>,
    /// Pins of so many blocks that their packs' own indexes are looked into instead of the catalog's table.
    own_index: Mutex<BTreeMap<String, catalog::PinRow>>,
    scratch: PathBuf,
    upkeep: upkeep::Upkeep,
}

/// Places of blocks: a sixteenth of `metadata_bytes`.
const LOCATED_SHARE: u64 = 16;
/// What one of them takes, about: key, place, roots shared with others, the cache's own.
const LOCATED_BYTES: u64 = 512;
/// Parts of `metadata_bytes`: the rest after these goes to nodes and pack pages in equal halves.
const PINS_SHARE: u64 = 8;
/// Packs are mapped files or copies of indexes: a quarter.
const PACKS_SHARE: u64 = 4;
/// Skyfile heads hold fanouts and metadata (up to 4 MiB each): a quarter.
const HEADS_SHARE: u64 = 4;

impl Store {
    /// Opens the catalog. Nothing is asked of the hosts here: [`Store::start_upkeep`] does that.
    pub fn open(renter: Renter, records: Records, measures: Arc<Measures>, options: &StoreOptions) -> Result<Store, CatalogError> {
        let catalog = catalog::Catalog::open(&options.folder)?;
        let packs_on_disk =
            packs::PacksOnDisk::open(&options.folder.join("packs")).map_err(|error| CatalogError::from(redb::Error::Io(error)))?;
        let scratch = options.folder.join("scratch");
        std::fs::create_dir_all(&scratch).map_err(redb::Error::Io)?;
        let all = options.metadata_bytes;
        let rest = all - all / LOCATED_SHARE - all / PINS_SHARE - all / PACKS_SHARE - all / HEADS_SHARE;
        let weight = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let inner = Inner {
            denied: denied::Denied::new(),
            contents: content::Contents::new(renter.clone(), options.memory_bytes, rest / 2),
            located: quick_cache::sync::Cache::new((all / LOCATED_SHARE / LOCATED_BYTES) as usize),
            unpins: AtomicU64::new(0),
            nodes: Cache::builder()
                .max_capacity(rest / 2)
                .weigher(move |key: &Vec<u8>, node: &Bytes| weight(key.len() + node.len() + 128))
                .build(),
            pins: Cache::builder()
                .max_capacity(all / PINS_SHARE)
                .weigher(move |key: &String, pin: &Arc<Pin>| weight(key.len() + pin.memory_bytes()))
                .build(),
            packs: Cache::builder()
                .max_capacity(all / PACKS_SHARE)
                .weigher(move |_, pack: &Arc<blocks::OpenPack>| weight(pack.rows.memory_bytes()))
                .build(),
            heads: Cache::builder()
                .max_capacity(all / HEADS_SHARE)
                .weigher(move |_, skyfile: &Arc<OpenSkyfile>| weight(skyfile.head.memory_bytes()))
                .build(),
            asks: Semaphore::new(ASKS_AT_ONCE_MAX),
            health_looks: Semaphore::new(HEALTH_LOOKS_MAX),
            pieces_made: Semaphore::new(sectors::PIECES_MADE_AT_ONCE_MAX),
            unindexed: Mutex::new(BTreeMap::new()),
            own_index: Mutex::new(BTreeMap::new()),
            scratch,
            upkeep: upkeep::Upkeep::default(),
            renter,
            records,
            measures,
            catalog,
            packs_on_disk,
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// The whole block, hashed against its CID.
    pub async fn block(&self, cid: &Cid, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        self.inner.block(cid, trace).await
    }

    /// The whole block, counted and cached as index: nodes on the way to what was asked for.
    pub async fn index_block(&self, cid: &Cid, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        self.inner.index_block(cid, trace).await
    }

    /// Length of a block, bytes, without reading it.
    pub async fn block_length(&self, cid: &Cid, trace: &Arc<Trace>) -> Result<u64, StoreError> {
        self.inner.denied.allow(cid)?;
        if cid.hash().code() == crate::address::hash::IDENTITY {
            return Ok(cid.hash().digest().len() as u64);
        }
        Ok(self.inner.locate(cid.hash(), trace).await?.length())
    }

    /// Puts other lists in force, for everything that is asked from now on.
    pub fn set_denied(&self, list: DenyList) {
        self.inner.denied.set(list);
        self.inner.denied_changed();
    }

    /// Which rule forbids this, if one does. Blocks are asked for by this room itself; paths and names are the caller's.
    pub fn denied(&self, subject: &Subject<'_>) -> Option<Reason> {
        self.inner.denied.check(subject)
    }

    /// May this file be served, whatever part of it is asked for? [`FileSource`]s that are streamed are checked block by block
    /// as well.
    pub async fn allow_file(&self, file: &FileSource, trace: &Arc<Trace>) -> Result<(), StoreError> {
        self.inner.allow_file(file, trace).await
    }

    /// The same for a stretch of a skyfile's content.
    pub async fn allow_stretch(&self, skyfile: &OpenSkyfile, bytes: &Range<u64>, trace: &Arc<Trace>) -> Result<(), StoreError> {
        self.inner.allow_stretch(&skyfile.root, &skyfile.content.lies(bytes.clone()), trace).await
    }

    /// Are there any rules?
    pub fn has_deny_rules(&self) -> bool {
        self.inner.denied.has_rules()
    }

    /// Opens the skyfile of a v1 skylink.
    pub async fn skyfile(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<Arc<OpenSkyfile>, StoreError> {
        self.inner.skyfile(link, trace).await
    }
}

impl From<RenterError> for StoreError {
    fn from(error: RenterError) -> StoreError {
        match error {
            RenterError::NotFound => StoreError::NotFound,
            RenterError::TooFewPieces { have, need } => StoreError::TooFewPieces { have, need },
            RenterError::TimedOut => StoreError::TimedOut,
            RenterError::NotEnoughHosts { have, need, reason } => StoreError::NotEnoughHosts { have, need, reason },
        }
    }
}

impl From<RecordError> for StoreError {
    fn from(error: RecordError) -> StoreError {
        match error {
            RecordError::Unavailable { have, need, reasons } => StoreError::NotEnoughHosts { have, need, reason: reasons },
            error => StoreError::Records(error.to_string()),
        }
    }
}
