//! `IQ4_XS`: 256 nibbles that index 16 unevenly spaced levels, in 8 groups of 32 with 6-bit scales. y = d (s - 32) T.

use margay_tensor::DType;

use crate::{
    BlockFormat,
    block::{decode_each, encode_each, encode_each_weighted, f16_at, field, put_f16, put_nibbles, whole},
    formats::iq4_nl::{LEVELS, fitted_scales, put_levels},
    search::{LANES, Lanes, extreme, inverse, nearest_int, side_by_side, sum_squares, weigh},
};

/// Numbers a block.
pub const ELEMENTS: usize = 256;
/// Numbers that share a 6-bit scale.
pub const GROUP: usize = 32;
/// Bytes a block.
pub const BYTES: usize = 136;
/// Where the f16 scale d of the scales lies.
pub const SCALE: usize = 0;
/// Where the u16 of the scales' upper bit pairs lies, the first group's lowest.
pub const SCALES_HIGH: usize = 2;
/// Where the 4 bytes of the scales' low nibbles lie, an even group's in the low nibble.
pub const SCALES_LOW: usize = 4;
/// Where the 128 bytes of nibbles lie: 16 bytes a group, byte j with number j low and number j + 16 high.
pub const QUANTS: usize = 8;

/// The format.
pub struct IQ4_XS;

impl BlockFormat for IQ4_XS {
    fn dtype(&self) -> DType {
        DType::IQ4_XS
    }

    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        decode_each(
            blocks,
            out,
            #[inline(always)]
            |block: &[u8; BYTES], y: &mut [f32; ELEMENTS]| {
                let d = f16_at(block, SCALE);
                let high_bits = u16::from_le_bytes(*field(block, SCALES_HIGH));
                for (g, y) in y.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                    let low = block[SCALES_LOW + g / 2] >> (4 * (g % 2)) & 15;
                    let high = (high_bits >> (2 * g) & 3) as u8;
                    let scale = d * f32::from((low | high << 4) as i8 - 32);
                    let (first, second) = y.split_at_mut(16);
                    for (j, &q) in field::<16>(block, QUANTS + 16 * g).iter().enumerate() {
                        first[j] = scale * f32::from(LEVELS[usize::from(q & 15)]);
                        second[j] = scale * f32::from(LEVELS[usize::from(q >> 4)]);
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
                let groups = x.as_chunks::<GROUP>().0;
                let lanes = side_by_side(groups);
                finish(groups, &fitted_scales(&lanes, &lanes.map(|x| x.map(|x| x * x))), block);
            },
        );
    }

    fn encode_weighted(&self, row: &[f32], importance: &[f32], out: &mut [u8]) {
        encode_each_weighted(
            row,
            importance,
            out,
            #[inline(always)]
            |x: &[f32; ELEMENTS], importance, block: &mut [u8; BYTES]| {
                let spread = sum_squares(x) * (2.0 / ELEMENTS as f32);
                let (groups, importance) = (x.as_chunks::<GROUP>().0, importance.as_chunks::<GROUP>().0);
                let weights: [[f32; GROUP]; LANES] =
                    std::array::from_fn(|j| weigh(&groups[j], &importance[j], spread));
                finish(groups, &fitted_scales(&side_by_side(groups), &side_by_side(&weights)), block);
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
        for (codes, bytes) in
            whole::<ELEMENTS>(codes).as_chunks::<GROUP>().0.iter().zip(block[QUANTS..].chunks_mut(16))
        {
            put_nibbles(codes, bytes);
        }
    }
}

/// Writes the scales as multiples of one, and the levels that they ask for.
#[inline(always)]
fn finish(groups: &[[f32; GROUP]], scales: &Lanes, block: &mut [u8; BYTES]) {
    block.fill(0);
    let d = -extreme(scales) / 32.0;
    put_f16(block, SCALE, d);
    let id = inverse(d);
    let mut high_bits = 0u16;
    for (g, x) in groups.iter().enumerate() {
        let level = nearest_int(id * scales[g]).clamp(-32, 31);
        let code = (level + 32) as u8;
        block[SCALES_LOW + g / 2] |= (code & 15) << (4 * (g % 2));
        high_bits |= u16::from(code >> 4) << (2 * g);
        put_levels(x, inverse(d * level as f32), &mut block[QUANTS + 16 * g..][..16]);
    }
    block[SCALES_HIGH..SCALES_LOW].copy_from_slice(&high_bits.to_le_bytes());
}
