//! versitygw as an S3 server of its own process, behind a proxy of the test that can take its time. A process is killed,
//! stopped and started again as an operator or a fault would.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::buckets::{KEY_ID, Mood, SECRET};
use crate::proxy::{self, Decide, Turn};
use crate::until;

/// It takes connections within a tenth of a second; this is for one that never does.
const START_MAX: Duration = Duration::from_secs(30);

/// One server: its folder has the buckets as folders.
pub struct Versitygw {
    /// Where the process listens.
    address: SocketAddr,
    buckets: PathBuf,
    sidecar: PathBuf,
    child: Mutex<Child>,
}

impl Versitygw {
    /// Whether the program is there to be started: `go install github.com/versity/versitygw/cmd/versitygw@latest`.
    pub fn is_installed() -> bool {
        Command::new("versitygw").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    /// Starts it over `folder/data`; what it notes beside the objects goes to `folder/sidecar`.
    pub fn start(folder: &std::path::Path) -> Versitygw {
        let (buckets, sidecar) = (folder.join("data"), folder.join("sidecar"));
        for made in [&buckets, &sidecar] {
            std::fs::create_dir_all(made).expect("a folder");
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let child = Mutex::new(spawn(address, &buckets, &sidecar));
        Versitygw { address, buckets, sidecar, child }
    }

    /// Of the process. [`Mood::Slow`] is the proxy's.
    pub fn set(&self, mood: Mood) {
        let mut child = self.child.lock().expect("no panic under this lock");
        match mood {
            Mood::Gone => kill(&mut child),
            Mood::Hung => signal(&child, rustix::process::Signal::STOP),
            Mood::Well | Mood::Slow(_) if child.try_wait().expect("a child").is_some() => {
                *child = spawn(self.address, &self.buckets, &self.sidecar);
            }
            Mood::Well | Mood::Slow(_) => signal(&child, rustix::process::Signal::CONT),
        }
    }

    /// Waits until it takes connections.
    pub async fn answers(&self) {
        until("versitygw listens", START_MAX, async || {
            TcpStream::connect(self.address).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    pub fn buckets(&self) -> PathBuf {
        self.buckets.clone()
    }

    /// Passes connections on, until the sender of moods is gone.
    pub fn proxy(&self, listener: TcpListener, moods: watch::Receiver<Mood>) -> impl Future<Output = ()> + Send + 'static {
        let upstream = self.address;
        async move {
            let mood = moods.clone();
            let decide: Decide = Arc::new(move |_: &[u8]| match *mood.borrow() {
                Mood::Slow(delay) => Turn::After(delay),
                Mood::Well | Mood::Gone | Mood::Hung => Turn::After(Duration::ZERO),
            });
            tokio::select! {
                never = proxy::pass_on(listener, upstream, decide, || gone(moods.clone())) => match never {},
                () = gone(moods.clone()) => {}
            }
        }
    }
}

impl Drop for Versitygw {
    fn drop(&mut self) {
        kill(self.child.get_mut().expect("no panic under this lock"));
    }
}

fn spawn(address: SocketAddr, buckets: &std::path::Path, sidecar: &std::path::Path) -> Child {
    Command::new("versitygw")
        .args(["--access", KEY_ID, "--secret", SECRET, "--region", "us-east-1", "--port", &address.to_string(), "--quiet"])
        .arg("posix")
        .arg("--sidecar")
        .args([sidecar, buckets])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("versitygw can be started")
}

fn kill(child: &mut Child) {
    // A process that is stopped takes SIGKILL, too; one that has ended is no fault.
    let _ = child.kill();
    child.wait().expect("a child of this process");
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("an own child");
}

/// When nobody sets moods any more.
async fn gone(mut moods: watch::Receiver<Mood>) {
    while moods.changed().await.is_ok() {}
}
