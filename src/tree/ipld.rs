//! Blocks of other codecs than dag-pb: their links, and paths inside them.
//!
//! DAG-CBOR is read item by item where it lies: no value is built, lengths are believed only as far as there are bytes, and
//! nothing recurses, so a hostile block costs time in proportion to its bytes and no memory (CVE-2026-35480, CVE-2026-42328).
//! DAG-JSON goes through serde_json's streaming reader, which stops at 128 levels.

use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{TreeError, dagpb};
use crate::address::{Cid, codec, parse_cid, parse_cid_bytes};

/// Deepest nesting of a block that is read, as serde_json's; real data has under twenty levels.
pub const IPLD_DEPTH_MAX: usize = 128;

/// The tag of a link in DAG-CBOR.
const LINK_TAG: u64 = 42;

/// All links of a block, in the order they stand in it. A codec that is not known has links that cannot be seen, so it is an error.
pub fn links(cid: &Cid, block: &Bytes) -> Result<Vec<Cid>, TreeError> {
    match cid.codec() {
        codec::DAG_PB => Ok(dagpb::decode(block)?.links.into_iter().map(|link| link.cid).collect()),
        codec::DAG_CBOR => cbor_links(block),
        codec::DAG_JSON => json_links(block),
        codec::RAW | codec::JSON | codec::CBOR | codec::LIBP2P_KEY => Ok(Vec::new()),
        other => Err(TreeError::unsupported(format!("links of the codec 0x{other:x}"))),
    }
}

/// Where a path inside a block leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To a link, after this many names.
    Link { cid: Cid, passed: usize },
    /// To a value inside the block that is no link.
    Value,
    /// This many names are there, the next is not.
    Missing { passed: usize },
}

/// Follows names through the maps and lists of a DAG-CBOR or DAG-JSON block until a link is met or the names end.
pub fn lookup(cid: &Cid, block: &Bytes, names: &[String]) -> Result<Step, TreeError> {
    match cid.codec() {
        codec::DAG_CBOR => cbor_lookup(block, names),
        codec::DAG_JSON => json_lookup(block, names),
        // No codec with links: whatever stands there, nothing lies below.
        _ if names.is_empty() => Ok(Step::Value),
        _ => Ok(Step::Missing { passed: 0 }),
    }
}

// ---------------------------------------------------------------- DAG-CBOR

/// What one item of CBOR begins with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Head {
    Unsigned(u64),
    /// -1 - n.
    Negative(u64),
    Bytes(u64),
    Text(u64),
    List(u64),
    Map(u64),
    Tag(u64),
    Bool(bool),
    Null,
    Float(f64),
}

struct Cbor<'a> {
    bytes: &'a [u8],
}

fn bad_cbor(why: &'static str) -> TreeError {
    TreeError::malformed("DAG-CBOR", why)
}

impl<'a> Cbor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], TreeError> {
        let count = usize::try_from(count).map_err(|_| bad_cbor("a length beyond the block"))?;
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(|| bad_cbor("the block ends within an item"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn number(&mut self, byte_count: u64) -> Result<u64, TreeError> {
        Ok(self.take(byte_count)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn head(&mut self) -> Result<Head, TreeError> {
        let first = self.take(1)?[0];
        let argument = match first & 31 {
            small @ 0..=23 => u64::from(small),
            24 => self.number(1)?,
            25 => self.number(2)?,
            26 => self.number(4)?,
            27 => self.number(8)?,
            _ => return Err(bad_cbor("an item of indefinite length")),
        };
        Ok(match (first >> 5, first & 31) {
            (0, _) => Head::Unsigned(argument),
            (1, _) => Head::Negative(argument),
            (2, _) => Head::Bytes(argument),
            (3, _) => Head::Text(argument),
            (4, _) => Head::List(argument),
            (5, _) => Head::Map(argument),
            (6, _) => Head::Tag(argument),
            (7, 20) => Head::Bool(false),
            (7, 21) => Head::Bool(true),
            (7, 22 | 23) => Head::Null,
            (7, 25) => Head::Float(half(argument as u16)),
            (7, 26) => Head::Float(f64::from(f32::from_bits(argument as u32))),
            (7, 27) => Head::Float(f64::from_bits(argument)),
            _ => return Err(bad_cbor("a simple value that DAG-CBOR does not have")),
        })
    }

    fn text(&mut self, length: u64) -> Result<&'a str, TreeError> {
        std::str::from_utf8(self.take(length)?).map_err(|_| bad_cbor("text that is not UTF-8"))
    }

    /// A map's key.
    fn key(&mut self) -> Result<&'a str, TreeError> {
        match self.head()? {
            Head::Text(length) => self.text(length),
            _ => Err(bad_cbor("a map key that is no text")),
        }
    }

    /// What stands behind a tag: only links have one.
    fn link(&mut self, tag: u64) -> Result<Cid, TreeError> {
        let Head::Bytes(length) = self.head()? else { return Err(bad_cbor("a tag before something else than bytes")) };
        let bytes = self.take(length)?;
        if tag != LINK_TAG {
            return Err(bad_cbor("a tag other than 42"));
        }
        let Some((0, cid)) = bytes.split_first().map(|(first, rest)| (*first, rest)) else {
            return Err(bad_cbor("a link that does not begin with a zero byte"));
        };
        parse_cid_bytes(cid).map_err(|_| bad_cbor("a link that is no CID"))
    }
}

/// A half-precision float: allowed in CBOR, not canonical in DAG-CBOR, read all the same.
fn half(bits: u16) -> f64 {
    let exponent = i32::from(bits >> 10 & 31);
    let fraction = f64::from(bits & 1023);
    let value = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (fraction + 1024.0) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -value } else { value }
}

