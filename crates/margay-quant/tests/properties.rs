//! What holds for any numbers and any bytes, in every format of the registry.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use margay_quant::{FORMATS, decode_into, encode_into, f16_at};
use margay_tensor::DType;
use proptest::prelude::*;

/// Numbers a row of these tests: one block of the largest format.
const ROW: usize = 256;

/// The levels of the IQ4 formats.
const LEVELS: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// Decoding of one number straight from the format's definition: number `i` of the block `b`. The oracle.
fn naive(dtype: DType, b: &[u8], i: usize) -> f32 {
    let half = |at: usize| f16_at(b, at);
    let nibble = |at: usize| if i < 16 { b[at + i] & 15 } else { b[at + i - 16] >> 4 };
    let fifth = |at: usize| (b[at + i / 8] >> (i % 8) & 1) << 4;
    let k_nibble = |at: usize| b[at + 32 * (i / 64) + i % 32] >> (if i % 64 < 32 { 0 } else { 4 }) & 15;
    let pair = |at: usize| b[at + 32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3;
    let k_scale = || {
        let (p, j) = (&b[4..16], i / 32);
        match j {
            0..4 => (p[j] & 63, p[j + 4] & 63),
            _ => (p[j + 4] & 15 | (p[j - 4] >> 6) << 4, p[j + 4] >> 4 | (p[j] >> 6) << 4),
        }
    };
    let f = |q: u8| f32::from(q);
    match dtype {
        DType::F32 => f32::from_le_bytes(b.try_into().unwrap()),
        DType::F16 => half(0),
        DType::BF16 => f32::from_le_bytes([0, 0, b[0], b[1]]),
        DType::Q8_0 => half(0) * f32::from(b[2 + i] as i8),
        DType::Q4_0 => half(0) * (f(nibble(2)) - 8.0),
        DType::Q4_1 => half(0) * f(nibble(4)) + half(2),
        DType::Q5_0 => half(0) * (f(nibble(6) | fifth(2)) - 16.0),
        DType::Q5_1 => half(0) * f(nibble(8) | fifth(4)) + half(2),
        DType::IQ4_NL => {
            let levels =
                [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];
            half(0) * levels[usize::from(nibble(2))]
        }
        DType::IQ4_XS => {
            let (g, at) = (i / 32, i % 32);
            let low = b[4 + g / 2] >> (4 * (g % 2)) & 15;
            let scale = low | ((u16::from_le_bytes([b[2], b[3]]) >> (2 * g) & 3) as u8) << 4;
            let byte = b[8 + 16 * g + at % 16];
            half(0) * (f(scale) - 32.0) * LEVELS[usize::from(if at < 16 { byte & 15 } else { byte >> 4 })]
        }
        DType::MXFP4 => {
            let levels = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];
            (levels[usize::from(nibble(1))] * 2f64.powi(i32::from(b[0]) - 128)) as f32
        }
        DType::Q4_K => half(0) * f(k_scale().0) * f(k_nibble(16)) - half(2) * f(k_scale().1),
        DType::Q5_K => {
            let q = k_nibble(48) | (b[16 + i % 32] >> (i / 32) & 1) << 4;
            half(0) * f(k_scale().0) * f(q) - half(2) * f(k_scale().1)
        }
        DType::Q6_K => {
            let (h, r) = (i / 128, i % 128);
            let (t, l) = (r / 32, r % 32);
            let low = b[64 * h + l + if t % 2 == 1 { 32 } else { 0 }] >> (if t < 2 { 0 } else { 4 }) & 15;
            let q = low | (b[128 + 32 * h + l] >> (2 * t) & 3) << 4;
            half(208) * f32::from(b[192 + i / 16] as i8) * (f(q) - 32.0)
        }
        DType::Q2_K => half(80) * f(b[i / 16] & 15) * f(pair(16)) - half(82) * f(b[i / 16] >> 4),
        DType::Q3_K => {
            let s = i / 16;
            let low = if s < 8 { b[96 + s] & 15 } else { b[96 + s - 8] >> 4 };
            let scale = low | (b[104 + s % 4] >> (2 * (s / 4)) & 3) << 4;
            let lower = if b[i % 32] >> (i / 32) & 1 == 1 { 0.0 } else { 4.0 };
            half(108) * (f(scale) - 32.0) * (f(pair(32)) - lower)
        }
        other => panic!("the oracle lacks {other}: write its definition here"),
    }
}

