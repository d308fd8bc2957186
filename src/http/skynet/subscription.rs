//! `GET /skynet/registry/subscription`: a WebSocket over which changes of entries are told (`skynet.md` 7).
//!
//! The client sends `{"action":"subscribe"|"unsubscribe","pubkey":…,"datakey":…}`; it is sent the entry as it is, and
//! then each better version. A client that reads slowly is told only the newest of each entry: what waits for it is one
//! version of each entry it watches, and nothing of it is queued twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::{Response, StatusCode};
use data_encoding::BASE64;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{is_loopback_host, is_loopback_origin, same_origin};
use crate::http::ask::{Ask, text};
use crate::http::refusal::{Refusal, RegistryRefusal};
use crate::http::reply::{Reply, ReplyBody};
use crate::http::serve::{AddressPlace, Addresses};
use crate::http::services::Naming;
use crate::names::{EntryId, EntryWatch, NameError, SignedEntry, WATCHED_EACH_MAX};

use super::Call;
use super::registry::{PostedKey, entry_json};

/// Subscribers at once: an idle one costs about 30 KiB.
const SUBSCRIBERS_MAX: usize = 1_024;
/// Of them, from one address that is not loopback: the tabs of a household.
const SUBSCRIBERS_EACH_MAX: usize = 64;
/// Longest message of a client: two keys, one perhaps as an array of numbers.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Encoded messages of one subscriber that wait for its socket; each has about 600 bytes.
const SEND_BUFFER_BYTES: usize = 16 << 10;
/// Told at once before the socket is flushed.
const TOLD_AT_ONCE: usize = 32;
/// First values read at once for one subscriber.
const READS_AT_ONCE: usize = 16;
/// A silent client is asked whether it is still there this often, more often than proxies in between give up.
const PING_EVERY: Duration = Duration::from_secs(30);
/// And is left when it has said nothing for this long.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// A client that takes none of what it is sent for this long is left.
const SEND_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the other side to take our good-bye.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// Longest delay that a client may ask for: news an hour old are none.
const DELAY_MS_MAX: u64 = 3_600_000;
/// What Skynet counted one notification as, against the band width that the client asked to be held to.
const NOTIFICATION_BYTES: u64 = 64 << 10;
/// Least band width to ask for: one notification a minute.
const BANDWIDTH_MIN: u64 = NOTIFICATION_BYTES / 60;
/// RFC 6455 1.3.
const ACCEPT_SALT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The subscribers of a gateway.
pub struct Subscriptions {
    permits: Arc<Semaphore>,
    addresses: Addresses,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Default for Subscriptions {
    fn default() -> Subscriptions {
        let permits = Arc::new(Semaphore::new(SUBSCRIBERS_MAX));
        Subscriptions { permits, addresses: Addresses::default(), tasks: TaskTracker::new(), stopping: CancellationToken::new() }
    }
}

impl Subscriptions {
    /// Says good-bye to everybody and waits until all are gone.
    pub async fn end(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Subscribers at the moment.
    pub fn count(&self) -> usize {
        self.tasks.len()
    }
}

/// How the client wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terms {
    /// From a change to its notification; changes in between are told as one.
    delay: Duration,
    /// From one notification to the next, at least.
    pause: Duration,
}

impl Terms {
    /// Skynet's server wanted both parameters; the portals in front of it filled them in, and so does this one: no limit.
    fn read(ask: &Ask) -> Result<Terms, Refusal> {
        let number = |text: String| text.parse::<u64>().ok();
        let delay_ms = match ask.parameter("notificationdelay").map(number) {
            None => 0,
            Some(Some(delay_ms)) if delay_ms <= DELAY_MS_MAX => delay_ms,
            Some(_) => return Err(Refusal::BadQuery("notificationdelay is a number of milliseconds, at most an hour")),
        };
        let pause = match ask.parameter("bandwidthlimit").map(number) {
            None => Duration::ZERO,
            Some(Some(bandwidth)) if bandwidth >= BANDWIDTH_MIN => {
                Duration::from_micros(NOTIFICATION_BYTES * 1_000_000 / bandwidth)
            }
            Some(_) => return Err(Refusal::BadQuery("bandwidthlimit is a number of bytes a second, at least 1092")),
        };
        Ok(Terms { delay: Duration::from_millis(delay_ms), pause })
    }
}

/// Turns the connection into a subscriber's.
pub fn open(call: Call<'_>) -> Result<Reply, Refusal> {
    let headers = call.sender.headers;
    let key = handshake_key(headers).ok_or(RegistryRefusal::NoWebSocket)?;
    let upgrade = call.upgrade.ok_or(RegistryRefusal::NoWebSocket)?;
    if !origin_allowed(headers, call.ask) {
        return Err(RegistryRefusal::ForeignOrigin.into());
    }
    let terms = Terms::read(call.ask)?;
    let subscriptions = &call.services.subscriptions;
    let permit = subscriptions.permits.clone().try_acquire_owned().map_err(|_| Refusal::TooMany)?;
    let peer = call.sender.peer.ip();
    // A proxy on this machine speaks for many.
    let each_max = if peer.to_canonical().is_loopback() { usize::MAX } else { SUBSCRIBERS_EACH_MAX };
    let place = subscriptions.addresses.enter(peer, each_max).ok_or(Refusal::TooMany)?;
    let (names, stopping) = (call.services.names.clone(), subscriptions.stopping.clone());
    subscriptions.tasks.spawn(async move {
        serve(upgrade, names, terms, stopping, place).await;
        drop(permit);
    });
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept(&key));
    Ok(reply)
}

