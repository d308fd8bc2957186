//! Test only: a real server on port 0 over blocks in memory, and a client that sends exactly the bytes it is told to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::services::{
    BackupStream, Content, HostView, HttpOptions, Naming, Operations, PinPage, PinView, PortalNumbers, Readiness, Services,
    SkyParts, Skyfile, UploadStream, Uploads,
};
use super::{AnswerCache, Listeners, run};
use crate::access::Access;
use crate::address::{Address, Cid, Skylink, codec, parse_cid};
use crate::deny::{DenyList, Reason, Subject};
use crate::ingest::spool::{ContentStream, Done, Encode, Spool, SpoolOptions, SpooledFile};
use crate::ingest::{AddReport, ImportReport, IngestError, SkyFile, SkyOptions, SkyPart, SkyPurpose, SkyReport, Unpinned, Whose};
use crate::measure::{Measures, Tier, Trace};
use crate::names::{
    EntryHealth, EntryHub, EntryId, EntryWatch, IpnsName, NameError, NameOrigin, NameRow, PutEntryError, Resolved, SignedEntry,
    StoredRecord,
};
use crate::records::Extent;
use crate::sector::{SEGMENT_BYTES, range_proof};
use crate::store::{Blocked, BodyStream, Durability, FileSource, ProvedSlice, SkyfileHealth, StoreError};
use crate::tree::skyfile::{Parsed, SkyfileHead, UploadFile, build_small, parse, upload_metadata};
use crate::tree::test_dag::TestDag;
use crate::tree::{FilePart, TreeNode, parse_node};

pub const KEY: &str = "0123456789abcdef0123456789abcdef";
/// A CID that no test stores.
pub const ABSENT: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

/// Blocks and skyfiles in memory that behave like hosts: body bytes count as read from hosts.
#[derive(Default)]
pub struct Memory {
    pub dag: TestDag,
    pub skyfiles: HashMap<String, Arc<MemorySkyfile>>,
    /// Blocks whose hosts are gone.
    pub lost: Vec<Cid>,
    /// Rules of the operator.
    pub denied: DenyList,
    /// What names point to.
    pub names: HashMap<String, Resolved>,
    /// Streams that were opened and dropped again.
    pub streams: Arc<AtomicUsize>,
}

/// Names as a table; records are taken as they come, unless they are empty. Entries follow the rules.
struct FixedNames {
    resolved: HashMap<String, Resolved>,
    records: Mutex<HashMap<String, StoredRecord>>,
    entries: Mutex<HashMap<EntryId, SignedEntry>>,
    hub: EntryHub,
}

/// How long the records of [`FixedNames`] may be kept, and how long they hold.
pub const RECORD_TTL: Duration = Duration::from_secs(1800);
pub const RECORD_HOLDS: Duration = Duration::from_secs(7200);

#[async_trait]
impl Naming for FixedNames {
    async fn resolve(&self, name: &str) -> Result<Resolved, NameError> {
        self.resolved.get(name).cloned().ok_or_else(|| NameError::NoRecord(name.to_owned()))
    }

    async fn has_dnslink(&self, host: &str) -> Result<bool, NameError> {
        Ok(host.contains('.') && self.resolved.contains_key(host))
    }

    async fn record(&self, name: &str) -> Result<StoredRecord, NameError> {
        let key = IpnsName::parse(name).ok_or_else(|| NameError::BadName(name.to_owned()))?.to_string();
        self.records.lock().expect("lock").get(&key).cloned().ok_or(NameError::NoRecord(key))
    }

    async fn put_record(&self, name: &str, bytes: Bytes) -> Result<String, NameError> {
        let key = IpnsName::parse(name).ok_or_else(|| NameError::BadName(name.to_owned()))?.to_string();
        if bytes.is_empty() {
            return Err(NameError::Refused { name: key, why: "it is empty".to_owned() });
        }
        let valid_until = SystemTime::now() + RECORD_HOLDS;
        let record = StoredRecord { name: key.clone(), bytes, lifetime: RECORD_TTL, valid_until };
        self.records.lock().expect("lock").insert(key.clone(), record);
        Ok(key)
    }

