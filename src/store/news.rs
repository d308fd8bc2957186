//! What other nodes of the portal do to pins, while this one runs.
//!
//! A folder belongs to one process, so a node on folders alone makes every change itself: its catalog is the truth, and an
//! absence is told at once. Buckets take pins from any node of the portal. There a node looks at the list of pins again and
//! again, and before it tells an absence, it asks: first the hosts of the pins of that very root, then by a look at the list that
//! began after the question. Looks are shared by all who wait, and they pause, so that strangers' addresses make no flood.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::address::Multihash;
use crate::measure::Trace;
use crate::records::{Extent, Group, Kind, Record};

use super::commit::Durability;
use super::{Inner, Pin, StoreError};

/// Between two looks at the list of pins that nobody waits for.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Least pause between two looks that somebody waits for.
const LOOK_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Pauses are at least so many times as long as the look before took: of a long list the hosts give a part of their time.
const LOOK_SHARE: u32 = 4;
/// Longest wait of a request for hosts that cannot all tell yet, or for a look at a long list. Then it is told to come again.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// First pause before the hosts are asked again; it doubles.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Questions to hosts about roots that the catalog does not know, each second, with so many at once after a quiet time.
const ASKS_PER_SECOND: u32 = 50;
const ASKS_BURST: u32 = 100;
/// Removed pins remembered, so that their records are not fetched with every look: about 200 bytes each.
const REMOVED_MAX: u64 = 65_536;

/// What is known about others' doings.
pub struct News {
    /// Looks at the list of pins, by the number of each.
    begun: AtomicU64,
    ended: watch::Sender<Look>,
    wanted: Notify,
    /// Pins that were removed. Ids are drawn anew for each upload, so none of them comes back.
    removed: moka::sync::Cache<String, ()>,
    asks: Mutex<Tokens>,
}

/// The last look that ended.
#[derive(Clone, Copy)]
struct Look {
    number: u64,
    extent: Extent,
}

struct Tokens {
    left: f64,
    at: Instant,
}

impl News {
    pub fn new() -> News {
        News {
            begun: AtomicU64::new(0),
            ended: watch::Sender::new(Look { number: 0, extent: Extent::Partial }),
            wanted: Notify::new(),
            removed: moka::sync::Cache::new(REMOVED_MAX),
            asks: Mutex::new(Tokens { left: f64::from(ASKS_BURST), at: Instant::now() }),
        }
    }

    /// Call before a pin goes out of the catalog.
    pub fn removed(&self, key: &str) {
        self.removed.insert(key.to_owned(), ());
    }

    fn may_ask(&self) -> bool {
        let mut tokens = self.asks.lock().expect("no panic under this lock");
        let now = Instant::now();
        let earned = now.duration_since(tokens.at).as_secs_f64() * f64::from(ASKS_PER_SECOND);
        tokens.left = (tokens.left + earned).min(f64::from(ASKS_BURST));
        tokens.at = now;
        let may = tokens.left >= 1.0;
        tokens.left -= f64::from(u8::from(may));
        may
    }
}

/// How much the hosts told of the pins of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    All,
    /// Some records were left out because too few hosts gave good answers, as in the first moments of a start.
    NotAll,
}

/// Pauses between questions to hosts that cannot all tell yet.
pub struct Pauses {
    begun: Instant,
    next: Duration,
}

impl Pauses {
    pub fn new() -> Pauses {
        Pauses { begun: Instant::now(), next: ASK_AGAIN_AFTER }
    }

    /// Longer each time; an error when the next question would come later than [`WAIT_MAX`].
    pub async fn pause(&mut self) -> Result<(), StoreError> {
        if self.begun.elapsed() + self.next > WAIT_MAX {
            return Err(StoreError::Rebuilding);
        }
        tokio::time::sleep(self.next).await;
        self.next *= 2;
        Ok(())
    }
}

/// What can be said of an address that the catalog does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Nothing that was acknowledged before the question has it.
    Sure,
    /// It cannot be told now.
    Unsure,
}

