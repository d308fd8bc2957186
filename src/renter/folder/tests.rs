//! What is special about folders: crashes, torn tails, mounts, full disks, foreign files.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{Error, GetRange, ObjectStore, ObjectStoreExt, path::Path};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    AT_ONCE_BYTES_MAX, FolderError, FolderOptions, FolderStore, MARKER_KEY, log::segment_path, read_at_once, read_object,
    simdisk::SimMachine,
};
use crate::renter::{
    host::{Begun, Deadline, Host, HostError, HostOptions, HostState, Near, Peeked, Writers},
    marker::{self, PortalId},
};

const PORTAL: PortalId = PortalId([3; 32]);

async fn host_in(folder: &std::path::Path) -> FolderStore {
    let store = FolderStore::new(folder, FolderOptions::default());
    marker::create(&store, PORTAL).await.unwrap();
    store
}

fn record(name: impl std::fmt::Display) -> Path {
    Path::from(format!("records/entry/00/{name}/o"))
}

fn sector(seed: u8) -> Path {
    Path::from(format!("sectors/{seed:02x}/{}", hex::encode([seed; 32])))
}

async fn read(store: &FolderStore, path: &Path) -> Option<Bytes> {
    match store.get(path).await {
        Ok(found) => Some(found.bytes().await.unwrap()),
        Err(Error::NotFound { .. }) => None,
        Err(error) => panic!("{path}: {error}"),
    }
}

fn cause(error: &Error) -> &FolderError {
    match error {
        Error::Generic { source, .. } => source.downcast_ref().unwrap(),
        other => panic!("{other}"),
    }
}

async fn all_keys(store: &FolderStore) -> Vec<String> {
    store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap()
}

/// Waits until the folder is plain files: no segment left but a new one.
async fn wait_compacted(machine: &SimMachine) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        if !machine.paths().iter().any(|path| path.starts_with("log/")) {
            return;
        }
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
    panic!("not compacted: {:?}", machine.paths());
}

#[tokio::test]
async fn a_log_cut_anywhere_keeps_what_was_acknowledged_before_the_cut() {
    let top = tempfile::tempdir().unwrap();
    let store = host_in(top.path()).await;
    let log = top.path().join(segment_path(1));
    // After each acknowledged change, how long the log was.
    let mut ends = Vec::new();
    for index in 0..12u32 {
        store.put(&record(index), vec![index as u8; 20 + index as usize].into()).await.unwrap();
        ends.push(fs::metadata(&log).unwrap().len());
    }
    store.delete(&record(3)).await.unwrap();
    ends.push(fs::metadata(&log).unwrap().len());
    store.close().await;
    let whole = fs::read(&log).unwrap();
    let marker = fs::read(top.path().join(MARKER_KEY)).unwrap();
    for cut in ends[9] as usize..=whole.len() {
        let again = tempfile::tempdir().unwrap();
        fs::create_dir(again.path().join("log")).unwrap();
        fs::write(again.path().join(MARKER_KEY), &marker).unwrap();
        fs::write(again.path().join(segment_path(1)), &whole[..cut]).unwrap();
        let store = FolderStore::new(again.path(), FolderOptions::default());
        let kept = ends.iter().filter(|end| **end <= cut as u64).count();
        // Of an entry that lacks only some of the zeros behind it nothing is missing.
        let maybe = ends.iter().filter(|end| **end < cut as u64 + 8).count();
        for index in 0..12u32 {
            let got = read(&store, &record(index)).await;
            let there = |count: usize| (index as usize) < count && !(index == 3 && count == 13);
            let what = format!("entry {index}, cut at {cut} of {}", whole.len());
            assert!(got.is_some() == there(kept) || got.is_some() == there(maybe), "{what}");
            if let Some(bytes) = got {
                assert_eq!(bytes, vec![index as u8; 20 + index as usize], "{what}");
            }
        }
        // And it goes on from there.
        store.put(&record("after"), "after".into()).await.unwrap();
        assert_eq!(read(&store, &record("after")).await.unwrap(), "after");
        store.close().await;
    }
}

