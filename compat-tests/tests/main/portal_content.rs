//! What a portal serves besides plain files (`specs/skynet.md` 5, 6): archives as real tools read them, hosts and names of
//! skylinks, proofs checked by a program that shares no code with the gateway, health, denied content.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use compat_tests::content::{Added, Content, Item};
use compat_tests::wire::Answer;
use compat_tests::{Gateway, Options, host_folders, seeded_bytes, unixfs};

use crate::skylinks::{base32hex, from_base64url};

const HOME: &[u8] = b"<h1>home</h1>";
const RULES: &[u8] = b"/old/* /new/:splat 302\n/gone /page.html 410\n/app/* /index.html 200\n";

struct Portal {
    gateway: Gateway,
    content: Content,
    site: Added,
    single: Added,
    folder: tempfile::TempDir,
}

/// Paths that need care: blanks, other scripts, more than the 100 bytes of a TAR header, more than its 255.
fn content() -> Content {
    let (long, longer) = (format!("dir/{}.txt", "l".repeat(120)), format!("{}{}.txt", "deep/".repeat(60), "m".repeat(110)));
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("_redirects".to_owned(), RULES.to_vec()),
        ("a b/ąę.txt".to_owned(), b"odd name".to_vec()),
        ("dir/empty.bin".to_owned(), Vec::new()),
        ("dir/sub/block.bin".to_owned(), seeded_bytes(1, 65_535)),
        ("dir/sub/block+1.bin".to_owned(), seeded_bytes(2, 65_536)),
        ("dir/tar.bin".to_owned(), seeded_bytes(3, 1024)),
        ("index.html".to_owned(), HOME.to_vec()),
        ("large.bin".to_owned(), seeded_bytes(4, 30_000_000)),
        ("page.html".to_owned(), b"<p>page</p>".to_vec()),
        (long, b"long".to_vec()),
        (longer, b"longer".to_vec()),
    ];
    files.extend((0..150).map(|number| (format!("many/{number:03}.txt"), format!("file {number}").into_bytes())));
    Content::folder("site", files.into_iter().map(|(path, bytes)| (path, Item::File(bytes))))
}

/// Uploads, and starts anew with names that point to what was uploaded: nothing is in memory.
async fn portal() -> Portal {
    let folder = tempfile::tempdir().expect("a folder");
    let content = content();
    let gateway = Gateway::start(folder.path());
    let site = gateway.upload(&content).await;
    let single = gateway.upload(&Content::file("note.txt", b"one file".to_vec())).await;
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let gateway = start(folder.path(), &site, "").await;
    Portal { gateway, content, site, single, folder }
}

async fn start(data: &Path, site: &Added, more: &str) -> Gateway {
    let link = site.skylink();
    let config = format!(
        "[portal]\ndomains = [\"portal.example\"]\n[names]\nresolver = \"none\"\n[names.static]\n\
         \"site.example.org\" = \"/skynet-ns/{link}\"\n\"dir.example.org\" = \"/skynet-ns/{link}/dir\"\n{more}"
    );
    let gateway = Gateway::start_with(data, &Options::config(config));
    gateway.catalog_complete().await;
    gateway
}

/// Runs a program over a file's bytes on its standard input; `None` where it is not installed.
fn run(command: &mut Command, input: &[u8]) -> Option<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("SKIPPED {command:?}: {error}");
            return None;
        }
    };
    let mut to = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || drop(to.write_all(&input)));
    let output = child.wait_with_output().expect("it ends");
    feeder.join().expect("no panic");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Every file below a folder.
fn files_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").to_str().expect("UTF-8").to_owned();
                found.insert(name, std::fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

fn below<'a>(content: &'a Content, prefix: &str) -> Vec<(&'a str, &'a [u8])> {
    content.files().filter(|(path, _)| path.starts_with(prefix)).collect()
}

