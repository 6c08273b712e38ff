//! `Q3_K`: 256 three-bit codes in 16 groups of 16 with 6-bit scales. y = d (s - 32) (q - 4).

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, f16_at, field, put_f16},
    search::{extreme, nearest_int, symmetric_by_descent},
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share a 6-bit scale.
pub const GROUP: usize = 16;
/// Bytes a block.
pub const BYTES: usize = 110;
/// Where the 32 bytes of third bits lie: number i has bit i / 32 of byte i % 32.
pub const HIGH_BITS: usize = 0;
/// Where the 64 bytes of low bit pairs lie: of each 128 numbers, number i has bits 2 (i / 32) of byte i % 32.
pub const QUANTS: usize = 32;
/// Where the 12 bytes of scales lie.
pub const SCALES: usize = 96;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 108;
/// The code that means zero.
pub const ZERO: i32 = 4;

/// The format.
pub struct Q3_K;

/// The 16 scales, -32 to 31: their low nibbles fill 8 bytes (first 8 low, last 8 high), their top pairs 4.
fn unpack_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

impl BlockFormat for Q3_K {
    fn dtype(&self) -> DType {
        DType::Q3_K
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(blocks, out, |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
            let d = f16_at(block, SCALE);
            let scales = unpack_scales(field(block, SCALES)).map(|s| d * f32::from(s));
            for (j, y) in y.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let first = 16 * (j % 2);
                let quants = field::<GROUP>(block, QUANTS + 32 * (j / 8) + first);
                let high_bits = field::<GROUP>(block, HIGH_BITS + first);
                let (pair, bit) = (2 * (j / 2 % 4), j / 2);
                for ((y, q), high) in y.iter_mut().zip(quants).zip(high_bits) {
                    let q = q >> pair & 3 | (high >> bit & 1) << 2;
                    *y = scales[j] * (i32::from(q) - ZERO) as f32;
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
                scales[j] = symmetric_by_descent(x, &mut codes[j], ZERO);
            }
            let max_scale = extreme(&scales);
            let mut d = 0.0;
            if max_scale != 0.0 {
                let iscale = -32.0 / max_scale;
                for (j, scale) in scales.iter().enumerate() {
                    let l = (nearest_int(iscale * scale).clamp(-32, 31) + 32) as u8;
                    block[SCALES + j % 8] |= (l & 15) << (4 * (j / 8));
                    block[SCALES + 8 + j % 4] |= l >> 4 << (2 * (j / 4));
                }
                d = put_f16(block, SCALE, 1.0 / iscale);
            }
            let scales = unpack_scales(field(block, SCALES));
            for (j, x) in groups.iter().enumerate() {
                let scale = d * f32::from(scales[j]);
                if scale != 0.0 {
                    for (code, x) in codes[j].iter_mut().zip(x) {
                        *code = (nearest_int(x / scale).clamp(-ZERO, ZERO - 1) + ZERO) as u8;
                    }
                }
            }
            for (i, &code) in codes.as_flattened().iter().enumerate() {
                block[QUANTS + 32 * (i / 128) + i % 32] |= (code & 3) << (2 * (i / 32 % 4));
                block[HIGH_BITS + i % 32] |= code >> 2 << (i / 32);
            }
        });
    }
}
