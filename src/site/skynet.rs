//! Which file of a skyfile answers a path: Skynet's routing as a pure function of metadata and path.
//!
//! What it does: [`resolve`] turns metadata and a request into a [`SkyAnswer`]; [`validate`] judges metadata; [`etag`] names an answer.
//! What it hides: the order of tryfiles, default path, directory and errorpages rules.
//! What it must never know: sectors, HTTP types, how an archive is written.
//!
//! The rules, in order (checked by Skynet's vectors, 15 metadata x 13 paths):
//! 1. `/` of a skyfile with exactly one subfile is that file, unless the default path is disabled.
//! 2. With tryfiles: a path that names no subfile is tried against them, absolute ones as they are, relative ones below the path.
//! 3. Else `/` is the default path, or `/index.html` when none is named.
//! 4. What then is a subfile is served; `/` of a skyfile that is no directory is the whole content; what is a prefix of
//!    subfiles, and `/` of a directory, is an archive; the rest is not found, for which errorpages may have a body.
//! 5. When `/` of several files became one of them, the browser has to be at a URL that ends in a slash, or its relative
//!    links break: a redirect.
//!
//! What a file, a folder and a slash lead to is the table of [`super::slash`], which trees of UnixFS have, too.
//!
//! Words: *path* = what stands behind the skylink, percent-decoded, beginning with a slash. Limits are those of the metadata.

use std::borrow::Cow;
use std::ops::Bound;

use super::slash::{Depth, Habit, LeadsTo, Lies, leads_to};
use crate::address::TrailingSlash;
use crate::tree::skyfile::{Metadata, Subfile};
pub use crate::tree::skyfile::{MetadataError, validate};

/// What is asked of a skyfile.
#[derive(Clone, Copy, Debug)]
pub struct SkyAsk<'a> {
    /// Percent-decoded path behind the skylink; a leading slash is added when it lacks one.
    pub path: &'a str,
    /// `format=` of the query; with it neither tryfiles nor default path count.
    pub format: Option<ArchiveFormat>,
    pub root_slash: RootSlash,
}

/// What to do when `/` turns into a file and the URL has no slash after the skylink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootSlash {
    /// The URL ends in a slash, or a redirect would serve nobody (HEAD, `attachment=true`).
    Fine,
    /// A GET for showing whose URL ends with the skylink itself.
    Missing,
}

/// The archives a directory can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// All files, one after the other.
    Concat,
    Tar,
    TarGz,
    Zip,
}

impl ArchiveFormat {
    /// Reads the query's word, in any case.
    pub fn parse(word: &str) -> Option<ArchiveFormat> {
        match word.to_ascii_lowercase().as_str() {
            "concat" => Some(ArchiveFormat::Concat),
            "tar" => Some(ArchiveFormat::Tar),
            "targz" => Some(ArchiveFormat::TarGz),
            "zip" => Some(ArchiveFormat::Zip),
            _ => None,
        }
    }

    /// The word as it stands in queries and Etags.
    pub fn word(self) -> &'static str {
        match self {
            ArchiveFormat::Concat => "concat",
            ArchiveFormat::Tar => "tar",
            ArchiveFormat::TarGz => "targz",
            ArchiveFormat::Zip => "zip",
        }
    }
}

/// What answers the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkyAnswer<'m> {
    File(SkyFile<'m>),
    /// 308 to the same skylink with a slash.
    RedirectToSlash,
    Archive(SkyArchive<'m>),
    /// 404, and the metadata has no page for it.
    NotFound,
}

/// One stretch of the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkyFile<'m> {
    /// Path of the file inside the skyfile, with its leading slash; `/` for a skyfile without subfiles.
    pub path: Cow<'m, str>,
    /// Last element of the path, for Content-Disposition.
    pub name: &'m str,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    /// As the uploader stated it; None leaves it to `site::content_type`.
    pub content_type: Option<&'m str>,
    /// 200, or 404 for an error page.
    pub status: u16,
}

