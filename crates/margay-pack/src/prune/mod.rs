//! Pruning: a model with zeros where weights matter least, or with fewer heads, channels and layers.
//!
//! [`PruneTarget::Weights`] sets weights to zero and leaves shapes as they are: such a file is no smaller, and gains only
//! where something packs or skips zeros. [`PruneTarget::Parts`] takes whole parts out: every tensor left is smaller, and
//! the file is an ordinary model of other sizes. GGUF metadata holds one number for all layers, so that each layer loses
//! as many parts, those that matter least in it.
//!
//! Tensors are made and written one by one, as in [`crate::quantize`].

mod choose;
mod cut;
#[cfg(feature = "calibrate")]
mod gradients;
#[cfg(feature = "calibrate")]
mod influence;
mod method;
mod pass;
mod plan;
mod report;
mod target;
#[cfg(feature = "calibrate")]
mod walk;
mod zeros;

pub use method::PruneMethod;
pub use report::{Kept, PruneReport, PrunedTensor};
pub use target::{Amount, Parts, PruneTarget, parse_pattern};

use crate::{
    Calibration, OnProgress, PackError, Progress, Recipe,
    output::{finish, inputs_key, jobs, writers},
    quantize::file_type,
    vocabulary,
};
use choose::Chosen;
use margay::{ModelSource, PromptInputs};
use margay_graph::Stage;
use margay_model::ModelPrograms;
use pass::Pass;
use plan::{Item, original_size, plan};
use std::{collections::BTreeMap, path::Path};

/// How to prune.
#[derive(Clone, Copy, Debug)]
pub struct PruneOptions<'a> {
    /// What says how much a weight, or a part, matters.
    pub method: PruneMethod,
    /// What goes.
    pub target: &'a PruneTarget,
    /// Which format each weight takes; `None` leaves each as it is stored.
    pub recipe: Option<&'a Recipe>,
    /// Both sides in one file, rather than a text file and its mmproj.
    pub single: bool,
    /// What the inputs of the layers look like.
    pub calibration: Option<&'a Calibration>,
    /// Questions to walk over.
    pub prompts: &'a [PromptInputs],
    /// Measure the error of each weight that is pruned.
    pub measure: bool,
}

/// Writes `source` pruned as GGUF at `out` (and, unless single, its vision side beside it as `mmproj-` and that name).
/// `progress` is called every few milliseconds of work, or once a step of a walk, and may stop it. The memory is that of a
/// few copies of the largest pruned weight as float32, and of what a walk or a backward pass takes.
///
/// Of a process that is killed, the same run goes on behind the tensors written, as [`crate::quantize`] does.
///
/// # Errors
/// [`PackError`]; no file then stands under the final names.
pub fn prune(
    source: &ModelSource,
    out: &Path,
    options: &PruneOptions<'_>,
    progress: OnProgress<'_>,
) -> Result<PruneReport, PackError> {
    options.check(source)?;
    let mut report = PruneReport { unused: source.weights.unused().to_vec(), ..PruneReport::default() };
    let programs = source.config.programs()?;
    let chosen = match options.target {
        PruneTarget::Weights { .. } => Chosen::everything(source),
        PruneTarget::Parts(parts) => choose::choose(source, &programs, parts, options, &mut *progress)?,
    };
    let pruned = chosen.config.programs()?;
    let vision: Vec<_> = pruned.encode.iter().chain(&pruned.project).collect();
    let vision = plan(source, &vision, &chosen, options, &mut report.fallbacks)?;
    let text = plan(source, &[&pruned.text], &chosen, options, &mut report.fallbacks)?;
    report.notes.extend(notes(source, &chosen));

    let file_type = |stage, items: &[Item]| {
        let planned: Vec<_> = items.iter().map(|item| item.planned.clone()).collect();
        file_type(options.recipe, stage, &planned)
    };
    let mut text_meta = margay_model::gguf::text_metadata(&chosen.config);
    text_meta.insert("general.file_type", file_type(Stage::Text, &text));
    report.notes.extend(vocabulary::write(source, &mut text_meta)?);
    let vision_meta = margay_model::gguf::vision_metadata(&chosen.config).map(|mut meta| {
        meta.insert("general.file_type", file_type(Stage::Encode, &vision));
        meta
    });
    let jobs = jobs(out, options.single, (text_meta, text), vision_meta.map(|meta| (meta, vision)));
    let what = format!("prune {:?} {:?} {:?}", options.method, options.target, options.recipe);
    let key = inputs_key(source, &what, options.calibration, options.prompts);
    let mut writers = writers(&jobs, |item| &item.planned, key.as_deref())?;
    let order: Vec<(usize, &Item)> = jobs
        .iter()
        .enumerate()
        .flat_map(|(job, (_, _, items))| items.iter().map(move |item| (job, item)))
        .collect();
    report.resumed = writers.iter().map(margay_file::gguf::GgufWriter::written).sum();
    report.before = original_size(source, &programs);
    report.kept = chosen.kept;
    report.layers = (options.target.takes_layers()).then_some(chosen.layers);
    let gradients = gradients(source, options, &order, &mut *progress)?;
    let mut pass = Pass::new(source, options, &order, &gradients, &mut writers, &mut report, progress);
    if options.walks() {
        walk(&mut pass, &programs)?;
    }
    while pass.next < order.len() {
        pass.write_next(None)?;
    }
    report.files = finish(&jobs, writers)?;
    Ok(report)
}

