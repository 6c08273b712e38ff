//! A model's configuration as GGUF metadata, read and written.

use crate::{
    Decoder, Family, GgufPart, GgufParts, Mixture, ModelConfig, ModelError, Outliers, RopeScaling,
    TextConfig, TowerConfig, VisionConfig, VisionDefaults, decoder, projector, vision,
};
use margay_file::gguf::{Metadata, Value};
use margay_graph::NormKind;
use margay_prompt::image::{Fit, ImageSpec, Tiling};

/// Our own key: how a picture becomes pixels, as JSON of an [`ImageSpec`]. Other runtimes ignore it.
const IMAGE_SPEC_KEY: &str = "margay.image_spec";
/// Pixels of a picture whose size varies, at least and at most.
const MIN_PIXELS_KEY: &str = "clip.vision.image_min_pixels";
const MAX_PIXELS_KEY: &str = "clip.vision.image_max_pixels";
/// Our own key: the id of the family, where several have the same parts.
pub(crate) const FAMILY_KEY: &str = "margay.family";
/// Our own key: the id of the tower, where it is not the transformer that other runtimes take it for.
const TOWER_KEY: &str = "margay.vision.tower";

/// Our own key: the width between a projector's layers.
const HIDDEN_KEY: &str = "margay.projector.hidden_length";

/// Of pictures that are cut into slices, the side of a square of as many pixels as a slice has.
const IMAGE_SIDE_KEY: &str = "clip.vision.image_size";
/// Learned queries of a projector that has them.
const QUERIES_KEY: &str = "clip.minicpmv_query_num";

/// Of the expert that every token passes.
const SHARED_KEY: &str = "expert_shared_feed_forward_length";

/// `clip.projector_type`, or its place in files of several modalities.
pub(crate) fn projector_type(vision: &Metadata) -> Result<&str, ModelError> {
    if let Some(kind) = vision.opt_str("clip.projector_type")? {
        return Ok(kind);
    }
    if let Some(kind) = vision.opt_str("clip.vision.projector_type")? {
        return Ok(kind);
    }
    // The first LLaVA converters wrote only a flag.
    match vision.opt_bool("clip.has_llava_projector")? {
        Some(true) => Ok("mlp"),
        _ => Ok(vision.str("clip.projector_type")?),
    }
}

pub(crate) fn read(family: &Family, arch: &str, parts: &GgufParts<'_>) -> Result<ModelConfig, ModelError> {
    let text = read_text(arch, parts.text)?;
    let vision = parts.vision.map(|part| read_vision(family, part)).transpose()?;
    if let Some(part) = parts.vision
        && let Some(out) = part.metadata.opt_usize("clip.vision.projection_dim")?
        // Some converters write 0.
        && ![0, text.width].contains(&out)
        && projector_type(part.metadata)? != "mlp"
    {
        return Err(field(
            "clip.vision.projection_dim",
            format!("does not fit a decoder of width {}", text.width),
        ));
    }
    let name = parts.text.metadata.opt_str("general.name")?.unwrap_or(family.id).to_owned();
    let files = std::iter::once(parts.text.metadata).chain(parts.vision.map(|part| part.metadata));
    Ok(ModelConfig {
        family: family.id,
        name,
        text,
        vision,
        prompt: family.prompt,
        chat_template: None,
        outliers: Outliers::read(files)?,
    })
}

