//! What errors in a few neighbouring weights do to an output.

use crate::{Hessian, InputStats, QuantError};

/// The sums of x xᵀ over the inputs of neighbouring columns: one square a group, row after row. Those of a sample count a
/// visual token [`InputStats::visual_weight`] times.
pub(crate) struct Grams {
    group: usize,
    squares: Vec<Vec<f32>>,
}

impl Grams {
    /// Of every `group` columns, from the Hessian where there is one, else from the sample.
    pub(crate) fn new(input: &InputStats, group: usize, why: &'static str) -> Result<Self, QuantError> {
        let starts = (0..input.columns).step_by(group.max(1));
        let squares = match &input.hessian {
            Some(hessian) => starts.map(|start| from_hessian(hessian, start, group)).collect(),
            None if input.sample.is_empty() => {
                return Err(QuantError::Missing { what: "a Hessian or a sample of inputs", why });
            }
            None => starts.map(|start| from_sample(input, start, group)).collect(),
        };
        Ok(Self { group, squares })
    }

    /// What the outputs lose, summed over tokens, where group `g` of a row is off by `off`.
    pub(crate) fn loss(&self, g: usize, off: &[f32]) -> f64 {
        let square = &self.squares[g];
        let lines = square.chunks_exact(self.group).zip(off);
        lines.map(|(line, d)| f64::from(*d) * f64::from(crate::factor::dot(line, off))).sum()
    }
}

fn from_hessian(hessian: &Hessian, start: usize, group: usize) -> Vec<f32> {
    let mut square = Vec::with_capacity(group * group);
    for i in start..start + group {
        square.extend((start..start + group).map(|j| hessian.at(i, j)));
    }
    square
}

fn from_sample(input: &InputStats, start: usize, group: usize) -> Vec<f32> {
    let mut square = vec![0.0; group * group];
    for (row, visual) in input.sample.rows.chunks_exact(input.columns).zip(&input.sample.visual) {
        let x = &row[start..start + group];
        let weight = if *visual { input.visual_weight.max(0.0) } else { 1.0 };
        for (line, xi) in square.chunks_exact_mut(group).zip(x) {
            for (sum, xj) in line.iter_mut().zip(x) {
                *sum += weight * xi * xj;
            }
        }
    }
    square
}
