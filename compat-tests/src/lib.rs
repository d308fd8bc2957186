//! What the black-box tests share: a real `skygate` process on ports of its own, and content made from seeds.
//!
//! The binary is the one beside the test's own executable (`target/<profile>/skygate`), so that what is tested is
//! what is built; `SKYGATE_BIN` names another.

pub mod browser;
pub mod site;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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

/// Completion follows an acknowledgement within seconds; this is for one that never comes.
pub const COMPLETE_MAX: std::time::Duration = std::time::Duration::from_secs(120);

/// A running gateway. Killed when dropped.
pub struct Gateway {
    child: Child,
    /// `http://127.0.0.1:PORT` of the public listener.
    pub public: String,
    /// The same of the admin listener.
    pub admin: String,
    pub data: PathBuf,
    log: Arc<Mutex<Vec<String>>>,
    client: reqwest::Client,
}

/// How a gateway is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Text of the configuration file, if any.
    pub config: Option<String>,
    /// More arguments of `serve`.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
}

impl Gateway {
    /// Starts on `data` with the embedded default and waits until both listeners are ready.
    pub fn start(data: &Path) -> Gateway {
        Gateway::start_with(data, &Options::default())
    }

    pub fn start_with(data: &Path, options: &Options) -> Gateway {
        Gateway::try_start(data, options).unwrap_or_else(|log| panic!("the gateway did not start:\n{log}"))
    }

    /// `Err` has what it printed before it ended.
    pub fn try_start(data: &Path, options: &Options) -> Result<Gateway, String> {
        std::fs::create_dir_all(data).expect("the data folder can be made");
        let mut command = Command::new(binary());
        command.arg("serve").arg("--data").arg(data).args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        if let Some(config) = &options.config {
            let path = data.join("test.toml");
            std::fs::write(&path, config).expect("the configuration can be written");
            command.arg("--config").arg(path);
        }
        command.args(&options.args).envs(options.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let log = Arc::new(Mutex::new(Vec::new()));
        let errors = BufReader::new(child.stderr.take().expect("piped"));
        let kept = log.clone();
        let reader = std::thread::spawn(move || errors.lines().map_while(Result::ok).for_each(|line| keep(&kept, line)));
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut addresses = Vec::new();
        while addresses.len() < 2 {
            let Some(Ok(line)) = lines.next() else {
                let _ = child.wait();
                let _ = reader.join();
                return Err(log.lock().expect("no panic under this lock").join("\n"));
            };
            if let Some(at) = line.find("listening on http://") {
                let address = line[at + "listening on ".len()..].split_whitespace().next().unwrap_or_default();
                addresses.push(address.trim_end_matches('/').to_owned());
            }
            keep(&log, line);
        }
        let kept = log.clone();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| keep(&kept, line)));
        let [public, admin] = <[String; 2]>::try_from(addresses).expect("two were waited for");
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build();
        let client = client.expect("a client without TLS can be made");
        Ok(Gateway { child, public, admin, data: data.to_owned(), log, client })
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic under this lock").join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, at once.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(mut self) -> ExitStatus {
        signal(self.child.id(), "TERM");
        self.child.wait().expect("the process can be waited for")
    }

    /// A command of the command line against this gateway, with `--json`.
    pub fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(args).args(["--json", "--api", &self.admin]).arg("--data").arg(&self.data);
        command.stdin(Stdio::null()).output().expect("the binary can be started")
    }

    /// Adds a path and returns the last line of the answer.
    pub fn add(&self, path: &Path, args: &[&str]) -> Result<serde_json::Value, String> {
        let path = path.to_str().expect("test paths are UTF-8");
        let output = self.command(&[&["add", path], args].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{}: {errors}{text}", output.status));
        }
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        serde_json::from_str(last).map_err(|error| format!("{error}: {text}{errors}"))
    }

    /// Returns when every pin is complete: when it survives the loss of any m hosts. Asks again and again; `Err` says
    /// that some were not complete after [`COMPLETE_MAX`].
    pub fn wait_complete(&self) -> Result<(), String> {
        let begin = std::time::Instant::now();
        while self.incomplete_pins()? > 0 {
            if begin.elapsed() > COMPLETE_MAX {
                return Err(format!("pins are not complete after {COMPLETE_MAX:?}\n{}", self.log()));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// How many of the first thousand pins are acknowledged, but not complete.
    pub fn incomplete_pins(&self) -> Result<usize, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        // A client of this runtime's own: a connection of another one would hang on it.
        let client = reqwest::Client::builder().no_proxy().build().map_err(|error| error.to_string())?;
        let asked = client.get(format!("{}/api/v1/pins?limit=1000", self.admin)).bearer_auth(self.api_key());
        let answer = runtime.block_on(async { asked.send().await?.error_for_status()?.json().await });
        let page: serde_json::Value = answer.map_err(|error: reqwest::Error| error.to_string())?;
        let pins = page["pins"].as_array().ok_or_else(|| format!("no pins in {page}"))?;
        Ok(pins.iter().filter(|pin| pin["durability"] != "complete").count())
    }

    /// GET on the public listener.
    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.request(path).send().await.unwrap_or_else(|error| panic!("GET {path}: {error}\n{}", self.log()))
    }

    /// A GET to be completed.
    pub fn request(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.public))
    }

    /// A request to the admin listener with the key of the data folder.
    pub fn admin_request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.admin)).bearer_auth(self.api_key())
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// The API key that the first start made.
    pub fn api_key(&self) -> String {
        std::fs::read_to_string(self.data.join("keys/api")).expect("the key file is there").trim().to_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep(log: &Mutex<Vec<String>>, line: String) {
    log.lock().expect("no panic under this lock").push(line);
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(status.expect("kill can be run").success(), "signal {name} to {pid}");
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
