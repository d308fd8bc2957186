//! Uncached ranges of a large file: read from the hosts every time, with all checks on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use compat_tests::{Gateway, host_folders};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::load::{self, Outcome, Until, Want};
use crate::report::{Goal, Report, Samples};
use crate::{Plan, content, process, uncached, wait_complete};

const RANGE_BYTES: usize = 256 << 10;
/// Leaves of the default profile.
const LEAF_BYTES: usize = 1 << 20;
const CONNECTIONS: usize = 4;
const SEED: u64 = 61;
/// Classes whose body bytes all came from hosts. A reply is cold when index bytes (the pack, hash trees of pieces not
/// read before) came from there, too; how many were is printed.
pub const FROM_HOSTS: &[&str] = &["hosts", "cold"];

/// The file under test, added and complete.
pub struct Bed {
    pub data: PathBuf,
    aside: PathBuf,
    pub path: String,
    pub content: Vec<u8>,
    run: Duration,
}

/// What the hosts lack in a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    Nothing,
    /// Three of the six data pieces of every slab: each reply has to be decoded.
    DataPieces,
    /// Three of nine hosts: on average two of a slab's data pieces.
    Hosts,
}

/// One state of the hosts over all rounds.
#[derive(Default)]
struct Series {
    first_touch: Samples,
    first_touch_us: Samples,
    steady: Samples,
    server_us: Samples,
    client_us: Samples,
    latencies_ms: Vec<f64>,
    classes: [BTreeMap<String, usize>; 2],
    error: Option<String>,
}

pub fn ranges(plan: &Plan, report: &mut Report) {
    let folder = plan.folder();
    let bed = match Bed::make(plan, folder.path()) {
        Ok(bed) => bed,
        Err(error) => return report.missing("ranges", &error),
    };
    let (mut healthy, mut pieces, mut hosts, mut cold) =
        (Series::default(), Series::default(), Series::default(), Series::default());
    let mut cold_us = Samples::default();
    for round in 0..plan.rounds as u64 {
        let gateway = bed.round(round, Lost::Nothing, &mut healthy);
        match bed.page_cache_cold(&gateway, round) {
            Ok(outcome) => {
                cold.steady.push(outcome.rate());
                cold_us.push(outcome.server_us());
                cold.latencies_ms.extend(outcome.latencies_ms);
            }
            Err(error) => cold.error = Some(error),
        }
        gateway.stop();
        let moved = content::move_data_pieces(&bed.data, &bed.aside, &bed.content, 3);
        eprintln!("# round {round}: {} data pieces moved away", moved.len());
        bed.round(round, Lost::DataPieces, &mut pieces).stop();
        for (place, aside) in moved {
            std::fs::rename(aside, place).expect("one file system");
        }
        for host in &host_folders(&bed.data)[..3] {
            std::fs::rename(host, host.with_extension("gone")).expect("one file system");
        }
        bed.round(round, Lost::Hosts, &mut hosts).stop();
        for host in &host_folders(&bed.data)[..3] {
            // A gateway must not make what has lost its marker anew; if it did, that is in the way here.
            let _ = std::fs::remove_dir_all(host);
            std::fs::rename(host.with_extension("gone"), host).expect("one file system");
        }
    }
    healthy.report(report, "ranges of 256 KiB, uncached", (Goal::AtLeast(2200.0), Goal::AtLeast(1300.0)));
    let three_quarters = Goal::AtLeast(0.75 * healthy.steady.median());
    let of_first = Goal::AtLeast(0.75 * healthy.first_touch.median());
    pieces.report(report, "the same, three of six data pieces of every slab missing", (three_quarters, of_first));
    hosts.report(report, "the same, three of nine hosts gone", (Goal::None, Goal::None));
    match &cold.error {
        Some(error) => report.missing("the same, page cache dropped first", error),
        None => {
            let beside = format!("server {:.0} us a request; {}", cold_us.median(), load::quantiles(&cold.latencies_ms));
            report.row("the same, page cache dropped first, each range once", "/s", &cold.steady, Goal::None, &beside);
        }
    }
}

impl Series {
    fn report(&self, report: &mut Report, name: &str, (steady, first): (Goal, Goal)) {
        if let Some(error) = &self.error {
            return report.missing(name, error);
        }
        let beside = format!(
            "server {:.0} us, client {:.0} us a request; {}; {}",
            self.server_us.median(),
            self.client_us.median(),
            load::quantiles(&self.latencies_ms),
            load::classes(&self.classes[1])
        );
        report.row(name, "/s", &self.steady, steady, &beside);
        let beside =
            format!("fresh process; server {:.0} us a request; {}", self.first_touch_us.median(), load::classes(&self.classes[0]));
        report.row(&format!("{name}: first touch of each leaf"), "/s", &self.first_touch, first, &beside);
    }

