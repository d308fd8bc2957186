//! The write side: slabs and base sectors go out through here, and a pin at its quorum is the commit point.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::address::Cid;
use crate::deny::Subject;
use crate::measure::{Class, Endpoint, Trace};
use crate::records::{Kind, Order, Record, RecordKey};
use crate::renter::Written;
use crate::sector::{EncodedSlab, Root, SectorObject, SlabEncoder};
use crate::tree::pack::PackHead;

use super::catalog::BlocksIn;
use super::catalog::PinRow as CatalogPin;
use super::news::Absence;
use super::pack_rows::bad_pack;
use super::packs::NewPackIndex;
use super::{Inner, Pin, Store, StoreError, pin_key};

/// A pin's id is drawn anew for each upload, so its record has no earlier version.
const FIRST_VERSION: u64 = 1;

/// How much an upload survives at this moment (`design.md` 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the gateway, and any f hosts.
    Acknowledged,
    /// Any m hosts.
    Complete,
}

impl Durability {
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Acknowledged => "acknowledged",
            Durability::Complete => "complete",
        }
    }
}

/// A pin ready to be committed.
pub struct Commit {
    pub key: String,
    pub pin: Pin,
    /// Of its pack, whose index is kept on this node so that it need not be fetched. Several pins with one pack need one.
    pub pack: Option<PackCopy>,
    pub durability: Durability,
}

/// What this node has of a pack that was just made.
pub enum PackCopy {
    /// All of it.
    Whole(Bytes),
    /// Its index, written to this node's disk.
    Index(Box<NewPackIndex>),
}

impl Store {
    /// Data and parity pieces of a slab.
    pub fn redundancy(&self) -> (u8, u8) {
        let options = self.inner.renter.options();
        (options.k, options.m)
    }

    /// A file on this node's disk for the index of a pack that is being made.
    pub fn new_pack_index(&self) -> std::io::Result<NewPackIndex> {
        self.inner.packs_on_disk.create()
    }

    /// Where what is only needed while something is stored may go.
    pub fn scratch(&self) -> &std::path::Path {
        &self.inner.scratch
    }

    /// The roots that stand in a pin's pack.
    pub async fn pack_roots(&self, pin: &Pin) -> Result<Vec<Cid>, StoreError> {
        let pack = pin.pack.as_ref().ok_or_else(|| StoreError::BadPin("it has no pack".to_owned()))?;
        self.inner.pack_roots(pack, &Trace::new()).await
    }

    /// Version of the host table; sectors carry it as a hint.
    pub fn epoch(&self) -> u64 {
        self.inner.renter.table().epoch
    }

    /// An encoder with memory for one slab; waits while the process has its share in use.
    pub async fn slab_encoder(&self) -> SlabEncoder {
        let (k, m) = self.redundancy();
        let buffers = self.inner.renter.acquire_slab().await;
        SlabEncoder::new(k, m, self.epoch(), buffers).expect("the redundancy was checked at the start")
    }

    /// Stores a slab. Returns when it is acknowledged; the rest goes on behind the returned handle.
    pub async fn write_slab(&self, slab: EncodedSlab) -> Result<Written, StoreError> {
        let begun = std::time::Instant::now();
        let written = self.inner.renter.write_slab(slab).await?;
        self.inner.measures.observe(Endpoint::SlabUpload, Class::Hosts, begun.elapsed());
        Ok(written)
    }

    /// Stores copies of a base sector.
    pub async fn write_base(&self, sector: SectorObject) -> Result<Written, StoreError> {
        let begun = std::time::Instant::now();
        let written = self.inner.renter.write_base(sector).await?;
        self.inner.measures.observe(Endpoint::BaseUpload, Class::Hosts, begun.elapsed());
        Ok(written)
    }

