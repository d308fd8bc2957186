//! `format=tar`: a file or a directory with all below it as a TAR stream (`specs/ipfs-gateway.md` 2.1).
//!
//! One shard a level, the next few small files of each, and one file at a time are in memory. What fails before the first bytes is an error reply; after that
//! it breaks the connection.

use std::collections::VecDeque;
use std::sync::Arc;

use ::http::header::{self, HeaderValue};
use ::http::{Method, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio_util::task::AbortOnDropHandle;

use super::super::ask::Ask;
use super::super::plan::{Disposition, ascii, not_modified};
use super::super::refusal::Refusal;
use super::super::reply::{Clock, Reply, ReplyBody, made_on_the_way, stamp};
use super::super::services::{Content, Services};
use super::headers::{self, Kind};
use super::{Target, block_at, check_entity, denied, store_error};
use crate::address::{Cid, codec};
use crate::measure::Trace;
use crate::site::unixfs::{DirListing, ListStep};
use crate::store::{BodyStream, FileSource, StoreError, Window};
use crate::tree::tar::{END, Entry, Kind as EntryKind, padding};
use crate::tree::{FileNode, TreeNode, parse_node};

/// Folders inside one another. Each keeps one shard a level in memory; file systems have paths of 4 KiB.
const TAR_DEPTH_MAX: usize = 512;
/// Longest path of an entry, as on file systems.
const TAR_PATH_BYTES_MAX: usize = 4096;
/// Entries that are fetched ahead, in all folders that are open: small files would cost a round of hosts each.
const ENTRIES_AHEAD_MAX: usize = 16;
/// Files up to this are fetched whole ahead of their turn, a MiB of them at most.
const SMALL_BYTES: u64 = 64 << 10;
/// Headers and small files are sent on together, once they are so many bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// The TAR as a reply.
pub async fn reply(services: &Services, ask: &Ask, target: &Target, clock: &Clock) -> Result<Reply, Refusal> {
    let (cid, roots) = block_at(services, ask, target, clock).await?;
    if !matches!(cid.codec(), codec::DAG_PB | codec::RAW) {
        return Err(Refusal::CodecMismatch { codec: cid.codec(), format: "tar" });
    }
    check_entity(services, &cid, clock).await?;
    let kind = Kind { media_type: "application/x-tar", disposition: Disposition::Attachment, extension: "tar" };
    let mut headers = headers::of_format(ask, target, (&cid, &roots), &kind, &[]);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    let etag = format!("W/\"{cid}.x-tar\"");
    let known = not_modified(&ask.conditions, &etag)?;
    headers.insert(header::ETAG, ascii(etag));
    let located = clock.started.elapsed();
    let rules = services.content.has_deny_rules().then(|| PathRules { content: services.content.clone(), target: target.clone() });
    let mut archive = Archive::new(services.content.clone(), clock.trace.clone(), rules);
    let (status, body) = if known {
        headers.remove(header::CONTENT_TYPE);
        headers.remove(header::CONTENT_DISPOSITION);
        (StatusCode::NOT_MODIFIED, ReplyBody::empty())
    } else {
        archive.open(cid.to_string(), cid).await?;
        // As for GET the first entries have to be there.
        let first = archive.next().await?.unwrap_or_default();
        if ask.method == Method::HEAD {
            (StatusCode::OK, ReplyBody::empty())
        } else {
            let rest =
                stream::try_unfold(archive, |mut archive| async move { Ok(archive.next().await?.map(|chunk| (chunk, archive))) });
            (StatusCode::OK, made_on_the_way(services, clock, first, rest.boxed(), None))
        }
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    stamp(reply.headers_mut(), clock, located);
    Ok(reply)
}

/// An archive on its way out.
struct Archive {
    content: Arc<dyn Content>,
    rules: Option<PathRules>,
    trace: Arc<Trace>,
    /// Folders that are open, outermost first.
    open: Vec<Folder>,
    file: Option<OpenFile>,
    waiting: BytesMut,
    ended: bool,
}

/// The operator's rules about paths hold for the files of an archive as they do one by one.
struct PathRules {
    content: Arc<dyn Content>,
    target: Target,
}

impl PathRules {
    /// `names` are below what was asked for.
    fn check(&self, names: &[String]) -> Result<(), StoreError> {
        let below = format!("{}/{}", self.target.asked_names(), names.join("/"));
        match denied(self.content.as_ref(), &self.target, &below) {
            Some(reason) => Err(StoreError::Denied(Box::new(reason))),
            None => Ok(()),
        }
    }
}

struct Folder {
    /// Names from the archive's top down to this folder.
    names: Vec<String>,
    dir: DirListing,
    /// Entries that are being fetched, in order.
    ahead: VecDeque<Ahead>,
    listed: bool,
}

struct Ahead {
    name: String,
    cid: Cid,
    fetched: AbortOnDropHandle<Result<Fetched, StoreError>>,
}

/// What is known of an entry before it is its turn.
struct Fetched {
    node: TreeNode,
    /// Of a small file: all of it.
    bytes: Option<Bytes>,
}

impl Folder {
    fn new(names: Vec<String>, dir: DirListing) -> Folder {
        Folder { names, dir, ahead: VecDeque::new(), listed: false }
    }

    /// The next entry, and up to `room` of them on their way. `None` at the end.
    async fn next(&mut self, content: &Arc<dyn Content>, trace: &Arc<Trace>, room: usize) -> Result<Option<Ahead>, StoreError> {
        while self.ahead.len() < room && !self.listed {
            match self.dir.step().map_err(store_error)? {
                ListStep::Entry(entry) => {
                    let fetch = fetch(content.clone(), trace.clone(), entry.cid, Window::Later);
                    let fetched = AbortOnDropHandle::new(tokio::spawn(fetch));
                    self.ahead.push_back(Ahead { name: entry.name, cid: entry.cid, fetched });
                }
                // What is at hand goes out first.
                ListStep::Need(_) if !self.ahead.is_empty() => break,
                ListStep::Need(shard) => {
                    let block = content.index_block(&shard, trace).await?;
                    self.dir.give(block).map_err(store_error)?;
                }
                ListStep::End => self.listed = true,
            }
        }
        Ok(self.ahead.pop_front())
    }
}

/// The node of an entry, and of a small file its bytes.
async fn fetch(content: Arc<dyn Content>, trace: Arc<Trace>, cid: Cid, window: Window) -> Result<Fetched, StoreError> {
    let node = match cid.codec() {
        codec::RAW => {
            let size = content.block_length(&cid, &trace).await?;
            TreeNode::File(Arc::new(FileNode { inline: Bytes::new(), size, children: Vec::new(), mode: None, mtime: None }))
        }
        codec::DAG_PB => parse_node(&cid, &content.index_block(&cid, &trace).await?)?,
        _ => return Err(StoreError::BadFile("it holds something that is neither a file nor a directory")),
    };
    let small = match &node {
        TreeNode::File(node) if node.size <= SMALL_BYTES => Some(node.clone()),
        _ => None,
    };
    let bytes = match small {
        Some(node) => {
            let size = node.size;
            let parts: Vec<Bytes> = content.stream_file(FileSource { cid, node }, 0..size, window, trace).try_collect().await?;
            Some(Bytes::from(parts.concat()))
        }
        None => None,
    };
    Ok(Fetched { node, bytes })
}

struct OpenFile {
    bytes: BodyStream,
    left_bytes: u64,
    padding: &'static [u8],
}

impl Archive {
    fn new(content: Arc<dyn Content>, trace: Arc<Trace>, rules: Option<PathRules>) -> Archive {
        Archive { content, rules, trace, open: Vec::new(), file: None, waiting: BytesMut::new(), ended: false }
    }

    /// The next chunk. Less than [`CHUNK_BYTES`] only at the end, or before a large piece of a file.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while self.waiting.len() < CHUNK_BYTES {
            if let Some(file) = &mut self.file {
                if let Some(chunk) = file.bytes.try_next().await? {
                    let left = file.left_bytes.checked_sub(chunk.len() as u64);
                    file.left_bytes = left.ok_or(StoreError::BadFile("a file is longer than its node says"))?;
                    self.waiting.extend_from_slice(&chunk);
                    continue;
                }
                if file.left_bytes > 0 {
                    return Err(StoreError::BadFile("a file is shorter than its node says"));
                }
                self.waiting.extend_from_slice(file.padding);
                self.file = None;
            } else if let Some((folder, above)) = self.open.split_last_mut() {
                let held: usize = above.iter().map(|folder| folder.ahead.len()).sum();
                let room = ENTRIES_AHEAD_MAX.saturating_sub(held).max(1);
                match folder.next(&self.content, &self.trace, room).await? {
                    Some(Ahead { name, cid, fetched }) => {
                        let names = below(&folder.names, &name)?;
                        self.check(&names)?;
                        let fetched = fetched.await.expect("fetching an entry does not panic")?;
                        self.write(names, cid, fetched, Window::Later)?;
                    }
                    None => drop(self.open.pop()),
                }
            } else if !std::mem::replace(&mut self.ended, true) {
                self.waiting.extend_from_slice(&END);
            } else {
                break;
            }
        }
        Ok((!self.waiting.is_empty()).then(|| self.waiting.split().freeze()))
    }

    /// Begins with the entry that is the top of the archive.
    async fn open(&mut self, name: String, cid: Cid) -> Result<(), StoreError> {
        let names = vec![name];
        self.check(&names)?;
        let fetched = fetch(self.content.clone(), self.trace.clone(), cid, Window::First).await?;
        self.write(names, cid, fetched, Window::First)
    }

    /// May there be such an entry?
    fn check(&self, names: &[String]) -> Result<(), StoreError> {
        if names.len() > TAR_DEPTH_MAX {
            return Err(StoreError::BadFile("its folders lie deeper in one another than a TAR is made of"));
        }
        let path_bytes: usize = names.iter().map(|name| name.len() + 1).sum();
        if path_bytes > TAR_PATH_BYTES_MAX {
            return Err(StoreError::BadFile("a path in it is longer than a TAR is made of"));
        }
        self.rules.as_ref().map_or(Ok(()), |rules| rules.check(&names[1..]))
    }

    /// Begins an entry: its header now, what it holds next.
    fn write(&mut self, names: Vec<String>, cid: Cid, fetched: Fetched, window: Window) -> Result<(), StoreError> {
        let Fetched { node, bytes } = fetched;
        let path = names.join("/");
        let (kind, mode, mtime) = match &node {
            TreeNode::File(file) => (EntryKind::File { size: file.size }, file.mode, file.mtime),
            TreeNode::Dir(dir) => (EntryKind::Dir, dir.mode, dir.mtime),
            TreeNode::Shard(_) => (EntryKind::Dir, None, None),
            TreeNode::Symlink(target) => (EntryKind::Symlink { target }, None, None),
            TreeNode::Raw(_) | TreeNode::Other { .. } => {
                return Err(StoreError::BadFile("it holds something that is neither a file nor a directory"));
            }
        };
        self.waiting.extend_from_slice(&Entry { path: &path, kind, mode, mtime }.header());
        match node {
            TreeNode::File(node) => {
                let size = node.size;
                let bytes = match bytes {
                    Some(bytes) => stream::once(std::future::ready(Ok(bytes))).boxed(),
                    None => self.content.stream_file(FileSource { cid, node }, 0..size, window, self.trace.clone()),
                };
                self.file = Some(OpenFile { bytes, left_bytes: size, padding: padding(size) });
            }
            TreeNode::Dir(dir) => self.open.push(Folder::new(names, DirListing::plain(dir))),
            TreeNode::Shard(top) => self.open.push(Folder::new(names, DirListing::sharded(top))),
            TreeNode::Symlink(_) | TreeNode::Raw(_) | TreeNode::Other { .. } => {}
        }
        Ok(())
    }
}

