//! Skynet's registry: writes and reads of 32 clients, and how long a write takes to reach a subscriber.
//!
//! Entries are signed and requests are written before the clock starts. Each reply is read by its length and its status is
//! looked at; of reads, the revision as well. Nothing keeps entries in memory for reads: their bytes come from the hosts
//! (the page cache, for folders), each time from a majority of the seven hosts of an entry, others each time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use compat_tests::Gateway;
use compat_tests::registry::{Entry, Owner, Subscriber};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::report::{Goal, Report, Samples, quantile};
use crate::{Plan, load, process, runtime};

const CLIENTS: usize = 32;
/// Data of an entry; with keys and signature its record has 250 bytes on a host.
const DATA_BYTES: usize = 113;
/// Entries of one client that are written again and again.
const KEYS_EACH: usize = 8;
/// A reply that takes longer has failed.
const REPLY_MAX: Duration = Duration::from_secs(30);
/// Between two writes of an entry that somebody watches: a busy application, not a load test.
const PUSH_EVERY: Duration = Duration::from_millis(5);
/// Longest reply: a head and a few hundred bytes of JSON.
const REPLY_BYTES_MAX: usize = 8 << 10;

/// Requests of one client, one after the other.
type Requests = Vec<Vec<u8>>;

#[derive(Default)]
struct Figures {
    rate: Samples,
    p99: Samples,
    p999: Samples,
    server_us: Samples,
    client_us: Samples,
    all_ms: Vec<f64>,
}

pub fn registry(plan: &Plan, report: &mut Report) {
    let each = plan.size(1_000, 40);
    let (mut distinct, mut rising, mut reads, mut idle_push, mut busy_push) = <(Figures, Figures, Figures, _, _)>::default();
    for _ in 0..plan.rounds {
        let folder = plan.folder();
        let gateway = Gateway::start(folder.path());
        let measured = (|| {
            distinct.add(&gateway, (0..CLIENTS).map(|client| distinct_writes(client, each)).collect(), 204)?;
            rising.add(&gateway, (0..CLIENTS).map(|client| rising_writes(client, each)).collect(), 204)?;
            reads.add(&gateway, (0..CLIENTS).map(|client| reads_of(client, each)).collect(), 200)?;
            pushes(&gateway, plan.size(1_000, 50), 0, &mut idle_push)?;
            pushes(&gateway, plan.size(1_000, 50), each, &mut busy_push)
        })();
        if let Err(error) = measured {
            return report.missing("registry", &error);
        }
        gateway.stop();
    }
    distinct.report(report, "registry writes, distinct keys", 3_000.0, Some(10.0));
    rising.report(report, "registry writes, 256 keys with rising revisions", 3_000.0, Some(10.0));
    reads.report(report, "registry reads, uncached", 8_000.0, None);
    push_row(report, "push to a subscriber, p99", idle_push);
    push_row(report, "push to a subscriber while 31 clients write, p99", busy_push);
}

