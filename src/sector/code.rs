//! Reed-Solomon over 64-byte rows ("RS sub-shards 64", `specs/skynet.md` 4): planning reads, joining ranges, rebuilding.
//!
//! A slab's content is cut into stripes of `64 k` bytes; 64 bytes of a stripe go to each data piece, and the parity
//! pieces get the code of that row. So data piece `j` is an interleave of the content, and any row can be decoded alone.

use std::ops::Range;

use bytes::Bytes;
use sia_reed_solomon::ReedSolomon;

use super::{PIECES_MAX, SECTOR_BYTES, SEGMENT_BYTES};

/// Why pieces could not be coded or joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// No data pieces, or more than [`PIECES_MAX`] in all.
    #[error("a slab of {k} + {m} pieces is not possible")]
    Pieces { k: usize, m: usize },
    #[error("{have} good pieces where {need} are needed")]
    TooFewPieces { have: usize, need: usize },
    /// A piece index outside the slab, or one given twice.
    #[error("piece {index} is given twice or is not one of the slab's")]
    PieceIndex { index: usize },
    /// Rows that are not whole or end past the sector, or content outside of them, or a piece longer than the rows.
    #[error("the range does not fit the rows of the pieces")]
    Range,
}

/// The code of one redundancy. Costs a small matrix to make: keep it.
#[derive(Debug)]
pub struct Code {
    k: usize,
    m: usize,
    reed_solomon: ReedSolomon,
}

impl Code {
    /// A code of `k` data and `m` parity pieces.
    pub fn new(k: u8, m: u8) -> Result<Self, CodeError> {
        let (k, m) = (usize::from(k), usize::from(m));
        if k == 0 || k + m > PIECES_MAX {
            return Err(CodeError::Pieces { k, m });
        }
        let reed_solomon = ReedSolomon::new(k, m).map_err(|_| CodeError::Pieces { k, m })?;
        Ok(Self { k, m, reed_solomon })
    }

    /// Number of data pieces.
    pub fn data_pieces(&self) -> usize {
        self.k
    }

    /// Number of all pieces.
    pub fn pieces(&self) -> usize {
        self.k + self.m
    }

    /// Bytes of content in a slab.
    pub fn slab_bytes(&self) -> u64 {
        (self.k * SECTOR_BYTES) as u64
    }

    /// Bytes of content in one row.
    fn stripe_bytes(&self) -> u64 {
        (self.k * SEGMENT_BYTES) as u64
    }

    /// Bytes of each piece that hold this range of the slab's content: whole rows. Widen it to whole grains to check it.
    ///
    /// # Panics
    /// If the range is not one of the slab.
    pub fn read_plan(&self, content: Range<u64>) -> Range<u32> {
        assert!(content.start <= content.end && content.end <= self.slab_bytes(), "a range inside the slab");
        let first_row = content.start / self.stripe_bytes();
        let end_row = content.end.div_ceil(self.stripe_bytes()).max(first_row);
        let bytes = |row: u64| u32::try_from(row * SEGMENT_BYTES as u64).expect("a piece has 4 MiB");
        bytes(first_row)..bytes(end_row)
    }

    /// The content in `content`, from the bytes `rows` of any `k` pieces, each with its index. A piece may end early:
    /// it is zero from there on. More than `k` pieces are allowed; data pieces are preferred.
    pub fn decode_range(&self, pieces: &[(usize, Bytes)], rows: Range<u32>, content: Range<u64>) -> Result<Bytes, CodeError> {
        let cut = self.content_in_rows(&rows, &content)?;
        let piece_bytes = rows.len();
        let mut data = self.sort_pieces(pieces, piece_bytes)?;
        if data[..self.k].iter().any(Option::is_none) {
            self.restore_data(&mut data, piece_bytes)?;
        }
        let mut padded = Vec::new();
        let data: Vec<&[u8]> = data[..self.k].iter().map(|piece| piece.as_deref().unwrap_or_default()).collect();
        let data = pad_short(&data, piece_bytes, &mut padded);
        Ok(Bytes::from(interleave(&data, piece_bytes)).slice(cut))
    }

    /// Rebuilds the pieces `wanted`, `piece_bytes` long, from any `k` others; pieces may end early as in
    /// [`Code::decode_range`]. Copies its input: this is for repair.
    pub fn rebuild_pieces(&self, pieces: &[(usize, Bytes)], wanted: &[usize], piece_bytes: u32) -> Result<Vec<Vec<u8>>, CodeError> {
        let piece_bytes = piece_bytes as usize;
        if piece_bytes > SECTOR_BYTES {
            return Err(CodeError::Range);
        }
        let sorted = self.sort_pieces(pieces, piece_bytes)?;
        let mut shards: Vec<Option<Vec<u8>>> =
            sorted.into_iter().map(|piece| piece.map(|piece| owned(&piece, piece_bytes))).collect();
        if piece_bytes > 0 {
            self.reed_solomon.reconstruct(&mut shards).map_err(|_| self.too_few(&shards))?;
        }
        wanted
            .iter()
            .map(|index| match shards.get(*index) {
                Some(shard) => Ok(shard.clone().unwrap_or_default()),
                None => Err(CodeError::PieceIndex { index: *index }),
            })
            .collect()
    }

    /// Writes the parity of `pieces`' data rows into their last `m`. The slices are borrowed and not copied.
    pub(super) fn encode(&self, pieces: &mut [&mut [u8]]) {
        self.reed_solomon.encode(pieces).expect("k + m slices of one length that is not zero");
    }

