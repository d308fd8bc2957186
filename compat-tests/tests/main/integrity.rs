//! What nobody reads: `skygate verify`, audits, notes about damage, hosts that lie again and again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use compat_tests::buckets::Buckets;
use compat_tests::content::{Content, Item, read_all, upload_all};
use compat_tests::damage::{Away, Hung, data_bytes, flip, sector_files};
use compat_tests::{Gateway, Options, binary, host_folders, seeded, seeded_bytes, until, wire};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Nobody looks by itself, and nothing is kept in memory.
const QUIET: &str = "[audit]\nperiod_hours = 0\n[store]\nmemory_bytes = 0\n";

/// In a pin, in a base sector, in slabs, and as a folder with a pack.
fn contents() -> Vec<Content> {
    let site = (0..8).map(|index| (format!("d{}/f{index}.html", index % 3), Item::File(seeded_bytes(500 + index, 3000))));
    vec![
        Content::file("tiny.txt", b"a file of a few bytes".to_vec()),
        Content::file("base.bin", seeded_bytes(511, 1_500_000)),
        Content::file("slabs.bin", seeded_bytes(512, 30_000_000)),
        Content::folder("site", site.chain([("video.bin".to_owned(), Item::File(seeded_bytes(513, 7_000_000)))])),
    ]
}

/// `verify` as programs see it: its exit code, and its lines.
fn verify(gateway: &Gateway, args: &[&str]) -> (i32, Vec<Value>) {
    let output = gateway.command(&[&["verify"], args].concat());
    let lines = String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    (output.status.code().expect("it ended by itself"), lines)
}

/// As a person sees it.
fn as_a_person(gateway: &Gateway, args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(args).args(["--api", &gateway.admin]).arg("--data").arg(&gateway.data);
    command.stdin(Stdio::null()).output().expect("it can be run")
}

fn events<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// (kind, last part of the host's URL, root) of each damage.
fn found(lines: &[Value]) -> Vec<(String, String, String)> {
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_else(|| panic!("{name} of {line}")).to_owned();
    let host = |line: &Value| text(line, "url").rsplit('/').next().expect("a name").to_owned();
    let mut found: Vec<_> =
        events(lines, "damage").into_iter().map(|line| (text(line, "kind"), host(line), text(line, "root"))).collect();
    found.sort();
    found
}

fn root_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).expect("a root").to_owned()
}

/// Pieces of full length of the first slab of a large file, which no base sector has.
fn full_pieces(host: &Path) -> Vec<PathBuf> {
    sector_files(host).into_iter().filter(|piece| data_bytes(piece) == 4 << 20).collect()
}

async fn notes(gateway: &Gateway) -> Vec<(String, String)> {
    let status = gateway.admin_json("/api/v1/status").await;
    let notes = status["damage_notes"]["notes"].as_array().expect("a list");
    let text = |note: &Value, name: &str| note[name].as_str().expect("a text").to_owned();
    let mut notes: Vec<_> = notes.iter().map(|note| (text(note, "kind"), text(note, "root"))).collect();
    notes.sort();
    notes
}

async fn noted(gateway: &Gateway, expect: &[(String, String)]) {
    until(&format!("the notes are {expect:?}"), Duration::from_secs(30), async || {
        let notes = notes(gateway).await;
        if notes == expect { Ok(()) } else { Err(format!("{notes:?}\n{}", gateway.log())) }
    })
    .await;
}

/// (number of the host, its row) as the operator sees them.
async fn hosts(gateway: &Gateway) -> Vec<(String, Value)> {
    let hosts = gateway.admin_json("/api/v1/hosts").await;
    let number = |host: &Value| host["url"].as_str().and_then(|url| url.rsplit('/').next()).expect("a number").to_owned();
    hosts["hosts"].as_array().expect("a list").iter().map(|host| (number(host), host.clone())).collect()
}

