//! How long a host takes: quantiles that forget, per operation and size.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use tokio::time::Instant;

/// What was asked of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Get,
    Put,
    Size,
    Delete,
    List,
}

impl Operation {
    pub const ALL: [Operation; 5] = [Operation::Get, Operation::Put, Operation::Size, Operation::Delete, Operation::List];

    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::Size => "size",
            Operation::Delete => "delete",
            Operation::List => "list",
        }
    }
}

/// How many bytes an operation moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SizeClass {
    /// At most 64 KiB: records, small pages.
    Small,
    /// At most 1 MiB: ranges.
    Medium,
    /// More: whole sectors.
    Large,
}

impl SizeClass {
    pub const ALL: [SizeClass; 3] = [SizeClass::Small, SizeClass::Medium, SizeClass::Large];

    pub fn of(bytes: u64) -> SizeClass {
        match bytes {
            0..=65_536 => SizeClass::Small,
            65_537..=1_048_576 => SizeClass::Medium,
            _ => SizeClass::Large,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            SizeClass::Small => "small",
            SizeClass::Medium => "medium",
            SizeClass::Large => "large",
        }
    }
}

/// What to expect of one operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    pub p50: Duration,
    pub p95: Duration,
    /// How many recent samples it rests on; old ones count for less.
    pub weight: f32,
}

/// How an operation's times are spread, as of now: a snapshot to reckon with.
#[derive(Clone, Debug)]
pub struct Spread {
    /// Share of the samples in each bucket and those before it.
    up_to: [f32; BUCKETS],
}

impl Spread {
    /// The chance that it is done within `took`.
    pub fn within(&self, took: Duration) -> f64 {
        let index = bucket_of(took);
        let before = if index == 0 { 0.0 } else { self.up_to[index - 1] };
        let from_us = if index == 0 { 0.0 } else { end_of(index - 1) };
        let part = ((took.as_secs_f32() * 1e6 - from_us) / (end_of(index) - from_us)).clamp(0.0, 1.0);
        f64::from(before + (self.up_to[index] - before) * part)
    }

    /// Of a host that nobody knows: log-normal about `p50`, with 1.64 deviations up to `p95`.
    pub fn assumed(p50: Duration, p95: Duration) -> Spread {
        let mut cell = Decaying::new(Instant::now());
        let sigma = (p95.as_secs_f64() / p50.as_secs_f64()).ln() / 1.64;
        for deviation in ASSUMED_DEVIATIONS {
            cell.add(cell.base, p50.mul_f64((sigma * deviation).exp()));
        }
        cell.spread()
    }

    /// Of these samples.
    pub fn of(samples: impl IntoIterator<Item = Duration>) -> Option<Spread> {
        let mut cell = Decaying::new(Instant::now());
        let base = cell.base;
        samples.into_iter().for_each(|took| cell.add(base, took));
        (cell.total > 0.0).then(|| cell.spread())
    }
}

/// The deviates of twenty equal shares of a normal distribution, each at its middle.
const ASSUMED_DEVIATIONS: [f64; 20] = [
    -1.96, -1.44, -1.15, -0.93, -0.76, -0.60, -0.45, -0.32, -0.19, -0.06, 0.06, 0.19, 0.32, 0.45, 0.60, 0.76, 0.93, 1.15, 1.44,
    1.96,
];

/// Of all calls this part takes no longer than usual.
const LONG_SHARE: f32 = 0.95;
/// A sample counts half after this time: a host that got slow is known within a minute, and one quiet minute does not forget it.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Four buckets an octave: a quantile is off by at most 19 %.
const BUCKETS_PER_OCTAVE: f32 = 4.0;
/// The first bucket ends here: no host answers sooner.
const FIRST_US: f32 = 8.0;
/// Up to two minutes, above every time-out.
const BUCKETS: usize = 96;
/// The weights of new samples grow instead of the old ones' shrinking; above this all are scaled back.
const SCALE_MAX: f32 = 1e6;

/// All estimators of one host: 6 KiB.
#[derive(Debug)]
pub struct Latency([[Mutex<Decaying>; SizeClass::ALL.len()]; Operation::ALL.len()]);

impl Default for Latency {
    fn default() -> Latency {
        Latency::new()
    }
}

impl Latency {
    pub fn new() -> Latency {
        let now = Instant::now();
        Latency(std::array::from_fn(|_| std::array::from_fn(|_| Mutex::new(Decaying::new(now)))))
    }

    pub fn add(&self, operation: Operation, size: SizeClass, took: Duration) {
        self.cell(operation, size).add(Instant::now(), took);
    }

