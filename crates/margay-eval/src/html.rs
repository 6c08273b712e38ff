//! The report of a comparison as one page that needs nothing but itself.

use crate::{Difference, Gate, Kind, KlFigures, Limits, Paired, Place};
use std::fmt::Write as _;

const STYLE: &str = "\
:root{--ink:#1d2733;--dim:#66727f;--line:#d8dee5;--paper:#fff;--visual:#2f6fb0;--text:#c26a14;--answer:#3a8a4d;\
--bad:#b3261e}@media(prefers-color-scheme:dark){:root{--ink:#dfe5ec;--dim:#94a0ad;--line:#36404b;--paper:#14191f;\
--visual:#6ba7e6;--text:#e49a52;--answer:#73c186;--bad:#f2857d}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;max-width:62rem;\
padding:0 1rem}h1{font-size:1.5rem;margin-bottom:.3rem}h2{font-size:1.1rem;margin:2.2rem 0 .5rem}\
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid var(--line);\
white-space:nowrap}td:first-child,th:first-child{text-align:left}th{font-weight:600}.dim{color:var(--dim)}\
.bad{color:var(--bad);font-weight:600}.good{color:var(--answer);font-weight:600}.wide{overflow-x:auto}\
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .dim{fill:var(--dim)}svg line{stroke:var(--line)}";

/// Width of a chart, and the room for words on its left, in pixels.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 110.0;

/// What a page tells.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The reference, in words.
    pub reference: &'a str,
    /// The candidate, in words.
    pub candidate: &'a str,
    /// Stages and distributions.
    pub difference: Option<&'a Difference>,
    /// Name of a suite, which questions of it, and both models' answers.
    pub suite: Option<(&'a str, &'a str, &'a Paired)>,
    /// What was allowed.
    pub limits: Limits,
    /// What was not kept.
    pub broken: &'a [Gate],
}

impl Page<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let mut out = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width\"><title>{1} beside {0}</title><style>{STYLE}</style>\
             <h1>{1}</h1><p class=\"dim\">compared with {0}</p>",
            escaped(self.reference),
            escaped(self.candidate)
        );
        self.verdict(&mut out);
        if let Some((name, chosen, paired)) = self.suite {
            suite(&mut out, name, chosen, paired);
        }
        if let Some(difference) = self.difference {
            distributions(&mut out, difference);
            places(&mut out, difference);
            stages(&mut out, difference);
        }
        out
    }

    fn verdict(&self, out: &mut String) {
        for gate in self.broken {
            let found = gate.found.map_or("nothing measured".to_owned(), |found| format!("{found:.4}"));
            let _ = write!(
                out,
                "<p class=\"bad\">{} is broken: {found}, where {} is allowed</p>",
                gate.limit, gate.allowed
            );
        }
        let limited = self.limits.max_kl.is_some() || self.limits.max_drop.is_some();
        if limited && self.broken.is_empty() {
            *out += "<p class=\"good\">All limits hold.</p>";
        }
    }
}

fn suite(out: &mut String, name: &str, chosen: &str, paired: &Paired) {
    let _ = write!(
        out,
        "<h2>Answers: {}</h2><p class=\"dim\">questions: {}</p><table><tr><th>{}<th>value<th>95% interval",
        escaped(name),
        escaped(chosen),
        escaped(paired.reference.headline.name)
    );
    for (who, figure) in [("reference", &paired.reference), ("candidate", &paired.candidate)] {
        let value = figure.value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let ends = figure.interval.map_or(String::new(), |i| format!("{:.2} to {:.2}", i.low, i.high));
        let _ = write!(out, "<tr><td>{who}<td>{value}<td>{ends}");
    }
    *out += "</table>";
    if let (Some(drop), Some(interval)) = (paired.drop, paired.drop_interval) {
        let _ = write!(
            out,
            "<p>The candidate loses {drop:.2} points; 95% of where that lies: {:.2} to {:.2}.",
            interval.low, interval.high
        );
        if let Some(words) = paired.mcnemar_words() {
            let _ = write!(out, " {}.", escaped(&words));
        }
        *out += "</p>";
    }
    let counts = [
        ("both right", paired.both),
        ("only the reference", paired.only_reference),
        ("only the candidate", paired.only_candidate),
        ("neither", paired.neither),
        ("same words", paired.same_answers),
    ];
    *out += "<table><tr>";
    counts.iter().for_each(|(name, _)| *out += &format!("<th>{name}"));
    *out += "<tr>";
    counts.iter().for_each(|(_, count)| *out += &format!("<td>{count}"));
    *out += "</table>";
}

