//! Sectors and pieces under their skylinks (`specs/skynet.md` 2 and 4): backups of large skyfiles, of this portal's redundancy
//! and of others; skyfiles inside a sector; pieces by their roots; spares that reads ask.

use std::time::Duration;

use compat_tests::buckets::{Buckets, Mood};
use compat_tests::content::Content;
use compat_tests::damage::{Away, sector_files};
use compat_tests::skyfile::{self, Fanout, backup, sector_root, skylink};
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, Options, host_folders, seeded_bytes, unixfs, until};
use serde_json::{Value, json};

const SECTOR: usize = 4 << 20;
/// Indexing in the background, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

async fn restore(gateway: &Gateway, body: &[u8]) -> Answer {
    wire::send(&gateway.public, "POST", "/skynet/restore", &[], body).await
}

async fn restored(gateway: &Gateway, body: &[u8], link: &str) -> String {
    let answer = restore(gateway, body).await;
    assert_eq!((answer.status, answer.json()["skylink"].as_str()), (200, Some(link)), "{}\n{}", answer.text(), gateway.log());
    answer.json()["cid"].as_str().expect("a CID").to_owned()
}

async fn read(gateway: &Gateway, target: &str) -> Vec<u8> {
    let answer = gateway.get(target).await;
    assert_eq!(answer.status, 200, "{target}: {}\n{}", answer.text(), gateway.log());
    assert!(answer.whole, "{target}");
    answer.body
}

