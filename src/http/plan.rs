//! From a representation and the request's conditions to a reply head. Pure: no socket, no store.
//!
//! A [`Representation`] is what a plain GET would send: size, Etag, headers. [`decide`] lays the conditions of
//! RFC 9110 section 13 over it in the order that section 13.2.2 gives, then the ranges of section 14, and
//! [`Head`] is the outcome. HEAD is the same head without a body.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use ::http::StatusCode;
use ::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::refusal::Refusal;

/// `/ipfs/` never changes (`ipfs-gateway.md` 2.1): 48 weeks, immutable.
pub const CACHE_IMMUTABLE: &str = "public, max-age=29030400, immutable";
/// Listings are HTML of this program's making over content that never changes: a week, then revalidate.
pub const CACHE_LISTING: &str = "public, max-age=604800, stale-while-revalidate=2678400";

/// Ranges of one request that are answered as multipart. A player or a PDF reader asks for two or three; more are
/// ignored, as RFC 9110 14.2 allows against abuse.
pub const RANGES_MAX: usize = 16;
/// Longest conditional header that is looked at; a list of 50 Etags fits.
const CONDITION_MAX_BYTES: usize = 8192;

pub const X_IPFS_PATH: HeaderName = HeaderName::from_static("x-ipfs-path");
pub const X_IPFS_ROOTS: HeaderName = HeaderName::from_static("x-ipfs-roots");

/// What a plain GET of a file would send.
#[derive(Debug, Clone)]
pub struct Representation {
    pub size_bytes: u64,
    /// Strong, quoted.
    pub etag: HeaderValue,
    pub last_modified: Option<SystemTime>,
    /// Every header that does not depend on the request's conditions; Etag and Last-Modified are added here.
    pub headers: HeaderMap,
}

/// The conditional and range headers of a request, several lines of one name joined.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Conditions {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub if_modified_since: Option<String>,
    pub if_unmodified_since: Option<String>,
    pub if_range: Option<String>,
    pub range: Option<String>,
}

impl Conditions {
    pub fn of(headers: &HeaderMap) -> Conditions {
        Conditions {
            if_match: joined(headers, header::IF_MATCH),
            if_none_match: joined(headers, header::IF_NONE_MATCH),
            if_modified_since: joined(headers, header::IF_MODIFIED_SINCE),
            if_unmodified_since: joined(headers, header::IF_UNMODIFIED_SINCE),
            if_range: joined(headers, header::IF_RANGE),
            range: joined(headers, header::RANGE),
        }
    }
}

fn joined(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let mut lines = headers.get_all(name).iter();
    let mut text = lines.next()?.to_str().ok()?.to_owned();
    for line in lines {
        text.push_str(", ");
        text.push_str(line.to_str().ok()?);
    }
    (text.len() <= CONDITION_MAX_BYTES).then_some(text)
}

/// What the conditions make of a representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Whole,
    Partial(Range<u64>),
    /// At least two ranges, in the order asked.
    Several(Vec<Range<u64>>),
    NotModified,
    PreconditionFailed,
    /// No range asked for lies inside the file.
    OutOfRange,
    /// A `bytes` range that is not well formed.
    BadRange,
}

/// Lays `conditions` over a representation.
pub fn decide(conditions: &Conditions, representation: &Representation) -> Decision {
    let etag = representation.etag.as_bytes();
    if let Some(list) = &conditions.if_match {
        if !etag_listed(list, etag, Comparison::Strong) {
            return Decision::PreconditionFailed;
        }
    } else if let (Some(text), Some(modified)) = (&conditions.if_unmodified_since, representation.last_modified)
        && httpdate::parse_http_date(text).is_ok_and(|limit| whole_seconds(modified) > limit)
    {
        return Decision::PreconditionFailed;
    }
    if let Some(list) = &conditions.if_none_match {
        if etag_listed(list, etag, Comparison::Weak) {
            return Decision::NotModified;
        }
    } else if let (Some(text), Some(modified)) = (&conditions.if_modified_since, representation.last_modified)
        && httpdate::parse_http_date(text).is_ok_and(|since| whole_seconds(modified) <= since)
    {
        return Decision::NotModified;
    }
    match &conditions.range {
        Some(range) if if_range_holds(conditions, representation) => decide_range(range, representation.size_bytes),
        _ => Decision::Whole,
    }
}