/// One thing met on the way through a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    MapStart,
    ListStart,
    /// Of the innermost map or list that is open.
    End,
    Key(&'a str),
    Link(Cid),
    Text(&'a str),
    Bytes(&'a [u8]),
    Integer(i128),
    Float(f64),
    Bool(bool),
    Null,
}

/// Goes through a DAG-CBOR block in order. One item, and nothing behind it.
pub fn walk_cbor<'a>(block: &'a [u8], mut on: impl FnMut(Event<'a>) -> Result<(), TreeError>) -> Result<(), TreeError> {
    enum Open {
        Map(u64),
        List(u64),
    }
    let mut cbor = Cbor { bytes: block };
    let mut open: Vec<Open> = Vec::new();
    loop {
        match cbor.head()? {
            Head::Map(count) => {
                TreeError::check_limit("levels of a DAG-CBOR block", open.len() + 1, IPLD_DEPTH_MAX)?;
                on(Event::MapStart)?;
                open.push(Open::Map(count));
            }
            Head::List(count) => {
                TreeError::check_limit("levels of a DAG-CBOR block", open.len() + 1, IPLD_DEPTH_MAX)?;
                on(Event::ListStart)?;
                open.push(Open::List(count));
            }
            Head::Tag(tag) => on(Event::Link(cbor.link(tag)?))?,
            Head::Text(length) => on(Event::Text(cbor.text(length)?))?,
            Head::Bytes(length) => on(Event::Bytes(cbor.take(length)?))?,
            Head::Unsigned(number) => on(Event::Integer(i128::from(number)))?,
            Head::Negative(number) => on(Event::Integer(-1 - i128::from(number)))?,
            Head::Float(number) => on(Event::Float(number))?,
            Head::Bool(value) => on(Event::Bool(value))?,
            Head::Null => on(Event::Null)?,
        }
        // To where the next value stands: past all that has ended, and over its key.
        loop {
            match open.last_mut() {
                None if cbor.bytes.is_empty() => return Ok(()),
                None => return Err(bad_cbor("bytes behind the item")),
                Some(Open::Map(0) | Open::List(0)) => {
                    on(Event::End)?;
                    open.pop();
                }
                Some(Open::Map(left)) => {
                    *left -= 1;
                    on(Event::Key(cbor.key()?))?;
                    break;
                }
                Some(Open::List(left)) => {
                    *left -= 1;
                    break;
                }
            }
        }
    }
}

fn cbor_links(block: &[u8]) -> Result<Vec<Cid>, TreeError> {
    let mut links = Vec::new();
    walk_cbor(block, |event| {
        if let Event::Link(cid) = event {
            links.push(cid);
        }
        Ok(())
    })?;
    Ok(links)
}

fn cbor_lookup(block: &[u8], names: &[String]) -> Result<Step, TreeError> {
    let mut finder = Finder::new(names);
    walk_cbor(block, |event| {
        finder.see(event);
        Ok(())
    })?;
    Ok(finder.end())
}

/// Looks for a path in the events of a block.
struct Finder<'n> {
    names: &'n [String],
    /// Maps and lists that are open.
    depth: usize,
    /// How many of them, from the outermost on, lie on the path: names that were met.
    on_way: usize,
    /// For each open one: the index of the next entry of a list, or whether the key just read is the wanted one.
    place: Vec<Place>,
    step: Option<Step>,
}

#[derive(Clone, Copy)]
enum Place {
    Map { wanted: bool },
    List { next: usize },
}

impl Finder<'_> {
    fn new(names: &[String]) -> Finder<'_> {
        Finder { names, depth: 0, on_way: 0, place: Vec::new(), step: None }
    }

    fn end(self) -> Step {
        self.step.unwrap_or(Step::Missing { passed: self.on_way })
    }

    fn see(&mut self, event: Event<'_>) {
        if let Event::Key(key) = event {
            let wanted = self.depth == self.on_way + 1 && self.names.get(self.on_way).is_some_and(|name| name == key);
            if let Some(Place::Map { wanted: slot }) = self.place.last_mut() {
                *slot = wanted;
            }
            return;
        }
        if event == Event::End {
            self.depth -= 1;
            self.place.pop();
            return;
        }
        let here = self.at_wanted();
        if here && self.step.is_none() {
            let passed = if self.depth == 0 { 0 } else { self.on_way + 1 };
            self.on_way = passed;
            match event {
                Event::Link(cid) => self.step = Some(Step::Link { cid, passed }),
                _ if passed == self.names.len() => self.step = Some(Step::Value),
                Event::MapStart | Event::ListStart => {}
                // A plain value with names left.
                _ => self.step = Some(Step::Missing { passed }),
            }
        }
        match event {
            Event::MapStart => self.open(Place::Map { wanted: false }),
            Event::ListStart => self.open(Place::List { next: 0 }),
            _ => {}
        }
    }

    fn open(&mut self, place: Place) {
        self.depth += 1;
        self.place.push(place);
    }

    /// Is the value that comes now the next one on the path? Counts entries of lists.
    fn at_wanted(&mut self) -> bool {
        let innermost = self.depth == self.on_way + 1;
        match self.place.last_mut() {
            None => true,
            Some(Place::Map { wanted }) => std::mem::take(wanted) && innermost,
            Some(Place::List { next }) => {
                let index = *next;
                *next += 1;
                innermost && self.names.get(self.on_way).is_some_and(|name| is_index(name, index))
            }
        }
    }
}

