//! Every reply says where its bytes came from (`design.md` 9), and the admin listener counts them apart.

use compat_tests::content::{Content, Item};
use compat_tests::wire::Answer;
use compat_tests::{Gateway, Options, seeded_bytes};

/// `Cache-Status` and `Server-Timing` agree, and say nothing of hosts.
fn class_of(answer: &Answer) -> String {
    let class = answer.class().unwrap_or_else(|| panic!("no class: {} {:?}", answer.status, answer.headers));
    let status = answer.header("cache-status").expect("it has a class");
    let hit = matches!(class.as_str(), "memory" | "disk");
    assert!(status.starts_with("skygate;") && status.contains(if hit { "; hit" } else { "; fwd=miss" }), "RFC 9211: {status}");
    let timing = answer.header("server-timing").expect("a timing");
    assert!(timing.contains(&format!("desc=\"{class}\"")), "{timing}");
    for part in timing.split(',').filter_map(|part| part.split("dur=").nth(1)) {
        let ms: f64 = part.split(';').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{timing}"));
        assert!((0.0..60_000.0).contains(&ms), "{timing}");
    }
    class
}

fn contents() -> (Content, Content) {
    let small = Content::folder(
        "site",
        [
            ("index.html".to_owned(), Item::File(b"<h1>x</h1>".to_vec())),
            ("d/a.bin".to_owned(), Item::File(seeded_bytes(1, 50_000))),
            ("d/b.txt".to_owned(), Item::File(b"b".to_vec())),
        ],
    );
    (small, Content::file("large.bin", seeded_bytes(2, 30_000_000)))
}

#[tokio::test]
async fn a_body_is_from_hosts_once_and_then_from_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let (site, large) = contents();
    let (site, large) = (gateway.upload(&site).await, gateway.upload(&large).await);
    assert!(gateway.stop().success());
    std::fs::remove_dir_all(folder.path().join("catalog")).expect("the catalog can be deleted");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;

    for target in [format!("/ipfs/{}/d/a.bin", site.cid), format!("/{}/d/a.bin", site.skylink()), format!("/ipfs/{}", large.cid)] {
        let first = class_of(&gateway.get(&target).await);
        assert!(matches!(first.as_str(), "cold" | "hosts" | "memory"), "{target}: {first}");
    }
    for target in [format!("/ipfs/{}/d/a.bin", site.cid), format!("/{}/d/a.bin", site.skylink())] {
        let again = gateway.get(&target).await;
        assert_eq!(class_of(&again), "memory", "{target}");
        assert_eq!(again.rounds(), 0, "{target}");
    }
    // Everything with content says it: listings, redirects, ranges, HEAD, what is not modified.
    let etag = gateway.get(&format!("/ipfs/{}/d/b.txt", site.cid)).await.header("etag").expect("an Etag");
    for (method, target, headers, status) in [
        ("GET", format!("/ipfs/{}/d/", site.cid), vec![], 200),
        ("GET", format!("/ipfs/{}/d", site.cid), vec![], 301),
        ("GET", format!("/{}", site.skylink()), vec![], 308),
        ("GET", format!("/ipfs/{}", large.cid), vec!["Range: bytes=5-10".to_owned()], 206),
        ("GET", format!("/ipfs/{}", large.cid), vec!["Range: bytes=5-10,20-30".to_owned()], 206),
        ("HEAD", format!("/ipfs/{}/d/a.bin", site.cid), vec![], 200),
        ("GET", format!("/ipfs/{}/d/b.txt", site.cid), vec![format!("If-None-Match: {etag}")], 304),
        ("GET", format!("/ipfs/{}?format=raw", site.cid), vec![], 200),
    ] {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = gateway.ask(method, &target, &headers).await;
        assert_eq!(answer.status, status, "{method} {target}");
        class_of(&answer);
    }
}

