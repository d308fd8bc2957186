//! Handshake names from a fixed table: what a chain would say, without the chain.
//!
//! A name points to a skylink (`sia://…` or bare), or to a registry entry that holds one (`skyns://KEY/DATAKEY`, percent-
//! encoded or not), as in the TXT records of the chain (`skynet.md` 10).

use std::collections::BTreeMap;

use crate::address::{Skylink, domain::HostName};

use super::EntryKey;

/// Where a name points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeTarget {
    Skylink(Skylink),
    Entry { key: EntryKey, datakey: [u8; 32] },
}

/// A line of the table that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "[names.handshake] {name:?} = {value:?}: write a name of letters, digits and hyphens, and \"sia://SKYLINK\" or \
     \"skyns://ed25519:KEY/DATAKEY\" with 64 hex digits each"
)]
pub struct BadHandshakeName {
    name: String,
    value: String,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandshakeNames(BTreeMap<String, HandshakeTarget>);

impl HandshakeNames {
    pub fn parse(table: &BTreeMap<String, String>) -> Result<HandshakeNames, BadHandshakeName> {
        let row = |(name, value): (&String, &String)| {
            let bad = || BadHandshakeName { name: name.clone(), value: value.clone() };
            // One label: subdomains are not resolved, and the name stands before `.hns.` in a host.
            let label = name.to_ascii_lowercase();
            let is_label = HostName::parse(&label).is_some() && !label.contains(['.', ':', '[', '/']);
            match parse_target(value) {
                Some(target) if is_label => Ok((label, target)),
                _ => Err(bad()),
            }
        };
        Ok(HandshakeNames(table.iter().map(row).collect::<Result<_, _>>()?))
    }

    /// Capitals and a dot or a slash at the end do not count.
    pub fn get(&self, name: &str) -> Option<HandshakeTarget> {
        self.0.get(&name.trim_end_matches(['.', '/']).to_ascii_lowercase()).copied()
    }
}

fn parse_target(value: &str) -> Option<HandshakeTarget> {
    if let Some(rest) = value.strip_prefix("skyns://") {
        let decoded = percent_encoding::percent_decode_str(rest).decode_utf8().ok()?;
        let (key, datakey_hex) = decoded.split_once('/')?;
        let mut datakey = [0; 32];
        hex::decode_to_slice(datakey_hex, &mut datakey).ok()?;
        return Some(HandshakeTarget::Entry { key: EntryKey::parse(key)?, datakey });
    }
    let link = value.strip_prefix("sia://").unwrap_or(value).trim_end_matches('/');
    Some(HandshakeTarget::Skylink(Skylink::parse(link).ok().filter(|_| !link.contains(['/', '?']))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "AQCYCPSmSMfmZjOKLX4zoYHHTNJQW2daVgZ2PTpkASFlSA";

    #[test]
    fn lines_of_the_table() {
        let (key, datakey) = ("cd".repeat(32), "ab".repeat(32));
        let rows = [
            ("a", LINK.to_owned(), true),
            ("Sky-App", format!("sia://{LINK}"), true),
            ("a", format!("sia://{LINK}/"), true),
            ("xn--hxajbheg2az3al", format!("skyns://ed25519:{key}/{datakey}"), true),
            ("a", format!("skyns://ed25519%3A{key}/{datakey}"), true),
            ("a.b", LINK.to_owned(), false),
            ("", LINK.to_owned(), false),
            ("a/b", LINK.to_owned(), false),
            ("a", format!("sia://{LINK}/x"), false),
            ("a", format!("asdasd{LINK}"), false),
            ("a", format!("{LINK}asdasd"), false),
            ("a", String::new(), false),
            ("a", "abc://1234/efgh".to_owned(), false),
            ("a", "skyns://ed25519%3Fmypublickey-mydatakey".to_owned(), false),
            ("a", format!("skyns://ed25519:{key}"), false),
        ];
        for (name, value, good) in rows {
            let table = BTreeMap::from([(name.to_owned(), value.clone())]);
            assert_eq!(HandshakeNames::parse(&table).is_ok(), good, "{name:?} {value:?}");
        }
        let table = BTreeMap::from([("Sky-App".to_owned(), LINK.to_owned())]);
        let names = HandshakeNames::parse(&table).expect("good");
        for (asked, known) in
            [("sky-app", true), ("SKY-APP", true), ("sky-app.", true), ("sky-app/", true), ("sky", false), ("", false)]
        {
            assert_eq!(names.get(asked).is_some(), known, "{asked:?}");
        }
    }
}
