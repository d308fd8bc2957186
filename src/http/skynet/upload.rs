//! `POST /skynet/skyfile`: a file as the body, or several in a multipart form (`skynet.md` 4 and 6).
//!
//! The query is read first and whole, so that what cannot be is refused before a byte is stored.

use std::collections::BTreeMap;

use ::http::header::{self, HeaderMap, HeaderName};
use ::http::{Method, StatusCode};
use futures::{StreamExt, TryStreamExt, stream};

use crate::ingest::{IngestError, SkyFile, SkyOptions, SkyPart, SkyPlace, SkyPurpose, SkyReport};
use crate::tree::skyfile::{DefaultPath, LIST_ITEMS_MAX, UploadSaid, UploadShape};

use super::Call;
use super::content::SKYNET_SKYLINK;
use super::multipart::{Event, Multipart, MultipartFault, PartHead, media_type, parameter};
use crate::http::ask::{self, text};
use crate::http::caller::Work;
use crate::http::plan::ascii;
use crate::http::refusal::Refusal;
use crate::http::reply::{Reply, made_here};
use crate::http::services::{SkyParts, UploadStream};

const SKYGATE_CID: HeaderName = HeaderName::from_static("skygate-cid");
/// Most content bytes of one upload, whoever sends it. Skynet's portals took 5 GB here, which was too little for folders;
/// clients' own limits are in `access`.
const UPLOAD_BYTES_MAX: u64 = 1 << 40;

/// Takes in one skyfile.
pub async fn skyfile(call: Call<'_>) -> Result<Reply, Refusal> {
    let admitted = call.sender.admit(call.services, call.ask, Work::Upload)?;
    let body_form = BodyForm::read(call.sender.headers)?;
    let query = call.ask.query.as_deref().unwrap_or_default();
    let (said, purpose) = read_query(query, body_form.shape())?;
    let parts = body_form.parts(admitted.metered(call.body), &said.filename)?;
    let options = SkyOptions {
        owner: admitted.caller.owner().to_owned(),
        said,
        purpose,
        bytes_max: Some(UPLOAD_BYTES_MAX),
        idempotency_key: None,
    };
    let stored = call.services.uploads.skyfile(parts, options).await;
    let report = stored.map_err(|error| admitted.explain(error.into()))?;
    Ok(told(&report))
}

/// The answer to an upload: Skynet's fields, and the CID of the same bytes.
pub fn told(report: &SkyReport) -> Reply {
    let link = report.skylink;
    let json = serde_json::json!({
        "skylink": link.to_string(),
        "merkleroot": hex::encode(link.hash()),
        "bitfield": link.bitfield(),
        "cid": report.cid.to_string(),
    });
    let mut reply = made_here(StatusCode::OK, "application/json; charset=utf-8", &Method::POST, json.to_string() + "\n");
    reply.headers_mut().insert(SKYNET_SKYLINK, ascii(link.to_string()));
    reply.headers_mut().insert(SKYGATE_CID, ascii(report.cid.to_string()));
    reply
}

/// How the files stand in the body.
enum BodyForm {
    Raw,
    Multipart { boundary: String },
}

impl BodyForm {
    fn read(headers: &HeaderMap) -> Result<BodyForm, Refusal> {
        let kind = text(headers, header::CONTENT_TYPE).and_then(media_type);
        let (kind, parameters) = kind.ok_or(Refusal::BadHeader("Content-Type"))?;
        Ok(match kind.as_str() {
            "multipart/form-data" | "multipart/mixed" => {
                BodyForm::Multipart { boundary: parameter(&parameters, "boundary").unwrap_or_default().to_owned() }
            }
            _ => BodyForm::Raw,
        })
    }

    fn shape(&self) -> UploadShape {
        match self {
            BodyForm::Raw => UploadShape::Raw,
            BodyForm::Multipart { .. } => UploadShape::Multipart,
        }
    }

    fn parts(self, body: UploadStream, filename: &str) -> Result<SkyParts, Refusal> {
        match self {
            BodyForm::Raw => {
                let file = SkyFile { path: filename.to_owned(), ..SkyFile::default() };
                let bytes = body.map_ok(SkyPart::Bytes).map_err(|error| IngestError::Body(error.to_string()));
                Ok(stream::once(std::future::ready(Ok(SkyPart::File(file)))).chain(bytes).boxed())
            }
            BodyForm::Multipart { boundary } => {
                let form = Multipart::new(&boundary).map_err(IngestError::from)?;
                Ok(stream::try_unfold((form, body), next_part).boxed())
            }
        }
    }
}

