//! Pulling from a hub on this machine.
#![allow(clippy::unwrap_used, reason = "a test")]

mod server;

use margay_hub::{HubError, HubOptions, ModelRef, Pulled, pull};
use server::{COMMIT, Hub, Running, git_sha, sha256};
use std::{collections::BTreeMap, ops::ControlFlow, path::Path, sync::atomic::AtomicUsize};

const LARGE: usize = 400_000;

fn numbers(count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn checkpoint() -> BTreeMap<String, Vec<u8>> {
    let index = br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#.to_vec();
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", numbers(LARGE)),
        ("model-2.safetensors", numbers(LARGE / 2)),
        ("tokenizer.model", numbers(50)),
        ("README.md", b"no part of the model".to_vec()),
        ("../../evil.json", b"leads elsewhere".to_vec()),
    ];
    files.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

fn options(hub: &Running, cache: &Path) -> HubOptions {
    HubOptions { endpoint: hub.endpoint(), ..HubOptions::new(cache.to_owned()) }
}

fn pulled(options: &HubOptions, model: &str) -> Result<Pulled, HubError> {
    pull(options, &model.parse::<ModelRef>().unwrap(), &mut |_| ControlFlow::Continue(()))
}

fn received(pulled: &Pulled) -> u64 {
    pulled.files.iter().map(|file| file.received_bytes).sum()
}

#[test]
fn a_checkpoint_arrives_in_the_layout_of_the_published_cache() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { files: checkpoint(), ..Hub::default() }.start();
    let options = options(&hub, cache.path());
    let model = pulled(&options, "owner/model").unwrap();
    let folder = cache.path().join("models--owner--model");
    assert_eq!(model.path, folder.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    let expected = [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
    ];
    let mut names: Vec<_> = model.files.iter().map(|file| file.name.as_str()).collect();
    names.sort();
    assert_eq!(names, expected);
    for name in expected {
        let bytes = &hub.hub.files[name];
        assert!(std::fs::read(model.path.join(name)).unwrap() == *bytes, "{name}");
        let etag = if name.ends_with(".safetensors") { sha256(bytes) } else { git_sha(bytes) };
        assert!(std::fs::read(folder.join("blobs").join(&etag)).unwrap() == *bytes, "{name}");
        #[cfg(unix)]
        assert_eq!(
            std::fs::read_link(model.path.join(name)).unwrap(),
            Path::new(&format!("../../blobs/{etag}"))
        );
    }
    assert_eq!(
        std::fs::read_dir(folder.join("blobs")).unwrap().count(),
        expected.len(),
        "nothing else is left"
    );

    // What is there is not fetched again, by whatever name the repository goes.
    hub.asked();
    assert_eq!(received(&pulled(&options, "owner/model").unwrap()), 0);
    assert!(hub.asked().iter().all(|request| request.method == "HEAD" || request.path.starts_with("/api/")));
    let old = pulled(&options, "owner/old@v1/x").unwrap();
    assert!(received(&old) > 0 && old.path.ends_with(format!("models--owner--old/snapshots/{COMMIT}")));
    assert_eq!(std::fs::read_to_string(cache.path().join("models--owner--old/refs/v1/x")).unwrap(), COMMIT);
}

#[test]
fn a_gguf_file_brings_its_vision_part() {
    let cache = tempfile::tempdir().unwrap();
    let files = [("m-q4_k.gguf", 3000), ("m-q8_0.gguf", 4000), ("mmproj-m-f16.gguf", 2000)];
    let files = files.map(|(name, size)| (name.to_owned(), numbers(size))).into();
    let hub = Hub { files, ..Hub::default() }.start();
    let options = options(&hub, cache.path());
    let model = pulled(&options, "owner/model:Q4_K").unwrap();
    assert!(model.path.ends_with("m-q4_k.gguf"));
    assert!(model.path.with_file_name("mmproj-m-f16.gguf").is_file());
    assert!(!model.path.with_file_name("m-q8_0.gguf").exists());
    let unclear = pulled(&options, "owner/model").unwrap_err().to_string();
    assert!(unclear.contains("choose one with :FILE, of m-q4_k.gguf, m-q8_0.gguf"), "{unclear}");
}

#[test]
fn a_download_that_breaks_goes_on_where_it_broke() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { files: checkpoint(), cuts: AtomicUsize::new(3), ..Hub::default() }.start();
    let model = pulled(&options(&hub, cache.path()), "owner/model").unwrap();
    let whole: u64 = model.files.iter().map(|file| file.size_bytes).sum();
    assert_eq!(received(&model), whole, "no byte twice");
    let ranges: Vec<_> =
        hub.asked().into_iter().filter(|r| r.path.starts_with("/store/")).filter_map(|r| r.range).collect();
    assert_eq!(ranges, ["bytes=200000-", "bytes=300000-", "bytes=350000-"]);

    // A hub that cannot go on is asked for everything again.
    let cache = tempfile::tempdir().unwrap();
    let hub =
        Hub { files: checkpoint(), cuts: AtomicUsize::new(1), no_ranges: true, ..Hub::default() }.start();
    let model = pulled(&options(&hub, cache.path()), "owner/model").unwrap();
    assert_eq!(received(&model), whole + LARGE as u64 / 2);
}

