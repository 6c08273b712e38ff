//! Eight bits a number, one scale (and zero point) a row or a matrix.
//!
//! Symmetric: `y = d q`, q from -127 to 127. Asymmetric: `y = d (q - z)`, z from -128 to 127, so that zero is exact.
//! Bytes: the scales as float32, then the zero points as signed bytes where there are any, then the codes.
//! Source: sections 1 to 3 of "Integer Quantization for Deep Learning Inference" (arXiv 2004.09602).

use half::f16;

use super::{MatrixFormat, Share, check, columns};
use crate::{
    Matrix, QuantError,
    formats::q8_0,
    search::{bounds, nearest_int},
    stats::same,
};

/// The format. Off by at most half a step of its range.
#[derive(Clone, Copy, Debug)]
pub struct Int8 {
    /// Who shares a scale.
    pub share: Share,
    /// Without zero point.
    pub symmetric: bool,
}

/// Scale and zero point of `values`.
fn range(values: &[f32], symmetric: bool) -> (f32, i32) {
    let (min, max) = bounds(values);
    let (min, max) = (min.min(0.0), max.max(0.0));
    if symmetric {
        return (max.max(-min) / 127.0, 0);
    }
    // Halves first: the whole range of float32 is wider than its largest number.
    let scale = (max / 2.0 - min / 2.0) / 127.5;
    if scale == 0.0 {
        return (0.0, 0);
    }
    (scale, (nearest_int(-min / scale) - 128).clamp(-128, 127))
}

impl Int8 {
    fn shares(&self, rows: usize) -> usize {
        match self.share {
            Share::Tensor => 1,
            Share::Row => rows,
        }
    }

    fn head_bytes(&self, rows: usize) -> usize {
        self.shares(rows).saturating_mul(if self.symmetric { 4 } else { 5 })
    }
}

impl MatrixFormat for Int8 {
    fn id(&self) -> &'static str {
        match (self.share, self.symmetric) {
            (Share::Row, true) => "int8-channel",
            (Share::Row, false) => "int8-channel-asymmetric",
            (Share::Tensor, true) => "int8-tensor",
            (Share::Tensor, false) => "int8-tensor-asymmetric",
        }
    }

    fn size_bytes(&self, rows: usize, cols: usize) -> Option<usize> {
        rows.checked_mul(cols)?.checked_add(self.head_bytes(rows))
    }

    fn encode(&self, weight: Matrix<'_>, importance: Option<&[f32]>) -> Result<Vec<u8>, QuantError> {
        check(weight, importance)?;
        let shares = self.shares(weight.rows);
        let each = weight.values.len().checked_div(shares).unwrap_or(0);
        let ranges: Vec<(f32, i32)> =
            (0..shares).map(|s| range(&weight.values[s * each..][..each], self.symmetric)).collect();
        let mut packed = Vec::with_capacity(self.head_bytes(weight.rows) + weight.values.len());
        packed.extend(ranges.iter().flat_map(|(scale, _)| scale.to_le_bytes()));
        if !self.symmetric {
            packed.extend(ranges.iter().map(|(_, zero)| *zero as i8 as u8));
        }
        let (low, high) = if self.symmetric { (-127, 127) } else { (-128, 127) };
        for (values, (scale, zero)) in weight.values.chunks(each.max(1)).zip(&ranges) {
            let code = |x: &f32| {
                let place = if *scale == 0.0 { 0.0 } else { (x / scale).clamp(-256.0, 256.0) };
                (nearest_int(place) + zero).clamp(low, high) as i8 as u8
            };
            packed.extend(values.iter().map(code));
        }
        Ok(packed)
    }

    fn decode(&self, packed: &[u8], rows: usize, out: &mut [f32]) -> Result<(), QuantError> {
        let cols = columns(rows, out.len())?;
        same("bytes of a packed matrix", self.size_bytes(rows, cols).unwrap_or(usize::MAX), packed.len())?;
        let shares = self.shares(rows);
        let (scales, rest) = packed.split_at(4 * shares);
        let (zeros, codes) = rest.split_at(if self.symmetric { 0 } else { shares });
        let each = out.len().checked_div(shares).unwrap_or(0).max(1);
        for (s, (out, codes)) in out.chunks_mut(each).zip(codes.chunks(each)).enumerate() {
            let scale = f32::from_le_bytes(scales.as_chunks().0[s]);
            let zero = zeros.get(s).map_or(0, |zero| i32::from(*zero as i8));
            for (y, q) in out.iter_mut().zip(codes) {
                *y = scale * (i32::from(*q as i8) - zero) as f32;
            }
        }
        Ok(())
    }
}

