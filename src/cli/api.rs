//! A running gateway's admin listener, as a client.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::{CliError, Global};

/// Where `serve` has its admin listener unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8081";
/// A JSON answer: a page of a thousand pins has about 400 KiB, the views of 4,096 hosts about 2 MiB.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// An API key is a line; a larger file is some other file.
const KEY_BYTES_MAX: u64 = 4096;
/// A gateway on this machine or network answers a connection in milliseconds, or is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What stays as it is in one segment of a URL.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The admin listener at `url`, with the key for it.
#[derive(Debug)]
pub struct Api {
    url: String,
    key: String,
    client: reqwest::Client,
}

impl Api {
    pub fn new(global: &Global) -> Result<Api, CliError> {
        let url = global.api.trim_end_matches('/').to_owned();
        if !url.starts_with("http://") {
            return Err(CliError::Usage(format!("--api {url}: write it like {DEFAULT_URL}; the admin listener speaks plain HTTP")));
        }
        let key_file = match &global.key_file {
            Some(file) => file.clone(),
            None => global.data_directory()?.join("keys/api"),
        };
        let key = read_key(&key_file)?;
        // The client takes the process's crypto library, though it speaks plain HTTP here. Setting it twice is no harm.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The key goes to the address that was named, and nowhere else.
        let client =
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).connect_timeout(CONNECT_TIMEOUT);
        let client = client.build().map_err(|error| CliError::failed(format!("no HTTP client: {}", chain(&error))))?;
        Ok(Api { url, key, client })
    }

    /// A request to `path`, which starts with a slash and is encoded.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    /// Sends; only an answer of success comes back.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        self.accept(response).await
    }

    /// Sends and reads the JSON of the answer.
    pub async fn json(&self, request: RequestBuilder) -> Result<Value, CliError> {
        let response = self.send(request).await?;
        self.read_json(response).await
    }

    pub async fn read_json(&self, response: Response) -> Result<Value, CliError> {
        let body = self.read_body(response).await?;
        serde_json::from_slice(&body)
            .map_err(|error| CliError::failed(format!("{} does not answer as a skygate does ({error})", self.url)))
    }

    /// Asks whether the key is taken, for a request that broke off before its answer could be read.
    pub async fn explain_break(&self, error: &reqwest::Error) -> CliError {
        if error.is_connect() {
            return self.unreachable(error);
        }
        match self.send(self.request(Method::GET, "/api/v1/status")).await {
            Err(refused @ (CliError::KeyRefused(_) | CliError::Unreachable(_))) => refused,
            _ => CliError::failed(format!(
                "the connection to {} broke ({}): its log has the reason, try again",
                self.url,
                chain(error)
            )),
        }
    }

    /// Turns an answer that is no success into words.
    pub async fn accept(&self, response: Response) -> Result<Response, CliError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = match self.read_body(response).await {
            Ok(body) => message(&body),
            Err(_) => String::new(),
        };
        let said = if text.is_empty() { status.to_string() } else { text };
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let advice =
                    "is it the key of this gateway? Name its data directory with --data DIR, or the key with --key-file FILE";
                CliError::KeyRefused(format!("{} refused the API key ({said}): {advice}", self.url))
            }
            _ => CliError::Failed(said),
        })
    }

    async fn read_body(&self, response: Response) -> Result<Vec<u8>, CliError> {
        let mut body = Vec::new();
        let mut parts = response.bytes_stream();
        while let Some(part) = parts.next().await {
            let part =
                part.map_err(|error| CliError::failed(format!("the answer of {} broke off: {}", self.url, chain(&error))))?;
            if body.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(CliError::failed(format!("{} answers more than {ANSWER_BYTES_MAX} bytes", self.url)));
            }
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        if error.is_builder() {
            return CliError::Usage(format!("--api {}: {}", self.url, chain(error)));
        }
        CliError::Unreachable(format!(
            "cannot reach {} ({}): is `skygate serve` running? Another address goes with --api URL",
            self.url,
            root_cause(error)
        ))
    }
}

/// Text as one segment or value of a URL.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

fn read_key(file: &Path) -> Result<String, CliError> {
    let advice = "has `skygate serve` run with this data directory? Name it with --data DIR, or the key with --key-file FILE";
    let fault = |what: String| CliError::KeyRefused(format!("no API key at {} ({what}): {advice}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| fault(error.to_string()))?.len();
    if size > KEY_BYTES_MAX {
        return Err(fault(format!("{size} bytes are no key")));
    }
    let key = std::fs::read_to_string(file).map_err(|error| fault(error.to_string()))?.trim().to_owned();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(fault("it holds no key".to_owned()));
    }
    Ok(key)
}

/// The sentence of an error answer: `{"message": …}` of our own, or the first line of whatever came.
fn message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let said = match serde_json::from_str::<Value>(&text) {
        Ok(value) => value.get("message").or(value.get("error")).and_then(Value::as_str).unwrap_or_default().to_owned(),
        Err(_) => text.lines().next().unwrap_or_default().to_owned(),
    };
    super::output::plain(said.trim()).chars().take(500).collect()
}

/// An error with all its causes, in one line.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_answer_becomes_one_line() {
        let rows: [(&[u8], &str); 5] = [
            (b"{\"message\":\"nothing is pinned\"}", "nothing is pinned"),
            (b"{\"error\":\"old\"}", "old"),
            (b"plain\nand more", "plain"),
            (b"", ""),
            (b"{\"message\":\"a\\nb\"}", "a\\nb"),
        ];
        for (body, expect) in rows {
            assert_eq!(message(body), expect);
        }
    }

    #[test]
    fn a_key_is_one_printable_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("api");
        assert!(matches!(read_key(&file), Err(CliError::KeyRefused(_))));
        for (text, expect) in [("abc\n", Some("abc")), ("", None), ("two words", None), ("a\nb", None)] {
            std::fs::write(&file, text).expect("written");
            assert_eq!(read_key(&file).ok().as_deref(), expect, "{text:?}");
        }
    }

    #[test]
    fn addresses_are_one_segment() {
        assert_eq!(encode("/ipfs/bafy/a b"), "%2Fipfs%2Fbafy%2Fa%20b");
    }
}
