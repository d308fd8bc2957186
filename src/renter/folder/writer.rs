//! The one thread of a folder that changes what its keys mean.
//!
//! Everything that changes a key (small objects, removals, the rename of a large object's file, compaction) is done here, in one order,
//! so no two of them race. What is queued is committed together: folders synced, one write and one sync of the log, then all are answered.
//! A thread of its own, so that a disk that hangs holds nobody else.
//!
//! The order that makes it safe: (1) names of published files are durable before an entry that points to them is written;
//! (2) an answer is given after the sync; (3) a segment goes only after everything it says is durable as files, oldest first,
//! and its own removal is durable before the index forgets it.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    io::{self, ErrorKind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    FolderError,
    disk::{Disk, DiskFile, Writing},
    files::{Files, NameChange},
    index::{Beside, Change, Index, Segment, Slot, Spot, now_ms},
    key::{RECORDS, disk_path, parent},
    log::{
        Entry, EntryKind, LOG_FOLDER, SEGMENT_HEADER_BYTES, Scanned, Scanner, encode_entry, encode_segment_header, segment_path,
    },
    space::Space,
    walk::Listing,
};

/// A segment of this many bytes is closed and compacted. With the next limit it bounds the index and the time to open.
pub(super) const SEGMENT_BYTES: u64 = 16 << 20;
/// A segment of this many entries is closed: about 10 MiB of index.
pub(super) const SEGMENT_ENTRIES: u32 = 32_768;
/// A segment this old is closed even if small, so that a quiet folder is plain files. Records replaced sooner never become files.
const SEGMENT_AGE: Duration = Duration::from_secs(300);
/// Bytes of closed segments, above which puts wait for compaction: bounds the log when puts come faster than files can be made.
const CLOSED_BYTES_MAX: u64 = 4 * SEGMENT_BYTES;
/// Bytes and number of closed segments, above which compaction no longer waits for a quiet moment.
const CLOSED_BYTES_SOFT: u64 = 3 * SEGMENT_BYTES;
const CLOSED_SEGMENTS_SOFT: usize = 48;
/// Without a commit for this long a folder is quiet. Making a file costs about ten times a commit's share of an entry, so
/// a burst is taken at the log's speed and turned into files afterwards.
const QUIET: Duration = Duration::from_millis(250);
/// Closed segments of any size, above which puts wait: bounds what many restarts leave behind.
const CLOSED_SEGMENTS_MAX: usize = 64;
/// A batch takes no more commands than this, so that one commit stays short.
const BATCH_COMMANDS: usize = 1_024;
/// A batch takes no more bytes than this.
const BATCH_BYTES: usize = 4 << 20;
/// Entries compacted between two commits at least: about a millisecond, well under a slow disk's sync.
const COMPACT_STEP: usize = 32;
/// Such a step ends after this long while there is no hurry, so that its pause is short of what counts as quiet: new files may take
/// milliseconds each (ext4 passes over inodes that were freed a moment ago, one by one).
const COMPACT_STEP_TIME: Duration = Duration::from_millis(2);
/// Pause after such a step while there is no hurry, as a multiple of the time that it took: a folder then takes a part in 25 of a
/// core at most, nine of them a third, and less while others need the cores. A fixed pause of 20 ms took two thirds from those who
/// read what had just been written (2026-11, ext4: a folder and a file for each registry entry take 75 us).
const COMPACT_REST: u32 = 24;
/// Time from the beginning of a commit that several waited for to the next one: short beside what a client waits for, long enough
/// for what 32 clients send to nine folders to share most syncs. Who comes alone does not wait. A millisecond made twice as many
/// syncs, whose processor time all waited for: 6,500 writes a second and a p99 of 10.8 ms, where two make 9,400 and 6.0 ms (2026-11,
/// two cores).
const COMMIT_EVERY_MIN: Duration = Duration::from_micros(2_000);
/// Zeros written behind the entries of a segment when its file grows, for some sixty commits: a sync has nothing to say about the file's length
/// then, which would be one more write of the disk, and a wait for it. A reader takes them for a torn tail, which is cut.
pub(super) const ROOM_AHEAD_BYTES: usize = 128 << 10;
/// A buffer larger than this is not kept between commits.
const BUFFER_KEPT_BYTES: usize = 256 << 10;
/// Files counted between two commits: about half a millisecond.
const COUNT_STEP: usize = 256;
/// Wait after a failed compaction: what fails (a full disk, a bad one) does not heal sooner.
const COMPACT_RETRY: Duration = Duration::from_secs(10);
/// How often a quiet writer looks whether the sync of a compaction is done.
const SYNC_POLL: Duration = Duration::from_millis(20);
/// Folders remembered as durable: all folders of sectors (256) and of the kinds of records (256 each), with room.
const KNOWN_FOLDERS_MAX: usize = 4_096;

