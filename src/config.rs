//! Configuration: [`Typed`] is what was written (a TOML file, environment, flags), [`Checked`] is what can run.
//!
//! Only `main`, `lib`, `node` and `cli` see this room; every other room takes a small option struct of its own. An
//! unknown key is refused, since a misspelt limit would otherwise be no limit. Each value says why it is the default.

mod hosts;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use hosts::{Bucket, BucketKey, HostPlace, HostStore, TypedHost};

/// Host folders of the embedded default: what 6 + 3 needs.
pub const EMBEDDED_HOSTS: usize = 9;

/// What cannot run, in words that say what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// The parser's text has line, column and the offending line.
    #[error("{path}: {text}", path = path.display())]
    Malformed { path: PathBuf, text: String },
    #[error("{0}")]
    Invalid(String),
}

/// A configuration file as written. Every part may be left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Typed {
    /// Data directory.
    pub data: Option<PathBuf>,
    pub listen: TypedListen,
    pub store: TypedStore,
    pub redundancy: TypedRedundancy,
    pub hosts: Vec<TypedHost>,
    pub gateway: TypedGateway,
    pub deny: TypedDeny,
    pub portal: TypedPortal,
    pub names: TypedNames,
    pub limits: TypedLimits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedListen {
    pub public: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub trusted_proxies: Option<Vec<IpAddr>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedStore {
    pub memory_bytes: Option<Size>,
    pub metadata_bytes: Option<Size>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedRedundancy {
    pub preset: Option<String>,
    pub base_copies: Option<u8>,
    pub data_pieces: Option<u8>,
    pub parity_pieces: Option<u8>,
    pub allow_shared_hosts: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedGateway {
    /// Written `[[gateway.domains]]`.
    pub domains: Vec<TypedGatewayDomain>,
    pub dnslink: Option<bool>,
    pub trustless_only: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypedGatewayDomain {
    pub name: String,
    pub paths: Option<Vec<String>>,
    pub subdomains: Option<bool>,
    pub inline_dnslink: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedDeny {
    pub lists: Vec<PathBuf>,
    pub blocklists: Vec<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedPortal {
    pub domains: Vec<String>,
    pub public_writes: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedNames {
    pub resolver: Option<String>,
    /// Written `[names.static]`.
    #[serde(rename = "static")]
    pub fixed: BTreeMap<String, String>,
    /// Written `[names.handshake]`.
    pub handshake: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedLimits {
    pub connections: Option<usize>,
    pub connections_per_address: Option<usize>,
    pub requests: Option<usize>,
    pub slab_memory_bytes: Option<Size>,
    pub free_space_floor_bytes: Option<Size>,
    pub grace_seconds: Option<u64>,
    pub upload_bytes: Option<Size>,
    pub bytes_per_day: Option<Size>,
    pub uploads_per_minute: Option<u32>,
    pub uploads_at_once: Option<u32>,
    pub registry_per_minute: Option<u32>,
    pub entries_per_day: Option<u32>,
    pub downloads_at_once: Option<u32>,
    pub requests_per_second: Option<u32>,
    pub spool_bytes: Option<Size>,
    pub spool_bytes_per_client: Option<Size>,
    pub spool_free_space_floor_bytes: Option<Size>,
    pub spool_lifetime_seconds: Option<u64>,
    pub spool_uploads: Option<usize>,
}

/// Bytes, written as a number or as text such as `"128 MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes: a number, or text such as \"128 MiB\" (B, KB, KiB, MB, MiB, GB, GiB, TB, TiB)")
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Size, E> {
                u64::try_from(number).map(Size).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(number), &self))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                parse_size(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Size {
    /// As in a configuration file.
    pub fn parse(text: &str) -> Option<Size> {
        parse_size(text)
    }
}

fn parse_size(text: &str) -> Option<Size> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "KB" | "kB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit).map(Size)
}

/// What is said on the command line or in the environment; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub data: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

/// A configuration that can run.
#[derive(Clone, Debug)]
pub struct Checked {
    pub data: PathBuf,
    pub listen: Listen,
    pub store: Store,
    pub redundancy: Redundancy,
    pub hosts: Hosts,
    pub gateway: Gateway,
    pub deny: Deny,
    pub portal_domains: Vec<String>,
    /// Are uploads and registry writes taken from everybody? Only an operator who says so wants strangers' content.
    pub public_writes: bool,
    pub names: Names,
    pub limits: Limits,
}

#[derive(Clone, Debug)]
pub struct Listen {
    /// Open to everybody who can reach it; on loopback until the operator says otherwise.
    pub public: SocketAddr,
    /// Always needs the API key.
    pub admin: SocketAddr,
    /// Peers whose `X-Forwarded-*` are believed. Loopback by default: a proxy on the same machine.
    pub trusted_proxies: TrustedProxies,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustedProxies {
    Loopback,
    These(Vec<IpAddr>),
}

/// Files with what is not served. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deny {
    /// In the compact denylist format (IPIP-0383).
    pub lists: Vec<PathBuf>,
    /// Of Skynet portals: a hash in hex on each line.
    pub blocklists: Vec<PathBuf>,
}

/// What is served under which host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub domains: Vec<GatewayDomain>,
    /// Are hosts that are not configured answered by their DNSLink?
    pub dnslink: bool,
    /// Blocks, CARs and IPNS records only: nothing that a client could not check.
    pub trustless_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayDomain {
    /// Lower case.
    pub name: String,
    pub ipfs: bool,
    pub ipns: bool,
    /// Each root has an origin of its own: `{cid}.ipfs.{name}`.
    pub subdomains: bool,
    /// Names with a DNSLink stand in one label, without HTTPS, too.
    pub inline_dnslink: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Store {
    pub memory_bytes: u64,
    pub metadata_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redundancy {
    pub base_copies: u8,
    pub data_pieces: u8,
    pub parity_pieces: u8,
    pub shared_hosts: SharedHosts,
}

/// May several pieces of one slab lie on one host?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedHosts {
    Allowed,
    Refused,
}

#[derive(Clone, Debug)]
pub enum Hosts {
    /// Nine folders in the data directory: for trying things out.
    Embedded,
    Configured(Vec<HostPlace>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub resolver: NameResolver,
    /// Names and what they point to, without asking anybody. What they say is checked by the room that follows them.
    pub fixed: BTreeMap<String, String>,
    /// The same for Handshake names and skylinks.
    pub handshake: BTreeMap<String, String>,
}

/// Who is asked for DNSLink records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameResolver {
    /// The system's `/etc/resolv.conf`: what everything else on the machine asks.
    System,
    At(SocketAddr),
    Nobody,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once on the public listener. Each costs about 20 KiB.
    pub connections: usize,
    /// Of them, from one address that is not loopback (of IPv6: one /64).
    pub connections_per_address: usize,
    /// Requests under way at once on the public listener; beyond them 429.
    pub requests: usize,
    /// Memory for slabs being written or rebuilt; one at 6 + 3 takes 37 MiB. Also the brake on uploads.
    pub slab_memory_bytes: u64,
    /// Free space below which a folder host takes no more; the folder's own rule if not set.
    pub free_space_floor_bytes: Option<u64>,
    /// How long a stop waits for requests under way.
    pub grace: Duration,
    pub spool: SpoolLimits,
    pub client: ClientLimits,
}

/// What one API key or one address may do where the operator says so; where not, the room that counts has the values of
/// Skynet's public portals. This machine itself has none of these limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientLimits {
    pub upload_bytes: Option<u64>,
    pub bytes_per_day: Option<u64>,
    pub uploads_per_minute: Option<u32>,
    pub uploads_at_once: Option<u32>,
    pub registry_per_minute: Option<u32>,
    pub entries_per_day: Option<u32>,
    pub downloads_at_once: Option<u32>,
    /// Of an address, whatever it asks for.
    pub requests_per_second: Option<u32>,
}

/// Uploads that come in pieces (tus), which wait on this node's disk until they are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Of all of them, counted as announced. Also the longest single one.
    pub bytes: u64,
    /// Of those of one API key, or of one address without a key.
    pub bytes_per_client: u64,
    /// Free space of the data directory's disk that they leave alone.
    pub free_space_floor_bytes: u64,
    /// After so long without a byte an upload is removed.
    pub lifetime: Duration,
    /// That are not finished.
    pub uploads: usize,
}

/// Holds a file of 100 MiB whole; the process stays under 300 MiB with it.
const MEMORY_BYTES_DEFAULT: u64 = 128 << 20;
/// Nodes, packs and hash trees of some gigabytes of content in use.
const METADATA_BYTES_DEFAULT: u64 = 64 << 20;
/// The memory room's smallest: below it a folder of ten thousand files does not fit.
const METADATA_BYTES_MIN: u64 = 4 << 20;
const CONNECTIONS_DEFAULT: usize = 4096;
/// A browser opens six for each host, and many people may share an address.
const CONNECTIONS_PER_ADDRESS_DEFAULT: usize = 512;
/// Each may read 4 MiB ahead of its client, and mostly does not.
const REQUESTS_DEFAULT: usize = 2048;
/// Three slabs at 6 + 3: one fills, one is encoded, one is written.
const SLAB_MEMORY_DEFAULT: u64 = 3 * (37 << 20);
/// Process managers wait 30 s or more before they kill.
const GRACE_SECONDS_DEFAULT: u64 = 20;
/// Some dozen videos at once; more than most disks of a node have to spare.
const SPOOL_BYTES_DEFAULT: u64 = 64 << 30;
/// So many clients fill the spool; one alone never does.
const SPOOL_CLIENTS_DEFAULT: u64 = 4;
/// The catalog, keys and logs of the node need little beside.
const SPOOL_FLOOR_DEFAULT: u64 = 1 << 30;
/// Skynet's portals kept them for a day as well.
const SPOOL_LIFETIME_DEFAULT: u64 = 24 * 3600;
/// Each costs some KiB of memory, and a folder.
const SPOOL_UPLOADS_DEFAULT: usize = 1024;
/// More than an operator writes by hand; a name takes about a KiB.
const FIXED_NAMES_MAX: usize = 10_000;
const DNS_PORT: u16 = 53;

impl Typed {
    /// Reads a TOML file.
    pub fn read(path: &Path) -> Result<Typed, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|error| ConfigError::Malformed { path: path.to_owned(), text: error.to_string() })
    }

    /// Checks everything. Relative places are taken from `base`, the folder of the configuration file.
    pub fn check(self, flags: Flags, base: &Path) -> Result<Checked, ConfigError> {
        let data = flags.data.or(self.data.map(|data| base.join(data))).map_or_else(default_data, Ok)?;
        let redundancy = self.redundancy.check()?;
        let hosts = if self.hosts.is_empty() {
            if redundancy != Redundancy::default() && usize::from(redundancy.pieces()) > EMBEDDED_HOSTS {
                return Err(redundancy.too_few_hosts(EMBEDDED_HOSTS));
            }
            Hosts::Embedded
        } else {
            Hosts::Configured(hosts::check(self.hosts, &redundancy, base)?)
        };
        let metadata_bytes = self.store.metadata_bytes.map_or(METADATA_BYTES_DEFAULT, |size| size.0);
        if metadata_bytes < METADATA_BYTES_MIN {
            return Err(invalid(format!(
                "[store] metadata_bytes is {metadata_bytes}, it must be at least {METADATA_BYTES_MIN} (4 MiB)"
            )));
        }
        let limits = self.limits.check(&redundancy)?;
        Ok(Checked {
            data,
            listen: Listen {
                public: flags.listen.or(self.listen.public).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
                admin: flags.admin.or(self.listen.admin).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8081))),
                trusted_proxies: self.listen.trusted_proxies.map_or(TrustedProxies::Loopback, TrustedProxies::These),
            },
            store: Store { memory_bytes: self.store.memory_bytes.map_or(MEMORY_BYTES_DEFAULT, |size| size.0), metadata_bytes },
            redundancy,
            hosts,
            gateway: self.gateway.check()?,
            deny: Deny {
                lists: self.deny.lists.iter().map(|path| base.join(path)).collect(),
                blocklists: self.deny.blocklists.iter().map(|path| base.join(path)).collect(),
            },
            portal_domains: self
                .portal
                .domains
                .iter()
                .map(|name| check_domain("[portal] domains", name))
                .collect::<Result<_, _>>()?,
            public_writes: self.portal.public_writes.unwrap_or(false),
            names: self.names.check()?,
            limits,
        })
    }
}

impl TypedRedundancy {
    fn check(self) -> Result<Redundancy, ConfigError> {
        let written = self.base_copies.is_some() || self.data_pieces.is_some() || self.parity_pieces.is_some();
        let shared_hosts = if self.allow_shared_hosts == Some(true) { SharedHosts::Allowed } else { SharedHosts::Refused };
        let preset = match self.preset.as_deref() {
            None | Some("default") => Redundancy { shared_hosts, ..Redundancy::default() },
            // Then skylinks of large files equal Skynet's (`design.md` 4).
            Some("skynet") => Redundancy { base_copies: 10, data_pieces: 10, parity_pieces: 20, shared_hosts },
            Some(other) => {
                return Err(invalid(format!("[redundancy] preset {other:?} is not known: write \"default\" or \"skynet\"")));
            }
        };
        if self.preset.is_some() && written {
            return Err(invalid("[redundancy] has a preset and numbers of its own: keep the one or the other".to_owned()));
        }
        let redundancy = Redundancy {
            base_copies: self.base_copies.unwrap_or(preset.base_copies),
            data_pieces: self.data_pieces.unwrap_or(preset.data_pieces),
            parity_pieces: self.parity_pieces.unwrap_or(preset.parity_pieces),
            shared_hosts,
        };
        for (name, value, least) in [
            ("base_copies", redundancy.base_copies, 1),
            ("data_pieces", redundancy.data_pieces, 1),
            ("parity_pieces", redundancy.parity_pieces, 0),
        ] {
            if !(least..=64).contains(&value) {
                return Err(invalid(format!("[redundancy] {name} is {value}, it must be {least} to 64")));
            }
        }
        Ok(redundancy)
    }
}

impl Default for Redundancy {
    fn default() -> Self {
        Redundancy { base_copies: 4, data_pieces: 6, parity_pieces: 3, shared_hosts: SharedHosts::Refused }
    }
}

impl Redundancy {
    pub fn pieces(&self) -> u8 {
        self.data_pieces + self.parity_pieces
    }

    /// Hosts that may be lost at the moment of an acknowledgement.
    pub fn ack_losses(&self) -> u8 {
        self.parity_pieces.div_ceil(2)
    }

    fn too_few_hosts(&self, have: usize) -> ConfigError {
        invalid(format!(
            "{have} hosts cannot hold {} + {} pieces on hosts of their own: add [[hosts]], lower [redundancy] data_pieces or parity_pieces, \
             or set allow_shared_hosts = true (then one lost host can take several pieces of a slab with it)",
            self.data_pieces, self.parity_pieces
        ))
    }
}

impl TypedNames {
    fn check(self) -> Result<Names, ConfigError> {
        let resolver = match self.resolver.as_deref() {
            None | Some("system") => NameResolver::System,
            Some("none") => NameResolver::Nobody,
            Some(text) => {
                let address = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT)));
                NameResolver::At(address.map_err(|_| {
                    invalid(format!(
                        "[names] resolver {text:?} is not known: write \"system\", \"none\", or the address of a DNS resolver such \
                         as \"9.9.9.9\" or \"127.0.0.1:5353\""
                    ))
                })?)
            }
        };
        if self.fixed.len() > FIXED_NAMES_MAX {
            return Err(invalid(format!("[names.static] has {} names, at most {FIXED_NAMES_MAX}", self.fixed.len())));
        }
        if self.handshake.len() > FIXED_NAMES_MAX {
            return Err(invalid(format!("[names.handshake] has {} names, at most {FIXED_NAMES_MAX}", self.handshake.len())));
        }
        Ok(Names { resolver, fixed: self.fixed, handshake: self.handshake })
    }
}

