//! Opaque sectors and objects on hosts nobody has to trust.
//!
//! **Does**: knows the hosts ([`host`], [`folder`], [`bucket`], [`marker`]), decides which host holds what ([`place`]), writes slabs
//! and base sectors until enough copies are durable (`write`), reads them back from whichever hosts answer first and
//! right (`read`), and rebuilds what is missing.
//! **Hides**: which host answered, hedging, retries, header and node layout of sector objects, wrong and lost pieces.
//! **Must never know**: what the bytes mean. No CID, no skylink, no file, no record; only roots, ranges and paths.
//!
//! Words: a *piece* is one erasure-coded share of a slab, a sector on one host. A *base sector* is stored as whole
//! copies. *Acknowledged* means that any `f = ceil(m / 2)` hosts may be lost now; *complete* means that any `m` may.
//! A *race* is one read of `need` pieces from more candidates; a *spare* is a candidate asked because others are late;
//! a *wrong* piece is one that does not fold to its root, a *torn* one is wrong in some of its grains (`torn`). The *first window* of a reply is what somebody waits for.
//!
//! A byte leaves this room only after its grain was checked by the tree that folds to the sector's root, or after the
//! caller's own proof of all that it asked for held ([`Renter::read_slab_proved`]). Roots are the caller's: whoever passes
//! a root has proved it.
//!
//! A piece is looked at without a reader by `check`, damage is told to a keeper of notes by `damage`, and a host that gives wrong
//! pieces again and again is asked last (`trust`).
//!
//! Limits, each beside its use: `WRITE_ACK_MAX`, `LAGGARD_MAX`, `PUT_ATTEMPTS_MAX` (`write`); `READ_MAX`,
//! `HEDGE_MIN`, `PIECE_ATTEMPTS_MAX`, `WHOLE_OBJECT_MAX_BYTES` (`read`); extra bytes and requests ([`budget`]); slabs in
//! flight (`memory`); the tree cache in bytes (`nodes`); [`DAMAGE_MAX`] remembered damages.
//!
//! Retries live here and nowhere below: a [`Host`] call is tried once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::mpsc;

use crate::sector::{Code, Root, slab_id};

pub mod bucket;
pub mod budget;
mod check;
#[cfg(test)]
mod contract;
mod damage;
pub mod faulty;
pub mod folder;
mod forecast;
pub mod host;
pub mod marker;
mod memory;
mod nodes;
mod piece;
pub mod place;
pub mod policy;
mod read;
#[cfg(test)]
mod sim;
mod torn;
mod trust;
mod write;

use budget::{Overdrive, Purse, RetryBudget};
use check::CheckCounters;
use damage::Damages;
use forecast::Forecast;
use host::{Host, HostId, HostState};
use memory::SlabPool;
use nodes::{Placements, TreeCache};
use place::{HostTable, place};
use trust::{Change, Trust};

pub use budget::OverdriveCounts;
pub use check::{CheckCounts, Depth, Looked, Piece, PieceState};
pub use damage::{DAMAGE_MAX, Damage, DamageKind, DamageReport, FoundDamage, NO_SUCH_OBJECT, Noted};
pub use memory::SLAB_MEMORY_DEFAULT_BYTES;
pub use policy::Window;
pub use read::{Expect, Proof};
pub use trust::SetAside;
pub use write::{Completion, Written};

/// Missing pieces remembered: those of three lost hosts of a terabyte. About 100 bytes each.
const MISSING_MAX: u64 = 65_536;
/// How long a missing piece is asked last. It may come back with its disk, and reads do well without it.
const MISSING_FOR: Duration = Duration::from_secs(60);

/// What a read or a write of the renter can end in. The variant says what the caller can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenterError {
    /// Every host that could hold it answered, cleanly, that it does not.
    #[error("not found")]
    NotFound,
    /// Not enough good pieces can be had now. Hosts that come back may change it.
    #[error("only {have} good pieces of {need} needed")]
    TooFewPieces { have: usize, need: usize },
    /// Pieces that may exist did not come in time. Trying again may help.
    #[error("the hosts did not answer in time")]
    TimedOut,
    /// A write cannot become durable enough, or the hosts are too few for the redundancy.
    #[error("{have} of {need} needed hosts can take it: {reason}")]
    NotEnoughHosts {
        have: usize,
        need: usize,
        /// For operators: names hosts.
        reason: String,
    },
}