#[tokio::test]
async fn verify_names_piece_and_host_and_notes_outlive_a_restart() {
    let mut random = seeded("verify_names_piece_and_host");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    let contents = contents();
    let added = upload_all(&gateway, &contents).await;
    gateway.pins_complete().await;
    let (code, lines) = verify(&gateway, &[]);
    let end = lines.last().expect("a summary");
    assert_eq!((code, end["event"].as_str(), end["verdict"].as_str()), (0, Some("end"), Some("whole")), "{lines:?}");
    // The sample site is there as well.
    assert!(end["pins"].as_u64() >= Some(4) && end["pieces"].as_u64() >= Some(3 * 9 + 4 * 4), "{end}");
    let said = as_a_person(&gateway, &["verify"]);
    assert!(said.status.success() && String::from_utf8_lossy(&said.stdout).contains("whole: every piece"), "{said:?}");

    let folders = host_folders(folder.path());
    let (wrong, missing) = (full_pieces(&folders[2])[0].clone(), full_pieces(&folders[6])[0].clone());
    let (right, gone) = (fs::read(&wrong).expect("readable"), fs::read(&missing).expect("readable"));
    flip(&wrong, &mut random);
    fs::remove_file(&missing).expect("removed");
    let expect = [("missing".to_owned(), "7".to_owned(), root_of(&missing)), ("wrong".to_owned(), "3".to_owned(), root_of(&wrong))];
    for args in [vec![], vec![added[2].cid.as_str()], vec![added[2].skylink()]] {
        let (code, lines) = verify(&gateway, &args);
        assert_eq!((code, found(&lines)), (5, expect.to_vec()), "{args:?}: {lines:?}");
        assert_eq!(lines.last().and_then(|end| end["verdict"].as_str()), Some("damaged"));
    }
    assert_eq!(verify(&gateway, &[&added[1].cid]).0, 0, "another upload is whole");
    let said = as_a_person(&gateway, &["verify", &added[2].cid]);
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(5));
    for part in
        ["slabs.bin: piece ", " is wrong on file:", "/hosts/3 (", " is missing on file:", "/hosts/7", "everything can be read"]
    {
        assert!(words.contains(part), "{part:?} is not in:\n{words}");
    }
    assert!(said.stderr.is_empty(), "what was found has been said: {said:?}");

    let expect = [("missing".to_owned(), root_of(&missing)), ("wrong".to_owned(), root_of(&wrong))];
    noted(&gateway, &expect).await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    noted(&gateway, &expect).await;
    let damaged: Vec<_> =
        hosts(&gateway).await.into_iter().filter(|(_, host)| host["damage_noted"] == 1).map(|(number, _)| number).collect();
    assert_eq!(damaged, ["3", "7"], "the hosts of the notes");
    fs::write(&wrong, right).expect("written");
    fs::write(&missing, gone).expect("written");
    assert_eq!(verify(&gateway, &[]).0, 0, "it is whole again");
    noted(&gateway, &[]).await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    gateway.catalog_complete().await;
    noted(&gateway, &[]).await;
}

#[tokio::test]
async fn what_cannot_be_read_has_an_exit_code_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    let content = Content::file("slabs.bin", seeded_bytes(521, 30_000_000));
    let added = gateway.upload(&content).await;
    gateway.pins_complete().await;
    for host in &host_folders(folder.path())[..4] {
        fs::remove_file(&full_pieces(host)[0]).expect("removed");
    }
    let (code, lines) = verify(&gateway, &[&added.cid]);
    let end = lines.last().expect("a summary");
    assert_eq!((code, end["verdict"].as_str(), end["missing"].as_u64()), (6, Some("unreadable"), Some(4)), "{lines:?}");
    let lost = events(&lines, "unreadable");
    assert_eq!((lost.len(), lost[0]["right"].as_u64(), lost[0]["need"].as_u64()), (1, Some(5), Some(6)), "{lines:?}");
    for (args, code) in
        [(vec!["bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"], 1), (vec!["bafkqaaa"], 1), (vec!["nonsense"], 2)]
    {
        assert_eq!(verify(&gateway, &args).0, code, "{args:?}");
    }
}

