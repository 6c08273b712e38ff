//! The published study beside the simulator.

use crate::{
    Outcome, output,
    sketch::{Sizes, Sketch},
};
use margay::{KvType, rooms::observe::report::table};
use margay_device::{Fitted, Quantity, Residual, Study, Workload, contradictions};
use serde_json::json;
use std::collections::BTreeMap;

/// In what the study's models are taken to be stored: it does not say.
const TYPE: &str = "q4_0";

pub(super) fn print(as_json: bool) -> anyhow::Result<Outcome> {
    let study = Study::load()?;
    let mut workloads: BTreeMap<String, Workload> = BTreeMap::new();
    for run in &study.runs {
        let sketch = Sketch::named(&format!("shape:{}:{TYPE}", run.shape))?;
        // Any picture: these models take one size.
        let sizes =
            Sizes { picture: (336, 336), prefix: 0, prompt: run.prompt_tokens, answer: run.answer_tokens };
        workloads.insert(run.id.clone(), sketch.workload(KvType::F16, sizes)?);
    }
    let fitted = Fitted::shipped(&study)?;
    let residuals = fitted.residuals(&study, &workloads)?;
    let found = contradictions(&study, &fitted.device, &workloads)?;
    if as_json {
        let row = |r: &Residual| {
            json!({
                "run": r.run, "cell": r.quantity.name(), "paper": r.paper, "simulated": r.simulated,
                "ratio": r.simulated / r.paper, "used": if r.fit { "fit" } else { "held out" },
            })
        };
        let says = found.iter().map(|c| json!({ "what": c.what, "says": c.says, "gives": c.gives }));
        output::json(&json!({
            "cells": residuals.iter().map(row).collect::<Vec<_>>(),
            "contradictions": says.collect::<Vec<_>>(),
        }))?;
        return Ok(Outcome::Done);
    }
    let mut text = "arXiv 2507.08505 on a OnePlus 13R, beside the simulator\n\n".to_owned();
    text += &cells(&residuals);
    text += &summary(&residuals);
    text += "\nassumed of each run, where the paper is silent\n";
    for run in &study.runs {
        text += &format!("  {}: {}\n", run.name, run.assumed);
    }
    if let (Ok(mobile), Some(workload)) =
        (study.run("mobilevlm-llama.cpp"), workloads.get("mobilevlm-llama.cpp"))
    {
        let run = fitted.run(mobile, &workloads)?;
        let rate = run.tokens_per_second().unwrap_or(f64::NAN);
        text += &format!(
            "  at the simulated {rate:.1} tokens a second the {:.1} s that MobileVLM generates would be {:.0} tokens, not {}\n",
            mobile.decode / 1e3,
            mobile.decode / 1e3 * rate,
            workload.query.answer_tokens
        );
    }
    let rows = found.into_iter().map(|c| vec![c.what, c.says, c.gives]).collect();
    text += "\nwhere the paper's numbers do not fit one another, computed from them\n\n";
    text += &output::table_of_words(&["of", "it says", "its numbers give"], rows);
    output::text(&text)?;
    Ok(Outcome::Done)
}

fn cells(residuals: &[Residual]) -> String {
    let rows: Vec<Vec<String>> = residuals
        .iter()
        .map(|r| {
            vec![
                format!("{}: {}", r.run, r.quantity.name()),
                format!("{:.1}", r.paper),
                format!("{:.1}", r.simulated),
                format!("{:.2}", r.simulated / r.paper),
                if r.fit { "fit" } else { "held out" }.to_owned(),
            ]
        })
        .collect();
    table(&["cell", "paper", "simulated", "ratio", "used"], &rows)
}

/// Of the cells that were held out, how far off a typical one is: the geometric mean of max(ratio, 1/ratio).
fn summary(residuals: &[Residual]) -> String {
    let off = |times: bool| {
        let is_time = |r: &Residual| !matches!(r.quantity, Quantity::Watts | Quantity::Celsius);
        let of = |r: &&Residual| !r.fit && is_time(r) == times;
        let logs: Vec<f64> =
            residuals.iter().filter(of).map(|r| (r.simulated / r.paper).ln().abs()).collect();
        let within = logs.iter().filter(|log| **log <= 1.5f64.ln()).count();
        let mean = (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp();
        (mean, within, logs.len())
    };
    let ((time, near, times), (heat, cool, heats)) = (off(true), off(false));
    format!(
        "\nheld out: times are off by a factor of {time:.2} in the geometric mean, {near} of {times} by less than 1.5;\n\
         watts and degrees by {heat:.2}, {cool} of {heats}\n"
    )
}
