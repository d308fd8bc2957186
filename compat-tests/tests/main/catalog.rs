//! The catalog is a cache: deleted, or never there, everything is served from the hosts; and an absence is told only
//! when it is known.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use compat_tests::content::{Added, Content, Item};
use compat_tests::damage::Away;
use compat_tests::{Gateway, Options, binary, host_folders, seeded, seeded_bytes, unixfs, until, wire};
use rand::RngExt;
use rand::seq::SliceRandom;

/// Nothing is stored under it.
const ABSENT: &str = "/ipfs/bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

fn contents() -> Vec<Content> {
    let small = |seed: u64| Item::File(seeded_bytes(500 + seed, 200 + 611 * seed as usize));
    let site = (0..150).map(|index| (format!("p{}/q/f{index}.html", index % 7), small(index)));
    vec![
        Content::file("tiny.txt", b"tiny".to_vec()),
        Content::file("base.bin", seeded_bytes(401, 2_500_000)),
        Content::file("slabs.bin", seeded_bytes(402, 70_000_000)),
        Content::folder("site", site),
    ]
}

/// Leaves and interior nodes of everything, with the hash each block must have.
async fn inner_blocks(gateway: &Gateway, added: &[Added], contents: &[Content]) -> Vec<String> {
    let mut cids: Vec<String> = contents.iter().flat_map(Content::leaves).collect();
    let mut open: Vec<String> = added.iter().map(|added| added.cid.clone()).collect();
    while let Some(cid) = open.pop() {
        if cid.starts_with("bafybei") {
            let block = gateway.get(&format!("/ipfs/{cid}?format=raw")).await;
            assert_eq!(block.status, 200, "{cid}: {}", block.text());
            open.extend(unixfs::links_of(&block.body));
            cids.push(cid);
        }
    }
    cids.sort();
    cids.dedup();
    cids
}

async fn serves_everything(gateway: &Gateway, contents: &[Content], added: &[Added]) {
    for (content, added) in contents.iter().zip(added) {
        content.assert_read_back(gateway, added).await;
    }
}

#[tokio::test]
async fn a_deleted_catalog_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let contents = contents();
    let mut added = Vec::new();
    for content in &contents {
        added.push(gateway.upload(content).await);
    }
    let pins = gateway.admin_json("/api/v1/pins?limit=1000").await["pins"].as_array().expect("a list").len();
    assert!(gateway.stop().success());
    std::fs::remove_dir_all(folder.path().join("catalog")).expect("the catalog can be deleted");
    let gateway = Gateway::start(folder.path());
    // At once, not only when it is complete.
    serves_everything(&gateway, &contents, &added).await;
    gateway.catalog_complete().await;
    serves_everything(&gateway, &contents, &added).await;
    let now = gateway.admin_json("/api/v1/pins?limit=1000").await["pins"].as_array().expect("a list").len();
    assert_eq!(now, pins);
    assert_eq!(gateway.get(ABSENT).await.status, 404);
    // A catalog that is damaged is no more than one that is missing.
    assert!(gateway.stop().success());
    for entry in std::fs::read_dir(folder.path().join("catalog")).expect("readable").filter_map(Result::ok) {
        if entry.path().is_file() {
            std::fs::write(entry.path(), seeded_bytes(1, 10_000)).expect("writable");
        }
    }
    match Gateway::try_start(folder.path(), &Options::default()) {
        Ok(gateway) => {
            gateway.catalog_complete().await;
            serves_everything(&gateway, &contents, &added).await;
        }
        Err(log) => assert!(log.contains("catalog"), "if it does not start, it says what to delete:\n{log}"),
    }
}

/// A fresh node that has the host list and the portal key, nothing else.
#[tokio::test]
async fn a_new_node_with_host_list_and_portal_key() {
    let mut random = seeded("a_new_node_with_host_list_and_portal_key");
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let options = Options::config(hosts_config(&folder.path().join("disks")));
    let gateway = Gateway::start_with(&first, &options);
    let contents = contents();
    let mut added = Vec::new();
    for content in &contents {
        added.push(gateway.upload(content).await);
    }
    let mut inner = inner_blocks(&gateway, &added, &contents).await;
    assert!(inner.len() >= 200, "{} blocks", inner.len());
    inner.shuffle(&mut random);
    assert!(gateway.stop().success());

    let phrase = export_key(&first);
    import_key(&second, &phrase);
    let gateway = Gateway::start_with(&second, &options);
    serves_everything(&gateway, &contents, &added).await;
    for cid in &inner[..100] {
        until(cid, Duration::from_secs(20), async || {
            let block = gateway.get(&format!("/ipfs/{cid}?format=raw")).await;
            match block.status {
                200 => {
                    assert!(unixfs::is_block(cid, &block.body), "{cid}: WRONG BYTES");
                    Ok(())
                }
                // Only while the catalog is being rebuilt.
                503 => Err("503".to_owned()),
                other => panic!("{cid}: {other} {}", block.text()),
            }
        })
        .await;
    }
    let content = Content::file("more.bin", seeded_bytes(9, 1_000_000));
    let more = gateway.upload(&content).await;
    content.assert_read_back(&gateway, &more).await;
    assert!(gateway.stop().success());

    // Another portal's key does not open these hosts, and says so.
    let stranger = folder.path().join("third");
    let log = match Gateway::try_start(&stranger, &options) {
        Ok(_) => panic!("hosts of another portal were taken"),
        Err(log) => log,
    };
    assert!(log.to_lowercase().contains("portal"), "{log}");
}

fn hosts_config(disks: &Path) -> String {
    (1..=9)
        .map(|number| {
            let disk = disks.join(number.to_string());
            std::fs::create_dir_all(&disk).expect("folders can be made");
            format!("[[hosts]]\nurl = \"file:{}\"\n", disk.display())
        })
        .collect()
}

