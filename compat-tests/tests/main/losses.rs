//! Hosts lost and bytes wrong: any f at acknowledgement, any m after completion, m pieces of each slab corrupted, and
//! what is too much. At 6 + 3: f = 2, m = 3.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use compat_tests::content::{Added, Content, Item, compare, read_all, upload_all};
use compat_tests::damage::{Away, copy_folder, data_bytes, flip, flip_row, sector_files, spoil_log};
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, Options, Tier, host_folders, seeded, seeded_bytes, tier, until};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// No body stays in memory, so every read asks the hosts.
fn uncached() -> Options {
    Options::config("[store]\nmemory_bytes = 0\n")
}

/// One of each way to be stored: in a pin, in a base sector, in one and in several slabs, as a folder with a pack.
fn contents() -> Vec<Content> {
    let small = |seed: u64| Item::File(seeded_bytes(seed, 3000 + 977 * seed as usize));
    let site = (0..40).map(|index| (format!("d{}/f{index}.html", index % 5), small(index)));
    vec![
        Content::file("tiny.txt", b"a file of a few bytes".to_vec()),
        Content::file("base.bin", seeded_bytes(201, 1_500_000)),
        Content::file("slab.bin", seeded_bytes(202, 9_000_001)),
        Content::file("slabs.bin", seeded_bytes(203, 60_000_000)),
        Content::folder("site", site.chain([("video.bin".to_owned(), Item::File(seeded_bytes(204, 7_000_000)))])),
    ]
}

/// All ways to take `count` of `from`, in random order, cut to what the tier allows.
fn combinations(random: &mut ChaCha8Rng, from: &[usize], count: usize, in_ci: usize) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = (0_u32..1 << from.len())
        .filter(|bits| bits.count_ones() as usize == count)
        .map(|bits| (0..from.len()).filter(|index| bits >> index & 1 == 1).map(|index| from[index]).collect())
        .collect();
    all.shuffle(random);
    all.truncate(match tier() {
        Tier::Fast => 1,
        Tier::Ci => in_ci,
        Tier::Slow => usize::MAX,
    });
    all
}

fn take_away(data: &Path, hosts: &[usize]) -> Away {
    let folders = host_folders(data);
    Away::take(&hosts.iter().map(|host| folders[*host].clone()).collect::<Vec<PathBuf>>())
}

/// A data directory as it was at one moment, to be begun from again and again at the same place.
struct Snapshot {
    data: PathBuf,
    kept: PathBuf,
}

impl Snapshot {
    /// Of a data directory whose process has ended.
    fn of(data: &Path) -> Snapshot {
        let kept = data.with_extension("kept");
        std::fs::rename(data, &kept).expect("the data directory can be moved");
        Snapshot { data: data.to_owned(), kept }
    }

    /// Starts without these hosts, reads everything, and looks that nothing was made in their place.
    async fn read_without(&self, hosts: &[usize], contents: &[Content], added: &[Added]) {
        copy_folder(&self.kept, &self.data);
        for host in hosts {
            // One may be gone already.
            let _ = std::fs::remove_dir_all(&host_folders(&self.data)[*host]);
        }
        let gateway = Gateway::start_with(&self.data, &uncached());
        read_all(&gateway, contents, added, &format!("without {hosts:?}")).await;
        for host in hosts {
            assert!(!host_folders(&self.data)[*host].exists(), "nothing is made where a known host is missing");
        }
        let down = gateway.admin_json("/api/v1/hosts").await;
        let down = down["hosts"].as_array().expect("a list").iter().filter(|host| host["state"] == "down").count();
        assert_eq!(down, hosts.len(), "those are down, no others");
        gateway.kill();
        std::fs::remove_dir_all(&self.data).expect("the copy can be removed");
    }
}

#[tokio::test]
async fn any_f_hosts_lost_right_after_acknowledgement() {
    let mut random = seeded("any_f_hosts_lost_right_after_acknowledgement");
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let gateway = Gateway::start_with(&data, &uncached());
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    gateway.kill();
    let snapshot = Snapshot::of(&data);
    for lost in combinations(&mut random, &[0, 1, 2, 3, 4, 5, 6, 7, 8], 2, 4) {
        snapshot.read_without(&lost, &contents, &added).await;
    }
}

