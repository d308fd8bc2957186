//! Which metadata is allowed: Skynet's own rules, with its own words, since clients show them.
//!
//! Uploads are judged by this before a byte is stored. Downloads are not: old skyfiles that break a rule stay readable,
//! so readers check what they use (see `site::skynet`).

use super::Metadata;

/// What is wrong with metadata. The texts are those of Skynet's daemon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("[invalid filename provided '{name}'; invalid path string; {fault}]")]
    Filename { name: String, fault: PathFault },
    #[error("subfile name did not match metadata filename")]
    SubfileKey,
    #[error("[invalid filename provided for subfile '{name}'; invalid path string; {fault}]")]
    SubfileName { name: String, fault: PathFault },
    #[error("invalid length set on metadata - length: {length_bytes}, totalLength: {total_bytes}, subfiles: {subfile_count}")]
    Length { length_bytes: u64, total_bytes: u128, subfile_count: usize },
    #[error(
        "invalid defaultpath state - both defaultpath and disabledefaultpath are set, please specify a format if you want to download this skyfile"
    )]
    DefaultPathAndDisabled,
    #[error("[invalid default path provided; defaultpath is not allowed on single files]")]
    DefaultPathOnSingleFile,
    #[error("[invalid default path provided; no such path: {0}]")]
    DefaultPathMissing(String),
    #[error("[invalid default path provided; skyfile has invalid default path which refers to a non-root file]")]
    DefaultPathNotAtRoot,
    #[error("tryfiles are incompatible with defaultpath and disabledefaultpath")]
    TryFilesAndDefaultPath,
    #[error(
        "[metadata contains invalid tryfiles configuration; a tryfile cannot be an empty string, it needs to be a valid file name]"
    )]
    TryFileEmpty,
    #[error("[metadata contains invalid tryfiles configuration; any absolute path tryfile in the list must exist]")]
    TryFileMissing,
    #[error("[metadata contains invalid tryfiles configuration; only one absolute path tryfile is permitted]")]
    TryFilesAbsolute,
    #[error(
        "[metadata contains invalid errorpages configuration; overriding status codes under 400 and above 599 is not supported]"
    )]
    ErrorPageCode,
    #[error("[metadata contains invalid errorpages configuration; all errorpages need to have absolute paths]")]
    ErrorPageRelative,
    #[error("[metadata contains invalid errorpages configuration; all errorpage files must exist]")]
    ErrorPageMissing,
}

/// What is wrong with a path inside a skyfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    #[error("path must be a nonempty string")]
    Empty,
    #[error("path cannot be '..'")]
    Parent,
    #[error("path cannot be '.'")]
    Current,
    #[error("path cannot begin with /")]
    LeadingSlash,
    #[error("path cannot begin with ../")]
    LeadingParent,
    #[error("path cannot begin with ./")]
    LeadingCurrent,
    #[error("path cannot contain . or .. elements")]
    DotElement,
}

/// Judges metadata as Skynet's daemon did on upload; the first fault is reported.
pub fn validate(metadata: &Metadata) -> Result<(), MetadataError> {
    check_name(&metadata.filename)?;
    check_subfiles(metadata)?;
    check_default_path(metadata)?;
    check_try_files(metadata)?;
    check_error_pages(metadata)
}

/// Judges the name of a whole skyfile.
pub(super) fn check_name(name: &str) -> Result<(), MetadataError> {
    check_path(name).map_err(|fault| MetadataError::Filename { name: name.to_owned(), fault })
}

/// Judges the path of one file in a skyfile.
pub fn validate_path(path: &str) -> Result<(), MetadataError> {
    check_path(path).map_err(|fault| MetadataError::SubfileName { name: path.to_owned(), fault })
}

