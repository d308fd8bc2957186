//! What a request for a skyfile is about, whatever form its address had: a path, a host of its own, or a name that points
//! to the skylink.

use ::http::header::HeaderValue;

use crate::address::Skylink;

use crate::http::ask::{Ask, Place, SkyPath};
use crate::http::gateway::Moving;
use crate::http::plan::ascii;
use crate::http::refusal::Refusal;

/// A skylink and a path inside its skyfile.
#[derive(Debug, Clone)]
pub struct Target {
    /// As it stands in the address, of either version.
    pub link: Skylink,
    /// Behind the skylink, percent-encoded, as it stood there; empty, or with a slash first. Begins with the path that a
    /// name points to, if it has one.
    pub path_text: String,
    /// Length of that path, which does not stand in the URL, without a slash at its end.
    pub hidden_bytes: usize,
    pub origin: WebOrigin,
    /// Under a name: how long what is told holds.
    pub moving: Option<Moving>,
}

/// Whose pages a browser takes it for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebOrigin {
    /// The site has a host of its own, and may have rules of its own.
    Own,
    /// Other sites stand below other paths of the host.
    Shared,
}

impl Target {
    /// Of a request on [`Route::Skylink`](crate::http::ask::Route::Skylink).
    pub fn of(ask: &Ask) -> Result<Target, Refusal> {
        let (SkyPath { link, path_text }, origin) = match &ask.place {
            Place::Skylink { link, .. } => (SkyPath { link: *link, path_text: ask.path.clone() }, WebOrigin::Own),
            Place::Path | Place::Subdomain { .. } | Place::DnsLink { .. } => (ask.sky_path(&ask.path)?, WebOrigin::Shared),
        };
        Ok(Target { link, path_text, hidden_bytes: 0, origin, moving: None })
    }

    /// Of a request under a name that points to `link` and the path `above` in it; `below` is the rest of the URL's path.
    pub fn below(ask: &Ask, link: Skylink, above: &str, below: &str, moving: Option<Moving>) -> Target {
        let origin = if ask.place == Place::Path { WebOrigin::Shared } else { WebOrigin::Own };
        let above = above.trim_end_matches('/');
        Target { link, path_text: format!("{above}{below}"), hidden_bytes: above.len(), origin, moving }
    }

    /// The path that a name points to.
    pub fn hidden(&self) -> &str {
        &self.path_text[..self.hidden_bytes]
    }

    /// Of a reply under a name, its lifetime, if that is known. Skynet's portals tell none.
    pub fn cache_control(&self) -> Option<HeaderValue> {
        let ttl = self.moving.and_then(|moving| moving.ttl)?;
        Some(ascii(format!("public, max-age={}", ttl.as_secs())))
    }
}
