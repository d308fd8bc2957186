//! Frames of the add stream (`docs/formats.md` 9), which `get` reads, too: u32 length, JSON, then a file's bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Longest JSON of one frame (`docs/formats.md` 9).
pub const FRAME_JSON_BYTES_MAX: usize = 64 << 10;
/// Version of the stream.
pub const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootKind {
    File,
    Dir,
}

/// First frame.
#[derive(Debug, Serialize, Deserialize)]
pub struct Head {
    pub v: u32,
    pub root: RootKind,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub profile: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: String,
    #[serde(flatten)]
    pub kind: EntryKind,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum EntryKind {
    /// `size` bytes of content follow the frame.
    File {
        size: u64,
    },
    Symlink {
        target: String,
    },
    Dir,
}

/// Last frame.
#[derive(Debug, Serialize, Deserialize)]
pub struct End {
    pub end: bool,
    /// Entries that came before.
    pub entries: u64,
}

/// What follows the head.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Frame {
    Entry(Entry),
    End(End),
}

/// Appends a frame; `Err` has the length of JSON that is too long.
pub fn encode_frame(frame: &impl Serialize, out: &mut Vec<u8>) -> Result<(), usize> {
    let json = serde_json::to_vec(frame).expect("frames are plain maps of text and numbers");
    if json.len() > FRAME_JSON_BYTES_MAX {
        return Err(json.len());
    }
    let length = u32::try_from(json.len()).expect("64 KiB fit 32 bits");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&json);
    Ok(())
}

/// A stream of frames as a thread reads it.
#[derive(Debug)]
pub struct FrameReader {
    parts: mpsc::Receiver<Result<Bytes, String>>,
    rest: Bytes,
}

impl FrameReader {
    pub fn new(parts: mpsc::Receiver<Result<Bytes, String>>) -> FrameReader {
        FrameReader { parts, rest: Bytes::new() }
    }

    /// Errors are in words; a stream that ends in the middle is one.
    pub fn frame<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, String> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_JSON_BYTES_MAX {
            return Err(format!("the answer has a frame of {length} bytes, at most {FRAME_JSON_BYTES_MAX} are read"));
        }
        let mut json = vec![0; length];
        self.fill(&mut json)?;
        serde_json::from_slice(&json).map_err(|error| format!("the answer has a frame that cannot be read ({error})"))
    }

    /// At least one byte and at most `max_bytes`.
    pub fn some(&mut self, max_bytes: u64) -> Result<Bytes, String> {
        while self.rest.is_empty() {
            self.rest = self.part()?.ok_or("the answer broke off: try again")?;
        }
        let length = self.rest.len().min(usize::try_from(max_bytes).unwrap_or(usize::MAX));
        Ok(self.rest.split_to(length))
    }

    /// After the last frame there must be nothing.
    pub fn end(mut self) -> Result<(), String> {
        while self.rest.is_empty() {
            match self.part()? {
                Some(part) => self.rest = part,
                None => return Ok(()),
            }
        }
        Err("the answer has bytes after its last frame".to_owned())
    }

    fn fill(&mut self, mut into: &mut [u8]) -> Result<(), String> {
        while !into.is_empty() {
            let part = self.some(into.len() as u64)?;
            let (now, later) = into.split_at_mut(part.len());
            now.copy_from_slice(&part);
            into = later;
        }
        Ok(())
    }

    fn part(&mut self) -> Result<Option<Bytes>, String> {
        self.parts.blocking_recv().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_the_page_says() {
        let rows: [(&dyn erased::Json, &str); 4] = [
            (
                &Head { v: 1, root: RootKind::Dir, name: "n".into(), profile: "cid-v1".into() },
                r#"{"v":1,"root":"dir","name":"n","profile":"cid-v1"}"#,
            ),
            (&Entry { path: "a/b".into(), kind: EntryKind::File { size: 3 } }, r#"{"path":"a/b","kind":"file","size":3}"#),
            (
                &Entry { path: "l".into(), kind: EntryKind::Symlink { target: "..".into() } },
                r#"{"path":"l","kind":"symlink","target":".."}"#,
            ),
            (&End { end: true, entries: 2 }, r#"{"end":true,"entries":2}"#),
        ];
        for (frame, expect) in rows {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(out[..4], (expect.len() as u32).to_le_bytes());
            assert_eq!(std::str::from_utf8(&out[4..]).expect("JSON"), expect);
        }
    }

    mod erased {
        pub trait Json {
            fn encode(&self, out: &mut Vec<u8>);
        }
        impl<T: serde::Serialize> Json for T {
            fn encode(&self, out: &mut Vec<u8>) {
                super::encode_frame(self, out).expect("short");
            }
        }
    }
}
