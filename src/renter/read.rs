//! Reading: `need` right pieces from whoever is quickest.
//!
//! A race starts as many requests as pieces are needed, at the hosts with the least predicted time. A piece that fails or
//! is wrong is replaced at once. One deadline stands for the whole read, reckoned from the spread of its hosts' times
//! (`policy`). When it passes, as many spares as pieces are missing, and one more, are asked, as far as the budget of
//! extra bytes goes. Dropping the future drops all requests with it.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    DamageKind, Renter, RenterError, Shared, SlabRef, Spot, compute,
    host::Spread,
    piece::{Check, Fault, Fetched, Unchecked, Wanted, blame, fetch},
    policy,
};
use crate::{
    measure::Trace,
    sector::{Root, SECTOR_BYTES, SEGMENT_BYTES},
};

/// A read that has not come to an end by then answers `TimedOut`: longer than a host's own time-outs and a retry, shorter
/// than the minute after which browsers and proxies give up.
pub(super) const READ_MAX: Duration = Duration::from_secs(30);
/// No spare before this: on one machine two cores' scheduling alone makes 5 ms, and spares would only add to it.
const HEDGE_MIN: Duration = Duration::from_millis(5);
/// After this a late read gets its spares even if the budget is empty: waiting for a hung host is never right.
const HEDGE_FORCED: Duration = Duration::from_millis(500);
/// A host is asked at most so often for a piece, and again only after a failure that may pass.
const PIECE_ATTEMPTS_MAX: u32 = 2;
/// A parity piece must be so much quicker than a data piece to be asked in its place: decoding costs time, too.
const PARITY_FACTOR: f64 = 1.25;
const PARITY_EXTRA_S: f64 = 0.000_5;
/// A piece that was missing a moment ago is asked after all others.
const MISSING_EXTRA_S: f64 = 60.0;
/// Losers that want no more than this are read to their end, so that their connection lives and their time is learnt,
/// but no longer than [`DRAIN_MAX`].
const DRAIN_MAX_BYTES: u64 = 64 << 10;
const DRAIN_MAX: Duration = Duration::from_millis(250);
/// Joining up to this many bytes (0.03 ms, 0.2 ms with pieces missing) is done in the task itself.
const JOIN_INLINE_MAX_BYTES: usize = 2 << 20;

/// What the caller knows about a base sector.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expect {
    /// Length of its data, trailing zeros or not; a wrong one costs a request, never a byte.
    pub data_length: Option<u32>,
}

impl Renter {
    /// A range of a base sector, from the copies at their place. The answer may end early: the rest of `range` is zeros.
    ///
    /// `NotFound` only if *every* host that should hold a copy answered that it does not. Fewer would not do: an acknowledged sector has
    /// `f + 1` of its `c` copies, so `c - f - 1` hosts may honestly lack it, and `f` more may have lost theirs since:
    /// together `c - 1`. So with a host down, an unknown root is `TooFewPieces`.
    pub async fn read_sector(&self, root: &Root, expect: Expect, range: Range<u32>, trace: &Trace) -> Result<Bytes, RenterError> {
        assert!(range.end as usize <= SECTOR_BYTES, "ranges of sectors are checked where they are parsed");
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let spots = self.shared.base_spots(root);
        let spot_count = spots.len();
        let candidates = spots.into_iter().map(|spot| Candidate::new(spot, &range, expect.data_length, 1.0, 0.0)).collect();
        let read_bytes = u64::from(range.end - range.start);
        match Race::new(&self.shared, candidates, 1, Known::Named, read_bytes, trace).run().await {
            Ok(mut pieces) => Ok(pieces.swap_remove(0).1),
            Err(lost) if lost.missing == spot_count => Err(RenterError::NotFound),
            Err(lost) => Err(lost.into_error(1)),
        }
    }

    /// A range of a slab's content, from any `k` of its pieces; cut at the content's end. Never `NotFound`: who knows the roots knows
    /// that the slab was written, so its absence is damage.
    pub async fn read_slab(&self, slab: &SlabRef, range: Range<u64>, trace: &Trace) -> Result<Bytes, RenterError> {
        let content_max = (usize::from(slab.k) * SECTOR_BYTES) as u64;
        let range = range.start..range.end.min(slab.content_len).min(content_max);
        if range.start >= range.end {
            return Ok(Bytes::new());
        }
        self.read_rows(slab, range, Check::Now, trace).await.map(|(content, _)| content)
    }