#[test]
fn a_stopped_pull_goes_on_in_the_next() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { files: checkpoint(), ..Hub::default() }.start();
    let options = options(&hub, cache.path());
    let result = pull(&options, &"owner/model".parse().unwrap(), &mut |step| match step.done_bytes {
        bytes if bytes > 100_000 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(result, Err(HubError::Stopped)));
    let blobs = cache.path().join("models--owner--model/blobs");
    let left =
        std::fs::metadata(blobs.join(format!("{}.incomplete", sha256(&numbers(LARGE))))).unwrap().len();
    assert!(left > 100_000 && left < LARGE as u64, "{left}");
    let model = pulled(&options, "owner/model").unwrap();
    let first = model.files.iter().find(|file| file.name == "model-1.safetensors").unwrap();
    assert_eq!(first.received_bytes, LARGE as u64 - left);
    assert!(std::fs::read(model.path.join("model-1.safetensors")).unwrap() == numbers(LARGE));
}

#[test]
fn what_was_left_damaged_or_sent_wrong_is_not_taken() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { files: checkpoint(), wrong: true, ..Hub::default() }.start();
    let error = pulled(&options(&hub, cache.path()), "owner/model").unwrap_err();
    assert!(matches!(&error, HubError::Damaged { kind: "git checksum", .. }), "{error}");
    let error = pulled(&options(&hub, cache.path()), "owner/model:model-1.safetensors").unwrap_err();
    let HubError::Damaged { kind: "SHA-256", expected, .. } = &error else { panic!("{error}") };
    assert_eq!(*expected, sha256(&numbers(LARGE)));
    let blobs = cache.path().join("models--owner--model/blobs");
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 0, "nothing of it stays");

    // An honest hub, and a beginning that is damaged: found by its checksum, and fetched anew the next time.
    let hub = Hub { files: checkpoint(), ..Hub::default() }.start();
    let part = blobs.join(format!("{}.incomplete", sha256(&numbers(LARGE))));
    std::fs::write(&part, vec![7; 1000]).unwrap();
    let options = options(&hub, cache.path());
    assert!(matches!(pulled(&options, "owner/model"), Err(HubError::Damaged { .. })));
    assert!(!part.exists());
    pulled(&options, "owner/model").unwrap();
}

#[test]
fn a_token_goes_to_the_hub_and_nowhere_else() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { files: checkpoint(), token: Some("hf_secret".to_owned()), ..Hub::default() }.start();
    let mut options = options(&hub, cache.path());
    let denied = pulled(&options, "owner/model").unwrap_err().to_string();
    assert!(denied.contains("401") && denied.contains("HF_TOKEN"), "{denied}");
    options.token = Some("hf_wrong".to_owned());
    assert!(pulled(&options, "owner/model").unwrap_err().to_string().contains("the token does not open it"));
    hub.asked();
    options.token = Some("hf_secret".to_owned());
    pulled(&options, "owner/model").unwrap();
    let asked = hub.asked();
    let (store, own): (Vec<_>, Vec<_>) =
        asked.iter().partition(|request| request.path.starts_with("/store/"));
    assert!(own.iter().all(|r| r.authorization.as_deref() == Some("Bearer hf_secret")), "{own:?}");
    assert!(store.len() == 2 && store.iter().all(|r| r.authorization.is_none()), "{store:?}");
    assert!(store.iter().all(|r| r.host.starts_with("localhost")), "{store:?}");
    assert!(!format!("{options:?}").contains("hf_secret"));
}

#[test]
fn what_is_not_there_is_said() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { files: checkpoint(), ..Hub::default() }.start();
    let options = options(&hub, cache.path());
    for model in ["owner/gone", "owner/model@gone"] {
        let error = pulled(&options, model).unwrap_err();
        assert!(matches!(&error, HubError::NotFound { .. }), "{error}");
    }
    let error = pulled(&options, "owner/model:gone.gguf").unwrap_err().to_string();
    assert!(
        error.contains("no file \"gone.gguf\"; it has") && error.contains("model-1.safetensors"),
        "{error}"
    );
}

#[test]
fn offline_and_without_a_connection_the_cache_is_taken() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { files: checkpoint(), ..Hub::default() }.start();
    let online = options(&hub, cache.path());
    let offline = HubOptions { offline: true, ..online.clone() };
    let missing = pulled(&offline, "owner/model").unwrap_err();
    assert!(matches!(&missing, HubError::Offline { .. }), "{missing}");
    let model = pulled(&online, "owner/model").unwrap();
    hub.asked();
    let cached = pulled(&offline, "owner/model").unwrap();
    assert_eq!((&cached.path, cached.files.len()), (&model.path, model.files.len()));
    assert_eq!(hub.asked(), [], "nothing was asked");
    // Nobody listens on port 1.
    let unreachable = HubOptions { endpoint: "http://127.0.0.1:1".to_owned(), ..online };
    let cached = pulled(&unreachable, "owner/model").unwrap();
    assert!(cached.path == model.path && cached.notes[0].contains("cannot be reached"), "{:?}", cached.notes);
    assert!(matches!(pulled(&unreachable, "owner/other"), Err(HubError::Connection { .. })));
    // A part that is missing makes the cache useless, not half a model.
    std::fs::remove_file(model.path.join("model-2.safetensors")).unwrap();
    assert!(matches!(pulled(&offline, "owner/model"), Err(HubError::Offline { .. })));
}