/// Several files to be sent as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkyArchive<'m> {
    /// The path asked for; archives of a directory carry only what lies below it.
    pub path: String,
    /// Name of the archive without its extension: the last element of the path, or the skyfile's name.
    pub name: String,
    pub format: ArchiveFormat,
    /// In the order of their offsets.
    pub files: Vec<ArchiveFile<'m>>,
}

/// One member of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveFile<'m> {
    /// Path inside the skyfile, without a leading slash.
    pub path: &'m str,
    /// Unix mode; 0 when the uploader gave none.
    pub mode: u32,
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

impl<'m> ArchiveFile<'m> {
    fn new((path, subfile): (&'m String, &'m Subfile)) -> ArchiveFile<'m> {
        let Subfile { mode, offset_bytes, len_bytes, .. } = *subfile;
        ArchiveFile { path, mode, offset_bytes, len_bytes }
    }
}

/// The metadata promises bytes that the skyfile does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the skyfile's metadata places {path:?} at {offset_bytes}+{len_bytes}, outside its {size_bytes} bytes of content")]
pub struct OutsideContent {
    pub path: String,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    pub size_bytes: u64,
}

/// Finds what answers a request. `size_bytes` is the length of the content by the layout, which is true also where old
/// metadata says 0. What is answered lies within the content.
pub fn resolve<'m>(metadata: &'m Metadata, size_bytes: u64, ask: &SkyAsk<'_>) -> Result<SkyAnswer<'m>, OutsideContent> {
    let asked = if ask.path.starts_with('/') { Cow::Borrowed(ask.path) } else { Cow::Owned(format!("/{}", ask.path)) };
    let path = match ask.format {
        Some(_) => asked.clone(),
        None => served_path(metadata, &asked),
    };
    let found = subfile(metadata, &path);
    match what_it_leads_to(metadata, found.is_some(), &path, &asked, ask) {
        LeadsTo::Slash => return Ok(SkyAnswer::RedirectToSlash),
        LeadsTo::File | LeadsTo::Index => match (found, ask.format) {
            (Some(_), Some(format)) => return archive(metadata, size_bytes, &path, format),
            (Some((key, subfile)), None) => return file(key, subfile, 200, size_bytes).map(SkyAnswer::File),
            (None, _) => return Ok(SkyAnswer::File(whole(metadata, size_bytes))),
        },
        LeadsTo::Contents | LeadsTo::Missing => {}
    }
    match archive(metadata, size_bytes, &path, ask.format.unwrap_or(ArchiveFormat::Zip))? {
        SkyAnswer::NotFound => match error_page(metadata, 404) {
            Some((key, subfile)) => file(key, subfile, 404, size_bytes).map(SkyAnswer::File),
            None => Ok(SkyAnswer::NotFound),
        },
        found => Ok(found),
    }
}

/// By the table that trees have, too. `path` is what is served for the path `asked`. Of what is no file it is not said here
/// whether anything lies below it: that shows when it is gathered.
fn what_it_leads_to(metadata: &Metadata, is_file: bool, path: &str, asked: &str, ask: &SkyAsk<'_>) -> LeadsTo {
    let depth = if asked == "/" { Depth::Root } else { Depth::Below };
    // A skyfile without a folder is a file at its root.
    let only_file = path == "/" && ask.format.is_none() && !metadata.is_directory();
    let lies = match is_file {
        true if path != asked && (depth == Depth::Below || metadata.subfiles.len() > 1) => Lies::FolderWithIndex,
        true => Lies::File,
        false if only_file => Lies::File,
        false => Lies::Folder,
    };
    // Only the root has a slash that the URL may lack; below it Skynet looked at none.
    let slash = match ask.root_slash {
        RootSlash::Missing if depth == Depth::Root => TrailingSlash::No,
        RootSlash::Missing | RootSlash::Fine if depth == Depth::Root => TrailingSlash::Yes,
        RootSlash::Missing | RootSlash::Fine => TrailingSlash::No,
    };
    leads_to(Habit::Skyfile, lies, depth, slash)
}

