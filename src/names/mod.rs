//! Names that change, to fixed roots with a lifetime: DNSLink, IPNS keys, and what the configuration fixes.
//!
//! *Does*: follows a name, link by link, to something content-addressed, and says how long that holds.
//! *Hides*: DNS, TXT records, IPNS records and their signatures, caches and their lifetimes.
//! *Must never know*: HTTP, what lies below a root.
//! *Words*: a **pointee** is what a name points to in the end; a **hop** is one step of a chain; the **lifetime** is the
//! shortest of all hops.

use std::time::{Duration, SystemTime};

use crate::address::{Cid, SitePath, Skylink};

/// What a name points to, and for how long that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub pointee: Pointee,
    /// Time left until the shortest-lived hop has to be looked at again; `None` if a hop has no lifetime of its own (a
    /// name fixed by the configuration).
    pub ttl: Option<Duration>,
    /// When the answer was found.
    pub found_at: SystemTime,
}

/// The end of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pointee {
    /// `/ipfs/{root}{path}`; the path may be empty. It stands before the path of the request.
    Ipfs { root: Cid, path: SitePath },
    /// `/skynet-ns/{skylink}{path}`, as it stood there.
    Skylink { link: Skylink, path_text: String },
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
    /// Not found out: never told, nor remembered, as absence.
    #[error("{name} could not be resolved: {why}")]
    Transient { name: String, why: String },
}

/// The names of a node. A cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Names;

impl Names {
    /// Follows `name` to its end.
    pub async fn resolve(&self, name: &str) -> Result<Resolved, NameError> {
        Err(NameError::NoRecord(name.to_owned()))
    }
}
