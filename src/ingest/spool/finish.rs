//! An upload that is whole becomes an ordinary one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;

use crate::ingest::assemble::unix_ms;
use crate::ingest::{Ingest, IngestError, SkyFile, SkyOptions, SkyPart, hold_blocking};
use crate::tree::skyfile::{UploadSaid, UploadShape};

use super::disk::Disk;
use super::state::{self, path_of};
use super::{
    DONE_KEPT_MAX, Done, FinishError, Inner, LOOK_EVERY_MAX, REST_MAX, SpoolError, Upload, UploadId, clear, drop_data, lock,
};

/// Read from the disk at once.
const READ_BYTES: usize = 1 << 20;
/// Pieces read ahead of who takes them.
const READ_AHEAD: usize = 4;
/// Time between two looks whether the catalog is complete after a start.
const CATALOG_LOOK_EVERY: Duration = Duration::from_millis(100);

/// What an upload becomes a skyfile with.
#[derive(Clone, Debug)]
pub struct SpooledFile {
    pub owner: String,
    pub filename: String,
    pub content_type: Option<String>,
    pub length: u64,
    /// The same for each try of one upload.
    pub idempotency_key: String,
    pub tried: Tried,
}

/// Has a process before this one tried to store it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    Never,
    Perhaps,
}

/// The bytes of an upload, from the disk.
pub type ContentStream = BoxStream<'static, io::Result<Bytes>>;

/// Stores a file that is whole: the ordinary way of uploads, or in tests something that remembers.
#[async_trait]
pub trait Encode: Send + Sync + 'static {
    async fn encode(&self, file: SpooledFile, content: ContentStream) -> Result<Done, IngestError>;
}

/// A finish under way; all who wait hear the same.
pub type Finishing = Shared<BoxFuture<'static, Result<Done, FinishError>>>;

/// Stores the upload, or waits for whoever does.
pub async fn wait(inner: &Arc<Inner>, upload: &Arc<Upload>) -> Result<Done, SpoolError> {
    let done = lock(&upload.facts).done.clone();
    match done {
        Some(done) => Ok(done),
        None => Ok(start(inner, upload).await?),
    }
}

/// Begins to store an upload that is whole, if nobody has.
pub fn start(inner: &Arc<Inner>, upload: &Arc<Upload>) -> Finishing {
    let mut finishing = lock(&upload.finishing);
    if let Some(running) = finishing.as_ref() {
        return running.clone();
    }
    let (spool, whole) = (inner.clone(), upload.clone());
    let task = inner.tasks.spawn(async move {
        let stop = spool.stop.clone();
        let outcome = stop.run_until_cancelled(finish(&spool, &whole)).await.unwrap_or(Err(FinishError::Stopping));
        if let Err(error) = &outcome {
            tracing::warn!(id = %whole.id, %error, "an upload that is whole could not be stored: it is tried again");
            let failures = whole.failures.fetch_add(1, Ordering::SeqCst).min(16);
            *lock(&whole.rest_until) = Some(Instant::now() + (LOOK_EVERY_MAX * (1 << failures)).min(REST_MAX));
        }
        // Whoever comes now finds it done, or tries again.
        *lock(&whole.finishing) = None;
        outcome
    });
    let running = task.map(|ended| ended.unwrap_or(Err(FinishError::Stopping))).boxed().shared();
    *finishing = Some(running.clone());
    running
}

async fn finish(inner: &Arc<Inner>, upload: &Arc<Upload>) -> Result<Done, FinishError> {
    // Done by the one before, between a look and this.
    if let Some(done) = lock(&upload.facts).done.clone() {
        return Ok(done);
    }
    let _place = inner.finishes.acquire().await.expect("the semaphore is never closed");
    let head = &upload.head;
    let file = SpooledFile {
        owner: head.owner.clone(),
        filename: head.filename.clone(),
        content_type: head.content_type.clone(),
        length: head.length,
        idempotency_key: format!("tus/{}", upload.id),
        tried: upload.tried,
    };
    let sources = match head.kind.parts() {
        [] => vec![(upload.id, head.length)],
        parts => {
            let table = lock(&inner.table);
            parts.iter().filter_map(|id| table.uploads.get(id).map(|part| (*id, part.head.length))).collect()
        }
    };
    // Parts cannot go before their file, so this holds unless the disk lost one.
    if sources.iter().map(|(_, length)| length).sum::<u64>() != head.length {
        return Err(FinishError::Io(Arc::new(io::Error::other("a part of the upload is lost"))));
    }
    let content = read_back(inner.disk.clone(), sources);
    let done = inner.encode.encode(file, content).await.map_err(|error| FinishError::Ingest(Arc::new(error)))?;
    record(inner, upload, done.clone()).await.map_err(|error| FinishError::Io(Arc::new(error)))?;
    Ok(done)
}

