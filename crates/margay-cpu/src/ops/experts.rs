//! Mixtures of experts: each computes the rows that chose it, and no others.

use super::{
    Engine,
    linear::{self, Epilogue, Gated, Layer, Matrix, QuantRows, Side},
    rows::{self, Source},
    view::{Out, View},
};
use crate::{lines::Lines, threads::TaskPanic};
use margay_graph::{Activation, Route};

/// The rows of one expert on their way through it.
pub(crate) struct ExpertRows {
    chosen: Lines<i32>,
    x: Lines<f32>,
    hidden: Lines<f32>,
    up: Lines<f32>,
}

impl ExpertRows {
    /// Room for `rows` rows: all of a call may choose one expert.
    pub(crate) fn new(rows: usize, width: usize, ffn: usize) -> Self {
        ExpertRows {
            chosen: Lines::zeroed(rows),
            x: Lines::zeroed(rows * width),
            hidden: Lines::zeroed(rows * ffn),
            up: Lines::zeroed(rows * ffn),
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.chosen.size_bytes() + self.x.size_bytes() + self.hidden.size_bytes() + self.up.size_bytes()
    }
}

/// The softmax of each row of logits, of which the greatest stay; of equals the first.
pub(crate) fn route(engine: &Engine, route: Route, logits: View<'_>, out: Out<'_>) -> Result<(), TaskPanic> {
    rows::for_rows(engine, out.rows, out.columns * (route.used + 1), |_, row| {
        // SAFETY: each row is one task's own; `out` does not lie on the logits.
        let (x, y) = unsafe { (logits.row(row), out.row(row)) };
        let greatest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // Negative marks those that do not stay.
        y.fill(-1.0);
        for _ in 0..route.used {
            let left = (0..x.len()).filter(|n| y[*n] < 0.0);
            let best = left.reduce(|best, n| if x[n] > x[best] { n } else { best });
            let best = best.expect("invariant: no more stay than there are");
            y[best] = (x[best] - greatest).exp();
        }
        let sum: f32 = match route.normalised {
            true => y.iter().filter(|y| **y >= 0.0).sum(),
            false => x.iter().map(|x| (x - greatest).exp()).sum(),
        };
        y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y / sum });
    })
}

/// Gate, up and down of one expert.
pub(crate) type Expert<'a> = [&'a Matrix; 3];

/// The sum of what each expert makes of the rows that chose it, times their shares.
pub(crate) fn experts<'a>(
    engine: &Engine,
    experts: impl Iterator<Item = Expert<'a>>,
    act: Activation,
    (x, shares): (View<'_>, View<'_>),
    (buffers, quantized): (&mut ExpertRows, &mut QuantRows),
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    rows::for_rows(engine, out.rows, out.columns, |_, row| {
        // SAFETY: each row is one task's own.
        unsafe { out.row(row) }.fill(0.0);
    })?;
    for (n, [gate, up, down]) in experts.enumerate() {
        let mut count = 0;
        for row in 0..x.rows {
            // SAFETY: nobody writes the shares meanwhile.
            if unsafe { shares.row(row) }[n] != 0.0 {
                buffers.chosen[count] = row as i32;
                count += 1;
            }
        }
        if count == 0 {
            continue;
        }
        let chosen = &buffers.chosen[..count];
        let ffn = gate.outputs();
        assert!(
            count * x.columns <= buffers.x.len() && count * ffn <= buffers.hidden.len().min(buffers.up.len())
        );
        // SAFETY: each buffer holds that many floats, and no two values lie in one at the same time: the result takes
        // the place of the rows once all layers that read them have run.
        let (mine, hidden_out, up_out) = unsafe {
            (
                Out::new(buffers.x.pointer(), count, x.columns),
                Out::new(buffers.hidden.pointer(), count, ffn),
                Out::new(buffers.up.pointer(), count, ffn),
            )
        };
        // SAFETY: as above.
        let (my_x, hidden, up_view) = unsafe {
            (
                View::new(buffers.x.pointer(), count, x.columns),
                View::new(buffers.hidden.pointer(), count, ffn),
                View::new(buffers.up.pointer(), count, ffn),
            )
        };
        rows::copy_rows(engine, x, 0, mine, |row| chosen[row] as usize)?;
        let plain = Epilogue { bias: None, activation: None, residual: None };
        if let (Matrix::Quant(gate), Matrix::Quant(up)) = (gate, up) {
            quantized.fill(engine, Source { x: my_x, norm: None })?;
            let sides = [gate, up].map(|matrix| Side { matrix, bias: None });
            linear::gated(engine, sides, act, quantized, count, Gated::Float(hidden_out))?;
        } else {
            let gated = Epilogue { activation: Some(act), ..plain };
            product(engine, gate, my_x, quantized, gated, hidden_out)?;
            product(engine, up, my_x, quantized, plain, up_out)?;
            rows::elementwise(engine, engine.kernels.rows.mul, hidden, up_view, hidden_out)?;
        }
        product(engine, down, hidden, quantized, plain, mine)?;
        rows::for_rows(engine, count, x.columns, |_, at| {
            let row = chosen[at] as usize;
            // SAFETY: each row is one task's own; nobody writes the shares meanwhile.
            unsafe {
                let y = mine.row(at);
                (engine.kernels.rows.scale)(y, shares.row(row)[n]);
                (engine.kernels.rows.add)(out.row(row), y);
            }
        })?;
    }
    Ok(())
}

/// `act(x @ matrix^T)`
fn product(
    engine: &Engine,
    matrix: &Matrix,
    x: View<'_>,
    quantized: &mut QuantRows,
    epilogue: Epilogue<'_>,
    out: Out<'_>,
) -> Result<(), TaskPanic> {
    match matrix {
        Matrix::Quant(matrix) => {
            quantized.fill(engine, Source { x, norm: None })?;
            linear::quantized(engine, &[Layer { matrix, epilogue, out }], quantized)
        }
        Matrix::Float(matrix) => linear::float(engine, matrix, x, epilogue, out),
        Matrix::Channel(_) | Matrix::Bf16(_) => unreachable!("invariant: experts are packed as stored"),
    }
}
