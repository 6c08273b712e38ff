//! Writes a model as GGUF, each weight in the format its recipe says and by the method asked for.

use crate::{
    Calibration, Fold, Folds, Method, PackError, Recipe,
    fold::groups,
    outlier,
    output::{finish, inputs_key, jobs, writers},
    piece::Packing,
    plan::{Columns, Fallback, Planned, plan},
    report::{TensorReport, measured},
    vocabulary,
};
use margay::{ModelSource, PromptInputs};
use margay_file::gguf::GgufWriter;
use margay_graph::{Program, Stage};
use margay_model::ModelPrograms;
use margay_quant::{
    InputStats, Matrix, Needs, QuantError, Rounding, channel::int8::encode_q8_0, decode_tensor,
    methods::rtn::Rtn,
};
use margay_tensor::{DType, Tensor};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// How to quantize.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeOptions<'a> {
    /// Which format each weight takes.
    pub recipe: &'a Recipe,
    /// How values are found.
    pub method: Method,
    /// Both sides in one file, rather than a text file and its mmproj.
    pub single: bool,
    /// What the inputs of the layers look like.
    pub calibration: Option<&'a Calibration>,
    /// Questions to walk over while quantizing, for methods that look at what each layer is given by the layers before
    /// it as they are stored.
    pub prompts: &'a [PromptInputs],
    /// Measure the error of each weight.
    pub measure: bool,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The tensor being written, or what is done before one can be.
    pub tensor: &'a str,
    /// Tensors written.
    pub done: usize,
    /// Tensors in all.
    pub of: usize,
    /// Bytes written of tensors.
    pub done_bytes: u64,
    /// Bytes of all tensors.
    pub of_bytes: u64,
}

/// Told of each step; may stop.
pub type OnProgress<'p> = &'p mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>;

/// What was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizeReport {
    /// Files and their sizes in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Per format: tensors and bytes.
    pub formats: BTreeMap<&'static str, (usize, u64)>,
    /// Every tensor.
    pub tensors: Vec<TensorReport>,
    /// Weights that could not be stored as asked: name, format taken, reason.
    pub fallbacks: Vec<Fallback>,
    /// Weights that took no method but rounding, by reason.
    pub plain: BTreeMap<String, Vec<String>>,
    /// Weights of the checkpoint that the model does not use.
    pub unused: Vec<String>,
    /// What Margay reads back from the file, but other GGUF runtimes will do differently.
    pub notes: Vec<String>,
    /// Groups of weights between which magnitude was moved.
    pub folded: usize,
    /// Weights some of whose columns are kept beside them.
    pub split: usize,
    /// Tensors that a run which was killed had written already.
    pub resumed: usize,
}

