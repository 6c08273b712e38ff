//! The alternatives as one page that needs nothing but itself: a dot for each, joules by seconds.

use super::report::Report;
use margay_device::{Metric, Outcome, Planned};
use std::fmt::Write as _;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;\
color:#222;background:#fff}pre{overflow-x:auto;font-size:13px}text{font:12px system-ui,sans-serif;fill:currentColor}\
.note{color:#666}circle{fill:#2a78d6;fill-opacity:.7}circle.best{fill:#d6422a}line{stroke:currentColor;\
stroke-opacity:.25}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}.note{color:#999}}";

/// Size of the picture and of its margins, in pixels.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const BELOW: f64 = 45.0;
/// Lines of the grid, each way.
const LINES: u32 = 5;
/// Radius of a dot: of the smallest memory, and of the largest.
const RADIUS: (f64, f64) = (5.0, 14.0);

pub(super) fn page(report: &Report<'_>) -> String {
    let device = &report.space.device.name;
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style><h1>Plans for {0}</h1>\
         <p class=\"note\">Simulated, not measured. A dot is a plan that no other beats in time, energy, memory and \
         quality together; larger dots take more memory, the red one was chosen.</p>",
        escaped(device)
    );
    html += &picture(report);
    let text = report.describe().unwrap_or_default();
    let _ = write!(html, "<pre>{}</pre></html>", escaped(&text));
    html
}

fn picture(report: &Report<'_>) -> String {
    let plans = &report.alternatives;
    let value = |plan: &Planned, metric| plan.value(metric).unwrap_or(0.0);
    let most = |metric| plans.iter().map(|plan| value(plan, metric)).fold(0.0, f64::max).max(1e-9);
    let (seconds, joules, memory) =
        (most(Metric::Time) * 1.1, most(Metric::Energy) * 1.1, most(Metric::Memory));
    let x = |s: f64| LEFT + s / seconds * (WIDTH - LEFT - 20.0);
    let y = |j: f64| HEIGHT - BELOW - j / joules * (HEIGHT - BELOW - 20.0);
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"joules by seconds\">");
    for line in 0..=LINES {
        let part = f64::from(line) / f64::from(LINES);
        let (s, j) = (part * seconds, part * joules);
        let _ = write!(
            svg,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"20\" y2=\"{1:.1}\"/>\
             <text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\">{s:.1}</text>\
             <line x1=\"{LEFT}\" x2=\"{3:.1}\" y1=\"{4:.1}\" y2=\"{4:.1}\"/>\
             <text x=\"{5:.1}\" y=\"{6:.1}\" text-anchor=\"end\">{j:.0}</text>",
            x(s),
            y(0.0),
            y(0.0) + 16.0,
            x(seconds),
            y(j),
            LEFT - 8.0,
            y(j) + 4.0,
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">seconds of an answer</text><text x=\"8\" y=\"14\">joules</text>",
        x(seconds / 2.0),
        HEIGHT - 8.0
    );
    let best = match &report.decision {
        Outcome::Plan { best, .. } => Some(&best.candidate),
        Outcome::Infeasible(_) => None,
    };
    for plan in plans {
        let radius = RADIUS.0 + (RADIUS.1 - RADIUS.0) * value(plan, Metric::Memory) / memory;
        let class = if best == Some(&plan.candidate) { " class=\"best\"" } else { "" };
        let _ = write!(
            svg,
            "<circle{class} cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\"><title>{}</title></circle>",
            x(value(plan, Metric::Time)),
            y(value(plan, Metric::Energy)),
            escaped(&report.short(plan)),
        );
    }
    svg + "</svg>"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
