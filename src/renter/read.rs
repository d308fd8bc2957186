//! Reading: `need` right pieces from whoever is quickest.
//!
//! A race starts as many requests as pieces are needed, at the hosts with the least predicted time, and for the first window
//! of a reply a few more. A piece that fails or is wrong is replaced at once. One deadline stands for the whole read, reckoned
//! from the spread of its hosts' times ([`policy`]). When it passes, as many spares as pieces are missing, and mostly one more, are
//! asked, as far as the purse of extra bytes and requests goes ([`budget`](super::budget)). Now and then a host that nobody
//! chose for long is asked beside the others. If no `need` pieces are right as a whole, what is right of each is put
//! together ([`torn`]). Dropping the future drops all requests with it.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    DamageKind, NO_SUCH_OBJECT, Renter, RenterError, Shared, SlabRef, Spot, Window,
    budget::Cost,
    compute,
    host::{DRAIN_MAX, DRAIN_MAX_BYTES, Spread},
    piece::{Check, Fault, Fetched, Unchecked, Wanted, blame, expected, fetch},
    policy::{self, Patience, Plan, Spare},
    torn::{self, Stretch, Torn},
};
use crate::{
    measure::Trace,
    sector::{Root, SECTOR_BYTES, SEGMENT_BYTES},
};

