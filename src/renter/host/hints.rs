//! Which key came first in a folder the last time: a guess, worth one read beside a list.

use std::sync::Arc;

use moka::sync::Cache;

/// Folders remembered for one host: 250 bytes each, 4 MiB. An entry of the registry is one.
const HINTS_MAX: u64 = 16_384;

/// By folder. Only folders that were listed are in it: what is written elsewhere is of no use to anybody here.
#[derive(Debug)]
pub(super) struct Hints(Cache<String, Arc<str>>);

impl Default for Hints {
    fn default() -> Hints {
        Hints(Cache::new(HINTS_MAX))
    }
}

impl Hints {
    pub(super) fn of(&self, folder: &str) -> Option<String> {
        self.0.get(folder).map(|key| key.to_string())
    }

    /// A list said which key is first.
    pub(super) fn note(&self, folder: &str, first: Option<&String>) {
        match first {
            Some(first) if self.0.get(folder).is_some_and(|known| *known == **first) => {}
            Some(first) => self.0.insert(folder.to_owned(), first.as_str().into()),
            None => self.0.invalidate(folder),
        }
    }

    /// An object was written: if it comes before the one that is known, it is the first now.
    pub(super) fn written(&self, key: &str) {
        let Some((folder, _)) = key.rsplit_once('/') else { return };
        if self.0.get(folder).is_some_and(|known| *key < *known) {
            self.0.insert(folder.to_owned(), key.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_of_a_folder_is_what_was_listed_or_written_before_it() {
        let hints = Hints::default();
        let check = |expect: Option<&str>| assert_eq!(hints.of("records/a").as_deref(), expect);
        hints.written("records/a/5");
        check(None);
        hints.note("records/a", Some(&"records/a/5".to_owned()));
        check(Some("records/a/5"));
        hints.written("records/a/7");
        check(Some("records/a/5"));
        hints.written("records/a/3");
        check(Some("records/a/3"));
        hints.written("records/b/1");
        hints.written("no-folder");
        check(Some("records/a/3"));
        hints.note("records/a", Some(&"records/a/4".to_owned()));
        check(Some("records/a/4"));
        hints.note("records/a", None);
        check(None);
    }
}
