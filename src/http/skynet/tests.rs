//! The portal's content over a real socket.

use std::time::{Duration, SystemTime};

use crate::address::Skylink;
use crate::http::testing::{Memory, TestServer, start};
use crate::names::testing::sign_entry;
use crate::names::{Pointee, Resolved};

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
        ("?format=concat", &[][..], 200, "one file"),
        ("?format=concat", &["Range: bytes=4-7"][..], 206, "file"),
        ("?include-layout=perhaps", &[][..], 400, ""),
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

/// Archives as their readers see them are in the black-box tests; here their heads.
#[tokio::test]
async fn archives() {
    let (server, site, single) = portal().await;
    let zip = server.get(&format!("/{site}/?format=ZIP"), &[]).await;
    assert_eq!((zip.status, zip.header("content-type")), (200, Some("application/zip")));
    assert!(zip.header("content-disposition").is_some_and(|value| value.starts_with("attachment; filename=\"site.zip\"")));
    assert_eq!(zip.header("content-length").map(str::to_owned), Some(zip.body.len().to_string()));
    assert_eq!(zip.header("accept-ranges"), Some("none"));
    assert!(zip.body.starts_with(b"PK\x03\x04") && zip.header("skynet-skylink").is_some());
    let etag = zip.header("etag").expect("an etag").to_owned();
    assert_eq!(server.get(&format!("/{site}/?format=zip"), &[&format!("If-None-Match: {etag}")]).await.status, 304);
    for (path, name, status) in [
        ("/?format=tar", "site.tar", 200),
        ("/?format=targz", "site.tar.gz", 200),
        ("/dir?format=tar", "dir.tar", 200),
        ("/dir/?format=zip", "dir.zip", 200),
        ("/index.html?format=zip", "index.html.zip", 200),
    ] {
        let target = format!("/{site}{path}");
        let (head, get) = (server.ask("HEAD", &target, &[]).await, server.get(&target, &[]).await);
        assert_eq!((head.status, get.status, head.body.len()), (status, status, 0), "{path}");
        let disposition = format!("attachment; filename=\"{name}\"");
        assert!(get.header("content-disposition").is_some_and(|value| value.starts_with(&disposition)), "{path}");
        for header in ["content-type", "content-disposition", "content-length", "etag"] {
            assert_eq!(head.header(header), get.header(header), "{path}: {header}");
        }
        assert!(!get.broken && !get.body.is_empty(), "{path}");
    }
    let tar = server.get(&format!("/{single}?format=tar"), &[]).await;
    assert_eq!((&tar.body[..8], &tar.body[512..520], tar.body.len()), (&b"note.txt"[..], &b"one file"[..], 2048));
    // What is a page of the site's own without a format is nothing with one: 404.html answers.
    assert_eq!(server.get(&format!("/{site}/nothing?format=tar"), &[]).await.status, 404);
    let attached = server.get(&format!("/file/{site}/dir/a%20b.txt"), &[]).await;
    assert_eq!((attached.status, attached.text().as_str()), (200, "text of a"));
    assert!(attached.header("content-disposition").is_some_and(|value| value.starts_with("attachment; ")));
    // No redirect: nothing is shown.
    assert_eq!(server.get(&format!("/file/{site}"), &[]).await.status, 200);
    assert_eq!(server.ask("POST", &format!("/file/{site}"), &[]).await.status, 405);
    assert_eq!(server.get("/file/nothing", &[]).await.status, 404);
    let layout = server.get(&format!("/{single}?include-layout=true"), &[]).await;
    assert_eq!(layout.header("skynet-file-layout").map(str::len), Some(198));
}

/// A site with rules of its own.
fn ruled_site(memory: &mut Memory) -> Skylink {
    memory.add_skyfile(
        "app",
        &[
            ("404.html", "text/html", b"<h1>not here</h1>"),
            ("_redirects", "", b"/old/* /new/:splat 302\n/gone /410.html 410\n/app/* /index.html 200\n/lost /nowhere.html 200\n"),
            ("410.html", "text/html", b"<h1>gone</h1>"),
            ("app/real.txt", "text/plain", b"real"),
            ("index.html", "text/html", b"<h1>app</h1>"),
            ("sub/_redirects", "", b"/* /page.html 200\n"),
            ("sub/page.html", "text/html", b"<h1>sub</h1>"),
        ],
    )
}

