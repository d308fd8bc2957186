//! From a request head to an [`Ask`]: parsed once, decided from there on. The URL is never rewritten: the path as asked
//! stays beside what was read out of it.

use std::borrow::Cow;

use ::http::header::{self, HeaderMap};
use ::http::request::Parts;
use ::http::{HeaderName, Method};

use crate::address::{Address, AddressError, Cid, SitePath, Skylink};

use super::plan::Conditions;
use super::refusal::Refusal;

/// Parameters of a query that are looked at; the rest are ignored. Query text is bounded by the head's size limit.
const QUERY_PAIRS_MAX: usize = 64;

/// Characters of a path that an error page repeats.
const PATH_SHOWN_MAX: usize = 512;

const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");

/// Which surface a Host belongs to. The order is that of `design.md` 10: gateway domains with their subdomain forms,
/// portal domains, skylink and CID labels, DNSLink for any other name, else path gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// Path gateway and portal paths under one name.
    PathAndPortal,
}

/// The surface of a Host. Every name has the path gateway and the portal's content paths; the forms that stand before
/// them in the order of [`Surface`] have rows of their own when they come.
pub fn surface(_host: Option<&str>) -> Surface {
    Surface::PathAndPortal
}

/// Which surface's rules read the path. Told by its first characters alone, so that an answer that is kept ready needs
/// no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `/`
    Landing,
    /// `/ipfs/...`
    Ipfs,
    /// `/ipns/...`
    Ipns,
    /// `/{skylink}...`
    Skylink,
    /// Nothing that any surface answers.
    Unknown,
}

/// `/ipfs/{root}{path}`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpfsTarget {
    pub root: Cid,
    /// The root as it stands in the path.
    pub root_text: String,
    pub path: SitePath,
}

/// `/{skylink}{path}`; Skynet's rules read the path as it stood there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkyTarget {
    pub link: Skylink,
    pub path_text: String,
}

/// How the reader wants to be told of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Html,
    Text,
    /// Skynet's clients.
    Json,
}

/// The form of the reply that `format=` or Accept asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// Files and directories.
    Deserialized,
    /// The block as it is.
    Raw,
    /// A format that is known to the specifications, by its `format=` word, but not made here.
    Unavailable(&'static str),
}

/// One request, parsed.
#[derive(Debug)]
pub struct Ask {
    pub method: Method,
    pub surface: Surface,
    pub route: Route,
    /// The path as asked, without the query.
    pub path: String,
    pub query: Option<String>,
    pub host: Option<String>,
    pub origin: Option<String>,
    pub reader: Reader,
    pub format: Format,
    pub conditions: Conditions,
    pub only_if_cached: bool,
    pub service_worker: bool,
}

impl Ask {
    /// Reads a request head. Methods other than GET, HEAD and OPTIONS, and addresses that do not parse, are refused.
    pub fn read(parts: &Parts) -> Result<Ask, Refusal> {
        if !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Err(Refusal::Method);
        }
        let path = parts.uri.path();
        let headers = &parts.headers;
        let host = host_of(parts);
        let query = parts.uri.query().map(str::to_owned);
        let route = route(path);
        // Skynet's routes give the parameter `format` other words.
        let format = if route == Route::Ipfs { format(query.as_deref(), headers)? } else { Format::Deserialized };
        Ok(Ask {
            method: parts.method.clone(),
            surface: surface(host.as_deref()),
            route,
            format,
            path: path.to_owned(),
            query,
            host,
            origin: text(headers, header::ORIGIN).map(str::to_owned),
            reader: reader(path, headers),
            conditions: Conditions::of(headers),
            only_if_cached: text(headers, header::CACHE_CONTROL).is_some_and(|v| list_has(v, "only-if-cached")),
            service_worker: text(headers, SERVICE_WORKER).is_some_and(|v| v.trim().eq_ignore_ascii_case("script")),
        })
    }

    /// Reads the path of [`Route::Ipfs`].
    pub fn ipfs_target(&self) -> Result<IpfsTarget, Refusal> {
        match Address::parse(&self.path).map_err(|error| self.bad_path(error))? {
            Address::Ipfs { root, path } => {
                let root_text = self.path.split('/').nth(2).unwrap_or_default().to_owned();
                Ok(IpfsTarget { root, root_text, path })
            }
            Address::Ipns { .. } | Address::Skylink { .. } => Err(Refusal::NoRoute),
        }
    }

    /// Reads the path of [`Route::Skylink`].
    pub fn sky_target(&self) -> Result<SkyTarget, Refusal> {
        let segment = skylink_segment(&self.path).ok_or(Refusal::NoRoute)?;
        let link = Skylink::parse(segment).map_err(|error| self.bad_path(error))?;
        Ok(SkyTarget { link, path_text: self.path[1 + segment.len()..].to_owned() })
    }

    /// The refusal that shows the path as asked, or the start of a long one.
    pub fn bad_path(&self, error: AddressError) -> Refusal {
        Refusal::BadPath { path: self.path.chars().take(PATH_SHOWN_MAX).collect(), error }
    }

    /// A plain GET or HEAD of the file itself: the only thing that ready answers are kept for.
    pub fn is_plain(&self) -> bool {
        self.query.is_none() && self.format == Format::Deserialized && !self.service_worker && self.method != Method::OPTIONS
    }

    /// First value of a query parameter, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query.as_deref().and_then(|query| parameter(query, name))
    }
}

