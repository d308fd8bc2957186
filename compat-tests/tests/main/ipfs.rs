//! The IPFS gateway, as far as it is no table of single requests (`expectations.txt`): CARs in and out, denylists that change,
//! proxies and tunnels, the public fixtures.

use std::path::PathBuf;

use compat_tests::car::{self, Block, DAG_CBOR, RAW};
use compat_tests::content::{Content, Item};
use compat_tests::{Gateway, Options, seeded_bytes, shared, unixfs};
use serde_json::Value;

const DENIED: &[u8] = b"this is denied";

/// Data: `{"a": link, "m": link to nowhere, "v": 1}` and its leaf, and plain JSON.
struct Data {
    leaf: Block,
    gone: Block,
    cbor: Block,
    json: Block,
}

fn data() -> Data {
    let (leaf, gone) = (Block::new(RAW, b"leaf of data"), Block::new(RAW, b"never stored"));
    let mut cbor = vec![0xa3, 0x61, b'a'];
    cbor.extend(leaf.cbor_link());
    cbor.extend([0x61, b'm']);
    cbor.extend(gone.cbor_link());
    cbor.extend([0x61, b'v', 1]);
    // dag-json is 0x0129.
    let json = format!("{{\"link\":{{\"/\":\"{}\"}},\"list\":[1,2]}}", leaf.text());
    Data { cbor: Block::new(DAG_CBOR, &cbor), json: Block::with_long_codec([0xa9, 0x02], json.as_bytes()), leaf, gone }
}

fn site() -> Content {
    let file = |text: &str| Item::File(text.as_bytes().to_vec());
    Content::folder(
        "site",
        [
            ("index.html".to_owned(), file("<title>front</title>")),
            ("404.html".to_owned(), file("<title>not here</title>")),
            ("dir/a.txt".to_owned(), file("text of a")),
            ("dir/ż b.txt".to_owned(), file("odd name")),
            ("big.bin".to_owned(), Item::File(seeded_bytes(3, (3 << 20) + 5))),
            ("denied.txt".to_owned(), Item::File(DENIED.to_vec())),
            (
                "_redirects".to_owned(),
                file("/old /dir/a.txt\n/go/* https://other.example/:splat?own=1 302\n/app/* /index.html 200\n/* /404.html 404\n"),
            ),
        ],
    )
}

fn config(site: &str) -> String {
    format!(
        "[names]\nresolver = \"none\"\n[names.static]\n\"site.example.org\" = \"/ipfs/{site}\"\n\"below.example.org\" = \"/ipfs/{site}/dir\"\n\
         \"loop.example.org\" = \"/ipns/loop2.example.org\"\n\"loop2.example.org\" = \"/ipns/loop.example.org\"\n\
         [[gateway.domains]]\nname = \"gw.example\"\n[[gateway.domains]]\nname = \"path.example\"\nsubdomains = false\n"
    )
}

