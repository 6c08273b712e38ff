//! How a head's part of a block is written and read, type by type.
//!
//! Numbers lie in the order of [`super`], a byte each, or several tokens or channels in one byte:
//! * 4 bits: keys `[4][D / 2][16]`, an even channel in the low half of a byte and the next in the high one; values
//!   `[D' / 16][64][8]`, column `c` of 16 in the low half of byte `c` and column `c + 8` in its high one.
//! * 2 bits: keys `[4][D][4]` and values `[D' / 16][64][4]`, the 16 tokens or columns of a panel in a little-endian word.
//!
//! Scales of 32 channels are half precision, `[D / 32][64]` for keys and then for values. Of 2 bits they are pairs of scale
//! and minimum: `[2][D]` for keys, of 32 tokens each, and `[D / 32][64]` for values.

use super::{KvType, wide};
use crate::kernels::{Kernels, attention::KEYS, float::NR};
use half::f16;

/// Channels, or tokens, that share a scale.
pub(crate) const GROUP: usize = 32;
/// The largest number of E4M3.
const FP8_MAX: f32 = 448.0;
/// Below it, numbers of E4M3 are evenly spaced.
const FP8_LEAST_NORMAL: f32 = 0.015_625;

/// Bytes of the parts of a head's part of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) keys: usize,
    pub(crate) values: usize,
    pub(crate) scales: usize,
}

impl Sizes {
    /// `None` where they overflow.
    pub(crate) fn new(kind: KvType, d: usize) -> Option<Sizes> {
        let (wide, groups) = (d.checked_next_multiple_of(NR)?, d.div_ceil(GROUP));
        // Four more than twice the channels, and all of it, have to be counted.
        d.checked_mul(64 * KEYS)?;
        Some(match kind {
            KvType::F32 => Sizes { keys: KEYS * d * 4, values: KEYS * wide * 4, scales: 0 },
            KvType::F16 => Sizes { keys: KEYS * d * 2, values: KEYS * wide * 2, scales: 0 },
            KvType::Q8 | KvType::Fp8 => {
                Sizes { keys: KEYS * d, values: KEYS * wide, scales: 2 * KEYS * size_of::<f32>() }
            }
            KvType::Q8_0 => Sizes { keys: KEYS * d, values: KEYS * wide, scales: 2 * KEYS * groups * 2 },
            KvType::Q4_0 => {
                let keys = KEYS * d.div_ceil(2);
                Sizes { keys, values: KEYS * wide / 2, scales: 2 * KEYS * groups * 2 }
            }
            KvType::Kivi2 => {
                let pairs = KEYS / GROUP * d + KEYS * groups;
                Sizes { keys: KEYS * d / 4, values: KEYS * wide / 4, scales: pairs * 4 }
            }
        })
    }
}

/// Place of a key's channel among numbers.
fn key_at(d: usize, token: usize, channel: usize) -> usize {
    (token / NR * d + channel) * NR + token % NR
}

/// Place of a value's channel among the numbers of values.
fn value_at(token: usize, channel: usize) -> usize {
    (channel / NR * KEYS + token) * NR + channel % NR
}

