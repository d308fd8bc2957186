//! Listeners: connections in, heads read within limits, replies out, and an orderly end.
//!
//! A permit is taken before a connection is accepted, so a flood waits in the kernel's queue and not in memory.
//! On shutdown no connection is accepted any more, idle ones are closed, and those with a request under way have
//! [`HttpOptions::grace`](super::HttpOptions) to end it; an upload that is acknowledged is never cut.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::{Method, Request, Response, Version, header};
use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{OpenPlace, client_address};

use super::admin;
use super::ask::{Ask, Route, Trust, reader};
use super::caller::{self, Sender, admit_download};
use super::connection;
use super::gateway;
use super::hosts::{self, HostRules};
use super::pace::{self, Line, Paced, Under};
use super::page;
use super::refusal::Refusal;
use super::reply::{Clock, Reply, ReplyBody, made_here, refuse, refuse_at};
use super::routing;
use super::services::Services;
use super::skynet;
use super::tunnel::{self, Within};

/// Connections served at once on the admin listener: an operator, a scraper, and a few parallel uploads.
const ADMIN_CONNECTIONS_MAX: usize = 256;
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
    let public = Door {
        permits: Arc::new(Semaphore::new(services.options.public_connections_max)),
        addresses: Addresses::default(),
        per_address_max: services.options.connections_per_address_max,
        read_bytes_max: connection::HEAD_BYTES_MAX,
        exempt: speak_for_many(services.options.hosts.clone()),
    };
    // Whoever has the key may have all of them.
    let admin = Door {
        permits: Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX)),
        addresses: Addresses::default(),
        per_address_max: ADMIN_CONNECTIONS_MAX,
        read_bytes_max: connection::ADMIN_READ_BYTES_MAX,
        exempt: Box::new(|_| true),
    };
    let router = admin::router(services.clone());
    let public = accept(listeners.public, public, (grace, shutdown.clone()), |peer, door, line| PublicService {
        services: services.clone(),
        peer,
        door: door.clone(),
        line: line.clone(),
        within: Within::Socket,
    });
    let admin = accept(listeners.admin, admin, (grace, shutdown.clone()), |_, _, line| AdminService {
        router: TowerToHyperService::new(router.clone()),
        line: line.clone(),
    });
    // Subscribers have nothing under way that has to end: they are told to go at once.
    let subscribers = async {
        shutdown.cancelled().await;
        services.subscriptions.end().await;
    };
    tokio::join!(public, admin, subscribers);
}

/// What a connection needs to be let in.
pub(super) struct Door {
    permits: Arc<Semaphore>,
    addresses: Addresses,
    per_address_max: usize,
    /// What is read of a connection at once, and the longest head.
    read_bytes_max: usize,
    /// Addresses that may have as many as there are.
    exempt: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

/// A connection that is in; it leaves when this is dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _address: AddressPlace,
}

impl Door {
    /// `Err` gives the permit back, for the time in which the client is told.
    fn enter(&self, peer: IpAddr, permit: OwnedSemaphorePermit) -> Result<Place, OwnedSemaphorePermit> {
        let max = if (self.exempt)(peer) { usize::MAX } else { self.per_address_max };
        match self.addresses.enter(peer, max) {
            Some(address) => Ok(Place { _permit: permit, _address: address }),
            None => Err(permit),
        }
    }

    /// For a connection within another.
    pub fn enter_now(&self, peer: IpAddr) -> Option<Place> {
        self.enter(peer, self.permits.clone().try_acquire_owned().ok()?).ok()
    }
}

/// This machine, and proxies in front of this gateway.
fn speak_for_many(hosts: HostRules) -> Box<dyn Fn(IpAddr) -> bool + Send + Sync> {
    Box::new(move |peer| peer.to_canonical().is_loopback() || hosts.trust(peer) == Trust::Forwarded)
}

