//! Several files of a skyfile as one TAR, gzipped TAR or ZIP, made while it is sent (`skynet.md` 5).
//!
//! The files come in the order of their offsets, so that what lies side by side in the content is read as one stretch. A few
//! MiB are in memory, whatever the archive's size. What fails before the first bytes is an error reply; after that it
//! breaks the connection.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use ::http::header::{self, HeaderValue};
use ::http::{Method, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::measure::Trace;
use crate::site::skynet::{ArchiveFile, ArchiveFormat, SkyArchive};
use crate::store::{BodyStream, StoreError, Window};
use crate::tree::{tar, zip};

use crate::http::plan::{self, Disposition, not_modified};
use crate::http::refusal::{Refusal, SkyRefusal};
use crate::http::reply::{Reply, ReplyBody, made_on_the_way, stamp};
use crate::http::services::Skyfile;

use super::content::Request;

/// Headers and small files are sent on together, once they are so many bytes. As much is compressed at a time, in some
/// hundred microseconds.
const CHUNK_BYTES: usize = 64 << 10;
/// Longest path of a file in an archive, as on file systems.
const PATH_BYTES_MAX: usize = 4096;

/// The archive as a reply.
pub(super) async fn reply(request: &Request<'_>, archive: &SkyArchive<'_>) -> Result<Reply, Refusal> {
    let Request { services, ask, clock, .. } = *request;
    if archive.files.iter().any(|file| !is_safe(file.path)) {
        return Err(SkyRefusal::BadArchivePath.into());
    }
    for file in &archive.files {
        request.found.skyfile.allow(&(file.offset_bytes..file.offset_bytes + file.len_bytes), &clock.trace).await?;
    }
    let (media_type, extension) = match archive.format {
        ArchiveFormat::Tar => ("application/x-tar", "tar"),
        ArchiveFormat::TarGz => ("application/gzip", "tar.gz"),
        ArchiveFormat::Zip | ArchiveFormat::Concat => ("application/zip", "zip"),
    };
    let mut headers = request.headers();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    let etag = request.etag(&archive.path, Some(archive.format));
    let known = not_modified(&ask.conditions, etag.to_str().unwrap_or_default())?;
    headers.insert(header::ETAG, etag);
    let located = clock.started.elapsed();
    let (status, body) = if known {
        (StatusCode::NOT_MODIFIED, ReplyBody::empty())
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        let name = format!("{}.{extension}", archive.name.rsplit('/').next().unwrap_or_default());
        headers.insert(header::CONTENT_DISPOSITION, plan::content_disposition(Disposition::Attachment, &name));
        let length = length_bytes(archive);
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let body =
            match ask.method {
                Method::HEAD => ReplyBody::empty(),
                _ => {
                    let mut archive = Archive::new(archive, request.found.skyfile.clone(), clock.trace.clone());
                    let first = archive.next().await?.unwrap_or_default();
                    let rest = stream::try_unfold(archive, |mut archive| async move {
                        Ok(archive.next().await?.map(|chunk| (chunk, archive)))
                    });
                    made_on_the_way(services, clock, first, rest.boxed(), length)
                }
            };
        (StatusCode::OK, body)
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    stamp(reply.headers_mut(), clock, located);
    Ok(reply)
}

/// May an archive have a file of this path? It must not lead out of the folder that it is unpacked into.
fn is_safe(path: &str) -> bool {
    let plain = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['\0', '\\']);
    path.len() <= PATH_BYTES_MAX && path.split('/').all(plain)
}

/// What is known before anything is read; not of what is compressed.
fn length_bytes(archive: &SkyArchive<'_>) -> Option<u64> {
    match archive.format {
        ArchiveFormat::Tar => {
            let whole = |file: &ArchiveFile<'_>| {
                let header = tar_entry(file.path, file.mode, file.len_bytes).header().len();
                header as u64 + file.len_bytes + tar::padding(file.len_bytes).len() as u64
            };
            Some(archive.files.iter().map(whole).sum::<u64>() + tar::END.len() as u64)
        }
        ArchiveFormat::TarGz => None,
        ArchiveFormat::Zip | ArchiveFormat::Concat => {
            Some(zip::archive_bytes(archive.files.iter().map(|file| zip_entry(file.path, file.mode, file.len_bytes))))
        }
    }
}

