//! Listeners: connections in, heads read within limits, replies out, and an orderly end.
//!
//! A permit is taken before a connection is accepted, so a flood waits in the kernel's queue and not in memory.
//! On shutdown no connection is accepted any more, idle ones are closed, and those with a request under way have
//! [`HttpOptions::grace`](super::HttpOptions) to end it; an upload that is acknowledged is never cut.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{Method, Request, Response};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::admin;
use super::ask::{Ask, Route, reader};
use super::caller::{Sender, admit_download};
use super::gateway;
use super::hosts;
use super::page;
use super::refusal::Refusal;
use super::reply::{Clock, Reply, ReplyBody, made_here, refuse, refuse_at};
use super::routing;
use super::services::Services;
use super::skynet;
use super::tunnel::{self, Within};

/// Connections served at once on the admin listener: an operator, a scraper, and a few parallel uploads.
const ADMIN_CONNECTIONS_MAX: usize = 256;
/// A head is a path of at most 8 KiB and some headers.
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 100;
/// From the end of one reply to the end of the next head: longer than the idle gaps of browsers' connection pools.
const HEAD_READ_MAX: Duration = Duration::from_secs(75);
/// A connection on which no byte moves in either direction for this long is cut: clients that stopped reading or
/// sending. Longer than any pause this side makes.
const STALL_MAX: Duration = Duration::from_secs(180);
/// Streams of one HTTP/2 connection; browsers open at most about a hundred.
const H2_STREAMS_MAX: u32 = 128;
/// From the head of a request to the head of its reply: longer than the store's own time-outs, so that it only ends
/// what they missed.
const REPLY_HEAD_MAX: Duration = Duration::from_secs(120);
/// Telling a client that it has too many connections: it fits the socket's buffer, so this only ends what hangs.
const TURN_AWAY_MAX: Duration = Duration::from_secs(5);
/// After a failed accept (out of file descriptors) before the next try.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Bound sockets. The public one serves content, the admin one everything else.
pub struct Listeners {
    pub public: TcpListener,
    pub admin: TcpListener,
}

/// Serves until `shutdown` is cancelled and the requests under way have ended, or their grace time has.
pub async fn run(listeners: Listeners, services: Arc<Services>, shutdown: CancellationToken) {
    let grace = services.options.grace;
    let public_limits = Limits {
        connections_max: services.options.public_connections_max,
        per_address_max: services.options.connections_per_address_max,
        grace,
    };
    // Whoever has the key may have all of them.
    let admin_limits = Limits { connections_max: ADMIN_CONNECTIONS_MAX, per_address_max: ADMIN_CONNECTIONS_MAX, grace };
    let router = admin::router(services.clone());
    let public = accept(listeners.public, public_limits, shutdown.clone(), |peer, permits| PublicService {
        services: services.clone(),
        peer,
        permits: permits.clone(),
        within: Within::Socket,
    });
    let admin = accept(listeners.admin, admin_limits, shutdown, |_, _| TowerToHyperService::new(router.clone()));
    tokio::join!(public, admin);
}

/// What differs from listener to listener.
struct Limits {
    connections_max: usize,
    /// From one address that is not loopback: a proxy on this machine speaks for many.
    per_address_max: usize,
    grace: Duration,
}

/// Accepts connections and serves each with a service of its own.
async fn accept<S, B>(
    listener: TcpListener,
    limits: Limits,
    shutdown: CancellationToken,
    new_service: impl Fn(SocketAddr, &Arc<Semaphore>) -> S,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let addresses = Addresses::default();
    let graceful = GracefulShutdown::new();
    let builder = connection_builder();
    loop {
        let accepted = shutdown.run_until_cancelled(async {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        });
        let (stream, peer, permit) = match accepted.await {
            None => break,
            Some((Ok((stream, peer)), permit)) => (stream, peer, permit),
            Some((Err(error), _)) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        let Some(place) = addresses.enter(peer.ip(), limits.per_address_max) else {
            turn_away(stream, permit);
            continue;
        };
        // Without it small replies wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(StallGuard::new(stream)), new_service(peer, &permits)).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, %peer, "connection ended");
            }
            drop((permit, place));
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace = ?limits.grace, "requests still under way after the grace time are cut");
    }
}

