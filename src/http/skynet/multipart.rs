//! Multipart bodies (RFC 2046, RFC 7578), taken apart as they come.
//!
//! [`Multipart`] is fed with chunks of any size and gives events; it keeps the head of one part, or what may be the
//! beginning of a boundary. Names of files are given as they were sent: Skynet's folders stand in them, where usual
//! libraries cut them off.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;

/// Longest head of one part: a path of 4 KiB, written with escapes or percent signs, fits several times.
pub const PART_HEAD_BYTES_MAX: usize = 32 << 10;
/// Header lines of one part; clients send four.
pub const PART_HEADERS_MAX: usize = 32;
/// What may stand before the first boundary and after the last; nobody needs it.
pub const AROUND_BYTES_MAX: usize = 64 << 10;
/// Longest boundary (RFC 2046, 5.1.1).
pub const BOUNDARY_BYTES_MAX: usize = 70;
/// White space behind a boundary.
const PADDING_BYTES_MAX: usize = 256;

/// Why a body is not multipart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MultipartFault {
    #[error("malformed Content-Type: multipart needs a boundary of 1 to {BOUNDARY_BYTES_MAX} characters")]
    Boundary,
    #[error("malformed multipart body: a boundary is followed by something else than the end of its line")]
    AfterBoundary,
    #[error("malformed multipart body: more than {AROUND_BYTES_MAX} bytes stand before the first part or after the last")]
    Around,
    #[error("malformed multipart body: the head of a part has more than {PART_HEAD_BYTES_MAX} bytes or {PART_HEADERS_MAX} lines")]
    HeadTooLong,
    #[error("malformed multipart body: the head of a part cannot be read")]
    Head,
    #[error("the multipart body ended before its last boundary: nothing of it was kept, send it again")]
    Cut,
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Part(PartHead),
    /// Bytes of the newest part.
    Bytes(Bytes),
}

/// The head of a part, as far as uploads look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartHead {
    /// Of the form's field.
    pub name: String,
    pub filename: Option<String>,
    pub content_type: Option<String>,
    /// Skynet's own header: Unix mode in octal.
    pub mode: Option<String>,
}

/// A body under way.
pub struct Multipart {
    /// `\r\n--boundary`.
    delimiter: memmem::Finder<'static>,
    rest: BytesMut,
    /// Bytes at the start of `rest` in which the end of a head was looked for in vain.
    searched: usize,
    /// Bytes that were skipped outside of parts.
    around: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    AfterDelimiter,
    Head,
    Body,
    Epilogue,
}

