//! Denylists: does a rule hit this address?
//!
//! What it does: reads lists in the compact denylist format (IPIP-0383, files `*.deny`) and Skynet blocklists, and answers
//! [`DenyList::check`] for a content path, a name or a sector. It decides before anything is fetched.
//! What it hides: hashing of rules and of what is asked, precedence of rules, how the header is read.
//! What it must never know: files, sockets, HTTP replies. It does no IO: whoever loads a list gives its text.
//!
//! Words: *rule* = one line of a list; *allow rule* = a line beginning with `!`; *double hash* = a rule that only shows the hash
//! of what it denies; *blocklist hash* = BLAKE2b-256 of a sector root, as Skynet portals exchange them.
//!
//! The last rule that matches wins, in the order of lists and lines. A rule for `/ipfs/CID` denies the block itself, in any codec;
//! paths through it end when that block is asked for, so callers ask for every block they serve or walk through
//! ([`Subject::Ipfs`] with an empty path), and for the path as it was asked.
//!
//! Rules are kept as 32-byte fingerprints, some 70 bytes each, so that lists of a million double hashes fit; a look-up costs a few
//! hashes, and double hashing is only done when a list has such rules.
//!
//! Limits: [`LINE_BYTES_MAX`], [`HEADER_BYTES_MAX`] (both from the format), [`RULES_MAX`], [`FAULTS_MAX`].

use std::collections::HashMap;
use std::sync::Arc;

use multibase::Base;

use crate::address::{Cid, Multihash, parse_cid};

/// Longest line with its line feed; the format says 2 MiB.
pub const LINE_BYTES_MAX: usize = 2 << 20;

/// Longest header; the format says 1 MiB. A longer one is no header, its lines are read as rules.
pub const HEADER_BYTES_MAX: usize = 1 << 20;

/// Most rules of all lists together: about 300 MiB, four times the largest public list of 2026.
pub const RULES_MAX: usize = 4_000_000;

/// Most unreadable lines that are reported one by one; the rest is only counted.
pub const FAULTS_MAX: usize = 100;

/// The format's only version.
const VERSION: &str = "1";

const SHA2_256: u64 = 0x12;
const SHA2_512: u64 = 0x13;
const BLAKE2B_256: u64 = 0xb220;
const DAG_PB: u64 = 0x70;

/// What is about to be served.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A content path; with an empty path the block `root` itself. `path` is percent-decoded; slashes at its ends do not count.
    Ipfs { root: &'a Cid, path: &'a str },
    /// A name before it is resolved: a domain or an IPNS key in any form.
    Ipns { name: &'a str, path: &'a str },
    /// The base sector of a skyfile, by its root.
    Sector { root: &'a [u8; 32] },
}

/// How a denial is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyStatus {
    /// 410, the default.
    Gone,
    /// 451, when the list says so (hint `gateway_status:451`), and for Skynet blocklists.
    LegalReasons,
}

/// Which rule denies, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Name of the list.
    pub list: Arc<str>,
    /// Line of the rule, counted from 1.
    pub line: u32,
    pub status: DenyStatus,
    /// The hint `reason` of the rule or the list, for the page that explains.
    pub text: Option<Arc<str>>,
}

/// Why a list was not taken. The rules taken before stay as they were.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DenyError {
    #[error("denylist {list}: version {version} is not known, only {VERSION}")]
    UnknownVersion { list: String, version: String },
    #[error("denylist {list}, line {line}: longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong { list: String, line: u32 },
    #[error("denylist {list}: more than {RULES_MAX} rules")]
    TooManyRules { list: String },
}

/// What became of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Added {
    pub rule_count: usize,
    /// The first [`FAULTS_MAX`] lines that were skipped, for the log.
    pub faults: Vec<Fault>,
    /// All lines that were skipped.
    pub fault_count: usize,
}

/// A line that is no rule this program can apply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Fault {
    pub line: u32,
    pub why: &'static str,
}

/// BLAKE2b-256 over what a rule is about.
type Fingerprint = [u8; 32];

#[derive(Clone, Copy, Debug)]
struct Verdict {
    list: u32,
    line: u32,
    effect: Effect,
    status: DenyStatus,
    /// Index into `DenyList::texts`.
    text: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Deny,
    Allow,
}

