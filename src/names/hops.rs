//! Steps of chains that were looked up: a cache bounded in bytes, and one look-up at a time for each name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::NameError;
use super::pointer::Pointer;

/// Look-ups under way at once. Each waits for the network with a few KiB; a flood of unknown names ends here.
const LOOK_UPS_MAX: usize = 1024;
/// What a step costs in the cache besides its texts.
const HOP_OVERHEAD_BYTES: usize = 400;

/// One step, as it was found.
#[derive(Debug, Clone)]
pub struct Hop {
    pub found: Result<Pointer, NameError>,
    pub found_at: SystemTime,
    pub lifetime: Lifetime,
    /// Until then nobody is asked again.
    pub fresh_until: SystemTime,
    /// Until then it may stand in for an answer that could not be had.
    pub stale_until: SystemTime,
}

/// How long an answer may be kept by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It runs out, as in every cache of DNS.
    Until(SystemTime),
    /// So long from every answer on, since the record's own store is asked here; never past the record's end.
    Each { span: Duration, end: SystemTime },
}

impl Lifetime {
    pub fn left(&self, now: SystemTime) -> Duration {
        match self {
            Lifetime::Until(end) => end.duration_since(now).unwrap_or_default(),
            Lifetime::Each { span, end } => end.duration_since(now).unwrap_or_default().min(*span),
        }
    }
}

impl Hop {
    /// A clock that was set back makes a step old, not young for ever.
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        self.found_at <= now && now < self.fresh_until
    }

    /// May it be served in place of a failure, and for how long from now?
    pub fn stand_in(&self, now: SystemTime, back_off: Duration) -> Option<Hop> {
        let usable = self.found.is_ok() && now < self.stale_until;
        usable.then(|| Hop { fresh_until: (now + back_off).min(self.stale_until), ..self.clone() })
    }

    fn memory_bytes(&self) -> usize {
        let texts = match &self.found {
            Ok(pointer) => pointer.heap_bytes(),
            Err(error) => error.text_bytes(),
        };
        HOP_OVERHEAD_BYTES + texts
    }
}

type Flight = Shared<BoxFuture<'static, Arc<Hop>>>;

/// Look-ups under way, each with a number of its own: the name may be forgotten and looked up anew meanwhile.
#[derive(Default)]
struct UnderWay {
    flights: HashMap<String, (u64, Flight)>,
    next_number: u64,
}

/// All steps that are remembered or under way, by the text of their name.
pub struct Hops {
    known: moka::sync::Cache<String, Arc<Hop>>,
    under_way: Mutex<UnderWay>,
}

impl Hops {
    pub fn new(bytes_max: u64) -> Hops {
        let known = moka::sync::Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|key: &String, hop: &Arc<Hop>| u32::try_from(key.len() + hop.memory_bytes()).unwrap_or(u32::MAX))
            .build();
        Hops { known, under_way: Mutex::default() }
    }

    pub fn known(&self, key: &str) -> Option<Arc<Hop>> {
        self.known.get(key)
    }

    pub fn keep(&self, key: &str, hop: Arc<Hop>) {
        self.known.insert(key.to_owned(), hop);
    }

    /// A newer version is known to be there. A look-up under way may bring the old one: it is not waited for.
    pub fn forget(&self, key: &str) {
        self.lock().flights.remove(key);
        self.known.invalidate(key);
    }

    /// The step of this name: remembered, of a look-up under way, or of a new one. A look-up goes on when whoever asked
    /// first has gone, so that impatient clients do not make more of them.
    pub async fn find(
        self: &Arc<Self>,
        key: &str,
        now: SystemTime,
        look_up: impl FnOnce() -> BoxFuture<'static, Hop>,
    ) -> Result<Arc<Hop>, NameError> {
        let fresh = || self.known(key).filter(|hop| hop.is_fresh(now));
        if let Some(hop) = fresh() {
            return Ok(hop);
        }
        let flight = {
            let mut under_way = self.lock();
            // One may have landed since.
            if let Some(hop) = fresh() {
                return Ok(hop);
            }
            match under_way.flights.get(key) {
                Some((_, flight)) => flight.clone(),
                None if under_way.flights.len() >= LOOK_UPS_MAX => {
                    let why = "too many other names are being looked up".to_owned();
                    return Err(NameError::Transient { name: key.to_owned(), why });
                }
                None => {
                    let number = under_way.next_number;
                    under_way.next_number += 1;
                    let landing = Landing { hops: self.clone(), key: key.to_owned(), number };
                    let flight = start(landing, now, look_up());
                    under_way.flights.insert(key.to_owned(), (number, flight.clone()));
                    flight
                }
            }
        };
        Ok(flight.await)
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn start(landing: Landing, now: SystemTime, look_up: BoxFuture<'static, Hop>) -> Flight {
    let name = landing.key.clone();
    let task = tokio::spawn(async move {
        let hop = Arc::new(look_up.await);
        landing.land(&hop);
        hop
    });
    let flight = async move {
        task.await.unwrap_or_else(|error| {
            let found = Err(NameError::Transient { name, why: format!("the look-up was cut: {error}") });
            Arc::new(Hop { found, found_at: now, lifetime: Lifetime::Until(now), fresh_until: now, stale_until: now })
        })
    };
    flight.boxed().shared()
}

/// Takes a look-up off the list, however it ended.
struct Landing {
    hops: Arc<Hops>,
    key: String,
    number: u64,
}

impl Landing {
    /// Remembered before it leaves the list, so that nobody in between starts another; and only if it is still on it.
    fn land(&self, hop: &Arc<Hop>) {
        let under_way = self.hops.lock();
        if self.is_listed(&under_way) {
            self.hops.keep(&self.key, hop.clone());
        }
    }

    fn is_listed(&self, under_way: &UnderWay) -> bool {
        under_way.flights.get(&self.key).is_some_and(|(number, _)| *number == self.number)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut under_way = self.hops.lock();
        if self.is_listed(&under_way) {
            under_way.flights.remove(&self.key);
        }
    }
}