#[tokio::test]
async fn an_audit_finds_a_flipped_byte_in_a_new_upload() {
    let mut random = seeded("an_audit_finds_a_flipped_byte");
    let folder = tempfile::tempdir().expect("a folder");
    // The rate is far above what this takes.
    let options = Options::config("[audit]\nnew_after_seconds = 8\nbytes_per_second = \"200 MiB\"\n");
    let gateway = Gateway::start_with(folder.path(), &options);
    let before = full_pieces(&host_folders(folder.path())[4]).len();
    assert_eq!(before, 0);
    gateway.upload(&Content::file("film.bin", seeded_bytes(531, 30_000_000))).await;
    let pieces = full_pieces(&host_folders(folder.path())[4]);
    flip(&pieces[0], &mut random);
    noted(&gateway, &[("wrong".to_owned(), root_of(&pieces[0]))]).await;
    for (number, host) in hosts(&gateway).await {
        let is_bad = number == "5";
        assert_eq!(host["damage_noted"].as_u64(), Some(u64::from(is_bad)), "host {number}");
        assert_eq!(host["checked"]["wrong"].as_u64() >= Some(1), is_bad, "host {number}: {host}");
    }
    let metrics = gateway.admin("GET", "/metrics").await.text();
    assert!(metrics.contains("skygate_damage_notes 1\n"), "{metrics}");
    assert_eq!(gateway.admin_json("/api/v1/status").await["audit"]["on"], true);
}

/// A round goes over what was there before the process, and the next process does not begin it anew.
#[tokio::test]
async fn a_round_ends_and_a_restart_does_not_begin_it_anew() {
    let mut random = seeded("a_round_ends");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    upload_all(&gateway, &contents()).await;
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let rotten = full_pieces(&host_folders(folder.path())[1])[0].clone();
    flip(&rotten, &mut random);
    let fast = Options::config("[audit]\nperiod_hours = 1\nnew_after_seconds = 1\nbytes_per_second = \"400 MiB\"\n");
    let gateway = Gateway::start_with(folder.path(), &fast);
    let audit = async |gateway: &Gateway| gateway.admin_json("/api/v1/status").await["audit"].clone();
    let ended = until("a round has ended", Duration::from_secs(60), async || {
        let audit = audit(&gateway).await;
        if audit["rounds"] == 1 { Ok(audit) } else { Err(format!("{audit}")) }
    })
    .await;
    noted(&gateway, &[("wrong".to_owned(), root_of(&rotten))]).await;
    assert!(ended["round_due_ms"].as_u64() >= ended["round_began_ms"].as_u64().map(|began| began + 3_600_000), "{ended}");
    assert!(gateway.stop().success());
    let gateway = Gateway::start_with(folder.path(), &fast);
    // New work is done, the round is not.
    gateway.upload(&Content::file("new.bin", seeded_bytes(541, 100_000))).await;
    let later = until("the new upload is looked at", Duration::from_secs(60), async || {
        let audit = audit(&gateway).await;
        if audit["new_pins"].as_u64() >= Some(1) { Ok(audit) } else { Err(format!("{audit}")) }
    })
    .await;
    assert_eq!((later["rounds"].as_u64(), &later["round_began_ms"]), (Some(0), &ended["round_began_ms"]));
}

#[tokio::test]
async fn a_host_that_lies_is_set_aside_and_still_gives_what_nobody_else_has() {
    let mut random = seeded("a_host_that_lies");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    let contents: Vec<Content> =
        (0..5).map(|index| Content::file(&format!("{index}.bin"), seeded_bytes(551 + index, 7_000_000))).collect();
    let added = upload_all(&gateway, &contents).await;
    gateway.pins_complete().await;
    let folders = host_folders(folder.path());
    let rotten = sector_files(&folders[4]);
    rotten.iter().for_each(|piece| flip(piece, &mut random));
    assert_eq!(verify(&gateway, &[]).0, 5);
    let aside = async || {
        let rows = hosts(&gateway).await;
        rows.into_iter().filter(|(_, host)| host["set_aside"].is_string()).map(|(number, _)| number).collect::<Vec<_>>()
    };
    assert_eq!(aside().await, ["5"]);
    let said = as_a_person(&gateway, &["hosts"]);
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(words.contains("up, set aside") && words.contains("/hosts/5: set aside: several different pieces"), "{words}");
    let log = gateway.log();
    assert_eq!(log.matches("a host is set aside").count(), 1, "{log}");
    let metrics = gateway.admin("GET", "/metrics").await.text();
    let set_aside = metrics.lines().filter(|line| line.starts_with("skygate_host_set_aside{") && line.ends_with(" 1")).count();
    assert_eq!(set_aside, 1, "{metrics}");
    read_all(&gateway, &contents, &added, "past a liar").await;
    // It takes writes, and gives what only k hosts have.
    let late = Content::file("late.bin", seeded_bytes(561, 7_000_000));
    let late_added = gateway.upload(&late).await;
    assert_eq!(late_added.durability, "complete");
    let _away = Away::take(&[folders[0].clone(), folders[1].clone(), folders[2].clone()]);
    late.assert_read_back(&gateway, &late_added).await;
}

