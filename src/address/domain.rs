//! Hosts of requests, and the labels under which subdomain gateways serve content (`specs/ipfs-gateway.md` 2.3).

use std::net::IpAddr;

use multibase::Base;

use super::{Cid, codec};

/// Longest DNS label (RFC 1035).
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest DNS name as text.
pub const DOMAIN_BYTES_MAX: usize = 253;

/// The host of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// Lower case, without the dot at its end.
    pub name: String,
    /// As it was written, without the port: some labels were CIDs whose capitals count.
    pub written: String,
    pub port: Option<u16>,
    pub kind: HostKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    Name,
    Address,
}

impl HostName {
    /// Reads a Host header or the authority of a URL. `None` if it is neither a name nor an address.
    pub fn parse(text: &str) -> Option<HostName> {
        if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            let port = match port.strip_prefix(':') {
                Some(port) => Some(parse_port(port)?),
                None if port.is_empty() => None,
                None => return None,
            };
            return Some(HostName { name: address.to_lowercase(), written: address.to_owned(), port, kind: HostKind::Address });
        }
        let (written, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(parse_port(port)?)),
            None => (text, None),
        };
        let name = written.strip_suffix('.').unwrap_or(written).to_ascii_lowercase();
        if name.parse::<IpAddr>().is_ok() {
            return Some(HostName { name, written: written.to_owned(), port, kind: HostKind::Address });
        }
        is_domain(&name).then(|| HostName { name, written: written.to_owned(), port, kind: HostKind::Name })
    }

    /// The name with its port, if it has one.
    pub fn with_port(&self, name: &str) -> String {
        self.port.map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
    }
}

fn parse_port(text: &str) -> Option<u16> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Labels of letters, digits, hyphens and underscores. Longer labels than DNS has are let through: CIDs that are too long for
/// one are told so by name.
fn is_domain(name: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    name.len() <= DOMAIN_BYTES_MAX && !name.is_empty() && name.split('.').all(is_label)
}

/// A name as one label: `-` becomes `--`, then `.` becomes `-`.
pub fn inline_name(name: &str) -> String {
    name.replace('-', "--").replace('.', "-")
}

/// The reverse of [`inline_name`]: a single `-` becomes `.`, two become one.
pub fn uninline_name(label: &str) -> String {
    let mut name = String::with_capacity(label.len());
    let mut rest = label;
    while let Some(at) = rest.find('-') {
        name.push_str(&rest[..at]);
        let double = rest[at + 1..].starts_with('-');
        name.push(if double { '-' } else { '.' });
        rest = &rest[at + if double { 2 } else { 1 }..];
    }
    name.push_str(rest);
    name
}

/// A CID that has no form that fits a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("CID incompatible with DNS label length limit of {LABEL_BYTES_MAX}")]
pub struct LabelTooLong;

/// The label of a CID: version 1 in base32, or in base36 where that is too long. Keys are always in base36, the form of their
/// names.
pub fn label_of_cid(cid: &Cid) -> Result<String, LabelTooLong> {
    let cid = match cid.version() {
        cid::Version::V0 => Cid::new_v1(codec::DAG_PB, *cid.hash()),
        cid::Version::V1 => *cid,
    };
    let text = |base| cid.to_string_of_base(base).expect("any base prints a CID of version 1");
    let bases: &[Base] =
        if cid.codec() == codec::LIBP2P_KEY { &[Base::Base36Lower] } else { &[Base::Base32Lower, Base::Base36Lower] };
    bases.iter().map(|base| text(*base)).find(|label| label.len() <= LABEL_BYTES_MAX).ok_or(LabelTooLong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::parse_cid;

    #[test]
    fn hosts() {
        type Read = Option<(&'static str, Option<u16>, HostKind)>;
        #[rustfmt::skip]
        let rows: &[(&str, Read)] = &[
            ("example.com", Some(("example.com", None, HostKind::Name))),
            ("Example.COM.:8080", Some(("example.com", Some(8080), HostKind::Name))),
            ("localhost:1", Some(("localhost", Some(1), HostKind::Name))),
            ("127.0.0.1:80", Some(("127.0.0.1", Some(80), HostKind::Address))),
            ("[::1]:80", Some(("::1", Some(80), HostKind::Address))),
            ("[::1]", Some(("::1", None, HostKind::Address))),
            ("_dnslink.a-b.example", Some(("_dnslink.a-b.example", None, HostKind::Name))),
            ("", None), (".", None), ("a..b", None), ("a b", None), ("a:b", None), ("a:", None), ("a:99999", None), ("[::1", None), ("[x]:1", None),
            ("::1", None), ("a/b", None), ("a@b", None), ("ż.pl", None), ("a:+1", None),
        ];
        for (text, expect) in rows {
            let found = HostName::parse(text);
            assert_eq!(found.as_ref().map(|host| (host.name.as_str(), host.port, host.kind)), *expect, "{text:?}");
        }
        assert_eq!(HostName::parse(&"a.".repeat(200)), None);
    }

    #[test]
    fn names_as_labels() {
        for (name, label) in [
            ("en.wikipedia-on-ipfs.org", "en-wikipedia--on--ipfs-org"),
            ("a", "a"),
            ("a.b.c", "a-b-c"),
            ("a--b.c", "a----b-c"),
            ("_dnslink.x", "_dnslink-x"),
        ] {
            assert_eq!(inline_name(name), label);
            assert_eq!(uninline_name(label), name);
        }
    }

    #[test]
    fn labels_of_cids() {
        let sha2_512 = cid::multihash::Multihash::<128>::wrap(0x13, &[7; 64]).expect("a digest of 64 bytes");
        let long = Cid::new_v1(codec::RAW, sha2_512);
        assert_eq!(label_of_cid(&long), Err(LabelTooLong));
        // The example of the subdomain gateway's specification.
        let hello = "bafybeicg2rebjoofv4kbyovkw7af3rpiitvnl6i7ckcywaq6xjcxnc2mby";
        for text in ["QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o", hello] {
            assert_eq!(label_of_cid(&parse_cid(text).expect("a CID")).as_deref(), Ok(hello));
        }
        let key = Cid::new_v1(codec::LIBP2P_KEY, *parse_cid(hello).expect("a CID").hash());
        assert!(label_of_cid(&key).expect("fits").starts_with('k'), "keys stand in base36");
    }

    proptest! {
        #[test]
        fn inlining_is_undone(name in "[a-z0-9]([a-z0-9-]{0,12}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,12}[a-z0-9])?){0,4}") {
            prop_assert_eq!(uninline_name(&inline_name(&name)), name);
        }

        #[test]
        fn any_host_is_read_or_refused(text in "\\PC{0,300}") {
            if let Some(host) = HostName::parse(&text) {
                prop_assert!(host.name.is_ascii());
            }
        }
    }
}
