//! Simulated hosts under a paused clock: seeded delay, loss, corruption, hang, death. Tests only.
//!
//! Each run is a world of its own, made of a seed. After every run: the right bytes, or a named error. A failing run
//! prints its seed; `SKYGATE_SIM_SEED=<seed>` runs only that one.

use std::{
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep};

use super::{
    Completion, Damage, DamageKind, DamageReport, Depth, Expect, Noted, PieceState, Proof, Renter, RenterError, RenterOptions,
    SlabRef, Window,
    folder::MARKER_KEY,
    host::{DRAIN_MAX, Host, HostId, HostOptions, Writers},
    lock,
    marker::{Marker, PortalId},
    place::{HostRow, HostTable, RowState},
};
use crate::{
    measure::{Class, Tier, Trace},
    sector::{
        BufferPool, EncodedSlab, GRAIN_BYTES, Root, SECTOR_BYTES, SEGMENT_BYTES, SlabEncoder, build_object, data_offset,
        parse_header,
    },
};

const K: u8 = 6;
const M: u8 = 3;
const N: usize = 9;
const F: usize = 2;

/// How a host behaves. Shares are of calls.
#[derive(Clone, Copy, Debug)]
struct Mood {
    median: Duration,
    /// Standard deviation of the delay's logarithm.
    sigma: f64,
    loss: f64,
    corruption: f64,
    hang: f64,
    dead: bool,
    refuses_puts: bool,
}

const CALM: Mood =
    Mood { median: Duration::from_millis(20), sigma: 0.4, loss: 0.0, corruption: 0.0, hang: 0.0, dead: false, refuses_puts: false };

/// One simulated host's store.
#[derive(Debug)]
struct SimStore {
    inner: InMemory,
    mood: Mutex<Mood>,
    rng: Mutex<ChaCha8Rng>,
    calls: AtomicU64,
    read_bytes: AtomicU64,
    /// Of ranges, whether or not they were answered.
    asked_bytes: AtomicU64,
    running: AtomicU64,
}

impl fmt::Display for SimStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("simulated")
    }
}

fn lost() -> object_store::Error {
    object_store::Error::Generic { store: "simulated", source: "lost".into() }
}

/// Counts a call under way, also one that is dropped.
struct Running<'a>(&'a SimStore);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

