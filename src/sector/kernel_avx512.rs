//! BLAKE2b-256 of eight 65-byte messages at once, in AVX-512 registers: lane `i` of every vector belongs to message `i`.
//!
//! Sixteen state vectors and the nine message words that are not zero fit the thirty-two registers, and rotations are
//! instructions, so plain intrinsics do what takes assembly with AVX2. Figures stand in `kernel.rs`.

use std::arch::x86_64::*;

use super::kernel::{Grain, LEAF_PREFIX, NODE_PREFIX, Node, Segment};
use super::{GRAIN_BYTES, SEGMENT_BYTES};

/// Messages hashed together.
pub(super) const LANES: usize = 8;

/// Proof that this processor has what is used here of AVX-512: it can only be had from [`Avx512::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has_all = std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw");
        has_all.then_some(Self(()))
    }

    /// The nodes of eight grains, one in each lane.
    pub(super) fn eight_grains(self, grains: [&Grain; LANES]) -> [Node; LANES] {
        // SAFETY: a value of `Avx512` exists only where its features were detected.
        unsafe { to_nodes(subtrees(grains)) }
    }

    /// The node of one grain: an eighth in each lane, then three compressions for the top.
    pub(super) fn one_grain(self, grain: &Grain) -> Node {
        let (eighths, _) = grain.as_chunks::<{ GRAIN_BYTES / SEGMENT_BYTES / LANES }>();
        // SAFETY: a value of `Avx512` exists only where its features were detected.
        let mut nodes = unsafe { to_nodes(subtrees(std::array::from_fn(|lane| &eighths[lane]))) };
        for count in [4, 2, 1] {
            let (pairs, _) = nodes.as_flattened().as_chunks();
            nodes = self.eight_messages(NODE_PREFIX, std::array::from_fn(|lane| &pairs[lane % count]));
        }
        nodes[0]
    }

    /// `H(prefix || message)` of eight messages.
    pub(super) fn eight_messages(self, prefix: u8, messages: [&Segment; LANES]) -> [Node; LANES] {
        // SAFETY: a value of `Avx512` exists only where its features were detected.
        unsafe { to_nodes(compress(&message_words(prefix, messages))) }
    }
}

/// A digest of each lane: word `i` of the eight digests in vector `i`.
type Digests = [__m512i; 4];
/// Message words 0..=8; the others are zero.
type Words = [__m512i; 9];

/// Roots of eight subtrees, one in each lane. Children and parents stay in the same lane, so nothing is transposed
/// above the leaves.
#[target_feature(enable = "avx512f,avx512bw")]
fn subtrees<const LEAVES: usize>(lanes: [&[Segment; LEAVES]; LANES]) -> Digests {
    const { assert!(LEAVES.is_power_of_two() && LEAVES <= 64, "the stack below has heights 0..=6") };
    let mut stack = [[_mm512_setzero_si512(); 4]; 7];
    for leaf in 0..LEAVES {
        let words = message_words(LEAF_PREFIX, lanes.map(|lane| &lane[leaf]));
        let mut node = compress(&words);
        let height = leaf.trailing_ones() as usize;
        for left in &stack[..height] {
            node = compress(&node_words(left, &node));
        }
        stack[height] = node;
    }
    stack[LEAVES.ilog2() as usize]
}

/// Words of `prefix || message`: word `i` starts at byte `8 i - 1` of the message.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn message_words(prefix: u8, messages: [&Segment; LANES]) -> Words {
    // Byte 0 of the vector, where the prefix belongs, is not read.
    const ALL_BUT_THE_FIRST: u64 = !1;
    let rows = messages.map(|message| {
        // SAFETY: of the 64 bytes from the one before the message all but the first are its own; masked bytes are not touched.
        unsafe { _mm512_maskz_loadu_epi8(ALL_BUT_THE_FIRST, message.as_ptr().wrapping_sub(1).cast()) }
    });
    let [w0, w1, w2, w3, w4, w5, w6, w7] = transpose(rows);
    let last = messages.map(|message| i64::from(message[63]));
    let w8 = _mm512_set_epi64(last[7], last[6], last[5], last[4], last[3], last[2], last[1], last[0]);
    [_mm512_or_si512(w0, _mm512_set1_epi64(i64::from(prefix))), w1, w2, w3, w4, w5, w6, w7, w8]
}

/// Words of `0x01 || left || right`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn node_words(left: &Digests, right: &Digests) -> Words {
    let word = |i: usize| if i < 4 { left[i] } else { right[i - 4] };
    std::array::from_fn(|i| {
        let high = if i < 8 { _mm512_slli_epi64::<8>(word(i)) } else { _mm512_setzero_si512() };
        let low = if i > 0 { _mm512_srli_epi64::<56>(word(i - 1)) } else { _mm512_set1_epi64(i64::from(NODE_PREFIX)) };
        _mm512_or_si512(high, low)
    })
}

/// Eight rows of eight words to eight columns.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn transpose(rows: [__m512i; 8]) -> [__m512i; 8] {
    let even = columns([
        _mm512_unpacklo_epi64(rows[0], rows[1]),
        _mm512_unpacklo_epi64(rows[2], rows[3]),
        _mm512_unpacklo_epi64(rows[4], rows[5]),
        _mm512_unpacklo_epi64(rows[6], rows[7]),
    ]);
    let odd = columns([
        _mm512_unpackhi_epi64(rows[0], rows[1]),
        _mm512_unpackhi_epi64(rows[2], rows[3]),
        _mm512_unpackhi_epi64(rows[4], rows[5]),
        _mm512_unpackhi_epi64(rows[6], rows[7]),
    ]);
    std::array::from_fn(|column| if column % 2 == 0 { even[column / 2] } else { odd[column / 2] })
}

