//! The IPFS gateway: `GET` and `HEAD` of `/ipfs/{cid}[/path]` and `/ipns/{name}[/path]`, wherever the content path stands
//! (`hosts`), in every format (`ipfs-gateway.md` 2.1 to 2.5). One file for each format; all of them begin with a [`Target`].

mod car;
mod data;
mod headers;
pub(super) mod ipns_record;
mod listing;
pub(super) mod redirects;
mod tar;
mod target;

pub use target::{ContentPath, Moving, Pointed, Target, content_path_text};

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use ::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, Response, StatusCode};
use bytes::Bytes;

use crate::address::{Cid, SitePath, codec};
use crate::deny::{Reason, Subject};
use crate::names::NameOnTheWay;
use crate::site::SiteError;
use crate::site::unixfs::{Answer, INDEX_NAME};
use crate::store::{FileSource, StoreError, Window};
use crate::tree::{FileNode, Mtime, TreeNode, parse_node};

use super::ask::{Ask, Format, FormatBy, Namespace, Place};
use super::plan::{self, CACHE_IMMUTABLE, Disposition, Representation, ascii};
use super::refusal::{Refusal, SkyRefusal};
use super::reply::{BodySource, Clock, Delivery, FilePlan, Reply, ReplyBody, made_here, stamp};
use super::services::{Content, Services};
use super::skynet;
use super::walk::walk;
use headers::Kind;

/// Answers a content path.
pub async fn answer(services: &Services, ask: &Ask, clock: &Clock) -> Result<Reply, Refusal> {
    if ask.method == Method::OPTIONS {
        return Ok(Response::new(ReplyBody::empty()));
    }
    if services.options.trustless_only && !matches!(ask.format, Format::Raw | Format::Car | Format::IpnsRecord) {
        return Err(Refusal::TrustlessOnly);
    }
    // With rules in force the path is looked at first: ready answers know nothing of them.
    let ruled = services.content.has_deny_rules();
    let ready = || if ask.is_plain() { services.answers.get(&ask.path, clock) } else { None };
    if !ruled && let Some(plan) = ready() {
        return deliver(services, ask, clock, &plan).await;
    }
    let content_path = ContentPath::of(ask)?;
    if ruled {
        check_rules(services, &content_path)?;
        if let Some(plan) = ready() {
            return deliver(services, ask, clock, &plan).await;
        }
    }
    if ask.service_worker && content_path.path().segments().is_empty() && ask.place == Place::Path {
        return Err(Refusal::ServiceWorker);
    }
    if let Some(reply) = ipns_record::to_usual_name(ask, &content_path) {
        return Ok(reply);
    }
    if ask.format == Format::IpnsRecord {
        return ipns_record::reply(services, ask, &content_path, clock).await;
    }
    let target = match Pointed::of(services, ask, content_path).await? {
        Pointed::Dag(target) => *target,
        Pointed::Skyfile(target) => return skyfile(services, ask, &target, clock).await,
    };
    if ruled && target.namespace == Namespace::Ipns {
        check_target(services, &target, &target.asked_names())?;
    }
    let reply = match ask.format {
        Format::Deserialized | Format::Json | Format::Cbor => deserialized(services, ask, &target, clock).await,
        Format::DagJson | Format::DagCbor => data_format(services, ask, &target, clock).await,
        Format::Raw => raw(services, ask, &target, clock).await,
        Format::Car => car::reply(services, ask, &target, clock).await,
        Format::Tar => tar::reply(services, ask, &target, clock).await,
        Format::IpnsRecord => unreachable!("answered above, before its name is followed"),
    };
    match reply {
        Err(Refusal::Store(error)) if ask.only_if_cached && is_absent(&error) => Err(Refusal::NotAtHand),
        reply => reply,
    }
}

