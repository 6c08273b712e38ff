//! Every instruction set against plain loops.

use super::*;

/// Numbers of all sizes, some of them zero.
fn numbers(len: usize) -> Vec<f32> {
    let mut seed = 3u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if seed >> 29 == 0 { 0.0 } else { (seed >> 8) as f32 / (1 << 23) as f32 - 1.0 }
    };
    (0..len).map(|_| next()).collect()
}

/// `numbers` as the cache stores them, and what they then are.
fn stored(numbers: &[f32], kind: Stored) -> (Vec<u8>, Vec<f32>) {
    let of = |x: &f32| match kind {
        Stored::F32 => (x.to_le_bytes().to_vec(), *x),
        Stored::F16 => {
            let half = half::f16::from_f32(*x);
            (half.to_le_bytes().to_vec(), half.to_f32())
        }
        Stored::I8 => {
            let code = (x * 127.0).round() as i8;
            (code.to_le_bytes().to_vec(), f32::from(code))
        }
    };
    let (bytes, values): (Vec<_>, Vec<_>) = numbers.iter().map(of).unzip();
    (bytes.concat(), values)
}

#[test]
fn few_rows_equal_plain_loops_bit_for_bit_on_every_instruction_set() {
    for isa in Isa::supported() {
        for kind in [Stored::F32, Stored::F16, Stored::I8] {
            for rows in 1..=FEW_ROWS {
                for (panels, k) in [(1, 1), (2, 3), (3, 64), (4, 80), (5, 33), (8, 17), (11, 0)] {
                    for first in [false, true] {
                        let (lda, b_panel, ldc) = (k + 3, (k + 2) * NR, panels * NR + 5);
                        let a = numbers(rows * lda);
                        let (bytes, b) = stored(&numbers(panels * b_panel), kind);
                        let mut c = numbers(rows * ldc);
                        let mut expected = c.clone();
                        for r in 0..rows {
                            for column in 0..panels * NR {
                                let (panel, column) = (column / NR, column % NR);
                                let sum = &mut expected[r * ldc + panel * NR + column];
                                *sum = if first { 0.0 } else { *sum };
                                for k in 0..k {
                                    *sum = a[r * lda + k].mul_add(b[panel * b_panel + k * NR + column], *sum);
                                }
                            }
                        }
                        let product = FewRows {
                            rows,
                            panels,
                            k,
                            a: a.as_ptr(),
                            lda,
                            b: bytes.as_ptr(),
                            b_panel,
                            c: c.as_mut_ptr(),
                            ldc,
                            first,
                            ahead: std::ptr::null(),
                        };
                        // SAFETY: all of it is as large as the product says.
                        unsafe { (table(isa).few)(&product, kind) };
                        assert_eq!(c, expected, "{isa} {kind:?} {rows} rows, {panels} panels, {k}, {first}");
                    }
                }
            }
        }
    }
}

/// Relative error of weights and sums: a difference of scores, here up to 50, is rounded by 2^-24 of itself, which moves
/// its power by ln 2 times as much, 2.1e-6; 3e-7 of `exp2`; and some additions.
const WEIGHT: f64 = 3e-6;