/// What a slab is made of: its proved piece roots, data pieces first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlabRef {
    pub k: u8,
    pub m: u8,
    /// Exactly `k + m`.
    pub roots: Arc<[Root]>,
    /// Bytes of content in this slab, at most `k` x 4 MiB; reads end here.
    pub content_len: u64,
}

impl SlabRef {
    /// BLAKE2b-256 of the roots in order (`docs/formats.md` 8).
    pub fn id(&self) -> [u8; 32] {
        slab_id(&self.roots)
    }

    fn piece_count(&self) -> usize {
        let piece_count = usize::from(self.k) + usize::from(self.m);
        assert_eq!(self.roots.len(), piece_count, "a slab's roots are counted where they are parsed");
        piece_count
    }
}

/// How a [`Renter`] works; the configuration's part for this room.
#[derive(Clone, Debug)]
pub struct RenterOptions {
    /// Data pieces of a new slab, at least 1.
    pub k: u8,
    /// Parity pieces of a new slab.
    pub m: u8,
    /// Copies of a new base sector, at least 1.
    pub base_copies: u8,
    /// Several pieces of a slab may lie on one host. Then losing a host may lose a slab.
    pub allow_shared_hosts: bool,
    /// Memory for slabs being written or rebuilt, whole process.
    pub slab_memory_bytes: u64,
    /// Memory for checked hash trees and placements.
    pub metadata_bytes: u64,
}

impl Default for RenterOptions {
    fn default() -> Self {
        RenterOptions {
            k: 6,
            m: 3,
            base_copies: 4,
            allow_shared_hosts: false,
            slab_memory_bytes: SLAB_MEMORY_DEFAULT_BYTES,
            metadata_bytes: 64 << 20,
        }
    }
}

/// The room's door: cheap to clone, all clones are one.
#[derive(Clone)]
pub struct Renter {
    shared: Arc<Shared>,
}

struct Shared {
    options: RenterOptions,
    table: HostTable,
    /// By row of the table; `None` if no configured host has that id.
    by_row: Vec<Option<Host>>,
    hosts: Vec<Host>,
    /// By row of the table.
    forecasts: Vec<Forecast>,
    memory: SlabPool,
    trees: TreeCache,
    placements: Placements,
    purse: Purse,
    retries: RetryBudget,
    /// By row of the table.
    trust: Vec<Trust>,
    /// By row of the table.
    checks: Vec<CheckCounters>,
    damages: Damages,
    /// Of reads that need one copy, and of reads that need pieces.
    overdrive: [Overdrive; 2],
    /// Pieces that were not there a moment ago: asked last, so that a read does not pay a round for each.
    missing: moka::sync::Cache<Root, ()>,
    code: Arc<Code>,
}

impl Renter {
    /// Refuses, in words, a redundancy that these hosts cannot carry.
    pub fn new(hosts: Vec<Host>, table: HostTable, options: RenterOptions) -> Result<Renter, RenterError> {
        assert!(options.k >= 1 && options.base_copies >= 1, "the configuration checks the redundancy");
        let slots = usize::from(options.k) + usize::from(options.m);
        let need = slots.max(options.base_copies.into());
        let have = table.hosts.len();
        if have == 0 || (have < need && !options.allow_shared_hosts) {
            let reason = format!(
                "a redundancy of {} + {} with {} base copies wants {need} hosts, each piece on its own; \
                 add hosts, lower the redundancy, or set allow_shared_hosts = true (then losing one host can lose data)",
                options.k, options.m, options.base_copies
            );
            return Err(RenterError::NotEnoughHosts { have, need, reason });
        }
        let by_row: Vec<_> = table.hosts.iter().map(|row| hosts.iter().find(|host| host.id() == row.id).cloned()).collect();
        let shared = Shared {
            forecasts: by_row.iter().map(|_| Forecast::default()).collect(),
            memory: SlabPool::new(options.k, options.m, options.slab_memory_bytes),
            trees: TreeCache::new(options.metadata_bytes),
            placements: Placements::new(options.metadata_bytes),
            purse: Purse::default(),
            retries: RetryBudget::default(),
            trust: by_row.iter().map(|_| Trust::default()).collect(),
            checks: by_row.iter().map(|_| CheckCounters::default()).collect(),
            damages: Damages::default(),
            overdrive: Default::default(),
            missing: moka::sync::Cache::builder().max_capacity(MISSING_MAX).time_to_live(MISSING_FOR).build(),
            code: new_code(options.k, options.m),
            options,
            table,
            by_row,
            hosts,
        };
        Ok(Renter { shared: Arc::new(shared) })
    }

