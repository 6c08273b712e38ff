//! `MXFP4`: 32 four-bit floats (E2M1) and one power of two (E8M0). y = `K[q]` 2^(e - 128).

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, field, put_nibbles, whole},
    search::{LANES, bounds, truncate},
};

/// Numbers a block.
pub const ELEMENTS: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 17;
/// Where the exponent byte e lies.
pub const EXPONENT: usize = 0;
/// Where the 16 bytes of nibbles lie: byte j holds number j in its low nibble, number j + 16 in its high one.
pub const QUANTS: usize = 1;
/// Twice the E2M1 numbers, so that they are whole; the exponent is one less in return.
/// Source: `kvalues_mxfp4` in `ggml-common.h`.
pub const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The format.
pub struct MXFP4;

/// 2^(e - 128), the two smallest as subnormals. The NaN of the OCP specification, e = 255, is a number here, as it is
/// to the reference.
#[inline(always)]
fn power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// The codes of the levels nearest to the numbers, the first of equals: of two neighbours the smaller, of the two zeros
/// the positive one.
#[inline(always)]
fn nearest_levels(x: &[f32; ELEMENTS], scale: f32) -> [u8; ELEMENTS] {
    let mut codes = [0; ELEMENTS];
    for (codes, x) in codes.as_chunks_mut::<LANES>().0.iter_mut().zip(x.as_chunks::<LANES>().0) {
        let (mut best, mut errors) = ([0u32; LANES], [f32::INFINITY; LANES]);
        // The negative levels mirror the positive ones, so a magnitude finds its code among those.
        for (code, &level) in LEVELS[..8].iter().enumerate() {
            let level = f32::from(level) * scale;
            for g in 0..LANES {
                let error = (level - x[g].abs()).abs();
                let better = error < errors[g];
                errors[g] = if better { error } else { errors[g] };
                best[g] = if better { code as u32 } else { best[g] };
            }
        }
        for g in 0..LANES {
            let negative = x[g] < 0.0 && best[g] > 0;
            codes[g] = (best[g] | if negative { 8 } else { 0 }) as u8;
        }
    }
    codes
}

impl BlockFormat for MXFP4 {
    fn dtype(&self) -> DType {
        DType::MXFP4
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let d = power(block[EXPONENT]);
                let (low, high) = y.split_at_mut(16);
                for (j, &q) in field::<16>(block, QUANTS).iter().enumerate() {
                    low[j] = d * f32::from(LEVELS[usize::from(q & 15)]);
                    high[j] = d * f32::from(LEVELS[usize::from(q >> 4)]);
                }
            },
        );
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(
            values,
            out,
            #[inline(always)]
            |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
                let (min, max) = bounds(x);
                let largest = max.max(-min);
                // An exponent below the smallest wraps around, as the reference's does.
                let e = if largest > 0.0 { truncate(largest.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
                let d = power(e);
                block[EXPONENT] = e;
                put_nibbles(&nearest_levels(x, d), &mut block[QUANTS..]);
            },
        );
    }

    fn codes(&self) -> usize {
        16
    }

    fn uniform(&self) -> bool {
        false
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        put_nibbles(whole(codes), &mut block[QUANTS..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_meet_where_subnormals_end() {
        for e in 0..255 {
            assert_eq!(power(e + 1), 2.0 * power(e), "{e}");
        }
        assert_eq!(power(128), 1.0);
    }
}