/// The host a request is for: of an absolute URL or HTTP/2's `:authority`, else of the Host header.
pub fn host_of(parts: &Parts) -> Option<String> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None => text(&parts.headers, header::HOST).map(str::to_owned),
    }
}

/// How errors are told for this path: Skynet's clients read JSON, browsers HTML, everybody else text.
pub fn reader(path: &str, headers: &HeaderMap) -> Reader {
    if skylink_segment(path).is_some() || path.starts_with("/skynet/") {
        return Reader::Json;
    }
    let html = text(headers, header::ACCEPT)
        .is_some_and(|accept| accept_types(accept).any(|(kind, _)| kind.eq_ignore_ascii_case("text/html")));
    if html { Reader::Html } else { Reader::Text }
}

fn route(path: &str) -> Route {
    match path {
        "" | "/" => Route::Landing,
        _ if path.starts_with("/ipfs/") => Route::Ipfs,
        _ if path.starts_with("/ipns/") => Route::Ipns,
        _ if skylink_segment(path).is_some() => Route::Skylink,
        _ => Route::Unknown,
    }
}

/// The first segment, if it has the form of a skylink: 46 characters of base64url, or 55 of base32.
fn skylink_segment(path: &str) -> Option<&str> {
    let segment = path.strip_prefix('/')?.split('/').next()?;
    let base64 = segment.len() == 46 && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let base32 = segment.len() == 55 && segment.bytes().all(|b| b.is_ascii_alphanumeric());
    (base64 || base32).then_some(segment)
}

/// `format=` wins over Accept (IPIP-0523).
fn format(query: Option<&str>, headers: &HeaderMap) -> Result<Format, Refusal> {
    if let Some(name) = query.and_then(|query| parameter(query, "format")) {
        return match name.as_str() {
            "raw" => Ok(Format::Raw),
            "car" => Ok(Format::Unavailable("car")),
            "tar" => Ok(Format::Unavailable("tar")),
            "dag-json" => Ok(Format::Unavailable("dag-json")),
            "dag-cbor" => Ok(Format::Unavailable("dag-cbor")),
            "json" => Ok(Format::Unavailable("json")),
            "cbor" => Ok(Format::Unavailable("cbor")),
            "ipns-record" => Ok(Format::Unavailable("ipns-record")),
            _ => Err(Refusal::UnknownFormat(name.chars().take(64).collect())),
        };
    }
    Ok(text(headers, header::ACCEPT).map_or(Format::Deserialized, format_of_accept))
}

/// The format of the weightiest type that is known; of equal ones the first. JSON and CBOR by Accept mean files of
/// that type as well, so they are served as files.
fn format_of_accept(accept: &str) -> Format {
    let mut best: (u16, Option<Format>) = (0, None);
    for (kind, weight) in accept_types(accept) {
        let format = match kind.to_ascii_lowercase().as_str() {
            "application/vnd.ipld.raw" => Format::Raw,
            "application/vnd.ipld.car" => Format::Unavailable("car"),
            "application/x-tar" => Format::Unavailable("tar"),
            "application/vnd.ipld.dag-json" => Format::Unavailable("dag-json"),
            "application/vnd.ipld.dag-cbor" => Format::Unavailable("dag-cbor"),
            "application/vnd.ipfs.ipns-record" => Format::Unavailable("ipns-record"),
            _ => continue,
        };
        if weight > best.0 {
            best = (weight, Some(format));
        }
    }
    best.1.unwrap_or(Format::Deserialized)
}

/// Media types of an Accept header with their weights in thousandths.
fn accept_types(accept: &str) -> impl Iterator<Item = (&str, u16)> {
    accept.split(',').map(|part| {
        let mut pieces = part.split(';').map(str::trim);
        let kind = pieces.next().unwrap_or_default();
        let weight = pieces
            .find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")))
            .and_then(|q| q.parse::<f32>().ok())
            .map_or(1000, |q| (q.clamp(0.0, 1.0) * 1000.0) as u16);
        (kind, weight)
    })
}

/// First value of `name` in a query, percent-decoded, `+` as a space.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    let raw = query.split('&').take(QUERY_PAIRS_MAX).find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then_some(value)
    })?;
    Some(decode(raw).into_owned())
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