    /// The configured hosts, up or not.
    pub fn hosts(&self) -> &[Host] {
        &self.shared.hosts
    }

    /// The host of a row of the table; `None` if it is not configured here.
    pub fn host_of_row(&self, row: usize) -> Option<&Host> {
        self.shared.by_row.get(row)?.as_ref()
    }

    pub fn table(&self) -> &HostTable {
        &self.shared.table
    }

    pub fn options(&self) -> &RenterOptions {
        &self.shared.options
    }

    /// Hosts that may be lost right after an acknowledgement: `ceil(m / 2)`.
    pub fn f(&self) -> usize {
        ack_losses(self.shared.options.m)
    }

    /// Hosts that may fail a quorum of records: `min(m, 3)`, and no more than a majority of the hosts there are allows.
    pub fn e(&self) -> usize {
        let most = self.shared.table.hosts.len().saturating_sub(1) / 2;
        usize::from(self.shared.options.m).min(3).min(most)
    }

    /// Rows of the table that hold the records of a group: `2 e + 1`.
    pub fn record_rows(&self, group_id: &[u8; 32]) -> Vec<usize> {
        let n = 2 * self.e() + 1;
        let rows = self.shared.placements.get(group_id, n, || place(&self.shared.table, group_id, n));
        rows.iter().map(|row| *row as usize).collect()
    }

    /// The `2 e + 1` hosts that hold the records of a group, fewer if some of them are not configured here. The quorum
    /// stays `e + 1`.
    pub fn record_hosts(&self, group_id: &[u8; 32]) -> Vec<Host> {
        let mut seen = HashSet::new();
        let rows = self.record_rows(group_id);
        rows.into_iter().filter(|row| seen.insert(*row)).filter_map(|row| self.shared.by_row[row].clone()).collect()
    }

    /// How many reads asked spare hosts: those of base sectors, and those of slabs.
    pub fn overdrive(&self) -> [OverdriveCounts; 2] {
        self.shared.overdrive.each_ref().map(Overdrive::counts)
    }

    /// Pieces that reads and checks found wrong or missing, oldest first, at most [`DAMAGE_MAX`].
    pub fn damages(&self) -> Vec<Damage> {
        self.shared.damages.seen()
    }

    /// What has to be noted for a repair, from now on, for one keeper of notes: `None` if there is one already. Reports that
    /// it does not take in time are dropped, and found again.
    pub fn take_damage_reports(&self) -> Option<mpsc::Receiver<DamageReport>> {
        self.shared.damages.take_reports()
    }

    /// Damages that were told, and that nobody took in time.
    pub fn damages_untold(&self) -> u64 {
        self.shared.damages.untold()
    }

    /// The keeper of notes has noted this piece, or has no note of it any more: what is noted is not told again.
    pub fn set_noted(&self, root: Root, host: HostId, noted: Noted) {
        self.shared.damages.set_noted(root, host, noted);
    }

    /// Why a host is asked last; `None` if it is asked like the others.
    pub fn set_aside(&self, host: HostId) -> Option<SetAside> {
        self.shared.standing(self.shared.row_of(host)?)
    }
}

/// Pieces or copies beyond the first that an acknowledgement waits for, of `m` spare ones.
fn ack_losses(m: u8) -> usize {
    usize::from(m).div_ceil(2)
}

/// A place where one piece or copy should be.
#[derive(Clone)]
struct Spot {
    piece_index: usize,
    /// Row of the host table.
    row: usize,
    host: Option<Host>,
    root: Root,
    /// `None` for a copy of a base sector.
    slab: Option<SlabRef>,
}

