//! What a request is about, whatever form its address had: path, subdomain and DNSLink host all become a [`Target`].

use std::time::{Duration, SystemTime};

use ::http::header::HeaderValue;

use crate::address::{Address, Cid, SitePath};
use crate::names::{NameOnTheWay, Pointee, Resolved};

use super::super::ask::{Ask, Namespace, Place};
use super::super::plan::ascii;
use super::super::refusal::Refusal;
use super::super::services::Services;
use super::super::skynet;
use super::names_denied;

/// A root and a path inside it, with what the reply has to know of the way there.
#[derive(Debug, Clone)]
pub struct Target {
    pub namespace: Namespace,
    /// After names are resolved.
    pub root: Cid,
    /// The root as it stands in the address: a CID, a key or a domain name.
    pub root_text: String,
    /// Inside the root. Begins with the path that the name points to, if it has one.
    pub path: SitePath,
    /// Names of `path` that came from the pointer and do not stand in the URL.
    pub hidden: usize,
    /// `/ipns/` only: the names that lead here, the asked one first.
    pub names: Vec<NameOnTheWay>,
    /// `/ipns/` only: how long what is told holds.
    pub moving: Option<Moving>,
    /// Where the address stood.
    pub place: Place,
}

/// Lifetime of what a name points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moving {
    /// `None` if it is not known: then no lifetime is told.
    pub ttl: Option<Duration>,
    pub found_at: SystemTime,
}

/// A content path before its name is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentPath {
    Ipfs { root: Cid, root_text: String, path: SitePath },
    Ipns { name: String, path: SitePath },
}

impl ContentPath {
    /// Reads the address of a request on a gateway surface. Asks nobody.
    pub fn of(ask: &Ask) -> Result<ContentPath, Refusal> {
        let text = content_path_text(ask);
        match Address::parse(&text).map_err(|error| ask.bad_path(error))? {
            Address::Ipfs { root, path } => {
                let root_text = text.split('/').nth(2).unwrap_or_default().to_owned();
                Ok(ContentPath::Ipfs { root, root_text, path })
            }
            Address::Ipns { name, path } => Ok(ContentPath::Ipns { name, path }),
            Address::Skylink { .. } => Err(Refusal::NoRoute),
        }
    }

    pub fn path(&self) -> &SitePath {
        match self {
            ContentPath::Ipfs { path, .. } | ContentPath::Ipns { path, .. } => path,
        }
    }
}

/// `/ipfs/...` or `/ipns/...` as text, percent-encoded as it was asked: the `X-Ipfs-Path` of the reply.
pub fn content_path_text(ask: &Ask) -> String {
    match &ask.place {
        Place::Path => ask.path.clone(),
        Place::Skylink { link, .. } => format!("/{link}{}", ask.path),
        Place::Subdomain { namespace, root_text, .. } => format!("/{}/{root_text}{}", namespace.as_str(), ask.path),
        Place::DnsLink { host } => format!("/ipns/{}{}", without_port(host), ask.path),
    }
}

fn without_port(host: &str) -> &str {
    host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name)
}

/// What an address leads to, once its name is followed.
#[derive(Debug, Clone)]
pub enum Pointed {
    /// Boxed: it is three times the other.
    Dag(Box<Target>),
    Skyfile(skynet::Target),
}

impl Pointed {
    /// Resolves the address of a request.
    pub async fn of(services: &Services, ask: &Ask, content_path: ContentPath) -> Result<Pointed, Refusal> {
        match content_path {
            ContentPath::Ipfs { root, root_text, path } => {
                let (namespace, place) = (Namespace::Ipfs, ask.place.clone());
                let (hidden, names, moving) = (0, Vec::new(), None);
                Ok(Pointed::Dag(Box::new(Target { namespace, root, root_text, path, hidden, names, moving, place })))
            }
            ContentPath::Ipns { name, path } => {
                let Resolved { pointee, names, ttl, found_at } = services.names.resolve(&name).await?;
                let moving = Some(Moving { ttl, found_at });
                match pointee {
                    Pointee::Ipfs { root, path: above } => Ok(Pointed::Dag(Box::new(Target {
                        namespace: Namespace::Ipns,
                        root,
                        root_text: name,
                        hidden: above.segments().len(),
                        path: above.join(&path).map_err(|error| ask.bad_path(error))?,
                        names,
                        moving,
                        place: ask.place.clone(),
                    }))),
                    Pointee::Skylink { link, path_text } => {
                        if let Some(reason) = names_denied(services.content.as_ref(), &names, &path.segments().join("/")) {
                            return Err(Refusal::Denied(Box::new(reason)));
                        }
                        let below = match ask.place {
                            Place::Path => ask.path.splitn(3, '/').nth(2).and_then(|rest| rest.find('/').map(|at| &rest[at..])),
                            Place::Subdomain { .. } | Place::DnsLink { .. } | Place::Skylink { .. } => Some(ask.path.as_str()),
                        };
                        Ok(Pointed::Skyfile(skynet::Target::below(ask, link, &path_text, below.unwrap_or_default(), moving)))
                    }
                }
            }
        }
    }
}

impl Target {
    /// The names of the path that stand in the URL, decoded.
    pub fn asked_names(&self) -> String {
        self.path.segments()[self.hidden..].join("/")
    }

    /// Those before them, which the pointer hides.
    pub fn hidden_names(&self) -> String {
        self.path.segments()[..self.hidden].join("/")
    }

    /// The cache rule of a reply whose rule is `immutable` when the address never changes. Under a name it is the name's
    /// lifetime, and nothing when that is not known.
    pub fn cache_control(&self, immutable: &'static str) -> Option<HeaderValue> {
        match &self.moving {
            None => Some(HeaderValue::from_static(immutable)),
            Some(Moving { ttl: Some(ttl), .. }) => Some(ascii(format!("public, max-age={}", ttl.as_secs()))),
            Some(Moving { ttl: None, .. }) => None,
        }
    }

    /// `Last-Modified` of a reply under a name: when it was resolved, if its lifetime is known.
    pub fn last_modified(&self) -> Option<SystemTime> {
        self.moving.filter(|moving| moving.ttl.is_some()).map(|moving| moving.found_at)
    }
}
