//! The LLaMA decoder: pre-norm blocks of grouped attention with rotary positions, and a gated feed-forward layer.
//! Other decoders are the same block with other data. Weights by the names and in the layout of `llama` GGUF files (rotary pairs are neighbours).
//! Source: transformers `modeling_llama.py`.

use super::{Decoder, Layer, QkNorms, attend, norm, qk_norm};
use crate::{
    Mixture, ModelError, TextConfig,
    hf::{TextDefaults, text},
    weights::Transform,
};
use margay_graph::{Activation, Builder, Experts, Mask, NormKind, Role, RopeStyle, Route, ValueId};

pub(crate) const LLAMA: Decoder = Decoder {
    arch: "llama",
    norm: NormKind::Rms,
    rope: RopeStyle::Interleaved,
    rope_sections: None,
    hf: &["llama", "mixtral"],
    read_hf: |config| text(config, &LLAMA, &DEFAULTS),
    biases: false,
    qkv_biases: false,
    qk_norms: QkNorms::None,
    experts: true,
    shares_add_up: true,
    activation: Activation::Silu,
    mask: Mask::Causal,
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

    let h = norm(b, c, &format!("blk.{number}.attn_norm"), x)?;
    let mut project = |name: &str, weight, columns: usize| {
        let bias = format!("blk.{number}.{name}.bias");
        let bias = c.decoder.qkv_biases.then(|| b.weight(&bias, [columns], Role::Bias));
        b.linear(h, weight, bias)
    };
    let [q, k, v] =
        [project("attn_q", q, q_width)?, project("attn_k", k, kv_width)?, project("attn_v", v, kv_width)?];
    let q = qk_norm(b, c, &format!("blk.{number}.attn_q_norm"), c.heads, q)?;
    let k = qk_norm(b, c, &format!("blk.{number}.attn_k_norm"), c.kv_heads, k)?;
    let h = attend(b, c, positions, [q, k, v])?; // [T, H*D]
    let h = b.linear(h, out, None)?;
    let x = b.add(x, h)?;

    let h = norm(b, c, &format!("blk.{number}.ffn_norm"), x)?;
    let h = match c.mixture {
        None => feed_forward(b, c, number, h)?,
        Some(mixture) => experts(b, c, number, mixture, h)?,
    };
    Ok(b.add(x, h)?)
}

fn feed_forward(b: &mut Builder, c: &TextConfig, number: usize, h: ValueId) -> Result<ValueId, ModelError> {
    let name = |part: &str| format!("blk.{number}.{part}.weight");
    let gate = b.weight(&name("ffn_gate"), [c.ffn, c.width], Role::FfnGate);
    let up = b.weight(&name("ffn_up"), [c.ffn, c.width], Role::FfnUp);
    let down = b.weight(&name("ffn_down"), [c.width, c.ffn], Role::FfnDown);
    let gate = b.linear(h, gate, None)?; // [T, F]
    let gate = b.activation(gate, c.decoder.activation)?;
    let up = b.linear(h, up, None)?;
    let h = b.mul(gate, up)?;
    Ok(b.linear(h, down, None)?)
}

fn experts(
    b: &mut Builder,
    c: &TextConfig,
    number: usize,
    Mixture { experts, used, ffn, shared }: Mixture,
    h: ValueId,
) -> Result<ValueId, ModelError> {
    let name = |part: &str| format!("blk.{number}.{part}.weight");
    let router = b.weight(&name("ffn_gate_inp"), [experts, c.width], Role::Router);
    let stacks = Experts {
        gate: b.weight(&name("ffn_gate_exps"), [experts, ffn, c.width], Role::FfnGate),
        up: b.weight(&name("ffn_up_exps"), [experts, ffn, c.width], Role::FfnUp),
        down: b.weight(&name("ffn_down_exps"), [experts, c.width, ffn], Role::FfnDown),
        activation: c.decoder.activation,
        used,
    };
    let logits = b.linear(h, router, None)?; // [T, N]
    let shares = b.route(logits, Route { used, normalised: c.decoder.shares_add_up })?;
    let chosen = b.experts(h, shares, stacks)?; // [T, E]
    let Some(ffn) = shared else { return Ok(chosen) };
    let shared = shared_expert(b, c, number, ffn, h)?;
    Ok(b.add(chosen, shared)?)
}

/// A mixture of one, whose share is what its gate lets through.
fn shared_expert(
    b: &mut Builder,
    c: &TextConfig,
    number: usize,
    ffn: usize,
    h: ValueId,
) -> Result<ValueId, ModelError> {
    let name = |part: &str| format!("blk.{number}.{part}.weight");
    let gate = b.weight(&name("ffn_gate_inp_shexp"), [1, c.width], Role::Router);
    let stacks = Experts {
        gate: b.weight(&name("ffn_gate_shexp"), [1, ffn, c.width], Role::FfnGate),
        up: b.weight(&name("ffn_up_shexp"), [1, ffn, c.width], Role::FfnUp),
        down: b.weight(&name("ffn_down_shexp"), [1, c.width, ffn], Role::FfnDown),
        activation: c.decoder.activation,
        used: 1,
    };
    let share = b.linear(h, gate, None)?; // [T, 1]
    let share = b.activation(share, Activation::Sigmoid)?;
    Ok(b.experts(h, share, stacks)?)
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
        "self_attn.q_norm" => ("attn_q_norm", Transform::None),
        "self_attn.k_norm" => ("attn_k_norm", Transform::None),
        "mlp.gate" | "block_sparse_moe.gate" => ("ffn_gate_inp", Transform::None),
        "mlp.shared_expert_gate" => ("ffn_gate_inp_shexp", Transform::None),
        "mlp.shared_expert.gate_proj" => ("ffn_gate_shexp", Transform::None),
        "mlp.shared_expert.up_proj" => ("ffn_up_shexp", Transform::None),
        "mlp.shared_expert.down_proj" => ("ffn_down_shexp", Transform::None),
        _ => {
            let places = ["mlp.experts.", "block_sparse_moe.experts."];
            let (number, part) = places.iter().find_map(|place| part.strip_prefix(place))?.split_once('.')?;
            let to = match part {
                "gate_proj" | "w1" => "ffn_gate_exps",
                "up_proj" | "w3" => "ffn_up_exps",
                "down_proj" | "w2" => "ffn_down_exps",
                _ => return None,
            };
            (to, Transform::Expert { number: number.parse().ok()?, of: config.mixture?.experts })
        }
    })
}