impl SimStore {
    /// Waits as this host does, and says whether the answer is to be corrupted.
    async fn serve(&self) -> Result<bool> {
        self.calls.fetch_add(1, Relaxed);
        let mood = *lock(&self.mood);
        if mood.dead {
            return Err(lost());
        }
        let (delay, is_lost, is_corrupt, hangs) = {
            let mut rng = lock(&self.rng);
            // Box and Muller's normal deviate.
            let normal = (-2.0 * rng.random_range(f64::MIN_POSITIVE..1.0).ln()).sqrt()
                * (std::f64::consts::TAU * rng.random_range(0.0..1.0)).cos();
            let delay = mood.median.mul_f64((mood.sigma * normal).exp());
            (delay, rng.random_bool(mood.loss), rng.random_bool(mood.corruption), rng.random_bool(mood.hang))
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        sleep(delay).await;
        if is_lost { Err(lost()) } else { Ok(is_corrupt) }
    }

    fn run(&self) -> Running<'_> {
        self.running.fetch_add(1, Relaxed);
        Running(self)
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let _running = self.run();
        self.serve().await?;
        if lock(&self.mood).refuses_puts {
            return Err(lost());
        }
        self.inner.put_opts(path, payload, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if path.as_ref() == MARKER_KEY {
            return if lock(&self.mood).dead { Err(lost()) } else { self.inner.get_opts(path, options).await };
        }
        if let Some(GetRange::Bounded(range)) = &options.range {
            self.asked_bytes.fetch_add(range.end - range.start, Relaxed);
        }
        let _running = self.run();
        let is_corrupt = self.serve().await?;
        let head = options.head;
        let mut got = self.inner.get_opts(path, options).await?;
        if head {
            return Ok(got);
        }
        let (meta, range, attributes, extensions) =
            (got.meta.clone(), got.range.clone(), got.attributes.clone(), std::mem::take(&mut got.extensions));
        let mut bytes = got.bytes().await?.to_vec();
        if is_corrupt && !bytes.is_empty() {
            let at = lock(&self.rng).random_range(0..bytes.len());
            bytes[at] ^= 1 << lock(&self.rng).random_range(0..8);
        }
        self.read_bytes.fetch_add(bytes.len() as u64, Relaxed);
        let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(Bytes::from(bytes)) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Hosts, and what a run wants to know about them.
struct World {
    rng: ChaCha8Rng,
    stores: Vec<Arc<SimStore>>,
    renter: Renter,
}

fn options() -> RenterOptions {
    RenterOptions { k: K, m: M, base_copies: 4, ..RenterOptions::default() }
}

fn host_id(index: usize) -> HostId {
    HostId([index as u8 + 1; 16])
}

const PORTAL: PortalId = PortalId([9; 32]);

/// A host as the program makes it: up once its marker was seen. Nobody looks again; a run does, when it wants to.
async fn host_over(index: usize, store: Arc<SimStore>) -> Host {
    let options = HostOptions {
        id: host_id(index),
        portal: PORTAL,
        url: format!("sim:{index}"),
        space: None,
        near: None,
        writers: Writers::ThisNode,
    };
    let host = Host::new(store, options);
    host.check().await;
    host
}

async fn renter_over(stores: &[Arc<SimStore>], options: RenterOptions) -> Renter {
    let hosts = stores.iter().enumerate().map(|(index, store)| host_over(index, store.clone()));
    let hosts = futures::future::join_all(hosts).await;
    let row = |host: &Host| HostRow { id: host.id(), zone: String::new(), weight: 1, state: RowState::Active };
    let table = HostTable { epoch: 1, hosts: hosts.iter().map(row).collect() };
    Renter::new(hosts, table, options).expect("enough hosts")
}

impl World {
    async fn new(seed: u64, mood: Mood) -> World {
        let store = |index: u64| SimStore {
            inner: InMemory::new(),
            mood: mood.into(),
            rng: ChaCha8Rng::seed_from_u64(seed ^ (index + 1) << 32).into(),
            calls: 0.into(),
            read_bytes: 0.into(),
            asked_bytes: 0.into(),
            running: 0.into(),
        };
        let stores: Vec<_> = (0..N as u64).map(|index| Arc::new(store(index))).collect();
        for (index, store) in stores.iter().enumerate() {
            let marker = Marker { portal: PORTAL, host: host_id(index) }.encode();
            store.inner.put(&Path::from(MARKER_KEY), marker.into()).await.expect("in memory");
        }
        let renter = renter_over(&stores, options()).await;
        World { rng: ChaCha8Rng::seed_from_u64(seed), stores, renter }
    }

    /// A gateway that knows nothing: no trees, no forecasts.
    async fn restart(&mut self) {
        self.renter = renter_over(&self.stores, options()).await;
    }

    /// Looks at the markers, as is done every minute.
    async fn check_hosts(&self) {
        futures::future::join_all(self.renter.hosts().iter().map(Host::check)).await;
    }

    fn content(&mut self, max_bytes: usize) -> Vec<u8> {
        let len = self.rng.random_range(1..max_bytes);
        let mut content = vec![0; len];
        self.rng.fill(&mut content[..]);
        content
    }

    fn range(&mut self, len: u64) -> Range<u64> {
        let start = self.rng.random_range(0..len);
        start..self.rng.random_range(start + 1..=len)
    }

    fn some_hosts(&mut self, count: usize) -> Vec<usize> {
        rand::seq::index::sample(&mut self.rng, N, count).into_vec()
    }

    fn change(&self, hosts: &[usize], change: impl Fn(&mut Mood)) {
        hosts.iter().for_each(|host| change(&mut lock(&self.stores[*host].mood)));
    }

    /// Dead, or emptied: both are lost.
    async fn lose(&mut self, hosts: &[usize]) {
        for host in hosts {
            if self.rng.random_bool(0.5) {
                self.change(&[*host], |mood| mood.dead = true);
            } else {
                self.wipe(*host).await;
            }
        }
    }

    async fn sectors(&self, host: usize) -> Vec<Path> {
        let listed = self.stores[host].inner.list(Some(&Path::from("sectors")));
        listed.map(|meta| meta.expect("in memory").location).collect().await
    }

    async fn wipe(&self, host: usize) {
        let store = &self.stores[host].inner;
        for path in self.sectors(host).await {
            store.delete(&path).await.expect("in memory");
        }
    }

    async fn change_objects(&self, host: usize, change: impl Fn(&mut Vec<u8>)) {
        let store = &self.stores[host].inner;
        for path in self.sectors(host).await {
            let mut bytes = store.get(&path).await.expect("there").bytes().await.expect("there").to_vec();
            change(&mut bytes);
            store.put(&path, bytes.into()).await.expect("in memory");
        }
    }

    /// Calls under way at the hosts.
    fn running(&self) -> u64 {
        self.stores.iter().map(|store| store.running.load(Relaxed)).sum()
    }

    fn calls(&self) -> u64 {
        self.stores.iter().map(|store| store.calls.load(Relaxed)).sum()
    }

    fn read_bytes(&self) -> u64 {
        self.stores.iter().map(|store| store.read_bytes.load(Relaxed)).sum()
    }

    fn asked_bytes(&self) -> u64 {
        self.stores.iter().map(|store| store.asked_bytes.load(Relaxed)).sum()
    }

    fn damages(&self, kind: DamageKind) -> Vec<Damage> {
        self.renter.damages().into_iter().filter(|damage| damage.kind == kind).collect()
    }

    async fn write_complete(&self, content: &[u8]) -> SlabRef {
        let (encoded, slab) = encode(content);
        let written = self.renter.write_slab(encoded).await.expect("calm hosts take it");
        assert_eq!(written.complete().await, Completion::Complete);
        slab
    }

    async fn read(&self, slab: &SlabRef, range: Range<u64>) -> std::result::Result<Bytes, RenterError> {
        self.renter.read_slab(slab, range, Window::Later, &Trace::default()).await
    }

    async fn assert_reads(&mut self, slab: &SlabRef, content: &[u8]) {
        let ranges = [0..slab.content_len, self.range(slab.content_len), self.range(slab.content_len)];
        for range in ranges {
            let read = self.read(slab, range.clone()).await.unwrap_or_else(|error| panic!("{range:?}: {error}"));
            assert!(read == content[range.start as usize..range.end as usize], "wrong bytes in {range:?}");
        }
    }
}

/// Fresh memory for each slab would be a third of the time of all runs.
static BUFFERS: LazyLock<BufferPool> = LazyLock::new(|| BufferPool::new(4 * N));

fn encode(content: &[u8]) -> (EncodedSlab, SlabRef) {
    let encoder = SlabEncoder::new(K, M, 1, BUFFERS.take(K, M)).expect("a good redundancy");
    content.chunks(encoder.step_bytes()).enumerate().for_each(|(step, content)| encoder.encode_step(step, content));
    let encoded = encoder.finish(content.len() as u64);
    let slab = SlabRef { k: K, m: M, roots: encoded.roots().into(), content_len: content.len() as u64 };
    (encoded, slab)
}

/// Runs `run` with seeds, each under a paused clock of its own, and prints the seed of the one that fails.
fn with_seeds<F: Future<Output = ()>>(count: u64, run: impl Fn(u64) -> F) {
    let only = std::env::var("SKYGATE_SIM_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds = only.map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime of one thread");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(seed)))) {
            eprintln!("the run failed with SKYGATE_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

#[test]
fn any_f_hosts_lost_right_after_the_acknowledgement_lose_nothing() {
    with_seeds(100, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 1.0, loss: 0.02, ..CALM }).await;
        // One host never answers: the acknowledgement must not wait for it.
        let hung = world.some_hosts(seed as usize % 2);
        world.change(&hung, |mood| mood.hang = 1.0);
        let content = world.content(300_000);
        let (encoded, slab) = encode(&content);
        let written = world.renter.write_slab(encoded).await.expect("eight hosts are enough");
        assert!(written.acknowledged_count() >= usize::from(K) + F);
        drop(written);
        // The gateway dies: nothing more is written, nothing is known.
        world.change(&Vec::from_iter(0..N), |mood| (mood.refuses_puts, mood.loss) = (true, 0.0));
        world.change(&hung, |mood| mood.hang = 0.0);
        let lost = world.some_hosts(F);
        world.lose(&lost).await;
        world.restart().await;
        world.assert_reads(&slab, &content).await;
    });
}

#[test]
fn any_m_hosts_lost_after_completion_lose_nothing() {
    with_seeds(100, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(300_000);
        let slab = world.write_complete(&content).await;
        let lost = world.some_hosts(M.into());
        world.lose(&lost).await;
        if seed % 2 == 0 {
            world.restart().await;
        }
        world.assert_reads(&slab, &content).await;
    });
}

#[test]
fn m_hosts_that_hang_or_lie_lose_nothing_and_liars_are_charged() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(300_000);
        let slab = world.write_complete(&content).await;
        let bad = world.some_hosts(M.into());
        world.change(&bad[..1], |mood| mood.hang = 1.0);
        world.change(&bad[1..], |mood| mood.corruption = 1.0);
        world.restart().await;
        let began = Instant::now();
        world.assert_reads(&slab, &content).await;
        assert!(began.elapsed() < Duration::from_secs(3), "a hung host is not waited for: {:?}", began.elapsed());
        let wrong = world.damages(DamageKind::Wrong);
        assert!(wrong.iter().all(|damage| bad[1..].iter().any(|host| host_id(*host) == damage.host)), "only liars are charged");
        for damage in &wrong {
            let host = world.renter.hosts().iter().find(|host| host.id() == damage.host).expect("known");
            assert_eq!(host.health().wrong_pieces, damage.times);
        }
    });
}

