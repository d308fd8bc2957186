//! A load generator for ranges and many paths: HTTP/1.1 with kept connections, one thread. Unlike `wrk` it looks at
//! every reply: status, length, where the bytes came from, and for a share of them every byte.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use compat_tests::Gateway;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::net::{RecvFlags, sockopt::set_socket_recv_buffer_size_force};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};

use crate::report::quantile;
use crate::{process, runtime};

/// A reply that takes longer has failed: it is a thousand times what is asked.
const REPLY_MAX: Duration = Duration::from_secs(30);
/// Replies whose bytes are compared: one in this many. Comparing all of them would cost the server's cores.
const COMPARED: usize = 8;
/// From the start of an open loop to its first request.
const SET_UP: Duration = Duration::from_millis(100);
/// Read of a stream at once.
const PART_BYTES: usize = 256 << 10;
/// Of a connection's receive buffer. As the kernel makes them, a reply larger than a new connection's window can stop for 10 to
/// 110 ms on loopback, whose segments are as large as the window: whoever serves, and on no real network.
const WINDOW_BYTES: usize = 2 << 20;
/// Longest head that is read.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// One request and what its reply must hold.
pub struct Want<'a> {
    pub path: &'a str,
    /// `None` asks for all of it.
    pub range: Option<Range<usize>>,
    /// The body.
    pub bytes: &'a [u8],
}

/// When to stop.
#[derive(Clone, Copy)]
pub enum Until {
    Elapsed(Duration),
    /// After this many requests.
    Count(usize),
}

/// What one run saw.
#[derive(Default)]
pub struct Outcome {
    pub seconds: f64,
    pub latencies_ms: Vec<f64>,
    /// Replies by the class in their Cache-Status.
    pub classes: BTreeMap<String, usize>,
    /// Most rounds of host requests, one after another, that a reply told of.
    pub rounds_max: u32,
    pub server_cpu_seconds: f64,
    pub client_cpu_seconds: f64,
    /// The client did not wait for a processor.
    pub is_client_first: bool,
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        self.latencies_ms.len() as f64 / self.seconds
    }

    pub fn server_us(&self) -> f64 {
        self.server_cpu_seconds * 1e6 / self.latencies_ms.len() as f64
    }

    pub fn client_us(&self) -> f64 {
        self.client_cpu_seconds * 1e6 / self.latencies_ms.len() as f64
    }

    /// `Err` if a reply came from elsewhere than the classes named.
    pub fn only(self, classes: &[&str]) -> Result<Outcome, String> {
        match self.classes.keys().all(|class| classes.contains(&class.as_str())) {
            true => Ok(self),
            false => Err(format!("replies came from {:?}, wanted only {classes:?}", self.classes)),
        }
    }
}

/// How many replies were of which class.
pub fn classes(classes: &BTreeMap<String, usize>) -> String {
    classes.iter().map(|(class, count)| format!("{count} {class}")).collect::<Vec<_>>().join(", ")
}

pub fn quantiles(latencies_ms: &[f64]) -> String {
    let mut sorted = latencies_ms.to_vec();
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| quantile(&mut sorted, share));
    format!("p50 {p50:.2}, p99 {p99:.2}, p999 {p999:.2}, max {:.1} ms of {}", sorted.last().unwrap_or(&f64::NAN), sorted.len())
}

/// Sends `want(0)`, `want(1)`, … over some connections, each waiting for its reply. The first wrong reply ends the run.
pub fn run<'a>(gateway: &Gateway, connections: usize, until: Until, want: impl Fn(usize) -> Want<'a>) -> Result<Outcome, String> {
    let address = address(gateway);
    let runtime = runtime();
    let next = AtomicUsize::new(0);
    let (server, client) = (process::cpu_seconds(&[gateway.pid()]), process::own_cpu_seconds());
    let begin = Instant::now();
    let tasks = (0..connections).map(|_| one_connection(address, &next, begin, until, &want));
    let parts = runtime.block_on(futures::future::try_join_all(tasks))?;
    let mut outcome = Outcome {
        seconds: begin.elapsed().as_secs_f64(),
        server_cpu_seconds: process::cpu_seconds(&[gateway.pid()]) - server,
        client_cpu_seconds: process::own_cpu_seconds() - client,
        ..Outcome::default()
    };
    for part in parts {
        outcome.latencies_ms.extend(part.latencies_ms);
        outcome.rounds_max = outcome.rounds_max.max(part.rounds_max);
        for (class, count) in part.classes {
            *outcome.classes.entry(class).or_default() += count;
        }
    }
    Ok(outcome)
}

