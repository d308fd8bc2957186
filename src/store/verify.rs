//! Reading everything: each piece of each slab on each host, and each copy of each base sector, proved against its root.
//!
//! A reader is content with any k right pieces; this is not. What is found is told while it goes on, and noted for repair.
//! The work stops when nobody takes what it tells.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, StreamExt};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::address::{Cid, Skylink, SkylinkKind, hash};
use crate::measure::Trace;
use crate::renter::{Depth, NO_SUCH_OBJECT, Piece, PieceState};

use super::catalog::PinRow;
use super::parts::{Part, skyfiles_of};
use super::{Inner, Pin, Store, StoreError};

/// Runs at once: each reads as fast as the hosts give.
pub const VERIFY_RUNS_MAX: usize = 2;
/// Pieces of one run that are asked for at once: each holds an object of up to 4.2 MiB in memory.
const PIECES_AT_ONCE: usize = 4;
/// Events that wait for whoever reads them; then the work waits, too.
const EVENTS_WAITING_MAX: usize = 16;
/// How often a run says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Pins looked up in one step.
const PAGE_PINS: usize = 256;
/// Base sectors remembered, so that content with several pins is read once. Beyond them it is read again. 6 MiB.
const SEEN_MAX: usize = 100_000;

/// What is read.
#[derive(Clone, Debug)]
pub enum VerifyTarget {
    /// Every pin.
    Everything,
    Cid(Cid),
    Skylink(Skylink),
}

/// What a run tells. Events of damage name the pin that was being read.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum VerifyEvent {
    /// A piece or copy that is not right, or whose host did not answer.
    Damage(PieceDamage),
    /// Something that cannot be read now.
    Unreadable(Unreadable),
    Progress(Tally),
    /// The last one of a run that went to its end.
    End(Summary),
}

#[derive(Clone, Debug, Serialize)]
pub struct PieceDamage {
    pub pin: String,
    pub root: String,
    /// Id of the host; absent if it is not configured here.
    pub host: Option<String>,
    pub url: Option<String>,
    pub part: PartName,
    /// Position in the slab, or number of the copy.
    pub piece: usize,
    /// `wrong`, `missing`, or `unknown`: the host did not answer.
    pub kind: &'static str,
    pub reason: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Unreadable {
    pub pin: String,
    pub root: Option<String>,
    pub part: Option<PartName>,
    pub right: usize,
    pub need: usize,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartName {
    BaseSector,
    Slab,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub pins: u64,
    pub base_sectors: u64,
    pub slabs: u64,
    pub pieces: u64,
    pub wrong: u64,
    pub missing: u64,
    /// Their hosts did not answer.
    pub unknown: u64,
    pub unreadable: u64,
    /// Bytes that hosts sent.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    pub verdict: Verdict,
    #[serde(flatten)]
    pub tally: Tally,
    pub seconds: f64,
}

/// What a run comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every piece is right and at its place.
    Whole,
    /// Everything can be read; pieces are wrong or missing, or could not be looked at.
    Damaged,
    /// Something cannot be read now.
    Unreadable,
}

impl Tally {
    fn verdict(&self) -> Verdict {
        match (self.unreadable, self.wrong + self.missing + self.unknown) {
            (0, 0) => Verdict::Whole,
            (0, _) => Verdict::Damaged,
            _ => Verdict::Unreadable,
        }
    }
}

impl Store {
    /// Starts a run. It reads on while its events are taken and stops when they are dropped.
    ///
    /// # Errors
    /// `NotFound`, `Rebuilding`: no pin is known that holds this. `Busy`: [`VERIFY_RUNS_MAX`] runs are under way.
    pub async fn verify(&self, target: VerifyTarget) -> Result<BoxStream<'static, VerifyEvent>, StoreError> {
        let too_many = |_| StoreError::Busy("as many checks of everything are under way as this gateway runs at once");
        let permit = self.inner.verify_runs.clone().try_acquire_owned().map_err(too_many)?;
        let pins = self.inner.pins_to_verify(&target)?;
        let (events, received) = mpsc::channel(EVENTS_WAITING_MAX);
        let (inner, gone) = (self.inner.clone(), events.clone());
        tokio::spawn(async move {
            let run = Run { inner, events, tally: Tally::default(), seen: HashSet::new(), told: Instant::now() };
            tokio::select! {
                () = run.run(pins) => {}
                () = gone.closed() => tracing::debug!("a check of everything ends: nobody reads what it tells"),
            }
            drop(permit);
        });
        Ok(stream::unfold(received, async |mut received| received.recv().await.map(|event| (event, received))).boxed())
    }
}

