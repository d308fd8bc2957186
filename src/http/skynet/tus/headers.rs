//! What tus says in headers (tus 1.0.0, "Core", "Creation", "Concatenation"): read strictly, in bounded space.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::ingest::spool::{PARTS_MAX, UPLOAD_METADATA_BYTES_MAX, UploadId};

/// Where uploads stand; an id follows.
pub const UPLOADS: &str = "/skynet/tus/";
/// Our key in Upload-Metadata for what an upload became (`skynet.md` 8).
const SKYLINK_KEY: &str = "Skylink";
/// Padded as tus says, but clients that leave the padding out are understood.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// What this gateway reads out of Upload-Metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileFacts {
    pub filename: Option<String>,
    pub content_type: Option<String>,
}

/// Reads Upload-Metadata: pairs with commas between, a key and a value in base64 with a space between.
pub fn file_facts(text: &str) -> Result<FileFacts, &'static str> {
    if text.len() > UPLOAD_METADATA_BYTES_MAX {
        return Err("it is longer than 8 KiB");
    }
    let mut facts = FileFacts::default();
    let mut seen: Vec<&str> = Vec::new();
    for (key, value) in pairs(text) {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a key is empty, or has characters that no key has");
        }
        if seen.contains(&key) {
            return Err("a key stands twice");
        }
        seen.push(key);
        let value = BASE64.decode(value).map_err(|_| "a value is no base64")?;
        let slot = match key {
            "filename" => &mut facts.filename,
            "filetype" => &mut facts.content_type,
            _ => continue,
        };
        let value = String::from_utf8(value).map_err(|_| "filename or filetype is no UTF-8")?;
        *slot = Some(value).filter(|value| !value.is_empty());
    }
    Ok(facts)
}

fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let items = text.split(',').map(str::trim);
    // Nothing at all is no pair, and neither is what stands behind a last comma.
    items.filter(|item| !item.is_empty()).map(|item| item.split_once(' ').map_or((item, ""), |(key, value)| (key, value.trim())))
}

/// Upload-Metadata as the client sent it, with the skylink: clients of Skynet's daemon look for it there.
pub fn metadata_with_skylink(text: &str, skylink: &str) -> String {
    let own = format!("{SKYLINK_KEY} {}", BASE64.encode(skylink));
    let theirs = pairs(text).filter(|(key, _)| *key != SKYLINK_KEY);
    let told = theirs.map(|(key, value)| if value.is_empty() { key.to_owned() } else { format!("{key} {value}") });
    told.chain([own]).collect::<Vec<_>>().join(",")
}

/// What Upload-Concat says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concat {
    Part,
    Final(Vec<UploadId>),
}

/// Reads Upload-Concat. Of the URLs of parts only the ids count: nothing is ever fetched.
pub fn concat(text: &str) -> Result<Concat, &'static str> {
    let text = text.trim();
    if text == "partial" {
        return Ok(Concat::Part);
    }
    let urls = text.strip_prefix("final;").ok_or("it is neither \"partial\" nor \"final;\" and URLs")?;
    let mut parts = Vec::new();
    for url in urls.split(' ').filter(|url| !url.is_empty()) {
        if parts.len() == PARTS_MAX {
            return Err("it names more than 128 parts");
        }
        parts.push(id_in(url).ok_or("a URL is none of an upload here")?);
    }
    if parts.is_empty() { Err("it names no parts") } else { Ok(Concat::Final(parts)) }
}

/// The id in an absolute or relative URL of an upload.
fn id_in(url: &str) -> Option<UploadId> {
    let path = match url.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/')?..],
        None => url,
    };
    let path = path.split(['?', '#']).next()?;
    path.strip_prefix(UPLOADS)?.trim_end_matches('/').parse().ok()
}