#[test]
fn m_plus_one_lost_is_named() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(100_000);
        let slab = world.write_complete(&content).await;
        let lost = world.some_hosts(usize::from(M) + 1);
        world.lose(&lost).await;
        let range = world.range(slab.content_len);
        let error = world.read(&slab, range).await.expect_err("four of nine are gone");
        assert_eq!(error, RenterError::TooFewPieces { have: 5, need: 6 });
    });
}

#[test]
fn too_many_hung_hosts_time_out() {
    with_seeds(5, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(100_000);
        let slab = world.write_complete(&content).await;
        let hung = world.some_hosts(usize::from(M) + 1);
        world.change(&hung, |mood| mood.hang = 1.0);
        let began = Instant::now();
        assert_eq!(world.read(&slab, 0..slab.content_len).await, Err(RenterError::TimedOut));
        assert!(began.elapsed() <= super::read::READ_MAX);
        assert_eq!(world.running(), 0);
    });
}

#[test]
fn one_byte_flipped_in_every_piece_never_gives_a_wrong_byte() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(200_000);
        let slab = world.write_complete(&content).await;
        if seed % 2 == 0 {
            world.restart().await;
        }
        for host in 0..N {
            let at = world.rng.random_range(0.0..1.0);
            world
                .change_objects(host, |bytes| {
                    let at = (at * bytes.len() as f64) as usize;
                    bytes[at] ^= 1 << (seed % 8);
                })
                .await;
        }
        for _ in 0..10 {
            let range = world.range(slab.content_len);
            match world.read(&slab, range.clone()).await {
                Ok(read) => assert!(read == content[range.start as usize..range.end as usize], "wrong bytes"),
                Err(error) => assert!(matches!(error, RenterError::TooFewPieces { need: 6, .. }), "{error:?}"),
            }
        }
    });
}

#[test]
fn a_readers_own_proof_stands_in_for_the_trees_and_liars_are_still_charged() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let mut content = world.content(300_000);
        let zeros = content.len() / 2;
        if seed % 3 == 0 {
            // Objects are then shorter than is guessed: nobody's fault.
            content[zeros..].fill(0);
        }
        let slab = world.write_complete(&content).await;
        world.restart().await;
        let liars = if seed % 2 == 0 { world.some_hosts(M.into()) } else { Vec::new() };
        for liar in &liars {
            world.change_objects(*liar, |bytes| bytes.iter_mut().rev().take(64).for_each(|byte| *byte ^= 1)).await;
        }
        let whole = 0..slab.content_len;
        let prove = |bytes: &[u8]| bytes == content;
        let trace = Trace::default();
        let (read, proof) =
            world.renter.read_slab_proved(&slab, whole.clone(), &prove, Window::First, &trace).await.expect("six are right");
        assert!(read == content);
        let wrong = world.damages(DamageKind::Wrong);
        assert!(wrong.iter().all(|damage| liars.iter().any(|host| host_id(*host) == damage.host)), "only liars are charged");
        // Nothing but the body: with a tree among the answers it would be cold.
        trace.body(Tier::Hosts, read.len() as u64);
        if seed % 6 == 1 {
            assert_eq!((proof, trace.class()), (Proof::Given, Class::Hosts), "no tree was asked for");
        }
        if seed % 6 == 2 && proof == Proof::Missing {
            assert!(!wrong.is_empty(), "the proof did not hold, so somebody lied");
        }
        // A proof that cannot hold: the bytes of the roots, and nobody is charged for them.
        let before = world.damages(DamageKind::Wrong).len();
        let (read, proof) =
            world.renter.read_slab_proved(&slab, whole, &|_| false, Window::Later, &trace).await.expect("six are right");
        assert!(read == content && proof == Proof::Missing);
        if liars.is_empty() {
            assert_eq!(world.damages(DamageKind::Wrong).len(), before);
        }
    });
}

#[test]
fn proved_reads_of_bad_hosts_are_right_or_the_error_has_a_name() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(300_000);
        let slab = world.write_complete(&content).await;
        world.restart().await;
        let bad = world.some_hosts(4);
        world.change(&bad, |mood| (mood.corruption, mood.loss) = (0.5, 0.1));
        for _ in 0..6 {
            let range = world.range(slab.content_len);
            let wanted = &content[range.start as usize..range.end as usize];
            let prove = |bytes: &[u8]| bytes == wanted;
            match world.renter.read_slab_proved(&slab, range, &prove, Window::First, &Trace::default()).await {
                Ok((read, _)) => assert!(read == wanted, "wrong bytes"),
                Err(error) => assert!(matches!(error, RenterError::TooFewPieces { need: 6, .. }), "{error:?}"),
            }
        }
        let wrong = world.damages(DamageKind::Wrong);
        assert!(wrong.iter().all(|damage| bad.iter().any(|host| host_id(*host) == damage.host)), "only liars are charged");
    });
}

/// Changes a byte in these grains of the only object on each of these hosts.
async fn spoil(world: &mut World, hosts: &[usize], grains: &[usize]) {
    for host in hosts {
        let within = world.rng.random_range(0..GRAIN_BYTES);
        let change = |bytes: &mut Vec<u8>| {
            let data = data_offset(parse_header(bytes).expect("an object").data_length);
            grains.iter().for_each(|grain| bytes[data + grain * GRAIN_BYTES + within] ^= 0x10);
        };
        world.change_objects(*host, change).await;
    }
}

