//! Audits: pieces that nobody reads are looked at all the same, at a bounded rate, so that what rots is known while it
//! can still be mended.
//!
//! Two walks over the pins take turns. The one of new uploads looks at each whole, soon after it became complete: a host that
//! took a piece and threw it away is found out within minutes. The round goes over everything once in a period; where the
//! rate does not allow reading all of it, each piece is sampled: its tree, and a random part of its data. Hosts
//! that were set aside are asked for a piece now and then, so that they can earn their way back.
//!
//! Where a walk is stands in the catalog, so that a restart goes on with it. One piece is looked at at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rand::RngExt;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};

use crate::measure::Trace;
use crate::renter::{Depth, Piece, PieceState};

use super::catalog::{CatalogError, PinRow};
use super::parts::{Part, skyfiles_of};
use super::{Inner, Pin, Store, StoreError};

/// How audits go; the configuration's part for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditOptions {
    /// Everything is looked at once in this time; zero turns audits off.
    pub period: Duration,
    /// Read from hosts, all of them together.
    pub bytes_per_second: u64,
    /// An upload is looked at so long after it was made, when it is complete by then.
    pub new_after: Duration,
}

impl AuditOptions {
    pub const OFF: AuditOptions = AuditOptions { period: Duration::ZERO, bytes_per_second: 0, new_after: Duration::ZERO };
}

/// Between two looks for something to do.
const TICK_MIN: Duration = Duration::from_secs(1);
const TICK_MAX: Duration = Duration::from_secs(30);
/// A piece counts as at least so many bytes of the rate: a disk could read them in the time in which it finds the piece.
const PIECE_BYTES_MIN: u64 = 64 << 10;
/// Uploads older than that are not new to a node that has just learnt of them: the round looks at them.
const NEW_FOR: Duration = Duration::from_secs(24 * 3600);
/// New uploads that are not complete yet, remembered. Those beyond are left to the round.
const WAITING_MAX: usize = 1_024;
/// Pins read in one step.
const PAGE_PINS: usize = 64;
/// Share of what the rate gives in a period that a round plans with; the rest is for new uploads and for trees.
const PLANNED_SHARE: f64 = 0.8;
/// How often a host that was set aside is asked for a piece: 32 right ones take a quarter of an hour.
const EXPLORE_EVERY: Duration = Duration::from_secs(30);
/// Pins drawn until one has a piece on a host that was set aside.
const EXPLORE_DRAWS_MAX: usize = 8;
/// How often the place of a walk is written down.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// Names in the catalog's table of numbers.
const ROUND_PIN: &str = "audit.round.pin";
const ROUND_PART: &str = "audit.round.part";
const ROUND_BEGAN_MS: &str = "audit.round.began";
/// When the next round begins; the running one has none.
const ROUND_DUE_MS: &str = "audit.round.due";
const NEW_PIN: &str = "audit.new.pin";

/// What audits did, for the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AuditStatus {
    pub on: bool,
    /// Since the start of the process.
    pub pieces: u64,
    pub bytes: u64,
    pub damaged: u64,
    /// Slabs and base sectors that could not be read.
    pub unreadable: u64,
    /// New uploads looked at whole.
    pub new_pins: u64,
    pub rounds: u64,
    /// Unix time, milliseconds, of the round under way or the last one; 0 if there was none.
    pub round_began_ms: u64,
    /// When the next round begins; 0 while one is under way.
    pub round_due_ms: u64,
    /// Of each piece, how much the round reads: 1 is all of it.
    pub round_share: f64,
    /// Pins that the round under way has gone over.
    pub round_pins: u64,
}

/// Counters of the audit, and its options.
pub struct Audits {
    options: AuditOptions,
    pieces: AtomicU64,
    bytes: AtomicU64,
    damaged: AtomicU64,
    unreadable: AtomicU64,
    new_pins: AtomicU64,
    rounds: AtomicU64,
    round: Mutex<Round>,
}

/// The round as it stands.
#[derive(Clone, Copy, Default)]
struct Round {
    began_ms: u64,
    due_ms: u64,
    share: f64,
    pins: u64,
}

