//! Opening the hosts: markers, known ids, the first start, the host table.
//!
//! A known host without its marker is down, never empty: an unmounted disk must not be taken for a new one. So this
//! node remembers which id it saw at which place (`state/hosts.json`); the truth is in the markers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Bucket, Checked, EMBEDDED_HOSTS, HostPlace, HostStore, Hosts};
use crate::http::{CheckedView, HostView};
use crate::records::{BareHosts, Order, PortalId, PortalKey, Record, RecordKey, Records, RecordsOptions};
use crate::renter::bucket::{self, BucketOptions};
use crate::renter::folder::{FolderOptions, FolderStore};
use crate::renter::host::{Host, HostId, HostOptions, HostState, Near, Writers};
use crate::renter::marker::{self, MarkerError};
use crate::renter::place::{HostRow, HostTable, RowState};
use crate::renter::{Renter, SetAside};
use crate::store::Note;

use super::{NodeError, Places};

/// How long a start waits for a marker. A host that takes longer is down, and watched.
const MARKER_WAIT: Duration = Duration::from_secs(5);

/// The file that stands while a first start is under way, so that one that was cut goes on as a first start.
pub struct FirstStart {
    file: PathBuf,
    first: bool,
}

impl FirstStart {
    pub fn begin(state: &Path, no_portal_key: bool) -> Result<FirstStart, NodeError> {
        let file = state.join("first-start");
        if no_portal_key {
            let made = std::fs::write(&file, b"").and_then(|()| std::fs::File::open(state)?.sync_all());
            made.map_err(|source| NodeError::Io { doing: format!("write {}", file.display()), source })?;
        }
        let first = file.exists();
        Ok(FirstStart { file, first })
    }

    pub fn is_first(&self) -> bool {
        self.first
    }

    /// Everything of a first start is durable.
    pub fn end(self) -> Result<(), NodeError> {
        match std::fs::remove_file(&self.file) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(NodeError::Io { doing: format!("remove {}", self.file.display()), source })
            }
            _ => Ok(()),
        }
    }
}

/// The hosts that could be told apart, and their folders.
pub struct OpenHosts {
    pub hosts: Vec<Host>,
    places: Vec<HostPlace>,
    folders: Vec<FolderStore>,
}

impl OpenHosts {
    /// Lets go of the folders once what is queued is written.
    pub async fn close(self) {
        futures::future::join_all(self.folders.iter().map(FolderStore::close)).await;
    }
}

/// Opens every configured host. New markers are made only at the first start.
pub async fn open(
    config: &Checked,
    places: &Places,
    portal: PortalId,
    first: bool,
    (tasks, stop): (&TaskTracker, &CancellationToken),
) -> Result<OpenHosts, NodeError> {
    let wanted = configured(config, places);
    let mut known = Known::read(&places.state())?;
    let portal = marker::PortalId(portal.0);
    let look = wanted.iter().map(|place| look_at(place, config.limits.free_space_floor_bytes, portal, first));
    let looked = futures::future::join_all(look).await;
    let mut open = OpenHosts { hosts: Vec::new(), places: Vec::new(), folders: Vec::new() };
    let mut found = Vec::new();
    for (place, opened) in wanted.into_iter().zip(looked) {
        let (opened, seen) = opened?;
        let remembered = known.ids.get(&place.place()).copied();
        let id = match (seen, remembered) {
            (Ok(marker), _) => {
                marker.verify(portal, remembered).map_err(|error| refused(&place, &error))?;
                found.push((place.place(), marker.host));
                known.ids.insert(place.place(), marker.host);
                marker.host
            }
            (Err(why), _) if why.refuses => return Err(NodeError::Hosts(format!("host {}: {}", place.place(), why.text))),
            (Err(why), Some(id)) => {
                tracing::warn!(host = place.place(), why = why.text, "a known host is down");
                id
            }
            (Err(why), None) if first => {
                return Err(NodeError::Hosts(format!("host {} cannot be made: {}", place.place(), why.text)));
            }
            (Err(why), None) => {
                tracing::warn!(
                    host = place.place(),
                    why = why.text,
                    "a host cannot be told apart and is left out until the next start"
                );
                continue;
            }
        };
        let (space, near) = (opened.folder.as_ref().map(FolderStore::space), opened.folder.clone());
        let near = near.map(|folder| Arc::new(folder) as Arc<dyn Near>);
        // A folder is locked by the process that has it open; a bucket knows no locks.
        let writers = if near.is_some() { Writers::ThisNode } else { Writers::AnyNode };
        let options = HostOptions { id, portal, url: place.place(), space, near, writers };
        let host = Host::new(opened.store, options);
        open.hosts.push(host);
        open.places.push(place);
        open.folders.extend(opened.folder);
    }
    let twins = marker::refuse_twins(found.iter().map(|(url, id)| (url.as_str(), *id)));
    twins.map_err(|error| NodeError::Hosts(error.to_string()))?;
    known.write(&places.state())?;
    futures::future::join_all(open.hosts.iter().map(Host::check)).await;
    for host in &open.hosts {
        tasks.spawn(host.clone().watch(stop.clone()));
    }
    Ok(open)
}

