//! Decoders: tokens to logits.

pub(crate) mod llama;