impl Multipart {
    pub fn new(boundary: &str) -> Result<Multipart, MultipartFault> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
        if boundary.is_empty() || boundary.len() > BOUNDARY_BYTES_MAX || !boundary.bytes().all(good) {
            return Err(MultipartFault::Boundary);
        }
        let delimiter = memmem::Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned();
        // The first boundary may be the first line, which then has no line end before it.
        Ok(Multipart { delimiter, rest: BytesMut::from("\r\n"), searched: 0, around: 0, state: State::Preamble })
    }

    /// The next bytes of the body.
    pub fn give(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// The next event; `None` when more bytes are needed.
    pub fn next_event(&mut self) -> Result<Option<Event>, MultipartFault> {
        loop {
            match self.state {
                State::Preamble => match self.delimiter.find(&self.rest) {
                    Some(at) => {
                        self.skip(at)?;
                        self.rest.advance(self.delimiter.needle().len());
                        self.state = State::AfterDelimiter;
                    }
                    None => {
                        self.skip(self.rest.len() - self.possible_delimiter())?;
                        return Ok(None);
                    }
                },
                State::AfterDelimiter => match self.after_delimiter()? {
                    Some(next) => self.state = next,
                    None => return Ok(None),
                },
                State::Head => {
                    let Some(head) = self.head()? else { return Ok(None) };
                    self.state = State::Body;
                    return Ok(Some(Event::Part(head)));
                }
                State::Body => match self.delimiter.find(&self.rest) {
                    Some(0) => {
                        self.rest.advance(self.delimiter.needle().len());
                        self.state = State::AfterDelimiter;
                    }
                    Some(at) => return Ok(Some(Event::Bytes(self.rest.split_to(at).freeze()))),
                    None => {
                        let sure = self.rest.len() - self.possible_delimiter();
                        return Ok((sure > 0).then(|| Event::Bytes(self.rest.split_to(sure).freeze())));
                    }
                },
                State::Epilogue => {
                    self.skip(self.rest.len())?;
                    return Ok(None);
                }
            }
        }
    }

    /// The body has ended.
    pub fn finish(&self) -> Result<(), MultipartFault> {
        if self.state == State::Epilogue { Ok(()) } else { Err(MultipartFault::Cut) }
    }

    fn skip(&mut self, count: usize) -> Result<(), MultipartFault> {
        self.rest.advance(count);
        self.around += count;
        if self.around > AROUND_BYTES_MAX { Err(MultipartFault::Around) } else { Ok(()) }
    }

    /// Length of the longest end of `rest` that a delimiter can begin with.
    fn possible_delimiter(&self) -> usize {
        let needle = self.delimiter.needle();
        let longest = self.rest.len().min(needle.len() - 1);
        (1..=longest).rev().find(|length| self.rest.ends_with(&needle[..*length])).unwrap_or(0)
    }

    /// What follows a boundary: another part, or the end.
    fn after_delimiter(&mut self) -> Result<Option<State>, MultipartFault> {
        if self.rest.starts_with(b"--") {
            self.rest.advance(2);
            return Ok(Some(State::Epilogue));
        }
        let padding = self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if padding > PADDING_BYTES_MAX {
            return Err(MultipartFault::AfterBoundary);
        }
        match &self.rest[padding..] {
            [] | [b'\r'] => Ok(None),
            [b'-'] if padding == 0 => Ok(None),
            [b'\r', b'\n', ..] => {
                // The line end stays: a part without headers has nothing but one more.
                self.rest.advance(padding);
                self.searched = 0;
                Ok(Some(State::Head))
            }
            _ => Err(MultipartFault::AfterBoundary),
        }
    }

    fn head(&mut self) -> Result<Option<PartHead>, MultipartFault> {
        const END: &[u8] = b"\r\n\r\n";
        let from = self.searched.saturating_sub(END.len() - 1);
        match memmem::find(&self.rest[from..], END) {
            Some(at) if from + at <= PART_HEAD_BYTES_MAX => {
                let head = self.rest.split_to(from + at);
                self.rest.advance(END.len());
                PartHead::parse(&head).map(Some)
            }
            None if self.rest.len() <= PART_HEAD_BYTES_MAX => {
                self.searched = self.rest.len();
                Ok(None)
            }
            Some(_) | None => Err(MultipartFault::HeadTooLong),
        }
    }
}

impl PartHead {
    /// Reads header lines; the head begins with a line end, if it has any.
    fn parse(head: &[u8]) -> Result<PartHead, MultipartFault> {
        let head = std::str::from_utf8(head).map_err(|_| MultipartFault::Head)?;
        let mut part = PartHead::default();
        for (index, line) in head.split("\r\n").skip(1).enumerate() {
            if index == PART_HEADERS_MAX {
                return Err(MultipartFault::HeadTooLong);
            }
            let (name, value) = line.split_once(':').ok_or(MultipartFault::Head)?;
            let value = value.trim_matches([' ', '\t']);
            let said = || (!value.is_empty()).then(|| value.to_owned());
            match name.to_ascii_lowercase().as_str() {
                "content-disposition" => {
                    let (_, parameters) = media_type(value).ok_or(MultipartFault::Head)?;
                    part.name = parameter(&parameters, "name").unwrap_or_default().to_owned();
                    // The form with a star is the one that names a character set (RFC 6266).
                    let starred = parameter(&parameters, "filename*").and_then(extended_value);
                    part.filename = starred.or_else(|| parameter(&parameters, "filename").map(str::to_owned));
                }
                "content-type" => part.content_type = said(),
                "mode" => part.mode = said(),
                _ => {}
            }
        }
        Ok(part)
    }
}

/// A media type or a disposition, in lower case, and its parameters with names in lower case. `None` if it is malformed.
pub fn media_type(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let (kind, mut rest) = text.split_once(';').unwrap_or((text, ""));
    let kind = kind.trim();
    if kind.is_empty() || kind.contains(char::is_whitespace) {
        return None;
    }
    let mut parameters: Vec<(String, String)> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        if rest.is_empty() {
            return Some((kind.to_ascii_lowercase(), parameters));
        }
        let (name, after) = rest.split_once('=')?;
        let (value, after) = parameter_value(after.trim_start())?;
        parameters.push((name.trim().to_ascii_lowercase(), value));
        rest = after.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(';') {
            return None;
        }
    }
}

