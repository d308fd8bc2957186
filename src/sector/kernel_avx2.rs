//! BLAKE2b-256 of four 65-byte messages at once, in AVX2 registers: lane `i` of every vector belongs to message `i`.
//!
//! Sixteen state vectors fill all sixteen registers, and one more is needed for a moment in each rotation by 63. Left
//! to itself the compiler spills some 180 vectors a compression (on Zen 2 a store takes the unit that also shifts and
//! shuffles). So each half round is one `asm!` block over the sixteen state vectors, with one spill at a point where row
//! `a` rests: 24 spills a compression, and 1.2 times the rate. Figures stand in `kernel.rs`.
//! Loads, transposes and everything else are intrinsics.

use std::arch::asm;
use std::arch::x86_64::*;

use super::kernel::{Grain, LEAF_PREFIX, NODE_PREFIX, Node, Segment};
use super::{GRAIN_BYTES, SEGMENT_BYTES};

/// Messages hashed together.
pub(super) const LANES: usize = 4;

/// Proof that this processor has AVX2: it can only be had from [`Avx2::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        std::is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// The nodes of four grains, one in each lane.
    pub(super) fn four_grains(self, grains: [&Grain; LANES]) -> [Node; LANES] {
        // SAFETY: a value of `Avx2` exists only where AVX2 was detected.
        unsafe { to_nodes(subtrees(grains)) }
    }

    /// The node of one grain: a quarter in each lane, then two compressions for the top.
    pub(super) fn one_grain(self, grain: &Grain) -> Node {
        let (quarters, _) = grain.as_chunks::<{ GRAIN_BYTES / SEGMENT_BYTES / LANES }>();
        // SAFETY: a value of `Avx2` exists only where AVX2 was detected.
        let quarters = unsafe { to_nodes(subtrees(std::array::from_fn(|lane| &quarters[lane]))) };
        let (pairs, _) = quarters.as_flattened().as_chunks();
        let halves = self.four_messages(NODE_PREFIX, [&pairs[0], &pairs[1], &pairs[0], &pairs[1]]);
        let (pairs, _) = halves.as_flattened().as_chunks();
        self.four_messages(NODE_PREFIX, [&pairs[0]; LANES])[0]
    }

    /// `H(prefix || message)` of four messages.
    pub(super) fn four_messages(self, prefix: u8, messages: [&Segment; LANES]) -> [Node; LANES] {
        // SAFETY: a value of `Avx2` exists only where AVX2 was detected.
        unsafe { to_nodes(compress(&message_words(prefix, messages), &mut Scratch::new())) }
    }
}

/// A digest of each lane: word `i` of the four digests in vector `i`.
type Digests = [__m256i; 4];
/// Message words 0..=8; the others are zero.
type Words = [__m256i; 9];

/// What the blocks of assembly need in memory: two shuffles, and a place for the spill.
#[repr(C, align(32))]
struct Scratch {
    rotate_24: [u8; 32],
    rotate_16: [u8; 32],
    spill: [u8; 32],
}

impl Scratch {
    const fn new() -> Self {
        let (mut rotate_24, mut rotate_16) = ([0; 32], [0; 32]);
        let mut i = 0;
        while i < 32 {
            let (first, at) = ((i & 8) as u8, (i & 7) as u8);
            rotate_24[i] = first + (at + 3) % 8;
            rotate_16[i] = first + (at + 2) % 8;
            i += 1;
        }
        Self { rotate_24, rotate_16, spill: [0; 32] }
    }
}

/// Roots of four subtrees, one in each lane. Children and parents stay in the same lane, so nothing is transposed
/// above the leaves.
#[target_feature(enable = "avx2")]
fn subtrees<const LEAVES: usize>(lanes: [&[Segment; LEAVES]; LANES]) -> Digests {
    const { assert!(LEAVES.is_power_of_two() && LEAVES <= 64, "the stack below has heights 0..=6") };
    let mut scratch = Scratch::new();
    let mut stack = [[_mm256_setzero_si256(); 4]; 7];
    for leaf in 0..LEAVES {
        let words = message_words(LEAF_PREFIX, lanes.map(|lane| &lane[leaf]));
        let mut node = compress(&words, &mut scratch);
        let height = leaf.trailing_ones() as usize;
        for left in &stack[..height] {
            node = compress(&node_words(left, &node), &mut scratch);
        }
        stack[height] = node;
    }
    stack[LEAVES.ilog2() as usize]
}

