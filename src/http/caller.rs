//! Who sent a request, and whether it may write (`design.md` 10).

use std::net::SocketAddr;

use ::http::HeaderName;
use ::http::header::{self, HeaderMap};

use crate::access::{Caller, Forwarding, Peer, RequestSource, WriteRefused, is_forwarding_header, loopback_write_allowed};

use super::ask::{Ask, text};
use super::refusal::Refusal;
use super::services::Services;

const API_KEY: HeaderName = HeaderName::from_static("skynet-api-key");

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
    /// No key, and not from this machine.
    Foreign(WriteRefused),
}

impl Sender<'_> {
    /// The caller by key; else only a program on this machine, and not a web page of somebody else.
    pub fn writer(&self, services: &Services, ask: &Ask) -> Result<Caller, NotAllowed> {
        if let Some(key) = given_key(self.headers) {
            return services.access.caller(key).ok_or(NotAllowed::BadKey);
        }
        let forwarded = self.headers.keys().any(|name| is_forwarding_header(name.as_str()));
        let source = RequestSource {
            peer: Peer::from(self.peer.ip()),
            host: ask.host.as_deref(),
            // An Origin that is no text is nobody's own.
            origin: self.headers.contains_key(header::ORIGIN).then(|| ask.origin.as_deref().unwrap_or("null")),
            forwarding: if forwarded { Forwarding::Present } else { Forwarding::Absent },
        };
        loopback_write_allowed(&source).map(|()| Caller::Local).map_err(NotAllowed::Foreign)
    }
}

/// The key as bearer token or in Skynet's header.
pub fn given_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = text(headers, header::AUTHORIZATION)
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    bearer.or_else(|| text(headers, API_KEY))
}

impl From<NotAllowed> for Refusal {
    fn from(why: NotAllowed) -> Refusal {
        match why {
            NotAllowed::BadKey => Refusal::NoKey,
            NotAllowed::Foreign(refused) => Refusal::Write(refused),
        }
    }
}
