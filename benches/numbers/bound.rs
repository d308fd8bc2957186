//! What queues and this machine alone make of a load: a server that does nothing with a request but use so much of a processor's
//! time and send the bytes. A thread for each processor takes whichever connection has a request, so none is idle while one
//! waits.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::time::{ClockId, clock_gettime};

use crate::load::header;

/// How long a thread that hears nothing goes without a look whether all is over.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// The listener among the connections, which are numbered from 1.
const LISTENER: u64 = 0;
/// One thread is told, and others only when it has done.
const ONCE: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ONESHOT);
/// The load generator's requests are far smaller and come whole.
const REQUEST_BYTES_MAX: usize = 4096;

struct Bound<'a> {
    content: &'a [u8],
    each: Duration,
    listener: TcpListener,
    ready: OwnedFd,
    connections: Mutex<HashMap<u64, Arc<TcpStream>>>,
    next: AtomicU64,
    is_over: AtomicBool,
}

/// Serves ranges of `content` while `ask` runs. Each request takes `each` of a processor's time, sending included.
pub fn serve<T>(content: &[u8], each: Duration, ask: impl FnOnce(SocketAddr) -> T) -> std::io::Result<T> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&ready, &listener, epoll::EventData::new_u64(LISTENER), ONCE)?;
    let (connections, next, is_over) = (Mutex::default(), AtomicU64::new(LISTENER + 1), AtomicBool::new(false));
    let bound = Bound { content, each, listener, ready, connections, next, is_over };
    std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism()?.get();
        let threads: Vec<_> = (0..processors).map(|_| scope.spawn(|| bound.run())).collect();
        let answer = ask(address);
        bound.is_over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("the bound's threads do not panic")?;
        }
        Ok(answer)
    })
}

impl Bound<'_> {
    fn run(&self) -> std::io::Result<()> {
        let mut sending = Duration::ZERO;
        let mut events = Vec::with_capacity(1);
        while !self.is_over.load(Ordering::Relaxed) {
            events.clear();
            epoll::wait(&self.ready, spare_capacity(&mut events), Some(&LOOK_EVERY))?;
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    number => self.answer(number, &mut sending)?,
                }
            }
        }
        Ok(())
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<TcpStream>>> {
        self.connections.lock().expect("nobody panics with it")
    }

    fn accept(&self) -> std::io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nodelay(true)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(stream);
        self.connections().insert(number, stream.clone());
        epoll::add(&self.ready, &stream, epoll::EventData::new_u64(number), ONCE)?;
        Ok(epoll::modify(&self.ready, &self.listener, epoll::EventData::new_u64(LISTENER), ONCE)?)
    }

    /// `sending`: what the last reply of this thread took to send.
    fn answer(&self, number: u64, sending: &mut Duration) -> std::io::Result<()> {
        let begin = thread_time();
        let stream = self.connections()[&number].clone();
        let mut request = [0; REQUEST_BYTES_MAX];
        let have = (&*stream).read(&mut request)?;
        if have == 0 {
            self.connections().remove(&number);
            return Ok(());
        }
        let range = range(&String::from_utf8_lossy(&request[..have])).ok_or(ErrorKind::InvalidData)?;
        while thread_time() - begin + *sending < self.each {}
        let spent = thread_time();
        let length = range.len();
        let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nCache-Status: detail=hosts\r\n\r\n");
        (&*stream).write_all(head.as_bytes())?;
        (&*stream).write_all(&self.content[range])?;
        epoll::modify(&self.ready, &stream, epoll::EventData::new_u64(number), ONCE)?;
        *sending = thread_time() - spent;
        Ok(())
    }
}

fn range(request: &str) -> Option<Range<usize>> {
    let (first, last) = header(request, "range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
