//! Any bytes: refused, or read in full and written back with the same metadata and tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use margay_file::{Gguf, TensorSource, gguf};
use margay_tensor::Storage;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Gguf::from_bytes(Storage::from_bytes(data)) else { return };
    let tensors: Vec<_> = file
        .names()
        .map(|name| (name, file.tensor(name).expect("an opened file gives its tensors")))
        .collect();
    let borrowed: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let bytes = gguf::to_bytes(file.metadata(), &borrowed).expect("what was read can be written");
    let again = Gguf::from_bytes(Storage::from_bytes(&bytes)).expect("what was written can be read");
    assert_eq!(again.metadata().len(), file.metadata().len());
    for (name, tensor) in &tensors {
        assert_eq!(again.tensor(name).expect("the tensor was written").bytes(), tensor.bytes());
    }
    // Unlike comparing values, comparing bytes holds for NaN too.
    let third = gguf::to_bytes(again.metadata(), &borrowed).expect("what was read can be written");
    assert_eq!(bytes, third);
});
