//! A tree of files written below one folder, and nowhere else.
//!
//! Every step goes through an open folder, is one checked name long, and follows no symlink; files are made new, never
//! opened. So whatever paths and symlinks a stream has, and in whatever order, nothing outside the folder is touched.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;

use super::get::PATH_BYTES_MAX;
use super::output::plain;

/// An open folder. Errors are in words.
#[derive(Debug)]
pub struct TreeWriter {
    root: OwnedFd,
    /// The folder of the newest entry: the next one mostly lies in it, too.
    newest: Option<(String, OwnedFd)>,
}

impl TreeWriter {
    /// Writes below a folder that exists.
    pub fn open(root: &Path) -> Result<TreeWriter, String> {
        let root = openat(CWD, root, FOLDER, Mode::empty()).map_err(|error| format!("{}: {error}", root.display()))?;
        Ok(TreeWriter { root, newest: None })
    }

    /// A new file.
    pub fn file(&mut self, path: &str) -> Result<File, String> {
        self.entry(path, |parent, name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(File::from(openat(parent, name, flags, Mode::from_raw_mode(0o666))?))
        })
    }

    /// A new symlink; its target is not looked at.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), String> {
        if target.is_empty() || target.contains('\0') {
            return Err(format!("the symlink {:?} has a target that cannot be written", plain(path)));
        }
        self.entry(path, |parent, name| symlinkat(target, parent, name))
    }

    /// A folder, if it is not there already.
    pub fn folder(&mut self, path: &str) -> Result<(), String> {
        self.entry(path, |parent, name| step(parent, name).map(drop))
    }

    fn entry<T>(&mut self, path: &str, make: impl FnOnce(&OwnedFd, &str) -> Result<T, Errno>) -> Result<T, String> {
        check_path(path)?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let fault = |error: Errno| match error {
            Errno::EXIST => format!("the answer has {:?} twice", plain(path)),
            Errno::LOOP | Errno::NOTDIR => {
                format!("the answer has {:?}, which lies below something that is no folder", plain(path))
            }
            error => format!("{:?} cannot be written: {error}", plain(path)),
        };
        make(self.parent(parent).map_err(fault)?, name).map_err(fault)
    }

    fn parent(&mut self, path: &str) -> Result<&OwnedFd, Errno> {
        if path.is_empty() {
            return Ok(&self.root);
        }
        if self.newest.as_ref().is_none_or(|(known, _)| known != path) {
            let mut folder = step(&self.root, path.split('/').next().expect("split gives at least one"))?;
            for name in path.split('/').skip(1) {
                folder = step(&folder, name)?;
            }
            self.newest = Some((path.to_owned(), folder));
        }
        Ok(&self.newest.as_ref().expect("set above").1)
    }
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Into a folder, which is made if it is not there.
fn step(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match openat(parent, name, FOLDER, Mode::empty()) {
        Err(Errno::NOENT) => {
            mkdirat(parent, name, Mode::from_raw_mode(0o777))?;
            openat(parent, name, FOLDER, Mode::empty())
        }
        done => done,
    }
}

/// A path is names with single slashes between them, and no name means another folder.
fn check_path(path: &str) -> Result<(), String> {
    let why = if path.len() > PATH_BYTES_MAX {
        "is too long"
    } else if path.contains('\0') {
        "has a NUL in it"
    } else if path.split('/').any(str::is_empty) {
        "has an empty name in it"
    } else if path.split('/').any(|name| name == "." || name == "..") {
        "leads out of its folder"
    } else {
        return Ok(());
    };
    Err(format!("the answer has a path that {why}: {:?}", plain(path).chars().take(200).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn paths_that_mean_another_place_are_refused() {
        let root = folder();
        let below = root.path().join("below");
        std::fs::create_dir(&below).expect("made");
        let long = "a/".repeat(PATH_BYTES_MAX) + "a";
        for path in ["", "/", "/etc/x", "../x", "a/../../x", "a/..", ".", "./a", "a//b", "a/", "a\0b", &long] {
            let mut tree = TreeWriter::open(&below).expect("there");
            tree.file(path).expect_err(path);
            tree.folder(path).expect_err(path);
            tree.symlink(path, "t").expect_err(path);
        }
        assert_eq!(std::fs::read_dir(root.path()).expect("read").count(), 1);
        assert_eq!(std::fs::read_dir(&below).expect("read").count(), 0);
    }

    #[test]
    fn nothing_is_written_through_a_symlink() {
        let (root, other) = (folder(), folder());
        std::fs::write(other.path().join("old"), "old").expect("written");
        let target = other.path().to_str().expect("UTF-8");
        let mut tree = TreeWriter::open(root.path()).expect("there");
        tree.symlink("out", target).expect("made");
        tree.symlink("file", &format!("{target}/old")).expect("made");
        tree.symlink("new", &format!("{target}/new")).expect("made");
        for path in ["out/x", "out/y/z", "file", "new", "out"] {
            tree.file(path).expect_err(path);
        }
        tree.folder("out").expect_err("a symlink is no folder");
        tree.symlink("out", "elsewhere").expect_err("twice");
        assert_eq!(std::fs::read_dir(other.path()).expect("read").count(), 1);
        assert_eq!(std::fs::read(other.path().join("old")).expect("read"), b"old");
    }

    #[test]
    fn the_root_itself_is_no_symlink() {
        let root = folder();
        std::os::unix::fs::symlink(root.path(), root.path().join("self")).expect("made");
        TreeWriter::open(&root.path().join("self")).expect_err("a symlink");
    }

    #[test]
    fn a_name_is_made_once_and_files_are_no_folders() {
        let root = folder();
        let mut tree = TreeWriter::open(root.path()).expect("there");
        tree.file("a/b/c").expect("new").write_all(b"c").expect("written");
        tree.file("a/b/d").expect("new");
        tree.folder("a/empty").expect("new");
        tree.folder("a/b").expect("there already, which is no harm");
        assert!(tree.file("a/b/c").expect_err("twice").contains("twice"));
        assert!(tree.file("a/b/c/d").expect_err("below a file").contains("no folder"));
        assert_eq!(std::fs::read(root.path().join("a/b/c")).expect("read"), b"c");
    }
}
