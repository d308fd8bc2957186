//! From a request head to an [`Ask`]: parsed once, decided from there on. The URL is never rewritten: the path as asked
//! stays beside what was read out of it.

use std::borrow::Cow;

use ::http::header::{self, HeaderMap};
use ::http::request::Parts;
use ::http::{HeaderName, Method, Version};

use crate::address::{AddressError, Skylink};

use super::plan::Conditions;
use super::refusal::Refusal;

/// Parameters of a query that are looked at; the rest are ignored. Query text is bounded by the head's size limit.
const QUERY_PAIRS_MAX: usize = 64;

/// Characters of a path that an error page repeats.
const PATH_SHOWN_MAX: usize = 512;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");

/// Paths of the portal that have more behind them (`skynet.md` 6).
const PORTAL_PREFIXES: [&str; 5] = ["/skynet/", "/file/", "/hns/", "/hnsres/", "/health-check/"];
/// Paths of the portal that stand alone.
const PORTAL_PATHS: [&str; 6] =
    ["/skynet", "/health-check", "/serverload", "/stats", "/portals", "/__internal/do/not/use/accounts"];

/// Where the content path of a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the URL's path: `/ipfs/...`, `/ipns/...`.
    Path,
    /// `{label}.{ipfs|ipns}.{gateway}`: the whole URL path lies below the root.
    Subdomain {
        namespace: Namespace,
        /// The root as text: a CID, a key, or a domain name, uninlined.
        root_text: String,
        /// The gateway's name with its port, if the request had one.
        gateway: String,
    },
    /// A domain with a DNSLink of its own: its content path is `/ipns/{host}{path}`.
    DnsLink {
        /// With its port, if the request had one.
        host: String,
    },
    /// `{base32}.{portal}`: the whole URL path lies below the skylink.
    Skylink {
        link: Skylink,
        /// The portal's name with its port, if the request had one.
        portal: String,
    },
}

/// Are the forwarding headers of a peer believed?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    Forwarded,
    Itself,
}

/// How the reader reached this gateway, proxies in front included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// The two namespaces of content paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    Ipfs,
    Ipns,
}

impl Namespace {
    pub fn as_str(self) -> &'static str {
        match self {
            Namespace::Ipfs => "ipfs",
            Namespace::Ipns => "ipns",
        }
    }
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
    /// `/routing/v1/...`
    Routing,
    /// The portal's API: `/skynet/...` and the paths beside it ([`PORTAL_PREFIXES`], [`PORTAL_PATHS`]).
    Portal,
    /// Nothing that any surface answers.
    Unknown,
}

/// `/{skylink}{path}`; Skynet's rules read the path as it stood there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkyPath {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Files and directories.
    Deserialized,
    /// The block as it is.
    Raw,
    Car,
    Tar,
    DagJson,
    DagCbor,
    Json,
    Cbor,
    IpnsRecord,
}

impl Format {
    /// The word of `format=`.
    pub const NAMES: [(&str, Format); 8] = [
        ("raw", Format::Raw),
        ("car", Format::Car),
        ("tar", Format::Tar),
        ("dag-json", Format::DagJson),
        ("dag-cbor", Format::DagCbor),
        ("json", Format::Json),
        ("cbor", Format::Cbor),
        ("ipns-record", Format::IpnsRecord),
    ];

    /// The media types of Accept.
    pub const TYPES: [(&str, Format); 8] = [
        ("application/vnd.ipld.raw", Format::Raw),
        ("application/vnd.ipld.car", Format::Car),
        ("application/x-tar", Format::Tar),
        ("application/vnd.ipld.dag-json", Format::DagJson),
        ("application/vnd.ipld.dag-cbor", Format::DagCbor),
        ("application/json", Format::Json),
        ("application/cbor", Format::Cbor),
        ("application/vnd.ipfs.ipns-record", Format::IpnsRecord),
    ];

    /// Its word in `format=`; empty for [`Format::Deserialized`].
    pub fn name(self) -> &'static str {
        Format::NAMES.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
}

/// What a format was asked by. `format=` wins (IPIP-0523).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatBy {
    /// Neither.
    Nothing,
    Query,
    Accept,
}

/// The form that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedFormat {
    pub format: Format,
    pub by: FormatBy,
    /// What Accept says beside the format's media type, without the weight: `version=1; order=dfs`.
    pub parameters: String,
}

impl AskedFormat {
    /// Files and directories.
    pub const NONE: AskedFormat = AskedFormat { format: Format::Deserialized, by: FormatBy::Nothing, parameters: String::new() };
}