/// A disk rots here and there: no piece is right as a whole, every row has eight that are.
#[test]
fn a_window_is_made_of_what_is_right_of_each_piece() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let mut content = vec![0; world.rng.random_range(700_000..1_000_000)];
        world.rng.fill(&mut content[..]);
        let slab = world.write_complete(&content).await;
        // All but a last one that may be short.
        let grain_count = content.len() / usize::from(K) / GRAIN_BYTES;
        let grains = rand::seq::index::sample(&mut world.rng, grain_count, N).into_vec();
        for (host, grain) in grains.iter().enumerate() {
            spoil(&mut world, &[host], &[*grain]).await;
        }
        if seed % 2 == 0 {
            world.restart().await;
        }
        let mut reports = world.renter.take_damage_reports().expect("nobody took it");
        let calls = world.calls();
        assert!(world.read(&slab, 0..slab.content_len).await.expect("each row has eight") == content);
        // One each, or two where the tree was asked for first: nothing is asked anew for what is put together.
        assert!(world.calls() - calls <= 2 * N as u64, "{}", world.calls() - calls);
        let wrong = world.damages(DamageKind::Wrong);
        let told = std::iter::from_fn(|| reports.try_recv().ok()).count();
        assert_eq!((told, wrong.iter().map(|damage| damage.times).sum::<u64>()), (wrong.len(), wrong.len() as u64), "once each");
        // Two torn pieces and five whole ones may be the first to be enough.
        assert!((4..=N).contains(&wrong.len()), "{}", wrong.len());

        world.assert_reads(&slab, &content).await;
        let prove = |bytes: &[u8]| bytes == content;
        let whole = 0..slab.content_len;
        let read = world.renter.read_slab_proved(&slab, whole, &prove, Window::First, &Trace::default()).await;
        assert!(read.expect("each row has eight").0 == content);
        let (encoded, _) = encode(&content);
        let piece_index = world.rng.random_range(0..N);
        let object = &encoded.objects[piece_index].bytes;
        let data = &object[data_offset(parse_header(object).expect("an object").data_length)..];
        let made = world.renter.make_piece(&slab, piece_index, 0..data.len() as u32, &Trace::default()).await;
        assert!(made.expect("each row has eight") == data);

        // Without m hosts a spoilt row has five.
        let lost = world.some_hosts(M.into());
        world.lose(&lost).await;
        for range in [0..slab.content_len, world.range(slab.content_len)] {
            match world.read(&slab, range.clone()).await {
                Ok(read) => assert!(read == content[range.start as usize..range.end as usize]),
                Err(error) => assert_eq!(error, RenterError::TooFewPieces { have: 5, need: 6 }),
            }
        }
    });
}

/// Where a row has fewer right pieces than are needed nothing is made up, and beside it everything is read.
#[test]
fn a_row_with_too_few_right_pieces_is_refused_by_name() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let mut content = vec![0; 1_000_000];
        world.rng.fill(&mut content[..]);
        let slab = world.write_complete(&content).await;
        let lost_grain = world.rng.random_range(2..20);
        let spoilt = M as usize + 1 + seed as usize % 3;
        let hosts = world.some_hosts(N);
        spoil(&mut world, &hosts[..spoilt], &[lost_grain]).await;
        // The others are torn as well, elsewhere.
        for (number, host) in hosts[spoilt..].iter().enumerate() {
            spoil(&mut world, &[*host], &[21 + number]).await;
        }
        let stripe = u64::from(K) * GRAIN_BYTES as u64;
        let lost = lost_grain as u64 * stripe..(lost_grain as u64 + 1) * stripe;
        let expect = RenterError::TooFewPieces { have: N - spoilt, need: K.into() };
        for range in [0..slab.content_len, lost.clone(), lost.start - 1..lost.start + 1, lost.end - 1..lost.end + 1] {
            assert_eq!(world.read(&slab, range.clone()).await, Err(expect.clone()), "{range:?}");
        }
        for range in [0..lost.start, lost.end..slab.content_len] {
            let read = world.read(&slab, range.clone()).await.expect("each row has eight");
            assert!(read == content[range.start as usize..range.end as usize], "{range:?}");
        }
    });
}

#[test]
fn a_base_sector_is_made_of_what_is_right_of_each_copy() {
    with_seeds(30, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let mut content = vec![0; 300_000];
        world.rng.fill(&mut content[..]);
        let object = build_object(&content, 0, 0, 1);
        world.renter.write_base(object.clone()).await.expect("well").complete().await;
        let mut copies = Vec::new();
        for host in 0..N {
            if !world.sectors(host).await.is_empty() {
                copies.push(host);
            }
        }
        for (number, host) in copies.iter().enumerate() {
            // A hole of its own each, and one that two have in common.
            spoil(&mut world, &[*host], &[number * 2, 40 + number / 2]).await;
        }
        let whole = 0..content.len() as u32;
        let read = world.renter.read_sector(&object.root, Expect::default(), whole.clone(), &Trace::default()).await;
        assert!(read.expect("somebody is right everywhere")[..] == content);
        spoil(&mut world, &copies, &[60]).await;
        let read = world.renter.read_sector(&object.root, Expect::default(), whole, &Trace::default()).await;
        assert_eq!(read, Err(RenterError::TooFewPieces { have: 0, need: 1 }));
    });
}

#[test]
fn whatever_hosts_do_bytes_are_right_or_the_error_has_a_name() {
    with_seeds(150, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(300_000);
        let slab = world.write_complete(&content).await;
        for host in 0..N {
            let rng = &mut world.rng;
            let mood = Mood {
                median: Duration::from_millis(rng.random_range(1..200)),
                sigma: rng.random_range(0.0..1.5),
                loss: if rng.random_bool(0.3) { rng.random_range(0.0..0.5) } else { 0.0 },
                corruption: if rng.random_bool(0.3) { rng.random_range(0.0..0.5) } else { 0.0 },
                hang: if rng.random_bool(0.3) { rng.random_range(0.0..0.3) } else { 0.0 },
                dead: rng.random_bool(0.1),
                refuses_puts: false,
            };
            world.change(&[host], |now| *now = mood);
        }
        for _ in 0..10 {
            let range = world.range(slab.content_len);
            match world.read(&slab, range.clone()).await {
                Ok(read) => assert!(read == content[range.start as usize..range.end as usize], "wrong bytes"),
                Err(error) => {
                    assert!(matches!(error, RenterError::TooFewPieces { .. } | RenterError::TimedOut), "{error:?}");
                }
            }
        }
    });
}

#[test]
fn a_dropped_read_cancels_its_calls() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(300_000);
        let slab = world.write_complete(&content).await;
        let hung = world.some_hosts(3);
        world.change(&hung, |mood| mood.hang = 0.5);
        let patience = Duration::from_micros(world.rng.random_range(0..40_000));
        let (trace, window) = (Trace::default(), if seed % 2 == 0 { Window::First } else { Window::Later });
        let calls_before = world.calls();
        let read = tokio::time::timeout(patience, world.renter.read_slab(&slab, 0..slab.content_len, window, &trace)).await;
        if read.is_err() {
            tokio::task::yield_now().await;
            assert_eq!(world.running(), 0, "calls go on after the read was dropped");
            assert_eq!(u64::from(trace.host_requests()), world.calls() - calls_before, "each call is counted");
        } else {
            // Losers are small here, and read to their end; but not for long, nor is what is left of them then.
            sleep(2 * DRAIN_MAX + Duration::from_millis(1)).await;
            assert_eq!(world.running(), 0, "calls go on long after the read has ended");
        }
        let base = build_object(&content, 0, 0, 1);
        world.change(&hung, |mood| mood.hang = 0.0);
        world.renter.write_base(base.clone()).await.expect("all are well").complete().await;
        let read = world.renter.read_sector(&base.root, Expect::default(), 0..content.len() as u32, &trace);
        assert!(tokio::time::timeout(Duration::from_micros(10), read).await.is_err());
        tokio::task::yield_now().await;
        assert_eq!(world.running(), 0);
    });
}

