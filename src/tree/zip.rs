//! ZIP archives, written front to back (APPNOTE 6.3.10): sizes and checksums stand behind each file, 64-bit fields where they
//! are needed. Files are not compressed: what is large on the web mostly is already, and the length of an archive is known
//! before its first byte. They stand as deflate's stored blocks, which end by themselves, because readers that cannot jump
//! refuse bare files of unknown length. The same files give the same bytes.

/// Longest stored block of deflate.
pub const BLOCK_BYTES: u64 = u16::MAX as u64;
/// Length and its complement, before each block.
const BLOCK_HEADER_BYTES: usize = 5;

const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: u64 = 46;
const ZIP64_LOCAL_BYTES: u64 = 20;
const END_BYTES: u64 = 22;
const ZIP64_END_BYTES: u64 = 56 + 20;
/// Fields of 32 bits that say so are to be found in a field of 64.
const MAX_32: u64 = u32::MAX as u64;
const MAX_16: u64 = u16::MAX as u64;

/// Deflate.
const METHOD: u16 = 8;
/// Sizes and checksum behind the file; names in UTF-8.
const FLAGS: u16 = 1 << 3 | 1 << 11;
/// 1 January 1980, the first day there is: archives of the same files are the same.
const DATE: u16 = 1 << 5 | 1;
/// Made on Unix, so that modes count.
const MADE_BY: u16 = 3 << 8 | 45;
/// A regular file, in the upper half of the external attributes.
const REGULAR: u32 = 0o100_000;

/// One file of an archive.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Relative, at most 64 KiB.
    pub path: &'a str,
    pub size: u64,
    /// Permission bits.
    pub mode: Option<u32>,
}

impl Entry<'_> {
    /// What stands before the file's blocks.
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LOCAL_BYTES as usize + self.path.len());
        out.extend(b"PK\x03\x04");
        out.extend(self.version().to_le_bytes());
        self.put_common(&mut out, [0; 3]);
        out.extend((self.path.len() as u16).to_le_bytes());
        let extra = if self.is_large() { ZIP64_LOCAL_BYTES as u16 } else { 0 };
        out.extend(extra.to_le_bytes());
        out.extend(self.path.as_bytes());
        if self.is_large() {
            put_zip64(&mut out, &[0, 0]);
        }
        out
    }

    /// What stands behind them.
    pub fn descriptor(&self, crc: u32) -> Vec<u8> {
        let mut out = b"PK\x07\x08".to_vec();
        out.extend(crc.to_le_bytes());
        for size in [self.stored_bytes(), self.size] {
            match self.is_large() {
                true => out.extend(size.to_le_bytes()),
                false => out.extend((size as u32).to_le_bytes()),
            }
        }
        out
    }

    /// The file's bytes with the headers of their blocks.
    fn stored_bytes(&self) -> u64 {
        self.size + self.size.div_ceil(BLOCK_BYTES).max(1) * BLOCK_HEADER_BYTES as u64
    }

    fn is_large(&self) -> bool {
        self.stored_bytes() >= MAX_32
    }

    /// Of the format that a reader has to know.
    fn version(&self) -> u16 {
        if self.is_large() { 45 } else { 20 }
    }

    /// The fields that both headers have: flags to sizes.
    fn put_common(&self, out: &mut Vec<u8>, numbers: [u32; 3]) {
        for field in [FLAGS, METHOD, 0, DATE] {
            out.extend(field.to_le_bytes());
        }
        for number in numbers {
            out.extend(number.to_le_bytes());
        }
    }

    /// Header, blocks and descriptor.
    fn whole_bytes(&self) -> u64 {
        let (extra, sizes) = if self.is_large() { (ZIP64_LOCAL_BYTES, 16) } else { (0, 8) };
        LOCAL_BYTES + self.path.len() as u64 + extra + self.stored_bytes() + 8 + sizes
    }
}

