//! Loops of aarch64 instructions. They are assembly, so that the compiler neither folds nor reorders them.

use super::{Loop, Loops};
use crate::Isa;
use std::arch::{aarch64::*, asm, is_aarch64_feature_detected as has};

/// Independent instructions of a turn: four a cycle of latency 4 need 16, and multiply-adds may take longer.
const COPIES: usize = 24;

/// A function that runs lines of assembly turn by turn. Operands x and y hold `$x` and `$y` in each 32 bits; registers
/// a0 to a23 begin as y.
macro_rules! turns {
    ($name:ident, $feature:literal, $x:expr, $y:expr, [$($line:expr),+ $(,)?]) => {
        fn $name(turns: usize) {
            #[target_feature(enable = $feature)]
            fn inner(turns: usize) {
                let (x, y) = (vdupq_n_u32($x), vdupq_n_u32($y));
                // SAFETY: registers are all it touches, and those are declared.
                unsafe {
                    asm!(
                        "2:",
                        $($line,)+
                        "subs {turns}, {turns}, #1",
                        "b.ne 2b",
                        turns = inout(reg) turns => _,
                        x = in(vreg) x,
                        y = in(vreg) y,
                        a0 = inout(vreg) y => _, a1 = inout(vreg) y => _, a2 = inout(vreg) y => _, a3 = inout(vreg) y => _,
                        a4 = inout(vreg) y => _, a5 = inout(vreg) y => _, a6 = inout(vreg) y => _, a7 = inout(vreg) y => _,
                        a8 = inout(vreg) y => _, a9 = inout(vreg) y => _, a10 = inout(vreg) y => _, a11 = inout(vreg) y => _,
                        a12 = inout(vreg) y => _, a13 = inout(vreg) y => _, a14 = inout(vreg) y => _, a15 = inout(vreg) y => _,
                        a16 = inout(vreg) y => _, a17 = inout(vreg) y => _, a18 = inout(vreg) y => _, a19 = inout(vreg) y => _,
                        a20 = inout(vreg) y => _, a21 = inout(vreg) y => _, a22 = inout(vreg) y => _, a23 = inout(vreg) y => _,
                        options(nomem, nostack),
                    );
                }
            }
            // SAFETY: `loops` hands it out only where the processor was found to have the feature.
            unsafe { inner(turns) }
        }
    };
}

/// One instruction on all 24 registers: `$op {a<n>:v}$operands`.
macro_rules! twenty_four {
    ($name:ident, $feature:literal, $x:expr, $y:expr, $op:literal, $operands:literal) => {
        twenty_four!($name, $feature, $x, $y, $op, $operands,
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23]);
    };
    ($name:ident, $feature:literal, $x:expr, $y:expr, $op:literal, $operands:literal, [$($n:literal)+]) => {
        turns!($name, $feature, $x, $y, [$(concat!($op, " {a", $n, ":v}", $operands)),+]);
    };
}

/// Twelve exact products of signed bytes: two multiplications into 16 bits, then their sums into 32. Instructions of a
/// kind stand together, so that a processor that runs them in order need not wait for a result.
macro_rules! twelve_exact {
    ($name:ident, [$($n:literal)+], [$($temporary:literal $sum:literal)+]) => {
        turns!($name, "neon", BYTES.0, BYTES.1, [
            $(concat!("smull {a", $n, ":v}.8h, {x:v}.8b, {y:v}.8b")),+,
            $(concat!("smlal2 {a", $n, ":v}.8h, {x:v}.16b, {y:v}.16b")),+,
            $(concat!("sadalp {a", $sum, ":v}.4s, {a", $temporary, ":v}.8h")),+
        ]);
    };
}

// Bytes 3 and 5, halves and quarters: ordinary numbers, which take ordinary power.
const BYTES: (u32, u32) = (0x0303_0303, 0x0505_0505);
const FLOATS: (u32, u32) = (0x3f00_0000, 0x3e80_0000);
const BFLOATS: (u32, u32) = (0x3f00_3f00, 0x3e80_3e80);

twenty_four!(neon_int8, "neon", BYTES.0, BYTES.1, "smlal", ".8h, {x:v}.8b, {y:v}.8b");
twelve_exact!(neon_int8_exact, [0 1 2 3 4 5 6 7 8 9 10 11],
    [0 12 1 13 2 14 3 15 4 16 5 17 6 18 7 19 8 20 9 21 10 22 11 23]);
twenty_four!(neon_f32, "neon", FLOATS.0, FLOATS.1, "fmla", ".4s, {x:v}.4s, {y:v}.4s");
twenty_four!(dotprod_int8, "neon,dotprod", BYTES.0, BYTES.1, "sdot", ".4s, {x:v}.16b, {y:v}.16b");
twenty_four!(i8mm_int8, "neon,i8mm", BYTES.0, BYTES.1, "smmla", ".4s, {x:v}.16b, {y:v}.16b");
twenty_four!(bf16, "neon,bf16", BFLOATS.0, BFLOATS.1, "bfmmla", ".4s, {x:v}.8h, {y:v}.8h");

/// As `super::loops`.
pub(super) fn loops(isa: Isa) -> Loops {
    let of = |instruction, ops, run| Loop { instruction, ops: COPIES * ops, run };
    let (int8, int8_exact) = match isa {
        Isa::I8mm => (of("smmla", 64, i8mm_int8), None),
        Isa::Dotprod => (of("sdot", 32, dotprod_int8), None),
        // Sums of products stay in 16 bits, which two full signed bytes fill.
        _ => (
            of("smlal", 16, neon_int8),
            Some(Loop { instruction: "smull, smlal2, sadalp", ops: COPIES / 2 * 32, run: neon_int8_exact }),
        ),
    };
    Loops {
        int8,
        int8_exact,
        f32: of("fmla", 8, neon_f32),
        bf16: (isa == Isa::I8mm && has!("bf16")).then(|| of("bfmmla", 32, bf16)),
    }
}