fn read_text(arch: &str, part: GgufPart<'_>) -> Result<TextConfig, ModelError> {
    let GgufPart { metadata: meta, tensors } = part;
    let decoder = decoder::by_arch(arch)
        .ok_or_else(|| field("general.architecture", format!("{arch:?} is not supported")))?;
    let key = |name: &str| format!("{arch}.{name}");
    let width = meta.usize(&key("embedding_length"))?;
    let heads = meta.usize(&key("attention.head_count"))?;
    if heads == 0 {
        return Err(field(&key("attention.head_count"), "0 heads".into()));
    }
    let head_dim = meta.opt_usize(&key("attention.key_length"))?.unwrap_or(width / heads);
    if let Some(value_length) = meta.opt_usize(&key("attention.value_length"))?.filter(|v| *v != head_dim) {
        let what = format!("{value_length} differs from the key length {head_dim}, which is not supported");
        return Err(field(&key("attention.value_length"), what));
    }
    let table = tensors.info("token_embd.weight");
    let table = table.ok_or_else(|| ModelError::weight("token_embd.weight", "the file does not hold it"))?;
    let vocabulary = table.shape.dims().first().copied().unwrap_or(0);
    let tokens = meta.opt_strings("tokenizer.ggml.tokens")?.map(|t| t.len());
    if let Some(tokens) = tokens.filter(|t| *t > vocabulary) {
        return Err(field("tokenizer.ggml.tokens", format!("{tokens} tokens for {vocabulary} embeddings")));
    }
    let rope_scaling = match meta.opt_str(&key("rope.scaling.type"))? {
        None | Some("none") if tensors.info("rope_freqs.weight").is_some() => RopeScaling::Factors,
        None | Some("none") => RopeScaling::None,
        Some(kind) if tensors.info("rope_freqs.weight").is_some() => {
            let what = format!("{kind:?} beside rope_freqs.weight is not supported");
            return Err(field(&key("rope.scaling.type"), what));
        }
        Some("linear") => RopeScaling::Linear(meta.f32(&key("rope.scaling.factor"))?),
        Some(other) => return Err(field(&key("rope.scaling.type"), format!("{other:?} is not supported"))),
    };
    TextConfig {
        decoder,
        vocabulary,
        width,
        layers: meta.usize(&key("block_count"))?,
        ffn: meta.usize(&key("feed_forward_length"))?,
        heads,
        kv_heads: meta.opt_usize(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        rotary: meta.opt_usize(&key("rope.dimension_count"))?.unwrap_or(head_dim),
        rope_base: meta.opt_f32(&key("rope.freq_base"))?.unwrap_or(10000.0),
        rope_sections: rope_sections(&key("rope.dimension_sections"), decoder, meta)?,
        rope_scaling,
        norm_eps: meta.f32(&key(norm_eps_key(decoder)))?,
        context: meta.usize(&key("context_length"))?,
        tied: tensors.info("output.weight").is_none(),
        mixture: read_mixture(arch, decoder, part)?,
    }
    .checked("GGUF metadata")
}

/// Other runtimes count four axes, of which the last is not used.
fn rope_sections(key: &str, decoder: &Decoder, meta: &Metadata) -> Result<Option<[usize; 3]>, ModelError> {
    let Some(sections) = meta.opt_i32s(key)? else { return Ok(decoder.rope_sections) };
    let (used, rest) = sections.split_at(sections.len().min(3));
    let used: Option<Vec<usize>> = used.iter().map(|n| usize::try_from(*n).ok()).collect();
    let used = used.and_then(|used| <[usize; 3]>::try_from(used).ok());
    match used.filter(|_| decoder.rope_sections.is_some() && rest.iter().all(|n| *n == 0)) {
        Some(used) => Ok(Some(used)),
        None => Err(field(key, format!("{sections:?} is not supported in this decoder"))),
    }
}

fn read_mixture(arch: &str, decoder: &Decoder, part: GgufPart<'_>) -> Result<Option<Mixture>, ModelError> {
    let GgufPart { metadata: meta, tensors } = part;
    let key = |name: &str| format!("{arch}.{name}");
    let Some(experts) = meta.opt_usize(&key("expert_count"))?.filter(|n| *n > 0) else { return Ok(None) };
    if !decoder.experts {
        let what = format!("{experts} experts in this decoder are not supported");
        return Err(field(&key("expert_count"), what));
    }
    let ffn = match meta.opt_usize(&key("expert_feed_forward_length"))? {
        Some(ffn) => ffn,
        None => meta.usize(&key("feed_forward_length"))?,
    };
    // Early files hold a shared expert and do not say how wide it is.
    let rows = || tensors.info("blk.0.ffn_up_shexp.weight")?.shape.dims().first().copied();
    let shared = meta.opt_usize(&key(SHARED_KEY))?.filter(|ffn| *ffn > 0).or_else(rows);
    Ok(Some(Mixture { experts, used: meta.usize(&key("expert_used_count"))?, ffn, shared }))
}

fn norm_eps_key(decoder: &Decoder) -> &'static str {
    match decoder.norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    }
}