/// The same for a listing or another body without ranges and dates: true if it is what the client already has. An error
/// if it is not what the client wants to go on with (RFC 9110 13.1.1).
pub fn not_modified(conditions: &Conditions, etag: &str) -> Result<bool, Refusal> {
    let listed = |list: &Option<String>, comparison| list.as_ref().map(|list| etag_listed(list, etag.as_bytes(), comparison));
    if listed(&conditions.if_match, Comparison::Strong) == Some(false) {
        return Err(Refusal::Precondition);
    }
    Ok(listed(&conditions.if_none_match, Comparison::Weak) == Some(true))
}

/// RFC 9110 8.8.3.2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Is `etag` in a header's list, or is the list `*`?
fn etag_listed(list: &str, etag: &[u8], comparison: Comparison) -> bool {
    let mut rest = list.trim();
    if rest == "*" {
        return true;
    }
    let ours_weak = etag.starts_with(b"W/");
    let ours = etag.strip_prefix(b"W/").unwrap_or(etag);
    while !rest.is_empty() {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let (weak, opaque) = match rest.strip_prefix("W/") {
            Some(opaque) => (true, opaque),
            None => (false, rest),
        };
        let Some(inner) = opaque.strip_prefix('"') else { return false };
        let Some(end) = inner.find('"') else { return false };
        let strong_enough = comparison == Comparison::Weak || (!weak && !ours_weak);
        if strong_enough && opaque.as_bytes()[..end + 2] == *ours {
            return true;
        }
        rest = inner[end + 1..].trim_start();
    }
    false
}

/// `If-Range` holds an Etag (compared strongly) or a date; if it does not hold, the range is ignored.
fn if_range_holds(conditions: &Conditions, representation: &Representation) -> bool {
    let Some(text) = &conditions.if_range else { return true };
    let text = text.trim();
    if text.starts_with('"') || text.starts_with("W/") {
        return text.as_bytes() == representation.etag.as_bytes() && !text.starts_with("W/");
    }
    match (httpdate::parse_http_date(text), representation.last_modified) {
        (Ok(date), Some(modified)) => date == whole_seconds(modified),
        _ => false,
    }
}

/// HTTP dates have whole seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn decide_range(text: &str, size: u64) -> Decision {
    let Some((unit, list)) = text.split_once('=') else { return Decision::BadRange };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        // RFC 9110 14.2: a unit that is not understood is ignored.
        return Decision::Whole;
    }
    let mut ranges = Vec::new();
    let mut asked = 0_usize;
    for spec in list.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        asked += 1;
        if asked > RANGES_MAX {
            return Decision::Whole;
        }
        match parse_range(spec, size) {
            Ok(Some(range)) => ranges.push(range),
            Ok(None) => {}
            Err(BadRange) => return Decision::BadRange,
        }
    }
    let total: u64 = ranges.iter().fold(0, |sum, range| sum.saturating_add(range.end - range.start));
    match ranges.len() {
        0 if asked == 0 => Decision::BadRange,
        0 => Decision::OutOfRange,
        1 => Decision::Partial(ranges.swap_remove(0)),
        // Overlapping ranges must not make a reply longer than the file.
        _ if total > size => Decision::Whole,
        _ => Decision::Several(ranges),
    }
}

struct BadRange;

/// One `a-b`, `a-` or `-n`; `None` when it lies outside of the file.
fn parse_range(spec: &str, size: u64) -> Result<Option<Range<u64>>, BadRange> {
    let (first, last) = spec.split_once('-').ok_or(BadRange)?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let suffix = parse_number(last)?;
        return Ok((suffix > 0 && size > 0).then(|| size.saturating_sub(suffix)..size));
    }
    let start = parse_number(first)?;
    let end = if last.is_empty() { size } else { parse_number(last)?.saturating_add(1) };
    if !last.is_empty() && end <= start {
        return Err(BadRange);
    }
    Ok((start < size).then(|| start..end.min(size)))
}

