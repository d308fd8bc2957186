//! Uploads at the admin listener (`docs/formats.md` 9): all or nothing, and once.

use compat_tests::content::{Added, Content, Item, Seen, frame};
use compat_tests::{Gateway, seeded_bytes, until, wire};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

async fn pin_count(gateway: &Gateway) -> usize {
    gateway.admin_json("/api/v1/pins?limit=1000").await["pins"].as_array().expect("a list").len()
}

fn sample() -> Content {
    Content::folder(
        "cut",
        [
            ("a.txt".to_owned(), Item::File(seeded_bytes(11, 5000))),
            ("b/large.bin".to_owned(), Item::File(seeded_bytes(12, 26 << 20))),
            ("b/link".to_owned(), Item::Symlink("large.bin".to_owned())),
            ("c.txt".to_owned(), Item::File(seeded_bytes(13, 70_000))),
            ("empty".to_owned(), Item::Folder),
        ],
    )
}

#[tokio::test]
async fn an_upload_that_is_cut_leaves_nothing_visible() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    let before = pin_count(&gateway).await;
    let content = sample();
    let stream = content.stream();
    let whole = stream.len();
    // Behind the head only; within the first frame; within each file; between two frames; all but the last byte.
    for cut in [0, 3, 60, 2000, 3 << 20, 25 << 20, whole - 80_000, whole - 30, whole - 1] {
        let mut socket = wire::connect(&gateway.admin).await.expect("connects");
        socket.write_all(gateway.upload_head(whole as u64, &[]).as_bytes()).await.expect("the head is sent");
        socket.write_all(&stream[..cut]).await.expect("the part is sent");
        drop(socket);
        assert_eq!(content.seen(&gateway).await, Seen::Nothing, "cut after {cut} of {whole} bytes");
    }
    // A body that is whole as HTTP sees it, but has no last frame.
    for cut in [0, 100, 6000, whole - 25] {
        let answer = gateway.upload_bytes(&stream[..cut], &[]).await;
        assert_eq!(answer.status, 400, "a stream of {cut} bytes: {}", answer.text());
        assert!(answer.json()["message"].as_str().is_some_and(|words| !words.is_empty()), "{}", answer.text());
    }
    assert_eq!(content.seen(&gateway).await, Seen::Nothing);
    assert_eq!(pin_count(&gateway).await, before);
    // The same upload, whole, is taken as if nothing had been.
    let added = gateway.upload(&content).await;
    content.assert_read_back(&gateway, &added).await;
    assert_eq!((added.files, added.size_bytes), (3, content.size_bytes()));
    assert_eq!(pin_count(&gateway).await, before + 1);
}

