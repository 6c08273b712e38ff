//! What is written is read back, whole, and by the published reader too; nothing is left after a failure.
#![allow(clippy::unwrap_used, reason = "a test that fails has to say where")]

use std::{collections::BTreeMap, fs, path::Path};

use margay_file::{
    FileError, Gguf, SafeTensors, TensorInfo, TensorSource,
    gguf::{self, Array, GgufWriter, Metadata, Value, ValueType, write_gguf},
    safetensors::{self, write_safetensors},
};
use margay_tensor::{DType, Shape, Storage, Tensor};
use proptest::{collection::vec, prelude::*};

/// Any value of any type. Floats are numbers: NaN is no equal of itself.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        array(),
    ]
}

fn array() -> impl Strategy<Value = Value> {
    prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Value::from),
        vec(any::<i8>(), 0..9).prop_map(Value::from),
        vec(any::<u16>(), 0..9).prop_map(Value::from),
        vec(any::<i16>(), 0..9).prop_map(Value::from),
        vec(any::<u32>(), 0..9).prop_map(Value::from),
        vec(any::<i32>(), 0..9).prop_map(Value::from),
        vec(any::<u64>(), 0..9).prop_map(Value::from),
        vec(any::<i64>(), 0..9).prop_map(Value::from),
        vec(any::<f32>(), 0..9).prop_map(Value::from),
        vec(any::<f64>(), 0..9).prop_map(Value::from),
        vec(any::<bool>(), 0..9).prop_map(Value::from),
        vec(any::<String>(), 0..9).prop_map(Value::from),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    (vec(("[a-z.é]{1,12}", value()), 0..20), prop::option::of(0u32..9)).prop_map(|(entries, alignment)| {
        let mut meta = Metadata::from_iter(entries);
        if let Some(shift) = alignment {
            meta.insert("general.alignment", 1u32 << shift);
        }
        meta
    })
}

/// A tensor of any of `types`, of up to four dimensions, with arbitrary bytes.
fn tensor(types: Vec<DType>) -> impl Strategy<Value = Tensor> {
    (prop::sample::select(types), vec(1usize..4, 0..4), 1usize..4, any::<u8>()).prop_map(
        |(dtype, mut dims, row, seed)| {
            dims.push(row * dtype.block_elements());
            let shape = Shape::from(dims);
            let size = Tensor::size_bytes(dtype, &shape).unwrap();
            let storage = Storage::build(size, |bytes| {
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = (i as u8).wrapping_mul(31).wrapping_add(seed);
                }
            });
            Tensor::new(dtype, shape, storage).unwrap()
        },
    )
}

fn named(tensors: &[Tensor]) -> Vec<(String, &Tensor)> {
    tensors.iter().enumerate().map(|(i, tensor)| (format!("blk.{i}.w"), tensor)).collect()
}

