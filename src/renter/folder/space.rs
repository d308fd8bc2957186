//! How full a folder is: counted, not walked at each question.

use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::disk::{Disk, FreeSpace};

/// Below this share of the file system's size, puts are refused: one part in a hundred keeps small disks usable.
pub const FLOOR_SHARE: u64 = 100;
/// The floor is never above this: 1 GiB is room for the log, its compaction and the file system's own needs on any disk.
pub const FLOOR_BYTES_MAX: u64 = 1 << 30;

/// Records go on down to this part of the floor.
const RECORDS_FLOOR_SHARE: u64 = 4;
/// Their floor is never above this: what is left below it is for the log's compaction (two segments).
const RECORDS_FLOOR_BYTES_MAX: u64 = 64 << 20;

/// Used and free bytes of a folder host, kept up to date by its store; shared with whoever reports them.
#[derive(Debug, Default)]
pub struct Space {
    used_change_bytes: AtomicI64,
    found_bytes: AtomicU64,
    counted: AtomicBool,
    free_bytes: AtomicU64,
    floor_bytes: AtomicU64,
    measured: AtomicBool,
}

impl Space {
    /// Bytes of the objects in the folder, without the file system's own costs; `None` until the first count after
    /// opening is done. What is removed while that count runs may be left out of it: the figure is for people, nothing depends on it.
    pub fn used_bytes(&self) -> Option<u64> {
        let found = self.counted.load(Acquire).then(|| self.found_bytes.load(Relaxed))?;
        Some(found.saturating_add_signed(self.used_change_bytes.load(Relaxed)))
    }

    /// Free bytes of the file system when last looked at; `None` before the folder was open.
    pub fn free_bytes(&self) -> Option<u64> {
        self.measured.load(Acquire).then(|| self.free_bytes.load(Relaxed))
    }

    /// True if the folder had less free space than its floor when last looked at.
    pub fn below_floor(&self) -> bool {
        self.measured.load(Acquire) && self.free_bytes.load(Relaxed) < self.floor_bytes.load(Relaxed)
    }

    /// True if there was less than records may use up: a part of the floor is kept for them, so that a full host can
    /// still be told what is removed.
    pub(super) fn below_records_floor(&self) -> bool {
        let floor = (self.floor_bytes.load(Relaxed) / RECORDS_FLOOR_SHARE).min(RECORDS_FLOOR_BYTES_MAX);
        self.measured.load(Acquire) && self.free_bytes.load(Relaxed) < floor
    }

    /// Looks at the file system; answers the free bytes above the floor. `floor_bytes` is the option, if set.
    pub(super) fn measure(&self, disk: &dyn Disk, floor_bytes: Option<u64>) -> std::io::Result<u64> {
        let FreeSpace { free_bytes, total_bytes } = disk.free_space()?;
        let floor = floor_bytes.unwrap_or_else(|| default_floor_bytes(total_bytes));
        self.free_bytes.store(free_bytes, Relaxed);
        self.floor_bytes.store(floor, Relaxed);
        self.measured.store(true, Release);
        Ok(free_bytes.saturating_sub(floor))
    }

    pub(super) fn floor_bytes(&self) -> u64 {
        self.floor_bytes.load(Relaxed)
    }

    pub(super) fn change_used(&self, bytes: i64) {
        self.used_change_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn counted(&self, found_bytes: u64) {
        self.found_bytes.store(found_bytes, Relaxed);
        self.counted.store(true, Release);
    }

    /// A new count begins: what was known belongs to an earlier opening.
    pub(super) fn forget(&self) {
        self.counted.store(false, Release);
        self.used_change_bytes.store(0, Relaxed);
    }
}

/// The floor where none is configured.
pub fn default_floor_bytes(total_bytes: u64) -> u64 {
    (total_bytes / FLOOR_SHARE).min(FLOOR_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors() {
        for (total, expect) in [(0, 0), (8 << 20, 83_886), (100 << 30, 1 << 30), (1 << 44, 1 << 30)] {
            assert_eq!(default_floor_bytes(total), expect);
        }
    }

    #[test]
    fn used_is_what_was_found_and_what_changed() {
        let space = Space::default();
        space.change_used(10);
        assert_eq!(space.used_bytes(), None);
        space.counted(100);
        space.change_used(-30);
        assert_eq!(space.used_bytes(), Some(80));
    }
}
