//! The vision transformer of CLIP and SigLIP: equal patches, learned positions, pre-norm blocks.
//! Weights by the names of GGUF mmproj files. Source: transformers `modeling_clip.py`, `modeling_siglip.py`; its SigLIP
//! inside Idefics3 and SmolVLM (whose position ids for a whole square are those of a plain grid), `modeling_idefics3.py`.

use super::{Extra, Features, Feed, KeptRows, ReadTower, Tower, TowerConfig};
use crate::{
    GgufPart, HfConfig, ModelError, config, gguf, hf,
    weights::{Rename, Transform},
};
use margay_file::{TensorInfo, gguf::Metadata};
use margay_graph::{
    Activation, Attention, Bindings, Builder, Dim, Mask, NormKind, Program, Role, Stage, Sym, ValueId,
};
use margay_prompt::image::{ImageSpec, Pixels};
use std::{any::Any, borrow::Cow, sync::Arc};

pub(super) const VIT: Tower = Tower {
    id: "vit",
    hf: &[
        "clip_vision_model",
        "siglip_vision_model",
        "smolvlm_vision",
        "idefics3_vision",
        "smolvlm",
        "idefics3",
    ],
    gguf: &[],
    read_hf,
    read_gguf,
};

/// Our own key: the tower's activation by name. The common flags tell only three apart.
const ACTIVATION_KEY: &str = "margay.vision.activation";

/// A vision transformer over equal square patches.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct VitConfig {
    /// Side of the input, pixels.
    pub(super) image: usize,
    /// Side of a patch, pixels.
    pub(super) patch: usize,
    /// C
    pub(super) width: usize,
    /// F
    pub(super) ffn: usize,
    /// H
    pub(super) heads: usize,
    /// Blocks that run: all up to the hidden state that is selected.
    pub(super) layers: usize,
    /// Epsilon of the layer norms.
    norm_eps: f32,
    /// Activation of the FFN.
    activation: Activation,
    /// A class token stands before the patches (and is dropped at the end).
    class_token: bool,
    /// A layer norm stands before the blocks.
    pre_norm: bool,
    /// A layer norm stands behind them.
    post_norm: bool,
    /// The patch embedding has a bias.
    pub(super) patch_bias: bool,
}

/// transformers' `CLIPVisionConfig`: a configuration leaves out fields that equal it.
const CLIP: VitConfig = VitConfig {
    image: 224,
    patch: 32,
    width: 768,
    ffn: 3072,
    heads: 12,
    layers: 12,
    norm_eps: 1e-5,
    activation: Activation::QuickGelu,
    class_token: true,
    pre_norm: true,
    post_norm: true,
    patch_bias: false,
};

/// transformers' `SiglipVisionConfig`.
const SIGLIP: VitConfig = VitConfig {
    patch: 16,
    norm_eps: 1e-6,
    activation: Activation::GeluTanh,
    class_token: false,
    pre_norm: false,
    patch_bias: true,
    ..CLIP
};

/// transformers' `Idefics3VisionConfig` and `SmolVLMVisionConfig`.
const IDEFICS3: VitConfig = VitConfig { patch: 32, width: 1152, heads: 16, ..SIGLIP };

/// The numbers that a `model_type` leaves out.
fn defaults(model_type: &str) -> VitConfig {
    let known = [("siglip_vision_model", SIGLIP), ("clip_vision_model", CLIP)];
    let found = known.into_iter().find(|(name, _)| *name == model_type);
    found.map_or(IDEFICS3, |(_, vit)| vit)
}

fn read_hf(config: &HfConfig<'_>, features: Features) -> ReadTower {
    Ok(Arc::new(hf_config(config, features)?))
}

