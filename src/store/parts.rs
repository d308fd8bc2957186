//! What a pin keeps alive, part by part: what completion, checks and audits go over.

use std::sync::Arc;

use crate::measure::Trace;
use crate::renter::{Expect, Piece, Renter, SlabRef};
use crate::sector::Root;
use crate::tree::pack::SkyfileRef;

use super::catalog::PinRow;
use super::content::Content;
use super::{Inner, Pin, StoreError};

/// Something that is stored as pieces or copies.
#[derive(Clone, Debug)]
pub enum Part {
    Base { root: Root, expect: Expect },
    Slab(SlabRef),
}

impl Part {
    /// The base sector of a skyfile.
    pub fn base_of(skyfile: &SkyfileRef) -> Part {
        Part::Base { root: Root(skyfile.root), expect: Expect { data_length: Some(skyfile.used) } }
    }

    /// Its pieces or copies, each at its place.
    pub fn pieces(&self, renter: &Renter) -> Vec<Piece> {
        match self {
            Part::Base { root, expect } => renter.copies_of(root, *expect),
            Part::Slab(slab) => renter.pieces_of(slab),
        }
    }

    /// Right ones that are needed to read it.
    pub fn need(&self) -> usize {
        match self {
            Part::Base { .. } => 1,
            Part::Slab(slab) => slab.k.into(),
        }
    }
}

/// The skyfiles of a pin, its pack among them.
pub fn skyfiles_of(pin: &Pin) -> impl Iterator<Item = &SkyfileRef> {
    pin.skyfiles.iter().chain(&pin.pack)
}

impl Inner {
    /// What belongs to a skyfile besides its base sector: more sectors of a fanout that does not fit it, and slabs.
    pub async fn parts_beyond_base(
        self: &Arc<Self>,
        row: &PinRow,
        pin: &Pin,
        skyfile: &SkyfileRef,
        trace: &Arc<Trace>,
    ) -> Result<Vec<Part>, StoreError> {
        let mut parts = Vec::new();
        if skyfile.k > 0 {
            let open = self.skyfile_head(Root(skyfile.root), 0..skyfile.used, trace).await?;
            parts.extend(open.head.extension.iter().map(|root| Part::Base { root: *root, expect: Expect { data_length: None } }));
        }
        // The base sector of a pack lists its pieces if the pin does not, those of other skyfiles stand in the pack.
        let is_pack = pin.pack.as_ref().is_some_and(|pack| pack.root == skyfile.root);
        let content: Content =
            if is_pack { self.content_of(skyfile, trace).await? } else { self.content_in_pin(row, skyfile, trace).await? };
        parts.extend(content.slabs().into_iter().map(Part::Slab));
        Ok(parts)
    }
}