/// The first parameter of this name.
pub fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return Some((text[..end].trim_end().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            // As Go reads it: old browsers sent the backslashes of paths without escaping them.
            '\\' => match characters.next_if(|(_, next)| "()<>@,;:\\\"/[]?=".contains(*next)) {
                Some((_, next)) => value.push(next),
                None => value.push('\\'),
            },
            other => value.push(other),
        }
    }
    None
}

/// `UTF-8''percent%20encoded` (RFC 8187).
fn extended_value(text: &str) -> Option<String> {
    let (charset, rest) = text.split_once('\'')?;
    let (_language, encoded) = rest.split_once('\'')?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    percent_encoding::percent_decode_str(encoded).decode_utf8().ok().map(|text| text.into_owned())
}

/// Any bytes, in pieces that the first one says: what comes out is bounded by what went in, and does not depend on the
/// pieces.
pub fn fuzz(data: &[u8]) {
    let (step, data) = data.split_first().map_or((1, data), |(first, rest)| (usize::from(*first).max(1), rest));
    let whole = events(data, data.len().max(1));
    let parts = events(data, step);
    if let (Ok(whole), Ok(parts)) = (&whole, &parts) {
        assert_eq!(whole, parts);
    }
    let size: usize = parts.iter().flatten().map(|(_, bytes)| bytes.len()).sum();
    assert!(size <= data.len());
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = media_type(text);
        let _ = extended_value(text);
    }
}

