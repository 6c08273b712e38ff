//! The LLaMA decoder: pre-norm blocks of grouped attention with rotary positions, and a gated feed-forward layer.
//! Other decoders are the same block with other data. Weights by the names and in the layout of `llama` GGUF files (rotary pairs are neighbours).
//! Source: transformers `modeling_llama.py`.

use super::{Decoder, Layer, attend, norm};
use crate::{
    ModelError, TextConfig,
    hf::{TextDefaults, text},
    weights::Transform,
};
use margay_graph::{Activation, Builder, NormKind, Role, RopeStyle, ValueId};

pub(crate) const LLAMA: Decoder = Decoder {
    arch: "llama",
    norm: NormKind::Rms,
    rope: RopeStyle::Interleaved,
    hf: &["llama"],
    read_hf: |config| text(config, &LLAMA, &DEFAULTS),
    biases: false,
    qkv_biases: false,
    activation: Activation::Silu,
    scaled_embeddings: false,
    norms_from_one: false,
    block,
    rename,
};

/// Defaults are those of transformers' `LlamaConfig`, which leaves out fields that equal them.
const DEFAULTS: TextDefaults = TextDefaults {
    vocabulary: 32000,
    width: 4096,
    layers: 32,
    ffn: 11008,
    heads: 32,
    context: 2048,
    ..TextDefaults::BASE
};

fn block(b: &mut Builder, c: &TextConfig, layer: Layer) -> Result<ValueId, ModelError> {
    let Layer { number, x, positions } = layer;
    let matrix = |b: &mut Builder, name: &str, out: usize, width: usize, role| {
        b.weight(&format!("blk.{number}.{name}.weight"), [out, width], role)
    };
    let q_width = c.heads * c.head_dim;
    let kv_width = c.kv_heads * c.head_dim;
    let q = matrix(b, "attn_q", q_width, c.width, Role::AttentionQ);
    let k = matrix(b, "attn_k", kv_width, c.width, Role::AttentionK);
    let v = matrix(b, "attn_v", kv_width, c.width, Role::AttentionV);
    let out = matrix(b, "attn_output", c.width, q_width, Role::AttentionOut);
    let gate = matrix(b, "ffn_gate", c.ffn, c.width, Role::FfnGate);
    let up = matrix(b, "ffn_up", c.ffn, c.width, Role::FfnUp);
    let down = matrix(b, "ffn_down", c.width, c.ffn, Role::FfnDown);

    let h = norm(b, c, &format!("blk.{number}.attn_norm"), x)?;
    let mut project = |name: &str, weight, columns: usize| {
        let bias = format!("blk.{number}.{name}.bias");
        let bias = c.decoder.qkv_biases.then(|| b.weight(&bias, [columns], Role::Bias));
        b.linear(h, weight, bias)
    };
    let qkv =
        [project("attn_q", q, q_width)?, project("attn_k", k, kv_width)?, project("attn_v", v, kv_width)?];
    let h = attend(b, c, positions, qkv)?; // [T, H*D]
    let h = b.linear(h, out, None)?;
    let x = b.add(x, h)?;

    let h = norm(b, c, &format!("blk.{number}.ffn_norm"), x)?;
    let gate = b.linear(h, gate, None)?; // [T, F]
    let gate = b.activation(gate, c.decoder.activation)?;
    let up = b.linear(h, up, None)?;
    let h = b.mul(gate, up)?;
    let h = b.linear(h, down, None)?;
    Ok(b.add(x, h)?)
}

fn rename(config: &TextConfig, part: &str) -> Option<(&'static str, Transform)> {
    // `llama` GGUF files keep the columns of a rotary pair side by side; checkpoints keep them half a head apart.
    let turned = |heads| match config.decoder.rope {
        RopeStyle::Interleaved => Transform::InterleaveHeads { heads },
        RopeStyle::Half => Transform::None,
    };
    Some(match part {
        "input_layernorm" => ("attn_norm", Transform::None),
        "post_attention_layernorm" => ("ffn_norm", Transform::None),
        "self_attn.q_proj" => ("attn_q", turned(config.heads)),
        "self_attn.k_proj" => ("attn_k", turned(config.kv_heads)),
        "self_attn.v_proj" => ("attn_v", Transform::None),
        "self_attn.o_proj" => ("attn_output", Transform::None),
        "mlp.gate_proj" => ("ffn_gate", Transform::None),
        "mlp.up_proj" => ("ffn_up", Transform::None),
        "mlp.down_proj" => ("ffn_down", Transform::None),
        _ => return None,
    })
}
