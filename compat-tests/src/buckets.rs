//! Hosts on S3: nine real servers, each over a folder and with a port of its own, that can be made to refuse, to hang, or
//! to take their time. In the test's own process, or each as a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::versitygw::Versitygw;

/// The bucket of each server, and what its requests are signed with.
pub const BUCKET: &str = "pool";
pub const KEY_ID: &str = "test-id";
pub const SECRET: &str = "test-secret";

/// What serves the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// s3s-fs, in the process of the test.
    InProcess,
    /// versitygw, nine processes. It has to be installed.
    Versitygw,
}

/// What a server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Connections are closed before anything is answered: a process that is gone.
    Gone,
    /// Requests are taken and never answered: a process that is stopped.
    Hung,
    /// Each request is answered this much later.
    Slow(Duration),
}

/// One server.
pub struct Server {
    pub address: SocketAddr,
    mood: watch::Sender<Mood>,
    requests: Arc<AtomicU64>,
    folder: PathBuf,
    process: Option<Versitygw>,
}

/// Servers over folders that go with them.
pub struct Buckets {
    pub servers: Vec<Server>,
    folder: tempfile::TempDir,
}

impl Buckets {
    /// Nine empty buckets in this process.
    pub async fn start() -> Buckets {
        Buckets::start_on(Engine::InProcess).await
    }

    /// Nine empty buckets.
    pub async fn start_on(engine: Engine) -> Buckets {
        Buckets::start_many(engine, 9).await
    }

    /// So many empty buckets.
    pub async fn start_many(engine: Engine, count: usize) -> Buckets {
        let folder = tempfile::tempdir().expect("a folder");
        let key = format!("aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
        std::fs::write(folder.path().join("key"), key).expect("the key file can be written");
        let mut servers = Vec::new();
        for number in 1..=count {
            let folder = folder.path().join(number.to_string());
            servers.push(match engine {
                Engine::InProcess => Server::start(folder).await,
                Engine::Versitygw => Server::start_versitygw(&folder).await,
            });
        }
        Buckets { servers, folder }
    }

    /// The `[[hosts]]` of a configuration.
    pub fn hosts(&self) -> String {
        let key = self.folder.path().join("key");
        let host = |server: &Server| {
            format!(
                "[[hosts]]\nurl = \"s3://{BUCKET}\"\nendpoint = \"http://{}\"\naccess_key_file = \"{}\"\n",
                server.address,
                key.display()
            )
        };
        self.servers.iter().map(host).collect()
    }

    /// A second data directory of the portal that lives in the first one: with its key, as an operator does it.
    pub fn join_portal(from: &Path, to: &Path) {
        std::fs::create_dir_all(to.join("keys")).expect("a folder");
        std::fs::copy(from.join("keys/portal"), to.join("keys/portal")).expect("the key can be copied");
    }

    /// The servers that hold records of an entry, by its id in hex.
    pub fn with_entry(&self, id: &str) -> Vec<usize> {
        (0..self.servers.len()).filter(|index| self.servers[*index].entry_folder(id).is_some()).collect()
    }

    /// Sets the mood of some servers.
    pub fn set(&self, which: &[usize], mood: Mood) {
        for server in which.iter().map(|index| &self.servers[*index]) {
            if let Some(process) = &server.process {
                process.set(mood);
            }
            server.mood.send_replace(mood);
        }
    }
}

impl Server {
    async fn start(folder: PathBuf) -> Server {
        std::fs::create_dir_all(folder.join(BUCKET)).expect("the bucket can be made");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(&folder).expect("a folder"));
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (mood, moods) = watch::channel(Mood::Well);
        let requests = Arc::new(AtomicU64::new(0));
        tokio::spawn(serve(listener, service, moods, requests.clone()));
        Server { address, mood, requests, folder, process: None }
    }

    async fn start_versitygw(folder: &Path) -> Server {
        let process = Versitygw::start(folder);
        let folder = process.buckets();
        std::fs::create_dir_all(folder.join(BUCKET)).expect("the bucket can be made");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (mood, moods) = watch::channel(Mood::Well);
        tokio::spawn(process.proxy(listener, moods));
        process.answers().await;
        Server { address, mood, requests: Arc::default(), folder, process: Some(process) }
    }

    /// Where its objects lie: the keys of the host are paths below.
    pub fn objects(&self) -> PathBuf {
        self.folder.join(BUCKET)
    }

    /// The folder of an entry's records, if there is one with records in it.
    pub fn entry_folder(&self, id: &str) -> Option<PathBuf> {
        let shards = std::fs::read_dir(self.objects().join("records/entry")).ok()?;
        let folder = shards.map(|shard| shard.expect("readable").path().join(id)).find(|folder| folder.is_dir())?;
        let any = std::fs::read_dir(&folder).expect("readable").next().is_some();
        any.then_some(folder)
    }

    /// Requests so far, of a server in this process.
    pub fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }
}

/// Until the sender of moods is gone.
async fn serve(listener: TcpListener, service: S3Service, mut moods: watch::Receiver<Mood>, requests: Arc<AtomicU64>) {
    loop {
        let socket = tokio::select! {
            accepted = listener.accept() => accepted.expect("a connection").0,
            changed = moods.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        // Delayed acknowledgements would be measured in place of the server.
        let _ = socket.set_nodelay(true);
        let (service, moods, requests) = (service.clone(), moods.clone(), requests.clone());
        tokio::spawn(async move {
            let mut gone = moods.clone();
            let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
                let (service, mut moods) = (service.clone(), moods.clone());
                requests.fetch_add(1, SeqCst);
                async move {
                    let mood = *moods.borrow();
                    match mood {
                        Mood::Slow(delay) => tokio::time::sleep(delay).await,
                        Mood::Hung => {
                            // Whoever waits is answered when it goes on, as a process that was stopped does.
                            let _ = moods.wait_for(|mood| *mood != Mood::Hung).await;
                        }
                        Mood::Well | Mood::Gone => {}
                    }
                    hyper::service::Service::call(&service, request).await
                }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let connection = server.serve_connection(TokioIo::new(socket), answer);
            tokio::select! {
                _ = connection => {}
                // A sender that is gone ends it as well.
                _ = gone.wait_for(|mood| *mood == Mood::Gone) => {}
            }
        });
    }
}