/// The parts of a body that comes in pieces of `step` bytes, with the boundary `x`.
fn events(data: &[u8], step: usize) -> Result<Vec<(PartHead, Vec<u8>)>, MultipartFault> {
    let mut body = Multipart::new("x")?;
    let mut parts: Vec<(PartHead, Vec<u8>)> = Vec::new();
    for piece in data.chunks(step) {
        body.give(piece);
        while let Some(event) = body.next_event()? {
            match event {
                Event::Part(head) => parts.push((head, Vec::new())),
                Event::Bytes(bytes) => parts.last_mut().expect("a part before its bytes").1.extend_from_slice(&bytes),
            }
        }
    }
    body.finish().map(|()| parts)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn part(head: &str, bytes: &str) -> String {
        format!("--x\r\n{head}\r\n\r\n{bytes}\r\n")
    }

    /// The same for pieces of every size.
    fn read(body: &str) -> Result<Vec<(PartHead, String)>, MultipartFault> {
        let text = |parts: Vec<(PartHead, Vec<u8>)>| {
            parts.into_iter().map(|(head, bytes)| (head, String::from_utf8(bytes).expect("text"))).collect()
        };
        let whole = events(body.as_bytes(), body.len().max(1)).map(text);
        for step in 1..9 {
            assert_eq!(events(body.as_bytes(), step).map(text), whole, "{step}: {body}");
        }
        whole
    }

    #[test]
    fn bodies_of_clients() {
        let file = |name: &str, filename: &str, kind: Option<&str>| PartHead {
            name: name.into(),
            filename: Some(filename.into()),
            content_type: kind.map(str::to_owned),
            mode: None,
        };
        let one =
            part("Content-Disposition: form-data; name=\"file\"; filename=\"a/b c.txt\"\r\nContent-Type: text/plain", "hello");
        let two = part("content-disposition:form-data;name=files[];filename=\"x\"", "");
        for (body, expect) in [
            (format!("{one}--x--\r\n"), vec![(file("file", "a/b c.txt", Some("text/plain")), "hello".to_owned())]),
            (format!("{one}--x--"), vec![(file("file", "a/b c.txt", Some("text/plain")), "hello".to_owned())]),
            (
                format!("to be skipped\r\n{one}{two}--x--\r\nand this"),
                vec![
                    (file("file", "a/b c.txt", Some("text/plain")), "hello".to_owned()),
                    (file("files[]", "x", None), String::new()),
                ],
            ),
            // What only looks like a boundary.
            (
                format!("{}--x--", part("Content-Disposition: form-data; name=\"file\"; filename=\"f\"", "\r\n-\r\n--\r\n\r\n--")),
                vec![(file("file", "f", None), "\r\n-\r\n--\r\n\r\n--".to_owned())],
            ),
            ("--x  \t\r\n\r\nbare\r\n--x--".to_owned(), vec![(PartHead::default(), "bare".to_owned())]),
            ("--x--".to_owned(), vec![]),
        ] {
            assert_eq!(read(&body), Ok(expect), "{body}");
        }
    }

    #[test]
    fn names_as_they_were_sent() {
        for (said, expect) in [
            ("filename=\"dir/sub/a.txt\"", Some("dir/sub/a.txt")),
            ("filename=\"a\\\"b\\\\c.txt\"", Some("a\"b\\c.txt")),
            ("filename=\"C:\\dir\\a.txt\"", Some("C:\\dir\\a.txt")),
            ("filename=\"100%22.txt\"", Some("100%22.txt")),
            ("filename=\"ąę źł 日本.txt\"", Some("ąę źł 日本.txt")),
            ("filename=plain.txt", Some("plain.txt")),
            ("filename=\"a;b=c\"", Some("a;b=c")),
            ("filename=\"x\"; filename*=UTF-8''%C4%85%20b", Some("ą b")),
            ("filename=\"x\"; filename*=latin1''%E4", Some("x")),
            ("filename=\"\"", Some("")),
            ("other=1", None),
        ] {
            let body =
                format!("{}--x--", part(&format!("Content-Disposition: form-data; name=\"file\"; {said}\r\nMode: 0644"), ""));
            let parts = read(&body).expect(said);
            assert_eq!((parts[0].0.filename.as_deref(), parts[0].0.mode.as_deref()), (expect, Some("0644")), "{said}");
        }
    }

    #[test]
    fn what_is_refused() {
        let disposition = "Content-Disposition: form-data; name=\"file\"; filename=\"f\"";
        let whole = part(disposition, "hello");
        for cut in 0..whole.len() + 4 {
            let body = format!("{whole}--x--");
            assert_eq!(read(&body[..cut]), Err(MultipartFault::Cut), "{cut}");
        }
        for (body, expect) in [
            ("".to_owned(), MultipartFault::Cut),
            ("--xy\r\n\r\n\r\n--x--".to_owned(), MultipartFault::AfterBoundary),
            (format!("--x{}\r\n\r\n--x--", " ".repeat(300)), MultipartFault::AfterBoundary),
            (format!("{}--x--", part("no colon", "")), MultipartFault::Head),
            (format!("{}--x--", part("Content-Disposition: form-data; name=\"file", "")), MultipartFault::Head),
            (format!("{}--x--", part(&"a: b\r\n".repeat(40), "")), MultipartFault::HeadTooLong),
            (format!("--x\r\na: {}", "b".repeat(40_000)), MultipartFault::HeadTooLong),
            ("p".repeat(70_000), MultipartFault::Around),
            (format!("--x--{}", "p".repeat(70_000)), MultipartFault::Around),
        ] {
            let found = events(body.as_bytes(), body.len().max(1)).map(|parts| parts.len());
            assert_eq!(found, Err(expect), "{}", &body[..body.len().min(80)]);
        }
        for bad in ["", "ą", "a\"b", &"b".repeat(71)] {
            assert!(matches!(Multipart::new(bad), Err(MultipartFault::Boundary)), "{bad}");
        }
    }

    #[test]
    fn media_types() {
        let (kind, parameters) = media_type("Multipart/Form-Data; boundary=\"a b\"; charset=utf-8").expect("good");
        assert_eq!((kind.as_str(), parameter(&parameters, "boundary")), ("multipart/form-data", Some("a b")));
        for bad in ["", ";", " ; a=b", "text/plain; a", "text/plain; a=\"b", "text/plain; a=\"b\"c", "text plain"] {
            assert_eq!(media_type(bad), None, "{bad}");
        }
    }

    /// Pieces of good bodies in wrong orders, and damaged; the seed is printed by a failure.
    #[test]
    fn damaged_bodies_never_panic() {
        let pieces: [&[u8]; 9] = [
            b"--x\r\n",
            b"\r\n--x\r\n",
            b"\r\n--x--\r\n",
            b"Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n",
            b"\r\n\r\n",
            b"filename*=UTF-8''%C4",
            b"Mode: 0644\r\n",
            b"\r\n--",
            b"\xff\x00text",
        ];
        for seed in 0..3000 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut body = vec![random.random_range(0..40)];
            for _ in 0..random.random_range(0..12) {
                body.extend_from_slice(pieces[random.random_range(0..pieces.len())]);
            }
            for _ in 0..random.random_range(0..3) {
                let at = random.random_range(0..body.len());
                body[at] = random.random();
            }
            fuzz(&body);
        }
    }
}
