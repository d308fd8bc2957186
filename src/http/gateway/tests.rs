//! The path gateway over a real socket: hand-made trees, then the conformance suite's fixtures.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::address::{Cid, codec};
use crate::http::testing::{ABSENT, Memory, TestServer, start};
use crate::tree::test_dag::TestDag;

const HELLO: &[u8] = b"hello from a file with 34 bytes..\n";

/// A site: index.html, a folder without one, a file of several leaves, a symlink, odd names.
fn site() -> (Memory, Cid) {
    let mut memory = Memory::default();
    let dag = &mut memory.dag;
    let hello = dag.raw(HELLO);
    let long: Vec<u8> = (0..50_000_u32).map(|i| (i % 251) as u8).collect();
    let long = dag.file(&long, 4096, 4);
    let page = dag.raw(b"<!doctype html><title>x</title>");
    let link = dag.symlink("foo");
    let json = dag.raw(b"{\"a\": 1}");
    let below = dag.dir(&[("file-\u{17a}\u{142}.txt", hello), ("long.bin", long)]);
    let indexed = dag.dir(&[("index.html", page)]);
    let root = dag.dir(&[
        ("100%.txt", hello),
        ("data", json),
        ("empty", dag_empty(&hello)),
        ("indexed", indexed),
        ("link", link),
        ("\u{105}", below),
    ]);
    (memory, root)
}

/// The identity CID of nothing: an empty file that is stored nowhere.
fn dag_empty(_: &Cid) -> Cid {
    crate::address::parse_cid("bafkqaaa").expect("a CID")
}

/// Slashes in front count as one, and must not make another host of a folder's name.
#[tokio::test]
async fn a_folder_is_never_another_host() {
    let (memory, root) = site();
    let server = start(memory).await;
    let host = format!("Host: {root}.ipfs.localhost");
    for (target, location) in [("/indexed", "/indexed/"), ("//indexed", "/indexed/"), ("///indexed?a=b", "/indexed/?a=b")] {
        let answer = server.get(target, &[&host]).await;
        assert_eq!((answer.status, answer.header("location")), (301, Some(location)), "{target}");
    }
    let listing = server.get("//%C4%85/", &[&host]).await.text();
    assert!(listing.contains("href=\"/%C4%85/long.bin\""), "{listing}");
}

#[tokio::test]
async fn files_and_their_headers() {
    let (memory, root) = site();
    let server = start(memory).await;
    let path = format!("/ipfs/{root}/%C4%85/file-%C5%BA%C5%82.txt");
    let first = server.get(&path, &[]).await;
    assert_eq!((first.status, first.body.as_slice()), (200, HELLO));
    let etag = first.header("etag").expect("etag").to_owned();
    for (name, expect) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "public, max-age=29030400, immutable"),
        ("accept-ranges", "bytes"),
        ("content-length", "34"),
        ("x-ipfs-path", path.as_str()),
        ("access-control-allow-origin", "*"),
        ("cache-status", "skygate; fwd=miss; detail=hosts"),
    ] {
        assert_eq!(first.header(name), Some(expect), "{name}");
    }
    assert_eq!(first.header("x-ipfs-roots").map(|roots| roots.split(',').count()), Some(3));
    assert!(first.header("x-ipfs-roots").is_some_and(|roots| roots.starts_with(&root.to_string())));
    assert!(first.header("server-timing").is_some_and(|timing| timing.contains("fetch;dur=")));
    assert!(first.header("content-disposition").is_none());

    // The second answer comes from the answer cache and is the same.
    let again = server.get(&path, &[]).await;
    assert_eq!((again.status, &again.body, again.header("etag")), (200, &first.body, Some(etag.as_str())));
    let head = server.ask("HEAD", &path, &[]).await;
    assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, Some("34")));
    let rows = server.services.measures.summaries();
    assert!(rows.iter().any(|row| row.class == "hosts" && row.count == 2), "{rows:?}");

    for condition in [etag.clone(), format!("W/{etag}"), format!("\"a\", \"b\", {etag}"), "*".to_owned()] {
        let same = server.get(&path, &[&format!("If-None-Match: {condition}")]).await;
        assert_eq!((same.status, same.body.len()), (304, 0), "{condition}");
        assert_eq!(same.header("etag"), Some(etag.as_str()));
        assert!(same.header("cache-control").is_some());
    }
}

