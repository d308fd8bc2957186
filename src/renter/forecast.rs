//! How long a host will take, learnt from how long it took.
//!
//! A [`Forecast`] belongs to one host. For each size class it keeps a decaying histogram of whole request times, and it
//! counts recent failures and requests under way. It lives in the race and not in the host, because the race knows what
//! the host cannot: a request cancelled after 80 ms took *at least* 80 ms.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::lock;

/// Upper bounds of the size classes but the last, in bytes: a request is mostly latency, then mixed, then throughput.
const CLASS_BOUNDS: [u64; 2] = [64 << 10, 1 << 20];
const CLASSES: usize = CLASS_BOUNDS.len() + 1;
/// Buckets grow by the third root of two: a quantile is right to 13 %, which is finer than hosts are steady.
const BUCKETS_PER_DOUBLING: f64 = 3.0;
/// The first bucket's bound. A warm folder answers in about this time.
const FIRST_BUCKET: Duration = Duration::from_micros(32);
/// 64 buckets reach 80 s, beyond every time-out.
const BUCKETS: usize = 64;
/// A sample's weight halves after about 70 later ones: enough of them for a 90 % point, few enough to follow a host.
const DECAY: f32 = 0.99;
/// Samples of an unknown host pretend this, so that the first reads neither hedge at once nor wait for seconds.
const UNKNOWN: Quantiles = Quantiles { p50: Duration::from_millis(20), p90: Duration::from_millis(60) };
/// An estimate halves for each of these that pass without a sample: a host once slow is tried again.
const STALE: Duration = Duration::from_secs(30);
/// A failure's weight halves in this time.
const FAILURE_HALF_LIFE: Duration = Duration::from_secs(10);
/// One failure just now makes a host look this much slower.
const FAILURE_FACTOR: f64 = 4.0;
/// Each request under way makes a host look this much slower.
const IN_FLIGHT_FACTOR: f64 = 0.25;

/// Points of the distribution of request times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Quantiles {
    pub(super) p50: Duration,
    pub(super) p90: Duration,
}

/// What to expect of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// For choosing hosts: the median, made worse by load and failures. Seconds.
    pub(super) cost_s: f64,
    /// For the read's deadline: the 90 % point.
    pub(super) late: Duration,
}

#[derive(Default)]
pub(super) struct Forecast {
    classes: [Mutex<SizeClass>; CLASSES],
    failures: Mutex<Failures>,
    in_flight: Arc<AtomicU32>,
}

/// Counts one request under way until dropped.
pub(super) struct InFlight(Arc<AtomicU32>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Forecast {
    pub(super) fn start(&self) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(self.in_flight.clone())
    }

    /// A request for `bytes` succeeded.
    pub(super) fn took(&self, bytes: u64, time: Duration) {
        lock(&self.classes[class_of(bytes)]).add(time);
    }

    /// A request for `bytes` was given up after `time`. Counts only if that was already longer than usual; a loser that
    /// was cancelled early says nothing.
    pub(super) fn took_at_least(&self, bytes: u64, time: Duration) {
        let mut class = lock(&self.classes[class_of(bytes)]);
        if class.known.is_none_or(|known| time > known.p50) {
            class.add(time);
        }
    }

    pub(super) fn failed(&self) {
        let mut failures = lock(&self.failures);
        *failures = Failures { weight: failures.now() + 1.0, at: Some(Instant::now()) };
    }

    pub(super) fn expect(&self, bytes: u64) -> Expected {
        let known = lock(&self.classes[class_of(bytes)]).quantiles();
        let failures = lock(&self.failures).now();
        let load = f64::from(self.in_flight.load(Relaxed));
        let factor = (1.0 + IN_FLIGHT_FACTOR * load) * (1.0 + FAILURE_FACTOR * failures);
        Expected { cost_s: known.p50.as_secs_f64() * factor, late: known.p90 }
    }
}

fn class_of(bytes: u64) -> usize {
    CLASS_BOUNDS.iter().position(|bound| bytes <= *bound).unwrap_or(CLASSES - 1)
}

#[derive(Default)]
struct Failures {
    weight: f64,
    at: Option<Instant>,
}

impl Failures {
    fn now(&self) -> f64 {
        self.at.map_or(0.0, |at| self.weight * 0.5_f64.powf(at.elapsed().as_secs_f64() / FAILURE_HALF_LIFE.as_secs_f64()))
    }
}