#[tokio::test]
async fn archives_as_their_readers_see_them() {
    let portal = portal().await;
    let link = portal.site.skylink();
    for (path, prefix, name) in [("/", "", "site"), ("/dir", "dir/", "dir"), ("/dir/", "dir/", "dir"), ("/many", "many/", "many")] {
        let expect: BTreeMap<String, Vec<u8>> =
            below(&portal.content, prefix).into_iter().map(|(path, bytes)| (path.to_owned(), bytes.to_vec())).collect();
        for (format, kind, ending) in
            [("zip", "application/zip", "zip"), ("tar", "application/x-tar", "tar"), ("targz", "application/gzip", "tar.gz")]
        {
            let target = format!("/{link}{path}?format={format}");
            let answer = portal.gateway.get(&target).await;
            assert!(answer.status == 200 && answer.whole, "{target}: {}", answer.status);
            assert_eq!(answer.header("content-type").as_deref(), Some(kind), "{target}");
            let disposition = format!("attachment; filename=\"{name}.{ending}\"");
            assert!(answer.header("content-disposition").is_some_and(|value| value.starts_with(&disposition)), "{target}");
            assert_eq!(answer.header("skynet-skylink").as_deref(), Some(link));
            let folder = tempfile::tempdir().expect("a folder");
            let Some(names) = unpack(format, &answer.body, folder.path()) else { continue };
            assert!(files_below(folder.path()) == expect, "{target}: other files");
            // In the order of their offsets, which is that of the names here.
            assert_eq!(names, expect.keys().cloned().collect::<Vec<_>>(), "{target}");
            heads_and_conditions(&portal.gateway, &target, &answer).await;
        }
    }
    folders_without_a_format(&portal).await;
    files_as_one(&portal).await;
}

/// Unpacks with the usual tools and returns the names in the archive's order.
fn unpack(format: &str, bytes: &[u8], folder: &Path) -> Option<Vec<String>> {
    let lines = |text: String| text.lines().map(str::to_owned).collect();
    if format != "zip" {
        run(Command::new("tar").args(["-xf", "-", "--force-local"]).args(gzip(format)).arg("-C").arg(folder), bytes)?;
        let mut list = Command::new("tar");
        list.args(["-tf", "-", "--quoting-style=literal"]).args(gzip(format)).env("LC_ALL", "C.UTF-8");
        return run(&mut list, bytes).map(lines);
    }
    let archive = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(archive.path(), bytes).expect("written");
    // One reader tests every checksum and tells the names; Info-ZIP, where it is, unpacks, else the same reader.
    let script = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; z.extractall(sys.argv[2]); \
                  print('\\n'.join(z.namelist()))";
    let names =
        run(Command::new("python3").args(["-c", script]).arg(archive.path()).arg(folder).env("PYTHONIOENCODING", "utf-8"), b"")?;
    let again = tempfile::tempdir().expect("a folder");
    let mut unzip = Command::new("unzip");
    unzip.arg("-q").arg(archive.path()).arg("-d").arg(again.path()).env("LC_ALL", "C.UTF-8");
    if run(&mut unzip, b"").is_some() {
        assert!(files_below(again.path()) == files_below(folder), "two readers, one content");
    }
    Some(lines(names))
}

fn gzip(format: &str) -> &'static [&'static str] {
    if format == "targz" { &["-z"] } else { &[] }
}