/// Quantizes a model to GGUF at `out` (and, unless single, its vision side beside it as `mmproj-` and that name).
/// `progress` is called every few milliseconds of work and may stop it. The output may replace the model being read: files
/// are renamed into place when they are whole, and the old bytes stay mapped until then.
///
/// Of a process that is killed, the tensors written so far stay in hidden files beside the output (`.NAME.margay-part`).
/// The same run from the same files goes on behind them, after a look at their checksums.
///
/// # Errors
/// [`PackError`]; no file then stands under the final names.
pub fn quantize(
    source: &ModelSource,
    out: &Path,
    options: &QuantizeOptions<'_>,
    progress: OnProgress<'_>,
) -> Result<QuantizeReport, PackError> {
    check_needs(options)?;
    let mut report = QuantizeReport { unused: source.weights.unused().to_vec(), ..QuantizeReport::default() };
    let programs = source.config.programs()?;
    let vision: Vec<&Program> = programs.encode.iter().chain(&programs.project).collect();
    let vision = plan(source, &vision, options.recipe, &mut report.fallbacks)?;
    let text = plan(source, &[&programs.text], options.recipe, &mut report.fallbacks)?;
    let split = |planned| match options.calibration.filter(|_| options.method.outliers) {
        Some(calibration) => outlier::split(source, &programs, planned, calibration),
        None => Ok(planned),
    };
    let (vision, text) = (split(vision)?, split(text)?);

    let mut text_meta = margay_model::gguf::text_metadata(&source.config);
    text_meta.insert("general.file_type", file_type(Some(options.recipe), Stage::Text, &text));
    report.notes.extend(vocabulary::write(source, &mut text_meta)?);
    let text_kept = outlier::put(source, &mut text_meta, &text);
    let mut vision_meta = margay_model::gguf::vision_metadata(&source.config).map(|mut meta| {
        meta.insert("general.file_type", file_type(Some(options.recipe), Stage::Encode, &vision));
        meta
    });
    let mut vision_kept = outlier::Kept::default();
    if let Some(meta) = &mut vision_meta {
        vision_kept = outlier::put(source, meta, &vision);
    }
    report.split = text_kept.weights + vision_kept.weights;
    report.notes.extend(outlier::note(text_kept + vision_kept));
    let jobs = jobs(out, options.single, (text_meta, text), vision_meta.map(|meta| (meta, vision)));
    let key = key(source, options);
    let mut writers = writers(&jobs, |planned| planned, key.as_deref())?;
    let order: Vec<(usize, &Planned)> = jobs
        .iter()
        .enumerate()
        .flat_map(|(job, (_, _, tensors))| tensors.iter().map(move |planned| (job, planned)))
        .collect();
    report.resumed = writers.iter().map(GgufWriter::written).sum();
    let folds = folds(source, &programs, &order, options, &mut report, &mut *progress)?;
    let mut pass = Pass {
        source,
        options,
        folds: &folds,
        of_bytes: order.iter().map(|(_, planned)| planned.bytes()).sum(),
        order: &order,
        writers: &mut writers,
        report: &mut report,
        progress,
        next: 0,
        done_bytes: 0,
        threads: margay::default_threads(),
    };
    if options.method.needs().hessian {
        sequential(&mut pass)?;
    }
    while pass.next < order.len() {
        pass.write_next(None)?;
    }
    report.files = finish(&jobs, writers)?;
    Ok(report)
}

#[cfg(feature = "calibrate")]
fn sequential(pass: &mut Pass<'_, '_>) -> Result<(), PackError> {
    crate::sequential::run(pass)
}

#[cfg(not(feature = "calibrate"))]
fn sequential(pass: &mut Pass<'_, '_>) -> Result<(), PackError> {
    Err(PackError::NoReference { method: pass.options.method.id() })
}

/// Refuses a method that lacks what it needs, before any work.
fn check_needs(options: &QuantizeOptions<'_>) -> Result<(), PackError> {
    let needs = options.method.needs();
    let lacks = |what: &'static str| Err(PackError::Needs { method: options.method.id(), what });
    let whole = options.calibration.is_some_and(Calibration::is_whole);
    // Means of squares alone say nothing about magnitudes, which scalings go by.
    if (needs.sample || options.method.scaling.is_some()) && !whole {
        return lacks("a calibration of this model: run `margay calibrate`, then give its file");
    }
    if needs.hessian && options.prompts.is_empty() {
        return lacks("questions to walk over: give a folder of pictures, or a file of texts");
    }
    let stored = needs.activations && (!needs.hessian || options.method.outliers);
    if stored && options.calibration.is_none() {
        return lacks("a calibration: run `margay calibrate`, or give an importance matrix of another tool");
    }
    let knows = options.calibration.is_some_and(Calibration::has_gradients);
    if needs.gradients && !needs.hessian && !knows {
        return lacks("gradients: run `margay calibrate --gradients`");
    }
    Ok(())
}

/// What a killed run must have been given for this one to go on with what it left.
fn key(source: &ModelSource, options: &QuantizeOptions<'_>) -> Option<String> {
    let what = format!("{:?} {}", options.recipe, options.method.id());
    inputs_key(source, &what, options.calibration, options.prompts)
}

