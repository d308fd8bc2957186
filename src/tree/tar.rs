//! TAR archives, written: POSIX ustar headers, with a pax header before those that ustar cannot hold (long names, large
//! files). The same tree gives the same bytes.

use super::Mtime;

/// Bytes are written in records of this many.
const RECORD_BYTES: usize = 512;
/// The end of an archive: two empty records.
pub const END: [u8; 2 * RECORD_BYTES] = [0; 2 * RECORD_BYTES];
/// Name and link target in a ustar header.
const NAME_BYTES: usize = 100;
const PREFIX_BYTES: usize = 155;
/// Eleven octal digits.
const SIZE_MAX: u64 = (1 << 33) - 1;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    File { size: u64 },
    Dir,
    Symlink { target: &'a str },
}

/// One entry: its header is followed by the file's bytes and [`padding`].
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Relative, without a slash at its end.
    pub path: &'a str,
    pub kind: Kind<'a>,
    pub mode: Option<u32>,
    pub mtime: Option<Mtime>,
}

impl Entry<'_> {
    /// All header records of this entry.
    pub fn header(&self) -> Vec<u8> {
        let path = match self.kind {
            Kind::Dir => format!("{}/", self.path),
            Kind::File { .. } | Kind::Symlink { .. } => self.path.to_owned(),
        };
        let (size, flag, target, mode) = match self.kind {
            Kind::File { size } => (size, b'0', "", 0o644),
            Kind::Dir => (0, b'5', "", 0o755),
            Kind::Symlink { target } => (0, b'2', target, 0o777),
        };
        let seconds = self.mtime.map_or(0, |mtime| u64::try_from(mtime.seconds).unwrap_or(0)).min(SIZE_MAX);
        let mut pax = Vec::new();
        let split = split_name(&path);
        if split.is_none() {
            pax_record(&mut pax, "path", &path);
        }
        if target.len() > NAME_BYTES || !target.is_ascii() {
            pax_record(&mut pax, "linkpath", target);
        }
        if size > SIZE_MAX {
            pax_record(&mut pax, "size", &size.to_string());
        }
        let mut out = Vec::with_capacity(3 * RECORD_BYTES);
        if !pax.is_empty() {
            let (prefix, name) = ("", "pax_header");
            out.extend(Ustar { prefix, name, mode: 0o644, size: pax.len() as u64, seconds, flag: b'x', target: "" }.encode());
            let padding = padding(pax.len() as u64).len();
            out.extend(pax);
            out.extend(std::iter::repeat_n(0, padding));
        }
        // Readers that know no pax still find the end of the name, which tells the most.
        let (prefix, name) = split.unwrap_or(("", last_bytes(&path, NAME_BYTES)));
        let mode = self.mode.map_or(mode, |mode| mode & 0o7777);
        let target = last_bytes(target, NAME_BYTES);
        out.extend(Ustar { prefix, name, mode, size: size.min(SIZE_MAX), seconds, flag, target }.encode());
        out
    }
}

/// Zeros that fill the last record of a file of `size` bytes.
pub fn padding(size: u64) -> &'static [u8] {
    static ZEROS: [u8; RECORD_BYTES] = [0; RECORD_BYTES];
    let used = (size % RECORD_BYTES as u64) as usize;
    if used == 0 { &[] } else { &ZEROS[used..] }
}

struct Ustar<'a> {
    prefix: &'a str,
    name: &'a str,
    mode: u32,
    size: u64,
    seconds: u64,
    flag: u8,
    target: &'a str,
}

impl Ustar<'_> {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.name.as_bytes());
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{:011o}", self.size).as_bytes());
        put(136, format!("{:011o}", self.seconds).as_bytes());
        // The sum is made with spaces in its own place.
        put(148, b"        ");
        put(156, &[self.flag]);
        put(157, self.target.as_bytes());
        put(257, b"ustar\0");
        put(263, b"00");
        put(345, self.prefix.as_bytes());
        let sum: u32 = record.iter().map(|byte| u32::from(*byte)).sum();
        record[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        record
    }
}

