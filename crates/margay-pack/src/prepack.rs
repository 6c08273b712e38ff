//! Writes packed files: what a backend would make of a model's matrices each time it is loaded.

use crate::PackError;
use margay::ModelSource;
use margay_file::{Origin, PackedFile, PackedWriter, packed_path};
use margay_graph::{Backend, BackendError, Op, PackedWeight, Program, WeightSource};
use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Bytes of matrices below which a file is not worth having: they are packed within some milliseconds.
const WORTH_BYTES: u64 = 16 << 20;

/// How far the work is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepackProgress<'a> {
    /// The latest weight.
    pub weight: &'a str,
    /// Bytes read of matrices.
    pub done_bytes: u64,
    /// Bytes of all matrices that are packed.
    pub of_bytes: u64,
}

/// What became of one of a model's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepacked {
    /// The model's file.
    pub model: PathBuf,
    /// The packed file beside it.
    pub path: PathBuf,
    /// What was done.
    pub outcome: PrepackOutcome,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrepackOutcome {
    /// It was written.
    Written {
        /// Matrices in it.
        weights: usize,
        /// Its size.
        size_bytes: u64,
    },
    /// One that fits was there.
    UpToDate,
    /// The matrices take so few bytes that packing them costs nothing.
    TooSmall {
        /// Bytes of its matrices.
        matrix_bytes: u64,
    },
}

/// A file in the making.
struct Job {
    outcome: Option<PrepackOutcome>,
    writer: Option<PackedWriter>,
    path: PathBuf,
    model: PathBuf,
    weights: BTreeSet<String>,
}

