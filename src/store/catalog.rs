//! A node's catalog: which pins there are, under which root, and which pin a block lies in.
//!
//! It is a cache. The truth is in the pin records on the hosts; a lost catalog is rebuilt from them. So its commits
//! are not synced one by one: an unclean stop is noticed at the next start (the clean mark is missing), and the
//! catalog then does not call itself complete until a scan of the hosts has gone over it.
//!
//! | table | key | value |
//! |---|---|---|
//! | pins | pin key text | 8-byte pin number, flags, version, pin body |
//! | numbers | pin number | pin key text |
//! | roots | multihash or sector root, then pin number | nothing |
//! | blocks | 16 bytes of the block key, then pin number | nothing |
//! | idem | hash of an idempotency key | pin number |
//! | state | word | number: the next pin's, the clean mark, where audits are |

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

const PINS: TableDefinition<&str, &[u8]> = TableDefinition::new("pins");
const NUMBERS: TableDefinition<u64, &str> = TableDefinition::new("numbers");
const ROOTS: TableDefinition<&[u8], ()> = TableDefinition::new("roots");
const BLOCKS: TableDefinition<&[u8], ()> = TableDefinition::new("blocks");
const IDEM: TableDefinition<&[u8], u64> = TableDefinition::new("idem");
const STATE: TableDefinition<&str, u64> = TableDefinition::new("state");

/// Page cache of the catalog file. A lookup touches three or four pages; 16 MiB keep the inner ones of some ten
/// million rows at hand, and the idle process small.
const PAGE_CACHE_BYTES: usize = 16 << 20;
/// Bytes of a block key kept in the table `blocks`. 128 bits of a hash do not collide by chance, and a collision
/// made on purpose only costs a second look into a pack: the pack's own row decides.
const BLOCK_KEY_BYTES: usize = 16;
/// Block rows put into the table in one transaction, so that readers and commits wait for at most some milliseconds.
const INDEX_BATCH_ROWS: usize = 20_000;
/// Format of the tables. Another number means: start anew, the hosts have the truth.
const FORMAT: u64 = 1;

const FLAG_COMPLETE: u8 = 1;
const FLAG_INDEXED: u8 = 2;
const FLAG_OWN_INDEX: u8 = 4;
const FLAG_OTHER_PIN: u8 = 8;

/// The catalog's errors are all of one kind: this node's disk or file is at fault.
#[derive(Debug, thiserror::Error)]
#[error(
    "the catalog cannot be read or written: {0}. It is a cache: stop the gateway, delete the folder `catalog` in its data directory, and start again"
)]
pub struct CatalogError(#[source] Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for CatalogError {
    fn from(error: E) -> Self {
        CatalogError(Box::new(error.into()))
    }
}

/// Where the blocks of a pin are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlocksIn {
    /// Not yet: the pin itself has to be looked into.
    Nowhere,
    /// In the table `blocks`.
    Table,
    /// In its pack's own index, which is too large for the table.
    OwnIndex,
    /// Under another pin with the same pack.
    OtherPin,
}

impl BlocksIn {
    fn flags(self) -> u8 {
        match self {
            BlocksIn::Nowhere => 0,
            BlocksIn::Table => FLAG_INDEXED,
            BlocksIn::OwnIndex => FLAG_INDEXED | FLAG_OWN_INDEX,
            BlocksIn::OtherPin => FLAG_INDEXED | FLAG_OTHER_PIN,
        }
    }

    fn of(flags: u8) -> BlocksIn {
        match flags & (FLAG_INDEXED | FLAG_OWN_INDEX | FLAG_OTHER_PIN) {
            FLAG_INDEXED => BlocksIn::Table,
            flags if flags == BlocksIn::OwnIndex.flags() => BlocksIn::OwnIndex,
            flags if flags == BlocksIn::OtherPin.flags() => BlocksIn::OtherPin,
            _ => BlocksIn::Nowhere,
        }
    }
}

/// One pin as the catalog keeps it.
#[derive(Clone, Debug)]
pub struct PinRow {
    pub number: u64,
    pub key: String,
    /// Version of the record (its order).
    pub version: u64,
    /// All pieces of all slabs were seen on their hosts by this node.
    pub complete: bool,
    pub blocks_in: BlocksIn,
    pub body: Vec<u8>,
}

