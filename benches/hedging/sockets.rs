//! The program's own reads through real sockets: its S3 client, a server for each host (s3s-fs, in this process), and before each
//! server a proxy that lets a request wait as the model says.
//!
//! How long a request waits follows from the seed, the host, the object and the range asked for, and from nothing else; no two
//! reads of a run want the same range of the same slab. So the bound of a read is known without asking anybody: of all pieces'
//! hosts, the `need`-th least delay. No read may beat it. Reads begin at random times, whatever became of those before them (an
//! open loop), and are timed from the moment they were meant to begin.
//!
//! A host that is dead takes requests and never answers, and nobody looks at markers: reads have to find it out, as in the model.
//! Extra is what reached the proxies beyond what `need` pieces are, each request with all of its range, answered or not. Every
//! reply's bytes are compared.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use compat_tests::buckets::{BUCKET, Buckets, Engine, KEY_ID, SECRET};
use compat_tests::proxy::{self, Turn};
use object_store::{ObjectStoreExt, path::Path};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skygate::measure::Trace;
use skygate::renter::bucket::{self, BucketOptions};
use skygate::renter::folder::MARKER_KEY;
use skygate::renter::host::{Host, HostId, HostOptions, HostState, Writers};
use skygate::renter::marker::{Marker, PortalId};
use skygate::renter::place::{HostRow, HostTable, RowState};
use skygate::renter::{Completion, Renter, RenterOptions, SlabRef, Window};
use skygate::sector::{GRAIN_BYTES, SECTOR_BYTES, SlabEncoder, data_offset};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::model::{self, NINE, Quantiles, THIRTY, World, answer_ms, hosts_of, shuffled};

/// Counted reads of a run, and how many begin a second.
const READS: usize = 15_000;
const RATE: f64 = 120.0;
const WARM_UP_PART: usize = 10;
/// One read in this many is the first window of a reply: 9 % of all bytes, as with streams of 4 MiB.
const FIRST_EVERY: usize = 11;
/// Whose hosts they are: those of the first seed of the traces.
const HOSTS_SEED: u64 = 101;
/// Reads without any delay, for what sockets and processors take.
const FLOOR_READS: usize = 1_000;
/// The first slab is read in first windows only, so that a request tells what it is for.
const SLABS: usize = 5;
/// After the last reply: what is still asked belongs to its reads.
const SETTLE: Duration = Duration::from_millis(500);

const PORTAL: PortalId = PortalId([1; 32]);

/// Hosts, and what is stored on them.
struct Shape {
    name: &'static str,
    world: &'static World,
    parity: u8,
    /// Grains of each piece that a read wants: 24 to 240 KiB of content. Larger ones would be limited by two processors.
    grains: Range<usize>,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "nine", world: &NINE, parity: 3, grains: 1..9 },
    Shape { name: "thirty", world: &THIRTY, parity: 20, grains: 1..7 },
];

/// What the command line asks for.
pub struct Plan {
    pub shape: Option<String>,
    pub reads: Option<usize>,
    pub rate: Option<f64>,
    /// Which draw of delays; another one for each run that goes to the same file.
    pub part: Option<u64>,
    /// A file that the samples are added to; the table is of all that is in it.
    pub keep: Option<String>,
}

/// Measures, and prints the table.
pub fn measure(plan: &Plan) {
    let mut lines = String::new();
    for shape in SHAPES.iter().filter(|shape| plan.shape.as_deref().is_none_or(|only| only == shape.name)) {
        eprintln!("# {}", shape.world.name);
        lines += &run(shape, plan);
    }
    if let Some(file) = &plan.keep {
        let mut kept = std::fs::OpenOptions::new().create(true).append(true).open(file).expect("the file can be written");
        kept.write_all(lines.as_bytes()).expect("the file can be written");
        lines = std::fs::read_to_string(file).expect("it was just written");
    }
    print!("{}", table(&lines));
}

/// What a request asks for.
struct Asked {
    root: String,
    range: Range<u64>,
}