/// A count of bytes: digits and nothing else.
pub fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Whatever the bytes are, reading them ends and is bounded, and what is told again can be read again.
#[cfg(test)]
pub fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(facts) = file_facts(&text) {
        let again = metadata_with_skylink(&text, "AAB1QJWQV0y2ynDXnJvOt0uh-THq-pJj2_layW5fjPXhTQ");
        if again.len() <= UPLOAD_METADATA_BYTES_MAX {
            assert_eq!(file_facts(&again), Ok(facts), "{text:?}");
        }
    }
    if let Ok(Concat::Final(parts)) = concat(&text) {
        assert!((1..=PARTS_MAX).contains(&parts.len()));
        let said = parts.iter().map(|id| format!("{UPLOADS}{id}")).collect::<Vec<_>>().join(" ");
        assert_eq!(concat(&format!("final;{said}")), Ok(Concat::Final(parts)));
    }
    if let Some(count) = number(&text) {
        assert_eq!(count.to_string(), text.trim_start_matches('0').to_owned() + if count == 0 { "0" } else { "" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata() {
        let facts = |filename: Option<&str>, content_type: Option<&str>| {
            Ok(FileFacts { filename: filename.map(str::to_owned), content_type: content_type.map(str::to_owned) })
        };
        let long = format!("a {}", "A".repeat(UPLOAD_METADATA_BYTES_MAX));
        let rows = [
            ("", facts(None, None)),
            ("filename d29ybGQucGRm,is_confidential", facts(Some("world.pdf"), None)),
            ("filename YQ==,filetype dGV4dC9wbGFpbg==", facts(Some("a"), Some("text/plain"))),
            ("filename YQ, filetype  dGV4dC9wbGFpbg", facts(Some("a"), Some("text/plain"))),
            ("filename ", facts(None, None)),
            ("filename xIXEmQ==,", facts(Some("ąę"), None)),
            ("other !!!", Err("a value is no base64")),
            ("filename YQ==,filename Yg==", Err("a key stands twice")),
            ("filename /w==", Err("filename or filetype is no UTF-8")),
            ("name /w==", facts(None, None)),
            ("a\tb YQ==", Err("a key is empty, or has characters that no key has")),
            (&long, Err("it is longer than 8 KiB")),
        ];
        for (text, expect) in rows {
            assert_eq!(file_facts(text), expect, "{text:?}");
        }
    }

    #[test]
    fn metadata_tells_the_skylink() {
        for (text, expect) in
            [("", "Skylink eA=="), ("filename YQ==", "filename YQ==,Skylink eA=="), ("Skylink YQ==, flag", "flag,Skylink eA==")]
        {
            assert_eq!(metadata_with_skylink(text, "x"), expect);
        }
    }

    #[test]
    fn concatenation() {
        let (a, b) = (UploadId::random(), UploadId::random());
        let both = Ok(Concat::Final(vec![a, b]));
        for (text, expect) in [
            ("partial".to_owned(), Ok(Concat::Part)),
            (" partial ".to_owned(), Ok(Concat::Part)),
            (format!("final;https://portal.example/skynet/tus/{a} http://127.0.0.1:8080/skynet/tus/{b}"), both.clone()),
            (format!("final;/skynet/tus/{a}/  /skynet/tus/{b}?x=1#y"), both),
            ("final;".to_owned(), Err("it names no parts")),
            ("Partial".to_owned(), Err("it is neither \"partial\" nor \"final;\" and URLs")),
            (format!("final;{a}"), Err("a URL is none of an upload here")),
            ("final;https://portal.example".to_owned(), Err("a URL is none of an upload here")),
            (format!("final;/skynet/tus/../{a}"), Err("a URL is none of an upload here")),
            (format!("final;{}", format!(" /skynet/tus/{a}").repeat(129)), Err("it names more than 128 parts")),
        ] {
            assert_eq!(concat(&text), expect, "{text}");
        }
    }

    #[test]
    fn numbers() {
        for (text, expect) in [
            ("0", Some(0)),
            ("007", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1 ", None),
            ("0x10", None),
        ] {
            assert_eq!(number(text), expect, "{text:?}");
        }
    }

    #[test]
    fn fuzz_corpus() {
        let id = "0123456789abcdef0123456789abcdef";
        let concat = format!("final;https://portal.example/skynet/tus/{id} /skynet/tus/{id}");
        for good in ["filename d29ybGQucGRm,filetype dGV4dC9wbGFpbg==,flag", concat.as_str(), "1844674407370955161"] {
            for seed in 0..1000 {
                fuzz(&crate::address::test_shared::mutations(seed, good.as_bytes()));
            }
        }
    }
}
