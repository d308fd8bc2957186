//! A portal as Skynet's own clients use it, with the packages as they were published: `skynet-js` under jsdom, which checks
//! CORS as a browser does, `@skynetlabs/skynet-nodejs`, and `libskynet`, which believes a portal nothing.
//! `tus-js-client` through kills is in `portal_tus`.

use compat_tests::npm::{check, install_from};
use compat_tests::{Gateway, Tier};

/// An API key for a client.
fn key(gateway: &Gateway, name: &str) -> String {
    let made = gateway.command(&["key", "add", name]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    made["key"].as_str().expect("a secret").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skynet_js_finds_all_that_it_needs() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(home) = install_from(Tier::Ci, "skynet-js", folder.path()) else { return };
    let gateway = Gateway::start(&folder.path().join("data"));
    let key = key(&gateway, "skynet-js");
    check(&home, &[&gateway.public, &key], &gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libskynet_checks_all_that_it_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(home) = install_from(Tier::Ci, "libskynet", folder.path()) else { return };
    let gateway = Gateway::start(&folder.path().join("data"));
    check(&home, &[&gateway.public], &gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skynet_nodejs_stores_files_and_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(home) = install_from(Tier::Slow, "skynet-nodejs", folder.path()) else { return };
    let gateway = Gateway::start(&folder.path().join("data"));
    let key = key(&gateway, "nodejs");
    let files = folder.path().join("files");
    std::fs::create_dir(&files).expect("made");
    check(&home, &[&gateway.public, &key, files.to_str().expect("UTF-8")], &gateway).await;
}
