//! `skygate get`: a file to stdout or into a file, a folder into a new folder.
//!
//! What comes back is the stream that `add` sends (`docs/formats.md` 9). It is written beside its place and moved there
//! when it is whole, so that a broken answer leaves nothing at the target.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use reqwest::{Method, Response};
use tokio::sync::mpsc;

use super::api::{Api, encode};
use super::frames::{Entry, EntryKind, Frame, FrameReader, Head, RootKind, VERSION};
use super::get_tree::TreeWriter;
use super::output::{bytes, counted, line, plain, stdout_error};
use super::{CliError, Global};

/// Longest path of an entry: what Linux takes in one piece.
pub const PATH_BYTES_MAX: usize = 4096;
/// Parts between the socket and the disk.
const PARTS_WAITING_MAX: usize = 16;
/// Names of what is not whole yet.
const TEMP_PREFIX: &str = ".skygate-get-";

const EXAMPLES: &str = "\
Examples:
  skygate get /ipfs/bafy…/readme.txt              a file, to stdout
  skygate get /ipfs/bafy…/film.mp4 -o film.mp4    a file; an old film.mp4 is replaced when the new one is whole
  skygate get ipfs://bafy…/pictures -o pictures   a folder, which must not exist yet, or be empty
  skygate get sia://XABv… -o site                 the same by skylink

Symlinks are made as they are stored, and never followed.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct GetArgs {
    /// CID, skylink, or /ipfs/…, /ipns/…, ipfs://…, sia://…, each with a path if wanted
    #[arg(value_name = "ADDRESS[/path]")]
    address: String,
    /// File or folder to write
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
}

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    files: u64,
    size_bytes: u64,
}

pub async fn run(global: &Global, args: GetArgs) -> Result<(), CliError> {
    // Here a mistake costs nothing; the gateway would say the same.
    crate::address::Address::parse(&args.address)
        .map_err(|error| CliError::Usage(format!("{:?} is no address: {error}", plain(&args.address))))?;
    let api = Api::new(global)?;
    let path = format!("/api/v1/tree?address={}", encode(&args.address));
    let response = api.send(api.request(Method::GET, &path)).await?;
    let (parts, waiting) = mpsc::channel(PARTS_WAITING_MAX);
    let writer = {
        let output = args.output.clone();
        tokio::task::spawn_blocking(move || write_all(FrameReader::new(waiting), output.as_deref()))
    };
    feed(response, parts).await;
    let got = writer.await.map_err(|error| CliError::failed(format!("the writing thread ended: {error}")))??;
    match &args.output {
        Some(output) if global.json => {
            let path = output.display().to_string();
            line(&serde_json::json!({ "path": path, "files": got.files, "size_bytes": got.size_bytes }).to_string())
        }
        Some(output) => {
            eprintln!("got {}, {}: {}", counted(got.files, "file"), bytes(got.size_bytes), output.display());
            Ok(())
        }
        None => Ok(()),
    }
}

/// Hands the answer to the writer, until it ends, breaks, or Ctrl-C asks for a tidy end.
async fn feed(response: Response, parts: mpsc::Sender<Result<Bytes, String>>) {
    let mut stream = response.bytes_stream();
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        let part = tokio::select! {
            part = stream.next() => part.map(|part| part.map_err(|error| format!("the answer broke off ({error}): try again"))),
            _ = &mut interrupt => Some(Err("interrupted: nothing was written".to_owned())),
        };
        let Some(part) = part else { return };
        let last = part.is_err();
        // A writer that has gone says why itself.
        if parts.send(part).await.is_err() || last {
            return;
        }
    }
}

fn write_all(mut reader: FrameReader, output: Option<&Path>) -> Result<Got, CliError> {
    let head: Head = reader.frame().map_err(CliError::Failed)?;
    if head.v != VERSION {
        return Err(CliError::failed(format!(
            "the gateway answers in version {}, this skygate reads version {VERSION}: use the newer one",
            head.v
        )));
    }
    match (head.root, output) {
        (RootKind::File, None) => {
            let mut out = std::io::stdout().lock();
            let got = single_file(reader, |part| out.write_all(part).map_err(|error| stdout_error(&error)))?;
            out.flush().map_err(|error| stdout_error(&error))?;
            Ok(got)
        }
        (RootKind::File, Some(path)) => file_at(reader, path),
        (RootKind::Dir, None) => Err(CliError::Usage("this is a folder: say where to put it with -o DIR".to_owned())),
        (RootKind::Dir, Some(path)) => folder_at(reader, path),
    }
}

