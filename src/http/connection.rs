//! One connection, from its first byte to its last: limits on heads and time, HTTP/1.1 and HTTP/2 told apart by what
//! comes, and an orderly end.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::pace::{IDLE_MAX, Line, Streams, Verdict};

/// A head is a path of at most 8 KiB and some headers. It is also the most that is read from a socket at once.
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// The same for the admin listener, where whole disks come in: each read wakes two threads and sends an acknowledgement,
/// which at 32 KiB is a tenth of what adding a file costs. Only this machine, or who has the key, holds so much of it.
pub const ADMIN_READ_BYTES_MAX: usize = 256 << 10;
const HEADERS_MAX: usize = 100;
/// A connection on which no byte moves in either direction for this long is cut: clients that stopped reading or
/// sending. Longer than any pause this side makes.
const STALL_MAX: Duration = Duration::from_secs(180);
/// Streams of one HTTP/2 connection; browsers open at most about a hundred.
const H2_STREAMS_MAX: u32 = 128;

/// Serves one connection until it ends. Once `shutdown` is cancelled it gets no more requests. At most `read_bytes_max` are
/// read at once, and make a head.
pub async fn serve<S, B, I>(io: I, line: Arc<Line>, service: S, shutdown: CancellationToken, read_bytes_max: usize)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let builder = builder(read_bytes_max);
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(StallGuard::new(io)), service));
    let asked_to_end = {
        let mut watch = pin!(line.watch());
        tokio::select! {
            outcome = connection.as_mut() => Err(outcome),
            () = shutdown.cancelled() => Ok(()),
            verdict = watch.as_mut() => match verdict {
                Verdict::AskToEnd => Ok(()),
                Verdict::Cut(why) => return tracing::debug!(?why, "connection cut"),
            },
        }
    };
    let outcome = match asked_to_end {
        Err(outcome) => outcome,
        Ok(()) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                verdict = line.watch_farewell() => return tracing::debug!(?verdict, "connection cut"),
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}

fn builder(read_bytes_max: usize) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(read_bytes_max)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(IDLE_MAX)
        .adaptive_window(true);
    builder
}

/// A socket that fails when no byte has moved for [`STALL_MAX`], in either direction.
struct StallGuard<I> {
    stream: I,
    moved_at: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl<I> StallGuard<I> {
    fn new(stream: I) -> StallGuard<I> {
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

impl<I: AsyncRead + Unpin> AsyncRead for StallGuard<I> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(poll, context)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for StallGuard<I> {
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