impl Audits {
    pub fn new(options: AuditOptions) -> Audits {
        let counter = || AtomicU64::new(0);
        Audits {
            options,
            pieces: counter(),
            bytes: counter(),
            damaged: counter(),
            unreadable: counter(),
            new_pins: counter(),
            rounds: counter(),
            round: Mutex::default(),
        }
    }

    fn round(&self) -> std::sync::MutexGuard<'_, Round> {
        self.round.lock().expect("no panic under this lock")
    }
}

impl Store {
    pub fn audit_status(&self) -> AuditStatus {
        let audits = &self.inner.audits;
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let round = *audits.round();
        AuditStatus {
            on: !audits.options.period.is_zero(),
            pieces: of(&audits.pieces),
            bytes: of(&audits.bytes),
            damaged: of(&audits.damaged),
            unreadable: of(&audits.unreadable),
            new_pins: of(&audits.new_pins),
            rounds: of(&audits.rounds),
            round_began_ms: round.began_ms,
            round_due_ms: round.due_ms,
            round_share: round.share,
            round_pins: round.pins,
        }
    }
}

impl Inner {
    /// Looks at pieces until it is dropped.
    pub async fn keep_auditing(self: Arc<Self>) {
        let options = self.audits.options;
        if options.period.is_zero() {
            return;
        }
        let mut audit = match Audit::resume(self.clone()) {
            Ok(audit) => audit,
            Err(error) => return tracing::warn!(%error, "audits do not run: where they were cannot be read"),
        };
        let tick = options.new_after.clamp(TICK_MIN, TICK_MAX);
        // A start has better things to do.
        sleep(options.new_after).await;
        loop {
            match audit.step().await {
                Ok(Step::Looked) => {}
                Ok(Step::NothingToDo) => sleep(tick).await,
                Err(error) => {
                    tracing::warn!(%error, "an audit cannot go on now");
                    sleep(TICK_MAX).await;
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Looked,
    NothingToDo,
}

/// A part to be looked at.
struct Task {
    part: Part,
    depth: Depth,
    /// Its pin is complete, so a missing piece is damage.
    complete: bool,
    /// Number of its pin, and which part of it this is.
    at: (u64, u64),
}

struct Audit {
    inner: Arc<Inner>,
    pace: Pace,
    new: NewWalk,
    round: RoundWalk,
    explored: Instant,
    saved: Instant,
}

/// Uploads that were made since the last look.
struct NewWalk {
    /// Pins below were looked at, or are in `waiting`.
    from: u64,
    /// Not complete at the last look.
    waiting: VecDeque<String>,
    tasks: VecDeque<Task>,
}

/// Everything, once a period.
struct RoundWalk {
    /// Pin and part that come next.
    at: (u64, u64),
    running: bool,
    tasks: VecDeque<Task>,
}

impl Audit {
    fn resume(inner: Arc<Inner>) -> Result<Audit, CatalogError> {
        let number = |name: &str| Ok::<u64, CatalogError>(inner.catalog.number(name)?.unwrap_or(0));
        let (began_ms, due_ms) = (number(ROUND_BEGAN_MS)?, number(ROUND_DUE_MS)?);
        let at = (number(ROUND_PIN)?, number(ROUND_PART)?);
        let new = NewWalk { from: number(NEW_PIN)?, waiting: VecDeque::new(), tasks: VecDeque::new() };
        let round = RoundWalk { at, running: began_ms > 0 && due_ms == 0, tasks: VecDeque::new() };
        *inner.audits.round() = Round { began_ms, due_ms, share: 1.0, pins: 0 };
        let pace = Pace { bytes_per_second: inner.audits.options.bytes_per_second, next: Instant::now() };
        let now = Instant::now();
        let mut audit = Audit { inner, pace, new, round, explored: now, saved: now };
        if audit.round.running {
            audit.plan_round()?;
        }
        Ok(audit)
    }

    /// Looks at one part of each walk, and at a piece of a host that was set aside, as far as there are any.
    async fn step(&mut self) -> Result<Step, StoreError> {
        let mut step = Step::NothingToDo;
        if let Some(task) = self.next_new().await? {
            self.look_at(&task).await;
            step = Step::Looked;
        }
        if let Some(task) = self.next_of_round().await? {
            self.look_at(&task).await;
            (step, self.round.at) = (Step::Looked, (task.at.0, task.at.1 + 1));
        }
        if self.explored.elapsed() >= EXPLORE_EVERY {
            self.explored = Instant::now();
            self.explore().await?;
        }
        if self.saved.elapsed() >= SAVE_EVERY || step == Step::NothingToDo {
            self.save()?;
        }
        Ok(step)
    }

    fn save(&mut self) -> Result<(), StoreError> {
        self.saved = Instant::now();
        let round = *self.inner.audits.round();
        let (pin, part) = self.round.at;
        // Parts of new pins that wait here would be left to the round; they are looked at again.
        let new_from = self.new.tasks.front().map_or(self.new.from, |task| task.at.0.min(self.new.from));
        let numbers = [
            (ROUND_PIN, pin),
            (ROUND_PART, part),
            (ROUND_BEGAN_MS, round.began_ms),
            (ROUND_DUE_MS, round.due_ms),
            (NEW_PIN, new_from),
        ];
        Ok(self.inner.catalog.set_numbers(&numbers)?)
    }

    async fn next_new(&mut self) -> Result<Option<Task>, StoreError> {
        if self.new.tasks.is_empty() {
            self.find_new().await?;
        }
        Ok(self.new.tasks.pop_front())
    }

    /// The next new upload that is complete and old enough.
    async fn find_new(&mut self) -> Result<(), StoreError> {
        for _ in 0..self.new.waiting.len() {
            let Some(key) = self.new.waiting.pop_front() else { break };
            match self.inner.catalog.by_key(&key)? {
                Some(row) if row.complete => return self.take_new(&row).await,
                Some(_) => self.new.waiting.push_back(key),
                None => {}
            }
        }
        let new_after_ms = self.inner.audits.options.new_after.as_millis() as u64;
        loop {
            let rows = self.inner.catalog.page(self.new.from, PAGE_PINS)?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in rows {
                // Made in the future by the clock of another node: as good as new.
                let age_ms =
                    Pin::decode(&row.body).map_or(u64::MAX, |pin| now_ms().checked_sub(pin.created).unwrap_or(new_after_ms));
                if age_ms < new_after_ms {
                    return Ok(());
                }
                self.new.from = row.number + 1;
                match age_ms > NEW_FOR.as_millis() as u64 {
                    true => {}
                    false if row.complete => return self.take_new(&row).await,
                    false if self.new.waiting.len() < WAITING_MAX => self.new.waiting.push_back(row.key),
                    false => {}
                }
            }
        }
    }

    async fn take_new(&mut self, row: &PinRow) -> Result<(), StoreError> {
        self.new.tasks = self.tasks_of(row, Depth::Whole).await;
        self.inner.audits.new_pins.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn next_of_round(&mut self) -> Result<Option<Task>, StoreError> {
        let due_ms = self.inner.audits.round().due_ms;
        if !self.round.running {
            // A catalog that does not know all pins yet would make a round that misses them.
            if now_ms() < due_ms || !self.inner.catalog.is_complete() {
                return Ok(None);
            }
            self.begin_round()?;
        }
        while self.round.tasks.is_empty() {
            let (pin, part) = self.round.at;
            let Some(row) = self.inner.catalog.page(pin, 1)?.pop() else {
                self.end_round()?;
                return Ok(None);
            };
            let depth = depth_of(self.inner.audits.round().share);
            self.round.tasks = self.tasks_of(&row, depth).await;
            // A restart goes on inside of a pin.
            if row.number == pin {
                self.round.tasks.drain(..self.round.tasks.len().min(part as usize));
            }
            if self.round.tasks.is_empty() {
                self.round.at = (row.number + 1, 0);
                self.inner.audits.round().pins += 1;
            }
        }
        Ok(self.round.tasks.pop_front())
    }

    fn begin_round(&mut self) -> Result<(), StoreError> {
        self.round.at = (0, 0);
        self.round.running = true;
        *self.inner.audits.round() = Round { began_ms: now_ms(), due_ms: 0, share: 1.0, pins: 0 };
        self.save()?;
        Ok(self.plan_round()?)
    }

    /// How much of each piece the rate allows.
    fn plan_round(&mut self) -> Result<(), CatalogError> {
        let AuditOptions { period, bytes_per_second, .. } = self.inner.audits.options;
        let stored = self.inner.stored_bytes()?;
        let share = share_of(stored, bytes_per_second as f64 * period.as_secs_f64());
        self.inner.audits.round().share = share;
        if share < 1.0 {
            tracing::info!(
                stored_bytes = stored,
                percent = share * 100.0,
                "at [audit] bytes_per_second not all of each piece can be read within period_hours: it is sampled"
            );
        }
        Ok(())
    }

    fn end_round(&mut self) -> Result<(), StoreError> {
        self.round.running = false;
        self.round.at = (0, 0);
        {
            let mut round = self.inner.audits.round();
            // A round that took longer than its period is followed by the next one at once.
            round.due_ms = round.began_ms + self.inner.audits.options.period.as_millis() as u64;
        }
        self.save()?;
        self.inner.audits.rounds.fetch_add(1, Relaxed);
        Ok(())
    }

    /// The parts of a pin. What cannot be named because its head cannot be read is counted, and left.
    async fn tasks_of(&self, row: &PinRow, depth: Depth) -> VecDeque<Task> {
        let mut parts = Vec::new();
        let pin = match Pin::decode(&row.body) {
            Ok(pin) => pin,
            Err(error) => {
                tracing::warn!(%error, pin = row.key, "an audit passes over a pin that cannot be read");
                return VecDeque::new();
            }
        };
        for skyfile in skyfiles_of(&pin) {
            parts.push(Part::base_of(skyfile));
            match self.inner.parts_beyond_base(row, &pin, skyfile, &Trace::new()).await {
                Ok(more) => parts.extend(more),
                Err(error) => {
                    self.inner.audits.unreadable.fetch_add(1, Relaxed);
                    tracing::error!(%error, pin = row.key, "an audit found something that cannot be read");
                }
            }
        }
        let task = |(index, part)| Task { part, depth, complete: row.complete, at: (row.number, index as u64) };
        parts.into_iter().enumerate().map(task).collect()
    }

    async fn look_at(&mut self, task: &Task) {
        let (mut right, mut unknown) = (0, 0);
        for piece in task.part.pieces(&self.inner.renter) {
            match self.look_at_piece(&piece, task.depth).await {
                PieceState::Right => right += 1,
                PieceState::Unknown(_) => unknown += 1,
                PieceState::Missing if task.complete => self.inner.renter.tell_missing(&piece),
                PieceState::Missing | PieceState::Wrong(_) => {}
            }
        }
        // With hosts away it is not known, and reads tell.
        if right + unknown < task.part.need() {
            self.inner.audits.unreadable.fetch_add(1, Relaxed);
            let need = task.part.need();
            tracing::error!(right, need, part = ?task.part, "an audit found something that cannot be read: too few pieces are right");
        }
    }

    async fn look_at_piece(&mut self, piece: &Piece, depth: Depth) -> PieceState {
        sleep_until(self.pace.next).await;
        let looked = self.inner.renter.check_piece(piece, depth).await;
        self.pace.spent(looked.bytes);
        let audits = &self.inner.audits;
        audits.pieces.fetch_add(1, Relaxed);
        audits.bytes.fetch_add(looked.bytes, Relaxed);
        if matches!(looked.state, PieceState::Wrong(_) | PieceState::Missing) {
            audits.damaged.fetch_add(1, Relaxed);
        }
        looked.state
    }

    /// Asks hosts that were set aside for a piece each, drawn at random.
    async fn explore(&mut self) -> Result<(), StoreError> {
        let renter = self.inner.renter.clone();
        for host in renter.hosts().iter().map(|host| host.id()).filter(|id| renter.set_aside(*id).is_some()) {
            for _ in 0..EXPLORE_DRAWS_MAX {
                let last = self.inner.catalog.last_pin_number()?;
                let drawn = rand::rng().random_range(0..=last);
                let Some(row) = self.inner.catalog.page(drawn, 1)?.pop() else { continue };
                let parts = self.tasks_of(&row, Depth::Whole).await;
                if parts.is_empty() {
                    continue;
                }
                let part = &parts[rand::rng().random_range(0..parts.len())].part;
                let piece = part.pieces(&renter).into_iter().find(|piece| piece.host().is_some_and(|its| its.id() == host));
                if let Some(piece) = piece {
                    self.look_at_piece(&piece, Depth::Whole).await;
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Inner {
    /// Bytes on all hosts that the pins ask for, about: content with several pins counts several times.
    fn stored_bytes(&self) -> Result<u64, CatalogError> {
        let copies = u64::from(self.renter.options().base_copies);
        let (mut sum, mut from) = (0_u64, 0);
        loop {
            let rows = self.catalog.page(from, PAGE_PINS)?;
            let Some(last) = rows.last() else { return Ok(sum) };
            from = last.number + 1;
            for pin in rows.iter().filter_map(|row| Pin::decode(&row.body).ok()) {
                for skyfile in skyfiles_of(&pin) {
                    let pieces = u64::from(skyfile.k) + u64::from(skyfile.m);
                    let slabs = skyfile.size.checked_div(u64::from(skyfile.k)).map_or(0, |piece| piece.saturating_mul(pieces));
                    sum = sum.saturating_add(slabs).saturating_add(copies * u64::from(skyfile.used));
                }
            }
        }
    }
}

/// Keeps the rate: after so many bytes, so long a pause.
struct Pace {
    bytes_per_second: u64,
    next: Instant,
}

impl Pace {
    fn spent(&mut self, bytes: u64) {
        let pause = bytes.max(PIECE_BYTES_MIN) as f64 / self.bytes_per_second.max(1) as f64;
        // What was not used while there was nothing to do is not made up for.
        self.next = self.next.max(Instant::now()) + Duration::from_secs_f64(pause);
    }
}

/// Share of each piece that can be read: 1 if all of it.
fn share_of(stored_bytes: u64, bytes_in_period: f64) -> f64 {
    let planned = bytes_in_period * PLANNED_SHARE;
    if stored_bytes as f64 <= planned { 1.0 } else { planned / stored_bytes as f64 }
}

fn depth_of(share: f64) -> Depth {
    if share >= 1.0 { Depth::Whole } else { Depth::Sample(share) }
}

fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_the_period_is_sampled() {
        let month = 30.0 * 86_400.0;
        let rows = [
            (0, 1.0, Depth::Whole),
            (1 << 40, 4.0 * 1_048_576.0 * month, Depth::Whole),
            (10, 10.0, Depth::Sample(0.8)),
            (100, 10.0, Depth::Sample(0.08)),
        ];
        for (stored, in_period, expect) in rows {
            assert_eq!(depth_of(share_of(stored, in_period)), expect, "{stored} bytes, {in_period} in the period");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_and_quiet_times_buy_nothing() {
        let mut pace = Pace { bytes_per_second: 1 << 20, next: Instant::now() };
        let begun = Instant::now();
        for _ in 0..10 {
            sleep_until(pace.next).await;
            pace.spent(4 << 20);
        }
        sleep_until(pace.next).await;
        assert_eq!(begun.elapsed().as_secs(), 40);
        tokio::time::advance(Duration::from_secs(3600)).await;
        let begun = Instant::now();
        pace.spent(0);
        sleep_until(pace.next).await;
        assert!((60..70).contains(&begun.elapsed().as_millis()), "a small piece costs a look, too: {:?}", begun.elapsed());
    }
}