/// The same at its strictest: one host was gone before, so that exactly k + f pieces were written.
#[tokio::test]
async fn any_f_hosts_lost_of_the_fewest_that_take_an_upload() {
    let mut random = seeded("any_f_hosts_lost_of_the_fewest_that_take_an_upload");
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    assert!(Gateway::start(&data).stop().success());
    let mut hosts: Vec<usize> = (0..9).collect();
    hosts.shuffle(&mut random);
    let (gone, left) = hosts.split_first().expect("nine");
    let away = take_away(&data, &[*gone]);
    let gateway = Gateway::start_with(&data, &uncached());
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    assert_eq!(added[3].durability, "acknowledged", "a slab of nine pieces on eight hosts is not complete");
    gateway.kill();
    let snapshot = Snapshot::of(&data);
    for lost in combinations(&mut random, left, 2, 4) {
        let lost = [&lost[..], &[*gone]].concat();
        snapshot.read_without(&lost, &contents, &added).await;
    }
    // It comes back: what was acknowledged becomes complete, from the pins.
    std::fs::rename(&snapshot.kept, &data).expect("the data directory can be moved back");
    away.back();
    let gateway = Gateway::start_with(&data, &uncached());
    gateway.pins_complete().await;
    gateway.kill();
    let snapshot = Snapshot::of(&data);
    let lost = combinations(&mut random, &[0, 1, 2, 3, 4, 5, 6, 7, 8], 3, 1);
    snapshot.read_without(&lost[0], &contents, &added).await;
}

#[tokio::test]
async fn any_m_hosts_lost_after_completion() {
    let mut random = seeded("any_m_hosts_lost_after_completion");
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let gateway = Gateway::start_with(&data, &uncached());
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    gateway.pins_complete().await;
    gateway.kill();
    let snapshot = Snapshot::of(&data);
    for lost in combinations(&mut random, &[0, 1, 2, 3, 4, 5, 6, 7, 8], 3, 5) {
        snapshot.read_without(&lost, &contents, &added).await;
    }
}

/// Hosts that vanish under a running gateway: reads go on, the operator sees which are down, and they come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_come_and_go_while_it_runs() {
    let mut random = seeded("hosts_come_and_go_while_it_runs");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &uncached());
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    gateway.pins_complete().await;
    let lost = combinations(&mut random, &[0, 1, 2, 3, 4, 5, 6, 7, 8], 3, 1).swap_remove(0);
    let count = async |state: &str| {
        let hosts = gateway.admin_json("/api/v1/hosts").await;
        hosts["hosts"].as_array().expect("a list").iter().filter(|host| host["state"] == state).count()
    };
    assert_eq!(count("up").await, 9);
    let away = take_away(folder.path(), &lost);
    until("three hosts are seen to be down", Duration::from_secs(80), async || {
        read_all(&gateway, &contents[..3], &added[..3], "while hosts go").await;
        let down = count("down").await;
        if down == 3 { Ok(()) } else { Err(format!("{down} are")) }
    })
    .await;
    read_all(&gateway, &contents, &added, &format!("without {lost:?}")).await;
    let refused = gateway.upload_bytes(&Content::file("late.bin", seeded_bytes(1, 9 << 20)).stream(), &[]).await;
    assert_eq!(refused.status, 503, "six hosts are too few for k + f: {}", refused.text());
    assert!(refused.header("retry-after").is_some() && refused.text().contains('8'), "{}", refused.text());
    away.back();
    until("they are back", Duration::from_secs(30), async || {
        let up = count("up").await;
        if up == 9 { Ok(()) } else { Err(format!("{up} are up")) }
    })
    .await;
    let late = gateway.upload(&Content::file("late.bin", seeded_bytes(1, 9 << 20))).await;
    assert_eq!(late.durability, "complete");
}

#[tokio::test]
async fn fewer_hosts_than_a_write_needs() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let _away = take_away(folder.path(), &[1, 6]);
    let gateway = Gateway::start_with(folder.path(), &uncached());
    let content = Content::file("new.bin", seeded_bytes(5, 9_000_000));
    let answer = gateway.upload_bytes(&content.stream(), &[]).await;
    assert_eq!(answer.status, 503, "seven hosts are fewer than eight: {}", answer.text());
    assert!(answer.header("retry-after").is_some());
    let words = answer.text();
    assert!(words.contains('7') && words.contains('8'), "it says how many there are and how many are needed: {words}");
    gateway.catalog_complete().await;
    assert_eq!(gateway.get(&format!("/ipfs/{}", content.cid())).await.status, 404, "nothing of it is visible");
    read_all(&gateway, &contents, &added, "reads go on").await;
}

/// (host of the damage, wrong pieces charged) as the operator sees them.
async fn charged(gateway: &Gateway) -> Vec<(usize, u64)> {
    let hosts = gateway.admin_json("/api/v1/hosts").await;
    let charged = hosts["hosts"].as_array().expect("a list").iter().map(|host| {
        let url = host["url"].as_str().expect("a URL").trim_end_matches('/').to_owned();
        let number: usize =
            url.rsplit('/').next().and_then(|name| name.parse().ok()).unwrap_or_else(|| panic!("no number in {url}"));
        (number - 1, host["wrong_pieces"].as_u64().expect("a number"))
    });
    charged.collect()
}

