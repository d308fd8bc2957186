//! TXT records with their lifetimes. The only place that knows DNS.
//!
//! Absence and failure are told apart: NXDOMAIN, and an answer without such records, are absence; everything else (a
//! server that fails or refuses, a time-out, no network) is not known, and asking again may help.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

/// Longest look-up, with its retries and CNAMEs. A visitor waits for it; working resolvers need a tenth of a second.
const LOOK_UP_MAX: Duration = Duration::from_secs(8);
/// One question to one server, before it is asked again or another is.
const QUESTION_MAX: Duration = Duration::from_secs(2);
/// How long an absence holds that comes without a word on its lifetime (a minute is what DNSLink advises for records).
const ABSENCE_DEFAULT: Duration = Duration::from_secs(60);
/// Longest absence that is believed: whoever sets a record up wants to see it the same hour (RFC 2308 5 advises 1-3 h).
const ABSENCE_MAX: Duration = Duration::from_secs(3600);
/// An absence that never holds would make every request a look-up.
const ABSENCE_MIN: Duration = Duration::from_secs(5);

/// The TXT values of a name. Each is its strings, joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxtAnswer {
    pub values: Vec<Vec<u8>>,
    /// Of the shortest-lived record of the answer, CNAMEs on the way counted.
    pub ttl: Duration,
}

/// Why there are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TxtError {
    /// It is known that there are none, for so long.
    #[error("there is no such record")]
    NoRecord { negative_ttl: Duration },
    #[error("{0}")]
    Transient(String),
}

/// Whoever answers for TXT records: the network, or a table in tests.
#[async_trait]
pub trait TxtSource: Send + Sync + 'static {
    /// The TXT records of `name`, a full name without the dot at its end. CNAMEs are followed.
    async fn txt(&self, name: &str) -> Result<TxtAnswer, TxtError>;
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resolver {
    /// The resolvers of the system's `/etc/resolv.conf`.
    #[default]
    System,
    At(SocketAddr),
    /// Nobody: domain names have no records but those of the configuration.
    Nobody,
}

/// DNS over UDP and TCP. It keeps no cache of its own: the room's does, with the lifetimes that it tells.
pub struct DnsResolver {
    resolver: TokioResolver,
}