#[test]
fn a_dropped_write_stops_and_an_acknowledged_one_gives_laggards_up() {
    with_seeds(20, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(100_000);
        let (encoded, slab) = encode(&content);
        let dropped = tokio::time::timeout(Duration::from_millis(1), world.renter.write_slab(encoded)).await;
        assert!(dropped.is_err());
        tokio::task::yield_now().await;
        assert_eq!(world.running(), 0);

        let hung = world.some_hosts(1);
        world.change(&hung, |mood| mood.hang = 1.0);
        let (encoded, _) = encode(&content);
        let began = Instant::now();
        let written = world.renter.write_slab(encoded).await.expect("eight are enough");
        assert!(began.elapsed() < Duration::from_secs(1));
        let Completion::Missing(missing) = written.complete().await else { panic!("one host never answered") };
        assert_eq!((missing.len(), world.running()), (1, 0));
        // The give-up is the race's or the host's own time-out, whichever is first.
        assert!(began.elapsed() < super::write::LAGGARD_MAX + Duration::from_secs(1));

        world.change(&hung, |mood| mood.hang = 0.0);
        assert_eq!(world.renter.missing_pieces(&slab).await, missing);
        assert_eq!(world.renter.complete_slab(&slab).await, Ok(Completion::Complete));
        assert_eq!(world.renter.missing_pieces(&slab).await, Vec::<usize>::new());
    });
}

#[test]
fn completion_after_a_restart_rebuilds_what_is_missing_or_cut() {
    with_seeds(40, async |seed| {
        let mut world = World::new(seed, Mood { loss: 0.05, ..CALM }).await;
        let content = world.content(300_000);
        let (encoded, slab) = encode(&content);
        let objects: Vec<_> = encoded.objects.clone();
        world.renter.write_slab(encoded).await.expect("well enough").complete().await;
        world.change(&Vec::from_iter(0..N), |mood| mood.loss = 0.0);
        world.renter.complete_slab(&slab).await.expect("well");
        let damaged = world.some_hosts(M.into());
        world.wipe(damaged[0]).await;
        world.wipe(damaged[1]).await;
        world.change_objects(damaged[2], |bytes| bytes.truncate(bytes.len() / 2 / 4096 * 4096)).await;
        world.restart().await;
        assert_eq!(world.renter.missing_pieces(&slab).await.len(), 3);
        assert_eq!(world.renter.complete_slab(&slab).await, Ok(Completion::Complete));
        for (store, object) in objects_by_store(&world, &slab).await.into_iter().zip(&objects) {
            assert!(store == object.bytes, "a rebuilt object is the one first written");
        }
        // One host down: everything but its piece, which is named.
        let (down, emptied) = (damaged[0], damaged[1]);
        world.change(&[down], |mood| mood.dead = true);
        world.wipe(emptied).await;
        let Ok(Completion::Missing(missing)) = world.renter.complete_slab(&slab).await else { panic!("one host is dead") };
        assert_eq!(missing.len(), 1);
        assert_eq!(missing, world.renter.missing_pieces(&slab).await);
    });
}

async fn objects_by_store(world: &World, slab: &SlabRef) -> Vec<Bytes> {
    let mut objects = Vec::new();
    for root in slab.roots.iter() {
        let path = Path::from(super::sector_path(root));
        for store in &world.stores {
            if let Ok(object) = store.inner.get(&path).await {
                objects.push(object.bytes().await.expect("in memory"));
            }
        }
    }
    objects
}

#[test]
fn base_sectors_survive_and_absence_needs_every_host() {
    with_seeds(100, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 1.0, ..CALM }).await;
        let content = world.content(200_000);
        let object = build_object(&content, 0, 0, 1);
        let expect = Expect { data_length: (seed % 2 == 0).then_some(content.len() as u32) };
        let written = world.renter.write_base(object.clone()).await.expect("well");
        assert!(written.acknowledged_count() > F);
        let is_complete = seed % 3 == 0;
        if is_complete {
            assert_eq!(written.complete().await, Completion::Complete);
        }
        world.change(&Vec::from_iter(0..N), |mood| mood.refuses_puts = true);
        let lost = world.some_hosts(if is_complete { M.into() } else { F });
        world.lose(&lost).await;
        world.restart().await;
        let range = world.range(content.len() as u64);
        let range = range.start as u32..range.end as u32;
        let trace = Trace::default();
        let read = world.renter.read_sector(&object.root, expect, range.clone(), &trace).await.expect("a copy is left");
        assert!(read == content[range.start as usize..range.end as usize], "wrong bytes");

        let unknown = world.renter.read_sector(&Root([7; 32]), Expect::default(), 0..1, &trace).await;
        let asked_dead = world.renter.shared.base_spots(&Root([7; 32])).iter().any(|spot| lock(&world.stores[spot.row].mood).dead);
        let error = if asked_dead { RenterError::TooFewPieces { have: 0, need: 1 } } else { RenterError::NotFound };
        assert_eq!(unknown, Err(error));

        world.change(&Vec::from_iter(0..N), |mood| (mood.refuses_puts, mood.dead) = (false, false));
        world.check_hosts().await;
        world.renter.complete_base(&object.root, expect).await.expect("a copy is left");
        assert_eq!(world.renter.missing_copies(&object.root).await, Vec::<usize>::new());
    });
}

#[test]
fn a_copy_that_lies_about_its_length_harms_nobody() {
    with_seeds(30, async |seed| {
        let world = World::new(seed, Mood { sigma: 0.0, ..CALM }).await;
        let content = vec![7; 300_000];
        let object = build_object(&content, 0, 0, 1);
        world.renter.write_base(object.clone()).await.expect("well").complete().await;
        let liar = world.renter.shared.base_spots(&object.root)[0].row;
        let lie = 295_000 + (seed as u32 * 331) % 6_000;
        world.change_objects(liar, |bytes| bytes[16..20].copy_from_slice(&lie.to_le_bytes())).await;
        for _ in 0..5 {
            let read = world.renter.read_sector(&object.root, Expect::default(), 290_000..300_000, &Trace::default()).await;
            assert!(read.expect("three honest copies")[..] == content[290_000..]);
        }
        assert!(world.damages(DamageKind::Wrong).iter().all(|damage| damage.host == host_id(liar)));
    });
}

#[test]
fn too_few_hosts_for_a_write_are_refused_at_once_and_in_words() {
    with_seeds(10, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(50_000);
        let (encoded, _) = encode(&content);
        for store in &world.stores[..2] {
            store.inner.delete(&Path::from(MARKER_KEY)).await.expect("in memory");
        }
        world.check_hosts().await;
        let calls = world.calls();
        let error = world.renter.write_slab(encoded).await.err().expect("seven of nine are too few");
        let RenterError::NotEnoughHosts { have: 7, need: 8, reason } = error else { panic!("{error:?}") };
        assert!(reason.contains("sim:0 is down") && reason.contains(MARKER_KEY), "{reason}");
        assert_eq!(world.calls(), calls);

        let mut world = World::new(seed, CALM).await;
        let failing = world.some_hosts(2);
        world.change(&failing, |mood| mood.refuses_puts = true);
        let (encoded, _) = encode(&content);
        let began = Instant::now();
        let error = world.renter.write_slab(encoded).await.err().expect("seven of nine are too few");
        assert!(matches!(error, RenterError::NotEnoughHosts { need: 8, .. }), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(5));
        tokio::task::yield_now().await;
        assert_eq!(world.running(), 0);

        world.change(&failing, |mood| (mood.refuses_puts, mood.hang) = (false, 1.0));
        let (encoded, _) = encode(&content);
        let error = world.renter.write_slab(encoded).await.err().expect("seven of nine are too few");
        assert!(matches!(error, RenterError::NotEnoughHosts { .. }), "{error:?}");
        assert!(began.elapsed() < super::write::WRITE_ACK_MAX + Duration::from_secs(10));
    });
}