/// A name that points to a skylink. Skyfiles have no blocks, so a format of blocks that stands in the URL is refused; an
/// Accept may name others beside it.
async fn skyfile(services: &Services, ask: &Ask, target: &skynet::Target, clock: &Clock) -> Result<Reply, Refusal> {
    match (ask.format, ask.format_by) {
        (Format::Deserialized, _) | (_, FormatBy::Accept) => skynet::content::answer_target(services, ask, target, clock).await,
        (format, _) => Err(SkyRefusal::NoDag { format: format.name() }.into()),
    }
}

/// Rules about paths and names, before anything is fetched.
fn check_rules(services: &Services, content_path: &ContentPath) -> Result<(), Refusal> {
    let path = content_path.path().decoded();
    let subject = match content_path {
        ContentPath::Ipfs { root, .. } => Subject::Ipfs { root, path: &path },
        ContentPath::Ipns { name, .. } => Subject::Ipns { name, path: &path },
    };
    services.content.denied(&subject).map_or(Ok(()), |reason| Err(Refusal::Denied(Box::new(reason))))
}

/// The same for `below`, decoded, a path in what the address names, under all names that lead there.
fn check_target(services: &Services, target: &Target, below: &str) -> Result<(), Refusal> {
    let content = services.content.as_ref();
    let reason = if content.has_deny_rules() { denied(content, target, below) } else { None };
    reason.map_or(Ok(()), |reason| Err(Refusal::Denied(Box::new(reason))))
}

/// Which rule forbids it.
fn denied(content: &dyn Content, target: &Target, below: &str) -> Option<Reason> {
    let path = format!("{}/{below}", target.hidden_names());
    let root = Subject::Ipfs { root: &target.root, path: path.trim_matches('/') };
    names_denied(content, &target.names, below).or_else(|| content.denied(&root))
}

/// Which rule forbids one of these names with this path below the last.
fn names_denied(content: &dyn Content, names: &[NameOnTheWay], below: &str) -> Option<Reason> {
    names.iter().find_map(|NameOnTheWay { name, below: above }| {
        let path = format!("{}/{below}", above.segments().join("/"));
        content.denied(&Subject::Ipns { name, path: path.trim_matches('/') })
    })
}

/// Rules about one block.
fn check_block(services: &Services, cid: &Cid) -> Result<(), Refusal> {
    let denied = services.content.denied(&Subject::Ipfs { root: cid, path: "" });
    denied.map_or(Ok(()), |reason| Err(Refusal::Denied(Box::new(reason))))
}

/// Rules about the block at the end of a path, and those below it if it is a file. For formats that would not read them
/// all before their head leaves.
async fn check_entity(services: &Services, cid: &Cid, clock: &Clock) -> Result<(), Refusal> {
    let content = services.content.as_ref();
    if !content.has_deny_rules() {
        return Ok(());
    }
    check_block(services, cid)?;
    if cid.codec() == codec::DAG_PB
        && let TreeNode::File(node) = parse_node(cid, &content.index_block(cid, &clock.trace).await?).map_err(SiteError::from)?
    {
        content.allow_file(&FileSource { cid: *cid, node }, &clock.trace).await?;
    }
    Ok(())
}

/// Files and directories; blocks of data as they are.
async fn deserialized(services: &Services, ask: &Ask, target: &Target, clock: &Clock) -> Result<Reply, Refusal> {
    let answer = walk(services.content.as_ref(), target.root, target.path.clone(), &clock.trace).await?;
    if let Answer::File { dir: Some(_), .. } | Answer::RawBlock { dir: Some(_), .. } = &answer {
        // It was asked for by the name of its folder.
        check_target(services, target, &format!("{}/{INDEX_NAME}", target.asked_names()))?;
    }
    reply_to(services, ask, target, clock, answer).await
}

/// A format of data: of the block that the path leads to.
async fn data_format(services: &Services, ask: &Ask, target: &Target, clock: &Clock) -> Result<Reply, Refusal> {
    let (cid, roots) = block_at(services, ask, target, clock).await?;
    match cid.codec() {
        codec::DAG_PB | codec::RAW => Err(Refusal::CodecMismatch { codec: cid.codec(), format: ask.format.name() }),
        _ => data::reply(services, ask, target, clock, data::Found { cid, roots }).await,
    }
}

