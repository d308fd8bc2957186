//! A folder's entries in byte order of their full paths, for `add`.
//!
//! Only the names of the folders on the way down are held at once. In byte order of the whole path a folder that has
//! something in it stands where `name/` would (`a-b` before `a/b`, since `-` is less than `/`), an empty one where its
//! bare name would; so a folder is looked into before its place among its neighbours is known.

use std::fs::{DirEntry, FileType};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The one hidden name that sites are made of (RFC 8615).
const WELL_KNOWN: &[u8] = b".well-known";

/// What becomes of names that begin with a dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    Skipped,
    Kept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundKind {
    File,
    Symlink,
    EmptyFolder,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Below the root, with `/` between names.
    pub path: String,
    /// Where it is on disk.
    pub place: PathBuf,
    pub kind: FoundKind,
}

/// Entries that were left out. A hidden folder counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    pub hidden: u64,
    /// Sockets, devices and pipes.
    pub special: u64,
}

/// The walk. Errors are in words, and end it.
#[derive(Debug)]
pub struct Walk {
    hidden: Hidden,
    open: Vec<Folder>,
    pub skipped: Skipped,
}

/// A folder on the way down: what is left of it.
#[derive(Debug)]
struct Folder {
    /// Empty, or ends with a slash.
    prefix: String,
    place: PathBuf,
    rows: std::vec::IntoIter<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    kind: RowKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowKind {
    Leaf(FoundKind),
    Folder,
}

impl Walk {
    pub fn new(root: &Path, hidden: Hidden) -> Result<Walk, String> {
        let mut walk = Walk { hidden, open: Vec::new(), skipped: Skipped::default() };
        let rows = walk.read(root)?.into_iter();
        walk.open.push(Folder { prefix: String::new(), place: root.to_owned(), rows });
        Ok(walk)
    }

    fn step(&mut self) -> Result<Option<Found>, String> {
        while let Some(folder) = self.open.last_mut() {
            let Some(Row { name, kind }) = folder.rows.next() else {
                self.open.pop();
                continue;
            };
            let place = folder.place.join(&name);
            let path = format!("{}{name}", folder.prefix);
            match kind {
                RowKind::Leaf(kind) => return Ok(Some(Found { path, place, kind })),
                RowKind::Folder => {
                    let rows = self.read(&place)?;
                    if rows.is_empty() {
                        return Err(changed(&place));
                    }
                    self.open.push(Folder { prefix: path + "/", place, rows: rows.into_iter() });
                }
            }
        }
        Ok(None)
    }

    /// What is kept of a folder, in order.
    fn read(&mut self, folder: &Path) -> Result<Vec<Row>, String> {
        let mut rows = Vec::new();
        for entry in entries(folder)? {
            let entry = entry?;
            match keep(&entry, self.hidden)? {
                Keep::Hidden => self.skipped.hidden += 1,
                Keep::Special => self.skipped.special += 1,
                Keep::As(kind) => {
                    let kind = if kind.is_dir() {
                        self.look_into(&entry.path())?
                    } else if kind.is_symlink() {
                        RowKind::Leaf(FoundKind::Symlink)
                    } else {
                        RowKind::Leaf(FoundKind::File)
                    };
                    let name = entry.file_name().into_string().map_err(|_| {
                        format!(
                            "{} has a name that is not UTF-8: rename it, since the tree's names are text",
                            entry.path().display()
                        )
                    })?;
                    rows.push(Row { name, kind });
                }
            }
        }
        rows.sort_unstable_by(|a, b| place_in_order(a).cmp(place_in_order(b)));
        Ok(rows)
    }

    /// Is there anything in it that is kept? If not, what was skipped in it is counted here: nobody looks again.
    fn look_into(&mut self, folder: &Path) -> Result<RowKind, String> {
        let mut skipped = Skipped::default();
        for entry in entries(folder)? {
            match keep(&entry?, self.hidden)? {
                Keep::Hidden => skipped.hidden += 1,
                Keep::Special => skipped.special += 1,
                Keep::As(_) => return Ok(RowKind::Folder),
            }
        }
        self.skipped.hidden += skipped.hidden;
        self.skipped.special += skipped.special;
        Ok(RowKind::Leaf(FoundKind::EmptyFolder))
    }
}

impl Iterator for Walk {
    type Item = Result<Found, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.step().transpose();
        if matches!(found, Some(Err(_))) {
            self.open.clear();
        }
        found
    }
}

/// The sentence of a tree that does not hold still.
pub fn changed(place: &Path) -> String {
    format!("{} changed while it was read: nothing was added, add it again when it holds still", place.display())
}

enum Keep {
    Hidden,
    Special,
    As(FileType),
}

