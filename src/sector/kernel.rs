//! The hot loop: BLAKE2b-256 of 65-byte messages (a prefix byte and 64 bytes), several at a time.
//!
//! Everything in a sector tree is such a message: `0x00 || segment` for leaves, `0x01 || left || right` for nodes. So the
//! message is one block, its words 9..15 are zero, and the counter and the final flag are constants.
//!
//! # Figures
//! 2026-11-22, AMD EPYC 7002 (Zen 2: AVX2, neither AVX-512 nor GFNI) at about 2.9 GHz, one core, release. GB/s of tree
//! hashing, that is 127 compressions for each 64 segments. "Whole tree" is the median of `cargo bench --bench sector`; "compressions
//! alone" the best of five to fifteen runs of a loop over one compression, written for the choice and not kept.
//!
//! | way | compressions alone | whole tree |
//! |---|---|---|
//! | `blake2b_simd`'s many-way hashing, a level at a time | | 0.28 |
//! | intrinsics, 4 lanes, one G after the other (the compiler makes the rotation by 16 into two shuffles) | 0.57 | |
//! | the same, four G side by side | 0.61 | |
//! | the same, the rotation by 16 kept as one shuffle | 0.72 | |
//! | the same, two interleaved states (8 lanes): 750 spills | 0.44 | |
//! | `asm!` half rounds, 24 spills, two G side by side | 0.65 | |
//! | `asm!` half rounds, 24 spills, four G in lock-step | 0.82 | 0.77 |
//! | the same, rotation by 63 with a compare for the shift | 0.76 | |
//! | **the same, each G one step behind the one before** | **0.86** | **0.79** |
//!
//! The units this processor has for vectors allow 1.0 at most (1,450 operations at four a cycle), so what is left
//! is 14 % in the compressions and 8 % in building message words. Lanes are different grains, or the quarters of one, so
//! that nothing is transposed above the leaves.
//!
//! There is no AVX-512 variant: no machine at hand could test one. One belongs beside [`Kernel::Avx2`], with 8 lanes,
//! rotations as instructions and registers enough for plain intrinsics (a prototype reached 1.0 that way).

use super::{GRAIN_BYTES, GRAIN_HEIGHT, SEGMENT_BYTES, zero_node};

/// Messages hashed together.
pub(super) const LANES: usize = 4;
pub(super) const LEAF_PREFIX: u8 = 0;
pub(super) const NODE_PREFIX: u8 = 1;

pub(super) type Node = [u8; 32];
pub(super) type Segment = [u8; SEGMENT_BYTES];
pub(super) type Grain = [Segment; GRAIN_BYTES / SEGMENT_BYTES];

/// Writes the nodes of `data`'s grains to `out`. The last grain counts as padded with zeros; grains of zeros are
/// recognised by looking and not hashed.
///
/// # Panics
/// If `out` has not one place for each grain.
pub fn grain_nodes(data: &[u8], out: &mut [[u8; 32]]) {
    grain_nodes_with(Kernel::detect(), data, out);
}

/// Which code hashes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx2(super::kernel_avx2::Avx2),
    /// `blake2b_simd`'s many-way hashing; also the oracle of the tests.
    Portable,
}