#[tokio::test]
async fn damage_in_the_middle_of_the_log_costs_no_other_entry() {
    let top = tempfile::tempdir().unwrap();
    let store = host_in(top.path()).await;
    for index in 0..10u32 {
        store.put(&record(index), vec![index as u8; 100].into()).await.unwrap();
    }
    store.close().await;
    let log = top.path().join(segment_path(1));
    let mut bytes = fs::read(&log).unwrap();
    let half = bytes.len() / 2;
    bytes[half] ^= 1;
    fs::write(&log, bytes).unwrap();
    let mut missing = 0;
    for index in 0..10u32 {
        missing += u32::from(read(&store, &record(index)).await.is_none());
    }
    assert_eq!(missing, 1);
}

#[tokio::test]
async fn newer_logs_and_second_users_are_refused_in_words() {
    let top = tempfile::tempdir().unwrap();
    let store = host_in(top.path()).await;
    store.put(&record(1), "x".into()).await.unwrap();
    let second = FolderStore::new(top.path(), FolderOptions::default());
    let error = second.get(&record(1)).await.unwrap_err();
    assert!(matches!(cause(&error), FolderError::Locked), "{error}");
    store.close().await;
    let log = top.path().join(segment_path(1));
    let mut bytes = fs::read(&log).unwrap();
    bytes[8] = 2;
    fs::write(&log, &bytes).unwrap();
    let error = marker::read(&second).await.unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("newer"), "{error}");
    assert_eq!(fs::read(&log).unwrap(), bytes, "left as it is");
}

#[tokio::test]
async fn nothing_is_made_without_the_marker() {
    let top = tempfile::tempdir().unwrap();
    let folder = top.path().join("host");
    let store = FolderStore::new(&folder, FolderOptions::default());
    for _ in 0..2 {
        for result in [
            store.put(&record(1), "x".into()).await.map(drop),
            store.put(&sector(1), vec![0; 100_000].into()).await.map(drop),
            store.delete(&record(1)).await,
            store.get(&record(1)).await.map(drop),
        ] {
            assert!(matches!(cause(&result.unwrap_err()), FolderError::NoMarker));
        }
        if !folder.exists() {
            fs::create_dir(&folder).unwrap();
        } else {
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        }
    }
}

#[tokio::test]
async fn a_folder_that_goes_and_comes_back() {
    let top = tempfile::tempdir().unwrap();
    let (here, away) = (top.path().join("host"), top.path().join("away"));
    let store = host_in(&here).await;
    store.put(&record(1), "one".into()).await.unwrap();
    // As an unmount looks: an empty folder at the path.
    fs::rename(&here, &away).unwrap();
    fs::create_dir(&here).unwrap();
    // Until somebody looks at the marker, writes go where they belong.
    store.put(&record(2), "two".into()).await.unwrap();
    assert!(matches!(marker::read(&store).await, Err(marker::MarkerError::Missing)));
    let error = store.put(&record(3), "three".into()).await.unwrap_err();
    assert!(matches!(cause(&error), FolderError::NoMarker), "{error}");
    assert_eq!(fs::read_dir(&here).unwrap().count(), 0);
    fs::remove_dir(&here).unwrap();
    assert!(matches!(marker::read(&store).await, Err(marker::MarkerError::Missing)));
    fs::rename(&away, &here).unwrap();
    // The writer of before may still be letting go.
    while marker::read(&store).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(read(&store, &record(1)).await.unwrap(), "one");
    assert_eq!(read(&store, &record(2)).await.unwrap(), "two");
    assert_eq!(read(&store, &record(3)).await, None);
}