impl Asked {
    /// `None` for anything but a range of a sector.
    fn of(head: &[u8]) -> Option<Asked> {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let path = lines.next()?.strip_prefix("GET ")?.split(' ').next()?;
        let root = path.contains("/sectors/").then(|| path.rsplit('/').next())??;
        let ranges = lines.filter_map(|line| line.split_once(": ")).find(|(name, _)| name.eq_ignore_ascii_case("range"));
        let (start, last) = ranges?.1.strip_prefix("bytes=")?.split_once('-')?;
        Some(Asked { root: root.to_owned(), range: start.parse().ok()?..last.parse::<u64>().ok()? + 1 })
    }

    fn delay_ms(&self, host: &model::Host, seed: u64) -> f64 {
        let mut hasher = DefaultHasher::new();
        (seed, &self.root, self.range.start, self.range.end).hash(&mut hasher);
        answer_ms(host, &mut ChaCha8Rng::seed_from_u64(hasher.finish()))
    }
}

/// Requests of one sort of window that reached the proxies.
#[derive(Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn now(&self) -> [u64; 2] {
        [self.requests.load(Relaxed), self.bytes.load(Relaxed)]
    }
}

/// What all proxies share.
struct Gate {
    seed: u64,
    slows: AtomicBool,
    /// Of the slab that is read in first windows.
    firsts: std::sync::OnceLock<HashSet<String>>,
    /// First windows, later ones.
    counters: [Counter; 2],
}

impl Gate {
    fn turn(&self, host: &model::Host, head: &[u8]) -> Turn {
        let Some(asked) = Asked::of(head).filter(|_| self.slows.load(Relaxed)) else { return Turn::After(Duration::ZERO) };
        let is_first = self.firsts.get().is_some_and(|firsts| firsts.contains(&asked.root));
        let counter = &self.counters[usize::from(!is_first)];
        counter.requests.fetch_add(1, Relaxed);
        counter.bytes.fetch_add(asked.range.end - asked.range.start, Relaxed);
        match asked.delay_ms(host, self.seed) {
            never if never.is_infinite() => Turn::Never,
            ms => Turn::After(Duration::from_secs_f64(ms / 1e3)),
        }
    }
}

/// One slab, and the hosts of its pieces.
struct Stored {
    slab: SlabRef,
    content: Bytes,
    /// Of each piece.
    hosts: Vec<usize>,
}

/// One read of a run.
struct Read {
    stored: Arc<Stored>,
    window: Window,
    grains: Range<usize>,
}

impl Read {
    fn need(&self) -> usize {
        self.stored.slab.k.into()
    }

    fn content(&self) -> Range<usize> {
        let row = self.need() * GRAIN_BYTES;
        self.grains.start * row..self.grains.end * row
    }

    /// The clairvoyant asks everybody.
    fn bound_ms(&self, hosts: &[model::Host], seed: u64) -> f64 {
        let data = data_offset(SECTOR_BYTES as u32);
        let range = (data + self.grains.start * GRAIN_BYTES) as u64..(data + self.grains.end * GRAIN_BYTES) as u64;
        let delay = |(root, host): (&skygate::sector::Root, &usize)| {
            Asked { root: root.to_string(), range: range.clone() }.delay_ms(&hosts[*host], seed)
        };
        let mut delays: Vec<f64> = self.stored.slab.roots.iter().zip(&self.stored.hosts).map(delay).collect();
        delays.sort_by(f64::total_cmp);
        delays[self.need() - 1]
    }

    async fn ask(&self, renter: &Renter, due: Instant) -> f64 {
        let content = self.content();
        let range = content.start as u64..content.end as u64;
        let read = renter.read_slab(&self.stored.slab, range, self.window, &Trace::default()).await;
        let took = due.elapsed();
        assert!(read.expect("enough hosts are well") == self.stored.content[content], "wrong bytes");
        took.as_secs_f64() * 1e3
    }
}

