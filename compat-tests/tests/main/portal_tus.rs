//! tus 1.0.0 under `/skynet/tus` (`specs/skynet.md` 8): pieces, parts, broken connections, kills, limits.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use compat_tests::content::compare;
use compat_tests::npm::install_from;
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, Options, Starting, Tier, binary, seeded_bytes, skyfile, tier, unixfs, until};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const TUS: &str = "Tus-Resumable: 1.0.0";
const TYPE: &str = "Content-Type: application/offset+octet-stream";
/// The gateway makes what came durable at least this often inside a request (README).
const CHECKPOINT_BYTES: usize = 16 << 20;
/// Steps of a few MiB on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn request(gateway: &Gateway, method: &str, target: &str, headers: &[&str], length: Option<usize>) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n{TUS}\r\n");
    if !headers.iter().any(|line| line.starts_with("Host:")) {
        text.push_str(&format!("Host: {}\r\n", gateway.public.trim_start_matches("http://")));
    }
    headers.iter().filter(|line| !line.is_empty()).for_each(|line| text.push_str(&format!("{line}\r\n")));
    if let Some(length) = length {
        text.push_str(&format!("Content-Length: {length}\r\n"));
    }
    text + "\r\n"
}

async fn send(gateway: &Gateway, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Answer {
    let length = (!body.is_empty() || method == "PATCH").then_some(body.len());
    let head = request(gateway, method, target, headers, length);
    wire::exchange(&gateway.public, &[head.as_bytes(), body].concat(), method).await
}

fn metadata(filename: &str, filetype: &str) -> String {
    format!("Upload-Metadata: filename {},filetype {}", STANDARD.encode(filename), STANDARD.encode(filetype))
}

/// Makes an upload; answers with its URL.
async fn make(gateway: &Gateway, headers: &[&str]) -> String {
    let answer = send(gateway, "POST", "/skynet/tus", headers, b"").await;
    assert_eq!(answer.status, 201, "{headers:?}: {}\n{}", answer.text(), gateway.log());
    answer.header("location").expect("a location")
}

async fn make_long(gateway: &Gateway, length: usize, name: &str) -> String {
    let url = make(gateway, &[&format!("Upload-Length: {length}"), &metadata(name, "video/mp4")]).await;
    path_of(&url).to_owned()
}

/// Behind scheme and host, which are another's after a start.
fn path_of(url: &str) -> &str {
    let at = url.find("/skynet/tus/").expect("a URL of an upload");
    &url[at..]
}

async fn patch(gateway: &Gateway, path: &str, offset: usize, body: &[u8]) -> Answer {
    send(gateway, "PATCH", path, &[TYPE, &format!("Upload-Offset: {offset}")], body).await
}

async fn head(gateway: &Gateway, path: &str) -> Answer {
    let answer = send(gateway, "HEAD", path, &[], b"").await;
    assert_eq!(answer.status, 200, "{path}\n{}", gateway.log());
    assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"));
    answer
}

fn offset_of(answer: &Answer) -> usize {
    answer.header("upload-offset").expect("an offset").parse().expect("a number")
}

/// Opens a request that has come as far as `sent` of its bytes, and hangs.
async fn hang(gateway: &Gateway, path: &str, offset: usize, length: usize, sent: &[u8]) -> TcpStream {
    let head = request(gateway, "PATCH", path, &[TYPE, &format!("Upload-Offset: {offset}")], Some(length));
    let mut socket = wire::connect(&gateway.public).await.expect("connects");
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket.write_all(sent).await.expect("sent");
    socket
}

fn spool_of(gateway: &Gateway, path: &str) -> PathBuf {
    gateway.data.join("spool").join(path.trim_start_matches("/skynet/tus/"))
}

/// The offset that the node would go on from after a kill.
async fn durable(gateway: &Gateway, path: &str, least: usize) -> usize {
    let state = spool_of(gateway, path).join("state");
    until(&format!("{least} bytes are durable"), SOON, async || {
        let text = std::fs::read_to_string(&state).map_err(|error| error.to_string())?;
        let offset = serde_json::from_str::<Value>(&text).expect("JSON")["offset"].as_u64().expect("a number") as usize;
        if offset >= least { Ok(offset) } else { Err(text) }
    })
    .await
}

/// Addresses of what an upload became, which all say the same; and its content reads back by both.
async fn assert_stored(gateway: &Gateway, path: &str, bytes: &[u8]) -> (String, String) {
    let answer = head(gateway, path).await;
    assert_eq!(offset_of(&answer), bytes.len());
    let skylink = answer.header("skynet-skylink").unwrap_or_else(|| panic!("no skylink\n{}", gateway.log()));
    let told = answer.header("upload-metadata").expect("metadata");
    assert!(told.ends_with(&format!(",Skylink {}", STANDARD.encode(&skylink))), "{told}");
    let cid = answer.header("skygate-cid").expect("a CID");
    assert_eq!(cid, unixfs::file(bytes).cid());
    let json = gateway.get(&path.replace("/skynet/tus/", "/skynet/upload/tus/")).await.json();
    assert_eq!((json["skylink"].as_str(), json["cid"].as_str()), (Some(skylink.as_str()), Some(cid.as_str())));
    assert_eq!(json["merkleroot"].as_str().map(str::len), Some(64));
    for target in [format!("/{skylink}"), format!("/ipfs/{cid}")] {
        if let Err(error) = compare(&target, &gateway.get(&target).await, bytes) {
            panic!("{error}\n{}", gateway.log());
        }
    }
    assert!(!spool_of(gateway, path).join("data").exists(), "the bytes here are gone");
    (skylink, cid)
}

async fn pins_of(gateway: &Gateway, cid: &str) -> usize {
    gateway.catalog_complete().await;
    let pins = gateway.admin_json("/api/v1/pins?limit=1000").await;
    pins["pins"].as_array().expect("a list").iter().filter(|pin| pin["cid"] == cid).count()
}

#[tokio::test]
async fn one_stream_has_the_skylink_of_one_subfile() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let bytes = seeded_bytes(1, 50_000);
    let url = make(&gateway, &["Upload-Length: 50000", &metadata("a b.bin", "application/octet-stream")]).await;
    assert!(url.starts_with(&format!("{}/skynet/tus/", gateway.public)), "absolute, by the name that was asked: {url}");
    let path = path_of(&url).to_owned();
    // No offset is better than another.
    for (from, to) in [(0, 1), (1, 4097), (4097, 4097), (4097, 50_000)] {
        assert_eq!(offset_of(&head(&gateway, &path).await), from);
        let answer = patch(&gateway, &path, from, &bytes[from..to]).await;
        assert_eq!((answer.status, offset_of(&answer)), (204, to), "{}", answer.text());
    }
    let (skylink, _) = assert_stored(&gateway, &path, &bytes).await;
    let subfile = r#"{"filename":"a b.bin","contenttype":"application/octet-stream","len":50000}"#;
    let json = format!(r#"{{"filename":"a b.bin","length":50000,"subfiles":{{"a b.bin":{subfile}}}}}"#);
    assert_eq!(skylink, skyfile::small(&json, &bytes));

    // Bytes with the creation; and none at all.
    let with = ["Upload-Length: 50000", &metadata("a b.bin", "application/octet-stream"), TYPE];
    let answer = send(&gateway, "POST", "/skynet/tus", &with, &bytes).await;
    assert_eq!((answer.status, offset_of(&answer)), (201, 50_000), "{}", answer.text());
    assert_eq!(answer.header("skynet-skylink").as_deref(), Some(skylink.as_str()));
    let empty = make(&gateway, &["Upload-Length: 0", &metadata("empty", "")]).await;
    let (skylink, _) = assert_stored(&gateway, path_of(&empty), b"").await;
    assert_eq!(skylink, skyfile::small(r#"{"filename":"empty","length":0,"subfiles":{"empty":{"filename":"empty"}}}"#, b""));
    assert_eq!(gateway.get(path_of(&empty)).await.status, 200, "GET tells the outcome, too");
}

#[tokio::test]
async fn parts_are_one_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let bytes = seeded_bytes(2, (8 << 20) + 7);
    let (first, second) = bytes.split_at(5 << 20);
    let part = async |bytes: &[u8]| {
        let url = make(&gateway, &[&format!("Upload-Length: {}", bytes.len()), "Upload-Concat: partial"]).await;
        for (index, piece) in bytes.chunks(2 << 20).enumerate() {
            let answer = patch(&gateway, path_of(&url), index * (2 << 20), piece).await;
            assert_eq!((answer.status, answer.header("skynet-skylink")), (204, None), "{}", answer.text());
        }
        let state = head(&gateway, path_of(&url)).await;
        assert_eq!(state.header("upload-concat").as_deref(), Some("partial"));
        url
    };
    let (first, second) = tokio::join!(part(first), part(second));
    let concat = format!("Upload-Concat: final;{first} {second}");
    let url = make(&gateway, &[&concat, &metadata("video", "video/mp4")]).await;
    let (skylink, _) = assert_stored(&gateway, path_of(&url), &bytes).await;
    let state = head(&gateway, path_of(&url)).await;
    assert_eq!(state.header("upload-concat"), concat.strip_prefix("Upload-Concat: ").map(str::to_owned));
    assert_eq!(patch(&gateway, path_of(&url), bytes.len(), b"").await.status, 403);
    assert_eq!(make(&gateway, &[&concat, &metadata("video", "video/mp4")]).await, url, "a client that asks again");
    assert_eq!(send(&gateway, "HEAD", path_of(&first), &[], b"").await.status, 410);

    let whole = make_long(&gateway, bytes.len(), "video").await;
    patch(&gateway, &whole, 0, &bytes).await;
    assert_eq!(assert_stored(&gateway, &whole, &bytes).await.0, skylink, "the same file by one stream");
}

/// A connection that dies, and one that does not know yet that it is dead.
#[tokio::test]
async fn broken_connections() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let bytes = seeded_bytes(3, 6 << 20);
    let path = make_long(&gateway, bytes.len(), "broken").await;
    let socket = hang(&gateway, &path, 0, bytes.len(), &bytes[..1 << 20]).await;
    drop(socket);
    let offset = durable(&gateway, &path, 1 << 20).await;
    assert_eq!(offset, 1 << 20, "all that came is kept");
    let mut hanging = hang(&gateway, &path, offset, bytes.len() - offset, &bytes[offset..3 << 20]).await;
    // Else HEAD may come before it, and takes nothing over.
    until("its bytes come in", SOON, async || {
        let length = std::fs::metadata(spool_of(&gateway, &path).join("data")).map_err(|error| error.to_string())?.len();
        if length > offset as u64 { Ok(()) } else { Err(format!("{length} bytes")) }
    })
    .await;
    let offset = offset_of(&head(&gateway, &path).await);
    assert!((1 << 20..=3 << 20).contains(&offset), "{offset}");
    let first = wire::read_answer(&mut hanging, "PATCH").await.map(|answer| answer.status);
    assert!(!matches!(first, Ok(status) if status != 423), "the one that hung is told, if it hears: {first:?}");
    assert_eq!(patch(&gateway, &path, offset, &bytes[offset..5 << 20]).await.status, 204);
    assert_eq!(patch(&gateway, &path, offset, &bytes[offset..]).await.status, 409);
    assert_eq!(patch(&gateway, &path, 5 << 20, &bytes[5 << 20..]).await.status, 204);
    assert_stored(&gateway, &path, &bytes).await;
}

#[tokio::test]
async fn kills_between_and_inside_requests() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let bytes = seeded_bytes(4, CHECKPOINT_BYTES * 2);
    let path = make_long(&gateway, bytes.len(), "killed").await;
    assert_eq!(patch(&gateway, &path, 0, &bytes[..1000]).await.status, 204);
    gateway.kill();

    let gateway = Gateway::start(folder.path());
    assert_eq!(offset_of(&head(&gateway, &path).await), 1000, "what was told is there");
    let sent = 1000 + CHECKPOINT_BYTES + (4 << 20);
    let _socket = hang(&gateway, &path, 1000, bytes.len() - 1000, &bytes[1000..sent]).await;
    let least = durable(&gateway, &path, CHECKPOINT_BYTES).await;
    gateway.kill();

    let gateway = Gateway::start(folder.path());
    let offset = offset_of(&head(&gateway, &path).await);
    assert!(offset >= least && offset <= sent, "{offset}");
    let data = std::fs::metadata(spool_of(&gateway, &path).join("data")).expect("there").len();
    assert_eq!(data as usize, offset, "what no offset names is cut off");
    assert_eq!(patch(&gateway, &path, offset, &bytes[offset..]).await.status, 204);
    assert_stored(&gateway, &path, &bytes).await;
}

