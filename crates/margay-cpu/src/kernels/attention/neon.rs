//! Few rows with NEON: four registers a panel, 16 to 24 accumulators of the 32.

use super::{F16, F32, FewRows, I8, Numbers, Stored, Vector, panels};
use std::arch::aarch64::*;

/// # Safety
/// As [`super::AttentionKernels::few`].
pub(super) unsafe fn few(p: &FewRows, kind: Stored) {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            Stored::F32 => few_of::<F32>(p),
            Stored::F16 => few_of::<F16>(p),
            Stored::I8 => few_of::<I8>(p),
        }
    }
}

/// # Safety
/// As [`super::AttentionKernels::few`], with numbers of that type.
unsafe fn few_of<N: Numbers>(p: &FewRows) {
    // SAFETY: the caller's promise; the parts add up to the rows.
    unsafe {
        match p.rows {
            0 => {}
            1 => panels::<float32x4_t, N, 4, 1, 4>(p, 0),
            2 => panels::<float32x4_t, N, 4, 2, 2>(p, 0),
            3 => panels::<float32x4_t, N, 4, 3, 2>(p, 0),
            4 => panels::<float32x4_t, N, 4, 4, 1>(p, 0),
            5 => panels::<float32x4_t, N, 4, 5, 1>(p, 0),
            6 => panels::<float32x4_t, N, 4, 6, 1>(p, 0),
            7 => {
                panels::<float32x4_t, N, 4, 4, 1>(p, 0);
                panels::<float32x4_t, N, 4, 3, 2>(p, 4);
            }
            _ => {
                panels::<float32x4_t, N, 4, 4, 1>(p, 0);
                panels::<float32x4_t, N, 4, 4, 1>(p, 4);
            }
        }
    }
}

impl Vector for float32x4_t {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: every aarch64 has NEON.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(at) }
    }

    #[inline(always)]
    unsafe fn load_halves(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))) }
    }

    #[inline(always)]
    unsafe fn load_bytes(at: *const i8) -> Self {
        // SAFETY: the caller's promise: four bytes.
        unsafe {
            let bytes = vcreate_s8(u64::from(at.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(at, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as for `splat`.
        unsafe { vfmaq_f32(self, a, b) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, readonly, preserves_flags));
        }
    }
}
