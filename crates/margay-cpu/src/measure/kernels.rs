//! The speed of every kernel at the shapes of real layers, against the limits of the same moment.
//!
//! Kernels run through the ops and packed weights of the engine, with its threads. Weights, caches and activations are
//! read in turn from more memory than any cache holds, as a model with many layers reads them.

mod cases;
mod work;

pub use cases::{Case, cases};

use super::{Limits, Pace, Probe, timed};
use crate::{CpuBackend, Isa, threads::TaskPanic};
use margay_graph::BackendError;
use work::{Unit, Work};

/// How thoroughly kernels are timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Repetitions, of which the median counts; at least 1.
    pub repetitions: usize,
    /// What a repetition lasts at least, seconds.
    pub least_seconds: f64,
    /// Operands are read in turn from more than so much memory.
    pub rotate_bytes: usize,
}

impl Default for Options {
    /// 5 repetitions of 20 ms over 128 MiB.
    fn default() -> Self {
        Options { repetitions: 5, least_seconds: 0.02, rotate_bytes: 128 << 20 }
    }
}

/// Which limit a kernel meets first: the one under which its work takes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Operations a second.
    Compute,
    /// Bytes a second.
    Memory,
}

impl Bound {
    /// `compute` or `memory`.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Compute => "compute",
            Bound::Memory => "memory",
        }
    }
}

/// One kernel at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// As [`Case::kernel`].
    pub kernel: String,
    /// The instruction set whose kernels ran.
    pub isa: Isa,
    /// As [`Case::shape`].
    pub shape: String,
    /// Threads that worked.
    pub threads: usize,
    /// 10^9 operations a second; a multiply-add is 2.
    pub gops: f64,
    /// 10^9 bytes a second read from memory and written to it; 0 where all operands stay in the first-level cache.
    pub gbytes_per_s: f64,
    /// Percent of the limit that `bound` names.
    pub percent_of_peak: f64,
    /// Which limit that is.
    pub bound: Bound,
}

/// What [`run`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One of each case that [`Case::runs_on`] the processor, in their order.
    pub records: Vec<Record>,
    /// The limits measured before each case, and after the last.
    pub limits: Vec<Limits>,
}

/// Runs `cases`, one after the other. Limits are measured before and after each of them, and the better figures count. `progress` is told before each case how many are done.
///
/// # Errors
/// [`BackendError`] where a weight cannot be packed or a kernel panicked.
pub fn run(
    cpu: &CpuBackend,
    cases: &[Case],
    options: &Options,
    clock: &dyn Fn() -> f64,
    progress: &mut dyn FnMut(usize, &Case),
) -> Result<Report, BackendError> {
    run_with(&Probe::new(), cpu, cases, options, clock, progress)
}

fn run_with(
    probe: &Probe,
    cpu: &CpuBackend,
    cases: &[Case],
    options: &Options,
    clock: &dyn Fn() -> f64,
    progress: &mut dyn FnMut(usize, &Case),
) -> Result<Report, BackendError> {
    let pace = Pace { turns: 1, least_seconds: options.least_seconds, runs: options.repetitions.max(1) };
    let mut limits = vec![probe.limits(cpu, clock).map_err(panicked)?];
    let mut records = Vec::with_capacity(cases.len());
    for case in cases.iter().filter(|case| case.runs_on(cpu.isa())) {
        progress(records.len(), case);
        let mut prepared = work::prepare(cpu, case, options.rotate_bytes)?;
        let seconds = timed(clock, pace, |turns| (0..turns).try_for_each(|_| (prepared.run)()));
        let seconds = seconds.map_err(panicked)?;
        let after = probe.limits(cpu, clock).map_err(panicked)?;
        // On a shared machine the bandwidth changes within seconds.
        let best = limits[limits.len() - 1].or_better(after);
        limits.push(after);
        records.push(record(case, &best, prepared.work, seconds[seconds.len() / 2]));
    }
    Ok(Report { records, limits })
}

fn panicked(panic: TaskPanic) -> BackendError {
    BackendError::Call { what: panic.to_string() }
}

