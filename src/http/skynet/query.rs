//! The parameters of Skynet's download route (`skynet.md` 5).

use std::time::Duration;

use crate::site::skynet::ArchiveFormat;

use crate::http::ask::Ask;
use crate::http::plan::{Conditions, Disposition};
use crate::http::refusal::{Refusal, SkyRefusal};

/// Seconds that a portal looks for a skylink, unless the client says otherwise, and at most.
const TIMEOUT_DEFAULT_S: u64 = 30;
const TIMEOUT_MAX_S: u64 = 900;

/// What the query says.
#[derive(Debug, Clone)]
pub struct SkyQuery {
    pub disposition: Disposition,
    pub format: Option<ArchiveFormat>,
    /// `Skynet-File-Layout` is wanted.
    pub layout: Layout,
    /// `start` and `end` as a Range header, if both are there.
    range: Option<String>,
    timeout: Duration,
}

/// `include-layout`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Told,
    Untold,
}

impl SkyQuery {
    pub fn read(ask: &Ask) -> Result<SkyQuery, Refusal> {
        let attachment = flag(ask, "attachment", "attachment is true or false")?;
        let layout = flag(ask, "include-layout", "include-layout is true or false")?;
        let format = match ask.parameter("format").filter(|word| !word.is_empty()) {
            None => None,
            Some(word) => Some(ArchiveFormat::parse(&word).ok_or(Refusal::BadQuery("format is concat, tar, targz or zip"))?),
        };
        Ok(SkyQuery {
            disposition: if attachment { Disposition::Attachment } else { Disposition::Inline },
            format,
            layout: if layout { Layout::Told } else { Layout::Untold },
            range: range(ask)?,
            timeout: timeout(ask)?,
        })
    }

    /// The conditions of the request, with the range that the query names.
    pub fn conditions(&self, asked: &Conditions) -> Conditions {
        let mut conditions = asked.clone();
        if let Some(range) = &self.range {
            conditions.range = Some(range.clone());
        }
        conditions
    }

    /// Looks for something, as long as the client wants to wait.
    pub async fn within<T>(&self, find: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        tokio::time::timeout(self.timeout, find).await.unwrap_or(Err(SkyRefusal::TimedOut.into()))
    }
}

/// Go's words for yes and no.
fn flag(ask: &Ask, name: &str, wrong: &'static str) -> Result<bool, Refusal> {
    match ask.parameter(name).as_deref() {
        None | Some("" | "0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
        Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
        Some(_) => Err(Refusal::BadQuery(wrong)),
    }
}

fn range(ask: &Ask) -> Result<Option<String>, Refusal> {
    let number = |text: String| text.parse::<u64>().map_err(|_| Refusal::BadQuery("start and end are numbers of bytes"));
    let start = ask.parameter("start").map(number).transpose()?;
    let end = ask.parameter("end").map(number).transpose()?;
    match (start, end) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) if ask.conditions.range.is_some() => {
            Err(Refusal::BadQuery("a range is given twice, in the query and in the Range header"))
        }
        (Some(start), Some(end)) if start <= end => Ok(Some(format!("bytes={start}-{end}"))),
        (Some(_), Some(_)) => Err(Refusal::BadQuery("start is behind end")),
        (Some(_), None) | (None, Some(_)) => Err(Refusal::BadQuery("start and end need each other")),
    }
}

fn timeout(ask: &Ask) -> Result<Duration, Refusal> {
    let Some(text) = ask.parameter("timeout") else { return Ok(Duration::from_secs(TIMEOUT_DEFAULT_S)) };
    let seconds = text.parse::<u64>().map_err(|_| Refusal::BadQuery("timeout is a number of seconds"))?;
    match seconds {
        1..=TIMEOUT_MAX_S => Ok(Duration::from_secs(seconds)),
        _ => Err(Refusal::BadQuery("timeout is from 1 to 900 seconds")),
    }
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;
    use crate::http::ask::Trust;

    fn read(query: &str, range: Option<&str>) -> Result<SkyQuery, Refusal> {
        let mut request = Request::builder().uri(format!("/AAB1QJWQV0y2ynDXnJvOt0uh-THq-pJj2_layW5fjPXhTQ?{query}"));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        SkyQuery::read(&Ask::read(&request.body(()).expect("a request").into_parts().0, Trust::Itself)?)
    }

    /// `skynet.md` 5.
    #[test]
    fn parameters() {
        for (query, range, timeout_s) in [
            ("", None, Some((None, 30))),
            ("timeout=1", None, Some((None, 1))),
            ("timeout=900", None, Some((None, 900))),
            ("timeout=901", None, None),
            ("timeout=0", None, None),
            ("timeout=x", None, None),
            ("start=0&end=0", None, Some((Some("bytes=0-0"), 30))),
            ("start=1&end=9", Some("bytes=0-1"), None),
            ("start=9&end=1", None, None),
            ("start=1", None, None),
            ("end=1", None, None),
            ("start=1&end=18446744073709551616", None, None),
            ("priceperms=1&no-response-metadata=true", None, Some((None, 30))),
        ] {
            let found = read(query, range);
            match timeout_s {
                None => assert_eq!(found.expect_err(query).row().status, 400, "{query}"),
                Some((range, seconds)) => {
                    let found = found.unwrap_or_else(|error| panic!("{query}: {error}"));
                    assert_eq!((found.range.as_deref(), found.timeout.as_secs()), (range, seconds), "{query}");
                }
            }
        }
    }

    /// A wait that ends is no absence.
    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_in_time() {
        let query = read("timeout=2", None).expect("good");
        let begun = tokio::time::Instant::now();
        let refusal = query.within::<()>(std::future::pending()).await.expect_err("in time");
        assert_eq!((begun.elapsed(), refusal.row().status.as_u16()), (Duration::from_secs(2), 504));
        assert_eq!(query.within(async { Ok(7) }).await.ok(), Some(7));
    }
}
