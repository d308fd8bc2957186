//! What the race may spend beyond what it needs: extra bytes and requests for spares, extra calls for retries.
//!
//! All are token buckets: use earns, extras spend. Replacing a piece that failed is never counted as a spare.
//!
//! The [`Purse`] is one for everything: [`BYTES_PERCENT`] of the bytes that reads need and [`REQUESTS_PERCENT`] of their
//! requests. First windows of replies may have up to [`FIRST_PERCENT`] of their own bytes, but only of what there is: later
//! windows then get by with less, and while replies are nothing but first windows, these have no more than others. The shares
//! follow from what was read lately ([`Purse::begin`]), the buckets hold whatever the shares come to.
//!
//! A purse that runs low stops the least needed first ([`Spare`]): spares from the start, and more than are missing, while half of it
//! is left, then spares of late reads; reads that are much too late go into debt, which is paid back before anybody else spends.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::policy::{Share, Spare, Window};

/// Of all bytes asked from hosts.
const BYTES_PERCENT: i64 = 5;
/// Of all requests: small answers cost hosts by the request.
const REQUESTS_PERCENT: i64 = 15;
/// Of the bytes of first windows: their delay is what a person sees, and they are few bytes.
const FIRST_PERCENT: i64 = 30;
/// What shares add up to while the purse is three quarters full: a little less than what is earned, for what they reckon wrong. With
/// more or less in it they add up to more or less ([`SHARE_TILT`]), and so in the end to what is earned.
const BYTES_SHARE: f64 = 0.047;
const REQUESTS_SHARE: f64 = 0.14;
const SHARE_TILT: f64 = 0.25;
/// A hundredth is left for the few that are late in spite of their spares.
const FIRST_SHARE: f64 = 0.297;
/// A later window has this, if there is enough.
const LATER_SHARE: f64 = 0.045;
/// And never less: below it a late answer is waited for longer than it helps anybody else (`docs/hedging.md`).
const LATER_SHARE_MIN: f64 = 0.027;
/// What the purse holds at most: one slab's worth, so that a burst of slow reads can be hedged, but a long quiet time does not
/// buy a storm. It begins with three quarters, about what is in it while shares and earnings keep each other in balance.
const BURST_BYTES: i64 = 24 << 20;
/// The same in requests, of pieces of some 24 KiB.
const BURST_REQUESTS: i64 = 1_000;
/// How much traffic the shares are reckoned from: some minutes of a busy gateway, and a start that is soon outweighed.
const LATELY_BYTES: u64 = 1 << 30;
const LATELY_REQUESTS: u64 = 1 << 16;
/// Before anything is known: one byte in sixteen is of a first window.
const FIRST_PART_ASSUMED: u64 = 16;

/// Multiples of it are spread evenly between whole numbers, whatever their count.
const GOLDEN: f64 = 0.618_033_988_749_895;

/// Bytes and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub bytes: u64,
    pub requests: u64,
}

/// What spares may cost.
pub struct Purse {
    bytes: Account,
    requests: Account,
    /// Of first windows alone: they take from here and from the others.
    first: Account,
    lately_bytes: Lately,
    lately_requests: Lately,
    reads: AtomicU64,
}

impl Default for Purse {
    fn default() -> Self {
        Purse {
            bytes: Account::new(BYTES_PERCENT, BURST_BYTES),
            requests: Account::new(REQUESTS_PERCENT, BURST_REQUESTS),
            first: Account::new(FIRST_PERCENT, BURST_BYTES),
            lately_bytes: Lately::new(LATELY_BYTES),
            lately_requests: Lately::new(LATELY_REQUESTS),
            reads: 0.into(),
        }
    }
}

impl Purse {
    /// A read begins that needs so much; what of it may it spend on spares?
    pub fn begin(&self, window: Window, needed: Cost) -> Share {
        self.bytes.earn(needed.bytes);
        self.requests.earn(needed.requests);
        let first = window == Window::First;
        if first {
            self.first.earn(needed.bytes);
        }
        let first_bytes = self.lately_bytes.add(needed.bytes, first);
        let first_requests = self.lately_requests.add(needed.requests, first);
        let (bytes, requests) = (BYTES_SHARE * self.bytes.tilt(), REQUESTS_SHARE * self.requests.tilt());
        let most = |all: f64, later: f64, part: f64| ((all - (1.0 - part) * later) / part).max(LATER_SHARE_MIN);
        let of_first = most(bytes, LATER_SHARE_MIN, first_bytes).min(most(requests, LATER_SHARE, first_requests));
        let of_first = of_first.min(FIRST_SHARE);
        let later = (bytes - first_bytes * of_first) / (1.0 - first_bytes).max(f64::EPSILON);
        let later = later.clamp(LATER_SHARE_MIN, LATER_SHARE);
        let read = self.reads.fetch_add(u64::from(first), Relaxed);
        Share { own: if first { of_first } else { later }, later, turn: (read as f64 * GOLDEN).fract() }
    }

