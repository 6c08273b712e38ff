//! Writes a model as GGUF.

use crate::{PackError, vocabulary};
use margay::{ModelSource, vision_format, weight_format};
use margay_file::{
    TensorInfo,
    gguf::{GgufWriter, Metadata},
};
use margay_graph::{Program, Role, WeightSpec};
use margay_model::RopeScaling;
use margay_quant::{decode_into, encode_into, storable};
use margay_tensor::{DType, Storage};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// How to convert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Format of the decoder's matrices.
    pub dtype: DType,
    /// Format of the vision side's matrices; `None` takes the decoder's where it has 8 bits or more, else f16.
    pub vision_dtype: Option<DType>,
    /// Both sides in one file, rather than a text file and its mmproj.
    pub single: bool,
}

/// How far a conversion is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The tensor being written.
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

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// Files and their sizes in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Per format: tensors and bytes.
    pub formats: BTreeMap<&'static str, (usize, u64)>,
    /// Weights that could not be stored as asked: name, format taken, reason.
    pub fallbacks: Vec<(String, DType, String)>,
    /// Weights of the checkpoint that the model does not use.
    pub unused: Vec<String>,
    /// What Margay reads back from the file, but other GGUF runtimes will do differently.
    pub notes: Vec<String>,
    /// Tensors that a conversion which was killed had written already.
    pub resumed: usize,
}

struct Planned {
    spec: WeightSpec,
    info: TensorInfo,
}

