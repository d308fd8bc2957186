//! Policies compared on the same seeded traces, under a paused clock.
//!
//! A hundred reads begin a second. Answers are drawn before the policy acts and from a seed that it cannot see; what a read learns
//! are the times of the requests it made, and of those it gave up that they took longer. A request counts as soon as it is sent,
//! with all of its bytes, whether or not its answer was waited for.
//!
//! What is called the program's is its own code (`renter::policy`, `renter::budget`, `renter::host::Latency`); the race around it
//! is written again here, for it has to be told what the answers are.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skygate::renter::Window;
use skygate::renter::budget::{Cost, Purse};
use skygate::renter::host::{Latency, Operation, SizeClass, Spread};
use skygate::renter::policy::{self, Patience, Spare};
use tokio::time::Instant;

use crate::model::{Host, NINE, Quantiles, READ_MAX_MS, SIX_OF_NINE, THIRTY, World, answer_ms, bound, hosts_of, shuffled};

/// Reads of each figure, over all seeds; in a mix these are first windows out of slabs, and for each of them some fifty other reads
/// are made. Those of the first [`WARM_UP_PART`] teach, and are not counted.
const READS: usize = 100_000;
const WARM_UP_PART: usize = 10;
const SEED_COUNT: u64 = 5;
const SEED_FIRST: u64 = 101;
/// Between the beginnings of two reads.
const PACE: Duration = Duration::from_millis(10);
/// What the budget of the other policies holds, in requests: a slab's worth of pieces.
const BURST: f64 = 40.0;
/// As in `renter::forecast`: a host that nobody chose is asked once a minute.
const EXPLORE_EVERY: Duration = Duration::from_secs(60);
/// As in `renter::read`: losers that want no more than this are read to their end, for so long.
const DRAIN_MAX_BYTES: u64 = 64 << 10;
const DRAIN_MAX_MS: f64 = 250.0;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

#[derive(Clone, Copy, PartialEq)]
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
    /// The program's own: chance and spares from the start follow from the purse.
    Program,
    /// The same, but it is not told which windows are a reply's first.
    ProgramUntold,
}

fn policies() -> Vec<(String, Policy)> {
    let mut all = vec![
        ("need only".to_owned(), Policy::NeedOnly),
        ("2 more from the start".to_owned(), Policy::More(2)),
        ("3 more from the start".to_owned(), Policy::More(3)),
        ("a spare at each host's p95".to_owned(), Policy::OwnP95),
    ];
    all.extend([1.0, 1.25, 1.5].map(|factor| (format!("deadline at {factor} x the latest p90"), Policy::Factor(factor))));
    for chance in [0.70, 0.80, 0.88, 0.92] {
        all.extend([1, 2].map(|more| (format!("deadline at chance {chance}, missing + {more}"), Policy::Chance(chance, more))));
    }
    all.push((PROGRAM.to_owned(), Policy::Program));
    all
}

const PROGRAM: &str = "the program's";

/// What one read wants.
struct Ask {
    /// Who has a piece.
    candidates: Vec<usize>,
    need: usize,
    window: Window,
    piece_bytes: u64,
}

/// What the reads of a run know.
struct Learnt {
    latency: Vec<Latency>,
    /// When each host was asked only to see how it is.
    explored: Vec<Instant>,
    /// Reads of each that were given up after unusually long, none answered between them.
    unanswered: Vec<u32>,
    budget: f64,
    purse: Purse,
}

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms.min(READ_MAX_MS) / 1000.0)
}

impl Learnt {
    fn new(hosts: usize) -> Learnt {
        let latency = (0..hosts).map(|_| Latency::new()).collect();
        Learnt {
            latency,
            explored: vec![Instant::now(); hosts],
            unanswered: vec![0; hosts],
            budget: BURST,
            purse: Purse::default(),
        }
    }

    fn spread(&self, host: usize) -> Spread {
        let learnt = self.latency[host].spread(Operation::Get, SizeClass::Small);
        learnt.unwrap_or_else(|| Spread::assumed(Duration::from_millis(20), Duration::from_millis(80)))
    }

