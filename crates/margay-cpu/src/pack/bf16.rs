//! Matrices in bfloat16 for encoders: `[n / 16][k / 2][16][2]`, k filled up with zeros to whole steps of the kernels.

use super::{PANEL, float::SharedBytes};
use crate::{
    lines::{Arena, Lines},
    threads::Pool,
};
use margay_graph::BackendError;
use margay_tensor::Tensor;

/// Columns of k that kernels take at a time.
pub(crate) const BF16_STEP: usize = 16;

/// A `[n, k]` matrix, rounded when it was packed.
#[derive(Debug)]
pub(crate) struct Bf16Matrix {
    pub(crate) n: usize,
    /// Columns, filled up to a multiple of [`BF16_STEP`].
    pub(crate) k: usize,
    numbers: Lines<u8>,
}

impl Bf16Matrix {
    /// Rounds to the nearest, ties to even, and packs `tensor`.
    pub(crate) fn pack(
        name: &str,
        tensor: &Tensor,
        pool: &Pool,
        arena: &Arena,
    ) -> Result<Self, BackendError> {
        let (n, columns) = (tensor.shape().rows().unwrap_or(0), tensor.shape().row());
        let k = columns.next_multiple_of(BF16_STEP);
        if margay_quant::format(tensor.dtype()).is_none() {
            let what = format!("is of type {}, which nobody can decode", tensor.dtype());
            return Err(BackendError::Weight { name: name.to_owned(), what });
        }
        let (panels, panel_bytes) = (n.div_ceil(PANEL), PANEL * k * 2);
        let mut numbers = arena.zeroed(panels * panel_bytes);
        let out = SharedBytes(numbers.as_mut_ptr());
        let body = |_: usize, panel: usize| {
            // SAFETY: each task writes its own panel, which lies inside the buffer.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(panel * panel_bytes), panel_bytes) };
            let out = out.as_chunks_mut::<2>().0;
            // A row at a time: the whole matrix in float32 would take more memory than anything that stays.
            let mut row_values = vec![0f32; columns];
            for (column, row) in (panel * PANEL..n.min((panel + 1) * PANEL)).enumerate() {
                margay_quant::decode_row(tensor, row, &mut row_values)
                    .expect("invariant: format and row were checked");
                for (i, value) in row_values.iter().enumerate() {
                    out[(i / 2 * PANEL + column) * 2 + i % 2] = half::bf16::from_f32(*value).to_ne_bytes();
                }
            }
        };
        pool.run(panels, &body).map_err(|e| BackendError::Call { what: e.to_string() })?;
        Ok(Bf16Matrix { n, k, numbers })
    }

    /// First number of a panel at column `k`, a multiple of [`BF16_STEP`].
    pub(crate) fn at(&self, panel: usize, k: usize) -> *const u16 {
        self.numbers[(panel * self.k + k) * PANEL * 2..].as_ptr().cast()
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.numbers.size_bytes()
    }
}
