//! `GET /api/v1/tree?address=…`: a file or a whole folder as an add stream (`docs/formats.md` 9), for `skygate get`.
//!
//! Entries come in the order of the folders' own listings. A failure on the way breaks the stream off; without its
//! last frame a client knows that it is not whole.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::address::{Address, Cid, SitePath, Skylink, codec};
use crate::http::ask::parameter;
use crate::http::refusal::Refusal;
use crate::http::services::{Content, Services, Skyfile};
use crate::http::walk::walk;
use crate::measure::Trace;
use crate::site::unixfs::{Answer, DirListing, ListStep};
use crate::store::{FileSource, StoreError, Window};
use crate::tree::skyfile::Subfile;
use crate::tree::{FileNode, TreeNode, parse_node};

use super::Denied;

/// Frames and content parts that wait for the client: with parts of at most 1 MiB this bounds the memory of one stream.
const PARTS_WAITING_MAX: usize = 4;
/// Folders in folders that are followed.
const DEPTH_MAX: usize = 256;

/// What an address leads to.
enum Found {
    File {
        name: String,
        file: FileSource,
    },
    Symlink {
        name: String,
        target: String,
    },
    Folder {
        name: String,
        dir: DirListing,
    },
    /// What of a skyfile lies at or below `path`; all of it if that is empty.
    Skyfile {
        name: String,
        skyfile: Arc<dyn Skyfile>,
        path: String,
    },
}

/// The route.
pub async fn tree(State(services): State<Arc<Services>>, RawQuery(query): RawQuery) -> Result<Response, Denied> {
    let address = parameter(&query.unwrap_or_default(), "address").ok_or(Refusal::BadQuery("address is missing"))?;
    let parsed = Address::parse(&address).map_err(|error| Refusal::BadPath { path: address.chars().take(512).collect(), error })?;
    let trace = Trace::new();
    let content = services.content.clone();
    let found = find(&content, parsed, &trace).await?;
    let (parts, received) = mpsc::channel(PARTS_WAITING_MAX);
    tokio::spawn(async move {
        let mut out = Out { content, trace, parts, entries: 0 };
        if let Err(Ended::Failed(error)) = out.send(found).await {
            tracing::debug!(%error, address, "a tree could not be sent whole");
            // The body ends with an error, so that nobody takes it for whole.
            let _ = out.parts.send(Err(std::io::Error::other(error))).await;
        }
    });
    let body = futures::stream::unfold(received, |mut received| async move { received.recv().await.map(|part| (part, received)) });
    Ok(Response::new(Body::from_stream(body)))
}

async fn find(content: &Arc<dyn Content>, address: Address, trace: &Arc<Trace>) -> Result<Found, Refusal> {
    match address {
        Address::Ipfs { root, path } => {
            let name = path.last().map_or_else(|| root.to_string(), str::to_owned);
            find_in_dag(content, root, &path, name, trace).await
        }
        Address::Skylink { link, path_text } => find_skyfile(content, link, &path_text, trace).await,
        Address::Ipns { .. } => Err(Refusal::BadQuery("names are not resolved yet: use a CID or a skylink")),
    }
}

/// A skyfile, or the part of it that lies at or below a path. By name alone: tryfiles and the like are for browsers.
async fn find_skyfile(content: &Arc<dyn Content>, link: Skylink, path_text: &str, trace: &Arc<Trace>) -> Result<Found, Refusal> {
    let path =
        SitePath::parse(path_text).map_err(|error| Refusal::BadPath { path: path_text.chars().take(512).collect(), error })?;
    let path = path.segments().join("/");
    let skyfile = content.skyfile(&link, trace).await?;
    let metadata = &skyfile.head().metadata;
    let below = format!("{path}/");
    if !path.is_empty() && !metadata.subfiles.keys().any(|name| *name == path || name.starts_with(&below)) {
        return Err(Refusal::NoSuchPath { missing: path });
    }
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(&metadata.filename).to_owned();
    Ok(Found::Skyfile { name, skyfile, path })
}

