//! The piece roots of a slab without its pieces: to check content against the roots that somebody else has written.

use super::code::{Code, CodeError, deinterleave};
use super::tree::fold_grains;
use super::{GRAIN_BYTES, NODE_BYTES, Root, SECTOR_BYTES, grain_nodes};

/// Bytes of each piece that are worked through at once: with 256 pieces 4 MiB, in whole grains.
const STRETCH_BYTES: usize = 16 << 10;

/// Content of one slab goes in, in order; the roots of its pieces come out. Holds a stretch of each piece and the nodes
/// of all grains: 48 KiB a piece.
#[derive(Debug)]
pub struct SlabRoots {
    code: Code,
    /// One stretch of each piece, one after the other.
    rows: Vec<u8>,
    nodes: Vec<Vec<[u8; NODE_BYTES]>>,
    /// Content that does not fill a stretch yet.
    waiting: Vec<u8>,
    content_bytes: u64,
}

impl SlabRoots {
    /// Of a slab of `k + m` pieces.
    pub fn new(k: u8, m: u8) -> Result<SlabRoots, CodeError> {
        let code = Code::new(k, m)?;
        let pieces = code.pieces();
        Ok(SlabRoots {
            rows: vec![0; pieces * STRETCH_BYTES],
            nodes: vec![Vec::new(); pieces],
            waiting: Vec::new(),
            content_bytes: 0,
            code,
        })
    }

    /// Bytes of content that the slab still has room for.
    pub fn room_bytes(&self) -> u64 {
        self.code.slab_bytes() - self.content_bytes
    }

    /// The next content.
    ///
    /// # Panics
    /// If it is more than [`SlabRoots::room_bytes`].
    pub fn push(&mut self, mut content: &[u8]) {
        assert!(content.len() as u64 <= self.room_bytes(), "more content than a slab holds");
        self.content_bytes += content.len() as u64;
        let stretch = self.code.data_pieces() * STRETCH_BYTES;
        while !content.is_empty() {
            let (part, after) = content.split_at(content.len().min(stretch - self.waiting.len()));
            self.waiting.extend_from_slice(part);
            content = after;
            if self.waiting.len() == stretch {
                self.hash_waiting();
            }
        }
    }

    /// The roots of all pieces, data pieces first. Another slab may begin.
    pub fn finish(&mut self) -> Vec<Root> {
        if !self.waiting.is_empty() {
            self.hash_waiting();
        }
        self.content_bytes = 0;
        self.nodes.iter_mut().map(|nodes| fold_grains(std::mem::take(nodes))).collect()
    }

    fn hash_waiting(&mut self) {
        const GRAINS: usize = STRETCH_BYTES / GRAIN_BYTES;
        const { assert!(SECTOR_BYTES.is_multiple_of(STRETCH_BYTES)) };
        let mut rows: Vec<&mut [u8]> = self.rows.chunks_mut(STRETCH_BYTES).collect();
        deinterleave(&self.waiting, &mut rows[..self.code.data_pieces()]);
        self.code.encode(&mut rows);
        for (row, nodes) in rows.iter().zip(&mut self.nodes) {
            let first = nodes.len();
            nodes.resize(first + GRAINS, [0; NODE_BYTES]);
            grain_nodes(row, &mut nodes[first..]);
        }
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::random_bytes;
    use super::super::{BufferPool, SlabEncoder};
    use super::*;

    /// The same roots as those of the slab itself, however the content comes.
    #[test]
    fn roots_equal_those_of_the_pieces() {
        for (k, m, length) in [(1, 9, 70_000), (2, 1, 8 << 20), (10, 20, 1_700_000), (6, 3, 1), (6, 3, 0)] {
            let content = random_bytes(length as u64, length);
            let pool = BufferPool::new(usize::from(k) + usize::from(m));
            let encoder = SlabEncoder::new(k, m, 0, pool.take(k, m)).expect("possible");
            for (step, part) in content.chunks(encoder.step_bytes()).enumerate() {
                encoder.encode_step(step, part);
            }
            let expect = encoder.finish(length as u64).roots();
            let mut roots = SlabRoots::new(k, m).expect("possible");
            for part_bytes in [usize::MAX, 100_003] {
                content.chunks(part_bytes.min(length.max(1))).for_each(|part| roots.push(part));
                assert_eq!(roots.room_bytes(), u64::from(k) * SECTOR_BYTES as u64 - length as u64);
                assert!(roots.finish() == expect, "{k} + {m}, {length}");
            }
        }
    }

    /// Which is why Skynet's fanouts name it once (`specs/skynet.md` 4).
    #[test]
    fn a_copy_of_the_data_is_the_only_parity_of_one_piece() {
        let mut roots = SlabRoots::new(1, 4).expect("possible");
        roots.push(b"hello");
        let found = roots.finish();
        assert!(found.iter().all(|root| *root == super::super::sector_root(b"hello")));
    }
}