#[tokio::test]
async fn foreign_things_in_the_folder_are_left_alone() {
    let top = tempfile::tempdir().unwrap();
    let outside = top.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    let folder = top.path().join("host");
    let store = host_in(&folder).await;
    store.put(&sector(1), vec![1; 100_000].into()).await.unwrap();
    let linked = folder.join(sector(2).as_ref());
    fs::create_dir_all(linked.parent().unwrap()).unwrap();
    symlink(&outside, &linked).unwrap();
    fs::write(folder.join("sectors/01/README"), "x").unwrap();
    fs::write(folder.join("lost.txt"), "x").unwrap();
    fs::create_dir_all(folder.join("sectors/03").join(hex::encode([3; 32]))).unwrap();
    assert!(store.get(&sector(2)).await.is_err(), "a link is not followed");
    assert_eq!(read(&store, &sector(3)).await, None);
    assert_eq!(all_keys(&store).await, [sector(1).to_string(), MARKER_KEY.to_owned()]);
    store.put(&sector(2), vec![2; 100_000].into()).await.unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"secret", "the link itself was replaced");
    assert_eq!(read(&store, &sector(2)).await.unwrap().len(), 100_000);
}

#[tokio::test]
async fn leftovers_of_cut_writes_are_removed() {
    let top = tempfile::tempdir().unwrap();
    let store = host_in(top.path()).await;
    store.close().await;
    fs::create_dir_all(top.path().join("tmp")).unwrap();
    fs::write(top.path().join("tmp/1"), "half").unwrap();
    store.put(&sector(1), vec![1; 100_000].into()).await.unwrap();
    assert_eq!(fs::read_dir(top.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn small_objects_become_plain_files() {
    let top = tempfile::tempdir().unwrap();
    let store = host_in(top.path()).await;
    let long = Path::from(format!("records/pin/00/{}/id/o", "a".repeat(262)));
    for path in [&record(1), &record(2), &long] {
        store.put(path, "small".into()).await.unwrap();
    }
    store.delete(&record(2)).await.unwrap();
    // Opening again closes the segment; then it is compacted.
    store.close().await;
    assert_eq!(read(&store, &record(1)).await.unwrap(), "small");
    while top.path().join(segment_path(1)).exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fs::read(top.path().join(record(1).as_ref())).unwrap(), b"small");
    assert!(!top.path().join("records/entry/00/2").exists());
    assert_eq!(read(&store, &long).await.unwrap(), "small");
    assert_eq!(all_keys(&store).await, [record(1).to_string(), long.to_string(), MARKER_KEY.to_owned()]);
    store.delete(&record(1)).await.unwrap();
    assert!(!top.path().join("records/entry/00/1").exists(), "the emptied folder goes, too");
}

#[tokio::test]
async fn used_bytes_are_counted_and_kept() {
    let machine = SimMachine::new();
    let store = machine.store();
    marker::create(&store, PORTAL).await.unwrap();
    let marker_bytes = fs_len(&store).await;
    store.put(&record(1), vec![0; 1_000].into()).await.unwrap();
    store.put(&sector(1), vec![0; 100_000].into()).await.unwrap();
    store.put(&sector(1), vec![0; 100_000].into()).await.unwrap();
    store.put(&record(1), vec![0; 2_000].into()).await.unwrap();
    let space = store.space();
    while space.used_bytes().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(space.used_bytes(), Some(102_000 + marker_bytes));
    store.delete(&sector(1)).await.unwrap();
    assert_eq!(space.used_bytes(), Some(2_000 + marker_bytes));
    store.close().await;
    read(&store, &record(1)).await.unwrap();
    while space.used_bytes().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(space.used_bytes(), Some(2_000 + marker_bytes));
}

async fn fs_len(store: &FolderStore) -> u64 {
    store.head(&Path::from(MARKER_KEY)).await.unwrap().size
}

#[tokio::test]
async fn below_the_floor_only_puts_are_refused() {
    let machine = SimMachine::new();
    let store = machine.store();
    marker::create(&store, PORTAL).await.unwrap();
    store.put(&record(1), "x".into()).await.unwrap();
    store.put(&sector(1), vec![0; 100_000].into()).await.unwrap();
    let small_sector = sector(3);
    machine.set_free_bytes((1 << 20) - 1);
    // The floor is a MiB (`FLOOR_SHARE` of the simulated disk), and a quarter of it is kept for records.
    for result in [store.put(&small_sector, "x".into()).await, store.put(&sector(2), vec![0; 100_000].into()).await] {
        assert!(matches!(cause(&result.unwrap_err()), FolderError::Full { floor_bytes: 1_048_576, .. }));
    }
    assert!(store.space().free_bytes() == Some((1 << 20) - 1) && store.space().below_floor());
    store.put(&record(3), "removed".into()).await.unwrap();
    store.delete(&record(3)).await.unwrap();
    machine.set_free_bytes(1 << 17);
    assert!(matches!(cause(&store.put(&record(2), "x".into()).await.unwrap_err()), FolderError::Full { .. }));
    assert_eq!(read(&store, &record(1)).await.unwrap(), "x");
    assert_eq!(read(&store, &sector(1)).await.unwrap().len(), 100_000);
    store.delete(&record(1)).await.unwrap();
    store.delete(&sector(1)).await.unwrap();
    assert_eq!(all_keys(&store).await, [MARKER_KEY]);
    machine.set_free_bytes(1 << 30);
    store.put(&record(2), "x".into()).await.unwrap();
}

#[tokio::test]
async fn a_failed_sync_acknowledges_nothing() {
    let machine = SimMachine::new();
    let store = machine.store();
    marker::create(&store, PORTAL).await.unwrap();
    store.put(&record(1), "one".into()).await.unwrap();
    machine.set_sync_fails(true);
    assert!(store.put(&record(1), "two".into()).await.is_err());
    assert!(store.put(&record(2), "two".into()).await.is_err());
    assert!(store.put(&sector(1), vec![0; 100_000].into()).await.is_err());
    assert!(store.delete(&record(1)).await.is_err());
    machine.set_sync_fails(false);
    assert_eq!(read(&store, &record(1)).await.unwrap(), "one");
    assert_eq!(read(&store, &record(2)).await, None);
    store.put(&record(2), "three".into()).await.unwrap();
    assert_eq!(read(&store, &record(2)).await.unwrap(), "three");
}

/// What is in memory is read without a thread of its own, and says the same as a read that may wait.
#[tokio::test]
async fn reads_at_once_say_what_reads_say() {
    let top = tempfile::tempdir().unwrap();
    let store = host_in(top.path()).await;
    let long: Vec<u8> = (0..AT_ONCE_BYTES_MAX as u32 + 50_000).map(|at| (at / 7) as u8).collect();
    store.put(&sector(1), long.into()).await.unwrap();
    store.put(&record(1), "in the log".into()).await.unwrap();
    store.put(&record(2), "removed".into()).await.unwrap();
    store.delete(&record(2)).await.unwrap();
    // Written past the page cache: this reads it in.
    read(&store, &sector(1)).await.unwrap();
    let open = store.open().await.unwrap();
    let ranges = [
        (None, AT_ONCE_BYTES_MAX),
        (Some(GetRange::Bounded(0..10)), usize::MAX),
        (Some(GetRange::Bounded(3..50_003)), usize::MAX),
        (Some(GetRange::Bounded(5_000_000..5_000_001)), usize::MAX),
        (Some(GetRange::Offset(6)), AT_ONCE_BYTES_MAX),
        (Some(GetRange::Suffix(4)), usize::MAX),
    ];
    for path in [sector(1), record(1), record(2)] {
        for (range, up_to) in &ranges {
            for head in [false, true] {
                let waited = read_object(&open, path.as_ref(), range.as_ref(), head, Vec::new());
                let at_once = read_at_once(&open, path.as_ref(), range.as_ref(), head);
                let told = at_once.map(|at_once| format!("{at_once:?}"));
                let short = waited.as_ref().map_or(0, |found| found.bytes.len()) <= *up_to;
                assert_eq!(told, short.then(|| format!("{waited:?}")), "{path} {range:?} head {head}");
            }
        }
    }
    // What is no file, or not there, is for a read that may ask the disk.
    let at = |seed: u8| top.path().join(sector(seed).as_ref());
    for seed in [2, 3, 4] {
        fs::create_dir_all(at(seed).parent().unwrap()).unwrap();
    }
    fs::create_dir(at(2)).unwrap();
    symlink(at(1), at(3)).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at(4), rustix::fs::Mode::RWXU).unwrap();
    for seed in [2, 3, 4, 5] {
        assert!(read_at_once(&open, sector(seed).as_ref(), None, false).is_none(), "{seed}");
    }
}

/// What is at hand is what a listing and a read say; of what became a file nothing is said.
#[tokio::test]
async fn peeks() {
    let folder = tempfile::tempdir().unwrap();
    let store = host_in(folder.path()).await;
    let peek = |folder: &str, bytes_max| store.peek(folder, 2, bytes_max);
    let look = async |folder: &str, bytes_max| store.look(folder, 2, bytes_max).await.unwrap();
    let entry = |order: &str| Path::from(format!("records/entry/00/key/{order}"));
    for order in ["b", "c", "a", "d"] {
        store.put(&entry(order), order.repeat(3).into()).await.unwrap();
    }
    store.delete(&entry("a")).await.unwrap();
    store.put(&Path::from("records/entry/00/key2/a"), "other".into()).await.unwrap();
    let found = peek("records/entry/00/key", 3);
    let keys = ["b", "c"].map(|order| entry(order).to_string()).to_vec();
    assert_eq!(found, Some(Peeked { keys: keys.clone(), first: Some("bbb".into()) }));
    assert_eq!(look("records/entry/00/key", 3).await, found.unwrap());
    assert_eq!(peek("records/entry/00/key", 2), None, "too long");
    assert_eq!(look("records/entry/00/key", 2).await, Peeked { keys: keys.clone(), first: None });
    // The kernel knows of no such folder once somebody has asked the disk.
    assert_eq!(look("records/entry/00/none", 3).await, Peeked { keys: Vec::new(), first: None });
    assert_eq!(peek("records/entry/00/none", 3), Some(Peeked { keys: Vec::new(), first: None }));
    assert_eq!(peek("", 3), None);
    assert_eq!(peek("../x", 3), None);
    fs::create_dir_all(folder.path().join("records/entry/00/key")).unwrap();
    fs::create_dir_all(folder.path().join("records/entry/00/none")).unwrap();
    assert_eq!(peek("records/entry/00/none", 3), None, "there may be files");
    // There was no such folder when the first of them was put: the log alone tells. Without that one the disk has to be asked.
    assert_eq!(peek("records/entry/00/key", 3), Some(Peeked { keys, first: Some("bbb".into()) }));
    store.delete(&entry("b")).await.unwrap();
    fs::create_dir_all(folder.path().join("records/entry/00/key")).unwrap();
    assert_eq!(peek("records/entry/00/key", 3), None, "there may be files");
    let keys = ["c", "d"].map(|order| entry(order).to_string()).to_vec();
    assert_eq!(look("records/entry/00/key", 3).await, Peeked { keys, first: Some("ccc".into()) });
    assert_eq!(look("records/entry/00/none", 3).await, Peeked { keys: Vec::new(), first: None });
    assert!(store.look("../x", 3, 3).await.is_err());
    store.close().await;
    assert_eq!(peek("records/entry/00/none", 3), None, "not open");
}

/// Whatever is put, removed and made into files: if a peek answers, it says what a look at the disk says.
#[tokio::test]
async fn a_peek_says_what_a_look_says() {
    for seed in 0..4 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let top = tempfile::tempdir().unwrap();
        let store = host_in(top.path()).await;
        let mut answered = 0;
        for step in 0..200 {
            let folder = format!("records/entry/00/{}", rng.random_range(0..4));
            let object = Path::from(format!("{folder}/{}", rng.random_range(0..4)));
            match rng.random_range(0..16) {
                0..8 => drop(store.put(&object, format!("{step}").into()).await.unwrap()),
                8..14 => store.delete(&object).await.unwrap(),
                14 => wait_while(|| rng.random_bool(0.99)).await,
                // Opened again, it has a closed segment, which becomes files while new entries come.
                _ => store.close().await,
            }
            if let Some(peeked) = store.peek(&folder, 4, 100) {
                assert_eq!(store.look(&folder, 4, 100).await.unwrap(), peeked, "seed {seed}, step {step}");
                answered += 1;
            }
        }
        assert!(answered > 20, "seed {seed}: {answered}");
    }
}

