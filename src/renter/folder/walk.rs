//! Listing in key order: the files of the folder merged with what the log says.
//!
//! The log's part is taken first and whole: a key that moves from the log to a file meanwhile is then seen at least once,
//! and a listing never misses an object that was there all the time.

use std::{borrow::Cow, io, iter::Peekable, sync::Arc, time::SystemTime, vec};

use super::{
    disk::{Disk, EntryKind},
    index::{Index, SnapshotRow},
    key::{MARKER_KEY, SPLIT_MARK, TOP_FOLDERS, check_key, disk_path},
};

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub key: String,
    pub len: u64,
    pub modified: SystemTime,
}

/// A listing under way.
#[derive(Debug)]
pub(super) struct Listing {
    log: Peekable<vec::IntoIter<SnapshotRow>>,
    files: FileWalk,
    next_file: Option<Listed>,
    started: bool,
}

impl Listing {
    /// Lists what is under `prefix` (whole parts; empty for all) and after the key `after`. Takes the log's part at once, reads no folder yet.
    pub fn start(disk: Arc<dyn Disk>, index: &Index, prefix: &str, after: Option<&str>) -> Listing {
        Listing {
            log: index.snapshot(prefix, after).into_iter().peekable(),
            files: FileWalk::start(disk, prefix, after),
            next_file: None,
            started: false,
        }
    }

    /// The next objects, at most `max` of them; an empty answer is the end.
    pub fn page(&mut self, max: usize) -> io::Result<Vec<Listed>> {
        let mut page = Vec::new();
        while page.len() < max {
            match self.next()? {
                Some(listed) => page.push(listed),
                None => break,
            }
        }
        Ok(page)
    }

    fn next(&mut self) -> io::Result<Option<Listed>> {
        if !self.started {
            self.next_file = self.files.next()?;
            self.started = true;
        }
        loop {
            let log_first = match (self.log.peek(), &self.next_file) {
                (None, None) => return Ok(None),
                (Some((key, _)), Some(file)) => **key <= *file.key,
                (Some(_), None) => true,
                (None, Some(_)) => false,
            };
            if !log_first {
                let file = self.next_file.take();
                self.next_file = self.files.next()?;
                return Ok(file);
            }
            let Some((key, state)) = self.log.next() else { continue };
            // The log's word stands before the file's.
            if self.next_file.as_ref().is_some_and(|file| *file.key == *key) {
                self.next_file = self.files.next()?;
            }
            if let Some((len, modified)) = state {
                return Ok(Some(Listed { key: key.to_string(), len, modified }));
            }
        }
    }
}

/// Walks the files in key order. Holds the names of one folder a level.
#[derive(Debug)]
struct FileWalk {
    disk: Arc<dyn Disk>,
    levels: Vec<Level>,
    after: Option<String>,
}

#[derive(Debug)]
struct Level {
    /// Path of the folder on disk, with a slash at its end unless it is the top.
    folder: String,
    /// What every key in it starts with.
    key_start: String,
    /// In reverse order of the keys: the next one is at the end.
    names: Vec<Name>,
}

#[derive(Debug)]
struct Name {
    /// The name as the keys have it: a folder's with its slash, a split part's without its mark.
    order: String,
    name: String,
    folder: bool,
}

impl FileWalk {
    fn start(disk: Arc<dyn Disk>, prefix: &str, after: Option<&str>) -> FileWalk {
        let mut walk = FileWalk { disk, levels: Vec::new(), after: after.map(str::to_owned) };
        if prefix.is_empty() {
            let mut names: Vec<Name> = TOP_FOLDERS.iter().map(|top| Name::folder(top)).collect();
            names.push(Name { order: MARKER_KEY.into(), name: MARKER_KEY.into(), folder: false });
            names.reverse();
            walk.levels.push(Level { folder: String::new(), key_start: String::new(), names });
        } else {
            // A level whose only name is the folder of the prefix.
            let path = disk_path(prefix);
            let name = Name { order: format!("{prefix}/"), name: path, folder: true };
            walk.levels.push(Level { folder: String::new(), key_start: String::new(), names: vec![name] });
        }
        walk
    }

    fn next(&mut self) -> io::Result<Option<Listed>> {
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            let key = format!("{}{}", level.key_start, name.order);
            let path = format!("{}{}", level.folder, name.name);
            if name.folder {
                if self.may_hold_more(&key) {
                    self.enter(path, key)?;
                }
                continue;
            }
            if self.after.as_deref().is_some_and(|after| *key <= *after) || check_key(&key).is_err() {
                continue;
            }
            // It may have gone meanwhile; and only plain files are objects.
            match self.disk.stat(&path)? {
                Some(stat) if stat.kind == EntryKind::File => {
                    return Ok(Some(Listed { key, len: stat.len, modified: stat.modified }));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Whether a folder of keys that start with `start` can hold any after `self.after`.
    fn may_hold_more(&self, start: &str) -> bool {
        self.after.as_deref().is_none_or(|after| start > after || after.starts_with(start))
    }

    fn enter(&mut self, path: String, key_start: String) -> io::Result<()> {
        let mut names: Vec<Name> = self
            .disk
            .names(&path)?
            .into_iter()
            .filter_map(|(name, kind)| match kind {
                EntryKind::Folder => Some(Name::folder(&name)),
                EntryKind::File => Some(Name { order: name.clone(), name, folder: false }),
                EntryKind::Other => None,
            })
            .collect();
        names.sort_by(|one, other| other.sort_text().cmp(&one.sort_text()));
        self.levels.push(Level { folder: format!("{path}/"), key_start, names });
        Ok(())
    }
}

impl Name {
    /// The names of a folder are in key order by this text.
    fn sort_text(&self) -> Cow<'_, str> {
        // A split part goes on with a letter or a digit: all of that stands behind a folder's slash.
        let split = self.folder && !self.order.ends_with('/');
        if split { format!("{}0", self.order).into() } else { self.order.as_str().into() }
    }

    fn folder(name: &str) -> Name {
        let order = match name.strip_suffix(SPLIT_MARK) {
            Some(part) => part.to_owned(),
            None => format!("{name}/"),
        };
        Name { order, name: name.to_owned(), folder: true }
    }
}
