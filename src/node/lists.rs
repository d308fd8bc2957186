//! Denylists from files: read at the start, and again whenever one of them has changed.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::NodeError;
use crate::deny::DenyList;
use crate::http::Services;

/// Between two looks at the files. A list that is changed in a hurry shall be in force within seconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Largest file: the rules that fit (`deny::RULES_MAX`) take less.
const LIST_BYTES_MAX: u64 = 512 << 20;

/// The files an operator has named.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// In the compact denylist format (IPIP-0383).
    pub lists: Vec<PathBuf>,
    /// Of a Skynet portal: one BLAKE2b-256 hash of a sector root in hex on each line.
    pub blocklists: Vec<PathBuf>,
}

/// What tells that a file is another than before, without reading it.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

impl Lists {
    fn is_empty(&self) -> bool {
        self.lists.is_empty() && self.blocklists.is_empty()
    }

    fn stamp(&self) -> Stamp {
        let of = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
        };
        self.lists.iter().chain(&self.blocklists).map(of).collect()
    }

    /// All rules of all files, in the order in which they are named. Lines that cannot be read are told in the log.
    pub fn read(&self) -> Result<DenyList, NodeError> {
        let mut rules = DenyList::new();
        for path in &self.lists {
            let name = name_of(path);
            let added = rules.add_list(&name, &read_text(path)?).map_err(|error| NodeError::Denylist(error.to_string()))?;
            for fault in &added.faults {
                tracing::warn!(list = %path.display(), "{fault}: the line is skipped");
            }
            tracing::info!(list = %path.display(), rules = added.rule_count, skipped = added.fault_count, "denylist read");
        }
        for path in &self.blocklists {
            let text = read_text(path)?;
            let mut hashes = Vec::new();
            for (index, line) in
                text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            {
                match hex::decode(line).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
                    Some(hash) => hashes.push(hash),
                    None => tracing::warn!(list = %path.display(), "line {}: not 64 hexadecimal digits: skipped", index + 1),
                }
            }
            let added =
                rules.add_skynet_blocklist(&name_of(path), &hashes).map_err(|error| NodeError::Denylist(error.to_string()))?;
            tracing::info!(list = %path.display(), rules = added.rule_count, "blocklist read");
        }
        Ok(rules)
    }

    /// Reads the files again whenever one has changed. While one cannot be read the rules stay as they are.
    pub fn keep_reading(self, services: Arc<Services>, store: crate::store::Store, tasks: &TaskTracker, stop: CancellationToken) {
        if self.is_empty() {
            return;
        }
        // Taken before the first reading would miss nothing; after it a change in between would be missed.
        let mut known: Stamp = Vec::new();
        let work = async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let lists = self.clone();
                let stamp = tokio::task::spawn_blocking(move || lists.stamp()).await.expect("looking at files does not panic");
                if stamp == known {
                    continue;
                }
                let lists = self.clone();
                match tokio::task::spawn_blocking(move || lists.read()).await.expect("reading lists does not panic") {
                    Ok(rules) => {
                        store.set_denied(rules);
                        // Ready answers may be of what is denied now.
                        services.answers.clear();
                        known = stamp;
                    }
                    Err(error) => tracing::error!(%error, "the rules stay as they are"),
                }
            }
        };
        tasks.spawn(async move { stop.run_until_cancelled(work).await });
    }
}

fn name_of(path: &std::path::Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn read_text(path: &PathBuf) -> Result<String, NodeError> {
    let fault = |source: std::io::Error| NodeError::Io { doing: format!("read the denylist {}", path.display()), source };
    let length = std::fs::metadata(path).map_err(fault)?.len();
    if length > LIST_BYTES_MAX {
        return Err(NodeError::Denylist(format!(
            "the denylist {} has {length} bytes, at most {LIST_BYTES_MAX} are read",
            path.display()
        )));
    }
    let bytes = std::fs::read(path).map_err(fault)?;
    // One odd byte shall not switch a list off: its line is no rule, and is told as such.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
