//! The benchmarks: one file each, read and scored as published.

mod gqa;
mod mmbench;
mod mme;
mod nano;
mod pope;
mod scienceqa;
mod textvqa;

use crate::SuiteEntry;

/// Every benchmark there is.
pub const SUITES: &[SuiteEntry] =
    &[nano::SUITE, gqa::SUITE, scienceqa::SUITE, textvqa::SUITE, pope::SUITE, mme::SUITE, mmbench::SUITE];

/// The benchmark of that name.
pub fn suite_entry(id: &str) -> Option<&'static SuiteEntry> {
    SUITES.iter().find(|suite| suite.id == id)
}

/// What LLaVA puts behind a question whose answer is short. Source: LLaVA docs/Evaluation.md.
const SHORT: &str = "\nAnswer the question using a single word or phrase.";

/// What LLaVA puts behind a question with options. Source: LLaVA llava/eval/model_vqa_mmbench.py.
const LETTER: &str = "\nAnswer with the option's letter from the given choices directly.";

/// What LLaVA lets a model write where answers are short. Source: LLaVA llava/eval/model_vqa_loader.py.
const SHORT_TOKENS: usize = 128;

/// What LLaVA lets a model write where it chooses a letter. Source: LLaVA llava/eval/model_vqa_science.py.
const LETTER_TOKENS: usize = 1024;
