//! Convolutions and pooling over feature maps.

use super::case::{Case, Draft, Sizes};
use crate::random::Rng;
use margay_graph::{AdaptivePool, Bindings, Conv2d, Pool2d, Role, Sym};

/// Channels in, channels out, groups, map, kernel, stride, padding.
type Shape = (usize, usize, usize, (usize, usize), usize, usize, usize);

const SHAPES: [(&str, Shape); 19] = [
    ("depthwise as in LDPv2", (72, 72, 72, (12, 12), 3, 1, 1)),
    ("depthwise, stride 2", (33, 33, 33, (7, 9), 3, 2, 1)),
    ("depthwise, one channel", (1, 1, 1, (5, 4), 3, 1, 1)),
    ("depthwise, two results a channel", (4, 8, 4, (5, 4), 3, 1, 1)),
    ("depthwise, two results a channel, kernel 7, stride 2", (24, 48, 24, (9, 8), 7, 2, 3)),
    ("depthwise, three results a channel", (5, 15, 5, (4, 6), 3, 1, 1)),
    ("depthwise, kernel 7 over a small map", (40, 40, 40, (2, 3), 7, 1, 3)),
    ("depthwise, no padding, kernel 2", (16, 16, 16, (4, 5), 2, 1, 0)),
    ("depthwise, kernel 5", (17, 17, 17, (6, 6), 5, 1, 2)),
    ("pointwise", (72, 33, 1, (5, 5), 1, 1, 0)),
    ("pointwise, stride 2", (8, 8, 1, (5, 7), 1, 2, 0)),
    ("dense", (12, 20, 1, (6, 5), 3, 1, 1)),
    ("dense, stride 2", (12, 20, 1, (8, 7), 3, 2, 1)),
    ("dense, stride 2, kernel 2", (5, 7, 1, (6, 6), 2, 2, 0)),
    ("dense, wide padding", (3, 4, 1, (3, 4), 3, 1, 2)),
    ("dense, the kernel is the map", (3, 40, 1, (4, 4), 4, 1, 0)),
    ("two groups", (6, 10, 2, (5, 6), 3, 1, 1)),
    ("three groups, stride 2", (6, 9, 3, (7, 5), 3, 2, 0)),
    ("one pixel", (4, 4, 1, (1, 1), 3, 1, 1)),
];

pub(super) fn cases(cases: &mut Vec<Case>) {
    for (name, shape) in SHAPES {
        for with_bias in [false, true] {
            cases.push(conv(name, shape, with_bias));
        }
    }
    for (map, pool, columns) in [
        ((5, 5), (5, 5), 33),
        ((7, 11), (5, 5), 18),
        ((8, 4), (3, 2), 1),
        ((1, 1), (3, 3), 4),
        ((3, 2), (5, 4), 7),
        ((46, 27), (27, 27), 72),
    ] {
        cases.push(adaptive(map, pool, columns));
    }
    for (height, width, kernel, channels) in
        [(24, 24, 2, 72), (4, 6, 2, 33), (9, 3, 3, 5), (4, 4, 1, 4), (6, 6, 6, 588), (2, 2, 2, 1)]
    {
        cases.push(Draft::new("avg_pool2d", format!("{height}x{width}x{channels} by {kernel}")).finish(
            |b| {
                let x = b.input_f32("x", [(height * width).into(), channels.into()]);
                b.avg_pool2d(x, Pool2d { height, width, kernel })
            },
        ));
    }
}

/// A map of that size, whose places are any rows of a value.
fn adaptive(map: (usize, usize), pool: (usize, usize), columns: usize) -> Case {
    let ((height, width), (to_height, to_width)) = (map, pool);
    let name = format!("{height}x{width}x{columns} to {to_height}x{to_width}");
    let sizes = [1, height * width + 3].map(|rows| {
        // The suite draws numbers by what is bound: the map's width, its places, the rows they are taken from.
        Sizes::of(&[(Sym::Patches, rows), (Sym::Outputs, height * width), (Sym::Tokens, width)])
    });
    let integers = |name: &str, rng: &mut Rng, at: usize, sizes: &Bindings| {
        let of = |sym| sizes.get(sym).unwrap_or(1);
        match (name, at) {
            ("map", _) => rng.below(of(Sym::Patches)) as i32,
            (_, 0) => (of(Sym::Outputs) / of(Sym::Tokens)) as i32,
            _ => of(Sym::Tokens) as i32,
        }
    };
    Draft { sizes: sizes.to_vec(), integers, ..Draft::new("adaptive_pool", name) }.finish(|b| {
        let x = b.input_f32("x", [Sym::Patches.into(), columns.into()]);
        let map = b.input_i32("map", Sym::Outputs);
        let size = b.input_i32("size", 2);
        b.adaptive_pool(x, map, size, AdaptivePool { height: to_height, width: to_width })
    })
}

fn conv(name: &str, shape: Shape, with_bias: bool) -> Case {
    let (channels, out, groups, (height, width), kernel, stride, padding) = shape;
    let tail = if with_bias { ", bias" } else { "" };
    Draft::new("conv2d", format!("{name}{tail}")).finish(|b| {
        let x = b.input_f32("x", [(height * width).into(), channels.into()]);
        let weight = b.weight("w", [out, channels / groups, kernel, kernel], Role::Convolution);
        let bias = with_bias.then(|| b.weight("bias", [out], Role::Bias));
        b.conv2d(x, Conv2d { weight, bias, height, width, kernel, stride, padding, groups })
    })
}
