//! The numbers of the first milestone, measured on the release binary over loopback:
//! `cargo build --release && cargo bench -p compat-tests --bench numbers -- [only NAME]... [--rounds 5] [--small] [--large] [--dir DIR]`.
//!
//! Every figure is the median of interleaved rounds, with its range; where a figure is a ratio, both sides are printed
//! raw and were measured in turn in the same rounds. The server's CPU time stands beside each rate, because client and
//! server share the machine. The table is Markdown and nothing is written but to a temporary folder, which is removed.
//!
//! - `--small` makes everything small and short: to see that it works, not to measure.
//! - `--large` adds the file of 10 GiB (takes 15 GiB of disk).
//! - `--dir DIR` is where the temporary folder goes; it must be on a disk, not in memory.
//!
//! Cached rates need `wrk` and `nginx`; page-cache-cold figures need root. What is missing is said in the table.

mod adding;
mod archive;
mod beside_nginx;
mod bound;
mod content;
mod directory;
mod load;
mod process;
mod ranges;
mod registry;
mod report;
mod streams;
mod uploading;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use compat_tests::{Gateway, Options};
use tokio::runtime::{Builder, Runtime};

use report::Report;

/// Completion follows an acknowledgement within seconds; this is for one that never comes.
const COMPLETE_MAX: Duration = Duration::from_secs(300);
/// Between two questions whether pins are complete.
const COMPLETE_PAUSE: Duration = Duration::from_millis(50);

/// What the command line asked for.
pub struct Plan {
    /// Parts to run; empty means all.
    only: Vec<String>,
    pub rounds: usize,
    pub small: bool,
    pub large: bool,
    dir: PathBuf,
}

impl Plan {
    fn from_args() -> Result<Plan, String> {
        let mut plan = Plan { only: vec![], rounds: 5, small: false, large: false, dir: std::env::temp_dir() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "only" => plan.only.push(value()?),
                "--rounds" => plan.rounds = value()?.parse().map_err(|_| "--rounds takes a number".to_owned())?,
                "--dir" => plan.dir = value()?.into(),
                "--small" => plan.small = true,
                "--large" => plan.large = true,
                // cargo bench adds it.
                "--bench" => {}
                other => return Err(format!("{other} is not known; parts: {}", PARTS.map(|part| part.0).join(", "))),
            }
        }
        if plan.rounds == 0 {
            return Err("--rounds must be at least 1".to_owned());
        }
        if let Some(unknown) = plan.only.iter().find(|only| !PARTS.iter().any(|part| part.0 == *only)) {
            return Err(format!("there is no part {unknown}; parts: {}", PARTS.map(|part| part.0).join(", ")));
        }
        Ok(plan)
    }

    /// One of two sizes: the real one, or the one for trying out.
    pub fn size<T>(&self, real: T, small: T) -> T {
        if self.small { small } else { real }
    }

    /// An empty folder for one part.
    pub fn folder(&self) -> tempfile::TempDir {
        tempfile::Builder::new().prefix("skygate-numbers-").tempdir_in(&self.dir).expect("a temporary folder can be made")
    }
}

type Part = (&'static str, fn(&Plan, &mut Report));

/// In the order in which they run.
const PARTS: [Part; 11] = [
    ("idle", adding::idle),
    ("add", adding::one_large_file),
    ("many", adding::many_small_files),
    ("memory", adding::memory),
    ("ranges", ranges::ranges),
    ("streams", streams::streams),
    ("cached", beside_nginx::cached),
    ("directory", directory::directory),
    ("archive", archive::archive),
    ("uploads", uploading::small_uploads),
    ("registry", registry::registry),
];

fn main() -> ExitCode {
    let plan = match Plan::from_args() {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::new(&plan);
    for (name, part) in PARTS {
        if plan.only.is_empty() || plan.only.iter().any(|only| only == name) {
            eprintln!("# {name}");
            part(&plan, &mut report);
        }
    }
    report.print();
    ExitCode::SUCCESS
}

/// A gateway that keeps no bodies in memory, so that every body byte comes from the hosts.
pub fn uncached(data: &Path) -> Gateway {
    Gateway::start_with(data, &Options::config("[store]\nmemory_bytes = 0\n"))
}

/// A runtime for asking; what is measured has runtimes of its own.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// Waits until every pin is complete, with pauses: asking all the time would be counted as the server's work.
pub fn wait_complete(gateway: &Gateway) -> Result<(), String> {
    let runtime = runtime();
    let begin = Instant::now();
    while incomplete_pins(&runtime, gateway) > 0 {
        if begin.elapsed() > COMPLETE_MAX {
            return Err(format!("pins are not complete after {COMPLETE_MAX:?}\n{}", gateway.log()));
        }
        std::thread::sleep(COMPLETE_PAUSE);
    }
    Ok(())
}

fn incomplete_pins(runtime: &Runtime, gateway: &Gateway) -> usize {
    let page = runtime.block_on(gateway.admin_json("/api/v1/pins?limit=1000"));
    page["pins"].as_array().map_or(0, |pins| pins.iter().filter(|pin| pin["durability"] != "complete").count())
}