#[test]
fn the_first_touch_is_cold_and_every_touch_one_round() {
    with_seeds(20, async |seed| {
        // Nobody is ever late: a spare's first touch would be cold, too.
        let mut world = World::new(seed, Mood { sigma: 0.0, ..CALM }).await;
        let mut content = vec![0; 3 << 20];
        world.rng.fill(&mut content[..]);
        let slab = world.write_complete(&content).await;
        let range = 2 << 20..(2 << 20) + (256 << 10);
        for class in [Class::Cold, Class::Hosts] {
            let trace = Trace::default();
            world.renter.read_slab(&slab, range.clone(), Window::Later, &trace).await.expect("all are well");
            trace.body(crate::measure::Tier::Hosts, 1);
            assert_eq!((trace.class(), trace.serial_rounds()), (class, 1));
        }
        // Hosts known to be down cost nothing.
        world.change(&[0, 1, 2], |mood| mood.dead = true);
        world.restart().await;
        let trace = Trace::default();
        world.renter.read_slab(&slab, 0..10_000, Window::Later, &trace).await.expect("six are well");
        assert_eq!((trace.host_requests(), trace.serial_rounds()), (6, 1));
        world.change(&[0, 1, 2], |mood| mood.dead = false);
        world.restart().await;

        let base = build_object(&content[..50_000], 0, 0, 1);
        world.renter.write_base(base.clone()).await.expect("well").complete().await;
        world.restart().await;
        let trace = Trace::default();
        world.renter.read_sector(&base.root, Expect::default(), 0..50_000, &trace).await.expect("well");
        assert_eq!((trace.host_requests(), trace.serial_rounds()), (1, 1), "a small sector comes whole in one request");
        assert_eq!(trace.host_bytes(), base.bytes.len() as u64);
    });
}

/// A wrong guess of the length costs a round, and a sector of zeros none.
#[test]
fn lengths_guessed_wrong_are_found_out() {
    with_seeds(20, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let mut content = world.content(3_000_000);
        let ends = content.len();
        content.resize(SECTOR_BYTES, 0);
        let object = build_object(&content, 0, 0, 1);
        world.renter.write_base(object.clone()).await.expect("well").complete().await;
        for guess in [None, Some(1), Some(ends as u32), Some(SECTOR_BYTES as u32)] {
            world.restart().await;
            let range = world.range(SECTOR_BYTES as u64);
            let range = range.start as usize..range.end as usize;
            let trace = Trace::default();
            let expect = Expect { data_length: guess };
            let read = world.renter.read_sector(&object.root, expect, range.start as u32..range.end as u32, &trace).await;
            let mut read = read.expect("well").to_vec();
            read.resize(range.len(), 0);
            assert!(read == content[range]);
            assert!(trace.serial_rounds() <= 3);
        }
        let (encoded, slab) = encode(&vec![0; 100_000]);
        world.renter.write_slab(encoded).await.expect("well").complete().await;
        assert!(world.read(&slab, 0..100_000).await.expect("well").iter().all(|byte| *byte == 0));
    });
}

/// The point of the race: one slow host among nine must not be felt, at a bounded cost in bytes.
#[test]
fn hedging_cuts_the_tail_within_its_budget() {
    with_seeds(3, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 0.5, ..CALM }).await;
        let mut content = vec![0; 2 << 20];
        world.rng.fill(&mut content[..]);
        let slab = world.write_complete(&content).await;
        let slow = world.some_hosts(1);
        world.change(&slow, |mood| mood.median = Duration::from_millis(400));
        let (mut times, before) = (Vec::new(), world.read_bytes());
        let reads = 2_000;
        for _ in 0..reads {
            let start = world.rng.random_range(0..(content.len() - (256 << 10)) as u64);
            let began = Instant::now();
            world.read(&slab, start..start + (256 << 10)).await.expect("eight are well");
            times.push(began.elapsed());
        }
        times.sort();
        let (p50, p99, max) = (times[reads / 2], times[reads * 99 / 100], times[reads - 1]);
        let asked = (world.read_bytes() - before) as f64 / (reads as f64 * (256 << 10) as f64);
        println!("seed {seed}: p50 {p50:?} p99 {p99:?} max {max:?}, bytes asked {asked:.3} of those wanted");
        assert!(p99 < p50 * 3 && max < Duration::from_millis(400), "p50 {p50:?} p99 {p99:?} max {max:?}");
        assert!(asked < 1.25, "{asked}");
    });
}

/// Nobody is late at first, so what is asked beyond the pieces needed is asked from the start.
#[test]
fn only_first_windows_ask_a_spare_from_the_start_and_its_loser_is_read_to_its_end() {
    const CONTENT_BYTES: usize = 300_000;
    const PIECE_BYTES: u64 = CONTENT_BYTES as u64 / 6 - SEGMENT_BYTES as u64;
    with_seeds(20, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 0.0, ..CALM }).await;
        let mut content = vec![0; CONTENT_BYTES];
        world.rng.fill(&mut content[..]);
        let slab = world.write_complete(&content).await;
        let read = async |world: &World, window| {
            let (calls, bytes) = (world.calls(), world.read_bytes());
            let read = world.renter.read_slab(&slab, 0..slab.content_len, window, &Trace::default()).await;
            assert!(read.expect("well") == content);
            let not_awaited = world.running();
            sleep(DRAIN_MAX).await;
            assert_eq!(world.running(), 0);
            let calls = world.calls() - calls;
            assert!(world.read_bytes() - bytes >= calls * PIECE_BYTES, "one of {calls} was not read to its end");
            (calls, not_awaited)
        };
        for (window, expect) in [(Window::Later, 6), (Window::First, 7), (Window::Later, 6), (Window::First, 7)] {
            assert_eq!(read(&world, window).await.0, expect, "{window:?}");
        }
        world.change(&Vec::from_iter(0..N), |mood| mood.sigma = CALM.sigma);
        let mut not_awaited = 0;
        for _ in 0..10 {
            let (calls, left) = read(&world, Window::First).await;
            assert!(calls >= 7 && left <= calls - 6, "{calls} calls, {left} of them left");
            not_awaited += left;
        }
        assert!(not_awaited > 0, "each read waited for its losers");
    });
}

