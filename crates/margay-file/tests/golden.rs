//! Files made by the published Python packages (see `tests/golden/make_gguf.py` in the repository).
#![allow(clippy::unwrap_used, reason = "a test that fails has to say where")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use margay_file::{
    Gguf, HfFolder, ModelFiles, SafeTensors, TensorSource,
    gguf::{Array, Value},
    open_model,
    tokenizer_model::TokenizerModel,
};
use serde_json::Value as Json;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn json(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn hex(json: &Json) -> u64 {
    u64::from_str_radix(json.as_str().unwrap(), 16).unwrap()
}

/// Type name, value and, for floats, bits as the JSON files spell them.
fn spelled(value: &Value) -> (String, Json, Option<Vec<u64>>) {
    macro_rules! many {
        ($items:expr) => {
            $items.iter().map(|v| Json::from(v.to_owned())).collect::<Vec<_>>().into()
        };
    }
    let plain = |json: Json| (value.value_type().name().to_owned(), json, None);
    match value {
        Value::F32(v) => ("f32".to_owned(), Json::Null, Some(vec![v.to_bits().into()])),
        Value::F64(v) => ("f64".to_owned(), Json::Null, Some(vec![v.to_bits()])),
        Value::Bool(v) => plain((*v).into()),
        Value::String(v) => plain(v.as_str().into()),
        Value::U64(v) => plain((*v).into()),
        Value::Array(array) => {
            let name = format!("[{}]", array.element_type().name());
            let (json, bits) = match array {
                Array::F32(v) => (Json::Null, Some(v.iter().map(|v| v.to_bits().into()).collect())),
                Array::F64(v) => (Json::Null, Some(v.iter().map(|v| v.to_bits()).collect())),
                Array::U8(v) => (many!(v), None),
                Array::I8(v) => (many!(v), None),
                Array::U16(v) => (many!(v), None),
                Array::I16(v) => (many!(v), None),
                Array::U32(v) => (many!(v), None),
                Array::I32(v) => (many!(v), None),
                Array::U64(v) => (many!(v), None),
                Array::I64(v) => (many!(v), None),
                Array::Bool(v) => (many!(v), None),
                Array::String(v) => (many!(v), None),
            };
            (name, json, bits)
        }
        integer => plain(i64::try_from(integer.as_integer().unwrap()).unwrap().into()),
    }
}

fn check(name: &str) -> Gguf {
    let path = golden().join("gguf").join(name).with_extension("gguf");
    let expected = json(&path.with_extension("json"));
    let file = Gguf::open(&path).unwrap();
    assert_eq!(u64::from(file.version()), expected["version"]);
    assert_eq!(u64::from(file.alignment()), expected["alignment"]);
    let entries = expected["metadata"].as_array().unwrap();
    assert_eq!(file.metadata().len(), entries.len(), "{name}");
    for ((key, value), entry) in file.metadata().iter().zip(entries) {
        let (kind, json, bits) = spelled(value);
        assert_eq!((key, kind.as_str()), (entry["key"].as_str().unwrap(), entry["type"].as_str().unwrap()));
        match (bits, &entry["bits"]) {
            (None, _) => assert_eq!(json, entry["value"], "{key}"),
            (Some(bits), Json::Array(expected)) => {
                assert_eq!(bits, expected.iter().map(hex).collect::<Vec<_>>(), "{key}")
            }
            (Some(bits), expected) => assert_eq!(bits, [hex(expected)], "{key}"),
        }
    }
    let bytes = fs::read(&path).unwrap();
    let tensors = expected["tensors"].as_array().unwrap();
    assert_eq!(file.tensors().len(), tensors.len());
    for ((name, info), entry) in file.tensors().zip(tensors) {
        assert_eq!(name, entry["name"]);
        assert_eq!(info.dtype.name(), entry["type"].as_str().unwrap().to_lowercase());
        let ne: Vec<_> = info.shape.dims().iter().rev().map(|&n| Json::from(n)).collect();
        assert_eq!(Json::from(ne), entry["ne"], "{name}");
        let number = |json: &Json| json.as_u64().unwrap() as usize;
        let start = number(&expected["data_start"]) + number(&entry["offset"]);
        let data = &bytes[start..start + number(&entry["bytes"])];
        assert_eq!(file.tensor(name).unwrap().bytes(), data, "{name}");
    }
    file
}

#[test]
fn all_metadata_types_are_read_as_the_python_package_wrote_them() {
    assert!(check("all_kv_types").metadata().len() > 50);
}

#[test]
fn tensors_of_each_type_are_read_as_the_python_package_wrote_them() {
    let file = check("tensors");
    let values = SafeTensors::open(golden().join("gguf/tensors.safetensors")).unwrap();
    assert_eq!(values.tensors().len(), file.tensors().len());
    for name in ["odd.f32", "w.f32", "k.f32"] {
        let (stored, expected) = (file.tensor(name).unwrap(), values.tensor(name).unwrap());
        assert_eq!(stored.bytes(), expected.bytes(), "{name}");
        assert_eq!(stored.shape(), expected.shape());
    }
    for (name, info) in file.tensors() {
        assert_eq!(info.shape, values.info(name).unwrap().shape, "{name}");
    }
}

#[test]
fn another_alignment_and_version_2_are_read() {
    assert_eq!(check("align64").alignment(), 64);
    assert_eq!(check("v2").version(), 2);
}

#[test]
fn a_sharded_checkpoint_is_read_like_one_file() {
    let folder = HfFolder::open(golden().join("llama-sharded")).unwrap();
    let index = json(&golden().join("llama-sharded/model.safetensors.index.json"));
    let weights = index["weight_map"].as_object().unwrap();
    assert_eq!(folder.names().count(), weights.len());
    for (name, file) in weights {
        let shard = SafeTensors::open(folder.path().join(file.as_str().unwrap())).unwrap();
        assert_eq!(folder.tensor(name).unwrap().bytes(), shard.tensor(name).unwrap().bytes());
    }
    assert_eq!(folder.config()["model_type"], "llama");
    assert!(folder.tokenizer_json().unwrap().is_some() && folder.tokenizer_model().unwrap().is_some());
    assert!(folder.tokenizer_config().unwrap().is_some() && folder.special_tokens_map().unwrap().is_some());
    assert!(folder.generation_config().unwrap().is_some());
    assert!(folder.processor_config().unwrap().is_none());
}

#[test]
fn checkpoints_of_every_golden_family_are_opened() {
    for name in ["llama", "llama-odd", "llava", "llava-hf", "mobilevlm-v1", "mobilevlm-v2"] {
        let ModelFiles::Hf(folder) = open_model(golden().join(name), None).unwrap() else { panic!("{name}") };
        assert!(folder.names().count() > 10, "{name}");
        for tensor in folder.names() {
            let info = folder.info(tensor).unwrap();
            assert_eq!(folder.tensor(tensor).unwrap().bytes().len(), info.size_bytes().unwrap());
        }
    }
}

#[test]
fn sentencepiece_pieces_equal_those_of_the_gguf_vocabulary() {
    let folder = golden().join("tokenizers/spm");
    let model = TokenizerModel::from_bytes(&fs::read(folder.join("tokenizer.model")).unwrap()).unwrap();
    let file = Gguf::open(folder.join("tokenizer.gguf")).unwrap();
    let meta = file.metadata();
    let texts: Vec<_> = model.pieces.iter().map(|piece| piece.text.as_str()).collect();
    assert_eq!(texts, meta.strings("tokenizer.ggml.tokens").unwrap().iter().collect::<Vec<_>>());
    let scores: Vec<_> = model.pieces.iter().map(|piece| piece.score).collect();
    assert_eq!(scores, meta.f32s("tokenizer.ggml.scores").unwrap()[..]);
    let types: Vec<_> = model.pieces.iter().map(|piece| piece.piece_type as i32).collect();
    assert_eq!(types, meta.i32s("tokenizer.ggml.token_type").unwrap()[..]);
    assert_eq!(model.bos_id, meta.i32("tokenizer.ggml.bos_token_id").unwrap());
    assert_eq!(model.eos_id, meta.i32("tokenizer.ggml.eos_token_id").unwrap());
    assert!(model.byte_fallback && model.add_dummy_prefix);
}
