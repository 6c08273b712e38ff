//! `margay bench --shape`: a model of random weights in files that are gone afterwards.

use crate::{Usage, interrupt::Interrupt, interrupt::Late, output, progress::Meter, sketch::Sketch};
use anyhow::Context;
use margay::{
    Cancel, LoadOptions, MemoryPrediction,
    rooms::{
        graph::MemoryUse,
        model::shapes::SHAPES,
        observe::{Root, machine, report::bytes},
        tensor::DType,
    },
};
use margay_pack::{PackError, RandomOptions, Recipe, random};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Format of the decoder where nobody says which.
const DEFAULT_TYPE: DType = DType::Q4_0;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// A shape, with a recipe or type behind a colon.
    pub shape: &'a str,
    pub dtype: Option<DType>,
    pub vision: Option<DType>,
    pub seed: u64,
    pub keep: Option<&'a Path>,
}

/// A model of random weights; its files go with it, unless they are to be kept.
#[derive(Debug)]
pub(super) struct RandomModel {
    pub path: PathBuf,
    /// What was written, for the record.
    pub told: String,
    _folder: Option<TempDir>,
}

impl RandomModel {
    /// Writes it; `None` where Ctrl-C stopped that.
    pub(super) fn write(
        asked: &Asked<'_>,
        options: &LoadOptions,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<Self>> {
        let (name, recipe, words) = named(asked)?;
        let sketch = Sketch::of_shape(&name, &recipe, &words)?;
        enough(&sketch, options)?;
        let folder = match asked.keep {
            Some(_) => None,
            None => Some(TempDir::with_prefix("margay-bench-").context("cannot make a temporary folder")?),
        };
        let path = match (asked.keep, &folder) {
            (Some(path), _) => path.to_owned(),
            (None, folder) => {
                let folder = folder.as_ref().expect("invariant: made where nothing is kept");
                folder.path().join(format!("{name}.gguf"))
            }
        };
        let cancel = Cancel::new();
        let _watch = interrupt.watch(cancel.clone(), Late::Wait);
        let mut meter = Meter::start(false);
        let options = RandomOptions { recipe: &recipe, seed: asked.seed };
        let written = random(&sketch.config, &path, &options, &mut |step| {
            if cancel.is_cancelled() {
                return ControlFlow::Break(());
            }
            meter.update(step.done_bytes, step.of_bytes, step.tensor);
            ControlFlow::Continue(())
        });
        drop(meter);
        let files = match written {
            Err(PackError::Stopped) => return Ok(None),
            files => files?,
        };
        let size = bytes(files.iter().map(|(_, bytes)| bytes).sum());
        let place = path.parent().unwrap_or(&path).display();
        match asked.keep {
            Some(_) => output::note(&format!("{size} of random weights, kept in {place}")),
            None => output::note(&format!("{size} of random weights in {place}, removed at the end")),
        }
        let told = format!("random (shape {}, seed {})", sketch.name(), asked.seed);
        Ok(Some(RandomModel { path, told, _folder: folder }))
    }
}

/// Name of the shape, its recipe, and what that was called.
fn named(asked: &Asked<'_>) -> anyhow::Result<(String, Recipe, String)> {
    let (name, typed) = match asked.shape.split_once(':') {
        Some((name, typed)) => (name, Some(typed)),
        None => (asked.shape, None),
    };
    if !SHAPES.iter().any(|shape| shape.name == name) {
        let known: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
        return Err(Usage(format!("there is no shape {name:?}; shapes are {}", known.join(", "))).into());
    }
    let recipe = match (typed, asked.dtype) {
        (Some(_), Some(_)) => {
            return Err(
                Usage("--type and a type behind the shape's colon are one too many".to_owned()).into()
            );
        }
        (Some(typed), None) => Recipe::named(typed).map_err(|e| Usage(e.to_string()))?,
        (None, dtype) => Recipe::plain(dtype.unwrap_or(DEFAULT_TYPE), asked.vision),
    };
    // A type alone says enough: the vision side follows from it.
    let plain =
        || asked.vision.map_or(asked.dtype.unwrap_or(DEFAULT_TYPE).to_string(), |_| recipe.id.clone());
    let words = typed.map_or_else(plain, str::to_owned);
    Ok((name.to_owned(), recipe, words))
}

/// Refuses what the memory cannot hold, before gigabytes are written.
fn enough(sketch: &Sketch, options: &LoadOptions) -> anyhow::Result<()> {
    let MemoryPrediction { text, encode, project, cache_bytes, .. } = sketch.memory(options, None)?;
    let of = |part: &MemoryUse| {
        part.packed_weight_bytes + part.mapped_weight_bytes + part.arena_bytes + part.scratch_bytes
    };
    let needed: usize = [Some(text), encode, project].iter().flatten().map(of).sum::<usize>() + cache_bytes;
    let available = machine::memory(&Root::system()).and_then(|memory| memory.available_bytes);
    too_little(&sketch.name(), needed as u64, available).map_or(Ok(()), |why| Err(anyhow::anyhow!(why)))
}

/// Why it cannot be measured here; `None` where it can, or nobody says how much memory there is.
fn too_little(name: &str, needed: u64, available: Option<u64>) -> Option<String> {
    let available = available.filter(|available| needed > *available)?;
    Some(format!(
        "{name} takes {} of memory and {} are available: choose a smaller --type, --context or shape",
        bytes(needed),
        bytes(available)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_said_with_both_sizes_and_what_to_do() {
        assert_eq!(too_little("x", 5 << 30, Some(5 << 30)), None);
        assert_eq!(too_little("x", 5 << 30, None), None);
        let why = too_little("x:q4_0", 5 << 30, Some(4 << 30)).unwrap();
        for part in ["x:q4_0 takes 5.0 GiB", "4.0 GiB are available", "--context"] {
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn a_shape_has_one_type() {
        let asked = |shape, dtype| Asked { shape, dtype, vision: None, seed: 0, keep: None };
        let name = |asked: Asked<'_>| named(&asked).map(|(name, _, words)| format!("{name} {words}"));
        assert_eq!(name(asked("phi-2", None)).unwrap(), "phi-2 q4_0");
        assert_eq!(name(asked("phi-2", Some(DType::Q8_0))).unwrap(), "phi-2 q8_0");
        assert_eq!(name(asked("phi-2:mobile-int4", None)).unwrap(), "phi-2 mobile-int4");
        for (wrong, part) in [
            (asked("phi-2:q4_0", Some(DType::Q8_0)), "one too many"),
            (asked("phi-9", None), "phi-2"),
            (asked("phi-2:q9", None), "q9"),
        ] {
            let message = named(&wrong).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
