//! The spool over a disk that forgets, with an encoder that remembers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;

use super::simdisk::SimMachine;
use super::writing::CHECKPOINT_BYTES;
use super::*;

/// Keeps what it is given, by idempotency key.
#[derive(Default)]
struct Encoder {
    stored: Mutex<BTreeMap<String, (SpooledFile, Vec<u8>)>>,
    calls: AtomicUsize,
    /// So many calls fail first.
    failures: AtomicUsize,
    /// While it is held, nothing is stored.
    gate: AsyncMutex<()>,
}

#[async_trait]
impl Encode for Encoder {
    async fn encode(&self, file: SpooledFile, mut content: ContentStream) -> Result<Done, IngestError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut bytes = Vec::new();
        while let Some(piece) = content.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| IngestError::Body(error.to_string()))?);
        }
        let _open = self.gate.lock().await;
        if self.failures.load(Ordering::SeqCst) > 0 {
            self.failures.fetch_sub(1, Ordering::SeqCst);
            return Err(IngestError::Busy);
        }
        assert_eq!(bytes.len() as u64, file.length);
        let done = Done { skylink: format!("skylink of {}", file.filename), cid: file.idempotency_key.clone() };
        lock(&self.stored).insert(file.idempotency_key.clone(), (file, bytes));
        Ok(done)
    }
}

impl Encoder {
    fn content_of(&self, id: &UploadId) -> Option<Vec<u8>> {
        lock(&self.stored).get(&format!("tus/{id}")).map(|(_, bytes)| bytes.clone())
    }
}

const OPTIONS: SpoolOptions = SpoolOptions {
    bytes_max: 1 << 30,
    free_floor_bytes: 1 << 20,
    lifetime: Duration::from_secs(3600),
    uploads_max: 100,
    client_bytes_max: 1 << 29,
};

struct Bench {
    machine: SimMachine,
    encoder: Arc<Encoder>,
    options: SpoolOptions,
    stop: CancellationToken,
}

impl Bench {
    fn new() -> Bench {
        Bench { machine: SimMachine::new(), encoder: Arc::default(), options: OPTIONS, stop: CancellationToken::new() }
    }

    /// A process that starts.
    fn open(&self) -> Spool {
        self.try_open().expect("opens")
    }

    fn try_open(&self) -> io::Result<Spool> {
        Spool::on(self.machine.disk(), self.options, self.encoder.clone(), (&TaskTracker::new(), &self.stop))
    }
}

fn named(owner: &str) -> NewUpload {
    NewUpload {
        owner: owner.to_owned(),
        client: None,
        metadata: "filename YQ==".to_owned(),
        filename: "a".to_owned(),
        content_type: None,
    }
}

