//! Who sent a request, whether it may write (`design.md` 10), and whether its client has not had enough for now.
//!
//! One call answers all three: [`Sender::admit`]. What it gives is held until the work is done.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ::http::header::{self, HeaderMap};
use ::http::{HeaderName, Method};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;

use crate::access::{
    Caller, Client, Forwarding, Known, Limiter, OpenPlace, OverLimit, Peer, RequestSource, Rules, SECRET_TEXT_MAX, WriteRefused,
    client_address, is_forwarding_header, loopback_write_allowed,
};

use super::ask::{Ask, Trust, text};
use super::hosts::HostRules;
use super::refusal::{PortalRefusal, Refusal};
use super::services::{PublicWrites, Services, UploadStream};

const API_KEY: HeaderName = HeaderName::from_static("skynet-api-key");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Keys looked at in one request: one a header that can carry one, and some that a client sends twice.
const KEYS_TRIED_MAX: usize = 4;

/// Who sent the request, for the rules of writing.
pub struct Sender<'a> {
    pub headers: &'a HeaderMap,
    pub peer: SocketAddr,
}

/// Why a caller may not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAllowed {
    /// A key was sent, and is not known.
    BadKey,
    /// A key was sent, and not all keys have been read yet.
    KeysUnread,
    /// No key, and not from this machine.
    Foreign(WriteRefused),
}

/// What is going to be done, for its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Content is stored: an upload, a part of one, a pin.
    Upload,
    RegistryRead,
    RegistryWrite,
    Download,
}

/// Somebody who may do what they asked for. Held until it is done: what it counts as open is open so long.
pub struct Admitted {
    pub caller: Caller,
    counted: Option<Counted>,
    place: Option<OpenPlace>,
    too_large: Arc<AtomicBool>,
}

/// Whom the work counts for.
#[derive(Clone)]
struct Counted {
    limiter: Arc<Limiter>,
    client: Client,
    rules: Rules,
}

impl Sender<'_> {
    /// May this be done, and may this client do it now?
    pub fn admit(&self, services: &Services, ask: &Ask, work: Work) -> Result<Admitted, Refusal> {
        let caller = match work {
            Work::Upload | Work::RegistryWrite => self.writer(services, ask)?,
            Work::RegistryRead | Work::Download => self.reader(services),
        };
        let counted = self.counted(services, &caller);
        let place = match &counted {
            None => None,
            Some(Counted { limiter, client, rules }) => match work {
                Work::Upload => Some(limiter.upload(*client, rules, self.length())?),
                Work::Download => Some(limiter.download(*client, rules)?),
                Work::RegistryRead | Work::RegistryWrite => limiter.registry(*client, rules).map(|()| None)?,
            },
        };
        Ok(Admitted { caller, counted, place, too_large: Arc::default() })
    }

    /// The caller by key; else only a program on this machine, and not a web page of somebody else; else everybody, where
    /// the operator wants that.
    pub fn writer(&self, services: &Services, ask: &Ask) -> Result<Caller, NotAllowed> {
        match self.by_key(services) {
            Some(Known::Caller(caller)) => return Ok(caller),
            Some(Known::Nobody) => return Err(NotAllowed::BadKey),
            Some(Known::NotYet) => return Err(NotAllowed::KeysUnread),
            None => {}
        }
        let forwarded = self.headers.keys().any(|name| is_forwarding_header(name.as_str()));
        let source = RequestSource {
            peer: Peer::from(self.peer.ip()),
            host: ask.host.as_deref(),
            // An Origin that is no text is nobody's own.
            origin: self.headers.contains_key(header::ORIGIN).then(|| ask.origin.as_deref().unwrap_or("null")),
            forwarding: if forwarded { Forwarding::Present } else { Forwarding::Absent },
        };
        match loopback_write_allowed(&source) {
            Ok(()) => Ok(Caller::Local),
            Err(_) if services.options.public_writes == PublicWrites::Taken => Ok(Caller::Anybody),
            Err(refused) => Err(NotAllowed::Foreign(refused)),
        }
    }

    /// Reading is for everybody: a key only says for whom it counts, and one that is not known says nothing.
    fn reader(&self, services: &Services) -> Caller {
        match self.by_key(services) {
            Some(Known::Caller(caller)) => caller,
            Some(Known::Nobody | Known::NotYet) | None => Caller::Anybody,
        }
    }

    /// What is known of the keys that were sent: clients may send one in a header and another as a password.
    fn by_key(&self, services: &Services) -> Option<Known> {
        let mut found = None;
        for key in given_keys(self.headers) {
            match services.access.caller(&key) {
                Known::Caller(caller) => return Some(Known::Caller(caller)),
                Known::NotYet => found = Some(Known::NotYet),
                Known::Nobody => found = found.or(Some(Known::Nobody)),
            }
        }
        found
    }

    /// `None` if nothing is counted: the operator, and what comes from this machine and for nobody else.
    fn counted(&self, services: &Services, caller: &Caller) -> Option<Counted> {
        let limiter = &services.access.limiter;
        let (client, rules) = match caller {
            Caller::Admin | Caller::Local => return None,
            Caller::Key(key) => (Client::Key(key.id), limiter.rules.with(&key.limits)),
            Caller::Anybody => {
                (Client::Address(counted_address(&services.options.hosts, self.peer.ip(), self.headers)?), limiter.rules)
            }
        };
        Some(Counted { limiter: limiter.clone(), client, rules })
    }

    fn length(&self) -> Option<u64> {
        text(self.headers, header::CONTENT_LENGTH)?.parse().ok()
    }
}

