//! The portal key: the one secret of a portal (`design.md` 3). It signs every record that has no owner of its own.
//!
//! File: one line of text, `skygate portal key v1 `, the 32-byte ed25519 seed in hex, a line feed; mode 0600. The
//! recovery phrase is the same seed as 24 English words of BIP-39 (the seed is the entropy, no passphrase).

use std::{
    fmt,
    fs::{DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

const FILE_HEAD: &str = "skygate portal key v1 ";
/// Longest key file looked at: the line has 87 bytes, an editor may have added some white space.
const FILE_BYTES_MAX: u64 = 256;

/// Public id of a portal: its ed25519 public key. Shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortalId(pub [u8; 32]);

/// The secret key of a portal. Never printed but by [`PortalKey::phrase`].
#[derive(Clone)]
pub struct PortalKey {
    signing: SigningKey,
}

/// Whether [`PortalKey::load_or_create`] made the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// New: the recovery phrase should be shown now.
    Created,
    /// Read from the file.
    Existed,
}

/// Why a portal key could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not a portal key file of version 1; restore it, or import the recovery phrase", .0.display())]
    NotAKeyFile(PathBuf),
    #[error("{} exists already; a portal key is never overwritten", .0.display())]
    Exists(PathBuf),
    #[error("a recovery phrase has 24 words, this one has {0}")]
    WordCount(usize),
    #[error("not a recovery phrase: {0}")]
    Phrase(String),
}

impl PortalKey {
    /// Reads the key at `path`, or makes a new one there. A new file and its folder are on disk when this returns.
    ///
    /// A file that others on the machine can read is used, with a warning in the log: refusing would take every site
    /// of the portal down after a careless restore from a backup.
    pub fn load_or_create(path: &Path) -> Result<(PortalKey, Origin), KeyError> {
        match PortalKey::load(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return Ok((loaded?, Origin::Existed)),
        }
        let key = PortalKey::generate();
        match key.store(path) {
            // Another process was first; its key counts.
            Err(KeyError::Exists(_)) => Ok((PortalKey::load(path)?, Origin::Existed)),
            stored => stored.map(|()| (key, Origin::Created)),
        }
    }

    /// Reads the key at `path`.
    pub fn load(path: &Path) -> Result<PortalKey, KeyError> {
        let failed = |source| KeyError::Io { doing: "cannot read the portal key", path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        if let Some(warning) = loose_mode_warning(path, mode) {
            tracing::warn!("{warning}");
        }
        let mut text = String::new();
        match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(KeyError::NotAKeyFile(path.to_owned()));
            }
            read => read.map_err(failed)?,
        };
        let mut seed = [0; 32];
        let digits = text.trim_end().strip_prefix(FILE_HEAD).ok_or_else(|| KeyError::NotAKeyFile(path.to_owned()))?;
        hex::decode_to_slice(digits, &mut seed).map_err(|_| KeyError::NotAKeyFile(path.to_owned()))?;
        Ok(PortalKey::from_seed(&seed))
    }

    /// Writes the key to `path`, with mode 0600, durably; missing folders are made with mode 0700. Never overwrites.
    pub fn store(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |source| KeyError::Io { doing: "cannot keep the portal key at", path: path.to_owned(), source };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        make_folder(folder).map_err(failed)?;
        // Under another name first: a crash leaves no half key. Temporary files are made with mode 0600.
        let mut file = tempfile::Builder::new().prefix(".portal-key").tempfile_in(folder).map_err(failed)?;
        let line = format!("{FILE_HEAD}{}\n", hex::encode(self.signing.as_bytes()));
        file.write_all(line.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist_noclobber(path).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
            _ => failed(error.error),
        })?;
        sync_folder(folder).map_err(failed)
    }

    /// A new random key.
    pub fn generate() -> PortalKey {
        PortalKey::from_seed(&rand::random())
    }

    /// The key of an ed25519 seed (RFC 8032 calls it the private key).
    pub fn from_seed(seed: &[u8; 32]) -> PortalKey {
        PortalKey { signing: SigningKey::from_bytes(seed) }
    }

    /// The recovery phrase: 24 words with a blank between. Whoever has it is the portal.
    pub fn phrase(&self) -> String {
        let words = bip39::Mnemonic::from_entropy(self.signing.as_bytes()).expect("32 bytes make 24 words");
        words.to_string()
    }

    /// The key of a recovery phrase; case and white space do not matter.
    pub fn from_phrase(phrase: &str) -> Result<PortalKey, KeyError> {
        let words: Vec<String> = phrase.split_whitespace().map(str::to_lowercase).collect();
        if words.len() != 24 {
            return Err(KeyError::WordCount(words.len()));
        }
        // The library's messages name a word by its index only, so the log never gets a part of the phrase.
        let phrase = bip39::Mnemonic::parse_in(bip39::Language::English, words.join(" "))
            .map_err(|error| KeyError::Phrase(error.to_string()))?;
        let seed: [u8; 32] = phrase.to_entropy().try_into().map_err(|_| KeyError::WordCount(words.len()))?;
        Ok(PortalKey::from_seed(&seed))
    }

    pub fn id(&self) -> PortalId {
        PortalId(self.signing.verifying_key().to_bytes())
    }

    pub(super) fn sign(&self, message: &[u8; 32]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }
}