pub(super) fn hf_config(config: &HfConfig<'_>, features: Features) -> Result<VitConfig, ModelError> {
    let own = defaults(config.str("model_type").unwrap_or("clip_vision_model"));
    let stored = config.usize("num_hidden_layers", own.layers)?;
    let vit = VitConfig {
        image: config.usize("image_size", own.image)?,
        patch: config.usize("patch_size", own.patch)?,
        width: config.usize("hidden_size", own.width)?,
        ffn: config.usize("intermediate_size", own.ffn)?,
        heads: config.usize("num_attention_heads", own.heads)?,
        layers: match features {
            Features::Final | Features::FinalBeforeSpare => stored,
            Features::Hidden(select) => selected_layers(stored, select).ok_or_else(|| {
                config.bad("vision feature layer", &format!("{select} of {stored} layers does not exist"))
            })?,
        },
        norm_eps: config.f32("layer_norm_eps", own.norm_eps)?,
        activation: config
            .str("hidden_act")
            .map_or(Ok(own.activation), |name| hf::activation(config, name))?,
        post_norm: features.are_final(),
        ..own
    };
    vit.checked(config.place())
}

fn read_gguf(part: &GgufPart<'_>, features: Features) -> ReadTower {
    let image = part.metadata.usize("clip.vision.image_size")?;
    Ok(Arc::new(gguf_config(part, features, image)?))
}

/// The numbers of a file, for pictures of `image` pixels a side.
pub(super) fn gguf_config(
    part: &GgufPart<'_>,
    features: Features,
    image: usize,
) -> Result<VitConfig, ModelError> {
    let GgufPart { metadata: meta, tensors } = part;
    let key = |name: &str| format!("clip.vision.{name}");
    let stored = meta.usize(&key("block_count"))?;
    let vit = VitConfig {
        image,
        patch: meta.usize(&key("patch_size"))?,
        width: meta.usize(&key("embedding_length"))?,
        ffn: meta.usize(&key("feed_forward_length"))?,
        heads: meta.usize(&key("attention.head_count"))?,
        layers: layers_that_run(meta, stored, features)?,
        norm_eps: meta.f32(&key("attention.layer_norm_epsilon"))?,
        activation: activation(meta)?,
        // No key tells the towers apart; what a file holds does.
        class_token: tensors.info("v.class_embd").is_some(),
        pre_norm: tensors.info("v.pre_ln.weight").is_some(),
        // Files hold the final norm also where the features are taken before it.
        post_norm: features.are_final() && tensors.info("v.post_ln.weight").is_some(),
        patch_bias: tensors.info("v.patch_embd.bias").is_some(),
    };
    vit.checked("GGUF metadata")
}

/// How many of `stored` blocks run for hidden state `select`, where 0 is the state before the first block.
fn selected_layers(stored: usize, select: i64) -> Option<usize> {
    let count = if select < 0 { stored as i64 + 1 + select } else { select };
    usize::try_from(count).ok().filter(|&n| n >= 1 && n <= stored)
}

/// Blocks that run, of those stored. `feature_layer` says it where it is written. Without it, a hidden state is meant
/// that files of today's public converter (which set `general.type`) count from all blocks, while the first converters
/// dropped the blocks behind it and mean all that are left.
fn layers_that_run(meta: &Metadata, stored: usize, features: Features) -> Result<usize, ModelError> {
    let key = "clip.vision.feature_layer";
    if let Some(layers) = meta.opt_i32s(key)? {
        let &[select] = layers.as_ref() else {
            let what = format!("{} feature layers are not supported, expected one", layers.len());
            return Err(gguf::field(key, what));
        };
        return selected_layers(stored, select.into()).ok_or_else(|| {
            gguf::field(key, format!("hidden state {select} of {stored} blocks does not exist"))
        });
    }
    let today = meta.opt_str("general.type")? == Some("mmproj");
    match features {
        Features::Hidden(select) if today => selected_layers(stored, select).ok_or_else(|| {
            gguf::field("clip.vision.block_count", format!("{stored} blocks have no hidden state {select}"))
        }),
        Features::FinalBeforeSpare if !today => selected_layers(stored, -2)
            .ok_or_else(|| gguf::field("clip.vision.block_count", format!("{stored} blocks are too few"))),
        _ => Ok(stored),
    }
}

