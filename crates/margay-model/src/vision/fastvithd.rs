//! FastViTHD, the tower of FastVLM: convolutions down to a small grid, then attention over it. Every convolution runs in
//! its merged form, whatever form a checkpoint holds (see [`crate::branches`]).
//!
//! Weights in a GGUF file: `v.stem.N` (three convolutions); of each stage S from 0 on `v.stage.S.down_conv` and
//! `v.stage.S.down_proj` (all but the first), `v.stage.S.pos_conv` (where it has attention), and of each of its blocks B
//! `v.stage.S.blk.B.` and `mix_conv`, or `ln1`, `attn_qkv` and `attn_out`; then `ffn_conv`, `ffn_up`, `ffn_down`; at the
//! end `v.exp_conv`, `v.se.reduce` and `v.se.expand`. Batch norms and layer scales are parts of the weights before them.
//!
//! Source: apple/ml-fastvlm `mobileclip/mci.py`; its names, and those of timm's `fastvit.py` that transformers'
//! `fast_vlm` checkpoints have.

use super::{Features, ReadTower, Tower, TowerConfig, vit::linear};
use crate::{
    Branch, BranchPart, GgufPart, HfConfig, ModelError, config, gguf,
    weights::{Rename, Transform},
};
use margay_file::gguf::Metadata;
use margay_graph::{
    Activation, Attention, Builder, Conv2d, Dim, Mask, NormKind, Program, Role, Stage as Part, ValueId,
};
use margay_prompt::image::ImageSpec;
use std::{any::Any, sync::Arc};

pub(super) const FASTVITHD: Tower =
    Tower { id: "fastvithd", hf: &["fastvithd", "timm_wrapper"], gguf: &[], read_hf, read_gguf };

/// Our own keys: numbers that the common ones have no place for, one a stage.
const LAYERS_KEY: &str = "margay.vision.stage.block_count";
const WIDTHS_KEY: &str = "margay.vision.stage.embedding_length";
const FFN_KEY: &str = "margay.vision.stage.feed_forward_length";
const ATTENTION_KEY: &str = "margay.vision.stage.attention";

/// Columns of a head.
const HEAD_DIM: usize = 32;
/// Sides of the kernels: stem and mixer; downsampling, positions and feed-forward.
const SMALL: usize = 3;
const LARGE: usize = 7;
/// The stem halves a picture twice, each stage but the first halves the map.
const STEM_STRIDE: usize = 4;
/// Channels of the last map over those of its gate's narrow layer.
const SQUEEZE: usize = 16;
const NORM_EPS: f32 = 1e-5;
/// More stages than any picture has halves.
const MOST_STAGES: usize = 8;