impl Kernel {
    /// The fastest kernel this processor runs. Detection is cached by the standard library.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = super::kernel_avx2::Avx2::detect() {
            return Self::Avx2(avx2);
        }
        Self::Portable
    }

    /// The nodes of four grains.
    fn four_grains(self, grains: [&Grain; LANES]) -> [Node; LANES] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.four_grains(grains),
            Self::Portable => grains.map(portable_grain),
        }
    }

    /// The node of one grain.
    fn one_grain(self, grain: &Grain) -> Node {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.one_grain(grain),
            Self::Portable => portable_grain(grain),
        }
    }

    /// `H(prefix || message)` of four messages.
    fn four_messages(self, prefix: u8, messages: [&Segment; LANES]) -> [Node; LANES] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.four_messages(prefix, messages),
            Self::Portable => messages.map(|message| hash_parts(prefix, &[message])),
        }
    }

    /// Replaces the first half of `nodes` by the parents of all of them.
    ///
    /// # Panics
    /// If the number of nodes is odd.
    pub(super) fn parents_in_place(self, nodes: &mut [Node]) {
        assert!(nodes.len().is_multiple_of(2), "parents need pairs");
        let parent_count = nodes.len() / 2;
        let mut first = 0;
        while first < parent_count {
            let count = LANES.min(parent_count - first);
            // Parents land at or before the children just read, so no unread child is overwritten.
            let (pairs, _) = nodes.as_flattened().as_chunks::<SEGMENT_BYTES>();
            let lanes = std::array::from_fn(|lane| &pairs[first + lane.min(count - 1)]);
            let parents =
                if count == 1 { [hash_parts(NODE_PREFIX, &[lanes[0]]); LANES] } else { self.four_messages(NODE_PREFIX, lanes) };
            nodes[first..first + count].copy_from_slice(&parents[..count]);
            first += count;
        }
    }

    /// `H(prefix || message)` of each message.
    pub(super) fn messages(self, prefix: u8, messages: &[Segment], out: &mut [Node]) {
        assert_eq!(messages.len(), out.len(), "one node a message");
        for (messages, out) in messages.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let lanes = std::array::from_fn(|lane| &messages[lane.min(messages.len() - 1)]);
            out.copy_from_slice(&self.four_messages(prefix, lanes)[..messages.len()]);
        }
    }
}

/// [`grain_nodes`] by a given kernel.
pub(super) fn grain_nodes_with(kernel: Kernel, data: &[u8], out: &mut [Node]) {
    assert_eq!(out.len(), data.len().div_ceil(GRAIN_BYTES), "one node a grain");
    let (whole, rest) = data.as_chunks::<GRAIN_BYTES>();
    let mut padded = [0; GRAIN_BYTES];
    padded[..rest.len()].copy_from_slice(rest);
    let grains = whole.iter().chain((!rest.is_empty()).then_some(&padded));

    // Grains waiting until four can be hashed together.
    let mut waiting: [(usize, &Grain); LANES] = [(0, as_segments(&padded)); LANES];
    let mut waiting_count = 0;
    for (index, grain) in grains.enumerate() {
        if is_zero(grain) {
            out[index] = zero_node(GRAIN_HEIGHT);
            continue;
        }
        waiting[waiting_count] = (index, as_segments(grain));
        waiting_count += 1;
        if waiting_count == LANES {
            for (place, node) in waiting.iter().zip(kernel.four_grains(waiting.map(|(_, grain)| grain))) {
                out[place.0] = node;
            }
            waiting_count = 0;
        }
    }
    for (index, grain) in &waiting[..waiting_count] {
        out[*index] = kernel.one_grain(grain);
    }
}

fn as_segments(grain: &[u8; GRAIN_BYTES]) -> &Grain {
    let (segments, _) = grain.as_chunks::<SEGMENT_BYTES>();
    segments.try_into().expect("a grain is 64 whole segments")
}

