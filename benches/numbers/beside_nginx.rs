//! Cached files beside nginx, which sends the same headers; `wrk` asks both in turn.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use compat_tests::Gateway;

use crate::report::{Goal, Report, Samples, number};
use crate::{Plan, content, load, process};

/// Most CPU time of the server for one cached request, in microseconds.
const SERVER_US_MAX: f64 = 20.0;
/// Headers that nginx makes by itself, or that belong to the connection.
const OWN_HEADERS: [&str; 5] = ["date", "server", "connection", "content-length", "keep-alive"];
/// Time beyond its own that wrk may take.
const WRK_SPARE: Duration = Duration::from_secs(20);

/// A small and a large file in memory.
pub fn cached(plan: &Plan, report: &mut Report) {
    if let Some(missing) = ["wrk", "nginx"].iter().find(|program| !process::has(program)) {
        return report.missing("cached files beside nginx", &format!("{missing} is not installed"));
    }
    let folder = plan.folder();
    let gateway = Gateway::start(&folder.path().join("data"));
    let large = plan.size(100 << 20, 8 << 20);
    for (name, bytes, connections, large_file) in [("10 KiB", 10 << 10, 32, false), ("100 MiB", large, 2, true)] {
        let source = folder.path().join("file.bin");
        content::write_file(&source, 71, bytes);
        let added = match gateway.add(&source, &[]) {
            Ok(added) => added,
            Err(error) => return report.missing("cached files beside nginx", &error),
        };
        let path = format!("/ipfs/{}", added["cid"].as_str().unwrap_or_default());
        let shape = Shape { name: &format!("cached file of {name}"), connections, bytes, script: None };
        let pair = Pair::new(plan, &gateway, &path).and_then(|pair| {
            pair.serve_by_nginx(&path, &source)?;
            pair.compare(plan, &path, &shape)
        });
        match pair {
            Err(error) => report.missing(shape.name, &error),
            Ok(both) if large_file => both.report_volume(report, &shape),
            Ok(both) => both.report_rate(report, &shape, Goal::AtLeast(0.9), Goal::AtMost(SERVER_US_MAX)),
        }
    }
}

/// What is asked for.
pub struct Shape<'a> {
    pub name: &'a str,
    pub connections: u32,
    /// Of one reply's body.
    pub bytes: usize,
    /// A script for wrk that chooses paths.
    pub script: Option<&'a Path>,
}

/// A gateway and an nginx that sends the same headers.
pub struct Pair<'a> {
    gateway: &'a Gateway,
    nginx: Nginx,
    heads: String,
}

/// Figures of both sides.
#[derive(Default)]
pub struct Both {
    gateway: Side,
    nginx: Side,
    heads: String,
}

#[derive(Default)]
struct Side {
    rate: Samples,
    server_us: Samples,
    p99_ms: Samples,
}