impl TypedGateway {
    fn check(self) -> Result<Gateway, ConfigError> {
        let mut domains: Vec<GatewayDomain> = Vec::new();
        for written in self.domains {
            let name = check_domain("[[gateway.domains]] name", &written.name)?;
            if domains.iter().any(|known| known.name == name) {
                return Err(invalid(format!("[[gateway.domains]] has {name:?} twice")));
            }
            let paths = written.paths.unwrap_or_else(|| vec!["/ipfs".to_owned(), "/ipns".to_owned()]);
            if let Some(unknown) = paths.iter().find(|path| !matches!(path.trim_end_matches('/'), "/ipfs" | "/ipns")) {
                return Err(invalid(format!("[[gateway.domains]] paths has {unknown:?}: write \"/ipfs\", \"/ipns\" or both")));
            }
            let has = |wanted: &str| paths.iter().any(|path| path.trim_end_matches('/') == wanted);
            domains.push(GatewayDomain {
                ipfs: has("/ipfs"),
                ipns: has("/ipns"),
                subdomains: written.subdomains.unwrap_or(true),
                inline_dnslink: written.inline_dnslink.unwrap_or(true),
                name,
            });
        }
        // Browsers resolve `localhost` and all below it to this machine; it can be configured otherwise.
        if !domains.iter().any(|domain| domain.name == "localhost") {
            let name = "localhost".to_owned();
            domains.push(GatewayDomain { name, ipfs: true, ipns: true, subdomains: true, inline_dnslink: false });
        }
        let trustless_only = self.trustless_only.unwrap_or(false);
        Ok(Gateway { domains, dnslink: self.dnslink.unwrap_or(true), trustless_only })
    }
}