fn is_absent(error: &StoreError) -> bool {
    matches!(error.cause(), StoreError::NotFound | StoreError::Rebuilding)
}

/// From what the path leads to, to the reply.
async fn reply_to(services: &Services, ask: &Ask, target: &Target, clock: &Clock, answer: Answer) -> Result<Reply, Refusal> {
    match answer {
        answer @ (Answer::File { .. } | Answer::RawBlock { .. }) => {
            let found = file_of(services, clock, answer).await?.expect("these answers are files");
            send_file(services, ask, target, clock, StatusCode::OK, found).await
        }
        Answer::Listing { dir, cid, roots } => {
            let headers = headers::of_path(ask, &roots);
            listing::reply(services, ask, clock, listing::Listed { target, dir, cid, headers }).await
        }
        Answer::AddSlash => Ok(redirect(StatusCode::MOVED_PERMANENTLY, ask, target, clock, &format!("{}/", ask.path))),
        Answer::NotFound { missing, roots: _ } if target.place != Place::Path && asks_for_page(ask) => {
            redirects::on_missing(services, ask, target, clock, missing).await
        }
        Answer::NotFound { missing, roots: _ } => Err(Refusal::NoSuchPath { missing }),
        Answer::Symlink { target: points_to, cid, roots } => {
            send_symlink(services, ask, target, clock, SymlinkFound { points_to, cid, roots }).await
        }
        Answer::InsideBlock { cid, .. } => Err(Refusal::InsideBlock(Box::new(cid))),
        Answer::NotUnixfs { cid, rest, roots, .. } if rest.segments().is_empty() => {
            data::reply(services, ask, target, clock, data::Found { cid, roots }).await
        }
        Answer::NotUnixfs { cid, codec: codec::JSON | codec::CBOR, .. } => Err(Refusal::InsideBlock(Box::new(cid))),
        Answer::NotUnixfs { codec, .. } => Err(Refusal::NotUnixfs { codec }),
    }
}

/// Whether what is served is what a browser would get. JSON in Accept is what programs of sites send by habit; of UnixFS
/// it changes nothing.
fn asks_for_page(ask: &Ask) -> bool {
    match ask.format {
        Format::Deserialized => true,
        Format::Json | Format::Cbor => ask.format_by == FormatBy::Accept,
        _ => false,
    }
}

/// A file at the end of a path.
struct FileFound {
    cid: Cid,
    node: Arc<FileNode>,
    name: Option<String>,
    /// The directory whose index.html it is.
    dir: Option<Cid>,
    roots: Vec<Cid>,
}

impl FileFound {
    fn source(&self) -> FileSource {
        FileSource { cid: self.cid, node: self.node.clone() }
    }
}

/// The file that an answer is, if it is one.
async fn file_of(services: &Services, clock: &Clock, answer: Answer) -> Result<Option<FileFound>, Refusal> {
    Ok(match answer {
        Answer::File { cid, size: _, node, name, dir, roots } => Some(FileFound { cid, node, name, dir, roots }),
        Answer::RawBlock { cid, name, dir, roots } => {
            let size = services.content.block_length(&cid, &clock.trace).await?;
            let node = FileNode { inline: Bytes::new(), size, children: Vec::new(), mode: None, mtime: None };
            Some(FileFound { cid, node: Arc::new(node), name, dir, roots })
        }
        _ => None,
    })
}