fn borrowed<'a>(named: &'a [(String, &'a Tensor)]) -> Vec<(&'a str, &'a Tensor)> {
    named.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect()
}

fn assert_same(got: &Tensor, expected: &Tensor) {
    assert_eq!(TensorInfo::from(got), TensorInfo::from(expected));
    assert_eq!(got.bytes(), expected.bytes());
}

fn in_gguf() -> Vec<DType> {
    DType::all().filter(|dtype| !matches!(dtype, DType::U8 | DType::Bool)).collect()
}

fn in_safetensors() -> Vec<DType> {
    DType::all().filter(|dtype| !dtype.is_block()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf_keeps_every_key_and_tensor_in_order(meta in metadata(), tensors in vec(tensor(in_gguf()), 0..5)) {
        let named = named(&tensors);
        let bytes = gguf::to_bytes(&meta, &borrowed(&named)).unwrap();
        let file = Gguf::from_bytes(Storage::from_bytes(&bytes)).unwrap();
        prop_assert_eq!(file.metadata(), &meta);
        prop_assert_eq!(file.names().collect::<Vec<_>>(), named.iter().map(|(name, _)| name).collect::<Vec<_>>());
        for (name, tensor) in &named {
            assert_same(&file.tensor(name).unwrap(), tensor);
            prop_assert_eq!(file.info(name).unwrap(), TensorInfo::from(*tensor));
        }
        prop_assert_eq!(gguf::to_bytes(file.metadata(), &borrowed(&named)).unwrap(), bytes);
    }

    #[test]
    fn safetensors_keeps_every_tensor_and_text(
        texts in prop::collection::btree_map(any::<String>(), any::<String>(), 0..5),
        tensors in vec(tensor(in_safetensors()), 0..5),
    ) {
        let named = named(&tensors);
        let bytes = safetensors::to_bytes(&borrowed(&named), &texts).unwrap();
        let file = SafeTensors::from_bytes(Storage::from_bytes(&bytes)).unwrap();
        prop_assert_eq!(file.metadata(), &texts);
        prop_assert_eq!(file.names().count(), named.len());
        let published = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in &named {
            let read = file.tensor(name).unwrap();
            assert_same(&read, tensor);
            let view = published.tensor(name).unwrap();
            prop_assert_eq!(view.data(), tensor.bytes());
            prop_assert_eq!(view.shape(), tensor.shape().dims());
        }
    }
}

#[test]
fn numbers_in_a_safetensors_file_are_aligned() {
    let wide = Tensor::from_f32(Shape::from([3]), &[1.0; 3]).unwrap();
    let narrow = Tensor::new(DType::U8, Shape::from([3]), Storage::from_bytes(&[1, 2, 3])).unwrap();
    let bytes = safetensors::to_bytes(&[("narrow", &narrow), ("wide", &wide)], &BTreeMap::new()).unwrap();
    let file = SafeTensors::from_bytes(Storage::from_bytes(&bytes)).unwrap();
    assert_eq!(file.tensor("wide").unwrap().bytes().as_ptr() as usize % 64, 0);
}

#[test]
fn safetensors_of_the_published_writer_are_read() {
    let data: Vec<u8> = (0..24).collect();
    let view = |dtype, shape| ::safetensors::tensor::TensorView::new(dtype, shape, &data).unwrap();
    let views = [
        ("f32", view(::safetensors::Dtype::F32, vec![2, 3])),
        ("i64", view(::safetensors::Dtype::I64, vec![3])),
        ("bool", view(::safetensors::Dtype::BOOL, vec![24, 1])),
    ];
    let bytes = ::safetensors::serialize(views, None).unwrap();
    let file = SafeTensors::from_bytes(Storage::from_bytes(&bytes)).unwrap();
    for (name, dtype) in [("f32", DType::F32), ("i64", DType::I64), ("bool", DType::Bool)] {
        let tensor = file.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.bytes()), (dtype, &data[..]));
    }
}

#[test]
fn every_value_type_is_written_with_its_number() {
    for (i, value_type) in ValueType::ALL.into_iter().enumerate() {
        assert_eq!(value_type.id() as usize, i);
    }
    let meta = Metadata::from_iter([("k", Value::Array(Array::F64(vec![1.0])))]);
    let bytes = gguf::to_bytes(&meta, &[]).unwrap();
    // Magic, version, two counts, the key with its length; then the numbers of "array" and "f64".
    assert_eq!(bytes[33..41], [9, 0, 0, 0, 12, 0, 0, 0]);
}

#[test]
fn version_2_is_read_like_version_3() {
    let tensor = Tensor::from_f32(Shape::from([2, 3]), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let mut bytes = gguf::to_bytes(&Metadata::from_iter([("a", 1u8)]), &[("w", &tensor)]).unwrap();
    bytes[4] = 2;
    let file = Gguf::from_bytes(Storage::from_bytes(&bytes)).unwrap();
    assert_eq!(file.version(), 2);
    assert_same(&file.tensor("w").unwrap(), &tensor);
}

#[test]
fn a_file_written_tensor_by_tensor_equals_the_one_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let meta = Metadata::from_iter([("general.architecture", "llama")]);
    let a = Tensor::from_f32(Shape::from([3]), &[1.0, 2.0, 3.0]).unwrap();
    let b = Tensor::new(DType::Q4_0, Shape::from([2, 32]), Storage::from_bytes(&[9; 36])).unwrap();
    let infos = [("a".to_owned(), TensorInfo::from(&a)), ("b".to_owned(), TensorInfo::from(&b))];
    let mut writer = GgufWriter::create(&path, &meta, &infos).unwrap();
    assert_eq!(writer.expected().unwrap().0, "a");
    writer.write_tensor("a", &a).unwrap();
    writer.write_tensor("b", &b).unwrap();
    let announced_bytes = writer.size_bytes();
    assert!(!path.exists());
    writer.finish().unwrap();
    let written = fs::read(&path).unwrap();
    assert_eq!(written.len() as u64, announced_bytes);
    assert_eq!(written, gguf::to_bytes(&meta, &[("a", &a), ("b", &b)]).unwrap());
    assert_same(&Gguf::open(&path).unwrap().tensor("b").unwrap(), &b);
    assert_eq!(file_count(folder.path()), 1);
}

