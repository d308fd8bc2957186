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
