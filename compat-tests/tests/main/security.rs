//! `design.md` 10: who may do what. A web page in a browser on this machine can find the ports; Host and Origin are
//! not in its power, nor is the key.

use compat_tests::content::Content;
use compat_tests::{Gateway, Options, wire};
use std::os::unix::fs::PermissionsExt;

/// Every route of the admin listener but `/health`.
const ROUTES: [(&str, &str); 10] = [
    ("GET", "/metrics"),
    ("GET", "/api/v1/status"),
    ("GET", "/api/v1/latency"),
    ("GET", "/api/v1/hosts"),
    ("GET", "/api/v1/pins"),
    ("DELETE", "/api/v1/pins/bafkqaaa"),
    ("POST", "/api/v1/add"),
    ("POST", "/api/v1/verify"),
    ("POST", "/api/v1/login-link"),
    ("GET", "/"),
];

#[tokio::test]
async fn the_admin_listener_wants_the_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let key = gateway.api_key();
    let almost = format!("Authorization: Bearer {}0", &key[..key.len() - 1]);
    let longer = format!("Authorization: Bearer {key}0");
    for (method, route) in ROUTES {
        for header in [
            "",
            "Authorization: Bearer",
            "Authorization: Bearer wrong",
            &almost,
            &longer,
            "Skynet-Api-Key: wrong",
            "Cookie: skygate_session=00",
            "Authorization: Basic Og==",
        ] {
            let answer = wire::ask(&gateway.admin, method, route, &[header, "Content-Length: 0"]).await;
            assert_eq!(answer.status, 401, "{method} {route} with {header:?}: {}", answer.text());
            assert!(!answer.text().contains(&key[..16]));
        }
    }
    for header in [gateway.key_header(), format!("Skynet-Api-Key: {key}"), format!("authorization: bearer {key}")] {
        assert_eq!(wire::ask(&gateway.admin, "GET", "/api/v1/hosts", &[&header]).await.status, 200, "{header}");
    }
    let health = wire::ask(&gateway.admin, "GET", "/health", &[]).await;
    assert!(matches!(health.status, 200 | 503), "health alone is open");
    // In a query a key would stand in logs and histories.
    assert_eq!(wire::ask(&gateway.admin, "GET", &format!("/api/v1/hosts?key={key}&token={key}"), &[]).await.status, 401);
}