    async fn list(&self) -> (Vec<NameRow>, Extent) {
        let row = |name: &String| NameRow { name: name.clone(), value: "/ipfs/bafkqaaa".to_owned(), origin: NameOrigin::Fixed };
        (self.resolved.keys().map(row).collect(), Extent::Complete)
    }

    async fn entry(&self, id: &EntryId) -> Result<Option<SignedEntry>, NameError> {
        Ok(self.entries.lock().expect("lock").get(id).cloned())
    }

    async fn put_entry(&self, signed: SignedEntry) -> Result<(), PutEntryError> {
        signed.verify()?;
        let mut entries = self.entries.lock().expect("lock");
        if let Some(existing) = entries.get(&signed.entry.id()) {
            signed.entry.replaces(&existing.entry)?;
        }
        self.hub.offer(&signed);
        entries.insert(signed.entry.id(), signed);
        Ok(())
    }

    async fn entry_health(&self, id: &EntryId) -> Result<Option<EntryHealth>, NameError> {
        let newest = self.entry(id).await?;
        Ok(newest.map(|newest| EntryHealth { holders: 7, holders_of_newest: 5, newest }))
    }

    fn watch_entries(&self) -> EntryWatch {
        self.hub.watch()
    }
}

impl Memory {
    /// A small skyfile of `files` as an upload makes it.
    pub fn add_skyfile(&mut self, name: &str, files: &[(&str, &str, &[u8])]) -> Skylink {
        let rows: Vec<UploadFile> = files
            .iter()
            .map(|(path, kind, bytes)| UploadFile {
                path: (*path).to_owned(),
                len_bytes: bytes.len() as u64,
                mode: 0,
                content_type: (!kind.is_empty()).then(|| (*kind).to_owned()),
            })
            .collect();
        let mut metadata = upload_metadata(name, &rows).expect("good metadata");
        if let Some((path, ..)) = files.iter().find(|(path, ..)| *path == "404.html") {
            metadata.error_pages.insert(404, format!("/{path}"));
        }
        let content: Vec<u8> = files.iter().flat_map(|(_, _, bytes)| bytes.iter().copied()).collect();
        let built = build_small(&metadata.encode(), &content).expect("small enough");
        let link = Skylink::v1(0, built.used_bytes, crate::sector::sector_root(&built.base).0).expect("a skylink");
        let Ok(Parsed::Head(head)) = parse(&built.base) else { panic!("parses") };
        self.skyfiles.insert(link.to_string(), Arc::new(MemorySkyfile { head, content: content.into() }));
        link
    }

    fn get(&self, cid: &Cid) -> Result<Bytes, StoreError> {
        if let Some(reason) = self.denied.check(&Subject::Ipfs { root: cid, path: "" }) {
            return Err(StoreError::Denied(Box::new(reason)));
        }
        if self.lost.contains(cid) {
            return Err(StoreError::TooFewPieces { have: 5, need: 6 });
        }
        if let Some(inline) = crate::address::inline_bytes(cid) {
            return Ok(Bytes::copy_from_slice(inline));
        }
        self.dag.get(cid).ok_or(StoreError::NotFound)
    }

    /// The leaves of a file in range, in order, or the error where one is lost.
    fn leaves(&self, cid: &Cid, range: Range<u64>, out: &mut Vec<Result<Bytes, StoreError>>) {
        let node = match self.get(cid) {
            Ok(block) => parse_node(cid, &block).expect("good node"),
            Err(error) => return out.push(Err(error)),
        };
        match node {
            TreeNode::Raw(bytes) => out.push(Ok(bytes.slice(range.start as usize..range.end as usize))),
            TreeNode::File(file) => {
                for part in file.parts(range) {
                    match part {
                        FilePart::Inline(bytes) => out.push(Ok(bytes)),
                        FilePart::Child { child, within } => self.leaves(&child.cid, within, out),
                    }
                }
            }
            _ => panic!("not a file"),
        }
    }
}

#[async_trait]
impl Content for Memory {
    async fn block(&self, cid: &Cid, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        let block = self.get(cid)?;
        trace.body(Tier::Hosts, block.len() as u64);
        Ok(block)
    }

