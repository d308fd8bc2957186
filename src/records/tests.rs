//! The promises of the room, over simulated hosts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{
    sim::{Call, Mode, SimHosts},
    *,
};

fn portal() -> PortalKey {
    PortalKey::from_seed(&[42; 32])
}

fn owners() -> OwnerChecks {
    let owned: OwnerCheck = |record| match record.body.starts_with(b"owned") {
        true => Ok(()),
        false => Err("not owned".to_owned()),
    };
    OwnerChecks { entry: owned, ipns: owned }
}

fn node(hosts: &Arc<SimHosts>) -> Records {
    let options = RecordsOptions { owners: owners(), ..RecordsOptions::default() };
    Records::new(hosts.clone(), portal(), options)
}

fn site(number: u8) -> RecordKey {
    RecordKey::new(Kind::Site, &hex::encode([number; 16])).unwrap()
}

fn version(key: &RecordKey, version: u64) -> Record {
    Record::new(key.clone(), Order::version(version), format!("body of {version}"))
}

fn entry(revision: u64) -> Record {
    Record::new(RecordKey::entry(&[9; 32]), Order::entry(revision, &[1; 32]), format!("owned, {revision}"))
}

fn sealed(record: Record) -> Checked {
    Checked::seal(record, &portal(), &owners()).unwrap()
}

fn plant(hosts: &SimHosts, on: &[usize], record: Record) {
    let version = sealed(record);
    let path = version.record().key.path(&version.record().order);
    on.iter().for_each(|host| hosts.plant(*host, &path, version.object()));
}

