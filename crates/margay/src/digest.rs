//! What tells two models apart.

use crate::{Error, ModelSource};
use ring::digest::{Context, SHA256};

/// SHA-256 over a model's weights as they are stored, under their GGUF names, the numbers that say how they are used, and
/// its chat template, in hexadecimal. The same model has the same digest wherever its files lie; every byte of the weights
/// is read.
///
/// # Errors
/// [`Error`] where a weight cannot be read.
pub fn model_digest(source: &ModelSource) -> Result<String, Error> {
    digest(source, |bytes, add| add(bytes))
}

/// As [`model_digest`], of three pieces of each weight, so that of a large model little is read: models that were trained
/// differ in all of them, a single changed number may not be seen.
pub(crate) fn sampled_digest(source: &ModelSource) -> Result<String, Error> {
    const PIECE: usize = 4096;
    digest(source, |bytes, add| {
        for at in [0, bytes.len() / 2, bytes.len().saturating_sub(PIECE)] {
            add(&bytes[at..bytes.len().min(at + PIECE)]);
        }
    })
}

fn digest(source: &ModelSource, weight: impl Fn(&[u8], &mut dyn FnMut(&[u8]))) -> Result<String, Error> {
    let mut hash = Context::new(&SHA256);
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    let text = &source.config.text;
    let numbers = format!(
        "{:?}",
        (
            (source.config.family, text.vocabulary, text.width, text.layers, text.ffn, text.heads),
            (text.kv_heads, text.head_dim, text.rotary, text.rope_base, text.rope_sections),
            (text.rope_scaling, text.norm_eps, text.tied, text.mixture),
        )
    );
    add(numbers.as_bytes());
    add(source.template_source.as_deref().unwrap_or_default().as_bytes());
    for name in source.weights.names() {
        let tensor = source.weights.tensor(name)?;
        add(name.as_bytes());
        add(tensor.dtype().name().as_bytes());
        add(tensor.shape().to_string().as_bytes());
        weight(tensor.bytes(), &mut add);
    }
    Ok(hexadecimal(hash))
}

pub(crate) fn hexadecimal(hash: Context) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Model, rooms::tensor::Storage};
    use std::path::Path;

    #[test]
    fn one_changed_byte_of_one_weight_is_another_model() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/margay-nano.gguf");
        let mut bytes = std::fs::read(path).unwrap();
        let digest = |bytes: &[u8]| {
            model_digest(&ModelSource::from_bytes(Storage::from_bytes(bytes)).unwrap()).unwrap()
        };
        let shipped = model_digest(&Model::nano_source().unwrap()).unwrap();
        assert_eq!(shipped.len(), 64);
        assert_eq!(digest(&bytes), shipped);
        // The end of the last weight.
        let last = bytes.len() - 64;
        bytes[last] ^= 1;
        assert_ne!(digest(&bytes), shipped);
    }
}
