//! Chains, lifetimes and caches, over simulated hosts and a DNS that is a table.

use std::sync::Arc;

use super::testing::{Draft, HandClock, Zone, key, name_of};
use super::*;
use crate::records::sim::{Mode, SimHosts};
use crate::records::{OwnerChecks, PortalKey, RecordsOptions};

const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
const LINK: &str = "XABvi7JtJbQSMAcDwnUnmp2FKDPjg8_tTTFP4BwMSxVdEg";

struct Stage {
    names: Names,
    zone: Arc<Zone>,
    clock: HandClock,
    hosts: Arc<SimHosts>,
}

impl Stage {
    fn new(fixed: &[(&str, &str)]) -> Stage {
        Stage::with(fixed, Zone::default(), true)
    }

    fn with(fixed: &[(&str, &str)], zone: Zone, online: bool) -> Stage {
        let hosts = SimHosts::new(1, 3, 1);
        let owners = OwnerChecks { ipns: owner_check, ..OwnerChecks::REFUSE };
        let records_options = RecordsOptions { owners, ..RecordsOptions::default() };
        let records = Records::new(hosts.clone(), PortalKey::from_seed(&[1; 32]), records_options);
        let zone = Arc::new(zone);
        let clock = HandClock::new();
        let fixed = fixed.iter().map(|(name, target)| ((*name).to_owned(), (*target).to_owned())).collect();
        let options = NamesOptions { fixed, ..NamesOptions::default() };
        let txt: Option<Arc<dyn TxtSource>> = if online { Some(zone.clone()) } else { None };
        let names = Names::with_clock(options, records, txt, Arc::default(), clock.function()).expect("good names");
        Stage { names, zone, clock, hosts }
    }

    /// Publishes a record of the key of this seed and answers with its name.
    async fn publish(&self, seed: u8, draft: &Draft) -> String {
        let key = key(seed);
        let name = name_of(&key).to_string();
        self.names.put_record(&name, draft.sign(&key).into()).await.expect("published");
        name
    }

    async fn told(&self, name: &str) -> Result<(String, Option<u64>), NameError> {
        let resolved = self.names.resolve(name).await?;
        Ok((resolved.pointee.to_string(), resolved.ttl.map(|ttl| ttl.as_secs())))
    }
}