fn export_key(data: &Path) -> String {
    let output = Command::new(binary()).args(["key", "export", "--data"]).arg(data).output().expect("it can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

pub(super) fn import_key(data: &Path, exported: &str) {
    use std::io::Write;
    std::fs::create_dir_all(data).expect("folders can be made");
    let mut command = Command::new(binary());
    command.args(["key", "import", "--data"]).arg(data).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it can be run");
    child.stdin.take().expect("piped").write_all(exported.as_bytes()).expect("the phrase can be given");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The phrase is the portal: it does not stand in what is printed.
    let words: Vec<&str> = exported.split_whitespace().collect();
    assert!(!String::from_utf8_lossy(&output.stdout).contains(&words[..4.min(words.len())].join(" ")));
}

/// While the catalog is not complete an address that it does not know is 503, never 404; when it is complete, 404.
#[tokio::test]
async fn an_unknown_cid_while_the_catalog_is_rebuilt() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let contents = contents();
    let mut added = Vec::new();
    for content in &contents {
        added.push(gateway.upload(content).await);
    }
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let delete = || std::fs::remove_dir_all(folder.path().join("catalog")).expect("the catalog can be deleted");

    // As it is: sampled from the first moment to the end of the rebuild.
    delete();
    let gateway = Gateway::start(folder.path());
    let mut seen = [0, 0];
    loop {
        let unknown = gateway.get(ABSENT).await;
        let complete = gateway.admin_json("/api/v1/status").await["store"]["catalog_complete"] == true;
        if !complete {
            assert_eq!(unknown.status, 503, "{}", unknown.text());
            assert!(unknown.header("retry-after").is_some());
        }
        assert!(matches!(unknown.status, 503 | 404), "{}", unknown.status);
        seen[usize::from(unknown.status == 404)] += 1;
        let known = gateway.get(&format!("/ipfs/{}", added[1].cid)).await;
        assert!(matches!(known.status, 200 | 503), "known, and {}", known.status);
        if complete {
            break;
        }
    }
    assert_eq!(gateway.get(ABSENT).await.status, 404);
    println!("{} times 503, {} times 404", seen[0], seen[1]);
    assert!(gateway.stop().success());

    // With too few hosts to list all pins it never gets complete: then never 404, until they are back.
    delete();
    let folders = host_folders(folder.path());
    let away = Away::take(&[folders[0].clone(), folders[2].clone(), folders[5].clone(), folders[7].clone()]);
    let gateway = Gateway::start(folder.path());
    for _ in 0..50 {
        for target in [ABSENT.to_owned(), format!("/ipfs/{}", added[3].cid)] {
            let answer = gateway.get(&target).await;
            assert!(answer.status != 404, "a false 404: {target}");
        }
    }
    let unknown = gateway.get(ABSENT).await;
    assert!(
        matches!(unknown.status, 503 | 504) && unknown.header("retry-after").is_some(),
        "{}: {}",
        unknown.status,
        unknown.text()
    );
    let status = gateway.admin_json("/api/v1/status").await;
    assert_eq!((&status["store"]["catalog_complete"], &status["readiness"]), (&false.into(), &"starting".into()));
    let health = wire::ask(&gateway.admin, "GET", "/health", &[]).await;
    assert_eq!(health.status, 503);
    away.back();
    gateway.catalog_complete().await;
    assert_eq!(gateway.get(ABSENT).await.status, 404);
    serves_everything(&gateway, &contents, &added).await;
}

/// `design.md` 5: a root file of a small site takes 3 serial rounds of an empty node (pin; pack; pieces), a deep path in
/// a large one 5.
#[tokio::test]
async fn cold_rounds() {
    let mut random = seeded("cold_rounds");
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let site = Content::files_of(
        "small",
        &[("index.html", b"<h1>small</h1>"), ("style.css", b"h1{}"), ("app.js", &seeded_bytes(1, 40_000))],
    );
    let items = (0..4000).map(|index| {
        (format!("a{}/b/c/d{}/f{index}.html", index % 3, index % 50), Item::File(seeded_bytes(index, 1500 + index as usize % 3000)))
    });
    let large = Content::folder("large", items.chain([("video.bin".to_owned(), Item::File(seeded_bytes(8, 50_000_000)))]));
    let small_cid = gateway.upload(&site).await.cid;
    let large_cid = {
        let answer = gateway.upload_bytes(&large.stream(), &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Added::of(&answer.json()).cid
    };
    assert!(gateway.stop().success());
    let deep = large.addresses(&format!("/ipfs/{large_cid}"));
    for (what, target, most) in [
        ("the root of a small site", format!("/ipfs/{small_cid}/"), 3),
        ("a file of a small site", format!("/ipfs/{small_cid}/app.js"), 3),
        ("a deep path in a large one", deep[random.random_range(0..deep.len())].0.clone(), 5),
        ("a large file in a large one", format!("/ipfs/{large_cid}/video.bin"), 5),
    ] {
        std::fs::remove_dir_all(folder.path().join("catalog")).expect("the catalog can be deleted");
        let gateway = Gateway::start(folder.path());
        let answer = gateway.ask("GET", &target, &["Range: bytes=0-99"]).await;
        assert!(matches!(answer.status, 200 | 206), "{what}: {} {}", answer.status, answer.text());
        // The rebuild in the background may have fetched the pack a moment before.
        assert!(matches!(answer.class().as_deref(), Some("cold" | "hosts")), "{what}: {:?}", answer.headers);
        assert!((1..=most).contains(&answer.rounds()), "{what}: {} rounds, at most {most}", answer.rounds());
        println!("{what}: {} rounds", answer.rounds());
        gateway.kill();
    }
}