/// Rules 1 to 3: the path that is served for the path that was asked for. Both begin with a slash.
pub fn served_path<'p>(metadata: &Metadata, path: &'p str) -> Cow<'p, str> {
    let only = metadata.subfiles.keys().next().filter(|_| metadata.subfiles.len() == 1);
    if let Some(name) = only.filter(|_| path == "/" && !metadata.disable_default_path) {
        return format!("/{name}").into();
    }
    if !metadata.try_files.is_empty() {
        return tried_path(metadata, path);
    }
    if path == "/" && !metadata.disable_default_path {
        let default = match metadata.default_path.as_str() {
            "" => "index.html",
            named => named.strip_prefix('/').unwrap_or(named),
        };
        if metadata.subfiles.contains_key(default) {
            return format!("/{default}").into();
        }
    }
    path.into()
}

fn tried_path<'p>(metadata: &Metadata, path: &'p str) -> Cow<'p, str> {
    let trimmed = path.trim_matches('/');
    // An existing file asked for with a slash behind it is left alone, and is then not found.
    if metadata.subfiles.contains_key(trimmed) {
        return path.into();
    }
    for entry in &metadata.try_files {
        let candidate = match entry.strip_prefix('/') {
            Some(absolute) => Cow::Borrowed(absolute),
            None if trimmed.is_empty() => Cow::Borrowed(entry.as_str()),
            None => Cow::Owned(format!("{trimmed}/{entry}")),
        };
        if metadata.subfiles.contains_key(candidate.as_ref()) {
            return format!("/{candidate}").into();
        }
    }
    path.into()
}

/// The page that the metadata has for a status, if it exists.
pub fn error_page(metadata: &Metadata, status: u16) -> Option<(&str, &Subfile)> {
    subfile(metadata, metadata.error_pages.get(&i64::from(status))?)
}

fn subfile<'m>(metadata: &'m Metadata, path: &str) -> Option<(&'m str, &'m Subfile)> {
    let (key, subfile) = metadata.subfiles.get_key_value(path.strip_prefix('/')?)?;
    Some((key.as_str(), subfile))
}

fn file<'m>(key: &'m str, subfile: &'m Subfile, status: u16, size_bytes: u64) -> Result<SkyFile<'m>, OutsideContent> {
    check_inside(key, subfile.offset_bytes, subfile.len_bytes, size_bytes)?;
    Ok(SkyFile {
        path: format!("/{key}").into(),
        name: last_element(key),
        offset_bytes: subfile.offset_bytes,
        len_bytes: subfile.len_bytes,
        content_type: stated_type(subfile),
        status,
    })
}

/// The content as one file, for skyfiles without subfiles and for a single one whose default path is disabled.
fn whole(metadata: &Metadata, size_bytes: u64) -> SkyFile<'_> {
    SkyFile {
        path: "/".into(),
        name: last_element(&metadata.filename),
        offset_bytes: 0,
        len_bytes: size_bytes,
        content_type: metadata.subfiles.values().next().and_then(stated_type),
        status: 200,
    }
}

/// Everything at or below `path`, or NotFound when there is nothing.
fn archive<'m>(
    metadata: &'m Metadata,
    size_bytes: u64,
    path: &str,
    format: ArchiveFormat,
) -> Result<SkyAnswer<'m>, OutsideContent> {
    let inside = path.strip_prefix('/').unwrap_or(path);
    let mut files: Vec<ArchiveFile<'m>> = match metadata.subfiles.get_key_value(inside) {
        Some(entry) => vec![ArchiveFile::new(entry)],
        None if metadata.subfiles.is_empty() && path == "/" => {
            let Metadata { ref filename, mode, .. } = *metadata;
            vec![ArchiveFile { path: filename, mode, offset_bytes: 0, len_bytes: size_bytes }]
        }
        None => below(metadata, inside).collect(),
    };
    if files.is_empty() {
        return Ok(SkyAnswer::NotFound);
    }
    for file in &files {
        check_inside(file.path, file.offset_bytes, file.len_bytes, size_bytes)?;
    }
    files.sort_by_key(|file| (file.offset_bytes, file.path));
    let name = match last_element(inside.trim_end_matches('/')) {
        "" => metadata.filename.as_str(),
        element => element,
    };
    Ok(SkyAnswer::Archive(SkyArchive { path: path.to_owned(), name: name.to_owned(), format, files }))
}

