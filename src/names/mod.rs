//! Names that change, to fixed roots with a lifetime: DNSLink, IPNS keys, and what the configuration fixes; and the
//! entries of Skynet's registry.
//!
//! *Does*: follows a name, link by link, to something content-addressed, and says how long that holds. Reads and writes
//! registry entries at their quorum.
//! *Hides*: DNS, TXT records, IPNS records and entries with their signatures, caches and their lifetimes.
//! *Must never know*: HTTP, what lies below a root.
//! *Words*: a **pointee** is what a name points to in the end; a **hop** is one step of a chain; the **lifetime** is the
//! shortest of all hops.
//! *Limits*: [`WATCHED_EACH_MAX`], [`WATCHED_MAX`], [`HOPS_MAX`], [`STALE_MAX`], [`BACK_OFF`], [`RECORD_RECHECK`], [`LIST_MAX`], [`IPNS_RECORD_BYTES_MAX`], and the
//! bytes of [`NamesOptions::cache_bytes`].
//!
//! A name is looked up once for each lifetime of the answer, whoever asks how often: absences are remembered as long as
//! DNS says, failures for [`BACK_OFF`] only, and never as absence. While a refresh fails, the last good answer stands in
//! for up to [`STALE_MAX`], but never past the end of an IPNS record.

pub mod dns;
mod dnslink;
mod entry;
mod handshake;
mod hops;
mod ipns;
mod pointer;
mod registry;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::FutureExt;

use crate::address::{Cid, SitePath, Skylink, TrailingSlash};
use crate::measure::{Class, Endpoint, Measures};
use crate::records::{Extent, Kind, Record, RecordError, Records};

use dns::{TxtError, TxtSource};
use hops::{Hop, Hops, Lifetime};
use pointer::{Name, PathForm, Pointer, is_looked_up};

pub use dns::{DnsResolver, Resolver};
pub use entry::{
    BadEntry, ENTRY_DATA_BYTES_MAX, ENTRY_SIGNATURE_BYTES, Entry, EntryId, EntryKey, EntryType, NotReplacing, SignedEntry,
    datakey_of, entry_owner_check,
};
pub use handshake::{BadHandshakeName, HandshakeNames, HandshakeTarget};
pub use ipns::{BadIpnsRecord, IPNS_RECORD_BYTES_MAX, IpnsName, IpnsRecord, owner_check};
pub use registry::{EntryHealth, PutEntryError};
pub use watch::{EntryHub, EntryWatch, TooManyWatched, WATCHED_EACH_MAX, WATCHED_MAX};

/// Steps of one chain (`dnslink-gateway`, "recursion limit").
pub const HOPS_MAX: usize = 32;
/// How long after its end an answer stands in for one that cannot be had. A resolver that is down for longer is noticed;
/// content that nobody renews must not stay for days.
pub const STALE_MAX: Duration = Duration::from_secs(3600);
/// After a failure, before the same name is asked for again: a storm of requests costs one look-up a second.
pub const BACK_OFF: Duration = Duration::from_secs(1);
/// How long an IPNS record read from the hosts is taken as the newest. A put through this node counts at once, one
/// through another node after this time.
pub const RECORD_RECHECK: Duration = Duration::from_secs(60);
/// How long it is believed that a key has no record: shorter, since publishing is what comes next.
const RECORD_ABSENCE: Duration = Duration::from_secs(10);
/// Lifetime of IPNS records that name none (`ipfs-gateway.md` 6: 60 s).
const RECORD_TTL_DEFAULT: Duration = Duration::from_secs(60);
/// Shortest and longest time that a DNS answer is kept. Zero would make every request a look-up; a day is what
/// resolvers keep at most.
const DNS_TTL_MIN: Duration = Duration::from_secs(1);
const DNS_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Names in one listing: some hundred KiB.
pub const LIST_MAX: usize = 1000;
/// The label that DNSLink records stand under.
const DNSLINK_LABEL: &str = "_dnslink";

/// What a name points to, and for how long that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub pointee: Pointee,
    /// The names that lead there, the asked one first.
    pub names: Vec<NameOnTheWay>,
    /// Time left until the shortest-lived hop has to be looked at again; `None` if a hop has no lifetime of its own (a
    /// name fixed by the configuration).
    pub ttl: Option<Duration>,
    /// When the answer was found.
    pub found_at: SystemTime,
}

/// One name of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameOnTheWay {
    /// In the form that names are kept by.
    pub name: String,
    /// What the pointers before it have put before the path of the request.
    pub below: SitePath,
}

