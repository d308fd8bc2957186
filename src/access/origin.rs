//! Pure rules over where a request says it comes from (`design.md` 10).
//!
//! A browser on this machine runs pages of strangers, and those pages can send requests to loopback addresses. What
//! they cannot do is forge `Host` and `Origin`: the browser writes both. A page that rebinds its own name to
//! 127.0.0.1 shows in `Host`; a page of another site shows in `Origin`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Did the TCP connection come from this machine?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Loopback,
    Remote,
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Peer {
        // An IPv6 socket reports IPv4 peers in their mapped form.
        if address.to_canonical().is_loopback() { Peer::Loopback } else { Peer::Remote }
    }
}

/// Does the request carry any header a proxy adds? Then its peer is the proxy, not the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    Absent,
    Present,
}

/// The facts of a request that the rules look at. `host` and `origin` are the headers' texts.
#[derive(Clone, Copy, Debug)]
pub struct RequestSource<'a> {
    pub peer: Peer,
    pub host: Option<&'a str>,
    pub origin: Option<&'a str>,
    pub forwarding: Forwarding,
}

/// Why a write without a key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteRefused {
    #[error("writes from another machine need an API key")]
    RemotePeer,
    #[error("writes under this host name need an API key")]
    ForeignHost,
    #[error("writes through a proxy need an API key")]
    Forwarded,
    #[error("writes from a web page of another origin need an API key")]
    ForeignOrigin,
}

/// Why the admin listener refuses a request before it looks at any key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminRefused {
    #[error(
        "the admin address is reached by a name it does not know: use its IP address, localhost, or the configured admin address"
    )]
    ForeignHost,
    #[error("web pages of other origins may not use the admin address")]
    ForeignOrigin,
}

/// Is `name` (lower case or not) a header that proxies add for the client they forward?
pub fn is_forwarding_header(name: &str) -> bool {
    const NAMES: [&str; 7] =
        ["forwarded", "via", "x-real-ip", "x-client-ip", "x-original-host", "true-client-ip", "cf-connecting-ip"];
    let starts = name.get(..11).is_some_and(|start| start.eq_ignore_ascii_case("x-forwarded"));
    starts || NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// May this request write without a key? Only from this machine, under a loopback name, through no proxy, and not
/// from a page of another origin.
pub fn loopback_write_allowed(source: &RequestSource<'_>) -> Result<(), WriteRefused> {
    if source.peer == Peer::Remote {
        return Err(WriteRefused::RemotePeer);
    }
    if source.forwarding == Forwarding::Present {
        return Err(WriteRefused::Forwarded);
    }
    if !source.host.is_some_and(is_loopback_host) {
        return Err(WriteRefused::ForeignHost);
    }
    match source.origin {
        None => Ok(()),
        Some(origin) if is_loopback_origin(origin) => Ok(()),
        Some(_) => Err(WriteRefused::ForeignOrigin),
    }
}

/// May this request look at the admin listener at all? `admin_hosts` are the configured names and addresses of it,
/// each with or without port.
pub fn admin_request_allowed(host: Option<&str>, origin: Option<&str>, admin_hosts: &[String]) -> Result<(), AdminRefused> {
    let Some(host) = host else { return Err(AdminRefused::ForeignHost) };
    let configured = admin_hosts.iter().any(|known| {
        known.eq_ignore_ascii_case(host) || split_host(known).zip(split_host(host)).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
    });
    if !configured && !is_loopback_host(host) {
        return Err(AdminRefused::ForeignHost);
    }
    match origin {
        None => Ok(()),
        Some(origin) if same_origin(origin, host) => Ok(()),
        Some(_) => Err(AdminRefused::ForeignOrigin),
    }
}

/// Is `origin` the origin of the page that `host` (with its port) itself serves?
pub fn same_origin(origin: &str, host: &str) -> bool {
    origin_authority(origin).is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

/// Is `origin` one of this machine?
pub fn is_loopback_origin(origin: &str) -> bool {
    origin_authority(origin).is_some_and(is_loopback_host)
}

/// `localhost` and loopback addresses, with or without a port. Names below `localhost` do not count: content of
/// strangers is served under them, each as an origin of its own.
pub fn is_loopback_host(host: &str) -> bool {
    let Some(name) = split_host(host) else { return false };
    if name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case("localhost") {
        return true;
    }
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok_and(|ip| IpAddr::V6(ip).to_canonical().is_loopback()),
        None => name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback()),
    }
}

/// The host part of `host[:port]`, brackets kept; `None` when the rest is no port.
fn split_host(host: &str) -> Option<&str> {
    let end_of_name = if host.starts_with('[') { host.find(']')? + 1 } else { host.find(':').unwrap_or(host.len()) };
    let (name, rest) = host.split_at(end_of_name);
    let port_ok = rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (port_ok && !name.is_empty()).then_some(name)
}