/// Our own key says it exactly; else `use_gelu` is ggml's, the tanh form, and neither flag means CLIP's quick GELU.
pub(super) fn activation(meta: &Metadata) -> Result<Activation, ModelError> {
    if let Some(name) = meta.opt_str(ACTIVATION_KEY)? {
        let known = Activation::ALL.into_iter().find(|act| act.name() == name);
        return known.ok_or_else(|| gguf::field(ACTIVATION_KEY, format!("{name:?} is not known")));
    }
    let flag = |key: &str| meta.opt_bool(key).map(|f| f.unwrap_or(false));
    Ok(match (flag("clip.use_gelu")?, flag("clip.use_silu")?) {
        (true, _) => Activation::GeluTanh,
        (_, true) => Activation::Silu,
        _ => Activation::QuickGelu,
    })
}

impl VitConfig {
    /// Checks bounds and divisibility.
    fn checked(self, place: &str) -> Result<Self, ModelError> {
        for (field, value, most) in [
            ("image size", self.image, config::bound::IMAGE_SIDE),
            ("patch size", self.patch, self.image),
            ("vision width", self.width, config::bound::WIDTH),
            ("vision feed-forward width", self.ffn, config::bound::WIDTH),
            ("vision heads", self.heads, self.width),
            ("vision layers", self.layers, config::bound::LAYERS),
        ] {
            config::within(place, field, value, most)?;
        }
        if !self.width.is_multiple_of(self.heads) {
            let what = format!("{} heads do not divide {} columns", self.heads, self.width);
            return Err(ModelError::Field { place: place.into(), field: "vision heads".into(), what });
        }
        Ok(self)
    }
}