/// Lets other threads go on for a while.
async fn wait_while(mut go_on: impl FnMut() -> bool) {
    while go_on() {
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
}

/// What became files is at hand, too, once their names are known; the log's word stands before theirs.
#[tokio::test]
async fn peeks_into_files() {
    let top = tempfile::tempdir().unwrap();
    let store = host_in(top.path()).await;
    let (folder, file) = ("records/entry/00/key", |order: &str| Path::from(format!("records/entry/00/key/{order}")));
    let peek = || store.peek(folder, 3, 100);
    let found = |orders: &[&str], first: &'static str| {
        Some(Peeked { keys: orders.iter().map(|order| file(order).to_string()).collect(), first: Some(first.into()) })
    };
    for order in ["b", "c"] {
        store.put(&file(order), order.repeat(3).into()).await.unwrap();
    }
    let compacted = async |number: u64| {
        store.close().await;
        let _ = read(&store, &file("c")).await;
        while top.path().join(segment_path(number)).exists() {
            tokio::task::yield_now().await;
        }
    };
    compacted(1).await;
    assert_eq!(fs::read(top.path().join(file("b").as_ref())).unwrap(), b"bbb");
    assert_eq!(peek(), found(&["b", "c"], "bbb"), "who made the files knows them");
    store.close().await;
    assert_eq!(peek(), None, "not open");
    assert_eq!(read(&store, &file("b")).await.unwrap(), "bbb");
    assert_eq!(peek(), None, "not listed since it was opened");
    assert_eq!(store.look(folder, 3, 100).await.ok(), found(&["b", "c"], "bbb"));
    assert_eq!(peek(), found(&["b", "c"], "bbb"));
    store.put(&file("b"), "new".into()).await.unwrap();
    assert_eq!(peek(), found(&["b", "c"], "new"));
    store.put(&file("a"), "first".into()).await.unwrap();
    assert_eq!(peek(), found(&["a", "b", "c"], "first"));
    store.delete(&file("b")).await.unwrap();
    assert_eq!(peek(), found(&["a", "c"], "first"));
    // The log is empty by now, so it began anew.
    compacted(1).await;
    assert_eq!(store.look(folder, 3, 100).await.ok(), found(&["a", "c"], "first"));
    assert_eq!(store.begin_remove(file("a").as_ref()), Begun::Yes);
    store.put(&record("behind-it"), "x".into()).await.unwrap();
    assert_eq!(peek(), found(&["c"], "ccc"));
    // A file that goes behind everyone's back makes the reader ask the disk.
    fs::remove_file(top.path().join(file("c").as_ref())).unwrap();
    assert_eq!(peek(), None);
    assert_eq!(store.look(folder, 3, 100).await.unwrap(), Peeked { keys: Vec::new(), first: None });
}

