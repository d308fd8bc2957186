//! A folder of this machine as a storage host.
//!
//! **Does**: keeps named objects durably and answers ranges of them, behind the `object_store` trait. Objects longer than
//! [`SMALL_BYTES_MAX`] are files, written past the page cache into a temporary file, synced, renamed, their folder synced. Shorter
//! ones go into an append-only log with group commit (`docs/formats.md` 4), and become files in the background. An answer to a put or a
//! removal means: it survives a crash now. That an object is there already is never taken for that: it is written anew.
//!
//! **Hides**: the log, its index, compaction, direct writes, threads. One writer thread a folder changes what keys mean (`writer.rs`),
//! so nothing races; reads are done at once if the page cache has the bytes, else they are one blocking job each, at most
//! [`READ_JOBS`] at a time, so that a disk that hangs cannot take the runtime's blocking threads from others. All disk access goes through a small door (`disk.rs`) with a simulated, forgetting twin in the tests.
//!
//! **Must never know**: what the bytes are, sectors, records, other hosts.
//!
//! **Rules**: only keys of the known grammar (`key.rs`). Only a folder with its marker is opened, and nothing is made in one without it but the
//! marker itself. The folder is held open and locked: a mount or unmount over its path cannot make it write elsewhere; the next look at
//! the marker notices it and opens anew. Below the free-space floor puts fail with [`FolderError::Full`]; reads, removals, and, down
//! to a part of the floor, records (removing a pin is writing one) go on.
//! Opening happens at the first use, never at construction, so a hung disk holds up nobody's start.
//!
//! **Words**: *segment* = one file of the log. *entry* = one line of it. *compaction* = making files of a segment's live entries, then removing it.

mod disk;
mod files;
mod index;
mod key;
mod log;
mod open;
#[cfg(test)]
pub(crate) mod simdisk;
mod space;
#[cfg(test)]
mod tests;
mod walk;
mod write;
mod writer;

use std::{
    borrow::Cow,
    fmt,
    io::{self, ErrorKind},
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::host::{Begun, Near, Peeked, PutDone};
use disk::{Access, Disk, DiskFile, EntryKind, Writing};
use files::Names;
use index::{Beside, Slot};
use key::{check_key, check_prefix, disk_path};
use open::{Open, Place, RealPlace, TEMP_FOLDER, has_marker, open_folder};
use walk::Listing;
use writer::{Answer, Command, Job, PutKind};

pub use key::{KEY_BYTES_MAX, KeyError, MARKER_KEY, PART_BYTES_MAX};
pub use space::{FLOOR_BYTES_MAX, FLOOR_SHARE, Space, default_floor_bytes};

/// Objects up to this many bytes go into the log: every record fits (`docs/formats.md` 5), and above it a file of its own costs
/// little beside its bytes.
pub const SMALL_BYTES_MAX: u64 = 65_536;
/// Longest object taken or read whole: twice the longest sector object, so that no stray file fills the memory.
pub const OBJECT_BYTES_MAX: u64 = 8 << 20;
/// Reads of one folder at a time. With [`WRITE_JOBS`] it keeps twenty hung folders within the runtime's 512 blocking threads,
/// and it is more than a disk's queue needs.
pub const READ_JOBS: usize = 16;
/// Large writes of one folder at a time.
pub const WRITE_JOBS: usize = 8;
/// Small objects waiting for the log, in KiB: a few commits' worth.
const QUEUE_KIB: u32 = 16 * 1024;
/// Longest read that is done in the task itself if the page cache has it: pieces of a range of 256 KiB. A thread of its own costs
/// more than copying this much (about 10 us) and makes others wait for their turn; it is worth its cost for the longer pieces
/// of a stream, which are copied while others are checked.
const AT_ONCE_BYTES_MAX: usize = 64 << 10;
/// Objects listed by one blocking job.
const LIST_PAGE: usize = 1_000;
/// Lines of the log looked at by one peek: versions of one record, and those just removed.
const PEEK_ROWS_MAX: usize = 64;
/// Removals of one stream that wait for the same commit.
const REMOVALS_AHEAD: usize = 64;
/// Longest marker read (`docs/formats.md` 3).
const MARKER_BYTES_MAX: u64 = 4_096;
const STORE: &str = "folder";

/// What can be set for a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderOptions {
    /// Free bytes of the file system below which puts are refused; [`default_floor_bytes`] of its size if not set.
    pub floor_bytes: Option<u64>,
}

