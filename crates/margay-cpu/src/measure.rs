//! What the processor can do: memory bandwidth, and the peak of the chosen kernels.
//!
//! The caller brings the clock, in seconds. Each figure is the best of a few runs, so it says what is possible rather
//! than what was left over by other processes.

use crate::{
    CpuBackend,
    kernels::{
        Kernels,
        float::{FloatProduct, NR},
        quant::{Product, Rows},
    },
    lines::Lines,
    pack::{Codes, FloatType, Kind, Offset, PANEL},
    threads::{Pool, TaskPanic},
};

/// Bytes read, beyond any cache.
const READ_BYTES: usize = 256 << 20;
/// Tasks of a thread: several streams for each.
const TASKS_A_THREAD: usize = 16;
const RUNS: usize = 4;
/// Columns, rows and repetitions of the measured products: a panel of 8 KiB that stays in L1.
const K: usize = 512;
const ROWS: usize = 24;
const REPEATS: usize = 2000;

/// Memory read bandwidth of all threads of `pool` together, bytes a second.
///
/// # Errors
/// [`TaskPanic`] where a task panicked.
pub fn read_bandwidth(pool: &Pool, clock: &dyn Fn() -> f64) -> Result<f64, TaskPanic> {
    let mut memory: Lines<u8> = Lines::zeroed(READ_BYTES);
    // Pages that were never written all share one page of zeros.
    memory.fill(1);
    let tasks = pool.threads() * TASKS_A_THREAD;
    let each = READ_BYTES / tasks / 64 * 64;
    let memory = &memory[..];
    let seconds = best(clock, || {
        pool.run(tasks, &|_, task| {
            let lines = memory[task * each..][..each].as_chunks::<64>().0;
            let mut sums = [0u64; 8];
            for line in lines {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum ^= u64::from_ne_bytes(*word);
                }
            }
            std::hint::black_box(sums);
        })
    })?;
    Ok((each * tasks) as f64 / seconds)
}

/// 8-bit operations a second of all threads together: 2 a multiply-add, of the 4-bit product kernel, scales included,
/// on operands in the first-level cache.
///
/// # Errors
/// [`TaskPanic`] where a task panicked.
pub fn int8_peak(cpu: &CpuBackend, clock: &dyn Fn() -> f64) -> Result<f64, TaskPanic> {
    let kernels = Kernels::of(cpu.isa()).expect("invariant: the backend runs on it");
    let (q, codes): (Lines<i8>, Lines<u8>) = (Lines::zeroed(ROWS * K), Lines::zeroed(K * PANEL * 2));
    let floats: Lines<f32> = Lines::zeroed(ROWS * K.max(PANEL * K / 16));
    let tasks = cpu.threads();
    let (q, codes, floats) = (&q[..], &codes[..], &floats[..]);
    let seconds = best(clock, || {
        cpu.pool().run(tasks, &|_, _| {
            let mut c = [0.0f32; ROWS * PANEL];
            let product = Product {
                kind: Kind { codes: Codes::U4, halves: 1, offset: Offset::Zero(8) },
                rows: ROWS,
                groups: K / 32,
                a: Rows {
                    q: q.as_ptr(),
                    // As many bytes as 16-bit codes take; zeros are the copy of zeros in any order.
                    q16: floats.as_ptr().cast(),
                    scale: floats.as_ptr(),
                    sum16: floats.as_ptr(),
                    sum32: floats.as_ptr(),
                    starts16: floats.as_ptr().cast(),
                    starts32: floats.as_ptr().cast(),
                    k: K,
                },
                codes: codes.as_ptr(),
                scales: floats.as_ptr(),
                packed_scales: std::ptr::null(),
                mins: floats.as_ptr(),
                c: c.as_mut_ptr(),
                ldc: PANEL,
                first: true,
                ahead: std::ptr::null(),
                ahead_step: 0,
            };
            for _ in 0..REPEATS {
                // SAFETY: every buffer is at least as large as the product says.
                unsafe { (kernels.quant.gemm)(&product) }
            }
            std::hint::black_box(c);
        })
    })?;
    Ok((2 * tasks * REPEATS * ROWS * K * PANEL) as f64 / seconds)
}

/// Float32 operations a second of all threads together, of the product kernel on operands in the first-level cache.
///
/// # Errors
/// [`TaskPanic`] where a task panicked.
pub fn f32_peak(cpu: &CpuBackend, clock: &dyn Fn() -> f64) -> Result<f64, TaskPanic> {
    const DEPTH: usize = 128;
    let kernels = Kernels::of(cpu.isa()).expect("invariant: the backend runs on it");
    let (a, b): (Lines<f32>, Lines<f32>) = (Lines::zeroed(ROWS * DEPTH), Lines::zeroed(DEPTH * NR));
    let tasks = cpu.threads();
    let (a, b) = (&a[..], &b[..]);
    let seconds = best(clock, || {
        cpu.pool().run(tasks, &|_, _| {
            let mut c = [0.0f32; ROWS * NR];
            let product = FloatProduct {
                rows: ROWS,
                panels: 1,
                k: DEPTH,
                a: a.as_ptr(),
                lda: DEPTH,
                b: b.as_ptr().cast(),
                kind: FloatType::F32,
                b_panel: 0,
                ldb: NR,
                c: c.as_mut_ptr(),
                ldc: NR,
                c_panel: 0,
                first: true,
            };
            for _ in 0..REPEATS {
                // SAFETY: every buffer is at least as large as the product says.
                unsafe { (kernels.float.gemm)(&product) }
            }
            std::hint::black_box(c);
        })
    })?;
    Ok((2 * tasks * REPEATS * ROWS * DEPTH * NR) as f64 / seconds)
}

/// The least time of a few runs, seconds; never 0.
fn best(clock: &dyn Fn() -> f64, mut run: impl FnMut() -> Result<(), TaskPanic>) -> Result<f64, TaskPanic> {
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        let start = clock();
        run()?;
        least = least.min(clock() - start);
    }
    Ok(least.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuOptions;
    use std::cell::Cell;

    #[test]
    fn figures_are_work_over_the_time_of_the_callers_clock() {
        let cpu = CpuBackend::new(CpuOptions { threads: Some(2), ..Default::default() }).unwrap();
        // A clock on which every run takes half a second.
        let now = Cell::new(0.0);
        let clock = || {
            now.set(now.get() + 0.5);
            now.get()
        };
        let bandwidth = read_bandwidth(cpu.pool(), &clock).unwrap();
        assert!((bandwidth / (2.0 * READ_BYTES as f64) - 1.0).abs() < 1e-3, "{bandwidth}");
        assert_eq!(int8_peak(&cpu, &clock).unwrap(), (4 * 2 * REPEATS * ROWS * K * PANEL) as f64);
        assert_eq!(f32_peak(&cpu, &clock).unwrap(), (4 * 2 * REPEATS * ROWS * 128 * NR) as f64);
    }
}
