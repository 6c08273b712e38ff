//! Encoded bytes and decoded numbers equal those of ggml's own quantizer.
//!
//! `gguf_golden.json` holds what `ggml_quantize_chunk` (compiled without fused multiply-add) made of two rows of 256
//! numbers, whose recipe its `note` gives, with and without an importance matrix.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use margay_quant::{FORMATS, decode_into, encode_into, format};
use margay_tensor::DType;
use serde_json::Value;

/// The file gives the relative squared error with six digits.
const MSE_DIGITS: f64 = 1e-5;

const ROW: usize = 256;

/// The row of numbers that the file's note describes.
fn row(kind: u32) -> Vec<f32> {
    let mut state = 12345 + 777 * kind;
    let number = |i: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let f = ((state >> 8) as i32 - (1 << 23)) as f32 / (1 << 23) as f32;
        match kind {
            0 => f,
            _ if i % 37 == 5 => f * f * f * 8.0,
            _ => f * f * f,
        }
    };
    (0..ROW).map(number).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().as_chunks::<2>().0;
    digits.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The importances that the file's note describes.
fn importance() -> Vec<f32> {
    let mut state = 99u32;
    let number = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8 & 0xffff) as f32 / 65536.0 + 0.01
    };
    (0..ROW).map(number).collect()
}

/// Type, row and expectation of every case, with or without an importance matrix, whose format is registered.
fn cases(imatrix: u32) -> Vec<(DType, Vec<f32>, Value)> {
    let file: Value = serde_json::from_str(include_str!("gguf_golden.json")).unwrap();
    let plain = file["cases"].as_array().unwrap().iter().filter(|case| case["imatrix"] == imatrix);
    plain
        .filter_map(|case| {
            let dtype = DType::from_name(case["type"].as_str().unwrap())?;
            format(dtype)?;
            Some((dtype, row(case["kind"].as_u64().unwrap() as u32), case.clone()))
        })
        .collect()
}

#[test]
fn every_format_but_f32_has_two_golden_rows() {
    let cases = cases(0);
    for format in FORMATS.iter().filter(|format| format.dtype() != DType::F32) {
        let rows = cases.iter().filter(|case| case.0 == format.dtype()).count();
        assert_eq!(rows, 2, "{}", format.dtype());
    }
}

#[test]
fn encoded_bytes_equal_the_reference() {
    for (dtype, values, case) in cases(0) {
        let expected = unhex(case["hex"].as_str().unwrap());
        let mut bytes = vec![0xaa; expected.len()];
        encode_into(dtype, &values, &mut bytes).unwrap();
        assert_eq!(bytes, expected, "{dtype} row {}", case["kind"]);
    }
}

#[test]
fn bytes_encoded_by_importance_equal_the_reference() {
    let cases = cases(1);
    assert_eq!(cases.len(), 2 * 11, "every format that knows importances");
    for (dtype, values, case) in cases {
        let expected = unhex(case["hex"].as_str().unwrap());
        let mut bytes = vec![0xaa; expected.len()];
        format(dtype).unwrap().encode_weighted(&values, &importance(), &mut bytes);
        assert_eq!(bytes, expected, "{dtype} row {}", case["kind"]);
    }
}

#[test]
fn decoded_numbers_equal_the_reference() {
    for (dtype, values, case) in cases(0) {
        let bytes = unhex(case["hex"].as_str().unwrap());
        let mut out = vec![f32::NAN; ROW];
        decode_into(dtype, &bytes, &mut out).unwrap();
        let first = unhex(case["deq_f32_hex_first8"].as_str().unwrap());
        let first: Vec<f32> = first.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(out[..first.len()], first, "{dtype} row {}", case["kind"]);

        // The error over the whole row pins the numbers that the file does not spell out.
        let squared = |a: f32, b: f32| (f64::from(a) - f64::from(b)).powi(2);
        let error: f64 = values.iter().zip(&out).map(|(&x, &y)| squared(x, y)).sum();
        let mse = error / values.iter().map(|&x| squared(x, 0.0)).sum::<f64>();
        let expected = case["rel_mse"].as_f64().unwrap();
        assert!(
            (mse - expected).abs() <= MSE_DIGITS * expected.max(1e-9),
            "{dtype}: {mse} is not {expected}"
        );
    }
}
