//! The media type of a file: by its name, else by its first bytes.
//!
//! What it hides: the table of extensions, magic numbers, what counts as text.
//! What it must never know: where the bytes come from. Pure; it looks at no more than [`SNIFF_BYTES`].
//!
//! Decisions, each with its reason:
//! - `text/html` is sent **without** a charset: the page's own `<meta charset>` has to count, and kubo does the same.
//!   All other `text/*` get `; charset=utf-8`, as kubo's do: they have no place of their own to say it, and browsers would guess.
//! - `application/json` has no charset, by name and by content: JSON is UTF-8 by definition, and the gateway conformance suite
//!   wants exactly this string for a JSON file without a name.
//! - SVG is `image/svg+xml`, by name and by content: as XML or text no browser draws it.
//! - Text is never `application/octet-stream`: it would be downloaded instead of shown.
//! - A name with a known extension wins over the bytes. Only a file without one is sniffed, so that a `.txt` file cannot
//!   become a page by what it contains.

use std::borrow::Cow;

/// How many bytes sniffing looks at, at most; enough for comments before an `<svg>` and for the tar magic. Callers give as many of the
/// first bytes as they have, up to this. The first leaf of a file always has them.
pub const SNIFF_BYTES: usize = 3072;

const UNKNOWN: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";

/// Types that the extension table lacks, or has in a form that browsers do not take.
const EXTENSIONS: [(&str, &str); 8] = [
    ("car", "application/vnd.ipld.car"),
    ("cjs", "text/javascript"),
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("m4a", "audio/mp4"),
    ("map", "application/json"),
    ("mjs", "text/javascript"),
    ("ts", "video/mp2t"),
    ("webmanifest", "application/manifest+json"),
];

/// The media type of a file. `name` is its name or path, if it has one; `first_bytes` its beginning, which is only looked at when the
/// name says nothing. Fewer than [`SNIFF_BYTES`] bytes are taken for the whole file.
pub fn content_type(name: Option<&str>, first_bytes: &[u8]) -> Cow<'static, str> {
    match name.and_then(by_name) {
        Some(kind) => kind,
        None => Cow::Borrowed(sniff(first_bytes)),
    }
}

/// The type that a name's extension stands for.
pub fn by_name(name: &str) -> Option<Cow<'static, str>> {
    let name = name.rsplit('/').next().unwrap_or(name);
    // A leading dot hides a file, it is no extension.
    let (stem, extension) = name.rsplit_once('.')?;
    if stem.is_empty() || extension.is_empty() {
        return None;
    }
    let own = EXTENSIONS.iter().find(|(known, _)| known.eq_ignore_ascii_case(extension)).map(|(_, kind)| *kind);
    let kind = own.or_else(|| mime_guess::from_ext(extension).first_raw())?;
    Some(with_charset(kind))
}

fn with_charset(kind: &'static str) -> Cow<'static, str> {
    match kind {
        "text/html" => Cow::Borrowed(kind),
        // The ones that every page loads, without an allocation.
        "text/css" => Cow::Borrowed("text/css; charset=utf-8"),
        "text/javascript" => Cow::Borrowed("text/javascript; charset=utf-8"),
        "text/plain" => Cow::Borrowed(TEXT),
        _ if kind.starts_with("text/") => Cow::Owned(format!("{kind}; charset=utf-8")),
        _ => Cow::Borrowed(kind),
    }
}

/// The type that the first bytes of a file speak for.
pub fn sniff(first_bytes: &[u8]) -> &'static str {
    let cut = first_bytes.len() >= SNIFF_BYTES;
    let bytes = &first_bytes[..first_bytes.len().min(SNIFF_BYTES)];
    match bytes {
        [0xff, 0xfe, ..] if bytes.len().is_multiple_of(2) => return "text/plain; charset=utf-16le",
        [0xfe, 0xff, ..] if bytes.len().is_multiple_of(2) => return "text/plain; charset=utf-16be",
        _ => {}
    }
    if let Some(kind) = by_magic(bytes) {
        return kind;
    }
    match text_of(bytes, cut) {
        TextKind::Utf8(text) => by_text(text, cut),
        // Some old single-byte encoding; which one is the browser's guess.
        TextKind::OneByte => "text/plain",
        TextKind::No => UNKNOWN,
    }
}

