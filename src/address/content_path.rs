//! Addresses as people paste them: content paths, `ipfs:` and `sia:` links, bare CIDs and skylinks.

use super::{AddressError, Cid, SitePath, Skylink, parse_cid};

/// Longest name behind `/ipns/`: a DNS name has at most 253 bytes, a key in any common base fewer than 150.
pub const NAME_BYTES_MAX: usize = 253;

/// What is asked for, before any name is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `/ipfs/{cid}{path}`: fixed content.
    Ipfs {
        /// Top of the tree.
        root: Cid,
        /// Way inside it.
        path: SitePath,
    },
    /// `/ipns/{name}{path}`: a pointer, a key or a DNS name; the `names` room tells which.
    Ipns {
        /// As written.
        name: String,
        /// Way inside what it points to.
        path: SitePath,
    },
    /// A skylink and the rest of the path as it stood there, still encoded: Skynet's path rules differ.
    Skylink {
        /// The link.
        link: Skylink,
        /// Empty, or begins with a slash.
        path_text: String,
    },
}

impl Address {
    /// Parses an address. Paths are percent-decoded, as in URLs. A query or fragment is cut off in the forms that are
    /// URLs (`ipfs://`, `ipns://`, `sia://`); content paths come from a caller that has taken it off already.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        if let Some(rest) = strip_scheme(text, "ipfs") {
            return Address::ipfs(without_query(rest));
        }
        if let Some(rest) = strip_scheme(text, "ipns") {
            return Address::ipns(without_query(rest));
        }
        if let Some(rest) = strip_scheme(text, "sia") {
            return Address::skylink(without_query(rest));
        }
        if let Some(rest) = text.strip_prefix("/ipfs/") {
            return Address::ipfs(rest);
        }
        if let Some(rest) = text.strip_prefix("/ipns/") {
            return Address::ipns(rest);
        }
        Address::bare(text)
    }

    fn ipfs(rest: &str) -> Result<Address, AddressError> {
        let (root, path) = split_first(rest);
        Ok(Address::Ipfs { root: parse_cid(root)?, path: SitePath::parse(path)? })
    }

    fn ipns(rest: &str) -> Result<Address, AddressError> {
        let (name, path) = split_first(rest);
        check_name(name)?;
        Ok(Address::Ipns { name: name.to_owned(), path: SitePath::parse(path)? })
    }

    fn skylink(rest: &str) -> Result<Address, AddressError> {
        let (link, path_text) = split_first(rest);
        Ok(Address::Skylink { link: Skylink::parse(link)?, path_text: path_text.to_owned() })
    }

    /// No real CID is a skylink, too: `Qm`, `bafy` and `bafk` all decode to a bitfield of no version.
    fn bare(text: &str) -> Result<Address, AddressError> {
        let (first, path) = split_first(without_query(text));
        if let Ok(root) = parse_cid(first) {
            return Ok(Address::Ipfs { root, path: SitePath::parse(path)? });
        }
        if let Ok(link) = Skylink::parse(first) {
            return Ok(Address::Skylink { link, path_text: path.to_owned() });
        }
        let shown = text.chars().take(100).collect();
        Err(AddressError::NoAddress(shown))
    }
}

/// Schemes are case-insensitive (RFC 3986 3.1).
fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = text.split_once("://")?;
    found.eq_ignore_ascii_case(scheme).then_some(rest)
}

fn without_query(text: &str) -> &str {
    text.split(['?', '#']).next().unwrap_or(text)
}

/// Text before the first slash, and the rest with the slash.
fn split_first(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

fn check_name(name: &str) -> Result<(), AddressError> {
    if name.is_empty() {
        return Err(AddressError::Name("empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(AddressError::Name("longer than 253 bytes"));
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        return Err(AddressError::Name("neither a key nor a DNS name in its ASCII form"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    const OLD: &str = "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD";
    const LINK: &str = "XABvi7JtJbQSMAcDwnUnmp2FKDPjg8_tTTFP4BwMSxVdEg";
    const LINK_32: &str = "bg06v2tidkir84hg0s1s4t97jaeoaa1jse1svrad657u070c9calq4g";

    #[test]
    fn good_forms() {
        let ipfs = |cid: &str, path: &str| Address::Ipfs { root: parse_cid(cid).unwrap(), path: SitePath::parse(path).unwrap() };
        let ipns = |name: &str, path: &str| Address::Ipns { name: name.into(), path: SitePath::parse(path).unwrap() };
        let sky = |path: &str| Address::Skylink { link: Skylink::parse(LINK).unwrap(), path_text: path.into() };
        let rows = [
            (format!("/ipfs/{CID}"), ipfs(CID, "")),
            (format!("/ipfs/{CID}/a%20b/"), ipfs(CID, "/a%20b/")),
            (format!("ipfs://{CID}/a?x=1#y"), ipfs(CID, "/a")),
            (format!("IPFS://{CID}"), ipfs(CID, "")),
            (CID.to_string(), ipfs(CID, "")),
            (format!("{OLD}/a"), ipfs(OLD, "/a")),
            ("/ipns/docs.example.org/a".into(), ipns("docs.example.org", "/a")),
            ("ipns://k51qzi5uqu5d/".into(), ipns("k51qzi5uqu5d", "/")),
            (LINK.to_string(), sky("")),
            (format!("{LINK_32}/a%20b/"), sky("/a%20b/")),
            (format!("sia://{LINK}/a?x=1"), sky("/a")),
        ];
        for (text, expect) in rows {
            assert_eq!(Address::parse(&text), Ok(expect), "{text}");
        }
    }

    #[test]
    fn bad_forms() {
        use AddressError::*;
        let rows = [
            ("".to_string(), NoAddress("".into())),
            ("hello".into(), NoAddress("hello".into())),
            ("/ipfs/".into(), CidEmpty),
            ("/ipfs/QmInvalidCID".into(), CidBase('Q')),
            (format!("/ipfs/{CID}/%zz"), PathPercent),
            ("/ipns/".into(), Name("empty")),
            ("/ipns/a b".into(), Name("neither a key nor a DNS name in its ASCII form")),
            (format!("/ipns/{}", "a".repeat(254)), Name("longer than 253 bytes")),
            ("sia://abc".into(), SkylinkLength(3)),
            (format!("http://{CID}"), NoAddress(format!("http://{CID}"))),
        ];
        for (text, expect) in rows {
            assert_eq!(Address::parse(&text), Err(expect), "{text}");
        }
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "(ipfs://|/ipfs/|/ipns/|sia://)?\\PC{0,80}") {
            let _ = Address::parse(&text);
        }
    }
}