/// Decimal digits only; a number above u64 is as good as infinite.
fn parse_number(text: &str) -> Result<u64, BadRange> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadRange);
    }
    Ok(text.parse().unwrap_or(u64::MAX))
}

/// Status and headers of a reply, and which bytes follow.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: BodyPlan,
}

/// Which bytes of the representation follow the head.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyPlan {
    Nothing,
    Stretch(Range<u64>),
    Multipart(Multipart),
}

/// A `multipart/byteranges` body (RFC 9110 14.6).
#[derive(Debug, PartialEq, Eq)]
pub struct Multipart {
    /// The text before each part, and the part.
    pub parts: Vec<(Bytes, Range<u64>)>,
    /// The closing line.
    pub tail: Bytes,
}

impl Head {
    /// The whole representation.
    pub fn whole(representation: &Representation) -> Head {
        let mut headers = headers_with_validators(representation);
        headers.insert(header::CONTENT_LENGTH, representation.size_bytes.into());
        Head { status: StatusCode::OK, headers, body: BodyPlan::Stretch(0..representation.size_bytes) }
    }

    /// One range of it.
    pub fn partial(representation: &Representation, range: Range<u64>) -> Head {
        let mut headers = headers_with_validators(representation);
        headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
        headers.insert(header::CONTENT_RANGE, ascii(content_range(&range, representation.size_bytes)));
        Head { status: StatusCode::PARTIAL_CONTENT, headers, body: BodyPlan::Stretch(range) }
    }

    /// Several ranges. `boundary` must not occur in the content; 128 random bits do not.
    pub fn several(representation: &Representation, ranges: Vec<Range<u64>>, boundary: &str) -> Head {
        let mut headers = headers_with_validators(representation);
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/octet-stream");
        let size = representation.size_bytes;
        let parts: Vec<_> = ranges
            .into_iter()
            .map(|range| {
                let text = format!(
                    "\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {}\r\n\r\n",
                    content_range(&range, size)
                );
                (Bytes::from(text), range)
            })
            .collect();
        let tail = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let length: u64 = parts.iter().map(|(text, range)| text.len() as u64 + (range.end - range.start)).sum();
        headers.insert(header::CONTENT_LENGTH, (length + tail.len() as u64).into());
        headers.insert(header::CONTENT_TYPE, ascii(format!("multipart/byteranges; boundary={boundary}")));
        Head { status: StatusCode::PARTIAL_CONTENT, headers, body: BodyPlan::Multipart(Multipart { parts, tail }) }
    }

    /// 304: validators, caching and routing headers, nothing that describes a body.
    pub fn not_modified(representation: &Representation) -> Head {
        let mut headers = headers_with_validators(representation);
        for name in [header::CONTENT_TYPE, header::CONTENT_DISPOSITION, header::ACCEPT_RANGES, header::CONTENT_LENGTH] {
            headers.remove(name);
        }
        Head { status: StatusCode::NOT_MODIFIED, headers, body: BodyPlan::Nothing }
    }
}

fn headers_with_validators(representation: &Representation) -> HeaderMap {
    let mut headers = representation.headers.clone();
    headers.insert(header::ETAG, representation.etag.clone());
    if let Some(modified) = representation.last_modified {
        headers.insert(header::LAST_MODIFIED, ascii(httpdate::fmt_http_date(modified)));
    }
    headers
}

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

/// A header value of text we made ourselves.
pub fn ascii(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("made of printable ASCII")
}

/// The two dispositions of RFC 6266.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    Inline,
    Attachment,
}

/// `Content-Disposition` with the name in both forms: ASCII with `_` for what cannot stand there, then UTF-8. A name is
/// no path (RFC 6266 4.3): separators become `_` in both.
pub fn content_disposition(disposition: Disposition, filename: &str) -> HeaderValue {
    let filename = filename.replace(['/', '\\'], "_");
    let word = match disposition {
        Disposition::Inline => "inline",
        Disposition::Attachment => "attachment",
    };
    let plain: String = filename.chars().map(|c| if c.is_ascii_graphic() && c != '"' || c == ' ' { c } else { '_' }).collect();
    let encoded = percent_encoding::utf8_percent_encode(&filename, NOT_ATTR_CHAR);
    ascii(format!("{word}; filename=\"{plain}\"; filename*=UTF-8''{encoded}"))
}