fn post(entry: &Entry) -> Vec<u8> {
    let body = entry.body();
    format!("POST /skynet/registry HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn entry(owner: &Owner, number: usize, revision: u64) -> Entry {
    owner.sign(number as u64, &[revision as u8; DATA_BYTES], revision)
}

fn distinct_writes(client: usize, each: usize) -> Requests {
    let owner = Owner::new(client as u8);
    (0..each).map(|number| post(&entry(&owner, number, 0))).collect()
}

fn rising_writes(client: usize, each: usize) -> Requests {
    let owner = Owner::new(100 + client as u8);
    (0..each).map(|number| post(&entry(&owner, number % KEYS_EACH, (number / KEYS_EACH) as u64))).collect()
}

/// The entries of [`distinct_writes`], of another client each time.
fn reads_of(client: usize, each: usize) -> Requests {
    let read = |number: usize| {
        let entry = entry(&Owner::new(((client + number) % CLIENTS) as u8), (number * 7) % each, 0);
        format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", entry.target()).into_bytes()
    };
    (0..each * 2).map(read).collect()
}

impl Figures {
    fn add(&mut self, gateway: &Gateway, clients: Vec<Requests>, status: u16) -> Result<(), String> {
        let address: SocketAddr = gateway.public.trim_start_matches("http://").parse().expect("a listener has an address");
        let (server, client) = (process::cpu_seconds(&[gateway.pid()]), process::own_cpu_seconds());
        let begin = Instant::now();
        let runs = clients.iter().map(|requests| one_client(address, requests, status));
        let latencies: Vec<Vec<f64>> = runtime().block_on(futures::future::try_join_all(runs))?;
        let seconds = begin.elapsed().as_secs_f64();
        let mut latencies = latencies.concat();
        let count = latencies.len() as f64;
        self.rate.push(count / seconds);
        self.server_us.push((process::cpu_seconds(&[gateway.pid()]) - server) * 1e6 / count);
        self.client_us.push((process::own_cpu_seconds() - client) * 1e6 / count);
        self.p99.push(quantile(&mut latencies, 0.99));
        self.p999.push(quantile(&mut latencies, 0.999));
        self.all_ms.extend(latencies);
        Ok(())
    }

    fn report(&self, report: &mut Report, name: &str, rate: f64, p99_ms: Option<f64>) {
        let cpu = format!("CPU us each: server {}, client {}", self.server_us.show(), self.client_us.show());
        let all = load::quantiles(&self.all_ms);
        report.row(&format!("{name}, {CLIENTS} clients"), "1/s", &self.rate, Goal::AtLeast(rate), &format!("{cpu}; {all}"));
        report.row(&format!("{name}, p99"), "ms", &self.p99, p99_ms.map_or(Goal::None, Goal::AtMost), "");
        report.row(&format!("{name}, p999"), "ms", &self.p999, Goal::AtMost(20.0), "");
    }
}

async fn one_client(address: SocketAddr, requests: &Requests, status: u16) -> Result<Vec<f64>, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut latencies_ms = Vec::with_capacity(requests.len());
    for request in requests {
        let sent = Instant::now();
        let asked = tokio::time::timeout(REPLY_MAX, ask(&mut stream, request, status)).await;
        asked.map_err(|_| "no reply in time".to_owned())??;
        latencies_ms.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    Ok(latencies_ms)
}

async fn ask(stream: &mut TcpStream, request: &[u8], status: u16) -> Result<(), String> {
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    let (mut reply, mut have) = ([0; REPLY_BYTES_MAX], 0);
    loop {
        let got = stream.read(&mut reply[have..]).await.map_err(|error| error.to_string())?;
        have += got;
        let Some(end) = reply[..have].windows(4).position(|four| four == b"\r\n\r\n") else {
            if got == 0 || have == reply.len() {
                return Err("the reply has no end".to_owned());
            }
            continue;
        };
        let head = String::from_utf8_lossy(&reply[..end]);
        let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
        let length = load::header(headers, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if have < end + 4 + length {
            continue;
        }
        let body = String::from_utf8_lossy(&reply[end + 4..have]);
        let good = line.get(9..12) == Some(&status.to_string()) && (status == 204 || body.contains("\"revision\":0"));
        return if good { Ok(()) } else { Err(format!("{line}: {body}")) };
    }
}

/// Writes an entry again and again, at a steady pace, and notes when a subscriber is told. Others write meanwhile, each
/// `background` entries.
fn pushes(gateway: &Gateway, count: usize, background: usize, samples: &mut Vec<Vec<f64>>) -> Result<(), String> {
    let address: SocketAddr = gateway.public.trim_start_matches("http://").parse().expect("a listener has an address");
    let (owner, base) = (Owner::new(200), samples.len() as u64 * 1_000_000 + if background > 0 { 500_000 } else { 1 });
    let entries: Vec<Entry> = (0..count).map(|number| entry(&owner, background, base + number as u64)).collect();
    let others: Vec<Requests> = (1..CLIENTS)
        .map(|client| (0..background).map(|number| post(&entry(&Owner::new(201), client, base + number as u64))).collect())
        .collect();
    let told = runtime().block_on(async {
        let mut subscriber = Subscriber::open(gateway, "").await;
        subscriber.subscribe(&entries[0]).await;
        subscriber.heard().await;
        let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (sent, mut heard) = (std::cell::RefCell::new(Vec::new()), Vec::new());
        let write = async {
            let mut pace = tokio::time::interval(PUSH_EVERY);
            for entry in &entries {
                pace.tick().await;
                let request = post(entry);
                sent.borrow_mut().push(Instant::now());
                ask(&mut stream, &request, 204).await?;
            }
            Ok::<(), String>(())
        };
        let listen = async {
            loop {
                let revision = subscriber.told().await["revision"].as_u64().expect("a revision");
                let place = (revision - base) as usize;
                heard.push(sent.borrow()[place].elapsed().as_secs_f64() * 1e3);
                if place + 1 == entries.len() {
                    return Ok::<(), String>(());
                }
            }
        };
        let load = futures::future::try_join_all(others.iter().map(|requests| one_client(address, requests, 204)));
        let (told, _) = futures::future::join(futures::future::try_join(write, listen), load).await;
        told.map(|_| heard)
    })?;
    samples.push(told);
    Ok(())
}

fn push_row(report: &mut Report, name: &str, samples: Vec<Vec<f64>>) {
    let p99: Samples = samples.iter().map(|round| quantile(&mut round.clone(), 0.99)).collect();
    report.row(
        name,
        "ms",
        &p99,
        Goal::AtMost(50.0),
        &format!("from the first byte of the write; {}", load::quantiles(&samples.concat())),
    );
}
