//! The one table that turns errors into status, public sentence, advice and cache rule.
//!
//! Every failure of this room is a [`Refusal`]; [`Refusal::row`] is exhaustive, without a catch-all arm, so a new
//! error cannot get a status by accident. What an error says inside (paths, host names, sources) is logged, never sent.

use std::borrow::Cow;

use ::http::StatusCode;

use crate::access::{AdminRefused, KeyRefused, OverLimit, WriteRefused};
use crate::address::domain::LabelTooLong;
use crate::address::{AddressError, Cid, SKYLINK_BYTES};
use crate::deny::{DenyStatus, Reason};
use crate::ingest::IngestError;
use crate::ingest::spool::{FinishError, SpoolError};
use crate::names::{BadEntry, NameError, PutEntryError};
use crate::site::SiteError;
use crate::site::redirects::RedirectsError;
use crate::site::skynet::OutsideContent;
use crate::store::StoreError;

use CacheRule::{NoStore, Unsaid};
use StatusCode as S;

/// Seconds after which asking again has a fair chance: a catalog rebuild makes progress within seconds.
const RETRY_REBUILDING_S: u32 = 5;
/// Requests end within moments, and slow ones make room within seconds.
const RETRY_TOO_MANY_S: u32 = 5;
/// Hosts that were too slow may have been busy.
const RETRY_TIMED_OUT_S: u32 = 10;
/// Hosts that hold the missing pieces may come back; the node looks at their markers every minute.
const RETRY_TOO_FEW_PIECES_S: u32 = 60;
/// Writes wait for hosts to come back, which is noticed within a minute.
const RETRY_NOT_ENOUGH_HOSTS_S: u32 = 30;
/// Uploads under way end, and those that nobody continues expire.
const RETRY_SPOOL_FULL_S: u32 = 60;
/// Whoever has an upload lets go at once, or stores it.
const RETRY_LOCKED_S: u32 = 1;

