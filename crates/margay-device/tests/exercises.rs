//! The sums of the texts that the project grew from, in bytes; where a text is wrong, it is named.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use margay_device::Precision;
use margay_model::shapes::{describe, shape};
use serde_json::json;

fn kv_bytes(name: &str, tokens: usize, bytes: u64) -> u64 {
    let programs = shape(name).unwrap().config().unwrap().programs().unwrap();
    programs.text.cache_elements(tokens) * bytes
}

/// Lesson "LLM Optimization for Mobile": "FP16 KV cache: 1.07 GB, INT8 KV cache: 536 MB". Both are right.
#[test]
fn the_lessons_7b_cache_of_2048_tokens_is_right() {
    assert_eq!(kv_bytes("llama-2-7b", 2048, 2), 1_073_741_824);
    assert_eq!(kv_bytes("llama-2-7b", 2048, 1), 536_870_912);
    assert_eq!(kv_bytes("llava-1.5-7b", 2048, 2), 1_073_741_824);
}

/// Its exercise 2: 24 layers, 16 heads of 64, 1024 tokens, INT8. "Can this fit in 512MB?" It can.
#[test]
fn the_lessons_3b_exercise_is_50_megabytes() {
    let config = json!({
        "model_type": "llama", "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024,
        "head_dim": 64, "intermediate_size": 4096, "vocab_size": 32000, "max_position_embeddings": 2048,
    });
    let programs = describe(&config, None).unwrap().programs().unwrap();
    let bytes = programs.text.cache_elements(1024);
    assert_eq!(bytes, 50_331_648);
    assert!(bytes < 512_000_000);
}

/// Bytes of a token's keys and values in f16, by `4 L K D`.
#[test]
fn a_tokens_keys_and_values_in_f16() {
    for (name, bytes) in [
        ("llava-1.5-7b", 524_288),
        ("llama-3-8b", 131_072),
        ("mobilevlm-v2-1.7b", 196_608),
        ("mobilevlm-3b", 327_680),
        ("imp-v1.5-3b", 327_680),
        ("fastvlm-0.5b", 12_288),
        ("qwen2-vl-2b", 28_672),
        ("minicpm-v-2.6", 57_344),
        ("smolvlm-256m", 23_040),
        ("gemma-2b", 18_432),
    ] {
        assert_eq!(kv_bytes(name, 1, 2), bytes, "{name}");
    }
    // "Edge Deployment and VLM Quantization" says INT8 saves 4 times: from f16 it is 2 times.
    assert_eq!(kv_bytes("llava-1.5-7b", 1, 2) / kv_bytes("llava-1.5-7b", 1, 1), 2);
    // "Mobile VLM Deployment" says FP32 to FP16 is about 40%: it is half.
    assert_eq!(kv_bytes("llava-1.5-7b", 1, 4), 2 * kv_bytes("llava-1.5-7b", 1, 2));
}

/// "Edge Deployment and VLM Quantization": 4 images x 576 tokens x 768 in FP16 are 3.5 MB, which is right; INT8 0.9 MB and INT4
/// 0.45 MB, which are wrong by 2.
#[test]
fn four_images_of_features() {
    let bytes = |bits: u64| 4 * 576 * 768 * bits / 8;
    assert_eq!(bytes(16), 3_538_944);
    assert_eq!(bytes(8), 1_769_472);
    assert_eq!(bytes(4), 884_736);
    // Of the model itself: what LLaVA's projector reads is 1024 wide.
    let vision = shape("llava-1.5-7b").unwrap().config().unwrap().vision.unwrap();
    assert_eq!((vision.tile_tokens(), vision.tower.width()), (576, 1024));
}

/// "TOPS = operations per inference / (seconds x 10^12)": the lesson's chips, as profiles have them.
#[test]
fn the_lessons_table_of_chips_is_in_the_profiles() {
    for (id, tops) in
        [("oneplus-13r", 45.0), ("a17-pro", 35.0), ("dimensity-9300", 46.0), ("tensor-g4", 15.0)]
    {
        let device = margay_device::Device::named(id).unwrap();
        let npu = device.units(margay_device::Kind::Npu).next().unwrap();
        assert_eq!(npu.rate(Precision::Int8), Some(tops * 1e12), "{id}");
    }
    // Its table of classes says 10 to 15 for a phone with the first chip.
    let class = margay_device::Device::named("flagship-phone").unwrap();
    assert_eq!(class.units(margay_device::Kind::Npu).next().unwrap().rate(Precision::Int8), Some(15e12));
    let unknown = margay_device::Device::named("snapdragon-8-gen-2").unwrap();
    assert_eq!(unknown.units(margay_device::Kind::Npu).next().unwrap().rate(Precision::Int8), None);
}

/// The lesson's formula of speculative decoding beside the standard one, for its own numbers.
#[test]
fn the_lessons_speed_up_leaves_out_what_drafts_cost() {
    use margay_device::{lesson_speedup, speculative_speedup};
    assert_eq!(format!("{:.2}", lesson_speedup(4.0, 0.2)), "3.33");
    assert_eq!(format!("{:.2}", speculative_speedup(4, 0.8, 0.1)), "2.40");
    // All rejected: the lesson still promises twice the speed of four drafts.
    assert_eq!(lesson_speedup(4.0, 1.0), 2.0);
    assert!(speculative_speedup(4, 0.0, 0.1) < 1.0);
}
