//! One upload on its own thread, then its last steps: base sector, pack, pin.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::address::{Cid, Skylink};
use crate::sector::{Root, SECTOR_BYTES, build_object, sector_root};
use crate::store::{
    Commit, Completion, Durability, NewPin, PIN_ROW_DATA_MAX, PIN_ROWS_MAX, PackCopy, Pin, PinRow, Store, Written, pin_key,
};
use crate::tree::build::{BlockSink, Built, FileBuilder, LeafRow, NodeBlock, Profile, TreeBuilder};
use crate::tree::pack::{PackBuilder, PackError, SkyfileRef};
use crate::tree::skyfile::{
    BuiltSkyfile, Metadata, SkyfileError, UploadFile, build_large, build_small, fits_small, upload_content_type, upload_metadata,
};

use super::frames::{Entry, EntryKind, Frame, FrameReader, RootKind};
use super::writer::{ContentWriter, Keep, Taken, TakenSlab};
use super::{AddReport, ENTRIES_MAX, IngestError};

/// The one skyfile of an upload, as pack and pin rows count them.
const SKYFILE_INDEX: u32 = 0;
/// File name in the metadata of a pack's skyfile (`docs/formats.md` 7).
const PACK_NAME: &str = "pack.car";
/// What the pack's own skyfile needs in its base sector beside the pack.
const PACK_HEAD_BYTES: u64 = 256;
/// Small leaves are kept inline while the pack fits one base sector.
const PACK_ROOM_BYTES: u64 = SECTOR_BYTES as u64 - PACK_HEAD_BYTES;
/// Piece roots that still fit a pin beside its other fields; a pack with more is read through its base sector.
const PIN_ROOTS_BYTES_MAX: usize = 24 << 10;

/// The most that is handed from the stream to the hashers at once: fits the second-level cache beside the leaf.
pub const WORK_BYTES: usize = 256 << 10;

/// An upload under way.
pub struct Assembly {
    store: Store,
    compute: Arc<Semaphore>,
    owner: String,
    idem: Option<[u8; 32]>,
}

/// An upload that has been taken in whole; its slabs are acknowledged, nothing is visible yet.
pub struct Assembled {
    pub owner: String,
    pub idem: Option<[u8; 32]>,
    pub name: String,
    pub built: Built,
    pub body: SkyBody,
    pub file_count: u64,
    pub blocks: Blocks,
    pub compute: Arc<Semaphore>,
}

/// The skyfile of an upload.
pub enum SkyBody {
    /// There was no file.
    None,
    Made(Metadata, Taken),
    /// Its base sector came as it is.
    Given(GivenSector),
}

/// A whole base sector, checked against its skylink.
pub struct GivenSector {
    pub link: Skylink,
    pub sector: Vec<u8>,
    /// Used bytes of it, from its beginning.
    pub used: u32,
    pub content: GivenContent,
}

/// Where the content of a given base sector is; checked against it.
pub enum GivenContent {
    /// In the sector, from `at` on.
    InSector { at: u32, size: u64 },
    /// In slabs of this portal, of the same redundancy or of another than the sector's fanout.
    InSlabs { size: u64, slabs: Vec<TakenSlab> },
}

/// The blocks of the upload: for its pack, and as rows of the pin while they are few.
pub struct Blocks {
    pack: PackBuilder,
    /// `None` once there are too many of them, or one is too long.
    pin_rows: Option<Vec<PinRow>>,
    /// The first thing that a pack cannot hold.
    failure: Option<PackError>,
}

/// Takes the blocks of one file or folder.
pub struct Sink<'a> {
    pub blocks: &'a mut Blocks,
    /// Where the file begins in the skyfile's content.
    pub base: u64,
}

impl Blocks {
    pub fn new() -> Blocks {
        Blocks { pack: PackBuilder::new(PACK_ROOM_BYTES), pin_rows: Some(Vec::new()), failure: None }
    }

    /// Whether a pack can hold them all.
    pub fn check(&self) -> Result<(), IngestError> {
        self.failure.as_ref().map_or(Ok(()), |error| Err(IngestError::bad(error.to_string())))
    }

    fn pin_row(&mut self, row: PinRow) {
        let Some(rows) = &mut self.pin_rows else { return };
        if rows.iter().any(|known| known.multihash_bytes() == row.multihash_bytes()) {
            return;
        }
        rows.push(row);
        if rows.len() > PIN_ROWS_MAX {
            self.pin_rows = None;
        }
    }

    fn note(&mut self, done: Result<(), PackError>) {
        if let Err(error) = done {
            self.failure.get_or_insert(error);
        }
    }
}