impl<'a> Pair<'a> {
    /// `path` is asked for once, for its headers; that also brings it into memory.
    pub fn new(plan: &Plan, gateway: &'a Gateway, path: &str) -> Result<Pair<'a>, String> {
        let first = head_of(&gateway.public, path)?;
        let again = head_of(&gateway.public, path)?;
        if !again.contains("detail=memory") {
            return Err(format!("the second reply is not from memory:\n{first}\n{again}"));
        }
        Ok(Pair { gateway, nginx: Nginx::start(plan, &again)?, heads: String::new() })
    }

    /// Puts a copy of a file where nginx finds it.
    pub fn serve_by_nginx(&self, path: &str, source: &Path) -> Result<(), String> {
        let place = self.nginx.root.join(path.trim_start_matches('/'));
        let made =
            std::fs::create_dir_all(place.parent().expect("a path has a folder")).and_then(|()| std::fs::copy(source, place));
        made.map(drop).map_err(|error| error.to_string())
    }

    /// Measures both in turn.
    pub fn compare(mut self, plan: &Plan, path: &str, shape: &Shape<'_>) -> Result<Both, String> {
        let (ours, theirs) = (head_of(&self.gateway.public, path)?, head_of(&self.nginx.url, path)?);
        same_headers(&ours, &theirs)?;
        self.heads = format!("heads of {} and {} bytes", ours.len(), theirs.len());
        let seconds = plan.size(4, 1);
        let mut both = Both { heads: self.heads, ..Both::default() };
        for _ in 0..plan.rounds {
            both.gateway.measure(&self.gateway.public, path, shape, seconds, &[self.gateway.pid()])?;
            both.nginx.measure(&self.nginx.url, path, shape, seconds, &self.nginx.workers())?;
        }
        if !head_of(&self.gateway.public, path)?.contains("detail=memory") {
            return Err("at the end it was no longer in memory".to_owned());
        }
        Ok(both)
    }
}

impl Side {
    fn measure(&mut self, url: &str, path: &str, shape: &Shape<'_>, seconds: u32, servers: &[u32]) -> Result<(), String> {
        let before = process::cpu_seconds(servers);
        let told = wrk(&format!("{url}{path}"), shape, seconds)?;
        let spent = process::cpu_seconds(servers) - before;
        self.rate.push(told.rate);
        self.server_us.push(spent * 1e6 / told.requests);
        self.p99_ms.push(told.p99_ms);
        Ok(())
    }
}

impl Both {
    /// The gateway's rate, its ratio to nginx, and its CPU time a request.
    pub fn report_rate(&self, report: &mut Report, shape: &Shape<'_>, ratio: Goal, server_us: Goal) {
        let beside = format!(
            "nginx {}/s; p99 {} ms, nginx {} ms; {}",
            self.nginx.rate.show(),
            number(self.gateway.p99_ms.median()),
            number(self.nginx.p99_ms.median()),
            self.heads
        );
        report.row(&format!("{}, {} connections", shape.name, shape.connections), "/s", &self.gateway.rate, Goal::None, &beside);
        report.row(&format!("{}: over nginx", shape.name), "x", &self.gateway.rate.over(&self.nginx.rate), ratio, "");
        let beside = format!("nginx {} us", self.nginx.server_us.show());
        report.row(&format!("{}: server's CPU a request", shape.name), "us", &self.gateway.server_us, server_us, &beside);
    }

    fn report_volume(&self, report: &mut Report, shape: &Shape<'_>) {
        let gigabytes = shape.bytes as f64 / 1e9;
        let (ours, theirs) = (self.gateway.rate.scaled(gigabytes), self.nginx.rate.scaled(gigabytes));
        let cpu = |side: &Side| number(side.server_us.median() / 1e6 / gigabytes);
        let beside =
            format!("nginx {} GB/s; server's core-seconds a GB: {}, nginx {}", theirs.show(), cpu(&self.gateway), cpu(&self.nginx));
        report.row(&format!("{}, {} connections", shape.name, shape.connections), "GB/s", &ours, Goal::None, &beside);
        report.row(&format!("{}: over nginx", shape.name), "x", &ours.over(&theirs), Goal::AtLeast(1.0), "");
    }
}

/// What wrk says.
struct Told {
    rate: f64,
    requests: f64,
    p99_ms: f64,
}

fn wrk(url: &str, shape: &Shape<'_>, seconds: u32) -> Result<Told, String> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency"]).arg(format!("-c{}", shape.connections)).arg(format!("-d{seconds}s"));
    if let Some(script) = shape.script {
        command.arg("-s").arg(script);
    }
    let output = process::run(command.arg(url), Duration::from_secs(seconds.into()) + WRK_SPARE);
    let text = String::from_utf8_lossy(&output.stdout);
    let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(text.into_owned());
    }
    let rate = field("Requests/sec:").and_then(|rate| rate.parse().ok());
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    let p99_ms = field("99%").and_then(milliseconds);
    match (rate, requests, p99_ms) {
        (Some(rate), Some(requests), Some(p99_ms)) => Ok(Told { rate, requests, p99_ms }),
        _ => Err(text.into_owned()),
    }
}

/// wrk writes `1.23ms`, `456.00us` or `2.01s`.
fn milliseconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 1e-3), ("ms", 1.0), ("s", 1e3)] {
        if let Some(number) = text.strip_suffix(unit).and_then(|number| number.parse::<f64>().ok()) {
            return Some(number * factor);
        }
    }
    None
}

