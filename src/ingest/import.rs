//! Importing a CAR: its blocks as they are, pinned under its roots (`docs/formats.md` 7, "Imported CARs").
//!
//! The CAR is read once, on a thread of its own; each block is hashed against its CID before it counts. While all blocks
//! together are few bytes they are kept inline in the pack; beyond that their bytes go on, as they come, into the slabs of
//! a skyfile, and the pack's rows point into it. What is kept for each block until the end is a row and two keys.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::address::{Cid, check_bytes, hash};
use crate::sector::SECTOR_BYTES;
use crate::store::{Commit, Durability, NewPin, Pin, Store, Written, pin_key};
use crate::tree::build::{LeafRow, NodeBlock};
use crate::tree::car::{CarDecoder, CarItem};
use crate::tree::ipld;
use crate::tree::pack::{PackBuilder, block_key};
use crate::tree::skyfile::Metadata;

use super::assemble::{all_complete, store_pack, store_skyfile, unix_ms};
use super::frames::FrameReader;
use super::writer::{ContentWriter, Keep, Taken};
use super::{IngestError, hold_blocking};

/// Blocks of one import. Each costs about 300 bytes until the end (its row, its key, the keys of its links that have not come
/// yet), and the pack is put together in memory: a million stay within some 350 MB.
pub const IMPORT_BLOCKS_MAX: u64 = 1_000_000;
/// Roots of one CAR that are pinned; each is a record of its own. Archives of many sites have hundreds.
pub const IMPORT_ROOTS_MAX: usize = 10_000;
/// Blocks of together at most this many bytes are kept inline: with its index the pack still fits one base sector, and is
/// read at one stroke.
const INLINE_BYTES_MAX: u64 = 2 << 20;
/// And at most this many, whose rows take 64 bytes each.
const INLINE_BLOCKS_MAX: u64 = 8_192;
/// File name in the metadata of the skyfile that holds the blocks' bytes.
const BLOCKS_NAME: &str = "blocks";

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
    owner: String,
    name: Option<String>,
}

/// A CAR that has been read whole; nothing is visible yet.
pub struct Imported {
    compute: Arc<Semaphore>,
    owner: String,
    name: Option<String>,
    roots: Vec<Cid>,
    pack: PackBuilder,
    content: Option<Taken>,
    blocks: u64,
    missing: u64,
    size_bytes: u64,
}

/// Blocks on their way into the pack.
struct Blocks {
    pack: PackBuilder,
    place: Place,
    /// Keys of the blocks that have come.
    present: HashSet<[u8; 32]>,
    /// Keys of what was linked to and has not come.
    wanted: HashSet<[u8; 32]>,
    first: Option<Cid>,
    size_bytes: u64,
}

enum Place {
    /// Kept until it is known whether they stay few.
    Inline(Vec<(Cid, Bytes, Vec<Cid>)>),
    Skyfile(Box<ContentWriter>),
}

impl Import {
    pub fn new(store: Store, compute: Arc<Semaphore>, owner: String, name: Option<String>) -> Import {
        Import { store, compute, owner, name }
    }

    /// Reads the whole CAR. Blocks; must run on a thread for that, inside the runtime.
    pub fn run(self, mut body: FrameReader) -> Result<Imported, IngestError> {
        let mut decoder = CarDecoder::new();
        let mut roots = Vec::new();
        let mut blocks = Blocks::new();
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
        for root in &roots {
            blocks.want(root);
        }
        let content = match blocks.place {
            Place::Inline(kept) => {
                for (cid, bytes, links) in kept {
                    blocks.pack.node(NodeBlock { cid, bytes: bytes.to_vec(), links }).map_err(bad_pack)?;
                }
                None
            }
            Place::Skyfile(writer) => Some(writer.finish()?),
        };
        Ok(Imported {
            compute: self.compute,
            owner: self.owner,
            name: self.name,
            roots,
            pack: blocks.pack,
            content,
            blocks: blocks.present.len() as u64,
            missing: blocks.wanted.len() as u64,
            size_bytes: blocks.size_bytes,
        })
    }