    async fn index_block(&self, cid: &Cid, _: &Arc<Trace>) -> Result<Bytes, StoreError> {
        self.get(cid)
    }

    async fn block_length(&self, cid: &Cid, _: &Arc<Trace>) -> Result<u64, StoreError> {
        self.get(cid).map(|block| block.len() as u64)
    }

    fn stream_file(&self, file: FileSource, range: Range<u64>, trace: Arc<Trace>) -> BodyStream {
        let mut leaves = Vec::new();
        if file.cid.codec() == codec::RAW || !range.is_empty() {
            self.leaves(&file.cid, range, &mut leaves);
        }
        counted(leaves, trace, self.streams.clone())
    }

    async fn allow_file(&self, file: &FileSource, _: &Arc<Trace>) -> Result<(), StoreError> {
        let mut leaves = Vec::new();
        match self.denied.is_empty() || file.cid.codec() == codec::RAW {
            true => self.denied.check(&Subject::Ipfs { root: &file.cid, path: "" }).into_iter().for_each(|reason| {
                leaves.push(Err(StoreError::Denied(Box::new(reason))));
            }),
            false => self.leaves(&file.cid, 0..file.node.size, &mut leaves),
        }
        let denied = leaves.into_iter().filter_map(Result::err).find(|error| matches!(error, StoreError::Denied(_)));
        denied.map_or(Ok(()), Err)
    }

    fn denied(&self, subject: &Subject<'_>) -> Option<Reason> {
        self.denied.check(subject)
    }

    fn has_deny_rules(&self) -> bool {
        !self.denied.is_empty()
    }

    async fn skyfile(&self, link: &Skylink, _: &Arc<Trace>) -> Result<Arc<dyn Skyfile>, StoreError> {
        let found = self.skyfiles.get(&link.to_string()).ok_or(StoreError::NotFound)?;
        Ok(found.clone())
    }

    async fn base_sector(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        self.sector_bytes(link.hash(), 0..4096, trace).await
    }

