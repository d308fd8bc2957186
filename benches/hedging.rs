//! When to ask for spares, and how many: policies compared on the same seeded traces, without a clock.
//!
//! `cargo bench --bench hedging [-- --reads N] [--svg FILE]` prints the tables of `docs/hedging.md`; `--svg` draws the frontier.
//!
//! The model: each host has a median of 20 ms x log-normal(0, 0.4), each answer that x log-normal(0, 0.3), and one answer in a
//! hundred is 5 to 50 times slower. Answers are drawn before the policy acts and from a seed that it cannot see; what a read
//! learns are the times of the requests it made, no more. The bound is computed by code of its own: it asks every host and takes
//! the `need`-th answer. A request counts as soon as it is sent, whether or not its answer was waited for.
//!
//! The policy named `reckoned` is the program's own code (`renter::policy`, `renter::host::Latency`).

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skygate::renter::host::{Latency, Operation, SizeClass, Spread};
use skygate::renter::policy;

/// Reads of each figure, unless said otherwise. The first [`WARM_UP`] teach, and are not counted.
const READS: usize = 100_000;
const WARM_UP: usize = 2_000;
const SEEDS: [u64; 3] = [1, 2, 3];
/// Nobody waits longer than the program's own reads do.
const READ_MAX_MS: f64 = 30_000.0;
/// One read in so many asks one host more: the one that was not asked for longest.
const EXPLORE_EVERY: u32 = 100;
/// What the budget of spares holds, in requests: a slab's worth of pieces.
const BURST: f64 = 40.0;

/// One host of the model.
#[derive(Clone)]
struct Host {
    median_ms: f64,
    more_ms: f64,
    dead: bool,
}

/// A set of hosts, and what a read wants of them.
struct World {
    name: &'static str,
    hosts: usize,
    need: usize,
    slow: usize,
    dead: usize,
}

const WORLDS: [World; 3] = [
    World { name: "9 hosts, need 6, all well", hosts: 9, need: 6, slow: 0, dead: 0 },
    World { name: "30 hosts, need 10, two slow by 1 s, one dead", hosts: 30, need: 10, slow: 2, dead: 1 },
    World { name: "9 hosts, need 6, two slow by 1 s, one dead: exactly 6 good", hosts: 9, need: 6, slow: 2, dead: 1 },
];

#[derive(Clone, Copy)]
enum Policy {
    /// Nobody is asked twice.
    NeedOnly,
    /// So many more from the start.
    More(usize),
    /// A spare for each request later than its host's own p95.
    OwnP95,
    /// One deadline: the latest p90 of the hosts asked, times this; then missing + 1.
    Factor(f64),
    /// One deadline, reckoned from all spreads at this chance; then missing + this.
    Chance(f64, usize),
    /// The program's own: the chance follows from the budget.
    Reckoned,
}

fn policies() -> Vec<(String, Policy, f64)> {
    let mut all = vec![
        ("need only".to_owned(), Policy::NeedOnly, 0.05),
        ("2 more from the start".to_owned(), Policy::More(2), 1.0),
        ("3 more from the start".to_owned(), Policy::More(3), 1.0),
        ("a spare at each host's p95".to_owned(), Policy::OwnP95, 0.05),
    ];
    all.extend([1.0, 1.25, 1.5].map(|factor| (format!("deadline at {factor} x the latest p90"), Policy::Factor(factor), 0.05)));
    for chance in [0.70, 0.80, 0.88, 0.92] {
        all.extend(
            [1, 2].map(|more| (format!("deadline at chance {chance}, missing + {more}"), Policy::Chance(chance, more), 0.05)),
        );
    }
    all.push(("reckoned".to_owned(), Policy::Reckoned, 0.05));
    all
}

fn normal(random: &mut ChaCha8Rng) -> f64 {
    (-2.0 * random.random_range(f64::MIN_POSITIVE..1.0).ln()).sqrt() * (std::f64::consts::TAU * random.random_range(0.0..1.0)).cos()
}