/// A host name as it is written in a configuration: no port, no scheme, no star.
fn check_domain(place: &str, name: &str) -> Result<String, ConfigError> {
    let lower = name.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if lower.is_empty() || lower.len() > 253 || !lower.split('.').all(label) {
        return Err(invalid(format!("{place} {name:?} is no host name: write it like \"example.com\", without port or scheme")));
    }
    Ok(lower)
}

impl TypedLimits {
    fn check(self, redundancy: &Redundancy) -> Result<Limits, ConfigError> {
        let spool_bytes = self.spool_bytes.map_or(SPOOL_BYTES_DEFAULT, |size| size.0);
        let limits = Limits {
            connections: self.connections.unwrap_or(CONNECTIONS_DEFAULT),
            connections_per_address: self.connections_per_address.unwrap_or(CONNECTIONS_PER_ADDRESS_DEFAULT),
            requests: self.requests.unwrap_or(REQUESTS_DEFAULT),
            slab_memory_bytes: self.slab_memory_bytes.map_or(SLAB_MEMORY_DEFAULT, |size| size.0),
            free_space_floor_bytes: self.free_space_floor_bytes.map(|size| size.0),
            grace: Duration::from_secs(self.grace_seconds.unwrap_or(GRACE_SECONDS_DEFAULT)),
            client: self.client()?,
            spool: SpoolLimits {
                bytes: spool_bytes,
                bytes_per_client: self.spool_bytes_per_client.map_or(spool_bytes / SPOOL_CLIENTS_DEFAULT, |size| size.0),
                free_space_floor_bytes: self.spool_free_space_floor_bytes.map_or(SPOOL_FLOOR_DEFAULT, |size| size.0),
                lifetime: Duration::from_secs(self.spool_lifetime_seconds.unwrap_or(SPOOL_LIFETIME_DEFAULT)),
                uploads: self.spool_uploads.unwrap_or(SPOOL_UPLOADS_DEFAULT),
            },
        };
        let slab = u64::from(redundancy.pieces()) * ((4 << 20) + (64 << 10));
        for (name, limit) in [
            ("connections", limits.connections),
            ("connections_per_address", limits.connections_per_address),
            ("requests", limits.requests),
        ] {
            if limit == 0 {
                return Err(invalid(format!("[limits] {name} is 0: nobody could connect")));
            }
        }
        if self.slab_memory_bytes.is_some() && limits.slab_memory_bytes < slab {
            let have = limits.slab_memory_bytes;
            return Err(invalid(format!("[limits] slab_memory_bytes is {have}, one slab at this redundancy takes {slab}")));
        }
        Ok(Limits { slab_memory_bytes: limits.slab_memory_bytes.max(slab), ..limits })
    }
}

