//! Blocks of the cache in float32, compiled for each instruction set.

use crate::{Isa, kv::KvType};

/// A head's part of a block in float32.
type Unpack = fn(KvType, usize, &[u8], &mut [f32]);

macro_rules! compiled {
    ($module:ident, [$($feature:tt)*]) => {
        mod $module {
            use crate::kv::{KvType, codec};

            pub(super) fn unpack(kind: KvType, d: usize, block: &[u8], to: &mut [f32]) {
                $($feature)*
                fn inner(kind: KvType, d: usize, block: &[u8], to: &mut [f32]) {
                    codec::unpack(kind, d, block, to);
                }
                #[allow(unused_unsafe, reason = "the portable module enables no features")]
                // SAFETY: `table` hands a module out only for an instruction set the processor was found to have.
                unsafe {
                    inner(kind, d, block, to)
                }
            }
        }
    };
}

compiled!(portable, []);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, [#[target_feature(enable = "avx2,fma,f16c")]]);
#[cfg(target_arch = "x86_64")]
compiled!(avx512, [#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]]);

/// The one of `isa`, which the processor must have.
pub(super) fn table(isa: Isa) -> Unpack {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => avx2::unpack,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::unpack,
        _ => portable::unpack,
    }
}
