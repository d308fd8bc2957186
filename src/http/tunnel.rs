//! `CONNECT`: a tunnel that ends in this very gateway (`specs/ipfs-gateway.md` 2.3). It is opened for names that are served
//! here, and for nothing else: no byte is ever passed on to another host.

use std::net::SocketAddr;
use std::sync::Arc;

use ::http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use tokio_util::sync::CancellationToken;

use super::ask::Reader;
use super::connection;
use super::hosts;
use super::pace::Line;
use super::refusal::Refusal;
use super::reply::{Reply, ReplyBody, refuse};
use super::serve::{Door, Place, PublicService};
use super::services::Services;

/// Where a connection came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    Socket,
    /// A tunnel is not led through another.
    Tunnel,
}

/// Answers a `CONNECT`, and serves what comes through the tunnel afterwards.
pub async fn open(
    services: Arc<Services>,
    request: Request<Incoming>,
    peer: SocketAddr,
    within: Within,
    door: &Arc<Door>,
) -> Reply {
    match allowed(&services, &request, peer, within, door).await {
        Err(refusal) => refuse(&refusal, request.method(), Reader::Text),
        Ok(place) => {
            let door = door.clone();
            tokio::spawn(async move {
                match hyper::upgrade::on(request).await {
                    Ok(upgraded) => serve(services, upgraded, peer, door).await,
                    Err(error) => tracing::debug!(%error, %peer, "a tunnel was not opened"),
                }
                drop(place);
            });
            Response::new(ReplyBody::empty())
        }
    }
}

/// Counts as a connection of its own: the one it came by ends with it, but not before.
async fn allowed(
    services: &Services,
    request: &Request<Incoming>,
    peer: SocketAddr,
    within: Within,
    door: &Door,
) -> Result<Place, Refusal> {
    if within == Within::Tunnel || request.version() >= Version::HTTP_2 {
        return Err(Refusal::Method);
    }
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned()).ok_or(Refusal::BadHeader("Host"))?;
    if !hosts::is_served(services, &host).await? {
        return Err(Refusal::NotServedHere);
    }
    door.enter_now(peer.ip()).ok_or(Refusal::TooMany)
}

async fn serve(services: Arc<Services>, upgraded: Upgraded, peer: SocketAddr, door: Arc<Door>) {
    let line = Line::new();
    let service = PublicService { services, peer, door, line: line.clone(), within: Within::Tunnel };
    let io = hyper_util::rt::TokioIo::new(upgraded);
    connection::serve(io, line, service, CancellationToken::new(), connection::HEAD_BYTES_MAX).await;
}
