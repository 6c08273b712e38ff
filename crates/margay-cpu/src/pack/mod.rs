//! Weights in the order in which the kernels read them.

mod bf16;
mod channel;
mod float;
mod kept;
mod quant;

pub(crate) use bf16::{BF16_STEP, Bf16Matrix};
pub(crate) use channel::{CHANNEL_STEP, ChannelMatrix};
pub(crate) use float::{FLOAT_PANEL, FloatMatrix, FloatType};
pub(crate) use kept::LAYOUT_VERSION;
pub(crate) use quant::{Codes, Kind, Offset, PANEL, QuantMatrix, Scaling};

/// Quantized groups end at multiples of this many columns of `k`: the largest block of any format.
pub(crate) const SUPER: usize = 256;
