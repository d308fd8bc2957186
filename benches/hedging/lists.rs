//! What it costs a bucket to say which version of a record is the newest: a list, a read of the object it names, both one after
//! the other, and `Host::look`, which reads the key that was first the last time beside the list.
//!
//! One server with the records of some entries, two versions each as after a change that is not swept yet; calls in turn, one at a
//! time. Once as it is, and once behind a proxy that lets each request wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use compat_tests::buckets::{Buckets, Engine};
use compat_tests::proxy::{self, Turn};
use compat_tests::versitygw::Versitygw;
use skygate::renter::host::{Deadline, Host, ReadRange};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::model::Quantiles;
use crate::sockets::host_of;

const ENTRIES: usize = 100;
/// An entry with a skylink of 46 bytes, as it lies on a host.
const RECORD_BYTES: usize = 300;
const RECORD_BYTES_MAX: u64 = 64 << 10;
const VERSIONS_MAX: usize = 32;
const ROUNDS: usize = 6;
/// What a bucket in the same country takes.
const FAR: Duration = Duration::from_millis(20);

/// Measures, and prints the table.
pub fn measure() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime can be made");
    println!("| server | calls | p50 ms | p99 ms |\n|---|---|---|---|");
    for (name, engine) in [("s3s-fs", Engine::InProcess), ("versitygw", Engine::Versitygw)] {
        if engine == Engine::Versitygw && !Versitygw::is_installed() {
            eprintln!("versitygw is not on PATH: go install github.com/versity/versitygw/cmd/versitygw@latest");
            continue;
        }
        for wait in [Duration::ZERO, FAR] {
            runtime.block_on(one(name, engine, wait));
        }
    }
}

async fn one(name: &str, engine: Engine, wait: Duration) {
    let buckets = Buckets::start_many(engine, 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let decide = Arc::new(move |_: &[u8]| Turn::After(wait));
    tokio::spawn(proxy::pass_on(listener, buckets.servers[0].address, decide, std::future::pending::<()>));
    let host = host_of(0, &endpoint).await;
    let folders: Vec<String> = (0..ENTRIES).map(|entry| format!("records/entry/{:02x}/{entry:064x}", entry % 256)).collect();
    let put = |folder: &str, order: u32| {
        let (host, key) = (host.clone(), format!("{folder}/{order:032x}"));
        async move { host.put(&key, vec![7; RECORD_BYTES].into(), Deadline::Small).await.expect("it takes records") }
    };
    for pair in folders.chunks(32) {
        futures::future::join_all(pair.iter().flat_map(|folder| [put(folder, 8), put(folder, 9)])).await;
    }
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        for folder in &folders {
            for (call, times) in times.iter_mut().enumerate() {
                let began = Instant::now();
                ask(&host, folder, call).await;
                // The first round of a look knows no key.
                if round > 0 {
                    times.push(began.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
    }
    let place = if wait.is_zero() { name.to_owned() } else { format!("{name}, each request {} ms later", wait.as_millis()) };
    let names = ["list", "read", "list, then read", "list, and the last key beside it"];
    for (call, times) in names.iter().zip(times) {
        let Quantiles { p50, p99, .. } = Quantiles::of(times);
        println!("| {place} | {call} | {p50:.2} | {p99:.2} |");
    }
}

async fn ask(host: &Host, folder: &str, call: usize) {
    let newest = format!("{folder}/{:032x}", 8);
    let list = async || assert_eq!(host.list(folder, VERSIONS_MAX).await.expect("it lists").len(), 2);
    let read = async || {
        let read = host.get(&newest, ReadRange::Whole { max: RECORD_BYTES_MAX }).await;
        assert_eq!(read.expect("there").len(), RECORD_BYTES);
    };
    match call {
        0 => list().await,
        1 => read().await,
        2 => {
            list().await;
            read().await;
        }
        _ => assert_eq!(host.look(folder, VERSIONS_MAX, RECORD_BYTES_MAX).await.expect("it lists").keys[0], newest),
    }
}
