//! What one client may do: token buckets and counts of what is open, by API key or by address.
//!
//! A client whose buckets are full and who has nothing open is not kept: it would look the same if it came anew. So the
//! table holds those who did something lately. When it is full, everybody who is not in it shares one row, so that no
//! number of addresses buys anybody more than a full table's worth.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{KeyId, KeyLimits};

/// Clients whose buckets are not full, or who have something open. Each takes about 250 bytes: 16 MiB at most.
pub const CLIENTS_MAX: usize = 65_536;
/// Registry entries remembered as written by a client within the day: about 20 MiB. An entry that is forgotten counts anew.
const ENTRIES_REMEMBERED_MAX: u64 = 200_000;
/// Between two looks for clients that need not be kept, when the table is full.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// See [`client_address`].
    Address(IpAddr),
    Key(KeyId),
    /// Everybody for whom there is no row.
    Rest,
}

/// What one client has: an IPv4 address, or of IPv6 a network of 64 bits, which any host has whole.
pub fn client_address(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

/// How often something may be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    /// How much at once, after a rest.
    pub burst: f64,
}

impl Rate {
    pub fn per_minute(number: u32, burst: u32) -> Rate {
        Rate { per_second: f64::from(number) / 60.0, burst: f64::from(burst.max(1)) }
    }

    /// Ten seconds' worth at once: browsers ask for all that a page needs together.
    pub fn per_second(number: u32) -> Rate {
        Rate { per_second: f64::from(number), burst: 10.0 * f64::from(number.max(1)) }
    }

    /// `number` in a day, all of it at once if need be.
    pub fn per_day(number: f64) -> Rate {
        Rate { per_second: number / DAY.as_secs_f64(), burst: number.max(1.0) }
    }
}

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    pub upload_bytes_max: u64,
    pub uploads: Rate,
    pub uploads_at_once: u32,
    /// Bytes of uploads in a day.
    pub bytes: Rate,
    /// Reads and writes of registry entries.
    pub registry: Rate,
    /// Different registry entries written in a day.
    pub entries: Rate,
    pub downloads_at_once: u32,
    /// Requests of any kind on the public listener, of an address.
    pub requests: Rate,
}

impl Default for Rules {
    /// What Skynet's public portals allowed one address (`skynet.md` 6). They had no daily limits; ours keep one client
    /// from filling the hosts overnight. Requests as such were not limited; a page of a thousand pictures, opened by two
    /// people behind one address, is still one burst.
    fn default() -> Rules {
        Rules {
            upload_bytes_max: 5_000_000_000,
            uploads: Rate::per_minute(600, 10),
            uploads_at_once: 5,
            bytes: Rate::per_day(50e9),
            registry: Rate::per_minute(60, 600),
            entries: Rate::per_day(10_000.0),
            downloads_at_once: 100,
            requests: Rate::per_second(200),
        }
    }
}

impl Rules {
    /// The same, but for what a key has of its own.
    pub fn with(&self, own: &KeyLimits) -> Rules {
        let mut rules = *self;
        rules.upload_bytes_max = own.upload_bytes.unwrap_or(rules.upload_bytes_max);
        rules.uploads_at_once = own.uploads_at_once.unwrap_or(rules.uploads_at_once);
        if let Some(number) = own.uploads_per_minute {
            rules.uploads = Rate::per_minute(number, number.div_ceil(60));
        }
        if let Some(bytes) = own.bytes_per_day {
            rules.bytes = Rate::per_day(bytes as f64);
        }
        if let Some(number) = own.registry_per_minute {
            rules.registry = Rate::per_minute(number, number.saturating_mul(10));
        }
        if let Some(number) = own.entries_per_day {
            rules.entries = Rate::per_day(f64::from(number));
        }
        rules
    }
}

/// Why something has to wait, or cannot be done at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverLimit {
    #[error("the upload is larger than the {max} bytes that are taken")]
    TooLarge { max: u64 },
    #[error("as many uploads are under way as one client may have")]
    UploadsAtOnce,
    #[error("as many downloads are under way as one client may have")]
    DownloadsAtOnce,
    #[error("uploads come too often")]
    Uploads { wait: Duration },
    #[error("the bytes that one client may upload in a day are spent")]
    Bytes { wait: Duration },
    #[error("requests from this address come too often")]
    Requests { wait: Duration },
    #[error("requests to the registry come too often")]
    Registry { wait: Duration },
    #[error("the different registry entries that one client may write in a day are spent")]
    Entries { wait: Duration },
}