    /// (p50, p90, p95) in milliseconds, and how many recent samples they rest on.
    fn quantiles(&self, host: usize) -> ((f64, f64, f64), f32) {
        match self.latency[host].predict(Operation::Get, SizeClass::Small) {
            Some(known) => {
                let (p50, p95) = (known.p50.as_secs_f64() * 1e3, known.p95.as_secs_f64() * 1e3);
                ((p50, p50 * (p95 / p50).powf(0.78), p95), known.weight)
            }
            None => ((20.0, 60.0, 80.0), 0.0),
        }
    }

    /// Answers that came are known; of those given up it is known that they took longer. Small losers are read to their end.
    fn learn(&mut self, read: &Read<'_>, end: f64) {
        let patience = if read.ask.piece_bytes <= DRAIN_MAX_BYTES { DRAIN_MAX_MS } else { 0.0 };
        for (host, at) in read.asked.iter().filter(|(_, at)| *at <= end) {
            let (took, given_up) = (read.answers[*host], end + patience - at);
            match took <= given_up {
                true => {
                    self.latency[*host].add(Operation::Get, SizeClass::Small, ms(took));
                    self.unanswered[*host] = 0;
                }
                false => {
                    let is_long = self.latency[*host].add_given_up(Operation::Get, SizeClass::Small, ms(given_up));
                    self.unanswered[*host] += u32::from(is_long);
                }
            }
        }
    }
}

/// One read under way: who was asked when, and what comes.
struct Read<'a> {
    ask: &'a Ask,
    answers: &'a [f64],
    asked: Vec<(usize, f64)>,
    waiting: Vec<usize>,
}

impl Read<'_> {
    fn end(&self) -> f64 {
        let mut ends: Vec<f64> = self.asked.iter().map(|(host, at)| at + self.answers[*host]).collect();
        ends.sort_by(f64::total_cmp);
        ends[self.ask.need - 1]
    }

    fn missing(&self, now: f64) -> usize {
        self.ask.need - self.asked.iter().filter(|(host, at)| at + self.answers[*host] <= now).count()
    }

    fn ask(&mut self, now: f64) {
        let host = self.waiting.remove(0);
        self.asked.push((host, now));
    }

    /// Spares at a deadline and again after waits that double, as the program does it: `more` than are missing each time after the
    /// first. `first` is the deadline, unrounded. `pay` says whether there is another one after so long.
    fn hedge(&mut self, first: f64, patience: Patience, more: usize, mut pay: impl FnMut(f64, Spare) -> bool) {
        let (mut now, mut at_once, mut wait) = (first, patience.more, first * (1 + patience.more.min(1)) as f64);
        while self.end() > now && now < READ_MAX_MS && !self.waiting.is_empty() {
            for spare in patience.spares(ms(now), self.missing(now), at_once) {
                if self.waiting.is_empty() || !pay(now, spare) {
                    break;
                }
                self.ask(now);
            }
            now += wait;
            (at_once, wait) = (more, wait * 2.0);
        }
    }

    /// What it has cost when it ends.
    fn cost(&self, end: f64) -> Cost {
        let requests = self.asked.iter().filter(|(_, at)| *at <= end).count() as u64;
        Cost { bytes: requests * self.ask.piece_bytes, requests }
    }
}

