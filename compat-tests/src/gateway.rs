//! A running gateway.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::content::{Added, Content};
use crate::wire::{self, Answer};
use crate::{binary, signal, until};

/// What follows the ready lines is printed at once.
const SAY_MAX: Duration = Duration::from_secs(10);
/// A start that takes longer has hung.
const START_MAX: Duration = Duration::from_secs(60);
/// A stop that takes longer than the grace time and the time to let hosts go has hung.
const STOP_MAX: Duration = Duration::from_secs(60);
/// The catalog of a test's node is rebuilt within seconds; a busy machine gets more.
const CATALOG_MAX: Duration = Duration::from_secs(60);
/// Missing pieces are tried again every minute at the latest.
const COMPLETE_MAX: Duration = Duration::from_secs(100);

/// A running gateway. Killed when dropped.
pub struct Gateway {
    child: Option<Child>,
    /// `http://127.0.0.1:PORT` of the public listener.
    pub public: String,
    /// The same of the admin listener.
    pub admin: String,
    pub data: PathBuf,
    log: Log,
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

impl Options {
    /// With this configuration file.
    pub fn config(text: impl Into<String>) -> Options {
        Options { config: Some(text.into()), ..Options::default() }
    }
}

/// A process that has been started and may not be ready.
pub struct Starting {
    child: Option<Child>,
    addresses: Receiver<String>,
    data: PathBuf,
    log: Log,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn keep(&self, line: String) {
        self.0.lock().expect("no panic under this lock").push(line);
    }

    fn text(&self) -> String {
        self.0.lock().expect("no panic under this lock").join("\n")
    }
}

impl Starting {
    /// Starts the process on `data` and returns at once.
    pub fn spawn(data: &Path, options: &Options) -> Starting {
        std::fs::create_dir_all(data).expect("the data folder can be made");
        let mut command = Command::new(binary());
        command.arg("serve").arg("--data").arg(data).args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        if let Some(config) = &options.config {
            let path = data.join("test.toml");
            std::fs::write(&path, config).expect("the configuration can be written");
            command.arg("--config").arg(path);
        }
        command.args(&options.args);
        Starting::of(command, data, options)
    }

    /// The same of a whole command line.
    pub fn of(mut command: Command, data: &Path, options: &Options) -> Starting {
        command.envs(options.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let log = Log::default();
        let errors = BufReader::new(child.stderr.take().expect("piped"));
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let (found, addresses) = mpsc::channel();
        let kept = log.clone();
        let reader = std::thread::spawn(move || errors.lines().map_while(Result::ok).for_each(|line| kept.keep(line)));
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let address = listening_on(&line);
                kept.keep(line);
                if let Some(address) = address {
                    let _ = found.send(address);
                }
            }
            // The sender goes away only when everything it said is in the log.
            let _ = reader.join();
        });
        Starting { child: Some(child), addresses, data: data.to_owned(), log }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// Waits for both listeners. `Err` has what the process printed before it ended.
    pub fn ready(mut self) -> Result<Gateway, String> {
        let limit = Instant::now() + START_MAX;
        let mut addresses = Vec::new();
        while addresses.len() < 2 {
            match self.addresses.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(address) => addresses.push(address),
                Err(RecvTimeoutError::Timeout) => return Err(format!("not ready within {START_MAX:?}:\n{}", self.log.text())),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.take().expect("taken only here").wait();
                    return Err(format!("{}\n[{status:?}]", self.log.text()));
                }
            }
        }
        let [public, admin] = <[String; 2]>::try_from(std::mem::take(&mut addresses)).expect("two were waited for");
        Ok(Gateway { child: self.child.take(), public, admin, data: self.data.clone(), log: self.log.clone() })
    }

    /// SIGKILL, at once.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The address in a line `listening on http://…`.