impl BlockSink for Sink<'_> {
    fn leaf(&mut self, leaf: LeafRow) {
        let offset = self.base + leaf.file_offset;
        let (prefix, suffix) = (leaf.prefix.clone(), leaf.suffix.clone());
        self.blocks.pin_row(PinRow::range(leaf.cid.hash(), SKYFILE_INDEX, offset, leaf.data_len, prefix, suffix));
        let done = self.blocks.pack.leaf(leaf, SKYFILE_INDEX, offset);
        self.blocks.note(done);
    }

    fn node(&mut self, node: NodeBlock) {
        if node.bytes.len() > PIN_ROW_DATA_MAX {
            self.blocks.pin_rows = None;
        } else {
            self.blocks.pin_row(PinRow::inline(node.cid.hash(), node.bytes.clone()));
        }
        let done = self.blocks.pack.node(node);
        self.blocks.note(done);
    }
}

impl Assembly {
    pub fn new(store: Store, compute: Arc<Semaphore>, owner: String, idem: Option<[u8; 32]>) -> Assembly {
        Assembly { store, compute, owner, idem }
    }

    /// Reads the whole stream. Blocks; must run on a thread for that, inside the runtime.
    pub fn run(self, mut frames: FrameReader) -> Result<Assembled, IngestError> {
        let head = frames.head()?;
        let profile: Profile = head.profile.parse()?;
        let mut writer = ContentWriter::new(self.store.clone(), self.compute.clone(), Handle::current(), Keep::All);
        let mut blocks = Blocks::new();
        let mut tree = TreeBuilder::new(profile);
        let mut files = Vec::new();
        let mut single = None;
        let mut entries = 0;
        loop {
            let entry = match frames.frame()? {
                Frame::Entry(entry) => entry,
                Frame::End(end) if end.is_end && end.entries == entries => break,
                Frame::End(end) => {
                    return Err(IngestError::bad(format!("the last frame counts {} entries, {entries} came", end.entries)));
                }
            };
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(IngestError::bad(format!("more than {ENTRIES_MAX} entries in one upload: split it")));
            }
            if head.root == RootKind::File && (entries > 1 || !matches!(entry.kind, EntryKind::File { .. })) {
                return Err(IngestError::bad("an upload with root \"file\" has exactly one entry, a file"));
            }
            let built = take_entry(&mut frames, &entry, profile, (&mut writer, &mut blocks, &mut tree, &mut files))?;
            single = built.or(single);
        }
        frames.end()?;
        let built = match (head.root, single) {
            (RootKind::File, Some(built)) => built,
            (RootKind::File, None) => return Err(IngestError::bad("an upload with root \"file\" has exactly one entry, a file")),
            (RootKind::Dir, _) => tree.finish(&mut Sink { blocks: &mut blocks, base: 0 })?,
        };
        blocks.check()?;
        // A file is its own name; a folder's is the upload's.
        let filename = if head.root == RootKind::File { &files[0].path } else { &head.name };
        let metadata = if files.is_empty() { None } else { Some(upload_metadata(filename, &files)?) };
        let content = writer.finish()?;
        Ok(Assembled {
            owner: self.owner,
            idem: self.idem,
            name: head.name,
            built,
            body: metadata.map_or(SkyBody::None, |metadata| SkyBody::Made(metadata, content)),
            file_count: files.len() as u64,
            blocks,
            compute: self.compute,
        })
    }
}

type Builders<'a> = (&'a mut ContentWriter, &'a mut Blocks, &'a mut TreeBuilder, &'a mut Vec<UploadFile>);

fn take_entry(
    frames: &mut FrameReader,
    entry: &Entry,
    profile: Profile,
    (writer, blocks, tree, files): Builders<'_>,
) -> Result<Option<Built>, IngestError> {
    tree.check(&entry.path)?;
    let base = writer.size();
    match &entry.kind {
        EntryKind::File { size } => {
            let mut sink = Sink { blocks, base };
            let mut file = FileBuilder::new(profile);
            let mut left = *size;
            while left > 0 {
                let part = frames.some(left.min(WORK_BYTES as u64) as usize)?;
                file.push(&part, &mut sink);
                writer.push(&part)?;
                left -= part.len() as u64;
            }
            let built = file.finish(&mut sink);
            tree.file(&entry.path, built, &mut sink)?;
            files.push(UploadFile {
                path: entry.path.clone(),
                len_bytes: *size,
                mode: 0,
                content_type: upload_content_type(&entry.path).map(str::to_owned),
            });
            Ok(Some(built))
        }
        EntryKind::Symlink { target } => {
            tree.symlink(&entry.path, target, &mut Sink { blocks, base })?;
            Ok(None)
        }
        EntryKind::Dir => {
            tree.dir(&entry.path, &mut Sink { blocks, base })?;
            Ok(None)
        }
    }
}