impl TowerConfig for VitConfig {
    fn tower(&self) -> &'static Tower {
        &VIT
    }

    fn side(&self) -> usize {
        self.image
    }

    fn grid(&self) -> usize {
        self.image / self.patch
    }

    fn width(&self) -> usize {
        self.width
    }

    fn class_token(&self) -> bool {
        self.class_token
    }

    fn describe(&self) -> String {
        format!(
            "{0} x {0} pixels in patches of {1}, {2} layers of width {3}, ffn {4}, {5} heads",
            self.image, self.patch, self.layers, self.width, self.ffn, self.heads
        )
    }

    /// CLIP crops, SigLIP squashes.
    fn image(&self) -> ImageSpec {
        let side = u32::try_from(self.image).unwrap_or(u32::MAX);
        if self.class_token { ImageSpec::clip_crop(side) } else { ImageSpec::siglip_squash(side) }
    }

    fn encode(&self) -> Result<Program, ModelError> {
        encode(self, Extra::default())
    }

    fn heads(&self) -> Option<usize> {
        Some(self.heads)
    }

    fn encode_with(&self, extra: Extra) -> Result<Option<Program>, ModelError> {
        encode(self, extra).map(Some)
    }

    fn feed_some<'p>(&self, tile: &'p Pixels, patches: &[usize]) -> Option<Feed<'p>> {
        let grid = self.grid();
        let places = patches.iter().map(|at| (at / grid, at % grid));
        let class = usize::from(self.class_token);
        // A table of positions is far smaller than what an i32 counts.
        let rows = (0..class).chain(patches.iter().map(|at| class + at)).map(|row| row as i32);
        Some(Feed {
            pixels: Cow::Owned(tile.squares(self.patch, places)),
            bindings: Bindings::new().with(Sym::Patches, patches.len()),
            integers: vec![("positions", rows.collect())],
            kept: None,
        })
    }

    fn feed_changed<'p>(&self, tile: &'p Pixels, patches: &[usize], kept: &'p KeptRows) -> Option<Feed<'p>> {
        let class = usize::from(self.class_token);
        let rows = class + self.grid().pow(2);
        let mut sources: Vec<i32> = (0..rows).map(|row| row as i32).collect();
        // The class token looks at the patches anew whichever changed.
        for (new, row) in (0..class).chain(patches.iter().map(|at| class + at)).enumerate() {
            *sources.get_mut(row)? = (rows + new) as i32;
        }
        let mut feed = self.feed_some(tile, patches)?;
        feed.integers.push(("sources", sources));
        Some(Feed { kept: Some(kept), ..feed })
    }

    fn kept_rows(&self) -> Option<KeptRows> {
        let rows = usize::from(self.class_token) + self.grid().pow(2);
        let names = (0..self.layers).flat_map(|layer| ["keys", "values"].map(|kind| kept_name(kind, layer)));
        Some(KeptRows { rows: names.map(|name| (name, vec![0.0; rows * self.width])).collect() })
    }

    fn rename(&self, inner: &str) -> Option<Rename> {
        rename(inner)
    }

    /// Blocks behind the features, the norm and the pooling head behind them, and a table that follows from the sizes.
    fn idles(&self, name: &str) -> bool {
        let block = ["v.blk.", "encoder.layers."].iter().find_map(|mark| name.split_once(mark));
        let block: Option<usize> = block.and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
        let norm = !self.post_norm && ["post_ln", "post_layernorm"].iter().any(|part| name.contains(part));
        let inert = ["vision_model.head.", "vision_tower.head.", "position_ids"];
        block.is_some_and(|block| block >= self.layers)
            || norm
            || inert.iter().any(|part| name.contains(part))
    }

    /// Early public converters wrote fc1 as `ffn_down` and fc2 as `ffn_up`; the shapes tell.
    /// Source: llama.cpp `clip.cpp`, the swap on loading.
    fn exchanged(&self, info: &dyn Fn(&str) -> Option<TensorInfo>) -> Vec<(String, String)> {
        exchanged(self.layers, self.width, self.ffn, info)
    }

    /// Some towers hold the queries, keys and values of a block as one matrix, in that order.
    fn parts(&self) -> Vec<(String, Vec<(String, Transform)>)> {
        // A checkpoint may hold more blocks than run.
        super::fused_qkv(config::bound::LAYERS, self.width)
    }

    fn ffn(&self) -> Option<usize> {
        Some(self.ffn)
    }

    fn with_ffn(&self, ffn: usize) -> Option<Arc<dyn TowerConfig>> {
        Some(Arc::new(VitConfig { ffn, ..self.clone() }))
    }

    fn put(&self, meta: &mut Metadata) {
        put_activation(self.activation, meta);
        for (name, value) in [
            ("image_size", self.image),
            ("patch_size", self.patch),
            ("embedding_length", self.width),
            ("feed_forward_length", self.ffn),
            ("block_count", self.layers),
            ("attention.head_count", self.heads),
        ] {
            meta.insert(&format!("clip.vision.{name}"), value as u32);
        }
        meta.insert("clip.vision.attention.layer_norm_epsilon", self.norm_eps);
        // Only the blocks that run are stored; said outright, since readers differ on what silence means.
        meta.insert("clip.vision.feature_layer", vec![self.layers as i32]);
    }

    fn same(&self, other: &dyn TowerConfig) -> bool {
        (other as &dyn Any).downcast_ref() == Some(self)
    }
}

/// See [`TowerConfig::exchanged`].
pub(super) fn exchanged(
    layers: usize,
    width: usize,
    ffn: usize,
    info: &dyn Fn(&str) -> Option<TensorInfo>,
) -> Vec<(String, String)> {
    let tangled = [ffn, width];
    let is_tangled =
        ffn != width && info("v.blk.0.ffn_down.weight").is_some_and(|i| i.shape.dims() == tangled);
    let layers = if is_tangled { 0..layers } else { 0..0 };
    let name = |layer: usize, part: &str, kind: &str| format!("v.blk.{layer}.{part}.{kind}");
    layers
        .flat_map(|layer| {
            ["weight", "bias"].map(|kind| (name(layer, "ffn_up", kind), name(layer, "ffn_down", kind)))
        })
        .collect()
}