impl PinRow {
    fn encode(&self) -> Vec<u8> {
        let flags = (u8::from(self.complete) * FLAG_COMPLETE) | self.blocks_in.flags();
        let mut bytes = Vec::with_capacity(17 + self.body.len());
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.push(flags);
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn decode(key: &str, bytes: &[u8]) -> Option<PinRow> {
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        let (flags, rest) = rest.split_first()?;
        let (version, body) = rest.split_first_chunk::<8>()?;
        Some(PinRow {
            number: u64::from_be_bytes(*number),
            key: key.to_owned(),
            version: u64::from_be_bytes(*version),
            complete: flags & FLAG_COMPLETE != 0,
            blocks_in: BlocksIn::of(*flags),
            body: body.to_vec(),
        })
    }
}

/// What a pin is found by.
#[derive(Clone, Debug, Default)]
pub struct PinNames {
    /// Multihash bytes of the root, and sector roots of its skyfile and pack.
    pub roots: Vec<Vec<u8>>,
    /// Hash of the idempotency key it was made with.
    pub idem: Option<[u8; 32]>,
}

pub struct Catalog {
    database: Database,
    /// Every acknowledged pin is known: an absence is a fact.
    complete: AtomicBool,
    /// Something was committed since the last durable commit.
    dirty: AtomicBool,
}

impl Catalog {
    /// Opens or makes the catalog in `folder`. A file of another format, or a damaged one, is replaced by an empty one.
    pub fn open(folder: &Path) -> Result<Catalog, CatalogError> {
        std::fs::create_dir_all(folder).map_err(redb::Error::Io)?;
        let path = folder.join("catalog.redb");
        let database = match open_database(&path) {
            Ok(database) => database,
            Err(error) => {
                tracing::warn!(%error, "the catalog is damaged or of another version: starting an empty one");
                std::fs::remove_file(&path).map_err(redb::Error::Io)?;
                open_database(&path)?
            }
        };
        let catalog = Catalog { database, complete: AtomicBool::new(false), dirty: AtomicBool::new(false) };
        let clean = catalog.take_clean_mark()?;
        catalog.complete.store(clean, Ordering::Release);
        Ok(catalog)
    }

    /// True when the last stop was clean; the mark is removed, durably, before anything else is written.
    fn take_clean_mark(&self) -> Result<bool, CatalogError> {
        let transaction = self.database.begin_write()?;
        let clean = {
            let mut state = transaction.open_table(STATE)?;
            state.insert("format", FORMAT)?;
            state.remove("clean")?.is_some()
        };
        transaction.open_table(PINS)?;
        transaction.open_table(NUMBERS)?;
        transaction.open_table(ROOTS)?;
        transaction.open_table(BLOCKS)?;
        transaction.open_table(IDEM)?;
        transaction.commit()?;
        Ok(clean)
    }

    /// Every acknowledged pin is in the catalog, so what is not in it is absent.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    pub fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Writes the clean mark. Call it last, after everything that commits has stopped.
    pub fn close(&self) -> Result<(), CatalogError> {
        if !self.is_complete() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        transaction.open_table(STATE)?.insert("clean", 1)?;
        transaction.commit()?;
        Ok(())
    }

    /// The hosts have the truth (see the text above on unclean stops), so commits do not wait for the disk.
    fn not_durable(&self, transaction: &mut redb::WriteTransaction) -> Result<(), CatalogError> {
        self.dirty.store(true, Ordering::Release);
        Ok(transaction.set_durability(Durability::None)?)
    }

    /// Makes everything committed so far durable; this also lets the file reuse its freed pages.
    pub fn flush(&self) -> Result<(), CatalogError> {
        if self.dirty.swap(false, Ordering::AcqRel) {
            self.database.begin_write()?.commit()?;
        }
        Ok(())
    }

