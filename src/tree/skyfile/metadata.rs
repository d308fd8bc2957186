//! Skyfile metadata: the JSON behind the fanout.
//!
//! The bytes are part of the skylink, so [`Metadata::encode`] writes exactly what Go's `encoding/json` (of 2021) wrote for
//! Skynet's struct: field order, empty fields left out, map keys sorted by bytes, HTML characters escaped.
//! [`Metadata::decode`] is as tolerant as Go's decoder was: unknown fields are skipped (`monetization` for one), field names match
//! in any ASCII case, a later duplicate wins, `null` changes nothing, bad UTF-8 becomes U+FFFD.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::SkyfileError;

/// Largest metadata that is read or written: about 400,000 files with names of usual length. Metadata is kept in memory while a
/// skyfile is served, so this and [`SUBFILES_MAX`] bound what one address can cost.
pub const METADATA_BYTES_MAX: u64 = 64 << 20;

/// Most files in one skyfile. A subfile can be named in eight bytes of JSON but costs about 150 in memory; without this
/// limit 64 MiB of JSON could take 1.2 GB.
pub const SUBFILES_MAX: usize = 500_000;

/// Most tryfiles, and most errorpages: each missing path walks the tryfiles, and there are 200 error codes.
pub const LIST_ITEMS_MAX: usize = 256;

/// What a skyfile says about itself. Text fields that are empty and numbers that are 0 count as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    pub filename: String,
    /// Bytes of the content; 0 in old skyfiles that have subfiles.
    pub length_bytes: u64,
    /// Unix mode; the JSON holds it as a decimal number.
    pub mode: u32,
    /// By path without a leading slash.
    pub subfiles: BTreeMap<String, Subfile>,
    pub default_path: String,
    pub disable_default_path: bool,
    pub try_files: Vec<String>,
    /// Status code to absolute path.
    pub error_pages: BTreeMap<i64, String>,
}

/// One file inside a skyfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subfile {
    pub mode: u32,
    /// Equals the key it stands under in valid metadata.
    pub filename: String,
    pub content_type: String,
    /// Where it begins in the content.
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

impl Metadata {
    /// Reads metadata JSON. Does not judge it: see [`super::validate`].
    pub fn decode(json: &[u8]) -> Result<Metadata, SkyfileError> {
        let size_bytes = json.len() as u64;
        if size_bytes > METADATA_BYTES_MAX {
            return Err(SkyfileError::TooLarge { what: "bytes of metadata", have: size_bytes, limit: METADATA_BYTES_MAX });
        }
        let metadata: Option<Metadata> = serde_json::from_slice(json).map_err(|error| SkyfileError::Metadata(error.to_string()))?;
        Ok(metadata.unwrap_or_default())
    }

    /// The JSON, byte for byte as Skynet wrote it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = ObjectWriter::begin(Vec::with_capacity(128 + self.subfiles.len() * 128));
        out.text("filename", &self.filename);
        out.number("length", self.length_bytes);
        out.number_unless_zero("mode", self.mode.into());
        if !self.subfiles.is_empty() {
            out.key("subfiles");
            let mut map = ObjectWriter::begin(std::mem::take(&mut out.bytes));
            for (path, subfile) in &self.subfiles {
                map.key(path);
                map.bytes = subfile.encode_into(std::mem::take(&mut map.bytes));
            }
            out.bytes = map.end();
        }
        out.text_unless_empty("defaultpath", &self.default_path);
        if self.disable_default_path {
            out.key("disabledefaultpath");
            out.bytes.extend_from_slice(b"true");
        }
        if !self.try_files.is_empty() {
            out.key("tryfiles");
            for (index, file) in self.try_files.iter().enumerate() {
                out.bytes.push(if index == 0 { b'[' } else { b',' });
                write_go_string(&mut out.bytes, file.as_bytes());
            }
            out.bytes.push(b']');
        }
        if !self.error_pages.is_empty() {
            out.key("errorpages");
            // Go sorts a map by the text of its keys, which for integers is not their numeric order.
            let by_text: BTreeMap<String, &String> = self.error_pages.iter().map(|(code, path)| (code.to_string(), path)).collect();
            let mut map = ObjectWriter::begin(std::mem::take(&mut out.bytes));
            for (code, path) in by_text {
                map.text(&code, path);
            }
            out.bytes = map.end();
        }
        out.end()
    }

    /// Whether the skyfile stands for a directory: several files, or one that has another name than the skyfile.
    pub fn is_directory(&self) -> bool {
        match self.subfiles.len() {
            0 => false,
            1 => !self.subfiles.contains_key(&self.filename),
            _ => true,
        }
    }

    /// Approximate bytes this takes in memory, for caches that are bounded in bytes.
    pub fn memory_bytes(&self) -> usize {
        let text = |text: &String| text.capacity() + size_of::<String>();
        let subfiles: usize = self
            .subfiles
            .iter()
            .map(|(key, file)| text(key) + size_of::<Subfile>() + file.filename.capacity() + file.content_type.capacity())
            .sum();
        let lists: usize = self.try_files.iter().chain(self.error_pages.values()).map(text).sum();
        size_of::<Metadata>() + self.filename.capacity() + self.default_path.capacity() + subfiles + lists
    }
}

