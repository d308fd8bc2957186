//! What can happen to hosts: folders gone, bytes flipped, disks hung, full or read-only.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Length of a sector object's header (`docs/formats.md` 2): nothing in it is trusted beyond its length fields, so
/// damage is done behind it.
const HEADER_BYTES: u64 = 64;
/// One hash of the tree, and the data it covers.
const NODE_BYTES: u64 = 32;
const GRAIN_BYTES: u64 = 4096;
/// Length of a log segment's header (`docs/formats.md` 4).
const LOG_HEADER_BYTES: u64 = 40;

/// Host folders that were moved away. They come back when this is dropped.
pub struct Away(Vec<PathBuf>);

impl Away {
    pub fn take(folders: &[PathBuf]) -> Away {
        for folder in folders {
            fs::rename(folder, aside(folder)).unwrap_or_else(|error| panic!("{} cannot be moved away: {error}", folder.display()));
        }
        Away(folders.to_vec())
    }

    pub fn back(self) {}
}

impl Drop for Away {
    fn drop(&mut self) {
        for folder in &self.0 {
            // What was made in its place must not be there: the test that cares looks before.
            let _ = fs::remove_dir_all(folder);
            let _ = fs::rename(aside(folder), folder);
        }
    }
}

fn aside(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".away");
    name.into()
}

/// Sector objects that are files of their own.
pub fn sector_files(host: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(folders) = fs::read_dir(host.join("sectors")) else { return found };
    for folder in folders.map(|entry| entry.expect("readable").path()) {
        let files = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
        found.extend(files.filter(|path| path.is_file()));
    }
    found.sort();
    found
}

/// Flips one bit of a sector object, somewhere in its hash tree or data.
pub fn flip(path: &Path, random: &mut ChaCha8Rng) {
    let length = fs::metadata(path).expect("a piece is there").len();
    flip_at(path, random.random_range(HEADER_BYTES..length), random);
}

/// Flips one bit of a sector object's data at this offset of the data.
pub fn flip_row(path: &Path, offset: u64, random: &mut ChaCha8Rng) {
    let nodes = data_bytes(path).div_ceil(GRAIN_BYTES);
    flip_at(path, HEADER_BYTES + nodes * NODE_BYTES + offset, random);
}

/// Length of a sector object's data.
pub fn data_bytes(path: &Path) -> u64 {
    let mut header = [0; HEADER_BYTES as usize];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut header)).expect("a sector object has a header");
    u32::from_le_bytes(header[16..20].try_into().expect("four bytes")).into()
}

fn flip_at(path: &Path, at: u64, random: &mut ChaCha8Rng) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).expect("a piece can be opened");
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).expect("seek");
    file.read_exact(&mut byte).expect("read");
    byte[0] ^= 1 << random.random_range(0..8);
    file.seek(SeekFrom::Start(at)).expect("seek");
    file.write_all(&byte).expect("write");
}

/// Flips a bit every few KiB of a host's log of small objects, its segments' headers left alone.
pub fn spoil_log(host: &Path, random: &mut ChaCha8Rng) -> usize {
    let mut flipped = 0;
    for segment in fs::read_dir(host.join("log")).into_iter().flatten().filter_map(Result::ok) {
        let length = segment.metadata().expect("metadata").len();
        let mut at = LOG_HEADER_BYTES + random.random_range(0..2000);
        while at < length {
            flip_at(&segment.path(), at, random);
            flipped += 1;
            at += random.random_range(1..4000);
        }
    }
    flipped
}

/// Makes every sector object of a host hang whoever opens it: a FIFO that nobody writes to. Comes undone on drop.
pub struct Hung(Vec<PathBuf>);

impl Hung {
    /// These files.
    pub fn files(files: Vec<PathBuf>) -> Hung {
        for path in &files {
            fs::rename(path, aside(path)).expect("a file can be moved away");
            let made = Command::new("mkfifo").arg(path).status().expect("mkfifo can be run");
            assert!(made.success());
        }
        Hung(files)
    }

    /// Everything in a host's folder, its marker included.
    pub fn host(folder: &Path) -> Hung {
        let mut files = Vec::new();
        all_files(folder, &mut files);
        Hung::files(files)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        for path in &self.0 {
            // Whoever still waits is let go.
            let _ = OpenOptions::new().read(true).write(true).open(path);
            let _ = fs::rename(aside(path), path);
        }
    }
}

fn all_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable")) {
        let kind = entry.file_type().expect("known");
        if kind.is_dir() {
            all_files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

/// A copy of a folder.
pub fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg("--reflink=auto").arg(from).arg(to).status().expect("cp can be run");
    assert!(status.success(), "{} cannot be copied", from.display());
}

/// A small file system of its own. Unmounted when dropped.
pub struct Mounted {
    at: PathBuf,
    frozen: bool,
}

impl Mounted {
    /// An ext4 of `bytes` in the file `image`, mounted at `at`. `Err` says why there is none: not root, no loop device.
    pub fn ext4(image: &Path, at: &Path, bytes: u64) -> Result<Mounted, String> {
        fs::File::create(image).and_then(|file| file.set_len(bytes)).map_err(|error| error.to_string())?;
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        // A host is an empty folder.
        let _ = fs::remove_dir(at.join("lost+found"));
        Ok(Mounted { at: at.to_owned(), frozen: false })
    }

    /// From now on every write hangs.
    pub fn freeze(&mut self) -> Result<(), String> {
        run(Command::new("fsfreeze").arg("-f").arg(&self.at))?;
        self.frozen = true;
        Ok(())
    }

    pub fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            run(Command::new("fsfreeze").arg("-u").arg(&self.at)).expect("what was frozen can be thawed");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.thaw();
        // Lazily: a gateway may still hold it, and dies later.
        let _ = run(Command::new("umount").arg("-l").arg(&self.at));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())) }
}
