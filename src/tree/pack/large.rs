//! Packs whose index is too large to be held: written as a stream of rows that come sorted, looked up by pages of rows.
//!
//! A search guesses where a key stands, for digests are spread evenly: within the rows of one first byte, of which there are
//! n, it is off by at most some `sqrt(n)` rows. So nearly every look-up in a pack of ten million blocks takes one page.
//!
//! Limits: [`SEARCH_STEPS_MAX`] pages a look-up; [`PAGE_ROWS`] rows a page. A directory costs the skyfile table and 1 KiB.

use std::ops::Range;

use bytes::Bytes;

use super::{
    FIRST_BYTE_TABLE_BYTES, HEADER_BYTES, INDEX_CODEC_VARINT, INDEX_VERSION, KIND_INLINE, KIND_RANGE, Key, PackError, PackHead,
    Place, ROW_BYTES, ROWS_AT, Row, SkyfileRef, check_row, parse_skyfiles, put_index_start, u32_at, u64_at,
};
use crate::address::{Cid, Multihash};
use crate::tree::car::{V2_PREFIX_BYTES, V2Header, encode_v1_header};

/// Rows read at once, 32 KiB: five times the error of a guess among ten million rows.
const PAGE_ROWS: u64 = 512;
/// Guesses before a search only halves what is left: digests are even unless somebody made them so, and who did gains nothing.
const GUESSES_MAX: u32 = 4;
/// Pages of one search: the guesses, and the halvings of 2^32 rows down to a page.
pub const SEARCH_STEPS_MAX: u32 = GUESSES_MAX + 24;

// ---------- writing

/// A pack that holds no block itself: every row is a range of a skyfile, without prefix or suffix. What stands before its
/// rows and behind them; the rows come sorted from [`range_row`].
pub struct PackStream {
    head: Vec<u8>,
    index_start: usize,
    tail: Vec<u8>,
    row_count: u64,
}

impl PackStream {
    /// `counts` are the rows of each first byte of their keys.
    pub fn new(roots: &[Cid], skyfiles: &[SkyfileRef], counts: &[u32; 256]) -> Result<PackStream, PackError> {
        let row_count = counts.iter().map(|count| u64::from(*count)).sum();
        if u32::try_from(row_count).is_err() {
            return Err(PackError::TooLarge("2^32 rows"));
        }
        let mut tail = Vec::new();
        for skyfile in skyfiles {
            skyfile.check()?;
            skyfile.put(&mut tail)?;
        }
        let mut head = vec![0; V2_PREFIX_BYTES];
        head.extend_from_slice(&encode_v1_header(roots));
        let index_start = head.len();
        let header = V2Header {
            characteristics: [0; 16],
            data_offset: V2_PREFIX_BYTES as u64,
            data_bytes: (index_start - V2_PREFIX_BYTES) as u64,
            index_offset: index_start as u64,
        };
        head[..V2_PREFIX_BYTES].copy_from_slice(&header.encode());
        let skyfile_count = u32::try_from(skyfiles.len()).map_err(|_| PackError::TooLarge("2^32 skyfiles"))?;
        put_index_start(&mut head, skyfile_count, 0, tail.len() as u64, counts);
        Ok(PackStream { head, index_start, tail, row_count })
    }

    /// From the first byte of the pack to its first row.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Where in [`PackStream::head`] the index begins.
    pub fn index_start(&self) -> usize {
        self.index_start
    }

    /// From the last row to the end of the pack.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Bytes of the whole pack.
    pub fn pack_bytes(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.row_count * ROW_BYTES as u64
    }
}

/// A row for a block that is `len` bytes from `offset` of a skyfile's content.
pub fn range_row(key: &Key, skyfile_index: u32, offset: u64, len: u32) -> [u8; ROW_BYTES] {
    let mut row = [0; ROW_BYTES];
    let code = u32::from_be_bytes(key.0[32..].try_into().expect("four bytes"));
    row[..32].copy_from_slice(&key.0[..32]);
    row[32..36].copy_from_slice(&code.to_le_bytes());
    row[36] = KIND_RANGE;
    row[40..44].copy_from_slice(&skyfile_index.to_le_bytes());
    row[44..48].copy_from_slice(&len.to_le_bytes());
    row[48..56].copy_from_slice(&offset.to_le_bytes());
    row
}

// ---------- reading