#[tokio::test]
async fn without_a_body_cache_every_body_is_from_hosts() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options::config("[store]\nmemory_bytes = 0\n");
    let gateway = Gateway::start_with(folder.path(), &options);
    let (site, large) = contents();
    let (site, large) = (gateway.upload(&site).await, gateway.upload(&large).await);
    let targets = [
        format!("/ipfs/{}/d/a.bin", site.cid),
        format!("/{}/d/a.bin", site.skylink()),
        format!("/ipfs/{}", large.cid),
        format!("/{}", large.skylink()),
    ];
    for target in &targets {
        for _ in 0..3 {
            let class = class_of(&gateway.get(target).await);
            assert!(matches!(class.as_str(), "hosts" | "cold"), "{target}: {class}");
        }
    }
    assert_eq!(gateway.admin_json("/api/v1/status").await["store"]["memory_bytes"], 0);

    // An empty node: index bytes, too, come from hosts. That is cold, and only the first time.
    assert!(gateway.stop().success());
    for target in &targets {
        std::fs::remove_dir_all(folder.path().join("catalog")).expect("the catalog can be deleted");
        let gateway = Gateway::start_with(folder.path(), &options);
        assert_eq!(class_of(&gateway.get(target).await), "cold", "{target}");
        // A later read may choose other pieces, whose hash trees are index bytes, too. At the latest when all trees are
        // known a read is not cold any more.
        let mut later = Vec::new();
        while later.last().is_none_or(|class| class != "hosts") {
            assert!(later.len() < 30, "{target}: {later:?}");
            later.push(class_of(&gateway.get(target).await));
            assert!(matches!(later.last().map(String::as_str), Some("hosts" | "cold")), "{target}: {later:?}");
        }
        gateway.kill();
    }
}

#[tokio::test]
async fn classes_are_counted_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let (site, _) = contents();
    let site = gateway.upload(&site).await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    let target = format!("/ipfs/{}/d/a.bin", site.cid);
    let first = class_of(&gateway.get(&target).await);
    assert_ne!(first, "memory", "a new process has nothing in memory");
    for _ in 0..10 {
        assert_eq!(class_of(&gateway.get(&target).await), "memory");
    }
    let latency = gateway.admin_json("/api/v1/latency").await;
    let rows = latency["latency"].as_array().expect("rows").clone();
    let count = |endpoint: &str, class: &str| {
        let row = rows.iter().find(|row| row["endpoint"] == endpoint && row["class"] == class);
        row.map_or(0, |row| row["count"].as_u64().expect("a count"))
    };
    for endpoint in ["download_first_byte", "download_whole"] {
        assert_eq!((count(endpoint, "memory"), count(endpoint, &first)), (10, 1), "{endpoint}: {rows:?}");
    }
    for row in &rows {
        let quantiles: Vec<f64> =
            ["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"].iter().map(|name| row[name].as_f64().expect("a number")).collect();
        assert!(quantiles.windows(2).all(|pair| pair[0] <= pair[1]), "{row}");
    }
    let metrics = gateway.admin("GET", "/metrics").await;
    assert!(metrics.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let text = metrics.text();
    assert!(text.contains("skygate_latency_seconds_count{endpoint=\"download_whole\",class=\"memory\"} 10"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().and_then(|number| number.parse::<f64>().ok());
        assert!(value.is_some(), "no Prometheus line: {line}");
    }
}

/// A joined read has the class of the read it joined: many at once for one cold file ask the hosts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_at_once_of_one_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let content = Content::file("one.bin", seeded_bytes(3, 3_000_000));
    let added = gateway.upload(&content).await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    let target = format!("/ipfs/{}", added.cid);
    let answers = futures::future::join_all((0..16).map(|_| gateway.get(&target))).await;
    for answer in &answers {
        assert_eq!((answer.status, answer.body.len()), (200, 3_000_000));
        assert!(matches!(class_of(answer).as_str(), "hosts" | "cold" | "mixed" | "memory"));
    }
    assert!(answers.iter().any(|answer| matches!(class_of(answer).as_str(), "hosts" | "cold")));
}
