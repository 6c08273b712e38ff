//! The Phi decoder (Phi-1.5, Phi-2): attention and a GELU feed-forward layer side by side behind one layer norm, biases
//! everywhere, rotary positions on the first columns of each head.
//! Weights by the names of `phi2` GGUF files. Source: transformers `modeling_phi.py`.

use super::{Decoder, Layer, attend, norm};
use crate::{
    ModelError, TextConfig,
    hf::{TextDefaults, text},
    vision::vit::linear,
    weights::Transform,
};
use margay_graph::{Activation, Builder, NormKind, Role, RopeStyle, ValueId};

pub(crate) const PHI2: Decoder = Decoder {
    arch: "phi2",
    norm: NormKind::Layer,
    rope: RopeStyle::Half,
    hf: &["phi"],
    read_hf: |config| text(config, &PHI2, &DEFAULTS),
    biases: true,
    qkv_biases: true,
    activation: Activation::GeluTanh,
    scaled_embeddings: false,
    norms_from_one: false,
    block,
    rename,
};

/// Source: transformers `PhiConfig`, which leaves out fields that equal its defaults.
const DEFAULTS: TextDefaults = TextDefaults {
    activations: &["gelu_new", "gelu_pytorch_tanh"],
    vocabulary: 51200,
    width: 2048,
    layers: 24,
    ffn: 8192,
    heads: 32,
    rotary: 0.5,
    norm_eps: 1e-5,
    context: 2048,
    ..TextDefaults::BASE
};

fn block(b: &mut Builder, c: &TextConfig, layer: Layer) -> Result<ValueId, ModelError> {
    let Layer { number, x, positions } = layer;
    let name = |part: &str| format!("blk.{number}.{part}");
    let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let h = norm(b, c, &name("attn_norm"), x)?;

    let q = linear(b, &name("attn_q"), h, q_width, Role::AttentionQ)?;
    let k = linear(b, &name("attn_k"), h, kv_width, Role::AttentionK)?;
    let v = linear(b, &name("attn_v"), h, kv_width, Role::AttentionV)?;
    let attended = attend(b, c, positions, [q, k, v])?; // [T, H*D]
    let attended = linear(b, &name("attn_output"), attended, c.width, Role::AttentionOut)?;
    let x = b.add(x, attended)?;

    let h = linear(b, &name("ffn_up"), h, c.ffn, Role::FfnUp)?; // [T, F]
    let h = b.activation(h, c.decoder.activation)?;
    let h = linear(b, &name("ffn_down"), h, c.width, Role::FfnDown)?;
    Ok(b.add(x, h)?)
}

fn rename(_: &TextConfig, part: &str) -> Option<(&'static str, Transform)> {
    let to = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.dense" => "attn_output",
        "mlp.fc1" => "ffn_up",
        "mlp.fc2" => "ffn_down",
        _ => return None,
    };
    Some((to, Transform::None))
}
