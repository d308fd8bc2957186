//! One-core speeds of the sector room: `cargo bench --bench sector [-- FILTER]`.
//!
//! Each line is the median of seven runs of some hundred milliseconds; the ways under test are interleaved, because
//! shared machines swing. `--list` style harness flags are ignored.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use skygate::sector::{BufferPool, Code, GRAIN_BYTES, GrainTree, SECTOR_BYTES, SLAB_STEPS, SlabEncoder, grain_nodes, sector_root};

const ROUNDS: usize = 7;
const RUN: Duration = Duration::from_millis(150);

struct Way<'a> {
    name: &'static str,
    /// Bytes worked through by one call.
    bytes: usize,
    call: Box<dyn FnMut() + 'a>,
    gigabytes_per_second: Vec<f64>,
}

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let sector = random_bytes(SECTOR_BYTES);
    let content = random_bytes(6 * SECTOR_BYTES / SLAB_STEPS);
    let mut ways = Vec::new();
    hashing(&sector, &mut ways);
    slabs(&content, &mut ways);
    decoding(&mut ways);
    ways.retain(|way| way.name.contains(&filter));
    for _ in 0..ROUNDS {
        for way in &mut ways {
            let (begin, mut calls) = (Instant::now(), 0);
            while begin.elapsed() < RUN {
                (way.call)();
                calls += 1;
            }
            way.gigabytes_per_second.push((way.bytes * calls) as f64 / begin.elapsed().as_secs_f64() / 1e9);
        }
    }
    for way in &mut ways {
        let rates = &mut way.gigabytes_per_second;
        rates.sort_by(f64::total_cmp);
        println!("{:48} {:7.3} GB/s  ({:.3} - {:.3})", way.name, rates[ROUNDS / 2], rates[0], rates[ROUNDS - 1]);
    }
}

fn way<'a>(name: &'static str, bytes: usize, call: impl FnMut() + 'a) -> Way<'a> {
    Way { name, bytes, call: Box::new(call), gigabytes_per_second: Vec::new() }
}

fn hashing<'a>(sector: &'a [u8], ways: &mut Vec<Way<'a>>) {
    let in_cache = &sector[..64 << 10];
    let mut nodes = vec![[0; 32]; SECTOR_BYTES / GRAIN_BYTES];
    ways.push(way("tree: sector root", SECTOR_BYTES, || {
        black_box(sector_root(black_box(sector)));
    }));
    ways.push(way("tree: grain nodes, 64 KiB in cache", in_cache.len(), move || {
        grain_nodes(black_box(in_cache), &mut nodes[..16]);
    }));
    ways.push(way("tree: by blake2b_simd's many-way hashing", in_cache.len(), || {
        black_box(by_blake2b_simd(black_box(in_cache)));
    }));
    let zeros = vec![0; SECTOR_BYTES];
    ways.push(way("tree: root of zeros", SECTOR_BYTES, move || {
        black_box(sector_root(black_box(&zeros)));
    }));
    let tree = GrainTree::of_data(sector);
    let nodes: Vec<u8> = (0..SECTOR_BYTES / GRAIN_BYTES).flat_map(|grain| tree.node(grain)).collect();
    let whole = tree.clone();
    for (name, grains) in [("check: 1 grain", 1), ("check: 11 grains", 11), ("check: 64 grains", 64)] {
        let tree = tree.clone();
        let bytes = &sector[100 * GRAIN_BYTES..(100 + grains) * GRAIN_BYTES];
        ways.push(way(name, bytes.len(), move || tree.check(100, black_box(bytes)).expect("good bytes")));
    }
    ways.push(way("check: nodes of a sector (rate of the sector)", SECTOR_BYTES, move || {
        black_box(GrainTree::new(whole.root(), black_box(&nodes), SECTOR_BYTES as u32)).expect("good nodes");
    }));
}