/// Which pins a run goes over.
enum PinsToVerify {
    All,
    These(Vec<PinRow>),
}

impl Inner {
    /// The pins of this address. An address inside of an upload is read by the whole upload: its pieces hold all of it.
    fn pins_to_verify(&self, target: &VerifyTarget) -> Result<PinsToVerify, StoreError> {
        // In this order: a catalog that becomes complete in between may have got the pin after the look.
        let complete = self.catalog.is_complete();
        let rows = match target {
            VerifyTarget::Everything if complete => return Ok(PinsToVerify::All),
            VerifyTarget::Everything => return Err(StoreError::Rebuilding),
            VerifyTarget::Cid(cid) if cid.hash().code() == hash::IDENTITY => {
                return Err(StoreError::Unsupported("the bytes of this CID stand in the CID itself: nothing of it is stored"));
            }
            VerifyTarget::Cid(cid) => {
                let mut rows = self.catalog.by_root(&cid.hash().to_bytes())?;
                if rows.is_empty()
                    && let Some(key) = crate::tree::pack::block_key(cid.hash())
                {
                    rows = self.catalog.by_block(&key)?;
                }
                rows
            }
            VerifyTarget::Skylink(link) => match link.kind() {
                SkylinkKind::V1 { root, .. } => self.catalog.by_root(&root)?,
                SkylinkKind::V2 { .. } => {
                    return Err(StoreError::Unsupported("a version 2 skylink is a pointer: verify what it points to"));
                }
            },
        };
        match rows.is_empty() {
            false => Ok(PinsToVerify::These(rows)),
            true if complete => Err(StoreError::NotFound),
            true => Err(StoreError::Rebuilding),
        }
    }
}

/// A run under way.
struct Run {
    inner: Arc<Inner>,
    events: mpsc::Sender<VerifyEvent>,
    tally: Tally,
    /// Roots of base sectors read so far.
    seen: HashSet<[u8; 32]>,
    told: Instant,
}

impl Run {
    async fn run(mut self, pins: PinsToVerify) {
        let begun = Instant::now();
        match pins {
            PinsToVerify::These(rows) => {
                for row in &rows {
                    self.pin(row).await;
                }
            }
            PinsToVerify::All => self.all().await,
        }
        let (tally, seconds) = (self.tally, begun.elapsed().as_secs_f64());
        self.tell(VerifyEvent::End(Summary { verdict: tally.verdict(), tally, seconds })).await;
    }

    async fn all(&mut self) {
        let mut from = 0;
        loop {
            let rows = match self.inner.catalog.page(from, PAGE_PINS) {
                Ok(rows) => rows,
                Err(error) => return self.unreadable("", None, (0, 0), error.to_string()).await,
            };
            let Some(last) = rows.last() else { return };
            from = last.number + 1;
            for row in &rows {
                self.pin(row).await;
            }
        }
    }

    async fn pin(&mut self, row: &PinRow) {
        let pin = match Pin::decode(&row.body) {
            Ok(pin) => pin,
            Err(error) => return self.unreadable(&row.key, None, (0, 0), error.to_string()).await,
        };
        let name = name_of(&pin, row);
        for skyfile in skyfiles_of(&pin) {
            if self.seen.contains(&skyfile.root) {
                continue;
            }
            if self.seen.len() < SEEN_MAX {
                self.seen.insert(skyfile.root);
            }
            self.part(&name, row, &Part::base_of(skyfile)).await;
            match self.inner.parts_beyond_base(row, &pin, skyfile, &Trace::new()).await {
                Ok(parts) => {
                    for part in &parts {
                        self.part(&name, row, part).await;
                    }
                }
                Err(error) => self.unreadable(&name, None, (0, 1), error.to_string()).await,
            }
        }
        self.tally.pins += 1;
    }

