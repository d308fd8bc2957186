//! What happened, counted: the trace of one request, and the histograms of the process.
//!
//! A [`Trace`] travels with one request through `http`, `store` and `renter`. It counts body bytes by the tier they
//! came from, index bytes fetched from hosts, and serial host rounds; the class of the reply follows from it
//! (`design.md` 9). It never sees addresses or host names.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Where bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    Memory,
    Disk,
    Hosts,
}

/// The class of one reply: where its body bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Every body byte from this process's memory.
    Memory,
    /// Every body byte from this node's disk.
    Disk,
    /// Every body byte from hosts, the index was at hand.
    Hosts,
    /// Every body byte from hosts, and index bytes, too.
    Cold,
    /// Bytes of several tiers.
    Mixed,
}

impl Class {
    pub const ALL: [Class; 5] = [Class::Memory, Class::Disk, Class::Hosts, Class::Cold, Class::Mixed];

    pub fn as_str(self) -> &'static str {
        match self {
            Class::Memory => "memory",
            Class::Disk => "disk",
            Class::Hosts => "hosts",
            Class::Cold => "cold",
            Class::Mixed => "mixed",
        }
    }
}

/// What one request did. Shared by reference-counted handle; all counters are relaxed atomics.
#[derive(Debug, Default)]
pub struct Trace {
    body_memory_bytes: AtomicU64,
    body_disk_bytes: AtomicU64,
    body_hosts_bytes: AtomicU64,
    index_from_hosts: AtomicBool,
    host_requests: AtomicU32,
    host_bytes: AtomicU64,
    serial_rounds: AtomicU32,
}

impl Trace {
    pub fn new() -> std::sync::Arc<Trace> {
        std::sync::Arc::new(Trace::default())
    }

    /// Body bytes that go to the reply, from `tier`.
    pub fn body(&self, tier: Tier, bytes: u64) {
        match tier {
            Tier::Memory => &self.body_memory_bytes,
            Tier::Disk => &self.body_disk_bytes,
            Tier::Hosts => &self.body_hosts_bytes,
        }
        .fetch_add(bytes, Relaxed);
    }

    /// Index bytes (pins, packs, nodes, fanouts, hash trees) had to be fetched from hosts.
    pub fn index_from_hosts(&self) {
        self.index_from_hosts.store(true, Relaxed);
    }

    /// One request to a host, with the bytes it answered.
    pub fn host_request(&self, bytes: u64) {
        self.host_requests.fetch_add(1, Relaxed);
        self.host_bytes.fetch_add(bytes, Relaxed);
    }

    /// A set of host requests that ran side by side and had to be waited for.
    pub fn serial_round(&self) {
        self.serial_rounds.fetch_add(1, Relaxed);
    }

    pub fn host_requests(&self) -> u32 {
        self.host_requests.load(Relaxed)
    }

    pub fn host_bytes(&self) -> u64 {
        self.host_bytes.load(Relaxed)
    }

    pub fn serial_rounds(&self) -> u32 {
        self.serial_rounds.load(Relaxed)
    }

    /// The class as of now. A reply without body bytes is `Memory` unless it needed index bytes from hosts.
    pub fn class(&self) -> Class {
        let memory = self.body_memory_bytes.load(Relaxed) > 0;
        let disk = self.body_disk_bytes.load(Relaxed) > 0;
        let hosts = self.body_hosts_bytes.load(Relaxed) > 0;
        let cold_index = self.index_from_hosts.load(Relaxed);
        match (memory, disk, hosts) {
            (false, false, true) if cold_index => Class::Cold,
            (false, false, true) => Class::Hosts,
            (false, true, false) => Class::Disk,
            (true, false, false) => Class::Memory,
            (false, false, false) if cold_index => Class::Cold,
            (false, false, false) => Class::Memory,
            _ => Class::Mixed,
        }
    }
}

mod histograms;
mod skynet;

pub use histograms::{Endpoint, Measures, Summary};
pub use skynet::{LastQuarter, Tracked};
