//! `format=tar`: a file or a directory with all below it as a TAR stream (`specs/ipfs-gateway.md` 2.1).
//!
//! One shard a level and one file at a time are in memory. What fails before the first bytes is an error reply; after that
//! it breaks the connection.

use std::sync::Arc;

use ::http::header::{self, HeaderValue};
use ::http::{Method, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::super::ask::Ask;
use super::super::plan::{Disposition, ascii, not_modified};
use super::super::refusal::Refusal;
use super::super::reply::{Clock, Reply, ReplyBody, made_on_the_way, stamp};
use super::super::services::{Content, Services};
use super::headers::{self, Kind};
use super::{Target, block_at, store_error};
use crate::address::{Cid, codec};
use crate::measure::Trace;
use crate::site::unixfs::{DirListing, ListStep};
use crate::store::{BodyStream, FileSource, StoreError};
use crate::tree::tar::{END, Entry, Kind as EntryKind, padding};
use crate::tree::{FileNode, TreeNode, parse_node};

/// Folders inside one another. Each keeps one shard a level in memory; file systems have paths of 4 KiB.
const TAR_DEPTH_MAX: usize = 512;
/// Longest path of an entry, as on file systems.
const TAR_PATH_BYTES_MAX: usize = 4096;
/// Headers and small files are sent on together, once they are so many bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// The TAR as a reply.
pub async fn reply(services: &Services, ask: &Ask, target: &Target, clock: &Clock) -> Result<Reply, Refusal> {
    let (cid, roots) = block_at(services, ask, target, clock).await?;
    if !matches!(cid.codec(), codec::DAG_PB | codec::RAW) {
        return Err(Refusal::CodecMismatch { codec: cid.codec(), format: "tar" });
    }
    let kind = Kind { media_type: "application/x-tar", disposition: Disposition::Attachment, extension: "tar" };
    let mut headers = headers::of_format(ask, target, (&cid, &roots), &kind, &[]);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    let etag = format!("W/\"{cid}.x-tar\"");
    let known = not_modified(&ask.conditions, &etag);
    headers.insert(header::ETAG, ascii(etag));
    let located = clock.started.elapsed();
    let mut archive = Archive::new(services.content.clone(), clock.trace.clone());
    let (status, body) = if known {
        headers.remove(header::CONTENT_TYPE);
        headers.remove(header::CONTENT_DISPOSITION);
        (StatusCode::NOT_MODIFIED, ReplyBody::empty())
    } else {
        archive.open(vec![cid.to_string()], cid).await?;
        if ask.method == Method::HEAD {
            (StatusCode::OK, ReplyBody::empty())
        } else {
            let first = archive.next().await?.unwrap_or_default();
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
    trace: Arc<Trace>,
    /// Folders that are open, outermost first.
    open: Vec<Folder>,
    file: Option<OpenFile>,
    waiting: BytesMut,
    ended: bool,
}

struct Folder {
    /// Names from the archive's top down to this folder.
    names: Vec<String>,
    dir: DirListing,
}

struct OpenFile {
    bytes: BodyStream,
    left_bytes: u64,
    padding: &'static [u8],
}

impl Archive {
    fn new(content: Arc<dyn Content>, trace: Arc<Trace>) -> Archive {
        Archive { content, trace, open: Vec::new(), file: None, waiting: BytesMut::new(), ended: false }
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
            } else if let Some(folder) = self.open.last_mut() {
                match folder.dir.step().map_err(store_error)? {
                    ListStep::Entry(entry) => {
                        let names = below(&folder.names, &entry.name)?;
                        self.open(names, entry.cid).await?;
                    }
                    ListStep::Need(shard) => {
                        let block = self.content.index_block(&shard, &self.trace).await?;
                        folder.dir.give(block).map_err(store_error)?;
                    }
                    ListStep::End => drop(self.open.pop()),
                }
            } else if !std::mem::replace(&mut self.ended, true) {
                self.waiting.extend_from_slice(&END);
            } else {
                break;
            }
        }
        Ok((!self.waiting.is_empty()).then(|| self.waiting.split().freeze()))
    }

    /// Begins an entry: its header now, what it holds next.
    async fn open(&mut self, names: Vec<String>, cid: Cid) -> Result<(), StoreError> {
        if names.len() > TAR_DEPTH_MAX {
            return Err(StoreError::BadFile("its folders lie deeper in one another than a TAR is made of"));
        }
        let path = names.join("/");
        if path.len() > TAR_PATH_BYTES_MAX {
            return Err(StoreError::BadFile("a path in it is longer than a TAR is made of"));
        }
        let node = match cid.codec() {
            codec::RAW => {
                let size = self.content.block_length(&cid, &self.trace).await?;
                TreeNode::File(Arc::new(FileNode { inline: Bytes::new(), size, children: Vec::new(), mode: None, mtime: None }))
            }
            codec::DAG_PB => parse_node(&cid, &self.content.index_block(&cid, &self.trace).await?)?,
            _ => return Err(StoreError::BadFile("it holds something that is neither a file nor a directory")),
        };
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
                let bytes = self.content.stream_file(FileSource { cid, node }, 0..size, self.trace.clone());
                self.file = Some(OpenFile { bytes, left_bytes: size, padding: padding(size) });
            }
            TreeNode::Dir(dir) => self.open.push(Folder { names, dir: DirListing::plain(dir) }),
            TreeNode::Shard(top) => self.open.push(Folder { names, dir: DirListing::sharded(top) }),
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
