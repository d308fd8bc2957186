//! What a Skynet portal needs beside content: API keys, limits, statistics, lists.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use compat_tests::content::Content;
use compat_tests::damage::sector_files;
use compat_tests::registry::Owner;
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, Options, host_folders, seeded_bytes, until};
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

async fn stats(gateway: &Gateway) -> Value {
    let answer = gateway.get("/skynet/stats").await;
    assert_eq!((answer.status, answer.header("content-type").as_deref()), (200, Some("application/json; charset=utf-8")));
    answer.json()
}

fn number(stats: &Value, field: &str) -> f64 {
    stats[field].as_f64().unwrap_or_else(|| panic!("{field} is no number: {}", stats[field]))
}

/// Each figure that can change here is changed by what it speaks of.
#[tokio::test]
async fn every_figure_moves_with_what_it_counts() {
    const QUARTERS: [&str; 5] = ["basesectorupload", "chunkupload", "registryread", "registrywrite", "streambufferread"];
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    gateway.pins_complete().await;
    let before = stats(&gateway).await;
    for tracked in QUARTERS {
        for of in ["datapoints", "p99ms", "p999ms", "p9999ms"] {
            number(&before, &format!("{tracked}15m{of}"));
        }
    }
    for (field, expect) in [
        ("allowancestatus", Value::from("none")),
        ("walletstatus", Value::from("none")),
        ("maxstorageprice", Value::from("0")),
        ("portalmode", Value::from(true)),
        ("repair", Value::from(0)),
        ("systemhealthscandurationhours", Value::from(0)),
        ("stuckchunks", Value::from(0)),
        ("numcritalerts", Value::from(0)),
        ("maxhealthpercentage", Value::from(100)),
    ] {
        assert_eq!(before[field], expect, "{field}");
    }
    assert!(before["versioninfo"]["version"].is_string() && before["versioninfo"]["gitrevision"].is_string());

    let small = gateway.upload(&Content::file("small.bin", seeded_bytes(1, 200_000))).await;
    let large = gateway.upload(&Content::file("large.bin", seeded_bytes(2, 9 << 20))).await;
    assert_eq!(gateway.get(&format!("/{}", small.skylink())).await.status, 200);
    let entry = Owner::new(1).sign(1, b"an entry", 1);
    assert_eq!(entry.post(&gateway).await.status, 204);
    assert_eq!(entry.read(&gateway).await.status, 200);
    let after = stats(&gateway).await;
    for tracked in QUARTERS {
        let datapoints = format!("{tracked}15mdatapoints");
        assert!(number(&after, &datapoints) > number(&before, &datapoints), "{datapoints}: {after}");
        let quantiles = ["p99ms", "p999ms", "p9999ms"].map(|of| number(&after, &format!("{tracked}15m{of}")));
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{tracked}: {after}");
    }
    assert_eq!(number(&after, "numfiles"), number(&before, "numfiles") + 2.0);
    until("the content is summed up", Duration::from_secs(20), async || {
        let sum = number(&stats(&gateway).await, "storage") - number(&before, "storage");
        if sum == (200_000 + (9 << 20)) as f64 { Ok(()) } else { Err(sum.to_string()) }
    })
    .await;
    until("the hosts have grown", Duration::from_secs(90), async || {
        let grown = number(&stats(&gateway).await, "contractstorage") - number(&before, "contractstorage");
        if grown > 9e6 { Ok(()) } else { Err(grown.to_string()) }
    })
    .await;
    until("the uptime counts", Duration::from_secs(20), async || {
        let uptime = number(&stats(&gateway).await, "uptime");
        if uptime > number(&before, "uptime") { Ok(()) } else { Err(uptime.to_string()) }
    })
    .await;

    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start(folder.path());
    let hosts = host_folders(folder.path());
    // A piece that is gone: found when it is read.
    for host in &hosts[..3] {
        for file in sector_files(host) {
            std::fs::remove_file(file).expect("removed");
        }
    }
    for added in [&small, &large] {
        assert_eq!(gateway.get(&format!("/{}", added.skylink())).await.status, 200);
    }
    let hurt = stats(&gateway).await;
    assert!(number(&hurt, "stuckchunks") > 0.0 && number(&hurt, "maxhealthpercentage") == 0.0, "{hurt}");
    // A host that is away is an alert.
    std::fs::rename(hosts[0].join("skygate-host.json"), folder.path().join("aside")).expect("moved");
    until("a host is missed", Duration::from_secs(100), async || {
        let alerts = number(&stats(&gateway).await, "numcritalerts");
        if alerts == 1.0 { Ok(()) } else { Err(alerts.to_string()) }
    })
    .await;
    let health = gateway.get("/health-check").await;
    let checks = health.json()["entry"]["checks"].clone();
    assert_eq!((health.status, checks.as_array().map(Vec::len)), (200, Some(3)), "eight hosts take uploads: {checks}");
    assert!(checks.as_array().expect("a list").iter().any(|check| check["name"] == "hosts" && check["up"] == false));
}