#[tokio::test]
async fn a_web_page_cannot_read_or_write_admin() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let admin = gateway.admin.clone();
    let port = admin.rsplit(':').next().expect("a port").to_owned();
    let public_origin = format!("Origin: {}", gateway.public);
    let rebound = format!("Host: evil.example:{port}");
    let own_origin = format!("Origin: {admin}");
    let by_name = format!("Host: localhost:{port}");
    let key = gateway.key_header();
    // (what, headers, may come in). Even the key does not help a page.
    let rows: Vec<(&str, Vec<&str>, bool)> = vec![
        ("a rebound name", vec![&rebound], false),
        ("a rebound name without port", vec!["Host: evil.example"], false),
        ("a name that begins like an address", vec!["Host: 127.0.0.1.evil.example"], false),
        ("a name that ends like loopback", vec!["Host: evil-localhost"], false),
        ("a site's own name on this machine", vec!["Host: site.localhost"], false),
        ("a rebound name behind a proxy's header", vec![&rebound, "X-Forwarded-Host: localhost"], false),
        ("a rebound name with a Forwarded header", vec![&rebound, "Forwarded: host=localhost;for=127.0.0.1"], false),
        ("another origin", vec!["Origin: https://evil.example"], false),
        ("an origin of no site", vec!["Origin: null"], false),
        ("the content's own origin", vec![&public_origin], false),
        ("another origin, its own host", vec!["Origin: http://localhost:1", &by_name], false),
        ("another origin with a proxy's header", vec!["Origin: https://evil.example", "X-Forwarded-Host: evil.example"], false),
        ("a picture of another site", vec!["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], false),
        ("a picture of another port", vec!["Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"], false),
        (
            "a form of another site",
            vec!["Origin: https://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"],
            false,
        ),
        ("a program", vec![], true),
        ("a program by name", vec![&by_name], true),
        ("its own page", vec![&own_origin, "Sec-Fetch-Site: same-origin"], true),
    ];
    for (what, headers, may) in rows {
        let headers = [&headers[..], &[key.as_str()]].concat();
        for (method, route) in [("GET", "/api/v1/pins"), ("GET", "/metrics"), ("POST", "/api/v1/login-link")] {
            let answer = wire::ask(&admin, method, route, &[&headers[..], &["Content-Length: 0"]].concat()).await;
            assert_eq!(answer.status, if may { 200 } else { 403 }, "{what}: {method} {route}: {}", answer.text());
            assert_eq!(answer.header("access-control-allow-origin"), None, "{what}: pages of others read nothing");
        }
    }
    // What a browser asks before it sends a write across origins.
    let preflight =
        ["Origin: https://evil.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"];
    let answer = wire::ask(&admin, "OPTIONS", "/api/v1/add", &preflight).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, None));
    // A form can send these types without asking first.
    let content = Content::file("x", b"x".to_vec());
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let stream = content.stream();
        let request = format!(
            "POST /api/v1/add HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            admin.trim_start_matches("http://"),
            stream.len()
        );
        let answer = wire::exchange(&admin, &[request.as_bytes(), &stream].concat(), "POST").await;
        assert!(matches!(answer.status, 401 | 403), "{kind}: {}", answer.status);
    }
    gateway.catalog_complete().await;
    assert_eq!(gateway.get(&format!("/ipfs/{}", content.cid())).await.status, 404);
    for header in ["x-frame-options", "content-security-policy", "x-content-type-options", "referrer-policy"] {
        assert!(wire::ask(&admin, "GET", "/", &[]).await.header(header).is_some(), "{header}");
    }
}

/// The login link that `serve` prints: once, and what it gives cannot write without a proof of origin.
#[tokio::test]
async fn the_printed_link_logs_a_browser_in_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let log = gateway.said("?login=").await;
    let token = log.split("?login=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let token = token.unwrap_or_else(|| panic!("a link is printed:\n{log}")).to_owned();
    let target = format!("/?login={token}");
    let entered = wire::ask(&gateway.admin, "GET", &target, &["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"]).await;
    assert_eq!((entered.status, entered.header("location").as_deref()), (303, Some("/")), "{}", entered.text());
    let set = entered.header("set-cookie").expect("a cookie");
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict"), "{set}");
    assert_eq!(wire::ask(&gateway.admin, "GET", &target, &[]).await.status, 403, "spent");
    let cookie = format!("Cookie: {}", set.split(';').next().expect("a pair"));
    let page = wire::ask(&gateway.admin, "GET", "/", &[&cookie]).await;
    assert_eq!(page.status, 200);
    assert_eq!(wire::ask(&gateway.admin, "GET", "/api/v1/status", &[&cookie]).await.status, 200);

    let own = format!("Origin: {}", gateway.admin);
    let public = format!("Origin: {}", gateway.public);
    for (headers, status) in [
        (vec![cookie.as_str()], 403),
        (vec![&cookie, "Origin: https://evil.example"], 403),
        (vec![&cookie, &public], 403),
        (vec![&cookie, "Origin: null"], 403),
        (vec![&cookie, "Sec-Fetch-Site: same-site", &own], 403),
        (vec![&cookie, &own], 404),
    ] {
        let answer = wire::ask(&gateway.admin, "DELETE", "/api/v1/pins/bafkqaaa", &headers).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
    }
}