    fn take(&mut self, (first, steady): (Outcome, Outcome)) {
        self.first_touch.push(first.rate());
        self.first_touch_us.push(first.server_us());
        self.steady.push(steady.rate());
        self.server_us.push(steady.server_us());
        self.client_us.push(steady.client_us());
        for (sum, outcome) in self.classes.iter_mut().zip([&first, &steady]) {
            for (class, count) in &outcome.classes {
                *sum.entry(class.clone()).or_default() += count;
            }
        }
        self.latencies_ms.extend(steady.latencies_ms);
    }
}

impl Bed {
    pub fn make(plan: &Plan, folder: &Path) -> Result<Bed, String> {
        let length = plan.size(1 << 30, 60 << 20);
        let source = folder.join("large.bin");
        content::write_file(&source, SEED, length);
        let data = folder.join("data");
        let gateway = Gateway::start(&data);
        let added = gateway.add(&source, &[])?;
        wait_complete(&gateway)?;
        gateway.stop();
        std::fs::remove_file(&source).map_err(|error| error.to_string())?;
        let path = format!("/ipfs/{}", added["cid"].as_str().ok_or("add gave no CID")?);
        let bed = Bed {
            data,
            aside: folder.join("aside"),
            path,
            content: content::bytes(SEED, length),
            run: plan.size(Duration::from_secs(3), Duration::from_millis(500)),
        };
        // Sectors are written past the page cache: this pass fills it.
        let gateway = uncached(&bed.data);
        bed.touch_leaves(&gateway, 0)?;
        bed.each_range_once(&gateway, 0)?;
        gateway.stop();
        Ok(bed)
    }

    /// Starts a process, touches every leaf for the first time, then asks for random ranges. Leaves it running.
    fn round(&self, round: u64, lost: Lost, series: &mut Series) -> Gateway {
        let gateway = uncached(&self.data);
        let measured = self.touch_leaves(&gateway, round).and_then(|first| Ok((first, self.random_ranges(&gateway, round)?)));
        match measured {
            Ok(measured) => series.take(measured),
            Err(error) => {
                let lost = ["nothing", "data pieces", "hosts"][lost as usize];
                eprintln!("# {lost} lost: {error}\n{}", gateway.log());
                series.error = Some(error);
            }
        }
        gateway
    }

    /// One range in each leaf, in random order.
    pub fn touch_leaves(&self, gateway: &Gateway, round: u64) -> Result<Outcome, String> {
        let mut random = ChaCha8Rng::seed_from_u64(round);
        let mut starts: Vec<usize> = (0..self.content.len() / LEAF_BYTES)
            .map(|leaf| leaf * LEAF_BYTES + random.random_range(0..LEAF_BYTES / RANGE_BYTES) * RANGE_BYTES)
            .collect();
        starts.shuffle(&mut random);
        self.ask(gateway, Until::Count(starts.len()), |number| starts[number])?.only(FROM_HOSTS)
    }

    pub fn random_ranges(&self, gateway: &Gateway, round: u64) -> Result<Outcome, String> {
        load::run(gateway, CONNECTIONS, Until::Elapsed(self.run), |number| self.range(number, round))?.only(FROM_HOSTS)
    }

    /// The random range number `number` of a round.
    pub fn range(&self, number: usize, round: u64) -> Want<'_> {
        let mut random = ChaCha8Rng::seed_from_u64((1000 + round) << 32 | number as u64);
        self.want(random.random_range(0..self.content.len() / RANGE_BYTES) * RANGE_BYTES)
    }

    fn want(&self, start: usize) -> Want<'_> {
        let range: Range<usize> = start..start + RANGE_BYTES;
        Want { path: &self.path, bytes: &self.content[range.clone()], range: Some(range) }
    }

    fn each_range_once(&self, gateway: &Gateway, round: u64) -> Result<Outcome, String> {
        let mut starts: Vec<usize> = (0..self.content.len() / RANGE_BYTES).map(|number| number * RANGE_BYTES).collect();
        starts.shuffle(&mut ChaCha8Rng::seed_from_u64(2000 + round));
        self.ask(gateway, Until::Count(starts.len()), |number| starts[number])?.only(FROM_HOSTS)
    }

    fn page_cache_cold(&self, gateway: &Gateway, round: u64) -> Result<Outcome, String> {
        process::drop_page_cache().map_err(|error| format!("the page cache cannot be dropped: {error}"))?;
        self.each_range_once(gateway, round)
    }

    fn ask(&self, gateway: &Gateway, until: Until, start: impl Fn(usize) -> usize) -> Result<Outcome, String> {
        load::run(gateway, CONNECTIONS, until, |number| self.want(start(number)))
    }
}