/// All rules of a gateway.
#[derive(Clone, Debug, Default)]
pub struct DenyList {
    lists: Vec<Arc<str>>,
    texts: Vec<Arc<str>>,
    /// The other way round: lists repeat a handful of reasons.
    text_indexes: HashMap<Arc<str>, u32>,
    /// Rules about exactly one thing: path, name, sector, double hash.
    exact: HashMap<Fingerprint, Verdict>,
    /// Rules that end in `*`, by CID or name, then by prefix.
    prefixes: HashMap<Fingerprint, HashMap<Box<str>, Verdict>>,
    prefix_count: usize,
    /// Hash functions that double-hash rules use.
    functions: Vec<u64>,
    /// Whether there are double hashes of the form that was used before the format existed.
    legacy: bool,
}

impl DenyList {
    pub fn new() -> DenyList {
        DenyList::default()
    }

    pub fn is_empty(&self) -> bool {
        self.rule_count() == 0
    }

    /// Number of rules, allow rules included.
    pub fn rule_count(&self) -> usize {
        self.exact.len() + self.prefix_count
    }

    /// Adds a list in the compact denylist format behind those that are there. Lines that cannot be read are skipped and
    /// reported: one bad line must not switch a list off. On an error nothing is added.
    pub fn add_list(&mut self, name: &str, text: &str) -> Result<Added, DenyError> {
        let mut next = self.clone();
        let added = next.read_list(name, text)?;
        *self = next;
        Ok(added)
    }

    /// Adds a Skynet blocklist: BLAKE2b-256 hashes of the sector roots that are denied.
    pub fn add_skynet_blocklist(&mut self, name: &str, hashes: &[[u8; 32]]) -> Result<Added, DenyError> {
        if self.rule_count() + hashes.len() > RULES_MAX {
            return Err(DenyError::TooManyRules { list: name.to_owned() });
        }
        let list = self.begin_list(name);
        for (index, hash) in hashes.iter().enumerate() {
            let line = line_number(index);
            let status = DenyStatus::LegalReasons;
            self.exact.insert(sector_key(hash), Verdict { list, line, effect: Effect::Deny, status, text: None });
        }
        Ok(Added { rule_count: hashes.len(), ..Added::default() })
    }

    /// Whether a rule denies this, and which.
    pub fn check(&self, subject: &Subject<'_>) -> Option<Reason> {
        if self.is_empty() {
            return None;
        }
        let verdict = match subject {
            Subject::Ipfs { root, path } => {
                let path = path.trim_matches('/');
                let plain = self.plain(&target_key(Namespace::Ipfs, &root.hash().to_bytes()), path);
                let hashed = self.double_hashed(|| modern_text(root.hash()), || legacy_text(root), path);
                latest(plain, hashed)
            }
            Subject::Ipns { name, path } => self.name(name, path.trim_matches('/')),
            Subject::Sector { root } => self.exact.get(&sector_key(&blocklist_hash(root))).copied(),
        }?;
        (verdict.effect == Effect::Deny).then(|| Reason {
            list: self.lists[verdict.list as usize].clone(),
            line: verdict.line,
            status: verdict.status,
            text: verdict.text.map(|index| self.texts[index as usize].clone()),
        })
    }

    fn name(&self, name: &str, path: &str) -> Option<Verdict> {
        match IpnsName::parse(name) {
            IpnsName::Key(cid) => {
                let plain = self.plain(&target_key(Namespace::Ipns, &cid.hash().to_bytes()), path);
                latest(plain, self.double_hashed(|| modern_text(cid.hash()), || legacy_text(&cid), path))
            }
            IpnsName::Domain(domain) => {
                let plain = self.plain(&target_key(Namespace::Domain, domain.as_bytes()), path);
                latest(plain, self.double_hashed(|| format!("/ipns/{domain}"), || domain.clone(), path))
            }
        }
    }

    /// Rules in clear text: about exactly this path, or about a prefix of it.
    fn plain(&self, target: &Fingerprint, path: &str) -> Option<Verdict> {
        let exact = self.exact.get(&path_key(target, path)).copied();
        let Some(prefixes) = self.prefixes.get(target) else { return exact };
        // As many look-ups as the path has letters, however many rules a list has.
        let ends = path.char_indices().map(|(end, _)| end).chain([path.len()]);
        ends.filter_map(|end| prefixes.get(&path[..end]).copied()).fold(exact, |found, prefix| latest(found, Some(prefix)))
    }

