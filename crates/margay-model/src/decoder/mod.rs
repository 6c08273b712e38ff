//! Decoders: tokens to logits. One file each, one line in [`DECODERS`].

mod gemma;
mod llama;
mod moondream;
mod olmoe;
mod phi2;
mod qwen2;
mod qwen2moe;
mod qwen2vl;
mod qwen3;
mod qwen3moe;

use crate::{
    HfConfig, ModelError, RopeScaling, TextConfig,
    weights::{Rename, Transform},
};
use margay_graph::{
    Activation, Attention, Axes, Builder, Dim, Mask, NormKind, Program, Role, Rope, RopeStyle, Stage, Sym,
    ValueId,
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
    /// Positions have three axes, and a file that does not say how many pairs follow each means these.
    pub(crate) rope_sections: Option<[usize; 3]>,
    /// `model_type`s in a checkpoint's `config.json`.
    pub(crate) hf: &'static [&'static str],
    /// Reads that part of a `config.json`.
    pub(crate) read_hf: fn(&HfConfig<'_>) -> Result<TextConfig, ModelError>,
    /// Norms and head have biases.
    pub(crate) biases: bool,
    /// Queries, keys and values have biases.
    pub(crate) qkv_biases: bool,
    /// Norms of queries and keys.
    pub(crate) qk_norms: QkNorms,
    /// It may have experts in place of its feed-forward layers.
    pub(crate) experts: bool,
    /// The shares of the experts that a token passes add up to 1; else they are what they were among all experts.
    pub(crate) shares_add_up: bool,
    /// Of the feed-forward layer.
    pub(crate) activation: Activation,
    /// Which tokens a token sees.
    pub(crate) mask: Mask,
    /// Embeddings, visual ones too, are multiplied by the square root of the width.
    pub(crate) scaled_embeddings: bool,
    /// Norms multiply by `1 + w` of a checkpoint's `w`. A GGUF file holds the sum.
    pub(crate) norms_from_one: bool,
    /// One block; gives [T, E].
    pub(crate) block: fn(&mut Builder, &TextConfig, Layer) -> Result<ValueId, ModelError>,
    /// The name behind `blk.N.` in a GGUF file of what stands behind `layers.N.` in a checkpoint, without `weight` or
    /// `bias`, and what becomes of it.
    pub(crate) rename: fn(&TextConfig, &str) -> Option<(&'static str, Transform)>,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkNorms {
    None,
    /// Each head by itself, all with the same weights.
    Heads,
    /// All heads together.
    Whole,
}

/// One block's place: its number, its input [T, E], the positions `[T]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    number: usize,
    x: ValueId,
    positions: ValueId,
}

impl Decoder {
    /// Whether the picture, and what stands before it, see one another. Such a decoder takes one picture.
    pub fn has_prefix(&self) -> bool {
        self.mask == Mask::Prefix
    }
}

impl PartialEq for Decoder {
    fn eq(&self, other: &Self) -> bool {
        self.arch == other.arch
    }
}

/// All decoders.
pub const DECODERS: &[&Decoder] = &[
    &llama::LLAMA,
    &phi2::PHI2,
    &qwen2::QWEN2,
    &qwen2moe::QWEN2MOE,
    &qwen2vl::QWEN2VL,
    &qwen3::QWEN3,
    &qwen3moe::QWEN3MOE,
    &gemma::GEMMA,
    &moondream::MOONDREAM,
    &olmoe::OLMOE,
];

/// The decoder of that architecture in a GGUF file.
pub(crate) fn by_arch(arch: &str) -> Option<&'static Decoder> {
    DECODERS.iter().copied().find(|d| d.arch == arch)
}

/// Reads the decoder's part of a Hugging Face `config.json`, whose own `model_type` names the decoder.
pub(crate) fn from_hf(config: &HfConfig<'_>) -> Result<TextConfig, ModelError> {
    from_hf_as(config, config.str("model_type").unwrap_or(llama::LLAMA.hf[0]))
}

/// The same where the `model_type` of the decoder stands elsewhere.
pub(crate) fn from_hf_as(config: &HfConfig<'_>, model_type: &str) -> Result<TextConfig, ModelError> {
    let decoder = DECODERS.iter().find(|d| d.hf.contains(&model_type)).ok_or_else(|| {
        let known: Vec<_> = DECODERS.iter().flat_map(|d| d.hf).copied().collect();
        let what = format!("the decoder {model_type:?} is not supported; known are {}", known.join(", "));
        config.bad("model_type", &what)
    })?;
    (decoder.read_hf)(config)
}