/// The end of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pointee {
    /// `/ipfs/{root}{path}`; the path may be empty. It stands before the path of the request.
    Ipfs { root: Cid, path: SitePath },
    /// `/skynet-ns/{skylink}{path}`, as it stood there.
    Skylink { link: Skylink, path_text: String },
}

/// As a content path.
impl fmt::Display for Pointee {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pointee::Ipfs { root, path } => write!(out, "/ipfs/{root}{}", path.encoded()),
            Pointee::Skylink { link, path_text } => write!(out, "/skynet-ns/{link}{path_text}"),
        }
    }
}

/// Why a name leads nowhere. The producer says whether asking again helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Neither a key nor a domain name.
    #[error("{0:?} is no name: neither an IPNS key nor a domain name")]
    BadName(String),
    /// It is known that there is no record: absence, not failure.
    #[error("no record is known for {0}")]
    NoRecord(String),
    /// A record is there and says nothing usable.
    #[error("the record of {name} cannot be used: {why}")]
    BadRecord { name: String, why: String },
    /// A chain longer than the limit, or one that comes back to itself (`dnslink-gateway`: 400).
    #[error("{0} leads through more names than are followed, or back to itself")]
    TooManyHops(String),
    /// A record that was brought here to be kept, and is not.
    #[error("the record for {name} is not taken: {why}")]
    Refused { name: String, why: String },
    /// The same for one that is not newer than the one that is known.
    #[error("a record for {0} is known that is newer, or as new")]
    NotNewer(String),
    /// Not found out: never told, nor remembered, as absence.
    #[error("{name} could not be resolved: {why}")]
    Transient { name: String, why: String },
}

impl NameError {
    fn text_bytes(&self) -> usize {
        match self {
            NameError::BadName(name) | NameError::NoRecord(name) | NameError::TooManyHops(name) | NameError::NotNewer(name) => {
                name.len()
            }
            NameError::BadRecord { name, why } | NameError::Refused { name, why } | NameError::Transient { name, why } => {
                name.len() + why.len()
            }
        }
    }
}

/// The time of day. A function, so that tests need not wait.
pub type Now = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What this room takes from the configuration.
#[derive(Debug, Clone)]
pub struct NamesOptions {
    /// Names that are fixed here, with what they point to. They win over DNS and records.
    pub fixed: BTreeMap<String, String>,
    /// Memory for what was looked up.
    pub cache_bytes: u64,
}

impl Default for NamesOptions {
    fn default() -> NamesOptions {
        // Some ten thousand names.
        NamesOptions { fixed: BTreeMap::new(), cache_bytes: 8 << 20 }
    }
}

/// A fixed name that makes no sense, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFixedName {
    #[error("[names.static] {0:?} is no name: write a domain, or an IPNS key")]
    Name(String),
    #[error("[names.static] {0:?} stands there twice, in two spellings")]
    Twice(String),
    #[error("[names.static] {name:?} points to {target:?}: write \"/ipfs/CID\", \"/ipns/NAME\" or \"/skynet-ns/SKYLINK\"")]
    Target { name: String, target: String },
}

/// A stored IPNS record that holds.
#[derive(Debug, Clone)]
pub struct StoredRecord {
    /// In the form that names are kept by.
    pub name: String,
    pub bytes: Bytes,
    /// How long it may be kept: its TTL, never past its end.
    pub lifetime: Duration,
    pub valid_until: SystemTime,
}

/// One name of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRow {
    pub name: String,
    /// What it points to, as it is written there.
    pub value: String,
    pub origin: NameOrigin,
}

/// Where a name's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOrigin {
    Fixed,
    Record { sequence: u64, ttl: Option<Duration>, valid_until: String, expired: bool },
}

/// The names of a node. A cheap handle.
#[derive(Clone)]
pub struct Names {
    inner: Arc<Inner>,
}

struct Inner {
    fixed: BTreeMap<String, Pointer>,
    records: Records,
    /// Nobody is asked when there is none.
    txt: Option<Arc<dyn TxtSource>>,
    hops: Arc<Hops>,
    entries: EntryHub,
    measures: Arc<Measures>,
    now: Now,
}

impl fmt::Debug for Names {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Names({} fixed)", self.inner.fixed.len())
    }
}

impl Names {
    pub fn new(
        options: NamesOptions,
        records: Records,
        txt: Option<Arc<dyn TxtSource>>,
        measures: Arc<Measures>,
    ) -> Result<Names, BadFixedName> {
        Names::with_clock(options, records, txt, measures, Arc::new(SystemTime::now))
    }