impl fmt::Debug for PortalKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PortalKey({}, secret hidden)", self.id())
    }
}

impl PortalId {
    /// Strict: no weak keys, no second form of a signature.
    pub(super) fn verifies(&self, message: &[u8; 32], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }
}

impl fmt::Display for PortalId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PortalId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PortalId({self})")
    }
}

impl FromStr for PortalId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<PortalId, hex::FromHexError> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id)?;
        Ok(PortalId(id))
    }
}

fn loose_mode_warning(path: &Path, mode: u32) -> Option<String> {
    (mode & 0o077 != 0).then(|| {
        let path = path.display();
        let mode = mode & 0o777;
        format!("the portal key {path} can be used by others on this machine (mode {mode:o}); run: chmod 600 {path}")
    })
}

/// Makes `folder` and its missing parents, each known to its own parent on disk.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folder(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_once_then_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/keys/portal");
        let (key, origin) = PortalKey::load_or_create(&path).unwrap();
        assert_eq!(origin, Origin::Created);
        let (again, origin) = PortalKey::load_or_create(&path).unwrap();
        assert_eq!(origin, Origin::Existed);
        assert_eq!(key.id(), again.id());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
        assert!(matches!(PortalKey::generate().store(&path), Err(KeyError::Exists(_))));
        assert_eq!(PortalKey::load(&path).unwrap().id(), key.id());
    }

    #[test]
    fn bad_files_are_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("portal");
        for bad in ["", "skygate portal key v1 ", "skygate portal key v2 00", "skygate portal key v1 zz", "\u{0}"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(PortalKey::load_or_create(&path), Err(KeyError::NotAKeyFile(_))), "{bad:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
        }
        std::fs::write(&path, [0xff; 400]).unwrap();
        assert!(matches!(PortalKey::load(&path), Err(KeyError::NotAKeyFile(_))));
        let below_a_file = path.join("portal");
        assert!(matches!(PortalKey::load_or_create(&below_a_file), Err(KeyError::Io { .. })));
    }

    #[test]
    fn loose_permissions_are_told() {
        let path = Path::new("keys/portal");
        assert!(loose_mode_warning(path, 0o100_600).is_none());
        assert!(loose_mode_warning(path, 0o100_400).is_none());
        assert!(loose_mode_warning(path, 0o100_644).unwrap().contains("chmod 600 keys/portal"));
    }

    #[test]
    fn phrase_both_ways() {
        // BIP-39's own vectors for 32 bytes of entropy.
        let zeros = "abandon ".repeat(23) + "art";
        assert_eq!(PortalKey::from_seed(&[0; 32]).phrase(), zeros);
        assert_eq!(PortalKey::from_seed(&[0xff; 32]).phrase(), "zoo ".repeat(23) + "vote");
        let key = PortalKey::generate();
        let shouted = format!("  {}\n", key.phrase().to_uppercase().replace(' ', " \n "));
        assert_eq!(PortalKey::from_phrase(&shouted).unwrap().id(), key.id());
        assert!(matches!(PortalKey::from_phrase("abandon ability"), Err(KeyError::WordCount(2))));
        assert!(matches!(PortalKey::from_phrase(&"abandon ".repeat(24)), Err(KeyError::Phrase(_))));
        assert!(matches!(PortalKey::from_phrase(&("abandon ".repeat(23) + "ärger")), Err(KeyError::Phrase(_))));
    }

    #[test]
    fn the_secret_is_never_printed() {
        let key = PortalKey::from_seed(&[7; 32]);
        let shown = format!("{key:?} {key:#?}");
        assert!(!shown.contains(&hex::encode([7; 32])) && !shown.contains("7, 7"));
        assert!(shown.contains(&key.id().to_string()));
        assert_eq!(key.id().to_string().parse::<PortalId>().unwrap(), key.id());
    }
}
