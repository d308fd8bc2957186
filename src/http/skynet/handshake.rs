//! Handshake names (`skynet.md` 10): what one points to, and the skylink in the end.

use ::http::StatusCode;
use serde_json::json;

use crate::address::{SKYLINK_BYTES, Skylink};
use crate::http::ask::Ask;
use crate::http::plan::Disposition;
use crate::http::refusal::{PortalRefusal, Refusal};
use crate::http::reply::{Clock, Reply, made_here};
use crate::http::services::Services;
use crate::names::{EntryId, HandshakeTarget};

use super::content;

/// `/hnsres/{name}`.
pub fn pointer(services: &Services, ask: &Ask, name: &str) -> Result<Reply, Refusal> {
    let body = match services.options.handshake.get(name).ok_or(PortalRefusal::UnknownHandshakeName)? {
        HandshakeTarget::Skylink(link) => json!({ "skylink": format!("sia://{link}") }),
        HandshakeTarget::Entry { key, datakey } => {
            json!({ "registry": { "publickey": key.to_string(), "datakey": hex::encode(datakey) } })
        }
    };
    Ok(made_here(StatusCode::OK, "application/json; charset=utf-8", &ask.method, format!("{body}\n")))
}

/// `/hns/{name}[/path]`.
pub async fn answer(services: &Services, ask: &Ask, clock: &Clock) -> Result<Reply, Refusal> {
    let rest = ask.path.strip_prefix("/hns/").ok_or(Refusal::NoRoute)?;
    let name = rest.split('/').next().unwrap_or_default();
    let link = link_of(services, name).await?;
    content::answer_below(services, ask, clock, &format!("/{link}{}", &rest[name.len()..]), Disposition::Inline).await
}

/// The skylink that a name leads to; its entry is read anew each time.
pub async fn link_of(services: &Services, name: &str) -> Result<Skylink, Refusal> {
    match services.options.handshake.get(name).ok_or(PortalRefusal::UnknownHandshakeName)? {
        HandshakeTarget::Skylink(link) => Ok(link),
        HandshakeTarget::Entry { key, datakey } => {
            let signed = services.names.entry(&EntryId::of(&key, &datakey)).await?.ok_or(PortalRefusal::UnknownHandshakeName)?;
            Ok(link_in(signed.entry.data()).ok_or(PortalRefusal::UnknownHandshakeName)?)
        }
    }
}

/// An entry holds the text of a skylink, or the bytes of one.
fn link_in(data: &[u8]) -> Option<Skylink> {
    if let Ok(bytes) = <&[u8; SKYLINK_BYTES]>::try_from(data) {
        return Skylink::from_bytes(bytes).ok();
    }
    let text = std::str::from_utf8(data).ok()?;
    Skylink::parse(text.strip_prefix("sia://").unwrap_or(text)).ok()
}