fn tar_entry(path: &str, mode: u32, size: u64) -> tar::Entry<'_> {
    tar::Entry { path, kind: tar::Kind::File { size }, mode: (mode != 0).then_some(mode), mtime: None }
}

fn zip_entry(path: &str, mode: u32, size: u64) -> zip::Entry<'_> {
    zip::Entry { path, size, mode: (mode != 0).then_some(mode) }
}

/// One file of an archive on its way.
struct Member {
    path: String,
    mode: u32,
    stretch: Range<u64>,
}

impl Member {
    fn of(file: &ArchiveFile<'_>) -> Member {
        let stretch = file.offset_bytes..file.offset_bytes + file.len_bytes;
        Member { path: file.path.to_owned(), mode: file.mode, stretch }
    }

    fn len_bytes(&self) -> u64 {
        self.stretch.end - self.stretch.start
    }
}

/// An archive on its way out.
struct Archive {
    skyfile: Arc<dyn Skyfile>,
    trace: Arc<Trace>,
    members: Vec<Member>,
    /// The member under way, or the next one.
    next: usize,
    /// Bytes of it that are out; `None` before its header.
    sent_bytes: Option<u64>,
    content: Run,
    writer: Writer,
    waiting: BytesMut,
    ended: bool,
}

/// A stretch of the content that several members share.
struct Run {
    bytes: BodyStream,
    /// What came and is not used yet.
    chunk: Bytes,
    /// Where in the content the next byte lies.
    at: u64,
    end: u64,
}

enum Writer {
    Tar,
    TarGz(GzEncoder<Vec<u8>>),
    Zip { directory: zip::Directory, crc: crc32fast::Hasher },
}

impl Archive {
    fn new(archive: &SkyArchive<'_>, skyfile: Arc<dyn Skyfile>, trace: Arc<Trace>) -> Archive {
        let writer = match archive.format {
            ArchiveFormat::Tar => Writer::Tar,
            ArchiveFormat::TarGz => Writer::TarGz(GzEncoder::new(Vec::new(), Compression::fast())),
            ArchiveFormat::Zip | ArchiveFormat::Concat => {
                Writer::Zip { directory: zip::Directory::default(), crc: crc32fast::Hasher::new() }
            }
        };
        Archive {
            skyfile,
            trace,
            members: archive.files.iter().map(Member::of).collect(),
            next: 0,
            sent_bytes: None,
            content: Run { bytes: stream::empty().boxed(), chunk: Bytes::new(), at: 0, end: 0 },
            writer,
            waiting: BytesMut::new(),
            ended: false,
        }
    }

