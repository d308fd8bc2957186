//! Importing a CAR: its blocks as they are, pinned under its roots (`docs/formats.md` 7, "Imported CARs").
//!
//! The CAR is read once, on a thread of its own; each block is hashed against its CID before it counts. While all blocks
//! together are few bytes they are kept inline in the pack; beyond that their bytes go on, as they come, into the slabs of
//! a skyfile, and the pack's rows point into it. Rows and links are sorted on the disk (`ledger`), and the pack is written
//! while they are merged: memory does not depend on how many blocks there are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::address::{Cid, check_bytes, hash};
use crate::sector::SECTOR_BYTES;
use crate::store::{Commit, Durability, ImportCounts, NewPackIndex, NewPin, PackCopy, Pin, Store, Written, pin_key};
use crate::tree::build::NodeBlock;
use crate::tree::car::{CarDecoder, CarItem};
use crate::tree::ipld;
use crate::tree::pack::{Key, PackBuilder, PackStream, SkyfileRef, range_row};
use crate::tree::skyfile::Metadata;

use super::assemble::{all_complete, store_pack, store_pack_content, store_skyfile, unix_ms};
use super::frames::FrameReader;
use super::ledger::{Ledger, LedgerOptions, Settled, scratch};
use super::writer::{ContentWriter, Keep, Taken};
use super::{IngestError, hold_blocking};

/// Blocks of one import: as many rows make an index of 4 GiB, which a node's disk still takes twice.
pub const IMPORT_BLOCKS_MAX: u64 = 64 << 20;
/// Roots of one CAR that are pinned; each is a record of its own. Archives of many sites have hundreds.
pub const IMPORT_ROOTS_MAX: usize = 10_000;
/// Bytes that the sorted runs of one import may take of the data directory: the rows of [`IMPORT_BLOCKS_MAX`] blocks take
/// 3 GiB, the rest is for links that come long before or after their blocks.
pub const IMPORT_DISK_BYTES_MAX: u64 = 12 << 30;
/// Rows of an import in memory before they go to the disk, sorted; with the next limit an import keeps about 60 MiB.
pub(super) const ROWS_IN_MEMORY: usize = 400_000;
/// Links of an import in memory.
pub(super) const LINKS_IN_MEMORY: usize = 200_000;
/// Blocks of together at most this many bytes are kept inline: with its index the pack still fits one base sector, and is
/// read at one stroke.
const INLINE_BYTES_MAX: u64 = 2 << 20;
/// And at most this many, whose rows take 64 bytes each.
const INLINE_BLOCKS_MAX: usize = 8_192;
/// File name in the metadata of the skyfile that holds the blocks' bytes.
const BLOCKS_NAME: &str = "blocks";
/// Bytes of rows handed to the writers of a pack at once.
const ROWS_BYTES: usize = 256 << 10;

/// What an import gave.
#[derive(Clone, Debug)]
pub struct ImportReport {
    /// As the CAR names them; the first block of a CAR that names none.
    pub roots: Vec<Cid>,
    /// Different blocks.
    pub blocks: u64,
    /// Different blocks that are linked to, or named as roots, and are not in the CAR.
    pub missing: u64,
    /// Bytes of the different blocks.
    pub size_bytes: u64,
    pub durability: Durability,
}

/// An import under way.
pub struct Import {
    store: Store,
    compute: Arc<Semaphore>,
    labels: Labels,
    ledger: LedgerOptions,
}

/// What its pins say beside what is in the CAR.
pub struct Labels {
    pub owner: String,
    pub name: Option<String>,
    pub idem: Option<[u8; 32]>,
}

/// A CAR that has been read whole; nothing is visible yet.
pub struct Imported {
    compute: Arc<Semaphore>,
    labels: Labels,
    roots: Vec<Cid>,
    place: Place,
    settled: Settled,
}

/// Blocks on their way into the pack.
struct Blocks {
    place: Place,
    ledger: Ledger,
    first: Option<Cid>,
    /// Blocks taken, and their bytes; one that comes again after long counts twice here.
    taken: u64,
    taken_bytes: u64,
}

