//! Denylists hold for every block in every format under every kind of address (ipfs/kubo#10361; `ipfs-gateway.md` 2.1, 11).

use std::path::{Path, PathBuf};
use std::time::Duration;

use compat_tests::content::{Added, Content};
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, Options, seeded_bytes, unixfs, until};

/// A changed list is looked at every two seconds; a busy machine gets more.
const RELOAD_MAX: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
/// An IPNS key, which the configuration points to the site.
const KEY: &str = "k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w";

/// The leaf that is denied: the third of four in a file three folders down, the second of one that is an index page.
fn leaf() -> Vec<u8> {
    seeded_bytes(99, MIB)
}

fn site() -> Content {
    let big = [seeded_bytes(1, 2 * MIB), leaf(), b"end".to_vec()].concat();
    let page = [b"<title>long</title>".to_vec(), seeded_bytes(2, MIB - 19), leaf()].concat();
    Content::files_of(
        "site",
        &[
            ("index.html", b"front"),
            ("a/b/c/big.bin", &big),
            ("a/b/c/small.txt", b"small text"),
            ("page/index.html", &page),
            ("plain/index.html", b"a plain page"),
            (
                "_redirects",
                b"/rewritten /a/b/c/big.bin 200\n/shown /page/ 200\n/short /a/b/c/small.txt 200\n/plainly /plain/ 200\n",
            ),
        ],
    )
}

struct Setting {
    gateway: Gateway,
    list: PathBuf,
    added: Added,
    _folder: tempfile::TempDir,
}

async fn start() -> Setting {
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("rules.deny");
    std::fs::write(&list, "version: 1\n---\n# nothing yet\n").expect("written");
    let root = site().cid();
    let config = format!(
        "[deny]\nlists = [{list:?}]\n[names]\nresolver = \"none\"\n[names.static]\n\"site.example.org\" = \"/ipfs/{root}\"\n\
         \"chain.example.org\" = \"/ipns/mid.example.org\"\n\"mid.example.org\" = \"/ipns/site.example.org\"\n\
         \"below.example.org\" = \"/ipfs/{root}/a/b\"\n\"{KEY}\" = \"/ipfs/{root}\"\n[[gateway.domains]]\nname = \"gw.example\"\n"
    );
    let gateway = Gateway::start_with(&folder.path().join("data"), &Options::config(config));
    let added = gateway.upload(&site()).await;
    Setting { gateway, list, added, _folder: folder }
}

impl Setting {
    /// Puts rules in force, and waits until `target` is answered with `status`.
    async fn rules(&self, text: &str, (target, status): (&str, u16)) {
        write_whole(&self.list, &format!("version: 1\n---\n{text}\n"));
        until("the new list is in force", RELOAD_MAX, async || {
            let seen = self.gateway.get(target).await.status;
            if seen == status { Ok(()) } else { Err(format!("{target}: {seen}\n{}", self.gateway.log())) }
        })
        .await;
    }

    /// One request; a connection that ends before the head counts as broken off.
    async fn ask(&self, method: &str, target: &str, headers: &[&str]) -> Option<Answer> {
        let headers: Vec<&str> = headers.iter().copied().filter(|line| !line.is_empty()).collect();
        wire::try_ask(&self.gateway.public, method, target, &headers).await.ok()
    }
}

/// A list is never seen half written.
fn write_whole(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).expect("written");
    std::fs::rename(&next, path).expect("renamed");
}

fn has(answer: &Answer, bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(64)];
    answer.body.windows(start.len()).any(|part| part == start)
}

/// Where a file can be asked for: the target without a query, and the Host.
struct Address {
    kind: &'static str,
    target: String,
    host: String,
}

fn address(kind: &'static str, target: impl Into<String>, host: &str) -> Address {
    Address { kind, target: target.into(), host: if host.is_empty() { String::new() } else { format!("Host: {host}") } }
}

