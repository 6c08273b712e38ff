//! `margay advise`: what a record of `margay bench` suggests, priced.

use super::simulate::device;
use crate::{Outcome, output, recorded, sketch::Sketch};
use clap::Args;
use margay::{KvType, rooms::observe::report::bytes};
use margay_bench::{Advised, Gain, Pricing, Record, advise};
use margay_device::{Changed, Device, Engine, Kind, Precision, Unit, WhatIf, Workload};
use serde_json::json;
use std::path::PathBuf;

const AFTER_HELP: &str = "\
EXAMPLES:
  margay bench llava.gguf --image street.png --sustained 10m --out run.json
  margay advise run.json
  margay advise run.json --json
  margay doctor --profile -o me.toml; margay advise run.json --device me.toml --model llava-1.5-7b:q4_0
                                      prices what only a device's numbers can price, by simulating it

  Each suggestion stands with what was measured, what it would win and by which rule, and a command that tries it. A gain is
  predicted, never measured: run the command, then margay bench compare.";

/// Say what a record of `margay bench` suggests, with the evidence and the price
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Advise {
    /// The record, of margay bench --out
    #[arg(value_name = "RUN.json")]
    record: PathBuf,
    /// The device that it ran on: a name of `margay simulate --list`, or a .toml file of margay doctor --profile
    #[arg(long, value_name = "DEVICE", requires = "model")]
    device: Option<String>,
    /// The model that ran: a shape with a type or recipe behind a colon, or a file
    #[arg(long, value_name = "MODEL", requires = "device")]
    model: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What a simulation needs.
struct Priced {
    device: Device,
    engine: Engine,
    workload: Workload,
}

impl Advise {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        let record = Record::read(&self.record)?;
        let priced = self.priced(&record)?;
        let simulate = |changes: &[WhatIf]| {
            let Priced { device, engine, workload } = priced.as_ref()?;
            let seconds = |changes: &[WhatIf]| {
                Some(Changed::new(engine, workload, changes).ok()?.run(device).ok()?.seconds())
            };
            Some((seconds(&[])?, seconds(changes)?))
        };
        let pricing = priced.as_ref().map(|priced| Pricing {
            simulate: &simulate,
            int8_over_float: priced.device.units(Kind::Cpu).next().and_then(int8_over_float),
        });
        let advised = advise(&record, pricing);
        if self.json {
            output::json(&json!({ "model": record.model.name, "advised": advised }))?;
        } else {
            output::text(&output::harmless(&describe(&record, &advised)))?;
        }
        Ok(Outcome::Done)
    }

    fn priced(&self, record: &Record) -> anyhow::Result<Option<Priced>> {
        let Some((name, model)) = self.device.as_deref().zip(self.model.as_deref()) else { return Ok(None) };
        let sketch = Sketch::named(model)?;
        let workload = sketch.workload(KvType::F16, recorded::sizes(record, &sketch)?)?;
        Ok(Some(Priced { device: device(name)?, engine: Engine::named("margay")?, workload }))
    }
}

fn int8_over_float(unit: &Unit) -> Option<f64> {
    let float = unit.rate(Precision::F16).or_else(|| unit.rate(Precision::F32))?;
    Some(unit.rate(Precision::Int8)? / float)
}

fn describe(record: &Record, advised: &Advised) -> String {
    let mut text = format!(
        "{} on {}\n\n",
        record.model.name,
        record.device.cpu.as_deref().unwrap_or("an unknown processor")
    );
    for (at, advice) in advised.advice.iter().enumerate() {
        text += &format!("{}. {} (against {}: {})\n", at + 1, advice.what, advice.against, advice.id);
        text += &format!("   measured  {}\n", advice.evidence);
        match &advice.gain {
            Some(gain) => text += &format!("   gain      {}\n             {}\n", price(gain), gain.by),
            None => text += "   gain      unknown: the record does not tell; the command does\n",
        }
        text += &format!("   try       {}\n\n", advice.command);
    }
    if advised.advice.is_empty() {
        text += "Nothing to gain: none of what is looked at stands out.\n\n";
    }
    for warning in &record.protocol.warnings {
        text += &format!("warning   {warning}\n");
    }
    for (title, list) in [("fine", &advised.fine), ("not told", &advised.unknown)] {
        for (id, why) in list {
            text += &format!("{title:<9} {id}: {why}\n");
        }
    }
    text
}

/// `answer 4000 ms -> 1700 ms (-58 %)`.
fn price(gain: &Gain) -> String {
    let number = |value: f64| match gain.unit {
        "bytes" => bytes(value as u64),
        "ms" => format!("{value:.0} ms"),
        "percent" => format!("{value:.0} %"),
        _ => format!("{value:.1} {}", gain.unit.replace("1/s", "a second")),
    };
    let change = 100.0 * (gain.after / gain.before - 1.0);
    format!("{} {} -> {} ({change:+.0} %)", gain.of, number(gain.before), number(gain.after))
}
