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
//! With AVX-512 there are eight lanes, rotations are instructions, and registers are enough for plain intrinsics.
//! 2026-11-26, Intel Xeon with AVX-512 (Sapphire Rapids class), medians of five, GB of the whole tree a second of CPU time:
//! `blake2b_simd` 0.31, AVX2 0.59, **AVX-512 1.05**; 44 grains at once (a piece of a 1 MiB read) the same.
//!
//! 2026-11-29, AMD EPYC with AVX-512 (Zen 4, 3.66 GHz): eight grains in cache **1.11**. One compression takes 795 cycles, of which
//! its 1,248 instructions need 624 with every vector unit busy (each of 512 bits takes two turns), and the words of one message 74.
//! `asm!` half rounds, each G a step behind the one before, or in lock-step, make 1.14, two steps behind 1.12, three 1.09; four lanes in
//! 256-bit registers 0.91. Not worth the assembly.

use super::{GRAIN_BYTES, GRAIN_HEIGHT, SEGMENT_BYTES, zero_node};

/// Messages hashed together at most.
const LANES_MAX: usize = 8;
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

/// How many grains are best given together on this processor.
pub(super) fn grains_together() -> usize {
    Kernel::detect().lanes().max(4)
}

/// Which code hashes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512(super::kernel_avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(super::kernel_avx2::Avx2),
    /// `blake2b_simd`'s many-way hashing; also the oracle of the tests.
    Portable,
}

impl Kernel {
    /// The fastest kernel this processor runs. Detection is cached by the standard library.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx512) = super::kernel_avx512::Avx512::detect() {
            return Self::Avx512(avx512);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = super::kernel_avx2::Avx2::detect() {
            return Self::Avx2(avx2);
        }
        Self::Portable
    }

    /// Every kernel that this processor runs.
    #[cfg(test)]
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(super::kernel_avx2::Avx2::detect().map(Self::Avx2));
            all.extend(super::kernel_avx512::Avx512::detect().map(Self::Avx512));
        }
        all
    }

    /// Messages, or grains, that it hashes together.
    fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => super::kernel_avx512::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => super::kernel_avx2::LANES,
            Self::Portable => 1,
        }
    }

    /// The nodes of at most [`Kernel::lanes`] grains.
    fn grains(self, grains: &[&Grain], out: &mut [Node; LANES_MAX]) {
        match self {
            // Lanes that are left idle cost as much as others; one grain spread over all lanes costs an eighth.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) if grains.len() > 4 => *out = avx512.eight_grains(lanes_of(grains)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => grains.iter().zip(out).for_each(|(grain, out)| *out = avx512.one_grain(grain)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) if grains.len() == super::kernel_avx2::LANES => {
                out[..super::kernel_avx2::LANES].copy_from_slice(&avx2.four_grains(lanes_of(grains)));
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => grains.iter().zip(out).for_each(|(grain, out)| *out = avx2.one_grain(grain)),
            Self::Portable => grains.iter().zip(out).for_each(|(grain, out)| *out = portable_grain(grain)),
        }
    }

    /// `H(prefix || message)` of at most [`Kernel::lanes`] messages.
    fn some_messages(self, prefix: u8, messages: &[&Segment]) -> [Node; LANES_MAX] {
        let mut out = [[0; 32]; LANES_MAX];
        match (self, messages) {
            (_, [message]) => out[0] = hash_parts(prefix, &[*message]),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512(avx512), _) => out = avx512.eight_messages(prefix, lanes_of(messages)),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2(avx2), _) => {
                out[..super::kernel_avx2::LANES].copy_from_slice(&avx2.four_messages(prefix, lanes_of(messages)));
            }
            (Self::Portable, _) => messages.iter().zip(&mut out).for_each(|(message, out)| *out = hash_parts(prefix, &[*message])),
        }
        out
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
            let count = self.lanes().min(parent_count - first);
            // Parents land at or before the children just read, so no unread child is overwritten.
            let (pairs, _) = nodes.as_flattened().as_chunks::<SEGMENT_BYTES>();
            let lanes: [&Segment; LANES_MAX] = std::array::from_fn(|lane| &pairs[first + lane.min(count - 1)]);
            let parents = self.some_messages(NODE_PREFIX, &lanes[..count]);
            nodes[first..first + count].copy_from_slice(&parents[..count]);
            first += count;
        }
    }

    /// `H(prefix || message)` of each message.
    pub(super) fn messages(self, prefix: u8, messages: &[Segment], out: &mut [Node]) {
        assert_eq!(messages.len(), out.len(), "one node a message");
        for (messages, out) in messages.chunks(self.lanes()).zip(out.chunks_mut(self.lanes())) {
            let lanes: [&Segment; LANES_MAX] = std::array::from_fn(|lane| &messages[lane.min(messages.len() - 1)]);
            out.copy_from_slice(&self.some_messages(prefix, &lanes[..messages.len()])[..messages.len()]);
        }
    }
}

