//! The file operations a folder host needs, and nothing else.
//!
//! Two implementations: [`RealDisk`] over the operating system, and a simulated disk in the tests that forgets what was not
//! synced. That is why this door exists: the order of syncs is the whole point of a folder host, and only a disk that forgets can test it.
//! Paths are relative to the folder and never contain `..` (see `key.rs`).

use std::{
    fmt::Debug,
    fs,
    io::{self, ErrorKind, IoSliceMut},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    buffer::spare_capacity,
    fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags},
    io::{Errno, ReadWriteFlags},
};

/// Alignment of direct writes in bytes, in memory, in the file and in length: the page size, which every disk of today takes.
pub(super) const DIRECT_ALIGN: usize = 4096;

/// File systems (`f_type` of statfs(2)) that open a file whose name is in memory without asking anybody: ext4, XFS, Btrfs, F2FS,
/// bcachefs, tmpfs, overlayfs. Others ask their server or daemon even then (NFS, FUSE), and one that hangs would take a worker.
const OPENS_IN_MEMORY: [u32; 7] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e, 0x0102_1994, 0x794c_7630];

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    Folder,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub kind: EntryKind,
    pub len: u64,
    pub modified: SystemTime,
}

/// How a new file will be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// Past the page cache where the file system allows it; see [`DiskFile::is_direct`].
    Direct,
    Buffered,
}

/// Bytes of the file system the folder is on, as seen by an unprivileged user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FreeSpace {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// An open folder. Every call may block for as long as the disk likes.
pub(super) trait Disk: Debug + Send + Sync {
    /// Opens a file for reading (and, for the log, writing). A symbolic link is not followed.
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a new file; fails if there is one.
    fn create(&self, path: &str, writing: Writing) -> io::Result<Arc<dyn DiskFile>>;
    /// Replaces what stands at `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn unlink(&self, path: &str) -> io::Result<()>;
    fn make_folder(&self, path: &str) -> io::Result<()>;
    fn remove_folder(&self, path: &str) -> io::Result<()>;
    /// What stands at the path, without following a link; `None` if nothing does.
    fn stat(&self, path: &str) -> io::Result<Option<Stat>>;
    /// True if nothing is at the path, as far as is known without waiting for the disk. Anything else is no answer.
    fn surely_absent(&self, _path: &str) -> bool {
        false
    }
    /// A file opened for reading, if its name and what a `stat` tells are in memory; never waits for the disk.
    fn open_at_once(&self, _path: &str) -> Option<Arc<dyn DiskFile>> {
        None
    }
    /// Names in a folder, in no order. A missing folder, or a file in its place, has none.
    fn names(&self, folder: &str) -> io::Result<Vec<(String, EntryKind)>>;
    /// Makes the names in a folder durable; the empty path is the top.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
    /// Makes everything written so far durable, names and data.
    fn sync_all(&self) -> io::Result<()>;
    fn free_space(&self) -> io::Result<FreeSpace>;
    /// Takes the folder for this process until the disk is dropped; false if another has it.
    fn lock(&self) -> io::Result<bool>;
    /// Something that is equal for two disks if, and only if, they are the same folder of the same file system.
    fn identity(&self) -> (u64, u64);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    ReadWrite,
}

/// An open file.
pub(super) trait DiskFile: Debug + Send + Sync {
    /// True if writes have to be aligned to [`DIRECT_ALIGN`].
    fn is_direct(&self) -> bool;
    /// Up to `len` bytes; fewer only at the end of the file.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.read_into(offset, len, Vec::with_capacity(len))
    }

    /// The same into a buffer that the caller brings, empty, with room or without.
    fn read_into(&self, offset: u64, len: usize, buffer: Vec<u8>) -> io::Result<Vec<u8>>;
    /// Exactly `len` bytes, if they are in memory; never waits for the disk.
    fn read_at_once(&self, _offset: u64, _len: usize) -> Option<Vec<u8>> {
        None
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the file's bytes and length durable.
    fn sync_data(&self) -> io::Result<()>;
    fn stat(&self) -> io::Result<Stat>;
}

/// A folder of this machine, held open: as long as it is, its file system cannot go away under it unnoticed,
/// and nothing is ever written to what a later mount or unmount shows at its path.
#[derive(Debug)]
pub(super) struct RealDisk {
    root: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
    /// Its file system is one of [`OPENS_IN_MEMORY`].
    opens_in_memory: bool,
    direct_refused: AtomicBool,
}

