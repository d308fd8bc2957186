//! Uncached reads as many visitors make them: sent when they want to, whether others are answered or not; and as one
//! visitor does who wants a whole file.

use crate::load::{self, Outcome};
use crate::ranges::{Bed, FROM_HOSTS};
use crate::report::{Goal, Report, Samples, number, quantile};
use crate::{Plan, process, uncached};

/// Part of the rate that four waiting clients reach.
const LOAD: f64 = 0.6;
/// Fewer say little about one in a thousand.
const READS: usize = 100_000;
const SEED: u64 = 71;

pub fn streams(plan: &Plan, report: &mut Report) {
    let folder = plan.folder();
    let bed = match Bed::make(plan, folder.path()) {
        Ok(bed) => bed,
        Err(error) => return report.missing("streams", &error),
    };
    if let Err(error) = one_stream(plan, report, &bed) {
        report.missing("one stream", &error);
    }
    if let Err(error) = open_loop(plan, report, &bed) {
        report.missing("open loop", &error);
    }
}

fn one_stream(plan: &Plan, report: &mut Report, bed: &Bed) -> Result<(), String> {
    let (mut rates, mut core_seconds, mut peak) = <(Samples, Samples, Samples)>::default();
    for _ in 0..plan.rounds {
        // A fresh process, which has seen no hash tree.
        let gateway = uncached(&bed.data);
        let outcome = load::stream(&gateway, &bed.path, &bed.content)?.only(FROM_HOSTS)?;
        let gigabytes = bed.content.len() as f64 / 1e9;
        rates.push(1e3 * gigabytes / outcome.seconds);
        core_seconds.push(outcome.server_cpu_seconds / gigabytes);
        peak.push(process::peak_mib(gateway.pid()));
        gateway.stop();
    }
    let beside = format!("server's core-seconds a GB: {}; its peak {} MiB", core_seconds.show(), number(peak.max()));
    report.row("one stream of 1 GiB, uncached", "MB/s", &rates, Goal::AtLeast(600.0), &beside);
    Ok(())
}

/// Each round finds out what the machine gives just now, and sends a share of that.
fn open_loop(plan: &Plan, report: &mut Report, bed: &Bed) -> Result<(), String> {
    let reads = plan.size(READS, 2000).div_ceil(plan.rounds);
    let (mut sent, mut closed) = <(Samples, Samples)>::default();
    let mut latencies_ms = Vec::new();
    let mut server_us = Samples::default();
    let mut is_client_first = true;
    for round in 0..plan.rounds as u64 {
        let gateway = uncached(&bed.data);
        bed.touch_leaves(&gateway, round)?;
        let rate = bed.random_ranges(&gateway, round)?.rate();
        let outcome: Outcome =
            load::open_loop(&gateway, LOAD * rate, reads, SEED + round, |number| bed.range(number, round))?.only(FROM_HOSTS)?;
        closed.push(rate);
        sent.push(outcome.rate());
        server_us.push(outcome.server_us());
        is_client_first &= outcome.is_client_first;
        latencies_ms.extend(outcome.latencies_ms);
        gateway.stop();
    }
    let [p50, p999] = [0.5, 0.999].map(|share| quantile(&mut latencies_ms, share));
    let beside = format!(
        "{} sent of {} that four waiting clients reach, by a client {}; server {:.0} us a request; {}",
        sent.show(),
        closed.show(),
        if is_client_first { "that runs before the server" } else { "that shares the processors with the server" },
        server_us.median(),
        load::quantiles(&latencies_ms)
    );
    let name = "ranges of 256 KiB, uncached, sent at 60 % of the rate: p999 over p50";
    report.row(name, "x", &[p999 / p50].into_iter().collect(), Goal::AtMost(6.0), &beside);
    Ok(())
}