/// First what the upload became is durable; then its bytes go.
async fn record(inner: &Arc<Inner>, upload: &Arc<Upload>, done: Done) -> io::Result<()> {
    let _turn = upload.writing.clone().lock_owned().await;
    let (disk, whole) = (inner.disk.clone(), upload.clone());
    hold_blocking(move || {
        let mut facts = lock(&whole.facts).clone();
        facts.offset = whole.head.length;
        facts.touched_ms = unix_ms();
        facts.done = Some(done);
        state::write(disk.as_ref(), &whole.id, &whole.head, &facts)?;
        *lock(&whole.facts) = facts;
        Ok::<(), io::Error>(())
    })
    .await?;
    let (spool, whole) = (inner.clone(), upload.clone());
    hold_blocking(move || tidy(&spool, &whole)).await;
    Ok(())
}

/// Removes what is needed no more. What cannot be removed now goes at the next start.
fn tidy(inner: &Inner, upload: &Upload) {
    let warn = |removed: io::Result<()>, id: UploadId| {
        if let Err(error) = removed {
            tracing::warn!(%id, %error, "the bytes of an upload that is stored could not be removed");
        }
    };
    warn(drop_data(inner.disk.as_ref(), &upload.id), upload.id);
    for id in upload.head.kind.parts() {
        let part = lock(&inner.table).uploads.get(id).cloned();
        if let Some(part) = part {
            inner.forget(&part);
            warn(clear(inner.disk.as_ref(), id), *id);
        }
    }
    let mut kept: Vec<(u64, Arc<Upload>)> = Vec::new();
    for other in inner.all() {
        let facts = lock(&other.facts).clone();
        if facts.done.is_some() {
            kept.push((facts.touched_ms, other));
        }
    }
    kept.sort_by_key(|(touched_ms, _)| *touched_ms);
    let surplus = kept.len().saturating_sub(DONE_KEPT_MAX);
    for (_, oldest) in kept.into_iter().take(surplus) {
        inner.forget(&oldest);
        warn(clear(inner.disk.as_ref(), &oldest.id), oldest.id);
    }
}

#[async_trait]
impl Encode for Ingest {
    async fn encode(&self, file: SpooledFile, content: ContentStream) -> Result<Done, IngestError> {
        // Only a catalog that is complete knows whether an earlier process came as far as the pin.
        while file.tried == Tried::Perhaps && !self.store.status()?.catalog_complete {
            tokio::time::sleep(CATALOG_LOOK_EVERY).await;
        }
        let head = SkyFile { path: file.filename, content_type: file.content_type, ..SkyFile::default() };
        let bytes = content.map(|piece| piece.map(SkyPart::Bytes).map_err(|error| IngestError::Body(error.to_string())));
        let parts = stream::iter([Ok(SkyPart::File(head))]).chain(bytes);
        let said = UploadSaid { shape: UploadShape::Resumable, ..UploadSaid::default() };
        let idempotency_key = Some(file.idempotency_key);
        let report = self.skyfile(parts, SkyOptions { owner: file.owner, said, idempotency_key, ..SkyOptions::default() }).await?;
        Ok(Done { skylink: report.skylink.to_string(), cid: report.cid.to_string() })
    }
}

/// The bytes of these uploads one after the other, read on a thread of their own while they are taken.
fn read_back(disk: Arc<dyn Disk>, sources: Vec<(UploadId, u64)>) -> ContentStream {
    let (pieces, mut read) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        for (id, length) in sources {
            let Ok(()) = read_one(disk.as_ref(), &id, length, &pieces) else { return };
        }
    });
    stream::poll_fn(move |context| read.poll_recv(context)).boxed()
}

/// Nobody takes the bytes any more, or they cannot be read.
struct Ended;

fn read_one(disk: &dyn Disk, id: &UploadId, length: u64, pieces: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), Ended> {
    let tell = |piece: io::Result<Bytes>| {
        let failed = piece.is_err();
        let sent = pieces.blocking_send(piece);
        if failed || sent.is_err() { Err(Ended) } else { Ok(()) }
    };
    let file = match disk.open(&path_of(id, "data")) {
        Ok(file) => file,
        Err(error) => return tell(Err(error)),
    };
    let mut at = 0;
    while at < length {
        let mut buffer = vec![0; usize::try_from(length - at).unwrap_or(usize::MAX).min(READ_BYTES)];
        match file.read_at(at, &mut buffer) {
            Ok(count) if count == buffer.len() => {}
            Ok(_) => return tell(Err(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => return tell(Err(error)),
        }
        at += buffer.len() as u64;
        tell(Ok(buffer.into()))?;
    }
    Ok(())
}