/// What so much work in so many seconds is worth under `limits`.
fn record(case: &Case, limits: &Limits, work: Work, seconds: f64) -> Record {
    let peak = match work.unit {
        Unit::Int8 => limits.int8,
        Unit::Int8Exact => limits.int8_exact.unwrap_or(limits.int8),
        Unit::F32 => limits.f32,
        Unit::Bf16 => limits.bf16.unwrap_or(limits.f32),
    };
    let (compute, memory) = (work.ops / peak.ops_per_second, work.bytes / limits.read());
    let (least, bound) = if compute >= memory { (compute, Bound::Compute) } else { (memory, Bound::Memory) };
    Record {
        kernel: case.kernel.clone(),
        isa: limits.isa,
        shape: case.shape.clone(),
        threads: limits.threads,
        gops: work.ops / seconds / 1e9,
        gbytes_per_s: work.bytes / seconds / 1e9,
        percent_of_peak: least / seconds * 100.0,
        bound,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        cases::{What, case},
        *,
    };
    use crate::{CpuOptions, KvType, kernels::Kernels, lines::Arena, measure::Peak, pack::QuantMatrix};
    use margay_graph::{Activation, Attention, Mask, NormKind, RopeStyle};
    use margay_quant::{FORMATS, encode_tensor};
    use margay_tensor::{DType, Shape};
    use std::{cell::Cell, collections::HashSet};

    const QUICK: Options = Options { repetitions: 3, least_seconds: 0.0, rotate_bytes: 0 };

    fn cpu(isa: Isa) -> CpuBackend {
        CpuBackend::new(CpuOptions { threads: Some(2), isa: Some(isa), ..Default::default() }).unwrap()
    }

    /// Small cases of every kind.
    fn small() -> Vec<Case> {
        let (rows, columns) = (3, 64);
        let attention =
            |mask, cache| Attention { heads: 4, kv_heads: 2, head_dim: 16, scale: 0.25, mask, cache };
        let whats = [
            What::Linear { dtype: DType::Q4_0, rows, outputs: 40, inputs: 64 },
            What::Linear { dtype: DType::BF16, rows: 1, outputs: 40, inputs: 64 },
            What::Channel { rows, outputs: 40, inputs: 60 },
            What::Attention {
                attention: attention(Mask::Causal, Some(0)),
                kv: KvType::Q8,
                queries: 2,
                keys: 5,
            },
            What::Attention { attention: attention(Mask::Full, None), kv: KvType::F32, queries: 5, keys: 5 },
            What::Quantize { rows, columns },
            What::Norm { kind: NormKind::Layer, rows, columns },
            What::Rope { style: RopeStyle::Half, rows, heads: 4, head_dim: 16 },
            What::Softmax { rows, columns },
            What::Activation { act: Activation::GeluTanh, rows, columns },
            What::Glu { act: Activation::Silu, rows, columns },
            What::Conv { side: 4, size: 3, stride: 1, groups: 16, channels: 16 },
            What::Conv { side: 4, size: 1, stride: 1, groups: 1, channels: 16 },
        ];
        whats.into_iter().enumerate().map(|(i, what)| case(&i.to_string(), "small".into(), what)).collect()
    }

    #[test]
    fn figures_are_work_over_the_time_of_the_callers_clock() {
        // A clock on which every call takes half a second.
        let now = Cell::new(0.0);
        let clock = || {
            now.set(now.get() + 0.5);
            now.get()
        };
        let probe = Probe::of(1 << 16);
        for isa in Isa::supported() {
            let mut told = vec![];
            let cases = small();
            let report = run_with(&probe, &cpu(isa), &cases, &QUICK, &clock, &mut |done, case| {
                told.push((done, case.kernel.clone()));
            });
            let report = report.unwrap();
            let expected: Vec<_> = cases.iter().enumerate().map(|(i, c)| (i, c.kernel.clone())).collect();
            assert_eq!(told, expected);
            assert_eq!(report.limits.len(), cases.len() + 1);
            assert_eq!(report.records.len(), cases.len());
            for r in &report.records {
                assert_eq!((r.isa, r.threads, &*r.shape), (isa, 2, "small"));
                assert!(r.percent_of_peak > 0.0, "{r:?}");
            }
            let (product, prefix, encode) = (&report.records[0], &report.records[3], &report.records[4]);
            assert_eq!(product.gops, 2.0 * (3 * 40 * 64) as f64 / 0.5 / 1e9);
            // 3 panels of 16 rows of 64 columns, half a byte each with 2 bytes of scale for 32; a row of codes, scale,
            // two sums of 16 and one of 32, and as many starts, for each 32 columns; results.
            let bytes = 3 * 16 * (64 / 2 + 2 * 2) + 3 * (64 + 2 * 7 * 4) + 3 * 40 * 4;
            // Some instruction sets read a copy of four rows at a time.
            let copy = Kernels::of(isa).unwrap().quant.copies.first().map_or(0, |copy| copy.bytes);
            let bytes = bytes + 4 * (64 / 32) * copy;
            assert_eq!(product.gbytes_per_s, bytes as f64 / 0.5 / 1e9);
            assert_eq!(prefix.gops, (4 * 16 * 4 * (4 + 5)) as f64 / 0.5 / 1e9, "2 queries see 4 and 5 keys");
            assert_eq!(encode.gops, (4 * 16 * 4 * 5 * 5) as f64 / 0.5 / 1e9);
        }
    }

    #[test]
    fn the_limit_that_takes_longer_is_the_bound() {
        let peak = |ops_per_second| Peak { instruction: "i", ops_per_second };
        let limits = Limits {
            isa: Isa::Scalar,
            threads: 1,
            read_one_stream: 10.0,
            read_four_streams: 20.0,
            int8: peak(400.0),
            int8_exact: Some(peak(200.0)),
            f32: peak(100.0),
            bf16: None,
            barrier: 1e-6,
        };
        let case = &small()[0];
        let of = |ops, bytes, unit| {
            let r = record(case, &limits, Work { ops, bytes, unit }, 4.0);
            (r.bound.name(), r.percent_of_peak)
        };
        assert_eq!(of(800.0, 20.0, Unit::Int8), ("compute", 50.0));
        assert_eq!(of(200.0, 20.0, Unit::Int8), ("memory", 25.0));
        assert_eq!(of(400.0, 20.0, Unit::Int8Exact), ("compute", 50.0));
        assert_eq!(of(200.0, 20.0, Unit::F32), ("compute", 50.0));
        assert_eq!(of(200.0, 20.0, Unit::Bf16), ("compute", 50.0), "without bfloat16 it is float32");
    }

    #[test]
    fn every_format_the_packer_knows_is_measured() {
        let pool = crate::threads::Pool::new(1, None);
        let known: HashSet<String> = cases().into_iter().map(|case| case.kernel).collect();
        let mut packed = 0;
        for format in FORMATS {
            let dtype = format.dtype();
            let tensor = encode_tensor(&[0.5; 256], Shape::from([1, 256]), dtype).unwrap();
            let is_packed = QuantMatrix::pack(&tensor, &pool, &Arena::default()).is_some();
            let as_it_is = [DType::F32, DType::F16, DType::BF16].contains(&dtype);
            for kernel in ["gemm", "gemv"] {
                let name = format!("{kernel}/{}", dtype.name().to_lowercase());
                assert_eq!(known.contains(&name), is_packed || as_it_is, "{name}");
            }
            packed += usize::from(is_packed);
        }
        assert!(packed >= 11);
    }

    #[test]
    fn cases_are_told_apart_and_those_of_a_kernel_stand_together() {
        let cases = cases();
        let names: HashSet<_> = cases.iter().map(|c| (&c.kernel, &c.shape)).collect();
        assert_eq!(names.len(), cases.len());
        let kernels: HashSet<_> = cases.iter().map(|c| &c.kernel).collect();
        assert_eq!(cases.chunk_by(|a, b| a.kernel == b.kernel).count(), kernels.len());
        assert_eq!(cases.iter().filter(|c| c.quick).count(), kernels.len());
        for case in &cases {
            if let What::Linear { dtype, inputs, .. } = case.what {
                assert!(dtype.row_bytes(inputs).is_some(), "{} {}", case.kernel, case.shape);
            }
        }
    }
}
