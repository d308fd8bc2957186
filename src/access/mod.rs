//! Who may do what, and how much of it: API keys, login links, sessions, limits, and the two rules for requests that come
//! from this machine.
//!
//! It keeps only hashes of secrets in memory and compares them in constant time. Keys of others than the operator are
//! records ([`Keys`]); what each client has done lately is counted ([`Limiter`]). The rules
//! ([`loopback_write_allowed`], [`admin_request_allowed`]) are pure functions over the few facts of a request that
//! they need, so they are tested as tables. This room must never know: routes, headers as a library type, bytes of
//! content.
//!
//! Words: *admin key* = the API key of the key file (full power over this gateway). *Key* = an API key that was made for
//! somebody: it may store and write, within its limits, and remove what it stored. *Client* = who limits are counted for:
//! a key, or an address. *Login token* = the secret of a link that is good once. *Session* = what the login link turns
//! into, carried by a cookie.
//!
//! Limits: [`LOGIN_TOKENS_MAX`], [`LOGIN_TOKEN_LIFETIME`], [`SESSIONS_MAX`], [`SESSION_LIFETIME`], [`SECRET_TEXT_MAX`],
//! [`KEYS_MAX`], [`KEY_NAME_MAX`], [`CLIENTS_MAX`].

mod apikey;
mod keyfile;
mod limits;
mod origin;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use apikey::{ApiKey, KEY_NAME_MAX, KEYS_MAX, KeyId, KeyLimits, KeyRefused, Keys, Lookup};
pub use keyfile::{AccessError, KeyFile};
pub use limits::{CLIENTS_MAX, Client, Limiter, OpenPlace, OverLimit, Rate, Rules, client_address};
pub use origin::{
    AdminRefused, Forwarding, Peer, RequestSource, WriteRefused, admin_request_allowed, is_forwarding_header, is_loopback_host,
    is_loopback_origin, loopback_write_allowed, same_origin,
};

/// Login links that can be open at once. A person needs one; sixteen leave room for a nervous one.
pub const LOGIN_TOKENS_MAX: usize = 16;
/// A login link is printed at start and may be clicked much later that day.
pub const LOGIN_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Browsers logged in at once; the oldest is logged out for the next.
pub const SESSIONS_MAX: usize = 64;
/// A session ends after half a day, so that a forgotten browser tab does not stay an administrator.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// Longest text that is hashed as a candidate for a secret; ours have 64 characters.
pub const SECRET_TEXT_MAX: usize = 256;

/// Secrets are 256 random bits: guessing one is hopeless even without a limit on tries.
const SECRET_BYTES: usize = 32;

/// Hash of a secret text. `blake2b_simd::Hash` compares in constant time.
type SecretHash = blake2b_simd::Hash;

/// How an administrator showed who they are. What a session may do is narrower: see [`admin_request_allowed`] and
/// the rule of same origin for writes in `http/admin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Administrator {
    /// The API key, sent by a program: no browser adds it by itself.
    ByKey,
    /// A session cookie, which a browser adds by itself, so writes need a proof of origin as well.
    BySession,
}

/// Who acts, once it is known that they may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The API key of the key file.
    Admin,
    /// A program on this machine, without a key.
    Local,
    /// An API key that was made for somebody.
    Key(Arc<ApiKey>),
    /// Nobody in particular.
    Anybody,
}

impl Caller {
    /// As owner of what they store.
    pub fn owner(&self) -> &str {
        match self {
            Caller::Admin => "admin",
            Caller::Local => "local",
            Caller::Key(key) => &key.owner,
            Caller::Anybody => "anybody",
        }
    }

    /// May they change or remove what `owner` stored? Only those who can be told apart own anything.
    pub fn may_change(&self, owner: &str) -> bool {
        match self {
            Caller::Admin => true,
            Caller::Local | Caller::Key(_) => self.owner() == owner,
            Caller::Anybody => false,
        }
    }
}

/// What is known of a secret that was sent along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    Caller(Caller),
    Nobody,
    /// Not all keys have been read since the start.
    NotYet,
}

/// The secrets of this gateway, and what its clients may do. Shared behind an `Arc`.
pub struct Access {
    key: SecretHash,
    pub keys: Keys,
    pub limiter: Arc<Limiter>,
    login_tokens: Mutex<VecDeque<Expiring>>,
    sessions: Mutex<VecDeque<Expiring>>,
}

struct Expiring {
    hash: SecretHash,
    ends: Instant,
}

impl Access {
    /// Reads the API key file, or makes it (mode 0600, 256 random bits) at the first start.
    pub fn load_or_create(path: &Path, rules: Rules) -> Result<(Access, KeyFile), AccessError> {
        let (key, origin) = keyfile::load_or_create(path)?;
        Ok((Access::with_key(&key, rules), origin))
    }

    /// An access room whose admin key is `key`.
    pub fn with_key(key: &str, rules: Rules) -> Access {
        let limiter = Arc::new(Limiter::new(rules));
        Access { key: hash_secret(key), keys: Keys::default(), limiter, login_tokens: Mutex::default(), sessions: Mutex::default() }
    }