/// A client that goes away ends the work that was done for it, however long a host takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_ends_with_its_client() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    let added = gateway.upload(&Content::file("slabs.bin", seeded_bytes(571, 30_000_000))).await;
    gateway.pins_complete().await;
    let hung = Hung::files(full_pieces(&host_folders(folder.path())[3]));
    let target = format!("/api/v1/verify?address={}", added.cid);
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: {}\r\n{}\r\nContent-Length: 0\r\n\r\n",
        gateway.admin.trim_start_matches("http://"),
        gateway.key_header()
    );
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = wire::connect(&gateway.admin).await.expect("connects");
        client.write_all(head.as_bytes()).await.expect("sends");
        let mut status = [0; 12];
        client.read_exact(&mut status).await.expect("the answer begins before the work ends");
        assert_eq!(&status, b"HTTP/1.1 200");
        clients.push(client);
    }
    let third = async || gateway.admin("POST", "/api/v1/verify?address=bafkqaaa").await;
    let refused = third().await;
    assert_eq!(refused.status, 429, "two are under way: {}", refused.text());
    drop(clients);
    // 501: it is let in, and this CID holds its own bytes.
    until("both have ended", Duration::from_secs(10), async || {
        let answer = third().await;
        if answer.status == 501 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    drop(hung);
}

/// Objects end before the zeros at the end of a piece: who has such a one has all there is.
#[tokio::test]
async fn nobody_is_charged_for_zeros() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    let mut bytes = seeded_bytes(581, 3_000_000);
    bytes.resize(20_000_000, 0);
    bytes.push(1);
    let mut tail = seeded_bytes(582, 2_000_000);
    tail.resize(20_000_000, 0);
    let contents = [Content::file("hole.bin", bytes), Content::file("tail.bin", tail)];
    let added = upload_all(&gateway, &contents).await;
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start_with(folder.path(), &Options::config(QUIET));
    // Block by block, as a CAR: each is proved by its own hash, at places that are guessed.
    for added in &added {
        let answer = gateway.get(&format!("/ipfs/{}?format=car", added.cid)).await;
        assert!(answer.status == 200 && answer.whole, "{}", answer.status);
    }
    read_all(&gateway, &contents, &added, "with zeros").await;
    for (number, host) in hosts(&gateway).await {
        assert_eq!((host["wrong_pieces"].as_u64(), host["state"].as_str()), (Some(0), Some("up")), "host {number}: {host}");
    }
    assert_eq!(notes(&gateway).await, []);
    assert_eq!(verify(&gateway, &[]).0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_over_buckets() {
    let mut random = seeded("verify_over_buckets");
    let folder = tempfile::tempdir().expect("a folder");
    let buckets = Buckets::start().await;
    let options = Options::config(format!("{QUIET}{}", buckets.hosts()));
    let gateway = Gateway::start_with(folder.path(), &options);
    let content = Content::file("slabs.bin", seeded_bytes(591, 10_000_000));
    let added = gateway.upload(&content).await;
    gateway.pins_complete().await;
    let run = async |args: Vec<String>| {
        let (api, data) = (gateway.admin.clone(), gateway.data.clone());
        let mut command = tokio::process::Command::new(binary());
        command.arg("verify").args(args).args(["--json", "--api", &api]).arg("--data").arg(data).stdin(Stdio::null());
        let output = command.output().await.expect("it can be run");
        let lines: Vec<Value> =
            String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        (output.status.code(), lines)
    };
    assert_eq!(run(vec![]).await.0, Some(0));
    let pieces = sector_files(&buckets.servers[6].objects());
    let piece = pieces.iter().max_by_key(|piece| data_bytes(piece)).expect("a piece");
    flip(piece, &mut random);
    let (code, lines) = run(vec![added.cid.clone()]).await;
    assert_eq!(code, Some(5), "{lines:?}");
    let damages = events(&lines, "damage");
    assert_eq!((damages.len(), damages[0]["kind"].as_str()), (1, Some("wrong")), "{lines:?}");
    assert_eq!(damages[0]["root"].as_str(), Some(root_of(piece).as_str()));
}
