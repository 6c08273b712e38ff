//! The CPU backend equals naive loops in float64 on every case of the shared suite, with every instruction set.

use margay_cpu::{CpuBackend, CpuOptions, Isa, KvType};
use margay_testkit::{naive::NaiveBackend, suite, tolerance::Policy};

fn backend(isa: Isa, threads: usize, kv: KvType) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: Some(threads), isa: Some(isa), kv }).unwrap()
}

#[test]
fn every_case_is_within_its_tolerance_on_every_instruction_set() {
    for isa in Isa::supported() {
        suite::assert_suite(&backend(isa, 2, KvType::F16), &NaiveBackend::exact(), &Policy::FAST);
    }
}

#[test]
fn with_a_float32_cache_attention_is_float32_throughout() {
    let policy = Policy { half_cache: Policy::FLOAT32.half_cache, ..Policy::FAST };
    for isa in Isa::supported() {
        suite::assert_suite(&backend(isa, 1, KvType::F32), &NaiveBackend::exact(), &policy);
    }
}