struct SizeClass {
    weights: [f32; BUCKETS],
    total: f32,
    /// Computed when a sample comes, read at every choice.
    known: Option<Quantiles>,
    last_sample: Option<Instant>,
}

impl Default for SizeClass {
    fn default() -> Self {
        SizeClass { weights: [0.0; BUCKETS], total: 0.0, known: None, last_sample: None }
    }
}

impl SizeClass {
    fn add(&mut self, time: Duration) {
        self.weights.iter_mut().for_each(|weight| *weight *= DECAY);
        self.total = self.total * DECAY + 1.0;
        self.weights[bucket_of(time)] += 1.0;
        self.known = Some(Quantiles { p50: self.quantile(0.5), p90: self.quantile(0.9) });
        self.last_sample = Some(Instant::now());
    }

    fn quantile(&self, share: f32) -> Duration {
        let mut below = 0.0;
        let bucket = self.weights.iter().position(|weight| {
            below += weight;
            below >= share * self.total
        });
        bucket_middle(bucket.unwrap_or(BUCKETS - 1))
    }

    fn quantiles(&self) -> Quantiles {
        let (Some(known), Some(last_sample)) = (self.known, self.last_sample) else { return UNKNOWN };
        let age = last_sample.elapsed();
        if age < STALE {
            return known;
        }
        let shrink = 0.5_f64.powf(age.as_secs_f64() / STALE.as_secs_f64() - 1.0);
        Quantiles { p50: known.p50.mul_f64(shrink), p90: known.p90 }
    }
}

fn bucket_of(time: Duration) -> usize {
    let doublings = (time.as_secs_f64() / FIRST_BUCKET.as_secs_f64()).max(1.0).log2();
    ((doublings * BUCKETS_PER_DOUBLING) as usize).min(BUCKETS - 1)
}

fn bucket_middle(bucket: usize) -> Duration {
    FIRST_BUCKET.mul_f64(((bucket as f64 + 0.5) / BUCKETS_PER_DOUBLING).exp2())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn quantiles_follow_a_host() {
        let forecast = Forecast::default();
        assert_eq!(forecast.expect(1).late, UNKNOWN.p90);
        for sample in 0..200 {
            forecast.took(1, Duration::from_millis(if sample % 5 == 0 { 50 } else { 10 }));
        }
        let before = forecast.expect(1);
        assert!((0.0085..0.0115).contains(&before.cost_s), "{before:?}");
        assert!((43..58).contains(&before.late.as_millis()), "{before:?}");
        for _ in 0..150 {
            forecast.took(1, Duration::from_millis(100));
        }
        assert!(forecast.expect(1).cost_s > 0.085, "a host that became slow is seen as slow");
        assert_eq!(forecast.expect(2 << 20).late, UNKNOWN.p90, "size classes are apart");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_load_cost_and_are_forgotten() {
        let forecast = Forecast::default();
        (0..50).for_each(|_| forecast.took(1, Duration::from_millis(10)));
        let healthy = forecast.expect(1).cost_s;
        forecast.failed();
        assert!(forecast.expect(1).cost_s > 4.0 * healthy);
        tokio::time::advance(Duration::from_secs(25)).await;
        assert!(forecast.expect(1).cost_s < 2.0 * healthy);
        let four: Vec<_> = (0..4).map(|_| forecast.start()).collect();
        let loaded = forecast.expect(1).cost_s;
        drop(four);
        assert!(loaded > 1.9 * forecast.expect(1).cost_s);
        tokio::time::advance(Duration::from_secs(300)).await;
        assert!(forecast.expect(1).cost_s < healthy / 16.0, "an old estimate fades");
    }

    #[tokio::test(start_paused = true)]
    async fn early_losers_say_nothing() {
        let forecast = Forecast::default();
        (0..50).for_each(|_| forecast.took(1, Duration::from_millis(10)));
        let before = forecast.expect(1).cost_s;
        (0..50).for_each(|_| forecast.took_at_least(1, Duration::from_millis(1)));
        assert_eq!(forecast.expect(1).cost_s, before);
        (0..200).for_each(|_| forecast.took_at_least(1, Duration::from_millis(80)));
        assert!(forecast.expect(1).cost_s > 5.0 * before);
    }
}