    async fn part(&mut self, pin: &str, row: &PinRow, part: &Part) {
        match part {
            Part::Base { .. } => self.tally.base_sectors += 1,
            Part::Slab(_) => self.tally.slabs += 1,
        }
        let renter = self.inner.renter.clone();
        let pieces = part.pieces(&renter);
        let looks = pieces.into_iter().map(|piece| {
            let renter = renter.clone();
            async move { (renter.check_piece(&piece, Depth::Whole).await, piece) }
        });
        let mut looks = stream::iter(looks).buffer_unordered(PIECES_AT_ONCE);
        let (mut right, mut some_root) = (0, None);
        while let Some((looked, piece)) = looks.next().await {
            self.tally.pieces += 1;
            self.tally.bytes += looked.bytes;
            some_root.get_or_insert(piece.root());
            let (kind, reason) = match looked.state {
                PieceState::Right => {
                    right += 1;
                    self.say_progress().await;
                    continue;
                }
                PieceState::Wrong(reason) => (DamageWord::Wrong, reason),
                PieceState::Missing => {
                    // Of an upload that is still being completed, pieces are on their way.
                    if row.complete {
                        renter.tell_missing(&piece);
                    }
                    (DamageWord::Missing, NO_SUCH_OBJECT.to_owned())
                }
                PieceState::Unknown(reason) => (DamageWord::Unknown, reason),
            };
            *self.counter(kind) += 1;
            self.tell(VerifyEvent::Damage(damage(pin, part, &piece, kind, reason))).await;
        }
        if right < part.need() {
            let reason = format!("only {right} right of the {} that are needed", part.need());
            let place = some_root.map(|root| (root.to_string(), name_of_part(part)));
            self.unreadable(pin, place, (right, part.need()), reason).await;
        }
    }

    fn counter(&mut self, kind: DamageWord) -> &mut u64 {
        match kind {
            DamageWord::Wrong => &mut self.tally.wrong,
            DamageWord::Missing => &mut self.tally.missing,
            DamageWord::Unknown => &mut self.tally.unknown,
        }
    }

    async fn unreadable(&mut self, pin: &str, place: Option<(String, PartName)>, (right, need): (usize, usize), reason: String) {
        self.tally.unreadable += 1;
        let (root, part) = place.unzip();
        self.tell(VerifyEvent::Unreadable(Unreadable { pin: pin.to_owned(), root, part, right, need, reason })).await;
    }

    async fn say_progress(&mut self) {
        if self.told.elapsed() >= PROGRESS_EVERY {
            self.told = Instant::now();
            self.tell(VerifyEvent::Progress(self.tally)).await;
        }
    }

    /// If nobody takes it, the run is dropped.
    async fn tell(&self, event: VerifyEvent) {
        let _ = self.events.send(event).await;
    }
}

#[derive(Clone, Copy)]
enum DamageWord {
    Wrong,
    Missing,
    Unknown,
}

fn damage(pin: &str, part: &Part, piece: &Piece, kind: DamageWord, reason: String) -> PieceDamage {
    PieceDamage {
        pin: pin.to_owned(),
        root: piece.root().to_string(),
        host: piece.host().map(|host| host.id().to_string()),
        url: piece.host().map(|host| host.url().to_owned()),
        part: name_of_part(part),
        piece: piece.piece_index(),
        kind: match kind {
            DamageWord::Wrong => "wrong",
            DamageWord::Missing => "missing",
            DamageWord::Unknown => "unknown",
        },
        reason,
    }
}

fn name_of_part(part: &Part) -> PartName {
    match part {
        Part::Base { .. } => PartName::BaseSector,
        Part::Slab(_) => PartName::Slab,
    }
}

/// What a person knows the pin by.
fn name_of(pin: &Pin, row: &PinRow) -> String {
    if !pin.name.is_empty() {
        return pin.name.clone();
    }
    pin.cid().map_or_else(|| row.key.clone(), |cid| cid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tally_comes_to() {
        let rows = [
            (Tally::default(), Verdict::Whole),
            (Tally { pieces: 9, ..Tally::default() }, Verdict::Whole),
            (Tally { wrong: 1, ..Tally::default() }, Verdict::Damaged),
            (Tally { missing: 1, ..Tally::default() }, Verdict::Damaged),
            (Tally { unknown: 1, ..Tally::default() }, Verdict::Damaged),
            (Tally { wrong: 4, unreadable: 1, ..Tally::default() }, Verdict::Unreadable),
        ];
        for (tally, expect) in rows {
            assert_eq!(tally.verdict(), expect, "{tally:?}");
        }
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let summary = Summary { verdict: Verdict::Damaged, tally: Tally { wrong: 2, ..Tally::default() }, seconds: 0.5 };
        let json = serde_json::to_value(VerifyEvent::End(summary)).expect("JSON");
        assert_eq!((json["event"].as_str(), json["verdict"].as_str()), (Some("end"), Some("damaged")));
        assert_eq!((json["wrong"].as_u64(), json["seconds"].as_f64()), (Some(2), Some(0.5)));
    }
}
