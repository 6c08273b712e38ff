//! What the kernels of both VNNI instruction sets share. `vpdpbusd` multiplies unsigned codes with signed activations and
//! adds 4 neighbours in 32 bits, without saturation. Signed codes become unsigned by flipping the top bit, which adds
//! 128: a zero point. Zero points cost nothing: sums begin at minus the zero point times the sum of the activations.
//! Products of many rows by AVX-512 do it the other way round.

use crate::{
    kernels::math,
    pack::{Codes, Kind, Offset, PANEL},
};

/// Groups that a product of many rows may have: those of one chunk of k.
pub(super) const GROUPS: usize = 16;
/// Bytes of 4 columns of a panel.
pub(super) const CHUNK: usize = 4 * PANEL;
/// How far ahead of its loads decode asks for weights, bytes: what a core reads while memory answers.
pub(super) const PREFETCH_BYTES: usize = 4096;

/// 1.5 * 2^23: integers below 2^22 added to its bits give the bits of its sum with them, and subtracting it again is
/// exact. Where sums begin here their conversion is a subtraction, for which Intel's cores have a port that multiplies
/// nothing; `vcvtdq2ps` takes one of the two that `vpdpbusd` needs.
pub(super) const MAGIC: f32 = math::ROUND;

/// What has to be taken from codes once they are unsigned.
pub(super) fn zero(kind: Kind) -> i16 {
    match (kind.codes, kind.offset) {
        (Codes::I8, _) => 128,
        (_, Offset::Zero(zero)) => i16::from(zero),
        _ => 0,
    }
}
