//! Which surface a Host belongs to, and where the content path of a request stands (`design.md` 10, "Routing order").
//!
//! The order: configured gateway domains, their subdomain forms, portal domains, a skylink before one of them or before
//! `localhost`, then DNSLink for any other name, else path gateway. IP addresses are path gateways and never looked up.
//! Portal paths are served beside, on portal domains and loopback names only, never on an origin of content.

use std::net::IpAddr;

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::{Method, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::access::is_loopback_host;
use crate::address::domain::{HostKind, HostName, LABEL_BYTES_MAX, LabelTooLong, inline_name, label_of_cid, uninline_name};
use crate::address::{Address, Skylink, parse_cid};
use crate::names::IpnsName;

use super::ask::{Ask, Namespace, Place, Route, Scheme, Trust};
use super::refusal::Refusal;
use super::reply::{Reply, made_here};
use super::services::Services;
use super::skynet::handshake;

/// A portal whether it is configured or not: browsers resolve it, and all names below it, by themselves.
const LOOPBACK_PORTAL: &str = "localhost";
/// What may not stand in a query.
const IN_QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'#');

/// A name that this gateway serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayDomain {
    /// Lower case.
    pub name: String,
    /// The namespaces it serves.
    pub paths: Vec<Namespace>,
    pub subdomains: Subdomains,
    pub dnslink_labels: DnslinkLabels,
}

/// Has each root an origin of its own below the domain?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subdomains {
    Served,
    /// A path gateway.
    None,
}

/// How names with a DNSLink stand below the domain when the request did not come by HTTPS, whose certificates hold for
/// one label only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnslinkLabels {
    /// In one label: `en-example-org.ipns.gateway`.
    Inlined,
    /// As they are: `en.example.org.ipns.gateway`.
    Dotted,
}

/// All that is configured about hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRules {
    pub domains: Vec<GatewayDomain>,
    /// Lower case.
    pub portal_domains: Vec<String>,
    /// Names that nobody configured are looked up.
    pub dnslink: DnslinkHosts,
    /// `None`: loopback addresses.
    pub trusted_proxies: Option<Vec<IpAddr>>,
}

/// Are hosts that are not configured answered by their DNSLink?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnslinkHosts {
    Any,
    None,
}

impl Default for HostRules {
    /// `localhost` with subdomains, which browsers resolve by themselves; DNSLink for all other names.
    fn default() -> HostRules {
        let localhost = GatewayDomain {
            name: "localhost".to_owned(),
            paths: vec![Namespace::Ipfs, Namespace::Ipns],
            subdomains: Subdomains::Served,
            dnslink_labels: DnslinkLabels::Dotted,
        };
        HostRules { domains: vec![localhost], portal_domains: Vec::new(), dnslink: DnslinkHosts::Any, trusted_proxies: None }
    }
}

/// What a Host is, told without asking anybody.
#[derive(Debug, PartialEq, Eq)]
pub enum HostRoute<'a> {
    /// An IP address, or no host at all.
    PathGateway,
    Domain(&'a GatewayDomain),
    Subdomain {
        domain: &'a GatewayDomain,
        namespace: Namespace,
        /// As written, capitals kept.
        label: String,
    },
    Portal,
    /// `{name}.hns.{portal}`: an origin for each Handshake name.
    Handshake {
        portal: &'a str,
        name: String,
    },
    /// `{skylink}.{portal}`: an origin for each skylink.
    Skylink {
        portal: &'a str,
        /// As written.
        label: String,
    },
    /// A name that nobody configured: DNSLink if it has one.
    Other,
}

