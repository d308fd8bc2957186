//! `GET` and `HEAD` of `/{skylink}[/path]` (`specs/skynet.md` 5) over uploads of this gateway.

use compat_tests::content::{Added, Content, Item};
use compat_tests::{Gateway, seeded_bytes};

const HOME: &[u8] = b"<h1>home</h1>";
const PAGE: &[u8] = b"<h1>dir</h1>";

struct Portal {
    gateway: Gateway,
    site: Added,
    single: Added,
    large: Vec<u8>,
    _folder: tempfile::TempDir,
}

async fn portal() -> Portal {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    let large = seeded_bytes(31, 30_000_000);
    let content = Content::folder(
        "site",
        [
            ("a b/ąę.txt".to_owned(), Item::File(b"odd name".to_vec())),
            ("app.js".to_owned(), Item::File(b"let x = 1;".to_vec())),
            ("dir/index.html".to_owned(), Item::File(PAGE.to_vec())),
            ("dir/page.html".to_owned(), Item::File(b"<p>page</p>".to_vec())),
            ("index.html".to_owned(), Item::File(HOME.to_vec())),
            ("large.bin".to_owned(), Item::File(large.clone())),
            ("link".to_owned(), Item::Symlink("app.js".to_owned())),
        ],
    );
    let site = gateway.upload(&content).await;
    let single = gateway.upload(&Content::file("note.txt", b"one file".to_vec())).await;
    Portal { gateway, site, single, large, _folder: folder }
}

#[tokio::test]
async fn paths_and_tryfiles() {
    let portal = portal().await;
    let link = portal.site.skylink();
    assert_eq!(link.len(), 46);
    for (path, status, body) in [
        ("/", 200, HOME),
        ("/index.html", 200, HOME),
        ("/app.js", 200, b"let x = 1;"),
        ("/dir", 200, PAGE),
        ("/dir/", 200, PAGE),
        ("/dir/page.html", 200, b"<p>page</p>"),
        ("/a%20b/%C4%85%C4%99.txt", 200, b"odd name"),
        ("/nothing", 404, b""),
        ("/nothing/index.html", 404, b""),
        // An existing file with a slash is left alone (skynet.md 5.2).
        ("/app.js/", 404, b""),
        // Symlinks and empty folders exist only in the DAG.
        ("/link", 404, b""),
    ] {
        for _ in 0..2 {
            let answer = portal.gateway.get(&format!("/{link}{path}")).await;
            assert_eq!(answer.status, status, "{path}: {}", answer.text());
            assert_eq!(answer.header("cache-control").filter(|rule| rule != "no-store"), None, "{path}: Skynet sends none");
            if status == 200 {
                assert_eq!(answer.body, body, "{path}");
                assert_eq!(answer.header("skynet-skylink").as_deref(), Some(link), "{path}");
                assert_eq!(answer.header("skynet-proof"), None, "a v1 link has no proof");
                let head = portal.gateway.ask("HEAD", &format!("/{link}{path}"), &[]).await;
                assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
                for name in ["content-length", "content-type", "etag", "skynet-skylink", "content-disposition", "accept-ranges"] {
                    assert_eq!(head.header(name), answer.header(name), "{path}: {name}");
                }
            } else {
                assert_eq!(answer.header("content-type").as_deref(), Some("application/json; charset=utf-8"), "{path}");
                assert!(answer.text().ends_with("\"}\n") && answer.json()["message"].is_string(), "{path}: {}", answer.text());
            }
        }
    }
    let large = portal.gateway.get(&format!("/{link}/large.bin")).await;
    assert!(large.whole && large.body == portal.large);
    let by_cid = portal.gateway.get(&format!("/ipfs/{}/large.bin", portal.site.cid)).await;
    assert!(by_cid.body == portal.large, "both addresses, one content");
}

#[tokio::test]
async fn the_root_of_a_site_wants_its_slash() {
    let portal = portal().await;
    let (link, gateway) = (portal.site.skylink(), &portal.gateway);
    for (method, target, status, location) in [
        ("GET", format!("/{link}"), 308, Some(format!("{link}/"))),
        ("GET", format!("/{link}?x=1&y=2"), 308, Some(format!("{link}/?x=1&y=2"))),
        ("GET", format!("/{link}?attachment=true"), 200, None),
        ("HEAD", format!("/{link}"), 200, None),
        ("GET", format!("/{link}/"), 200, None),
        ("GET", format!("/{}", portal.single.skylink()), 200, None),
    ] {
        let answer = gateway.ask(method, &target, &[]).await;
        assert_eq!((answer.status, answer.header("location")), (status, location), "{method} {target}");
    }
}

