//! Opening a skyfile: base sector -> layout, metadata, fanout, and where its content is.
//!
//! The content of a large one is in the pieces that its fanout names, unless it was restored from a backup of another
//! redundancy: then its pin names slabs with the same content (`ingest::restore` has compared them).

use std::ops::Range;
use std::sync::Arc;

use crate::address::{Skylink, SkylinkKind};
use crate::deny::Subject;
use crate::measure::Trace;
use crate::renter::Expect;
use crate::sector::Root;
use crate::tree::pack::SkyfileRef;
use crate::tree::skyfile::{Parsed, SkyfileHead, parse};

use super::content::Content;
use super::{CatalogPin, Inner, StoreError};

/// A skyfile whose head was read and checked.
#[derive(Debug)]
pub struct OpenSkyfile {
    pub root: Root,
    pub head: SkyfileHead,
    pub content: Content,
}

impl Inner {
    /// Opens the skyfile of a v1 skylink.
    pub async fn skyfile(self: &Arc<Self>, link: &Skylink, trace: &Arc<Trace>) -> Result<Arc<OpenSkyfile>, StoreError> {
        let SkylinkKind::V1 { offset_bytes, fetch_bytes, root } = link.kind() else {
            return Err(StoreError::Unsupported("a version 2 skylink has to be resolved by the registry first"));
        };
        self.of_base(&root, self.skyfile_head(Root(root), offset_bytes..offset_bytes + fetch_bytes, trace)).await
    }

    /// Reads something of a base sector. What is denied, and what is known to be absent, is not read at all.
    pub async fn of_base<T>(&self, root: &[u8; 32], read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        if let Some(reason) = self.denied.check(&Subject::Sector { root }) {
            return Err(StoreError::denied(reason));
        }
        // In this order: a catalog that becomes complete in between may have got the pin after the look.
        let complete = self.catalog.is_complete();
        let known = !self.catalog.by_root(root)?.is_empty();
        if !known && complete {
            return Err(StoreError::NotFound);
        }
        match read.await {
            // Not on the hosts that were asked, and what is pinned is not fully known yet.
            Err(StoreError::NotFound) if !known => Err(StoreError::Rebuilding),
            // Pinned, so it is lost for now and not absent.
            Err(StoreError::NotFound) => Err(StoreError::TooFewPieces { have: 0, need: 1 }),
            found => found,
        }
    }

    /// The head behind a sector root, whatever pins it. It stands at the start of `stretch`, which bounds what is used of the
    /// base sector: several small skyfiles may share a sector.
    pub async fn skyfile_head(
        self: &Arc<Self>,
        root: Root,
        stretch: Range<u32>,
        trace: &Arc<Trace>,
    ) -> Result<Arc<OpenSkyfile>, StoreError> {
        // Boxed: a pack is a skyfile, too, and a skyfile may be read by a pack.
        let open = Box::pin(self.open_skyfile(root, stretch.clone(), trace));
        let key = (root, stretch.start, stretch.end);
        self.heads.try_get_with(key, open).await.map_err(|error: Arc<StoreError>| error.copy())
    }

    async fn open_skyfile(
        self: &Arc<Self>,
        root: Root,
        stretch: Range<u32>,
        trace: &Arc<Trace>,
    ) -> Result<Arc<OpenSkyfile>, StoreError> {
        trace.index_from_hosts();
        let base = self.read_base(&root, stretch.clone(), trace).await?;
        let head = match parse(&base)? {
            Parsed::Head(head) => head,
            Parsed::NeedSectors(pending) => {
                let mut sectors = Vec::new();
                for (index, root) in pending.roots().iter().enumerate() {
                    sectors.push(self.read_base(root, 0..pending.bytes_of(index) as u32, trace).await?);
                }
                pending.complete(&sectors)?
            }
        };
        let content = if !head.is_large() {
            Content::in_base(root, stretch.start + head.content_offset, stretch.end, head.size_bytes)
        } else if let Some(content) = self.content_of_other_redundancy(&root, &head, trace).await? {
            content
        } else {
            let layout = &head.layout;
            Content::in_slabs(root, head.size_bytes, layout.data_pieces, layout.parity_pieces, head.fanout.clone())
        };
        Ok(Arc::new(OpenSkyfile { root, head, content }))
    }

    /// The content of a skyfile that was restored, where its fanout names pieces of a redundancy that is not this portal's:
    /// its pin says which slabs have the same bytes. `None` if the fanout's own pieces are stored.
    async fn content_of_other_redundancy(
        self: &Arc<Self>,
        root: &Root,
        head: &SkyfileHead,
        trace: &Arc<Trace>,
    ) -> Result<Option<Content>, StoreError> {
        let in_fanout = (head.layout.data_pieces, head.layout.parity_pieces);
        // In this order, as for every absence.
        let complete = self.catalog.is_complete();
        for row in self.catalog.by_root(&root.0)? {
            let pin = self.parsed_pin(&row.key, &row.body).await?;
            let Some(skyfile) = pin.skyfiles.iter().find(|skyfile| skyfile.root == root.0 && skyfile.k > 0) else { continue };
            if (skyfile.k, skyfile.m) == in_fanout {
                return Ok(None);
            }
            return self.content_in_pin(&row, skyfile, trace).await.map(Some);
        }
        if !complete && in_fanout != (self.renter.options().k, self.renter.options().m) {
            return Err(StoreError::Rebuilding);
        }
        Ok(None)
    }

    /// The content of a large skyfile by its pin alone: by the roots in it, or in its pack.
    pub async fn content_in_pin(
        self: &Arc<Self>,
        row: &CatalogPin,
        skyfile: &SkyfileRef,
        trace: &Arc<Trace>,
    ) -> Result<Content, StoreError> {
        if let Some(content) = Content::from_ref(skyfile) {
            return Ok(content);
        }
        let open = self.open_pin(&row.key, &row.body, trace).await?;
        let listed = open.pack().into_iter().flat_map(|pack| &pack.skyfiles).find(|content| content.root.0 == skyfile.root);
        listed.cloned().ok_or_else(|| StoreError::BadPin("nothing says where its skyfile's pieces are".to_owned()))
    }

    async fn read_base(&self, root: &Root, stretch: Range<u32>, trace: &Arc<Trace>) -> Result<bytes::Bytes, StoreError> {
        let length = stretch.len();
        let found = self.renter.read_sector(root, Expect { data_length: Some(stretch.end) }, stretch, trace).await?;
        Ok(super::content::pad(found, length))
    }
}
