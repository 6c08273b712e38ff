//! The registry and the folder it speaks for are the same list.

use std::{collections::BTreeSet, path::Path};

use margay_quant::{FORMATS, format};

#[test]
fn registry_equals_the_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/formats");
    let stems = std::fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        path.file_stem().unwrap().to_str().unwrap().to_owned()
    });
    let files: BTreeSet<String> = stems.filter(|stem| stem != "mod").collect();
    let registered: BTreeSet<String> =
        FORMATS.iter().map(|format| format.dtype().name().to_owned()).collect();
    assert_eq!(registered, files);
    assert_eq!(FORMATS.len(), registered.len(), "a format is listed twice");
}

#[test]
fn a_format_is_found_by_its_type() {
    for entry in FORMATS {
        assert_eq!(format(entry.dtype()).unwrap().dtype(), entry.dtype());
    }
    assert!(format(margay_tensor::DType::IQ1_S).is_none());
}