/// One read: how long it took, and what it cost.
fn read(learnt: &mut Learnt, answers: &[f64], ask: &Ask, policy: Policy) -> (f64, Cost) {
    let known: BTreeMap<usize, _> = ask.candidates.iter().map(|host| (*host, learnt.quantiles(*host))).collect();
    let mut order = ask.candidates.clone();
    // As the program chooses: what rests on less than one recent sample fades, what does not answer is suspicious.
    let cost = |host: &usize| {
        let fade = if known[host].1 > 0.0 { f64::from(known[host].1.min(1.0)) } else { 1.0 };
        known[host].0.0 * fade * policy::suspicion(learnt.unanswered[*host])
    };
    // Costs are positive, so their bits are in their order.
    order.sort_by_cached_key(|host| cost(host).to_bits());
    learnt.budget = (learnt.budget + 0.05 * ask.need as f64).min(BURST);
    let more = if let Policy::More(more) = policy { more } else { 0 };
    let waiting = order.split_off((ask.need + more).min(order.len()));
    let mut read = Read { ask, answers, asked: order.iter().map(|host| (*host, 0.0)).collect(), waiting };
    let spreads =
        |learnt: &Learnt, read: &Read<'_>| read.asked.iter().map(|(host, _)| learnt.spread(*host)).collect::<Vec<Spread>>();
    let deadline =
        |spreads: &[Spread], chance: f64| policy::deadline(spreads, ask.need, chance, Duration::ZERO).as_secs_f64() * 1e3;
    let needed = Cost { bytes: ask.piece_bytes * ask.need as u64, requests: ask.need as u64 };
    let window = if policy == Policy::Program && ask.need > 1 { ask.window } else { Window::Later };
    // The others look at hosts that nobody chose out of the same purse, which nobody else empties.
    let share = learnt.purse.begin(window, needed);
    match policy {
        Policy::NeedOnly | Policy::More(_) => explore(learnt, &mut read),
        Policy::OwnP95 => {
            explore(learnt, &mut read);
            let mut late: Vec<(f64, usize)> = read.asked.iter().map(|(host, _)| (known[host].0.2, *host)).collect();
            late.sort_by(|one, other| one.0.total_cmp(&other.0));
            for (at, host) in late {
                if answers[host] > at && read.end() > at && learnt.budget >= 1.0 && !read.waiting.is_empty() {
                    learnt.budget -= 1.0;
                    read.ask(at);
                }
            }
        }
        Policy::Factor(_) | Policy::Chance(..) => {
            let latest = read.asked.iter().map(|(host, _)| known[host].0.1).fold(0.0, f64::max);
            let (at, more) = match policy {
                Policy::Factor(factor) => (latest * factor, 1),
                Policy::Chance(chance, more) => (deadline(&spreads(learnt, &read), chance), more),
                _ => unreachable!("one of the two"),
            };
            explore(learnt, &mut read);
            let budget = &mut learnt.budget;
            let pay = |now: f64, _| {
                let paid = *budget >= 1.0 || now >= 500.0;
                *budget -= if paid { 1.0 } else { 0.0 };
                paid
            };
            read.hedge(at, Patience { deadline: ms(at), more }, more, pay);
        }
        Policy::Program | Policy::ProgramUntold => {
            let piece = Cost { bytes: ask.piece_bytes, requests: 1 };
            let plan = policy::plan(window, ask.need, share, || {
                let paid = !read.waiting.is_empty() && learnt.purse.spend(window, Spare::Eager, piece);
                if paid {
                    read.ask(0.0);
                }
                paid
            });
            let patience = policy::patience(&spreads(learnt, &read), ask.need, plan.late, Duration::ZERO);
            explore(learnt, &mut read);
            let pay = |_, spare| learnt.purse.spend(window, spare, piece);
            read.hedge(patience.deadline.as_secs_f64() * 1e3, patience, policy::more_later(ask.need), pay);
        }
    }
    // Whoever has not answered by the end of a read is replaced then.
    while read.end() > READ_MAX_MS && !read.waiting.is_empty() {
        read.ask(READ_MAX_MS / 2.0);
    }
    let end = read.end().min(READ_MAX_MS);
    learnt.learn(&read, end);
    (end, read.cost(end))
}

/// One more at the start: a host that nobody has asked for long.
fn explore(learnt: &mut Learnt, read: &mut Read<'_>) {
    let stale = |host: &usize| {
        learnt.explored[*host].elapsed() >= EXPLORE_EVERY
            && (learnt.quantiles(*host).1 < 1.0 || policy::suspicion(learnt.unanswered[*host]) > 1.0)
    };
    let cost = Cost { bytes: read.ask.piece_bytes, requests: 1 };
    if let Some(at) = read.waiting.iter().position(stale)
        && learnt.purse.spend(Window::Later, Spare::Eager, cost)
    {
        let host = read.waiting.remove(at);
        learnt.explored[host] = Instant::now();
        read.asked.push((host, 0.0));
    }
}

/// Times and costs of the reads of one sort.
#[derive(Default)]
struct Tally {
    times: Vec<f64>,
    needed: Cost,
    spent: Cost,
}

impl Tally {
    fn add(&mut self, ask: &Ask, took: f64, cost: Cost) {
        self.times.push(took);
        self.needed.bytes += ask.need as u64 * ask.piece_bytes;
        self.needed.requests += ask.need as u64;
        self.spent.bytes += cost.bytes;
        self.spent.requests += cost.requests;
    }

