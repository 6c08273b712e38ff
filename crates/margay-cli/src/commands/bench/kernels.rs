//! `margay bench kernels`: every kernel at the shapes of real layers.

use crate::{Outcome, Usage, environment, model::ThreadArgs, output, progress::Meter};
use clap::{Args, builder::PossibleValuesParser};
use margay::{
    cpu_backend,
    rooms::{
        cpu::{
            CpuBackend, Isa,
            measure::{
                Limits,
                kernels::{self, Case, Options, Record, Report},
            },
        },
        observe::{Clock, report::table},
    },
};
use serde::Serialize;

const AFTER_HELP: &str = "\
EXAMPLES:
  margay bench kernels                          everything: some minutes
  margay bench kernels --quick                  one shape of each kernel
  margay bench kernels --list --filter 577x
  margay bench kernels --filter gemv/q4_k --threads 1 --json

COLUMNS:
  shape   of products rows x outputs x inputs; of attention queries x keys, heads x head width
  Gop/s   10^9 operations a second; a multiply-add is 2
  GB/s    10^9 bytes a second from and to memory
  %       of the limit that the kernel meets first, measured beside it: bound says which";

/// Below so many percent of its limit a kernel is worth a look.
const POOR_PERCENT: f64 = 25.0;

/// Measure every kernel at the shapes of real layers
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Kernels {
    /// Only kernels and shapes that contain TEXT, in any letter case
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// One shape of each kernel, fewer repetitions
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Instruction set; MARGAY_ISA or the best one unless given
    #[arg(long, value_name = "I", ignore_case = true, value_parser = PossibleValuesParser::new(Isa::ALL.map(Isa::name)))]
    isa: Option<String>,
    /// Print what would be measured
    #[arg(long)]
    list: bool,
    /// Print a JSON list of objects
    #[arg(long)]
    json: bool,
}

/// A record as JSON.
#[derive(Debug, Serialize)]
struct Row<'a> {
    kernel: &'a str,
    isa: &'static str,
    shape: &'a str,
    threads: usize,
    gops: f64,
    gbytes_per_s: f64,
    percent_of_peak: f64,
    bound: &'static str,
}

impl Kernels {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let cases = self.cases()?;
        if self.list {
            return list(&cases, self.json);
        }
        let cpu = self.cpu()?;
        let options =
            if self.quick { Options { repetitions: 3, ..Options::default() } } else { Options::default() };
        let clock = Clock::start();
        let seconds = || clock.now().as_secs_f64();
        let mut meter = Meter::counting();
        let of = cases.len() as u64;
        // Nothing has to be tidied up: Ctrl-C ends the process at once.
        let report = kernels::run(&cpu, &cases, &options, &seconds, &mut |done, case| {
            meter.update(done as u64, of, &format!("{} {}", case.kernel, case.shape));
        })?;
        meter.update(of, of, "done");
        drop(meter);
        if self.json {
            output::json(&report.records.iter().map(Row::of).collect::<Vec<_>>())?;
        } else {
            output::text(&describe(&report, environment::stdout_has_colours()))?;
        }
        Ok(Outcome::Done)
    }

    fn cases(&self) -> anyhow::Result<Vec<Case>> {
        let mut cases = kernels::cases();
        cases.retain(|case| !self.quick || case.quick);
        if let Some(filter) = &self.filter {
            let text = filter.to_lowercase();
            cases.retain(|case| format!("{} {}", case.kernel, case.shape).contains(&text));
            if cases.is_empty() {
                let message =
                    format!("no kernel or shape contains {filter:?}; see margay bench kernels --list");
                return Err(Usage(message).into());
            }
        }
        Ok(cases)
    }

    fn cpu(&self) -> anyhow::Result<CpuBackend> {
        let mut options = self.threads.options();
        options.isa = self.isa.clone().or(options.isa);
        Ok(cpu_backend(&options)?)
    }
}

fn list(cases: &[Case], json: bool) -> anyhow::Result<Outcome> {
    if json {
        let rows = cases.iter().map(|c| serde_json::json!({ "kernel": c.kernel, "shape": c.shape }));
        output::json(&rows.collect::<Vec<_>>())?;
    } else {
        let rows = cases.iter().map(|c| vec![c.kernel.clone(), c.shape.clone()]).collect();
        output::text(&output::table_of_words(&["kernel", "shape"], rows))?;
    }
    Ok(Outcome::Done)
}

