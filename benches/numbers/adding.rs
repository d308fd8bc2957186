//! What adding costs: time, processor, memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use compat_tests::{Gateway, binary, seeded_bytes};

use crate::report::{Goal, Report, Samples, number};
use crate::{Plan, content, load, process, wait_complete};

const MIB: usize = 1 << 20;
/// Longest time of one add or copy; it is far behind every goal.
const WORK_MAX: Duration = Duration::from_secs(600);
/// Silence of the gateway that ends a transfer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const UPLOADS_AT_ONCE: usize = 16;
/// What the file of 10 GiB takes at 6 + 3, and some to spare.
const LARGE_NEEDS_BYTES: u64 = 18 << 30;

/// Memory of a gateway that does nothing.
pub fn idle(plan: &Plan, report: &mut Report) {
    let (mut fresh, mut again) = (Samples::default(), Samples::default());
    for _ in 0..plan.rounds {
        let folder = plan.folder();
        for samples in [&mut fresh, &mut again] {
            let gateway = Gateway::start(folder.path());
            samples.push(process::resident_mib(gateway.pid()));
            gateway.stop();
        }
    }
    let beside = format!("embedded default with its sample site; started again: {}", number(again.median()));
    report.row("idle, resident", "MiB", &fresh, Goal::AtMost(60.0), &beside);
}

/// One large file through the command line, beside `cp` and `sync` of the same file.
pub fn one_large_file(plan: &Plan, report: &mut Report) {
    let folder = plan.folder();
    let length = plan.size(1 << 30, 48 << 20);
    let mib = (length / MIB) as f64;
    let source = folder.path().join("large.bin");
    content::write_file(&source, 51, length);
    let (mut copied, mut added, mut server, mut client, mut peak) = <(Samples, Samples, Samples, Samples, Samples)>::default();
    for round in 0..plan.rounds {
        copied.push(mib / copy(&source, &folder.path().join("copy.bin")));
        // A new portal each round: content that is there already would be another thing.
        let data = folder.path().join(format!("data-{round}"));
        let gateway = Gateway::start(&data);
        process::settle_disk();
        let server_before = process::cpu_seconds(&[gateway.pid()]);
        let client_before = process::ended_children_cpu_seconds();
        let (seconds, result) = process::timed(|| gateway.add(&source, &[]));
        if let Err(error) = result {
            return report.missing("add 1 GiB", &error);
        }
        client.push(process::ended_children_cpu_seconds() - client_before);
        added.push(mib / seconds);
        // Pieces that were not waited for are part of the work.
        if let Err(error) = wait_complete(&gateway) {
            return report.missing("add 1 GiB", &error);
        }
        server.push(process::cpu_seconds(&[gateway.pid()]) - server_before);
        peak.push(process::peak_mib(gateway.pid()));
        drop(gateway);
        std::fs::remove_dir_all(&data).expect("an own folder can be removed");
    }
    let beside = format!(
        "`cp` and `sync` {} MiB/s; core-seconds: server {}, client {}; server's peak {} MiB",
        copied.show(),
        server.show(),
        client.show(),
        number(peak.max())
    );
    report.row(&format!("add one file of {mib} MiB"), "MiB/s", &added, Goal::AtLeast(450.0), &beside);
    report.row("the same over `cp` and `sync` of the same rounds", "x", &added.over(&copied), Goal::AtLeast(0.4), "");
    let per_gib = server.scaled(1024.0 / mib);
    report.row(
        "server's core-seconds a GiB",
        "s",
        &per_gib,
        Goal::AtMost(3.6),
        "with the pieces written after the acknowledgement",
    );
}

