//! Loops of x86-64 instructions. They are assembly, so that the compiler neither folds nor reorders them.

use super::{Loop, Loops};
use crate::Isa;
use std::arch::{asm, x86_64::*};

/// Independent instructions of a turn: two a cycle of latency 5 need 10.
const COPIES: usize = 12;

/// A function that runs twelve instructions on twelve registers, turn by turn: `$even` and `$odd` in turns, each with
/// its operands behind the destination. Operands x and y hold `$x` and `$y` in each 32 bits; the registers begin as y.
macro_rules! twelve {
    ($name:ident, $feature:literal, $class:ident, $set:ident, $x:expr, $y:expr,
     $even:literal $even_operands:literal, $odd:literal $odd_operands:literal) => {
        fn $name(turns: usize) {
            #[target_feature(enable = $feature)]
            fn inner(turns: usize) {
                let (x, y) = ($set($x as i32), $set($y as i32));
                // SAFETY: registers are all it touches, and those are declared.
                unsafe {
                    asm!(
                        "2:",
                        concat!($even, " {a0}", $even_operands),
                        concat!($odd, " {a1}", $odd_operands),
                        concat!($even, " {a2}", $even_operands),
                        concat!($odd, " {a3}", $odd_operands),
                        concat!($even, " {a4}", $even_operands),
                        concat!($odd, " {a5}", $odd_operands),
                        concat!($even, " {a6}", $even_operands),
                        concat!($odd, " {a7}", $odd_operands),
                        concat!($even, " {a8}", $even_operands),
                        concat!($odd, " {a9}", $odd_operands),
                        concat!($even, " {a10}", $even_operands),
                        concat!($odd, " {a11}", $odd_operands),
                        "dec {turns}",
                        "jnz 2b",
                        turns = inout(reg) turns => _,
                        x = in($class) x,
                        y = in($class) y,
                        a0 = inout($class) y => _, a1 = inout($class) y => _,
                        a2 = inout($class) y => _, a3 = inout($class) y => _,
                        a4 = inout($class) y => _, a5 = inout($class) y => _,
                        a6 = inout($class) y => _, a7 = inout($class) y => _,
                        a8 = inout($class) y => _, a9 = inout($class) y => _,
                        a10 = inout($class) y => _, a11 = inout($class) y => _,
                        options(nomem, nostack),
                    );
                }
            }
            // SAFETY: `loops` hands it out only where the processor was found to have the feature.
            unsafe { inner(turns) }
        }
    };
    ($name:ident, sse2, $x:expr, $y:expr, $even:literal, $odd:literal) => {
        twelve!($name, "sse2", xmm_reg, _mm_set1_epi32, $x, $y, $even ", {x}", $odd ", {y}");
    };
    ($name:ident, avx2, $feature:literal, $x:expr, $y:expr, $op:literal) => {
        twelve!($name, $feature, ymm_reg, _mm256_set1_epi32, $x, $y, $op ", {x}, {y}", $op ", {x}, {y}");
    };
    ($name:ident, avx512, $feature:literal, $x:expr, $y:expr, $op:literal) => {
        twelve!($name, $feature, zmm_reg, _mm512_set1_epi32, $x, $y, $op ", {x}, {y}", $op ", {x}, {y}");
    };
}

// Bytes 3 and 5; words of small numbers; halves and quarters: ordinary numbers, which take ordinary power.
const BYTES: (u32, u32) = (0x0303_0303, 0x0505_0505);
const WORDS: (u32, u32) = (0x0003_0003, 0x0005_0005);
const FLOATS: (u32, u32) = (0x3f00_0000, 0x3e80_0000);
const BFLOATS: (u32, u32) = (0x3f00_3f00, 0x3e80_3e80);
/// Multiplied again and again, 1 stays an ordinary number.
const ONES: (u32, u32) = (0x3f80_0000, 0x3f80_0000);

twelve!(sse2_int8, sse2, WORDS.0, WORDS.1, "pmaddwd", "pmaddwd");
twelve!(sse2_f32, sse2, ONES.0, ONES.1, "mulps", "addps");
twelve!(avx2_int8, avx2, "avx2", BYTES.0, BYTES.1, "vpmaddubsw");
twelve!(avx2_int8_exact, avx2, "avx2", WORDS.0, WORDS.1, "vpmaddwd");
twelve!(avx2_f32, avx2, "avx2,fma", FLOATS.0, FLOATS.1, "vfmadd231ps");
twelve!(avxvnni_int8, avx2, "avx2,avxvnni", BYTES.0, BYTES.1, "{{vex}} vpdpbusd");
twelve!(avx512_int8, avx512, "avx512f,avx512vnni", BYTES.0, BYTES.1, "vpdpbusd");
twelve!(avx512_f32, avx512, "avx512f", FLOATS.0, FLOATS.1, "vfmadd231ps");
twelve!(avx512_bf16, avx512, "avx512f,avx512bf16", BFLOATS.0, BFLOATS.1, "vdpbf16ps");

/// As `super::loops`.
pub(super) fn loops(isa: Isa) -> Loops {
    let of = |instruction, ops, run| Loop { instruction, ops: COPIES * ops, run };
    match isa {
        Isa::Avx512 => Loops {
            int8: of("vpdpbusd zmm", 128, avx512_int8),
            // Signed codes become unsigned by an offset that costs one subtraction a row, so this one is exact too.
            int8_exact: None,
            f32: of("vfmadd231ps zmm", 32, avx512_f32),
            bf16: is_x86_feature_detected!("avx512bf16").then(|| of("vdpbf16ps zmm", 64, avx512_bf16)),
        },
        Isa::AvxVnni => Loops {
            int8: of("vpdpbusd ymm", 64, avxvnni_int8),
            // As above.
            int8_exact: None,
            f32: of("vfmadd231ps ymm", 16, avx2_f32),
            bf16: None,
        },
        Isa::Avx2 => Loops {
            // Pairs of products are added in 16 bits, which two full signed bytes overflow.
            int8: of("vpmaddubsw ymm", 64, avx2_int8),
            int8_exact: Some(of("vpmaddwd ymm", 32, avx2_int8_exact)),
            f32: of("vfmadd231ps ymm", 16, avx2_f32),
            bf16: None,
        },
        _ => Loops {
            int8: of("pmaddwd xmm", 16, sse2_int8),
            int8_exact: None,
            f32: of("mulps, addps xmm", 4, sse2_f32),
            bf16: None,
        },
    }
}
