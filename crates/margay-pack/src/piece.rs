//! One weight from its stored format into another, a piece at a time and by several threads, so that a model larger
//! than the memory passes through it.

use crate::{Fold, PackError};
use margay_file::TensorInfo;
use margay_quant::{InputStats, Matrix, QuantError, Rounding, decode_into};
use margay_tensor::{DType, Storage, Tensor};
use std::{
    ops::ControlFlow,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Elements that are converted between two looks at whether to stop: some milliseconds of work in any format.
const SMALL_ELEMENTS: usize = 1 << 15;
/// The same of a method that looks at whole rows of the input, or at a matrix of them, for each piece.
const SAMPLE_ELEMENTS: usize = 1 << 21;
/// Small pieces that a thread takes between two waits for the others.
const PIECES: usize = 8;
/// Bytes of a stored weight that may stay in memory behind what was read of it.
const BEHIND_BYTES: usize = 16 << 20;

/// A weight that is to be packed.
pub(crate) struct Packing<'a> {
    pub(crate) name: &'a str,
    pub(crate) tensor: &'a Tensor,
    /// What it becomes.
    pub(crate) info: &'a TensorInfo,
    pub(crate) fold: Option<&'a Fold>,
    /// Columns that become zeros, because they are kept elsewhere.
    pub(crate) without: &'a [usize],
    pub(crate) rounding: &'a dyn Rounding,
    pub(crate) input: Option<&'a InputStats>,
    pub(crate) threads: usize,
}

impl Packing<'_> {
    /// Hands the packed bytes to `sink` in order. `step` is told how many there are so far, and may stop.
    pub(crate) fn run(
        &self,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), PackError>,
        step: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), PackError> {
        let Packing { tensor, info, .. } = self;
        let (from, to, row) = (tensor.dtype(), info.dtype, info.shape.row().max(1));
        let needs = self.rounding.needs();
        let (elements, pieces) = match needs.hessian || needs.sample {
            true => (SAMPLE_ELEMENTS, self.threads),
            false => (SMALL_ELEMENTS, PIECES * self.threads),
        };
        let piece = Piece { rows: (elements / row).max(1), row, from, to };
        let copied = from == to && self.fold.is_none() && self.without.is_empty();
        let (mut out, mut written, mut behind) = (vec![], 0u64, 0);
        let whole = piece.bytes(from).saturating_mul(pieces).max(1);
        for (batch, bytes) in tensor.bytes().chunks(whole).enumerate() {
            let first_row = batch * pieces * piece.rows;
            let rows = bytes.len() / (piece.bytes(from) / piece.rows).max(1);
            if copied {
                finite(from, bytes).map_err(|at| self.fail(not_finite(at, first_row, row)))?;
                sink(bytes)?;
                written += bytes.len() as u64;
            } else {
                out.resize(rows * (piece.bytes(to) / piece.rows), 0);
                self.batch(&piece, first_row, bytes, &mut out, &mut || step(written))?;
                sink(&out)?;
                written += out.len() as u64;
            }
            let read = batch * whole + bytes.len();
            if read - behind >= BEHIND_BYTES {
                tensor.storage().slice(behind..read).iter().for_each(Storage::release);
                behind = read;
            }
            if step(written).is_break() {
                return Err(PackError::Stopped);
            }
        }
        tensor.storage().release();
        Ok(())
    }

    /// The packed bytes as a tensor.
    pub(crate) fn tensor(&self, step: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Tensor, PackError> {
        let fail = |e| self.fail(QuantError::Tensor(e));
        let size = self.info.size_bytes().map_err(fail)?;
        let mut result = Ok(());
        let storage = Storage::build(size, |out| {
            let mut at = 0;
            let mut sink = |bytes: &[u8]| {
                out[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
                Ok(())
            };
            result = self.run(&mut sink, step);
        });
        result?;
        Tensor::new(self.info.dtype, self.info.shape.clone(), storage).map_err(fail)
    }

    /// Some pieces, which the threads take one after the other; this one looks whether to stop after each of its own.
    fn batch(
        &self,
        piece: &Piece,
        first_row: usize,
        bytes: &[u8],
        out: &mut [u8],
        step: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<(), PackError> {
        let count = bytes.len().div_ceil(piece.bytes(piece.from).max(1));
        let parts =
            bytes.chunks(piece.bytes(piece.from).max(1)).zip(out.chunks_mut(piece.bytes(piece.to).max(1)));
        let queue = Mutex::new(parts.enumerate());
        let (stop, failed) = (AtomicBool::new(false), Mutex::new(None));
        let next = || {
            let part = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            part.filter(|_| !stop.load(Ordering::Relaxed))
        };
        let work = |values: &mut Vec<f32>, (at, (bytes, out)): (usize, (&[u8], &mut [u8]))| {
            if let Err(e) = self.one(piece, first_row + at * piece.rows, bytes, out, values) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                stop.store(true, Ordering::Relaxed);
            }
        };
        let mut stopped = false;
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(count) {
                scope.spawn(|| {
                    let mut values = vec![];
                    while let Some(part) = next() {
                        work(&mut values, part);
                    }
                });
            }
            let mut values = vec![];
            while let Some(part) = next() {
                work(&mut values, part);
                if step().is_break() {
                    stopped = true;
                    stop.store(true, Ordering::Relaxed);
                }
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(self.fail(e)),
            None if stopped => Err(PackError::Stopped),
            None => Ok(()),
        }
    }

    fn one(
        &self,
        piece: &Piece,
        first_row: usize,
        bytes: &[u8],
        out: &mut [u8],
        values: &mut Vec<f32>,
    ) -> Result<(), QuantError> {
        values.resize(bytes.len() / piece.from.block_bytes() * piece.from.block_elements(), 0.0);
        decode_into(piece.from, bytes, values)?;
        if let Some(fold) = self.fold {
            // A vector is a column.
            let width = if self.info.shape.rank() == 1 { 1 } else { piece.row };
            let first = if self.info.shape.rank() == 1 { first_row * piece.row } else { first_row };
            fold.apply(values, width, first);
        }
        if !self.without.is_empty() {
            // What is kept elsewhere must be a number as well.
            Matrix::new(values, values.len() / piece.row, piece.row)?.finite()?;
            for row in values.chunks_exact_mut(piece.row) {
                self.without.iter().for_each(|&column| row[column] = 0.0);
            }
        }
        let matrix = Matrix::new(values, values.len() / piece.row, piece.row)?;
        self.rounding.pack(matrix, self.input, piece.to, out).map_err(|e| match e {
            QuantError::NotFinite { value, row, column } => {
                QuantError::NotFinite { value, row: row + first_row, column }
            }
            other => other,
        })
    }

    fn fail(&self, source: QuantError) -> PackError {
        PackError::Quant { name: self.name.to_owned(), source }
    }
}

/// How a weight is cut.
struct Piece {
    rows: usize,
    row: usize,
    from: DType,
    to: DType,
}

impl Piece {
    /// Bytes of a piece in that format: whole rows, which are whole blocks in both formats.
    fn bytes(&self, dtype: DType) -> usize {
        self.rows * (self.row / dtype.block_elements() * dtype.block_bytes())
    }
}

/// Refuses numbers that are none among plain ones: which one, and what it is.
fn finite(dtype: DType, bytes: &[u8]) -> Result<(), (usize, f32)> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let none = |top: f32, sign: bool, nan: bool| match (nan, sign) {
        (true, _) => f32::NAN,
        (false, true) => -top,
        (false, false) => top,
    };
    let of16 = |exponent: u16| {
        let at = pairs().position(|bits| bits & exponent == exponent)?;
        let bits = pairs().nth(at)?;
        Some((at, none(f32::INFINITY, bits >> 15 == 1, bits & 0x7fff != exponent)))
    };
    let found = match dtype {
        DType::F16 => of16(0x7c00),
        DType::BF16 => of16(0x7f80),
        DType::F32 => {
            let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            values.clone().position(|v| !v.is_finite()).and_then(|at| Some((at, values.nth(at)?)))
        }
        _ => None,
    };
    found.map_or(Ok(()), Err)
}

