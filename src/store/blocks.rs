//! From a CID to verified bytes: which pin holds the block, where its row says the bytes are, and the check.
//!
//! A row is *proved* by the portal's signature on its pin: the pin names the pack's sector root, the pack's hash tree
//! covers its rows, and the row's skyfile is covered by piece roots that stand in the pack. So a range of a raw leaf
//! needs only the sector tree. Whole blocks are hashed against their CID (`design.md` 6).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};

use crate::address::{Cid, Multihash, check_bytes, hash};
use crate::measure::{Tier, Trace};
use crate::sector::{Root, SECTOR_BYTES};
use crate::tree::pack::{PackError, PackHead, PackIndex, Place, SkyfileRef};

use super::content::{Content, Extent, Position, SMALL_UNIT_BYTES, UNIT_BYTES};
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
    content: Content,
    pub index: PackIndex,
    /// The contents behind the index's skyfile table, in its order.
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

    /// Where its bytes lie in the content of this skyfile, if they do.
    pub fn stretch_of(&self, root: &Root) -> Option<std::ops::Range<u64>> {
        match &self.place {
            LocatedPlace::Stored(extent) if extent.content.root == *root => Some(extent.start..extent.start + extent.length),
            _ => None,
        }
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
        let block = self.assemble(&located, trace, Count::Body).await?;
        self.check(cid, block)
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
        let block = self.check(cid, self.assemble(&located, trace, Count::Index).await?)?;
        if block.len() as u64 <= SMALL_UNIT_BYTES {
            self.nodes.insert(key, block.clone()).await;
        }
        Ok(block)
    }

    /// The bytes of a block as index bytes, not hashed: for looking through what is stored, never for serving it.
    pub async fn assemble_index(&self, located: &Located, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        self.assemble(located, trace, Count::Index).await
    }

    fn check(&self, cid: &Cid, block: Bytes) -> Result<Bytes, StoreError> {
        // The sectors were right, so the row is wrong: whoever signed the pin said a falsehood, or a disk here did.
        check_bytes(cid.hash(), &block).map_err(|_| StoreError::WrongBlock(Box::new(*cid)))?;
        Ok(block)
    }

    async fn assemble(&self, located: &Located, trace: &Arc<Trace>, count: Count) -> Result<Bytes, StoreError> {
        if located.length() > BLOCK_BYTES_MAX {
            return Err(StoreError::BlockTooLarge { length: located.length() });
        }
        let extent = match &located.place {
            LocatedPlace::Here(bytes) => {
                if count == Count::Body {
                    trace.body(Tier::Memory, bytes.len() as u64);
                }
                return Ok(bytes.clone());
            }
            LocatedPlace::Stored(extent) => extent,
        };
        let mut parts = Vec::new();
        match count {
            Count::Index => {
                let range = extent.start..extent.start + extent.length;
                parts.push(self.contents.index_bytes(&extent.content, range, trace).await?);
            }
            Count::Body => {
                let reads = self.contents.cut(extent, 0..extent.length, Position::Later);
                let reads = reads.into_iter().map(|range| self.contents.body(extent, range, trace));
                parts = futures::future::try_join_all(reads).await?;
            }
        }
        if parts.len() == 1 && located.prefix.is_empty() && located.suffix.is_empty() {
            return Ok(parts.swap_remove(0));
        }
        let mut block = BytesMut::with_capacity(located.length() as usize);
        block.extend_from_slice(&located.prefix);
        parts.iter().for_each(|part| block.extend_from_slice(part));
        block.extend_from_slice(&located.suffix);
        Ok(block.freeze())
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

    async fn locate_in_catalog(&self, multihash: &Multihash, trace: &Arc<Trace>) -> Result<Option<Located>, StoreError> {
        let bytes = multihash.to_bytes();
        let mut failure = None;
        let mut denied = None;
        for source in [Source::Roots, Source::Blocks] {
            let candidates = match source {
                Source::Roots => self.catalog.by_root(&bytes)?,
                Source::Blocks => {
                    // These first: a pin leaves them once it is in the table, and must not be missed in both.
                    let unindexed: Vec<_> = self.unindexed.lock().expect("no panic under this lock").values().cloned().collect();
                    let key = crate::tree::pack::block_key(multihash);
                    let mut found = key.map_or(Ok(Vec::new()), |key| self.catalog.by_block(&key))?;
                    found.extend(unindexed);
                    found
                }
            };
            for row in candidates {
                match self.open_pin(&row.key, &row.body, trace).await {
                    Ok(open) if self.denied.of_pin(&open.pin).is_some() => {
                        // Another pin, of other content, may hold the same block.
                        if self.find_row(&open, &bytes, multihash)?.is_some() {
                            denied = denied.or(self.denied.of_pin(&open.pin));
                        }
                    }
                    Ok(open) => {
                        if let Some(located) = self.find_row(&open, &bytes, multihash)? {
                            return Ok(Some(located));
                        }
                    }
                    // Another pin may hold the block, too; the failure is told only if none does.
                    Err(error) => failure = Some(error),
                }
            }
        }
        let failure = failure.or(denied.map(StoreError::denied));
        failure.map_or(Ok(None), Err)
    }

    /// The pin's parsed body and its pack, out of memory, the node's disk, or the hosts.
    pub async fn open_pin(&self, key: &str, body: &[u8], trace: &Arc<Trace>) -> Result<OpenPin, StoreError> {
        let pin = match self.pins.get(key).await {
            Some(pin) => pin,
            None => {
                let pin = Arc::new(Pin::decode(body)?);
                self.pins.insert(key.to_owned(), pin.clone()).await;
                pin
            }
        };
        let pack = match &pin.pack {
            Some(pack) => Some(self.open_pack(pack, trace).await?),
            None => None,
        };
        Ok(OpenPin { pin, pack })
    }

    pub async fn open_pack(&self, pack: &SkyfileRef, trace: &Arc<Trace>) -> Result<Arc<OpenPack>, StoreError> {
        let bad = |error: PackError| StoreError::BadPin(format!("its pack cannot be read: {error}"));
        let root = Root(pack.root);
        let load = async {
            let content = self.content_of(pack, trace).await?;
            let bytes = match self.packs_on_disk.load(&root) {
                Some(bytes) => bytes,
                None => self.fetch_pack_index(root, &content, trace).await?,
            };
            let head = PackHead::parse(&bytes, content.size).map_err(bad)?;
            let index = PackIndex::parse(&head, bytes.slice(PackHead::BYTES..)).map_err(bad)?;
            let skyfiles = index.skyfiles().iter().map(|skyfile| Content::from_ref(skyfile).ok_or_else(no_such_skyfile));
            let skyfiles = skyfiles.collect::<Result<Vec<_>, _>>()?;
            Ok(Arc::new(OpenPack { content, index, skyfiles }))
        };
        self.packs.try_get_with(root, load).await.map_err(|error: Arc<StoreError>| error.copy())
    }

    /// Header and index of a pack, from hosts, and from then on on this node's disk. A pack within one base sector
    /// comes in one read; of a larger one the header says where the index is.
    async fn fetch_pack_index(&self, root: Root, content: &Content, trace: &Arc<Trace>) -> Result<Bytes, StoreError> {
        trace.index_from_hosts();
        let first = if content.size <= SECTOR_BYTES as u64 { content.size } else { PackHead::BYTES as u64 };
        let start = self.contents.fetch(content, 0..first, trace).await?;
        let head = PackHead::parse(&start, content.size)
            .map_err(|error| StoreError::BadPin(format!("its pack cannot be read: {error}")))?;
        let mut bytes = BytesMut::from(&start[..PackHead::BYTES]);
        if first == content.size {
            self.contents.keep_first_pages(content, &start);
            bytes.extend_from_slice(&start[head.index.start as usize..]);
        } else {
            let mut at = head.index.start;
            while at < head.index.end {
                let end = (at + UNIT_BYTES).min(head.index.end);
                bytes.extend_from_slice(&self.contents.fetch(content, at..end, trace).await?);
                at = end;
            }
        }
        self.packs_on_disk.keep(&root, &bytes[..PackHead::BYTES], &bytes[PackHead::BYTES..]);
        Ok(bytes.freeze())
    }

    /// The content behind a reference; where piece roots were left out, the base sector is read for them.
    pub async fn content_of(&self, skyfile: &SkyfileRef, trace: &Arc<Trace>) -> Result<Content, StoreError> {
        match Content::from_ref(skyfile) {
            Some(content) => Ok(content),
            None => Ok(self.skyfile_head(Root(skyfile.root), skyfile.used, trace).await?.content.clone()),
        }
    }

    /// Where a pin says that a block is, if it holds it.
    pub fn find_row(&self, open: &OpenPin, bytes: &[u8], multihash: &Multihash) -> Result<Option<Located>, StoreError> {
        if let Some(row) = open.pin.rows.iter().find(|row| row.multihash_bytes() == bytes) {
            return locate_by_pin_row(&open.pin, row).map(Some);
        }
        let Some(pack) = &open.pack else { return Ok(None) };
        let Some(row) = pack.index.lookup(multihash) else { return Ok(None) };
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Count {
    Body,
    Index,
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
