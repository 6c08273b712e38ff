//! The towers of Qwen2-VL and Qwen2.5-VL: a picture keeps its size, its patches are numbered by row and column, squares
//! of them stand together. The second generation has gated layers, and attends within windows in all but a few blocks.
//! Weights by the names of GGUF mmproj files, whose patch embedding is one kernel for each of two frames; a still
//! picture is both. Source: transformers `modeling_qwen2_vl.py`, `modeling_qwen2_5_vl.py`, `vision_utils.py`.

use super::{Feed, ReadTower, Tower, TowerConfig, vit};
use crate::{
    GgufPart, HfConfig, ModelError, config, gguf, hf,
    weights::{Rename, Transform},
};
use margay_file::{TensorInfo, gguf::Metadata};
use margay_graph::{
    Activation, Attention, Axes, Bindings, Builder, Dim, Mask, NormKind, Program, Role, Rope, RopeStyle,
    Stage, Sym, ValueId,
};
use margay_prompt::image::{ImageSpec, Pixels};
use std::{any::Any, borrow::Cow, sync::Arc};

pub(super) const QWEN2VL: Tower = Tower {
    id: "qwen2vl",
    hf: &["qwen2_vl", "qwen2_vl_vision", "qwen2_5_vl", "qwen2_5_vl_vision"],
    gguf: &["qwen2vl_merger", "qwen2.5vl_merger"],
    read_hf: |config, _| read_hf(config),
    read_gguf: |part, _| read_gguf(part),
};

/// Blocks that attend to the whole picture, where they are not every n-th. Our own key.
const FULL_KEY: &str = "margay.vision.full_attention";
/// Both generations' norms, whatever a configuration says.
pub(crate) const NORM_EPS: f32 = 1e-6;
/// Base of the rotary frequencies.
const ROPE_BASE: f32 = 10000.0;
/// Frames a patch is made of, each with a kernel of its own.
const FRAMES: usize = 2;
/// Pixels of a picture, at least and at most. Source: `preprocessor_config.json` of the published folders.
const PIXELS: (u64, u64) = (56 * 56, 12_845_056);

/// The tower of either generation.
#[derive(Clone, Debug, PartialEq)]
struct QwenConfig {
    /// Side of a patch, pixels.
    patch: usize,
    /// Side of the square of patches that stand together, and later become one token.
    fold: usize,
    /// C
    width: usize,
    /// F
    ffn: usize,
    /// H
    heads: usize,
    /// L
    layers: usize,
    /// Of the FFN.
    activation: Activation,
    /// RMS norms without biases and gated layers: the second generation.
    gated: bool,
    /// Attention within squares of the picture.
    windows: Option<Windows>,
}

#[derive(Clone, Debug, PartialEq)]
struct Windows {
    /// Side, pixels.
    side: usize,
    /// Blocks that attend to all patches nevertheless.
    full: Vec<usize>,
}

fn read_hf(config: &HfConfig<'_>) -> ReadTower {
    // The first generation calls its own width by another name than its projector's.
    let gated = config.get("fullatt_block_indexes").is_some()
        || config.str("model_type").is_some_and(|kind| kind.starts_with("qwen2_5"));
    let width = config.usize(if gated { "hidden_size" } else { "embed_dim" }, 1280)?;
    let frames = config.usize("temporal_patch_size", FRAMES)?;
    if frames != FRAMES {
        return Err(
            config.bad("temporal_patch_size", &format!("{frames} is not supported, expected {FRAMES}"))
        );
    }
    for field in ["in_channels", "in_chans"] {
        if config.usize(field, 3)? != 3 {
            return Err(config.bad(field, "is not 3, which is not supported"));
        }
    }
    let own = if gated { Activation::Silu } else { Activation::QuickGelu };
    let tower = QwenConfig {
        patch: config.usize("patch_size", 14)?,
        fold: config.usize("spatial_merge_size", 2)?,
        width,
        ffn: match gated {
            true => config.usize("intermediate_size", 3420)?,
            false => config.usize("mlp_ratio", 4)?.saturating_mul(width),
        },
        heads: config.usize("num_heads", 16)?,
        layers: config.usize("depth", 32)?,
        activation: config.str("hidden_act").map_or(Ok(own), |name| hf::activation(config, name))?,
        gated,
        windows: gated.then(|| windows(config)).transpose()?,
    };
    Ok(Arc::new(tower.checked(config.place())?))
}