/// A skyfile that is on the hosts.
pub struct StoredSkyfile {
    pub skyfile: SkyfileRef,
    pub link: Skylink,
}

impl Assembled {
    /// Stores what is left, commits the pin, and waits a little for the pieces beyond the acknowledgement.
    pub async fn store(self, store: &Store, complete_wait: Duration) -> Result<AddReport, IngestError> {
        let Assembled { owner, idem, name, built, body, file_count, blocks, compute } = self;
        let mut written = Vec::new();
        let mut skyfiles = Vec::new();
        let mut skylink = None;
        let stored = match body {
            SkyBody::None => None,
            SkyBody::Made(metadata, content) => Some(store_skyfile(store, &metadata, content, &mut written).await?),
            SkyBody::Given(given) => Some(given.store(store, &mut written).await?),
        };
        if let Some(stored) = stored {
            skylink = Some(stored.link);
            skyfiles.push(stored.skyfile);
        }
        let (pack, pack_copy, rows) = match blocks.pin_rows.filter(|_| fits_pin(&skyfiles)) {
            Some(rows) => (None, None, rows),
            None => {
                let pack = blocks.pack.finish(&[built.cid], &skyfiles).map_err(|error| IngestError::bad(error.to_string()))?;
                // The pack lists them; the pin stays small.
                skyfiles.iter_mut().for_each(|skyfile| skyfile.roots = Bytes::new());
                let pack = Bytes::from(pack);
                let skyfile = store_pack(store, pack.clone(), compute, &mut written).await?;
                (Some(skyfile), Some(PackCopy::Whole(pack)), Vec::new())
            }
        };
        let pin = Pin::new(NewPin {
            owner,
            name,
            created_ms: unix_ms(),
            size: built.size,
            files: file_count,
            cid: built.cid,
            skylink,
            pack,
            skyfiles,
            rows,
            idem,
        });
        let complete = tokio::time::timeout(complete_wait, all_complete(written)).await.unwrap_or(false);
        let durability = if complete { Durability::Complete } else { Durability::Acknowledged };
        let key = pin_key(&built.cid, &rand::random());
        store.commit(Commit { key, pin, pack: pack_copy, durability }).await?;
        Ok(AddReport { cid: built.cid, skylink, size_bytes: built.size, files: file_count, durability })
    }

    /// The addresses that [`Assembled::store`] would give, for an upload whose slabs were not kept either.
    pub async fn name_only(self, store: &Store) -> Result<(Cid, Option<Skylink>), IngestError> {
        let (json, content) = match self.body {
            SkyBody::None => return Ok((self.built.cid, None)),
            SkyBody::Given(given) => return Ok((self.built.cid, Some(given.link))),
            SkyBody::Made(metadata, content) => (metadata.encode(), content),
        };
        let (size, slabs) = match content {
            Taken::Small(content) if fits_small(&json, content.len() as u64) => {
                let built = build_small(&json, &content).map_err(bad_skyfile)?;
                return Ok((self.built.cid, Some(link_of(&built, sector_root(&built.base)))));
            }
            Taken::Small(content) => {
                (content.len() as u64, encode(store, content.into(), self.compute, Keep::Nothing).await?.into_slabs())
            }
            Taken::Slabs { size, slabs } => (size, slabs),
        };
        let built = build_large_of(store, &json, size, &slabs)?;
        Ok((self.built.cid, Some(link_of(&built, sector_root(&built.base)))))
    }
}

impl GivenSector {
    async fn store(self, store: &Store, written: &mut Vec<Written>) -> Result<StoredSkyfile, IngestError> {
        let GivenSector { link, sector, used, content } = self;
        let object = build_object(&sector, 0, 0, store.epoch());
        let root = object.root.0;
        written.push(store.write_base(object).await?);
        let skyfile = match content {
            GivenContent::InSector { at, size } => SkyfileRef { k: 0, m: 0, at, root, size, used, roots: Bytes::new() },
            GivenContent::InSlabs { size, slabs } => {
                let (k, m) = store.redundancy();
                let roots = roots_of(&slabs);
                written.extend(slabs.into_iter().filter_map(|slab| slab.written));
                SkyfileRef { k, m, at: 0, root, size, used, roots }
            }
        };
        Ok(StoredSkyfile { skyfile, link })
    }
}

fn fits_pin(skyfiles: &[SkyfileRef]) -> bool {
    skyfiles.iter().map(|skyfile| skyfile.roots.len()).sum::<usize>() <= PIN_ROOTS_BYTES_MAX
}

pub async fn all_complete(written: Vec<Written>) -> bool {
    let mut complete = true;
    for one in written {
        complete &= matches!(one.complete().await, Completion::Complete);
    }
    complete
}