/// Blocks of one width over a map of one size.
#[derive(Clone, Debug, PartialEq)]
struct Stage {
    blocks: usize,
    /// C
    width: usize,
    /// F
    ffn: usize,
    /// Attention, with positions before it; else a depthwise convolution mixes pixels.
    attention: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct FastVitHd {
    /// Side of the input, pixels.
    image: usize,
    stages: Vec<Stage>,
    /// Columns of the features.
    width: usize,
}

/// The published tower. Source: apple/ml-fastvlm `mci.py`, `fastvithd`; timm `fastvit_mci3`.
const LAYERS: [usize; 5] = [2, 12, 24, 4, 2];
const WIDTHS: [usize; 5] = [96, 192, 384, 768, 1536];

/// Fields as mlx-vlm writes them, or timm's arguments.
fn read_hf(config: &HfConfig<'_>, _: Features) -> ReadTower {
    if let Some(other) = config.str("architecture").filter(|name| *name != "fastvit_mci3") {
        return Err(config.bad("architecture", &format!("{other:?} is not supported, only fastvit_mci3")));
    }
    let args = config.object("model_args").unwrap_or_else(|| config.clone());
    let list = |field: &str, own: &[f64]| -> Result<Vec<f64>, ModelError> {
        let Some(value) = args.get(field) else { return Ok(own.to_vec()) };
        let numbers = value.as_array().and_then(|list| list.iter().map(|n| n.as_f64()).collect());
        numbers.ok_or_else(|| args.bad(field, "is no list of numbers"))
    };
    let sizes = |own: [usize; 5]| own.map(|n| n as f64);
    let layers = list("layers", &sizes(LAYERS))?;
    let widths = list("embed_dims", &sizes(WIDTHS))?;
    let ratios = list("mlp_ratios", &[4.0; 5])?;
    for (field, numbers) in [("embed_dims", &widths), ("mlp_ratios", &ratios)] {
        if numbers.len() != layers.len() {
            let what = format!("{} numbers for {} stages", numbers.len(), layers.len());
            return Err(args.bad(field, &what));
        }
    }
    let attention = |stage: usize| match args.get("token_mixers") {
        None => Ok(stage >= 3),
        Some(kinds) => match kinds[stage].as_str() {
            Some("repmixer") => Ok(false),
            Some("attention") => Ok(true),
            _ => Err(args.bad("token_mixers", "must be repmixer or attention for each stage")),
        },
    };
    // Kernels and steps of which nothing else was ever published.
    for (field, own) in [("down_patch_size", LARGE), ("down_stride", 2), ("repmixer_kernel_size", SMALL)] {
        if args.usize(field, own)? != own {
            return Err(args.bad(field, &format!("is not supported, only {own}")));
        }
    }
    let whole = |number: f64| if number.fract() == 0.0 && number >= 0.0 { number as usize } else { 0 };
    let stages = (0..layers.len()).map(|i| {
        let (width, attention) = (whole(widths[i]), attention(i)?);
        let positions =
            args.get("pos_embs_shapes").map(|shapes| shapes[i] == serde_json::json!([LARGE, LARGE]));
        if positions.is_some_and(|there| there != attention) {
            return Err(args.bad("pos_embs_shapes", "must be [7, 7] where there is attention, else null"));
        }
        Ok(Stage { blocks: whole(layers[i]), width, ffn: (widths[i] * ratios[i]) as usize, attention })
    });
    let stages = stages.collect::<Result<Vec<_>, ModelError>>()?;
    let last = stages.last().map_or(0, |stage| stage.width);
    let width = (last as f32 * args.f32("cls_ratio", 2.0)?) as usize;
    let tower = FastVitHd { image: config.usize("image_size", 1024)?, stages, width };
    Ok(Arc::new(tower.checked(config.place())?))
}

fn read_gguf(part: &GgufPart<'_>, _: Features) -> ReadTower {
    let meta = part.metadata;
    let numbers = |key: &str| -> Result<Vec<usize>, ModelError> {
        let list = meta.opt_i32s(key)?.ok_or_else(|| gguf::field(key, "is missing".into()))?;
        let list = list.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<Vec<_>>>();
        list.ok_or_else(|| gguf::field(key, "has a negative number".into()))
    };
    let layers = numbers(LAYERS_KEY)?;
    let [widths, ffn, attention] = [numbers(WIDTHS_KEY)?, numbers(FFN_KEY)?, numbers(ATTENTION_KEY)?];
    for (key, list) in [(WIDTHS_KEY, &widths), (FFN_KEY, &ffn), (ATTENTION_KEY, &attention)] {
        if list.len() != layers.len() {
            return Err(gguf::field(key, format!("{} numbers for {} stages", list.len(), layers.len())));
        }
    }
    let stage =
        |i: usize| Stage { blocks: layers[i], width: widths[i], ffn: ffn[i], attention: attention[i] != 0 };
    let tower = FastVitHd {
        image: meta.usize("clip.vision.image_size")?,
        stages: (0..layers.len()).map(stage).collect(),
        width: meta.usize("clip.vision.embedding_length")?,
    };
    Ok(Arc::new(tower.checked("GGUF metadata")?))
}

impl FastVitHd {
    /// Pixels a feature's side stands for.
    fn stride(&self) -> usize {
        STEM_STRIDE << self.stages.len().saturating_sub(1)
    }

