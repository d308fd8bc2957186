//! What goes on behind the requests: the catalog is rebuilt and made durable, blocks are put into its table, uploads
//! that were acknowledged are made complete. Everything is resumed from the pins, nothing from a queue of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::address::Multihash;
use crate::measure::Trace;
use crate::records::{Extent, Group, Kind, Record};
use crate::renter::{Completion, Expect};
use crate::sector::Root;

use super::catalog::{BlocksIn, PinRow};
use super::commit::Durability;
use super::{Inner, Pin, Store, StoreError};

/// How long commits may stay undurable in the catalog. They are only a cache, so this bounds the work after a crash.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Between two tries of a rebuild while too few hosts answer.
const REBUILD_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Between two rounds over pins that are not complete, when nothing new asks for one sooner.
const COMPLETE_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Pins looked at in one step of a round.
const PAGE_PINS: usize = 256;
/// A pack of so many blocks is looked up in its own index, which is on this node's disk already: in the table of blocks each
/// row takes some 2 us and 50 bytes more.
const OWN_INDEX_ROWS_MIN: u64 = 1 << 20;
/// So many such packs: a block that is nowhere costs a look into each, a few microseconds. Those beyond go into the table.
const OWN_INDEX_PINS_MAX: usize = 128;
/// Keys read of a pack before they go into the table.
const INDEX_KEYS_AT_ONCE: usize = 20_000;

/// Which of a pin's skyfiles is meant.
#[derive(Clone, Copy)]
enum Listed {
    /// One with content; the pack lists its pieces if the pin does not.
    Skyfile,
    /// The pack's own; its base sector lists its pieces if the pin does not.
    Pack,
}

/// Signals to the background tasks.
#[derive(Default)]
pub struct Upkeep {
    pub something_to_complete: Notify,
    pub something_to_index: Notify,
}

/// What the background is doing, for the operator's page.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Status {
    /// Every pin is known to this node.
    pub catalog_complete: bool,
    pub pins: u64,
    /// Pins whose blocks are still being put into the catalog's table.
    pub pins_to_index: usize,
    /// Body bytes in memory.
    pub memory_bytes: u64,
}

impl Store {
    /// Starts the background tasks; they stop when `stop` is cancelled, and `tasks` then runs empty.
    pub fn start_upkeep(&self, tasks: &TaskTracker, stop: CancellationToken) {
        let each: [fn(Arc<Inner>) -> futures::future::BoxFuture<'static, ()>; 4] = [
            |inner| Box::pin(async move { inner.rebuild_until_complete().await }),
            |inner| Box::pin(async move { inner.keep_completing().await }),
            |inner| Box::pin(async move { inner.keep_indexing().await }),
            |inner| Box::pin(async move { inner.keep_flushing().await }),
        ];
        for task in each {
            let (work, stop) = (task(self.inner.clone()), stop.clone());
            tasks.spawn(async move { stop.run_until_cancelled(work).await });
        }
    }

    /// Makes the catalog durable and marks a clean stop. Call after the background tasks have ended.
    pub fn close(&self) -> Result<(), StoreError> {
        // Their blocks are only known to this process: the next one must not call them absent before it has looked.
        if !self.inner.unindexed.lock().expect("no panic under this lock").is_empty() {
            return Ok(self.inner.catalog.flush()?);
        }
        Ok(self.inner.catalog.close()?)
    }

    pub fn status(&self) -> Result<Status, StoreError> {
        Ok(Status {
            catalog_complete: self.inner.catalog.is_complete(),
            pins: self.inner.catalog.pin_count()?,
            pins_to_index: self.inner.unindexed.lock().expect("no panic under this lock").len(),
            memory_bytes: self.inner.contents.memory_bytes(),
        })
    }
}

impl Inner {
    /// Asks the hosts for the pins of one root, while the catalog cannot tell. Budgeted: at most
    /// [`super::ASKS_AT_ONCE_MAX`] at once, the rest are told to come again.
    pub async fn ask_hosts_for_pins(self: &Arc<Self>, multihash: &Multihash, trace: &Arc<Trace>) -> Result<(), StoreError> {
        let _permit = self.asks.try_acquire().map_err(|_| StoreError::Rebuilding)?;
        trace.index_from_hosts();
        trace.serial_round();
        let group = Group::new(Kind::Pin, &hex::encode(multihash.to_bytes())).expect("hex is a group's text");
        for record in self.records.group(&group).await?.records {
            self.take_in(&record).await?;
        }
        Ok(())
    }

    /// One pin record as found on the hosts: adopted, or forgotten when it says removed.
    async fn take_in(self: &Arc<Self>, record: &Record) -> Result<(), StoreError> {
        let key = record.key.text().to_owned();
        let version = record.order.number();
        let known = self.catalog.by_key(&key)?;
        match (record.removed, known) {
            (true, Some(row)) => self.forget(&key, &Pin::decode(&row.body)?).await,
            (true, None) => Ok(()),
            (false, Some(row)) if row.version >= version => Ok(()),
            (false, _) => self.adopt(key, version, record.body.to_vec(), Durability::Acknowledged).await,
        }
    }