#[tokio::test]
async fn what_is_no_add_stream_is_refused_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    let before = pin_count(&gateway).await;
    let head = |root: &str| json!({ "v": 1, "root": root, "name": "n", "profile": "unixfs-v1-2025" });
    let file = |path: &str| json!({ "path": path, "kind": "file", "size": 0 });
    let end = |entries: u64| json!({ "end": true, "entries": entries });
    let dir = |entries: &[Value]| [&[head("dir")], entries, &[end(entries.len() as u64)]].concat();
    let deep = vec!["d"; 129].join("/");
    let rows: Vec<(&str, Vec<Value>)> = vec![
        ("another version", vec![json!({ "v": 2, "root": "dir", "name": "n", "profile": "cid-v1" }), end(0)]),
        ("an unknown profile", vec![json!({ "v": 1, "root": "dir", "name": "n", "profile": "md5" }), end(0)]),
        ("an unknown root", vec![head("disk"), end(0)]),
        ("a missing field", vec![json!({ "v": 1, "root": "dir" }), end(0)]),
        ("a way up", dir(&[file("../x")])),
        ("a way up within", dir(&[file("a/../../x")])),
        ("a dot", dir(&[file("./x")])),
        ("an absolute path", dir(&[file("/etc/passwd")])),
        ("no name", dir(&[file("")])),
        ("an empty name", dir(&[file("a//b")])),
        ("a slash at the end", dir(&[file("a/")])),
        ("a NUL", dir(&[file("a\0b")])),
        ("a name that is too long", dir(&[file(&"n".repeat(256))])),
        ("a path that is too deep", dir(&[file(&deep)])),
        ("a path that is too long", dir(&[file(&vec!["n".repeat(200); 21].join("/"))])),
        ("two of one name", dir(&[file("a"), file("a")])),
        ("the wrong order", dir(&[file("b"), file("a")])),
        ("a file as a folder", dir(&[file("a"), file("a/b")])),
        ("a target with a NUL", dir(&[json!({ "path": "l", "kind": "symlink", "target": "a\0b" })])),
        ("a target that is too long", dir(&[json!({ "path": "l", "kind": "symlink", "target": "t".repeat(4097) })])),
        ("no target", dir(&[json!({ "path": "l", "kind": "symlink" })])),
        ("a device", dir(&[json!({ "path": "d", "kind": "device" })])),
        ("no size", dir(&[json!({ "path": "f", "kind": "file" })])),
        ("a negative size", dir(&[json!({ "path": "f", "kind": "file", "size": -1 })])),
        ("a wrong count", vec![head("dir"), file("a"), end(2)]),
        ("two files for a file", vec![head("file"), file("a"), file("b"), end(2)]),
        ("a folder for a file", vec![head("file"), json!({ "path": "a", "kind": "dir" }), end(1)]),
        ("nothing for a file", vec![head("file"), end(0)]),
        ("a frame that is too long", dir(&[file(&"x".repeat(70_000))])),
        ("more behind the end", [dir(&[file("a")]), vec![file("b")]].concat()),
    ];
    for (what, frames) in rows {
        let body: Vec<u8> = frames.iter().flat_map(frame).collect();
        let answer = gateway.upload_bytes(&body, &[]).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        let words = answer.json()["message"].as_str().expect("words").to_owned();
        assert!(words.len() > 10 && words.len() < 4000, "{what}: {words}");
    }
    for (what, body) in [
        ("no JSON", [&5_u32.to_le_bytes()[..], b"hello"].concat()),
        ("a length of 4 GiB", vec![0xff; 64]),
        ("a web form", b"a=b&c=d".to_vec()),
        (
            "a file larger than what comes",
            [frame(&head("file")), frame(&json!({ "path": "n", "kind": "file", "size": u64::MAX })), vec![1; 100]].concat(),
        ),
    ] {
        let answer = gateway.upload_bytes(&body, &[]).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
    }
    let untyped = wire::ask(&gateway.admin, "POST", "/api/v1/add", &[&gateway.key_header(), "Content-Length: 0"]).await;
    assert_eq!(untyped.status, 400, "no content type: {}", untyped.text());
    assert_eq!(pin_count(&gateway).await, before);
}

/// All that a name may be: what a disk can hold and a URL can say.
#[tokio::test]
async fn odd_names_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let long = "n".repeat(255);
    let names = [
        "a b",
        "100%",
        "%41",
        "ąę źł.txt",
        "日本語",
        "😀.png",
        "quote\"'`",
        "<b>&amp;",
        "q?x=1",
        "h#frag",
        "back\\slash",
        "...",
        "..x",
        "~",
        "+plus+",
        "semi;colon",
        "tab\tname",
        "new\nline",
        "e\u{301}",
        "\u{e9}",
        "-rf",
        long.as_str(),
    ];
    let items =
        names.iter().enumerate().map(|(index, name)| (format!("d/{name}"), Item::File(format!("file {index}\n").into_bytes())));
    let content = Content::folder("odd", items.collect::<Vec<_>>());
    let added = gateway.upload(&content).await;
    content.assert_read_back(&gateway, &added).await;
    let listing = gateway.get(&format!("/ipfs/{}/d/", added.cid)).await;
    assert_eq!(listing.status, 200);
    assert!(!listing.text().contains("<b>&amp;<"), "names are escaped");
    assert_eq!(listing.text().matches("class=\"ipfs-hash\"").count(), names.len());
}

