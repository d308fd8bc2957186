//! Encoding a slab in cache-sized steps, by several threads.
//!
//! A step is an eighth of the slab: 512 KiB of each piece. One call deals its content to the data pieces, computes
//! the parity and hashes the grains of all pieces, a few grains of each piece at a time, so that every byte is
//! read from memory once. The bytes land where they stand in the objects, so nothing is copied for a full slab.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use super::code::{Code, CodeError, deinterleave};
use super::kernel::{grain_nodes, grains_together, length_without_zeros};
use super::memory::{FULL_DATA_OFFSET, SlabBuffer, SlabBuffers};
use super::object::{ObjectHeader, SectorObject, data_offset, node_count, object_len};
use super::tree::fold_grains;
use super::{GRAIN_BYTES, HEADER_BYTES, NODE_BYTES, Root, SECTOR_BYTES, SEGMENT_BYTES};

/// Steps of a slab.
pub const SLAB_STEPS: usize = 8;
/// Bytes of each piece in one step.
const STEP_ROWS_BYTES: usize = SECTOR_BYTES / SLAB_STEPS;
/// A step nobody has claimed.
const UNCLAIMED: u32 = u32::MAX;
/// A step being encoded.
const CLAIMED: u32 = u32::MAX - 1;

/// `H(roots of all pieces, in order)`: the slab's name for placement (`docs/formats.md` 8).
pub fn slab_id(roots: &[Root]) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    for root in roots {
        state.update(&root.0);
    }
    super::kernel::digest(&state.finalize())
}

/// A slab being encoded. Its steps may be encoded in any order and by several threads at once.
#[derive(Debug)]
pub struct SlabEncoder {
    code: Code,
    header: ObjectHeader,
    buffers: Vec<SlabBuffer>,
    /// Content bytes of each encoded step, or [`UNCLAIMED`] or [`CLAIMED`].
    steps: [AtomicU32; SLAB_STEPS],
}

/// The pieces of a slab, ready to be written.
#[derive(Clone, Debug)]
pub struct EncodedSlab {
    /// One object for each piece, data pieces first.
    pub objects: Vec<SectorObject>,
    /// Bytes of content; the slab is zero from there on.
    pub content_len: u64,
}

impl EncodedSlab {
    /// The piece roots in order, as a fanout lists them.
    pub fn roots(&self) -> Vec<Root> {
        self.objects.iter().map(|object| object.root).collect()
    }

    /// The slab's name for placement.
    pub fn id(&self) -> [u8; 32] {
        slab_id(&self.roots())
    }
}

impl SlabEncoder {
    /// Begins a slab of `k + m` pieces; `epoch` is written to the headers as a hint.
    ///
    /// # Panics
    /// If the buffers are not `k + m`.
    pub fn new(k: u8, m: u8, epoch: u64, buffers: SlabBuffers) -> Result<Self, CodeError> {
        let code = Code::new(k, m)?;
        assert_eq!(buffers.piece_count(), code.pieces(), "one buffer for each piece");
        let header = ObjectHeader { data_length: 0, k, m, epoch };
        Ok(Self { code, header, buffers: buffers.0, steps: [const { AtomicU32::new(UNCLAIMED) }; SLAB_STEPS] })
    }

    /// Bytes of content in a step: `k` x 512 KiB. Only the last step used may have fewer.
    pub fn step_bytes(&self) -> usize {
        self.code.data_pieces() * STEP_ROWS_BYTES
    }

    /// Number of steps of a full slab.
    pub fn steps(&self) -> usize {
        SLAB_STEPS
    }

    /// Encodes one step. May run in several threads at once, for different steps; steps past the content need no call.
    ///
    /// # Panics
    /// If the step does not exist or was given before, or if there are more bytes than [`SlabEncoder::step_bytes`].
    pub fn encode_step(&self, step: usize, content: &[u8]) {
        assert!(content.len() <= self.step_bytes(), "more content than a step holds");
        let before = self.steps[step].swap(CLAIMED, Ordering::AcqRel);
        assert_eq!(before, UNCLAIMED, "each step is encoded once");
        // SAFETY: the swap above let exactly this call through for this step.
        let mut windows: Vec<StepWindow<'_>> = self.buffers.iter().map(|buffer| unsafe { StepWindow::of(buffer, step) }).collect();
        // Bytes of each piece worked through at once: a grain for each lane of the hash; nine pieces take 144 or 288 KiB, which
        // stays in the second-level cache.
        let block_bytes = grains_together() * GRAIN_BYTES;
        for (block, content) in content.chunks(self.code.data_pieces() * block_bytes).enumerate() {
            let at = block * block_bytes;
            let mut rows: Vec<&mut [u8]> = windows.iter_mut().map(|window| &mut window.rows[at..at + block_bytes]).collect();
            deinterleave(content, &mut rows[..self.code.data_pieces()]);
            self.code.encode(&mut rows);
            let first_grain = at / GRAIN_BYTES;
            for window in &mut windows {
                let nodes = &mut window.nodes[first_grain..first_grain + grains_together()];
                grain_nodes(&window.rows[at..at + block_bytes], nodes);
            }
        }
        let length = u32::try_from(content.len()).expect("a step has at most 255 x 512 KiB");
        self.steps[step].store(length, Ordering::Release);
    }