/// The scales that the method asks for, of every group of weights that will be rounded.
fn folds(
    source: &ModelSource,
    programs: &ModelPrograms,
    order: &[(usize, &Planned)],
    options: &QuantizeOptions<'_>,
    report: &mut QuantizeReport,
    progress: OnProgress<'_>,
) -> Result<Folds, PackError> {
    let mut folds = Folds::default();
    let (Some(scaling), Some(calibration)) = (options.method.scaling, options.calibration) else {
        return Ok(folds);
    };
    let text = programs.text.with_outputs(|name| name == "logits").map_err(margay_model::ModelError::from)?;
    let all = programs.encode.iter().chain(&programs.project).chain([&text]);
    let groups: Vec<_> = all.flat_map(groups).collect();
    let planned: BTreeMap<&str, &Planned> = order.iter().map(|(_, p)| (p.name(), *p)).collect();
    for (done, group) in groups.iter().enumerate() {
        let step = Progress {
            tensor: &group.readers[0],
            done,
            of: groups.len(),
            done_bytes: done as u64,
            of_bytes: groups.len() as u64,
        };
        if progress(&step).is_break() {
            return Err(PackError::Stopped);
        }
        let rounded: Vec<_> = group.readers.iter().filter_map(|name| planned.get(name.as_str())).collect();
        let Some(dtype) = rounded.iter().map(|p| p.info.dtype).find(|dtype| dtype.is_block()) else {
            continue;
        };
        let Some(stats) = calibration.input(&group.readers[0])? else { continue };
        let mut values = vec![];
        for reader in &rounded {
            let tensor = source.weights.tensor(reader.name())?;
            values.push(decode_tensor(&tensor).map_err(|e| quant(reader.name(), e))?);
            tensor.storage().release();
        }
        let matrices: Vec<Matrix<'_>> = values
            .iter()
            .map(|v| Matrix::new(v, v.len() / group.columns, group.columns))
            .collect::<Result<_, _>>()
            .map_err(|e| quant(&group.readers[0], e))?;
        let scales = scaling.scales(&matrices, &stats, dtype).map_err(|e| quant(&group.readers[0], e))?;
        if scales.len() != group.columns || !scales.iter().all(|s| s.is_finite() && *s > 0.0) {
            let what = format!("{} gave scales that are no positive numbers", scaling.id());
            return Err(PackError::Scales { name: group.readers[0].clone(), what });
        }
        folds.add(group, &scales);
        report.folded += 1;
    }
    Ok(folds)
}

pub(crate) fn quant(name: &str, source: QuantError) -> PackError {
    PackError::Quant { name: name.to_owned(), source }
}

/// One pass over all weights in their order.
pub(crate) struct Pass<'a, 'p> {
    pub(crate) source: &'a ModelSource,
    pub(crate) options: &'a QuantizeOptions<'a>,
    pub(crate) folds: &'a Folds,
    /// Each weight, and the file it belongs to.
    pub(crate) order: &'a [(usize, &'a Planned)],
    writers: &'a mut Vec<GgufWriter>,
    report: &'a mut QuantizeReport,
    progress: OnProgress<'p>,
    /// The next weight.
    pub(crate) next: usize,
    done_bytes: u64,
    of_bytes: u64,
    threads: usize,
}

impl Pass<'_, '_> {
    /// Whether the next weight is there already, left by a run that was killed.
    pub(crate) fn is_written(&self) -> bool {
        let (job, _) = self.order[self.next];
        let before = self.order[..self.next].iter().filter(|(other, _)| *other == job).count();
        before < self.writers[job].written()
    }

