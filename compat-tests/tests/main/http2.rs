//! HTTP/2 without TLS on the public port: many streams at once, replies that break off, and an orderly end.

use bytes::Bytes;
use compat_tests::car::{self, Block, DAG_CBOR, RAW};
use compat_tests::content::Content;
use compat_tests::{Gateway, seeded_bytes, signal, until, wire};
use h2::client::{Builder, SendRequest};
use http::Request;

const STREAMS: usize = 100;
const WINDOW_BYTES: u32 = 64 << 10;

/// A connection, and what becomes of it.
async fn connect(gateway: &Gateway) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let stream = wire::connect(&gateway.public).await.expect("connects");
    let (client, connection) = Builder::new().initial_window_size(WINDOW_BYTES).handshake(stream).await.expect("speaks HTTP/2");
    let ended = tokio::spawn(connection);
    (client.ready().await.expect("ready"), ended)
}

fn send(client: &mut SendRequest<Bytes>, gateway: &Gateway, target: &str) -> h2::client::ResponseFuture {
    let request = Request::get(format!("{}{target}", gateway.public)).body(()).expect("a request");
    client.send_request(request, true).expect("sent").0
}

/// The whole body, or how it broke off after so many bytes.
async fn read(mut body: h2::RecvStream) -> Result<Vec<u8>, (usize, h2::Error)> {
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.map_err(|error| (bytes.len(), error))?;
        body.flow_control().release_capacity(part.len()).expect("it was taken");
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

#[tokio::test]
async fn many_streams_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    // Some fit a window, some do not.
    let names: Vec<String> = (0..STREAMS).map(|number| format!("{number}.bin")).collect();
    let files: Vec<Vec<u8>> = (0..STREAMS).map(|number| seeded_bytes(number as u64, 1000 + number * 3000)).collect();
    let rows: Vec<(&str, &[u8])> = names.iter().zip(&files).map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let root = gateway.upload(&Content::files_of("many", &rows)).await.cid;
    let (mut client, _ended) = connect(&gateway).await;
    let mut replies = Vec::new();
    for name in &names {
        replies.push(send(&mut client, &gateway, &format!("/ipfs/{root}/{name}")));
        client = client.ready().await.expect("ready");
    }
    let bodies = futures::future::join_all(replies.into_iter().map(async |reply| {
        let reply = reply.await.expect("a head");
        assert_eq!(reply.status(), 200);
        read(reply.into_body()).await.expect("whole")
    }));
    for (number, (body, file)) in bodies.await.iter().zip(&files).enumerate() {
        assert!(body == file, "file {number} is another");
    }
    // HEAD and 304 have no body, and the Host is that of `:authority`.
    let head = Request::head(format!("http://localhost/ipfs/{root}/1.bin")).body(()).expect("a request");
    let reply = client.send_request(head, true).expect("sent").0.await.expect("a head");
    assert_eq!(reply.status(), 301, "localhost has subdomains");
}

/// A CAR with a block missing must not look whole in any version (ipfs/boxo#458): a reset here, a broken chunk there.
#[tokio::test]
async fn a_reply_that_breaks_off_is_reset() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let big: Vec<Block> = (0..20).map(|seed| Block::new(RAW, &seeded_bytes(seed, 300_000))).collect();
    let gone = Block::new(RAW, b"never stored");
    let mut list = vec![0x95];
    big.iter().chain([&gone]).for_each(|block| list.extend(block.cbor_link()));
    let root = Block::new(DAG_CBOR, &list);
    let all: Vec<&Block> = std::iter::once(&root).chain(&big).collect();
    let file = folder.path().join("partial.car");
    std::fs::write(&file, car::write(&[&root], &all)).expect("written");
    let output = gateway.command(&["import", file.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let target = format!("/ipfs/{}?format=car", root.text());
    let (mut client, _ended) = connect(&gateway).await;
    let reply = send(&mut client, &gateway, &target).await.expect("a head");
    assert_eq!(reply.status(), 200);
    let (count, error) = read(reply.into_body()).await.expect_err("nobody takes it for whole");
    assert!(error.is_reset() && error.is_remote(), "after {count} bytes: {error}");
    // The connection goes on.
    let mut client = client.ready().await.expect("still open");
    let reply = send(&mut client, &gateway, &format!("/ipfs/{}?format=raw", big[3].text())).await.expect("a head");
    assert!(read(reply.into_body()).await.expect("whole") == big[3].bytes);

    let answer = gateway.ask("GET", &target, &[]).await;
    assert_eq!((answer.status, answer.whole), (200, false));
    assert_eq!(answer.header("transfer-encoding").as_deref(), Some("chunked"));
    assert!(answer.body.len() > 300_000, "what is there was sent: {}", answer.body.len());
}

/// On a stop the client is told, and what is under way comes to its end.
#[tokio::test]
async fn a_stop_says_goaway() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(&folder.path().join("data"));
    let bytes = seeded_bytes(1, 3 << 20);
    let root = gateway.upload(&Content::file("large.bin", bytes.clone())).await.cid;
    let (mut client, ended) = connect(&gateway).await;
    let reply = send(&mut client, &gateway, &format!("/ipfs/{root}")).await.expect("a head");
    signal(gateway.pid(), "TERM");
    gateway.said("stopping").await;
    // The window is closed until now: the body cannot have come to its end.
    let told =
        until("the client is told to go away", std::time::Duration::from_secs(30), async || match client.clone().ready().await {
            Ok(mut client) => {
                match client.send_request(Request::get(format!("{}/", gateway.public)).body(()).expect("a request"), true) {
                    Ok((reply, _)) => reply.await.map(|reply| reply.status().to_string()).map_or_else(Ok, Err),
                    Err(error) => Ok(error),
                }
            }
            Err(error) => Ok(error),
        });
    let error = told.await;
    assert!(error.is_go_away() || error.is_io() || error.is_reset(), "{error}");
    assert!(read(reply.into_body()).await.expect("what was under way comes whole") == bytes);
    drop(client);
    assert!(gateway.ended().success());
    let _ = ended.await.expect("the connection's task ends");
}