/// Why a folder refuses, as the source of an [`object_store::Error`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum FolderError {
    #[error("the folder is not there, or has no {MARKER_KEY}: not mounted?")]
    NoMarker,
    #[error("another process is using the folder")]
    Locked,
    #[error("the folder's log is of version {version}, written by a newer skygate; this one knows {}", log::LOG_VERSION)]
    NewerLog { version: u16 },
    #[error("the folder has objects but no {MARKER_KEY}: it belonged to a host, and is not taken for a new one")]
    NotEmpty,
    #[error("{free_bytes} bytes are free, less than the floor of {floor_bytes}")]
    Full { free_bytes: u64, floor_bytes: u64 },
    #[error("the log of small objects is full, because turning it into files fails")]
    LogTooLong,
    #[error("{len} bytes are more than {OBJECT_BYTES_MAX}")]
    TooLarge { len: u64 },
    #[error("there is no such object")]
    NotFound,
    #[error("there is such an object already")]
    Exists,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the range is outside of the object")]
    BadRange,
    #[error("the folder was closed meanwhile")]
    Closed,
    #[error("could not {doing}: {source}")]
    Io { doing: &'static str, source: Arc<io::Error> },
}

impl FolderError {
    fn io(doing: &'static str) -> impl Fn(io::Error) -> FolderError {
        move |source| FolderError::Io { doing, source: Arc::new(source) }
    }

    fn full(space: &Space) -> FolderError {
        FolderError::Full { free_bytes: space.free_bytes().unwrap_or(0), floor_bytes: space.floor_bytes() }
    }

    fn for_key(self, key: &str) -> Error {
        match self {
            FolderError::NotFound => Error::NotFound { path: key.into(), source: self.into() },
            FolderError::Exists => Error::AlreadyExists { path: key.into(), source: self.into() },
            other => Error::Generic { store: STORE, source: other.into() },
        }
    }
}

/// A folder host. Cheap to clone; all clones are one folder.
#[derive(Clone, Debug)]
pub struct FolderStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Box<dyn Place>,
    name: String,
    options: FolderOptions,
    space: Arc<Space>,
    open: Mutex<Option<Arc<Open>>>,
    /// Held while opening, so that it happens once.
    opening: Arc<tokio::sync::Mutex<()>>,
    read_jobs: Arc<Semaphore>,
    write_jobs: Arc<Semaphore>,
}

impl fmt::Display for FolderStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "folder {}", self.0.name)
    }
}

impl FolderStore {
    /// A host in the folder at `path`. Touches nothing yet.
    pub fn new(path: impl Into<PathBuf>, options: FolderOptions) -> FolderStore {
        let path = path.into();
        let name = path.display().to_string();
        FolderStore::at(Box::new(RealPlace(path)), name, options)
    }

    fn at(place: Box<dyn Place>, name: String, options: FolderOptions) -> FolderStore {
        FolderStore(Arc::new(Inner {
            place,
            name,
            options,
            space: Arc::new(Space::default()),
            open: Mutex::new(None),
            opening: Arc::default(),
            read_jobs: Arc::new(Semaphore::new(READ_JOBS)),
            write_jobs: Arc::new(Semaphore::new(WRITE_JOBS)),
        }))
    }

    /// How full it is.
    pub fn space(&self) -> Arc<Space> {
        self.0.space.clone()
    }

    /// Lets go of the folder once what is queued is written. A later use opens it again.
    pub async fn close(&self) {
        let open = self.0.take_open();
        if let Some(open) = open {
            let mut ended = open.ended.clone();
            drop(open);
            // An error is the end itself: the writer dropped its side.
            while ended.changed().await.is_ok() {}
        }
    }