/// Sends `want(0)`, `want(1)`, … at random times that come to `rate` a second, whatever the replies do, and counts each
/// latency from the moment it was meant to be sent: a request that had to wait for its turn waited. Waiting for a processor that
/// the server has is no part of that where it can be helped: clients are on other machines. `server`: whose processor time is
/// counted.
pub fn open_loop<'a>(
    address: SocketAddr,
    server: Option<u32>,
    rate: f64,
    count: usize,
    seed: u64,
    want: impl Fn(usize) -> Want<'a> + Sync,
) -> Result<Outcome, String> {
    let server_pids = server.as_slice();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut at = 0.0;
    let gaps = (0..count).map(|_| {
        at -= random.random_range(f64::MIN_POSITIVE..1.0).ln() / rate;
        Duration::from_secs_f64(at)
    });
    let times: Vec<Duration> = gaps.collect();
    let (server, client) = (process::cpu_seconds(server_pids), process::own_cpu_seconds());
    // Both threads are made ready before the first request is due.
    let begin = Instant::now() + SET_UP;
    let (due, mut dues) = tokio::sync::mpsc::unbounded_channel();
    let mut outcome = std::thread::scope(|scope| {
        // A thread keeps time: timers of the runtime are right to a millisecond only.
        scope.spawn(|| {
            let due = due;
            process::run_before_others();
            for (number, time) in times.iter().enumerate() {
                std::thread::sleep((begin + *time).saturating_duration_since(Instant::now()));
                if due.send((number, begin + *time)).is_err() {
                    return;
                }
            }
        });
        let client = scope.spawn(|| {
            let is_client_first = process::run_before_others();
            runtime().block_on(async {
                let mut idle: Vec<Connection> = Vec::new();
                let mut running = FuturesUnordered::new();
                let mut outcome = Outcome { is_client_first, ..Outcome::default() };
                loop {
                    tokio::select! {
                        Some((number, time)) = dues.recv() => {
                            let (connection, want) = (idle.pop(), want(number));
                            running.push(async move {
                                let mut connection = match connection {
                                    Some(connection) => connection,
                                    None => Connection::open(address).await?,
                                };
                                let class = connection.ask_in_time(&want, number).await?.class;
                                Ok::<_, String>((connection, class, time.elapsed()))
                            });
                        }
                        Some(answered) = running.next() => {
                            let (connection, class, latency) = answered?;
                            idle.push(connection);
                            outcome.latencies_ms.push(latency.as_secs_f64() * 1e3);
                            *outcome.classes.entry(class).or_default() += 1;
                        }
                        else => return Ok::<_, String>(outcome),
                    }
                }
            })
        });
        client.join().expect("the client does not panic")
    })?;
    outcome.seconds = begin.elapsed().as_secs_f64();
    outcome.server_cpu_seconds = process::cpu_seconds(server_pids) - server;
    outcome.client_cpu_seconds = process::own_cpu_seconds() - client;
    Ok(outcome)
}

/// Reads one whole file as it comes, without keeping it; every byte is compared.
pub fn stream(gateway: &Gateway, path: &str, bytes: &[u8]) -> Result<Outcome, String> {
    let server = process::cpu_seconds(&[gateway.pid()]);
    let begin = Instant::now();
    let class = runtime().block_on(async {
        let mut connection = Connection::open(address(gateway)).await?;
        let want = Want { path, range: None, bytes };
        let head = connection.head(&want).await?;
        let mut part = vec![0; PART_BYTES];
        let mut at = connection.buffer.len();
        let mut same = connection.buffer == bytes[..at];
        while at < bytes.len() {
            let got = connection.stream.read(&mut part).await.map_err(|error| error.to_string())?;
            if got == 0 {
                return Err(format!("{path}: the body ends at {at} of {} bytes", bytes.len()));
            }
            same &= bytes.get(at..at + got) == Some(&part[..got]);
            at += got;
        }
        if same { Ok(head.class) } else { Err(format!("{path}: wrong bytes")) }
    })?;
    Ok(Outcome {
        seconds: begin.elapsed().as_secs_f64(),
        classes: [(class, 1)].into(),
        server_cpu_seconds: process::cpu_seconds(&[gateway.pid()]) - server,
        ..Outcome::default()
    })
}

pub fn address(gateway: &Gateway) -> SocketAddr {
    gateway.public.trim_start_matches("http://").parse().expect("a listener has an address")
}

