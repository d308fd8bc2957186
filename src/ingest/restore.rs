//! Restoring a skyfile from its backup (`skynet.md` 4): a header, the base sector, and of a large file its content.
//!
//! The sector comes from the client as it is, and must be the one that the skylink names: nothing is taken on trust. The
//! content of a large file is checked against the piece roots in the sector's fanout, whatever redundancy it was made with,
//! and is stored with this portal's: in the fanout's own pieces where the two are the same, else in other slabs, which the
//! pin names (`store::skyfiles`).

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use crate::address::{Skylink, SkylinkKind};
use crate::sector::{SECTOR_BYTES, SlabRoots, sector_root};
use crate::store::Store;
use crate::tree::build::{Built, FileBuilder, Profile, TreeBuilder};
use crate::tree::skyfile::{LAYOUT_BYTES, Metadata, Parsed, SkyfileHead, parse, validate};

use super::assemble::{Assembled, Blocks, GivenContent, GivenSector, Sink, SkyBody, WORK_BYTES};
use super::frames::PARTS_WAITING_MAX;
use super::skyfile::SkyReport;
use super::writer::{ContentWriter, Keep, TakenSlab};
use super::{COMPLETE_WAIT, Ingest, IngestError, UPLOAD_STALL};

/// What every backup begins with: three strings, each behind its length.
const BACKUP_NAME: &[u8] = b"Skyfile Backup\n";
const BACKUP_VERSION: &[u8] = b"v1.5.5\n";
const LINK_BYTES: usize = 46;
/// Length of that header.
pub const BACKUP_HEADER_BYTES: usize = 8 + BACKUP_NAME.len() + 8 + BACKUP_VERSION.len() + 8 + LINK_BYTES;
/// Header and sector: all of a small skyfile's backup, and what is kept in memory of any.
const BACKUP_HEAD_BYTES: usize = BACKUP_HEADER_BYTES + SECTOR_BYTES;
/// Form of the DAG over a restored skyfile.
const PROFILE: Profile = Profile::UnixfsV1_2025;

impl Ingest {
    /// Takes in a backup; nothing is visible before the answer.
    pub async fn restore<S>(&self, mut body: S, owner: String) -> Result<SkyReport, IngestError>
    where
        S: Stream<Item = Result<Bytes, IngestError>> + Send + Unpin,
    {
        let _permit = self.place().await?;
        let mut first = Vec::new();
        while first.len() <= BACKUP_HEAD_BYTES
            && let Some(part) = next_part(&mut body).await?
        {
            first.extend_from_slice(&part);
        }
        let begun = first.split_off(first.len().min(BACKUP_HEAD_BYTES));
        let backup = super::hold_blocking(move || read(first)).await?;
        let (parts, received) = mpsc::channel(PARTS_WAITING_MAX);
        let (store, compute) = (self.store.clone(), self.compute.clone());
        let work = tokio::task::spawn_blocking(move || Restoration::new(backup, store, compute, owner)?.run(received));
        let begun = futures::stream::iter((!begun.is_empty()).then(|| Ok(Bytes::from(begun))));
        super::feed(&mut begun.chain(body), parts).await?;
        let assembled = work.await.expect("restoring does not panic")?;
        let (size_bytes, files) = (assembled.built.size, assembled.file_count);
        let stored = assembled.store(&self.store, COMPLETE_WAIT).await?;
        let skylink = stored.skylink.expect("the body is a skyfile");
        Ok(SkyReport { skylink, cid: stored.cid, size_bytes, files, durability: Some(stored.durability) })
    }
}

async fn next_part<S>(body: &mut S) -> Result<Option<Bytes>, IngestError>
where
    S: Stream<Item = Result<Bytes, IngestError>> + Send + Unpin,
{
    tokio::time::timeout(UPLOAD_STALL, body.next()).await.map_err(|_| IngestError::Stalled)?.transpose()
}

