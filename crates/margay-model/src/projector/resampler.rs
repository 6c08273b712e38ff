//! MiniCPM-V's resampler: learned queries attend to the patches of a tile, whose keys know their column and row, so that a
//! tile of any shape becomes as many visual tokens. Weights by the names of GGUF mmproj files.
//! Source: `resampler.py` of `openbmb/MiniCPM-V-2_6`; vLLM `minicpmv.py`, `Resampler2_5`.

use super::{Projector, Sizes, Weights};
use crate::{ModelError, Transform, vision::vit::linear};
use margay_graph::{Attention, Builder, Dim, Mask, NormKind, Program, Role, Stage, Sym, ValueId};
use margay_tensor::{Shape, Tensor};

pub(super) const RESAMPLER: Projector = Projector {
    id: "resampler",
    hf: None,
    // Of the published models, where a file does not say it.
    tokens: |_, _| 64,
    each: false,
    build,
    rename,
    weights,
};

/// Columns of a head. Source: `modeling_minicpmv.py`, `init_resampler`.
const HEAD_DIM: usize = 128;
const NORM_EPS: f32 = 1e-6;
/// Numbers of the table of positions: twenty times those of the published model.
const MOST_NUMBERS: usize = 1 << 24;
/// Of the frequencies of positions.
const BASE: f32 = 10000.0;
/// Positions along one side, [longest, E/2]. Public files hold under this name those of a square, which nobody reads, and
/// which other runtimes want to see.
const POSITIONS: &str = "resampler.pos_embed_k";
/// Weights and biases of queries, keys and values in one, as a checkpoint has them. No file holds it.
const FUSED: &str = "resampler.attn.qkv";

fn build(&Sizes { width, queries, longest, out, .. }: &Sizes) -> Result<Program, ModelError> {
    if !out.is_multiple_of(4) || (out > HEAD_DIM && !out.is_multiple_of(HEAD_DIM)) {
        let what = format!("{out} columns are no heads of {HEAD_DIM}");
        return Err(ModelError::weight("resampler.query", what));
    }
    if longest.saturating_mul(out) > MOST_NUMBERS {
        let what = format!("{longest} positions of {out} columns are too many");
        return Err(ModelError::weight(POSITIONS, what));
    }
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("features", [Sym::Patches.into(), Dim::from(width)]);
    let [rows, columns] = ["rows", "columns"].map(|name| b.input_i32(name, Sym::Patches));
    let x = match width == out {
        true => x,
        false => {
            let weight = b.weight("resampler.kv.weight", [out, width], Role::Projector);
            b.linear(x, weight, None)?
        }
    };
    let x = norm(&mut b, "ln_kv", x)?; // [P, E]
    let table = b.weight(POSITIONS, [longest, out / 2], Role::PositionEmbedding);
    let table = b.param(table)?;
    let (columns, rows) = (b.gather_rows(table, columns)?, b.gather_rows(table, rows)?);
    let positions = b.concat_columns(columns, rows)?;
    let keys = b.add(x, positions)?;
    let query = b.weight("resampler.query", [queries, out], Role::ClassEmbedding);
    let query = b.param(query)?;
    let query = norm(&mut b, "ln_q", query)?; // [V, E]

    let q = linear(&mut b, "resampler.attn.q", query, out, Role::Projector)?;
    let k = linear(&mut b, "resampler.attn.k", keys, out, Role::Projector)?;
    let v = linear(&mut b, "resampler.attn.v", x, out, Role::Projector)?;
    let head_dim = out.min(HEAD_DIM);
    let (heads, scale) = (out / head_dim, (head_dim as f32).powf(-0.5));
    let attention = Attention { heads, kv_heads: heads, head_dim, scale, mask: Mask::Full, cache: None };
    let x = b.attention([q, k, v], attention, false)?; // [V, E]
    let x = linear(&mut b, "resampler.attn.out", x, out, Role::Projector)?;
    let x = norm(&mut b, "ln_post", x)?;
    let weight = b.weight("resampler.proj.weight", [out, out], Role::Projector);
    let x = b.linear(x, weight, None)?;
    b.output("project", x);
    Ok(b.finish()?)
}