    /// Packs and writes the next weight. `input` is what is known of its input where a walk knows it better than the
    /// calibration.
    /// What a method makes of `input` stays there, for the other weights that read it.
    pub(crate) fn write_next(&mut self, input: Option<&mut InputStats>) -> Result<(), PackError> {
        let (job, planned) = self.order[self.next];
        let name = planned.name();
        let mut errors = (None, None);
        if !self.is_written() {
            let mut stored = match input {
                Some(_) => None,
                None => self.stored_input(planned)?,
            };
            let mut input = input.or(stored.as_mut());
            let rounding = self.rounding(planned, input.as_deref());
            if let Some(input) = &mut input {
                let fail = |source| PackError::Quant { name: name.to_owned(), source };
                rounding.prepare(input).map_err(fail)?;
            }
            let input = input.as_deref();
            let tensor = self.source.weights.tensor(planned.made_of())?;
            let tensor = match &planned.columns {
                Columns::Only(_, columns) => outlier::kept(planned.made_of(), &tensor, columns)?,
                Columns::All | Columns::Without(_) => tensor,
            };
            let packing = Packing {
                name,
                tensor: &tensor,
                info: &planned.info,
                fold: self.folds.get(name),
                without: planned.without(),
                rounding,
                input,
                threads: self.threads,
            };
            let (done, of) = (self.next, self.order.len());
            let (done_bytes, of_bytes) = (self.done_bytes, self.of_bytes);
            let progress = &mut *self.progress;
            let mut step = |bytes: u64| {
                progress(&Progress { tensor: name, done, of, done_bytes: done_bytes + bytes, of_bytes })
            };
            let writer = &mut self.writers[job];
            if self.options.measure && planned.info.dtype.is_block() {
                let packed = packing.tensor(&mut step)?;
                errors = measured(&packing, &packed, input)?;
                writer.write_bytes(name, packed.bytes())?;
            } else {
                packing.run(&mut |bytes| Ok(writer.write_bytes(name, bytes)?), &mut step)?;
            }
        }
        let bytes = planned.bytes();
        let entry = self.report.formats.entry(planned.info.dtype.name()).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
        self.report.tensors.push(TensorReport::new(planned, errors));
        self.next += 1;
        self.done_bytes += bytes;
        if self.tell(name).is_break() {
            return Err(PackError::Stopped);
        }
        Ok(())
    }

    /// Says what is done between weights, and hears whether to stop.
    pub(crate) fn tell(&mut self, doing: &str) -> ControlFlow<()> {
        (self.progress)(&Progress {
            tensor: doing,
            done: self.next,
            of: self.order.len(),
            done_bytes: self.done_bytes,
            of_bytes: self.of_bytes,
        })
    }

    /// The weight just written, as it was written; with its kept columns, which are written next.
    pub(crate) fn read_back(&mut self) -> Result<Tensor, PackError> {
        let (job, planned) = self.order[self.next - 1];
        let bytes = self.writers[job].read_back(planned.name())?;
        let storage = margay_tensor::Storage::from_bytes(&bytes);
        let tensor = Tensor::new(planned.info.dtype, planned.info.shape.clone(), storage)
            .map_err(|e| quant(planned.name(), e.into()))?;
        match planned.without() {
            [] => Ok(tensor),
            columns => {
                outlier::whole(planned.name(), &tensor, &self.source.weights.tensor(planned.name())?, columns)
            }
        }
    }

    /// What the calibration knows of the weight's input, as it will be.
    fn stored_input(&self, planned: &Planned) -> Result<Option<InputStats>, PackError> {
        let needs = self.options.method.rounding.needs();
        let wanted = needs.activations || needs.sample || needs.gradients || self.options.measure;
        let Some(calibration) = self.options.calibration.filter(|_| wanted) else { return Ok(None) };
        if !planned.info.dtype.is_block() {
            return Ok(None);
        }
        let Some(mut stats) = calibration.input(planned.name())? else { return Ok(None) };
        if stats.columns != planned.info.shape.row() {
            let what = format!(
                "the input of {} has {} columns, the weight {}",
                planned.name(),
                stats.columns,
                planned.info.shape.row()
            );
            return Err(PackError::Calibration { what });
        }
        if let Some(scales) = self.folds.input_scales(planned.name()) {
            divide(&mut stats, scales);
        }
        stats.clear(planned.without());
        Ok(Some(stats))
    }