/// The rules that files which are still to come cannot heal.
pub(super) fn check_unfounded(metadata: &Metadata) -> Result<(), MetadataError> {
    if !metadata.default_path.is_empty() && metadata.disable_default_path {
        return Err(MetadataError::DefaultPathAndDisabled);
    }
    let may_be_healed = |fault: &MetadataError| matches!(fault, MetadataError::TryFileMissing | MetadataError::ErrorPageMissing);
    for judged in [check_try_files(metadata), check_error_pages(metadata)] {
        judged.or_else(|fault| if may_be_healed(&fault) { Ok(()) } else { Err(fault) })?;
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), PathFault> {
    let fault = match path {
        "" => PathFault::Empty,
        ".." => PathFault::Parent,
        "." => PathFault::Current,
        _ if path.starts_with('/') => PathFault::LeadingSlash,
        _ if path.starts_with("../") => PathFault::LeadingParent,
        _ if path.starts_with("./") => PathFault::LeadingCurrent,
        _ if path.split('/').any(|element| element == "." || element == "..") => PathFault::DotElement,
        _ if path.split('/').any(str::is_empty) => PathFault::Empty,
        _ => return Ok(()),
    };
    Err(fault)
}

fn check_subfiles(metadata: &Metadata) -> Result<(), MetadataError> {
    let mut total_bytes = 0u128;
    for (key, subfile) in &metadata.subfiles {
        if *key != subfile.filename {
            return Err(MetadataError::SubfileKey);
        }
        validate_path(key)?;
        total_bytes += u128::from(subfile.len_bytes);
    }
    // Skyfiles from before the field existed have subfiles and length 0.
    let legacy = metadata.length_bytes == 0;
    if !metadata.subfiles.is_empty() && !legacy && u128::from(metadata.length_bytes) != total_bytes {
        return Err(MetadataError::Length {
            length_bytes: metadata.length_bytes,
            total_bytes,
            subfile_count: metadata.subfiles.len(),
        });
    }
    Ok(())
}

fn check_default_path(metadata: &Metadata) -> Result<(), MetadataError> {
    let path = &metadata.default_path;
    if path.is_empty() {
        return Ok(());
    }
    if metadata.disable_default_path {
        return Err(MetadataError::DefaultPathAndDisabled);
    }
    if metadata.subfiles.is_empty() {
        return Err(MetadataError::DefaultPathOnSingleFile);
    }
    let inside = path.strip_prefix('/').unwrap_or(path);
    if !metadata.subfiles.contains_key(inside) {
        return Err(MetadataError::DefaultPathMissing(path.clone()));
    }
    if inside.contains('/') && metadata.subfiles.len() > 1 {
        return Err(MetadataError::DefaultPathNotAtRoot);
    }
    Ok(())
}

fn check_try_files(metadata: &Metadata) -> Result<(), MetadataError> {
    if metadata.try_files.is_empty() {
        return Ok(());
    }
    if !metadata.default_path.is_empty() || metadata.disable_default_path {
        return Err(MetadataError::TryFilesAndDefaultPath);
    }
    let mut absolute_count = 0;
    for file in &metadata.try_files {
        if file.is_empty() {
            return Err(MetadataError::TryFileEmpty);
        }
        if let Some(inside) = file.strip_prefix('/') {
            absolute_count += 1;
            if absolute_count > 1 {
                return Err(MetadataError::TryFilesAbsolute);
            }
            if !metadata.subfiles.contains_key(inside) {
                return Err(MetadataError::TryFileMissing);
            }
        }
    }
    Ok(())
}

fn check_error_pages(metadata: &Metadata) -> Result<(), MetadataError> {
    for (code, path) in &metadata.error_pages {
        if !(400..=599).contains(code) {
            return Err(MetadataError::ErrorPageCode);
        }
        let Some(inside) = path.strip_prefix('/') else {
            return Err(MetadataError::ErrorPageRelative);
        };
        if !metadata.subfiles.contains_key(inside) {
            return Err(MetadataError::ErrorPageMissing);
        }
    }
    Ok(())
}
