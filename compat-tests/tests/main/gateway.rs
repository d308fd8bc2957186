//! The path gateway, as far as it is no table of single requests (`expectations.txt`): methods, forms of CIDs, limits, large
//! folders, clients that go away.

use compat_tests::content::{Added, Content, Item};
use compat_tests::wire;
use compat_tests::{Gateway, seeded_bytes};

use crate::expectations::head_equals_get;

const HELLO: &[u8] = b"hello from a file with 34 bytes..\n";
/// An empty file that is its own CID: the probe of clients.
const IDENTITY: &str = "bafkqaaa";

/// A gateway with a small folder.
struct Site {
    gateway: Gateway,
    root: String,
    _folder: tempfile::TempDir,
}

impl Site {
    async fn start() -> Site {
        let folder = tempfile::tempdir().expect("a folder");
        let gateway = Gateway::start(folder.path());
        gateway.catalog_complete().await;
        let content = Content::files_of("site", &[("data", b"{\"a\": 1}"), ("hello.txt", HELLO)]);
        let added: Added = gateway.upload(&content).await;
        Site { gateway, root: added.cid, _folder: folder }
    }
}

#[tokio::test]
async fn methods_and_cors() {
    let site = Site::start().await;
    let target = format!("/ipfs/{}/", site.root);
    for method in ["POST", "PUT", "DELETE", "PATCH", "PROPFIND"] {
        let refused = site.gateway.ask(method, &target, &["Content-Length: 0"]).await;
        let allow = refused.header("allow").unwrap_or_default();
        assert_eq!(refused.status, 405, "{method}");
        assert!(["GET", "HEAD", "OPTIONS"].iter().all(|word| allow.contains(word)), "{allow}");
    }
    let lists = [
        ("access-control-allow-origin", vec!["*"]),
        ("access-control-allow-methods", vec!["GET", "HEAD", "OPTIONS"]),
        ("access-control-allow-headers", vec!["Content-Type", "Range", "User-Agent", "X-Requested-With"]),
        (
            "access-control-expose-headers",
            vec!["Content-Range", "Content-Length", "X-Ipfs-Path", "X-Ipfs-Roots", "X-Chunked-Output", "X-Stream-Output"],
        ),
    ];
    let missing = format!("/ipfs/{}/nothing", site.root);
    for (method, target, status) in
        [("GET", &target, 200), ("OPTIONS", &target, 200), ("HEAD", &target, 200), ("GET", &missing, 404)]
    {
        let answer = site.gateway.ask(method, target, &["Origin: https://app.example"]).await;
        assert_eq!(answer.status, status, "{method} {target}");
        for (name, words) in &lists {
            let value = answer.header(name).unwrap_or_default();
            assert!(words.iter().all(|word| value.contains(word)), "{method} {target}: {name}: {value}");
        }
        assert_eq!(answer.header("access-control-allow-credentials"), None, "{method}: design 10");
    }
}

/// Every form of one CID is the same content; an Etag names the CID as it is stored under.
#[tokio::test]
async fn forms_of_a_cid() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let answer = gateway.upload_bytes(&Content::file("hello", b"hello world".to_vec()).stream_of("unixfs-v0-2015"), &[]).await;
    assert_eq!(answer.json()["cid"], "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD");
    for cid in [
        "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
        // The same multihash as CIDv1 dag-pb in base32, upper and lower case, and base16.
        "bafybeihykld7uyxzogax6vgyvag42y7464eywpf55gxi5qpoisibh3c5wa",
        "BAFYBEIHYKLD7UYXZOGAX6VGYVAG42Y7464EYWPF55GXI5QPOISIBH3C5WA",
        "f01701220f852c7fa62f971817f54d8a80dcd63fcf7098b3cbde9ae8ec1ee449013ec5db0",
    ] {
        let answer = gateway.get(&format!("/ipfs/{cid}")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello world"), "{cid}");
        assert_eq!(answer.header("x-ipfs-path"), Some(format!("/ipfs/{cid}")), "as asked");
    }
    // Bytes that stand in the address itself; above 128 of them it is refused (IPIP-0512).
    let inline = gateway.get("/ipfs/bafkqaddjnzwgs3tfebrhs5dfom").await;
    assert_eq!((inline.status, inline.text().as_str()), (200, "inline bytes"));
    let long = concat!(
        "/ipfs/bafkqbaibpb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4",
        "hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6dypb4hq6d",
        "ypb4hq6dypb4hq6a"
    );
    assert_eq!(gateway.get(long).await.status, 400);
    let empty = gateway.get(&format!("/ipfs/{IDENTITY}")).await;
    assert_eq!((empty.status, empty.body.len()), (200, 0));
}

