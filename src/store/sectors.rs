//! Base sectors as they lie on hosts: slices of them, proofs of slices, and how much of a skyfile is there.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::address::{Skylink, SkylinkKind};
use crate::measure::{Tier, Trace};
use crate::renter::Expect;
use crate::sector::{Root, SECTOR_BYTES, SEGMENT_BYTES, range_proof};
use crate::tree::skyfile::{LAYOUT_BYTES, Layout};

use super::content::pad;
use super::{Inner, Store, StoreError};

/// Slabs of one skyfile that are looked at at once: each costs as many requests as it has pieces.
const SLABS_AT_ONCE_MAX: usize = 4;
/// Most slabs of one look, of 24 or 40 MiB each: with nine pieces a slab some ten thousand requests, for whoever asks.
pub const HEALTH_SLABS_MAX: usize = 1024;

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
    /// Pieces that are there, slab by slab.
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

    /// Bytes of a pinned base sector, zeros behind its data included.
    ///
    /// # Panics
    /// If the range ends outside of a sector.
    pub async fn sector_bytes(&self, root: &[u8; 32], range: Range<u32>, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        let length = (range.end - range.start) as usize;
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
        if slabs.len() > HEALTH_SLABS_MAX {
            return Err(StoreError::Unsupported("the health of a skyfile as large as this is not looked at on request"));
        }
        let _permit = self.inner.health_looks.acquire().await.map_err(|_| StoreError::TimedOut)?;
        let pieces = slabs.into_iter().map(|slab| {
            let renter = self.inner.renter.clone();
            async move { slab.roots.len() - renter.missing_pieces(&slab).await.len() }
        });
        let slabs: Vec<usize> = stream::iter(pieces).buffered(SLABS_AT_ONCE_MAX).collect().await;
        let Layout { data_pieces, parity_pieces, .. } = open.head.layout;
        let base_copies = self.inner.renter.copies_there(&open.root).await;
        Ok(SkyfileHealth { base_copies, data_pieces, parity_pieces, slabs })
    }
}

impl Inner {
    /// A small file's content lies in its base sector, so a part of it that is denied denies the sector; of a large one the
    /// sector has only names and hashes.
    async fn allow_base(self: &Arc<Self>, root: &Root, trace: &Arc<Trace>) -> Result<(), StoreError> {
        if !self.denied.has_rules() {
            return Ok(());
        }
        let head = self.renter.read_sector(root, Expect::default(), 0..LAYOUT_BYTES as u32, trace).await?;
        match Layout::decode(&pad(head, LAYOUT_BYTES)) {
            Ok(layout) if layout.fanout_bytes > 0 => Ok(()),
            _ => self.allow_stretch(root, &(0..u64::MAX), trace).await,
        }
    }
}

fn stretch_of(link: &Skylink) -> Result<(Root, Range<u32>), StoreError> {
    match link.kind() {
        SkylinkKind::V1 { offset_bytes, fetch_bytes, root } => Ok((Root(root), offset_bytes..offset_bytes + fetch_bytes)),
        SkylinkKind::V2 { .. } => Err(StoreError::Unsupported("a version 2 skylink has to be resolved by the registry first")),
    }
}
