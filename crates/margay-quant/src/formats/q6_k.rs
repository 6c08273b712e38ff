//! `Q6_K`: 256 six-bit codes in 16 groups of 16 with signed 8-bit scales. y = d s (q - 32).

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16},
    search::{ZERO_BELOW, extreme, nearest_int, symmetric},
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
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
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
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            block.fill(0);
            let groups = x.as_chunks::<GROUP>().0;
            let mut codes = [[0; GROUP]; 16];
            let mut scales = [0.0; 16];
            for (j, x) in groups.iter().enumerate() {
                scales[j] = symmetric(x, &mut codes[j], ZERO);
            }
            let max_scale = extreme(&scales);
            if max_scale.abs() < ZERO_BELOW {
                return; // All bytes zero: every number decodes to zero.
            }
            let iscale = -128.0 / max_scale;
            let d = put_f16(block, SCALE, 1.0 / iscale);
            for (j, x) in groups.iter().enumerate() {
                let scale = nearest_int(iscale * scales[j]).min(127) as i8;
                block[SCALES + j] = scale as u8;
                let scale = d * f32::from(scale);
                if scale != 0.0 {
                    for (code, x) in codes[j].iter_mut().zip(x) {
                        *code = (nearest_int(x / scale).clamp(-ZERO, ZERO - 1) + ZERO) as u8;
                    }
                }
            }
            for (i, &code) in codes.as_flattened().iter().enumerate() {
                let (half, t, l) = (i / 128, i / 32 % 4, i % 32);
                block[QUANTS + 64 * half + 32 * (t % 2) + l] |= (code & 15) << (4 * (t / 2));
                block[HIGH_BITS + 32 * half + l] |= code >> 4 << (2 * t);
            }
        });
    }
}
