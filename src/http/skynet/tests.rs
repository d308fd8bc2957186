//! The portal's content over a real socket.

use crate::address::Skylink;
use crate::http::testing::{Memory, TestServer, start};

/// A site with an error page, and a single file.
async fn portal() -> (TestServer, Skylink, Skylink) {
    let mut memory = Memory::default();
    let site = memory.add_skyfile(
        "site",
        &[
            ("404.html", "text/html", b"<h1>not here</h1>"),
            ("dir/a b.txt", "", b"text of a"),
            ("dir/index.html", "text/html", b"<h1>dir</h1>"),
            ("index.html", "text/html", b"<h1>home</h1>"),
        ],
    );
    let single = memory.add_skyfile("note.txt", &[("note.txt", "text/plain", b"one file")]);
    (start(memory).await, site, single)
}

#[tokio::test]
async fn files_of_a_site() {
    let (server, site, single) = portal().await;
    for (path, status, body, kind) in [
        ("/", 200, "<h1>home</h1>", "text/html"),
        ("/index.html", 200, "<h1>home</h1>", "text/html"),
        ("/dir", 200, "<h1>dir</h1>", "text/html"),
        ("/dir/a%20b.txt", 200, "text of a", "text/plain; charset=utf-8"),
        ("/nothing.html", 404, "<h1>not here</h1>", "text/html"),
    ] {
        for _ in 0..2 {
            let answer = server.get(&format!("/{site}{path}"), &[]).await;
            assert_eq!(
                (answer.status, answer.text().as_str(), answer.header("content-type")),
                (status, body, Some(kind)),
                "{path}"
            );
            assert_eq!(answer.header("skynet-skylink").map(str::to_owned), Some(site.to_string()));
            assert_eq!(answer.header("skynet-portal-api").map(str::to_owned), Some(format!("http://{}", server.public)));
            assert!(answer.header("cache-status").is_some());
        }
    }
    let named = server.get(&format!("/{site}/dir/a%20b.txt"), &[]).await;
    assert_eq!(named.header("content-disposition"), Some("inline; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"));
    let one = server.get(&format!("/{single}"), &[]).await;
    assert_eq!((one.status, one.text().as_str()), (200, "one file"));
    let base32 = server.get(&format!("/{}/note.txt", single.base32()), &[]).await;
    assert_eq!((base32.status, base32.text().as_str()), (200, "one file"));
    let attached = server.get(&format!("/{single}?attachment=true"), &[]).await;
    assert!(attached.header("content-disposition").is_some_and(|value| value.starts_with("attachment; filename=\"note.txt\"")));
    assert!(attached.header("cache-control").is_none());
}

#[tokio::test]
async fn the_root_of_a_site_wants_its_slash() {
    let (server, site, _) = portal().await;
    let redirect = server.get(&format!("/{site}?x=1"), &[]).await;
    assert_eq!((redirect.status, redirect.header("location")), (308, Some(format!("{site}/?x=1").as_str())));
    for (method, query, status) in [("HEAD", "", 200), ("GET", "?attachment=true", 200), ("GET", "", 308)] {
        assert_eq!(server.ask(method, &format!("/{site}{query}"), &[]).await.status, status, "{method} {query}");
    }
}

#[tokio::test]
async fn conditions_and_ranges() {
    let (server, _, single) = portal().await;
    let target = format!("/{single}");
    let whole = server.get(&target, &[]).await;
    let etag = whole.header("etag").expect("etag").to_owned();
    assert_eq!(etag.len(), 66);
    assert_eq!(server.get(&target, &[&format!("If-None-Match: {etag}")]).await.status, 304);
    for (query, headers, status, body) in [
        ("", &["Range: bytes=4-7"][..], 206, "file"),
        ("?start=4&end=7", &[][..], 206, "file"),
        ("?start=4", &[][..], 400, ""),
        ("?start=4&end=x", &[][..], 400, ""),
        ("?start=4&end=7", &["Range: bytes=0-1"][..], 400, ""),
        ("?timeout=0", &[][..], 400, ""),
        ("?timeout=901", &[][..], 400, ""),
        ("?timeout=900", &[][..], 200, "one file"),
        ("?format=rar", &[][..], 400, ""),
        ("?format=ZIP", &[][..], 501, ""),
    ] {
        let answer = server.get(&format!("{target}{query}"), headers).await;
        assert_eq!(answer.status, status, "{query} {headers:?}: {}", answer.text());
        if status < 300 {
            assert_eq!(answer.text(), body, "{query}");
        } else {
            assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"), "{query}");
            assert!(answer.text().starts_with("{\"message\":\"") && answer.text().ends_with("\"}\n"), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn links_that_are_not_here() {
    let (server, site, _) = portal().await;
    let other = Skylink::v1(0, 4096, [7; 32]).expect("a skylink");
    let resolver = Skylink::v2([7; 32]);
    for (target, status) in [
        (format!("/{other}"), 404),
        (format!("/{resolver}"), 400),
        (format!("/{}", "_".repeat(46)), 400),
        (format!("/{site}/%00"), 400),
        (format!("/{site}/dir/"), 200),
    ] {
        let answer = server.get(&target, &[]).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
    }
}

#[tokio::test]
async fn what_clients_look_for() {
    let (server, site, _) = portal().await;
    let head = server.ask("HEAD", "/", &["Origin: https://app.example"]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("skynet-portal-api").map(str::to_owned), Some(format!("http://{}", server.public)));
    assert_eq!(head.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(head.header("access-control-allow-credentials"), Some("true"));
    let landing = server.get("/", &[]).await;
    assert!(landing.text().contains("skygate add"));
    let preflight = server.ask("OPTIONS", &format!("/{site}"), &["Origin: https://app.example"]).await;
    assert_eq!((preflight.status, preflight.header("access-control-max-age")), (204, Some("1728000")));
    assert!(preflight.header("access-control-allow-headers").is_some_and(|list| list.contains("Skynet-API-Key")));
    assert_eq!(server.ask("POST", "/favicon.ico", &[]).await.status, 405);
}
