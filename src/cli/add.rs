//! `skygate add`: a file or a folder, as one stream to a running gateway.

use std::fs::{File, Metadata, OpenOptions};
use std::io::IsTerminal;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use futures::stream;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::{Body, Method};
use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use serde_json::Value;
use tokio::sync::mpsc;

use super::api::{Api, DEFAULT_URL};
use super::frames::{End, Entry, EntryKind, FRAME_JSON_BYTES_MAX, Head, RootKind, VERSION, encode_frame};
use super::output::{bytes, counted, line, plain};
use super::walk::{Found, FoundKind, Hidden, Skipped, Walk, changed, unreadable};
use super::{CliError, Global};

/// One read of a file and one part of the body: large enough that system calls do not count.
pub const BLOCK_BYTES: usize = 1 << 20;
/// Parts between the reading thread and the socket: the disk may be two ahead, memory stays at a few MiB.
pub const BLOCKS_WAITING_MAX: usize = 2;
/// A part with less room than this is sent rather than filled by small reads.
const ROOM_BYTES_MIN: usize = 64 << 10;
/// Longest idempotency key (`docs/formats.md` 9).
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 128;
/// Where `serve` has its public listener unless told otherwise.
const DEFAULT_PUBLIC_URL: &str = "http://127.0.0.1:8080";
const ADD_TYPE: &str = "application/vnd.skygate.add";

