//! A tree of files: entries in byte order of path -> folders, closed as soon as nothing can come into them any more.

use std::cmp::Ordering;

use super::encode::{FOLDER_DATA, Link, symlink_block};
use super::file::sha256;
use super::hamt::{self, ShardRow, murmur3_x64_64};
use super::profile::{FolderRule, HAMT_ABOVE_BYTES};
use super::{
    BlockSink, BuildError, Built, DEPTH_MAX, FOLDER_ENTRIES_MAX, NAME_BYTES_MAX, NodeBlock, PATH_BYTES_MAX, PathFault, Profile,
    TARGET_BYTES_MAX,
};
use crate::address::Cid;

/// Takes the entries of a tree in byte order of their full paths (`a.txt` before `a/b`, for `.` is less than `/`) and hands
/// folders to the sink. Paths are relative, with `/` between names.
///
/// A file's own blocks go to the sink before [`TreeBuilder::file`] names it; [`TreeBuilder::check`] tells beforehand
/// whether its path will be taken. After an error of any call but `check` the builder is of no more use.
pub struct TreeBuilder {
    profile: Profile,
    /// The open folders, the root (with no name) first.
    open: Vec<Folder>,
    /// The path of the newest entry.
    last: Option<String>,
}

impl TreeBuilder {
    /// A tree with no entries.
    pub fn new(profile: Profile) -> TreeBuilder {
        TreeBuilder { profile, open: vec![Folder::new("")], last: None }
    }

    /// Whether an entry with this path could come next.
    pub fn check(&self, path: &str) -> Result<(), BuildError> {
        check_path(path).map_err(|fault| BuildError::BadPath { path: shorten(path), fault })?;
        if let Some(last) = &self.last {
            match path.as_bytes().cmp(last.as_bytes()) {
                Ordering::Greater => {}
                Ordering::Equal => return Err(BuildError::Duplicate { path: path.into() }),
                Ordering::Less => return Err(BuildError::OutOfOrder { path: path.into(), after: last.clone() }),
            }
        }
        let depth = self.open_depth(path);
        let parent = &self.open[depth];
        if let Some(name) = folder_names(path).nth(depth)
            && let Some(row) = parent.find(name)
            && parent.rows[row].kind == RowKind::Leaf
        {
            let file = path.split('/').take(depth + 1).collect::<Vec<_>>().join("/");
            return Err(BuildError::FileAsFolder { path: path.into(), file });
        }
        if parent.rows.len() >= FOLDER_ENTRIES_MAX {
            let folder = path.split('/').take(depth).collect::<Vec<_>>().join("/");
            return Err(BuildError::TooManyEntries { folder });
        }
        Ok(())
    }

    /// A file whose blocks are already in the sink.
    pub fn file(&mut self, path: &str, file: Built, sink: &mut impl BlockSink) -> Result<(), BuildError> {
        self.add(path, file, RowKind::Leaf, sink)
    }

    /// A symlink. Its target is kept as it is, never followed.
    pub fn symlink(&mut self, path: &str, target: &str, sink: &mut impl BlockSink) -> Result<(), BuildError> {
        self.check(path)?;
        if target.len() > TARGET_BYTES_MAX || target.contains('\0') {
            return Err(BuildError::BadTarget { path: path.into() });
        }
        let bytes = symlink_block(target.as_bytes());
        let cid = self.profile.node_cid(sha256(&[&bytes]));
        let built = Built { cid, size: 0, tsize: bytes.len() as u64 };
        sink.node(NodeBlock { cid, bytes, links: Vec::new() });
        self.add(path, built, RowKind::Leaf, sink)
    }

    /// A folder. Only needed for an empty one, but allowed before its entries, too.
    pub fn dir(&mut self, path: &str, sink: &mut impl BlockSink) -> Result<(), BuildError> {
        // Its block is handed on only when its parent closes: until then entries may still come into it.
        let cid = self.profile.node_cid(sha256(&[&FOLDER_DATA]));
        let empty = Built { cid, size: 0, tsize: FOLDER_DATA.len() as u64 };
        self.add(path, empty, RowKind::EmptyFolder, sink)
    }