/// An index without its rows and extras: what a search needs to know.
#[derive(Clone)]
pub struct PackDirectory {
    payload: Range<u64>,
    /// Rows up to each first byte.
    up_to: Box<[u32; 256]>,
    /// From the first byte of the pack.
    rows_start: u64,
    extras: Range<u64>,
    skyfiles: Vec<SkyfileRef>,
}

impl PackDirectory {
    /// Bytes of the index's start that [`PackDirectory::table`] and [`PackDirectory::parse`] want.
    pub const START_BYTES: usize = INDEX_CODEC_VARINT.len() + ROWS_AT;

    /// Where the skyfile table lies, from the first byte of the pack. Checks that the parts of the index add up.
    pub fn table(head: &PackHead, start: &[u8]) -> Result<Range<u64>, PackError> {
        if start.len() < Self::START_BYTES || !start.starts_with(&INDEX_CODEC_VARINT) {
            return Err(PackError::Broken("it does not begin as pack indexes do"));
        }
        let body = &start[INDEX_CODEC_VARINT.len()..];
        if u32_at(body, 0) != INDEX_VERSION {
            return Err(PackError::Version(u32_at(body, 0)));
        }
        let (row_count, extras_bytes, table_bytes) = (u64::from(u32_at(body, 4)), u64::from(u32_at(body, 12)), u64_at(body, 16));
        let table_start = head.index.start + Self::START_BYTES as u64 + ROW_BYTES as u64 * row_count;
        let table_end = table_start.checked_add(table_bytes);
        if u64_at(body, 24) != 0 || table_end.and_then(|end| end.checked_add(extras_bytes)) != Some(head.index.end) {
            return Err(PackError::Broken("its parts do not add up to its length"));
        }
        Ok(table_start..table_start + table_bytes)
    }

    /// Takes the first bytes of the index and the skyfile table. The rows are checked as they come.
    pub fn parse(head: &PackHead, start: &[u8], table: Bytes) -> Result<PackDirectory, PackError> {
        let place = Self::table(head, start)?;
        if table.len() as u64 != place.end - place.start {
            return Err(PackError::Broken("it is cut short"));
        }
        let body = &start[INDEX_CODEC_VARINT.len()..];
        let first_bytes = &body[HEADER_BYTES..HEADER_BYTES + FIRST_BYTE_TABLE_BYTES];
        let up_to: Box<[u32; 256]> = Box::new(std::array::from_fn(|byte| u32_at(first_bytes, 4 * byte)));
        if !up_to.is_sorted() || up_to[255] != u32_at(body, 4) {
            return Err(PackError::Broken("its first-byte table does not count its rows"));
        }
        Ok(PackDirectory {
            payload: head.payload.clone(),
            up_to,
            rows_start: head.index.start + Self::START_BYTES as u64,
            extras: place.end..head.index.end,
            skyfiles: parse_skyfiles(table, u32_at(body, 8))?,
        })
    }

    pub fn row_count(&self) -> u64 {
        u64::from(self.up_to[255])
    }

    pub fn skyfiles(&self) -> &[SkyfileRef] {
        &self.skyfiles
    }

    /// Where all rows lie, from the first byte of the pack.
    pub fn rows(&self) -> Range<u64> {
        self.rows_start..self.rows_start + self.row_count() * ROW_BYTES as u64
    }

    /// Memory that it takes, for caches that count.
    pub fn memory_bytes(&self) -> usize {
        let roots: usize = self.skyfiles.iter().map(|skyfile| skyfile.roots.len() + size_of::<SkyfileRef>()).sum();
        size_of::<PackDirectory>() + FIRST_BYTE_TABLE_BYTES + roots
    }

    /// A search for the row of a block; `None` if no pack can hold it.
    pub fn search(&self, multihash: &Multihash) -> Option<RowSearch<'_>> {
        let key = Key::of(multihash)?;
        let byte = key.0[0];
        let low = if byte == 0 { 0 } else { self.up_to[usize::from(byte) - 1] };
        let values = u64::from(byte) << 56..(u64::from(byte) << 56) | (u64::MAX >> 8);
        let rows = u64::from(low)..u64::from(self.up_to[usize::from(byte)]);
        Some(RowSearch { directory: self, key, rows, values, steps: 0 })
    }

    /// A check of all rows, in their order, in pieces.
    pub fn check_rows(&self) -> RowCheck<'_> {
        RowCheck { directory: self, last: None, counts: [0; 256] }
    }

    fn row(&self, row: &[u8; ROW_BYTES]) -> Result<LargeRow, PackError> {
        check_row(row, &self.payload, &self.skyfiles, self.extras.end - self.extras.start)?;
        let (offset, len) = (u64_at(row, 48), u32_at(row, 44));
        let place = match row[36] {
            KIND_INLINE => Place::Inline { offset, len },
            _ => Place::Range { skyfile_index: u32_at(row, 40), offset, len, prefix: Bytes::new(), suffix: Bytes::new() },
        };
        let (prefix_len, suffix_len) = (usize::from(row[37]), usize::from(row[38]));
        let start = self.extras.start + u64::from(u32_at(row, 56));
        let extras = (prefix_len + suffix_len > 0).then(|| start..start + (prefix_len + suffix_len) as u64);
        let row = Row { key: row[..32].try_into().expect("32 bytes"), code: u32_at(row, 32), place };
        Ok(LargeRow { row, extras, prefix_len })
    }
}