/// The worst for a budget: at once every read is late, by all that is known of the hosts. Then one of them hangs as well.
#[test]
fn extra_bytes_keep_to_the_purse_when_all_hosts_slow_down_together_and_nobody_waits_for_one_that_hangs() {
    const UNIT: u64 = 1 << 20;
    const SMALL: u64 = 256 << 10;
    /// What the purse may hold and owe at most.
    const BURST: u64 = 36 << 20;
    with_seeds(3, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 0.5, ..CALM }).await;
        let mut content = vec![0; 2 << 20];
        world.rng.fill(&mut content[..]);
        let slab = world.write_complete(&content).await;
        // Trees are known then: what is asked is pieces.
        for _ in 0..20 {
            world.read(&slab, 0..slab.content_len).await.expect("well");
        }
        let hung = world.some_hosts(1);
        let (asked_before, mut needed, mut slowest) = (world.asked_bytes(), 0, Duration::ZERO);
        for round in 0..1_000 {
            match round {
                300 => world.change(&Vec::from_iter(0..N), |mood| mood.median = Duration::from_millis(400)),
                700 => world.change(&hung, |mood| mood.hang = 1.0),
                _ => {}
            }
            // Whole grains of the pieces, so that what is needed is known here.
            let (window, bytes) = if round % 8 == 0 { (Window::First, 6 * (SMALL / 8)) } else { (Window::Later, 6 * (UNIT / 8)) };
            let start = world.rng.random_range(0..=(slab.content_len - bytes) / (6 * 4096)) * 6 * 4096;
            let began = Instant::now();
            let read = world.renter.read_slab(&slab, start..start + bytes, window, &Trace::default()).await;
            assert!(read.expect("eight are well") == content[start as usize..(start + bytes) as usize]);
            slowest = slowest.max(began.elapsed());
            needed += bytes;
        }
        let extra = world.asked_bytes() - asked_before - needed;
        println!("seed {seed}: {:.2} % extra of {} MiB, slowest {slowest:?}", extra as f64 * 100.0 / needed as f64, needed >> 20);
        assert!(extra <= needed / 20 + BURST, "{extra} of {needed}");
        assert!(slowest < Duration::from_secs(6), "{slowest:?}");
    });
}

#[test]
fn a_host_once_slow_is_tried_again_and_chosen_when_it_is_quick() {
    with_seeds(5, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 0.2, ..CALM }).await;
        let content = world.content(100_000);
        let slab = world.write_complete(&content).await;
        let once_slow = world.some_hosts(1);
        world.change(&once_slow, |mood| mood.median = Duration::from_secs(1));
        let calls = |world: &World| world.stores[once_slow[0]].calls.load(Relaxed);
        let read_for = async |world: &World, minutes: u64| {
            let before = calls(world);
            for _ in 0..minutes * 60 {
                world.read(&slab, 0..slab.content_len).await.expect("eight are well");
                sleep(Duration::from_secs(1)).await;
            }
            calls(world) - before
        };
        read_for(&world, 2).await;
        // While it is slow it is looked at now and then.
        let looks = read_for(&world, 10).await;
        assert!((1..=120).contains(&looks), "{looks} calls in ten minutes");
        world.change(&once_slow, |mood| mood.median = Duration::from_millis(5));
        read_for(&world, 30).await;
        let chosen = read_for(&world, 2).await;
        assert!(chosen >= 110, "the quickest of nine was asked in {chosen} of 120 reads");
    });
}

#[test]
fn a_base_sector_is_asked_of_one_host_and_of_another_when_it_is_late() {
    with_seeds(20, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 0.0, ..CALM }).await;
        let content = world.content(50_000);
        let object = build_object(&content, 0, 0, 1);
        world.renter.write_base(object.clone()).await.expect("well").complete().await;
        let read = async |world: &World| {
            let calls = world.calls();
            let began = Instant::now();
            let range = 0..content.len() as u32;
            let read = world.renter.read_sector(&object.root, Expect::default(), range, &Trace::default()).await;
            assert!(read.expect("copies are left")[..] == content);
            (world.calls() - calls, began.elapsed())
        };
        for _ in 0..20 {
            assert_eq!(read(&world).await.0, 1);
        }
        // The one that is asked first hangs.
        let before: Vec<u64> = world.stores.iter().map(|store| store.calls.load(Relaxed)).collect();
        read(&world).await;
        let first = (0..N).find(|host| world.stores[*host].calls.load(Relaxed) > before[*host]).expect("one was asked");
        world.change(&[first], |mood| mood.hang = 1.0);
        let (calls, took) = read(&world).await;
        assert_eq!(calls, 2, "one more, not all");
        assert!(took < Duration::from_millis(200), "{took:?}");
    });
}

/// A host that lies for a while, then is honest: set aside, not asked, asked when nobody else has it, and back.
#[test]
fn a_host_that_lies_for_a_while_is_set_aside_and_comes_back() {
    with_seeds(30, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 0.0, ..CALM }).await;
        let mut stored = Vec::new();
        for _ in 0..20 {
            let content = world.content(50_000);
            stored.push((world.write_complete(&content).await, content));
        }
        let liar = world.some_hosts(1)[0];
        let aside = |world: &World| world.renter.set_aside(host_id(liar)).is_some();
        world.change(&[liar], |mood| mood.corruption = 1.0);
        // Now and then, so that a reader tries it again: a host that failed a moment ago is asked late anyway.
        'lying: for _ in 0..4 {
            for (slab, content) in &stored {
                world.assert_reads(slab, content).await;
                sleep(Duration::from_secs(45)).await;
                if aside(&world) {
                    break 'lying;
                }
            }
        }
        assert!(aside(&world), "wrong pieces: {:?}", world.damages(DamageKind::Wrong));
        let others = (0..N).filter(|host| *host != liar && world.renter.set_aside(host_id(*host)).is_some()).count();
        assert_eq!(others, 0, "only the liar");
        let wrong = world.damages(DamageKind::Wrong);
        assert!(wrong.len() >= 4 && wrong.iter().all(|damage| damage.host == host_id(liar)));

        // While others have enough nobody asks it, whatever time passes.
        sleep(Duration::from_secs(600)).await;
        let before = world.stores[liar].calls.load(Relaxed);
        for (slab, content) in &stored {
            world.assert_reads(slab, content).await;
        }
        assert_eq!(world.stores[liar].calls.load(Relaxed), before, "it is asked last");

        // Honest again, and needed: exactly k hosts are left.
        world.change(&[liar], |mood| mood.corruption = 0.0);
        if seed % 2 == 0 {
            let gone: Vec<usize> = (0..N).filter(|host| *host != liar).take(M.into()).collect();
            world.change(&gone, |mood| mood.dead = true);
            let mut rounds = 0;
            while aside(&world) {
                for (slab, content) in &stored {
                    world.assert_reads(slab, content).await;
                }
                rounds += 1;
                assert!(rounds <= 8, "32 right answers are enough");
            }
            world.change(&gone, |mood| mood.dead = false);
            world.check_hosts().await;
        } else {
            sleep(Duration::from_secs(3 * 3600)).await;
            assert!(!aside(&world), "three hours are enough");
        }
        for (slab, content) in &stored {
            world.assert_reads(slab, content).await;
        }
    });
}