/// Killed when the last byte is durable: the start stores it, once.
#[tokio::test]
async fn kills_while_it_is_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let rounds = if tier() == Tier::Slow { 10 } else { 2 };
    for round in 0..rounds {
        let gateway = Gateway::start(folder.path());
        let bytes = seeded_bytes(100 + round, 12 << 20);
        let path = make_long(&gateway, bytes.len(), "stored").await;
        assert_eq!(patch(&gateway, &path, 0, &bytes[..11 << 20]).await.status, 204);
        let _socket = hang(&gateway, &path, 11 << 20, 1 << 20, &bytes[11 << 20..]).await;
        durable(&gateway, &path, bytes.len()).await;
        gateway.kill();
        let gateway = Gateway::start(folder.path());
        let (_, cid) = assert_stored(&gateway, &path, &bytes).await;
        assert_eq!(pins_of(&gateway, &cid).await, 1, "it is one upload");
        gateway.kill();
        let gateway = Gateway::start(folder.path());
        assert_stored(&gateway, &path, &bytes).await;
        gateway.stop();
    }
}

#[tokio::test]
async fn limits_expiry_and_termination() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = "[limits]\nspool_bytes = \"1 MiB\"\nspool_uploads = 3\n";
    let gateway = Gateway::start_with(folder.path(), &Options::config(limits));
    let create = async |length: usize| send(&gateway, "POST", "/skynet/tus", &[&format!("Upload-Length: {length}")], b"").await;
    assert_eq!(gateway.ask("OPTIONS", "/skynet/tus", &[]).await.header("tus-max-size").as_deref(), Some("1048576"));
    assert_eq!(create((1 << 20) + 1).await.status, 413);
    let first = create(600 << 10).await;
    let full = create(600 << 10).await;
    assert_eq!((full.status, full.header("retry-after").is_some()), (503, true), "{}", full.text());
    let path = path_of(&first.header("location").expect("a location")).to_owned();
    assert_eq!(patch(&gateway, &path, 0, &[0; 1000]).await.status, 204);
    assert!(spool_of(&gateway, &path).exists());
    assert_eq!(send(&gateway, "DELETE", &path, &[], b"").await.status, 204);
    assert!(!spool_of(&gateway, &path).exists(), "nothing is left on the disk");
    assert_eq!(send(&gateway, "HEAD", &path, &[], b"").await.status, 410);
    assert_eq!(create(600 << 10).await.status, 201);
    assert_eq!((create(1).await.status, create(1).await.status, create(1).await.status), (201, 201, 503));
    gateway.stop();

    let floor = "[limits]\nspool_free_space_floor_bytes = \"1000000 TiB\"\nspool_lifetime_seconds = 1\n";
    let gateway = Gateway::start_with(folder.path(), &Options::config(floor));
    let full = send(&gateway, "POST", "/skynet/tus", &["Upload-Length: 1"], b"").await;
    assert_eq!(full.status, 507, "{}", full.text());
    let spool = folder.path().join("spool");
    until("all has expired", SOON, async || {
        let left = std::fs::read_dir(&spool).expect("the spool").count();
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
    gateway.stop();

    let short = Options::config("[limits]\nspool_lifetime_seconds = 1\n");
    let gateway = Gateway::start_with(folder.path(), &short);
    let path = make_long(&gateway, 10, "late").await;
    until("it has expired", SOON, async || match send(&gateway, "HEAD", &path, &[], b"").await.status {
        410 => Ok(()),
        status => Err(format!("{status}")),
    })
    .await;
    assert_eq!(patch(&gateway, &path, 0, b"0123456789").await.status, 410);
}

#[tokio::test]
async fn whose_uploads_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let output = gateway.command(&["key", "add", "other", "--upload-bytes", "1 MB"]);
    let made: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let key = format!("Skynet-Api-Key: {}", made["key"].as_str().expect("a key"));
    let local = make(&gateway, &["Upload-Length: 3", "Upload-Concat: partial"]).await;
    let path = path_of(&local);
    let bytes = [TYPE, "Upload-Offset: 0", key.as_str()];
    assert_eq!(send(&gateway, "PATCH", path, &bytes, b"abc").await.status, 404, "another's upload is none");
    assert_eq!(send(&gateway, "DELETE", path, &[&key], b"").await.status, 404);
    assert_eq!(send(&gateway, "HEAD", path, &[&key], b"").await.status, 200, "nodejs sends its key only here");
    assert_eq!(patch(&gateway, path, 0, b"abc").await.status, 204);
    let concat = format!("Upload-Concat: final;{local}");
    assert_eq!(send(&gateway, "POST", "/skynet/tus", &[&concat, &key], b"").await.status, 400);
    // A URL of another host is no reason to ask it: only the name in its path counts.
    let elsewhere = format!("Upload-Concat: final;http://192.0.2.1:9{path}");
    assert_eq!(send(&gateway, "POST", "/skynet/tus", &[&elsewhere], b"").await.status, 201);
    assert_eq!(send(&gateway, "POST", "/skynet/tus", &["Upload-Length: 1000001", &key], b"").await.status, 413);
    for headers in [["Upload-Length: 1", "Origin: https://app.example"], ["Upload-Length: 1", "X-Forwarded-For: 192.0.2.1"]] {
        assert_eq!(send(&gateway, "POST", "/skynet/tus", &headers, b"").await.status, 403, "{headers:?}");
    }
    let with_key = ["Upload-Length: 3", &key, "Host: localhost"];
    let own = make(&gateway, &with_key).await;
    assert!(own.starts_with("http://localhost/skynet/tus/"), "{own}");
    let answer = send(&gateway, "PATCH", path_of(&own), &bytes, b"abc").await;
    assert_eq!((answer.status, answer.header("skynet-skylink").is_some()), (204, true), "{}", answer.text());
}

