//! Skynet's registry through its faults: stale and lost hosts, kill -9 under concurrent writers, subscribers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use compat_tests::damage::{Away, copy_folder};
use compat_tests::registry::{Entry, HOSTS_EACH, Owner, Subscriber, put, revision};
use compat_tests::{Gateway, Tier, host_folders, seeded, tier, wire};
use futures::StreamExt;
use rand::RngExt;
use rand::seq::SliceRandom;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

#[tokio::test(flavor = "multi_thread")]
async fn written_read_and_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let owner = Owner::new(1);
    let entry = owner.sign(1, b"hello", 3);
    let none = entry.read(&gateway).await;
    assert_eq!((none.status, none.json()["message"].as_str()), (404, Some("registry entry not found")));
    put(&gateway, &entry).await;
    assert!(entry.is_told_by(&entry.read(&gateway).await.json()));
    put(&gateway, &owner.sign(1, b"the last", u64::MAX)).await;

    let less_work = {
        let mut pair = [owner.sign(2, b"a", 1), owner.sign(2, b"b", 1)];
        put(&gateway, &pair[0]).await;
        // Whichever has more work stays.
        if pair[1].post(&gateway).await.status == 204 {
            pair.reverse();
        }
        pair[1].clone()
    };
    let mut stolen = owner.sign(2, b"c", 2);
    stolen.signature[7] ^= 1;
    let long = owner.sign(2, &[1; 114], 2);
    for (entry, message) in [
        (&entry, "Unable to update the registry: provided revision number is invalid"),
        (&owner.sign(1, b"the last", u64::MAX), "Unable to update the registry: provided revision number is already registered"),
        (&less_work, "Unable to update the registry: entry doesn't have enough pow to replace existing entry"),
        (&stolen, "Unable to update the registry: the signature does not verify"),
        (&long, "Unable to update the registry: an entry has at most 113 bytes of data, this one 114"),
    ] {
        let answer = entry.post(&gateway).await;
        assert_eq!((answer.status, answer.json()["message"].as_str()), (400, Some(message)));
    }
    let health = gateway.get(&entry.target().replace("/registry", "/health/entry")).await.json();
    assert_eq!(health["revisionnumber"], u64::MAX);
    let counts = ["numentries", "numbestentries"].map(|field| health[field].as_u64().expect("a number") as usize);
    assert!(counts.into_iter().all(|count| (HOSTS_EACH / 2 + 1..=HOSTS_EACH).contains(&count)), "{health}");
    assert!(gateway.stop().success());
    // Another process has only the hosts.
    let gateway = Gateway::start(folder.path());
    assert_eq!(revision(&gateway, &entry).await, u64::MAX);
}

/// Is this text anywhere in the files of a folder?
fn holds(folder: &Path, text: &[u8]) -> bool {
    let entries = std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable"));
    entries.into_iter().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return path.file_name().is_some_and(|name| *name == *String::from_utf8_lossy(text)) || holds(&path, text);
        }
        std::fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text))
    })
}

/// Three of the seven hosts have an old version and three are gone: the one that is left is believed.
#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_stale_and_three_gone() {
    let mut random = seeded("three_hosts_stale_and_three_gone");
    let folder = tempfile::tempdir().expect("a folder");
    let (data, old) = (folder.path().join("data"), folder.path().join("old"));
    let owner = Owner::new(random.random());
    let entries: Vec<Entry> = (0..3).map(|number| owner.sign(number, b"old", 1)).collect();
    let gateway = Gateway::start(&data);
    for entry in &entries {
        put(&gateway, entry).await;
    }
    let ids: Vec<String> = entries.iter().map(Entry::id).collect();
    assert!(gateway.stop().success());
    std::fs::create_dir(&old).expect("a folder");
    for (number, host) in host_folders(&data).iter().enumerate() {
        copy_folder(host, &old.join(number.to_string()));
    }
    let gateway = Gateway::start(&data);
    for number in 0..entries.len() as u64 {
        put(&gateway, &owner.sign(number, b"new", 2)).await;
    }
    assert!(gateway.stop().success());
    for (entry, id) in entries.iter().zip(&ids) {
        let folders = host_folders(&data);
        let mut hosts: Vec<usize> = (0..folders.len()).filter(|host| holds(&folders[*host], id.as_bytes())).collect();
        assert_eq!(hosts.len(), HOSTS_EACH, "{hosts:?}");
        hosts.shuffle(&mut random);
        println!("stale {:?}, gone {:?}", &hosts[..3], &hosts[3..6]);
        let kept: Vec<PathBuf> = hosts[..3].iter().map(|host| folder.path().join(format!("kept-{host}"))).collect();
        for (host, kept) in hosts[..3].iter().zip(&kept) {
            std::fs::rename(&folders[*host], kept).expect("can be moved");
            copy_folder(&old.join(host.to_string()), &folders[*host]);
        }
        let gone: Vec<PathBuf> = hosts[3..6].iter().map(|host| folders[*host].clone()).collect();
        let away = Away::take(&gone);
        let gateway = Gateway::start(&data);
        assert_eq!(revision(&gateway, entry).await, 2, "{}", gateway.log());
        // What was read is at its quorum again.
        let health = gateway.get(&entry.target().replace("/registry", "/health/entry")).await.json();
        assert_eq!((health["revisionnumber"].as_u64(), health["numbestentries"].as_u64()), (Some(2), Some(4)), "{health}");
        gateway.kill();
        away.back();
        for (host, kept) in hosts[..3].iter().zip(&kept) {
            std::fs::remove_dir_all(&folders[*host]).expect("can be removed");
            std::fs::rename(kept, &folders[*host]).expect("can be moved");
        }
    }
}