fn windows(config: &HfConfig<'_>) -> Result<Windows, ModelError> {
    let field = "fullatt_block_indexes";
    let full = match config.get(field) {
        None => Some(vec![7, 15, 23, 31]),
        Some(listed) => listed.as_array().and_then(|blocks| {
            blocks.iter().map(|block| block.as_u64().and_then(|n| usize::try_from(n).ok())).collect()
        }),
    };
    let full = full.ok_or_else(|| config.bad(field, "is no list of blocks"))?;
    Ok(Windows { side: config.usize("window_size", 112)?, full })
}

fn read_gguf(part: &GgufPart<'_>) -> ReadTower {
    let GgufPart { metadata: meta, tensors } = part;
    let key = |name: &str| format!("clip.vision.{name}");
    let gated = tensors.info("v.blk.0.ffn_gate.weight").is_some();
    let width = meta.usize(&key("embedding_length"))?;
    let layers = meta.usize(&key("block_count"))?;
    // Public converters write the decoder's width as `feed_forward_length`; the weights tell.
    let name = "v.blk.0.ffn_up.weight";
    let up = tensors.info(name).ok_or_else(|| ModelError::weight(name, "the file does not hold it"))?;
    let ffn = up.shape.dims().iter().copied().find(|side| *side != width).unwrap_or(width);
    let windows = || -> Result<Windows, ModelError> {
        let side = meta.opt_usize(&key("window_size"))?.unwrap_or(112);
        let full = match (meta.opt_i32s(FULL_KEY)?, meta.opt_usize(&key("n_wa_pattern"))?) {
            (Some(blocks), _) => {
                blocks.iter().map(|block| usize::try_from(*block).unwrap_or(usize::MAX)).collect()
            }
            (None, Some(every)) if every > 0 => {
                (every - 1..layers.min(config::bound::LAYERS)).step_by(every).collect()
            }
            (None, _) => return Err(gguf::field(&key("n_wa_pattern"), "is missing".into())),
        };
        Ok(Windows { side, full })
    };
    let tower = QwenConfig {
        patch: meta.usize(&key("patch_size"))?,
        fold: meta.opt_usize(&key("spatial_merge_size"))?.unwrap_or(2),
        width,
        ffn,
        heads: meta.usize(&key("attention.head_count"))?,
        layers,
        activation: vit::activation(meta)?,
        gated,
        windows: gated.then(windows).transpose()?,
    };
    Ok(Arc::new(tower.checked("GGUF metadata")?))
}

impl QwenConfig {
    /// Checks bounds and divisibility.
    fn checked(self, place: &str) -> Result<Self, ModelError> {
        let bad =
            |field: &str, what: String| ModelError::Field { place: place.into(), field: field.into(), what };
        for (field, value, most) in [
            ("patch size", self.patch, 1 << 10),
            ("merge size", self.fold, 1 << 5),
            ("vision width", self.width, config::bound::WIDTH),
            ("vision feed-forward width", self.ffn, config::bound::WIDTH),
            ("vision heads", self.heads, self.width),
            ("vision layers", self.layers, config::bound::LAYERS),
        ] {
            config::within(place, field, value, most)?;
        }
        // A head turns by rows in its first half and by columns in its second.
        if !self.width.is_multiple_of(4 * self.heads) {
            let what = format!("{} columns are no {} heads of a multiple of 4", self.width, self.heads);
            return Err(bad("vision heads", what));
        }
        if let Some(Windows { side, full }) = &self.windows {
            config::within(place, "window size", *side, config::bound::IMAGE_SIDE)?;
            if *side < self.square() {
                return Err(bad("window size", format!("{side} pixels hold no square of {}", self.square())));
            }
            if let Some(block) = full.iter().find(|block| **block >= self.layers) {
                let what = format!("block {block} of {} does not exist", self.layers);
                return Err(bad("blocks of full attention", what));
            }
        }
        Ok(self)
    }

    /// Side of the square of patches that stand together, pixels.
    fn square(&self) -> usize {
        self.patch * self.fold
    }

    /// Squares along the side of a window.
    fn window(&self) -> Option<usize> {
        self.windows.as_ref().map(|windows| windows.side / self.square())
    }

    /// Row and column of each patch of a grid: square by square, row by row within each.
    fn places(&self, (rows, columns): (usize, usize)) -> Vec<(usize, usize)> {
        let fold = self.fold;
        let squares = (0..rows / fold).flat_map(|row| (0..columns / fold).map(move |column| (row, column)));
        let patches =
            |(row, column)| (0..fold * fold).map(move |i| (row * fold + i / fold, column * fold + i % fold));
        squares.flat_map(patches).collect()
    }
}

