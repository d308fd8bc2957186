//! Headers that the replies of several formats share.

use ::http::header::{self, HeaderMap, HeaderValue};

use super::super::ask::{Ask, FormatBy};
use super::super::plan::{self, CACHE_IMMUTABLE, Disposition, X_IPFS_PATH, X_IPFS_ROOTS, ascii};
use super::{Target, content_path_text, insert_cors, on_this_host};
use crate::address::Cid;

/// Media type, and how a browser shall take it.
pub struct Kind {
    pub media_type: &'static str,
    pub disposition: Disposition,
    /// Ending of the file name that is proposed.
    pub extension: &'static str,
}

/// `X-Ipfs-Path` as asked and `X-Ipfs-Roots`, one CID for each step of the path.
pub fn of_path(ask: &Ask, roots: &[Cid]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(24);
    if let Ok(value) = HeaderValue::try_from(content_path_text(ask)) {
        headers.insert(X_IPFS_PATH, value);
    }
    let list: Vec<String> = roots.iter().map(Cid::to_string).collect();
    headers.insert(X_IPFS_ROOTS, ascii(list.join(",")));
    insert_cors(&mut headers);
    headers
}

/// All headers of a reply in an explicit format but Etag and length. `parameters` are those of the format that stand in
/// a URL (`car-order=dfs`), for `Content-Location`.
pub fn of_format(ask: &Ask, target: &Target, (cid, roots): (&Cid, &[Cid]), kind: &Kind, parameters: &[(&str, &str)]) -> HeaderMap {
    let mut headers = of_path(ask, roots);
    if let Some(rule) = target.cache_control(CACHE_IMMUTABLE) {
        headers.insert(header::CACHE_CONTROL, rule);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind.media_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let filename = ask.parameter("filename").filter(|name| !name.is_empty());
    let filename = filename.unwrap_or_else(|| format!("{cid}.{}", kind.extension));
    let disposition = if ask.wants_download() { Disposition::Attachment } else { kind.disposition };
    headers.insert(header::CONTENT_DISPOSITION, plan::content_disposition(disposition, &filename));
    if let Some(value) = content_location(ask, parameters) {
        headers.insert(header::CONTENT_LOCATION, value);
    }
    headers
}

/// Where the same reply is to be had by URL alone, when the format came by Accept.
fn content_location(ask: &Ask, parameters: &[(&str, &str)]) -> Option<HeaderValue> {
    let FormatBy::Accept = ask.format_by else { return None };
    let mut location = format!("{}?format={}", on_this_host(&ask.path), ask.format.name());
    for (name, value) in parameters.iter().filter(|(name, _)| ask.parameter(name).is_none()) {
        location.push_str(&format!("&{name}={value}"));
    }
    if let Some(query) = ask.query.as_deref().filter(|query| !query.is_empty()) {
        location.push('&');
        location.push_str(query);
    }
    HeaderValue::try_from(location).ok()
}
