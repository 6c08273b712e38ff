//! A model whose packed weights lie beside it is the same model, bit for bit.
#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{
    Image, LoadOptions, Model, ModelSource, TraceOptions, backend,
    rooms::{cpu::Isa, file::packed_path, tensor::DType},
};
use margay_pack::{
    ConvertOptions, PackError, PrepackOutcome, Prepacked, convert, mmproj_path, prepack, verify_packed,
};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// The tiny LLaVA as a GGUF file with its mmproj.
fn model(folder: &Path, dtype: DType) -> PathBuf {
    let out = folder.join("m.gguf");
    let options = ConvertOptions { dtype, vision_dtype: None, single: false };
    let source = ModelSource::open(&golden("mobilevlm-v2"), None).unwrap();
    convert(&source, &out, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    out
}

fn options(isa: Isa, packed: bool) -> LoadOptions {
    LoadOptions { isa: Some(isa.name().to_owned()), packed, ..LoadOptions::default() }
}

fn pack(model: &Path, isa: Isa, force: bool) -> Result<Vec<Prepacked>, PackError> {
    let source = ModelSource::open(model, None).unwrap();
    let backend = backend(&options(isa, true)).unwrap();
    prepack(&source, backend.as_ref(), force, &mut |_| ControlFlow::Continue(()))
}

/// Every stage of an answer about a picture.
fn stages(model: &Path, load: LoadOptions) -> Vec<(String, Vec<u8>)> {
    let image = Image::open(golden("mobilevlm-v2").join("wide.png")).unwrap();
    let source = ModelSource::open(model, None).unwrap();
    let options = TraceOptions { load, ..TraceOptions::default() };
    let stages = source.trace(&[image], "a red square", &options).unwrap();
    stages.into_iter().map(|(name, tensor)| (name, tensor.bytes().to_vec())).collect()
}

/// Bytes of weights packed at load, and what the load passed over.
fn loaded(model: &Path, load: &LoadOptions) -> (usize, Vec<String>) {
    let model = Model::load_with(model, load).unwrap();
    (model.memory().unwrap().packed_weight_bytes, model.notes().unwrap())
}

#[test]
fn packed_files_change_no_bit_of_any_stage() {
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K] {
        for isa in Isa::supported() {
            let folder = tempfile::tempdir().unwrap();
            let model = model(folder.path(), dtype);
            let written = pack(&model, isa, true).unwrap();
            let names: Vec<_> = written.iter().map(|file| file.path.clone()).collect();
            let of = |path: &Path| packed_path(path, isa.name());
            assert_eq!(names, [of(&model), of(&mmproj_path(&model))]);
            let wrote =
                |file: &Prepacked| matches!(file.outcome, PrepackOutcome::Written { weights: 1.., .. });
            assert!(written.iter().all(wrote), "{written:?}");
            let (with, without) = (options(isa, true), options(isa, false));
            let ((less, notes), (more, _)) = (loaded(&model, &with), loaded(&model, &without));
            assert!(less < more, "{dtype} {isa}: {less} bytes are packed, {more} without the file");
            assert_eq!(notes, [""; 0]);
            let (kept, anew) = (stages(&model, with), stages(&model, without));
            for ((name, kept), (_, anew)) in kept.iter().zip(&anew) {
                assert!(kept == anew, "{dtype} {isa}: {name} differs");
            }
        }
    }
}

#[test]
fn a_file_that_does_not_fit_is_passed_over_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), DType::Q8_0);
    let load = options(Isa::Scalar, true);
    let (anew, _) = loaded(&model, &load);
    let answer = stages(&model, load.clone());
    pack(&model, Isa::Scalar, true).unwrap();
    let (kept, _) = loaded(&model, &load);
    assert!(kept < anew);
    let packed = packed_path(&model, "scalar");
    let sound = std::fs::read(&packed).unwrap();
    let vision = std::fs::read(packed_path(&mmproj_path(&model), "scalar")).unwrap();
    let mut foreign = sound.clone();
    foreign[9] = 7;
    for (bytes, why) in [
        (&sound[..sound.len() / 2], "cut off"),
        (&[][..], "magic"),
        (&vision[..], "another size"),
        (&foreign[..], "version"),
    ] {
        std::fs::write(&packed, bytes).unwrap();
        let (bytes, notes) = loaded(&model, &load);
        assert_eq!(bytes, anew, "{why}: all is packed anew");
        assert!(notes.len() == 1 && notes[0].contains(why) && notes[0].contains("prepack"), "{notes:?}");
        assert!(stages(&model, load.clone()) == answer, "{why}");
    }
    // A file for other instructions lies there under its own name, and is not looked at.
    std::fs::rename(&packed, packed_path(&model, "avx512")).unwrap();
    assert_eq!(loaded(&model, &load), (anew, vec![]));
    // Renamed by hand it is known for what it is.
    if Isa::detect() != Isa::Scalar {
        std::fs::write(packed_path(&model, Isa::detect().name()), &sound).unwrap();
        let (_, notes) = loaded(&model, &options(Isa::detect(), true));
        assert!(notes.len() == 1 && notes[0].contains("scalar"), "{notes:?}");
    }
}

#[test]
fn a_model_that_changed_within_its_size_is_packed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), DType::F32);
    pack(&model, Isa::Scalar, true).unwrap();
    let mut bytes = std::fs::read(&model).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&model, bytes).unwrap();
    let (_, notes) = loaded(&model, &options(Isa::Scalar, true));
    assert!(notes.len() == 1 && notes[0].contains("made from a model with"), "{notes:?}");
    let backend = backend(&options(Isa::Scalar, true)).unwrap();
    assert!(verify_packed(&ModelSource::open(&model, None).unwrap(), backend.as_ref()).is_err());
    // And made anew it fits.
    pack(&model, Isa::Scalar, true).unwrap();
    assert_eq!(loaded(&model, &options(Isa::Scalar, true)).1, [""; 0]);
    let sound = verify_packed(&ModelSource::open(&model, None).unwrap(), backend.as_ref()).unwrap();
    assert_eq!(sound.len(), 2);
}

#[test]
fn useless_files_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), DType::Q8_0);
    for file in pack(&model, Isa::Scalar, false).unwrap() {
        assert!(matches!(file.outcome, PrepackOutcome::TooSmall { matrix_bytes: 1.. }), "{file:?}");
        assert!(!file.path.exists());
    }
    pack(&model, Isa::Scalar, true).unwrap();
    for file in pack(&model, Isa::Scalar, false).unwrap() {
        assert_eq!(file.outcome, PrepackOutcome::UpToDate);
    }
    let backend = backend(&options(Isa::Scalar, true)).unwrap();
    for (source, why) in [
        (ModelSource::open(&golden("llava"), None).unwrap(), "convert"),
        (Model::nano_source().unwrap(), "inside the program"),
    ] {
        let error = prepack(&source, backend.as_ref(), true, &mut |_| ControlFlow::Continue(()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn stopped_work_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), DType::Q8_0);
    let source = ModelSource::open(&model, None).unwrap();
    let backend = backend(&options(Isa::Scalar, true)).unwrap();
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    let mut steps = 0;
    let stopped = prepack(&source, backend.as_ref(), true, &mut |_| {
        steps += 1;
        if steps > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(PackError::Stopped)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before);
}