/// Writers race for one entry, the process is killed under them, and nobody ever sees it go back.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_never_goes_back() {
    let mut random = seeded("an_entry_never_goes_back");
    let folder = tempfile::tempdir().expect("a folder");
    let owner = Owner::new(random.random());
    let (next, acknowledged, read) = (AtomicU64::new(1), AtomicU64::new(0), AtomicU64::new(0));
    let rounds = if tier() == Tier::Slow { 12 } else { 3 };
    for round in 0..rounds {
        let gateway = Gateway::start(folder.path());
        let killed_after = acknowledged.load(SeqCst) + random.random_range(20..60);
        let writer = async || {
            while acknowledged.load(SeqCst) < killed_after {
                let entry = owner.sign(1, b"race", next.fetch_add(1, SeqCst));
                match entry.try_post(&gateway).await {
                    Ok(answer) if answer.status == 204 => drop(acknowledged.fetch_max(entry.revision, SeqCst)),
                    // Another writer was faster.
                    Ok(answer) => assert_eq!(answer.status, 400, "{}", answer.text()),
                    Err(error) => panic!("before the kill: {error}"),
                }
            }
        };
        let reader = async || {
            while acknowledged.load(SeqCst) < killed_after {
                let least = acknowledged.load(SeqCst).max(read.load(SeqCst));
                let answer = owner.sign(1, b"", 0).read(&gateway).await;
                let revision = if answer.status == 404 { 0 } else { answer.json()["revision"].as_u64().expect("a revision") };
                assert!(revision >= least, "round {round}: read {revision} after {least}");
                read.fetch_max(revision, SeqCst);
            }
        };
        tokio::join!(writer(), writer(), writer(), writer(), reader(), reader());
        // Some writes are under way when it dies; whether they count is open, but what was told counts.
        let late: Vec<Entry> = (0..8).map(|_| owner.sign(1, b"late", next.fetch_add(1, SeqCst))).collect();
        let posts = futures::future::join_all(late.iter().map(|entry| async {
            if entry.try_post(&gateway).await.is_ok_and(|answer| answer.status == 204) {
                acknowledged.fetch_max(entry.revision, SeqCst);
            }
        }));
        let pid = gateway.pid();
        let kill = async {
            tokio::task::yield_now().await;
            compat_tests::signal(pid, "KILL");
        };
        tokio::join!(posts, kill);
        drop(gateway);
        let gateway = Gateway::start(folder.path());
        let found = revision(&gateway, &late[0]).await;
        let least = acknowledged.load(SeqCst).max(read.load(SeqCst));
        assert!(found >= least, "round {round}: {found} after {least}");
        read.fetch_max(found, SeqCst);
        next.fetch_max(found + 1, SeqCst);
        acknowledged.fetch_max(found, SeqCst);
        gateway.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_entries_on_one_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let owner = Owner::new(5);
    let count = if tier() == Tier::Fast { 100 } else { 1_000 };
    let entries: Vec<Entry> = (0..count).map(|number| owner.sign(number, b"first", 1)).collect();
    let post_all = async |entries: Vec<Entry>| {
        let posts = futures::stream::iter(entries).map(async |entry| put(&gateway, &entry).await);
        posts.buffer_unordered(16).collect::<Vec<()>>().await
    };
    post_all(entries.clone()).await;
    let mut subscriber = Subscriber::open(&gateway, "").await;
    for entry in &entries {
        subscriber.subscribe(entry).await;
    }
    for revision in [1, 2] {
        if revision == 2 {
            post_all((0..count).map(|number| owner.sign(number, b"second", 2)).collect()).await;
        }
        let mut told = std::collections::BTreeSet::new();
        while told.len() < entries.len() {
            let value = subscriber.told().await;
            assert_eq!((value["error"].as_str(), value["revision"].as_u64()), (Some(""), Some(revision)), "{value}");
            assert!(told.insert(value["datakey"].as_str().expect("a text").to_owned()), "told twice: {value}");
        }
    }
    subscriber.unsubscribe(&entries[0]).await;
    assert!(subscriber.heard().await.is_empty());
    put(&gateway, &owner.sign(0, b"third", 3)).await;
    put(&gateway, &owner.sign(1, b"third", 3)).await;
    assert_eq!(subscriber.told().await["datakey"], hex::encode(entries[1].datakey));

    let mut other = Subscriber::open(&gateway, "?bandwidthlimit=10000000&notificationdelay=1").await;
    other.subscribe(&entries[1]).await;
    assert_eq!(other.told().await["revision"], 3);
    let own = format!("Origin: {}", gateway.public);
    for (origin, status) in [("Origin: https://evil.example", 403), (own.as_str(), 101)] {
        let answer = handshake(&gateway, origin).await;
        assert_eq!(answer, status, "{origin}");
    }
    // Open sockets are told to go, and do not hold up the end.
    compat_tests::signal(gateway.pid(), "TERM");
    for socket in [&mut subscriber.0, &mut other.0] {
        match socket.next().await {
            Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Away),
            other => panic!("{other:?}"),
        }
    }
    assert!(gateway.ended().success());
}

async fn handshake(gateway: &Gateway, origin: &str) -> u16 {
    let host = gateway.public.trim_start_matches("http://");
    let request = format!(
        "GET /skynet/registry/subscription HTTP/1.1\r\nHost: {host}\r\n{origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut stream = wire::connect(&gateway.public).await.expect("connects");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.expect("sent");
    let mut reader = tokio::io::BufReader::new(stream);
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut line).await.expect("a line");
    line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status")
}