enum Place {
    /// Kept until it is known whether they stay few, with their keys.
    Inline(Vec<NodeBlock>, HashSet<Key>),
    Skyfile(Box<ContentWriter>),
}

impl Import {
    pub fn new(store: Store, compute: Arc<Semaphore>, labels: Labels, ledger: LedgerOptions) -> Import {
        Import { store, compute, labels, ledger }
    }

    /// Reads the whole CAR. Blocks; must run on a thread for that, inside the runtime.
    pub fn run(self, mut body: FrameReader) -> Result<Imported, IngestError> {
        let mut decoder = CarDecoder::new();
        let mut roots = Vec::new();
        let mut blocks = Blocks {
            place: Place::Inline(Vec::new(), HashSet::new()),
            ledger: Ledger::new(self.ledger.clone()),
            first: None,
            taken: 0,
            taken_bytes: 0,
        };
        while let Some(part) = body.part()? {
            decoder.push(&part);
            while let Some(item) = decoder.next_item().map_err(bad_car)? {
                match item {
                    CarItem::Roots(named) => roots = check_roots(named)?,
                    CarItem::Block { cid, bytes, offset } => {
                        self.take_block(&mut blocks, cid, bytes).map_err(|error| error.at(&cid, offset))?;
                    }
                }
            }
        }
        decoder.finish().map_err(bad_car)?;
        if roots.is_empty() {
            roots.extend(blocks.first);
        }
        for key in roots.iter().filter_map(|root| Key::of(root.hash())) {
            blocks.ledger.want(key)?;
        }
        if let Place::Inline(kept, _) = &blocks.place {
            for node in kept {
                blocks.ledger.came(key_of(&node.cid), 0, node.bytes.len() as u32)?;
            }
        }
        let settled = blocks.ledger.finish()?;
        Ok(Imported { compute: self.compute, labels: self.labels, roots, place: blocks.place, settled })
    }

    fn take_block(&self, blocks: &mut Blocks, cid: Cid, bytes: Bytes) -> Result<(), BlockFault> {
        if cid.hash().code() == hash::IDENTITY {
            // It holds its own bytes, but it may link to others.
            return blocks.want_links(&cid, &bytes).map(|_| ());
        }
        check_bytes(cid.hash(), &bytes).map_err(|error| BlockFault::Bad(error.to_string()))?;
        let key = Key::of(cid.hash()).ok_or_else(|| BlockFault::Bad("its hash function is not known here".to_owned()))?;
        if blocks.came_lately(&key) {
            return Ok(());
        }
        blocks.taken += 1;
        blocks.taken_bytes += bytes.len() as u64;
        if blocks.taken > IMPORT_BLOCKS_MAX {
            return Err(BlockFault::Stop(IngestError::bad(format!(
                "the CAR has more than {IMPORT_BLOCKS_MAX} blocks: import it in parts"
            ))));
        }
        blocks.first.get_or_insert(cid);
        let links = blocks.want_links(&cid, &bytes)?;
        if let Place::Inline(kept, keys) = &mut blocks.place {
            if blocks.taken_bytes <= INLINE_BYTES_MAX && kept.len() < INLINE_BLOCKS_MAX {
                kept.push(NodeBlock { cid, bytes: bytes.to_vec(), links });
                keys.insert(key);
                return Ok(());
            }
            let kept = std::mem::take(kept);
            let writer = ContentWriter::new(self.store.clone(), self.compute.clone(), Handle::current(), Keep::All);
            blocks.place = Place::Skyfile(Box::new(writer));
            for node in kept {
                blocks.put_in_skyfile(key_of(&node.cid), &node.bytes).map_err(BlockFault::Stop)?;
            }
        }
        blocks.put_in_skyfile(key, &bytes).map_err(BlockFault::Stop)
    }
}

/// Why a block ends an import.
enum BlockFault {
    /// The block's own fault.
    Bad(String),
    Stop(IngestError),
}

