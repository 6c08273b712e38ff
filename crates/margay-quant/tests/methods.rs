//! The methods find what the published code and formulas find, and help every block format.
//!
//! `methods_golden.safetensors`: a weight W `[16, 64]`, inputs X `[192, 64]`, and what the GPTQ code, AWQ's and SmoothQuant's
//! formulas make of them; its metadata says how it was computed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use margay_quant::{
    BlockFormat, FORMATS, Factor, Hessian, InputStats, Matrix, QuantError, Quantizer, ROUNDINGS, Range,
    Rounding, SCALINGS, Scales, Scaling, Uniform, format,
    methods::{
        self,
        awq::{Loss, search},
        smoothquant::SmoothQuant,
    },
    round_compensating,
};
use margay_tensor::DType;
use safetensors::SafeTensors;

const ROWS: usize = 16;
const COLUMNS: usize = 64;
/// Of float32 sums in another order than the golden's, relative to weights of about 1.
const CLOSE: f32 = 1e-4;

fn golden(name: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(include_bytes!("methods_golden.safetensors")).unwrap();
    let bytes = file.tensor(name).unwrap().data().to_vec();
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn close(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= CLOSE * b.abs().max(1.0), "{what} number {i}: {a} is not {b}");
    }
}

fn stats() -> InputStats {
    let x = golden("X");
    let visual = vec![false; x.len() / COLUMNS];
    let mut stats = InputStats::with_hessian(COLUMNS);
    stats.add(&x, &visual).unwrap();
    stats.keep(&x, &visual, None).unwrap();
    stats
}

#[test]
fn plain_rounding_equals_the_formula() {
    for (bits, name) in [(3, "rtn_g3_asym_g16"), (4, "rtn_g4_asym_g16")] {
        let mut rounded = golden("W");
        for row in rounded.chunks_mut(COLUMNS) {
            Uniform { bits, group: 16, range: Range::Asymmetric }.round_row(row, None);
        }
        close(&rounded, &golden(name), name);
    }
}

#[test]
fn gptq_equals_the_published_code() {
    let (w, hessian) = (golden("W"), stats().hessian.unwrap());
    let weight = Matrix::new(&w, ROWS, COLUMNS).unwrap();
    for (name, bits, group, range, scales) in [
        ("gptq_g4_asym_row", 4, 64, Range::Asymmetric, Scales::Reached),
        ("gptq_g4_asym_g16", 4, 16, Range::Asymmetric, Scales::Reached),
        ("gptq_g3_asym_g16", 3, 16, Range::Asymmetric, Scales::Reached),
        ("gptq_g4_sym_g16_act_static", 4, 16, Range::Symmetric, Scales::First),
    ] {
        let factor = Factor::new(hessian.clone(), scales == Scales::First).unwrap();
        let mut rounded = vec![0.0; w.len()];
        let quantizer = Uniform { bits, group, range };
        round_compensating(weight, &factor, &quantizer, scales, None, &mut [], Some(&mut rounded)).unwrap();
        close(&rounded, &golden(name), name);
    }
}

#[test]
fn awq_finds_the_losses_and_scales_of_its_formula() {
    let w = golden("W");
    let weight = Matrix::new(&w, ROWS, COLUMNS).unwrap();
    for bits in [3, 4] {
        let quantizer = Uniform { bits, group: 16, range: Range::MinMax };
        let found = search(&[weight], &stats(), &quantizer, Loss::Square, "awq").unwrap();
        let losses: Vec<f32> = found.losses.iter().map(|&loss| loss as f32).collect();
        close(&losses, &golden(&format!("awq_g{bits}_losses")), "losses");
        close(&found.scales, &golden(&format!("awq_g{bits}_scales")), "scales");
        let mut rounded: Vec<f32> =
            w.chunks(COLUMNS).flat_map(|row| row.iter().zip(&found.scales).map(|(w, s)| w * s)).collect();
        for row in rounded.chunks_mut(COLUMNS) {
            quantizer.round_row(row, None);
            row.iter_mut().zip(&found.scales).for_each(|(w, s)| *w /= s);
        }
        close(&rounded, &golden(&format!("awq_g{bits}_w")), "weights");
    }
}