/// The squares of a grid window by window, and the number of each one's window.
fn by_window((rows, columns): (usize, usize), window: usize) -> (Vec<usize>, Vec<usize>) {
    let across = columns.div_ceil(window);
    let number = |square: usize| square / columns / window * across + square % columns / window;
    let mut order: Vec<usize> = (0..rows * columns).collect();
    order.sort_by_key(|square| number(*square));
    let numbers = order.iter().map(|square| number(*square)).collect();
    (order, numbers)
}

impl TowerConfig for QwenConfig {
    fn tower(&self) -> &'static Tower {
        &QWEN2VL
    }

    /// Of the smallest picture.
    fn side(&self) -> usize {
        self.square()
    }

    /// Of the smallest picture.
    fn grid(&self) -> usize {
        self.fold
    }

    fn grid_of(&self, width: usize, height: usize) -> (usize, usize) {
        (height / self.patch, width / self.patch)
    }

    fn fold(&self) -> usize {
        self.fold
    }

    fn width(&self) -> usize {
        self.width
    }

    fn describe(&self) -> String {
        let QwenConfig { patch, layers, width, ffn, heads, .. } = self;
        let windows = self.windows.as_ref().map_or_else(String::new, |windows| {
            format!(", {} of them within windows of {} pixels", layers - windows.full.len(), windows.side)
        });
        format!(
            "pictures of any size in patches of {patch}, {layers} layers of width {width}, ffn {ffn}, {heads} \
             heads{windows}"
        )
    }

    fn image(&self) -> ImageSpec {
        ImageSpec::multiples(u32::try_from(self.square()).unwrap_or(u32::MAX), PIXELS.0, PIXELS.1)
    }

    fn feed<'p>(&self, tile: &'p Pixels) -> Feed<'p> {
        let grid = self.grid_of(tile.width, tile.height);
        let places = self.places(grid);
        let pixels = Cow::Owned(tile.squares(self.patch, places.iter().copied()));
        let bindings = Bindings::new().with(Sym::Patches, places.len());
        let each = self.fold * self.fold;
        let positions = |order: &mut dyn Iterator<Item = usize>| -> Vec<i32> {
            order.flat_map(|patch| [places[patch].0 as i32, places[patch].1 as i32]).collect()
        };
        let integers = match self.window() {
            None => vec![("positions", positions(&mut (0..places.len())))],
            Some(window) => {
                let (squares, numbers) = by_window((grid.0 / self.fold, grid.1 / self.fold), window);
                let order = || squares.iter().flat_map(|square| (0..each).map(move |i| square * each + i));
                let mut back = vec![0; squares.len()];
                squares.iter().enumerate().for_each(|(at, square)| back[*square] = at as i32);
                vec![
                    ("positions", positions(&mut order())),
                    ("order", order().map(|patch| patch as i32).collect()),
                    ("segments", numbers.iter().flat_map(|n| vec![*n as i32; each]).collect()),
                    ("back", back),
                ]
            }
        };
        Feed { pixels, bindings, integers, kept: None }
    }

    fn encode(&self) -> Result<Program, ModelError> {
        encode(self)
    }

    fn rename(&self, inner: &str) -> Option<Rename> {
        rename(inner)
    }

    fn parts(&self) -> Vec<(String, Vec<(String, Transform)>)> {
        let kernel = |number| if number == 0 { PATCH.to_owned() } else { format!("{PATCH}.{number}") };
        let frame = |number| (kernel(number), Transform::Frame { number, of: FRAMES });
        let kernels = (FRAME_KERNELS.to_owned(), (0..FRAMES).map(frame).collect());
        std::iter::once(kernels).chain(super::fused_qkv(self.layers, self.width)).collect()
    }

    /// Early public converters exchanged the layers of the first generation; the shapes tell.
    fn exchanged(&self, info: &dyn Fn(&str) -> Option<TensorInfo>) -> Vec<(String, String)> {
        vit::exchanged(self.layers, self.width, self.ffn, info)
    }

    fn put(&self, meta: &mut Metadata) {
        vit::put_activation(self.activation, meta);
        for (name, value) in [
            // Only read for its own sake elsewhere.
            ("image_size", 560),
            ("patch_size", self.patch),
            ("spatial_merge_size", self.fold),
            ("embedding_length", self.width),
            ("feed_forward_length", self.ffn),
            ("block_count", self.layers),
            ("attention.head_count", self.heads),
        ] {
            meta.insert(&format!("clip.vision.{name}"), value as u32);
        }
        meta.insert("clip.vision.attention.layer_norm_epsilon", NORM_EPS);
        if let Some(Windows { side, full }) = &self.windows {
            meta.insert("clip.vision.window_size", *side as u32);
            let every = full.first().map_or(0, |first| first + 1);
            if every > 0 && (every - 1..self.layers).step_by(every).eq(full.iter().copied()) {
                meta.insert("clip.vision.n_wa_pattern", every as u32);
            } else {
                meta.insert(FULL_KEY, full.iter().map(|block| *block as i32).collect::<Vec<_>>());
            }
        }
    }

    fn same(&self, other: &dyn TowerConfig) -> bool {
        (other as &dyn Any).downcast_ref() == Some(self)
    }
}