impl Subfile {
    fn encode_into(&self, bytes: Vec<u8>) -> Vec<u8> {
        let mut out = ObjectWriter::begin(bytes);
        out.number_unless_zero("mode", self.mode.into());
        out.text_unless_empty("filename", &self.filename);
        out.text_unless_empty("contenttype", &self.content_type);
        out.number_unless_zero("offset", self.offset_bytes);
        out.number_unless_zero("len", self.len_bytes);
        out.end()
    }
}

/// Writes one JSON object, commas included.
struct ObjectWriter {
    bytes: Vec<u8>,
    begun: bool,
}

impl ObjectWriter {
    fn begin(mut bytes: Vec<u8>) -> ObjectWriter {
        bytes.push(b'{');
        ObjectWriter { bytes, begun: false }
    }

    fn key(&mut self, key: &str) {
        if self.begun {
            self.bytes.push(b',');
        }
        self.begun = true;
        write_go_string(&mut self.bytes, key.as_bytes());
        self.bytes.push(b':');
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        write_go_string(&mut self.bytes, value.as_bytes());
    }

    fn text_unless_empty(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        self.bytes.extend_from_slice(value.to_string().as_bytes());
    }

    fn number_unless_zero(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.number(key, value);
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.bytes.push(b'}');
        self.bytes
    }
}

/// Writes a JSON string as Go's encoder with HTML escaping does. The control characters 8 and 12 are written as `\u0008` and
/// `\u000c`, as Go before 1.22 did: Skynet's daemon was never built with a later one. A byte that is not UTF-8 becomes the six
/// characters `\ufffd`; a U+FFFD that was there stays as it is.
pub(super) fn write_go_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    out.extend_from_slice(format!("\\u{:04x}", character as u32).as_bytes());
                }
                other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        // Go replaces byte by byte, where Rust's lossy conversion would join a broken sequence.
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.push(b'"');
}

/// A JSON string with Go's tolerance: `null` is empty, what is not UTF-8 (a lone surrogate included) becomes U+FFFD.
#[derive(Default)]
struct GoText(String);

impl<'de> Deserialize<'de> for GoText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GoText, D::Error> {
        struct Present(String);
        impl<'de> Deserialize<'de> for Present {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Present, D::Error> {
                deserializer.deserialize_bytes(TextVisitor).map(Present)
            }
        }
        Ok(GoText(Option::<Present>::deserialize(deserializer)?.map(|text| text.0).unwrap_or_default()))
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
        }
        Ok(text)
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// A key of an object; unlike [`GoText`] it cannot be `null`.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_bytes(TextVisitor)
    }
}

/// An object read key by key, the way Go fills a struct or a map.
trait GoObject: Default {
    /// Takes the value of `key` from `map`; it must take exactly one.
    fn take<'de, A: MapAccess<'de>>(&mut self, key: String, map: &mut A) -> Result<(), A::Error>;
}

struct ObjectVisitor<T>(T);

impl<'de, T: GoObject> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<T, A::Error> {
        while let Some(key) = map.next_key_seed(KeySeed)? {
            self.0.take(key, &mut map)?;
        }
        Ok(self.0)
    }
}