    /// Commits an upload. When this returns, its pin is at the quorum and everything it names can be read here.
    /// Runs to its end even if the caller goes away.
    pub async fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.commit(commit).await }).await.expect("a commit does not panic")
    }

    /// The pin made with this idempotency key's hash.
    pub fn pin_by_idem(&self, idem: &[u8; 32]) -> Result<Option<(Pin, Durability)>, StoreError> {
        let Some(row) = self.inner.catalog.by_idem(idem)? else { return Ok(None) };
        let durability = if row.complete { Durability::Complete } else { Durability::Acknowledged };
        Ok(Some((Pin::decode(&row.body)?, durability)))
    }

    /// At most `max` pins, from the catalog's number `from` on, with their numbers and key texts.
    pub fn pins(&self, from: u64, max: usize) -> Result<Vec<(CatalogPin, Pin)>, StoreError> {
        let rows = self.inner.catalog.page(from, max)?;
        rows.into_iter().map(|row| Pin::decode(&row.body).map(|pin| (row, pin))).collect()
    }

    /// Removes all pins of a root: CID or sector root. Returns how many. What they alone kept alive is then absent.
    pub async fn unpin(&self, root: &UnpinRoot) -> Result<usize, StoreError> {
        Ok(self.unpin_of(root, &Whose::Everybody).await?.removed)
    }

    /// The same for the pins of one owner.
    pub async fn unpin_of(&self, root: &UnpinRoot, whose: &Whose) -> Result<Unpinned, StoreError> {
        let name = match root {
            UnpinRoot::Cid(cid) => cid.hash().to_bytes(),
            UnpinRoot::Skyfile { root, .. } => root.to_vec(),
        };
        if self.inner.others_write {
            // Pins that other nodes have made since the last look are meant as well. If that cannot be told now, they stay.
            let _ = self.inner.catch_up().await;
        }
        let mut unpinned = Unpinned { removed: 0, left: 0 };
        for row in self.inner.catalog.by_root(&name)? {
            let pin = Pin::decode(&row.body)?;
            if matches!(root, UnpinRoot::Skyfile { offset, .. } if pin.sector_offset().unwrap_or(0) != *offset) {
                continue;
            }
            if matches!(whose, Whose::Owner(owner) if pin.owner != *owner) {
                unpinned.left += 1;
                continue;
            }
            let inner = self.inner.clone();
            tokio::spawn(async move { inner.unpin(row).await }).await.expect("an unpin does not panic")?;
            unpinned.removed += 1;
        }
        Ok(unpinned)
    }

    /// Pins the skyfile at `offset` of this sector once more, for another owner: the same content under a record of their own.
    /// Whoever has such a pin keeps that.
    pub async fn pin_for(&self, root: &[u8; 32], offset: u32, owner: &str, created_ms: u64) -> Result<(), StoreError> {
        if let Some(reason) = self.inner.denied.check(&Subject::Sector { root }) {
            return Err(StoreError::denied(reason));
        }
        // In this order, as for every absence: the pin may come with the catalog's last page.
        let complete = self.inner.catalog.is_complete();
        let mut found = self.inner.pin_to_share(root, offset, owner)?;
        let mut absence = if complete { Absence::Sure } else { Absence::Unsure };
        if matches!(found, Shareable::None) && complete && self.inner.others_write {
            absence = self.inner.catch_up().await;
            found = self.inner.pin_to_share(root, offset, owner)?;
        }
        let (row, pin) = match (found, absence) {
            (Shareable::Theirs, _) => return Ok(()),
            (Shareable::Of(found), _) => *found,
            (Shareable::None, Absence::Sure) => return Err(StoreError::NotFound),
            (Shareable::None, Absence::Unsure) => return Err(StoreError::Rebuilding),
        };
        let cid = pin.cid().ok_or_else(|| StoreError::BadPin("it has no CID".to_owned()))?;
        let durability = if row.complete { Durability::Complete } else { Durability::Acknowledged };
        let commit = Commit { key: pin_key(&cid, &rand::random()), pin: pin.of(owner, created_ms), pack: None, durability };
        self.commit(commit).await
    }
}

/// A pin that can be had for another owner, too.
enum Shareable {
    /// The owner has one.
    Theirs,
    Of(Box<(CatalogPin, Pin)>),
    None,
}

/// Whose pins are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    Everybody,
    Owner(String),
}

/// What became of the pins of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpinned {
    pub removed: usize,
    /// Of others.
    pub left: usize,
}

/// What `pin rm` names.
#[derive(Clone, Copy, Debug)]
pub enum UnpinRoot {
    Cid(Cid),
    /// The skyfile of an upload, where other skyfiles may stand in the same sector.
    Skyfile {
        root: [u8; 32],
        offset: u32,
    },
}

/// Whether another pin has the pack of one that goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heir {
    None,
    Some,
}

impl Inner {
    /// Among the pins of a skyfile's sector root that are whole: the newest, or one that the owner has.
    fn pin_to_share(&self, root: &[u8; 32], offset: u32, owner: &str) -> Result<Shareable, StoreError> {
        let mut found = Shareable::None;
        for row in self.catalog.by_root(root)? {
            let pin = Pin::decode(&row.body)?;
            if pin.partial || pin.skylink().is_none_or(|link| link.hash() != root) || pin.sector_offset() != Some(offset) {
                continue;
            }
            if pin.owner == owner {
                return Ok(Shareable::Theirs);
            }
            if matches!(found, Shareable::None) {
                found = Shareable::Of(Box::new((row, pin)));
            }
        }
        Ok(found)
    }

    async fn commit(self: Arc<Self>, commit: Commit) -> Result<(), StoreError> {
        let body = commit.pin.encode();
        let key = RecordKey::new(Kind::Pin, &commit.key).expect("pin keys are made of hex and one slash");
        let begun = std::time::Instant::now();
        self.records.put(Record::new(key, Order::version(FIRST_VERSION), body.clone())).await?;
        self.measures.observe(Endpoint::RecordWrite, Class::Hosts, begun.elapsed());
        if let (Some(copy), Some(pack)) = (commit.pack, &commit.pin.pack) {
            self.clone().keep_index(Root(pack.root), copy).await?;
        }
        self.adopt(commit.key, FIRST_VERSION, body, commit.durability).await
    }