pub(super) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn list_has(list: &str, word: &str) -> bool {
    list.split(',').any(|item| item.trim().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;
    use crate::address::TrailingSlash;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    const LINK: &str = "AAB1QJWQV0y2ynDXnJvOt0uh-THq-pJj2_layW5fjPXhTQ";

    fn ask(uri: &str, headers: &[(&str, &str)]) -> Result<Ask, Refusal> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ask::read(&request.body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn targets() {
        let good = ask(&format!("/ipfs/{CID}/a%20b/?x=1"), &[]).expect("good");
        let target = good.ipfs_target().expect("parses");
        assert_eq!((target.root.to_string().as_str(), target.root_text.as_str()), (CID, CID));
        assert_eq!((target.path.segments(), target.path.trailing_slash()), (&["a b".to_owned()][..], TrailingSlash::Yes));
        assert_eq!((good.path.as_str(), good.query.as_deref()), (format!("/ipfs/{CID}/a%20b/").as_str(), Some("x=1")));

        let sky = ask(&format!("/{LINK}/dir/a.txt"), &[]).expect("good");
        assert_eq!((sky.route, sky.reader), (Route::Skylink, Reader::Json));
        assert_eq!(sky.sky_target().expect("parses").path_text, "/dir/a.txt");

        for (uri, expect) in [
            ("/", Route::Landing),
            ("/ipns/example.com", Route::Ipns),
            ("/favicon.ico", Route::Unknown),
            ("/ipfs", Route::Unknown),
            ("/skynet/stats", Route::Unknown),
        ] {
            assert_eq!(ask(uri, &[]).expect("parses").route, expect, "{uri}");
        }
    }

    #[test]
    fn bad_paths_are_told_with_the_path() {
        for uri in [
            "/ipfs/QmInvalidCID",
            "/ipfs/",
            "/ipfs//a",
            &format!("/ipfs/{CID}/%zz"),
            &format!("/ipfs/{CID}/%00"),
            &format!("/ipfs/{CID}/%ff"),
        ] {
            let refusal = ask(uri, &[]).expect("a head").ipfs_target().expect_err("refused");
            assert!(matches!(&refusal, Refusal::BadPath { path, .. } if path == uri), "{uri}: {refusal}");
            assert_eq!(refusal.row().status, 400);
        }
        let refusal = ask(&format!("/{}", "_".repeat(46)), &[]).expect("a head").sky_target().expect_err("refused");
        assert_eq!(refusal.row().status, 400);
    }

    #[test]
    fn other_methods_are_refused() {
        let request = Request::builder().method("POST").uri("/").body(()).expect("a request");
        assert!(matches!(Ask::read(&request.into_parts().0), Err(Refusal::Method)));
    }

    #[test]
    fn formats() {
        use Format::*;
        let rows = [
            ("/", "", Deserialized),
            ("/?format=raw", "", Raw),
            ("/", "application/vnd.ipld.raw", Raw),
            ("/?format=raw", "application/vnd.ipld.car", Raw),
            ("/?format=car", "application/vnd.ipld.raw", Unavailable("car")),
            ("/", "application/vnd.ipld.car;q=0.5, application/vnd.ipld.raw", Raw),
            ("/", "text/html, application/vnd.ipld.car; version=1", Unavailable("car")),
            ("/", "text/html,application/xhtml+xml,*/*;q=0.8", Deserialized),
            ("/", "application/json", Deserialized),
            ("/", "application/vnd.ipld.raw;q=0", Deserialized),
        ];
        for (uri, accept, expect) in rows {
            let uri = format!("/ipfs/{CID}{uri}");
            assert_eq!(ask(&uri, &[("accept", accept)]).expect("parses").format, expect, "{uri} {accept}");
        }
        assert!(matches!(ask(&format!("/ipfs/{CID}?format=bogus"), &[]), Err(Refusal::UnknownFormat(name)) if name == "bogus"));
    }

    #[test]
    fn facts_of_the_head() {
        let ask_with =
            |headers: &[(&str, &str)]| ask(&format!("/ipfs/{CID}?filename=a+b%C4%85.txt&download=true"), headers).expect("parses");
        let plain = ask_with(&[]);
        assert_eq!((plain.reader, plain.only_if_cached, plain.service_worker), (Reader::Text, false, false));
        assert_eq!(plain.parameter("filename").as_deref(), Some("a bą.txt"));
        assert_eq!(plain.parameter("nothing"), None);
        let full = ask_with(&[
            ("accept", "text/html;q=0.9"),
            ("cache-control", "no-transform, only-if-cached"),
            ("service-worker", "script"),
            ("host", "localhost:1"),
        ]);
        assert_eq!((full.reader, full.only_if_cached, full.service_worker), (Reader::Html, true, true));
        assert_eq!(full.host.as_deref(), Some("localhost:1"));
    }
}