/// Many small files, beside `cp -r` and `sync` of the same folder.
pub fn many_small_files(plan: &Plan, report: &mut Report) {
    let folder = plan.folder();
    let files = plan.size(10_000, 500);
    let source = folder.path().join("many");
    content::write_folder(&source, 52, files, 4096);
    let (mut copied, mut added, mut server, mut client) = <(Samples, Samples, Samples, Samples)>::default();
    for round in 0..plan.rounds {
        copied.push(copy(&source, &folder.path().join("copy")));
        let data = folder.path().join(format!("data-{round}"));
        let gateway = Gateway::start(&data);
        process::settle_disk();
        let server_before = process::cpu_seconds(&[gateway.pid()]);
        let client_before = process::ended_children_cpu_seconds();
        let (seconds, result) = process::timed(|| gateway.add(&source, &[]));
        match result {
            Ok(told) if told["files"] == files => added.push(seconds),
            Ok(told) => return report.missing("add many files", &format!("it says {told}")),
            Err(error) => return report.missing("add many files", &error),
        }
        client.push(process::ended_children_cpu_seconds() - client_before);
        server.push(process::cpu_seconds(&[gateway.pid()]) - server_before);
        drop(gateway);
        std::fs::remove_dir_all(&data).expect("an own folder can be removed");
    }
    let beside =
        format!("`cp -r` and `sync` {} s; core-seconds: server {}, client {}", copied.show(), server.show(), client.show());
    report.row(&format!("add a folder of {files} files of 4 KiB"), "s", &added, Goal::AtMost(2.0), &beside);
}

/// Seconds of copying and flushing, after everything older was flushed.
fn copy(from: &Path, to: &Path) -> f64 {
    process::settle_disk();
    let mut both = Command::new("sh");
    both.args(["-c", "cp -r \"$0\" \"$1\" && sync"]).arg(from).arg(to);
    let (seconds, _) = process::timed(|| process::run(&mut both, WORK_MAX));
    process::run(Command::new("rm").arg("-r").arg(to), WORK_MAX);
    seconds
}

/// The most memory the gateway ever takes.
pub fn memory(plan: &Plan, report: &mut Report) {
    match uploads_at_once(plan) {
        Ok((peak, beside)) => {
            report.row(&format!("{UPLOADS_AT_ONCE} uploads at once, peak"), "MiB", &peak, Goal::AtMost(300.0), &beside);
        }
        Err(error) => report.missing("uploads at once", &error),
    }
    let name = "a file of 10 GiB";
    if !plan.large {
        return report.missing(name, "asked for with --large");
    }
    match one_huge_file(plan) {
        Ok((adding, reading, beside)) => {
            report.row(&format!("{name}: added, peak"), "MiB", &adding, Goal::AtMost(300.0), &beside);
            report.row(
                &format!("{name}: read, peak"),
                "MiB",
                &reading,
                Goal::AtMost(300.0),
                "in a new process, every byte compared",
            );
        }
        Err(error) => report.missing(name, &error),
    }
}

fn uploads_at_once(plan: &Plan) -> Result<(Samples, String), String> {
    let folder = plan.folder();
    let length = plan.size(64 << 20, 4 << 20);
    let sources: Vec<_> = (0..UPLOADS_AT_ONCE).map(|number| folder.path().join(format!("{number}.bin"))).collect();
    for (number, source) in sources.iter().enumerate() {
        content::write_file(source, 530 + number as u64, length);
    }
    let gateway = Gateway::start(&folder.path().join("data"));
    let begin = std::time::Instant::now();
    let uploads: Vec<_> = sources.iter().map(|source| spawn_add(&gateway, source)).collect();
    for upload in uploads {
        let output = upload.wait_with_output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
        }
    }
    let rate = (UPLOADS_AT_ONCE * length / MIB) as f64 / begin.elapsed().as_secs_f64();
    let peak = process::peak_mib(gateway.pid());
    Ok((Samples::from_iter([peak]), format!("each of {} MiB, {rate:.0} MiB/s together", length / MIB)))
}

fn spawn_add(gateway: &Gateway, source: &Path) -> std::process::Child {
    let mut add = Command::new(binary());
    add.arg("add").arg(source).args(["--json", "--api", &gateway.admin]).arg("--data").arg(&gateway.data);
    add.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary can be started")
}