    fn with_clock(
        options: NamesOptions,
        records: Records,
        txt: Option<Arc<dyn TxtSource>>,
        measures: Arc<Measures>,
        now: Now,
    ) -> Result<Names, BadFixedName> {
        let fixed = read_fixed(&options.fixed)?;
        let hops = Arc::new(Hops::new(options.cache_bytes));
        Ok(Names { inner: Arc::new(Inner { fixed, records, txt, hops, entries: EntryHub::default(), measures, now }) })
    }

    /// Follows `name` to its end.
    pub async fn resolve(&self, name: &str) -> Result<Resolved, NameError> {
        let started = Instant::now();
        let mut looked_up = false;
        let resolved = self.follow(name, &mut looked_up).await;
        let class = if looked_up { Class::Hosts } else { Class::Memory };
        self.inner.measures.observe(Endpoint::NameResolution, class, started.elapsed());
        resolved
    }

    async fn follow(&self, asked: &str, looked_up: &mut bool) -> Result<Resolved, NameError> {
        let mut name = Name::parse(asked).ok_or_else(|| NameError::BadName(asked.to_owned()))?;
        // What the pointers so far have put before the path of the request.
        let mut below = SitePath::root(TrailingSlash::No);
        let mut visited = Vec::new();
        let mut names = Vec::new();
        let mut ttl = Some(Duration::MAX);
        let mut found_at = SystemTime::UNIX_EPOCH;
        loop {
            if visited.len() == HOPS_MAX || visited.contains(&name) {
                return Err(NameError::TooManyHops(asked.to_owned()));
            }
            let now = (self.inner.now)();
            let (pointer, hop_ttl, hop_found_at) = match self.inner.fixed.get(&name.text()) {
                Some(pointer) => (pointer.clone(), None, now),
                None => {
                    let hop = self.hop(&name, looked_up).await?;
                    (hop.found.clone()?, Some(hop.lifetime.left(now)), hop.found_at)
                }
            };
            ttl = ttl.zip(hop_ttl).map(|(one, other)| one.min(other));
            found_at = found_at.max(hop_found_at);
            names.push(NameOnTheWay { name: name.text(), below: below.clone() });
            visited.push(name);
            let above = |path: SitePath, below: &SitePath| {
                let why = |error| NameError::BadRecord { name: asked.to_owned(), why: format!("its path: {error}") };
                path.join(below).map_err(why)
            };
            match pointer {
                Pointer::Ipfs { root, path } => {
                    let pointee = Pointee::Ipfs { root, path: above(path, &below)? };
                    return Ok(Resolved { pointee, names, ttl, found_at });
                }
                Pointer::Skylink { link, path_text } => {
                    let pointee = Pointee::Skylink { link, path_text: format!("{path_text}{}", below.encoded()) };
                    return Ok(Resolved { pointee, names, ttl, found_at });
                }
                Pointer::Ipns { name: next, path } => {
                    below = above(path, &below)?;
                    name = next;
                }
            }
        }
    }

    /// One step that is not fixed.
    async fn hop(&self, name: &Name, looked_up: &mut bool) -> Result<Arc<Hop>, NameError> {
        match (name, &self.inner.txt) {
            (Name::Domain(domain), _) if !is_looked_up(domain) => return Err(NameError::BadName(domain.clone())),
            (Name::Domain(domain), None) => return Err(NameError::NoRecord(domain.clone())),
            (Name::Domain(_), Some(_)) | (Name::Key(_), _) => {}
        }
        let look_up = || {
            *looked_up = true;
            let (inner, name) = (self.inner.clone(), name.clone());
            async move { inner.look_up(&name).await }.boxed()
        };
        self.inner.hops.find(&name.text(), (self.inner.now)(), look_up).await
    }