impl Admitted {
    /// The whole length of an upload became known, as from a tus header.
    pub fn allow_length(&self, bytes: u64) -> Result<(), Refusal> {
        match &self.counted {
            Some(counted) if bytes > counted.rules.upload_bytes_max => {
                Err(OverLimit::TooLarge { max: counted.rules.upload_bytes_max }.into())
            }
            _ => Ok(()),
        }
    }

    /// The client that work counts for, as a text that is the same next time; `None` where nothing is counted.
    pub fn counted_as(&self) -> Option<String> {
        Some(match self.counted.as_ref()?.client {
            Client::Address(address) => format!("address {address}"),
            Client::Key(id) => format!("key {id}"),
            Client::Rest => "rest".to_owned(),
        })
    }

    /// This registry entry is written.
    pub fn allow_entry(&self, entry_id: &[u8; 32]) -> Result<(), Refusal> {
        match &self.counted {
            Some(counted) => Ok(counted.limiter.entry(counted.client, &counted.rules, entry_id)?),
            None => Ok(()),
        }
    }

    /// The body of an upload, counted, and broken off when it gets too large: see [`Admitted::explain`].
    pub fn metered(&self, body: UploadStream) -> UploadStream {
        let Some(counted) = self.counted.clone() else { return body };
        let too_large = self.too_large.clone();
        let mut sum: u64 = 0;
        let metered = body.map(move |part| {
            let part = part?;
            sum = sum.saturating_add(part.len() as u64);
            counted.limiter.bytes(counted.client, &counted.rules, part.len() as u64);
            if sum > counted.rules.upload_bytes_max {
                too_large.store(true, Relaxed);
                return Err(std::io::Error::other(OverLimit::TooLarge { max: counted.rules.upload_bytes_max }));
            }
            Ok(part)
        });
        metered.boxed()
    }

    /// The refusal to answer with, where an upload has failed with `refusal`.
    pub fn explain(&self, refusal: Refusal) -> Refusal {
        match &self.counted {
            Some(counted) if self.too_large.load(Relaxed) => OverLimit::TooLarge { max: counted.rules.upload_bytes_max }.into(),
            _ => refusal,
        }
    }

    /// What is open, to be held longer than this: by the body of a reply.
    pub fn into_place(self) -> Option<OpenPlace> {
        self.place
    }
}

/// May this address ask for anything now?
pub fn admit_request(services: &Services, peer: IpAddr, headers: &HeaderMap) -> Result<(), Refusal> {
    match counted_address(&services.options.hosts, peer, headers) {
        Some(address) => Ok(services.access.limiter.request(Client::Address(address))?),
        None => Ok(()),
    }
}

/// The address that limits count for. `None` for this machine itself, and for a trusted proxy that speaks for itself.
fn counted_address(hosts: &HostRules, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
    if hosts.trust(peer) == Trust::Itself {
        return Some(client_address(peer)).filter(|address| !address.is_loopback());
    }
    // Each proxy writes the address it was asked from behind those that it was told; only trusted ones are believed.
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let mut told = lines.flat_map(|line| line.to_str().unwrap_or("unreadable").rsplit(',')).map(str::trim);
    let client = told.find_map(|address| match parse_address(address) {
        Some(address) if hosts.trust(address) == Trust::Forwarded => None,
        // A proxy that hides who asks: all of them are one client.
        address => Some(address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())),
    });
    client.map(client_address)
}

/// An address with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(inside, _)| inside);
    bare.parse().ok().or_else(|| bare.parse().ok().map(|with_port: SocketAddr| with_port.ip()))
}

