//! Base sectors: layout, fanout, metadata and, when it fits, the content; with the recursive form for heads above 4 MiB.
//!
//! Small file: `layout || metadata || content`, all of it at most one sector.
//! Large file: `layout || fanout || metadata`; the fanout lists the k + m piece roots of each slab, data pieces first.
//! When k is 1 all pieces of a slab are the same bytes and the fanout names them once.
//! Recursive: when a large file's head is more than a sector, `fanout || metadata` (the payload) is cut into sectors, which
//! are stored beside, and the base sector holds `layout || roots of those sectors`. The layout keeps the true sizes, which
//! is how a reader tells. The original would go on (lists of lists); [`FANOUT_ROOTS_MAX`] ends far below a second level.

use std::sync::Arc;

use bytes::Bytes;

use super::metadata::METADATA_BYTES_MAX;
use super::{Cipher, LAYOUT_BYTES, Layout, Metadata, SkyfileError};
use crate::sector::{Root, SECTOR_BYTES, sector_root};

/// Most piece roots of one skyfile: 64 MiB of memory while it is read; 5.3 TiB of content at 6 + 3, 2.7 TiB at 10 + 20.
pub const FANOUT_ROOTS_MAX: u64 = 2 << 20;

const ROOT_BYTES: u64 = 32;

/// Reed-Solomon over GF(2^8) has no more pieces than that.
const PIECES_MAX: u16 = 256;

/// With the two limits one list of extension roots fits a base sector, so there is never a second level.
const _: () = {
    let payload_bytes = FANOUT_ROOTS_MAX * ROOT_BYTES + METADATA_BYTES_MAX;
    assert!(payload_bytes.div_ceil(SECTOR_BYTES as u64) * ROOT_BYTES <= (SECTOR_BYTES - LAYOUT_BYTES) as u64);
};

/// Content bytes of a full slab at `data_pieces` = k.
pub fn slab_bytes(data_pieces: u8) -> u64 {
    u64::from(data_pieces) * SECTOR_BYTES as u64
}

/// Number of slabs that `size_bytes` of content take; 0 when `data_pieces` is 0 (a small file).
pub fn slab_count(size_bytes: u64, data_pieces: u8) -> u64 {
    if data_pieces == 0 { 0 } else { size_bytes.div_ceil(slab_bytes(data_pieces)) }
}

/// Whether a file is small: its content goes into the base sector.
pub fn fits_small(metadata_json: &[u8], content_bytes: u64) -> bool {
    let free_bytes = (SECTOR_BYTES - LAYOUT_BYTES).checked_sub(metadata_json.len());
    free_bytes.is_some_and(|free_bytes| content_bytes <= free_bytes as u64)
}

/// A skyfile's own sectors, ready to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltSkyfile {
    /// The base sector without the zeros that fill it up to 4 MiB.
    pub base: Vec<u8>,
    /// Length for the skylink. Usually `base.len()`; in recursive base sectors smaller, see [`build_large`].
    pub used_bytes: u32,
    /// Further sectors that a recursive base sector needs, in order, each stored like a base sector; usually none.
    pub extension: Vec<Vec<u8>>,
}

/// Base sector of a small file. `metadata_json` as [`Metadata::encode`] writes it.
pub fn build_small(metadata_json: &[u8], content: &[u8]) -> Result<BuiltSkyfile, SkyfileError> {
    if !fits_small(metadata_json, content.len() as u64) {
        return Err(SkyfileError::TooLarge {
            what: "bytes of a small skyfile",
            have: (LAYOUT_BYTES + metadata_json.len() + content.len()) as u64,
            limit: SECTOR_BYTES as u64,
        });
    }
    let layout = Layout {
        size_bytes: content.len() as u64,
        metadata_bytes: metadata_json.len() as u64,
        fanout_bytes: 0,
        data_pieces: 0,
        parity_pieces: 0,
        cipher: Cipher::Plain,
        key_data: [0; 64],
    };
    let base = [&layout.encode(), metadata_json, content].concat();
    Ok(BuiltSkyfile { used_bytes: base.len() as u32, base, extension: Vec::new() })
}

