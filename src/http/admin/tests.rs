//! The admin listener over a real socket: who gets in, and what they see.

use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::address::{SitePath, parse_cid};
use crate::http::testing::{ABSENT, KEY, Memory, read_answer, send, start};
use crate::names::{Pointee, Resolved};

const ROUTES: [(&str, &str); 14] = [
    ("GET", "/metrics"),
    ("GET", "/api/v1/status"),
    ("GET", "/api/v1/latency"),
    ("GET", "/api/v1/hosts"),
    ("GET", "/api/v1/pins"),
    ("DELETE", "/api/v1/pins/x"),
    ("POST", "/api/v1/add"),
    ("POST", "/api/v1/import"),
    ("GET", "/api/v1/tree"),
    ("POST", "/api/v1/verify"),
    ("POST", "/api/v1/login-link"),
    ("GET", "/api/v1/names"),
    ("PUT", "/api/v1/names/x"),
    ("GET", "/api/v1/names/x/resolve"),
];

#[tokio::test]
async fn everything_but_health_needs_the_key() {
    let server = start(Memory::default()).await;
    for (method, route) in ROUTES.into_iter().chain([("GET", "/"), ("GET", "/no/such/route")]) {
        for header in [
            "",
            "Authorization: Bearer wrong",
            "Authorization: Basic Zm9v",
            "Skynet-Api-Key: wrong",
            "Cookie: skygate_session=wrong",
        ] {
            let answer = server.admin_bare(method, route, &[header]).await;
            assert_eq!(answer.status, 401, "{method} {route} {header}");
            assert_eq!(answer.header("access-control-allow-origin"), None);
            assert_eq!(answer.header("x-frame-options"), Some("DENY"));
        }
    }
    let open = server.admin_bare("GET", "/health", &[]).await;
    assert_eq!((open.status, open.text().as_str()), (200, "ok\n"));
    *server.desk.starting.lock().expect("lock") = true;
    let starting = server.admin_bare("GET", "/health", &[]).await;
    assert_eq!((starting.status, starting.text().as_str()), (503, "starting\n"));
    let by_skynet_header = server.admin_bare("GET", "/api/v1/hosts", &[&format!("Skynet-Api-Key: {KEY}")]).await;
    assert_eq!(by_skynet_header.status, 200);
}

/// A web page in a browser on this machine: it may find the port, but neither Host nor Origin nor the browser's own
/// words are in its power. Even a stolen key does not help it.
#[tokio::test]
async fn web_pages_are_kept_out() {
    let server = start(Memory::default()).await;
    let own = format!("Origin: http://{}", server.admin);
    let public = format!("Origin: http://{}", server.public);
    let (own, public) = (own.as_str(), public.as_str());
    for (headers, status) in [
        (&["Host: evil.example"][..], 403),
        (&["Host: 127.0.0.1.evil.example"][..], 403),
        (&["Host: site.localhost"][..], 403),
        (&["Host:"][..], 400),
        (&["Origin: https://evil.example"][..], 403),
        (&["Origin: null"][..], 403),
        (&[public][..], 403),
        (&["Sec-Fetch-Site: cross-site"][..], 403),
        (&["Sec-Fetch-Site: same-site"][..], 403),
        (&["Sec-Fetch-Site: same-origin"][..], 200),
        (&["Sec-Fetch-Site: none"][..], 200),
        (&[own][..], 200),
        (&["Host: localhost:8081"][..], 200),
        (&["Host: admin.example"][..], 200),
        (&["Host: admin.example:8081", "Origin: http://admin.example:8081"][..], 200),
    ] {
        let answer = server.admin("GET", "/api/v1/hosts", headers, b"").await;
        assert!(answer.status == status || (status == 400 && answer.status == 403), "{headers:?}: {}", answer.status);
    }
    let health = server.admin_bare("GET", "/health", &["Host: evil.example"]).await;
    assert_eq!(health.status, 403, "not even this");
    let preflight =
        server.admin_bare("OPTIONS", "/api/v1/add", &["Origin: https://evil.example", "Access-Control-Request-Method: POST"]).await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (403, None));
}

