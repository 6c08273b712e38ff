//! Valid files, cut off anywhere and with random bytes changed.

use std::collections::BTreeMap;

use margay_file::{
    gguf::{self, Metadata, Value},
    safetensors,
};
use margay_tensor::{DType, Shape, Storage, Tensor};
use proptest::prelude::*;

use crate::{Format, alloc, open, tokenizer};

/// A changed file may still be a right one, which costs tables beside the data: at most so many bytes for one of its
/// own, beside [`crate::SLACK_BYTES`].
const BYTES_PER_BYTE: usize = 16;

/// Files to change. Their last tensor ends at a multiple of the alignment, so that no padding follows it.
fn valid(format: Format) -> Vec<u8> {
    let plain = Tensor::from_f32(Shape::from([2, 8]), &[0.5; 16]).unwrap();
    let blocks = Tensor::new(DType::Q8_0, Shape::from([16, 32]), Storage::from_bytes(&[1; 16 * 34])).unwrap();
    match format {
        Format::Gguf => {
            let words: Vec<String> = ["<s>", "</s>", "▁a", "", "long enough"].map(str::to_owned).to_vec();
            let meta = Metadata::from_iter([
                ("general.architecture", Value::from("llama")),
                ("general.alignment", 32u32.into()),
                ("llama.block_count", 2u64.into()),
                ("llama.rope.freq_base", 1e4f32.into()),
                ("tokenizer.ggml.tokens", words.into()),
                ("tokenizer.ggml.scores", vec![0.0f32; 5].into()),
                ("tokenizer.ggml.token_type", vec![1i32; 5].into()),
                ("tokenizer.ggml.add_bos_token", true.into()),
                ("flags", vec![true, false].into()),
            ]);
            gguf::to_bytes(&meta, &[("token_embd.weight", &plain), ("output.weight", &blocks)]).unwrap()
        }
        Format::SafeTensors => {
            let bytes = Tensor::new(DType::U8, Shape::from([3]), Storage::from_bytes(&[1, 2, 3])).unwrap();
            let texts = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            safetensors::to_bytes(&[("a.weight", &plain), ("b", &bytes)], &texts).unwrap()
        }
        Format::TokenizerModel => tokenizer::valid(),
    }
}

#[test]
fn every_prefix_of_a_valid_file_is_refused() {
    for format in [Format::Gguf, Format::SafeTensors] {
        let whole = valid(format);
        open(format, &Storage::from_bytes(&whole)).unwrap();
        for len in 0..whole.len() {
            let text = open(format, &Storage::from_bytes(&whole[..len])).unwrap_err().to_string();
            assert!(text.contains("at byte"), "{format:?} cut to {len} bytes: {text}");
        }
    }
}

#[test]
fn no_prefix_of_a_vocabulary_panics() {
    let whole = valid(Format::TokenizerModel);
    open(Format::TokenizerModel, &Storage::from_bytes(&whole)).unwrap();
    let refused = (0..whole.len())
        .filter(|&len| open(Format::TokenizerModel, &Storage::from_bytes(&whole[..len])).is_err());
    // A cut between two pieces leaves a right, smaller vocabulary; within one it does not.
    assert!(refused.count() > whole.len() / 2);
}

fn check(format: Format, changes: Vec<(usize, u8)>) {
    let mut bytes = valid(format);
    let len = bytes.len();
    for (at, value) in changes {
        bytes[at % len] = value;
    }
    let bytes = Storage::from_bytes(&bytes);
    let (_, peak_bytes) = alloc::peak_of(|| open(format, &bytes));
    assert!(peak_bytes <= BYTES_PER_BYTE * len + crate::SLACK_BYTES, "took {peak_bytes} bytes");
}

/// Places and values of changed bytes: anywhere, or near the start where the counts are; often the extreme values.
fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let place = prop_oneof![any::<usize>(), 0usize..200];
    let value = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)];
    prop::collection::vec((place, value), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_gguf_bytes_never_panic_or_take_memory(changes in changes()) {
        check(Format::Gguf, changes);
    }

    #[test]
    fn changed_safetensors_bytes_never_panic_or_take_memory(changes in changes()) {
        check(Format::SafeTensors, changes);
    }

    #[test]
    fn changed_vocabulary_bytes_never_panic_or_take_memory(changes in changes()) {
        check(Format::TokenizerModel, changes);
    }
}
