//! Portable products of few rows. They round once a product, as the fused instructions of the others do.

use super::{F16, F32, FewRows, I8, Numbers, Stored, Vector, panels};

/// A panel.
type Panel = [f32; 16];

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
    for row in 0..p.rows {
        // SAFETY: the caller's promise.
        unsafe { panels::<Panel, N, 1, 1, 1>(p, row) }
    }
}

impl Vector for Panel {
    const LANES: usize = 16;

    unsafe fn splat(x: f32) -> Self {
        [x; 16]
    }

    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Panel>().read_unaligned() }
    }

    unsafe fn load_halves(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[u16; 16]>().read_unaligned() }.map(|x| half::f16::from_bits(x).to_f32())
    }

    unsafe fn load_bytes(at: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<[i8; 16]>().read_unaligned() }.map(f32::from)
    }

    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Panel>().write_unaligned(self) }
    }

    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|i| a[i].mul_add(b[i], self[i]))
    }

    unsafe fn prefetch(_: *const u8) {}
}
