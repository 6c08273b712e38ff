//! Columns of a matrix whose inputs are far larger than the others: kept as they are in a matrix of their own, so that the
//! rest is rounded, and its input too where a backend rounds it, by scales that fit the rest.
//!
//! Source: LLM.int8() (arXiv 2208.07339); which columns, `margay_quant::outlier` says.

use crate::{
    Calibration, PackError,
    plan::{Columns, Planned},
    quantize::quant,
};
use margay::ModelSource;
use margay_file::{TensorInfo, gguf::Metadata};
use margay_graph::{Op, Program, Role, WeightSpec, outlier_name};
use margay_model::{ModelPrograms, Outliers};
use margay_quant::{
    decode_tensor, encode_tensor,
    outlier::{MOST, SIGMAS, join, largest},
};
use margay_tensor::{DType, Shape, Tensor};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Parts each weight that is rounded, that one linear layer alone reads, and whose input has outliers, into the rest and
/// the kept columns behind it. Weights that the source holds in two parts already stay as they are.
pub(crate) fn split(
    source: &ModelSource,
    programs: &ModelPrograms,
    planned: Vec<Planned>,
    calibration: &Calibration,
) -> Result<Vec<Planned>, PackError> {
    let own = linear_alone(programs);
    let mut parts = vec![];
    for mut whole in planned {
        let name = whole.name().to_owned();
        // A kernel that is stored with its sizes split has other rows than the layer.
        let matrix = whole.info.shape == whole.spec.shape && whole.info.shape.rank() == 2;
        let may = matrix && whole.info.dtype.is_block() && own.contains(&name);
        let known = may && source.config.outliers.get(&name).is_none();
        let input = if known { calibration.input(&name)? } else { None };
        let row = whole.info.shape.row();
        let columns = match input.filter(|input| input.tokens() > 0) {
            Some(input) if input.columns != row => {
                let what = format!("the input of {name} has {} columns, the weight {row}", input.columns);
                return Err(PackError::Calibration { what });
            }
            Some(input) => largest(&input, SIGMAS, MOST),
            None => vec![],
        };
        if columns.is_empty() {
            parts.push(whole);
            continue;
        }
        let rows = whole.info.shape.rows().unwrap_or(0);
        let (shape, columns) = (Shape::from([rows, columns.len()]), Arc::<[usize]>::from(columns));
        let kept = Planned {
            spec: WeightSpec { name: outlier_name(&name), shape: shape.clone(), role: Role::OutlierColumns },
            info: TensorInfo { dtype: DType::F16, shape },
            place: crate::Place { role: Role::OutlierColumns, ..whole.place },
            per_channel: false,
            columns: Columns::Only(name, Arc::clone(&columns)),
        };
        whole.columns = Columns::Without(columns);
        parts.extend([whole, kept]);
    }
    Ok(parts)
}

/// Names of the weights that one linear layer reads, and nothing else.
fn linear_alone(programs: &ModelPrograms) -> BTreeSet<String> {
    let mut readers: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
    let all: Vec<&Program> =
        programs.encode.iter().chain(&programs.project).chain([&programs.text]).collect();
    for program in all {
        for node in program.nodes() {
            for id in node.op.weights() {
                let linear = matches!(&node.op, Op::Linear(linear) if linear.weight == id);
                let (count, alone) = readers.entry(&program.weight(id).name).or_insert((0, true));
                (*count, *alone) = (*count + 1, *alone && linear);
            }
        }
    }
    readers.into_iter().filter(|(_, read)| *read == (1, true)).map(|(name, _)| name.to_owned()).collect()
}

/// How many weights have kept columns, and how many columns those are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Kept {
    pub(crate) weights: usize,
    columns: usize,
    bytes: u64,
}

impl std::ops::Add for Kept {
    type Output = Kept;

    fn add(self, other: Kept) -> Kept {
        Kept {
            weights: self.weights + other.weights,
            columns: self.columns + other.columns,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Says in a file's metadata which columns of its weights are kept beside them, those that the source says included.
pub(crate) fn put(source: &ModelSource, meta: &mut Metadata, planned: &[Planned]) -> Kept {
    let mut kept = Kept::default();
    for one in planned {
        if one.spec.role == Role::OutlierColumns {
            kept.bytes += one.bytes();
        }
        let columns = match &one.columns {
            Columns::Without(columns) => &columns[..],
            Columns::All => match source.config.outliers.get(one.name()) {
                Some(columns) => columns,
                None => continue,
            },
            Columns::Only(..) => continue,
        };
        Outliers::put(meta, one.name(), columns);
        kept.weights += 1;
        kept.columns += columns.len();
    }
    kept
}

/// What other runtimes do with such a file.
pub(crate) fn note(kept: Kept) -> Option<String> {
    let Kept { weights, columns, bytes } = kept;
    (weights > 0).then(|| {
        format!(
            "{columns} outlier columns of {weights} weights stay f16 in tensors of their own ({bytes} bytes): only Margay \
             reads this file; other runtimes refuse the tensors, or leave them out and answer wrongly"
        )
    })
}

/// Some columns of a weight, in half precision.
pub(crate) fn kept(name: &str, tensor: &Tensor, columns: &[usize]) -> Result<Tensor, PackError> {
    let values = decode_tensor(tensor).map_err(|e| quant(name, e))?;
    let row = tensor.shape().row().max(1);
    let some: Vec<f32> =
        values.chunks_exact(row).flat_map(|row| columns.iter().map(|&column| row[column])).collect();
    let shape = Shape::from([values.len() / row, columns.len()]);
    encode_tensor(&some, shape, DType::F16).map_err(|e| quant(name, e))
}

/// A weight as a runtime computes with it: `rest` as it is stored, and the kept columns of `original`.
pub(crate) fn whole(
    name: &str,
    rest: &Tensor,
    original: &Tensor,
    columns: &[usize],
) -> Result<Tensor, PackError> {
    let fail = |e| quant(name, e);
    let mut values = decode_tensor(rest).map_err(fail)?;
    let row = rest.shape().row().max(1);
    join(&mut values, &decode_tensor(original).map_err(fail)?, row, columns);
    Tensor::from_f32(rest.shape().clone(), &values).map_err(|e| fail(e.into()))
}