/// What the client's handshake says, if it is one (RFC 6455 4.2.1).
fn handshake_key(headers: &HeaderMap) -> Option<String> {
    let names = |name, word: &str| {
        text(headers, name).is_some_and(|list| list.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    let websocket = names(header::UPGRADE, "websocket") && names(header::CONNECTION, "upgrade");
    let version = text(headers, header::SEC_WEBSOCKET_VERSION) == Some("13");
    let key = text(headers, header::SEC_WEBSOCKET_KEY)?;
    let sixteen = BASE64.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == 16);
    (websocket && version && sixteen).then(|| key.to_owned())
}

fn accept(key: &str) -> HeaderValue {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(ACCEPT_SALT);
    HeaderValue::try_from(BASE64.encode(hash.finish().as_ref())).expect("base64 is fit for a header")
}

/// Browsers let any page open WebSockets, so the page is looked at here: none, the portal's own, or one of this machine
/// for a portal of this machine.
fn origin_allowed(headers: &HeaderMap, ask: &Ask) -> bool {
    if !headers.contains_key(header::ORIGIN) {
        return true;
    }
    let (Some(origin), Some(host)) = (&ask.origin, &ask.host) else { return false };
    same_origin(origin, host) || (is_loopback_host(host) && is_loopback_origin(origin))
}

async fn serve(upgrade: OnUpgrade, names: Arc<dyn Naming>, terms: Terms, stopping: CancellationToken, _place: AddressPlace) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return tracing::debug!(%error, "a subscription was not opened"),
    };
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MESSAGE_BYTES_MAX);
    config.max_frame_size = Some(MESSAGE_BYTES_MAX);
    config.read_buffer_size = MESSAGE_BYTES_MAX;
    config.write_buffer_size = SEND_BUFFER_BYTES;
    config.max_write_buffer_size = 4 * SEND_BUFFER_BYTES;
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await;
    let session = Session {
        watch: names.watch_entries(),
        names,
        terms,
        reads: FuturesUnordered::new(),
        unread: VecDeque::new(),
        heard_at: Instant::now(),
        due: None,
        next_slot: Instant::now(),
    };
    session.run(socket, &stopping).await;
}

/// A message of a client.
#[derive(Deserialize)]
struct Request {
    action: Action,
    pubkey: PostedKey,
    datakey: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Subscribe,
    Unsubscribe,
}

/// Reads a message; the words of an error go to the client.
fn read_request(message: &[u8]) -> Result<(Action, EntryId), String> {
    let request: Request = serde_json::from_slice(message).map_err(|error| format!("the message cannot be read: {error}"))?;
    let key = request.pubkey.read().ok_or("pubkey is no ed25519 key")?;
    let mut datakey = [0; 32];
    hex::decode_to_slice(&request.datakey, &mut datakey).map_err(|_| "datakey is not 64 hex digits")?;
    Ok((request.action, EntryId::of(&key, &datakey)))
}

type Read = (EntryId, Result<Option<SignedEntry>, NameError>);

struct Session {
    names: Arc<dyn Naming>,
    watch: EntryWatch,
    terms: Terms,
    /// First values under way, and those that wait for it.
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
    unread: VecDeque<EntryId>,
    heard_at: Instant,
    /// When the next notification is told; known once there is one.
    due: Option<Instant>,
    /// Not before this.
    next_slot: Instant,
}

/// Why a session ends.
enum End {
    /// The client left, or does not read.
    Gone,
    Close(CloseCode, &'static str),
}

impl From<tungstenite::Error> for End {
    fn from(error: tungstenite::Error) -> End {
        match error {
            tungstenite::Error::Capacity(_) => End::Close(CloseCode::Size, "the message is too long"),
            tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_) => End::Close(CloseCode::Protocol, "malformed frames"),
            _ => End::Gone,
        }
    }
}

