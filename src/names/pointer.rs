//! What a name points to: one step of a chain, as text of a DNSLink, an IPNS record or the configuration. And what a
//! name is. Pure.

use std::fmt;

use crate::address::{Cid, NAME_BYTES_MAX, SitePath, Skylink, parse_cid};

use super::ipns::IpnsName;

/// Longest label of a domain name (RFC 1035).
const LABEL_BYTES_MAX: usize = 63;

/// A name in the one form that it is looked up and remembered by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    Key(IpnsName),
    /// Lower case, no dot at the end. Of one label, or an IP address, only as a name of the configuration.
    Domain(String),
}

impl Name {
    /// An IPNS key in any form, or text with the grammar of a domain name.
    pub fn parse(text: &str) -> Option<Name> {
        match IpnsName::parse(text) {
            Some(key) => Some(Name::Key(key)),
            None => domain(text).map(Name::Domain),
        }
    }

    /// Its text, as it is remembered by.
    pub fn text(&self) -> String {
        match self {
            Name::Key(key) => key.to_string(),
            Name::Domain(domain) => domain.clone(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text())
    }
}

/// Letters, digits, `-` and `_` in labels; lower-cased, without the root's dot.
fn domain(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(known)
    };
    (text.len() <= NAME_BYTES_MAX && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

/// May DNS be asked for this domain? Never for a single label (`localhost`) or an IP address.
pub fn is_looked_up(domain: &str) -> bool {
    let last = domain.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit());
    // No top-level domain is a number, so that this is the whole test for an IPv4 address (WHATWG URL, "ends in a number").
    domain.contains('.') && !number && last != "localhost"
}

/// One step of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pointer {
    Ipfs { root: Cid, path: SitePath },
    Ipns { name: Name, path: SitePath },
    Skylink { link: Skylink, path_text: String },
}

/// Are names in the path percent-encoded?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathForm {
    /// DNSLink is printable ASCII, and configuration is written like addresses.
    Encoded,
    /// IPNS values hold names as they are.
    Plain,
}

impl Pointer {
    /// Reads `/ipfs/…`, `/ipns/…` or `/skynet-ns/…`.
    pub fn parse(text: &str, form: PathForm) -> Option<Pointer> {
        let (namespace, rest) = text.strip_prefix('/')?.split_once('/')?;
        let (first, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        match namespace {
            "ipfs" => Some(Pointer::Ipfs { root: parse_cid(first).ok()?, path: site_path(path, form)? }),
            "ipns" => Some(Pointer::Ipns { name: Name::parse(first)?, path: site_path(path, form)? }),
            "skynet-ns" => Some(Pointer::Skylink { link: Skylink::parse(first).ok()?, path_text: path.to_owned() }),
            _ => None,
        }
    }

    /// Memory besides the value itself, about.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Pointer::Ipfs { path, .. } => path.decoded().len() + 32 * path.segments().len(),
            Pointer::Ipns { name, path } => name.text().len() + path.decoded().len() + 32 * path.segments().len(),
            Pointer::Skylink { path_text, .. } => path_text.len(),
        }
    }
}

/// The content path, as it would be written.
impl fmt::Display for Pointer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pointer::Ipfs { root, path } => write!(out, "/ipfs/{root}{}", path.encoded()),
            Pointer::Ipns { name, path } => write!(out, "/ipns/{name}{}", path.encoded()),
            Pointer::Skylink { link, path_text } => write!(out, "/skynet-ns/{link}{path_text}"),
        }
    }
}

/// A per cent sign that encodes nothing stands for itself.
fn site_path(text: &str, form: PathForm) -> Option<SitePath> {
    let plain = || SitePath::from_decoded(text).ok();
    match form {
        PathForm::Encoded => SitePath::parse(text).ok().or_else(plain),
        PathForm::Plain => plain(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    const KEY: &str = "k51qzi5uqu5dlkw8pxuw9qmqayfdeh4kfebhmreauqdc6a7c3y7d5i9fi8mk9w";
    const LINK: &str = "XABvi7JtJbQSMAcDwnUnmp2FKDPjg8_tTTFP4BwMSxVdEg";

    #[test]
    fn names() {
        let long = format!("{}.example", "a".repeat(64));
        let rows = [
            ("Example.ORG.", Some("example.org"), true),
            ("_x.a-b.example", Some("_x.a-b.example"), true),
            ("localhost", Some("localhost"), false),
            ("a.localhost", Some("a.localhost"), false),
            ("127.0.0.1", Some("127.0.0.1"), false),
            (KEY, Some(KEY), false),
            ("QmInvalid", Some("qminvalid"), false),
            ("", None, false),
            (".", None, false),
            ("a..b", None, false),
            ("[::1]", None, false),
            ("a b.example", None, false),
            ("ü.example", None, false),
            (&long, None, false),
        ];
        for (text, expect, looked_up) in rows {
            let name = Name::parse(text);
            assert_eq!(name.as_ref().map(Name::text).as_deref(), expect, "{text}");
            assert_eq!(matches!(name, Some(Name::Domain(domain)) if is_looked_up(&domain)), looked_up, "{text}");
        }
    }

    #[test]
    fn pointers() {
        let rows = [
            (format!("/ipfs/{CID}"), Some(format!("/ipfs/{CID}"))),
            (format!("/ipfs/{CID}/a%20b/"), Some(format!("/ipfs/{CID}/a%20b/"))),
            (format!("/ipfs/{CID}/100%"), Some(format!("/ipfs/{CID}/100%25"))),
            ("/ipns/Example.org/x".to_owned(), Some("/ipns/example.org/x".to_owned())),
            (format!("/ipns/{KEY}"), Some(format!("/ipns/{KEY}"))),
            (format!("/skynet-ns/{LINK}/a?b"), Some(format!("/skynet-ns/{LINK}/a?b"))),
            (format!("ipfs/{CID}"), None),
            ("/ipfs/".to_owned(), None),
            ("/ipfs".to_owned(), None),
            ("/ipfs/nonsense".to_owned(), None),
            ("/ipns//x".to_owned(), None),
            ("/sia/x".to_owned(), None),
            ("/skynet-ns/x".to_owned(), None),
            ("//".to_owned(), None),
        ];
        for (text, expect) in rows {
            assert_eq!(Pointer::parse(&text, PathForm::Encoded).map(|pointer| pointer.to_string()), expect, "{text}");
        }
        let plain = Pointer::parse(&format!("/ipfs/{CID}/a%20b"), PathForm::Plain).map(|pointer| pointer.to_string());
        assert_eq!(plain, Some(format!("/ipfs/{CID}/a%2520b")));
    }
}
