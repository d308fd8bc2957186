//! Rates of the renter over nine folders on one disk, warm page cache, all checks on:
//! `cargo bench --bench renter -- [MIB]` (default 1024). Prints medians of five interleaved runs.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng};
use skygate::{
    measure::Trace,
    renter::{
        Renter, RenterOptions, SlabRef, Window,
        folder::{FolderOptions, FolderStore},
        host::{Host, HostId, HostOptions, Writers},
        marker::{self, PortalId},
        place::{HostRow, HostTable, RowState},
    },
    sector::SlabEncoder,
};

const RANGE_BYTES: u64 = 256 << 10;
const CONNECTIONS: u64 = 4;
const RUN: Duration = Duration::from_secs(3);
const RUNS: usize = 5;

const PORTAL: PortalId = PortalId([1; 32]);

/// Nine folders with markers.
async fn folders(directory: &Path) -> Vec<(HostId, FolderStore)> {
    let mut folders = Vec::new();
    for index in 0..9 {
        let path = directory.join(format!("host-{index}"));
        std::fs::create_dir(&path).expect("a bench stops at the first failure");
        let store = FolderStore::new(path, FolderOptions::default());
        let marker = marker::create(&store, PORTAL).await.expect("a bench stops at the first failure");
        folders.push((marker.host, store));
    }
    folders
}

/// A gateway that knows nothing yet; the first `lost` hosts are down.
async fn renter(folders: &[(HostId, FolderStore)], lost: usize) -> Renter {
    let mut hosts = Vec::new();
    for (index, (id, store)) in folders.iter().enumerate() {
        let options = HostOptions {
            id: *id,
            portal: PORTAL,
            url: format!("folder {index}"),
            space: Some(store.space()),
            near: Some(Arc::new(store.clone())),
            writers: Writers::ThisNode,
        };
        let host = Host::new(Arc::new(store.clone()), options);
        if index >= lost {
            host.check().await;
        }
        hosts.push(host);
    }
    let row = |host: &Host| HostRow { id: host.id(), zone: String::new(), weight: 1, state: RowState::Active };
    let table = HostTable { epoch: 1, hosts: hosts.iter().map(row).collect() };
    Renter::new(hosts, table, RenterOptions::default()).expect("a bench stops at the first failure")
}

async fn write(renter: &Renter, slab_count: u64) -> Vec<SlabRef> {
    let mut content = vec![0; 24 << 20];
    rand_chacha::ChaCha8Rng::seed_from_u64(1).fill(&mut content[..]);
    let mut slabs = Vec::new();
    let mut writes = Vec::new();
    for slab in 0..slab_count {
        content[..8].copy_from_slice(&slab.to_le_bytes());
        content.rotate_left(8192 + 8);
        let encoder = SlabEncoder::new(6, 3, 1, renter.acquire_slab().await).expect("a bench stops at the first failure");
        tokio::task::block_in_place(|| {
            for (step, content) in content.chunks(encoder.step_bytes()).enumerate() {
                encoder.encode_step(step, content);
            }
        });
        let encoded = tokio::task::block_in_place(|| encoder.finish(content.len() as u64));
        slabs.push(SlabRef { k: 6, m: 3, roots: encoded.roots().into(), content_len: content.len() as u64 });
        let renter = renter.clone();
        writes.push(tokio::spawn(async move {
            renter.write_slab(encoded).await.expect("a bench stops at the first failure").complete().await
        }));
    }
    futures::future::join_all(writes).await;
    slabs
}

/// Processor time of this process, user and system. Says more than a rate on a machine that others use.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("a bench stops at the first failure");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a bench stops at the first failure").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("a bench stops at the first failure")
        + fields[12].parse::<u64>().expect("a bench stops at the first failure");
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
                let bytes = renter
                    .read_slab(slab, range, Window::Later, &Trace::default())
                    .await
                    .expect("a bench stops at the first failure");
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
        times.extend(reader.await.expect("a bench stops at the first failure"));
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
    println!(
        "{name}: {per_second:.0}/s ({low:.0}-{high:.0}), {cpu_us:.0} us CPU, p50 {:?} p99 {:?} p999 {:?}",
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

fn main() {
    let mib = std::env::args().filter_map(|arg| arg.parse::<u64>().ok()).next().unwrap_or(1024);
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("a bench stops at the first failure");
    // Not in /tmp, which may be memory: next to the build.
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a bench stops at the first failure");
    runtime.block_on(async {
        let folders = folders(directory.path()).await;
        let first = renter(&folders, 0).await;
        let began = Instant::now();
        let slabs = write(&first, mib.div_ceil(24)).await;
        println!("write {} slabs: {:.0} MiB/s", slabs.len(), slabs.len() as f64 * 24.0 / began.elapsed().as_secs_f64());
        let (mut healthy, mut cold, mut degraded) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..RUNS as u64 {
            cold.push(read(&renter(&folders, 0).await, &slabs, run).await);
            healthy.push(read(&first, &slabs, run).await);
            let without = renter(&folders, 3).await;
            read(&without, &slabs, run).await;
            degraded.push(read(&without, &slabs, run).await);
        }
        report("256 KiB ranges, trees known", healthy);
        report("256 KiB ranges, new gateway", cold);
        report("256 KiB ranges, three of nine hosts down", degraded);
    });
}
