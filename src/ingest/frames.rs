//! The add stream (`docs/formats.md` 9), read as it comes.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::IngestError;

/// Longest JSON of one frame: a path of 4 KiB, escaped, and a symlink target of the same length fit several times.
pub const FRAME_JSON_BYTES_MAX: usize = 64 << 10;
/// Parts of the body that wait between the socket and the thread that works on them; each is what one read of the socket
/// gave, at most 256 KiB.
pub const PARTS_WAITING_MAX: usize = 4;
/// A sender that sends nothing for so long is given up; its memory is wanted by others.
pub const UPLOAD_STALL: Duration = Duration::from_secs(60);

/// First frame.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub v: u32,
    pub root: RootKind,
    pub name: String,
    pub profile: String,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RootKind {
    File,
    Dir,
}

/// Any later frame.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Frame {
    Entry(Entry),
    End(End),
}

#[derive(Debug, Deserialize)]
pub struct End {
    #[serde(rename = "end")]
    pub is_end: bool,
    pub entries: u64,
}

#[derive(Debug, Deserialize)]
pub struct Entry {
    pub path: String,
    #[serde(flatten)]
    pub kind: EntryKind,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum EntryKind {
    File { size: u64 },
    Symlink { target: String },
    Dir,
}

/// The body as a thread reads it. A body that ends early is an error, never an end.
pub struct FrameReader {
    parts: mpsc::Receiver<Result<Bytes, String>>,
    rest: Bytes,
}

impl FrameReader {
    pub fn new(parts: mpsc::Receiver<Result<Bytes, String>>) -> FrameReader {
        FrameReader { parts, rest: Bytes::new() }
    }

    pub fn head(&mut self) -> Result<Head, IngestError> {
        let head: Head = self.json()?;
        if head.v != 1 {
            return Err(IngestError::bad(format!("add stream version {} is not known, this gateway reads version 1", head.v)));
        }
        Ok(head)
    }

    pub fn frame(&mut self) -> Result<Frame, IngestError> {
        self.json()
    }

    fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, IngestError> {
        let length = u32::from_le_bytes(self.exact(4)?.try_into().expect("four bytes were asked for")) as usize;
        if length > FRAME_JSON_BYTES_MAX {
            return Err(IngestError::bad(format!("a frame of {length} bytes, at most {FRAME_JSON_BYTES_MAX} are read")));
        }
        let json = self.exact(length)?;
        serde_json::from_slice(&json).map_err(|error| IngestError::bad(format!("a frame cannot be read: {error}")))
    }

    fn exact(&mut self, length: usize) -> Result<Vec<u8>, IngestError> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.some(length - bytes.len())?);
        }
        Ok(bytes)
    }

    /// At least one and at most `max` bytes.
    pub fn some(&mut self, max: usize) -> Result<Bytes, IngestError> {
        while self.rest.is_empty() {
            self.rest = self.part()?.ok_or(IngestError::Cut)?;
        }
        let length = self.rest.len().min(max);
        Ok(self.rest.split_to(length))
    }

    /// After the last frame there must be nothing.
    pub fn end(mut self) -> Result<(), IngestError> {
        while self.rest.is_empty() {
            match self.part()? {
                Some(part) => self.rest = part,
                None => return Ok(()),
            }
        }
        Err(IngestError::bad("there are bytes after the last frame"))
    }

    /// The next part as it came; `None` at the end of the body.
    pub fn part(&mut self) -> Result<Option<Bytes>, IngestError> {
        self.parts.blocking_recv().transpose().map_err(IngestError::Body)
    }
}

/// Foreign bytes as an add stream, as one part: a head, then frames and content until the first fault. Nothing here may
/// panic.
pub fn fuzz(bytes: &[u8]) {
    let (parts, received) = mpsc::channel(1);
    parts.try_send(Ok(Bytes::copy_from_slice(bytes))).expect("there is room for one part");
    drop(parts);
    let mut reader = FrameReader::new(received);
    if reader.head().is_err() {
        return;
    }
    while let Ok(frame) = reader.frame() {
        match frame {
            Frame::End(_) => break,
            Frame::Entry(Entry { kind: EntryKind::File { size }, .. }) => {
                let mut left = size;
                while left > 0 {
                    let Ok(part) = reader.some(left.min(64 << 10) as usize) else { return };
                    assert!(!part.is_empty() && part.len() as u64 <= left);
                    left -= part.len() as u64;
                }
            }
            Frame::Entry(_) => {}
        }
    }
    let _ = reader.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(json: &str) -> Vec<u8> {
        [&(json.len() as u32).to_le_bytes()[..], json.as_bytes()].concat()
    }

    #[test]
    fn fuzz_corpus() {
        let file = [
            frame(r#"{"v":1,"root":"dir","name":"n","profile":"unixfs-v1-2025"}"#),
            frame(r#"{"path":"a/b","kind":"file","size":5}"#),
            b"hello".to_vec(),
            frame(r#"{"path":"l","kind":"symlink","target":"a/b"}"#),
            frame(r#"{"path":"d","kind":"dir"}"#),
            frame(r#"{"end":true,"entries":3}"#),
        ];
        crate::address::test_shared::fuzz_around(fuzz, &[file.concat()], 1_500);
    }

    #[test]
    fn a_length_that_is_only_claimed_takes_no_memory() {
        let claimed = [&u32::MAX.to_le_bytes()[..], b"{}"].concat();
        let (_, bytes) = crate::counting::allocated(|| fuzz(&claimed));
        assert!(bytes < 64 << 10, "{bytes} bytes for a frame of {}", claimed.len());
    }
}