async fn next_part(
    (mut form, mut body): (Multipart, UploadStream),
) -> Result<Option<(SkyPart, (Multipart, UploadStream))>, IngestError> {
    loop {
        match form.next_event()? {
            Some(Event::Part(head)) => return Ok(Some((SkyPart::File(file_of(head)?), (form, body)))),
            Some(Event::Bytes(bytes)) => return Ok(Some((SkyPart::Bytes(bytes), (form, body)))),
            None => {}
        }
        match body.next().await {
            Some(bytes) => form.give(&bytes.map_err(|error| IngestError::Body(error.to_string()))?),
            None => return Ok(form.finish().map(|()| None)?),
        }
    }
}

/// The texts are those of Skynet's daemon.
fn file_of(head: PartHead) -> Result<SkyFile, IngestError> {
    let place = match head.name.as_str() {
        "file" => SkyPlace::Alone,
        "files[]" => SkyPlace::InFolder,
        _ => {
            return Err(bad("multipart file submitted under an illegal form name, allowed values are 'files[]' and 'file'"));
        }
    };
    let path = head.filename.filter(|name| !name.is_empty()).ok_or_else(|| bad("no filename provided"))?;
    let mode = head.mode.map_or(Ok(0), |mode| octal(&mode)).map_err(|_| bad("failed to parse file mode"))?;
    Ok(SkyFile { path, content_type: head.content_type, mode, place })
}

/// What the query says of the whole upload.
fn read_query(query: &str, shape: UploadShape) -> Result<(UploadSaid, SkyPurpose), Refusal> {
    let get = |name: &str| ask::parameter(query, name).filter(|value| !value.is_empty());
    let flag = |name: &'static str| get(name).map_or(Ok(false), |value| boolean(name, &value));
    if get("skykeyname").is_some() || get("skykeyid").is_some() {
        return Err(bad("this portal has no skykeys: encrypt the file before the upload").into());
    }
    if get("convertpath").is_some() {
        return Err(bad("this portal has no siafiles to convert: upload the file itself").into());
    }
    // The hosts' own rules take the place of these; a value that is none is still a mistake of the client.
    let redundancy = get("basechunkredundancy").map(|value| value.parse::<u8>()).transpose();
    redundancy.map_err(|_| bad("unable to parse 'basechunkredundancy' parameter"))?;
    flag("root")?;
    let purpose = if flag("dryrun")? { SkyPurpose::DryRun } else { SkyPurpose::Store };
    if flag("force")? && purpose == SkyPurpose::DryRun {
        return Err(bad("'dryRun' and 'force' can not be combined").into());
    }
    let default_path = match (get("defaultpath"), flag("disabledefaultpath")?) {
        (Some(_), true) => {
            return Err(bad("DefaultPath and DisableDefaultPath are mutually exclusive and cannot be set together").into());
        }
        (Some(path), false) => DefaultPath::File(if path.starts_with('/') { path } else { format!("/{path}") }),
        (None, true) => DefaultPath::Disabled,
        (None, false) => DefaultPath::Unsaid,
    };
    if shape == UploadShape::Raw && default_path != DefaultPath::Unsaid {
        return Err(bad("DefaultPath and DisableDefaultPath can only be set on multipart uploads").into());
    }
    let mode = get("mode").map_or(Ok(0), |mode| octal(&mode)).map_err(|_| bad("unable to parse 'mode' parameter"))?;
    let said = UploadSaid {
        shape,
        filename: get("filename").unwrap_or_default(),
        mode,
        try_files: ask::parameter(query, "tryfiles").map(|json| try_files(&json)).transpose()?,
        error_pages: get("errorpages").map_or(Ok(BTreeMap::new()), |json| error_pages(&json))?,
        default_path,
    };
    Ok((said, purpose))
}

/// An empty value is an empty list.
fn try_files(json: &str) -> Result<Vec<String>, IngestError> {
    if json.is_empty() {
        return Ok(Vec::new());
    }
    let files: Option<Vec<String>> =
        serde_json::from_str(json).map_err(|error| bad(format!("unable to parse 'tryfiles' parameter: {error}")))?;
    let files = files.unwrap_or_default();
    if files.len() > LIST_ITEMS_MAX {
        return Err(bad(format!("more than {LIST_ITEMS_MAX} tryfiles")));
    }
    Ok(files)
}