impl BlockFault {
    fn at(self, cid: &Cid, offset: u64) -> IngestError {
        match self {
            BlockFault::Bad(why) => IngestError::bad(format!("the block {cid} at byte {offset} of the CAR is refused: {why}")),
            BlockFault::Stop(error) => error,
        }
    }
}

impl Blocks {
    fn came_lately(&self, key: &Key) -> bool {
        match &self.place {
            Place::Inline(_, keys) => keys.contains(key),
            Place::Skyfile(_) => self.ledger.came_lately(key),
        }
    }

    /// Notes what a block links to. Codecs whose links cannot be seen have none that could be missing.
    fn want_links(&mut self, cid: &Cid, bytes: &Bytes) -> Result<Vec<Cid>, BlockFault> {
        let links = match ipld::links(cid, bytes) {
            Ok(links) => links,
            Err(crate::tree::TreeError::Unsupported { .. }) => Vec::new(),
            Err(error) => return Err(BlockFault::Bad(error.to_string())),
        };
        for key in links.iter().filter_map(|link| Key::of(link.hash())) {
            self.ledger.want(key).map_err(BlockFault::Stop)?;
        }
        Ok(links)
    }

    fn put_in_skyfile(&mut self, key: Key, bytes: &[u8]) -> Result<(), IngestError> {
        let Place::Skyfile(writer) = &mut self.place else { unreachable!("called once the blocks go to a skyfile") };
        let len = u32::try_from(bytes.len()).expect("the decoder takes blocks of at most 2 MiB");
        self.ledger.came(key, writer.size(), len)?;
        writer.push(bytes)
    }
}

/// A pack ready to be stored under the roots.
struct StoredPack {
    pack: SkyfileRef,
    copy: PackCopy,
    skyfiles: Vec<SkyfileRef>,
}

impl Imported {
    /// Stores what is left and commits one pin for each root, all with the same pack.
    pub async fn store(self, store: &Store, complete_wait: Duration) -> Result<ImportReport, IngestError> {
        let Imported { compute, labels, roots, place, settled } = self;
        let (blocks, missing, size_bytes) = (settled.blocks, settled.missing, settled.size_bytes);
        let pinned: Vec<Cid> = roots.iter().filter(|root| Key::of(root.hash()).is_some()).copied().collect();
        if blocks == 0 || pinned.is_empty() {
            // Nothing but identity CIDs: they hold themselves.
            return match missing {
                0 => Ok(ImportReport { roots, blocks, missing, size_bytes, durability: Durability::Complete }),
                _ => Err(IngestError::bad("the CAR holds no blocks, only the names of its roots")),
            };
        }
        let mut written: Vec<Written> = Vec::new();
        let stored = match place {
            Place::Inline(kept, _) => store_inline(store, compute, kept, &roots, &mut written).await?,
            Place::Skyfile(writer) => store_large(store, compute, *writer, &roots, settled, &mut written).await?,
        };
        let complete = tokio::time::timeout(complete_wait, all_complete(written)).await.unwrap_or(false);
        let durability = if complete { Durability::Complete } else { Durability::Acknowledged };
        let mut copy = Some(stored.copy);
        for (index, cid) in pinned.iter().enumerate() {
            let mut pin = Pin::new(NewPin {
                owner: labels.owner.clone(),
                name: labels.name.clone().unwrap_or_else(|| cid.to_string()),
                created_ms: unix_ms(),
                size: size_bytes,
                files: 0,
                cid: *cid,
                skylink: None,
                pack: Some(stored.pack.clone()),
                skyfiles: stored.skyfiles.clone(),
                rows: Vec::new(),
                // The last one: an import that stopped among its pins is not taken for done.
                idem: labels.idem.filter(|_| index + 1 == pinned.len()),
            });
            pin.partial = missing > 0;
            pin.import = Some(ImportCounts { blocks, missing });
            let key = pin_key(cid, &rand::random());
            store.commit(Commit { key, pin, pack: copy.take(), durability }).await?;
        }
        Ok(ImportReport { roots, blocks, missing, size_bytes, durability })
    }
}

