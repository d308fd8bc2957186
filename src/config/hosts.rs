//! `[[hosts]]`: where sectors and records are kept. A folder, or a bucket of an S3-compatible store.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, Redundancy, SharedHosts, invalid};

/// More hosts than a placement table is tested with.
const HOSTS_MAX: usize = 4096;
/// Stores that are not Amazon's take any region; this is the one that they call themselves by most often.
const REGION_DEFAULT: &str = "us-east-1";
/// Longest key file read: two or three short lines.
const KEY_FILE_BYTES_MAX: usize = 16 << 10;

/// One host as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedHost {
    pub url: String,
    pub zone: Option<String>,
    pub weight: Option<u16>,
    /// The rest is for buckets.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_file: Option<PathBuf>,
    pub virtual_hosted: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlace {
    /// As written, for messages.
    pub url: String,
    pub store: HostStore,
    pub zone: Option<String>,
    pub weight: u16,
}

/// What keeps a host's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostStore {
    Folder(PathBuf),
    Bucket(Box<Bucket>),
}

/// A bucket of an S3-compatible store, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub bucket: String,
    /// Of all keys, without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
    /// `None`: Amazon's own, by region.
    pub endpoint: Option<String>,
    pub region: String,
    /// `None`: requests are not signed.
    pub key: Option<BucketKey>,
    /// The bucket's name stands in the host name, not in the path.
    pub virtual_hosted: bool,
}

/// What requests to a bucket are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketKey {
    pub id: String,
    pub secret: String,
    /// Of temporary credentials.
    pub session: Option<String>,
}

impl fmt::Debug for BucketKey {
    /// Without the secrets: configurations are logged.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "BucketKey({})", self.id)
    }
}

impl HostPlace {
    /// What tells it from all others: buckets of two stores may have one URL.
    pub fn place(&self) -> String {
        match &self.store {
            HostStore::Folder(_) => self.url.clone(),
            HostStore::Bucket(bucket) => match &bucket.endpoint {
                Some(endpoint) => format!("{} at {endpoint}", self.url),
                None => self.url.clone(),
            },
        }
    }

    /// The folder of a folder host.
    pub fn folder(&self) -> Option<&Path> {
        match &self.store {
            HostStore::Folder(folder) => Some(folder),
            HostStore::Bucket(_) => None,
        }
    }
}

/// Checks all hosts. Relative places are taken from `base`.
pub(super) fn check(hosts: Vec<TypedHost>, redundancy: &Redundancy, base: &Path) -> Result<Vec<HostPlace>, ConfigError> {
    if hosts.len() > HOSTS_MAX {
        return Err(invalid(format!("{} [[hosts]], at most {HOSTS_MAX}", hosts.len())));
    }
    let mut places: Vec<HostPlace> = Vec::with_capacity(hosts.len());
    for host in hosts {
        let weight = host.weight.unwrap_or(1);
        if weight == 0 {
            return Err(invalid(format!("[[hosts]] url {:?} has weight 0: leave the host out instead", host.url)));
        }
        let store = match host.url.split_once(':') {
            Some(("file", path)) => folder(&host, path, base)?,
            Some(("s3", rest)) => bucket(&host, rest, base)?,
            _ => {
                return Err(invalid(format!(
                    "[[hosts]] url {:?} is not known: write \"file:FOLDER\" or \"s3://BUCKET/PREFIX\"",
                    host.url
                )));
            }
        };
        if let Some(twice) = places.iter().find(|known| same_place(&known.store, &store)) {
            let what = if matches!(store, HostStore::Folder(_)) { "folder" } else { "place in a bucket" };
            return Err(invalid(format!("[[hosts]] {:?} and {:?} are the same {what}", twice.url, host.url)));
        }
        places.push(HostPlace { url: host.url, store, zone: host.zone, weight });
    }
    let wanted = usize::from(redundancy.pieces().max(redundancy.base_copies));
    if places.len() < wanted && redundancy.shared_hosts == SharedHosts::Refused {
        return Err(redundancy.too_few_hosts(places.len()));
    }
    Ok(places)
}