    fn checked(self, place: &str) -> Result<Self, ModelError> {
        let bad = |field: &str, what: String| {
            Err(ModelError::Field { place: place.into(), field: field.into(), what })
        };
        config::within(place, "vision stages", self.stages.len(), MOST_STAGES)?;
        config::within(place, "image size", self.image, config::bound::IMAGE_SIDE)?;
        let mut before = None;
        for stage in &self.stages {
            for (field, value, most) in [
                ("vision layers", stage.blocks, config::bound::LAYERS),
                ("vision stage width", stage.width, config::bound::WIDTH),
                ("vision feed-forward width", stage.ffn, config::bound::WIDTH),
            ] {
                config::within(place, field, value, most)?;
            }
            if stage.attention && !stage.width.is_multiple_of(HEAD_DIM) {
                return bad("vision stage width", format!("{} is no whole heads of {HEAD_DIM}", stage.width));
            }
            if before.is_some_and(|before| !stage.width.is_multiple_of(before)) {
                return bad(
                    "vision stage width",
                    format!("{} is no multiple of the one before", stage.width),
                );
            }
            before = Some(stage.width);
        }
        config::within(place, "vision width", self.width, config::bound::WIDTH)?;
        let last = before.unwrap_or(1);
        if !self.width.is_multiple_of(last) || self.width < SQUEEZE {
            return bad(
                "vision width",
                format!("{} does not follow from a last stage of {last}", self.width),
            );
        }
        if !self.image.is_multiple_of(self.stride()) {
            return bad("image size", format!("{} is no multiple of {}", self.image, self.stride()));
        }
        Ok(self)
    }

    /// What stands at number `at` of a checkpoint's `network`.
    fn network(&self, at: usize) -> Option<(usize, &'static str)> {
        let stage = |(number, stage): (usize, &Stage)| {
            let down = (number > 0).then_some((number, "downsample"));
            let positions = stage.attention.then_some((number, "pos_emb"));
            down.into_iter().chain(positions).chain([(number, "blocks")]).collect::<Vec<_>>()
        };
        self.stages.iter().enumerate().flat_map(stage).nth(at)
    }
}

impl TowerConfig for FastVitHd {
    fn tower(&self) -> &'static Tower {
        &FASTVITHD
    }

    fn side(&self) -> usize {
        self.image
    }

    fn grid(&self) -> usize {
        self.image / self.stride()
    }

    fn width(&self) -> usize {
        self.width
    }

    fn describe(&self) -> String {
        let list = |number: fn(&Stage) -> usize| {
            self.stages.iter().map(|s| number(s).to_string()).collect::<Vec<_>>().join(", ")
        };
        format!(
            "{0} x {0} pixels to {1} x {1} features of width {2}; stages of {3} blocks, width {4}",
            self.image,
            self.grid(),
            self.width,
            list(|s| s.blocks),
            list(|s| s.width)
        )
    }

    /// Colours from 0 to 1. Source: apple/ml-fastvlm `mobileclip_encoder.py`.
    fn image(&self) -> ImageSpec {
        let side = u32::try_from(self.image).unwrap_or(u32::MAX);
        ImageSpec { mean: [0.0; 3], std: [1.0; 3], ..ImageSpec::clip_crop(side) }
    }

    fn encode(&self) -> Result<Program, ModelError> {
        encode(self)
    }

    fn rename(&self, inner: &str) -> Option<Rename> {
        let inner = inner.strip_prefix("vision_tower.").unwrap_or(inner);
        let inner = ["model.", "timm_model."].iter().find_map(|p| inner.strip_prefix(p)).unwrap_or(inner);
        let parts: Vec<&str> = inner.split('.').collect();
        match parts[..] {
            ["patch_embed" | "stem", n, ref rest @ ..] if n.parse::<usize>().is_ok() => {
                convolution(&format!("v.stem.{n}"), rest)
            }
            ["network", n, ref rest @ ..] => {
                let (stage, what) = self.network(n.parse().ok()?)?;
                let stage = stage.to_string();
                stage_part(&stage, &[&[what], rest].concat())
            }
            ["stages", stage, ref rest @ ..] if stage.parse::<usize>().is_ok() => stage_part(stage, rest),
            ["conv_exp" | "final_conv", "se", part, kind] => {
                let part = match part {
                    "reduce" | "fc1" => "reduce",
                    "expand" | "fc2" => "expand",
                    _ => return None,
                };
                plain(&format!("v.se.{part}"), kind)
            }
            ["conv_exp" | "final_conv", ref rest @ ..] => convolution("v.exp_conv", rest),
            _ => None,
        }
    }