/// Reads a whole reply and returns its head.
fn head_of(url: &str, path: &str) -> Result<String, String> {
    let host = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(WRK_SPARE)).map_err(|error| error.to_string())?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").map_err(|error| error.to_string())?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).map_err(|error| error.to_string())?;
    let end = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or("a reply without a head")?;
    let head = String::from_utf8_lossy(&reply[..end + 2]).into_owned();
    if head.starts_with("HTTP/1.1 200 ") { Ok(head) } else { Err(format!("{url}{path}: {head}")) }
}

/// Headers of a head that both sides have to send.
fn common_headers(head: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    lines.filter(|(name, _)| !OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()))
}

fn same_headers(ours: &str, theirs: &str) -> Result<(), String> {
    let names = |head| {
        let mut names: Vec<String> = common_headers(head).map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.sort();
        names
    };
    if names(ours) == names(theirs) { Ok(()) } else { Err(format!("the heads differ:\n{ours}\n{theirs}")) }
}

/// An nginx on a port of its own, stopped when dropped.
struct Nginx {
    child: Child,
    url: String,
    root: PathBuf,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// `head` has the headers that it shall send.
    fn start(plan: &Plan, head: &str) -> Result<Nginx, String> {
        let folder = plan.folder();
        let root = folder.path().join("root");
        std::fs::create_dir_all(&root).map_err(|error| error.to_string())?;
        // Taken and given back: nginx cannot be told to choose a port and say which.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|error| error.to_string())?
            .port();
        let mut headers = String::new();
        let mut content_type = "application/octet-stream";
        for (name, value) in common_headers(head) {
            match name.to_ascii_lowercase().as_str() {
                "content-type" => content_type = value,
                // nginx sends it by itself.
                "accept-ranges" => {}
                _ => {
                    let _ = writeln!(headers, "add_header {name} \"{}\";", value.replace('\\', "\\\\").replace('"', "\\\""));
                }
            }
        }
        // Its own would come besides; an empty value takes it away.
        if load::header(head, "last-modified").is_none() {
            headers.push_str("add_header Last-Modified \"\";\n");
        }
        // Started by root, its workers would be somebody who may not read the temporary folder.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let here = folder.path().display();
        let config = format!(
            "daemon off; worker_processes 2; {user} pid {here}/pid; error_log {here}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n\
             access_log off; sendfile on; tcp_nopush off; keepalive_timeout 60s; keepalive_requests 100000000; etag off;\n\
             open_file_cache max=30000 inactive=60s; open_file_cache_valid 60s; open_file_cache_min_uses 1;\n\
             client_body_temp_path {here}/t1; proxy_temp_path {here}/t2; fastcgi_temp_path {here}/t3; uwsgi_temp_path {here}/t4; scgi_temp_path {here}/t5;\n\
             types {{ }} default_type \"{content_type}\";\n\
             server {{ listen 127.0.0.1:{port} backlog=1024; root {root}; {headers} }}\n\
             }}\n",
            root = root.display()
        );
        let path = folder.path().join("nginx.conf");
        std::fs::write(&path, config).map_err(|error| error.to_string())?;
        let mut command = Command::new(if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" });
        command.arg("-p").arg(folder.path()).arg("-c").arg(&path).arg("-e").arg(folder.path().join("error.log"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(|error| error.to_string())?;
        let mut nginx = Nginx { child, url: format!("http://127.0.0.1:{port}"), root, _folder: folder };
        nginx.wait_until_it_listens(port)?;
        Ok(nginx)
    }

    fn wait_until_it_listens(&mut self, port: u16) -> Result<(), String> {
        let begin = std::time::Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() || self.workers().len() < 2 {
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || begin.elapsed() > WRK_SPARE {
                let log = std::fs::read_to_string(self.root.with_file_name("error.log")).unwrap_or_default();
                return Err(format!("nginx does not start: {log}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn workers(&self) -> Vec<u32> {
        process::children(self.child.id())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        compat_tests::signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}
