//! Content that tests upload and read back: files and folders from seeds, as add streams (`docs/formats.md` 9).

use std::collections::BTreeMap;
use std::path::Path;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::unixfs::{self, Node};
use crate::wire::{self, Answer};
use crate::{Gateway, seeded_bytes, sha256};

/// A file or folder to upload.
#[derive(Clone, Debug)]
pub struct Content {
    pub name: String,
    shape: Shape,
    /// By path, in byte order.
    items: BTreeMap<String, Item>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    File,
    Folder,
}

#[derive(Clone, Debug)]
pub enum Item {
    File(Vec<u8>),
    Symlink(String),
    Folder,
}

/// What an upload gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    pub cid: String,
    pub skylink: Option<String>,
    pub size_bytes: u64,
    pub files: u64,
    pub durability: String,
}

impl Added {
    pub fn of(json: &Value) -> Added {
        Added {
            cid: json["cid"].as_str().unwrap_or_else(|| panic!("no cid: {json}")).to_owned(),
            skylink: json["skylink"].as_str().map(str::to_owned),
            size_bytes: json["size_bytes"].as_u64().expect("size_bytes is a number"),
            files: json["files"].as_u64().expect("files is a number"),
            durability: json["durability"].as_str().expect("durability is a word").to_owned(),
        }
    }

    pub fn skylink(&self) -> &str {
        self.skylink.as_deref().expect("an upload with a file has a skylink")
    }
}

/// How much of an upload can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Nothing,
    Everything,
    /// Neither, in words: never allowed.
    Torn(String),
}

impl Content {
    pub fn file(name: &str, bytes: Vec<u8>) -> Content {
        Content { name: name.to_owned(), shape: Shape::File, items: BTreeMap::from([(name.to_owned(), Item::File(bytes))]) }
    }

    pub fn folder(name: &str, items: impl IntoIterator<Item = (String, Item)>) -> Content {
        Content { name: name.to_owned(), shape: Shape::Folder, items: items.into_iter().collect() }
    }

    /// A folder of files only.
    pub fn files_of(name: &str, files: &[(&str, &[u8])]) -> Content {
        Content::folder(name, files.iter().map(|(path, bytes)| ((*path).to_owned(), Item::File(bytes.to_vec()))))
    }

    /// A file, or sometimes a folder, between 1 KiB and `max_bytes`, small ones as often as large ones.
    pub fn random(random: &mut ChaCha8Rng, name: &str, max_bytes: usize) -> Content {
        let size = |random: &mut ChaCha8Rng, max: usize| (1024.0 * (max as f64 / 1024.0).powf(random.random::<f64>())) as usize;
        if random.random_ratio(2, 3) {
            let length = size(random, max_bytes);
            return Content::file(name, seeded_bytes(random.random(), length));
        }
        let count = random.random_range(2..12);
        let items = (0..count).map(|index| {
            let path = format!("{}/file {index}.bin", ["a", "b/c", "ą"][index % 3]);
            let length = size(random, max_bytes / count);
            (path, Item::File(seeded_bytes(random.random(), length)))
        });
        Content::folder(name, items.collect::<Vec<_>>())
    }

