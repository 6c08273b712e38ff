//! Reads a Hugging Face `config.json`, with errors that name the field.

use crate::{Decoder, Mixture, ModelError, RopeScaling, TextConfig};
use margay_graph::{Activation, NormKind};
use serde_json::Value;

/// A JSON object of a configuration, and where it stands.
#[derive(Clone, Debug)]
pub struct HfConfig<'a> {
    object: &'a Value,
    place: String,
}

impl<'a> HfConfig<'a> {
    /// The whole `config.json`.
    pub fn new(object: &'a Value) -> Self {
        HfConfig { object, place: "config.json".to_owned() }
    }

    /// Where this object stands, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// A field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|v| !v.is_null())
    }

    /// Every field and its value.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.object.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
    }

    /// A nested object.
    pub fn object(&self, field: &str) -> Option<HfConfig<'a>> {
        let object = self.get(field).filter(|v| v.is_object())?;
        Some(self.within(field, object))
    }

    /// Another object that stands in the place of that field.
    pub(crate) fn within<'b>(&self, field: &str, object: &'b Value) -> HfConfig<'b> {
        HfConfig { object, place: format!("{}: {field}", self.place) }
    }

    /// A text, or `None` where absent.
    pub fn str(&self, field: &str) -> Option<&'a str> {
        self.get(field)?.as_str()
    }

    /// Truth value, or `default` where absent.
    ///
    /// # Errors
    /// [`ModelError::Field`] where it is something else.
    pub fn bool(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        self.get(field)
            .map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.bad(field, "is no truth value")))
    }

    /// A whole number, or `default` where absent.
    ///
    /// # Errors
    /// [`ModelError::Field`] where it is negative or no whole number.
    pub fn usize(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| self.bad(field, &format!("{value} is no whole number")))
    }

    /// A number, or `default` where absent.
    ///
    /// # Errors
    /// [`ModelError::Field`] where it is no number.
    pub fn f32(&self, field: &str, default: f32) -> Result<f32, ModelError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_f64().map(|n| n as f32).ok_or_else(|| self.bad(field, &format!("{value} is no number")))
    }

    /// An error about that field.
    pub fn bad(&self, field: &str, what: &str) -> ModelError {
        ModelError::Field { place: self.place.clone(), field: field.to_owned(), what: what.to_owned() }
    }
}

/// What a decoder's configuration means where it leaves a field out.
pub(crate) struct TextDefaults {
    /// Names of its activation.
    pub(crate) activations: &'static [&'static str],
    pub(crate) vocabulary: usize,
    pub(crate) width: usize,
    pub(crate) layers: usize,
    pub(crate) ffn: usize,
    pub(crate) heads: usize,
    /// `None`: as many as heads.
    pub(crate) kv_heads: Option<usize>,
    /// `None`: the width over the heads.
    pub(crate) head_dim: Option<usize>,
    /// Part of a head that turns.
    pub(crate) rotary: f32,
    pub(crate) norm_eps: f32,
    pub(crate) context: usize,
    pub(crate) tied: bool,
    /// Experts, where it has some; `None` where only the configuration tells. Where their width is 0 they are as wide as a
    /// feed-forward layer.
    pub(crate) experts: Option<Mixture>,
}

impl TextDefaults {
    /// What most decoders have in common; sizes are for each to say.
    pub(crate) const BASE: TextDefaults = TextDefaults {
        activations: &["silu", "swish"],
        vocabulary: 0,
        width: 0,
        layers: 0,
        ffn: 0,
        heads: 0,
        kv_heads: None,
        head_dim: None,
        rotary: 1.0,
        norm_eps: 1e-6,
        context: 0,
        tied: false,
        experts: None,
    };
}

