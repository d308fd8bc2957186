//! DNSLink through a real DNS server on loopback, whose questions are counted (`ipfs-gateway.md` 4, `users-and-threats.md` 3).

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use compat_tests::content::Content;
use compat_tests::{Gateway, Options, until};
use hickory_server::Server;
use hickory_server::net::runtime::{Time, TokioRuntimeProvider};
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::rdata::{CNAME, SOA, TXT};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordType, RrKey};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, MessageResponseBuilder, ZoneType};
use tokio::net::UdpSocket;

/// A change in DNS is seen after a TTL of two seconds; a busy machine gets more.
const CHANGE_MAX: Duration = Duration::from_secs(30);

type Zone = InMemoryZoneHandler<TokioRuntimeProvider>;

/// Two zones, `test` and `other`, with absences that hold for five minutes.
struct Dns {
    address: SocketAddr,
    test: Arc<Zone>,
    other: Arc<Zone>,
    seen: Seen,
    _server: Server<Counted>,
}

#[derive(Clone, Default)]
struct Seen {
    asked: Arc<Mutex<Vec<String>>>,
    /// Names for which the server fails.
    broken: Arc<Mutex<HashSet<String>>>,
}

impl Seen {
    fn count(&self, name: &str) -> usize {
        self.asked.lock().expect("lock").iter().filter(|asked| *asked == name).count()
    }
}

struct Counted {
    catalog: Catalog,
    seen: Seen,
}

#[async_trait::async_trait]
impl RequestHandler for Counted {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut reply: R) -> ResponseInfo {
        let name = request.request_info().expect("one question").query.name().to_string();
        let name = name.trim_end_matches('.').to_owned();
        let broken = self.seen.broken.lock().expect("lock").contains(&name);
        self.seen.asked.lock().expect("lock").push(name);
        if broken {
            let failed = MessageResponseBuilder::from_message_request(request).error_msg(&request.metadata, ResponseCode::ServFail);
            return reply.send_response(failed).await.expect("sent");
        }
        self.catalog.handle_request::<R, T>(request, reply).await
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.")).expect("a name")
}

fn zone(origin: &str) -> Arc<Zone> {
    let mut zone = Zone::empty(name(origin), ZoneType::Primary, AxfrPolicy::Deny);
    let soa = SOA::new(name("ns.test"), name("who.test"), 1, 300, 300, 300, 300);
    assert!(zone.upsert_mut(Record::from_rdata(name(origin), 300, RData::SOA(soa)), 1));
    Arc::new(zone)
}

impl Dns {
    async fn start() -> Dns {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound");
        let (test, other, seen) = (zone("test"), zone("other"), Seen::default());
        let mut catalog = Catalog::new();
        for (origin, zone) in [("test", &test), ("other", &other)] {
            catalog.upsert(LowerName::new(&name(origin)), vec![zone.clone()]);
        }
        let mut server = Server::new(Counted { catalog, seen: seen.clone() });
        server.register_socket(socket);
        Dns { address, test, other, seen, _server: server }
    }

    async fn txt(&self, zone: &Zone, owner: &str, ttl_s: u32, texts: &[&str]) {
        let key = RrKey::new(LowerName::new(&name(owner)), RecordType::TXT);
        zone.records_mut().await.remove(&key);
        for text in texts {
            let record = Record::from_rdata(name(owner), ttl_s, RData::TXT(TXT::new(vec![(*text).to_owned()])));
            assert!(zone.upsert(record, 1).await, "{owner}");
        }
    }

    async fn cname(&self, owner: &str, ttl_s: u32, to: &str) {
        assert!(self.test.upsert(Record::from_rdata(name(owner), ttl_s, RData::CNAME(CNAME(name(to)))), 1).await, "{owner}");
    }
}

