//! A page of its own: figures as in the field's studies, with the stages shaded. No scripts, nothing loaded from elsewhere.

use super::{Writer, terminal};
use crate::{
    MeanMax, Part, Span, Stage, StageStatistics, Timeline, Track,
    notes::notes,
    plot::{Band, Figure, Line, STYLE, escaped},
    report::bytes,
    tracks,
};

#[derive(Debug)]
pub(super) struct Html;

/// Height of a figure of lines.
const HEIGHT: f64 = 170.0;
/// Details of a kind that are drawn beside the main curve; those that rise most.
const MOST_DETAILS: usize = 10;

impl Writer for Html {
    fn id(&self) -> &'static str {
        "html"
    }

    fn summary(&self) -> &'static str {
        "a page with figures: utilisation, temperature, power, memory, stages shaded"
    }

    fn write(&self, timeline: &Timeline) -> std::io::Result<String> {
        Ok(page(timeline))
    }
}

/// Style of a page that holds [`part`].
pub(super) fn style() -> &'static str {
    STYLE
}

/// The table of stages and the figures, for a page of somebody else.
pub(super) fn part(timeline: &Timeline) -> String {
    let stages = timeline.stage_statistics();
    let table = if stages.is_empty() { String::new() } else { stage_table(&stages) };
    table + &figures(timeline)
}

fn page(timeline: &Timeline) -> String {
    let title = if timeline.title.is_empty() { "Timeline" } else { &timeline.title };
    let title = escaped(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title>\n<style>{STYLE}</style></head>\n\
         <body><main>\n<h1>{title}</h1>\n"
    );
    if let Some((from, to)) = timeline.series.range() {
        let seconds = to.saturating_sub(from).as_secs_f64();
        let (count, period) = (timeline.series.samples.len(), timeline.series.period.as_secs_f64() * 1e3);
        page +=
            &format!("<p class=\"lead\">{count} samples in {seconds:.1} s, one each {period:.0} ms</p>\n");
    }
    let stages = timeline.stage_statistics();
    if !stages.is_empty() {
        page += &stage_table(&stages);
    }
    page += &figures(timeline);
    page += "<h2>Notes</h2>\n<ul>\n";
    for note in notes(&timeline.series) {
        page += &format!("<li>{}</li>\n", escaped(&note));
    }
    page += "</ul>\n</main></body></html>\n";
    page
}

fn figures(timeline: &Timeline) -> String {
    let Some((from, to)) = timeline.range() else { return "<p>No samples and no spans.</p>\n".to_owned() };
    let tracks = tracks(&timeline.series);
    let bands = bands(timeline);
    let figure = |id, title, unit| Figure { id, title, unit, from, to, bands: &bands };
    let main =
        |keys: &[&str]| -> Vec<&Track> { tracks.iter().filter(|t| keys.contains(&t.key.as_str())).collect() };
    let details = |group: &str, unit: &str| -> Vec<&Track> {
        tracks.iter().filter(|t| t.detail && t.group == group && t.unit == unit).collect()
    };
    let mut text = legend_of_stages(&bands);
    let cpu = main(&["cpu_percent", "process_cpu_percent"]);
    text += &lines(timeline, &figure("cpu", "CPU", "percent, 100 is one core"), &cpu, &[], Some(0.0));
    let cores = details("processor", "%");
    if !cores.is_empty() {
        let heading = figure("cores", "Cores", "busy share of each core, the stronger the colour the busier");
        let lines: Vec<Line<'_>> = cores.iter().map(|track| line(timeline, track, String::new())).collect();
        text += &section(&heading, "", &heading.heat(&lines, 100.0));
    }
    let accelerators = main(&["gpu_percent", "process_gpu_percent", "npu_percent"]);
    text += &lines(timeline, &figure("gpu", "GPU and NPU", "percent"), &accelerators, &[], Some(0.0));
    let mut zones = details("temperature", "°C");
    let rise = |track: &Track| {
        let known = || track.values.iter().flatten().copied();
        known().fold(f64::MIN, f64::max) - known().next().unwrap_or(0.0)
    };
    zones.sort_by(|a, b| rise(b).total_cmp(&rise(a)));
    zones.truncate(MOST_DETAILS);
    let hottest = main(&["temperature_celsius", "battery_celsius"]);
    text += &lines(timeline, &figure("temperature", "Temperature", "°C"), &hottest, &zones, None);
    let rails = details("power", "W");
    text += &lines(timeline, &figure("power", "Power", "W"), &main(&["power_watts"]), &rails, Some(0.0));
    let memory = main(&["rss_bytes", "anonymous_bytes", "file_bytes", "cgroup_bytes"]);
    text += &lines(timeline, &figure("memory", "Memory", "MiB"), &memory, &[], Some(0.0));
    let clocks: Vec<&Track> =
        details("clock", "Hz").into_iter().filter(|t| t.key.ends_with("_cap_hertz")).collect();
    if !clocks.is_empty() {
        text += &lines(timeline, &figure("caps", "Caps on clocks", "MHz"), &[], &clocks, Some(0.0));
    }
    text
}

