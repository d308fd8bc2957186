//! Pack indexes kept on this node's disk, so that a restart does not ask the hosts for them again.
//!
//! One immutable file a pack: 32 bytes BLAKE2b-256 of the rest, the pack's CARv2 header, its index. The hash guards against this disk: a
//! row is believed without hashing the block it names, so a rotten row must not be read. It is checked when the file
//! is opened. A small index is then mapped; of a large one the pages that a look-up wants are read, so that it costs neither
//! memory nor, as touched pages of a map would, the look of it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::sector::Root;
use crate::tree::pack::PackHead;

const HASH_BYTES: usize = 32;
/// Indexes up to this many bytes are held whole: 65,000 blocks, four reads of a mebibyte side by side.
pub const WHOLE_INDEX_BYTES_MAX: u64 = 4 << 20;
/// Bytes hashed at a time.
const HASH_STEP_BYTES: usize = 1 << 20;
/// What files under way are called; those that a crash left behind are removed at the start.
const TEMP_PREFIX: &str = ".new-";

pub struct PacksOnDisk {
    folder: PathBuf,
}

/// An index that is here and whole.
pub enum Kept {
    /// Header and index.
    Whole(Bytes),
    Large(IndexFile),
}

/// The file of a large index.
pub struct IndexFile {
    file: File,
    pub head: PackHead,
}

/// The file of an index being written.
pub struct NewPackIndex {
    file: tempfile::NamedTempFile,
    hash: blake2b_simd::State,
}

impl PacksOnDisk {
    pub fn open(folder: &Path) -> std::io::Result<PacksOnDisk> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMP_PREFIX)) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(PacksOnDisk { folder: folder.to_owned() })
    }

    fn path(&self, root: &Root) -> PathBuf {
        self.folder.join(format!("{root}.index"))
    }

    /// The index of a pack of `pack_bytes`, if it is here and whole. Reads and hashes all of it: blocks. A damaged file is
    /// removed: the hosts have the truth.
    pub fn load(&self, root: &Root, pack_bytes: u64) -> Option<Kept> {
        let path = self.path(root);
        let mut file = File::open(&path).ok()?;
        let kept = try_load(&mut file, pack_bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, pack = %root, "a pack index on this node's disk cannot be read");
            None
        });
        if kept.is_none() {
            tracing::warn!(pack = %root, "a pack index on this node's disk is damaged: it is fetched again");
            let _ = std::fs::remove_file(&path);
        }
        kept
    }

    /// A new file for an index.
    pub fn create(&self) -> std::io::Result<NewPackIndex> {
        let mut file = tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(&self.folder)?;
        file.write_all(&[0; HASH_BYTES])?;
        Ok(NewPackIndex { file, hash: blake2b_simd::Params::new().hash_length(HASH_BYTES).to_state() })
    }

    /// Keeps a whole index. Failure is only a lost convenience, so it is told in the log and nowhere else.
    pub fn keep(&self, root: &Root, head: &[u8], index: &[u8]) {
        let kept = self.create().and_then(|mut file| {
            file.push(head)?;
            file.push(index)?;
            self.persist(root, file)
        });
        if let Err(error) = kept {
            tracing::warn!(%error, pack = %root, "a pack index could not be kept on this node's disk");
        }
    }

    /// Gives a file that was written whole its name.
    pub fn persist(&self, root: &Root, mut new: NewPackIndex) -> std::io::Result<()> {
        new.file.seek(SeekFrom::Start(0))?;
        new.file.write_all(new.hash.finalize().as_bytes())?;
        new.file.persist(self.path(root))?;
        Ok(())
    }

    pub fn forget(&self, root: &Root) {
        let _ = std::fs::remove_file(self.path(root));
    }
}

impl NewPackIndex {
    /// From the start of a pack: its CARv2 header, and what of its index stands there, from `index_start` on.
    pub fn head(&mut self, start: &[u8], index_start: usize) -> std::io::Result<()> {
        self.push(&start[..PackHead::BYTES])?;
        self.push(&start[index_start..])
    }

    /// The next bytes of the index.
    pub fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }
}