/// Base sector of a large file: `size_bytes` of content in slabs of `data_pieces` = k and `parity_pieces` = m, whose piece roots
/// are `piece_roots`, k + m a slab, data pieces first, slabs in order.
///
/// A recursive base sector's `used_bytes` is 100 whatever its length, because the original counted levels where it meant
/// bytes; the skylink has to be the same, so this does the same.
///
/// # Panics
/// When the number of piece roots is not that of the slabs: a mistake of the caller, not of the data.
pub fn build_large(
    metadata_json: &[u8],
    size_bytes: u64,
    data_pieces: u8,
    parity_pieces: u8,
    piece_roots: &[Root],
) -> Result<BuiltSkyfile, SkyfileError> {
    let per_slab = usize::from(data_pieces) + usize::from(parity_pieces);
    let slabs = slab_count(size_bytes, data_pieces);
    assert!(piece_roots.len() as u64 == slabs * per_slab as u64, "k + m piece roots for each slab");
    // Where k is 1, the first root of a slab stands for all.
    let named = if data_pieces == 1 { 1 } else { per_slab };
    let fanout: Vec<u8> = piece_roots.chunks(per_slab.max(1)).flat_map(|slab| &slab[..named]).flat_map(|root| root.0).collect();
    let layout = Layout {
        size_bytes,
        metadata_bytes: metadata_json.len() as u64,
        fanout_bytes: fanout.len() as u64,
        data_pieces,
        parity_pieces,
        cipher: Cipher::Plain,
        key_data: [0; 64],
    };
    check(&layout)?;
    Ok(assemble(&layout, [&fanout, metadata_json].concat()))
}

/// Layout and payload to sectors, for payloads within the limits.
pub(super) fn assemble(layout: &Layout, payload: Vec<u8>) -> BuiltSkyfile {
    let mut base = layout.encode().to_vec();
    if base.len() + payload.len() <= SECTOR_BYTES {
        base.extend_from_slice(&payload);
        return BuiltSkyfile { used_bytes: base.len() as u32, base, extension: Vec::new() };
    }
    let extension: Vec<Vec<u8>> = payload.chunks(SECTOR_BYTES).map(<[u8]>::to_vec).collect();
    for sector in &extension {
        base.extend_from_slice(&sector_root(sector).0);
    }
    const LEVELS: u32 = 1;
    BuiltSkyfile { base, used_bytes: LAYOUT_BYTES as u32 + LEVELS, extension }
}

/// What a look at a base sector gives.
#[derive(Clone, Debug)]
pub enum Parsed {
    Head(SkyfileHead),
    /// A recursive base sector: fetch these sectors, then [`NeedSectors::complete`].
    NeedSectors(NeedSectors),
}

/// Everything about a skyfile but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkyfileHead {
    pub layout: Layout,
    pub metadata: Metadata,
    /// The metadata as it stands in the skyfile; what `/skynet/metadata` answers.
    pub metadata_json: Bytes,
    /// Piece roots of a large file, k + m a slab; empty for a small one. Where k is 1 they are repeated for all pieces.
    pub fanout: Arc<[Root]>,
    /// Where the content of a small file begins, from the first byte of the base sector; 0 for a large one.
    pub content_offset: u32,
    /// Bytes of the content.
    pub size_bytes: u64,
    /// Roots of the sectors beside a recursive base sector. Whoever keeps the skyfile alive has to keep them.
    pub extension: Arc<[Root]>,
}

/// One slab of a large file: which pieces hold which content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkySlab<'a> {
    pub slab_index: u64,
    pub data_pieces: u8,
    pub parity_pieces: u8,
    /// k + m piece roots, data pieces first.
    pub roots: &'a [Root],
    /// Where the slab's content begins in the file.
    pub offset_bytes: u64,
    /// Its content; less than k x 4 MiB only in the last slab.
    pub len_bytes: u64,
}

impl SkyfileHead {
    /// Whether the content is in slabs rather than in the base sector.
    pub fn is_large(&self) -> bool {
        self.layout.data_pieces != 0
    }

    pub fn slab_count(&self) -> u64 {
        slab_count(self.size_bytes, self.layout.data_pieces)
    }