/// Connections that are open, by the address they come from.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them; it leaves when it is dropped.
struct AddressPlace {
    address: IpAddr,
    addresses: Addresses,
}

impl Addresses {
    /// `None` if as many are open as there may be.
    fn enter(&self, peer: IpAddr, max: usize) -> Option<AddressPlace> {
        let address = crate::access::client_address(peer);
        let mut open = self.0.lock().expect("no panic under this lock");
        let count = open.entry(address).or_default();
        if *count >= max && !address.is_loopback() {
            return None;
        }
        *count += 1;
        Some(AddressPlace { address, addresses: self.clone() })
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut open = self.addresses.0.lock().expect("no panic under this lock");
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Tells a client why its connection is closed at once.
fn turn_away(mut stream: TcpStream, permit: OwnedSemaphorePermit) {
    const REPLY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    tokio::spawn(async move {
        let told = async {
            stream.write_all(REPLY).await?;
            stream.shutdown().await
        };
        let _ = tokio::time::timeout(TURN_AWAY_MAX, told).await;
        drop(permit);
    });
}

pub(super) fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(HEAD_READ_MAX)
        .adaptive_window(true);
    builder
}

/// The public surfaces, as hyper sees them.
pub(super) struct PublicService {
    pub services: Arc<Services>,
    pub peer: SocketAddr,
    /// Of the listener's connections.
    pub permits: Arc<Semaphore>,
    pub within: Within,
}

impl Service<Request<Incoming>> for PublicService {
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (services, peer) = (self.services.clone(), self.peer);
        if request.method() == Method::CONNECT {
            let (permits, within) = (self.permits.clone(), self.within);
            return Box::pin(async move { Ok(tunnel::open(services, request, peer, within, &permits).await) });
        }
        Box::pin(async move {
            // Held until the last byte of the body is out.
            let Ok(permit) = services.requests.clone().try_acquire_owned() else {
                return Ok(refuse(&Refusal::TooMany, request.method(), reader(request.uri().path(), request.headers())));
            };
            Ok(answer(&services, request, peer).await.map(|body| body.holding(permit)))
        })
    }
}

/// One request on the public listener: head -> Ask -> its surface -> reply. Only the surfaces that take something read
/// the body, within limits of their own.
pub async fn answer<B>(services: &Services, request: Request<B>, peer: SocketAddr) -> Reply
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let clock = Clock::start();
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let reader = reader(parts.uri.path(), &parts.headers);
    let mut ask = match Ask::read(&parts, services.options.hosts.trust(peer.ip())) {
        Ok(ask) => ask,
        Err(refusal) => return gateway::with_cors(refuse(&refusal, &parts.method, reader)),
    };
    let reply = async {
        if let Some(reply) = hosts::arrive(services, &mut ask, &parts.headers).await? {
            return Ok(reply);
        }
        match ask.route {
            Route::Landing => Ok(landing(services, &ask)),
            Route::Ipfs | Route::Ipns => {
                let place = admit_download(services, &ask, &Sender { headers: &parts.headers, peer })?;
                Ok(gateway::answer(services, &ask, &clock).await?.map(|body| body.placed(place)))
            }
            Route::Skylink => {
                let place = admit_download(services, &ask, &Sender { headers: &parts.headers, peer })?;
                Ok(skynet::content::answer(services, &ask, &clock).await?.map(|body| body.placed(place)))
            }
            Route::Routing => routing::answer(services, &ask, &clock, Sender { headers: &parts.headers, peer }, body).await,
            Route::Portal => {
                let sender = Sender { headers: &parts.headers, peer };
                let body = body.into_data_stream().map_err(std::io::Error::other).boxed();
                skynet::api(skynet::Call { services, ask: &ask, clock: &clock, sender, body, upgrade }).await
            }
            Route::Unknown => Err(Refusal::NoRoute),
        }
    };
    // An upload takes as long as it takes: its own room ends it when it stands still.
    let outcome = match parts.method {
        Method::GET | Method::HEAD | Method::OPTIONS => {
            tokio::time::timeout(REPLY_HEAD_MAX, reply).await.unwrap_or(Err(Refusal::HeadTimedOut))
        }
        _ => reply.await,
    };
    let reply = outcome.unwrap_or_else(|refusal| refuse_at(&refusal, &ask.method, ask.reader, &ask.path));
    match ask.route {
        Route::Skylink | Route::Portal | Route::Landing => skynet::with_portal_headers(reply, &ask),
        Route::Ipfs | Route::Ipns | Route::Routing | Route::Unknown => gateway::with_cors(reply),
    }
}