/// Measures one shape. What it saw, in lines for [`table`].
fn run(shape: &Shape, plan: &Plan) -> String {
    let (reads, rate, part) = (plan.reads.unwrap_or(READS), plan.rate.unwrap_or(RATE), plan.part.unwrap_or(1));
    let hosts = hosts_of(shape.world, HOSTS_SEED);
    let gate = Arc::new(Gate { seed: part, slows: false.into(), firsts: Default::default(), counters: Default::default() });
    let two = || Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime can be made");
    let (far, near) = (two(), two());
    let (buckets, proxies) = far.block_on(serve(&hosts, &gate));
    let renter = near.block_on(renter(shape, &proxies));
    let stored: Vec<Arc<Stored>> = (0..SLABS as u64).map(|number| Arc::new(near.block_on(write(&renter, shape, number)))).collect();
    let firsts = stored[0].slab.roots.iter().map(ToString::to_string).collect();
    gate.firsts.set(firsts).expect("set once");
    gate.slows.store(true, Relaxed);
    // Trees are known then; those of a dead host's pieces are never needed.
    for stored in &stored {
        let alive = (0..stored.hosts.len()).filter(|piece| !hosts[stored.hosts[*piece]].dead);
        let trace = Trace::default();
        let touch = alive.map(|piece| renter.read_piece(&stored.slab, piece, 0..GRAIN_BYTES as u32, &trace));
        near.block_on(futures::future::try_join_all(touch)).expect("these hosts are well");
    }
    let mut wanted = wants(shape, &stored, reads + reads / WARM_UP_PART, part);
    let counted = wanted.split_off(reads / WARM_UP_PART);
    open_loop(&near, &renter, wanted, rate, part ^ 0x3a3a);
    let (before, cpu, began) = (gate.counters.each_ref().map(Counter::now), cpu_seconds(), Instant::now());
    let took = open_loop(&near, &renter, counted.clone(), rate, part);
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let after = gate.counters.each_ref().map(Counter::now);

    let mut lines = format!("run {} {part} {rate} {seconds} {cpu}", shape.name);
    gate.slows.store(false, Relaxed);
    let floor = open_loop(&near, &renter, counted[..FLOOR_READS.min(counted.len())].to_vec(), rate, part);
    let Quantiles { p50, p99, .. } = Quantiles::of(floor);
    lines += &format!(" {p50} {p99}\n");
    for (sort, window) in [Window::First, Window::Later].into_iter().enumerate() {
        let of_sort = || counted.iter().filter(|read| read.window == window);
        let needed: [usize; 2] =
            [of_sort().map(|read| read.need()).sum(), of_sort().map(|read| read.need() * read.grains.len() * GRAIN_BYTES).sum()];
        let [requests, bytes] = [0, 1].map(|column| after[sort][column] - before[sort][column]);
        lines += &format!("cost {} {sort} {} {requests} {} {bytes}\n", shape.name, needed[0], needed[1]);
    }
    for (read, took) in counted.iter().zip(took) {
        let bound = read.bound_ms(&hosts, part);
        assert!(took >= bound, "nobody beats the clairvoyant: {took} ms and {bound} ms");
        lines += &format!("read {} {} {took} {bound}\n", shape.name, usize::from(read.window == Window::Later));
    }
    drop(buckets);
    lines
}

/// A server and a proxy for each host: the addresses of the proxies.
async fn serve(hosts: &[model::Host], gate: &Arc<Gate>) -> (Buckets, Vec<String>) {
    let buckets = Buckets::start_many(Engine::InProcess, hosts.len()).await;
    let mut proxies = Vec::new();
    for (host, server) in hosts.iter().zip(&buckets.servers) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        proxies.push(format!("http://{}", listener.local_addr().expect("bound")));
        let (host, gate) = (host.clone(), gate.clone());
        let decide = Arc::new(move |head: &[u8]| gate.turn(&host, head));
        tokio::spawn(proxy::pass_on(listener, server.address, decide, std::future::pending::<()>));
    }
    (buckets, proxies)
}