    /// Extra bytes and requests of these, in percent of what they needed.
    fn extra(tallies: &[&Tally]) -> (f64, f64) {
        let sum = |of: fn(&Tally) -> u64| tallies.iter().map(|tally| of(tally)).sum::<u64>() as f64;
        let extra = |spent, needed| 100.0 * (sum(spent) / sum(needed) - 1.0);
        (
            extra(|tally| tally.spent.bytes, |tally| tally.needed.bytes),
            extra(|tally| tally.spent.requests, |tally| tally.needed.requests),
        )
    }
}

/// A clock that stands still between two reads.
struct Clock(tokio::runtime::Runtime);

impl Clock {
    fn new() -> Clock {
        Clock(
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime of one thread"),
        )
    }

    fn tick(&self) {
        self.0.block_on(tokio::time::advance(PACE));
    }
}

/// Reads of one slab's worth of hosts, all alike.
fn run(world: &World, hosts: &[Host], seed: u64, reads: usize, policy: Policy) -> Tally {
    let clock = Clock::new();
    let _inside = clock.0.enter();
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let mut learnt = Learnt::new(hosts.len());
    let piece_bytes = MIB / world.need as u64;
    let ask = Ask { candidates: (0..world.hosts).collect(), need: world.need, window: Window::Later, piece_bytes };
    let mut tally = Tally::default();
    for index in 0..reads + reads / WARM_UP_PART {
        let answers: Vec<f64> = hosts.iter().map(|host| answer_ms(host, &mut random)).collect();
        let (took, cost) = read(&mut learnt, &answers, &ask, policy);
        if index >= reads / WARM_UP_PART {
            tally.add(&ask, took, cost);
        }
        clock.tick();
    }
    tally
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::MIN, f64::max)
}

type Frontier = BTreeMap<&'static str, Vec<(String, f64, f64)>>;