async fn newest_number(records: &Records, key: &RecordKey) -> Option<u64> {
    records.newest(key).await.unwrap().map(|record| record.order.number())
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(result: Result<T, RecordError>, expect: (usize, usize)) {
    match result {
        Err(RecordError::Unavailable { have, need, reasons }) => {
            assert_eq!((have, need), expect, "{reasons}");
            assert!(!reasons.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn any_e_hosts_may_fail_in_any_way() {
    for (e, total) in [(0, 1), (1, 3), (1, 5), (2, 9), (3, 7), (3, 9)] {
        for mode in Mode::FAULTS {
            let hosts = SimHosts::new(1, total, e);
            let key = site(1);
            let writer = node(&hosts);
            writer.put(version(&key, 1)).await.unwrap();
            writer.settle().await;
            let placed = hosts.of(&key);
            for first in 0..placed.len() {
                hosts.set_all(Mode::Up);
                (0..e).for_each(|step| hosts.set(placed[(first + step) % placed.len()], mode));
                let number = 2 + first as u64;
                let context = format!("e {e}, {mode:?} from {first}");
                writer.put(version(&key, number)).await.expect(&context);
                // A node that knows nothing; then other hosts fail.
                assert_eq!(newest_number(&node(&hosts), &key).await, Some(number), "{context}");
                hosts.set_all(Mode::Up);
                (0..e).for_each(|step| hosts.set(placed[(first + e + 1 + step) % placed.len()], mode));
                assert_eq!(newest_number(&node(&hosts), &key).await, Some(number), "{context}, then others");
                let absent = node(&hosts).newest(&site(2)).await;
                assert!(absent.expect(&context).is_none());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_more_is_too_many() {
    for mode in [Mode::Down, Mode::Hang] {
        let hosts = SimHosts::new(1, 9, 3);
        let (key, records) = (site(1), node(&hosts));
        records.put(version(&key, 1)).await.unwrap();
        records.settle().await;
        hosts.of(&key)[..4].iter().for_each(|host| hosts.set(*host, mode));
        assert_unavailable(records.put(version(&key, 2)).await, (3, 4));
        assert_unavailable(records.newest(&key).await, (3, 4));
        assert_unavailable(node(&hosts).newest(&key).await, (3, 4));
        assert_unavailable(node(&hosts).group(&key.group()).await, (3, 4));
        let counts = records.counts();
        assert_eq!((counts.puts_failed, counts.reads_failed), (1, 1));
    }
    // Hosts that hide what they have behind rubbish are no witnesses that there is nothing.
    let hosts = SimHosts::new(1, 9, 3);
    let key = site(1);
    hosts.of(&key)[..4].iter().for_each(|host| hosts.set(*host, Mode::Forge));
    assert_unavailable(node(&hosts).newest(&key).await, (3, 4));
    let group = node(&hosts).group(&key.group()).await.unwrap();
    assert_eq!((group.records.len(), group.extent), (0, Extent::Partial));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_newest_copy_is_no_witness_for_an_older_one() {
    let hosts = SimHosts::new(1, 7, 3);
    let key = site(1);
    let placed = hosts.of(&key);
    // Version 2 was acknowledged by four hosts; on three of them it rots. The other three missed it.
    plant(&hosts, &placed, version(&key, 1));
    plant(&hosts, &placed[..4], version(&key, 2));
    let path = key.path(&Order::version(2));
    for host in &placed[..3] {
        hosts.plant(*host, &path, &bytes::Bytes::from_static(b"rotten"));
    }
    // The last good copy comes last: a majority has answered before, and must not be believed.
    hosts.set(placed[3], Mode::Slow);
    let records = node(&hosts);
    assert_eq!(newest_number(&records, &key).await, Some(2));
    records.settle().await;
    let good = hosts.object(placed[3], &path).unwrap();
    for host in placed {
        assert_eq!(hosts.object(host, &path).unwrap(), good, "healed");
        assert_eq!(hosts.object(host, &key.path(&Order::version(1))), None, "swept");
    }
    assert!(hosts.charged.load(Relaxed) >= 3);
    assert_eq!(records.counts().invalid_objects, hosts.charged.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn hosts_that_missed_a_write_are_repaired() {
    let hosts = SimHosts::new(5, 9, 3);
    let (key, records) = (site(1), node(&hosts));
    let placed = hosts.of(&key);
    records.put(version(&key, 1)).await.unwrap();
    records.settle().await;
    assert_eq!(hosts.holders(&key, &Order::version(1)), 7);
    placed[..3].iter().for_each(|host| hosts.set(*host, Mode::Stale));
    records.put(version(&key, 2)).await.unwrap();
    records.settle().await;
    assert_eq!(hosts.holders(&key, &Order::version(2)), 4);
    assert_eq!(hosts.holders(&key, &Order::version(1)), 3, "swept where the new one is");
    hosts.set_all(Mode::Up);
    assert_eq!(newest_number(&records, &key).await, Some(2));
    records.settle().await;
    assert_eq!(hosts.holders(&key, &Order::version(2)), 7);
    assert_eq!(hosts.holders(&key, &Order::version(1)), 0);
}

#[tokio::test(start_paused = true)]
async fn what_one_read_saw_every_later_read_sees() {
    // Version 2 reached one host before its writer died.
    for seed in 0..20 {
        let hosts = SimHosts::new(seed, 7, 3);
        let key = site(1);
        let placed = hosts.of(&key);
        plant(&hosts, &placed, version(&key, 1));
        plant(&hosts, &placed[..1], version(&key, 2));
        let reader = node(&hosts);
        let seen = newest_number(&reader, &key).await.unwrap();
        if seen == 2 {
            assert!(hosts.holders(&key, &Order::version(2)) >= 4, "seed {seed}: at its quorum before the answer");
        }
        placed[..3].iter().for_each(|host| hosts.set(*host, Mode::Down));
        assert!(newest_number(&node(&hosts), &key).await.unwrap() >= seen, "seed {seed}");
        assert!(newest_number(&reader, &key).await.unwrap() >= seen, "seed {seed}");
    }
    // It cannot be brought to its quorum: neither version may be given.
    let hosts = SimHosts::new(1, 7, 3);
    let key = site(1);
    let placed = hosts.of(&key);
    plant(&hosts, &placed, version(&key, 1));
    plant(&hosts, &placed[..1], version(&key, 2));
    placed[1..].iter().for_each(|host| hosts.set(*host, Mode::Stale));
    placed[4..].iter().for_each(|host| hosts.set(*host, Mode::Down));
    assert_unavailable(node(&hosts).newest(&key).await, (1, 4));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_swept_for_a_version_below_its_quorum() {
    let hosts = SimHosts::new(1, 7, 3);
    let (key, records) = (site(1), node(&hosts));
    let placed = hosts.of(&key);
    plant(&hosts, &placed, version(&key, 1));
    plant(&hosts, &placed[..1], version(&key, 2));
    hosts.set(placed[0], Mode::Slow);
    placed[1..5].iter().for_each(|host| hosts.set(*host, Mode::Stale));
    placed[5..].iter().for_each(|host| hosts.set(*host, Mode::Down));
    assert_eq!(newest_number(&records, &key).await, Some(1));
    records.settle().await;
    assert_eq!(hosts.holders(&key, &Order::version(1)), 7);
    // It was seen, so this node answers with it or not at all.
    assert_unavailable(records.newest(&key).await, (1, 4));
    hosts.set_all(Mode::Up);
    assert_eq!(newest_number(&records, &key).await, Some(2));
    records.settle().await;
    assert_eq!((hosts.holders(&key, &Order::version(1)), hosts.holders(&key, &Order::version(2))), (0, 7));
}

#[tokio::test(start_paused = true)]
async fn a_late_newer_answer_is_repaired_and_pushed() {
    let hosts = SimHosts::new(3, 7, 3);
    let (key, records) = (site(1), node(&hosts));
    let placed = hosts.of(&key);
    plant(&hosts, &placed, version(&key, 1));
    plant(&hosts, &placed[..1], version(&key, 2));
    hosts.set(placed[0], Mode::Slow);
    let mut sites = records.subscribe(Kind::Site);
    let mut pins = records.subscribe(Kind::Pin);
    assert_eq!(newest_number(&records, &key).await, Some(1));
    assert_eq!(sites.try_recv().unwrap().order, Order::version(1));
    records.settle().await;
    assert_eq!(sites.try_recv().unwrap().order, Order::version(2));
    assert!(sites.try_recv().is_err() && pins.try_recv().is_err());
    assert_eq!(hosts.holders(&key, &Order::version(2)), 7);
    assert_eq!(hosts.holders(&key, &Order::version(1)), 0);
    assert_eq!(newest_number(&records, &key).await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn the_floor_holds_when_hosts_go_back() {
    let hosts = SimHosts::new(3, 7, 3);
    let (key, records) = (site(1), node(&hosts));
    records.put(version(&key, 1)).await.unwrap();
    records.settle().await;
    let before = hosts.snapshot();
    records.put(version(&key, 2)).await.unwrap();
    records.settle().await;
    hosts.restore(before);
    assert_eq!(newest_number(&node(&hosts), &key).await, Some(1), "a node without memory cannot know");
    assert_eq!(newest_number(&records, &key).await, Some(2));
    assert_eq!(newest_number(&node(&hosts), &key).await, Some(2), "written back");
}

#[tokio::test(start_paused = true)]
async fn puts_at_or_below_the_known_are_refused() {
    let hosts = SimHosts::new(3, 9, 3);
    let (key, records) = (site(1), node(&hosts));
    records.put(version(&key, 5)).await.unwrap();
    for number in [4, 5] {
        match records.put(version(&key, number)).await {
            Err(RecordError::NotNewer { newest }) => assert_eq!(*newest, version(&key, 5)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(records.counts().puts_refused, 2);

    // The order of an owner's record comes from outside: a node that knows nothing asks first.
    records.put(entry(7)).await.unwrap();
    let fresh = node(&hosts);
    match fresh.put(entry(6)).await {
        Err(RecordError::NotNewer { newest }) => assert_eq!(*newest, entry(7)),
        other => panic!("{other:?}"),
    }
    fresh.put(entry(8)).await.unwrap();
    let mut stolen = entry(9);
    stolen.body = "stolen".into();
    assert!(matches!(fresh.put(stolen).await, Err(RecordError::Invalid(InvalidRecord::Owner(_)))));
    let unchecked = Records::new(hosts.clone(), portal(), RecordsOptions::default());
    assert!(matches!(unchecked.put(entry(9)).await, Err(RecordError::Invalid(InvalidRecord::Owner(_)))));
    let stranger = Records::new(hosts.clone(), PortalKey::from_seed(&[1; 32]), RecordsOptions::default());
    records.settle().await;
    assert_unavailable(stranger.newest(&key).await, (0, 4));
}

#[tokio::test(start_paused = true)]
async fn versions_count_up_and_removal_is_a_version() {
    let hosts = SimHosts::new(3, 9, 3);
    let (key, records) = (site(1), node(&hosts));
    assert_eq!(records.next_version(&key).await.unwrap(), Order::version(1));
    records.remove(&key).await.unwrap();
    assert_eq!(newest_number(&records, &key).await, None, "nothing to remove");
    records.put(version(&key, 1)).await.unwrap();
    assert_eq!(node(&hosts).next_version(&key).await.unwrap(), Order::version(2));
    records.remove(&key).await.unwrap();
    let newest = node(&hosts).newest(&key).await.unwrap().unwrap();
    assert!(newest.removed && newest.order == Order::version(2));
    records.remove(&key).await.unwrap();
    assert_eq!(records.next_version(&key).await.unwrap(), Order::version(3));

    // A failed put may still land somewhere: its number is not used again.
    hosts.set_all(Mode::Down);
    assert_unavailable(records.put(version(&key, 3)).await, (3, 4));
    hosts.set_all(Mode::Up);
    assert_eq!(records.next_version(&key).await.unwrap(), Order::version(4));

    records.put(version(&key, u64::MAX)).await.unwrap();
    assert!(matches!(records.next_version(&key).await, Err(RecordError::NoNextVersion(_))));
    assert!(matches!(records.next_version(&entry(1).key).await, Err(RecordError::NoNextVersion(_))));
}

#[tokio::test(start_paused = true)]
async fn of_equal_orders_one_wins_everywhere() {
    let hosts = SimHosts::new(3, 7, 3);
    let key = site(1);
    let placed = hosts.of(&key);
    let mut other = version(&key, 1);
    other.body = "another body".into();
    let (one, two) = (sealed(version(&key, 1)), sealed(other));
    plant(&hosts, &placed[..4], (**one.record()).clone());
    plant(&hosts, &placed[4..], (**two.record()).clone());
    let winner = if one.rank(&two) == std::cmp::Ordering::Greater { one } else { two };
    // One read of all hosts: those of the loser are overwritten.
    let records = node(&hosts);
    records.newest(&key).await.unwrap();
    records.settle().await;
    assert_eq!(records.newest(&key).await.unwrap().unwrap(), *winner.record());
    assert_eq!(node(&hosts).newest(&key).await.unwrap().unwrap(), *winner.record());
    for host in placed {
        assert_eq!(hosts.object(host, &key.path(&Order::version(1))).unwrap(), *winner.object());
    }
}

#[tokio::test(start_paused = true)]
async fn writers_in_one_process_take_turns() {
    let hosts = SimHosts::new(3, 7, 3);
    let (key, records) = (site(1), node(&hosts));
    let attempts = join_all((0..20).map(|number| {
        let mut record = version(&key, 1);
        record.body = format!("writer {number}").into();
        let records = &records;
        async move { (records.put(record.clone()).await, record) }
    }));
    let (won, lost): (Vec<_>, Vec<_>) = attempts.await.into_iter().partition(|(result, _)| result.is_ok());
    assert_eq!(won.len(), 1);
    for (result, _) in lost {
        assert!(matches!(result, Err(RecordError::NotNewer { newest }) if *newest == won[0].1));
    }
    assert_eq!(*records.newest(&key).await.unwrap().unwrap(), won[0].1);
}

#[tokio::test(start_paused = true)]
async fn the_host_table_goes_to_all_hosts() {
    let hosts = SimHosts::new(3, 12, 2);
    let records = node(&hosts);
    let key = RecordKey::host_table();
    records.put(version(&key, 1)).await.unwrap();
    records.settle().await;
    assert_eq!(hosts.holders(&key, &Order::version(1)), 12);
    (0..5).for_each(|host| hosts.set(host, Mode::Down));
    assert_eq!(newest_number(&node(&hosts), &key).await, Some(1));
    (0..6).for_each(|host| hosts.set(host, Mode::Down));
    assert_unavailable(node(&hosts).newest(&key).await, (6, 7));
}

#[tokio::test(start_paused = true)]
async fn fewer_hosts_than_wanted() {
    for (total, may_fail) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)] {
        let hosts = SimHosts::new(3, total, 3);
        let (key, records) = (site(1), node(&hosts));
        records.put(version(&key, 1)).await.unwrap();
        records.settle().await;
        assert_eq!(hosts.holders(&key, &Order::version(1)), total);
        (0..may_fail).for_each(|host| hosts.set(host, Mode::Down));
        records.put(version(&key, 2)).await.unwrap();
        assert_eq!(newest_number(&node(&hosts), &key).await, Some(2));
        (0..=may_fail).for_each(|host| hosts.set(host, Mode::Down));
        assert!(node(&hosts).newest(&key).await.is_err(), "{total} hosts");
        assert!(node(&hosts).put(version(&key, 3)).await.is_err(), "{total} hosts");
    }
    let none = node(&SimHosts::new(3, 0, 3));
    assert_unavailable(none.newest(&site(1)).await, (0, 1));
    assert_unavailable(none.put(version(&site(1), 1)).await, (0, 1));
    let mut scan = none.scan(Kind::Site);
    assert!(scan.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn dropped_calls_stop_and_tails_are_bounded() {
    let hosts = SimHosts::new(3, 7, 3);
    let (key, records) = (site(1), node(&hosts));
    hosts.set_all(Mode::Hang);
    let limit = Duration::from_secs(1);
    assert!(tokio::time::timeout(limit, records.newest(&key)).await.is_err());
    assert!(tokio::time::timeout(limit, records.put(version(&key, 1))).await.is_err());
    assert_eq!(hosts.in_flight.load(Relaxed), 0);
    // The turn of the dropped writer is free again.
    hosts.set_all(Mode::Up);
    records.put(version(&key, 1)).await.unwrap();
    records.settle().await;

    hosts.set(0, Mode::Hang);
    for _ in 0..TAILS_MAX + 20 {
        let one = tokio::time::timeout(Duration::from_millis(500), records.newest(&key));
        one.await.expect("one host that hangs delays nobody").unwrap();
    }
    let in_flight = hosts.in_flight.load(Relaxed);
    assert!(in_flight <= TAILS_MAX as i64, "{in_flight}");
    assert!(records.counts().tails_dropped >= 20);
    records.settle().await;
    assert_eq!(hosts.in_flight.load(Relaxed), 0);
}

fn pin(group: u32, id: u8, number: u64) -> Record {
    let mut target = vec![0x12, 0x20];
    target.extend(hash_of(&[&group.to_le_bytes()]));
    version(&RecordKey::pin(&target, &[id; 16]).unwrap(), number)
}

#[tokio::test(start_paused = true)]
async fn a_group_gives_the_newest_of_each() {
    let hosts = SimHosts::new(3, 9, 3);
    let records = node(&hosts);
    let group = pin(1, 0, 1).key.group();
    let empty = records.group(&group).await.unwrap();
    assert_eq!((empty.records.len(), empty.extent), (0, Extent::Complete));
    for record in [pin(1, 7, 1), pin(1, 7, 2), pin(1, 3, 1), pin(2, 4, 1), pin(1, 9, 1)] {
        records.put(record).await.unwrap();
    }
    records.remove(&pin(1, 3, 1).key).await.unwrap();
    // One pin that only one host has; rubbish in the folder.
    let placed = hosts.of(&pin(1, 0, 1).key);
    records.settle().await;
    plant(&hosts, &placed[..1], pin(1, 8, 1));
    hosts.plant(placed[1], &format!("{}junk", group.folder()), &bytes::Bytes::new());
    hosts.set(placed[2], Mode::Hang);
    hosts.set(placed[3], Mode::Corrupt);
    for _ in 0..2 {
        let read = node(&hosts).group(&group).await.unwrap();
        assert_eq!(read.extent, Extent::Complete);
        let seen: BTreeMap<RecordKey, (u64, bool)> =
            read.records.iter().map(|record| (record.key.clone(), (record.order.number(), record.removed))).collect();
        assert_eq!(seen.len(), read.records.len());
        assert_eq!(seen[&pin(1, 7, 0).key], (2, false));
        assert_eq!(seen[&pin(1, 3, 0).key], (2, true));
        assert_eq!(seen[&pin(1, 9, 0).key], (1, false));
        assert!(!seen.contains_key(&pin(2, 4, 0).key));
        if seen.contains_key(&pin(1, 8, 0).key) {
            assert!(hosts.holders(&pin(1, 8, 0).key, &Order::version(1)) >= 4);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_huge_group_is_partial() {
    let hosts = SimHosts::new(3, 7, 3);
    let group = pin(1, 0, 1).key.group();
    let placed = hosts.of(&pin(1, 0, 1).key);
    for number in 0..1_300u128 {
        let key = RecordKey::new(Kind::Pin, &format!("1220{}/{number:032x}", hex::encode(hash_of(&[&1u32.to_le_bytes()]))));
        let key = key.unwrap();
        assert_eq!(key.group(), group);
        // Not all hosts have all, so the repairs of a large group run, too.
        plant(&hosts, if number % 7 == 0 { &placed[..2] } else { &placed }, version(&key, 1));
    }
    let records = node(&hosts);
    let read = records.group(&group).await.unwrap();
    assert_eq!(read.extent, Extent::Partial);
    assert!((1_024..=1_195).contains(&read.records.len()), "{}", read.records.len());
    records.settle().await;
}

/// Pins on the hosts, and what a scan has to find.
fn planted(hosts: &SimHosts, groups: u32) -> BTreeMap<RecordKey, u64> {
    let mut wanted = BTreeMap::new();
    for group in 0..groups {
        for id in 0..2 {
            let number = 1 + u64::from(group % 3);
            let placed = hosts.of(&pin(group, id, 1).key);
            plant(hosts, &placed, pin(group, id, number));
            if group % 5 == 0 {
                // Acknowledged by a majority only; the others have the version before.
                plant(hosts, &placed[..4], pin(group, id, number + 1));
            }
            wanted.insert(pin(group, id, 1).key, if group % 5 == 0 { number + 1 } else { number });
        }
    }
    wanted
}

async fn scan_all(records: &Records) -> (BTreeMap<RecordKey, u64>, Extent) {
    let mut scan = records.scan(Kind::Pin);
    let mut seen = BTreeMap::new();
    assert_eq!(scan.extent(), Extent::Partial, "before the end");
    while let Some(scanned) = scan.next().await {
        assert!(scanned.holders >= 1 && scanned.wanted == 7);
        let again = seen.insert(scanned.record.key.clone(), scanned.record.order.number());
        assert!(again.is_none(), "{:?} came twice", scanned.record);
    }
    (seen, scan.extent())
}

#[tokio::test(start_paused = true)]
async fn a_scan_finds_everything_with_e_hosts_failing() {
    let hosts = SimHosts::new(3, 9, 3);
    // More than a page on each host.
    let wanted = planted(&hosts, 800);
    plant(&hosts, &hosts.of(&site(1)), version(&site(1), 1));
    assert_eq!(scan_all(&node(&hosts)).await, (wanted, Extent::Complete));

    let hosts = SimHosts::new(4, 9, 3);
    let wanted = planted(&hosts, 40);
    let faults = [Mode::Backwards, Mode::Endless].into_iter().chain(Mode::FAULTS);
    for mode in faults {
        for first in [0, 3, 6] {
            hosts.set_all(Mode::Up);
            (first..first + 3).for_each(|host| hosts.set(host, mode));
            let (seen, extent) = scan_all(&node(&hosts)).await;
            assert_eq!(seen, wanted, "{mode:?} from {first}");
            assert_eq!(extent, Extent::Complete, "{mode:?} from {first}");
        }
    }
    for mode in [Mode::Down, Mode::Hang, Mode::Corrupt, Mode::Empty, Mode::Backwards, Mode::Endless] {
        hosts.set_all(Mode::Up);
        (0..4).for_each(|host| hosts.set(host, mode));
        let (_, extent) = scan_all(&node(&hosts)).await;
        assert_eq!(extent, Extent::Partial, "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_scan_bears_changes_under_way() {
    let hosts = SimHosts::new(4, 9, 3);
    let wanted = planted(&hosts, 60);
    let (records, writer) = (node(&hosts), node(&hosts));
    let changes = async {
        for key in wanted.keys() {
            let next = writer.next_version(key).await.unwrap();
            writer.put(Record::new(key.clone(), next, "changed")).await.unwrap();
        }
        writer.settle().await;
    };
    let ((seen, extent), ()) = tokio::join!(scan_all(&records), changes);
    assert_eq!(extent, Extent::Complete);
    assert_eq!(seen.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, number) in seen {
        assert!((wanted[&key]..=wanted[&key] + 1).contains(&number));
    }
}

// ---------------------------------------------------------------------------------------------- calls that fail once

/// A call that fails, but not for good, is made again a few times before its host is given up; all seven may do it at once.
#[tokio::test(start_paused = true)]
async fn hosts_are_asked_again_what_failed_once() {
    for call in Call::ALL {
        for (times, good) in [(0, true), (1, true), (6, true), (7, false)] {
            let hosts = SimHosts::new(1, 9, 3);
            let key = site(1);
            let of = hosts.of(&key);
            // Three lack it, so that a read has to write, too.
            plant(&hosts, &of[..3], version(&key, 2));
            plant(&hosts, &of[3..], version(&key, 1));
            of.iter().for_each(|host| hosts.fail_next(*host, call, times));
            let read = node(&hosts).newest(&key).await;
            match good {
                true => assert_eq!(read.unwrap().unwrap().order.number(), 2, "{call:?} {times}"),
                false => assert!(matches!(read, Err(RecordError::Unavailable { have: ..=3, need: 4, .. })), "{call:?}: {read:?}"),
            }
            let writer = node(&hosts);
            writer.newest(&key).await.unwrap();
            of.iter().for_each(|host| hosts.fail_next(*host, Call::Put, times));
            match good {
                true => writer.put(version(&key, 3)).await.unwrap(),
                false => assert_unavailable(writer.put(version(&key, 3)).await, (3, 4)),
            }
        }
    }
}

/// Listings that fail whenever a version goes meanwhile: readers of an entry with busy writers on two nodes are still told.
#[tokio::test(start_paused = true)]
async fn a_busy_entry_is_read_where_its_listing_breaks() {
    for seed in 0..20 {
        let hosts = SimHosts::new(seed, 9, 3);
        hosts.brittle.store(true, Relaxed);
        let nodes = [node(&hosts), node(&hosts)];
        let (next, least) = (AtomicU64::new(1), AtomicU64::new(0));
        let write = async |node: &Records| {
            for _ in 0..15 {
                let revision = next.fetch_add(1, Relaxed);
                match node.put(entry(revision)).await {
                    Ok(()) => drop(least.fetch_max(revision, Relaxed)),
                    Err(RecordError::NotNewer { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
        };
        let read = async |node: &Records| {
            for _ in 0..20 {
                let before = least.load(Relaxed);
                let newest = node.newest(&entry(0).key).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                let revision = newest.map_or(0, |newest| newest.order.number());
                assert!(revision >= before, "seed {seed}: {revision} after {before}");
                least.fetch_max(revision, Relaxed);
            }
        };
        let [one, two] = &nodes;
        tokio::join!(write(one), write(one), write(two), write(two), read(one), read(two));
    }
}

// ---------------------------------------------------------------------------------------------- near hosts

/// A read of hosts that answer at once takes a majority's word only if there is nothing to mend.
#[tokio::test(start_paused = true)]
async fn near_hosts_are_read_at_once_and_mended() {
    let hosts = SimHosts::new(1, 9, 3);
    hosts.near.store(true, Relaxed);
    let records = node(&hosts);
    let key = site(1);
    let of = hosts.of(&key);
    let at_once =
        |records: &Records| records.newest(&key).now_or_never().map(|read| read.unwrap().map(|record| record.order.number()));
    assert_eq!(at_once(&records), Some(None));
    plant(&hosts, &of, version(&key, 1));
    for _ in 0..7 {
        assert_eq!(at_once(&node(&hosts)), Some(Some(1)));
    }
    // Four have a newer one: whichever four are asked, it is seen, and the others get it.
    plant(&hosts, &of[3..], version(&key, 2));
    for _ in 0..7 {
        assert_eq!(newest_number(&records, &key).await, Some(2));
        records.settle().await;
    }
    assert_eq!(hosts.holders(&key, &Order::version(2)), 7);
    assert_eq!(hosts.holders(&key, &Order::version(1)), 0, "swept");
    assert_eq!(at_once(&records), Some(Some(2)));
    // What this node knows stands above what hosts say, if they went back.
    let later = version(&key, 3);
    records.put(later.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((hosts.holders(&key, &Order::version(3)), hosts.holders(&key, &Order::version(2))), (7, 0));
    of.iter().for_each(|host| hosts.plant(*host, &key.path(&later.order), &bytes::Bytes::from_static(b"rubbish")));
    assert!(at_once(&records).is_none());
    // Three that do not answer leave four; a fourth leaves too few.
    let key = site(2);
    let of = hosts.of(&key);
    plant(&hosts, &of, version(&key, 5));
    of[..3].iter().for_each(|host| hosts.set(*host, Mode::Hang));
    assert_eq!(records.newest(&key).now_or_never().map(|read| read.unwrap().map(|record| record.order.number())), Some(Some(5)));
    hosts.set(of[3], Mode::Corrupt);
    assert!(records.newest(&key).now_or_never().is_none());
}

/// A put that is begun without waiting counts like any other: at its quorum, refused below it, swept behind it.
#[tokio::test(start_paused = true)]
async fn near_hosts_take_puts_without_waiting() {
    let hosts = SimHosts::new(1, 9, 3);
    hosts.near.store(true, Relaxed);
    let records = node(&hosts);
    let key = site(1);
    let of = hosts.of(&key);
    records.put(version(&key, 1)).await.unwrap();
    for (mode, good) in [(Mode::Hang, 4), (Mode::Stale, 4), (Mode::Down, 4), (Mode::Up, 7)] {
        of[..3].iter().for_each(|host| hosts.set(*host, mode));
        let next = records.next_version(&key).await.unwrap();
        records.put(Record::new(key.clone(), next, "next")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(hosts.holders(&key, &next), good, "{mode:?}");
        assert!(hosts.holders(&key, &Order::version(next.number() - 1)) <= 3, "{mode:?}: swept where the next one is");
    }
    for mode in [Mode::Stale, Mode::Hang, Mode::Down] {
        of[..4].iter().for_each(|host| hosts.set(*host, mode));
        let failed = records.put(version(&key, 99)).await;
        assert_unavailable(failed, (3, 4));
    }
}

// ---------------------------------------------------------------------------------------------- random schedules

/// Seeds tried in one run; about a second. A failure prints its seed.
const SEEDS: u64 = 200;
const ROUNDS: usize = 8;

/// What must be seen by every call that starts from now on.
#[derive(Default)]
struct Known {
    /// By key: the greatest version that was acknowledged or read.
    least: BTreeMap<RecordKey, u64>,
    /// Bodies ever put.
    bodies: BTreeSet<(RecordKey, u64, bytes::Bytes)>,
}

struct Schedule {
    seed: u64,
    hosts: Arc<SimHosts>,
    nodes: Vec<Records>,
    known: Mutex<Known>,
    /// Hosts change while calls run: then more than e may fail during one call, and calls may fail, but never lie.
    restless: bool,
}

impl Schedule {
    fn least(&self, key: &RecordKey) -> u64 {
        self.known.lock().unwrap().least.get(key).copied().unwrap_or(0)
    }

    fn learn(&self, key: &RecordKey, number: u64) {
        let mut known = self.known.lock().unwrap();
        let least = known.least.entry(key.clone()).or_insert(0);
        *least = number.max(*least);
    }

    fn excuse(&self, error: RecordError) {
        match error {
            RecordError::NotNewer { newest } => self.check_written(&newest),
            RecordError::Unavailable { .. } if self.restless => {}
            other => panic!("seed {}: {other}", self.seed),
        }
    }

    fn check_written(&self, newest: &Record) {
        let known = self.known.lock().unwrap();
        let body = (newest.key.clone(), newest.order.number(), newest.body.clone());
        assert!(known.bodies.contains(&body), "seed {}: {newest:?} was never written", self.seed);
    }

    async fn read(&self, node: &Records, key: &RecordKey) {
        let least = self.least(key);
        match node.newest(key).await {
            Ok(newest) => {
                let number = newest.as_ref().map_or(0, |newest| newest.order.number());
                assert!(number >= least, "seed {}: read {number} after {least} was known", self.seed);
                newest.iter().for_each(|newest| self.check_written(newest));
                self.learn(key, number);
            }
            Err(error) => self.excuse(error),
        }
    }

    async fn write(&self, node: &Records, key: &RecordKey, salt: u64) {
        let order = match node.next_version(key).await {
            Ok(order) => order,
            Err(error) => return self.excuse(error),
        };
        let record = Record::new(key.clone(), order, format!("{salt}"));
        let body = (key.clone(), order.number(), record.body.clone());
        self.known.lock().unwrap().bodies.insert(body);
        match node.put(record).await {
            Ok(()) => self.learn(key, order.number()),
            Err(error) => self.excuse(error),
        }
    }

    /// Sets at most e hosts to fail.
    fn shuffle_faults(&self, rng: &mut StdRng) {
        self.hosts.set_all(Mode::Up);
        let mut hosts = self.hosts.all_hosts();
        hosts.shuffle(rng);
        hosts.truncate(rng.random_range(0..=self.hosts.quorum().e));
        for host in hosts {
            self.hosts.set(host, Mode::FAULTS[rng.random_range(0..Mode::FAULTS.len())]);
        }
    }

    async fn run(&self, rng: &mut StdRng) {
        let keys = [site(1), site(2)];
        for _ in 0..ROUNDS {
            self.shuffle_faults(rng);
            let calls = (0..rng.random_range(1..5)).map(|_| {
                let node = &self.nodes[rng.random_range(0..self.nodes.len())];
                let key = &keys[rng.random_range(0..keys.len())];
                let (write, salt) = (rng.random_bool(0.5), rng.random::<u64>());
                let wait = Duration::from_millis(rng.random_range(0..60));
                async move {
                    tokio::time::sleep(wait).await;
                    match write {
                        true => self.write(node, key, salt).await,
                        false => self.read(node, key).await,
                    }
                }
            });
            let calls: Vec<_> = calls.collect();
            let trouble = async {
                for _ in 0..if self.restless { 5 } else { 0 } {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(0..30))).await;
                    self.shuffle_faults(rng);
                }
            };
            tokio::join!(join_all(calls), trouble);
            if self.hosts.random(0..3) == 0 {
                join_all(self.nodes.iter().map(Records::settle)).await;
            }
        }
        // In the end all hosts agree, after one read with all of them up.
        self.hosts.set_all(Mode::Up);
        for node in &self.nodes {
            node.settle().await;
        }
        // What was begun and waits for nobody.
        tokio::time::sleep(Duration::from_millis(50)).await;
        for key in &keys {
            // A read of near hosts asks a majority, and others each time.
            for _ in self.hosts.of(key) {
                self.read(&self.nodes[0], key).await;
                self.nodes[0].settle().await;
            }
            let least = self.least(key);
            let holders = self.hosts.holders(key, &Order::version(least));
            assert!(least == 0 || holders == self.hosts.of(key).len(), "seed {}: {holders} have {least}", self.seed);
        }
    }
}

#[test]
fn random_schedules_never_go_back() {
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let e = rng.random_range(1..=3);
        let hosts = SimHosts::new(seed, 2 * e + 1 + rng.random_range(0..3), e);
        hosts.near.store(seed % 4 >= 2, Relaxed);
        let nodes = (0..2).map(|_| node(&hosts)).collect();
        let schedule = Schedule { seed, hosts, nodes, known: Mutex::default(), restless: seed % 2 == 1 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(schedule.run(&mut rng));
    }
}
