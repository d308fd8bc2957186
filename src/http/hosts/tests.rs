//! The routing order as one table: names that fit two forms at once, then how a host is told (`design.md` 10).

use std::time::SystemTime;

use super::*;
use crate::address::{Cid, SitePath, Skylink, TrailingSlash};
use crate::http::services::HttpOptions;
use crate::http::testing::{Memory, TestServer, start_options};
use crate::names::{Pointee, Resolved};

/// What a host serves, told by three requests.
///
/// | word | request | answer |
/// |---|---|---|
/// | `path` | `/ipfs/{root}/a.txt` | the file |
/// | `to:HOST` | the same | a redirect to `{root}.ipfs.HOST` |
/// | `content:PATH` | `/a.txt` | the file, of that content path |
/// | `portal` | `/{skylink}` | the skyfile |
/// | `moved` | all | another form of the same host |
/// | `421` | all | not served here |
struct Probe {
    root: Cid,
    link: Skylink,
    server: TestServer,
}

impl Probe {
    async fn what(&self, before: &str, headers: &[&str]) -> String {
        let mut words = Vec::new();
        let answer = self.server.get(&format!("{before}/ipfs/{}/a.txt", self.root), headers).await;
        let location = answer.header("location").unwrap_or_default();
        let own = format!("{}.ipfs.", self.root);
        match (answer.status, location.split_once("://").map(|(_, rest)| rest)) {
            (200, _) if answer.text() == "text" => words.push("path".to_owned()),
            (301, Some(to)) if to.starts_with(&own) && to.ends_with("/ipfs/a.txt") => return "moved".to_owned(),
            (301, Some(to)) if to.starts_with(&own) && to.ends_with("/a.txt") => {
                let scheme = if location.starts_with("https") { "https:" } else { "" };
                words.push(format!("to:{scheme}{}", to[own.len()..].trim_end_matches("/a.txt")));
            }
            (301, _) => return "moved".to_owned(),
            (421, _) => return "421".to_owned(),
            _ => {}
        }
        let answer = self.server.get(&format!("{before}/a.txt"), headers).await;
        if answer.status == 200 {
            words.push(format!("content:{}", answer.header("x-ipfs-path").unwrap_or_default().trim_end_matches("/a.txt")));
        }
        let answer = self.server.get(&format!("{before}/{}", self.link), headers).await;
        if (answer.status, answer.text().as_str()) == (200, "a skyfile") {
            words.push("portal".to_owned());
        }
        words.join(" ")
    }
}

fn domain(name: &str, subdomains: Subdomains) -> GatewayDomain {
    let paths = vec![Namespace::Ipfs, Namespace::Ipns];
    GatewayDomain { name: name.to_owned(), paths, subdomains, dnslink_labels: DnslinkLabels::Inlined }
}

/// A root, and a second one whose label names of the configuration begin with.
async fn probe(trusted_proxies: Option<Vec<IpAddr>>) -> (Probe, Cid) {
    let mut memory = Memory::default();
    let (text, other) = (memory.dag.raw(b"text"), memory.dag.raw(b"other"));
    let root = memory.dag.dir(&[("a.txt", text)]);
    let second = memory.dag.dir(&[("a.txt", text), ("b.txt", other)]);
    let link = memory.add_skyfile("name", &[("name", "text/plain", b"a skyfile")]);
    for name in [
        "site.example",
        "www.gw.example",
        "linked.example",
        "all.example",
        "portal-linked.example",
        "10.1.2.3",
        "intranet",
        &format!("{second}.ipfs.linked-label.example"),
        &format!("{second}.ipfs.gw.example"),
    ] {
        let pointee = Pointee::Ipfs { root, path: SitePath::root(TrailingSlash::No) };
        let resolved = Resolved { pointee, names: Vec::new(), ttl: None, found_at: SystemTime::UNIX_EPOCH };
        memory.names.insert(name.to_owned(), resolved);
    }
    let served = |name: &str| domain(name, Subdomains::Served);
    let mut domains = vec![domain("path.example", Subdomains::None)];
    domains.extend(["gw.example", "both.example", "linked.example", "all.example", "b.ipfs.gw.example"].map(served));
    domains.push(served(&format!("{root}.ipfs.gw.example")));
    domains.extend(HostRules::default().domains);
    let portals = ["portal.example", "both.example", "all.example", "portal-linked.example"].map(str::to_owned);
    let hosts = HostRules {
        domains,
        portal_domains: portals.into_iter().chain([format!("{second}.ipfs.both.example")]).collect(),
        dnslink: DnslinkHosts::Any,
        trusted_proxies,
    };
    let server = start_options(memory, HttpOptions { hosts, ..HttpOptions::default() }).await;
    (Probe { root, link, server }, second)
}