/// True if all bytes are zero; ends at the first segment that is not, so that it costs nothing for other data.
pub(super) fn is_zero(data: &[u8]) -> bool {
    let (segments, rest) = data.as_chunks::<SEGMENT_BYTES>();
    segments.iter().all(|segment| segment.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Length of `data` without its trailing zeros, in bytes.
pub(super) fn length_without_zeros(data: &[u8]) -> usize {
    let mut length = data.len();
    while length >= SEGMENT_BYTES && is_zero(&data[length - SEGMENT_BYTES..length]) {
        length -= SEGMENT_BYTES;
    }
    length - data[..length].iter().rev().take_while(|byte| **byte == 0).count()
}

/// BLAKE2b-256 of a prefix byte and some parts: what is not hot.
pub(super) fn hash_parts(prefix: u8, parts: &[&[u8]]) -> Node {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    state.update(&[prefix]);
    for part in parts {
        state.update(part);
    }
    digest(&state.finalize())
}

pub(super) fn digest(hash: &blake2b_simd::Hash) -> Node {
    hash.as_bytes().try_into().expect("the hash length was set to 32 bytes")
}

/// One grain by `blake2b_simd`, a level at a time.
fn portable_grain(grain: &Grain) -> Node {
    let mut nodes = [[0; 32]; GRAIN_BYTES / SEGMENT_BYTES];
    portable_level(LEAF_PREFIX, grain, &mut nodes);
    let mut count = nodes.len();
    while count > 1 {
        let mut pairs: Grain = [[0; SEGMENT_BYTES]; GRAIN_BYTES / SEGMENT_BYTES];
        count /= 2;
        pairs[..count].as_flattened_mut().copy_from_slice(nodes[..2 * count].as_flattened());
        portable_level(NODE_PREFIX, &pairs[..count], &mut nodes[..count]);
    }
    nodes[0]
}

fn portable_level(prefix: u8, messages: &[Segment], out: &mut [Node]) {
    let mut params = blake2b_simd::Params::new();
    params.hash_length(32);
    let inputs: Vec<[u8; SEGMENT_BYTES + 1]> = messages
        .iter()
        .map(|message| {
            let mut input = [prefix; SEGMENT_BYTES + 1];
            input[1..].copy_from_slice(message);
            input
        })
        .collect();
    let mut jobs: Vec<_> = inputs.iter().map(|input| blake2b_simd::many::HashManyJob::new(&params, input)).collect();
    blake2b_simd::many::hash_many(jobs.iter_mut());
    for (job, out) in jobs.iter().zip(out) {
        *out = digest(&job.to_hash());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(kernel: Kernel, data: &[u8]) -> Vec<Node> {
        let mut out = vec![[0xee; 32]; data.len().div_ceil(GRAIN_BYTES)];
        grain_nodes_with(kernel, data, &mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Kernel and oracle agree at any length, with grains of zeros strewn in.
        #[test]
        fn kernel_equals_oracle(seed in any::<u64>(), len in 0usize..12 * GRAIN_BYTES, zero_grains in any::<u16>()) {
            let mut data = crate::sector::testing::random_bytes(seed, len);
            for (index, grain) in data.chunks_mut(GRAIN_BYTES).enumerate() {
                if zero_grains >> index & 1 == 1 {
                    grain.fill(0);
                }
            }
            prop_assert_eq!(nodes(Kernel::detect(), &data), nodes(Kernel::Portable, &data));
        }

        /// Single messages under either prefix.
        #[test]
        fn messages_equal_oracle(seed in any::<u64>(), count in 0usize..11, prefix in 0u8..2) {
            let data = crate::sector::testing::random_bytes(seed, count * SEGMENT_BYTES);
            let (messages, _) = data.as_chunks::<SEGMENT_BYTES>();
            let mut out = vec![[0; 32]; count];
            Kernel::detect().messages(prefix, messages, &mut out);
            let oracle: Vec<_> = messages.iter().map(|message| hash_parts(prefix, &[message])).collect();
            prop_assert_eq!(out, oracle);
        }

        #[test]
        fn parents_equal_oracle(seed in any::<u64>(), pairs in 0usize..11) {
            let data = crate::sector::testing::random_bytes(seed, pairs * SEGMENT_BYTES);
            let (nodes, _) = data.as_chunks::<32>();
            let mut nodes = nodes.to_vec();
            Kernel::detect().parents_in_place(&mut nodes);
            let oracle: Vec<_> = data.chunks(SEGMENT_BYTES).map(|pair| hash_parts(NODE_PREFIX, &[pair])).collect();
            prop_assert_eq!(&nodes[..pairs], &oracle[..]);
        }
    }

    /// All-ones and one-bit inputs catch a carry or a word in the wrong place that random data would also catch, but
    /// name it better.
    #[test]
    fn kernel_edges() {
        for (byte, value) in [(0, 1), (63, 0x80), (64, 0xff), (4095, 1), (2048, 0x10)] {
            let mut data = vec![0; 4 * GRAIN_BYTES];
            data[byte] = value;
            data[GRAIN_BYTES..2 * GRAIN_BYTES].fill(0xff);
            data[3 * GRAIN_BYTES + byte] = value;
            assert_eq!(nodes(Kernel::detect(), &data), nodes(Kernel::Portable, &data), "byte {byte}");
        }
    }

    #[test]
    fn lengths_without_zeros() {
        for (data, expect) in
            [(vec![], 0), (vec![0; 200], 0), (vec![1], 1), (vec![1, 0], 1), ([vec![0; 99], vec![7], vec![0; 300]].concat(), 100)]
        {
            assert_eq!(length_without_zeros(&data), expect);
        }
    }
}