    /// The open folder; opens it first if need be.
    async fn open(&self) -> Result<Arc<Open>, FolderError> {
        if let Some(open) = self.0.current() {
            return Ok(open);
        }
        let opening = self.0.opening.clone().lock_owned().await;
        if let Some(open) = self.0.current() {
            return Ok(open);
        }
        let inner = self.0.clone();
        blocking(&self.0.write_jobs, move || {
            // Held in here: who asked may be gone before the disk answers.
            let _opening = opening;
            let found = inner.place.open().map_err(FolderError::io("open the folder"))?;
            let disk = found.ok_or(FolderError::NoMarker)?;
            let open = Arc::new(open_folder(disk, &inner.options, &inner.space)?);
            *inner.lock_open() = Some(open.clone());
            Ok(open)
        })
        .await
    }

    /// Hands a command to the writer and waits for its commit.
    async fn command(&self, open: &Open, command: Command, kib: u32) -> Result<(), FolderError> {
        let room = open.room.clone().acquire_many_owned(kib).await.map_err(|_| FolderError::Closed)?;
        let (answer, answered) = oneshot::channel();
        open.queue.send(Job { command, answer: Answer::waiting(answer), room }).map_err(|_| FolderError::Closed)?;
        answered.await.map_err(|_| FolderError::Closed)?
    }

    async fn put_object(&self, key: String, payload: PutPayload, kind: PutKind) -> Result<(), FolderError> {
        let len = payload.content_length() as u64;
        if len > OBJECT_BYTES_MAX {
            return Err(FolderError::TooLarge { len });
        }
        if key == MARKER_KEY {
            return self.put_marker(payload, kind).await;
        }
        let open = self.open().await?;
        if len <= SMALL_BYTES_MAX {
            let data = Bytes::from(payload);
            return self.command(&open, Command::Put { key: key.into(), data, kind }, queue_kib(len)).await;
        }
        self.put_large(open, key, payload, len, kind).await
    }

    /// Everything after the permits goes on without the caller, so that one who leaves cannot leave a file half made.
    async fn put_large(
        &self,
        open: Arc<Open>,
        key: String,
        payload: PutPayload,
        len: u64,
        kind: PutKind,
    ) -> Result<(), FolderError> {
        let job = self.0.write_jobs.clone().acquire_owned().await.map_err(|_| FolderError::Closed)?;
        let room = open.room.clone().acquire_owned().await.map_err(|_| FolderError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || {
            if answer.is_closed() {
                return;
            }
            match inner.write_temp(&open, payload, len) {
                Ok(temp) => {
                    let command = Command::Publish { key, temp, len, kind };
                    // If the writer is gone, the next opening removes the file, and the dropped answer says it.
                    let _ = open.queue.send(Job { command, answer: Answer::waiting(answer), room });
                }
                Err(error) => drop(answer.send(Err(error))),
            }
            drop(job);
        });
        answered.await.map_err(|_| FolderError::Closed)?
    }

    async fn put_marker(&self, payload: PutPayload, kind: PutKind) -> Result<(), FolderError> {
        let inner = self.0.clone();
        blocking(&self.0.write_jobs, move || inner.write_marker(&Bytes::from(payload), kind)).await
    }

    async fn read_bytes(&self, key: String, options: GetOptions) -> Result<Found, FolderError> {
        let GetOptions { range, head, .. } = options;
        let inner = self.0.clone();
        if key == MARKER_KEY {
            let found = blocking(&self.0.read_jobs, move || inner.read_marker(range.as_ref(), head)).await?;
            // Who looks at the marker wants to know whether the host can be used: a lock or a newer log has to show here.
            self.open().await?;
            return Ok(found);
        }
        let open = self.open().await?;
        if let Some(found) = read_at_once(&open, &key, range.as_ref(), head) {
            return found;
        }
        // Taken here and not in the job: some dozen threads that each keep a buffer of their own cost hundreds of MiB.
        let buffer = Vec::with_capacity(wanted_bytes(range.as_ref(), head));
        blocking(&self.0.read_jobs, move || read_object(&open, &key, range.as_ref(), head, buffer)).await
    }

