//! `skygate serve`: ready, one at a time, refused in words, and a stop that loses nothing.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use compat_tests::content::{Added, Content};
use compat_tests::{Gateway, Options, Starting, binary, seeded_bytes, signal, until, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::command_line::CONFIG_FAULTS;

/// The two commands' first one: no arguments are `serve` on the embedded default, with the sample site.
#[tokio::test]
async fn without_arguments_it_serves_the_sample_site() {
    let folder = tempfile::tempdir().expect("a folder");
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let options = Options {
        env: vec![
            env("XDG_DATA_HOME", folder.path().to_str().expect("UTF-8")),
            env("SKYGATE_LISTEN", "127.0.0.1:0"),
            env("SKYGATE_ADMIN", "127.0.0.1:0"),
        ],
        ..Options::default()
    };
    let data = folder.path().join("skygate");
    let gateway = Starting::of(Command::new(binary()), &data, &options).ready().unwrap_or_else(|log| panic!("{log}"));
    let log = gateway.said("skygate add").await;
    assert_eq!(log.matches("listening on http://").count(), 2, "one line a listener:\n{log}");
    assert!(log.contains("protect against nothing but bugs"), "nine folders on one disk: said on the first screen\n{log}");
    for number in 1..=9 {
        assert!(data.join(format!("hosts/{number}/skygate-host.json")).is_file());
    }
    let sample =
        log.split_whitespace().find(|word| word.contains("/ipfs/")).unwrap_or_else(|| panic!("what to open:\n{log}")).to_owned();
    let target = sample[sample.find("/ipfs/").expect("found")..].to_owned();
    let page = gateway.get(&target).await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    let fixture = compat_tests::repository().join("fixtures/sample-site");
    assert_eq!(page.body, fs::read(fixture.join("index.html")).expect("the fixture"), "it is the site of fixtures/");
    assert!(gateway.get("/").await.text().contains(&target), "and linked from the landing page");
    gateway.catalog_complete().await;
    let pins = gateway.admin_json("/api/v1/pins").await["pins"].as_array().expect("a list").len();
    assert_eq!(pins, 1);
    assert!(gateway.stop().success());
    // A second start adds nothing.
    let gateway = Starting::of(Command::new(binary()), &data, &options).ready().unwrap_or_else(|log| panic!("{log}"));
    gateway.catalog_complete().await;
    assert_eq!(gateway.admin_json("/api/v1/pins").await["pins"].as_array().expect("a list").len(), 1);
    assert_eq!(gateway.get(&target).await.status, 200);
    gateway.said(&target).await;
}

#[tokio::test]
async fn a_second_process_is_refused_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let log = match Gateway::try_start(folder.path(), &Options::default()) {
        Ok(_) => panic!("two processes on one data directory"),
        Err(log) => log,
    };
    assert!(log.contains("in use") && log.contains(folder.path().to_str().expect("UTF-8")) && log.contains("--data"), "{log}");
    assert!(log.contains(&gateway.pid().to_string()), "it names the process: {log}");
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(gateway.get("/ipfs/bafkqaaa").await.status, 200, "the first goes on");
    let import =
        Command::new(binary()).args(["key", "import", "--data"]).arg(folder.path()).stdin(std::process::Stdio::null()).output();
    assert!(!import.expect("it can be run").status.success());
    gateway.kill();
    assert!(Gateway::start(folder.path()).stop().success(), "a killed process holds no lock");
}

#[tokio::test]
async fn an_address_in_use_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = Command::new(binary());
    command.arg("serve").arg("--data").arg(folder.path()).args(["--listen", &address, "--admin", "127.0.0.1:0"]);
    let Err(log) = Starting::of(command, folder.path(), &Options::default()).ready() else { panic!("it listens on a taken port") };
    assert!(log.contains(&address) && log.contains("--listen"), "{log}");
}

#[test]
fn a_configuration_that_cannot_run_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (written, words) in CONFIG_FAULTS {
        let written = written.replace("c.toml", "test.toml");
        let words = words.replace("c.toml", "test.toml");
        let Err(log) = Gateway::try_start(&folder.path().join("data"), &Options::config(&written)) else {
            panic!("{written} was taken")
        };
        assert!(log.contains(&words), "{written}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        assert!(!folder.path().join("data/keys").exists(), "{written}: nothing was made");
    }
    let mut command = Command::new(binary());
    command.args(["serve", "--config", "/nowhere/c.toml", "--data"]).arg(folder.path());
    let Err(log) = Starting::of(command, folder.path(), &Options::default()).ready() else { panic!("there is no such file") };
    assert!(log.contains("/nowhere/c.toml"), "{log}");
}