async fn heads_and_conditions(gateway: &Gateway, target: &str, get: &Answer) {
    let head = gateway.ask("HEAD", target, &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
    for name in ["content-type", "content-disposition", "content-length", "etag", "accept-ranges", "skynet-skylink"] {
        assert_eq!(head.header(name), get.header(name), "{target}: {name}");
    }
    if let Some(length) = get.header("content-length") {
        assert_eq!(length, get.body.len().to_string(), "{target}");
    } else {
        assert!(target.ends_with("targz"), "{target}: only what is compressed has no length");
    }
    let etag = get.header("etag").expect("an Etag");
    let again = gateway.ask("GET", target, &[&format!("If-None-Match: {etag}")]).await;
    assert_eq!((again.status, again.body.len()), (304, 0), "{target}");
    let ranged = gateway.ask("GET", target, &["Range: bytes=0-9"]).await;
    assert_eq!((ranged.status, ranged.header("content-range")), (200, None), "{target}: archives have no ranges");
}

async fn folders_without_a_format(portal: &Portal) {
    let link = portal.site.skylink();
    let (bare, zip) =
        (portal.gateway.get(&format!("/{link}/many")).await, portal.gateway.get(&format!("/{link}/many?format=zip")).await);
    assert_eq!(bare.header("content-type").as_deref(), Some("application/zip"));
    assert!(bare.body == zip.body, "a folder is a ZIP");
    for (target, status) in [
        (format!("/{link}/nothing?format=tar"), 404),
        (format!("/{link}/man?format=tar"), 404),
        (format!("/{link}/?format=rar"), 400),
        (format!("/{link}/?format=TARGZ"), 200),
        (format!("/{link}/index.html?format=zip"), 200),
    ] {
        assert_eq!(portal.gateway.ask("HEAD", &target, &[]).await.status, status, "{target}");
    }
    let single = portal.gateway.get(&format!("/{}?format=tar", portal.single.skylink())).await;
    assert_eq!((single.status, &single.body[..8], &single.body[512..520]), (200, &b"note.txt"[..], &b"one file"[..]));
}

/// `format=concat`: no archive, but one body with ranges.
async fn files_as_one(portal: &Portal) {
    let link = portal.site.skylink();
    for (path, prefix) in [("/", ""), ("/dir", "dir/"), ("/index.html", "index.html")] {
        let whole: Vec<u8> = below(&portal.content, prefix).into_iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let target = format!("/{link}{path}?format=concat");
        let answer = portal.gateway.get(&target).await;
        assert!(answer.status == 200 && answer.whole && answer.body == whole, "{target}");
        assert_eq!(answer.header("accept-ranges").as_deref(), Some("bytes"));
        let (start, end) = (whole.len() / 3, whole.len() - 5);
        let part = portal.gateway.get(&format!("{target}&start={start}&end={end}")).await;
        assert!(part.status == 206 && part.body == whole[start..=end], "{target}");
    }
}

#[tokio::test]
async fn attachments_and_layouts() {
    let portal = portal().await;
    let (site, single) = (portal.site.skylink(), portal.single.skylink());
    for (target, status, start) in [
        (format!("/file/{single}"), 200, "attachment; filename=\"note.txt\""),
        (format!("/file/{single}/note.txt"), 200, "attachment; filename=\"note.txt\""),
        // Nothing is shown, so there is nothing to redirect for.
        (format!("/file/{site}"), 200, "attachment; filename=\"index.html\""),
        (format!("/file/{site}/page.html"), 200, "attachment; filename=\"page.html\""),
        (format!("/file/{site}/nothing"), 404, ""),
        (format!("/skynet/skylink/{single}"), 200, "inline; filename=\"note.txt\""),
        (format!("/{single}?attachment=1"), 200, "attachment; filename=\"note.txt\""),
        (format!("/{single}?attachment=False"), 200, "inline; filename=\"note.txt\""),
    ] {
        let answer = portal.gateway.get(&target).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
        assert!(answer.header("content-disposition").unwrap_or_default().starts_with(start), "{target}");
    }
    for (link, pieces) in [(single, "00000000000000000000"), (site, "0603")] {
        let answer = portal.gateway.ask("HEAD", &format!("/{link}?include-layout=true"), &[]).await;
        let layout = answer.header("skynet-file-layout").expect("a layout");
        assert_eq!((layout.len(), &layout[..2]), (198, "01"));
        assert!(layout[34..].contains(pieces), "{layout}");
        assert_eq!(portal.gateway.get(&format!("/{link}/")).await.header("skynet-file-layout"), None);
    }
}

/// Every skylink has an origin of its own, in which nothing else answers.
#[tokio::test]
async fn hosts_and_names_of_skylinks() {
    let portal = portal().await;
    let link = portal.site.skylink();
    let label = base32hex(&from_base64url(link));
    let get = async |host: &str, path: &str| portal.gateway.ask("GET", path, &[&format!("Host: {host}")]).await;
    let own = format!("{label}.localhost:1234");
    let hosts = [
        own.clone(),
        own.to_ascii_uppercase(),
        format!("{label}.portal.example"),
        "site.example.org".to_owned(),
        "site.example.org.ipns.localhost".to_owned(),
    ];
    for host in &hosts {
        for (path, status, body) in [
            ("/", 200, HOME),
            ("/index.html", 200, HOME),
            ("/a%20b/%C4%85%C4%99.txt", 200, b"odd name"),
            ("/app/deep/link", 200, HOME),
            ("/old/x%20y?q=1", 302, b"/new/x%20y?q=1\n"),
            ("/gone", 410, b"<p>page</p>"),
            ("/else", 404, b""),
            ("/skynet/stats", 404, b""),
            ("/skynet/skyfile", 404, b""),
            ("/health-check", 404, b""),
            (&format!("/{link}/"), 404, b""),
            (&format!("/ipfs/{}/", portal.site.cid), 404, b""),
            ("/file/x", 404, b""),
        ] {
            let answer = get(host, path).await;
            assert_eq!(answer.status, status, "{host} {path}: {}", answer.text());
            assert!(body.is_empty() || answer.body == body, "{host} {path}: {}", answer.text());
            if status == 200 {
                assert_eq!(answer.header("skynet-skylink").as_deref(), Some(link), "{host} {path}");
            }
        }
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let answer = portal.gateway.ask(method, "/skynet/skyfile", &[&format!("Host: {host}"), "Content-Length: 0"]).await;
            assert_eq!(answer.status, 405, "{method} {host}: an origin of content takes nothing");
        }
    }
    // The API stands where the portal is, not at the skylink's host.
    for (host, api) in [(own.as_str(), "http://localhost:1234"), (&hosts[2], "http://portal.example")] {
        assert_eq!(get(host, "/").await.header("skynet-portal-api").as_deref(), Some(api));
    }
    // A path that the name points to comes first, and has rules of its own: none here.
    for (path, status) in
        [("/tar.bin", 200), ("/sub/block.bin", 200), ("/index.html", 404), ("/app/x", 404), ("/../index.html", 404)]
    {
        assert_eq!(get("dir.example.org", path).await.status, status, "{path}");
    }
    // Paths of shared hosts have no rules.
    for (path, status) in [
        (format!("/{link}/app/deep"), 404),
        ("/ipns/site.example.org/app/deep".to_owned(), 404),
        ("/ipns/site.example.org/page.html".to_owned(), 200),
        ("/ipns/site.example.org".to_owned(), 308),
    ] {
        assert_eq!(get("127.0.0.1", &path).await.status, status, "{path}");
    }
    for (host, path, status) in [
        // Not `/`, which is the landing page of any host.
        (format!("{link}.localhost"), "/page.html", 404),
        (format!("{label}.example.net"), "/page.html", 404),
        (format!("x.{label}.localhost"), "/page.html", 404),
        (format!("{}.localhost", "v".repeat(55)), "/page.html", 400),
        (format!("{}.localhost", &label[..54]), "/page.html", 404),
        ("portal.example".to_owned(), &format!("/{link}/"), 200),
    ] {
        assert_eq!(get(&host, path).await.status, status, "{host}");
    }
    // Two spellings of one skylink would be two origins.
    let last = if label.ends_with('0') { '1' } else { '0' };
    let spelt = format!("{}{last}", &label[..54]);
    let odd = get(&format!("{spelt}.localhost"), "/app?x").await;
    assert!(odd.status == 301 || from_base64url(link) != from_base32hex(&spelt), "{} {}", odd.status, odd.text());
}