fn error_pages(json: &str) -> Result<BTreeMap<i64, String>, IngestError> {
    let pages: Option<BTreeMap<i64, String>> =
        serde_json::from_str(json).map_err(|error| bad(format!("invalid 'errorpages' parameter: {error}")))?;
    let pages = pages.unwrap_or_default();
    if pages.len() > LIST_ITEMS_MAX {
        return Err(bad(format!("more than {LIST_ITEMS_MAX} errorpages")));
    }
    Ok(pages)
}

/// Go's words for true and false.
fn boolean(name: &str, value: &str) -> Result<bool, IngestError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(bad(format!("unable to parse '{name}' parameter: it is true or false"))),
    }
}

fn octal(text: &str) -> Result<u32, std::num::ParseIntError> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
}

fn bad(what: impl Into<String>) -> IngestError {
    IngestError::Bad(what.into())
}

impl From<MultipartFault> for IngestError {
    fn from(fault: MultipartFault) -> IngestError {
        bad(fault.to_string())
    }
}

/// Any text as a query: what is taken is valid as far as it can be judged without files.
pub fn fuzz(data: &[u8]) {
    let Ok(query) = std::str::from_utf8(data) else { return };
    for shape in [UploadShape::Raw, UploadShape::Multipart] {
        if let Ok((said, _)) = read_query(query, shape) {
            let _ = said.check();
            let _ = said.metadata(&[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn queries() {
        let said = |query| read_query(query, UploadShape::Multipart).map(|(said, _)| said);
        let plain = said("").expect("good");
        assert_eq!(plain, UploadSaid::default());
        let full = said(
            "filename=my+d%2Fir&mode=0644&tryfiles=%5B%22good.html%22,%22/index.html%22%5D&errorpages=%7B%22404%22:%22/404.html%22%7D&x=1",
        );
        let full = full.expect("good");
        assert_eq!((full.filename.as_str(), full.mode), ("my d/ir", 0o644));
        assert_eq!(full.try_files, Some(vec!["good.html".to_owned(), "/index.html".to_owned()]));
        assert_eq!(full.error_pages, BTreeMap::from([(404, "/404.html".to_owned())]));
        assert_eq!(said("tryfiles=").expect("good").try_files, Some(vec![]));
        assert_eq!(said("defaultpath=b.html").expect("good").default_path, DefaultPath::File("/b.html".to_owned()));
        assert_eq!(said("disabledefaultpath=True").expect("good").default_path, DefaultPath::Disabled);
        // The camel-case form that one client sends was never read.
        assert_eq!(said("disableDefaultPath=true").expect("good"), UploadSaid::default());
        assert_eq!(said("force=true&root=false&basechunkredundancy=3").expect("good"), UploadSaid::default());
        assert_eq!(read_query("dryrun=true", UploadShape::Raw).expect("good").1, SkyPurpose::DryRun);
        for wrong in [
            "mode=9",
            "mode=-1",
            "mode=777777777777",
            "tryfiles=%5B",
            "tryfiles=%7B%7D",
            "tryfiles=%5B1%5D",
            "errorpages=%5B%5D",
            "errorpages=%7B%22x%22:%22/a%22%7D",
            "dryrun=yes",
            "dryrun=1&force=1",
            "disabledefaultpath=2",
            "defaultpath=/a&disabledefaultpath=true",
            "skykeyname=k",
            "skykeyid=k",
            "convertpath=a",
            "basechunkredundancy=300",
        ] {
            assert_eq!(said(wrong).expect_err(wrong).row().status, 400, "{wrong}");
        }
        for wrong in ["defaultpath=/a", "disabledefaultpath=true"] {
            assert!(read_query(wrong, UploadShape::Raw).is_err(), "{wrong}");
        }
    }

    #[test]
    fn any_query() {
        let words = [
            "filename",
            "tryfiles",
            "errorpages",
            "mode",
            "=",
            "&",
            "%5B",
            "%22",
            "%5D",
            "%7B",
            "404",
            ":",
            "/a",
            "true",
            "ą",
            "%",
            "+",
        ];
        for seed in 0..2000 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let query: String = (0..random.random_range(0..20)).map(|_| words[random.random_range(0..words.len())]).collect();
            fuzz(query.as_bytes());
        }
    }
}