fn read_vision(family: &Family, part: GgufPart<'_>) -> Result<VisionConfig, ModelError> {
    let GgufPart { metadata: meta, tensors } = part;
    let kind = projector_type(meta)?;
    let meant = family.vision.as_ref().and_then(|defaults| defaults.projector);
    let projector = projector::by_id(meant.unwrap_or(kind))
        .ok_or_else(|| field("clip.projector_type", format!("the projector {kind:?} is not supported")))?;
    let key = |name: &str| format!("clip.vision.{name}");
    let merge = key("mm_patch_merge_type");
    if let Some(other) = meta.opt_str(&merge)?.filter(|merge| *merge != "flat") {
        return Err(field(
            &merge,
            format!("{other:?} is not supported (LLaVA-1.6 cuts pictures into tiles)"),
        ));
    }
    let defaults = family.vision.as_ref();
    let defaults =
        defaults.ok_or_else(|| field("clip.vision.image_size", "this family has no image side".into()))?;
    let tower = match meta.opt_str(TOWER_KEY)? {
        None => *vision::TOWERS.iter().find(|t| t.gguf.contains(&kind)).unwrap_or(&vision::TOWERS[0]),
        Some(id) => {
            vision::by_id(id).ok_or_else(|| field(TOWER_KEY, format!("the tower {id:?} is not supported")))?
        }
    };
    let tower = (tower.read_gguf)(&part, defaults.features)?;
    let image = match meta.opt_str(IMAGE_SPEC_KEY)? {
        Some(json) => serde_json::from_str(json).map_err(|e| field(IMAGE_SPEC_KEY, e.to_string()))?,
        None => default_image(defaults, meta, &*tower)?,
    };
    let fold = meta.opt_usize(&key("projector.scale_factor"))?.unwrap_or_else(|| tower.fold());
    let rows = || Some(*tensors.info("mm.0.weight")?.shape.dims().first()?);
    let hidden = meta.opt_usize(HIDDEN_KEY)?.or_else(|| meant.and_then(|_| rows())).unwrap_or(0);
    let queries = meta.opt_usize(QUERIES_KEY)?.unwrap_or(0);
    // Early files do not say it, or 0.
    let slices = matches!(image.tiling, Some(Tiling::Slices { .. }));
    let queries = if slices && queries == 0 { (projector.tokens)((1, 1), fold) } else { queries };
    VisionConfig { tower, projector, fold, hidden, queries, image }.checked("GGUF metadata")
}

fn default_image(
    defaults: &VisionDefaults,
    meta: &Metadata,
    tower: &dyn TowerConfig,
) -> Result<ImageSpec, ModelError> {
    let mut spec = (defaults.image)(tower);
    if let Some(Tiling::Grid { longest_edge, .. }) = &mut spec.tiling
        && let Some(edge) = meta.opt_usize("clip.vision.preproc_image_size")?
    {
        *longest_edge = u32::try_from(edge)
            .map_err(|_| field("clip.vision.preproc_image_size", format!("{edge} pixels are too many")))?;
    }
    if let Some(Tiling::Slices { resolution, .. }) = &mut spec.tiling
        && let Some(side) = meta.opt_usize(IMAGE_SIDE_KEY)?
    {
        *resolution =
            u32::try_from(side).map_err(|_| field(IMAGE_SIDE_KEY, format!("{side} pixels are too many")))?;
    }
    if let Fit::Multiples { min_pixels, max_pixels, .. } = &mut spec.fit {
        for (key, slot) in [(MIN_PIXELS_KEY, min_pixels), (MAX_PIXELS_KEY, max_pixels)] {
            if let Some(pixels) = meta.opt_usize(key)? {
                *slot = pixels as u64;
            }
        }
    }
    for (key, slot) in [("clip.vision.image_mean", &mut spec.mean), ("clip.vision.image_std", &mut spec.std)]
    {
        if let Some(values) = meta.opt_f32s(key)? {
            *slot = values
                .as_ref()
                .try_into()
                .map_err(|_| field(key, format!("{} numbers, expected 3", values.len())))?;
        }
    }
    if !spec.std.iter().all(|s| *s > 0.0) {
        return Err(field("clip.vision.image_std", "must be positive".into()));
    }
    Ok(spec)
}

pub(crate) fn field(key: &str, what: String) -> ModelError {
    ModelError::Field { place: "GGUF metadata".into(), field: key.into(), what }
}

