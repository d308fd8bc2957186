//! The API key file: one line, 64 hex characters, readable by its owner alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Longest key file that is read; ours has 65 bytes.
const KEY_FILE_MAX_BYTES: u64 = 1024;
/// Shortest key an operator may put into the file by hand: 128 bits in hex.
const KEY_TEXT_MIN: usize = 32;

/// Was the key file there already?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFile {
    Created,
    Existed,
}

/// Why there is no API key. All of them are for the operator to put right.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the API key file {path} cannot be read or made: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the API key file {path} holds no key ({KEY_TEXT_MIN} to 256 printable characters on one line). Delete it, and the next start makes a new one",
        path = path.display()
    )]
    NoKey { path: PathBuf },
}

/// The key of the file at `path`, which is made first if it does not exist.
pub(super) fn load_or_create(path: &Path) -> Result<(String, KeyFile), AccessError> {
    let io_error = |source| AccessError::Io { path: path.to_owned(), source };
    match File::open(path) {
        Ok(file) => {
            warn_when_readable_by_others(path, &file);
            let mut text = String::new();
            file.take(KEY_FILE_MAX_BYTES).read_to_string(&mut text).map_err(io_error)?;
            let key = text.trim();
            if !(KEY_TEXT_MIN..=super::SECRET_TEXT_MAX).contains(&key.len()) || !key.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(AccessError::NoKey { path: path.to_owned() });
            }
            Ok((key.to_owned(), KeyFile::Existed))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = super::new_secret();
            create(path, &key).map_err(io_error)?;
            Ok((key, KeyFile::Created))
        }
        Err(error) => Err(io_error(error)),
    }
}

/// Written beside and renamed, so that a crash leaves a whole key or none.
fn create(path: &Path, key: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let beside = path.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{key}")?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

fn warn_when_readable_by_others(path: &Path, file: &File) {
    if let Ok(metadata) = file.metadata()
        && metadata.mode() & 0o077 != 0
    {
        tracing::warn!(path = %path.display(), "the API key file can be read by other users of this machine: chmod 600 it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("keys").join("api");
        let (made, how) = load_or_create(&path).expect("made");
        assert_eq!(how, KeyFile::Created);
        assert_eq!(made.len(), 64);
        assert_eq!(std::fs::metadata(&path).expect("metadata").mode() & 0o777, 0o600);
        let (read, how) = load_or_create(&path).expect("read");
        assert_eq!((read, how), (made, KeyFile::Existed));
    }

    #[test]
    fn an_empty_or_short_file_is_refused_in_words() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("api");
        for text in ["", "\n", "short", &"x y".repeat(20)] {
            std::fs::write(&path, text).expect("write");
            let error = load_or_create(&path).expect_err("refused");
            assert!(matches!(error, AccessError::NoKey { .. }), "{error}");
        }
    }
}
