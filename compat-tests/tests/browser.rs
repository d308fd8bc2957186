//! The sample site and a real site of our own making in headless Chromium, with three of nine hosts gone.
//!
//! Pictures of the pages go to the folder in `SKYGATE_SCREENSHOTS`, if it is set, to be looked at by people.

use std::path::{Path, PathBuf};

use compat_tests::browser::Browser;
use compat_tests::site;
use compat_tests::{Gateway, host_folders};
use serde_json::Value;

/// Nothing in the embedded default's numbers is lost with these.
const HOSTS_GONE: [usize; 3] = [0, 4, 8];
const PHONE: (u32, u32) = (390, 844);
const DESK: (u32, u32) = (1200, 800);

/// A running gateway that has lost three hosts, a browser, and the addresses of the site.
struct Scene {
    gateway: Gateway,
    browser: Browser,
    /// `http://…/ipfs/CID/` of the real site.
    site: String,
    shots: PathBuf,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// `None` without a browser.
    fn set() -> Option<Scene> {
        let browser = Browser::start()?;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (data, source) = (folder.path().join("data"), folder.path().join("almanac"));
        let files = site::write(&source);
        assert!(files >= 300, "a site of {files} files is not a real one");
        let gateway = Gateway::start(&data);
        let added = gateway.add(&source, &["--name", "almanac"]).expect("the site can be added");
        assert_eq!(added["files"], files, "{added}");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
        runtime.block_on(gateway.pins_complete());
        // A new process has nothing in memory: everything below comes from the six hosts that are left.
        assert!(gateway.stop().success());
        for host in HOSTS_GONE {
            std::fs::remove_dir_all(&host_folders(&data)[host]).expect("a host folder can be removed");
        }
        let gateway = Gateway::start(&data);
        let site = format!("{}/ipfs/{}/", gateway.public, added["cid"].as_str().expect("a CID"));
        let shots = std::env::var_os("SKYGATE_SCREENSHOTS").map_or_else(|| folder.path().to_owned(), PathBuf::from);
        std::fs::create_dir_all(&shots).expect("the folder can be made");
        Some(Scene { gateway, browser, site, shots, _folder: folder })
    }

    /// Opens a page, demands that everything it asked for came, and takes a picture.
    fn open(&mut self, url: &str, shot: &str) {
        self.browser.open(url);
        self.nothing_failed(url);
        self.shoot(shot);
    }

    fn nothing_failed(&self, url: &str) {
        let failed: Vec<_> = self.browser.received().into_iter().filter(|reply| reply.status >= 400).collect();
        assert!(failed.is_empty(), "{url}: {failed:?}\n{}", self.gateway.log());
        assert!(self.browser.script_errors().is_empty(), "{url}: {:?}", self.browser.script_errors());
    }

    fn shoot(&mut self, name: &str) {
        let length = self.browser.screenshot(&self.shots.join(format!("{name}.png")));
        assert!(length > 0, "{name}");
    }
}

#[test]
fn sites_open_in_a_browser_with_three_of_nine_hosts_gone() {
    let Some(mut scene) = Scene::set() else { return };
    scene.browser.window(DESK.0, DESK.1);
    real_site(&mut scene);
    every_check_of_the_site(&mut scene);
    odd_names(&mut scene);
    application(&mut scene);
    listing_and_error_page_on_a_phone(&mut scene);
    dashboard(&mut scene);
    scene.browser.window(DESK.0, DESK.1);
    landing_page_and_sample_site(&mut scene);
    assert!(
        host_folders(&scene.gateway.data).iter().enumerate().all(|(host, folder)| is_host(folder) != HOSTS_GONE.contains(&host))
    );
}

/// A lost host must not come back as an empty one.
fn is_host(folder: &Path) -> bool {
    folder.join("skygate-host.json").is_file()
}

fn landing_page_and_sample_site(scene: &mut Scene) {
    let landing = format!("{}/", scene.gateway.public);
    scene.open(&landing, "landing");
    scene.browser.follow("a[href^='/ipfs/']");
    scene.nothing_failed("the sample site");
    scene.shoot("sample-site");
    let styled = "[...document.styleSheets].every(sheet => sheet.cssRules.length > 0) && document.styleSheets.length > 0";
    assert_eq!(scene.browser.evaluate(styled), true);
    assert_eq!(scene.browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), true);
    let links = scene
        .browser
        .evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href).filter(href => href.startsWith(location.origin))");
    for link in links.as_array().into_iter().flatten().filter_map(Value::as_str) {
        scene.browser.open(link);
        scene.nothing_failed(link);
    }
}