impl HostRules {
    /// The first that fits, in the order of the module.
    pub fn route(&self, host: Option<&HostName>) -> HostRoute<'_> {
        let Some(host) = host.filter(|host| host.kind == HostKind::Name) else { return HostRoute::PathGateway };
        if let Some(domain) = self.domains.iter().find(|domain| domain.name == host.name) {
            return HostRoute::Domain(domain);
        }
        // The longest that fits: one domain may lie below another.
        let below = self.domains.iter().filter(|domain| domain.subdomains == Subdomains::Served);
        let found = below.filter_map(|domain| split_label(host, domain)).max_by_key(|(domain, ..)| domain.name.len());
        if let Some((domain, namespace, label)) = found {
            return HostRoute::Subdomain { domain, namespace, label };
        }
        if self.portal_domains.contains(&host.name) {
            return HostRoute::Portal;
        }
        let mut portals = self.portal_domains.iter().map(String::as_str).chain([LOOPBACK_PORTAL]);
        if let Some((portal, name)) = portals.clone().find_map(|portal| Some((portal, split_handshake(host, portal)?))) {
            return HostRoute::Handshake { portal, name };
        }
        match portals.find_map(|portal| Some((portal, split_skylink(host, portal)?))) {
            Some((portal, label)) => HostRoute::Skylink { portal, label },
            None => HostRoute::Other,
        }
    }

    /// Are the forwarding headers of this peer believed?
    pub fn trust(&self, peer: IpAddr) -> Trust {
        // A listener for both versions sees addresses of version 4 as such of version 6.
        let peer = peer.to_canonical();
        let trusted = self.trusted_proxies.as_ref().map_or(peer.is_loopback(), |these| these.contains(&peer));
        if trusted { Trust::Forwarded } else { Trust::Itself }
    }

    /// May `/{skylink}` be asked for under this host?
    fn is_portal(&self, ask: &Ask) -> bool {
        let name = ask.host.as_deref().and_then(HostName::parse).map(|host| host.name);
        name.is_none_or(|name| self.portal_domains.contains(&name)) || ask.host.as_deref().is_none_or(is_loopback_host)
    }
}

/// `{label}.{ipfs|ipns}.{domain}`.
fn split_label<'a>(host: &HostName, domain: &'a GatewayDomain) -> Option<(&'a GatewayDomain, Namespace, String)> {
    let above = host.name.strip_suffix(domain.name.as_str())?.strip_suffix('.')?;
    let (label, namespace) = match above.rsplit_once('.')? {
        (label, "ipfs") => (label, Namespace::Ipfs),
        (label, "ipns") => (label, Namespace::Ipns),
        _ => return None,
    };
    Some((domain, namespace, host.written.get(..label.len())?.to_owned()))
}

/// `{skylink}.{portal}`, of which only base32 can be: capitals count in the other form.
fn split_skylink(host: &HostName, portal: &str) -> Option<String> {
    let label = host.name.strip_suffix(portal)?.strip_suffix('.')?;
    Skylink::is_base32(label).then(|| host.written[..label.len()].to_owned())
}

/// `{name}.hns.{portal}`.
fn split_handshake(host: &HostName, portal: &str) -> Option<String> {
    let name = host.name.strip_suffix(portal)?.strip_suffix(".hns.")?;
    (!name.is_empty() && !name.contains('.')).then(|| name.to_owned())
}

/// Is this authority a name that content is served under here? Of other names only those with a DNSLink are.
pub async fn is_served(services: &Services, authority: &str) -> Result<bool, Refusal> {
    let rules = &services.options.hosts;
    let host = HostName::parse(authority).ok_or(Refusal::BadHeader("Host"))?;
    match rules.route(Some(&host)) {
        HostRoute::Domain(_)
        | HostRoute::Subdomain { .. }
        | HostRoute::Portal
        | HostRoute::Skylink { .. }
        | HostRoute::Handshake { .. } => Ok(true),
        // An address is some machine; whether it is this one cannot be told from the address.
        HostRoute::PathGateway => Ok(is_loopback_host(authority)),
        HostRoute::Other => Ok(rules.dnslink == DnslinkHosts::Any && services.names.has_dnslink(&host.name).await?),
    }
}

/// Finds out where the content path of a request stands, and notes it. Some requests end here: with a redirect to an
/// origin of their own, or to the one form of an address.
pub async fn arrive(services: &Services, ask: &mut Ask, headers: &HeaderMap) -> Result<Option<Reply>, Refusal> {
    let rules = &services.options.hosts;
    let host = ask.host.as_deref().and_then(HostName::parse);
    if ask.host.is_some() && host.is_none() {
        return Err(Refusal::BadHeader("Host"));
    }
    match rules.route(host.as_ref()) {
        HostRoute::PathGateway | HostRoute::Portal => {}
        HostRoute::Domain(domain) => {
            let host = host.expect("a domain was found by its name");
            return at_domain(services, ask, headers, &host, domain).await;
        }
        HostRoute::Subdomain { domain, namespace, label } => {
            let host = host.expect("a label was found in its name");
            return at_subdomain(ask, headers, &host, domain, Label { namespace, label: &label });
        }
        HostRoute::Handshake { portal, name } => {
            let host = host.expect("a label was found in its name");
            // From here on it is the host of the skylink that the name leads to now; a refusal is told as that of one, too.
            ask.set_sky_route()?;
            let link = handshake::link_of(services, &name).await?;
            ask.place = Place::Skylink { link, portal: host.with_port(portal) };
            return Ok(None);
        }
        HostRoute::Skylink { portal, label } => {
            let host = host.expect("a label was found in its name");
            return at_skylink(ask, &host, portal, &label);
        }
        HostRoute::Other => {
            let host = host.expect("it has a name");
            if rules.dnslink == DnslinkHosts::Any && services.names.has_dnslink(&host.name).await? {
                at_dnslink(ask, headers, &host)?;
                return Ok(None);
            }
            if ask.absolute {
                // Somebody takes this gateway for a proxy to everywhere.
                return Err(Refusal::NotServedHere);
            }
        }
    }
    if of_portal(ask.route) && !rules.is_portal(ask) {
        return Err(Refusal::NoRoute);
    }
    one_form(ask)
}