#[tokio::test]
async fn what_is_blocked_is_blocked_under_every_address() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let site = Content::files_of("site", &[("big.bin", &seeded_bytes(3, 300_000)), ("index.html", b"<h1>here</h1>")]);
    let (blocked, other) =
        (gateway.upload(&site).await, gateway.upload(&Content::file("other.bin", seeded_bytes(4, 50_000))).await);
    let port = gateway.public.rsplit(':').next().expect("a port").to_owned();
    let leaf = gateway.get(&format!("/ipfs/{}/big.bin?format=raw", blocked.cid)).await;
    let leaf_cid =
        leaf.header("x-ipfs-roots").and_then(|roots| roots.split(',').next_back().map(str::to_owned)).expect("the roots");
    let places = |added: &compat_tests::content::Added| {
        vec![
            (format!("/{}/", added.skylink()), "Host: localhost".to_owned()),
            (format!("/ipfs/{}?format=raw", added.cid), "Host: 127.0.0.1".to_owned()),
        ]
    };
    let mut all = places(&blocked);
    all.push((format!("/ipfs/{}/", blocked.cid), "Host: 127.0.0.1".to_owned()));
    all.push(("/".to_owned(), format!("Host: {}.ipfs.localhost:{port}", blocked.cid)));
    all.push((format!("/ipfs/{leaf_cid}?format=raw"), "Host: 127.0.0.1".to_owned()));
    let statuses = async |places: &[(String, String)], expect: u16| {
        for (target, host) in places {
            // Twice: what is kept ready counts as well.
            for _ in 0..2 {
                let answer = gateway.ask("GET", target, &[host]).await;
                assert_eq!(answer.status, expect, "{target} {host}: {}", answer.text());
            }
        }
    };
    statuses(&all, 200).await;
    json_lines(&gateway, &["block", "add", &format!("sia://{}", blocked.skylink())]);
    statuses(&all, 451).await;
    statuses(&places(&other)[1..], 200).await;

    let listed = json_lines(&gateway, &["block", "ls"]).remove(0)["hash"].as_str().expect("a hash").to_owned();
    let public = gateway.get("/skynet/blocklist").await.json();
    assert_eq!((public["blacklist"].clone(), public["blocklist"][0].as_str()), (Value::Null, Some(listed.as_str())));
    let page = gateway.get("/skynet/portal/blocklist?sort=asc&offset=0&limit=1").await.json();
    assert_eq!((page["entries"][0]["hash"].as_str(), page["hasmore"].as_bool()), (Some(listed.as_str()), Some(false)));
    for target in ["/skynet/blocklist", "/api/v1/blocklist"] {
        let answer = gateway.ask("POST", target, &[&gateway.key_header()]).await;
        assert!(matches!(answer.status, 404 | 405), "the list is changed on the admin listener only: {}", answer.status);
    }

    // A list outlives the process.
    assert!(gateway.stop().success());
    let gateway = Gateway::start(folder.path());
    until("the list is read", SEEN_MAX, async || {
        let status = gateway.get(&format!("/ipfs/{}/", blocked.cid)).await.status;
        if status == 451 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    json_lines(&gateway, &["block", "rm", &listed]);
    assert_eq!(gateway.get(&format!("/{}/", blocked.skylink())).await.status, 200);
    assert!(gateway.get("/skynet/blocklist").await.json()["blocklist"].as_array().expect("a list").is_empty());
}

#[tokio::test]
async fn what_clients_look_for() {
    const LINK: &str = "AQCYCPSmSMfmZjOKLX4zoYHHTNJQW2daVgZ2PTpkASFlSA";
    let folder = tempfile::tempdir().expect("a folder");
    let (key, datakey) = ("cd".repeat(32), "ab".repeat(32));
    let config = format!(
        "[portal]\ndomains = [\"portal.example\"]\n[names]\nresolver = \"none\"\n[names.handshake]\nsky-app = \"sia://{LINK}\"\npointer = \"skyns://ed25519:{key}/{datakey}\"\n"
    );
    let gateway = Gateway::start_with(folder.path(), &Options::config(config));
    let rows = [
        ("/hnsres/sky-app", 200, format!("{{\"skylink\":\"sia://{LINK}\"}}\n")),
        ("/hnsres/pointer", 200, format!("{{\"registry\":{{\"datakey\":\"{datakey}\",\"publickey\":\"ed25519:{key}\"}}}}\n")),
        ("/hnsres/nobody", 404, String::new()),
        ("/skynet/portals", 200, "{\"portals\":[{\"address\":\"portal.example:443\",\"public\":false}]}\n".to_owned()),
        ("/health-check/disabled", 200, "{\"disabled\":false}\n".to_owned()),
        ("/serverload", 200, String::new()),
        ("/__internal/do/not/use/accounts", 200, String::new()),
        ("/skynet/blacklist", 301, "/skynet/blocklist\n".to_owned()),
        ("/stats", 301, "/skynet/stats\n".to_owned()),
        ("/portals", 301, "/skynet/portals\n".to_owned()),
        ("/skynet/nothing", 404, String::new()),
    ];
    for (target, status, body) in rows {
        for host in ["Host: portal.example", "Host: localhost"] {
            let answer = gateway.ask("GET", target, &[host, "Origin: https://app.example"]).await;
            assert_eq!(answer.status, status, "{target}: {}", answer.text());
            if !body.is_empty() {
                assert_eq!(answer.text(), body, "{target}");
            }
            if status >= 400 {
                assert!(answer.json()["message"].is_string(), "{target}: {}", answer.text());
            }
            assert_eq!(answer.header("access-control-allow-origin").as_deref(), Some("https://app.example"), "{target}");
            assert_eq!(answer.header("access-control-allow-credentials").as_deref(), Some("true"), "{target}");
            assert_eq!(answer.header("skynet-portal-api"), Some(format!("http://{}", &host[6..])), "{target}");
        }
        // No API on an origin of content, nor under a name of somebody else.
        for host in [
            format!("Host: {}.localhost", "0".repeat(55)),
            "Host: bafkqaaa.ipfs.localhost".to_owned(),
            "Host: other.example".to_owned(),
        ] {
            let answer = gateway.ask("GET", target, &[&host]).await;
            assert_ne!(answer.status, 200, "{target} {host}: {}", answer.text());
        }
    }
    let head = gateway.ask("HEAD", "/", &["Host: portal.example", "X-Forwarded-Proto: https"]).await;
    assert_eq!((head.status, head.header("skynet-portal-api").as_deref()), (200, Some("https://portal.example")));
    assert_eq!(head.header("skynet-server-api").as_deref(), Some("https://portal.example"));

    // Skynet's lists, each word of them.
    let preflight = gateway.ask("OPTIONS", "/skynet/skyfile", &["Host: portal.example", "Origin: https://app.example"]).await;
    assert_eq!((preflight.status, preflight.header("access-control-max-age").as_deref()), (204, Some("1728000")));
    let words = |name: &str| -> Vec<String> {
        preflight.header(name).unwrap_or_default().split(',').map(|word| word.trim().to_ascii_lowercase()).collect()
    };
    for (header, expect) in [
        ("access-control-allow-methods", "get post head options put patch delete"),
        (
            "access-control-allow-headers",
            "dnt user-agent x-requested-with if-modified-since if-none-match cache-control content-type range \
             x-http-method-override upload-offset upload-metadata upload-length tus-version tus-resumable tus-extension \
             tus-max-size upload-concat location skynet-api-key",
        ),
        (
            "access-control-expose-headers",
            "content-length content-range etag accept-ranges skynet-file-metadata skynet-skylink skynet-proof \
             skynet-portal-api skynet-server-api upload-offset upload-metadata upload-length tus-version tus-resumable \
             tus-extension tus-max-size upload-concat location skygate-cid cache-status server-timing",
        ),
    ] {
        let have = words(header);
        for word in expect.split_whitespace() {
            assert!(have.iter().any(|known| known == word), "{header} lacks {word}");
        }
    }
}

/// What is over a limit is said in Skynet's form, with the time to wait.
#[tokio::test]
async fn limits_answer_in_skynets_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &Options::config("[limits]\nregistry_per_minute = 1\n"));
    let made = json_lines(&gateway, &["key", "add", "small", "--upload-bytes", "1000"]).remove(0);
    let key = format!("Skynet-Api-Key: {}", made["key"].as_str().expect("a secret"));
    let host = gateway.public.trim_start_matches("http://");
    let head = format!(
        "POST /skynet/skyfile?filename=a.bin HTTP/1.1\r\nHost: {host}\r\n{key}\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n"
    );
    let body = "x".repeat(2000);
    let small = format!("{head}Content-Length: 1000\r\n\r\n{}", &body[..1000]);
    let told = format!("{head}Content-Length: 2000\r\n\r\n{body}");
    let untold = format!("{head}Transfer-Encoding: chunked\r\n\r\n7d0\r\n{body}\r\n0\r\n\r\n");
    for (name, request, status) in [("small", small, 200), ("told", told, 413), ("untold", untold, 413)] {
        let answer = wire::exchange(&gateway.public, request.as_bytes(), "POST").await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        if status == 413 {
            assert!(answer.json()["message"].as_str().is_some_and(|text| text.contains("1000 bytes")), "{}", answer.text());
        }
    }
    let entry = format!("/skynet/registry?publickey=ed25519:{}&datakey={}", "cd".repeat(32), "ab".repeat(32));
    let mut last = 0;
    for number in 0..12 {
        let answer = gateway.ask("GET", &entry, &["X-Forwarded-For: 203.0.113.5"]).await;
        last = answer.status;
        if last == 429 {
            assert!(answer.header("retry-after").is_some() && answer.json()["message"].is_string(), "{}", answer.text());
            assert!((10..=11).contains(&number), "ten minutes' worth at once: {number}");
            break;
        }
        assert_eq!(last, 404, "{}", answer.text());
    }
    assert_eq!(last, 429);
    assert_eq!(gateway.ask("GET", &entry, &["X-Forwarded-For: 203.0.113.6"]).await.status, 404, "another address");
    for _ in 0..12 {
        assert_eq!(gateway.get(&entry).await.status, 404, "this machine has no limits");
    }
    assert!(number(&stats(&gateway).await, "registryread15mdatapoints") >= 20.0);
}

