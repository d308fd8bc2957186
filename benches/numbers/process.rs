//! What the kernel says about processes, and tools run beside them.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// User and system time of processes so far, in seconds. Those that have ended count as nothing.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| stat_ticks(&format!("/proc/{pid}/stat"), 13)).sum::<f64>() / ticks_per_second()
}

/// The same of this process.
pub fn own_cpu_seconds() -> f64 {
    cpu_seconds(&[std::process::id()])
}

/// The same of this process's children that have ended and were waited for.
pub fn ended_children_cpu_seconds() -> f64 {
    stat_ticks("/proc/self/stat", 15).unwrap_or(0.0) / ticks_per_second()
}

/// Sum of the two fields from `first` on, counted from 0 as in proc(5), less one.
fn stat_ticks(path: &str, first: usize) -> Option<f64> {
    let stat = std::fs::read_to_string(path).ok()?;
    // The name, in brackets, may hold anything: fields are counted from behind it, where field 2 begins.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let field = |number: usize| fields.get(number - 2)?.parse::<f64>().ok();
    Some(field(first)? + field(first + 1)?)
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// Lets this thread, and those it starts, run before others: a load generator then sees nearly what one on a machine of its own
/// would. It takes root and `renice`; false if that is missing. (Real-time threads would be worse: once a second the kernel lets
/// all others run before them.)
pub fn run_before_others() -> bool {
    let Ok(thread) = std::fs::read_link("/proc/thread-self") else { return false };
    let thread = thread.file_name().unwrap_or_default().to_owned();
    let mut renice = Command::new("renice");
    renice.args(["-n", "-20", "-p"]).arg(thread).stdout(Stdio::null()).stderr(Stdio::null());
    renice.status().is_ok_and(|status| status.success())
}

/// Resident memory now, in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    status_kib(pid, "VmRSS:") / 1024.0
}

/// The most it has been since it began, in MiB.
pub fn peak_mib(pid: u32) -> f64 {
    status_kib(pid, "VmHWM:") / 1024.0
}

fn status_kib(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel counts memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// Processes whose parent is this one.
pub fn children(parent: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Runs a command that must succeed, and takes what it prints. Killed when it takes longer than `longest`.
pub fn run(command: &mut Command, longest: Duration) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let guard = Guard::over(&child, longest);
    let output = child.wait_with_output().expect("it can be waited for");
    drop(guard);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    output
}

/// Kills a process that takes too long. Dropping it lets the process be.
struct Guard(Option<std::sync::mpsc::Sender<()>>, Option<std::thread::JoinHandle<()>>);

impl Guard {
    fn over(child: &Child, longest: Duration) -> Guard {
        let pid = child.id();
        let (done, wait) = std::sync::mpsc::channel();
        let watcher = std::thread::spawn(move || {
            if wait.recv_timeout(longest) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("process {pid} took longer than {longest:?}: killed");
                compat_tests::signal(pid, "KILL");
            }
        });
        Guard(Some(done), Some(watcher))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.take();
        if let Some(watcher) = self.1.take() {
            let _ = watcher.join();
        }
    }
}

/// Is there such a program?
pub fn has(program: &str) -> bool {
    let places = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&places).chain(["/usr/sbin".into()]).any(|folder| folder.join(program).is_file())
}

/// Everything written so far to disk, so that the next one does not pay for it.
pub fn settle_disk() {
    run(&mut Command::new("sync"), Duration::from_secs(300));
}

/// Empties the page cache. `Err` where that is not allowed.
pub fn drop_page_cache() -> std::io::Result<()> {
    settle_disk();
    std::fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Bytes that the file system of a folder has left.
pub fn free_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |space| space.f_bavail * space.f_frsize)
}

/// Seconds that `work` took, and what it gave.
pub fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let begin = Instant::now();
    let result = work();
    (begin.elapsed().as_secs_f64(), result)
}