#[tokio::test]
async fn puts_that_are_begun_are_told_in_any_case() {
    let machine = SimMachine::new();
    let store = machine.store();
    let bytes = Bytes::from_static(b"x");
    assert_eq!(store.begin_put(&record(1).as_ref().into(), &bytes, Box::new(|_| panic!("not taken"))), Begun::No, "not open yet");
    marker::create(&store, PORTAL).await.unwrap();
    for key in ["../x", MARKER_KEY, "records/entry/00"] {
        assert_eq!(store.begin_put(&key.into(), &bytes, Box::new(|_| panic!("not taken"))), Begun::No, "{key}");
        assert_eq!(store.begin_remove(key), Begun::No, "{key}");
    }
    assert!(begun_put(&store, &record(2), &bytes).await.is_ok());
    assert_eq!(read(&store, &record(2)).await.unwrap(), bytes);
    machine.set_sync_fails(true);
    assert!(begun_put(&store, &record(3), &bytes).await.is_err());
    machine.set_sync_fails(false);
    assert_eq!(read(&store, &record(3)).await, None);
    assert!(begun_put(&store, &record(3), &bytes).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_miss_nothing_while_objects_become_files() {
    let machine = SimMachine::new();
    let store = machine.store();
    marker::create(&store, PORTAL).await.unwrap();
    let names: Vec<Path> = (0..3_000).map(|index| record(format!("n{index:04}"))).collect();
    futures::future::try_join_all(names.iter().map(|path| store.put(path, "x".into()))).await.unwrap();
    store.close().await;
    // Opening starts the compaction; the listing takes several pages.
    let mut rounds = 0;
    loop {
        let under_way = machine.paths().iter().any(|path| path.starts_with("log/"));
        let listed: Vec<Path> = store.list(Some(&Path::from("records"))).map_ok(|meta| meta.location).try_collect().await.unwrap();
        assert!(listed == names, "round {rounds}: {} of {}", listed.len(), names.len());
        rounds += 1;
        if !under_way {
            break;
        }
    }
}

/// Run with SKYGATE_SMALL_FS=<an empty folder on a file system of a few MiB>.
#[tokio::test]
async fn a_small_file_system_gets_full_and_recovers() {
    let Ok(folder) = std::env::var("SKYGATE_SMALL_FS") else {
        println!("SKIPPED: SKYGATE_SMALL_FS names no folder on a small file system");
        return;
    };
    // Without a floor, so that the file system itself says it.
    for floor_bytes in [None, Some(0)] {
        let top = tempfile::tempdir_in(&folder).unwrap();
        let store = FolderStore::new(top.path(), FolderOptions { floor_bytes });
        let id = marker::create(&store, PORTAL).await.unwrap().host;
        let options = HostOptions {
            id,
            portal: PORTAL,
            url: "file:small".into(),
            space: Some(store.space()),
            near: None,
            writers: Writers::ThisNode,
        };
        let host = Host::new(Arc::new(store.clone()), options);
        assert_eq!(host.check().await, HostState::Up);
        let mut kept = Vec::new();
        for index in 0..1_000u32 {
            let len = if index % 2 == 0 { 500_000 } else { 5_000 };
            let path = record(index);
            match host.put(path.as_ref(), vec![index as u8; len].into(), Deadline::Sector).await {
                Ok(()) => kept.push((path, len, index)),
                Err(HostError::Full) => break,
                Err(error) => panic!("{floor_bytes:?} {index}: {error}"),
            }
        }
        assert_eq!(host.state(), HostState::ReadOnly, "{floor_bytes:?}: is the file system at SKYGATE_SMALL_FS a small one?");
        for (path, len, index) in &kept {
            assert!(read(&store, path).await.unwrap() == vec![*index as u8; *len], "{floor_bytes:?}");
        }
        for (path, ..) in &kept {
            host.delete(path.as_ref()).await.unwrap();
        }
        // What was removed may be in a segment until the next compaction.
        host.put(record("after").as_ref(), vec![1; 500_000].into(), Deadline::Sector).await.unwrap();
        assert_eq!(host.state(), HostState::Up);
        store.close().await;
        assert_eq!(all_keys(&store).await, [record("after").to_string(), MARKER_KEY.to_owned()]);
        store.close().await;
        println!("floor {floor_bytes:?}: {} objects fitted", kept.len());
    }
}

/// What a key may be after a crash: what was last acknowledged, or anything tried since.
#[derive(Clone, Debug, Default)]
struct Allowed {
    acknowledged: Option<Bytes>,
    tried: Vec<Option<Bytes>>,
}

/// The power goes at a random moment, again and again, while several tasks put, overwrite and remove small and large objects
/// and compaction runs. On a disk that loses whatever was not synced, everything acknowledged is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_power_goes() {
    let seeds: Vec<u64> = match std::env::var("SKYGATE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..12).collect(),
    };
    for seed in seeds {
        println!("seed {seed}");
        power_losses(seed).await;
    }
}

const TASKS: usize = 6;
const KEYS_PER_TASK: usize = 4;

async fn power_losses(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let machine = SimMachine::new();
    let store = machine.store();
    marker::create(&store, PORTAL).await.unwrap();
    store.close().await;
    let mut model: Vec<BTreeMap<String, Allowed>> = vec![BTreeMap::new(); TASKS];
    for round in 0..20 {
        let store = machine.store();
        machine.set_fuse(rng.random_range(1..200));
        let tasks: Vec<_> = model
            .drain(..)
            .enumerate()
            .map(|(task, keys)| tokio::spawn(use_until_dark(store.clone(), task, keys, rng.random())))
            .collect();
        for task in tasks {
            model.push(task.await.unwrap());
        }
        drop(store);
        machine.crash(&mut rng);
        let store = machine.store();
        // Half of the time before compaction has run, half of the time after.
        if rng.random_bool(0.5) {
            read(&store, &record(0)).await;
            wait_compacted(&machine).await;
        }
        check_model(&store, &mut model, &format!("seed {seed} round {round}")).await;
        store.close().await;
    }
}

async fn use_until_dark(
    store: FolderStore,
    task: usize,
    mut keys: BTreeMap<String, Allowed>,
    seed: u64,
) -> BTreeMap<String, Allowed> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    loop {
        let name = task * KEYS_PER_TASK + rng.random_range(0..KEYS_PER_TASK);
        let path = record(name);
        let next: Option<Bytes> = match rng.random_range(0..10) {
            0..3 => None,
            3 => Some(vec![rng.random(); rng.random_range(65_537..70_000)].into()),
            _ => Some(vec![rng.random(); rng.random_range(1..2_000)].into()),
        };
        let done = match &next {
            Some(bytes) if rng.random_bool(0.5) => begun_put(&store, &path, bytes).await,
            Some(bytes) => store.put(&path, bytes.clone().into()).await.map(drop),
            None => store.delete(&path).await,
        };
        let allowed = keys.entry(path.to_string()).or_default();
        if done.is_ok() && rng.random_range(0..8) == 0 {
            // Nobody hears how it ends: it may come to pass, or not.
            let _ = store.begin_remove(path.as_ref());
            *allowed = Allowed { acknowledged: next, tried: vec![None] };
            continue;
        }
        match done {
            Ok(()) => *allowed = Allowed { acknowledged: next, tried: Vec::new() },
            Err(_) => {
                allowed.tried.push(next);
                return keys;
            }
        }
    }
}