#[tokio::test]
async fn ranges_of_a_file_of_many_leaves() {
    let (memory, root) = site();
    let server = start(memory).await;
    let path = format!("/ipfs/{root}/%C4%85/long.bin");
    let whole = server.get(&path, &[]).await;
    assert_eq!((whole.status, whole.body.len(), whole.broken), (200, 50_000, false));
    for (range, expect, content_range) in [
        ("6-16", 6..17, "bytes 6-16/50000"),
        ("-3", 49_997..50_000, "bytes 49997-49999/50000"),
        ("4000-9000", 4000..9001, "bytes 4000-9000/50000"),
        ("49999-99999", 49_999..50_000, "bytes 49999-49999/50000"),
    ] {
        let part = server.get(&path, &[&format!("Range: bytes={range}")]).await;
        assert_eq!((part.status, &part.body[..]), (206, &whole.body[expect]), "{range}");
        assert_eq!(part.header("content-range"), Some(content_range));
        assert_eq!(part.header("content-type"), whole.header("content-type"));
    }
    let two = server.get(&path, &["Range: bytes=6-16,0-4"]).await;
    assert_eq!((two.status, two.broken), (206, false));
    assert!(two.header("content-type").is_some_and(|kind| kind.starts_with("multipart/byteranges; boundary=")));
    let mut parts = Vec::new();
    parts.extend_from_slice(b"Content-Range: bytes 6-16/50000\r\n\r\n");
    parts.extend_from_slice(&whole.body[6..17]);
    assert!(two.body.windows(parts.len()).any(|window| window == parts));

    let out = server.get(&path, &["Range: bytes=50000-"]).await;
    assert_eq!((out.status, out.header("content-range")), (416, Some("bytes */50000")));
    assert_eq!(out.header("cache-control"), Some("no-store"), "errors are not kept");
    assert_eq!(server.get(&path, &["Range: bytes=9-3"]).await.status, 400);
}

