//! Visual rows in fewer bytes.

use crate::Error;
use margay_quant::{decode_into, encode_into, storable};
use margay_tensor::DType;

/// Rows of one width in one format: blocks that do not divide the width give way to the format that stands in for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowFormat {
    dtype: DType,
    width: usize,
}

impl RowFormat {
    pub(crate) fn new(dtype: DType, width: usize) -> Self {
        RowFormat { dtype: storable(dtype, width).0, width }
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.width).expect("invariant: storable in rows of this width")
    }

    /// Of [V, width].
    pub(crate) fn pack(&self, rows: &[f32]) -> Result<Vec<u8>, Error> {
        let row_bytes = self.row_bytes();
        let mut bytes = vec![0; rows.len() / self.width * row_bytes];
        for (row, to) in rows.chunks_exact(self.width).zip(bytes.chunks_exact_mut(row_bytes)) {
            encode_into(self.dtype, row, to).map_err(Error::Visual)?;
        }
        Ok(bytes)
    }

    /// Writes as many rows as there are bytes of, [V, width].
    pub(crate) fn unpack(&self, bytes: &[u8], rows: &mut [f32]) -> Result<(), Error> {
        let packed = bytes.chunks_exact(self.row_bytes());
        for (row, to) in packed.zip(rows.chunks_exact_mut(self.width)) {
            decode_into(self.dtype, row, to).map_err(Error::Visual)?;
        }
        Ok(())
    }

    /// As [`RowFormat::unpack`], behind what `out` holds.
    pub(crate) fn append(&self, bytes: &[u8], out: &mut Vec<f32>) -> Result<(), Error> {
        let start = out.len();
        out.resize(start + bytes.len() / self.row_bytes() * self.width, 0.0);
        self.unpack(bytes, &mut out[start..])
    }
}
