//! HTTP/1.1 on a plain socket: exactly the bytes a test wants to send, and an answer that says whether it was whole.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A request that takes longer has hung: longer than every time-out of the gateway but its grace time.
pub const ANSWER_MAX: Duration = Duration::from_secs(130);

/// A reply.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, in the order received.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// False when the connection ended before the body did.
    pub whole: bool,
}

impl Answer {
    /// The value of a header; several lines of one name are joined.
    pub fn header(&self, name: &str) -> Option<String> {
        let lines: Vec<&str> = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect();
        (!lines.is_empty()).then(|| lines.join(", "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The word of `Cache-Status` that says where the bytes came from.
    pub fn class(&self) -> Option<String> {
        let status = self.header("cache-status")?;
        status.split(';').find_map(|part| part.trim().strip_prefix("detail=").map(str::to_owned))
    }

    /// Serial host rounds that the reply says it took.
    pub fn rounds(&self) -> u32 {
        let timing = self.header("server-timing").unwrap_or_default();
        let rounds = timing.split(',').find_map(|part| part.trim().strip_prefix("rounds;desc="));
        rounds.map_or(0, |text| text.trim_matches('"').parse().expect("a number"))
    }
}

/// One request on a connection of its own. `headers` are whole lines; a `Host:` among them replaces the own one, and
/// an empty one is left out.
pub async fn ask(base: &str, method: &str, target: &str, headers: &[&str]) -> Answer {
    exchange(base, request(base, method, target, headers).as_bytes(), method).await
}

/// The same with a body.
pub async fn send(base: &str, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Answer {
    let length = format!("Content-Length: {}", body.len());
    let head = request(base, method, target, &[headers, &[length.as_str()]].concat());
    exchange(base, &[head.as_bytes(), body].concat(), method).await
}

/// The same, when the gateway may be gone.
pub async fn try_ask(base: &str, method: &str, target: &str, headers: &[&str]) -> io::Result<Answer> {
    try_exchange(base, request(base, method, target, headers).as_bytes(), method).await
}

fn request(base: &str, method: &str, target: &str, headers: &[&str]) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|line| line.to_ascii_lowercase().starts_with("host:")) {
        text.push_str(&format!("Host: {}\r\n", base.trim_start_matches("http://")));
    }
    for line in headers.iter().filter(|line| !line.is_empty()) {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text + "\r\n"
}

/// Sends `bytes` as they are and reads one answer.
pub async fn exchange(base: &str, bytes: &[u8], method: &str) -> Answer {
    match try_exchange(base, bytes, method).await {
        Ok(answer) => answer,
        Err(error) => panic!("{base}: {error}: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)])),
    }
}

pub async fn try_exchange(base: &str, bytes: &[u8], method: &str) -> io::Result<Answer> {
    let exchange = async {
        let (mut reader, mut writer) = connect(base).await?.into_split();
        // An early refusal is read while the rest is still being sent.
        let send = async {
            let sent = writer.write_all(bytes).await;
            (sent, writer)
        };
        let (sent, received) = tokio::join!(send, read_answer(&mut reader, method));
        match (sent.0, received) {
            (_, Ok(answer)) => Ok(answer),
            (Err(error), Err(_)) => Err(error),
            (Ok(()), Err(error)) => Err(error),
        }
    };
    timeout(ANSWER_MAX, exchange)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ANSWER_MAX:?}")))?
}

/// A connection to `http://ADDRESS:PORT`.
pub async fn connect(base: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(base.trim_start_matches("http://")).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads one answer; ends as soon as its body does, or the connection.
pub async fn read_answer(reader: &mut (impl AsyncReadExt + Unpin), method: &str) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = find(&bytes, b"\r\n\r\n") {
                break at;
            }
            if reader.read_buf(&mut bytes).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the head of the answer did"));
            }
        };
        let mut answer = parse_head(&bytes[..head_end])?;
        bytes.drain(..head_end + 4);
        if answer.status == 100 {
            continue;
        }
        if method == "HEAD" || matches!(answer.status, 204 | 304) {
            // Whatever follows must not be there; the tests look at it.
            answer.body = rest(reader, bytes).await;
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            read_chunks(reader, bytes, &mut answer).await;
        } else if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().map_err(|_| io::Error::other("a length that is no number"))?;
            bytes.reserve(length.saturating_sub(bytes.len()));
            while bytes.len() < length && reader.read_buf(&mut bytes).await.unwrap_or(0) > 0 {}
            answer.whole = bytes.len() >= length;
            bytes.truncate(length);
            answer.body = bytes;
        } else {
            answer.body = rest(reader, bytes).await;
        }
        return Ok(answer);
    }
}

async fn rest(reader: &mut (impl AsyncReadExt + Unpin), mut bytes: Vec<u8>) -> Vec<u8> {
    while reader.read_buf(&mut bytes).await.unwrap_or(0) > 0 {}
    bytes
}

async fn read_chunks(reader: &mut (impl AsyncReadExt + Unpin), mut bytes: Vec<u8>, answer: &mut Answer) {
    answer.whole = false;
    let mut at = 0;
    loop {
        if let Some(line_end) = find(&bytes[at..], b"\r\n") {
            let line = String::from_utf8_lossy(&bytes[at..at + line_end]).into_owned();
            let length = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16).expect("a chunk length");
            let start = at + line_end + 2;
            if length == 0 {
                answer.whole = true;
                return;
            }
            if bytes.len() >= start + length + 2 {
                answer.body.extend_from_slice(&bytes[start..start + length]);
                at = start + length + 2;
                continue;
            }
        }
        if reader.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

fn parse_head(head: &[u8]) -> io::Result<Answer> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status line: {head}")))?;
    let headers =
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Ok(Answer { status, headers: headers.collect(), body: Vec::new(), whole: true })
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