    /// The method's own, or plain rounding where it knows nothing of the input.
    fn rounding(&mut self, planned: &Planned, input: Option<&InputStats>) -> &'static dyn Rounding {
        if planned.per_channel {
            return &PerChannel;
        }
        let rounding = self.options.method.rounding;
        let needs = rounding.needs();
        let wants = needs.activations || needs.sample || needs.hessian || needs.gradients;
        if !planned.info.dtype.is_block() || !wants {
            return if planned.info.dtype.is_block() { rounding } else { &Rtn };
        }
        let why = match input {
            None => "nothing is known of its input",
            Some(input) if needs.hessian && input.hessian.is_none() && input.factor.is_none() => {
                "no walk came by"
            }
            Some(input) if input.tokens() == 0 => "its input saw no token",
            Some(_) => return rounding,
        };
        self.report.plain.entry(why.to_owned()).or_default().push(planned.spec.name.clone());
        &Rtn
    }
}

/// Eight bits, one scale a row: the recipe leaves a method no scale to choose, only what is scaled before.
pub(crate) struct PerChannel;

impl Rounding for PerChannel {
    fn id(&self) -> &'static str {
        "channel"
    }

    fn about(&self) -> &'static str {
        "eight bits with one scale for each row"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn pack(
        &self,
        weight: Matrix<'_>,
        _: Option<&InputStats>,
        _: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        encode_q8_0(weight, out)
    }
}

/// The statistics of an input whose columns are divided.
fn divide(stats: &mut InputStats, scales: &[f32]) {
    for seen in [&mut stats.text, &mut stats.visual] {
        for (at, scale) in scales.iter().enumerate() {
            seen.mean_abs[at] /= scale;
            seen.max_abs[at] /= scale;
            seen.mean_square[at] /= scale * scale;
        }
    }
    for row in stats.sample.rows.chunks_exact_mut(scales.len().max(1)) {
        row.iter_mut().zip(scales).for_each(|(x, scale)| *x /= scale);
    }
}

/// What becomes of a weight before it is rounded.
pub(crate) fn folded(name: &str, tensor: &Tensor, fold: &Fold) -> Result<Tensor, PackError> {
    let mut values = decode_tensor(tensor).map_err(|e| quant(name, e))?;
    let width = if tensor.shape().rank() == 1 { 1 } else { tensor.shape().row() };
    fold.apply(&mut values, width, 0);
    Tensor::from_f32(tensor.shape().clone(), &values).map_err(|e| quant(name, e.into()))
}

/// `general.file_type`. Source: `llama_ftype` in llama.cpp's `llama.h`.
pub(crate) fn file_type(recipe: Option<&Recipe>, stage: Stage, tensors: &[Planned]) -> u32 {
    // Of a mixture, what most numbers are stored in.
    let most = || {
        let mut elements: BTreeMap<DType, usize> = BTreeMap::new();
        for planned in tensors {
            *elements.entry(planned.info.dtype).or_default() += planned.info.shape.elements().unwrap_or(0);
        }
        elements.into_iter().max_by_key(|(_, count)| *count).map_or(DType::F16, |(dtype, _)| dtype)
    };
    match recipe.and_then(|recipe| recipe.main_type(stage)).unwrap_or_else(most) {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2_K => 10,
        DType::Q3_K => 12,
        DType::Q4_K => 15,
        DType::Q5_K => 17,
        DType::Q6_K => 18,
        DType::IQ4_NL => 25,
        DType::IQ4_XS => 30,
        DType::BF16 => 32,
        // "Guessed" by readers that show it.
        _ => 1024,
    }
}

/// Names of weights that more than one node reads.
#[cfg(feature = "calibrate")]
pub(crate) fn read_again(programs: &ModelPrograms) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut again = BTreeSet::new();
    for program in programs.encode.iter().chain(&programs.project).chain([&programs.text]) {
        for id in program.nodes().iter().flat_map(|node| node.op.weights()) {
            let name = &program.weight(id).name;
            if !seen.insert(name.clone()) {
                again.insert(name.clone());
            }
        }
    }
    again
}