    /// Closes all folders; the root comes last.
    pub fn finish(mut self, sink: &mut impl BlockSink) -> Result<Built, BuildError> {
        self.close_to(0, sink)?;
        let root = self.open.pop().expect("the root stays open until here");
        self.build(root, "", sink)
    }

    fn add(&mut self, path: &str, built: Built, kind: RowKind, sink: &mut impl BlockSink) -> Result<(), BuildError> {
        self.check(path)?;
        let depth = self.open_depth(path);
        self.close_to(depth, sink)?;
        for name in folder_names(path).skip(depth) {
            let parent = self.open.last_mut().expect("the root is open");
            if let Some(row) = parent.find(name) {
                // `check` has refused anything but an empty folder, which turns out to have entries.
                parent.rows[row].kind = RowKind::Superseded;
            }
            self.open.push(Folder::new(name));
        }
        let name = path.rsplit('/').next().expect("rsplit gives at least one part");
        self.open.last_mut().expect("the root is open").push(name, &built, kind);
        self.last = Some(path.into());
        Ok(())
    }

    /// How many folders of the path, from the root down, are the open ones: the index in `open` of the deepest.
    fn open_depth(&self, path: &str) -> usize {
        folder_names(path).zip(&self.open[1..]).take_while(|(name, folder)| *name == folder.name).count()
    }

    /// Closes folders until `open[depth]` is the deepest.
    fn close_to(&mut self, depth: usize, sink: &mut impl BlockSink) -> Result<(), BuildError> {
        while self.open.len() > depth + 1 {
            let folder = self.open.pop().expect("longer than depth + 1");
            let path = self.open[1..].iter().map(|f| f.name.as_str()).chain([folder.name.as_str()]).collect::<Vec<_>>().join("/");
            let name = folder.name.clone();
            let built = self.build(folder, &path, sink)?;
            self.open.last_mut().expect("the root stays open").push(&name, &built, RowKind::Folder);
        }
        Ok(())
    }

    fn build(&self, mut folder: Folder, path: &str, sink: &mut impl BlockSink) -> Result<Built, BuildError> {
        let Folder { text, rows, .. } = &mut folder;
        rows.retain(|row| row.kind != RowKind::Superseded);
        if rows.iter().any(|row| row.kind == RowKind::EmptyFolder) {
            let cid = self.profile.node_cid(sha256(&[&FOLDER_DATA]));
            sink.node(NodeBlock { cid, bytes: FOLDER_DATA.to_vec(), links: Vec::new() });
        }
        rows.sort_unstable_by(|a, b| a.name(text).cmp(b.name(text)));
        let links = rows.iter().map(|row| Link { cid: row.cid(text), name: [row.name(text), b""], tsize: row.tsize });
        let counted: u64 = match self.profile.folder_rule() {
            FolderRule::LinkBytes => links.clone().map(|link| (link.name[0].len() + link.cid.len()) as u64).sum(),
            FolderRule::BlockBytes => FOLDER_DATA.len() as u64 + links.clone().map(|link| link.encoded_bytes() as u64).sum::<u64>(),
        };
        let (cid, tsize) = if counted > HAMT_ABOVE_BYTES {
            let shard_row = |link: Link<'_>| (murmur3_x64_64(link.name[0]), link.tsize);
            let rows = rows.iter().zip(links).map(|(row, link)| {
                let (hash, tsize) = shard_row(link);
                ShardRow { hash, name: row.name(text), cid: row.cid(text), tsize }
            });
            hamt::build(self.profile, rows.collect(), sink).map_err(|_| BuildError::NamesCollide { folder: path.into() })?
        } else {
            self.plain(links, sink)
        };
        Ok(Built { cid, size: folder.size, tsize })
    }

