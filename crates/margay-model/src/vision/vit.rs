//! The vision transformer of CLIP and SigLIP: equal patches, learned positions, pre-norm blocks.
//! Weights by the names of GGUF mmproj files. Source: transformers `modeling_clip.py`, `modeling_siglip.py`.

use crate::{
    ModelError, VitConfig,
    weights::{Rename, Transform},
};
use margay_graph::{Attention, Builder, Dim, Mask, NormKind, Program, Role, Stage, ValueId};

/// The encode program. Input `pixels` [3, image, image]; output `encode` [P, C]: the patch rows of the selected hidden
/// state, without the class token and without a final norm.
pub(crate) fn encode(c: &VitConfig) -> Result<Program, ModelError> {
    let mut b = Builder::new(Stage::Encode);
    let patches = c.grid() * c.grid();
    let pixels = b.input_f32("pixels", [3, c.image, c.image].map(Dim::from));
    let x = b.patchify(pixels, c.patch)?; // [P, 3*patch*patch]
    let embed = b.weight("v.patch_embd.weight", [c.width, 3 * c.patch * c.patch], Role::PatchEmbedding);
    let bias = c.patch_bias.then(|| b.weight("v.patch_embd.bias", [c.width], Role::Bias));
    let mut x = b.linear(x, embed, bias)?; // [P, C]

    let first_patch = usize::from(c.class_token);
    if c.class_token {
        let class = b.weight("v.class_embd", [c.width], Role::ClassEmbedding);
        let class = b.param(class)?;
        x = b.concat_rows(class, x)?; // [1+P, C]
    }
    let positions =
        b.weight("v.position_embd.weight", [first_patch + patches, c.width], Role::PositionEmbedding);
    let positions = b.param(positions)?;
    x = b.add(x, positions)?;
    if c.pre_norm {
        x = norm(&mut b, c, "v.pre_ln", x)?;
    }
    for layer in 0..c.layers {
        x = block(&mut b, c, layer, x)?;
    }
    if c.class_token {
        x = b.slice_rows(x, first_patch, patches)?; // [P, C]
    }
    b.output("encode", x);
    Ok(b.finish()?)
}

fn block(b: &mut Builder, c: &VitConfig, layer: usize, x: ValueId) -> Result<ValueId, ModelError> {
    let at = format!("v.blk.{layer}");
    let h = norm(b, c, &format!("{at}.ln1"), x)?;
    let q = linear(b, &format!("{at}.attn_q"), h, c.width, Role::AttentionQ)?;
    let k = linear(b, &format!("{at}.attn_k"), h, c.width, Role::AttentionK)?;
    let v = linear(b, &format!("{at}.attn_v"), h, c.width, Role::AttentionV)?;
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
    Ok(b.add(x, h)?)
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

/// The name in a GGUF file of a tower's weight in a Hugging Face checkpoint, wherever the tower stands in it.
pub(crate) fn rename(name: &str) -> Option<Rename> {
    // The last two are how transformers 5 writes a tower: without its inner `vision_model`.
    const PLACES: [&str; 7] = [
        "model.vision_tower.vision_tower.vision_model.",
        "model.vision_tower.vision_model.",
        "vision_tower.vision_tower.vision_model.",
        "vision_tower.vision_model.",
        "vision_model.",
        "model.vision_tower.",
        "vision_tower.",
    ];
    let inner = PLACES.iter().find_map(|place| name.strip_prefix(place))?;
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