const EXAMPLES: &str = "\
Examples:
  skygate add ./site                       a folder, with its index.html as the first page
  skygate add film.mp4 --name holiday      one file
  skygate add ./site --hidden              names that begin with a dot, too (.well-known is always kept)
  skygate add ./site --json | tail -1      {\"cid\":…,\"skylink\":…,\"size_bytes\":…,\"files\":…,\"durability\":…}

Symlinks are kept as symlinks; sockets, devices and pipes are left out. A file that changes while it is read fails the
whole add: either everything is stored, or nothing.
Durability: `acknowledged` survives a crash of the gateway and some lost hosts, `complete` as many as it ever will;
pieces that are missing between the two are written in the background.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AddArgs {
    /// File or folder
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// How the tree is built, which decides the CID
    #[arg(long, value_name = "NAME", default_value = "unixfs-v1-2025", value_parser = ["unixfs-v1-2025", "unixfs-v0-2015", "cid-v1"])]
    profile: String,
    /// Add names that begin with a dot, too
    #[arg(long)]
    hidden: bool,
    /// Name of the pin [default: the name of the file or folder]
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// The same key again gets the first answer, and nothing is stored twice [default: random]
    #[arg(long, value_name = "K")]
    idempotency_key: Option<String>,
}

/// What is added.
#[derive(Clone, Debug)]
struct Source {
    place: PathBuf,
    root: RootKind,
    /// Of the file itself, as it stands in the tree.
    file_name: String,
    name: String,
    profile: String,
    hidden: Hidden,
}

pub async fn run(global: &Global, args: AddArgs) -> Result<(), CliError> {
    let key = args.idempotency_key.clone().unwrap_or_else(|| hex::encode(rand::random::<[u8; 16]>()));
    check_key(&key)?;
    let source = Source::look_at(args)?;
    let api = Api::new(global)?;
    let bar = progress_bar(&source, global.json);
    let sent = send(&api, &source, &key, bar.clone()).await;
    bar.finish_and_clear();
    let (answer, skipped) = sent?;
    report_skipped(skipped);
    if global.json {
        return line(&answer.to_string());
    }
    report(&api, global, &source, &answer).await
}

/// That an idempotency key can be sent.
pub fn check_key(key: &str) -> Result<(), CliError> {
    match (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(CliError::Usage(format!("--idempotency-key: write 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable characters"))),
    }
}

impl Source {
    fn look_at(args: AddArgs) -> Result<Source, CliError> {
        let shown = args.path.display();
        // The path itself may be a symlink: who names it means what it points to. Below it none is followed.
        let place = std::fs::canonicalize(&args.path).map_err(|error| CliError::failed(unreadable(&args.path, &error)))?;
        let meta = std::fs::metadata(&place).map_err(|error| CliError::failed(unreadable(&args.path, &error)))?;
        let root = match (meta.is_file(), meta.is_dir()) {
            (true, _) => RootKind::File,
            (_, true) => RootKind::Dir,
            _ => return Err(CliError::failed(format!("{shown} is neither a file nor a folder: only these can be added"))),
        };
        // As it was named, else (`.`, `..`) as it is called on disk.
        let file_name = args.path.file_name().or(place.file_name()).unwrap_or("root".as_ref());
        let file_name = file_name
            .to_str()
            .ok_or_else(|| CliError::failed(format!("{shown} has a name that is not UTF-8: rename it")))?
            .to_owned();
        let name = args.name.unwrap_or_else(|| file_name.clone());
        let hidden = if args.hidden { Hidden::Kept } else { Hidden::Skipped };
        Ok(Source { place, root, file_name, name, profile: args.profile, hidden })
    }

    fn found(&self) -> Found {
        Found { path: self.file_name.clone(), place: self.place.clone(), kind: FoundKind::File }
    }
}

/// One request; the body is made by a thread of its own while it is sent.
async fn send(api: &Api, source: &Source, key: &str, bar: ProgressBar) -> Result<(Value, Skipped), CliError> {
    let (parts, waiting) = mpsc::channel(BLOCKS_WAITING_MAX);
    let reader = {
        let source = source.clone();
        tokio::task::spawn_blocking(move || read_all(&source, Outlet::new(parts, bar)))
    };
    let body = Body::wrap_stream(stream::unfold(waiting, async |mut waiting| waiting.recv().await.map(|part| (part, waiting))));
    let request =
        api.request(Method::POST, "/api/v1/add").header("Content-Type", ADD_TYPE).header("Idempotency-Key", key).body(body);
    match request.send().await {
        Ok(response) => {
            let answer = api.read_json(api.accept(response).await?).await?;
            // A gateway that knows the key may answer before it has read everything; then the reader ends as well.
            let skipped = match reader.await {
                Ok(Ok(skipped)) => skipped,
                _ => Skipped::default(),
            };
            Ok((answer, skipped))
        }
        Err(error) => match reader.await {
            Ok(Err(ReadFault::Local(text))) => Err(CliError::Failed(text)),
            _ => Err(api.explain_break(&error).await),
        },
    }
}

/// Why the reading thread ended early.
#[derive(Debug, PartialEq, Eq)]
enum ReadFault {
    /// Something here, in words.
    Local(String),
    /// Nobody takes the body any more; the request knows why.
    Gone,
}

/// The body: head, entries, end.
fn read_all(source: &Source, mut out: Outlet) -> Result<Skipped, ReadFault> {
    let done = write_stream(source, &mut out);
    if let Err(ReadFault::Local(text)) = &done {
        // The request must break off here, not look finished. If it is gone already, there is nothing to break.
        let _ = out.parts.blocking_send(Err(std::io::Error::other(text.clone())));
    }
    done
}

fn write_stream(source: &Source, out: &mut Outlet) -> Result<Skipped, ReadFault> {
    let head = Head { v: VERSION, root: source.root, name: source.name.clone(), profile: source.profile.clone() };
    out.frame(&head, &source.place)?;
    let mut entries = 0;
    let mut skipped = Skipped::default();
    match source.root {
        RootKind::File => {
            entries = 1;
            write_entry(source.found(), out)?;
        }
        RootKind::Dir => {
            let mut walk = Walk::new(&source.place, source.hidden).map_err(ReadFault::Local)?;
            for found in walk.by_ref() {
                entries += 1;
                write_entry(found.map_err(ReadFault::Local)?, out)?;
            }
            skipped = walk.skipped;
        }
    }
    out.frame(&End { end: true, entries }, &source.place)?;
    out.flush()?;
    Ok(skipped)
}

fn write_entry(found: Found, out: &mut Outlet) -> Result<(), ReadFault> {
    let Found { path, place, kind } = found;
    match kind {
        FoundKind::EmptyFolder => out.frame(&Entry { path, kind: EntryKind::Dir }, &place),
        FoundKind::Symlink => {
            let target = std::fs::read_link(&place).map_err(|error| ReadFault::Local(unreadable(&place, &error)))?;
            let Some(target) = target.to_str() else {
                return Err(ReadFault::Local(format!(
                    "the symlink {} points to a name that is not UTF-8: change or remove it",
                    place.display()
                )));
            };
            out.frame(&Entry { path, kind: EntryKind::Symlink { target: target.to_owned() } }, &place)
        }
        FoundKind::File => write_file(path, &place, out),
    }
}

/// A file's frame and content; what was promised before is checked against what it is afterwards.
fn write_file(path: String, place: &Path, out: &mut Outlet) -> Result<(), ReadFault> {
    let fault = |error: std::io::Error| ReadFault::Local(unreadable(place, &error));
    // A pipe put in the file's place would block the open, a symlink would lead out of the tree.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(place);
    let file = open.map_err(|error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => ReadFault::Local(changed(place)),
        _ => fault(error),
    })?;
    let before = file.metadata().map_err(fault)?;
    if !before.is_file() {
        return Err(ReadFault::Local(changed(place)));
    }
    out.frame(&Entry { path, kind: EntryKind::File { size: before.len() } }, place)?;
    let mut left = before.len();
    while left > 0 {
        let count = out.read(&file).map_err(|fault| fault.at(place))?;
        left = match left.checked_sub(count) {
            Some(left) if count > 0 => left,
            // It ended too early, or went on too long.
            _ => return Err(ReadFault::Local(changed(place))),
        };
    }
    let after = file.metadata().map_err(fault)?;
    let there = std::fs::symlink_metadata(place).map_err(fault)?;
    if !same(&before, &after) || !same(&before, &there) {
        return Err(ReadFault::Local(changed(place)));
    }
    Ok(())
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    let key = |meta: &Metadata| (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    key(a) == key(b)
}

/// The way to the socket: frames and small files are joined to parts of [`BLOCK_BYTES`].
struct Outlet {
    parts: mpsc::Sender<Result<Bytes, std::io::Error>>,
    buffer: Vec<u8>,
    bar: ProgressBar,
}

/// Reading into the outlet: the file failed, or the request is gone.
enum OutletFault {
    Read(std::io::Error),
    Gone,
}

impl OutletFault {
    fn at(self, place: &Path) -> ReadFault {
        match self {
            OutletFault::Read(error) => ReadFault::Local(unreadable(place, &error)),
            OutletFault::Gone => ReadFault::Gone,
        }
    }
}

impl Outlet {
    fn new(parts: mpsc::Sender<Result<Bytes, std::io::Error>>, bar: ProgressBar) -> Outlet {
        Outlet { parts, buffer: Vec::with_capacity(BLOCK_BYTES), bar }
    }

    fn frame(&mut self, frame: &impl serde::Serialize, place: &Path) -> Result<(), ReadFault> {
        if self.buffer.len() + FRAME_JSON_BYTES_MAX > BLOCK_BYTES {
            self.flush()?;
        }
        encode_frame(frame, &mut self.buffer).map_err(|length| {
            ReadFault::Local(format!(
                "the path or name of {} takes {length} bytes, more than the {FRAME_JSON_BYTES_MAX} that fit",
                place.display()
            ))
        })
    }

    /// One read, of as much as there is room for. 0 is the end of the file.
    fn read(&mut self, file: &File) -> Result<u64, OutletFault> {
        if self.buffer.capacity() - self.buffer.len() < ROOM_BYTES_MIN {
            self.flush().map_err(|_| OutletFault::Gone)?;
        }
        loop {
            match rustix::io::read(file, spare_capacity(&mut self.buffer)) {
                Ok(count) => {
                    self.bar.inc(count as u64);
                    return Ok(count as u64);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(OutletFault::Read(error.into())),
            }
        }
    }

    fn flush(&mut self) -> Result<(), ReadFault> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.buffer, Vec::with_capacity(BLOCK_BYTES));
        self.parts.blocking_send(Ok(part.into())).map_err(|_| ReadFault::Gone)
    }
}

