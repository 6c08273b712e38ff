//! Linear layers in every stored type, over odd sizes, bare and fused.

use super::case::{Built, Case, Draft};
use crate::tolerance::Class;
use margay_graph::{Activation, Builder, Role, Sym};
use margay_tensor::DType;

/// Rows of x: nothing, one token, both sides of every vector and tile width, a picture.
const ROWS: [usize; 9] = [3, 0, 1, 2, 7, 32, 33, 64, 5];

/// Columns and rows of the weight for types without blocks: single numbers, a head, patches (588 = 3*14*14), a SigLIP
/// feed-forward width (4304), and neighbours of vector widths.
const PLAIN_SIZES: [(usize, usize); 9] =
    [(1, 1), (4, 72), (72, 4), (588, 72), (4304, 3), (64, 130), (33, 65), (15, 17), (96, 33)];

/// As above for blocks: one block, several, no multiple of a tile; at least 64 results so that the root mean square
/// means something.
const BLOCK_SIZES: [(usize, usize); 6] = [(1, 64), (2, 72), (3, 65), (5, 96), (9, 67), (16, 130)];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (columns, out) in PLAIN_SIZES {
            cases.push(plain(dtype, columns, out).finish(|b| layer(b, columns, out, true)));
        }
    }
    let blocks = margay_quant::FORMATS.iter().map(|f| f.dtype()).filter(|d| d.is_block());
    for dtype in blocks {
        for (blocks, out) in BLOCK_SIZES {
            let columns = blocks * dtype.block_elements();
            cases.push(plain(dtype, columns, out).finish(|b| layer(b, columns, out, false)));
        }
    }
    cases.push(
        Draft::new("linear", "f32 72x64 729 rows".into()).rows(&[729, 1]).finish(|b| layer(b, 72, 64, true)),
    );
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K] {
        for act in Activation::ALL {
            for residual in [false, true] {
                cases.push(fused(dtype, act, residual));
            }
        }
        cases.push(shared_input(dtype));
    }
}

fn plain(dtype: DType, columns: usize, out: usize) -> Draft {
    let class = if dtype.is_block() { Class::Int8 } else { Class::Float };
    let draft = Draft::new("linear", format!("{dtype} {columns}x{out}")).rows(&ROWS).class(class);
    Draft { dtype, ..draft }
}

fn layer(b: &mut Builder, columns: usize, out: usize, bias: bool) -> Built {
    let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
    let w = b.weight("w", [out, columns], Role::FfnUp);
    let bias = bias.then(|| b.weight("bias", [out], Role::Bias));
    b.linear(x, w, bias)
}

/// `act(linear(x)) + x`, fused by the passes; the residual comes first for one half of the activations.
fn fused(dtype: DType, act: Activation, residual: bool) -> Case {
    let tail = if residual { " + residual" } else { "" };
    let draft = plain(dtype, 256, 256);
    let draft = Draft { name: format!("{dtype} 256x256 {act:?}{tail}"), fused: true, ..draft };
    let case = draft.rows(&[2, 1, 33]).finish(|b| {
        let x = b.input_f32("x", [Sym::Patches.into(), 256.into()]);
        let w = b.weight("w", [256, 256], Role::FfnUp);
        let bias = b.weight("bias", [256], Role::Bias);
        let h = b.linear(x, w, Some(bias))?;
        let h = b.activation(h, act)?;
        match (residual, act as usize % 2) {
            (false, _) => Ok(h),
            (true, 0) => b.add(x, h),
            (true, _) => b.add(h, x),
        }
    });
    assert_eq!(case.program.nodes().len(), 2, "{}: the input and one layer", case.name);
    case
}

/// Three layers read one input, as q, k and v do: what is computed once for an input must serve them all.
fn shared_input(dtype: DType) -> Case {
    let draft = plain(dtype, 256, 64);
    let draft = Draft { name: format!("{dtype} 256x64 three of one input"), ..draft };
    draft.rows(&[2, 1, 33]).finish(|b| {
        let x = b.input_f32("x", [Sym::Patches.into(), 256.into()]);
        let mut layer = |name: &str| {
            let w = b.weight(name, [64, 256], Role::AttentionQ);
            let y = b.linear(x, w, None)?;
            b.output(name, y);
            Ok(y)
        };
        layer("q")?;
        layer("k")?;
        layer("v")
    })
}
