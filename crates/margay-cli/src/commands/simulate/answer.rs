//! A simulated answer as tables.

use crate::output;
use margay::rooms::observe::report::{bytes, table};
use margay_device::{
    AT_RATE, AtRate, Changed, Cloud, Device, Engine, PER_CHARGE, Run, StageRun, Step, Study, Temperatures,
    Workload, at_rate, lesson_speedup, per_charge, speculative_speedup,
};
use serde_json::{Value, json};

/// What was simulated.
pub(super) struct Report<'a> {
    pub device: &'a Device,
    pub engine: &'a Engine,
    pub workload: &'a Workload,
    /// The base, each change, and all of them.
    pub rows: &'a [(String, Run, Changed)],
    pub context: usize,
    pub every: f64,
    pub speculate: Option<(u32, f64, f64)>,
}

/// Seconds and joules of the prompt.
fn prompt(run: &Run) -> (f64, f64) {
    let of = |stage: &&StageRun| matches!(stage.step, Step::PrefillImage | Step::PrefillText);
    let stages = run.stages.iter().filter(of);
    stages.fold((0.0, 0.0), |(seconds, joules), s| (seconds + s.seconds, joules + s.joules))
}

impl Report<'_> {
    fn base(&self) -> &Run {
        &self.rows[0].1
    }

    pub(super) fn describe(&self) -> anyhow::Result<String> {
        let query = &self.workload.query;
        let mut text = String::new();
        let mut fact =
            |name: &str, value: String| text += &format!("{name:<10}{}\n", output::harmless(&value));
        fact("device", format!("{}, {}", self.device.name, self.device.chip));
        let size = bytes(self.workload.weight_bytes as u64);
        fact("model", format!("{}, {size} of weights", self.workload.name));
        fact("engine", format!("{}. {}", self.engine.name, self.engine.about));
        let picture = match query.tiles {
            0 => "no picture".to_owned(),
            1 => format!("a picture of {} visual tokens", query.visual_tokens),
            tiles => format!("a picture of {tiles} tiles, {} visual tokens", query.visual_tokens),
        };
        let (prompt, answer) = (query.prompt_tokens, query.answer_tokens);
        fact("question", format!("{picture}, {prompt} tokens of text; an answer of {answer}"));
        text += "\n";
        text += &self.stages();
        if self.rows.len() > 1 {
            text += "\n";
            text += &self.changes()?;
        }
        text += "\n";
        text += &self.energy()?;
        if let Some((drafts, accepted, cost)) = self.speculate {
            let lesson = lesson_speedup(f64::from(drafts), 1.0 - accepted);
            let standard = speculative_speedup(drafts, accepted, cost);
            text += &format!(
                "\nspeculative decoding, {drafts} drafts, {accepted} accepted, a draft costs {cost}\n  \
                 {standard:.2} times as fast, (1 - a^(g+1)) / ((1 - a)(g c + 1))\n  \
                 {lesson:.2} by the lesson's formula, drafts / (1 + reject): for its exercises, it leaves out what drafts cost\n",
            );
        }
        let numbers = self.device.numbers();
        let assumed = numbers.iter().filter(|(_, stated)| stated.assumed()).count();
        text += &format!(
            "\n{assumed} of the {} numbers of this profile are assumed (--numbers); nothing here was measured.\n",
            numbers.len()
        );
        Ok(text)
    }

    fn stages(&self) -> String {
        let run = self.base();
        let mut rows: Vec<Vec<String>> = run
            .stages
            .iter()
            .map(|stage| {
                let bound = stage.bound.name().to_owned();
                vec![
                    stage.step.name().to_owned(),
                    format!("{:.3}", stage.seconds),
                    format!("{:.2}", stage.joules),
                    format!("{:.1}", stage.peak_celsius),
                    bound,
                ]
            })
            .collect();
        let row = |name: &str, seconds: f64, joules: Option<f64>| {
            let joules = joules.map_or_else(String::new, |joules| format!("{joules:.2}"));
            vec![name.to_owned(), format!("{seconds:.3}"), joules]
        };
        rows.push(row("first token, warm", run.ttft_seconds(), None));
        rows.push(row("answer, warm", run.seconds(), Some(run.joules)));
        rows.push(row("answer, with load", run.seconds() + run.stage_seconds(Step::Load), None));
        let mut text = table(&["stage", "seconds", "joules", "peak C", "waits for"], &rows);
        let speed = run.tokens_per_second().map_or_else(|| "unknown".to_owned(), |rate| format!("{rate:.1}"));
        let slowest = run.slowest;
        let throttled = if slowest < 1.0 {
            format!("heat lowers the frequency to {:.0}%", slowest * 100.0)
        } else {
            "heat lowers no frequency".to_owned()
        };
        text += &format!("{speed} tokens a second, {:.2} W in the mean; {throttled}\n", run.mean_watts());
        let idle: f64 = self.device.unit.iter().map(|unit| unit.idle_watts.value).sum();
        let idle = idle + self.device.idle_watts.value;
        let die = (run.mean_watts() - idle).max(0.0);
        let settled = Temperatures::settled(&self.device.thermal, die, idle);
        text += &format!("asked without a pause and not throttled, the die would settle at {settled:.0} C");
        if let Some(budget) = &self.device.budget_watts {
            text += &format!("; its class may draw {} W for long", budget.value);
        }
        text + "\n"
    }

    fn changes(&self) -> anyhow::Result<String> {
        let base = self.base();
        let memory = |changed: &Changed| changed.workload.bytes(self.context);
        let base_memory = memory(&self.rows[0].2);
        let signed = |now: f64, before: f64| format!("{:+.0}%", (now / before - 1.0) * 100.0);
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|(name, run, changed)| {
                vec![
                    name.clone(),
                    format!("{:.2}", run.ttft_seconds()),
                    format!("{:.2}", run.seconds()),
                    signed(run.seconds(), base.seconds()),
                    format!("{:.1}", run.joules),
                    signed(run.joules, base.joules),
                    format!("{:.2}", run.mean_watts()),
                    format!("{:.1}", run.peak_celsius),
                    bytes(memory(changed) as u64),
                    signed(memory(changed), base_memory),
                ]
            })
            .collect();
        let header = ["what if", "ttft s", "answer s", "", "joules", "", "watts", "peak C", "memory", ""];
        let mut text = table(&header, &rows);
        text += &format!("memory: weights, and keys and values of {} tokens\n", self.context);
        if self.rows.iter().any(|(name, ..)| name.starts_with("gpu")) {
            text += "gpu: at the efficiency that MLC-Imp's prompt evaluation reached in the study (gpu-encode-mlc: its encoding), and the profile's watts\n";
        }
        for claim in Study::load()?.claims {
            if let Some((_, run, changed)) = self.rows.iter().find(|(name, ..)| *name == claim.what_if) {
                let got = match claim.what_if.as_str() {
                    "gpu-prompt" => {
                        let ((before, drawn), (now, draws)) = (prompt(base), prompt(run));
                        let watts = base.mean_watts() / run.mean_watts();
                        format!(
                            "prompt {:.2} times, its power by {:.1} times, that of the whole answer by {watts:.1}",
                            now / before,
                            (drawn / before) / (draws / now)
                        )
                    }
                    "npu-int8-output" => format!("{:.2} W", base.mean_watts() - run.mean_watts()),
                    "kv-int4" => signed(memory(changed), base_memory),
                    _ => {
                        let last = self.rows.last().map_or(0.0, |(_, run, _)| run.hidden_seconds);
                        format!(
                            "{:.2} s hidden alone, {last:.2} beside the other changes",
                            run.hidden_seconds
                        )
                    }
                };
                text +=
                    &format!("  {:<16} study {}: {}; here {got}\n", claim.what_if, claim.place, claim.says);
            }
        }
        if self.rows.iter().any(|(name, ..)| name == "overlap") {
            text += "  overlap hides nothing where one unit does both, and never more than the text before the picture takes\n";
        }
        Ok(text)
    }

    fn energy(&self) -> anyhow::Result<String> {
        let run = self.base();
        let cloud = Cloud::assumed()?;
        let mut text = String::new();
        if let Some(battery) = &self.device.battery {
            let wh = battery.watt_hours.value;
            text += &format!("battery of {wh} Wh: {} answers\n  {PER_CHARGE}\n", per_charge(wh, run.joules));
            let idle = self.device.idle_watts.value;
            match at_rate(wh, self.every, run.seconds(), run.joules, idle) {
                AtRate::Hours(hours) => {
                    text += &format!("one every {} s: {hours:.1} h\n  {AT_RATE}\n", self.every);
                }
                AtRate::TooSlow { continuous_hours } => {
                    text += &format!(
                        "one every {} s: cannot be, an answer takes {:.1} s; without a pause {continuous_hours:.2} h\n",
                        self.every,
                        run.seconds()
                    );
                }
            }
        }
        text += &format!(
            "energy of an answer: {:.1} J here; {:.0} J assumed of a data centre, network and radio (profiles/cloud)\n",
            run.joules,
            cloud.joules()
        );
        Ok(text)
    }

    pub(super) fn json(&self) -> Value {
        let run = |(name, run, changed): &(String, Run, Changed)| {
            let stage = |s: &StageRun| {
                json!({
                    "stage": s.step.name(), "seconds": s.seconds, "joules": s.joules,
                    "peak_celsius": s.peak_celsius, "waits_for": s.bound,
                })
            };
            json!({
                "what_if": name,
                "stages": run.stages.iter().map(stage).collect::<Vec<_>>(),
                "ttft_seconds": run.ttft_seconds(), "seconds": run.seconds(),
                "hidden_seconds": run.hidden_seconds, "joules": run.joules, "mean_watts": run.mean_watts(),
                "peak_celsius": run.peak_celsius, "lowest_frequency": run.slowest,
                "tokens_per_second": run.tokens_per_second(),
                "memory_bytes": changed.workload.bytes(self.context),
            })
        };
        json!({
            "simulated": true,
            "device": self.device.name, "model": self.workload.name, "engine": self.engine.name,
            "context_tokens": self.context,
            "runs": self.rows.iter().map(run).collect::<Vec<_>>(),
        })
    }
}
