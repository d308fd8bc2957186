//! Slash routing: one build, served under its CID and under its skylink, each on a host of its own, answers the same on
//! every path. Where Skynet's own vectors say otherwise they win; those rows are listed with the reason.

use compat_tests::browser::Browser;
use compat_tests::content::Added;
use compat_tests::wire::Answer;
use compat_tests::{Gateway, repository};

use crate::skylinks::{base32hex, from_base64url};

/// `path_resolution.json`: tryfiles give a folder's index at once; there is no redirect but at the root.
const INDEX_AT_ONCE: &str = "vectors: /dir of a site with tryfiles is its index, without a redirect";
/// The same file: a folder without an index is "found", and what is found and no file is an archive (skynet.md 5.6).
const ARCHIVE: &str = "vectors: a folder without an index is found, and is sent as an archive";

struct App {
    gateway: Gateway,
    /// `{cid}.ipfs.localhost:PORT`, `{skylink}.localhost:PORT`.
    hosts: [String; 2],
    _folder: tempfile::TempDir,
}

async fn app() -> App {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let added = Added::of(&gateway.add(&repository().join("fixtures/slash-app"), &[]).expect("added"));
    gateway.catalog_complete().await;
    let port = gateway.public.rsplit(':').next().expect("a port");
    let label = base32hex(&from_base64url(added.skylink()));
    let hosts = [format!("{}.ipfs.localhost:{port}", added.cid), format!("{label}.localhost:{port}")];
    App { gateway, hosts, _folder: folder }
}

/// Where a path ends after redirects, and with what.
#[derive(Debug, PartialEq, Eq)]
struct End {
    class: u16,
    path: String,
    kind: String,
    body: Vec<u8>,
}

impl App {
    async fn follow(&self, host: &str, start: &str) -> End {
        let mut path = start.to_owned();
        for _ in 0..5 {
            let answer = self.gateway.ask("GET", &path, &[&format!("Host: {host}")]).await;
            let Some(to) = answer.header("location") else { return end(path, &answer) };
            path = match to.strip_prefix("http://") {
                Some(rest) => {
                    let (other, path) = rest.split_once('/').expect("a path");
                    assert_eq!(other, host, "{start} leads to another host");
                    format!("/{path}")
                }
                None if to.starts_with('/') => to,
                None => panic!("{start}: a relative Location {to}"),
            };
        }
        panic!("{host} {start}: redirected in a circle");
    }
}

fn end(path: String, answer: &Answer) -> End {
    let kind = answer.header("content-type").unwrap_or_default();
    // A skyfile keeps the type that the uploader stated; those of `add` name no charset.
    let kind = kind.split(';').next().unwrap_or_default().to_owned();
    End { class: answer.status / 100, path, kind, body: answer.body.clone() }
}

#[tokio::test]
async fn one_build_by_cid_and_by_skylink() {
    let app = app().await;
    let same = [
        "/",
        "/index.html",
        "/?page=2",
        "/docs/",
        "/docs/index.html",
        "/docs/page.css",
        "/assets/app.js",
        "/assets/app.css",
        "/assets/pages.js",
        "/assets/dot.svg",
        "/assets/none.js",
        "/assets/app.js/",
        "/manifest.json",
        "/static/a%20file.txt",
        "/static/other",
        "/404.html",
        "/_redirects",
        "/users/7",
        "/users/7/",
        "/users/7?tab=posts",
        "/users/%C4%85/x",
        "/old/9",
        "/old/9?x=1",
        "/no/such/place",
        "/index.html/",
        "/docs/none",
        "/docs/page.css/below",
        "/favicon.ico",
        "/.well-known/none",
        "/skynet/stats",
        "/ipfs/bafkqaaa",
    ];
    for path in same {
        let [by_cid, by_skylink] = [app.follow(&app.hosts[0], path).await, app.follow(&app.hosts[1], path).await];
        assert_eq!(by_cid, by_skylink, "{path}");
        assert!(by_cid.class == 2 || path.starts_with("/assets/") || path.starts_with("/static/"), "{path}: {}", by_cid.class);
    }
    for (path, by_cid, by_skylink, _reason) in [
        ("/docs", ("/docs/", "text/html"), ("/docs", "text/html"), INDEX_AT_ONCE),
        ("/assets", ("/assets/", "text/html"), ("/assets", "application/zip"), ARCHIVE),
        ("/assets/", ("/assets/", "text/html"), ("/assets/", "application/zip"), ARCHIVE),
    ] {
        for (host, expect) in app.hosts.iter().zip([by_cid, by_skylink]) {
            let found = app.follow(host, path).await;
            assert_eq!((found.class, found.path.as_str(), found.kind.as_str()), (2, expect.0, expect.1), "{host}{path}");
        }
    }
    // On the shared host both live below their root, and have no rules.
    let own = app.follow(&app.hosts[1], "/users/7").await;
    assert_eq!(String::from_utf8_lossy(&own.body).matches("<main id=\"place\">").count(), 1);
}

#[test]
fn deep_links_in_a_browser() {
    let Some(mut browser) = Browser::start() else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let app = runtime.block_on(app());
    for host in &app.hosts {
        let base = format!("http://{host}");
        for (path, status, heading) in [
            ("/", 200, "Home"),
            ("/users/7", 200, "User 7"),
            ("/users/7/", 200, "User 7"),
            ("/old/9", 200, "User 9"),
            ("/no/such/place", 200, "No such place"),
            ("/docs/", 200, "Docs"),
            ("/assets/none.js", 404, "The site's own page for what is not there"),
        ] {
            browser.open(&format!("{base}{path}"));
            let first = browser.received().into_iter().find(|reply| !(300..400).contains(&reply.status)).expect("a reply");
            assert_eq!(
                (first.status, browser.text("document.querySelector('h1').textContent").as_str()),
                (status, heading),
                "{host}{path}"
            );
            let failed: Vec<_> = browser.received().into_iter().filter(|reply| reply.status >= 400).collect();
            assert!(failed.is_empty() || status == 404, "{host}{path}: {failed:?}");
            assert!(browser.script_errors().is_empty(), "{host}{path}: {:?}", browser.script_errors());
            if heading != "Docs" && status == 200 {
                let colour = browser.text("getComputedStyle(document.querySelector('h1')).color");
                assert_eq!(colour, "rgb(21, 94, 117)", "{host}{path}: the style is there, however deep the link");
            }
        }
        // From place to place without a request, then a reload there.
        browser.open(&format!("{base}/"));
        browser.evaluate("document.querySelector('a[href=\"/users/7\"]').click()");
        assert_eq!(browser.text("location.pathname + ' ' + document.querySelector('h1').textContent"), "/users/7 User 7");
        browser.open(&format!("{base}/users/7"));
        assert_eq!(browser.text("document.querySelector('h1').textContent"), "User 7");
        assert_eq!(browser.evaluate("document.images[0].decode().then(() => document.images[0].naturalWidth)"), 8);
    }
}
