//! The wiring: configuration in, a running node out.
//!
//! Start: keys, hosts and their markers, the host table, records, store, listeners. Stop: listeners drain, background
//! work ends, the catalog is closed, hosts let go. This room decides nothing about content; it may use every room but
//! `cli`, and no room uses it.
//!
//! What is durable, and where its truth lives:
//!
//! | thing | truth | losing this node costs |
//! |---|---|---|
//! | content, pins, host table | hosts | nothing |
//! | portal key (`keys/portal`) | here, and the recovery phrase | everything signed, if the phrase is lost as well |
//! | API key (`keys/api`) | here | a new one is made |
//! | known hosts (`state/hosts.json`) | the markers on the hosts | nothing; it tells an unmounted host from a new one |
//! | catalog, pack indexes | hosts | the time of a rebuild |
//! | uploads in pieces (`spool/`) | here, until they are stored on the hosts | they are sent again |
//! | other uploads under way | nowhere | they are sent again |

mod hosts;
mod lists;
mod operations;
mod sample;

use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::lists::ListRead;
use self::lists::Lists;
use crate::access::{Access, AccessError, KeyFile, KeyLimits, Rate, Rules};
use crate::config::{Checked, Hosts, NameResolver, SharedHosts, TrustedProxies};
use crate::http::ask::Namespace;
use crate::http::hosts::{DnslinkHosts, DnslinkLabels, GatewayDomain, HostRules, Subdomains};
use crate::http::{AnswerCache, HttpOptions, Listeners, PublicWrites, Services, Subscriptions};
use crate::ingest::Ingest;
use crate::ingest::spool::{Spool, SpoolOptions};
use crate::measure::Measures;
use crate::names::{self, BadFixedName, BadHandshakeName, DnsResolver, HandshakeNames, Names, NamesOptions, Resolver};
use crate::records::{Extent, KeyError, Origin, OwnerChecks, PortalKey, RecordError, Records, RecordsOptions};
use crate::renter::{Renter, RenterError, RenterOptions};
use crate::store::{CatalogError, Store, StoreError, StoreOptions};