/// Adds and reads a file that is never on a disk as a whole. Gives the peaks of both and what to say beside them.
fn one_huge_file(plan: &Plan) -> Result<(Samples, Samples, String), String> {
    let folder = plan.folder();
    let blocks = plan.size(10 << 10, 100);
    let free = process::free_bytes(folder.path());
    if !plan.small && free < LARGE_NEEDS_BYTES {
        return Err(format!("it takes {LARGE_NEEDS_BYTES} bytes of disk, {free} are free"));
    }
    let block = seeded_bytes(54, MIB);
    let gateway = Gateway::start(folder.path());
    let begin = std::time::Instant::now();
    let cid = post_file(&gateway, &block, blocks)?;
    let rate = blocks as f64 / begin.elapsed().as_secs_f64();
    let adding = process::peak_mib(gateway.pid());
    gateway.stop();
    let gateway = Gateway::start(folder.path());
    let begin = std::time::Instant::now();
    read_file(&gateway, &cid, &block, blocks)?;
    let read_rate = (blocks * MIB) as f64 / begin.elapsed().as_secs_f64() / 1e6;
    let reading = process::peak_mib(gateway.pid());
    let beside = format!("{blocks} MiB streamed in at {rate:.0} MiB/s, out at {read_rate:.0} MB/s with one stream");
    Ok((Samples::from_iter([adding]), Samples::from_iter([reading]), beside))
}

/// Sends numbered blocks as one file, in the add stream of `docs/formats.md` 9. Returns the CID.
fn post_file(gateway: &Gateway, block: &[u8], blocks: usize) -> Result<String, String> {
    let size = blocks * MIB;
    let opening = [
        frame(serde_json::json!({ "v": 1, "root": "file", "name": "huge.bin", "profile": "unixfs-v1-2025" })),
        frame(serde_json::json!({ "path": "huge.bin", "kind": "file", "size": size })),
    ]
    .concat();
    let closing = frame(serde_json::json!({ "end": true, "entries": 1 }));
    let host = gateway.admin.trim_start_matches("http://");
    let mut stream = connect(host)?;
    let head = format!(
        "POST /api/v1/add HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nContent-Type: application/vnd.skygate.add\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        gateway.api_key(),
        opening.len() + size + closing.len()
    );
    let mut send = |bytes: &[u8]| stream.write_all(bytes).map_err(|error| format!("while sending: {error}"));
    send(head.as_bytes())?;
    send(&opening)?;
    for number in 0..blocks {
        send(&content::numbered(block, number as u64))?;
    }
    send(&closing)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).map_err(|error| format!("no answer: {error}"))?;
    let json = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let told: serde_json::Value = serde_json::from_str(json).map_err(|_| reply.clone())?;
    told["cid"].as_str().map(str::to_owned).ok_or(reply)
}

fn frame(json: serde_json::Value) -> Vec<u8> {
    let json = json.to_string();
    [&(json.len() as u32).to_le_bytes()[..], json.as_bytes()].concat()
}

/// Reads the file in one stream and compares it.
fn read_file(gateway: &Gateway, cid: &str, block: &[u8], blocks: usize) -> Result<(), String> {
    let host = gateway.public.trim_start_matches("http://");
    let mut stream = connect(host)?;
    let request = format!("GET /ipfs/{cid} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut reply = BufReader::with_capacity(MIB, stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reply.read_line(&mut head).map_err(|error| error.to_string())? == 0 {
            return Err("the connection was closed".to_owned());
        }
    }
    let length = load::header(&head, "content-length").and_then(|length| length.parse().ok());
    if !head.starts_with("HTTP/1.1 200 ") || length != Some(blocks * MIB) {
        return Err(head);
    }
    let mut have = vec![0; MIB];
    for number in 0..blocks {
        reply.read_exact(&mut have).map_err(|error| format!("in MiB {number}: {error}"))?;
        if have != content::numbered(block, number as u64) {
            return Err(format!("wrong bytes in MiB {number}"));
        }
    }
    Ok(())
}

fn connect(host: &str) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(host).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(SILENCE_MAX)).map_err(|error| error.to_string())?;
    stream.set_write_timeout(Some(SILENCE_MAX)).map_err(|error| error.to_string())?;
    Ok(stream)
}
