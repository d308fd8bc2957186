//! `POST /skynet/skyfile`, `/skynet/pin`, `/skynet/unpin`, `/skynet/restore` (`specs/skynet.md` 4 and 6): the skylinks that
//! Skynet gave, the CIDs of the same bytes, and nothing of what was refused or cut.

use compat_tests::content::Content;
use compat_tests::wire::{self, Answer};
use compat_tests::{Gateway, seeded_bytes};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

const FORM: &str = "Content-Type: multipart/form-data; boundary=----b0undary";
const MIB: usize = 1 << 20;

/// One part of a form: field, name of the file, further header lines, bytes.
struct Part<'a>(&'a str, &'a str, &'a [&'a str], &'a [u8]);

fn form(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for Part(field, name, headers, bytes) in parts {
        let head = format!("------b0undary\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n");
        body.extend_from_slice(head.as_bytes());
        headers.iter().for_each(|line| body.extend_from_slice(format!("{line}\r\n").as_bytes()));
        body.extend_from_slice(b"\r\n");
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"------b0undary--\r\n");
    body
}

fn head(gateway: &Gateway, target: &str, headers: &[&str], length: usize) -> String {
    let mut head = format!("POST {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n");
    if !headers.iter().any(|line| line.starts_with("Host:")) {
        head.push_str(&format!("Host: {}\r\n", gateway.public.trim_start_matches("http://")));
    }
    headers.iter().for_each(|line| head.push_str(&format!("{line}\r\n")));
    head + "\r\n"
}

async fn post(gateway: &Gateway, target: &str, headers: &[&str], body: &[u8]) -> Answer {
    let request = [head(gateway, target, headers, body.len()).as_bytes(), body].concat();
    wire::exchange(&gateway.public, &request, "POST").await
}

/// Uploads, expects success, and gives skylink and CID.
async fn stored(gateway: &Gateway, query: &str, headers: &[&str], body: &[u8]) -> (String, String) {
    let answer = post(gateway, &format!("/skynet/skyfile{query}"), headers, body).await;
    assert_eq!(answer.status, 200, "{query}: {}\n{}", answer.text(), gateway.log());
    let told = answer.json();
    let word = |name: &str| told[name].as_str().unwrap_or_else(|| panic!("{name}: {told}")).to_owned();
    let (skylink, cid) = (word("skylink"), word("cid"));
    assert_eq!(answer.header("skynet-skylink").as_deref(), Some(skylink.as_str()));
    assert_eq!(answer.header("skygate-cid").as_deref(), Some(cid.as_str()));
    assert!(word("merkleroot").len() == 64 && told["bitfield"].is_u64(), "{told}");
    (skylink, cid)
}

async fn body_of(gateway: &Gateway, target: &str) -> Vec<u8> {
    let answer = gateway.get(target).await;
    assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    assert!(answer.whole, "{target}");
    answer.body
}

async fn pin_count(gateway: &Gateway) -> usize {
    gateway.admin_json("/api/v1/pins?limit=1000").await["pins"].as_array().expect("a list").len()
}

async fn gateway() -> (tempfile::TempDir, Gateway) {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    (folder, gateway)
}

fn vectors(name: &str) -> Option<Value> {
    let path = compat_tests::shared()?.join("skynet-vectors").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(serde_json::from_str(&text).expect("JSON"))
}