    /// What classifies pictures, and counters of the training.
    fn idles(&self, name: &str) -> bool {
        name.contains(".head.") || name.ends_with(".num_batches_tracked")
    }

    fn put(&self, meta: &mut Metadata) {
        for (name, value) in [
            ("image_size", self.image),
            ("patch_size", self.stride()),
            ("embedding_length", self.width),
            ("block_count", self.stages.iter().map(|s| s.blocks).sum()),
        ] {
            meta.insert(&format!("clip.vision.{name}"), value as u32);
        }
        let mut list = |key: &str, number: fn(&Stage) -> usize| {
            meta.insert(key, self.stages.iter().map(|s| number(s) as i32).collect::<Vec<_>>());
        };
        list(LAYERS_KEY, |s| s.blocks);
        list(WIDTHS_KEY, |s| s.width);
        list(FFN_KEY, |s| s.ffn);
        list(ATTENTION_KEY, |s| s.attention.into());
    }

    fn same(&self, other: &dyn TowerConfig) -> bool {
        (other as &dyn Any).downcast_ref() == Some(self)
    }
}

/// A map of that side as rows.
#[derive(Clone, Copy)]
struct Map {
    x: ValueId,
    side: usize,
}

fn encode(c: &FastVitHd) -> Result<Program, ModelError> {
    let mut b = Builder::new(Part::Encode);
    let pixels = b.input_f32("pixels", [3, c.image, c.image].map(Dim::from));
    let x = b.patchify(pixels, 1)?; // [side*side, 3]
    let first = c.stages.first().map_or(1, |stage| stage.width);
    let map = conv(&mut b, "v.stem.0", Map { x, side: c.image }, first, 1, (SMALL, 2))?;
    let map = gelu(&mut b, map)?;
    let map = conv(&mut b, "v.stem.1", map, first, first, (SMALL, 2))?;
    let map = gelu(&mut b, map)?;
    let x = linear(&mut b, "v.stem.2", map.x, first, Role::PatchEmbedding)?;
    let mut map = gelu(&mut b, Map { x, ..map })?; // [side/4 * side/4, C]
    let mut before = first;
    for (number, stage) in c.stages.iter().enumerate() {
        let at = format!("v.stage.{number}");
        if number > 0 {
            map = conv(&mut b, &format!("{at}.down_conv"), map, stage.width, before, (LARGE, 2))?;
            map = gelu(&mut b, map)?;
            let x = linear(&mut b, &format!("{at}.down_proj"), map.x, stage.width, Role::PatchEmbedding)?;
            map = gelu(&mut b, Map { x, ..map })?;
        }
        if stage.attention {
            map = conv(&mut b, &format!("{at}.pos_conv"), map, stage.width, stage.width, (LARGE, 1))?;
        }
        for n in 0..stage.blocks {
            map = block(&mut b, stage, &format!("{at}.blk.{n}"), map)?;
        }
        before = stage.width;
    }
    let map = conv(&mut b, "v.exp_conv", map, c.width, before, (SMALL, 1))?;
    let gate = b.mean_rows(map.x)?; // [1, C]
    let gate = linear(&mut b, "v.se.reduce", gate, c.width / SQUEEZE, Role::Projector)?;
    let gate = b.activation(gate, Activation::Relu)?;
    let gate = linear(&mut b, "v.se.expand", gate, c.width, Role::Projector)?;
    let gate = b.activation(gate, Activation::Sigmoid)?;
    let x = b.mul(map.x, gate)?;
    let map = gelu(&mut b, Map { x, ..map })?;
    b.output("encode", map.x); // [grid*grid, C]
    Ok(b.finish()?)
}

/// A mixer of pixels, and a feed-forward layer that begins with a convolution.
fn block(b: &mut Builder, stage: &Stage, at: &str, map: Map) -> Result<Map, ModelError> {
    let (width, depthwise) = (stage.width, stage.width);
    let map = if stage.attention {
        let x = attend(b, at, map.x, width)?;
        Map { x, ..map }
    } else {
        conv(b, &format!("{at}.mix_conv"), map, width, depthwise, (SMALL, 1))?
    };
    let h = conv(b, &format!("{at}.ffn_conv"), map, width, depthwise, (LARGE, 1))?;
    let h = linear(b, &format!("{at}.ffn_up"), h.x, stage.ffn, Role::FfnUp)?;
    let h = b.activation(h, Activation::GeluErf)?;
    let h = linear(b, &format!("{at}.ffn_down"), h, width, Role::FfnDown)?;
    Ok(Map { x: b.add(map.x, h)?, ..map })
}

