//! `POST /skynet/pin`, `/skynet/unpin` and `/skynet/restore` (`skynet.md` 6): what is stored here stays, goes, or comes back.

use futures::{StreamExt, TryStreamExt};

use crate::access::Caller;
use crate::address::{Skylink, SkylinkKind};
use crate::ingest::{IngestError, Whose};

use super::content::SKYNET_SKYLINK;
use super::{Call, no_content, upload};
use crate::http::caller::Work;
use crate::http::plan::ascii;
use crate::http::refusal::{PinRefusal, Refusal};
use crate::http::reply::Reply;

/// Keeps content that is stored here alive for the caller, too.
pub async fn pin(call: Call<'_>, link: &str) -> Result<Reply, Refusal> {
    let admitted = call.sender.admit(call.services, call.ask, Work::Upload)?;
    let link = parse(&call, link)?;
    call.services.uploads.pin(&link, admitted.caller.owner()).await?;
    let mut reply = no_content();
    reply.headers_mut().insert(SKYNET_SKYLINK, ascii(link.to_string()));
    Ok(reply)
}

/// Removes the caller's pins, or as the operator everybody's.
pub async fn unpin(call: Call<'_>, link: &str) -> Result<Reply, Refusal> {
    let caller = call.sender.writer(call.services, call.ask)?;
    let link = parse(&call, link)?;
    let whose = match &caller {
        Caller::Admin => Whose::Everybody,
        Caller::Local | Caller::Key(_) => Whose::Owner(caller.owner().to_owned()),
        Caller::Anybody => return Err(PinRefusal::NotOwner.into()),
    };
    let unpinned = call.services.uploads.unpin(&link, whose).await?;
    match (unpinned.removed, unpinned.left) {
        (0, 0) => Err(PinRefusal::NoPin.into()),
        (0, _) => Err(PinRefusal::NotOwner.into()),
        _ => {
            call.services.answers.clear();
            Ok(no_content())
        }
    }
}

/// Takes in a skyfile as its own base sector, which a client made or kept.
pub async fn restore(call: Call<'_>) -> Result<Reply, Refusal> {
    let admitted = call.sender.admit(call.services, call.ask, Work::Upload)?;
    let body = admitted.metered(call.body).map_err(|error| IngestError::Body(error.to_string())).boxed();
    let restored = call.services.uploads.restore(body, admitted.caller.owner()).await;
    Ok(upload::told(&restored.map_err(|error| admitted.explain(error.into()))?))
}

/// Pins are for what never changes.
fn parse(call: &Call<'_>, link: &str) -> Result<Skylink, Refusal> {
    let link = Skylink::parse(link).map_err(|error| call.ask.bad_path(error))?;
    match link.kind() {
        SkylinkKind::V1 { .. } => Ok(link),
        SkylinkKind::V2 { .. } => Err(PinRefusal::Resolver.into()),
    }
}
