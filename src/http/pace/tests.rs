//! The clock is paused: minutes of waiting take none.

use std::convert::Infallible;

use ::http::{Request, Response};
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::http::connection;

const BODY_BYTES: usize = 1 << 20;
const REQUEST: &[u8] = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
const LONG: Duration = Duration::from_secs(3600);

type TestBody = UnsyncBoxBody<Bytes, Infallible>;

/// A server with one permit over a pipe, and the permit's semaphore. `/large` is 1 MiB, `/late` three bytes that each take
/// almost as long as a connection may stand still, everything else two bytes.
fn server(pipe_bytes: usize) -> (DuplexStream, Arc<Semaphore>, tokio::task::JoinHandle<()>) {
    let (client, io) = duplex(pipe_bytes);
    let (permits, line) = (Arc::new(Semaphore::new(1)), Line::new());
    let (given, counted) = (permits.clone(), line.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (permits, under) = (given.clone(), counted.request());
        async move {
            let permit: Option<OwnedSemaphorePermit> = permits.try_acquire_owned().ok();
            let body: TestBody = match request.uri().path() {
                "/large" => Full::new(Bytes::from(vec![7; BODY_BYTES])).boxed_unsync(),
                "/late" => {
                    let late = stream::iter(0..3).then(|_| async {
                        tokio::time::sleep(Duration::from_secs(170)).await;
                        Ok(Frame::data(Bytes::from_static(b".")))
                    });
                    StreamBody::new(late).boxed_unsync()
                }
                _ => Full::new(Bytes::from_static(b"ok")).boxed_unsync(),
            };
            Ok::<_, Infallible>(Response::new(Paced::new(body, under, permit)))
        }
    });
    let ended = tokio::spawn(connection::serve(io, line, service, CancellationToken::new(), connection::HEAD_BYTES_MAX));
    (client, permits, ended)
}

async fn connect(io: DuplexStream, window_bytes: u32) -> h2::client::SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window_bytes).initial_connection_window_size(1 << 20);
    let (client, connection) = builder.handshake(io).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    client.ready().await.expect("ready")
}