/// List indexes are decimal numbers without leading zeros.
fn is_index(name: &str, index: usize) -> bool {
    name.parse() == Ok(index) && (name == "0" || !name.starts_with(['0', '+']))
}

// ---------------------------------------------------------------- DAG-JSON

fn bad_json(error: &serde_json::Error) -> TreeError {
    TreeError::malformed("DAG-JSON", error.to_string())
}

fn json_links(block: &[u8]) -> Result<Vec<Cid>, TreeError> {
    let mut links = Vec::new();
    walk_json(block, &mut |event| {
        if let JsonEvent::Link(cid) = event {
            links.push(*cid);
        }
    })?;
    Ok(links)
}

fn json_lookup(block: &[u8], names: &[String]) -> Result<Step, TreeError> {
    let mut finder = Finder::new(names);
    walk_json(block, &mut |event| {
        finder.see(match event {
            JsonEvent::MapStart => Event::MapStart,
            JsonEvent::ListStart => Event::ListStart,
            JsonEvent::End => Event::End,
            JsonEvent::Key(key) => Event::Key(key),
            JsonEvent::Link(cid) => Event::Link(*cid),
            JsonEvent::Scalar => Event::Null,
        });
    })?;
    Ok(finder.end())
}

/// As [`Event`], of what looking for links and paths needs.
enum JsonEvent<'a> {
    MapStart,
    ListStart,
    End,
    Key(&'a str),
    Link(Box<Cid>),
    Scalar,
}

type OnJson<'a> = dyn FnMut(JsonEvent<'_>) + 'a;

fn walk_json(block: &[u8], on: &mut OnJson<'_>) -> Result<(), TreeError> {
    let mut reader = serde_json::Deserializer::from_slice(block);
    Json { on }.deserialize(&mut reader).map_err(|error| bad_json(&error))?;
    reader.end().map_err(|error| bad_json(&error))
}

struct Json<'e, 'f> {
    on: &'e mut OnJson<'f>,
}