#[tokio::test]
async fn m_pieces_of_each_slab_corrupted() {
    let mut random = seeded("m_pieces_of_each_slab_corrupted");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &uncached());
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    gateway.pins_complete().await;
    gateway.kill();
    let bad = combinations(&mut random, &[0, 1, 2, 3, 4, 5, 6, 7, 8], 3, 1).swap_remove(0);
    let mut damaged = 0;
    let mut spoiled = 0;
    for host in &bad {
        // Every host has one piece of each slab; small objects and records may still stand in its log.
        spoiled += spoil_log(&host_folders(folder.path())[*host], &mut random);
        for piece in sector_files(&host_folders(folder.path())[*host]) {
            flip(&piece, &mut random);
            damaged += 1;
        }
    }
    assert!(damaged >= 3 * 5, "each bad host had a piece of each of the slabs: {damaged}");
    println!("{damaged} pieces have a flipped bit, the logs {spoiled}");
    // Records, too, are read anew from what is left of them.
    std::fs::remove_dir_all(folder.path().join("catalog")).expect("the catalog can be deleted");
    let gateway = Gateway::start_with(folder.path(), &uncached());
    read_all(&gateway, &contents, &added, &format!("hosts {bad:?} are corrupt")).await;
    let charges = charged(&gateway).await;
    let wrong: u64 = charges.iter().map(|(_, wrong)| wrong).sum();
    assert!(wrong > 0, "the damage is counted");
    for (host, wrong) in &charges {
        assert!(*wrong == 0 || bad.contains(host), "host {host} is charged {wrong} without fault");
    }
    let status = gateway.admin_json("/api/v1/status").await;
    let named = status["damages"].as_array().expect("a list").clone();
    assert!(!named.is_empty(), "the damage is named");
    assert_eq!(status["damaged_pieces"].as_u64(), Some(named.len() as u64));
    let hosts = gateway.admin_json("/api/v1/hosts").await;
    let is_bad = |host: &&serde_json::Value| {
        let url = host["url"].as_str().expect("a URL");
        bad.iter().any(|index| url.ends_with(&format!("/{}", index + 1)))
    };
    let hosts = hosts["hosts"].as_array().expect("a list").iter().filter(is_bad);
    let ids: BTreeSet<&str> = hosts.filter_map(|host| host["id"].as_str()).collect();
    assert_eq!(ids.len(), 3);
    for damage in &named {
        assert!(damage["host"].as_str().is_some_and(|id| ids.contains(id)), "a host without fault is named: {damage}");
    }
    let metrics = gateway.admin("GET", "/metrics").await.text();
    assert!(metrics.contains("skygate_host_wrong_pieces_total"), "{metrics}");
}

/// An error as it must be: said before the first byte, or the connection broken; never a byte that is wrong.
fn assert_failed_cleanly(what: &str, answer: &Answer, bytes: &[u8]) {
    match answer.status {
        502 | 504 => {
            assert!(answer.header("retry-after").is_some(), "{what}: Retry-After");
            assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"), "{what}");
            assert!(answer.text().len() > 20, "{what}: words");
        }
        200 => {
            assert!(!answer.whole, "{what}: a whole reply cannot be");
            assert!(bytes.starts_with(&answer.body), "{what}: WRONG BYTES among {}", answer.body.len());
        }
        other => panic!("{what}: {other} {}", answer.text()),
    }
}

#[tokio::test]
async fn m_plus_1_lost_is_an_error_and_never_a_wrong_byte() {
    let mut random = seeded("m_plus_1_lost_is_an_error_and_never_a_wrong_byte");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &uncached());
    let content = Content::file("slabs.bin", seeded_bytes(203, 60_000_000));
    let added = gateway.upload(&content).await;
    gateway.pins_complete().await;
    let (_, bytes) = content.files().next().expect("one file");
    assert!(gateway.stop().success());
    let lost = combinations(&mut random, &[0, 1, 2, 3, 4, 5, 6, 7, 8], 4, 1).swap_remove(0);
    let targets = [format!("/ipfs/{}", added.cid), format!("/{}", added.skylink())];

    let away = take_away(folder.path(), &lost);
    let gateway = Gateway::start_with(folder.path(), &uncached());
    for target in &targets {
        let answer = gateway.get(target).await;
        assert_failed_cleanly(&format!("without {lost:?}: {target}"), &answer, bytes);
    }
    gateway.kill();
    away.back();

    for host in &lost {
        sector_files(&host_folders(folder.path())[*host]).iter().for_each(|piece| flip(piece, &mut random));
    }
    let gateway = Gateway::start_with(folder.path(), &uncached());
    for target in &targets {
        for _ in 0..3 {
            let answer = gateway.get(target).await;
            // One flipped byte spoils 4 KiB: most ranges of the slab have six good pieces, so it may be right as well.
            if compare(target, &answer, bytes).is_err() {
                assert_failed_cleanly(&format!("{lost:?} corrupt: {target}"), &answer, bytes);
            }
        }
    }
}

