//! Metadata of uploads: what a client says of its files, by the way they came in.
//!
//! `add FILE` is a multipart upload of the field `file`: one subfile of the skyfile's own name. `add DIR` is a directory
//! upload. Both carry the tryfiles that Skynet's daemon added to every multipart upload that did not say otherwise. Modes are left out,
//! so that the same bytes get the same skylink from every machine.

use std::collections::BTreeMap;

use super::metadata::SUBFILES_MAX;
use super::validate::{self, MetadataError, validate};
use super::{Metadata, SkyfileError, Subfile};

/// The tryfile of every multipart upload that names none.
pub const INDEX_TRYFILE: &str = "index.html";

/// One file of an upload, in the order in which its bytes stand in the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadFile {
    /// Path inside the upload, without a leading slash; the file's name when it is alone.
    pub path: String,
    pub len_bytes: u64,
    /// Unix mode; 0 leaves the field out.
    pub mode: u32,
    /// None leaves the field out: nothing is sniffed at upload.
    pub content_type: Option<String>,
}

/// Why an upload's files do not make a skyfile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UploadMetadataError {
    #[error(transparent)]
    Invalid(#[from] MetadataError),
    #[error(transparent)]
    Skyfile(#[from] SkyfileError),
    #[error("the path {0:?} stands twice in one upload")]
    Twice(String),
}

/// How an upload came in. The same bytes get another skylink by each way (`skynet.md` 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UploadShape {
    /// The request's body is the file: no subfiles, no tryfiles.
    Raw,
    /// One or more files, each a subfile; the tryfile is [`INDEX_TRYFILE`] unless the upload says otherwise.
    #[default]
    Multipart,
    /// In parts (tus): one subfile, no tryfiles.
    Resumable,
}

/// What is served where a path names no file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DefaultPath {
    #[default]
    Unsaid,
    Disabled,
    File(String),
}

/// What an upload says of itself beside its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadSaid {
    pub shape: UploadShape,
    /// Empty: the only file's own name.
    pub filename: String,
    /// Unix mode of the whole; 0 = not said.
    pub mode: u32,
    /// `None` = not said, which is something else than an empty list.
    pub try_files: Option<Vec<String>>,
    /// Status code to absolute path.
    pub error_pages: BTreeMap<i64, String>,
    pub default_path: DefaultPath,
}

impl UploadSaid {
    /// Judges what can be judged before a file has come: the names, and what contradicts itself. The rest is seen by
    /// [`UploadSaid::metadata`].
    pub fn check(&self) -> Result<(), MetadataError> {
        let must_have_name = self.shape == UploadShape::Raw;
        if must_have_name || !self.filename.is_empty() {
            validate::check_name(&self.filename)?;
        }
        validate::check_unfounded(&self.without_files())
    }

    /// Metadata of the upload with `files` in this order: offsets are summed up. The result is valid, and its length is
    /// the sum of the files.
    pub fn metadata(&self, files: &[UploadFile]) -> Result<Metadata, UploadMetadataError> {
        if files.len() > SUBFILES_MAX {
            let limit = SUBFILES_MAX as u64;
            return Err(SkyfileError::TooLarge { what: "files in one skyfile", have: files.len() as u64, limit }.into());
        }
        let mut metadata = self.without_files();
        for file in files {
            let subfile = Subfile {
                mode: file.mode,
                filename: file.path.clone(),
                content_type: file.content_type.clone().unwrap_or_default(),
                offset_bytes: metadata.length_bytes,
                len_bytes: file.len_bytes,
            };
            if self.shape != UploadShape::Raw && metadata.subfiles.insert(file.path.clone(), subfile).is_some() {
                return Err(UploadMetadataError::Twice(file.path.clone()));
            }
            let length = metadata.length_bytes.checked_add(file.len_bytes);
            metadata.length_bytes =
                length.ok_or(SkyfileError::TooLarge { what: "bytes in one skyfile", have: u64::MAX, limit: u64::MAX })?;
        }
        if let ([file], true) = (files, metadata.filename.is_empty()) {
            metadata.filename = file.path.clone();
        }
        validate(&metadata)?;
        Ok(metadata)
    }

    fn without_files(&self) -> Metadata {
        let mut metadata = Metadata { filename: self.filename.clone(), mode: self.mode, ..Metadata::default() };
        if self.shape == UploadShape::Raw {
            return metadata;
        }
        metadata.error_pages = self.error_pages.clone();
        match &self.default_path {
            DefaultPath::Unsaid => {}
            DefaultPath::Disabled => metadata.disable_default_path = true,
            DefaultPath::File(path) => metadata.default_path = path.clone(),
        }
        let unsaid = self.shape == UploadShape::Multipart && self.default_path == DefaultPath::Unsaid;
        metadata.try_files = match &self.try_files {
            Some(files) => files.clone(),
            None if unsaid => vec![INDEX_TRYFILE.to_owned()],
            None => Vec::new(),
        };
        metadata
    }
}

/// Metadata of an `add` called `name` with `files` in this order; `add FILE` passes one file whose path is `name`.
pub fn upload_metadata(name: &str, files: &[UploadFile]) -> Result<Metadata, UploadMetadataError> {
    UploadSaid { filename: name.to_owned(), ..UploadSaid::default() }.metadata(files)
}

/// The content type that an upload states for a path, by its extension; none when the extension is not known. It is
/// part of the skylink: a newer table of types would change addresses, so a change here is a change of format.
pub fn upload_content_type(path: &str) -> Option<&'static str> {
    mime_guess::from_path(path).first_raw()
}