#[tokio::test]
async fn the_public_listener_has_no_admin_routes_and_no_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let key = gateway.key_header();
    for (method, route) in ROUTES.into_iter().chain([("GET", "/health"), ("POST", "/api/v0/add"), ("PUT", "/ipfs/bafkqaaa")]) {
        if route == "/" {
            continue;
        }
        for host in ["", "Host: localhost", "Host: admin.example", "Host: [::1]"] {
            let answer = gateway.ask(method, route, &[&key, host, "Content-Length: 0"]).await;
            assert!(matches!(answer.status, 404 | 405), "{method} {route} {host}: {}", answer.status);
        }
    }
    let landing = gateway.get("/").await;
    assert!(!landing.text().contains(&gateway.api_key()));
    assert_eq!(landing.header("set-cookie"), None);
    for header in ["server", "x-powered-by"] {
        assert_eq!(landing.header(header), None);
    }
}

#[tokio::test]
async fn secrets_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    for name in ["keys/api", "keys/portal"] {
        let mode = std::fs::metadata(folder.path().join(name)).expect("the key is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let mode = std::fs::metadata(folder.path().join("keys")).expect("the folder is there").permissions().mode();
    assert_eq!(mode & 0o077, 0, "the folder of the keys: {mode:o}");
    let log = gateway.log();
    let portal = std::fs::read_to_string(folder.path().join("keys/portal")).expect("readable");
    let seed = portal.split_whitespace().last().expect("a seed").to_owned();
    assert!(!log.contains(&gateway.api_key()) && !log.contains(&seed), "keys do not stand in the log");
    let (api, phrase_lines) = (gateway.api_key(), log.matches("recovery phrase").count());
    assert_eq!(phrase_lines, 1, "printed at the first start:\n{log}");
    assert!(gateway.stop().success());
    let gateway = Gateway::start(folder.path());
    assert_eq!(gateway.api_key(), api, "a key is made once");
    assert_eq!(gateway.log().matches("recovery phrase").count(), 0, "and the phrase printed once");
}

/// What hosts are called and where they lie is nobody's business.
#[tokio::test]
async fn replies_do_not_name_hosts_or_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let hosts = gateway.admin_json("/api/v1/hosts").await;
    let ids: Vec<String> =
        hosts["hosts"].as_array().expect("a list").iter().map(|host| host["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(ids.len(), 9);
    let added = gateway.upload(&Content::file("a.bin", compat_tests::seeded_bytes(5, 5 << 20))).await;
    let place = folder.path().to_str().expect("UTF-8").to_owned();
    for target in [
        "/".to_owned(),
        format!("/ipfs/{}", added.cid),
        format!("/ipfs/{}/nothing", added.cid),
        "/ipfs/bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354".to_owned(),
    ] {
        let answer = gateway.get(&target).await;
        let text: String = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        let shown = text + &if answer.body.len() < 100_000 { answer.text() } else { String::new() };
        assert!(!shown.contains(&place) && !ids.iter().any(|id| shown.contains(id.as_str())), "{target}: {shown}");
    }
}

/// One address that asks without end gets 429 with a time to wait; others, and this machine itself, are served on.
#[tokio::test]
async fn requests_of_one_address_are_limited_over_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(&folder.path().join("data"), &Options::config("[limits]\nrequests_per_second = 1\n"));
    // Ten seconds' worth at once, and one more each second that the test takes.
    let ask = async |address: &str| gateway.ask("GET", "/ipfs/bafkqaaa", &[&format!("X-Forwarded-For: {address}")]).await;
    let refused = compat_tests::until("it has had enough", std::time::Duration::from_secs(60), async || {
        let answer = ask("203.0.113.7").await;
        if answer.status == 429 { Ok(answer) } else { Err(format!("{}", answer.status)) }
    });
    let refused = refused.await;
    let wait: u64 = refused.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!(refused.header("access-control-allow-origin").as_deref(), Some("*"));
    assert_eq!(ask("203.0.113.8").await.status, 200);
    for _ in 0..30 {
        assert_eq!(gateway.get("/ipfs/bafkqaaa").await.status, 200, "this machine has no limit");
    }
}
