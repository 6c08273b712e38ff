//! Packed files: what is written comes back, and nothing else is believed.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use std::path::{Path, PathBuf};

use margay_file::{
    FileError, Gguf, Origin, PackedFile, PackedWriter,
    gguf::{self, Metadata},
    packed_path,
};
use margay_tensor::{Shape, Storage, Tensor};

const LAYOUT: &str = "avx2 1";
const TAIL_BYTES: usize = 16;

/// A model file of some MiB whose weights are all `value`.
fn model(folder: &Path, name: &str, value: f32) -> PathBuf {
    let path = folder.join(name);
    let tensor = Tensor::from_f32(Shape::from([1 << 10, 1 << 10]), &vec![value; 1 << 20]).unwrap();
    let meta = Metadata::from_iter([("general.architecture", "llama")]);
    std::fs::write(&path, gguf::to_bytes(&meta, &[("a.weight", &tensor)]).unwrap()).unwrap();
    path
}

fn origin(model: &Path) -> Origin {
    Origin::of(&Gguf::open(model).unwrap()).unwrap()
}

fn storage(len: usize, seed: usize) -> Storage {
    Storage::from_bytes(&(0..len).map(|i| (((i + seed) * 2_654_435_761) >> 7) as u8).collect::<Vec<_>>())
}

/// Parts of three weights, of sizes that are no multiples of anything.
fn weights() -> Vec<(&'static str, &'static str, Vec<Storage>)> {
    vec![
        ("a.weight", "f32 1024x1024 as rows", vec![storage(10_001, 1), storage(63, 2)]),
        ("b.weight", "q4_0", vec![storage(4096, 3)]),
        ("c.weight", "empty", vec![storage(0, 4), storage(1, 5)]),
    ]
}

fn write(path: &Path, origin: &Origin) -> u64 {
    let mut writer = PackedWriter::create(path, LAYOUT, origin).unwrap();
    for (name, form, parts) in weights() {
        writer.add(name, form, &parts).unwrap();
    }
    writer.finish().unwrap()
}

fn sizes(parts: &[Storage]) -> Vec<usize> {
    parts.iter().map(Storage::len).collect()
}

/// A packed file and the origin it was made from.
fn made(folder: &Path) -> (Vec<u8>, Origin) {
    let model = model(folder, "m.gguf", 1.0);
    let (origin, path) = (origin(&model), packed_path(&model, "avx2"));
    let size = write(&path, &origin);
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, size);
    (bytes, origin)
}

fn read(bytes: &[u8], origin: &Origin) -> Result<PackedFile, FileError> {
    PackedFile::from_bytes(Storage::from_bytes(bytes), LAYOUT, origin)
}

#[track_caller]
fn refused(bytes: &[u8], origin: &Origin, why: &str) {
    let error = read(bytes, origin).unwrap_err().to_string();
    assert!(error.contains(why), "no {why:?} in: {error}");
}

fn table_at(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[bytes.len() - TAIL_BYTES..][..8].try_into().unwrap()) as usize
}

/// Makes the checksum of a changed head or table right again.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let (at, tail) = (table_at(&bytes), bytes.len() - TAIL_BYTES);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..16]);
    hasher.update(&bytes[at..tail]);
    hasher.update(&bytes[tail..tail + 8]);
    bytes[tail + 8..tail + 12].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes
}

#[test]
fn what_is_written_comes_back_at_cache_lines() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), "m.gguf", 1.0);
    let path = packed_path(&model, "avx2");
    assert_eq!(path.file_name().unwrap(), "m.gguf.avx2.packed");
    write(&path, &origin(&model));
    let file = PackedFile::open(&path, LAYOUT, &origin(&model)).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a.weight", "b.weight", "c.weight"]);
    for (name, form, parts) in weights() {
        let back = file.parts(name, form, &sizes(&parts)).unwrap().unwrap();
        assert_eq!(back.len(), parts.len());
        for (back, part) in back.iter().zip(&parts) {
            assert_eq!(back.as_bytes(), part.as_bytes(), "{name}");
            assert_eq!(back.as_bytes().as_ptr().addr() % 64, 0, "{name}");
        }
        assert!(file.parts(name, "another form", &sizes(&parts)).is_err());
        assert!(file.parts(name, form, &[7]).is_err());
    }
    assert!(file.parts("d.weight", "q4_0", &[1]).unwrap().is_none());
    file.verify().unwrap();
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, origin) = made(folder.path());
    for sixteenth in 0..16 {
        assert!(read(&bytes[..bytes.len() * sixteenth / 16], &origin).is_err(), "{sixteenth}/16");
    }
    for missing in 1..200 {
        assert!(read(&bytes[..bytes.len() - missing], &origin).is_err(), "{missing} bytes missing");
    }
    refused(&bytes[..bytes.len() - 1], &origin, "cut off");
}

