//! Looking at pieces that nobody reads: is what lies on a host what was put there?
//!
//! A check asks one host for one piece, all of its object or a sample, and proves it against its root. It never uses what is
//! known of the piece already (cached trees), because a host's own copy of the tree may be what is wrong; and it leaves
//! the caches to readers. One check holds one object, at most 4.2 MiB, in memory.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rand::RngExt;
use tokio::time::sleep;

use super::{
    DamageKind, Expect, NO_SUCH_OBJECT, Renter, SlabRef, Spot, compute,
    host::{Host, HostError, HostId, ReadRange},
    nodes::{CheckedTree, Prefix},
    piece,
    read::piece_length,
    sector_path,
};
use crate::sector::{GRAIN_BYTES, Root, SECTOR_BYTES, data_offset, object_len, open_object};

/// A piece is asked for at most so often, when the failure may pass.
const ATTEMPTS_MAX: u32 = 2;
/// Between them: nobody waits for a check.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A piece at its place, or a copy of a base sector at one of its places.
#[derive(Clone)]
pub struct Piece {
    spot: Spot,
    /// Data length that its object probably has.
    length_guess: u32,
}

impl Piece {
    pub fn root(&self) -> Root {
        self.spot.root
    }

    /// Position in its slab, or number of the copy.
    pub fn piece_index(&self) -> usize {
        self.spot.piece_index
    }

    /// `None` if the host of the table is not configured here.
    pub fn host(&self) -> Option<&Host> {
        self.spot.host.as_ref()
    }
}

/// How much of a piece is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Depth {
    Whole,
    /// The tree, and this share of the data, from a random place on: 0 to 1.
    Sample(f64),
}

/// What a host has where a piece should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceState {
    Right,
    /// It answered something else; in words.
    Wrong(String),
    /// It answered that there is nothing.
    Missing,
    /// It did not answer; in words.
    Unknown(String),
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    pub state: PieceState,
    /// Bytes that the host sent for it.
    pub bytes: u64,
}

/// What checks of a host found, since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckCounts {
    pub right: u64,
    pub wrong: u64,
    pub missing: u64,
    pub unknown: u64,
    /// Unix time of the last answer, milliseconds; 0 if there was none.
    pub last_ms: u64,
}

#[derive(Default)]
pub(super) struct CheckCounters {
    right: AtomicU64,
    wrong: AtomicU64,
    missing: AtomicU64,
    unknown: AtomicU64,
    last_ms: AtomicU64,
}

impl CheckCounters {
    fn count(&self, state: &PieceState) {
        let counter = match state {
            PieceState::Right => &self.right,
            PieceState::Wrong(_) => &self.wrong,
            PieceState::Missing => &self.missing,
            PieceState::Unknown(_) => &self.unknown,
        };
        counter.fetch_add(1, Relaxed);
        if !matches!(state, PieceState::Unknown(_)) {
            let now_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
            self.last_ms.store(now_ms, Relaxed);
        }
    }

    fn counts(&self) -> CheckCounts {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        CheckCounts {
            right: of(&self.right),
            wrong: of(&self.wrong),
            missing: of(&self.missing),
            unknown: of(&self.unknown),
            last_ms: of(&self.last_ms),
        }
    }
}

impl Renter {
    /// The pieces of a slab, each at its place.
    pub fn pieces_of(&self, slab: &SlabRef) -> Vec<Piece> {
        let piece = |spot: Spot| Piece { length_guess: piece_length(slab, spot.piece_index), spot };
        self.shared.slab_spots(slab).into_iter().map(piece).collect()
    }

    /// The copies of a base sector, each at its place.
    pub fn copies_of(&self, root: &Root, expect: Expect) -> Vec<Piece> {
        let length_guess = expect.data_length.unwrap_or(SECTOR_BYTES as u32);
        self.shared.base_spots(root).into_iter().map(|spot| Piece { spot, length_guess }).collect()
    }

    /// Asks the host for the piece and proves it. A wrong one is charged and told for repair, one that is right and was
    /// looked at whole is no longer damaged.
    pub async fn check_piece(&self, piece: &Piece, depth: Depth) -> Looked {
        let shared = &self.shared;
        let (spot, mut bytes) = (&piece.spot, 0);
        let state = match &spot.host {
            None => PieceState::Unknown("its host is in the table of hosts, but not configured here".to_owned()),
            Some(host) => look(host, piece, depth, &mut bytes).await,
        };
        match &state {
            PieceState::Right => {
                shared.right(spot);
                if depth == Depth::Whole {
                    shared.forget_damage(spot);
                }
            }
            PieceState::Wrong(reason) => piece::charge(shared, spot, reason),
            PieceState::Missing => shared.report_damage(spot, DamageKind::Missing, NO_SUCH_OBJECT),
            PieceState::Unknown(_) => {}
        }
        shared.checks[spot.row].count(&state);
        Looked { state, bytes }
    }