/// The text side's metadata: architecture and sizes.
pub fn text_metadata(config: &ModelConfig) -> Metadata {
    let mut meta = Metadata::new();
    let text = &config.text;
    let arch = text.decoder.arch;
    let mut put = |name: &str, value: Value| meta.insert(name, value);
    put("general.architecture", arch.into());
    put("general.type", "model".into());
    put("general.name", config.name.as_str().into());
    put("general.quantization_version", 2u32.into());
    put(FAMILY_KEY, config.family.into());
    let mut size = |name: &str, value: usize| put(&format!("{arch}.{name}"), (value as u32).into());
    size("context_length", text.context);
    size("embedding_length", text.width);
    size("block_count", text.layers);
    size("feed_forward_length", text.ffn);
    size("attention.head_count", text.heads);
    size("attention.head_count_kv", text.kv_heads);
    size("attention.key_length", text.head_dim);
    size("attention.value_length", text.head_dim);
    size("rope.dimension_count", text.rotary);
    size("vocab_size", text.vocabulary);
    if let Some(Mixture { experts, used, ffn, shared }) = text.mixture {
        size("expert_count", experts);
        size("expert_used_count", used);
        size("expert_feed_forward_length", ffn);
        if let Some(ffn) = shared {
            size(SHARED_KEY, ffn);
        }
    }
    if let Some([time, row, column]) = text.rope_sections {
        let sections = [time, row, column, 0].map(|pairs| pairs as i32).to_vec();
        put(&format!("{arch}.rope.dimension_sections"), sections.into());
    }
    put(&format!("{arch}.rope.freq_base"), text.rope_base.into());
    put(&format!("{arch}.{}", norm_eps_key(text.decoder)), text.norm_eps.into());
    if let RopeScaling::Linear(factor) = text.rope_scaling {
        put(&format!("{arch}.rope.scaling.type"), "linear".into());
        put(&format!("{arch}.rope.scaling.factor"), factor.into());
    }
    meta
}

/// The vision side's metadata; `None` for a text model.
pub fn vision_metadata(config: &ModelConfig) -> Option<Metadata> {
    let VisionConfig { tower, projector, fold, hidden, queries, image } = config.vision.as_ref()?;
    let mut meta = Metadata::new();
    let mut put = |name: &str, value: Value| meta.insert(name, value);
    put("general.architecture", "clip".into());
    put("general.type", "mmproj".into());
    put("general.name", config.name.as_str().into());
    put("general.quantization_version", 2u32.into());
    put("clip.has_vision_encoder", true.into());
    put("clip.has_text_encoder", false.into());
    put("clip.has_llava_projector", true.into());
    put("clip.projector_type", projector.id.into());
    put("clip.vision.projection_dim", (config.text.width as u32).into());
    if *fold != tower.fold() {
        put("clip.vision.projector.scale_factor", (*fold as u32).into());
    }
    if *hidden != 0 {
        put(HIDDEN_KEY, (*hidden as u32).into());
    }
    if *queries != 0 {
        put(QUERIES_KEY, (*queries as u32).into());
    }
    if let Some(Tiling::Grid { longest_edge, .. }) = image.tiling {
        put("clip.vision.preproc_image_size", longest_edge.into());
    }
    if let Fit::Multiples { min_pixels, max_pixels, .. } = image.fit {
        put(MIN_PIXELS_KEY, u32::try_from(min_pixels).unwrap_or(u32::MAX).into());
        put(MAX_PIXELS_KEY, u32::try_from(max_pixels).unwrap_or(u32::MAX).into());
    }
    put("clip.vision.image_mean", image.mean.to_vec().into());
    put("clip.vision.image_std", image.std.to_vec().into());
    let json = serde_json::to_string(image).expect("invariant: an image spec is plain data");
    put(IMAGE_SPEC_KEY, json.into());
    if tower.tower().id != vision::TOWERS[0].id && !tower.tower().gguf.contains(&projector.id) {
        put(TOWER_KEY, tower.tower().id.into());
    }
    tower.put(&mut meta);
    if let Some(Tiling::Slices { resolution, .. }) = image.tiling {
        meta.insert(IMAGE_SIDE_KEY, resolution);
    }
    Some(meta)
}