/// The name as ustar holds it: in two parts around a slash. Only ASCII is sure to be read the same everywhere.
fn split_name(path: &str) -> Option<(&str, &str)> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= NAME_BYTES {
        return Some(("", path));
    }
    let slashes = path.match_indices('/').map(|(at, _)| at);
    let parts = slashes.map(|at| (&path[..at], &path[at + 1..]));
    parts.into_iter().find(|(prefix, name)| prefix.len() <= PREFIX_BYTES && !name.is_empty() && name.len() <= NAME_BYTES)
}

/// At most `max` bytes from the end, whole characters.
fn last_bytes(text: &str, max: usize) -> &str {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn pax_record(out: &mut Vec<u8>, key: &str, value: &str) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend(format!("{length} {key}={value}\n").into_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// The system's own `tar` reads what is written here; it is on every machine that runs these tests.
    #[test]
    fn the_systems_tar_reads_it() {
        let long = format!("{}/{}", "d".repeat(120), "n".repeat(90));
        let very_long = format!("root/{}/{}", "é".repeat(100), "x".repeat(300));
        let target = "t".repeat(200);
        let entry = |path, kind| Entry { path, kind, mode: None, mtime: None };
        let mut archive = Vec::new();
        let files = [("root/a.txt", &b"hello"[..]), (&long, &[7; 512]), (&very_long, &[9; 513]), ("root/ąę.txt", b"")];
        archive.extend(entry("root", Kind::Dir).header());
        for (path, bytes) in files {
            archive.extend(entry(path, Kind::File { size: bytes.len() as u64 }).header());
            archive.extend(bytes);
            archive.extend(padding(bytes.len() as u64));
        }
        archive.extend(entry("root/link", Kind::Symlink { target: "a.txt" }).header());
        archive.extend(entry("root/far", Kind::Symlink { target: &target }).header());
        let mtime = Mtime { seconds: 1_000_000_000, nanos: None };
        archive.extend(Entry { path: "root/old", kind: Kind::File { size: 0 }, mode: Some(0o600), mtime: Some(mtime) }.header());
        archive.extend(END);
        assert_eq!(archive.len() % RECORD_BYTES, 0);
        let mut tar = Command::new("tar")
            .args(["-tvf", "-", "--quoting-style=literal", "--utc", "--full-time"])
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar is there");
        tar.stdin.take().expect("a pipe").write_all(&archive).expect("tar reads");
        let output = tar.wait_with_output().expect("tar ends");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success(), "{text}");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let seen: Vec<(&str, &str, &str)> = lines.iter().map(|line| (line[0], line[2], line[5])).collect();
        assert_eq!(
            seen,
            [
                ("drwxr-xr-x", "0", "root/"),
                ("-rw-r--r--", "5", "root/a.txt"),
                ("-rw-r--r--", "512", &long),
                ("-rw-r--r--", "513", &very_long),
                ("-rw-r--r--", "0", "root/ąę.txt"),
                ("lrwxrwxrwx", "0", "root/link"),
                ("lrwxrwxrwx", "0", "root/far"),
                ("-rw-------", "0", "root/old"),
            ]
        );
        assert_eq!(lines[6][7], target);
        assert!(lines[7][3] == "2001-09-09", "{:?}", lines[7]);
    }

    #[test]
    fn large_sizes_have_a_pax_header() {
        let header = Entry { path: "big", kind: Kind::File { size: 1 << 40 }, mode: None, mtime: None }.header();
        assert_eq!(header.len(), 3 * RECORD_BYTES);
        assert!(header[RECORD_BYTES..].starts_with(b"22 size=1099511627776\n"));
        for size in [0, 1, 511, 512, 513, u64::MAX] {
            assert_eq!((size as u128 + padding(size).len() as u128) % 512, 0);
        }
    }
}
