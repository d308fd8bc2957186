//! A folder so large that its directory is sharded: one file of it, all of them, and its listing.

use std::path::Path;
use std::time::{Duration, Instant};

use compat_tests::Gateway;
use futures::StreamExt;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::beside_nginx::{Pair, Shape};
use crate::load::{self, Until, Want};
use crate::report::{Goal, Report, Samples, number, quantile};
use crate::{Plan, content, process, uncached, wait_complete};

const FILE_BYTES: usize = 1024;
const SEED: u64 = 81;
const LISTING_MAX: Duration = Duration::from_secs(60);

pub fn directory(plan: &Plan, report: &mut Report) {
    let folder = plan.folder();
    let files = plan.size(20_000, 3_000);
    let source = folder.path().join("folder");
    content::write_folder(&source, SEED, files, FILE_BYTES);
    let data = folder.path().join("data");
    let gateway = Gateway::start(&data);
    let root = match gateway.add(&source, &[]).and_then(|added| wait_complete(&gateway).map(|()| added)) {
        Ok(added) => format!("/ipfs/{}", added["cid"].as_str().unwrap_or_default()),
        Err(error) => return report.missing("a folder of many files", &error),
    };
    if let Err(error) = cached(plan, report, &gateway, &root, &source, files) {
        report.missing("cached file of a large folder", &error);
    }
    gateway.stop();
    if let Err(error) = uncached_files(plan, report, &data, &root, &source, files) {
        report.missing("uncached files of a large folder", &error);
    }
    if let Err(error) = listing(plan, report, &data, &root, files) {
        report.missing("listing of a large folder", &error);
    }
}

fn cached(plan: &Plan, report: &mut Report, gateway: &Gateway, root: &str, source: &Path, files: usize) -> Result<(), String> {
    if let Some(missing) = ["wrk", "nginx"].iter().find(|program| !process::has(program)) {
        return Err(format!("{missing} is not installed"));
    }
    let path_of = |number| format!("{root}/{}", content::file_name(number));
    let name = format!("cached file in a folder of {files}");
    let one = Shape { name: &name, connections: 32, bytes: FILE_BYTES, script: None };
    let path = path_of(files / 2);
    let serve_all = |pair: &Pair<'_>| {
        (0..files).try_for_each(|number| pair.serve_by_nginx(&path_of(number), &source.join(content::file_name(number))))
    };
    let pair = Pair::new(plan, gateway, &path)?;
    serve_all(&pair)?;
    pair.compare(plan, &path, &one)?.report_rate(report, &one, Goal::AtLeast(0.8), Goal::None);

    let script = source.with_file_name("all.lua");
    let lua = format!(
        "local n = 0\nfunction request()\n  n = (n * 7919 + 1) % {files}\n  return wrk.format(nil, string.format(\"{root}/file-%05d.bin\", n))\nend\n"
    );
    std::fs::write(&script, lua).map_err(|error| error.to_string())?;
    let name = format!("all files of a folder of {files}, one after another");
    let all = Shape { name: &name, connections: 32, bytes: FILE_BYTES, script: Some(&script) };
    let pair = Pair::new(plan, gateway, &path)?;
    serve_all(&pair)?;
    pair.compare(plan, &path, &all)?.report_rate(report, &all, Goal::None, Goal::None);
    Ok(())
}

/// Each file at most once, over four connections, in a fresh process each round.
fn uncached_files(plan: &Plan, report: &mut Report, data: &Path, root: &str, source: &Path, files: usize) -> Result<(), String> {
    let contents: Vec<(String, Vec<u8>)> = (0..files)
        .map(|number| {
            let name = content::file_name(number);
            let bytes = std::fs::read(source.join(&name)).expect("the source is still there");
            (format!("{root}/{name}"), bytes)
        })
        .collect();
    let (mut p99, mut rounds, mut server, mut latencies, mut classes) =
        (Samples::default(), Samples::default(), Samples::default(), Vec::new(), String::new());
    for round in 0..plan.rounds as u64 {
        let mut order: Vec<usize> = (0..files).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(round));
        let gateway = uncached(data);
        let count = Until::Count(plan.size(4_000, 500));
        let outcome = load::run(&gateway, 4, count, |number| {
            let (path, bytes) = &contents[order[number]];
            Want { path, range: None, bytes }
        })?;
        let outcome = outcome.only(&["hosts", "cold"])?;
        gateway.stop();
        rounds.push(f64::from(outcome.rounds_max));
        server.push(outcome.server_us());
        classes = outcome.classes_text();
        let mut sorted = outcome.latencies_ms;
        p99.push(quantile(&mut sorted, 0.99));
        latencies.extend(sorted);
    }
    let beside = format!("{classes}; server {} us a request; {}", number(server.median()), load::quantiles(&latencies));
    report.row(&format!("uncached file in a folder of {files}, p99"), "ms", &p99, Goal::AtMost(10.0), &beside);
    let beside = "the most that a reply tells of, from a fresh process on";
    report.row("the same: rounds of host requests, one after another", "", &rounds.highest(), Goal::AtMost(4.0), beside);
    Ok(())
}

/// Time until the first bytes of the listing, and until its end.
fn listing(plan: &Plan, report: &mut Report, data: &Path, root: &str, files: usize) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let (mut first, mut whole, mut pieces, mut length) = (Samples::default(), Samples::default(), 0, 0);
    for _ in 0..plan.rounds {
        let gateway = uncached(data);
        let read = runtime.block_on(tokio::time::timeout(LISTING_MAX, read_listing(&gateway, root)));
        let listing = read.map_err(|_| "it takes too long".to_owned())??;
        let rows = listing.text.windows(ROW.len()).filter(|bytes| *bytes == ROW).count();
        if rows != files {
            return Err(format!("{rows} rows for {files} files"));
        }
        first.push(listing.first_ms);
        whole.push(listing.whole_ms);
        (pieces, length) = (listing.pieces, listing.text.len());
        gateway.stop();
    }
    let beside = format!("whole in {} ms, {} KiB in {pieces} pieces; fresh process", whole.show(), length >> 10);
    report.row(&format!("listing of a folder of {files}: first bytes"), "ms", &first, Goal::None, &beside);
    Ok(())
}

/// Stands in every row of a listing once.
const ROW: &[u8] = b"class=\"ipfs-hash\"";

struct Listing {
    first_ms: f64,
    whole_ms: f64,
    pieces: usize,
    text: Vec<u8>,
}

async fn read_listing(gateway: &Gateway, root: &str) -> Result<Listing, String> {
    let begin = Instant::now();
    let reply = gateway.request(&format!("{root}/")).send().await.map_err(|error| error.to_string())?;
    if reply.status() != 200 {
        return Err(format!("status {}", reply.status()));
    }
    let mut body = reply.bytes_stream();
    let mut listing = Listing { first_ms: f64::NAN, whole_ms: 0.0, pieces: 0, text: Vec::new() };
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| error.to_string())?;
        if listing.pieces == 0 {
            listing.first_ms = begin.elapsed().as_secs_f64() * 1e3;
        }
        listing.pieces += 1;
        listing.text.extend_from_slice(&piece);
    }
    listing.whole_ms = begin.elapsed().as_secs_f64() * 1e3;
    Ok(listing)
}