impl<'de> DeserializeSeed<'de> for Json<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("DAG-JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        (self.on)(JsonEvent::Scalar);
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        (self.on)(JsonEvent::Scalar);
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        (self.on)(JsonEvent::Scalar);
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        (self.on)(JsonEvent::Scalar);
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        (self.on)(JsonEvent::Scalar);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        (self.on)(JsonEvent::Scalar);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        (self.on)(JsonEvent::ListStart);
        while entries.next_element_seed(Json { on: &mut *self.on })?.is_some() {}
        (self.on)(JsonEvent::End);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some(first) = entries.next_key::<String>()? else {
            (self.on)(JsonEvent::MapStart);
            (self.on)(JsonEvent::End);
            return Ok(());
        };
        // A map whose only key is "/" is a link, or bytes.
        if first == "/" {
            match entries.next_value::<Slash>()? {
                Slash::Link(cid) => (self.on)(JsonEvent::Link(cid)),
                Slash::Bytes => (self.on)(JsonEvent::Scalar),
            }
            return match entries.next_key::<String>()? {
                None => Ok(()),
                Some(_) => Err(serde::de::Error::custom("a map with \"/\" and another key")),
            };
        }
        (self.on)(JsonEvent::MapStart);
        let mut key = first;
        loop {
            (self.on)(JsonEvent::Key(&key));
            entries.next_value_seed(Json { on: &mut *self.on })?;
            match entries.next_key::<String>()? {
                None => break,
                Some(next) if next == "/" => return Err(serde::de::Error::custom("a map with \"/\" and another key")),
                Some(next) => key = next,
            }
        }
        (self.on)(JsonEvent::End);
        Ok(())
    }
}

/// What stands behind the key "/".
enum Slash {
    Link(Box<Cid>),
    Bytes,
}