    /// A piece that is missing, and was there once, is damage: the repair has to know it.
    pub fn tell_missing(&self, piece: &Piece) {
        self.shared.damages.tell(&piece.spot, DamageKind::Missing, NO_SUCH_OBJECT);
    }

    /// What checks found on a host.
    pub fn checks_of(&self, host: HostId) -> CheckCounts {
        self.shared.row_of(host).map(|row| self.shared.checks[row].counts()).unwrap_or_default()
    }
}

async fn look(host: &Host, piece: &Piece, depth: Depth, bytes: &mut u64) -> PieceState {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let looked = match depth {
            Depth::Whole => look_at_whole(host, piece, bytes).await,
            Depth::Sample(share) => look_at_sample(host, piece, share, bytes).await,
        };
        return match looked {
            Ok(None) => PieceState::Right,
            Ok(Some(wrong)) => PieceState::Wrong(wrong),
            Err(HostError::NotFound) => PieceState::Missing,
            Err(error @ (HostError::Misanswered(_) | HostError::TooLarge)) => PieceState::Wrong(error.to_string()),
            Err(HostError::Transient(_) | HostError::TimedOut) if attempts < ATTEMPTS_MAX => {
                sleep(RETRY_PAUSE).await;
                continue;
            }
            Err(error) => PieceState::Unknown(error.to_string()),
        };
    }
}

/// What is wrong with the object, if anything.
async fn look_at_whole(host: &Host, piece: &Piece, bytes: &mut u64) -> Result<Option<String>, HostError> {
    let root = piece.spot.root;
    let max = object_len(SECTOR_BYTES as u32) as u64;
    let object = host.get(&sector_path(&root), ReadRange::Whole { max }).await?;
    *bytes += object.len() as u64;
    Ok(compute(|| {
        // What readers refuse of a tree, and then all of the object.
        match CheckedTree::parse(&root, &object) {
            Prefix::Tree(_) => open_object(&root, &object).err().map(|error| error.to_string()),
            Prefix::TooShort(_) => Some("the object ends within its nodes".to_owned()),
            Prefix::Wrong(reason) => Some(reason),
        }
    }))
}

/// The tree, and as much data as the share says, from a random grain on.
async fn look_at_sample(host: &Host, piece: &Piece, share: f64, bytes: &mut u64) -> Result<Option<String>, HostError> {
    let (root, path) = (piece.spot.root, sector_path(&piece.spot.root));
    let mut prefix_bytes = data_offset(piece.length_guess) as u64;
    let tree = loop {
        let prefix: Bytes = host.get(&path, ReadRange::Prefix(prefix_bytes)).await?;
        *bytes += prefix.len() as u64;
        match compute(|| CheckedTree::parse(&root, &prefix)) {
            Prefix::Tree(tree) => break tree,
            Prefix::TooShort(need_bytes) if prefix.len() as u64 >= prefix_bytes && need_bytes > prefix_bytes => {
                prefix_bytes = need_bytes;
            }
            Prefix::TooShort(_) => return Ok(Some("the object ends within its nodes".to_owned())),
            Prefix::Wrong(reason) => return Ok(Some(reason)),
        }
    };
    let grain_count = tree.data_end() / GRAIN_BYTES as u32;
    if grain_count == 0 {
        return Ok(None);
    }
    let wanted = ((f64::from(grain_count) * share).ceil() as u32).clamp(1, grain_count);
    let first = rand::rng().random_range(0..grain_count);
    // Around the end, so that each grain has the same chance.
    let (end, rest) = ((first + wanted).min(grain_count), (first + wanted).saturating_sub(grain_count));
    for grains in [first..end, 0..rest] {
        let data = grains.start * GRAIN_BYTES as u32..grains.end * GRAIN_BYTES as u32;
        if data.is_empty() {
            continue;
        }
        let answered = host.get(&path, ReadRange::Range(tree.in_object(&data))).await?;
        *bytes += answered.len() as u64;
        if let Err(wrong) = compute(|| tree.check(&data, &answered)) {
            return Ok(Some(wrong));
        }
    }
    Ok(None)
}
