//! DNSLink: what the TXT values of `_dnslink.{name}` say (`ipfs-gateway.md` 4). Pure.
//!
//! Values that are no DNSLink are passed over, as TXT records of all kinds stand side by side. Besides the form of the
//! specification, `dnslink=/{namespace}/{identifier}[/path]`, the short ones that kubo takes count: `dnslink={cid}`, a
//! bare CID, and a bare path. `/ipfs/` and `/ipns/` are one namespace here and win over `/skynet-ns/`.
//!
//! Two values that contradict each other are an error, as in kubo. The specification also lets a program sort them
//! and take the first; but then a site moves to an old or foreign version without anybody being told.

use crate::address::{SitePath, TrailingSlash, parse_cid};

use super::pointer::{PathForm, Pointer};

/// Values of one answer that are looked at. A DNS message of 64 KiB could hold thousands.
const VALUES_MAX: usize = 256;
/// Longest value that is looked at: a name and a path of this length are already far beyond any site's.
const VALUE_BYTES_MAX: usize = 2048;

/// Values that point to different places.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it has several DNSLink values that contradict each other: {first} and {second}")]
pub struct Contradiction {
    first: Box<Pointer>,
    second: Box<Pointer>,
}

/// What the values point to; `None` if none of them is a DNSLink.
pub fn choose<V: AsRef<[u8]>>(values: &[V]) -> Result<Option<Pointer>, Contradiction> {
    let mut ipfs = None;
    let mut skynet = None;
    for pointer in values.iter().take(VALUES_MAX).filter_map(|value| read(value.as_ref())) {
        let known: &mut Option<Pointer> = match &pointer {
            Pointer::Ipfs { .. } | Pointer::Ipns { .. } => &mut ipfs,
            Pointer::Skylink { .. } => &mut skynet,
        };
        match known {
            None => *known = Some(pointer),
            Some(first) if *first == pointer => {}
            Some(first) => {
                // In the order of their text, so that the message does not depend on the order of the answer.
                let mut pair = [first.clone(), pointer];
                pair.sort_by_key(Pointer::to_string);
                let [first, second] = pair.map(Box::new);
                return Err(Contradiction { first, second });
            }
        }
    }
    Ok(ipfs.or(skynet))
}

/// One value: `None` if it is no DNSLink, or one of a namespace that is not served here.
fn read(value: &[u8]) -> Option<Pointer> {
    if value.len() > VALUE_BYTES_MAX || !value.iter().all(|byte| (0x20..=0x7e).contains(byte)) {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?.trim();
    let said = text.strip_prefix("dnslink=").unwrap_or(text).trim();
    if said.starts_with('/') {
        return Pointer::parse(said, PathForm::Encoded);
    }
    let root = parse_cid(said).ok()?;
    Some(Pointer::Ipfs { root, path: SitePath::root(TrailingSlash::No) })
}

/// Any bytes as values: never a panic, and what is taken can be written and read again.
#[cfg(test)]
pub fn fuzz(bytes: &[u8]) {
    let values: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    if let Ok(Some(pointer)) = choose(&values) {
        let again = choose(&[format!("dnslink={pointer}")]);
        assert_eq!(again.expect("one value").map(|again| again.to_string()), Some(pointer.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::mutations;
    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    const OLD: &str = "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD";
    const LINK: &str = "XABvi7JtJbQSMAcDwnUnmp2FKDPjg8_tTTFP4BwMSxVdEg";

    /// Rows marked with a reason are the cases of `dnslink-std/test`.
    #[test]
    fn table() {
        let ipfs = format!("dnslink=/ipfs/{CID}");
        let other = format!("dnslink=/ipfs/{OLD}");
        let sky = format!("dnslink=/skynet-ns/{LINK}/a");
        let long = format!("dnslink=/ipfs/{CID}/{}", "a".repeat(VALUE_BYTES_MAX));
        let (to_cid, to_old, to_sky) = (format!("/ipfs/{CID}"), format!("/ipfs/{OLD}"), format!("/skynet-ns/{LINK}/a"));
        type Chosen<'a> = Result<Option<&'a str>, ()>;
        let rows: Vec<(Vec<&str>, Chosen<'_>)> = vec![
            (vec![], Ok(None)),
            (vec![&ipfs], Ok(Some(&to_cid))),
            (vec!["v=spf1 -all", &ipfs, "dnslink=nothing"], Ok(Some(&to_cid))),
            // WRONG_START, NAMESPACE_MISSING, NO_IDENTIFIER, INVALID_CHARACTER.
            (vec!["dnslink="], Ok(None)),
            (vec!["dnslink=ipfs/x"], Ok(None)),
            (vec!["dnslink=//x"], Ok(None)),
            (vec!["dnslink=/ipfs"], Ok(None)),
            (vec!["dnslink=/ipfs/"], Ok(None)),
            (vec!["dnslink=/ipfs/ü"], Ok(None)),
            (vec!["dnslink=/sia/abc"], Ok(None)),
            // The same twice is no contradiction; two are, whatever their order.
            (vec![&ipfs, &ipfs], Ok(Some(&to_cid))),
            (vec![&ipfs, &other], Err(())),
            (vec![&ipfs, "dnslink=/ipns/example.org"], Err(())),
            // Namespaces side by side.
            (vec![&sky, &ipfs, "dnslink=/sia/abc"], Ok(Some(&to_cid))),
            (vec![&sky], Ok(Some(&to_sky))),
            // What kubo takes.
            (vec![CID], Ok(Some(&to_cid))),
            (vec![&to_old], Ok(Some(&to_old))),
            (vec![&long], Ok(None)),
        ];
        for (values, expect) in rows {
            let found = choose(&values).map(|found| found.map(|pointer| pointer.to_string()));
            assert_eq!(found.as_ref().map(Option::as_deref).map_err(|_| ()), expect, "{values:?}");
        }
        let short = choose(&[format!("dnslink={CID}")]).expect("one value").map(|found| found.to_string());
        assert_eq!(short.as_deref(), Some(to_cid.as_str()));
        let said = choose(&[&other, &ipfs]).expect_err("two").to_string();
        assert_eq!(said, choose(&[&ipfs, &other]).expect_err("two").to_string());
    }

    #[test]
    fn the_table_of_the_suite() {
        let Some(table) = crate::address::test_shared::shared_json("conformance/fixtures/dnslinks.json") else { return };
        for (domain, value) in table["domains"].as_object().expect("a table") {
            let value = value.as_str().expect("text");
            let found = choose(&[format!("dnslink={value}")]).expect("one value");
            assert!(found.is_some(), "{domain}: {value}");
        }
    }

    #[test]
    fn fuzz_corpus() {
        let corpus = [
            format!("dnslink=/ipfs/{CID}/a%20b/c\nv=spf1"),
            format!("dnslink=/ipns/example.org/x\ndnslink=/skynet-ns/{LINK}"),
            CID.to_owned(),
        ];
        for good in &corpus {
            for seed in 0..200 {
                println!("seed {seed} of {good:?}");
                fuzz(&mutations(seed, good.as_bytes()));
            }
        }
    }
}