    /// Inserts or replaces a pin. An older version than the one known changes nothing. Returns the pin's number, which `appears`
    /// is told before anybody can find the pin.
    pub fn insert(
        &self,
        key: &str,
        version: u64,
        complete: bool,
        body: &[u8],
        names: &PinNames,
        appears: impl FnOnce(u64),
    ) -> Result<u64, CatalogError> {
        let mut transaction = self.database.begin_write()?;
        self.not_durable(&mut transaction)?;
        let number;
        {
            let mut pins = transaction.open_table(PINS)?;
            let known = pins.get(key)?.and_then(|row| PinRow::decode(key, row.value()));
            if let Some(known) = known.as_ref().filter(|known| known.version >= version) {
                return Ok(known.number);
            }
            let mut state = transaction.open_table(STATE)?;
            number = match &known {
                Some(known) => known.number,
                None => {
                    let next = state.get("next")?.map_or(1, |next| next.value());
                    state.insert("next", next + 1)?;
                    next
                }
            };
            let row = PinRow { number, key: key.to_owned(), version, complete, blocks_in: BlocksIn::Nowhere, body: body.to_vec() };
            pins.insert(key, row.encode().as_slice())?;
            transaction.open_table(NUMBERS)?.insert(number, key)?;
            let mut roots = transaction.open_table(ROOTS)?;
            for name in &names.roots {
                roots.insert(numbered(name, number).as_slice(), ())?;
            }
            if let Some(idem) = names.idem {
                transaction.open_table(IDEM)?.insert(idem.as_slice(), number)?;
            }
        }
        appears(number);
        transaction.commit()?;
        Ok(number)
    }

