//! Decoders: tokens to logits. One file each, one line in [`DECODERS`].

pub(crate) mod llama;
pub(crate) mod phi2;

use crate::{
    ModelError, RopeScaling, TextConfig,
    weights::{Rename, Transform},
};
use margay_graph::{
    Attention, Builder, Dim, Mask, NormKind, Program, Role, Rope, RopeStyle, Stage, Sym, ValueId,
};

/// What sets a decoder apart from the others.
#[derive(Debug)]
pub struct Decoder {
    /// `general.architecture` in a GGUF file.
    pub arch: &'static str,
    /// Its norms.
    pub(crate) norm: NormKind,
    /// Which columns of a head turn together in a GGUF file.
    pub(crate) rope: RopeStyle,
    /// Norms and head have biases.
    pub(crate) biases: bool,
    /// One block; gives [T, E].
    pub(crate) block: fn(&mut Builder, &TextConfig, Layer) -> Result<ValueId, ModelError>,
    /// The name behind `blk.N.` in a GGUF file of what stands behind `layers.N.` in a checkpoint, without `weight` or
    /// `bias`, and what becomes of it.
    pub(crate) rename: fn(&TextConfig, &str) -> Option<(&'static str, Transform)>,
}

/// One block's place: its number, its input [T, E], the positions `[T]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    number: usize,
    x: ValueId,
    positions: ValueId,
}

impl PartialEq for Decoder {
    fn eq(&self, other: &Self) -> bool {
        self.arch == other.arch
    }
}

/// All decoders.
pub const DECODERS: &[&Decoder] = &[&llama::LLAMA, &phi2::PHI2];

/// The decoder of that architecture in a GGUF file.
pub(crate) fn by_arch(arch: &str) -> Option<&'static Decoder> {
    DECODERS.iter().copied().find(|d| d.arch == arch)
}

/// The text program. Inputs: `ids` `[T]`, `positions` `[T]`, `rows` `[R]` (whose logits are wanted), and with `visual` also
/// `visual` [V, E]. Outputs: `logits` [R, vocabulary] and the taps `hidden.0` (embeddings) to `hidden.L`, [T, E] each.
pub(crate) fn text(config: &TextConfig, visual: bool) -> Result<Program, ModelError> {
    let decoder = config.decoder;
    let mut b = Builder::new(Stage::Text);
    let ids = b.input_i32("ids", Sym::Tokens);
    let positions = b.input_i32("positions", Sym::Tokens);
    let rows = b.input_i32("rows", Sym::Outputs);
    let visual = visual.then(|| b.input_f32("visual", [Sym::Visual.into(), Dim::from(config.width)]));

    let table_shape = [config.vocabulary, config.width];
    let table = b.weight("token_embd.weight", table_shape, Role::TokenEmbedding);
    let mut x = b.embed(table, ids, visual)?; // [T, E]
    b.output("hidden.0", x);
    for number in 0..config.layers {
        x = (decoder.block)(&mut b, config, Layer { number, x, positions })?;
        b.output(&format!("hidden.{}", number + 1), x);
    }
    let x = b.gather_rows(x, rows)?; // [R, E]
    let x = norm(&mut b, config, "output_norm", x)?;
    let head = if config.tied { table } else { b.weight("output.weight", table_shape, Role::Output) };
    let bias = decoder.biases.then(|| b.weight("output.bias", [config.vocabulary], Role::Bias));
    let logits = b.linear(x, head, bias)?; // [R, vocabulary]
    b.output("logits", logits);
    Ok(b.finish()?)
}

fn norm(b: &mut Builder, c: &TextConfig, name: &str, x: ValueId) -> Result<ValueId, ModelError> {
    let weight = b.weight(&format!("{name}.weight"), [c.width], Role::Norm);
    let bias = c.decoder.biases.then(|| b.weight(&format!("{name}.bias"), [c.width], Role::Bias));
    Ok(b.norm(x, c.decoder.norm, weight, bias, c.norm_eps)?)
}

/// Turns queries and keys, and attends. [T, H*D]
fn attend(
    b: &mut Builder,
    c: &TextConfig,
    positions: ValueId,
    [q, k, v]: [ValueId; 3],
) -> Result<ValueId, ModelError> {
    let stretched = c.rope_scaling != RopeScaling::None;
    let factors = stretched.then(|| b.weight("rope_freqs.weight", [c.rotary / 2], Role::RopeFactors));
    let rope =
        Rope { head_dim: c.head_dim, rotary: c.rotary, base: c.rope_base, style: c.decoder.rope, factors };
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
    Ok(b.attention([q, k, v], attention, true)?)
}

/// The name in a GGUF file of a decoder weight of a Hugging Face checkpoint, wherever the decoder stands in it.
/// A name that is a GGUF name already stays.
pub(crate) fn rename(config: &TextConfig, name: &str) -> Option<Rename> {
    const PLACES: [&str; 5] =
        ["model.language_model.", "language_model.model.", "language_model.", "model.text_model.", "model."];
    let inner = PLACES.iter().find_map(|place| name.strip_prefix(place)).unwrap_or(name);
    let (stem, kind) = inner.rsplit_once('.')?;
    let known = kind == "weight" || (kind == "bias" && config.decoder.biases);
    let (to, transform) = match stem {
        _ if !known => return None,
        "embed_tokens" => ("token_embd".to_owned(), Transform::None),
        "norm" | "final_layernorm" => ("output_norm".to_owned(), Transform::None),
        "lm_head" => ("output".to_owned(), Transform::None),
        _ => {
            let (layer, part) = stem.strip_prefix("layers.")?.split_once('.')?;
            layer.parse::<usize>().ok()?;
            let (to, transform) = (config.decoder.rename)(config, part)?;
            (format!("blk.{layer}.{to}"), transform)
        }
    };
    Some(Rename { to: format!("{to}.{kind}"), transform })
}