/// Few blocks: all of them inside the pack.
async fn store_inline(
    store: &Store,
    compute: Arc<Semaphore>,
    kept: Vec<NodeBlock>,
    roots: &[Cid],
    written: &mut Vec<Written>,
) -> Result<StoredPack, IngestError> {
    let roots = roots.to_vec();
    let build = move || {
        let mut pack = PackBuilder::new(SECTOR_BYTES as u64);
        kept.into_iter().try_for_each(|node| pack.node(node))?;
        pack.finish(&roots, &[])
    };
    let content = Bytes::from(hold_blocking(build).await.map_err(bad_pack)?);
    let pack = store_pack(store, content.clone(), compute, written).await?;
    Ok(StoredPack { pack, copy: PackCopy::Whole(content), skyfiles: Vec::new() })
}

/// Many: their bytes are in a skyfile, and the pack is written as its rows are merged.
async fn store_large(
    store: &Store,
    compute: Arc<Semaphore>,
    writer: ContentWriter,
    roots: &[Cid],
    settled: Settled,
    written: &mut Vec<Written>,
) -> Result<StoredPack, IngestError> {
    let length_bytes = writer.size();
    let content = hold_blocking(move || writer.finish()).await?;
    let metadata = Metadata { filename: BLOCKS_NAME.to_owned(), length_bytes, ..Metadata::default() };
    let mut skyfile = store_skyfile(store, &metadata, content, written).await?.skyfile;
    let stream = PackStream::new(roots, std::slice::from_ref(&skyfile), &settled.counts).map_err(bad_pack)?;
    let pack_bytes = stream.pack_bytes();
    let index = store.new_pack_index().map_err(scratch)?;
    let writer = ContentWriter::new(store.clone(), compute, Handle::current(), Keep::All);
    let (content, index) = hold_blocking(move || write_pack(&stream, &settled, writer, index)).await?;
    let pack = store_pack_content(store, pack_bytes, content, written).await?;
    // The pack lists them; the pin stays small.
    skyfile.roots = Bytes::new();
    Ok(StoredPack { pack, copy: PackCopy::Index(Box::new(index)), skyfiles: vec![skyfile] })
}

/// Writes the pack to the hosts and its index to this node's disk, side by side.
fn write_pack(
    stream: &PackStream,
    settled: &Settled,
    mut writer: ContentWriter,
    mut index: NewPackIndex,
) -> Result<(Taken, NewPackIndex), IngestError> {
    writer.push(stream.head())?;
    index.head(stream.head(), stream.index_start()).map_err(scratch)?;
    let mut rows = Vec::with_capacity(ROWS_BYTES);
    let mut flush = |rows: &mut Vec<u8>| {
        writer.push(rows)?;
        index.push(rows).map_err(scratch)?;
        rows.clear();
        Ok::<_, IngestError>(())
    };
    settled.each(|key, offset, len| {
        rows.extend_from_slice(&range_row(key, 0, offset, len));
        if rows.len() >= ROWS_BYTES { flush(&mut rows) } else { Ok(()) }
    })?;
    rows.extend_from_slice(stream.tail());
    flush(&mut rows)?;
    Ok((writer.finish()?, index))
}

fn key_of(cid: &Cid) -> Key {
    Key::of(cid.hash()).expect("blocks without a key were refused")
}

/// Each root once.
fn check_roots(named: Vec<Cid>) -> Result<Vec<Cid>, IngestError> {
    if named.len() > IMPORT_ROOTS_MAX {
        return Err(IngestError::bad(format!("the CAR names {} roots, at most {IMPORT_ROOTS_MAX} are pinned", named.len())));
    }
    let mut seen = HashSet::new();
    Ok(named.into_iter().filter(|cid| seen.insert(cid.hash().to_bytes())).collect())
}

fn bad_car(error: crate::tree::car::CarError) -> IngestError {
    IngestError::bad(error.to_string())
}

fn bad_pack(error: crate::tree::pack::PackError) -> IngestError {
    IngestError::bad(error.to_string())
}