fn configured(config: &Checked, places: &Places) -> Vec<HostPlace> {
    match &config.hosts {
        Hosts::Configured(hosts) => hosts.clone(),
        Hosts::Embedded => (1..=EMBEDDED_HOSTS)
            .map(|number| {
                let folder = places.embedded_host(number);
                HostPlace { url: format!("file:{}", folder.display()), store: HostStore::Folder(folder), zone: None, weight: 1 }
            })
            .collect(),
    }
}

/// Why a place has no marker to go by.
struct Unseen {
    text: String,
    /// The place belongs to somebody else: starting would be wrong. Otherwise it may come back.
    refuses: bool,
}

async fn look_at(
    place: &HostPlace,
    floor_bytes: Option<u64>,
    portal: marker::PortalId,
    first: bool,
) -> Result<(OpenStore, Result<marker::Marker, Unseen>), NodeError> {
    let opened = OpenStore::of(place, floor_bytes)?;
    let look = async {
        match first {
            true => marker::create(&*opened.store, portal).await,
            false => marker::read(&*opened.store).await,
        }
    };
    let seen = match tokio::time::timeout(MARKER_WAIT, look).await {
        Ok(Ok(marker)) => Ok(marker),
        Ok(Err(error)) => {
            let refuses = !matches!(error, MarkerError::Missing | MarkerError::Store(_));
            Err(Unseen { text: error.to_string(), refuses })
        }
        Err(_) => Err(Unseen { text: "it did not answer in time".to_owned(), refuses: false }),
    };
    Ok((opened, seen))
}

/// The store of a host.
struct OpenStore {
    store: Arc<dyn ObjectStore>,
    /// The same, if it is a folder.
    folder: Option<FolderStore>,
}

impl OpenStore {
    fn of(place: &HostPlace, floor_bytes: Option<u64>) -> Result<OpenStore, NodeError> {
        match &place.store {
            HostStore::Folder(path) => {
                let folder = FolderStore::new(path, FolderOptions { floor_bytes });
                Ok(OpenStore { store: Arc::new(folder.clone()), folder: Some(folder) })
            }
            HostStore::Bucket(bucket) => {
                let Bucket { bucket, prefix, endpoint, region, key, virtual_hosted } = (**bucket).clone();
                let key = key.map(|key| (key.id, key.secret, key.session));
                let options = BucketOptions { bucket, prefix, endpoint, region, key, virtual_hosted };
                let store = bucket::open(options).map_err(|error| NodeError::Hosts(format!("host {}: {error}", place.place())))?;
                Ok(OpenStore { store, folder: None })
            }
        }
    }
}

fn refused(place: &HostPlace, error: &MarkerError) -> NodeError {
    NodeError::Hosts(format!("host {}: {error}", place.place()))
}

/// Which host id was seen at which place.
#[derive(Default)]
struct Known {
    ids: BTreeMap<String, HostId>,
}

impl Known {
    fn read(state: &Path) -> Result<Known, NodeError> {
        let path = state.join("hosts.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Known::default()),
            Err(source) => return Err(NodeError::Io { doing: format!("read {}", path.display()), source }),
        };
        let bad = |why: String| {
            NodeError::Hosts(format!("{} cannot be read: {why}. Remove it if all hosts are in their places", path.display()))
        };
        let ids: BTreeMap<String, String> = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let parse = |(url, id): (String, String)| {
            id.parse().map(|id| (url, id)).map_err(|_| bad("a host id is not 32 hex digits".to_owned()))
        };
        Ok(Known { ids: ids.into_iter().map(parse).collect::<Result<_, _>>()? })
    }

    fn write(&self, state: &Path) -> Result<(), NodeError> {
        let ids: BTreeMap<&String, String> = self.ids.iter().map(|(url, id)| (url, id.to_string())).collect();
        let text = serde_json::to_vec_pretty(&ids).expect("text maps to text");
        replace(&state.join("hosts.json"), &text)
    }
}

/// Writes a small file whole and durably, or not at all.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), NodeError> {
    let folder = path.parent().expect("files in the data directory have a folder");
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| NodeError::Io { doing: format!("write {}", path.display()), source })
}