/// Packs the matrices of `source` as `backend` lays them out, into a file beside each of the model's files. Unless
/// `force`, none is written that would be useless: one that fits is there, or packing takes no time. `progress` is called
/// after each matrix and may stop the work.
///
/// # Errors
/// [`PackError`]; no new file then stands under a final name.
pub fn prepack(
    source: &ModelSource,
    backend: &dyn Backend,
    force: bool,
    progress: &mut dyn FnMut(&PrepackProgress<'_>) -> ControlFlow<()>,
) -> Result<Vec<Prepacked>, PackError> {
    let layout = backend.layout().ok_or_else(|| {
        PackError::NotKept(format!("the {} backend reads weights where they lie", backend.id()))
    })?;
    let programs = source.config.programs()?;
    let programs: Vec<&Program> =
        std::iter::once(&programs.text).chain(&programs.encode).chain(&programs.project).collect();
    let places: Vec<(usize, u64)> =
        programs.iter().flat_map(|p| matrices(p)).filter_map(|name| place(source, name)).collect();

    let mut jobs = vec![];
    for (at, model, path) in files(source, layout.target)? {
        let matrix_bytes = places.iter().filter(|(file, _)| *file == at).map(|(_, bytes)| bytes).sum();
        let origin = Origin::of(source.files.ggufs()[at])?;
        let layout = layout.to_string();
        let outcome = if force {
            None
        } else if PackedFile::open(&path, &layout, &origin).is_ok() {
            Some(PrepackOutcome::UpToDate)
        } else {
            (matrix_bytes < WORTH_BYTES).then_some(PrepackOutcome::TooSmall { matrix_bytes })
        };
        let writer = match outcome {
            None => Some(PackedWriter::create(&path, &layout, &origin)?),
            Some(_) => None,
        };
        jobs.push(Job { outcome, writer, path, model, weights: BTreeSet::new() });
    }

    let written = |jobs: &[Job], file: usize| jobs.get(file).is_some_and(|job| job.writer.is_some());
    let of_bytes = places.iter().filter(|(file, _)| written(&jobs, *file)).map(|(_, bytes)| bytes).sum();
    let mut done_bytes = 0;
    for program in programs {
        let wanted = |name| place(source, name).is_some_and(|(file, _)| written(&jobs, file));
        if !matrices(program).any(wanted) {
            continue;
        }
        let weights = source.weights.for_program(program);
        // A backend's errors are its own: ours waits here until it has handed the call back.
        let mut failure = None;
        let result = backend.pack(program, &weights, &mut |name, packed| {
            let step = keep(source, &weights, &mut jobs, name, packed).and_then(|()| {
                done_bytes += place(source, name).map_or(0, |(_, bytes)| bytes);
                let stop = progress(&PrepackProgress { weight: name, done_bytes, of_bytes }).is_break();
                if stop { Err(PackError::Stopped) } else { Ok(()) }
            });
            step.map_err(|e| {
                failure = Some(e);
                BackendError::Cancelled
            })
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        result?;
    }
    // All files appear together, when all are whole.
    let finish = |job: Job| {
        let outcome = match (job.outcome, job.writer) {
            (Some(outcome), _) => outcome,
            (None, Some(writer)) => {
                PrepackOutcome::Written { weights: job.weights.len(), size_bytes: writer.finish()? }
            }
            (None, None) => PrepackOutcome::UpToDate,
        };
        Ok(Prepacked { model: job.model, path: job.path, outcome })
    };
    jobs.into_iter().map(finish).collect()
}

/// Compares the packed files beside the model's files, those that there are, with the checksums inside them.
///
/// # Errors
/// [`PackError`] for the first that is damaged, or was made from another model or in another layout.
pub fn verify_packed(source: &ModelSource, backend: &dyn Backend) -> Result<Vec<PathBuf>, PackError> {
    let Some(layout) = backend.layout() else { return Ok(vec![]) };
    let mut sound = vec![];
    for (at, _, path) in files(source, layout.target)? {
        if path.exists() {
            let origin = Origin::of(source.files.ggufs()[at])?;
            PackedFile::open(&path, &layout.to_string(), &origin)?
                .verify()
                .map_err(|e| PackError::Damaged { path: path.clone(), source: e })?;
            sound.push(path);
        }
    }
    Ok(sound)
}

/// Number and path of each of the model's files, and where its packed file belongs.
fn files(source: &ModelSource, target: &str) -> Result<Vec<(usize, PathBuf, PathBuf)>, PackError> {
    let ggufs = source.files.ggufs();
    if ggufs.is_empty() {
        let what = "a checkpoint folder's weights are reordered as they are read; `margay convert` it first";
        return Err(PackError::NotKept(what.to_owned()));
    }
    let path = |(at, path): (usize, Option<&Path>)| {
        let path = path.ok_or_else(|| {
            PackError::NotKept("the model inside the program is packed in no time".to_owned())
        })?;
        Ok((at, path.to_owned(), packed_path(path, target)))
    };
    ggufs.into_iter().map(|file| file.path()).enumerate().map(path).collect()
}

/// Which file holds a weight, and the bytes it takes there.
fn place(source: &ModelSource, name: &str) -> Option<(usize, u64)> {
    let (file, _) = source.weights.stored(name)?;
    Some((file, source.weights.info(name)?.size_bytes().ok()? as u64))
}

/// Names of the weights that linear layers multiply with, each once.
fn matrices(program: &Program) -> impl Iterator<Item = &str> {
    let names: BTreeSet<&str> = program
        .nodes()
        .iter()
        .filter_map(|node| match &node.op {
            Op::Linear(linear) => Some(program.weight(linear.weight).name.as_str()),
            _ => None,
        })
        .collect();
    names.into_iter()
}

/// Adds a packed weight to the file it belongs to.
fn keep(
    source: &ModelSource,
    weights: &dyn WeightSource,
    jobs: &mut [Job],
    name: &str,
    packed: PackedWeight,
) -> Result<(), PackError> {
    let Some((file, stored)) = source.weights.stored(name) else { return Ok(()) };
    let Some(job) = jobs.get_mut(file) else { return Ok(()) };
    let Some(writer) = &mut job.writer else { return Ok(()) };
    // Packing that changes nothing would be copied for nothing.
    if let [only] = &packed.parts[..]
        && weights.weight(name)?.bytes() == only.as_bytes()
    {
        return Ok(());
    }
    if job.weights.insert(stored.to_owned()) {
        writer.add(stored, &packed.form.form, &packed.parts)?;
    }
    Ok(())
}