    async fn remove(&self, key: String) -> Result<(), FolderError> {
        check_key(&key)?;
        if key == MARKER_KEY {
            // A folder without it is down, for good: nobody does that by way of a store.
            return Err(FolderError::Key(KeyError::UnknownShape));
        }
        let open = self.open().await?;
        self.command(&open, Command::Remove { key }, 1).await
    }
}

/// What a read found.
#[derive(Debug)]
struct Found {
    len: u64,
    modified: SystemTime,
    range: Range<u64>,
    bytes: Bytes,
}

impl Inner {
    fn lock_open(&self) -> std::sync::MutexGuard<'_, Option<Arc<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Arc<Open>> {
        self.lock_open().clone()
    }

    fn take_open(&self) -> Option<Arc<Open>> {
        self.lock_open().take()
    }

    /// Writes a durable temporary file; answers its path.
    fn write_temp(&self, open: &Open, payload: PutPayload, len: u64) -> Result<String, FolderError> {
        let above_floor =
            self.space.measure(&*open.disk, self.options.floor_bytes).map_err(FolderError::io("measure free space"))?;
        if above_floor < len {
            return Err(FolderError::full(&self.space));
        }
        let parts: Vec<Bytes> = payload.into_iter().filter(|part| !part.is_empty()).collect();
        let (path, written) = write_file(open, &parts, Writing::Direct)?;
        match written {
            Ok(()) => Ok(path),
            // A file system may take the flag and refuse the write, for its own idea of alignment.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                let _ = open.disk.unlink(&path);
                let (path, written) = write_file(open, &parts, Writing::Buffered)?;
                finish_temp(open, path, written)
            }
            Err(error) => finish_temp(open, path, Err(error)),
        }
    }

    /// Makes the folder a host: its only way to begin.
    fn write_marker(&self, bytes: &[u8], kind: PutKind) -> Result<(), FolderError> {
        if bytes.len() as u64 > MARKER_BYTES_MAX {
            return Err(FolderError::TooLarge { len: bytes.len() as u64 });
        }
        let io_error = FolderError::io("make the marker");
        let disk = self.place.create().map_err(&io_error)?;
        if has_marker(&*disk)? {
            if kind == PutKind::Create {
                return Err(FolderError::Exists);
            }
        } else {
            for folder in key::TOP_FOLDERS.into_iter().chain([log::LOG_FOLDER]) {
                if disk.stat(folder).map_err(&io_error)?.is_some() {
                    return Err(FolderError::NotEmpty);
                }
            }
        }
        // Not through the log: who looks at the folder has to see it, and it says whether the log may be opened.
        let temp = format!("{MARKER_KEY}.new");
        match disk.unlink(&temp) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error(error)),
            _ => {}
        }
        disk.create(&temp, Writing::Buffered)
            .and_then(|file| file.write_at(0, bytes).and_then(|()| file.sync_data()))
            .and_then(|()| disk.rename(&temp, MARKER_KEY))
            .and_then(|()| disk.sync_folder(""))
            .map_err(&io_error)
    }

    /// Looks at the place itself, not at what is held open; lets go of the folder if it is no longer the one there.
    fn read_marker(&self, range: Option<&GetRange>, head: bool) -> Result<Found, FolderError> {
        let there = self.place.open().map_err(FolderError::io("open the folder"))?;
        let same = |disk: &Arc<dyn Disk>| self.current().is_none_or(|open| open.disk.identity() == disk.identity());
        let marked = match &there {
            Some(disk) => has_marker(&**disk)?,
            None => false,
        };
        if !marked || !there.as_ref().is_some_and(same) {
            drop(self.take_open());
        }
        let disk = there.filter(|_| marked).ok_or(FolderError::NotFound)?;
        if self.current().is_some() {
            self.space.measure(&*disk, self.options.floor_bytes).map_err(FolderError::io("measure free space"))?;
        }
        read_file(&*disk, MARKER_KEY, range, head, MARKER_BYTES_MAX, Vec::new())
    }
}

