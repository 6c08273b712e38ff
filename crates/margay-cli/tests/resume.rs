//! Conversions of checkpoints that are larger than what they may hold in memory, and conversions that are killed.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::{golden, margay, names, run, word};
use std::{
    io::Write,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

/// How long a test waits for what must come before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sizes of a LLaMA.
struct Shape {
    width: usize,
    ffn: usize,
    layers: usize,
    heads: usize,
}

/// A LLaMA checkpoint in float16 whose matrices are holes of a sparse file, or small numbers where `filled`.
fn checkpoint(folder: &Path, shape: &Shape, filled: bool) -> String {
    let llama = golden("llama");
    for name in ["tokenizer.json", "tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(&llama).join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(Path::new(&llama).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let (vocabulary, head_dim) = (512, 64);
    for (key, value) in [
        ("hidden_size", shape.width),
        ("intermediate_size", shape.ffn),
        ("num_hidden_layers", shape.layers),
        ("num_attention_heads", shape.heads),
        ("num_key_value_heads", shape.heads),
        ("head_dim", head_dim),
    ] {
        config[key] = value.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (width, ffn, attention) = (shape.width, shape.ffn, shape.heads * head_dim);
    let mut tensors = vec![
        ("model.embed_tokens".to_owned(), vec![vocabulary, width]),
        ("model.norm".to_owned(), vec![width]),
        ("lm_head".to_owned(), vec![vocabulary, width]),
    ];
    for layer in 0..shape.layers {
        for (name, sizes) in [
            ("input_layernorm", vec![width]),
            ("post_attention_layernorm", vec![width]),
            ("self_attn.q_proj", vec![attention, width]),
            ("self_attn.k_proj", vec![attention, width]),
            ("self_attn.v_proj", vec![attention, width]),
            ("self_attn.o_proj", vec![width, attention]),
            ("mlp.gate_proj", vec![ffn, width]),
            ("mlp.up_proj", vec![ffn, width]),
            ("mlp.down_proj", vec![width, ffn]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}"), sizes));
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, sizes) in tensors {
        let begin = end;
        end += 2 * sizes.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F16", "shape": sizes, "data_offsets": [begin, end] });
        header.insert(format!("{name}.weight"), entry);
    }
    let header = serde_json::Value::from(header).to_string();
    let mut file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    if filled {
        // Float16 numbers of any sign around 0.01.
        let mut state = 1u32;
        let mut number = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (0x2000u16 | (state >> 16) as u16 & 0x87ff).to_le_bytes()
        };
        let bytes: Vec<u8> = (0..end / 2).flat_map(|_| number()).collect();
        file.write_all(&bytes).unwrap();
    } else {
        file.set_len((8 + header.len() + end) as u64).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn a_conversion_holds_less_than_a_quarter_of_its_checkpoint_in_memory() {
    const MOST_BYTES: u64 = 112 << 20;
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Queries and keys are reordered, which goes another way than the other matrices.
    let shape = Shape { width: 1024, ffn: 1 << 13, layers: 6, heads: 64 };
    let model = checkpoint(source.path(), &shape, false);
    let size = std::fs::metadata(source.path().join("model.safetensors")).unwrap().len();
    assert!(size > 4 * MOST_BYTES, "{size}");
    let out = word(target.path(), "m.gguf");
    let report = run(["convert", &model, "-o", &out, "--type", "q4_0", "--json"]).json();
    let peak = report["peak_rss_bytes"].as_u64().unwrap();
    assert!(peak < MOST_BYTES, "{peak} bytes for a checkpoint of {size}");
    assert_eq!(report["resumed_tensors"], 0);
}

fn start(model: &str, out: &str, dtype: &str) -> Child {
    let mut command = margay();
    command.args(["convert", model, "-o", out, "--type", dtype]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Starts a conversion and kills it once so many tensors of its text file are whole.
#[track_caller]
fn killed(model: &str, out: &str, dtype: &str, tensors: usize) {
    kill(start(model, out, dtype), out, tensors);
}

/// Kills it once so many tensors of its text file are whole.
#[track_caller]
fn kill(mut child: Child, out: &str, tensors: usize) {
    let out = Path::new(out);
    let journal =
        out.with_file_name(format!(".{}.margay-journal", out.file_name().unwrap().to_str().unwrap()));
    let began = Instant::now();
    // The key and the head have a line each.
    while std::fs::read_to_string(&journal).unwrap_or_default().lines().count() < 2 + tensors {
        assert!(began.elapsed() < PATIENCE, "no {tensors} tensors after {PATIENCE:?}");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    // SIGKILL on Unix: nothing of the program runs any more.
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_conversion_leaves_no_file_of_the_name_and_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&target).unwrap();
    let model = checkpoint(&source, &Shape { width: 256, ffn: 1024, layers: 8, heads: 4 }, true);
    let whole = word(folder.path(), "whole.gguf");
    run(["convert", &model, "-o", &whole, "--type", "q6_k"]).ok();
    let whole = std::fs::read(whole).unwrap();
    let out = word(&target, "m.gguf");
    let again = || run(["convert", &model, "-o", &out, "--type", "q6_k", "--json"]).json();

    killed(&model, &out, "q6_k", 20);
    assert_eq!(names(&target), [".m.gguf.margay-journal", ".m.gguf.margay-part"]);
    let report = again();
    assert!(report["resumed_tensors"].as_u64().unwrap() >= 20, "{report}");
    assert!(std::fs::read(&out).unwrap() == whole, "the same bytes as without a kill");
    assert_eq!(names(&target), ["m.gguf"]);

    // What is left is checked, not trusted: from the first damaged tensor on, all is written again.
    std::fs::remove_file(&out).unwrap();
    killed(&model, &out, "q6_k", 20);
    let part = target.join(".m.gguf.margay-part");
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let kept = again()["resumed_tensors"].as_u64().unwrap();
    assert!((1..20).contains(&kept), "{kept} tensors kept");
    assert!(std::fs::read(&out).unwrap() == whole);

    // Another format or another checkpoint begins anew.
    std::fs::remove_file(&out).unwrap();
    killed(&model, &out, "q5_k", 5);
    assert_eq!(again()["resumed_tensors"], 0);
    assert!(std::fs::read(&out).unwrap() == whole);
    std::fs::remove_file(&out).unwrap();
    killed(&model, &out, "q6_k", 5);
    let shard = source.join("model.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    assert_eq!(again()["resumed_tensors"], 0);
    assert!(std::fs::read(&out).unwrap() != whole, "it is another checkpoint");
    assert_eq!(names(&target), ["m.gguf"]);
}

#[test]
fn a_killed_pruning_is_gone_on_with_and_counts_the_zeros_it_left() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&target).unwrap();
    let model = checkpoint(&source, &Shape { width: 256, ffn: 1024, layers: 8, heads: 4 }, true);
    let (whole, out) = (word(folder.path(), "whole.gguf"), word(&target, "m.gguf"));
    let words = |out: &str, pattern: &str| {
        ["prune", &model, "-o", out, "--pattern", pattern, "--json"].map(str::to_owned)
    };
    let expected = run(words(&whole, "2:4")).json();
    for (pattern, kept) in [("2:4", 20), ("1:4", 0)] {
        let mut command = margay();
        command.args(words(&out, pattern)).stdout(Stdio::null()).stderr(Stdio::null());
        kill(command.spawn().unwrap(), &out, 20);
        assert_eq!(names(&target), [".m.gguf.margay-journal", ".m.gguf.margay-part"]);
        let report = run(words(&out, "2:4")).json();
        let resumed = report["resumed_tensors"].as_u64().unwrap();
        assert!(if kept == 0 { resumed == 0 } else { resumed >= kept }, "{pattern}: {resumed}");
        assert_eq!(report["zeros"], expected["zeros"]);
        assert!(
            std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(),
            "the same bytes as without a kill"
        );
        assert_eq!(names(&target), ["m.gguf"]);
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn a_conversion_killed_at_any_time_ends_with_both_files() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("mobilevlm-v2");
    let whole = word(folder.path(), "whole.gguf");
    run(["convert", &model, "-o", &whole]).ok();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let path = word(&out, "whole.gguf");
    let mut child = start(&model, &path, "f16");
    let _ = child.kill();
    child.wait().unwrap();
    run(["convert", &model, "-o", &path]).ok();
    for name in ["whole.gguf", "mmproj-whole.gguf"] {
        assert!(
            std::fs::read(out.join(name)).unwrap() == std::fs::read(folder.path().join(name)).unwrap(),
            "{name}"
        );
    }
    assert_eq!(names(&out), ["mmproj-whole.gguf", "whole.gguf"]);
}