fn file_count(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn nothing_is_left_after_a_failure_and_a_former_file_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, "former").unwrap();
    let a = Tensor::from_f32(Shape::from([3]), &[1.0, 2.0, 3.0]).unwrap();
    let other = a.reshape(Shape::from([1, 3])).unwrap();
    let infos = [("a".to_owned(), TensorInfo::from(&a)), ("b".to_owned(), TensorInfo::from(&a))];
    let mut writer = GgufWriter::create(&path, &Metadata::new(), &infos).unwrap();
    let refused = |result: Result<(), FileError>, says: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    };
    refused(writer.write_tensor("b", &a), "\"a\" was announced next");
    refused(writer.write_tensor("a", &other), "f32 [3] was announced, got f32 [1, 3]");
    writer.write_tensor("a", &a).unwrap();
    refused(writer.finish(), "\"b\": it was announced and not written");
    assert_eq!(file_count(folder.path()), 1);
    assert_eq!(fs::read(&path).unwrap(), b"former");
    let absent = folder.path().join("absent/model.gguf");
    assert!(matches!(write_gguf(absent, &Metadata::new(), &[]).unwrap_err(), FileError::Io { .. }));
}

#[cfg(unix)]
#[test]
fn a_written_file_is_as_readable_as_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
    fs::write(&plain, "").unwrap();
    write_safetensors(&ours, &[], &BTreeMap::new()).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
}

#[test]
fn a_mapped_file_survives_being_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let tensor = |value| Tensor::from_f32(Shape::from([4096]), &[value; 4096]).unwrap();
    write_gguf(&path, &Metadata::new(), &[("w", &tensor(1.0))]).unwrap();
    let former = Gguf::open(&path).unwrap();
    write_gguf(&path, &Metadata::new(), &[]).unwrap();
    assert_same(&former.tensor("w").unwrap(), &tensor(1.0));
    assert!(Gguf::open(&path).unwrap().tensor("w").is_err());
}

#[test]
fn what_the_formats_cannot_hold_is_refused() {
    let plain = |dtype: DType, dims: &[usize]| {
        let size = Tensor::size_bytes(dtype, &Shape::from(dims)).unwrap();
        Tensor::new(dtype, Shape::from(dims), Storage::from_bytes(&vec![0; size])).unwrap()
    };
    let float = plain(DType::F32, &[1]);
    let long = "n".repeat(64);
    let refused = |tensors: &[(&str, &Tensor)], says: &str| {
        let text = gguf::to_bytes(&Metadata::new(), tensors).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    };
    refused(&[("u", &plain(DType::U8, &[1]))], "no type for u8");
    refused(&[("w", &plain(DType::F32, &[1, 1, 1, 1, 1]))], "dimensions at most 4");
    refused(&[("w", &plain(DType::F32, &[0, 1]))], "sizes are at least 1");
    refused(&[(&long, &float)], "1 to 63 bytes");
    refused(&[("w", &float), ("w", &float)], "twice");
    let bad = Metadata::from_iter([("general.alignment", 3u32)]);
    assert!(gguf::to_bytes(&bad, &[]).unwrap_err().to_string().contains("power of two"));
    assert!(gguf::to_bytes(&Metadata::from_iter([("", 3u32)]), &[]).is_err());
    let block = plain(DType::Q8_0, &[32]);
    assert!(safetensors::to_bytes(&[("w", &block)], &BTreeMap::new()).is_err());
    assert!(safetensors::to_bytes(&[("__metadata__", &float)], &BTreeMap::new()).is_err());
    // A scalar becomes one element: GGUF readers expect a dimension.
    let bytes = gguf::to_bytes(&Metadata::new(), &[("s", &plain(DType::F32, &[]))]).unwrap();
    let read = Gguf::from_bytes(Storage::from_bytes(&bytes)).unwrap();
    assert_eq!(read.info("s").unwrap().shape.dims(), [1]);
}

#[test]
fn a_large_vocabulary_is_borrowed_not_copied() {
    let words: gguf::Strings = (0..50_000).map(|i| format!("word{i}")).collect();
    let bytes = gguf::to_bytes(&Metadata::from_iter([("tokens", words)]), &[]).unwrap();
    let storage = Storage::from_bytes(&bytes);
    let file = Gguf::from_bytes(storage.clone()).unwrap();
    let tokens = file.metadata().strings("tokens").unwrap();
    assert_eq!((tokens.len(), tokens.get(49_999)), (50_000, Some("word49999")));
    assert!(storage.as_bytes().as_ptr_range().contains(&tokens.get(7).unwrap().as_ptr()));
}