fn body(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + Unpin + use<> {
    let parts: Vec<_> = bytes.chunks(1000).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
    stream::iter(parts)
}

fn broken(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, String>> + Send + Unpin + use<> {
    let parts: Vec<_> = bytes.chunks(1000).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
    stream::iter(parts).chain(stream::iter([Err("reset".to_owned())]))
}

fn bytes_of(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ChaCha8Rng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

#[tokio::test]
async fn one_after_the_other() {
    let bench = Bench::new();
    let spool = bench.open();
    let content = bytes_of(1, 10_000);
    let id = spool.create(named("me"), 10_000, Kind::Whole).await.expect("made").id;
    for (offset, end, told) in [(0, 1, 1), (1, 4096, 4096), (4096, 4096, 4096), (4096, 9999, 9999)] {
        let status = spool.append((&id, "me"), offset, None, body(&content[offset as usize..end])).await.expect("taken");
        assert_eq!((status.offset, status.done), (told, None));
        assert_eq!(spool.status(&id).await.expect("there").offset, told);
    }
    let status = spool.append((&id, "me"), 9999, Some(1), body(&content[9999..])).await.expect("taken");
    assert_eq!(status.done.expect("stored").skylink, "skylink of a");
    assert_eq!(bench.encoder.content_of(&id).expect("stored"), content);
    assert_eq!(bench.machine.paths(), [id.to_string(), format!("{id}/state")], "the bytes are gone, the state is told");
    let again = bench.open().status(&id).await.expect("told after a start, too");
    assert_eq!((again.offset, again.done.is_some(), bench.encoder.calls.load(Ordering::SeqCst)), (10_000, true, 1));
}

#[tokio::test]
async fn refusals() {
    let bench = Bench::new();
    let spool = bench.open();
    let id = spool.create(named("me"), 100, Kind::Whole).await.expect("made").id;
    let part = spool.create(named("me"), 10, Kind::Part).await.expect("made").id;
    let append = async |id: &UploadId, owner: &str, offset: u64, announced: Option<u64>| {
        spool.append((id, owner), offset, announced, body(b"0123456789")).await.map(|status| status.offset)
    };
    assert_eq!(append(&id, "me", 0, Some(10)).await.expect("taken"), 10);
    assert!(matches!(append(&id, "me", 0, None).await, Err(SpoolError::WrongOffset { have: 10, asked: 0 })));
    assert!(matches!(append(&id, "me", 11, None).await, Err(SpoolError::WrongOffset { have: 10, asked: 11 })));
    assert!(matches!(append(&id, "you", 10, None).await, Err(SpoolError::Unknown)));
    assert!(matches!(append(&UploadId::random(), "me", 0, None).await, Err(SpoolError::Unknown)));
    assert!(matches!(append(&id, "me", 10, Some(91)).await, Err(SpoolError::TooLong { max: 100 })));
    assert!(matches!(spool.remove(&id, "you").await, Err(SpoolError::Unknown)));
    let long = spool.append((&id, "me"), 10, None, body(&[0; 91])).await;
    assert!(matches!(long, Err(SpoolError::TooLong { max: 100 })));
    assert!(spool.status(&id).await.expect("there").done.is_some(), "what fits was taken, and a look at it stores it");

    let join = async |owner: &str, parts: Vec<UploadId>| spool.join(named(owner), parts, "final;...".to_owned()).await;
    for (owner, parts, words) in [
        ("me", vec![part], "not whole"),
        ("me", vec![id], "not begun as a part"),
        ("me", vec![UploadId::random()], "not an upload of yours"),
        ("you", vec![part], "not an upload of yours"),
        ("me", vec![], "1 to 128 parts"),
        ("me", vec![part; 129], "1 to 128 parts"),
    ] {
        let error = join(owner, parts).await.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(append(&part, "me", 0, None).await.expect("taken"), 10);
    assert!(join("me", vec![part, part]).await.expect_err("twice").to_string().contains("named before"));
    for name in ["", "/a", "a//b", "../a"] {
        let new = NewUpload { filename: name.to_owned(), ..named("me") };
        assert!(matches!(spool.create(new, 1, Kind::Whole).await, Err(SpoolError::Bad(_))), "{name:?}");
    }
    spool.remove(&part, "me").await.expect("removed");
    assert!(matches!(spool.status(&part).await, Err(SpoolError::Gone)));
    assert!(matches!(append(&part, "me", 10, None).await, Err(SpoolError::Gone)));
}

#[tokio::test]
async fn parts_are_put_together_once() {
    let bench = Bench::new();
    let spool = bench.open();
    let content = bytes_of(2, 9000);
    let mut parts = Vec::new();
    for part in content.chunks(4000) {
        let id = spool.create(named("me"), part.len() as u64, Kind::Part).await.expect("made").id;
        let status = spool.append((&id, "me"), 0, None, body(part)).await.expect("taken");
        assert_eq!(status.done, None, "a part is stored with its file");
        parts.push(id);
    }
    bench.encoder.failures.store(1, Ordering::SeqCst);
    let join = async |spool: &Spool, parts: &[UploadId]| spool.join(named("me"), parts.to_vec(), "final;a b".to_owned()).await;
    assert!(matches!(join(&spool, &parts).await, Err(SpoolError::Unfinished(_))));
    let claimed = join(&spool, &parts[..2]).await.expect_err("they belong to another file");
    assert!(claimed.to_string().contains("another file"), "{claimed}");
    assert!(matches!(spool.remove(&parts[0], "me").await, Err(SpoolError::Busy)));
    let first = join(&spool, &parts).await.expect("the second try stores it");
    assert_eq!(bench.encoder.content_of(&first.id).expect("stored"), content);
    let again = join(&bench.open(), &parts).await.expect("the same again");
    assert_eq!((again.id, again.done, again.length), (first.id, first.done, 9000));
    assert_eq!(bench.machine.paths(), [first.id.to_string(), format!("{}/state", first.id)]);
    let appended = spool.append((&first.id, "me"), 9000, None, body(b"")).await;
    assert!(matches!(appended, Err(SpoolError::IsJoined)));
    assert!(matches!(spool.status(&parts[0]).await, Err(SpoolError::Gone)));
}

#[tokio::test]
async fn the_last_one_who_asks_writes() {
    let bench = Bench::new();
    let spool = bench.open();
    let content = bytes_of(3, 3000);
    let id = spool.create(named("me"), 3000, Kind::Whole).await.expect("made").id;
    let (send, mut receive) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let hanging = stream::poll_fn(move |context| receive.poll_recv(context));
    let (writer, bytes) = (spool.clone(), content.clone());
    let first = tokio::spawn(async move { writer.append((&id, "me"), 0, None, Box::pin(hanging)).await });
    send.send(Ok(Bytes::copy_from_slice(&bytes[..1000]))).await.expect("taken");
    // The first has been asked for a second piece only when it has handed the first one on.
    send.reserve().await.expect("room");
    let told = spool.status(&id).await.expect("the offset is the last one").offset;
    assert!(matches!(first.await.expect("no panic"), Err(SpoolError::Busy)));
    assert_eq!(spool.look_at(&id).expect("there").offset, told);
    assert!(send.send(Ok(Bytes::from_static(b"too late"))).await.is_err());
    spool.append((&id, "me"), told, None, body(&content[told as usize..])).await.expect("goes on");
    assert_eq!(bench.encoder.content_of(&id).expect("stored"), content);
}

/// What a broken connection brought is there; what a kill cut inside a request is there up to the last checkpoint.
#[tokio::test]
async fn broken_connections_and_kills() {
    let bench = Bench::new();
    let spool = bench.open();
    let length = CHECKPOINT_BYTES as usize * 2;
    let content = bytes_of(4, length);
    let id = spool.create(named("me"), length as u64, Kind::Whole).await.expect("made").id;
    assert!(matches!(spool.append((&id, "me"), 0, None, broken(&content[..5000])).await, Err(SpoolError::Cut)));
    assert_eq!(spool.look_at(&id).expect("there").offset, 5000);

    let (send, mut receive) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let hanging = stream::poll_fn(move |context| receive.poll_recv(context));
    let writer = spool.clone();
    let request = tokio::spawn(async move { writer.append((&id, "me"), 5000, None, Box::pin(hanging)).await });
    for part in content[5000..].chunks(1 << 20).take(17) {
        send.send(Ok(Bytes::copy_from_slice(part))).await.expect("taken");
    }
    while spool.look_at(&id).expect("there").offset == 5000 {
        tokio::task::yield_now().await;
    }
    bench.machine.kill();
    request.abort();
    let spool = bench.open();
    let offset = spool.status(&id).await.expect("there").offset;
    assert!((CHECKPOINT_BYTES..CHECKPOINT_BYTES + (17 << 20)).contains(&offset), "{offset}");
    spool.append((&id, "me"), offset, None, body(&content[offset as usize..])).await.expect("goes on");
    assert!(bench.encoder.content_of(&id).expect("stored") == content);
}

/// A kill while it is stored: a start finds it, and so does whoever asks.
#[tokio::test]
async fn what_is_whole_is_stored_in_the_end() {
    let bench = Bench::new();
    let spool = bench.open();
    let content = bytes_of(5, 100);
    let id = spool.create(named("me"), 100, Kind::Whole).await.expect("made").id;
    bench.encoder.failures.store(1, Ordering::SeqCst);
    assert!(matches!(spool.append((&id, "me"), 0, None, body(&content)).await, Err(SpoolError::Unfinished(_))));
    assert!(spool.append((&id, "me"), 100, Some(0), body(b"")).await.expect("tried again").done.is_some());

    let other = spool.create(named("me"), 100, Kind::Whole).await.expect("made").id;
    let gate = bench.encoder.gate.lock().await;
    let (writer, bytes) = (spool.clone(), content.clone());
    let request = tokio::spawn(async move { writer.append((&other, "me"), 0, None, body(&bytes)).await });
    while bench.encoder.calls.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(spool.remove(&other, "me").await, Err(SpoolError::Busy)));
    bench.machine.kill();
    drop(gate);
    assert!(request.await.expect("no panic").is_err(), "the state could not be written");
    let spool = bench.open();
    spool.start_upkeep();
    while spool.look_at(&other).expect("there").done.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.encoder.content_of(&other).expect("stored"), content);
    assert!(spool.create(named("me"), 0, Kind::Whole).await.expect("stored at once").done.is_some());
}

#[tokio::test]
async fn limits_and_expiry() {
    let mut bench = Bench::new();
    bench.options = SpoolOptions { bytes_max: 1000, uploads_max: 3, ..OPTIONS };
    let spool = bench.open();
    assert!(matches!(spool.create(named("me"), 1001, Kind::Whole).await, Err(SpoolError::TooLong { max: 1000 })));
    let first = spool.create(named("me"), 600, Kind::Whole).await.expect("made").id;
    assert!(matches!(spool.create(named("me"), 401, Kind::Whole).await, Err(SpoolError::Full)));
    bench.machine.set_free_bytes((1 << 20) + 999);
    assert!(matches!(spool.create(named("me"), 400, Kind::Part).await, Err(SpoolError::DiskFull)));
    bench.machine.set_free_bytes((1 << 20) + 1000);
    let part = spool.create(named("me"), 400, Kind::Part).await.expect("made").id;
    spool.create(named("me"), 0, Kind::Part).await.expect("made");
    assert!(matches!(spool.create(named("me"), 0, Kind::Whole).await, Err(SpoolError::TooMany)));
    spool.append((&part, "me"), 0, None, body(&[1; 400])).await.expect("taken");
    spool.remove(&first, "me").await.expect("removed");
    assert_eq!(bench.machine.paths().iter().filter(|path| path.ends_with("/data")).count(), 2);

    bench.options.lifetime = Duration::ZERO;
    let late = bench.open();
    assert!(matches!(late.status(&part).await, Err(SpoolError::Gone)));
    late.look().await;
    assert_eq!(bench.machine.paths(), [""; 0], "all is removed");
    assert!(matches!(late.status(&part).await, Err(SpoolError::Gone)));
    assert!(matches!(late.status(&first).await, Err(SpoolError::Unknown)), "another process does not know");
}

/// One client fills its own share, and others find room; it stays filled over a start.
#[tokio::test]
async fn one_client_has_a_share() {
    let mut bench = Bench::new();
    bench.options = SpoolOptions { bytes_max: 1000, uploads_max: 12, client_bytes_max: 300, ..OPTIONS };
    let of = |client: &str| NewUpload { client: Some(client.to_owned()), ..named("anybody") };
    let spool = bench.open();
    assert!(matches!(spool.create(of("a"), 301, Kind::Whole).await, Err(SpoolError::TooLong { max: 300 })));
    let first = spool.create(of("a"), 200, Kind::Part).await.expect("made").id;
    assert!(matches!(spool.create(of("a"), 101, Kind::Whole).await, Err(SpoolError::ClientFull)));
    drop(spool);
    let spool = bench.open();
    assert!(matches!(spool.create(of("a"), 101, Kind::Whole).await, Err(SpoolError::ClientFull)), "as before the start");
    spool.create(of("b"), 300, Kind::Whole).await.expect("another client");
    spool.create(named("me"), 400, Kind::Whole).await.expect("whom nobody counts");
    for _ in 0..2 {
        spool.create(of("a"), 1, Kind::Part).await.expect("made");
    }
    assert!(matches!(spool.create(of("a"), 1, Kind::Part).await, Err(SpoolError::ClientFull)), "three of twelve uploads");
    // What is put together frees the room of its parts.
    spool.append((&first, "anybody"), 0, None, body(&[1; 200])).await.expect("taken");
    assert!(spool.join(of("a"), vec![first], "final;/a".to_owned()).await.expect("stored").done.is_some());
    spool.create(of("a"), 200, Kind::Whole).await.expect("made");
}

/// Some uploads, a disk that dies at any step of them, and what must hold after each death.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_offset_is_told_that_is_not_durable() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bench = Bench::new();
        let mut spool = bench.open();
        // What each upload is to become, and the highest offset that anybody was told.
        let mut uploads: BTreeMap<UploadId, (Vec<u8>, u64)> = BTreeMap::new();
        for step in 0..12 {
            if rng.random_bool(0.6) {
                bench.machine.set_fuse(rng.random_range(0..25));
            }
            if uploads.len() < 3 {
                let content = bytes_of(seed * 100 + step, rng.random_range(1..6000));
                if let Ok(status) = spool.create(named("me"), content.len() as u64, Kind::Whole).await {
                    uploads.insert(status.id, (content, 0));
                }
            }
            for (id, (content, told)) in &mut uploads {
                let offset = spool.look_at(id).map_or(*told, |status| status.offset);
                assert!(offset >= *told, "seed {seed}");
                let end = rng.random_range(offset as usize..=content.len());
                let stretch = &content[offset as usize..end];
                let taken = match rng.random_bool(0.3) {
                    true => spool.append((id, "me"), offset, None, broken(stretch)).await,
                    false => spool.append((id, "me"), offset, None, body(stretch)).await,
                };
                *told = (*told).max(taken.map_or(0, |status| status.offset));
                *told = (*told).max(spool.look_at(id).map_or(0, |status| status.offset));
            }
            match rng.random_range(0..3) {
                0 => bench.machine.crash(&mut rng),
                1 => bench.machine.kill(),
                _ if spool.0.disk.free_bytes().is_err() => bench.machine.crash(&mut rng),
                _ => continue,
            }
            // A start may die, too.
            bench.machine.set_fuse(rng.random_range(0..6));
            if bench.try_open().is_err() {
                bench.machine.crash(&mut rng);
            }
            bench.machine.kill();
            spool = bench.open();
            for (id, (content, told)) in &uploads {
                let status = spool.look_at(id).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                assert!(status.offset >= *told && status.offset <= content.len() as u64, "seed {seed}: {status:?}, told {told}");
            }
        }
        bench.machine.kill();
        let spool = bench.open();
        for (id, (content, _)) in &uploads {
            let offset = spool.status(id).await.expect("there").offset;
            if spool.look_at(id).expect("there").done.is_none() {
                spool.append((id, "me"), offset, None, body(&content[offset as usize..])).await.expect("goes on");
            }
            assert!(bench.encoder.content_of(id).expect("stored") == *content, "seed {seed}");
        }
        let states = bench.machine.paths().iter().filter(|path| path.ends_with("/state")).count();
        let folders = bench.machine.paths().iter().filter(|path| !path.contains('/')).count();
        assert_eq!(states, folders, "seed {seed}: left-overs are gone: {:?}", bench.machine.paths());
    }
}
