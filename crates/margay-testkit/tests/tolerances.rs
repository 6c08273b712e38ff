//! The tolerances of a fast backend allow the roundings it makes by design, and little more.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use margay_testkit::{
    naive::NaiveBackend,
    suite::{self, Case, CaseResult},
    tolerance::{Class, FLOAT, HALF_CACHE, INT8_CHAIN_RMS, INT8_RMS, Policy},
};

/// 8-bit activations are stored in blocks of 32 (`Q8_0`), of 256 (`Q8_K`), or with one scale a row.
const INT8_BLOCKS: [usize; 3] = [32, 256, usize::MAX];

fn run(int8_block: usize, keep: impl Fn(&Case) -> bool) -> Vec<CaseResult> {
    let cases: Vec<_> = suite::cases().into_iter().filter(keep).collect();
    suite::run_suite(&NaiveBackend::rounding(int8_block), &NaiveBackend::exact(), &Policy::FAST, &cases)
}

fn assert_passed(results: &[CaseResult]) {
    let failed: String = results.iter().filter(|r| !r.passed()).map(|r| format!("{r}\n")).collect();
    assert!(failed.is_empty(), "{failed}");
}

/// The worst ratio of root mean squares.
fn worst_rms(results: &[CaseResult]) -> f64 {
    results.iter().map(|r| r.worst.rms_error / r.worst.rms_oracle).fold(0.0, f64::max)
}

#[test]
fn eight_bit_activations_pass_with_a_margin_of_at_most_five() {
    for block in INT8_BLOCKS {
        let results = run(block, |c| c.class == Class::Int8);
        assert_passed(&results);
        let worst = worst_rms(&results);
        assert!(worst > INT8_RMS / 5.0, "{block}: {worst}");
    }
}

#[test]
fn blocks_of_layers_pass_with_a_margin_of_at_most_five() {
    for block in INT8_BLOCKS {
        let results = run(block, |c| c.class == Class::Int8Chain);
        assert_passed(&results);
        let worst = worst_rms(&results);
        assert!(worst > INT8_CHAIN_RMS / 5.0, "{block}: {worst}");
    }
}

#[test]
fn half_precision_caches_pass_with_a_margin_of_at_most_five() {
    let results = run(32, |c| c.class == Class::HalfCache);
    assert_passed(&results);
    let worst = results.iter().map(|r| r.worst.relative()).fold(0.0, f64::max);
    assert!(worst > HALF_CACHE / 5.0, "{worst}");
    assert!(results.iter().all(|r| r.worst.relative() > FLOAT), "half precision shows in every case");
}