/// One request, parsed.
#[derive(Debug)]
pub struct Ask {
    pub method: Method,
    pub place: Place,
    pub route: Route,
    /// The path as asked, without the query.
    pub path: String,
    pub query: Option<String>,
    /// As a trusted proxy tells it, else as the request does.
    pub host: Option<String>,
    pub scheme: Scheme,
    /// An HTTP/1 request line with a whole URL: the way proxies are asked.
    pub absolute: bool,
    pub origin: Option<String>,
    pub reader: Reader,
    pub format: Format,
    pub format_by: FormatBy,
    /// See [`AskedFormat::parameters`].
    pub format_parameters: String,
    pub conditions: Conditions,
    pub only_if_cached: bool,
    pub service_worker: bool,
}

impl Ask {
    /// Reads a request head. Methods other than GET, HEAD and OPTIONS (and PUT of records), and addresses that do not
    /// parse, are refused.
    pub fn read(parts: &Parts, trust: Trust) -> Result<Ask, Refusal> {
        let path = parts.uri.path();
        let route = route(path);
        // The portal knows which of its routes take which methods.
        let writes = route == Route::Portal || route == Route::Routing && parts.method == Method::PUT;
        if !writes && !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Err(Refusal::Method);
        }
        let headers = &parts.headers;
        let (forwarded_host, scheme) = forwarded(headers, trust);
        let query = parts.uri.query().map(str::to_owned);
        // Skynet's routes give the parameter `format` other words.
        let asked = match route {
            Route::Ipfs | Route::Ipns => format(query.as_deref(), headers)?,
            Route::Landing | Route::Skylink | Route::Routing | Route::Portal | Route::Unknown => AskedFormat::NONE,
        };
        Ok(Ask {
            method: parts.method.clone(),
            place: Place::Path,
            route,
            format: asked.format,
            format_by: asked.by,
            format_parameters: asked.parameters,
            path: path.to_owned(),
            query,
            host: forwarded_host.or_else(|| host_of(parts)),
            scheme,
            absolute: parts.uri.authority().is_some() && parts.version < Version::HTTP_2,
            origin: text(headers, header::ORIGIN).map(str::to_owned),
            reader: reader(path, headers),
            conditions: Conditions::of(headers),
            only_if_cached: whole_list(headers, header::CACHE_CONTROL).is_some_and(|v| list_has(&v, "only-if-cached")),
            service_worker: text(headers, SERVICE_WORKER).is_some_and(|v| v.trim().eq_ignore_ascii_case("script")),
        })
    }

    /// The host turned out to have a surface of its own: other rules read the path than its first characters told.
    pub fn set_route(&mut self, route: Route, headers: &HeaderMap) -> Result<(), Refusal> {
        self.only_reads()?;
        self.route = route;
        let asked = format(self.query.as_deref(), headers)?;
        (self.format, self.format_by, self.format_parameters) = (asked.format, asked.by, asked.parameters);
        self.reader = page_reader(headers);
        Ok(())
    }

    /// The same for the host of a skylink, where `format` has Skynet's words.
    pub fn set_sky_route(&mut self) -> Result<(), Refusal> {
        self.only_reads()?;
        self.route = Route::Skylink;
        let AskedFormat { format, by, parameters } = AskedFormat::NONE;
        (self.format, self.format_by, self.format_parameters) = (format, by, parameters);
        self.reader = Reader::Json;
        Ok(())
    }

    /// A host of content takes nothing. What wants to write was let in for a route of the portal or of routing.
    fn only_reads(&self) -> Result<(), Refusal> {
        match self.method {
            Method::GET | Method::HEAD | Method::OPTIONS => Ok(()),
            _ => Err(Refusal::Method),
        }
    }

    /// Reads `path`, which is the request's or the end of it, as `/{skylink}{path}`.
    pub fn sky_path(&self, path: &str) -> Result<SkyPath, Refusal> {
        let segment = skylink_segment(path).ok_or(Refusal::NoRoute)?;
        let link = Skylink::parse(segment).map_err(|error| self.bad_path(error))?;
        Ok(SkyPath { link, path_text: path[1 + segment.len()..].to_owned() })
    }

    /// The refusal that shows the path as asked, or the start of a long one.
    pub fn bad_path(&self, error: AddressError) -> Refusal {
        Refusal::BadPath { path: self.path.chars().take(PATH_SHOWN_MAX).collect(), error }
    }

    /// A plain GET or HEAD of the file itself: the only thing that ready answers are kept for.
    pub fn is_plain(&self) -> bool {
        matches!(self.route, Route::Ipfs | Route::Skylink)
            && matches!(self.place, Place::Path | Place::Skylink { .. })
            && self.query.is_none()
            && self.format == Format::Deserialized
            && !self.service_worker
            && self.method != Method::OPTIONS
    }

    /// `download=true`: the browser shall keep it, not show it.
    pub fn wants_download(&self) -> bool {
        self.parameter("download").is_some_and(|word| word == "true" || word == "1")
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
    if skylink_segment(path).is_some() || is_portal_path(path) {
        return Reader::Json;
    }
    page_reader(headers)
}

