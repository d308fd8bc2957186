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
        NetError::Dns(DnsError::NoRecordsFound(absent)) => {
            let told = absent.negative_ttl.map_or(ABSENCE_DEFAULT, |seconds| Duration::from_secs(u64::from(seconds)));
            TxtError::NoRecord { negative_ttl: told.clamp(ABSENCE_MIN, ABSENCE_MAX) }
        }
        other => TxtError::Transient(other.to_string()),
    }
}