/// Writes key and value of one token to a head's part of a block, of a type that is filled token by token. `scratch` has
/// room for a head.
pub(crate) fn put(
    kernels: &Kernels,
    kind: KvType,
    block: &mut [u8],
    token: usize,
    [key, value]: [&[f32]; 2],
    scratch: &mut [f32],
) {
    let d = key.len();
    assert!(token < KEYS && value.len() == d && d <= scratch.len());
    let sizes = Sizes::new(kind, d).expect("invariant: computed when the memory was made");
    let (keys, rest) = block.split_at_mut(sizes.keys);
    let (values, scales) = rest.split_at_mut(sizes.values);
    match kind {
        KvType::F32 => {
            let bytes = |x: &f32| x.to_ne_bytes();
            scatter(key.iter().map(bytes), keys, |i| key_at(d, token, i));
            scatter(value.iter().map(bytes), values, |i| value_at(token, i));
        }
        KvType::F16 => {
            // SAFETY: halves of floats that are there and are nobody else's; any bits are a half.
            let halves = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<u16>(), d) };
            (kernels.float.narrow)(key, halves);
            scatter(halves.iter().map(|x| x.to_ne_bytes()), keys, |i| key_at(d, token, i));
            (kernels.float.narrow)(value, halves);
            scatter(halves.iter().map(|x| x.to_ne_bytes()), values, |i| value_at(token, i));
        }
        KvType::Q8 => {
            // SAFETY: as above.
            let codes = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<i8>(), d) };
            let (scale, _) = (kernels.rows.quantize_row)(key, codes);
            put_f32(scales, token, scale);
            scatter(codes.iter().map(|x| x.to_ne_bytes()), keys, |i| key_at(d, token, i));
            let (scale, _) = (kernels.rows.quantize_row)(value, codes);
            put_f32(scales, KEYS + token, scale);
            scatter(codes.iter().map(|x| x.to_ne_bytes()), values, |i| value_at(token, i));
        }
        KvType::Fp8 => {
            let scale = fp8_scale(key);
            put_f32(scales, token, scale);
            let inverse = inverse_of(scale);
            scatter(key.iter().map(|x| [to_fp8(x * inverse)]), keys, |i| key_at(d, token, i));
            let scale = fp8_scale(value);
            put_f32(scales, KEYS + token, scale);
            let inverse = inverse_of(scale);
            scatter(value.iter().map(|x| [to_fp8(x * inverse)]), values, |i| value_at(token, i));
        }
        KvType::Q8_0 => {
            let groups = d.div_ceil(GROUP);
            for (at, (key, value)) in key.chunks(GROUP).zip(value.chunks(GROUP)).enumerate() {
                let first = at * GROUP;
                let inverse = put_scale(scales, at * KEYS + token, largest(key) / 127.0);
                let code = |x: &f32| [(x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8];
                scatter(key.iter().map(code), keys, |i| key_at(d, token, first + i));
                let inverse = put_scale(scales, (groups + at) * KEYS + token, largest(value) / 127.0);
                let code = |x: &f32| [(x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8];
                scatter(value.iter().map(code), values, |i| value_at(token, first + i));
            }
        }
        KvType::Q4_0 => {
            let groups = d.div_ceil(GROUP);
            for (at, (key, value)) in key.chunks(GROUP).zip(value.chunks(GROUP)).enumerate() {
                let first = at * GROUP;
                let inverse = put_scale(scales, at * KEYS + token, extreme(key) / -8.0);
                for (i, x) in key.iter().enumerate() {
                    let channel = first + i;
                    let byte = &mut keys[(token / NR * d.div_ceil(2) + channel / 2) * NR + token % NR];
                    set_half(byte, channel % 2, to_4_bits(x * inverse));
                }
                let inverse = put_scale(scales, (groups + at) * KEYS + token, extreme(value) / -8.0);
                for (i, x) in value.iter().enumerate() {
                    let (panel, column) = ((first + i) / NR, (first + i) % NR);
                    let byte = &mut values[(panel * KEYS + token) * (NR / 2) + column % (NR / 2)];
                    set_half(byte, column / (NR / 2), to_4_bits(x * inverse));
                }
            }
        }
        KvType::Kivi2 => unreachable!("a block of 2 bits is written as a whole"),
    }
}

