//! Models of a hub: `margay pull`, and `hf:` wherever a command takes a model.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;
#[path = "../../margay-hub/tests/server/mod.rs"]
mod server;

use program::{Ran, finish, golden, margay, names, tiny_gguf};
use server::{Hub, Running};
use std::{collections::BTreeMap, path::Path};

/// Runs with the variables of a person who uses that hub.
fn with_hub(hub: &Running, home: &Path, variables: &[(&str, &str)], words: &[&str]) -> Ran {
    let mut command = margay();
    for name in
        ["HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_TOKEN", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "SSL_CERT_FILE"]
    {
        command.env_remove(name);
    }
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", home);
    command.envs(variables.iter().copied()).args(words);
    finish(&mut command, "")
}

fn folder(path: &Path) -> BTreeMap<String, Vec<u8>> {
    names(path).into_iter().map(|name| (name.clone(), std::fs::read(path.join(&name)).unwrap())).collect()
}

#[test]
fn a_checkpoint_of_a_hub_is_a_model_everywhere() {
    let home = tempfile::tempdir().unwrap();
    let mut files = folder(golden("llava").as_ref());
    files.retain(|name, _| !name.starts_with("golden."));
    let hub = Hub { files, token: Some("hf_x".to_owned()), ..Hub::default() }.start();
    let token = [("HF_TOKEN", "hf_x")];
    let denied = with_hub(&hub, home.path(), &[], &["pull", "owner/model"]);
    denied.fails(1, &["401", "HF_TOKEN"]);
    let pulled = with_hub(&hub, home.path(), &token, &["pull", "owner/model", "--json"]).json();
    assert!(
        pulled["files"].as_array().unwrap().iter().all(|file| file["received_bytes"] == file["bytes"]),
        "{pulled}"
    );
    let path = pulled["path"].as_str().unwrap();
    assert!(Path::new(path).starts_with(home.path().join("hub/models--owner--model/snapshots")), "{path}");
    assert_eq!(with_hub(&hub, home.path(), &token, &["pull", "hf:owner/model"]).ok().trim(), path);

    // A token in a file, as `hf auth login` leaves it; then none, offline.
    std::fs::write(home.path().join("token"), "hf_x\n").unwrap();
    let picture = format!("{}/wide.png", golden("llava"));
    let words = ["hf:owner/model", &picture, "what?", "--json", "--max-tokens", "4"];
    let run = |variables: &[(&str, &str)]| {
        with_hub(&hub, home.path(), variables, &[&["run"][..], &words].concat()).json()["tokens"].clone()
    };
    let local = program::run(["run", path, &picture, "what?", "--json", "--max-tokens", "4"]).json();
    assert_eq!(run(&[]), local["tokens"]);
    std::fs::remove_file(home.path().join("token")).unwrap();
    hub.asked();
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(run(&offline), local["tokens"]);
    let tokenized =
        with_hub(&hub, home.path(), &offline, &["tokenize", "hf:owner/model", "hello", "--json"]).json();
    assert!(!tokenized["ids"].as_array().unwrap().is_empty());
    assert_eq!(
        with_hub(&hub, home.path(), &offline, &["inspect", "hf:owner/model", "--json"]).json()["family"],
        "llava"
    );
    let out = program::word(home.path(), "m.gguf");
    with_hub(&hub, home.path(), &offline, &["convert", "hf:owner/model", "-o", &out]).ok();
    assert_eq!(hub.asked(), [], "offline asks nothing");
    let missing = with_hub(&hub, home.path(), &offline, &["run", "hf:owner/other", "hello"]);
    missing.fails(1, &["owner/other", "HF_HUB_OFFLINE"]);
}

#[test]
fn a_gguf_file_of_a_hub_runs_with_its_vision_part() {
    let home = tempfile::tempdir().unwrap();
    let made = home.path().join("made");
    std::fs::create_dir(&made).unwrap();
    tiny_gguf(&made);
    let hub = Hub { files: folder(&made), ..Hub::default() }.start();
    let cache = program::word(home.path(), "elsewhere");
    let picture = format!("{}/wide.png", golden("llava"));
    let words =
        ["run", "--model", "hf:owner/model:llava.gguf", "--image", &picture, "--json", "--max-tokens", "4"];
    let ran = with_hub(&hub, home.path(), &[("HF_HUB_CACHE", &cache)], &words).json();
    assert!(ran["stages"]["visual_tokens"].as_u64().is_some_and(|n| n > 0), "{ran}");
    assert_eq!(names(cache.as_ref()), [".locks", "models--owner--model"]);
    let lost = with_hub(&hub, home.path(), &[], &["run", "hf:owner/model:gone.gguf", "hello"]);
    lost.fails(1, &["gone.gguf", "llava.gguf"]);
    with_hub(&hub, home.path(), &[], &["pull", "owner"]).fails(2, &["OWNER/REPO"]);
    let certificates = [("SSL_CERT_FILE", "no-such.pem")];
    with_hub(&hub, home.path(), &certificates, &["pull", "owner/model"]).fails(1, &["no-such.pem", "PEM"]);
}
