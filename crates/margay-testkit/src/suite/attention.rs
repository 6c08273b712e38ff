//! Attention and rotary embedding.

use super::case::{Case, Draft, Sizes};
use crate::{random::Rng, tolerance::Class};
use margay_graph::{Attention, Axes, Bindings, Mask, Role, Rope, RopeStyle, Sym};

/// Query heads, key heads and columns of a head: one head, groups of 2, 3, 4 and all, head sizes of CLIP (64), SigLIP
/// (72), Phi (80), LLaMA (128), and one that is no multiple of any vector.
const HEADS: [(usize, usize, usize); 8] =
    [(1, 1, 64), (2, 2, 72), (4, 2, 80), (4, 1, 64), (6, 2, 72), (2, 1, 128), (3, 3, 4), (2, 2, 5)];

/// Prompt, tokens one by one, nothing, a long piece, and around the tile sizes.
const CACHED_TOKENS: [usize; 9] = [7, 1, 1, 3, 0, 33, 1, 64, 2];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for heads in HEADS {
        for mask in [Mask::Full, Mask::Causal] {
            uncached(cases, heads, mask, &[3, 0, 1, 2, 7, 32, 33, 65], "");
            cached(cases, heads, mask, 1.0, &CACHED_TOKENS);
        }
    }
    uncached(cases, (2, 2, 72), Mask::Full, &[729], " 729 patches");
    for heads in HEADS {
        across(cases, heads, 64);
    }
    across(cases, (2, 2, 128), 6);
    // Large scores: the softmax is nearly a maximum and must neither overflow nor lose the largest.
    cached(cases, (4, 2, 64), Mask::Causal, 8.0, &CACHED_TOKENS);
    // So many tokens that a backend may cut the keys into parts.
    cached(cases, (4, 2, 64), Mask::Causal, 1.0, &[300, 1, 8, 0, 3, 250, 1]);
    for heads in HEADS {
        for most in [4, 250, 300] {
            in_segments(cases, heads, most);
        }
    }
    for heads in [(4, 2, 64), (2, 2, 5), (4, 1, 64)] {
        // The prefix fills a part of the first call, all of it, none, one token, or several tiles.
        for (prefix, tokens) in [
            (5, &CACHED_TOKENS[..]),
            (7, &CACHED_TOKENS),
            (0, &CACHED_TOKENS),
            (1, &CACHED_TOKENS),
            (290, &[300, 1, 8, 0, 3, 250, 1]),
        ] {
            cases.push(prefixed(heads, prefix, tokens));
        }
    }
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        rope_of_axes(cases, style, 3, &[16, 24, 24], false);
        rope_of_axes(cases, style, 2, &[20, 20], true);
        rope_of_axes(cases, style, 2, &[3, 1, 2], true);
        rope_of_axes(cases, style, 3, &[1, 2, 0, 4], false);
        for (head_dim, rotary) in [(64, 64), (72, 72), (80, 80), (80, 32), (128, 128), (6, 2), (4, 0)] {
            rope(cases, style, head_dim, rotary, false);
        }
        rope(cases, style, 64, 64, true);
        rope(cases, style, 80, 40, true);
    }
}

/// Segments of 1 to 4 rows, of up to 81 and 219, and rows that are all of one.
fn in_segments(cases: &mut Vec<Case>, heads: (usize, usize, usize), most: usize) {
    let (h, k, d) = heads;
    let draft = Draft {
        integers: match most {
            4 => |_, rng, at, _| (at / 4 * 4 + rng.below(2) * (at % 4 / 2)) as i32,
            250 => |_, _, at, _| at.isqrt() as i32 / 9,
            _ => |_, _, _, _| -1,
        },
        ..Draft::new("attention", format!("segments of {most} {h} of {k} heads of {d}"))
    };
    cases.push(draft.rows(&[3, 0, 1, 7, 64, 65, 300]).finish(|b| {
        let q = b.input_f32("q", [Sym::Patches.into(), (h * d).into()]);
        let [key, value] = ["k", "v"].map(|n| b.input_f32(n, [Sym::Patches.into(), (k * d).into()]));
        let segments = b.input_i32("segments", Sym::Patches);
        let attention = attention_of(heads, Mask::Segments { most });
        b.attention_in_segments([q, key, value], segments, attention)
    }));
}

fn attention_of(heads: (usize, usize, usize), mask: Mask) -> Attention {
    let (heads, kv_heads, head_dim) = heads;
    Attention { heads, kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5), mask, cache: None }
}

fn uncached(cases: &mut Vec<Case>, heads: (usize, usize, usize), mask: Mask, rows: &[usize], what: &str) {
    let (h, k, d) = heads;
    let draft = Draft::new("attention", format!("{mask:?} {h} of {k} heads of {d}{what}")).rows(rows);
    cases.push(draft.finish(|b| {
        let q = b.input_f32("q", [Sym::Patches.into(), (h * d).into()]);
        let [key, value] = ["k", "v"].map(|n| b.input_f32(n, [Sym::Patches.into(), (k * d).into()]));
        b.attention([q, key, value], attention_of(heads, mask), false)
    }));
}

/// Rows of which none is a key attend to keys of any number.
fn across(cases: &mut Vec<Case>, heads: (usize, usize, usize), queries: usize) {
    let (h, k, d) = heads;
    let draft = Draft::new("attention", format!("{queries} queries across {h} of {k} heads of {d}"));
    cases.push(draft.rows(&[3, 1, 7, 64, 65, 300]).finish(|b| {
        let q = b.input_f32("q", [queries.into(), (h * d).into()]);
        let [key, value] = ["k", "v"].map(|n| b.input_f32(n, [Sym::Patches.into(), (k * d).into()]));
        b.attention([q, key, value], attention_of(heads, Mask::Full), false)
    }));
}