    async fn proved_base_sector(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<ProvedSlice, StoreError> {
        let bytes = self.base_sector(link, trace).await?;
        let proof = range_proof(&bytes, 0..bytes.len() / SEGMENT_BYTES).expect("a range of a sector");
        Ok(ProvedSlice { bytes, proof })
    }

    async fn sector_bytes(&self, root: &[u8; 32], range: Range<u32>, _: &Arc<Trace>) -> Result<Bytes, StoreError> {
        let of_root = |text: &&String| Skylink::parse(text).is_ok_and(|link| link.hash() == root);
        let found = self.skyfiles.keys().find(of_root).ok_or(StoreError::NotFound)?;
        let MemorySkyfile { head, content } = &*self.skyfiles[found];
        let mut sector = [&head.layout.encode(), &head.metadata_json[..], content].concat();
        sector.resize(4 << 20, 0);
        Ok(Bytes::from(sector).slice(range.start as usize..range.end as usize))
    }

    async fn health(&self, link: &Skylink, _: &Arc<Trace>) -> Result<SkyfileHealth, StoreError> {
        let _ = self.skyfiles.get(&link.to_string()).ok_or(StoreError::NotFound)?;
        Ok(SkyfileHealth { base_copies: 4, data_pieces: 6, parity_pieces: 3, slab_count: 2, slabs: vec![9, 7] })
    }
}

fn counted(chunks: Vec<Result<Bytes, StoreError>>, trace: Arc<Trace>, dropped: Arc<AtomicUsize>) -> BodyStream {
    struct OnDrop(Arc<AtomicUsize>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let guard = OnDrop(dropped);
    stream::iter(chunks)
        .inspect(move |chunk| {
            let _ = &guard;
            if let Ok(chunk) = chunk {
                trace.body(Tier::Hosts, chunk.len() as u64);
            }
        })
        .boxed()
}

/// A skyfile in memory.
pub struct MemorySkyfile {
    head: SkyfileHead,
    content: Bytes,
}

#[async_trait]
impl Skyfile for MemorySkyfile {
    fn head(&self) -> &SkyfileHead {
        &self.head
    }

    async fn allow(&self, _: &Range<u64>, _: &Arc<Trace>) -> Result<(), StoreError> {
        Ok(())
    }

    fn stream(&self, file: Range<u64>, range: Range<u64>, trace: Arc<Trace>) -> BodyStream {
        let part = self.content.slice((file.start + range.start) as usize..(file.start + range.end) as usize);
        counted(vec![Ok(part)], trace, Arc::default())
    }
}

/// What an operator sees in tests. Uploads are kept as they came.
#[derive(Default)]
pub struct Desk {
    pub uploads: Mutex<Vec<(Option<String>, Vec<u8>)>>,
    pub starting: Mutex<bool>,
    /// What portal uploads said, and their base sectors.
    pub skyfiles: Mutex<Vec<(SkyOptions, Vec<u8>)>>,
    pub blocked: Mutex<Vec<[u8; 32]>>,
}

#[async_trait]
impl Operations for Desk {
    fn readiness(&self) -> Readiness {
        if *self.starting.lock().expect("lock") { Readiness::Starting } else { Readiness::Ok }
    }

    fn status(&self) -> Result<serde_json::Value, StoreError> {
        Ok(serde_json::json!({ "pins": 1 }))
    }

    fn metrics(&self) -> String {
        "skygate_pins 1\n".to_owned()
    }

    fn hosts(&self) -> Vec<HostView> {
        vec![HostView {
            id: "00".repeat(16),
            url: "file:hosts/1".to_owned(),
            state: "down".to_owned(),
            reason: Some("no <marker>".to_owned()),
            used_bytes: Some(5),
            free_bytes: None,
            failures: 3,
            wrong_pieces: 1,
            in_flight: 0,
            latency_ms: Default::default(),
        }]
    }

    fn hosts_to_write(&self) -> usize {
        0
    }

    async fn portal_numbers(&self) -> Result<PortalNumbers, StoreError> {
        Ok(PortalNumbers { pins: 3, content_bytes: 4, ..PortalNumbers::default() })
    }

    async fn pins(&self, from: u64, max: usize) -> Result<PinPage, StoreError> {
        let pin = |number: u64| PinView {
            name: format!("pin {number}"),
            owner: "operator".to_owned(),
            cid: Some(ABSENT.to_owned()),
            skylink: None,
            size_bytes: 1,
            files: 1,
            created_ms: 0,
            durability: "complete",
        };
        let end = (from + max as u64).min(250);
        Ok(PinPage { pins: (from..end).map(pin).collect(), next: (end < 250).then_some(end) })
    }

    async fn unpin(&self, address: &Address) -> Result<usize, StoreError> {
        let known = matches!(address, Address::Ipfs { root, .. } if root.to_string() == ABSENT);
        Ok(usize::from(known))
    }

    fn blocklist(&self) -> Vec<Blocked> {
        self.blocked.lock().expect("lock").iter().map(|hash| Blocked { hash: *hash, added_ms: 0 }).collect()
    }

    async fn change_blocklist(&self, add: &[[u8; 32]], remove: &[[u8; 32]]) -> Result<(), StoreError> {
        let mut blocked = self.blocked.lock().expect("lock");
        blocked.retain(|hash| !remove.contains(hash));
        blocked.extend(add);
        Ok(())
    }

    async fn add(&self, mut body: UploadStream, idempotency_key: Option<String>) -> Result<AddReport, IngestError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|_| IngestError::Cut)?);
        }
        let size_bytes = bytes.len() as u64;
        self.uploads.lock().expect("lock").push((idempotency_key, bytes));
        let cid = parse_cid(ABSENT).expect("a CID");
        Ok(AddReport { cid, skylink: None, size_bytes, files: 1, durability: Durability::Acknowledged })
    }

    async fn import(
        &self,
        mut body: UploadStream,
        name: Option<String>,
        _idempotency_key: Option<String>,
    ) -> Result<ImportReport, IngestError> {
        let mut size_bytes = 0;
        while let Some(chunk) = body.next().await {
            size_bytes += chunk.map_err(|_| IngestError::Cut)?.len() as u64;
        }
        self.uploads.lock().expect("lock").push((name, Vec::new()));
        let roots = vec![parse_cid(ABSENT).expect("a CID")];
        Ok(ImportReport { roots, blocks: 1, missing: 0, size_bytes, durability: Durability::Acknowledged })
    }
}

