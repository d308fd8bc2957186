//! Restoring a skyfile from its backup (`skynet.md` 4): a header, the base sector, and of a large file its content.
//!
//! The sector comes from the client as it is, and must be the one that the skylink names: nothing is taken on trust.
//! Only small skyfiles are restored; a large one would need the redundancy it was made with.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::address::{Skylink, SkylinkKind};
use crate::sector::{SECTOR_BYTES, sector_root};
use crate::tree::build::{Built, FileBuilder, Profile, TreeBuilder};
use crate::tree::skyfile::{Metadata, Parsed, SkyfileHead, parse, validate};

use super::assemble::{Assembled, Blocks, GivenSector, Sink, SkyBody};
use super::skyfile::SkyReport;
use super::{COMPLETE_WAIT, Ingest, IngestError, UPLOAD_STALL};

/// What every backup begins with: three strings, each behind its length.
const BACKUP_NAME: &[u8] = b"Skyfile Backup\n";
const BACKUP_VERSION: &[u8] = b"v1.5.5\n";
const LINK_BYTES: usize = 46;
/// Length of that header.
pub const BACKUP_HEADER_BYTES: usize = 8 + BACKUP_NAME.len() + 8 + BACKUP_VERSION.len() + 8 + LINK_BYTES;
/// A backup of a small skyfile is one header and one sector.
const BACKUP_BYTES_MAX: usize = BACKUP_HEADER_BYTES + SECTOR_BYTES;
/// Form of the DAG over a restored skyfile.
const PROFILE: Profile = Profile::UnixfsV1_2025;

impl Ingest {
    /// Takes in a backup; nothing is visible before the answer.
    pub async fn restore<S>(&self, mut body: S, owner: String) -> Result<SkyReport, IngestError>
    where
        S: Stream<Item = Result<Bytes, IngestError>> + Send + Unpin,
    {
        let _permit = self.place().await?;
        let mut backup = Vec::new();
        while let Some(part) = within(UPLOAD_STALL, body.next()).await? {
            let part = part?;
            if backup.len() + part.len() > BACKUP_BYTES_MAX {
                return Err(IngestError::bad(
                    "only small skyfiles are restored here, and this backup has more than a header and a sector: upload the file itself",
                ));
            }
            backup.extend_from_slice(&part);
        }
        let compute = self.compute.clone();
        let assembled = super::hold_blocking(move || {
            let given = read(backup)?;
            let mut blocks = Blocks::new();
            let (built, files) = build(&given.head, &given.sector, &mut blocks);
            blocks.check()?;
            let name = given.head.metadata.filename.clone();
            let body = SkyBody::Given(GivenSector {
                link: given.link,
                at: given.head.content_offset,
                size: given.head.size_bytes,
                sector: given.sector,
            });
            Ok::<_, IngestError>(Assembled { owner, idem: None, name, built, body, file_count: files, blocks, compute })
        });
        let assembled = assembled.await?;
        let (size_bytes, files) = (assembled.built.size, assembled.file_count);
        let stored = assembled.store(&self.store, COMPLETE_WAIT).await?;
        let skylink = stored.skylink.expect("the body is a skyfile");
        Ok(SkyReport { skylink, cid: stored.cid, size_bytes, files, durability: Some(stored.durability) })
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, IngestError> {
    tokio::time::timeout(limit, work).await.map_err(|_| IngestError::Stalled)
}

/// A backup whose sector is the one that its skylink names.
struct Backup {
    link: Skylink,
    sector: Vec<u8>,
    head: SkyfileHead,
}

fn read(mut backup: Vec<u8>) -> Result<Backup, IngestError> {
    let link = header_link(&backup).ok_or_else(|| IngestError::bad("this is no skyfile backup of version v1.5.5"))?;
    let SkylinkKind::V1 { offset_bytes: 0, fetch_bytes, root } = link.kind() else {
        return Err(IngestError::bad("only version 1 skylinks at the start of their sector are restored"));
    };
    let mut sector = backup.split_off(BACKUP_HEADER_BYTES);
    drop(backup);
    if sector_root(&sector).0 != root {
        return Err(IngestError::bad(format!("the sector is not the one that {link} names: its Merkle root is another")));
    }
    sector.resize(SECTOR_BYTES, 0);
    let head = match parse(&sector).map_err(|error| IngestError::bad(error.to_string()))? {
        Parsed::Head(head) if !head.is_large() => head,
        Parsed::Head(_) | Parsed::NeedSectors(_) => {
            return Err(IngestError::bad("only small skyfiles are restored here, and this is a large one: upload the file itself"));
        }
    };
    if u64::from(head.content_offset) + head.size_bytes > u64::from(fetch_bytes) {
        return Err(IngestError::bad(format!("the skyfile is longer than the {fetch_bytes} bytes that {link} says")));
    }
    Ok(Backup { link, sector, head })
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

/// The DAG over a skyfile's content: of its files where they are such as an upload makes, else of the content as one
/// file. Skyfiles of old may break rules, and are restored all the same.
fn build(head: &SkyfileHead, sector: &[u8], blocks: &mut Blocks) -> (Built, u64) {
    let content = &sector[head.content_offset as usize..][..head.size_bytes as usize];
    if let Some(built) = build_tree(&head.metadata, content, blocks) {
        return (built, head.metadata.subfiles.len() as u64);
    }
    *blocks = Blocks::new();
    (build_file(content, 0, blocks), 1)
}

fn build_tree(metadata: &Metadata, content: &[u8], blocks: &mut Blocks) -> Option<Built> {
    if validate(metadata).is_err() || metadata.subfiles.is_empty() {
        return None;
    }
    let mut tree = TreeBuilder::new(PROFILE);
    let mut last = None;
    for (path, file) in &metadata.subfiles {
        let end = file.offset_bytes.checked_add(file.len_bytes).filter(|end| *end <= content.len() as u64)?;
        let built = build_file(&content[file.offset_bytes as usize..end as usize], file.offset_bytes, blocks);
        if metadata.is_directory() {
            tree.file(path, built, &mut Sink { blocks, base: 0 }).ok()?;
        }
        last = Some(built);
    }
    if metadata.is_directory() { tree.finish(&mut Sink { blocks, base: 0 }).ok() } else { last }
}

fn build_file(content: &[u8], base: u64, blocks: &mut Blocks) -> Built {
    let mut sink = Sink { blocks, base };
    let mut file = FileBuilder::new(PROFILE);
    file.push(content, &mut sink);
    file.finish(&mut sink)
}

/// Any bytes as a backup.
pub fn fuzz(data: &[u8]) {
    if let Ok(backup) = read(data.to_vec()) {
        let mut blocks = Blocks::new();
        build(&backup.head, &backup.sector, &mut blocks);
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
            let mut blocks = Blocks::new();
            let (built, files) = build(&read.head, &read.sector, &mut blocks);
            assert_eq!((built.size, files), (5, 2));
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
