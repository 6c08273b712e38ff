//! `Q4_K`: 256 nibbles in 8 groups of 32 with 6-bit scales and minima. y = d s q - dmin m.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, k_scales, pack_k_scales, put_f16},
    search::{AffineTrials, affine, nearest_int},
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share a 6-bit scale.
pub const GROUP: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 144;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 0;
/// Where the f16 scale dmin of the minima lies.
pub const MIN: usize = 2;
/// Where the 12 bytes of scales and minima lie; [`crate::k_scales`] unpacks them.
pub const SCALES: usize = 4;
/// Where the 128 bytes of nibbles lie: of each 64 numbers the first 32 are the low nibbles of 32 bytes, the rest the
/// high ones.
pub const QUANTS: usize = 16;

/// Source: `quantize_row_q4_K_ref`.
const TRIALS: AffineTrials = AffineTrials { top: 15, first: -1.0, delta: 0.1, steps: 20, absolute: false };

/// The format.
pub struct Q4_K;

impl BlockFormat for Q4_K {
    fn dtype(&self) -> DType {
        DType::Q4_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
            let (d, dmin) = (f16_at(block, SCALE), f16_at(block, MIN));
            let (scales, mins) = k_scales(field(block, SCALES));
            let quants = field::<128>(block, QUANTS).as_chunks::<GROUP>().0;
            for (j, y) in y.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
                let shift = 4 * (j % 2);
                for (y, q) in y.iter_mut().zip(&quants[j / 2]) {
                    *y = scale * f32::from(q >> shift & 15) - min;
                }
            }
        });
    }

    fn encode(&self, values: &[f32], out: &mut [u8]) {
        encode_each(values, out, |x: &[f32; ELEMENTS], block: &mut [u8; BYTES]| {
            let codes = encode_groups(x, block, &TRIALS);
            for (bytes, codes) in block[QUANTS..].as_chunks_mut::<GROUP>().0.iter_mut().zip(codes.chunks(2)) {
                for (l, byte) in bytes.iter_mut().enumerate() {
                    *byte = codes[0][l] | codes[1][l] << 4;
                }
            }
        });
    }
}

/// Finds and writes the scales of a `Q4_K` or `Q5_K` block, whose headers are the same, and returns the codes.
pub(crate) fn encode_groups(x: &[f32; ELEMENTS], block: &mut [u8], t: &AffineTrials) -> [[u8; GROUP]; 8] {
    let groups = x.as_chunks::<GROUP>().0;
    let mut codes = [[0; GROUP]; 8];
    let (mut scales, mut mins) = ([0.0; 8], [0.0; 8]);
    let (mut max_scale, mut max_min) = (0.0, 0.0);
    for (j, x) in groups.iter().enumerate() {
        let mut sum_x2 = 0.0;
        for x in x {
            sum_x2 += x * x;
        }
        let typical = (sum_x2 / GROUP as f32).sqrt();
        let weights = x.map(|x| typical + x.abs());
        (scales[j], mins[j]) = affine(x, &weights, &mut codes[j], t);
        max_scale = if scales[j] > max_scale { scales[j] } else { max_scale };
        max_min = if mins[j] > max_min { mins[j] } else { max_min };
    }
    let six_bits = |values: &[f32; 8], max: f32| {
        let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
        values.map(|v| (nearest_int(inverse * v) as u8).min(63))
    };
    let (scales, mins) = (six_bits(&scales, max_scale), six_bits(&mins, max_min));
    let d = put_f16(block, SCALE, max_scale / 63.0);
    let dmin = put_f16(block, MIN, max_min / 63.0);
    block[SCALES..SCALES + 12].copy_from_slice(&pack_k_scales(&scales, &mins));
    for (j, x) in groups.iter().enumerate() {
        let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
        // A group whose scale rounds to zero keeps the codes of the search.
        if scale != 0.0 {
            for (code, x) in codes[j].iter_mut().zip(x) {
                *code = nearest_int((x + min) / scale).clamp(0, t.top) as u8;
            }
        }
    }
    codes
}