async fn gateway(folder: &tempfile::TempDir, resolver: &str) -> (Gateway, [String; 2]) {
    let config = format!("[names]\nresolver = \"{resolver}\"\n");
    let gateway = Gateway::start_with(&folder.path().join("data"), &Options::config(config));
    let mut roots = Vec::new();
    for text in ["one", "two"] {
        roots.push(gateway.upload(&Content::files_of(text, &[("index.html", text.as_bytes())])).await.cid);
    }
    (gateway, roots.try_into().expect("two"))
}

#[tokio::test]
async fn names_are_followed_and_their_lifetimes_told() {
    let (dns, folder) = (Dns::start().await, tempfile::tempdir().expect("a folder"));
    let (gateway, [one, two]) = gateway(&folder, &dns.address.to_string()).await;
    let link = |root: &str| format!("dnslink=/ipfs/{root}");
    dns.txt(&dns.test, "_dnslink.site.test", 120, &[&link(&one), "v=spf1 -all", "dnslink=/sia/other"]).await;
    dns.txt(&dns.test, "bare.test", 120, &[&link(&one)]).await;
    dns.cname("_dnslink.alias.test", 60, "_dnslink.site.test").await;
    dns.txt(&dns.other, "_dnslink.site.other", 90, &[&link(&two)]).await;
    dns.cname("_dnslink.far.test", 200, "_dnslink.site.other").await;
    dns.txt(&dns.test, "_dnslink.chain.test", 300, &["dnslink=/ipns/far.test"]).await;
    dns.txt(&dns.test, "_dnslink.loop.test", 300, &["dnslink=/ipns/pool.test"]).await;
    dns.txt(&dns.test, "_dnslink.pool.test", 300, &["dnslink=/ipns/loop.test"]).await;
    dns.txt(&dns.test, "_dnslink.odd.test", 300, &["dnslink=/ipfs/nonsense"]).await;
    // Host, status, body, and the lifetime at most.
    for (host, status, body, ttl_s) in [
        ("site.test", 200, "one", Some(120)),
        ("SITE.test.", 200, "one", Some(120)),
        ("alias.test", 200, "one", Some(60)),
        ("far.test", 200, "two", Some(90)),
        ("chain.test", 200, "two", Some(90)),
        ("loop.test", 400, "", None),
        // What makes no sense is skipped: the host is a path gateway like any other.
        ("odd.test", 200, "skygate", None),
    ] {
        let answer = gateway.ask("GET", "/", &[&format!("Host: {host}")]).await;
        assert_eq!(answer.status, status, "{host}: {}", answer.text());
        assert!(answer.text().contains(body), "{host}: {}", answer.text());
        let told = answer.header("cache-control").and_then(|rule| rule.strip_prefix("public, max-age=")?.parse::<u64>().ok());
        // Some seconds may have gone by since it was found.
        assert!(told == ttl_s || told.zip(ttl_s).is_some_and(|(told, ttl)| (ttl - 60..ttl).contains(&told)), "{host}: {told:?}");
    }
    // A name without the label has no DNSLink: its host is a path gateway like any other.
    assert_eq!(gateway.ask("GET", "/index.html", &["Host: bare.test"]).await.status, 404);
    assert_eq!(gateway.ask("GET", &format!("/ipfs/{one}/"), &["Host: bare.test"]).await.text(), "one");
    let asked = dns.seen.asked.lock().expect("lock").clone();
    assert!(asked.iter().all(|name| name.starts_with("_dnslink.")), "{asked:?}");
    for name in ["_dnslink.site.test", "_dnslink.bare.test", "_dnslink.loop.test"] {
        assert_eq!(dns.seen.count(name), 1, "{name}: {asked:?}");
    }
}