/// Offset in a piece of the row that is lost in all nine.
const LOST_ROW: u64 = 1_500_000;

/// One byte flipped in every piece of every slab, while clients read in loops: each reply is right or broken off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_flipped_in_every_piece_while_clients_read() {
    let mut random = seeded("a_byte_flipped_in_every_piece_while_clients_read");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &uncached());
    let content = Content::file("read.bin", seeded_bytes(301, 40_000_000));
    let added = gateway.upload(&content).await;
    gateway.pins_complete().await;
    let (_, bytes) = content.files().next().expect("one file");
    let (stop, replies, broken) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let reader = async |seed: u64| {
        use rand::{RngExt, SeedableRng};
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        while !stop.load(SeqCst) {
            let start = random.random_range(0..bytes.len());
            let end = (start + random.random_range(1..3 << 20)).min(bytes.len());
            let base = if seed.is_multiple_of(2) { format!("/ipfs/{}", added.cid) } else { format!("/{}", added.skylink()) };
            let answer = wire::ask(&gateway.public, "GET", &base, &[&format!("Range: bytes={start}-{}", end - 1)]).await;
            match answer.status {
                206 if answer.whole => assert!(answer.body == bytes[start..end], "WRONG BYTES in {start}..{end}"),
                206 => assert!(bytes[start..end].starts_with(&answer.body), "WRONG BYTES in the broken {start}..{end}"),
                502 | 504 => assert!(answer.header("retry-after").is_some()),
                other => panic!("{start}..{end}: {other} {}", answer.text()),
            }
            replies.fetch_add(1, SeqCst);
            broken.fetch_add(usize::from(answer.status != 206 || !answer.whole), SeqCst);
        }
    };
    let flipper = async {
        let read = async |more: usize| {
            let enough = replies.load(SeqCst) + more;
            until("clients read", Duration::from_secs(60), async || {
                if replies.load(SeqCst) >= enough { Ok(()) } else { Err(String::new()) }
            })
            .await;
        };
        read(20).await;
        let before = broken.load(SeqCst);
        assert_eq!(before, 0, "nothing is wrong yet");
        // First anywhere: a bit here and there spoils a grain each, and six good pieces of every row are left.
        let files = host_folders(folder.path()).iter().flat_map(|host| sector_files(host)).collect::<Vec<PathBuf>>();
        // Not the copies of the base sector: a bit in each of those is a loss of its own.
        let pieces: Vec<PathBuf> = files.into_iter().filter(|piece| data_bytes(piece) > 1 << 20).collect();
        assert!(pieces.len() >= 18, "two slabs of nine pieces: {}", pieces.len());
        for nine in pieces.chunks(9) {
            nine.iter().for_each(|piece| flip(piece, &mut random));
            read(4).await;
        }
        // Then the same row of every piece of the first slab: nobody can read that any more.
        for piece in pieces.iter().filter(|piece| data_bytes(piece) == 4 << 20) {
            flip_row(piece, LOST_ROW, &mut random);
            read(1).await;
        }
        read(60).await;
        stop.store(true, SeqCst);
    };
    tokio::join!(flipper, reader(1), reader(2), reader(3), reader(4));
    for target in [format!("/ipfs/{}", added.cid), format!("/{}", added.skylink())] {
        let lost = LOST_ROW as usize * 6;
        let answer = gateway.ask("GET", &target, &[&format!("Range: bytes={}-{}", lost, lost + 100)]).await;
        assert!(matches!(answer.status, 502 | 504), "{target}: nine of nine pieces are wrong there: {}", answer.status);
        let whole = gateway.get(&target).await;
        assert_failed_cleanly(&target, &whole, bytes);
        let beside = gateway.ask("GET", &target, &[&format!("Range: bytes={}-", 30 << 20)]).await;
        assert!(beside.status == 206 && beside.whole && beside.body == bytes[30 << 20..], "{target}: the other slab is whole");
    }
    let wrong: u64 = charged(&gateway).await.iter().map(|(_, wrong)| wrong).sum();
    println!("{} replies, {} broken off or refused, {wrong} wrong pieces charged", replies.load(SeqCst), broken.load(SeqCst));
    assert!(wrong > 0, "the damage is counted");
}