fn distributions(out: &mut String, difference: &Difference) {
    let _ = write!(
        out,
        "<h2>Distributions over the next token</h2><p class=\"dim\">KL(reference || candidate) in nats, over {} \
         questions, at every position from the first visual token on; answers are the reference's, given to both. {} \
         of {} greedy answers are the same.</p><table><tr><th>positions<th>n<th>mean<th>median<th>99%<th>greatest\
         <th>same likeliest token",
        difference.questions, difference.same_answers, difference.questions
    );
    let mut row = |name: &str, kl: &KlFigures| {
        let _ = write!(
            out,
            "<tr><td>{name}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{:.2}%",
            kl.positions,
            short(kl.mean),
            short(kl.median),
            short(kl.p99),
            short(kl.greatest),
            100.0 * kl.same_top1
        );
    };
    if let Some(all) = &difference.all {
        row("all", all);
    }
    difference.kinds.iter().for_each(|(kind, kl)| row(kind.name(), kl));
    *out += "</table>";
}

/// Mean divergence from place to place, one panel a kind, over powers of ten.
fn places(out: &mut String, difference: &Difference) {
    let height = 240.0;
    // What is 0 has no logarithm; it is drawn at the foot.
    let shown = |place: &&Place| place.mean > 0.0 && place.mean.is_finite();
    let logs: Vec<f64> = difference.places.iter().filter(shown).map(|place| place.mean.log10()).collect();
    let Some(top) = logs.iter().copied().reduce(f64::max) else { return };
    let foot = logs.iter().copied().fold(top, f64::min).max(top - 8.0).floor();
    let top = if top.ceil() > foot { top.ceil() } else { foot + 1.0 };
    let y = |mean: f64| {
        let log = if mean > 0.0 { mean.log10().clamp(foot, top) } else { foot };
        20.0 + (top - log) / (top - foot) * (height - 60.0)
    };
    let _ = write!(
        out,
        "<h2>Divergence over positions</h2><p class=\"dim\">mean KL in nats at each place of a kind, powers of ten</p>\
         <div class=\"wide\"><svg width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         aria-label=\"mean divergence over positions\">"
    );
    for power in foot as i32..=top as i32 {
        let at = y(10f64.powi(power));
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"dim\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">1e{power}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    let kinds: Vec<(Kind, Vec<&Place>)> = Kind::ALL
        .into_iter()
        .map(|kind| (kind, difference.places.iter().filter(|place| place.kind == kind).collect()))
        .filter(|(_, places): &(_, Vec<_>)| !places.is_empty())
        .collect();
    let count: usize = kinds.iter().map(|(_, places)| places.len()).sum();
    let gap = 18.0;
    let step = (WIDTH - LEFT - gap * kinds.len() as f64) / count as f64;
    let mut x = LEFT + gap / 2.0;
    for (kind, places) in &kinds {
        let points: String = places
            .iter()
            .enumerate()
            .map(|(at, place)| format!("{:.1},{:.1} ", x + step * (at as f64 + 0.5), y(place.mean)))
            .collect();
        let colour = format!("var(--{})", kind.name());
        let _ = write!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>"
        );
        for (place, point) in places.iter().zip(points.split_whitespace()) {
            let (px, py) = point.split_once(',').unwrap_or_default();
            let _ = write!(
                out,
                "<circle cx=\"{px}\" cy=\"{py}\" r=\"2.4\" fill=\"{colour}\"><title>{} {}: {} ({} questions)</title>\
                 </circle>",
                kind.name(),
                place.place,
                short(place.mean),
                place.questions
            );
        }
        let width = step * places.len() as f64;
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" style=\"fill:{colour}\">{} ({})</text>",
            x + width / 2.0,
            height - 14.0,
            kind.name(),
            places.len()
        );
        x += width + gap;
    }
    *out += "</svg></div>";
}