#[tokio::test]
async fn a_login_link_opens_the_page_once() {
    let server = start(Memory::default()).await;
    let link = server.admin("POST", "/api/v1/login-link", &[], b"").await.text();
    let token = link.split("login=").nth(1).and_then(|rest| rest.split('"').next()).expect("a token").to_owned();
    let target = format!("/?login={token}");
    let entered = server.admin_bare("GET", &target, &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"]).await;
    assert_eq!((entered.status, entered.header("location")), (303, Some("/")));
    assert_eq!(entered.header("referrer-policy"), Some("no-referrer"));
    let set = entered.header("set-cookie").expect("a cookie").to_owned();
    assert!(set.contains("; HttpOnly; SameSite=Strict"), "{set}");
    let again = server.admin_bare("GET", &target, &[]).await;
    assert_eq!(again.status, 403, "the link is spent");

    let cookie = format!("Cookie: other=1; {}", set.split(';').next().expect("name and value"));
    let cookie = cookie.as_str();
    let page = server.admin_bare("GET", "/", &[cookie]).await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("it &lt;lies&gt;"), "{}", page.text());
    assert!(page.text().contains("no &lt;marker&gt;") && page.text().contains("pin 0"), "{}", page.text());
    assert_eq!(server.admin_bare("GET", "/api/v1/status", &[cookie]).await.status, 200);

    let own = format!("Origin: http://{}", server.admin);
    let unpin = format!("/api/v1/pins/{ABSENT}");
    assert_eq!(server.admin_bare("DELETE", &unpin, &[cookie]).await.status, 403, "no origin, no write by cookie");
    assert_eq!(server.admin_bare("DELETE", &unpin, &[cookie, &own]).await.status, 200);
    assert_eq!(server.admin_bare("DELETE", &unpin, &[cookie, "Origin: https://evil.example"]).await.status, 403);
}

#[tokio::test]
async fn what_an_operator_sees() {
    let server = start(Memory::default()).await;
    let json = async |target: &str| -> serde_json::Value {
        let answer = server.admin("GET", target, &[], b"").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{target}");
        serde_json::from_slice(&answer.body).expect("JSON")
    };
    assert_eq!(json("/api/v1/status").await["readiness"], "ok");
    assert_eq!(json("/api/v1/hosts").await["hosts"][0]["wrong_pieces"], 1);
    let first = json("/api/v1/pins").await;
    assert_eq!((first["pins"].as_array().map(Vec::len), first["next"].as_u64()), (Some(100), Some(100)));
    let last = json("/api/v1/pins?from=200&limit=1000").await;
    assert_eq!((last["pins"].as_array().map(Vec::len), last["next"].as_u64()), (Some(50), None));
    assert_eq!(server.admin("GET", "/api/v1/pins?from=x", &[], b"").await.status, 400);
    server.get(&format!("/ipfs/{ABSENT}"), &[]).await;
    server.get("/ipfs/bafkqaaa", &[]).await;
    assert_eq!(json("/api/v1/latency").await["latency"][0]["endpoint"], "download_first_byte");
    let metrics = server.admin("GET", "/metrics", &[], b"").await;
    assert!(metrics.text().contains("skygate_latency_seconds") && metrics.text().ends_with("skygate_pins 1\n"));
    for (target, status) in [(ABSENT, 200), ("bafkqaaa", 404), ("nonsense", 400)] {
        assert_eq!(server.admin("DELETE", &format!("/api/v1/pins/{target}"), &[], b"").await.status, status, "{target}");
    }
}