fn answer_ms(host: &Host, random: &mut ChaCha8Rng) -> f64 {
    let usual = host.median_ms * (0.3 * normal(random)).exp();
    let slow = if random.random_bool(0.01) { random.random_range(5.0..50.0) } else { 1.0 };
    if host.dead { f64::INFINITY } else { usual * slow + host.more_ms }
}

fn hosts_of(world: &World, seed: u64) -> Vec<Host> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut hosts: Vec<Host> =
        (0..world.hosts).map(|_| Host { median_ms: 20.0 * (0.4 * normal(&mut random)).exp(), more_ms: 0.0, dead: false }).collect();
    let mut order: Vec<usize> = (0..world.hosts).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.random_range(0..=last));
    }
    order[..world.slow].iter().for_each(|host| hosts[*host].more_ms = 1000.0);
    order[world.slow..world.slow + world.dead].iter().for_each(|host| hosts[*host].dead = true);
    hosts
}

/// The clairvoyant: all are asked, the `need`-th answer counts.
fn bound(world: &World, hosts: &[Host], seed: u64, reads: usize) -> Quantiles {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xb0b0);
    let times = (0..reads).map(|_| {
        let mut answers: Vec<f64> = hosts.iter().map(|host| answer_ms(host, &mut random)).collect();
        answers.sort_by(f64::total_cmp);
        answers[world.need - 1]
    });
    Quantiles::of(times.collect())
}

#[derive(Clone, Copy)]
struct Quantiles {
    p50: f64,
    p99: f64,
    p999: f64,
}

impl Quantiles {
    fn of(mut times: Vec<f64>) -> Quantiles {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
        Quantiles { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

/// What the reads of a run know.
struct Learnt {
    latency: Vec<Latency>,
    /// Reads since each host was asked.
    idle: Vec<u32>,
    budget: f64,
    reads: u32,
}

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms.min(READ_MAX_MS) / 1000.0)
}

impl Learnt {
    fn spread(&self, host: usize) -> Spread {
        let learnt = self.latency[host].spread(Operation::Get, SizeClass::Small);
        learnt.unwrap_or_else(|| Spread::assumed(Duration::from_millis(20), Duration::from_millis(80)))
    }

    /// (p50, p90, p95) in milliseconds.
    fn quantiles(&self, host: usize) -> (f64, f64, f64) {
        match self.latency[host].predict(Operation::Get, SizeClass::Small) {
            Some(known) => {
                let (p50, p95) = (known.p50.as_secs_f64() * 1e3, known.p95.as_secs_f64() * 1e3);
                (p50, p50 * (p95 / p50).powf(0.78), p95)
            }
            None => (20.0, 60.0, 80.0),
        }
    }
}

/// One read under way: who was asked when, and what comes.
struct Read<'a> {
    answers: &'a [f64],
    need: usize,
    asked: Vec<(usize, f64)>,
    waiting: Vec<usize>,
}

impl Read<'_> {
    fn end(&self) -> f64 {
        let mut ends: Vec<f64> = self.asked.iter().map(|(host, at)| at + self.answers[*host]).collect();
        ends.sort_by(f64::total_cmp);
        ends[self.need - 1]
    }

    fn have(&self, now: f64) -> usize {
        self.asked.iter().filter(|(host, at)| at + self.answers[*host] <= now).count()
    }

    fn ask(&mut self, now: f64) {
        if !self.waiting.is_empty() {
            let host = self.waiting.remove(0);
            self.asked.push((host, now));
        }
    }

    /// Spares at a deadline and again after waits that double, as the program does it.
    fn hedge(&mut self, first: f64, more: usize, budget: &mut f64) {
        let (mut now, mut wait) = (first, first);
        while self.end() > now && now < READ_MAX_MS && !self.waiting.is_empty() {
            for _ in 0..self.need - self.have(now) + more {
                if *budget >= 1.0 || now >= 500.0 {
                    *budget -= 1.0;
                    self.ask(now);
                }
            }
            wait *= 2.0;
            now += wait;
        }
    }
}

