//! Test only: files of the shared folder, whose place the environment variable `SKYGATE_SHARED` gives.

use std::path::PathBuf;

/// Bytes of one shared file, or `None` (after a printed line) when the folder is not given. A given folder without the file is a failure.
pub(crate) fn shared_file(path: &str) -> Option<Vec<u8>> {
    let Some(folder) = std::env::var_os("SKYGATE_SHARED") else {
        println!("SKIPPED {path}: SKYGATE_SHARED is not set");
        return None;
    };
    let full = PathBuf::from(folder).join(path);
    Some(std::fs::read(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display())))
}

/// A shared JSON file, parsed.
pub(crate) fn shared_json(path: &str) -> Option<serde_json::Value> {
    shared_file(path).map(|bytes| serde_json::from_slice(&bytes).unwrap())
}
