//! Names of the files in folders of records, as far as they are known: so that reading a record asks the disk for no listing.
//!
//! Only the writer changes names in an open folder, and it says so here before and after. What a reader has listed is kept
//! only if no name changed meanwhile. Somebody else who changes files of an open folder is seen late: a file that is gone
//! makes a reader ask the disk, one that came stands beside what the quorum says.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quick_cache::{Weighter, sync::Cache};

/// Memory for names: about 25,000 registry entries.
const BYTES_MAX: u64 = 6 << 20;
/// What a folder takes beside its texts: handles, the cache's own.
const FOLDER_BYTES: u64 = 96;
/// Folders with more names are not kept: a record has one or two versions.
const NAMES_MAX: usize = 8;

/// Sorted names.
pub(super) type Names = Arc<[Box<str>]>;

#[derive(Debug)]
pub(super) struct Files {
    folders: Cache<Box<str>, Names, Bytes>,
    /// Changes of names so far. Held while a folder is put in or taken out.
    changes: Mutex<u64>,
}

#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<Box<str>, Names> for Bytes {
    fn weight(&self, folder: &Box<str>, names: &Names) -> u64 {
        let texts = names.iter().map(|name| name.len() + size_of::<Box<str>>()).sum::<usize>() + folder.len();
        FOLDER_BYTES + texts as u64
    }
}

/// The number of changes when a listing began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before(u64);

/// What a change does to the names of one folder.
#[derive(Clone, Copy, Debug)]
pub(super) enum NameChange<'n> {
    /// The folder was made for this file.
    First(&'n str),
    Added(&'n str),
    Removed(&'n str),
}

impl Files {
    pub fn new() -> Files {
        let expected = (BYTES_MAX / (3 * FOLDER_BYTES)) as usize;
        Files { folders: Cache::with_weighter(expected, BYTES_MAX, Bytes), changes: Mutex::new(0) }
    }

    /// The names in a folder (a path on the disk), if they are known.
    pub fn get(&self, folder: &str) -> Option<Names> {
        self.folders.get(folder)
    }

    /// Call before a folder is listed.
    pub fn before(&self) -> Before {
        Before(*self.lock())
    }

    /// The names that were listed after `before`.
    pub fn listed(&self, before: Before, folder: &str, mut names: Vec<Box<str>>) {
        names.sort_unstable();
        let changes = self.lock();
        if *changes == before.0 {
            self.put(folder, names);
        }
    }

    /// Makes a change on the disk that does this to a folder. If it fails, nothing is known of the folder any more.
    pub fn change<'n, T, E>(&self, folder: &str, work: impl FnOnce() -> Result<(T, NameChange<'n>), E>) -> Result<T, E> {
        let known = {
            let mut changes = self.lock();
            *changes += 1;
            self.folders.remove(folder).map(|(_, names)| names)
        };
        let (done, change) = work()?;
        let mut changes = self.lock();
        *changes += 1;
        let known = match change {
            NameChange::First(_) => Some(Names::default()),
            NameChange::Added(_) | NameChange::Removed(_) => known,
        };
        if let Some(known) = known {
            let mut names: Vec<Box<str>> = known.to_vec();
            let (NameChange::First(name) | NameChange::Added(name) | NameChange::Removed(name)) = change;
            names.retain(|known| **known != *name);
            if !matches!(change, NameChange::Removed(_)) {
                names.push(name.into());
                names.sort_unstable();
            }
            self.put(folder, names);
        }
        Ok(done)
    }

    /// Under the lock of `changes`.
    fn put(&self, folder: &str, names: Vec<Box<str>>) {
        // Of an empty folder nothing is kept: it goes, and the kernel knows then that it is not there.
        if (1..=NAMES_MAX).contains(&names.len()) {
            self.folders.insert(folder.into(), names.into());
        } else {
            self.folders.remove(folder);
        }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        // Plain numbers: a panic leaves nothing half done.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(files: &Files) -> Option<Vec<String>> {
        files.get("f").map(|names| names.iter().map(ToString::to_string).collect())
    }

    fn changed(files: &Files, change: NameChange<'_>) {
        files.change("f", || Ok::<_, ()>(((), change))).unwrap();
    }

    #[test]
    fn names_follow_the_writer() {
        let files = Files::new();
        changed(&files, NameChange::Added("b"));
        assert_eq!(known(&files), None, "who knows what else is there");
        changed(&files, NameChange::First("b"));
        changed(&files, NameChange::Added("a"));
        changed(&files, NameChange::Added("a"));
        assert_eq!(known(&files), Some(vec!["a".into(), "b".into()]));
        changed(&files, NameChange::Removed("b"));
        assert_eq!(known(&files), Some(vec!["a".into()]));
        assert_eq!(files.change("f", || Err::<((), NameChange<'_>), _>("no disk")), Err("no disk"));
        assert_eq!(known(&files), None);
        changed(&files, NameChange::First("b"));
        changed(&files, NameChange::Removed("b"));
        assert_eq!(known(&files), None);
    }

    #[test]
    fn a_listing_counts_only_if_nothing_changed_meanwhile() {
        let files = Files::new();
        let before = files.before();
        changed(&files, NameChange::Added("b"));
        files.listed(before, "f", vec!["a".into()]);
        assert_eq!(known(&files), None);
        files.listed(files.before(), "f", vec!["b".into(), "a".into()]);
        assert_eq!(known(&files), Some(vec!["a".into(), "b".into()]));
        let many = (0..=NAMES_MAX).map(|number| number.to_string().into()).collect();
        files.listed(files.before(), "g", many);
        assert!(files.get("g").is_none());
    }
}
