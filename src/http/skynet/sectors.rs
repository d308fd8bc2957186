//! What clients check or read themselves: metadata, base sectors with and without proof, sectors by root, what a skylink
//! resolves to, and how much of a skyfile is there (`skynet.md` 6).

use ::http::StatusCode;
use ::http::header::HeaderMap;
use bytes::Bytes;
use serde_json::json;

use crate::address::{Skylink, SkylinkKind};
use crate::store::SkyfileHealth;

use crate::http::ask::Ask;
use crate::http::refusal::{Refusal, SkyRefusal};
use crate::http::reply::{Clock, Reply, made_here, stamp};
use crate::http::services::Services;

use super::query::SkyQuery;
use super::resolve::resolve;

/// A sector: no slice ends behind it.
const SECTOR_BYTES: u32 = 4 << 20;

const JSON: &str = "application/json; charset=utf-8";
const BYTES: &str = "application/octet-stream";

/// What is asked of a skylink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The metadata's bytes as they are hashed.
    Metadata,
    BaseSector,
    /// The same and its proof, in one body.
    ProvedBaseSector,
    /// The link itself, of version 1.
    Resolved,
    Health,
}

/// Answers `/skynet/.../{skylink}`; `text` is what stands in the skylink's place.
pub(super) async fn of_skylink(
    services: &Services,
    ask: &Ask,
    clock: &Clock,
    wanted: Wanted,
    text: &str,
) -> Result<Reply, Refusal> {
    let link = Skylink::parse(text).map_err(|error| ask.bad_path(error))?;
    let query = SkyQuery::read(ask)?;
    if wanted == Wanted::Resolved && matches!(link.kind(), SkylinkKind::V1 { .. }) {
        return Err(SkyRefusal::NoResolver.into());
    }
    let find = async {
        let resolved = resolve(services, link).await?;
        let (content, link) = (&services.content, &resolved.link);
        let (kind, body) = match wanted {
            Wanted::Metadata => (JSON, content.skyfile(link, &clock.trace).await?.head().metadata_json.clone()),
            Wanted::BaseSector => (BYTES, content.base_sector(link, &clock.trace).await?),
            Wanted::ProvedBaseSector => {
                let slice = content.proved_base_sector(link, &clock.trace).await?;
                (BYTES, Bytes::from([&slice.bytes[..], slice.proof.as_flattened()].concat()))
            }
            Wanted::Resolved => (JSON, line(&json!({ "skylink": link.to_string() }))),
            Wanted::Health => (JSON, line(&health_view(&content.health(link, &clock.trace).await?))),
        };
        Ok((kind, body, resolved))
    };
    let (kind, body, resolved) = query.within(find).await?;
    let mut headers = HeaderMap::new();
    resolved.put_headers(&mut headers);
    Ok(reply(ask, clock, kind, body, headers))
}

/// `/skynet/root?root=&offset=&length=`
pub(super) async fn root(services: &Services, ask: &Ask, clock: &Clock) -> Result<Reply, Refusal> {
    let mut root = [0; 32];
    let text = ask.parameter("root").unwrap_or_default();
    hex::decode_to_slice(text, &mut root).map_err(|_| Refusal::BadQuery("root is the 64 hex digits of a sector's root"))?;
    let number = |name, wrong| {
        let text = ask.parameter(name).unwrap_or_default();
        text.parse::<u32>().map_err(|_| Refusal::BadQuery(wrong))
    };
    let offset = number("offset", "offset is a number of bytes, within a sector of 4 MiB")?;
    let length = number("length", "length is a number of bytes, within a sector of 4 MiB")?;
    let end = offset.checked_add(length).filter(|end| *end <= SECTOR_BYTES && length > 0);
    let end = end.ok_or(Refusal::BadQuery("offset and length name a stretch of a sector of 4 MiB"))?;
    let query = SkyQuery::read(ask)?;
    let find = async { Ok(services.content.sector_bytes(&root, offset..end, &clock.trace).await?) };
    let body = query.within(find).await?;
    Ok(reply(ask, clock, BYTES, body, HeaderMap::new()))
}

fn reply(ask: &Ask, clock: &Clock, kind: &'static str, body: Bytes, headers: HeaderMap) -> Reply {
    let mut reply = made_here(StatusCode::OK, kind, &ask.method, body);
    reply.headers_mut().extend(headers);
    stamp(reply.headers_mut(), clock, clock.started.elapsed());
    reply
}

fn line(value: &serde_json::Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

/// Redundancy is how often the bytes could be made of what is there; of the whole, that of the worst slab.
fn health_view(health: &SkyfileHealth) -> serde_json::Value {
    let data_pieces = f64::from(health.data_pieces.max(1));
    let slabs: Vec<f64> = health.slabs.iter().map(|pieces| *pieces as f64 / data_pieces).collect();
    let worst = slabs.iter().copied().reduce(f64::min).unwrap_or_default();
    json!({
        "basesectorredundancy": health.base_copies,
        "fanouteffectiveredundancy": worst,
        "fanoutdatapieces": health.data_pieces,
        "fanoutparitypieces": health.parity_pieces,
        // Ours: of how many slabs the file is, since of many only some are looked at.
        "fanoutslabs": health.slab_count,
        "fanoutredundancy": slabs,
    })
}
