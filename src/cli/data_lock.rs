//! One process at a time on a data directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::CliError;

/// Held as long as it lives; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// Makes the directory if it is not there yet, and takes its lock.
    pub fn take(data: &Path) -> Result<DataLock, CliError> {
        let fault =
            |what: std::io::Error| CliError::failed(format!("the data directory {} cannot be used: {what}", data.display()));
        // Others on this machine have no business with keys and content.
        DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(fault)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(data.join("lock"))
            .map_err(fault)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use(data, &mut file)),
            Err(error) => return Err(fault(error.into())),
        }
        // For the message that another process gives; the lock itself is the kernel's.
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(fault)?;
        Ok(DataLock { _file: file })
    }
}

fn in_use(data: &Path, file: &mut File) -> CliError {
    let mut text = String::new();
    let _ = file.take(32).read_to_string(&mut text);
    let who = match text.trim().parse::<u32>() {
        Ok(id) => format!("process {id}"),
        Err(_) => "another process".to_owned(),
    };
    let advice = "stop that one first, or choose another data directory with --data DIR";
    CliError::failed(format!("the data directory {} is in use by a running skygate ({who}): {advice}", data.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_in_words_until_the_first_has_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("new/data");
        let first = DataLock::take(&data).expect("free");
        let refused = DataLock::take(&data).expect_err("taken").to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())) && refused.contains("--data"), "{refused}");
        drop(first);
        DataLock::take(&data).expect("free again");
    }
}