fn page_reader(headers: &HeaderMap) -> Reader {
    let html = whole_list(headers, header::ACCEPT)
        .is_some_and(|accept| accept_types(&accept).any(|(kind, ..)| kind.eq_ignore_ascii_case("text/html")));
    if html { Reader::Html } else { Reader::Text }
}

/// Host and scheme of a request as a proxy in front tells them, if it is trusted.
fn forwarded(headers: &HeaderMap, trust: Trust) -> (Option<String>, Scheme) {
    let first = |name: HeaderName| {
        let value = text(headers, name).filter(|_| trust == Trust::Forwarded)?;
        Some(value.split(',').next().unwrap_or_default().trim().to_owned()).filter(|value| !value.is_empty())
    };
    let scheme = match first(X_FORWARDED_PROTO) {
        Some(proto) if proto.eq_ignore_ascii_case("https") => Scheme::Https,
        _ => Scheme::Http,
    };
    (first(X_FORWARDED_HOST), scheme)
}

fn route(path: &str) -> Route {
    match path {
        "" | "/" => Route::Landing,
        _ if path.starts_with("/ipfs/") => Route::Ipfs,
        _ if path.starts_with("/ipns/") => Route::Ipns,
        _ if path.starts_with("/routing/v1/") => Route::Routing,
        _ if is_portal_path(path) => Route::Portal,
        _ if skylink_segment(path).is_some() => Route::Skylink,
        _ => Route::Unknown,
    }
}

fn is_portal_path(path: &str) -> bool {
    PORTAL_PATHS.contains(&path) || PORTAL_PREFIXES.iter().any(|prefix| path.starts_with(prefix))
}

/// The first segment, if it has the form of a skylink: 46 characters of base64url, or 55 of base32.
fn skylink_segment(path: &str) -> Option<&str> {
    let segment = path.strip_prefix('/')?.split('/').next()?;
    let base64 = segment.len() == 46 && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let base32 = segment.len() == 55 && segment.bytes().all(|b| b.is_ascii_alphanumeric());
    (base64 || base32).then_some(segment)
}

/// `format=` wins over Accept (IPIP-0523); what Accept says beside the same media type still counts.
fn format(query: Option<&str>, headers: &HeaderMap) -> Result<AskedFormat, Refusal> {
    let accept = &whole_list(headers, header::ACCEPT).unwrap_or_default();
    let Some(name) = query.and_then(|query| parameter(query, "format")) else { return Ok(format_of_accept(accept)) };
    let Some((_, format)) = Format::NAMES.iter().find(|(known, _)| *known == name) else {
        return Err(Refusal::UnknownFormat(name.chars().take(64).collect()));
    };
    let parameters = accept_types(accept).find(|(kind, ..)| format_of_type(kind) == Some(*format)).map(|(.., said)| said);
    Ok(AskedFormat { format: *format, by: FormatBy::Query, parameters: parameters.unwrap_or_default() })
}

fn format_of_type(kind: &str) -> Option<Format> {
    Format::TYPES.iter().find(|(name, _)| kind.eq_ignore_ascii_case(name)).map(|(_, format)| *format)
}

/// The format of the weightiest type that is known; of equal ones the first. Pages are a type like the others.
fn format_of_accept(accept: &str) -> AskedFormat {
    let mut best = (0, AskedFormat::NONE);
    for (kind, weight, parameters) in accept_types(accept).filter(|(_, weight, _)| *weight > 0) {
        let found = match format_of_type(kind) {
            Some(format) => AskedFormat { format, by: FormatBy::Accept, parameters },
            None if kind.eq_ignore_ascii_case("text/html") => AskedFormat::NONE,
            None => continue,
        };
        if weight > best.0 {
            best = (weight, found);
        }
    }
    best.1
}