#[tokio::test]
async fn names() {
    let key = "k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w";
    let mut memory = Memory::default();
    let pointee = Pointee::Ipfs { root: parse_cid(ABSENT).expect("a CID"), path: SitePath::parse("/a b").expect("a path") };
    let resolved = Resolved { pointee, names: Vec::new(), ttl: Some(Duration::from_secs(60)), found_at: SystemTime::UNIX_EPOCH };
    memory.names.insert("site.example".to_owned(), resolved);
    let server = start(memory).await;
    let long = vec![1; 10 * 1024 + 1];
    let rows: [(&str, String, &[u8], u16, &str); 7] = [
        ("PUT", key.to_owned(), b"record", 200, "{\"name\":\"k51"),
        ("PUT", key.to_owned(), b"", 400, "it is empty"),
        ("PUT", key.to_owned(), &long, 400, "longer"),
        ("PUT", "nobody".to_owned(), b"record", 400, "no name"),
        ("GET", "site.example/resolve".to_owned(), b"", 200, &format!("\"path\":\"/ipfs/{ABSENT}/a%20b\"")),
        ("GET", "absent.example/resolve".to_owned(), b"", 500, "no record"),
        ("GET", "site.example".to_owned(), b"", 405, ""),
    ];
    for (method, target, body, status, expect) in rows {
        let answer = server.admin(method, &format!("/api/v1/names/{target}"), &[], body).await;
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
        assert!(answer.text().contains(expect), "{method} {target}: {}", answer.text());
    }
    let list = server.admin("GET", "/api/v1/names", &[], b"").await.text();
    assert!(list.contains("\"complete\":true") && list.contains("\"name\":\"site.example\""), "{list}");
}

#[tokio::test]
async fn adding() {
    let server = start(Memory::default()).await;
    let kind = "Content-Type: application/vnd.skygate.add";
    let long = format!("Idempotency-Key: {}", "k".repeat(129));
    for (headers, status) in [
        (&[kind][..], 200),
        (&[kind, "Idempotency-Key: one"][..], 200),
        (&[][..], 400),
        (&["Content-Type: text/plain"][..], 400),
        (&[kind, &long][..], 400),
    ] {
        let answer = server.admin("POST", "/api/v1/add", headers, b"the stream").await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
        if status == 200 {
            let json: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!(
                (json["cid"].as_str(), json["durability"].as_str(), json["size_bytes"].as_u64()),
                (Some(ABSENT), Some("acknowledged"), Some(10))
            );
        }
    }
    let uploads = server.desk.uploads.lock().expect("lock");
    assert_eq!(*uploads, [(None, b"the stream".to_vec()), (Some("one".to_owned()), b"the stream".to_vec())]);
}

#[tokio::test]
async fn everything_is_read_on_request() {
    let server = start(Memory::default()).await;
    for (query, status, lines) in [
        (String::new(), 200, 1001),
        (format!("?address={ABSENT}"), 200, 2),
        (format!("?address=/ipfs/{ABSENT}/a/b"), 200, 2),
        ("?address=bafkqaaa".to_owned(), 404, 0),
        ("?address=nonsense".to_owned(), 400, 0),
    ] {
        let answer = server.admin("POST", &format!("/api/v1/verify{query}"), &[], b"").await;
        assert_eq!(answer.status, status, "{query}: {}", answer.text());
        if status == 200 {
            assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
            let text = answer.text();
            let last: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
            assert_eq!((text.lines().count(), last["event"].as_str()), (lines, Some("end")), "{query}");
        }
    }
    assert_eq!(server.admin("GET", "/api/v1/verify", &[], b"").await.status, 405, "it is work");
}

#[tokio::test]
async fn the_public_listener_has_no_admin_routes() {
    let server = start(Memory::default()).await;
    let key = format!("Authorization: Bearer {KEY}");
    for (method, route) in ROUTES.into_iter().chain([("GET", "/health")]) {
        let answer = send(server.public, method, route, &[&key], b"").await;
        assert!(matches!(answer.status, 404 | 405), "{method} {route}: {}", answer.status);
    }
}

/// An upload that has begun ends in its reply, though the shutdown came in between; then the server stops.
#[tokio::test]
async fn a_shutdown_waits_for_uploads() {
    let server = start(Memory::default()).await;
    let mut client = TcpStream::connect(server.admin).await.expect("connects");
    let head = format!(
        "POST /api/v1/add HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/vnd.skygate.add\r\n\
         Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
        server.admin
    );
    client.write_all(head.as_bytes()).await.expect("writes");
    let mut go_on = [0; 25];
    client.read_exact(&mut go_on).await.expect("the handler reads the body");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    server.shutdown.cancel();
    client.write_all(b"the stream").await.expect("writes");
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.expect("reads");
    assert_eq!(read_answer(&bytes, "POST", false).status, 200);
    server.ended.await.expect("the server ends");
    assert!(TcpStream::connect(server.admin).await.is_err());
}