/// Why a node does not start. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot {doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("cannot listen on {address}: {source}. Is another skygate running? Choose another address with --listen or --admin")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{0}")]
    Hosts(String),
    #[error("the host table cannot be read or written: {0}")]
    Table(#[from] RecordError),
    #[error("{0}")]
    Denylist(String),
    #[error(transparent)]
    Renter(#[from] RenterError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Names(#[from] BadFixedName),
    #[error(transparent)]
    Handshake(#[from] BadHandshakeName),
}

/// Places in the data directory.
#[derive(Clone, Debug)]
pub struct Places {
    data: PathBuf,
}

impl Places {
    pub fn of(data: &Path) -> Places {
        Places { data: data.to_owned() }
    }

    pub fn portal_key(&self) -> PathBuf {
        self.data.join("keys/portal")
    }

    pub fn api_key(&self) -> PathBuf {
        self.data.join("keys/api")
    }

    fn state(&self) -> PathBuf {
        self.data.join("state")
    }

    fn spool(&self) -> PathBuf {
        self.data.join("spool")
    }

    fn catalog(&self) -> PathBuf {
        self.data.join("catalog")
    }

    fn embedded_host(&self, number: usize) -> PathBuf {
        self.data.join("hosts").join(number.to_string())
    }
}

/// Runs a node until `shutdown` resolves and the requests under way have ended, or their grace time has.
pub async fn run(config: Checked, shutdown: impl Future<Output = ()>) -> Result<(), NodeError> {
    let places = Places::of(&config.data);
    check_names(&config)?;
    make_folders(&places)?;
    let public = bind(config.listen.public).await?;
    let admin = bind(config.listen.admin).await?;
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    let opened = open(&config, &places, local(&public), (&tasks, &stop)).await?;
    let Opened { services, store, records, hosts, sample, .. } = opened;

    let addresses = (local(&public), local(&admin));
    greet(&config, addresses, sample.as_deref(), &services.access);
    let draining = CancellationToken::new();
    let serving = crate::http::run(Listeners { public, admin }, services, draining.clone());
    let signal = async {
        shutdown.await;
        tracing::info!(grace_seconds = config.limits.grace.as_secs(), "stopping: requests under way may end");
        draining.cancel();
        tokio::time::sleep(config.limits.grace).await;
    };
    tokio::select! {
        () = serving => {}
        () = signal => tracing::warn!("the grace time is over: requests still under way are cut"),
    }
    stop.cancel();
    tasks.close();
    close(tasks, &store, &records, hosts).await
}

/// Everything of a node but its sockets.
struct Opened {
    services: Arc<Services>,
    store: Store,
    records: Records,
    hosts: hosts::OpenHosts,
    /// Path of the sample site, if it was added to this data directory.
    sample: Option<String>,
}

async fn open(
    config: &Checked,
    places: &Places,
    public: SocketAddr,
    (tasks, stop): (&TaskTracker, &CancellationToken),
) -> Result<Opened, NodeError> {
    // Told apart from later starts by this file, so that a start that was cut goes on as the first one.
    let first_start = hosts::FirstStart::begin(&places.state(), !places.portal_key().exists())?;
    let (key, origin) = PortalKey::load_or_create(&places.portal_key())?;
    if origin == Origin::Created {
        print_phrase(&key);
    }
    let access = open_access(config, places)?;
    let hosts = hosts::open(config, places, key.id(), first_start.is_first(), (tasks, stop)).await?;
    let table = hosts::table(&hosts, &key, config, &places.state(), first_start.is_first()).await?;
    let renter = Renter::new(hosts.hosts.clone(), table, renter_options(config))?;
    let measures = Arc::new(Measures::default());
    let records = Records::new(Arc::new(renter.clone()), key, records_options());
    let store_options = StoreOptions {
        folder: places.catalog(),
        memory_bytes: config.store.memory_bytes,
        metadata_bytes: config.store.metadata_bytes,
    };
    let store = Store::open(renter.clone(), records.clone(), measures.clone(), &store_options)?;
    let lists = lists_of(config);
    // Before anything is served.
    store.set_denied(lists.read()?);
    if !matches!(tokio::time::timeout(BLOCKLIST_WAIT_MAX, store.read_blocklist()).await, Ok(Extent::Complete)) {
        tracing::warn!("too few hosts tell the portal's blocklist: until they do, some of it may be served");
    }
    store.start_upkeep(tasks, stop.clone());
    let ingest = Ingest::new(store.clone());
    let sample = match matches!(config.hosts, Hosts::Embedded) {
        true => sample::add_once(&ingest, &places.state(), first_start.is_first()).await,
        false => None,
    };
    first_start.end()?;
    let options = http_options(config, sample.clone())?;
    let operations = operations::NodeOperations {
        public,
        store: store.clone(),
        ingest: ingest.clone(),
        renter,
        records: records.clone(),
        content_bytes: Mutex::default(),
    };
    let services = Arc::new(Services {
        content: Arc::new(store.clone()),
        names: Arc::new(open_names(config, &records, &measures)?),
        operations: Arc::new(operations),
        spool: open_spool(config, places, &ingest, (tasks, stop))?,
        uploads: Arc::new(ingest),
        access,
        measures,
        answers: AnswerCache::new(options.answers_bytes),
        subscriptions: Subscriptions::default(),
        requests: Arc::new(Semaphore::new(config.limits.requests)),
        options,
    });
    follow_records(&services, &store, &records, (tasks, stop));
    lists.keep_reading(services.clone(), store.clone(), tasks, stop.clone());
    Ok(Opened { services, store, records, hosts, sample })
}

fn open_access(config: &Checked, places: &Places) -> Result<Arc<Access>, NodeError> {
    let (access, key_file) = Access::load_or_create(&places.api_key(), client_rules(config))?;
    if key_file == KeyFile::Created {
        tracing::info!(path = %places.api_key().display(), "made the API key that the command line reads");
    }
    Ok(Arc::new(access))
}

/// What other nodes of the portal, and its operator, change: API keys and the blocklist.
fn follow_records(services: &Arc<Services>, store: &Store, records: &Records, (tasks, stop): (&TaskTracker, &CancellationToken)) {
    services.access.keys.connect(records.clone());
    let (access, until) = (services.access.clone(), stop.clone());
    tasks.spawn(async move { until.run_until_cancelled(access.keys.follow()).await });
    let (store, services, until) = (store.clone(), services.clone(), stop.clone());
    // Ready answers may be of what is blocked now.
    let blocklist = async move { store.follow_blocklist(|| services.answers.clear()).await };
    tasks.spawn(async move { until.run_until_cancelled(blocklist).await });
}

fn http_options(config: &Checked, sample_site: Option<String>) -> Result<HttpOptions, NodeError> {
    Ok(HttpOptions {
        admin_hosts: vec![config.listen.admin.to_string(), config.listen.admin.ip().to_string()],
        hosts: host_rules(config),
        trustless_only: config.gateway.trustless_only,
        handshake: HandshakeNames::parse(&config.names.handshake)?,
        public_writes: if config.public_writes { PublicWrites::Taken } else { PublicWrites::Refused },
        sample_site,
        public_connections_max: config.limits.connections,
        requests_max: config.limits.requests,
        connections_per_address_max: config.limits.connections_per_address,
        grace: config.limits.grace,
        ..HttpOptions::default()
    })
}

fn client_rules(config: &Checked) -> Rules {
    let own = &config.limits.client;
    let rules = Rules::default().with(&KeyLimits {
        upload_bytes: own.upload_bytes,
        bytes_per_day: own.bytes_per_day,
        uploads_per_minute: own.uploads_per_minute,
        uploads_at_once: own.uploads_at_once,
        registry_per_minute: own.registry_per_minute,
        entries_per_day: own.entries_per_day,
    });
    Rules {
        downloads_at_once: own.downloads_at_once.unwrap_or(rules.downloads_at_once),
        requests: own.requests_per_second.map_or(rules.requests, Rate::per_second),
        ..rules
    }
}

fn open_spool(
    config: &Checked,
    places: &Places,
    ingest: &Ingest,
    running: (&TaskTracker, &CancellationToken),
) -> Result<Spool, NodeError> {
    let limits = &config.limits.spool;
    let options = SpoolOptions {
        bytes_max: limits.bytes,
        free_floor_bytes: limits.free_space_floor_bytes,
        lifetime: limits.lifetime,
        uploads_max: limits.uploads,
        client_bytes_max: limits.bytes_per_client,
    };
    let folder = places.spool();
    let doing = || format!("read the uploads under way in {}", folder.display());
    let spool = Spool::open(&folder, options, Arc::new(ingest.clone()), running)
        .map_err(|source| NodeError::Io { doing: doing(), source })?;
    spool.start_upkeep();
    Ok(spool)
}

fn host_rules(config: &Checked) -> HostRules {
    let domain = |domain: &crate::config::GatewayDomain| {
        let namespaces = [(domain.ipfs, Namespace::Ipfs), (domain.ipns, Namespace::Ipns)];
        GatewayDomain {
            name: domain.name.clone(),
            paths: namespaces.into_iter().filter(|(served, _)| *served).map(|(_, namespace)| namespace).collect(),
            subdomains: if domain.subdomains { Subdomains::Served } else { Subdomains::None },
            dnslink_labels: if domain.inline_dnslink { DnslinkLabels::Inlined } else { DnslinkLabels::Dotted },
        }
    };
    HostRules {
        domains: config.gateway.domains.iter().map(domain).collect(),
        portal_domains: config.portal_domains.clone(),
        dnslink: if config.gateway.dnslink { DnslinkHosts::Any } else { DnslinkHosts::None },
        trusted_proxies: match &config.listen.trusted_proxies {
            TrustedProxies::Loopback => None,
            TrustedProxies::These(these) => Some(these.clone()),
        },
    }
}

/// The kinds signed by their owners, each with the check of the room that knows it.
fn records_options() -> RecordsOptions {
    let owners = OwnerChecks { entry: names::entry_owner_check, ipns: names::owner_check };
    RecordsOptions { owners, ..RecordsOptions::default() }
}

fn open_names(config: &Checked, records: &Records, measures: &Arc<Measures>) -> Result<Names, NodeError> {
    let resolver = match config.names.resolver {
        NameResolver::System => Resolver::System,
        NameResolver::At(address) => Resolver::At(address),
        NameResolver::Nobody => Resolver::Nobody,
    };
    // A machine without a resolver serves all the rest.
    let dns = DnsResolver::new(resolver).unwrap_or_else(|error| {
        tracing::warn!("{error}: domain names are not looked up, but for those of [names.static]");
        None
    });
    let dns = dns.map(|dns| Arc::new(dns) as Arc<dyn names::dns::TxtSource>);
    let options = NamesOptions { fixed: config.names.fixed.clone(), ..NamesOptions::default() };
    Ok(Names::new(options, records.clone(), dns, measures.clone())?)
}

/// Would a node start with these names?
pub fn check_names(config: &Checked) -> Result<(), NodeError> {
    HandshakeNames::parse(&config.names.handshake)?;
    Ok(names::check_fixed(&config.names.fixed)?)
}

/// Reads the deny lists as a start would, and says what became of each.
pub fn check_lists(config: &Checked) -> Result<Vec<ListRead>, NodeError> {
    lists_of(config).read_files().map(|(_, files)| files)
}

fn lists_of(config: &Checked) -> Lists {
    Lists { lists: config.deny.lists.clone(), blocklists: config.deny.blocklists.clone() }
}

fn renter_options(config: &Checked) -> RenterOptions {
    RenterOptions {
        k: config.redundancy.data_pieces,
        m: config.redundancy.parity_pieces,
        base_copies: config.redundancy.base_copies,
        allow_shared_hosts: config.redundancy.shared_hosts == SharedHosts::Allowed,
        slab_memory_bytes: config.limits.slab_memory_bytes,
        // The renter's trees are one part of the index bytes; the store has the other.
        metadata_bytes: config.store.metadata_bytes / 4,
    }
}

/// How long a start waits for the portal's blocklist: hosts that are up list it in milliseconds.
const BLOCKLIST_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// How long a stop waits for hosts that do not answer: the catalog is closed before, so nothing is lost by leaving.
const LET_GO_MAX: std::time::Duration = std::time::Duration::from_secs(5);

async fn close(tasks: TaskTracker, store: &Store, records: &Records, hosts: hosts::OpenHosts) -> Result<(), NodeError> {
    if tokio::time::timeout(LET_GO_MAX, tasks.wait()).await.is_err() {
        tracing::warn!("background work did not end in time");
    }
    let _ = tokio::time::timeout(LET_GO_MAX, records.settle()).await;
    store.close()?;
    if tokio::time::timeout(LET_GO_MAX, hosts.close()).await.is_err() {
        tracing::warn!("some hosts did not let go in time");
    }
    tracing::info!("stopped");
    Ok(())
}

fn make_folders(places: &Places) -> Result<(), NodeError> {
    use std::os::unix::fs::DirBuilderExt;
    for folder in [places.data.clone(), places.data.join("keys"), places.state(), places.catalog()] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| NodeError::Io { doing: format!("make the folder {}", folder.display()), source })?;
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { address, source })
}