    /// Ends a slab of `content_len` bytes: folds the nodes to roots and writes the headers. Trailing zeros of the
    /// pieces are cut; the data then moves up behind fewer nodes.
    ///
    /// # Panics
    /// If the encoded steps are not exactly those of `content_len` bytes.
    pub fn finish(self, content_len: u64) -> EncodedSlab {
        self.check_steps(content_len);
        let stripe_bytes = (self.code.data_pieces() * SEGMENT_BYTES) as u64;
        let rows_bytes = usize::try_from(content_len.div_ceil(stripe_bytes)).expect("a piece has 4 MiB") * SEGMENT_BYTES;
        let header = self.header;
        let objects = self.buffers.into_iter().map(|buffer| finish_piece(buffer, rows_bytes, header)).collect();
        EncodedSlab { objects, content_len }
    }

    fn check_steps(&self, content_len: u64) {
        assert!(content_len <= self.code.slab_bytes(), "more content than a slab holds");
        let mut left = content_len;
        for (step, length) in self.steps.iter().enumerate() {
            let expect = left.min(self.step_bytes() as u64);
            left -= expect;
            let encoded = length.load(Ordering::Acquire);
            let unused = expect == 0 && encoded == UNCLAIMED;
            assert!(unused || u64::from(encoded) == expect, "step {step} has to have {expect} bytes of content");
        }
    }
}

fn finish_piece(mut buffer: SlabBuffer, rows_bytes: usize, header: ObjectHeader) -> SectorObject {
    let buf = buffer.buf_mut();
    let memory = buf.memory_mut();
    let data_length = length_without_zeros(&memory[FULL_DATA_OFFSET..FULL_DATA_OFFSET + rows_bytes]);
    let header = ObjectHeader { data_length: u32::try_from(data_length).expect("a piece has 4 MiB"), ..header };
    header.write(memory);
    let offset = data_offset(header.data_length);
    let (nodes, _) = memory[HEADER_BYTES..offset].as_chunks::<NODE_BYTES>();
    debug_assert_eq!(nodes.len(), node_count(header.data_length));
    let root = fold_grains(nodes.to_vec());
    if offset != FULL_DATA_OFFSET {
        memory.copy_within(FULL_DATA_OFFSET..FULL_DATA_OFFSET + data_length, offset);
    }
    buf.set_len(object_len(header.data_length));
    SectorObject { root, bytes: Bytes::from_owner(buffer) }
}

/// One step's rows and nodes in one piece's buffer.
struct StepWindow<'a> {
    rows: &'a mut [u8],
    nodes: &'a mut [[u8; NODE_BYTES]],
}

