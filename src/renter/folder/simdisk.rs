//! A simulated disk with a page cache: what was not synced may be lost, kept, or torn when the power goes. Tests only.
//!
//! Names: each make, rename and remove waits until its folder (one of the two, for a rename) or everything is synced. At a power loss either a random
//! beginning of the waiting changes is kept (a journaling file system) or each one by the toss of a coin (any other); a rename is
//! never halved. Data: each write and cut since the file's last sync is kept, left out, or cut at a multiple of 512 bytes.
//! All handles of before the loss fail from then on.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{
    FolderOptions, FolderStore,
    disk::{Access, DIRECT_ALIGN, Disk, DiskFile, EntryKind, FreeSpace, Stat, Writing},
    key::parent,
    open::Place,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File(usize),
}

type Tree = BTreeMap<String, Node>;

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, Node),
    Unlink(String),
    Rename(String, String, Node),
}

#[derive(Clone, Debug)]
enum DataChange {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

#[derive(Debug, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    waiting: Vec<DataChange>,
    modified: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct Sim {
    inodes: Vec<Inode>,
    live: Tree,
    durable: Tree,
    waiting: Vec<NameChange>,
    /// Counts power losses; handles of an earlier one are dead.
    life: u64,
    locked: bool,
    /// Changes until the power goes.
    fuse: Option<u64>,
    free_bytes: u64,
    sync_fails: bool,
}

/// The disk itself: outlives power losses.
#[derive(Clone, Debug)]
pub(crate) struct SimMachine(Arc<Mutex<Sim>>);

/// A handle on it, good until the next power loss.
#[derive(Debug)]
pub(crate) struct SimDisk {
    machine: SimMachine,
    life: u64,
    has_lock: Mutex<bool>,
}

#[derive(Debug)]
struct SimFile {
    machine: SimMachine,
    life: u64,
    inode: usize,
    direct: bool,
}

impl SimMachine {
    pub fn new() -> SimMachine {
        SimMachine(Arc::new(Mutex::new(Sim { free_bytes: 1 << 40, ..Sim::default() })))
    }

    /// A folder host on it.
    pub fn store(&self) -> FolderStore {
        let options = FolderOptions { floor_bytes: Some(1 << 20) };
        FolderStore::at(Box::new(self.clone()), "simulated".into(), options)
    }

    /// The power goes after this many more changes.
    pub fn set_fuse(&self, changes: u64) {
        self.lock().fuse = Some(changes);
    }

    pub fn set_free_bytes(&self, bytes: u64) {
        self.lock().free_bytes = bytes;
    }

    pub fn set_sync_fails(&self, fails: bool) {
        self.lock().sync_fails = fails;
    }

    pub fn paths(&self) -> Vec<String> {
        self.lock().live.keys().cloned().collect()
    }

    /// The power goes now, and comes back.
    pub fn crash(&self, rng: &mut ChaCha8Rng) {
        let mut sim = self.lock();
        let waiting = std::mem::take(&mut sim.waiting);
        let kept_first = rng.random_range(0..=waiting.len());
        let in_order = rng.random_bool(0.5);
        for (index, change) in waiting.iter().enumerate() {
            if if in_order { index < kept_first } else { rng.random_bool(0.5) } {
                change.apply(&mut sim.durable);
            }
        }
        for inode in &mut sim.inodes {
            for change in std::mem::take(&mut inode.waiting) {
                match (rng.random_range(0..3), change) {
                    (0, change) => change.apply(&mut inode.durable),
                    (1, DataChange::Write(offset, mut bytes)) => {
                        let cut = rng.random_range(0..=bytes.len());
                        bytes.truncate(if rng.random_bool(0.5) { cut } else { cut / 512 * 512 });
                        DataChange::Write(offset, bytes).apply(&mut inode.durable);
                    }
                    _ => {}
                }
            }
            inode.live = inode.durable.clone();
        }
        // What stands in a folder that was lost is lost, too.
        let folders = sim.durable.clone();
        sim.durable.retain(|path, _| path.match_indices('/').all(|(at, _)| folders.get(&path[..at]) == Some(&Node::Folder)));
        sim.live = sim.durable.clone();
        sim.life += 1;
        sim.locked = false;
        sim.fuse = None;
    }

