//! A proxy between a client and an HTTP/1.1 server that takes its time with each request: it reads the head, asks what to do, and
//! passes everything on as it is.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Read of a connection at once.
const PART_BYTES: usize = 64 << 10;
/// No client here writes a longer head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Turn {
    /// It reaches the server so much later.
    After(Duration),
    /// It never does, and nothing is said.
    Never,
}

/// Asked once for each request, with its head; a long one may be cut.
pub type Decide = Arc<dyn Fn(&[u8]) -> Turn + Send + Sync>;

/// Passes connections on. Never ends by itself; what it has begun ends with `over`.
pub async fn pass_on<O>(listener: TcpListener, upstream: SocketAddr, decide: Decide, over: impl Fn() -> O) -> Infallible
where
    O: Future<Output = ()> + Send + 'static,
{
    loop {
        let (client, _) = listener.accept().await.expect("a connection");
        let (decide, over) = (decide.clone(), over());
        tokio::spawn(async move {
            tokio::select! {
                _ = pass(client, upstream, decide) => {}
                () = over => {}
            }
        });
    }
}

/// One connection.
async fn pass(client: TcpStream, upstream: SocketAddr, decide: Decide) {
    // A server that is gone: the client's connection ends, too.
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // What a client sends after an answer is another request: none sends two at once.
    let answered = AtomicBool::new(true);
    let requests = async {
        let (mut part, mut held) = (vec![0; PART_BYTES], Vec::new());
        loop {
            let length = from_client.read(&mut part).await?;
            if length == 0 {
                return to_server.shutdown().await;
            }
            held.extend_from_slice(&part[..length]);
            if answered.load(SeqCst) {
                let has_head = held.windows(4).any(|end| end == b"\r\n\r\n") || held.len() >= HEAD_BYTES_MAX;
                if !has_head {
                    continue;
                }
                answered.store(false, SeqCst);
                match decide(&held) {
                    Turn::After(delay) if delay.is_zero() => {}
                    Turn::After(delay) => tokio::time::sleep(delay).await,
                    Turn::Never => {
                        // Until the client gives up.
                        while from_client.read(&mut part).await? > 0 {}
                        return to_server.shutdown().await;
                    }
                }
            }
            to_server.write_all(&held).await?;
            held.clear();
        }
    };
    let answers = async {
        let mut part = vec![0; PART_BYTES];
        loop {
            let length = from_server.read(&mut part).await?;
            if length == 0 {
                return to_client.shutdown().await;
            }
            answered.store(true, SeqCst);
            to_client.write_all(&part[..length]).await?;
        }
    };
    let _ = tokio::join!(requests, answers);
}
