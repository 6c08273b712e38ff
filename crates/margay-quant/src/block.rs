//! What a block format is, and the small readers every format shares.

use margay_tensor::DType;

use crate::search::{LANES, Lanes, side_by_side, sum_squares, weigh};

/// One way of packing numbers: blocks of bytes to float32 and back.
///
/// Both directions take whole blocks only; [`crate::decode_into`] and [`crate::encode_into`] check that once and
/// report it as an error.
pub trait BlockFormat: Sync {
    /// The type whose bytes this format reads and writes.
    fn dtype(&self) -> DType;

    /// Writes the numbers of `blocks` to `out`, in row order.
    ///
    /// # Panics
    /// Where `blocks` and `out` do not hold the same number of whole blocks.
    fn decode(&self, blocks: &[u8], out: &mut [f32]);

    /// Packs `values` into `out`. Any float is accepted: a block that holds NaN or an infinity gets some bytes, but
    /// its numbers are lost.
    ///
    /// # Panics
    /// Where `values` and `out` do not hold the same number of whole blocks.
    fn encode(&self, values: &[f32], out: &mut [u8]);

    /// Packs one `row`, of whose columns `importance` says how much an error matters (zero or more each, as the mean of
    /// x² of the inputs). A format whose reference knows no such thing packs the row as [`Self::encode`] does.
    ///
    /// # Panics
    /// As [`Self::encode`], and where `row` and `importance` are not equally long.
    fn encode_weighted(&self, row: &[f32], importance: &[f32], out: &mut [u8]) {
        assert_eq!(row.len(), importance.len(), "one importance a column");
        self.encode(row, out);
    }

    /// How many codes a number of a block can have: 0 to one less. None where each number stands for itself.
    fn codes(&self) -> usize {
        0
    }

    /// True where the numbers that neighbouring codes stand for are equally far apart.
    fn uniform(&self) -> bool {
        true
    }

    /// Writes the codes of the numbers of one block and leaves its scales as they are. The numbers that codes stand for
    /// are what [`Self::decode`] makes of them.
    ///
    /// # Panics
    /// Where `codes` or `block` is not of one block's length.
    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        let _ = (codes, block);
    }
}

/// The `N` bytes of a block that start at byte `at`.
///
/// # Panics
/// Where the block ends before them.
#[inline(always)]
pub fn field<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..at + N].first_chunk().expect("invariant: the range is N bytes long")
}

/// The half-precision number at byte `at` of a block, as float32.
///
/// # Panics
/// Where the block ends before it.
#[inline(always)]
pub fn f16_at(block: &[u8], at: usize) -> f32 {
    from_half(u16::from_le_bytes(*field(block, at)))
}

/// Writes `value` as half precision to byte `at` and returns what was stored.
#[inline(always)]
pub(crate) fn put_f16(block: &mut [u8], at: usize, value: f32) -> f32 {
    // Rows too large for the search for a scale give NaN, whose sign differs from processor to processor: that of x86, which
    // the reference's bytes have.
    let stored = if value.is_nan() { 0xfe00 } else { to_half(value) };
    block[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    from_half(stored)
}

/// The float32 of a half-precision number's bits. Here and in [`to_half`] without the look at the processor that `half` takes
/// each time.
#[inline(always)]
fn from_half(bits: u16) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    let small = (rest as f32 / 16_777_216.0).to_bits(); // subnormal: so many times 2^-24
    let usual = (rest << 13) + (112 << 23);
    let quiet = if rest > 0x7c00 { 1 << 22 } else { 0 };
    let none = rest << 13 | 0xff << 23 | quiet;
    f32::from_bits(
        sign | if rest < 0x400 {
            small
        } else if rest < 0x7c00 {
            usual
        } else {
            none
        },
    )
}