/// Answered on portal domains only.
fn of_portal(route: Route) -> bool {
    matches!(route, Route::Skylink | Route::Portal)
}

fn at_dnslink(ask: &mut Ask, headers: &HeaderMap, host: &HostName) -> Result<(), Refusal> {
    ask.place = Place::DnsLink { host: host.with_port(&host.name) };
    ask.set_route(Route::Ipns, headers)
}

async fn at_domain(
    services: &Services,
    ask: &mut Ask,
    headers: &HeaderMap,
    host: &HostName,
    domain: &GatewayDomain,
) -> Result<Option<Reply>, Refusal> {
    let namespace = match ask.route {
        Route::Ipfs => Namespace::Ipfs,
        Route::Ipns => Namespace::Ipns,
        Route::Landing | Route::Unknown | Route::Routing | Route::Skylink | Route::Portal => {
            // A portal's origin has no site of its own beside its API.
            if services.options.hosts.is_portal(ask) {
                return Ok(None);
            }
            if domain.name.contains('.') && services.names.has_dnslink(&host.name).await? {
                at_dnslink(ask, headers, host)?;
            } else if of_portal(ask.route) {
                return Err(Refusal::NoRoute);
            }
            return Ok(None);
        }
    };
    if !domain.paths.contains(&namespace) {
        return Err(Refusal::NoRoute);
    }
    if let Some(reply) = one_form(ask)? {
        return Ok(Some(reply));
    }
    // A preflight may not be redirected.
    if domain.subdomains == Subdomains::None || ask.method == Method::OPTIONS {
        return Ok(None);
    }
    let label = label_of(ask, domain, namespace)?;
    let rest = ask.path.splitn(4, '/').nth(3).unwrap_or_default();
    let gateway = host.with_port(&domain.name);
    let to = format!("{}://{label}.{}.{gateway}/{rest}", ask.scheme.as_str(), namespace.as_str());
    Ok(Some(moved(ask, &to)))
}

/// The label of the root in the path. Only that is looked at before the redirect.
fn label_of(ask: &Ask, domain: &GatewayDomain, namespace: Namespace) -> Result<String, Refusal> {
    let root = ask.path.split('/').nth(2).unwrap_or_default();
    match namespace {
        Namespace::Ipfs => Ok(label_of_cid(&parse_cid(root).map_err(|error| ask.bad_path(error))?)?),
        Namespace::Ipns => match IpnsName::parse(root) {
            Some(key) => fits(key.to_string()),
            None => {
                let name = match Address::parse(&format!("/ipns/{root}")).map_err(|error| ask.bad_path(error))? {
                    Address::Ipns { name, .. } => name.to_ascii_lowercase(),
                    Address::Ipfs { .. } | Address::Skylink { .. } => return Err(Refusal::NoRoute),
                };
                match (ask.scheme, domain.dnslink_labels) {
                    (Scheme::Http, DnslinkLabels::Dotted) => Ok(name),
                    _ => fits(inline_name(&name)),
                }
            }
        },
    }
}

fn fits(label: String) -> Result<String, Refusal> {
    if label.len() <= LABEL_BYTES_MAX { Ok(label) } else { Err(LabelTooLong.into()) }
}

/// What stands before the domain.
struct Label<'a> {
    namespace: Namespace,
    /// As written.
    label: &'a str,
}