#[tokio::test]
async fn hosts_of_skylinks_and_their_redirects() {
    let mut memory = Memory::default();
    let site = ruled_site(&mut memory);
    for (name, path_text) in [("site.example", ""), ("sub.example", "/sub/")] {
        let pointee = Pointee::Skylink { link: site, path_text: path_text.to_owned() };
        let resolved = Resolved { pointee, names: Vec::new(), ttl: Some(Duration::from_secs(90)), found_at: SystemTime::now() };
        memory.names.insert(name.to_owned(), resolved);
    }
    let server = start(memory).await;
    let own = format!("{}.localhost:80", site.base32());
    let rows: [(&str, &str, u16, &str); 19] = [
        (&own, "/", 200, "<h1>app</h1>"),
        (&own.to_ascii_uppercase(), "/", 200, "<h1>app</h1>"),
        (&own, "/app/real.txt", 200, "real"),
        (&own, "/app/deep/link", 200, "<h1>app</h1>"),
        (&own, "/old/a%20b?x=1", 302, "/new/a%20b?x=1\n"),
        (&own, "/gone", 410, "<h1>gone</h1>"),
        (&own, "/else", 404, "<h1>not here</h1>"),
        (&own, "/lost", 404, ""),
        // The portal's own paths are the site's here.
        (&own, "/skynet/stats", 404, "<h1>not here</h1>"),
        (&own, &format!("/{site}/"), 404, "<h1>not here</h1>"),
        (&own, "/ipfs/bafkqaaa", 404, "<h1>not here</h1>"),
        ("site.example", "/app/x", 200, "<h1>app</h1>"),
        ("site.example", "/old/x", 302, "/new/x\n"),
        ("sub.example", "/page.html", 200, "<h1>sub</h1>"),
        ("sub.example", "/no/such", 200, "<h1>sub</h1>"),
        // Paths of a shared host have no rules.
        ("127.0.0.1", &format!("/{site}/app/deep"), 404, "<h1>not here</h1>"),
        ("127.0.0.1", "/ipns/site.example/app/deep", 404, "<h1>not here</h1>"),
        ("127.0.0.1", "/ipns/sub.example/page.html", 200, "<h1>sub</h1>"),
        ("sub.example.ipns.localhost", "/no/such", 200, "<h1>sub</h1>"),
    ];
    for (host, path, status, body) in rows {
        for _ in 0..2 {
            let answer = server.get(path, &[&format!("Host: {host}")]).await;
            assert_eq!(answer.status, status, "{host} {path}: {}", answer.text());
            assert!(body.is_empty() || answer.text() == body, "{host} {path}: {}", answer.text());
            if host.ends_with("example") && status < 400 {
                assert_eq!(answer.header("cache-control"), Some("public, max-age=90"), "{host} {path}");
            }
        }
    }
    let ask = async |method: &str, host: &str, path: &str| server.ask(method, path, &[&format!("Host: {host}")]).await;
    // The API of the portal is told by the portal's name.
    let answer = ask("GET", &own, "/").await;
    assert_eq!(answer.header("skynet-portal-api"), Some("http://localhost:80"));
    assert_eq!(ask("POST", &own, "/skynet/skyfile").await.status, 405);
    // The last character's spare bits make another spelling, and no other origin.
    let odd = format!("{}1.localhost", &site.base32()[..54]);
    let moved = ask("GET", &odd, "/app/x?y").await;
    let usual = format!("http://{}.localhost/app/x?y", site.base32());
    assert_eq!((moved.status, moved.header("location")), (301, Some(usual.as_str())), "{}", moved.text());
    for (host, status) in [
        (format!("{}.localhost", "v".repeat(55)), 400),
        (format!("{}.localhost", site), 404),
        (format!("{}.example.org", site.base32()), 404),
        (format!("a.{}.localhost", site.base32()), 404),
    ] {
        // Not `/`, which is the landing page of any host.
        assert_eq!(ask("GET", &host, "/index.html").await.status, status, "{host}");
    }
    // Only the folder's own address wants a slash, wherever it stands.
    let redirect = ask("GET", "127.0.0.1", "/ipns/site.example").await;
    assert_eq!((redirect.status, redirect.header("location")), (308, Some("site.example/")));
    for format in ["car", "raw"] {
        let answer = ask("GET", "site.example", &format!("/index.html?format={format}")).await;
        assert_eq!(answer.status, 406, "{format}");
    }
    let accepted = server.get("/index.html", &["Host: site.example", "Accept: application/json, */*"]).await;
    assert_eq!(accepted.status, 200, "an Accept names what may be, not what must");
}

#[tokio::test]
async fn links_that_are_not_here() {
    let (server, site, _) = portal().await;
    let other = Skylink::v1(0, 4096, [7; 32]).expect("a skylink");
    for (target, status) in [
        (format!("/{other}"), 404),
        (format!("/{}", "_".repeat(46)), 400),
        (format!("/{site}/%00"), 400),
        (format!("/{site}/dir/"), 200),
    ] {
        let answer = server.get(&target, &[]).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
    }
}