    async fn rebuild_until_complete(self: Arc<Self>) {
        self.find_unindexed();
        while !self.catalog.is_complete() {
            let begun = std::time::Instant::now();
            match self.rebuild().await {
                Extent::Complete => {
                    self.catalog.set_complete();
                    tracing::info!(took_ms = begun.elapsed().as_millis() as u64, "the catalog is complete");
                    return;
                }
                Extent::Partial => tracing::warn!("the catalog is not complete: too few hosts list their pins; trying again"),
            }
            tokio::time::sleep(REBUILD_AGAIN_AFTER).await;
        }
    }

    async fn rebuild(self: &Arc<Self>) -> Extent {
        let mut scan = self.records.scan(Kind::Pin);
        while let Some(found) = scan.next().await {
            // One unreadable pin must not keep all others from being served.
            if let Err(error) = self.take_in(&found.record).await {
                tracing::warn!(%error, pin = found.record.key.text(), "a pin on the hosts cannot be used");
            }
        }
        scan.extent()
    }

    /// Goes over the pins that this node has not seen complete, and writes the pieces that are missing.
    async fn keep_completing(self: Arc<Self>) {
        loop {
            self.complete_round().await;
            let again = tokio::time::sleep(COMPLETE_AGAIN_AFTER);
            tokio::select! {
                () = self.upkeep.something_to_complete.notified() => {}
                () = again => {}
            }
        }
    }

    async fn complete_round(self: &Arc<Self>) {
        let mut from = 0;
        loop {
            let rows = match self.catalog.page(from, PAGE_PINS) {
                Ok(rows) => rows,
                Err(error) => return tracing::warn!(%error, "pins cannot be listed for completion"),
            };
            let Some(last) = rows.last() else { return };
            from = last.number + 1;
            for row in rows.iter().filter(|row| !row.complete) {
                match self.complete_pin(row).await {
                    Ok(Completion::Complete) => {
                        if let Err(error) = self.catalog.mark_complete(&row.key) {
                            tracing::warn!(%error, "a completed pin could not be marked");
                        }
                    }
                    Ok(Completion::Missing(pieces)) => tracing::debug!(pin = row.key, ?pieces, "an upload is not complete yet"),
                    Err(error) => tracing::debug!(%error, pin = row.key, "an upload could not be completed yet"),
                }
            }
        }
    }

    async fn complete_pin(self: &Arc<Self>, row: &PinRow) -> Result<Completion, StoreError> {
        let trace = Trace::new();
        let pin = Pin::decode(&row.body)?;
        let mut missing = Vec::new();
        let of_pin = pin.skyfiles.iter().map(|skyfile| (skyfile, Listed::Skyfile));
        for (skyfile, listed) in of_pin.chain(pin.pack.iter().map(|pack| (pack, Listed::Pack))) {
            if let Completion::Missing(pieces) =
                self.renter.complete_base(&Root(skyfile.root), Expect { data_length: Some(skyfile.used) }).await?
            {
                missing.extend(pieces);
            }
            if skyfile.k > 0 {
                // A base sector whose fanout and metadata do not fit it points to more sectors.
                let open = self.skyfile_head(Root(skyfile.root), 0..skyfile.used, &trace).await?;
                for root in open.head.extension.iter() {
                    if let Completion::Missing(pieces) = self.renter.complete_base(root, Expect { data_length: None }).await? {
                        missing.extend(pieces);
                    }
                }
            }
            let content = match listed {
                Listed::Skyfile => self.content_in_pin(row, skyfile, &trace).await?,
                Listed::Pack => self.content_of(skyfile, &trace).await?,
            };
            for slab in content.slabs() {
                if let Completion::Missing(pieces) = self.renter.complete_slab(&slab).await? {
                    missing.extend(pieces);
                }
            }
        }
        Ok(if missing.is_empty() { Completion::Complete } else { Completion::Missing(missing) })
    }

    /// Puts the blocks of new pins into the catalog's table.
    async fn keep_indexing(self: Arc<Self>) {
        self.find_unindexed();
        loop {
            let next = self.unindexed.lock().expect("no panic under this lock").values().next().cloned();
            let Some(row) = next else {
                self.upkeep.something_to_index.notified().await;
                continue;
            };
            if let Err(error) = self.clone().index_pin(&row).await {
                tracing::warn!(%error, pin = row.key, "the blocks of a pin cannot be indexed now");
                tokio::select! {
                    () = self.upkeep.something_to_index.notified() => {}
                    () = tokio::time::sleep(REBUILD_AGAIN_AFTER) => {}
                }
                continue;
            }
            self.unindexed.lock().expect("no panic under this lock").remove(&row.key);
        }
    }

