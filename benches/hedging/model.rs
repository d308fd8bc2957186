//! The model: each host has a median of 20 ms x log-normal(0, 0.4), each answer that x log-normal(0, 0.3), and one answer in a
//! hundred is 5 to 50 times slower. The bound is what a clairvoyant would get, who asks every host and takes the `need`-th answer.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Nobody waits longer than the program's own reads do.
pub const READ_MAX_MS: f64 = 30_000.0;

/// One host of the model.
#[derive(Clone)]
pub struct Host {
    pub median_ms: f64,
    pub more_ms: f64,
    /// Of its answers, those that are 5 to 50 times slower.
    pub slow_share: f64,
    pub dead: bool,
}

/// A set of hosts, and what a read wants of them.
#[derive(Clone, Copy)]
pub struct World {
    pub name: &'static str,
    pub hosts: usize,
    pub need: usize,
    /// Of a base sector.
    pub copies: usize,
    pub slow: usize,
    pub dead: usize,
    /// Of a host's answers, those that are slow.
    pub slow_share: f64,
}

const SLOW_SHARE: f64 = 0.01;

pub const NINE: World =
    World { name: "9 hosts, need 6, all well", hosts: 9, need: 6, copies: 4, slow: 0, dead: 0, slow_share: SLOW_SHARE };
pub const THIRTY: World = World {
    name: "30 hosts, need 10, two slow by 1 s, one dead",
    hosts: 30,
    need: 10,
    copies: 10,
    slow: 2,
    dead: 1,
    slow_share: SLOW_SHARE,
};
pub const SIX_OF_NINE: World = World {
    name: "9 hosts, need 6, two slow by 1 s, one dead: exactly 6 good",
    hosts: 9,
    need: 6,
    copies: 4,
    slow: 2,
    dead: 1,
    slow_share: SLOW_SHARE,
};

fn normal(random: &mut ChaCha8Rng) -> f64 {
    (-2.0 * random.random_range(f64::MIN_POSITIVE..1.0).ln()).sqrt() * (std::f64::consts::TAU * random.random_range(0.0..1.0)).cos()
}

pub fn answer_ms(host: &Host, random: &mut ChaCha8Rng) -> f64 {
    let usual = host.median_ms * (0.3 * normal(random)).exp();
    let slow = if random.random_bool(host.slow_share) { random.random_range(5.0..50.0) } else { 1.0 };
    if host.dead { f64::INFINITY } else { usual * slow + host.more_ms }
}

pub fn shuffled(count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.random_range(0..=last));
    }
    order
}

pub fn hosts_of(world: &World, seed: u64) -> Vec<Host> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut hosts: Vec<Host> = (0..world.hosts)
        .map(|_| Host {
            median_ms: 20.0 * (0.4 * normal(&mut random)).exp(),
            more_ms: 0.0,
            slow_share: world.slow_share,
            dead: false,
        })
        .collect();
    let order = shuffled(world.hosts, &mut random);
    order[..world.slow].iter().for_each(|host| hosts[*host].more_ms = 1000.0);
    order[world.slow..world.slow + world.dead].iter().for_each(|host| hosts[*host].dead = true);
    hosts
}

/// The clairvoyant: all of the candidates are asked, the `need`-th answer counts.
pub fn bound(hosts: &[Host], (candidates, need): (usize, usize), seed: u64, reads: usize) -> Quantiles {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xb0b0);
    let times = (0..reads).map(|_| {
        let asked = if candidates == hosts.len() { (0..candidates).collect() } else { shuffled(hosts.len(), &mut random) };
        let mut answers: Vec<f64> = asked[..candidates].iter().map(|host| answer_ms(&hosts[*host], &mut random)).collect();
        answers.sort_by(f64::total_cmp);
        answers[need - 1].min(READ_MAX_MS)
    });
    Quantiles::of(times.collect())
}

#[derive(Clone, Copy)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

impl Quantiles {
    pub fn of(mut times: Vec<f64>) -> Quantiles {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
        Quantiles { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}