    /// The slab that holds the content byte at `offset_bytes` is number `offset_bytes / slab_bytes(k)`.
    pub fn slab(&self, slab_index: u64) -> Option<SkySlab<'_>> {
        if slab_index >= self.slab_count() {
            return None;
        }
        let Layout { data_pieces, parity_pieces, .. } = self.layout;
        let per_slab = usize::from(data_pieces) + usize::from(parity_pieces);
        let first = usize::try_from(slab_index).ok()?.checked_mul(per_slab)?;
        let offset_bytes = slab_index * slab_bytes(data_pieces);
        Some(SkySlab {
            slab_index,
            data_pieces,
            parity_pieces,
            roots: self.fanout.get(first..first + per_slab)?,
            offset_bytes,
            len_bytes: slab_bytes(data_pieces).min(self.size_bytes - offset_bytes),
        })
    }

    /// Approximate bytes this takes in memory, for caches that are bounded in bytes.
    pub fn memory_bytes(&self) -> usize {
        let roots = (self.fanout.len() + self.extension.len()) * size_of::<Root>();
        size_of::<SkyfileHead>() + self.metadata.memory_bytes() + self.metadata_json.len() + roots
    }
}

/// A recursive base sector of which the payload is still to be fetched.
#[derive(Clone, Debug)]
pub struct NeedSectors {
    layout: Layout,
    roots: Arc<[Root]>,
}

impl NeedSectors {
    /// Roots of the sectors to fetch, in order; at most 32.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// How many bytes from the start of sector `index` are needed; all but the last are needed whole.
    pub fn bytes_of(&self, index: usize) -> usize {
        payload_bytes(&self.layout).saturating_sub(index * SECTOR_BYTES).min(SECTOR_BYTES)
    }

    /// Finishes with the sectors of [`NeedSectors::roots`], checked against their roots by the caller. A sector may be
    /// longer than needed, and shorter where only zeros are cut off.
    ///
    /// # Panics
    /// When the number of sectors is not that of the roots.
    pub fn complete(self, sectors: &[Bytes]) -> Result<SkyfileHead, SkyfileError> {
        assert!(sectors.len() == self.roots.len(), "one sector for each root");
        let mut payload = Vec::with_capacity(payload_bytes(&self.layout));
        for (index, sector) in sectors.iter().enumerate() {
            let end = payload.len() + self.bytes_of(index);
            payload.extend_from_slice(&sector[..sector.len().min(self.bytes_of(index))]);
            payload.resize(end, 0);
        }
        finish(self.layout, &payload, self.roots)
    }
}

/// Reads the head of a skyfile from the first bytes of its base sector, as many as the skylink says or more; bytes after
/// the head are not looked at. A sector stored without its trailing zeros may give fewer bytes than the skylink says: then this
/// may answer [`SkyfileError::Truncated`], and the caller appends zeros.
pub fn parse(prefix: &[u8]) -> Result<Parsed, SkyfileError> {
    let layout = Layout::decode(prefix)?;
    check(&layout)?;
    let payload_bytes = payload_bytes(&layout);
    let recursive = LAYOUT_BYTES + payload_bytes > SECTOR_BYTES;
    let need_bytes = if recursive {
        LAYOUT_BYTES + payload_bytes.div_ceil(SECTOR_BYTES) * ROOT_BYTES as usize
    } else {
        LAYOUT_BYTES + payload_bytes
    };
    let Some(behind_layout) = prefix.get(LAYOUT_BYTES..need_bytes) else {
        return Err(SkyfileError::Truncated { have_bytes: prefix.len(), need_bytes });
    };
    if recursive {
        return Ok(Parsed::NeedSectors(NeedSectors { layout, roots: roots_of(behind_layout).collect() }));
    }
    finish(layout, behind_layout, Arc::default()).map(Parsed::Head)
}

/// Payload of a checked layout; the limits keep it far below the range of usize.
fn payload_bytes(layout: &Layout) -> usize {
    (layout.fanout_bytes + layout.metadata_bytes) as usize
}

fn roots_of(bytes: &[u8]) -> impl Iterator<Item = Root> + '_ {
    bytes.as_chunks().0.iter().map(|root| Root(*root))
}

/// Checks that the numbers of a layout agree and are within the limits. Nothing is allocated by them before.
fn check(layout: &Layout) -> Result<(), SkyfileError> {
    match layout.cipher {
        Cipher::Plain => {}
        Cipher::Threefish | Cipher::XChaCha20 => return Err(SkyfileError::Encrypted(layout.cipher)),
        Cipher::Unknown(_) => return Err(SkyfileError::Malformed("its cipher type is not known")),
    }
    if layout.metadata_bytes > METADATA_BYTES_MAX {
        let have = layout.metadata_bytes;
        return Err(SkyfileError::TooLarge { what: "bytes of metadata", have, limit: METADATA_BYTES_MAX });
    }
    if layout.data_pieces == 0 {
        return check_small(layout);
    }
    check_large(layout)
}