/// Whether a put may replace an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PutKind {
    Overwrite,
    Create,
}

#[derive(Debug)]
pub(super) enum Command {
    /// Store a small object in the log.
    Put {
        key: Arc<str>,
        data: Bytes,
        kind: PutKind,
    },
    Remove {
        key: String,
    },
    /// A large object stands, durable, in the temporary file: give it its name.
    Publish {
        key: String,
        temp: String,
        len: u64,
        kind: PutKind,
    },
}

/// A command with who waits for it, and the room it takes in the queue.
#[derive(Debug)]
pub(super) struct Job {
    pub command: Command,
    pub answer: Answer,
    pub room: OwnedSemaphorePermit,
}

/// Who is told how a command ended.
pub(super) struct Answer(Option<Told>);

enum Told {
    Waiting(oneshot::Sender<Result<(), FolderError>>),
    Call(Box<dyn FnOnce(Result<(), FolderError>) + Send>),
}

impl Answer {
    /// Of a command that need not be durable.
    pub const NOBODY: Answer = Answer(None);

    pub fn waiting(waiting: oneshot::Sender<Result<(), FolderError>>) -> Answer {
        Answer(Some(Told::Waiting(waiting)))
    }

    /// Called in any case: with [`FolderError::Closed`] if the job is dropped.
    pub fn call(call: impl FnOnce(Result<(), FolderError>) + Send + 'static) -> Answer {
        Answer(Some(Told::Call(Box::new(call))))
    }

    fn send(mut self, result: Result<(), FolderError>) {
        match self.0.take() {
            // Whoever waited may be gone.
            Some(Told::Waiting(waiting)) => drop(waiting.send(result)),
            Some(Told::Call(call)) => call(result),
            None => {}
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(Told::Call(call)) = self.0.take() {
            call(Err(FolderError::Closed));
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match &self.0 {
            Some(Told::Waiting(_)) => "Waiting",
            Some(Told::Call(_)) => "Call",
            None => "Nobody",
        })
    }
}

/// A segment that takes no more entries.
#[derive(Debug)]
pub(super) struct Closed {
    pub segment: Arc<Segment>,
    pub end: u64,
}

#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    end: u64,
    /// Length of the file: behind the last entry there are zeros, see [`ROOM_AHEAD_BYTES`].
    file_end: u64,
    entries: u32,
    batch: u32,
    since: Instant,
}

/// Compaction of the oldest closed segment.
#[derive(Debug)]
struct Compaction {
    /// Keys whose slots may point into the segment.
    keys: Vec<Arc<str>>,
    stage: CompactionStage,
}

#[derive(Debug)]
enum CompactionStage {
    Copying(Scanner),
    Syncing(Receiver<io::Result<()>>),
}

/// One entry to be written.
struct Line {
    kind: EntryKind,
    key: Arc<str>,
    data: Bytes,
    /// See [`Spot::beside`].
    beside: Beside,
}

impl Line {
    fn mark(kind: EntryKind, key: Arc<str>) -> Line {
        Line { kind, key, data: Bytes::new(), beside: Beside::Unknown }
    }
}

/// One commit in the making.
#[derive(Default)]
struct Batch {
    entries: Vec<Line>,
    /// Length of the objects this batch has changed so far, `None` if removed.
    overlay: HashMap<Arc<str>, Option<u64>>,
    folders: BTreeSet<String>,
    new_folders: Vec<String>,
    used_change: i64,
    waiting: Vec<(Answer, OwnedSemaphorePermit)>,
    /// Whether somebody is told that it is durable.
    durable: bool,
}

