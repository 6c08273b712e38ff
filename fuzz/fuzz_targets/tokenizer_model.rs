//! Any bytes: refused, or read as a vocabulary that has pieces with text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use margay_file::tokenizer_model::TokenizerModel;

fuzz_target!(|data: &[u8]| {
    if let Ok(model) = TokenizerModel::from_bytes(data) {
        assert!(!model.pieces.is_empty());
        assert!(model.pieces.iter().all(|piece| !piece.text.is_empty()));
    }
});