#[tokio::test]
async fn headers_of_one_file() {
    let portal = portal().await;
    let target = format!("/{}", portal.single.skylink());
    let answer = portal.gateway.ask("GET", &target, &["Origin: https://app.example"]).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "one file"));
    let host = portal.gateway.public.clone();
    for (name, expect) in [
        ("content-disposition", "inline; filename=\"note.txt\""),
        ("skynet-portal-api", host.as_str()),
        ("skynet-server-api", host.as_str()),
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-credentials", "true"),
        ("accept-ranges", "bytes"),
        ("content-length", "8"),
    ] {
        assert!(answer.header(name).is_some_and(|value| value.starts_with(expect)), "{name}: {:?}", answer.header(name));
    }
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    assert!(
        answer
            .header("access-control-expose-headers")
            .is_some_and(|list| ["Skynet-Skylink", "ETag", "Skynet-Portal-Api"].iter().all(|name| list.contains(name)))
    );
    let attached = portal.gateway.get(&format!("{target}?attachment=true")).await;
    assert!(attached.header("content-disposition").is_some_and(|value| value.starts_with("attachment; filename=\"note.txt\"")));
    let etag = answer.header("etag").expect("an Etag");
    assert_eq!(etag.trim_matches('"').len(), 64, "hex of a hash");
    let preflight = portal.gateway.ask("OPTIONS", &target, &["Origin: https://app.example"]).await;
    assert_eq!((preflight.status, preflight.header("access-control-max-age").as_deref()), (204, Some("1728000")));
    let landing = portal.gateway.ask("HEAD", "/", &[]).await;
    assert_eq!((landing.status, landing.header("skynet-portal-api")), (200, Some(host)), "clients look for it");
    assert_eq!(portal.gateway.ask("POST", &target, &["Content-Length: 0"]).await.status, 405);
}

/// base32 is the same link, in any case.
#[tokio::test]
async fn forms_of_a_skylink() {
    let portal = portal().await;
    let base64 = portal.single.skylink();
    let bytes = from_base64url(base64);
    let base32 = base32hex(&bytes);
    assert_eq!((bytes.len(), base32.len()), (34, 55));
    for form in [base64.to_owned(), base32.clone(), base32.to_ascii_uppercase()] {
        let answer = portal.gateway.get(&format!("/{form}")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "one file"), "{form}");
        assert_eq!(answer.header("skynet-skylink").as_deref(), Some(base64), "{form}");
    }
}

#[tokio::test]
async fn conditions_and_ranges() {
    let portal = portal().await;
    let gateway = &portal.gateway;
    let target = format!("/{}", portal.single.skylink());
    let etag = gateway.get(&target).await.header("etag").expect("an Etag");
    for (headers, status) in [
        (vec![format!("If-None-Match: {etag}")], 304),
        (vec![format!("If-None-Match: \"a\", W/{etag}")], 304),
        (vec!["If-None-Match: *".to_owned()], 304),
        (vec!["If-None-Match: \"other\"".to_owned()], 200),
        (vec!["If-Match: \"other\"".to_owned()], 412),
        (vec![format!("If-Range: {etag}"), "Range: bytes=0-2".to_owned()], 206),
        (vec!["If-Range: \"x\"".to_owned(), "Range: bytes=0-2".to_owned()], 200),
    ] {
        let lines: Vec<&str> = headers.iter().map(String::as_str).collect();
        assert_eq!(gateway.ask("GET", &target, &lines).await.status, status, "{headers:?}");
    }
    for (query, header, status, body, range) in [
        ("", "Range: bytes=4-7", 206, "file", Some("bytes 4-7/8")),
        ("", "Range: bytes=-4", 206, "file", Some("bytes 4-7/8")),
        ("?start=4&end=7", "", 206, "file", Some("bytes 4-7/8")),
        ("?start=0&end=2", "", 206, "one", Some("bytes 0-2/8")),
        ("", "Range: bytes=8-", 416, "", Some("bytes */8")),
        ("?start=4", "", 400, "", None),
        ("?end=4", "", 400, "", None),
        ("?start=7&end=4", "", 400, "", None),
        ("?start=-1&end=4", "", 400, "", None),
        ("?start=4&end=7", "Range: bytes=0-1", 400, "", None),
        ("?timeout=0", "", 400, "", None),
        ("?timeout=901", "", 400, "", None),
        ("?timeout=900", "", 200, "one file", None),
        ("?attachment=perhaps", "", 400, "", None),
        ("?format=rar", "", 400, "", None),
        ("?priceperms=1", "", 200, "one file", None),
    ] {
        let answer = gateway.ask("GET", &format!("{target}{query}"), &[header]).await;
        assert_eq!(answer.status, status, "{query} {header}: {}", answer.text());
        assert_eq!(answer.header("content-range").as_deref(), range, "{query} {header}");
        if status < 300 {
            assert_eq!(answer.text(), body, "{query} {header}");
        } else if status != 416 {
            assert!(answer.json()["message"].is_string(), "{query}");
        }
    }
    // Across slabs' rows and to the end of a file inside a site.
    let size = portal.large.len();
    for (start, end) in
        [(0, 1), (63, 66), (4 << 20, (4 << 20) + 5), (25_165_820, 25_165_830), (size - 10, size), (1_000_000, 9_000_000)]
    {
        let answer = gateway
            .ask("GET", &format!("/{}/large.bin", portal.site.skylink()), &[&format!("Range: bytes={start}-{}", end - 1)])
            .await;
        assert_eq!((answer.status, answer.header("content-range")), (206, Some(format!("bytes {start}-{}/{size}", end - 1))));
        assert!(answer.whole && answer.body == portal.large[start..end], "{start}..{end}");
    }
}

