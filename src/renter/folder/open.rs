//! Opening a folder: nothing is made in it, its log is read back, and its writer starts.

use std::{
    fmt::Debug,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Sender, channel},
    },
    thread,
    time::SystemTime,
};

use tokio::sync::{Semaphore, watch};

use super::{
    FolderError, FolderOptions, QUEUE_KIB,
    disk::{Access, Disk, EntryKind as Kind, RealDisk},
    files::Files,
    index::{Beside, Index, Slot, Spot},
    key::MARKER_KEY,
    log::{
        Entry, EntryKind, LOG_FOLDER, SEGMENT_HEADER_BYTES, Scanned, Scanner, SegmentHeader, decode_segment_header, segment_number,
        segment_path,
    },
    space::Space,
    walk::Listing,
    write::CopyBuffers,
    writer::{Closed, Count, Job, ROOM_AHEAD_BYTES, Writer, segment_of},
};

/// Folder of files in the making; emptied at opening.
pub(super) const TEMP_FOLDER: &str = "tmp";

/// Where a folder is found. Opened anew at each look at the marker, so that a mount or unmount shows.
pub(super) trait Place: Debug + Send + Sync {
    /// `None` if there is no folder.
    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>>;
    /// Makes the folder, if it is not there, and opens it.
    fn create(&self) -> io::Result<Arc<dyn Disk>>;
}

/// A path of this machine.
#[derive(Debug)]
pub(super) struct RealPlace(pub PathBuf);

impl Place for RealPlace {
    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        Ok(RealDisk::open_folder(&self.0)?.map(|disk| Arc::new(disk) as Arc<dyn Disk>))
    }

    fn create(&self) -> io::Result<Arc<dyn Disk>> {
        Ok(Arc::new(RealDisk::create_folder(&self.0)?))
    }
}

/// An open folder. When the last handle goes, its writer finishes what is queued and lets go of the folder.
#[derive(Debug)]
pub(super) struct Open {
    pub disk: Arc<dyn Disk>,
    pub index: Arc<Index>,
    pub files: Arc<Files>,
    pub queue: Sender<Job>,
    /// Room in the queue, in KiB.
    pub room: Arc<Semaphore>,
    pub copy_buffers: CopyBuffers,
    /// Closed when the writer has ended.
    pub ended: watch::Receiver<()>,
    next_temp: AtomicU64,
}

impl Open {
    pub fn next_temp(&self) -> String {
        format!("{TEMP_FOLDER}/{}", self.next_temp.fetch_add(1, Relaxed))
    }
}

/// Opens a folder that has its marker, for this process alone.
pub(super) fn open_folder(disk: Arc<dyn Disk>, options: &FolderOptions, space: &Arc<Space>) -> Result<Open, FolderError> {
    if !has_marker(&*disk)? {
        return Err(FolderError::NoMarker);
    }
    if !disk.lock().map_err(FolderError::io("lock the folder"))? {
        return Err(FolderError::Locked);
    }
    remove_temps(&*disk);
    space.forget();
    space.measure(&*disk, options.floor_bytes).map_err(FolderError::io("measure free space"))?;
    let index = Arc::new(Index::default());
    let files = Arc::new(Files::new());
    let mut writer = Writer::new(disk.clone(), index.clone(), files.clone(), space.clone(), options.floor_bytes);
    let names = disk.names(LOG_FOLDER).map_err(FolderError::io("list the log"))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|(name, _)| segment_number(name)).collect();
    numbers.sort_unstable();
    for &number in &numbers {
        writer.closed.extend(read_segment(&*disk, &index, number)?);
    }
    writer.next_number = numbers.last().map_or(1, |last| last.saturating_add(1));
    writer.count =
        Some(Count { listing: Listing::start(disk.clone(), &index, "", None), before: SystemTime::now(), found_bytes: 0 });
    tracing::debug!(segments = numbers.len(), keys = index.len(), "opened a folder");
    let (queue, jobs) = channel();
    let (ending, ended) = watch::channel(());
    thread::Builder::new()
        .name("skygate-folder".into())
        .spawn(move || {
            writer.run(jobs);
            drop(ending);
        })
        .map_err(FolderError::io("start the writer"))?;
    Ok(Open {
        disk,
        index,
        files,
        queue,
        room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
        copy_buffers: CopyBuffers::default(),
        ended,
        next_temp: AtomicU64::new(1),
    })
}

