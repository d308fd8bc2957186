//! Disks that are full, not writable, or hang: a clear error, nothing lost, and everything else goes on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use compat_tests::content::{Content, Item, Seen};
use compat_tests::damage::{Hung, Mounted, sector_files};
use compat_tests::{Gateway, Options, host_folders, seeded_bytes, until};

fn small() -> Content {
    Content::files_of("small", &[("a.txt", b"a"), ("b.bin", &seeded_bytes(1, 30_000))])
}

fn large(seed: u64) -> Content {
    Content::file("large.bin", seeded_bytes(seed, 30_000_000))
}

async fn states(gateway: &Gateway) -> Vec<String> {
    let hosts = gateway.admin_json("/api/v1/hosts").await;
    hosts["hosts"].as_array().expect("a list").iter().map(|host| host["state"].as_str().expect("a word").to_owned()).collect()
}

/// The free-space floor above what is free: all hosts take nothing more, reads and removals go on.
#[tokio::test]
async fn below_the_free_space_floor_hosts_are_read_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let content = large(1);
    let added = gateway.upload(&content).await;
    let gone = gateway.upload(&small()).await;
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start_with(folder.path(), &Options::config("[limits]\nfree_space_floor_bytes = \"900 TiB\"\n"));
    gateway.catalog_complete().await;
    for refused in [small(), large(2)] {
        let answer = gateway.upload_bytes(&refused.stream(), &[]).await;
        assert!(matches!(answer.status, 503 | 507), "{}: {}", refused.name, answer.text());
        assert!(answer.header("retry-after").is_some(), "{}", answer.text());
        if refused.cid() != gone.cid {
            assert_eq!(refused.seen(&gateway).await, Seen::Nothing, "{}", refused.name);
        }
    }
    assert_eq!(states(&gateway).await, vec!["read-only"; 9]);
    content.assert_read_back(&gateway, &added).await;
    // To unpin is to write a record: part of the floor is kept for that.
    let removed = gateway.admin("DELETE", &format!("/api/v1/pins/{}", gone.cid)).await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert_eq!(small().seen(&gateway).await, Seen::Nothing);
    let ready = states(&gateway).await;
    assert_eq!(ready, vec!["read-only"; 9], "a record that was taken does not make a full host writable");
    assert!(gateway.stop().success());
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    assert_eq!(small().seen(&gateway).await, Seen::Nothing, "and so it stays");
    assert_eq!(gateway.upload(&large(2)).await.durability, "complete", "with space it goes on");
}

/// A data directory whose hosts are real small file systems, where this machine lets us mount some.
struct SmallDisks {
    mounts: Vec<Mounted>,
    folder: tempfile::TempDir,
}

impl SmallDisks {
    /// The first `count` hosts are disks of `bytes`. `None` says why not.
    fn mount(count: usize, bytes: u64) -> Option<SmallDisks> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut mounts = Vec::new();
        for host in host_folders(&folder.path().join("data")).iter().take(count) {
            let image = folder.path().join(format!("{}.img", host.file_name().expect("a number").to_string_lossy()));
            match Mounted::ext4(&image, host, bytes) {
                Ok(mounted) => mounts.push(mounted),
                Err(why) => {
                    println!("NOT DONE: no small file system can be mounted here, the floor test stands in for it: {why}");
                    return None;
                }
            }
        }
        Some(SmallDisks { mounts, folder })
    }

    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }
}