/// A backup's head, whose sector is the one that its skylink names.
struct Backup {
    link: Skylink,
    /// Where the skyfile begins in its sector.
    offset: u32,
    sector: Vec<u8>,
    head: SkyfileHead,
}

/// A restoration under way, on a thread of its own.
struct Restoration {
    backup: Backup,
    owner: String,
    compute: Arc<Semaphore>,
    dag: Dag,
    blocks: Blocks,
    /// Of a large skyfile.
    large: Option<Large>,
    size: u64,
}

/// The content of a large skyfile, on its way to the hosts.
struct Large {
    writer: ContentWriter,
    /// Where the portal's redundancy is another than the fanout's.
    check: Option<FanoutCheck>,
}

/// Compares content with a fanout, slab by slab.
struct FanoutCheck {
    roots: SlabRoots,
    /// Slabs that were compared.
    slabs: usize,
}

impl Restoration {
    fn new(backup: Backup, store: Store, compute: Arc<Semaphore>, owner: String) -> Result<Restoration, IngestError> {
        let layout = &backup.head.layout;
        let fanout = (layout.data_pieces, layout.parity_pieces);
        let large = if backup.head.is_large() {
            let check = if fanout == store.redundancy() {
                None
            } else {
                let roots = SlabRoots::new(fanout.0, fanout.1).map_err(|error| IngestError::bad(error.to_string()))?;
                Some(FanoutCheck { roots, slabs: 0 })
            };
            Some(Large { writer: ContentWriter::in_slabs(store, compute.clone(), Handle::current(), Keep::All), check })
        } else {
            None
        };
        let dag = Dag::of(&backup.head);
        Ok(Restoration { backup, owner, compute, dag, blocks: Blocks::new(), large, size: 0 })
    }

    /// Blocks; must run on a thread for that, inside the runtime. What comes is the content behind the sector.
    fn run(mut self, mut parts: mpsc::Receiver<Result<Bytes, String>>) -> Result<Assembled, IngestError> {
        let expect = self.backup.head.size_bytes;
        if self.large.is_none() {
            let at = (self.backup.offset + self.backup.head.content_offset) as usize;
            self.dag.push(&self.backup.sector[at..at + expect as usize], &mut self.blocks);
        }
        while let Some(part) = parts.blocking_recv() {
            let part = part.map_err(IngestError::Body)?;
            self.take(&part)?;
        }
        if self.large.is_some() && self.size < expect {
            let have = self.size;
            return Err(IngestError::bad(format!("the backup ends after {have} of the {expect} bytes of the skyfile")));
        }
        self.end()
    }

