//! Each run as a dot, relative to the median of its figure: what repeats and what does not.

use crate::{METRICS, median, record::Engine};
use margay_observe::report::html_escaped as escaped;

/// Width of the figure, and of the room for names on its left and medians on its right.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 96.0;
/// Height of a row.
const ROW: f64 = 26.0;
/// Top of the first row.
const TOP: f64 = 8.0;

/// The figure; empty where there is nothing to show.
pub(super) fn figure(engine: &Engine) -> String {
    let rows: Vec<(&str, f64, Vec<f64>)> = METRICS
        .iter()
        .filter(|metric| metric.unit == "ms")
        .filter_map(|metric| {
            let values = metric.values(engine);
            let middle = median(&values).filter(|middle| *middle > 0.0)?;
            Some((metric.name, middle, values.into_iter().map(|value| value / middle).collect()))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    // The same scale for all, wide enough for most; what lies beyond stands at the edge as a ring.
    let mut distances: Vec<f64> =
        rows.iter().flat_map(|(.., ratios)| ratios).map(|ratio| (ratio - 1.0).abs()).collect();
    distances.sort_by(f64::total_cmp);
    let most = distances[(distances.len() - 1) * 95 / 100];
    let reach = [0.05, 0.1, 0.2, 0.5, 1.0].into_iter().find(|reach| *reach >= most).unwrap_or(1.0);
    let x =
        |ratio: f64| LEFT + (WIDTH - LEFT - RIGHT) * ((ratio - 1.0) / reach).clamp(-1.0, 1.0).midpoint(1.0);
    let bottom = TOP + ROW * rows.len() as f64;
    let height = bottom + 26.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Runs relative to the median of each figure\">"
    );
    for step in -2..=2 {
        let ratio = 1.0 + reach * f64::from(step) / 2.0;
        let at = x(ratio);
        let percent = 100.0 * (ratio - 1.0);
        let label =
            if step == 0 { "median".to_owned() } else { format!("{percent:+.1} %").replace(".0 %", " %") };
        svg += &format!(
            "<line class=\"{}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            if step == 0 { "axis" } else { "grid" },
            bottom + 17.0
        );
    }
    for (at, (name, middle, ratios)) in rows.iter().enumerate() {
        let y = TOP + ROW * (at as f64 + 0.5);
        svg += &format!(
            "<text class=\"stage\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{} ms</text>",
            LEFT - 12.0,
            y + 4.0,
            escaped(name),
            WIDTH - RIGHT + 12.0,
            y + 4.0,
            super::ms(*middle)
        );
        for ratio in ratios {
            let class = if (ratio - 1.0).abs() > reach { "dot far" } else { "dot" };
            let value = super::ms(ratio * middle);
            svg += &format!(
                "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{} {value} ms</title></circle>",
                x(*ratio),
                escaped(name)
            );
        }
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Begin, Run, StageMs};

    #[test]
    fn dots_lie_left_and_right_of_their_median_and_none_leaves_the_figure() {
        let run = |encode: f64| Run {
            begin: Begin::Warm,
            stages: StageMs { encode: Some(encode), ..StageMs::default() },
            ..Run::default()
        };
        let runs: Vec<Run> = [95.0, 100.0, 104.0, 100.0, 900.0].map(run).to_vec();
        let engine = Engine { runs, ..Engine::default() };
        let svg = figure(&engine);
        let places: Vec<f64> =
            svg.split("cx=\"").skip(1).map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect();
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        assert!(places[0] < middle && (places[1] - middle).abs() < 0.1 && places[2] > middle, "{places:?}");
        assert_eq!(places[4], WIDTH - RIGHT);
        assert_eq!(svg.matches("dot far").count(), 1);
        assert_eq!(figure(&Engine::default()), "");
    }
}
