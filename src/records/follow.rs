//! All records of a kind, now and from now on.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout};

use super::{Extent, Kind, Record, Records};

/// Between two tries to see everything for the first time, while too few hosts answer.
const SCAN_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// What a follower is told.
pub enum Followed<'a> {
    /// A version: versions may come again, and in any order.
    Record(&'a Record),
    /// Everything that was acknowledged before the last look has been given.
    Complete,
}

impl Records {
    /// Gives every record of a kind to `take`, and goes on: what this node writes or reads at once, what other nodes wrote
    /// when it looks again, which is `every` so often. Runs until it is dropped.
    pub async fn follow(&self, kind: Kind, every: Duration, take: impl Fn(Followed<'_>)) {
        let mut changes = self.subscribe(kind);
        let mut seen = Extent::Partial;
        loop {
            let mut scan = self.scan(kind);
            while let Some(found) = scan.next().await {
                take(Followed::Record(&found.record));
            }
            if scan.extent() == Extent::Complete {
                seen = Extent::Complete;
                take(Followed::Complete);
            }
            let again = Instant::now() + if seen == Extent::Complete { every } else { SCAN_AGAIN_AFTER };
            while let Some(left) = again.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                match timeout(left, changes.recv()).await {
                    Ok(Ok(record)) => take(Followed::Record(&record)),
                    // The lost ones are seen by the next look, which comes at once.
                    Ok(Err(RecvError::Lagged(_))) => break,
                    Ok(Err(RecvError::Closed)) => return,
                    Err(_) => break,
                }
            }
        }
    }
}