    fn take_block(&self, blocks: &mut Blocks, cid: Cid, bytes: Bytes) -> Result<(), BlockFault> {
        if cid.hash().code() == hash::IDENTITY {
            // It holds its own bytes, but it may link to others.
            return blocks.want_links(&cid, &bytes).map(|_| ());
        }
        check_bytes(cid.hash(), &bytes).map_err(|error| BlockFault::Bad(error.to_string()))?;
        let key = block_key(cid.hash()).ok_or_else(|| BlockFault::Bad("its hash function is not known here".to_owned()))?;
        if !blocks.present.insert(key) {
            return Ok(());
        }
        if blocks.present.len() as u64 > IMPORT_BLOCKS_MAX {
            return Err(BlockFault::Stop(IngestError::bad(format!(
                "the CAR has more than {IMPORT_BLOCKS_MAX} blocks: import it in parts"
            ))));
        }
        blocks.wanted.remove(&key);
        blocks.first.get_or_insert(cid);
        blocks.size_bytes += bytes.len() as u64;
        let links = blocks.want_links(&cid, &bytes)?;
        if let Place::Inline(kept) = &mut blocks.place {
            if blocks.size_bytes <= INLINE_BYTES_MAX && (kept.len() as u64) < INLINE_BLOCKS_MAX {
                // A copy: the decoder's buffer is let go.
                kept.push((cid, Bytes::copy_from_slice(&bytes), links));
                return Ok(());
            }
            let kept = std::mem::take(kept);
            let writer = ContentWriter::new(self.store.clone(), self.compute.clone(), Handle::current(), Keep::All);
            blocks.place = Place::Skyfile(Box::new(writer));
            for (cid, bytes, _) in kept {
                blocks.put_in_skyfile(cid, &bytes).map_err(BlockFault::Stop)?;
            }
        }
        blocks.put_in_skyfile(cid, &bytes).map_err(BlockFault::Stop)
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
    fn new() -> Blocks {
        Blocks {
            pack: PackBuilder::new(SECTOR_BYTES as u64),
            place: Place::Inline(Vec::new()),
            present: HashSet::new(),
            wanted: HashSet::new(),
            first: None,
            size_bytes: 0,
        }
    }

    fn want(&mut self, cid: &Cid) {
        if let Some(key) = block_key(cid.hash()).filter(|key| !self.present.contains(key)) {
            self.wanted.insert(key);
        }
    }

    /// Notes what a block links to. Codecs whose links cannot be seen have none that could be missing.
    fn want_links(&mut self, cid: &Cid, bytes: &Bytes) -> Result<Vec<Cid>, BlockFault> {
        let links = match ipld::links(cid, bytes) {
            Ok(links) => links,
            Err(crate::tree::TreeError::Unsupported { .. }) => Vec::new(),
            Err(error) => return Err(BlockFault::Bad(error.to_string())),
        };
        links.iter().for_each(|link| self.want(link));
        Ok(links)
    }

    fn put_in_skyfile(&mut self, cid: Cid, bytes: &[u8]) -> Result<(), IngestError> {
        let Place::Skyfile(writer) = &mut self.place else { unreachable!("called once the blocks go to a skyfile") };
        let offset = writer.size();
        let data_len = u32::try_from(bytes.len()).expect("the decoder takes blocks of at most 2 MiB");
        let row = LeafRow { cid, file_offset: 0, data_len, prefix: Vec::new(), suffix: Vec::new(), small: None };
        self.pack.leaf(row, 0, offset).map_err(bad_pack)?;
        writer.push(bytes)
    }
}

impl Imported {
    /// Stores what is left and commits one pin for each root, all with the same pack.
    pub async fn store(self, store: &Store, complete_wait: Duration) -> Result<ImportReport, IngestError> {
        let Imported { compute, owner, name, roots, pack, content, blocks, missing, size_bytes } = self;
        let mut written: Vec<Written> = Vec::new();
        let mut skyfiles = Vec::new();
        if let Some(content) = content {
            let metadata = Metadata { filename: BLOCKS_NAME.to_owned(), length_bytes: size_bytes, ..Metadata::default() };
            skyfiles.push(store_skyfile(store, &metadata, content, &mut written).await?.skyfile);
        }
        let pinned: Vec<Cid> = roots.iter().filter(|root| block_key(root.hash()).is_some()).copied().collect();
        if blocks == 0 || pinned.is_empty() {
            // Nothing but identity CIDs: they hold themselves.
            return match missing {
                0 => Ok(ImportReport { roots, blocks, missing, size_bytes, durability: Durability::Complete }),
                _ => Err(IngestError::bad("the CAR holds no blocks, only the names of its roots")),
            };
        }
        let pack = hold_blocking(move || pack.finish(&pinned, &skyfiles).map(|bytes| (bytes, pinned, skyfiles))).await;
        let (pack, pinned, mut skyfiles) = pack.map_err(bad_pack)?;
        skyfiles.iter_mut().for_each(|skyfile| skyfile.roots = Bytes::new());
        let pack = Bytes::from(pack);
        let pack_skyfile = store_pack(store, pack.clone(), compute, &mut written).await?;
        let complete = tokio::time::timeout(complete_wait, all_complete(written)).await.unwrap_or(false);
        let durability = if complete { Durability::Complete } else { Durability::Acknowledged };
        for cid in pinned {
            let mut pin = Pin::new(NewPin {
                owner: owner.clone(),
                name: name.clone().unwrap_or_else(|| cid.to_string()),
                created_ms: unix_ms(),
                size: size_bytes,
                files: 0,
                cid,
                skylink: None,
                pack: Some(pack_skyfile.clone()),
                skyfiles: skyfiles.clone(),
                rows: Vec::new(),
                idem: None,
            });
            pin.partial = missing > 0;
            let key = pin_key(&cid, &rand::random());
            store.commit(Commit { key, pin, pack: Some(pack.clone()), durability }).await?;
        }
        Ok(ImportReport { roots, blocks, missing, size_bytes, durability })
    }
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
