//! Moondream 2B and 0.5B: a ViT with its final norm over the whole picture and tiles that overlap, a Phi decoder in which
//! the picture sees itself whole.
//! Source: vikhyat/moondream, `moondream/torch/`. Pictures are resized as it does without pyvips, by Pillow.

use super::{Family, HfParts, Published, VisionDefaults};
use crate::{
    Features, HfConfig, ModelConfig, ModelError, Outliers, PromptStyle, Rename, TowerConfig, Transform,
    VisionConfig, decoder, projector, vision,
};
use margay_prompt::{
    image::{Filter, ImageSpec, Tiling},
    text::ChatTemplate,
};

pub(super) const MOONDREAM: Family = Family {
    id: "moondream",
    summary: "Moondream 2B and 0.5B: ViT over the picture and overlapping tiles + MLP + Phi, 729 visual tokens, one picture",
    hf: &["moondream1"],
    gguf: &[("moondream", Some("moondream"))],
    prompt: PromptStyle::new("moondream", &["<|endoftext|>"]),
    vision: Some(VisionDefaults { image, features: Features::Final, projector: None }),
    verified: "a PyTorch module written after vikhyat/moondream, and Pillow",
    published: &[
        Published {
            name: "Moondream 0.5B",
            vision: "ViT/14-378, 720 wide",
            projector: "MLP over stitched tiles",
            decoder: "Phi-1.5, 1024 wide",
            picture_tokens: "729",
        },
        Published {
            name: "Moondream 2B",
            vision: "SigLIP-so400m/14-378",
            projector: "MLP over stitched tiles",
            decoder: "Phi-1.5",
            picture_tokens: "729",
        },
    ],
    read_hf,
    rename,
};

/// Of the published models, in patches and tiles.
const MARGIN: usize = 4;
const MOST_TILES: u32 = 12;
/// "\n\nQuestion:" and "\n\nAnswer:" in the vocabulary of Phi. Source: `moondream/config/config_md2.json`.
const QUESTION: [u32; 4] = [198, 198, 24361, 25];
const ANSWER: [u32; 4] = [198, 198, 33706, 25];
/// Far more than any template has.
const MOST_IDS: usize = 64;
/// The vocabulary since 2025-06, and one of its tokens.
const NEWER_VOCABULARY: &str = "moondream/starmie-v1";
const NEWER_TOKEN: &str = "<|md_reserved_0|>";

fn read_hf(config: &HfConfig<'_>, parts: &HfParts<'_>) -> Result<ModelConfig, ModelError> {
    let empty = serde_json::json!({});
    // The published folders leave out what is the code's default: all of it.
    let own = config.object("config").unwrap_or_else(|| HfConfig::new(&empty));
    let part = |name: &str| own.object(name).unwrap_or_else(|| HfConfig::new(&empty));
    let (text, see) = (part("text"), part("vision"));
    let tower = serde_json::json!({
        "model_type": "siglip_vision_model",
        "image_size": see.usize("crop_size", 378)?,
        "patch_size": see.usize("enc_patch_size", 14)?,
        "hidden_size": see.usize("enc_dim", 1152)?,
        "intermediate_size": see.usize("enc_ff_dim", 4304)?,
        "num_hidden_layers": see.usize("enc_n_layers", 27)?,
        "num_attention_heads": see.usize("enc_n_heads", 16)?,
        "layer_norm_eps": 1e-5,
    });
    let tower = vision::read_hf(&HfConfig::new(&tower), Features::Final)?;
    if see.usize("in_channels", 3)? != 3 {
        return Err(see.bad("in_channels", "must be 3"));
    }
    let read = decoder::from_hf_as(&text, MOONDREAM.hf[0])?;
    let prefix = 1 + tower.grid() * tower.grid();
    if text.usize("prefix_attn", prefix)? != prefix {
        let what = format!("must be {prefix}: the picture's tokens and the one before them");
        return Err(text.bad("prefix_attn", &what));
    }
    if see.usize("proj_out_dim", read.width)? != read.width {
        return Err(see.bad("proj_out_dim", &format!("does not fit a decoder of width {}", read.width)));
    }
    let patch = see.usize("enc_patch_size", 14)?;
    let most = see.usize("max_crops", MOST_TILES as usize)?;
    let margin = see.usize("overlap_margin", MARGIN)?;
    let pixels = |field: &str, n: usize| u32::try_from(n).map_err(|_| see.bad(field, "is too large"));
    let tiling = Tiling::Overlap {
        margin: pixels("overlap_margin", margin.saturating_mul(patch))?,
        most: pixels("max_crops", most)?,
    };
    let image = ImageSpec { tiling: Some(tiling), ..image(&*tower) };
    check_vocabulary(&own, parts)?;
    let projector = projector::by_id("moondream").expect("invariant: the projector is registered");
    let hidden = see.usize("proj_inner_dim", 8192)?;
    let vision =
        VisionConfig { tower, projector, fold: 1, hidden, queries: 0, image }.checked(see.place())?;
    Ok(ModelConfig {
        family: MOONDREAM.id,
        name: config.str("_name_or_path").filter(|n| !n.is_empty()).unwrap_or("moondream").to_owned(),
        text: read,
        vision: Some(vision),
        prompt: MOONDREAM.prompt,
        chat_template: own_template(&own)?,
        outliers: Outliers::default(),
    })
}