impl<'de> serde::Deserialize<'de> for Slash {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Slash, D::Error> {
        struct SlashVisitor;
        impl<'de> Visitor<'de> for SlashVisitor {
            type Value = Slash;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a CID as text, or bytes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Slash, E> {
                parse_cid(text).map(|cid| Slash::Link(Box::new(cid))).map_err(|_| E::custom("a link that is no CID"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Slash, A::Error> {
                match entries.next_key::<String>()?.as_deref() {
                    Some("bytes") => entries.next_value::<IgnoredAny>()?,
                    _ => return Err(serde::de::Error::custom("a map behind \"/\" that holds no bytes")),
                };
                match entries.next_key::<String>()? {
                    None => Ok(Slash::Bytes),
                    Some(_) => Err(serde::de::Error::custom("a map behind \"/\" with several keys")),
                }
            }
        }
        reader.deserialize_any(SlashVisitor)
    }
}

/// Whatever the bytes are, reading them ends, and reading them twice gives the same.
#[cfg(test)]
pub fn fuzz(bytes: &[u8]) {
    let block = Bytes::copy_from_slice(bytes);
    for codec in [codec::DAG_CBOR, codec::DAG_JSON, codec::DAG_PB, codec::RAW] {
        let cid = crate::address::cid_v1(codec, [0; 32]);
        let found = links(&cid, &block);
        assert_eq!(found, links(&cid, &block));
        let names = ["a".to_owned(), "0".to_owned()];
        if let (Ok(Step::Link { cid: link, .. }), Ok(all)) = (lookup(&cid, &block, &names), &found) {
            assert!(all.contains(&link), "a path leads only to links that the block has");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::cid_v1;

    fn target(byte: u8) -> Cid {
        cid_v1(codec::RAW, [byte; 32])
    }

    fn cbor_link(byte: u8) -> Vec<u8> {
        [&[0xd8, 42, 0x58, 37, 0][..], &target(byte).to_bytes()].concat()
    }

    /// `{"a": [link 1, {"b": link 2}], "t": "text", "n": -7}`
    fn cbor_block() -> Vec<u8> {
        let mut block = vec![0xa3, 0x61, b'a', 0x82];
        block.extend(cbor_link(1));
        block.extend([0xa1, 0x61, b'b']);
        block.extend(cbor_link(2));
        block.extend([0x61, b't', 0x64, b't', b'e', b'x', b't', 0x61, b'n', 0x26]);
        block
    }

    fn json_block() -> Vec<u8> {
        let (one, two) = (target(1), target(2));
        format!(r#"{{"a":[{{"/":"{one}"}},{{"b":{{"/":"{two}"}}}}],"n":-7,"t":"text","x":{{"/":{{"bytes":"AQ"}}}}}}"#).into_bytes()
    }

    #[test]
    fn links_in_order() {
        for (codec, block) in [(codec::DAG_CBOR, cbor_block()), (codec::DAG_JSON, json_block())] {
            let cid = cid_v1(codec, [0; 32]);
            assert_eq!(links(&cid, &block.into()), Ok(vec![target(1), target(2)]));
        }
        assert_eq!(links(&cid_v1(codec::JSON, [0; 32]), &json_block().into()), Ok(vec![]));
        assert!(matches!(links(&cid_v1(0x1234, [0; 32]), &Bytes::new()), Err(TreeError::Unsupported { .. })));
    }

    #[test]
    fn paths_inside_a_block() {
        let link = |byte, passed| Step::Link { cid: target(byte), passed };
        let rows: &[(&str, Step)] = &[
            ("", Step::Value),
            ("a", Step::Value),
            ("a/0", link(1, 2)),
            ("a/0/more/below", link(1, 2)),
            ("a/1/b", link(2, 3)),
            ("a/1", Step::Value),
            ("a/2", Step::Missing { passed: 1 }),
            ("a/01", Step::Missing { passed: 1 }),
            ("a/+1", Step::Missing { passed: 1 }),
            ("a/1/c", Step::Missing { passed: 2 }),
            ("b", Step::Missing { passed: 0 }),
            ("t", Step::Value),
            ("t/x", Step::Missing { passed: 1 }),
            ("n", Step::Value),
        ];
        for (path, expect) in rows {
            let names: Vec<String> = path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            for (codec, block) in [(codec::DAG_CBOR, cbor_block()), (codec::DAG_JSON, json_block())] {
                assert_eq!(lookup(&cid_v1(codec, [0; 32]), &block.into(), &names).as_ref(), Ok(expect), "{path}");
            }
        }
    }

    /// CVE-2026-35480 (lengths that preallocate), CVE-2026-42328 (nesting).
    #[test]
    fn hostile_blocks_are_refused() {
        let deep = |levels: usize, open: u8| [vec![open; levels], vec![0xf6]].concat();
        let rows: Vec<Vec<u8>> = vec![
            vec![],
            vec![0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            vec![0xbb, 0x10, 0, 0, 0, 0, 0, 0, 0],
            vec![0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            vec![0x7b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, b'a'],
            vec![0x9f, 0xff],
            vec![0x61, 0xff],
            vec![0xa1, 0x01, 0x01],
            vec![0xd8, 42, 0x41, 1],
            vec![0xd8, 42, 0x40],
            vec![0xd8, 43, 0x41, 0],
            vec![0xd8, 42, 0x01],
            vec![0xf6, 0xf6],
            vec![0xff],
            deep(IPLD_DEPTH_MAX + 1, 0x81),
            deep(100_000, 0x81),
        ];
        for block in rows {
            let short = hex::encode(&block[..block.len().min(16)]);
            assert!(links(&cid_v1(codec::DAG_CBOR, [0; 32]), &block.into()).is_err(), "{short}");
        }
        assert!(links(&cid_v1(codec::DAG_CBOR, [0; 32]), &deep(IPLD_DEPTH_MAX, 0x81).into()).is_ok());
        let json = [
            "".to_owned(),
            "{".to_owned(),
            "[".repeat(100_000),
            r#"{"/":"nothing"}"#.to_owned(),
            r#"{"/":"bafkqaaa","a":1}"#.to_owned(),
            r#"{"a":1,"/":"bafkqaaa"}"#.to_owned(),
            r#"{"/":1}"#.to_owned(),
            r#"{"/":{"bytes":"AQ","b":1}}"#.to_owned(),
            "{} {}".to_owned(),
        ];
        for block in json {
            let short: String = block.chars().take(40).collect();
            assert!(links(&cid_v1(codec::DAG_JSON, [0; 32]), &block.into()).is_err(), "{short}");
        }
    }

    #[test]
    fn numbers() {
        for (bytes, expect) in [
            (&[0xf9, 0x3c, 0x00][..], Event::Float(1.0)),
            (&[0xf9, 0xc0, 0x00], Event::Float(-2.0)),
            (&[0xfa, 0x3f, 0x80, 0, 0], Event::Float(1.0)),
            (&[0x3b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Event::Integer(-(1 << 64))),
            (&[0x18, 0xff], Event::Integer(255)),
        ] {
            let mut seen = Vec::new();
            walk_cbor(bytes, |event| {
                // Lifetimes of the two blocks differ; only numbers are kept.
                seen.push(format!("{event:?}"));
                Ok(())
            })
            .expect("reads");
            assert_eq!(seen, [format!("{expect:?}")]);
        }
    }

    #[test]
    fn fuzz_corpus() {
        for good in [cbor_block(), json_block()] {
            for seed in 0..500 {
                fuzz(&crate::address::test_shared::mutations(seed, &good));
            }
        }
    }
}