/// Sets `field` unless the JSON says `null`.
fn set<'de, A: MapAccess<'de>, T: Deserialize<'de>>(map: &mut A, field: &mut T) -> Result<(), A::Error> {
    if let Some(value) = map.next_value::<Option<T>>()? {
        *field = value;
    }
    Ok(())
}

fn set_text<'de, A: MapAccess<'de>>(map: &mut A, field: &mut String) -> Result<(), A::Error> {
    if let Some(text) = map.next_value::<Option<GoText>>()? {
        *field = text.0;
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Metadata, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(Metadata::default()))
    }
}

impl GoObject for Metadata {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: String, map: &mut A) -> Result<(), A::Error> {
        match key.to_ascii_lowercase().as_str() {
            "filename" => set_text(map, &mut self.filename),
            "length" => set(map, &mut self.length_bytes),
            "mode" => set(map, &mut self.mode),
            "subfiles" => {
                if let Some(subfiles) = map.next_value::<Option<Subfiles>>()? {
                    self.subfiles = subfiles.0;
                }
                Ok(())
            }
            "defaultpath" => set_text(map, &mut self.default_path),
            "disabledefaultpath" => set(map, &mut self.disable_default_path),
            "tryfiles" => {
                if let Some(files) = map.next_value::<Option<TextList>>()? {
                    self.try_files = files.0;
                }
                Ok(())
            }
            "errorpages" => {
                if let Some(pages) = map.next_value::<Option<ErrorPages>>()? {
                    self.error_pages = pages.0;
                }
                Ok(())
            }
            _ => map.next_value::<IgnoredAny>().map(drop),
        }
    }
}

impl<'de> Deserialize<'de> for Subfile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Subfile, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(Subfile::default()))
    }
}

impl GoObject for Subfile {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: String, map: &mut A) -> Result<(), A::Error> {
        match key.to_ascii_lowercase().as_str() {
            "mode" => set(map, &mut self.mode),
            "filename" => set_text(map, &mut self.filename),
            "contenttype" => set_text(map, &mut self.content_type),
            "offset" => set(map, &mut self.offset_bytes),
            "len" => set(map, &mut self.len_bytes),
            _ => map.next_value::<IgnoredAny>().map(drop),
        }
    }
}

#[derive(Default)]
struct Subfiles(BTreeMap<String, Subfile>);

impl<'de> Deserialize<'de> for Subfiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Subfiles, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(Subfiles::default()))
    }
}

impl GoObject for Subfiles {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: String, map: &mut A) -> Result<(), A::Error> {
        let subfile = map.next_value::<Option<Subfile>>()?.unwrap_or_default();
        self.0.insert(key, subfile);
        within(self.0.len(), SUBFILES_MAX, "subfiles")
    }
}

#[derive(Default)]
struct ErrorPages(BTreeMap<i64, String>);

impl<'de> Deserialize<'de> for ErrorPages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ErrorPages, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(ErrorPages::default()))
    }
}

impl GoObject for ErrorPages {
    fn take<'de, A: MapAccess<'de>>(&mut self, key: String, map: &mut A) -> Result<(), A::Error> {
        let code = key.parse().map_err(|_| A::Error::custom("an errorpages key is not a number"))?;
        let mut path = String::new();
        set_text(map, &mut path)?;
        self.0.insert(code, path);
        within(self.0.len(), LIST_ITEMS_MAX, "errorpages")
    }
}

struct TextList(Vec<String>);

impl<'de> Deserialize<'de> for TextList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TextList, D::Error> {
        deserializer.deserialize_seq(TextListVisitor).map(TextList)
    }
}

struct TextListVisitor;

impl<'de> Visitor<'de> for TextListVisitor {
    type Value = Vec<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element::<GoText>()? {
            texts.push(text.0);
            within(texts.len(), LIST_ITEMS_MAX, "tryfiles")?;
        }
        Ok(texts)
    }
}

fn within<E: serde::de::Error>(count: usize, limit: usize, what: &str) -> Result<(), E> {
    if count > limit { Err(E::custom(format_args!("more than {limit} {what}"))) } else { Ok(()) }
}
