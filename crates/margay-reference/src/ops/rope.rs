//! Rotary position embedding.

use super::OpResult;
use crate::run::Context;
use candle_core::{Device, Tensor};
use margay_graph::{Rope, RopeStyle};

/// Turns pair `i` of each head of x [T, H*D] by `position * base^(-2i / rotary) / factors[i]`.
///
/// Angles are computed in float64: in float32 an angle of some thousand radians is off by 1e-4.
pub(super) fn rope(context: &Context<'_>, rope: &Rope) -> OpResult {
    let x = context.tensor(0)?;
    let positions = context.integers(1)?;
    let (tokens, columns) = x.dims2()?;
    let (heads, pairs) = (columns / rope.head_dim, rope.rotary / 2);
    if pairs == 0 {
        return Ok(x.clone());
    }
    let factors = match rope.factors {
        Some(id) => context.weights.get(id).to_vec1::<f32>()?,
        None => vec![1.0; pairs],
    };
    let axes = rope.axes.as_ref().map_or(1, |axes| axes.count);
    let frequencies = rope.frequencies();
    let (mut cos, mut sin) = (Vec::with_capacity(tokens * pairs), Vec::with_capacity(tokens * pairs));
    for position in positions.chunks_exact(axes) {
        for ((axis, frequency), &factor) in frequencies.iter().zip(&factors) {
            let angle = f64::from(position[*axis]) * frequency / f64::from(factor);
            cos.push(angle.cos() as f32);
            sin.push(angle.sin() as f32);
        }
    }

    let x = x.reshape((tokens, heads, rope.head_dim))?; // [T, H, D]
    let turning = x.narrow(2, 0, rope.rotary)?;
    // The two members of each pair, side by side or half a head apart.
    let pair_dim = match rope.style {
        RopeStyle::Half => 2,
        RopeStyle::Interleaved => 3,
    };
    let split = match rope.style {
        RopeStyle::Half => turning.reshape((tokens, heads, 2, pairs))?,
        RopeStyle::Interleaved => turning.reshape((tokens, heads, pairs, 2))?,
    };
    let (a, b) = (split.narrow(pair_dim, 0, 1)?, split.narrow(pair_dim, 1, 1)?);
    let shape = match rope.style {
        RopeStyle::Half => (tokens, 1, 1, pairs),
        RopeStyle::Interleaved => (tokens, 1, pairs, 1),
    };
    let cos = Tensor::from_vec(cos, shape, &Device::Cpu)?;
    let sin = Tensor::from_vec(sin, shape, &Device::Cpu)?;
    let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let turned_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = Tensor::cat(&[turned_a, turned_b], pair_dim)?.reshape((tokens, heads, rope.rotary))?;
    let result = if rope.rotary == rope.head_dim {
        turned
    } else {
        Tensor::cat(&[turned, x.narrow(2, rope.rotary, rope.head_dim - rope.rotary)?], 2)?
    };
    Ok(result.reshape((tokens, columns))?)
}
