//! Programs from npm that use a gateway: the folders of `clients/`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Gateway, Tier, repository, tier};

/// What the clients share; it stands beside their folders.
const SHARED: &str = "steps.cjs";

/// A copy of a folder of `clients/` inside `to`, with exactly what its lock file names.
pub fn install(client: &str, to: &Path) -> PathBuf {
    let clients = repository().join("compat-tests/clients");
    let (from, home) = (clients.join(client), to.join(client));
    std::fs::copy(clients.join(SHARED), to.join(SHARED)).expect("copied");
    std::fs::create_dir_all(&home).expect("made");
    for entry in std::fs::read_dir(from).expect("the client's folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            std::fs::copy(&path, home.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps"]).current_dir(&home);
    let output = npm.stdin(Stdio::null()).output().expect("npm is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    home
}

/// The same in this tier and above; `None` below it, with a line that says so.
pub fn install_from(least: Tier, client: &str, to: &Path) -> Option<PathBuf> {
    if tier() < least {
        println!("{client}: only from the tier {least:?} on");
        return None;
    }
    Some(install(client, to))
}

/// Runs `check.js` of an installed client; it prints a line for each step, and fails with the first that does.
pub async fn check(home: &Path, arguments: &[&str], gateway: &Gateway) {
    let mut node = tokio::process::Command::new("node");
    node.arg("check.js").args(arguments).current_dir(home).stdin(Stdio::null()).kill_on_drop(true);
    let output = node.output().await.expect("node is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}{}\n{}", String::from_utf8_lossy(&output.stderr), gateway.log());
}