/// Four rows of four pairs of words to four columns.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn columns(rows: [__m512i; 4]) -> [__m512i; 4] {
    let first_01 = _mm512_shuffle_i64x2::<0x88>(rows[0], rows[1]);
    let first_23 = _mm512_shuffle_i64x2::<0x88>(rows[2], rows[3]);
    let second_01 = _mm512_shuffle_i64x2::<0xdd>(rows[0], rows[1]);
    let second_23 = _mm512_shuffle_i64x2::<0xdd>(rows[2], rows[3]);
    [
        _mm512_shuffle_i64x2::<0x88>(first_01, first_23),
        _mm512_shuffle_i64x2::<0x88>(second_01, second_23),
        _mm512_shuffle_i64x2::<0xdd>(first_01, first_23),
        _mm512_shuffle_i64x2::<0xdd>(second_01, second_23),
    ]
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn to_nodes(digests: Digests) -> [Node; LANES] {
    let zero = _mm512_setzero_si512();
    let rows = transpose([digests[0], digests[1], digests[2], digests[3], zero, zero, zero, zero]);
    let mut nodes = [[0; 32]; LANES];
    for (node, row) in nodes.iter_mut().zip(rows) {
        // SAFETY: a node is 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(node.as_mut_ptr().cast(), _mm512_castsi512_si256(row)) };
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

/// Adds message word `$x`; words 9..=15 are zero and cost nothing.
macro_rules! add_word {
    ($a:expr, $words:ident, 9) => {
        $a
    };
    ($a:expr, $words:ident, 10) => {
        $a
    };
    ($a:expr, $words:ident, 11) => {
        $a
    };
    ($a:expr, $words:ident, 12) => {
        $a
    };
    ($a:expr, $words:ident, 13) => {
        $a
    };
    ($a:expr, $words:ident, 14) => {
        $a
    };
    ($a:expr, $words:ident, 15) => {
        $a
    };
    ($a:expr, $words:ident, $x:tt) => {
        _mm512_add_epi64($a, $words[$x])
    };
}

/// Four G functions (RFC 7693, 3.1) side by side: their chains are independent, and the processor works on all of them.
macro_rules! half_round {
    ($v:ident, $w:ident, $([$a:tt $b:tt $c:tt $d:tt $x:tt $y:tt]),*) => {
        $( $v[$a] = _mm512_add_epi64(add_word!($v[$a], $w, $x), $v[$b]); )*
        $( $v[$d] = _mm512_ror_epi64::<32>(_mm512_xor_si512($v[$d], $v[$a])); )*
        $( $v[$c] = _mm512_add_epi64($v[$c], $v[$d]); )*
        $( $v[$b] = _mm512_ror_epi64::<24>(_mm512_xor_si512($v[$b], $v[$c])); )*
        $( $v[$a] = _mm512_add_epi64(add_word!($v[$a], $w, $y), $v[$b]); )*
        $( $v[$d] = _mm512_ror_epi64::<16>(_mm512_xor_si512($v[$d], $v[$a])); )*
        $( $v[$c] = _mm512_add_epi64($v[$c], $v[$d]); )*
        $( $v[$b] = _mm512_ror_epi64::<63>(_mm512_xor_si512($v[$b], $v[$c])); )*
    };
}

/// One round under a row of the message schedule: columns, then diagonals.
macro_rules! round {
    ($v:ident, $w:ident,
     $s0:tt $s1:tt $s2:tt $s3:tt $s4:tt $s5:tt $s6:tt $s7:tt $s8:tt $s9:tt $s10:tt $s11:tt $s12:tt $s13:tt $s14:tt $s15:tt) => {
        half_round!($v, $w, [0 4 8 12 $s0 $s1], [1 5 9 13 $s2 $s3], [2 6 10 14 $s4 $s5], [3 7 11 15 $s6 $s7]);
        half_round!($v, $w, [0 5 10 15 $s8 $s9], [1 6 11 12 $s10 $s11], [2 7 8 13 $s12 $s13], [3 4 9 14 $s14 $s15]);
    };
}

/// BLAKE2b's compression of the first and last block of eight 65-byte messages; the first 32 bytes of the result.
/// One copy of the 1,200 instructions serves leaves and nodes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline(never)]
fn compress(words: &Words) -> Digests {
    let all = |word: u64| _mm512_set1_epi64(word.cast_signed());
    let first = IV[0] ^ PARAMETERS;
    let w = *words;
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
    round!(v, w, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    round!(v, w, 14 10 4 8 9 15 13 6 1 12 0 2 11 7 5 3);
    round!(v, w, 11 8 12 0 5 2 15 13 10 14 3 6 7 1 9 4);
    round!(v, w, 7 9 3 1 13 12 11 14 2 6 5 10 4 0 15 8);
    round!(v, w, 9 0 5 7 2 4 10 15 14 1 11 12 6 8 3 13);
    round!(v, w, 2 12 6 10 0 11 8 3 4 13 7 5 15 14 1 9);
    round!(v, w, 12 5 1 15 14 13 4 10 0 7 6 3 9 2 8 11);
    round!(v, w, 13 11 7 14 12 1 3 9 5 0 15 4 8 6 2 10);
    round!(v, w, 6 15 14 9 11 3 0 8 12 2 13 7 1 4 10 5);
    round!(v, w, 10 2 8 4 7 6 1 5 15 11 9 14 3 12 13 0);
    round!(v, w, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    round!(v, w, 14 10 4 8 9 15 13 6 1 12 0 2 11 7 5 3);
    let mix = |word, i: usize| _mm512_xor_si512(all(word), _mm512_xor_si512(v[i], v[i + 8]));
    [mix(first, 0), mix(IV[1], 1), mix(IV[2], 2), mix(IV[3], 3)]
}
