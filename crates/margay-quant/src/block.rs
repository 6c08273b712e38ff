//! What a block format is, and the small readers every format shares.

use half::f16;
use margay_tensor::DType;

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
}

/// The `N` bytes of a block that start at byte `at`.
///
/// # Panics
/// Where the block ends before them.
#[inline]
pub fn field<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..at + N].first_chunk().expect("invariant: the range is N bytes long")
}

/// The half-precision number at byte `at` of a block, as float32.
///
/// # Panics
/// Where the block ends before it.
#[inline]
pub fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(*field(block, at)).to_f32()
}

/// Writes `value` as half precision to byte `at` and returns what was stored.
#[inline]
pub(crate) fn put_f16(block: &mut [u8], at: usize, value: f32) -> f32 {
    let stored = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}

/// The eight 6-bit scales and the eight 6-bit minima that `Q4_K` and `Q5_K` pack into 12 bytes.
///
/// The first four of each are the low 6 bits of bytes 0-3 and 4-7. The last four have their low nibbles in bytes 8-11
/// (scale low, minimum high) and their top two bits in the spare bits of bytes 0-7.
/// Source: `get_scale_min_k4` in `ggml-quants.c`.
#[inline]
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
pub(crate) fn pack_k_scales(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6;
        packed[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4;
    }
    packed
}

/// Runs `decode` on each block of `B` bytes and its `E` numbers.
#[inline]
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
    for (block, numbers) in blocks.iter().zip(out) {
        decode(block, numbers);
    }
}

/// Runs `encode` on each group of `E` numbers and its block of `B` bytes.
#[inline]
pub(crate) fn encode_each<const E: usize, const B: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; E], &mut [u8; B]),
) {
    let ((values, part_values), (out, part_block)) = (values.as_chunks(), out.as_chunks_mut());
    assert!(
        part_values.is_empty() && part_block.is_empty() && values.len() == out.len(),
        "numbers and bytes must hold the same number of whole blocks"
    );
    for (numbers, block) in values.iter().zip(out) {
        encode(numbers, block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bit_scales_round_trip_and_use_every_bit() {
        let scales = [0, 63, 17, 42, 63, 0, 33, 30];
        let mins = [63, 1, 2, 3, 60, 61, 16, 15];
        assert_eq!(k_scales(&pack_k_scales(&scales, &mins)), (scales, mins));
        assert_eq!(k_scales(&[255; 12]), ([63; 8], [63; 8]));
    }

    #[test]
    #[should_panic(expected = "whole blocks")]
    fn part_blocks_are_refused() {
        decode_each::<2, 1>(&[0; 3], &mut [0.0], |_, _| {});
    }
}
