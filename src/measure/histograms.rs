//! HDR histograms per endpoint family and class, and the two texts made from them: JSON and Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Class;
use super::skynet::{LastQuarter, Tracked, Trackers};

/// Endpoint families whose latency is published (`design.md` 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Time from the request head to the first body byte of a download.
    DownloadFirstByte,
    /// Time from the request head to the last body byte of a download.
    DownloadWhole,
    BaseUpload,
    SlabUpload,
    RecordRead,
    RecordWrite,
    NameResolution,
}

impl Endpoint {
    fn as_str(self) -> &'static str {
        match self {
            Endpoint::DownloadFirstByte => "download_first_byte",
            Endpoint::DownloadWhole => "download_whole",
            Endpoint::BaseUpload => "base_upload",
            Endpoint::SlabUpload => "slab_upload",
            Endpoint::RecordRead => "record_read",
            Endpoint::RecordWrite => "record_write",
            Endpoint::NameResolution => "name_resolution",
        }
    }
}

/// Longest time told apart, microseconds: an hour. Longer ones count as an hour.
const LONGEST_US: u64 = 3_600_000_000;
/// Three digits keep p999 within 0.1 %; a histogram then takes about 180 KiB, made when first used.
const SIGNIFICANT_DIGITS: u8 = 3;

type Key = (Endpoint, Class);

/// All histograms of the process. Cheap to share behind an `Arc`; one short lock a sample.
pub struct Measures {
    histograms: Mutex<BTreeMap<Key, Histogram<u32>>>,
    skynet: Trackers,
    started: Instant,
}

impl Default for Measures {
    fn default() -> Measures {
        Measures { histograms: Mutex::default(), skynet: Trackers::default(), started: Instant::now() }
    }
}

/// One row of the published table, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub endpoint: Endpoint,
    pub class: &'static str,
    pub count: u64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Measures {
    pub fn observe(&self, endpoint: Endpoint, class: Class, took: Duration) {
        self.skynet.observe(endpoint, took);
        let us = u64::try_from(took.as_micros()).unwrap_or(LONGEST_US).clamp(1, LONGEST_US);
        let mut histograms = self.histograms.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        histograms.entry((endpoint, class)).or_insert_with(new_histogram).saturating_record(us);
    }

    /// What a Skynet portal tells of the last quarter of an hour.
    pub fn last_quarter(&self, tracked: Tracked) -> LastQuarter {
        self.skynet.summary(tracked)
    }

    /// Since the start of the process.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// A row for every endpoint and class that has at least one sample.
    pub fn summaries(&self) -> Vec<Summary> {
        let histograms = self.histograms.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        histograms.iter().map(|(key, histogram)| summary(*key, histogram)).collect()
    }

    /// Prometheus text: a summary per endpoint and class, in seconds.
    pub fn prometheus(&self) -> String {
        let mut text = String::from(
            "# HELP skygate_latency_seconds Latency by endpoint and by where the body bytes came from.\n\
             # TYPE skygate_latency_seconds summary\n",
        );
        for row in self.summaries() {
            let labels = format!("endpoint=\"{}\",class=\"{}\"", row.endpoint.as_str(), row.class);
            let quantiles =
                [("0.5", row.p50_ms), ("0.9", row.p90_ms), ("0.99", row.p99_ms), ("0.999", row.p999_ms), ("1", row.max_ms)];
            for (quantile, ms) in quantiles {
                let _ = writeln!(text, "skygate_latency_seconds{{{labels},quantile=\"{quantile}\"}} {}", ms / 1000.0);
            }
            let _ = writeln!(text, "skygate_latency_seconds_count{{{labels}}} {}", row.count);
        }
        text
    }
}

fn new_histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, LONGEST_US, SIGNIFICANT_DIGITS).expect("constant bounds are valid")
}

fn summary((endpoint, class): Key, histogram: &Histogram<u32>) -> Summary {
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Summary {
        endpoint,
        class: class.as_str(),
        count: histogram.len(),
        p50_ms: at(0.5),
        p90_ms: at(0.9),
        p99_ms: at(0.99),
        p999_ms: at(0.999),
        max_ms: histogram.max() as f64 / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_kept_apart() {
        let measures = Measures::default();
        for ms in 1..=1000 {
            measures.observe(Endpoint::DownloadWhole, Class::Hosts, Duration::from_millis(ms));
        }
        measures.observe(Endpoint::DownloadWhole, Class::Memory, Duration::from_micros(40));
        let rows = measures.summaries();
        assert_eq!(rows.len(), 2);
        let hosts = rows.iter().find(|row| row.class == "hosts").expect("hosts row");
        assert_eq!(hosts.count, 1000);
        assert!((hosts.p50_ms - 500.0).abs() < 2.0, "{}", hosts.p50_ms);
        assert!((hosts.p999_ms - 999.0).abs() < 2.0, "{}", hosts.p999_ms);
        let memory = rows.iter().find(|row| row.class == "memory").expect("memory row");
        assert!(memory.max_ms < 0.1);
        assert!(measures.prometheus().contains("endpoint=\"download_whole\",class=\"hosts\",quantile=\"0.999\""));
    }

    #[test]
    fn a_day_counts_as_an_hour() {
        let measures = Measures::default();
        measures.observe(Endpoint::RecordRead, Class::Hosts, Duration::from_secs(86_400));
        assert!(measures.summaries()[0].max_ms <= 3_610_000.0);
    }
}