    /// The next chunk.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while self.waiting.len() < CHUNK_BYTES && !self.ended {
            match (self.members.get(self.next).map(Member::len_bytes), self.sent_bytes) {
                (None, _) => self.end()?,
                (Some(_), None) => self.begin()?,
                (Some(length), Some(sent)) if sent < length => self.go_on(sent, length).await?,
                (Some(_), Some(_)) => self.close()?,
            }
        }
        Ok((!self.waiting.is_empty()).then(|| self.waiting.split().freeze()))
    }

    /// A member's header.
    fn begin(&mut self) -> Result<(), StoreError> {
        let member = &self.members[self.next];
        let header = match &mut self.writer {
            Writer::Tar | Writer::TarGz(_) => tar_entry(&member.path, member.mode, member.len_bytes()).header(),
            Writer::Zip { crc, .. } => {
                crc.reset();
                zip_entry(&member.path, member.mode, member.len_bytes()).header()
            }
        };
        self.sent_bytes = Some(0);
        self.put(&header)
    }

    /// Some bytes of a member.
    async fn go_on(&mut self, sent: u64, length: u64) -> Result<(), StoreError> {
        if self.content.chunk.is_empty() {
            self.read(sent).await?;
        }
        if self.content.chunk.is_empty() {
            return Ok(());
        }
        let mut most = (length - sent).min(CHUNK_BYTES as u64);
        if let Writer::Zip { .. } = &self.writer {
            let in_block = sent % zip::BLOCK_BYTES;
            if in_block == 0 {
                self.put(&zip::block_header(length - sent))?;
            }
            most = most.min(zip::BLOCK_BYTES - in_block);
        }
        let chunk = &mut self.content.chunk;
        let part = chunk.split_to(chunk.len().min(most as usize));
        self.content.at += part.len() as u64;
        self.sent_bytes = Some(sent + part.len() as u64);
        if let Writer::Zip { crc, .. } = &mut self.writer {
            crc.update(&part);
        }
        self.put(&part)
    }

    /// Gets more of the content, from where the member under way goes on.
    async fn read(&mut self, sent: u64) -> Result<(), StoreError> {
        let at = self.members[self.next].stretch.start + sent;
        if self.content.at != at || self.content.at == self.content.end {
            let mut end = self.members[self.next].stretch.end;
            for member in &self.members[self.next + 1..] {
                match member.stretch.start == end {
                    true => end = member.stretch.end,
                    false => break,
                }
            }
            let window = if self.next == 0 && sent == 0 { Window::First } else { Window::Later };
            let bytes = self.skyfile.stream(at..end, 0..end - at, window, self.trace.clone());
            self.content = Run { bytes, chunk: Bytes::new(), at, end };
        }
        let chunk = self.content.bytes.try_next().await?;
        self.content.chunk = chunk.ok_or(StoreError::BadFile("the content is shorter than the metadata says"))?;
        Ok(())
    }

    /// What stands behind a member.
    fn close(&mut self) -> Result<(), StoreError> {
        let member = &self.members[self.next];
        let behind = match &mut self.writer {
            Writer::Tar | Writer::TarGz(_) => tar::padding(member.len_bytes()).to_vec(),
            Writer::Zip { directory, crc } => {
                let entry = zip_entry(&member.path, member.mode, member.len_bytes());
                let crc = std::mem::take(crc).finalize();
                let mut behind = if entry.size == 0 { zip::block_header(0).to_vec() } else { Vec::new() };
                behind.extend(entry.descriptor(crc));
                directory.add(&entry, crc);
                behind
            }
        };
        self.next += 1;
        self.sent_bytes = None;
        self.put(&behind)
    }

    fn end(&mut self) -> Result<(), StoreError> {
        let end = match &mut self.writer {
            Writer::Tar | Writer::TarGz(_) => tar::END.to_vec(),
            Writer::Zip { directory, .. } => std::mem::take(directory).finish(),
        };
        self.put(&end)?;
        if let Writer::TarGz(gzip) = &mut self.writer {
            gzip.try_finish().map_err(gzip_error)?;
            self.waiting.extend_from_slice(gzip.get_ref());
            gzip.get_mut().clear();
        }
        self.ended = true;
        Ok(())
    }

    /// Bytes of the archive, compressed where it is.
    fn put(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let Writer::TarGz(gzip) = &mut self.writer else {
            self.waiting.extend_from_slice(bytes);
            return Ok(());
        };
        gzip.write_all(bytes).map_err(gzip_error)?;
        self.waiting.extend_from_slice(gzip.get_ref());
        gzip.get_mut().clear();
        Ok(())
    }
}

/// Writing into memory does not fail.
fn gzip_error(_: std::io::Error) -> StoreError {
    StoreError::BadFile("it could not be compressed")
}

#[cfg(test)]
mod tests {
    use super::is_safe;

    #[test]
    fn paths_stay_inside_the_folder() {
        let rows = [
            ("a", true),
            ("a/b c/ąę.txt", true),
            ("...", true),
            ("", false),
            ("/etc/passwd", false),
            ("a//b", false),
            ("a/", false),
            ("../a", false),
            ("a/../../b", false),
            ("./a", false),
            ("a\0", false),
            ("..\\a", false),
        ];
        for (path, expect) in rows {
            assert_eq!(is_safe(path), expect, "{path:?}");
        }
        assert!(!is_safe(&"a".repeat(4097)));
    }
}