    /// A call was given up after `took`: it would have taken longer, nobody knows how much. It counts as what the calls that took
    /// longer took, each for its part; as `took` if there were none.
    ///
    /// Says whether that was unusually long.
    pub fn add_given_up(&self, operation: Operation, size: SizeClass, took: Duration) -> bool {
        let mut cell = self.cell(operation, size);
        let is_long = cell.quantile(LONG_SHARE).is_some_and(|long| took > long);
        cell.add_given_up(Instant::now(), took);
        is_long
    }

    pub fn predict(&self, operation: Operation, size: SizeClass) -> Option<Prediction> {
        let cell = self.cell(operation, size);
        Some(Prediction { p50: cell.quantile(0.5)?, p95: cell.quantile(0.95)?, weight: cell.weight(Instant::now()) })
    }

    /// `None` if there was no call of its kind yet.
    pub fn spread(&self, operation: Operation, size: SizeClass) -> Option<Spread> {
        let cell = self.cell(operation, size);
        (cell.total > 0.0).then(|| cell.spread())
    }

    fn cell(&self, operation: Operation, size: SizeClass) -> std::sync::MutexGuard<'_, Decaying> {
        self.0[operation as usize][size as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A histogram whose samples decay.
#[derive(Debug)]
struct Decaying {
    buckets: [f32; BUCKETS],
    total: f32,
    /// When a sample had weight 1.
    base: Instant,
}

impl Decaying {
    fn new(now: Instant) -> Decaying {
        Decaying { buckets: [0.0; BUCKETS], total: 0.0, base: now }
    }

    fn scale(&self, now: Instant) -> f32 {
        (now.saturating_duration_since(self.base).as_secs_f32() / HALF_LIFE.as_secs_f32()).exp2()
    }

    fn add(&mut self, now: Instant, took: Duration) {
        let scale = self.rescaled(now);
        self.buckets[bucket_of(took)] += scale;
        self.total += scale;
    }

    /// Losers of a race are given up when it ends. Taken for what they had used by then, they would make every host look as if
    /// it never took longer, and deadlines would come too early; left out, a host that hangs would look well (the estimate of
    /// Kaplan and Meier, in Efron's form).
    fn add_given_up(&mut self, now: Instant, took: Duration) {
        let scale = self.rescaled(now);
        let at = bucket_of(took);
        let longer: f32 = self.buckets[at + 1..].iter().sum();
        if longer > 0.0 {
            let grown = 1.0 + scale / longer;
            self.buckets[at + 1..].iter_mut().for_each(|bucket| *bucket *= grown);
        } else {
            self.buckets[at] += scale;
        }
        self.total += scale;
    }

    /// The weight of a sample of now.
    fn rescaled(&mut self, now: Instant) -> f32 {
        let scale = self.scale(now);
        if scale <= SCALE_MAX {
            return scale;
        }
        self.buckets.iter_mut().for_each(|bucket| *bucket /= scale);
        self.total = self.buckets.iter().sum();
        self.base = now;
        1.0
    }

    fn spread(&self) -> Spread {
        let mut up_to = [0.0; BUCKETS];
        let mut sum = 0.0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            sum += bucket;
            up_to[index] = (sum / self.total).min(1.0);
        }
        Spread { up_to }
    }

    fn weight(&self, now: Instant) -> f32 {
        self.total / self.scale(now)
    }

    fn quantile(&self, share: f32) -> Option<Duration> {
        if self.total <= 0.0 {
            return None;
        }
        let mut left = share * self.total;
        for (index, bucket) in self.buckets.iter().enumerate() {
            if left <= *bucket && *bucket > 0.0 {
                let from = if index == 0 { 0.0 } else { end_of(index - 1) };
                let us = from + (end_of(index) - from) * (left / bucket);
                return Some(Duration::from_secs_f32(us / 1e6));
            }
            left -= bucket;
        }
        // Rounding may leave a crumb: then it is the last bucket with samples.
        let last = self.buckets.iter().rposition(|bucket| *bucket > 0.0)?;
        Some(Duration::from_secs_f32(end_of(last) / 1e6))
    }
}

fn bucket_of(took: Duration) -> usize {
    let octaves = (took.as_secs_f32() * 1e6 / FIRST_US).max(1.0).log2();
    // Saturating: a float cast never wraps.
    ((octaves * BUCKETS_PER_OCTAVE).ceil() as usize).min(BUCKETS - 1)
}

fn end_of(index: usize) -> f32 {
    FIRST_US * (index as f32 / BUCKETS_PER_OCTAVE).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn quantiles_are_close() {
        let mut cell = Decaying::new(Instant::now());
        assert_eq!(cell.quantile(0.5), None);
        for ms in 1..=1000u64 {
            cell.add(Instant::now(), Duration::from_millis(ms));
        }
        for (share, expect_ms) in [(0.05, 50.0), (0.5, 500.0), (0.95, 950.0), (1.0, 1000.0)] {
            let got = cell.quantile(share).unwrap().as_secs_f64() * 1e3;
            assert!((got / expect_ms - 1.0f64).abs() < 0.2, "{share}: {got} instead of {expect_ms}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_old_is_forgotten() {
        let latency = Latency::new();
        for _ in 0..1000 {
            latency.add(Operation::Get, SizeClass::Small, Duration::from_millis(1));
        }
        tokio::time::advance(HALF_LIFE * 20).await;
        assert!(latency.predict(Operation::Get, SizeClass::Small).unwrap().p50 < Duration::from_millis(2));
        for _ in 0..10 {
            latency.add(Operation::Get, SizeClass::Small, Duration::from_secs(1));
        }
        let prediction = latency.predict(Operation::Get, SizeClass::Small).unwrap();
        assert!(prediction.p50 > Duration::from_millis(800), "{prediction:?}");
        assert!((9.0..11.0).contains(&prediction.weight), "{prediction:?}");
        assert_eq!(latency.predict(Operation::Put, SizeClass::Small), None);
        // Far beyond the scale that is kept.
        tokio::time::advance(HALF_LIFE * 200).await;
        latency.add(Operation::Get, SizeClass::Small, Duration::from_millis(1));
        assert!(latency.predict(Operation::Get, SizeClass::Small).unwrap().p50 < Duration::from_millis(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_counts_as_what_took_longer() {
        let latency = Latency::new();
        latency.add(Operation::Get, SizeClass::Large, Duration::from_millis(100));
        for _ in 0..10 {
            latency.add_given_up(Operation::Get, SizeClass::Large, Duration::from_millis(1));
        }
        assert!(latency.predict(Operation::Get, SizeClass::Large).unwrap().p50 > Duration::from_millis(50));
        for _ in 0..13 {
            latency.add_given_up(Operation::Get, SizeClass::Large, Duration::from_secs(3));
        }
        assert!(latency.predict(Operation::Get, SizeClass::Large).unwrap().p50 > Duration::from_secs(2));
    }

    /// Each call is given up after 40 ms: the spread is still that of the calls, and not one that ends there.
    #[tokio::test(start_paused = true)]
    async fn giving_up_does_not_make_a_host_look_quick() {
        let mut cell = Decaying::new(Instant::now());
        for round in 0..20_000u64 {
            // 1 to 100 ms, evenly; half of them with a race that ends after 40 ms.
            let (took, patient) = (Duration::from_millis(1 + round * 37 % 100), round % 2 == 0);
            match took > Duration::from_millis(40) && !patient {
                true => cell.add_given_up(Instant::now(), Duration::from_millis(40)),
                false => cell.add(Instant::now(), took),
            }
        }
        for (share, expect_ms) in [(0.3, 30.0), (0.5, 50.0), (0.9, 90.0)] {
            let got = cell.quantile(share).expect("samples").as_secs_f64() * 1e3;
            assert!((got / expect_ms - 1.0f64).abs() < 0.2, "{share}: {got} instead of {expect_ms}");
        }
    }

    #[test]
    fn a_spread_tells_chances() {
        let spread = Spread::of((1..=1000).map(Duration::from_millis)).expect("samples");
        for (ms, expect) in [(0, 0.0), (100, 0.1), (500, 0.5), (900, 0.9), (5_000, 1.0)] {
            let chance = spread.within(Duration::from_millis(ms));
            assert!((chance - expect).abs() < 0.06, "{ms} ms: {chance}");
        }
        assert!(Spread::of([]).is_none());
        let assumed = Spread::assumed(Duration::from_millis(20), Duration::from_millis(80));
        let (half, most) = (assumed.within(Duration::from_millis(20)), assumed.within(Duration::from_millis(80)));
        assert!((half - 0.5).abs() < 0.1 && most > 0.9, "{half} {most}");
    }

    #[test]
    fn buckets_cover_everything() {
        for took in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(60), Duration::MAX] {
            assert!(bucket_of(took) < BUCKETS);
        }
        assert!(end_of(BUCKETS - 1) > 100e6);
    }
}