async fn one_connection<'a>(
    address: SocketAddr,
    next: &AtomicUsize,
    begin: Instant,
    until: Until,
    want: &impl Fn(usize) -> Want<'a>,
) -> Result<Outcome, String> {
    let mut connection = Connection::open(address).await?;
    let mut outcome = Outcome::default();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let over = match until {
            Until::Elapsed(longest) => begin.elapsed() >= longest,
            Until::Count(count) => number >= count,
        };
        if over {
            return Ok(outcome);
        }
        let want = want(number);
        let sent = Instant::now();
        let head = connection.ask_in_time(&want, number).await?;
        outcome.latencies_ms.push(sent.elapsed().as_secs_f64() * 1e3);
        outcome.rounds_max = outcome.rounds_max.max(head.rounds);
        *outcome.classes.entry(head.class).or_default() += 1;
    }
}

/// What is looked at in the head of a reply.
struct Head {
    class: String,
    rounds: u32,
}

struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    /// The body of the last reply.
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Connection, String> {
        let socket = TcpSocket::new_v4().map_err(|error| error.to_string())?;
        // Only root may have that much; the kernel's own size is right without it, but for a reply in some thousands.
        let _ = set_socket_recv_buffer_size_force(&socket, WINDOW_BYTES);
        let stream = socket.connect(address).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Connection { stream, address, buffer: Vec::new() })
    }

    /// Request number `number`; some of them are compared.
    async fn ask_in_time(&mut self, want: &Want<'_>, number: usize) -> Result<Head, String> {
        let reply = tokio::time::timeout(REPLY_MAX, self.ask(want, number.is_multiple_of(COMPARED))).await;
        reply.unwrap_or_else(|_| Err("no reply in time".to_owned())).map_err(|error| format!("{}: {error}", want.path))
    }

    async fn ask(&mut self, want: &Want<'_>, is_compared: bool) -> Result<Head, String> {
        let head = self.head(want).await?;
        let here = self.buffer.len();
        if is_compared {
            self.buffer.resize(want.bytes.len(), 0);
            self.stream.read_exact(&mut self.buffer[here..]).await.map_err(|error| format!("in the body: {error}"))?;
            if self.buffer != want.bytes {
                return Err(format!("wrong bytes at {:?}", want.range));
            }
        } else {
            self.pass_over(want.bytes.len() - here).await.map_err(|error| format!("in the body: {error}"))?;
        }
        Ok(head)
    }

    /// Takes so many bytes off the connection without copying them: what a client does with a body costs the server's cores here,
    /// and waits in this one thread's queue.
    async fn pass_over(&mut self, mut left: usize) -> std::io::Result<()> {
        while left > 0 {
            self.stream.readable().await?;
            self.buffer.resize(left.max(self.buffer.len()), 0);
            let take = || Ok(rustix::net::recv(&self.stream, &mut self.buffer[..left], RecvFlags::TRUNC)?.1);
            match self.stream.try_io(Interest::READABLE, take) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(taken) => left -= taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends a request and reads the head of its reply; what came of the body with it is in the buffer.
    async fn head(&mut self, want: &Want<'_>) -> Result<Head, String> {
        let range =
            want.range.as_ref().map_or(String::new(), |range| format!("Range: bytes={}-{}\r\n", range.start, range.end - 1));
        let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n{range}\r\n", want.path, self.address);
        self.stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut head = [0; HEAD_BYTES_MAX];
        let mut have = 0;
        let body_at = loop {
            let got = self.stream.read(&mut head[have..]).await.map_err(|error| error.to_string())?;
            if got == 0 {
                return Err("the connection was closed".to_owned());
            }
            have += got;
            if let Some(end) = head[..have].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if have == head.len() {
                return Err("the head has no end".to_owned());
            }
        };
        let text = String::from_utf8_lossy(&head[..body_at]);
        let (line, headers) = text.split_once("\r\n").expect("a head has lines");
        let expected = if want.range.is_some() { "HTTP/1.1 206 " } else { "HTTP/1.1 200 " };
        let length = header(headers, "content-length").and_then(|length| length.parse::<usize>().ok());
        if !line.starts_with(expected) || length != Some(want.bytes.len()) {
            return Err(format!("{line}, length {length:?} where {} bytes were wanted", want.bytes.len()));
        }
        if have - body_at > want.bytes.len() {
            return Err("more bytes than announced".to_owned());
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(&head[body_at..have]);
        let status = header(headers, "cache-status").unwrap_or_default();
        let class = status.rsplit_once("detail=").map_or(status, |(_, class)| class).to_owned();
        let timing = header(headers, "server-timing").unwrap_or_default();
        let rounds = timing.split_once("rounds;desc=\"").and_then(|(_, text)| text.split('"').next()?.parse().ok()).unwrap_or(0);
        Ok(Head { class, rounds })
    }
}

/// A header's value out of the lines of a head.
pub fn header<'a>(headers: &'a str, name: &str) -> Option<&'a str> {
    headers.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