/// One of the program's hosts, on an empty bucket behind this endpoint.
pub async fn host_of(index: usize, endpoint: &str) -> Host {
    let id = HostId([index as u8; 16]);
    let store = bucket::open(BucketOptions {
        bucket: BUCKET.to_owned(),
        prefix: String::new(),
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        key: Some((KEY_ID.to_owned(), SECRET.to_owned(), None)),
        virtual_hosted: false,
    });
    let store = store.expect("a client");
    store.put(&Path::from(MARKER_KEY), Marker { portal: PORTAL, host: id }.encode().into()).await.expect("an empty bucket");
    let options = HostOptions { id, portal: PORTAL, url: endpoint.to_owned(), space: None, near: None, writers: Writers::AnyNode };
    let host = Host::new(store, options);
    assert_eq!(host.check().await, HostState::Up);
    host
}

/// The program's renter, over the proxies.
async fn renter(shape: &Shape, proxies: &[String]) -> Renter {
    let hosts = futures::future::join_all(proxies.iter().enumerate().map(|(index, endpoint)| host_of(index, endpoint))).await;
    let row = |host: &Host| HostRow { id: host.id(), zone: String::new(), weight: 1, state: RowState::Active };
    let table = HostTable { epoch: 1, hosts: hosts.iter().map(row).collect() };
    let options = RenterOptions {
        k: shape.world.need as u8,
        m: shape.parity,
        base_copies: shape.world.copies as u8,
        ..RenterOptions::default()
    };
    Renter::new(hosts, table, options).expect("enough hosts")
}

async fn write(renter: &Renter, shape: &Shape, number: u64) -> Stored {
    let (k, m) = (shape.world.need as u8, shape.parity);
    let mut content = vec![0; usize::from(k) * SECTOR_BYTES];
    ChaCha8Rng::seed_from_u64(number).fill(&mut content[..]);
    let encoder = SlabEncoder::new(k, m, 1, renter.acquire_slab().await).expect("a good redundancy");
    content.chunks(encoder.step_bytes()).enumerate().for_each(|(step, content)| encoder.encode_step(step, content));
    let encoded = encoder.finish(content.len() as u64);
    let slab = SlabRef { k, m, roots: encoded.roots().into(), content_len: content.len() as u64 };
    let written = renter.write_slab(encoded).await.expect("all hosts are well");
    assert_eq!(written.complete().await, Completion::Complete);
    let host = |piece: skygate::renter::Piece| usize::from(piece.host().expect("configured").id().0[0]);
    let hosts = renter.pieces_of(&slab).into_iter().map(host).collect();
    Stored { slab, content: content.into(), hosts }
}

/// So many reads, no two of the same range.
fn wants(shape: &Shape, stored: &[Arc<Stored>], count: usize, seed: u64) -> Vec<Arc<Read>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x11a7);
    let mut all = |stored: &[Arc<Stored>], window: Window, count: usize| {
        let starts = |len: usize| (0..=SECTOR_BYTES / GRAIN_BYTES - len).map(move |start| start..start + len);
        let ranges: Vec<Range<usize>> = shape.grains.clone().flat_map(starts).collect();
        let order = shuffled(ranges.len() * stored.len(), &mut random);
        assert!(count <= order.len(), "at most {} such reads in a run: make it shorter, and several with --keep", order.len());
        let read =
            |at: usize| Read { stored: stored[at / ranges.len()].clone(), window, grains: ranges[at % ranges.len()].clone() };
        order.into_iter().take(count).map(|at| Arc::new(read(at))).collect::<Vec<_>>()
    };
    let first_count = count / FIRST_EVERY;
    let mut firsts = all(&stored[..1], Window::First, first_count).into_iter();
    let mut laters = all(&stored[1..], Window::Later, count - first_count).into_iter();
    let next = |number: usize| {
        let first = if number % FIRST_EVERY == FIRST_EVERY - 1 { firsts.next() } else { None };
        first.or_else(|| laters.next()).expect("as many as there are numbers")
    };
    (0..count).map(next).collect()
}