/// The folder itself and not its index.html; so it is looked for in the folder above, or by its own block at the root.
async fn find_in_dag(
    content: &Arc<dyn Content>,
    root: Cid,
    path: &SitePath,
    name: String,
    trace: &Arc<Trace>,
) -> Result<Found, Refusal> {
    let mut cid = root;
    for segment in path.segments() {
        let one = SitePath::from_decoded(segment).map_err(|error| Refusal::BadPath { path: segment.clone(), error })?;
        cid = match walk(content.as_ref(), cid, one, trace).await? {
            Answer::File { cid, .. } | Answer::RawBlock { cid, .. } | Answer::Symlink { cid, .. } => cid,
            // A folder without a slash: its own CID stands in the folder it is in.
            Answer::AddSlash => child_of(content, cid, segment, trace).await?,
            Answer::NotFound { missing, .. } => return Err(Refusal::NoSuchPath { missing }),
            Answer::InsideBlock { cid, .. } => return Err(Refusal::InsideBlock(Box::new(cid))),
            Answer::NotUnixfs { codec, .. } => return Err(Refusal::NotUnixfs { codec }),
            Answer::Listing { cid, .. } => cid,
        };
    }
    Ok(open(content, cid, name, trace).await?)
}

async fn child_of(content: &Arc<dyn Content>, folder: Cid, name: &str, trace: &Arc<Trace>) -> Result<Cid, Refusal> {
    let mut dir = match parse_node(&folder, &content.index_block(&folder, trace).await?).map_err(StoreError::Tree)? {
        TreeNode::Dir(dir) => DirListing::plain(dir),
        TreeNode::Shard(shard) => DirListing::sharded(shard),
        _ => return Err(Refusal::NoSuchPath { missing: name.to_owned() }),
    };
    loop {
        match dir.step()? {
            ListStep::Entry(entry) if entry.name == name => return Ok(entry.cid),
            ListStep::Entry(_) => {}
            ListStep::Need(shard) => dir.give(content.index_block(&shard, trace).await?)?,
            ListStep::End => return Err(Refusal::NoSuchPath { missing: name.to_owned() }),
        }
    }
}

/// What the node behind a CID is.
async fn open(content: &Arc<dyn Content>, cid: Cid, name: String, trace: &Arc<Trace>) -> Result<Found, StoreError> {
    if cid.codec() == codec::RAW {
        let size = content.block_length(&cid, trace).await?;
        let node = FileNode { inline: Bytes::new(), size, children: Vec::new(), mode: None, mtime: None };
        return Ok(Found::File { name, file: FileSource { cid, node: Arc::new(node) } });
    }
    let block = content.index_block(&cid, trace).await?;
    Ok(match parse_node(&cid, &block)? {
        TreeNode::File(node) => Found::File { name, file: FileSource { cid, node } },
        TreeNode::Dir(dir) => Found::Folder { name, dir: DirListing::plain(dir) },
        TreeNode::Shard(shard) => Found::Folder { name, dir: DirListing::sharded(shard) },
        TreeNode::Symlink(target) => Found::Symlink { name, target },
        TreeNode::Raw(_) | TreeNode::Other { .. } => {
            return Err(StoreError::BadFile("an entry of the folder is neither file nor folder"));
        }
    })
}

enum Ended {
    /// The client went away.
    Gone,
    Failed(StoreError),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Ended {
        Ended::Failed(error)
    }
}

struct Out {
    content: Arc<dyn Content>,
    trace: Arc<Trace>,
    parts: mpsc::Sender<Result<Bytes, std::io::Error>>,
    entries: u64,
}

impl Out {
    async fn send(&mut self, found: Found) -> Result<(), Ended> {
        let head = |root: &str, name: &str| json!({ "v": 1, "root": root, "name": name, "profile": "unixfs-v1-2025" });
        match found {
            Found::File { name, file } => {
                self.frame(&head("file", &name)).await?;
                self.file(&name, file).await?;
            }
            Found::Symlink { name, target } => {
                self.frame(&head("dir", &name)).await?;
                self.entry(&json!({ "path": name, "kind": "symlink", "target": target })).await?;
            }
            Found::Folder { name, dir } => {
                self.frame(&head("dir", &name)).await?;
                self.folder(dir).await?;
            }
            Found::Skyfile { name, skyfile, path } => self.skyfile(&name, &skyfile, &path, head).await?,
        }
        let entries = self.entries;
        self.frame(&json!({ "end": true, "entries": entries })).await
    }