    /// Has this host a DNSLink, or a fixed name? Never asks for single labels and addresses. Costs one look-up for each
    /// lifetime of the answer.
    pub async fn has_dnslink(&self, host: &str) -> Result<bool, NameError> {
        let Some(name) = Name::parse(host) else { return Ok(false) };
        if self.inner.fixed.contains_key(&name.text()) {
            return Ok(true);
        }
        match &name {
            Name::Domain(domain) if is_looked_up(domain) => {}
            Name::Domain(_) | Name::Key(_) => return Ok(false),
        }
        let hop = match self.hop(&name, &mut false).await {
            Ok(hop) => hop,
            Err(NameError::NoRecord(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        match &hop.found {
            // One that is wrong is there all the same: its visitors are told, and not shown another site.
            Ok(_) | Err(NameError::BadRecord { .. }) => Ok(true),
            Err(NameError::NoRecord(_)) => Ok(false),
            Err(error) => Err(error.clone()),
        }
    }

    /// The newest record of a key, if it still holds.
    pub async fn record(&self, name: &str) -> Result<StoredRecord, NameError> {
        let key = parse_key(name)?;
        let (record, bytes) = self.inner.newest(&key).await?;
        let now = (self.inner.now)();
        if record.expired(now) {
            return Err(expired(&key, &record));
        }
        let lifetime = record.lifetime(now, RECORD_TTL_DEFAULT);
        Ok(StoredRecord { name: key.to_string(), bytes, lifetime, valid_until: record.valid_until() })
    }

    /// Keeps a record, at its quorum when this returns. One that does not verify, has run out, or is not newer than the
    /// one that is known, is refused; the known one itself may come again. Answers with the name in its usual form.
    pub async fn put_record(&self, name: &str, bytes: Bytes) -> Result<String, NameError> {
        let key = parse_key(name)?;
        let refused = |why: String| NameError::Refused { name: key.to_string(), why };
        let record = ipns::verify(&key, &bytes).map_err(|error| refused(error.to_string()))?;
        if record.expired((self.inner.now)()) {
            return Err(refused(BadIpnsRecord::Expired(record.validity_text).to_string()));
        }
        let put = self.inner.records.put(Record::new(key.record_key(), record.order(), bytes.clone())).await;
        match put {
            Ok(()) => {}
            Err(RecordError::NotNewer { newest }) if newest.body == bytes => {}
            Err(RecordError::NotNewer { .. }) => return Err(NameError::NotNewer(key.to_string())),
            Err(RecordError::Invalid(error)) => return Err(refused(error.to_string())),
            Err(error @ (RecordError::Unavailable { .. } | RecordError::NoNextVersion(_))) => {
                return Err(NameError::Transient { name: key.to_string(), why: error.to_string() });
            }
        }
        self.inner.hops.forget(&key.to_string());
        Ok(key.to_string())
    }

    /// The fixed names and those with a record, at most [`LIST_MAX`].
    pub async fn list(&self) -> (Vec<NameRow>, Extent) {
        let fixed = self.inner.fixed.iter().map(|(name, pointer)| NameRow {
            name: name.clone(),
            value: pointer.to_string(),
            origin: NameOrigin::Fixed,
        });
        let mut rows: Vec<NameRow> = fixed.take(LIST_MAX).collect();
        let fixed_count = rows.len();
        let mut scan = self.inner.records.scan(Kind::Ipns);
        let now = (self.inner.now)();
        while let Some(scanned) = scan.next().await {
            if rows.len() == LIST_MAX {
                return (rows, Extent::Partial);
            }
            let Some(key) = IpnsName::parse(scanned.record.key.text()) else { continue };
            let Ok(record) = ipns::verify(&key, &scanned.record.body) else { continue };
            let expired = record.expired(now);
            rows.push(NameRow {
                name: key.to_string(),
                value: String::from_utf8_lossy(&record.value).into_owned(),
                origin: NameOrigin::Record {
                    sequence: record.sequence,
                    ttl: record.ttl,
                    valid_until: record.validity_text,
                    expired,
                },
            });
        }
        rows[fixed_count..].sort_by(|a, b| a.name.cmp(&b.name));
        (rows, scan.extent())
    }
}

/// Reads what `[names.static]` says.
fn read_fixed(written: &BTreeMap<String, String>) -> Result<BTreeMap<String, Pointer>, BadFixedName> {
    let mut fixed = BTreeMap::new();
    for (text, target) in written {
        let name = Name::parse(text).ok_or_else(|| BadFixedName::Name(text.clone()))?;
        let pointer = Pointer::parse(target, PathForm::Encoded);
        let pointer = pointer.ok_or_else(|| BadFixedName::Target { name: text.clone(), target: target.clone() })?;
        if fixed.insert(name.text(), pointer).is_some() {
            return Err(BadFixedName::Twice(text.clone()));
        }
    }
    Ok(fixed)
}

/// Do the fixed names of a configuration make sense?
pub fn check_fixed(written: &BTreeMap<String, String>) -> Result<(), BadFixedName> {
    read_fixed(written).map(drop)
}

fn parse_key(name: &str) -> Result<IpnsName, NameError> {
    IpnsName::parse(name).ok_or_else(|| NameError::BadName(name.to_owned()))
}

fn expired(name: &IpnsName, record: &IpnsRecord) -> NameError {
    let why = BadIpnsRecord::Expired(record.validity_text.clone()).to_string();
    NameError::BadRecord { name: name.to_string(), why }
}

impl Inner {
    /// Asks, and falls back on what was known when there is no answer.
    async fn look_up(&self, name: &Name) -> Hop {
        let asked_at = (self.now)();
        let hop = match name {
            Name::Key(key) => self.look_up_record(key).await,
            Name::Domain(domain) => self.look_up_domain(domain).await,
        };
        if let Err(error @ NameError::Transient { .. }) = &hop.found
            && let Some(stale) = self.hops.known(&name.text()).and_then(|known| known.stand_in(asked_at, BACK_OFF))
        {
            tracing::warn!(%error, "the last answer stands in");
            return stale;
        }
        hop
    }

    async fn look_up_domain(&self, domain: &str) -> Hop {
        let Some(txt) = &self.txt else { return self.not_found(NameError::NoRecord(domain.to_owned()), BACK_OFF) };
        let answer = match txt.txt(&format!("{DNSLINK_LABEL}.{domain}")).await {
            Ok(answer) => answer,
            Err(TxtError::NoRecord { negative_ttl }) => {
                return self.not_found(NameError::NoRecord(domain.to_owned()), negative_ttl);
            }
            Err(TxtError::Transient(why)) => {
                return self.not_found(NameError::Transient { name: domain.to_owned(), why }, BACK_OFF);
            }
        };
        let ttl = answer.ttl.clamp(DNS_TTL_MIN, DNS_TTL_MAX);
        let pointer = match dnslink::choose(&answer.values) {
            Ok(Some(pointer)) => pointer,
            Ok(None) => return self.not_found(NameError::NoRecord(domain.to_owned()), ttl),
            Err(error) => {
                let error = NameError::BadRecord { name: domain.to_owned(), why: error.to_string() };
                return self.not_found(error, ttl);
            }
        };
        let found_at = (self.now)();
        let end = found_at + ttl;
        let lifetime = Lifetime::Until(end);
        Hop { found: Ok(pointer), found_at, lifetime, fresh_until: end, stale_until: end + STALE_MAX }
    }

    async fn look_up_record(&self, key: &IpnsName) -> Hop {
        let record = match self.newest(key).await {
            Ok((record, _)) => record,
            Err(error @ NameError::NoRecord(_)) => return self.not_found(error, RECORD_ABSENCE),
            Err(error) => return self.not_found(error, BACK_OFF),
        };
        let found_at = (self.now)();
        if record.expired(found_at) {
            return self.not_found(expired(key, &record), RECORD_ABSENCE);
        }
        let value = std::str::from_utf8(&record.value).ok();
        let Some(pointer) = value.and_then(|value| Pointer::parse(value, PathForm::Plain)) else {
            let why = "its value is no content path".to_owned();
            return self.not_found(NameError::BadRecord { name: key.to_string(), why }, RECORD_RECHECK);
        };
        let end = record.valid_until();
        let fresh_until = (found_at + RECORD_RECHECK).min(end);
        Hop {
            found: Ok(pointer),
            found_at,
            lifetime: Lifetime::Each { span: record.ttl.unwrap_or(RECORD_TTL_DEFAULT), end },
            fresh_until,
            stale_until: (fresh_until + STALE_MAX).min(end),
        }
    }

    /// The newest stored record of a key, whether it holds or not.
    async fn newest(&self, key: &IpnsName) -> Result<(IpnsRecord, Bytes), NameError> {
        match self.records.newest(&key.record_key()).await {
            Ok(Some(stored)) => match ipns::verify(key, &stored.body) {
                Ok(record) => Ok((record, stored.body.clone())),
                Err(error) => Err(NameError::BadRecord { name: key.to_string(), why: error.to_string() }),
            },
            Ok(None) => Err(NameError::NoRecord(key.to_string())),
            Err(error) => Err(NameError::Transient { name: key.to_string(), why: error.to_string() }),
        }
    }

    fn not_found(&self, error: NameError, keep: Duration) -> Hop {
        let found_at = (self.now)();
        let end = found_at + keep;
        Hop { found: Err(error), found_at, lifetime: Lifetime::Until(end), fresh_until: end, stale_until: end }
    }
}
