//! The Phi decoder (Phi-1.5, Phi-2): attention and a GELU feed-forward layer side by side behind one layer norm, biases
//! everywhere, rotary positions on the first columns of each head.
//! Weights by the names of `phi2` GGUF files. Source: transformers `modeling_phi.py`.

use super::{Decoder, Layer, QkNorms, attend, norm};
use crate::{
    HfConfig, ModelError, TextConfig,
    hf::{TextDefaults, text},
    vision::vit::linear,
    weights::Transform,
};
use margay_graph::{Activation, Builder, Mask, NormKind, Role, RopeStyle, ValueId};

pub(crate) const PHI2: Decoder = Decoder {
    arch: "phi2",
    norm: NormKind::Layer,
    rope: RopeStyle::Half,
    rope_sections: None,
    hf: &["phi", "phi-msft"],
    read_hf,
    biases: true,
    qkv_biases: true,
    qk_norms: QkNorms::None,
    experts: false,
    shares_add_up: true,
    activation: Activation::GeluTanh,
    mask: Mask::Causal,
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

fn read_hf(config: &HfConfig<'_>) -> Result<TextConfig, ModelError> {
    if config.get("n_embd").is_none() {
        return text(config, &PHI2, &DEFAULTS);
    }
    // The first releases of Phi and of Imp spell their sizes as GPT-2 does. Source: `microsoft/phi-2`,
    // `configuration_phi.py` of 2023.
    let width = config.usize("n_embd", DEFAULTS.width)?;
    let heads = config.usize("n_head", DEFAULTS.heads)?;
    let rotary = config.usize("rotary_dim", 32)?;
    let ours = serde_json::json!({
        "hidden_act": config.str("activation_function"),
        "vocab_size": config.get("vocab_size"),
        "hidden_size": width,
        "num_hidden_layers": config.get("n_layer"),
        "intermediate_size": config.usize("n_inner", 4 * width)?,
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("n_head_kv"),
        "partial_rotary_factor": rotary as f32 / (width / heads.max(1)).max(1) as f32,
        "layer_norm_eps": config.get("layer_norm_epsilon"),
        "max_position_embeddings": config.get("n_positions"),
        "tie_word_embeddings": config.get("tie_word_embeddings"),
    });
    text(&HfConfig::new(&ours), &PHI2, &DEFAULTS)
}

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
        "input_layernorm" | "ln" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        // The first releases keep queries, keys and values in one matrix.
        "mixer.Wqkv" => "attn_qkv",
        "self_attn.dense" | "mixer.out_proj" => "attn_output",
        "mlp.fc1" => "ffn_up",
        "mlp.fc2" => "ffn_down",
        _ => return None,
    };
    Some((to, Transform::None))
}
