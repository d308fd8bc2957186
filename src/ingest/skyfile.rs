//! Uploads in Skynet's shapes: files as they arrive become one skyfile, and a DAG over the same bytes.
//!
//! The order of arrival is the order of the content, as in Skynet. A DAG needs its entries in order of path, so the
//! files' roots are kept until the last has come: about 100 bytes a file, beside its name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::address::{Cid, Skylink, SkylinkKind, cid_v1};
use crate::store::{Durability, Pin, Store, StoreError, UnpinRoot, Unpinned, Whose};
use crate::tree::build::{Built, FileBuilder, Profile, TreeBuilder};
use crate::tree::skyfile::{METADATA_BYTES_MAX, SUBFILES_MAX, UploadFile, UploadSaid, UploadShape, validate_path};

use super::assemble::{Assembled, Blocks, Sink, SkyBody, WORK_BYTES, unix_ms};
use super::writer::{ContentWriter, Keep};
use super::{AddReport, COMPLETE_WAIT, Ingest, IngestError, UPLOAD_STALL, idem_hash, report_of};

/// Uploads that wait for one of the places ([`super::UPLOADS_AT_ONCE_MAX`]) give up after this; most uploads of apps
/// are small and make room within moments.
const PLACE_WAIT: Duration = Duration::from_secs(10);
/// Longest path of a file. Linux's PATH_MAX, as for every other upload.
pub const SKY_PATH_BYTES_MAX: usize = crate::tree::build::PATH_BYTES_MAX;
/// Longest content type of a file; the registered ones have less than 128 characters, and parameters follow.
pub const CONTENT_TYPE_BYTES_MAX: usize = 1024;
/// Parts that wait between the socket and the thread that works on them.
const PARTS_WAITING_MAX: usize = 16;
/// The form of every CID of such an upload.
const PROFILE: Profile = Profile::UnixfsV1_2025;

/// One step of an upload. A file ends where the next begins, and the last with the stream.
#[derive(Clone, Debug)]
pub enum SkyPart {
    File(SkyFile),
    /// Bytes of the newest file.
    Bytes(Bytes),
}

/// A file begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SkyFile {
    /// As it will stand in the metadata; of [`UploadShape::Raw`] only the upload's filename counts.
    pub path: String,
    pub content_type: Option<String>,
    /// Unix mode; 0 = not said.
    pub mode: u32,
    pub place: SkyPlace,
}

/// What a file is when no other comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SkyPlace {
    /// The upload: its CID is the file's.
    #[default]
    Alone,
    /// The only file of a folder, unless the skyfile has its name.
    InFolder,
}

/// Who uploads, and what is said of the whole.
#[derive(Clone, Debug, Default)]
pub struct SkyOptions {
    pub owner: String,
    pub said: UploadSaid,
    pub purpose: SkyPurpose,
    /// The most bytes of content that are taken.
    pub bytes_max: Option<u64>,
    /// A repeated upload with the same key and owner is the same upload.
    pub idempotency_key: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SkyPurpose {
    #[default]
    Store,
    /// Only tell the addresses; nothing is stored.
    DryRun,
}

/// What an upload gave.
#[derive(Clone, Debug)]
pub struct SkyReport {
    pub skylink: Skylink,
    pub cid: Cid,
    pub size_bytes: u64,
    pub files: u64,
    /// `None` of a dry run.
    pub durability: Option<Durability>,
}

impl Ingest {
    /// Takes in the files of one skyfile. An error in the stream ends the upload and is told; dropping the future stops
    /// it. In both cases nothing of it is visible.
    pub async fn skyfile<S>(&self, mut parts: S, options: SkyOptions) -> Result<SkyReport, IngestError>
    where
        S: Stream<Item = Result<SkyPart, IngestError>> + Send + Unpin,
    {
        options.said.check()?;
        let _permit = self.place().await?;
        let purpose = options.purpose;
        let idem = options.idempotency_key.as_deref().map(|key| idem_hash(&options.owner, key));
        let _key = idem.map(|idem| self.hold_key(idem)).transpose()?;
        if let Some(idem) = &idem
            && let Some((pin, durability)) = self.store.pin_by_idem(idem)?
        {
            return known(&pin, durability);
        }
        let (steps, received) = mpsc::channel(PARTS_WAITING_MAX);
        let intake = Intake::new(self.store.clone(), self.compute.clone(), options, idem);
        let work = tokio::task::spawn_blocking(move || intake.run(received));
        feed(&mut parts, steps).await?;
        let assembled = work.await.expect("an upload's thread does not panic")?;
        let (size_bytes, files) = (assembled.built.size, assembled.file_count);
        let report = |cid, skylink: Option<Skylink>, durability| {
            let skylink = skylink.expect("an upload without a file was refused");
            SkyReport { skylink, cid, size_bytes, files, durability }
        };
        if purpose == SkyPurpose::DryRun {
            let (cid, skylink) = assembled.name_only(&self.store).await?;
            return Ok(report(cid, skylink, None));
        }
        let stored = assembled.store(&self.store, COMPLETE_WAIT).await?;
        Ok(report(stored.cid, stored.skylink, Some(stored.durability)))
    }

