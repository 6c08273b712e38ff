//! Matrices of signed bytes with one scale for each row (output channel), for encoders.
//!
//! Codes lie as those of [`super::QuantMatrix`] do, `[n / 16][k / 4][16][4]`, k filled up with zeros to whole steps of
//! the kernels.
//!
//! The scale of a row is the least with which no code exceeds 127 and no two codes of one sign that kernels take as a
//! pair (columns 2 i and 2 i + 1) exceed 128 together: then an unsigned byte times such a pair, 255 * 128 = 32640, fits 16
//! bits, which saves AVX2 a quarter of its operations. For numbers of a normal distribution that makes steps about a
//! tenth wider, at most twice as wide.

use super::{PANEL, float::SharedBytes};
use crate::{
    kernels::math,
    lines::{Arena, Lines},
    threads::Pool,
};
use margay_graph::BackendError;
use margay_tensor::{DType, Tensor};

/// Columns of k that kernels take at a time.
pub(crate) const CHANNEL_STEP: usize = 16;

/// A `[n, k]` matrix, quantized when it was packed: code = round(w / scale).
#[derive(Debug)]
pub(crate) struct ChannelMatrix {
    pub(crate) n: usize,
    /// Columns, filled up to a multiple of [`CHANNEL_STEP`].
    pub(crate) k: usize,
    codes: Lines<u8>,
    /// One a row, filled up to whole panels.
    scales: Vec<f32>,
    /// Sums of the codes of each row, filled up as the scales are.
    totals: Vec<i32>,
}

/// What 127 stands for: the largest number of a row, or sum of two of one sign that are multiplied as a pair. Rounding
/// adds at most half to each of those, so 127 becomes 128 at most.
fn largest(row: &[f32]) -> f32 {
    let pair = |pair: &[f32]| match pair {
        [a, b] if (*a < 0.0) == (*b < 0.0) => (a + b).abs(),
        _ => 0.0,
    };
    let pairs = row.chunks(2).map(pair).fold(0f32, f32::max);
    row.iter().fold(pairs, |max, w| max.max(w.abs()))
}

impl ChannelMatrix {
    /// True for formats that lose only by this: those that are quantized already keep their own scales.
    pub(crate) fn suits(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Quantizes and packs `tensor`.
    pub(crate) fn pack(
        name: &str,
        tensor: &Tensor,
        pool: &Pool,
        arena: &Arena,
    ) -> Result<Self, BackendError> {
        let (n, columns) = (tensor.shape().rows().unwrap_or(0), tensor.shape().row());
        let k = columns.next_multiple_of(CHANNEL_STEP);
        if margay_quant::format(tensor.dtype()).is_none() {
            let what = format!("is of type {}, which nobody can decode", tensor.dtype());
            return Err(BackendError::Weight { name: name.to_owned(), what });
        }
        let panels = n.div_ceil(PANEL);
        let mut codes = arena.zeroed(panels * PANEL * k);
        let mut scales = vec![0f32; panels * PANEL];
        let mut totals = vec![0i32; panels * PANEL];
        let out = SharedBytes(codes.as_mut_ptr());
        let scales_out = SharedBytes(scales.as_mut_ptr().cast());
        let totals_out = SharedBytes(totals.as_mut_ptr().cast());
        let body = |_: usize, panel: usize| {
            // SAFETY: each task writes its own panel, its scales and totals, which lie inside the buffers.
            let (out, scales, totals) = unsafe {
                (
                    std::slice::from_raw_parts_mut(out.at(panel * PANEL * k), PANEL * k),
                    std::slice::from_raw_parts_mut(scales_out.at(panel * PANEL * 4).cast::<f32>(), PANEL),
                    std::slice::from_raw_parts_mut(totals_out.at(panel * PANEL * 4).cast::<i32>(), PANEL),
                )
            };
            // A row at a time: the whole matrix in float32 would take more memory than anything that stays.
            let mut row_values = vec![0f32; columns];
            for (column, row) in (panel * PANEL..n.min((panel + 1) * PANEL)).enumerate() {
                margay_quant::decode_row(tensor, row, &mut row_values)
                    .expect("invariant: format and row were checked");
                let row = &row_values;
                let max = largest(row);
                scales[column] = max / 127.0;
                let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
                for (out, four) in out.chunks_exact_mut(4 * PANEL).zip(row.chunks(4)) {
                    for (out, w) in out[column * 4..].iter_mut().zip(four) {
                        // Rounds to the nearest, ties to even, as the activations are.
                        let shifted = w * inverse + math::ROUND;
                        let code = (shifted.to_bits() as i32).wrapping_sub(math::ROUND.to_bits() as i32);
                        let code = code.clamp(-127, 127);
                        totals[column] += code;
                        *out = code as u8;
                    }
                }
            }
        };
        pool.run(panels, &body).map_err(|e| BackendError::Call { what: e.to_string() })?;
        Ok(ChannelMatrix { n, k, codes, scales, totals })
    }

    /// First code of a panel at column `k`, a multiple of [`CHANNEL_STEP`].
    pub(crate) fn codes_at(&self, panel: usize, k: usize) -> *const u8 {
        self.codes[(panel * self.k + k) * PANEL..].as_ptr()
    }

    /// Scales of outputs from `column` on.
    pub(crate) fn scales_at(&self, column: usize, columns: usize) -> &[f32] {
        &self.scales[column..][..columns]
    }

    /// Sums of the codes of the 16 outputs of a panel.
    pub(crate) fn totals_at(&self, panel: usize) -> *const i32 {
        self.totals[panel * PANEL..][..PANEL].as_ptr()
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.codes.size_bytes() + (self.scales.len() + self.totals.len()) * 4
    }
}
