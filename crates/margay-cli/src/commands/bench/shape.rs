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
    let MemoryPrediction { text, encode, project, cache_bytes } = sketch.memory(options, None)?;
    let of = |part: &MemoryUse| {
        part.packed_weight_bytes + part.mapped_weight_bytes + part.arena_bytes + part.scratch_bytes
    };
    let needed: usize = [Some(text), encode, project].iter().flatten().map(of).sum::<usize>() + cache_bytes;
    let available = machine::memory(&Root::system()).and_then(|memory| memory.available_bytes);
    match available {
        Some(available) if needed as u64 > available => anyhow::bail!(
            "{} takes {} of memory and {} are available: choose a smaller --type, --context or shape",
            sketch.name(),
            bytes(needed as u64),
            bytes(available)
        ),
        _ => Ok(()),
    }
}