/// One API key has its share of the spool; this machine and other keys find room.
#[tokio::test]
async fn one_key_has_a_share_of_the_spool() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = "[limits]\nspool_bytes = \"1 MiB\"\nspool_bytes_per_client = \"300 KiB\"\n";
    let gateway = Gateway::start_with(folder.path(), &Options::config(limits));
    let key = |name: &str| {
        let output = gateway.command(&["key", "add", name]);
        let made: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        format!("Skynet-Api-Key: {}", made["key"].as_str().expect("a key"))
    };
    let (one, other) = (key("one"), key("other"));
    let create = async |length: usize, key: &str| {
        send(&gateway, "POST", "/skynet/tus", &[&format!("Upload-Length: {length}"), key], b"").await
    };
    let kib = 1024;
    let first = create(200 * kib, &one).await;
    assert_eq!(first.status, 201);
    for (length, key, status) in
        [(301 * kib, &one, 413), (101 * kib, &one, 429), (100 * kib, &one, 201), (1, &one, 429), (300 * kib, &other, 201)]
    {
        let answer = create(length, key).await;
        assert_eq!(answer.status, status, "{length}: {}", answer.text());
        assert_eq!(answer.header("retry-after").is_some(), status == 429);
    }
    assert_eq!(create(424 * kib, "").await.status, 201, "this machine is not counted");
    let path = path_of(&first.header("location").expect("a location")).to_owned();
    assert_eq!(send(&gateway, "DELETE", &path, &[&one], b"").await.status, 204);
    assert_eq!(create(200 * kib, &one).await.status, 201);
}