/// Largest error of a round trip, as a part of the largest magnitude A of the row.
///
/// Formats with a plain rule are bounded by half a step of the range (a whole step where only one sign reaches its
/// end) and the rounding of the f16 scale. Formats that search a fit give up the end of the range for the rest, and round
/// their scales to 4 to 8 bits: one whole step of the range.
fn worst_error(dtype: DType) -> f32 {
    let f16_rounding = 1.0 / 1024.0;
    match dtype {
        DType::F32 => 0.0,
        DType::F16 => 1.0 / 2048.0,
        DType::BF16 => 1.0 / 256.0,
        DType::Q8_0 => 0.5 / 127.0 + f16_rounding,
        DType::Q4_0 => 1.0 / 8.0 + f16_rounding,
        DType::Q5_0 => 1.0 / 16.0 + f16_rounding,
        DType::Q4_1 => 1.0 / 15.0 + 2.0 * f16_rounding,
        DType::Q5_1 => 1.0 / 31.0 + 2.0 * f16_rounding,
        DType::IQ4_NL => 24.0 / 113.0,
        DType::IQ4_XS => 24.0 / 113.0 + 1.0 / 32.0,
        // The scale is a power of two: A lies between 4 and 8 of them, the largest level at 6.
        DType::MXFP4 => 2.0 / 8.0,
        DType::Q6_K => 1.0 / 32.0,
        DType::Q5_K => 2.0 / 31.0,
        DType::Q4_K => 2.0 / 15.0,
        // Levels -4 to 3: a row whose two ends are about equal has one of them 3 steps away.
        DType::Q3_K => 1.0 / 3.0,
        DType::Q2_K => 2.0 / 3.0,
        other => panic!("no error bound for {other}: derive it here"),
    }
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; dtype.row_bytes(values.len()).unwrap()];
    encode_into(dtype, values, &mut bytes).unwrap();
    bytes
}

fn decode(dtype: DType, bytes: &[u8], count: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; count];
    decode_into(dtype, bytes, &mut values).unwrap();
    values
}

proptest! {
    #[test]
    fn decoding_any_bytes_equals_the_definition(bytes in prop::collection::vec(any::<u8>(), ROW * 4)) {
        for format in FORMATS {
            let dtype = format.dtype();
            let bytes = &bytes[..dtype.row_bytes(ROW).unwrap()];
            let values = decode(dtype, bytes, ROW);
            for (i, y) in values.iter().enumerate() {
                let (block, at) = (i / dtype.block_elements(), i % dtype.block_elements());
                let expected = naive(dtype, &bytes[block * dtype.block_bytes()..][..dtype.block_bytes()], at);
                prop_assert!(
                    *y == expected || y.is_nan() && expected.is_nan(),
                    "{dtype} number {i}: {y} is not {expected}"
                );
            }
        }
    }

    // Magnitudes from 1 keep the scales, at most 4096 times smaller, clear of the subnormal halves.
    #[test]
    fn round_trips_stay_within_a_step(
        magnitude in 1.0f32..1000.0,
        offset in -1.0f32..1.0,
        values in prop::collection::vec(-1.0f32..1.0, ROW),
    ) {
        let values: Vec<f32> = values.iter().map(|x| (x + offset) * magnitude).collect();
        for format in FORMATS {
            let dtype = format.dtype();
            let back = decode(dtype, &encode(dtype, &values), ROW);
            let largest = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            for (x, y) in values.iter().zip(back) {
                prop_assert!((x - y).abs() <= worst_error(dtype) * largest, "{dtype}: {x} came back as {y}");
            }
        }
    }

    #[test]
    fn any_floats_encode_without_panic_and_decode_again(
        bits in prop::collection::vec(any::<u32>(), ROW),
        infinite in 0..ROW,
    ) {
        let mut values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        values[infinite] = f32::INFINITY;
        values[(infinite * 7 + 1) % ROW] = f32::NAN;
        for format in FORMATS {
            let _ = decode(format.dtype(), &encode(format.dtype(), &values), ROW);
        }
    }
}

#[test]
fn zeros_and_signed_zeros_come_back_as_zero() {
    for format in FORMATS {
        for zero in [0.0, -0.0] {
            let back = decode(format.dtype(), &encode(format.dtype(), &[zero; ROW]), ROW);
            assert!(back.iter().all(|y| *y == 0.0), "{}", format.dtype());
        }
    }
}

#[test]
fn magnitudes_at_the_ends_of_float32_do_not_panic() {
    for magnitude in [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), 1e-20, 1e30] {
        let values: Vec<f32> = (0..ROW).map(|i| magnitude * ((i as f32 / 128.0) - 1.0)).collect();
        for format in FORMATS {
            let _ = decode(format.dtype(), &encode(format.dtype(), &values), ROW);
        }
    }
}

#[test]
fn several_blocks_decode_as_each_alone() {
    let values: Vec<f32> = (0..3 * ROW).map(|i| (i as f32 * 0.61).sin()).collect();
    for format in FORMATS {
        let dtype = format.dtype();
        let together = encode(dtype, &values);
        let apart: Vec<u8> = values.chunks(ROW).flat_map(|row| encode(dtype, row)).collect();
        assert_eq!(together, apart, "{dtype}");
        let rows: Vec<f32> =
            together.chunks(together.len() / 3).flat_map(|row| decode(dtype, row, ROW)).collect();
        assert_eq!(decode(dtype, &together, 3 * ROW), rows, "{dtype}");
    }
}
