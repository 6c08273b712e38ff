//! The machine's limits, as they are told in JSON and in tables.

use margay::rooms::cpu::measure;
use serde::Serialize;

/// Limits of some threads.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub threads: usize,
    pub limits: Vec<Limit>,
    /// From handing out tasks that do nothing until all are done.
    pub barrier_microseconds: f64,
}

/// One limit of the processor.
#[derive(Debug, Serialize)]
pub(crate) struct Limit {
    pub name: &'static str,
    /// What reached it: a way to read, or instructions.
    pub how: &'static str,
    /// Bytes or operations a second, 10^9.
    pub giga_per_second: f64,
    pub unit: &'static str,
}

impl Measured {
    pub(crate) fn of(limits: &measure::Limits) -> Self {
        let read =
            |how, bytes: f64| Limit { name: "memory read", how, giga_per_second: bytes / 1e9, unit: "GB/s" };
        let peak = |name, peak: measure::Peak| Limit {
            name,
            how: peak.instruction,
            giga_per_second: peak.ops_per_second / 1e9,
            unit: "Gop/s",
        };
        let mut all = vec![
            read("one stream a thread", limits.read_one_stream),
            read("4 streams a thread, prefetched", limits.read_four_streams),
            peak("int8", limits.int8),
        ];
        all.extend(limits.int8_exact.map(|p| peak("int8, exact", p)));
        all.push(peak("float32", limits.f32));
        all.extend(limits.bf16.map(|p| peak("bfloat16", p)));
        Measured { threads: limits.threads, limits: all, barrier_microseconds: limits.barrier * 1e6 }
    }
}