/// The first frame's kernel; the others' have their number behind it.
const PATCH: &str = "v.patch_embd.weight";
/// All frames' kernels in one, as a checkpoint has them. No file holds it.
const FRAME_KERNELS: &str = "v.patch_embd.frames.weight";

fn encode(c: &QwenConfig) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Encode);
    let pixels = 3 * c.patch * c.patch;
    let x = b.input_f32("pixels", [Sym::Patches.into(), Dim::from(pixels)]);
    let positions = b.input_i32_matrix("positions", Sym::Patches, 2);
    // Both frames are the picture.
    let [first, second] =
        [PATCH, &format!("{PATCH}.1")].map(|name| b.weight(name, [c.width, pixels], Role::PatchEmbedding));
    let (first, second) = (b.linear(x, first, None)?, b.linear(x, second, None)?);
    let mut x = b.add(first, second)?; // [P, C]
    let segments = match c.window() {
        None => None,
        Some(window) => {
            let order = b.input_i32("order", Sym::Patches);
            x = b.gather_rows(x, order)?;
            Some((b.input_i32("segments", Sym::Patches), (window * c.fold).pow(2)))
        }
    };
    for layer in 0..c.layers {
        let full = c.windows.as_ref().is_none_or(|windows| windows.full.contains(&layer));
        x = block(&mut b, c, layer, x, positions, segments.filter(|_| !full))?;
    }
    b.output("encode", x);
    Ok(b.finish()?)
}

fn block(
    b: &mut Builder,
    c: &QwenConfig,
    layer: usize,
    x: ValueId,
    positions: ValueId,
    segments: Option<(ValueId, usize)>,
) -> Result<ValueId, ModelError> {
    let at = |part: &str| format!("v.blk.{layer}.{part}");
    let h = norm(b, c.gated, &at("ln1"), x)?;
    let q = vit::linear(b, &at("attn_q"), h, c.width, Role::AttentionQ)?;
    let k = vit::linear(b, &at("attn_k"), h, c.width, Role::AttentionK)?;
    let v = vit::linear(b, &at("attn_v"), h, c.width, Role::AttentionV)?;
    let head_dim = c.width / c.heads;
    let axes = Axes { count: 2, sections: vec![head_dim / 4; 2], restart: true };
    let (style, axes) = (RopeStyle::Half, Some(axes));
    let rope = Rope { head_dim, rotary: head_dim, base: ROPE_BASE, style, factors: None, axes };
    let [q, k] = [b.rope(q, positions, rope.clone())?, b.rope(k, positions, rope)?];
    let scale = (head_dim as f32).powf(-0.5);
    let attention =
        |mask| Attention { heads: c.heads, kv_heads: c.heads, head_dim, scale, mask, cache: None };
    let h = match segments {
        None => b.attention([q, k, v], attention(Mask::Full), false)?,
        Some((segments, most)) => {
            b.attention_in_segments([q, k, v], segments, attention(Mask::Segments { most }))?
        }
    };
    let h = vit::linear(b, &at("attn_out"), h, c.width, Role::AttentionOut)?;
    let x = b.add(x, h)?;

    let h = norm(b, c.gated, &at("ln2"), x)?;
    let h = if c.gated {
        let gate = vit::linear(b, &at("ffn_gate"), h, c.ffn, Role::FfnGate)?;
        let gate = b.activation(gate, c.activation)?;
        let up = vit::linear(b, &at("ffn_up"), h, c.ffn, Role::FfnUp)?;
        b.mul(gate, up)?
    } else {
        let up = vit::linear(b, &at("ffn_up"), h, c.ffn, Role::FfnUp)?;
        b.activation(up, c.activation)?
    };
    let h = vit::linear(b, &at("ffn_down"), h, c.width, Role::FfnDown)?;
    Ok(b.add(x, h)?)
}

