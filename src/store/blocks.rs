//! From a CID to verified bytes: which pin holds the block, where its row says the bytes are, and the check.
//!
//! A row is *proved* by the portal's signature on its pin: the pin names the pack's sector root, the pack's hash tree
//! covers its rows, and the row's skyfile is covered by piece roots that stand in the pack. So a range of a raw leaf
//! needs only the sector tree. Whole blocks are hashed against their CID (`design.md` 6).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::address::{Cid, Multihash, check_bytes, check_parts, hash};
use crate::deny::Reason;
use crate::measure::{Tier, Trace};
use crate::renter::Proof;
use crate::sector::Root;
use crate::tree::pack::{Place, SkyfileRef};

use super::content::{Content, Extent, SMALL_UNIT_BYTES};
use super::pack_rows::PackRows;
use super::pin::{Pin, PinRow};
use super::{Inner, StoreError};

/// The largest block that is put together in memory: the limit of the field's block exchange, and of its gateways.
pub const BLOCK_BYTES_MAX: u64 = 2 << 20;

/// A pin with what is needed to find its blocks.
#[derive(Clone)]
pub struct OpenPin {
    pub pin: Arc<Pin>,
    pack: Option<Arc<OpenPack>>,
}

impl OpenPin {
    pub fn pack(&self) -> Option<&OpenPack> {
        self.pack.as_deref()
    }
}

pub struct OpenPack {
    pub content: Content,
    pub rows: PackRows,
    /// The contents behind its skyfile table, in its order.
    pub skyfiles: Vec<Content>,
}

/// Where a block's bytes are.
#[derive(Clone, Debug)]
pub struct Located {
    pub prefix: Bytes,
    pub suffix: Bytes,
    place: LocatedPlace,
}

#[derive(Clone, Debug)]
enum LocatedPlace {
    /// The bytes themselves, out of a pin.
    Here(Bytes),
    Stored(Extent),
}

impl Located {
    pub fn length(&self) -> u64 {
        let middle = match &self.place {
            LocatedPlace::Here(bytes) => bytes.len() as u64,
            LocatedPlace::Stored(extent) => extent.length,
        };
        self.prefix.len() as u64 + middle + self.suffix.len() as u64
    }

    /// The block around the bytes of its place.
    fn wrap(&self, bytes: Bytes) -> Bytes {
        if self.prefix.is_empty() && self.suffix.is_empty() {
            return bytes;
        }
        [&self.prefix[..], &bytes, &self.suffix].concat().into()
    }

    /// Only a leaf is kept as a stretch of its file with a frame around it.
    pub fn is_framed_leaf(&self) -> bool {
        !self.prefix.is_empty() || !self.suffix.is_empty()
    }

    /// The extent that is the whole block, when nothing stands around it.
    pub fn bare_extent(&self) -> Option<&Extent> {
        match &self.place {
            LocatedPlace::Stored(extent) if self.prefix.is_empty() && self.suffix.is_empty() => Some(extent),
            _ => None,
        }
    }
}

impl Inner {
    /// The whole block, hashed against its CID. Body bytes are counted in the trace.
    pub async fn block(self: &Arc<Self>, cid: &Cid, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        self.denied.allow(cid)?;
        if cid.hash().code() == hash::IDENTITY {
            trace.body(Tier::Memory, cid.hash().digest().len() as u64);
            return Ok(Bytes::copy_from_slice(cid.hash().digest()));
        }
        let located = self.locate(cid.hash(), trace).await?;
        let Located { prefix, suffix, place } = &located;
        let extent = match place {
            LocatedPlace::Here(bytes) => {
                trace.body(Tier::Memory, bytes.len() as u64);
                return self.check(cid, bytes.clone());
            }
            LocatedPlace::Stored(_) if located.length() > BLOCK_BYTES_MAX => {
                return Err(StoreError::BlockTooLarge { length: located.length() });
            }
            LocatedPlace::Stored(extent) => extent,
        };
        let prove = |bytes: &[u8]| check_parts(cid.hash(), &[prefix, bytes, suffix]).is_ok();
        let (bytes, proof) = self.contents.body_proved(extent, &prove, trace).await?;
        let block = located.wrap(bytes);
        if proof == Proof::Given { Ok(block) } else { self.check(cid, block) }
    }

    /// The same for a node on the way: index bytes, kept in the metadata tier.
    pub async fn index_block(self: &Arc<Self>, cid: &Cid, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        self.denied.allow(cid)?;
        if cid.hash().code() == hash::IDENTITY {
            return Ok(Bytes::copy_from_slice(cid.hash().digest()));
        }
        let key = cid.hash().to_bytes();
        if let Some(block) = self.nodes.get(key.as_slice()).await {
            return Ok(block);
        }
        let located = self.locate(cid.hash(), trace).await?;
        let block = self.check(cid, self.assemble_index(&located, trace).await?)?;
        if block.len() as u64 <= SMALL_UNIT_BYTES {
            self.nodes.insert(key, block.clone()).await;
        }
        Ok(block)
    }

