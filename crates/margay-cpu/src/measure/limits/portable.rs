//! Loops for architectures without kernels of their own: what the compiler makes of a product of short rows.

use super::{Loop, Loops};
use crate::Isa;
use std::hint::black_box;

/// Products of a turn; they fit the registers of any vector unit.
const PRODUCTS: usize = 32;

fn int8(turns: usize) {
    let (x, y) = (black_box([3i16; PRODUCTS]), black_box([5i16; PRODUCTS]));
    let mut sums = [0i32; PRODUCTS];
    for _ in 0..turns {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum = sum.wrapping_add(i32::from(x) * i32::from(y));
        }
        black_box(&mut sums);
    }
}

fn f32(turns: usize) {
    let (x, y) = (black_box([0.5f32; PRODUCTS]), black_box([0.25f32; PRODUCTS]));
    let mut sums = [0.0f32; PRODUCTS];
    for _ in 0..turns {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
        black_box(&mut sums);
    }
}

/// As `super::loops`.
pub(super) fn loops(_: Isa) -> Loops {
    Loops {
        int8: Loop { instruction: "portable loop", ops: 2 * PRODUCTS, run: int8 },
        int8_exact: None,
        f32: Loop { instruction: "portable loop", ops: 2 * PRODUCTS, run: f32 },
        bf16: None,
    }
}
