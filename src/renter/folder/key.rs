//! The grammar of object keys, and where a key stands on disk.
//!
//! A folder takes only keys of this grammar, so no key can name a place outside the folder, a temporary file or the log,
//! and no key can be a folder of another one (each kind has a fixed depth).

/// The marker's key, and its file name.
pub const MARKER_KEY: &str = "skygate-host.json";

/// Longest whole key in bytes: what S3 takes, so a folder never holds what a bucket could not.
pub const KEY_BYTES_MAX: usize = 1024;

/// Longest part of a key in bytes: the hex of a multihash with a 128-byte digest is 262, and 512 leaves room.
pub const PART_BYTES_MAX: usize = 512;

/// Parts longer than this are split over folders: file systems take names of at most 255 bytes.
const NAME_BYTES_MAX: usize = 200;

/// Ends the name of a folder that holds the rest of a split part. Never part of a key.
pub(super) const SPLIT_MARK: char = '+';

/// Top folders that hold objects, in key order.
pub(super) const TOP_FOLDERS: [&str; 2] = ["records", "sectors"];

/// What the keys of records start with.
pub(super) const RECORDS: &str = "records/";

/// Kinds of records whose key text has two parts (`docs/formats.md` 5).
const TWO_PART_KINDS: [&str; 2] = ["damage", "pin"];

/// Why a key is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is longer than {KEY_BYTES_MAX} bytes, or one of its parts longer than {PART_BYTES_MAX}")]
    TooLong,
    #[error("a part of the key is empty or has characters outside a-z, 0-9, '-', '_' and '.'")]
    BadPart,
    #[error("the key is neither the marker, a sector nor a record")]
    UnknownShape,
}