/// A put that nobody waits for but us.
async fn begun_put(store: &FolderStore, path: &Path, bytes: &Bytes) -> Result<(), Error> {
    let (told, heard) = tokio::sync::oneshot::channel();
    match store.begin_put(&path.as_ref().into(), bytes, Box::new(move |result| drop(told.send(result)))) {
        Begun::Yes => heard.await.expect("told in any case"),
        Begun::No => store.put(path, bytes.clone().into()).await.map(drop),
    }
}

async fn check_model(store: &FolderStore, model: &mut [BTreeMap<String, Allowed>], what: &str) {
    let mut expect_keys = Vec::new();
    for keys in model {
        for (key, allowed) in keys {
            let found = read(store, &Path::from(key.as_str())).await;
            let fine = found == allowed.acknowledged || allowed.tried.contains(&found);
            let len = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| (bytes.len(), bytes[0]));
            assert!(
                fine,
                "{what}: {key} is {:?}, should be {:?} or one of {:?}",
                len(&found),
                len(&allowed.acknowledged),
                allowed.tried.iter().map(len).collect::<Vec<_>>()
            );
            if found.is_some() {
                expect_keys.push(key.clone());
            }
            *allowed = Allowed { acknowledged: found, tried: Vec::new() };
        }
    }
    expect_keys.sort();
    expect_keys.push(MARKER_KEY.to_owned());
    assert_eq!(all_keys(store).await, expect_keys, "{what}");
}
