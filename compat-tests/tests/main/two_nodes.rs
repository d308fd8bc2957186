//! Two gateways of one portal on the same buckets: entries never go back, and what one stores the other serves at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use compat_tests::buckets::{Buckets, Mood};
use compat_tests::content::{Content, Item};
use compat_tests::damage::copy_folder;
use compat_tests::registry::{Entry, HOSTS_EACH, Owner, put, revision};
use compat_tests::{Gateway, Options, Tier, seeded, seeded_bytes, tier, until};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Other nodes' news are looked for every 30 seconds when nobody asks.
const NEWS_MAX: Duration = Duration::from_secs(60);

/// Nine buckets and the data directories of two nodes.
struct Stage {
    buckets: Buckets,
    options: Options,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn set() -> (Stage, [Gateway; 2]) {
        let buckets = Buckets::start().await;
        let options = Options::config(buckets.hosts());
        let stage = Stage { buckets, options, folder: tempfile::tempdir().expect("a folder") };
        let first = stage.start(0);
        Buckets::join_portal(&first.data, &stage.folder.path().join("1"));
        let second = stage.start(1);
        for node in [&first, &second] {
            node.catalog_complete().await;
        }
        (stage, [first, second])
    }

    fn start(&self, node: usize) -> Gateway {
        Gateway::start_with(&self.folder.path().join(node.to_string()), &self.options)
    }
}

/// What everybody knows of an entry.
struct Race {
    owner: Owner,
    next: AtomicU64,
    /// The greatest revision that was acknowledged or read: who reads later sees no less.
    least: AtomicU64,
    acknowledged: AtomicU64,
    read: AtomicU64,
}

impl Race {
    /// Writes until told to stop. A node that is killed ends it.
    async fn write(&self, gateway: &Gateway, stop: &AtomicBool) {
        while !stop.load(SeqCst) {
            let entry = self.owner.sign(1, b"race", self.next.fetch_add(1, SeqCst));
            match entry.try_post(gateway).await {
                Ok(answer) if answer.status == 204 => {
                    self.least.fetch_max(entry.revision, SeqCst);
                    self.acknowledged.fetch_add(1, SeqCst);
                }
                // Another writer was faster.
                Ok(answer) => assert_eq!(answer.status, 400, "{}", answer.text()),
                Err(_) => return,
            }
        }
    }

    async fn read(&self, gateway: &Gateway, stop: &AtomicBool) {
        while !stop.load(SeqCst) {
            let least = self.least.load(SeqCst);
            let Ok(answer) = compat_tests::wire::try_ask(&gateway.public, "GET", &self.owner.sign(1, b"", 0).target(), &[]).await
            else {
                return;
            };
            let revision = match answer.status {
                404 => 0,
                // Not even while the buckets fail to list an entry whose versions come and go.
                504 => panic!("not read: {}\n{}", answer.text(), gateway.log()),
                _ => answer.json()["revision"].as_u64().unwrap_or_else(|| panic!("{}", answer.text())),
            };
            assert!(revision >= least, "{revision} was read after {least}");
            self.least.fetch_max(revision, SeqCst);
            self.read.fetch_add(1, SeqCst);
        }
    }

    async fn check(&self, gateway: &Gateway, what: &str) {
        let least = self.least.load(SeqCst);
        let found = revision(gateway, &self.owner.sign(1, b"", 0)).await;
        assert!(found >= least, "{what}: {found} after {least}");
        self.least.fetch_max(found, SeqCst);
    }
}

/// Writers and readers of one entry through both nodes, one of which is killed in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_never_goes_back_over_two_nodes() {
    let mut random = seeded("an_entry_never_goes_back_over_two_nodes");
    let (stage, mut nodes) = Stage::set().await;
    let race = Race {
        owner: Owner::new(random.random()),
        next: AtomicU64::new(1),
        least: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        read: AtomicU64::new(0),
    };
    let rounds = match tier() {
        Tier::Fast => 1,
        Tier::Ci => 2,
        Tier::Slow => 20,
    };
    for round in 0..rounds {
        let victim = round % 2;
        let stop = AtomicBool::new(false);
        let (before, after) = (random.random_range(8..20), random.random_range(8..20));
        let pid = nodes[victim].pid();
        let kill = async {
            let more = async |count: u64| {
                let enough = race.acknowledged.load(SeqCst) + count;
                until("writes are acknowledged", Duration::from_secs(120), async || {
                    let have = race.acknowledged.load(SeqCst);
                    if have >= enough { Ok(()) } else { Err(format!("{have} of {enough}")) }
                })
                .await;
            };
            more(before).await;
            compat_tests::signal(pid, "KILL");
            more(after).await;
            stop.store(true, SeqCst);
        };
        let [one, two] = &nodes;
        tokio::join!(
            kill,
            race.write(one, &stop),
            race.write(one, &stop),
            race.write(two, &stop),
            race.write(two, &stop),
            race.read(one, &stop),
            race.read(two, &stop),
        );
        race.check(&nodes[1 - victim], &format!("round {round}, the node that lives on")).await;
        nodes[victim] = stage.start(victim);
        race.check(&nodes[victim], &format!("round {round}, the node that was killed")).await;
        race.check(&nodes[1 - victim], &format!("round {round}, after that one")).await;
    }
    println!("{} writes were acknowledged, {} reads were answered", race.acknowledged.load(SeqCst), race.read.load(SeqCst));
}