/// Everything but attr-char of RFC 8187.
const NOT_ATTR_CHAR: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"bafy\"";

    fn file(size_bytes: u64) -> Representation {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE_IMMUTABLE));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        Representation { size_bytes, etag: HeaderValue::from_static(ETAG), last_modified: None, headers }
    }

    #[test]
    fn ranges() {
        use Decision::*;
        #[rustfmt::skip]
        let rows: &[(&str, u64, Decision)] = &[
            ("bytes=6-16", 34, Partial(6..17)),
            ("bytes=-3", 34, Partial(31..34)),
            ("bytes=-99", 34, Partial(0..34)),
            ("bytes=30-", 34, Partial(30..34)),
            ("bytes=30-99", 34, Partial(30..34)),
            ("bytes=0-0", 1, Partial(0..1)),
            ("bytes=6-16,0-4", 34, Several(vec![6..17, 0..5])),
            ("bytes= 6-16 , 0-4 ", 34, Several(vec![6..17, 0..5])),
            ("bytes=6-16,99-100", 34, Partial(6..17)),
            ("bytes=0-33,0-33", 34, Whole),
            ("bytes=34-", 34, OutOfRange),
            ("bytes=99-100,88-", 34, OutOfRange),
            ("bytes=-0", 34, OutOfRange),
            ("bytes=0-", 0, OutOfRange),
            ("bytes=-5", 0, OutOfRange),
            ("bytes=18446744073709551616-", 34, OutOfRange),
            ("bytes=0-18446744073709551616", 34, Partial(0..34)),
            ("bytes=9-3", 34, BadRange),
            ("bytes=", 34, BadRange),
            ("bytes=-", 34, BadRange),
            ("bytes=a-b", 34, BadRange),
            ("bytes=+1-2", 34, BadRange),
            ("bytes=1", 34, BadRange),
            ("bytes", 34, BadRange),
            ("lines=1-2", 34, Whole),
            ("bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8,9-9,10-10,11-11,12-12,13-13,14-14,15-15,16-16", 34, Whole),
        ];
        for (range, size, expect) in rows {
            let conditions = Conditions { range: Some((*range).to_owned()), ..Default::default() };
            assert_eq!(&decide(&conditions, &file(*size)), expect, "{range} of {size}");
        }
    }

    #[test]
    fn etag_conditions() {
        use Decision::*;
        #[rustfmt::skip]
        let rows = [
            // If-None-Match,                   If-Match,        If-Range with bytes=0-1, expect
            (None,                              None,            None,               Whole),
            (Some("\"bafy\""),                  None,            None,               NotModified),
            (Some("\"a\", \"b\",\"bafy\""),     None,            None,               NotModified),
            (Some("\"a,b\", \"bafy\""),         None,            None,               NotModified),
            (Some("W/\"bafy\""),                None,            None,               NotModified),
            (Some("*"),                         None,            None,               NotModified),
            (Some("\"bafyx\""),                 None,            None,               Whole),
            (Some("bafy"),                      None,            None,               Whole),
            (Some("\"bafy"),                    None,            None,               Whole),
            (None,                              Some("\"bafy\""), None,              Whole),
            (None,                              Some("*"),       None,               Whole),
            (None,                              Some("W/\"bafy\""), None,            PreconditionFailed),
            (None,                              Some("\"other\""), None,             PreconditionFailed),
            (None,                              None,            Some("\"bafy\""),   Partial(0..2)),
            (None,                              None,            Some("W/\"bafy\""), Whole),
            (None,                              None,            Some("\"other\""),  Whole),
            (None,                              None,            Some("Sun, 06 Nov 1994 08:49:37 GMT"), Whole),
        ];
        for (none_match, if_match, if_range, expect) in rows {
            let conditions = Conditions {
                if_none_match: none_match.map(str::to_owned),
                if_match: if_match.map(str::to_owned),
                if_range: if_range.map(str::to_owned),
                range: if_range.map(|_| "bytes=0-1".to_owned()),
                ..Default::default()
            };
            assert_eq!(decide(&conditions, &file(34)), expect, "{conditions:?}");
        }
    }

    #[test]
    fn dates_count_only_with_a_known_time() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_500);
        let conditions = Conditions { if_modified_since: Some(httpdate::fmt_http_date(then)), ..Default::default() };
        assert_eq!(decide(&conditions, &file(1)), Decision::Whole);
        let dated = Representation { last_modified: Some(then), ..file(1) };
        assert_eq!(decide(&conditions, &dated), Decision::NotModified);
        let both = Conditions { if_none_match: Some("\"x\"".to_owned()), ..conditions };
        assert_eq!(decide(&both, &dated), Decision::Whole, "If-None-Match wins over the date");
    }

    #[test]
    fn heads() {
        let whole = Head::whole(&file(34));
        assert_eq!((whole.status.as_u16(), whole.body), (200, BodyPlan::Stretch(0..34)));
        assert_eq!(whole.headers[header::CONTENT_LENGTH], "34");
        assert_eq!(whole.headers[header::ETAG], ETAG);
        let partial = Head::partial(&file(34), 6..17);
        assert_eq!(partial.headers[header::CONTENT_RANGE], "bytes 6-16/34");
        assert_eq!(partial.headers[header::CONTENT_LENGTH], "11");
        assert_eq!(partial.headers[header::ETAG], ETAG);
        let same = Head::not_modified(&file(34));
        assert_eq!(same.status, StatusCode::NOT_MODIFIED);
        assert_eq!(same.headers[header::CACHE_CONTROL], CACHE_IMMUTABLE);
        assert!(!same.headers.contains_key(header::CONTENT_TYPE));
    }

    #[test]
    fn multipart_counts_its_own_length() {
        let head = Head::several(&file(34), vec![6..17, 0..5], "edge");
        let BodyPlan::Multipart(multipart) = head.body else { panic!("multipart") };
        let text: u64 = multipart.parts.iter().map(|(text, range)| text.len() as u64 + range.end - range.start).sum();
        assert_eq!(head.headers[header::CONTENT_LENGTH], (text + multipart.tail.len() as u64).to_string());
        assert_eq!(head.headers[header::CONTENT_TYPE], "multipart/byteranges; boundary=edge");
        let first = std::str::from_utf8(&multipart.parts[0].0).expect("text");
        assert_eq!(first, "\r\n--edge\r\nContent-Type: text/plain\r\nContent-Range: bytes 6-16/34\r\n\r\n");
    }

    #[test]
    fn dispositions() {
        use Disposition::*;
        #[rustfmt::skip]
        let rows = [
            (Inline, "testтест.pdf", "inline; filename=\"test____.pdf\"; filename*=UTF-8''test%D1%82%D0%B5%D1%81%D1%82.pdf"),
            (Attachment, "a b.txt", "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"),
            (Inline, "x\"; y=\\\r\n", "inline; filename=\"x_; y=___\"; filename*=UTF-8''x%22%3B%20y%3D_%0D%0A"),
            (Inline, "../..\\x/y", "inline; filename=\".._.._x_y\"; filename*=UTF-8''.._.._x_y"),
        ];
        for (disposition, name, expect) in rows {
            assert_eq!(content_disposition(disposition, name), expect, "{name:?}");
        }
    }

    #[test]
    fn several_header_lines_are_one_list() {
        let mut headers = HeaderMap::new();
        headers.append(header::IF_NONE_MATCH, HeaderValue::from_static("\"a\""));
        headers.append(header::IF_NONE_MATCH, HeaderValue::from_static("\"bafy\""));
        let conditions = Conditions::of(&headers);
        assert_eq!(decide(&conditions, &file(3)), Decision::NotModified);
        assert!(not_modified(&conditions, "\"bafy\"").is_ok_and(|known| known));
    }
}