#[tokio::test]
async fn skylinks_of_the_real_network() {
    let Some(golden) = vectors("golden_uploads.json") else { return };
    let Some(sectors) = vectors("basesector.json") else { return };
    let (_folder, gateway) = gateway().await;
    for case in golden["vectors"].as_array().expect("a list") {
        let text = |name: &str| case[name].as_str().expect("text");
        let body = form(&[Part("file", text("filename"), &[], text("content").as_bytes())]);
        let (skylink, cid) = stored(&gateway, "", &[FORM], &body).await;
        assert_eq!(skylink, text("skylink"));
        assert_eq!(body_of(&gateway, &format!("/{skylink}")).await, text("content").as_bytes());
        assert_eq!(body_of(&gateway, &format!("/ipfs/{cid}")).await, text("content").as_bytes());
    }
    let expect = |name: &str| {
        let cases = sectors["small"].as_array().expect("a list");
        cases.iter().find(|case| case["name"] == name).expect(name)["skylink"].as_str().expect("text").to_owned()
    };
    let plain = "Content-Type: text/plain";
    let html = "Content-Type: text/html";
    let hello = form(&[Part("file", "HelloWorld", &[plain], b"testing")]);
    let pair = form(&[Part("files[]", "a.html", &[html], b"aaaa"), Part("files[]", "b.html", &[html], b"bbbb")]);
    let jpeg = "Content-Type: image/jpeg";
    let site = form(&[
        Part("files[]", "index.html", &[html, "Mode: 0644"], b"idx\n"),
        Part("files[]", "a/b<&>.txt", &["Content-Type: text/plain; charset=utf-8"], b"sub\n"),
        Part("files[]", "404.html", &[html], b"404\n"),
    ]);
    let site_query = "?filename=site&tryfiles=[%22good.html%22,%22/index.html%22]&errorpages={%22403%22:%22/404.html%22,%22404%22:%22/404.html%22}";
    let rows: [(&str, &str, &str, &[u8]); 7] = [
        ("raw body upload (no multipart)", "?filename=hello.txt&mode=644", plain, b"testing"),
        ("skynet-js uploadFile shape", "", FORM, &hello),
        ("tus small upload shape (no tryfiles)", "?tryfiles=", FORM, &hello),
        ("empty file", "", FORM, &form(&[Part("file", "empty", &["Content-Type: application/octet-stream"], b"")])),
        (
            "directory 2 files",
            "?filename=dirname",
            FORM,
            &form(&[Part("files[]", "file1.jpeg", &[jpeg], b"foo1"), Part("files[]", "file 2.jpeg", &[jpeg], b"foo2")]),
        ),
        ("defaultpath", "?filename=d&defaultpath=b.html", FORM, &pair),
        ("disabledefaultpath", "?filename=d&disabledefaultpath=true", FORM, &pair),
    ];
    for (name, query, kind, body) in rows {
        let before = pin_count(&gateway).await;
        let dry = if query.is_empty() { "?dryrun=true".to_owned() } else { format!("{query}&dryrun=true") };
        let (skylink, cid) = stored(&gateway, &dry, &[kind], body).await;
        assert_eq!(skylink, expect(name), "{name}, nothing stored");
        assert_eq!(pin_count(&gateway).await, before, "{name}");
        assert_eq!(gateway.get(&format!("/{skylink}")).await.status, 404, "{name}");
        assert_eq!(stored(&gateway, query, &[kind], body).await, (skylink, cid), "{name}");
        assert_eq!(pin_count(&gateway).await, before + 1, "{name}");
    }
    let (skylink, cid) = stored(&gateway, site_query, &[FORM], &site).await;
    assert_eq!(skylink, expect("site with errorpages, nested, html-escaping chars"));
    let missing = gateway.get(&format!("/{skylink}/nothing/here")).await;
    assert_eq!((missing.status, missing.body.as_slice()), (200, &b"idx\n"[..]), "the absolute tryfile");
    for (path, bytes) in [("/index.html", b"idx\n"), ("/a/b%3C&%3E.txt", b"sub\n"), ("/404.html", b"404\n")] {
        assert_eq!(body_of(&gateway, &format!("/{skylink}{path}")).await, bytes, "{path}");
        assert_eq!(body_of(&gateway, &format!("/ipfs/{cid}{path}")).await, bytes, "{path}");
    }
}