/// Makes a temporary file and writes it; answers its path, and how the writing went.
fn write_file(open: &Open, parts: &[Bytes], writing: Writing) -> Result<(String, io::Result<()>), FolderError> {
    let path = open.next_temp();
    let created = match open.disk.create(&path, writing) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            match open.disk.make_folder(TEMP_FOLDER) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                // Needs no sync: a lost folder of temporary files is made again.
                _ => open.disk.create(&path, writing),
            }
        }
        other => other,
    };
    let file = created.map_err(FolderError::io("make a temporary file"))?;
    let written = write::write_object(&*file, parts, &open.copy_buffers);
    Ok((path, written))
}

fn finish_temp(open: &Open, path: String, written: io::Result<()>) -> Result<String, FolderError> {
    written.map_err(|error| {
        let _ = open.disk.unlink(&path);
        FolderError::io("write a file")(error)
    })?;
    Ok(path)
}

/// What a small object takes of the queue.
fn queue_kib(len: u64) -> u32 {
    u32::try_from(len / 1024).unwrap_or(u32::MAX) + 1
}

/// Bytes that a read gives at most, as far as the question tells.
fn wanted_bytes(range: Option<&GetRange>, head: bool) -> usize {
    match range {
        Some(GetRange::Bounded(range)) if !head => range.end.saturating_sub(range.start).min(OBJECT_BYTES_MAX) as usize,
        _ => 0,
    }
}

/// Where an object is.
struct Located {
    file: Arc<dyn DiskFile>,
    offset: u64,
    len: u64,
    modified: SystemTime,
}

impl Located {
    /// What the log says of a key; `None` if nothing.
    fn in_log(open: &Open, key: &str) -> Result<Option<Located>, FolderError> {
        match open.index.get(key) {
            Some(Slot::Removed { .. }) => Err(FolderError::NotFound),
            Some(Slot::Put(spot)) => Ok(Some(Located {
                file: spot.segment.file.clone(),
                offset: spot.offset.into(),
                len: spot.len.into(),
                modified: spot.modified(),
            })),
            None => Ok(None),
        }
    }

    fn whole(file: Arc<dyn DiskFile>) -> Result<Located, FolderError> {
        let stat = file.stat().map_err(FolderError::io("look at the file"))?;
        match stat.kind {
            EntryKind::File => Ok(Located { file, offset: 0, len: stat.len, modified: stat.modified }),
            _ => Err(FolderError::NotFound),
        }
    }

    fn read(self, range: Option<&GetRange>, head: bool, buffer: Vec<u8>, max_bytes: u64) -> Result<Found, FolderError> {
        let range = resolve(range, self.len, head)?;
        let wanted = range.end - range.start;
        if wanted > max_bytes {
            return Err(FolderError::TooLarge { len: wanted });
        }
        let bytes = self.file.read_into(self.offset + range.start, wanted as usize, buffer);
        let bytes =
            bytes.and_then(|bytes| if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(ErrorKind::UnexpectedEof.into()) });
        let bytes = bytes.map_err(FolderError::io("read the object"))?;
        Ok(Found { len: self.len, modified: self.modified, range, bytes: bytes.into() })
    }

    fn read_at_once(self, range: Option<&GetRange>, head: bool) -> Option<Result<Found, FolderError>> {
        let range = match resolve(range, self.len, head) {
            Ok(range) => range,
            Err(error) => return Some(Err(error)),
        };
        let wanted = usize::try_from(range.end - range.start).ok().filter(|wanted| *wanted <= AT_ONCE_BYTES_MAX)?;
        let bytes = if wanted == 0 { Vec::new() } else { self.file.read_at_once(self.offset + range.start, wanted)? };
        Some(Ok(Found { len: self.len, modified: self.modified, range, bytes: bytes.into() }))
    }
}