/// Magic numbers at the very start. Longer ones first where one begins like another.
const MAGIC: [(&[u8], &str); 33] = [
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"\0\0\x01\0", "image/x-icon"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"\xff\x0a", "image/jxl"),
    (b"%PDF-", "application/pdf"),
    (b"\0asm", "application/wasm"),
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
    (b"OTTO", "font/otf"),
    (b"\0\x01\0\0\0", "font/ttf"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "application/ogg"),
    (b"MThd", "audio/midi"),
    (b"\x1f\x8b", "application/gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
    (b"BZh", "application/x-bzip2"),
    (b"\xfd7zXZ\0", "application/x-xz"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\x07", "application/vnd.rar"),
    (b"SQLite format 3\0", "application/vnd.sqlite3"),
    (b"\x7fELF", "application/x-elf"),
    (b"glTF", "model/gltf-binary"),
    (b"\x0a\xa1gversion\x02", "application/vnd.ipld.car"),
];

fn by_magic(bytes: &[u8]) -> Option<&'static str> {
    let plain = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind);
    // Short words that text can begin with ("BM", "ID3", "BZh") only count where the bytes are not text.
    if let Some(kind) = plain {
        let word = bytes.len().min(64);
        let textual = bytes[..word].iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        return if textual && kind != "application/pdf" { None } else { Some(kind) };
    }
    match bytes {
        [b'R', b'I', b'F', b'F', _, _, _, _, rest @ ..] => riff(rest),
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => Some(iso_media(brand)),
        [0x1a, 0x45, 0xdf, 0xa3, rest @ ..] => Some(matroska(rest)),
        _ if bytes.get(257..262) == Some(b"ustar") => Some("application/x-tar"),
        _ => None,
    }
}

fn riff(rest: &[u8]) -> Option<&'static str> {
    match rest.first_chunk()? {
        b"WEBP" => Some("image/webp"),
        b"WAVE" => Some("audio/wav"),
        b"AVI " => Some("video/x-msvideo"),
        _ => None,
    }
}

/// Files of boxes: MP4 and its relatives, told apart by their major brand.
fn iso_media(brand: &[u8]) -> &'static str {
    match brand.first_chunk() {
        Some(b"avif" | b"avis") => "image/avif",
        Some(b"heic" | b"heix" | b"mif1" | b"msf1") => "image/heic",
        Some(b"M4A " | b"M4B ") => "audio/mp4",
        Some(b"qt  ") => "video/quicktime",
        _ => "video/mp4",
    }
}

/// EBML files name their document type within the first bytes.
fn matroska(rest: &[u8]) -> &'static str {
    let head = &rest[..rest.len().min(64)];
    if head.windows(8).any(|word| word == b"matroska") { "video/x-matroska" } else { "video/webm" }
}

enum TextKind<'b> {
    /// UTF-8, without a byte order mark and a last character that was cut through.
    Utf8(&'b str),
    OneByte,
    No,
}

fn text_of(bytes: &[u8], cut: bool) -> TextKind<'_> {
    // The control bytes that text has: tab, line feed, form feed, carriage return, escape.
    let binary = |byte: &u8| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    if bytes.iter().any(binary) {
        return TextKind::No;
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => TextKind::Utf8(text),
        Err(error) if cut && error.error_len().is_none() => {
            let whole = &bytes[..error.valid_up_to()];
            TextKind::Utf8(std::str::from_utf8(whole).expect("it is valid up to there"))
        }
        Err(_) => one_byte_text(bytes),
    }
}

/// Text in a single-byte encoding is mostly ASCII; small binary files without control bytes are not.
fn one_byte_text(bytes: &[u8]) -> TextKind<'_> {
    let foreign = bytes.iter().filter(|byte| !byte.is_ascii()).count();
    if foreign * 4 <= bytes.len() { TextKind::OneByte } else { TextKind::No }
}