    fn take(&mut self, part: &[u8]) -> Result<(), IngestError> {
        let expect = self.backup.head.size_bytes;
        let Some(large) = &mut self.large else {
            return Err(IngestError::bad("the backup of a small skyfile has no more than a header and a sector"));
        };
        self.size += part.len() as u64;
        if self.size > expect {
            return Err(IngestError::bad(format!("the backup has more than the {expect} bytes of the skyfile")));
        }
        for part in part.chunks(WORK_BYTES) {
            self.dag.push(part, &mut self.blocks);
            if let Some(check) = &mut large.check {
                let _permit = Handle::current().block_on(self.compute.acquire()).expect("the semaphore is never closed");
                check.push(part, &self.backup.head)?;
            }
            large.writer.push(part)?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<Assembled, IngestError> {
        let Backup { link, offset, sector, head } = self.backup;
        let (content, used) = match self.large {
            None => {
                let (at, size) = (offset + head.content_offset, head.size_bytes);
                let used = at + u32::try_from(size).expect("a small skyfile fits its sector");
                (GivenContent::InSector { at, size }, used)
            }
            Some(Large { writer, check }) => {
                let slabs = writer.finish()?.into_slabs();
                match check {
                    Some(check) => check.finish(&head)?,
                    None => compare(&slabs, &head)?,
                }
                (GivenContent::InSlabs { size: head.size_bytes, slabs }, used_by_head(&head))
            }
        };
        let file_count = self.dag.file_count();
        let built = self.dag.finish(&mut self.blocks)?;
        self.blocks.check()?;
        Ok(Assembled {
            owner: self.owner,
            idem: None,
            name: head.metadata.filename.clone(),
            built,
            body: SkyBody::Given(GivenSector { link, sector, used, content }),
            file_count,
            blocks: self.blocks,
            compute: self.compute,
        })
    }
}

impl FanoutCheck {
    fn push(&mut self, mut part: &[u8], head: &SkyfileHead) -> Result<(), IngestError> {
        while !part.is_empty() {
            let (now, later) = part.split_at(part.len().min(usize::try_from(self.roots.room_bytes()).unwrap_or(usize::MAX)));
            self.roots.push(now);
            part = later;
            if self.roots.room_bytes() == 0 {
                self.end_slab(head)?;
            }
        }
        Ok(())
    }

    fn finish(mut self, head: &SkyfileHead) -> Result<(), IngestError> {
        if (self.slabs as u64) < head.slab_count() { self.end_slab(head) } else { Ok(()) }
    }

    fn end_slab(&mut self, head: &SkyfileHead) -> Result<(), IngestError> {
        let expect = head.slab(self.slabs as u64).ok_or_else(|| not_the_content(self.slabs))?;
        if self.roots.finish() != expect.roots {
            return Err(not_the_content(self.slabs));
        }
        self.slabs += 1;
        Ok(())
    }
}

/// Slabs of the fanout's own redundancy.
fn compare(slabs: &[TakenSlab], head: &SkyfileHead) -> Result<(), IngestError> {
    let same = |(index, slab): (usize, &TakenSlab)| head.slab(index as u64).is_some_and(|expect| expect.roots == slab.roots);
    match slabs.iter().enumerate().position(|slab| !same(slab)) {
        Some(index) => Err(not_the_content(index)),
        None if slabs.len() as u64 == head.slab_count() => Ok(()),
        None => Err(not_the_content(slabs.len())),
    }
}

fn not_the_content(slab_index: usize) -> IngestError {
    IngestError::bad(format!("the content is not the one that the base sector names: chunk {slab_index} has other pieces"))
}

/// Bytes of the base sector that a large skyfile's head takes.
fn used_by_head(head: &SkyfileHead) -> u32 {
    let used = LAYOUT_BYTES as u64 + head.layout.fanout_bytes + head.layout.metadata_bytes;
    u32::try_from(used).expect("a head that stands in its sector is no longer than it")
}

fn read(mut backup: Vec<u8>) -> Result<Backup, IngestError> {
    let link = header_link(&backup).ok_or_else(|| IngestError::bad("this is no skyfile backup of version v1.5.5"))?;
    let SkylinkKind::V1 { offset_bytes, fetch_bytes, root } = link.kind() else {
        return Err(IngestError::bad("only version 1 skylinks are restored: a version 2 skylink is an entry of the registry"));
    };
    let mut sector = backup.split_off(BACKUP_HEADER_BYTES);
    drop(backup);
    if sector_root(&sector).0 != root {
        return Err(IngestError::bad(format!("the sector is not the one that {link} names: its Merkle root is another")));
    }
    let short = sector.len() < SECTOR_BYTES;
    sector.resize(SECTOR_BYTES, 0);
    let head = match parse(&sector[offset_bytes as usize..]).map_err(|error| IngestError::bad(error.to_string()))? {
        Parsed::Head(head) => head,
        Parsed::NeedSectors(_) => {
            return Err(IngestError::bad(
                "the head of this skyfile does not fit its base sector, and the backup has no more of it: upload the file itself",
            ));
        }
    };
    if head.is_large() && (short || offset_bytes != 0) {
        return Err(IngestError::bad("a large skyfile has a whole base sector, and begins with it"));
    }
    if !head.is_large() && u64::from(head.content_offset) + head.size_bytes > u64::from(fetch_bytes) {
        return Err(IngestError::bad(format!("the skyfile is longer than the {fetch_bytes} bytes that {link} says")));
    }
    Ok(Backup { link, offset: offset_bytes, sector, head })
}

fn header_link(backup: &[u8]) -> Option<Skylink> {
    let mut rest = backup;
    for (index, expect) in [Some(BACKUP_NAME), Some(BACKUP_VERSION), None].into_iter().enumerate() {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let length = u64::from_le_bytes(*length);
        let wanted = expect.map_or(LINK_BYTES, <[u8]>::len);
        let text = after.get(..wanted).filter(|text| length == wanted as u64 && expect.is_none_or(|expect| *text == expect))?;
        if index == 2 {
            return Skylink::parse(std::str::from_utf8(text).ok()?).ok();
        }
        rest = &after[wanted..];
    }
    None
}

/// The DAG over a skyfile's content as it comes: of its files where they are such as an upload makes, else of the content as
/// one file. Skyfiles of old may break rules, and are restored all the same.
struct Dag {
    /// In the order of the content.
    files: Vec<DagFile>,
    shape: Shape,
    open: usize,
    /// Bytes of the open file that have come.
    pushed: u64,
    builder: FileBuilder,
}

struct DagFile {
    path: String,
    offset: u64,
    end: u64,
    built: Option<Built>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    File,
    Folder,
}

impl Dag {
    fn of(head: &SkyfileHead) -> Dag {
        let (files, shape) = match files_of(&head.metadata, head.size_bytes) {
            Some(files) => (files, if head.metadata.is_directory() { Shape::Folder } else { Shape::File }),
            None => (vec![DagFile { path: String::new(), offset: 0, end: head.size_bytes, built: None }], Shape::File),
        };
        Dag { files, shape, open: 0, pushed: 0, builder: FileBuilder::new(PROFILE) }
    }

    fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// The next content; never more than there is of it in all.
    fn push(&mut self, mut part: &[u8], blocks: &mut Blocks) {
        while !part.is_empty() {
            self.end_full_files(blocks);
            let file = &self.files[self.open];
            let left = file.end - file.offset - self.pushed;
            let (now, later) = part.split_at(part.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            self.builder.push(now, &mut Sink { blocks, base: file.offset });
            self.pushed += now.len() as u64;
            part = later;
        }
    }

    /// Ends the open file, and those behind it that are empty, if all of it has come.
    fn end_full_files(&mut self, blocks: &mut Blocks) {
        while let Some(file) = self.files.get_mut(self.open)
            && file.end - file.offset == self.pushed
        {
            let builder = std::mem::replace(&mut self.builder, FileBuilder::new(PROFILE));
            file.built = Some(builder.finish(&mut Sink { blocks, base: file.offset }));
            self.open += 1;
            self.pushed = 0;
        }
    }

    fn finish(mut self, blocks: &mut Blocks) -> Result<Built, IngestError> {
        self.end_full_files(blocks);
        let built = |file: &DagFile| file.built.expect("the content was as long as its files");
        if self.shape == Shape::File {
            return Ok(built(&self.files[0]));
        }
        self.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let mut tree = TreeBuilder::new(PROFILE);
        for file in &self.files {
            tree.file(&file.path, built(file), &mut Sink { blocks, base: 0 })?;
        }
        Ok(tree.finish(&mut Sink { blocks, base: 0 })?)
    }
}

/// The files in the order of the content, if they are such as a tree can be made of, one behind the other.
fn files_of(metadata: &Metadata, size_bytes: u64) -> Option<Vec<DagFile>> {
    if validate(metadata).is_err() || metadata.subfiles.is_empty() {
        return None;
    }
    let mut files = Vec::with_capacity(metadata.subfiles.len());
    for (path, file) in &metadata.subfiles {
        let end = file.offset_bytes.checked_add(file.len_bytes)?;
        files.push(DagFile { path: path.clone(), offset: file.offset_bytes, end, built: None });
    }
    files.sort_by_key(|file| (file.offset, file.end));
    let mut at = 0;
    for file in &files {
        if file.offset != at {
            return None;
        }
        at = file.end;
    }
    if at != size_bytes || (metadata.is_directory() && !makes_a_tree(metadata)) {
        return None;
    }
    Some(files)
}

/// Would a tree take these paths? Tried with empty files.
fn makes_a_tree(metadata: &Metadata) -> bool {
    let mut blocks = Blocks::new();
    let empty = FileBuilder::new(PROFILE).finish(&mut Sink { blocks: &mut blocks, base: 0 });
    let mut tree = TreeBuilder::new(PROFILE);
    metadata.subfiles.keys().all(|path| tree.file(path, empty, &mut Sink { blocks: &mut blocks, base: 0 }).is_ok())
}

/// Any bytes as a backup's head, and of a small one its content.
pub fn fuzz(data: &[u8]) {
    let Ok(backup) = read(data.to_vec()) else { return };
    let mut blocks = Blocks::new();
    let mut dag = Dag::of(&backup.head);
    if !backup.head.is_large() {
        let at = (backup.offset + backup.head.content_offset) as usize;
        dag.push(&backup.sector[at..at + backup.head.size_bytes as usize], &mut blocks);
        drop(dag.finish(&mut blocks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::skyfile::UploadFile;
    use crate::tree::skyfile::{build_small, upload_metadata};

    fn backup(link: &str, sector: &[u8]) -> Vec<u8> {
        let text = |text: &[u8]| [&(text.len() as u64).to_le_bytes(), text].concat();
        [text(BACKUP_NAME), text(BACKUP_VERSION), text(link.as_bytes()), sector.to_vec()].concat()
    }

    fn sample() -> (String, Vec<u8>) {
        let file = |path: &str, len_bytes| UploadFile { path: path.into(), len_bytes, mode: 0, content_type: None };
        let metadata = upload_metadata("d", &[file("a/b", 2), file("c", 3)]).expect("good").encode();
        let built = build_small(&metadata, b"hello").expect("small");
        let link = Skylink::v1(0, built.used_bytes, sector_root(&built.base).0).expect("a skylink");
        (link.to_string(), built.base)
    }

    #[test]
    fn a_backup_must_be_what_its_link_names() {
        let (link, sector) = sample();
        let padded = {
            let mut padded = sector.clone();
            padded.resize(SECTOR_BYTES, 0);
            padded
        };
        for good in [backup(&link, &sector), backup(&link, &padded)] {
            let read = read(good).map_err(|error| error.to_string()).expect("good");
            assert_eq!((read.link.to_string(), read.head.size_bytes, read.sector.len()), (link.clone(), 5, SECTOR_BYTES));
            let (mut blocks, mut dag) = (Blocks::new(), Dag::of(&read.head));
            dag.push(b"hello", &mut blocks);
            assert_eq!((dag.file_count(), dag.finish(&mut blocks).expect("a tree").size), (2, 5));
        }
        let mut other = padded.clone();
        other[300] ^= 1;
        let v2 = Skylink::v2([7; 32]).to_string();
        let mut short_version = backup(&link, &sector);
        short_version[23] = 6;
        for wrong in [vec![], vec![0; 92], backup(&link, &other), backup(&link, b""), backup(&v2, &sector), short_version, padded] {
            assert!(read(wrong).is_err());
        }
    }

    #[test]
    fn damaged_backups_never_panic() {
        let (link, sector) = sample();
        let good = backup(&link, &sector);
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 0x55;
            fuzz(&damaged);
            fuzz(&good[..at]);
        }
    }
}