/// The bits of the half-precision number nearest to `x`, halves to even; `x` is no NaN.
#[inline(always)]
fn to_half(x: f32) -> u16 {
    let (sign, rest) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    // Subnormal below 2^-14: at 0.5 a float32's steps are 2^-24 as well, so that adding rounds.
    let small = (f32::from_bits(rest) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let usual = rest.wrapping_add(0x0fff + (rest >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    let half = if rest < 113 << 23 {
        small
    } else if rest < 143 << 23 {
        usual
    } else {
        0x7c00
    };
    (sign | half) as u16
}

/// The eight 6-bit scales and the eight 6-bit minima that `Q4_K` and `Q5_K` pack into 12 bytes.
///
/// The first four of each are the low 6 bits of bytes 0-3 and 4-7. The last four have their low nibbles in bytes 8-11
/// (scale low, minimum high) and their top two bits in the spare bits of bytes 0-7.
/// Source: `get_scale_min_k4` in `ggml-quants.c`.
#[inline(always)]
pub fn k_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        mins[j] = packed[j + 4] & 63;
        scales[j + 4] = (packed[j + 8] & 15) | (packed[j] >> 6) << 4;
        mins[j + 4] = (packed[j + 8] >> 4) | (packed[j + 4] >> 6) << 4;
    }
    (scales, mins)
}

/// The reverse of [`k_scales`]; every number is below 64.
#[inline(always)]
pub(crate) fn pack_k_scales(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6;
        packed[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4;
    }
    packed
}

/// Runs `work`, compiled a second time for the vectors of AVX2 where the processor has them. Only what is marked
/// `#[inline(always)]`, closures included, becomes part of that; nothing is fused or reordered by it, so that results are the
/// same bit for bit.
#[inline(always)]
pub(crate) fn wide<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Runs `decode` on each block of `B` bytes and its `E` numbers.
#[inline(always)]
pub(crate) fn decode_each<const B: usize, const E: usize>(
    blocks: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; E]),
) {
    let ((blocks, part_block), (out, part_out)) = (blocks.as_chunks(), out.as_chunks_mut());
    assert!(
        part_block.is_empty() && part_out.is_empty() && blocks.len() == out.len(),
        "bytes and numbers must hold the same number of whole blocks"
    );
    wide(
        #[inline(always)]
        || {
            for (block, numbers) in blocks.iter().zip(out) {
                decode(block, numbers);
            }
        },
    );
}

/// Runs `encode` on each group of `E` numbers and its block of `B` bytes.
#[inline(always)]
pub(crate) fn encode_each<const E: usize, const B: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; E], &mut [u8; B]),
) {
    let (values, out) = whole_blocks(values, out);
    wide(
        #[inline(always)]
        || {
            for (numbers, block) in values.iter().zip(out) {
                encode(numbers, block);
            }
        },
    );
}

/// Groups of `E` numbers and as many blocks of `B` bytes.
#[inline(always)]
pub(crate) fn whole_blocks<'a, 'b, const E: usize, const B: usize>(
    values: &'a [f32],
    out: &'b mut [u8],
) -> (&'a [[f32; E]], &'b mut [[u8; B]]) {
    let ((values, part_values), (out, part_block)) = (values.as_chunks(), out.as_chunks_mut());
    assert!(
        part_values.is_empty() && part_block.is_empty() && values.len() == out.len(),
        "numbers and bytes must hold the same number of whole blocks"
    );
    (values, out)
}

/// Runs `encode` on each group of `E` numbers, their importances and its block of `B` bytes.
#[inline(always)]
pub(crate) fn encode_each_weighted<const E: usize, const B: usize>(
    row: &[f32],
    importance: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; E], &[f32; E], &mut [u8; B]),
) {
    assert_eq!(row.len(), importance.len(), "one importance a column");
    let (values, out) = whole_blocks(row, out);
    wide(
        #[inline(always)]
        || {
            for ((numbers, importance), block) in values.iter().zip(importance.as_chunks().0).zip(out) {
                encode(numbers, importance, block);
            }
        },
    );
}

