//! Version 2 skylinks: the registry entry that each names holds another skylink, in the end one of version 1
//! (`skynet.md` 5). The entries on the way are the proof that a client checks.
//!
//! An entry is read from its quorum each time: its owner may have moved it a moment ago.

use ::http::HeaderName;
use ::http::header::{self, HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::address::{SKYLINK_BYTES, Skylink, SkylinkKind};
use crate::deny::Subject;
use crate::names::{EntryId, SignedEntry};

use crate::http::plan::ascii;
use crate::http::refusal::{Refusal, SkyRefusal};
use crate::http::services::Services;

use super::content::SKYNET_SKYLINK;

const SKYNET_PROOF: HeaderName = HeaderName::from_static("skynet-proof");

/// Entries on the way to a skylink of version 1 (`skynet.md` 5).
const HOPS_MAX: usize = 2;

/// Where a skylink leads to.
pub(super) struct Resolved {
    /// Of version 1.
    pub link: Skylink,
    /// The entries on the way, the one that was asked for first. None for a link of version 1.
    proof: Vec<SignedEntry>,
}

/// Follows a skylink to its end. Every hop is asked of the operator's lists.
pub(super) async fn resolve(services: &Services, link: Skylink) -> Result<Resolved, Refusal> {
    let mut resolved = Resolved { link, proof: Vec::new() };
    loop {
        if let Some(reason) = services.content.denied(&Subject::Sector { root: resolved.link.hash() }) {
            return Err(Refusal::Denied(Box::new(reason)));
        }
        let SkylinkKind::V2 { entry_id } = resolved.link.kind() else { return Ok(resolved) };
        if resolved.proof.len() == HOPS_MAX {
            return Err(SkyRefusal::NestedTooDeep.into());
        }
        let entry = services.names.entry(&EntryId(entry_id)).await?.ok_or(SkyRefusal::EntryNotFound)?;
        resolved.link = link_in(entry.entry.data())?;
        resolved.proof.push(entry);
    }
}

/// The skylink that is an entry's data.
fn link_in(data: &[u8]) -> Result<Skylink, SkyRefusal> {
    if data.is_empty() {
        return Err(SkyRefusal::EmptyEntry);
    }
    let bytes: &[u8; SKYLINK_BYTES] = data.try_into().map_err(|_| SkyRefusal::MalformedEntry)?;
    if *bytes == [0; SKYLINK_BYTES] {
        return Err(SkyRefusal::EntryDeleted);
    }
    Skylink::from_bytes(bytes).map_err(|_| SkyRefusal::MalformedEntry)
}

impl Resolved {
    /// `Skynet-Skylink`, and for a link that can change its proof, and that no cache may answer for the registry.
    pub fn put_headers(&self, headers: &mut HeaderMap) {
        headers.insert(SKYNET_SKYLINK, ascii(self.link.to_string()));
        if self.is_proved() {
            let rows: Vec<EntryView<'_>> = self.proof.iter().map(EntryView::of).collect();
            if let Ok(value) = serde_json::to_string(&rows).map_err(drop).and_then(|text| HeaderValue::try_from(text).map_err(drop))
            {
                headers.insert(SKYNET_PROOF, value);
            }
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
    }

    /// Did entries lead here?
    pub fn is_proved(&self) -> bool {
        !self.proof.is_empty()
    }
}

/// An entry in Skynet's JSON, its fields in Skynet's order.
#[derive(Serialize)]
struct EntryView<'a> {
    data: String,
    revision: u64,
    datakey: String,
    publickey: KeyView<'a>,
    signature: String,
    r#type: u8,
}

#[derive(Serialize)]
struct KeyView<'a> {
    algorithm: &'a str,
    key: String,
}

impl EntryView<'_> {
    fn of(signed: &SignedEntry) -> EntryView<'static> {
        let entry = &signed.entry;
        EntryView {
            data: hex::encode(entry.data()),
            revision: entry.revision(),
            datakey: hex::encode(entry.datakey()),
            publickey: KeyView { algorithm: "ed25519", key: STANDARD.encode(entry.key().0) },
            signature: hex::encode(signed.signature),
            r#type: entry.entry_type() as u8,
        }
    }
}
