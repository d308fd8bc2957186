//! Segments of the log of small objects: bytes, and reading them back (`docs/formats.md` 4).
//!
//! Pure but for reading through [`DiskFile`]; what the entries mean together is `writer.rs`'s business.

use std::{io, sync::Arc};

use super::disk::DiskFile;

/// Folder of the segments.
pub(super) const LOG_FOLDER: &str = "log";
/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 40;
/// Bytes of an entry before its key.
pub(super) const ENTRY_HEADER_BYTES: usize = 32;
/// Version of the log written here; a greater one is refused.
pub(super) const LOG_VERSION: u16 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"SKYFLOG\n";
/// Entries start at multiples of this, so that a reader finds them again after damage.
const ENTRY_ALIGN: u64 = 8;
/// Bytes read at a time while scanning: a few dozen entries, small beside everything else.
const SCAN_WINDOW_BYTES: usize = 256 * 1024;

/// What an entry says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// The object's bytes are in the entry.
    Put,
    /// There is no such object, even if there is a file.
    Removed,
    /// The file at the key's path is the object; earlier entries no longer count.
    File,
}

impl EntryKind {
    fn code(self) -> u8 {
        match self {
            EntryKind::Put => 1,
            EntryKind::Removed => 2,
            EntryKind::File => 3,
        }
    }

    fn from_code(code: u8) -> Option<EntryKind> {
        match code {
            1 => Some(EntryKind::Put),
            2 => Some(EntryKind::Removed),
            3 => Some(EntryKind::File),
            _ => None,
        }
    }
}

/// Name of a segment's file.
pub(super) fn segment_path(number: u64) -> String {
    format!("{LOG_FOLDER}/{number:016x}.log")
}