#[tokio::test]
async fn directories_and_names() {
    let (memory, root) = site();
    let server = start(memory).await;
    let slash = server.get(&format!("/ipfs/{root}/%C4%85?x=1"), &[]).await;
    assert_eq!((slash.status, slash.header("location")), (301, Some(format!("/ipfs/{root}/%C4%85/?x=1").as_str())));

    let index = server.get(&format!("/ipfs/{root}/indexed/"), &[]).await;
    assert_eq!((index.status, index.header("content-type")), (200, Some("text/html")));
    let dir_etag = index.header("x-ipfs-roots").and_then(|roots| roots.rsplit(',').next()).map(|cid| format!("\"{cid}\""));
    assert_eq!(index.header("etag").map(str::to_owned), dir_etag, "the directory's CID");

    let listing = server.get(&format!("/ipfs/{root}/"), &[]).await;
    assert_eq!(listing.status, 200);
    assert!(
        listing.header("etag").is_some_and(|etag| etag.starts_with("\"DirIndex-") && etag.ends_with(&format!("_CID-{root}\"")))
    );
    assert_eq!(listing.header("cache-control"), Some("public, max-age=604800, stale-while-revalidate=2678400"));
    assert!(listing.text().contains(&format!("<a href=\"/ipfs/{root}/100%25.txt\">100%.txt</a>")), "{}", listing.text());
    assert!(listing.body.len() < 6 * 1024, "{}", listing.body.len());
    let head = server.ask("HEAD", &format!("/ipfs/{root}/"), &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in ["etag", "content-type", "x-ipfs-path", "x-ipfs-roots", "content-length", "cache-control"] {
        assert_eq!(head.header(name), listing.header(name), "{name}");
    }
    let etag = listing.header("etag").expect("etag");
    assert_eq!(server.get(&format!("/ipfs/{root}/"), &[&format!("If-None-Match: {etag}")]).await.status, 304);

    let percent = server.get(&format!("/ipfs/{root}/100%25.txt"), &[]).await;
    assert_eq!((percent.status, percent.body.as_slice()), (200, HELLO));
    let link = server.get(&format!("/ipfs/{root}/link"), &[]).await;
    assert_eq!((link.status, link.text().as_str(), link.header("content-type")), (200, "foo", Some("inode/symlink")));
    let empty = server.get(&format!("/ipfs/{root}/empty"), &[]).await;
    assert_eq!((empty.status, empty.header("content-length")), (200, Some("0")));
    let json = server.get(&format!("/ipfs/{root}/data"), &[]).await;
    assert_eq!(json.header("content-type"), Some("application/json"), "told from the bytes");
    let ranged = server.get(&format!("/ipfs/{root}/data"), &["Range: bytes=3-4"]).await;
    assert_eq!(ranged.header("content-type"), Some("application/json"), "of a range, too");
}

#[tokio::test]
async fn a_fresh_range_knows_the_type_of_the_whole() {
    let (memory, root) = site();
    let server = start(memory).await;
    let head = server.ask("HEAD", &format!("/ipfs/{root}/data"), &[]).await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/json")));
    let (memory, root) = site();
    let server = start(memory).await;
    let ranged = server.get(&format!("/ipfs/{root}/data"), &["Range: bytes=3-4"]).await;
    assert_eq!((ranged.status, ranged.header("content-type")), (206, Some("application/json")));
}

#[tokio::test]
async fn names_in_the_query_and_raw_blocks() {
    let (memory, root) = site();
    let server = start(memory).await;
    let path = format!("/ipfs/{root}/100%25.txt");
    for (query, expect) in [
        (
            "?filename=test%D1%82%D0%B5%D1%81%D1%82.pdf",
            Some("inline; filename=\"test____.pdf\"; filename*=UTF-8''test%D1%82%D0%B5%D1%81%D1%82.pdf"),
        ),
        ("?filename=a.txt&download=true", Some("attachment; filename=\"a.txt\"; filename*=UTF-8''a.txt")),
        ("?download=true", Some("attachment; filename=\"100%.txt\"; filename*=UTF-8''100%25.txt")),
        ("?download=false", None),
    ] {
        assert_eq!(server.get(&format!("{path}{query}"), &[]).await.header("content-disposition"), expect, "{query}");
    }
    let pdf = server.get(&format!("{path}?filename=x.pdf"), &[]).await;
    assert_eq!(pdf.header("content-type"), Some("application/pdf"), "the given name counts");

    for (target, headers) in
        [(format!("/ipfs/{root}?format=raw"), &[][..]), (format!("/ipfs/{root}"), &["Accept: application/vnd.ipld.raw"][..])]
    {
        let raw = server.get(&target, headers).await;
        assert_eq!((raw.status, raw.header("content-type")), (200, Some("application/vnd.ipld.raw")));
        assert_eq!(raw.header("etag").map(str::to_owned), Some(format!("\"{root}.raw\"")));
        assert_eq!(raw.header("x-content-type-options"), Some("nosniff"));
        assert!(
            raw.header("content-disposition")
                .is_some_and(|value| value.starts_with(&format!("attachment; filename=\"{root}.bin\"")))
        );
        crate::address::check_bytes(root.hash(), &raw.body).expect("the block itself");
    }
    let negotiated = server.get(&format!("/ipfs/{root}?x=1"), &["Accept: application/vnd.ipld.raw"]).await;
    assert_eq!(negotiated.header("content-location").map(str::to_owned), Some(format!("/ipfs/{root}?format=raw&x=1")));
    assert_eq!(negotiated.header("vary"), Some("Accept"));
    let below = server.get(&format!("/ipfs/{root}/indexed?format=raw"), &[]).await;
    assert_eq!((below.status, below.header("x-ipfs-roots").map(|roots| roots.split(',').count())), (200, Some(2)));
    let leaf = server.get(&format!("/ipfs/{root}/100%25.txt?format=raw"), &[]).await;
    assert_eq!((leaf.status, leaf.body.as_slice()), (200, HELLO));
    assert_eq!(server.get(&format!("/ipfs/{root}?format=dag-cbor"), &[]).await.status, 406);
    assert_eq!(server.get(&format!("/ipfs/{root}?format=bogus"), &[]).await.status, 400);
    assert_eq!(server.get("/ipfs/bafkqaaa?format=raw", &[]).await.status, 200, "the probe");
}

#[tokio::test]
async fn refusals() {
    let (mut memory, root) = site();
    let cbor = memory.dag.put(codec::DAG_CBOR, b"\xa0".to_vec());
    let lost = memory.dag.raw(b"lost");
    memory.lost.push(lost);
    let server = start(memory).await;
    for (target, headers, status, words) in [
        ("/ipfs/QmInvalidCID".to_owned(), &[][..], 400, "invalid path \"/ipfs/QmInvalidCID\""),
        (format!("/ipfs/{root}/%zz"), &[][..], 400, "percent"),
        (format!("/ipfs/{root}/%00"), &[][..], 400, "NUL"),
        (format!("/ipfs/{root}/../../etc/passwd"), &[][..], 404, ".."),
        (format!("/ipfs/{root}/nothing/here"), &[][..], 404, "nothing"),
        (format!("/ipfs/{root}/100%25.txt/below"), &[][..], 404, "below"),
        (format!("/ipfs/{ABSENT}"), &[][..], 404, "nothing is stored here"),
        (format!("/ipfs/{lost}"), &[][..], 502, "storage hosts are out of reach"),
        (format!("/ipfs/{cbor}?format=dag-json"), &[][..], 406, "0x71"),
        (format!("/ipfs/{root}/"), &["Service-Worker: script"][..], 400, "service worker"),
        (format!("/ipfs/{ABSENT}"), &["Cache-Control: only-if-cached"][..], 412, "not at hand"),
        ("/ipns/example.com".to_owned(), &[][..], 500, "no record is known for example.com"),
        ("/no/such/page".to_owned(), &[][..], 404, "/ipfs/"),
    ] {
        let text = server.get(&target, headers).await;
        assert_eq!(text.status, status, "{target}");
        assert!(text.text().contains(words), "{target}: {}", text.text());
        assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"), "{target}");
        assert!(text.header("cache-control").is_none_or(|rule| rule == "no-store"), "{target}");
        assert_eq!(text.header("retry-after").is_some(), matches!(status, 502..=504), "{target}");
        let html_headers: Vec<&str> = headers.iter().copied().chain(["Accept: text/html"]).collect();
        let html = server.get(&target, &html_headers).await;
        assert_eq!((html.status, html.header("content-type")), (status, Some("text/html; charset=utf-8")), "{target}");
        assert!(html.body.len() < 3000);
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let refused = server.ask(method, &format!("/ipfs/{root}/"), &[]).await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD, OPTIONS")), "{method}");
    }
    let preflight = server.ask("OPTIONS", &format!("/ipfs/{root}/"), &["Origin: https://a.example"]).await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-methods")), (200, Some("GET, HEAD, OPTIONS")));
    let cached = server.get(&format!("/ipfs/{root}/"), &["Cache-Control: only-if-cached"]).await;
    assert_eq!(cached.status, 200);
}

#[tokio::test]
async fn a_failure_after_the_first_byte_breaks_the_connection() {
    let (mut memory, root) = site();
    let bytes: Vec<u8> = (0..40_000_u32).map(|i| (i % 13) as u8).collect();
    let file = memory.dag.file(&bytes, 4096, 16);
    let third = crate::address::cid_v1(codec::RAW, crate::address::sha2_256(&bytes[2 * 4096..3 * 4096]));
    memory.lost.push(third);
    let server = start(memory).await;
    let broken = server.get(&format!("/ipfs/{file}"), &[]).await;
    assert!(broken.broken && matches!(broken.status, 0 | 200), "{}", broken.status);
    assert!(broken.body.len() < 40_000 && bytes.starts_with(&broken.body), "no wrong byte: {}", broken.body.len());
    let good = server.get(&format!("/ipfs/{file}"), &["Range: bytes=20000-20009"]).await;
    assert_eq!((good.status, &good.body[..]), (206, &bytes[20_000..20_010]), "only the blocks in range are needed");
    let first_lost = server.get(&format!("/ipfs/{file}"), &["Range: bytes=8192-8200"]).await;
    assert_eq!(first_lost.status, 502, "before the first byte it is a proper error");
    assert_eq!(server.get(&format!("/ipfs/{root}/"), &[]).await.status, 200);
}

/// A client that goes away stops the stream behind its reply.
#[tokio::test]
async fn a_dropped_client_cancels() {
    let mut memory = Memory::default();
    let bytes = vec![7_u8; 64 << 20];
    let file = memory.dag.file(&bytes, 1 << 20, 100);
    let dropped = memory.streams.clone();
    let server = start(memory).await;
    let mut client = TcpStream::connect(server.public).await.expect("connects");
    client.write_all(format!("GET /ipfs/{file} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("writes");
    let mut some = [0; 4096];
    client.read_exact(&mut some).await.expect("the reply has begun");
    let before = dropped.load(Ordering::SeqCst);
    drop(client);
    // Ends only if the server drops the stream.
    while dropped.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_sharded_directory_is_listed_and_read() {
    let mut memory = Memory::default();
    let file = memory.dag.raw(HELLO);
    let entries: Vec<(String, Cid)> = (0..5_000).map(|i| (format!("file-{i:05}.txt"), file)).collect();
    let root = memory.dag.shards(&entries, 256);
    let server = start(memory).await;
    let listing = server.get(&format!("/ipfs/{root}/"), &[]).await;
    assert_eq!((listing.status, listing.broken), (200, false));
    assert_eq!(listing.header("transfer-encoding"), Some("chunked"));
    let head = server.ask("HEAD", &format!("/ipfs/{root}/"), &[]).await;
    for name in ["content-length", "etag", "content-type"] {
        assert_eq!(head.header(name), listing.header(name), "{name}");
    }
    let text = listing.text();
    assert_eq!(text.matches("class=\"ipfs-hash\"").count(), 5_000);
    assert!(text.contains(&format!("<a href=\"/ipfs/{root}/file-04999.txt\">")) && text.ends_with("</html>\n"));
    let one = server.get(&format!("/ipfs/{root}/file-01234.txt"), &[]).await;
    assert_eq!((one.status, one.body.as_slice()), (200, HELLO));
    assert_eq!(one.header("x-ipfs-roots").map(|roots| roots.split(',').count()), Some(2), "shards are no steps of the path");
    assert_eq!(server.get(&format!("/ipfs/{root}/file-99999.txt"), &[]).await.status, 404);
}

#[tokio::test]
async fn a_lost_shard_breaks_the_listing_off() {
    let mut memory = Memory::default();
    let file = memory.dag.raw(HELLO);
    let entries: Vec<(String, Cid)> = (0..2_000).map(|i| (format!("file-{i:05}.txt"), file)).collect();
    let root = memory.dag.shards(&entries, 256);
    let lost =
        *memory.dag.blocks().map(|(cid, _)| cid).find(|cid| **cid != root && cid.codec() == codec::DAG_PB).expect("a shard below");
    memory.lost.push(lost);
    let server = start(memory).await;
    let listing = server.get(&format!("/ipfs/{root}/"), &[]).await;
    assert!(listing.status == 502 || listing.broken, "never a listing that looks whole");
}

// ---------------------------------------------------------------- the conformance suite's fixtures

async fn fixture(path: &str) -> Option<(TestServer, Cid)> {
    let dag = TestDag::from_car(&format!("conformance/fixtures/{path}"))?;
    let root = dag.roots[0];
    Some((start(Memory { dag, ..Memory::default() }).await, root))
}

#[tokio::test]
async fn suite_listing() {
    let Some((server, root)) = fixture("dir_listing/fixtures.car").await else { return };
    let top = server.get(&format!("/ipfs/{root}/"), &[]).await.text();
    assert!(top.contains("Index of") && !top.contains(&format!("<a href=\"/ipfs/{root}/\">..</a>")));
    let slash = server.get(&format!("/ipfs/{root}/%C4%85/%C4%99"), &[]).await;
    assert_eq!((slash.status, slash.header("location")), (301, Some(format!("/ipfs/{root}/%C4%85/%C4%99/").as_str())));
    let page = server.get(&format!("/ipfs/{root}/%C4%85/%C4%99/"), &[]).await;
    assert!(page.header("etag").is_some_and(|etag| etag.contains("\"DirIndex-")));
    let text = page.text();
    for words in [
        format!("<a href=\"/ipfs/{root}/%C4%85/%C4%99/..\">..</a>"),
        format!("/ipfs/<a href=\"/ipfs/{root}\">{root}</a>/<a href=\"/ipfs/{root}/%C4%85\">ą</a>/<a href=\"/ipfs/{root}/%C4%85/%C4%99\">ę</a>"),
        format!("<a href=\"/ipfs/{root}/%C4%85/%C4%99/file-%C5%BA%C5%82.txt\">file-źł.txt</a>"),
        "<a class=\"ipfs-hash\" translate=\"no\" href=\"/ipfs/bafkreialihlqnf5uwo4byh4n3cmwlntwqzxxs2fg5vanqdi3d7tb2l5xkm?filename=file-%25C5%25BA%25C5%2582.txt\">".to_owned(),
    ] {
        assert!(text.contains(&words), "{words}\n{text}");
    }
}

#[tokio::test]
async fn suite_symlink_and_percent_names() {
    if let Some((server, root)) = fixture("path_gateway_unixfs/symlink.car").await {
        let link = server.get(&format!("/ipfs/{root}/bar"), &[]).await;
        assert_eq!((link.status, link.text().as_str()), (200, "foo"));
    }
    if let Some((server, root)) = fixture("path_gateway_unixfs/dir-with-percent-encoded-filename.car").await {
        let file = server.get(&format!("/ipfs/{root}/Portugal%252C+Espa%C3%B1a=Peninsula%20Ib%C3%A9rica.txt"), &[]).await;
        assert_eq!(file.status, 200, "{}", file.text());
    }
}

#[tokio::test]
async fn suite_ranges_and_a_missing_block() {
    if let Some((server, root)) = fixture("path_gateway_unixfs/dir-with-files.car").await {
        let path = format!("/ipfs/{root}/ascii.txt");
        let whole = server.get(&path, &[]).await.body;
        for (range, expect) in [("6-16", 6..17), ("-3", whole.len() - 3..whole.len())] {
            let part = server.get(&path, &[&format!("Range: bytes={range}")]).await;
            assert_eq!((part.status, &part.body[..]), (206, &whole[expect]));
        }
    }
    if let Some((server, root)) = fixture("trustless_gateway_car/file-3k-and-3-blocks-missing-block.car").await {
        let first = server.get(&format!("/ipfs/{root}"), &["Range: bytes=0-1000"]).await;
        assert_eq!((first.status, first.body.len()), (206, 1001), "{}", first.text());
        let last = server.get(&format!("/ipfs/{root}"), &["Range: bytes=2200-"]).await;
        assert_eq!((last.status, last.broken), (206, false));
        let whole = server.get(&format!("/ipfs/{root}"), &[]).await;
        assert!(whole.broken);
    }
}

#[tokio::test]
async fn suite_cache_headers() {
    let Some((server, root)) = fixture("gateway-cache/fixtures.car").await else { return };
    let file = server.get(&format!("/ipfs/{root}/root2/root3/root4/index.html"), &[]).await;
    assert_eq!((file.status, file.header("cache-control")), (200, Some("public, max-age=29030400, immutable")));
    assert_eq!(file.header("x-ipfs-path").map(str::to_owned), Some(format!("/ipfs/{root}/root2/root3/root4/index.html")));
    assert_eq!(file.header("x-ipfs-roots").map(|roots| roots.split(',').count()), Some(5));
    let index = server.get(&format!("/ipfs/{root}/root2/root3/root4/"), &[]).await;
    let roots = index.header("x-ipfs-roots").expect("roots").to_owned();
    assert_eq!(roots.split(',').count(), 4);
    assert_eq!(index.header("etag").map(str::to_owned), roots.rsplit(',').next().map(|cid| format!("\"{cid}\"")));
    let listing = server.get(&format!("/ipfs/{root}/root2/root3/"), &[]).await;
    assert!(listing.header("etag").is_some_and(|etag| etag.starts_with("\"DirIndex-")));
}

/// A key's record as such, and the one address of its content.
#[tokio::test]
async fn ipns_records() {
    let key = "k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w";
    let peer_id = "12D3KooWLQzUv2FHWGVPXTXSZpdHs7oHbXub2G5WC8Tx4NQhyd2d";
    let server = start(Memory::default()).await;
    let names = &server.services.names;
    names.put_record(key, "the record".into()).await.expect("taken");
    let usual = names.put_record(peer_id, "another".into()).await.expect("taken");
    let kind = "application/vnd.ipfs.ipns-record";
    let accept = format!("Accept: {kind}");
    let target = format!("/ipns/{key}?format=ipns-record");
    let asked = [
        (target.clone(), "", None),
        (format!("/ipns/{key}"), accept.as_str(), Some(target.clone())),
        (format!("/ipns/{key}/?x=1"), accept.as_str(), Some(format!("/ipns/{key}/?format=ipns-record&x=1"))),
    ];
    for (target, header, location) in &asked {
        let answer = server.get(target, &[header]).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "the record"), "{target}");
        for (name, value) in [
            ("content-type", kind),
            ("cache-control", "public, max-age=1800"),
            ("x-content-type-options", "nosniff"),
            ("vary", "Accept"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{target} {name}");
        }
        let disposition = answer.header("content-disposition").expect("an attachment");
        assert!(disposition.starts_with(&format!("attachment; filename=\"{key}.ipns-record\"")), "{disposition}");
        assert_eq!(answer.header("content-location").map(str::to_owned), *location, "{target}");
        // kubo's is without quotes, and never gives a 304 (`ipfs-gateway.md` 10, row 7).
        let etag = answer.header("etag").expect("an etag");
        assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
        let same = server.get(target, &[header, &format!("If-None-Match: {etag}")]).await;
        assert_eq!((same.status, same.body.len()), (304, 0), "{target}");
        let head = server.ask("HEAD", target, &[header]).await;
        assert_eq!((head.status, head.header("etag"), head.header("content-length")), (200, Some(etag), Some("10")));
    }
    for (target, status) in [
        (format!("/ipns/{key}/a?format=ipns-record"), 400),
        ("/ipfs/bafkqaaa?format=ipns-record".to_owned(), 400),
        ("/ipns/example.com?format=ipns-record".to_owned(), 400),
        ("/ipns/k51qzi5uqu5dit2ku9mutlfgwyz8u730on38kd10m97m36bjt66my99hb6103f?format=ipns-record".to_owned(), 500),
    ] {
        let answer = server.get(&target, &[]).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
    }
    for rest in ["", "/", "/a%20b/c?x=1&format=raw", "?format=ipns-record"] {
        let answer = server.get(&format!("/ipns/{peer_id}{rest}"), &[]).await;
        assert_eq!(answer.status, 302, "{rest}");
        assert_eq!(answer.header("location"), Some(format!("/ipns/{usual}{rest}").as_str()));
    }
}