/// What stands before each [`BLOCK_BYTES`] of a file, of which `left_bytes` are still to come. An empty file has one block.
pub fn block_header(left_bytes: u64) -> [u8; BLOCK_HEADER_BYTES] {
    let length = left_bytes.min(BLOCK_BYTES) as u16;
    let [low, high] = length.to_le_bytes();
    let [not_low, not_high] = (!length).to_le_bytes();
    [u8::from(left_bytes <= BLOCK_BYTES), low, high, not_low, not_high]
}

fn put_zip64(out: &mut Vec<u8>, numbers: &[u64]) {
    out.extend(1_u16.to_le_bytes());
    out.extend((8 * numbers.len() as u16).to_le_bytes());
    numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
}

/// The directory at the archive's end, as it grows.
#[derive(Debug, Default)]
pub struct Directory {
    rows: Vec<u8>,
    count: u64,
    /// Where the next file's header begins.
    at: u64,
}

impl Directory {
    /// Notes a file that was written behind the others.
    pub fn add(&mut self, entry: &Entry<'_>, crc: u32) {
        let (stored, size, at) = (entry.stored_bytes(), entry.size, self.at);
        let wide = zip64_fields(entry, at);
        let short = |number: u64| if number >= MAX_32 { u32::MAX } else { number as u32 };
        // Both sizes are told the long way if one of them has to be.
        let sizes = if entry.is_large() { [u32::MAX; 2] } else { [stored as u32, size as u32] };
        let extra_bytes = if wide.is_empty() { 0 } else { 4 + 8 * wide.len() as u16 };
        let out = &mut self.rows;
        out.extend(b"PK\x01\x02");
        out.extend(MADE_BY.to_le_bytes());
        out.extend(if wide.is_empty() { 20_u16 } else { 45 }.to_le_bytes());
        entry.put_common(out, [crc, sizes[0], sizes[1]]);
        // Lengths of name, extra field and comment; disk; internal attributes.
        for field in [entry.path.len() as u16, extra_bytes, 0, 0, 0] {
            out.extend(field.to_le_bytes());
        }
        let mode = REGULAR | entry.mode.map_or(0o644, |mode| mode & 0o777);
        out.extend((mode << 16).to_le_bytes());
        out.extend(short(at).to_le_bytes());
        out.extend(entry.path.as_bytes());
        if !wide.is_empty() {
            put_zip64(out, &wide);
        }
        self.count += 1;
        self.at += entry.whole_bytes();
    }

    /// The directory, and where it lies.
    pub fn finish(self) -> Vec<u8> {
        let Directory { mut rows, count, at } = self;
        let size = rows.len() as u64;
        if end_is_wide(count, size, at) {
            rows.extend(b"PK\x06\x06");
            rows.extend(44_u64.to_le_bytes());
            rows.extend(MADE_BY.to_le_bytes());
            rows.extend(45_u16.to_le_bytes());
            rows.extend([0; 8]);
            for number in [count, count, size, at] {
                rows.extend(number.to_le_bytes());
            }
            rows.extend(b"PK\x06\x07");
            rows.extend(0_u32.to_le_bytes());
            rows.extend((at + size).to_le_bytes());
            rows.extend(1_u32.to_le_bytes());
        }
        rows.extend(b"PK\x05\x06");
        rows.extend([0; 4]);
        for _ in 0..2 {
            rows.extend((count.min(MAX_16) as u16).to_le_bytes());
        }
        for number in [size, at] {
            rows.extend((number.min(MAX_32) as u32).to_le_bytes());
        }
        rows.extend([0; 2]);
        rows
    }
}

/// What does not fit its 32 bits, in the order of the extra field.
fn zip64_fields(entry: &Entry<'_>, at: u64) -> Vec<u64> {
    let mut wide = Vec::new();
    if entry.is_large() {
        wide.extend([entry.size, entry.stored_bytes()]);
    }
    if at >= MAX_32 {
        wide.push(at);
    }
    wide
}