    /// May this read ask one spare more? If so, it is paid.
    pub fn spend(&self, window: Window, spare: Spare, cost: Cost) -> bool {
        let first = window == Window::First;
        // Only what is asked from the start stops at the first windows' own account: a late read has its reserve, but is counted.
        let own = if spare == Spare::Eager { Spare::Eager } else { Spare::Hung };
        if first && !self.first.take(cost.bytes, own) {
            return false;
        }
        let bytes = self.bytes.take(cost.bytes, spare);
        let requests = bytes && self.requests.take(cost.requests, spare);
        if bytes && !requests {
            self.bytes.give(cost.bytes);
        }
        if first && !requests {
            self.first.give(cost.bytes);
        }
        requests
    }
}

/// A bucket of bytes or requests, counted in hundredths of one.
struct Account {
    level: AtomicI64,
    percent: i64,
    most: i64,
}

impl Account {
    fn new(percent: i64, burst: i64) -> Account {
        Account { level: (burst * 75).into(), percent, most: burst * 100 }
    }

    /// What the shares are to be multiplied with, by how full it is.
    fn tilt(&self) -> f64 {
        let fill = self.level.load(Relaxed) as f64 / self.most as f64;
        1.0 + SHARE_TILT * (4.0 * fill - 3.0).clamp(-1.0, 1.0)
    }

    fn earn(&self, amount: u64) {
        add(&self.level, whole(amount).saturating_mul(self.percent), self.most);
    }

    fn give(&self, amount: u64) {
        self.level.fetch_add(whole(amount) * 100, Relaxed);
    }

    fn take(&self, amount: u64, spare: Spare) -> bool {
        let cost = whole(amount) * 100;
        let floor = match spare {
            Spare::Eager => self.most / 2,
            Spare::Late => 0,
            Spare::Overdue => -self.most / 2,
            Spare::Hung => i64::MIN / 2,
        };
        self.level.fetch_update(Relaxed, Relaxed, |level| (level - cost >= floor).then(|| level - cost)).is_ok()
    }
}

/// What no sum of reads reaches, and no product with a percentage overflows.
fn whole(amount: u64) -> i64 {
    amount.min(1 << 50) as i64
}

/// How much was needed lately, and how much of it by first windows. Halved now and then, so that the old fades.
struct Lately {
    all: AtomicU64,
    first: AtomicU64,
    most: u64,
}

impl Lately {
    fn new(most: u64) -> Lately {
        let start = most / 16;
        Lately { all: start.into(), first: (start / FIRST_PART_ASSUMED).into(), most }
    }

    /// The part of first windows, above zero and at most one. Racing halvings make it a little wrong for a while.
    fn add(&self, amount: u64, first: bool) -> f64 {
        let amount = amount.min(self.most);
        let all = self.all.fetch_add(amount, Relaxed) + amount;
        let of_first = match first {
            true => self.first.fetch_add(amount, Relaxed) + amount,
            false => self.first.load(Relaxed),
        };
        if all > self.most {
            self.all.store(all / 2, Relaxed);
            self.first.store(of_first / 2, Relaxed);
        }
        (of_first.max(1) as f64 / all.max(1) as f64).min(1.0)
    }
}

/// Reads of one sort, and what their spares were.
#[derive(Default)]
pub(super) struct Overdrive {
    reads: AtomicU64,
    with_spares: AtomicU64,
    spares: AtomicU64,
}

/// Since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverdriveCounts {
    pub reads: u64,
    pub with_spares: u64,
    pub spares: u64,
}

impl Overdrive {
    /// A read has ended that asked so many.
    pub(super) fn read(&self, spares: u64) {
        self.reads.fetch_add(1, Relaxed);
        if spares > 0 {
            self.with_spares.fetch_add(1, Relaxed);
            self.spares.fetch_add(spares, Relaxed);
        }
    }

    pub(super) fn counts(&self) -> OverdriveCounts {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        OverdriveCounts { reads: of(&self.reads), with_spares: of(&self.with_spares), spares: of(&self.spares) }
    }
}

/// Calls that may be repeated: one for each ten made, so that failing hosts do not double the load.
const CALLS_PER_RETRY: i64 = 10;
/// Retries at hand after a quiet time.
const RETRY_BURST: i64 = 100;

/// Calls that retries may cost, in tenths.
pub(super) struct RetryBudget(AtomicI64);

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget((RETRY_BURST * CALLS_PER_RETRY).into())
    }
}

impl RetryBudget {
    pub(super) fn earn(&self) {
        add(&self.0, 1, RETRY_BURST * CALLS_PER_RETRY);
    }

    pub(super) fn spend(&self) -> bool {
        take(&self.0, CALLS_PER_RETRY)
    }
}

/// Racing adds may overshoot `max` by one of them; the bucket is a brake, not an account.
fn add(bucket: &AtomicI64, amount: i64, max: i64) {
    if bucket.load(Relaxed) < max {
        bucket.fetch_add(amount.min(max), Relaxed);
    }
}