/// One for each lane; lanes without one of their own do the last one again.
#[cfg(target_arch = "x86_64")]
fn lanes_of<'a, T, const LANES: usize>(given: &[&'a T]) -> [&'a T; LANES] {
    std::array::from_fn(|lane| given[lane.min(given.len() - 1)])
}

/// [`grain_nodes`] by a given kernel.
pub(super) fn grain_nodes_with(kernel: Kernel, data: &[u8], out: &mut [Node]) {
    assert_eq!(out.len(), data.len().div_ceil(GRAIN_BYTES), "one node a grain");
    let (whole, rest) = data.as_chunks::<GRAIN_BYTES>();
    let mut padded = [0; GRAIN_BYTES];
    padded[..rest.len()].copy_from_slice(rest);
    let grains = whole.iter().chain((!rest.is_empty()).then_some(&padded));

    // Grains waiting until there is one for each lane.
    let mut waiting: [&Grain; LANES_MAX] = [as_segments(&padded); LANES_MAX];
    let mut places = [0; LANES_MAX];
    let mut waiting_count = 0;
    let mut nodes = [[0; 32]; LANES_MAX];
    let mut hash = |waiting: &[&Grain], places: &[usize], out: &mut [Node]| {
        kernel.grains(waiting, &mut nodes);
        places.iter().zip(&nodes).for_each(|(place, node)| out[*place] = *node);
    };
    for (index, grain) in grains.enumerate() {
        if is_zero(grain) {
            out[index] = zero_node(GRAIN_HEIGHT);
            continue;
        }
        (waiting[waiting_count], places[waiting_count]) = (as_segments(grain), index);
        waiting_count += 1;
        if waiting_count == kernel.lanes() {
            hash(&waiting[..waiting_count], &places[..waiting_count], out);
            waiting_count = 0;
        }
    }
    if waiting_count > 0 {
        hash(&waiting[..waiting_count], &places[..waiting_count], out);
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
        fn kernel_equals_oracle(seed in any::<u64>(), len in 0usize..20 * GRAIN_BYTES, zero_grains in any::<u32>()) {
            let mut data = crate::sector::testing::random_bytes(seed, len);
            for (index, grain) in data.chunks_mut(GRAIN_BYTES).enumerate() {
                if zero_grains >> index & 1 == 1 {
                    grain.fill(0);
                }
            }
            for kernel in Kernel::all() {
                prop_assert_eq!(nodes(kernel, &data), nodes(Kernel::Portable, &data), "{:?}", kernel);
            }
        }

        /// Single messages under either prefix.
        #[test]
        fn messages_equal_oracle(seed in any::<u64>(), count in 0usize..21, prefix in 0u8..2) {
            let data = crate::sector::testing::random_bytes(seed, count * SEGMENT_BYTES);
            let (messages, _) = data.as_chunks::<SEGMENT_BYTES>();
            let oracle: Vec<_> = messages.iter().map(|message| hash_parts(prefix, &[message])).collect();
            for kernel in Kernel::all() {
                let mut out = vec![[0; 32]; count];
                kernel.messages(prefix, messages, &mut out);
                prop_assert_eq!(&out, &oracle, "{:?}", kernel);
            }
        }

        #[test]
        fn parents_equal_oracle(seed in any::<u64>(), pairs in 0usize..21) {
            let data = crate::sector::testing::random_bytes(seed, pairs * SEGMENT_BYTES);
            let oracle: Vec<_> = data.chunks(SEGMENT_BYTES).map(|pair| hash_parts(NODE_PREFIX, &[pair])).collect();
            for kernel in Kernel::all() {
                let mut nodes = data.as_chunks::<32>().0.to_vec();
                kernel.parents_in_place(&mut nodes);
                prop_assert_eq!(&nodes[..pairs], &oracle[..], "{:?}", kernel);
            }
        }
    }

    /// All-ones and one-bit inputs catch a carry or a word in the wrong place that random data would also catch, but
    /// name it better.
    #[test]
    fn kernel_edges() {
        for (byte, value) in [(0, 1), (63, 0x80), (64, 0xff), (4095, 1), (2048, 0x10)] {
            for grain_count in [4, 8] {
                let mut data = vec![0; grain_count * GRAIN_BYTES];
                data[byte] = value;
                data[GRAIN_BYTES..(grain_count - 1) * GRAIN_BYTES].fill(0xff);
                data[(grain_count - 1) * GRAIN_BYTES + byte] = value;
                for kernel in Kernel::all() {
                    assert_eq!(nodes(kernel, &data), nodes(Kernel::Portable, &data), "{kernel:?}, byte {byte}");
                }
            }
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