fn not_finite((at, value): (usize, f32), first_row: usize, row: usize) -> QuantError {
    QuantError::NotFinite { value, row: first_row + at / row, column: at % row }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_quant::{encode_tensor, methods::rtn::Rtn};
    use margay_tensor::Shape;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
    }

    fn packed(tensor: &Tensor, dtype: DType, threads: usize) -> Result<Tensor, PackError> {
        let info = TensorInfo { dtype, shape: tensor.shape().clone() };
        let packing = Packing {
            name: "w",
            tensor,
            info: &info,
            fold: None,
            without: &[],
            rounding: &Rtn,
            input: None,
            threads,
        };
        packing.tensor(&mut |_| ControlFlow::Continue(()))
    }

    #[test]
    fn pieces_by_several_threads_are_the_whole() {
        // Rows that no piece divides.
        let (rows, row) = (1031, 96);
        let shape = Shape::from([rows, row]);
        let stored = Tensor::from_f32(shape.clone(), &values(rows * row)).unwrap();
        let whole = encode_tensor(&values(rows * row), shape, DType::Q5_1).unwrap();
        for threads in [1, 3] {
            assert_eq!(packed(&stored, DType::Q5_1, threads).unwrap().bytes(), whole.bytes());
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused_wherever_they_lie() {
        let mut numbers = values(2000 * 64);
        numbers[1777 * 64 + 5] = f32::NEG_INFINITY;
        let shape = Shape::from([2000, 64]);
        let stored = Tensor::from_f32(shape.clone(), &numbers).unwrap();
        let half = encode_tensor(&numbers, shape, DType::F16).unwrap();
        for (tensor, dtype) in [(&stored, DType::Q4_0), (&stored, DType::F32), (&half, DType::F16)] {
            let error = packed(tensor, dtype, 2).unwrap_err().to_string();
            assert!(error.contains("weight w") && error.contains("row 1777, column 5"), "{error}");
            assert!(error.contains("-inf"), "{error}");
        }
    }
}