/// The text program. Inputs: `ids` `[T]`, `positions` `[T]` or, where they have axes, `[T, 3]`, `rows` `[R]` (whose logits
/// are wanted), and with `visual` also `visual` [V, E]. Outputs: `logits` [R, vocabulary], `embedding` [R, E], which the head reads, and the taps `hidden.0` (embeddings) to `hidden.L`, [T, E] each.
pub(crate) fn text(config: &TextConfig, visual: bool) -> Result<Program, ModelError> {
    let decoder = config.decoder;
    let mut b = Builder::new(Stage::Text);
    let ids = b.input_i32("ids", Sym::Tokens);
    let positions = match config.rope_sections {
        None => b.input_i32("positions", Sym::Tokens),
        Some(sections) => b.input_i32_matrix("positions", Sym::Tokens, sections.len()),
    };
    let rows = b.input_i32("rows", Sym::Outputs);
    let visual = visual.then(|| b.input_f32("visual", [Sym::Visual.into(), Dim::from(config.width)]));

    let table_shape = [config.vocabulary, config.width];
    let table = b.weight("token_embd.weight", table_shape, Role::TokenEmbedding);
    let mut x = b.embed(table, ids, visual)?; // [T, E]
    if decoder.scaled_embeddings {
        x = b.scale(x, (config.width as f32).sqrt())?;
    }
    b.output("hidden.0", x);
    for number in 0..config.layers {
        x = (decoder.block)(&mut b, config, Layer { number, x, positions })?;
        b.output(&format!("hidden.{}", number + 1), x);
    }
    let x = b.gather_rows(x, rows)?; // [R, E]
    let x = norm(&mut b, config, "output_norm", x)?;
    b.output("embedding", x);
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

/// The norm of queries or keys, of so many heads.
fn qk_norm(
    b: &mut Builder,
    c: &TextConfig,
    name: &str,
    heads: usize,
    x: ValueId,
) -> Result<ValueId, ModelError> {
    let width = match c.decoder.qk_norms {
        QkNorms::None => return Ok(x),
        QkNorms::Heads => c.head_dim,
        QkNorms::Whole => heads * c.head_dim,
    };
    let weight = b.weight(&format!("{name}.weight"), [width], Role::Norm);
    Ok(b.norm(x, c.decoder.norm, weight, None, c.norm_eps)?)
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
    let axes = c.rope_sections.map(|sections| Axes {
        count: sections.len(),
        sections: sections.to_vec(),
        restart: false,
    });
    let rope = Rope {
        head_dim: c.head_dim,
        rotary: c.rotary,
        base: c.rope_base,
        style: c.decoder.rope,
        factors,
        axes,
    };
    let q = b.rope(q, positions, rope.clone())?;
    let k = b.rope(k, positions, rope)?;
    let attention = Attention {
        heads: c.heads,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        scale: (c.head_dim as f32).powf(-0.5),
        mask: c.decoder.mask,
        cache: None,
    };
    Ok(b.attention([q, k, v], attention, true)?)
}

/// The name in a GGUF file of a decoder weight of a Hugging Face checkpoint, wherever the decoder stands in it.
/// A name that is a GGUF name already stays.
pub(crate) fn rename(config: &TextConfig, name: &str) -> Option<Rename> {
    const PLACES: [&str; 6] = [
        "model.language_model.",
        "language_model.model.",
        "language_model.",
        "model.text_model.",
        "model.",
        "transformer.",
    ];
    let inner = PLACES.iter().find_map(|place| name.strip_prefix(place)).unwrap_or(name);
    let (stem, kind) = inner.rsplit_once('.')?;
    // A bias that the decoder does not have is found later, by its place in the model.
    let known = ["weight", "bias"].contains(&kind);
    let norm = if config.decoder.norms_from_one { Transform::AddOne } else { Transform::None };
    let (to, transform) = match stem {
        _ if !known => return None,
        "embed_tokens" | "embd.wte" => ("token_embd".to_owned(), Transform::None),
        "norm" | "final_layernorm" | "lm_head.ln" => ("output_norm".to_owned(), norm),
        "lm_head" | "lm_head.linear" => ("output".to_owned(), Transform::None),
        _ => {
            let (layer, part) =
                stem.strip_prefix("layers.").or_else(|| stem.strip_prefix("h."))?.split_once('.')?;
            layer.parse::<usize>().ok()?;
            let (to, transform) = (config.decoder.rename)(config, part)?;
            let transform = if to.ends_with("_norm") { norm } else { transform };
            (format!("blk.{layer}.{to}"), transform)
        }
    };
    Some(Rename { to: format!("{to}.{kind}"), transform })
}