impl TypedLimits {
    fn client(&self) -> Result<ClientLimits, ConfigError> {
        let limits = ClientLimits {
            upload_bytes: self.upload_bytes.map(|size| size.0),
            bytes_per_day: self.bytes_per_day.map(|size| size.0),
            uploads_per_minute: self.uploads_per_minute,
            uploads_at_once: self.uploads_at_once,
            registry_per_minute: self.registry_per_minute,
            entries_per_day: self.entries_per_day,
            downloads_at_once: self.downloads_at_once,
            requests_per_second: self.requests_per_second,
        };
        for (name, limit) in [
            ("upload_bytes", limits.upload_bytes),
            ("bytes_per_day", limits.bytes_per_day),
            ("uploads_per_minute", limits.uploads_per_minute.map(u64::from)),
            ("uploads_at_once", limits.uploads_at_once.map(u64::from)),
            ("registry_per_minute", limits.registry_per_minute.map(u64::from)),
            ("entries_per_day", limits.entries_per_day.map(u64::from)),
            ("downloads_at_once", limits.downloads_at_once.map(u64::from)),
            ("requests_per_second", limits.requests_per_second.map(u64::from)),
        ] {
            if limit == Some(0) {
                return Err(invalid(format!("[limits] {name} is 0: nobody could do it")));
            }
        }
        Ok(limits)
    }
}