/// Writes a whole head's part of a block of 2 bits from float32 as [`unpack`] gives it.
fn pack_2_bits(d: usize, from: &[f32], block: &mut [u8]) {
    let sizes = Sizes::new(KvType::Kivi2, d).expect("invariant: computed when the memory was made");
    let (keys, rest) = block.split_at_mut(sizes.keys);
    let (values, scales) = rest.split_at_mut(sizes.values);
    for half in 0..KEYS / GROUP {
        for channel in 0..d {
            let token = |i: usize| from[key_at(d, half * GROUP + i, channel)];
            let (scale, least) = range((0..GROUP).map(token));
            put_pair(scales, half * d + channel, scale, least);
            let inverse = inverse_of(scale);
            for panel in 0..GROUP / NR {
                let word = (0..NR).fold(0u32, |word, i| {
                    word | to_2_bits((token(panel * NR + i) - least) * inverse) << (2 * i)
                });
                let at = (half * (GROUP / NR) + panel) * d + channel;
                keys[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    let (from, pairs) = (&from[KEYS * d..], KEYS / GROUP * d);
    for token in 0..KEYS {
        for first in (0..d).step_by(GROUP) {
            let end = d.min(first + GROUP);
            let (scale, least) = range((first..end).map(|channel| from[value_at(token, channel)]));
            put_pair(scales, pairs + first / GROUP * KEYS + token, scale, least);
            let inverse = inverse_of(scale);
            for panel in first / NR..end.div_ceil(NR) {
                let word = (0..NR.min(d - panel * NR)).fold(0u32, |word, i| {
                    let x = from[value_at(token, panel * NR + i)];
                    word | to_2_bits((x - least) * inverse) << (2 * i)
                });
                let at = panel * KEYS + token;
                values[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// Rewrites a head's part of a block, all 64 tokens, from one type to another. `floats` has room for the block and for two
/// rows behind it.
pub(crate) fn convert(
    kernels: &Kernels,
    d: usize,
    (from, bytes): (KvType, &[u8]),
    (to, block): (KvType, &mut [u8]),
    floats: &mut [f32],
) {
    let (panels, rest) = floats.split_at_mut(KEYS * (d + wide(d)));
    (kernels.attention.unpack)(from, d, bytes, panels);
    if to == KvType::Kivi2 {
        return pack_2_bits(d, panels, block);
    }
    let (row, rest) = rest.split_at_mut(2 * d);
    for token in 0..KEYS {
        row_of(d, panels, token, row);
        let (key, value) = row.split_at(d);
        put(kernels, to, block, token, [key, value], rest);
    }
}

/// Key and then value of a token of a block in float32, [2, D].
pub(crate) fn row_of(d: usize, panels: &[f32], token: usize, row: &mut [f32]) {
    let (key, value) = row.split_at_mut(d);
    for (channel, (key, value)) in key.iter_mut().zip(value).enumerate() {
        *key = panels[key_at(d, token, channel)];
        *value = panels[KEYS * d + value_at(token, channel)];
    }
}

/// Floats that [`convert`] needs.
pub(crate) fn convert_floats(d: usize) -> usize {
    KEYS * (d + wide(d)) + 3 * d
}

/// A head's part of a block in float32, keys and then values as [`super`] lays them out.
#[inline(always)]
pub(crate) fn unpack(kind: KvType, d: usize, block: &[u8], to: &mut [f32]) {
    let sizes = Sizes::new(kind, d).expect("invariant: computed when the memory was made");
    let (keys, rest) = block.split_at(sizes.keys);
    let (values, scales) = rest.split_at(sizes.values);
    let (to_keys, to_values) = to.split_at_mut(KEYS * d);
    let (keys_of, values_of) = (to_keys.as_chunks_mut::<NR>().0, to_values.as_chunks_mut::<NR>().0);
    let groups = d.div_ceil(GROUP);
    match kind {
        KvType::F32 => {
            let numbers = block.as_chunks::<4>().0.iter();
            to.iter_mut().zip(numbers).for_each(|(to, x)| *to = f32::from_ne_bytes(*x));
        }
        KvType::F16 => {
            let numbers = block.as_chunks::<2>().0.iter();
            to.iter_mut().zip(numbers).for_each(|(to, x)| *to = f16::from_ne_bytes(*x).to_f32());
        }
        KvType::Q8 | KvType::Fp8 => {
            let float = kind == KvType::Fp8;
            let number = |x: u8| if float { of_fp8(x) } else { f32::from(x as i8) };
            let scales = scales.as_chunks::<4>().0;
            let scale = |at: usize| f32::from_ne_bytes(scales[at]);
            for (at, (to, from)) in keys_of.iter_mut().zip(keys.as_chunks::<NR>().0).enumerate() {
                let first = at / d * NR;
                for (i, (to, x)) in to.iter_mut().zip(from).enumerate() {
                    *to = number(*x) * scale(first + i);
                }
            }
            for (at, (to, from)) in values_of.iter_mut().zip(values.as_chunks::<NR>().0).enumerate() {
                let scale = scale(KEYS + at % KEYS);
                to.iter_mut().zip(from).for_each(|(to, x)| *to = number(*x) * scale);
            }
        }
        KvType::Q8_0 => {
            let scales = scales.as_chunks::<2>().0;
            let panels = keys_of.chunks_exact_mut(d).zip(keys.as_chunks::<NR>().0.chunks_exact(d));
            for (panel, (to, from)) in panels.enumerate() {
                let grouped = to.chunks_mut(GROUP).zip(from.chunks(GROUP));
                for (group, (to, from)) in grouped.enumerate() {
                    let scales = panel_scales(scales, group, panel);
                    for (to, from) in to.iter_mut().zip(from) {
                        for ((to, x), scale) in to.iter_mut().zip(from).zip(&scales) {
                            *to = f32::from(*x as i8) * scale;
                        }
                    }
                }
            }
            for (at, (to, from)) in values_of.iter_mut().zip(values.as_chunks::<NR>().0).enumerate() {
                let group = at / KEYS * NR / GROUP;
                let scale = f16::from_ne_bytes(scales[(groups + group) * KEYS + at % KEYS]).to_f32();
                to.iter_mut().zip(from).for_each(|(to, x)| *to = f32::from(*x as i8) * scale);
            }
        }
        KvType::Q4_0 => {
            let (scales, pairs) = (scales.as_chunks::<2>().0, d.div_ceil(2));
            let number = |x: u8| f32::from(x) - 8.0;
            let panels = keys_of.chunks_exact_mut(d).zip(keys.as_chunks::<NR>().0.chunks_exact(pairs));
            for (panel, (to, from)) in panels.enumerate() {
                for (group, to) in to.chunks_mut(GROUP).enumerate() {
                    let scales = panel_scales(scales, group, panel);
                    for (i, to) in to.iter_mut().enumerate() {
                        let (from, shift) = (&from[(group * GROUP + i) / 2], 4 * (i % 2));
                        for ((to, x), scale) in to.iter_mut().zip(from).zip(&scales) {
                            *to = number(x >> shift & 15) * scale;
                        }
                    }
                }
            }
            let values = values.as_chunks::<{ NR / 2 }>().0;
            for (at, (to, from)) in values_of.iter_mut().zip(values).enumerate() {
                let group = at / KEYS * NR / GROUP;
                let scale = f16::from_ne_bytes(scales[(groups + group) * KEYS + at % KEYS]).to_f32();
                let (low, high) = to.split_at_mut(NR / 2);
                for ((low, high), x) in low.iter_mut().zip(high).zip(from) {
                    *low = number(x & 15) * scale;
                    *high = number(x >> 4) * scale;
                }
            }
        }
        KvType::Kivi2 => {
            let scales = scales.as_chunks::<4>().0;
            let pair = |at: usize| {
                let [a, b, c, d] = scales[at];
                (f16::from_ne_bytes([a, b]).to_f32(), f16::from_ne_bytes([c, d]).to_f32())
            };
            let spread = |to: &mut [f32; NR], word: &[u8; 4], (scale, least): (f32, f32)| {
                let word = u32::from_le_bytes(*word);
                for (i, to) in to.iter_mut().enumerate() {
                    *to = (word >> (2 * i) & 3) as f32 * scale + least;
                }
            };
            for (at, (to, word)) in keys_of.iter_mut().zip(keys.as_chunks::<4>().0).enumerate() {
                let (panel, channel) = (at / d, at % d);
                spread(to, word, pair(panel * NR / GROUP * d + channel));
            }
            for (at, (to, word)) in values_of.iter_mut().zip(values.as_chunks::<4>().0).enumerate() {
                let group = at / KEYS * NR / GROUP;
                spread(to, word, pair(KEYS / GROUP * d + group * KEYS + at % KEYS));
            }
        }
    }
}

/// The scales of a panel's 16 tokens for a group of channels of keys.
#[inline(always)]
fn panel_scales(scales: &[[u8; 2]], group: usize, panel: usize) -> [f32; NR] {
    let first = group * KEYS + panel * NR;
    std::array::from_fn(|i| f16::from_ne_bytes(scales[first + i]).to_f32())
}

/// Writes each number to its place.
#[inline(always)]
fn scatter<const N: usize>(
    numbers: impl Iterator<Item = [u8; N]>,
    to: &mut [u8],
    place: impl Fn(usize) -> usize,
) {
    let to = to.as_chunks_mut::<N>().0;
    for (i, number) in numbers.enumerate() {
        to[place(i)] = number;
    }
}

fn put_f32(scales: &mut [u8], at: usize, scale: f32) {
    scales.as_chunks_mut::<4>().0[at] = scale.to_ne_bytes();
}

/// Writes the scale in half precision and gives what numbers are to be multiplied with.
fn put_scale(scales: &mut [u8], at: usize, scale: f32) -> f32 {
    let scale = f16::from_f32(scale);
    scales.as_chunks_mut::<2>().0[at] = scale.to_ne_bytes();
    inverse_of(scale.to_f32())
}

fn put_pair(scales: &mut [u8], at: usize, scale: f32, least: f32) {
    let [[a, b], [c, d]] = [f16::from_f32(scale), f16::from_f32(least)].map(f16::to_ne_bytes);
    scales.as_chunks_mut::<4>().0[at] = [a, b, c, d];
}

/// 0 for a scale of 0, and for one so small that its inverse is infinite.
fn inverse_of(scale: f32) -> f32 {
    if scale == 0.0 || (1.0 / scale).is_infinite() { 0.0 } else { 1.0 / scale }
}

/// The greatest magnitude; a NaN where there is one.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most, x| if x.abs() > most || x.is_nan() { x.abs() } else { most })
}

/// The number of greatest magnitude; a NaN where there is one.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |most, x| if x.abs() > most.abs() || x.is_nan() { *x } else { most })
}

/// Scale and minimum of 2 bits, as they will be stored. A NaN among the numbers is one of the scale.
fn range(x: impl Iterator<Item = f32>) -> (f32, f32) {
    let (mut least, mut most, mut lost) = (f32::INFINITY, f32::NEG_INFINITY, false);
    for x in x {
        (least, most, lost) = (least.min(x), most.max(x), lost || x.is_nan());
    }
    let least = f16::from_f32(least).to_f32();
    let scale = f16::from_f32((most - least) / 3.0).to_f32();
    (if lost { f32::NAN } else { scale }, least)
}

fn to_4_bits(x: f32) -> u8 {
    (x.round_ties_even().clamp(-8.0, 7.0) as i8 + 8) as u8
}

fn to_2_bits(x: f32) -> u32 {
    x.round_ties_even().clamp(0.0, 3.0) as u32
}

fn set_half(byte: &mut u8, half: usize, code: u8) {
    *byte = if half == 0 { *byte & 0xf0 | code } else { *byte & 0x0f | code << 4 };
}

fn fp8_scale(x: &[f32]) -> f32 {
    largest(x) / FP8_MAX
}

/// The nearest number of E4M3, ties to even; what is beyond the largest becomes it.
fn to_fp8(x: f32) -> u8 {
    let (sign, size) = ((x.to_bits() >> 24 & 0x80) as u8, x.abs().min(FP8_MAX));
    let code = if size < FP8_LEAST_NORMAL {
        // Steps of 2^-9; the ninth is the first normal number.
        (size * 512.0).round_ties_even() as u8
    } else {
        let bits = size.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3) as u8
    };
    sign | code
}

#[inline(always)]
fn of_fp8(x: u8) -> f32 {
    let size = u32::from(x & 0x7f);
    let normal = f32::from_bits((size << 20) + (120 << 23));
    let size = if size < 8 { size as f32 / 512.0 } else { normal };
    f32::from_bits(size.to_bits() | u32::from(x & 0x80) << 24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn random(seed: &mut u32, len: usize) -> Vec<f32> {
        let mut next = || {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// A block of one head, rows of 64 tokens [key, value].
    fn filled(kernels: &Kernels, kind: KvType, d: usize, rows: &[f32]) -> Vec<u8> {
        let open = kind.while_open();
        let mut block = vec![0; open.block_bytes(d).unwrap()];
        for (token, row) in rows.chunks_exact(2 * d).enumerate() {
            let (key, value) = row.split_at(d);
            put(kernels, open, &mut block, token, [key, value], &mut vec![0.0; d]);
        }
        if open == kind {
            return block;
        }
        let mut closed = vec![0; kind.block_bytes(d).unwrap()];
        convert(kernels, d, (open, &block), (kind, &mut closed), &mut vec![0.0; convert_floats(d)]);
        closed
    }

    fn rows(kernels: &Kernels, kind: KvType, d: usize, block: &[u8]) -> Vec<f32> {
        let mut panels = vec![0.0; KEYS * (d + wide(d))];
        (kernels.attention.unpack)(kind, d, block, &mut panels);
        let mut all = vec![0.0; KEYS * 2 * d];
        all.chunks_exact_mut(2 * d).enumerate().for_each(|(token, row)| row_of(d, &panels, token, row));
        all
    }

    #[test]
    fn what_was_written_is_read_again_by_every_instruction_set() {
        let mut seed = 3;
        for d in [1, 5, 16, 32, 40, 72, 128] {
            let written = random(&mut seed, KEYS * 2 * d);
            for kind in KvType::ALL {
                let plain = Kernels::of(Isa::Scalar).unwrap();
                let block = filled(&plain, kind, d, &written);
                let read = rows(&plain, kind, d, &block);
                for isa in Isa::supported() {
                    let kernels = Kernels::of(isa).unwrap();
                    assert_eq!(filled(&kernels, kind, d, &written), block, "{kind:?} {isa} {d}");
                    assert_eq!(rows(&kernels, kind, d, &block), read, "{kind:?} {isa} {d}");
                }
                // Half a step of the coarsest scale that numbers within 1 can have, and a step where 8 becomes 7.
                let step = match kind {
                    KvType::F32 => 0.0,
                    KvType::F16 => 2f32.powi(-11),
                    KvType::Q8 | KvType::Q8_0 => 0.51 / 127.0 + 2f32.powi(-10),
                    KvType::Q4_0 => 1.01 / 8.0,
                    KvType::Fp8 => 2f32.powi(-4),
                    KvType::Kivi2 => 1.01 / 3.0,
                };
                for (read, written) in read.iter().zip(&written) {
                    assert!((read - written).abs() <= step, "{kind:?} {d}: {read}, not {written}");
                }
                // A second time nothing is lost, but where groups are of several tokens.
                if kind != KvType::Kivi2 {
                    let again = rows(&plain, kind, d, &filled(&plain, kind, d, &read));
                    let off = again.iter().zip(&read).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(off <= 2e-7, "{kind:?} {d}: {off}");
                }
            }
        }
    }

    #[test]
    fn two_bits_hold_four_levels_of_a_channel_or_token_exactly() {
        let kernels = Kernels::of(Isa::Scalar).unwrap();
        let d = 40;
        // Keys of a channel and values of a token are a minimum and multiples of a step, all of them halves; each of 32
        // has its least and its greatest.
        let mut written = vec![0.0f32; KEYS * 2 * d];
        for token in 0..KEYS {
            for channel in 0..d {
                written[token * 2 * d + channel] = channel as f32 - 8.0 + 0.25 * (token % 4) as f32;
                written[token * 2 * d + d + channel] = 2.0 - token as f32 + 0.5 * (channel % 4) as f32;
            }
        }
        let block = filled(&kernels, KvType::Kivi2, d, &written);
        assert_eq!(rows(&kernels, KvType::Kivi2, d, &block), written);
    }

    #[test]
    fn eight_bit_floats_are_all_their_own_nearest_and_extremes_are_kept() {
        for code in (0..=0x7e).chain(0x80..=0xfe) {
            let back = to_fp8(of_fp8(code));
            assert!(back == code || (code & 0x7f == 0 && back & 0x7f == 0), "{code:#x} became {back:#x}");
        }
        assert_eq!(
            (of_fp8(0x7e), of_fp8(8), of_fp8(1), of_fp8(0xb8)),
            (448.0, 0.015_625, 0.001_953_125, -1.0)
        );
        assert_eq!((to_fp8(1.0625), to_fp8(1.1875), to_fp8(1e9)), (0x38, 0x3a, 0x7e), "ties go to even");
    }

    #[test]
    fn zeros_stay_zeros_and_a_number_that_is_none_is_not_lost() {
        let kernels = Kernels::of(Isa::Scalar).unwrap();
        for kind in KvType::ALL {
            let d = 40;
            let zeros = rows(&kernels, kind, d, &filled(&kernels, kind, d, &vec![0.0; KEYS * 2 * d]));
            assert!(zeros.iter().all(|x| *x == 0.0), "{kind:?}");
            let mut written = vec![0.5; KEYS * 2 * d];
            (written[3], written[d + 35]) = (f32::NAN, f32::NAN);
            let read = rows(&kernels, kind, d, &filled(&kernels, kind, d, &written));
            assert!(read[3].is_nan() && read[d + 35].is_nan(), "{kind:?}");
        }
    }
}
