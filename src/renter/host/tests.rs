//! Hosts over stores that misbehave, with the clock paused.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory, path::Path};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::renter::{
    faulty::{FaultPlan, FaultyStore},
    folder::{FolderOptions, FolderStore, MARKER_KEY},
};

const ID: HostId = HostId([1; 16]);
const KEY: &str = "records/entry/00/k/o";

fn faulty(seed: u64) -> (Host, Arc<FaultPlan>, Arc<InMemory>) {
    let memory = Arc::new(InMemory::new());
    let store = FaultyStore::new(memory.clone(), seed);
    let plan = store.plan();
    (Host::up(ID, Arc::new(store)), plan, memory)
}

fn bytes(len: usize) -> Bytes {
    (0..len).map(|index| index as u8).collect::<Vec<u8>>().into()
}

#[tokio::test(start_paused = true)]
async fn reads_and_writes() {
    let (host, _, _) = faulty(1);
    assert!(matches!(host.get(KEY, ReadRange::Prefix(9)).await, Err(HostError::NotFound)));
    assert!(matches!(host.size(KEY).await, Err(HostError::NotFound)));
    host.delete(KEY).await.unwrap();
    host.put(KEY, bytes(1_000), Deadline::Small).await.unwrap();
    assert_eq!(host.size(KEY).await.unwrap(), 1_000);
    for (range, expect) in [
        (ReadRange::Whole { max: 1_000 }, Ok(0..1_000)),
        (ReadRange::Whole { max: 999 }, Err("longer than the limit")),
        (ReadRange::Range(10..20), Ok(10..20)),
        (ReadRange::Range(990..2_000), Ok(990..1_000)),
        (ReadRange::Range(20..20), Ok(0..0)),
        (ReadRange::Prefix(0), Ok(0..0)),
        (ReadRange::Prefix(10), Ok(0..10)),
        (ReadRange::Prefix(5_000), Ok(0..1_000)),
    ] {
        match (host.get(KEY, range.clone()).await, expect) {
            (Ok(got), Ok(expect)) => assert_eq!(got, bytes(1_000).slice(expect), "{range:?}"),
            (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{range:?}: {error}"),
            (got, expect) => panic!("{range:?}: {got:?} instead of {expect:?}"),
        }
    }
    assert!(matches!(host.get("a//b", ReadRange::Prefix(1)).await, Err(HostError::BadPath(_))));
    let health = host.health();
    assert_eq!((health.failures, health.in_flight, health.state), (0, 0, HostState::Up));
    assert!(host.predict(Operation::Get, SizeClass::Small).is_some());
}

#[tokio::test(start_paused = true)]
async fn lists_by_pages() {
    let (host, _, _) = faulty(1);
    let all: Vec<String> = (0..25).map(|index| format!("records/entry/00/k{index:02}/o")).collect();
    for key in &all {
        host.put(key, bytes(3), Deadline::Small).await.unwrap();
    }
    let mut got: Vec<(String, u64)> = host.list("records/entry", 10).await.unwrap();
    assert_eq!(got.len(), 10);
    loop {
        let page = host.list_after("records/entry", got.last().map(|(key, _)| key.as_str()), 10).await.unwrap();
        if page.is_empty() {
            break;
        }
        got.extend(page);
    }
    assert_eq!(got, all.into_iter().map(|key| (key, 3)).collect::<Vec<_>>());
    assert_eq!(host.list("", 100).await.unwrap().len(), 25);
}

#[tokio::test(start_paused = true)]
async fn answers_of_another_length_are_refused() {
    let (host, plan, _) = faulty(2);
    host.put(KEY, bytes(1_000), Deadline::Small).await.unwrap();
    for set in [FaultPlan::set_longer, FaultPlan::set_shorter] {
        set(&plan, 1_000);
        for range in [ReadRange::Whole { max: 5_000 }, ReadRange::Range(5..50), ReadRange::Prefix(7)] {
            let got = host.get(KEY, range.clone()).await;
            assert!(matches!(got, Err(HostError::Misanswered(_))), "{range:?}: {got:?}");
        }
        set(&plan, 0);
    }
    assert_eq!(host.health().failures, 6);
    plan.set_corruption(1_000);
    let got = host.get(KEY, ReadRange::Range(5..50)).await.unwrap();
    assert!(got.len() == 45 && got != bytes(1_000).slice(5..50), "only the check of the bytes can tell");
    host.charge_wrong();
    assert_eq!(host.health().wrong_pieces, 1);
}

#[tokio::test(start_paused = true)]
async fn a_hung_store_holds_nobody_longer_than_the_limits() {
    let (host, plan, _) = faulty(3);
    host.put(KEY, bytes(10), Deadline::Small).await.unwrap();
    plan.set_hung(true);
    let slow = |took: Duration, limits: &Limits| assert!(took <= limits.whole, "{took:?}");
    let started = Instant::now();
    assert!(matches!(host.get(KEY, ReadRange::Prefix(5)).await, Err(HostError::TimedOut)));
    slow(started.elapsed(), &GET);
    assert!(matches!(host.put(KEY, bytes(1), Deadline::Small).await, Err(HostError::TimedOut)));
    assert!(matches!(host.put(KEY, bytes(1), Deadline::Sector).await, Err(HostError::TimedOut)));
    assert!(matches!(host.size(KEY).await, Err(HostError::TimedOut)));
    assert!(matches!(host.delete(KEY).await, Err(HostError::TimedOut)));
    assert!(matches!(host.list("records", 5).await, Err(HostError::TimedOut)));
    let started = Instant::now();
    host.check().await;
    slow(started.elapsed(), &MARKER);
    assert_eq!(host.health().time_outs, 6);
    assert_eq!(host.health().in_flight, 0);
    // After enough of that it is down, and answers at once.
    for _ in 0..2 {
        let _ = host.size(KEY).await;
    }
    let started = Instant::now();
    assert!(matches!(host.get(KEY, ReadRange::Prefix(5)).await, Err(HostError::Down(DownReason::Failing(_)))));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stalls_is_given_up() {
    let (host, plan, _) = faulty(4);
    host.put(KEY, bytes(1_000), Deadline::Small).await.unwrap();
    plan.set_stalls(1_000);
    // The wrapper collects before it stalls, so the first byte is there at once.
    let started = Instant::now();
    assert!(matches!(host.get(KEY, ReadRange::Prefix(500)).await, Err(HostError::TimedOut)));
    assert!(started.elapsed() < GET.first_byte, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn full_and_read_only_hosts_say_so() {
    let (host, plan, _) = faulty(5);
    plan.set_quota_bytes(100);
    host.put(KEY, bytes(100), Deadline::Small).await.unwrap();
    assert!(matches!(host.put(KEY, bytes(1), Deadline::Small).await, Err(HostError::Full)));
    assert_eq!(host.state(), HostState::ReadOnly);
    assert_eq!(host.get(KEY, ReadRange::Prefix(100)).await.unwrap(), bytes(100));
    plan.set_quota_bytes(1_000);
    host.put(KEY, bytes(1), Deadline::Small).await.unwrap();
    assert_eq!(host.state(), HostState::Up);
    plan.set_read_only(true);
    assert!(matches!(host.put(KEY, bytes(1), Deadline::Small).await, Err(HostError::ReadOnly)));
    assert!(matches!(host.delete(KEY).await, Err(HostError::ReadOnly)));
    assert_eq!(host.state(), HostState::ReadOnly);
    assert_eq!(host.health().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_given_up_counts_with_the_time_it_had() {
    let (host, plan, _) = faulty(6);
    host.put(KEY, bytes(10), Deadline::Small).await.unwrap();
    plan.set_delay(Duration::from_millis(10), Duration::ZERO);
    host.get(KEY, ReadRange::Prefix(10)).await.unwrap();
    plan.set_delay(Duration::from_secs(5), Duration::ZERO);
    for _ in 0..5 {
        let late = tokio::time::timeout(Duration::from_secs(2), host.get(KEY, ReadRange::Prefix(10))).await;
        assert!(late.is_err());
        assert_eq!(host.in_flight(), 0);
    }
    let p50 = host.predict(Operation::Get, SizeClass::Small).unwrap().p50;
    assert!(p50 > Duration::from_secs(1), "{p50:?}");
}

async fn marked(portal: PortalId) -> (Arc<InMemory>, HostId) {
    let memory = Arc::new(InMemory::new());
    let marker = marker::create(&*memory, portal).await.unwrap();
    (memory, marker.host)
}

fn host_of(store: Arc<dyn ObjectStore>, id: HostId, portal: PortalId) -> Host {
    Host::new(store, HostOptions { id, portal, url: "test:".into(), space: None, near: None, writers: Writers::ThisNode })
}

#[tokio::test(start_paused = true)]
async fn only_its_own_marker_brings_a_host_up() {
    let portal = PortalId([1; 32]);
    let (memory, id) = marked(portal).await;
    let host = host_of(memory.clone(), id, portal);
    assert_eq!(host.state(), HostState::Down { reason: DownReason::NotCheckedYet });
    assert!(matches!(host.get(KEY, ReadRange::Prefix(1)).await, Err(HostError::Down(DownReason::NotCheckedYet))));
    assert_eq!(host.check().await, HostState::Up);
    for (host, expect) in [
        (host_of(memory.clone(), HostId([9; 16]), portal), "another host"),
        (host_of(memory.clone(), id, PortalId([2; 32])), "another portal"),
        (host_of(Arc::new(InMemory::new()), id, portal), "not mounted"),
    ] {
        match host.check().await {
            HostState::Down { reason } => assert!(reason.to_string().contains(expect), "{reason}"),
            state => panic!("{state:?} instead of {expect}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_watch_keeps_the_state_true() {
    let portal = PortalId([1; 32]);
    let (memory, id) = marked(portal).await;
    let store = FaultyStore::new(memory.clone(), 7);
    let plan = store.plan();
    let host = host_of(Arc::new(store), id, portal);
    let stop = CancellationToken::new();
    let watch = tokio::spawn(host.clone().watch(stop.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.state(), HostState::Up);
    // The marker goes: known within a minute.
    let marker = memory.get(&Path::from(MARKER_KEY)).await.unwrap().bytes().await.unwrap();
    memory.delete(&Path::from(MARKER_KEY)).await.unwrap();
    tokio::time::sleep(MARKER_EVERY).await;
    assert!(matches!(host.state(), HostState::Down { reason: DownReason::Marker(_) }));
    // It comes back: known within seconds.
    memory.put(&Path::from(MARKER_KEY), marker.into()).await.unwrap();
    tokio::time::sleep(MARKER_RETRY).await;
    assert_eq!(host.state(), HostState::Up);
    // One miss is not the end, a hung host is down.
    plan.set_hung(true);
    tokio::time::sleep(MARKER_EVERY + MARKER.whole + Duration::from_secs(1)).await;
    assert_eq!(host.state(), HostState::Up);
    tokio::time::sleep(MARKER_RETRY + MARKER.whole + Duration::from_secs(1)).await;
    assert_eq!(host.state(), HostState::Down { reason: DownReason::NotAnswering });
    plan.set_hung(false);
    tokio::time::sleep(MARKER_RETRY + MARKER.whole).await;
    assert_eq!(host.state(), HostState::Up);
    // A host that only fails is down after a few calls, and tried again soon, not in a minute.
    plan.set_dead(true);
    for _ in 0..FAILURES_IN_A_ROW_MAX {
        assert!(matches!(host.size(KEY).await, Err(HostError::Transient(_))));
    }
    assert!(matches!(host.state(), HostState::Down { reason: DownReason::Failing(_) }));
    plan.set_dead(false);
    tokio::time::sleep(MARKER_RETRY).await;
    assert_eq!(host.state(), HostState::Up);
    // And it ends when told, even in the middle of a look at a hung host.
    plan.set_hung(true);
    tokio::time::sleep(MARKER_EVERY + Duration::from_secs(1)).await;
    let started = Instant::now();
    stop.cancel();
    watch.await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_folder_says_what_is_wrong() {
    let top = tempfile::tempdir().unwrap();
    let store = FolderStore::new(top.path(), FolderOptions::default());
    let portal = PortalId([1; 32]);
    let id = marker::create(&store, portal).await.unwrap().host;
    let space = Some(store.space());
    let host = Host::new(
        Arc::new(store.clone()),
        HostOptions { id, portal, url: "file:x".into(), space, near: None, writers: Writers::ThisNode },
    );
    assert_eq!(host.check().await, HostState::Up);
    host.put(KEY, bytes(10), Deadline::Small).await.unwrap();
    assert!(host.health().free_bytes.is_some());
    let out_of_range = host.get(KEY, ReadRange::Range(10..12)).await;
    assert!(matches!(out_of_range, Err(HostError::Misanswered(_))), "{out_of_range:?}");
    assert!(matches!(host.get("tmp/1", ReadRange::Prefix(1)).await, Err(HostError::BadPath(_))));
    let big = host.put("records/entry/00/big/o", bytes(9 << 20), Deadline::Sector).await;
    assert!(matches!(big, Err(HostError::TooLarge)), "{big:?}");
    std::fs::remove_file(top.path().join(MARKER_KEY)).unwrap();
    assert!(matches!(host.check().await, HostState::Down { .. }));
    store.close().await;
    // A floor above everything.
    let options = FolderOptions { floor_bytes: Some(u64::MAX) };
    let full = tempfile::tempdir().unwrap();
    let store = FolderStore::new(full.path(), options);
    let id = marker::create(&store, portal).await.unwrap().host;
    let space = Some(store.space());
    let host =
        Host::new(Arc::new(store), HostOptions { id, portal, url: "file:y".into(), space, near: None, writers: Writers::ThisNode });
    host.check().await;
    let sector = format!("sectors/00/{}", "00".repeat(32));
    assert!(matches!(host.put(&sector, bytes(10), Deadline::Small).await, Err(HostError::Full)));
    assert_eq!(host.state(), HostState::ReadOnly);
    // A record is taken all the same, and the host stays what it is.
    host.put(KEY, bytes(10), Deadline::Small).await.unwrap();
    assert_eq!(host.state(), HostState::ReadOnly);
    host.delete(KEY).await.unwrap();
}

#[test]
fn ids() {
    let id = HostId::random();
    assert_eq!(id.to_string().parse::<HostId>().unwrap(), id);
    assert_ne!(HostId::random(), id);
    for bad in ["", "00", "zz000000000000000000000000000000", "000000000000000000000000000000000"] {
        assert!(bad.parse::<HostId>().is_err(), "{bad}");
    }
}

/// A loser's connection lives if little is left of its answer; else it is closed, for that costs less.
#[tokio::test(start_paused = true)]
async fn an_answer_dropped_with_little_left_is_read_to_its_end() {
    const FIRST: usize = 300_000;
    const GAP: Duration = Duration::from_millis(10);
    let rows = [
        (DRAIN_MAX_BYTES as usize, Duration::ZERO, true),
        (DRAIN_MAX_BYTES as usize + 1, Duration::ZERO, false),
        // A host that hangs is not waited for.
        (1_000, DRAIN_MAX, false),
    ];
    for (left, pause, drained) in rows {
        let taken = Arc::new(AtomicU64::new(0));
        let counter = taken.clone();
        let parts =
            futures::stream::iter([(FIRST, GAP), (left / 2, GAP), (left - left / 2, GAP + pause)]).then(move |(len, gap)| {
                let counter = counter.clone();
                async move {
                    sleep(gap).await;
                    counter.fetch_add(len as u64, Relaxed);
                    Ok(bytes(len))
                }
            });
        let whole = (FIRST + left) as u64;
        // The first part is there, and nobody waits for the rest.
        assert!(timeout(GAP + GAP / 2, collect(parts.boxed(), whole, whole)).await.is_err());
        sleep(DRAIN_MAX * 2).await;
        assert_eq!(taken.load(Relaxed) == whole, drained, "{left} bytes left");
        assert_eq!(Arc::strong_count(&taken), 1, "nothing is under way any more");
    }
}

/// A far store has no call for the newest of a folder: the key that was first the last time is read beside the list.
#[tokio::test(start_paused = true)]
async fn what_was_first_is_read_beside_the_list() {
    const FOLDER: &str = "records/entry/00/k";
    let (host, plan, memory) = faulty(1);
    let key = |order: &str| format!("{FOLDER}/{order}");
    let look = async || {
        let began = Instant::now();
        let looked = host.look(FOLDER, 32, 1_000).await.unwrap();
        (looked.keys, looked.first, began.elapsed().as_millis() / 100)
    };
    host.put(&key("5"), bytes(5), Deadline::Small).await.unwrap();
    plan.set_delay(Duration::from_millis(100), Duration::ZERO);
    assert_eq!(look().await, (vec![key("5")], None, 1), "nobody knew which key");
    let calls = plan.calls();
    assert_eq!(look().await, (vec![key("5")], Some(bytes(5)), 1));
    assert_eq!(plan.calls() - calls, 2);
    // A newer one, written here, and then one by somebody else.
    host.put(&key("4"), bytes(4), Deadline::Small).await.unwrap();
    assert_eq!(look().await, (vec![key("4"), key("5")], Some(bytes(4)), 1));
    memory.put(&Path::from(key("3")), bytes(3).into()).await.unwrap();
    assert_eq!(look().await, (vec![key("3"), key("4"), key("5")], None, 1), "the one that was first is not any more");
    assert_eq!(look().await.1, Some(bytes(3)));
    // What is longer than was allowed, what is gone, and a folder that is empty.
    host.put(&key("2"), bytes(1_001), Deadline::Small).await.unwrap();
    assert_eq!(look().await.1, None);
    for order in ["2", "3", "4"] {
        memory.delete(&Path::from(key(order))).await.unwrap();
    }
    assert_eq!(look().await, (vec![key("5")], None, 1));
    memory.delete(&Path::from(key("5"))).await.unwrap();
    assert_eq!(look().await, (vec![], None, 1));
    let calls = plan.calls();
    assert_eq!((look().await, plan.calls() - calls), ((vec![], None, 1), 1));
}