/// Tokens that come back at a constant rate.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: &Rate, now: Instant) -> Bucket {
        Bucket { tokens: rate.burst, at: now }
    }

    fn refill(&mut self, rate: &Rate, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + gained).min(rate.burst);
        self.at = now;
    }

    /// Takes a token, or says when there will be one.
    fn take(&mut self, rate: &Rate, now: Instant) -> Result<(), Duration> {
        self.refill(rate, now);
        if self.tokens < 1.0 {
            return Err(self.wait(rate));
        }
        self.tokens -= 1.0;
        Ok(())
    }

    /// Until there is a whole token.
    fn wait(&self, rate: &Rate) -> Duration {
        Duration::try_from_secs_f64((1.0 - self.tokens) / rate.per_second).unwrap_or(DAY).min(DAY)
    }
}

struct State {
    uploads: Bucket,
    bytes: Bucket,
    registry: Bucket,
    entries: Bucket,
    requests: Bucket,
    uploads_open: u32,
    downloads_open: u32,
    /// The rules by which the buckets fill, for the sweep.
    rules: Rules,
}

impl State {
    fn new(rules: &Rules, now: Instant) -> State {
        State {
            uploads: Bucket::full(&rules.uploads, now),
            bytes: Bucket::full(&rules.bytes, now),
            registry: Bucket::full(&rules.registry, now),
            entries: Bucket::full(&rules.entries, now),
            requests: Bucket::full(&rules.requests, now),
            uploads_open: 0,
            downloads_open: 0,
            rules: *rules,
        }
    }

    /// Would it look the same if it came anew?
    fn is_idle(&mut self, now: Instant) -> bool {
        let rules = self.rules;
        let buckets = [
            (&mut self.uploads, rules.uploads),
            (&mut self.bytes, rules.bytes),
            (&mut self.registry, rules.registry),
            (&mut self.entries, rules.entries),
            (&mut self.requests, rules.requests),
        ];
        let full = buckets.into_iter().all(|(bucket, rate)| {
            bucket.refill(&rate, now);
            bucket.tokens >= rate.burst
        });
        full && self.uploads_open == 0 && self.downloads_open == 0
    }
}

#[derive(Default)]
struct Clients {
    states: HashMap<Client, State>,
    swept: Option<Instant>,
}

/// Which client did how much. Shared behind an `Arc`.
pub struct Limiter {
    /// Of clients without rules of their own.
    pub rules: Rules,
    clients_max: usize,
    clients: Mutex<Clients>,
    /// Entries that a client wrote within the day.
    entries: moka::sync::Cache<(Client, [u8; 32]), ()>,
}

/// What is open for a client, until it is dropped.
pub struct OpenPlace {
    limiter: Arc<Limiter>,
    client: Client,
    of: Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Upload,
    Download,
}

impl Drop for OpenPlace {
    fn drop(&mut self) {
        let mut clients = self.limiter.lock();
        if let Some(state) = clients.states.get_mut(&self.client) {
            let open = match self.of {
                Open::Upload => &mut state.uploads_open,
                Open::Download => &mut state.downloads_open,
            };
            *open = open.saturating_sub(1);
        }
    }
}

impl Limiter {
    pub fn new(rules: Rules) -> Limiter {
        Limiter::with_room(rules, CLIENTS_MAX)
    }

    fn with_room(rules: Rules, clients_max: usize) -> Limiter {
        let entries = moka::sync::Cache::builder().max_capacity(ENTRIES_REMEMBERED_MAX).time_to_live(DAY).build();
        Limiter { rules, clients_max, clients: Mutex::default(), entries }
    }

    /// An upload begins. `length` is what its head says.
    pub fn upload(self: &Arc<Self>, client: Client, rules: &Rules, length: Option<u64>) -> Result<OpenPlace, OverLimit> {
        if length.is_some_and(|length| length > rules.upload_bytes_max) {
            return Err(OverLimit::TooLarge { max: rules.upload_bytes_max });
        }
        self.of(client, rules, Instant::now(), |client, state, now| {
            if state.uploads_open >= rules.uploads_at_once {
                return Err(OverLimit::UploadsAtOnce);
            }
            state.bytes.refill(&rules.bytes, now);
            if state.bytes.tokens < 1.0 {
                return Err(OverLimit::Bytes { wait: state.bytes.wait(&rules.bytes) });
            }
            state.uploads.take(&rules.uploads, now).map_err(|wait| OverLimit::Uploads { wait })?;
            state.uploads_open += 1;
            Ok(OpenPlace { limiter: self.clone(), client, of: Open::Upload })
        })
    }