/// A check is of every piece on every host, tells the four states apart, and what it tells is what a repair needs.
#[test]
fn checks_see_what_reads_do_not_need() {
    with_seeds(60, async |seed| {
        let mut world = World::new(seed, CALM).await;
        let content = world.content(300_000);
        let slab = world.write_complete(&content).await;
        // Reads have filled the caches: a check does not believe them.
        world.assert_reads(&slab, &content).await;
        let mut reports = world.renter.take_damage_reports().expect("nobody took it");
        assert!(world.renter.take_damage_reports().is_none(), "one keeper");
        let changed = world.some_hosts(4);
        let [flipped, cut, wiped, dead] = changed[..] else { panic!("four") };
        let at = world.rng.random_range(0.0..1.0);
        let flip = |bytes: &mut Vec<u8>| {
            // Behind the header, of which some bytes are hints.
            let at = 64 + ((bytes.len() - 64) as f64 * at) as usize;
            bytes[at] ^= 1 << (seed % 8);
        };
        world.change_objects(flipped, flip).await;
        world.change_objects(cut, |bytes| bytes.truncate(bytes.len() - 1)).await;
        world.wipe(wiped).await;
        world.change(&[dead], |mood| mood.dead = true);
        let pieces = world.renter.pieces_of(&slab);
        assert_eq!(pieces.len(), N);
        for piece in &pieces {
            let state = world.renter.check_piece(piece, Depth::Whole).await.state;
            let host = piece.host().expect("configured").id();
            let is_right = match &state {
                PieceState::Wrong(_) => host == host_id(flipped) || host == host_id(cut),
                PieceState::Missing => host == host_id(wiped),
                PieceState::Unknown(_) => host == host_id(dead),
                PieceState::Right => !changed.iter().any(|changed| host == host_id(*changed)),
            };
            assert!(is_right, "{host}: {state:?}");
            if state == PieceState::Missing {
                world.renter.tell_missing(piece);
            }
        }
        let mut told = Vec::new();
        while let Ok(DamageReport::Found(found)) = reports.try_recv() {
            assert_eq!((found.slab.as_ref(), slab.roots[found.piece_index]), (Some(&slab), found.root));
            told.push((found.kind, found.host));
        }
        told.sort_by_key(|(_, host)| *host);
        // A loser of an earlier read may have met it as well.
        told.dedup();
        let mut expect =
            [(DamageKind::Wrong, host_id(flipped)), (DamageKind::Wrong, host_id(cut)), (DamageKind::Missing, host_id(wiped))];
        expect.sort_by_key(|(_, host)| *host);
        assert_eq!(told, expect);
        for host in world.renter.hosts() {
            let counts = world.renter.checks_of(host.id());
            assert_eq!(counts.right + counts.wrong + counts.missing + counts.unknown, 1, "{counts:?}");
        }

        // What is noted is not told again; what was mended is.
        let wrong = pieces.iter().find(|piece| piece.host().expect("configured").id() == host_id(flipped)).expect("there");
        world.renter.set_noted(wrong.root(), host_id(flipped), Noted::Yes);
        world.renter.check_piece(wrong, Depth::Whole).await;
        assert!(reports.try_recv().is_err());
        world.change_objects(flipped, flip).await;
        world.renter.check_piece(wrong, Depth::Whole).await;
        assert_eq!(reports.try_recv(), Ok(DamageReport::Mended { root: wrong.root(), host: host_id(flipped) }));
    });
}

/// A sample finds a changed tree always, and changed data as often as its share says; all of it is all of it.
#[test]
fn samples_find_their_share() {
    with_seeds(4, async |seed| {
        let mut world = World::new(seed, Mood { sigma: 0.0, ..CALM }).await;
        let mut content = vec![0; 2 << 20];
        world.rng.fill(&mut content[..]);
        let slab = world.write_complete(&content).await;
        let bad = world.some_hosts(2);
        world.change_objects(bad[0], |bytes| bytes[64 + 40] ^= 1).await;
        world.change_objects(bad[1], |bytes| *bytes.last_mut().expect("data") ^= 1).await;
        let pieces = world.renter.pieces_of(&slab);
        let mut found = [0; N];
        for _ in 0..200 {
            for (piece, found) in pieces.iter().zip(&mut found) {
                let looked = world.renter.check_piece(piece, Depth::Sample(0.25)).await;
                *found += u32::from(matches!(looked.state, PieceState::Wrong(_)));
                assert!(looked.bytes < 130_000, "a quarter of 350 KiB and the tree: {}", looked.bytes);
            }
        }
        for (piece, found) in pieces.iter().zip(found) {
            let host = piece.host().expect("configured").id();
            let expect = match host {
                host if host == host_id(bad[0]) => 200..201,
                host if host == host_id(bad[1]) => 20..90,
                _ => 0..1,
            };
            assert!(expect.contains(&found), "{host}: {found}");
        }
        let rotten = pieces.iter().find(|piece| piece.host().expect("configured").id() == host_id(bad[1])).expect("there");
        assert!(matches!(world.renter.check_piece(rotten, Depth::Sample(1.0)).await.state, PieceState::Wrong(_)));
    });
}

#[test]
fn shared_hosts_are_refused_unless_allowed() {
    with_seeds(1, async |seed| {
        let world = World::new(seed, CALM).await;
        let stores = &world.stores[..1];
        let host = host_over(0, stores[0].clone()).await;
        let row = HostRow { id: host.id(), zone: String::new(), weight: 1, state: RowState::Active };
        let table = HostTable { epoch: 1, hosts: vec![row] };
        let refused = Renter::new(vec![host], table, options()).err().expect("one host for nine pieces");
        assert!(
            matches!(&refused, RenterError::NotEnoughHosts { have: 1, need: 9, reason } if reason.contains("allow_shared_hosts"))
        );
        let renter = renter_over(stores, RenterOptions { allow_shared_hosts: true, ..options() }).await;
        assert_eq!((renter.e(), renter.record_hosts(&[1; 32]).len()), (0, 1));
        let content = vec![5; 100_000];
        let (encoded, slab) = encode(&content);
        assert_eq!(renter.write_slab(encoded).await.expect("well").complete().await, Completion::Complete);
        assert!(renter.read_slab(&slab, 0..100_000, Window::Later, &Trace::default()).await.expect("well") == content);
        let base = build_object(&content, 0, 0, 1);
        assert_eq!(renter.write_base(base).await.expect("well").complete().await, Completion::Complete);
    });
}