#[test]
fn a_block_of_scores_becomes_weights_on_every_instruction_set() {
    const ROWS: usize = 5;
    for isa in Isa::supported() {
        let mut scores: Vec<f32> = numbers(ROWS * KEYS).iter().map(|x| 20.0 * x).collect();
        // A row that sees nothing, one that sees a part, one whose maximum was greater, and one with a NaN.
        scores[..KEYS].fill(f32::NEG_INFINITY);
        scores[KEYS + 10..2 * KEYS].fill(f32::NEG_INFINITY);
        scores[4 * KEYS + 7] = f32::NAN;
        let before = scores.clone();
        let (mut max, mut sum, mut keep) =
            ([NO_SCORE, NO_SCORE, 30.0, 3.0, 0.0], [0.0, 0.0, 2.0, 0.5, 1.0], [9.0; ROWS]);
        let old = (max, sum);
        let [mut max_portable, mut sum_portable, mut keep_portable] = [max, sum, keep];
        let mut portable = scores.clone();
        (table(isa).softmax.block)(&mut scores, &mut max, &mut sum, &mut keep);
        (table(Isa::Scalar).softmax.block)(
            &mut portable,
            &mut max_portable,
            &mut sum_portable,
            &mut keep_portable,
        );
        let portable = [&portable[..], &max_portable, &sum_portable, &keep_portable].concat();
        for (i, (x, portable)) in [&scores[..], &max, &sum, &keep].concat().iter().zip(portable).enumerate() {
            assert!(x.to_bits() == portable.to_bits() || x.is_nan() && portable.is_nan(), "{isa}, {i}");
        }
        assert_eq!((max[0], sum[0], keep[0], max[2], keep[2]), (NO_SCORE, 0.0, 1.0, 30.0, 1.0), "{isa}");
        assert!(scores[..KEYS].iter().chain(&scores[KEYS + 10..2 * KEYS]).all(|w| *w == 0.0), "{isa}");
        assert!(sum[4].is_nan(), "{isa}: a NaN is not lost");
        for r in 1..4 {
            let (scores, before) = (&scores[r * KEYS..][..KEYS], &before[r * KEYS..][..KEYS]);
            let largest = before.iter().copied().fold(old.0[r], f32::max);
            assert_eq!(max[r], largest, "{isa} row {r}");
            let mut expected = f64::from(old.1[r]) * (f64::from(old.0[r]) - f64::from(largest)).exp2();
            for (weight, score) in scores.iter().zip(before) {
                let exact = (f64::from(*score) - f64::from(largest)).exp2();
                assert!(
                    (f64::from(*weight) - exact).abs() <= WEIGHT * exact,
                    "{isa} row {r}: {weight}, not {exact}"
                );
                expected += exact;
            }
            assert!((f64::from(sum[r]) - expected).abs() <= WEIGHT * expected, "{isa} row {r}");
        }
    }
}

/// Relative error of weights in 8 bits, and of scores of some 20: see `int8::exp2`.
const ROUGH: f64 = 1.3e-4;