fn same_place(one: &HostStore, other: &HostStore) -> bool {
    match (one, other) {
        (HostStore::Folder(one), HostStore::Folder(other)) => one == other,
        (HostStore::Bucket(one), HostStore::Bucket(other)) => {
            (&one.endpoint, &one.bucket, &one.prefix) == (&other.endpoint, &other.bucket, &other.prefix)
        }
        _ => false,
    }
}

fn folder(host: &TypedHost, path: &str, base: &Path) -> Result<HostStore, ConfigError> {
    if host.endpoint.is_some() || host.region.is_some() || host.access_key_file.is_some() || host.virtual_hosted.is_some() {
        return Err(invalid(format!(
            "[[hosts]] url {:?} is a folder: endpoint, region, access_key_file and virtual_hosted belong to \"s3://\" hosts",
            host.url
        )));
    }
    // `file:///srv/1` and `file:/srv/1` are the same place; `file:hosts/1` counts from the configuration file.
    let path = if path.starts_with("///") { &path[2..] } else { path };
    if path.is_empty() || path.starts_with("//") {
        return Err(invalid(format!("[[hosts]] url {:?} names no folder: write \"file:FOLDER\"", host.url)));
    }
    Ok(HostStore::Folder(base.join(path)))
}

fn bucket(host: &TypedHost, rest: &str, base: &Path) -> Result<HostStore, ConfigError> {
    let bad = |what: &str| invalid(format!("[[hosts]] url {:?} {what}: write \"s3://BUCKET\" or \"s3://BUCKET/PREFIX\"", host.url));
    let rest = rest.strip_prefix("//").ok_or_else(|| bad("names no bucket"))?;
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.is_empty() || !name.bytes().all(fits) {
        return Err(bad("names no bucket"));
    }
    let prefix = prefix.trim_matches('/');
    let part_fits = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(fits);
    if !prefix.is_empty() && !prefix.split('/').all(part_fits) {
        return Err(bad("has a prefix of other characters than letters, digits, '-', '.', '_' and '/'"));
    }
    if let Some(endpoint) = &host.endpoint
        && !endpoint.starts_with("http://")
        && !endpoint.starts_with("https://")
    {
        return Err(invalid(format!("[[hosts]] endpoint {endpoint:?} is no address: write it like \"https://s3.example.com\"")));
    }
    Ok(HostStore::Bucket(Box::new(Bucket {
        bucket: name.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: host.endpoint.as_ref().map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
        region: host.region.clone().unwrap_or_else(|| REGION_DEFAULT.to_owned()),
        key: key(host, base)?,
        virtual_hosted: host.virtual_hosted.unwrap_or(false),
    })))
}

/// From the host's file, else from the environment, as all tools of such stores read it.
fn key(host: &TypedHost, base: &Path) -> Result<Option<BucketKey>, ConfigError> {
    let Some(file) = &host.access_key_file else {
        let environment = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let pair = environment("AWS_ACCESS_KEY_ID").zip(environment("AWS_SECRET_ACCESS_KEY"));
        return Ok(pair.map(|(id, secret)| BucketKey { id, secret, session: environment("AWS_SESSION_TOKEN") }));
    };
    let path = base.join(file);
    let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
    let key = parse_key(&text).ok_or_else(|| ConfigError::Malformed {
        path,
        text: "an access key file has two lines: aws_access_key_id = ID and aws_secret_access_key = SECRET".to_owned(),
    })?;
    Ok(Some(key))
}