    fn find_unindexed(&self) {
        let mut from = 0;
        while let Ok(rows) = self.catalog.page(from, PAGE_PINS) {
            let Some(last) = rows.last() else { return };
            from = last.number + 1;
            let mut unindexed = self.unindexed.lock().expect("no panic under this lock");
            let mut own_index = self.own_index.lock().expect("no panic under this lock");
            for row in rows {
                match row.blocks_in {
                    BlocksIn::Nowhere => drop(unindexed.insert(row.key.clone(), row)),
                    BlocksIn::OwnIndex => drop(own_index.insert(row.key.clone(), row)),
                    BlocksIn::Table | BlocksIn::OtherPin => {}
                }
            }
        }
    }

    async fn index_pin(self: Arc<Self>, row: &PinRow) -> Result<(), StoreError> {
        let trace = Trace::new();
        let pin = Pin::decode(&row.body)?;
        if pin.rows.is_empty()
            && let Some(pack) = &pin.pack
            && self.carried_by_another(&row.key, &pack.root)?
        {
            return Ok(self.catalog.set_blocks_in(&row.key, BlocksIn::OtherPin)?);
        }
        self.clone().index_pieces(row, &pin, &trace).await?;
        let mut open = self.open_pin(&row.key, &row.body, &trace).await?;
        if let (Some(pack), Some(at)) = (open.pack(), &pin.pack)
            && !pack.rows.is_local()
        {
            self.fetch_index_file(&Root(at.root), pack, &trace).await?;
            self.packs.invalidate(&Root(at.root)).await;
            open = self.open_pin(&row.key, &row.body, &trace).await?;
        }
        let row_count = open.pack().map_or(0, |pack| pack.rows.row_count());
        if row_count >= OWN_INDEX_ROWS_MIN && self.own_index.lock().expect("no panic under this lock").len() < OWN_INDEX_PINS_MAX {
            self.catalog.set_blocks_in(&row.key, BlocksIn::OwnIndex)?;
            self.own_index.lock().expect("no panic under this lock").insert(row.key.clone(), row.clone());
            return Ok(());
        }
        let row = row.clone();
        let work = tokio::task::spawn_blocking(move || self.put_in_table(&row, &open));
        work.await.expect("the catalog does not panic")
    }

    /// Puts the roots of a pin's pieces into the same table: each is asked for by its root.
    async fn index_pieces(self: Arc<Self>, row: &PinRow, pin: &Pin, trace: &Arc<Trace>) -> Result<(), StoreError> {
        for skyfile in pin.skyfiles.iter().filter(|skyfile| !skyfile.is_small()) {
            let content = self.content_in_pin(row, skyfile, trace).await?;
            let (inner, number) = (self.clone(), row.number);
            let work = move || inner.catalog.index_some(number, content.piece_roots().iter().map(|root| root.0));
            tokio::task::spawn_blocking(work).await.expect("the catalog does not panic")?;
        }
        Ok(())
    }

    /// Whether the blocks of this pack are in the catalog under another pin.
    fn carried_by_another(&self, key: &str, pack_root: &[u8; 32]) -> Result<bool, StoreError> {
        let carries = |row: &PinRow| {
            row.key != key
                && matches!(row.blocks_in, BlocksIn::Table | BlocksIn::OwnIndex)
                && Pin::decode(&row.body).is_ok_and(|pin| pin.pack.is_some_and(|pack| pack.root == *pack_root))
        };
        Ok(self.catalog.by_root(pack_root)?.iter().any(carries))
    }

    fn put_in_table(&self, row: &PinRow, open: &super::blocks::OpenPin) -> Result<(), StoreError> {
        let of_rows = open.pin.rows.iter().filter_map(|row| Multihash::from_bytes(row.multihash_bytes()).ok());
        let mut keys: Vec<[u8; 32]> = of_rows.filter_map(|multihash| crate::tree::pack::block_key(&multihash)).collect();
        if let Some(pack) = open.pack() {
            pack.rows.each_local_key(|key, _| {
                keys.push(*key);
                if keys.len() < INDEX_KEYS_AT_ONCE {
                    return Ok(());
                }
                Ok(self.catalog.index_some(row.number, keys.drain(..))?)
            })?;
        }
        Ok(self.catalog.index_blocks(&row.key, row.number, keys.into_iter())?)
    }

    async fn keep_flushing(self: Arc<Self>) {
        loop {
            tokio::time::sleep(FLUSH_EVERY).await;
            let inner = self.clone();
            let flushed = tokio::task::spawn_blocking(move || inner.catalog.flush()).await;
            if let Err(error) = flushed.expect("the catalog does not panic") {
                tracing::warn!(%error, "the catalog could not be made durable");
            }
        }
    }
}