    /// Paths and bytes of the files.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.items.iter().filter_map(|(path, item)| match item {
            Item::File(bytes) => Some((path.as_str(), bytes.as_slice())),
            Item::Symlink(_) | Item::Folder => None,
        })
    }

    pub fn size_bytes(&self) -> u64 {
        self.files().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The add stream.
    pub fn stream(&self) -> Vec<u8> {
        self.stream_of("unixfs-v1-2025")
    }

    pub fn stream_of(&self, profile: &str) -> Vec<u8> {
        let root = if self.shape == Shape::File { "file" } else { "dir" };
        let mut out = frame(&json!({ "v": 1, "root": root, "name": self.name, "profile": profile }));
        for (path, item) in &self.items {
            match item {
                Item::File(bytes) => {
                    out.extend(frame(&json!({ "path": path, "kind": "file", "size": bytes.len() })));
                    out.extend_from_slice(bytes);
                }
                Item::Symlink(target) => out.extend(frame(&json!({ "path": path, "kind": "symlink", "target": target }))),
                Item::Folder => out.extend(frame(&json!({ "path": path, "kind": "dir" }))),
            }
        }
        out.extend(frame(&json!({ "end": true, "entries": self.items.len() })));
        out
    }

    /// The CID that the default profile gives, computed here.
    pub fn cid(&self) -> String {
        match self.shape {
            Shape::File => self.files().next().map(|(_, bytes)| unixfs::file(bytes)).expect("one file").cid(),
            Shape::Folder => {
                let items: Vec<(&str, &Item)> = self.items.iter().map(|(path, item)| (path.as_str(), item)).collect();
                folder_node(&items).cid()
            }
        }
    }

    /// CIDs of all leaves.
    pub fn leaves(&self) -> Vec<String> {
        self.files().flat_map(|(_, bytes)| unixfs::leaves(bytes)).collect()
    }

    /// Paths on the public listener below `base` (`/ipfs/{cid}` or `/{skylink}`), with the bytes that stand there.
    pub fn addresses(&self, base: &str) -> Vec<(String, &[u8])> {
        self.files()
            .map(|(path, bytes)| match self.shape {
                Shape::File => (base.to_owned(), bytes),
                Shape::Folder => (format!("{base}/{}", encode_path(path)), bytes),
            })
            .collect()
    }

    /// Reads everything back, by CID and by skylink.
    pub async fn read_back(&self, gateway: &Gateway, added: &Added) -> Result<(), String> {
        let mut addresses = self.addresses(&format!("/ipfs/{}", added.cid));
        if let Some(skylink) = &added.skylink {
            addresses.extend(self.addresses(&format!("/{skylink}")));
        }
        for (target, bytes) in addresses {
            let answer = wire::try_ask(&gateway.public, "GET", &target, &[]).await.map_err(|error| format!("{target}: {error}"))?;
            compare(&target, &answer, bytes)?;
        }
        Ok(())
    }

    /// The same, and panics with the gateway's log.
    pub async fn assert_read_back(&self, gateway: &Gateway, added: &Added) {
        if let Err(error) = self.read_back(gateway, added).await {
            panic!("{}: {error}\n{}", self.name, gateway.log());
        }
    }

    /// What can be seen of an upload that may or may not have been committed: by its paths and by its leaves.
    pub async fn seen(&self, gateway: &Gateway) -> Seen {
        let mut addresses = self.addresses(&format!("/ipfs/{}", self.cid()));
        let leaves = self.files().flat_map(|(_, bytes)| bytes.chunks(unixfs::CHUNK_BYTES));
        addresses.extend(leaves.map(|leaf| (format!("/ipfs/{}", unixfs::raw(leaf).cid()), leaf)));
        let (mut present, mut absent) = (0, 0);
        for (target, bytes) in addresses {
            let answer = gateway.get(&target).await;
            match (answer.status, compare(&target, &answer, bytes)) {
                (404, _) => absent += 1,
                (_, Ok(())) => present += 1,
                (_, Err(error)) => return Seen::Torn(error),
            }
        }
        match (present, absent) {
            (_, 0) => Seen::Everything,
            (0, _) => Seen::Nothing,
            _ => Seen::Torn(format!("{present} addresses answer, {absent} are 404")),
        }
    }

    /// Writes it to a disk: a file at `at`, or a folder.
    pub fn write_to(&self, at: &Path) {
        for (path, item) in &self.items {
            let place = if self.shape == Shape::File { at.to_owned() } else { at.join(path) };
            std::fs::create_dir_all(place.parent().expect("below a folder")).expect("folders can be made");
            match item {
                Item::File(bytes) => std::fs::write(&place, bytes).expect("files can be written"),
                Item::Symlink(target) => std::os::unix::fs::symlink(target, &place).expect("links can be made"),
                Item::Folder => std::fs::create_dir_all(&place).expect("folders can be made"),
            }
        }
        if self.shape == Shape::Folder {
            std::fs::create_dir_all(at).expect("folders can be made");
        }
    }

    /// Compares with what is on a disk: nothing missing, nothing more.
    pub fn compare_with(&self, at: &Path) -> Result<(), String> {
        if self.shape == Shape::File {
            let (_, bytes) = self.files().next().expect("one file");
            return match std::fs::read(at) {
                Ok(found) if found == bytes => Ok(()),
                Ok(found) => Err(format!("{} has other bytes ({} for {})", at.display(), found.len(), bytes.len())),
                Err(error) => Err(format!("{}: {error}", at.display())),
            };
        }
        let mut found = BTreeMap::new();
        walk(at, "", &mut found).map_err(|error| format!("{}: {error}", at.display()))?;
        for (path, item) in &self.items {
            let same = match (item, found.remove(path)) {
                (Item::File(bytes), Some(Item::File(found))) => *bytes == found,
                (Item::Symlink(target), Some(Item::Symlink(found))) => *target == found,
                (Item::Folder, Some(Item::Folder)) => true,
                _ => false,
            };
            if !same {
                return Err(format!("{path} is missing or other"));
            }
        }
        found.retain(|_, item| !matches!(item, Item::Folder));
        if found.is_empty() { Ok(()) } else { Err(format!("surplus: {:?}", found.keys())) }
    }
}

fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Item>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            found.insert(path, Item::Symlink(std::fs::read_link(entry.path())?.to_string_lossy().into_owned()));
        } else if kind.is_dir() {
            walk(&entry.path(), &format!("{path}/"), found)?;
            found.insert(path, Item::Folder);
        } else {
            found.insert(path, Item::File(std::fs::read(entry.path())?));
        }
    }
    Ok(())
}

fn folder_node(items: &[(&str, &Item)]) -> Node {
    let mut entries: BTreeMap<&str, Vec<(&str, &Item)>> = BTreeMap::new();
    let mut nodes = Vec::new();
    for (path, item) in items {
        match (path.split_once('/'), item) {
            (Some((name, rest)), item) => entries.entry(name).or_default().push((rest, item)),
            (None, Item::File(bytes)) => nodes.push((*path, unixfs::file(bytes))),
            (None, Item::Symlink(target)) => nodes.push((*path, unixfs::symlink(target))),
            (None, Item::Folder) => {
                entries.entry(path).or_default();
            }
        }
    }
    nodes.extend(entries.into_iter().map(|(name, below)| (name, folder_node(&below))));
    unixfs::folder(nodes)
}

/// One frame of an add stream.
pub fn frame(json: &Value) -> Vec<u8> {
    let text = json.to_string();
    let mut out = (text.len() as u32).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

/// Percent-encodes each segment of a path.
pub fn encode_path(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Is this answer all of these bytes?
pub fn compare(target: &str, answer: &Answer, bytes: &[u8]) -> Result<(), String> {
    if answer.status != 200 {
        return Err(format!("{target}: {} {}", answer.status, answer.text()));
    }
    if !answer.whole {
        return Err(format!("{target}: broken off after {} of {} bytes", answer.body.len(), bytes.len()));
    }
    if sha256(&answer.body) != sha256(bytes) {
        return Err(format!("{target}: WRONG BYTES: {} for {}", answer.body.len(), bytes.len()));
    }
    Ok(())
}

/// Uploads each, and expects success.
pub async fn upload_all(gateway: &Gateway, contents: &[Content]) -> Vec<Added> {
    let mut added = Vec::new();
    for content in contents {
        added.push(gateway.upload(content).await);
    }
    added
}

/// Reads each back; a wrong one fails the test, with `what` was going on.
pub async fn read_all(gateway: &Gateway, contents: &[Content], added: &[Added], what: &str) {
    for (content, added) in contents.iter().zip(added) {
        if let Err(error) = content.read_back(gateway, added).await {
            panic!("{what}: {}: {error}\n{}", content.name, gateway.log());
        }
    }
}