#[tokio::test]
async fn links_that_are_not_here() {
    let portal = portal().await;
    let link = portal.site.skylink();
    let mut other = from_base64url(link);
    other[20] ^= 1;
    let mut resolver = from_base64url(link);
    resolver[..2].copy_from_slice(&[1, 0]);
    let mut unknown = from_base64url(link);
    unknown[..2].copy_from_slice(&[2, 0]);
    // The length in a link is an upper bound (skynet.md 2): here of 1,152 KiB from offset 0.
    let mut longer = from_base64url(link);
    longer[..2].copy_from_slice(&0xfc_u16.to_le_bytes());
    let mut ones = from_base64url(link);
    ones[..2].copy_from_slice(&0xfffc_u16.to_le_bytes());
    for (what, target, statuses) in [
        ("another root", format!("/{}", base64url(&other)), &[404][..]),
        ("a resolver link", format!("/{}", base64url(&resolver)), &[400, 404, 501][..]),
        ("an unknown version", format!("/{}", base64url(&unknown)), &[400][..]),
        ("all ones", format!("/{}", base64url(&ones)), &[400][..]),
        ("one letter short", format!("/{}", &link[..45]), &[404][..]),
        ("one letter more", format!("/{link}A"), &[404][..]),
        ("a NUL", format!("/{link}/a%00"), &[400][..]),
        ("bad percent-encoding", format!("/{link}/%zz"), &[400][..]),
        ("bad UTF-8", format!("/{link}/%ff"), &[400][..]),
        ("a way up", format!("/{link}/../../etc/passwd"), &[404][..]),
        ("a way up, encoded", format!("/{link}/%2e%2e%2f%2e%2e%2fetc"), &[404][..]),
        ("a longer slice of the same sector", format!("/{}/", base64url(&longer)), &[200][..]),
    ] {
        let answer = portal.gateway.get(&target).await;
        assert!(statuses.contains(&answer.status), "{what}: {target}: {} {}", answer.status, answer.text());
        assert!(!answer.text().contains("root:"), "{what}");
    }
}

/// The same bytes give the same link, by the shape of `add` (`design.md` 5): that of a multipart upload.
#[tokio::test]
async fn links_follow_from_the_content() {
    let portal = portal().await;
    let again = portal.gateway.upload(&Content::file("note.txt", b"one file".to_vec())).await;
    assert_eq!(again.skylink, portal.single.skylink);
    let renamed = portal.gateway.upload(&Content::file("other.txt", b"one file".to_vec())).await;
    assert_ne!(renamed.skylink, portal.single.skylink, "the name is in the metadata");
    assert_eq!(renamed.cid, portal.single.cid, "and not in the DAG");
}

pub fn from_base64url(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'-' => 62,
        _ => 63,
    };
    let (mut buffer, mut bits, mut out) = (0_u32, 0, Vec::new());
    for byte in text.bytes() {
        buffer = buffer << 6 | u32::from(value(byte));
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((buffer >> bits) as u8);
        }
    }
    out
}

pub fn base64url(bytes: &[u8]) -> String {
    encode(bytes, 6, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
}

pub fn base32hex(bytes: &[u8]) -> String {
    encode(bytes, 5, b"0123456789abcdefghijklmnopqrstuv")
}

fn encode(bytes: &[u8], width: u32, alphabet: &[u8]) -> String {
    let (mut buffer, mut bits, mut out) = (0_u64, 0, String::new());
    for byte in bytes {
        buffer = buffer << 8 | u64::from(*byte);
        bits += 8;
        while bits >= width {
            bits -= width;
            out.push(alphabet[(buffer >> bits) as usize & (alphabet.len() - 1)] as char);
        }
        buffer &= 0xffff;
    }
    if bits > 0 {
        out.push(alphabet[(buffer << (width - bits)) as usize & (alphabet.len() - 1)] as char);
    }
    out
}