impl IndexFile {
    /// Bytes of the index, counted from the first byte of the pack.
    pub fn read(&self, range: Range<u64>) -> std::io::Result<Vec<u8>> {
        debug_assert!(self.head.index.start <= range.start && range.end <= self.head.index.end);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let at = (HASH_BYTES + PackHead::BYTES) as u64 + range.start - self.head.index.start;
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// `None` if the file is not what was written.
fn try_load(file: &mut File, pack_bytes: u64) -> std::io::Result<Option<Kept>> {
    let file_bytes = file.metadata()?.len();
    let mut named = [0; HASH_BYTES];
    if file_bytes < (HASH_BYTES + PackHead::BYTES) as u64 {
        return Ok(None);
    }
    file.read_exact(&mut named)?;
    if file_bytes - (HASH_BYTES + PackHead::BYTES) as u64 <= WHOLE_INDEX_BYTES_MAX {
        // SAFETY: the file is ours, written once under another name and renamed here, never changed or cut in place.
        let map = unsafe { memmap2::Mmap::map(&*file) }?;
        let map = Bytes::from_owner(map);
        let whole = hash(&[&map[HASH_BYTES..]]) == named;
        return Ok(whole.then(|| Kept::Whole(map.slice(HASH_BYTES..))));
    }
    let mut state = blake2b_simd::Params::new().hash_length(HASH_BYTES).to_state();
    let mut buffer = vec![0; HASH_STEP_BYTES];
    let mut start: Option<[u8; PackHead::BYTES]> = None;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if start.is_none() {
            // The first read of a file gives more than a header; if it ever did not, the file is fetched again.
            start = buffer[..count].first_chunk().copied();
        }
        state.update(&buffer[..count]);
    }
    let head = start.map(|start| PackHead::parse(&start, pack_bytes));
    match head {
        Some(Ok(head)) if state.finalize().as_bytes() == named && fits(&head, file_bytes) => {
            Ok(Some(Kept::Large(IndexFile { file: file.try_clone()?, head })))
        }
        _ => Ok(None),
    }
}

fn fits(head: &PackHead, file_bytes: u64) -> bool {
    (HASH_BYTES + PackHead::BYTES) as u64 + head.index.end - head.index.start == file_bytes
}

fn hash(parts: &[&[u8]]) -> [u8; HASH_BYTES] {
    let mut state = blake2b_simd::Params::new().hash_length(HASH_BYTES).to_state();
    parts.iter().for_each(|part| {
        state.update(part);
    });
    state.finalize().as_bytes().try_into().expect("the length was asked for")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::car::V2Header;

    #[test]
    fn a_large_index_is_read_in_pages_and_a_file_left_behind_is_removed() {
        let folder = tempfile::tempdir().expect("temp folder");
        let packs = PacksOnDisk::open(folder.path()).expect("open");
        let (root, index_bytes) = (Root([8; 32]), 5 << 20);
        let header = V2Header { characteristics: [0; 16], data_offset: 51, data_bytes: 100, index_offset: 151 };
        let index: Vec<u8> = (0..index_bytes as u32).map(|at| (at / 7) as u8).collect();
        let mut new = packs.create().expect("create");
        let start = [&header.encode()[..], &[0; 100], &index[..1_000]].concat();
        new.head(&start, 151).expect("write");
        new.push(&index[1_000..]).expect("write");
        packs.persist(&root, new).expect("persist");
        let pack_bytes = 151 + index_bytes as u64;
        let Some(Kept::Large(file)) = packs.load(&root, pack_bytes) else { panic!("kept") };
        assert_eq!(file.read(151..pack_bytes).expect("read"), index);
        assert_eq!(file.read(2_151..2_161).expect("read"), index[2_000..2_010]);
        assert!(packs.load(&root, pack_bytes + 1).is_none(), "the index of another pack");

        let left = packs.create().expect("create").file.keep().expect("kept").1;
        assert!(left.exists());
        PacksOnDisk::open(folder.path()).expect("open");
        assert!(!left.exists());
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let folder = tempfile::tempdir().expect("temp folder");
        let packs = PacksOnDisk::open(folder.path()).expect("open");
        let root = Root([7; 32]);
        assert!(packs.load(&root, 1).is_none());
        let head = [7; PackHead::BYTES];
        packs.keep(&root, &head, b"index");
        let Some(Kept::Whole(kept)) = packs.load(&root, 1) else { panic!("kept") };
        assert_eq!(kept, [&head[..], b"index"].concat());
        let path = packs.path(&root);
        let mut bytes = std::fs::read(&path).expect("read");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&path, bytes).expect("write");
        assert!(packs.load(&root, 1).is_none());
        assert!(!path.exists(), "the damaged file is gone");
    }
}
