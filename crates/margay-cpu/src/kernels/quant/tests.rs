//! Every instruction set gives the bits of the portable kernels, whatever the rows and threads.

use crate::{
    Isa,
    kernels::Kernels,
    lines::Arena,
    ops::{
        Engine, Scratch,
        linear::{self, Epilogue, Layer, QuantRows, QuantSize},
        rows::Source,
        view::{Out, View},
    },
    pack::QuantMatrix,
    threads::Pool,
};
use margay_graph::Cancel;
use margay_tensor::{DType, Shape, Storage, Tensor};
use std::sync::{Arc, atomic::AtomicBool};

const FORMATS: [DType; 11] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::IQ4_NL,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

fn random(seed: u64) -> impl FnMut() -> u32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    }
}

/// Random codes under ordinary scales: every code occurs, -128 included.
fn weight(dtype: DType, n: usize, k: usize) -> Tensor {
    let mut next = random((n * 8192 + k) as u64);
    let storage = Storage::build(n * dtype.row_bytes(k).unwrap(), |out| {
        for block in out.chunks_exact_mut(dtype.block_bytes()) {
            block.fill_with(|| next() as u8);
            let halves: &[usize] = match dtype {
                DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
                DType::Q2_K => &[80, 82],
                DType::Q3_K => &[108],
                DType::Q6_K => &[208],
                _ => &[0],
            };
            for at in halves {
                let scale = half::f16::from_f32(0.001 + (next() % 1000) as f32 * 1e-5);
                block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
    });
    Tensor::new(dtype, Shape::from([n, k]), storage).unwrap()
}

fn rows(m: usize, k: usize) -> Vec<f32> {
    let mut next = random((m * 31 + k) as u64);
    (0..m * k).map(|_| (next() % 20_001) as f32 * 1e-4 - 1.0).collect()
}

fn multiply(isa: Isa, threads: usize, tensor: &Tensor, x: &[f32]) -> Vec<f32> {
    let pool = Arc::new(Pool::new(threads, None));
    let scratch = Scratch::new(threads, linear::scratch_floats());
    let (kernels, cancel) = (Kernels::of(isa).unwrap(), Cancel::new());
    let engine = Engine {
        pool: pool.clone(),
        kernels,
        scratch,
        team: threads,
        cancel,
        skipped: AtomicBool::new(false),
    };
    let matrix = QuantMatrix::pack(tensor, &pool, &Arena::default()).unwrap().unwrap();
    let m = x.len() / matrix.k;
    let mut quantized = QuantRows::new(QuantSize::new(&engine.kernels, [matrix.kind.codes]).max(m, matrix.k));
    let mut y = vec![0.0; m * matrix.n];
    // SAFETY: both matrices are as large as that and outlive their views.
    let (x, out) = unsafe { (View::new(x.as_ptr(), m, matrix.k), Out::new(y.as_mut_ptr(), m, matrix.n)) };
    quantized.fill(&engine, Source { x, norm: None }).unwrap();
    let epilogue = Epilogue { bias: None, activation: None, residual: None };
    linear::quantized(&engine, &[Layer { matrix: &matrix, epilogue, out }], &quantized).unwrap();
    y
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_portable_kernels() {
    for dtype in FORMATS {
        let block = dtype.block_elements();
        for (n, k) in
            [(1, block), (7, 3 * block), (16, 256), (17, 768), (33, 512 + block), (130, 2048 + block)]
        {
            let tensor = weight(dtype, n, k);
            for m in 0..10 {
                let x = rows(m, k);
                let expected = bits(&multiply(Isa::Scalar, 1, &tensor, &x));
                for isa in Isa::supported().skip(1) {
                    let got = bits(&multiply(isa, 1, &tensor, &x));
                    assert_eq!(got, expected, "{isa} {dtype} {n} x {k}, {m} rows");
                }
            }
        }
    }
}

#[test]
fn a_row_alone_gives_the_bits_it_gives_among_others_and_threads_change_nothing() {
    for dtype in FORMATS {
        let (n, k, m) = (150, 768, 270);
        let tensor = weight(dtype, n, k);
        let x = rows(m, k);
        let isa = Isa::detect();
        let together = multiply(isa, 1, &tensor, &x);
        for threads in [2, 3] {
            assert_eq!(
                bits(&multiply(isa, threads, &tensor, &x)),
                bits(&together),
                "{dtype}, {threads} threads"
            );
        }
        for row in [0, 5, 255, 256, 269] {
            let alone = multiply(isa, 2, &tensor, &x[row * k..][..k]);
            assert_eq!(bits(&alone), bits(&together[row * n..][..n]), "{dtype}, row {row}");
        }
    }
}

/// What rounding activations to 8 bits and adding up in float32 may cost, relative to the size of the terms: half a
/// step of 1/127 of the largest activation (here every activation may be the largest of its group), plus sums.
const INT8_BOUND: f64 = 0.5 / 127.0 + 1e-5;

#[test]
fn products_are_those_of_the_decoded_weights_within_the_rounding_of_activations() {
    for dtype in FORMATS {
        let (n, k) = (19, 512);
        let tensor = weight(dtype, n, k);
        let x = rows(3, k);
        let decoded = margay_quant::decode_tensor(&tensor).unwrap();
        let y = multiply(Isa::detect(), 1, &tensor, &x);
        for (i, y) in y.iter().enumerate() {
            let (row, w) = (&x[i / n * k..][..k], &decoded[i % n * k..][..k]);
            let exact: f64 = row.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            // No activation here exceeds 1, so each is off by at most half a step of 1/127.
            let size: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
            assert!((f64::from(*y) - exact).abs() <= INT8_BOUND * size, "{dtype} {i}: {y} is not {exact}");
        }
    }
}

#[test]
fn activations_that_are_no_numbers_reach_the_result() {
    let tensor = weight(DType::Q4_0, 16, 64);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = rows(2, 64);
        x[64 + 40] = bad;
        let y = multiply(Isa::detect(), 1, &tensor, &x);
        assert!(y[..16].iter().all(|y| y.is_finite()) && y[16..].iter().all(|y| !y.is_finite()));
    }
}

/// Kernels that scale a sum by parts would make a number, or another infinity, of an infinite scale.
#[test]
fn an_infinite_scale_makes_its_output_no_number_everywhere() {
    let tensor = weight(DType::Q8_0, 20, 64);
    let mut bytes = tensor.bytes().to_vec();
    bytes[..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    let tensor = Tensor::new(DType::Q8_0, Shape::from([20, 64]), Storage::from_bytes(&bytes)).unwrap();
    for isa in Isa::supported() {
        for m in [1, 5, 9] {
            for y in multiply(isa, 1, &tensor, &rows(m, 64)).chunks_exact(20) {
                assert!(y[0].is_nan() && y[1..].iter().all(|y| y.is_finite()), "{isa}, {m} rows: {y:?}");
            }
        }
    }
}

/// A value read by codes that ask for different copies of its rows, in one call that shares out the tasks of both layers.
#[test]
fn layers_of_different_codes_share_rows() {
    let (n, k) = (35, 1024 + 256);
    let tensors = [DType::Q4_K, DType::Q8_0, DType::Q6_K].map(|dtype| weight(dtype, n, k));
    for (isa, m) in Isa::supported().flat_map(|isa| [1, 2, 7, 261].map(|m| (isa, m))) {
        let x = rows(m, k);
        let pool = Arc::new(Pool::new(2, None));
        let engine = Engine {
            pool: pool.clone(),
            kernels: Kernels::of(isa).unwrap(),
            scratch: Scratch::new(2, linear::scratch_floats()),
            team: 2,
            cancel: Cancel::new(),
            skipped: AtomicBool::new(false),
        };
        let matrices =
            tensors.each_ref().map(|t| QuantMatrix::pack(t, &pool, &Arena::default()).unwrap().unwrap());
        let codes = matrices.iter().map(|matrix| matrix.kind.codes);
        let mut quantized = QuantRows::new(QuantSize::new(&engine.kernels, codes).max(m, k));
        // SAFETY: the matrix is as large as that and outlives its view.
        let view = unsafe { View::new(x.as_ptr(), m, k) };
        quantized.fill(&engine, Source { x: view, norm: None }).unwrap();
        let mut results = [(); 3].map(|()| vec![0.0; m * n]);
        let mut layers = vec![];
        for (matrix, y) in matrices.iter().zip(&mut results) {
            // SAFETY: as above.
            let out = unsafe { Out::new(y.as_mut_ptr(), m, n) };
            let epilogue = Epilogue { bias: None, activation: None, residual: None };
            layers.push(Layer { matrix, epilogue, out });
        }
        linear::quantized(&engine, &layers, &quantized).unwrap();
        drop(layers);
        for (tensor, y) in tensors.iter().zip(&results) {
            assert_eq!(
                bits(y),
                bits(&multiply(Isa::Scalar, 1, tensor, &x)),
                "{isa} {} {m} rows",
                tensor.dtype()
            );
        }
    }
}