fn cached(cases: &mut Vec<Case>, heads: (usize, usize, usize), mask: Mask, sharpness: f32, tokens: &[usize]) {
    let (h, k, d) = heads;
    let mut tail = if sharpness == 1.0 { String::new() } else { format!(", scores x {sharpness}") };
    if tokens != CACHED_TOKENS {
        tail += &format!(", {} tokens", tokens.iter().sum::<usize>());
    }
    let draft = Draft {
        sizes: tokens.iter().map(|t| Sizes::of(&[(Sym::Tokens, *t)])).collect(),
        capacity: Some(tokens.iter().sum()),
        class: Class::HalfCache,
        ..Draft::new("attention", format!("{mask:?} {h} of {k} heads of {d} cached{tail}"))
    };
    let mut case = draft.finish(|b| {
        let q = b.input_f32("q", [Sym::Tokens.into(), (h * d).into()]);
        let [key, value] = ["k", "v"].map(|n| b.input_f32(n, [Sym::Tokens.into(), (k * d).into()]));
        let mut attention = attention_of(heads, mask);
        attention.scale *= sharpness;
        b.attention([q, key, value], attention, true)
    });
    if sharpness != 1.0 {
        round_keys(&mut case);
    }
    // The user takes back the last question: the state is cut, and what follows must not see what was there.
    let again = case.calls[5].clone();
    case.calls.push(super::Call { truncate: Some(9), ..again });
    cases.push(case);
}

/// The first `prefix` tokens, all of them in the first call, see one another.
fn prefixed(heads: (usize, usize, usize), prefix: usize, tokens: &[usize]) -> Case {
    let (h, k, d) = heads;
    let total: usize = tokens.iter().sum();
    let draft = Draft {
        sizes: tokens.iter().map(|t| Sizes::of(&[(Sym::Tokens, *t), (Sym::Prefix, prefix)])).collect(),
        capacity: Some(total),
        class: Class::HalfCache,
        ..Draft::new("attention", format!("Prefix {prefix} of {total}, {h} of {k} heads of {d}"))
    };
    draft.finish(|b| {
        let q = b.input_f32("q", [Sym::Tokens.into(), (h * d).into()]);
        let [key, value] = ["k", "v"].map(|n| b.input_f32(n, [Sym::Tokens.into(), (k * d).into()]));
        b.attention([q, key, value], attention_of(heads, Mask::Prefix), true)
    })
}

/// Rounds keys to what half precision holds. Where scores are large, rounding by the cache would move a correct result
/// by more than `HALF_CACHE`.
fn round_keys(case: &mut Case) {
    for call in &mut case.calls {
        if let super::Input::F32(keys) = &mut call.inputs[1] {
            for key in keys {
                // Eleven significant bits, those of a half precision number of normal size.
                *key = f32::from_bits((key.to_bits() + 0x1000) & !0x1fff);
            }
        }
    }
}

fn rope(cases: &mut Vec<Case>, style: RopeStyle, head_dim: usize, rotary: usize, factors: bool) {
    for heads in [1, 3] {
        let tail = if factors { " with factors" } else { "" };
        let name = format!("{style:?} {heads} heads, {rotary} of {head_dim}{tail}");
        let tokens = [7, 0, 1, 33];
        let draft = Draft {
            sizes: tokens.iter().map(|t| Sizes::of(&[(Sym::Tokens, *t)])).collect(),
            integers: positions,
            ..Draft::new("rope", name)
        };
        cases.push(draft.finish(|b| {
            let x = b.input_f32("x", [Sym::Tokens.into(), (heads * head_dim).into()]);
            let positions = b.input_i32("positions", Sym::Tokens);
            let factors = factors.then(|| b.weight("factors", [rotary / 2], Role::RopeFactors));
            b.rope(x, positions, Rope { head_dim, rotary, base: 10_000.0, style, factors, axes: None })
        }));
    }
}

fn rope_of_axes(cases: &mut Vec<Case>, style: RopeStyle, count: usize, sections: &[usize], restart: bool) {
    let rotary = 2 * sections.iter().sum::<usize>();
    for factors in [false, true] {
        let each = if restart { ", frequencies each" } else { "" };
        let tail = if factors { " with factors" } else { "" };
        let tokens = [7, 0, 1, 33];
        let draft = Draft {
            sizes: tokens.iter().map(|t| Sizes::of(&[(Sym::Tokens, *t)])).collect(),
            integers: positions,
            ..Draft::new("rope", format!("{style:?} {sections:?} pairs of {count} axes{each}{tail}"))
        };
        cases.push(draft.finish(|b| {
            let head_dim = rotary + 2;
            let x = b.input_f32("x", [Sym::Tokens.into(), (2 * head_dim).into()]);
            let positions = b.input_i32_matrix("positions", Sym::Tokens, count);
            let factors = factors.then(|| b.weight("factors", [rotary / 2], Role::RopeFactors));
            let axes = Some(Axes { count, sections: sections.to_vec(), restart });
            b.rope(x, positions, Rope { head_dim, rotary, base: 10_000.0, style, factors, axes })
        }));
    }
}

/// From the start of a context, then anywhere up to 4096, where angles computed carelessly are off by 1e-4.
fn positions(_name: &str, rng: &mut Rng, at: usize, _sizes: &Bindings) -> i32 {
    if at < 4 { at as i32 } else { rng.below(4096) as i32 }
}
