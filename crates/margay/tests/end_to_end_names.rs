//! Checkpoints under the names of older releases are the same models.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{
    Image, ModelSource, TraceOptions,
    rooms::{
        file::{SafeTensors, TensorSource, safetensors::write_safetensors},
        tensor::{DType, Shape, Tensor},
    },
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

/// As for the checkpoints under their usual names.
const LOGITS_TOLERANCE: f32 = 1e-4;

fn f32s(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Names and sizes as the first releases of Phi had them: `transformer.h.N`, queries, keys and values in one matrix.
fn first_release(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let mut renamed = BTreeMap::new();
    for (name, tensor) in tensors {
        let is_tower = name.contains("vision_tower") || name.contains("mm_projector");
        if !is_tower && let Some((before, kind)) = name.split_once("self_attn.q_proj.") {
            let parts = ["q", "k", "v"].map(|p| &tensors[&format!("{before}self_attn.{p}_proj.{kind}")]);
            let mut dims = tensor.shape().dims().to_vec();
            dims[0] *= 3;
            let values: Vec<f32> = parts.into_iter().flat_map(f32s).collect();
            let whole = Tensor::from_f32(Shape::from(dims), &values).unwrap();
            let before = before.replace("model.layers.", "transformer.h.");
            renamed.insert(format!("{before}mixer.Wqkv.{kind}"), whole);
            continue;
        }
        if !is_tower && ["k_proj", "v_proj"].iter().any(|part| name.contains(part)) {
            continue;
        }
        let to = if is_tower {
            name.replacen("model.", "transformer.", 1)
        } else {
            name.replace("model.layers.", "transformer.h.")
                .replace("input_layernorm", "ln")
                .replace("self_attn.dense", "mixer.out_proj")
                .replace("model.embed_tokens", "transformer.embd.wte")
                .replace("model.final_layernorm", "lm_head.ln")
                .replace("lm_head.weight", "lm_head.linear.weight")
                .replace("lm_head.bias", "lm_head.linear.bias")
        };
        renamed.insert(to, tensor.clone());
    }
    renamed
}

fn first_config(config: &Value) -> Value {
    let mut old = config.clone();
    let object = old.as_object_mut().unwrap();
    let heads = object["num_attention_heads"].as_u64().unwrap();
    let rope = object.remove("rope_parameters").unwrap_or_default();
    let factor = [&rope, config].iter().find_map(|o| o["partial_rotary_factor"].as_f64()).unwrap();
    let head_dim = object["hidden_size"].as_u64().unwrap() / heads;
    object.remove("partial_rotary_factor");
    object.insert("rotary_dim".into(), json!((head_dim as f64 * factor).round() as u64));
    for (new, first) in [
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("intermediate_size", "n_inner"),
        ("max_position_embeddings", "n_positions"),
        ("layer_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation_function"),
    ] {
        let value = object.remove(new).unwrap();
        object.insert(first.into(), value);
    }
    object.remove("num_key_value_heads");
    old
}

#[test]
fn first_releases_of_phi_and_imp_are_the_same_models() {
    for (name, images) in [("phi2", 0), ("imp", 1)] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let out = std::env::temp_dir().join(format!("margay-names-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&out).unwrap();
        let stored = SafeTensors::open(folder.join("model.safetensors")).unwrap();
        let tensors =
            stored.tensors().map(|(name, _)| (name.to_owned(), stored.tensor(name).unwrap())).collect();
        let renamed = first_release(&tensors);
        assert!(renamed.keys().all(|name| !name.contains("model.layers.")), "{name}");
        let named: Vec<_> = renamed.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        write_safetensors(out.join("model.safetensors"), &named, &BTreeMap::new()).unwrap();
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
        let config: Value = serde_json::from_str(&read("config.json")).unwrap();
        std::fs::write(out.join("config.json"), first_config(&config).to_string()).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"] {
            if folder.join(file).exists() {
                std::fs::write(out.join(file), read(file)).unwrap();
            }
        }
        let prompt: Value = serde_json::from_str(&read("prompt.json")).unwrap();
        let case = &prompt["cases"][0];
        let images: Vec<_> = (0..images).map(|_| Image::open(folder.join("wide.png")).unwrap()).collect();
        let options = TraceOptions { raw_prompt: true, ..TraceOptions::default() };
        let source = ModelSource::open(&out, None).unwrap();
        let stages = source.trace(&images, case["prompt"].as_str().unwrap(), &options).unwrap();
        let got = f32s(&stages.iter().find(|(stage, _)| stage == "logits").unwrap().1);
        let golden = format!("golden.{}.safetensors", case["name"].as_str().unwrap());
        let golden = SafeTensors::open(folder.join(golden)).unwrap();
        let expected = f32s(&golden.tensor("logits").unwrap());
        assert!(got.len() >= expected.len() && !expected.is_empty(), "{name}");
        let got = &got[got.len() - expected.len()..];
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let error = got.iter().zip(&expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(error <= LOGITS_TOLERANCE, "{name}: {error:e}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}