/// Relative error of each stage as a bar.
fn stages(out: &mut String, difference: &Difference) {
    let (row, bars) = (22.0, WIDTH - LEFT - 190.0);
    let errors = difference.stages.iter().filter_map(|stage| stage.relative_error);
    let most = errors.fold(0.0, f64::max);
    let height = row * difference.stages.len() as f64 + 8.0;
    let _ = write!(
        out,
        "<h2>Stages</h2><p class=\"dim\">relative error: length of the difference over the length of the reference's \
         numbers; beside it the cosine</p><div class=\"wide\"><svg width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         aria-label=\"relative error of each stage\">"
    );
    for (at, stage) in difference.stages.iter().enumerate() {
        let y = row * at as f64 + 4.0;
        let error = stage.relative_error.unwrap_or(0.0);
        let width = if most > 0.0 { bars * error / most } else { 0.0 };
        let words = match (stage.relative_error, stage.cosine) {
            (Some(error), Some(cosine)) => format!("{:.3}%  cos {cosine:.6}", 100.0 * error),
            _ => "unknown".to_owned(),
        };
        let colour = if ["pixels", "encode", "project"].contains(&&*stage.stage) { "visual" } else { "text" };
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{y:.1}\" \
             width=\"{width:.1}\" height=\"15\" rx=\"2\" fill=\"var(--{colour})\"/><text class=\"dim\" x=\"{:.1}\" \
             y=\"{:.1}\">{words}</text>",
            LEFT - 8.0,
            y + 12.0,
            escaped(&stage.stage),
            LEFT + width + 8.0,
            y + 12.0
        );
    }
    *out += "</svg></div>";
}

/// Three digits that count.
fn short(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StageDistance;

    fn difference() -> Difference {
        let kl = KlFigures { positions: 3, mean: 0.5, median: 0.4, p99: 1.0, greatest: 1.0, same_top1: 0.9 };
        let place = |kind, place, mean| Place { kind, place, mean, questions: 1 };
        Difference {
            questions: 1,
            stages: vec![
                StageDistance { stage: "encode".into(), cosine: Some(1.0), relative_error: Some(0.0) },
                StageDistance { stage: "logits".into(), cosine: None, relative_error: None },
            ],
            all: Some(kl),
            kinds: vec![(Kind::Visual, kl)],
            places: vec![
                place(Kind::Visual, 0, 0.0),
                place(Kind::Visual, 1, 0.5),
                place(Kind::Answer, 0, f64::INFINITY),
            ],
            same_answers: 0,
        }
    }

    #[test]
    fn a_page_needs_nothing_else_and_holds_no_tags_of_strangers() {
        let difference = difference();
        let broken = [Gate { limit: "--max-kl", allowed: 0.1, found: Some(0.5) }];
        let limits = Limits { max_kl: Some(0.1), max_drop: None };
        let page = |broken| Page {
            reference: "<script>a",
            candidate: "b & c",
            difference: Some(&difference),
            suite: None,
            limits,
            broken,
        };
        let html = page(&broken).html();
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;a") && html.contains("b &amp; c"));
        assert!(!html.contains("http") && !html.contains("src="));
        assert!(html.contains("--max-kl is broken: 0.5000, where 0.1 is allowed"));
        assert!(!html.contains("NaN") && !html.contains("\"inf"), "{html}");
        assert!(page(&[]).html().contains("All limits hold"));
    }
}