/// Runs `encode` on up to [`LANES`] blocks at a time: their numbers and weights side by side, and their bytes. The
/// weights of a row follow from its importances and the mean of its squares, as the reference has it for the formats of
/// 32 numbers.
#[inline(always)]
pub(crate) fn encode_lanes_weighted<const B: usize>(
    row: &[f32],
    importance: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[Lanes; 32], &[Lanes; 32], &mut [[u8; B]]),
) {
    assert_eq!(row.len(), importance.len(), "one importance a column");
    let (values, out) = whole_blocks::<32, B>(row, out);
    let spread = sum_squares(row) / row.len() as f32;
    let importance = importance.as_chunks::<32>().0;
    wide(
        #[inline(always)]
        || {
            for ((x, importance), blocks) in
                values.chunks(LANES).zip(importance.chunks(LANES)).zip(out.chunks_mut(LANES))
            {
                let mut weights = [[0.0; 32]; LANES];
                for ((weights, x), importance) in weights.iter_mut().zip(x).zip(importance) {
                    *weights = weigh(x, importance, spread);
                }
                encode(&side_by_side(x), &side_by_side(&weights), blocks);
            }
        },
    );
}

/// Writes 32 nibbles, two halves a byte: byte j holds code j in its low nibble, code j + 16 in its high one.
#[inline(always)]
pub(crate) fn put_nibbles(codes: &[u8; 32], bytes: &mut [u8]) {
    let bytes: &mut [u8; 16] =
        bytes.first_chunk_mut().expect("invariant: the nibbles of a block take 16 bytes");
    for j in 0..16 {
        bytes[j] = codes[j] & 15 | (codes[j + 16] & 15) << 4;
    }
}

/// The fifth bits of 32 codes: bit i belongs to code i.
#[inline(always)]
pub(crate) fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    // Eight bytes of one bit each are a number; multiplied, its bits meet in the top byte and nowhere else.
    let mut bits = [0; 4];
    for (bits, codes) in bits.iter_mut().zip(codes.as_chunks::<8>().0) {
        let fifth = u64::from_le_bytes(*codes) >> 4 & 0x0101_0101_0101_0101;
        *bits = (fifth.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    bits
}

/// Writes the low bit pairs of 256 codes: of each 128, code i has bits 2 (i / 32) of byte i % 32.
#[inline(always)]
pub(crate) fn put_pairs(codes: &[u8; 256], bytes: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks::<128>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        let quarters = codes.as_chunks::<32>().0;
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = quarters[0][l] & 3
                | (quarters[1][l] & 3) << 2
                | (quarters[2][l] & 3) << 4
                | (quarters[3][l] & 3) << 6;
        }
    }
}

/// The codes of one block as an array.
#[inline(always)]
pub(crate) fn whole<const N: usize>(codes: &[u8]) -> &[u8; N] {
    codes.try_into().expect("the codes of one block")
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn six_bit_scales_round_trip_and_use_every_bit() {
        let scales = [0, 63, 17, 42, 63, 0, 33, 30];
        let mins = [63, 1, 2, 3, 60, 61, 16, 15];
        assert_eq!(k_scales(&pack_k_scales(&scales, &mins)), (scales, mins));
        assert_eq!(k_scales(&[255; 12]), ([63; 8], [63; 8]));
    }

    #[test]
    fn half_precision_is_that_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            assert_eq!(from_half(bits).to_bits(), f16::from_bits(bits).to_f32().to_bits(), "{bits:#x}");
        }
        // Every exponent with the mantissas around each halfway point.
        for top in 0..=u16::MAX {
            for low in [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(top) << 16 | low);
                assert!(x.is_nan() || to_half(x) == f16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }

    #[test]
    fn fifth_bits_stand_in_the_order_of_the_codes() {
        for i in 0..32 {
            let mut codes = [0x0f; 32];
            codes[i] = 0x1f;
            assert_eq!(fifth_bits(&codes), (1u32 << i).to_le_bytes());
        }
        assert_eq!(fifth_bits(&[0xff; 32]), [0xff; 4]);
    }

    #[test]
    #[should_panic(expected = "whole blocks")]
    fn part_blocks_are_refused() {
        decode_each::<2, 1>(&[0; 3], &mut [0.0], |_, _| {});
    }
}
