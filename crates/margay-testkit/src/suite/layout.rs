//! Ops that look up, move and average rows and columns.

use super::case::{Case, Draft, Sizes};
use crate::{random::Rng, tolerance::Class};
use margay_graph::{Bindings, Dim, Pool2d, Role, Sym};
use margay_tensor::DType;
use std::collections::BTreeSet;

/// Rows of an embedding table in these cases.
const VOCABULARY: usize = 37;

pub(super) fn cases(cases: &mut Vec<Case>) {
    for dtype in margay_quant::FORMATS.iter().map(|f| f.dtype()) {
        for with_visual in [false, true] {
            cases.push(embed(dtype, with_visual));
        }
    }
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        params(cases, dtype);
    }
    for (channels, height, width, patch) in
        [(3, 28, 28, 14), (3, 30, 29, 14), (1, 4, 6, 2), (3, 14, 14, 14), (2, 5, 3, 1), (3, 27, 54, 9)]
    {
        let name = format!("{channels}x{height}x{width} by {patch}");
        cases.push(Draft::new("patchify", name).class(Class::Copy).finish(|b| {
            let pixels = b.input_f32("pixels", [channels.into(), height.into(), width.into()]);
            b.patchify(pixels, patch)
        }));
    }
    for (height, width, kernel, channels) in
        [(32, 32, 4, 72), (4, 6, 2, 33), (9, 3, 3, 5), (4, 4, 1, 4), (6, 6, 6, 1)]
    {
        let name = format!("{height}x{width}x{channels} by {kernel}");
        cases.push(Draft::new("space_to_depth", name).class(Class::Copy).finish(|b| {
            let x = b.input_f32("x", [(height * width).into(), channels.into()]);
            b.space_to_depth(x, Pool2d { height, width, kernel })
        }));
    }
    for columns in [1, 33, 588] {
        moves(cases, columns);
    }
    for (count, columns) in [(1, 7), (4, 1), (4, 1280), (6, 33)] {
        let rows = [6 * count, 0, count, 3 * count];
        cases.push(copy("join_rows", format!("{count} of {columns}"), &rows).finish(|b| {
            let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
            b.join_rows(x, count)
        }));
    }
}

fn copy(op: &'static str, name: String, rows: &[usize]) -> Draft {
    Draft::new(op, name).rows(rows).class(Class::Copy)
}

