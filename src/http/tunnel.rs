//! `CONNECT`: a tunnel that ends in this very gateway (`specs/ipfs-gateway.md` 2.3). It is opened for names that are served
//! here, and for nothing else: no byte is ever passed on to another host.

use std::net::SocketAddr;
use std::sync::Arc;

use ::http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ask::Reader;
use super::hosts;
use super::refusal::Refusal;
use super::reply::{Reply, ReplyBody, refuse};
use super::serve::{PublicService, connection_builder};
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
    permits: &Arc<Semaphore>,
) -> Reply {
    match allowed(&services, &request, within, permits).await {
        Err(refusal) => refuse(&refusal, request.method(), Reader::Text),
        Ok(permit) => {
            let permits = permits.clone();
            tokio::spawn(async move {
                match hyper::upgrade::on(request).await {
                    Ok(upgraded) => serve(services, upgraded, peer, permits).await,
                    Err(error) => tracing::debug!(%error, %peer, "a tunnel was not opened"),
                }
                drop(permit);
            });
            Response::new(ReplyBody::empty())
        }
    }
}

/// Counts as a connection of its own: the one it came by ends with it, but not before.
async fn allowed(
    services: &Services,
    request: &Request<Incoming>,
    within: Within,
    permits: &Arc<Semaphore>,
) -> Result<OwnedSemaphorePermit, Refusal> {
    if within == Within::Tunnel || request.version() >= Version::HTTP_2 {
        return Err(Refusal::Method);
    }
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned()).ok_or(Refusal::BadHeader("Host"))?;
    if !hosts::is_served(services, &host).await? {
        return Err(Refusal::NotServedHere);
    }
    permits.clone().try_acquire_owned().map_err(|_| Refusal::TooMany)
}

async fn serve(services: Arc<Services>, upgraded: Upgraded, peer: SocketAddr, permits: Arc<Semaphore>) {
    let service = PublicService { services, peer, permits, within: Within::Tunnel };
    let io = hyper_util::rt::TokioIo::new(hyper_util::rt::TokioIo::new(upgraded));
    if let Err(error) = connection_builder().serve_connection(io, service).await {
        tracing::debug!(%error, %peer, "a tunnel ended");
    }
}