/// The one file of a stream, part by part, until the stream's end is proved.
fn single_file(mut reader: FrameReader, mut write: impl FnMut(&[u8]) -> Result<(), CliError>) -> Result<Got, CliError> {
    let size = match reader.frame().map_err(CliError::Failed)? {
        Frame::Entry(Entry { kind: EntryKind::File { size }, .. }) => size,
        Frame::Entry(Entry { kind: EntryKind::Symlink { target }, .. }) => {
            return Err(CliError::failed(format!("this is a symlink to {:?}: get what it points to", plain(&target))));
        }
        Frame::Entry(_) | Frame::End(_) => return Err(CliError::failed("the answer should have one file, and has none")),
    };
    copy(&mut reader, size, &mut write)?;
    match reader.frame().map_err(CliError::Failed)? {
        Frame::End(end) if end.end && end.entries == 1 => {}
        _ => return Err(CliError::failed("the answer should have one file, and has more")),
    }
    reader.end().map_err(CliError::Failed)?;
    Ok(Got { files: 1, size_bytes: size })
}

fn copy(reader: &mut FrameReader, size: u64, write: &mut impl FnMut(&[u8]) -> Result<(), CliError>) -> Result<(), CliError> {
    let mut left = size;
    while left > 0 {
        let part = reader.some(left).map_err(CliError::Failed)?;
        write(&part)?;
        left -= part.len() as u64;
    }
    Ok(())
}

fn file_at(reader: FrameReader, path: &Path) -> Result<Got, CliError> {
    let fault = |error: std::io::Error| cannot_write(path, &error);
    if path.is_dir() {
        return Err(CliError::Usage(format!("{} is a folder, and this is a file: name the file with -o FILE", path.display())));
    }
    // Beside the target, so that the rename stays on one file system; the rename replaces a symlink, it does not follow it.
    let temp = tempfile::Builder::new().prefix(TEMP_PREFIX).permissions(Permissions::from_mode(0o666)).tempfile_in(parent(path));
    let mut temp = temp.map_err(fault)?;
    let got = single_file(reader, |part| temp.write_all(part).map_err(fault))?;
    temp.persist(path).map_err(|error| fault(error.error))?;
    Ok(got)
}

fn folder_at(mut reader: FrameReader, path: &Path) -> Result<Got, CliError> {
    let fault = |error: std::io::Error| cannot_write(path, &error);
    check_free(path)?;
    let beside = tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir_in(parent(path)).map_err(fault)?;
    let tree = beside.path().join("tree");
    std::fs::create_dir(&tree).map_err(fault)?;
    let got = write_tree(&mut reader, &tree)?;
    reader.end().map_err(CliError::Failed)?;
    // Takes the place of nothing, or of an empty folder; anything that came there meanwhile makes it fail.
    std::fs::rename(&tree, path).map_err(fault)?;
    Ok(got)
}

/// The entries of a stream, with its last frame.
fn write_tree(reader: &mut FrameReader, root: &Path) -> Result<Got, CliError> {
    let mut tree = TreeWriter::open(root).map_err(CliError::Failed)?;
    let (mut got, mut entries) = (Got::default(), 0);
    loop {
        let Entry { path, kind } = match reader.frame().map_err(CliError::Failed)? {
            Frame::Entry(entry) => entry,
            Frame::End(end) if end.end && end.entries == entries => return Ok(got),
            Frame::End(end) => {
                return Err(CliError::failed(format!("the answer should have {} entries, and has {entries}", end.entries)));
            }
        };
        entries += 1;
        match kind {
            EntryKind::Dir => tree.folder(&path).map_err(CliError::Failed)?,
            EntryKind::Symlink { target } => tree.symlink(&path, &target).map_err(CliError::Failed)?,
            EntryKind::File { size } => {
                let mut file: File = tree.file(&path).map_err(CliError::Failed)?;
                copy(reader, size, &mut |part| file.write_all(part).map_err(|error| cannot_write(Path::new(&path), &error)))?;
                got.files += 1;
                got.size_bytes += size;
            }
        }
    }
}