#[tokio::test]
async fn a_name_that_fits_two_forms() {
    let (probe, second) = probe(None).await;
    let root = probe.root;
    // What it is, the host, and what is served.
    #[rustfmt::skip]
    let rows: Vec<(&str, String, String)> = vec![
        ("gateway domain", "gw.example".into(), "to:gw.example".into()),
        ("  with a port", "gw.example:8080".into(), "to:gw.example:8080".into()),
        ("  in capitals, with a dot", "GW.Example.".into(), "to:gw.example".into()),
        ("  without subdomains", "path.example".into(), "path".into()),
        ("  and portal domain", "both.example".into(), "to:both.example portal".into()),
        ("  and DNSLink", "linked.example".into(), "to:linked.example content:/ipns/linked.example".into()),
        ("  and portal domain and DNSLink: the portal's origin has no other content", "all.example".into(), "to:all.example portal".into()),
        ("  and subdomain form of another", format!("{root}.ipfs.gw.example"), format!("to:{root}.ipfs.gw.example")),
        ("subdomain form", format!("{second}.ipfs.both.example:81"), format!("content:/ipfs/{second}")),
        ("  and portal domain", format!("{second}.ipfs.both.example"), format!("content:/ipfs/{second}")),
        ("  and DNSLink", format!("{second}.ipfs.gw.example"), format!("content:/ipfs/{second}")),
        ("  in capitals", format!("{}.ipfs.gw.example", second.to_string().to_uppercase()), "moved".into()),
        ("  with a dot", format!("{second}.ipfs.gw.example."), format!("content:/ipfs/{second}")),
        ("  of two domains: the longer", format!("{second}.ipfs.b.ipfs.gw.example"), format!("content:/ipfs/{second}")),
        ("  of a domain without subdomains", format!("{second}.ipfs.path.example"), "path".into()),
        ("  of an unknown domain", format!("{second}.ipfs.unknown.example"), "path".into()),
        ("  of an unknown domain, and DNSLink", format!("{second}.ipfs.linked-label.example"), format!("content:/ipns/{second}.ipfs.linked-label.example")),
        ("  of a DNSLink, inlined", "site-example.ipns.gw.example".into(), "content:/ipns/site.example".into()),
        ("  of a DNSLink, dotted", "site.example.ipns.gw.example".into(), "content:/ipns/site.example".into()),
        ("portal domain", "portal.example".into(), "path portal".into()),
        ("  and DNSLink: it is not looked up", "portal-linked.example".into(), "path portal".into()),
        ("  below one", "www.portal.example".into(), "path".into()),
        ("DNSLink", "site.example".into(), "content:/ipns/site.example".into()),
        ("  in capitals, with dot and port", "Site.Example.:81".into(), "content:/ipns/site.example".into()),
        ("  below a gateway domain", "www.gw.example".into(), "content:/ipns/www.gw.example".into()),
        ("address", "10.1.2.3".into(), "path".into()),
        ("  of version 6", "[2001:db8::1]:80".into(), "path".into()),
        ("  of this machine", "127.0.0.1:8080".into(), "path portal".into()),
        ("  the same of version 6", "[::1]".into(), "path portal".into()),
        ("localhost", "localhost".into(), "to:localhost portal".into()),
        ("  below it", format!("{second}.ipfs.localhost:80"), format!("content:/ipfs/{second}")),
        ("unknown", "nobody.example".into(), "path".into()),
        ("single label", "intranet".into(), "path".into()),
    ];
    assert_eq!(probe.what("", &["Host:"]).await, "", "no Host at all is refused (RFC 9112 3.2)");
    let mut wrong = Vec::new();
    for (what, host, expect) in rows {
        let found = probe.what("", &[&format!("Host: {host}")]).await;
        if found != expect {
            wrong.push(format!("{what}: {host} gives {found:?} and not {expect:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where the host is told: by the request line, by Host, by a proxy in front that is trusted or not.
#[tokio::test]
async fn how_the_host_is_told() {
    let (trusting, _) = probe(None).await;
    let (wary, _) = probe(Some(Vec::new())).await;
    let site = "content:/ipns/site.example";
    #[rustfmt::skip]
    let rows: &[(&str, &[&str], &str, &str)] = &[
        ("", &["Host: site.example"], site, site),
        ("", &["Host: gw.example", "X-Forwarded-Host: site.example"], site, "to:gw.example"),
        ("", &["Host: gw.example", "X-Forwarded-Host: site.example:81, gw.example"], site, "to:gw.example"),
        ("", &["Host: site.example", "X-Forwarded-Host: "], site, site),
        ("", &["Host: site.example", "X-Forwarded-Host: 10.1.2.3"], "path", site),
        ("", &["Host: gw.example", "X-Forwarded-Proto: https"], "to:https:gw.example", "to:gw.example"),
        ("", &["Host: gw.example", "X-Forwarded-Proto: http"], "to:gw.example", "to:gw.example"),
        // Whoever takes this gateway for a proxy is served its own names.
        ("http://site.example", &["Host: gw.example"], site, site),
        ("http://SITE.example.:80", &["Host: gw.example"], site, site),
        ("http://nobody.example", &["Host: gw.example"], "421", "421"),
        ("http://nobody.example", &["Host: gw.example", "X-Forwarded-Host: site.example"], site, "421"),
        ("http://gw.example", &["Host: site.example"], "to:gw.example", "to:gw.example"),
    ];
    let mut wrong = Vec::new();
    for (before, headers, trusted, untrusted) in rows {
        for (name, probe, expect) in [("trusted", &trusting, trusted), ("untrusted", &wary, untrusted)] {
            let found = probe.what(before, headers).await;
            if found != *expect {
                wrong.push(format!("{name}: {before} {headers:?} gives {found:?} and not {expect:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for bad in ["Host: a b", "Host: x_y.example:port", "Host: ..", "Host: [::1", "Host: http://gw.example"] {
        assert_eq!(trusting.server.get("/", &[bad]).await.status, 400, "{bad}");
    }
}
