//! Broken checkpoint folders.

use std::{collections::BTreeMap, fs, path::Path};

use margay_file::{FileError, HfFolder, TensorSource, safetensors::write_safetensors};
use margay_tensor::{Shape, Tensor};

use crate::alloc;

/// Opens a folder that `fill` has made; the folder lies in another one that holds `outside.safetensors`.
fn opened(fill: impl FnOnce(&Path)) -> Result<HfFolder, FileError> {
    let outer = tempfile::tempdir().unwrap();
    let tensor = Tensor::from_f32(Shape::from([1]), &[1.0]).unwrap();
    write_safetensors(outer.path().join("outside.safetensors"), &[("w", &tensor)], &BTreeMap::new()).unwrap();
    let folder = outer.path().join("model");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    fill(&folder);
    HfFolder::open(&folder)
}

fn refused(fill: impl FnOnce(&Path)) -> String {
    opened(fill).unwrap_err().to_string()
}

fn index(folder: &Path, file: &str) {
    let index = serde_json::json!({ "weight_map": { "w": file } });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    for path in [
        "../outside.safetensors",
        "/etc/passwd",
        "a/../../outside.safetensors",
        "sub/x.safetensors",
        "..",
        "",
        "C:x",
    ] {
        let text = refused(|folder| index(folder, path));
        assert!(text.contains("leads out of the folder"), "{path}: {text}");
        assert!(text.contains("index.json"), "{path}: {text}");
    }
}

#[test]
fn an_index_must_tell_the_truth() {
    let text = refused(|folder| {
        index(folder, "shard.safetensors");
        let tensor = Tensor::from_f32(Shape::from([1]), &[1.0]).unwrap();
        write_safetensors(folder.join("shard.safetensors"), &[("other", &tensor)], &BTreeMap::new()).unwrap();
    });
    assert!(text.contains("\"w\"") && text.contains("shard.safetensors"), "{text}");
    let text = refused(|folder| index(folder, "absent.safetensors"));
    assert!(text.contains("absent.safetensors"), "{text}");
    let text = refused(|folder| {
        fs::write(folder.join("model.safetensors.index.json"), "{\"weight_map\": 3}").unwrap()
    });
    assert!(text.contains("JSON") && text.contains("at byte 15"), "{text}");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let text = refused(|folder| {
        let tensor = Tensor::from_f32(Shape::from([1]), &[1.0]).unwrap();
        for (file, own) in [("1.safetensors", "a"), ("2.safetensors", "b")] {
            write_safetensors(folder.join(file), &[("w", &tensor), (own, &tensor)], &BTreeMap::new())
                .unwrap();
        }
        let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors","w":"1.safetensors"}}"#;
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    });
    assert!(text.contains("\"w\"") && text.contains("two shards"), "{text}");
}

#[test]
fn a_config_of_1_gib_is_refused_unread() {
    let (text, peak_bytes) = alloc::peak_of(|| {
        // The file is sparse: it takes no room on the disk.
        refused(|folder| fs::File::create(folder.join("config.json")).unwrap().set_len(1 << 30).unwrap())
    });
    assert!(text.contains("config.json has 1073741824 bytes"), "{text}");
    assert!(peak_bytes < 2 << 20, "took {peak_bytes} bytes");
}

#[test]
fn a_deeply_nested_config_is_refused() {
    let text = refused(|folder| fs::write(folder.join("config.json"), "[".repeat(1 << 20)).unwrap());
    assert!(text.contains("config.json") && text.contains("at byte"), "{text}");
}

#[test]
fn a_pickled_checkpoint_is_refused_with_advice() {
    let text = refused(|folder| fs::write(folder.join("pytorch_model.bin"), "PK\x03\x04").unwrap());
    assert!(text.contains("pytorch_model.bin") && text.contains("safe_serialization"), "{text}");
    let text = refused(|_| ());
    assert!(text.contains("model.safetensors"), "{text}");
}

#[test]
fn side_files_cannot_lead_out_either() {
    let tensor = Tensor::from_f32(Shape::from([1]), &[1.0]).unwrap();
    let folder = opened(|folder| {
        write_safetensors(folder.join("model.safetensors"), &[("w", &tensor)], &BTreeMap::new()).unwrap();
    })
    .unwrap();
    assert_eq!(folder.names().collect::<Vec<_>>(), ["w"]);
    assert!(folder.file("../outside.safetensors").is_err());
}
