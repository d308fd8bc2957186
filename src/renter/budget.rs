//! What the race may spend beyond what it needs: extra bytes for spares, extra calls for retries.
//!
//! Both are token buckets: use earns, extras spend. A bucket that is empty does not stop a read or a write that cannot
//! go on otherwise: replacing a piece that failed is never counted as a spare.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// Share of all bytes asked from hosts that spares may add, in percent.
const SPARE_PERCENT: i64 = 5;
/// Share for first windows, in percent: their delay is what a person sees, and they are few bytes.
const FIRST_WINDOW_SPARE_PERCENT: i64 = 30;
/// Reads up to this size count as the first window of a reply.
const FIRST_WINDOW_MAX_BYTES: u64 = 256 << 10;
/// What a bucket holds at most, and at the start: one slab's worth, so that a burst of slow reads can be hedged, but a
/// long quiet time does not buy a storm.
const SPARE_BURST_BYTES: i64 = 24 << 20;

/// Bytes that spares may cost.
pub(super) struct HedgeBudget {
    all: AtomicI64,
    first_windows: AtomicI64,
}

impl Default for HedgeBudget {
    fn default() -> Self {
        HedgeBudget { all: SPARE_BURST_BYTES.into(), first_windows: SPARE_BURST_BYTES.into() }
    }
}

impl HedgeBudget {
    /// A read of `bytes` begins.
    pub(super) fn earn(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / 100).min(i64::MAX / 100);
        add(&self.all, bytes * SPARE_PERCENT / 100, SPARE_BURST_BYTES);
        if bytes <= FIRST_WINDOW_MAX_BYTES as i64 {
            add(&self.first_windows, bytes * FIRST_WINDOW_SPARE_PERCENT / 100, SPARE_BURST_BYTES);
        }
    }

    /// May a read of `read_bytes` start one more request of `spare_bytes`?
    pub(super) fn spend(&self, read_bytes: u64, spare_bytes: u64) -> bool {
        let cost = i64::try_from(spare_bytes).unwrap_or(i64::MAX);
        (read_bytes <= FIRST_WINDOW_MAX_BYTES && take(&self.first_windows, cost)) || take(&self.all, cost)
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

    #[test]
    fn spares_cost_a_twentieth_of_all_traffic_after_the_burst() {
        let budget = HedgeBudget::default();
        let (read, spare) = (1 << 20, 170 << 10);
        let mut spent = 0;
        let reads = 10_000;
        for _ in 0..reads {
            budget.earn(read);
            while budget.spend(read, spare) {
                spent += spare;
            }
        }
        let allowed = reads * read / 20 + SPARE_BURST_BYTES as u64;
        assert!(spent <= allowed && spent > allowed * 9 / 10, "{spent} of {allowed}");
    }

    #[test]
    fn first_windows_have_more() {
        let budget = HedgeBudget::default();
        let (read, spare) = (64 << 10, 12 << 10);
        let mut spent = 0;
        for _ in 0..100_000 {
            budget.earn(read);
            while budget.spend(read, spare) {
                spent += spare;
            }
        }
        let share = spent as f64 / (100_000.0 * read as f64);
        assert!((0.34..0.37).contains(&share), "{share}");
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
