//! Subscribers over real sockets.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::http::testing::{Memory, TestServer, start};
use crate::names::testing::{mutations, sign_entry};
use crate::names::{Entry, EntryType};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The head of the answer to a handshake, and the connection.
async fn shake(to: SocketAddr, query: &str, headers: &[&str]) -> (String, TcpStream) {
    let mut request = format!("GET /skynet/registry/subscription{query} HTTP/1.1\r\n");
    if !headers.iter().any(|line| line.starts_with("Host:")) {
        request += &format!("Host: {to}\r\n");
    }
    headers.iter().for_each(|line| request += &format!("{line}\r\n"));
    request +=
        &format!("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n");
    let mut stream = TcpStream::connect(to).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    (String::from_utf8(head).expect("text"), stream)
}

struct Client(WebSocketStream<TcpStream>);

impl Client {
    async fn open(server: &TestServer, query: &str) -> Client {
        let (head, stream) = shake(server.public, query, &[]).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // The example of RFC 6455 1.3.
        assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
        Client(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    async fn send(&mut self, action: &str, signed: &SignedEntry) {
        let entry = &signed.entry;
        let request = json!({ "action": action, "pubkey": entry.key().to_string(), "datakey": hex::encode(entry.datakey()) });
        self.0.send(Message::text(request.to_string())).await.expect("sends");
    }

    async fn told(&mut self) -> Value {
        loop {
            match self.0.next().await.expect("open").expect("a frame") {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn handshakes() {
    let server = start(Memory::default()).await;
    let own = format!("Origin: http://{}", server.public);
    for (query, headers, status) in [
        ("", vec![], 101),
        ("?bandwidthlimit=1000000&notificationdelay=250", vec![], 101),
        ("", vec![own.as_str()], 101),
        ("", vec!["Origin: http://localhost:3000"], 101),
        ("", vec!["Origin: https://evil.example"], 403),
        ("", vec!["Origin: null"], 403),
        ("?bandwidthlimit=0", vec![], 400),
        ("?bandwidthlimit=x", vec![], 400),
        ("?notificationdelay=-1", vec![], 400),
        ("?notificationdelay=3600001", vec![], 400),
    ] {
        let (head, _) = shake(server.public, query, &headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{query} {headers:?}: {head}");
    }
}

#[tokio::test]
async fn the_first_value_and_each_better_one() {
    let server = start(Memory::default()).await;
    let names = &server.services.names;
    let (first, second, other) =
        (sign_entry(1, [7; 32], b"a", 1), sign_entry(1, [7; 32], b"b", 2), sign_entry(2, [7; 32], b"c", 1));
    names.put_entry(first.clone()).await.expect("kept");
    let mut client = Client::open(&server, "").await;
    client.send("subscribe", &first).await;
    assert_eq!(client.told().await, notification(&first));
    names.put_entry(other.clone()).await.expect("kept");
    names.put_entry(second.clone()).await.expect("kept");
    assert_eq!(client.told().await, notification(&second));
    client.send("subscribe", &other).await;
    assert_eq!(client.told().await, notification(&other));
    client.send("unsubscribe", &first).await;
    client.0.send(Message::text("nonsense")).await.expect("sends");
    let error = client.told().await;
    assert!(error["error"].as_str().is_some_and(|text| text.starts_with("the message cannot be read")), "{error}");
    names.put_entry(sign_entry(1, [7; 32], b"d", 3)).await.expect("kept");
    names.put_entry(sign_entry(2, [7; 32], b"e", 2)).await.expect("kept");
    assert_eq!(client.told().await["revision"], 2, "the other one is not told any more");
}

#[tokio::test]
async fn a_limit_of_notifications_passes_over_what_is_old() {
    let server = start(Memory::default()).await;
    let mut client = Client::open(&server, "?notificationdelay=200").await;
    let entry = |revision| sign_entry(1, [7; 32], b"x", revision);
    client.send("subscribe", &entry(0)).await;
    // Heard, once the answer to a second message is there.
    client.0.send(Message::text("{}")).await.expect("sends");
    client.told().await;
    for revision in 1..=5 {
        server.services.names.put_entry(entry(revision)).await.expect("kept");
    }
    assert_eq!(client.told().await["revision"], 5);
}

/// A client that reads nothing for a while: what waits for it is bounded by its sockets, and it ends up with the newest.
#[tokio::test]
async fn a_slow_reader_is_told_the_newest() {
    // About three times what the sockets of both sides hold.
    const REVISIONS: u64 = 60_000;
    let server = start(Memory::default()).await;
    let mut client = Client::open(&server, "").await;
    let key = *sign_entry(1, [7; 32], b"", 0).entry.key();
    let entry = |revision| {
        let entry = Entry::new(key, [7; 32], Vec::new(), revision, EntryType::Plain).expect("fits");
        SignedEntry { entry, signature: [0; 64] }
    };
    client.send("subscribe", &entry(0)).await;
    client.0.send(Message::text("{}")).await.expect("sends");
    client.told().await;
    for revision in 1..=REVISIONS {
        server.hub.offer(&entry(revision));
        tokio::task::yield_now().await;
    }
    let (mut last, mut told) = (0, 0);
    while last < REVISIONS {
        let revision = client.told().await["revision"].as_u64().expect("a revision");
        assert!(revision > last, "{revision} after {last}");
        (last, told) = (revision, told + 1);
    }
    assert!(told < REVISIONS, "nothing was passed over");
}

#[tokio::test]
async fn long_messages_and_the_end() {
    let server = start(Memory::default()).await;
    let mut client = Client::open(&server, "").await;
    client.0.send(Message::text("x".repeat(MESSAGE_BYTES_MAX + 1))).await.expect("sends");
    let closed = |message| matches!(message, Some(Ok(Message::Close(Some(CloseFrame { code, .. })))) if code == CloseCode::Size);
    assert!(closed(client.0.next().await));

    let mut client = Client::open(&server, "").await;
    server.shutdown.cancel();
    match client.0.next().await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("{other:?}"),
    }
    server.ended.await.expect("ends");
    assert_eq!(server.services.subscriptions.count(), 0);
}

#[test]
fn mutated_messages() {
    let key: Vec<u8> = vec![7; 32];
    let good = [
        format!("{{\"action\":\"subscribe\",\"pubkey\":\"ed25519:{0}\",\"datakey\":\"{0}\"}}", "07".repeat(32)),
        format!(
            "{{\"action\":\"unsubscribe\",\"pubkey\":{{\"algorithm\":\"ed25519\",\"key\":{key:?}}},\"datakey\":\"{}\"}}",
            "07".repeat(32)
        ),
    ];
    assert!(good.iter().all(|good| read_request(good.as_bytes()).is_ok()));
    for seed in 0..5_000 {
        good.iter().for_each(|good| fuzz(&mutations(seed, good.as_bytes())));
    }
}