/// All addresses of the file with the denied leaf.
fn of_the_file(setting: &Setting, folder: &str, file: &str) -> Vec<Address> {
    let (root, path) = (&setting.added.cid, "/a/b/c/big.bin");
    vec![
        address("path", format!("/ipfs/{root}{path}"), ""),
        address("path, capitals", format!("/ipfs/{}{path}", root.to_uppercase()), ""),
        address("path of its folder", format!("/ipfs/{folder}/big.bin"), ""),
        address("its own CID", format!("/ipfs/{file}"), ""),
        address("gateway domain without subdomains", format!("/ipfs/{root}{path}"), "127.0.0.1:1"),
        address("subdomain", path, &format!("{root}.ipfs.gw.example")),
        address("subdomain of the file", "/", &format!("{file}.ipfs.gw.example")),
        address("DNSLink host", path, "site.example.org"),
        address("DNSLink path", format!("/ipns/site.example.org{path}"), ""),
        address("DNSLink with a path", "/c/big.bin", "below.example.org"),
        address("DNSLink chain", path, "chain.example.org"),
        address("inlined DNSLink", path, "site-example-org.ipns.gw.example"),
        address("IPNS key", format!("/ipns/{KEY}{path}"), ""),
        address("IPNS key subdomain", path, &format!("{KEY}.ipns.gw.example")),
        address("_redirects", "/rewritten", "site.example.org"),
        address("index page", format!("/ipfs/{root}/page/"), ""),
        address("index page of a subdomain", "/page/", &format!("{root}.ipfs.gw.example")),
        address("_redirects to an index page", "/shown", "site.example.org"),
    ]
}

/// What is asked of each: a name, method, query, header.
const FORMATS: &[(&str, &str, &str, &str)] = &[
    ("GET", "GET", "", ""),
    ("HEAD", "HEAD", "", ""),
    ("a range with the leaf", "GET", "", "Range: bytes=2097152-2097160"),
    ("a range without it", "GET", "", "Range: bytes=0-3"),
    ("the end", "GET", "", "Range: bytes=-3"),
    ("several ranges", "GET", "", "Range: bytes=0-3,2097152-2097160"),
    ("HEAD of a range", "HEAD", "", "Range: bytes=0-3"),
    ("If-None-Match: *", "GET", "", "If-None-Match: *"),
    ("HEAD, If-None-Match: *", "HEAD", "", "If-None-Match: *"),
    ("If-Match: nothing", "GET", "", "If-Match: \"x\""),
    ("download", "GET", "?download=true", ""),
    ("only if cached", "GET", "", "Cache-Control: only-if-cached"),
    ("CAR", "GET", "?format=car", ""),
    ("CAR by Accept", "GET", "", "Accept: application/vnd.ipld.car"),
    ("HEAD of a CAR", "HEAD", "?format=car", ""),
    ("304 of a CAR", "GET", "?format=car", "If-None-Match: *"),
    ("CAR of an entity", "GET", "?format=car&dag-scope=entity", ""),
    ("CAR of bytes without it", "GET", "?format=car&entity-bytes=0:3", ""),
    ("TAR", "GET", "?format=tar", ""),
    ("HEAD of a TAR", "HEAD", "?format=tar", ""),
    ("304 of a TAR", "GET", "?format=tar", "If-None-Match: *"),
];