fn attend(b: &mut Builder, at: &str, x: ValueId, width: usize) -> Result<ValueId, ModelError> {
    let weight = b.weight(&format!("{at}.ln1.weight"), [width], Role::Norm);
    let bias = b.weight(&format!("{at}.ln1.bias"), [width], Role::Bias);
    let h = b.norm(x, NormKind::Layer, weight, Some(bias), NORM_EPS)?;
    let qkv = b.weight(&format!("{at}.attn_qkv.weight"), [3 * width, width], Role::AttentionQ);
    let h = b.linear(h, qkv, None)?; // [P, 3*C]
    let q = b.slice_columns(h, 0, width)?;
    let k = b.slice_columns(h, width, width)?;
    let v = b.slice_columns(h, 2 * width, width)?;
    let heads = width / HEAD_DIM;
    let scale = (HEAD_DIM as f32).powf(-0.5);
    let attention =
        Attention { heads, kv_heads: heads, head_dim: HEAD_DIM, scale, mask: Mask::Full, cache: None };
    let h = b.attention([q, k, v], attention, false)?;
    let h = linear(b, &format!("{at}.attn_out"), h, width, Role::AttentionOut)?;
    Ok(b.add(x, h)?)
}

/// A convolution with bias that keeps the map's borders; `groups` is what it has of them.
fn conv(
    b: &mut Builder,
    name: &str,
    map: Map,
    out: usize,
    groups: usize,
    (kernel, stride): (usize, usize),
) -> Result<Map, ModelError> {
    let channels = b.dims(map.x)[1].fixed().expect("invariant: columns are numbers");
    let weight =
        b.weight(&format!("{name}.weight"), [out, channels / groups, kernel, kernel], Role::Convolution);
    let bias = Some(b.weight(&format!("{name}.bias"), [out], Role::Bias));
    let (height, width, padding) = (map.side, map.side, kernel / 2);
    let conv = Conv2d { weight, bias, height, width, kernel, stride, padding, groups };
    let side = conv.output_size().0;
    Ok(Map { x: b.conv2d(map.x, conv)?, side })
}

fn gelu(b: &mut Builder, map: Map) -> Result<Map, ModelError> {
    Ok(Map { x: b.activation(map.x, Activation::GeluErf)?, ..map })
}

fn plain(stem: &str, kind: &str) -> Option<Rename> {
    let known = ["weight", "bias"].contains(&kind);
    known.then(|| Rename { to: format!("{stem}.{kind}"), transform: Transform::None })
}

fn branch(to: &str, branch: Branch) -> Option<Rename> {
    Some(Rename { to: to.to_owned(), transform: Transform::Branch(branch) })
}

/// What stands behind a stage: `blocks.N.`, `downsample.proj.N.`, `pos_emb.`, and then a name of either repository.
fn stage_part(stage: &str, parts: &[&str]) -> Option<Rename> {
    let at = format!("v.stage.{stage}");
    let (n, part) = match *parts {
        ["downsample", "proj", "0", ref rest @ ..] => return convolution(&format!("{at}.down_conv"), rest),
        ["downsample", "proj", "1", ref rest @ ..] => return convolution(&format!("{at}.down_proj"), rest),
        ["pos_emb", "pe" | "pos_enc", kind] => {
            let whole = Branch { shortcut: true, ..Branch::of(kernel_part(kind)?) };
            return branch(&format!("{at}.pos_conv"), whole);
        }
        ["pos_emb", ref rest @ ..] => return convolution(&format!("{at}.pos_conv"), rest),
        ["blocks", n, ref rest @ ..] if n.parse::<usize>().is_ok() => (n, rest),
        _ => return None,
    };
    let at = format!("{at}.blk.{n}");
    match *part {
        ["norm", kind] => plain(&format!("{at}.ln1"), kind),
        ["token_mixer", "qkv", "weight"] => plain(&format!("{at}.attn_qkv"), "weight"),
        ["token_mixer", "proj", kind] => branch(&format!("{at}.attn_out"), Branch::of(kernel_part(kind)?)),
        ["layer_scale_1"] | ["layer_scale_1", "gamma"] => {
            branch(&format!("{at}.attn_out"), Branch::of(BranchPart::Scale))
        }
        ["token_mixer", ref rest @ ..] => mixer(&format!("{at}.mix_conv"), rest),
        ["convffn" | "mlp", "conv", ref rest @ ..] => {
            branch(&format!("{at}.ffn_conv"), Branch::of(normed_part(rest)?))
        }
        ["convffn" | "mlp", "fc1", kind] => plain(&format!("{at}.ffn_up"), kind),
        ["convffn" | "mlp", "fc2", kind] => branch(&format!("{at}.ffn_down"), Branch::of(kernel_part(kind)?)),
        ["layer_scale" | "layer_scale_2"] | ["layer_scale" | "layer_scale_2", "gamma"] => {
            branch(&format!("{at}.ffn_down"), Branch::of(BranchPart::Scale))
        }
        _ => None,
    }
}