/// Places that hold something else are not taken for hosts.
#[test]
fn hosts_that_are_not_ours_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let disks = |name: &str| -> String {
        let disk = |number: usize| folder.path().join(name).join(number.to_string());
        (1..=9)
            .map(|number| {
                fs::create_dir_all(disk(number)).expect("made");
                format!("[[hosts]]\nurl = \"file:{}\"\n", disk(number).display())
            })
            .collect()
    };
    let start = |data: &str, config: &str| Gateway::try_start(&folder.path().join(data), &Options::config(config));
    let Err(log) = ({
        let config = disks("strange");
        fs::create_dir_all(folder.path().join("strange/4/sectors/ab")).expect("made");
        fs::write(folder.path().join("strange/4/sectors/ab/file"), "not ours").expect("written");
        start("one", &config)
    }) else {
        panic!("a folder with objects and no marker was taken")
    };
    assert!(log.contains("strange/4"), "{log}");

    let config = disks("ours");
    assert!(start("two", &config).expect("starts").stop().success());
    let Err(log) = start("three", &config) else { panic!("another portal's hosts were taken") };
    assert!(log.contains("another portal"), "{log}");

    // Two places that are copies of one host.
    fs::copy(folder.path().join("ours/1/skygate-host.json"), folder.path().join("ours/2/skygate-host.json")).expect("copied");
    let Err(log) = start("two", &config) else { panic!("a host seen twice was taken") };
    assert!(log.contains("ours/2"), "{log}");
}

async fn refuses_connections(gateway: &Gateway) {
    until("no connection is taken any more", Duration::from_secs(10), async || match wire::connect(&gateway.public).await {
        Ok(_) => Err("it is".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
}

/// SIGTERM while an upload comes in: it may end, and what was acknowledged is there after the restart.
#[tokio::test]
async fn sigterm_drains_an_upload_under_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let content = Content::file("late.bin", seeded_bytes(1, 30_000_000));
    let stream = content.stream();
    let mut socket = wire::connect(&gateway.admin).await.expect("connects");
    let head = gateway.upload_head(stream.len() as u64, &["Expect: 100-continue"]);
    socket.write_all(head.as_bytes()).await.expect("sent");
    // The gateway says so when it begins to read the body: from here on the upload is under way.
    let mut go_on = [0; 25];
    socket.read_exact(&mut go_on).await.expect("an interim answer");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(&stream[..1_000_000]).await.expect("sent");
    signal(gateway.pid(), "TERM");
    refuses_connections(&gateway).await;
    socket.write_all(&stream[1_000_000..]).await.expect("the rest is taken");
    let answer = wire::read_answer(&mut socket, "POST").await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let added = Added::of(&answer.json());
    drop(socket);
    assert!(gateway.ended().success());
    let gateway = Gateway::start(folder.path());
    content.assert_read_back(&gateway, &added).await;
}

#[tokio::test]
async fn sigterm_drains_a_download_under_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let content = Content::file("long.bin", seeded_bytes(2, 80_000_000));
    let added = gateway.upload(&content).await;
    let mut socket = wire::connect(&gateway.public).await.expect("connects");
    socket.write_all(format!("GET /ipfs/{} HTTP/1.1\r\nHost: x\r\n\r\n", added.cid).as_bytes()).await.expect("sent");
    let mut first = [0; 1];
    socket.read_exact(&mut first).await.expect("the reply has begun");
    signal(gateway.pid(), "TERM");
    refuses_connections(&gateway).await;
    let mut reply = first.to_vec();
    socket.read_to_end(&mut reply).await.expect("the rest comes");
    assert!(reply.ends_with(&content.files().next().expect("one").1[79_000_000..]), "whole: {} bytes", reply.len());
    assert!(gateway.ended().success());
}

/// A client that never ends is not waited for longer than the grace time; idle connections not at all.
#[tokio::test]
async fn a_stop_takes_no_longer_than_its_grace_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config("[limits]\ngrace_seconds = 2\n"));
    let content = Content::file("kept.bin", seeded_bytes(3, 5_000_000));
    let added = gateway.upload(&content).await;
    let mut stuck = wire::connect(&gateway.admin).await.expect("connects");
    stuck.write_all(gateway.upload_head(1 << 30, &["Expect: 100-continue"]).as_bytes()).await.expect("sent");
    let mut go_on = [0; 25];
    stuck.read_exact(&mut go_on).await.expect("it is under way");
    let begun = Instant::now();
    assert!(gateway.stop().success(), "a stop is a success all the same");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

    let gateway = Gateway::start(folder.path());
    let _idle = wire::connect(&gateway.public).await.expect("connects");
    let mut kept_alive = wire::connect(&gateway.public).await.expect("connects");
    kept_alive.write_all(b"GET /ipfs/bafkqaaa HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
    let mut some = [0; 15];
    kept_alive.read_exact(&mut some).await.expect("an answer");
    content.assert_read_back(&gateway, &added).await;
    let begun = Instant::now();
    assert!(gateway.stop().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "idle connections hold nothing up: {:?}", begun.elapsed());
}

/// A second signal ends it at once.
#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let mut stuck = wire::connect(&gateway.admin).await.expect("connects");
    stuck.write_all(gateway.upload_head(1 << 30, &["Expect: 100-continue"]).as_bytes()).await.expect("sent");
    let mut go_on = [0; 25];
    stuck.read_exact(&mut go_on).await.expect("it is under way");
    signal(gateway.pid(), "INT");
    refuses_connections(&gateway).await;
    signal(gateway.pid(), "INT");
    let begun = Instant::now();
    assert!(!gateway.ended().success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