/// A row that was found; its prefix and suffix still have to be read.
pub struct LargeRow {
    row: Row,
    extras: Option<Range<u64>>,
    prefix_len: usize,
}

impl LargeRow {
    /// Where prefix and suffix lie, from the first byte of the pack, if there are any.
    pub fn extras(&self) -> Option<Range<u64>> {
        self.extras.clone()
    }

    /// The row with the bytes of [`LargeRow::extras`].
    pub fn with_extras(mut self, bytes: Bytes) -> Row {
        if let Place::Range { prefix, suffix, .. } = &mut self.row.place {
            let middle = self.prefix_len.min(bytes.len());
            *prefix = bytes.slice(..middle);
            *suffix = bytes.slice(middle..);
        }
        self.row
    }
}

/// A search under way: read what [`RowSearch::step`] asks for, give it, and so on.
pub struct RowSearch<'a> {
    directory: &'a PackDirectory,
    key: Key,
    /// Rows among which it still may be.
    rows: Range<u64>,
    /// First eight bytes of the keys at both ends of them, or bounds of those.
    values: Range<u64>,
    steps: u32,
}

/// What a search wants next.
pub enum SearchStep {
    /// These bytes of the pack: whole rows.
    Need(Range<u64>),
    Found(LargeRow),
    Absent,
}

impl RowSearch<'_> {
    /// Where to look first, or next after [`RowSearch::give`].
    pub fn step(&self) -> SearchStep {
        match self.page() {
            page if page.is_empty() => SearchStep::Absent,
            page => {
                let start = self.directory.rows_start;
                SearchStep::Need(start + page.start * ROW_BYTES as u64..start + page.end * ROW_BYTES as u64)
            }
        }
    }

    /// Takes the bytes asked for.
    pub fn give(&mut self, bytes: &[u8]) -> Result<SearchStep, PackError> {
        let page = self.page();
        let (rows, rest) = bytes.as_chunks::<ROW_BYTES>();
        let (Some(first), Some(last), true) =
            (rows.first(), rows.last(), rest.is_empty() && rows.len() as u64 == page.end - page.start)
        else {
            return Err(PackError::Broken("it is cut short"));
        };
        self.steps += 1;
        if self.steps > SEARCH_STEPS_MAX {
            return Err(PackError::Broken("its rows are not sorted"));
        }
        if self.key < Key::of_row(first) {
            self.rows.end = page.start;
            self.values.end = value_of(&Key::of_row(first));
        } else if self.key > Key::of_row(last) {
            self.rows.start = page.end;
            self.values.start = value_of(&Key::of_row(last));
        } else {
            return match rows.binary_search_by(|row| Key::of_row(row).cmp(&self.key)) {
                Ok(found) => self.directory.row(&rows[found]).map(SearchStep::Found),
                Err(_) => Ok(SearchStep::Absent),
            };
        }
        Ok(self.step())
    }

    /// The rows to look at next: around where the key should stand.
    fn page(&self) -> Range<u64> {
        let (rows, values) = (&self.rows, &self.values);
        let count = rows.end - rows.start;
        if count <= PAGE_ROWS {
            return rows.clone();
        }
        let width = values.end.saturating_sub(values.start);
        let into = value_of(&self.key).saturating_sub(values.start).min(width);
        let guess = match width {
            1.. if self.steps < GUESSES_MAX => (u128::from(into) * u128::from(count) / u128::from(width)) as u64,
            _ => count / 2,
        };
        let start = rows.start + guess.saturating_sub(PAGE_ROWS / 2).min(count - PAGE_ROWS);
        start..start + PAGE_ROWS
    }
}