/// `x + scale * (mixer(x) - norm(x))`
fn mixer(to: &str, parts: &[&str]) -> Option<Rename> {
    match *parts {
        ["mixer", ref rest @ ..] => branch(to, Branch { shortcut: true, ..trained(rest)? }),
        ["norm", ref rest @ ..] => {
            let own = trained(rest)?;
            let number = own.number + 128;
            branch(to, Branch { number, negative: true, shortcut: true, ..own })
        }
        ["layer_scale"] | ["layer_scale", "gamma"] => {
            branch(to, Branch { shortcut: true, ..Branch::of(BranchPart::Scale) })
        }
        _ => convolution(to, parts),
    }
}

/// One convolution in its merged form, or a branch of it.
fn convolution(to: &str, parts: &[&str]) -> Option<Rename> {
    match *parts {
        ["reparam_conv" | "lkb_reparam", kind] => plain(to, kind),
        _ => branch(to, trained(parts)?),
    }
}

/// A branch in the form that is trained.
fn trained(parts: &[&str]) -> Option<Branch> {
    let (number, part) = match *parts {
        ["rbr_conv" | "conv_kxk", n, ref rest @ ..] => {
            (n.parse().ok().filter(|n: &u8| *n < 100)?, normed_part(rest)?)
        }
        ["rbr_scale" | "conv_scale", ref rest @ ..] => (100, normed_part(rest)?),
        ["rbr_skip" | "identity", field] => (101, normed_part(&["bn", field])?),
        ["lkb_origin" | "large_conv", ref rest @ ..] => (0, normed_part(rest)?),
        ["small_conv", ref rest @ ..] => (1, normed_part(rest)?),
        _ => return None,
    };
    Some(Branch { number, ..Branch::of(part) })
}

fn kernel_part(kind: &str) -> Option<BranchPart> {
    match kind {
        "weight" => Some(BranchPart::Kernel),
        "bias" => Some(BranchPart::Bias),
        _ => None,
    }
}

