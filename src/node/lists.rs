//! Denylists from files: read at the start, and again whenever one of them has changed.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::NodeError;
use crate::deny::{Added, DenyError, DenyList, FAULTS_MAX};
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

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRead {
    pub path: PathBuf,
    pub rule_count: usize,
    /// Lines that are no rules and are skipped.
    pub fault_count: usize,
    /// The first of them, in words.
    pub faults: Vec<String>,
}

/// What tells that a file is another than before, without reading it.
type Stamp = Vec<Option<(u64, u64, i64, i64, i64)>>;

impl Lists {
    fn is_empty(&self) -> bool {
        self.lists.is_empty() && self.blocklists.is_empty()
    }

    fn stamp(&self) -> Stamp {
        let of = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            // The time of the last change of anything: a mode that is mended counts as well.
            Some((meta.ino(), meta.len(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
        };
        self.lists.iter().chain(&self.blocklists).map(of).collect()
    }

    /// All rules of all files. What became of each file is told in the log.
    pub fn read(&self) -> Result<DenyList, NodeError> {
        let (rules, files) = self.read_files()?;
        for ListRead { path, rule_count, fault_count, faults } in files {
            faults.iter().for_each(|fault| tracing::warn!(list = %path.display(), "{fault}: the line is skipped"));
            tracing::info!(list = %path.display(), rules = rule_count, skipped = fault_count, "denylist read");
        }
        Ok(rules)
    }

    /// All rules of all files, in the order in which they are named, and what became of each file.
    pub fn read_files(&self) -> Result<(DenyList, Vec<ListRead>), NodeError> {
        let bad = |error: DenyError| NodeError::Denylist(error.to_string());
        let (mut rules, mut files) = (DenyList::new(), Vec::new());
        for path in &self.lists {
            let Added { rule_count, faults, fault_count } = rules.add_list(&name_of(path), &read_text(path)?).map_err(bad)?;
            let faults = faults.iter().map(ToString::to_string).collect();
            files.push(ListRead { path: path.clone(), rule_count, fault_count, faults });
        }
        for path in &self.blocklists {
            let text = read_text(path)?;
            let (mut hashes, mut faults, mut fault_count) = (Vec::new(), Vec::new(), 0);
            let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
            for (index, line) in lines {
                match hex::decode(line).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
                    Some(hash) => hashes.push(hash),
                    None => {
                        fault_count += 1;
                        if faults.len() < FAULTS_MAX {
                            faults.push(format!("line {}: not 64 hexadecimal digits", index + 1));
                        }
                    }
                }
            }
            let Added { rule_count, .. } = rules.add_skynet_blocklist(&name_of(path), &hashes).map_err(bad)?;
            files.push(ListRead { path: path.clone(), rule_count, fault_count, faults });
        }
        Ok((rules, files))
    }

    /// Reads the files again whenever one has changed. While one cannot be read the rules stay as they are, which is said
    /// once for each change.
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
                    }
                    Err(error) => tracing::error!(%error, "the rules stay as they are"),
                }
                known = stamp;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_each_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let rules = place("rules.deny", "/ipns/a.example\nnonsense\n# a comment\n");
        let hashes = place("hashes.txt", &format!("{}\n\nabc\n", "0f".repeat(32)));
        let lists = Lists { lists: vec![rules.clone()], blocklists: vec![hashes.clone()] };
        let (list, files) = lists.read_files().expect("can be read");
        assert_eq!(list.rule_count(), 2);
        let read = |path: &PathBuf, fault: &str| ListRead {
            path: path.clone(),
            rule_count: 1,
            fault_count: 1,
            faults: vec![fault.to_owned()],
        };
        assert_eq!(files, [read(&rules, "line 2: no rule"), read(&hashes, "line 3: not 64 hexadecimal digits")]);
        for (name, text, why) in [("v9.deny", "version: 9\n---\n", "version 9"), ("gone.deny", "", "gone.deny")] {
            let path = place(name, text);
            if text.is_empty() {
                std::fs::remove_file(&path).expect("removed");
            }
            let error = Lists { lists: vec![path], blocklists: Vec::new() }.read_files().expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