/// What other runtimes may not take.
fn notes(source: &ModelSource, chosen: &Chosen) -> Option<String> {
    let text = &chosen.config.text;
    let fewer = text.heads != source.config.text.heads;
    (fewer && text.heads * text.head_dim != text.width).then(|| {
        format!(
            "{} heads of {} columns are not the width {}, which the file says; a runtime that takes it for granted \
             refuses the file",
            text.heads, text.head_dim, text.width
        )
    })
}

/// The gradients of the weights that will be pruned, where the method asks for them.
#[cfg(feature = "calibrate")]
fn gradients(
    source: &ModelSource,
    options: &PruneOptions<'_>,
    order: &[(usize, &Item)],
    progress: OnProgress<'_>,
) -> Result<BTreeMap<String, Vec<f32>>, PackError> {
    if options.method != PruneMethod::Taylor || matches!(options.target, PruneTarget::Parts(_)) {
        return Ok(BTreeMap::new());
    }
    let names: Vec<&str> =
        order.iter().filter(|(_, item)| item.zeros).map(|(_, item)| item.from.as_str()).collect();
    gradients::of_weights(source, options.prompts, &names, &mut |step| as_progress(step, progress))
}

#[cfg(not(feature = "calibrate"))]
fn gradients(
    _: &ModelSource,
    options: &PruneOptions<'_>,
    _: &[(usize, &Item)],
    _: OnProgress<'_>,
) -> Result<BTreeMap<String, Vec<f32>>, PackError> {
    match (options.method, options.target) {
        (PruneMethod::Taylor, PruneTarget::Weights { .. }) => Err(no_reference(options)),
        _ => Ok(BTreeMap::new()),
    }
}

#[cfg(feature = "calibrate")]
fn walk(pass: &mut Pass<'_, '_>, programs: &ModelPrograms) -> Result<(), PackError> {
    walk::run(pass, programs)
}

#[cfg(not(feature = "calibrate"))]
fn walk(pass: &mut Pass<'_, '_>, _: &ModelPrograms) -> Result<(), PackError> {
    Err(no_reference(pass.options))
}

#[cfg(not(feature = "calibrate"))]
fn no_reference(options: &PruneOptions<'_>) -> PackError {
    PackError::NoReference { method: options.method.id().to_owned() }
}

/// A step of a walk as a step of the whole.
fn as_progress(step: &crate::WalkProgress<'_>, progress: OnProgress<'_>) -> std::ops::ControlFlow<()> {
    progress(&Progress {
        tensor: step.doing,
        done: step.done,
        of: step.of,
        done_bytes: step.done as u64,
        of_bytes: step.of as u64,
    })
}