    /// Rules that only show a hash: of `modern[/path]` by any function, of `legacy/path` by SHA2-256.
    /// The texts are only made when a list has such rules: base58 costs more than all other look-ups together.
    fn double_hashed(&self, modern: impl FnOnce() -> String, legacy: impl FnOnce() -> String, path: &str) -> Option<Verdict> {
        let mut found = None;
        if !self.functions.is_empty() {
            let text = if path.is_empty() { modern() } else { format!("{}/{path}", modern()) };
            for function in &self.functions {
                let key = digest(*function, text.as_bytes()).map(|digest| double_hash_key(Some(*function), &digest));
                found = latest(found, key.and_then(|key| self.exact.get(&key).copied()));
            }
        }
        if self.legacy {
            let digest = digest(SHA2_256, format!("{}/{path}", legacy()).as_bytes());
            let key = digest.map(|digest| double_hash_key(None, &digest));
            found = latest(found, key.and_then(|key| self.exact.get(&key).copied()));
        }
        found
    }

    fn begin_list(&mut self, name: &str) -> u32 {
        self.lists.push(name.into());
        u32::try_from(self.lists.len() - 1).expect("lists are files an operator configures")
    }

    fn read_list(&mut self, name: &str, text: &str) -> Result<Added, DenyError> {
        let (header, body, first_line) = split_header(text);
        let header = Header::read(header);
        if let Some(version) = header.version.filter(|version| *version != VERSION) {
            return Err(DenyError::UnknownVersion { list: name.to_owned(), version: version.to_owned() });
        }
        let list = self.begin_list(name);
        let text = self.text_index(header.hints.reason);
        let status = header.hints.status.unwrap_or(DenyStatus::Gone);
        let common = Verdict { list, line: 0, effect: Effect::Deny, status, text };
        let mut added = Added::default();
        for (index, line) in body.split('\n').enumerate() {
            let number = line_number(first_line + index);
            if line.len() >= LINE_BYTES_MAX {
                return Err(DenyError::LineTooLong { list: name.to_owned(), line: number });
            }
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match self.read_rule(line, Verdict { line: number, ..common }) {
                Ok(()) => added.rule_count += 1,
                Err(why) => {
                    added.fault_count += 1;
                    if added.faults.len() < FAULTS_MAX {
                        added.faults.push(Fault { line: number, why });
                    }
                }
            }
            if self.rule_count() > RULES_MAX {
                return Err(DenyError::TooManyRules { list: name.to_owned() });
            }
        }
        Ok(added)
    }