impl RealDisk {
    /// Opens the folder; `None` if there is none.
    pub fn open_folder(path: &Path) -> io::Result<Option<RealDisk>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let stat = rustix::fs::fstat(&root)?;
        let kind = rustix::fs::fstatfs(&root)?.f_type;
        Ok(Some(RealDisk {
            root,
            path: path.to_owned(),
            identity: (stat.st_dev, stat.st_ino),
            opens_in_memory: OPENS_IN_MEMORY.contains(&(kind as u32)),
            direct_refused: AtomicBool::new(false),
        }))
    }

    /// Makes the folder and what is missing above it, durably, and opens it.
    pub fn create_folder(path: &Path) -> io::Result<RealDisk> {
        fs::create_dir_all(path)?;
        // Also syncs folders that stood before: which of them are new is not worth knowing at a first start.
        for above in path.ancestors().skip(1) {
            let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            match fs::File::open(above).and_then(|folder| folder.sync_all()) {
                Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
        }
        RealDisk::open_folder(path)?.ok_or_else(|| io::Error::from(ErrorKind::NotFound))
    }

    fn open_with(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |flags: OFlags| rustix::fs::openat(&self.root, path, flags, Mode::from_raw_mode(0o644));
        // Nobody asks when a file was read last, and writing it down makes a read wait for the journal. Only the owner may say so.
        match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => Ok(open(flags)?),
            opened => Ok(opened?),
        }
    }

    fn open_names(&self, folder: &str) -> io::Result<OwnedFd> {
        let folder = if folder.is_empty() { "." } else { folder };
        self.open_with(folder, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens what the kernel's memory of names has (RESOLVE_CACHED, Linux 5.12); `None` where that might wait all the same.
    fn open_cached(&self, path: &str, flags: OFlags) -> Option<Result<OwnedFd, Errno>> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        self.opens_in_memory.then(|| rustix::fs::openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::CACHED))
    }

    fn warn_direct_refused(&self) {
        if !self.direct_refused.swap(true, Relaxed) {
            tracing::warn!(folder = %self.path.display(), "the file system refuses direct writes: sectors go through the page cache, which is slower");
        }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        // Without NONBLOCK, opening a named pipe somebody left in the folder would wait for ever.
        let file = self.open_with(path, flags | OFlags::NONBLOCK)?;
        Ok(Arc::new(RealFile { file, direct: false }))
    }

    fn create(&self, path: &str, writing: Writing) -> io::Result<Arc<dyn DiskFile>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        if writing == Writing::Direct && !self.direct_refused.load(Relaxed) {
            match self.open_with(path, flags | OFlags::DIRECT) {
                Ok(file) => return Ok(Arc::new(RealFile { file, direct: true })),
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    self.warn_direct_refused();
                    // Some file systems make the file before they refuse the flag.
                    match self.unlink(path) {
                        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let file = self.open_with(path, flags)?;
        Ok(Arc::new(RealFile { file, direct: false }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.root, from, &self.root, to)?)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::empty())?)
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.root, path, Mode::from_raw_mode(0o755))?)
    }

    fn remove_folder(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR)?)
    }

    fn stat(&self, path: &str) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat_of(&stat))),
            Err(Errno::NOENT) | Err(Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn surely_absent(&self, path: &str) -> bool {
        let found = self.open_cached(path, OFlags::PATH);
        matches!(found, Some(Err(Errno::NOENT | Errno::NOTDIR)))
    }

    fn open_at_once(&self, path: &str) -> Option<Arc<dyn DiskFile>> {
        let file = self.open_cached(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME)?.ok()?;
        Some(Arc::new(RealFile { file, direct: false }))
    }

    fn names(&self, folder: &str) -> io::Result<Vec<(String, EntryKind)>> {
        let opened = match self.open_names(folder) {
            Ok(opened) => opened,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in Dir::new(opened)? {
            let entry = entry?;
            // Names that are not UTF-8 are not ours.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not say it in the folder.
                FileType::Unknown => match self.stat(&format!("{folder}/{name}"))? {
                    Some(stat) => stat.kind,
                    None => continue,
                },
                kind => kind_of(kind),
            };
            names.push((name.to_owned(), kind));
        }
        Ok(names)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.open_names(folder)?)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(self.root.as_fd())?)
    }

    fn free_space(&self) -> io::Result<FreeSpace> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok(FreeSpace {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn identity(&self) -> (u64, u64) {
        self.identity
    }
}

#[derive(Debug)]
struct RealFile {
    file: OwnedFd,
    direct: bool,
}

impl DiskFile for RealFile {
    fn is_direct(&self) -> bool {
        self.direct
    }

    fn read_into(&self, offset: u64, len: usize, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        bytes.reserve_exact(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&self.file, spare_capacity(&mut bytes), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // The allocator may have given more room than asked for.
        bytes.truncate(len);
        Ok(bytes)
    }

    fn read_at_once(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        // RWF_NOWAIT: bytes of the page cache, or an error.
        let read = rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(&mut bytes)], offset, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|count| count == len).then_some(bytes)
    }

    fn write_at(&self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::pwrite(&self.file, bytes, offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    offset += count as u64;
                    bytes = &bytes[count..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.file, len)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(stat_of(&rustix::fs::fstat(&self.file)?))
    }
}

fn stat_of(stat: &rustix::fs::Stat) -> Stat {
    let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    let nanos = Duration::from_nanos(stat.st_mtime_nsec);
    Stat {
        kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
        len: u64::try_from(stat.st_size).unwrap_or(0),
        modified: UNIX_EPOCH + seconds + nanos,
    }
}

fn kind_of(kind: FileType) -> EntryKind {
    match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Folder,
        _ => EntryKind::Other,
    }
}