#[derive(Debug)]
pub(super) struct Writer {
    pub disk: Arc<dyn Disk>,
    pub index: Arc<Index>,
    pub files: Arc<Files>,
    pub space: Arc<Space>,
    pub floor_bytes: Option<u64>,
    pub closed: VecDeque<Closed>,
    pub next_number: u64,
    /// The first count of used bytes, while it runs.
    pub count: Option<Count>,
    active: Option<Active>,
    compaction: Option<Compaction>,
    retry_at: Option<Instant>,
    /// Before its next step.
    compaction_pause: Duration,
    last_commit: Option<Instant>,
    /// When the last commit began, if several waited for it.
    crowded: Option<Instant>,
    known_folders: HashSet<String>,
    /// The segment that has entries nobody waited for, while they are not synced.
    unsynced: Option<Arc<Segment>>,
    /// Used again for each commit: threads that come and go with large buffers make the allocator ask the kernel each time.
    buffer: Vec<u8>,
}

/// The first count of used bytes.
#[derive(Debug)]
pub(super) struct Count {
    pub listing: Listing,
    /// Files changed later are counted when they are written.
    pub before: std::time::SystemTime,
    pub found_bytes: u64,
}

impl Writer {
    pub fn new(disk: Arc<dyn Disk>, index: Arc<Index>, files: Arc<Files>, space: Arc<Space>, floor_bytes: Option<u64>) -> Writer {
        Writer {
            disk,
            index,
            files,
            space,
            floor_bytes,
            closed: VecDeque::new(),
            next_number: 1,
            count: None,
            active: None,
            compaction: None,
            retry_at: None,
            compaction_pause: Duration::ZERO,
            last_commit: None,
            crowded: None,
            known_folders: HashSet::new(),
            unsynced: None,
            buffer: Vec::new(),
        }
    }

    /// Works until every sender is gone and the queue is empty.
    pub fn run(mut self, queue: Receiver<Job>) {
        while let Some(jobs) = self.collect(&queue) {
            let (step, busy) = (jobs.len().max(COMPACT_STEP), !jobs.is_empty());
            if busy {
                self.commit(jobs);
                self.last_commit = Some(Instant::now());
            }
            self.close_active_if_due();
            if !busy || self.is_pressed() {
                let began = Instant::now();
                self.compact(step);
                // No longer than what counts as quiet, so that a slow disk gets on, too.
                self.compaction_pause = (began.elapsed() * COMPACT_REST).min(QUIET);
            }
            self.count_on();
        }
        self.close_active();
        // The sync holds the disk, and with it the folder's lock.
        if let Some(Compaction { stage: CompactionStage::Syncing(done), .. }) = &self.compaction {
            let _ = done.recv();
        }
    }

    /// The next batch; empty if there is other work to do; `None` at the end.
    fn collect(&self, queue: &Receiver<Job>) -> Option<Vec<Job>> {
        let first = match self.patience() {
            None => queue.recv().ok()?,
            Some(patience) => match queue.recv_timeout(patience) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => return Some(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => return None,
            },
        };
        // Who comes while others wait would have waited for the next sync: a moment lets them share this one.
        if let Some(began) = self.crowded {
            thread::sleep(COMMIT_EVERY_MIN.saturating_sub(began.elapsed()));
        }
        let mut bytes = first.command.bytes();
        let mut jobs = vec![first];
        while jobs.len() < BATCH_COMMANDS && bytes < BATCH_BYTES {
            let Ok(job) = queue.try_recv() else { break };
            bytes += job.command.bytes();
            jobs.push(job);
        }
        Some(jobs)
    }