fn from_base32hex(text: &str) -> Vec<u8> {
    let (mut buffer, mut bits, mut out) = (0_u32, 0, Vec::new());
    for byte in text.bytes() {
        let value = if byte.is_ascii_digit() { byte - b'0' } else { byte - b'a' + 10 };
        buffer = buffer << 5 | u32::from(value);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push((buffer >> bits) as u8);
        }
    }
    out
}

/// The hash tree of a sector, folded by a program that shares no code with the gateway.
const CHECK_PROOF: &str = r#"
import sys, hashlib
root, offset, length = bytes.fromhex(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
body = sys.stdin.buffer.read()
data, proof = body[:length], body[length:]
assert len(data) == length and len(proof) % 32 == 0
hashes = iter(proof[at:at + 32] for at in range(0, len(proof), 32))
H = lambda bytes: hashlib.blake2b(bytes, digest_size=32).digest()
start, end = offset // 64, (offset + length) // 64
def node(low, high):
    if high <= start or low >= end:
        return next(hashes)
    if high - low == 1:
        at = (low - start) * 64
        return H(b'\0' + data[at:at + 64])
    middle = (low + high) // 2
    left = node(low, middle)
    return H(b'\1' + left + node(middle, high))
assert node(0, 65536) == root, "the proof does not lead to the root"
assert next(hashes, None) is None, "too many hashes"
print("ok")
"#;

#[tokio::test]
async fn slices_proofs_and_metadata() {
    let portal = portal().await;
    for added in [&portal.site, &portal.single] {
        let link = added.skylink();
        let raw = from_base64url(link);
        let root = hex::encode(&raw[2..]);
        let base = portal.gateway.get(&format!("/skynet/basesector/{link}")).await;
        let proved = portal.gateway.get(&format!("/skynet/trustless/basesector/{}", base32hex(&raw))).await;
        assert_eq!((base.status, proved.status), (200, 200));
        for answer in [&base, &proved] {
            assert_eq!(answer.header("skynet-skylink").as_deref(), Some(link));
            assert_eq!(answer.header("skynet-proof"), None);
            assert_eq!(answer.header("content-type").as_deref(), Some("application/octet-stream"));
        }
        let length = base.body.len();
        assert!(proved.body[..length] == base.body && length % 4096 == 0, "the slice comes first");
        let mut check = Command::new("python3");
        check.args(["-c", CHECK_PROOF, &root, "0", &length.to_string()]);
        if let Some(said) = run(&mut check, &proved.body) {
            assert_eq!(said.trim(), "ok");
        }
        // Layout, fanout, metadata: as the bytes that are hashed have them.
        let eight = |at: usize| u64::from_le_bytes(base.body[at..at + 8].try_into().expect("eight")) as usize;
        let (metadata_bytes, fanout_bytes) = (eight(9), eight(17));
        let metadata = portal.gateway.get(&format!("/skynet/metadata/{link}")).await;
        assert!(metadata.body == base.body[99 + fanout_bytes..][..metadata_bytes]);
        assert_eq!(metadata.json()["filename"].as_str().map(str::is_empty), Some(false));
        let part = portal.gateway.get(&format!("/skynet/root?root={root}&offset=64&length=1000")).await;
        assert!(part.status == 200 && part.body == base.body[64..1064]);
        assert_eq!(portal.gateway.get(&format!("/skynet/resolve/{link}")).await.status, 400);
    }
    let mut other = from_base64url(portal.single.skylink());
    other[9] ^= 1;
    for route in ["metadata", "basesector", "trustless/basesector", "health/skylink"] {
        for (text, status) in [(crate::skylinks::base64url(&other), 404), ("nonsense".to_owned(), 400)] {
            let answer = portal.gateway.get(&format!("/skynet/{route}/{text}")).await;
            assert_eq!(answer.status, status, "{route}");
            assert!(answer.json()["message"].is_string(), "{route}");
        }
    }
}

/// Numbers of what is there, and they fall with the hosts.
#[tokio::test]
async fn health_tells_what_is_there() {
    let portal = portal().await;
    let (site, single) = (portal.site.clone(), portal.single.clone());
    let health =
        async |gateway: &Gateway, added: &Added| gateway.get(&format!("/skynet/health/skylink/{}", added.skylink())).await.json();
    let full = health(&portal.gateway, &site).await;
    let whole = serde_json::json!({
        "basesectorredundancy": 4, "fanoutdatapieces": 6, "fanoutparitypieces": 3, "fanoutslabs": 2,
        "fanoutredundancy": [1.5, 1.5], "fanouteffectiveredundancy": 1.5,
    });
    assert_eq!(full, whole);
    assert_eq!(health(&portal.gateway, &single).await["fanoutredundancy"], serde_json::json!([]));
    assert!(portal.gateway.stop().success());
    let folders = host_folders(portal.folder.path());
    for folder in &folders[..3] {
        std::fs::remove_dir_all(folder).expect("removed");
    }
    let gateway = start(portal.folder.path(), &site, "").await;
    let less = health(&gateway, &site).await;
    // Nine pieces on nine hosts: three are gone, from each slab.
    assert_eq!(less["fanoutredundancy"], serde_json::json!([1.0, 1.0]));
    assert_eq!(less["fanouteffectiveredundancy"], 1.0);
    assert!(less["basesectorredundancy"].as_u64().is_some_and(|copies| (1..=4).contains(&copies)), "{less}");
    let answer = gateway.get(&format!("/{}/?format=tar", site.skylink())).await;
    assert!(answer.status == 200 && answer.whole, "and all of it can be read");
}

/// A file that an operator forbids is in none of the forms.
#[tokio::test]
async fn what_is_denied_is_in_no_archive() {
    let portal = portal().await;
    let denied = unixfs::raw(&seeded_bytes(3, 1024)).cid();
    let Portal { gateway, site, folder, .. } = portal;
    assert!(gateway.stop().success());
    let list = folder.path().join("rules.deny");
    std::fs::write(&list, format!("version: 1\n---\n/ipfs/{denied}\n")).expect("written");
    let gateway = start(folder.path(), &site, &format!("[deny]\nlists = [{list:?}]\n")).await;
    let link = site.skylink();
    let label = base32hex(&from_base64url(link));
    for (host, path, status) in [
        ("127.0.0.1", format!("/{link}/dir/tar.bin"), 410),
        ("127.0.0.1", format!("/file/{link}/dir/tar.bin"), 410),
        ("127.0.0.1", format!("/{link}/?format=zip"), 410),
        ("127.0.0.1", format!("/{link}/?format=tar"), 410),
        ("127.0.0.1", format!("/{link}/dir?format=targz"), 410),
        ("127.0.0.1", format!("/{link}/dir"), 410),
        ("127.0.0.1", format!("/{link}/dir?format=concat"), 410),
        ("127.0.0.1", format!("/{link}/many?format=zip"), 200),
        ("127.0.0.1", format!("/{link}/page.html"), 200),
        (&format!("{label}.localhost"), "/dir/tar.bin".to_owned(), 410),
        ("site.example.org", "/dir/tar.bin".to_owned(), 410),
        ("site.example.org", "/page.html".to_owned(), 200),
        // The sector of a large skyfile has names and hashes, no content.
        ("127.0.0.1", format!("/skynet/basesector/{link}"), 200),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = gateway.ask(method, &path, &[&format!("Host: {host}")]).await;
            assert_eq!(answer.status, status, "{method} {host} {path}: {}", answer.text());
        }
    }
}