/// All policies, all reads alike.
fn compare(world: &World, seeds: &[u64], reads: usize, frontier: &mut Frontier) {
    println!("\n### {}\n", world.name);
    println!("| policy | extra | p50 | p99 | p999 | p999 / p50 | p50 / bound's | p999 / bound's | of the worst seed |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let worlds: Vec<(u64, Vec<Host>)> = seeds.iter().map(|seed| (*seed, hosts_of(world, *seed))).collect();
    let of_all = (world.hosts, world.need);
    let bounds: Vec<Quantiles> = worlds.iter().map(|(seed, hosts)| bound(hosts, of_all, *seed, reads)).collect();
    let of = |get: fn(&Quantiles) -> f64| median(bounds.iter().map(get).collect());
    println!("| bound | | {:.1} | {:.1} | {:.1} | | | | |", of(|q| q.p50), of(|q| q.p99), of(|q| q.p999));
    let runs = policies().into_iter().flat_map(|(_, policy)| worlds.iter().map(move |(seed, hosts)| (policy, *seed, hosts)));
    let runs = in_threads(&runs.collect::<Vec<_>>(), |(policy, seed, hosts)| {
        let tally = run(world, hosts, *seed, reads, *policy);
        (Tally::extra(&[&tally]).0, Quantiles::of(tally.times))
    });
    for ((name, _), runs) in policies().into_iter().zip(runs.chunks(worlds.len())) {
        let extra = median(runs.iter().map(|(extra, _)| *extra).collect());
        let times: Vec<Quantiles> = runs.iter().map(|(_, times)| *times).collect();
        let each = |get: &dyn Fn(&Quantiles, &Quantiles) -> f64| -> Vec<f64> {
            times.iter().zip(&bounds).map(|(time, bound)| get(time, bound)).collect()
        };
        let of = |get: &dyn Fn(&Quantiles, &Quantiles) -> f64| median(each(get));
        let ratios = each(&|time, bound| time.p999 / bound.p999);
        let ratio = median(ratios.clone());
        println!(
            "| {name} | {extra:.1} % | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {ratio:.2} | {:.2} |",
            of(&|time, _| time.p50),
            of(&|time, _| time.p99),
            of(&|time, _| time.p999),
            of(&|time, _| time.p999 / time.p50),
            of(&|time, bound| time.p50 / bound.p50),
            largest(&ratios),
        );
        frontier.entry(world.name).or_default().push((name, extra, ratio));
    }
}

/// Replies by bytes: a tenth small files of 10 KiB, a fifth ranges, the rest streams.
#[derive(Clone, Copy)]
struct Mix {
    range_bytes: u64,
    stream_bytes: u64,
}

const MIXES: [Mix; 4] = [
    Mix { range_bytes: MIB, stream_bytes: 16 * MIB },
    Mix { range_bytes: MIB, stream_bytes: 4 * MIB },
    Mix { range_bytes: 512 * KIB, stream_bytes: 16 * MIB },
    Mix { range_bytes: 256 * KIB, stream_bytes: 16 * MIB },
];
const FILE_BYTES: u64 = 10 * KIB;
/// As in `store::content`: reads of a stream, and the first one.
const UNIT_BYTES: u64 = MIB;
const SMALL_UNIT_BYTES: u64 = 256 * KIB;
/// What a piece is read in.
const GRAIN_BYTES: u64 = 4 * KIB;

impl Mix {
    /// The reads of one reply, as the store cuts them.
    fn reply(&self, world: &World, random: &mut ChaCha8Rng) -> Vec<Ask> {
        let often = [0.1 / FILE_BYTES as f64, 0.2 / self.range_bytes as f64, 0.7 / self.stream_bytes as f64];
        let mut at = random.random_range(0.0..often.iter().sum());
        let mut kind = 0;
        while kind + 1 < often.len() && at >= often[kind] {
            at -= often[kind];
            kind += 1;
        }
        let bytes = match kind {
            0 => {
                let mut candidates = shuffled(world.hosts, random);
                candidates.truncate(world.copies);
                return vec![Ask {
                    candidates,
                    need: 1,
                    window: Window::First,
                    piece_bytes: FILE_BYTES.next_multiple_of(GRAIN_BYTES),
                }];
            }
            1 => self.range_bytes,
            _ => self.stream_bytes,
        };
        let start = if kind == 1 { random.random_range(0..UNIT_BYTES / SMALL_UNIT_BYTES) * SMALL_UNIT_BYTES } else { 0 };
        let (mut asks, mut at) = (Vec::new(), start);
        while at < start + bytes {
            let whole = at % UNIT_BYTES == 0 && start + bytes - at >= UNIT_BYTES && at > start;
            let end = if whole { at + UNIT_BYTES } else { (at / SMALL_UNIT_BYTES + 1) * SMALL_UNIT_BYTES };
            let piece_bytes = (end - at).div_ceil(world.need as u64).next_multiple_of(GRAIN_BYTES);
            let window = if at == start { Window::First } else { Window::Later };
            asks.push(Ask { candidates: (0..world.hosts).collect(), need: world.need, window, piece_bytes });
            at = end;
        }
        asks
    }
}

/// Tallies of small files, of first windows out of slabs, and of later ones.
fn run_mix(world: &World, mix: Mix, hosts: &[Host], seed: u64, firsts: usize, policy: Policy) -> [Tally; 3] {
    let clock = Clock::new();
    let _inside = clock.0.enter();
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let mut learnt = Learnt::new(hosts.len());
    let mut tallies: [Tally; 3] = Default::default();
    let mut warm_up = firsts / WARM_UP_PART;
    while tallies[1].times.len() < firsts {
        for ask in mix.reply(world, &mut random) {
            let answers: Vec<f64> = hosts.iter().map(|host| answer_ms(host, &mut random)).collect();
            let policy = match policy {
                Policy::More(_) if ask.window == Window::Later || ask.need == 1 => Policy::ProgramUntold,
                policy => policy,
            };
            let (took, cost) = read(&mut learnt, &answers, &ask, policy);
            let sort = if ask.need == 1 { 0 } else { 1 + usize::from(ask.window == Window::Later) };
            match warm_up {
                0 => tallies[sort].add(&ask, took, cost),
                _ => warm_up -= usize::from(sort == 1),
            }
            clock.tick();
        }
    }
    tallies
}

/// Of one run: extra bytes and requests of all, extra bytes of first windows, times of each sort.
type MixRun = ((f64, f64), f64, [Quantiles; 3]);

fn mixed(world: &World, seeds: &[u64], firsts: usize) {
    println!("\n### A mix of replies, {}\n", world.name);
    println!("{firsts} first windows of each seed. Extras are those of the worst seed.\n");
    println!(
        "| ranges, streams | policy | extra bytes | extra requests | extra of first windows | p50 / bound's | p999 / bound's | of the worst seed | later windows' p999 / bound's | small files' |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let worlds: Vec<(u64, Vec<Host>)> = seeds.iter().map(|seed| (*seed, hosts_of(world, *seed))).collect();
    let bounds =
        |of: (usize, usize)| -> Vec<Quantiles> { worlds.iter().map(|(seed, hosts)| bound(hosts, of, *seed, firsts)).collect() };
    let (of_slabs, of_files) = (bounds((world.hosts, world.need)), bounds((world.copies, 1)));
    let policies = [
        ("not told of first windows", Policy::ProgramUntold),
        ("3 more for each first window", Policy::More(3)),
        (PROGRAM, Policy::Program),
    ];
    let rows: Vec<_> = MIXES.iter().flat_map(|mix| policies.map(|(name, policy)| (*mix, name, policy))).collect();
    let runs = rows.iter().flat_map(|(mix, _, policy)| worlds.iter().map(move |(seed, hosts)| (*mix, *policy, *seed, hosts)));
    let runs: Vec<MixRun> = in_threads(&runs.collect::<Vec<_>>(), |(mix, policy, seed, hosts)| {
        let tallies = run_mix(world, *mix, hosts, *seed, firsts, *policy);
        let (all, first) = (Tally::extra(&tallies.each_ref()), Tally::extra(&[&tallies[1]]).0);
        (all, first, tallies.map(|tally| Quantiles::of(tally.times)))
    });
    for ((mix, name, _), runs) in rows.into_iter().zip(runs.chunks(worlds.len())) {
        let ratios = |sort: usize, bounds: &[Quantiles], get: fn(&Quantiles) -> f64| -> Vec<f64> {
            runs.iter().zip(bounds).map(|((_, _, times), bound)| get(&times[sort]) / get(bound)).collect()
        };
        let of_worst = |get: fn(&MixRun) -> f64| largest(&runs.iter().map(get).collect::<Vec<f64>>());
        let tails = ratios(1, &of_slabs, |q| q.p999);
        println!(
            "| {}, {} MiB | {name} | {:.1} % | {:.1} % | {:.1} % | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
            if mix.range_bytes < MIB { format!("{} KiB", mix.range_bytes / KIB) } else { "1 MiB".to_owned() },
            mix.stream_bytes / MIB,
            of_worst(|run| run.0.0),
            of_worst(|run| run.0.1),
            of_worst(|run| run.1),
            median(ratios(1, &of_slabs, |q| q.p50)),
            median(tails.clone()),
            largest(&tails),
            median(ratios(2, &of_slabs, |q| q.p999)),
            median(ratios(0, &of_files, |q| q.p999)),
        );
    }
}

type Change = fn(&mut [Host]);

/// What happens to all hosts in the middle of a run.
const EVENTS: [(&str, Change); 5] = [
    ("nothing", |_| {}),
    ("all get 5 times slower", |hosts| hosts.iter_mut().for_each(|host| host.median_ms *= 5.0)),
    ("all get 100 times slower", |hosts| hosts.iter_mut().for_each(|host| host.median_ms *= 100.0)),
    ("slow answers are three times as many", |hosts| hosts.iter_mut().for_each(|host| host.slow_share *= 3.0)),
    ("the quickest never answers again", |hosts| {
        let quickest = hosts.iter_mut().filter(|host| !host.dead && host.more_ms == 0.0);
        quickest.min_by(|one, other| one.median_ms.total_cmp(&other.median_ms)).expect("some are well").dead = true;
    }),
];

/// Something happens at the middle: what the second half costs, and how it does.
fn eventful(world: &World, seeds: &[u64], reads: usize) {
    println!("\n### In mid-run, {}\n", world.name);
    println!("{reads} reads of each seed before it and after. Extras and p50 are those of the worst seed.\n");
    println!("| what happens | extra bytes of the half after it | p50 / of the best {} known | p999 / bound's |", world.need);
    println!("|---|---|---|---|");
    let runs = EVENTS.iter().flat_map(|(_, event)| seeds.iter().map(move |seed| (*event, *seed)));
    let runs = in_threads(&runs.collect::<Vec<_>>(), |(event, seed)| run_event(world, *seed, reads, *event));
    for ((name, _), runs) in EVENTS.iter().zip(runs.chunks(seeds.len())) {
        let of = |column: usize| runs.iter().map(|run| run[column]).collect::<Vec<f64>>();
        println!("| {name} | {:.1} % | {:.2} | {:.2} |", largest(&of(0)), largest(&of(1)), median(of(2)));
    }
}

/// Of the half after the change: extra bytes in percent, p50 over that of the best hosts known, p999 over the bound's.
fn run_event(world: &World, seed: u64, reads: usize, event: Change) -> [f64; 3] {
    let before = hosts_of(world, seed);
    let mut after = before.clone();
    event(&mut after);
    let clock = Clock::new();
    let _inside = clock.0.enter();
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let mut learnt = Learnt::new(world.hosts);
    let piece_bytes = MIB / world.need as u64;
    let ask = Ask { candidates: (0..world.hosts).collect(), need: world.need, window: Window::Later, piece_bytes };
    let mut best: Vec<usize> = (0..world.hosts).collect();
    let usual = |host: &usize| if after[*host].dead { f64::INFINITY } else { after[*host].median_ms + after[*host].more_ms };
    best.sort_by(|one, other| usual(one).total_cmp(&usual(other)));
    let (mut tally, mut known) = (Tally::default(), Vec::new());
    for index in 0..2 * reads {
        let hosts = if index < reads { &before } else { &after };
        let answers: Vec<f64> = hosts.iter().map(|host| answer_ms(host, &mut random)).collect();
        let (took, cost) = read(&mut learnt, &answers, &ask, Policy::Program);
        if index >= reads {
            tally.add(&ask, took, cost);
            known.push(best[..world.need].iter().map(|host| answers[*host]).fold(0.0, f64::max));
        }
        clock.tick();
    }
    let bound = bound(&after, (world.hosts, world.need), seed, reads);
    let extra = Tally::extra(&[&tally]).0;
    let time = Quantiles::of(tally.times);
    [extra, time.p50 / Quantiles::of(known).p50, time.p999 / bound.p999]
}

/// Does all of it, on all processors; results are in the order of what was to be done.
fn in_threads<I: Sync, T: Send>(jobs: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(jobs.len())));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((index, job)) = Some(next.fetch_add(1, Relaxed)).and_then(|index| Some((index, jobs.get(index)?))) {
                    let result = work(job);
                    done.lock().expect("no panic under this lock").push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no panic under this lock");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// What the command line asks for.
pub struct Plan {
    pub reads: Option<usize>,
    pub seed_first: Option<u64>,
    /// One of the tables: `alike`, `mixed`, `events`.
    pub only: Option<String>,
    /// Of all answers, those that are slow.
    pub slow_share: Option<f64>,
    /// Where the frontier is drawn.
    pub svg: Option<String>,
}

/// Prints the tables.
pub fn compare_all(plan: &Plan) {
    let first = plan.seed_first.unwrap_or(SEED_FIRST);
    let seeds: Vec<u64> = (first..first + SEED_COUNT).collect();
    let reads = plan.reads.unwrap_or(READS) / seeds.len();
    println!("Seeds {} to {}, {reads} counted reads of each; medians, milliseconds.", seeds[0], seeds[seeds.len() - 1]);
    let wanted = |table: &str| plan.only.as_deref().is_none_or(|only| only == table);
    let world = |world: World| World { slow_share: plan.slow_share.unwrap_or(world.slow_share), ..world };
    let mut frontier = Frontier::new();
    if wanted("alike") {
        [NINE, THIRTY, SIX_OF_NINE].map(world).iter().for_each(|world| compare(world, &seeds, reads, &mut frontier));
    }
    if wanted("mixed") {
        [THIRTY, NINE].map(world).iter().for_each(|world| mixed(world, &seeds, reads));
    }
    if wanted("events") {
        [THIRTY, NINE].map(world).iter().for_each(|world| eventful(world, &seeds, reads));
    }
    if let Some(file) = &plan.svg {
        std::fs::write(file, plot(&frontier)).expect("the plot can be written");
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
            let own = name == PROGRAM;
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