    /// One of the places for uploads, or nothing when none gets free in time.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, IngestError> {
        let place = tokio::time::timeout(PLACE_WAIT, self.uploads.clone().acquire_owned()).await;
        Ok(place.map_err(|_| IngestError::Busy)?.expect("the semaphore is never closed"))
    }

    /// Keeps the skyfile of a version 1 skylink, and the DAG over it, alive for one more owner. Once is enough.
    pub async fn pin(&self, link: &Skylink, owner: &str) -> Result<(), IngestError> {
        let (root, offset) = place_of(link)?;
        Ok(self.store.pin_for(&root, offset, owner, unix_ms()).await?)
    }

    /// Removes pins of the skyfile of a version 1 skylink.
    pub async fn unpin(&self, link: &Skylink, whose: Whose) -> Result<Unpinned, IngestError> {
        let (root, offset) = place_of(link)?;
        Ok(self.store.unpin_of(&UnpinRoot::Skyfile { root, offset }, &whose).await?)
    }
}

/// The sector's root, and where the skyfile begins in it.
fn place_of(link: &Skylink) -> Result<([u8; 32], u32), IngestError> {
    match link.kind() {
        SkylinkKind::V1 { root, offset_bytes, .. } => Ok((root, offset_bytes)),
        SkylinkKind::V2 { .. } => Err(IngestError::bad("a version 2 skylink is a pointer: name what it points to")),
    }
}

/// What an earlier upload with the same key gave.
fn known(pin: &Pin, durability: Durability) -> Result<SkyReport, IngestError> {
    let AddReport { cid, skylink, size_bytes, files, durability } = report_of(pin, durability)?;
    let skylink = skylink.ok_or_else(|| StoreError::BadPin("it has no skylink".to_owned()))?;
    Ok(SkyReport { skylink, cid, size_bytes, files, durability: Some(durability) })
}

/// What the thread gets: without the last word the upload was cut.
enum Step {
    Part(SkyPart),
    End,
}

async fn feed<S>(parts: &mut S, steps: mpsc::Sender<Step>) -> Result<(), IngestError>
where
    S: Stream<Item = Result<SkyPart, IngestError>> + Send + Unpin,
{
    loop {
        let next = tokio::time::timeout(UPLOAD_STALL, parts.next()).await.map_err(|_| IngestError::Stalled)?;
        let (step, is_last) = match next.transpose()? {
            Some(part) => (Step::Part(part), false),
            None => (Step::End, true),
        };
        // A thread that has ended has an error, which is then the one to tell.
        if steps.send(step).await.is_err() || is_last {
            return Ok(());
        }
    }
}

/// An upload under way, on a thread of its own.
struct Intake {
    compute: Arc<Semaphore>,
    options: SkyOptions,
    idem: Option<[u8; 32]>,
    writer: ContentWriter,
    blocks: Blocks,
    files: Vec<UploadFile>,
    /// Roots of the files that have ended, in the same order.
    roots: Vec<FileRoot>,
    open: Option<OpenFile>,
    /// Of names and types so far: they stay in memory and become metadata.
    text_bytes: u64,
}

struct OpenFile {
    builder: FileBuilder,
    base: u64,
    place: SkyPlace,
}

/// A file's root, small: as a value a CID has more than 150 bytes.
struct FileRoot {
    digest: [u8; 32],
    codec: u64,
    tsize: u64,
    place: SkyPlace,
}

impl Intake {
    fn new(store: Store, compute: Arc<Semaphore>, options: SkyOptions, idem: Option<[u8; 32]>) -> Intake {
        let keep = match options.purpose {
            SkyPurpose::Store => Keep::All,
            SkyPurpose::DryRun => Keep::Nothing,
        };
        Intake {
            writer: ContentWriter::new(store, compute.clone(), Handle::current(), keep),
            compute,
            options,
            idem,
            blocks: Blocks::new(),
            files: Vec::new(),
            roots: Vec::new(),
            open: None,
            text_bytes: 0,
        }
    }