    /// Bytes of an upload have come in. One that has begun is not cut: it may overdraw the day's bytes by itself.
    pub fn bytes(&self, client: Client, rules: &Rules, bytes: u64) {
        self.of(client, rules, Instant::now(), |_, state, now| {
            state.bytes.refill(&rules.bytes, now);
            state.bytes.tokens -= bytes as f64;
        });
    }

    /// A download begins.
    pub fn download(self: &Arc<Self>, client: Client, rules: &Rules) -> Result<OpenPlace, OverLimit> {
        self.of(client, rules, Instant::now(), |client, state, _| {
            if state.downloads_open >= rules.downloads_at_once {
                return Err(OverLimit::DownloadsAtOnce);
            }
            state.downloads_open += 1;
            Ok(OpenPlace { limiter: self.clone(), client, of: Open::Download })
        })
    }

    /// Any request has come.
    pub fn request(&self, client: Client) -> Result<(), OverLimit> {
        let rules = &self.rules;
        self.of(client, rules, Instant::now(), |_, state, now| state.requests.take(&rules.requests, now))
            .map_err(|wait| OverLimit::Requests { wait })
    }

    /// A registry entry is asked for or written.
    pub fn registry(&self, client: Client, rules: &Rules) -> Result<(), OverLimit> {
        self.of(client, rules, Instant::now(), |_, state, now| state.registry.take(&rules.registry, now))
            .map_err(|wait| OverLimit::Registry { wait })
    }

    /// This registry entry is written. One that the client wrote within the day costs nothing more.
    pub fn entry(&self, client: Client, rules: &Rules, entry_id: &[u8; 32]) -> Result<(), OverLimit> {
        if self.entries.contains_key(&(client, *entry_id)) {
            return Ok(());
        }
        self.of(client, rules, Instant::now(), |_, state, now| state.entries.take(&rules.entries, now))
            .map_err(|wait| OverLimit::Entries { wait })?;
        self.entries.insert((client, *entry_id), ());
        Ok(())
    }