/// The newer revisions write a question with control tokens, whose ids a configuration may say.
fn own_template(own: &HfConfig<'_>) -> Result<Option<String>, ModelError> {
    let query = own.object("tokenizer").and_then(|t| t.object("templates")).and_then(|t| t.object("query"));
    let Some(query) = query else { return Ok(None) };
    let ids = |field: &str| {
        let ids = query.get(field).map(|ids| serde_json::from_value::<Vec<u32>>(ids.clone()));
        let ids = ids.transpose().map_err(|_| query.bad(field, "is no list of token ids"))?;
        match ids {
            Some(ids) if ids.len() > MOST_IDS => {
                Err(query.bad(field, &format!("{} ids are too many", ids.len())))
            }
            ids => Ok(ids),
        }
    };
    match (ids("prefix")?, ids("suffix")?) {
        (None, None) => Ok(None),
        (Some(prefix), suffix) if prefix == QUESTION && suffix.as_deref().is_none_or(|s| s == ANSWER) => {
            Ok(None)
        }
        (Some(prefix), Some(suffix)) => {
            let template = ChatTemplate::builtin(MOONDREAM.prompt.template);
            let template = template.expect("invariant: families name built-in templates");
            let ids = format!("{{% set query = {prefix:?} %}}{{% set answer = {suffix:?} %}}");
            Ok(Some(ids + template.source()))
        }
        (prefix, _) => Err(query.bad(if prefix.is_none() { "prefix" } else { "suffix" }, "is missing")),
    }
}

