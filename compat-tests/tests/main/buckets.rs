//! Hosts that are buckets on real S3 servers: the same promises as over folders. At 6 + 3: f = 2, m = 3.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use compat_tests::buckets::{Buckets, Engine, Mood};
use compat_tests::content::{Content, Item, read_all, upload_all};
use compat_tests::damage::{flip, sector_files};
use compat_tests::versitygw::Versitygw;
use compat_tests::wire;
use compat_tests::{Gateway, Options, Tier, seeded, seeded_bytes, tier, until};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// No body stays in memory, so every read asks the hosts.
fn options(buckets: &Buckets) -> Options {
    Options::config(format!("[store]\nmemory_bytes = 0\n{}", buckets.hosts()))
}

/// One of each way to be stored: in a pin, in a base sector, in slabs, as a folder with a pack.
fn contents() -> Vec<Content> {
    let small = |seed: u64| Item::File(seeded_bytes(seed, 3000 + 977 * seed as usize));
    let site = (0..20).map(|index| (format!("d{}/f{index}.html", index % 5), small(index)));
    vec![
        Content::file("tiny.txt", b"a file of a few bytes".to_vec()),
        Content::file("base.bin", seeded_bytes(401, 1_500_000)),
        Content::file("slabs.bin", seeded_bytes(403, 30_000_000)),
        Content::folder("site", site.chain([("video.bin".to_owned(), Item::File(seeded_bytes(404, 7_000_000)))])),
    ]
}

/// A stream asks for what a window of a MiB needs, however small the blocks are that it was cut into, and wherever they lie: in
/// a skyfile, wrapped or bare, or with their frames in an imported CAR.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_pays_its_requests_once_a_window_and_not_once_a_block() {
    const BYTES: usize = 12 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let buckets = Buckets::start().await;
    let (elsewhere, here) = (Gateway::start(&folder.path().join("elsewhere")), folder.path().join("here"));
    let gateway = Gateway::start_with(&here, &options(&buckets));
    let mut targets = Vec::new();
    for (seed, profile) in ["unixfs-v1-2025", "unixfs-v0-2015", "cid-v1"].into_iter().enumerate() {
        let (added, imported) = (seeded_bytes(500 + seed as u64, BYTES), seeded_bytes(510 + seed as u64, BYTES));
        let path = folder.path().join(profile);
        std::fs::write(&path, &imported).expect("written");
        let cid = elsewhere.add(&path, &["--profile", profile]).expect("added")["cid"].as_str().expect("a CID").to_owned();
        let car = elsewhere.get(&format!("/ipfs/{cid}?format=car")).await;
        let file = folder.path().join("car");
        std::fs::write(&file, &car.body).expect("written");
        assert!(gateway.command(&["import", file.to_str().expect("UTF-8")]).status.success());
        targets.push((format!("{profile}, imported"), cid, imported));
        std::fs::write(&path, &added).expect("written");
        let cid = gateway.add(&path, &["--profile", profile]).expect("added")["cid"].as_str().expect("a CID").to_owned();
        targets.push((format!("{profile}, added"), cid, added));
    }
    gateway.pins_complete().await;
    let requests = || buckets.servers.iter().map(|server| server.requests()).sum::<u64>();
    for (name, cid, bytes) in &targets {
        let mut least = u64::MAX;
        for _ in 0..4 {
            let before = requests();
            let answer = gateway.get(&format!("/ipfs/{cid}")).await;
            assert!(answer.status == 200 && answer.body == *bytes, "{name}");
            least = least.min(requests() - before);
        }
        // Twelve windows, the first in up to four parts, of six pieces each; spares, and what the node does besides. Blocks of
        // 256 KiB would take 288.
        println!("{name}: {least} requests");
        assert!((72..=130).contains(&least), "{name}: {least} requests");
    }
}

fn some_of(random: &mut ChaCha8Rng, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..9).collect();
    all.shuffle(random);
    all.truncate(count);
    all
}

