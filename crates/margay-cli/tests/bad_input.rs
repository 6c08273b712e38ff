//! Whatever is wrong with the input, one line says so, with the documented exit code.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{Ran, finish, golden, margay, run, tiny_gguf, word, written};
use std::path::Path;

/// A PNG that announces 30000 x 30000 pixels in a few bytes.
fn png_bomb() -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = vec![];
    header.extend(30_000u32.to_be_bytes());
    header.extend(30_000u32.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    // The beginning of a deflate stream of zeros; what matters is that nobody asks for 2.7 GB to unpack it into.
    for (kind, data) in
        [(b"IHDR", &header[..]), (b"IDAT", &[0x78, 0x01, 0xed, 0xc1, 1, 1][..]), (b"IEND", &[][..])]
    {
        png.extend((data.len() as u32).to_be_bytes());
        let chunk = [&kind[..], data].concat();
        png.extend(&chunk);
        png.extend(crc32(&chunk).to_be_bytes());
    }
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn ask(model: &str, words: &[&str]) -> Ran {
    run(["run", model].iter().chain(words))
}

#[test]
fn a_truncated_model_is_named_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(tiny_gguf(folder.path())).unwrap();
    let cut = written(folder.path(), "cut.gguf", &whole[..whole.len() / 2]);
    ask(&cut, &["hello"]).fails(1, &["cut.gguf", "at byte"]);
    run(["inspect", &cut]).fails(1, &["cut.gguf", "at byte"]);
    let stump = written(folder.path(), "stump.gguf", &whole[..10]);
    ask(&stump, &["hello"]).fails(1, &["stump.gguf"]);
    let empty = written(folder.path(), "empty.gguf", b"");
    ask(&empty, &["hello"]).fails(1, &["empty.gguf is an empty file"]);
}

#[test]
fn a_picture_that_is_text_is_called_so() {
    let folder = tempfile::tempdir().unwrap();
    let text = written(folder.path(), "note.png", b"buy milk and eggs");
    ask(&golden("llava"), &[&text]).fails(1, &["note.png", "not a picture", "text"]);
    run(["trace", &golden("llava"), "-i", &text, "-p", "x", "-o", "x.safetensors"]).fails(1, &["note.png"]);
}

#[test]
fn a_decompression_bomb_is_refused_by_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let bomb = written(folder.path(), "bomb.png", &png_bomb());
    ask(&golden("llava"), &[&bomb, "What?"]).fails(1, &["bomb.png", "30000x30000", "limit"]);
}

#[test]
fn an_empty_prompt_is_nothing_to_ask() {
    ask(&golden("llama"), &["--prompt", ""]).fails(1, &["nothing to ask"]);
    ask(&golden("llama"), &["--prompt", " \n\t"]).fails(1, &["nothing to ask"]);
    ask(&golden("llama"), &[]).fails(1, &["nothing to ask"]);
}

#[test]
fn a_prompt_longer_than_the_context_says_both_numbers() {
    let long = "hello ".repeat(200);
    ask(&golden("llama"), &[&long, "--context", "64"]).fails(1, &["tokens", "64", "--context"]);
    let image = golden("llava/wide.png");
    ask(&golden("llava"), &[&image, "--context", "12"]).fails(1, &["16 of them visual", "12"]);
}

#[test]
fn a_text_model_cannot_look_at_a_picture() {
    let image = golden("llava/wide.png");
    ask(&golden("llama"), &[&image, "What?"]).fails(1, &["no vision tower", "--mmproj"]);
    run(["trace", &golden("llama"), "-i", &image, "-p", "x", "-o", "/dev/null"])
        .fails(1, &["no vision tower"]);
}

#[test]
fn what_is_not_there_is_named() {
    ask(&golden("llama"), &["gone.png"]).fails(1, &["no such picture: gone.png"]);
    ask(&golden("llama"), &["--image", "gone.bin", "hi"]).fails(1, &["gone.bin"]);
    run(["run", "gone.gguf", "hi"]).fails(1, &["no such model: gone.gguf"]);
    run(["run", "--model", "/no/such/folder", "hi"]).fails(1, &["cannot open /no/such/folder"]);
    run(["inspect", "gone.gguf"]).fails(1, &["cannot open gone.gguf"]);
    run(["convert", "gone", "-o", "out.gguf"]).fails(1, &["cannot open gone"]);
    ask(&golden("llama"), &["--mmproj", "gone.gguf", "hi"]).fails(1, &["--mmproj"]);
}

