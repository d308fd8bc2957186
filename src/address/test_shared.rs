//! Test only: files of the shared folder, whose place the environment variable `SKYGATE_SHARED` gives.

use std::path::PathBuf;

/// Bytes of one shared file, or `None` (after a printed line) when the folder is not given. A given folder without the file is a failure.
pub(crate) fn shared_file(path: &str) -> Option<Vec<u8>> {
    let Some(folder) = std::env::var_os("SKYGATE_SHARED") else {
        println!("SKIPPED {path}: SKYGATE_SHARED is not set");
        return None;
    };
    let full = PathBuf::from(folder).join(path);
    Some(std::fs::read(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display())))
}

/// A shared JSON file, parsed.
pub(crate) fn shared_json(path: &str) -> Option<serde_json::Value> {
    shared_file(path).map(|bytes| serde_json::from_slice(&bytes).unwrap())
}

/// Runs `fuzz` on each good input and on `count` mutations of each; a failure says which.
pub fn fuzz_around(fuzz: fn(&[u8]), corpus: &[Vec<u8>], count: u64) {
    for (index, good) in corpus.iter().enumerate() {
        fuzz(good);
        for seed in 0..count {
            let bytes = mutations(seed, good);
            if let Err(panic) = std::panic::catch_unwind(|| fuzz(&bytes)) {
                eprintln!("input {index} of the corpus, seed {seed}: {}", hex::encode(&bytes[..bytes.len().min(4096)]));
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// `good` with a handful of bytes flipped, cut, doubled or put in. The same seed gives the same bytes; tests print it.
pub fn mutations(seed: u64, good: &[u8]) -> Vec<u8> {
    use rand::{Rng, RngExt, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = good.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, random.next_u32() as u8),
            3 => {
                let end = random.random_range(at..=bytes.len()).min(at + 64);
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ if at < bytes.len() => bytes[at] = random.next_u32() as u8,
            _ => {}
        }
    }
    bytes
}