/// What is stored is what `add` stores: the same skylink and CID.
#[tokio::test]
async fn uploads_and_adds_agree() {
    let (_folder, gateway) = gateway().await;
    let large = seeded_bytes(71, 9 * MIB);
    let files: [(&str, &[u8]); 4] =
        [("b/large.bin", &large), ("a.txt", b"first in order"), ("b/c/d.txt", b"deep"), ("index.html", b"<p>")];
    let content = Content::files_of("site", &files);
    // In another order than that of the paths: another skylink, the same tree.
    let parts = files.map(|(path, bytes)| Part("files[]", path, &[], bytes));
    let (skylink, cid) = stored(&gateway, "?filename=site", &[FORM], &form(&parts)).await;
    assert_eq!(cid, content.cid());
    for (path, bytes) in files {
        for target in [format!("/{skylink}/{path}"), format!("/ipfs/{cid}/{path}")] {
            assert!(body_of(&gateway, &target).await == bytes, "{target}");
        }
    }
    let single = Content::file("note.bin", seeded_bytes(72, 3 * MIB));
    let added = gateway.upload(&single).await;
    let part = form(&[Part("file", "note.bin", &["Content-Type: application/octet-stream"], &seeded_bytes(72, 3 * MIB))]);
    let (skylink, cid) = stored(&gateway, "", &[FORM], &part).await;
    assert_eq!((skylink.as_str(), &cid), (added.skylink(), &added.cid));
    // A folder of one file is a folder; the same file under the skyfile's own name is a file.
    let one = Content::files_of("d", &[("x.txt", b"x")]);
    let in_folder = form(&[Part("files[]", "x.txt", &[], b"x")]);
    assert_eq!(stored(&gateway, "?filename=d", &[FORM], &in_folder).await.1, one.cid());
    assert_eq!(stored(&gateway, "", &[FORM], &in_folder).await.1, Content::file("x.txt", b"x".to_vec()).cid());
    // Names that no folder on a disk could have: SkyDB's keys are longer than 255 bytes.
    let long = format!("dk:{}", "6b".repeat(200));
    let (skylink, cid) = stored(&gateway, "", &[FORM], &form(&[Part("file", &long, &[], b"{}")])).await;
    for target in [format!("/{skylink}"), format!("/ipfs/{cid}")] {
        assert_eq!(body_of(&gateway, &target).await, b"{}", "{target}");
    }
}

#[tokio::test]
async fn a_large_upload_is_streamed() {
    let (_folder, gateway) = gateway().await;
    let large = seeded_bytes(73, 120 * MIB);
    let before = peak_mib(gateway.pid());
    let (skylink, cid) = stored(&gateway, "", &[FORM], &form(&[Part("file", "large.bin", &[], &large)])).await;
    let raw = stored(&gateway, "?filename=large.bin", &["Content-Type: application/octet-stream"], &large).await;
    assert_eq!(raw.1, cid);
    assert_ne!(raw.0, skylink, "another way in is another skylink");
    // The slab memory of the process, and no copy of the upload: 7 slabs at 6 + 3 would be 250 MiB alone.
    let grown = peak_mib(gateway.pid()) - before;
    assert!(grown < 220.0, "the upload of 120 MiB took {grown:.0} MiB");
    for target in [format!("/{skylink}"), format!("/ipfs/{cid}"), format!("/{}", raw.0)] {
        assert!(body_of(&gateway, &target).await == large, "{target}");
    }
}

fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel counts memory");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number of KiB") / 1024.0
}

#[tokio::test]
async fn a_cut_upload_leaves_nothing() {
    let (_folder, gateway) = gateway().await;
    let before = pin_count(&gateway).await;
    let bytes = seeded_bytes(74, 26 * MIB);
    let body = form(&[Part("files[]", "a.txt", &[], b"a"), Part("files[]", "b.bin", &[], &bytes)]);
    let target = "/skynet/skyfile?filename=cut";
    for cut in [0, 30, 200, 5 * MIB, body.len() - 10, body.len() - 1] {
        let mut socket = wire::connect(&gateway.public).await.expect("connects");
        socket.write_all(head(&gateway, target, &[FORM], body.len()).as_bytes()).await.expect("the head is sent");
        socket.write_all(&body[..cut]).await.expect("the part is sent");
        drop(socket);
    }
    // Whole as HTTP sees it, without the last boundary.
    for cut in [0, 200, 1000, body.len() - 10] {
        let answer = post(&gateway, target, &[FORM], &body[..cut]).await;
        assert_eq!(answer.status, 400, "{cut}: {}", answer.text());
    }
    let (skylink, cid) = stored(&gateway, "?filename=cut&dryrun=true", &[FORM], &body).await;
    for target in [format!("/{skylink}/b.bin"), format!("/ipfs/{cid}/b.bin")] {
        assert_eq!(gateway.get(&target).await.status, 404, "{target}");
    }
    assert_eq!(pin_count(&gateway).await, before);
    let whole = stored(&gateway, "?filename=cut", &[FORM], &body).await;
    assert_eq!(whole, (skylink, cid), "a dry run tells what an upload gives");
}

