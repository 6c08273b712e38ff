//! Any bytes: refused, or read in full and written back with the same texts and tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use margay_file::{SafeTensors, TensorSource, safetensors};
use margay_tensor::Storage;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = SafeTensors::from_bytes(Storage::from_bytes(data)) else { return };
    let tensors: Vec<_> = file
        .names()
        .map(|name| (name, file.tensor(name).expect("an opened file gives its tensors")))
        .collect();
    let borrowed: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let bytes = safetensors::to_bytes(&borrowed, file.metadata()).expect("what was read can be written");
    let again = SafeTensors::from_bytes(Storage::from_bytes(&bytes)).expect("what was written can be read");
    assert_eq!(again.metadata(), file.metadata());
    for (name, tensor) in &tensors {
        let read = again.tensor(name).expect("the tensor was written");
        assert_eq!((read.shape(), read.bytes()), (tensor.shape(), tensor.bytes()));
    }
});