/// One read: how long it took, and how many requests it cost.
fn read(learnt: &mut Learnt, answers: &[f64], need: usize, policy: Policy, share: f64) -> (f64, usize) {
    let mut order: Vec<usize> = (0..answers.len()).collect();
    let quantiles: Vec<(f64, f64, f64)> = order.iter().map(|host| learnt.quantiles(*host)).collect();
    order.sort_by(|one, other| quantiles[*one].0.total_cmp(&quantiles[*other].0));
    learnt.reads += 1;
    learnt.budget = (learnt.budget + share * need as f64).min(BURST);
    let more = if let Policy::More(more) = policy { more } else { 0 };
    let start = (need + more).min(order.len());
    let mut read =
        Read { answers, need, asked: order[..start].iter().map(|host| (*host, 0.0)).collect(), waiting: order[start..].to_vec() };
    if learnt.reads.is_multiple_of(EXPLORE_EVERY)
        && let Some(at) = (0..read.waiting.len()).max_by_key(|at| learnt.idle[read.waiting[*at]])
    {
        let host = read.waiting.remove(at);
        read.asked.push((host, 0.0));
    }
    let spreads = || read.asked[..start].iter().map(|(host, _)| learnt.spread(*host)).collect::<Vec<Spread>>();
    let at_chance = |chance: f64| policy::deadline(&spreads(), chance, Duration::ZERO).as_secs_f64() * 1e3;
    match policy {
        Policy::NeedOnly | Policy::More(_) => {}
        Policy::OwnP95 => {
            let mut late: Vec<(f64, usize)> = read.asked.iter().map(|(host, _)| (quantiles[*host].2, *host)).collect();
            late.sort_by(|one, other| one.0.total_cmp(&other.0));
            for (at, host) in late {
                if answers[host] > at && read.end() > at && learnt.budget >= 1.0 {
                    learnt.budget -= 1.0;
                    read.ask(at);
                }
            }
        }
        Policy::Factor(factor) => {
            let latest = read.asked.iter().map(|(host, _)| quantiles[*host].1).fold(0.0, f64::max);
            read.hedge(latest * factor, 1, &mut learnt.budget);
        }
        Policy::Chance(chance, more) => {
            let at = at_chance(chance);
            read.hedge(at, more, &mut learnt.budget);
        }
        Policy::Reckoned => {
            let at = at_chance(policy::in_time(need));
            read.hedge(at, policy::SPARES_MORE, &mut learnt.budget);
        }
    }
    // Whoever has not answered by the end of a read is replaced then.
    while read.end() > READ_MAX_MS && !read.waiting.is_empty() {
        read.ask(READ_MAX_MS / 2.0);
    }
    let end = read.end().min(READ_MAX_MS);
    learn(learnt, &read, end);
    (end, read.asked.iter().filter(|(_, at)| *at <= end).count())
}

/// Answers that came are known; of those given up it is known that they took longer.
fn learn(learnt: &mut Learnt, read: &Read<'_>, end: f64) {
    learnt.idle.iter_mut().for_each(|idle| *idle += 1);
    for (host, at) in &read.asked {
        learnt.idle[*host] = 0;
        let latency = &learnt.latency[*host];
        match read.answers[*host] {
            took if at + took <= end => latency.add(Operation::Get, SizeClass::Small, ms(took)),
            _ => latency.add_given_up(Operation::Get, SizeClass::Small, ms(end - at)),
        }
    }
}

/// A policy's figures in one world of one seed.
struct Figures {
    time: Quantiles,
    /// Requests beyond what was needed, as a share of those.
    extra: f64,
}