/// Accepts connections and serves each with a service of its own.
async fn accept<S, B>(
    listener: TcpListener,
    door: Door,
    (grace, shutdown): (Duration, CancellationToken),
    new_service: impl Fn(SocketAddr, &Arc<Door>, &Arc<Line>) -> S,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let door = Arc::new(door);
    let connections = TaskTracker::new();
    loop {
        let accepted = shutdown.run_until_cancelled(async {
            let permit = door.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
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
        let place = match door.enter(peer.ip(), permit) {
            Ok(place) => place,
            Err(permit) => {
                turn_away(stream, permit);
                continue;
            }
        };
        // Without it small replies wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let line = Line::new();
        let service = new_service(peer, &door, &line);
        let connection = connection::serve(stream, line, service, shutdown.clone(), door.read_bytes_max);
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(?grace, "requests still under way after the grace time are cut");
    }
}

/// Connections that are open, by the address they come from.
#[derive(Clone, Default)]
pub(super) struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them; it leaves when it is dropped.
pub(super) struct AddressPlace {
    address: IpAddr,
    addresses: Addresses,
}

impl Addresses {
    /// `None` if as many are open as there may be.
    pub(super) fn enter(&self, peer: IpAddr, max: usize) -> Option<AddressPlace> {
        let address = client_address(peer);
        let mut open = self.0.lock().expect("no panic under this lock");
        let count = open.entry(address).or_default();
        if *count >= max {
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

/// The public surfaces, as hyper sees them.
pub(super) struct PublicService {
    pub services: Arc<Services>,
    pub peer: SocketAddr,
    /// Where connections come in.
    pub door: Arc<Door>,
    pub line: Arc<Line>,
    pub within: Within,
}

/// A body that holds what its request takes until its last byte is out.
type PublicBody = Paced<ReplyBody, Held>;
/// The request's permit, and its place among its client's downloads.
type Held = (Option<OwnedSemaphorePermit>, Option<OpenPlace>);

impl Service<Request<Incoming>> for PublicService {
    type Response = Response<PublicBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<PublicBody>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (services, peer, under) = (self.services.clone(), self.peer, self.line.request());
        let let_in = one_host(&request).and_then(|()| caller::admit_request(&services, peer.ip(), request.headers()));
        if let Err(refusal) = let_in {
            let reply = refuse(&refusal, request.method(), reader(request.uri().path(), request.headers()));
            return Box::pin(async move { Ok(paced(gateway::with_cors(reply), under, None)) });
        }
        if request.method() == Method::CONNECT {
            let (door, within) = (self.door.clone(), self.within);
            return Box::pin(async move {
                let reply = tunnel::open(services, request, peer, within, &door).await;
                Ok(paced(reply, under, None))
            });
        }
        Box::pin(async move {
            let Ok(permit) = services.requests.clone().try_acquire_owned() else {
                let reply = refuse(&Refusal::TooMany, request.method(), reader(request.uri().path(), request.headers()));
                return Ok(paced(reply, under, None));
            };
            Ok(paced(answer(&services, request, peer).await, under, Some(permit)))
        })
    }
}

/// HTTP/1.1 without a Host, and any request with two of them, is 400 (RFC 9112 3.2): the one that this gateway reads need
/// not be the one that a proxy in front of it read.
fn one_host<B>(request: &Request<B>) -> Result<(), Refusal> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let needed = usize::from(request.version() == Version::HTTP_11);
    if (needed..=1).contains(&hosts) { Ok(()) } else { Err(Refusal::BadHeader("Host")) }
}

fn paced(reply: Reply, under: Under, permit: Option<OwnedSemaphorePermit>) -> Response<PublicBody> {
    reply.map(|mut body| {
        let place = body.take_place();
        Paced::new(body, under, (permit, place))
    })
}

/// The admin listener's routes, as hyper sees them.
struct AdminService {
    router: TowerToHyperService<axum::Router>,
    line: Arc<Line>,
}

impl Service<Request<Incoming>> for AdminService {
    type Response = Response<Paced<axum::body::Body, ()>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (reply, under) = (self.router.call(request), self.line.request());
        Box::pin(async move { Ok(reply.await?.map(|body| Paced::new(body, under, ()))) })
    }
}

/// One request on the public listener: head -> Ask -> its surface -> reply. Only the surfaces that take something read
/// the body, within limits of their own.
pub async fn answer<B>(services: &Services, request: Request<B>, peer: SocketAddr) -> Reply
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let clock = Clock::start(&services.answers);
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
                let body = pace::watch_upload(body.into_data_stream());
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
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

    /// RFC 9112 3.2.
    #[test]
    fn hosts_of_a_request() {
        #[rustfmt::skip]
        let rows: [(Version, &[&str], bool); 6] = [
            (Version::HTTP_11, &["localhost"], true),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_11, &["localhost", "localhost"], false),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_2, &[], true),
            (Version::HTTP_2, &["a", "b"], false),
        ];
        for (version, hosts, fine) in rows {
            let mut request = Request::builder().version(version);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            let request = request.body(()).expect("a request");
            assert_eq!(one_host(&request).is_ok(), fine, "{version:?} {hosts:?}");
        }
    }

    #[tokio::test]
    async fn connections_of_one_address() {
        let hosts = HostRules { trusted_proxies: Some(vec!["10.0.0.1".parse().expect("an address")]), ..HostRules::default() };
        let door = Door {
            permits: Arc::new(Semaphore::new(100)),
            addresses: Addresses::default(),
            per_address_max: 2,
            read_bytes_max: connection::HEAD_BYTES_MAX,
            exempt: speak_for_many(hosts),
        };
        let mut places = Vec::new();
        for (address, enters) in [
            ("10.0.0.1", true),
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("10.0.0.2", true),
            ("::ffff:10.0.0.2", true),
            ("10.0.0.2", false),
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.1", true),
            ("2001:db8:1:2::1", true),
            ("2001:db8:1:2::2", true),
            ("2001:db8:1:2::3", false),
            ("2001:db8:1:3::3", true),
        ] {
            let place = door.enter_now(address.parse().expect("an address"));
            assert_eq!(place.is_some(), enters, "{address}");
            places.extend(place);
        }
        places.clear();
        assert!(door.enter_now("10.0.0.2".parse().expect("an address")).is_some());
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
