//! In which format each weight is kept: what a conversion writes, and what loading makes of float weights when asked.

use crate::{Error, ModelSource};
use margay_graph::Role;
use margay_quant::{decode_into, encode_into, storable};
use margay_tensor::{DType, Storage, Tensor};
use std::collections::BTreeMap;

/// Elements that are converted at a time.
const CHUNK_ELEMENTS: usize = 1 << 17;

/// The format of a weight of that role where matrices are to take `dtype`: what is small, or feeds every later number,
/// stays in float.
pub fn weight_format(role: Role, dtype: DType, rank: usize) -> DType {
    let float = if dtype == DType::F32 { DType::F32 } else { DType::F16 };
    match role {
        Role::Router
        | Role::Norm
        | Role::Bias
        | Role::RopeFactors
        | Role::PositionEmbedding
        | Role::ClassEmbedding => DType::F32,
        Role::PatchEmbedding | Role::Convolution | Role::OutlierColumns => float,
        // The head decides every token; public quantizers keep it at six bits under four-bit types.
        Role::Output if dtype.is_block() && dtype != DType::Q8_0 => DType::Q6_K,
        // A stack of matrices is as many matrices.
        _ if rank == 2 || role.is_matrix() => dtype,
        _ => float,
    }
}

/// The format of the vision side's matrices where it is not given: the decoder's where that has 8 bits or more, else f16.
pub fn vision_format(dtype: DType) -> DType {
    let eight_bits = matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0);
    if eight_bits { dtype } else { DType::F16 }
}

/// Formats that weights take when they are loaded, where those are not the stored ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Formats {
    of: BTreeMap<String, DType>,
    /// Weights that could not take the format asked for, by reason.
    kept: BTreeMap<String, usize>,
}

impl Formats {
    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    pub(crate) fn get(&self, name: &str) -> Option<DType> {
        self.of.get(name).copied()
    }

    /// What a person should know.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.kept
            .iter()
            .map(|(why, count)| format!("{count} weights are not of the type asked for: {why}"))
            .collect()
    }

    /// That weight in the format it is to have.
    pub(crate) fn apply(&self, name: &str, tensor: Tensor) -> Result<Tensor, String> {
        let Some(dtype) = self.get(name).filter(|dtype| *dtype != tensor.dtype()) else { return Ok(tensor) };
        let shape = tensor.shape().clone();
        let size = Tensor::size_bytes(dtype, &shape).map_err(|e| e.to_string())?;
        // Whole rows, which are whole blocks in both formats.
        let chunk = (CHUNK_ELEMENTS / shape.row().max(1)).max(1) * shape.row();
        let bytes = |dtype: DType, elements: usize| elements / dtype.block_elements() * dtype.block_bytes();
        let mut values = vec![];
        let mut made = Ok(());
        let storage = Storage::build(size, |out| {
            let from = tensor.bytes().chunks(bytes(tensor.dtype(), chunk).max(1));
            let to = out.chunks_mut(bytes(dtype, chunk).max(1));
            made = from.zip(to).try_for_each(|(from, to)| {
                values
                    .resize(from.len() / tensor.dtype().block_bytes() * tensor.dtype().block_elements(), 0.0);
                decode_into(tensor.dtype(), from, &mut values)?;
                encode_into(dtype, &values, to)
            });
        });
        made.map_err(|e| e.to_string())?;
        // Of a mapped file, only the copy is needed from here on.
        tensor.storage().release();
        Tensor::new(dtype, shape, storage).map_err(|e| e.to_string())
    }
}

impl ModelSource {
    /// The same model, whose float matrices are quantized to `dtype` when they are loaded, those of its vision side to
    /// `vision` (or [`vision_format`]).
    ///
    /// # Errors
    /// [`Error::Option`] where its weights are quantized already; others where a weight is missing.
    pub fn with_types(mut self, dtype: DType, vision: Option<DType>) -> Result<Self, Error> {
        let programs = self.config.programs()?;
        let vision = vision.unwrap_or_else(|| vision_format(dtype));
        let vision_side = programs.encode.iter().chain(&programs.project).map(|program| (program, vision));
        let mut formats = Formats::default();
        for (program, dtype) in vision_side.chain([(&programs.text, dtype)]) {
            for spec in program.weights() {
                self.weights.check(spec)?;
                let info = self.weights.info(&spec.name).expect("invariant: just checked");
                if info.dtype.is_block() {
                    let what = format!(
                        "{} is {} already; only float weights are quantized at load",
                        spec.name, info.dtype
                    );
                    return Err(Error::Option { option: "type", what });
                }
                let (taken, reason) =
                    storable(weight_format(spec.role, dtype, info.shape.rank()), info.shape.row());
                if let Some(reason) = reason {
                    *formats.kept.entry(reason.to_string()).or_default() += 1;
                }
                formats.of.insert(spec.name.clone(), taken);
            }
        }
        self.formats = formats;
        Ok(self)
    }

    /// The format in which that weight is loaded; `None` where there is none of that name.
    pub fn loaded_format(&self, name: &str) -> Option<DType> {
        let stored = self.weights.info(name)?.dtype;
        Some(self.formats.get(name).unwrap_or(stored))
    }
}