/// What contradicts itself or names what is not there is told in Skynet's JSON, and leaves nothing.
#[tokio::test]
async fn bad_metadata() {
    let (_folder, gateway) = gateway().await;
    let before = pin_count(&gateway).await;
    let good = form(&[Part("file", "f", &[], b"hello")]);
    let rows: [(&str, &str, &[u8], &str); 10] = [
        ("", FORM, &form(&[]), "could not find multipart file"),
        ("", FORM, &form(&[Part("photo", "f", &[], b"x")]), "illegal form name"),
        ("", FORM, &form(&[Part("file", "", &[], b"x")]), "no filename provided"),
        ("?filename=d", FORM, &form(&[Part("files[]", "a/../b", &[], b"x")]), ". or .. elements"),
        ("?filename=d", FORM, &form(&[Part("files[]", "a", &[], b"x"), Part("files[]", "a", &[], b"y")]), "twice"),
        ("?filename=d", FORM, &form(&[Part("files[]", "a", &[], b"x"), Part("files[]", "a/b", &[], b"y")]), "not a folder"),
        ("?defaultpath=/none", FORM, &good, "no such path"),
        ("?tryfiles=[%22/none%22]", FORM, &good, "must exist"),
        ("?errorpages={%22404%22:%22none%22}", FORM, &good, "absolute"),
        ("", "Content-Type: text/plain", b"raw", "nonempty string"),
    ];
    for (query, kind, body, words) in rows {
        let answer = post(&gateway, &format!("/skynet/skyfile{query}"), &[kind], body).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
        let message = answer.json()["message"].as_str().expect("words").to_owned();
        assert!(message.contains(words), "{query}: {message}");
    }
    assert_eq!(post(&gateway, "/skynet/skyfile", &[], &good).await.status, 400, "no Content-Type");
    assert_eq!(pin_count(&gateway).await, before);
}

#[tokio::test]
async fn who_may_upload() {
    let (_folder, gateway) = gateway().await;
    let body = form(&[Part("file", "f", &[], b"hello")]);
    let key = format!("Skynet-Api-Key: {}", gateway.api_key());
    let before = pin_count(&gateway).await;
    let rows: [(&[&str], u16); 6] = [
        (&["Host: portal.example"], 404),
        (&["Origin: https://evil.example"], 403),
        (&["X-Forwarded-For: 203.0.113.5"], 403),
        (&["Forwarded: for=203.0.113.5"], 403),
        (&["Skynet-Api-Key: nobody"], 401),
        (&["Authorization: Bearer nobody"], 401),
    ];
    for (headers, status) in rows {
        let answer = post(&gateway, "/skynet/skyfile", &[&[FORM], headers].concat(), &body).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
        assert!(answer.json()["message"].is_string(), "{headers:?}");
    }
    assert_eq!(pin_count(&gateway).await, before);
    let proxied = ["X-Forwarded-For: 203.0.113.5", "Origin: https://app.example", &key, FORM];
    assert_eq!(post(&gateway, "/skynet/skyfile", &proxied, &body).await.status, 200);
    assert_eq!(pin_count(&gateway).await, before + 1);
}