/// Folders published since 2025-06 hold the `tokenizer.json` of older revisions, which their code does not read; their
/// `config.json` says nothing of it.
fn check_vocabulary(own: &HfConfig<'_>, parts: &HfParts<'_>) -> Result<(), ModelError> {
    let has = |file: &str, text: &str| {
        let bytes = (parts.file)(file)?;
        Some(bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    let Some(newer) = has("tokenizer.json", NEWER_TOKEN) else { return Ok(()) };
    let said = own.object("tokenizer").filter(|t| t.get("eos_id").is_some());
    let said = said.map(|t| t.usize("eos_id", 0)).transpose()?.map(|id| id == 0);
    let bad = |what: String| {
        Err(ModelError::Field { place: "the folder".into(), field: "tokenizer.json".into(), what })
    };
    match said.or_else(|| has("moondream.py", NEWER_VOCABULARY)) {
        Some(meant) if meant == newer => Ok(()),
        Some(true) => bad(format!(
            "is that of older revisions; these weights mean {NEWER_VOCABULARY}: put that repository's tokenizer.json in its place"
        )),
        Some(false) => bad(format!(
            "is {NEWER_VOCABULARY}, which older revisions do not mean: use the one that came with these weights"
        )),
        None if newer => Ok(()),
        None => bad(format!(
            "may not be that of these weights: since 2025-06 they mean {NEWER_VOCABULARY}; put that repository's \
             tokenizer.json in its place, or the revision's moondream.py, which names its vocabulary, beside it"
        )),
    }
}

/// A file of ours says it all; this is what the published models mean.
fn image(tower: &dyn TowerConfig) -> ImageSpec {
    let margin = MARGIN * tower.side() / tower.grid().max(1);
    ImageSpec {
        filter: Filter::Lanczos3,
        tiling: Some(Tiling::Overlap { margin: margin as u32, most: MOST_TILES }),
        ..ImageSpec::siglip_squash(tower.side() as u32)
    }
}

/// Both spellings: `model.vision.*` and `model.text.*` (with or without `model.`), and that of the first releases, which
/// says `vision_encoder.*` and `text_model.*`. The weights that point at things (`region`) are passed over.
fn rename(config: &ModelConfig, name: &str) -> Option<Rename> {
    let name = name.replace("._orig_mod", "");
    let name = name.strip_prefix("model.").unwrap_or(&name);
    let plain = |to: String| Some(Rename { to, transform: Transform::None });
    if let Some(inner) = name.strip_prefix("text_model.") {
        return decoder::rename(&config.text, inner);
    }
    if let Some(inner) = name.strip_prefix("text.") {
        return plain(text_name(inner)?);
    }
    let projector = ["vision.proj_mlp.", "vision_encoder.projection.mlp."];
    if let Some(inner) = projector.iter().find_map(|place| name.strip_prefix(place)) {
        return plain((config.vision.as_ref()?.projector.rename)(inner)?);
    }
    let tower = ["vision.", "vision_encoder.encoder.model.visual."];
    plain(tower_name(tower.iter().find_map(|place| name.strip_prefix(place))?)?)
}

fn text_name(inner: &str) -> Option<String> {
    if inner == "wte" {
        return Some("token_embd.weight".to_owned());
    }
    let (stem, kind) = inner.rsplit_once('.')?;
    Some(match stem {
        "post_ln" => format!("output_norm.{kind}"),
        "lm_head" => format!("output.{kind}"),
        _ => {
            let part = |part: &str| {
                Some(match part {
                    "ln" => "attn_norm",
                    "attn.qkv" => "attn_qkv",
                    "attn.proj" => "attn_output",
                    "mlp.fc1" => "ffn_up",
                    "mlp.fc2" => "ffn_down",
                    _ => return None,
                })
            };
            format!("blk.{}.{kind}", block_name(stem, part)?)
        }
    })
}

fn tower_name(inner: &str) -> Option<String> {
    if ["pos_emb", "pos_embed"].contains(&inner) {
        return Some("v.position_embd.weight".to_owned());
    }
    let (stem, kind) = inner.rsplit_once('.')?;
    Some(match stem {
        "patch_emb" | "patch_embed.linear" => format!("v.patch_embd.{kind}"),
        "post_ln" | "norm" => format!("v.post_ln.{kind}"),
        _ => {
            let part = |part: &str| {
                Some(match part {
                    "ln1" | "norm1" => "ln1",
                    "ln2" | "norm2" => "ln2",
                    "attn.qkv" => "attn_qkv",
                    "attn.proj" => "attn_out",
                    "mlp.fc1" => "ffn_up",
                    "mlp.fc2" => "ffn_down",
                    _ => return None,
                })
            };
            format!("v.blk.{}.{kind}", block_name(stem, part)?)
        }
    })
}

/// `blocks.N.PART` as `N.` and the part's other name.
fn block_name(stem: &str, part: impl Fn(&str) -> Option<&'static str>) -> Option<String> {
    let (number, inner) = stem.strip_prefix("blocks.")?.split_once('.')?;
    let number: usize = number.parse().ok()?;
    Some(format!("{number}.{}", part(inner)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::NoTensors;
    use crate::{HfParts, from_hf};
    use margay_prompt::text::{Message, RenderOptions};
    use serde_json::{Value, json};

    fn read(config: Value) -> Result<ModelConfig, ModelError> {
        read_with(config, &[])
    }

    fn read_with(config: Value, files: &[(&str, &str)]) -> Result<ModelConfig, ModelError> {
        let config = json!({ "model_type": "moondream1", "config": config });
        let file = |name: &str| files.iter().find(|f| f.0 == name).map(|f| f.1.as_bytes().to_vec());
        let parts = HfParts { preprocessor: None, tensors: &NoTensors, file: &file };
        from_hf(&config, &parts).map(|(_, model)| model)
    }

    #[test]
    fn a_tokenizer_of_another_revision_is_refused() {
        let old = ("tokenizer.json", r#"{"id": 50256, "content": "<|endoftext|>"}"#);
        let new = ("tokenizer.json", r#"{"id": 1, "content": "<|md_reserved_0|>"}"#);
        let old_code = ("moondream.py", r#"Tokenizer.from_pretrained("vikhyatk/moondream2")"#);
        let new_code = ("moondream.py", r#"Tokenizer.from_pretrained("moondream/starmie-v1")"#);
        let (old_ids, new_ids) = (json!({ "eos_id": 50256 }), json!({ "eos_id": 0 }));
        for (said, files, fits) in [
            (None, &[old, old_code][..], true),
            (None, &[new, new_code], true),
            (None, &[new], true),
            (None, &[old, new_code], false),
            (None, &[new, old_code], false),
            (None, &[old], false),
            (Some(&old_ids), &[old], true),
            (Some(&new_ids), &[new], true),
            (Some(&old_ids), &[new], false),
            (Some(&new_ids), &[old, old_code], false),
        ] {
            let config = said.map_or(json!({}), |ids| json!({ "tokenizer": ids }));
            let read = read_with(config, files).map_err(|e| e.to_string());
            assert_eq!(read.is_ok(), fits, "{said:?} {files:?}: {:?}", read.err());
            let told = |e: String| e.contains("tokenizer.json") && e.contains("starmie-v1");
            assert!(read.err().is_none_or(told), "{said:?} {files:?}");
        }
    }

    #[test]
    fn a_template_of_ids_is_written_as_ids() {
        let query = |prefix: Value, suffix: Value| {
            read(json!({ "tokenizer": { "templates": { "query": { "prefix": prefix, "suffix": suffix } } } }))
        };
        let written = |template: &ChatTemplate, eos_id| {
            let options = RenderOptions { eos_id, ..RenderOptions::default() };
            template.render(&[Message::user(1, "What?")], &options).unwrap().display("<image>")
        };
        let own = query(json!([1, 77, 2]), json!([3, 4])).unwrap().chat_template.unwrap();
        let own = ChatTemplate::new(&own).unwrap();
        assert_eq!(written(&own, Some(9)), "<|endoftext|><image>[1][77][2]What?[3][4]");
        assert_eq!(query(json!(QUESTION), json!(ANSWER)).unwrap().chat_template, None);
        // The published folders say nothing of it; their vocabulary does.
        let builtin = ChatTemplate::builtin(MOONDREAM.prompt.template).unwrap();
        assert_eq!(written(&builtin, Some(0)), "<|endoftext|><image>[1][15381][2]What?[3]");
        let words = "<|endoftext|><image>\n\nQuestion: What?\n\nAnswer:";
        assert_eq!(written(&builtin, Some(50256)), words);
        for (prefix, suffix) in [
            (json!([1]), Value::Null),
            (json!("x"), json!([3])),
            (json!([-1]), json!([3])),
            (json!(vec![0; 65]), json!([])),
        ] {
            assert!(query(prefix.clone(), suffix.clone()).is_err(), "{prefix} {suffix}");
        }
    }

    #[test]
    fn an_empty_configuration_is_the_2b_and_the_half_has_as_many_kv_heads_as_heads() {
        let model = read(json!({})).unwrap();
        assert_eq!((model.text.width, model.text.heads, model.text.rotary), (2048, 32, 32));
        assert_eq!(model.prefix_tokens(), 730);
        let vision = model.vision.unwrap();
        assert_eq!((vision.tile_tokens(), vision.hidden, vision.tower.width()), (729, 8192, 1152));
        assert_eq!(vision.image.tiling, Some(Tiling::Overlap { margin: 56, most: 12 }));
        let layout = vision.layout(640, 480).unwrap();
        assert_eq!((layout.tiles(), layout.projections(), layout.visual_tokens()), (9, 1, 729));
        assert_eq!(layout.stitch().unwrap().size(27), [2 * 19 + 8, 4 * 19 + 8]);
        // Source: `moondream/config/config_md05.json`.
        let half = json!({
            "text": { "dim": 1024, "ff_dim": 4096, "n_heads": 16, "prefix_attn": 730 },
            "vision": { "enc_dim": 720, "enc_ff_dim": 2690, "enc_n_heads": 10, "proj_out_dim": 1024 },
            "tokenizer": { "bos_id": 50256, "templates": { "query": { "prefix": [198, 198, 24361, 25] } } },
        });
        let half = read(half).unwrap();
        assert_eq!((half.text.kv_heads, half.text.head_dim), (16, 64));
        half.programs().unwrap();
    }

    #[test]
    fn a_configuration_that_does_not_fit_is_named() {
        for (config, field) in [
            (json!({ "text": { "group_size": 128 } }), "group_size"),
            (json!({ "text": { "prefix_attn": 9 } }), "prefix_attn"),
            (json!({ "text": { "n_heads": 0 } }), "heads"),
            (json!({ "vision": { "in_channels": 4 } }), "in_channels"),
            (json!({ "vision": { "proj_out_dim": 8 } }), "proj_out_dim"),
            (json!({ "vision": { "overlap_margin": 14 } }), "overlap margin"),
            (json!({ "vision": { "overlap_margin": u64::MAX } }), "overlap_margin"),
            (json!({ "vision": { "max_crops": u64::MAX } }), "max_crops"),
            (json!({ "vision": { "enc_patch_size": 0 } }), "patch size"),
            (json!({ "vision": { "proj_inner_dim": u64::MAX } }), "projector width"),
            (json!({ "tokenizer": { "templates": { "query": { "prefix": [1, 15381, 2] } } } }), "suffix"),
        ] {
            let error = read(config.clone()).unwrap_err().to_string();
            assert!(error.contains(field), "{config}: {error}");
        }
        let odd = read(json!({ "vision": { "max_crops": 0 } })).unwrap();
        assert!(
            odd.vision.unwrap().image.layout(640, 480, |_, _| (1, 1)).is_ok(),
            "what no picture can have is said later"
        );
    }

    #[test]
    fn all_spellings_of_a_name_end_alike_and_what_points_is_passed_over() {
        let model = read(json!({})).unwrap();
        let to = |name: &str| rename(&model, name).map(|rename| rename.to);
        for (now, first, gguf) in [
            ("text.wte", "text_model.transformer.embd.wte.weight", "token_embd.weight"),
            ("text.post_ln.bias", "text_model.lm_head.ln.bias", "output_norm.bias"),
            ("text.lm_head.weight", "text_model.lm_head.linear.weight", "output.weight"),
            ("text.blocks.7.ln.weight", "text_model.transformer.h.7.ln.weight", "blk.7.attn_norm.weight"),
            (
                "text.blocks.7.attn.qkv.bias",
                "text_model.transformer.h.7.mixer.Wqkv.bias",
                "blk.7.attn_qkv.bias",
            ),
            (
                "text.blocks.7.attn.proj.bias",
                "text_model.transformer.h.7.mixer.out_proj.bias",
                "blk.7.attn_output.bias",
            ),
            (
                "text.blocks.7.mlp.fc2.weight",
                "text_model.transformer.h.7.mlp.fc2.weight",
                "blk.7.ffn_down.weight",
            ),
            ("vision.pos_emb", "vision_encoder.encoder.model.visual.pos_embed", "v.position_embd.weight"),
            (
                "vision.patch_emb.bias",
                "vision_encoder.encoder.model.visual.patch_embed.linear.bias",
                "v.patch_embd.bias",
            ),
            ("vision.post_ln.bias", "vision_encoder.encoder.model.visual.norm.bias", "v.post_ln.bias"),
            (
                "vision.blocks.3.ln2.bias",
                "vision_encoder.encoder.model.visual.blocks.3.norm2.bias",
                "v.blk.3.ln2.bias",
            ),
            ("vision.proj_mlp.fc2.bias", "vision_encoder.projection.mlp.fc2.bias", "mm.2.bias"),
        ] {
            assert_eq!(to(now).as_deref(), Some(gguf), "{now}");
            assert_eq!(to(&format!("model.{now}")).as_deref(), Some(gguf), "{now}");
            assert_eq!(to(first).as_deref(), Some(gguf), "{first}");
            assert_eq!(to(gguf), None, "{gguf}");
        }
        assert_eq!(to("model.region.coord_encoder.weight"), None);
        assert_eq!(to("vision_encoder._orig_mod.projection.mlp.fc1.bias").as_deref(), Some("mm.0.bias"));
    }
}