impl DnsResolver {
    /// `None` if nobody is to be asked.
    pub fn new(which: Resolver) -> Result<Option<DnsResolver>, String> {
        let mut builder = match which {
            Resolver::Nobody => return Ok(None),
            Resolver::At(address) => {
                let at_port = |mut connection: ConnectionConfig| {
                    connection.port = address.port();
                    connection
                };
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(at_port);
                let server = NameServerConfig::new(address.ip(), true, connections.into());
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
            Resolver::System => {
                TokioResolver::builder_tokio().map_err(|error| format!("/etc/resolv.conf cannot be used: {error}"))?
            }
        };
        set(builder.options_mut());
        let resolver = builder.build().map_err(|error| format!("the DNS resolver cannot be set up: {error}"))?;
        Ok(Some(DnsResolver { resolver }))
    }
}

fn set(options: &mut ResolverOpts) {
    options.cache_size = 0;
    options.timeout = QUESTION_MAX;
    options.attempts = 2;
    // CNAMEs stay in the answer, so that their lifetimes are seen.
    options.preserve_intermediates = true;
    options.try_tcp_on_error = true;
    options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
}

#[async_trait]
impl TxtSource for DnsResolver {
    async fn txt(&self, name: &str) -> Result<TxtAnswer, TxtError> {
        // With its dot it is a full name: the system's search domains stay out of it.
        let Ok(name) = Name::from_ascii(format!("{name}.")) else {
            // Longer than DNS takes with the label in front: it cannot have a record.
            return Err(TxtError::NoRecord { negative_ttl: ABSENCE_MAX });
        };
        let looked_up = tokio::time::timeout(LOOK_UP_MAX, self.resolver.lookup(name, RecordType::TXT)).await;
        let answer = match looked_up {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(sort_out(error)),
            Err(_) => return Err(TxtError::Transient("DNS did not answer in time".to_owned())),
        };
        let mut values = Vec::new();
        let mut ttl = u32::MAX;
        for record in answer.answers() {
            match &record.data {
                RData::TXT(txt) => values.push(txt.txt_data.concat()),
                RData::CNAME(_) => {}
                _ => continue,
            }
            ttl = ttl.min(record.ttl);
        }
        if values.is_empty() {
            return Err(TxtError::NoRecord { negative_ttl: ABSENCE_DEFAULT });
        }
        Ok(TxtAnswer { values, ttl: Duration::from_secs(u64::from(ttl)) })
    }
}

fn sort_out(error: NetError) -> TxtError {
    match error {
        // A server that refuses or fails has not said that there is nothing.
        NetError::Dns(DnsError::NoRecordsFound(absent))
            if matches!(absent.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            let told = absent.negative_ttl.map_or(ABSENCE_DEFAULT, |seconds| Duration::from_secs(u64::from(seconds)));
            TxtError::NoRecord { negative_ttl: told.clamp(ABSENCE_MIN, ABSENCE_MAX) }
        }
        other => TxtError::Transient(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::Message;
    use hickory_resolver::proto::rr::Record;
    use hickory_resolver::proto::rr::rdata::{CNAME, SOA, TXT};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;

    /// How a question came.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum By {
        Udp,
        Tcp,
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(format!("{text}.")).expect("a name")
    }

    fn txt(owner: &str, ttl: u32, strings: &[&str]) -> Record {
        let strings = strings.iter().map(|text| (*text).to_owned()).collect();
        Record::from_rdata(name(owner), ttl, RData::TXT(TXT::new(strings)))
    }

    fn cname(owner: &str, ttl: u32, to: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(to))))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let soa = SOA::new(name("ns.example"), name("who.example"), 1, 1, 1, 1, minimum);
        Record::from_rdata(name("example"), ttl, RData::SOA(soa))
    }

    /// What the server says of a name: answers, authority, code.
    fn zone(asked: &str, by: By) -> (Vec<Record>, Vec<Record>, ResponseCode) {
        use ResponseCode::{NXDomain, NoError, Refused, ServFail};
        match asked {
            "plain.example" => (vec![txt(asked, 300, &["dnslink=", "/ipfs/x"]), txt(asked, 120, &["v=spf1"])], vec![], NoError),
            // The whole chain in one answer, and a link of it at a time.
            "alias.example" => (vec![cname(asked, 30, "plain.example"), txt("plain.example", 300, &["a"])], vec![], NoError),
            "far.example" => (vec![cname(asked, 40, "plain.example")], vec![], NoError),
            "loop.example" => (vec![cname(asked, 60, "pool.example")], vec![], NoError),
            "pool.example" => (vec![cname(asked, 60, "loop.example")], vec![], NoError),
            "absent.example" => (vec![], vec![soa(900, 20)], NXDomain),
            "nothing.example" => (vec![], vec![soa(10, 900)], NoError),
            "silent.example" => (vec![], vec![], NXDomain),
            "long.example" => (vec![], vec![soa(90_000, 90_000)], NXDomain),
            "refused.example" => (vec![], vec![], Refused),
            "large.example" if by == By::Tcp => (vec![txt(asked, 60, &["b"])], vec![], NoError),
            _ => (vec![], vec![], ServFail),
        }
    }

    fn answer(question: &[u8], by: By) -> Vec<u8> {
        let question = Message::from_vec(question).expect("a question");
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        let query = question.queries.first().expect("a question").clone();
        assert_eq!(query.query_type(), RecordType::TXT, "nothing else is ever asked for");
        let asked = query.name().to_ascii().to_lowercase();
        let asked = asked.trim_end_matches('.');
        let (answers, authorities, code) = zone(asked, by);
        reply.add_query(query).add_answers(answers).add_authorities(authorities);
        reply.metadata.response_code = code;
        if asked == "large.example" && by == By::Udp {
            reply.metadata.response_code = ResponseCode::NoError;
            reply.metadata.truncation = true;
        }
        reply.to_vec().expect("fits")
    }

    /// A DNS server on loopback, over UDP and TCP at one port.
    async fn serve() -> SocketAddr {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            // Somebody may have the same port for UDP.
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                udp.send_to(&answer(&buffer[..length], By::Udp), from).await.expect("sends");
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                while let Ok(length) = stream.read_u16().await {
                    let mut question = vec![0; usize::from(length)];
                    stream.read_exact(&mut question).await.expect("reads");
                    let reply = answer(&question, By::Tcp);
                    stream.write_u16(u16::try_from(reply.len()).expect("short")).await.expect("writes");
                    stream.write_all(&reply).await.expect("writes");
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn answers_with_their_lifetimes() {
        let server = serve().await;
        let dns = DnsResolver::new(Resolver::At(server)).expect("set up").expect("somebody to ask");
        let found = |values: &[&str], seconds: u64| {
            let values = values.iter().map(|value| value.as_bytes().to_vec()).collect();
            Ok(TxtAnswer { values, ttl: Duration::from_secs(seconds) })
        };
        let absent = |seconds: u64| Err(TxtError::NoRecord { negative_ttl: Duration::from_secs(seconds) });
        let long_label = format!("{}.example", "a".repeat(64));
        let rows = [
            ("plain.example", found(&["dnslink=/ipfs/x", "v=spf1"], 120)),
            ("PLAIN.example", found(&["dnslink=/ipfs/x", "v=spf1"], 120)),
            ("alias.example", found(&["a"], 30)),
            ("far.example", found(&["dnslink=/ipfs/x", "v=spf1"], 40)),
            ("large.example", found(&["b"], 60)),
            ("absent.example", absent(20)),
            ("nothing.example", absent(10)),
            ("silent.example", absent(60)),
            ("long.example", absent(3600)),
            ("loop.example", absent(60)),
            (long_label.as_str(), absent(3600)),
        ];
        for (name, expect) in rows {
            let mut answer = dns.txt(name).await;
            if let Ok(answer) = &mut answer {
                answer.values.sort();
            }
            assert_eq!(answer, expect, "{name}");
        }
        for name in ["refused.example", "broken.example"] {
            let failed = dns.txt(name).await;
            assert!(matches!(failed, Err(TxtError::Transient(_))), "never absence: {name} {failed:?}");
        }
        assert!(DnsResolver::new(Resolver::Nobody).expect("nothing to set up").is_none());
    }
}
