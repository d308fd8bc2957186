//! What is kept of an upload beside its bytes: the state file (`docs/formats.md`, "Spool").

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::disk::Disk;

/// Longest state file that is read: metadata and the names of all parts fit several times.
const STATE_BYTES_MAX: u64 = 256 << 10;
const VERSION: u32 = 1;
const ID_BYTES: usize = 16;

/// Name of an upload: 128 random bits, so that knowing one is a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId([u8; ID_BYTES]);

impl UploadId {
    pub fn random() -> UploadId {
        UploadId(rand::random())
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// It is no name of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an upload's name has 32 lower-case hexadecimal digits")]
pub struct BadUploadId;

impl FromStr for UploadId {
    type Err = BadUploadId;

    fn from_str(text: &str) -> Result<UploadId, BadUploadId> {
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(BadUploadId);
        }
        let mut id = [0; ID_BYTES];
        hex::decode_to_slice(text, &mut id).map_err(|_| BadUploadId)?;
        Ok(UploadId(id))
    }
}

impl Serialize for UploadId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UploadId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<UploadId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an upload is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// A file by itself.
    Whole,
    /// A stretch of a file that is put together later.
    Part,
    /// A file that is put together of these, in this order.
    Joined {
        parts: Vec<UploadId>,
        /// How the client named them.
        said: String,
    },
}

/// What an upload became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub skylink: String,
    pub cid: String,
}

/// What is said once, when an upload begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub owner: String,
    /// Whose space it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(flatten)]
    pub kind: Kind,
    /// Bytes of the whole upload.
    pub length: u64,
    /// As the client sent it; it is told again as it was.
    pub metadata: String,
    pub filename: String,
    pub content_type: Option<String>,
    /// Unix time, milliseconds.
    pub created_ms: u64,
}

/// What changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes that are durable.
    pub offset: u64,
    /// When something of it came last: Unix time, milliseconds.
    pub touched_ms: u64,
    pub done: Option<Done>,
}

#[derive(Serialize, Deserialize)]
struct Written<H, F> {
    v: u32,
    #[serde(flatten)]
    head: H,
    #[serde(flatten)]
    facts: F,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// What stands in a state file.
#[derive(Debug)]
pub enum Found {
    State(Box<Head>, Facts),
    /// None: the upload was never begun, or has been removed.
    Nothing,
    /// Of a newer program, which may come back.
    Newer(u32),
    Damaged(String),
}

pub fn path_of(id: &UploadId, name: &str) -> String {
    format!("{id}/{name}")
}

/// Replaces the state file durably: after a crash it is the old one or the new one, whole.
pub fn write(disk: &dyn Disk, id: &UploadId, head: &Head, facts: &Facts) -> io::Result<()> {
    let text = serde_json::to_vec(&Written { v: VERSION, head, facts }).expect("text and numbers can be written");
    let next = path_of(id, "state.new");
    let file = disk.create(&next)?;
    file.write_at(0, &text)?;
    file.sync()?;
    disk.rename(&next, &path_of(id, "state"))?;
    disk.sync_folder(&id.to_string())
}

pub fn read(disk: &dyn Disk, id: &UploadId) -> io::Result<Found> {
    let file = match disk.open(&path_of(id, "state")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let length = file.length()?;
    if length > STATE_BYTES_MAX {
        return Ok(Found::Damaged(format!("it has {length} bytes")));
    }
    let mut text = vec![0; length as usize];
    let count = file.read_at(0, &mut text)?;
    text.truncate(count);
    Ok(parse(&text))
}

fn parse(text: &[u8]) -> Found {
    match serde_json::from_slice(text) {
        Ok(Version { v }) if v > VERSION => return Found::Newer(v),
        Ok(Version { .. }) => {}
        Err(error) => return Found::Damaged(error.to_string()),
    }
    match serde_json::from_slice::<Written<Head, Facts>>(text) {
        Ok(Written { head, facts, .. }) if facts.offset <= head.length => Found::State(Box::new(head), facts),
        Ok(Written { head, facts, .. }) => Found::Damaged(format!("offset {} of {} bytes", facts.offset, head.length)),
        Err(error) => Found::Damaged(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: Kind) -> Head {
        Head {
            owner: "local".to_owned(),
            client: None,
            kind,
            length: 1000,
            metadata: "filename YS5iaW4=".to_owned(),
            filename: "a.bin".to_owned(),
            content_type: None,
            created_ms: 5,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let ids: Vec<UploadId> = (0..3).map(|_| UploadId::random()).collect();
        let done = Some(Done { skylink: "AAB".to_owned(), cid: "baf".to_owned() });
        for kind in [Kind::Whole, Kind::Part, Kind::Joined { parts: ids, said: "final;/a /b".to_owned() }] {
            for done in [None, done.clone()] {
                let (head, facts) = (head(kind.clone()), Facts { offset: 7, touched_ms: 6, done });
                let text = serde_json::to_vec(&Written { v: VERSION, head: &head, facts: &facts }).expect("written");
                let Found::State(read, read_facts) = parse(&text) else { panic!("{}", String::from_utf8_lossy(&text)) };
                assert_eq!((*read, read_facts), (head, facts));
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_apart() {
        let whole = r#""owner":"o","kind":"whole","length":9,"metadata":"","filename":"f","content_type":null,"created_ms":0,"touched_ms":0"#;
        assert!(matches!(parse(format!("{{\"v\":1,{whole},\"offset\":9}}").as_bytes()), Found::State(..)));
        assert!(matches!(parse(format!("{{\"v\":1,{whole},\"offset\":10}}").as_bytes()), Found::Damaged(_)));
        assert!(matches!(parse(b"{\"v\":2,\"more\":1}"), Found::Newer(2)));
        for text in ["", "{", "{}", "{\"v\":1}", "[]", "{\"v\":-1}"] {
            assert!(matches!(parse(text.as_bytes()), Found::Damaged(_)), "{text}");
        }
    }

    #[test]
    fn names_of_uploads() {
        let id = UploadId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in
            ["", "00", "0123456789abcdef0123456789abcdeF", "0123456789abcdef0123456789abcdef0", "../456789abcdef0123456789abcdef01"]
        {
            assert_eq!(text.parse::<UploadId>(), Err(BadUploadId), "{text}");
        }
    }
}
