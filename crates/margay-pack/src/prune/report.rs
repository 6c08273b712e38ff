//! What a pruning did.

use super::plan::Item;
use crate::plan::Fallback;
use std::{collections::BTreeMap, path::PathBuf};

/// What was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PruneReport {
    /// Files and their sizes in bytes, the one that was asked for first.
    pub files: Vec<(PathBuf, u64)>,
    /// Numbers and bytes of the weights that the model has, as they were stored.
    pub before: (u64, u64),
    /// Every tensor.
    pub tensors: Vec<PrunedTensor>,
    /// Which layers of the decoder stayed, by their former numbers; `None` where none was to go.
    pub layers: Option<Vec<usize>>,
    /// Which heads and channels of each layer stayed.
    pub kept: Vec<Kept>,
    /// Weights that could not be stored as asked: name, format taken, reason.
    pub fallbacks: Vec<Fallback>,
    /// Weights that went by magnitude alone, by reason.
    pub plain: BTreeMap<String, Vec<String>>,
    /// Weights whose blocks were made anew although their format stayed: their columns, or their zeros, changed.
    pub encoded_again: usize,
    /// Weights of the checkpoint that the model does not use.
    pub unused: Vec<String>,
    /// What other GGUF runtimes will do differently.
    pub notes: Vec<String>,
    /// Tensors that a run which was killed had written already.
    pub resumed: usize,
}

impl PruneReport {
    /// Numbers and bytes of the tensors written.
    pub fn after(&self) -> (u64, u64) {
        (self.tensors.iter().map(|t| t.elements).sum(), self.tensors.iter().map(|t| t.bytes).sum())
    }

    /// Of the tensors that were to hold zeros: their numbers, and how many are zero in the file.
    pub fn zeros(&self) -> (u64, u64) {
        let pruned = self.tensors.iter().filter_map(|t| Some((t.elements, t.zeros?)));
        pruned.fold((0, 0), |(a, b), (elements, zeros)| (a + elements, b + zeros))
    }

    /// Bytes that the tensors would take if those with zeros were kept as a mask of one bit a number and the numbers that
    /// are not zero. Computed, not written: GGUF has no such format.
    pub fn as_mask_bytes(&self) -> u64 {
        self.tensors.iter().map(PrunedTensor::as_mask_bytes).sum()
    }
}

/// Which parts of a layer stayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// `heads` or `channels`.
    pub what: &'static str,
    /// `encode` or `text`.
    pub stage: &'static str,
    /// The layer's former number.
    pub layer: usize,
    /// Former numbers of the parts.
    pub parts: Vec<usize>,
}

/// One weight of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct PrunedTensor {
    /// Name in the file.
    pub name: String,
    /// Name before, where layers went.
    pub from: String,
    /// `encode`, `project` or `text`.
    pub stage: &'static str,
    /// What it is for.
    pub role: &'static str,
    /// Stored type.
    pub dtype: &'static str,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Numbers.
    pub elements: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// Numbers that are zero when the file is read; `None` of tensors that were not to hold any.
    pub zeros: Option<u64>,
    /// Relative error of the numbers, `|w - p|² / |w|²`; `None` where it was not measured or nothing became zero.
    pub error: Option<f64>,
    /// Relative error of the layer's output on the calibration's sample, `|x(w - p)|² / |xw|²`.
    pub output_error: Option<f64>,
}

impl PrunedTensor {
    pub(super) fn new(
        item: &Item,
        zeros: Option<u64>,
        (error, output_error): (Option<f64>, Option<f64>),
    ) -> Self {
        let planned = &item.planned;
        PrunedTensor {
            name: planned.spec.name.clone(),
            from: item.from.clone(),
            stage: planned.place.stage.name(),
            role: planned.spec.role.name(),
            dtype: planned.info.dtype.name(),
            shape: planned.info.shape.dims().to_vec(),
            elements: planned.info.shape.elements().unwrap_or(0) as u64,
            bytes: planned.bytes(),
            zeros,
            error,
            output_error,
        }
    }

    /// See [`PruneReport::as_mask_bytes`].
    fn as_mask_bytes(&self) -> u64 {
        let Some(zeros) = self.zeros else { return self.bytes };
        let left = self.bytes as f64 * (self.elements - zeros.min(self.elements)) as f64
            / self.elements.max(1) as f64;
        self.bytes.min(self.elements.div_ceil(8) + left.ceil() as u64)
    }
}
