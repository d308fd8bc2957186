//! The marker of a host: `skygate-host.json` (`docs/formats.md` 3).
//!
//! It tells a host of ours from an empty place. A known host without it is down, never empty: most often its disk is not mounted.
//! It is made once, at a host's first start, by [`create`], and by nothing else.

use std::fmt;

use object_store::{GetOptions, GetRange, ObjectStore, PutMode, PutOptions, path::Path};
use serde::{Deserialize, Serialize};

use futures::StreamExt;

use super::{
    folder::{FolderError, MARKER_KEY},
    host::HostId,
};

/// Version of the marker written here.
pub const MARKER_FORMAT: u64 = 1;
/// Longest marker read: far more than ours have, and nothing for the memory.
pub const MARKER_BYTES_MAX: usize = 4_096;

/// The portal a host belongs to: its ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortalId(pub [u8; 32]);

impl fmt::Display for PortalId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PortalId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PortalId({self})")
    }
}

/// What a marker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    pub portal: PortalId,
    pub host: HostId,
}

/// Why a place is not taken for a host of ours.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MarkerError {
    #[error("there is no {MARKER_KEY}: not mounted, or not a host of ours")]
    Missing,
    #[error("{MARKER_KEY} is of format {format}, written by a newer skygate; this one knows {MARKER_FORMAT}")]
    Newer { format: u64 },
    #[error("{MARKER_KEY} is damaged: {why}")]
    Damaged { why: String },
    #[error("the host belongs to another portal, {found}")]
    ForeignPortal { found: PortalId },
    #[error("another host is there than the one known at this place: {found} instead of {known}")]
    OtherHost { known: HostId, found: HostId },
    #[error("the host {host} is configured twice: {first} and {second} are one and the same, or copies of each other")]
    SeenTwice { host: HostId, first: String, second: String },
    #[error("there are objects but no {MARKER_KEY}: the place belonged to a host, and is not taken for a new one")]
    NotEmpty,
    #[error("{0}")]
    Store(std::sync::Arc<object_store::Error>),
}

#[derive(Serialize, Deserialize)]
struct Written {
    format: u64,
    portal: String,
    host: String,
}

/// Only the version, so that a newer marker is told from a damaged one whatever else changed.
#[derive(Deserialize)]
struct Version {
    format: u64,
}

impl Marker {
    pub fn encode(&self) -> Vec<u8> {
        let written = Written { format: MARKER_FORMAT, portal: self.portal.to_string(), host: self.host.to_string() };
        let mut bytes = serde_json::to_vec_pretty(&written).expect("a number and two strings are always JSON");
        bytes.push(b'\n');
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Marker, MarkerError> {
        let damaged = |why: String| MarkerError::Damaged { why };
        if bytes.len() > MARKER_BYTES_MAX {
            return Err(damaged(format!("longer than {MARKER_BYTES_MAX} bytes")));
        }
        let version: Version = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if version.format > MARKER_FORMAT {
            return Err(MarkerError::Newer { format: version.format });
        }
        if version.format < MARKER_FORMAT {
            return Err(damaged(format!("there never was a format {}", version.format)));
        }
        let written: Written = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        let mut portal = [0; 32];
        hex::decode_to_slice(&written.portal, &mut portal).map_err(|error| damaged(format!("portal: {error}")))?;
        let host = written.host.parse().map_err(|error| damaged(format!("host: {error}")))?;
        Ok(Marker { portal: PortalId(portal), host })
    }

    /// Checks that it is the marker of one of this portal's hosts, and of `known` if the place is known.
    pub fn verify(&self, portal: PortalId, known: Option<HostId>) -> Result<(), MarkerError> {
        if self.portal != portal {
            return Err(MarkerError::ForeignPortal { found: self.portal });
        }
        match known {
            Some(known) if known != self.host => Err(MarkerError::OtherHost { known, found: self.host }),
            _ => Ok(()),
        }
    }
}

/// Reads the marker. Takes as long as the store does: the caller sets the time-out.
pub async fn read(store: &dyn ObjectStore) -> Result<Marker, MarkerError> {
    let range = GetRange::Bounded(0..MARKER_BYTES_MAX as u64 + 1);
    let options = GetOptions { range: Some(range), ..GetOptions::default() };
    let mut stream = store.get_opts(&Path::from(MARKER_KEY), options).await.map_err(store_error)?.into_stream();
    let mut bytes = Vec::new();
    while let Some(part) = stream.next().await {
        bytes.extend_from_slice(&part.map_err(store_error)?);
        if bytes.len() > MARKER_BYTES_MAX {
            break;
        }
    }
    Marker::decode(&bytes)
}

/// Makes a new host of an empty place, at first start or by the command that adds a host; answers its marker. A place that has one already keeps it,
/// and that one is answered; a place with objects but no marker is refused.
pub async fn create(store: &dyn ObjectStore, portal: PortalId) -> Result<Marker, MarkerError> {
    match read(store).await {
        Err(MarkerError::Missing) => {}
        found => return found,
    }
    match store.list(None).next().await {
        None => {}
        Some(Ok(_)) => return Err(MarkerError::NotEmpty),
        // A folder lists nothing before it has its marker; it looks for objects itself.
        Some(Err(error)) if matches!(folder_error(&error), Some(FolderError::NoMarker)) => {}
        Some(Err(error)) => return Err(store_error(error)),
    }
    let marker = Marker { portal, host: HostId::random() };
    let location = Path::from(MARKER_KEY);
    let put = store.put_opts(&location, marker.encode().into(), PutOptions::from(PutMode::Create)).await;
    match put {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
        Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
            store.put_opts(&location, marker.encode().into(), PutOptions::default()).await.map_err(store_error)?;
        }
        Err(error) => return Err(store_error(error)),
    }
    // What is there now counts: somebody else may have been first.
    read(store).await
}

