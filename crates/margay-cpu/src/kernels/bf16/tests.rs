//! Products are those of the rounded numbers, within the rounding of the sums.

use crate::{
    Isa,
    kernels::Kernels,
    lines::Arena,
    ops::{
        Engine, Scratch,
        bf16::{self, Bf16Rows},
        linear::{self, Epilogue},
        rows::Source,
        view::{Out, View},
    },
    pack::Bf16Matrix,
    threads::Pool,
};
use margay_graph::Cancel;
use margay_tensor::{DType, Shape, Tensor};
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

/// Instruction sets with kernels for bfloat16; where there are none `tests/fusion.rs` says so.
fn isas() -> Vec<Isa> {
    Isa::supported().filter(|isa| super::table(*isa).is_some()).collect()
}

fn multiply(isa: Isa, threads: usize, weight: &Tensor, x: &[f32]) -> Vec<f32> {
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
    let (n, k) = (weight.shape().rows().unwrap(), weight.shape().row());
    let matrix = Bf16Matrix::pack("w", weight, &pool, &Arena::default()).unwrap();
    let m = x.len() / k;
    let mut rows = Bf16Rows::new(Bf16Rows::elements(m, k));
    let mut y = vec![0.0; m * n];
    // SAFETY: both matrices are as large as that and outlive their views.
    let (x, out) = unsafe { (View::new(x.as_ptr(), m, k), Out::new(y.as_mut_ptr(), m, n)) };
    rows.fill(&engine, Source { x, norm: None }).unwrap();
    let epilogue = Epilogue { bias: None, activation: None, residual: None };
    bf16::multiply(&engine, &matrix, &rows, epilogue, out).unwrap();
    y
}

fn tensor(dtype: DType, values: &[f32], n: usize) -> Tensor {
    margay_quant::encode_tensor(values, Shape::from([n, values.len() / n]), dtype).unwrap()
}

#[test]
fn products_are_exact_but_for_the_rounding_of_operands_and_sums() {
    for (n, k) in [(1, 1), (16, 16), (17, 27), (40, 588), (33, 1152), (16, 4304)] {
        let weight = numbers(n, n * k);
        for isa in isas() {
            for (m, dtype) in [(1, DType::F32), (2, DType::BF16), (13, DType::F16), (29, DType::BF16)] {
                let x = numbers(m + k, m * k);
                let y = multiply(isa, 2, &tensor(dtype, &weight, n), &x);
                for (i, y) in y.iter().enumerate() {
                    let rounded = |x: f32| f64::from(half::bf16::from_f32(x).to_f32());
                    let of_type = |w: f32| match dtype {
                        DType::F16 => half::f16::from_f32(w).to_f32(),
                        _ => w,
                    };
                    let (x, w) = (&x[i / n * k..][..k], &weight[i % n * k..][..k]);
                    let products = x.iter().zip(w).map(|(x, w)| rounded(*x) * rounded(of_type(*w)));
                    let (sum, magnitudes) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                    // A pair is a product, of 16 bits, and two additions, each off by an ulp at most (rounded to odd;
                    // half of that to the nearest).
                    let bound = magnitudes * (k + 2) as f64 * f64::from(f32::EPSILON) + 1e-30;
                    assert!(
                        (f64::from(*y) - sum).abs() <= bound,
                        "{isa} {n} x {k}, {m} rows: {y}, {sum} +- {bound}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_alone_gives_the_bits_it_gives_among_others() {
    let (n, k, m) = (70, 600, 270);
    let (weight, x) = (tensor(DType::BF16, &numbers(3, n * k), n), numbers(4, m * k));
    for isa in isas() {
        let together = multiply(isa, 2, &weight, &x);
        for row in [0, 7, 255, 256, 269] {
            let alone = multiply(isa, 1, &weight, &x[row * k..][..k]);
            assert_eq!(alone, together[row * n..][..n], "row {row}");
        }
    }
}

#[test]
fn activations_that_are_no_numbers_reach_the_result() {
    let weight = tensor(DType::BF16, &numbers(7, 16 * 64), 16);
    for isa in isas() {
        for bad in [f32::NAN, f32::INFINITY, f32::from_bits(0x7f80_0001)] {
            let mut x = numbers(8, 2 * 64);
            x[64 + 40] = bad;
            let y = multiply(isa, 1, &weight, &x);
            assert!(y[..16].iter().all(|y| y.is_finite()) && y[16..].iter().all(|y| !y.is_finite()), "{bad}");
        }
    }
}

#[test]
fn rows_are_rounded_to_the_nearest_ties_to_even() {
    let mut x = numbers(9, 1000);
    x.extend([0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::INFINITY]);
    for isa in Isa::supported() {
        let mut rounded = vec![0; x.len()];
        (Kernels::of(isa).unwrap().rows.round_to_bf16)(&x, &mut rounded);
        for (x, got) in x.iter().zip(rounded) {
            assert_eq!(got, half::bf16::from_f32(*x).to_bits(), "{isa}, {x}");
        }
    }
}

#[test]
fn rows_that_are_rounded_together_lie_side_by_side() {
    for isa in isas() {
        let kernels = super::table(isa).unwrap();
        let (together, k, apart) = (kernels.side_by_side, 48, 53);
        let mut x = numbers(11, together * apart);
        let special =
            [0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::NEG_INFINITY];
        x[5..][..special.len()].copy_from_slice(&special);
        x[40] = f32::from_bits(0x7f80_0001);
        let mut rounded = vec![0; together * k + 1];
        (kernels.round)(&x, apart, k, &mut rounded);
        for (at, got) in rounded[..together * k].iter().enumerate() {
            let (pair, row) = (at / 2 / together, at / 2 % together);
            let x = x[row * apart + 2 * pair + at % 2];
            let got = half::bf16::from_bits(*got);
            assert!(
                got.to_bits() == half::bf16::from_f32(x).to_bits() || x.is_nan() && got.is_nan(),
                "{isa}, {x}"
            );
        }
        assert_eq!(rounded[together * k], 0);
    }
}
