//! Portable: the meaning of all others.

use super::{ChannelKernels, ChannelProduct};
use crate::pack::PANEL;

pub(super) static TABLE: ChannelKernels =
    ChannelKernels { name: "portable loops", copy: None, panels: 1, zero: 0, gemm };

/// # Safety
/// As [`ChannelKernels::gemm`].
unsafe fn gemm(p: &ChannelProduct) {
    // SAFETY: the caller's promise.
    let codes = unsafe { std::slice::from_raw_parts(p.codes, p.k * PANEL) };
    for row in 0..p.rows {
        // SAFETY: the caller's promise.
        let (q, sums) = unsafe {
            (
                std::slice::from_raw_parts(p.q.add(row * p.lda), p.k),
                std::slice::from_raw_parts_mut(p.sums.add(row * p.ldc), PANEL),
            )
        };
        if p.first {
            sums.fill(0);
        }
        for (four, codes) in q.as_chunks::<4>().0.iter().zip(codes.as_chunks::<{ 4 * PANEL }>().0) {
            for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
                for (a, w) in four.iter().zip(codes) {
                    *sum += i32::from(*a) * i32::from(*w as i8);
                }
            }
        }
    }
}