/// Words of `prefix || message`: word `i` starts at byte `8 i - 1` of the message.
#[target_feature(enable = "avx2")]
#[inline]
fn message_words(prefix: u8, messages: [&Segment; LANES]) -> Words {
    let [w1, w2, w3, w4] = transpose(messages.map(|message| load::<7>(message)));
    let [_, w5, w6, w7] = transpose(messages.map(|message| load::<31>(message)));
    let first = messages.map(|message| i64::from_le_bytes(*message.first_chunk().expect("a message has 64 bytes")));
    let last = messages.map(|message| i64::from(message[63]));
    let w0 = _mm256_or_si256(
        _mm256_slli_epi64::<8>(_mm256_set_epi64x(first[3], first[2], first[1], first[0])),
        _mm256_set1_epi64x(i64::from(prefix)),
    );
    let w8 = _mm256_set_epi64x(last[3], last[2], last[1], last[0]);
    [w0, w1, w2, w3, w4, w5, w6, w7, w8]
}

/// Words of `0x01 || left || right`.
#[target_feature(enable = "avx2")]
#[inline]
fn node_words(left: &Digests, right: &Digests) -> Words {
    let word = |i: usize| if i < 4 { left[i] } else { right[i - 4] };
    std::array::from_fn(|i| {
        let high = if i < 8 { _mm256_slli_epi64::<8>(word(i)) } else { _mm256_setzero_si256() };
        let low = if i > 0 { _mm256_srli_epi64::<56>(word(i - 1)) } else { _mm256_set1_epi64x(i64::from(NODE_PREFIX)) };
        _mm256_or_si256(high, low)
    })
}

#[target_feature(enable = "avx2")]
#[inline]
fn load<const AT: usize>(message: &Segment) -> __m256i {
    const { assert!(AT + 32 <= SEGMENT_BYTES) };
    // SAFETY: bytes AT..AT + 32 lie inside the 64 of the message; the load needs no alignment.
    unsafe { _mm256_loadu_si256(message.as_ptr().add(AT).cast()) }
}