fn import(gateway: &Gateway, folder: &tempfile::TempDir, name: &str, car: &[u8]) -> Result<Value, String> {
    let file: PathBuf = folder.path().join(name);
    std::fs::write(&file, car).expect("written");
    let output = gateway.command(&["import", file.to_str().expect("UTF-8")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(serde_json::from_str(text.lines().last().unwrap_or_default()).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[tokio::test]
async fn cars_go_in_and_come_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let data = data();
    let big: Vec<Block> = (0..40).map(|seed| Block::new(RAW, &seeded_bytes(seed, 200_000))).collect();
    let mut list = vec![0x98, 40];
    big.iter().for_each(|block| list.extend(block.cbor_link()));
    let root = Block::new(DAG_CBOR, &list);
    let all: Vec<&Block> = std::iter::once(&root).chain(&big).chain(&big[..3]).collect();
    let imported = import(&gateway, &folder, "big.car", &car::write(&[&root], &all)).expect("imported");
    let bytes: usize = root.bytes.len() + 40 * 200_000;
    assert_eq!(imported, serde_json::json!({"roots": [root.text()], "blocks": 41, "missing": 0, "size_bytes": bytes}));
    for block in std::iter::once(&root).chain(&big) {
        let answer = gateway.get(&format!("/ipfs/{}?format=raw", block.text())).await;
        assert!(answer.body == block.bytes, "{}", block.text());
    }
    let out = gateway.get(&format!("/ipfs/{}?format=car", root.text())).await;
    let read = car::read(&out.body).expect("a good CAR");
    assert!(read.iter().eq(std::iter::once(&root).chain(&big)), "the same blocks in the same order");
    let scope = gateway.get(&format!("/ipfs/{}?format=car&dag-scope=block", root.text())).await;
    assert_eq!(car::read(&scope.body).expect("a good CAR"), std::slice::from_ref(&root));

    // Without roots, with a wrong block, cut, and no CAR at all.
    let none = import(&gateway, &folder, "none.car", &car::write(&[], &[&data.leaf])).expect("imported");
    assert_eq!(none["roots"], serde_json::json!([data.leaf.text()]));
    let wrong = Block { cid: data.gone.cid.clone(), bytes: b"other bytes".to_vec() };
    let error = import(&gateway, &folder, "wrong.car", &car::write(&[&data.json], &[&data.json, &wrong])).expect_err("refused");
    assert!(error.contains(&data.gone.text()), "{error}");
    assert_eq!(gateway.get(&format!("/ipfs/{}", data.json.text())).await.status, 404, "nothing of it is there");
    let whole = car::write(&[&data.cbor], &[&data.cbor, &data.leaf]);
    for (name, bytes) in [("cut.car", &whole[..whole.len() - 3]), ("text.car", b"this is no CAR"), ("empty.car", b"")] {
        assert!(import(&gateway, &folder, name, bytes).is_err(), "{name}");
    }
    // What is missing breaks the stream off: nobody can take the CAR for whole.
    import(&gateway, &folder, "partial.car", &whole).expect("imported");
    let partial = gateway.ask("GET", &format!("/ipfs/{}/a?format=raw", data.cbor.text()), &[]).await;
    assert_eq!(partial.body, data.leaf.bytes);
    let request = format!("GET /ipfs/{}?format=car HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", data.cbor.text());
    let broken = compat_tests::wire::try_exchange(&gateway.public, request.as_bytes(), "GET").await;
    assert!(broken.is_err() || broken.is_ok_and(|answer| answer.status == 404 || !answer.whole), "a partial CAR is not whole");

    // All of it is found again by a catalog made anew.
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    std::fs::remove_dir_all(folder.path().join("data/catalog")).expect("there was one");
    let gateway = Gateway::start(&folder.path().join("data"));
    gateway.catalog_complete().await;
    for block in [&root, &big[0], &big[39], &data.leaf] {
        assert!(gateway.get(&format!("/ipfs/{}?format=raw", block.text())).await.body == block.bytes, "{}", block.text());
    }
}

/// A denied leaf deep inside a DAG is served in no form (ipfs/kubo#10361); a list that changes is in force without a restart.
#[tokio::test]
async fn what_is_denied_is_served_in_no_format() {
    let folder = tempfile::tempdir().expect("a folder");
    let (site, list) = (site(), folder.path().join("rules.deny"));
    std::fs::write(&list, "version: 1\n---\n# nothing yet\n").expect("written");
    let text = format!("{}[deny]\nlists = [{:?}]\n", config(&site.cid()), list);
    let gateway = Gateway::start_with(&folder.path().join("data"), &Options::config(text));
    let added = gateway.upload(&site).await;
    let (root, leaf) = (&added.cid, unixfs::raw(DENIED).cid());
    let link = added.skylink();
    let subdomain = format!("Host: {root}.ipfs.gw.example");
    #[rustfmt::skip]
    let forms: Vec<(String, &str)> = vec![
        (format!("/ipfs/{root}/denied.txt"), ""),
        (format!("/ipfs/{leaf}"), ""),
        (format!("/ipfs/{leaf}?format=raw"), ""),
        (format!("/ipfs/{root}/denied.txt?format=raw"), ""),
        (format!("/ipfs/{root}/denied.txt?format=car"), ""),
        (format!("/ipfs/{root}/denied.txt?format=tar"), ""),
        ("/denied.txt".to_owned(), subdomain.as_str()),
        ("/denied.txt".to_owned(), "Host: site.example.org"),
        ("/ipns/site.example.org/denied.txt".to_owned(), ""),
        (format!("/{link}/denied.txt"), ""),
    ];
    for (target, host) in &forms {
        assert_eq!(gateway.ask("GET", target, &[host]).await.status, 200, "{target} before it is denied");
    }
    std::fs::write(&list, format!("version: 1\n---\n/ipfs/{leaf} reason:court-order gateway_status:451\n")).expect("written");
    let first = forms[0].0.clone();
    compat_tests::until("the new list is in force", std::time::Duration::from_secs(30), || async {
        let status = gateway.get(&first).await.status;
        if status == 451 { Ok(()) } else { Err(format!("{status}")) }
    })
    .await;
    for (target, host) in &forms {
        for headers in [vec![*host], vec![*host, "Range: bytes=0-3"]] {
            let answer = gateway.ask("GET", target, &headers).await;
            assert_eq!(answer.status, 451, "{target} {headers:?}: {}", answer.text());
            assert!(!answer.text().contains("this is denied"), "{target}");
            assert_ne!(answer.header("cache-control").as_deref(), Some("public, max-age=29030400, immutable"));
        }
    }
    // The rest of the DAG is served; streams over all of it break off.
    for (target, host) in
        [(format!("/ipfs/{root}/dir/a.txt"), ""), (format!("/{link}/dir/a.txt"), ""), ("/".to_owned(), subdomain.as_str())]
    {
        assert_eq!(gateway.ask("GET", &target, &[host]).await.status, 200, "{target}");
    }
    for format in ["car", "tar"] {
        let request = format!("GET /ipfs/{root}?format={format} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = compat_tests::wire::try_exchange(&gateway.public, request.as_bytes(), "GET").await;
        let broken = answer.as_ref().map_or(true, |answer| answer.status == 451 || !answer.whole);
        assert!(broken, "{format} of the whole breaks off");
        assert!(!answer.is_ok_and(|answer| answer.text().contains("this is denied")), "{format}");
    }
    // A path rule holds for that path alone.
    std::fs::write(&list, format!("version: 1\n---\n/ipfs/{root}/dir/*\n/ipns/site.example.org\n")).expect("written");
    let path = format!("/ipfs/{root}/dir/a.txt");
    compat_tests::until("the next list is in force", std::time::Duration::from_secs(30), || async {
        let status = gateway.get(&path).await.status;
        if status == 410 { Ok(()) } else { Err(format!("{status}")) }
    })
    .await;
    assert_eq!(gateway.get(&format!("/ipfs/{root}/index.html")).await.status, 200);
    assert_eq!(gateway.ask("GET", "/", &["Host: site.example.org"]).await.status, 410);
}

/// Proxies: whole URLs and tunnels are answered for names that are served here, and for no others.
#[tokio::test]
async fn a_proxy_for_its_own_names_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let site = site();
    let gateway = Gateway::start_with(&folder.path().join("data"), &Options::config(config(&site.cid())));
    let root = gateway.upload(&site).await.cid;
    let own = format!("{root}.ipfs.gw.example");
    let absolute = |host: &str| format!("GET http://{host}/dir/a.txt HTTP/1.1\r\nHost: ignored.test\r\nConnection: close\r\n\r\n");
    for (host, status) in [(own.as_str(), 200), ("site.example.org", 200), ("elsewhere.test", 421)] {
        let answer = compat_tests::wire::exchange(&gateway.public, absolute(host).as_bytes(), "GET").await;
        assert_eq!(answer.status, status, "{host}: {}", answer.text());
    }
    let tunnel = |host: &str| {
        format!(
            "CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\nGET /dir/a.txt HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (host, expect) in [(own.as_str(), "text of a"), ("elsewhere.test", "421"), ("10.0.0.1", "421")] {
        let mut stream = compat_tests::wire::connect(&gateway.public).await.expect("connects");
        stream.write_all(tunnel(host).as_bytes()).await.expect("sent");
        let mut seen = Vec::new();
        let mut some = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains(expect) {
            let count = stream.read(&mut some).await.expect("answers");
            assert!(count > 0, "{host}: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&some[..count]);
        }
    }
}

/// All public fixtures go in; three records are bad, and one block is missing on purpose.
#[tokio::test]
async fn public_fixtures() {
    let Some(fixtures) = shared().map(|shared| shared.join("conformance/fixtures")) else {
        println!("SKIPPED public_fixtures: SKYGATE_SHARED is not set");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start_with(&folder.path().join("data"), &Options::config("[names]\nresolver = \"none\"\n"));
    let (mut cars, mut records) = (Vec::new(), Vec::new());
    let mut open = vec![fixtures];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.extension().and_then(|ending| ending.to_str()) {
                _ if path.is_dir() => open.push(path),
                Some("car") => cars.push(path),
                Some("ipns-record") => records.push(path),
                _ => {}
            }
        }
    }
    let mut args = vec!["import"];
    args.extend(cars.iter().map(|path| path.to_str().expect("UTF-8")));
    let output = gateway.command(&args);
    let text = String::from_utf8_lossy(&output.stdout);
    let sum: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!((sum["missing"].as_u64(), output.status.success()), (Some(1), true), "{sum}");
    let mut refused = Vec::new();
    for record in &records {
        let output = gateway.command(&["name", "put", record.to_str().expect("UTF-8")]);
        let name = record.file_name().expect("a name").to_string_lossy().into_owned();
        match output.status.code() {
            Some(0) => {
                let key = name.split(['_', '.']).next().expect("a key");
                let answer = gateway.get(&format!("/ipns/{key}?format=ipns-record")).await;
                let answer = match answer.header("location") {
                    Some(usual) => gateway.get(&usual).await,
                    None => answer,
                };
                assert_eq!(answer.body, std::fs::read(record).expect("a record"), "{name}");
            }
            Some(1) => {
                let key = name.split('_').next().expect("a key");
                assert!(gateway.get(&format!("/ipns/{key}")).await.status >= 500, "{name}");
                refused.push(name);
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(refused.len(), 3, "{refused:?}");
}
