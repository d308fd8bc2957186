//! The body of a pin record (`docs/formats.md` 6): what keeps an upload alive, and how it is found and read.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::address::{Cid, Multihash, Skylink, SkylinkKind};
use crate::tree::pack::SkyfileRef;

use super::StoreError;

/// Rows that may stand in the pin itself instead of a pack.
pub const PIN_ROWS_MAX: usize = 16;
/// Longest block kept inside a pin row. Sixteen of them stay within the 64 KiB of a record.
pub const PIN_ROW_DATA_MAX: usize = 2048;
/// Version of the pin body that this program writes and reads.
const PIN_VERSION: u32 = 1;

/// One upload that is kept alive. See `docs/formats.md` 6 for the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub v: u32,
    pub owner: String,
    pub name: String,
    /// Unix time, milliseconds.
    pub created: u64,
    /// Bytes of content.
    pub size: u64,
    pub files: u64,
    pub partial: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cid: Option<serde_bytes::ByteBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    skylink: Option<serde_bytes::ByteBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pack: Option<SkyfileRef>,
    pub skyfiles: Vec<SkyfileRef>,
    pub rows: Vec<PinRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idem: Option<serde_bytes::ByteBuf>,
    /// Of an imported CAR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportCounts>,
}

/// What an import counted: for whoever sends it again with the same idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportCounts {
    /// Different blocks.
    pub blocks: u64,
    /// Different blocks that were linked to and did not come.
    pub missing: u64,
}

/// Where one block's bytes are: in the row itself, or `pre || range of a skyfile || suf`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRow {
    mh: serde_bytes::ByteBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_bytes::ByteBuf>,
    #[serde(default)]
    pub sky: u32,
    #[serde(default)]
    pub off: u64,
    #[serde(default)]
    pub len: u32,
    #[serde(default)]
    pub pre: serde_bytes::ByteBuf,
    #[serde(default)]
    pub suf: serde_bytes::ByteBuf,
}

impl PinRow {
    pub fn inline(mh: &Multihash, data: Vec<u8>) -> PinRow {
        PinRow {
            mh: mh.to_bytes().into(),
            data: Some(data.into()),
            sky: 0,
            off: 0,
            len: 0,
            pre: Default::default(),
            suf: Default::default(),
        }
    }

    pub fn range(mh: &Multihash, sky: u32, off: u64, len: u32, pre: Vec<u8>, suf: Vec<u8>) -> PinRow {
        PinRow { mh: mh.to_bytes().into(), data: None, sky, off, len, pre: pre.into(), suf: suf.into() }
    }

    pub fn multihash_bytes(&self) -> &[u8] {
        &self.mh
    }
}

/// What the maker of a pin says; the rest follows.
pub struct NewPin {
    pub owner: String,
    pub name: String,
    pub created_ms: u64,
    pub size: u64,
    pub files: u64,
    pub cid: Cid,
    pub skylink: Option<Skylink>,
    pub pack: Option<SkyfileRef>,
    pub skyfiles: Vec<SkyfileRef>,
    pub rows: Vec<PinRow>,
    /// `H(idempotency key)`.
    pub idem: Option<[u8; 32]>,
}

impl Pin {
    pub fn new(new: NewPin) -> Pin {
        Pin {
            v: PIN_VERSION,
            owner: new.owner,
            name: new.name,
            created: new.created_ms,
            size: new.size,
            files: new.files,
            partial: false,
            cid: Some(new.cid.to_bytes().into()),
            skylink: new.skylink.map(|link| link.to_bytes().to_vec().into()),
            pack: new.pack,
            skyfiles: new.skyfiles,
            rows: new.rows,
            idem: new.idem.map(|hash| hash.to_vec().into()),
            import: None,
        }
    }

    /// The same content, pinned by another owner.
    pub fn of(self, owner: &str, created_ms: u64) -> Pin {
        Pin { owner: owner.to_owned(), created: created_ms, idem: None, ..self }
    }

    pub fn encode(&self) -> Vec<u8> {
        serde_ipld_dagcbor::to_vec(self).expect("a pin is made of plain values")
    }

    /// Reads a body whose record signature was checked before.
    pub fn decode(body: &[u8]) -> Result<Pin, StoreError> {
        let refuse = |why: String| StoreError::BadPin(why);
        let pin: Pin = serde_ipld_dagcbor::from_slice(body).map_err(|error| refuse(error.to_string()))?;
        if pin.v > PIN_VERSION {
            return Err(refuse(format!("version {} is newer than this program reads ({PIN_VERSION}): upgrade skygate", pin.v)));
        }
        if pin.rows.len() > PIN_ROWS_MAX {
            return Err(refuse(format!("{} rows, at most {PIN_ROWS_MAX}", pin.rows.len())));
        }
        if pin.rows.iter().any(|row| row.data.is_none() && row.sky as usize >= pin.skyfiles.len()) {
            return Err(refuse("a row names a skyfile that the pin does not list".to_owned()));
        }
        if pin.cid.is_some() && pin.cid().is_none() {
            return Err(refuse("the CID cannot be read".to_owned()));
        }
        Ok(pin)
    }

    pub fn cid(&self) -> Option<Cid> {
        Cid::try_from(self.cid.as_ref()?.as_slice()).ok()
    }

    pub fn skylink(&self) -> Option<Skylink> {
        Skylink::from_bytes(self.skylink.as_ref()?.as_slice().try_into().ok()?).ok()
    }

    /// Where its skyfile begins in its base sector.
    pub fn sector_offset(&self) -> Option<u32> {
        match self.skylink()?.kind() {
            SkylinkKind::V1 { offset_bytes, .. } => Some(offset_bytes),
            SkylinkKind::V2 { .. } => None,
        }
    }

    /// Where one of its skyfiles stands in its base sector.
    pub fn stretch_of(&self, skyfile: &SkyfileRef) -> Range<u32> {
        match self.skylink().map(|link| link.kind()) {
            Some(SkylinkKind::V1 { offset_bytes, fetch_bytes, root }) if offset_bytes > 0 && root == skyfile.root => {
                offset_bytes..offset_bytes + fetch_bytes
            }
            _ => 0..skyfile.used,
        }
    }

    pub fn idem(&self) -> Option<[u8; 32]> {
        self.idem.as_ref()?.as_slice().try_into().ok()
    }

    /// Memory it takes, for caches that count.
    pub fn memory_bytes(&self) -> usize {
        let skyfiles = self.skyfiles.iter().chain(&self.pack).map(|skyfile| size_of::<SkyfileRef>() + skyfile.roots.len());
        let rows = self.rows.iter().map(|row| size_of::<PinRow>() + 64 + row.data.as_ref().map_or(0, |data| data.len()));
        size_of::<Pin>() + self.owner.len() + self.name.len() + skyfiles.sum::<usize>() + rows.sum::<usize>()
    }

    /// What the catalog finds it by.
    pub fn names(&self) -> super::catalog::PinNames {
        let mut roots: Vec<Vec<u8>> = self.cid().map(|cid| cid.hash().to_bytes()).into_iter().collect();
        roots.extend(self.skyfiles.iter().chain(&self.pack).map(|skyfile| skyfile.root.to_vec()));
        super::catalog::PinNames { roots, idem: self.idem() }
    }
}

/// Key text of a pin record: the group (multihash of the root, hex), a slash, the pin id.
pub fn pin_key(cid: &Cid, pin_id: &[u8; 16]) -> String {
    format!("{}/{}", hex::encode(cid.hash().to_bytes()), hex::encode(pin_id))
}
