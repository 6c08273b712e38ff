//! What the kernels of both VNNI instruction sets share, and products of many rows by AVX-VNNI. `vpdpbusd` multiplies unsigned codes with signed activations
//! and adds 4 neighbours in 32 bits, without saturation. Signed codes become unsigned by flipping the top bit, which adds
//! 128: a zero point. Zero points cost nothing: sums begin at minus the zero point times the sum of the activations.

use super::{Product, avx2};
use crate::pack::{Codes, Kind, Offset, PANEL};
use std::{arch::x86_64::*, mem::MaybeUninit};

/// Groups that a product of many rows may have: those of one chunk of k.
pub(super) const GROUPS: usize = 16;
/// Numbers of a row, one for each group or half group.
const NUMBERS: usize = 2 * GROUPS;
/// Bytes of 4 columns of a panel.
pub(super) const CHUNK: usize = 4 * PANEL;
/// How far ahead of its loads decode asks for weights, bytes.
pub(super) const PREFETCH_BYTES: usize = 2048;

/// 1.5 * 2^23: integers below 2^22 added to its bits give the bits of its sum with them, and subtracting it again is
/// exact. Where sums begin here their conversion is a subtraction, for which Intel's cores have a port that multiplies
/// nothing; `vcvtdq2ps` takes one of the two that `vpdpbusd` needs.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// `gemm` reads unsigned bytes.
pub(super) fn unpacked_bytes(_: Kind) -> usize {
    32 * PANEL
}

/// What has to be taken from codes once they are unsigned.
pub(super) fn zero(kind: Kind) -> i16 {
    match (kind.codes, kind.offset) {
        (Codes::I8, _) => 128,
        (_, Offset::Zero(zero)) => i16::from(zero),
        _ => 0,
    }
}

/// Makes unsigned bytes of codes.
///
/// # Safety
/// As [`super::QuantKernels::unpack`]; the processor has AVX2.
pub(super) unsafe fn unpack(kind: Kind, packed: *const u8, k: usize, out: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match kind.codes {
            Codes::I8 => flip_top_bits(packed, k, out),
            codes => avx2::unpack_codes(codes, packed, k, out),
        }
    }
}

/// # Safety
/// `packed` holds `k * 16` bytes, `out` room for as many.
#[target_feature(enable = "avx2")]
unsafe fn flip_top_bits(packed: *const u8, k: usize, out: *mut u8) {
    let top_bit = _mm256_set1_epi8(-128);
    for at in (0..k * PANEL).step_by(32) {
        // SAFETY: 32 of these bytes; k is a multiple of 4.
        unsafe {
            let codes = _mm256_loadu_si256(packed.add(at).cast());
            _mm256_storeu_si256(out.add(at).cast(), _mm256_xor_si256(codes, top_bit));
        }
    }
}

/// What a tile reads of its rows once a group. Here the rows lie at fixed distances, so that one register addresses all
/// of them, and the starts of the sums are ready to be loaded.
pub(super) struct RowFacts<const ROWS: usize> {
    starts: [[i32; NUMBERS]; ROWS],
    sums: [[f32; NUMBERS]; ROWS],
    scales: [[f32; GROUPS]; ROWS],
}

impl<const ROWS: usize> RowFacts<ROWS> {
    /// Fills `facts` with those of `ROWS` rows from `row` on: sums where there are minima, else starts, which are
    /// `base` less the zero point times the sum of the activations. What lies behind the last group is 0 or `base`.
    ///
    /// # Safety
    /// As [`super::QuantKernels::gemm`], `row + ROWS <= p.rows` and `p.groups <= GROUPS`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn fill<const HALVES: usize, const MIN: bool>(
        facts: &mut MaybeUninit<Self>,
        p: &Product,
        row: usize,
        base: i32,
    ) -> *const Self {
        let facts = facts.as_mut_ptr();
        let zeros = _mm256_set1_epi16(zero(p.kind));
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let ldg = p.a.k / 32;
        for r in 0..ROWS {
            let at = (row + r) * ldg;
            for i in (0..GROUPS * HALVES).step_by(8) {
                let mask =
                    _mm256_cmpgt_epi32(_mm256_set1_epi32((p.groups * HALVES) as i32 - i as i32), lanes);
                // SAFETY: only what the mask names is read, which lies within the row.
                unsafe {
                    if MIN {
                        let sums = if HALVES == 1 { p.a.sum32.add(at) } else { p.a.sum16.add(2 * at) };
                        let sums = _mm256_maskload_ps(sums.wrapping_add(i), mask);
                        _mm256_storeu_ps((&raw mut (*facts).sums[r]).cast::<f32>().add(i), sums);
                    } else {
                        let pairs = if HALVES == 1 { p.a.starts32.add(at) } else { p.a.starts16.add(2 * at) };
                        let pairs = _mm256_maskload_epi32(pairs.wrapping_add(i).cast(), mask);
                        let starts =
                            _mm256_add_epi32(_mm256_set1_epi32(base), _mm256_madd_epi16(pairs, zeros));
                        _mm256_storeu_si256(
                            (&raw mut (*facts).starts[r]).cast::<i32>().add(i).cast(),
                            starts,
                        );
                    }
                }
            }
            for i in (0..GROUPS).step_by(8) {
                let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(p.groups as i32 - i as i32), lanes);
                // SAFETY: as above.
                unsafe {
                    let scales = _mm256_maskload_ps(p.a.scale.wrapping_add(at + i), mask);
                    _mm256_storeu_ps((&raw mut (*facts).scales[r]).cast::<f32>().add(i), scales);
                }
            }
        }
        facts
    }

    /// Where the sums of row `r` begin in the group or half group `i`.
    ///
    /// # Safety
    /// `facts` was filled, without minima; `r < ROWS`, `i` is less than the number of them.
    #[inline(always)]
    pub(super) unsafe fn start(facts: *const Self, r: usize, i: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { *(&raw const (*facts).starts).cast::<i32>().add(r * NUMBERS + i) }
    }

    /// The sum of the activations of row `r` in the group or half group `i`.
    ///
    /// # Safety
    /// `facts` was filled, with minima; the rest as `start`.
    #[inline(always)]
    pub(super) unsafe fn sum(facts: *const Self, r: usize, i: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *(&raw const (*facts).sums).cast::<f32>().add(r * NUMBERS + i) }
    }

    /// The scale of row `r` in `group`.
    ///
    /// # Safety
    /// `facts` was filled; `r < ROWS`, `group < GROUPS`.
    #[inline(always)]
    pub(super) unsafe fn scale(facts: *const Self, r: usize, group: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *(&raw const (*facts).scales).cast::<f32>().add(r * GROUPS + group) }
    }
}