/// Drawn on a terminal only. What there is to send is counted beside the sending.
fn progress_bar(source: &Source, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}  {binary_bytes_per_sec}  {eta} left");
    let bar =
        ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style.expect("the template is right"));
    let (counting, source) = (bar.clone(), source.clone());
    std::thread::spawn(move || count_bytes(&source, &counting));
    bar
}

/// Faults are left to the thread that reads.
fn count_bytes(source: &Source, bar: &ProgressBar) {
    let count = |place: &Path| bar.inc_length(std::fs::symlink_metadata(place).map_or(0, |meta| meta.len()));
    match source.root {
        RootKind::File => count(&source.place),
        RootKind::Dir => {
            let found = Walk::new(&source.place, source.hidden).into_iter().flatten().flatten();
            found.filter(|found| found.kind == FoundKind::File).for_each(|found| count(&found.place));
        }
    }
}

fn report_skipped(skipped: Skipped) {
    if skipped.hidden > 0 {
        eprintln!("left out {} (add them with --hidden)", counted(skipped.hidden, "hidden name"));
    }
    if skipped.special > 0 {
        eprintln!("left out {}", counted(skipped.special, "socket, device or pipe").replace("pipes", "pipe"));
    }
}

async fn report(api: &Api, global: &Global, source: &Source, answer: &Value) -> Result<(), CliError> {
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or_default();
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(plain);
    line(&format!("added {}: {}, {}", plain(&source.name), counted(number("files"), "file"), bytes(number("size_bytes"))))?;
    let public = public_url(api, global).await;
    let slash = if source.root == RootKind::Dir { "/" } else { "" };
    if let Some(cid) = text("cid") {
        line(&format!("  {public}/ipfs/{cid}{slash}"))?;
    }
    if let Some(skylink) = text("skylink") {
        line(&format!("  {public}/{skylink}{slash}"))?;
    }
    if public.is_empty() {
        line("  (on the gateway's public listener)")?;
    }
    line(match text("durability").as_deref() {
        Some("complete") => "complete: every piece is on its host",
        _ => "acknowledged: it is safe, and its last pieces are being written",
    })
}

