//! A simulated disk with a page cache: what was not synced may be lost, kept, or torn when the power goes. Tests only.
//!
//! Names wait until their folder is synced; at a power loss each waiting change is kept or lost by the toss of a coin, a
//! rename never by halves. Data: each write and cut since the file's last sync is kept, left out, or torn. A process that
//! is killed without a power loss keeps everything it wrote ([`SimMachine::kill`]).

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::disk::{Disk, DiskFile};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File(usize),
}

type Tree = BTreeMap<String, Node>;

#[derive(Debug)]
enum NameChange {
    Link(String, Node),
    Unlink(String),
    Rename(String, String, Node),
}

#[derive(Debug)]
enum DataChange {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

#[derive(Debug, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    waiting: Vec<DataChange>,
}

#[derive(Debug, Default)]
struct Sim {
    inodes: Vec<Inode>,
    live: Tree,
    durable: Tree,
    waiting: Vec<NameChange>,
    /// Counts deaths; handles of an earlier life fail.
    life: u64,
    /// Changes until everything fails.
    fuse: Option<u64>,
    free_bytes: u64,
}

/// The disk itself: outlives deaths.
#[derive(Clone, Debug)]
pub struct SimMachine(Arc<Mutex<Sim>>);

/// A handle on it, good for one life.
#[derive(Debug)]
pub struct SimDisk {
    machine: SimMachine,
    life: u64,
}

#[derive(Debug)]
struct SimFile {
    machine: SimMachine,
    life: u64,
    inode: usize,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

impl SimMachine {
    pub fn new() -> SimMachine {
        SimMachine(Arc::new(Mutex::new(Sim { free_bytes: 1 << 40, ..Sim::default() })))
    }

    pub fn disk(&self) -> Arc<SimDisk> {
        Arc::new(SimDisk { machine: self.clone(), life: self.lock().life })
    }

    /// Everything fails after this many more changes.
    pub fn set_fuse(&self, changes: u64) {
        self.lock().fuse = Some(changes);
    }

    pub fn set_free_bytes(&self, bytes: u64) {
        self.lock().free_bytes = bytes;
    }

    pub fn paths(&self) -> Vec<String> {
        self.lock().live.keys().cloned().collect()
    }

    /// The process dies; the system goes on and loses nothing.
    pub fn kill(&self) {
        let mut sim = self.lock();
        sim.life += 1;
        sim.fuse = None;
    }

    /// The power goes, and comes back.
    pub fn crash(&self, rng: &mut ChaCha8Rng) {
        let mut sim = self.lock();
        for change in std::mem::take(&mut sim.waiting) {
            if rng.random_bool(0.5) {
                change.apply(&mut sim.durable);
            }
        }
        for inode in &mut sim.inodes {
            for change in std::mem::take(&mut inode.waiting) {
                match (rng.random_range(0..3), change) {
                    (0, change) => change.apply(&mut inode.durable),
                    (1, DataChange::Write(offset, mut bytes)) => {
                        bytes.truncate(rng.random_range(0..=bytes.len()));
                        DataChange::Write(offset, bytes).apply(&mut inode.durable);
                    }
                    _ => {}
                }
            }
            inode.live = inode.durable.clone();
        }
        let folders = sim.durable.clone();
        sim.durable.retain(|path, _| parent(path).is_empty() || folders.get(parent(path)) == Some(&Node::Folder));
        sim.live = sim.durable.clone();
        sim.life += 1;
        sim.fuse = None;
    }

    fn lock(&self) -> MutexGuard<'_, Sim> {
        self.0.lock().expect("lock")
    }

    fn enter(&self, life: u64) -> io::Result<MutexGuard<'_, Sim>> {
        let sim = self.lock();
        if sim.life != life || sim.fuse == Some(0) { Err(io::Error::other("no power")) } else { Ok(sim) }
    }

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

    /// Names change only within a folder here.
    fn folder(&self) -> &str {
        match self {
            NameChange::Link(path, _) | NameChange::Unlink(path) | NameChange::Rename(_, path, _) => parent(path),
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
            DataChange::Truncate(length) => data.resize(*length as usize, 0),
        }
    }
}

impl Sim {
    fn name(&mut self, change: NameChange) {
        change.apply(&mut self.live);
        self.waiting.push(change);
    }

    fn data(&mut self, inode: usize, change: DataChange) {
        let inode = &mut self.inodes[inode];
        change.apply(&mut inode.live);
        inode.waiting.push(change);
    }
}

impl SimDisk {
    fn file(&self, inode: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { machine: self.machine.clone(), life: self.life, inode })
    }
}

impl Disk for SimDisk {
    fn make_folder(&self, path: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        if sim.live.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        sim.name(NameChange::Link(path.into(), Node::Folder));
        Ok(())
    }

    fn remove_folder(&self, path: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        if sim.live.keys().any(|below| parent(below) == path) {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        if sim.live.get(path) != Some(&Node::Folder) {
            return Err(ErrorKind::NotFound.into());
        }
        sim.name(NameChange::Unlink(path.into()));
        Ok(())
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut sim = self.machine.change(self.life)?;
        if sim.live.get(parent(path)) != Some(&Node::Folder) {
            return Err(ErrorKind::NotFound.into());
        }
        let inode = match sim.live.get(path) {
            Some(Node::File(inode)) => {
                let inode = *inode;
                sim.data(inode, DataChange::Truncate(0));
                inode
            }
            Some(Node::Folder) => return Err(ErrorKind::IsADirectory.into()),
            None => {
                sim.inodes.push(Inode::default());
                let inode = sim.inodes.len() - 1;
                sim.name(NameChange::Link(path.into(), Node::File(inode)));
                inode
            }
        };
        Ok(self.file(inode))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let sim = self.machine.enter(self.life)?;
        match sim.live.get(path) {
            Some(Node::File(inode)) => Ok(self.file(*inode)),
            Some(Node::Folder) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
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

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let sim = self.machine.enter(self.life)?;
        if !folder.is_empty() && sim.live.get(folder) != Some(&Node::Folder) {
            return Err(ErrorKind::NotFound.into());
        }
        let below = sim.live.keys().filter(|path| parent(path) == folder);
        Ok(below.map(|path| path.rsplit('/').next().expect("a last part").to_owned()).collect())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        let (here, elsewhere) = std::mem::take(&mut sim.waiting).into_iter().partition(|change| change.folder() == folder);
        sim.waiting = elsewhere;
        let here: Vec<NameChange> = here;
        here.iter().for_each(|change| change.apply(&mut sim.durable));
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.machine.enter(self.life)?.free_bytes)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let sim = self.machine.enter(self.life)?;
        let data = sim.inodes[self.inode].live.get(offset as usize..).unwrap_or_default();
        let count = data.len().min(buffer.len());
        buffer[..count].copy_from_slice(&data[..count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.machine.change(self.life)?.data(self.inode, DataChange::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.machine.change(self.life)?.data(self.inode, DataChange::Truncate(length));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut sim = self.machine.change(self.life)?;
        let inode = &mut sim.inodes[self.inode];
        inode.waiting.clear();
        inode.durable = inode.live.clone();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.machine.enter(self.life)?.inodes[self.inode].live.len() as u64)
    }
}