    /// One line: `[!]item [hint:value ..]`.
    fn read_rule(&mut self, line: &str, mut verdict: Verdict) -> Result<(), &'static str> {
        let mut words = line.split_ascii_whitespace();
        let item = words.next().ok_or("an empty line")?;
        let mut hints = Hints::default();
        words.filter_map(|word| word.split_once(':')).for_each(|(key, value)| hints.set(key, value));
        verdict.status = hints.status.unwrap_or(verdict.status);
        if hints.reason.is_some() {
            verdict.text = self.text_index(hints.reason);
        }
        let item = match item.strip_prefix('!') {
            Some(item) => {
                verdict.effect = Effect::Allow;
                item
            }
            None => item,
        };
        if let Some(hash) = item.strip_prefix("//") {
            return self.add_double_hash(hash, verdict);
        }
        let (namespace, rest) = item.strip_prefix('/').and_then(|item| item.split_once('/')).ok_or("no rule")?;
        let (target, path) = rest.split_once('/').unwrap_or((rest, ""));
        let target = match namespace {
            "ipfs" => target_key(Namespace::Ipfs, &multihash_of(target).ok_or("no CID or multihash")?.to_bytes()),
            "ipns" if target.is_empty() => return Err("no name"),
            "ipns" => match IpnsName::parse(target) {
                IpnsName::Key(cid) => target_key(Namespace::Ipns, &cid.hash().to_bytes()),
                IpnsName::Domain(domain) => target_key(Namespace::Domain, domain.as_bytes()),
            },
            _ => return Err("neither /ipfs/, /ipns/ nor //"),
        };
        self.add_path(target, path, verdict)
    }

    fn add_path(&mut self, target: Fingerprint, path: &str, verdict: Verdict) -> Result<(), &'static str> {
        // A star counts only at the end and unencoded; `%2A` is a letter like any other.
        let (path, is_prefix) = match path.strip_suffix('*') {
            Some(path) => (path, true),
            None => (path, false),
        };
        let path = percent_encoding::percent_decode_str(path).decode_utf8().map_err(|_| "its path is not UTF-8")?;
        let path = path.trim_matches('/');
        if !is_prefix {
            self.exact.insert(path_key(&target, path), verdict);
            return Ok(());
        }
        if self.prefixes.entry(target).or_default().insert(path.into(), verdict).is_none() {
            self.prefix_count += 1;
        }
        Ok(())
    }

    fn add_double_hash(&mut self, text: &str, verdict: Verdict) -> Result<(), &'static str> {
        let mut known = false;
        if let Some(digest) = hex_digest(text) {
            self.exact.insert(double_hash_key(None, &digest), verdict);
            self.legacy = true;
            known = true;
        }
        // Some texts can be read both ways; the format wants both rules then.
        match base58_multihash(text) {
            Some(hash) if digest(hash.code(), b"").is_some_and(|sample| sample.len() == hash.digest().len()) => {
                self.exact.insert(double_hash_key(Some(hash.code()), hash.digest()), verdict);
                if !self.functions.contains(&hash.code()) {
                    self.functions.push(hash.code());
                }
                Ok(())
            }
            _ if known => Ok(()),
            Some(_) => Err("a double hash by a function that is not supported"),
            None => Err("neither a base58 multihash nor 64 hex digits"),
        }
    }

    fn text_index(&mut self, text: Option<&str>) -> Option<u32> {
        let text = text?;
        if let Some(index) = self.text_indexes.get(text) {
            return Some(*index);
        }
        let index = u32::try_from(self.texts.len()).expect("no more texts than rules and lists");
        let text: Arc<str> = text.into();
        self.texts.push(text.clone());
        self.text_indexes.insert(text, index);
        Some(index)
    }
}

/// The one that stands later in the lists.
fn latest(one: Option<Verdict>, other: Option<Verdict>) -> Option<Verdict> {
    one.into_iter().chain(other).max_by_key(|verdict| (verdict.list, verdict.line))
}

fn line_number(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}

/// Header, body, and how many lines the header takes. Without a line `---` in the first MiB there is no header.
fn split_header(text: &str) -> (&str, &str, usize) {
    let mut at = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if at > HEADER_BYTES_MAX {
            break;
        }
        let next = at + line.len();
        if line.trim_end() == "---" {
            return (&text[..at], &text[next..], index + 1);
        }
        at = next;
    }
    ("", text, 0)
}

#[derive(Default)]
struct Hints<'t> {
    status: Option<DenyStatus>,
    reason: Option<&'t str>,
}

impl<'t> Hints<'t> {
    /// Unknown hints, and statuses that are neither 410 nor 451, are ignored as the format wants.
    fn set(&mut self, key: &str, value: &'t str) {
        match (key, value) {
            ("gateway_status", "410") => self.status = Some(DenyStatus::Gone),
            ("gateway_status", "451") => self.status = Some(DenyStatus::LegalReasons),
            ("reason", text) if !text.is_empty() => self.reason = Some(text),
            _ => {}
        }
    }
}

#[derive(Default)]
struct Header<'t> {
    version: Option<&'t str>,
    hints: Hints<'t>,
}