/// Registry entries that hold skylinks (`skynet.md` 5).
#[tokio::test]
async fn version_2_skylinks() {
    let mut memory = Memory::default();
    let (one, two) = (memory.add_skyfile("a", &[("a", "", b"one")]), memory.add_skyfile("b", &[("b", "", b"two")]));
    let blocked = memory.add_skyfile("c", &[("c", "", b"blocked")]);
    let blocked_entry = sign_entry(1, [66; 32], &one.to_bytes(), 1);
    let hashes = [blocked.blocklist_hash(), blocked_entry.entry.id().skylink().blocklist_hash()];
    memory.denied.add_skynet_blocklist("test", &hashes).expect("a list");
    let server = start(memory).await;
    let mut revision = 0;
    let mut put = async |number: u8, data: &[u8]| {
        revision += 1;
        let signed = sign_entry(1, [number; 32], data, revision);
        let link = signed.entry.id().skylink();
        server.services.names.put_entry(signed).await.expect("kept");
        link
    };
    let link = put(1, &one.to_bytes()).await;
    let twice = put(2, &link.to_bytes()).await;
    let thrice = put(3, &twice.to_bytes()).await;
    let (deleted, empty) = (put(4, &[0; 34]).await, put(5, b"").await);
    let (short, bad) = (put(6, &one.to_bytes()[..33]).await, put(7, &[2; 34]).await);
    let (text, lost) = (put(8, one.to_string().as_bytes()).await, put(9, &Skylink::v2([7; 32]).to_bytes()).await);
    let (to_blocked, over_blocked) = (put(10, &blocked.to_bytes()).await, put(66, &one.to_bytes()).await);
    for (link, status, body) in [
        (one, 200, "one"),
        (link, 200, "one"),
        (twice, 200, "one"),
        (thrice, 500, "failed to fetch skylink: skylink is nested more times than is supported"),
        (deleted, 404, "failed to fetch skylink: the registry entry was deleted"),
        (empty, 500, "failed to fetch skylink: failed to resolve skylink: the registry entry is empty"),
        (short, 400, ""),
        (bad, 400, ""),
        (text, 400, ""),
        (lost, 404, "failed to fetch skylink: registry entry not found within given time"),
        (to_blocked, 451, ""),
        (over_blocked, 451, ""),
        (blocked, 451, ""),
    ] {
        for target in [
            format!("/{link}"),
            format!("/{}", link.base32()),
            format!("/skynet/metadata/{link}"),
            format!("/skynet/basesector/{link}"),
            format!("/skynet/trustless/basesector/{link}"),
            format!("/skynet/health/skylink/{link}"),
            format!("/file/{link}"),
        ] {
            let answer = server.get(&target, &[]).await;
            assert_eq!(answer.status, status, "{target}: {}", answer.text());
            if status == 200 {
                assert_eq!(answer.header("skynet-skylink"), Some(one.to_string().as_str()), "{target}");
                assert_eq!(answer.header("skynet-proof").is_some(), link != one, "{target}");
                assert_eq!(answer.header("cache-control"), (link != one).then_some("no-cache"), "{target}");
            } else if !body.is_empty() {
                assert_eq!(answer.text(), format!("{{\"message\":\"{body}\"}}\n"), "{target}");
            }
        }
    }
    let host = format!("Host: {}.localhost", twice.base32());
    let own = server.get("/", &[&host]).await;
    assert_eq!((own.status, own.text().as_str()), (200, "one"));
    let proof: serde_json::Value = serde_json::from_str(own.header("skynet-proof").expect("a proof")).expect("JSON");
    let held = |at: usize| proof[at]["data"].as_str().expect("hex").to_owned();
    assert_eq!(
        (proof.as_array().map(Vec::len), held(0), held(1)),
        (Some(2), hex::encode(link.to_bytes()), hex::encode(one.to_bytes()))
    );
    let resolved = server.get(&format!("/skynet/resolve/{twice}"), &[]).await;
    assert_eq!((resolved.status, resolved.text()), (200, format!("{{\"skylink\":\"{one}\"}}\n")));
    assert_eq!(server.get(&format!("/skynet/resolve/{one}"), &[]).await.status, 400);
    assert_eq!(server.get(&format!("/skynet/resolve/{deleted}"), &[]).await.status, 404);
    // The owner points it elsewhere: the next answer is another one.
    let before = server.get(&format!("/{link}"), &[]).await.header("etag").expect("an etag").to_owned();
    put(1, &two.to_bytes()).await;
    let after = server.get(&format!("/{link}"), &[&format!("If-None-Match: {before}")]).await;
    assert_eq!((after.status, after.text().as_str()), (200, "two"));
    assert_ne!(after.header("etag"), Some(before.as_str()));
}