/// Writes what [`activation`] reads.
pub(super) fn put_activation(activation: Activation, meta: &mut Metadata) {
    // The exact GELU has no flag; the tanh form is what comes nearest elsewhere.
    let gelu = matches!(activation, Activation::GeluTanh | Activation::GeluErf);
    meta.insert("clip.use_gelu", gelu);
    meta.insert(ACTIVATION_KEY, activation.name());
    meta.insert("clip.use_silu", activation == Activation::Silu);
}

/// The patch rows of the selected hidden state, without the class token.
fn encode(c: &VitConfig, extra: Extra) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Encode);
    let (patches, square) = (c.grid() * c.grid(), 3 * c.patch * c.patch);
    let some = extra.some_patches || extra.changed_patches;
    let count: Dim = if some { Sym::Patches.into() } else { patches.into() };
    let x = if some {
        b.input_f32("pixels", [count, square.into()])
    } else {
        let pixels = b.input_f32("pixels", [3, c.image, c.image].map(Dim::from));
        b.patchify(pixels, c.patch)? // [P, 3*patch*patch]
    };
    let first_patch = usize::from(c.class_token);
    let places = some.then(|| b.input_i32("positions", count.plus(first_patch)));
    let kept = extra.changed_patches.then(|| {
        let rows = first_patch + patches;
        Kept { rows, sources: b.input_i32("sources", rows) }
    });
    let embed = b.weight("v.patch_embd.weight", [c.width, square], Role::PatchEmbedding);
    let bias = c.patch_bias.then(|| b.weight("v.patch_embd.bias", [c.width], Role::Bias));
    let mut x = b.linear(x, embed, bias)?; // [P, C]

    if c.class_token {
        let class = b.weight("v.class_embd", [c.width], Role::ClassEmbedding);
        let class = b.param(class)?;
        x = b.concat_rows(class, x)?; // [1+P, C]
    }
    let positions =
        b.weight("v.position_embd.weight", [first_patch + patches, c.width], Role::PositionEmbedding);
    let mut positions = b.param(positions)?;
    if let Some(places) = places {
        positions = b.gather_rows(positions, places)?;
    }
    x = b.add(x, positions)?;
    let (mut x, last) = blocks(&mut b, c, x, kept.as_ref())?;
    if c.class_token {
        x = b.slice_rows(x, first_patch, count)?; // [P, C]
    }
    b.output("encode", x);
    if let Some([queries, keys]) = last.filter(|_| extra.attention) {
        b.output("queries", queries);
        b.output("keys", keys);
    }
    Ok(b.finish()?)
}

/// Rows that are not computed, but kept.
pub(super) struct Kept {
    /// All rows of a tile.
    rows: usize,
    /// See [`Extra::changed_patches`].
    sources: ValueId,
}

impl Kept {
    /// All rows, [T, C], of which those that are `new` [N, C] are outputs, too.
    fn all(&self, b: &mut Builder, name: &str, new: ValueId) -> Result<ValueId, ModelError> {
        let width = b.dims(new)[1];
        b.output(name, new);
        let kept = b.input_f32(name, [self.rows.into(), width]);
        let both = b.concat_rows(kept, new)?;
        Ok(b.gather_rows(both, self.sources)?)
    }
}

fn kept_name(kind: &str, layer: usize) -> String {
    format!("{kind}.{layer}")
}

/// All blocks and the norms around them; and the queries and keys of the last block.
pub(super) fn blocks(
    b: &mut Builder,
    c: &VitConfig,
    mut x: ValueId,
    kept: Option<&Kept>,
) -> Result<(ValueId, Option<[ValueId; 2]>), ModelError> {
    let mut last = None;
    if c.pre_norm {
        x = norm(b, c, "v.pre_ln", x)?;
    }
    for layer in 0..c.layers {
        let queries_and_keys;
        (x, queries_and_keys) = block(b, c, layer, x, kept)?;
        last = Some(queries_and_keys);
    }
    if c.post_norm {
        x = norm(b, c, "v.post_ln", x)?;
    }
    Ok((x, last))
}

