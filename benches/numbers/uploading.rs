//! Small uploads to the portal, as apps make them: `POST /skynet/skyfile` with one part of 4 KiB, kept connections.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use compat_tests::{Gateway, seeded_bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::report::{Goal, Report, Samples, quantile};
use crate::{Plan, load, process, runtime, uncached};

const CLIENTS: usize = 16;
const FILE_BYTES: usize = 4096;
/// A reply that takes longer has failed.
const REPLY_MAX: Duration = Duration::from_secs(30);
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Skynet published 12.5 s for the p999 of a base upload (August 2021).
const SKYNET_P999_MS: f64 = 12_544.0;

/// Rate and latency to the acknowledgement, on nine folder hosts that keep nothing in memory.
pub fn small_uploads(plan: &Plan, report: &mut Report) {
    let longest = plan.size(Duration::from_secs(15), Duration::from_secs(2));
    let (mut rates, mut p50, mut p99, mut p999, mut server_us) = <(Samples, Samples, Samples, Samples, Samples)>::default();
    let mut uploads = 0;
    for round in 0..plan.rounds {
        let folder = plan.folder();
        let gateway = uncached(folder.path());
        process::settle_disk();
        let server = process::cpu_seconds(&[gateway.pid()]);
        let begin = Instant::now();
        let latencies = match one_round(&gateway, round, longest) {
            Ok(latencies) => latencies,
            Err(error) => return report.missing("uploads of 4 KiB", &error),
        };
        rates.push(latencies.len() as f64 / begin.elapsed().as_secs_f64());
        server_us.push((process::cpu_seconds(&[gateway.pid()]) - server) * 1e6 / latencies.len() as f64);
        uploads += latencies.len();
        let mut sorted = latencies;
        for (samples, share) in [(&mut p50, 0.5), (&mut p99, 0.99), (&mut p999, 0.999)] {
            samples.push(quantile(&mut sorted, share));
        }
    }
    let beside = format!("{uploads} uploads, each acknowledged; server's CPU {} us each", server_us.show());
    report.row(&format!("uploads of 4 KiB by {CLIENTS} clients"), "/s", &rates, Goal::None, &beside);
    report.row("the same, p50", "ms", &p50, Goal::None, "");
    report.row("the same, p99", "ms", &p99, Goal::None, "");
    report.row("the same, p999", "ms", &p999, Goal::AtMost(SKYNET_P999_MS), "Skynet's own was 12,544 ms");
}

fn one_round(gateway: &Gateway, round: usize, longest: Duration) -> Result<Vec<f64>, String> {
    let address: SocketAddr = gateway.public.trim_start_matches("http://").parse().expect("a listener has an address");
    let begin = Instant::now();
    let clients = (0..CLIENTS).map(|client| one_client(address, (round * CLIENTS + client) as u64, begin, longest));
    let parts = runtime().block_on(futures::future::try_join_all(clients))?;
    Ok(parts.into_iter().flatten().collect())
}

async fn one_client(address: SocketAddr, seed: u64, begin: Instant, longest: Duration) -> Result<Vec<f64>, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut bytes = seeded_bytes(seed, FILE_BYTES);
    let mut latencies = Vec::new();
    while begin.elapsed() < longest {
        // Another file each time: what is there already would be another thing.
        bytes[..8].copy_from_slice(&(latencies.len() as u64).to_le_bytes());
        let request = request(address, &bytes);
        let sent = Instant::now();
        let reply = tokio::time::timeout(REPLY_MAX, exchange(&mut stream, &request)).await;
        reply.map_err(|_| "no reply in time".to_owned())??;
        latencies.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    Ok(latencies)
}

fn request(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let before = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.bin\"\r\n\r\n";
    let after = "\r\n--b--\r\n";
    let length = before.len() + bytes.len() + after.len();
    let head = format!(
        "POST /skynet/skyfile HTTP/1.1\r\nHost: {address}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), before.as_bytes(), bytes, after.as_bytes()].concat()
}

/// Sends one upload and reads its answer, which must be a good one.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<(), String> {
    stream.write_all(request).await.map_err(|error| format!("while sending: {error}"))?;
    let mut reply = Vec::new();
    let body_at = loop {
        if let Some(at) = reply.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let read = stream.read_buf(&mut reply).await.map_err(|error| error.to_string())?;
        if read == 0 || reply.len() > HEAD_BYTES_MAX {
            return Err("the connection was closed".to_owned());
        }
    };
    let head = String::from_utf8_lossy(&reply[..body_at]).into_owned();
    let length = load::header(&head, "content-length").and_then(|length| length.parse::<usize>().ok());
    let length = length.filter(|_| head.starts_with("HTTP/1.1 200 ")).ok_or_else(|| head.clone())?;
    while reply.len() < body_at + length {
        if stream.read_buf(&mut reply).await.map_err(|error| error.to_string())? == 0 {
            return Err("the connection was closed".to_owned());
        }
    }
    Ok(())
}