/// Malformed requests have their table beside the code (`http::skynet::tus::tests`); here is what touches the disk.
#[tokio::test]
async fn bad_headers_leave_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let path = make_long(&gateway, 10, "x").await;
    type Row<'a> = (&'a str, &'a str, &'a [&'a str], &'a [u8], u16);
    let rows: [Row<'_>; 6] = [
        ("POST", "/skynet/tus", &["Upload-Length: 1", "Upload-Metadata: filename Li4v"], b"", 400),
        ("PATCH", &path, &[TYPE, "Upload-Offset: 0"], b"0123456789x", 413),
        ("PATCH", "/skynet/tus/../../etc", &[TYPE, "Upload-Offset: 0"], b"x", 404),
        ("GET", "/skynet/upload/tus/0123456789abcdef0123456789abcdef", &[], b"", 404),
        ("POST", &path, &["X-HTTP-Method-Override: DELETE", "Upload-Length: 1"], b"", 204),
        ("HEAD", &path, &[], b"", 410),
    ];
    for (method, target, headers, body, status) in rows {
        let answer = send(&gateway, method, target, headers, body).await;
        assert_eq!(answer.status, status, "{method} {target} {headers:?}: {}", answer.text());
    }
    let left = std::fs::read_dir(folder.path().join("spool")).expect("the spool").count();
    assert_eq!(left, 0, "no upload is left");
}