    fn lock(&self) -> MutexGuard<'_, Sim> {
        self.0.lock().unwrap()
    }

    fn enter(&self, life: u64) -> io::Result<MutexGuard<'_, Sim>> {
        let sim = self.lock();
        if sim.life != life || sim.fuse == Some(0) { Err(io::Error::other("no power")) } else { Ok(sim) }
    }

    /// Like `enter`, for a change: burns the fuse.
    fn change(&self, life: u64) -> io::Result<MutexGuard<'_, Sim>> {
        let mut sim = self.enter(life)?;
        if let Some(fuse) = &mut sim.fuse {
            *fuse -= 1;
        }
        Ok(sim)
    }
}

impl NameChange {
    fn apply(&self, tree: &mut Tree) {
        match self {
            NameChange::Link(path, node) => drop(tree.insert(path.clone(), *node)),
            NameChange::Unlink(path) => drop(tree.remove(path)),
            NameChange::Rename(from, to, node) => {
                tree.remove(from);
                tree.insert(to.clone(), *node);
            }
        }
    }

    fn touches(&self, folder: &str) -> bool {
        match self {
            NameChange::Link(path, _) | NameChange::Unlink(path) => parent(path) == folder,
            NameChange::Rename(from, to, _) => parent(from) == folder || parent(to) == folder,
        }
    }
}

impl DataChange {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            DataChange::Write(offset, bytes) => {
                let start = *offset as usize;
                if data.len() < start + bytes.len() {
                    data.resize(start + bytes.len(), 0);
                }
                data[start..start + bytes.len()].copy_from_slice(bytes);
            }
            DataChange::Truncate(len) => data.resize(*len as usize, 0),
        }
    }
}

impl Inode {
    fn stat(&self) -> Stat {
        let modified = self.modified.unwrap_or(SystemTime::UNIX_EPOCH);
        Stat { kind: EntryKind::File, len: self.live.len() as u64, modified }
    }
}

impl Sim {
    fn name(&mut self, change: NameChange) {
        change.apply(&mut self.live);
        self.waiting.push(change);
    }

    fn parent_exists(&self, path: &str) -> io::Result<()> {
        let folder = parent(path);
        if folder.is_empty() || self.live.get(folder) == Some(&Node::Folder) { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }
}

impl Place for SimMachine {
    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        let life = self.lock().life;
        Ok(Some(Arc::new(SimDisk { machine: self.clone(), life, has_lock: Mutex::new(false) })))
    }

    fn create(&self) -> io::Result<Arc<dyn Disk>> {
        Ok(self.open()?.unwrap())
    }
}

impl SimDisk {
    /// A handle on a fresh disk.
    pub fn new() -> Arc<SimDisk> {
        Arc::new(SimDisk { machine: SimMachine::new(), life: 0, has_lock: Mutex::new(false) })
    }