impl<'t> Header<'t> {
    /// Reads the two fields that matter from the YAML: `version`, and the map `hints`. They are plain scalars in every known list, so
    /// lines do; everything else in the header may be any YAML and is passed over.
    fn read(text: &'t str) -> Header<'t> {
        let mut header = Header::default();
        let mut in_hints = false;
        for line in text.lines() {
            let indented = line.starts_with([' ', '\t']);
            let Some((key, value)) = line.split_once(':') else { continue };
            let (key, value) = (key.trim(), scalar(value));
            if indented {
                if in_hints {
                    header.hints.set(key, value);
                }
                continue;
            }
            in_hints = key == "hints";
            if key == "version" && !value.is_empty() {
                header.version = Some(value);
            }
        }
        header
    }
}

/// A YAML scalar without its quotes and without a comment.
fn scalar(text: &str) -> &str {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some((inside, _)) = text.strip_prefix(quote).and_then(|rest| rest.split_once(quote)) {
            return inside;
        }
    }
    text.split_once(" #").map_or(text, |(value, _)| value.trim_end())
}

enum IpnsName {
    /// An IPNS key in any of its forms, as a CID of codec libp2p-key unless it said another.
    Key(Cid),
    /// A domain, in lower case and without a final dot.
    Domain(String),
}

impl IpnsName {
    fn parse(name: &str) -> IpnsName {
        const LIBP2P_KEY: u64 = 0x72;
        // Base58 multihashes first: as CIDs those of the form Qm.. would count as dag-pb.
        match base58_multihash(name).map(|hash| Cid::new_v1(LIBP2P_KEY, hash)).or_else(|| parse_cid(name).ok()) {
            Some(cid) => IpnsName::Key(cid),
            None => IpnsName::Domain(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
        }
    }
}

/// The multihash of a CID, or one that stands alone in base58.
fn multihash_of(text: &str) -> Option<Multihash> {
    match parse_cid(text) {
        Ok(cid) => Some(*cid.hash()),
        Err(_) => base58_multihash(text),
    }
}

fn base58_multihash(text: &str) -> Option<Multihash> {
    // Decoding base58 takes time by the square of its length; the longest multihash of 128 bytes has about 180 letters.
    const LETTERS_MAX: usize = 200;
    if text.len() > LETTERS_MAX {
        return None;
    }
    Multihash::from_bytes(&Base::Base58Btc.decode(text).ok()?).ok()
}

fn hex_digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
}

/// What the modern double hash is taken of.
fn modern_text(hash: &Multihash) -> String {
    Base::Base58Btc.encode(hash.to_bytes())
}

/// What the old double hash is taken of: the CID as version 1 in base32, whatever its version.
fn legacy_text(cid: &Cid) -> String {
    let codec = if cid.version() == cid::Version::V0 { DAG_PB } else { cid.codec() };
    multibase::encode(Base::Base32Lower, Cid::new_v1(codec, *cid.hash()).to_bytes())
}

/// Digest by a multihash code, None where the function is not supported.
fn digest(function: u64, bytes: &[u8]) -> Option<Vec<u8>> {
    match function {
        SHA2_256 => Some(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().to_vec()),
        SHA2_512 => Some(ring::digest::digest(&ring::digest::SHA512, bytes).as_ref().to_vec()),
        BLAKE2B_256 => Some(blake2b(&[bytes]).to_vec()),
        _ => None,
    }
}

#[derive(Clone, Copy)]
enum Namespace {
    Ipfs = 1,
    Ipns = 2,
    Domain = 3,
}

// The first byte of each kind of key differs, and all but the last part have a fixed length, so no two kinds collide.

fn target_key(namespace: Namespace, target: &[u8]) -> Fingerprint {
    blake2b(&[&[namespace as u8], target])
}

fn path_key(target: &Fingerprint, path: &str) -> Fingerprint {
    blake2b(&[&[4], target, path.as_bytes()])
}

/// What Skynet's blocklists name a sector by.
pub fn blocklist_hash(root: &[u8; 32]) -> [u8; 32] {
    blake2b(&[root])
}

fn sector_key(blocklist_hash: &[u8; 32]) -> Fingerprint {
    blake2b(&[&[5], blocklist_hash])
}

fn double_hash_key(function: Option<u64>, digest: &[u8]) -> Fingerprint {
    match function {
        Some(function) => blake2b(&[&[6], &function.to_le_bytes(), digest]),
        None => blake2b(&[&[7], digest]),
    }
}

fn blake2b(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    for part in parts {
        state.update(part);
    }
    state.finalize().as_bytes().try_into().expect("32 bytes were asked for")
}

#[cfg(test)]
mod tests;