#[tokio::test]
async fn the_same_key_is_the_same_upload() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    let before = pin_count(&gateway).await;
    let content = Content::files_of("site", &[("index.html", b"<h1>once</h1>"), ("x.bin", &seeded_bytes(1, 300_000))]);
    let other = Content::file("other.bin", seeded_bytes(2, 1000));
    let key = "Idempotency-Key: key one";
    let send = async |gateway: &Gateway, content: &Content, key: &str| {
        let answer = gateway.upload_bytes(&content.stream(), &[key]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Added::of(&answer.json())
    };
    let first = send(&gateway, &content, key).await;
    let again = send(&gateway, &content, key).await;
    assert_eq!((&again.cid, &again.skylink), (&first.cid, &first.skylink));
    assert_eq!(send(&gateway, &other, key).await.cid, first.cid, "the first answer stands");
    assert_eq!(pin_count(&gateway).await, before + 1);
    assert_eq!(send(&gateway, &content, "Idempotency-Key: key two").await.cid, first.cid);
    assert_eq!(pin_count(&gateway).await, before + 2, "another key is another upload");
    assert_eq!(send(&gateway, &other, "").await.cid, other.cid());

    for key in [format!("Idempotency-Key: {}", "k".repeat(129)), "Idempotency-Key: caf\u{e9}".to_owned()] {
        assert_eq!(gateway.upload_bytes(&content.stream(), &[&key]).await.status, 400, "{key}");
    }

    // Two at once: one does the work, the other hears the same or is told to wait.
    let large = Content::file("large.bin", seeded_bytes(3, 8 << 20));
    let body = large.stream();
    let at_once = ["Idempotency-Key: at once"];
    let (one, two) = tokio::join!(gateway.upload_bytes(&body, &at_once), gateway.upload_bytes(&body, &at_once));
    let mut statuses = [one.status, two.status];
    statuses.sort();
    assert!(matches!(statuses, [200, 200] | [200, 409]), "{statuses:?}: {} {}", one.text(), two.text());

    // The key outlives the process, and the catalog.
    let pins = pin_count(&gateway).await;
    assert!(gateway.stop().success());
    std::fs::remove_dir_all(folder.path().join("catalog")).expect("the catalog can be deleted");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    assert_eq!(send(&gateway, &content, key).await.cid, first.cid);
    assert_eq!(pin_count(&gateway).await, pins);
}

/// Sizes around every border: empty, a chunk, what fits the base sector, a slab.
#[tokio::test]
async fn sizes_around_the_borders_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let sector = 4 << 20;
    let mib = 1 << 20;
    for size in [
        0,
        1,
        4095,
        4096,
        32_768,
        32_769,
        mib - 1,
        mib,
        mib + 1,
        sector - 2000,
        sector - 1,
        sector,
        sector + 1,
        6 * sector - 1,
        6 * sector,
        6 * sector + 1,
    ] {
        let content = Content::file("border.bin", seeded_bytes(size as u64, size));
        let added = gateway.upload(&content).await;
        assert_eq!((added.files, added.size_bytes), (1, size as u64));
        assert_eq!(added.durability, "complete", "nine hosts are up");
        content.assert_read_back(&gateway, &added).await;
    }
    // Zeros are cut from what is stored, and come back.
    let zeros = Content::file("zeros.bin", vec![0; 9 << 20]);
    let added = gateway.upload(&zeros).await;
    zeros.assert_read_back(&gateway, &added).await;
    let nothing = Content::folder("nothing", [("deep/er".to_owned(), Item::Folder)]);
    let added = gateway.upload(&nothing).await;
    assert_eq!((added.skylink, added.files), (None, 0));
    let listing = gateway.get(&format!("/ipfs/{}/deep/er/", added.cid)).await;
    assert_eq!(listing.status, 200, "an empty folder is a folder");
}

#[tokio::test]
async fn many_uploads_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let contents: Vec<Content> =
        (0..16_u64).map(|seed| Content::file(&format!("{seed}.bin"), seeded_bytes(100 + seed, 1 << (12 + seed % 12)))).collect();
    let added = futures::future::join_all(contents.iter().map(|content| gateway.upload(content))).await;
    for (content, added) in contents.iter().zip(&added) {
        content.assert_read_back(&gateway, added).await;
    }
    until("all of them are pinned", Duration::from_secs(5), async || {
        let pins = pin_count(&gateway).await;
        if pins >= contents.len() { Ok(()) } else { Err(format!("{pins}")) }
    })
    .await;
}

/// An unpinned upload is gone at once, and can come again.
#[tokio::test]
async fn a_pin_can_be_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    let content = Content::files_of("gone", &[("a.txt", b"a"), ("b.txt", b"b")]);
    let added = gateway.upload(&content).await;
    let path = format!("/api/v1/pins/{}", added.cid);
    let removed = gateway.admin("DELETE", &path).await;
    assert_eq!((removed.status, removed.json()["removed"].as_u64()), (200, Some(1)));
    assert_eq!(gateway.admin("DELETE", &path).await.status, 404);
    assert_eq!(gateway.get(&format!("/ipfs/{}/a.txt", added.cid)).await.status, 404);
    assert!(gateway.stop().success());
    std::fs::remove_dir_all(folder.path().join("catalog")).expect("the catalog can be deleted");
    let gateway = Gateway::start(folder.path());
    gateway.catalog_complete().await;
    assert_eq!(gateway.get(&format!("/ipfs/{}/a.txt", added.cid)).await.status, 404, "the removal is known to the hosts");
    let added = gateway.upload(&content).await;
    content.assert_read_back(&gateway, &added).await;
}