    /// Is `given` the admin key?
    pub fn check_key(&self, given: &str) -> Option<Administrator> {
        (given.len() <= SECRET_TEXT_MAX && hash_secret(given) == self.key).then_some(Administrator::ByKey)
    }

    /// Whose key is `given`?
    pub fn caller(&self, given: &str) -> Known {
        if given.len() > SECRET_TEXT_MAX {
            return Known::Nobody;
        }
        let hash = hash_secret(given);
        if hash == self.key {
            return Known::Caller(Caller::Admin);
        }
        match self.keys.find(&hash) {
            Lookup::Known(key) => Known::Caller(Caller::Key(key)),
            Lookup::Unknown => Known::Nobody,
            Lookup::NotReadYet => Known::NotYet,
        }
    }

    /// A new one-time login token, for the link that `serve` prints.
    pub fn new_login_token(&self) -> String {
        issue(&self.login_tokens, LOGIN_TOKENS_MAX, LOGIN_TOKEN_LIFETIME, Instant::now())
    }

    /// Turns a login token into a new session's secret. The token is spent.
    pub fn log_in(&self, token: &str) -> Option<String> {
        let now = Instant::now();
        take(&self.login_tokens, token, now)?;
        Some(issue(&self.sessions, SESSIONS_MAX, SESSION_LIFETIME, now))
    }

    /// Is `given` the secret of a living session?
    pub fn check_session(&self, given: &str) -> Option<Administrator> {
        find(&self.sessions, given, Instant::now()).then_some(Administrator::BySession)
    }
}

/// A new secret in `list`; the oldest makes room when the list is full.
fn issue(list: &Mutex<VecDeque<Expiring>>, max: usize, lifetime: Duration, now: Instant) -> String {
    let secret = new_secret();
    let mut list = list.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    list.retain(|entry| entry.ends > now);
    while list.len() >= max {
        list.pop_front();
    }
    list.push_back(Expiring { hash: hash_secret(&secret), ends: now + lifetime });
    secret
}

fn take(list: &Mutex<VecDeque<Expiring>>, given: &str, now: Instant) -> Option<()> {
    if given.len() > SECRET_TEXT_MAX {
        return None;
    }
    let hash = hash_secret(given);
    let mut list = list.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let at = list.iter().position(|entry| entry.hash == hash && entry.ends > now)?;
    list.remove(at);
    Some(())
}

fn find(list: &Mutex<VecDeque<Expiring>>, given: &str, now: Instant) -> bool {
    if given.len() > SECRET_TEXT_MAX {
        return false;
    }
    let hash = hash_secret(given);
    let list = list.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    list.iter().any(|entry| entry.hash == hash && entry.ends > now)
}

fn new_secret() -> String {
    hex::encode(rand::random::<[u8; SECRET_BYTES]>())
}

fn hash_secret(text: &str) -> SecretHash {
    blake2b_simd::Params::new().hash_length(32).hash(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_is_the_key() {
        let access = Access::with_key("0123456789abcdef", Rules::default());
        assert_eq!(access.check_key("0123456789abcdef"), Some(Administrator::ByKey));
        for wrong in ["", "0123456789abcdeF", "0123456789abcde", "0123456789abcdef0", &"a".repeat(5000)] {
            assert_eq!(access.check_key(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn who_may_change_what() {
        for (caller, owner, may) in [
            (Caller::Admin, "key:00", true),
            (Caller::Admin, "anybody", true),
            (Caller::Local, "local", true),
            (Caller::Local, "admin", false),
            (Caller::Anybody, "anybody", false),
            (Caller::Anybody, "local", false),
        ] {
            assert_eq!(caller.may_change(owner), may, "{caller:?} {owner}");
        }
    }

    #[test]
    fn a_login_token_is_good_once() {
        let access = Access::with_key("k", Rules::default());
        let token = access.new_login_token();
        let session = access.log_in(&token).expect("the first use logs in");
        assert_eq!(access.check_session(&session), Some(Administrator::BySession));
        assert!(access.log_in(&token).is_none());
        assert!(access.check_session(&token).is_none());
        assert!(access.check_key(&session).is_none());
    }

    #[test]
    fn sessions_and_tokens_end_and_are_bounded() {
        let list = Mutex::default();
        let start = Instant::now();
        let first = issue(&list, 2, Duration::from_secs(10), start);
        assert!(find(&list, &first, start + Duration::from_secs(9)));
        assert!(!find(&list, &first, start + Duration::from_secs(11)));
        let second = issue(&list, 2, Duration::from_secs(10), start);
        let third = issue(&list, 2, Duration::from_secs(10), start);
        assert!(!find(&list, &first, start));
        assert!(find(&list, &second, start) && find(&list, &third, start));
        assert!(take(&list, &second, start + Duration::from_secs(11)).is_none());
    }
}