/// Accepts the marker, `sectors/<2 hex>/<64 hex>`, and `records/<kind>/<2 hex>/<key, one or two parts>/<order>`.
pub fn check_key(key: &str) -> Result<(), KeyError> {
    if key == MARKER_KEY {
        return Ok(());
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    let parts: Vec<&str> = key.split('/').collect();
    for part in &parts {
        check_part(part)?;
    }
    let known = match parts.as_slice() {
        ["sectors", two, root] => is_hex(two, 2) && is_hex(root, 64) && root.starts_with(two),
        ["records", kind, two, rest @ ..] => {
            let depth = if TWO_PART_KINDS.contains(kind) { 3 } else { 2 };
            is_hex(two, 2) && rest.len() == depth
        }
        _ => false,
    };
    if known { Ok(()) } else { Err(KeyError::UnknownShape) }
}

/// Accepts any beginning of a key, cut at a slash; the empty text means everything.
pub fn check_prefix(prefix: &str) -> Result<(), KeyError> {
    if prefix.len() > KEY_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    if prefix.is_empty() {
        return Ok(());
    }
    let mut parts = prefix.split('/');
    let top = parts.next().unwrap_or_default();
    if top != MARKER_KEY && !TOP_FOLDERS.contains(&top) {
        return Err(KeyError::UnknownShape);
    }
    parts.try_for_each(check_part)
}

/// The path of a checked key's file, relative to the folder.
pub(super) fn disk_path(key: &str) -> String {
    let mut path = String::with_capacity(key.len() + 4);
    for (index, part) in key.split('/').enumerate() {
        if index > 0 {
            path.push('/');
        }
        let mut rest = part;
        while rest.len() > NAME_BYTES_MAX {
            let (head, tail) = rest.split_at(NAME_BYTES_MAX);
            path.push_str(head);
            path.push(SPLIT_MARK);
            path.push('/');
            rest = tail;
        }
        path.push_str(rest);
    }
    path
}

/// The folder a path stands in; empty for the top.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn check_part(part: &str) -> Result<(), KeyError> {
    if part.len() > PART_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first_plain = part.bytes().next().is_some_and(plain);
    // A part that gets split has to sort among its neighbours as the whole would: so no characters below '/' in it.
    let long = part.len() > NAME_BYTES_MAX;
    let rest_fine = part.bytes().all(|byte| plain(byte) || (!long && matches!(byte, b'-' | b'_' | b'.')));
    if first_plain && rest_fine { Ok(()) } else { Err(KeyError::BadPart) }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let root = "ab".repeat(32);
        let long = "a".repeat(262);
        let cases: Vec<(String, Result<(), KeyError>)> = vec![
            (MARKER_KEY.into(), Ok(())),
            (format!("sectors/ab/{root}"), Ok(())),
            (format!("sectors/ac/{root}"), Err(KeyError::UnknownShape)),
            (format!("sectors/ab/{}", &root[2..]), Err(KeyError::UnknownShape)),
            (format!("sectors/{root}"), Err(KeyError::UnknownShape)),
            (format!("sectors/AB/{}", root.to_uppercase()), Err(KeyError::BadPart)),
            ("records/entry/0f/key/order".into(), Ok(())),
            ("records/entry/0f/key/more/order".into(), Err(KeyError::UnknownShape)),
            ("records/pin/0f/key/id/order".into(), Ok(())),
            ("records/pin/0f/key/order".into(), Err(KeyError::UnknownShape)),
            ("records/pin/zz/key/id/order".into(), Err(KeyError::UnknownShape)),
            ("records/damage/0f/root/host/order".into(), Ok(())),
            ("records/damage/0f/root/order".into(), Err(KeyError::UnknownShape)),
            (format!("records/pin/0f/{long}/id/order"), Ok(())),
            (format!("records/pin/0f/{long}-/id/order"), Err(KeyError::BadPart)),
            (format!("records/pin/0f/{}/id/order", "a".repeat(513)), Err(KeyError::TooLong)),
            ("".into(), Err(KeyError::BadPart)),
            ("/records/entry/0f/key/order".into(), Err(KeyError::BadPart)),
            ("records/entry/0f/key/".into(), Err(KeyError::BadPart)),
            ("records/entry/0f/../order".into(), Err(KeyError::BadPart)),
            ("records/entry/0f/./order".into(), Err(KeyError::BadPart)),
            ("records/entry/0f/.hidden/order".into(), Err(KeyError::BadPart)),
            ("records/entry/0f/a+/order".into(), Err(KeyError::BadPart)),
            ("records/entry/0f/a\0b/order".into(), Err(KeyError::BadPart)),
            ("records/entry/0f/ä/order".into(), Err(KeyError::BadPart)),
            ("log/0000000000000001.log".into(), Err(KeyError::UnknownShape)),
            ("tmp/1".into(), Err(KeyError::UnknownShape)),
            ("etc/passwd".into(), Err(KeyError::UnknownShape)),
        ];
        for (key, expect) in cases {
            assert_eq!(check_key(&key), expect, "{key:?}");
        }
    }

    #[test]
    fn prefixes() {
        for (prefix, fine) in [
            ("", true),
            ("records", true),
            ("records/pin/0f", true),
            ("sectors/ab", true),
            ("tmp", false),
            ("log", false),
            ("records/..", false),
            ("records//x", false),
        ] {
            assert_eq!(check_prefix(prefix).is_ok(), fine, "{prefix:?}");
        }
    }

    #[test]
    fn long_parts_are_split() {
        let long = "c".repeat(450);
        let path = disk_path(&format!("records/pin/0f/{long}/id/order"));
        let names: Vec<&str> = path.split('/').collect();
        assert_eq!(names[3], format!("{}+", "c".repeat(200)));
        assert_eq!(names[4], format!("{}+", "c".repeat(200)));
        assert_eq!(names[5], "c".repeat(50));
        assert!(names.iter().all(|name| name.len() <= 255));
        assert_eq!(disk_path("records/entry/0f/k/o"), "records/entry/0f/k/o");
    }
}