    async fn keep_index(self: Arc<Self>, root: Root, copy: PackCopy) -> Result<(), StoreError> {
        let keep = move || match copy {
            PackCopy::Whole(bytes) => {
                let head = PackHead::parse(&bytes, bytes.len() as u64).map_err(bad_pack)?;
                self.packs_on_disk.keep(&root, &bytes[..PackHead::BYTES], &bytes[head.index.start as usize..]);
                Ok(())
            }
            PackCopy::Index(new) => {
                // The hosts have it, too: it is fetched later.
                if let Err(error) = self.packs_on_disk.persist(&root, *new) {
                    tracing::warn!(%error, pack = %root, "a pack index could not be kept on this node's disk");
                }
                Ok(())
            }
        };
        tokio::task::spawn_blocking(keep).await.expect("keeping an index does not panic")
    }

    /// Takes a pin that is at its quorum into the catalog.
    pub async fn adopt(
        self: &Arc<Self>,
        key: String,
        version: u64,
        body: Vec<u8>,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let pin = Pin::decode(&body)?;
        let complete = durability == Durability::Complete;
        // A root of its own is found by the table of roots.
        let has_more = pin.pack.is_some() || pin.rows.len() > 1;
        let inner = self.clone();
        let inserted = tokio::task::spawn_blocking(move || {
            // Before the pin can be seen: who finds it must find its blocks, too.
            let appears = |number: u64| {
                if has_more {
                    let row = CatalogPin {
                        number,
                        key: key.clone(),
                        version,
                        complete,
                        blocks_in: BlocksIn::Nowhere,
                        body: body.clone(),
                    };
                    inner.unindexed.lock().expect("no panic under this lock").insert(key.clone(), row);
                }
            };
            Ok::<_, StoreError>(inner.catalog.insert(&key, version, complete, &body, &pin.names(), appears)?)
        });
        inserted.await.expect("the catalog does not panic")?;
        if !complete {
            self.upkeep.something_to_complete.notify_one();
        }
        if has_more {
            self.upkeep.something_to_index.notify_one();
        }
        Ok(())
    }

    async fn unpin(self: Arc<Self>, row: CatalogPin) -> Result<(), StoreError> {
        let pin = Pin::decode(&row.body)?;
        let key = RecordKey::new(Kind::Pin, &row.key).map_err(|error| StoreError::BadPin(error.to_string()))?;
        self.records.remove(&key).await?;
        self.forget(&row.key, &pin).await
    }

    /// Takes a pin out of the catalog and out of memory.
    pub async fn forget(self: &Arc<Self>, key: &str, pin: &Pin) -> Result<(), StoreError> {
        self.news.removed(key);
        let heir = self.hand_on_blocks(key, pin)?;
        self.catalog.remove(key, &pin.names())?;
        self.unindexed.lock().expect("no panic under this lock").remove(key);
        self.own_index.lock().expect("no panic under this lock").remove(key);
        self.pins.invalidate(key).await;
        // What the pin alone kept alive must not be served out of memory.
        self.unpins.fetch_add(1, Ordering::Release);
        self.located.clear();
        self.nodes.invalidate_all();
        self.heads.invalidate_all();
        if let Some(pack) = pin.pack.as_ref().filter(|_| heir == Heir::None) {
            self.packs.invalidate(&Root(pack.root)).await;
            self.packs_on_disk.forget(&Root(pack.root));
        }
        Ok(())
    }

    /// A pack's blocks are in the catalog under one of its pins. Before that pin goes, another one takes them over: looked
    /// into as it is until the background has indexed it.
    fn hand_on_blocks(&self, key: &str, pin: &Pin) -> Result<Heir, StoreError> {
        let Some(pack) = &pin.pack else { return Ok(Heir::None) };
        let others = self.catalog.by_root(&pack.root)?.into_iter().filter(|other| other.key != key);
        let has_it =
            |other: &CatalogPin| Pin::decode(&other.body).is_ok_and(|pin| pin.pack.is_some_and(|its| its.root == pack.root));
        let Some(mut heir) = others.into_iter().find(has_it) else { return Ok(Heir::None) };
        let carries = self.catalog.by_key(key)?.is_some_and(|row| row.blocks_in != BlocksIn::OtherPin);
        if carries && heir.blocks_in == BlocksIn::OtherPin {
            heir.blocks_in = BlocksIn::Nowhere;
            self.catalog.set_blocks_in(&heir.key, BlocksIn::Nowhere)?;
            self.unindexed.lock().expect("no panic under this lock").insert(heir.key.clone(), heir);
            self.upkeep.something_to_index.notify_one();
        }
        Ok(Heir::Some)
    }
}
