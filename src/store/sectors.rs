//! Sectors as they lie on hosts: slices of base sectors, proofs of slices, pieces by their roots, and how much of a skyfile
//! is there.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::address::{Skylink, SkylinkKind};
use crate::measure::{Tier, Trace};
use crate::renter::{Expect, SlabRef};
use crate::sector::{Root, SECTOR_BYTES, SEGMENT_BYTES, range_proof};

use super::content::{Lies, pad};
use super::{Inner, Store, StoreError};

/// Slabs of one skyfile that are looked at at once: each costs as many requests as it has pieces.
const SLABS_AT_ONCE_MAX: usize = 4;
/// Most slabs of one look, of 24 or 40 MiB each: with nine pieces a slab some ten thousand requests, for whoever asks. Of
/// more slabs, so many are looked at, spread over all.
pub const HEALTH_SLABS_MAX: usize = 1024;
/// Pieces that are made anew of others at once, since theirs are gone: each takes the memory of a slab for a moment.
pub const PIECES_MADE_AT_ONCE_MAX: usize = 2;

/// Part of a sector, with the hashes that lead from it to the sector's root.
#[derive(Clone, Debug)]
pub struct ProvedSlice {
    pub bytes: Bytes,
    /// The subtrees left of the slice, then those right of it.
    pub proof: Vec<[u8; 32]>,
}

/// How much of a skyfile is at its place now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkyfileHealth {
    pub base_copies: usize,
    /// 0 for a skyfile whose content is in its base sector.
    pub data_pieces: u8,
    pub parity_pieces: u8,
    /// Of how many slabs the content is.
    pub slab_count: usize,
    /// Pieces that are there, of each slab that was looked at, in order: of all of them, if they are not more than
    /// [`HEALTH_SLABS_MAX`].
    pub slabs: Vec<usize>,
}

impl Store {
    /// What a version 1 skylink names: its stretch of the sector.
    pub async fn base_sector(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        let (root, range) = stretch_of(link)?;
        self.sector_bytes(&root.0, range, trace).await
    }