/// Why a request is not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Boxed, as the next one: they can hold a CID, and refusals travel through every function here.
    #[error("{0}")]
    Store(Box<StoreError>),
    /// A path or a name that a rule of the operator's lists forbids.
    #[error("denied by {}, line {}", .0.list, .0.line)]
    Denied(Box<Reason>),
    #[error("{0}")]
    Site(#[from] SiteError),
    #[error("{0}")]
    Skyfile(#[from] OutsideContent),
    #[error("{0}")]
    Ingest(Box<IngestError>),
    #[error("{0}")]
    Admin(#[from] AdminRefused),
    /// The address in the path does not parse. `path` is the path as asked.
    #[error("invalid path {path:?}: {error}")]
    BadPath { path: String, error: AddressError },
    #[error("the query is malformed: {0}")]
    BadQuery(&'static str),
    #[error("the request header {0} is missing or malformed")]
    BadHeader(&'static str),
    /// As much is under way as this gateway takes, in all or from one address.
    #[error("too many requests or connections at once")]
    TooMany,
    /// This gateway only answers what clients can check.
    #[error("no trustless format was asked for")]
    TrustlessOnly,
    /// A root that no subdomain can be made of.
    #[error(transparent)]
    Label(#[from] LabelTooLong),
    /// Asked as a proxy for a host that is not served here.
    #[error("asked as a proxy for another host")]
    NotServedHere,
    /// A name that is not in its directory, or a file with a path below it.
    #[error("{missing:?} does not exist in this tree")]
    NoSuchPath { missing: String },
    /// No surface answers this path.
    #[error("no such page")]
    NoRoute,
    #[error("method not allowed")]
    Method,
    #[error("only-if-cached, and not at hand")]
    NotAtHand,
    #[error("service worker for a whole root")]
    ServiceWorker,
    #[error("precondition failed")]
    Precondition,
    #[error("no range asked for lies inside the {size_bytes} bytes of the file")]
    OutOfRange { size_bytes: u64 },
    #[error("malformed Range")]
    BadRange,
    /// `format=` or Accept names a format nobody knows.
    #[error("format {0:?} is not known")]
    UnknownFormat(String),
    /// The path ends inside a block of data.
    #[error("the path ends inside the block {0}")]
    InsideBlock(Box<Cid>),
    /// The site's own rules cannot be read; only its missing paths are hurt.
    #[error("could not parse _redirects: {0}")]
    Redirects(#[from] RedirectsError),
    /// A format that the block at the end of the path is not of (IPIP-0524: blocks are not converted).
    #[error("codec 0x{codec:x} is not {format}")]
    CodecMismatch { codec: u64, format: &'static str },
    /// The path ends in something that is no file or directory.
    #[error("codec 0x{codec:x} is no UnixFS")]
    NotUnixfs { codec: u64 },
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("{0}")]
    Ipns(#[from] IpnsRefusal),
    #[error("{0}")]
    Tus(#[from] TusRefusal),
    #[error("{0}")]
    Sky(#[from] SkyRefusal),
    #[error("{0}")]
    Registry(#[from] RegistryRefusal),
    #[error("the head of the reply took too long")]
    HeadTimedOut,
    #[error("no API key")]
    NoKey,
    /// Keys, limits and lists of a portal.
    #[error("{0}")]
    Portal(Box<PortalRefusal>),
    /// A write without a key that needs one.
    #[error("{0}")]
    Write(#[from] WriteRefused),
    #[error("a write by cookie without a proof of origin")]
    CookieWrite,
    #[error("this login link was used, or is too old")]
    LoginSpent,
    #[error("{0}")]
    Pin(#[from] PinRefusal),
}

/// Why a request for an IPNS record, or with one, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpnsRefusal {
    /// `format=ipns-record` of something that has none.
    #[error("an IPNS record belongs to a key: /ipns/KEY without a path")]
    NotAKey,
    /// Accept or Content-Type is missing, or names something else than a record.
    #[error("only IPNS records are answered and taken here")]
    NotARecord,
    /// Known absent, which this API tells apart from a failure.
    #[error("no record is known for {0}")]
    NoRecord(String),
    #[error("the body is longer than a record may be, or ended early")]
    Body,
}

/// Why a request of tus is refused.
#[derive(Debug, thiserror::Error)]
pub enum TusRefusal {
    #[error("this gateway speaks tus 1.0.0")]
    Version,
    #[error("bytes of an upload come as application/offset+octet-stream")]
    Type,
    #[error("{0}: {1}")]
    BadHeader(&'static str, &'static str),
    /// What an upload became is asked for too early.
    #[error("the upload is not finished")]
    NotFinished,
    #[error("an upload is made with POST, continued with PATCH, looked at with HEAD and removed with DELETE")]
    Method,
    /// Boxed: it can hold errors of the rooms below.
    #[error("{0}")]
    Spool(Box<SpoolError>),
}

impl From<SpoolError> for TusRefusal {
    fn from(error: SpoolError) -> TusRefusal {
        TusRefusal::Spool(Box::new(error))
    }
}

impl From<SpoolError> for Refusal {
    fn from(error: SpoolError) -> Refusal {
        Refusal::Tus(error.into())
    }
}

/// Why a request for a skyfile is refused, in Skynet's own ways (`skynet.md` 5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkyRefusal {
    /// A name that points to a skylink, asked for in a format of blocks.
    #[error("a skyfile has no blocks, and so no form of {format}")]
    NoDag { format: &'static str },
    /// An address that takes other methods, named here as in Allow.
    #[error("this address takes {0}")]
    OtherMethod(&'static str),
    /// The client's `timeout` is over.
    #[error("failed to fetch skylink: it was not found within the given time")]
    TimedOut,
    /// Known: the registry has no entry of this id. Clients look for these words.
    #[error("failed to fetch skylink: registry entry not found within given time")]
    EntryNotFound,
    /// Its owner has written zeros.
    #[error("failed to fetch skylink: the registry entry was deleted")]
    EntryDeleted,
    #[error("failed to fetch skylink: failed to resolve skylink: the registry entry is empty")]
    EmptyEntry,
    #[error("failed to fetch skylink: failed to resolve skylink: the registry entry is no skylink of {SKYLINK_BYTES} bytes")]
    MalformedEntry,
    #[error("failed to fetch skylink: skylink is nested more times than is supported")]
    NestedTooDeep,
    /// Resolving a link of version 1.
    #[error("failed to resolve skylink: it is a version 1 skylink, which resolves to itself")]
    NoResolver,
    #[error("a path of a file in it leads out of its folder, or cannot stand in an archive")]
    BadArchivePath,
}

/// Why something is not pinned, or not unpinned, or taken in otherwise than asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinRefusal {
    #[error("no pin under this address")]
    NoPin,
    #[error("pinned by others")]
    NotOwner,
    #[error("a version 2 skylink cannot be pinned")]
    Resolver,
}

/// Why a request to Skynet's registry is refused. The words that clients look for are Skynet's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryRefusal {
    /// Known absent.
    #[error("registry entry not found")]
    NoEntry,
    /// Not found out: never told as absence. Why is for the operator.
    #[error("the registry entry could not be read within the given time: {0}")]
    NotRead(String),
    #[error("Unable to update the registry: {0}")]
    Update(PutEntryError),
    /// The body is no JSON, or not of the form.
    #[error("Unable to parse the registry entry: {0}")]
    Json(String),
    #[error("Unable to parse the registry entry: {0}")]
    Body(&'static str),
    #[error("Unable to update the registry: {0}")]
    Entry(BadEntry),
    #[error("the body is longer than {bytes_max} bytes")]
    BodyTooLong { bytes_max: usize },
    #[error("the body ended early, or stood still")]
    BodyCut,
    /// A plain GET of an address that speaks WebSocket.
    #[error("this address speaks WebSocket, version 13, over HTTP/1.1")]
    NoWebSocket,
    #[error("web pages of other origins may not subscribe here")]
    ForeignOrigin,
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        Refusal::Store(Box::new(error))
    }
}

impl From<IngestError> for Refusal {
    fn from(error: IngestError) -> Refusal {
        Refusal::Ingest(Box::new(error))
    }
}

/// What has to do with keys, limits and lists.
#[derive(Debug, thiserror::Error)]
pub enum PortalRefusal {
    /// A key was sent, and is none.
    #[error("the API key is not known")]
    BadKey,
    #[error("the API keys have not been read yet")]
    KeysUnread,
    /// A key is not made or revoked.
    #[error(transparent)]
    Key(#[from] KeyRefused),
    /// The client has to wait, or asks for more than it may have.
    #[error(transparent)]
    Limit(#[from] OverLimit),
    /// A body that is not what the route takes.
    #[error("the body is malformed: {0}")]
    BadBody(&'static str),
    #[error("the Handshake name is not known")]
    UnknownHandshakeName,
}

impl From<PortalRefusal> for Refusal {
    fn from(refusal: PortalRefusal) -> Refusal {
        Refusal::Portal(Box::new(refusal))
    }
}

impl From<KeyRefused> for Refusal {
    fn from(error: KeyRefused) -> Refusal {
        PortalRefusal::from(error).into()
    }
}

impl From<OverLimit> for Refusal {
    fn from(limit: OverLimit) -> Refusal {
        PortalRefusal::from(limit).into()
    }
}

/// May a cache keep the refusal?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheRule {
    /// It can change at any moment.
    NoStore,
    /// It follows from the address alone; caches decide.
    Unsaid,
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    pub status: StatusCode,
    /// What is wrong, for everybody to read.
    pub sentence: Cow<'static, str>,
    /// What the reader can do about it.
    pub advice: &'static str,
    pub retry_after_s: Option<u32>,
    pub cache: CacheRule,
}

impl Refusal {
    /// Status, sentence, advice, Retry-After and cache rule of this refusal.
    pub fn row(&self) -> Row {
        match self {
            Refusal::Store(error) => store_row(error),
            Refusal::Denied(reason) => denied_row(reason),
            Refusal::Site(error) => row(
                S::INTERNAL_SERVER_ERROR,
                NoStore,
                format!("the stored tree cannot be followed: {error}"),
                "Whoever made this content has to make it anew.",
            ),
            Refusal::Skyfile(error) => {
                row(S::INTERNAL_SERVER_ERROR, NoStore, error.to_string(), "Whoever made this content has to make it anew.")
            }
            Refusal::Ingest(error) => ingest_row(error),
            Refusal::Admin(error) => {
                row(S::FORBIDDEN, NoStore, error.to_string(), "Open the admin page by the address that `skygate serve` prints.")
            }
            Refusal::BadPath { path, error } => row(
                S::BAD_REQUEST,
                Unsaid,
                format!("invalid path \"{path}\": {error}"),
                "Check the address for missing or extra characters.",
            ),
            Refusal::BadQuery(what) => row(
                S::BAD_REQUEST,
                Unsaid,
                format!("the query is malformed: {what}"),
                "Correct the part of the address behind the question mark.",
            ),
            Refusal::BadHeader(name) => {
                row(S::BAD_REQUEST, NoStore, format!("the request header {name} is missing or malformed"), "Correct the header.")
            }
            Refusal::Label(error) => row(
                S::BAD_REQUEST,
                Unsaid,
                error.to_string(),
                "Use a path gateway, where the CID stands in the path, or a CID with a shorter hash.",
            ),
            Refusal::TooMany => {
                row(S::TOO_MANY_REQUESTS, NoStore, "as many requests are under way as this gateway takes", "Try again in a moment.")
                    .retry(RETRY_TOO_MANY_S)
            }
            Refusal::TrustlessOnly => row(
                S::BAD_REQUEST,
                NoStore,
                "this gateway only answers in formats that a client can check itself",
                "Ask with format=raw, format=car or format=ipns-record.",
            ),
            Refusal::NotServedHere => row(
                S::MISDIRECTED_REQUEST,
                NoStore,
                "this gateway is a proxy for the names that it serves itself, and for no others",
                "Ask the host itself.",
            ),
            Refusal::NoSuchPath { missing } => row(
                S::NOT_FOUND,
                Unsaid,
                format!("the content exists, but it has no \"{missing}\""),
                "Check the spelling (capitals count), or open the folder above.",
            ),
            Refusal::NoRoute => row(
                S::NOT_FOUND,
                NoStore,
                "there is no such page",
                "Content has addresses that start with /ipfs/ or with a skylink.",
            ),
            Refusal::Method => row(S::METHOD_NOT_ALLOWED, NoStore, "this address only answers GET, HEAD and OPTIONS", "Use GET."),
            Refusal::NotAtHand => row(
                S::PRECONDITION_FAILED,
                NoStore,
                "the content is not at hand, and the request forbids looking for it",
                "Ask without Cache-Control: only-if-cached.",
            ),
            Refusal::ServiceWorker => row(
                S::BAD_REQUEST,
                Unsaid,
                "a service worker may not be registered for a whole content root on a shared origin",
                "Put the worker's script into a folder of the site, or use an address with an origin of its own.",
            ),
            Refusal::Precondition => row(
                S::PRECONDITION_FAILED,
                NoStore,
                "the content is not the version that If-Match or If-Unmodified-Since names",
                "Ask without that header.",
            ),
            Refusal::OutOfRange { size_bytes } => row(
                S::RANGE_NOT_SATISFIABLE,
                NoStore,
                format!("the file has {size_bytes} bytes, and no range asked for lies inside"),
                "Ask for a range inside the file.",
            ),
            Refusal::BadRange => row(S::BAD_REQUEST, NoStore, "the Range header is malformed", "Write it like bytes=0-1023."),
            Refusal::UnknownFormat(name) => {
                row(S::BAD_REQUEST, Unsaid, format!("the format \"{name}\" is not known"), "Leave format= out, or use format=raw.")
            }
            Refusal::InsideBlock(cid) => row(
                S::NOT_IMPLEMENTED,
                NoStore,
                format!("the path ends at a value inside the block {cid}; only links lead on"),
                "Ask for the block itself, and read the value there.",
            ),
            Refusal::Redirects(error) => row(
                S::INTERNAL_SERVER_ERROR,
                NoStore,
                format!(
                    "the path does not exist, and what the site says of such paths is not readable: could not parse _redirects: {error}"
                ),
                "Whoever made this site has to correct its _redirects file.",
            ),
            Refusal::CodecMismatch { codec, format } => row(
                S::NOT_ACCEPTABLE,
                NoStore,
                format!("the content has the codec 0x{codec:x}, and is not converted to {format}"),
                "Ask without a format, or for format=raw, and convert the block yourself.",
            ),
            Refusal::NotUnixfs { codec } => row(
                S::NOT_ACCEPTABLE,
                Unsaid,
                format!("the path ends in data of the codec 0x{codec:x}, which is neither a file nor a directory"),
                "Use format=raw to get the block as it is.",
            ),
            Refusal::Name(error) => name_row(error),
            Refusal::Ipns(refusal) => ipns_row(refusal),
            Refusal::Tus(refusal) => tus_row(refusal),
            Refusal::Sky(refusal) => sky_row(refusal),
            Refusal::Registry(refusal) => registry_row(refusal),
            Refusal::HeadTimedOut => {
                row(S::GATEWAY_TIMEOUT, NoStore, "finding the content took too long", "Try again in a moment.")
                    .retry(RETRY_TIMED_OUT_S)
            }
            Refusal::Portal(refusal) => portal_row(refusal),
            Refusal::NoKey => row(
                S::UNAUTHORIZED,
                NoStore,
                "this needs the API key",
                "Send it as Authorization: Bearer KEY, or open the login link that `skygate serve` prints. The key file is named there, too.",
            ),
            Refusal::Write(error) => row(
                S::FORBIDDEN,
                NoStore,
                error.to_string(),
                "Send the API key as Authorization: Bearer KEY, or use the command line on the gateway's machine.",
            ),
            Refusal::CookieWrite => row(
                S::FORBIDDEN,
                NoStore,
                "a change by login cookie must come from the admin page itself",
                "Use the API key, or the admin page.",
            ),
            Refusal::LoginSpent => row(
                S::FORBIDDEN,
                NoStore,
                "this login link was used already, or is too old",
                "Start the gateway anew, or ask POST /api/v1/login-link with the API key, for another one.",
            ),
            Refusal::Pin(refusal) => pin_row(refusal),
        }
    }
}

/// What an operator has forbidden, with the reason as far as the list gives one (RFC 7725).
fn denied_row(reason: &Reason) -> Row {
    let status = match reason.status {
        DenyStatus::Gone => StatusCode::GONE,
        DenyStatus::LegalReasons => StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
    };
    let why = reason.text.as_ref().map_or_else(String::new, |text| format!(": {text}"));
    let sentence = format!("the operator of this gateway does not serve this content, by the list {}{why}", reason.list);
    row(status, CacheRule::NoStore, sentence, "Ask the operator if you think that this is a mistake.")
}

fn pin_row(refusal: &PinRefusal) -> Row {
    match refusal {
        PinRefusal::NoPin => {
            row(S::NOT_FOUND, NoStore, "nothing is pinned under this address", "`skygate pin ls` shows what is pinned.")
        }
        PinRefusal::NotOwner => row(
            S::FORBIDDEN,
            NoStore,
            "this is pinned by others, and only they and the operator may unpin it",
            "Use the API key that it was stored with.",
        ),
        // The words of Skynet's daemon.
        PinRefusal::Resolver => {
            row(S::BAD_REQUEST, NoStore, "can't pin version 2 skylink", "Pin the version 1 skylink that it points to.")
        }
    }
}

/// Stored data: what is known absent, what is lost, what is late.
fn store_row(error: &StoreError) -> Row {
    let made_badly = "Whoever made this content has to make it anew.";
    let log_tells = "The operator finds the reason in the gateway's log.";
    match error {
        StoreError::NotFound => row(
            S::NOT_FOUND,
            NoStore,
            "nothing is stored here under this address",
            "Check the address, or add the content to this gateway first.",
        ),
        StoreError::Denied(reason) => denied_row(reason),
        StoreError::Rebuilding => row(
            S::SERVICE_UNAVAILABLE,
            NoStore,
            "the gateway is still reading its catalog from the hosts, and does not know yet whether it has this",
            "Try again in a moment.",
        )
        .retry(RETRY_REBUILDING_S),
        StoreError::TooFewPieces { have, need } => row(
            S::BAD_GATEWAY,
            NoStore,
            format!("too many storage hosts are out of reach: {have} good pieces were found, {need} are needed"),
            "Try again later; the content is complete again when a host comes back.",
        )
        .retry(RETRY_TOO_FEW_PIECES_S),
        StoreError::TimedOut => {
            row(S::GATEWAY_TIMEOUT, NoStore, "the storage hosts did not answer in time", "Try again in a moment.")
                .retry(RETRY_TIMED_OUT_S)
        }
        StoreError::Busy(what) => {
            row(S::TOO_MANY_REQUESTS, NoStore, *what, "Try again when one of them has ended.").retry(RETRY_TOO_MANY_S)
        }
        StoreError::NotEnoughHosts { have, need, .. } => row(
            S::SERVICE_UNAVAILABLE,
            NoStore,
            format!("at most {have} storage hosts can be written to, {need} are needed"),
            "Try again when hosts have come back; `skygate hosts` shows which are missing and why.",
        )
        .retry(RETRY_NOT_ENOUGH_HOSTS_S),
        StoreError::Tree(error) => {
            row(S::INTERNAL_SERVER_ERROR, NoStore, format!("the stored block is malformed: {error}"), made_badly)
        }
        StoreError::BadFile(what) => {
            row(S::INTERNAL_SERVER_ERROR, NoStore, format!("the stored file is malformed: {what}"), made_badly)
        }
        StoreError::Skyfile(error) => row(S::INTERNAL_SERVER_ERROR, NoStore, error.to_string(), made_badly),
        StoreError::BlockTooLarge { .. } => row(S::INTERNAL_SERVER_ERROR, NoStore, error.to_string(), made_badly),
        StoreError::Unsupported(what) => row(S::NOT_IMPLEMENTED, NoStore, *what, "Another gateway may serve it."),
        StoreError::WrongBlock(_) => {
            row(S::INTERNAL_SERVER_ERROR, NoStore, "the stored bytes do not match their address, and are not served", log_tells)
        }
        StoreError::BadPin(_) | StoreError::Catalog(_) => row(S::INTERNAL_SERVER_ERROR, NoStore, "the gateway failed", log_tells),
        StoreError::Records(_) => row(
            S::SERVICE_UNAVAILABLE,
            NoStore,
            "the hosts that keep the gateway's records are out of reach",
            "Try again in a moment.",
        )
        .retry(RETRY_TIMED_OUT_S),
        StoreError::Joined(error) => store_row(error),
    }
}

/// Names: failing to resolve one is a fault of this side or of the name's owner, never "not found" (`ipfs-gateway.md` 2.1).
fn name_row(error: &NameError) -> Row {
    match error {
        NameError::BadName(_) => row(S::BAD_REQUEST, NoStore, error.to_string(), "Check the name for missing or extra characters."),
        NameError::TooManyHops(_) => {
            row(S::BAD_REQUEST, NoStore, error.to_string(), "Whoever owns the name has to point it at content.")
        }
        NameError::NoRecord(_) => {
            row(S::INTERNAL_SERVER_ERROR, NoStore, error.to_string(), "Check the name; its owner has to publish a record for it.")
        }
        NameError::BadRecord { .. } => {
            row(S::INTERNAL_SERVER_ERROR, NoStore, error.to_string(), "Whoever owns the name has to publish a good record.")
        }
        NameError::Refused { .. } => {
            row(S::BAD_REQUEST, NoStore, error.to_string(), "Nothing was stored. Sign the record anew with the key of this name.")
        }
        NameError::NotNewer(_) => row(
            S::CONFLICT,
            NoStore,
            error.to_string(),
            "Nothing was stored. Sign a record with a higher sequence number, or with a later end.",
        ),
        // Why is for the operator: it names hosts.
        NameError::Transient { name, .. } => {
            let sentence = format!("{name} could not be resolved now");
            row(S::BAD_GATEWAY, NoStore, sentence, "Try again in a moment.").retry(RETRY_TIMED_OUT_S)
        }
    }
}

/// IPNS records as such, of the gateway and of the routing API (`ipfs-gateway.md` 2.2 and 6).
fn ipns_row(refusal: &IpnsRefusal) -> Row {
    let media_type = "application/vnd.ipfs.ipns-record";
    match refusal {
        IpnsRefusal::NotAKey => row(S::BAD_REQUEST, Unsaid, refusal.to_string(), "Leave the path out, or leave format= out."),
        IpnsRefusal::NotARecord => row(
            S::NOT_ACCEPTABLE,
            NoStore,
            format!("this address only answers and takes {media_type}"),
            "Ask with Accept: application/vnd.ipfs.ipns-record; send with the same word as Content-Type.",
        ),
        IpnsRefusal::NoRecord(_) => row(S::NOT_FOUND, NoStore, refusal.to_string(), "Its owner has to publish one."),
        IpnsRefusal::Body => row(S::BAD_REQUEST, NoStore, refusal.to_string(), "Nothing was stored. A record has at most 10 KiB."),
    }
}

/// Keys, limits and lists of a portal.
fn portal_row(refusal: &PortalRefusal) -> Row {
    match refusal {
        PortalRefusal::BadKey => row(
            S::UNAUTHORIZED,
            NoStore,
            "this API key is not known: it may have been revoked, or have expired",
            "Ask the operator of this portal for another one.",
        ),
        PortalRefusal::KeysUnread => row(
            S::SERVICE_UNAVAILABLE,
            NoStore,
            "the portal is still reading its API keys from the hosts, and does not know yet whether this is one",
            "Try again in a moment.",
        )
        .retry(RETRY_REBUILDING_S),
        PortalRefusal::Key(error) => key_row(error),
        PortalRefusal::Limit(limit) => limit_row(limit),
        PortalRefusal::BadBody(what) => {
            row(S::BAD_REQUEST, NoStore, format!("the body is malformed: {what}"), "Nothing was changed. Correct the body.")
        }
        PortalRefusal::UnknownHandshakeName => row(
            S::NOT_FOUND,
            NoStore,
            "this portal knows no skylink of this Handshake name",
            "The operator adds names under [names.handshake] in the configuration.",
        ),
    }
}

/// API keys, for the operator who makes and revokes them.
fn key_row(error: &KeyRefused) -> Row {
    match error {
        KeyRefused::Name | KeyRefused::Expired => {
            row(S::BAD_REQUEST, NoStore, error.to_string(), "No key was made. Correct the request.")
        }
        KeyRefused::TooMany => row(S::CONFLICT, NoStore, error.to_string(), "Revoke keys that nobody uses."),
        KeyRefused::Unknown => row(S::NOT_FOUND, NoStore, error.to_string(), "`skygate key ls` shows the keys."),
        KeyRefused::Unavailable(_) => {
            row(S::SERVICE_UNAVAILABLE, NoStore, error.to_string(), "Try again in a moment.").retry(RETRY_TIMED_OUT_S)
        }
    }
}

/// What one client may do.
fn limit_row(limit: &OverLimit) -> Row {
    let sentence = limit.to_string();
    let wait = match limit {
        OverLimit::TooLarge { .. } => {
            return row(
                S::PAYLOAD_TOO_LARGE,
                NoStore,
                sentence,
                "Nothing was stored. Ask the operator for a key with a higher limit.",
            );
        }
        OverLimit::UploadsAtOnce | OverLimit::DownloadsAtOnce => return too_often(sentence, RETRY_TOO_MANY_S),
        OverLimit::Uploads { wait }
        | OverLimit::Bytes { wait }
        | OverLimit::Requests { wait }
        | OverLimit::Registry { wait }
        | OverLimit::Entries { wait } => wait,
    };
    // Rounded up: whoever waits so long is let in.
    too_often(sentence, u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1))
}

fn too_often(sentence: String, wait_s: u32) -> Row {
    row(S::TOO_MANY_REQUESTS, NoStore, sentence, "Wait as long as Retry-After says.").retry(wait_s)
}

/// Uploads that come in pieces, by the words of tus 1.0.0.
fn tus_row(refusal: &TusRefusal) -> Row {
    match refusal {
        TusRefusal::Version => row(S::PRECONDITION_FAILED, NoStore, refusal.to_string(), "Send Tus-Resumable: 1.0.0."),
        TusRefusal::Type => row(S::UNSUPPORTED_MEDIA_TYPE, NoStore, refusal.to_string(), "Say so in the header Content-Type."),
        TusRefusal::BadHeader(..) => {
            row(S::BAD_REQUEST, NoStore, format!("malformed request header {refusal}"), "Correct the header.")
        }
        TusRefusal::Method => row(S::METHOD_NOT_ALLOWED, NoStore, refusal.to_string(), "Use one of the methods in Allow."),
        TusRefusal::NotFinished => row(S::NOT_FOUND, NoStore, refusal.to_string(), "Send the rest of it first."),
        TusRefusal::Spool(error) => spool_row(error),
    }
}

fn spool_row(error: &SpoolError) -> Row {
    let again = "Begin a new upload.";
    let ask = "Ask for its offset with HEAD, and go on there.";
    match error {
        SpoolError::Unknown => row(S::NOT_FOUND, NoStore, error.to_string(), again),
        SpoolError::Gone => row(S::GONE, NoStore, error.to_string(), again),
        SpoolError::WrongOffset { .. } => row(S::CONFLICT, NoStore, error.to_string(), ask),
        SpoolError::TooLong { .. } => row(S::PAYLOAD_TOO_LARGE, NoStore, error.to_string(), "Upload less at once."),
        SpoolError::ClientFull => row(
            S::TOO_MANY_REQUESTS,
            NoStore,
            error.to_string(),
            "End your uploads with PATCH, or remove them with DELETE; those that nobody continues expire.",
        )
        .retry(RETRY_SPOOL_FULL_S),
        SpoolError::Full | SpoolError::TooMany => {
            row(S::SERVICE_UNAVAILABLE, NoStore, error.to_string(), "Try again in a minute.").retry(RETRY_SPOOL_FULL_S)
        }
        SpoolError::DiskFull => row(
            S::INSUFFICIENT_STORAGE,
            NoStore,
            error.to_string(),
            "What came before is kept. The operator has to make room; then ask for the offset, and go on there.",
        ),
        SpoolError::Busy => row(S::LOCKED, NoStore, error.to_string(), ask).retry(RETRY_LOCKED_S),
        SpoolError::IsJoined => row(S::FORBIDDEN, NoStore, error.to_string(), "Send bytes to the parts, and then name them."),
        SpoolError::Bad(_) => row(S::BAD_REQUEST, NoStore, error.to_string(), "Correct what the upload says of itself."),
        SpoolError::Cut => row(S::BAD_REQUEST, NoStore, error.to_string(), ask),
        SpoolError::Stalled => row(S::REQUEST_TIMEOUT, NoStore, error.to_string(), ask),
        SpoolError::Unfinished(FinishError::Ingest(error)) => ingest_row(error),
        SpoolError::Unfinished(FinishError::Stopping) => {
            row(S::SERVICE_UNAVAILABLE, NoStore, "the gateway is stopping", ask).retry(RETRY_TIMED_OUT_S)
        }
        SpoolError::Unfinished(FinishError::Io(_)) | SpoolError::Io(_) => row(
            S::INTERNAL_SERVER_ERROR,
            NoStore,
            "the disk for uploads under way failed",
            "The operator finds the reason in the gateway's log.",
        ),
    }
}

/// Skyfiles.
fn sky_row(refusal: &SkyRefusal) -> Row {
    match refusal {
        SkyRefusal::OtherMethod(_) => row(S::METHOD_NOT_ALLOWED, NoStore, refusal.to_string(), "Use one of these methods."),
        SkyRefusal::NoDag { .. } => row(S::NOT_ACCEPTABLE, NoStore, refusal.to_string(), "Leave format= out."),
        // Skynet said 404 here. But what was not looked for to the end may be there, and clients take 404 for absence.
        SkyRefusal::TimedOut => {
            row(S::GATEWAY_TIMEOUT, NoStore, refusal.to_string(), "Ask again with a longer timeout=.").retry(RETRY_TIMED_OUT_S)
        }
        SkyRefusal::EntryNotFound | SkyRefusal::EntryDeleted => {
            row(S::NOT_FOUND, NoStore, refusal.to_string(), "Whoever owns the skylink has to point it at content.")
        }
        SkyRefusal::EmptyEntry | SkyRefusal::NestedTooDeep => {
            row(S::INTERNAL_SERVER_ERROR, NoStore, refusal.to_string(), "Whoever owns the skylink has to point it at content.")
        }
        SkyRefusal::MalformedEntry => {
            row(S::BAD_REQUEST, NoStore, refusal.to_string(), "Whoever owns the skylink has to point it at content.")
        }
        SkyRefusal::NoResolver => row(S::BAD_REQUEST, Unsaid, refusal.to_string(), "Use the skylink as it is."),
        SkyRefusal::BadArchivePath => row(S::INTERNAL_SERVER_ERROR, NoStore, refusal.to_string(), "Ask for its files one by one."),
    }
}

/// Skynet's registry (`skynet.md` 5, status map).
fn registry_row(refusal: &RegistryRefusal) -> Row {
    let stored_nothing = "Nothing was stored. Correct the body and send it again.";
    let sentence = refusal.to_string();
    match refusal {
        RegistryRefusal::NoEntry => row(S::NOT_FOUND, NoStore, sentence, "Its owner has to write one."),
        // Skynet's server said 404 here; a client would take that for an entry that was never written.
        RegistryRefusal::NotRead(_) => {
            let sentence = "the registry entry could not be read within the given time";
            row(S::GATEWAY_TIMEOUT, NoStore, sentence, "Try again in a moment.").retry(RETRY_TIMED_OUT_S)
        }
        RegistryRefusal::Update(PutEntryError::NotReplacing(_)) => {
            row(S::BAD_REQUEST, NoStore, sentence, "Nothing was stored. Read the entry and sign one with a higher revision.")
        }
        RegistryRefusal::Update(PutEntryError::Bad(_)) | RegistryRefusal::Entry(_) => {
            row(S::BAD_REQUEST, NoStore, sentence, stored_nothing)
        }
        RegistryRefusal::Update(PutEntryError::Transient(_)) => row(
            S::SERVICE_UNAVAILABLE,
            NoStore,
            "Unable to update the registry: too few of the hosts of this entry are in reach",
            "Send the same entry again in a moment.",
        )
        .retry(RETRY_TIMED_OUT_S),
        RegistryRefusal::Json(_) | RegistryRefusal::Body(_) => row(S::BAD_REQUEST, NoStore, sentence, stored_nothing),
        RegistryRefusal::BodyTooLong { .. } => row(S::PAYLOAD_TOO_LARGE, NoStore, sentence, stored_nothing),
        RegistryRefusal::BodyCut => row(S::REQUEST_TIMEOUT, NoStore, sentence, "Nothing was stored. Send it again."),
        RegistryRefusal::NoWebSocket => row(S::UPGRADE_REQUIRED, NoStore, sentence, "Open it with a WebSocket client."),
        RegistryRefusal::ForeignOrigin => {
            row(S::FORBIDDEN, NoStore, sentence, "Open it from a page of this portal, or from a program.")
        }
    }
}

/// Uploads.
fn ingest_row(error: &IngestError) -> Row {
    match error {
        IngestError::Store(error) => store_row(error),
        IngestError::Bad(what) => {
            row(S::BAD_REQUEST, NoStore, what.clone(), "Nothing was stored. Use `skygate add`, or see docs/formats.md, section 9.")
        }
        IngestError::Cut | IngestError::Body(_) => {
            row(S::BAD_REQUEST, NoStore, "the upload ended too early", "Nothing was stored. Send it again.")
        }
        IngestError::TooLarge { .. } => row(
            S::PAYLOAD_TOO_LARGE,
            NoStore,
            error.to_string(),
            "Nothing was stored. Upload less at once, or ask the operator for a higher limit.",
        ),
        IngestError::Stalled => {
            row(S::REQUEST_TIMEOUT, NoStore, "the upload stood still for too long", "Nothing was stored. Send it again.")
        }
        IngestError::Busy => {
            row(S::SERVICE_UNAVAILABLE, NoStore, "as many uploads are under way as this gateway takes", "Try again in a moment.")
                .retry(RETRY_TIMED_OUT_S)
        }
        IngestError::Scratch(_) => row(
            S::SERVICE_UNAVAILABLE,
            NoStore,
            "the data directory of this gateway has no room for what an import sorts there",
            "Nothing was stored. Make room on its disk, then send it again.",
        ),
        IngestError::SameKeyUnderWay => row(
            S::CONFLICT,
            NoStore,
            "an upload with this idempotency key is under way",
            "Wait for it to end, then ask again with the same key.",
        ),
    }
}

fn row(status: StatusCode, cache: CacheRule, sentence: impl Into<Cow<'static, str>>, advice: &'static str) -> Row {
    Row { status, sentence: sentence.into(), advice, retry_after_s: None, cache }
}

impl Row {
    fn retry(self, seconds: u32) -> Row {
        Row { retry_after_s: Some(seconds), ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn faults_that_pass_are_retried_and_never_cached() {
        let rows = [
            (Refusal::from(StoreError::NotFound), 404, false),
            (Refusal::from(StoreError::Rebuilding), 503, true),
            (Refusal::from(StoreError::TooFewPieces { have: 5, need: 6 }), 502, true),
            (Refusal::from(StoreError::TimedOut), 504, true),
            (Refusal::from(StoreError::NotEnoughHosts { have: 7, need: 8, reason: "two are full".to_owned() }), 503, true),
            (Refusal::from(StoreError::BadPin("disk /dev/sda is on fire".to_owned())), 500, false),
            (Refusal::from(StoreError::Joined(Arc::new(StoreError::TimedOut))), 504, true),
            (Refusal::HeadTimedOut, 504, true),
        ];
        for (refusal, status, retried) in rows {
            let row = refusal.row();
            assert_eq!(row.status.as_u16(), status, "{refusal}");
            assert_eq!(row.retry_after_s.is_some(), retried, "{refusal}");
            assert_eq!(row.cache, CacheRule::NoStore, "{refusal}");
        }
    }

    #[test]
    fn inner_words_stay_inside() {
        let row = Refusal::from(StoreError::BadPin("disk /dev/sda is on fire".to_owned())).row();
        assert!(!row.sentence.contains("sda") && !row.advice.is_empty());
        let bad = Refusal::BadPath { path: "/ipfs/QmInvalidCID".to_owned(), error: AddressError::CidEmpty };
        assert!(bad.row().sentence.starts_with("invalid path \"/ipfs/QmInvalidCID\""), "the suite looks for these words");
    }
}