    /// How long to wait for commands before doing other work; `None` for as long as it takes.
    fn patience(&self) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        let compaction = match (&self.compaction, self.retry_at) {
            (Some(Compaction { stage: CompactionStage::Syncing(_), .. }), _) => Some(SYNC_POLL),
            (Some(_), _) if self.is_pressed() => Some(Duration::ZERO),
            (Some(_), _) => Some(self.compaction_pause),
            (None, _) => self.compaction_from().map(until),
        };
        let count = self.count.is_some().then_some(Duration::ZERO);
        let age = self.active.as_ref().map(|active| until(active.since + SEGMENT_AGE));
        [compaction, count, age].into_iter().flatten().min()
    }

    /// When the oldest closed segment's compaction may begin; `None` if there is none.
    fn compaction_from(&self) -> Option<Instant> {
        self.closed.front()?;
        let quiet = self.last_commit.filter(|_| !self.is_pressed()).map(|at| at + QUIET);
        Some(quiet.max(self.retry_at).unwrap_or_else(Instant::now))
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        let began = Instant::now();
        let takes_space = jobs.iter().any(|job| !matches!(job.command, Command::Remove { .. }));
        let (room, records_room) = if takes_space { self.room_for_puts() } else { (Ok(()), Ok(())) };
        let mut batch = Batch::default();
        for Job { command, answer, room: queue_room } in jobs {
            let staged = match command {
                Command::Put { key, data, kind } => {
                    let room = if key.starts_with(RECORDS) { &records_room } else { &room };
                    room.clone().and_then(|()| self.stage_put(&mut batch, key, data, kind))
                }
                Command::Remove { key } => self.stage_remove(&mut batch, key),
                // Its bytes are on the disk already: what is left to do takes no space worth refusing.
                Command::Publish { key, temp, len, kind } => self.stage_publish(&mut batch, key, &temp, len, kind),
            };
            match staged {
                Ok(()) => {
                    batch.durable |= answer.0.is_some();
                    batch.waiting.push((answer, queue_room));
                }
                Err(error) => answer.send(Err(error)),
            }
        }
        self.crowded = (batch.waiting.len() > 1).then_some(began);
        let result = self.make_durable(&batch);
        if result.is_ok() {
            self.space.change_used(batch.used_change);
        }
        for (answer, _room) in batch.waiting {
            answer.send(result.clone());
        }
    }

    /// Whether there is room for objects, and for records, which have a lower floor: to remove something is to write a
    /// record that says so. Waits for compaction if the log is too long.
    fn room_for_puts(&mut self) -> (Result<(), FolderError>, Result<(), FolderError>) {
        let both = |error: FolderError| (Err(error.clone()), Err(error));
        while self.log_too_long() {
            if let Some(Compaction { stage: CompactionStage::Syncing(done), .. }) = &self.compaction {
                let result = done.recv().unwrap_or_else(|_| Err(ErrorKind::Other.into()));
                self.synced(result);
                continue;
            }
            if self.retry_at.is_some_and(|at| at > Instant::now()) {
                return both(FolderError::LogTooLong);
            }
            self.last_commit = None;
            self.compact(usize::MAX);
        }
        if let Err(error) = self.space.measure(&*self.disk, self.floor_bytes) {
            return both(FolderError::io("measure free space")(error));
        }
        let room = |below: bool| if below { Err(FolderError::full(&self.space)) } else { Ok(()) };
        (room(self.space.below_floor()), room(self.space.below_records_floor()))
    }

    /// Whether compaction no longer waits for a quiet moment.
    fn is_pressed(&self) -> bool {
        self.closed_bytes() > CLOSED_BYTES_SOFT || self.closed.len() > CLOSED_SEGMENTS_SOFT
    }

    fn log_too_long(&self) -> bool {
        self.closed_bytes() > CLOSED_BYTES_MAX || self.closed.len() > CLOSED_SEGMENTS_MAX
    }

    fn closed_bytes(&self) -> u64 {
        self.closed.iter().map(|closed| closed.end).sum()
    }

    fn stage_put(&mut self, batch: &mut Batch, key: Arc<str>, data: Bytes, kind: PutKind) -> Result<(), FolderError> {
        let len = data.len() as u64;
        let io_error = FolderError::io("look for the object");
        let beside = self.beside(&key).map_err(&io_error)?;
        let old = match beside {
            // The folder is not there, so there is no file; but this batch may have put the object already.
            Beside::Nothing => batch.overlay.get(&key).copied().flatten(),
            Beside::Unknown => self.object_len(batch, &key).map_err(&io_error)?,
        };
        if kind == PutKind::Create && old.is_some() {
            return Err(FolderError::Exists);
        }
        batch.replace(&key, old, Some(len));
        batch.entries.push(Line { kind: EntryKind::Put, key, data, beside });
        Ok(())
    }

    fn stage_remove(&mut self, batch: &mut Batch, key: String) -> Result<(), FolderError> {
        let old = self.object_len(batch, &key).map_err(FolderError::io("look for the object"))?;
        if old.is_none() {
            return Ok(());
        }
        self.remove_file(&disk_path(&key)).map_err(FolderError::io("remove the file"))?;
        let key: Arc<str> = key.into();
        batch.replace(&key, old, None);
        batch.entries.push(Line::mark(EntryKind::Removed, key));
        Ok(())
    }

    fn stage_publish(&mut self, batch: &mut Batch, key: String, temp: &str, len: u64, kind: PutKind) -> Result<(), FolderError> {
        let named = self.name_file(batch, &key, temp, kind);
        let old = match named {
            Ok(old) => old,
            Err(error) => {
                let _ = self.disk.unlink(temp);
                return Err(error);
            }
        };
        let key: Arc<str> = key.into();
        if batch.overlay.contains_key(&key) || self.index.get(&key).is_some() {
            batch.entries.push(Line::mark(EntryKind::File, key.clone()));
        }
        batch.replace(&key, old, Some(len));
        Ok(())
    }

    /// Renames the temporary file to the key's path; answers the length of what stood there.
    fn name_file(&mut self, batch: &mut Batch, key: &str, temp: &str, kind: PutKind) -> Result<Option<u64>, FolderError> {
        let old = self.object_len(batch, key).map_err(FolderError::io("look for the object"))?;
        if kind == PutKind::Create && old.is_some() {
            return Err(FolderError::Exists);
        }
        let path = disk_path(key);
        self.make_parents(batch, &path).map_err(FolderError::io("make the folders"))?;
        let (folder, name) = folder_and_name(&path);
        let rename = || self.files.change(folder, || self.disk.rename(temp, &path).map(|()| ((), NameChange::Added(name))));
        let renamed = match rename() {
            // Somebody else removed a folder we knew.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.known_folders.clear();
                self.make_parents(batch, &path).and_then(|()| rename())
            }
            other => other,
        };
        renamed.map_err(FolderError::io("name the file"))?;
        batch.folders.insert(parent(&path).to_owned());
        Ok(old)
    }

    /// Makes the folders above a path; those not known to be durable are synced with the batch.
    fn make_parents(&self, batch: &mut Batch, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/') {
            let folder = &path[..at];
            if self.known_folders.contains(folder) {
                continue;
            }
            make_folder(&*self.disk, folder)?;
            batch.folders.insert(parent(folder).to_owned());
            batch.new_folders.push(folder.to_owned());
        }
        Ok(())
    }

    /// What a put of this key will have beside it, see [`Spot::beside`].
    fn beside(&self, key: &str) -> io::Result<Beside> {
        let Some((folder, _)) = key.rsplit_once('/').filter(|(folder, _)| folder.starts_with(RECORDS)) else {
            return Ok(Beside::Unknown);
        };
        let alone = self.index.has_none_under(folder) && self.disk.stat(&disk_path(folder))?.is_none();
        Ok(if alone { Beside::Nothing } else { Beside::Unknown })
    }

    /// Length of the object as of now, this batch included; `None` if there is none.
    fn object_len(&self, batch: &Batch, key: &str) -> io::Result<Option<u64>> {
        if let Some(len) = batch.overlay.get(key) {
            return Ok(*len);
        }
        match self.index.get(key) {
            Some(Slot::Put(spot)) => Ok(Some(u64::from(spot.len))),
            Some(Slot::Removed { .. }) => Ok(None),
            None => Ok(self.disk.stat(&disk_path(key))?.map(|stat| stat.len)),
        }
    }

    fn make_durable(&mut self, batch: &Batch) -> Result<(), FolderError> {
        for folder in &batch.folders {
            if let Err(error) = self.disk.sync_folder(folder) {
                self.known_folders.clear();
                return Err(FolderError::io("sync a folder")(error));
            }
        }
        if self.known_folders.len() + batch.new_folders.len() > KNOWN_FOLDERS_MAX {
            self.known_folders.clear();
        }
        self.known_folders.extend(batch.new_folders.iter().cloned());
        if batch.entries.is_empty() {
            // Who is told that a key is gone may have been told so by a removal that nobody waited for.
            let synced = if batch.durable { self.sync_rest() } else { Ok(()) };
            return synced.map_err(FolderError::io("write the log"));
        }
        let changes = self.append(&batch.entries, batch.durable)?;
        self.index.apply(changes);
        Ok(())
    }

    /// Appends entries to the log; answers what the index has to learn.
    fn append(&mut self, entries: &[Line], durable: bool) -> Result<Vec<Change>, FolderError> {
        self.open_active().map_err(FolderError::io("start a log segment"))?;
        if !self.is_unsynced_in_active() {
            self.sync_rest().map_err(FolderError::io("write the log"))?;
        }
        let active = self.active.as_mut().expect("opened on the line above");
        let (mut bytes, mut changes) = (std::mem::take(&mut self.buffer), Vec::with_capacity(entries.len()));
        let written_ms = now_ms();
        let segment = &active.segment;
        for Line { kind, key, data, beside } in entries {
            let at = encode_entry(&mut bytes, segment.mark, *kind, active.batch, written_ms, key, data);
            let slot = match kind {
                EntryKind::Put => Some(Slot::Put(Spot {
                    segment: segment.clone(),
                    offset: u32::try_from(active.end + at as u64).expect("a segment ends soon after SEGMENT_BYTES"),
                    len: u32::try_from(data.len()).expect("only small objects go into the log"),
                    written_ms,
                    beside: *beside,
                })),
                EntryKind::Removed => Some(Slot::Removed { segment_number: segment.number }),
                EntryKind::File => None,
            };
            changes.push((key.clone(), slot));
        }
        // Removals that nobody waits for become durable with the next entry that somebody does wait for, or not at all.
        let sync = || if durable { segment.file.sync_data() } else { Ok(()) };
        let len = bytes.len() as u64;
        if active.end + len > active.file_end {
            bytes.resize(bytes.len() + ROOM_AHEAD_BYTES, 0);
            active.file_end = active.end + bytes.len() as u64;
        }
        let written = segment.file.write_at(active.end, &bytes).and_then(|()| sync());
        if let Err(error) = written {
            // Nobody knows what of it reached the disk. Nothing more is written behind it.
            let _ = segment.file.truncate(active.end);
            self.close_active();
            return Err(FolderError::io("write the log")(error));
        }
        self.unsynced = (!durable).then(|| segment.clone());
        active.end += len;
        if bytes.capacity() <= BUFFER_KEPT_BYTES {
            bytes.clear();
            self.buffer = bytes;
        }
        active.entries += u32::try_from(entries.len()).expect("a batch has at most BATCH_COMMANDS entries");
        active.batch = active.batch.wrapping_add(1);
        Ok(changes)
    }

    fn is_unsynced_in_active(&self) -> bool {
        match (&self.unsynced, &self.active) {
            (Some(unsynced), Some(active)) => Arc::ptr_eq(unsynced, &active.segment),
            _ => false,
        }
    }

    /// Makes durable what nobody waited for.
    fn sync_rest(&mut self) -> io::Result<()> {
        if let Some(segment) = &self.unsynced {
            segment.file.sync_data()?;
            self.unsynced = None;
        }
        Ok(())
    }

    fn open_active(&mut self) -> io::Result<()> {
        if self.active.is_some() {
            return Ok(());
        }
        make_folder(&*self.disk, LOG_FOLDER)?;
        self.disk.sync_folder("")?;
        let (number, mark) = (self.next_number, rand::random::<[u8; 8]>());
        let path = segment_path(number);
        let file = self.disk.create(&path, Writing::Buffered)?;
        self.next_number += 1;
        // The header is durable before any entry: a bad header with entries behind it is damage, not a crash.
        let header = encode_segment_header(number, mark);
        let durable = file.write_at(0, &header).and_then(|()| file.sync_data()).and_then(|()| self.disk.sync_folder(LOG_FOLDER));
        if let Err(error) = durable {
            let _ = self.disk.unlink(&path);
            return Err(error);
        }
        let segment = Arc::new(Segment { number, mark, file });
        self.active = Some(Active {
            segment,
            end: SEGMENT_HEADER_BYTES,
            file_end: SEGMENT_HEADER_BYTES,
            entries: 0,
            batch: 0,
            since: Instant::now(),
        });
        Ok(())
    }

    fn close_active_if_due(&mut self) {
        let due = self.active.as_ref().is_some_and(|active| {
            active.end >= SEGMENT_BYTES || active.entries >= SEGMENT_ENTRIES || active.since.elapsed() >= SEGMENT_AGE
        });
        if due {
            self.close_active();
        }
    }

    fn close_active(&mut self) {
        if let Some(Active { segment, end, file_end, .. }) = self.active.take() {
            if file_end > end {
                // Only tidiness, as at a start.
                let _ = segment.file.truncate(end);
            }
            self.closed.push_back(Closed { segment, end });
        }
    }

    /// Goes on compacting the oldest closed segment, for about `entries` entries.
    fn compact(&mut self, entries: usize) {
        if self.compaction.is_none() {
            let waiting = self.compaction_from().is_none_or(|from| from > Instant::now());
            let Some(oldest) = self.closed.front().filter(|_| !waiting) else { return };
            let Segment { mark, file, .. } = &*oldest.segment;
            let scanner = Scanner::new(file.clone(), *mark, SEGMENT_HEADER_BYTES, oldest.end);
            self.compaction = Some(Compaction { keys: Vec::new(), stage: CompactionStage::Copying(scanner) });
        }
        let Some(mut compaction) = self.compaction.take() else { return };
        match compaction.stage {
            CompactionStage::Copying(ref mut scanner) => match self.copy_entries(scanner, &mut compaction.keys, entries) {
                Ok(Copied::Some) => self.compaction = Some(compaction),
                Ok(Copied::All) => self.start_sync(compaction.keys),
                Err(error) => self.compaction_failed(&error),
            },
            CompactionStage::Syncing(ref done) => {
                let result = done.try_recv();
                self.compaction = Some(compaction);
                if let Ok(result) = result {
                    self.synced(result);
                }
            }
        }
    }

    fn copy_entries(&self, scanner: &mut Scanner, keys: &mut Vec<Arc<str>>, entries: usize) -> io::Result<Copied> {
        let number = self.closed.front().expect("compaction works on the first closed segment").segment.number;
        let (began, hurried) = (Instant::now(), self.is_pressed());
        for _ in 0..entries {
            if !hurried && began.elapsed() > COMPACT_STEP_TIME {
                break;
            }
            match scanner.next()? {
                None => return Ok(Copied::All),
                Some(Scanned::Damaged { bytes }) => {
                    tracing::warn!(segment = number, bytes, "damaged bytes in the log of small objects");
                }
                Some(Scanned::Entry(entry)) => keys.extend(self.copy_entry(number, &entry)?),
            }
        }
        Ok(Copied::Some)
    }

    /// Makes the files say what a live entry says; answers its key.
    fn copy_entry(&self, segment_number: u64, entry: &Entry) -> io::Result<Option<Arc<str>>> {
        let Some((key, slot)) = self.index.key_in(segment_number, &entry.key) else { return Ok(None) };
        let path = disk_path(&key);
        match (slot, entry.kind) {
            (Slot::Put(spot), EntryKind::Put) if u64::from(spot.offset) == entry.data_offset => {
                self.replace_file(&path, &entry.data)?;
                Ok(Some(key))
            }
            (Slot::Removed { .. }, EntryKind::Removed) => {
                self.remove_file(&path)?;
                Ok(Some(key))
            }
            _ => Ok(None),
        }
    }

    /// Writes a file anew. Not atomic, and needs not be: until the segment goes, readers and a next start use the log.
    fn replace_file(&self, path: &str, data: &[u8]) -> io::Result<()> {
        let (folder, name) = folder_and_name(path);
        let file = self.files.change(folder, || {
            let (file, made) = self.create_anew(path)?;
            Ok::<_, io::Error>((file, if made == Made::Folder { NameChange::First(name) } else { NameChange::Added(name) }))
        });
        file?.write_at(0, data)
    }

    fn create_anew(&self, path: &str) -> io::Result<(Arc<dyn DiskFile>, Made)> {
        match self.disk.create(path, Writing::Buffered) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Not written in place: who has the old file open goes on reading the old bytes.
                self.disk.unlink(path)?;
                Ok((self.disk.create(path, Writing::Buffered)?, Made::File))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut made = Made::File;
                for (at, _) in path.match_indices('/') {
                    made = make_folder(&*self.disk, &path[..at])?;
                }
                Ok((self.disk.create(path, Writing::Buffered)?, made))
            }
            created => Ok((created?, Made::File)),
        }
    }

    /// Removes a file, if there is one, and the folders of records that get empty by it.
    fn remove_file(&self, path: &str) -> io::Result<()> {
        let (folder, name) = folder_and_name(path);
        self.files.change(folder, || match self.disk.unlink(path) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(error),
            _ => Ok(((), NameChange::Removed(name))),
        })?;
        // `records/<kind>/<2 hex>` and `sectors/<2 hex>` stay: their number is bounded.
        let mut folder = folder;
        while folder.matches('/').count() > 2 && self.disk.remove_folder(folder).is_ok() {
            folder = parent(folder);
        }
        Ok(())
    }

    /// Syncs the whole file system on a thread of its own, because that may take long and commits go on meanwhile.
    fn start_sync(&mut self, keys: Vec<Arc<str>>) {
        let (sender, done) = channel();
        let disk = self.disk.clone();
        let spawned = thread::Builder::new().name("skygate-sync".into()).spawn(move || {
            let result = disk.sync_all();
            // First let go of the folder, then say so.
            drop(disk);
            let _ = sender.send(result);
        });
        match spawned {
            Ok(_) => self.compaction = Some(Compaction { keys, stage: CompactionStage::Syncing(done) }),
            Err(error) => self.compaction_failed(&error),
        }
    }

    fn synced(&mut self, result: io::Result<()>) {
        let Some(compaction) = self.compaction.take() else { return };
        let Some(oldest) = self.closed.front() else { return };
        let number = oldest.segment.number;
        let gone = result.and_then(|()| match self.disk.unlink(&segment_path(number)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => self.disk.sync_folder(LOG_FOLDER),
        });
        match gone {
            Ok(()) => {
                self.index.retire(number, &compaction.keys);
                self.closed.pop_front();
                self.retry_at = None;
            }
            Err(error) => self.compaction_failed(&error),
        }
    }

    fn compaction_failed(&mut self, error: &io::Error) {
        tracing::warn!(%error, "compacting the log of small objects failed; it is tried again");
        self.compaction = None;
        self.retry_at = Some(Instant::now() + COMPACT_RETRY);
    }

    /// Goes on with the first count of used bytes.
    fn count_on(&mut self) {
        let Some(count) = &mut self.count else { return };
        match count.listing.page(COUNT_STEP) {
            Ok(page) if page.is_empty() => {
                self.space.counted(count.found_bytes);
                self.count = None;
            }
            Ok(page) => {
                let old = page.iter().filter(|listed| listed.modified < count.before);
                count.found_bytes += old.map(|listed| listed.len).sum::<u64>();
            }
            Err(error) => {
                tracing::warn!(%error, "counting the used bytes of a folder failed");
                self.count = None;
            }
        }
    }
}

enum Copied {
    Some,
    All,
}

impl Batch {
    fn replace(&mut self, key: &Arc<str>, old_len: Option<u64>, new_len: Option<u64>) {
        let signed = |len: Option<u64>| i64::try_from(len.unwrap_or(0)).unwrap_or(i64::MAX);
        self.used_change += signed(new_len) - signed(old_len);
        self.overlay.insert(key.clone(), new_len);
    }
}

impl Command {
    fn bytes(&self) -> usize {
        match self {
            Command::Put { data, .. } => data.len(),
            Command::Remove { .. } | Command::Publish { .. } => 0,
        }
    }
}

/// What had to be made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    /// The folder it stands in, too, so there is nothing else in it.
    Folder,
    File,
}

/// `File` if the folder was there.
fn make_folder(disk: &dyn Disk, folder: &str) -> io::Result<Made> {
    match disk.make_folder(folder) {
        Ok(()) => Ok(Made::Folder),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Made::File),
        Err(error) => Err(error),
    }
}

fn folder_and_name(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Keeps the type of an open log file in one place for the opening code.
pub(super) fn segment_of(number: u64, mark: [u8; 8], file: Arc<dyn DiskFile>) -> Arc<Segment> {
    Arc::new(Segment { number, mark, file })
}