fn default_data() -> Result<PathBuf, ConfigError> {
    default_data_from(std::env::var_os("XDG_DATA_HOME").map(PathBuf::from), std::env::var_os("HOME").map(PathBuf::from))
}

fn default_data_from(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    xdg.filter(|xdg| xdg.is_absolute())
        .or_else(|| home.map(|home| home.join(".local/share")))
        .map(|share| share.join("skygate"))
        .ok_or_else(|| invalid("neither HOME nor XDG_DATA_HOME is set: name the data directory with --data DIR".to_owned()))
}

fn invalid(text: String) -> ConfigError {
    ConfigError::Invalid(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Checked, String> {
        let typed: Typed = toml::from_str(text).map_err(|error| error.to_string())?;
        let flags = Flags { data: Some("data".into()), ..Flags::default() };
        typed.check(flags, Path::new("/etc/skygate")).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_written_is_the_embedded_default() {
        let checked = check("").expect("the default is right");
        assert!(matches!(checked.hosts, Hosts::Embedded));
        assert_eq!(checked.listen.public.to_string(), "127.0.0.1:8080");
        assert_eq!(checked.listen.admin.to_string(), "127.0.0.1:8081");
        assert_eq!(checked.redundancy, Redundancy::default());
        assert_eq!(checked.listen.trusted_proxies, TrustedProxies::Loopback);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let rows = [
            ("[store]\nmemory_byte = 1", "unknown field `memory_byte`"),
            ("[store]\nmemory_bytes = \"12 parsecs\"", "128 MiB"),
            ("[store]\nmemory_bytes = -1", "128 MiB"),
            ("[store]\nmetadata_bytes = 1", "at least"),
            ("[redundancy]\npreset = \"big\"", "\"default\" or \"skynet\""),
            ("[redundancy]\npreset = \"skynet\"\ndata_pieces = 3", "keep the one or the other"),
            ("[redundancy]\npreset = \"skynet\"", "allow_shared_hosts"),
            ("[redundancy]\ndata_pieces = 0", "must be 1 to 64"),
            ("[limits]\nconnections = 0", "nobody could connect"),
            ("[limits]\nuploads_at_once = 0", "nobody could do it"),
            ("[limits]\nslab_memory_bytes = \"1 MiB\"", "one slab at this redundancy"),
            ("[listen]\npublic = \"here\"", "invalid socket address"),
            ("[[gateway.domains]]\nname = \"https://x.org\"", "without port or scheme"),
            ("[[gateway.domains]]\nname = \"x.org\"\n[[gateway.domains]]\nname = \"X.org.\"", "twice"),
            ("[[gateway.domains]]\nname = \"x.org\"\npaths = [\"/ipld\"]", "\"/ipfs\", \"/ipns\""),
            ("[portal]\ndomains = [\"x.org:80\"]", "without port or scheme"),
            ("[names]\nresolver = \"quad9\"", "\"system\", \"none\""),
            ("[names]\nservers = []", "unknown field `servers`"),
            ("[names.static]\n\"a.example\" = 1", "expected a string"),
        ];
        for (text, expect) in rows {
            let error = check(text).expect_err(text);
            assert!(error.contains(expect), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn names_have_a_resolver() {
        let at = |text: &str| NameResolver::At(text.parse().expect("an address"));
        let rows = [
            ("", NameResolver::System),
            ("[names]\nresolver = \"system\"", NameResolver::System),
            ("[names]\nresolver = \"none\"", NameResolver::Nobody),
            ("[names]\nresolver = \"9.9.9.9\"", at("9.9.9.9:53")),
            ("[names]\nresolver = \"2620:fe::fe\"", at("[2620:fe::fe]:53")),
            ("[names]\nresolver = \"127.0.0.1:5353\"", at("127.0.0.1:5353")),
        ];
        for (text, expect) in rows {
            assert_eq!(check(text).expect(text).names.resolver, expect, "{text}");
        }
        let fixed = check("[names.static]\n\"a.example\" = \"/ipfs/bafkqaaa\"").expect("right").names.fixed;
        assert_eq!(fixed.get("a.example").map(String::as_str), Some("/ipfs/bafkqaaa"));
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        let rows = [
            ("1", Some(1)),
            ("128 MiB", Some(128 << 20)),
            ("2GB", Some(2_000_000_000)),
            ("1.5 MiB", None),
            ("MiB", None),
            ("99999999 TiB", None),
        ];
        for (text, expect) in rows {
            assert_eq!(parse_size(text).map(|size| size.0), expect, "{text}");
        }
    }

    #[test]
    fn the_data_directory_follows_the_desktop_rules() {
        let home = Some(PathBuf::from("/h"));
        assert_eq!(default_data_from(Some("/x".into()), home.clone()).expect("set"), Path::new("/x/skygate"));
        assert_eq!(default_data_from(None, home.clone()).expect("set"), Path::new("/h/.local/share/skygate"));
        assert_eq!(default_data_from(Some("relative".into()), home).expect("set"), Path::new("/h/.local/share/skygate"));
        assert!(default_data_from(None, None).is_err());
    }
}
