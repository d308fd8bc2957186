//! What a path of a site leads to, by what lies there and whether the path ends with a slash: one table for trees of UnixFS
//! ([`super::unixfs`]) and for skyfiles ([`super::skynet`]), so that a site that works by its CID works by its skylink.
//!
//! | lies there | no slash | slash |
//! |---|---|---|
//! | a file | the file | missing; the root itself: the file |
//! | a folder with an index | redirect to the slash (1) | the index |
//! | a folder without one | redirect to the slash (2) | what it holds: a listing, or an archive |
//! | nothing | missing | missing |
//!
//! Where Skynet differed, its clients' tests (`path_resolution.json`) hold, for skyfiles alone: (1) below the root, the index
//! at once; (2) the archive at once. What is missing may then have a rule in `_redirects`, then an error page.

use crate::address::TrailingSlash;

/// Whose habits count where they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    Unixfs,
    Skyfile,
}

/// What lies at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lies {
    File,
    /// A folder that a file speaks for: its index.html, or what a skyfile names instead.
    FolderWithIndex,
    Folder,
    Nothing,
}

/// Where the path ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    Root,
    Below,
}

/// What the path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeadsTo {
    File,
    Index,
    /// A redirect to the same path with its slash, or the page's relative links would break.
    Slash,
    /// Everything in the folder.
    Contents,
    Missing,
}

/// The table.
pub fn leads_to(habit: Habit, lies: Lies, depth: Depth, slash: TrailingSlash) -> LeadsTo {
    match (lies, slash, habit, depth) {
        (Lies::File, TrailingSlash::No, _, _) | (Lies::File, TrailingSlash::Yes, _, Depth::Root) => LeadsTo::File,
        (Lies::File, TrailingSlash::Yes, _, Depth::Below) => LeadsTo::Missing,
        (Lies::FolderWithIndex, TrailingSlash::Yes, _, _) => LeadsTo::Index,
        (Lies::FolderWithIndex, TrailingSlash::No, Habit::Skyfile, Depth::Below) => LeadsTo::Index,
        (Lies::FolderWithIndex, TrailingSlash::No, _, _) => LeadsTo::Slash,
        (Lies::Folder, TrailingSlash::Yes, _, _) | (Lies::Folder, TrailingSlash::No, Habit::Skyfile, _) => LeadsTo::Contents,
        (Lies::Folder, TrailingSlash::No, Habit::Unixfs, _) => LeadsTo::Slash,
        (Lies::Nothing, _, _, _) => LeadsTo::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two differ in the rows that the module names, and in no others.
    #[test]
    fn differences() {
        let mut different = Vec::new();
        for lies in [Lies::File, Lies::FolderWithIndex, Lies::Folder, Lies::Nothing] {
            for depth in [Depth::Root, Depth::Below] {
                for slash in [TrailingSlash::No, TrailingSlash::Yes] {
                    let [unixfs, skyfile] = [Habit::Unixfs, Habit::Skyfile].map(|habit| leads_to(habit, lies, depth, slash));
                    if unixfs != skyfile {
                        different.push((lies, depth, slash, unixfs, skyfile));
                    }
                }
            }
        }
        let expect = [
            (Lies::FolderWithIndex, Depth::Below, TrailingSlash::No, LeadsTo::Slash, LeadsTo::Index),
            (Lies::Folder, Depth::Root, TrailingSlash::No, LeadsTo::Slash, LeadsTo::Contents),
            (Lies::Folder, Depth::Below, TrailingSlash::No, LeadsTo::Slash, LeadsTo::Contents),
        ];
        assert_eq!(different, expect);
    }

    /// A walk knows that it is at a folder before it knows whether there is an index.
    #[test]
    fn without_its_slash_every_folder_of_a_tree_is_redirected() {
        for depth in [Depth::Root, Depth::Below] {
            for lies in [Lies::FolderWithIndex, Lies::Folder] {
                assert_eq!(leads_to(Habit::Unixfs, lies, depth, TrailingSlash::No), LeadsTo::Slash);
            }
        }
    }
}
