//! Pack indexes kept on this node's disk, so that a restart does not ask the hosts for them again.
//!
//! One immutable file a pack: 32 bytes BLAKE2b-256 of the rest, the pack's CARv2 header, its index. The hash guards against this disk: a
//! row is believed without hashing the block it names, so a rotten row must not be read. It is checked when the file
//! is opened; the file is then mapped, not read, so that a large index costs address space and not memory.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::sector::Root;

const HASH_BYTES: usize = 32;

pub struct PacksOnDisk {
    folder: PathBuf,
}

impl PacksOnDisk {
    pub fn open(folder: &Path) -> std::io::Result<PacksOnDisk> {
        std::fs::create_dir_all(folder)?;
        Ok(PacksOnDisk { folder: folder.to_owned() })
    }

    fn path(&self, root: &Root) -> PathBuf {
        self.folder.join(format!("{root}.index"))
    }

    /// Header and index of a pack, if it is here and whole. A damaged file is removed: the hosts have the truth.
    pub fn load(&self, root: &Root) -> Option<Bytes> {
        let path = self.path(root);
        let file = File::open(&path).ok()?;
        // SAFETY: the file is ours, written once under another name and renamed here, never changed or cut in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.ok()?;
        let map = Bytes::from_owner(map);
        let whole = map.len() >= HASH_BYTES && hash(&[&map[HASH_BYTES..]]) == map[..HASH_BYTES];
        if !whole {
            tracing::warn!(pack = %root, "a pack index on this node's disk is damaged: it is fetched again");
            let _ = std::fs::remove_file(&path);
            return None;
        }
        Some(map.slice(HASH_BYTES..))
    }

    /// Keeps an index. Failure is only a lost convenience, so it is told in the log and nowhere else.
    pub fn keep(&self, root: &Root, head: &[u8], index: &[u8]) {
        if let Err(error) = self.try_keep(root, head, index) {
            tracing::warn!(%error, pack = %root, "a pack index could not be kept on this node's disk");
        }
    }

    fn try_keep(&self, root: &Root, head: &[u8], index: &[u8]) -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(&hash(&[head, index]))?;
        file.write_all(head)?;
        file.write_all(index)?;
        file.persist(self.path(root))?;
        Ok(())
    }

    pub fn forget(&self, root: &Root) {
        let _ = std::fs::remove_file(self.path(root));
    }
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

    #[test]
    fn a_flipped_bit_is_noticed() {
        let folder = tempfile::tempdir().expect("temp folder");
        let packs = PacksOnDisk::open(folder.path()).expect("open");
        let root = Root([7; 32]);
        assert!(packs.load(&root).is_none());
        packs.keep(&root, b"an ", b"index");
        assert_eq!(packs.load(&root).expect("kept"), b"an index".as_slice());
        let path = packs.path(&root);
        let mut bytes = std::fs::read(&path).expect("read");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&path, bytes).expect("write");
        assert!(packs.load(&root).is_none());
        assert!(!path.exists(), "the damaged file is gone");
    }
}