/// The read, if all it takes is in memory.
fn read_at_once(open: &Open, key: &str, range: Option<&GetRange>, head: bool) -> Option<Result<Found, FolderError>> {
    let located = match Located::in_log(open, key) {
        Ok(Some(located)) => located,
        Ok(None) => Located::whole(open.disk.open_at_once(&disk_path(key))?).ok()?,
        Err(error) => return Some(Err(error)),
    };
    located.read_at_once(range, head)
}

fn read_object(open: &Open, key: &str, range: Option<&GetRange>, head: bool, mut buffer: Vec<u8>) -> Result<Found, FolderError> {
    // Twice, because an object may move from a file to the log between the two looks; it cannot do so again and again.
    for _ in 0..2 {
        if let Some(located) = Located::in_log(open, key)? {
            return located.read(range, head, buffer, OBJECT_BYTES_MAX);
        }
        match read_file(&*open.disk, &disk_path(key), range, head, OBJECT_BYTES_MAX, std::mem::take(&mut buffer)) {
            Err(FolderError::NotFound) => {}
            other => return other,
        }
    }
    Err(FolderError::NotFound)
}

fn read_file(
    disk: &dyn Disk,
    path: &str,
    range: Option<&GetRange>,
    head: bool,
    max_bytes: u64,
    buffer: Vec<u8>,
) -> Result<Found, FolderError> {
    match disk.open(path, Access::Read) {
        Ok(file) => Located::whole(file)?.read(range, head, buffer, max_bytes),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(FolderError::NotFound),
        Err(error) => Err(FolderError::io("open the file")(error)),
    }
}

/// The bytes to read; none for a question about the object alone.
fn resolve(range: Option<&GetRange>, len: u64, head: bool) -> Result<Range<u64>, FolderError> {
    match range {
        _ if head => Ok(0..0),
        None => Ok(0..len),
        Some(range) => range.as_range(len).map_err(|_| FolderError::BadRange),
    }
}

/// Runs one blocking job under a permit that stays with the job, not with who waits for it.
async fn blocking<T: Send + 'static>(
    jobs: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
) -> Result<T, FolderError> {
    let permit: OwnedSemaphorePermit = jobs.clone().acquire_owned().await.map_err(|_| FolderError::Closed)?;
    let job = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(permit);
        result
    });
    job.await.map_err(|_| FolderError::Closed)?
}

#[async_trait]
impl ObjectStore for FolderStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let key = location.as_ref();
        let kind = match opts.mode {
            PutMode::Overwrite => PutKind::Overwrite,
            PutMode::Create => PutKind::Create,
            PutMode::Update(_) => return Err(not_implemented("conditional update")),
        };
        if !opts.attributes.is_empty() {
            return Err(not_implemented("attributes"));
        }
        check_key(key).map_err(|error| FolderError::from(error).for_key(key))?;
        self.put_object(key.to_owned(), payload, kind).await.map_err(|error| error.for_key(key))?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(not_implemented("multipart upload"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let key = location.as_ref();
        check_key(key).map_err(|error| FolderError::from(error).for_key(key))?;
        let found = self.read_bytes(key.to_owned(), options.clone()).await.map_err(|error| error.for_key(key))?;
        let Found { len, modified, range, bytes } = found;
        let meta = meta_of(key, len, modified);
        options.check_preconditions(&meta)?;
        let payload = GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .map(move |location| {
                let store = store.clone();
                async move {
                    let location = location?;
                    let key = location.as_ref();
                    store.remove(key.to_owned()).await.map_err(|error| error.for_key(key))?;
                    Ok(location)
                }
            })
            .buffered(REMOVALS_AHEAD)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_from(prefix, None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_from(prefix, Some(offset.as_ref().to_owned()))
    }

    /// Walks everything under the prefix: nobody here lists with a delimiter, it is only there to be whole.
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = Path::default();
        let prefix = prefix.unwrap_or(&root);
        let mut listed = self.list(Some(prefix));
        let (mut objects, mut common_prefixes) = (Vec::new(), Vec::<Path>::new());
        while let Some(meta) = listed.try_next().await? {
            let Some(mut parts) = meta.location.prefix_match(prefix) else { continue };
            let Some(first) = parts.next() else { continue };
            if parts.next().is_none() {
                drop(parts);
                objects.push(meta);
                continue;
            }
            let common = prefix.clone().join(first);
            if common_prefixes.last() != Some(&common) {
                common_prefixes.push(common);
            }
        }
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(not_implemented("copy"))
    }
}

