//! What holds of the renames of every family.
#![allow(clippy::unwrap_used, reason = "a test")]

use crate::{FAMILIES, Family, HfParts, ModelConfig, Transform, from_hf};
use margay_file::{HfFolder, TensorSource};
use proptest::{prelude::*, sample::Index};
use std::{collections::BTreeSet, path::Path, sync::LazyLock};

/// A checkpoint, and the names of its weights.
struct Checkpoint {
    family: &'static Family,
    config: ModelConfig,
    names: Vec<String>,
}

/// Those of `tests/golden`, sorted.
static CHECKPOINTS: LazyLock<Vec<Checkpoint>> = LazyLock::new(|| {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let folders = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|folder| folder.join("prompt.json").exists()).collect();
    folders.sort();
    folders.iter().map(|folder| read(folder)).collect()
});

fn read(folder: &Path) -> Checkpoint {
    let folder = HfFolder::open(folder).unwrap();
    let preprocessor = folder.preprocessor_config().unwrap();
    let file = |name: &str| folder.file(name).unwrap();
    let parts = HfParts { preprocessor: preprocessor.as_ref(), tensors: &folder, file: &file };
    let (family, config) = from_hf(folder.config(), &parts).unwrap();
    Checkpoint { family, config, names: folder.names().map(str::to_owned).collect() }
}

/// Whether the weight has a name in a GGUF file, which is kept, and its bytes with it, when it is met again.
fn is_renamed(checkpoint: &Checkpoint, name: &str) -> bool {
    let rename = |name: &str| (checkpoint.family.rename)(&checkpoint.config, name);
    let Some(renamed) = rename(name) else { return false };
    if let Some(again) = rename(&renamed.to) {
        let family = checkpoint.family.id;
        assert_eq!((&again.to, again.transform), (&renamed.to, Transform::None), "{family}: {name}");
    }
    true
}

#[test]
fn checkpoints_of_every_family_are_renamed_and_stay_so() {
    let mut seen = BTreeSet::new();
    for checkpoint in &*CHECKPOINTS {
        let renamed = checkpoint.names.iter().filter(|name| is_renamed(checkpoint, name)).count();
        // The others are towers' heads, counters, and what follows from the sizes.
        assert!(2 * renamed > checkpoint.names.len(), "{}: {renamed}", checkpoint.family.id);
        seen.insert(checkpoint.family.id);
    }
    let read: BTreeSet<_> = FAMILIES.iter().filter(|f| !f.hf.is_empty()).map(|f| f.id).collect();
    assert_eq!(seen, read, "every family that reads checkpoints has one");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Names that begin as one of a checkpoint does and end as one of any checkpoint does.
    #[test]
    fn no_name_is_renamed_twice(
        [at, name, cut] in any::<[Index; 3]>(),
        [other, ending, rest] in any::<[Index; 3]>(),
        number in proptest::option::of(0u32..1000),
    ) {
        let checkpoint = at.get(&CHECKPOINTS);
        let begin: Vec<_> = name.get(&checkpoint.names).split('.').collect();
        let end: Vec<_> = ending.get(&other.get(&CHECKPOINTS).names).split('.').collect();
        let joined = begin[..=cut.index(begin.len())].iter().chain(&end[rest.index(end.len())..]);
        let numbered = joined.map(|part| match number {
            Some(number) if part.parse::<u32>().is_ok() => number.to_string(),
            _ => (*part).to_owned(),
        });
        is_renamed(checkpoint, &numbered.collect::<Vec<_>>().join("."));
    }
}
