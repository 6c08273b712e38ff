//! The kernels, and the table of those that one instruction set uses.

pub(crate) mod attention;
pub(crate) mod bf16;
pub(crate) mod channel;
#[allow(clippy::needless_range_loop, reason = "rows and registers of a tile index several arrays at once")]
pub(crate) mod float;
pub(crate) mod math;
#[allow(clippy::needless_range_loop, reason = "as above")]
pub(crate) mod quant;
pub(crate) mod rows;

use crate::Isa;

/// The kernels of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) attention: attention::AttentionKernels,
    pub(crate) rows: &'static rows::RowKernels,
    pub(crate) float: &'static float::FloatKernels,
    pub(crate) quant: &'static quant::QuantKernels,
    pub(crate) channel: &'static channel::ChannelKernels,
    /// Where this processor multiplies bfloat16.
    pub(crate) bf16: Option<&'static bf16::Bf16Kernels>,
}

impl Kernels {
    /// The kernels of `isa`, or `None` where this processor lacks it.
    pub(crate) fn of(isa: Isa) -> Option<Kernels> {
        isa.is_supported().then(|| Kernels {
            attention: attention::table(isa),
            rows: rows::table(isa),
            float: float::table(isa),
            quant: quant::table(isa),
            channel: channel::table(isa),
            bf16: bf16::table(isa),
        })
    }
}

/// Asks for the cache line at `at`, which may lie anywhere.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// One line a kind of kernel.
pub(crate) fn describe(isa: Isa) -> Vec<String> {
    let quant = quant::table(isa);
    let float = match isa {
        Isa::Avx2 | Isa::AvxVnni => "6 x 16 tiles of AVX2 FMA, half precision through F16C",
        Isa::Avx512 => "12 x 16 tiles of AVX-512 FMA, half precision through F16C",
        Isa::Neon | Isa::Dotprod | Isa::I8mm => "6 x 16 tiles of NEON FMA",
        Isa::Scalar => "portable loops",
    };
    vec![
        format!("integer products: {}", quant.name),
        format!("integer products of encoders: {}", channel::table(isa).name),
        format!("float products: {float}"),
        match bf16::table(isa) {
            Some(kernels) => format!("bfloat16 products of encoders, on request: {}", kernels.name),
            None => format!("bfloat16 products of encoders: none that go with {isa} on this processor"),
        },
        format!("row ops: one source, compiled for {isa}"),
    ]
}