fn end_is_wide(count: u64, size: u64, at: u64) -> bool {
    count >= MAX_16 || size >= MAX_32 || at >= MAX_32
}

/// Length of the archive of these files, in this order.
pub fn archive_bytes<'a>(entries: impl Iterator<Item = Entry<'a>>) -> u64 {
    let (mut count, mut size, mut at) = (0, 0, 0);
    for entry in entries {
        let extra = match zip64_fields(&entry, at).len() as u64 {
            0 => 0,
            fields => 4 + 8 * fields,
        };
        size += CENTRAL_BYTES + entry.path.len() as u64 + extra;
        at += entry.whole_bytes();
        count += 1;
    }
    at + size + END_BYTES + if end_is_wide(count, size, at) { ZIP64_END_BYTES } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8], Option<u32>)]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut directory = Directory::default();
        for (path, bytes, mode) in files {
            let entry = Entry { path, size: bytes.len() as u64, mode: *mode };
            out.extend(entry.header());
            let mut left = bytes.len() as u64;
            for block in bytes.chunks(BLOCK_BYTES as usize) {
                out.extend(block_header(left));
                out.extend(block);
                left -= block.len() as u64;
            }
            if bytes.is_empty() {
                out.extend(block_header(0));
            }
            let crc = crc32fast::hash(bytes);
            out.extend(entry.descriptor(crc));
            directory.add(&entry, crc);
        }
        let entries = files.iter().map(|(path, bytes, mode)| Entry { path, size: bytes.len() as u64, mode: *mode });
        let expected = archive_bytes(entries);
        out.extend(directory.finish());
        assert_eq!(out.len() as u64, expected, "the length is known before");
        out
    }

    /// Archives that were read back with Python's zipfile and Info-ZIP on 26 Nov 2026; the black-box tests do so each time.
    #[test]
    fn small_archives() {
        let empty = archive(&[]);
        assert_eq!(hex::encode(&empty), "504b0506000000000000000000000000000000000000");
        let one = archive(&[("a", b"x", None)]);
        assert_eq!(one.len() as u64, LOCAL_BYTES + 1 + 6 + 16 + CENTRAL_BYTES + 1 + END_BYTES);
        assert_eq!(&one[..4], b"PK\x03\x04");
        // The one block: final, 1 byte.
        assert_eq!(one[31..37], [1, 1, 0, 0xfe, 0xff, b'x']);
        let large = vec![7; 3 * BLOCK_BYTES as usize];
        archive(&[("empty", b"", Some(0o600)), ("large", &large, Some(0o755)), ("ąę", b"z", None)]);
    }

    #[test]
    fn blocks() {
        for (left, expect) in [
            (0, [1, 0, 0, 255, 255]),
            (1, [1, 1, 0, 254, 255]),
            (65_535, [1, 255, 255, 0, 0]),
            (65_536, [0, 255, 255, 0, 0]),
            (1 << 40, [0, 255, 255, 0, 0]),
        ] {
            assert_eq!(block_header(left), expect, "{left}");
        }
    }

    /// Lengths around the borders of 32 bits and of 65,535 files, without the files.
    #[test]
    fn lengths_of_large_archives() {
        for (count, size) in [(1, 5_u64 << 30), (3, 2 << 30), (70_000, 1), (65_534, 0), (65_535, 0), (2, MAX_32 - 327_700)] {
            let names: Vec<String> = (0..count).map(|number| format!("{number:06}")).collect();
            let entries = || names.iter().map(|path| Entry { path, size, mode: None });
            let mut directory = Directory::default();
            let mut before = 0;
            for entry in entries() {
                before += entry.header().len() as u64 + entry.stored_bytes() + entry.descriptor(0).len() as u64;
                directory.add(&entry, 0);
            }
            assert_eq!(directory.at, before);
            assert_eq!(before + directory.finish().len() as u64, archive_bytes(entries()), "{count} of {size}");
        }
    }
}