/// Stores base sector (and what a recursive one points to) of a content whose slabs are acknowledged.
pub async fn store_skyfile(
    store: &Store,
    metadata: &Metadata,
    content: Taken,
    written: &mut Vec<Written>,
) -> Result<StoredSkyfile, IngestError> {
    let json = metadata.encode();
    let (size, slabs) = match content {
        Taken::Small(content) if fits_small(&json, content.len() as u64) => {
            let built = build_small(&json, &content).map_err(bad_skyfile)?;
            let (root, link) = store_base(store, &built, written).await?;
            let at = built.used_bytes - content.len() as u32;
            let skyfile = SkyfileRef {
                k: 0,
                m: 0,
                at,
                root: root.0,
                size: content.len() as u64,
                used: built.used_bytes,
                roots: Bytes::new(),
            };
            return Ok(StoredSkyfile { skyfile, link });
        }
        // Just over: with its metadata it does not fit the base sector.
        Taken::Small(content) => {
            let compute = Arc::new(Semaphore::new(1));
            (content.len() as u64, encode(store, content.into(), compute, Keep::All).await?.into_slabs())
        }
        Taken::Slabs { size, slabs } => (size, slabs),
    };
    let (k, m) = store.redundancy();
    let built = build_large_of(store, &json, size, &slabs)?;
    let roots = roots_of(&slabs);
    written.extend(slabs.into_iter().filter_map(|slab| slab.written));
    let (root, link) = store_base(store, &built, written).await?;
    Ok(StoredSkyfile { skyfile: SkyfileRef { k, m, at: 0, root: root.0, size, used: built.used_bytes, roots }, link })
}

/// As a reference lists them.
fn roots_of(slabs: &[TakenSlab]) -> Bytes {
    slabs.iter().flat_map(|slab| &slab.roots).flat_map(|root| root.0).collect::<Vec<u8>>().into()
}

fn build_large_of(store: &Store, json: &[u8], size: u64, slabs: &[TakenSlab]) -> Result<BuiltSkyfile, IngestError> {
    let (k, m) = store.redundancy();
    let roots: Vec<Root> = slabs.iter().flat_map(|slab| slab.roots.iter().copied()).collect();
    build_large(json, size, k, m, &roots).map_err(bad_skyfile)
}

fn link_of(built: &BuiltSkyfile, root: Root) -> Skylink {
    Skylink::v1(0, built.used_bytes, root.0).expect("a base sector's length is within a sector")
}

async fn store_base(store: &Store, built: &BuiltSkyfile, written: &mut Vec<Written>) -> Result<(Root, Skylink), IngestError> {
    for sector in &built.extension {
        written.push(store.write_base(build_object(sector, 0, 0, store.epoch())).await?);
    }
    let object = build_object(&built.base, 0, 0, store.epoch());
    let root = object.root;
    written.push(store.write_base(object).await?);
    Ok((root, link_of(built, root)))
}

/// Makes slabs of a content that is at hand.
async fn encode(store: &Store, content: Bytes, compute: Arc<Semaphore>, keep: Keep) -> Result<Taken, IngestError> {
    let mut writer = ContentWriter::in_slabs(store.clone(), compute, Handle::current(), keep);
    let work = tokio::task::spawn_blocking(move || {
        writer.push(&content)?;
        writer.finish()
    });
    work.await.expect("encoding does not panic")
}

/// Stores a pack as a skyfile of its own.
pub async fn store_pack(
    store: &Store,
    pack: Bytes,
    compute: Arc<Semaphore>,
    written: &mut Vec<Written>,
) -> Result<SkyfileRef, IngestError> {
    let pack_bytes = pack.len() as u64;
    let content = if fits_small(&pack_metadata(pack_bytes).encode(), pack_bytes) {
        Taken::Small(pack.to_vec())
    } else {
        encode(store, pack, compute, Keep::All).await?
    };
    store_pack_content(store, pack_bytes, content, written).await
}

/// The same for a pack whose content was taken in before.
pub async fn store_pack_content(
    store: &Store,
    pack_bytes: u64,
    content: Taken,
    written: &mut Vec<Written>,
) -> Result<SkyfileRef, IngestError> {
    let mut stored = store_skyfile(store, &pack_metadata(pack_bytes), content, written).await?;
    if stored.skyfile.roots.len() > PIN_ROOTS_BYTES_MAX {
        stored.skyfile.roots = Bytes::new();
    }
    Ok(stored.skyfile)
}

fn pack_metadata(pack_bytes: u64) -> Metadata {
    Metadata { filename: PACK_NAME.to_owned(), length_bytes: pack_bytes, ..Metadata::default() }
}

fn bad_skyfile(error: SkyfileError) -> IngestError {
    IngestError::bad(error.to_string())
}

pub fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