#[test]
fn smoothquant_equals_its_formula() {
    let w = golden("W");
    let weight = Matrix::new(&w, ROWS, COLUMNS).unwrap();
    for (alpha, name) in [(0.5, "smooth_0.5"), (0.85, "smooth_0.85")] {
        let scales = SmoothQuant { alpha }.scales(&[weight], &stats(), DType::Q8_0).unwrap();
        close(&scales, &golden(name), name);
        // A weight split in two gives the same as the whole.
        let (top, bottom) = w.split_at(4 * COLUMNS);
        let halves = [Matrix::new(top, 4, COLUMNS).unwrap(), Matrix::new(bottom, 12, COLUMNS).unwrap()];
        assert_eq!(SmoothQuant { alpha }.scales(&halves, &stats(), DType::Q8_0).unwrap(), scales);
    }
}

/// A weight and inputs whose columns depend on each other and differ much in size, as a model's do; a third of the tokens
/// are visual.
fn model_like(rows: usize, columns: usize) -> (Vec<f32>, InputStats) {
    let mut state = 7u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let weight = (0..rows * columns).map(|_| (uniform() + uniform() + uniform()) * 0.05).collect();
    let tokens = 192;
    let factors: Vec<f32> =
        (0..columns).map(|j| if j % 41 == 3 { 8.0 } else { 0.3 + (j % 5) as f32 * 0.2 }).collect();
    let mut x = Vec::new();
    for _ in 0..tokens {
        let causes: [f32; 12] = std::array::from_fn(|_| uniform());
        x.extend(
            (0..columns).map(|j| factors[j] * (causes[j % 12] + causes[j / 3 % 12] * 0.7 + uniform() * 0.3)),
        );
    }
    let visual: Vec<bool> = (0..tokens).map(|t| t % 3 == 0).collect();
    let mut stats = InputStats::with_hessian(columns);
    stats.add(&x, &visual).unwrap();
    stats.keep(&x, &visual, None).unwrap();
    (weight, stats)
}

/// The mean square of what the outputs of the sample are off by.
fn output_error(weight: Matrix<'_>, packed: &[u8], format: &dyn BlockFormat, stats: &InputStats) -> f64 {
    let mut rounded = vec![0.0; weight.values.len()];
    format.decode(packed, &mut rounded);
    let mut total = 0.0;
    for (row, rounded) in weight.iter_rows().zip(rounded.chunks(weight.cols)) {
        for x in stats.sample.rows.chunks(weight.cols) {
            let off: f64 =
                x.iter().zip(row.iter().zip(rounded)).map(|(x, (w, r))| f64::from(x * (r - w))).sum();
            total += off * off;
        }
    }
    total / (weight.rows * stats.sample.len()) as f64
}

fn pack(method: &str, weight: Matrix<'_>, stats: &InputStats, dtype: DType) -> Vec<u8> {
    let mut out = vec![0xaa; dtype.row_bytes(weight.values.len()).unwrap()];
    let (method, mut stats) = (methods::rounding(method).unwrap(), stats.clone());
    method.prepare(&mut stats).unwrap();
    method.pack(weight, Some(&stats), dtype, &mut out).unwrap();
    out
}

#[test]
fn calibrated_roundings_serve_the_outputs_of_every_format_better() {
    let (w, stats) = model_like(6, 512);
    let weight = Matrix::new(&w, 6, 512).unwrap();
    for format in FORMATS.iter().filter(|format| format.codes() > 0) {
        let dtype = format.dtype();
        let error =
            |method: &str| output_error(weight, &pack(method, weight, &stats, dtype), *format, &stats);
        let rtn = error("rtn");
        // What each may keep of the error of rounding to nearest. Formats that know no importance gain nothing from it.
        assert!(error("imatrix") <= rtn * 1.02, "{dtype} imatrix {} {rtn}", error("imatrix"));
        // Each block is judged by itself, the outputs by all together.
        assert!(error("clip") <= rtn * 1.05, "{dtype} clip {} {rtn}", error("clip"));
        assert!(error("qvlm") <= rtn, "{dtype} qvlm {} {rtn}", error("qvlm"));
        assert!(error("gptq") <= rtn * 0.5, "{dtype} gptq {} {rtn}", error("gptq"));
    }
}