type Case = (String, &'static str, String, [String; 2]);

/// Every address in every format that it has.
fn cases(addresses: &[Address], skylinks: &[Address], leaf_cid: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |kind: &str, target: &str, host: &str, (name, method, query, header): &(&str, &'static str, &str, &str)| {
        cases.push((format!("{kind}, {name}"), *method, format!("{target}{query}"), [host.to_owned(), (*header).to_owned()]));
    };
    let of_file = |row: &&(&str, &str, &str, &str)| !row.2.contains("format") && !row.3.starts_with("Accept");
    for Address { kind, target, host } in addresses {
        // A rewrite, and what stands for a folder, is of files and not of other formats.
        let all = !kind.contains("_redirects") && !kind.contains("index");
        FORMATS.iter().filter(|row| all || of_file(row)).for_each(|row| add(kind, target, host, row));
    }
    for Address { kind, target, host } in skylinks {
        FORMATS.iter().filter(|row| row.2.is_empty() && of_file(row)).for_each(|row| add(kind, target, host, row));
    }
    for row in FORMATS.iter().chain(&[("raw", "GET", "?format=raw", ""), ("HEAD of raw", "HEAD", "?format=raw", "")]) {
        add("leaf", &format!("/ipfs/{leaf_cid}"), "", row);
        add("leaf subdomain", "/", &format!("Host: {leaf_cid}.ipfs.gw.example"), row);
    }
    cases
}

#[tokio::test]
async fn a_denied_leaf_deep_inside_is_refused_in_every_format_under_every_address() {
    let setting = start().await;
    let (root, gateway) = (&setting.added.cid, &setting.gateway);
    let roots = gateway.get(&format!("/ipfs/{root}/a/b/c/big.bin")).await.header("x-ipfs-roots").expect("told");
    let roots: Vec<&str> = roots.split(',').collect();
    let (folder, file, leaf_cid) = (roots[3], roots[4], unixfs::raw(&leaf()).cid());
    let addresses = of_the_file(&setting, folder, file);
    for address in &addresses {
        let answer = gateway.ask("GET", &address.target, &[&address.host]).await;
        assert_eq!(answer.status, 200, "{} before: {}", address.kind, answer.text().chars().take(200).collect::<String>());
        assert!(has(&answer, &leaf()), "{} before", address.kind);
    }
    let link = setting.added.skylink();
    let skylinks = [
        address("skylink", format!("/{link}/a/b/c/big.bin"), ""),
        address("skylink index", format!("/{link}/page/index.html"), ""),
    ];
    for address in &skylinks {
        assert_eq!(gateway.ask("HEAD", &address.target, &[]).await.status, 200, "{} before", address.kind);
    }

    let first = addresses[0].target.as_str();
    setting.rules(&format!("/ipfs/{leaf_cid} reason:court-order gateway_status:451"), (first, 451)).await;
    let mut wrong = Vec::new();
    for (what, method, target, headers) in cases(&addresses, &skylinks, &leaf_cid) {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = setting.ask(method, &target, &headers).await;
        let seen = answer.as_ref().map(|answer| answer.status);
        let told = answer.as_ref().is_some_and(|answer| has(answer, &leaf()));
        let kept = answer.and_then(|answer| answer.header("cache-control")).is_some_and(|rule| rule.contains("immutable"));
        if seen != Some(451) || told || kept {
            wrong.push(format!("{what}: {seen:?}, leaf told: {told}, kept: {kept}"));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));

    // Streams over more than the file break off before the leaf; what has nothing to do with it is served.
    for target in [format!("/ipfs/{root}"), format!("/ipfs/{root}/a"), format!("/ipfs/{folder}")] {
        for format in ["car", "tar"] {
            let answer = setting.ask("GET", &format!("{target}?format={format}"), &[]).await;
            let broken = answer.as_ref().is_none_or(|answer| answer.status == 451 || !answer.whole);
            assert!(broken && !answer.is_some_and(|answer| has(&answer, &leaf())), "{format} of {target}");
        }
    }
    for (target, host) in [
        (format!("/ipfs/{root}/a/b/c/small.txt"), ""),
        (format!("/ipfs/{root}/a/b/c/"), ""),
        (format!("/ipfs/{file}?format=raw"), ""),
        (format!("/ipfs/{file}?format=car&dag-scope=block"), ""),
        (format!("/{link}/a/b/c/small.txt"), ""),
        ("/short".to_owned(), "Host: site.example.org"),
    ] {
        assert_eq!(gateway.ask("GET", &target, &[host]).await.status, 200, "{target}");
    }
}

#[tokio::test]
async fn rules_about_paths_and_names_hold_on_every_way_there() {
    let setting = start().await;
    let (root, gateway) = (&setting.added.cid, &setting.gateway);
    let sub = format!("Host: {root}.ipfs.gw.example");
    let path = |path: &str| format!("/ipfs/{root}{path}");
    let site = "Host: site.example.org";
    let key_header = gateway.key_header();
    // Rule; what it forbids; what it does not.
    #[rustfmt::skip]
    type Asked<'a> = Vec<(String, &'a str)>;
    let rows: Vec<(String, Asked<'_>, Asked<'_>)> = vec![
        (
            path("/plain/index.html"),
            vec![
                (path("/plain/index.html"), ""),
                (path("/plain/"), ""),
                ("/plain/".into(), &sub),
                ("/plain/".into(), site),
                ("/plainly".into(), site),
                ("/ipns/chain.example.org/plain/".into(), ""),
            ],
            vec![(path("/"), ""), ("/short".into(), site)],
        ),
        (
            "/ipns/site.example.org/plain/index.html".into(),
            vec![("/plain/".into(), site), ("/plainly".into(), site), ("/ipns/chain.example.org/plain/".into(), "")],
            vec![(path("/plain/"), ""), ("/".into(), site)],
        ),
        (
            path("/a/b/c/small.txt"),
            vec![
                (path("/a/b/c/small.txt"), ""),
                ("/short".into(), site),
                ("/c/small.txt".into(), "Host: below.example.org"),
                (path("/a/b/c/small.txt?format=car"), ""),
                (path("/a/b/c/small.txt?format=tar"), ""),
                (path("/a/b/c/small.txt?format=raw"), ""),
            ],
            vec![(path("/a/b/c/"), ""), ("/plainly".into(), site)],
        ),
        (
            "/ipns/mid.example.org".into(),
            vec![
                ("/".into(), "Host: chain.example.org"),
                ("/ipns/chain.example.org/".into(), ""),
                ("/ipns/mid.example.org/".into(), ""),
                ("/".into(), "Host: chain-example-org.ipns.gw.example"),
            ],
            vec![("/".into(), site), ("/ipns/site.example.org/a/b/c/small.txt".into(), "")],
        ),
        (
            format!("/ipns/{KEY}"),
            vec![
                (format!("/ipns/{KEY}/"), ""),
                (format!("/ipns/{KEY}?format=ipns-record"), ""),
                (format!("/routing/v1/ipns/{KEY}"), "Accept: application/vnd.ipfs.ipns-record"),
            ],
            vec![("/".into(), site)],
        ),
        (
            format!("{}*", path("/a")),
            vec![
                (path("/a/"), ""),
                (path("/a/b/c/small.txt"), ""),
                ("/short".into(), site),
                ("/c/small.txt".into(), "Host: below.example.org"),
            ],
            vec![(path("/plain/"), "")],
        ),
    ];
    for (rule, forbidden, free) in &rows {
        let first = forbidden.iter().find(|row| row.1.is_empty()).expect("one on the gateway's own address").0.as_str();
        setting.rules(rule, (first, 410)).await;
        for (target, host) in forbidden {
            for method in ["GET", "HEAD"] {
                let answer = gateway.ask(method, target, &[host]).await;
                assert_eq!(answer.status, 410, "{method} {target} {host} by {rule}: {}", answer.text());
            }
        }
        for (target, host) in free {
            assert_eq!(gateway.ask("GET", target, &[host]).await.status, 200, "{target} {host} by {rule}");
        }
        setting.rules("", (first, 200)).await;
    }
    // A denied name takes no record either.
    setting.rules(&rows[4].0, (&format!("/ipns/{KEY}/"), 410)).await;
    let put = gateway
        .ask(
            "PUT",
            &format!("/routing/v1/ipns/{KEY}"),
            &[&key_header, "Content-Type: application/vnd.ipfs.ipns-record", "Content-Length: 0"],
        )
        .await;
    assert_eq!(put.status, 410, "{}", put.text());
    // A TAR of a folder breaks off at a path that is denied.
    setting.rules(&path("/a/b/c/small.txt"), (&path("/a/b/c/small.txt"), 410)).await;
    let answer = setting.ask("GET", &path("?format=tar"), &[]).await;
    assert!(answer.as_ref().is_none_or(|answer| !answer.whole || answer.status == 410), "it breaks off");
    assert!(!answer.is_some_and(|answer| has(&answer, b"small text")));
}

