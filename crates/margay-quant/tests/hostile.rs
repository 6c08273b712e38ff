//! Hostile rows, with and without an importance, come out as ggml's own quantizer packs them, byte for byte.
//!
//! `hostile_golden.py` made `hostile_golden.json`: hashes of the reference's bytes over rows whose recipes stand in both
//! files. Constant, huge, tiny and denormal rows, ties, lone numbers; importances of many magnitudes, few columns or none.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use margay_quant::format;
use margay_tensor::DType;
use serde_json::Value;

const ROWS: usize = 3;
const COLUMNS: usize = 512;

fn states(seed: u32, count: usize) -> Vec<u32> {
    let mut state = seed;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    };
    (0..count).map(step).collect()
}

fn row(name: &str) -> Vec<f32> {
    let count = ROWS * COLUMNS;
    let uniform =
        states(12345, count).into_iter().map(|s| ((s >> 8) as i32 - (1 << 23)) as f32 / (1 << 23) as f32);
    let steps = [1e-8, 1.0, 0.0, 1e4, 1e-30, -1.0, 3.0f32];
    let ties: Vec<f32> = states(777, count).into_iter().map(|s| ((s >> 8) % 16) as f32 * 0.5 - 4.0).collect();
    let number = |(i, f): (usize, f32)| match name {
        "uniform" => f,
        "cube" => f * f * f,
        "spikes" if i % 37 == 5 => f * f * f * 8.0,
        "spikes" => f * f * f,
        "constant" => 0.3,
        "negative" => -1.7,
        "zero" => 0.0,
        "huge" => f * 3e38,
        "large" => f * 1e18,
        "tiny" => f * 1e-20,
        "denormal" => f * 1e-39,
        "edge" => f * 2e-15,
        "offset" => f * 0.1 + 5.0,
        "mixed" => f * steps[i / 16 % 7],
        "zeros" => [-0.0, 0.0, 0.0][i % 3],
        "half" if f > 0.0 => f,
        "half" => [-0.0, 0.0][i % 2],
        "lone" => f32::from(u8::from(i % 64 == 3)),
        "signs" => [1.0, -1.0][i % 2],
        "ties" => ties[i],
        other => panic!("no recipe for the row {other}"),
    };
    uniform.enumerate().map(number).collect()
}

fn importance(name: &str) -> Option<Vec<f32>> {
    let steps = [1e-30, 1.0, 1e30, 1e-3, 0.0f32];
    let number = |(i, s): (usize, u32)| {
        let u = (s >> 8 & 0xffff) as f32 / 65536.0 + 0.01;
        match name {
            "random" => u,
            "sparse" if i % 5 == 0 => u,
            "steep" => u * steps[i / 8 % 5],
            "sparse" | "zeros" => 0.0,
            other => panic!("no recipe for the importance {other}"),
        }
    };
    (name != "none").then(|| states(99, COLUMNS).into_iter().enumerate().map(number).collect())
}

fn fnv1a(bytes: &[u8]) -> String {
    let step = |state: u64, byte: &u8| (state ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

#[test]
fn hostile_rows_equal_the_reference_byte_for_byte() {
    let file: Value = serde_json::from_str(include_str!("hostile_golden.json")).unwrap();
    let mut wrong = Vec::new();
    for (dtype, importances) in file["fnv1a"].as_object().unwrap() {
        let format = format(DType::from_name(dtype).unwrap()).unwrap();
        for (label, rows) in importances.as_object().unwrap() {
            let weights = importance(label);
            for (name, hash) in rows.as_object().unwrap() {
                let values = row(name);
                let mut bytes = vec![0xaa; format.dtype().row_bytes(values.len()).unwrap()];
                match &weights {
                    None => format.encode(&values, &mut bytes),
                    Some(weights) => {
                        let size = bytes.len() / ROWS;
                        for (row, bytes) in values.chunks(COLUMNS).zip(bytes.chunks_mut(size)) {
                            format.encode_weighted(row, weights, bytes);
                        }
                    }
                }
                if fnv1a(&bytes) != *hash.as_str().unwrap() {
                    wrong.push(format!("{dtype} importance {label} row {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_block_format_is_compared_with_hostile_rows() {
    let file: Value = serde_json::from_str(include_str!("hostile_golden.json")).unwrap();
    for format in margay_quant::FORMATS.iter().filter(|format| format.dtype() != DType::F32) {
        let rows = file["fnv1a"][format.dtype().name()]["none"].as_object().map_or(0, |rows| rows.len());
        assert_eq!(rows, 18, "{}", format.dtype());
    }
}