fn norm(b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId, ModelError> {
    let width = b.dims(x)[1].fixed().expect("invariant: columns are numbers");
    let weight = b.weight(&format!("resampler.{name}.weight"), [width], Role::Norm);
    let bias = b.weight(&format!("resampler.{name}.bias"), [width], Role::Bias);
    Ok(b.norm(x, NormKind::Layer, weight, Some(bias), NORM_EPS)?)
}

fn rename(inner: &str) -> Option<String> {
    let inner = match inner {
        "query" => "query",
        "kv_proj.weight" => "kv.weight",
        "attn.in_proj_weight" => return Some(format!("{FUSED}.weight")),
        "attn.in_proj_bias" => return Some(format!("{FUSED}.bias")),
        "attn.out_proj.weight" => "attn.out.weight",
        "attn.out_proj.bias" => "attn.out.bias",
        "proj" => "proj.weight",
        _ => {
            let (stem, kind) = inner.rsplit_once('.')?;
            let known = ["ln_q", "ln_kv", "ln_post"].contains(&stem) && ["weight", "bias"].contains(&kind);
            known.then_some(inner)?
        }
    };
    Some(format!("resampler.{inner}"))
}

fn weights(&Sizes { longest, out, .. }: &Sizes) -> Weights {
    if longest.saturating_mul(out) > MOST_NUMBERS {
        return Weights::default(); // and the program is refused
    }
    let part = |kind: &str| {
        let rows = |(at, part)| {
            (format!("resampler.attn.{part}.{kind}"), Transform::Rows { start: at * out, rows: out })
        };
        (format!("{FUSED}.{kind}"), ["q", "k", "v"].into_iter().enumerate().map(rows).collect())
    };
    let table = Tensor::from_f32(Shape::from([longest, out / 2]), &positions(longest, out / 2));
    let tables = table.map(|table| (POSITIONS.to_owned(), table));
    Weights { parts: ["weight", "bias"].map(part).into(), tables: tables.into_iter().collect() }
}

/// `[sin(p * w), cos(p * w)]` for each place p along a side, [count, width], in the original's float32 steps.
/// Source: `resampler.py`, `get_1d_sincos_pos_embed_from_grid_new`.
fn positions(count: usize, width: usize) -> Vec<f32> {
    let half = width / 2;
    let frequency = |i: usize| 1.0 / f64::from(BASE).powf(f64::from(i as f32 / half as f32)) as f32;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let row = |place: usize| {
        let angles = frequencies.iter().map(move |f| f64::from(place as f32 * f));
        angles.clone().map(f64::sin).chain(angles.map(f64::cos)).map(|value| value as f32)
    };
    (0..count).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_graph::Op;

    fn sizes(width: usize, out: usize) -> Sizes {
        Sizes { grid: 1, patches: 1.into(), fold: 1, hidden: 0, width, queries: 64, longest: 453, out }
    }

    #[test]
    fn heads_are_of_128_columns_and_widths_that_do_not_divide_are_refused() {
        let program = build(&sizes(1152, 3584)).unwrap();
        let heads = program.nodes().iter().find_map(|node| match &node.op {
            Op::Attention(a) => Some((a.heads, a.kv_heads, a.head_dim, a.scale)),
            _ => None,
        });
        assert_eq!(heads, Some((28, 28, 128, 128f32.powf(-0.5))));
        assert!(build(&sizes(1152, 3600)).is_err());
        assert!(build(&Sizes { longest: 1 << 20, ..sizes(1152, 3584) }).is_err());
        // The published code has no layer where both widths are the same.
        let weights = |width| build(&sizes(width, 256)).unwrap().weights().len();
        assert_eq!(weights(256) + 1, weights(24));
    }

    /// `get_2d_sincos_pos_embed(8, (3, 200))` of the published code, at row 2 and column 199.
    #[test]
    fn places_along_a_side_are_sines_and_cosines_as_in_the_original() {
        let table = positions(200, 4);
        for (place, expected) in [
            (199, [-0.881_798_8, 0.913_413_35, -0.471_625_72, -0.407_033_2]),
            (2, [0.909_297_4, 0.019_998_67, -0.416_146_8, 0.999_8]),
        ] {
            for (got, expected) in table[place * 4..][..4].iter().zip::<[f32; 4]>(expected) {
                assert!((got - expected).abs() < 1e-6, "{place}: {got} {expected}");
            }
        }
    }
}