fn check_small(layout: &Layout) -> Result<(), SkyfileError> {
    if layout.fanout_bytes != 0 {
        return Err(SkyfileError::Malformed("it has a fanout but no data pieces"));
    }
    // Metadata is limited, so only the size can be huge.
    let all_bytes = layout.size_bytes.saturating_add(LAYOUT_BYTES as u64 + layout.metadata_bytes);
    if all_bytes > SECTOR_BYTES as u64 {
        return Err(SkyfileError::Malformed("its content neither fits the base sector nor has a fanout"));
    }
    Ok(())
}

fn check_large(layout: &Layout) -> Result<(), SkyfileError> {
    let pieces = u16::from(layout.data_pieces) + u16::from(layout.parity_pieces);
    if pieces > PIECES_MAX {
        return Err(SkyfileError::Malformed("it has more pieces than the erasure code allows"));
    }
    if layout.parity_pieces == 0 && layout.data_pieces > 1 {
        return Err(SkyfileError::Malformed("it has no parity pieces"));
    }
    let named = if layout.data_pieces == 1 { 1 } else { u128::from(pieces) };
    let slabs = slab_count(layout.size_bytes, layout.data_pieces);
    // At most 2^42 slabs of 256 roots: u128 is room enough, u64 would do.
    if u128::from(slabs) * named * u128::from(ROOT_BYTES) != u128::from(layout.fanout_bytes) {
        return Err(SkyfileError::Malformed("the size of its fanout does not match the size of its content"));
    }
    let roots = slabs * u64::from(pieces);
    if roots > FANOUT_ROOTS_MAX {
        return Err(SkyfileError::TooLarge { what: "piece roots of a skyfile", have: roots, limit: FANOUT_ROOTS_MAX });
    }
    Ok(())
}

/// Takes `fanout || metadata` apart; the layout is checked and the payload has the length it says.
fn finish(layout: Layout, payload: &[u8], extension: Arc<[Root]>) -> Result<SkyfileHead, SkyfileError> {
    let (fanout, metadata_json) = payload.split_at(layout.fanout_bytes as usize);
    let metadata = Metadata::decode(metadata_json)?;
    let fanout: Arc<[Root]> = if layout.data_pieces == 1 {
        let pieces = 1 + usize::from(layout.parity_pieces);
        roots_of(fanout).flat_map(|root| std::iter::repeat_n(root, pieces)).collect()
    } else {
        roots_of(fanout).collect()
    };
    let content_offset = match layout.data_pieces {
        0 => (LAYOUT_BYTES + metadata_json.len()) as u32,
        _ => 0,
    };
    Ok(SkyfileHead {
        size_bytes: layout.size_bytes,
        metadata,
        // A copy, so that a head in a cache does not keep 4 MiB of sector alive.
        metadata_json: Bytes::copy_from_slice(metadata_json),
        fanout,
        content_offset,
        extension,
        layout,
    })
}

/// Foreign bytes as a base sector: layout, metadata, fanout. Nothing here may panic.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(layout) = Layout::decode(bytes) {
        assert_eq!(Layout::decode(&layout.encode()), Ok(layout));
    }
    match parse(bytes) {
        Ok(Parsed::Head(head)) => {
            // Asked for as far as it can be there: a few bytes may claim a file of 2^64.
            for index in [0, 1, head.slab_count().saturating_sub(1), head.slab_count(), u64::MAX] {
                let _ = head.slab(index);
            }
        }
        Ok(Parsed::NeedSectors(pending)) => {
            assert!(pending.roots().len() <= bytes.len() / 32, "each sector that is asked for is named");
            // With one sector: all of them would be 128 MiB of zeros for each input.
            if pending.roots().len() == 1 {
                let _ = pending.clone().complete(&[Bytes::from(vec![0; pending.bytes_of(0)])]);
            }
        }
        Err(_) => {}
    }
    if let Ok(metadata) = super::Metadata::decode(bytes) {
        let _ = super::validate(&metadata);
        assert!(super::Metadata::decode(&metadata.encode()).is_ok());
    }
}
