//! Taking in the bytes of one request: who may, and what is durable when.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};

use crate::ingest::UPLOAD_STALL;
use crate::ingest::assemble::unix_ms;

use super::disk::{Disk, DiskFile};
use super::state::{self, path_of};
use super::{Inner, SpoolError, TURN_WAIT_MAX, Upload, lock};

/// Bytes between two syncs inside a request. What a kill costs at most has to be sent again; a sync costs a disk some ten
/// milliseconds, in which it writes a megabyte.
pub const CHECKPOINT_BYTES: u64 = 16 << 20;
/// And on slow lines at least so often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// Parts of the body that wait between the socket and the disk.
const PARTS_WAITING_MAX: usize = 16;

/// The right to write to an upload, until somebody else asks for it.
pub struct Turn {
    guard: OwnedMutexGuard<()>,
    heard: watch::Receiver<u64>,
    mine: u64,
}

impl Turn {
    /// Ends when somebody else asks for the upload.
    async fn overtaken(heard: &mut watch::Receiver<u64>, mine: u64) {
        if heard.wait_for(|turn| *turn > mine).await.is_err() {
            // The upload is gone, and nobody will ask any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Upload {
    /// Tells whoever writes to stop, and waits until what came is durable.
    pub(super) async fn take(&self) -> Result<Turn, SpoolError> {
        let mut mine = 0;
        self.turn.send_modify(|turn| {
            *turn += 1;
            mine = *turn;
        });
        let heard = self.turn.subscribe();
        let waited = tokio::time::timeout(TURN_WAIT_MAX, self.writing.clone().lock_owned()).await;
        let guard = waited.map_err(|_| SpoolError::Busy)?;
        if self.ended.load(Ordering::SeqCst) {
            return Err(SpoolError::Gone);
        }
        if *heard.borrow() > mine {
            return Err(SpoolError::Busy);
        }
        Ok(Turn { guard, heard, mine })
    }
}

/// Takes in a body at the upload's offset. What has come is kept and durable, whatever the outcome.
pub async fn receive<B, E>(inner: &Inner, upload: &Arc<Upload>, turn: Turn, body: B) -> Result<(), SpoolError>
where
    B: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: fmt::Display,
{
    let (parts, received) = mpsc::channel(PARTS_WAITING_MAX);
    let Turn { guard, heard, mine } = turn;
    let writer = Writer { disk: inner.disk.clone(), upload: upload.clone(), floor_bytes: inner.options.free_floor_bytes };
    let offset = lock(&upload.facts).offset;
    // The thread keeps the turn: it outlives this future when the client goes away.
    let work = tokio::task::spawn_blocking(move || {
        let written = writer.run(offset, received);
        drop(guard);
        written
    });
    let fed = feed(body, upload.head.length, offset, parts, (heard, mine)).await;
    work.await.expect("writing an upload does not panic")?;
    fed
}

async fn feed<B, E>(
    mut body: B,
    length: u64,
    offset: u64,
    parts: mpsc::Sender<Bytes>,
    (mut heard, mine): (watch::Receiver<u64>, u64),
) -> Result<(), SpoolError>
where
    B: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: fmt::Display,
{
    let mut room = length - offset;
    loop {
        let next = tokio::select! {
            biased;
            () = Turn::overtaken(&mut heard, mine) => return Err(SpoolError::Busy),
            next = tokio::time::timeout(UPLOAD_STALL, body.next()) => next.map_err(|_| SpoolError::Stalled)?,
        };
        let Some(part) = next else { return Ok(()) };
        let mut part = part.map_err(|error| {
            tracing::debug!(%error, "an upload broke off");
            SpoolError::Cut
        })?;
        let surplus = part.len() as u64 > room;
        part.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        room -= part.len() as u64;
        // A writer that has ended says why itself.
        if !part.is_empty() && parts.send(part).await.is_err() {
            return Ok(());
        }
        if surplus {
            return Err(SpoolError::TooLong { max: length });
        }
    }
}

/// The thread that writes.
struct Writer {
    disk: Arc<dyn Disk>,
    upload: Arc<Upload>,
    floor_bytes: u64,
}

impl Writer {
    fn run(&self, offset: u64, mut received: mpsc::Receiver<Bytes>) -> Result<(), SpoolError> {
        let file = self.disk.open(&path_of(&self.upload.id, "data"))?;
        let (mut at, mut durable, mut synced) = (offset, offset, Instant::now());
        while let Some(part) = received.blocking_recv() {
            if let Err(error) = file.write_at(at, &part) {
                // What came before it is whole.
                self.checkpoint(file.as_ref(), at)?;
                return Err(error.into());
            }
            at += part.len() as u64;
            if at - durable >= CHECKPOINT_BYTES || synced.elapsed() >= CHECKPOINT_EVERY {
                self.checkpoint(file.as_ref(), at)?;
                (durable, synced) = (at, Instant::now());
                if self.disk.free_bytes()? < self.floor_bytes {
                    return Err(SpoolError::DiskFull);
                }
            }
        }
        self.checkpoint(file.as_ref(), at)
    }

    /// The bytes first, then the offset that names them; only then anybody hears of it.
    fn checkpoint(&self, file: &dyn DiskFile, at: u64) -> Result<(), SpoolError> {
        let mut facts = lock(&self.upload.facts).clone();
        if facts.offset == at {
            return Ok(());
        }
        file.sync()?;
        facts.offset = at;
        facts.touched_ms = unix_ms();
        state::write(self.disk.as_ref(), &self.upload.id, &self.upload.head, &facts)?;
        *lock(&self.upload.facts) = facts;
        Ok(())
    }
}
