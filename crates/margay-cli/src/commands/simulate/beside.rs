//! What is simulated beside what was measured on the same machine.

use crate::{output, recorded};
use margay::rooms::observe::report::table;
use margay_bench::Record;
use margay_device::{Device, Engine, Kind, Run, Step, Workload};
use serde_json::{Value, json};

/// Steps of a simulated answer that one measured stage holds.
const STAGES: [(&str, &str, &[Step]); 5] = [
    ("load (cold)", "load_ms", &[Step::Load]),
    ("encode", "encode_ms", &[Step::Encode]),
    ("project", "project_ms", &[Step::Project]),
    ("prefill", "prefill_ms", &[Step::PrefillImage, Step::PrefillText]),
    ("decode", "decode_ms", &[Step::Decode]),
];

/// A simulated answer and the record of a real one.
pub(super) struct Beside<'a> {
    pub record: &'a Record,
    pub device: &'a Device,
    pub engine: &'a Engine,
    pub workload: &'a Workload,
    pub run: &'a Run,
}

struct Row {
    stage: &'static str,
    simulated_ms: f64,
    measured_ms: Option<f64>,
    /// Of the unit's speed, and of the memory's, by what was measured.
    reached: Option<(f64, f64)>,
    assumed: (f64, f64),
}

impl Beside<'_> {
    fn rows(&self) -> Vec<Row> {
        let row = |(stage, key, steps): &(&'static str, &str, &[Step])| {
            let simulated: f64 = steps.iter().map(|step| self.run.stage_seconds(*step)).sum();
            let measured_ms = recorded::figure(self.record, key);
            let placement = self.engine.placement(steps[0]);
            let computes = measured_ms.filter(|ms| *ms > 0.0 && steps[0] != Step::Load);
            let reached = computes.map(|ms| {
                let works = steps.iter().map(|step| self.workload.work(*step));
                let (operations, bytes) =
                    works.fold((0.0, 0.0), |(o, b), work| (o + work.operations(), b + work.bytes()));
                let units = || self.device.units(Kind::Cpu);
                let rate: f64 = units().filter_map(|unit| unit.rate(placement.precision)).sum();
                let drawn: f64 = units().map(|unit| unit.bytes_per_second.value).sum();
                let width = drawn.min(self.device.memory.bytes_per_second.value);
                (operations * 1e3 / ms / rate, bytes * 1e3 / ms / width)
            });
            let assumed = (placement.compute.value, placement.bandwidth.value);
            Row { stage, simulated_ms: simulated * 1e3, measured_ms, reached, assumed }
        };
        let known = |row: &Row| row.simulated_ms > 0.0 || row.measured_ms.is_some();
        STAGES.iter().map(row).filter(known).collect()
    }

    pub(super) fn describe(&self) -> String {
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        let row = |row: Row| {
            let unknown = || "unknown".to_owned();
            let reached = |part: fn((f64, f64)) -> f64| {
                row.reached.map_or_else(|| "-".to_owned(), |r| percent(part(r)))
            };
            let load = row.stage.starts_with("load");
            let assumed = |part: f64| if load { "-".to_owned() } else { percent(part) };
            vec![
                row.stage.to_owned(),
                format!("{:.2}", row.simulated_ms),
                row.measured_ms.map_or_else(unknown, |ms| format!("{ms:.2}")),
                row.measured_ms
                    .filter(|ms| *ms > 0.0)
                    .map_or_else(unknown, |ms| format!("{:.2}", row.simulated_ms / ms)),
                assumed(row.assumed.0),
                reached(|r| r.0),
                assumed(row.assumed.1),
                reached(|r| r.1),
            ]
        };
        let rows: Vec<Vec<String>> = self.rows().into_iter().map(row).collect();
        let header = [
            "stage",
            "simulated ms",
            "measured ms",
            "ratio",
            "compute assumed",
            "reached",
            "bandwidth assumed",
            "reached",
        ];
        let mut text = format!(
            "{} on {}\nsimulated with {}; measured: medians of the record\n\n",
            self.workload.name, self.device.name, self.engine.name
        );
        text += &table(&header, &rows);
        text += "\nassumed: the part of the profile's rate that the engine's file takes; reached: operations and bytes of the stage over\n\
                 the measured time, as parts of the profile's rates. The record's machine is taken to be the profile's.\n";
        output::harmless(&text).into_owned()
    }

    pub(super) fn json(&self) -> Value {
        let row = |row: Row| {
            json!({
                "stage": row.stage, "simulated_ms": row.simulated_ms, "measured_ms": row.measured_ms,
                "compute_assumed": row.assumed.0, "bandwidth_assumed": row.assumed.1,
                "compute_reached": row.reached.map(|r| r.0), "bandwidth_reached": row.reached.map(|r| r.1),
            })
        };
        json!({
            "device": self.device.name, "model": self.workload.name, "engine": self.engine.name,
            "stages": self.rows().into_iter().map(row).collect::<Vec<_>>(),
        })
    }
}
