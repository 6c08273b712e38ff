//! Every instruction set gives the bits of the portable kernels, and those are the products of the quantized numbers.

use crate::{
    Isa,
    kernels::Kernels,
    lines::Arena,
    ops::{
        Engine, Scratch,
        channel::{self, ChannelRows},
        linear::{self, Epilogue},
        rows::Source,
        view::{Out, View},
    },
    pack::ChannelMatrix,
    threads::Pool,
};
use margay_graph::Cancel;
use margay_tensor::{DType, Shape, Storage, Tensor};
use std::sync::{Arc, atomic::AtomicBool};

fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let mut state = seed as u64 + 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn multiply(isa: Isa, threads: usize, weight: &[f32], n: usize, x: &[f32]) -> Vec<f32> {
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
    let k = weight.len() / n;
    let tensor = Tensor::new(DType::F32, Shape::from([n, k]), Storage::from_f32(weight)).unwrap();
    let matrix = ChannelMatrix::pack("w", &tensor, &pool, &Arena::default()).unwrap();
    let m = x.len() / k;
    let mut rows = ChannelRows::new(&engine.kernels, m, k);
    let mut y = vec![0.0; m * n];
    // SAFETY: both matrices are as large as that and outlive their views.
    let (x, out) = unsafe { (View::new(x.as_ptr(), m, k), Out::new(y.as_mut_ptr(), m, n)) };
    rows.fill(&engine, Source { x, norm: None }).unwrap();
    let epilogue = Epilogue { bias: None, activation: None, residual: None };
    channel::multiply(&engine, &matrix, &rows, epilogue, out).unwrap();
    y
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_portable_kernels() {
    // 1152 and 4304 are SigLIP's widths; 588 a patch's; 2100 ends within a chunk of k.
    for (n, k) in [(1, 1), (16, 16), (17, 27), (40, 588), (33, 1152), (16, 4304), (130, 2100)] {
        let weight = numbers(n, n * k);
        for m in [0, 1, 2, 5, 6, 13, 27] {
            let x = numbers(m + k, m * k);
            let expected = bits(&multiply(Isa::Scalar, 1, &weight, n, &x));
            for isa in Isa::supported().skip(1) {
                for threads in [1, 2] {
                    let got = bits(&multiply(isa, threads, &weight, n, &x));
                    assert_eq!(got, expected, "{isa} {n} x {k}, {m} rows, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn a_row_alone_gives_the_bits_it_gives_among_others() {
    let (n, k, m) = (70, 600, 270);
    let (weight, x) = (numbers(3, n * k), numbers(4, m * k));
    let together = multiply(Isa::detect(), 2, &weight, n, &x);
    for row in [0, 7, 255, 256, 269] {
        let alone = multiply(Isa::detect(), 1, &weight, n, &x[row * k..][..k]);
        assert_eq!(bits(&alone), bits(&together[row * n..][..n]), "row {row}");
    }
}

#[test]
fn products_are_exact_but_for_rounding_both_sides_to_8_bits() {
    let (n, k, m) = (19, 1152, 4);
    let (weight, mut x) = (numbers(5, n * k), numbers(6, m * k));
    // A large activation costs its row precision, not the others.
    x[k + 3] = 50.0;
    let y = multiply(Isa::detect(), 1, &weight, n, &x);
    for (i, y) in y.iter().enumerate() {
        let (x, w) = (&x[i / n * k..][..k], &weight[i % n * k..][..k]);
        let max = |v: &[f32]| f64::from(v.iter().fold(0f32, |max, v| max.max(v.abs())));
        // Steps of weights are wide enough for pairs of one sign as well.
        let pair = |p: &[f32]| if p[0] * p[1] > 0.0 { f64::from((p[0] + p[1]).abs()) } else { 0.0 };
        let pairs = w.chunks(2).map(pair).fold(0.0, f64::max);
        let (step_x, step_w) = (max(x) / 127.0, max(w).max(pairs) / 127.0);
        let (mut exact, mut bound) = (0.0, 0.0);
        for (x, w) in x.iter().zip(w) {
            let (x, w) = (f64::from(*x), f64::from(*w));
            exact += x * w;
            // (x + e)(w + d) - x w, with |e| and |d| at most half a step.
            bound += 0.5 * (step_x * w.abs() + step_w * x.abs()) + 0.25 * step_x * step_w;
        }
        assert!((f64::from(*y) - exact).abs() <= bound * (1.0 + 1e-5), "{i}: {y} is not {exact} +- {bound}");
    }
}

#[test]
fn activations_that_are_no_numbers_reach_the_result() {
    let weight = numbers(7, 16 * 64);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = numbers(8, 2 * 64);
        x[64 + 40] = bad;
        let y = multiply(Isa::detect(), 1, &weight, 16, &x);
        assert!(y[..16].iter().all(|y| y.is_finite()) && y[16..].iter().all(|y| !y.is_finite()));
    }
}

/// What saturates where nothing keeps pairs of weights small.
#[test]
fn the_largest_activations_and_pairs_of_weights_give_exact_sums() {
    let (n, k) = (17, 32);
    for signs in [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]] {
        let weight: Vec<f32> = (0..n * k).map(|i| signs[i % 2] * [1.0, 0.99, 0.5][i / 2 % 3]).collect();
        for x in [1.0, -1.0] {
            let x = vec![x; 5 * k];
            let expected = multiply(Isa::Scalar, 1, &weight, n, &x);
            for isa in Isa::supported() {
                assert_eq!(multiply(isa, 1, &weight, n, &x), expected, "{isa}, signs {signs:?}");
            }
            for (i, y) in expected.iter().enumerate() {
                let exact: f32 = weight[i % n * k..][..k].iter().map(|w| w * x[0]).sum();
                assert!((y - exact).abs() <= 32.0 * 0.5 * 2.0 / 127.0 + 1e-4, "{y} is not {exact}");
            }
        }
    }
}