    /// The same with its proof. The rest of the sector is read, too: the proof is made of it.
    pub async fn proved_base_sector(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<ProvedSlice, StoreError> {
        let (root, range) = stretch_of(link)?;
        let data = self.sector_bytes(&root.0, 0..SECTOR_BYTES as u32, trace).await?;
        let range = range.start as usize..range.end as usize;
        let (segments, whole) = (range.start / SEGMENT_BYTES..range.end / SEGMENT_BYTES, data.clone());
        // Zeros at the end need not be hashed; whatever the sector's length, some milliseconds.
        let used = whole.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let proof = tokio::task::spawn_blocking(move || range_proof(&whole[..used], segments)).await;
        let proof = proof.map_err(|_| StoreError::BadFile("its proof could not be made"))?;
        let proof = proof.map_err(|_| StoreError::BadFile("its skylink names a stretch that no sector has"))?;
        Ok(ProvedSlice { bytes: data.slice(range), proof })
    }

    /// Bytes of a pinned sector, zeros behind its data included: of a base sector, or of a piece of a large skyfile.
    ///
    /// # Panics
    /// If the range ends outside of a sector.
    pub async fn sector_bytes(&self, root: &[u8; 32], range: Range<u32>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        let length = (range.end - range.start) as usize;
        if let Some(piece) = self.inner.find_piece(root, trace).await? {
            return self.inner.piece_bytes(&piece, range, trace).await;
        }
        let sector = Root(*root);
        // Boxed: a read's future is some KiB.
        let read = Box::pin(async {
            self.inner.allow_base(&sector, trace).await?;
            let found = self.inner.renter.read_sector(&sector, Expect::default(), range, trace).await?;
            trace.body(Tier::Hosts, found.len() as u64);
            Ok(pad(found, length))
        });
        self.inner.of_base(root, read).await
    }

    /// Looks where the copies and pieces of a skyfile are. Asks for sizes, not for bytes.
    pub async fn health(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<SkyfileHealth, StoreError> {
        let open = self.skyfile(link, trace).await?;
        let slabs = open.content.slabs();
        let slab_count = slabs.len();
        let slabs = spread(slabs, HEALTH_SLABS_MAX);
        let _permit = self.inner.health_looks.acquire().await.map_err(|_| StoreError::TimedOut)?;
        let pieces = slabs.into_iter().map(|slab| {
            let renter = self.inner.renter.clone();
            async move { slab.roots.len() - renter.missing_pieces(&slab).await.len() }
        });
        let slabs: Vec<usize> = stream::iter(pieces).buffered(SLABS_AT_ONCE_MAX).collect().await;
        let (data_pieces, parity_pieces) = open.content.redundancy();
        let base_copies = self.inner.renter.copies_there(&open.root).await;
        Ok(SkyfileHealth { base_copies, data_pieces, parity_pieces, slab_count, slabs })
    }
}

/// At most `count_max` of them in their order, the first and the last among them, with equal distances between.
fn spread<T>(all: Vec<T>, count_max: usize) -> Vec<T> {
    let count = all.len();
    if count <= count_max {
        return all;
    }
    let mut wanted = (0..count_max).map(|index| index * (count - 1) / (count_max - 1)).peekable();
    all.into_iter().enumerate().filter_map(|(index, one)| wanted.next_if_eq(&index).map(|_| one)).collect()
}

/// A piece of a large skyfile, found by its root.
struct PieceAt {
    /// Of the base sector.
    skyfile: Root,
    slab: SlabRef,
    slab_index: usize,
    piece_index: usize,
}

impl Inner {
    /// The pinned large skyfile that has a piece of this root. `None` if there is none, or if it is the root of a base sector.
    async fn find_piece(self: &Arc<Self>, root: &[u8; 32], trace: &Arc<Trace>) -> Result<Option<PieceAt>, StoreError> {
        if !self.catalog.by_root(root)?.is_empty() {
            return Ok(None);
        }
        for row in self.catalog.by_block(root)? {
            let pin = self.parsed_pin(&row.key, &row.body).await?;
            for skyfile in pin.skyfiles.iter().filter(|skyfile| !skyfile.is_small()) {
                let content = self.content_in_pin(&row, skyfile, trace).await?;
                let Some(index) = content.piece_roots().iter().position(|piece| piece.0 == *root) else { continue };
                let pieces = usize::from(skyfile.k) + usize::from(skyfile.m);
                let (slab_index, piece_index) = (index / pieces, index % pieces);
                let Some(slab) = content.slabs().into_iter().nth(slab_index) else { continue };
                return Ok(Some(PieceAt { skyfile: Root(skyfile.root), slab, slab_index, piece_index }));
            }
        }
        Ok(None)
    }

    async fn piece_bytes(self: &Arc<Self>, piece: &PieceAt, range: Range<u32>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        let slab_bytes = u64::from(piece.slab.k) * SECTOR_BYTES as u64;
        let start = piece.slab_index as u64 * slab_bytes;
        self.allow_stretch(&piece.skyfile, &Lies::InSlabs(start..start + slab_bytes), trace).await?;
        let length = range.len();
        let (slab, index) = (&piece.slab, piece.piece_index);
        let found = match self.renter.read_piece(slab, index, range.clone(), trace).await {
            Ok(found) => found,
            Err(_) => {
                let _permit = self.pieces_made.acquire().await.map_err(|_| StoreError::TimedOut)?;
                self.renter.make_piece(slab, index, range, trace).await.map_err(StoreError::of_pinned)?
            }
        };
        trace.body(Tier::Hosts, found.len() as u64);
        Ok(pad(found, length))
    }

    /// A small file's content lies in its base sector, so a part of it that is denied denies the sector; of a large one the
    /// sector has only names and hashes.
    async fn allow_base(self: &Arc<Self>, root: &Root, trace: &Arc<Trace>) -> Result<(), StoreError> {
        self.allow_stretch(root, &Lies::InSector(0..u64::MAX), trace).await
    }
}

fn stretch_of(link: &Skylink) -> Result<(Root, Range<u32>), StoreError> {
    match link.kind() {
        SkylinkKind::V1 { offset_bytes, fetch_bytes, root } => Ok((Root(root), offset_bytes..offset_bytes + fetch_bytes)),
        SkylinkKind::V2 { .. } => Err(StoreError::Unsupported("a version 2 skylink has to be resolved by the registry first")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_of_many_are_spread_over_all() {
        for (count, count_max) in [(0, 4), (3, 4), (4, 4), (5, 4), (8, 4), (1000, 4), (2_000_000, HEALTH_SLABS_MAX)] {
            let found = spread((0..count).collect(), count_max);
            assert_eq!(found.len(), count.min(count_max));
            assert!(found.is_sorted_by(|a, b| a < b));
            let ends = (found.first().copied(), found.last().copied());
            assert_eq!(ends, (0..count).next().map_or((None, None), |first| (Some(first), Some(count - 1))));
            let steps: Vec<usize> = found.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(steps.iter().max().zip(steps.iter().min()).is_none_or(|(most, least)| most - least <= 1), "{count}");
        }
    }
}