fn by_text(text: &str, cut: bool) -> &'static str {
    let begun = text.trim_ascii_start();
    if begun.starts_with(['{', '[']) && is_json(begun, cut) {
        return "application/json";
    }
    if !begun.starts_with('<') {
        return TEXT;
    }
    let element = skip_prolog(begun);
    if starts_with_tag(element, "<svg") || svg_doctype(element) {
        return "image/svg+xml";
    }
    if HTML_TAGS.iter().any(|tag| starts_with_tag(begun, tag)) || begun.starts_with("<!--") {
        return "text/html";
    }
    if begun.starts_with("<?xml") {
        return "text/xml; charset=utf-8";
    }
    TEXT
}

/// Whether an object or array is JSON, as far as it can be seen.
fn is_json(text: &str, cut: bool) -> bool {
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => true,
        Err(error) => cut && error.is_eof(),
    }
}

/// The tags that the WHATWG sniffing rules take for HTML.
const HTML_TAGS: [&str; 17] = [
    "<!doctype html",
    "<html",
    "<head",
    "<script",
    "<iframe",
    "<h1",
    "<div",
    "<font",
    "<table",
    "<a",
    "<style",
    "<title",
    "<b",
    "<body",
    "<br",
    "<p",
    "<main",
];

/// Whether the text begins with this tag, in any case, and the tag's name ends there.
fn starts_with_tag(text: &str, tag: &str) -> bool {
    let (Some(start), after) = (text.as_bytes().get(..tag.len()), text.as_bytes().get(tag.len())) else {
        return false;
    };
    start.eq_ignore_ascii_case(tag.as_bytes())
        && after.is_none_or(|byte| matches!(byte, b' ' | b'>' | b'\t' | b'\n' | b'\r' | b'/'))
}

fn svg_doctype(text: &str) -> bool {
    starts_with_tag(text, "<!doctype svg")
}

