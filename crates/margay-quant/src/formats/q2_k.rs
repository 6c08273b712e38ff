//! `Q2_K`: 256 two-bit codes in 16 groups of 16 with 4-bit scales and minima. y = d s q - dmin m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16},
    search::{AffineTrials, affine, nearest_int},
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share a 4-bit scale.
pub const GROUP: usize = 16;
/// Bytes a block.
pub const BYTES: usize = 84;
/// Where the 16 bytes of scales (low nibble) and minima (high nibble) lie.
pub const SCALES: usize = 0;
/// Where the 64 bytes of codes lie: of each 128 numbers, number i has bits 2 (i / 32) of byte i % 32.
pub const QUANTS: usize = 16;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 80;
/// Where the f16 scale dmin of the minima lies.
pub const MIN: usize = 82;

/// Source: `quantize_row_q2_K_ref`.
const TRIALS: AffineTrials = AffineTrials { top: 3, first: -0.5, delta: 0.1, steps: 15, absolute: true };

/// The format.
pub struct Q2_K;

impl BlockFormat for Q2_K {
    fn dtype(&self) -> DType {
        DType::Q2_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
            let (d, dmin) = (f16_at(block, SCALE), f16_at(block, MIN));
            for (j, y) in y.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let packed = block[SCALES + j];
                let (scale, min) = (d * f32::from(packed & 15), dmin * f32::from(packed >> 4));
                let shift = 2 * (j / 2 % 4);
                let quants = field::<GROUP>(block, QUANTS + 32 * (j / 8) + 16 * (j % 2));
                for (y, q) in y.iter_mut().zip(quants) {
                    *y = scale * f32::from(q >> shift & 3) - min;
                }
            }
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            block.fill(0);
            let groups = x.as_chunks::<GROUP>().0;
            let mut codes = [[0; GROUP]; 16];
            let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
            let (mut max_scale, mut max_min) = (0.0, 0.0);
            for (j, x) in groups.iter().enumerate() {
                (scales[j], mins[j]) = affine(x, &x.map(f32::abs), &mut codes[j], &TRIALS);
                max_scale = if scales[j] > max_scale { scales[j] } else { max_scale };
                max_min = if mins[j] > max_min { mins[j] } else { max_min };
            }
            let four_bits = |values: &[f32; 16], max: f32| {
                let inverse = if max > 0.0 { 15.0 / max } else { 0.0 };
                values.map(|v| nearest_int(inverse * v).clamp(0, 15) as u8)
            };
            let (scales, mins) = (four_bits(&scales, max_scale), four_bits(&mins, max_min));
            let d = put_f16(block, SCALE, max_scale / 15.0);
            let dmin = put_f16(block, MIN, max_min / 15.0);
            for (j, x) in groups.iter().enumerate() {
                block[SCALES + j] = scales[j] | mins[j] << 4;
                let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
                if scale != 0.0 {
                    for (code, x) in codes[j].iter_mut().zip(x) {
                        *code = nearest_int((x + min) / scale).clamp(0, TRIALS.top) as u8;
                    }
                }
            }
            for (i, &code) in codes.as_flattened().iter().enumerate() {
                block[QUANTS + 32 * (i / 128) + i % 32] |= code << (2 * (i / 32 % 4));
            }
        });
    }
}