    /// The same for a reader that can tell, of all the bytes together, whether they are right: `prove` is asked once, and if it
    /// says yes, no piece is checked by its tree, nor is its tree asked for. That halves the hashing of whatever has a hash of
    /// its own. If it says no, each piece is checked, who lied is charged, and the range is read as by [`Renter::read_slab`]:
    /// the answer is then what the roots say, and not proved.
    pub async fn read_slab_proved(
        &self,
        slab: &SlabRef,
        range: Range<u64>,
        prove: &(dyn Fn(&[u8]) -> bool + Send + Sync),
        trace: &Trace,
    ) -> Result<(Bytes, Proof), RenterError> {
        match self.read_rows(slab, range.clone(), Check::Later, trace).await {
            Ok((content, _)) if prove(&content) => return Ok((content, Proof::Given)),
            Ok((_, held)) => {
                futures::future::join_all(held.iter().map(|(spot, held)| blame(&self.shared, spot, held))).await;
            }
            Err(RenterError::TimedOut) => return Err(RenterError::TimedOut),
            // Pieces may not have been where they were guessed to be.
            Err(_) => {}
        }
        self.read_slab(slab, range, trace).await.map(|content| (content, Proof::Missing))
    }

    /// A range of one piece of a slab, from its own place. The answer may end early: the rest of `range` is zeros.
    pub async fn read_piece(
        &self,
        slab: &SlabRef,
        piece_index: usize,
        range: Range<u32>,
        trace: &Trace,
    ) -> Result<Bytes, RenterError> {
        assert!(range.end as usize <= SECTOR_BYTES, "ranges of sectors are checked where they are parsed");
        let spot = self.shared.slab_spots(slab).swap_remove(piece_index);
        let read_bytes = range.len() as u64;
        let candidate = Candidate::new(spot, &range, Some(piece_length(slab, piece_index)), 1.0, 0.0);
        match Race::new(&self.shared, vec![candidate], 1, Known::Written, read_bytes, trace).run().await {
            Ok(mut pieces) => Ok(pieces.swap_remove(0).1),
            Err(lost) => Err(lost.into_error(1)),
        }
    }

    /// The same, made of any `k` pieces: for one that is gone. Takes the memory of `2 k + m` such ranges.
    pub async fn make_piece(
        &self,
        slab: &SlabRef,
        piece_index: usize,
        range: Range<u32>,
        trace: &Trace,
    ) -> Result<Bytes, RenterError> {
        let segment = SEGMENT_BYTES as u32;
        let rows = range.start / segment * segment..range.end.div_ceil(segment) * segment;
        let candidate = |spot: Spot| {
            let guess = piece_length(slab, spot.piece_index);
            Candidate::new(spot, &rows, Some(guess), 1.0, 0.0)
        };
        let candidates = self.shared.slab_spots(slab).into_iter().map(candidate).collect();
        let (k, read_bytes) = (usize::from(slab.k), rows.len() as u64 * u64::from(slab.k));
        let mut race = Race::new(&self.shared, candidates, k, Known::Written, read_bytes, trace);
        let pieces = race.run().await.map_err(|lost| lost.into_error(k))?;
        let code = self.shared.code(slab.k, slab.m);
        let made = compute(|| code.rebuild_pieces(&pieces, &[piece_index], rows.len() as u32));
        let made = Bytes::from(made.expect("k checked pieces of one slab, cut to its rows").swap_remove(0));
        Ok(made.slice((range.start - rows.start) as usize..(range.end - rows.start) as usize))
    }

    async fn read_rows(
        &self,
        slab: &SlabRef,
        range: Range<u64>,
        check: Check,
        trace: &Trace,
    ) -> Result<(Bytes, Vec<(Spot, Unchecked)>), RenterError> {
        let k = usize::from(slab.k);
        let code = self.shared.code(slab.k, slab.m);
        let rows = code.read_plan(range.clone());
        let candidate = |spot: Spot| {
            let guess = piece_length(slab, spot.piece_index);
            let (factor, extra_s) = match self.shared.missing.contains_key(&spot.root) {
                true => (1.0, MISSING_EXTRA_S),
                false if spot.piece_index < k => (1.0, 0.0),
                false => (PARITY_FACTOR, PARITY_EXTRA_S),
            };
            let mut candidate = Candidate::new(spot, &rows, Some(guess), factor, extra_s);
            candidate.wanted.check = check;
            candidate
        };
        let candidates = self.shared.slab_spots(slab).into_iter().map(candidate).collect();
        let mut race = Race::new(&self.shared, candidates, k, Known::Written, range.end - range.start, trace);
        let pieces = race.run().await.map_err(|lost| lost.into_error(k))?;
        let join_bytes = rows.len() * k;
        let join = || code.decode_range(&pieces, rows, range).expect("k checked pieces of one slab, cut to its rows");
        let content = if join_bytes > JOIN_INLINE_MAX_BYTES { compute(join) } else { join() };
        Ok((content, std::mem::take(&mut race.unchecked)))
    }
}

