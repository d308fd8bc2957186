//! The path gateway as a table: request, expected reply, and where the rule stands. `2.1` is
//! `specs/ipfs-gateway.md` 2.1, `3` its section 3; "suite" marks what the conformance suite checks.

use compat_tests::content::{Added, Content, Item};
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, seeded_bytes, unixfs};

const IMMUTABLE: &str = "public, max-age=29030400, immutable";
const LISTING: &str = "public, max-age=604800, stale-while-revalidate=2678400";
const HELLO: &[u8] = b"hello from a file with 34 bytes..\n";
const PAGE: &[u8] = b"<!doctype html><title>x</title><h1>index</h1>\n";
/// Nothing is stored under it.
const ABSENT: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
/// An empty file that is its own CID: the probe of clients.
const IDENTITY: &str = "bafkqaaa";

/// A small site, and what the table's paths name.
struct Site {
    gateway: Gateway,
    root: String,
    long: Vec<u8>,
    _folder: tempfile::TempDir,
}

/// The words of a row: `{root}` and the like in texts are filled in from this.
impl Site {
    async fn start() -> Site {
        let folder = tempfile::tempdir().expect("a folder");
        let gateway = Gateway::start(folder.path());
        gateway.catalog_complete().await;
        let long = seeded_bytes(77, (3 << 20) + 1234);
        let file = |bytes: &[u8]| Item::File(bytes.to_vec());
        let content = Content::folder(
            "site",
            [
                ("100%.txt", file(HELLO)),
                ("blog/index.html", file(PAGE)),
                ("blog/style.css", file(b"body{}")),
                ("data", file(b"{\"a\": 1}")),
                ("empty.txt", file(b"")),
                ("empty", Item::Folder),
                ("fake.html", file(b"just text")),
                ("link", Item::Symlink("100%.txt".to_owned())),
                ("long.bin", file(&long)),
                ("picture", file(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")),
                ("script.js", file(b"let x = 1;")),
                ("space here/a b+c.txt", file(HELLO)),
                ("vector.svg", file(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>")),
                ("<b>.html", file(b"odd")),
                ("ą/ę/file-źł.txt", file(HELLO)),
            ]
            .map(|(path, item)| (path.to_owned(), item)),
        );
        let added: Added = gateway.upload(&content).await;
        Site { gateway, root: added.cid, long, _folder: folder }
    }

    /// Fills the names of the table in.
    fn fill(&self, text: &str) -> String {
        let dir_of = |files: Vec<(&str, &[u8])>| {
            unixfs::folder(files.into_iter().map(|(name, bytes)| (name, unixfs::file(bytes))).collect())
        };
        let deep = dir_of(vec![("file-źł.txt", HELLO)]);
        let nested = unixfs::folder(vec![("ę", deep.clone())]);
        text.replace("{root}", &self.root)
            .replace("{hello}", &unixfs::file(HELLO).cid())
            .replace("{long}", &unixfs::file(&self.long).cid())
            .replace("{leaf}", &unixfs::raw(&self.long[..unixfs::CHUNK_BYTES]).cid())
            .replace("{blog}", &dir_of(vec![("index.html", PAGE), ("style.css", b"body{}")]).cid())
            .replace("{empty}", &unixfs::folder(vec![]).cid())
            .replace("{deep}", &deep.cid())
            .replace("{nested}", &nested.cid())
            .replace("{space}", &dir_of(vec![("a b+c.txt", HELLO)]).cid())
            .replace("{absent}", ABSENT)
    }

    async fn check(&self, row: &Row) {
        let target = self.fill(row.target);
        let headers: Vec<String> = row.headers.iter().map(|line| self.fill(line)).collect();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = self.gateway.ask(row.method, &target, &headers).await;
        let what = format!("[{}] {} {target} {headers:?}", row.rule, row.method);
        assert_eq!(answer.status, row.status, "{what}: {}", shortened(&answer));
        for (name, expect) in row.expect {
            let found = answer.header(name);
            let expect = self.fill(expect);
            let right = match expect.as_str() {
                "-" => found.is_none(),
                "+" => found.is_some(),
                _ => match (expect.strip_prefix('^'), expect.strip_prefix('~')) {
                    (Some(start), _) => found.as_deref().is_some_and(|value| value.starts_with(start)),
                    (_, Some(part)) => found.as_deref().is_some_and(|value| value.contains(part)),
                    _ => found.as_deref() == Some(expect.as_str()),
                },
            };
            assert!(right, "{what}: {name} is {found:?}, expected {expect:?}");
        }
        assert!(answer.whole, "{what}: the body is cut");
        match &row.body {
            Body::Any => {}
            Body::Empty => assert!(answer.body.is_empty(), "{what}: a body of {} bytes", answer.body.len()),
            Body::Is(bytes) => assert!(answer.body == *bytes, "{what}: {}", shortened(&answer)),
            Body::Long(range) => assert!(answer.body == self.long[range.clone()], "{what}: {} bytes", answer.body.len()),
            Body::Has(words) => {
                for word in *words {
                    let word = self.fill(word);
                    assert!(answer.text().contains(&word), "{what}: no {word:?} in {}", answer.text());
                }
            }
        }
        if row.method == "GET" {
            let head = self.gateway.ask("HEAD", &target, &headers).await;
            assert_head_equals_get(&what, &head, &answer);
        }
    }
}

/// 2.1 HEAD: the same as GET without body. What is measured differs from request to request, chunks need no length.
fn assert_head_equals_get(what: &str, head: &Answer, get: &Answer) {
    assert!(head.body.is_empty(), "{what}: HEAD has a body of {} bytes", head.body.len());
    assert_eq!(head.status, get.status, "{what}: HEAD");
    let shown = |answer: &Answer| {
        let of_request = ["date", "server-timing", "cache-status", "transfer-encoding", "connection", "retry-after"];
        let mut headers: Vec<_> = answer.headers.iter().filter(|(name, _)| !of_request.contains(&name.as_str())).cloned().collect();
        headers
            .iter_mut()
            .filter(|(name, value)| name == "content-type" && value.starts_with("multipart/"))
            .for_each(|(_, value)| value.truncate(30));
        headers.sort();
        headers
    };
    assert_eq!(shown(head), shown(get), "{what}: headers of HEAD and GET");
}

fn shortened(answer: &Answer) -> String {
    format!("{} {:?} {}", answer.status, answer.headers, answer.text().chars().take(400).collect::<String>())
}

struct Row {
    rule: &'static str,
    method: &'static str,
    target: &'static str,
    headers: &'static [&'static str],
    status: u16,
    /// Header and value; `-` absent, `+` there, `^` begins, `~` contains.
    expect: &'static [(&'static str, &'static str)],
    body: Body,
}

enum Body {
    Any,
    Empty,
    Is(&'static [u8]),
    /// This stretch of `long.bin`.
    Long(std::ops::Range<usize>),
    Has(&'static [&'static str]),
}

const fn get(
    rule: &'static str,
    target: &'static str,
    headers: &'static [&'static str],
    status: u16,
    expect: &'static [(&'static str, &'static str)],
    body: Body,
) -> Row {
    Row { rule, method: "GET", target, headers, status, expect, body }
}

#[rustfmt::skip]
const FILES: &[Row] = &[
    get("2.1 files", "/ipfs/{root}/100%25.txt", &[], 200, &[
        ("content-type", "text/plain; charset=utf-8"), ("content-length", "34"), ("etag", "\"{hello}\""), ("cache-control", IMMUTABLE),
        ("accept-ranges", "bytes"), ("x-ipfs-path", "/ipfs/{root}/100%25.txt"), ("x-ipfs-roots", "{root},{hello}"),
        ("content-disposition", "-"), ("last-modified", "-"), ("cache-status", "^skygate"), ("server-timing", "+"),
    ], Body::Is(HELLO)),
    get("2.1 files", "/ipfs/{hello}", &[], 200, &[("x-ipfs-roots", "{hello}"), ("x-ipfs-path", "/ipfs/{hello}"), ("etag", "\"{hello}\"")], Body::Is(HELLO)),
    get("2.1 X-Ipfs-Roots, suite", "/ipfs/{root}/%C4%85/%C4%99/file-%C5%BA%C5%82.txt", &[], 200, &[
        ("x-ipfs-roots", "{root},{nested},{deep},{hello}"), ("x-ipfs-path", "/ipfs/{root}/%C4%85/%C4%99/file-%C5%BA%C5%82.txt"),
    ], Body::Is(HELLO)),
    get("2.1 paths", "/ipfs/{root}/space%20here/a%20b+c.txt", &[], 200, &[("x-ipfs-roots", "{root},{space},{hello}")], Body::Is(HELLO)),
    get("2.1 paths", "/ipfs/{root}/space%20here/a%20b%2Bc.txt", &[], 200, &[], Body::Is(HELLO)),
    get("2.1 files", "/ipfs/{root}/empty.txt", &[], 200, &[("content-length", "0"), ("content-type", "text/plain; charset=utf-8")], Body::Empty),
    get("2.1 identity CIDs", "/ipfs/bafkqaaa", &[], 200, &[("content-length", "0")], Body::Empty),
    get("2.1 raw leaves", "/ipfs/{leaf}", &[], 200, &[("etag", "\"{leaf}\"")], Body::Long(0..1 << 20)),
    get("2.1 Content-Type by name", "/ipfs/{root}/script.js", &[], 200, &[("content-type", "~javascript")], Body::Any),
    get("2.1 Content-Type by name", "/ipfs/{root}/vector.svg", &[], 200, &[("content-type", "^image/svg+xml")], Body::Any),
    get("2.1 Content-Type by name", "/ipfs/{root}/fake.html", &[], 200, &[("content-type", "^text/html")], Body::Any),
    get("2.1 Content-Type of the bytes, suite", "/ipfs/{root}/data", &[], 200, &[("content-type", "application/json")], Body::Any),
    get("2.1 Content-Type of the bytes", "/ipfs/{root}/picture", &[], 200, &[("content-type", "image/png")], Body::Any),
    get("2.1 Content-Type: text is not octet-stream", "/ipfs/{hello}", &[], 200, &[("content-type", "^text/plain")], Body::Any),
    get("2.1 Content-Type of random bytes", "/ipfs/{long}", &[], 200, &[("content-type", "application/octet-stream")], Body::Any),
    get("2.1 Content-Type by filename=", "/ipfs/{hello}?filename=x.css", &[], 200, &[("content-type", "^text/css")], Body::Is(HELLO)),
    get("2.1 JSON kept in UnixFS", "/ipfs/{root}/data", &["Accept: application/json"], 200, &[], Body::Is(b"{\"a\": 1}")),
    get("2.1 symlink, suite", "/ipfs/{root}/link", &[], 200, &[("content-type", "inode/symlink"), ("content-length", "8")], Body::Is(b"100%.txt")),
    get("2.1 Content-Disposition", "/ipfs/{hello}?filename=test%D1%82.pdf", &[], 200, &[
        ("content-disposition", "inline; filename=\"test_.pdf\"; filename*=UTF-8''test%D1%82.pdf"), ("content-type", "application/pdf"),
    ], Body::Is(HELLO)),
    get("2.1 download=true", "/ipfs/{hello}?filename=a.txt&download=true", &[], 200, &[("content-disposition", "^attachment; filename=\"a.txt\"")], Body::Is(HELLO)),
    get("10.1 download=true without a name", "/ipfs/{root}/script.js?download=true", &[], 200, &[("content-disposition", "^attachment; filename=\"script.js\"")], Body::Any),
    get("10.1 download=true of a bare CID", "/ipfs/{hello}?download=true", &[], 200, &[("content-disposition", "^attachment; filename=\"{hello}\"")], Body::Any),
    get("2.1 download=false", "/ipfs/{hello}?download=false", &[], 200, &[("content-disposition", "-")], Body::Any),
    get("threats: header splitting", "/ipfs/{hello}?filename=a%0d%0aSet-Cookie:%20x=1.txt", &[], 200, &[("set-cookie", "-")], Body::Is(HELLO)),
    get("threats: quotes in names", "/ipfs/{hello}?filename=a%22;%20filename=b.exe", &[], 200, &[("content-disposition", "^inline; filename=\"a")], Body::Is(HELLO)),
    get("query of no meaning", "/ipfs/{hello}?v=3&cache=no", &[], 200, &[("etag", "\"{hello}\"")], Body::Is(HELLO)),
];

#[rustfmt::skip]
const FOLDERS: &[Row] = &[
    get("2.1 folder without slash", "/ipfs/{root}/blog", &[], 301, &[("location", "/ipfs/{root}/blog/")], Body::Any),
    get("2.1 folder without slash: query kept", "/ipfs/{root}/blog?x=1&y=a%20b", &[], 301, &[("location", "/ipfs/{root}/blog/?x=1&y=a%20b")], Body::Any),
    get("2.1 folder without slash: encoded", "/ipfs/{root}/%C4%85/%C4%99", &[], 301, &[("location", "/ipfs/{root}/%C4%85/%C4%99/")], Body::Any),
    get("2.1 folder without slash: root", "/ipfs/{root}", &[], 301, &[("location", "/ipfs/{root}/")], Body::Any),
    get("2.1 folder without slash: listing", "/ipfs/{root}/empty", &[], 301, &[("location", "/ipfs/{root}/empty/")], Body::Any),
    get("threats: no open redirect", "//evil.example/ipfs/{root}", &[], 404, &[("location", "-")], Body::Any),
    get("2.1 index.html", "/ipfs/{root}/blog/", &[], 200, &[
        ("content-type", "^text/html"), ("etag", "\"{blog}\""), ("cache-control", IMMUTABLE), ("x-ipfs-path", "/ipfs/{root}/blog/"), ("x-ipfs-roots", "{root},{blog}"),
    ], Body::Is(PAGE)),
    get("2.1 index.html by name", "/ipfs/{root}/blog/index.html", &[], 200, &[("cache-control", IMMUTABLE)], Body::Is(PAGE)),
    get("2.1 index.html of a root", "/ipfs/{blog}/", &[], 200, &[("etag", "\"{blog}\""), ("x-ipfs-roots", "{blog}")], Body::Is(PAGE)),
    get("3 listing, suite", "/ipfs/{root}/", &[], 200, &[
        ("content-type", "text/html; charset=utf-8"), ("etag", "^\"DirIndex-"), ("etag", "~_CID-{root}\""), ("cache-control", LISTING),
        ("x-ipfs-path", "/ipfs/{root}/"), ("x-ipfs-roots", "{root}"),
    ], Body::Has(&[
        "Index of", "/ipfs/<a href=\"/ipfs/{root}\">{root}</a>", "<a href=\"/ipfs/{root}/100%25.txt\">100%.txt</a>", "<a href=\"/ipfs/{root}/blog\">blog</a>",
        "<a class=\"ipfs-hash\" translate=\"no\" href=\"/ipfs/{hello}?filename=100%2525.txt\">", "&lt;b&gt;.html", "name=\"viewport\"",
    ])),
    get("3 listing, suite", "/ipfs/{root}/%C4%85/%C4%99/", &[], 200, &[("etag", "~_CID-{deep}\""), ("x-ipfs-roots", "{root},{nested},{deep}")], Body::Has(&[
        "<a href=\"/ipfs/{root}/%C4%85/%C4%99/..\">..</a>",
        "/ipfs/<a href=\"/ipfs/{root}\">{root}</a>/<a href=\"/ipfs/{root}/%C4%85\">ą</a>/<a href=\"/ipfs/{root}/%C4%85/%C4%99\">ę</a>",
        "<a href=\"/ipfs/{root}/%C4%85/%C4%99/file-%C5%BA%C5%82.txt\">file-źł.txt</a>",
        "<a class=\"ipfs-hash\" translate=\"no\" href=\"/ipfs/{hello}?filename=file-%25C5%25BA%25C5%2582.txt\">",
    ])),
    get("3 listing of an empty folder", "/ipfs/{root}/empty/", &[], 200, &[("etag", "~_CID-{empty}\"")], Body::Has(&["Index of"])),
    get("2.1 Service-Worker", "/ipfs/{root}", &["Service-Worker: script"], 400, &[], Body::Any),
    get("2.1 Service-Worker", "/ipfs/{root}/", &["Service-Worker: script"], 400, &[], Body::Any),
    get("2.1 Service-Worker below", "/ipfs/{root}/script.js", &["Service-Worker: script"], 200, &[], Body::Any),
    get("2.1 go-get is an ordinary query", "/ipfs/{root}/blog/?go-get=1", &[], 200, &[], Body::Is(PAGE)),
];

#[rustfmt::skip]
const CONDITIONS: &[Row] = &[
    get("2.1 If-None-Match", "/ipfs/{hello}", &["If-None-Match: \"{hello}\""], 304, &[("etag", "\"{hello}\""), ("cache-control", IMMUTABLE), ("content-length", "-")], Body::Empty),
    get("2.1 If-None-Match, third of a list", "/ipfs/{hello}", &["If-None-Match: \"a\", W/\"b\", \"{hello}\""], 304, &[], Body::Empty),
    get("2.1 If-None-Match, several lines", "/ipfs/{hello}", &["If-None-Match: \"a\"", "If-None-Match: \"{hello}\""], 304, &[], Body::Empty),
    get("2.1 If-None-Match, weak", "/ipfs/{hello}", &["If-None-Match: W/\"{hello}\""], 304, &[], Body::Empty),
    get("2.1 If-None-Match, *", "/ipfs/{hello}", &["If-None-Match: *"], 304, &[], Body::Empty),
    get("2.1 If-None-Match, another", "/ipfs/{hello}", &["If-None-Match: \"other\""], 200, &[], Body::Is(HELLO)),
    get("2.1 If-None-Match, a part of it", "/ipfs/{hello}", &["If-None-Match: \"{hello}x\""], 200, &[], Body::Is(HELLO)),
    get("RFC 9110 13.1.2, no quotes", "/ipfs/{hello}", &["If-None-Match: {hello}"], 200, &[], Body::Is(HELLO)),
    get("2.1 If-None-Match of index.html: the folder's", "/ipfs/{root}/blog/", &["If-None-Match: \"{blog}\""], 304, &[("etag", "\"{blog}\"")], Body::Empty),
    get("2.1 If-None-Match of a listing, *", "/ipfs/{root}/", &["If-None-Match: *"], 304, &[("etag", "^\"DirIndex-"), ("cache-control", LISTING)], Body::Empty),
    get("2.1 If-None-Match of a listing is not its CID", "/ipfs/{root}/", &["If-None-Match: \"{root}\""], 200, &[], Body::Any),
    get("2.1 If-None-Match of a range", "/ipfs/{hello}", &["If-None-Match: \"{hello}\"", "Range: bytes=0-3"], 304, &[], Body::Empty),
    get("RFC 9110 13.1.1 If-Match", "/ipfs/{hello}", &["If-Match: \"other\""], 412, &[("cache-control", "no-store")], Body::Any),
    get("RFC 9110 13.1.1 If-Match", "/ipfs/{hello}", &["If-Match: \"{hello}\""], 200, &[], Body::Is(HELLO)),
    get("RFC 9110 13.1.5 If-Range holds", "/ipfs/{hello}", &["If-Range: \"{hello}\"", "Range: bytes=0-4"], 206, &[], Body::Is(b"hello")),
    get("RFC 9110 13.1.5 If-Range, another", "/ipfs/{hello}", &["If-Range: \"x\"", "Range: bytes=0-4"], 200, &[], Body::Is(HELLO)),
    get("RFC 9110 13.1.5 If-Range, weak", "/ipfs/{hello}", &["If-Range: W/\"{hello}\"", "Range: bytes=0-4"], 200, &[], Body::Is(HELLO)),
    get("2.1 only-if-cached, not stored", "/ipfs/{absent}", &["Cache-Control: only-if-cached"], 412, &[], Body::Any),
    get("2.1 only-if-cached, stored", "/ipfs/{hello}", &["Cache-Control: only-if-cached"], 200, &[], Body::Is(HELLO)),
    get("2.1 only-if-cached, stored, listing", "/ipfs/{root}/", &["Cache-Control: only-if-cached"], 200, &[], Body::Any),
];

#[rustfmt::skip]
const RANGES: &[Row] = &[
    get("2.1 Range, suite", "/ipfs/{hello}", &["Range: bytes=6-16"], 206, &[
        ("content-range", "bytes 6-16/34"), ("content-length", "11"), ("etag", "\"{hello}\""), ("content-type", "text/plain; charset=utf-8"), ("cache-control", IMMUTABLE), ("accept-ranges", "bytes"),
    ], Body::Is(b"from a file")),
    get("2.1 Range, suite", "/ipfs/{hello}", &["Range: bytes=-3"], 206, &[("content-range", "bytes 31-33/34")], Body::Is(b"..\n")),
    get("RFC 9110 14.1.2", "/ipfs/{hello}", &["Range: bytes=30-"], 206, &[("content-range", "bytes 30-33/34")], Body::Any),
    get("RFC 9110 14.1.2, longer than the file", "/ipfs/{hello}", &["Range: bytes=0-999"], 206, &[("content-range", "bytes 0-33/34")], Body::Is(HELLO)),
    get("RFC 9110 14.1.2, longer suffix", "/ipfs/{hello}", &["Range: bytes=-999"], 206, &[("content-range", "bytes 0-33/34")], Body::Is(HELLO)),
    get("RFC 9110 14.1.2, huge numbers", "/ipfs/{hello}", &["Range: bytes=1-99999999999999999999999"], 206, &[("content-range", "bytes 1-33/34")], Body::Any),
    get("2.1 Range, out of file", "/ipfs/{hello}", &["Range: bytes=34-"], 416, &[("content-range", "bytes */34"), ("cache-control", "no-store"), ("etag", "-")], Body::Any),
    get("2.1 Range, out of file", "/ipfs/{root}/empty.txt", &["Range: bytes=0-0"], 416, &[("content-range", "bytes */0")], Body::Any),
    get("2.1 Range, malformed", "/ipfs/{hello}", &["Range: bytes=9-3"], 400, &[], Body::Any),
    get("2.1 Range, malformed", "/ipfs/{hello}", &["Range: bytes=x"], 400, &[], Body::Any),
    get("RFC 9110 14.2, another unit", "/ipfs/{hello}", &["Range: pages=1-2"], 200, &[], Body::Is(HELLO)),
    get("2.1 Range, several, suite", "/ipfs/{hello}", &["Range: bytes=6-16,0-4"], 206, &[("content-type", "^multipart/byteranges; boundary=")], Body::Has(&[
        "Content-Range: bytes 6-16/34\r\n\r\nfrom a file\r\n--", "Content-Range: bytes 0-4/34\r\n\r\nhello\r\n--",
    ])),
    get("threats: a bomb of ranges", "/ipfs/{hello}", &["Range: bytes=0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-,0-"], 200, &[], Body::Is(HELLO)),
    get("2.1 Range over leaves", "/ipfs/{root}/long.bin", &["Range: bytes=1048000-1049000"], 206, &[("content-range", "bytes 1048000-1049000/3146962")], Body::Long(1_048_000..1_049_001)),
    get("2.1 Range of the last byte", "/ipfs/{root}/long.bin", &["Range: bytes=3146961-3146961"], 206, &[], Body::Long(3_146_961..3_146_962)),
    get("2.1 Range of index.html", "/ipfs/{root}/blog/", &["Range: bytes=0-8"], 206, &[("content-type", "^text/html")], Body::Is(b"<!doctype")),
    get("2.1 the type is the whole's", "/ipfs/{root}/data", &["Range: bytes=3-4"], 206, &[("content-type", "application/json")], Body::Any),
    get("2.1 a listing has no ranges", "/ipfs/{root}/", &["Range: bytes=0-4"], 200, &[("content-range", "-")], Body::Has(&["Index of"])),
    get("RFC 9110 14.2: Range means GET", "/ipfs/{root}/nothing", &["Range: bytes=0-4"], 404, &[], Body::Any),
];

#[rustfmt::skip]
const FORMATS: &[Row] = &[
    get("2.1 format=raw", "/ipfs/{hello}?format=raw", &[], 200, &[
        ("content-type", "application/vnd.ipld.raw"), ("etag", "\"{hello}.raw\""), ("content-disposition", "^attachment; filename=\"{hello}.bin\""),
        ("x-content-type-options", "nosniff"), ("cache-control", IMMUTABLE), ("x-ipfs-path", "/ipfs/{hello}"), ("accept-ranges", "bytes"),
    ], Body::Is(HELLO)),
    get("2.1 Accept raw", "/ipfs/{hello}", &["Accept: application/vnd.ipld.raw"], 200, &[("content-type", "application/vnd.ipld.raw")], Body::Is(HELLO)),
    get("2.1 raw of a path", "/ipfs/{root}/100%25.txt?format=raw", &[], 200, &[("etag", "\"{hello}.raw\""), ("x-ipfs-roots", "{root},{hello}")], Body::Is(HELLO)),
    get("2.1 raw of a folder is the folder", "/ipfs/{root}/blog?format=raw", &[], 200, &[("etag", "\"{blog}.raw\"")], Body::Any),
    get("2.1 raw and Range", "/ipfs/{hello}?format=raw", &["Range: bytes=0-4"], 206, &[], Body::Is(b"hello")),
    get("2.1 raw and If-None-Match", "/ipfs/{hello}?format=raw", &["If-None-Match: \"{hello}.raw\""], 304, &[], Body::Empty),
    get("2.1 raw and the file's Etag", "/ipfs/{hello}?format=raw", &["If-None-Match: \"{hello}\""], 200, &[], Body::Any),
    get("2.2 probe", "/ipfs/bafkqaaa?format=raw", &[], 200, &[("content-length", "0")], Body::Empty),
    get("2.1 format= wins over Accept", "/ipfs/{hello}?format=raw", &["Accept: application/vnd.ipld.car"], 200, &[("content-type", "application/vnd.ipld.raw")], Body::Any),
    get("10.8 Accept weights", "/ipfs/{hello}", &["Accept: application/vnd.ipld.car;q=0.5, application/vnd.ipld.raw"], 200, &[("content-type", "application/vnd.ipld.raw")], Body::Any),
    get("a browser's Accept", "/ipfs/{hello}", &["Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], 200, &[("content-type", "^text/plain")], Body::Is(HELLO)),
    get("10.11 unknown format", "/ipfs/{hello}?format=bogus", &[], 400, &[], Body::Any),
    get("10.12 errors are not kept", "/ipfs/{hello}?format=dag-cbor", &[], 406, &[("cache-control", "no-store")], Body::Any),
];

#[rustfmt::skip]
const REFUSALS: &[Row] = &[
    get("2.1 bad CID, suite", "/ipfs/QmInvalidCID", &[], 400, &[("content-type", "text/plain; charset=utf-8")], Body::Has(&["invalid path \"/ipfs/QmInvalidCID\""])),
    get("2.1 bad CID", "/ipfs/", &[], 400, &[], Body::Any),
    get("2.1 bad CID", "/ipfs/bafkqaaa0", &[], 400, &[], Body::Any),
    get("2.1 bad CID: Qm with a wrong letter", "/ipfs/QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQ0", &[], 400, &[], Body::Any),
    get("2.1 bad CID: one letter short", "/ipfs/bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52z", &[], 400, &[], Body::Any),
    get("2.1 bad percent-encoding", "/ipfs/{root}/%zz", &[], 400, &[], Body::Has(&["invalid path"])),
    get("2.1 bad percent-encoding at the end", "/ipfs/{root}/a%4", &[], 400, &[], Body::Any),
    get("threats: NUL", "/ipfs/{root}/a%00b", &[], 400, &[], Body::Any),
    get("threats: bad UTF-8", "/ipfs/{root}/%ff%fe", &[], 400, &[], Body::Any),
    get("threats: overlong UTF-8", "/ipfs/{root}/%c0%ae%c0%ae", &[], 400, &[], Body::Any),
    get("threats: way up", "/ipfs/{root}/../../../etc/passwd", &[], 404, &[], Body::Any),
    get("threats: way up, encoded", "/ipfs/{root}/%2e%2e/%2e%2e/etc/passwd", &[], 404, &[], Body::Any),
    get("threats: way up, encoded slash", "/ipfs/{root}/..%2f..%2fetc%2fpasswd", &[], 404, &[], Body::Any),
    get("threats: way up to a sibling", "/ipfs/{root}/blog/../100%25.txt", &[], 404, &[], Body::Any),
    get("2.1 missing path names the part", "/ipfs/{root}/nothing/here.html", &[], 404, &[("content-type", "text/plain; charset=utf-8"), ("retry-after", "-")], Body::Has(&["nothing"])),
    get("2.1 file below a file", "/ipfs/{root}/100%25.txt/below", &[], 404, &[], Body::Any),
    get("2.1 slash behind a file", "/ipfs/{root}/100%25.txt/", &[], 404, &[], Body::Any),
    get("2.1 below a symlink", "/ipfs/{root}/link/below", &[], 404, &[], Body::Any),
    get("2.1 capitals count", "/ipfs/{root}/BLOG/", &[], 404, &[], Body::Any),
    get("2.1 known not to be there", "/ipfs/{absent}", &[], 404, &[("cache-control", "no-store"), ("retry-after", "-")], Body::Any),
    get("2.1 known not to be there, raw", "/ipfs/{absent}?format=raw", &[], 404, &[], Body::Any),
    get("2.1 neither a key nor a domain", "/ipns/localhost/", &[], 400, &[("cache-control", "no-store")], Body::Any),
    get("no such page", "/favicon.ico", &[], 404, &[], Body::Any),
    get("no such page", "/ipfs", &[], 404, &[], Body::Any),
];

async fn check_all(rows: &[Row]) {
    let site = Site::start().await;
    for row in rows {
        site.check(row).await;
    }
}

#[tokio::test]
async fn files_table() {
    check_all(FILES).await;
}

#[tokio::test]
async fn folders_table() {
    check_all(FOLDERS).await;
}

#[tokio::test]
async fn conditions_table() {
    check_all(CONDITIONS).await;
}

#[tokio::test]
async fn ranges_table() {
    check_all(RANGES).await;
}

#[tokio::test]
async fn formats_table() {
    check_all(FORMATS).await;
}

/// Each refusal as text, as a page, and each with words for a person.
#[tokio::test]
async fn refusals_table() {
    let site = Site::start().await;
    for row in REFUSALS {
        site.check(row).await;
        let target = site.fill(row.target);
        let html = site.gateway.ask("GET", &target, &["Accept: text/html,*/*;q=0.8"]).await;
        assert_eq!(
            (html.status, html.header("content-type").as_deref()),
            (row.status, Some("text/html; charset=utf-8")),
            "{target}"
        );
        let text = html.text();
        assert!(
            text.contains(&row.status.to_string()) && text.contains("name=\"viewport\"") && html.body.len() < 4096,
            "{target}: {text}"
        );
        assert!(!text.contains("<b>"), "what was asked is escaped");
    }
    let page =
        site.gateway.ask("GET", &format!("/ipfs/{}/%3Cscript%3Ealert(1)%3C/script%3E", site.root), &["Accept: text/html"]).await;
    assert!(page.status == 404 && !page.text().contains("<script>"), "{}", page.text());
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
    assert_head_equals_get("the listing", &head, &listing);
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