/// Media types of an Accept header with their weights in thousandths, and their parameters but for the weight.
fn accept_types(accept: &str) -> impl Iterator<Item = (&str, u16, String)> {
    accept.split(',').map(|part| {
        let mut pieces = part.split(';').map(str::trim);
        let kind = pieces.next().unwrap_or_default();
        let mut weight = 1000;
        let mut parameters = Vec::new();
        for piece in pieces {
            match piece.strip_prefix("q=").or_else(|| piece.strip_prefix("Q=")) {
                Some(q) => weight = q.parse::<f32>().map_or(1000, |q| (q.clamp(0.0, 1.0) * 1000.0) as u16),
                None => parameters.push(piece),
            }
        }
        (kind, weight, parameters.join("; "))
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

/// A header that is a list: several lines are one (RFC 9110 5.3).
pub(super) fn whole_list(headers: &HeaderMap, name: HeaderName) -> Option<Cow<'_, str>> {
    let mut lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut joined = Cow::Borrowed(lines.next()?);
    for line in lines {
        joined.to_mut().push_str(", ");
        joined.to_mut().push_str(line);
    }
    Some(joined)
}

fn list_has(list: &str, word: &str) -> bool {
    list.split(',').any(|item| item.trim().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    const LINK: &str = "AAB1QJWQV0y2ynDXnJvOt0uh-THq-pJj2_layW5fjPXhTQ";

    fn ask(uri: &str, headers: &[(&str, &str)]) -> Result<Ask, Refusal> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ask::read(&request.body(()).expect("a request").into_parts().0, Trust::Forwarded)
    }

    #[test]
    fn targets() {
        let sky = ask(&format!("/{LINK}/dir/a.txt"), &[]).expect("good");
        assert_eq!((sky.route, sky.reader), (Route::Skylink, Reader::Json));
        assert_eq!(sky.sky_path(&sky.path).expect("parses").path_text, "/dir/a.txt");

        for (uri, expect) in [
            ("/", Route::Landing),
            ("/ipns/example.com", Route::Ipns),
            ("/favicon.ico", Route::Unknown),
            ("/ipfs", Route::Unknown),
            ("/skynet/stats", Route::Portal),
            ("/skynet", Route::Portal),
            ("/skynets", Route::Unknown),
            ("/hnsres/name", Route::Portal),
            ("/health-check", Route::Portal),
            ("/routing/v1/ipns/k51", Route::Routing),
            ("/routing", Route::Unknown),
        ] {
            assert_eq!(ask(uri, &[]).expect("parses").route, expect, "{uri}");
        }
    }

    #[test]
    fn a_bad_skylink_is_refused() {
        let ask = ask(&format!("/{}", "_".repeat(46)), &[]).expect("a head");
        let refusal = ask.sky_path(&ask.path).expect_err("refused");
        assert_eq!(refusal.row().status, 400);
    }

    #[test]
    fn other_methods_are_refused() {
        for (method, uri, taken) in [
            ("POST", "/", false),
            ("PUT", "/ipns/example.com", false),
            ("PUT", "/routing/v1/ipns/k51", true),
            ("DELETE", "/routing/v1/ipns/k51", false),
        ] {
            let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
            let read = Ask::read(&request.into_parts().0, Trust::Itself);
            assert_eq!(!matches!(read, Err(Refusal::Method)), taken, "{method} {uri}");
        }
    }

    #[test]
    fn formats() {
        use Format::*;
        let rows = [
            ("/", "", Deserialized, FormatBy::Nothing, ""),
            ("/?format=raw", "", Raw, FormatBy::Query, ""),
            ("/", "application/vnd.ipld.raw", Raw, FormatBy::Accept, ""),
            ("/?format=raw", "application/vnd.ipld.car", Raw, FormatBy::Query, ""),
            ("/?format=car", "application/vnd.ipld.raw", Car, FormatBy::Query, ""),
            ("/?format=car", "text/html, application/vnd.ipld.car; dups=y;q=0.1", Car, FormatBy::Query, "dups=y"),
            ("/", "application/vnd.ipld.car;q=0.5, application/vnd.ipld.raw", Raw, FormatBy::Accept, ""),
            (
                "/",
                "text/html;q=0.8, application/vnd.ipld.car; version=1;q=0.9; order=dfs",
                Car,
                FormatBy::Accept,
                "version=1; order=dfs",
            ),
            ("/", "text/html, application/vnd.ipld.car;q=0.9", Deserialized, FormatBy::Nothing, ""),
            ("/", "text/html,application/xhtml+xml,*/*;q=0.8", Deserialized, FormatBy::Nothing, ""),
            ("/", "application/json", Json, FormatBy::Accept, ""),
            ("/", "application/vnd.ipld.raw;q=0", Deserialized, FormatBy::Nothing, ""),
        ];
        for (uri, accept, expect, expect_by, parameters) in rows {
            let uri = format!("/ipfs/{CID}{uri}");
            let found = ask(&uri, &[("accept", accept)]).expect("parses");
            let seen = (found.format, found.format_by, found.format_parameters.as_str());
            assert_eq!(seen, (expect, expect_by, parameters), "{uri} {accept}");
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
