//! A decision as text: what, why, instead of what, or which limit forbids it.

use crate::output;
use margay::rooms::observe::report::table;
use margay_device::{Cloud, Infeasible, Kind, Limit, Metric, Outcome, Planned, Quality, Space, Variant};
use serde_json::{Value, json};

/// Rows of the front that are shown.
const SHOWN: usize = 16;

/// What was decided.
pub(super) struct Report<'a> {
    pub space: &'a Space<'a>,
    pub limits: &'a [Limit],
    pub decision: Outcome,
    /// The Pareto front.
    pub alternatives: Vec<Planned>,
    /// What would be chosen without each limit.
    pub costs: Vec<(Limit, Planned)>,
}

impl Report<'_> {
    fn variant(&self, planned: &Planned) -> &Variant {
        &self.space.variants[planned.candidate.variant]
    }

    fn cores(&self, planned: &Planned) -> String {
        let clusters = self.space.device.units(Kind::Cpu).zip(&planned.candidate.cores);
        let used: Vec<String> = clusters
            .filter(|(_, used)| **used > 0)
            .map(|(unit, used)| format!("{used} of {} {}", unit.cores, unit.id))
            .collect();
        used.join(", ")
    }

    fn units(&self, planned: &Planned) -> String {
        let engine = &self.space.engines[planned.candidate.engine];
        let parts = [("encode", &engine.encode), ("prefill", &engine.prefill), ("decode", &engine.decode)];
        parts.map(|(stage, place)| format!("{stage} {}", place.unit.name())).join(", ")
    }

    pub(super) fn short(&self, planned: &Planned) -> String {
        let engine = &self.space.engines[planned.candidate.engine];
        let places = [&engine.encode, &engine.prefill, &engine.decode];
        let on = |kind: Kind| places.iter().any(|place| place.unit == kind);
        let cores: usize = planned.candidate.cores.iter().sum();
        let cores = match cores {
            _ if !on(Kind::Cpu) => String::new(),
            1 => ", 1 core".to_owned(),
            cores => format!(", {cores} cores"),
        };
        let units =
            if on(Kind::Gpu) || on(Kind::Npu) { format!("; {}", self.units(planned)) } else { String::new() };
        let Variant { model, recipe, kv, picture, .. } = self.variant(planned);
        format!("{model}:{recipe}, kv {kv}, {picture}{cores}{units}")
    }

    pub(super) fn describe(&self) -> anyhow::Result<String> {
        let mut text = format!("device    {}, {}\n", self.space.device.name, self.space.device.chip);
        match &self.decision {
            Outcome::Plan { best, candidates, simulated } => {
                text += &self.chosen(best)?;
                text += &format!(
                    "\n{candidates} candidates, {simulated} simulated until no other could be better\n"
                );
            }
            Outcome::Infeasible(why) => text += &self.infeasible(why),
        }
        if !self.alternatives.is_empty() {
            text += "\nwhat no other beats in time, energy, memory and quality together\n";
            text += &self.table(self.alternatives.iter().take(SHOWN));
            if self.alternatives.len() > SHOWN {
                text += &format!("and {} more (--json)\n", self.alternatives.len() - SHOWN);
            }
        }
        text += &format!(
            "\nquality: {}; of this model there is no table. Times, watts and degrees are simulated, not measured.\n",
            Quality::nano()?.source
        );
        Ok(text)
    }

    fn chosen(&self, best: &Planned) -> anyhow::Result<String> {
        let variant = self.variant(best);
        let engine = &self.space.engines[best.candidate.engine];
        let mut text = String::new();
        let mut fact =
            |name: &str, value: String| text += &format!("{name:<10}{}\n", output::harmless(&value));
        fact("model", variant.model.clone());
        fact("weights", format!("{}: {}", variant.recipe, variant.formats));
        fact("cache", variant.kv.clone());
        fact("picture", variant.picture.clone());
        let places = [&engine.encode, &engine.prefill, &engine.decode];
        if places.iter().any(|place| place.unit == Kind::Cpu) {
            fact("cores", self.cores(best));
        }
        fact("stages", self.units(best));
        fact("assumed", engine.about.clone());
        let threads: usize = best.candidate.cores.iter().sum();
        fact("make it", format!("margay quantize MODEL -o SMALL.gguf --recipe {}", variant.recipe));
        if places.iter().all(|place| place.unit == Kind::Cpu) {
            // `72 tokens (--keep-image-tokens 50%)`
            let taken =
                variant.picture.split_once('(').map_or("", |(_, option)| option.trim_end_matches(')'));
            let run = format!("margay run SMALL.gguf --kv {} --threads {threads} {taken}", variant.kv);
            fact("run it", run.trim_end().to_owned());
        }
        let all = Metric::ALL.into_iter().map(|metric| {
            let limit = self.limits.iter().find(|limit| limit.metric == metric);
            let value = best.value(metric);
            let room = limit.zip(value).map(|(limit, value)| format!("{:.0}%", -100.0 * limit.excess(value)));
            vec![
                metric.name().to_owned(),
                value.map_or_else(|| "unknown".to_owned(), |value| exact(metric, value)),
                limit.map_or_else(String::new, |limit| limit.to_string()),
                room.unwrap_or_default(),
            ]
        });
        text += &format!("\n{}", table(&["", "value", "limit", "room"], &all.collect::<Vec<_>>()));
        let cloud = Cloud::assumed()?;
        text += &format!(
            "energy beside {:.0} J that an answer of a data centre, network and radio is assumed to take\n",
            cloud.joules()
        );
        if !self.costs.is_empty() {
            text += "\nwhat each limit costs: without it the choice would be\n";
            let rows: Vec<Vec<String>> = self
                .costs
                .iter()
                .map(|(limit, other)| {
                    let what = if other.candidate == best.candidate {
                        "the same".to_owned()
                    } else {
                        self.short(other)
                    };
                    vec![
                        limit.to_string(),
                        format!("{:.2}", other.run.seconds()),
                        format!("{:.1}", other.run.joules),
                        what,
                    ]
                })
                .collect();
            text += &output::table_of_words(&["without", "answer s", "joules", "choice"], rows);
        }
        Ok(text)
    }

    fn infeasible(&self, why: &Infeasible) -> String {
        let mut text = "no plan keeps every limit\n".to_owned();
        let shown = |metric: Metric, value: Option<f64>| {
            value.map_or_else(|| "unknown".to_owned(), |value| exact(metric, value))
        };
        if let (Some((limit, value)), Some(nearest)) = (why.broken.first(), &why.nearest) {
            let over = value.map_or_else(String::new, |value| {
                let difference = limit.metric.show((value - limit.value).abs());
                let side = if limit.metric.at_most() { "over" } else { "short" };
                format!(", {difference} ({:.0}%) {side}", 100.0 * limit.excess(value))
            });
            text += &format!(
                "tightest  {limit}: the nearest candidate has {}{over}\nnearest   {}\n",
                shown(limit.metric, *value),
                self.short(nearest)
            );
            for (limit, value) in &why.broken[1..] {
                text += &format!("          it breaks {limit} too, with {}\n", shown(limit.metric, *value));
            }
        }
        let rows: Vec<Vec<String>> = why
            .alone
            .iter()
            .map(|(limit, best)| {
                let can = best.is_some_and(|best| limit.holds(best));
                let can = if can { "can be kept alone" } else { "cannot be kept by any candidate" };
                vec![limit.to_string(), shown(limit.metric, *best), can.to_owned()]
            })
            .collect();
        text += "\neach limit alone\n";
        text += &output::table_of_words(&["limit", "best there is", ""], rows);
        text
    }

    fn table<'p>(&self, plans: impl Iterator<Item = &'p Planned>) -> String {
        let cell = |planned: &Planned, metric: Metric| {
            planned.value(metric).map_or_else(|| "unknown".to_owned(), |value| metric.show(value))
        };
        let metrics = [
            Metric::Ttft,
            Metric::Time,
            Metric::Energy,
            Metric::Power,
            Metric::Temperature,
            Metric::Memory,
            Metric::Quality,
        ];
        let rows = plans.map(|planned| {
            let values = metrics.map(|metric| cell(planned, metric));
            values.into_iter().chain([self.short(planned)]).collect::<Vec<_>>()
        });
        let header = ["ttft", "answer", "energy", "power", "peak", "memory", "quality", "plan"];
        output::table_of_words(&header, rows.collect())
    }

    pub(super) fn json(&self) -> Value {
        let planned = |p: &Planned| {
            let variant = self.variant(p);
            let values: serde_json::Map<String, Value> =
                Metric::ALL.into_iter().map(|m| (m.name().to_owned(), json!(p.value(m)))).collect();
            json!({
                "model": variant.model, "recipe": variant.recipe, "formats": variant.formats, "kv": variant.kv, "picture": variant.picture,
                "cores": p.candidate.cores, "stages": self.units(p), "values": values,
            })
        };
        let limit = |(limit, value): &(Limit, Option<f64>)| json!({ "limit": limit.metric.name(), "bound": limit.value, "value": value });
        let decision = match &self.decision {
            Outcome::Plan { best, candidates, simulated } => {
                json!({ "plan": planned(best), "candidates": candidates, "simulated": simulated })
            }
            Outcome::Infeasible(why) => json!({
                "plan": null,
                "nearest": why.nearest.as_deref().map(planned),
                "broken": why.broken.iter().map(limit).collect::<Vec<_>>(),
                "alone": why.alone.iter().map(limit).collect::<Vec<_>>(),
            }),
        };
        json!({
            "simulated": true, "device": self.space.device.name, "decision": decision,
            "front": self.alternatives.iter().map(planned).collect::<Vec<_>>(),
        })
    }
}

/// Memory to the byte.
fn exact(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Memory => format!("{} = {value:.0} B", metric.show(value)),
        _ => metric.show(value),
    }
}