async fn send_file(
    services: &Services,
    ask: &Ask,
    target: &Target,
    clock: &Clock,
    status: StatusCode,
    found: FileFound,
) -> Result<Reply, Refusal> {
    let filename = ask.parameter("filename").filter(|name| !name.is_empty());
    let mut headers = headers::of_path(ask, &found.roots);
    if let Some(rule) = target.cache_control(CACHE_IMMUTABLE) {
        headers.insert(header::CACHE_CONTROL, rule);
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(kind) = filename.as_deref().or(found.name.as_deref()).and_then(type_by_name) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    if let Some(value) = disposition(ask, filename.as_deref(), &found) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    let plan = FilePlan {
        representation: Representation {
            size_bytes: found.node.size,
            etag: ascii(format!("\"{}\"", found.dir.unwrap_or(found.cid))),
            last_modified: found.node.mtime.as_ref().and_then(time_of).or_else(|| target.last_modified()),
            headers,
        },
        source: BodySource::File(found.source()),
        sniffed: OnceLock::new(),
    };
    let plan = Arc::new(plan);
    if ask.is_plain() {
        services.answers.put(&ask.path, plan.clone(), clock);
    }
    Delivery { services, method: &ask.method, conditions: &ask.conditions, clock, status }.send(&plan).await
}

async fn deliver(services: &Services, ask: &Ask, clock: &Clock, plan: &FilePlan) -> Result<Reply, Refusal> {
    let delivery = Delivery { services, method: &ask.method, conditions: &ask.conditions, clock, status: StatusCode::OK };
    delivery.send(plan).await
}

/// `filename=` names the file, `download=true` makes it an attachment, under its own name if no other is given.
fn disposition(ask: &Ask, filename: Option<&str>, found: &FileFound) -> Option<HeaderValue> {
    match (filename, ask.wants_download()) {
        (None, false) => None,
        (Some(name), false) => Some(plan::content_disposition(Disposition::Inline, name)),
        (Some(name), true) => Some(plan::content_disposition(Disposition::Attachment, name)),
        (None, true) => {
            let name = found.name.clone().unwrap_or_else(|| found.cid.to_string());
            Some(plan::content_disposition(Disposition::Attachment, &name))
        }
    }
}

/// A symlink at the end of a path.
struct SymlinkFound {
    points_to: String,
    cid: Cid,
    roots: Vec<Cid>,
}

/// A symlink is answered with its target as text, never followed (`ipfs-gateway.md` 2.1).
async fn send_symlink(
    services: &Services,
    ask: &Ask,
    target: &Target,
    clock: &Clock,
    found: SymlinkFound,
) -> Result<Reply, Refusal> {
    let SymlinkFound { points_to, cid, roots } = found;
    let mut headers = headers::of_path(ask, &roots);
    if let Some(rule) = target.cache_control(CACHE_IMMUTABLE) {
        headers.insert(header::CACHE_CONTROL, rule);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("inode/symlink"));
    let representation =
        Representation { size_bytes: points_to.len() as u64, etag: ascii(format!("\"{cid}\"")), last_modified: None, headers };
    let plan = FilePlan::new(representation, BodySource::Block(Bytes::from(points_to)));
    deliver(services, ask, clock, &plan).await
}

/// `format=raw`: the block that the path leads to, as it is.
async fn raw(services: &Services, ask: &Ask, target: &Target, clock: &Clock) -> Result<Reply, Refusal> {
    let content = services.content.as_ref();
    let (cid, roots) = match target.path.segments() {
        [] => (target.root, vec![target.root]),
        _ => block_at(services, ask, target, clock).await?,
    };
    let block = content.block(&cid, Window::First, &clock.trace).await?;
    let kind = Kind { media_type: "application/vnd.ipld.raw", disposition: Disposition::Attachment, extension: "bin" };
    let mut headers = headers::of_format(ask, target, (&cid, &roots), &kind, &[]);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let representation =
        Representation { size_bytes: block.len() as u64, etag: ascii(format!("\"{cid}.raw\"")), last_modified: None, headers };
    deliver(services, ask, clock, &FilePlan::new(representation, BodySource::Block(block))).await
}

/// The CID at the end of a path: of a directory the directory's own, not its index.html's.
async fn block_at(services: &Services, ask: &Ask, target: &Target, clock: &Clock) -> Result<(Cid, Vec<Cid>), Refusal> {
    let content = services.content.as_ref();
    let names = target.path.segments().join("/");
    let parse = |text: &str| SitePath::from_decoded(text).map_err(|error| ask.bad_path(error));
    // A slash at the end makes no difference to which block it is. Without one a directory is a redirect, with one a
    // file is not found.
    let mut answer = walk(content, target.root, parse(&names)?, &clock.trace).await?;
    if matches!(answer, Answer::AddSlash) {
        answer = walk(content, target.root, parse(&format!("{names}/"))?, &clock.trace).await?;
    }
    match answer {
        Answer::File { cid, dir, roots, .. } | Answer::RawBlock { cid, dir, roots, .. } => Ok((dir.unwrap_or(cid), roots)),
        Answer::Listing { cid, roots, .. } | Answer::Symlink { cid, roots, .. } => Ok((cid, roots)),
        Answer::NotUnixfs { cid, rest, roots, .. } if rest.segments().is_empty() => Ok((cid, roots)),
        Answer::InsideBlock { cid, .. } | Answer::NotUnixfs { cid, codec: codec::JSON | codec::CBOR, .. } => {
            Err(Refusal::InsideBlock(Box::new(cid)))
        }
        Answer::NotUnixfs { codec, .. } => Err(Refusal::NotUnixfs { codec }),
        Answer::NotFound { missing, .. } => Err(Refusal::NoSuchPath { missing }),
        Answer::AddSlash => Err(Refusal::NoRoute),
    }
}

/// A redirect to `to` on this host, with the query kept.
fn redirect(status: StatusCode, ask: &Ask, target: &Target, clock: &Clock, to: &str) -> Reply {
    let to = on_this_host(to);
    let location = ask.query.as_ref().map_or_else(|| to.clone().into_owned(), |query| format!("{to}?{query}"));
    let mut reply = made_here(
        status,
        "text/plain; charset=utf-8",
        &ask.method,
        format!("This folder's address ends with a slash: {location}\n"),
    );
    if let Ok(value) = HeaderValue::try_from(location) {
        reply.headers_mut().insert(header::LOCATION, value);
    }
    if let Some(rule) = target.cache_control(CACHE_IMMUTABLE) {
        reply.headers_mut().insert(header::CACHE_CONTROL, rule);
    }
    stamp(reply.headers_mut(), clock, clock.started.elapsed());
    reply
}

/// A path as a link or a Location: one that begins with two slashes would name another host there.
fn on_this_host(path: &str) -> Cow<'_, str> {
    match path.as_bytes() {
        [b'/', b'/' | b'\\', ..] => format!("/{}", path.trim_start_matches(['/', '\\'])).into(),
        _ => path.into(),
    }
}

