//! `Q6_K`: 256 six-bit codes in 16 groups of 16 with signed 8-bit scales. y = d s (q - 32).

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, encode_each_weighted, f16_at, field, put_f16, whole},
    search::{LANES, ZERO_BELOW, extreme, nearest_int, side_by_side, symmetric},
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share an 8-bit scale.
pub const GROUP: usize = 16;
/// Bytes a block.
pub const BYTES: usize = 210;
/// Where the 128 bytes of low nibbles lie: of each 128 numbers 0-31 and 64-95 share 32 bytes (low, high nibble), 32-63
/// and 96-127 the next 32.
pub const QUANTS: usize = 0;
/// Where the 64 bytes of upper bit pairs lie: of each 128 numbers, number i has bits 2 (i / 32) of byte i % 32.
pub const HIGH_BITS: usize = 128;
/// Where the 16 signed scales lie.
pub const SCALES: usize = 192;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 208;
/// The code that means zero.
pub const ZERO: i32 = 32;

/// The format.
pub struct Q6_K;

impl BlockFormat for Q6_K {
    fn dtype(&self) -> DType {
        DType::Q6_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let d = f16_at(block, SCALE);
                let scales = field::<16>(block, SCALES).map(|s| d * f32::from(s as i8));
                let quants = field::<128>(block, QUANTS).as_chunks::<32>().0;
                let high_bits = field::<64>(block, HIGH_BITS).as_chunks::<32>().0;
                for (quarter, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let (half, t) = (quarter / 4, quarter % 4);
                    let (low, high) = (&quants[2 * half + t % 2], &high_bits[half]);
                    let (nibble, pair) = (4 * (t / 2), 2 * t);
                    for l in 0..32 {
                        let q = low[l] >> nibble & 15 | (high[l] >> pair & 3) << 4;
                        y[l] = scales[2 * quarter + l / 16] * (i32::from(q) - ZERO) as f32;
                    }
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
                encode_block(x, &x.map(|x| x * x), block);
            },
        );
    }

    fn encode_weighted(&self, row: &[f32], importance: &[f32], out: &mut [u8]) {
        // Alone among the formats this one weighs by the importance itself.
        encode_each_weighted(
            row,
            importance,
            out,
            // A copy, so that both ways of packing are the same loops to the compiler: else this one is four times as slow.
            #[inline(always)]
            |x: &[f32; ELEMENTS], importance: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
                encode_block(x, &importance.map(|w| w), block);
            },
        );
    }

    fn codes(&self) -> usize {
        64
    }

    fn put_codes(&self, codes: &[u8], block: &mut [u8]) {
        put(whole(codes), block);
    }
}

#[inline(always)]
fn encode_block(x: &[f32; ELEMENTS], weights: &[f32; ELEMENTS], block: &mut [u8; BYTES]) {
    let (groups, weights) = (x.as_chunks::<GROUP>().0, weights.as_chunks::<GROUP>().0);
    let mut codes = [[0; GROUP]; 16];
    let mut scales = [0.0; 16];
    for first in [0, LANES] {
        let scale = symmetric(
            &side_by_side(&groups[first..first + LANES]),
            &side_by_side(&weights[first..first + LANES]),
            &mut codes[first..][..LANES],
            ZERO,
        );
        scales[first..][..LANES].copy_from_slice(&scale);
    }
    let max_scale = extreme(&scales);
    if max_scale.abs() < ZERO_BELOW {
        block.fill(0); // Every number decodes to zero.
        return;
    }
    let iscale = -128.0 / max_scale;
    let d = put_f16(block, SCALE, 1.0 / iscale);
    for (j, x) in groups.iter().enumerate() {
        let scale = nearest_int(iscale * scales[j]).min(127) as i8;
        block[SCALES + j] = scale as u8;
        let scale = d * f32::from(scale);
        if scale != 0.0 {
            codes[j] = x.map(|x| (nearest_int(x / scale).clamp(-ZERO, ZERO - 1) + ZERO) as u8);
        }
    }
    put(whole(codes.as_flattened()), block);
}

/// Writes the codes of a block.
#[inline(always)]
fn put(codes: &[u8; ELEMENTS], block: &mut [u8]) {
    for (half, codes) in codes.as_chunks::<128>().0.iter().enumerate() {
        let quarters = codes.as_chunks::<32>().0;
        for l in 0..32 {
            let [a, b, c, d] = [quarters[0][l], quarters[1][l], quarters[2][l], quarters[3][l]];
            block[QUANTS + 64 * half + l] = a & 15 | c << 4;
            block[QUANTS + 64 * half + 32 + l] = b & 15 | d << 4;
            block[HIGH_BITS + 32 * half + l] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
}