/// Blocks that attack readers: only a malicious DAG has them, and here only its bytes as files. What cannot come in by
/// `add` cannot be served; what is left is that paths and heads are bounded.
#[tokio::test]
async fn limits_of_a_request() {
    let site = Site::start().await;
    let gateway = &site.gateway;
    let root = &site.root;
    let deep = "/a".repeat(257);
    let long = "a".repeat(8200);
    for (what, target, statuses) in [
        ("depth", format!("/ipfs/{root}{deep}"), &[400, 414][..]),
        ("length", format!("/ipfs/{root}/{long}"), &[400, 414, 431][..]),
        ("slashes", format!("/ipfs/{root}{}", "/".repeat(5000)), &[200, 301, 400][..]),
        ("a query of many parameters", format!("/ipfs/{root}/data?{}", "a=b&".repeat(2000)), &[200, 400, 414][..]),
    ] {
        let answer = gateway.get(&target).await;
        assert!(statuses.contains(&answer.status), "{what}: {}", answer.status);
    }
    let many = "X-Many: 1\r\n".repeat(200);
    for (what, request) in [
        ("headers", format!("GET /ipfs/{root}/ HTTP/1.1\r\nHost: x\r\n{many}\r\n")),
        ("a long header", format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(100_000))),
        ("no HTTP", "hello\r\n\r\n".to_owned()),
        ("two lengths", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned()),
        ("a control character", "GET /\u{1} HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
    ] {
        // Cut off without a word is an answer, too.
        if let Ok(answer) = wire::try_exchange(&gateway.public, request.as_bytes(), "GET").await {
            assert!(matches!(answer.status, 400 | 414 | 431), "{what}: {}", answer.status);
        }
        assert_eq!(gateway.get("/ipfs/bafkqaaa").await.status, 200, "{what}: it goes on");
    }
}

/// A listing of a sharded folder comes as a stream and names every entry once.
#[tokio::test]
async fn a_sharded_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let items = (0..5000).map(|i| (format!("file-{i:05}.txt"), Item::File(format!("{i}\n").into_bytes())));
    let content = Content::folder("many", items.collect::<Vec<_>>());
    let answer = gateway.upload_bytes(&content.stream(), &[]).await;
    assert_eq!(
        answer.json()["cid"],
        "bafybeifs7xihs7wlr5qlt5l3jpgck6xjsvyqcmqpp5q2ngg7jmzruqbvta",
        "dir-5000 of the vectors: {}",
        answer.text()
    );
    let root = answer.json()["cid"].as_str().expect("a CID").to_owned();
    let listing = gateway.get(&format!("/ipfs/{root}/")).await;
    assert_eq!((listing.status, listing.whole), (200, true));
    let text = listing.text();
    assert_eq!(text.matches("class=\"ipfs-hash\"").count(), 5000);
    for index in [0, 1234, 4999] {
        assert_eq!(text.matches(&format!(">file-{index:05}.txt</a>")).count(), 1);
        let file = gateway.get(&format!("/ipfs/{root}/file-{index:05}.txt")).await;
        assert_eq!((file.status, file.text()), (200, format!("{index}\n")));
        assert_eq!(file.header("x-ipfs-roots").map(|roots| roots.split(',').count()), Some(2), "shards are no steps");
    }
    assert_eq!(gateway.get(&format!("/ipfs/{root}/file-05000.txt")).await.status, 404);
    let head = gateway.ask("HEAD", &format!("/ipfs/{root}/"), &[]).await;
    assert_eq!(head_equals_get(&head, &listing), Vec::<String>::new());
}

/// A client that goes away stops the work behind its reply: the gateway does not read the rest from the hosts.
#[tokio::test]
async fn a_client_that_goes_away() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(folder.path(), &compat_tests::Options::config("[store]\nmemory_bytes = 0\n"));
    let content = Content::file("large.bin", seeded_bytes(9, 96 << 20));
    let added = gateway.upload(&content).await;
    for _ in 0..20 {
        let mut socket = wire::connect(&gateway.public).await.expect("connects");
        let request = format!("GET /ipfs/{} HTTP/1.1\r\nHost: x\r\n\r\n", added.cid);
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut some = vec![0; 64 << 10];
        socket.read_exact(&mut some).await.expect("the reply has begun");
    }
    compat_tests::until("no host is being asked any more", std::time::Duration::from_secs(10), async || {
        let hosts = gateway.admin_json("/api/v1/hosts").await;
        let asked: u64 = hosts["hosts"].as_array().expect("a list").iter().filter_map(|host| host["in_flight"].as_u64()).sum();
        if asked == 0 { Ok(()) } else { Err(format!("{asked} requests in flight")) }
    })
    .await;
    content.assert_read_back(&gateway, &added).await;
}