/// Streams fail with the store's errors; a bad shard is bad stored data like any other.
fn store_error(error: SiteError) -> StoreError {
    match error {
        SiteError::Tree(error) => StoreError::Tree(error),
        SiteError::TooManyBlocks { .. } => StoreError::BadFile("it takes more blocks than this gateway reads for one reply"),
    }
}

/// The content type that a name tells.
fn type_by_name(name: &str) -> Option<HeaderValue> {
    crate::site::content_type::by_name(name).and_then(|kind| HeaderValue::from_str(&kind).ok())
}

fn time_of(mtime: &Mtime) -> Option<SystemTime> {
    let seconds = u64::try_from(mtime.seconds).ok()?;
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, mtime.nanos.unwrap_or(0)))?;
    // HTTP dates end with the year 9999.
    (seconds < 253_402_300_800).then_some(time)
}

/// Content is for everybody to read: the CORS headers that the conformance suite wants, on every reply. Accept chooses
/// the format and the form of errors, so caches on the way have to know.
const CORS: [(HeaderName, &str); 5] = [
    (header::VARY, "Accept"),
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, OPTIONS"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type, Range, User-Agent, X-Requested-With"),
    (
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        "Content-Range, Content-Length, X-Ipfs-Path, X-Ipfs-Roots, X-Chunked-Output, X-Stream-Output, Cache-Status, Server-Timing",
    ),
];

/// Puts them on a reply that does not have them yet; answers that are kept ready do.
pub fn with_cors(mut reply: Reply) -> Reply {
    if !reply.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        insert_cors(reply.headers_mut());
    }
    reply
}

fn insert_cors(headers: &mut HeaderMap) {
    for (name, value) in CORS {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests;