/// The host table: from the hosts, where it is a record on all of them; made and written at the first start. While too
/// few hosts answer, the copy of the last start serves.
pub async fn table(
    hosts: &OpenHosts,
    key: &PortalKey,
    config: &Checked,
    state: &Path,
    first: bool,
) -> Result<HostTable, NodeError> {
    let records = Records::new(Arc::new(BareHosts(hosts.hosts.clone())), key.clone(), RecordsOptions::default());
    let copy = state.join("host-table");
    let bad = |error: crate::renter::place::TableError| NodeError::Hosts(error.to_string());
    let table = match records.newest(&RecordKey::host_table()).await {
        Ok(Some(record)) => HostTable::decode(&record.body).map_err(bad)?,
        Ok(None) if first => {
            let table = new_table(hosts);
            let record = Record::new(RecordKey::host_table(), Order::version(table.epoch), table.encode().map_err(bad)?);
            records.put(record).await?;
            table
        }
        Ok(None) => {
            return Err(NodeError::Hosts(
                "the hosts have this portal's markers, but no host table: are these all of its hosts? Compare the configuration"
                    .to_owned(),
            ));
        }
        Err(error) => {
            let Ok(bytes) = std::fs::read(&copy) else { return Err(error.into()) };
            tracing::warn!(%error, "too few hosts answer to read the host table: using the copy of the last start");
            HostTable::decode(&bytes).map_err(bad)?
        }
    };
    replace(&copy, &table.encode().map_err(bad)?)?;
    tell_differences(hosts, &table, config);
    records.settle().await;
    Ok(table)
}

fn new_table(hosts: &OpenHosts) -> HostTable {
    let row = |(host, place): (&Host, &HostPlace)| HostRow {
        id: host.id(),
        zone: place.zone.clone().unwrap_or_default(),
        weight: place.weight,
        state: RowState::Active,
    };
    HostTable { epoch: 1, hosts: hosts.hosts.iter().zip(&hosts.places).map(row).collect() }
}

fn tell_differences(hosts: &OpenHosts, table: &HostTable, config: &Checked) {
    for host in &hosts.hosts {
        if !table.hosts.iter().any(|row| row.id == host.id()) {
            tracing::warn!(host = host.url(), "this host is configured but not in the portal's host table: it is not used");
        }
    }
    let missing = table.hosts.iter().filter(|row| !hosts.hosts.iter().any(|host| host.id() == row.id)).count();
    if missing > 0 {
        tracing::warn!(
            missing,
            configured = hosts.hosts.len(),
            "hosts of the portal's table are not configured here: they count as down"
        );
    }
    let up = hosts.hosts.iter().filter(|host| host.state() == HostState::Up).count();
    tracing::info!(up, of = table.hosts.len(), epoch = table.epoch, parity = config.redundancy.parity_pieces, "hosts");
}

/// The hosts as the operator sees them. `notes` are the open notes about damage.
pub fn views(renter: &Renter, notes: &[Note]) -> Vec<HostView> {
    let mut noted: BTreeMap<HostId, u64> = BTreeMap::new();
    for note in notes {
        *noted.entry(note.host).or_default() += 1;
    }
    renter.hosts().iter().map(|host| view(renter, host, noted.get(&host.id()).copied().unwrap_or(0))).collect()
}

/// In words for operators.
fn why_set_aside(aside: &SetAside) -> String {
    let hours = aside.back_after.as_secs_f64() / 3600.0;
    format!(
        "several different pieces from it were wrong lately, so it is asked only for what nobody else gives. It comes back \
         after {} more right answers, or in {hours:.1} hours if nothing wrong is heard of it; writes go to it as before",
        aside.right_answers_missing
    )
}

fn view(renter: &Renter, host: &Host, damage_noted: u64) -> HostView {
    let health = host.health();
    let checked = renter.checks_of(host.id());
    let (state, reason) = match health.state {
        HostState::Up => ("up", None),
        HostState::ReadOnly => ("read-only", Some("it has too little free space, or refuses writes".to_owned())),
        HostState::Down { reason } => ("down", Some(reason.to_string())),
    };
    let latency = health.latency.iter().flat_map(|row| {
        let name = format!("{}_{}", row.operation.as_str(), row.size.as_str());
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        [(format!("{name}_p50"), ms(row.prediction.p50)), (format!("{name}_p95"), ms(row.prediction.p95))]
    });
    HostView {
        id: host.id().to_string(),
        url: host.url().to_owned(),
        state: state.to_owned(),
        reason,
        used_bytes: health.used_bytes,
        free_bytes: health.free_bytes,
        failures: health.failures,
        wrong_pieces: health.wrong_pieces,
        set_aside: renter.set_aside(host.id()).as_ref().map(why_set_aside),
        damage_noted,
        checked: CheckedView {
            right: checked.right,
            wrong: checked.wrong,
            missing: checked.missing,
            unknown: checked.unknown,
            last_ms: (checked.last_ms > 0).then_some(checked.last_ms),
        },
        in_flight: health.in_flight.into(),
        latency_ms: latency.collect(),
    }
}
