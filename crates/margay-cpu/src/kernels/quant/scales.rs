//! Packed scales to float32; compiled once for each instruction set.

use crate::pack::{Kind, Offset, Scaling};

/// Half to single precision without branches, so that loops over it become SIMD code.
#[inline(always)]
pub(crate) fn widen(h: u16) -> f32 {
    // 2^112 moves the exponent from a bias of 15 to 127, subnormals included.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = u32::from(h & 0x7fff);
    let number = (f32::from_bits(magnitude << 13) * REBIAS).to_bits();
    let special = magnitude << 13 | 0x7f80_0000;
    let bits = if magnitude >= 0x7c00 { special } else { number };
    f32::from_bits(bits | u32::from(h & 0x8000) << 16)
}

#[inline(always)]
fn halves<const NR: usize>(bytes: &[u8]) -> [f32; NR] {
    let mut out = [0.0; NR];
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = widen(u16::from_le_bytes(*bytes));
    }
    out
}

/// See [`super::QuantKernels::scales`]; panels of `NR` rows.
#[inline(always)]
pub(super) fn unpack<const NR: usize>(
    kind: Kind,
    scaling: Scaling,
    packed: &[u8],
    scales: &mut [f32],
    mins: &mut [f32],
) {
    let scales = scales.as_chunks_mut::<NR>().0;
    let mins = mins.as_chunks_mut::<NR>().0;
    let min = kind.offset == Offset::Min;
    match (scaling, min) {
        (Scaling::Plain, false) => {
            for (out, bytes) in scales.iter_mut().zip(packed.chunks_exact(2 * NR)) {
                *out = halves(bytes);
            }
        }
        (Scaling::Plain, true) => {
            for ((s, m), bytes) in scales.iter_mut().zip(mins).zip(packed.chunks_exact(4 * NR)) {
                let (low, high) = bytes.split_at(2 * NR);
                (*s, *m) = (halves(low), halves(high));
            }
        }
        (Scaling::Super { signed }, false) => {
            let groups = 8 * kind.halves;
            let blocks = packed.chunks_exact((2 + groups) * NR);
            for (scales, bytes) in scales.chunks_exact_mut(groups).zip(blocks) {
                let (d, codes) = bytes.split_at(2 * NR);
                let d: [f32; NR] = halves(d);
                for (s, codes) in scales.iter_mut().zip(codes.chunks_exact(NR)) {
                    for ((s, code), d) in s.iter_mut().zip(codes).zip(&d) {
                        *s = d * if signed { f32::from(*code as i8) } else { f32::from(*code) };
                    }
                }
            }
        }
        (Scaling::Super { .. }, true) => {
            let groups = 8 * kind.halves;
            let blocks = packed.chunks_exact((4 + 2 * groups) * NR);
            let out = scales.chunks_exact_mut(groups).zip(mins.chunks_exact_mut(groups));
            for ((scales, mins), bytes) in out.zip(blocks) {
                let (d, codes) = bytes.split_at(4 * NR);
                let (d, dmin): ([f32; NR], [f32; NR]) = (halves(&d[..2 * NR]), halves(&d[2 * NR..]));
                for ((s, m), codes) in scales.iter_mut().zip(mins).zip(codes.chunks_exact(2 * NR)) {
                    for i in 0..NR {
                        s[i] = d[i] * f32::from(codes[i]);
                        m[i] = -(dmin[i] * f32::from(codes[NR + i]));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_half_widens_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (got, want) = (super::widen(bits), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#x}");
        }
    }
}