fn at_subdomain(
    ask: &mut Ask,
    headers: &HeaderMap,
    host: &HostName,
    domain: &GatewayDomain,
    Label { namespace, label }: Label<'_>,
) -> Result<Option<Reply>, Refusal> {
    if !domain.paths.contains(&namespace) {
        return Err(Refusal::NoRoute);
    }
    let gateway = host.with_port(&domain.name);
    let (usual, root_text) = match namespace {
        Namespace::Ipfs => {
            let cid = parse_cid(label).or_else(|_| parse_cid(&label.to_ascii_lowercase()));
            let cid = cid.map_err(|error| Refusal::BadPath { path: format!("/ipfs/{label}"), error })?;
            let usual = label_of_cid(&cid)?;
            (usual.clone(), usual)
        }
        Namespace::Ipns => match IpnsName::parse(label) {
            Some(key) => {
                let usual = fits(key.to_string())?;
                (usual.clone(), usual)
            }
            None => {
                let label = label.to_ascii_lowercase();
                let name = if label.contains('.') { label } else { uninline_name(&label) };
                // Both forms are one name; browsers write hosts in lower case themselves.
                (String::new(), name)
            }
        },
    };
    if !usual.is_empty() && usual != label && ask.method != Method::OPTIONS {
        let to = format!("{}://{usual}.{}.{gateway}{}", ask.scheme.as_str(), namespace.as_str(), ask.path);
        return Ok(Some(moved(ask, &to)));
    }
    ask.place = Place::Subdomain { namespace, root_text, gateway };
    ask.set_route(if namespace == Namespace::Ipfs { Route::Ipfs } else { Route::Ipns }, headers)?;
    Ok(None)
}

/// Every path of the host lies below the skylink: the portal's own paths do not answer here.
fn at_skylink(ask: &mut Ask, host: &HostName, portal: &str, label: &str) -> Result<Option<Reply>, Refusal> {
    let link = Skylink::parse(label).map_err(|error| Refusal::BadPath { path: format!("/{label}"), error })?;
    let (usual, portal) = (link.base32(), host.with_port(portal));
    // The last character has bits that say nothing. Two spellings would be two origins.
    if !usual.eq_ignore_ascii_case(label) && ask.method != Method::OPTIONS {
        return Ok(Some(moved(ask, &format!("{}://{usual}.{portal}{}", ask.scheme.as_str(), ask.path))));
    }
    ask.place = Place::Skylink { link, portal };
    ask.set_sky_route()?;
    Ok(None)
}

/// Addresses in a form that has a better one: `?uri=ipfs://...`, and `/ipfs/ipfs/...` (`ipfs-gateway.md` 2.1, 2.3).
fn one_form(ask: &Ask) -> Result<Option<Reply>, Refusal> {
    if !matches!(ask.route, Route::Ipfs | Route::Ipns) || ask.method == Method::OPTIONS {
        return Ok(None);
    }
    if matches!(ask.path.as_str(), "/ipfs/" | "/ipns/")
        && let Some(uri) = ask.parameter("uri")
    {
        let bad = || Refusal::BadQuery("uri is an ipfs:// or ipns:// address");
        let (scheme, rest) = uri.split_once("://").ok_or_else(bad)?;
        let namespace = ["ipfs", "ipns"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known)).ok_or_else(bad)?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let path = match Address::parse(&format!("/{namespace}/{rest}")).map_err(|_| bad())? {
            Address::Ipfs { path, .. } | Address::Ipns { path, .. } => path,
            Address::Skylink { .. } => return Err(bad()),
        };
        let root = rest.split('/').next().unwrap_or_default();
        // Decoded as a parameter it may hold what no URI may.
        let query = query.map_or_else(String::new, |query| format!("?{}", utf8_percent_encode(query, IN_QUERY)));
        return Ok(Some(moved_to(ask, &format!("/{namespace}/{root}{}{query}", path.encoded()))));
    }
    for twice in ["/ipfs/ipfs/", "/ipns/ipns/", "/ipfs/ipns/", "/ipns/ipfs/"] {
        if let Some(rest) = ask.path.strip_prefix(twice).filter(|rest| !rest.is_empty()) {
            return Ok(Some(moved(ask, &format!("/{}/{rest}", &twice[6..10]))));
        }
    }
    Ok(None)
}

/// 301, with the query kept.
fn moved(ask: &Ask, to: &str) -> Reply {
    match &ask.query {
        Some(query) => moved_to(ask, &format!("{to}?{query}")),
        None => moved_to(ask, to),
    }
}

fn moved_to(ask: &Ask, to: &str) -> Reply {
    let mut reply = made_here(StatusCode::MOVED_PERMANENTLY, "text/plain; charset=utf-8", &ask.method, format!("{to}\n"));
    if let Ok(value) = HeaderValue::try_from(to) {
        reply.headers_mut().insert(header::LOCATION, value);
    }
    reply
}

#[cfg(test)]
mod tests;