/// The form of the file that Amazon's tools write: `name = value` lines, with or without a `[section]` before them.
fn parse_key(text: &str) -> Option<BucketKey> {
    if text.len() > KEY_FILE_BYTES_MAX {
        return None;
    }
    let value_of = |wanted: &str| {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let value = pairs.map(|(name, value)| (name.trim(), value.trim().trim_matches('"'))).find(|(name, _)| *name == wanted)?.1;
        (!value.is_empty()).then(|| value.to_owned())
    };
    Some(BucketKey {
        id: value_of("aws_access_key_id")?,
        secret: value_of("aws_secret_access_key")?,
        session: value_of("aws_session_token"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Checked, Flags, Hosts, Typed};

    fn check_in(text: &str, base: &Path) -> Result<Checked, String> {
        let typed: Typed = toml::from_str(text).map_err(|error| error.to_string())?;
        let flags = Flags { data: Some("data".into()), ..Flags::default() };
        typed.check(flags, base).map_err(|error| error.to_string())
    }

    fn check(text: &str) -> Result<Checked, String> {
        check_in(text, Path::new("/etc/skygate"))
    }

    fn nine(more: &str) -> String {
        (1..=9).map(|i| format!("[[hosts]]\nurl = \"file:h{i}\"\n")).collect::<String>() + more
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let rows = [
            ("[[hosts]]\nurl = \"ftp://x\"", "file:FOLDER"),
            ("[[hosts]]\nurl = \"file:a\"", "allow_shared_hosts"),
            ("[[hosts]]\nurl = \"file:\"", "names no folder"),
            ("[[hosts]]\nurl = \"file:a\"\nregion = \"x\"", "belong to \"s3://\" hosts"),
            ("[[hosts]]\nurl = \"file:a\"\nweight = 0", "leave the host out"),
            ("[[hosts]]\nurl = \"s3:bucket\"", "names no bucket"),
            ("[[hosts]]\nurl = \"s3:///prefix\"", "names no bucket"),
            ("[[hosts]]\nurl = \"s3://b/a b\"", "has a prefix"),
            ("[[hosts]]\nurl = \"s3://b/../c\"", "has a prefix"),
            ("[[hosts]]\nurl = \"s3://b\"\nendpoint = \"s3.example.com\"", "https://s3.example.com"),
            ("[[hosts]]\nurl = \"s3://b\"\naccess_key_file = \"nowhere/key\"", "nowhere/key"),
            ("[[hosts]]\nurl = \"s3://b\"\nsecret = \"x\"", "unknown field `secret`"),
        ];
        for (text, expect) in rows {
            let error = check(text).expect_err(text);
            assert!(error.contains(expect), "{text:?} gave {error:?}");
        }
        let twice = nine("[[hosts]]\nurl = \"file:h1\"\n");
        assert!(check(&twice).expect_err("twice").contains("same folder"));
        let bucket = "[[hosts]]\nurl = \"s3://b/p\"\nendpoint = \"http://127.0.0.1:9000\"\n";
        let twice = nine(&(bucket.to_owned() + &bucket.replace("b/p", "b/p/").replace(":9000", ":9000/")));
        assert!(check(&twice).expect_err("twice").contains("same place in a bucket"));
    }

    #[test]
    fn hosts_are_taken_from_the_folder_of_the_file() {
        let checked = check(&nine("[[hosts]]\nurl = \"file:///srv/ten\"\nzone = \"b\"\nweight = 2\n")).expect("right");
        let Hosts::Configured(hosts) = checked.hosts else { panic!("hosts were written") };
        assert_eq!(hosts[0].folder(), Some(Path::new("/etc/skygate/h1")));
        assert_eq!(hosts[9].folder(), Some(Path::new("/srv/ten")));
        assert_eq!((hosts[9].zone.as_deref(), hosts[9].weight), (Some("b"), 2));
    }

    #[test]
    fn a_bucket_has_a_place_and_a_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "[default]\naws_access_key_id = ID1\naws_secret_access_key = \"a=b/c\"\n";
        std::fs::write(folder.path().join("key"), text).expect("written");
        let more = "[[hosts]]\nurl = \"s3://pool.one/sky/1/\"\nendpoint = \"https://s3.example.com/\"\naccess_key_file = \"key\"\n";
        let checked = check_in(&nine(more), folder.path()).expect("right");
        let Hosts::Configured(hosts) = checked.hosts else { panic!("hosts were written") };
        let key = BucketKey { id: "ID1".to_owned(), secret: "a=b/c".to_owned(), session: None };
        assert!(!format!("{key:?}").contains("a=b/c"));
        let expect = Bucket {
            bucket: "pool.one".to_owned(),
            prefix: "sky/1".to_owned(),
            endpoint: Some("https://s3.example.com".to_owned()),
            region: REGION_DEFAULT.to_owned(),
            key: Some(key),
            virtual_hosted: false,
        };
        assert_eq!(hosts[9].store, HostStore::Bucket(Box::new(expect)));
        for bad in ["", "aws_access_key_id = ID1", "aws_access_key_id = \naws_secret_access_key = x"] {
            assert_eq!(parse_key(bad), None, "{bad:?}");
        }
    }
}