#[tokio::test(start_paused = true)]
async fn chains() {
    let stage = Stage::new(&[
        ("fixed.example", &format!("/ipfs/{CID}/x")),
        ("Fixed-Sky.Example", &format!("/skynet-ns/{LINK}/a")),
        ("fixed-dns.example", "/ipns/site.example"),
        ("shadow.example", &format!("/ipfs/{CID}")),
        ("localhost", &format!("/ipfs/{CID}")),
    ]);
    let zone = &stage.zone;
    zone.set("site.example", &[&format!("dnslink=/ipfs/{CID}/a%20b/"), "v=spf1"], 300);
    zone.set("www.example", &["dnslink=/ipns/site.example/c"], 60);
    zone.set("sky.example", &[&format!("dnslink=/skynet-ns/{LINK}/d?x")], 60);
    zone.set("deep-sky.example", &["dnslink=/ipns/sky.example/e"], 600);
    zone.set("shadow.example", &["dnslink=/ipfs/bafkqaaa"], 60);
    zone.set("loop.example", &["dnslink=/ipns/pool.example"], 60);
    zone.set("pool.example", &["dnslink=/ipns/loop.example"], 60);
    zone.set("two.example", &[CID, "/ipfs/bafkqaaa"], 60);
    zone.set("mail.example", &["v=spf1 -all"], 60);
    let key = stage.publish(1, &Draft::of("/ipns/www.example")).await;
    let other = stage.publish(2, &Draft::of(&format!("/ipfs/{CID}/p%20q"))).await;
    let bare = stage.publish(3, &Draft::of("nonsense")).await;
    zone.set("keyed.example", &[&format!("dnslink=/ipns/{key}")], 60);
    for number in 0..HOPS_MAX {
        zone.set(&format!("h{number}.example"), &[&format!("dnslink=/ipns/h{}.example", number + 1)], 60);
    }
    zone.set(&format!("h{HOPS_MAX}.example"), &[CID], 60);

    let good = [
        ("fixed.example", format!("/ipfs/{CID}/x"), None),
        ("fixed-sky.example", format!("/skynet-ns/{LINK}/a"), None),
        ("FIXED-DNS.example.", format!("/ipfs/{CID}/a%20b/"), None),
        ("shadow.example", format!("/ipfs/{CID}"), None),
        ("localhost", format!("/ipfs/{CID}"), None),
        ("site.example", format!("/ipfs/{CID}/a%20b/"), Some(300)),
        ("www.example", format!("/ipfs/{CID}/a%20b/c"), Some(60)),
        ("sky.example", format!("/skynet-ns/{LINK}/d?x"), Some(60)),
        ("deep-sky.example", format!("/skynet-ns/{LINK}/d?x/e"), Some(60)),
        (key.as_str(), format!("/ipfs/{CID}/a%20b/c"), Some(60)),
        (other.as_str(), format!("/ipfs/{CID}/p%2520q"), Some(1800)),
        ("keyed.example", format!("/ipfs/{CID}/a%20b/c"), Some(60)),
        ("h1.example", format!("/ipfs/{CID}"), Some(60)),
    ];
    for (name, expect, ttl) in good {
        assert_eq!(stage.told(name).await, Ok((expect, ttl)), "{name}");
    }
    let unknown = name_of(&super::testing::key(9)).to_string();
    type Is = fn(&NameError) -> bool;
    let bad: [(&str, Is); 10] = [
        ("h0.example", |error| matches!(error, NameError::TooManyHops(name) if name == "h0.example")),
        ("loop.example", |error| matches!(error, NameError::TooManyHops(_))),
        ("two.example", |error| matches!(error, NameError::BadRecord { .. })),
        ("mail.example", |error| matches!(error, NameError::NoRecord(_))),
        ("absent.example", |error| matches!(error, NameError::NoRecord(_))),
        (&unknown, |error| matches!(error, NameError::NoRecord(_))),
        (&bare, |error| matches!(error, NameError::BadRecord { .. })),
        ("127.0.0.1", |error| matches!(error, NameError::BadName(_))),
        ("single", |error| matches!(error, NameError::BadName(_))),
        ("no name", |error| matches!(error, NameError::BadName(_))),
    ];
    for (name, expect) in bad {
        let error = stage.told(name).await.expect_err(name);
        assert!(expect(&error), "{name}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hosts_with_a_dnslink() {
    let stage = Stage::new(&[("fixed.example", &format!("/ipfs/{CID}")), ("intranet", &format!("/ipfs/{CID}"))]);
    stage.zone.set("site.example", &[CID], 60);
    stage.zone.set("two.example", &[CID, "/ipfs/bafkqaaa"], 60);
    stage.zone.fail("down.example", TxtError::Transient("SERVFAIL".to_owned()));
    let key = name_of(&key(1)).to_string();
    let rows = [
        ("fixed.example", Ok(true), 0),
        ("intranet", Ok(true), 0),
        ("localhost", Ok(false), 0),
        ("app.localhost", Ok(false), 0),
        ("127.0.0.1", Ok(false), 0),
        ("[::1]", Ok(false), 0),
        ("", Ok(false), 0),
        (key.as_str(), Ok(false), 0),
        ("site.example", Ok(true), 1),
        ("SITE.example.", Ok(true), 0),
        ("two.example", Ok(true), 1),
        ("absent.example", Ok(false), 1),
        ("absent.example", Ok(false), 0),
        ("down.example", Err(()), 1),
        ("down.example", Err(()), 0),
    ];
    for (host, expect, look_ups) in rows {
        let before = stage.zone.asked();
        let found = stage.names.has_dnslink(host).await;
        assert_eq!(found.clone().map_err(|_| ()), expect, "{host}: {found:?}");
        assert_eq!(stage.zone.asked() - before, look_ups, "{host}");
    }
    let offline = Stage::with(&[("fixed.example", "/ipfs/bafkqaaa")], Zone::default(), false);
    assert_eq!(offline.names.has_dnslink("site.example").await, Ok(false));
    assert_eq!(offline.names.has_dnslink("fixed.example").await, Ok(true));
    assert_eq!(offline.told("site.example").await, Err(NameError::NoRecord("site.example".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn lifetimes() {
    let stage = Stage::new(&[]);
    let zone = &stage.zone;
    zone.set("site.example", &[CID], 300);
    let to = |cid: &str, ttl: u64| Ok((format!("/ipfs/{cid}"), Some(ttl)));
    assert_eq!(stage.told("site.example").await, to(CID, 300));
    zone.set("site.example", &["bafkqaaa"], 0);
    stage.clock.pass(299);
    assert_eq!(stage.told("site.example").await, to(CID, 1), "what is left");
    assert_eq!(zone.asked(), 1);
    stage.clock.pass(1);
    assert_eq!(stage.told("site.example").await, to("bafkqaaa", 1), "no answer lives shorter");
    assert_eq!(stage.told("site.example").await, to("bafkqaaa", 1));
    assert_eq!(zone.asked(), 2);

    // The resolver fails: the last answer stands in, asked for again once a second, for an hour.
    zone.fail("site.example", TxtError::Transient("SERVFAIL".to_owned()));
    stage.clock.pass(1);
    for _ in 0..3 {
        assert_eq!(stage.told("site.example").await, to("bafkqaaa", 0));
    }
    assert_eq!(zone.asked(), 3);
    stage.clock.pass(STALE_MAX.as_secs() - 1);
    assert_eq!(stage.told("site.example").await, to("bafkqaaa", 0));
    stage.clock.pass(1);
    let failed = stage.told("site.example").await;
    assert!(matches!(failed, Err(NameError::Transient { .. })), "{failed:?}");
    // It answers again, and what it says is believed: also that the name is gone.
    zone.set("site.example", &[CID], 60);
    stage.clock.pass(1);
    assert_eq!(stage.told("site.example").await, to(CID, 60));
    zone.fail("site.example", TxtError::NoRecord { negative_ttl: Duration::from_secs(30) });
    stage.clock.pass(60);
    assert_eq!(stage.told("site.example").await, Err(NameError::NoRecord("site.example".to_owned())));
    zone.set("site.example", &[CID], 60);
    stage.clock.pass(29);
    assert!(stage.told("site.example").await.is_err(), "an absence holds as long as DNS says");
    stage.clock.pass(1);
    assert_eq!(stage.told("site.example").await, to(CID, 60));
}

#[tokio::test(start_paused = true)]
async fn many_askers_are_one_look_up() {
    let zone = Zone { gate: Some(tokio::sync::Semaphore::new(0)), ..Zone::default() };
    let stage = Stage::with(&[], zone, true);
    stage.zone.set("site.example", &[CID], 60);
    let impatient = tokio::time::timeout(Duration::from_millis(1), stage.names.resolve("site.example")).await;
    assert!(impatient.is_err(), "gone, but the look-up goes on");
    let ask = || {
        let names = stage.names.clone();
        tokio::spawn(async move { names.resolve("site.example").await })
    };
    let askers: Vec<_> = (0..50).map(|_| ask()).collect();
    tokio::task::yield_now().await;
    stage.zone.gate.as_ref().expect("a gate").add_permits(100);
    for asker in askers {
        assert!(asker.await.expect("ends").is_ok());
    }
    assert_eq!(stage.zone.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn records_are_kept_and_refused() {
    let stage = Stage::new(&[]);
    let (one, other) = (key(1), key(2));
    let name = name_of(&one).to_string();
    let draft = |sequence: u64, value: &str| Draft { sequence, ..Draft::of(value) };
    let first = draft(1, "/ipfs/bafkqaaa").sign(&one);
    let put = async |name: &str, bytes: &[u8]| stage.names.put_record(name, Bytes::copy_from_slice(bytes)).await;
    assert!(matches!(stage.told(&name).await, Err(NameError::NoRecord(_))));
    let peer_id = one.public().to_peer_id().to_base58();
    assert_eq!(put(&peer_id, &first).await.as_deref(), Ok(name.as_str()));
    assert_eq!(stage.told(&name).await, Ok(("/ipfs/bafkqaaa".to_owned(), Some(1800))), "an absence dies with a put");
    assert_eq!(put(&name, &first).await.as_deref(), Ok(name.as_str()), "the same again is fine");
    let stored = stage.names.record(&peer_id).await.expect("a record");
    assert_eq!((&stored.bytes[..], &stored.name, stored.lifetime), (&first[..], &name, Duration::from_secs(1800)));

    let expired = Draft { validity: "2020-01-01T00:00:00Z".to_owned(), ..draft(5, "/ipfs/bafkqaaa") };
    for (bytes, expect) in [
        (draft(9, "/ipfs/bafkqaaa").sign(&other), "signature"),
        (expired.sign(&one), "until 2020"),
        (b"rubbish".to_vec(), "malformed"),
        (Vec::new(), "signatureV2"),
    ] {
        let error = put(&name, &bytes).await.expect_err(expect);
        assert!(matches!(&error, NameError::Refused { why, .. } if why.contains(expect)), "{error:?}");
    }
    assert_eq!(put(&name, &draft(0, "/ipfs/bafkqaaa").sign(&one)).await, Err(NameError::NotNewer(name.clone())));
    assert!(matches!(put("example.org", &first).await, Err(NameError::BadName(_))));
    put(&name, &draft(2, &format!("/ipfs/{CID}")).sign(&one)).await.expect("newer");
    assert_eq!(stage.told(&name).await, Ok((format!("/ipfs/{CID}"), Some(1800))));

    let soon = Draft { validity: "2026-11-18T12:06:50Z".to_owned(), ..draft(3, "/ipfs/bafkqaaa") };
    let end = ipns::verify(&name_of(&one), &soon.sign(&one)).expect("good").valid_until();
    let left = end.duration_since(stage.clock.now()).expect("before its end").as_secs();
    put(&name, &soon.sign(&one)).await.expect("newer");
    assert_eq!(stage.told(&name).await, Ok(("/ipfs/bafkqaaa".to_owned(), Some(left.min(1800)))));
    // The hosts are gone: the record stands in, to its end and no longer.
    stage.hosts.set_all(Mode::Down);
    stage.clock.pass(left - 1);
    assert_eq!(stage.told(&name).await, Ok(("/ipfs/bafkqaaa".to_owned(), Some(1))));
    stage.clock.pass(1);
    assert!(matches!(stage.told(&name).await, Err(NameError::Transient { .. })));
    stage.hosts.set_all(Mode::Up);
    stage.clock.pass(1);
    for error in [stage.told(&name).await.expect_err("over"), stage.names.record(&name).await.expect_err("over")] {
        assert!(matches!(&error, NameError::BadRecord { why, .. } if why.contains("until 2026-11-18")), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn listing() {
    let stage = Stage::new(&[("b.example", "/ipfs/bafkqaaa"), ("a.example", "/ipns/b.example/x")]);
    let name = stage.publish(1, &Draft::of("/ipfs/bafkqaaa")).await;
    let (rows, extent) = stage.names.list().await;
    let shown: Vec<(&str, &str)> = rows.iter().map(|row| (row.name.as_str(), row.value.as_str())).collect();
    assert_eq!(shown, [("a.example", "/ipns/b.example/x"), ("b.example", "/ipfs/bafkqaaa"), (&name, "/ipfs/bafkqaaa")]);
    assert_eq!(extent, Extent::Complete);
    assert!(matches!(&rows[2].origin, NameOrigin::Record { sequence: 1, expired: false, .. }));
}

#[test]
fn fixed_names_are_checked() {
    let check = |rows: &[(&str, &str)]| check_fixed(&rows.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect());
    assert_eq!(check(&[("a.example", "/ipfs/bafkqaaa")]), Ok(()));
    assert!(matches!(check(&[("a b", "/ipfs/bafkqaaa")]), Err(BadFixedName::Name(_))));
    assert!(matches!(check(&[("a.example", "bafkqaaa")]), Err(BadFixedName::Target { .. })));
    assert!(matches!(check(&[("a.example", "/ipfs/x")]), Err(BadFixedName::Target { .. })));
    let twice = [("a.example", "/ipfs/bafkqaaa"), ("A.example", "/ipfs/bafkqaaa")];
    assert!(matches!(check(&twice), Err(BadFixedName::Twice(_))));
}
