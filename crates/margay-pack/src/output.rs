//! The files that a model is written to.

use crate::{Calibration, PackError, calibration::Fnv, plan::Planned};
use margay::{ModelSource, PromptInputs};
use margay_file::gguf::{GgufWriter, Metadata};
use std::path::{Path, PathBuf};

/// A file, its metadata, and what goes into it, in order.
pub(crate) type Job<T> = (PathBuf, Metadata, Vec<T>);

/// `mmproj-NAME` in the same folder, where public runtimes and Margay look for it.
pub fn mmproj_path(out: &Path) -> PathBuf {
    let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    out.with_file_name(format!("mmproj-{name}"))
}

/// One file, or two, in the order of the flow: what a walk meets first is written first.
pub(crate) fn jobs<T>(
    out: &Path,
    single: bool,
    (mut text_meta, text): (Metadata, Vec<T>),
    vision: Option<(Metadata, Vec<T>)>,
) -> Vec<Job<T>> {
    match vision {
        Some((vision_meta, vision)) if single => {
            for (key, value) in vision_meta.iter().filter(|(key, _)| !key.starts_with("general.")) {
                text_meta.insert(key, value.clone());
            }
            vec![(out.to_owned(), text_meta, vision.into_iter().chain(text).collect())]
        }
        Some((vision_meta, vision)) => {
            vec![(mmproj_path(out), vision_meta, vision), (out.to_owned(), text_meta, text)]
        }
        None => vec![(out.to_owned(), text_meta, text)],
    }
}

/// Starts each file, or goes on with what a killed run of this key left.
pub(crate) fn writers<T>(
    jobs: &[Job<T>],
    planned: impl Fn(&T) -> &Planned,
    key: Option<&str>,
) -> Result<Vec<GgufWriter>, PackError> {
    let mut writers = vec![];
    // A place that cannot be written is told by the name that was asked for.
    for (path, meta, tensors) in jobs.iter().rev() {
        let info = |tensor| (planned(tensor).spec.name.clone(), planned(tensor).info.clone());
        let infos: Vec<_> = tensors.iter().map(info).collect();
        writers.push(match key {
            Some(key) => GgufWriter::resume(path, meta, &infos, key)?,
            None => GgufWriter::create(path, meta, &infos)?,
        });
    }
    writers.reverse();
    Ok(writers)
}

/// All files appear together, when all are whole. Gives them and their sizes, the file that was asked for first.
pub(crate) fn finish<T>(jobs: &[Job<T>], writers: Vec<GgufWriter>) -> Result<Vec<(PathBuf, u64)>, PackError> {
    let sizes = jobs.iter().zip(&writers).rev();
    let files = sizes.map(|((path, _, _), writer)| (path.clone(), writer.size_bytes())).collect();
    for writer in writers {
        writer.finish()?;
    }
    Ok(files)
}

/// What a killed run must have been given for another to go on with what it left; `what` says how tensors are made.
/// `None` where the model is in memory: it cannot be told from another, so that what is left of it is of no use.
pub(crate) fn inputs_key(
    source: &ModelSource,
    what: &str,
    calibration: Option<&Calibration>,
    prompts: &[PromptInputs],
) -> Option<String> {
    let origins = source.files.origins().ok()?;
    let mut hash = Fnv::new();
    hash.add(what.as_bytes());
    if let Some(calibration) = calibration {
        hash.add(calibration.fingerprint().as_bytes());
    }
    for prompt in prompts {
        hash.add(format!("{:?}", prompt.ids).as_bytes());
        prompt.tiles.iter().flat_map(|tile| &tile.data).for_each(|x| hash.add(&x.to_le_bytes()));
    }
    Some(format!("{} {origins:?} {}", env!("CARGO_PKG_VERSION"), hash.hex()))
}