/// The subfiles in the directory `inside`, at any depth. The keys are sorted, so those with one prefix stand together.
fn below<'m>(metadata: &'m Metadata, inside: &str) -> impl Iterator<Item = ArchiveFile<'m>> {
    let prefix = match inside {
        "" => String::new(),
        slashed if slashed.ends_with('/') => slashed.to_owned(),
        bare => format!("{bare}/"),
    };
    metadata
        .subfiles
        .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(&prefix))
        .map(ArchiveFile::new)
}

fn stated_type(subfile: &Subfile) -> Option<&str> {
    Some(subfile.content_type.as_str()).filter(|kind| !kind.is_empty())
}

fn last_element(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn check_inside(path: &str, offset_bytes: u64, len_bytes: u64, size_bytes: u64) -> Result<(), OutsideContent> {
    match offset_bytes.checked_add(len_bytes) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(OutsideContent { path: path.to_owned(), offset_bytes, len_bytes, size_bytes }),
    }
}

/// The Etag of an answer, without quotes: BLAKE2b-256 of skylink, path, format word and the constant "1", each with its
/// length as u64 before it. `skylink` is the v1 link in base64url, `path` what is served, `format` empty when none was asked.
pub fn etag(skylink: &str, path: &str, format: &str) -> String {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    for part in [skylink, path, format, "1"] {
        state.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    state.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn vectors(file: &str) -> Option<Value> {
        let Ok(shared) = std::env::var("SKYGATE_SHARED") else {
            println!("SKIPPED: SKYGATE_SHARED is not set, no vectors to compare with");
            return None;
        };
        let path = PathBuf::from(shared).join("skynet-vectors").join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Some(serde_json::from_str(&text).unwrap())
    }

    fn metadata_of(case: &Value) -> Metadata {
        Metadata::decode(case["metadata_json"].as_str().unwrap().as_bytes()).unwrap()
    }

    /// Content size that the vectors' metadata fits into.
    const SIZE: u64 = 16;

    fn get<'m>(metadata: &'m Metadata, path: &str, root_slash: RootSlash) -> SkyAnswer<'m> {
        resolve(metadata, SIZE, &SkyAsk { path, format: None, root_slash }).unwrap()
    }

    #[test]
    fn path_vectors() {
        let Some(file) = vectors("path_resolution.json") else { return };
        let cases = file["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 15);
        for case in cases {
            let metadata = metadata_of(case);
            assert_eq!(metadata.is_directory(), case["isdirectory"], "{}", case["name"]);
            let rows = case["rows"].as_array().unwrap();
            assert_eq!(rows.len(), 13);
            for row in rows {
                check_row(&metadata, row, &format!("{}: {}", case["name"], row["path"]));
            }
        }
    }

    fn check_row(metadata: &Metadata, row: &Value, what: &str) {
        let path = row["path"].as_str().unwrap();
        assert_eq!(served_path(metadata, path), row["serve_path"].as_str().unwrap(), "{what}");
        let redirected = get(metadata, path, RootSlash::Missing) == SkyAnswer::RedirectToSlash;
        assert_eq!(redirected, row["redirect_308_if_no_trailing_slash"], "{what}");

        let found = row["found"].as_bool();
        match get(metadata, path, RootSlash::Fine) {
            SkyAnswer::File(file) if found.is_some() => {
                assert_eq!((found, row["is_file"].as_bool()), (Some(true), Some(true)), "{what}");
                assert_eq!(file.path, row["filename"].as_str().unwrap(), "{what}");
                assert_eq!(file.offset_bytes, row["offset"], "{what}");
                assert_eq!(file.len_bytes, row["size"], "{what}");
                assert_eq!(file.content_type.unwrap_or(""), row["content_type"], "{what}");
                assert_eq!(file.status, 200, "{what}");
            }
            SkyAnswer::Archive(archive) if found.is_some() => {
                assert_eq!((found, row["is_file"].as_bool()), (Some(true), Some(false)), "{what}");
                assert_eq!(archive.path, row["filename"].as_str().unwrap(), "{what}");
                assert_eq!(archive.files[0].offset_bytes, row["offset"], "{what}");
                let size: u64 = archive.files.iter().map(|file| file.len_bytes).sum();
                assert_eq!(size, row["size"], "{what}");
                let only = (archive.files.len() == 1).then(|| &metadata.subfiles[archive.files[0].path].content_type);
                assert_eq!(only.map_or("", String::as_str), row["content_type"], "{what}");
            }
            // `/` that stays `/`: everything, as an archive or, of a single file, as it is.
            SkyAnswer::Archive(archive) => {
                assert!(metadata.is_directory(), "{what}");
                assert_eq!(archive.files.len(), metadata.subfiles.len(), "{what}");
            }
            SkyAnswer::File(file) => {
                assert!(!metadata.is_directory(), "{what}");
                assert_eq!((file.offset_bytes, file.len_bytes), (0, SIZE), "{what}");
            }
            SkyAnswer::NotFound => assert_eq!(found, Some(false), "{what}"),
            SkyAnswer::RedirectToSlash => panic!("{what}: a redirect where none was allowed"),
        }
    }

    #[test]
    fn validation_vectors() {
        let Some(file) = vectors("path_resolution.json") else { return };
        let cases = file["metadata_validation"].as_array().unwrap();
        assert_eq!(cases.len(), 25);
        for case in cases {
            let result = validate(&metadata_of(case));
            assert_eq!(result.is_ok(), case["valid"], "{}", case["name"]);
            if let Err(error) = result {
                assert_eq!(error.to_string(), case["error"].as_str().unwrap(), "{}", case["name"]);
            }
        }
    }

    #[test]
    fn etag_vectors() {
        let Some(file) = vectors("misc.json") else { return };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for case in file["etag"].as_array().unwrap() {
            let tag = etag(&text(&case["skylink_v1"]), &text(&case["path"]), &text(&case["format"]));
            assert_eq!(tag, text(&case["etag"]));
        }
        let Some(file) = vectors("basesector.json") else { return };
        for case in file["small"].as_array().unwrap() {
            assert_eq!(etag(&text(&case["skylink"]), "/", ""), text(&case["etag_root_path"]));
        }
    }

    const SITE: &str = r#"{"filename":"site","length":12,"subfiles":{
        "404.html":{"filename":"404.html","contenttype":"text/html","offset":8,"len":4},
        "a/b<>.txt":{"filename":"a/b<>.txt","offset":4,"len":4},
        "a.txt":{"filename":"a.txt","offset":4},
        "index.html":{"filename":"index.html","contenttype":"text/html","len":4}},
        "tryfiles":["good.html"],"errorpages":{"404":"/404.html","403":"/gone.html"}}"#;

    #[test]
    fn error_pages() {
        let metadata = Metadata::decode(SITE.as_bytes()).unwrap();
        for path in ["/nope", "nope/", "/a/b", "/index.html/", "/../index.html", "//", "/a//"] {
            let SkyAnswer::File(page) = get(&metadata, path, RootSlash::Missing) else { panic!("{path}: no page") };
            assert_eq!((page.status, page.name, page.offset_bytes, page.len_bytes), (404, "404.html", 8, 4), "{path}");
            assert_eq!(page.content_type, Some("text/html"), "{path}");
        }
        // A page that is not there is as good as none.
        assert_eq!(error_page(&metadata, 403), None);
        assert_eq!(error_page(&metadata, 500), None);
    }

    #[test]
    fn formats_skip_tryfiles_and_take_any_path() {
        fn check(path: &str, expect: Option<(&str, &[&str])>) {
            let metadata = Metadata::decode(SITE.replace("\"404\":", "\"410\":").as_bytes()).unwrap();
            let ask = SkyAsk { path, format: Some(ArchiveFormat::Tar), root_slash: RootSlash::Fine };
            let found = match resolve(&metadata, 12, &ask).unwrap() {
                SkyAnswer::Archive(archive) => {
                    assert_eq!(archive.format, ArchiveFormat::Tar);
                    let files: Vec<String> = archive.files.iter().map(|file| file.path.to_owned()).collect();
                    Some((archive.name, files))
                }
                SkyAnswer::NotFound => None,
                other => panic!("{path}: {other:?}"),
            };
            let expect = expect.map(|(name, files)| (name.to_owned(), files.iter().map(|f| f.to_string()).collect()));
            assert_eq!(found, expect, "{path}");
        }
        check("/", Some(("site", &["index.html", "a.txt", "a/b<>.txt", "404.html"])));
        check("", Some(("site", &["index.html", "a.txt", "a/b<>.txt", "404.html"])));
        check("/a", Some(("a", &["a/b<>.txt"])));
        check("/a/", Some(("a", &["a/b<>.txt"])));
        check("/a.txt", Some(("a.txt", &["a.txt"])));
        check("/nope", None);

        assert_eq!(ArchiveFormat::parse("TarGz"), Some(ArchiveFormat::TarGz));
        assert_eq!(ArchiveFormat::parse("rar"), None);
        for word in ["concat", "tar", "targz", "zip"] {
            assert_eq!(ArchiveFormat::parse(word).unwrap().word(), word);
        }
    }

    #[test]
    fn skyfiles_without_subfiles() {
        // Length 0 stands in old metadata; the layout is right.
        let metadata = Metadata::decode(br#"{"filename":"d/raw.bin","length":0}"#).unwrap();
        for root_slash in [RootSlash::Fine, RootSlash::Missing] {
            let SkyAnswer::File(file) = get(&metadata, "/", root_slash) else { panic!("not a file") };
            assert_eq!((file.name, file.offset_bytes, file.len_bytes), ("raw.bin", 0, SIZE));
            assert_eq!((file.content_type, file.status), (None, 200));
        }
        assert_eq!(get(&metadata, "/x", RootSlash::Fine), SkyAnswer::NotFound);
        let ask = SkyAsk { path: "/", format: Some(ArchiveFormat::Zip), root_slash: RootSlash::Fine };
        let SkyAnswer::Archive(archive) = resolve(&metadata, SIZE, &ask).unwrap() else { panic!("not an archive") };
        assert_eq!(archive.files, [ArchiveFile { path: "d/raw.bin", mode: 0, offset_bytes: 0, len_bytes: SIZE }]);
    }

    #[test]
    fn metadata_that_promises_too_much() {
        for (offset, len) in [(0, 17), (16, 1), (u64::MAX, 1), (1, u64::MAX), (17, 0)] {
            let subfile = Subfile { filename: "x".into(), offset_bytes: offset, len_bytes: len, ..Subfile::default() };
            let metadata = Metadata { subfiles: [("d/x".into(), subfile)].into(), ..Metadata::default() };
            for path in ["/", "/d/x", "/d", "/d/"] {
                let ask = SkyAsk { path, format: None, root_slash: RootSlash::Fine };
                let error = resolve(&metadata, SIZE, &ask).unwrap_err();
                assert_eq!((error.offset_bytes, error.len_bytes), (offset, len), "{path}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_path_and_no_metadata_panics(
            path in "[/a-c.]{0,8}",
            keys in proptest::collection::vec("[/a-c.]{0,5}", 0..5),
            tries in proptest::collection::vec("[/a-c.]{0,4}", 0..3),
            default_path in "[/a-c.]{0,4}",
            disable_default_path: bool,
            offset in prop_oneof![0u64..20, any::<u64>()],
            zip: bool,
        ) {
            let subfile = Subfile { offset_bytes: offset, len_bytes: 1, ..Subfile::default() };
            let subfiles = keys.iter().map(|key| (key.clone(), subfile.clone())).collect();
            let error_pages = keys.first().map(|key| (404, format!("/{key}"))).into_iter().collect();
            let metadata = Metadata {
                subfiles, try_files: tries, default_path, disable_default_path, error_pages, ..Metadata::default()
            };
            let format = zip.then_some(ArchiveFormat::Zip);
            let ask = SkyAsk { path: &path, format, root_slash: RootSlash::Missing };
            if let Ok(SkyAnswer::File(file)) = resolve(&metadata, SIZE, &ask) {
                prop_assert!(file.offset_bytes + file.len_bytes <= SIZE);
            }
            let _ = validate(&metadata);
        }
    }
}