/// RMS norms have no bias, layer norms have one.
pub(crate) fn norm(b: &mut Builder, rms: bool, name: &str, x: ValueId) -> Result<ValueId, ModelError> {
    let width = b.dims(x)[1].fixed().expect("invariant: columns are numbers");
    let weight = b.weight(&format!("{name}.weight"), [width], Role::Norm);
    let bias = (!rms).then(|| b.weight(&format!("{name}.bias"), [width], Role::Bias));
    let kind = if rms { NormKind::Rms } else { NormKind::Layer };
    Ok(b.norm(x, kind, weight, bias, NORM_EPS)?)
}

fn rename(inner: &str) -> Option<Rename> {
    let to = if inner == "patch_embed.proj.weight" {
        FRAME_KERNELS.to_owned()
    } else {
        let (stem, kind) = inner.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
        let (layer, part) = stem.strip_prefix("blocks.")?.split_once('.')?;
        layer.parse::<usize>().ok()?;
        let part = match part {
            "norm1" => "ln1",
            "norm2" => "ln2",
            "attn.qkv" => "attn_qkv",
            "attn.proj" => "attn_out",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.fc1" | "mlp.up_proj" => "ffn_up",
            "mlp.fc2" | "mlp.down_proj" => "ffn_down",
            _ => return None,
        };
        format!("v.blk.{layer}.{part}.{kind}")
    };
    Some(Rename { to, transform: Transform::None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_prompt::image::{Picture, preprocess};

    fn tower(config: serde_json::Value) -> Result<Arc<dyn TowerConfig>, ModelError> {
        read_hf(&HfConfig::new(&config))
    }

    #[test]
    fn squares_go_window_by_window_and_windows_at_the_edge_are_smaller() {
        // 3 rows of 5 squares in windows of 2: as `get_vision_window_index` orders them.
        let (order, numbers) = by_window((3, 5), 2);
        assert_eq!(order, [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]);
        assert_eq!(numbers, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5]);
    }

    #[test]
    fn what_a_tower_takes_of_a_picture_fits_its_program() {
        let small = serde_json::json!({
            "model_type": "qwen2_5_vl_vision", "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "depth": 2,
            "patch_size": 2, "window_size": 8, "fullatt_block_indexes": [1],
        });
        let tower = tower(small).unwrap();
        let spec = ImageSpec::multiples(4, 16, 1 << 20);
        let picture = Picture::filled(21, 11, [1, 2, 3]).unwrap();
        let tile = preprocess(&picture, &spec).unwrap().next().unwrap();
        assert_eq!((tile.width, tile.height), (20, 12));
        let (feed, program) = (tower.feed(&tile), tower.encode().unwrap());
        for ((name, id), input) in program.inputs().iter().zip(feed.inputs(&program, &feed.pixels)) {
            let dims = program.value(*id).dims.iter().map(|dim| dim.eval(&feed.bindings).unwrap());
            let len = match input {
                margay_graph::InputData::F32(data) => data.len(),
                margay_graph::InputData::I32(data) => data.len(),
            };
            assert_eq!(len, dims.product::<usize>(), "{name}");
        }
    }

    #[test]
    fn hostile_configurations_are_refused() {
        for (field, value, why) in [
            ("num_heads", serde_json::json!(3), "heads"),
            ("num_heads", serde_json::json!(0), "heads"),
            ("patch_size", serde_json::json!(0), "patch size"),
            ("patch_size", serde_json::json!(1u64 << 40), "patch size"),
            ("window_size", serde_json::json!(27), "window size"),
            ("fullatt_block_indexes", serde_json::json!([32]), "block 32"),
            ("fullatt_block_indexes", serde_json::json!("all"), "no list"),
            ("temporal_patch_size", serde_json::json!(3), "temporal_patch_size"),
            ("in_chans", serde_json::json!(1), "in_chans"),
            ("spatial_merge_size", serde_json::json!(-1), "spatial_merge_size"),
            ("depth", serde_json::json!(100_000), "layers"),
        ] {
            let mut config = serde_json::json!({ "model_type": "qwen2_5_vl_vision", "hidden_size": 1280 });
            config[field] = value;
            let error = tower(config).unwrap_err().to_string();
            assert!(error.contains(why), "{field}: {error}");
        }
    }
}