fn run(world: &World, hosts: &[Host], seed: u64, reads: usize, policy: Policy, share: f64) -> Figures {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let latency = hosts.iter().map(|_| Latency::new()).collect();
    let mut learnt = Learnt { latency, idle: vec![0; hosts.len()], budget: BURST, reads: 0 };
    let (mut times, mut requests) = (Vec::with_capacity(reads), 0);
    for index in 0..reads + WARM_UP {
        let answers: Vec<f64> = hosts.iter().map(|host| answer_ms(host, &mut random)).collect();
        let (took, asked) = read(&mut learnt, &answers, world.need, policy, share);
        if index >= WARM_UP {
            times.push(took);
            requests += asked;
        }
    }
    Figures { time: Quantiles::of(times), extra: requests as f64 / (reads * world.need) as f64 - 1.0 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value_of = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    let reads = value_of("--reads").map_or(READS, |text| text.parse().expect("--reads takes a number"));
    let mut frontier: BTreeMap<&str, Vec<(String, f64, f64)>> = BTreeMap::new();
    for world in &WORLDS {
        println!("\n### {}\n", world.name);
        println!("Medians of {} seeds, {reads} reads each; milliseconds.\n", SEEDS.len());
        println!(
            "| policy | extra | p50 | p99 | p999 | p999 / p50 | p50 / bound's | p999 / bound's |\n|---|---|---|---|---|---|---|---|"
        );
        let worlds: Vec<(u64, Vec<Host>)> = SEEDS.map(|seed| (seed, hosts_of(world, seed))).to_vec();
        let bounds: Vec<Quantiles> = worlds.iter().map(|(seed, hosts)| bound(world, hosts, *seed, reads)).collect();
        let of = |get: fn(&Quantiles) -> f64| median(bounds.iter().map(get).collect());
        println!("| bound | | {:.1} | {:.1} | {:.1} | | | |", of(|q| q.p50), of(|q| q.p99), of(|q| q.p999));
        for (name, policy, share) in policies() {
            let figures: Vec<Figures> = worlds.iter().map(|(seed, hosts)| run(world, hosts, *seed, reads, policy, share)).collect();
            let of = |get: &dyn Fn(&Figures, &Quantiles) -> f64| {
                median(figures.iter().zip(&bounds).map(|(figures, bound)| get(figures, bound)).collect())
            };
            let extra = 100.0 * of(&|f, _| f.extra);
            let ratio = of(&|f, b| f.time.p999 / b.p999);
            println!(
                "| {name} | {extra:.1} % | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {ratio:.2} |",
                of(&|f, _| f.time.p50),
                of(&|f, _| f.time.p99),
                of(&|f, _| f.time.p999),
                of(&|f, _| f.time.p999 / f.time.p50),
                of(&|f, b| f.time.p50 / b.p50)
            );
            frontier.entry(world.name).or_default().push((name, extra, ratio));
        }
    }
    if let Some(file) = value_of("--svg") {
        std::fs::write(&file, plot(&frontier)).expect("the plot can be written");
    }
}

/// Extra requests against p999 over the bound's, which is drawn on a logarithmic scale.
fn plot(frontier: &BTreeMap<&str, Vec<(String, f64, f64)>>) -> String {
    let (wide, high, left, below) = (640.0, 300.0, 60.0, 50.0);
    let x = |extra: f64| left + extra.clamp(0.0, 55.0) / 55.0 * (wide - left - 20.0);
    let y = |ratio: f64| high - below - (ratio.clamp(0.9, 70.0) / 0.9).ln() / (70.0_f64 / 0.9).ln() * (high - below - 40.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        high * frontier.len() as f64
    );
    for (row, (world, points)) in frontier.iter().enumerate() {
        svg += &format!(
            "<g transform=\"translate(0 {})\">\n<text x=\"{left}\" y=\"20\" font-size=\"13\">{world}</text>\n",
            row as f64 * high
        );
        for tick in [1.0, 2.0, 5.0, 10.0, 20.0, 50.0] {
            svg += &format!(
                "<line x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick} x</text>\n",
                wide - 20.0,
                left - 6.0,
                y(tick) + 4.0,
                y = y(tick)
            );
        }
        for tick in [0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0] {
            svg += &format!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick} %</text>\n", x(tick), high - below + 16.0);
        }
        svg +=
            &format!("<text x=\"{left}\" y=\"{:.1}\">extra requests; upwards: p999 over the bound's</text>\n", high - below + 34.0);
        for (name, extra, ratio) in points {
            let own = name == "reckoned";
            let (color, radius) = if own { ("#c00", 6) } else { ("#36c", 4) };
            svg += &format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{color}\"><title>{name}: {extra:.1} %, {ratio:.2} x</title></circle>\n",
                x(*extra),
                y(*ratio)
            );
        }
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}
