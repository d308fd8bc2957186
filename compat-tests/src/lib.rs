//! What the black-box tests share: a real `skygate` process on ports of its own, raw HTTP, content made from seeds
//! with CIDs computed here, and ways to damage hosts.
//!
//! The binary is the one beside the test's own executable (`target/<profile>/skygate`), so that what is tested is
//! what is built; `SKYGATE_BIN` names another. Nothing here uses the code under test: a fault in it cannot hide
//! itself.

pub mod browser;
pub mod buckets;
pub mod car;
pub mod content;
pub mod damage;
mod gateway;
pub mod ipns;
pub mod npm;
pub mod proxy;
pub mod registry;
pub mod site;
pub mod skyfile;
pub mod unixfs;
pub mod verify;
pub mod versitygw;
pub mod wire;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use gateway::{Gateway, Options, Starting};

/// How much a test may do (`SKYGATE_TIER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    Fast,
    Ci,
    Slow,
}

/// The tier of this run; `ci` when nothing is said.
pub fn tier() -> Tier {
    match std::env::var("SKYGATE_TIER").as_deref() {
        Ok("fast") => Tier::Fast,
        Ok("slow") => Tier::Slow,
        _ => Tier::Ci,
    }
}

/// The folder of shared test data, or `None` with a line that `.ci/run` takes for a failure.
pub fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("SKYGATE_SHARED").map(PathBuf::from).filter(|folder| folder.is_dir());
    if folder.is_none() {
        println!("SKIPPED the folder of shared test data is not there: set SKYGATE_SHARED");
    }
    folder
}

/// The binary under test.
pub fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("SKYGATE_BIN") {
        return PathBuf::from(binary);
    }
    let mut folder = std::env::current_exe().expect("a test knows its own path");
    while folder.pop() {
        let binary = folder.join("skygate");
        if binary.is_file() {
            return binary;
        }
    }
    panic!("no skygate binary beside the test: run `cargo build --release` first, or set SKYGATE_BIN");
}

/// The repository, for its fixtures.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the repository").to_owned()
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(status.expect("kill can be run").success(), "signal {name} to {pid}");
}

/// A random source whose seed is printed, so that a failure can be run again with `SKYGATE_SEED`.
pub fn seeded(test: &str) -> ChaCha8Rng {
    let seed = match std::env::var("SKYGATE_SEED") {
        Ok(text) => text.parse().expect("SKYGATE_SEED is a number"),
        Err(_) => rand::random::<u64>(),
    };
    println!("{test}: SKYGATE_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// Bytes that follow from a seed.
pub fn seeded_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ChaCha8Rng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

/// The folders of the embedded default's hosts.
pub fn host_folders(data: &Path) -> Vec<PathBuf> {
    (1..=9).map(|number| data.join("hosts").join(number.to_string())).collect()
}

/// Time between two looks of [`until`]: short beside everything that is waited for, long beside a request.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`; after `limit` the test fails with the last answer.
pub async fn until<T, F: Future<Output = Result<T, String>>>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(state) if begun.elapsed() > limit => panic!("{what}: not within {limit:?}: {state}"),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}