impl<'a> Row<'a> {
    fn of(r: &'a Record) -> Self {
        Row {
            kernel: &r.kernel,
            isa: r.isa.name(),
            shape: &r.shape,
            threads: r.threads,
            gops: r.gops,
            gbytes_per_s: r.gbytes_per_s,
            percent_of_peak: r.percent_of_peak,
            bound: r.bound.name(),
        }
    }
}

/// The table, and the limits it was measured against. Where there are `colours`, poor lines are yellow.
fn describe(report: &Report, colours: bool) -> String {
    let rows: Vec<Vec<String>> = report.records.iter().map(cells).collect();
    let text = table(&["kernel", "shape", "Gop/s", "GB/s", "%", "bound"], &rows);
    let poor = |at: usize| at > 0 && report.records[at - 1].percent_of_peak < POOR_PERCENT;
    let lines = text.lines().enumerate().map(|(at, line)| match colours && poor(at) {
        true => format!("\x1b[33m{line}\x1b[0m\n"),
        false => format!("{line}\n"),
    });
    let table: String = lines.collect();
    format!("{table}\n{}", describe_limits(&report.limits))
}

fn cells(r: &Record) -> Vec<String> {
    let gbytes = if r.gbytes_per_s == 0.0 { "-".to_owned() } else { format!("{:.1}", r.gbytes_per_s) };
    vec![
        r.kernel.clone(),
        r.shape.clone(),
        format!("{:.1}", r.gops),
        gbytes,
        format!("{:.0}", r.percent_of_peak),
        r.bound.name().to_owned(),
    ]
}

fn describe_limits(limits: &[Limits]) -> String {
    let Some(last) = limits.last() else { return String::new() };
    let range = |name: &str, unit: &str, how: &str, of: &dyn Fn(&Limits) -> Option<f64>| {
        let values: Vec<f64> = limits.iter().filter_map(of).map(|v| v / 1e9).collect();
        let (least, most) = values.iter().fold((f64::INFINITY, 0.0f64), |(l, m), v| (l.min(*v), m.max(*v)));
        format!("  {name:<12}{least:.1} to {most:.1} {unit}  {how}\n")
    };
    let threads = if last.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", last.threads) };
    let mut text = format!("limits of {threads} and {} instructions, least and most seen\n", last.isa);
    text += &range("memory read", "GB/s", "", &|l| Some(l.read()));
    text += &range("int8", "Gop/s", last.int8.instruction, &|l| Some(l.int8.ops_per_second));
    if let Some(peak) = last.int8_exact {
        text += &range("int8, exact", "Gop/s", peak.instruction, &|l| Some(l.int8_exact?.ops_per_second));
    }
    text += &range("float32", "Gop/s", last.f32.instruction, &|l| Some(l.f32.ops_per_second));
    if let Some(peak) = last.bf16 {
        text += &range("bfloat16", "Gop/s", peak.instruction, &|l| Some(l.bf16?.ops_per_second));
    }
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::rooms::cpu::measure::{Peak, kernels::Bound};

    #[test]
    fn columns_are_aligned_and_poor_lines_stand_out_on_a_terminal() {
        let record = |kernel: &str, percent_of_peak, gbytes_per_s| Record {
            kernel: kernel.to_owned(),
            isa: Isa::Scalar,
            shape: "1x2".to_owned(),
            threads: 2,
            gops: 12.34,
            gbytes_per_s,
            percent_of_peak,
            bound: Bound::Compute,
        };
        let peak = |ops_per_second| Peak { instruction: "i", ops_per_second };
        let limits = |read| Limits {
            isa: Isa::Scalar,
            threads: 2,
            read_one_stream: read,
            read_four_streams: 0.0,
            int8: peak(4e9),
            int8_exact: None,
            f32: peak(2e9),
            bf16: None,
            barrier: 1e-6,
        };
        let report = Report {
            records: vec![record("gemm/f32", 80.0, 1.0), record("softmax/block", 9.6, 0.0)],
            limits: vec![limits(2e10), limits(3e10)],
        };
        let plain = "\
kernel         shape  Gop/s  GB/s   %    bound
gemm/f32         1x2   12.3   1.0  80  compute
softmax/block    1x2   12.3     -  10  compute

limits of 2 threads and scalar instructions, least and most seen
  memory read 20.0 to 30.0 GB/s
  int8        4.0 to 4.0 Gop/s  i
  float32     2.0 to 2.0 Gop/s  i
";
        assert_eq!(describe(&report, false), plain);
        let coloured = describe(&report, true);
        assert!(coloured.contains("\x1b[33msoftmax") && !coloured.contains("mgemm"), "{coloured}");
        assert_eq!(coloured.replace("\x1b[33m", "").replace("\x1b[0m", ""), plain);
    }
}