async fn get(client: &mut h2::client::SendRequest<Bytes>, path: &str) -> h2::RecvStream {
    let request = Request::get(format!("http://x{path}")).body(()).expect("a request");
    let (reply, _) = client.send_request(request, true).expect("sent");
    reply.await.expect("a head").into_body()
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_is_cut() {
    let (mut client, permits, ended) = server(16 << 10);
    client.write_all(REQUEST).await.expect("sent");
    let mut some = [0; 1000];
    client.read_exact(&mut some).await.expect("begins");
    assert_eq!(permits.available_permits(), 0);
    let begun = Instant::now();
    let _permit = permits.acquire().await.expect("given back");
    assert!((REPLY_WINDOW..REPLY_WINDOW + 2 * LOOK_EVERY).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    ended.await.expect("the connection is closed");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("ends");
    assert!(rest.len() < BODY_BYTES);
}

/// 2 KiB/s is slow, and twice what is asked.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_it_whole() {
    let (mut client, permits, _ended) = server(1 << 10);
    client.write_all(REQUEST).await.expect("sent");
    let (mut seen, mut some) = (0, [0; 2048]);
    while seen < BODY_BYTES {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let count = client.read(&mut some).await.expect("goes on");
        assert!(count > 0, "cut after {seen} bytes");
        // As much as a second has: the pipe is smaller than that.
        let more = client.read(&mut some).await.expect("goes on");
        seen += count + more;
    }
    let _permit = permits.acquire().await.expect("given back");
}

/// The window is closed and pings are answered: only the stream that stands is reset.
#[tokio::test(start_paused = true)]
async fn a_stream_that_stands_is_reset_alone() {
    let (io, permits, _ended) = server(64 << 10);
    let mut client = connect(io, 0).await;
    let mut body = get(&mut client, "/large").await;
    assert_eq!(permits.available_permits(), 0);
    let error = body.data().await.expect("an end").expect_err("no whole body");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{error}");
    assert_eq!(permits.available_permits(), 1);
    // The connection is as good as before.
    let mut client = client.ready().await.expect("still open");
    let mut body = get(&mut client, "/small").await;
    body.flow_control().release_capacity(0).expect("nothing to give back");
    drop(body);
    assert!(client.ready().await.is_ok());
}

/// A window of one byte: the whole body is with the connection then, and no longer with its stream.
#[tokio::test(start_paused = true)]
async fn bytes_that_wait_in_the_connection_count_as_well() {
    let (io, permits, ended) = server(64 << 10);
    let mut client = connect(io, 1).await;
    let mut body = get(&mut client, "/large").await;
    assert_eq!(body.data().await.expect("a byte").expect("comes").len(), 1);
    assert_eq!(permits.available_permits(), 0, "its bytes are still here");
    let _permit = permits.acquire().await.expect("given back");
    ended.await.expect("the connection is closed");
    assert!(body.data().await.expect("an end").is_err());
}

/// Replies of one connection share what its line gives.
#[tokio::test(start_paused = true)]
async fn streams_share_the_least_rate() {
    let (io, _permits, _ended) = server(64 << 10);
    let mut client = connect(io, 1024).await;
    let mut bodies = Vec::new();
    for _ in 0..4 {
        bodies.push(get(&mut client, "/large").await);
        client = client.ready().await.expect("ready");
    }
    // Each at 512 bytes a second: half the least rate of a connection, and twice its share.
    for _ in 0..400 {
        for body in &mut bodies {
            let part = body.data().await.expect("goes on").expect("is not reset");
            body.flow_control().release_capacity(part.len()).expect("taken");
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_this_side_does_not_count() {
    let (mut client, permits, _ended) = server(16 << 10);
    client.write_all(b"GET /late HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).await.expect("whole");
    assert!(reply.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&reply));
    let _permit = permits.acquire().await.expect("given back");
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_nothing_is_cut() {
    for begin in [&b""[..], b"GET / HTTP/1.1\r\nX-Half: ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let (mut client, _, ended) = server(16 << 10);
        client.write_all(begin).await.expect("sent");
        let begun = Instant::now();
        ended.await.expect("ends");
        assert!(begun.elapsed() < FIRST_HEAD_MAX + 2 * LOOK_EVERY, "{begin:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_asked_to_end() {
    let (io, _, ended) = server(16 << 10);
    let mut client = connect(io, 1 << 16).await;
    let mut body = get(&mut client, "/small").await;
    assert_eq!(body.data().await.expect("two bytes").expect("come"), "ok");
    let begun = Instant::now();
    ended.await.expect("ends");
    assert!((IDLE_MAX..IDLE_MAX + FAREWELL_MAX).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let error = client.ready().await.expect_err("closed");
    assert!(error.is_go_away() || error.is_io(), "{error}");
}

/// Seconds between parts of so many bytes; does the upload come through?
#[tokio::test(start_paused = true)]
async fn slow_senders() {
    for (pause_s, part_bytes, whole) in [(1, 4096, true), (0, 100, true), (50, 256 << 10, true), (1, 1024, false), (59, 1, false)] {
        let parts = stream::iter(0..2000).then(move |_| async move {
            tokio::time::sleep(Duration::from_secs(pause_s)).await;
            Ok::<_, io::Error>(Bytes::from(vec![0; part_bytes]))
        });
        let mut upload = watch_upload(parts);
        let (begun, mut failed) = (Instant::now(), None);
        while let Some(part) = upload.next().await {
            if let Err(error) = part {
                failed = Some(error.kind());
                break;
            }
        }
        assert_eq!(failed.is_none(), whole, "{part_bytes} bytes every {pause_s} s: {failed:?}");
        assert!(whole || (failed == Some(io::ErrorKind::TimedOut) && begun.elapsed() <= UPLOAD_WINDOW));
    }
    // What this side takes its time for does not count.
    let mut upload = watch_upload(stream::iter((0..50).map(|_| Ok::<_, io::Error>(Bytes::from_static(b"x")))));
    while let Some(part) = upload.next().await {
        part.expect("the sender was never waited for");
        tokio::time::sleep(LONG).await;
    }
}
