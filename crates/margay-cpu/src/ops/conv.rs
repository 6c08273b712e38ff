//! 2-D convolution over feature maps stored channels last.

use super::{
    Engine,
    linear::{self, Epilogue},
    view::{Out, View},
};
use crate::{
    lines::{Arena, Lines},
    pack::FloatMatrix,
    threads::TaskPanic,
};
use margay_graph::Conv2d;

/// A convolution's weight in the order in which its path reads it.
#[derive(Debug)]
pub(crate) enum ConvWeight {
    /// One channel in, one out: `[kernel * kernel][C]`.
    Depthwise(Vec<f32>),
    /// One channel in, `each` out: `[kernel * kernel][each][C]`.
    Multiplied { each: usize, weight: Vec<f32> },
    /// One group: `[C_out, kernel * kernel * C_in]`, multiplied with unrolled windows.
    Unrolled(FloatMatrix),
    /// Anything else, as PyTorch stores it.
    Grouped(Vec<f32>),
}

impl ConvWeight {
    /// Orders `values`: [C_out, C_in / groups, kernel, kernel].
    pub(crate) fn new(conv: &Conv2d, values: Vec<f32>, channels_in: usize, arena: &Arena) -> Self {
        let taps = conv.kernel * conv.kernel;
        let inputs = channels_in / conv.groups;
        let outputs = values.len() / (inputs * taps).max(1);
        if conv.groups == channels_in && outputs == channels_in {
            let order = |i: usize| values[(i % outputs) * taps + i / outputs];
            return ConvWeight::Depthwise((0..values.len()).map(order).collect());
        }
        if conv.groups == channels_in {
            let each = outputs / channels_in.max(1);
            let order = |i: usize| {
                let (tap, result, channel) = (i / outputs, i % outputs / channels_in, i % channels_in);
                values[(channel * each + result) * taps + tap]
            };
            return ConvWeight::Multiplied { each, weight: (0..values.len()).map(order).collect() };
        }
        if conv.groups == 1 {
            let mut rows = vec![0.0; values.len()];
            for (i, value) in values.iter().enumerate() {
                let (output, input, tap) = (i / (inputs * taps), i / taps % inputs, i % taps);
                rows[(output * taps + tap) * inputs + input] = *value;
            }
            return ConvWeight::Unrolled(FloatMatrix::from_f32(&rows, inputs * taps, arena));
        }
        ConvWeight::Grouped(values)
    }

    /// Floats that the unrolled windows of one call take.
    pub(crate) fn unrolled_floats(&self, conv: &Conv2d) -> usize {
        let (h, w) = conv.output_size();
        match self {
            ConvWeight::Unrolled(matrix) => h * w * matrix.k,
            _ => 0,
        }
    }

    /// Floats that a thread needs beside.
    pub(crate) fn scratch_floats(&self, conv: &Conv2d) -> usize {
        match self {
            ConvWeight::Multiplied { weight, .. } => weight.len() / (conv.kernel * conv.kernel),
            _ => 0,
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            ConvWeight::Depthwise(v) | ConvWeight::Grouped(v) => v.len() * 4,
            ConvWeight::Multiplied { weight, .. } => weight.len() * 4,
            ConvWeight::Unrolled(m) => m.size_bytes(),
        }
    }
}

/// Calls `tap(index, source row)` for each tap of output pixel `row` that lies inside the map.
fn taps(conv: &Conv2d, row: usize, mut tap: impl FnMut(usize, usize)) {
    let across = conv.output_size().1;
    let (y0, x0) = (row / across * conv.stride, row % across * conv.stride);
    for i in 0..conv.kernel * conv.kernel {
        let (y, x) = (y0 + i / conv.kernel, x0 + i % conv.kernel);
        // Before the padding is taken away, so that nothing is negative.
        let inside = |at: usize, size: usize| at >= conv.padding && at - conv.padding < size;
        if inside(y, conv.height) && inside(x, conv.width) {
            tap(i, (y - conv.padding) * conv.width + x - conv.padding);
        }
    }
}

/// The convolution. `unrolled` has room for [`ConvWeight::unrolled_floats`].
pub(crate) fn conv2d(
    engine: &Engine,
    conv: &Conv2d,
    weight: &ConvWeight,
    bias: Option<&[f32]>,
    x: View<'_>,
    unrolled: &mut Lines<f32>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    let kernels = engine.kernels.rows;
    let start = |out: &mut [f32]| match bias {
        Some(bias) => out.copy_from_slice(bias),
        None => out.fill(0.0),
    };
    match weight {
        ConvWeight::Depthwise(weight) => engine.run(out.rows, &|_, row| {
            // SAFETY: each row is one task's own; `out` does not lie on `x`.
            let y = unsafe { out.row(row) };
            start(y);
            taps(conv, row, |i, source| {
                // SAFETY: nobody writes x meanwhile.
                (kernels.add_product)(y, unsafe { x.row(source) }, &weight[i * x.columns..][..x.columns]);
            });
        }),
        ConvWeight::Multiplied { each, weight } => engine.run(out.rows, &|worker, row| {
            // SAFETY: a worker is one thread, and this is its only borrow.
            let sums = &mut unsafe { engine.scratch.worker(worker) }[..out.columns]; // [each, C]
            sums.fill(0.0);
            taps(conv, row, |i, source| {
                let weight = &weight[i * out.columns..][..out.columns];
                for (sums, weight) in sums.chunks_exact_mut(x.columns).zip(weight.chunks_exact(x.columns)) {
                    // SAFETY: nobody writes x meanwhile.
                    (kernels.add_product)(sums, unsafe { x.row(source) }, weight);
                }
            });
            // SAFETY: each row is one task's own; `out` does not lie on `x`.
            let y = unsafe { out.row(row) };
            start(y);
            for (result, sums) in sums.chunks_exact(x.columns).enumerate() {
                for (y, sum) in y[result..].iter_mut().step_by(*each).zip(sums) {
                    *y += sum;
                }
            }
        }),
        ConvWeight::Unrolled(matrix) => {
            assert!(out.rows * matrix.k <= unrolled.len());
            // SAFETY: the buffer is that large and borrowed for this call.
            let windows = unsafe { Out::new(unrolled.as_mut_ptr(), out.rows, matrix.k) };
            engine.run(out.rows, &|_, row| {
                // SAFETY: each row is one task's own.
                let window = unsafe { windows.row(row) };
                window.fill(0.0);
                taps(conv, row, |i, source| {
                    // SAFETY: nobody writes x meanwhile.
                    window[i * x.columns..][..x.columns].copy_from_slice(unsafe { x.row(source) });
                });
            })?;
            // SAFETY: filled above, and only read from here on.
            let windows = unsafe { View::new(windows.pointer(), out.rows, matrix.k) };
            let epilogue = Epilogue { bias, activation: None, residual: None };
            linear::float(engine, matrix, windows, epilogue, out)
        }
        ConvWeight::Grouped(weight) => engine.run(out.rows, &|_, row| {
            // SAFETY: each row is one task's own; `out` does not lie on `x`.
            let y = unsafe { out.row(row) };
            start(y);
            let (inputs, outputs) = (x.columns / conv.groups, y.len() / conv.groups);
            let area = conv.kernel * conv.kernel;
            taps(conv, row, |i, source| {
                // SAFETY: nobody writes x meanwhile.
                let x = unsafe { x.row(source) };
                for (o, y) in y.iter_mut().enumerate() {
                    for (c, x) in x[o / outputs * inputs..][..inputs].iter().enumerate() {
                        *y += x * weight[(o * inputs + c) * area + i];
                    }
                }
            });
        }),
    }
}
