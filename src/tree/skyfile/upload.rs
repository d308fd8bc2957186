//! Metadata of the upload shapes that this gateway makes itself.
//!
//! `add FILE` is a multipart upload of the field `file`: one subfile of the skyfile's own name. `add DIR` is a directory
//! upload. Both carry the tryfiles that Skynet's daemon added to every multipart upload that did not say otherwise. Modes are left out,
//! so that the same bytes get the same skylink from every machine.

use std::collections::BTreeMap;

use super::metadata::SUBFILES_MAX;
use super::validate::{MetadataError, validate};
use super::{Metadata, SkyfileError, Subfile};

/// The tryfile of every multipart upload that names none.
pub const INDEX_TRYFILE: &str = "index.html";

/// One file of an upload, in the order in which its bytes stand in the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadFile {
    /// Path inside the upload, without a leading slash; the file's name when it is alone.
    pub path: String,
    pub len_bytes: u64,
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

/// Metadata of an upload called `name` with `files` in this order: offsets are summed up, tryfiles are [`INDEX_TRYFILE`].
/// `add FILE` passes one file whose path is `name`. The result is valid, and its length is the sum of the files.
pub fn upload_metadata(name: &str, files: &[UploadFile]) -> Result<Metadata, UploadMetadataError> {
    if files.len() > SUBFILES_MAX {
        let limit = SUBFILES_MAX as u64;
        return Err(SkyfileError::TooLarge { what: "files in one skyfile", have: files.len() as u64, limit }.into());
    }
    let mut subfiles = BTreeMap::new();
    let mut offset_bytes = 0u64;
    for file in files {
        let subfile = Subfile {
            mode: 0,
            filename: file.path.clone(),
            content_type: file.content_type.clone().unwrap_or_default(),
            offset_bytes,
            len_bytes: file.len_bytes,
        };
        if subfiles.insert(file.path.clone(), subfile).is_some() {
            return Err(UploadMetadataError::Twice(file.path.clone()));
        }
        offset_bytes = offset_bytes.checked_add(file.len_bytes).ok_or(SkyfileError::TooLarge {
            what: "bytes in one skyfile",
            have: u64::MAX,
            limit: u64::MAX,
        })?;
    }
    let metadata = Metadata {
        filename: name.to_owned(),
        length_bytes: offset_bytes,
        subfiles,
        try_files: vec![INDEX_TRYFILE.to_owned()],
        ..Metadata::default()
    };
    validate(&metadata)?;
    Ok(metadata)
}

/// The content type that an upload states for a path, by its extension; none when the extension is not known. It is
/// part of the skylink: a newer table of types would change addresses, so a change here is a change of format.
pub fn upload_content_type(path: &str) -> Option<&'static str> {
    mime_guess::from_path(path).first_raw()
}