/// The keys of a request: Skynet's header, a bearer token, the password of Basic.
pub fn given_keys(headers: &HeaderMap) -> Vec<String> {
    let own = headers.get_all(API_KEY).iter().filter_map(|value| value.to_str().ok()).map(|key| key.trim().to_owned());
    let authorization = headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| value.to_str().ok());
    let sent = authorization.filter_map(|value| {
        let (scheme, rest) = value.trim().split_once(' ')?;
        let rest = rest.trim();
        match scheme {
            _ if scheme.eq_ignore_ascii_case("bearer") => Some(rest.to_owned()),
            _ if scheme.eq_ignore_ascii_case("basic") => password(rest),
            _ => None,
        }
    });
    own.chain(sent).filter(|key| !key.is_empty()).take(KEYS_TRIED_MAX).collect()
}

/// The password of Basic credentials. Skynet's clients send an empty user; another one is not looked at.
fn password(credentials: &str) -> Option<String> {
    if credentials.len() > 4 * SECRET_TEXT_MAX {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

impl From<NotAllowed> for Refusal {
    fn from(why: NotAllowed) -> Refusal {
        match why {
            NotAllowed::BadKey => PortalRefusal::BadKey.into(),
            NotAllowed::KeysUnread => PortalRefusal::KeysUnread.into(),
            NotAllowed::Foreign(refused) => Refusal::Write(refused),
        }
    }
}

/// Downloads count for the client that asks, until the last byte of the body is out.
pub fn admit_download(services: &Services, ask: &Ask, sender: &Sender<'_>) -> Result<Option<OpenPlace>, Refusal> {
    // This machine has no limits, and asks most: nothing is looked at twice for it.
    let local = sender.peer.ip().to_canonical().is_loopback() && !sender.headers.contains_key(X_FORWARDED_FOR);
    if local || ask.method != Method::GET {
        return Ok(None);
    }
    Ok(sender.admit(services, ask, Work::Download)?.into_place())
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::try_from(*name).expect("a name");
            map.append(name, HeaderValue::try_from(*value).expect("a value"));
        }
        map
    }

    #[test]
    fn where_keys_stand() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        type Headers<'a> = &'a [(&'a str, &'a str)];
        let rows: [(Headers<'_>, &[&str]); 11] = [
            (&[], &[]),
            (&[("skynet-api-key", " k1 ")], &["k1"]),
            (&[("authorization", "Bearer k1")], &["k1"]),
            (&[("authorization", "bEARER  k1 ")], &["k1"]),
            (&[("authorization", &basic(":k1"))], &["k1"]),
            (&[("authorization", &basic("user:k:1"))], &["k:1"]),
            (&[("authorization", &basic("k1"))], &[]),
            (&[("authorization", "Basic ???")], &[]),
            (&[("authorization", "Digest k1")], &[]),
            (&[("authorization", &basic(":password")), ("skynet-api-key", "k1")], &["k1", "password"]),
            (&[("skynet-api-key", ""), ("authorization", &basic(":"))], &[]),
        ];
        for (lines, expect) in rows {
            assert_eq!(given_keys(&headers(lines)), expect, "{lines:?}");
        }
    }

    #[test]
    fn whose_address_counts() {
        let loopback = HostRules::default();
        let proxied = HostRules { trusted_proxies: Some(vec!["10.0.0.1".parse().expect("an address")]), ..HostRules::default() };
        let rows: [(&HostRules, &str, &[&str], Option<&str>); 13] = [
            (&loopback, "127.0.0.1", &[], None),
            (&loopback, "::1", &[], None),
            (&loopback, "127.0.0.1", &["203.0.113.5"], Some("203.0.113.5")),
            (&loopback, "127.0.0.1", &["203.0.113.5:4711"], Some("203.0.113.5")),
            (&loopback, "127.0.0.1", &["1.1.1.1, 203.0.113.5"], Some("203.0.113.5")),
            (&loopback, "127.0.0.1", &["1.1.1.1", "203.0.113.5, 127.0.0.1"], Some("203.0.113.5")),
            (&loopback, "127.0.0.1", &["[2001:db8::1]:80"], Some("2001:db8::")),
            (&loopback, "127.0.0.1", &["unknown"], Some("0.0.0.0")),
            (&loopback, "203.0.113.5", &["1.1.1.1"], Some("203.0.113.5")),
            (&proxied, "10.0.0.1", &[], None),
            (&proxied, "10.0.0.1", &["203.0.113.5, 10.0.0.1"], Some("203.0.113.5")),
            (&proxied, "10.0.0.2", &["203.0.113.5"], Some("10.0.0.2")),
            (&proxied, "127.0.0.1", &["203.0.113.5"], None),
        ];
        for (rules, peer, told, expect) in rows {
            let lines: Vec<(&str, &str)> = told.iter().map(|line| ("x-forwarded-for", *line)).collect();
            let found = counted_address(rules, peer.parse().expect("an address"), &headers(&lines));
            assert_eq!(found.map(|address| address.to_string()).as_deref(), expect, "{peer} {told:?}");
        }
    }
}
