//! What was found damaged: for the operator's eyes, and told to whoever keeps notes for the repair.
//!
//! A read that meets damage leaves a line here, which takes a lock and no waiting, and goes on. The lines of this process
//! are the last [`DAMAGE_MAX`]; what has to outlive it is taken from [`DamageReport`]s by a keeper of notes, which says
//! back what it has noted, so that a piece is told once however often it is read.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use tokio::sync::mpsc;

use super::{SlabRef, Spot, host::HostId, lock};
use crate::sector::Root;

/// Damages remembered for `skygate hosts`. A host that lost everything reports one per read; a thousand lines are more
/// than anybody reads and about 200 KiB.
pub const DAMAGE_MAX: usize = 1_000;
/// Reports that wait for the keeper of notes: more come only while hosts are too few to write notes on, and what is lost
/// here is found again by the next look at the piece. About 200 bytes each.
const REPORTS_WAITING_MAX: usize = 1_024;

/// Of a missing piece, in words.
pub const NO_SUCH_OBJECT: &str = "the host says that it has no such object";

/// One piece that was not where it should be, or not right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub root: Root,
    pub host: HostId,
    /// Position in its slab, or number of the copy of a base sector.
    pub piece_index: usize,
    pub kind: DamageKind,
    /// In words, for operators.
    pub reason: String,
    pub last_seen: SystemTime,
    /// How often it was met.
    pub times: u64,
}

/// Corrupt is not missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// The host answered bytes that do not fold to the root.
    Wrong,
    /// The host answered that it has no such object.
    Missing,
}

impl DamageKind {
    pub fn as_str(self) -> &'static str {
        match self {
            DamageKind::Wrong => "wrong",
            DamageKind::Missing => "missing",
        }
    }
}

/// What a keeper of notes is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageReport {
    Found(FoundDamage),
    /// The piece was written anew, or read whole and right.
    Mended {
        root: Root,
        host: HostId,
    },
}

/// Everything that a repair has to know of one damaged piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDamage {
    pub root: Root,
    pub host: HostId,
    /// Position in its slab, or number of the copy of a base sector.
    pub piece_index: usize,
    /// `None` for a base sector.
    pub slab: Option<SlabRef>,
    pub kind: DamageKind,
    pub reason: String,
}

/// What is known to be noted, and what is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    Yes,
    No,
}

pub(super) struct Damages {
    seen: Mutex<VecDeque<Damage>>,
    noted: Mutex<HashSet<(Root, HostId)>>,
    reports: mpsc::Sender<DamageReport>,
    /// Until a keeper takes it.
    reports_for_keeper: Mutex<Option<mpsc::Receiver<DamageReport>>>,
    untold: AtomicU64,
}

impl Default for Damages {
    fn default() -> Self {
        let (reports, for_keeper) = mpsc::channel(REPORTS_WAITING_MAX);
        Damages {
            seen: Mutex::default(),
            noted: Mutex::default(),
            reports,
            reports_for_keeper: Mutex::new(Some(for_keeper)),
            untold: AtomicU64::new(0),
        }
    }
}

impl Damages {
    /// Oldest first, at most [`DAMAGE_MAX`].
    pub(super) fn seen(&self) -> Vec<Damage> {
        lock(&self.seen).iter().cloned().collect()
    }

    /// Reports that no keeper took in time.
    pub(super) fn untold(&self) -> u64 {
        self.untold.load(Relaxed)
    }

    pub(super) fn take_reports(&self) -> Option<mpsc::Receiver<DamageReport>> {
        lock(&self.reports_for_keeper).take()
    }

    pub(super) fn set_noted(&self, root: Root, host: HostId, noted: Noted) {
        let mut all = lock(&self.noted);
        match noted {
            Noted::Yes => all.insert((root, host)),
            Noted::No => all.remove(&(root, host)),
        };
    }

    /// Remembers a damage, and says it in the log the first time.
    pub(super) fn add(&self, spot: &Spot, kind: DamageKind, reason: &str) {
        let Some(host) = &spot.host else { return };
        let (id, now) = (host.id(), SystemTime::now());
        let mut seen = lock(&self.seen);
        if let Some(known) = seen.iter_mut().find(|d| d.root == spot.root && d.host == id && d.kind == kind) {
            known.last_seen = now;
            known.times += 1;
            return;
        }
        tracing::warn!(root = %spot.root, host = host.url(), piece = spot.piece_index, ?kind, reason, "a piece is damaged");
        if seen.len() == DAMAGE_MAX {
            seen.pop_front();
        }
        let reason = reason.to_owned();
        seen.push_back(Damage { root: spot.root, host: id, piece_index: spot.piece_index, kind, reason, last_seen: now, times: 1 });
    }

    /// Tells the keeper of notes, unless it has noted this piece.
    pub(super) fn tell(&self, spot: &Spot, kind: DamageKind, reason: &str) {
        let Some(host) = spot.host.as_ref().map(|host| host.id()) else { return };
        if lock(&self.noted).contains(&(spot.root, host)) {
            return;
        }
        let found = FoundDamage {
            root: spot.root,
            host,
            piece_index: spot.piece_index,
            slab: spot.slab.clone(),
            kind,
            reason: reason.to_owned(),
        };
        self.send(DamageReport::Found(found));
    }

    /// The piece is right.
    pub(super) fn forget(&self, root: Root, host: HostId) {
        lock(&self.seen).retain(|damage| damage.root != root || damage.host != host);
        let noted = lock(&self.noted).contains(&(root, host));
        if noted {
            self.send(DamageReport::Mended { root, host });
        }
    }

    fn send(&self, report: DamageReport) {
        if self.reports.try_send(report).is_err() {
            self.untold.fetch_add(1, Relaxed);
        }
    }
}