/// `host[:port]` of a web origin. `null` and other schemes have none.
fn origin_authority(origin: &str) -> Option<&str> {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))?;
    (!rest.is_empty() && !rest.contains(['/', '@', '?', '#', ' '])).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_without_a_key() {
        use WriteRefused::*;
        #[rustfmt::skip]
        let rows = [
            // peer,          host,                      origin,                          forwarding,          expect
            (Peer::Loopback, Some("127.0.0.1:8080"),    None,                            Forwarding::Absent,  Ok(())),
            (Peer::Loopback, Some("localhost:8080"),    Some("http://localhost:8080"),   Forwarding::Absent,  Ok(())),
            (Peer::Loopback, Some("LOCALHOST"),         Some("http://127.0.0.1:3000"),   Forwarding::Absent,  Ok(())),
            (Peer::Loopback, Some("[::1]:8080"),        Some("http://[::1]:5173"),       Forwarding::Absent,  Ok(())),
            (Peer::Loopback, Some("localhost."),        None,                            Forwarding::Absent,  Ok(())),
            (Peer::Loopback, Some("127.9.9.9"),         Some("https://localhost"),       Forwarding::Absent,  Ok(())),
            (Peer::Remote,   Some("127.0.0.1:8080"),    None,                            Forwarding::Absent,  Err(RemotePeer)),
            (Peer::Loopback, Some("evil.example:8080"), None,                            Forwarding::Absent,  Err(ForeignHost)),
            (Peer::Loopback, Some("127.0.0.1.evil.example"), None,                       Forwarding::Absent,  Err(ForeignHost)),
            (Peer::Loopback, Some("localhost.evil.example"), None,                       Forwarding::Absent,  Err(ForeignHost)),
            (Peer::Loopback, Some("site.localhost"),    None,                            Forwarding::Absent,  Err(ForeignHost)),
            (Peer::Loopback, Some("10.0.0.1"),          None,                            Forwarding::Absent,  Err(ForeignHost)),
            (Peer::Loopback, Some(""),                  None,                            Forwarding::Absent,  Err(ForeignHost)),
            (Peer::Loopback, Some("localhost:http"),    None,                            Forwarding::Absent,  Err(ForeignHost)),
            (Peer::Loopback, None,                      None,                            Forwarding::Absent,  Err(ForeignHost)),
            (Peer::Loopback, Some("localhost"),         None,                            Forwarding::Present, Err(Forwarded)),
            (Peer::Loopback, Some("localhost"),         Some("https://evil.example"),    Forwarding::Absent,  Err(ForeignOrigin)),
            (Peer::Loopback, Some("localhost"),         Some("null"),                    Forwarding::Absent,  Err(ForeignOrigin)),
            (Peer::Loopback, Some("localhost"),         Some("file://"),                 Forwarding::Absent,  Err(ForeignOrigin)),
            (Peer::Loopback, Some("localhost"),         Some("http://a.ipfs.localhost"), Forwarding::Absent,  Err(ForeignOrigin)),
            (Peer::Loopback, Some("localhost"),         Some("http://localhost@evil.example"), Forwarding::Absent, Err(ForeignOrigin)),
            (Peer::Loopback, Some("localhost"),         Some(""),                        Forwarding::Absent,  Err(ForeignOrigin)),
        ];
        for (peer, host, origin, forwarding, expect) in rows {
            let source = RequestSource { peer, host, origin, forwarding };
            assert_eq!(loopback_write_allowed(&source), expect, "{source:?}");
        }
    }

    #[test]
    fn admin_requests() {
        use AdminRefused::*;
        let hosts = ["10.1.2.3:8081".to_owned(), "admin.example".to_owned()];
        #[rustfmt::skip]
        let rows = [
            (Some("127.0.0.1:8081"),     None,                            Ok(())),
            (Some("localhost:8081"),     Some("http://localhost:8081"),   Ok(())),
            (Some("10.1.2.3:8081"),      None,                            Ok(())),
            (Some("admin.example:9000"), Some("https://admin.example:9000"), Ok(())),
            (Some("rebound.example:8081"), None,                          Err(ForeignHost)),
            (Some("10.1.2.4:8081"),      None,                            Err(ForeignHost)),
            (Some("a.localhost:8081"),   None,                            Err(ForeignHost)),
            (None,                       None,                            Err(ForeignHost)),
            // The public listener is another origin than the admin one, though both are on loopback.
            (Some("127.0.0.1:8081"),     Some("http://127.0.0.1:8080"),   Err(ForeignOrigin)),
            (Some("127.0.0.1:8081"),     Some("http://localhost:8081"),   Err(ForeignOrigin)),
            (Some("127.0.0.1:8081"),     Some("null"),                    Err(ForeignOrigin)),
            (Some("127.0.0.1:8081"),     Some("https://evil.example"),    Err(ForeignOrigin)),
        ];
        for (host, origin, expect) in rows {
            assert_eq!(admin_request_allowed(host, origin, &hosts), expect, "{host:?} {origin:?}");
        }
    }

    #[test]
    fn peers_and_proxy_headers() {
        for (text, expect) in [
            ("127.0.0.1", Peer::Loopback),
            ("::1", Peer::Loopback),
            ("::ffff:127.0.0.1", Peer::Loopback),
            ("192.168.0.1", Peer::Remote),
        ] {
            assert_eq!(Peer::from(text.parse::<IpAddr>().expect("an address")), expect);
        }
        for (name, expect) in [
            ("X-Forwarded-For", true),
            ("x-forwarded-proto", true),
            ("forwarded", true),
            ("Via", true),
            ("host", false),
            ("x-forward", false),
        ] {
            assert_eq!(is_forwarding_header(name), expect, "{name}");
        }
    }
}