    /// Blocks; must run on a thread for that, inside the runtime.
    fn run(mut self, mut steps: mpsc::Receiver<Step>) -> Result<Assembled, IngestError> {
        loop {
            match steps.blocking_recv().ok_or(IngestError::Cut)? {
                Step::Part(SkyPart::File(file)) => self.begin(file)?,
                Step::Part(SkyPart::Bytes(bytes)) => self.push(&bytes)?,
                Step::End => break,
            }
        }
        self.close();
        if self.files.is_empty() {
            return Err(IngestError::bad("could not find multipart file"));
        }
        let metadata = self.options.said.metadata(&self.files)?;
        let built = self.root(&metadata.filename)?;
        self.blocks.check()?;
        Ok(Assembled {
            owner: self.options.owner,
            idem: self.idem,
            name: metadata.filename.clone(),
            built,
            body: SkyBody::Made(metadata, self.writer.finish()?),
            file_count: self.files.len() as u64,
            blocks: self.blocks,
            compute: self.compute,
        })
    }

    fn begin(&mut self, file: SkyFile) -> Result<(), IngestError> {
        self.close();
        let SkyFile { path, content_type, mode, place } = file;
        if self.options.said.shape != UploadShape::Raw {
            validate_path(&path)?;
        }
        if self.options.said.shape != UploadShape::Multipart && !self.files.is_empty() {
            return Err(IngestError::bad("this kind of upload has exactly one file"));
        }
        if self.files.len() == SUBFILES_MAX {
            return Err(IngestError::bad(format!("more than {SUBFILES_MAX} files in one skyfile: split the upload")));
        }
        let type_bytes = content_type.as_ref().map_or(0, String::len);
        if path.len() > SKY_PATH_BYTES_MAX || type_bytes > CONTENT_TYPE_BYTES_MAX {
            return Err(IngestError::bad(format!(
                "a file's name has at most {SKY_PATH_BYTES_MAX} bytes, its content type {CONTENT_TYPE_BYTES_MAX}"
            )));
        }
        self.text_bytes += (path.len() + type_bytes) as u64;
        if self.text_bytes > METADATA_BYTES_MAX {
            return Err(IngestError::bad(format!("the files' names have more than {METADATA_BYTES_MAX} bytes: split the upload")));
        }
        self.open = Some(OpenFile { builder: FileBuilder::new(PROFILE), base: self.writer.size(), place });
        self.files.push(UploadFile { path, len_bytes: 0, mode, content_type });
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), IngestError> {
        let Some(open) = &mut self.open else { return Err(IngestError::bad("bytes came before the first file")) };
        if let Some(limit) = self.options.bytes_max
            && self.writer.size() + bytes.len() as u64 > limit
        {
            return Err(IngestError::TooLarge { limit });
        }
        let mut sink = Sink { blocks: &mut self.blocks, base: open.base };
        for part in bytes.chunks(WORK_BYTES) {
            open.builder.push(part, &mut sink);
            self.writer.push(part)?;
        }
        Ok(())
    }

    /// Ends the open file, if there is one.
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let built = open.builder.finish(&mut Sink { blocks: &mut self.blocks, base: open.base });
        let digest = built.cid.hash().digest().try_into().expect("the profile hashes with SHA-256");
        self.roots.push(FileRoot { digest, codec: built.cid.codec(), tsize: built.tsize, place: open.place });
        self.files.last_mut().expect("the open file is the last").len_bytes = built.size;
    }

    /// The root over everything: a file alone is its own.
    fn root(&mut self, filename: &str) -> Result<Built, IngestError> {
        if let ([file], [root]) = (self.files.as_slice(), self.roots.as_slice())
            && (root.place == SkyPlace::Alone || file.path == filename)
        {
            return Ok(root.built(file));
        }
        let mut order: Vec<usize> = (0..self.files.len()).collect();
        order.sort_unstable_by(|a, b| self.files[*a].path.cmp(&self.files[*b].path));
        let mut tree = TreeBuilder::new(PROFILE);
        let mut sink = Sink { blocks: &mut self.blocks, base: 0 };
        for index in order {
            let file = &self.files[index];
            tree.file(&file.path, self.roots[index].built(file), &mut sink)?;
        }
        Ok(tree.finish(&mut sink)?)
    }
}

impl FileRoot {
    fn built(&self, file: &UploadFile) -> Built {
        Built { cid: cid_v1(self.codec, self.digest), size: file.len_bytes, tsize: self.tsize }
    }
}
