//! Routing to experts, and experts in every stored type.

use super::case::{Built, Case, Draft};
use crate::tolerance::Class;
use margay_graph::{Activation, Builder, Experts, Role, Route, Sym};
use margay_tensor::DType;

/// One token, nothing, few rows, and so many that an expert sees more than a task of a kernel takes.
const ROWS: [usize; 6] = [3, 0, 1, 2, 33, 7];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (experts, used) in [(1, 1), (4, 2), (9, 9), (60, 4), (128, 8)] {
        for normalised in [false, true] {
            let name = format!("{used} of {experts}{}", if normalised { " normalised" } else { "" });
            cases.push(Draft::new("route", name).rows(&ROWS).finish(|b| {
                let logits = b.input_f32("logits", [Sym::Patches.into(), experts.into()]);
                b.route(logits, Route { used, normalised })
            }));
        }
    }
    // Of equal logits the first win.
    let equal = Draft { deviation: 0.0, ..Draft::new("route", "3 of 7 equals".into()).rows(&[2]) };
    cases.push(equal.finish(|b| {
        let logits = b.input_f32("logits", [Sym::Patches.into(), 7.into()]);
        b.route(logits, Route { used: 3, normalised: true })
    }));

    for (width, ffn, experts, used) in [(4, 3, 1, 1), (33, 15, 5, 2), (72, 130, 8, 3)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            cases.push(layer(dtype, [width, ffn, experts, used], Activation::Silu, &ROWS));
        }
    }
    // Each expert is packed as a linear layer's weight is, whose cases have every format.
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K] {
        let block = dtype.block_elements();
        cases.push(layer(dtype, [block.max(64), block.max(96), 3, 2], Activation::Silu, &ROWS));
    }
    // Only one side quantizes: rows of 40 columns are no blocks.
    for (width, ffn) in [(64, 40), (40, 64)] {
        cases.push(layer(DType::Q8_0, [width, ffn, 6, 2], Activation::GeluTanh, &ROWS));
    }
    cases.push(layer(DType::Q8_0, [64, 96, 3, 1], Activation::Silu, &[900, 1]));
}

fn layer(dtype: DType, [width, ffn, experts, used]: [usize; 4], act: Activation, rows: &[usize]) -> Case {
    let class = if dtype.is_block() { Class::Int8Chain } else { Class::Float };
    let name = format!("{dtype} {width}x{ffn} {used} of {experts} {act:?}");
    let draft = Draft::new("experts", name).rows(rows).class(class);
    Draft { dtype, ..draft }.finish(|b| -> Built {
        let x = b.input_f32("x", [Sym::Patches.into(), width.into()]);
        let logits = b.input_f32("logits", [Sym::Patches.into(), experts.into()]);
        let shares = b.route(logits, Route { used, normalised: true })?;
        let stacks = stacks(b, [width, ffn, experts, used], act);
        b.experts(x, shares, stacks)
    })
}

fn stacks(b: &mut Builder, [width, ffn, experts, used]: [usize; 4], activation: Activation) -> Experts {
    Experts {
        gate: b.weight("gate", [experts, ffn, width], Role::FfnGate),
        up: b.weight("up", [experts, ffn, width], Role::FfnUp),
        down: b.weight("down", [experts, width, ffn], Role::FfnDown),
        activation,
        used,
    }
}