#[test]
fn any_flipped_bit_of_head_and_table_is_found_at_once_and_of_a_weight_by_verifying() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, origin) = made(folder.path());
    for at in (0..16).chain(table_at(&bytes)..bytes.len()) {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped, &origin).is_err(), "bit {bit} of byte {at}");
        }
    }
    let mut flipped = bytes.clone();
    flipped[4096 + 5] ^= 1;
    let error = read(&flipped, &origin).unwrap().verify().unwrap_err().to_string();
    assert!(error.contains("a.weight") && error.contains("damaged"), "{error}");
}

#[test]
fn a_table_that_lies_with_a_right_checksum_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, origin) = made(folder.path());
    let table = table_at(&bytes);
    let count = table + 2 + LAYOUT.len() + 24;
    let name = count + 4;
    let form = name + 2 + 8;
    let parts = form + 2 + "f32 1024x1024 as rows".len() + 4;
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        sealed(bytes)
    };
    assert!(read(&sealed(bytes.clone()), &origin).is_ok(), "the places above are right");
    assert_eq!(bytes[count..name], 3_u32.to_le_bytes());
    assert_eq!(bytes[parts], 2);
    refused(&patched(count, &u32::MAX.to_le_bytes()), &origin, "the limit is");
    refused(&patched(count, &65_536_u32.to_le_bytes()), &origin, "cut off");
    refused(&patched(count, &2_u32.to_le_bytes()), &origin, "behind the last weight");
    refused(&patched(name, &u16::MAX.to_le_bytes()), &origin, "the limit is");
    refused(&patched(name + 2, &[0xff]), &origin, "no UTF-8");
    refused(&patched(name + 2, b"b"), &origin, "occurs twice");
    refused(&patched(parts, &[9]), &origin, "the limit is");
    for (start, len) in [(4097, 1), (0, 1), (4096, u64::MAX), (u64::MAX - 63, 64), (4096, bytes.len() as u64)]
    {
        let range = [start.to_le_bytes(), len.to_le_bytes()].concat();
        refused(&patched(parts + 1, &range), &origin, "outside the weights");
    }
    refused(&patched(8, &2_u32.to_le_bytes()), &origin, "this program reads 1");
    for place in [0, u64::MAX, bytes.len() as u64] {
        let mut moved = bytes.clone();
        let tail = moved.len() - TAIL_BYTES;
        moved[tail..tail + 8].copy_from_slice(&place.to_le_bytes());
        refused(&moved, &origin, "outside the file");
    }
}

#[test]
fn another_layout_and_another_state_of_the_model_are_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, first) = made(folder.path());
    let storage = Storage::from_bytes(&bytes);
    let foreign = PackedFile::from_bytes(storage, "avx512 1", &first).unwrap_err().to_string();
    assert!(foreign.contains("avx2 1") && foreign.contains("avx512 1"), "{foreign}");

    let path = model(folder.path(), "m.gguf", 2.0);
    refused(&bytes, &origin(&path), "other weights");
    // The same bytes again, later: it might have been any change that the samples do not show.
    let path = model(folder.path(), "m.gguf", 1.0);
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    refused(&bytes, &origin(&path), "time of change");
    let mut grown = std::fs::read(&path).unwrap();
    grown.extend([0; 32]);
    std::fs::write(&path, grown).unwrap();
    refused(&bytes, &origin(&path), "another size");
}

#[test]
fn a_writer_that_ends_early_leaves_the_name_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), "m.gguf", 1.0);
    let (origin, path) = (origin(&model), packed_path(&model, "avx2"));
    let names = || std::fs::read_dir(folder.path()).unwrap().count();
    let half = || {
        let mut writer = PackedWriter::create(&path, LAYOUT, &origin).unwrap();
        writer.add("a.weight", "form", &[storage(20 << 20, 1)]).unwrap();
        writer
    };
    drop(half());
    assert_eq!(names(), 1, "stopped: nothing is left");
    // As a process that is killed.
    std::mem::forget(half());
    assert!(!path.exists());
    write(&path, &origin);
    std::mem::forget(half());
    PackedFile::open(&path, LAYOUT, &origin).unwrap().verify().unwrap();
}

#[test]
fn of_writers_at_once_each_writes_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), "m.gguf", 1.0);
    let (origin, path) = (origin(&model), packed_path(&model, "avx2"));
    write(&path, &origin);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| write(&path, &origin));
        }
        for _ in 0..50 {
            PackedFile::open(&path, LAYOUT, &origin).unwrap().verify().unwrap();
        }
    });
    PackedFile::open(&path, LAYOUT, &origin).unwrap().verify().unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}
