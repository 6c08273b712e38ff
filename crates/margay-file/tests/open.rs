//! Whatever a person hands over as a model is opened, or named for what it is.
#![allow(clippy::unwrap_used, reason = "a test that fails has to say where")]

use std::{fs, path::Path};

use margay_file::{
    FileError, Gguf, ModelFiles, TensorSource,
    gguf::{self, Metadata, Value, write_gguf},
    open_model,
    safetensors::write_safetensors,
};
use margay_tensor::{Shape, Storage, Tensor};
use tempfile::TempDir;

fn tensor() -> Tensor {
    Tensor::from_f32(Shape::from([2]), &[1.0, 2.0]).unwrap()
}

fn text_model(folder: &Path, name: &str) {
    let meta = Metadata::from_iter([("general.architecture", "llama")]);
    write_gguf(folder.join(name), &meta, &[("token_embd.weight", &tensor())]).unwrap();
}

fn vision_part(folder: &Path, name: &str) {
    let meta = Metadata::from_iter([
        ("general.architecture", Value::from("clip")),
        // Tells the parts apart in the tests below.
        ("general.name", name.into()),
        ("clip.has_vision_encoder", true.into()),
    ]);
    write_gguf(folder.join(name), &meta, &[("v.class_embd", &tensor())]).unwrap();
}

/// A folder with these text models and vision parts.
fn folder(texts: &[&str], visions: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    texts.iter().for_each(|name| text_model(folder.path(), name));
    visions.iter().for_each(|name| vision_part(folder.path(), name));
    folder
}

/// Name of the vision part that is found beside `model`.
fn paired(folder: &TempDir, model: &str) -> Result<Option<String>, FileError> {
    match open_model(folder.path().join(model), None)? {
        ModelFiles::Gguf { vision, .. } => {
            Ok(vision.map(|vision| vision.metadata().str("general.name").unwrap().to_owned()))
        }
        ModelFiles::Hf(_) => panic!("expected GGUF"),
    }
}

#[test]
fn the_only_vision_part_is_taken_whatever_its_name() {
    assert_eq!(paired(&folder(&["a.gguf"], &[]), "a.gguf").unwrap(), None);
    assert_eq!(
        paired(&folder(&["a.gguf", "b.gguf"], &["mmproj-f16.gguf"]), "b.gguf").unwrap().unwrap(),
        "mmproj-f16.gguf"
    );
    assert_eq!(paired(&folder(&["a.gguf"], &["vision.gguf"]), "a.gguf").unwrap().unwrap(), "vision.gguf");
    // The whole folder is the model, too.
    assert_eq!(paired(&folder(&["a.gguf"], &["a.mmproj.gguf"]), "").unwrap().unwrap(), "a.mmproj.gguf");
}

#[test]
fn of_several_vision_parts_the_one_with_the_longest_common_name_is_taken() {
    let visions =
        ["mmproj-llava-v1.5-7b-f16.gguf", "mmproj-llava-v1.5-13b-f16.gguf", "MobileVLM-mmproj-f16.gguf"];
    let folder = folder(&["llava-v1.5-7b-Q4_K_M.gguf", "MobileVLM-q8_0.gguf", "imp.gguf"], &visions);
    assert_eq!(paired(&folder, "llava-v1.5-7b-Q4_K_M.gguf").unwrap().unwrap(), visions[0]);
    assert_eq!(paired(&folder, "MobileVLM-q8_0.gguf").unwrap().unwrap(), visions[2]);
    let text = paired(&folder, "imp.gguf").unwrap_err().to_string();
    assert!(visions.iter().all(|name| text.contains(name)) && text.contains("--mmproj"), "{text}");
}

#[test]
fn a_tie_is_an_error_that_lists_the_tied_and_an_explicit_choice_wins() {
    let visions = ["mmproj-a-f16.gguf", "mmproj-a-q8_0.gguf", "mmproj-b.gguf"];
    let folder = folder(&["a-q4_0.gguf"], &visions);
    let error = paired(&folder, "a-q4_0.gguf").unwrap_err();
    let FileError::Ambiguous { candidates, .. } = &error else { panic!("{error}") };
    assert_eq!(candidates, &visions[..2]);
    let chosen = folder.path().join(visions[2]);
    let ModelFiles::Gguf { vision, .. } =
        open_model(folder.path().join("a-q4_0.gguf"), Some(&chosen)).unwrap()
    else {
        panic!("expected GGUF");
    };
    assert_eq!(vision.unwrap().metadata().str("general.name").unwrap(), visions[2]);
}

#[test]
fn both_parts_may_be_in_one_file_or_in_memory() {
    let meta = Metadata::from_iter([
        ("general.architecture", Value::from("llama")),
        ("clip.has_vision_encoder", true.into()),
    ]);
    let bytes =
        gguf::to_bytes(&meta, &[("token_embd.weight", &tensor()), ("v.class_embd", &tensor())]).unwrap();
    let folder = folder(&[], &["mmproj.gguf"]);
    fs::write(folder.path().join("both.gguf"), &bytes).unwrap();
    let from_disk = open_model(folder.path().join("both.gguf"), None).unwrap();
    let from_memory = ModelFiles::from_bytes(Storage::from_bytes(&bytes)).unwrap();
    for model in [from_disk, from_memory] {
        assert_eq!(model.sources().len(), 1);
        assert!(model.sources()[0].info("v.class_embd").is_some());
        let ModelFiles::Gguf { text, vision } = model else { panic!("expected GGUF") };
        assert!(vision.unwrap().is_same(&text));
    }
}