/// Skyfiles are made of what came, as small ones, and not kept.
#[async_trait]
impl Uploads for Desk {
    async fn skyfile(&self, mut parts: SkyParts, options: SkyOptions) -> Result<SkyReport, IngestError> {
        options.said.check()?;
        let mut files: Vec<UploadFile> = Vec::new();
        let mut content = Vec::new();
        while let Some(part) = parts.next().await {
            match part? {
                SkyPart::File(SkyFile { path, content_type, mode, .. }) => {
                    files.push(UploadFile { path, len_bytes: 0, mode, content_type });
                }
                SkyPart::Bytes(bytes) => {
                    files.last_mut().expect("a file first").len_bytes += bytes.len() as u64;
                    content.extend_from_slice(&bytes);
                }
            }
        }
        let built = build_small(&options.said.metadata(&files)?.encode(), &content).expect("small enough");
        let skylink = Skylink::v1(0, built.used_bytes, crate::sector::sector_root(&built.base).0).expect("a skylink");
        let cid = parse_cid(ABSENT).expect("a CID");
        let durability = (options.purpose == SkyPurpose::Store).then_some(Durability::Complete);
        self.skyfiles.lock().expect("lock").push((options, built.base));
        Ok(SkyReport { skylink, cid, size_bytes: content.len() as u64, files: files.len() as u64, durability })
    }

    async fn restore(&self, _: BackupStream, _: &str) -> Result<SkyReport, IngestError> {
        Err(IngestError::Busy)
    }

    /// Others than `local` have pinned everything.
    async fn pin(&self, _: &Skylink, _: &str) -> Result<(), IngestError> {
        Ok(())
    }

    async fn unpin(&self, _: &Skylink, whose: Whose) -> Result<Unpinned, IngestError> {
        Ok(match whose {
            Whose::Everybody => Unpinned { removed: 1, left: 0 },
            Whose::Owner(_) => Unpinned { removed: 0, left: 1 },
        })
    }
}

/// Uploads in pieces become a skyfile that nobody keeps; its CID is no real one.
struct Forgetful;

#[async_trait]
impl Encode for Forgetful {
    async fn encode(&self, file: SpooledFile, mut content: ContentStream) -> Result<Done, IngestError> {
        let mut bytes = Vec::new();
        while let Some(piece) = content.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| IngestError::Body(error.to_string()))?);
        }
        assert_eq!(bytes.len() as u64, file.length);
        let root = crate::sector::sector_root(&bytes);
        Ok(Done { skylink: Skylink::v1(0, 4096, root.0).expect("a skylink").to_string(), cid: ABSENT.to_owned() })
    }
}

fn spool(folder: &Path) -> Spool {
    let lifetime = Duration::from_secs(3600);
    let options = SpoolOptions { bytes_max: 1 << 20, free_floor_bytes: 0, lifetime, uploads_max: 16, client_bytes_max: 1 << 20 };
    let running = (&TaskTracker::new(), &CancellationToken::new());
    Spool::open(&folder.join("spool"), options, Arc::new(Forgetful), running).expect("opens")
}

/// A running gateway.
pub struct TestServer {
    _folder: TempDir,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub services: Arc<Services>,
    pub desk: Arc<Desk>,
    /// Tells subscribers.
    pub hub: EntryHub,
    pub shutdown: CancellationToken,
    pub ended: JoinHandle<()>,
}

/// Starts a gateway over `memory`.
pub async fn start(memory: Memory) -> TestServer {
    start_with(memory, HttpOptions::default().public_connections_max).await
}

/// The same with another number of connections at once.
pub async fn start_with(memory: Memory, public_connections_max: usize) -> TestServer {
    let admin_hosts = vec!["admin.example".to_owned()];
    start_options(memory, HttpOptions { admin_hosts, public_connections_max, ..HttpOptions::default() }).await
}