/// The sizes of a decoder under the names that transformers' configurations share.
pub(crate) fn text(
    config: &HfConfig<'_>,
    decoder: &'static Decoder,
    defaults: &TextDefaults,
) -> Result<TextConfig, ModelError> {
    if let Some(act) = config.str("hidden_act").filter(|act| !defaults.activations.contains(act)) {
        let (arch, expected) = (decoder.arch, defaults.activations[0]);
        let what = format!("{act:?} is not supported in a {arch} decoder, expected {expected:?}");
        return Err(config.bad("hidden_act", &what));
    }
    for field in ["attention_bias", "mlp_bias", "qk_layernorm", "use_sliding_window"] {
        if config.bool(field, false)? {
            return Err(config.bad(field, &format!("is not supported in a {} decoder", decoder.arch)));
        }
    }
    let context = config.usize("max_position_embeddings", defaults.context)?;
    // Qwen says a window and that it is not used.
    let windowed = config.get("use_sliding_window").is_none() && config.get("sliding_window").is_some();
    if windowed && config.usize("sliding_window", 0)? < context {
        return Err(config.bad("sliding_window", "is not supported"));
    }
    let heads = config.usize("num_attention_heads", defaults.heads)?;
    let width = config.usize("hidden_size", defaults.width)?;
    let head_dim = config.usize("head_dim", defaults.head_dim.unwrap_or(width / heads.max(1)))?;
    // transformers 5 moves the rotary numbers into one object of their own.
    let rope = config.object("rope_parameters").unwrap_or_else(|| config.clone());
    let scaling = config.object("rope_scaling").or_else(|| config.object("rope_parameters"));
    let factor = config.f32("partial_rotary_factor", defaults.rotary)?;
    let factor = rope.f32("partial_rotary_factor", factor)?;
    let norm_eps = match decoder.norm {
        NormKind::Rms => "rms_norm_eps",
        NormKind::Layer => "layer_norm_eps",
    };
    let text = TextConfig {
        decoder,
        vocabulary: config.usize("vocab_size", defaults.vocabulary)?,
        width,
        layers: config.usize("num_hidden_layers", defaults.layers)?,
        ffn: config.usize("intermediate_size", defaults.ffn)?,
        heads,
        kv_heads: config.usize("num_key_value_heads", defaults.kv_heads.unwrap_or(heads))?,
        head_dim,
        // The factor may be a rounded quotient.
        rotary: (head_dim as f32 * factor + 1e-3) as usize,
        rope_base: rope.f32("rope_theta", config.f32("rope_theta", 10000.0)?)?,
        rope_sections: rope_sections(scaling.as_ref(), decoder)?,
        rope_scaling: scaling.as_ref().map_or(Ok(RopeScaling::None), rope_scaling)?,
        norm_eps: config.f32(norm_eps, defaults.norm_eps)?,
        context,
        tied: config.bool("tie_word_embeddings", defaults.tied)?,
        mixture: mixture(config, decoder, defaults)?,
    };
    text.checked(config.place())
}

/// Source: transformers `MixtralConfig`.
const MIXTRAL: Mixture = Mixture { experts: 8, used: 2, ffn: 0, shared: None };

/// Mixtral counts `num_local_experts`, Qwen `num_experts`; Mixtral's are as wide as a feed-forward layer.
fn mixture(
    config: &HfConfig<'_>,
    decoder: &Decoder,
    defaults: &TextDefaults,
) -> Result<Option<Mixture>, ModelError> {
    let field = ["num_local_experts", "num_experts"].into_iter().find(|field| config.get(field).is_some());
    let Some(usual) = defaults.experts.or(field.map(|_| MIXTRAL)) else { return Ok(None) };
    if !decoder.experts {
        let what = format!("experts in a {} decoder are not supported", decoder.arch);
        return Err(config.bad(field.unwrap_or("num_experts"), &what));
    }
    let experts = field.map_or(Ok(usual.experts), |field| config.usize(field, 0))?;
    let ffn = match usual.ffn {
        0 => config.usize("intermediate_size", defaults.ffn)?,
        ffn => ffn,
    };
    let ffn = config.usize("moe_intermediate_size", ffn)?;
    let used = config.usize("num_experts_per_tok", usual.used)?;
    let shared = usual.shared.map(|ffn| config.usize("shared_expert_intermediate_size", ffn)).transpose()?;
    Ok(Some(Mixture { experts, used, ffn, shared }))
}

/// That a decoder has experts in each of its layers.
///
/// # Errors
/// [`ModelError::Field`] where it is not so.
pub(crate) fn experts_throughout(config: &HfConfig<'_>) -> Result<(), ModelError> {
    let dense =
        config.get("mlp_only_layers").is_some_and(|list| list.as_array().is_none_or(|l| !l.is_empty()));
    if dense || config.usize("decoder_sparse_step", 1)? != 1 {
        return Err(config.bad("mlp_only_layers", "layers without experts among others are not supported"));
    }
    Ok(())
}