/// Rules come and go; nothing of an older list is left, and a list that is bad changes nothing and is told once.
#[tokio::test]
async fn lists_that_change() {
    let setting = start().await;
    let (root, gateway) = (&setting.added.cid, &setting.gateway);
    let link = setting.added.skylink();
    let (leaf_cid, small_cid) = (unixfs::raw(&leaf()).cid(), unixfs::raw(b"small text").cid());
    let big = (format!("/ipfs/{root}/a/b/c/big.bin"), format!("/{link}/a/b/c/big.bin"));
    let small = (format!("/ipfs/{root}/a/b/c/small.txt"), format!("/{link}/a/b/c/small.txt"));
    let statuses = async || {
        let mut seen = Vec::new();
        for target in [&big.0, &big.1, &small.0, &small.1] {
            seen.push(gateway.ask("HEAD", target, &[]).await.status);
        }
        seen
    };
    for (rules, expect) in [
        (format!("/ipfs/{leaf_cid}"), [410, 410, 200, 200]),
        (String::new(), [200, 200, 200, 200]),
        (format!("/ipfs/{small_cid}"), [200, 200, 410, 410]),
        (format!("/ipfs/{leaf_cid}"), [410, 410, 200, 200]),
    ] {
        write_whole(&setting.list, &format!("version: 1\n---\n{rules}\n"));
        until(&format!("{rules:?} is in force"), RELOAD_MAX, async || {
            let seen = statuses().await;
            if seen == expect { Ok(()) } else { Err(format!("{seen:?} and not {expect:?}")) }
        })
        .await;
    }
    write_whole(&setting.list, "version: 99\n---\n");
    gateway.said("the rules stay as they are").await;
    assert_eq!(statuses().await, [410, 410, 200, 200]);
    // The next good list is read after at least one more look at the files.
    setting.rules(&format!("/ipfs/{small_cid}"), (&small.0, 410)).await;
    assert_eq!(gateway.log().matches("the rules stay as they are").count(), 1);
}
