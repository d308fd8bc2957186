//! Opening a skyfile: base sector -> layout, metadata, fanout, and where its content is.

use std::sync::Arc;

use crate::address::{Skylink, SkylinkKind};
use crate::deny::Subject;
use crate::measure::Trace;
use crate::renter::Expect;
use crate::sector::Root;
use crate::tree::skyfile::{Parsed, SkyfileHead, parse};

use super::content::Content;
use super::news::Absence;
use super::{Inner, StoreError};

/// A skyfile whose head was read and checked.
#[derive(Debug)]
pub struct OpenSkyfile {
    pub root: Root,
    pub head: SkyfileHead,
    pub content: Content,
}

impl Inner {
    /// Opens the skyfile of a v1 skylink.
    pub async fn skyfile(&self, link: &Skylink, trace: &Arc<Trace>) -> Result<Arc<OpenSkyfile>, StoreError> {
        let SkylinkKind::V1 { offset_bytes, fetch_bytes, root } = link.kind() else {
            return Err(StoreError::Unsupported("a version 2 skylink has to be resolved by the registry first"));
        };
        if offset_bytes != 0 {
            return Err(StoreError::Unsupported("skylinks with an offset inside their sector are not served"));
        }
        self.of_base(&root, self.skyfile_head(Root(root), fetch_bytes, trace)).await
    }

    /// Reads something of a base sector. What is denied, and what is known to be absent, is not read at all.
    pub async fn of_base<T>(&self, root: &[u8; 32], read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        if let Some(reason) = self.denied.check(&Subject::Sector { root }) {
            return Err(StoreError::denied(reason));
        }
        // In this order: a catalog that becomes complete in between may have got the pin after the look.
        let complete = self.catalog.is_complete();
        let known = !self.catalog.by_root(root)?.is_empty();
        if !known && complete && !self.others_write {
            return Err(StoreError::NotFound);
        }
        let read = read.await;
        if !known && complete {
            // That bytes are there says nothing: what keeps them alive has to be known.
            return match (read, self.catch_up().await) {
                (read, _) if !self.catalog.by_root(root)?.is_empty() => read,
                (_, Absence::Sure) => Err(StoreError::NotFound),
                (_, Absence::Unsure) => Err(StoreError::Rebuilding),
            };
        }
        match read {
            // Not on the hosts that were asked, and what is pinned is not fully known yet.
            Err(StoreError::NotFound) if !known => Err(StoreError::Rebuilding),
            // Pinned, so it is lost for now and not absent.
            Err(StoreError::NotFound) => Err(StoreError::TooFewPieces { have: 0, need: 1 }),
            found => found,
        }
    }

    /// The head behind a sector root, whatever pins it. `fetch_bytes` bounds the used bytes of the base sector.
    pub async fn skyfile_head(&self, root: Root, fetch_bytes: u32, trace: &Arc<Trace>) -> Result<Arc<OpenSkyfile>, StoreError> {
        let open = self.open_skyfile(root, fetch_bytes, trace);
        self.heads.try_get_with((root, fetch_bytes), open).await.map_err(|error: Arc<StoreError>| error.copy())
    }

    async fn open_skyfile(&self, root: Root, fetch_bytes: u32, trace: &Arc<Trace>) -> Result<Arc<OpenSkyfile>, StoreError> {
        trace.index_from_hosts();
        let base = self.read_base(&root, fetch_bytes, trace).await?;
        let head = match parse(&base)? {
            Parsed::Head(head) => head,
            Parsed::NeedSectors(pending) => {
                let mut sectors = Vec::new();
                for (index, root) in pending.roots().iter().enumerate() {
                    sectors.push(self.read_base(root, pending.bytes_of(index) as u32, trace).await?);
                }
                pending.complete(&sectors)?
            }
        };
        let content = if head.is_large() {
            let layout = &head.layout;
            Content::in_slabs(root, head.size_bytes, layout.data_pieces, layout.parity_pieces, head.fanout.clone())
        } else {
            Content::in_base(root, head.content_offset, fetch_bytes, head.size_bytes)
        };
        Ok(Arc::new(OpenSkyfile { root, head, content }))
    }

    async fn read_base(&self, root: &Root, bytes: u32, trace: &Arc<Trace>) -> Result<bytes::Bytes, StoreError> {
        let found = self.renter.read_sector(root, Expect { data_length: Some(bytes) }, 0..bytes, trace).await?;
        Ok(super::content::pad(found, bytes as usize))
    }
}