/// Whether a reader's own proof holds for what it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Given,
    /// The bytes are those of the roots; whether they are what the reader wants is not known.
    Missing,
}

/// Data bytes of a piece whose slab's content ends in no zeros.
pub(super) fn piece_length(slab: &SlabRef, piece_index: usize) -> u32 {
    let segment = SEGMENT_BYTES as u64;
    let stripe = segment * u64::from(slab.k);
    let rest = slab.content_len % stripe;
    let whole = slab.content_len / stripe * segment;
    let last = match piece_index < usize::from(slab.k) {
        true => rest.saturating_sub(segment * piece_index as u64).min(segment),
        false => {
            if rest > 0 {
                segment
            } else {
                0
            }
        }
    };
    (whole + last).min(SECTOR_BYTES as u64) as u32
}

/// A piece that could be asked for.
struct Candidate {
    spot: Spot,
    wanted: Wanted,
    /// Handicap against other pieces of the same speed.
    factor: f64,
    extra_s: f64,
}

impl Candidate {
    fn new(spot: Spot, range: &Range<u32>, length_guess: Option<u32>, factor: f64, extra_s: f64) -> Candidate {
        Candidate {
            spot,
            wanted: Wanted { range: range.clone(), length_guess, tries: 0, rounds_before: 0, check: Check::Now },
            factor,
            extra_s,
        }
    }
}

/// Why a race could not be won.
struct Lost {
    have: usize,
    /// Hosts that answered that they have no such piece.
    missing: usize,
    /// Hosts that did not answer in time.
    late: usize,
}

impl Lost {
    fn into_error(self, need: usize) -> RenterError {
        if self.late > 0 && self.have + self.late >= need {
            return RenterError::TimedOut;
        }
        RenterError::TooFewPieces { have: self.have, need }
    }
}

/// What the caller's knowledge says about existence: whether a piece that is not there is damage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Anybody can name a root.
    Named,
    /// Its roots come from what was stored after it.
    Written,
}

/// One read under way.
struct Race<'a> {
    shared: &'a Arc<Shared>,
    need: usize,
    known: Known,
    read_bytes: u64,
    piece_bytes: u64,
    /// Not asked yet, best first.
    waiting: VecDeque<Candidate>,
    won: Vec<(usize, Bytes)>,
    /// Of the pieces won, those that nobody has checked.
    unchecked: Vec<(Spot, Unchecked)>,
    missing: Vec<Spot>,
    late: usize,
    spares: u64,
    began: Instant,
    trace: Counted<'a>,
}

