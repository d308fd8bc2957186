//! CARs of what is not in memory, and answers about what is not there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use compat_tests::{Gateway, Options};

use crate::report::{Goal, Report, Samples};
use crate::{Plan, content, load, process, runtime, wait_complete};

/// Silence of the gateway that ends a transfer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const UNKNOWN_ADDRESSES: usize = 2_000;

pub fn archive(plan: &Plan, report: &mut Report) {
    let folder = plan.folder();
    let length = plan.size(100 << 20, 8 << 20);
    let (source, data) = (folder.path().join("large.bin"), folder.path().join("data"));
    content::write_file(&source, 61, length);
    // No body is kept, and the process is a fresh one each time.
    let options = Options::config("[store]\nmemory_bytes = 0\n");
    let gateway = Gateway::start_with(&data, &options);
    let added = match gateway.add(&source, &[]).and_then(|added| wait_complete(&gateway).map(|()| added)) {
        Ok(added) => added,
        Err(error) => return report.missing("CAR", &error),
    };
    let cid = added["cid"].as_str().expect("an add says its CID").to_owned();
    gateway.stop();
    let (mut rates, mut core_seconds, mut unknown, mut latencies_ms) = <(Samples, Samples, Samples, Vec<f64>)>::default();
    for round in 0..plan.rounds {
        let gateway = Gateway::start_with(&data, &options);
        runtime().block_on(gateway.catalog_complete());
        let before = process::cpu_seconds(&[gateway.pid()]);
        let (seconds, read) = process::timed(|| read_all(&gateway, &format!("/ipfs/{cid}?format=car")));
        match read {
            Ok(bytes) if bytes > length => rates.push(bytes as f64 / 1e9 / seconds),
            Ok(bytes) => return report.missing("CAR", &format!("only {bytes} bytes came")),
            Err(error) => return report.missing("CAR", &error.to_string()),
        }
        core_seconds.push((process::cpu_seconds(&[gateway.pid()]) - before) / (length as f64 / 1e9));
        match ask_for_unknown(&gateway, round as u64) {
            Ok(mut asked) => {
                asked.sort_by(f64::total_cmp);
                unknown.push(asked[asked.len() * 99 / 100]);
                latencies_ms.extend(asked);
            }
            Err(error) => return report.missing("unknown CIDs", &error.to_string()),
        }
        gateway.stop();
    }
    let name = format!("CAR of a file of {} MiB, uncached, fresh process", length >> 20);
    report.row(&name, "GB/s", &rates, Goal::AtLeast(0.6), &format!("server's core-seconds a GB: {}", core_seconds.show()));
    let beside = format!("one connection, complete catalog; {}", load::quantiles(&latencies_ms));
    report.row("404 of an unknown CID, p99", "ms", &unknown, Goal::AtMost(1.0), &beside);
}

/// Bytes of a whole answer, head included. A body that is cut is an error.
fn read_all(gateway: &Gateway, target: &str) -> std::io::Result<usize> {
    let mut stream = connect(gateway)?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let (mut buffer, mut bytes, mut end) = (vec![0; 1 << 20], 0, Vec::new());
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        bytes += count;
        end.extend_from_slice(&buffer[count.saturating_sub(16)..count]);
        let spare = end.len().saturating_sub(16);
        end.drain(..spare);
    }
    match end.ends_with(b"0\r\n\r\n") {
        true => Ok(bytes),
        false => Err(std::io::Error::other("the body was cut")),
    }
}

/// Milliseconds of each answer, on one connection that is kept.
fn ask_for_unknown(gateway: &Gateway, round: u64) -> std::io::Result<Vec<f64>> {
    let mut stream = connect(gateway)?;
    let mut latencies_ms = Vec::with_capacity(UNKNOWN_ADDRESSES);
    let mut buffer = vec![0; 64 << 10];
    for number in 0..UNKNOWN_ADDRESSES as u64 {
        let cid = compat_tests::unixfs::raw(&[round.to_le_bytes(), number.to_le_bytes()].concat()).cid();
        let begun = Instant::now();
        write!(stream, "HEAD /ipfs/{cid} HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Err(std::io::Error::other("the connection ended"));
            }
            head.extend_from_slice(&buffer[..count]);
        }
        latencies_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        if !head.starts_with(b"HTTP/1.1 404") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&head[..head.len().min(40)]).into_owned()));
        }
    }
    Ok(latencies_ms)
}

fn connect(gateway: &Gateway) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(gateway.public.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