#[tokio::test]
async fn a_change_is_seen_when_the_old_answer_has_run_out() {
    let (dns, folder) = (Dns::start().await, tempfile::tempdir().expect("a folder"));
    let (gateway, [one, two]) = gateway(&folder, &dns.address.to_string()).await;
    dns.txt(&dns.test, "_dnslink.site.test", 2, &[&format!("dnslink=/ipfs/{one}")]).await;
    assert_eq!(gateway.ask("GET", "/", &["Host: site.test"]).await.text(), "one");
    dns.txt(&dns.test, "_dnslink.site.test", 2, &[&format!("dnslink=/ipfs/{two}")]).await;
    let shows = async |text: &str| {
        until(&format!("the site shows {text}"), CHANGE_MAX, async || {
            let answer = gateway.ask("GET", "/", &["Host: site.test"]).await;
            if answer.text() == text { Ok(()) } else { Err(answer.text()) }
        })
        .await;
    };
    shows("two").await;
    // While the server fails, the last good answer stands in; a failure is never an absence.
    dns.seen.broken.lock().expect("lock").insert("_dnslink.site.test".to_owned());
    let before = dns.seen.count("_dnslink.site.test");
    until("it was asked again, and has failed", CHANGE_MAX, async || {
        let answer = gateway.ask("GET", "/", &["Host: site.test"]).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "two"));
        if dns.seen.count("_dnslink.site.test") > before { Ok(()) } else { Err(String::new()) }
    })
    .await;
}

#[tokio::test]
async fn a_failure_is_no_absence() {
    let (dns, folder) = (Dns::start().await, tempfile::tempdir().expect("a folder"));
    let (gateway, [one, _]) = gateway(&folder, &dns.address.to_string()).await;
    dns.txt(&dns.test, "_dnslink.late.test", 60, &[&format!("dnslink=/ipfs/{one}")]).await;
    dns.seen.broken.lock().expect("lock").insert("_dnslink.late.test".to_owned());
    for target in ["/", "/index.html", "/ipns/late.test/"] {
        let host = if target.starts_with("/ipns") { "" } else { "Host: late.test" };
        let answer = gateway.ask("GET", target, &[host]).await;
        assert!(answer.status >= 500, "{target}: {}", answer.status);
        assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"), "{target}");
        assert!(answer.header("retry-after").is_some(), "{target}");
    }
    dns.seen.broken.lock().expect("lock").clear();
    until("it is found once the server works", CHANGE_MAX, async || {
        let answer = gateway.ask("GET", "/", &["Host: late.test"]).await;
        if answer.text() == "one" { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

/// Whoever sends any Host at all must not make a flood of questions.
#[tokio::test]
async fn an_unknown_host_costs_one_question() {
    let (dns, folder) = (Dns::start().await, tempfile::tempdir().expect("a folder"));
    let (gateway, [one, _]) = gateway(&folder, &dns.address.to_string()).await;
    let path = format!("/ipfs/{one}/");
    let asks = (0..40).map(|number| {
        let (gateway, path) = (&gateway, &path);
        async move {
            let target = if number % 2 == 0 { path.as_str() } else { "/nothing" };
            gateway.ask("GET", target, &["Host: nobody.test"]).await.status
        }
    });
    let statuses = futures::future::join_all(asks).await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 20, "{statuses:?}");
    assert_eq!(dns.seen.count("_dnslink.nobody.test"), 1);
    // Addresses and single labels are never looked up.
    for host in ["10.1.2.3", "[2001:db8::1]:80", "intranet", "localhost"] {
        gateway.ask("GET", "/nothing", &[&format!("Host: {host}")]).await;
    }
    let asked = dns.seen.asked.lock().expect("lock").clone();
    assert_eq!(asked, ["_dnslink.nobody.test"]);
}

#[tokio::test]
async fn offline_nobody_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let (gateway, [one, _]) = gateway(&folder, "none").await;
    for (target, host, status) in
        [("/".to_owned(), "site.test", 200), (format!("/ipfs/{one}/"), "site.test", 200), ("/ipns/site.test/".to_owned(), "x", 500)]
    {
        let answer = gateway.ask("GET", &target, &[&format!("Host: {host}")]).await;
        assert_eq!(answer.status, status, "{target} at {host}: {}", answer.text());
    }
}
