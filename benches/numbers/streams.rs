//! Uncached reads as many visitors make them: sent when they want to, whether others are answered or not; and as one
//! visitor does who wants a whole file.

use std::time::Duration;

use compat_tests::Gateway;

use crate::load::{self, Outcome};
use crate::ranges::{Bed, FROM_HOSTS};
use crate::report::{Goal, Report, Samples, number, quantile};
use crate::{Plan, bound, process, uncached};

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

/// What is asked of four waiting clients, in reads a second (`ranges` says what they reach).
const RATE_ASKED: f64 = 2200.0;

/// Each round finds out what the machine gives just now, and sends a share of that; and the same share of what is asked. Both
/// also to a server that only uses as much of the processors: no scheduling of ours could make the tail shorter than its.
fn open_loop(plan: &Plan, report: &mut Report, bed: &Bed) -> Result<(), String> {
    let mut closed = Samples::default();
    let [mut of_reached, mut of_asked] = <[Pair; 2]>::default();
    for round in 0..plan.rounds as u64 {
        let gateway = uncached(&bed.data);
        bed.touch_leaves(&gateway, round)?;
        let rate = bed.random_ranges(&gateway, round)?.rate();
        closed.push(rate);
        of_reached.at(LOAD * rate, plan, &gateway, bed, round)?;
        of_asked.at(LOAD * RATE_ASKED, plan, &gateway, bed, round)?;
        gateway.stop();
    }
    of_reached.tell(&format!("sent at 60 % of the rate that four waiting clients reach ({})", closed.show()), report);
    of_asked.tell(&format!("sent at 60 % of the {RATE_ASKED} asked of them"), report);
    Ok(())
}

/// The same load on the gateway and on the bound.
#[derive(Default)]
struct Pair {
    gateway: Sent,
    bound: Sent,
}

impl Pair {
    fn at(&mut self, rate: f64, plan: &Plan, gateway: &Gateway, bed: &Bed, round: u64) -> Result<(), String> {
        let reads = plan.size(READS, 2000).div_ceil(plan.rounds);
        let send = |address, server| {
            load::open_loop(address, server, rate, reads, SEED + round, |number| bed.range(number, round))?.only(FROM_HOSTS)
        };
        let outcome = send(load::address(gateway), Some(gateway.pid()))?;
        let each = Duration::from_secs_f64(outcome.server_us() * 1e-6);
        self.gateway.take(outcome);
        let outcome = bound::serve(&bed.content, each, |address| send(address, None));
        self.bound.take(outcome.map_err(|error| format!("the bound: {error}"))??);
        Ok(())
    }

    fn tell(mut self, how: &str, report: &mut Report) {
        let name = format!("ranges of 256 KiB, uncached, {how}: p999 over p50");
        let server_us = self.gateway.server_us.median();
        self.gateway.tell(&name, Goal::AtMost(6.0), &format!("server {server_us:.0} us a request; "), report);
        let name = "the same load on a thread for each processor that only uses so much of it and sends the bytes: p999 over p50";
        self.bound.tell(name, Goal::None, "", report);
        let [gateway, bound] = [&mut self.gateway, &mut self.bound].map(|sent| quantile(&mut sent.latencies_ms, 0.999));
        report.row("p999 over that one's p999", "x", &[gateway / bound].into_iter().collect(), Goal::None, "");
    }
}

/// Reads sent whatever became of those before them.
#[derive(Default)]
struct Sent {
    rates: Samples,
    server_us: Samples,
    latencies_ms: Vec<f64>,
    is_client_late: bool,
}

impl Sent {
    fn take(&mut self, outcome: Outcome) {
        self.rates.push(outcome.rate());
        self.server_us.push(outcome.server_us());
        self.is_client_late |= !outcome.is_client_first;
        self.latencies_ms.extend(outcome.latencies_ms);
    }

    fn tell(&mut self, name: &str, goal: Goal, server: &str, report: &mut Report) {
        let [p50, p999] = [0.5, 0.999].map(|share| quantile(&mut self.latencies_ms, share));
        let client = if self.is_client_late { "shares the processors with" } else { "runs before" };
        let beside = format!(
            "{}/s by a client that {client} the server; {server}{}",
            self.rates.show(),
            load::quantiles(&self.latencies_ms)
        );
        report.row(name, "x", &[p999 / p50].into_iter().collect(), goal, &beside);
    }
}