/// What stands behind XML declaration, processing instructions and comments.
fn skip_prolog(mut text: &str) -> &str {
    loop {
        text = text.trim_ascii_start();
        let end = if text.starts_with("<?") {
            "?>"
        } else if text.starts_with("<!--") {
            "-->"
        } else {
            return text;
        };
        match text.split_once(end) {
            Some((_, rest)) => text = rest,
            None => return "",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn by_their_names() {
        fn check(name: &str, expect: &str) {
            assert_eq!(content_type(Some(name), b"\x89PNG\r\n\x1a\n"), expect, "{name}");
        }
        check("index.html", "text/html");
        check("INDEX.HTM", "text/html");
        check("a/b.c/style.css", "text/css; charset=utf-8");
        check("app.js", "text/javascript; charset=utf-8");
        check("app.mjs", "text/javascript; charset=utf-8");
        check("app.js.map", "application/json");
        check("data.json", "application/json");
        check("site.webmanifest", "application/manifest+json");
        check("feed.xml", "text/xml; charset=utf-8");
        check("notes.txt", "text/plain; charset=utf-8");
        check("notes.md", "text/markdown; charset=utf-8");
        check("table.csv", "text/csv; charset=utf-8");
        check("logo.svg", "image/svg+xml");
        check("photo.JPG", "image/jpeg");
        check("film.mp4", "video/mp4");
        check("film.webm", "video/webm");
        check("part.ts", "video/mp2t");
        check("list.m3u8", "application/vnd.apple.mpegurl");
        check("font.woff2", "font/woff2");
        check("code.wasm", "application/wasm");
        check("data.car", "application/vnd.ipld.car");
        check("paper.pdf", "application/pdf");
        check("grüße.pdf", "application/pdf");
        // These say nothing, so the bytes decide.
        for name in ["README", ".html", "dir.html/file", "x.", "x.nobody-knows", ""] {
            check(name, "image/png");
        }
    }

    #[test]
    fn by_their_first_bytes() {
        fn check(bytes: &[u8], expect: &str) {
            assert_eq!(content_type(None, bytes), expect, "{}", String::from_utf8_lossy(bytes));
        }
        check(b"", TEXT);
        check(b"hello\n", TEXT);
        check("grüße".as_bytes(), TEXT);
        check(b"\xef\xbb\xbfwith a mark", TEXT);
        check(b"a gr\xfc\xdfe in latin-1", "text/plain");
        check(b"\xff\xfeh\0i\0", "text/plain; charset=utf-16le");
        check(b"\0\x01\x02binary", UNKNOWN);
        check(b"\xe9\xf8\xa7\xb1\xc3", UNKNOWN);
        check(b"caf\xc3", "text/plain");

        check(b"{\"a\":[1,2,{\"b\":null}]}\n", "application/json");
        check(b" \n[]", "application/json");
        check(b"{\"a\":", TEXT);
        check(b"{not json}", TEXT);
        check(b"[link](target)", TEXT);
        check(b"{} trailing", TEXT);

        check(b"<!DOCTYPE html><p>", "text/html");
        check(b"\n\t <HTML>", "text/html");
        check(b"<html lang=\"en\">", "text/html");
        check(b"<!-- note --><html>", "text/html");
        check(b"<body", "text/html");
        check(b"<bogus>", TEXT);
        check(b"<?xml version=\"1.0\"?><rss>", "text/xml; charset=utf-8");
        check(b"<?xml version=\"1.0\"?>\n<!-- by hand -->\n<svg xmlns=\"\">", "image/svg+xml");
        check(b"<svg>", "image/svg+xml");
        check(b"\xef\xbb\xbf<!-- x --><SVG ", "image/svg+xml");
        check(b"<!DOCTYPE svg PUBLIC \"-//W3C//DTD SVG 1.1//EN\"><svg>", "image/svg+xml");
        check(b"<svgx>", TEXT);
        check(b"<?xml never closed", "text/xml; charset=utf-8");

        check(b"\xff\xd8\xff\xe0", "image/jpeg");
        check(b"GIF89a\x01\0", "image/gif");
        check(b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp");
        check(b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav");
        check(b"\0\0\0\x20ftypisom\0\0", "video/mp4");
        check(b"\0\0\0\x20ftypavif\0\0", "image/avif");
        check(b"\0\0\0\x20ftypqt  \0\0", "video/quicktime");
        check(b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm", "video/webm");
        check(b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x88matroska", "video/x-matroska");
        check(b"%PDF-1.7\n", "application/pdf");
        check(b"\0asm\x01\0\0\0", "application/wasm");
        check(b"\x1f\x8b\x08\0", "application/gzip");
        check(b"PK\x03\x04\x14\0", "application/zip");
        check(b"wOF2\0\x01\0\0", "font/woff2");
        check(b"ID3\x04\0\0", "audio/mpeg");
        check(b"BM\x36\0\0\0", "image/bmp");
        check(b"BMW is a car maker", TEXT);
        check(b"BZh how?", TEXT);
        let mut tar = vec![0; 512];
        tar[..4].copy_from_slice(b"file");
        tar[257..262].copy_from_slice(b"ustar");
        check(&tar, "application/x-tar");
    }

    #[test]
    fn what_is_cut_through_at_the_limit() {
        let json = format!("[{}", "\"a\",".repeat(SNIFF_BYTES));
        assert_eq!(sniff(json.as_bytes()), "application/json");
        assert_eq!(sniff(&json.as_bytes()[..SNIFF_BYTES - 1]), TEXT);
        let umlauts = "a".to_owned() + &"ü".repeat(SNIFF_BYTES);
        assert_eq!(sniff(&umlauts.as_bytes()[..SNIFF_BYTES]), TEXT);
        let deep = "[".repeat(SNIFF_BYTES * 2);
        assert_eq!(sniff(deep.as_bytes()), "application/json");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), name in ".{0,12}") {
            let kind = content_type(Some(&name), &bytes);
            prop_assert!(kind.contains('/') && kind.is_ascii());
            let _ = sniff(&bytes);
        }

        #[test]
        fn random_markup_never_panics(text in "[<>!\\-?a-zü \"{}\\[\\]]{0,80}") {
            prop_assert!(sniff(text.as_bytes()) != UNKNOWN);
        }
    }
}
