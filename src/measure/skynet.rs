//! The distributions behind a Skynet portal's `/skynet/stats` (`skynet.md` 11): its buckets, and its forgetting.
//!
//! 400 buckets: 64 of 4 ms, then 7 groups of 48 whose step is four times that of the one before. Every minute each count
//! loses a fifteenth of a half-life, so that what was a quarter of an hour ago counts half.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Endpoint;

const BUCKETS: usize = FIRST_BUCKETS + GROUPS * GROUP_BUCKETS;
const FIRST_BUCKETS: usize = 64;
const FIRST_STEP_MS: u64 = 4;
const GROUPS: usize = 7;
const GROUP_BUCKETS: usize = 48;
/// Counts are made smaller this often.
const DECAY_EVERY: Duration = Duration::from_secs(60);
/// Of them in a half-life of a quarter of an hour.
const DECAYS_IN_HALF_LIFE: f64 = 15.0;
/// Less than this of one sample is nothing: an idle gateway shows no quantiles of long ago.
const NOTHING: f64 = 0.01;

/// What is tracked, in the words of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked {
    BaseSectorUpload,
    ChunkUpload,
    RegistryRead,
    RegistryWrite,
    StreamBufferRead,
}

impl Tracked {
    pub const ALL: [Tracked; 5] =
        [Tracked::BaseSectorUpload, Tracked::ChunkUpload, Tracked::RegistryRead, Tracked::RegistryWrite, Tracked::StreamBufferRead];

    /// Its field in the answer.
    pub fn field(self) -> &'static str {
        match self {
            Tracked::BaseSectorUpload => "basesectorupload",
            Tracked::ChunkUpload => "chunkupload",
            Tracked::RegistryRead => "registryread",
            Tracked::RegistryWrite => "registrywrite",
            Tracked::StreamBufferRead => "streambufferread",
        }
    }

    fn of(endpoint: Endpoint) -> Option<Tracked> {
        match endpoint {
            Endpoint::BaseUpload => Some(Tracked::BaseSectorUpload),
            Endpoint::SlabUpload => Some(Tracked::ChunkUpload),
            Endpoint::RecordRead => Some(Tracked::RegistryRead),
            Endpoint::RecordWrite => Some(Tracked::RegistryWrite),
            Endpoint::DownloadFirstByte => Some(Tracked::StreamBufferRead),
            Endpoint::DownloadWhole | Endpoint::NameResolution => None,
        }
    }
}

/// What the last quarter of an hour was like. The quantiles are ends of buckets: at most so long.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LastQuarter {
    pub datapoints: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub p9999_ms: f64,
}

struct Distribution {
    counts: Vec<f64>,
    decayed_at: Instant,
}

impl Distribution {
    fn new(now: Instant) -> Distribution {
        Distribution { counts: vec![0.0; BUCKETS], decayed_at: now }
    }

    fn decay(&mut self, now: Instant) {
        let steps = now.saturating_duration_since(self.decayed_at).as_secs() / DECAY_EVERY.as_secs();
        if steps == 0 {
            return;
        }
        self.decayed_at += DECAY_EVERY * u32::try_from(steps).unwrap_or(u32::MAX);
        let left = 0.5f64.powf(steps as f64 / DECAYS_IN_HALF_LIFE);
        self.counts.iter_mut().for_each(|count| *count *= left);
    }

    fn observe(&mut self, took: Duration, now: Instant) {
        self.decay(now);
        self.counts[bucket_of(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))] += 1.0;
    }

    fn summary(&mut self, now: Instant) -> LastQuarter {
        self.decay(now);
        let total: f64 = self.counts.iter().sum();
        if total < NOTHING {
            return LastQuarter::default();
        }
        let at = |quantile: f64| {
            let mut seen = 0.0;
            let bucket = self.counts.iter().position(|count| {
                seen += count;
                // A hair less: sums of fractions are not exact.
                seen >= total * quantile * (1.0 - 1e-12)
            });
            lower_bound_ms(bucket.unwrap_or(BUCKETS - 1) + 1) as f64
        };
        LastQuarter { datapoints: total, p99_ms: at(0.99), p999_ms: at(0.999), p9999_ms: at(0.9999) }
    }
}