    /// A folder in one block.
    fn plain<'a>(&self, links: impl Iterator<Item = Link<'a>>, sink: &mut impl BlockSink) -> (Cid, u64) {
        let (mut bytes, mut cids, mut tsize) = (Vec::new(), Vec::new(), 0);
        for link in links {
            link.put(&mut bytes);
            cids.push(Cid::try_from(link.cid).expect("rows hold the bytes of CIDs"));
            tsize += link.tsize;
        }
        bytes.extend_from_slice(&FOLDER_DATA);
        tsize += bytes.len() as u64;
        let cid = self.profile.node_cid(sha256(&[&bytes]));
        sink.node(NodeBlock { cid, bytes, links: cids });
        (cid, tsize)
    }
}

/// An open folder. Names and CIDs stand in one text, for a CID as a value has more than 150 bytes.
struct Folder {
    name: String,
    text: Vec<u8>,
    /// In the order of path, where a folder counts as `name/`: so [`Folder::find`] can search by halves.
    rows: Vec<Row>,
    size: u64,
}

struct Row {
    /// Where in the text the name begins; the CID follows it. [`FOLDER_ENTRIES_MAX`] entries stay far below 4 GiB.
    at: u32,
    name_len: u8,
    cid_len: u8,
    kind: RowKind,
    tsize: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RowKind {
    /// A file or symlink.
    Leaf,
    /// A closed folder with entries.
    Folder,
    /// A folder named by itself, without entries so far.
    EmptyFolder,
    /// It was an empty folder, then entries came: it is open, or a `Folder` row follows.
    Superseded,
}

impl Folder {
    fn new(name: &str) -> Folder {
        Folder { name: name.into(), text: Vec::new(), rows: Vec::new(), size: 0 }
    }

    fn push(&mut self, name: &str, built: &Built, kind: RowKind) {
        let cid = built.cid.to_bytes();
        self.rows.push(Row {
            at: u32::try_from(self.text.len()).expect("the text of FOLDER_ENTRIES_MAX entries is far below 4 GiB"),
            name_len: u8::try_from(name.len()).expect("names have been checked against NAME_BYTES_MAX"),
            cid_len: u8::try_from(cid.len()).expect("a digest of 128 bytes makes a CID of at most 158"),
            kind,
            tsize: built.tsize,
        });
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(&cid);
        self.size += built.size;
    }

    /// The row of a file, symlink or empty folder with this name.
    fn find(&self, name: &str) -> Option<usize> {
        self.rows.binary_search_by(|row| row.path_order(&self.text, name.as_bytes())).ok()
    }
}

impl Row {
    fn name<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let at = self.at as usize;
        &text[at..at + usize::from(self.name_len)]
    }

    fn cid<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let at = self.at as usize + usize::from(self.name_len);
        &text[at..at + usize::from(self.cid_len)]
    }

    /// This row against a name that is not a folder with entries.
    fn path_order(&self, text: &[u8], name: &[u8]) -> Ordering {
        let slash: &[u8] = if self.kind == RowKind::Folder { b"/" } else { b"" };
        self.name(text).iter().chain(slash).cmp(name)
    }
}

/// The names of the folders an entry lies in.
fn folder_names(path: &str) -> impl Iterator<Item = &str> {
    let folders = path.rsplit_once('/').map(|(folders, _)| folders);
    folders.into_iter().flat_map(|folders| folders.split('/'))
}

fn check_path(path: &str) -> Result<(), PathFault> {
    if path.len() > PATH_BYTES_MAX {
        return Err(PathFault::TooLong);
    }
    for (depth, name) in path.split('/').enumerate() {
        match name {
            "" => return Err(PathFault::EmptyName),
            "." | ".." => return Err(PathFault::DotName),
            _ if depth >= DEPTH_MAX => return Err(PathFault::TooDeep),
            _ if name.contains('\0') => return Err(PathFault::Nul),
            _ if name.len() > NAME_BYTES_MAX => return Err(PathFault::NameTooLong),
            _ => {}
        }
    }
    Ok(())
}

/// A path for an error, which must not carry megabytes.
fn shorten(path: &str) -> String {
    match path.char_indices().nth(256) {
        Some((cut, _)) => format!("{}…", &path[..cut]),
        None => path.into(),
    }
}