/// A figure of main curves and thin ones; those that are unknown are told in words beside it.
fn lines(
    timeline: &Timeline,
    figure: &Figure<'_>,
    main: &[&Track],
    details: &[&Track],
    lowest: Option<f64>,
) -> String {
    let known = main.iter().filter(|track| track.why.is_none());
    let mut curves: Vec<Line<'_>> =
        details.iter().map(|track| line(timeline, track, "line thin".to_owned())).collect();
    let mut legend = String::new();
    for (position, track) in known.enumerate() {
        curves.push(line(timeline, track, format!("line c{position}")));
        legend += &format!("<span><i class=\"key c{position}\"></i>{}</span> ", escaped(&track.name));
    }
    if !details.is_empty() {
        let names: Vec<String> = details.iter().map(|track| escaped(&track.name)).collect();
        let shown = if names.len() > 3 {
            format!("{} and {} more", names[..3].join(", "), names.len() - 3)
        } else {
            names.join(", ")
        };
        legend += &format!("<span><i class=\"key thin\"></i>{shown}</span> ");
    }
    for track in main {
        if let Some(why) = &track.why {
            legend += &format!(
                "<span class=\"unknown\">{}: unknown ({})</span> ",
                escaped(&track.name),
                escaped(why)
            );
        }
    }
    if curves.is_empty() {
        return section(figure, &legend, "");
    }
    section(figure, &legend, &figure.lines(&curves, lowest, HEIGHT))
}

fn section(figure: &Figure<'_>, legend: &str, svg: &str) -> String {
    let (title, unit) = (escaped(figure.title), escaped(figure.unit));
    format!(
        "<section><h2>{title} <small>{unit}</small></h2>\n<p class=\"legend\">{legend}</p>\n{svg}\n</section>\n"
    )
}

fn line<'l>(timeline: &Timeline, track: &'l Track, class: String) -> Line<'l> {
    let scale = match track.unit {
        "bytes" => 1.0 / 1048576.0,
        "Hz" => 1e-6,
        _ => 1.0,
    };
    let samples = timeline.series.samples.iter().zip(&track.values);
    let points = samples.map(|(sample, value)| (sample.at, value.map(|value| value * scale))).collect();
    Line { name: &track.name, class, points }
}

/// Stages as bands; neighbours of one kind, such as tokens, are one band.
fn bands(timeline: &Timeline) -> Vec<Band> {
    let Some((from, to)) = timeline.range() else { return Vec::new() };
    let gap = to.saturating_sub(from) / 200;
    let mut spans: Vec<_> = timeline.spans.iter().collect();
    spans.sort_by_key(|span| span.start);
    let mut bands: Vec<Band> = Vec::new();
    for span in spans {
        let part = span.part.map(Part::name).filter(|part| *part != "token");
        let name =
            part.map_or_else(|| span.stage.name().to_owned(), |part| format!("{} {part}", span.stage.name()));
        let goes_on = |band: &&mut Band| band.name == name && span.start <= band.to + gap;
        match bands.last_mut().filter(goes_on) {
            Some(band) => band.to = band.to.max(span.end()),
            None => bands.push(Band { name, class: class(span), from: span.start, to: span.end() }),
        }
    }
    bands
}