/// Where a bucket begins, which is where the one before it ends.
fn lower_bound_ms(bucket: usize) -> u64 {
    match bucket.checked_sub(FIRST_BUCKETS) {
        None => bucket as u64 * FIRST_STEP_MS,
        Some(behind) => {
            let (group, within) = (behind / GROUP_BUCKETS, behind % GROUP_BUCKETS);
            let start = (FIRST_BUCKETS as u64 * FIRST_STEP_MS) << (2 * group);
            start + within as u64 * (FIRST_STEP_MS << (2 * (group + 1)))
        }
    }
}

/// The last bucket takes all that is longer.
fn bucket_of(ms: u64) -> usize {
    let first_end = FIRST_BUCKETS as u64 * FIRST_STEP_MS;
    if ms < first_end {
        return (ms / FIRST_STEP_MS) as usize;
    }
    // Each group ends at four times its start.
    let group = (ms / first_end).ilog2() as usize / 2;
    if group >= GROUPS {
        return BUCKETS - 1;
    }
    let within = (ms - (first_end << (2 * group))) / (FIRST_STEP_MS << (2 * (group + 1)));
    FIRST_BUCKETS + group * GROUP_BUCKETS + within as usize
}

/// One distribution for each of [`Tracked::ALL`].
pub(super) struct Trackers([Mutex<Distribution>; Tracked::ALL.len()]);

impl Default for Trackers {
    fn default() -> Trackers {
        let now = Instant::now();
        Trackers(std::array::from_fn(|_| Mutex::new(Distribution::new(now))))
    }
}

impl Trackers {
    pub fn observe(&self, endpoint: Endpoint, took: Duration) {
        if let Some(tracked) = Tracked::of(endpoint) {
            self.of(tracked).observe(took, Instant::now());
        }
    }

    pub fn summary(&self, tracked: Tracked) -> LastQuarter {
        self.of(tracked).summary(Instant::now())
    }

    fn of(&self, tracked: Tracked) -> std::sync::MutexGuard<'_, Distribution> {
        self.0[tracked as usize].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `distribution_bucket_lower_bound_ms` of `skynet-vectors/misc.json`, which the black-box tests compare whole.
    #[test]
    fn buckets() {
        for (bucket, expect) in
            [(0, 0), (1, 4), (63, 252), (64, 256), (65, 272), (111, 1008), (112, 1024), (113, 1088), (160, 4096), (399, 4_128_768)]
        {
            assert_eq!(lower_bound_ms(bucket), expect, "{bucket}");
        }
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(lower_bound_ms(bucket)), bucket);
            assert_eq!(bucket_of(lower_bound_ms(bucket + 1) - 1), bucket);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_last_quarter_of_an_hour() {
        let start = Instant::now();
        let mut distribution = Distribution::new(start);
        assert_eq!(distribution.summary(start), LastQuarter::default());
        for ms in 0..10_000 {
            // 99 % within 100 ms, one in a hundred 5 s.
            let took = if ms % 100 == 0 { 5000 } else { ms % 100 };
            distribution.observe(Duration::from_millis(took), start);
        }
        let summary = distribution.summary(start + Duration::from_secs(59));
        assert_eq!((summary.datapoints, summary.p99_ms, summary.p999_ms), (10_000.0, 100.0, 5120.0));
        let later = distribution.summary(start + Duration::from_secs(900));
        assert!((later.datapoints - 5000.0).abs() < 0.01, "{}", later.datapoints);
        assert_eq!((later.p99_ms, later.p9999_ms), (100.0, 5120.0));
        assert_eq!(distribution.summary(start + Duration::from_secs(86_400)), LastQuarter::default());
    }
}