fn take(bucket: &AtomicI64, cost: i64) -> bool {
    bucket.fetch_update(Relaxed, Relaxed, |level| (level >= cost).then(|| level - cost)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Cost = Cost { bytes: 256 << 10, requests: 8 };
    const LATER: Cost = Cost { bytes: 1 << 20, requests: 8 };

    fn piece(of: Cost) -> Cost {
        Cost { bytes: of.bytes / of.requests, requests: 1 }
    }

    /// Reads in turn; each spends all that it can get. Extra bytes of (all, first windows) as parts of what was needed.
    fn greedy(reads: u64, first_every: u64, spare: Spare) -> (f64, f64) {
        let purse = Purse::default();
        let (mut needed, mut spent, mut first_needed, mut first_spent) = (0, 0, 0, 0);
        for read in 0..reads {
            let first = read % first_every == 0;
            let (window, cost) = if first { (Window::First, FIRST) } else { (Window::Later, LATER) };
            purse.begin(window, cost);
            needed += cost.bytes;
            first_needed += if first { cost.bytes } else { 0 };
            let kind = if first { Spare::Eager } else { spare };
            while purse.spend(window, kind, piece(cost)) {
                spent += piece(cost).bytes;
                first_spent += if first { piece(cost).bytes } else { 0 };
            }
        }
        (spent as f64 / needed as f64, first_spent as f64 / first_needed.max(1) as f64)
    }

    #[test]
    fn spares_cost_a_twentieth_of_all_traffic_after_the_burst() {
        let reads = 20_000;
        for first_every in [1, 2, 8, u64::MAX] {
            let (all, _) = greedy(reads, first_every, Spare::Late);
            let burst = BURST_BYTES as f64 / (reads * FIRST.bytes) as f64;
            assert!(all <= 0.05 + burst, "first windows one in {first_every}: {all}");
        }
    }

    #[test]
    fn first_windows_have_at_most_a_third_more_of_their_own() {
        // Nobody else spends anything.
        let (_, first) = greedy(100_000, 20, Spare::Eager);
        assert!((0.20..0.32).contains(&first), "{first}");
    }

    #[test]
    fn shares_add_up_to_what_there_is() {
        let check = |first_every: u64, first: (f64, f64), later: (f64, f64)| {
            let purse = Purse::default();
            let mut share = purse.begin(Window::First, FIRST);
            for read in 1..50_000 {
                let (window, cost) = if read % first_every == 0 { (Window::First, FIRST) } else { (Window::Later, LATER) };
                let given = purse.begin(window, cost);
                share = if window == Window::First { given } else { share };
            }
            assert!((first.0..=first.1).contains(&share.own), "one in {first_every}: {share:?}");
            assert!((later.0..=later.1).contains(&share.later), "one in {first_every}: {share:?}");
        };
        // Few first windows: all that they may have, and later ones nearly what they want.
        check(16, (0.297, 0.297), (0.027, 0.045));
        // Nothing else: what everybody has, and what the full purse of this test gives besides.
        check(1, (0.04, 0.06), (0.027, 0.045));
        // In between: what the others leave.
        check(2, (0.10, 0.25), (0.027, 0.028));
    }

    #[test]
    fn a_low_purse_stops_the_least_needed_first() {
        let purse = Purse::default();
        let cost = Cost { bytes: 1 << 20, requests: 1 };
        let spend = |spare| (0..1_000).take_while(|_| purse.spend(Window::Later, spare, cost)).count();
        assert_eq!([Spare::Eager, Spare::Late, Spare::Overdue].map(spend), [6, 12, 12]);
        assert!(purse.spend(Window::Later, Spare::Hung, cost), "a hung host is never waited for");
        // Debts are paid first.
        for _ in 0..13 * 20 - 1 {
            purse.begin(Window::Later, cost);
            assert!(!purse.spend(Window::Later, Spare::Late, cost));
        }
        for _ in 0..21 {
            purse.begin(Window::Later, cost);
        }
        assert!(purse.spend(Window::Later, Spare::Late, cost));
        assert!(!purse.spend(Window::First, Spare::Eager, cost));
    }

    #[test]
    fn small_answers_cost_by_the_request() {
        let purse = Purse::default();
        let cost = Cost { bytes: 8 << 10, requests: 8 };
        let mut spares = 0;
        for _ in 0..20_000 {
            purse.begin(Window::First, cost);
            purse.begin(Window::Later, LATER);
            while purse.spend(Window::First, Spare::Late, piece(cost)) {
                spares += 1;
            }
        }
        let share = spares as f64 / 320_000.0;
        assert!((0.14..0.16).contains(&share), "{share}");
    }

    #[test]
    fn retries_are_one_in_ten() {
        let budget = RetryBudget::default();
        (0..RETRY_BURST).for_each(|_| assert!(budget.spend()));
        assert!(!budget.spend());
        (0..CALLS_PER_RETRY).for_each(|_| budget.earn());
        assert!(budget.spend() && !budget.spend());
    }
}