/// A read that has not come to an end by then answers `TimedOut`: longer than a host's own time-outs and a retry, shorter
/// than the minute after which browsers and proxies give up.
pub(super) const READ_MAX: Duration = Duration::from_secs(30);
/// No spare before this: hosts on this machine wait for its processors, at three quarters of what two of them can do one read in a
/// hundred for 5 ms, and spares would make that longer for all.
const HEDGE_MIN: Duration = Duration::from_millis(10);
/// Hosts of which a read has what it needs before [`HEDGE_MIN`] with this chance need no spares from the start.
const QUICK_CHANCE: f64 = 0.95;
/// A host is asked at most so often for a piece, and again only after a failure that may pass.
const PIECE_ATTEMPTS_MAX: u32 = 2;
/// A parity piece must be so much quicker than a data piece to be asked in its place: decoding costs time, too.
const PARITY_FACTOR: f64 = 1.25;
const PARITY_EXTRA_S: f64 = 0.000_5;
/// A piece that was missing a moment ago is asked after all others.
const MISSING_EXTRA_S: f64 = 60.0;
/// A host that was set aside gives what nobody else can: it is asked after all of them, missing pieces included.
const SET_ASIDE_EXTRA_S: f64 = 3600.0;
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
    ///
    /// One host is asked, then another: a spare from the start would double the bytes, so there is no [`Window`] to tell.
    pub async fn read_sector(&self, root: &Root, expect: Expect, range: Range<u32>, trace: &Trace) -> Result<Bytes, RenterError> {
        assert!(range.end as usize <= SECTOR_BYTES, "ranges of sectors are checked where they are parsed");
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let spots = self.shared.base_spots(root);
        let spot_count = spots.len();
        let candidates = spots.into_iter().map(|spot| Candidate::new(spot, &range, expect.data_length, 1.0, 0.0)).collect();
        match Race::new(&self.shared, candidates, 1, Known::Named, Window::Later, trace).run().await {
            Ok(stretches) => Ok(torn::any_of(&stretches)),
            Err(lost) if lost.missing == spot_count => Err(RenterError::NotFound),
            Err(lost) => Err(lost.into_error(1)),
        }
    }

    /// A range of a slab's content, from any `k` of its pieces; cut at the content's end. Never `NotFound`: who knows the roots knows
    /// that the slab was written, so its absence is damage.
    pub async fn read_slab(&self, slab: &SlabRef, range: Range<u64>, window: Window, trace: &Trace) -> Result<Bytes, RenterError> {
        let content_max = (usize::from(slab.k) * SECTOR_BYTES) as u64;
        let range = range.start..range.end.min(slab.content_len).min(content_max);
        if range.start >= range.end {
            return Ok(Bytes::new());
        }
        self.read_rows(slab, range, Check::Now, window, trace).await.map(|(content, _)| content)
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
        window: Window,
        trace: &Trace,
    ) -> Result<(Bytes, Proof), RenterError> {
        match self.read_rows(slab, range.clone(), Check::Later, window, trace).await {
            Ok((content, _)) if prove(&content) => return Ok((content, Proof::Given)),
            Ok((_, held)) => {
                futures::future::join_all(held.iter().map(|(spot, held)| blame(&self.shared, spot, held))).await;
            }
            Err(RenterError::TimedOut) => return Err(RenterError::TimedOut),
            // Pieces may not have been where they were guessed to be.
            Err(_) => {}
        }
        self.read_slab(slab, range, window, trace).await.map(|content| (content, Proof::Missing))
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
        let candidate = Candidate::new(spot, &range, Some(piece_length(slab, piece_index)), 1.0, 0.0);
        match Race::new(&self.shared, vec![candidate], 1, Known::Written, Window::Later, trace).run().await {
            Ok(stretches) => Ok(torn::any_of(&stretches)),
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
        let k = usize::from(slab.k);
        let mut race = Race::new(&self.shared, candidates, k, Known::Written, Window::Later, trace);
        let stretches = race.run().await.map_err(|lost| lost.into_error(k))?;
        let code = self.shared.code(slab.k, slab.m);
        let rebuild = |Stretch { range, pieces }: &Stretch| {
            let made = code.rebuild_pieces(pieces, &[piece_index], range.len() as u32);
            Bytes::from(made.expect("k checked pieces of one slab, cut to its rows").swap_remove(0))
        };
        let made = compute(|| torn::join(stretches.iter().map(rebuild).collect()));
        Ok(made.slice((range.start - rows.start) as usize..(range.end - rows.start) as usize))
    }

    async fn read_rows(
        &self,
        slab: &SlabRef,
        range: Range<u64>,
        check: Check,
        window: Window,
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
        let mut race = Race::new(&self.shared, candidates, k, Known::Written, window, trace);
        let stretches = race.run().await.map_err(|lost| lost.into_error(k))?;
        let join_bytes = rows.len() * k;
        let decode = |Stretch { range: rows, pieces }: &Stretch| {
            let row_content = |byte: u32| u64::from(byte) * k as u64;
            let content = range.start.max(row_content(rows.start))..range.end.min(row_content(rows.end));
            code.decode_range(pieces, rows.clone(), content).expect("k checked pieces of one slab, cut to its rows")
        };
        let join = || torn::join(stretches.iter().map(decode).collect());
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
    window: Window,
    /// What is wanted of each piece, in bytes of its sector.
    range: Range<u32>,
    piece_bytes: u64,
    /// Not asked yet, best first.
    waiting: VecDeque<Candidate>,
    won: Vec<(usize, Bytes)>,
    /// Those of which only something is right.
    torn: Vec<Torn>,
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
        window: Window,
        trace: &'a Trace,
    ) -> Race<'a> {
        let range = candidates.first().map_or(0..0, |first| first.wanted.range.clone());
        let piece_bytes = range.len() as u64;
        let mut waiting = candidates;
        waiting.sort_by_cached_key(|candidate| {
            let Some(host) = &candidate.spot.host else { return u64::MAX };
            let cost_s = shared.forecasts[candidate.spot.row].cost_s(host, piece_bytes);
            let aside_s = shared.standing(candidate.spot.row).map_or(0.0, |_| SET_ASIDE_EXTRA_S);
            ((cost_s * candidate.factor + candidate.extra_s + aside_s) * 1e9) as u64
        });
        Race {
            shared,
            need,
            known,
            window,
            range,
            piece_bytes,
            waiting: waiting.into(),
            won: Vec::with_capacity(need),
            torn: Vec::new(),
            unchecked: Vec::new(),
            missing: Vec::new(),
            late: 0,
            spares: 0,
            began: Instant::now(),
            trace: Counted { trace, running: 0, rounds: 0 },
        }
    }

    async fn run(&mut self) -> Result<Vec<Stretch>, Lost> {
        let mut running = FuturesUnordered::new();
        let (asked, patience) = self.plan();
        running.extend(asked.into_iter().map(|candidate| self.start(candidate)));
        let (mut more, mut wait) = (patience.more, patience.next());
        let end = self.began + READ_MAX;
        let alarm = sleep_until(self.began + patience.deadline);
        tokio::pin!(alarm);
        while !self.is_won() {
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
                    for spare in patience.spares(now - self.began, self.need - self.won.len(), more) {
                        let Some(candidate) = self.take_spare(spare) else { break };
                        running.push(self.start(candidate));
                    }
                    let next = if self.waiting.is_empty() { end } else { end.min(now + wait) };
                    alarm.as_mut().reset(next);
                    (more, wait) = (policy::more_later(self.need), wait * 2);
                }
            }
        }
        let done = self.finish();
        if done.is_ok() && !running.is_empty() && self.piece_bytes <= DRAIN_MAX_BYTES {
            // In the background, and in silence: the answer does not wait for it. Their connections live, and their times are
            // learnt. Larger ones are read on by their hosts if little is left of them.
            tokio::spawn(timeout(DRAIN_MAX, running.for_each(|_| std::future::ready(()))));
        }
        done
    }

    /// Whom to ask at once, and how long to wait until it is late.
    fn plan(&mut self) -> (Vec<Candidate>, Patience) {
        let mut needed = Cost::default();
        for candidate in self.waiting.iter().take(self.need) {
            let cost = self.cost(candidate);
            needed = Cost { bytes: needed.bytes + cost.bytes, requests: needed.requests + cost.requests };
        }
        let share = self.shared.purse.begin(self.window, needed);
        let mut asked: Vec<Candidate> = self.waiting.drain(..self.need.min(self.waiting.len())).collect();
        let mut spreads: Vec<Spread> = asked.iter().filter_map(|candidate| self.spread(candidate)).collect();
        // Hosts on this machine: nobody feels what a spare would save, and it would cost what the others wait for.
        let quick = policy::deadline(&spreads, self.need, QUICK_CHANCE, HEDGE_MIN) == HEDGE_MIN;
        let window = if quick { Window::Later } else { self.window };
        let Plan { late, .. } = policy::plan(window, self.need, share, || {
            let Some(spare) = self.take_spare(Spare::Eager) else { return false };
            spreads.extend(self.spread(&spare));
            asked.push(spare);
            true
        });
        // It is not reckoned with: mostly it is still slow.
        asked.extend(self.take_stale());
        (asked, policy::patience(&spreads, self.need, late, HEDGE_MIN))
    }

    fn cost(&self, candidate: &Candidate) -> Cost {
        let (requests, bytes) = expected(self.shared, &candidate.spot, &candidate.wanted);
        Cost { bytes, requests }
    }

    /// The next candidate, if the purse pays for it.
    fn take_spare(&mut self, spare: Spare) -> Option<Candidate> {
        let cost = self.cost(self.waiting.front()?);
        if !self.shared.purse.spend(self.window, spare, cost) {
            return None;
        }
        self.spares += 1;
        self.waiting.pop_front()
    }

    /// One that nobody asked for long, to see whether it has become quick. Those set aside are looked at by audits.
    fn take_stale(&mut self) -> Option<Candidate> {
        let stale = |candidate: &Candidate| {
            let may_be_asked = candidate.extra_s < MISSING_EXTRA_S && self.shared.standing(candidate.spot.row).is_none();
            let host = candidate.spot.host.as_ref().filter(|_| may_be_asked);
            host.is_some_and(|host| self.shared.forecasts[candidate.spot.row].is_stale(host, self.piece_bytes))
        };
        let at = self.waiting.iter().position(stale)?;
        if !self.shared.purse.spend(self.window, Spare::Eager, self.cost(&self.waiting[at])) {
            return None;
        }
        self.spares += 1;
        self.shared.forecasts[self.waiting[at].spot.row].explore(self.piece_bytes);
        self.waiting.remove(at)
    }

    fn spread(&self, candidate: &Candidate) -> Option<Spread> {
        let host = candidate.spot.host.as_ref()?;
        Some(self.shared.forecasts[candidate.spot.row].spread(host, self.piece_bytes))
    }

    /// In a task of its own, so that any thread may take it, and one is free to hear of new requests: 256 KiB took 0.8 ms when one
    /// thread read and hashed six pieces one after another, and take 0.6 so; a stream is a quarter quicker.
    fn start(&mut self, candidate: Candidate) -> impl Future<Output = Fetched> + Send + use<> {
        self.trace.running += 1;
        let task = AbortOnDropHandle::new(tokio::spawn(fetch(self.shared.clone(), candidate.spot, candidate.wanted)));
        async move {
            match task.await {
                Ok(fetched) => fetched,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime ends, and with it whoever waits here.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Takes an answer. If it is none, another candidate comes in its stead, while there are any.
    fn settle(&mut self, fetched: Fetched) -> Option<Candidate> {
        self.trace.count(&fetched);
        let Fetched { spot, mut wanted, result, unchecked, torn, cost } = fetched;
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
            Err(Fault::Wrong(_)) => self.torn.extend(torn),
            Err(Fault::Unavailable) => (),
        }
        let mut instead = self.waiting.pop_front()?;
        instead.wanted.rounds_before = cost.rounds;
        Some(instead)
    }

    fn stretches(&self) -> Result<Vec<Stretch>, usize> {
        torn::stretches(Stretch { range: self.range.clone(), pieces: self.won.clone() }, &self.torn, self.need)
    }

    fn is_won(&self) -> bool {
        self.won.len() >= self.need || (!self.torn.is_empty() && self.stretches().is_ok())
    }

    fn finish(&mut self) -> Result<Vec<Stretch>, Lost> {
        self.trace.finish();
        self.shared.overdrive[usize::from(self.need > 1)].read(self.spares);
        let stretches = self.stretches();
        if stretches.is_ok() || self.known == Known::Written {
            for spot in &self.missing {
                self.shared.report_damage(spot, DamageKind::Missing, NO_SUCH_OBJECT);
            }
        }
        stretches.map_err(|have| Lost { have, missing: self.missing.len(), late: self.late })
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