fn keep(entry: &DirEntry, hidden: Hidden) -> Result<Keep, String> {
    let name = entry.file_name();
    let name = name.as_bytes();
    if hidden == Hidden::Skipped && name.starts_with(b".") && name != WELL_KNOWN {
        return Ok(Keep::Hidden);
    }
    let kind = entry.file_type().map_err(|error| unreadable(&entry.path(), &error))?;
    Ok(if kind.is_file() || kind.is_dir() || kind.is_symlink() { Keep::As(kind) } else { Keep::Special })
}

fn entries(folder: &Path) -> Result<impl Iterator<Item = Result<DirEntry, String>>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
    Ok(entries.map(|entry| entry.map_err(|error| unreadable(folder, &error))))
}

pub fn unreadable(place: &Path, error: &std::io::Error) -> String {
    format!("{} cannot be read: {error}", place.display())
}

fn place_in_order(row: &Row) -> impl Iterator<Item = u8> {
    let slash = (row.kind == RowKind::Folder).then_some(b'/');
    row.name.bytes().chain(slash)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for path in paths {
            let place = root.path().join(path);
            if path.ends_with('/') {
                std::fs::create_dir_all(place).expect("made");
            } else {
                std::fs::create_dir_all(place.parent().expect("below the root")).expect("made");
                std::fs::write(place, path).expect("written");
            }
        }
        root
    }

    fn walk(root: &Path, hidden: Hidden) -> (Vec<String>, Skipped) {
        let mut walk = Walk::new(root, hidden).expect("readable");
        let found: Vec<String> = walk
            .by_ref()
            .map(|found| found.expect("readable"))
            .map(|found| match found.kind {
                FoundKind::File => found.path,
                FoundKind::Symlink => found.path + "@",
                FoundKind::EmptyFolder => found.path + "/",
            })
            .collect();
        (found, walk.skipped)
    }

    #[test]
    fn entries_come_in_byte_order_of_the_whole_path() {
        let root =
            tree(&["a/b", "a-b", "a.txt", "a/b-c/d", "a0", "A", "ü", "z/", "z-1", "z/", "e/", "e-1", "deep/1/2/3/", "deep/1/2.x"]);
        let (found, _) = walk(root.path(), Hidden::Skipped);
        let plain: Vec<&str> = found.iter().map(|path| path.trim_end_matches('/')).collect();
        let mut sorted = plain.clone();
        sorted.sort_unstable();
        assert_eq!(plain, sorted);
        let expect = ["A", "a-b", "a.txt", "a/b", "a/b-c/d", "a0", "deep/1/2.x", "deep/1/2/3/", "e/", "e-1", "z/", "z-1", "ü"];
        assert_eq!(found, expect);
    }

    #[test]
    fn hidden_names_are_skipped_and_counted_but_for_the_well_known_one() {
        let root = tree(&[".git/config", ".env", ".well-known/x", ".well-known/.y", "only-hidden/.a", "only-hidden/.b", "page"]);
        let (found, skipped) = walk(root.path(), Hidden::Skipped);
        assert_eq!(found, [".well-known/x", "only-hidden/", "page"]);
        assert_eq!(skipped, Skipped { hidden: 5, special: 0 });
        let (found, skipped) = walk(root.path(), Hidden::Kept);
        assert_eq!(found.len(), 7);
        assert_eq!(skipped, Skipped::default());
    }

    #[test]
    fn symlinks_are_kept_and_never_followed_and_sockets_are_counted() {
        let root = tree(&["dir/file"]);
        std::os::unix::fs::symlink("/nowhere", root.path().join("broken")).expect("made");
        std::os::unix::fs::symlink(".", root.path().join("dir/loop")).expect("made");
        let _socket = UnixListener::bind(root.path().join("socket")).expect("bound");
        let (found, skipped) = walk(root.path(), Hidden::Skipped);
        assert_eq!(found, ["broken@", "dir/file", "dir/loop@"]);
        assert_eq!(skipped, Skipped { hidden: 0, special: 1 });
    }

    #[test]
    fn names_that_are_no_text_are_refused_in_words() {
        let root = tree(&["dir/ok"]);
        std::fs::write(root.path().join("dir").join(OsStr::from_bytes(b"bad\xff")), "").expect("written");
        let error = Walk::new(root.path(), Hidden::Skipped).expect("the root is fine").find_map(Result::err).expect("refused");
        assert!(error.contains("not UTF-8") && error.contains("bad"), "{error}");
    }

    #[test]
    fn a_folder_that_empties_while_it_is_walked_is_an_error() {
        let root = tree(&["a", "b/c"]);
        let mut walk = Walk::new(root.path(), Hidden::Skipped).expect("readable");
        assert_eq!(walk.next().expect("a").expect("readable").path, "a");
        std::fs::remove_file(root.path().join("b/c")).expect("removed");
        assert!(walk.next().expect("b").expect_err("changed").contains("changed while it was read"));
        assert!(walk.next().is_none());
    }
}