/// On this port, so that a client finds it again after a kill.
fn start_at(data: &Path, address: &str) -> Gateway {
    let mut command = Command::new(binary());
    command.arg("serve").arg("--data").arg(data).args(["--listen", address, "--admin", "127.0.0.1:0"]);
    Starting::of(command, data, &Options::default()).ready().unwrap_or_else(|log| panic!("it did not start:\n{log}"))
}

/// `tus-js-client` 4.3.1 uploads 200 MiB in one request, then in two parts of several, and the gateway is killed in the
/// middle of both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tus_js_client_goes_on_after_a_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(home) = install_from(Tier::Slow, "tus", folder.path()) else { return };
    let bytes = seeded_bytes(9, 200 << 20);
    let file = folder.path().join("large.bin");
    std::fs::write(&file, &bytes).expect("written");
    let data = folder.path().join("data");
    let mut gateway = Gateway::start(&data);
    let address = gateway.public.trim_start_matches("http://").to_owned();
    for (chunk, parallel) in [(1 << 40, 1), (41_943_040u64, 2)] {
        let mut client = tokio::process::Command::new("node");
        client.arg(home.join("upload.js")).arg(format!("http://{address}/skynet/tus")).arg(&file);
        client.args([chunk.to_string(), parallel.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut client = client.spawn().expect("node is installed");
        let mut lines = BufReader::new(client.stdout.take().expect("piped")).lines();
        let (mut killed, mut resumed, mut done) = (false, 0, None);
        while let Some(line) = lines.next_line().await.expect("reads") {
            let told: Value = serde_json::from_str(&line).expect("JSON");
            if !killed && told["sent"].as_u64().is_some_and(|sent| sent >= 100 << 20) {
                gateway.kill();
                gateway = start_at(&data, &address);
                killed = true;
            }
            resumed = resumed.max(told["resumed"].as_u64().unwrap_or(0));
            done = told["done"].as_str().map(str::to_owned).or(done);
        }
        assert!(client.wait().await.expect("ends").success(), "{}", gateway.log());
        assert!(killed && resumed > 0, "it went on where it was: {resumed}");
        let url = done.expect("it says where");
        let (skylink, _) = assert_stored(&gateway, path_of(&url), &bytes).await;
        println!("tus-js-client: {parallel} parts at a time, went on at {resumed}, {skylink}");
    }
}