/// The first eight bytes of a key, as a number.
fn value_of(key: &Key) -> u64 {
    u64::from_be_bytes(*key.0.first_chunk().expect("a key begins with 32 bytes"))
}

/// Checks all rows of an index as [`super::PackIndex::parse`] does, but in pieces.
pub struct RowCheck<'a> {
    directory: &'a PackDirectory,
    last: Option<Key>,
    counts: [u32; 256],
}

impl RowCheck<'_> {
    /// The next rows, whole ones.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        let (rows, rest) = bytes.as_chunks::<ROW_BYTES>();
        if !rest.is_empty() {
            return Err(PackError::Broken("it is cut short"));
        }
        let directory = self.directory;
        for row in rows {
            check_row(row, &directory.payload, &directory.skyfiles, directory.extras.end - directory.extras.start)?;
            let key = Key::of_row(row);
            if self.last.is_some_and(|last| last >= key) {
                return Err(PackError::Broken("its rows are not sorted, or one stands twice"));
            }
            self.last = Some(key);
            self.counts[usize::from(row[0])] += 1;
        }
        Ok(())
    }

    /// After the last row.
    pub fn finish(self) -> Result<(), PackError> {
        let mut sum = 0;
        for (count, up_to) in self.counts.iter().zip(self.directory.up_to.iter()) {
            sum += count;
            if sum != *up_to {
                return Err(PackError::Broken("its first-byte table does not count its rows"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PackBuilder, PackIndex};
    use super::*;
    use crate::address::{cid_v1, codec, hash, sha2_256};
    use crate::sector::SECTOR_BYTES;
    use crate::tree::build::{LeafRow, NodeBlock};

    fn skyfile(size: u64) -> SkyfileRef {
        let roots = vec![7; size.div_ceil(6 * SECTOR_BYTES as u64) as usize * 9 * 32];
        SkyfileRef { k: 6, m: 3, at: 0, root: [9; 32], size, used: 1_000, roots: roots.into() }
    }

    fn cid(number: u32) -> Cid {
        cid_v1(codec::RAW, sha2_256(&number.to_le_bytes()))
    }

    fn streamed(count: u32) -> Vec<u8> {
        let mut keys: Vec<(Key, u32)> = (0..count).map(|number| (Key::of(cid(number).hash()).unwrap(), number)).collect();
        keys.sort();
        let mut counts = [0; 256];
        keys.iter().for_each(|(key, _)| counts[usize::from(key.0[0])] += 1);
        let stream = PackStream::new(&[cid(0)], &[skyfile(u64::from(count) * 4)], &counts).unwrap();
        let mut pack = stream.head().to_vec();
        keys.iter().for_each(|(key, number)| pack.extend(range_row(key, 0, u64::from(*number) * 4, 4)));
        pack.extend_from_slice(stream.tail());
        assert_eq!(pack.len() as u64, stream.pack_bytes());
        pack
    }

    fn directory(pack: &[u8]) -> PackDirectory {
        let head = PackHead::parse(pack, pack.len() as u64).unwrap();
        let start = &pack[head.index.start as usize..][..PackDirectory::START_BYTES];
        let table = PackDirectory::table(&head, start).unwrap();
        let table = Bytes::copy_from_slice(&pack[table.start as usize..table.end as usize]);
        PackDirectory::parse(&head, start, table).unwrap()
    }

    /// The row, if it is there, and the pages that it took.
    fn find(directory: &PackDirectory, pack: &[u8], multihash: &Multihash) -> (Option<Row>, u32) {
        let mut search = directory.search(multihash).unwrap();
        let (mut step, mut pages) = (search.step(), 0);
        loop {
            match step {
                SearchStep::Absent => return (None, pages),
                SearchStep::Found(row) => {
                    let extras =
                        row.extras().map_or(Bytes::new(), |at| Bytes::copy_from_slice(&pack[at.start as usize..at.end as usize]));
                    return (Some(row.with_extras(extras)), pages);
                }
                SearchStep::Need(bytes) => {
                    pages += 1;
                    step = search.give(&pack[bytes.start as usize..bytes.end as usize]).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_streamed_pack_is_that_of_the_builder() {
        let count = 3_000;
        let mut builder = PackBuilder::new(0);
        for number in 0..count {
            let row = LeafRow { cid: cid(number), file_offset: 0, data_len: 4, prefix: vec![], suffix: vec![], small: None };
            builder.leaf(row, 0, u64::from(number) * 4).unwrap();
        }
        let built = builder.finish(&[cid(0)], &[skyfile(u64::from(count) * 4)]).unwrap();
        assert!(built == streamed(count));
    }

    #[test]
    fn searches_find_what_the_whole_index_finds_and_take_few_pages() {
        let count = 200_000;
        let pack = Bytes::from(streamed(count));
        let (whole, directory) = (PackIndex::from_pack(&pack).unwrap(), directory(&pack));
        assert_eq!((directory.row_count(), directory.skyfiles()), (u64::from(count), whole.skyfiles()));
        let mut pages = [0; 2];
        for number in (0..count).step_by(97) {
            let (row, took) = find(&directory, &pack, cid(number).hash());
            assert_eq!(row, whole.lookup(cid(number).hash()), "{number}");
            let (none, took_none) = find(&directory, &pack, cid(count + number).hash());
            assert_eq!(none, None);
            pages = [pages[0] + took, pages[1] + took_none];
        }
        let searches = count / 97 + 1;
        assert!(pages.iter().all(|pages| *pages < searches + searches / 10), "{pages:?} pages of {searches} searches each");
    }

    #[test]
    fn uneven_keys_take_bounded_pages() {
        // All keys share their first six bytes but the first and the last.
        let count = 100_000_u32;
        let multihash = |number: u32| {
            let mut digest = [0; 32];
            if number > 0 {
                digest[1] = if number == count - 1 { 255 } else { 1 };
                digest[8..12].copy_from_slice(&number.to_be_bytes());
            }
            Multihash::wrap(hash::SHA2_256, &digest).unwrap()
        };
        let mut counts = [0; 256];
        counts[0] = count;
        let stream = PackStream::new(&[], &[skyfile(u64::from(count))], &counts).unwrap();
        let mut pack = stream.head().to_vec();
        for number in 0..count {
            pack.extend(range_row(&Key::of(&multihash(number)).unwrap(), 0, u64::from(number), 1));
        }
        pack.extend_from_slice(stream.tail());
        let directory = directory(&pack);
        for number in [0, 1, 2, 700, 50_000, count - 2, count - 1] {
            let (row, pages) = find(&directory, &pack, &multihash(number));
            assert_eq!(row.unwrap().place, whole_place(number), "{number}");
            assert!(pages <= 15, "{number}: {pages}");
        }
    }

    fn whole_place(number: u32) -> Place {
        Place::Range { skyfile_index: 0, offset: number.into(), len: 1, prefix: Bytes::new(), suffix: Bytes::new() }
    }

    #[test]
    fn prefixes_and_inline_blocks_are_found() {
        let mut builder = PackBuilder::new(0);
        builder.node(NodeBlock { cid: cid(1), bytes: vec![1; 50], links: vec![] }).unwrap();
        let leaf = LeafRow { cid: cid(2), file_offset: 0, data_len: 10, prefix: vec![1, 2], suffix: vec![3], small: None };
        builder.leaf(leaf, 0, 5).unwrap();
        let pack = Bytes::from(builder.finish(&[cid(1)], &[skyfile(100)]).unwrap());
        let (whole, directory) = (PackIndex::from_pack(&pack).unwrap(), directory(&pack));
        for number in [1, 2, 3] {
            assert_eq!(find(&directory, &pack, cid(number).hash()).0, whole.lookup(cid(number).hash()), "{number}");
        }
    }

    #[test]
    fn rows_are_checked_in_pieces_as_they_are_whole() {
        let pack = streamed(5_000);
        let directory = directory(&pack);
        let rows = directory.rows();
        let rows = &pack[rows.start as usize..rows.end as usize];
        let check = |rows: &[u8]| {
            let mut check = directory.check_rows();
            rows.chunks(ROW_BYTES * 100).try_for_each(|part| check.push(part))?;
            check.finish()
        };
        assert_eq!(check(rows), Ok(()));
        assert!(check(&rows[..rows.len() - ROW_BYTES]).is_err(), "one is missing");
        let mut wrong = rows.to_vec();
        wrong[ROW_BYTES * 200..ROW_BYTES * 201].copy_from_slice(&rows[ROW_BYTES * 199..ROW_BYTES * 200]);
        assert!(check(&wrong).is_err(), "one stands twice");
        let mut wrong = rows.to_vec();
        wrong[ROW_BYTES * 300 + 55] = 1;
        assert!(check(&wrong).is_err(), "outside of its skyfile");
    }
}