    /// The state of a client, or the one that all share for whom there is no row.
    fn of<T>(&self, client: Client, rules: &Rules, now: Instant, act: impl FnOnce(Client, &mut State, Instant) -> T) -> T {
        let mut clients = self.lock();
        let row = clients.row_for(client, self.clients_max, now);
        let rules = if row == client { rules } else { &self.rules };
        let state = clients.states.entry(row).or_insert_with(|| State::new(rules, now));
        state.rules = *rules;
        act(row, state, now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Clients> {
        self.clients.lock().expect("no panic under this lock")
    }
}

impl Clients {
    fn row_for(&mut self, client: Client, clients_max: usize, now: Instant) -> Client {
        if self.states.contains_key(&client) || self.states.len() < clients_max {
            return client;
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_EVERY) {
            self.swept = Some(now);
            self.states.retain(|_, state| !state.is_idle(now));
        }
        if self.states.len() < clients_max { client } else { Client::Rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Client {
        Client::Address(client_address(text.parse().expect("an address")))
    }

    fn rules() -> Rules {
        Rules {
            upload_bytes_max: 100,
            uploads: Rate::per_minute(60, 3),
            uploads_at_once: 2,
            bytes: Rate::per_day(1000.0),
            registry: Rate::per_minute(60, 2),
            entries: Rate::per_day(2.0),
            downloads_at_once: 1,
            requests: Rate { per_second: 1.0, burst: 3.0 },
        }
    }

    #[test]
    fn addresses_of_one_client() {
        for (a, b, same) in [
            ("1.2.3.4", "::ffff:1.2.3.4", true),
            ("1.2.3.4", "1.2.3.5", false),
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
        ] {
            assert_eq!(address(a) == address(b), same, "{a} {b}");
        }
    }

    /// Seconds from the start, and whether a token is there.
    #[test]
    fn buckets() {
        let rate = Rate::per_minute(60, 2);
        let start = Instant::now();
        let mut bucket = Bucket::full(&rate, start);
        for (at_ms, expect) in [
            (0, Ok(())),
            (0, Ok(())),
            (0, Err(1000)),
            (250, Err(750)),
            (1000, Ok(())),
            (1500, Err(500)),
            (60_000, Ok(())),
            (60_000, Ok(())),
            (60_000, Err(1000)),
        ] {
            let taken = bucket.take(&rate, start + Duration::from_millis(at_ms)).map_err(|wait| wait.as_millis());
            assert_eq!(taken, expect, "at {at_ms} ms");
        }
        // A clock that goes back gives nothing.
        assert!(bucket.take(&rate, start).is_err());
    }

    #[test]
    fn uploads_are_limited_in_size_number_and_bytes() {
        let limiter = Arc::new(Limiter::new(rules()));
        let one = address("1.2.3.4");
        let upload = |length| limiter.upload(one, &limiter.rules, length);
        assert_eq!(upload(Some(101)).err(), Some(OverLimit::TooLarge { max: 100 }));
        let first = upload(Some(100)).expect("the first");
        let _second = upload(None).expect("the second");
        assert_eq!(upload(None).err(), Some(OverLimit::UploadsAtOnce));
        assert!(limiter.upload(address("1.2.3.5"), &limiter.rules, None).is_ok(), "another client");
        drop(first);
        let third = upload(None).expect("the third");
        drop(third);
        assert!(matches!(upload(None).err(), Some(OverLimit::Uploads { .. })));
        let key = Client::Key(KeyId([1; 16]));
        limiter.bytes(key, &limiter.rules, 1500);
        let Some(OverLimit::Bytes { wait }) = limiter.upload(key, &limiter.rules, None).err() else { panic!("spent") };
        assert!(wait > Duration::from_secs(40_000) && wait <= DAY, "{wait:?}");
    }

    #[test]
    fn an_entry_counts_once_a_day() {
        let limiter = Limiter::new(rules());
        let one = address("1.2.3.4");
        for (entry, ok) in [(1, true), (1, true), (2, true), (3, false), (2, true)] {
            assert_eq!(limiter.entry(one, &limiter.rules, &[entry; 32]).is_ok(), ok, "{entry}");
        }
        assert!(limiter.registry(one, &limiter.rules).is_ok());
        assert!(limiter.registry(one, &limiter.rules).is_ok());
        assert!(matches!(limiter.registry(one, &limiter.rules), Err(OverLimit::Registry { .. })));
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let limiter = Arc::new(Limiter::new(rules()));
        let one = address("::2");
        let place = limiter.download(one, &limiter.rules).expect("the first");
        assert_eq!(limiter.download(one, &limiter.rules).err(), Some(OverLimit::DownloadsAtOnce));
        drop(place);
        assert!(limiter.download(one, &limiter.rules).is_ok());
    }

    #[test]
    fn a_full_table_has_one_row_for_the_rest() {
        let limiter = Arc::new(Limiter::with_room(rules(), 2));
        let held: Vec<_> =
            (0..4u8).filter_map(|last| limiter.download(address(&format!("1.2.3.{last}")), &limiter.rules).ok()).collect();
        // Two have rows of their own; the third has that of the rest, the fourth finds it used.
        assert_eq!(held.len(), 3);
        assert_eq!(limiter.lock().states.len(), 3);
        drop(held);
        limiter.lock().swept = None;
        assert!(limiter.download(address("1.2.3.9"), &limiter.rules).is_ok());
        assert_eq!(limiter.lock().states.len(), 1, "the idle ones have gone");
    }

    #[test]
    fn a_key_has_limits_of_its_own() {
        let own = KeyLimits { upload_bytes: Some(7), registry_per_minute: Some(6000), ..KeyLimits::default() };
        let rules = rules().with(&own);
        assert_eq!((rules.upload_bytes_max, rules.uploads_at_once), (7, 2));
        assert_eq!(rules.registry, Rate { per_second: 100.0, burst: 60_000.0 });
    }

    #[test]
    fn requests_of_one_address_are_limited_by_themselves() {
        let limiter = Limiter::new(rules());
        let (one, other) = (address("1.2.3.4"), address("1.2.3.5"));
        for _ in 0..3 {
            assert_eq!(limiter.request(one), Ok(()));
        }
        assert!(matches!(limiter.request(one), Err(OverLimit::Requests { wait }) if wait <= Duration::from_secs(1)));
        assert_eq!(limiter.request(other), Ok(()));
        assert_eq!(limiter.registry(one, &rules()), Ok(()), "another bucket");
    }
}
