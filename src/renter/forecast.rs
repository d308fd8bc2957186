//! How long a host will take.
//!
//! A host measures its own calls and tells quantiles that forget ([`Host::predict`]), also of calls the race gave up. A
//! [`Forecast`] makes of them what a race asks: which hosts first, and how their times are spread ([`policy`](super::policy)). It adds failures that were
//! quick: a host that refuses at once must not look like the quickest of all.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use super::{
    host::{Host, HostState, Operation, Prediction, SizeClass, Spread},
    lock, policy,
};

/// What an unknown host is taken for, so that the first reads neither hedge at once nor wait for seconds.
const UNKNOWN: Prediction = Prediction { p50: Duration::from_millis(20), p95: Duration::from_millis(80), weight: 1.0 };
/// A failure's weight halves in this time.
const FAILURE_HALF_LIFE: Duration = Duration::from_secs(10);
/// One failure just now makes a host look this much slower.
const FAILURE_FACTOR: f64 = 4.0;
/// More failures than this weigh no more: a host that comes back is asked again within a minute.
const FAILURE_WEIGHT_MAX: f64 = 16.0;
/// Each request under way makes a host look this much slower.
const IN_FLIGHT_FACTOR: f64 = 0.25;

/// A host that no read chose for so long is asked once beside those that are chosen: it may have become quick.
const EXPLORE_EVERY: Duration = Duration::from_secs(60);
/// Nobody explores with more than this: a host once slow is looked at with small answers, or by its own time-outs.
const EXPLORE_BYTES_MAX: u64 = 256 << 10;

/// What the races learnt of one host beyond what it tells itself.
pub(super) struct Forecast {
    failures: Mutex<Failures>,
    /// When it was last asked only to see how it is, by size class.
    explored: Mutex<[Instant; SizeClass::ALL.len()]>,
}

impl Default for Forecast {
    fn default() -> Self {
        // A node that has just begun knows nobody, and has other worries.
        Forecast { failures: Mutex::default(), explored: [Instant::now(); SizeClass::ALL.len()].into() }
    }
}

#[derive(Default)]
struct Failures {
    weight: f64,
    at: Option<Instant>,
}

impl Forecast {
    /// A request failed, or its answer was wrong.
    pub(super) fn failed(&self) {
        let mut failures = lock(&self.failures);
        let weight = (failures.now() + 1.0).min(FAILURE_WEIGHT_MAX);
        *failures = Failures { weight, at: Some(Instant::now()) };
    }

    /// For the read's deadline.
    pub(super) fn spread(&self, host: &Host, bytes: u64) -> Spread {
        host.spread(Operation::Get, SizeClass::of(bytes)).unwrap_or_else(|| Spread::assumed(UNKNOWN.p50, UNKNOWN.p95))
    }

    /// Is it time to see how this host is? Nobody has asked it for such answers lately, or it did not answer.
    pub(super) fn is_stale(&self, host: &Host, bytes: u64) -> bool {
        let class = SizeClass::of(bytes);
        bytes <= EXPLORE_BYTES_MAX
            && lock(&self.explored)[class as usize].elapsed() >= EXPLORE_EVERY
            && (host.predict(Operation::Get, class).is_none_or(|known| known.weight < 1.0)
                || policy::suspicion(host.unanswered_in_a_row()) > 1.0)
            && !matches!(host.state(), HostState::Down { .. })
    }

    /// It is asked for that now.
    pub(super) fn explore(&self, bytes: u64) {
        lock(&self.explored)[SizeClass::of(bytes) as usize] = Instant::now();
    }

    /// For choosing hosts: the median in seconds, made worse by load and failures.
    pub(super) fn cost_s(&self, host: &Host, bytes: u64) -> f64 {
        let predicted = host.predict(Operation::Get, SizeClass::of(bytes)).unwrap_or(UNKNOWN);
        self.weigh(predicted, host.in_flight()) * policy::suspicion(host.unanswered_in_a_row())
    }

    fn weigh(&self, predicted: Prediction, in_flight: u32) -> f64 {
        let p50_s = predicted.p50.as_secs_f64().max(1e-6);
        // An estimate that rests on less than one recent sample fades: also what is never explored is tried again some day.
        let fade = f64::from(predicted.weight).min(1.0);
        let load = 1.0 + IN_FLIGHT_FACTOR * f64::from(in_flight);
        let trouble = 1.0 + FAILURE_FACTOR * lock(&self.failures).now();
        p50_s * fade * load * trouble
    }
}

impl Failures {
    fn now(&self) -> f64 {
        let Some(at) = self.at else { return 0.0 };
        self.weight * 0.5_f64.powf(at.elapsed().as_secs_f64() / FAILURE_HALF_LIFE.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEADY: Prediction = Prediction { p50: Duration::from_millis(10), p95: Duration::from_millis(20), weight: 30.0 };

    #[tokio::test(start_paused = true)]
    async fn failures_load_and_age_count() {
        let forecast = Forecast::default();
        let healthy = forecast.weigh(STEADY, 0);
        assert!((healthy - 0.01).abs() < 1e-9, "{healthy:?}");
        assert!(forecast.weigh(STEADY, 4) > 1.9 * healthy);
        assert!(forecast.weigh(Prediction { weight: 0.1, ..STEADY }, 0) < 0.2 * healthy);
        (0..100).for_each(|_| forecast.failed());
        assert!(forecast.weigh(STEADY, 0) > 60.0 * healthy);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(forecast.weigh(STEADY, 0) < 2.1 * healthy);
    }
}
