//! `GET /metrics`. Source: Prometheus, "Exposition formats", text format 0.0.4. What is unknown has no line.

use crate::{
    app::App,
    machine::Machine,
    metrics::{BOUNDS, Histogram, Served},
};
use margay::GovernorReport;
use std::fmt::Write;

/// The page of all metrics.
pub(crate) fn page(app: &App) -> String {
    let served = app.metrics.served();
    let mut page = Page::default();
    requests(&mut page, &served);
    let load = app.scheduler.load();
    page.one("margay_running", "gauge", "Answers being made.", load.running as f64);
    page.one("margay_waiting", "gauge", "Requests that wait for an answer to begin.", load.waiting as f64);
    // A scheduler that does not tell of its caches has none to tell of.
    if load.cache_bytes > 0 {
        page.one("margay_kv_tokens", "gauge", "Tokens in all KV caches.", load.cached_tokens as f64);
        page.one("margay_kv_bytes", "gauge", "Bytes allocated for KV caches.", load.cache_bytes as f64);
    }
    let uptime = app.clock.now().as_secs_f64();
    page.one("margay_uptime_seconds_total", "counter", "Time since the server started.", uptime);
    machine(&mut page, &app.machine);
    if let Some(governor) = app.model().governor() {
        governed(&mut page, &governor);
    }
    page.text
}

fn requests(page: &mut Page, served: &Served) {
    page.head("margay_requests_total", "counter", "Requests by route and status.");
    for ((route, status), count) in &served.requests {
        page.line(
            "margay_requests_total",
            &format!("{{route=\"{route}\",status=\"{status}\"}}"),
            *count as f64,
        );
    }
    page.head("margay_answers_total", "counter", "Answers by why they ended.");
    for (stop, count) in &served.answers {
        page.line("margay_answers_total", &format!("{{stop=\"{stop}\"}}"), *count as f64);
    }
    page.head("margay_tokens_total", "counter", "Tokens of prompts (reused ones too) and of answers.");
    for (kind, count) in [
        ("prompt", served.prompt_tokens),
        ("reused", served.reused_tokens),
        ("visual", served.visual_tokens),
        ("completion", served.completion_tokens),
    ] {
        page.line("margay_tokens_total", &format!("{{kind=\"{kind}\"}}"), count as f64);
    }
    page.head("margay_stage_seconds", "histogram", "Time of each stage of an answer.");
    for (stage, histogram) in &served.stages {
        page.histogram("margay_stage_seconds", &format!("stage=\"{stage}\""), histogram);
    }
    page.head("margay_first_text_seconds", "histogram", "From a request to the first text of its answer.");
    page.histogram("margay_first_text_seconds", "", &served.first_text);
    page.head("margay_answer_seconds", "histogram", "From a request to the end of its answer.");
    page.histogram("margay_answer_seconds", "", &served.answer);
}

fn machine(page: &mut Page, machine: &Machine) {
    let now = machine.now();
    let sample = &now.sample;
    let gauges = [
        ("margay_resident_bytes", "Resident memory of the process.", sample.rss_bytes.map(|b| b as f64)),
        ("margay_temperature_celsius", "The hottest thermal zone.", sample.temperature_celsius),
        ("margay_power_watts", "Power of what is measured.", sample.power_watts),
        ("margay_cpu_percent", "Processor time of the process; 100 is one core.", sample.process_cpu_percent),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            page.one(name, "gauge", help, value);
        }
    }
    if let Some(joules) = now.joules {
        page.one(
            "margay_joules_total",
            "counter",
            "Energy of what is measured since the first look.",
            joules,
        );
    }
}

fn governed(page: &mut Page, governor: &GovernorReport) {
    page.head("margay_governor_step", "gauge", "Steps down each rung of the governor's ladder.");
    for (rung, moves) in &governor.moves {
        page.line("margay_governor_step", &format!("{{rung=\"{rung}\"}}"), moves.step as f64);
    }
    page.head("margay_governor_moves_total", "counter", "Moves of each rung, by direction.");
    for (rung, moves) in &governor.moves {
        for (way, count) in [("down", moves.down), ("up", moves.up)] {
            let labels = format!("{{rung=\"{rung}\",way=\"{way}\"}}");
            page.line("margay_governor_moves_total", &labels, count as f64);
        }
    }
    let help = "Time for which work rested because the governor asked for it.";
    page.one("margay_governor_rested_seconds_total", "counter", help, governor.rested.as_secs_f64());
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(histogram.buckets) {
            below += count;
            self.line(&format!("{name}_bucket"), &format!("{{{labels}{comma}le=\"{bound}\"}}"), below as f64);
        }
        let all = histogram.count as f64;
        self.line(&format!("{name}_bucket"), &format!("{{{labels}{comma}le=\"+Inf\"}}"), all);
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        self.line(&format!("{name}_sum"), &labels, histogram.sum);
        self.line(&format!("{name}_count"), &labels, all);
    }
}