fn listening_on(line: &str) -> Option<String> {
    let at = line.find("listening on http://")?;
    let address = line[at + "listening on ".len()..].split_whitespace().next()?;
    Some(address.trim_end_matches('/').to_owned())
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
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
        Starting::spawn(data, options).ready()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until it has printed these words, and returns all it has printed.
    pub async fn said(&self, words: &str) -> String {
        until(&format!("it says {words:?}"), SAY_MAX, async || {
            let log = self.log();
            if log.contains(words) { Ok(log) } else { Err(log) }
        })
        .await
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// SIGKILL, at once.
    pub fn kill(mut self) {
        end(&mut self.child);
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(self) -> ExitStatus {
        signal(self.pid(), "TERM");
        self.ended()
    }

    /// Waits for the end of a process that was told to stop.
    pub fn ended(mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        let pid = child.id();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(child.wait()));
        match told.recv_timeout(STOP_MAX) {
            Ok(status) => status.expect("the process can be waited for"),
            Err(_) => {
                signal(pid, "KILL");
                panic!("it did not stop within {STOP_MAX:?}:\n{}", self.log());
            }
        }
    }

    /// A command of the command line against this gateway, with `--json`.
    pub fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(args).args(["--json", "--api", &self.admin]).arg("--data").arg(&self.data);
        command.stdin(Stdio::null()).output().expect("the binary can be started")
    }

    /// Adds a path by the command line and returns the last line of the answer.
    pub fn add(&self, path: &Path, args: &[&str]) -> Result<Value, String> {
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

    /// GET on the public listener.
    pub async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[]).await
    }

    /// Any request on the public listener; `headers` are whole lines.
    pub async fn ask(&self, method: &str, target: &str, headers: &[&str]) -> Answer {
        wire::ask(&self.public, method, target, headers).await
    }

    /// A request to the admin listener with the key of the data folder.
    pub async fn admin(&self, method: &str, target: &str) -> Answer {
        wire::ask(&self.admin, method, target, &[&self.key_header()]).await
    }

    /// GET on the admin listener, read as JSON.
    pub async fn admin_json(&self, target: &str) -> Value {
        let answer = self.admin("GET", target).await;
        assert_eq!(answer.status, 200, "{target}: {}\n{}", answer.text(), self.log());
        answer.json()
    }

    pub fn key_header(&self) -> String {
        format!("Authorization: Bearer {}", self.api_key())
    }

    /// The API key that the first start made.
    pub fn api_key(&self) -> String {
        std::fs::read_to_string(self.data.join("keys/api")).expect("the key file is there").trim().to_owned()
    }

    /// Head of an upload whose body has `length` bytes.
    pub fn upload_head(&self, length: u64, headers: &[&str]) -> String {
        let host = self.admin.trim_start_matches("http://");
        let mut head = format!(
            "POST /api/v1/add HTTP/1.1\r\nHost: {host}\r\n{}\r\nContent-Type: application/vnd.skygate.add\r\nContent-Length: {length}\r\nConnection: close\r\n",
            self.key_header()
        );
        for header in headers.iter().filter(|line| !line.is_empty()) {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head + "\r\n"
    }

    /// Sends an add stream as it is.
    pub async fn upload_bytes(&self, body: &[u8], headers: &[&str]) -> Answer {
        let request = [self.upload_head(body.len() as u64, headers).as_bytes(), body].concat();
        wire::exchange(&self.admin, &request, "POST").await
    }

    /// Uploads and expects success.
    pub async fn upload(&self, content: &Content) -> Added {
        let answer = self.upload_bytes(&content.stream(), &[]).await;
        assert_eq!(answer.status, 200, "upload of {}: {}\n{}", content.name, answer.text(), self.log());
        let added = Added::of(&answer.json());
        assert_eq!(added.cid, content.cid(), "CID of {}", content.name);
        added
    }

    /// Waits until every pin is known, so that an absence is a 404.
    pub async fn catalog_complete(&self) {
        until("the catalog is complete", CATALOG_MAX, async || {
            let health = wire::ask(&self.admin, "GET", "/health", &[]).await;
            if health.status == 200 { Ok(()) } else { Err(health.text()) }
        })
        .await;
    }

    /// Waits until every pin is complete: survives any m hosts.
    pub async fn pins_complete(&self) {
        // Before that some pins are not even listed.
        self.catalog_complete().await;
        until("all pins are complete", COMPLETE_MAX, async || {
            let pins = self.admin_json("/api/v1/pins?limit=1000").await;
            let open = pins["pins"].as_array().expect("a list").iter().filter(|pin| pin["durability"] != "complete").count();
            if open == 0 { Ok(()) } else { Err(format!("{open} are not:\n{}", self.log())) }
        })
        .await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