    fn file(&self, inode: usize, direct: bool) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { machine: self.machine.clone(), life: self.life, inode, direct })
    }
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        let mut sim = self.machine.lock();
        if *self.has_lock.lock().unwrap() && sim.life == self.life {
            sim.locked = false;
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, _: Access) -> io::Result<Arc<dyn DiskFile>> {
        let sim = self.machine.enter(self.life)?;
        match sim.live.get(path) {
            Some(Node::File(inode)) => Ok(self.file(*inode, false)),
            Some(Node::Folder) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, path: &str, writing: Writing) -> io::Result<Arc<dyn DiskFile>> {
        let mut sim = self.machine.change(self.life)?;
        sim.parent_exists(path)?;
        if sim.live.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        sim.inodes.push(Inode::default());
        let inode = sim.inodes.len() - 1;
        sim.name(NameChange::Link(path.into(), Node::File(inode)));
        Ok(self.file(inode, writing == Writing::Direct))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        sim.parent_exists(to)?;
        let node = *sim.live.get(from).ok_or(ErrorKind::NotFound)?;
        sim.name(NameChange::Rename(from.into(), to.into(), node));
        Ok(())
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        match sim.live.get(path) {
            Some(Node::File(_)) => sim.name(NameChange::Unlink(path.into())),
            Some(Node::Folder) => return Err(ErrorKind::IsADirectory.into()),
            None => return Err(ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        sim.parent_exists(path)?;
        if sim.live.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        sim.name(NameChange::Link(path.into(), Node::Folder));
        Ok(())
    }

    fn remove_folder(&self, path: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        let start = format!("{path}/");
        if sim.live.range(start.clone()..).next().is_some_and(|(below, _)| below.starts_with(&start)) {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        if sim.live.get(path) != Some(&Node::Folder) {
            return Err(ErrorKind::NotFound.into());
        }
        sim.name(NameChange::Unlink(path.into()));
        Ok(())
    }

    fn stat(&self, path: &str) -> io::Result<Option<Stat>> {
        let sim = self.machine.enter(self.life)?;
        Ok(sim.live.get(path).map(|node| match node {
            Node::Folder => Stat { kind: EntryKind::Folder, len: 0, modified: SystemTime::UNIX_EPOCH },
            Node::File(inode) => sim.inodes[*inode].stat(),
        }))
    }

    fn names(&self, folder: &str) -> io::Result<Vec<(String, EntryKind)>> {
        let sim = self.machine.enter(self.life)?;
        let start = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let below = sim.live.iter().filter_map(|(path, node)| Some((path.strip_prefix(&start)?, node)));
        Ok(below
            .filter(|(name, _)| !name.contains('/'))
            .map(|(name, node)| (name.to_owned(), if *node == Node::Folder { EntryKind::Folder } else { EntryKind::File }))
            .collect())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        if sim.sync_fails {
            return Err(io::Error::other("the sync fails"));
        }
        let (synced, waiting) = std::mem::take(&mut sim.waiting).into_iter().partition(|change| change.touches(folder));
        sim.waiting = waiting;
        let synced: Vec<NameChange> = synced;
        synced.iter().for_each(|change| change.apply(&mut sim.durable));
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        if sim.sync_fails {
            return Err(io::Error::other("the sync fails"));
        }
        sim.waiting.clear();
        sim.durable = sim.live.clone();
        for inode in &mut sim.inodes {
            inode.waiting.clear();
            inode.durable = inode.live.clone();
        }
        Ok(())
    }

    fn free_space(&self) -> io::Result<FreeSpace> {
        let sim = self.machine.enter(self.life)?;
        Ok(FreeSpace { free_bytes: sim.free_bytes, total_bytes: 1 << 40 })
    }

    fn lock(&self) -> io::Result<bool> {
        let mut sim = self.machine.enter(self.life)?;
        if sim.locked {
            return Ok(false);
        }
        sim.locked = true;
        *self.has_lock.lock().unwrap() = true;
        Ok(true)
    }

    fn identity(&self) -> (u64, u64) {
        (0, self.life)
    }
}

impl SimFile {
    fn change_data(&self, change: DataChange) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        let inode = &mut sim.inodes[self.inode];
        change.apply(&mut inode.live);
        inode.waiting.push(change);
        inode.modified = Some(SystemTime::now());
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn is_direct(&self) -> bool {
        self.direct
    }

    fn read_into(&self, offset: u64, len: usize, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        let sim = self.machine.enter(self.life)?;
        let data = &sim.inodes[self.inode].live;
        let start = (offset as usize).min(data.len());
        buffer.extend_from_slice(&data[start..(start + len).min(data.len())]);
        Ok(buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.direct {
            let aligned = bytes.as_ptr().align_offset(DIRECT_ALIGN) == 0
                && bytes.len().is_multiple_of(DIRECT_ALIGN)
                && offset.is_multiple_of(DIRECT_ALIGN as u64);
            assert!(aligned, "a direct write has to be aligned");
        }
        self.change_data(DataChange::Write(offset, bytes.to_vec()))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change_data(DataChange::Truncate(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        if sim.sync_fails {
            return Err(io::Error::other("the sync fails"));
        }
        let inode = &mut sim.inodes[self.inode];
        inode.waiting.clear();
        inode.durable = inode.live.clone();
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        let sim = self.machine.enter(self.life)?;
        Ok(sim.inodes[self.inode].stat())
    }
}
