//! Attention of encoders that multiply in fewer bits than float32: one choice for all of them.

use super::{
    bf16::{self, Bf16Slot},
    int8::{self, Int8Slot},
};
use crate::{
    backend::Encoder,
    ops::{
        Engine,
        view::{Out, View},
    },
    threads::TaskPanic,
};
use margay_graph::Attention;

/// Keys and values of one call.
pub(crate) enum NarrowSlot {
    Int8(Int8Slot),
    Bf16(Bf16Slot),
}

/// Floats of scratch that a worker needs.
pub(crate) fn scratch_floats(encoder: Encoder, a: &Attention) -> usize {
    match encoder {
        Encoder::AsStored => super::scratch_floats(a),
        Encoder::Int8 => int8::scratch_floats(a),
        Encoder::Bf16 => bf16::scratch_floats(a),
    }
}

impl NarrowSlot {
    /// Room for `tokens`, or `None` where the size overflows, and where the encoder multiplies in float32.
    pub(crate) fn new(encoder: Encoder, a: &Attention, tokens: usize) -> Option<Self> {
        match encoder {
            Encoder::AsStored => None,
            Encoder::Int8 => Int8Slot::new(a, tokens).map(NarrowSlot::Int8),
            Encoder::Bf16 => Bf16Slot::new(a, tokens).map(NarrowSlot::Bf16),
        }
    }

    /// Whether so many tokens of such heads fit.
    pub(crate) fn fits(&self, a: &Attention, tokens: usize) -> bool {
        match self {
            NarrowSlot::Int8(slot) => slot.fits(a, tokens),
            NarrowSlot::Bf16(slot) => slot.fits(a, tokens),
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            NarrowSlot::Int8(slot) => slot.size_bytes(),
            NarrowSlot::Bf16(slot) => slot.size_bytes(),
        }
    }

    /// Attends to all rows of the keys and values; but under a full mask, query `i` sees those up to itself and the
    /// first `prefix`.
    pub(crate) fn attend(
        &mut self,
        engine: &Engine,
        a: &Attention,
        prefix: usize,
        qkv: [View<'_>; 3],
        out: Out<'_>,
    ) -> Result<(), TaskPanic> {
        match self {
            NarrowSlot::Int8(slot) => int8::attend(engine, a, slot, prefix, qkv, out),
            NarrowSlot::Bf16(slot) => bf16::attend(engine, a, slot, prefix, qkv, out),
        }
    }

    /// As [`super::attend_in_segments`].
    pub(crate) fn attend_in_segments(
        &mut self,
        engine: &Engine,
        a: &Attention,
        segments: &[i32],
        qkv: [View<'_>; 3],
        out: Out<'_>,
    ) -> Result<(), TaskPanic> {
        match self {
            NarrowSlot::Int8(slot) => int8::attend_in_segments(engine, a, slot, segments, qkv, out),
            NarrowSlot::Bf16(slot) => bf16::attend_in_segments(engine, a, slot, segments, qkv, out),
        }
    }
}