/// Converts a model to GGUF at `out` (and, unless single, its vision side beside it as `mmproj-` and that name).
/// `progress` is called every few milliseconds of work and may stop it. The output may replace the model being read: files are
/// renamed into place when they are whole, and the old bytes stay mapped until then.
///
/// Of a process that is killed, the tensors written so far stay in hidden files beside the output (`.NAME.margay-part`).
/// The same conversion from the same files goes on behind them, after a look at their checksums.
///
/// # Errors
/// [`PackError`]; no file then stands under the final names.
pub fn convert(
    source: &ModelSource,
    out: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<ConvertReport, PackError> {
    let programs = source.config.programs()?;
    let mut report = ConvertReport { unused: source.weights.unused().to_vec(), ..ConvertReport::default() };
    let text = plan(source, &[&programs.text], options.dtype, &mut report)?;
    let vision: Vec<&Program> = programs.encode.iter().chain(&programs.project).collect();
    let vision = plan(source, &vision, vision_dtype(options), &mut report)?;

    let mut text_meta = margay_model::gguf::text_metadata(&source.config);
    text_meta.insert("general.file_type", file_type(options.dtype));
    report.notes.extend(vocabulary::write(source, &mut text_meta)?);
    let vision_meta = margay_model::gguf::vision_metadata(&source.config).map(|mut meta| {
        meta.insert("general.file_type", file_type(vision_dtype(options)));
        meta
    });

    let mut jobs: Vec<(PathBuf, Metadata, Vec<Planned>)> = vec![];
    match vision_meta {
        Some(vision_meta) if options.single => {
            for (key, value) in vision_meta.iter().filter(|(key, _)| !key.starts_with("general.")) {
                text_meta.insert(key, value.clone());
            }
            jobs.push((out.to_owned(), text_meta, text.into_iter().chain(vision).collect()));
        }
        Some(vision_meta) => {
            jobs.push((out.to_owned(), text_meta, text));
            jobs.push((mmproj_path(out), vision_meta, vision));
        }
        None => jobs.push((out.to_owned(), text_meta, text)),
    }

    let all = || jobs.iter().flat_map(|(_, _, tensors)| tensors);
    let of = all().count();
    let of_bytes = all().map(|t| t.info.size_bytes().unwrap_or(0) as u64).sum();
    let (mut done, mut done_bytes) = (0, 0);
    let mut writers = vec![];
    // A model in memory cannot be told from another, so that what is left of it is of no use.
    let inputs = source.files.origins().ok().map(|o| format!("{} {o:?}", env!("CARGO_PKG_VERSION")));
    for (path, meta, tensors) in &jobs {
        let infos: Vec<_> = tensors.iter().map(|t| (t.spec.name.clone(), t.info.clone())).collect();
        let mut writer = match &inputs {
            Some(inputs) => GgufWriter::resume(path, meta, &infos, inputs)?,
            None => GgufWriter::create(path, meta, &infos)?,
        };
        let kept = writer.written();
        report.resumed += kept;
        for (i, planned) in tensors.iter().enumerate() {
            let name = &planned.spec.name;
            if i >= kept {
                write(source, planned, &mut writer, &mut |bytes| {
                    let done_bytes = done_bytes + bytes;
                    progress(&Progress { tensor: name, done, of, done_bytes, of_bytes })
                })?;
            }
            let bytes = planned.info.size_bytes().unwrap_or(0) as u64;
            let entry = report.formats.entry(planned.info.dtype.name()).or_default();
            *entry = (entry.0 + 1, entry.1 + bytes);
            (done, done_bytes) = (done + 1, done_bytes + bytes);
            if progress(&Progress { tensor: name, done, of, done_bytes, of_bytes }).is_break() {
                return Err(PackError::Stopped);
            }
        }
        report.files.push((path.clone(), writer.size_bytes()));
        writers.push(writer);
    }
    // All files appear together, when all are whole.
    for writer in writers {
        writer.finish()?;
    }
    Ok(report)
}

/// `mmproj-NAME` in the same folder, where public runtimes and Margay look for it.
pub fn mmproj_path(out: &Path) -> PathBuf {
    let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    out.with_file_name(format!("mmproj-{name}"))
}

fn vision_dtype(options: &ConvertOptions) -> DType {
    options.vision_dtype.unwrap_or_else(|| vision_format(options.dtype))
}

/// Each weight of the programs with the format it is stored in.
fn plan(
    source: &ModelSource,
    programs: &[&Program],
    dtype: DType,
    report: &mut ConvertReport,
) -> Result<Vec<Planned>, PackError> {
    let mut planned: Vec<Planned> = vec![];
    // Linear scaling is a key of its own; readers that know both would apply it twice.
    let linear = matches!(source.config.text.rope_scaling, RopeScaling::Linear(_));
    let is_stored = |spec: &&WeightSpec| !(linear && spec.role == Role::RopeFactors);
    for spec in programs.iter().flat_map(|p| p.weights()).filter(is_stored) {
        source.weights.check(spec)?;
        let shape = source.weights.info(&spec.name).expect("invariant: just checked").shape;
        let wanted = weight_format(spec.role, dtype, shape.rank());
        let (taken, reason) = storable(wanted, shape.row());
        if let Some(reason) = reason {
            report.fallbacks.push((spec.name.clone(), taken, reason.to_string()));
        }
        planned.push(Planned { spec: spec.clone(), info: TensorInfo { dtype: taken, shape } });
    }
    Ok(planned)
}

/// Elements that are converted between two looks at whether to stop: some milliseconds of work in any format.
const CHUNK_ELEMENTS: usize = 1 << 15;

/// Bytes of a stored weight that may stay in memory behind what was read of it.
const BEHIND_BYTES: usize = 16 << 20;

/// Writes the weight in its planned format, a chunk at a time, so that a model larger than the memory passes through
/// it. `step` is told how many of its bytes are written, and may stop.
fn write(
    source: &ModelSource,
    planned: &Planned,
    writer: &mut GgufWriter,
    step: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), PackError> {
    let name = &planned.spec.name;
    let tensor = source.weights.tensor(name)?;
    let TensorInfo { dtype, shape } = &planned.info;
    let fail = |source| PackError::Quant { name: name.clone(), source };
    // Whole rows, which are whole blocks in both formats.
    let chunk = (CHUNK_ELEMENTS / shape.row().max(1)).max(1) * shape.row();
    let bytes = |dtype: DType, elements: usize| elements / dtype.block_elements() * dtype.block_bytes();
    let (mut values, mut made) = (vec![], vec![]);
    let (mut read, mut behind) = (0, 0);
    let mut written = 0;
    for from in tensor.bytes().chunks(bytes(tensor.dtype(), chunk).max(1)) {
        if tensor.dtype() == *dtype {
            writer.write_bytes(name, from)?;
            written += from.len() as u64;
        } else {
            let elements = from.len() / tensor.dtype().block_bytes() * tensor.dtype().block_elements();
            values.resize(elements, 0.0);
            made.resize(bytes(*dtype, elements), 0);
            decode_into(tensor.dtype(), from, &mut values).map_err(fail)?;
            encode_into(*dtype, &values, &mut made).map_err(fail)?;
            writer.write_bytes(name, &made)?;
            written += made.len() as u64;
        }
        read += from.len();
        if read - behind >= BEHIND_BYTES {
            tensor.storage().slice(behind..read).iter().for_each(Storage::release);
            behind = read;
        }
        if step(written).is_break() {
            return Err(PackError::Stopped);
        }
    }
    tensor.storage().release();
    Ok(())
}

/// `general.file_type`. Source: `llama_ftype` in llama.cpp's `llama.h`.
fn file_type(dtype: DType) -> u32 {
    match dtype {
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
        DType::BF16 => 32,
        // "Guessed" by readers that show it.
        _ => 1024,
    }
}
