//! The LLaMA decoder: pre-norm blocks of grouped attention with rotary positions, and a SwiGLU feed-forward layer.
//! Weights by the names and in the layout of `llama` GGUF files (rotary pairs are neighbours).
//! Source: transformers `modeling_llama.py`.

use crate::{
    ModelError, RopeScaling, TextConfig,
    weights::{Rename, Transform},
};
use margay_graph::{
    Activation, Attention, Builder, Dim, Mask, NormKind, Program, Role, Rope, RopeStyle, Stage, Sym, ValueId,
};

/// The text program. Inputs: `ids` `[T]`, `positions` `[T]`, `rows` `[R]` (whose logits are wanted), and with `visual` also
/// `visual` [V, E]. Outputs: `logits` [R, vocabulary] and the taps `hidden.0` (embeddings) to `hidden.L`, [T, E] each.
pub(crate) fn text(config: &TextConfig, visual: bool) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Text);
    let ids = b.input_i32("ids", Sym::Tokens);
    let positions = b.input_i32("positions", Sym::Tokens);
    let rows = b.input_i32("rows", Sym::Outputs);
    let visual = visual.then(|| b.input_f32("visual", [Sym::Visual.into(), Dim::from(config.width)]));

    let table_shape = [config.vocabulary, config.width];
    let table = b.weight("token_embd.weight", table_shape, Role::TokenEmbedding);
    let mut x = b.embed(table, ids, visual)?; // [T, E]
    b.output("hidden.0", x);
    for layer in 0..config.layers {
        x = block(&mut b, config, layer, x, positions)?;
        b.output(&format!("hidden.{}", layer + 1), x);
    }
    let x = b.gather_rows(x, rows)?; // [R, E]
    let x = norm(&mut b, config, "output_norm", x)?;
    let head = if config.tied { table } else { b.weight("output.weight", table_shape, Role::Output) };
    let logits = b.linear(x, head, None)?; // [R, vocabulary]
    b.output("logits", logits);
    Ok(b.finish()?)
}

fn block(
    b: &mut Builder,
    c: &TextConfig,
    layer: usize,
    x: ValueId,
    positions: ValueId,
) -> Result<ValueId, ModelError> {
    let matrix = |b: &mut Builder, name: &str, out: usize, width: usize, role| {
        b.weight(&format!("blk.{layer}.{name}.weight"), [out, width], role)
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

    let h = norm(b, c, &format!("blk.{layer}.attn_norm"), x)?;
    let (q, k, v) = (b.linear(h, q, None)?, b.linear(h, k, None)?, b.linear(h, v, None)?);
    let rope = rope(b, c);
    let q = b.rope(q, positions, rope.clone())?;
    let k = b.rope(k, positions, rope)?;
    let attention = Attention {
        heads: c.heads,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        scale: (c.head_dim as f32).powf(-0.5),
        mask: Mask::Causal,
        cache: None,
    };
    let h = b.attention([q, k, v], attention, true)?; // [T, H*D]
    let h = b.linear(h, out, None)?;
    let x = b.add(x, h)?;

    let h = norm(b, c, &format!("blk.{layer}.ffn_norm"), x)?;
    let gate = b.linear(h, gate, None)?; // [T, F]
    let gate = b.activation(gate, Activation::Silu)?;
    let up = b.linear(h, up, None)?;
    let h = b.mul(gate, up)?;
    let h = b.linear(h, down, None)?;
    Ok(b.add(x, h)?)
}

fn norm(b: &mut Builder, c: &TextConfig, name: &str, x: ValueId) -> Result<ValueId, ModelError> {
    let weight = b.weight(&format!("{name}.weight"), [c.width], Role::Norm);
    Ok(b.norm(x, NormKind::Rms, weight, None, c.norm_eps)?)
}

fn rope(b: &mut Builder, c: &TextConfig) -> Rope {
    let stretched = c.rope_scaling != RopeScaling::None;
    let factors = stretched.then(|| b.weight("rope_freqs.weight", [c.rotary / 2], Role::RopeFactors));
    Rope { head_dim: c.head_dim, rotary: c.rotary, base: c.rope_base, style: RopeStyle::Interleaved, factors }
}

/// The name in a GGUF file of a decoder weight of a Hugging Face checkpoint, wherever the decoder stands in it.
/// A name that is a GGUF name already stays.
pub(crate) fn rename(config: &TextConfig, name: &str) -> Option<Rename> {
    const PLACES: [&str; 4] = ["model.language_model.", "language_model.model.", "language_model.", "model."];
    let inner = PLACES.iter().find_map(|place| name.strip_prefix(place)).unwrap_or(name);
    let plain = |to: String| Some(Rename { to, transform: Transform::None });
    match inner {
        "embed_tokens.weight" => return plain("token_embd.weight".into()),
        "norm.weight" => return plain("output_norm.weight".into()),
        "lm_head.weight" => return plain("output.weight".into()),
        _ => {}
    }
    let (layer, part) = inner.strip_prefix("layers.")?.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let (to, transform) = match part {
        "input_layernorm.weight" => ("attn_norm", Transform::None),
        "post_attention_layernorm.weight" => ("ffn_norm", Transform::None),
        // GGUF keeps the columns of a rotary pair side by side; checkpoints keep them half a head apart.
        "self_attn.q_proj.weight" => ("attn_q", Transform::InterleaveHeads { heads: config.heads }),
        "self_attn.k_proj.weight" => ("attn_k", Transform::InterleaveHeads { heads: config.kv_heads }),
        "self_attn.v_proj.weight" => ("attn_v", Transform::None),
        "self_attn.o_proj.weight" => ("attn_output", Transform::None),
        "mlp.gate_proj.weight" => ("ffn_gate", Transform::None),
        "mlp.up_proj.weight" => ("ffn_up", Transform::None),
        "mlp.down_proj.weight" => ("ffn_down", Transform::None),
        _ => return None,
    };
    Some(Rename { to: format!("blk.{layer}.{to}.weight"), transform })
}