/// Where an entry lies. A name may hold slashes and `..`, and must not lead out of the archive's top folder.
fn below(folder: &[String], name: &str) -> Result<Vec<String>, StoreError> {
    let mut names = folder.to_vec();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." if names.len() > 1 => drop(names.pop()),
            ".." => return Err(StoreError::BadFile("a name in it leads out of its root")),
            part if part.contains('\0') => return Err(StoreError::BadFile("a name in it holds a zero byte")),
            part => names.push(part.to_owned()),
        }
    }
    // What ends at the top folder would stand in its place.
    match names.len() > 1 && !name.is_empty() {
        true => Ok(names),
        false => Err(StoreError::BadFile("a name in it leads out of its root")),
    }
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn names_stay_inside_the_root() {
        let folder = ["root".to_owned(), "a".to_owned(), "b".to_owned()];
        let rows = [
            ("x", Some("root/a/b/x")),
            ("x/y", Some("root/a/b/x/y")),
            ("../x", Some("root/a/x")),
            ("../../x", Some("root/x")),
            ("../../../x", None),
            ("../../..", None),
            ("../..", None),
            ("/etc/passwd", Some("root/a/b/etc/passwd")),
            ("./x//y", Some("root/a/b/x/y")),
            ("", None),
            ("a\0b", None),
        ];
        for (name, expect) in rows {
            assert_eq!(below(&folder, name).ok().map(|names| names.join("/")).as_deref(), expect, "{name:?}");
        }
    }
}
