//! Rates of the renter over nine folders on one disk, warm page cache, all checks on:
//! `cargo bench --bench renter -- [MIB]` (default 1024). Prints medians of five interleaved runs.

use std::{
    fmt,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use rand::{RngExt, SeedableRng};
use skygate::{
    measure::Trace,
    renter::{
        Renter, RenterOptions, SlabRef,
        host::{Host, HostId},
        place::{HostRow, HostTable, RowState},
    },
    sector::SlabEncoder,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A folder with one blocking job a call.
#[derive(Debug)]
struct Folder(PathBuf, AtomicBool);
impl fmt::Display for Folder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("folder")
    }
}
#[async_trait]
impl ObjectStore for Folder {
    async fn put_opts(&self, path: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
        let file = self.0.join(path.as_ref());
        tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, Bytes::from(payload)).unwrap();
        })
        .await
        .unwrap();
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if self.1.load(Relaxed) {
            return Err(object_store::Error::NotFound { path: path.to_string(), source: "gone".into() });
        }
        let file = self.0.join(path.as_ref());
        let Some(GetRange::Bounded(range)) = options.range else { panic!() };
        let (bytes, size, range) = tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::open(file).unwrap();
            let size = file.metadata().unwrap().len();
            let range = range.start..range.end.min(size);
            let mut buf = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut buf, range.start).unwrap();
            (Bytes::from(buf), size, range)
        })
        .await
        .unwrap();
        let meta = ObjectMeta { location: path.clone(), last_modified: Default::default(), size, e_tag: None, version: None };
        let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }
    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        unimplemented!()
    }
    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        unimplemented!()
    }
    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        unimplemented!()
    }
    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        unimplemented!()
    }
    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unimplemented!()
    }
}

const RANGE_BYTES: u64 = 256 << 10;
const CONNECTIONS: u64 = 4;
const RUN: Duration = Duration::from_secs(3);
const RUNS: usize = 5;

fn renter(folders: &[Arc<Folder>]) -> Renter {
    let host = |(index, folder): (usize, &Arc<Folder>)| Host::new(HostId([index as u8 + 1; 16]), folder.clone());
    let hosts: Vec<_> = folders.iter().enumerate().map(host).collect();
    let row = |host: &Host| HostRow { id: host.id(), zone: String::new(), weight: 1, state: RowState::Active };
    let table = HostTable { epoch: 1, hosts: hosts.iter().map(row).collect() };
    Renter::new(hosts, table, RenterOptions::default()).unwrap()
}

async fn write(renter: &Renter, slab_count: u64) -> Vec<SlabRef> {
    let mut content = vec![0; 24 << 20];
    rand_chacha::ChaCha8Rng::seed_from_u64(1).fill(&mut content[..]);
    let mut slabs = Vec::new();
    let mut writes = Vec::new();
    for slab in 0..slab_count {
        content[..8].copy_from_slice(&slab.to_le_bytes());
        content.rotate_left(8192 + 8);
        let encoder = SlabEncoder::new(6, 3, 1, renter.acquire_slab().await).unwrap();
        tokio::task::block_in_place(|| {
            for (step, content) in content.chunks(encoder.step_bytes()).enumerate() {
                encoder.encode_step(step, content);
            }
        });
        let encoded = tokio::task::block_in_place(|| encoder.finish(content.len() as u64));
        slabs.push(SlabRef { k: 6, m: 3, roots: encoded.roots().into(), content_len: content.len() as u64 });
        let renter = renter.clone();
        writes.push(tokio::spawn(async move { renter.write_slab(encoded).await.unwrap().complete().await }));
    }
    futures::future::join_all(writes).await;
    slabs
}

/// Processor time of this process, user and system. Says more than a rate on a machine that others use.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

struct Rate {
    per_second: f64,
    cpu_us: f64,
    times: Vec<Duration>,
}

/// Random aligned ranges a second, and the times.
async fn read(renter: &Renter, slabs: &[SlabRef], seed: u64) -> Rate {
    let count = Arc::new(AtomicU64::new(0));
    let cpu = cpu_time();
    let began = Instant::now();
    let reader = |connection: u64| {
        let (renter, slabs, count) = (renter.clone(), slabs.to_vec(), count.clone());
        tokio::spawn(async move {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed * 100 + connection);
            let mut times = Vec::new();
            while began.elapsed() < RUN {
                let slab = &slabs[rng.random_range(0..slabs.len())];
                let start = rng.random_range(0..slab.content_len / RANGE_BYTES) * RANGE_BYTES;
                let range: Range<u64> = start..start + RANGE_BYTES;
                let asked = Instant::now();
                let bytes = renter.read_slab(slab, range, &Trace::default()).await.unwrap();
                assert_eq!(bytes.len() as u64, RANGE_BYTES);
                times.push(asked.elapsed());
                count.fetch_add(1, Relaxed);
            }
            times
        })
    };
    let readers: Vec<_> = (0..CONNECTIONS).map(reader).collect();
    let mut times = Vec::new();
    for reader in readers {
        times.extend(reader.await.unwrap());
    }
    times.sort();
    let count = count.load(Relaxed) as f64;
    let cpu_us = (cpu_time() - cpu).as_secs_f64() * 1e6 / count;
    Rate { per_second: count / began.elapsed().as_secs_f64(), cpu_us, times }
}

fn report(name: &str, mut rates: Vec<Rate>) {
    rates.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    let (low, high) = (rates[0].per_second, rates[rates.len() - 1].per_second);
    let Rate { per_second, cpu_us, times } = &rates[rates.len() / 2];
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!("{name}: {per_second:.0}/s ({low:.0}-{high:.0}), {cpu_us:.0} us CPU, p50 {:?} p99 {:?} p999 {:?}", at(0.5), at(0.99), at(0.999));
}

fn main() {
    let mib = std::env::args().filter_map(|arg| arg.parse::<u64>().ok()).next().unwrap_or(1024);
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let folders: Vec<_> =
        (0..9).map(|index| Arc::new(Folder(directory.path().join(index.to_string()), false.into()))).collect();
    runtime.block_on(async {
        let first = renter(&folders);
        let began = Instant::now();
        let slabs = write(&first, mib.div_ceil(24)).await;
        println!("write {} slabs: {:.0} MiB/s", slabs.len(), slabs.len() as f64 * 24.0 / began.elapsed().as_secs_f64());
        let (mut healthy, mut cold, mut degraded) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..RUNS as u64 {
            cold.push(read(&renter(&folders), &slabs, run).await);
            healthy.push(read(&first, &slabs, run).await);
            folders[..3].iter().for_each(|folder| folder.1.store(true, Relaxed));
            let without = renter(&folders);
            read(&without, &slabs, run).await;
            degraded.push(read(&without, &slabs, run).await);
            folders[..3].iter().for_each(|folder| folder.1.store(false, Relaxed));
        }
        report("256 KiB ranges, trees known", healthy);
        report("256 KiB ranges, new gateway", cold);
        report("256 KiB ranges, three of nine hosts empty", degraded);
    });
}