    /// The bytes of a block as index bytes, not hashed: for looking through what is stored, never for serving it.
    pub async fn assemble_index(&self, located: &Located, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        if located.length() > BLOCK_BYTES_MAX {
            return Err(StoreError::BlockTooLarge { length: located.length() });
        }
        match &located.place {
            LocatedPlace::Here(bytes) => Ok(bytes.clone()),
            LocatedPlace::Stored(extent) => {
                let range = extent.start..extent.start + extent.length;
                Ok(located.wrap(self.contents.index_bytes(&extent.content, range, trace).await?))
            }
        }
    }

    fn check(&self, cid: &Cid, block: Bytes) -> Result<Bytes, StoreError> {
        // The sectors were right, so the row is wrong: whoever signed the pin said a falsehood, or a disk here did.
        check_bytes(cid.hash(), &block).map_err(|_| StoreError::WrongBlock(Box::new(*cid)))?;
        Ok(block)
    }

    /// Finds the block: among the catalog's pins, else (while the catalog is not complete) by asking the hosts.
    pub async fn locate(self: &Arc<Self>, multihash: &Multihash, trace: &Arc<Trace>) -> Result<Located, StoreError> {
        let key = multihash.to_bytes();
        if let Some(located) = self.located.get(key.as_slice()) {
            return Ok(located);
        }
        let unpins = self.unpins.load(Ordering::Acquire);
        let located = self.look_up(multihash, trace).await?;
        self.located.insert(key.clone(), located.clone());
        // Found before an unpin that has emptied the cache meanwhile: it must not stay behind.
        if self.unpins.load(Ordering::Acquire) != unpins {
            self.located.remove(key.as_slice());
        }
        Ok(located)
    }

    async fn look_up(self: &Arc<Self>, multihash: &Multihash, trace: &Arc<Trace>) -> Result<Located, StoreError> {
        // Asked before the look-up: a catalog that becomes complete in between may have got the pin after the look.
        let complete = self.catalog.is_complete();
        if let Some(located) = self.locate_in_catalog(multihash, trace).await? {
            return Ok(located);
        }
        if complete {
            return Err(StoreError::NotFound);
        }
        self.ask_hosts_for_pins(multihash, trace).await?;
        self.locate_in_catalog(multihash, trace).await?.ok_or(StoreError::Rebuilding)
    }

    async fn locate_in_catalog(self: &Arc<Self>, multihash: &Multihash, trace: &Arc<Trace>) -> Result<Option<Located>, StoreError> {
        let bytes = multihash.to_bytes();
        let mut failure = None;
        let mut denied = None;
        let mut looked_into = HashSet::new();
        for source in [Source::Roots, Source::Blocks] {
            let candidates = match source {
                Source::Roots => self.catalog.by_root(&bytes)?,
                Source::Blocks => self.may_hold(multihash)?,
            };
            for row in candidates {
                match self.find_in_pin(&row, (&bytes, multihash), &mut looked_into, trace).await {
                    Ok(Some((located, None))) => return Ok(Some(located)),
                    // Another pin, of other content, may hold the same block.
                    Ok(Some((_, reason))) => denied = denied.or(reason),
                    Ok(None) => {}
                    // Another pin may hold the block, too; the failure is told only if none does.
                    Err(error) => failure = Some(error),
                }
            }
        }
        let failure = failure.or(denied.map(StoreError::denied));
        failure.map_or(Ok(None), Err)
    }

    /// Pins that may hold a block: those that the table of blocks names, and those that it does not know (yet).
    fn may_hold(&self, multihash: &Multihash) -> Result<Vec<super::CatalogPin>, StoreError> {
        // In this order: a pin leaves one of them once it is in the next, and must not be missed in both.
        let unindexed: Vec<_> = self.unindexed.lock().expect("no panic under this lock").values().cloned().collect();
        let own_index: Vec<_> = self.own_index.lock().expect("no panic under this lock").values().cloned().collect();
        let key = crate::tree::pack::block_key(multihash);
        let mut found = key.map_or(Ok(Vec::new()), |key| self.catalog.by_block(&key))?;
        found.extend(own_index);
        found.extend(unindexed);
        Ok(found)
    }

    /// Each pack is looked into once: an import of many roots has as many pins with one pack.
    async fn find_in_pin(
        self: &Arc<Self>,
        row: &super::CatalogPin,
        (bytes, multihash): (&[u8], &Multihash),
        looked_into: &mut HashSet<[u8; 32]>,
        trace: &Arc<Trace>,
    ) -> Result<Option<(Located, Option<Reason>)>, StoreError> {
        let pin = self.parsed_pin(&row.key, &row.body).await?;
        if pin.rows.is_empty() && pin.pack.as_ref().is_some_and(|pack| !looked_into.insert(pack.root)) {
            return Ok(None);
        }
        let open = self.open_parsed(pin, trace).await?;
        let located = self.find_row(&open, bytes, multihash, trace).await?;
        Ok(located.map(|located| (located, self.denied.of_pin(&open.pin))))
    }

