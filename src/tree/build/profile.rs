//! The import profiles: each fixes every choice that a CID depends on (IPIP-0499; `kubo` settings of the same names).

use std::fmt;
use std::str::FromStr;

use super::BuildError;
use crate::address::{Cid, cid_v0, cid_v1, codec};

/// Bytes above which a folder becomes a HAMT, counted by the profile's [`FolderRule`]. Exactly this many stay one block
/// (kubo since 0.40 compares with `>`).
pub(super) const HAMT_ABOVE_BYTES: u64 = 262_144;

/// How the same files become blocks. The profile's name is what the command line and the add stream carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Profile {
    /// `unixfs-v1-2025` (IPIP-0499): CIDv1, raw leaves of 1 MiB, 1,024 links.
    #[default]
    UnixfsV1_2025,
    /// `unixfs-v0-2015`, kubo's default: CIDv0, wrapped leaves of 256 KiB, 174 links.
    UnixfsV0_2015,
    /// `cid-v1`, as `ipfs add --cid-version=1 --raw-leaves`: CIDv1, raw leaves of 256 KiB, 174 links.
    CidV1,
}

/// What a profile counts to decide between a plain folder and a HAMT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FolderRule {
    /// The sum of name bytes and CID bytes over all links.
    LinkBytes,
    /// The plain folder's whole block.
    BlockBytes,
}

/// How a profile's leaves hold their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeafForm {
    /// The block is the file bytes.
    Raw,
    /// The file bytes stand in a UnixFS file inside dag-pb.
    Wrapped,
}

impl Profile {
    /// All profiles, the default first.
    pub const ALL: [Profile; 3] = [Profile::UnixfsV1_2025, Profile::UnixfsV0_2015, Profile::CidV1];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Profile::UnixfsV1_2025 => "unixfs-v1-2025",
            Profile::UnixfsV0_2015 => "unixfs-v0-2015",
            Profile::CidV1 => "cid-v1",
        }
    }

    /// File bytes in every leaf but a file's last.
    pub fn chunk_bytes(self) -> usize {
        match self {
            Profile::UnixfsV1_2025 => 1 << 20,
            Profile::UnixfsV0_2015 | Profile::CidV1 => 256 << 10,
        }
    }

    /// Most links of a file node.
    pub(super) fn links_max(self) -> usize {
        match self {
            Profile::UnixfsV1_2025 => 1024,
            Profile::UnixfsV0_2015 | Profile::CidV1 => 174,
        }
    }

    pub(super) fn folder_rule(self) -> FolderRule {
        match self {
            Profile::UnixfsV1_2025 => FolderRule::BlockBytes,
            Profile::UnixfsV0_2015 | Profile::CidV1 => FolderRule::LinkBytes,
        }
    }

    pub(super) fn leaf_form(self) -> LeafForm {
        match self {
            Profile::UnixfsV0_2015 => LeafForm::Wrapped,
            Profile::UnixfsV1_2025 | Profile::CidV1 => LeafForm::Raw,
        }
    }

    /// The CID of a leaf whose block has this SHA-256.
    pub(super) fn leaf_cid(self, digest: [u8; 32]) -> Cid {
        match self.leaf_form() {
            LeafForm::Raw => cid_v1(codec::RAW, digest),
            LeafForm::Wrapped => cid_v0(digest),
        }
    }

    /// The CID of any other block of this profile.
    pub(super) fn node_cid(self, digest: [u8; 32]) -> Cid {
        match self {
            Profile::UnixfsV0_2015 => cid_v0(digest),
            Profile::UnixfsV1_2025 | Profile::CidV1 => cid_v1(codec::DAG_PB, digest),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = BuildError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Profile::ALL
            .into_iter()
            .find(|profile| profile.name() == text)
            .ok_or_else(|| BuildError::UnknownProfile { text: text.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for profile in Profile::ALL {
            assert_eq!(profile.to_string().parse(), Ok(profile));
        }
        for wrong in ["", "cid-v0", "unixfs-v1", "UNIXFS-V1-2025", "cid-v1 "] {
            assert!(wrong.parse::<Profile>().is_err(), "{wrong:?}");
        }
        assert_eq!(Profile::default().name(), "unixfs-v1-2025");
    }
}