    /// Removes a pin. Rows in `blocks` that still name its number then lead nowhere, and are passed over.
    pub fn remove(&self, key: &str, names: &PinNames) -> Result<(), CatalogError> {
        let mut transaction = self.database.begin_write()?;
        self.not_durable(&mut transaction)?;
        {
            let mut pins = transaction.open_table(PINS)?;
            let removed = pins.remove(key)?.and_then(|row| PinRow::decode(key, row.value()));
            if let Some(row) = removed {
                transaction.open_table(NUMBERS)?.remove(row.number)?;
                let mut roots = transaction.open_table(ROOTS)?;
                for name in &names.roots {
                    roots.remove(numbered(name, row.number).as_slice())?;
                }
                if let Some(idem) = names.idem {
                    transaction.open_table(IDEM)?.remove(idem.as_slice())?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Remembers that every piece of the pin was seen on its host.
    pub fn mark_complete(&self, key: &str) -> Result<(), CatalogError> {
        self.update(key, |row| row.complete = true)
    }

    fn update(&self, key: &str, change: impl FnOnce(&mut PinRow)) -> Result<(), CatalogError> {
        let mut transaction = self.database.begin_write()?;
        self.not_durable(&mut transaction)?;
        {
            let mut pins = transaction.open_table(PINS)?;
            let row = pins.get(key)?.and_then(|row| PinRow::decode(key, row.value()));
            if let Some(mut row) = row {
                change(&mut row);
                pins.insert(key, row.encode().as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Puts the last blocks of one pin into the table, then marks the pin as indexed. `keys` are block keys
    /// (`pack::block_key`), sorted or not.
    pub fn index_blocks(&self, key: &str, number: u64, keys: impl Iterator<Item = [u8; 32]>) -> Result<(), CatalogError> {
        self.index_some(number, keys)?;
        self.set_blocks_in(key, BlocksIn::Table)
    }

    /// Puts some blocks of one pin into the table, in batches; and pieces of its skyfiles, whose keys are their roots.
    pub fn index_some(&self, number: u64, keys: impl Iterator<Item = [u8; 32]>) -> Result<(), CatalogError> {
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            let mut transaction = self.database.begin_write()?;
            self.not_durable(&mut transaction)?;
            {
                let mut blocks = transaction.open_table(BLOCKS)?;
                for block in keys.by_ref().take(INDEX_BATCH_ROWS) {
                    blocks.insert(numbered(&block[..BLOCK_KEY_BYTES], number).as_slice(), ())?;
                }
            }
            transaction.commit()?;
        }
        Ok(())
    }

    /// Remembers where the blocks of a pin are found.
    pub fn set_blocks_in(&self, key: &str, place: BlocksIn) -> Result<(), CatalogError> {
        self.update(key, |row| row.blocks_in = place)
    }

    /// Pins whose root (multihash bytes or sector root) is `name`, the newest first.
    pub fn by_root(&self, name: &[u8]) -> Result<Vec<PinRow>, CatalogError> {
        let transaction = self.database.begin_read()?;
        self.numbered_pins(&transaction, &transaction.open_table(ROOTS)?, name)
    }

    /// Pins that hold the block with this key, the newest first. A pin may turn out not to hold it after all.
    pub fn by_block(&self, key: &[u8; 32]) -> Result<Vec<PinRow>, CatalogError> {
        let transaction = self.database.begin_read()?;
        self.numbered_pins(&transaction, &transaction.open_table(BLOCKS)?, &key[..BLOCK_KEY_BYTES])
    }

    pub fn by_idem(&self, idem: &[u8; 32]) -> Result<Option<PinRow>, CatalogError> {
        let transaction = self.database.begin_read()?;
        let number = transaction.open_table(IDEM)?.get(idem.as_slice())?.map(|number| number.value());
        match number {
            Some(number) => pin_by_number(&transaction, number),
            None => Ok(None),
        }
    }

    pub fn by_key(&self, key: &str) -> Result<Option<PinRow>, CatalogError> {
        let transaction = self.database.begin_read()?;
        let row = transaction.open_table(PINS)?.get(key)?.and_then(|row| PinRow::decode(key, row.value()));
        Ok(row)
    }

    /// At most `max` pins in the order of their numbers (the order they became known), from `from` on.
    pub fn page(&self, from: u64, max: usize) -> Result<Vec<PinRow>, CatalogError> {
        let transaction = self.database.begin_read()?;
        let numbers = transaction.open_table(NUMBERS)?;
        let mut rows = Vec::new();
        for entry in numbers.range(from..)?.take(max) {
            let (number, _) = entry?;
            rows.extend(pin_by_number(&transaction, number.value())?);
        }
        Ok(rows)
    }

    /// A number of the table `state`.
    pub fn number(&self, name: &str) -> Result<Option<u64>, CatalogError> {
        Ok(self.database.begin_read()?.open_table(STATE)?.get(name)?.map(|number| number.value()))
    }

    /// Sets numbers of the table `state` together.
    pub fn set_numbers(&self, numbers: &[(&str, u64)]) -> Result<(), CatalogError> {
        let changed = |(name, number): &(&str, u64)| Ok::<bool, CatalogError>(self.number(name)? != Some(*number));
        let mut changes = Vec::new();
        for number in numbers {
            if changed(number)? {
                changes.push(*number);
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        let mut transaction = self.database.begin_write()?;
        self.not_durable(&mut transaction)?;
        {
            let mut state = transaction.open_table(STATE)?;
            for (name, number) in changes {
                state.insert(name, number)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Number of the pin that became known last; 0 if there is none.
    pub fn last_pin_number(&self) -> Result<u64, CatalogError> {
        Ok(self.database.begin_read()?.open_table(NUMBERS)?.last()?.map_or(0, |(number, _)| number.value()))
    }

    pub fn pin_count(&self) -> Result<u64, CatalogError> {
        Ok(self.database.begin_read()?.open_table(PINS)?.len()?)
    }

    fn numbered_pins(
        &self,
        transaction: &redb::ReadTransaction,
        table: &redb::ReadOnlyTable<&[u8], ()>,
        name: &[u8],
    ) -> Result<Vec<PinRow>, CatalogError> {
        let (first, last) = (numbered(name, 0), numbered(name, u64::MAX));
        let mut rows = Vec::new();
        for entry in table.range(first.as_slice()..=last.as_slice())?.rev() {
            let (key, _) = entry?;
            if let Some(number) = key.value().last_chunk::<8>().filter(|_| key.value().len() == name.len() + 8) {
                rows.extend(pin_by_number(transaction, u64::from_be_bytes(*number))?);
            }
        }
        Ok(rows)
    }
}

fn open_database(path: &Path) -> Result<Database, CatalogError> {
    let database = Database::builder().set_cache_size(PAGE_CACHE_BYTES).create(path)?;
    let transaction = database.begin_read()?;
    let format = match transaction.open_table(STATE) {
        Ok(state) => state.get("format")?.map(|format| format.value()),
        Err(redb::TableError::TableDoesNotExist(_)) => None,
        Err(error) => return Err(error.into()),
    };
    match format {
        None | Some(FORMAT) => Ok(database),
        Some(_) => Err(redb::Error::Corrupted("another catalog format".to_owned()).into()),
    }
}

fn pin_by_number(transaction: &redb::ReadTransaction, number: u64) -> Result<Option<PinRow>, CatalogError> {
    let numbers = transaction.open_table(NUMBERS)?;
    let Some(key) = numbers.get(number)? else { return Ok(None) };
    let pins = transaction.open_table(PINS)?;
    let row = pins.get(key.value())?.and_then(|row| PinRow::decode(key.value(), row.value()));
    Ok(row)
}

fn numbered(name: &[u8], number: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 8);
    key.extend_from_slice(name);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &[u8]) -> PinNames {
        PinNames { roots: vec![root.to_vec()], idem: Some([9; 32]) }
    }

    #[test]
    fn a_clean_stop_keeps_it_complete_and_an_unclean_one_does_not() {
        let folder = tempfile::tempdir().expect("temp folder");
        let catalog = Catalog::open(folder.path()).expect("open");
        assert!(!catalog.is_complete(), "a new catalog knows nothing");
        catalog.set_complete();
        catalog.insert("aa/1", 1, false, b"body", &names(b"root"), |_| ()).expect("insert");
        catalog.close().expect("close");
        drop(catalog);
        let catalog = Catalog::open(folder.path()).expect("open");
        assert!(catalog.is_complete());
        assert_eq!(catalog.by_root(b"root").expect("read")[0].body, b"body");
        drop(catalog);
        let catalog = Catalog::open(folder.path()).expect("open");
        assert!(!catalog.is_complete(), "no clean mark");
    }

    #[test]
    fn pins_are_found_by_root_block_and_idempotency_key() {
        let folder = tempfile::tempdir().expect("temp folder");
        let catalog = Catalog::open(folder.path()).expect("open");
        let one = catalog.insert("aa/1", 1, false, b"one", &names(b"root"), |_| ()).expect("insert");
        let two = catalog
            .insert("aa/2", 1, true, b"two", &PinNames { roots: vec![b"root".to_vec()], idem: None }, |_| ())
            .expect("insert");
        assert_ne!(one, two);
        let found: Vec<_> = catalog.by_root(b"root").expect("read").into_iter().map(|pin| pin.number).collect();
        assert_eq!(found, [two, one], "newest first");
        assert!(catalog.by_root(b"roo").expect("read").is_empty(), "no prefix matches");
        catalog
            .index_blocks("aa/1", one, (0..50_000u32).map(|i| [i.to_be_bytes(); 8].concat().try_into().expect("32 bytes")))
            .expect("index");
        let block = [77u32.to_be_bytes(); 8].concat().try_into().expect("32 bytes");
        assert_eq!(catalog.by_block(&block).expect("read")[0].key, "aa/1");
        assert_eq!(catalog.by_key("aa/1").expect("read").expect("known").blocks_in, BlocksIn::Table);
        for place in [BlocksIn::OwnIndex, BlocksIn::OtherPin, BlocksIn::Nowhere] {
            catalog.set_blocks_in("aa/1", place).expect("set");
            assert_eq!(catalog.by_key("aa/1").expect("read").expect("known").blocks_in, place);
        }
        assert_eq!(catalog.by_idem(&[9; 32]).expect("read").expect("known").number, one);
        catalog.remove("aa/1", &names(b"root")).expect("remove");
        assert!(catalog.by_block(&block).expect("read").is_empty());
        assert_eq!(catalog.page(0, 10).expect("read").len(), 1);
    }

    #[test]
    fn an_older_version_changes_nothing() {
        let folder = tempfile::tempdir().expect("temp folder");
        let catalog = Catalog::open(folder.path()).expect("open");
        catalog.insert("aa/1", 2, false, b"new", &names(b"root"), |_| ()).expect("insert");
        catalog.insert("aa/1", 1, false, b"old", &names(b"root"), |_| ()).expect("insert");
        assert_eq!(catalog.by_key("aa/1").expect("read").expect("known").body, b"new");
    }

    #[test]
    fn numbers_of_others_are_kept() {
        let folder = tempfile::tempdir().expect("temp folder");
        let catalog = Catalog::open(folder.path()).expect("open");
        assert_eq!((catalog.number("audit").expect("read"), catalog.last_pin_number().expect("read")), (None, 0));
        catalog.set_numbers(&[("audit", 7), ("other", 1)]).expect("set");
        catalog.set_numbers(&[("audit", 8)]).expect("set");
        catalog.insert("aa/1", 1, false, b"body", &names(b"root"), |_| ()).expect("insert");
        assert_eq!(catalog.last_pin_number().expect("read"), 1);
        catalog.set_complete();
        catalog.close().expect("close");
        drop(catalog);
        let catalog = Catalog::open(folder.path()).expect("open");
        assert_eq!([catalog.number("audit").expect("read"), catalog.number("other").expect("read")], [Some(8), Some(1)]);
    }

    #[test]
    fn a_damaged_file_is_replaced() {
        let folder = tempfile::tempdir().expect("temp folder");
        std::fs::write(folder.path().join("catalog.redb"), b"not a database").expect("write");
        let catalog = Catalog::open(folder.path()).expect("open");
        assert!(!catalog.is_complete());
    }
}