fn block(
    b: &mut Builder,
    c: &VitConfig,
    layer: usize,
    x: ValueId,
    kept: Option<&Kept>,
) -> Result<(ValueId, [ValueId; 2]), ModelError> {
    let at = format!("v.blk.{layer}");
    let h = norm(b, c, &format!("{at}.ln1"), x)?;
    let q = linear(b, &format!("{at}.attn_q"), h, c.width, Role::AttentionQ)?;
    let k = linear(b, &format!("{at}.attn_k"), h, c.width, Role::AttentionK)?;
    let v = linear(b, &format!("{at}.attn_v"), h, c.width, Role::AttentionV)?;
    let (k, v) = match kept {
        Some(kept) => {
            (kept.all(b, &kept_name("keys", layer), k)?, kept.all(b, &kept_name("values", layer), v)?)
        }
        None => (k, v),
    };
    let head_dim = c.width / c.heads;
    let scale = (head_dim as f32).powf(-0.5);
    let attention =
        Attention { heads: c.heads, kv_heads: c.heads, head_dim, scale, mask: Mask::Full, cache: None };
    let h = b.attention([q, k, v], attention, false)?;
    let h = linear(b, &format!("{at}.attn_out"), h, c.width, Role::AttentionOut)?;
    let x = b.add(x, h)?;

    let h = norm(b, c, &format!("{at}.ln2"), x)?;
    let h = linear(b, &format!("{at}.ffn_up"), h, c.ffn, Role::FfnUp)?;
    let h = b.activation(h, c.activation)?;
    let h = linear(b, &format!("{at}.ffn_down"), h, c.width, Role::FfnDown)?;
    Ok((b.add(x, h)?, [q, k]))
}

fn norm(b: &mut Builder, c: &VitConfig, name: &str, x: ValueId) -> Result<ValueId, ModelError> {
    let weight = b.weight(&format!("{name}.weight"), [c.width], Role::Norm);
    let bias = b.weight(&format!("{name}.bias"), [c.width], Role::Bias);
    Ok(b.norm(x, NormKind::Layer, weight, Some(bias), c.norm_eps)?)
}

/// A linear layer with bias, `{name}.weight` and `{name}.bias`.
pub(crate) fn linear(
    b: &mut Builder,
    name: &str,
    x: ValueId,
    out: usize,
    role: Role,
) -> Result<ValueId, ModelError> {
    let width = b.dims(x)[1].fixed().expect("invariant: columns are numbers");
    let weight = b.weight(&format!("{name}.weight"), [out, width], role);
    let bias = b.weight(&format!("{name}.bias"), [out], Role::Bias);
    Ok(b.linear(x, weight, Some(bias))?)
}

/// The name in a GGUF file of a tower's weight, given what stands behind the tower's place in a checkpoint.
fn rename(inner: &str) -> Option<Rename> {
    let to = match inner {
        "embeddings.class_embedding" => "v.class_embd".to_owned(),
        "embeddings.patch_embedding.weight" => "v.patch_embd.weight".to_owned(),
        "embeddings.patch_embedding.bias" => "v.patch_embd.bias".to_owned(),
        "embeddings.position_embedding.weight" => "v.position_embd.weight".to_owned(),
        _ => {
            let (stem, kind) =
                inner.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
            match stem {
                // The checkpoint's own spelling.
                "pre_layrnorm" => format!("v.pre_ln.{kind}"),
                "post_layernorm" => format!("v.post_ln.{kind}"),
                _ => {
                    let (layer, part) = stem.strip_prefix("encoder.layers.")?.split_once('.')?;
                    layer.parse::<usize>().ok()?;
                    let part = match part {
                        "layer_norm1" => "ln1",
                        "layer_norm2" => "ln2",
                        "self_attn.q_proj" => "attn_q",
                        "self_attn.k_proj" => "attn_k",
                        "self_attn.v_proj" => "attn_v",
                        "self_attn.out_proj" => "attn_out",
                        "mlp.fc1" => "ffn_up",
                        "mlp.fc2" => "ffn_down",
                        _ => return None,
                    };
                    format!("v.blk.{layer}.{part}.{kind}")
                }
            }
        }
    };
    Some(Rename { to, transform: Transform::None })
}
