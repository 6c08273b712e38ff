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

/// A name of the original FastVLM repository as transformers' `fast_vlm` has it, with timm's tower.
fn fast_vlm_name(name: &str) -> String {
    const NETWORK: [&str; 11] = [
        "stages.0.blocks",
        "stages.1.downsample",
        "stages.1.blocks",
        "stages.2.downsample",
        "stages.2.blocks",
        "stages.3.downsample",
        "stages.3.pos_emb",
        "stages.3.blocks",
        "stages.4.downsample",
        "stages.4.pos_emb",
        "stages.4.blocks",
    ];
    let Some(inner) = name.strip_prefix("model.vision_tower.vision_tower.model.") else {
        return name
            .replace("mm_projector.0", "multi_modal_projector.linear_1")
            .replace("mm_projector.2", "multi_modal_projector.linear_2")
            .replace("model.layers", "model.language_model.layers")
            .replace("model.embed_tokens", "model.language_model.embed_tokens")
            .replace("model.norm", "model.language_model.norm");
    };
    let (first, rest) = inner.split_once('.').unwrap();
    let inner = match first {
        "patch_embed" => format!("stem.{rest}"),
        "conv_exp" => format!("final_conv.{}", rest.replace("reduce", "fc1").replace("expand", "fc2")),
        "network" => {
            let (at, rest) = rest.split_once('.').unwrap();
            let rest = rest.replace("convffn", "mlp").replace("lkb_reparam", "reparam_conv");
            let gamma = if rest.contains("layer_scale") { ".gamma" } else { "" };
            format!("{}.{rest}{gamma}", NETWORK[at.parse::<usize>().unwrap()])
        }
        _ => panic!("{name}"),
    };
    format!("model.vision_tower.timm_model.{inner}")
}

#[test]
fn fastvlm_under_the_names_of_transformers_is_the_same_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fastvlm");
    let out = std::env::temp_dir().join(format!("margay-names-fastvlm-{}", std::process::id()));
    std::fs::create_dir_all(&out).unwrap();
    let stored = SafeTensors::open(folder.join("model.safetensors")).unwrap();
    let tensors: Vec<_> =
        stored.tensors().map(|(name, _)| (fast_vlm_name(name), stored.tensor(name).unwrap())).collect();
    let named: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    write_safetensors(out.join("model.safetensors"), &named, &BTreeMap::new()).unwrap();
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let json = |file: &str| serde_json::from_str::<Value>(&read(file)).unwrap();
    let old = json("config.json");
    let mut text = old.clone();
    text["model_type"] = "qwen2".into();
    let mut args = json!({ "inference_mode": true });
    for field in ["layers", "embed_dims", "mlp_ratios"] {
        args[field] = old["vision_config"][field].clone();
    }
    let config = json!({
        "model_type": "fast_vlm", "image_seq_length": 4, "projector_hidden_act": "gelu",
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full", "text_config": text,
        "vision_config": { "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "model_args": args },
    });
    std::fs::write(out.join("config.json"), config.to_string()).unwrap();
    let mut processor = json("preprocessor_config.json");
    processor["do_pad"] = true.into();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(out.join(file), read(file)).unwrap();
    }
    let case = &json("prompt.json")["cases"][0];
    let image = || Image::open(folder.join(case["images"][0].as_str().unwrap())).unwrap();
    let expected = SafeTensors::open(folder.join("golden.wide.safetensors")).unwrap();
    let expected = f32s(&expected.tensor("logits").unwrap());
    // The pictures' side stands in the processor, or follows from the tokens.
    for sizes in [true, false] {
        if !sizes {
            let object = processor.as_object_mut().unwrap();
            object.retain(|field, _| field != "crop_size" && field != "size");
        }
        std::fs::write(out.join("preprocessor_config.json"), processor.to_string()).unwrap();
        let source = ModelSource::open(&out, None).unwrap();
        assert_eq!(source.family.id, "fastvlm");
        let options = TraceOptions { raw_prompt: true, ..TraceOptions::default() };
        let stages = source.trace(&[image()], case["prompt"].as_str().unwrap(), &options).unwrap();
        let got = f32s(&stages.iter().find(|(stage, _)| stage == "logits").unwrap().1);
        let got = &got[got.len() - expected.len()..];
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let error = got.iter().zip(&expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(error <= LOGITS_TOLERANCE, "{error:e}");
    }
    std::fs::remove_dir_all(&out).unwrap();
}

/// The parts of one repository under the names of LLaVA's, which has the decoder's fields at the top and calls itself after it.
#[test]
fn llava_with_phi_and_with_qwen2_are_the_models_that_have_the_same_parts() {
    const PLACES: [(&str, &str); 3] = [
        ("vision_tower._vision_tower.", "model.vision_tower.vision_tower."),
        ("connector._connector.", "model.mm_projector."),
        ("language_model.", ""),
    ];
    for (name, model_type, family) in
        [("imp", "llava_phi", "llava"), ("tinyllava-clip", "llava_qwen2", "fastvlm")]
    {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let out = tempfile::tempdir().unwrap();
        let stored = SafeTensors::open(folder.join("model.safetensors")).unwrap();
        let usual = |name: &str| {
            let place = PLACES.iter().find(|(own, _)| name.starts_with(own));
            place.map_or_else(|| name.to_owned(), |(own, usual)| format!("{usual}{}", &name[own.len()..]))
        };
        let tensors: Vec<_> =
            stored.tensors().map(|(name, _)| (usual(name), stored.tensor(name).unwrap())).collect();
        let named: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        write_safetensors(out.path().join("model.safetensors"), &named, &BTreeMap::new()).unwrap();
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
        let own: Value = serde_json::from_str(&read("config.json")).unwrap();
        let mut config = own.get("text_config").unwrap_or(&own).clone();
        for (field, value) in [
            ("model_type", json!(model_type)),
            ("vision_config", own["vision_config"].clone()),
            ("image_aspect_ratio", json!("square")),
            ("mm_projector_type", json!("mlp2x_gelu")),
            ("mm_vision_select_layer", json!(-2)),
        ] {
            config[field] = value;
        }
        std::fs::write(out.path().join("config.json"), config.to_string()).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"] {
            std::fs::write(out.path().join(file), read(file)).unwrap();
        }
        let source = ModelSource::open(out.path(), None).unwrap();
        assert_eq!(source.family.id, family);
        let prompt: Value = serde_json::from_str(&read("prompt.json")).unwrap();
        let case = prompt["cases"].as_array().unwrap().iter().find(|case| case["name"] == "wide").unwrap();
        let image = Image::open(folder.join("wide.png")).unwrap();
        let options = TraceOptions { raw_prompt: true, ..TraceOptions::default() };
        let stages = source.trace(&[image], case["prompt"].as_str().unwrap(), &options).unwrap();
        let got = f32s(&stages.iter().find(|(stage, _)| stage == "logits").unwrap().1);
        let golden = SafeTensors::open(folder.join("golden.wide.safetensors")).unwrap();
        let expected = f32s(&golden.tensor("logits").unwrap());
        let got = &got[got.len() - expected.len()..];
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let error = got.iter().zip(&expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(error <= LOGITS_TOLERANCE, "{name}: {error:e}");
    }
}