#[tokio::test]
async fn what_clients_check_themselves() {
    let (server, site, single) = portal().await;
    let metadata = server.get(&format!("/skynet/metadata/{single}"), &[]).await;
    assert!(metadata.text().starts_with("{\"filename\":\"note.txt\",\"length\":8,\"subfiles\":"), "{}", metadata.text());
    let base = server.get(&format!("/skynet/basesector/{single}"), &[]).await;
    assert_eq!((base.status, base.body.len(), base.body[0]), (200, 4096, 1));
    let proved = server.get(&format!("/skynet/trustless/basesector/{single}"), &[]).await;
    assert_eq!((proved.status, proved.body.len()), (200, 4096 + 10 * 32));
    assert_eq!(proved.body[..4096], base.body);
    let root = hex::encode(single.hash());
    let rows: [(String, u16, &[u8]); 9] = [
        (format!("root={root}&offset=1&length=98"), 200, &base.body[1..99]),
        (format!("root={root}&offset=4194303&length=1"), 200, &[0]),
        (format!("root={root}&offset=4194303&length=2"), 400, &[]),
        (format!("root={root}&offset=0&length=0"), 400, &[]),
        (format!("root={root}&offset=4294967295&length=4294967295"), 400, &[]),
        (format!("root={root}&offset=-1&length=1"), 400, &[]),
        (format!("root={}&offset=0&length=1", "07".repeat(32)), 404, &[]),
        (format!("root={}&offset=0&length=1", &root[1..]), 400, &[]),
        ("offset=0&length=1".to_owned(), 400, &[]),
    ];
    for (query, status, body) in rows {
        let answer = server.get(&format!("/skynet/root?{query}"), &[]).await;
        assert_eq!(answer.status, status, "{query}: {}", answer.text());
        assert!(status != 200 || answer.body == body, "{query}");
    }
    let health = server.get(&format!("/skynet/health/skylink/{site}"), &[]).await;
    let expect = serde_json::json!({
        "basesectorredundancy": 4, "fanoutdatapieces": 6, "fanoutparitypieces": 3, "fanoutslabs": 2,
        "fanoutredundancy": [1.5, 7.0 / 6.0], "fanouteffectiveredundancy": 7.0 / 6.0,
    });
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&health.body).expect("JSON"), expect);
    for (method, target, status) in [
        ("GET", "/skynet/metadata/nonsense".to_owned(), 400),
        ("GET", "/skynet/metadata/".to_owned(), 400),
        ("GET", "/skynet/metadata".to_owned(), 404),
        ("GET", format!("/skynet/skylink/{single}"), 200),
        ("POST", format!("/skynet/metadata/{single}"), 405),
        ("HEAD", format!("/skynet/metadata/{single}"), 200),
        ("OPTIONS", format!("/skynet/metadata/{single}"), 204),
        ("GET", format!("/skynet/metadata/{single}?timeout=0"), 400),
        ("GET", format!("/skynet/filesystem/{single}"), 404),
    ] {
        assert_eq!(server.ask(method, &target, &[]).await.status, status, "{method} {target}");
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
    // What an address takes stands in Allow, and in the words (RFC 9110, 15.5.6).
    for (method, target, allow) in [
        ("PUT", "/skynet/registry", "GET, HEAD, POST, OPTIONS"),
        ("GET", "/skynet/registrymulti", "POST, OPTIONS"),
        ("GET", "/skynet/skyfile", "POST, OPTIONS"),
        ("GET", "/skynet/restore", "POST, OPTIONS"),
        ("POST", "/skynet/stats", "GET, HEAD, OPTIONS"),
        ("POST", "/skynet/health/entry", "GET, HEAD, OPTIONS"),
    ] {
        let answer = server.ask(method, target, &["Content-Length: 0"]).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {target}");
        assert!(answer.text().starts_with("{\"message\":\""), "{}", answer.text());
    }
    // Errors are JSON on every host of a portal, also where a name leads nowhere (`skynet.md` 5).
    let nowhere = server.ask("GET", "/page.html", &["Host: nobody.hns.localhost"]).await;
    assert_eq!((nowhere.status, nowhere.header("content-type")), (404, Some("application/json; charset=utf-8")));
    assert!(nowhere.header("access-control-allow-credentials").is_some(), "and a page may read them");
}