fn class(span: &Span) -> &'static str {
    match span.stage {
        Stage::Prefill if span.part == Some(Part::Text) => "s6",
        Stage::Load => "s0",
        Stage::Preprocess => "s1",
        Stage::Encode => "s2",
        Stage::Project => "s3",
        Stage::Prefill => "s4",
        Stage::Decode => "s5",
    }
}

fn legend_of_stages(bands: &[Band]) -> String {
    let mut seen: Vec<&str> = Vec::new();
    let mut text = String::new();
    for band in bands {
        if !seen.contains(&band.name.as_str()) {
            seen.push(&band.name);
            text += &format!("<span><i class=\"swatch {}\"></i>{}</span> ", band.class, escaped(&band.name));
        }
    }
    if text.is_empty() { text } else { format!("<p class=\"legend\">Stages: {text}</p>\n") }
}

/// A column of the table of stages: its name, and a cell where it is known.
type Column = (&'static str, fn(&StageStatistics) -> Option<String>);

const COLUMNS: &[Column] = &[
    ("CPU, %", |s| two(s.cpu_percent, 0)),
    ("process, %", |s| two(s.process_cpu_percent, 0)),
    ("GPU, %", |s| two(s.gpu_percent, 0)),
    ("NPU, %", |s| two(s.npu_percent, 0)),
    ("power, W", |s| two(s.power_watts, 1)),
    ("energy, J", |s| one(s.gross_joules, 2)),
    ("beyond idle, J", |s| one(s.net_joules, 2)),
    ("peak, °C", |s| one(s.peak_celsius, 1)),
    ("RSS", |s| s.peak_rss_bytes.map(bytes)),
];

fn two(value: Option<MeanMax>, digits: usize) -> Option<String> {
    value.map(|v| format!("{:.digits$} <small>/ {:.digits$}</small>", v.mean, v.max))
}

fn one(value: Option<f64>, digits: usize) -> Option<String> {
    value.map(|v| format!("{v:.digits$}"))
}

/// A row for each stage; columns that no stage knows are named below it.
fn stage_table(stages: &[StageStatistics]) -> String {
    let (shown, hidden): (Vec<&Column>, Vec<&Column>) =
        COLUMNS.iter().partition(|(_, cell)| stages.iter().any(|stage| cell(stage).is_some()));
    let mut text = "<h2>Stages <small>mean / greatest</small></h2>\n<div class=\"wide\"><table><thead>\
                    <tr><th>stage</th><th>spans</th><th>time</th>"
        .to_owned();
    text += &shown.iter().map(|(name, _)| format!("<th>{name}</th>")).collect::<String>();
    text += "</tr></thead><tbody>\n";
    for s in stages {
        let time = time(s.seconds);
        let row = if s.stage.is_none() { "<tr class=\"all\">" } else { "<tr>" };
        text += &format!(
            "{row}<th scope=\"row\">{}</th><td>{}</td><td>{time}</td>",
            escaped(&terminal::name(s)),
            s.spans
        );
        let cells = shown.iter().map(|(_, cell)| format!("<td>{}</td>", cell(s).unwrap_or_else(unknown)));
        text += &cells.collect::<String>();
        text += "</tr>\n";
    }
    text += "</tbody></table></div>\n";
    if !hidden.is_empty() {
        let names: Vec<&str> = hidden.iter().map(|(name, _)| *name).collect();
        text += &format!("<p class=\"unknown\">Unknown in every stage: {}.</p>\n", names.join("; "));
    }
    text
}

/// A time for people: `367.4 µs`, `6.8 ms`, `12.3 s`.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}

fn unknown() -> String {
    "<span class=\"unknown\">unknown</span>".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_apart_from_their_units() {
        assert_eq!([3.674e-4, 6.8e-3, 12.3].map(time), ["367.4 µs", "6.8 ms", "12.3 s"]);
    }
}