    /// The pin's parsed body and its pack, out of memory, the node's disk, or the hosts.
    pub async fn open_pin(self: &Arc<Self>, key: &str, body: &[u8], trace: &Arc<Trace>) -> Result<OpenPin, StoreError> {
        let pin = self.parsed_pin(key, body).await?;
        self.open_parsed(pin, trace).await
    }

    pub async fn parsed_pin(&self, key: &str, body: &[u8]) -> Result<Arc<Pin>, StoreError> {
        if let Some(pin) = self.pins.get(key).await {
            return Ok(pin);
        }
        let pin = Arc::new(Pin::decode(body)?);
        self.pins.insert(key.to_owned(), pin.clone()).await;
        Ok(pin)
    }

    async fn open_parsed(self: &Arc<Self>, pin: Arc<Pin>, trace: &Arc<Trace>) -> Result<OpenPin, StoreError> {
        let pack = match &pin.pack {
            Some(pack) => Some(self.open_pack(pack, trace).await?),
            None => None,
        };
        Ok(OpenPin { pin, pack })
    }

    pub async fn open_pack(self: &Arc<Self>, pack: &SkyfileRef, trace: &Arc<Trace>) -> Result<Arc<OpenPack>, StoreError> {
        let root = Root(pack.root);
        let load = async {
            let content = self.content_of(pack, trace).await?;
            let rows = self.load_pack_rows(root, &content, trace).await?;
            let skyfiles = rows.skyfiles().iter().map(|skyfile| Content::from_ref(skyfile).ok_or_else(no_such_skyfile));
            let skyfiles = skyfiles.collect::<Result<Vec<_>, _>>()?;
            Ok(Arc::new(OpenPack { content, rows, skyfiles }))
        };
        self.packs.try_get_with(root, load).await.map_err(|error: Arc<StoreError>| error.copy())
    }

    /// The content behind a reference; where piece roots were left out, the base sector is read for them.
    pub async fn content_of(self: &Arc<Self>, skyfile: &SkyfileRef, trace: &Arc<Trace>) -> Result<Content, StoreError> {
        match Content::from_ref(skyfile) {
            Some(content) => Ok(content),
            None => Ok(self.skyfile_head(Root(skyfile.root), 0..skyfile.used, trace).await?.content.clone()),
        }
    }

    /// Where a pin says that a block is, if it holds it.
    pub async fn find_row(
        &self,
        open: &OpenPin,
        bytes: &[u8],
        multihash: &Multihash,
        trace: &Arc<Trace>,
    ) -> Result<Option<Located>, StoreError> {
        if let Some(row) = open.pin.rows.iter().find(|row| row.multihash_bytes() == bytes) {
            return locate_by_pin_row(&open.pin, row).map(Some);
        }
        let Some(pack) = &open.pack else { return Ok(None) };
        let Some(row) = self.find_in_pack(pack, multihash, trace).await? else { return Ok(None) };
        let stored = |content: Content, start: u64, length: u64| {
            if start.checked_add(length).is_none_or(|end| end > content.size) {
                return Err(StoreError::BadPin("a row points outside its skyfile".to_owned()));
            }
            Ok(LocatedPlace::Stored(Extent { content, start, length }))
        };
        let located = match row.place {
            Place::Inline { offset, len } => {
                let place = stored(pack.content.clone(), offset, len.into())?;
                Located { prefix: Bytes::new(), suffix: Bytes::new(), place }
            }
            Place::Range { skyfile_index, offset, len, prefix, suffix } => {
                let content = pack.skyfiles.get(skyfile_index as usize).ok_or_else(no_such_skyfile)?;
                Located { prefix, suffix, place: stored(content.clone(), offset, len.into())? }
            }
        };
        Ok(Some(located))
    }
}

/// Where pins that may hold a block are found: first those of which it is the root, which may be partial and lack it.
#[derive(Clone, Copy)]
enum Source {
    Roots,
    Blocks,
}

fn no_such_skyfile() -> StoreError {
    StoreError::BadPin("a row names a skyfile that is not listed".to_owned())
}

fn locate_by_pin_row(pin: &Pin, row: &PinRow) -> Result<Located, StoreError> {
    let place = match &row.data {
        Some(data) => LocatedPlace::Here(Bytes::copy_from_slice(data)),
        None => {
            let skyfile = pin.skyfiles.get(row.sky as usize).ok_or_else(no_such_skyfile)?;
            let content = Content::from_ref(skyfile).ok_or_else(no_such_skyfile)?;
            if row.off.checked_add(row.len.into()).is_none_or(|end| end > content.size) {
                return Err(StoreError::BadPin("a row points outside its skyfile".to_owned()));
            }
            LocatedPlace::Stored(Extent { content, start: row.off, length: row.len.into() })
        }
    };
    Ok(Located { prefix: Bytes::copy_from_slice(&row.pre), suffix: Bytes::copy_from_slice(&row.suf), place })
}