#[tokio::test]
async fn handshake_names_lead_to_skylinks() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let added = gateway.upload(&Content::files_of("site", &[("dir/a.txt", b"text of a"), ("index.html", b"<h1>home</h1>")])).await;
    assert!(gateway.stop().success());
    let config = format!("[names.handshake]\nsky-app = \"sia://{}\"\n", added.skylink());
    let gateway = Gateway::start_with(folder.path(), &Options::config(config));
    let port = gateway.public.rsplit(':').next().expect("a port").to_owned();
    let (plain, own) = ("Host: localhost".to_owned(), format!("Host: sky-app.hns.localhost:{port}"));
    for (target, host, status, body) in [
        ("/hns/sky-app/", &plain, 200, "<h1>home</h1>"),
        ("/hns/sky-app/dir/a.txt", &plain, 200, "text of a"),
        ("/hns/SKY-APP/dir/a.txt", &plain, 200, "text of a"),
        ("/hns/sky-app", &plain, 308, "sky-app/\n"),
        ("/hns/nobody/", &plain, 404, ""),
        ("/", &own, 200, "<h1>home</h1>"),
        ("/dir/a.txt", &own, 200, "text of a"),
        // An origin of content has no API.
        ("/skynet/portals", &own, 404, ""),
        ("/health-check", &own, 404, ""),
        ("/", &format!("Host: nobody.hns.localhost:{port}"), 404, ""),
    ] {
        let answer = gateway.ask("GET", target, &[host]).await;
        assert_eq!(answer.status, status, "{target} {host}: {}", answer.text());
        if !body.is_empty() {
            assert_eq!(answer.text(), body, "{target} {host}");
        }
        if status == 200 {
            assert_eq!(answer.header("skynet-skylink").as_deref(), Some(added.skylink()), "{target} {host}");
        }
    }
}