fn landing(services: &Services, ask: &Ask) -> Reply {
    if ask.method == ::http::Method::OPTIONS {
        let mut reply = Response::new(ReplyBody::empty());
        *reply.status_mut() = ::http::StatusCode::NO_CONTENT;
        return reply;
    }
    let text = page::landing(services.options.sample_site.as_deref());
    made_here(::http::StatusCode::OK, "text/html; charset=utf-8", &ask.method, Bytes::from(text))
}

/// A socket that fails when no byte has moved for [`STALL_MAX`], in either direction.
struct StallGuard {
    stream: TcpStream,
    moved_at: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl StallGuard {
    fn new(stream: TcpStream) -> StallGuard {
        StallGuard { stream, moved_at: Instant::now(), alarm: Box::pin(tokio::time::sleep(STALL_MAX)) }
    }

    /// Notes progress, or turns waiting into an error once it has lasted too long. The alarm is moved only when it
    /// rings, so progress costs no timer operation.
    fn watch<T>(&mut self, poll: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.moved_at = Instant::now();
            return poll;
        }
        while self.alarm.as_mut().poll(context).is_ready() {
            let limit = self.moved_at + STALL_MAX;
            if limit <= Instant::now() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no byte moved for too long")));
            }
            self.alarm.as_mut().reset(limit);
        }
        Poll::Pending
    }
}

impl AsyncRead for StallGuard {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(poll, context)
    }
}

impl AsyncWrite for StallGuard {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(poll, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch(poll, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use crate::http::testing::{Memory, read_answer, start, start_with};

    #[tokio::test]
    async fn http_2_without_tls() {
        let server = start(Memory::default()).await;
        let mut client = TcpStream::connect(server.public).await.expect("connects");
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("writes");
        let mut frame = [0; 9];
        client.read_exact(&mut frame).await.expect("a frame");
        assert_eq!(frame[3], 4, "the server's SETTINGS");
    }

    #[tokio::test]
    async fn heads_are_bounded() {
        let server = start(Memory::default()).await;
        let long = format!("X-Long: {}", "x".repeat(64 << 10));
        let many = "X-Many: 1\r\n".repeat(150);
        for header in [long.as_str(), many.trim_end()] {
            let answer = server.get("/", &[header]).await;
            assert!(matches!(answer.status, 0 | 431), "{}", answer.status);
        }
        let path = format!("/ipfs/bafkqaaa/{}", "a/".repeat(300));
        assert_eq!(server.get(&path, &[]).await.status, 400, "too deep");
        assert_eq!(server.get("/", &[]).await.status, 200);
    }

    /// With one permit, the second connection is served when the first is gone.
    #[tokio::test]
    async fn connections_wait_for_their_permit() {
        let server = start_with(Memory::default(), 1).await;
        let mut first = TcpStream::connect(server.public).await.expect("connects");
        first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        let mut some = [0; 16];
        first.read_exact(&mut some).await.expect("served");
        let mut second = TcpStream::connect(server.public).await.expect("the kernel's queue takes it");
        second.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("writes");
        drop(first);
        let mut bytes = Vec::new();
        second.read_to_end(&mut bytes).await.expect("reads");
        assert_eq!(read_answer(&bytes, "GET", false).status, 200);
    }

    #[tokio::test]
    async fn idle_connections_do_not_hold_up_the_end() {
        let server = start(Memory::default()).await;
        let mut idle = TcpStream::connect(server.public).await.expect("connects");
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        let mut some = [0; 16];
        idle.read_exact(&mut some).await.expect("served");
        server.shutdown.cancel();
        server.ended.await.expect("ends though the connection is open");
    }
}