#[test]
fn scalings_serve_the_outputs_of_four_bits_better() {
    let (w, stats) = model_like(8, 256);
    let weight = Matrix::new(&w, 8, 256).unwrap();
    let scaled_error = |scaling: &dyn Scaling| {
        let scales = scaling.scales(&[weight], &stats, DType::Q4_0).unwrap();
        let scaled: Vec<f32> =
            w.chunks(256).flat_map(|row| row.iter().zip(&scales).map(|(w, s)| w * s)).collect();
        let packed = pack("rtn", Matrix::new(&scaled, 8, 256).unwrap(), &stats, DType::Q4_0);
        let mut rounded = vec![0.0; w.len()];
        format(DType::Q4_0).unwrap().decode(&packed, &mut rounded);
        rounded.chunks_mut(256).for_each(|row| row.iter_mut().zip(&scales).for_each(|(w, s)| *w /= s));
        let back: Vec<u8> = rounded.iter().flat_map(|w| w.to_le_bytes()).collect();
        output_error(weight, &back, format(DType::F32).unwrap(), &stats)
    };
    let plain =
        output_error(weight, &pack("rtn", weight, &stats, DType::Q4_0), format(DType::Q4_0).unwrap(), &stats);
    for scaling in [methods::scaling("awq").unwrap(), methods::scaling("mbq").unwrap()] {
        assert!(scaled_error(scaling) < plain, "{}: {} {plain}", scaling.id(), scaled_error(scaling));
    }
}

#[test]
fn mbq_listens_to_the_tokens_that_matter() {
    // Text uses the first half of the columns, pictures the second: whoever counts gets the precision.
    let columns = 64;
    let (w, _) = model_like(4, columns);
    let weight = Matrix::new(&w, 4, columns).unwrap();
    let mut stats = InputStats::new(columns);
    let visual: Vec<bool> = (0..128).map(|t| t % 2 == 0).collect();
    let x: Vec<f32> = (0..128 * columns)
        .map(|i| {
            let (t, j) = (i / columns, i % columns);
            let mine = visual[t] == (j >= columns / 2);
            if mine { ((i * i) as f32 * 0.37).sin() * if j % 8 == 0 { 9.0 } else { 1.0 } } else { 0.0 }
        })
        .collect();
    stats.add(&x, &visual).unwrap();
    stats.keep(&x, &visual, None).unwrap();
    let quantizer = Uniform { bits: 3, group: 16, range: Range::MinMax };
    let losses = |visual_weight: f32| {
        let stats = InputStats { visual_weight, ..stats.clone() };
        search(&[weight], &stats, &quantizer, Loss::Balanced, "mbq").unwrap().losses
    };
    let (text_only, both, half) = (losses(0.0), losses(1.0), losses(0.5));
    for step in 0..text_only.len() {
        assert!(text_only[step] < both[step]);
        let expected = (text_only[step] + both[step]) / 2.0;
        assert!((half[step] - expected).abs() <= 1e-9 * expected, "the loss is linear in the weight");
    }
}

#[test]
fn vlmq_takes_weighted_tokens_and_differs_from_gptq() {
    let (w, mut stats) = model_like(4, 64);
    let weight = Matrix::new(&w, 4, 64).unwrap();
    for (importance, visual) in stats.sample.importance.iter_mut().zip(&stats.sample.visual) {
        *importance = if *visual { 0.1 } else { 1.45 };
    }
    let vlmq = pack("vlmq", weight, &stats, DType::Q4_0);
    assert_ne!(vlmq, pack("gptq", weight, &stats, DType::Q4_0));
    // The same Hessian, summed by the calibration, gives the same blocks.
    let mut hessian = Hessian::new(64);
    hessian.add(&stats.sample.rows, Some(&stats.sample.importance)).unwrap();
    stats.hessian = Some(hessian);
    assert_eq!(vlmq, pack("vlmq", weight, &stats, DType::Q4_0));
    let sample = stats.sample.clone();
    let weighted = |format: &dyn BlockFormat, packed: &[u8]| {
        let text: Vec<f32> = sample
            .rows
            .chunks(64)
            .zip(&sample.visual)
            .filter(|(_, v)| !**v)
            .flat_map(|(x, _)| x.to_vec())
            .collect();
        let mut stats = InputStats::new(64);
        stats.keep(&text, &vec![false; text.len() / 64], None).unwrap();
        output_error(weight, packed, format, &stats)
    };
    let q4_0 = format(DType::Q4_0).unwrap();
    let plain = {
        stats.hessian = None;
        pack("rtn", weight, &stats, DType::Q4_0)
    };
    assert!(weighted(q4_0, &vlmq) < weighted(q4_0, &plain));
}

