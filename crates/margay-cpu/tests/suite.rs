//! The CPU backend equals naive loops in float64 on the cases of the shared suite, with every instruction set.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use margay_cpu::{CpuBackend, CpuOptions, Isa, KvType};
use margay_testkit::{
    naive::NaiveBackend,
    suite::{self, Case, CaseResult},
    tolerance::Policy,
};

/// Elements of the largest weight that instruction sets other than the best are tried with: whole tiles, odd rests and
/// every format are below, and the rest would take minutes where the processor is emulated.
const SMALL_ELEMENTS: usize = 100_000;

fn backend(isa: Isa, threads: usize, kv: KvType) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: Some(threads), isa: Some(isa), kv, ..Default::default() }).unwrap()
}

fn assert_passes(backend: &CpuBackend, policy: &Policy, cases: &[Case]) {
    assert!(!cases.is_empty());
    let results = suite::run_suite(backend, &NaiveBackend::exact(), policy, cases);
    let failed: String =
        results.iter().filter(|r| !CaseResult::passed(r)).map(|r| format!("{r}\n")).collect();
    assert!(failed.is_empty(), "{}:\n{failed}", backend.isa());
}

#[test]
fn every_case_is_within_its_tolerance_on_the_best_instruction_set() {
    suite::assert_suite(&backend(Isa::detect(), 2, KvType::F16), &NaiveBackend::exact(), &Policy::FAST);
}

#[test]
fn small_cases_are_within_their_tolerance_on_the_other_instruction_sets() {
    let small = |case: &Case| {
        let elements = |spec: &margay_graph::WeightSpec| spec.shape.elements().unwrap_or(usize::MAX);
        case.program.weights().iter().all(|spec| elements(spec) <= SMALL_ELEMENTS)
            && !case.name.contains("729")
    };
    let cases: Vec<_> = suite::cases().into_iter().filter(small).collect();
    for isa in Isa::supported().filter(|isa| *isa != Isa::detect()) {
        assert_passes(&backend(isa, 3, KvType::F16), &Policy::FAST, &cases);
    }
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_supported()) {
        println!("skipped {isa}: this processor lacks it");
    }
}

#[test]
fn with_an_8_bit_cache_attention_is_within_the_tolerance_of_8_bits() {
    let policy = Policy { half_cache: Policy::INT8_CACHE, ..Policy::FAST };
    let cases: Vec<_> = suite::cases().into_iter().filter(|case| case.capacity.is_some()).collect();
    for isa in Isa::supported() {
        assert_passes(&backend(isa, 2, KvType::Q8), &policy, &cases);
    }
}

#[test]
fn with_a_float32_cache_attention_is_float32_throughout() {
    let policy = Policy { half_cache: Policy::FLOAT32.half_cache, ..Policy::FAST };
    let cases: Vec<_> = suite::cases().into_iter().filter(|case| case.capacity.is_some()).collect();
    assert_passes(&backend(Isa::detect(), 1, KvType::F32), &policy, &cases);
}