impl FolderStore {
    /// In key order; one blocking job a page.
    fn list_from(&self, prefix: Option<&Path>, after: Option<String>) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        let prefix = prefix.map(|prefix| prefix.as_ref().to_owned()).unwrap_or_default();
        let pages = stream::try_unfold(None::<Listing>, move |listing| {
            let (store, prefix, after) = (store.clone(), prefix.clone(), after.clone());
            async move {
                let page = store.list_page(listing, &prefix, after).await.map_err(|error| error.for_key(&prefix))?;
                Ok::<_, Error>((!page.0.is_empty()).then_some((page.0, Some(page.1))))
            }
        });
        pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn look_in(&self, folder: String, keys_max: usize, bytes_max: u64) -> Result<Peeked, FolderError> {
        check_prefix(&folder)?;
        let open = self.open().await?;
        blocking(&self.0.read_jobs, move || {
            learn_names(&open, &folder)?;
            let listed = Listing::start(open.disk.clone(), &open.index, &folder, None).page(keys_max);
            let listed = listed.map_err(FolderError::io("list the folder"))?;
            let first = match listed.first().filter(|first| first.len <= bytes_max) {
                None => None,
                Some(first) => match read_object(&open, &first.key, None, false, Vec::new()) {
                    Ok(found) => Some(found.bytes).filter(|bytes| bytes.len() as u64 <= bytes_max),
                    Err(FolderError::NotFound) => None,
                    Err(error) => return Err(error),
                },
            };
            Ok(Peeked { keys: listed.into_iter().map(|listed| listed.key).collect(), first })
        })
        .await
    }

    async fn list_page(
        &self,
        listing: Option<Listing>,
        prefix: &str,
        after: Option<String>,
    ) -> Result<(Vec<ObjectMeta>, Listing), FolderError> {
        check_prefix(prefix)?;
        let open = self.open().await?;
        let prefix = prefix.to_owned();
        blocking(&self.0.read_jobs, move || {
            let mut listing = listing.unwrap_or_else(|| Listing::start(open.disk.clone(), &open.index, &prefix, after.as_deref()));
            let page = listing.page(LIST_PAGE).map_err(FolderError::io("list the folder"))?;
            let metas = page.into_iter().map(|listed| meta_of(&listed.key, listed.len, listed.modified)).collect();
            Ok((metas, listing))
        })
        .await
    }
}

/// Lists a folder of records for [`Near::peek`].
fn learn_names(open: &Open, folder: &str) -> Result<(), FolderError> {
    if !folder.starts_with(key::RECORDS) {
        return Ok(());
    }
    let path = disk_path(folder);
    let before = open.files.before();
    let names = open.disk.names(&path).map_err(FolderError::io("list the folder"))?;
    if names.iter().all(|(_, kind)| *kind == EntryKind::File) {
        let of_keys = names.into_iter().map(|(name, _)| name).filter(|name| check_key(&format!("{folder}/{name}")).is_ok());
        open.files.listed(before, &path, of_keys.map(String::into_boxed_str).collect());
    }
    Ok(())
}

/// The first object of a peek: where its bytes are.
enum First {
    Log(index::Spot),
    File,
}

impl Open {
    /// Names of the files in a folder, if they are known; none if there surely is no such folder.
    fn names_at_once(&self, folder: &str) -> Option<Names> {
        let path = disk_path(folder);
        self.files.get(&path).or_else(|| self.disk.surely_absent(&path).then(Names::default))
    }