/// Refuses a host that is configured twice. `found` are places (for the message) and the ids their markers say.
pub fn refuse_twins<'a>(found: impl IntoIterator<Item = (&'a str, HostId)>) -> Result<(), MarkerError> {
    let mut seen = std::collections::BTreeMap::new();
    for (place, host) in found {
        if let Some(first) = seen.insert(host, place) {
            return Err(MarkerError::SeenTwice { host, first: first.into(), second: place.into() });
        }
    }
    Ok(())
}

fn store_error(error: object_store::Error) -> MarkerError {
    match &error {
        object_store::Error::NotFound { .. } => MarkerError::Missing,
        _ => match folder_error(&error) {
            Some(FolderError::NoMarker) => MarkerError::Missing,
            Some(FolderError::NotEmpty) => MarkerError::NotEmpty,
            _ => MarkerError::Store(std::sync::Arc::new(error)),
        },
    }
}

fn folder_error(error: &object_store::Error) -> Option<&FolderError> {
    match error {
        object_store::Error::Generic { source, .. } => source.downcast_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, memory::InMemory};

    use super::*;
    use crate::renter::folder::{FolderOptions, FolderStore};

    const PORTAL: PortalId = PortalId([7; 32]);

    /// The vector of `docs/formats.md` 3, as others may write it.
    #[test]
    fn decode_table() {
        let (portal, host) = ("07".repeat(32), "0a".repeat(16));
        let good = format!(r#"{{"format":1,"portal":"{portal}","host":"{host}"}}"#);
        let marker = Marker { portal: PORTAL, host: HostId([10; 16]) };
        assert_eq!(Marker::decode(good.as_bytes()).unwrap(), marker);
        assert_eq!(Marker::decode(&marker.encode()).unwrap(), marker);
        let unknown_key = good.replace("{", r#"{"later":[1],"#);
        assert_eq!(Marker::decode(unknown_key.as_bytes()).unwrap(), marker);
        for (text, expect) in [
            (good.replace(r#""format":1"#, r#""format":2,"portal2":{}"#).replace("portal\"", "p\""), "newer"),
            (r#"{"format":99}"#.into(), "newer"),
            (good.replace(":1,", ":0,"), "damaged"),
            (good.replace(&host, "0a"), "damaged"),
            (good.replace(&portal, &"zz".repeat(32)), "damaged"),
            ("".into(), "damaged"),
            ("{}".into(), "damaged"),
            (" ".repeat(5_000), "damaged"),
        ] {
            let error = Marker::decode(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expect), "{text:?}: {error}");
        }
    }

    #[test]
    fn verify_table() {
        let marker = Marker { portal: PORTAL, host: HostId([1; 16]) };
        assert!(marker.verify(PORTAL, None).is_ok());
        assert!(marker.verify(PORTAL, Some(HostId([1; 16]))).is_ok());
        assert!(matches!(marker.verify(PORTAL, Some(HostId([2; 16]))), Err(MarkerError::OtherHost { .. })));
        assert!(matches!(marker.verify(PortalId([8; 32]), None), Err(MarkerError::ForeignPortal { .. })));
        let (one, two) = (HostId([1; 16]), HostId([2; 16]));
        assert!(refuse_twins([("a", one), ("b", two)]).is_ok());
        let error = refuse_twins([("a", one), ("b", two), ("c", one)]).unwrap_err();
        assert!(matches!(error, MarkerError::SeenTwice { host, .. } if host == one));
    }

    #[tokio::test]
    async fn create_makes_one_and_keeps_it() {
        let top = tempfile::tempdir().unwrap();
        let folder = FolderStore::new(top.path().join("new/host"), FolderOptions::default());
        let stores: [&dyn ObjectStore; 2] = [&folder, &InMemory::new()];
        for store in stores {
            assert!(matches!(read(store).await, Err(MarkerError::Missing)));
            let made = create(store, PORTAL).await.unwrap();
            assert_eq!(create(store, PORTAL).await.unwrap(), made);
            assert_eq!(read(store).await.unwrap(), made);
            assert_eq!(create(store, PortalId([9; 32])).await.unwrap().portal, PORTAL, "a foreign marker stays");
        }
        assert!(top.path().join("new/host").join(MARKER_KEY).is_file());
    }

    #[tokio::test]
    async fn a_place_with_objects_is_no_new_host() {
        let memory = InMemory::new();
        memory.put(&Path::from("records/key/00/k/o"), "x".into()).await.unwrap();
        assert!(matches!(create(&memory, PORTAL).await, Err(MarkerError::NotEmpty)));
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("sectors")).unwrap();
        let folder = FolderStore::new(top.path(), FolderOptions::default());
        assert!(matches!(create(&folder, PORTAL).await, Err(MarkerError::NotEmpty)));
        assert!(!top.path().join(MARKER_KEY).exists());
    }
}