/// How many pairs follow each axis, of a decoder whose positions have several.
fn rope_sections(config: Option<&HfConfig<'_>>, decoder: &Decoder) -> Result<Option<[usize; 3]>, ModelError> {
    let field = "mrope_section";
    let Some((config, listed)) = config.and_then(|c| c.get(field).map(|listed| (c, listed))) else {
        return Ok(decoder.rope_sections);
    };
    if decoder.rope_sections.is_none() {
        return Err(config.bad(field, &format!("is not supported in a {} decoder", decoder.arch)));
    }
    let sections: Option<Vec<usize>> = listed
        .as_array()
        .and_then(|all| all.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect());
    let sections = sections.and_then(|sections| sections.try_into().ok());
    sections.map(Some).ok_or_else(|| config.bad(field, &format!("{listed} is no list of three numbers")))
}

fn rope_scaling(config: &HfConfig<'_>) -> Result<RopeScaling, ModelError> {
    match config.str("rope_type").or_else(|| config.str("type")).unwrap_or("default") {
        // The sections are read elsewhere.
        "default" | "mrope" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear(config.f32("factor", 1.0)?)),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: config.f32("factor", 8.0)?,
            low: config.f32("low_freq_factor", 1.0)?,
            high: config.f32("high_freq_factor", 4.0)?,
            original: config.f32("original_max_position_embeddings", 8192.0)?,
        }),
        other => Err(config
            .bad("rope_type", &format!("{other:?} is not supported; known are default, linear, llama3"))),
    }
}

/// The tower of LLaVA-1.5 and MobileVLM where the checkpoint only names it: CLIP ViT-L/14-336.
/// Source: `openai/clip-vit-large-patch14-336`, `config.json`.
pub(crate) fn clip_l14_336() -> Value {
    serde_json::json!({
        "model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024,
        "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu"
    })
}

/// The tower of Imp and TinyLLaVA where the checkpoint only names it: SigLIP-so400m/14-384.
/// Source: `google/siglip-so400m-patch14-384`, `config.json`.
pub(crate) fn siglip_so400m_14_384() -> Value {
    serde_json::json!({
        "model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, "hidden_size": 1152,
        "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16
    })
}

/// An activation by the name transformers gives it.
pub(crate) fn activation(config: &HfConfig<'_>, name: &str) -> Result<Activation, ModelError> {
    match name {
        "quick_gelu" => Ok(Activation::QuickGelu),
        "gelu" => Ok(Activation::GeluErf),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "silu" | "swish" => Ok(Activation::Silu),
        "relu" => Ok(Activation::Relu),
        other => Err(config.bad("hidden_act", &format!("{other:?} is not supported"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder;

    #[test]
    fn both_spellings_of_a_configuration_are_one() {
        let read = decoder::from_hf;
        for folder in
            ["llama-odd", "phi2", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "olmoe", "gemma", "mixtral"]
        {
            let of = |file: &str| {
                let at = format!("{}/../../tests/golden/{folder}/{file}", env!("CARGO_MANIFEST_DIR"));
                let json: Value = serde_json::from_str(&std::fs::read_to_string(at).unwrap()).unwrap();
                read(&HfConfig::new(&json)).unwrap()
            };
            assert_eq!(of("config.json"), of("config.transformers4.json"), "{folder}");
        }
        let phi = decoder::from_hf(&HfConfig::new(&serde_json::json!({ "model_type": "phi" }))).unwrap();
        assert_eq!((phi.width, phi.rotary), (2048, 32), "Phi-1.5 leaves out what equals the defaults");
        let mixed = serde_json::json!({
            "model_type": "phi",
            "rope_parameters": { "rope_type": "default" }, "partial_rotary_factor": 0.25, "rope_theta": 5000.0,
        });
        let phi = decoder::from_hf(&HfConfig::new(&mixed)).unwrap();
        assert_eq!((phi.rotary, phi.rope_base), (16, 5000.0), "what the object leaves out stands beside it");
    }
}