/// What the error says about a file of these bytes.
fn refused(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let text = open_model(&path, None).unwrap_err().to_string();
    assert!(text.contains(name), "{text}");
    text
}

#[test]
fn wrong_things_are_named_for_what_they_are() {
    let things: [(&str, &[u8], &str); 14] = [
        ("cat.png", b"\x89PNG\r\n\x1a\n", "PNG picture"),
        ("cat.jpg", b"\xff\xd8\xff\xe0", "JPEG picture"),
        ("notes.txt", "Grüße".as_bytes(), "text file"),
        ("config.json", b"{\"a\": 1}", "JSON file"),
        ("pytorch_model.bin", b"PK\x03\x04\0\0", "pickled PyTorch"),
        ("old.pt", b"\x80\x02\x8a\x0a", "pickled PyTorch"),
        ("empty.gguf", b"", "empty file"),
        ("page.gguf", b"<!DOCTYPE html><html>", "web page"),
        ("lfs.gguf", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("ggml.bin", b"tjgg\x03\0\0\0", "before GGUF"),
        ("big.gguf", b"FUGG\x03\0\0\0", "big-endian"),
        ("noise.bin", b"\0\xfe\x01\x02\xff", "unknown kind"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{\"a\":1}", "safetensors file alone"),
        ("cut.gguf", b"GGUF\x03\0\0\0", "number of tensors at byte 8"),
    ];
    for (name, bytes, says) in things {
        let text = refused(name, bytes);
        assert!(text.contains(says), "{name}: {text}");
    }
}

#[test]
fn wrong_parts_are_named_for_what_they_are() {
    let folder = folder(&["a.gguf", "b.gguf"], &["mmproj.gguf"]);
    let at = |name: &str| folder.path().join(name);
    let fails = |model: &str, mmproj: Option<&str>, says: &str| {
        let mmproj = mmproj.map(at);
        let text = open_model(at(model), mmproj.as_deref()).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    };
    fails("mmproj.gguf", None, "--mmproj");
    fails("a.gguf", Some("b.gguf"), "without a vision part");
    fails("a.gguf", Some("absent.gguf"), "absent.gguf");
    fails("absent.gguf", None, "cannot open");
    fails("", None, "several models: a.gguf, b.gguf");
    write_gguf(at("split.gguf"), &Metadata::from_iter([("split.count", 3u16)]), &[]).unwrap();
    fails("split.gguf", None, "one of 3 parts");
    write_gguf(at("imatrix.gguf"), &Metadata::from_iter([("general.type", "imatrix")]), &[]).unwrap();
    fails("imatrix.gguf", None, "imatrix");
}

#[test]
fn folders_without_a_model_are_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let refused = || open_model(folder.path(), None).unwrap_err().to_string();
    assert!(refused().contains("a folder without a model"));
    write_safetensors(folder.path().join("model.safetensors"), &[("w", &tensor())], &Default::default())
        .unwrap();
    assert!(refused().contains("config.json"));
    fs::write(folder.path().join("config.json"), "{\"model_type\": \"llava\"}").unwrap();
    let ModelFiles::Hf(checkpoint) = open_model(folder.path(), None).unwrap() else {
        panic!("expected a checkpoint")
    };
    assert_eq!(checkpoint.config()["model_type"], "llava");
    assert_eq!(checkpoint.tensor("w").unwrap().bytes(), tensor().bytes());
    assert!(open_model(folder.path(), Some(Path::new("x.gguf"))).is_err());
}

#[test]
fn a_gguf_file_beside_the_originals_config_is_the_model() {
    let folder = folder(&["a.gguf"], &["mmproj.gguf"]);
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let model = open_model(folder.path(), None).unwrap();
    assert!(matches!(model, ModelFiles::Gguf { vision: Some(_), .. }));
    assert_eq!(model.names().collect::<Vec<_>>(), ["token_embd.weight", "v.class_embd"]);
    assert_eq!(model.tensor("v.class_embd").unwrap().bytes(), tensor().bytes());
    assert!(model.tensor("absent").is_err() && model.info("absent").is_none());
}

#[test]
fn chat_templates_are_found_in_all_three_places() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write_safetensors(folder.path().join("model.safetensors"), &[("w", &tensor())], &Default::default())
        .unwrap();
    write("config.json", "{}");
    let template = || {
        let ModelFiles::Hf(checkpoint) = open_model(folder.path(), None).unwrap() else {
            panic!("not a checkpoint")
        };
        checkpoint.chat_template().unwrap()
    };
    assert_eq!(template(), None);
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#,
    );
    assert_eq!(template().unwrap(), "d");
    write("chat_template.json", r#"{"chat_template": "j"}"#);
    assert_eq!(template().unwrap(), "j");
    write("chat_template.jinja", "{{ jinja }}");
    assert_eq!(template().unwrap(), "{{ jinja }}");
}

#[test]
fn a_mapped_model_can_be_used_from_another_thread() {
    let folder = folder(&["a.gguf"], &[]);
    let file = Gguf::open(folder.path().join("a.gguf")).unwrap();
    let read = std::thread::spawn(move || file.tensor("token_embd.weight").unwrap().bytes().to_vec())
        .join()
        .unwrap();
    assert_eq!(read, tensor().bytes());
}