/// Where to open things: what the gateway says of itself, else the default beside the default. Empty if not known.
async fn public_url(api: &Api, global: &Global) -> String {
    let status = api.json(api.request(Method::GET, "/api/v1/status")).await;
    match status.ok().as_ref().and_then(|status| status.get("public_url")).and_then(Value::as_str) {
        Some(url) => plain(url.trim_end_matches('/')),
        None if global.api.trim_end_matches('/') == DEFAULT_URL => DEFAULT_PUBLIC_URL.to_owned(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::frames::{Frame, FrameReader};
    use super::*;

    fn source(place: &Path, root: RootKind) -> Source {
        Source {
            place: place.to_owned(),
            root,
            file_name: "f".into(),
            name: "n".into(),
            profile: "cid-v1".into(),
            hidden: Hidden::Skipped,
        }
    }

    /// Path, and bytes of a file or target of a symlink.
    type Contents = Vec<(String, Vec<u8>)>;

    /// The stream of a source, read by the thread that `get` has: paths, and the bytes of the files.
    fn stream(source: &Source) -> (Result<Skipped, ReadFault>, Result<Contents, String>) {
        let (parts, waiting) = mpsc::channel(BLOCKS_WAITING_MAX);
        let (words, texts) = mpsc::channel(BLOCKS_WAITING_MAX);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| read_all(source, Outlet::new(parts, ProgressBar::hidden())));
            scope.spawn(move || {
                let mut waiting = waiting;
                while let Some(part) = waiting.blocking_recv() {
                    let _ = words.blocking_send(part.map_err(|error| error.to_string()));
                }
            });
            let read = collect(FrameReader::new(texts));
            (sending.join().expect("no panic"), read)
        })
    }

    fn collect(mut reader: FrameReader) -> Result<Contents, String> {
        let head: Head = reader.frame()?;
        assert_eq!((head.v, head.name.as_str(), head.profile.as_str()), (1, "n", "cid-v1"));
        let mut entries = Vec::new();
        loop {
            match reader.frame()? {
                Frame::End(end) => {
                    assert_eq!((end.end, end.entries), (true, entries.len() as u64));
                    reader.end()?;
                    return Ok(entries);
                }
                Frame::Entry(Entry { path, kind: EntryKind::File { size } }) => {
                    let mut content = Vec::new();
                    while (content.len() as u64) < size {
                        content.extend_from_slice(&reader.some(size - content.len() as u64)?);
                    }
                    entries.push((path, content));
                }
                Frame::Entry(Entry { path, kind: EntryKind::Symlink { target } }) => entries.push((path, target.into_bytes())),
                Frame::Entry(Entry { path, kind: EntryKind::Dir }) => entries.push((path, Vec::new())),
            }
        }
    }

    #[test]
    fn a_folder_arrives_as_it_is() {
        let root = tempfile::tempdir().expect("a folder");
        let large: Vec<u8> = (0..3 * BLOCK_BYTES + 17).map(|i| (i % 251) as u8).collect();
        std::fs::create_dir(root.path().join("empty")).expect("made");
        std::fs::write(root.path().join("large"), &large).expect("written");
        std::fs::write(root.path().join("none"), "").expect("written");
        std::fs::write(root.path().join(".hidden"), "").expect("written");
        std::os::unix::fs::symlink("large", root.path().join("link")).expect("made");
        let (sent, read) = stream(&source(root.path(), RootKind::Dir));
        assert_eq!(sent, Ok(Skipped { hidden: 1, special: 0 }));
        let expect = [("empty", Vec::new()), ("large", large), ("link", b"large".to_vec()), ("none", Vec::new())];
        assert_eq!(read.expect("whole"), expect.map(|(path, content)| (path.to_owned(), content)));
    }

    #[test]
    fn a_single_file_has_one_entry_of_its_name() {
        let root = tempfile::tempdir().expect("a folder");
        let place = root.path().join("on-disk");
        std::fs::write(&place, "content").expect("written");
        let (_, read) = stream(&source(&place, RootKind::File));
        assert_eq!(read.expect("whole"), [("f".to_owned(), b"content".to_vec())]);
    }

    #[test]
    fn a_file_that_changes_breaks_the_stream() {
        let root = tempfile::tempdir().expect("a folder");
        let place = root.path().join("f");
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("grows", |place| OpenOptions::new().append(true).open(place).expect("open").write_all(b"more").expect("written")),
            ("shrinks", |place| OpenOptions::new().write(true).open(place).expect("open").set_len(10).expect("cut")),
            ("is replaced", |place| {
                std::fs::write(place.with_extension("new"), vec![1; 8 * BLOCK_BYTES]).expect("written");
                std::fs::rename(place.with_extension("new"), place).expect("renamed");
            }),
            ("goes", |place| std::fs::remove_file(place).expect("removed")),
        ];
        for (what, change) in changes {
            std::fs::write(&place, vec![0; 8 * BLOCK_BYTES]).expect("written");
            let (parts, mut waiting) = mpsc::channel(BLOCKS_WAITING_MAX);
            let source = source(&place, RootKind::File);
            let sent = std::thread::scope(|scope| {
                let sending = scope.spawn(|| read_all(&source, Outlet::new(parts, ProgressBar::hidden())));
                // The first part is here, and of the other seven at most three have been read.
                assert!(waiting.blocking_recv().expect("a part").is_ok());
                change(&place);
                let mut last = Ok(Bytes::new());
                while let Some(part) = waiting.blocking_recv() {
                    last = part;
                }
                assert!(last.is_err(), "a file that {what} must break the request");
                sending.join().expect("no panic")
            });
            assert!(matches!(sent, Err(ReadFault::Local(_))), "{what}: {sent:?}");
        }
    }

    #[test]
    fn a_symlink_in_a_files_place_is_not_followed() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::write(root.path().join("secret"), "secret").expect("written");
        std::os::unix::fs::symlink("secret", root.path().join("f")).expect("made");
        let (sent, read) = stream(&source(&root.path().join("f"), RootKind::File));
        assert!(matches!(sent, Err(ReadFault::Local(text)) if text.contains("changed while it was read")));
        assert!(read.is_err());
    }

    #[test]
    fn a_request_that_is_gone_ends_the_reading() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::write(root.path().join("f"), vec![0; 8 * BLOCK_BYTES]).expect("written");
        let (parts, waiting) = mpsc::channel(BLOCKS_WAITING_MAX);
        drop(waiting);
        let sent = read_all(&source(&root.path().join("f"), RootKind::File), Outlet::new(parts, ProgressBar::hidden()));
        assert_eq!(sent, Err(ReadFault::Gone));
    }
}
