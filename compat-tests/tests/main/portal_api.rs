//! What a Skynet portal needs beside content: API keys, limits, statistics, lists.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, Options, until};
use serde_json::Value;

use super::catalog::import_key;

/// Another node looks at the keys and lists every ten seconds.
const SEEN_MAX: Duration = Duration::from_secs(40);
/// An IPNS record's place: the smallest write that a caller needs to be allowed for. The body is refused after that.
const WRITE: &str = "/routing/v1/ipns/k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w";
const RECORD_TYPE: &str = "Content-Type: application/vnd.ipfs.ipns-record";

/// One write by a program on another machine, as far as the gateway can tell.
async fn write(gateway: &Gateway, headers: &[&str]) -> Answer {
    let host = if headers.iter().any(|line| line.starts_with("Host:")) { "" } else { "Host: portal.example\r\n" };
    let mut head = format!("PUT {WRITE} HTTP/1.1\r\nConnection: close\r\n{host}{RECORD_TYPE}\r\nContent-Length: 1\r\n");
    headers.iter().for_each(|line| head.push_str(&format!("{line}\r\n")));
    wire::exchange(&gateway.public, format!("{head}\r\nx").as_bytes(), "PUT").await
}

fn json_lines(gateway: &Gateway, args: &[&str]) -> Vec<Value> {
    let output = gateway.command(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {}{text}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or(Value::Null)).collect()
}

#[tokio::test]
async fn keys_are_made_shown_once_and_revoked_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let made = json_lines(&gateway, &["key", "add", "photos", "--upload-bytes", "2 GB"]).remove(0);
    let (id, key) = (made["id"].as_str().expect("an id").to_owned(), made["key"].as_str().expect("a secret").to_owned());
    assert_eq!((key.len(), made["limits"]["upload_bytes"].as_u64()), (64, Some(2_000_000_000)));
    let basic = format!("Authorization: Basic {}", STANDARD.encode(format!(":{key}")));
    let wrong = "0".repeat(64);
    let ways = |key: &str| [format!("Skynet-Api-Key: {key}"), format!("Authorization: Bearer {key}")];
    for header in ways(&key).into_iter().chain([basic.clone()]) {
        let answer = write(&gateway, &[&header]).await;
        assert_eq!(answer.status, 400, "let in, and the body is no record: {}", answer.text());
    }
    for header in ways(&wrong) {
        assert_eq!(write(&gateway, &[&header]).await.status, 401, "{header}");
    }
    // The other header has the key that counts.
    assert_eq!(write(&gateway, &[&format!("Skynet-Api-Key: {wrong}"), &basic]).await.status, 400);
    for (headers, status) in [(&[][..], 403), (&["Host: localhost", "X-Forwarded-For: 1.2.3.4"][..], 403)] {
        assert_eq!(write(&gateway, headers).await.status, status, "{headers:?}");
    }

    let listed = json_lines(&gateway, &["key", "ls"]);
    assert_eq!((listed.len(), listed[0]["id"].as_str(), listed[0]["name"].as_str()), (1, Some(id.as_str()), Some("photos")));
    assert!(!listed[0].to_string().contains(&key), "a secret is shown once");
    // A key is not the operator's: it opens nothing on the admin listener.
    for target in ["/api/v1/keys", "/api/v1/pins", "/metrics"] {
        assert_eq!(wire::ask(&gateway.admin, "GET", target, &[&format!("Authorization: Bearer {key}")]).await.status, 401);
    }
    // And the public listener has no routes for keys.
    assert!(matches!(gateway.ask("GET", "/api/v1/keys", &[&gateway.key_header()]).await.status, 404 | 405));

    json_lines(&gateway, &["key", "rm", &id]);
    for header in ways(&key).into_iter().chain([basic]) {
        assert_eq!(write(&gateway, &[&header]).await.status, 401, "revoked: {header}");
    }
    assert!(json_lines(&gateway, &["key", "ls"]).is_empty());
    assert!(!gateway.command(&["key", "rm", &id]).status.success(), "there is no such key any more");
}

#[tokio::test]
async fn keys_outlive_the_node_and_its_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let hosts: String = (1..=9).map(|host| format!("[[hosts]]\nurl = \"file:{}/h{host}\"\n", folder.path().display())).collect();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let first = Gateway::start_with(&one, &Options::config(hosts.clone()));
    let key = json_lines(&first, &["key", "add", "kept"]).remove(0)["key"].as_str().expect("a secret").to_owned();
    let phrase = json_lines(&first, &["key", "export"]).remove(0)["phrase"].as_str().expect("a phrase").to_owned();
    let log = first.log();
    assert!(!log.contains(&key));
    assert!(first.stop().success());
    import_key(&two, &phrase);
    let second = Gateway::start_with(&two, &Options::config(hosts));
    let header = format!("Skynet-Api-Key: {key}");
    until("the key is known", SEEN_MAX, async || {
        let answer = write(&second, &[&header]).await;
        // 503 until the keys have been read: never "not known" of a key that is good.
        assert_ne!(answer.status, 401);
        if answer.status == 400 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn a_key_that_writes_too_often_waits() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let made = json_lines(&gateway, &["key", "add", "busy", "--registry-per-minute", "1"]).remove(0);
    let header = format!("Skynet-Api-Key: {}", made["key"].as_str().expect("a secret"));
    // Ten minutes' worth at once, then one a minute.
    let mut statuses = Vec::new();
    for _ in 0..12 {
        let answer = write(&gateway, &[&header]).await;
        statuses.push(answer.status);
        if answer.status == 429 {
            let wait: u64 = answer.header("retry-after").and_then(|text| text.parse().ok()).expect("a number of seconds");
            assert!((1..=61).contains(&wait), "{wait}");
        }
    }
    assert_eq!((&statuses[..10], statuses[11]), (&[400; 10][..], 429), "{statuses:?}");
    let other = json_lines(&gateway, &["key", "add", "calm"]).remove(0);
    let other = format!("Skynet-Api-Key: {}", other["key"].as_str().expect("a secret"));
    assert_eq!(write(&gateway, &[&other]).await.status, 400, "another key has its own");
}