/// Two of nine disks run full in the middle of uploads: k + f cannot be had, which is said; what was acknowledged
/// before is whole; with one of them there is room for the hosts to spare.
#[tokio::test]
async fn disks_run_full() {
    let Some(disks) = SmallDisks::mount(2, 40 << 20) else { return };
    // No floor of our own: the disk itself says no.
    let gateway =
        Gateway::start_with(&disks.data(), &Options::config("[limits]\nfree_space_floor_bytes = 0\n[store]\nmemory_bytes = 0\n"));
    let mut stored = Vec::new();
    let mut refused = None;
    for seed in 0..12 {
        let content = large(1000 + seed);
        let answer = gateway.upload_bytes(&content.stream(), &[]).await;
        match answer.status {
            200 => stored.push((content, compat_tests::content::Added::of(&answer.json()))),
            503 | 507 => {
                assert!(answer.header("retry-after").is_some() && answer.text().len() > 30, "{}", answer.text());
                refused = Some(content);
                break;
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    let refused = refused.expect("twelve times 5 MiB a host do not fit 40 MiB");
    assert!(stored.len() >= 3, "{} fitted", stored.len());
    for (content, added) in &stored {
        content.assert_read_back(&gateway, added).await;
    }
    gateway.catalog_complete().await;
    assert_eq!(refused.seen(&gateway).await, Seen::Nothing);
    let full = states(&gateway).await.iter().filter(|state| *state != "up").count();
    assert_eq!(full, 2, "{:?}", states(&gateway).await);
    // Nothing is lost over a crash on full disks, either.
    gateway.kill();
    let gateway = Gateway::start_with(&disks.data(), &Options::config("[limits]\nfree_space_floor_bytes = 0\n"));
    for (content, added) in &stored {
        content.assert_read_back(&gateway, added).await;
    }
    assert!(gateway.stop().success());
}

#[tokio::test]
async fn one_full_disk_is_spared() {
    let Some(disks) = SmallDisks::mount(1, 24 << 20) else { return };
    let gateway = Gateway::start_with(&disks.data(), &Options::config("[limits]\nfree_space_floor_bytes = 0\n"));
    let mut durabilities = Vec::new();
    for seed in 0..6 {
        let content = large(2000 + seed);
        let added = gateway.upload(&content).await;
        content.assert_read_back(&gateway, &added).await;
        durabilities.push(added.durability);
    }
    assert_eq!(durabilities[0], "complete");
    assert_eq!(
        durabilities[5], "acknowledged",
        "eight of nine pieces are enough to acknowledge, and not complete: {durabilities:?}"
    );
}

/// Root may write to any mode, so it is a file in a folder's place that cannot be written.
#[tokio::test]
async fn hosts_that_cannot_be_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config("[store]\nmemory_bytes = 0\n"));
    let content = large(3);
    let added = gateway.upload(&content).await;
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let hosts = host_folders(folder.path());
    let spoil = |host: &Path| {
        fs::rename(host.join("tmp"), host.join("tmp.away")).expect("moved");
        fs::write(host.join("tmp"), "a file").expect("written");
    };
    let mend = |host: &Path| {
        fs::remove_file(host.join("tmp")).expect("removed");
        fs::rename(host.join("tmp.away"), host.join("tmp")).expect("moved");
    };
    spoil(&hosts[4]);
    let gateway = Gateway::start(folder.path());
    content.assert_read_back(&gateway, &added).await;
    let one = gateway.upload(&large(4)).await;
    assert_eq!(one.durability, "acknowledged", "one host fails");
    assert!(gateway.stop().success());
    spoil(&hosts[7]);
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    let refused = gateway.upload_bytes(&large(5).stream(), &[]).await;
    assert_eq!(refused.status, 503, "two hosts fail: {}", refused.text());
    assert_eq!(large(5).seen(&gateway).await, Seen::Nothing);
    content.assert_read_back(&gateway, &added).await;
    large(4).assert_read_back(&gateway, &one).await;
    assert!(gateway.stop().success());
    mend(&hosts[4]);
    mend(&hosts[7]);
    let gateway = Gateway::start(folder.path());
    assert_eq!(gateway.upload(&large(5)).await.durability, "complete");
    gateway.pins_complete().await;
}

/// Three disks that hang when a piece is opened: readers take other pieces, and a stop does not wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_hang_while_reading() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config("[store]\nmemory_bytes = 0\n"));
    let contents = [large(6), Content::file("base.bin", seeded_bytes(7, 2_000_000))];
    let added = [gateway.upload(&contents[0]).await, gateway.upload(&contents[1]).await];
    gateway.pins_complete().await;
    let hosts = host_folders(folder.path());
    let _hung: Vec<Hung> = [0, 3, 8].iter().map(|host| Hung::files(sector_files(&hosts[*host]))).collect();
    for _ in 0..3 {
        for (content, added) in contents.iter().zip(&added) {
            let begun = Instant::now();
            content.assert_read_back(&gateway, added).await;
            println!("{} read back by two addresses in {:?}", content.name, begun.elapsed());
        }
    }
    let begun = Instant::now();
    gateway.get("/ipfs/bafkqaaa").await;
    assert!(begun.elapsed() < Duration::from_secs(2), "what needs no host is not held up: {:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(gateway.stop().success());
    assert!(begun.elapsed() < Duration::from_secs(40), "the stop took {:?}", begun.elapsed());
}

/// A start with hung disks: their hosts are down, everything else is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_hang_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let contents = [large(8), small()];
    let added = [gateway.upload(&contents[0]).await, gateway.upload(&contents[1]).await];
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let hosts = host_folders(folder.path());
    let hung: Vec<Hung> = [1, 2, 5].iter().map(|host| Hung::host(&hosts[*host])).collect();
    let begun = Instant::now();
    let gateway = Gateway::start_with(folder.path(), &Options::config("[store]\nmemory_bytes = 0\n"));
    assert!(begun.elapsed() < Duration::from_secs(45), "the start took {:?}", begun.elapsed());
    for (content, added) in contents.iter().zip(&added) {
        content.assert_read_back(&gateway, added).await;
    }
    let down = states(&gateway).await.iter().filter(|state| *state == "down").count();
    assert_eq!(down, 3, "{:?}", states(&gateway).await);
    let begun = Instant::now();
    assert!(gateway.stop().success());
    assert!(begun.elapsed() < Duration::from_secs(40), "the stop took {:?}", begun.elapsed());
    drop(hung);
    let gateway = Gateway::start(folder.path());
    until("all hosts are up", Duration::from_secs(30), async || {
        let states = states(&gateway).await;
        if states.iter().all(|state| state == "up") { Ok(()) } else { Err(format!("{states:?}")) }
    })
    .await;
    contents[0].assert_read_back(&gateway, &added[0]).await;
}

/// A disk that hangs when it is written to: an upload goes on with the others, and removals, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_hangs_while_writing() {
    let Some(mut disks) = SmallDisks::mount(1, 256 << 20) else { return };
    let gateway = Gateway::start(&disks.data());
    let before = gateway.upload(&small()).await;
    gateway.pins_complete().await;
    if let Err(why) = disks.mounts[0].freeze() {
        println!("NOT DONE: a file system cannot be frozen here: {why}");
        return;
    }
    let content = Content::folder(
        "while frozen",
        [
            ("large.bin".to_owned(), Item::File(seeded_bytes(9, 27_000_000))),
            ("small.txt".to_owned(), Item::File(b"small".to_vec())),
        ],
    );
    let begun = Instant::now();
    let added = gateway.upload(&content).await;
    println!("an upload beside a frozen disk took {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(added.durability, "acknowledged");
    content.assert_read_back(&gateway, &added).await;
    small().assert_read_back(&gateway, &before).await;
    let removed = gateway.admin("DELETE", &format!("/api/v1/pins/{}", before.cid)).await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    disks.mounts[0].thaw();
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
}