impl Session {
    async fn run(mut self, mut socket: Socket, stopping: &CancellationToken) {
        let end = tokio::select! {
            () = stopping.cancelled() => End::Close(CloseCode::Away, "the portal stops"),
            end = self.talk(&mut socket) => end,
        };
        if let End::Close(code, reason) = end {
            let frame = CloseFrame { code, reason: reason.into() };
            let _ = timeout(GOODBYE_MAX, socket.close(Some(frame))).await;
        }
    }

    async fn talk(&mut self, socket: &mut Socket) -> End {
        let mut ping_at = Instant::now() + PING_EVERY;
        loop {
            let step = tokio::select! {
                message = socket.next() => self.hear(socket, message).await,
                Some((id, read)) = self.reads.next() => {
                    self.found(&id, read);
                    Ok(())
                }
                () = turn(&self.watch, self.terms, self.next_slot, &mut self.due) => self.tell(socket).await,
                () = sleep_until(ping_at) => {
                    ping_at += PING_EVERY;
                    match self.heard_at.elapsed() < SILENCE_MAX {
                        true => send(socket, Message::Ping(Default::default())).await,
                        false => Err(End::Gone),
                    }
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn hear(&mut self, socket: &mut Socket, message: Option<Result<Message, tungstenite::Error>>) -> Result<(), End> {
        self.heard_at = Instant::now();
        let bytes = match message.ok_or(End::Gone)?? {
            Message::Text(text) => text.as_bytes().to_vec(),
            Message::Binary(bytes) => bytes.to_vec(),
            Message::Close(_) => return Err(End::Gone),
            // Pings are answered by the library.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(()),
        };
        let done = read_request(&bytes).and_then(|(action, id)| self.act(action, id));
        match done {
            Ok(()) => Ok(()),
            Err(error) => send(socket, Message::text(json!({ "error": error }).to_string())).await,
        }
    }

    fn act(&mut self, action: Action, id: EntryId) -> Result<(), String> {
        match action {
            Action::Unsubscribe => {
                self.watch.unsubscribe(&id);
                self.unread.retain(|unread| *unread != id);
            }
            Action::Subscribe => {
                if self.watch.subscribe(id).map_err(|error| error.to_string())? {
                    self.unread.push_back(id);
                    debug_assert!(self.unread.len() <= WATCHED_EACH_MAX);
                    self.read_on();
                }
            }
        }
        Ok(())
    }

    fn read_on(&mut self) {
        while self.reads.len() < READS_AT_ONCE
            && let Some(id) = self.unread.pop_front()
        {
            let names = self.names.clone();
            self.reads.push(async move { (id, names.entry(&id).await) }.boxed());
        }
    }

    /// A first value, if there is one. One that cannot be read now comes with the next look at the hosts.
    fn found(&mut self, id: &EntryId, read: Result<Option<SignedEntry>, NameError>) {
        match read {
            Ok(Some(signed)) => self.watch.offer(&signed),
            Ok(None) => {}
            Err(error) => tracing::debug!(%id, %error, "the first value of a subscription"),
        }
        self.read_on();
    }

    async fn tell(&mut self, socket: &mut Socket) -> Result<(), End> {
        self.due = None;
        let at_once = if self.terms.pause.is_zero() { TOLD_AT_ONCE } else { 1 };
        let told = async {
            for _ in 0..at_once {
                let Some(signed) = self.watch.take() else { break };
                socket.feed(Message::text(notification(&signed).to_string())).await?;
            }
            socket.flush().await
        };
        timeout(SEND_MAX, told).await.map_err(|_| End::Gone)??;
        self.next_slot = Instant::now() + self.terms.pause;
        Ok(())
    }
}

/// Waits until there is something to tell, and it is time to. Loses nothing when it is dropped.
async fn turn(watch: &EntryWatch, terms: Terms, next_slot: Instant, due: &mut Option<Instant>) {
    let at = match *due {
        Some(at) => at,
        None => {
            watch.ready().await;
            *due.insert((Instant::now() + terms.delay).max(next_slot))
        }
    };
    // A timer is no finer than a millisecond.
    if at > Instant::now() {
        sleep_until(at).await;
    }
}

async fn send(socket: &mut Socket, message: Message) -> Result<(), End> {
    Ok(timeout(SEND_MAX, socket.send(message)).await.map_err(|_| End::Gone)??)
}

fn notification(signed: &SignedEntry) -> Value {
    let mut told = entry_json(signed, "pubkey");
    told["error"] = "".into();
    told
}

/// Any bytes as a message: never a panic.
#[cfg(test)]
pub fn fuzz(bytes: &[u8]) {
    let _ = read_request(bytes);
}

#[cfg(test)]
mod tests;