impl<'a> Race<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        candidates: Vec<Candidate>,
        need: usize,
        known: Known,
        read_bytes: u64,
        trace: &'a Trace,
    ) -> Race<'a> {
        let piece_bytes = candidates.first().map_or(0, |first| first.wanted.range.len() as u64);
        let mut waiting = candidates;
        waiting.sort_by_cached_key(|candidate| {
            let Some(host) = &candidate.spot.host else { return u64::MAX };
            let cost_s = shared.forecasts[candidate.spot.row].cost_s(host, piece_bytes);
            ((cost_s * candidate.factor + candidate.extra_s) * 1e9) as u64
        });
        shared.hedges.earn(read_bytes);
        let began = Instant::now();
        let (won, missing) = (Vec::with_capacity(need), Vec::new());
        let trace = Counted { trace, running: 0, rounds: 0 };
        Race {
            shared,
            need,
            known,
            read_bytes,
            piece_bytes,
            waiting: waiting.into(),
            won,
            unchecked: Vec::new(),
            missing,
            late: 0,
            spares: 0,
            began,
            trace,
        }
    }

    async fn run(&mut self) -> Result<Vec<(usize, Bytes)>, Lost> {
        let mut running = FuturesUnordered::new();
        let mut spreads = Vec::with_capacity(self.need);
        while running.len() < self.need
            && let Some(candidate) = self.waiting.pop_front()
        {
            spreads.extend(self.spread(&candidate));
            running.push(self.start(candidate));
        }
        let mut patience = policy::deadline(&spreads, policy::in_time(self.need), HEDGE_MIN);
        let end = self.began + READ_MAX;
        let mut deadline = self.began + patience;
        let alarm = sleep_until(deadline);
        tokio::pin!(alarm);
        while self.won.len() < self.need {
            tokio::select! {
                biased;
                fetched = running.next() => match fetched {
                    Some(fetched) => if let Some(instead) = self.settle(fetched) {
                        running.push(self.start(instead));
                    },
                    None => break,
                },
                () = &mut alarm => {
                    let now = Instant::now();
                    if now >= end {
                        self.late += running.len();
                        break;
                    }
                    for _ in 0..self.spares(now) {
                        let Some(spare) = self.waiting.pop_front() else { break };
                        running.push(self.start(spare));
                        self.spares += 1;
                    }
                    // Each further alarm waits twice as long: what came so late is a worse guide than before.
                    patience *= 2;
                    deadline = if self.waiting.is_empty() { end } else { end.min(now + patience) };
                    alarm.as_mut().reset(deadline);
                }
            }
        }
        let done = self.finish();
        if done.is_ok() && !running.is_empty() && self.piece_bytes <= DRAIN_MAX_BYTES {
            // In the background, and in silence: the answer does not wait for it.
            tokio::spawn(timeout(DRAIN_MAX, running.for_each(|_| std::future::ready(()))));
        }
        done
    }

    fn spread(&self, candidate: &Candidate) -> Option<Spread> {
        let host = candidate.spot.host.as_ref()?;
        Some(self.shared.forecasts[candidate.spot.row].spread(host, self.piece_bytes))
    }

    fn start(&mut self, candidate: Candidate) -> impl Future<Output = Fetched> + Send + use<> {
        self.trace.running += 1;
        fetch(self.shared.clone(), candidate.spot, candidate.wanted)
    }

    /// Spares to ask for now: as many as pieces are missing and a few more, as far as the budget goes.
    fn spares(&self, now: Instant) -> usize {
        let wished = self.need - self.won.len() + policy::SPARES_MORE;
        if now - self.began >= HEDGE_FORCED {
            return wished;
        }
        (0..wished).take_while(|_| self.shared.hedges.spend(self.read_bytes, self.piece_bytes)).count()
    }

    /// Takes an answer. If it is none, another candidate comes in its stead, while there are any.
    fn settle(&mut self, fetched: Fetched) -> Option<Candidate> {
        self.trace.count(&fetched);
        let Fetched { spot, mut wanted, result, unchecked, cost } = fetched;
        match result {
            Ok(bytes) => {
                self.won.push((spot.piece_index, bytes));
                self.unchecked.extend(unchecked.map(|unchecked| (spot, unchecked)));
                return None;
            }
            Err(Fault::Missing) => self.missing.push(spot),
            Err(Fault::TimedOut) => self.late += 1,
            Err(Fault::Transient) => {
                wanted.tries += 1;
                if wanted.tries < PIECE_ATTEMPTS_MAX && self.shared.retries.spend() {
                    self.waiting.push_back(Candidate { spot, wanted, factor: 1.0, extra_s: 0.0 });
                }
            }
            Err(Fault::Unavailable | Fault::Wrong(_)) => (),
        }
        let mut instead = self.waiting.pop_front()?;
        instead.wanted.rounds_before = cost.rounds;
        Some(instead)
    }

    fn finish(&mut self) -> Result<Vec<(usize, Bytes)>, Lost> {
        self.trace.finish();
        self.shared.overdrive[usize::from(self.need > 1)].read(self.spares);
        let won = self.won.len() >= self.need;
        if won || self.known == Known::Written {
            for spot in &self.missing {
                self.shared.report_damage(spot, DamageKind::Missing, "the host says that it has no such object");
            }
        }
        if won {
            return Ok(std::mem::take(&mut self.won));
        }
        Err(Lost { have: self.won.len(), missing: self.missing.len(), late: self.late })
    }
}

/// Tells the trace of every request once, also of those that are dropped.
struct Counted<'a> {
    trace: &'a Trace,
    running: usize,
    rounds: u32,
}

impl Counted<'_> {
    fn count(&mut self, fetched: &Fetched) {
        self.running -= 1;
        let cost = &fetched.cost;
        for request in 0..cost.requests {
            self.trace.host_request(if request == 0 { cost.bytes } else { 0 });
        }
        if cost.index {
            self.trace.index_from_hosts();
        }
        self.rounds = self.rounds.max(cost.rounds);
    }

    fn finish(&mut self) {
        (0..self.rounds).for_each(|_| self.trace.serial_round());
        self.rounds = 0;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        (0..self.running).for_each(|_| self.trace.host_request(0));
    }
}