impl Shared {
    fn slab_spots(&self, slab: &SlabRef) -> Vec<Spot> {
        let id = slab.id();
        let rows = self.placements.get(&id, slab.piece_count(), || place(&self.table, &id, slab.piece_count()));
        let spot =
            |(piece_index, (row, root)): (usize, (&u32, &Root))| self.spot(piece_index, *row as usize, *root, Some(slab.clone()));
        rows.iter().zip(slab.roots.iter()).enumerate().map(spot).collect()
    }

    /// One spot a host: two copies under one name on one host are one copy.
    fn base_spots(&self, root: &Root) -> Vec<Spot> {
        let mut seen = HashSet::new();
        let copies = self.options.base_copies.into();
        let rows = self.placements.get(&root.0, copies, || place(&self.table, &root.0, copies));
        let distinct = rows.iter().map(|row| *row as usize).filter(|row| seen.insert(*row));
        distinct.enumerate().map(|(copy, row)| self.spot(copy, row, *root, None)).collect()
    }

    fn spot(&self, piece_index: usize, row: usize, root: Root, slab: Option<SlabRef>) -> Spot {
        Spot { piece_index, row, host: self.by_row[row].clone(), root, slab }
    }

    fn code(&self, k: u8, m: u8) -> Arc<Code> {
        if (k, m) == (self.options.k, self.options.m) { self.code.clone() } else { new_code(k, m) }
    }

    fn row_of(&self, host: HostId) -> Option<usize> {
        self.table.hosts.iter().position(|row| row.id == host)
    }

    /// A wrong piece is told for repair as well. A missing one is so only where it is known that it was there once: right after
    /// an upload pieces are still on their way.
    fn report_damage(&self, spot: &Spot, kind: DamageKind, reason: &str) {
        self.damages.add(spot, kind, reason);
        if kind == DamageKind::Wrong {
            self.damages.tell(spot, kind, reason);
        }
    }

    /// The piece is right again: it was written anew, or looked at whole.
    fn forget_damage(&self, spot: &Spot) {
        self.missing.invalidate(&spot.root);
        if let Some(host) = &spot.host {
            self.damages.forget(spot.root, host.id());
        }
    }

    /// An answer of the spot's host was checked and right.
    fn right(&self, spot: &Spot) {
        self.tell_change(spot.row, self.trust[spot.row].right());
    }

    /// One was wrong.
    fn wrong(&self, spot: &Spot) {
        self.tell_change(spot.row, self.trust[spot.row].wrong(&spot.root));
    }

    /// Why the host of a row is asked last, if it is.
    fn standing(&self, row: usize) -> Option<SetAside> {
        let (standing, change) = self.trust[row].standing();
        self.tell_change(row, change);
        standing
    }

    fn tell_change(&self, row: usize, change: Option<Change>) {
        let (Some(change), Some(host)) = (change, &self.by_row[row]) else { return };
        match change {
            Change::SetAside => tracing::warn!(host = host.url(), "{}", change.words()),
            Change::BackForAnswers | Change::BackForTime => tracing::info!(host = host.url(), "{}", change.words()),
        }
    }
}

fn new_code(k: u8, m: u8) -> Arc<Code> {
    Arc::new(Code::new(k, m).expect("redundancies are checked where they are parsed"))
}

/// Where a sector lies on its host (`docs/formats.md` 2).
fn sector_path(root: &Root) -> String {
    let hex = hex::encode(root.0);
    format!("sectors/{}/{hex}", &hex[..2])
}

/// `None` if the host takes writes, else why not.
fn write_refusal(host: Option<&Host>) -> Option<String> {
    let Some(host) = host else { return Some("a host of the table is not configured here".to_owned()) };
    match host.state() {
        HostState::Up => None,
        HostState::ReadOnly => Some(format!("{} is read-only", host.url())),
        HostState::Down { reason } => Some(format!("{} is down: {reason}", host.url())),
    }
}

/// Locks what is only ever held for a few plain statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}

/// Runs work that takes more than some tens of microseconds so that other tasks of this thread do not wait for it.
/// `block_in_place` and not a blocking job: no queue hop, and in the prototype both were equally fast. The simulation
/// has one thread, and only itself to wait.
fn compute<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