#[test]
fn what_was_not_gathered_is_named() {
    let w = vec![0.5; 4 * 256];
    let weight = Matrix::new(&w, 4, 256).unwrap();
    let nothing = InputStats::new(256);
    let mut out = vec![0; DType::Q4_K.row_bytes(w.len()).unwrap()];
    for method in ROUNDINGS {
        let needs = method.needs();
        let result = method.pack(weight, None, DType::Q4_K, &mut out);
        let with_nothing = method.pack(weight, Some(&nothing), DType::Q4_K, &mut out);
        if needs == methods::Needs::default() {
            assert!(result.is_ok() && with_nothing.is_ok());
        } else {
            assert!(
                matches!(result, Err(QuantError::Missing { why, .. }) if why == method.id()),
                "{}",
                method.id()
            );
            assert!(matches!(with_nothing, Err(QuantError::Missing { .. })), "{}", method.id());
        }
    }
    for method in SCALINGS {
        let result = method.scales(&[weight], &nothing, DType::Q4_K);
        assert!(
            matches!(result, Err(QuantError::Missing { why, .. }) if why == method.id()),
            "{}",
            method.id()
        );
        assert!(methods::rounding(method.rounding()).is_some(), "{}", method.id());
    }
}

#[test]
fn hostile_weights_and_sizes_are_refused_by_every_method() {
    let (w, stats) = model_like(2, 256);
    let mut bad = w.clone();
    bad[300] = f32::NAN;
    let mut out = vec![0; DType::Q4_K.row_bytes(w.len()).unwrap()];
    for method in ROUNDINGS {
        let refused = method.pack(Matrix::new(&bad, 2, 256).unwrap(), Some(&stats), DType::Q4_K, &mut out);
        assert!(matches!(refused, Err(QuantError::NotFinite { row: 1, column: 44, .. })), "{}", method.id());
        let weight = Matrix::new(&w, 2, 256).unwrap();
        let short = method.pack(weight, Some(&stats), DType::Q4_K, &mut out[1..]);
        assert!(matches!(short, Err(QuantError::Length { .. })), "{}", method.id());
        let unknown = method.pack(weight, Some(&stats), DType::IQ1_S, &mut out);
        assert!(matches!(unknown, Err(QuantError::NoFormat { .. })), "{}", method.id());
        // 512 numbers are whole blocks, its rows of 128 are not.
        let part = method.pack(Matrix::new(&w, 4, 128).unwrap(), Some(&stats), DType::Q4_K, &mut out);
        assert!(part.is_err(), "{}", method.id());
    }
    for method in SCALINGS {
        let refused = method.scales(&[Matrix::new(&bad, 2, 256).unwrap()], &stats, DType::Q4_K);
        assert!(matches!(refused, Err(QuantError::NotFinite { .. })), "{}", method.id());
        let narrow = method.scales(&[Matrix::new(&w, 4, 128).unwrap()], &stats, DType::Q4_0);
        assert!(matches!(narrow, Err(QuantError::Size { .. })), "{}", method.id());
    }
}

#[test]
fn inputs_that_were_always_zero_and_weights_of_zero_do_no_harm() {
    let columns = 256;
    let mut stats = InputStats::with_hessian(columns);
    let x: Vec<f32> =
        (0..40 * columns).map(|i| if i % columns < 100 { 0.0 } else { (i as f32).sin() }).collect();
    stats.add(&x, &[true; 40]).unwrap();
    stats.keep(&x, &[true; 40], None).unwrap();
    for weight in [vec![0.0; 2 * columns], model_like(2, columns).0] {
        let weight = Matrix::new(&weight, 2, columns).unwrap();
        for method in ROUNDINGS {
            for format in FORMATS {
                let packed = pack(method.id(), weight, &stats, format.dtype());
                let error = output_error(weight, &packed, *format, &stats);
                assert!(error.is_finite(), "{} {}", method.id(), format.dtype());
            }
        }
    }
}

#[test]
fn registries_equal_the_folder_and_names_are_unique() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/methods");
    let stems = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    let mut files: Vec<String> = stems.filter(|stem| stem != "mod").collect();
    files.sort();
    let roundings = ROUNDINGS.iter().map(|method: &&dyn Rounding| method.id());
    let mut registered: Vec<&str> = roundings.chain(SCALINGS.iter().map(|method| method.id())).collect();
    registered.sort_unstable();
    assert_eq!(registered, files);
}
