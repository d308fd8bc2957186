//! A portal as a web page sees it: the published `skynet-js` under jsdom, which checks CORS as a browser does.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use compat_tests::{Gateway, Tier, repository, tier};

/// A copy of `clients/skynet-js` with what its lock file names.
fn installed(to: &Path) -> PathBuf {
    let from = repository().join("compat-tests/clients/skynet-js");
    let home = to.join("skynet-js");
    std::fs::create_dir_all(&home).expect("made");
    for name in ["check.js", "package.json", "package-lock.json"] {
        std::fs::copy(from.join(name), home.join(name)).expect("copied");
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&home).stdin(Stdio::null());
    let output = npm.output().expect("npm is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    home
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skynet_js_finds_all_that_it_needs() {
    if tier() < Tier::Ci {
        println!("skynet-js: not in the fast tier");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let home = installed(folder.path());
    let gateway = Gateway::start(&folder.path().join("data"));
    let made = gateway.command(&["key", "add", "skynet-js"]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let key = made["key"].as_str().expect("a secret").to_owned();
    let public = gateway.public.clone();
    let check = move || Command::new("node").arg("check.js").args([&public, &key]).current_dir(&home).stdin(Stdio::null()).output();
    let output = tokio::task::spawn_blocking(check).await.expect("joined").expect("node is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}{}\n{}", String::from_utf8_lossy(&output.stderr), gateway.log());
}