impl<'a> StepWindow<'a> {
    /// # Safety
    /// No other window of this step and buffer may exist, and nobody may touch the buffer otherwise while it does.
    /// (Windows are the only access to buffers inside a [`SlabEncoder`] until it is consumed.)
    unsafe fn of(buffer: &'a SlabBuffer, step: usize) -> Self {
        const GRAINS: usize = STEP_ROWS_BYTES / GRAIN_BYTES;
        assert!(step < SLAB_STEPS);
        let start: NonNull<u8> = buffer.buf().start();
        // SAFETY: both ranges lie inside the buffer of a full sector object, are initialised, and overlap neither
        // each other nor those of another step; the caller vouches for this step.
        unsafe {
            let rows = start.add(FULL_DATA_OFFSET + step * STEP_ROWS_BYTES);
            let nodes = start.add(HEADER_BYTES + step * GRAINS * NODE_BYTES).cast::<[u8; NODE_BYTES]>();
            Self {
                rows: std::slice::from_raw_parts_mut(rows.as_ptr(), STEP_ROWS_BYTES),
                nodes: std::slice::from_raw_parts_mut(nodes.as_ptr(), GRAINS),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sector::testing::{hex_of, random_bytes, vectors};
    use crate::sector::{BufferPool, build_object, open_object, sector_root};

    /// Buffers full of an earlier slab's bytes, as a pool gives them.
    fn used_buffers(k: u8, m: u8) -> SlabBuffers {
        let mut buffers = SlabBuffers::allocate(k, m);
        for buffer in &mut buffers.0 {
            buffer.buf_mut().memory_mut().fill(0xdd);
        }
        buffers
    }

    fn encode(k: u8, m: u8, content: &[u8]) -> EncodedSlab {
        let encoder = SlabEncoder::new(k, m, 5, used_buffers(k, m)).unwrap();
        for (step, content) in content.chunks(encoder.step_bytes()).enumerate() {
            encoder.encode_step(step, content);
        }
        encoder.finish(content.len() as u64)
    }

    /// The data of a piece, its trailing zeros written out.
    fn piece(object: &SectorObject, length: usize) -> Vec<u8> {
        let mut data = open_object(&object.root, &object.bytes).unwrap().data.to_vec();
        assert!(data.len() <= length);
        data.resize(length, 0);
        data
    }

    #[test]
    fn skynet_vectors() {
        let Some(file) = vectors("skynet-vectors/erasure_rs_subshard64.json") else { return };
        let vectors = file["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 8);
        for vector in vectors {
            let count = |name: &str| u8::try_from(vector[name].as_u64().unwrap()).unwrap();
            let (k, m) = (count("data_pieces"), count("parity_pieces"));
            let content = hex_of(&vector["data_hex"]);
            let length = content.len() / usize::from(k);
            let slab = encode(k, m, &content);
            let pieces: Vec<Vec<u8>> = slab.objects.iter().map(|object| piece(object, length)).collect();
            let expect: Vec<Vec<u8>> = vector["pieces_hex"].as_array().unwrap().iter().map(hex_of).collect();
            assert_eq!(pieces, expect, "{k}+{m}");
            // Any k: here the last ones.
            let last: Vec<(usize, Bytes)> = pieces.into_iter().map(Bytes::from).enumerate().skip(usize::from(m)).collect();
            let code = Code::new(k, m).unwrap();
            let end = content.len() as u64;
            assert_eq!(code.decode_range(&last, code.read_plan(0..end), 0..end).unwrap(), content);
        }
    }

    #[test]
    fn objects_equal_those_built_alone() {
        // Lengths around grains, blocks, steps and the slab of 2 + 1.
        for length in [1, 63, 64, 129, 8192, 8193, 32_768, 32_769, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000, 8 << 20] {
            let content = random_bytes(length as u64, length);
            let slab = encode(2, 1, &content);
            let rows_bytes = length.div_ceil(128) * 64;
            for object in &slab.objects {
                assert_eq!(object.bytes.as_ptr() as usize % 4096, 0);
                let data = piece(object, rows_bytes);
                assert_eq!(object.root, sector_root(&data), "{length}");
                assert_eq!(object.bytes, build_object(&data, 2, 1, 5).bytes, "{length}");
            }
            assert_eq!(slab.id(), slab_id(&slab.roots()));
        }
    }

    #[test]
    fn zeros_cost_nothing_to_store() {
        let empty = encode(3, 2, &[]);
        assert!(empty.objects.iter().all(|object| object.bytes.len() == HEADER_BYTES && object.root == sector_root(&[])));
        let zeros = encode(3, 2, &vec![0; 3 << 20]);
        assert_eq!(zeros.roots(), empty.roots());
        // A hole of zeros in the middle, and zeros at the end.
        let mut content = random_bytes(1, 3 << 20);
        content[100_000..2_900_000].fill(0);
        content[3_000_000..].fill(0);
        for object in encode(3, 2, &content).objects {
            assert_eq!(object.root, sector_root(&piece(&object, 1 << 20)));
        }
    }

    #[test]
    fn steps_by_threads_and_pooled_buffers() {
        let pool = BufferPool::new(5);
        let content = random_bytes(9, 12 << 20);
        let expect = encode(3, 2, &content).roots();
        for _ in 0..2 {
            let encoder = SlabEncoder::new(3, 2, 5, pool.take(3, 2)).unwrap();
            std::thread::scope(|scope| {
                for (step, content) in content.chunks(encoder.step_bytes()).enumerate().rev() {
                    let encoder = &encoder;
                    scope.spawn(move || encoder.encode_step(step, content));
                }
            });
            let slab = encoder.finish(content.len() as u64);
            assert_eq!((slab.roots(), pool.unused()), (expect.clone(), 0));
            drop(slab);
            assert_eq!(pool.unused(), 5);
        }
    }

    fn encoder() -> SlabEncoder {
        SlabEncoder::new(1, 0, 0, SlabBuffers::allocate(1, 0)).unwrap()
    }

    #[test]
    #[should_panic(expected = "each step is encoded once")]
    fn a_step_twice() {
        let encoder = encoder();
        encoder.encode_step(3, &[1]);
        encoder.encode_step(3, &[1]);
    }

    #[test]
    #[should_panic(expected = "step 0 has to have 10 bytes")]
    fn a_step_missing() {
        encoder().finish(10);
    }

    #[test]
    #[should_panic(expected = "step 0 has to have 524288 bytes")]
    fn a_short_step_before_the_last() {
        let encoder = encoder();
        encoder.encode_step(0, &[1; 1000]);
        encoder.encode_step(1, &[1; 1000]);
        encoder.finish(STEP_ROWS_BYTES as u64 + 1000);
    }

    #[test]
    #[should_panic(expected = "step 1 has to have 0 bytes")]
    fn a_step_past_the_content() {
        let encoder = encoder();
        encoder.encode_step(0, &vec![1; STEP_ROWS_BYTES]);
        encoder.encode_step(1, &[1]);
        encoder.finish(STEP_ROWS_BYTES as u64);
    }

    #[test]
    fn impossible_codes() {
        for (k, m) in [(0, 0), (0, 3), (255, 255), (200, 57)] {
            let error = CodeError::Pieces { k: k.into(), m: m.into() };
            assert_eq!(Code::new(k, m).unwrap_err(), error);
        }
        assert_eq!(Code::new(255, 1).unwrap().pieces(), 256);
    }

    #[test]
    fn read_plans() {
        let code = Code::new(6, 3).unwrap();
        for (content, expect) in [
            (0..0, 0..0),
            (0..1, 0..64),
            (383..385, 0..128),
            (384..768, 64..128),
            (500..500, 64..128),
            (0..6 << 22, 0..4 << 20),
            (6 << 22..6 << 22, 4 << 20..4 << 20),
        ] {
            assert_eq!(code.read_plan(content.clone()), expect, "{content:?}");
        }
    }

    #[test]
    fn bad_decodes() {
        let code = Code::new(2, 1).unwrap();
        let row = Bytes::from(vec![1; 64]);
        let two = |a: usize, b: usize| vec![(a, row.clone()), (b, row.clone())];
        for (pieces, rows, content, expect) in [
            (two(0, 0), 0..64, 0..128, CodeError::PieceIndex { index: 0 }),
            (two(0, 3), 0..64, 0..128, CodeError::PieceIndex { index: 3 }),
            (two(0, 1)[..1].to_vec(), 0..64, 0..128, CodeError::TooFewPieces { have: 1, need: 2 }),
            (two(0, 1), 0..63, 0..100, CodeError::Range),
            (two(0, 1), 64..128, 0..128, CodeError::Range),
            (two(0, 1), 0..64, 0..129, CodeError::Range),
            (two(0, 1), 0..0, 0..0, CodeError::Range),
            (two(0, 1), 0..u32::MAX - 63, 0..128, CodeError::Range),
        ] {
            assert_eq!(code.decode_range(&pieces, rows, content).unwrap_err(), expect);
        }
        assert_eq!(code.rebuild_pieces(&two(0, 1), &[3], 64), Err(CodeError::PieceIndex { index: 3 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Any k pieces give back any range, and rebuild every other piece.
        #[test]
        fn any_k_pieces(
            seed in any::<u64>(), k in 1u8..11, m in 0u8..8, length in 1usize..200_000, zeros in 0usize..30_000,
            order in Just(()).prop_perturb(|_, mut rng| rng.random::<u64>()), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(),
        ) {
            let mut content = random_bytes(seed, length);
            let holes = zeros.min(length);
            content[length - holes..].fill(0);
            let slab = encode(k, m, &content);
            let code = Code::new(k, m).unwrap();
            let (a, b) = (a.index(length + 1), b.index(length + 1));
            let range = a.min(b) as u64..a.max(b) as u64;
            let rows = code.read_plan(range.clone());
            // k pieces in an order drawn from the seed, each cut to the rows and short where it has trailing zeros.
            let mut indexes: Vec<usize> = (0..code.pieces()).collect();
            indexes.sort_by_key(|index| (order ^ *index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            indexes.truncate(usize::from(k));
            let cut = |index: usize, rows: std::ops::Range<usize>| {
                let data = slab.objects[index].data();
                (index, data.slice(rows.start.min(data.len())..rows.end.min(data.len())))
            };
            let pieces: Vec<_> = indexes.iter().map(|index| cut(*index, rows.start as usize..rows.end as usize)).collect();
            prop_assert_eq!(&code.decode_range(&pieces, rows, range.clone()).unwrap()[..], &content[a.min(b)..a.max(b)]);

            let piece_bytes = code.read_plan(0..length as u64).end;
            let pieces: Vec<_> = indexes.iter().map(|index| cut(*index, 0..piece_bytes as usize)).collect();
            let all: Vec<usize> = (0..code.pieces()).collect();
            for (index, data) in code.rebuild_pieces(&pieces, &all, piece_bytes).unwrap().iter().enumerate() {
                prop_assert_eq!(&build_object(data, k, m, 5).bytes, &slab.objects[index].bytes);
            }
        }
    }
}
