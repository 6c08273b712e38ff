//! Hostile files: one of each published attack class, built here in code. Each must be refused quickly, by an error
//! that names the field and its offset, without panic and without memory beyond the file's own size.
//! Classes: the CVE numbers and reports beside the cases.
#![allow(clippy::unwrap_used, reason = "a test that fails has to say where")]

mod alloc;
mod folder;
mod gguf;
mod random;
mod safetensors;
mod tokenizer;

use std::time::{Duration, Instant};

use margay_file::{FileError, Gguf, SafeTensors, tokenizer_model::TokenizerModel};
use margay_tensor::Storage;

/// A refusal may take this long. Reading stops at the first broken field, so that it is microseconds; the margin is
/// for a busy machine.
const MAX_REFUSAL: Duration = Duration::from_millis(10);

/// The fastest of so many runs is held against [`MAX_REFUSAL`]: the others may have waited for a core.
const RUNS: usize = 5;

/// Bytes that a refusal may take beyond the file's size: error messages (cut to some hundred bytes), names, small
/// tables that grow by doubling.
const SLACK_BYTES: usize = 16 << 10;

/// Which reader is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gguf,
    SafeTensors,
    TokenizerModel,
}

/// One hostile file.
struct Case {
    /// What is wrong with it, as a file name.
    name: &'static str,
    format: Format,
    bytes: Vec<u8>,
    /// Where the broken field starts.
    offset: usize,
    /// What the error must say: the field, then anything else.
    says: &'static [&'static str],
}

impl Case {
    fn new(
        name: &'static str,
        format: Format,
        bytes: Vec<u8>,
        offset: usize,
        says: &'static [&'static str],
    ) -> Self {
        Case { name, format, bytes, offset, says }
    }
}

fn open(format: Format, bytes: &Storage) -> Result<(), FileError> {
    match format {
        Format::Gguf => Gguf::from_bytes(bytes.clone()).map(drop),
        Format::SafeTensors => SafeTensors::from_bytes(bytes.clone()).map(drop),
        Format::TokenizerModel => TokenizerModel::from_bytes(bytes.as_bytes()).map(drop),
    }
}

fn all_cases() -> Vec<Case> {
    let mut cases = gguf::cases();
    cases.extend(safetensors::cases());
    cases.extend(tokenizer::cases());
    cases
}

#[test]
fn every_attack_class_is_refused_quickly_with_field_and_offset_and_no_memory() {
    let cases = all_cases();
    assert!(cases.len() >= 34, "only {} classes", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        failures.extend(check(case).err().map(|why| format!("{}: {why}", case.name)));
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn check(case: &Case) -> Result<(), String> {
    let bytes = Storage::from_bytes(&case.bytes);
    let mut fastest = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        let (result, peak_bytes) = alloc::peak_of(|| open(case.format, &bytes));
        fastest = fastest.min(start.elapsed());
        let Err(error) = result else { return Err("accepted".to_owned()) };
        let text = error.to_string();
        let place = format!("at byte {}:", case.offset);
        let wanted = case.says.iter().copied().chain([place.as_str()]);
        if let Some(absent) = wanted.into_iter().find(|part| !text.contains(part)) {
            return Err(format!("the error does not say {absent:?}: {text}"));
        }
        let allowed = case.bytes.len() + SLACK_BYTES;
        if peak_bytes > allowed {
            return Err(format!("took {peak_bytes} bytes of memory for a file of {}", case.bytes.len()));
        }
    }
    if fastest > MAX_REFUSAL {
        return Err(format!("took {fastest:?}"));
    }
    Ok(())
}

#[test]
fn case_names_are_unique() {
    let cases = all_cases();
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
}

/// Writes the files, for other tools to be tried on them and as a start for the fuzzer:
/// `cargo test -p margay-file --test hostile -- --ignored write_the_files`.
#[test]
#[ignore = "writes files; run by hand"]
fn write_the_files() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    for case in all_cases() {
        let folder = folder.join(format!("{:?}", case.format).to_lowercase());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(case.name), &case.bytes).unwrap();
    }
    println!("{} files are in {}", all_cases().len(), folder.display());
}