impl Inner {
    /// Asks the hosts for the pins of one root: those found are in the catalog afterwards.
    pub async fn ask_hosts_for_pins(self: &Arc<Self>, multihash: &Multihash, trace: &Arc<Trace>) -> Result<Told, StoreError> {
        let _permit = self.asks.try_acquire().map_err(|_| StoreError::Rebuilding)?;
        // While a catalog is rebuilt, its own reader asks as well: then the bound above is enough.
        if self.catalog.is_complete() && !self.news.may_ask() {
            return Err(StoreError::Rebuilding);
        }
        trace.index_from_hosts();
        trace.serial_round();
        let group = Group::new(Kind::Pin, &hex::encode(multihash.to_bytes())).expect("hex is a group's text");
        let Ok(found) = self.records.group(&group).await else {
            // Too few hosts answer, as in the first moments of a start.
            return Ok(Told::NotAll);
        };
        for record in found.records {
            self.take_in(&record).await?;
        }
        Ok(if found.extent == Extent::Complete { Told::All } else { Told::NotAll })
    }

    /// Waits for a look at the list of pins that begins after this call: the catalog has then whatever was acknowledged before.
    pub async fn catch_up(&self) -> Absence {
        if !self.catalog.is_complete() {
            return Absence::Unsure;
        }
        let mut ended = self.news.ended.subscribe();
        let next = self.news.begun.load(Ordering::Acquire) + 1;
        self.news.wanted.notify_one();
        let look = tokio::time::timeout(WAIT_MAX, ended.wait_for(|look| look.number >= next)).await;
        match look {
            Ok(Ok(look)) if look.extent == Extent::Complete => Absence::Sure,
            Ok(_) | Err(_) => Absence::Unsure,
        }
    }

    /// Looks at the list of pins again and again. For hosts that other nodes write to.
    pub async fn follow_pins(self: &Arc<Self>) {
        loop {
            let begun = Instant::now();
            let number = self.news.begun.fetch_add(1, Ordering::AcqRel) + 1;
            let extent = self.look_at_pins().await;
            self.news.ended.send_replace(Look { number, extent });
            let took = begun.elapsed() * LOOK_SHARE;
            tokio::time::sleep(LOOK_PAUSE_MIN.max(took)).await;
            let unasked = tokio::time::sleep(LOOK_EVERY.max(took));
            tokio::select! {
                () = self.news.wanted.notified() => {}
                () = unasked => {}
            }
        }
    }

    /// Takes in what the list of pins has and the catalog does not know. Records of which it knows as much are not fetched.
    pub async fn look_at_pins(self: &Arc<Self>) -> Extent {
        let inner = self.clone();
        let known = move |key: &str, version: u64| {
            let pinned = inner.catalog.by_key(key).is_ok_and(|row| row.is_some_and(|row| row.version >= version));
            pinned || inner.news.removed.contains_key(key)
        };
        let mut scan = self.records.scan_unknown(Kind::Pin, move |key, order| known(key.text(), order.number()));
        let mut failed = false;
        while let Some(found) = scan.next().await {
            // One unreadable pin must not keep all others from being served.
            if let Err(error) = self.take_in(&found.record).await {
                tracing::warn!(%error, pin = found.record.key.text(), "a pin on the hosts cannot be used");
                failed |= matches!(error, StoreError::Catalog(_));
            }
        }
        if failed { Extent::Partial } else { scan.extent() }
    }

    /// One pin record as found on the hosts: adopted, or forgotten when it says removed.
    async fn take_in(self: &Arc<Self>, record: &Record) -> Result<(), StoreError> {
        let key = record.key.text().to_owned();
        let version = record.order.number();
        let known = self.catalog.by_key(&key)?;
        match (record.removed, known) {
            (true, Some(row)) => self.forget(&key, &Pin::decode(&row.body)?).await,
            (true, None) => {
                self.news.removed(&key);
                Ok(())
            }
            (false, Some(row)) if row.version >= version => Ok(()),
            // Found by a look that began before it was removed.
            (false, None) if self.news.removed.contains_key(&key) => Ok(()),
            (false, _) => {
                self.adopt(key.clone(), version, record.body.to_vec(), Durability::Acknowledged).await?;
                // Or removed while it was taken in.
                match self.news.removed.contains_key(&key) {
                    true => self.forget(&key, &Pin::decode(&record.body)?).await,
                    false => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_ask_without_end() {
        let news = News::new();
        let asked = (0..10 * ASKS_BURST).filter(|_| news.may_ask()).count();
        // The clock runs on meanwhile.
        assert!((ASKS_BURST as usize..2 * ASKS_BURST as usize).contains(&asked), "{asked}");
    }
}
