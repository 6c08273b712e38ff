//! Norms, activations, sums, products and gated units.

use super::case::{Case, Draft};
use margay_graph::{Activation, NormKind, Role, Sym};

/// Widths: single numbers, heads, patches, a vision encoder's, neighbours of vector widths.
const COLUMNS: [usize; 8] = [1, 4, 15, 33, 72, 588, 1152, 4304];
const ROWS: [usize; 6] = [3, 0, 1, 2, 33, 7];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for columns in COLUMNS {
        norms(cases, columns);
    }
    cases.push(norm_of(NormKind::Layer, 72, Draft::new("norm", "Layer 729x72".into()).rows(&[729]), true));
    // Each head by itself.
    for (kind, heads, width) in [(NormKind::Rms, 7, 8), (NormKind::Rms, 2, 128), (NormKind::Layer, 3, 33)] {
        let draft = Draft::new("norm", format!("{kind:?} of {heads} heads of {width}")).rows(&ROWS);
        cases.push(draft.finish(|b| {
            let x = b.input_f32("x", [Sym::Patches.into(), (heads * width).into()]);
            let w = b.weight("w", [width], Role::Norm);
            b.norm(x, kind, w, None, 1e-6)
        }));
    }
    // A mean far from zero: the difference of squares would lose it.
    let far = Draft { offset: 8.0, ..Draft::new("norm", "Layer 588 with mean 8".into()).rows(&ROWS) };
    cases.push(norm_of(NormKind::Layer, 588, far, true));
    // Rows of zeros: only eps is left. And rows whose squares are small and large.
    for (deviation, what) in [(0.0, "zeros"), (1e-6, "tiny"), (1e6, "huge")] {
        for kind in [NormKind::Rms, NormKind::Layer] {
            let draft = Draft::new("norm", format!("{kind:?} 72 of {what}")).rows(&[3]);
            cases.push(norm_of(kind, 72, Draft { deviation, ..draft }, true));
        }
    }
    for act in Activation::ALL {
        // Wide enough that every branch and both tails are met.
        for (columns, deviation) in [(1, 4.0), (33, 4.0), (588, 1.0), (72, 60.0)] {
            let draft = Draft::new("activation", format!("{act:?} {columns} x {deviation}")).rows(&ROWS);
            cases.push(Draft { deviation, ..draft }.finish(|b| {
                let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
                b.activation(x, act)
            }));
        }
        for columns in [1, 33, 4304] {
            cases.push(Draft::new("glu", format!("{act:?} {columns}")).rows(&ROWS).finish(|b| {
                let gate = b.input_f32("gate", [Sym::Patches.into(), columns.into()]);
                let up = b.input_f32("up", [Sym::Patches.into(), columns.into()]);
                b.glu(act, gate, up)
            }));
        }
    }
    for columns in [1, 33, 588] {
        cases.push(Draft::new("scale", format!("{columns}")).rows(&ROWS).finish(|b| {
            let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
            b.scale(x, 2048f32.sqrt())
        }));
    }
    for columns in [1, 4, 33, 588] {
        for one_row in [false, true] {
            elementwise(cases, columns, one_row);
        }
    }
}

fn norms(cases: &mut Vec<Case>, columns: usize) {
    for (kind, bias) in [(NormKind::Rms, false), (NormKind::Layer, true), (NormKind::Layer, false)] {
        let name = format!("{kind:?} {columns}{}", if bias { " bias" } else { "" });
        cases.push(norm_of(kind, columns, Draft::new("norm", name).rows(&ROWS), bias));
    }
}

fn norm_of(kind: NormKind, columns: usize, draft: Draft, bias: bool) -> Case {
    draft.finish(|b| {
        let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
        let w = b.weight("w", [columns], Role::Norm);
        let bias = bias.then(|| b.weight("bias", [columns], Role::Bias));
        b.norm(x, kind, w, bias, 1e-5)
    })
}

/// Sum and product with as many rows or with one row for all.
fn elementwise(cases: &mut Vec<Case>, columns: usize, one_row: bool) {
    let shape = if one_row { "[R, C] and [1, C]" } else { "[R, C] and [R, C]" };
    for multiply in [false, true] {
        let op = if multiply { "mul" } else { "add" };
        cases.push(Draft::new(op, format!("{columns} {shape}")).rows(&ROWS).finish(|b| {
            let a = b.input_f32("a", [Sym::Patches.into(), columns.into()]);
            let rows = if one_row { 1.into() } else { Sym::Patches.into() };
            let other = b.input_f32("b", [rows, columns.into()]);
            if multiply { b.mul(a, other) } else { b.add(a, other) }
        }));
    }
    // The same value twice, and the result over an input that is read again.
    if !one_row {
        cases.push(Draft::new("add", format!("{columns} to itself, then itself")).rows(&ROWS).finish(|b| {
            let a = b.input_f32("a", [Sym::Patches.into(), columns.into()]);
            let a = b.activation(a, Activation::Relu)?;
            let twice = b.add(a, a)?;
            let square = b.mul(twice, a)?;
            b.output("twice", twice);
            b.add(square, a)
        }));
    }
}