async fn down(gateway: &Gateway, count: usize) {
    until(&format!("{count} hosts are down"), Duration::from_secs(150), async || {
        let hosts = gateway.admin_json("/api/v1/hosts").await;
        let down = hosts["hosts"].as_array().expect("a list").iter().filter(|host| host["state"] == "down").count();
        if down == count { Ok(()) } else { Err(format!("{down} are: {hosts}")) }
    })
    .await;
}

/// A promise holds on every engine. Processes of a foreign program belong to the slow tier.
macro_rules! on_every_engine {
    ($($promise:ident),*) => { $(
        mod $promise {
            use super::Engine;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_process() {
                super::$promise(Engine::InProcess).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn versitygw() {
                if super::has_versitygw() {
                    super::$promise(Engine::Versitygw).await;
                }
            }
        }
    )* };
}

on_every_engine!(
    stored_on_buckets_and_read_by_a_fresh_node,
    servers_gone_hung_slow_and_lying_while_clients_read,
    f_servers_gone_right_after_acknowledgement_then_writes_go_on_or_say_why_not
);

fn has_versitygw() -> bool {
    let (asked, installed) = (tier() == Tier::Slow, Versitygw::is_installed());
    if asked && !installed {
        println!("SKIPPED versitygw is not on PATH: go install github.com/versity/versitygw/cmd/versitygw@latest");
    }
    asked && installed
}

async fn stored_on_buckets_and_read_by_a_fresh_node(engine: Engine) {
    let folder = tempfile::tempdir().expect("a folder");
    let buckets = Buckets::start_on(engine).await;
    let options = options(&buckets);
    let first = folder.path().join("first");
    let gateway = Gateway::start_with(&first, &options);
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    for (content, added) in contents.iter().zip(&added) {
        assert_eq!(added.durability, "complete", "{}", content.name);
    }
    read_all(&gateway, &contents, &added, "on buckets").await;
    // A second node of the same portal, while the first one runs: no lock on a bucket, and none is needed.
    let second = folder.path().join("second");
    Buckets::join_portal(&first, &second);
    let other = Gateway::start_with(&second, &options);
    other.catalog_complete().await;
    read_all(&other, &contents, &added, "by a fresh node").await;
    // What one of them takes in, a node that starts later has as well.
    let late = Content::file("late.bin", seeded_bytes(405, 5_000_000));
    let late_added = other.upload(&late).await;
    let third = folder.path().join("third");
    Buckets::join_portal(&first, &third);
    let third = Gateway::start_with(&third, &options);
    third.catalog_complete().await;
    late.assert_read_back(&third, &late_added).await;
    assert!(third.stop().success());
    assert!(gateway.stop().success() && other.stop().success());
    assert!(buckets.servers.iter().all(|server| server.objects().join("skygate-host.json").is_file()));
}

async fn servers_gone_hung_slow_and_lying_while_clients_read(engine: Engine) {
    let mut random = seeded("servers_gone_hung_slow_and_lying_while_clients_read");
    let folder = tempfile::tempdir().expect("a folder");
    let buckets = Buckets::start_on(engine).await;
    let gateway = Gateway::start_with(folder.path(), &options(&buckets));
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    gateway.pins_complete().await;
    let (stop, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let reader = async {
        while !stop.load(SeqCst) {
            read_all(&gateway, &contents, &added, "while hosts fail").await;
            reads.fetch_add(1, SeqCst);
        }
    };
    let rounds = async |more: usize| {
        let enough = reads.load(SeqCst) + more;
        until("clients read", Duration::from_secs(300), async || {
            if reads.load(SeqCst) >= enough { Ok(()) } else { Err(format!("{} rounds", reads.load(SeqCst))) }
        })
        .await;
    };
    let trouble = async {
        rounds(1).await;
        for mood in [Mood::Slow(Duration::from_millis(700)), Mood::Hung, Mood::Gone] {
            let three = some_of(&mut random, 3);
            println!("{three:?} are {mood:?}");
            buckets.set(&three, mood);
            rounds(2).await;
            buckets.set(&three, Mood::Well);
            down(&gateway, 0).await;
        }
        let three = some_of(&mut random, 3);
        for index in &three {
            sector_files(&buckets.servers[*index].objects()).iter().for_each(|piece| flip(piece, &mut random));
        }
        println!("{three:?} lie");
        rounds(2).await;
        stop.store(true, SeqCst);
    };
    tokio::join!(trouble, reader);
    let wrong: u64 = gateway.admin_json("/api/v1/hosts").await["hosts"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|host| host["wrong_pieces"].as_u64().expect("a number"))
        .sum();
    assert!(wrong > 0, "who lied is charged");
}

async fn f_servers_gone_right_after_acknowledgement_then_writes_go_on_or_say_why_not(engine: Engine) {
    let mut random = seeded("f_servers_gone");
    let folder = tempfile::tempdir().expect("a folder");
    let buckets = Buckets::start_on(engine).await;
    let gateway = Gateway::start_with(folder.path(), &options(&buckets));
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    let gone = some_of(&mut random, 2);
    buckets.set(&gone, Mood::Gone);
    gateway.kill();
    let gateway = Gateway::start_with(folder.path(), &options(&buckets));
    read_all(&gateway, &contents, &added, &format!("without {gone:?}")).await;
    let refused = gateway.upload_bytes(&Content::file("new.bin", seeded_bytes(5, 9_000_000)).stream(), &[]).await;
    assert_eq!(refused.status, 503, "seven hosts are fewer than k + f: {}", refused.text());
    assert!(refused.header("retry-after").is_some());
    buckets.set(&gone, Mood::Well);
    down(&gateway, 0).await;
    let late = gateway.upload(&Content::file("new.bin", seeded_bytes(5, 9_000_000))).await;
    assert_eq!(late.durability, "complete");
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_is_told_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let buckets = Buckets::start().await;
    let good = options(&buckets).config.expect("a text");
    let rows = [
        (good.replacen("s3://pool", "s3://nowhere", 1), "nowhere"),
        (good.replacen("access_key_file", "region = \"x\" #", 1), "cannot be made"),
    ];
    for (index, (config, words)) in rows.into_iter().enumerate() {
        let data = folder.path().join(index.to_string());
        let Err(log) = Gateway::try_start(&data, &Options::config(config)) else { panic!("it started") };
        assert!(log.contains(words) && log.contains("host s3://"), "{log}");
        assert!(!log.contains("test-secret"), "{log}");
    }
}

/// A client that takes its time costs what it took, a window, and what the kernel buffers: hosts are not asked for the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_costs_no_more_than_its_window() {
    const BYTES: usize = 96 << 20;
    const TAKEN: usize = 1 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let buckets = Buckets::start().await;
    let gateway = Gateway::start_with(folder.path(), &options(&buckets));
    let film = seeded_bytes(407, BYTES);
    let added = gateway.upload(&Content::file("film.bin", film.clone())).await;
    gateway.pins_complete().await;
    let requests = || buckets.servers.iter().map(|server| server.requests()).sum::<u64>();
    let before = requests();
    let mut stream = wire::connect(&gateway.public).await.expect("connects");
    let request = format!("GET /ipfs/{} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", added.cid);
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut taken = vec![0; TAKEN];
    stream.read_exact(&mut taken).await.expect("a mebibyte");
    let last = AtomicUsize::new(0);
    until("the gateway waits for its client", Duration::from_secs(60), async || {
        let hosts = gateway.admin_json("/api/v1/hosts").await;
        let under_way: u64 =
            hosts["hosts"].as_array().expect("a list").iter().map(|host| host["in_flight"].as_u64().expect("a number")).sum();
        let now = requests() as usize;
        let earlier = last.swap(now, SeqCst);
        if now == earlier && under_way == 0 {
            Ok(())
        } else {
            Err(format!("{under_way} under way, {now} requests after {earlier}"))
        }
    })
    .await;
    // Six for each MiB, and spares. Sockets hold some MiB on both sides; the whole file would take 576.
    let asked = requests() - before;
    println!("{asked} requests for a client that took {TAKEN} bytes");
    assert!(asked < 24 * 9, "{asked} requests");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("the rest comes when it is wanted");
    taken.append(&mut rest);
    assert!(taken.ends_with(&film), "the whole film, unbroken");
}
