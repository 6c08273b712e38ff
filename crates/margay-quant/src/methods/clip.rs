//! `clip`: every block by itself, its range cut by what serves the outputs best.
//!
//! Up to nine twentieths of a block's range are given up, where the finer steps that this leaves to the rest are worth
//! more than the extremes. Blocks packed by importance are tried as well.
//! Source: `auto_clip.py` of the AWQ code, with the blocks of a format in the place of its groups.

use margay_tensor::DType;

use super::{Needs, Rounding, importance, target};
use crate::{InputStats, Matrix, QuantError, gram::Grams};

/// Ranges tried: the whole one, 19/20 of it and so on.
const TRIALS: usize = 10;

/// Clipping search.
pub struct Clip;

impl Rounding for Clip {
    fn id(&self) -> &'static str {
        "clip"
    }

    fn about(&self) -> &'static str {
        "every block by itself, its range cut by what serves the outputs best"
    }

    fn needs(&self) -> Needs {
        Needs { activations: true, sample: true, ..Needs::default() }
    }

    fn pack(
        &self,
        weight: Matrix<'_>,
        input: Option<&InputStats>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), QuantError> {
        let format = target(weight, dtype, out)?;
        let importance = importance(self.id(), weight, input)?;
        let input = input.expect("invariant: importance() refuses a missing input");
        let (n, bytes) = (dtype.block_elements(), dtype.block_bytes());
        let grams = Grams::new(input, n, self.id())?;
        let (mut clipped, mut off, mut trial) = (vec![0.0; n], vec![0.0; n], vec![0; bytes]);
        let blocks = weight.values.chunks_exact(n).zip(out.chunks_exact_mut(bytes));
        for (b, (x, block)) in blocks.enumerate() {
            let g = b % (weight.cols / n);
            let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let mut best = f64::INFINITY;
            for step in 0..2 * TRIALS {
                let limit = largest * (1.0 - (step % TRIALS) as f32 / 20.0);
                for (clipped, x) in clipped.iter_mut().zip(x) {
                    *clipped = x.clamp(-limit, limit);
                }
                if step < TRIALS {
                    format.encode(&clipped, &mut trial);
                } else {
                    format.encode_weighted(&clipped, &importance[g * n..][..n], &mut trial);
                }
                format.decode(&trial, &mut off);
                for (off, x) in off.iter_mut().zip(x) {
                    *off -= x;
                }
                let loss = grams.loss(g, &off);
                // The first trial stands where none can be compared: inputs that were always zero.
                if loss < best || step == 0 {
                    best = loss;
                    block.copy_from_slice(&trial);
                }
            }
        }
        Ok(())
    }
}
