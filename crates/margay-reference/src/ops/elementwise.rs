//! Linear layers, norms and activations: ops that treat each row alike.

use super::OpResult;
use crate::run::Context;
use candle_core::{D, Tensor};
use margay_graph::{Activation, Linear, Norm, NormKind};

/// `act(x @ weight^T + bias) (+ residual)`
pub(super) fn linear(context: &Context<'_>, linear: &Linear) -> OpResult {
    let mut y = context.tensor(0)?.matmul(&context.weights.get(linear.weight).t()?)?; // [R, out]
    if let Some(bias) = linear.bias {
        y = y.broadcast_add(context.weights.get(bias))?;
    }
    if let Some(act) = linear.activation {
        y = activation(&y, act)?;
    }
    if linear.residual {
        y = (y + context.tensor(1)?)?;
    }
    Ok(y)
}

/// Root mean square or layer normalisation of each row.
pub(super) fn norm(context: &Context<'_>, norm: &Norm) -> OpResult {
    let (whole, weight) = (context.tensor(0)?, context.weights.get(norm.weight));
    let x = &whole.reshape(((), weight.elem_count()))?; // a row for each head
    let centred = match norm.kind {
        NormKind::Rms => x.clone(),
        NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
    };
    let power = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(norm.eps))?; // [R, 1]
    let y = centred.broadcast_div(&power.sqrt()?)?.broadcast_mul(weight)?;
    let y = match norm.bias {
        Some(bias) => y.broadcast_add(context.weights.get(bias))?,
        None => y,
    };
    Ok(y.reshape(whole.shape())?)
}

/// Each element by itself.
pub(super) fn activation(x: &Tensor, act: Activation) -> OpResult {
    let relu6 = |x: &Tensor| x.clamp(0f32, 6f32);
    Ok(match act {
        Activation::Silu => x.silu()?,
        Activation::GeluErf => ((x * 0.5)? * ((x / std::f64::consts::SQRT_2)?.erf()? + 1.0)?)?,
        Activation::GeluTanh => {
            let cube = (x.sqr()? * x)?;
            let inner = ((x + (cube * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
            ((x * 0.5)? * (inner.tanh()? + 1.0)?)?
        }
        // x sigmoid(ax) = silu(ax) / a, and candle's silu stays finite far to the left.
        Activation::QuickGelu => ((x * 1.702)?.silu()? / 1.702)?,
        Activation::Relu => x.relu()?,
        Activation::Hardswish => ((x / 6.0)? * relu6(&(x + 3.0)?)?)?,
        Activation::Hardsigmoid => (relu6(&(x + 3.0)?)? / 6.0)?,
        // By tanh, which stays finite on both sides.
        Activation::Sigmoid => (((x * 0.5)?.tanh()? * 0.5)? + 0.5)?,
    })
}