/// Four rows of four words to four columns.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose(rows: [__m256i; 4]) -> [__m256i; 4] {
    let low_01 = _mm256_unpacklo_epi64(rows[0], rows[1]);
    let high_01 = _mm256_unpackhi_epi64(rows[0], rows[1]);
    let low_23 = _mm256_unpacklo_epi64(rows[2], rows[3]);
    let high_23 = _mm256_unpackhi_epi64(rows[2], rows[3]);
    [
        _mm256_permute2x128_si256::<0x20>(low_01, low_23),
        _mm256_permute2x128_si256::<0x20>(high_01, high_23),
        _mm256_permute2x128_si256::<0x31>(low_01, low_23),
        _mm256_permute2x128_si256::<0x31>(high_01, high_23),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn to_nodes(digests: Digests) -> [Node; LANES] {
    let mut nodes = [[0; 32]; LANES];
    for (node, row) in nodes.iter_mut().zip(transpose(digests)) {
        // SAFETY: a node is 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(node.as_mut_ptr().cast(), row) };
    }
    nodes
}

const IV: [u64; 8] = [
    0x6a09e667f3bcc908,
    0xbb67ae8584caa73b,
    0x3c6ef372fe94f82b,
    0xa54ff53a5f1d36f1,
    0x510e527fade682d1,
    0x9b05688c2b3e6c1f,
    0x1f83d9abfb41bd6b,
    0x5be0cd19137e2179,
];
/// Parameter word of an unkeyed sequential hash of 32 bytes (RFC 7693, 2.5).
const PARAMETERS: u64 = 0x0101_0020;
/// Message length, prefix included: the counter of the one block.
const MESSAGE_BYTES: u64 = SEGMENT_BYTES as u64 + 1;

/// The text of one instruction: `op to, to, from`.
macro_rules! op {
    ($op:literal, $to:literal, $from:expr) => {
        concat!($op, " {", $to, "}, {", $to, "}, ", $from)
    };
}

/// Adds message word `$x` to `$a`; words 9..=15 are zero and cost nothing.
macro_rules! add_word {
    ($a:tt, 0) => {
        op!("vpaddq", $a, "[{m} + 0]")
    };
    ($a:tt, 1) => {
        op!("vpaddq", $a, "[{m} + 32]")
    };
    ($a:tt, 2) => {
        op!("vpaddq", $a, "[{m} + 64]")
    };
    ($a:tt, 3) => {
        op!("vpaddq", $a, "[{m} + 96]")
    };
    ($a:tt, 4) => {
        op!("vpaddq", $a, "[{m} + 128]")
    };
    ($a:tt, 5) => {
        op!("vpaddq", $a, "[{m} + 160]")
    };
    ($a:tt, 6) => {
        op!("vpaddq", $a, "[{m} + 192]")
    };
    ($a:tt, 7) => {
        op!("vpaddq", $a, "[{m} + 224]")
    };
    ($a:tt, 8) => {
        op!("vpaddq", $a, "[{m} + 256]")
    };
    ($a:tt, $zero:tt) => {
        ""
    };
}

/// Step 0..=12 of the G function (RFC 7693, 3.1) on `[a b c d x y]`. In step 12, v0 holds something else.
macro_rules! step {
    (0 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        add_word!($a, $x)
    };
    (1 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpaddq", $a, concat!("{", $b, "}"))
    };
    (2 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpxor", $d, concat!("{", $a, "}"))
    };
    (3 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpshufd", $d, "0xB1")
    };
    (4 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpaddq", $c, concat!("{", $d, "}"))
    };
    (5 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpxor", $b, concat!("{", $c, "}"))
    };
    (6 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        concat!(add_word!($a, $y), "\n", op!("vpshufb", $b, "[{s}]"))
    };
    (7 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpaddq", $a, concat!("{", $b, "}"))
    };
    (8 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpxor", $d, concat!("{", $a, "}"))
    };
    (9 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpshufb", $d, "[{s} + 32]")
    };
    (10 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpaddq", $c, concat!("{", $d, "}"))
    };
    (11 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        op!("vpxor", $b, concat!("{", $c, "}"))
    };
    (12 [$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]) => {
        concat!("vpaddq {v0}, {", $b, "}, {", $b, "}\n", op!("vpsrlq", $b, "63"), "\n", op!("vpor", $b, "{v0}"))
    };
}

/// Four G functions side by side, each one step behind the one before it: that keeps four chains in the
/// processor's window and their shuffles and shifts apart.
macro_rules! half_round {
    ($v:ident, $words:ident, $scratch:ident, $g0:tt, $g1:tt, $g2:tt, $g3:tt) => {
        // SAFETY: the block reads the nine words at `m` and the two shuffles at `s`, writes the third vector at `s`,
        // which is only a spill, and touches neither the stack nor flags. `Scratch` is aligned to 32 bytes.
        unsafe {
            asm!(
                step!(0 $g0),
                step!(1 $g0), step!(0 $g1),
                step!(2 $g0), step!(1 $g1), step!(0 $g2),
                step!(3 $g0), step!(2 $g1), step!(1 $g2), step!(0 $g3),
                step!(4 $g0), step!(3 $g1), step!(2 $g2), step!(1 $g3),
                step!(5 $g0), step!(4 $g1), step!(3 $g2), step!(2 $g3),
                step!(6 $g0), step!(5 $g1), step!(4 $g2), step!(3 $g3),
                step!(7 $g0), step!(6 $g1), step!(5 $g2), step!(4 $g3),
                step!(8 $g0), step!(7 $g1), step!(6 $g2), step!(5 $g3),
                // Row a rests from here on: v0 goes to memory and serves the rotations.
                "vmovdqa [{s} + 64], {v0}",
                step!(9 $g0), step!(8 $g1), step!(7 $g2), step!(6 $g3),
                step!(10 $g0), step!(9 $g1), step!(8 $g2), step!(7 $g3),
                step!(11 $g0), step!(10 $g1), step!(9 $g2), step!(8 $g3),
                step!(12 $g0), step!(11 $g1), step!(10 $g2), step!(9 $g3),
                step!(12 $g1), step!(11 $g2), step!(10 $g3),
                step!(12 $g2), step!(11 $g3),
                step!(12 $g3),
                "vmovdqa {v0}, [{s} + 64]",
                m = in(reg) $words.as_ptr(),
                s = in(reg) std::ptr::from_mut($scratch),
                v0 = inout(ymm_reg) $v[0],
                v1 = inout(ymm_reg) $v[1],
                v2 = inout(ymm_reg) $v[2],
                v3 = inout(ymm_reg) $v[3],
                v4 = inout(ymm_reg) $v[4],
                v5 = inout(ymm_reg) $v[5],
                v6 = inout(ymm_reg) $v[6],
                v7 = inout(ymm_reg) $v[7],
                v8 = inout(ymm_reg) $v[8],
                v9 = inout(ymm_reg) $v[9],
                v10 = inout(ymm_reg) $v[10],
                v11 = inout(ymm_reg) $v[11],
                v12 = inout(ymm_reg) $v[12],
                v13 = inout(ymm_reg) $v[13],
                v14 = inout(ymm_reg) $v[14],
                v15 = inout(ymm_reg) $v[15],
                options(nostack, preserves_flags)
            )
        }
    };
}

/// One round under a row of the message schedule: columns, then diagonals.
macro_rules! round {
    ($v:ident, $words:ident, $scratch:ident,
     $s0:tt $s1:tt $s2:tt $s3:tt $s4:tt $s5:tt $s6:tt $s7:tt $s8:tt $s9:tt $s10:tt $s11:tt $s12:tt $s13:tt $s14:tt $s15:tt) => {
        half_round!(
            $v, $words, $scratch,
            ["v0" "v4" "v8" "v12" $s0 $s1], ["v1" "v5" "v9" "v13" $s2 $s3],
            ["v2" "v6" "v10" "v14" $s4 $s5], ["v3" "v7" "v11" "v15" $s6 $s7]
        );
        half_round!(
            $v, $words, $scratch,
            ["v0" "v5" "v10" "v15" $s8 $s9], ["v1" "v6" "v11" "v12" $s10 $s11],
            ["v2" "v7" "v8" "v13" $s12 $s13], ["v3" "v4" "v9" "v14" $s14 $s15]
        );
    };
}

/// BLAKE2b's compression of the first and last block of four 65-byte messages; the first 32 bytes of the result.
/// One copy of the 1,450 instructions serves leaves and nodes.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn compress(words: &Words, scratch: &mut Scratch) -> Digests {
    let all = |word: u64| _mm256_set1_epi64x(word.cast_signed());
    let first = IV[0] ^ PARAMETERS;
    let mut v = [
        all(first),
        all(IV[1]),
        all(IV[2]),
        all(IV[3]),
        all(IV[4]),
        all(IV[5]),
        all(IV[6]),
        all(IV[7]),
        all(IV[0]),
        all(IV[1]),
        all(IV[2]),
        all(IV[3]),
        all(IV[4] ^ MESSAGE_BYTES),
        all(IV[5]),
        // The final block inverts this word.
        all(!IV[6]),
        all(IV[7]),
    ];
    round!(v, words, scratch, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    round!(v, words, scratch, 14 10 4 8 9 15 13 6 1 12 0 2 11 7 5 3);
    round!(v, words, scratch, 11 8 12 0 5 2 15 13 10 14 3 6 7 1 9 4);
    round!(v, words, scratch, 7 9 3 1 13 12 11 14 2 6 5 10 4 0 15 8);
    round!(v, words, scratch, 9 0 5 7 2 4 10 15 14 1 11 12 6 8 3 13);
    round!(v, words, scratch, 2 12 6 10 0 11 8 3 4 13 7 5 15 14 1 9);
    round!(v, words, scratch, 12 5 1 15 14 13 4 10 0 7 6 3 9 2 8 11);
    round!(v, words, scratch, 13 11 7 14 12 1 3 9 5 0 15 4 8 6 2 10);
    round!(v, words, scratch, 6 15 14 9 11 3 0 8 12 2 13 7 1 4 10 5);
    round!(v, words, scratch, 10 2 8 4 7 6 1 5 15 11 9 14 3 12 13 0);
    round!(v, words, scratch, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    round!(v, words, scratch, 14 10 4 8 9 15 13 6 1 12 0 2 11 7 5 3);
    let mix = |word, i: usize| _mm256_xor_si256(all(word), _mm256_xor_si256(v[i], v[i + 8]));
    [mix(first, 0), mix(IV[1], 1), mix(IV[2], 2), mix(IV[3], 3)]
}