/// The target may not exist yet, or be an empty folder.
fn check_free(path: &Path) -> Result<(), CliError> {
    let taken = |what: &str| {
        Err(CliError::failed(format!("{} {what}: name a folder that does not exist yet, or is empty", path.display())))
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(cannot_write(path, &error)),
        Ok(meta) if !meta.is_dir() => taken("is no folder"),
        Ok(_) => match std::fs::read_dir(path).map_err(|error| cannot_write(path, &error))?.next() {
            Some(_) => taken("is not empty"),
            None => Ok(()),
        },
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed(format!("{} cannot be written: {error}", plain(&path.display().to_string())))
}

#[cfg(test)]
mod tests {
    use super::super::frames::{End, encode_frame};
    use super::*;

    /// A stream as bytes: head, then (path, content or symlink target or nothing), then the end.
    fn stream(root: RootKind, entries: &[(&str, EntryKind, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_frame(&Head { v: 1, root, name: "n".into(), profile: String::new() }, &mut out).expect("short");
        for (path, kind, content) in entries {
            let kind = match kind {
                EntryKind::File { .. } => EntryKind::File { size: content.len() as u64 },
                EntryKind::Symlink { target } => EntryKind::Symlink { target: target.clone() },
                EntryKind::Dir => EntryKind::Dir,
            };
            encode_frame(&Entry { path: (*path).into(), kind }, &mut out).expect("short");
            out.extend_from_slice(content);
        }
        encode_frame(&End { end: true, entries: entries.len() as u64 }, &mut out).expect("short");
        out
    }

    const FILE: EntryKind = EntryKind::File { size: 0 };

    /// Writes a stream that comes in parts of seven bytes.
    fn write(stream: &[u8], output: &Path) -> Result<Got, CliError> {
        let (parts, waiting) = mpsc::channel(stream.len() / 7 + 1);
        for part in stream.chunks(7) {
            parts.try_send(Ok(Bytes::copy_from_slice(part))).expect("there is room");
        }
        drop(parts);
        write_all(FrameReader::new(waiting), Some(output))
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("read")
            .map(|entry| entry.expect("read").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_written_whole_or_not_at_all() {
        let place = tempfile::tempdir().expect("a folder");
        let target = place.path().join("site");
        let link = EntryKind::Symlink { target: "../a".into() };
        let whole = stream(
            RootKind::Dir,
            &[("a", FILE, b"aaa"), ("d/empty", EntryKind::Dir, b""), ("d/f", FILE, b"ff"), ("d/l", link, b"")],
        );
        for cut in 0..whole.len() {
            write(&whole[..cut], &target).expect_err("cut");
            assert!(names(place.path()).is_empty(), "a stream cut at {cut} leaves something");
        }
        let longer = [&whole[..], b"x"].concat();
        write(&longer, &target).expect_err("bytes after the end");
        assert!(names(place.path()).is_empty());
        std::fs::create_dir(&target).expect("an empty folder may be there");
        assert_eq!(write(&whole, &target).expect("whole"), Got { files: 2, size_bytes: 5 });
        assert_eq!(names(place.path()), ["site"]);
        assert_eq!(names(&target.join("d")), ["empty", "f", "l"]);
        assert_eq!(std::fs::read_link(target.join("d/l")).expect("a symlink"), Path::new("../a"));
        assert!(write(&whole, &target).expect_err("not empty").to_string().contains("not empty"));
    }

    #[test]
    fn a_stream_that_leads_out_leaves_nothing() {
        let place = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(place.path().join("in")).expect("made");
        let target = place.path().join("in/site");
        let up = EntryKind::Symlink { target: "..".into() };
        for bad in [stream(RootKind::Dir, &[("../x", FILE, b"x")]), stream(RootKind::Dir, &[("up", up, b""), ("up/x", FILE, b"x")])]
        {
            write(&bad, &target).expect_err("leads out");
            assert!(names(&place.path().join("in")).is_empty());
            assert_eq!(names(place.path()), ["in"]);
        }
    }

    #[test]
    fn the_target_is_no_symlink() {
        let place = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(place.path().join("real")).expect("made");
        std::os::unix::fs::symlink("real", place.path().join("link")).expect("made");
        let whole = stream(RootKind::Dir, &[("a", FILE, b"aaa")]);
        write(&whole, &place.path().join("link")).expect_err("a symlink");
        assert!(names(&place.path().join("real")).is_empty());
    }

    #[test]
    fn a_file_replaces_a_symlink_and_leaves_what_it_points_to() {
        let place = tempfile::tempdir().expect("a folder");
        std::fs::write(place.path().join("old"), "old").expect("written");
        std::os::unix::fs::symlink("old", place.path().join("out")).expect("made");
        let whole = stream(RootKind::File, &[("n", FILE, b"new")]);
        for cut in 0..whole.len() {
            write(&whole[..cut], &place.path().join("out")).expect_err("cut");
        }
        assert_eq!(names(place.path()), ["old", "out"]);
        write(&whole, &place.path().join("out")).expect("whole");
        assert_eq!(std::fs::read(place.path().join("out")).expect("read"), b"new");
        assert_eq!(std::fs::read(place.path().join("old")).expect("read"), b"old");
        write(&whole, place.path()).expect_err("a folder is there");
        assert_eq!(names(place.path()), ["old", "out"]);
    }
}
