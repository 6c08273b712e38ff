//! Recorded stages of a model, and where a run first drifts from them.

use margay_file::{FileError, SafeTensors, TensorSource};
use margay_quant::QuantError;
use margay_tensor::{DType, Shape, Tensor};
use std::path::Path;

use crate::tolerance::Distance;

/// Why a golden file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The file cannot be read, or has no tensor of that name.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tensor of a type that is neither float nor integer.
    #[error("golden tensor {name}: {source}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong.
        source: QuantError,
    },
}

/// A file of recorded stage tensors, as `margay trace` and the recipes of the tests write it.
#[derive(Debug)]
pub struct Golden(SafeTensors);

impl Golden {
    /// Opens a safetensors file.
    ///
    /// # Errors
    /// [`GoldenError::File`] where it cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GoldenError> {
        Ok(Golden(SafeTensors::open(path)?))
    }

    /// Names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.0.names().map(str::to_owned).collect()
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.info(name).is_some()
    }

    /// Sizes of a tensor; `None` where there is none of that name.
    pub fn shape(&self, name: &str) -> Option<Shape> {
        self.0.info(name).map(|info| info.shape)
    }

    /// The numbers of a stage.
    ///
    /// # Errors
    /// [`GoldenError`] where there is none of that name, or of a type without a decoder.
    pub fn stage(&self, name: &str) -> Result<Vec<f32>, GoldenError> {
        let tensor = self.0.tensor(name)?;
        margay_quant::decode_tensor(&tensor)
            .map_err(|source| GoldenError::Tensor { name: name.to_owned(), source })
    }

    /// Ids: a tensor of int32 or int64.
    ///
    /// # Errors
    /// [`GoldenError`] where there is none of that name, or of another type, or where a value exceeds int32.
    pub fn ids(&self, name: &str) -> Result<Vec<i32>, GoldenError> {
        let tensor = self.0.tensor(name)?;
        integers(&tensor).ok_or_else(|| GoldenError::Tensor {
            name: name.to_owned(),
            source: QuantError::NoFormat { dtype: tensor.dtype() },
        })
    }
}

fn integers(tensor: &Tensor) -> Option<Vec<i32>> {
    match tensor.dtype() {
        DType::I32 => Some(tensor.bytes().as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
        DType::I64 => {
            tensor.bytes().as_chunks().0.iter().map(|b| i32::try_from(i64::from_le_bytes(*b)).ok()).collect()
        }
        _ => None,
    }
}

/// `max |a - b| / max |b|`: infinite where the lengths differ or anything is not a number.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    Distance::between(a, b).relative()
}

/// How far one stage is from its recording.
#[derive(Clone, Debug, PartialEq)]
pub struct StageDrift {
    /// Name of the stage.
    pub stage: String,
    /// [`relative_error`] of the stage.
    pub error: f64,
    /// The greatest error allowed.
    pub limit: f64,
}

impl StageDrift {
    /// Whether the stage is within its limit.
    pub fn within(&self) -> bool {
        self.error <= self.limit
    }
}

/// All stages of a run beside their recordings, in the order of the flow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// One row a stage.
    pub stages: Vec<StageDrift>,
}

impl Comparison {
    /// Compares `ran` with the recording of that name.
    ///
    /// # Errors
    /// [`GoldenError`] where the golden file has no such stage.
    pub fn add(&mut self, golden: &Golden, stage: &str, ran: &[f32], limit: f64) -> Result<(), GoldenError> {
        let error = relative_error(ran, &golden.stage(stage)?);
        self.stages.push(StageDrift { stage: stage.to_owned(), error, limit });
        Ok(())
    }

    /// The first stage beyond its limit; what comes after it inherits its drift.
    pub fn first_drift(&self) -> Option<&StageDrift> {
        self.stages.iter().find(|stage| !stage.within())
    }

    /// Fails, with the table, where a stage drifts.
    ///
    /// # Panics
    /// Where a stage is beyond its limit, or none was compared.
    pub fn assert_within(&self) {
        assert!(!self.stages.is_empty(), "no stage was compared");
        if let Some(first) = self.first_drift() {
            panic!(
                "{} is the first stage that drifts: {:.3e} > {:.0e}\n{self}",
                first.stage, first.error, first.limit
            );
        }
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for StageDrift { stage, error, limit } in &self.stages {
            let verdict = if error <= limit { "ok" } else { "DRIFTS" };
            writeln!(f, "{stage:<24} {error:>10.3e}  limit {limit:.0e}  {verdict}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::Storage;
    use std::collections::BTreeMap;

    fn golden(tensors: &[(&str, Tensor)]) -> Golden {
        let tensors: Vec<_> = tensors.iter().map(|(n, t)| (*n, t)).collect();
        let bytes = margay_file::safetensors::to_bytes(&tensors, &BTreeMap::new()).unwrap();
        Golden(SafeTensors::from_bytes(Storage::from_bytes(&bytes)).unwrap())
    }

    fn f32s(values: &[f32]) -> Tensor {
        Tensor::from_f32([values.len()].into(), values).unwrap()
    }

    #[test]
    fn the_first_stage_beyond_its_limit_is_named() {
        let golden = golden(&[
            ("encode", f32s(&[1.0, -4.0])),
            ("logits", f32s(&[2.0, 0.0])),
            ("project", f32s(&[1.0])),
        ]);
        let mut run = Comparison::default();
        run.add(&golden, "encode", &[1.0, -4.0001], 1e-4).unwrap();
        run.add(&golden, "project", &[1.1], 1e-4).unwrap();
        run.add(&golden, "logits", &[0.0, 0.0], 1e-4).unwrap();
        assert_eq!(run.first_drift().unwrap().stage, "project");
        assert!((run.stages[0].error - 2.5e-5).abs() < 1e-6, "{}", run.stages[0].error);
        assert_eq!(run.stages[2].error, 1.0);
        assert!(std::panic::catch_unwind(|| run.assert_within()).is_err());
        assert!(run.add(&golden, "hidden.0", &[], 1.0).is_err(), "a stage that was not recorded is an error");
    }

    #[test]
    fn ids_are_read_from_both_widths_and_never_cut() {
        let i64s = |v: &[i64]| {
            let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
            Tensor::new(DType::I64, [v.len()].into(), Storage::from_bytes(&bytes)).unwrap()
        };
        let golden =
            golden(&[("ids", i64s(&[1, -200, 32_000])), ("huge", i64s(&[1 << 40])), ("x", f32s(&[1.0]))]);
        assert_eq!(golden.ids("ids").unwrap(), [1, -200, 32_000]);
        assert!(golden.ids("huge").is_err());
        assert!(golden.ids("x").is_err());
    }
}