/// The same with options of its own.
pub async fn start_options(memory: Memory, options: HttpOptions) -> TestServer {
    let desk = Arc::new(Desk::default());
    let hub = EntryHub::default();
    let folder = tempfile::tempdir().expect("a folder");
    let services = Arc::new(Services {
        spool: spool(folder.path()),
        names: Arc::new(FixedNames {
            resolved: memory.names.clone(),
            records: Mutex::default(),
            entries: Mutex::default(),
            hub: hub.clone(),
        }),
        content: Arc::new(memory),
        operations: desk.clone(),
        uploads: desk.clone(),
        access: Arc::new(Access::with_key(KEY, crate::access::Rules::default())),
        measures: Arc::new(Measures::default()),
        answers: AnswerCache::new(options.answers_bytes),
        subscriptions: super::Subscriptions::default(),
        requests: Arc::new(tokio::sync::Semaphore::new(super::services::REQUESTS_AT_ONCE_DEFAULT)),
        options,
    });
    let bind = || TcpListener::bind("127.0.0.1:0");
    let listeners = Listeners { public: bind().await.expect("a port"), admin: bind().await.expect("a port") };
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let (public, admin) = (address(&listeners.public), address(&listeners.admin));
    let shutdown = CancellationToken::new();
    let ended = tokio::spawn(run(listeners, services.clone(), shutdown.clone()));
    TestServer { _folder: folder, public, admin, services, desk, hub, shutdown, ended }
}

impl TestServer {
    /// `GET target` on the public listener; `headers` are whole lines.
    pub async fn get(&self, target: &str, headers: &[&str]) -> Answer {
        self.ask("GET", target, headers).await
    }

    pub async fn ask(&self, method: &str, target: &str, headers: &[&str]) -> Answer {
        send(self.public, method, target, headers, b"").await
    }

    /// A request on the admin listener with the API key.
    pub async fn admin(&self, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Answer {
        let key = format!("Authorization: Bearer {KEY}");
        let headers: Vec<&str> = headers.iter().copied().chain([key.as_str()]).collect();
        send(self.admin, method, target, &headers, body).await
    }

    /// A request on the admin listener as it stands.
    pub async fn admin_bare(&self, method: &str, target: &str, headers: &[&str]) -> Answer {
        send(self.admin, method, target, headers, b"").await
    }
}

/// A reply, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// 0 when the connection ended before any head.
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
    /// The connection ended before the body was whole.
    pub broken: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request on a connection of its own. Host is the address, unless a header line says another.
pub async fn send(to: SocketAddr, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Answer {
    let mut request = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|line| line.to_ascii_lowercase().starts_with("host:")) {
        request += &format!("Host: {to}\r\n");
    }
    headers.iter().filter(|line| !line.is_empty() && **line != "Host:").for_each(|line| request += &format!("{line}\r\n"));
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut stream = TcpStream::connect(to).await.expect("connects");
    stream.write_all((request + "\r\n").as_bytes()).await.expect("writes");
    stream.write_all(body).await.expect("writes");
    let mut bytes = Vec::new();
    let reset = stream.read_to_end(&mut bytes).await.is_err();
    read_answer(&bytes, method, reset)
}

/// Splits the bytes of one reply, with its length or chunks undone.
pub fn read_answer(bytes: &[u8], method: &str, reset: bool) -> Answer {
    // hyper drops a head that it has not flushed yet when the body fails at once.
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Answer { status: 0, head: String::new(), body: Vec::new(), broken: true };
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let mut answer = Answer { status, head, body: bytes[end + 4..].to_vec(), broken: reset };
    if answer.header("transfer-encoding") == Some("chunked") {
        let (body, whole) = unchunk(&answer.body);
        answer.broken |= !whole;
        answer.body = body;
    } else if let Some(length) = answer.header("content-length").filter(|_| method != "HEAD" && status != 304) {
        answer.broken |= length.parse() != Ok(answer.body.len());
    }
    answer
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap_or(""), 16).unwrap_or(0);
        rest = &rest[end + 2..];
        if size == 0 {
            return (body, true);
        }
        if rest.len() < size + 2 {
            break;
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
    (body, false)
}