/// How long each read took, in milliseconds from the moment it was meant to begin.
fn open_loop(near: &Runtime, renter: &Renter, reads: Vec<Arc<Read>>, rate: f64, seed: u64) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut at = 0.0;
    let gaps = reads.iter().map(|_| {
        at -= random.random_range(f64::MIN_POSITIVE..1.0).ln() / rate;
        Duration::from_secs_f64(at)
    });
    let times: Vec<Duration> = gaps.collect();
    let (due, mut dues) = tokio::sync::mpsc::unbounded_channel();
    let mut took = vec![f64::NAN; reads.len()];
    std::thread::scope(|scope| {
        // A thread keeps time: timers of the runtime are right to a millisecond only.
        scope.spawn(move || {
            let began = Instant::now();
            for (number, time) in times.iter().enumerate() {
                std::thread::sleep(time.saturating_sub(began.elapsed()));
                if due.send((number, began + *time)).is_err() {
                    return;
                }
            }
        });
        near.block_on(async {
            let mut running = JoinSet::new();
            loop {
                tokio::select! {
                    Some((number, due)) = dues.recv() => {
                        let (renter, read) = (renter.clone(), reads[number].clone());
                        running.spawn(async move { (number, read.ask(&renter, due).await) });
                    }
                    Some(ended) = running.join_next() => {
                        let (number, ms) = ended.expect("a read that failed ends the bench");
                        took[number] = ms;
                    }
                    else => break,
                }
            }
            tokio::time::sleep(SETTLE).await;
        });
    });
    took
}

/// Processor time of this process: servers, proxies and reads.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

/// The table of all lines.
fn table(lines: &str) -> String {
    let rows = |kind: &str, shape: &str| -> Vec<Vec<f64>> {
        let row = |line: &str| {
            let mut words = line.split(' ');
            let is_of = words.next() == Some(kind) && words.next() == Some(shape);
            is_of.then(|| words.map(|word| word.parse().expect("a number")).collect())
        };
        lines.lines().filter_map(row).collect()
    };
    let mut text = "| hosts | windows | reads | extra bytes | extra requests | p50 | p99 | p999 | bound's p50 | p99 | p999 | p50 / bound's | p99 | p999 |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n".to_owned();
    let mut runs = String::new();
    for shape in &SHAPES {
        for run in rows("run", shape.name) {
            runs += &format!(
                "- {}, part {}: {} reads a second meant, {:.0} s, {:.2} processors of servers, proxies and reads together; without delays p50 {:.1}, p99 {:.1} ms\n",
                shape.name,
                run[0],
                run[1],
                run[2],
                run[3] / run[2],
                run[4],
                run[5]
            );
        }
        let (reads, costs) = (rows("read", shape.name), rows("cost", shape.name));
        let of = |sorts: &[f64], column: usize| -> Vec<f64> {
            reads.iter().filter(|read| sorts.contains(&read[0])).map(|read| read[column]).collect()
        };
        for (name, sorts) in [("first", &[0.0][..]), ("later", &[1.0]), ("all", &[0.0, 1.0])] {
            let (took, bound) = (of(sorts, 1), of(sorts, 2));
            if took.is_empty() {
                continue;
            }
            let cost = |column: usize| costs.iter().filter(|cost| sorts.contains(&cost[0])).map(|cost| cost[column]).sum::<f64>();
            let (extra_bytes, extra_requests) = (100.0 * (cost(4) / cost(3) - 1.0), 100.0 * (cost(2) / cost(1) - 1.0));
            let (count, took, bound) = (took.len(), Quantiles::of(took), Quantiles::of(bound));
            text += &format!(
                "| {} | {name} | {count} | {extra_bytes:.1} % | {extra_requests:.1} % | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} |\n",
                shape.world.name,
                took.p50,
                took.p99,
                took.p999,
                bound.p50,
                bound.p99,
                bound.p999,
                took.p50 / bound.p50,
                took.p99 / bound.p99,
                took.p999 / bound.p999,
            );
        }
    }
    format!("{text}\n{runs}")
}