fn by_blake2b_simd(data: &[u8]) -> Vec<[u8; 32]> {
    let mut params = blake2b_simd::Params::new();
    params.hash_length(32);
    let mut level: Vec<[u8; 32]> = Vec::new();
    let mut prefix = 0;
    let mut messages: Vec<u8> = data.to_vec();
    while level.len() != data.len() / GRAIN_BYTES {
        let inputs: Vec<[u8; 65]> = messages
            .chunks(64)
            .map(|message| {
                let mut input = [prefix; 65];
                input[1..].copy_from_slice(message);
                input
            })
            .collect();
        let mut jobs: Vec<_> = inputs.iter().map(|input| blake2b_simd::many::HashManyJob::new(&params, input)).collect();
        blake2b_simd::many::hash_many(jobs.iter_mut());
        level = jobs.iter().map(|job| job.to_hash().as_bytes().try_into().expect("32 bytes")).collect();
        messages = level.concat();
        prefix = 1;
    }
    level
}

fn slabs<'a>(content: &'a [u8], ways: &mut Vec<Way<'a>>) {
    let pool = BufferPool::new(9);
    let step_pool = pool.clone();
    // A step can be encoded once a slab: a fresh encoder over used buffers is part of the figure.
    ways.push(way("slab 6 + 3: a step (rate of content)", content.len(), move || {
        let encoder = SlabEncoder::new(6, 3, 1, step_pool.take(6, 3)).expect("a good code");
        encoder.encode_step(0, black_box(content));
    }));
    ways.push(way("slab 6 + 3: 8 steps and finish (rate of content)", content.len() * SLAB_STEPS, move || {
        let encoder = SlabEncoder::new(6, 3, 1, pool.take(6, 3)).expect("a good code");
        for step in 0..encoder.steps() {
            encoder.encode_step(step, black_box(content));
        }
        black_box(encoder.finish((content.len() * SLAB_STEPS) as u64));
    }));
    let fresh = BufferPool::new(0);
    ways.push(way("slab 6 + 3: the same in fresh memory", content.len() * SLAB_STEPS, move || {
        let encoder = SlabEncoder::new(6, 3, 1, fresh.take(6, 3)).expect("a good code");
        for step in 0..encoder.steps() {
            encoder.encode_step(step, black_box(content));
        }
        black_box(encoder.finish((content.len() * SLAB_STEPS) as u64));
    }));
}

fn decoding(ways: &mut Vec<Way<'_>>) {
    // A range of 256 KiB at 6 + 3: 11 grains of each piece.
    let rows = 0..(11 * GRAIN_BYTES) as u32;
    let content = random_bytes(6 * SECTOR_BYTES / SLAB_STEPS);
    let encoder = SlabEncoder::new(6, 3, 1, BufferPool::new(0).take(6, 3)).expect("a good code");
    encoder.encode_step(0, &content);
    let slab = encoder.finish(content.len() as u64);
    let piece = |index: usize| (index, slab.objects[index].data().slice(..rows.end as usize));
    for (name, indexes) in [
        ("decode 6 + 3: 256 KiB, all data pieces", [0, 1, 2, 3, 4, 5]),
        ("decode 6 + 3: 256 KiB, 1 of 6 missing", [0, 1, 2, 3, 4, 6]),
        ("decode 6 + 3: 256 KiB, 3 of 6 missing", [0, 2, 4, 6, 7, 8]),
    ] {
        let pieces: Vec<(usize, Bytes)> = indexes.into_iter().map(piece).collect();
        let (code, rows) = (Code::new(6, 3).expect("a good code"), rows.clone());
        let range = 1000..1000 + (256 << 10);
        assert_eq!(
            code.decode_range(&pieces, rows.clone(), range.clone()).expect("good pieces"),
            content[1000..1000 + (256 << 10)]
        );
        ways.push(way(name, 256 << 10, move || {
            black_box(code.decode_range(black_box(&pieces), rows.clone(), range.clone())).expect("good pieces");
        }));
    }
}

fn random_bytes(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut out = Vec::with_capacity(length);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}