    fn read_at_once(&self, key: &str, first: &First, bytes_max: u64) -> Option<Bytes> {
        let bytes = match first {
            First::Log(spot) if u64::from(spot.len) > bytes_max => return None,
            First::Log(spot) => spot.segment.file.read_at_once(u64::from(spot.offset), spot.len as usize)?,
            First::File => {
                let located = Located::whole(self.disk.open_at_once(&disk_path(key))?).ok()?;
                let len = usize::try_from(located.len).ok().filter(|len| *len as u64 <= bytes_max)?;
                located.file.read_at_once(0, len)?
            }
        };
        Some(bytes.into())
    }
}

#[async_trait]
impl Near for FolderStore {
    /// Answers if the names under the folder are known, and the first object's bytes are in the page cache.
    fn peek(&self, folder: &str, keys_max: usize, bytes_max: u64) -> Option<Peeked> {
        let open = self.0.current()?;
        check_prefix(folder).ok().filter(|()| !folder.is_empty())?;
        // The log first, then the disk: what moves from one to the other in between is seen.
        let rows = open.index.under(folder, PEEK_ROWS_MAX)?;
        // Said of the folder that the object is in, which may be one of several below this one.
        let is_alone = |(key, spot): &(Arc<str>, Option<index::Spot>)| {
            spot.as_ref().is_some_and(|spot| spot.beside == Beside::Nothing) && !key[folder.len() + 1..].contains('/')
        };
        let alone = rows.iter().any(is_alone);
        let names = if alone { Names::default() } else { open.names_at_once(folder)? };
        let mut found: Vec<(Cow<'_, str>, First)> = Vec::with_capacity(rows.len() + names.len());
        for name in names.iter() {
            let key = format!("{folder}/{name}");
            // The log's word stands before the file's.
            if rows.iter().all(|(logged, _)| **logged != *key) {
                found.push((key.into(), First::File));
            }
        }
        found.extend(rows.iter().filter_map(|(key, spot)| Some((Cow::from(&**key), First::Log(spot.clone()?)))));
        found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let first = match found.first() {
            None => None,
            Some((key, first)) => Some(open.read_at_once(key, first, bytes_max)?),
        };
        Some(Peeked { keys: found.into_iter().take(keys_max).map(|(key, _)| key.into_owned()).collect(), first })
    }

    async fn look(&self, folder: &str, keys_max: usize, bytes_max: u64) -> Result<Peeked> {
        self.look_in(folder.to_owned(), keys_max, bytes_max).await.map_err(|error| error.for_key(folder))
    }

    fn begin_put(&self, key: &Arc<str>, bytes: &Bytes, done: PutDone) -> Begun {
        let len = bytes.len() as u64;
        let small = len <= SMALL_BYTES_MAX && **key != *MARKER_KEY && check_key(key).is_ok();
        let Some(open) = self.0.current().filter(|_| small) else { return Begun::No };
        let Ok(room) = open.room.clone().try_acquire_many_owned(queue_kib(len)) else { return Begun::No };
        let (named, key) = (key.clone(), key.clone());
        let answer = Answer::call(move |result| done(result.map_err(|error| error.for_key(&named))));
        let command = Command::Put { key, data: bytes.clone(), kind: PutKind::Overwrite };
        // A writer that is gone answers by dropping the job.
        let _ = open.queue.send(Job { command, answer, room });
        Begun::Yes
    }

    fn begin_remove(&self, key: &str) -> Begun {
        let removable = key != MARKER_KEY && check_key(key).is_ok();
        let Some(open) = self.0.current().filter(|_| removable) else { return Begun::No };
        let Ok(room) = open.room.clone().try_acquire_owned() else { return Begun::No };
        let _ = open.queue.send(Job { command: Command::Remove { key: key.to_owned() }, answer: Answer::NOBODY, room });
        Begun::Yes
    }
}

fn meta_of(key: &str, len: u64, modified: SystemTime) -> ObjectMeta {
    ObjectMeta { location: Path::from(key), last_modified: modified.into(), size: len, e_tag: None, version: None }
}

fn not_implemented(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.into(), implementer: STORE.into() }
}