/// A key's own limit holds whether the length is told or not, and nothing of what is beyond is kept.
#[tokio::test]
async fn a_key_with_a_small_limit() {
    let (_folder, gateway) = gateway().await;
    let made = gateway.command(&["key", "add", "small", "--upload-bytes", "1 MB"]);
    let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let key = format!("Skynet-Api-Key: {}", made["key"].as_str().expect("a secret"));
    let before = pin_count(&gateway).await;
    let bytes = seeded_bytes(76, 2 * MIB);
    let body = form(&[Part("file", "f.bin", &[], &bytes)]);
    let told = post(&gateway, "/skynet/skyfile", &[&key, FORM], &body).await;
    assert_eq!(told.status, 413, "{}", told.text());
    let host = gateway.public.trim_start_matches("http://");
    let head = format!(
        "POST /skynet/skyfile HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{key}\r\n{FORM}\r\n\r\n"
    );
    let chunked = [head.as_bytes(), format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let untold = wire::exchange(&gateway.public, &chunked, "POST").await;
    assert_eq!(untold.status, 413, "{}", untold.text());
    assert!(untold.json()["message"].is_string());
    assert_eq!(pin_count(&gateway).await, before);
    let small = form(&[Part("file", "f.bin", &[], &bytes[..4096])]);
    assert_eq!(post(&gateway, "/skynet/skyfile", &[&key, FORM], &small).await.status, 200);
    assert_eq!(pin_count(&gateway).await, before + 1);
}

#[tokio::test]
async fn pins_of_several_owners() {
    let (_folder, gateway) = gateway().await;
    let body = form(&[Part("files[]", "a.txt", &[], b"a"), Part("files[]", "b.txt", &[], &seeded_bytes(75, MIB))]);
    let (skylink, cid) = stored(&gateway, "?filename=d", &[FORM], &body).await;
    let admin = format!("Skynet-Api-Key: {}", gateway.api_key());
    let ask = async |what: &str, headers: &[&str]| post(&gateway, &format!("/skynet/{what}/{skylink}"), headers, b"").await;
    let owners = async || {
        let pins = gateway.admin_json("/api/v1/pins?limit=1000").await;
        let pins = pins["pins"].as_array().expect("a list").iter().filter(|pin| pin["skylink"] == json!(skylink));
        pins.map(|pin| pin["owner"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(owners().await, ["local"]);
    for _ in 0..2 {
        let pinned = ask("pin", &[&admin]).await;
        assert_eq!((pinned.status, pinned.header("skynet-skylink").as_deref()), (204, Some(skylink.as_str())));
        assert_eq!(owners().await, ["local", "admin"], "once is enough");
    }
    assert_eq!(ask("unpin", &[]).await.status, 204);
    assert_eq!(owners().await, ["admin"]);
    assert_eq!(ask("unpin", &[]).await.status, 403, "it is the operator's");
    for target in [format!("/{skylink}/b.txt"), format!("/ipfs/{cid}/b.txt")] {
        assert_eq!(body_of(&gateway, &target).await, seeded_bytes(75, MIB), "{target}");
    }
    assert_eq!(ask("unpin", &[&admin]).await.status, 204);
    for target in [format!("/{skylink}/b.txt"), format!("/ipfs/{cid}/b.txt")] {
        assert_eq!(gateway.get(&target).await.status, 404, "{target}");
    }
    assert_eq!(ask("pin", &[]).await.status, 404, "nothing is stored here");
    assert_eq!(ask("unpin", &[]).await.status, 404);
}

#[tokio::test]
async fn a_backup_is_restored() {
    let Some(sectors) = vectors("basesector.json") else { return };
    let (_folder, gateway) = gateway().await;
    let text = |text: &[u8]| [&(text.len() as u64).to_le_bytes(), text].concat();
    let mut restored = 0;
    for case in sectors["small"].as_array().expect("a list") {
        let (Some(prefix), skylink) = (case["basesector_prefix_hex"].as_str(), case["skylink"].as_str().expect("text")) else {
            continue;
        };
        let mut sector = unhex(prefix);
        sector.resize(4 * MIB, 0);
        let backup = [text(b"Skyfile Backup\n"), text(b"v1.5.5\n"), text(skylink.as_bytes()), sector].concat();
        let mut wrong = backup.clone();
        wrong[92 + 110] ^= 1;
        assert_eq!(post(&gateway, "/skynet/restore", &[], &wrong).await.status, 400, "{}", case["name"]);
        assert_eq!(post(&gateway, "/skynet/restore", &[], &[&backup[..], b"more"].concat()).await.status, 400);
        let answer = post(&gateway, "/skynet/restore", &[], &backup).await;
        assert_eq!((answer.status, answer.json()["skylink"].as_str()), (200, Some(skylink)), "{}: {}", case["name"], answer.text());
        let cid = answer.json()["cid"].as_str().expect("a CID").to_owned();
        // A folder is told to take its slash, and one without an index is no page.
        let opened = gateway.get(&format!("/ipfs/{cid}")).await.status;
        assert!(matches!(opened, 200 | 301 | 302 | 307 | 308), "{}: {opened}", case["name"]);
        assert_ne!(gateway.ask("HEAD", &format!("/{skylink}"), &[]).await.status, 404, "{}", case["name"]);
        restored += 1;
    }
    assert!(restored >= 8, "{restored}");
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")).collect()
}