/// Waits until no upload is left to be looked into.
async fn indexed(gateway: &Gateway) {
    until("all is indexed", SOON, async || {
        let status = gateway.admin_json("/api/v1/status").await;
        if status["store"]["pins_to_index"] == 0 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

/// The piece roots in a base sector, and where its fanout begins.
fn fanout_of(base: &[u8]) -> Vec<[u8; 32]> {
    let bytes = u64::from_le_bytes(base[17..25].try_into().expect("eight")) as usize;
    base[99..99 + bytes].as_chunks().0.to_vec()
}

#[tokio::test]
async fn a_large_skyfile_is_restored_into_its_own_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Gateway::start(&folder.path().join("first"));
    let (a, b) = (seeded_bytes(1, 30_000_000), seeded_bytes(2, 70_000));
    let content = Content::files_of("site", &[("a/large.bin", &a), ("b.bin", &b), ("c.txt", b"last")]);
    let added = first.upload(&content).await;
    let link = added.skylink();
    let base = read(&first, &format!("/skynet/basesector/{link}")).await;
    let whole = read(&first, &format!("/{link}/?format=concat")).await;
    let layout = first.ask("HEAD", &format!("/{link}/?include-layout=true"), &[]).await.header("skynet-file-layout");
    let good = backup(link, &base, &whole);
    assert!(first.stop().success());

    let second = Gateway::start(&folder.path().join("second"));
    second.catalog_complete().await;
    let changed = {
        let mut changed = good.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        changed
    };
    for (wrong, words) in [
        (&good[..good.len() - 1], "ends after"),
        (&[&good[..], b"x"].concat(), "has more than"),
        (&good[..92 + SECTOR], "ends after 0"),
        (&good[..92 + 5000], "whole base sector"),
        (&changed, "chunk 1 has other pieces"),
    ] {
        let answer = restore(&second, wrong).await;
        assert_eq!(answer.status, 400, "{words}: {}", answer.text());
        assert!(answer.text().contains(words), "{words}: {}", answer.text());
    }
    assert_eq!(second.get(&format!("/{link}/b.bin")).await.status, 404);
    let cid = restored(&second, &good, link).await;
    assert_eq!(cid, added.cid, "the same tree as the upload's");
    second.pins_complete().await;
    let health = second.get(&format!("/skynet/health/skylink/{link}")).await.json();
    assert_eq!((&health["fanoutredundancy"], &health["fanoutslabs"]), (&json!([1.5, 1.5]), &json!(2)), "{health}");
    assert!(second.stop().success());
    // From hosts alone, three of them lost.
    let away = Away::take(&host_folders(&folder.path().join("second"))[..3]);
    let second = Gateway::start(&folder.path().join("second"));
    for (path, bytes) in content.files() {
        assert!(read(&second, &format!("/{link}/{path}")).await == bytes, "{path}");
        assert!(read(&second, &format!("/ipfs/{cid}/{path}")).await == bytes, "{path}");
    }
    let told = second.ask("HEAD", &format!("/{link}/?include-layout=true"), &[]).await.header("skynet-file-layout");
    assert_eq!(told, layout);
    assert!(second.stop().success());
    away.back();
}

/// A backup of a redundancy that this portal does not write: one data piece, whose copies are named once.
fn foreign_backup(content: &[u8], metadata: &str) -> (String, Vec<u8>) {
    let roots: Vec<[u8; 32]> = content.chunks(SECTOR).map(sector_root).collect();
    let base = skyfile::head(metadata, content.len() as u64, Fanout { data_pieces: 1, parity_pieces: 9, roots: &roots });
    let link = skylink(&base, 0, base.len());
    let backup = backup(&link, &base, content);
    (link, backup)
}

#[tokio::test]
async fn a_large_skyfile_of_another_redundancy_is_restored() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let gateway = Gateway::start(&data);
    gateway.catalog_complete().await;
    // A few blocks, which stand in the pin, and many, which have a pack.
    for (seed, length) in [(3, 9_500_000), (4, 50_000_000)] {
        let content = seeded_bytes(seed, length);
        let metadata = format!(r#"{{"filename":"old.bin","length":{length}}}"#);
        let (link, good) = foreign_backup(&content, &metadata);
        let mut changed = good.clone();
        *changed.last_mut().expect("bytes") ^= 1;
        let answer = restore(&gateway, &changed).await;
        let words = format!("chunk {} has other pieces", (length - 1) / SECTOR);
        assert!(answer.status == 400 && answer.text().contains(&words), "{words}: {}", answer.text());
        let cid = restored(&gateway, &good, &link).await;
        assert_eq!(cid, Content::file("old.bin", content.clone()).cid());
        assert!(read(&gateway, &format!("/{link}")).await == content);
    }
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let away = Away::take(&host_folders(&data)[..3]);
    let gateway = Gateway::start(&data);
    for (seed, length) in [(3, 9_500_000), (4, 50_000_000)] {
        let content = seeded_bytes(seed, length);
        let (link, _) = foreign_backup(&content, &format!(r#"{{"filename":"old.bin","length":{length}}}"#));
        assert!(read(&gateway, &format!("/{link}")).await == content, "by other slabs than its fanout names");
        let part = gateway.ask("GET", &format!("/{link}"), &["Range: bytes=4194300-4194310"]).await;
        assert_eq!((part.status, &part.body[..]), (206, &content[4_194_300..=4_194_310]));
        let health = gateway.get(&format!("/skynet/health/skylink/{link}")).await.json();
        assert_eq!((&health["fanoutdatapieces"], &health["fanouteffectiveredundancy"]), (&json!(6), &json!(1.0)), "{health}");
        let pinned = wire::send(&gateway.public, "POST", &format!("/skynet/pin/{link}"), &[], b"").await;
        assert_eq!(pinned.status, 204, "{}", pinned.text());
    }
    assert!(gateway.stop().success());
    away.back();
}

/// A sector with a skyfile at its beginning and another inside, as a packing uploader made them.
fn two_in_one(first: &[u8], second: &[u8], offset: usize) -> (Vec<u8>, String, String) {
    let small = |name: &str, content: &[u8]| {
        let metadata = format!(r#"{{"filename":"{name}","length":{}}}"#, content.len());
        [&skyfile::head(&metadata, content.len() as u64, Fanout::default()), content].concat()
    };
    let (first, second) = (small("first.txt", first), small("second.txt", second));
    assert!(first.len() <= offset);
    let mut sector = first.clone();
    sector.resize(offset, 0);
    sector.extend_from_slice(&second);
    let links = [(0, first.len()), (offset, second.len())].map(|(at, used)| skylink(&sector, at, used));
    let [first, second] = links;
    (sector, first, second)
}

#[tokio::test]
async fn skyfiles_inside_a_sector() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    // Of equal length: what is in memory of the one must not be taken for the other.
    let (a, b) = (seeded_bytes(5, 20_000), seeded_bytes(6, 20_000));
    let (sector, first, second) = two_in_one(&a, &b, 65_536);
    let cid = restored(&gateway, &backup(&second, &sector, b""), &second).await;
    assert_eq!(cid, Content::file("second.txt", b.clone()).cid());
    let check = async |gateway: &Gateway| {
        for (link, content, name) in [(&first, &a, "first.txt"), (&second, &b, "second.txt")] {
            // The sector is here, so every skyfile in it is.
            for _ in 0..2 {
                assert!(read(gateway, &format!("/{link}")).await == *content, "{name}");
            }
            let part = gateway.ask("GET", &format!("/{link}"), &["Range: bytes=100-199"]).await;
            assert_eq!((part.status, &part.body[..]), (206, &content[100..200]), "{name}");
            assert_eq!(part.header("skynet-skylink").as_deref(), Some(link.as_str()));
            let metadata = gateway.get(&format!("/skynet/metadata/{link}")).await.json();
            assert_eq!(metadata["filename"], name);
        }
        let base = read(gateway, &format!("/skynet/basesector/{second}")).await;
        assert!(base[..] == [&sector[65_536..], &vec![0; base.len() - (sector.len() - 65_536)]].concat(), "its own stretch");
        assert!(read(gateway, &format!("/ipfs/{cid}")).await == b);
    };
    check(&gateway).await;
    // Pins of the two are different pins.
    let cid_of_first = restored(&gateway, &backup(&first, &sector, b""), &first).await;
    let post =
        async |what: &str, link: &str| wire::send(&gateway.public, "POST", &format!("/skynet/{what}/{link}"), &[], b"").await;
    assert_eq!(post("unpin", &first).await.status, 204);
    assert_eq!(gateway.get(&format!("/ipfs/{cid_of_first}")).await.status, 404);
    check(&gateway).await;
    assert_eq!(post("unpin", &first).await.status, 404, "the other's pin is not the caller's");
    assert!(gateway.stop().success());
    let gateway = Gateway::start(folder.path());
    check(&gateway).await;
    // A stretch that is no skyfile is a fault of whoever made the link.
    let nothing = skylink(&sector, 32_768, 4096);
    assert_eq!(gateway.get(&format!("/{nothing}")).await.status, 500);
    assert!(gateway.stop().success());

    // What is denied is denied by each of the sector's skylinks.
    let list = folder.path().join("rules.deny");
    std::fs::write(&list, format!("version: 1\n---\n/ipfs/{}\n", unixfs::raw(&b).cid())).expect("written");
    let gateway = Gateway::start_with(folder.path(), &Options::config(format!("[deny]\nlists = [{list:?}]\n")));
    gateway.catalog_complete().await;
    for (target, status) in
        [(format!("/{second}"), 410), (format!("/ipfs/{cid}"), 410), (format!("/skynet/basesector/{second}"), 410)]
    {
        assert_eq!(gateway.get(&target).await.status, status, "{target}");
    }
}

#[tokio::test]
async fn pieces_by_their_roots() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let bytes = seeded_bytes(7, 30_000_000);
    let added = gateway.upload(&Content::file("large.bin", bytes.clone())).await;
    gateway.pins_complete().await;
    indexed(&gateway).await;
    let base = read(&gateway, &format!("/skynet/basesector/{}", added.skylink())).await;
    let roots = fanout_of(&base);
    assert_eq!(roots.len(), 18);
    let piece = async |gateway: &Gateway, root: &[u8; 32], offset: usize, length: usize| {
        let answer = gateway.get(&format!("/skynet/root?root={}&offset={offset}&length={length}", hex::encode(root))).await;
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), gateway.log());
        answer.body
    };
    // Whole pieces have their roots, and data pieces are the content, interleaved (`specs/skynet.md` 4).
    for root in [&roots[0], &roots[8], &roots[9], &roots[17]] {
        assert_eq!(sector_root(&piece(&gateway, root, 0, SECTOR).await), *root);
    }
    for (slab, data) in [(0, 2), (1, 5)] {
        let content = &bytes[slab * 6 * SECTOR..];
        let shard = |row: usize| &content[(row * 6 + data) * 64..][..64];
        let expect: Vec<u8> = (10..20).flat_map(shard).copied().collect();
        assert!(piece(&gateway, &roots[slab * 9 + data], 640, 640).await == expect, "{slab} {data}");
        assert!(piece(&gateway, &roots[slab * 9 + data], 650, 600).await == expect[10..610], "not at rows");
    }
    assert!(gateway.stop().success());
    // The pieces of three hosts are gone: they are made of the others, data and parity.
    for host in &host_folders(folder.path())[..3] {
        sector_files(host).into_iter().for_each(|file| std::fs::remove_file(file).expect("removed"));
    }
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    for root in &roots {
        assert_eq!(sector_root(&piece(&gateway, root, 0, SECTOR).await), *root);
    }
    let mut other = roots[0];
    other[5] ^= 1;
    let absent = gateway.get(&format!("/skynet/root?root={}&offset=0&length=64", hex::encode(other))).await;
    assert_eq!(absent.status, 404);
    // What is blocked gives no pieces, and what is unpinned has none.
    let target = format!("/skynet/root?root={}&offset=0&length=64", hex::encode(roots[3]));
    assert!(gateway.command(&["block", "add", added.skylink()]).status.success());
    assert_eq!(gateway.get(&target).await.status, 451);
    let listed: Value = serde_json::from_slice(&gateway.command(&["block", "ls"]).stdout).expect("JSON");
    assert!(gateway.command(&["block", "rm", listed["hash"].as_str().expect("a hash")]).status.success());
    assert_eq!(gateway.get(&target).await.status, 200);
    let admin = format!("Skynet-Api-Key: {}", gateway.api_key());
    let unpinned = wire::send(&gateway.public, "POST", &format!("/skynet/unpin/{}", added.skylink()), &[&admin], b"").await;
    assert_eq!(unpinned.status, 204);
    assert_eq!(gateway.get(&target).await.status, 404);
}

/// The figures of `/skynet/stats` for reads that asked spares: none before, some after hosts hung.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spares_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let buckets = Buckets::start().await;
    let options = Options::config(buckets.hosts());
    let gateway = Gateway::start_with(folder.path(), &options);
    // So many that some are read from a host that hangs: each first asks one host of four, or six of nine.
    let small = (0..24).map(|seed| Content::file("small.bin", seeded_bytes(100 + seed, 70_000)));
    let large = (0..5).map(|seed| Content::file("large.bin", seeded_bytes(200 + seed, 5 << 20)));
    let mut links = Vec::new();
    for content in small.chain(large) {
        links.push(gateway.upload(&content).await.skylink().to_owned());
    }
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start_with(folder.path(), &options);
    gateway.catalog_complete().await;
    let stats = async || gateway.get("/skynet/stats").await.json();
    let figures = ["basesectoroverdrivepct", "basesectoroverdriveavg", "fanoutsectoroverdrivepct", "fanoutsectoroverdriveavg"];
    let figure = |stats: &Value, name: &str| stats[name].as_f64().unwrap_or_else(|| panic!("{name}: {stats}"));
    let before = stats().await;
    for name in figures {
        assert_eq!(figure(&before, name), 0.0, "{name}: nothing was read");
    }
    buckets.set(&[0, 1, 2], Mood::Hung);
    // At once, before anything has shown which hosts hang.
    let reads = links.iter().map(async |link| gateway.get(&format!("/{link}")).await.status);
    let statuses = futures::future::join_all(reads).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}\n{}", gateway.log());
    let after = stats().await;
    for name in ["basesector", "fanoutsector"] {
        let (share, average) = (figure(&after, &format!("{name}overdrivepct")), figure(&after, &format!("{name}overdriveavg")));
        assert!(share > 0.0 && share <= 1.0 && average >= 1.0, "{name}: {after}");
    }
    buckets.set(&[0, 1, 2], Mood::Well);
}
