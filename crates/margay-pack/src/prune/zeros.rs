//! Weights of one matrix that become zero.

use crate::{PackError, quantize::quant};
use margay_quant::{
    Factor, InputStats, Matrix, QuantError, decode_tensor, encode_tensor,
    pruning::{Pattern, apply, magnitude, mask, sparse_gpt, taylor, wanda},
};
use margay_tensor::{DType, Shape, Tensor};
use std::{ops::ControlFlow, sync::Mutex};

/// Numbers that a thread prunes between two looks at whether to stop: some milliseconds of sorting.
const PIECE_ELEMENTS: usize = 1 << 16;

/// What says how much each weight matters.
#[derive(Clone, Copy)]
pub(super) enum Scores<'a> {
    Magnitude,
    Wanda(&'a InputStats),
    /// The gradient of each weight.
    Taylor(&'a [f32]),
    SparseGpt(&'a Factor),
}

/// The matrix, or stack of matrices, with zeros, as float32. `step` is called between pieces and may stop it.
pub(super) fn pruned(
    name: &str,
    tensor: &Tensor,
    pattern: Pattern,
    scores: Scores<'_>,
    threads: usize,
    step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Tensor, PackError> {
    let fail = |e| quant(name, e);
    let mut values = decode_tensor(tensor).map_err(fail)?;
    let cols = tensor.shape().row().max(1);
    Matrix::new(&values, values.len() / cols, cols).and_then(|m| m.finite()).map_err(fail)?;
    let whole = matches!(pattern, Pattern::Tensor(_)) && !matches!(scores, Scores::SparseGpt(_));
    if whole {
        // What stays is decided among the weights of each matrix of a stack.
        let dims = tensor.shape().dims();
        let each = dims.iter().rev().take(2).product::<usize>().max(1);
        for (at, matrix) in values.chunks_mut(each).enumerate() {
            piece(matrix, cols, at * each, pattern, scores).map_err(fail)?;
            if step().is_break() {
                return Err(PackError::Stopped);
            }
        }
    } else {
        let rows = (PIECE_ELEMENTS / cols).max(1) * cols;
        for (at, batch) in values.chunks_mut(rows * threads.max(1)).enumerate() {
            let failed = Mutex::new(None);
            std::thread::scope(|scope| {
                for (part, values) in batch.chunks_mut(rows).enumerate() {
                    let (failed, first) = (&failed, (at * threads.max(1) + part) * rows);
                    scope.spawn(move || {
                        if let Err(e) = piece(values, cols, first, pattern, scores) {
                            failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(e);
                        }
                    });
                }
            });
            if let Some(e) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
                return Err(fail(e));
            }
            if step().is_break() {
                return Err(PackError::Stopped);
            }
        }
    }
    Tensor::from_f32(tensor.shape().clone(), &values).map_err(|e| fail(e.into()))
}

/// Some whole rows, of which the first number is number `first` of the tensor.
fn piece(
    values: &mut [f32],
    cols: usize,
    first: usize,
    pattern: Pattern,
    scores: Scores<'_>,
) -> Result<(), QuantError> {
    let matrix = Matrix::new(values, values.len() / cols, cols)?;
    let scores = match scores {
        Scores::Magnitude => magnitude(matrix)?,
        Scores::Wanda(input) => wanda(matrix, input)?,
        Scores::Taylor(gradient) => {
            let some = gradient.get(first..first + values.len());
            taylor(matrix, some.unwrap_or_default())?
        }
        Scores::SparseGpt(factor) => {
            let corrected = sparse_gpt(matrix, factor, pattern)?;
            values.copy_from_slice(&corrected);
            return Ok(());
        }
    };
    let keep = mask(&scores, cols, pattern)?;
    apply(values, &keep)
}

/// How many numbers are zero.
pub(super) fn count(values: &[f32]) -> u64 {
    values.iter().filter(|w| **w == 0.0).count() as u64
}

/// Whether a zero among other numbers is read back as zero. Formats of a scale and an offset, or of a table without a
/// zero, do not do that.
pub(super) fn holds_zeros(dtype: DType) -> bool {
    let row = dtype.block_elements().max(1);
    // Numbers of both signs, and rows of one sign alone, for which offsets are not what they are for both.
    let value = |i: usize| match (i % 2, i / row) {
        (0, _) => 0.0,
        (_, 0) => (i as f32 * 0.37).sin(),
        (_, 1) => 0.1 + (i as f32 * 0.37).sin().abs(),
        _ => -0.1 - (i as f32 * 0.37).sin().abs(),
    };
    let values: Vec<f32> = (0..3 * row).map(value).collect();
    let there_and_back = encode_tensor(&values, Shape::from([3, row]), dtype).and_then(|t| decode_tensor(&t));
    there_and_back.is_ok_and(|back| back.iter().step_by(2).all(|w| *w == 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_with_a_scale_alone_hold_zeros() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q5_0, DType::Q6_K]
        {
            assert!(holds_zeros(dtype), "{dtype}");
        }
        for dtype in [DType::Q4_1, DType::Q5_1, DType::Q4_K, DType::Q2_K, DType::IQ4_NL] {
            assert!(!holds_zeros(dtype), "{dtype}");
        }
    }

    #[test]
    fn pieces_by_several_threads_are_the_whole() {
        let (rows, cols) = (700, 96);
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
        let gradient: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.11).cos()).collect();
        let tensor = Tensor::from_f32(Shape::from([rows, cols]), &values).unwrap();
        let matrix = Matrix::new(&values, rows, cols).unwrap();
        for pattern in [Pattern::Row(0.5), Pattern::Groups { keep: 2, of: 4 }, Pattern::Tensor(0.3)] {
            let mut whole = values.clone();
            apply(&mut whole, &mask(&taylor(matrix, &gradient).unwrap(), cols, pattern).unwrap()).unwrap();
            for threads in [1, 3] {
                let scores = Scores::Taylor(&gradient);
                let got = pruned("w", &tensor, pattern, scores, threads, &mut || ControlFlow::Continue(()))
                    .unwrap();
                assert_eq!(decode_tensor(&got).unwrap(), whole, "{pattern:?}");
            }
        }
        let stop =
            pruned("w", &tensor, Pattern::Row(0.5), Scores::Magnitude, 2, &mut || ControlFlow::Break(()));
        assert!(matches!(stop, Err(PackError::Stopped)));
    }
}