fn real_site(scene: &mut Scene) {
    let front = scene.site.clone();
    scene.open(&front, "real-site");
    assert_eq!(scene.browser.text("document.title"), "Almanac of a river");
    assert_eq!(scene.browser.evaluate("document.getElementById('map').naturalWidth > 0"), true);
    // A deep link, typed in without its slash, and from there by a link of the page.
    scene.open(&format!("{front}chapters/118"), "deep-link");
    assert!(scene.browser.text("location.pathname").ends_with("/chapters/118/"));
    for expect in [119, 120, 1] {
        scene.browser.follow("#next");
        scene.nothing_failed("the next chapter");
        assert_eq!(
            scene.browser.text("document.querySelector('h1').textContent"),
            format!("Chapter {expect}: {}", site::chapter_title(expect))
        );
        assert_eq!(scene.browser.evaluate("document.images[0].naturalWidth"), 64);
        assert_eq!(scene.browser.text("document.documentElement.dataset.script"), "ran");
    }
}

/// The page that tries pictures, modules, film, sound, ranges and more from inside.
fn every_check_of_the_site(scene: &mut Scene) {
    scene.browser.open(&format!("{}checks.html", scene.site));
    let rows = scene.browser.evaluate("window.checks");
    scene.shoot("checks");
    let rows = rows.as_array().expect("one row a check");
    for row in rows {
        println!("{}: {}", row["name"], row["saw"]);
    }
    let failed: Vec<_> = rows.iter().filter(|row| row["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", scene.gateway.log());
    assert_eq!(rows.len(), 11);
    // The page asks for one thing that is not there; of all others none may fail.
    let failed: Vec<_> = scene.browser.received().into_iter().filter(|reply| reply.status >= 400).collect();
    assert!(failed.len() == 1 && failed[0].url.ends_with("/no/such/page.html"), "{failed:?}");
    let jumps = scene.browser.received().iter().filter(|reply| reply.status == 206 && reply.url.ends_with("/tour.mp4")).count();
    assert!(jumps >= 2, "the film's index lies behind megabytes: {jumps} ranges");
}

fn odd_names(scene: &mut Scene) {
    for (path, word) in site::odd_names() {
        let url = format!("{}{}", scene.site, site::link(path));
        scene.browser.open(&url);
        scene.nothing_failed(&url);
        assert!(scene.browser.text("document.body.innerText").contains(word), "{path}");
        assert_eq!(scene.browser.text("document.querySelector('h1').textContent"), *path);
        assert_eq!(scene.browser.text("document.documentElement.dataset.script"), "ran", "{path}");
    }
    // The front page writes the same names as links of its own.
    scene.browser.open(&scene.site);
    scene.browser.follow("a[href*='%E6%9D%B1']");
    assert!(scene.browser.text("document.body.innerText").contains("丸の内"));
    scene.shoot("utf-8-name");
}

fn application(scene: &mut Scene) {
    let app = format!("{}app/#/chapter/12", scene.site);
    scene.browser.open(&app);
    scene.browser.evaluate("window.shown");
    assert_eq!(scene.browser.text("document.querySelector('h1').textContent"), format!("Chapter 12: {}", site::chapter_title(12)));
    scene.nothing_failed(&app);
    let moved = "new Promise(done => { new MutationObserver(() => done(document.querySelector('h1').textContent)).observe(\
                 document.documentElement, { attributes: true }); location.hash = '#/chapter/90'; })";
    assert_eq!(scene.browser.text(moved), format!("Chapter 90: {}", site::chapter_title(90)));
    scene.shoot("application");
}

fn listing_and_error_page_on_a_phone(scene: &mut Scene) {
    scene.browser.window(PHONE.0, PHONE.1);
    let listing = format!("{}places/", scene.site);
    scene.open(&listing, "listing-phone");
    let fits = "document.documentElement.scrollWidth <= window.innerWidth";
    assert_eq!(scene.browser.evaluate(fits), true, "a listing is as wide as the phone");
    scene.browser.follow("a[href*='%C5%81']");
    scene.shoot("listing-deep-phone");
    assert!(scene.browser.text("decodeURIComponent(location.pathname)").contains("/places/Łódź"));
    let many = format!("{}chapters/", scene.site);
    scene.open(&many, "listing-long-phone");
    scene.browser.open(&format!("{}no/such/page", scene.site));
    assert_eq!(scene.browser.received().first().map(|reply| reply.status), Some(404));
    assert_eq!(scene.browser.evaluate(fits), true, "an error page is as wide as the phone");
    scene.shoot("error-phone");
    scene.browser.open(&format!("{}/ipfs/not-a-cid", scene.gateway.public));
    assert_eq!(scene.browser.received().first().map(|reply| reply.status), Some(400));
    scene.shoot("bad-cid-phone");
    let landing = format!("{}/", scene.gateway.public);
    scene.open(&landing, "landing-phone");
    scene.browser.window(DESK.0, DESK.1);
    scene.open(&listing, "listing");
}

fn dashboard(scene: &mut Scene) {
    let log = scene.gateway.log();
    let link = log.split_whitespace().find(|word| word.contains("/?login=")).expect("serve prints a login link").to_owned();
    scene.open(&link, "dashboard");
    let text = scene.browser.text("document.body.innerText").to_lowercase();
    assert!(text.contains("down"), "the dashboard says that hosts are down:\n{text}");
    scene.browser.window(PHONE.0, PHONE.1);
    scene.shoot("dashboard-phone");
}