/// Of the seven buckets of an entry three have an old version and three are gone: both nodes believe the one that is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_buckets_stale_and_three_gone() {
    let mut random = seeded("three_buckets_stale_and_three_gone");
    let (stage, nodes) = Stage::set().await;
    let owner = Owner::new(random.random());
    let (old, new) = (owner.sign(1, b"old", 1), owner.sign(1, b"new", 2));
    let everywhere = async |node: &Gateway, entry: &Entry| {
        until("the entry is on all its hosts", Duration::from_secs(60), async || {
            let health = node.get(&entry.target().replace("/registry", "/health/entry")).await.json();
            let there = health["numbestentries"] == HOSTS_EACH && health["revisionnumber"] == entry.revision;
            if there { Ok(()) } else { Err(health.to_string()) }
        })
        .await;
    };
    put(&nodes[0], &old).await;
    everywhere(&nodes[0], &old).await;
    let mut hosts = stage.buckets.with_entry(&old.id());
    assert_eq!(hosts.len(), HOSTS_EACH, "{hosts:?}");
    hosts.shuffle(&mut random);
    let folder_of = |host: usize| stage.buckets.servers[host].entry_folder(&old.id()).expect("it has the entry");
    let kept = |host: usize| stage.folder.path().join(format!("kept-{host}"));
    hosts[..3].iter().for_each(|host| copy_folder(&folder_of(*host), &kept(*host)));
    put(&nodes[1], &new).await;
    everywhere(&nodes[1], &new).await;
    // Nobody remembers it: what is told comes from the hosts.
    nodes.into_iter().for_each(Gateway::kill);
    println!("stale {:?}, gone {:?}", &hosts[..3], &hosts[3..6]);
    for host in &hosts[..3] {
        let folder = folder_of(*host);
        std::fs::remove_dir_all(&folder).expect("can be removed");
        copy_folder(&kept(*host), &folder);
    }
    stage.buckets.set(&hosts[3..6], Mood::Gone);
    for node in 0..2 {
        let gateway = stage.start(node);
        assert_eq!(revision(&gateway, &new).await, 2, "{}", gateway.log());
    }
}

/// What one node stores, the other one, which runs all the time, serves as soon as it is asked; what is nowhere is a 404.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_stores_the_other_serves() {
    let mut random = seeded("what_one_node_stores_the_other_serves");
    let (_stage, [here, there]) = Stage::set().await;
    let rounds = if tier() == Tier::Slow { 10 } else { 2 };
    for round in 0..rounds {
        let (from, to) = if round % 2 == 0 { (&here, &there) } else { (&there, &here) };
        assert_absent(to, &mut random).await;
        let mut bytes = |length: usize| seeded_bytes(random.random(), length);
        let contents = [
            Content::file("tiny.txt", bytes(40)),
            Content::file("slabs.bin", bytes(5_000_000)),
            Content::folder(
                "site",
                [("a/b.html".to_owned(), Item::File(bytes(3_000))), ("c.bin".to_owned(), Item::File(bytes(700_000)))],
            ),
        ];
        for content in &contents {
            let added = from.upload(content).await;
            content.assert_read_back(to, &added).await;
        }
        // Addresses that no pin is named after: a block within a folder, and a skylink.
        let inner = Content::file("inner.bin", bytes(900_000));
        let (_, inner_bytes) = inner.files().next().expect("one file");
        let outer = Content::folder("outer", [("inner.bin".to_owned(), Item::File(inner_bytes.to_vec()))]);
        let outer_added = from.upload(&outer).await;
        let answer = to.get(&format!("/ipfs/{}", inner.cid())).await;
        assert!(answer.status == 200 && answer.body == inner_bytes, "{} {}\n{}", answer.status, answer.text(), to.log());
        let linked = Content::file("linked.bin", bytes(900_000));
        let (_, linked_bytes) = linked.files().next().expect("one file");
        let added = from.upload(&linked).await;
        let answer = to.get(&format!("/{}", added.skylink())).await;
        assert!(answer.status == 200 && answer.body == linked_bytes, "{} {}\n{}", answer.status, answer.text(), to.log());
        // And what one node unpins, the other one forgets: at the latest before it tells anybody an absence, because it then
        // has whatever was acknowledged before the question.
        let removed = from.command(&["pin", "rm", &added.cid]);
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        assert_absent(to, &mut random).await;
        let answer = to.get(&format!("/ipfs/{}", added.cid)).await;
        assert_eq!(answer.status, 404, "{}\n{}", answer.text(), to.log());
        // Nobody has to ask for that, but then it takes a while.
        if tier() == Tier::Slow {
            let removed = from.command(&["pin", "rm", &outer_added.cid]);
            assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
            until("the other node has heard of it", NEWS_MAX, async || {
                let answer = to.get(&format!("/ipfs/{}", outer_added.cid)).await;
                if answer.status == 404 { Ok(()) } else { Err(answer.status.to_string()) }
            })
            .await;
        }
    }
}

/// Addresses of what nobody has are told to be absent, by CID and by skylink.
async fn assert_absent(gateway: &Gateway, random: &mut ChaCha8Rng) {
    let nothing = Content::file("nothing.bin", seeded_bytes(random.random(), 50));
    let begun = Instant::now();
    let skylink = format!("AA{}", "B".repeat(44));
    for target in [format!("/ipfs/{}", nothing.cid()), format!("/{skylink}")] {
        let answer = gateway.get(&target).await;
        assert_eq!(answer.status, 404, "{target}: {}\n{}", answer.text(), gateway.log());
    }
    println!("two absences were told in {:?}", begun.elapsed());
}