pub(super) fn has_marker(disk: &dyn Disk) -> Result<bool, FolderError> {
    let stat = disk.stat(MARKER_KEY).map_err(FolderError::io("look for the marker"))?;
    Ok(stat.is_some_and(|stat| stat.kind == Kind::File))
}

/// Nothing in the folder of temporary files was ever acknowledged.
fn remove_temps(disk: &dyn Disk) {
    for (name, _) in disk.names(TEMP_FOLDER).unwrap_or_default() {
        // What cannot be removed costs space, nothing else.
        let _ = disk.unlink(&format!("{TEMP_FOLDER}/{name}"));
    }
}

/// Reads one segment into the index; `None` if it holds nothing and is gone now.
fn read_segment(disk: &dyn Disk, index: &Index, number: u64) -> Result<Option<Closed>, FolderError> {
    let path = segment_path(number);
    let io_error = FolderError::io("read the log");
    let file = match disk.open(&path, Access::ReadWrite) {
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            disk.open(&path, Access::Read)
        }
        other => other,
    }
    .map_err(&io_error)?;
    let len = file.stat().map_err(&io_error)?.len;
    let header = file.read_at(0, SEGMENT_HEADER_BYTES as usize).map_err(&io_error)?;
    let mark = match decode_segment_header(number, &header) {
        SegmentHeader::Good { mark } => mark,
        SegmentHeader::Newer { version } => return Err(FolderError::NewerLog { version }),
        SegmentHeader::Bad => return set_aside(disk, &path, len).map(|()| None),
    };
    let segment = segment_of(number, mark, file.clone());
    let mut scanner = Scanner::new(file.clone(), mark, SEGMENT_HEADER_BYTES, len);
    while let Some(step) = scanner.next().map_err(&io_error)? {
        match step {
            Scanned::Entry(entry) => {
                let change = slot_of(&segment, &entry);
                index.apply([(entry.key.into(), change)]);
            }
            Scanned::Damaged { bytes } => {
                tracing::warn!(
                    segment = number,
                    bytes,
                    "damaged bytes in the log of small objects, with intact entries behind them"
                );
            }
        }
    }
    let end = scanner.good_end();
    if end < len {
        let room = len - end <= ROOM_AHEAD_BYTES as u64;
        let tail = if room { file.read_at(end, ROOM_AHEAD_BYTES).map_err(&io_error)? } else { Vec::new() };
        // Zeros are what every segment has behind it that was written to when this process was killed.
        if !room || tail.iter().any(|byte| *byte != 0) {
            tracing::info!(segment = number, bytes = len - end, "cut the torn tail of the log of small objects");
        }
        // Only tidiness: nothing is ever written behind `end`, and a later reader cuts again.
        let _ = file.truncate(end);
    }
    Ok(Some(Closed { segment, end }))
}

fn slot_of(segment: &Arc<super::index::Segment>, entry: &Entry) -> Option<Slot> {
    match entry.kind {
        EntryKind::Put => Some(Slot::Put(Spot {
            segment: segment.clone(),
            // Entries that do not fit were never written here: segments end soon after SEGMENT_BYTES.
            offset: u32::try_from(entry.data_offset).ok()?,
            len: u32::try_from(entry.data.len()).ok()?,
            written_ms: entry.written_ms,
            beside: Beside::Unknown,
        })),
        EntryKind::Removed => Some(Slot::Removed { segment_number: segment.number }),
        EntryKind::File => None,
    }
}

/// A segment whose header is bad: if it has no more than a header, its making was cut and it never had an entry.
/// Else it is damaged; its entries cannot be told from others, so it is kept under another name for somebody to look at.
fn set_aside(disk: &dyn Disk, path: &str, len: u64) -> Result<(), FolderError> {
    if len <= SEGMENT_HEADER_BYTES {
        // On a read-only disk it stays, and says nothing.
        let _ = disk.unlink(path);
        return Ok(());
    }
    tracing::error!(segment = path, bytes = len, "a segment of the log of small objects is damaged and was set aside");
    disk.rename(path, &format!("{path}.damaged")).map_err(FolderError::io("set a damaged log segment aside"))
}
