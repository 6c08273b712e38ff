//! A trial as one page that needs nothing but itself.

use super::govern::{COLUMNS, head, log, rows};
use margay::rooms::observe::plot::{Figure, Line, STYLE, escaped};
use margay_device::{LADDER, Point, Strategy, Trial, TrialRun};
use std::fmt::Write as _;

/// Heights of figures.
const DEGREES: f64 = 130.0;
const PARTS: f64 = 80.0;

pub(super) fn page(trial: &Trial<'_>, runs: &[TrialRun]) -> String {
    let title = escaped(&format!("Governing {}", trial.device.name));
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>{title}</title>\n<style>{STYLE}pre{{overflow-x:auto;font-size:13px;color:var(--soft)}}\
         td:first-child{{text-align:left}}</style></head>\n<body><main>\n<h1>{title}</h1>\n<p class=\"lead\">{}</p>\n",
        escaped(head(trial).trim_end())
    );
    html += "<div class=\"wide\"><table><thead><tr>";
    html += &COLUMNS.map(|name| format!("<th>{name}</th>")).concat();
    html += "</tr></thead><tbody>\n";
    for row in rows(runs) {
        let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escaped(cell))).collect();
        let _ = writeln!(html, "<tr>{cells}</tr>");
    }
    html += "</tbody></table></div>\n<p class=\"lead\">Unshortened: answers of which nothing but time was taken. Turns: \
             changes of direction of the rung (of other strategies: the switch) with the most of them.</p>\n";
    let ceiling = trial.bounds.ceiling_celsius.unwrap_or(trial.device.thermal.ceiling_celsius.value);
    let lowest = runs.iter().flat_map(|run| &run.trace).map(|point| point.celsius).fold(ceiling, f64::min);
    for (number, run) in runs.iter().enumerate() {
        html += &figures(trial, run, number, ceiling, lowest);
    }
    // Line by line: ends of lines are no text.
    let lines: Vec<String> = log(runs).lines().map(escaped).collect();
    let _ = write!(html, "<h2>Events</h2>\n<pre>{}</pre>\n", lines.join("\n"));
    html += "<h2>The ladder</h2>\n<ul>\n";
    for rung in LADDER {
        let _ = writeln!(html, "<li><b>{}</b>: {}</li>", escaped(rung.id), escaped(rung.about));
    }
    html + "</ul>\n</main></body></html>\n"
}

fn figures(trial: &Trial<'_>, run: &TrialRun, number: usize, ceiling: f64, lowest: f64) -> String {
    let end = trial.time;
    let line = |name, class: &str, value: &dyn Fn(&Point) -> f64| Line {
        name,
        class: class.to_owned(),
        points: run.trace.iter().map(|point| (point.at, Some(value(point)))).collect(),
    };
    let name = run.strategy.name();
    let (heat, parts) = (format!("heat{number}"), format!("parts{number}"));
    let figure = |id, title, unit| Figure { id, title, unit, from: Default::default(), to: end, bands: &[] };
    let degrees = [
        line("ceiling", "line c1", &|_| ceiling),
        line("temperature of the die", "line c0", &|point| point.celsius),
    ];
    let mut shares = vec![line("work", "line c2", &|point| point.speed)];
    let mut depth = "";
    // Of the others the work says it.
    if run.strategy == Strategy::Governor {
        shares.push(line("depth", "line c3", &|point| point.depth));
        depth = " <span><i class=\"key c3\"></i>part of the ladder that is given up</span>";
    }
    format!(
        "<section><h2>{name} <small>°C of the die, work as a part of full speed</small></h2>\n<p class=\"legend\">\
         <span><i class=\"key c0\"></i>temperature</span> <span><i class=\"key c1\"></i>ceiling</span> \
         <span><i class=\"key c2\"></i>work</span> {depth}</p>\n{}\n{}\n</section>\n",
        figure(&heat, name, "°C").lines(&degrees, Some(lowest.floor()), DEGREES),
        figure(&parts, "work and ladder", "part").lines(&shares, Some(0.0), PARTS),
    )
}
