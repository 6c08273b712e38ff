//! Matrices of signed bytes with one scale for each row (output channel), for encoders.
//!
//! Codes lie as those of [`super::QuantMatrix`] do, `[n / 16][k / 4][16][4]`, k filled up with zeros to whole steps of
//! the kernels.

use super::{PANEL, float::SharedBytes};
use crate::{
    lines::{Arena, Lines},
    threads::Pool,
};
use margay_graph::BackendError;
use margay_tensor::{DType, Tensor};

/// Columns of k that kernels take at a time.
pub(crate) const CHANNEL_STEP: usize = 16;

/// A `[n, k]` matrix, quantized when it was packed: code = round(w / scale), scale = max |w| / 127 of its row.
#[derive(Debug)]
pub(crate) struct ChannelMatrix {
    pub(crate) n: usize,
    /// Columns, filled up to a multiple of [`CHANNEL_STEP`].
    pub(crate) k: usize,
    codes: Lines<u8>,
    /// One a row, filled up to whole panels.
    scales: Vec<f32>,
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
        let values = crate::weights::decode(name, tensor)?;
        let (n, columns) = (tensor.shape().rows().unwrap_or(0), tensor.shape().row());
        let k = columns.next_multiple_of(CHANNEL_STEP);
        let panels = n.div_ceil(PANEL);
        let mut codes = arena.zeroed(panels * PANEL * k);
        let mut scales = vec![0f32; panels * PANEL];
        let out = SharedBytes(codes.as_mut_ptr());
        let scales_out = SharedBytes(scales.as_mut_ptr().cast());
        let body = |_: usize, panel: usize| {
            // SAFETY: each task writes its own panel and its scales, which lie inside both buffers.
            let (out, scales) = unsafe {
                (
                    std::slice::from_raw_parts_mut(out.at(panel * PANEL * k), PANEL * k),
                    std::slice::from_raw_parts_mut(scales_out.at(panel * PANEL * 4).cast::<f32>(), PANEL),
                )
            };
            for (column, row) in (panel * PANEL..n.min((panel + 1) * PANEL)).enumerate() {
                let row = &values[row * columns..][..columns];
                let max = row.iter().fold(0f32, |max, w| max.max(w.abs()));
                scales[column] = max / 127.0;
                let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
                for (i, w) in row.iter().enumerate() {
                    let code = (w * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
                    out[(i / 4 * PANEL + column) * 4 + i % 4] = code as u8;
                }
            }
        };
        pool.run(panels, &body).map_err(|e| BackendError::Call { what: e.to_string() })?;
        Ok(ChannelMatrix { n, k, codes, scales })
    }

    /// First code of a panel at column `k`, a multiple of [`CHANNEL_STEP`].
    pub(crate) fn codes_at(&self, panel: usize, k: usize) -> *const u8 {
        self.codes[(panel * self.k + k) * PANEL..].as_ptr()
    }

    /// Scales of outputs from `column` on.
    pub(crate) fn scales_at(&self, column: usize, columns: usize) -> &[f32] {
        &self.scales[column..][..columns]
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.codes.size_bytes() + self.scales.len() * 4
    }
}