/// The number in a segment's file name.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    let lower_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() == 16 && lower_hex { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// `mark` is random: it starts every entry of the segment, so that no stored object can pass for an entry.
pub(super) fn encode_segment_header(number: u64, mark: [u8; 8]) -> [u8; SEGMENT_HEADER_BYTES as usize] {
    let mut header = [0u8; SEGMENT_HEADER_BYTES as usize];
    header[..8].copy_from_slice(SEGMENT_MAGIC);
    header[8..10].copy_from_slice(&LOG_VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&number.to_le_bytes());
    header[24..32].copy_from_slice(&mark);
    let crc = crc32fast::hash(&header[..32]);
    header[32..36].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What the first bytes of a segment say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SegmentHeader {
    Good {
        mark: [u8; 8],
    },
    /// Written by a later program.
    Newer {
        version: u16,
    },
    /// Torn or damaged.
    Bad,
}

pub(super) fn decode_segment_header(number: u64, bytes: &[u8]) -> SegmentHeader {
    if bytes.len() < 10 || &bytes[..8] != SEGMENT_MAGIC {
        return SegmentHeader::Bad;
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version > LOG_VERSION {
        return SegmentHeader::Newer { version };
    }
    if bytes.len() < SEGMENT_HEADER_BYTES as usize
        || u32_at(bytes, 32) != crc32fast::hash(&bytes[..32])
        || u64_at(bytes, 16) != number
    {
        return SegmentHeader::Bad;
    }
    let mut mark = [0u8; 8];
    mark.copy_from_slice(&bytes[24..32]);
    SegmentHeader::Good { mark }
}

/// Appends one entry to `out`; answers where its data starts in `out`.
pub(super) fn encode_entry(
    out: &mut Vec<u8>,
    mark: [u8; 8],
    kind: EntryKind,
    batch: u32,
    written_ms: u64,
    key: &str,
    data: &[u8],
) -> usize {
    let start = out.len();
    let key_len = u16::try_from(key.len()).expect("keys are at most KEY_BYTES_MAX long");
    let data_len = u32::try_from(data.len()).expect("only objects below SMALL_BYTES go into the log");
    out.extend_from_slice(&mark);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[kind.code(), 0]);
    out.extend_from_slice(&key_len.to_le_bytes());
    out.extend_from_slice(&data_len.to_le_bytes());
    out.extend_from_slice(&batch.to_le_bytes());
    out.extend_from_slice(&written_ms.to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    let data_start = out.len();
    out.extend_from_slice(data);
    let crc = crc32fast::hash(&out[start + 12..]);
    out[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
    let padded = (out.len() - start).next_multiple_of(ENTRY_ALIGN as usize);
    out.resize(start + padded, 0);
    data_start
}

/// An entry as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: EntryKind,
    pub batch: u32,
    pub written_ms: u64,
    pub key: String,
    /// Where the data stands in the segment.
    pub data_offset: u64,
    pub data: Vec<u8>,
}

/// One step of a scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    Entry(Entry),
    /// Bytes that are no intact entry, with an intact entry behind them.
    Damaged {
        bytes: u64,
    },
}

/// Reads a segment's entries in order and steps over what is damaged.
#[derive(Debug)]
pub(super) struct Scanner {
    file: Arc<dyn DiskFile>,
    mark: [u8; 8],
    /// Where the next entry is looked for.
    at: u64,
    /// Everything before is intact entries, or damage with intact entries behind it.
    good_end: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Scanner {
    /// Scans from `at` (a place where an entry starts, or the end of the header) to `end`.
    pub fn new(file: Arc<dyn DiskFile>, mark: [u8; 8], at: u64, end: u64) -> Scanner {
        Scanner { file, mark, at, good_end: at, end, window: Vec::new(), window_at: 0 }
    }

    /// Where the last intact entry ended: what lies behind it is a torn tail.
    pub fn good_end(&self) -> u64 {
        self.good_end
    }

    /// The next entry or damaged stretch; `None` at the end, whether torn or not.
    pub fn next(&mut self) -> io::Result<Option<Scanned>> {
        let from = self.at;
        let mut at = from;
        while at + ENTRY_HEADER_BYTES as u64 <= self.end {
            if let Some((entry, entry_end)) = self.entry_at(at)? {
                if at > from {
                    self.at = at;
                    return Ok(Some(Scanned::Damaged { bytes: at - from }));
                }
                self.at = entry_end.min(self.end);
                self.good_end = self.at;
                return Ok(Some(Scanned::Entry(entry)));
            }
            at += ENTRY_ALIGN;
        }
        self.at = self.end;
        Ok(None)
    }

    fn entry_at(&mut self, at: u64) -> io::Result<Option<(Entry, u64)>> {
        let mark = self.mark;
        let header = self.bytes(at, ENTRY_HEADER_BYTES)?;
        if header.len() < ENTRY_HEADER_BYTES || header[..8] != mark {
            return Ok(None);
        }
        let Some(kind) = EntryKind::from_code(header[12]) else { return Ok(None) };
        let crc = u32_at(header, 8);
        let key_len = usize::from(u16::from_le_bytes([header[14], header[15]]));
        let data_len = u32_at(header, 16) as usize;
        let (batch, written_ms) = (u32_at(header, 20), u64_at(header, 24));
        let whole = ENTRY_HEADER_BYTES + key_len + data_len;
        if at + whole as u64 > self.end {
            return Ok(None);
        }
        let bytes = self.bytes(at, whole)?;
        if bytes.len() < whole || crc32fast::hash(&bytes[12..]) != crc {
            return Ok(None);
        }
        let key_end = ENTRY_HEADER_BYTES + key_len;
        let Ok(key) = std::str::from_utf8(&bytes[ENTRY_HEADER_BYTES..key_end]) else { return Ok(None) };
        let entry = Entry {
            kind,
            batch,
            written_ms,
            key: key.to_owned(),
            data_offset: at + key_end as u64,
            data: bytes[key_end..].to_vec(),
        };
        Ok(Some((entry, (at + whole as u64).next_multiple_of(ENTRY_ALIGN))))
    }

    /// `len` bytes at `at`, fewer at the end of the file; read through a window.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let window_end = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + len as u64 > window_end {
            let room = (self.end - at).min(SCAN_WINDOW_BYTES.max(len) as u64);
            self.window = self.file.read_at(at, room as usize)?;
            self.window_at = at;
        }
        let start = (at - self.window_at) as usize;
        let end = (start + len).min(self.window.len());
        Ok(&self.window[start..end])
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::renter::folder::{
        disk::{Disk, Writing},
        simdisk::SimDisk,
    };

    const MARK: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn file_of(bytes: &[u8]) -> Arc<dyn DiskFile> {
        let disk = SimDisk::new();
        let file = disk.create("f", Writing::Buffered).unwrap();
        file.write_at(0, bytes).unwrap();
        file
    }

    fn scan(bytes: &[u8]) -> (Vec<Scanned>, u64) {
        let file = file_of(bytes);
        let mut scanner = Scanner::new(file, MARK, SEGMENT_HEADER_BYTES, bytes.len() as u64);
        let mut out = Vec::new();
        while let Some(step) = scanner.next().unwrap() {
            out.push(step);
        }
        (out, scanner.good_end())
    }

    /// The vector of `docs/formats.md` 4.
    #[test]
    fn vector() {
        let mut bytes = encode_segment_header(1, MARK).to_vec();
        encode_entry(&mut bytes, MARK, EntryKind::Put, 0, 1_700_000_000_000, "records/key/00/k/o", b"hello");
        encode_entry(&mut bytes, MARK, EntryKind::Removed, 1, 1_700_000_000_001, "records/key/00/k/o", b"");
        let expect = concat!(
            "534b59464c4f470a0100000000000000010000000000000001020304050607085a7cef5900000000",
            "0102030405060708a03a5ecb0100120005000000000000000068e5cf8b0100007265636f7264732f6b65792f30302f6b2f6f68656c6c6f00",
            "0102030405060708eb974c4c0200120000000000010000000168e5cf8b0100007265636f7264732f6b65792f30302f6b2f6f000000000000",
        );
        assert_eq!(hex::encode(&bytes), expect);
        let (steps, end) = scan(&bytes);
        assert_eq!(end, bytes.len() as u64);
        assert!(matches!(&steps[0], Scanned::Entry(entry) if entry.kind == EntryKind::Put && entry.data == b"hello"));
        assert!(matches!(&steps[1], Scanned::Entry(entry) if entry.kind == EntryKind::Removed && entry.batch == 1));
    }

    #[test]
    fn headers() {
        let good = encode_segment_header(7, MARK);
        assert_eq!(decode_segment_header(7, &good), SegmentHeader::Good { mark: MARK });
        assert_eq!(decode_segment_header(8, &good), SegmentHeader::Bad);
        assert_eq!(decode_segment_header(7, &good[..39]), SegmentHeader::Bad);
        assert_eq!(decode_segment_header(7, b""), SegmentHeader::Bad);
        let mut newer = good;
        newer[8] = 2;
        assert_eq!(decode_segment_header(7, &newer), SegmentHeader::Newer { version: 2 });
        for at in 10..36 {
            let mut flipped = good;
            flipped[at] ^= 1;
            assert_eq!(decode_segment_header(7, &flipped), SegmentHeader::Bad, "byte {at}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(segment_path(0x1f), "log/000000000000001f.log");
        assert_eq!(segment_number("000000000000001f.log"), Some(0x1f));
        for bad in ["1f.log", "000000000000001F.log", "000000000000001f.bad", "", ".log", "+00000000000001f.log"] {
            assert_eq!(segment_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn damage_in_the_middle_costs_one_entry() {
        let mut bytes = encode_segment_header(1, MARK).to_vec();
        let mut starts = Vec::new();
        for index in 0..5u32 {
            starts.push(bytes.len());
            let data = vec![index as u8; 100 + index as usize];
            encode_entry(&mut bytes, MARK, EntryKind::Put, index, 5, &format!("records/key/00/k/{index}"), &data);
        }
        for at in starts[2]..starts[2] + 32 + 18 + 102 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let (steps, end) = scan(&damaged);
            assert_eq!(end, bytes.len() as u64);
            let kept: Vec<u32> =
                steps.iter().filter_map(|step| if let Scanned::Entry(entry) = step { Some(entry.batch) } else { None }).collect();
            assert_eq!(kept, [0, 1, 3, 4], "byte {at}");
            assert!(steps.contains(&Scanned::Damaged { bytes: (starts[3] - starts[2]) as u64 }), "byte {at}");
        }
    }

    #[test]
    fn an_object_that_looks_like_an_entry_is_not_one() {
        let mut inner = Vec::new();
        encode_entry(&mut inner, [9; 8], EntryKind::Removed, 0, 5, "records/key/00/k/victim", b"");
        let mut bytes = encode_segment_header(1, MARK).to_vec();
        let start = bytes.len();
        // A key of 32 bytes, so that the inner entry would stand where a scan looks.
        encode_entry(&mut bytes, MARK, EntryKind::Put, 0, 5, &"k".repeat(32), &inner);
        bytes[start] ^= 1;
        assert_eq!(scan(&bytes), (vec![], SEGMENT_HEADER_BYTES));
    }
}