#[test]
fn kernels_of_8_bits_give_the_portable_bits_on_every_instruction_set() {
    use int8::{BlockScales, Row};
    let portable = table(Isa::Scalar).int8;
    let scales = |factor: f32| numbers(KEYS).iter().map(|x| x.abs() * factor).collect::<Vec<f32>>();
    for isa in Isa::supported().skip(1) {
        let kernels = table(isa).int8;
        for d in [1, 5, 31, 32, 40, 72, 80, 128, 256] {
            let (x, shift) = (numbers(2 * d), numbers(d));
            for factor in [1.0, 1e-30, 1e-37, 0.0, f32::NAN] {
                let x: Vec<f32> = x.iter().map(|x| x * factor).collect();
                let run = |kernels: &int8::Int8Kernels| {
                    let mut codes = vec![99; d];
                    let (scale, total) = (kernels.key)(&x[..d], &shift, &mut codes);
                    (scale.to_bits(), total, codes)
                };
                let (bits, total, codes) = run(kernels);
                if factor.is_nan() {
                    assert!(f32::from_bits(bits).is_nan());
                    continue;
                }
                assert_eq!(
                    (bits, total, &codes),
                    (run(portable).0, run(portable).1, &run(portable).2),
                    "{isa} {d}"
                );
                assert_eq!(total, codes.iter().map(|code| i32::from(*code)).sum::<i32>());
                for pair in codes.chunks_exact(2) {
                    let sum = i32::from(pair[0]) + i32::from(pair[1]);
                    assert!(sum.abs() <= 128, "{isa}: {pair:?} overflow 16 bits");
                }
                for ((code, x), shift) in codes.iter().zip(&x).zip(&shift) {
                    let (exact, step) = (f64::from(x - shift), f64::from(f32::from_bits(bits)));
                    assert!(
                        (f64::from(*code) * step - exact).abs() <= 0.5001 * step,
                        "{isa}: {code} for {exact}"
                    );
                }
            }
            let n = d.next_multiple_of(16);
            let codes: Vec<i8> = (0..4 * n).map(|i| (i * 37 % 255) as u8 as i8).collect();
            let mut to = vec![7; n / 16 * 100];
            (kernels.side_by_side)(&codes, &mut to, 100);
            for (i, byte) in to.iter().enumerate() {
                let (panel, at) = (i / 100, i % 100);
                let expected = if at < 64 { codes[at % 4 * n + panel * 16 + at / 4] as u8 } else { 7 };
                assert_eq!(*byte, expected, "{isa} {n}");
            }
            let sums: Vec<i32> = (0..n).map(|i| (i as i32 - 7) * 12_345).collect();
            let run = |kernels: &int8::Int8Kernels| {
                let mut y = numbers(n);
                (kernels.add_sums)(&mut y, &sums, 321, 0.75, 1.3e-5);
                y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(run(kernels), run(portable), "{isa} {n}");
        }
        let mut of =
            BlockScales { keys: [0.0; KEYS], totals: [0; KEYS], values: [0.0; KEYS], largest: [0.0; KEYS] };
        of.keys.copy_from_slice(&scales(1e-3));
        of.values.copy_from_slice(&scales(0.02));
        let mut largest = 0f32;
        for (to, value) in of.largest.iter_mut().zip(of.values) {
            largest = largest.max(value);
            *to = largest;
        }
        let sums: [i32; KEYS] = std::array::from_fn(|i| (i as i32 * 7919 % 2001 - 1000) * 20);
        for visible in [0, 1, 17, 63, 64] {
            let run = |kernels: &int8::Int8Kernels| {
                let mut row =
                    Row { scale: 0.4, offset: -100, max: 1.5, sum: 2.0, keep: 9.0, factor: 9.0, total: 9 };
                let mut codes = [200; KEYS];
                (kernels.weights)(&sums, &of, visible, &mut row, &mut codes);
                let floats = [row.max, row.sum, row.keep, row.factor].map(f32::to_bits);
                (floats, row.total, codes)
            };
            let (floats, total, codes) = run(kernels);
            assert_eq!((floats, total, codes), run(portable), "{isa} {visible}");
            assert!(codes[visible..].iter().all(|code| *code == 0), "{isa} {visible}");
            assert_eq!(total, codes.iter().map(|code| i32::from(*code)).sum::<i32>(), "{isa} {visible}");
            let [max, sum, keep, factor] = floats.map(|bits| f64::from(f32::from_bits(bits)));
            let score = |i: usize| f64::from(sums[i] + 100) * f64::from(of.keys[i]) * f64::from(0.4f32);
            let greatest = (0..visible).map(score).fold(f64::NEG_INFINITY, f64::max);
            assert!((max - greatest.max(1.5)).abs() <= 1e-6 * max.abs(), "{isa} {visible}");
            assert!((keep - (1.5 - max).exp2()).abs() <= ROUGH * keep);
            let mut expected = 2.0 * keep;
            for (i, code) in codes[..visible].iter().enumerate() {
                let weight = (score(i) - max).exp2();
                expected += weight;
                let value = f64::from(*code) * factor;
                // A step, and scores rounded in float32.
                let bound = factor + ROUGH * weight * f64::from(of.values[i]);
                assert!(
                    (value - weight * f64::from(of.values[i])).abs() <= bound,
                    "{isa} {visible}: {value}"
                );
            }
            assert!(
                (sum - expected).abs() <= 2.0 * ROUGH * expected,
                "{isa} {visible}: {sum}, not {expected}"
            );
        }
    }
}