    /// Where `content` stands in the content of `rows`.
    fn content_in_rows(&self, rows: &Range<u32>, content: &Range<u64>) -> Result<Range<usize>, CodeError> {
        let whole = |at: u32| (at as usize).is_multiple_of(SEGMENT_BYTES);
        if !whole(rows.start) || !whole(rows.end) || rows.start > rows.end || rows.end as usize > SECTOR_BYTES {
            return Err(CodeError::Range);
        }
        let start = u64::from(rows.start) * self.k as u64;
        let end = u64::from(rows.end) * self.k as u64;
        if content.start < start || content.end > end || content.start > content.end {
            return Err(CodeError::Range);
        }
        let offset = |at: u64| usize::try_from(at - start).map_err(|_| CodeError::Range);
        Ok(offset(content.start)?..offset(content.end)?)
    }

    /// The pieces by index, checked.
    fn sort_pieces(&self, pieces: &[(usize, Bytes)], piece_bytes: usize) -> Result<Vec<Option<Bytes>>, CodeError> {
        let mut sorted = vec![None; self.pieces()];
        for (index, piece) in pieces {
            let place = sorted.get_mut(*index).filter(|place| place.is_none());
            let place = place.ok_or(CodeError::PieceIndex { index: *index })?;
            if piece.len() > piece_bytes {
                return Err(CodeError::Range);
            }
            *place = Some(piece.clone());
        }
        if pieces.len() < self.k {
            return Err(CodeError::TooFewPieces { have: pieces.len(), need: self.k });
        }
        Ok(sorted)
    }

    /// Fills in missing data pieces. The library wants the present ones as vectors of its own, which costs one copy of
    /// `k` pieces, some 5 % of checking them.
    fn restore_data(&self, pieces: &mut [Option<Bytes>], piece_bytes: usize) -> Result<(), CodeError> {
        if piece_bytes == 0 {
            pieces[..self.k].fill(Some(Bytes::new()));
            return Ok(());
        }
        let mut wanted = self.k;
        let mut shards: Vec<Option<Vec<u8>>> = pieces
            .iter()
            .map(|piece| {
                let piece = piece.as_ref().filter(|_| wanted > 0)?;
                wanted -= 1;
                Some(owned(piece, piece_bytes))
            })
            .collect();
        self.reed_solomon.reconstruct_data(&mut shards).map_err(|_| self.too_few(&shards))?;
        for (piece, shard) in pieces[..self.k].iter_mut().zip(shards) {
            if piece.is_none() {
                *piece = shard.map(Bytes::from);
            }
        }
        Ok(())
    }

    fn too_few(&self, shards: &[Option<Vec<u8>>]) -> CodeError {
        CodeError::TooFewPieces { have: shards.iter().flatten().count(), need: self.k }
    }
}

/// A copy, padded with zeros.
fn owned(piece: &[u8], piece_bytes: usize) -> Vec<u8> {
    let mut copy = Vec::with_capacity(piece_bytes);
    copy.extend_from_slice(piece);
    copy.resize(piece_bytes, 0);
    copy
}

/// The pieces, short ones replaced by padded copies in `padded`.
fn pad_short<'a>(pieces: &[&'a [u8]], piece_bytes: usize, padded: &'a mut Vec<Option<Vec<u8>>>) -> Vec<&'a [u8]> {
    padded.extend(pieces.iter().map(|piece| (piece.len() < piece_bytes).then(|| owned(piece, piece_bytes))));
    pieces.iter().zip(padded).map(|(piece, padded)| padded.as_deref().unwrap_or(piece)).collect()
}

/// Joins data pieces of `piece_bytes`, whole rows, to content.
fn interleave(pieces: &[&[u8]], piece_bytes: usize) -> Vec<u8> {
    let pieces: Vec<&[[u8; SEGMENT_BYTES]]> =
        pieces.iter().map(|piece| piece[..piece_bytes].as_chunks::<SEGMENT_BYTES>().0).collect();
    let mut content: Vec<[u8; SEGMENT_BYTES]> = Vec::with_capacity(piece_bytes / SEGMENT_BYTES * pieces.len());
    for row in 0..piece_bytes / SEGMENT_BYTES {
        content.extend(pieces.iter().map(|piece| piece[row]));
    }
    content.into_flattened()
}

/// Deals content to data pieces, row by row; pieces past the content are filled with zeros.
pub(super) fn deinterleave(content: &[u8], pieces: &mut [&mut [u8]]) {
    let stripe_bytes = pieces.len() * SEGMENT_BYTES;
    let mut stripes = content.chunks_exact(stripe_bytes);
    let mut row_start = 0;
    for stripe in &mut stripes {
        let (blocks, _) = stripe.as_chunks::<SEGMENT_BYTES>();
        for (block, piece) in blocks.iter().zip(pieces.iter_mut()) {
            piece[row_start..row_start + SEGMENT_BYTES].copy_from_slice(block);
        }
        row_start += SEGMENT_BYTES;
    }
    let mut rest = stripes.remainder();
    for piece in pieces.iter_mut() {
        let (block, after) = rest.split_at(rest.len().min(SEGMENT_BYTES));
        piece[row_start..][..block.len()].copy_from_slice(block);
        piece[row_start + block.len()..].fill(0);
        rest = after;
    }
}