    /// Depth first, with one open listing a level.
    async fn folder(&mut self, dir: DirListing) -> Result<(), Ended> {
        let mut levels = vec![(String::new(), dir)];
        while let Some((prefix, dir)) = levels.last_mut() {
            let step = dir.step().map_err(|_| StoreError::BadFile("a folder cannot be listed"))?;
            let entry = match step {
                ListStep::End => {
                    levels.pop();
                    continue;
                }
                ListStep::Need(cid) => {
                    let block = self.content.index_block(&cid, &self.trace).await?;
                    dir.give(block).map_err(|_| StoreError::BadFile("a folder cannot be listed"))?;
                    continue;
                }
                ListStep::Entry(entry) => entry,
            };
            let path = format!("{prefix}{}", entry.name);
            match open(&self.content, entry.cid, path, &self.trace).await? {
                Found::File { name, file } => self.file(&name, file).await?,
                Found::Symlink { name, target } => {
                    self.entry(&json!({ "path": name, "kind": "symlink", "target": target })).await?
                }
                Found::Folder { name, dir } => {
                    if levels.len() == DEPTH_MAX {
                        return Err(StoreError::BadFile("folders are nested deeper than this gateway follows").into());
                    }
                    self.entry(&json!({ "path": name, "kind": "dir" })).await?;
                    levels.push((format!("{name}/"), dir));
                }
                Found::Skyfile { .. } => unreachable!("a node of a DAG is no skyfile"),
            }
        }
        Ok(())
    }

    async fn file(&mut self, path: &str, file: FileSource) -> Result<(), Ended> {
        let size = file.node.size;
        self.entry(&json!({ "path": path, "kind": "file", "size": size })).await?;
        let body = self.content.stream_file(file, 0..size, Window::Later, self.trace.clone());
        self.body(body).await
    }

    async fn skyfile(
        &mut self,
        name: &str,
        skyfile: &Arc<dyn Skyfile>,
        path: &str,
        head: impl Fn(&str, &str) -> Value,
    ) -> Result<(), Ended> {
        let whole = 0..skyfile.head().size_bytes;
        let subfiles = &skyfile.head().metadata.subfiles;
        if subfiles.is_empty() {
            self.frame(&head("file", name)).await?;
            return self.stretch(name, skyfile, whole).await;
        }
        let alone = if path.is_empty() && subfiles.len() == 1 { name } else { path };
        if let Some(subfile) = subfiles.get(alone) {
            self.frame(&head("file", name)).await?;
            return self.stretch(name, skyfile, stretch_of(subfile)).await;
        }
        self.frame(&head("dir", name)).await?;
        let below = if path.is_empty() { String::new() } else { format!("{path}/") };
        for (file, subfile) in subfiles {
            if let Some(file) = file.strip_prefix(&below) {
                self.stretch(file, skyfile, stretch_of(subfile)).await?;
            }
        }
        Ok(())
    }

    /// One stretch of a skyfile's content as a file.
    async fn stretch(&mut self, path: &str, skyfile: &Arc<dyn Skyfile>, stretch: Range<u64>) -> Result<(), Ended> {
        if stretch.end > skyfile.head().size_bytes {
            return Err(StoreError::BadFile("a subfile lies outside of the skyfile").into());
        }
        let size = stretch.end - stretch.start;
        self.entry(&json!({ "path": path, "kind": "file", "size": size })).await?;
        let body = skyfile.stream(stretch, 0..size, Window::Later, self.trace.clone());
        self.body(body).await
    }

    async fn body(&mut self, mut body: crate::store::BodyStream) -> Result<(), Ended> {
        while let Some(part) = body.next().await {
            self.parts.send(Ok(part?)).await.map_err(|_| Ended::Gone)?;
        }
        Ok(())
    }

    async fn entry(&mut self, entry: &Value) -> Result<(), Ended> {
        self.entries += 1;
        self.frame(entry).await
    }

    async fn frame(&mut self, json: &Value) -> Result<(), Ended> {
        let json = json.to_string();
        let mut frame = (json.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(json.as_bytes());
        self.parts.send(Ok(frame.into())).await.map_err(|_| Ended::Gone)
    }
}

fn stretch_of(subfile: &Subfile) -> Range<u64> {
    subfile.offset_bytes..subfile.offset_bytes.saturating_add(subfile.len_bytes)
}