fn moves(cases: &mut Vec<Case>, columns: usize) {
    cases.push(Draft::new("mean_rows", format!("{columns}")).rows(&[3, 1, 144, 33]).finish(|b| {
        let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
        b.mean_rows(x)
    }));
    for fixed in [1, 3] {
        cases.push(copy("concat_rows", format!("{fixed} and P of {columns}"), &[3, 0, 1, 33]).finish(|b| {
            let class = b.input_f32("class", [fixed.into(), columns.into()]);
            let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
            let both = b.concat_rows(class, x)?;
            let swapped = b.concat_rows(x, class)?;
            b.output("swapped", swapped);
            Ok(both)
        }));
        cases.push(copy("slice_rows", format!("P of P+{fixed} of {columns}"), &[3, 0, 1, 33]).finish(|b| {
            let x = b.input_f32("x", [Dim::from(Sym::Patches).plus(fixed), columns.into()]);
            let head = b.slice_rows(x, 0, fixed)?;
            b.output("head", head);
            b.slice_rows(x, fixed, Sym::Patches)
        }));
    }
    // All, the first, the last, some in the middle.
    let slices = BTreeSet::from([(0, columns), (0, 1), (columns - 1, 1), (columns / 3, columns.div_ceil(2))]);
    for (start, len) in slices {
        cases.push(copy("slice_columns", format!("{len} of {columns} from {start}"), &[3, 0, 1, 33]).finish(
            |b| {
                let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
                b.slice_columns(x, start, len)
            },
        ));
    }
    // The first, the last, all, every third.
    let some = [vec![0], vec![columns - 1], (0..columns).collect(), (0..columns).step_by(3).collect()];
    for some in BTreeSet::<Vec<usize>>::from(some) {
        let name = format!("{} of {columns} from {}", some.len(), some[0]);
        let zeroed = some.clone();
        cases.push(copy("select_columns", name.clone(), &[3, 0, 1, 33]).finish(|b| {
            let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
            b.select_columns(x, some)
        }));
        cases.push(copy("zero_columns", name, &[3, 0, 1, 33]).finish(|b| {
            let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
            let rest = b.zero_columns(x, zeroed)?;
            // Who reads x afterwards still sees it whole.
            b.concat_columns(rest, x)
        }));
    }
    cases.push(copy("concat_columns", format!("{columns} and 3"), &[3, 0, 1, 33]).finish(|b| {
        let a = b.input_f32("a", [Sym::Patches.into(), columns.into()]);
        let narrow = b.input_f32("b", [Sym::Patches.into(), 3.into()]);
        let swapped = b.concat_columns(narrow, a)?;
        b.output("swapped", swapped);
        b.concat_columns(a, narrow)
    }));
    let sizes = [(5, 3), (5, 0), (1, 4), (33, 33)];
    let draft = Draft {
        sizes: sizes.iter().map(|(p, r)| Sizes::of(&[(Sym::Patches, *p), (Sym::Outputs, *r)])).collect(),
        integers: |_, rng, _, sizes| rng.below(sizes.get(Sym::Patches).unwrap_or(0)) as i32,
        ..copy("gather_rows", format!("{columns}"), &[])
    };
    cases.push(draft.finish(|b| {
        let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
        let rows = b.input_i32("rows", Sym::Outputs);
        b.gather_rows(x, rows)
    }));
}

fn embed(dtype: DType, with_visual: bool) -> Case {
    let width = if dtype.is_block() { 2 * dtype.block_elements() } else { 33 };
    let tail = if with_visual { " and visual rows" } else { "" };
    let draft = Draft {
        dtype,
        sizes: [(7, 3), (0, 0), (1, 0), (1, 1), (33, 16)]
            .iter()
            .map(|(t, v)| Sizes::of(&[(Sym::Tokens, *t), (Sym::Visual, if with_visual { *v } else { 0 })]))
            .collect(),
        integers: ids,
        ..copy("embed", format!("{dtype} {VOCABULARY}x{width}{tail}"), &[])
    };
    draft.finish(|b| {
        let ids = b.input_i32("ids", Sym::Tokens);
        let visual = with_visual.then(|| b.input_f32("visual", [Sym::Visual.into(), width.into()]));
        let table = b.weight("table", [VOCABULARY, width], Role::TokenEmbedding);
        b.embed(table, ids, visual)
    })
}

/// The first and the last row of the table, then visual rows (last first) mixed with any rows.
fn ids(_name: &str, rng: &mut Rng, at: usize, sizes: &Bindings) -> i32 {
    let visual = sizes.get(Sym::Visual).unwrap_or(0);
    match at {
        0 => 0,
        1 => VOCABULARY as i32 - 1,
        2 if visual > 0 => -(visual as i32),
        _ if visual > 0 && rng.below(2) == 0 => -1 - rng.below(visual) as i32,
        _ => rng.below(VOCABULARY) as i32,
    }
}

/// A vector as one row, a matrix as it is, each used after the copy.
fn params(cases: &mut Vec<Case>, dtype: DType) {
    for columns in [1, 33, 72] {
        let draft = copy("param", format!("{dtype} {columns}"), &[2, 1]);
        cases.push(Draft { dtype, ..draft }.finish(|b| {
            let row = b.weight("class", [columns], Role::ClassEmbedding);
            let table = b.weight("position", [5, columns], Role::PatchEmbedding);
            let row = b.param(row)?;
            let table = b.param(table)?;
            b.output("table", table);
            let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
            let both = b.concat_rows(row, x)?;
            b.output("both", both);
            Ok(row)
        }));
    }
}