/// A copy of a golden folder with other values in its config.json.
fn changed(folder: &Path, name: &str, fields: &[(&str, serde_json::Value)]) -> String {
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, value) in fields {
        config[field] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn a_model_that_only_looks_like_a_known_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tiles = changed(folder.path(), "llava", &[("image_aspect_ratio", "anyres".into())]);
    ask(&tiles, &["hello"]).fails(1, &["image_aspect_ratio", "anyres", "not supported"]);
    let merged = changed(folder.path(), "llava", &[("mm_patch_merge_type", "spatial_unpad".into())]);
    ask(&merged, &["hello"]).fails(1, &["mm_patch_merge_type", "spatial_unpad"]);
    // A layer less than the file holds: the others would be left out.
    let shorter = changed(folder.path(), "llama", &[("num_hidden_layers", 2.into())]);
    ask(&shorter, &["hello"]).fails(1, &["model.layers.2.", "does not know it"]);
}

#[test]
fn a_folder_as_output_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let out = word(folder.path(), "taken");
    std::fs::create_dir(&out).unwrap();
    run(["convert", &golden("llava"), "-o", &out]).fails(1, &["taken", "directory"]);
    let nowhere = word(folder.path(), "missing/x.gguf");
    let ran = run(["convert", &golden("llava"), "-o", &nowhere]);
    assert!(!ran.stderr.contains(".part"), "{}", ran.stderr);
    ran.fails(1, &["missing/x.gguf", "No such file"]);
}

#[test]
fn an_unknown_family_is_named_beside_the_known_ones() {
    ask(&golden("gguf/tensors.gguf"), &["hi"]).fails(1, &["golden", "no model family", "llama", "mobilevlm"]);
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), "config.json", br#"{"model_type": "gpt9"}"#);
    std::fs::copy(golden("llama/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    ask(folder.path().to_str().unwrap(), &["hi"]).fails(1, &["gpt9", "no model family"]);
}

#[test]
fn what_is_no_model_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let page = written(folder.path(), "model.gguf", b"<!DOCTYPE html><html>");
    ask(&page, &["hi"]).fails(1, &["a web page"]);
    let bare = folder.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    ask(bare.to_str().unwrap(), &["hi"]).fails(1, &["without a model"]);
    ask(&golden("llama/model.safetensors"), &["hi"]).fails(1, &["safetensors", "config.json"]);
}

#[test]
fn words_that_do_not_fit_together_are_a_usage_error() {
    run(["run", &golden("llama"), &golden("llava"), "hi"]).fails(2, &["both models"]);
    run(["run", &golden("llama"), "hi", "--prompt", "ho"]).fails(2, &["the question", "twice"]);
    run(["run", &golden("llama"), "hi", "--model", &golden("llama")]).fails(2, &["the model", "twice"]);
    run(["tokenize"]).fails(2, &["give a text"]);
    for words in
        [&["run", "--threads", "0", "hi"][..], &["fly"], &["convert", "x"], &["run", "--backend", "abacus"]]
    {
        let ran = run(words);
        assert_eq!(ran.code, Some(2), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("error:"), "{}", ran.stderr);
    }
}

#[test]
fn an_instruction_set_that_is_not_here_is_refused() {
    let mut command = margay();
    command.args(["run", &golden("llama"), "hi"]).env("MARGAY_ISA", "abacus");
    finish(&mut command, "").fails(2, &["instruction set", "abacus", "scalar"]);
}

#[test]
fn settings_out_of_range_are_named() {
    ask(&golden("llama"), &["hi", "--temperature", "nan"]).fails(2, &["temperature"]);
    ask(&golden("llama"), &["hi", "--temperature", "1", "--top-p", "2"]).fails(2, &["top_p"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_working_directory_that_cannot_be_written_does_not_matter() {
    // Not even root can write there.
    let ran = finish(
        margay()
            .args(["run", &golden("llava"), &golden("llava/wide.png"), "--max-tokens", "3"])
            .current_dir("/proc"),
        "",
    );
    ran.ok();
    finish(margay().args(["convert", &golden("llama"), "-o", "out.gguf"]).current_dir("/proc"), "")
        .fails(1, &["cannot create out.gguf"]);
}

#[test]
fn nothing_is_left_where_nothing_could_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = word(&folder.path().join("gone"), "out.gguf");
    run(["convert", &golden("llama"), "-o", &nowhere]).fails(1, &["cannot create", "out.gguf"]);
    assert_eq!(program::names(folder.path()), [""; 0]);
    assert!(!Path::new(&nowhere).exists());
}