fn local(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("a bound socket has an address")
}

/// Printed once, and never again: it is the portal.
fn print_phrase(key: &PortalKey) {
    println!("A new portal: {}", key.id());
    println!("Its recovery phrase, printed only now. Write it down; with it and the host list any machine can be this portal:");
    println!();
    for line in key.phrase().split(' ').collect::<Vec<_>>().chunks(8) {
        println!("    {}", line.join(" "));
    }
    println!();
}

fn greet(config: &Checked, (public, admin): (SocketAddr, SocketAddr), sample: Option<&str>, access: &Access) {
    if matches!(config.hosts, Hosts::Embedded) {
        println!("Nine host folders in {}: good for trying, but on one disk they", config.data.join("hosts").display());
        println!("protect against nothing but bugs. Real hosts: [[hosts]] in a configuration file.");
    }
    println!("listening on http://{public} (public)");
    println!("listening on http://{admin} (admin)");
    if let Some(sample) = sample {
        println!("Open the sample site:  http://{public}{sample}");
    }
    println!("Dashboard, once:       http://{admin}/?login={}", access.new_login_token());
    println!("Add your own site:     skygate add ./site --data {} --api http://{admin}", config.data.display());
    // A pipe that nobody reads is no reason to stop serving.
    let _ = std::io::stdout().flush();
}

/// The recovery phrase of the portal in a data directory.
pub fn export_key(data: &Path) -> Result<String, NodeError> {
    Ok(PortalKey::load(&Places::of(data).portal_key())?.phrase())
}

/// Makes a data directory that has no portal key yet into one of the portal with this phrase.
pub fn import_key(data: &Path, phrase: &str) -> Result<String, NodeError> {
    let key = PortalKey::from_phrase(phrase)?;
    let places = Places::of(data);
    make_folders(&places)?;
    key.store(&places.portal_key())?;
    Ok(key.id().to_string())
}
