//! Uploads that come in pieces: kept on this node until the last byte is in, then stored as one.
//!
//! What it does: keeps each upload's bytes in a file of its own, tells an offset only once all before it is durable, goes
//! on where a broken connection or a killed process left off, puts parts together, and when an upload is whole reads it
//! back into an ordinary upload ([`Encode`]). After that the bytes here are removed, and what the upload became is told
//! until it expires.
//!
//! What it hides: files, syncs, who writes at the moment. What it must never know: HTTP, how clients say things.
//!
//! **One writer.** Whoever asks last has the upload: a writer that still holds it (mostly of a connection that is dead and
//! does not know it yet) is told to stop, keeps durably what it has received, and only then the next one begins. Bytes of
//! two requests are never mixed, and a client that comes back need not wait for a time-out. The alternative, to refuse the
//! second one while the first lives, keeps clients waiting for as long as a dead connection takes to be noticed.
//!
//! **Order on the disk.** Bytes, sync, then a state file that names the new offset (written beside the old one, synced,
//! renamed, folder synced), then the answer. At a start bytes beyond the named offset are cut off. When an upload is
//! removed its state goes first: a folder without one is a left-over.
//!
//! **Finishing** happens once at a time for each upload, in a task that no connection owns; who waits for it may leave and
//! come back. It is begun by the request that brings the last byte, by whoever asks for the upload's state later, and by
//! the upkeep, which also finds what a kill left unfinished. It carries an idempotency key made of the upload's name, so
//! that a pin that was committed before the kill is found again.
//!
//! Limits: [`SpoolOptions`], [`CLIENT_UPLOADS_SHARE`], [`PARTS_MAX`], [`UPLOAD_METADATA_BYTES_MAX`], [`DONE_KEPT_MAX`], [`ENDED_REMEMBERED_MAX`],
//! [`TURN_WAIT_MAX`], [`FINISH_WAIT_MAX`], [`FINISHES_AT_ONCE_MAX`], `writing::CHECKPOINT_BYTES`.

mod disk;
mod finish;
#[cfg(test)]
mod simdisk;
mod state;
#[cfg(test)]
mod tests;
mod writing;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::tree::skyfile::{UploadFile, UploadSaid, UploadShape};

use self::disk::{Disk, RealDisk};
use self::state::{Facts, Found, Head, path_of};
use super::assemble::unix_ms;
use super::{CONTENT_TYPE_BYTES_MAX, IngestError, SKY_PATH_BYTES_MAX, hold_blocking};

pub use self::finish::{ContentStream, Encode, SpooledFile, Tried};
pub use self::state::{BadUploadId, Done, Kind, UploadId};

/// Parts of one file. Clients send a few at once; each takes a row in the state file and a look at its own.
pub const PARTS_MAX: usize = 128;
/// What a client may say about a file: its name, its type and some more. Kept in memory with each upload.
pub const UPLOAD_METADATA_BYTES_MAX: usize = 8 << 10;
/// Finished uploads that are still told: about 2 KiB each. The oldest makes room.
pub const DONE_KEPT_MAX: usize = 10_000;
/// Names of uploads that are gone, so that they can be told from those that never were.
pub const ENDED_REMEMBERED_MAX: usize = 4096;
/// One client of so many may have as many uploads open as it likes, and others still find room.
pub const CLIENT_UPLOADS_SHARE: usize = 4;
/// How long a request waits for the one before it to let go: as long as a slow disk takes to sync.
pub const TURN_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long somebody who asks for an upload's state waits for it to be finished: shorter than HTTP's own time-out.
pub const FINISH_WAIT_MAX: Duration = Duration::from_secs(80);
/// Uploads that are read back and stored at once: a part of what the room takes, so that others are taken, too.
pub const FINISHES_AT_ONCE_MAX: usize = 8;
/// Time between two looks for what has expired or is unfinished, if the lifetime is not short.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60);
/// Longest rest between two tries of the upkeep to store an upload.
const REST_MAX: Duration = Duration::from_secs(3600);
const LOOK_EVERY_MIN: Duration = Duration::from_millis(200);