/// A convolution, `conv`, and the batch norm behind it, `bn`.
fn normed_part(parts: &[&str]) -> Option<BranchPart> {
    match *parts {
        ["conv", kind] => kernel_part(kind),
        ["bn", "weight"] => Some(BranchPart::NormWeight),
        ["bn", "bias"] => Some(BranchPart::NormBias),
        ["bn", "running_mean"] => Some(BranchPart::NormMean),
        ["bn", "running_var"] => Some(BranchPart::NormVariance),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(config: &Value) -> Result<Arc<dyn TowerConfig>, ModelError> {
        read_hf(&HfConfig::new(config), Features::Final)
    }

    fn numbers(inner: &str) -> Option<Rename> {
        read(&json!({})).unwrap().rename(inner)
    }

    #[test]
    fn a_named_tower_has_the_published_sizes() {
        let tower = read(&json!({})).unwrap();
        assert_eq!((tower.side(), tower.grid(), tower.width()), (1024, 16, 3072));
        let elements = |spec: &margay_graph::WeightSpec| spec.shape.elements().unwrap();
        let parameters: usize = tower.encode().unwrap().weights().iter().map(elements).sum();
        // Counted from the published module, 122.7 M.
        assert!((122_600_000..122_800_000).contains(&parameters), "{parameters}");
        let spec = tower.image();
        assert_eq!((spec.mean, spec.std, spec.size), ([0.0; 3], [1.0; 3], (1024, 1024)));
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let nine = vec![32; 9];
        for (config, field) in [
            (json!({ "layers": nine, "embed_dims": nine, "mlp_ratios": nine }), "vision stages"),
            (json!({ "layers": [] , "embed_dims": [], "mlp_ratios": [] }), "vision stages"),
            (json!({ "layers": [1, 1] }), "embed_dims"),
            (json!({ "layers": "many" }), "layers"),
            (json!({ "layers": [0, 1, 1, 1, 1] }), "vision layers"),
            (json!({ "layers": [1.5, 1, 1, 1, 1] }), "vision layers"),
            (json!({ "embed_dims": [96, 192, 384, 768, 1e300] }), "vision stage width"),
            (json!({ "embed_dims": [96, 192, 384, 768, 1500] }), "vision stage width"),
            (json!({ "embed_dims": [96, 192, 384, 384, 416] }), "vision stage width"),
            (json!({ "mlp_ratios": [4, 4, 4, 4, -1] }), "vision feed-forward width"),
            (json!({ "cls_ratio": 0 }), "vision width"),
            (json!({ "cls_ratio": 1.5 }), "vision width"),
            (json!({ "image_size": 1000 }), "image size"),
            (json!({ "image_size": 1u64 << 40 }), "image size"),
            (json!({ "token_mixers": ["repmixer", "pool"] }), "token_mixers"),
            (json!({ "token_mixers": "attention" }), "token_mixers"),
            (json!({ "pos_embs_shapes": [null, null, null, [7, 7], null] }), "pos_embs_shapes"),
            (json!({ "down_patch_size": 5 }), "down_patch_size"),
            (json!({ "architecture": "fastvit_mci0" }), "architecture"),
        ] {
            let error = read(&config).unwrap_err();
            assert!(
                matches!(&error, ModelError::Field { field: named, .. } if named == field),
                "{config}: {error}"
            );
        }
    }

    #[test]
    fn names_of_both_repositories_and_both_forms_meet() {
        for (one, other, to) in [
            ("patch_embed.0.reparam_conv.weight", "stem.0.reparam_conv.weight", "v.stem.0.weight"),
            (
                "network.7.3.token_mixer.qkv.weight",
                "stages.3.blocks.3.token_mixer.qkv.weight",
                "v.stage.3.blk.3.attn_qkv.weight",
            ),
            ("network.6.reparam_conv.bias", "stages.3.pos_emb.reparam_conv.bias", "v.stage.3.pos_conv.bias"),
            (
                "network.8.proj.0.lkb_reparam.bias",
                "stages.4.downsample.proj.0.reparam_conv.bias",
                "v.stage.4.down_conv.bias",
            ),
            (
                "network.8.proj.0.small_conv.bn.bias",
                "stages.4.downsample.proj.0.small_conv.bn.bias",
                "v.stage.4.down_conv",
            ),
            (
                "network.0.1.token_mixer.mixer.rbr_conv.0.conv.weight",
                "stages.0.blocks.1.token_mixer.mixer.conv_kxk.0.conv.weight",
                "v.stage.0.blk.1.mix_conv",
            ),
            ("network.0.1.layer_scale", "stages.0.blocks.1.layer_scale.gamma", "v.stage.0.blk.1.ffn_down"),
            ("conv_exp.se.reduce.weight", "final_conv.se.fc1.weight", "v.se.reduce.weight"),
        ] {
            let [one, other] = [one, other].map(numbers);
            assert_eq!(one, other, "{to}");
            assert_eq!(one.map(|rename| rename.to).as_deref(), Some(to));
            assert_eq!(numbers(to), None, "{to} is no checkpoint's name");
        }
        for unknown in [
            "network.11.0.norm.weight",
            "network.x.norm.weight",
            "head.proj",
            "patch_embed.0.rbr_conv.200.bn.bias",
        ] {
            assert_eq!(numbers(unknown), None, "{unknown}");
        }
    }
}
