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
fn stored(numbers: &[f32], kind: KvType) -> (Vec<u8>, Vec<f32>) {
    let of = |x: &f32| match kind {
        KvType::F32 => (x.to_le_bytes().to_vec(), *x),
        KvType::F16 => {
            let half = half::f16::from_f32(*x);
            (half.to_le_bytes().to_vec(), half.to_f32())
        }
        KvType::Q8 => {
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
        for kind in KvType::ALL {
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
        (table(isa).softmax.block)(&mut scores, &mut max, &mut sum, &mut keep);
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