/// The configured limits.
#[derive(Clone, Copy, Debug)]
pub struct SpoolOptions {
    /// Of all uploads together, counted as announced: what was begun can be ended.
    pub bytes_max: u64,
    /// Free bytes of the file system that are left alone.
    pub free_floor_bytes: u64,
    /// An upload of which nothing came for so long is removed; one that is finished is told for so long.
    pub lifetime: Duration,
    /// Uploads that are not finished.
    pub uploads_max: usize,
    /// Of one client that is counted: of its uploads together, announced bytes. It never has more than a
    /// [`CLIENT_UPLOADS_SHARE`]th of the number of uploads either.
    pub client_bytes_max: u64,
}

/// Why something cannot be done with an upload.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("there is no such upload")]
    Unknown,
    #[error("the upload has expired or was removed")]
    Gone,
    #[error("the upload is at byte {have}, not at byte {asked}")]
    WrongOffset { have: u64, asked: u64 },
    #[error("more bytes than announced, or than are taken here: at most {max}")]
    TooLong { max: u64 },
    /// Others' uploads fill the spool; they end.
    #[error("the space for uploads under way is taken")]
    Full,
    #[error("the disk for uploads under way is full")]
    DiskFull,
    #[error("as many uploads are open as this gateway takes")]
    TooMany,
    /// This client's own uploads fill what one client may have.
    #[error("your uploads under way have all the space that one client may have: end some of them, or remove them")]
    ClientFull,
    /// Another request has it, or it is being stored.
    #[error("the upload is in use")]
    Busy,
    #[error("the upload is made of parts: it takes no bytes itself")]
    IsJoined,
    #[error("{0}")]
    Bad(String),
    #[error("the upload broke off")]
    Cut,
    #[error("the upload stood still for too long")]
    Stalled,
    #[error("the upload is whole, but could not be stored yet: {0}")]
    Unfinished(#[from] FinishError),
    #[error("the disk for uploads under way failed: {0}")]
    Io(io::Error),
}

/// Why an upload that is whole was not stored. All who wait for it hear it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FinishError {
    #[error("{0}")]
    Ingest(Arc<IngestError>),
    #[error("the disk for uploads under way failed: {0}")]
    Io(Arc<io::Error>),
    #[error("the gateway is stopping")]
    Stopping,
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> SpoolError {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if full { SpoolError::DiskFull } else { SpoolError::Io(error) }
    }
}

/// A new upload.
#[derive(Clone, Debug)]
pub struct NewUpload {
    pub owner: String,
    /// Whose space it takes; `None` where nobody counts. Not the owner: strangers are one owner, and many clients.
    pub client: Option<String>,
    /// As it was said; at most [`UPLOAD_METADATA_BYTES_MAX`].
    pub metadata: String,
    pub filename: String,
    pub content_type: Option<String>,
}

