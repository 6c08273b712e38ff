//! Every kernel at the shapes of real layers, as `margay bench kernels` measures them.
//!
//! Usage: `cargo bench -p margay-cpu [-- TEXT]`; only kernels and shapes that contain TEXT.
#![allow(clippy::print_stdout, reason = "a bench reports to its reader")]

use margay_cpu::{
    CpuBackend, CpuOptions,
    measure::kernels::{Options, cases, run},
};
use margay_observe::{Clock, report::table};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds options of its own.
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    let mut cases = cases();
    cases.retain(|case| format!("{} {}", case.kernel, case.shape).contains(&filter));
    let cpu = CpuBackend::new(CpuOptions::default())?;
    let clock = Clock::start();
    let seconds = || clock.now().as_secs_f64();
    let report = run(&cpu, &cases, &Options::default(), &seconds, &mut |_, _| {})?;
    let rows: Vec<Vec<String>> = report
        .records
        .iter()
        .map(|r| {
            let figures = [r.gops, r.gbytes_per_s, r.percent_of_peak].map(|f| format!("{f:.1}"));
            let words = [r.kernel.clone(), r.shape.clone()].into_iter();
            words.chain(figures).chain([r.bound.name().to_owned()]).collect()
        })
        .collect();
    println!("{} kernels, {} threads", cpu.isa(), cpu.threads());
    println!("{}", table(&["kernel", "shape", "Gop/s", "GB/s", "%", "bound"], &rows));
    Ok(())
}