/// Packs `weight` as symmetric eight bits per channel in `Q8_0` blocks: every block of a row has the row's scale, so a
/// kernel may take the scale out of its sums, and any reader of `Q8_0` takes the file.
///
/// The scale is the half-precision number at or above the exact one, so that no code is cut off.
///
/// # Errors
/// [`QuantError::NotFinite`] for NaN and infinities; [`QuantError::Size`] where a row is no whole number of blocks
/// ([`crate::storable`] says what to use instead) or `out` not as long as they are; [`QuantError::NotFinite`] as well for
/// a row whose scale is beyond half precision.
pub fn encode_q8_0(weight: Matrix<'_>, out: &mut [u8]) -> Result<(), QuantError> {
    weight.finite()?;
    let blocks = weight.cols / q8_0::ELEMENTS;
    same("columns of a row of whole blocks", weight.cols.next_multiple_of(q8_0::ELEMENTS), weight.cols)?;
    same("bytes of a packed weight", weight.rows * blocks * q8_0::BYTES, out.len())?;
    for (r, (row, out)) in weight.iter_rows().zip(out.chunks_mut((blocks * q8_0::BYTES).max(1))).enumerate() {
        let (scale, _) = range(row, true);
        let half = at_least(scale);
        if !half.is_finite() {
            return Err(QuantError::NotFinite { value: half.to_f32(), row: r, column: 0 });
        }
        let stored = half.to_f32();
        for (x, block) in
            row.as_chunks::<{ q8_0::ELEMENTS }>().0.iter().zip(out.as_chunks_mut::<{ q8_0::BYTES }>().0)
        {
            block[q8_0::SCALE..q8_0::QUANTS].copy_from_slice(&half.to_le_bytes());
            for (q, x) in block[q8_0::QUANTS..].iter_mut().zip(x) {
                let place = if stored == 0.0 { 0.0 } else { x / stored };
                *q = nearest_int(place.clamp(-127.0, 127.0)) as i8 as u8;
            }
        }
    }
    Ok(())
}

/// The smallest half-precision number that is not below `scale`.
fn at_least(scale: f32) -> f16 {
    let nearest = f16::from_f32(scale);
    if nearest.to_f32() < scale { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockFormat, formats::q8_0::Q8_0};

    #[test]
    fn numbers_come_back_within_half_a_step_and_zero_exactly() {
        let values: Vec<f32> = (0..6 * 33)
            .map(|i| if i % 7 == 0 { 0.0 } else { (i as f32 * 0.37).sin() * (1 + i / 33) as f32 + 0.4 })
            .collect();
        let weight = Matrix::new(&values, 6, 33).unwrap();
        for share in [Share::Row, Share::Tensor] {
            for symmetric in [true, false] {
                let format = Int8 { share, symmetric };
                let packed = format.encode(weight, None).unwrap();
                let mut back = vec![0.0; values.len()];
                format.decode(&packed, 6, &mut back).unwrap();
                for (i, (x, y)) in values.iter().zip(&back).enumerate() {
                    let mine = if share == Share::Row { &values[i / 33 * 33..][..33] } else { &values };
                    let (scale, _) = range(mine, symmetric);
                    // The rounded zero point shifts the ends of the range by half a step.
                    let steps = if symmetric { 0.5 } else { 1.0 };
                    assert!((x - y).abs() <= scale * (steps + 1e-3), "{format:?} {i}: {x} {y}");
                    assert!(*x != 0.0 || *y == 0.0);
                }
            }
        }
    }

    #[test]
    fn q8_0_blocks_of_a_row_share_its_scale() {
        let values: Vec<f32> = (0..3 * 96).map(|i| (i as f32 * 0.37).sin() * (1 + i / 96) as f32).collect();
        let weight = Matrix::new(&values, 3, 96).unwrap();
        let mut packed = vec![0; 9 * q8_0::BYTES];
        encode_q8_0(weight, &mut packed).unwrap();
        for row in packed.chunks(3 * q8_0::BYTES) {
            assert!(row.chunks(q8_0::BYTES).all(|block| block[..2] == row[..2]));
        }
        let mut back = vec![0.0; values.len()];
        Q8_0.decode(&packed, &mut back);
        for (row, back) in values.chunks(96).zip(back.chunks(96)) {
            let largest = row.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            assert!(row.iter().zip(back).all(|(x, y)| (x - y).abs() <= largest / 127.0 * 0.501));
        }
        assert!(encode_q8_0(Matrix::new(&values, 9, 32).unwrap(), &mut packed[1..]).is_err());
        assert!(encode_q8_0(Matrix::new(&values[..81], 3, 27).unwrap(), &mut []).is_err());
        assert!(encode_q8_0(Matrix::new(&[f32::MAX; 32], 1, 32).unwrap(), &mut packed[..34]).is_err());
    }

    #[test]
    fn scales_round_up() {
        for scale in [0.0, 1e-9, 0.1, 1.0, 0.33333, 100.7] {
            let up = at_least(scale).to_f32();
            assert!(up >= scale && up <= scale * 1.002 + 1e-7, "{scale} {up}");
        }
    }
}