/// How an upload stands.
#[derive(Clone, Debug)]
pub struct UploadStatus {
    pub id: UploadId,
    pub kind: Kind,
    pub length: u64,
    pub offset: u64,
    pub metadata: String,
    /// Unix time, milliseconds.
    pub expires_ms: u64,
    pub done: Option<Done>,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    options: SpoolOptions,
    encode: Arc<dyn Encode>,
    table: Mutex<Table>,
    finishes: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct Table {
    uploads: HashMap<UploadId, Arc<Upload>>,
    /// The last ones that were removed, oldest first.
    ended: VecDeque<UploadId>,
}

struct Upload {
    id: UploadId,
    head: Head,
    /// As they stand on the disk.
    facts: Mutex<Facts>,
    /// Counts who has asked to write: the last one may.
    turn: watch::Sender<u64>,
    writing: Arc<AsyncMutex<()>>,
    finishing: Mutex<Option<finish::Finishing>>,
    /// After a failure the upkeep waits longer each time: a large file is read and encoded whole for each try.
    rest_until: Mutex<Option<Instant>>,
    failures: AtomicU32,
    ended: AtomicBool,
    /// An upload that was found at the start may have been stored before.
    tried: Tried,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("options", &self.0.options).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic under this lock")
}

impl Spool {
    /// Opens the spool in `folder` and puts right what a kill left there. Blocks on the disk.
    pub fn open(
        folder: &Path,
        options: SpoolOptions,
        encode: Arc<dyn Encode>,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> io::Result<Spool> {
        Spool::on(Arc::new(RealDisk::open_folder(folder)?), options, encode, (tasks, stop))
    }

    fn on(
        disk: Arc<dyn Disk>,
        options: SpoolOptions,
        encode: Arc<dyn Encode>,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> io::Result<Spool> {
        let table = Table { uploads: load(disk.as_ref())?, ended: VecDeque::new() };
        Ok(Spool(Arc::new(Inner {
            disk,
            options,
            encode,
            table: Mutex::new(table),
            finishes: Semaphore::new(FINISHES_AT_ONCE_MAX),
            tasks: tasks.clone(),
            stop: stop.clone(),
        })))
    }

    /// Looks now and then for what has expired and for what is whole and not stored, until the node stops.
    pub fn start_upkeep(&self) {
        let spool = self.clone();
        let every = (self.0.options.lifetime / 4).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
        self.0.tasks.spawn(async move {
            let stop = spool.0.stop.clone();
            let upkeep = async {
                loop {
                    spool.look().await;
                    tokio::time::sleep(every).await;
                }
            };
            stop.run_until_cancelled(upkeep).await;
        });
    }

    async fn look(&self) {
        for upload in self.0.all() {
            if self.0.is_expired(&upload) {
                if let Err(error) = self.0.clone().end(upload, Ending::Expired).await {
                    tracing::warn!(%error, "an upload that has expired could not be removed");
                }
            } else if upload.wants_finish() && lock(&upload.rest_until).is_none_or(|until| until <= Instant::now()) {
                // Its failures are told where it runs.
                drop(finish::start(&self.0, &upload));
            }
        }
    }

    /// The longest upload that is taken.
    pub fn bytes_max(&self) -> u64 {
        self.0.options.bytes_max
    }

    /// Begins an upload of `length` bytes; it is durable when this returns. One without bytes is stored at once.
    pub async fn create(&self, new: NewUpload, length: u64, kind: Kind) -> Result<UploadStatus, SpoolError> {
        assert!(!matches!(kind, Kind::Joined { .. }), "those are joined");
        let counted = new.client.as_ref().map_or(u64::MAX, |_| self.0.options.client_bytes_max);
        let max = self.0.options.bytes_max.min(counted);
        if length > max {
            return Err(SpoolError::TooLong { max });
        }
        let upload = self.begin(new, length, kind, |_| Ok(())).await?;
        if upload.wants_finish() {
            finish::wait(&self.0, &upload).await?;
        }
        Ok(self.0.status_of(&upload))
    }

    /// Puts parts of this owner together, and returns when they are stored. Asked again for the same, it is the same upload.
    pub async fn join(&self, new: NewUpload, parts: Vec<UploadId>, said: String) -> Result<UploadStatus, SpoolError> {
        if parts.is_empty() || parts.len() > PARTS_MAX {
            return Err(SpoolError::Bad(format!("a file is put together of 1 to {PARTS_MAX} parts, not of {}", parts.len())));
        }
        let upload = match self.0.joined_before(&new, &parts)? {
            Some(upload) => upload,
            None => {
                let length = self.0.length_of_parts(&new.owner, &parts)?;
                let wanted = parts.clone();
                let unclaimed = move |table: &Table| {
                    let taken = table.claims().any(|(_, part)| wanted.contains(&part));
                    if taken { Err(SpoolError::Bad("a part belongs to another file already".to_owned())) } else { Ok(()) }
                };
                self.begin(new, length, Kind::Joined { parts, said }, unclaimed).await?
            }
        };
        finish::wait(&self.0, &upload).await?;
        Ok(self.0.status_of(&upload))
    }

    /// Bytes of a file that is put together of these, if it may be.
    pub fn length_of_parts(&self, owner: &str, parts: &[UploadId]) -> Result<u64, SpoolError> {
        self.0.length_of_parts(owner, parts)
    }

    /// Takes bytes from `offset` on. Returns when they are durable and, if they were the last ones, when the upload is
    /// stored. What has come before an error is kept.
    pub async fn append<B, E>(
        &self,
        (id, owner): (&UploadId, &str),
        offset: u64,
        announced: Option<u64>,
        body: B,
    ) -> Result<UploadStatus, SpoolError>
    where
        B: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: fmt::Display,
    {
        let upload = self.0.owned(id, owner)?;
        if matches!(upload.head.kind, Kind::Joined { .. }) {
            return Err(SpoolError::IsJoined);
        }
        if announced.is_some_and(|announced| announced > upload.head.length.saturating_sub(offset)) {
            return Err(SpoolError::TooLong { max: upload.head.length });
        }
        if upload.is_whole() {
            upload.check_offset(offset)?;
        } else {
            let turn = upload.take().await?;
            upload.check_offset(offset)?;
            writing::receive(&self.0, &upload, turn, body).await?;
        }
        if upload.wants_finish() {
            finish::wait(&self.0, &upload).await?;
        }
        Ok(self.0.status_of(&upload))
    }

    /// How an upload stands. Stops whoever writes to it, so that the offset is the last one; waits for an upload that is
    /// whole to be stored.
    pub async fn status(&self, id: &UploadId) -> Result<UploadStatus, SpoolError> {
        let upload = self.0.get(id)?;
        if !upload.is_whole() {
            drop(upload.take().await?);
        }
        // The one that was stopped may have brought the last byte.
        if upload.wants_finish() {
            tokio::time::timeout(FINISH_WAIT_MAX, finish::wait(&self.0, &upload)).await.map_err(|_| SpoolError::Busy)??;
        }
        Ok(self.0.status_of(&upload))
    }

    /// How an upload stands, without disturbing anybody.
    pub fn look_at(&self, id: &UploadId) -> Result<UploadStatus, SpoolError> {
        let upload = self.0.get(id)?;
        Ok(self.0.status_of(&upload))
    }

    /// Removes an upload and its bytes here. What has been stored of it stays.
    pub async fn remove(&self, id: &UploadId, owner: &str) -> Result<(), SpoolError> {
        let upload = self.0.owned(id, owner)?;
        if lock(&self.0.table).claims().any(|(_, part)| part == *id) || upload.is_finishing() {
            return Err(SpoolError::Busy);
        }
        self.0.clone().end(upload, Ending::Asked).await
    }

    /// Checks what can be checked before the first byte, takes a place in the table, then writes.
    async fn begin(
        &self,
        new: NewUpload,
        length: u64,
        kind: Kind,
        allowed: impl FnOnce(&Table) -> Result<(), SpoolError>,
    ) -> Result<Arc<Upload>, SpoolError> {
        check_names(&new, length)?;
        let now = unix_ms();
        let NewUpload { owner, client, metadata, filename, content_type } = new;
        let head = Head { owner, client, kind, length, metadata, filename, content_type, created_ms: now };
        let upload = Arc::new(Upload::new(UploadId::random(), head, Facts { touched_ms: now, ..Facts::default() }, Tried::Never));
        // Nobody else comes before its files are there.
        let turn = upload.take().await?;
        self.0.enter(&upload, allowed).await?;
        let (inner, begun) = (self.0.clone(), upload.clone());
        hold_blocking(move || {
            let made = make(inner.disk.as_ref(), &begun);
            if made.is_err() {
                begun.ended.store(true, Ordering::SeqCst);
                lock(&inner.table).uploads.remove(&begun.id);
            }
            drop(turn);
            made
        })
        .await?;
        Ok(upload)
    }
}

/// Would this be a skyfile? Better told now than after the last byte.
fn check_names(new: &NewUpload, length: u64) -> Result<(), SpoolError> {
    assert!(new.metadata.len() <= UPLOAD_METADATA_BYTES_MAX, "checked where it is read");
    if new.filename.len() > SKY_PATH_BYTES_MAX || new.content_type.as_ref().is_some_and(|kind| kind.len() > CONTENT_TYPE_BYTES_MAX)
    {
        let limits = format!("a file's name has at most {SKY_PATH_BYTES_MAX} bytes, its content type {CONTENT_TYPE_BYTES_MAX}");
        return Err(SpoolError::Bad(limits));
    }
    let file = UploadFile { path: new.filename.clone(), len_bytes: length, mode: 0, content_type: new.content_type.clone() };
    let said = UploadSaid { shape: UploadShape::Resumable, ..UploadSaid::default() };
    said.metadata(&[file]).map(|_| ()).map_err(|error| SpoolError::Bad(error.to_string()))
}

fn make(disk: &dyn Disk, upload: &Upload) -> io::Result<()> {
    let made = (|| {
        disk.make_folder(&upload.id.to_string())?;
        if upload.has_bytes() {
            disk.create(&path_of(&upload.id, "data"))?.sync()?;
        }
        state::write(disk, &upload.id, &upload.head, &lock(&upload.facts).clone())?;
        disk.sync_folder("")
    })();
    if made.is_err() {
        // As far as it goes; the next start removes what is left.
        let _ = clear(disk, &upload.id);
    }
    made
}

/// Removes what stands in an upload's folder, the state first, and the folder.
fn clear(disk: &dyn Disk, id: &UploadId) -> io::Result<()> {
    let folder = id.to_string();
    match disk.unlink(&path_of(id, "state")) {
        // Until this is durable a crash brings the upload back: then its bytes must be there.
        Ok(()) => disk.sync_folder(&folder)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let names = match disk.names(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names {
        disk.unlink(&path_of(id, &name))?;
    }
    disk.remove_folder(&folder)
}

/// Removes the bytes of an upload that is stored.
fn drop_data(disk: &dyn Disk, id: &UploadId) -> io::Result<()> {
    match disk.unlink(&path_of(id, "data")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads all uploads, cuts off what no offset names, removes left-overs.
fn load(disk: &dyn Disk) -> io::Result<HashMap<UploadId, Arc<Upload>>> {
    let mut uploads = HashMap::new();
    disk.sync_folder("")?;
    for name in disk.names("")? {
        let Ok(id) = name.parse::<UploadId>() else { continue };
        match state::read(disk, &id)? {
            Found::State(head, facts) => {
                let upload = Upload::new(id, *head, facts, Tried::Perhaps);
                put_right(disk, &upload)?;
                uploads.insert(id, Arc::new(upload));
            }
            Found::Nothing => clear(disk, &id)?,
            Found::Newer(version) => {
                tracing::warn!(%id, version, "an upload under way was written by a newer program, and is left alone");
            }
            Found::Damaged(why) => {
                tracing::warn!(%id, why, "the state of an upload under way cannot be read: it is removed");
                clear(disk, &id)?;
            }
        }
    }
    // A crash after a file was put together, and before its parts were removed.
    let stored = |upload: &&Arc<Upload>| lock(&upload.facts).done.is_some();
    let spent: Vec<UploadId> = uploads.values().filter(stored).flat_map(|upload| upload.head.kind.parts().to_vec()).collect();
    for id in spent {
        if uploads.remove(&id).is_some() {
            clear(disk, &id)?;
        }
    }
    Ok(uploads)
}

fn put_right(disk: &dyn Disk, upload: &Upload) -> io::Result<()> {
    // A kill may have come between the rename of the state and its sync: what is told from now on must be durable.
    disk.sync_folder(&upload.id.to_string())?;
    let mut facts = lock(&upload.facts);
    if facts.done.is_some() {
        return drop_data(disk, &upload.id);
    }
    if !upload.has_bytes() {
        return Ok(());
    }
    let file = match disk.open(&path_of(&upload.id, "data")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(&path_of(&upload.id, "data"))?,
        Err(error) => return Err(error),
    };
    let length = file.length()?;
    if length > facts.offset {
        file.truncate(facts.offset)?;
    } else if length < facts.offset {
        tracing::warn!(id = %upload.id, offset = facts.offset, length, "an upload under way has lost bytes: it goes on before them");
        facts.offset = length;
    }
    Ok(())
}

/// Why an upload is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Asked,
    Expired,
}

impl Inner {
    fn all(&self) -> Vec<Arc<Upload>> {
        lock(&self.table).uploads.values().cloned().collect()
    }

    fn get(&self, id: &UploadId) -> Result<Arc<Upload>, SpoolError> {
        let table = lock(&self.table);
        let Some(upload) = table.uploads.get(id).cloned() else {
            return Err(if table.ended.contains(id) { SpoolError::Gone } else { SpoolError::Unknown });
        };
        drop(table);
        if self.is_expired(&upload) { Err(SpoolError::Gone) } else { Ok(upload) }
    }

    /// Whoever did not begin it is told that it is not there.
    fn owned(&self, id: &UploadId, owner: &str) -> Result<Arc<Upload>, SpoolError> {
        self.get(id).and_then(|upload| if upload.head.owner == owner { Ok(upload) } else { Err(SpoolError::Unknown) })
    }

    fn status_of(&self, upload: &Upload) -> UploadStatus {
        let facts = lock(&upload.facts).clone();
        UploadStatus {
            id: upload.id,
            kind: upload.head.kind.clone(),
            length: upload.head.length,
            offset: facts.offset,
            metadata: upload.head.metadata.clone(),
            expires_ms: self.expires_ms(&facts),
            done: facts.done,
        }
    }

    fn expires_ms(&self, facts: &Facts) -> u64 {
        facts.touched_ms.saturating_add(u64::try_from(self.options.lifetime.as_millis()).unwrap_or(u64::MAX))
    }

    /// Nothing expires while it is written or stored, and no part before its file.
    fn is_expired(&self, upload: &Upload) -> bool {
        let facts = lock(&upload.facts).clone();
        if unix_ms() < self.expires_ms(&facts) || upload.is_finishing() || upload.writing.try_lock().is_err() {
            return false;
        }
        !lock(&self.table).claims().any(|(_, part)| part == upload.id)
    }

    /// The upload that these parts were put together in by an earlier request with the same words.
    fn joined_before(&self, new: &NewUpload, parts: &[UploadId]) -> Result<Option<Arc<Upload>>, SpoolError> {
        let same = |upload: &Arc<Upload>| {
            let head = &upload.head;
            !parts.is_empty() && head.kind.parts() == parts && head.owner == new.owner && head.metadata == new.metadata
        };
        let found = lock(&self.table).uploads.values().find(|upload| same(upload)).cloned();
        Ok(found.filter(|upload| !self.is_expired(upload)))
    }

    fn length_of_parts(&self, owner: &str, parts: &[UploadId]) -> Result<u64, SpoolError> {
        let mut length = 0u64;
        for (index, id) in parts.iter().enumerate() {
            let bad = |why: &str| SpoolError::Bad(format!("part {} {why}", index + 1));
            let part = self.owned(id, owner).map_err(|_| bad("is not an upload of yours"))?;
            if part.head.kind != Kind::Part {
                return Err(bad("was not begun as a part"));
            }
            if !part.is_whole() {
                return Err(bad("is not whole yet"));
            }
            if parts[..index].contains(id) {
                return Err(bad("was named before"));
            }
            length = length.saturating_add(part.head.length);
        }
        if length > self.options.bytes_max {
            return Err(SpoolError::TooLong { max: self.options.bytes_max });
        }
        Ok(length)
    }

    /// Takes a place for a new upload, if there is one.
    async fn enter(&self, upload: &Arc<Upload>, allowed: impl FnOnce(&Table) -> Result<(), SpoolError>) -> Result<(), SpoolError> {
        let disk = self.disk.clone();
        let free_bytes = hold_blocking(move || disk.free_bytes()).await?;
        let mut table = lock(&self.table);
        allowed(&table)?;
        let (mut open, mut announced, mut to_come) = (0, 0u64, 0u64);
        let (mut open_here, mut announced_here) = (0, 0u64);
        for other in table.uploads.values().filter(|other| lock(&other.facts).done.is_none()) {
            let same = u64::from(upload.head.client.is_some() && other.head.client == upload.head.client);
            open += 1;
            open_here += same as usize;
            if other.has_bytes() {
                announced += other.head.length;
                announced_here += same * other.head.length;
                to_come += other.head.length - lock(&other.facts).offset;
            }
        }
        if open >= self.options.uploads_max {
            return Err(SpoolError::TooMany);
        }
        let counted = upload.head.client.is_some();
        // Parts are put together even so: that is how their room gets free.
        if counted && upload.has_bytes() && open_here >= self.options.uploads_max.div_ceil(CLIENT_UPLOADS_SHARE) {
            return Err(SpoolError::ClientFull);
        }
        if upload.has_bytes() {
            let more = upload.head.length;
            if counted && announced_here.saturating_add(more) > self.options.client_bytes_max {
                return Err(SpoolError::ClientFull);
            }
            if announced.saturating_add(more) > self.options.bytes_max {
                return Err(SpoolError::Full);
            }
            if to_come.saturating_add(more).saturating_add(self.options.free_floor_bytes) > free_bytes {
                return Err(SpoolError::DiskFull);
            }
        }
        table.uploads.insert(upload.id, upload.clone());
        Ok(())
    }

    /// Removes an upload: first for everybody, then from the disk.
    async fn end(self: Arc<Self>, upload: Arc<Upload>, why: Ending) -> Result<(), SpoolError> {
        let turn = upload.take().await?;
        if why == Ending::Expired && unix_ms() < self.expires_ms(&lock(&upload.facts)) {
            return Ok(());
        }
        self.forget(&upload);
        let disk = self.disk.clone();
        hold_blocking(move || {
            let cleared = clear(disk.as_ref(), &upload.id);
            drop(turn);
            cleared
        })
        .await?;
        Ok(())
    }

    fn forget(&self, upload: &Upload) {
        upload.ended.store(true, Ordering::SeqCst);
        let mut table = lock(&self.table);
        table.uploads.remove(&upload.id);
        table.ended.push_back(upload.id);
        if table.ended.len() > ENDED_REMEMBERED_MAX {
            table.ended.pop_front();
        }
    }
}

impl Table {
    /// Files that are put together and not stored yet, with each of their parts.
    fn claims(&self) -> impl Iterator<Item = (UploadId, UploadId)> {
        let open =
            self.uploads.values().filter(|upload| !upload.head.kind.parts().is_empty() && lock(&upload.facts).done.is_none());
        open.flat_map(|upload| upload.head.kind.parts().iter().map(|part| (upload.id, *part)))
    }
}

impl Kind {
    fn parts(&self) -> &[UploadId] {
        match self {
            Kind::Joined { parts, .. } => parts,
            Kind::Whole | Kind::Part => &[],
        }
    }
}

impl Upload {
    fn new(id: UploadId, head: Head, facts: Facts, tried: Tried) -> Upload {
        Upload {
            id,
            head,
            facts: Mutex::new(facts),
            turn: watch::Sender::new(0),
            writing: Arc::default(),
            finishing: Mutex::default(),
            rest_until: Mutex::default(),
            failures: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            tried,
        }
    }

    /// Does it have bytes of its own?
    fn has_bytes(&self) -> bool {
        !matches!(self.head.kind, Kind::Joined { .. })
    }

    /// Have all bytes come?
    fn is_whole(&self) -> bool {
        !self.has_bytes() || lock(&self.facts).offset == self.head.length
    }

    /// Is it whole and not stored yet? Parts are stored with their file.
    fn wants_finish(&self) -> bool {
        self.head.kind != Kind::Part && self.is_whole() && lock(&self.facts).done.is_none()
    }

    fn is_finishing(&self) -> bool {
        lock(&self.finishing).is_some()
    }

    fn check_offset(&self, asked: u64) -> Result<(), SpoolError> {
        let have = lock(&self.facts).offset;
        if have == asked { Ok(()) } else { Err(SpoolError::WrongOffset { have, asked }) }
    }
}
