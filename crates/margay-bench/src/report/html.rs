//! One page of its own: nothing is loaded from elsewhere, and it is light or dark as the reader's system is.

use super::{Column, NESTING, columns, dots, engine_rows, median_timeline, ms, terminal::facts, token_times};
use crate::{
    Begin, METRICS, Record,
    record::{MARGAY, Sustained},
    summary,
};
use margay_observe::{
    Timeline,
    report::{bytes, html_escaped as escaped, html_figures, html_style},
};

const STYLE: &str = include_str!("page.css");

/// The page of a record; `timelines` are those of Margay's runs, by position, and `long` is that of the sustained run.
pub fn page(
    record: &Record,
    timelines: &[Timeline],
    long: Option<&Timeline>,
    period_seconds: f64,
    watt_hours: Option<f64>,
) -> String {
    let title = escaped(&format!("{} measured", record.model.name));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title>\n<style>{}{STYLE}</style></head>\n\
         <body><main>\n<h1>{title}</h1>\n",
        html_style()
    );
    page += &lead(record);
    page += &warnings(record);
    page += &headline(record);
    page += &engines(record);
    let Some(engine) = record.engine(MARGAY) else { return page + "</main></body></html>\n" };
    page += &stages(record);
    let work = super::work_rows(record);
    if !work.is_empty() {
        page += "<h2>Work <small>of a question, counted from the programs; rates by the median run</small></h2>\n";
        page += &plain_table(&super::WORK_HEADER, &work);
    }
    for stage in &record.ops {
        page += &format!("<h2>Ops <small>{}</small></h2>\n", escaped(&super::ops_title(stage)));
        page += &plain_table(&super::OPS_HEADER, &super::op_rows(stage));
    }
    page += "<h2>Runs <small>each dot is a run, relative to the median of its row</small></h2>\n";
    page += &dots::figure(engine);
    page += "<h2>Facts</h2>\n<dl>\n";
    for (name, words) in facts(record, period_seconds, watt_hours) {
        page += &format!("<dt>{}</dt><dd>{}</dd>\n", escaped(name), escaped(&words));
    }
    page += "</dl>\n";
    if let Some(sustained) = &record.sustained {
        page += &sustained_part(sustained);
    }
    if let Some(timeline) = median_timeline(record, timelines) {
        page += "<h2 class=\"part\">The run nearest to the median</h2>\n";
        page += &html_figures(timeline);
    }
    if let Some(timeline) = long {
        page += "<h2 class=\"part\">The sustained run</h2>\n";
        page += &html_figures(timeline);
    }
    page + "</main></body></html>\n"
}

fn lead(record: &Record) -> String {
    let (d, p, q) = (&record.device, &record.protocol, &record.question);
    let cpu = d.cpu.as_deref().unwrap_or("unknown processor");
    let cores = d.logical_cores.map_or_else(|| "unknown".to_owned(), |cores| cores.to_string());
    let pictures: Vec<String> =
        q.pictures.iter().map(|p| format!("{} ({} × {})", p.name, p.width, p.height)).collect();
    let of = if pictures.is_empty() { String::new() } else { format!(" — {}", pictures.join(", ")) };
    let stopped = if record.stopped { " Stopped before its end." } else { "" };
    format!(
        "<p class=\"lead\">{}, {cores} processors. “{}”{}. {} rounds, {} before them that do not count.{stopped}</p>\n",
        escaped(cpu),
        escaped(&q.prompt),
        escaped(&of),
        p.repeat,
        p.warmup
    )
}

fn warnings(record: &Record) -> String {
    let items: String = record.protocol.warnings.iter().map(|w| format!("<li>{}</li>", escaped(w))).collect();
    if items.is_empty() { items } else { format!("<ul class=\"warnings\">{items}</ul>\n") }
}

/// The numbers that a reader looks for first.
fn headline(record: &Record) -> String {
    let Some(engine) = record.engine(MARGAY) else { return String::new() };
    let of = |key: &str| {
        let metric = METRICS.iter().find(|metric| metric.key == key);
        metric.and_then(|metric| crate::median(&metric.values(engine)))
    };
    let time = |key: &str| of(key).map(|value| (ms(value), "ms"));
    let frames = engine.runs.iter().filter(|run| run.begin == Begin::Warm).filter_map(|run| run.heartbeat);
    let (all, missed) = frames.fold((0, 0), |(all, missed), beat| (all + beat.frames, missed + beat.missed));
    let share = (all > 0).then(|| (format!("{:.1}", 100.0 * missed as f64 / all as f64), "%"));
    let energy = crate::energies(record).query_joules.map(|joules| (format!("{joules:.2}"), "J"));
    let rss = engine.runs.iter().filter_map(|run| run.peak_rss_bytes).max().map(bytes);
    let rss =
        rss.as_deref().and_then(|text| text.split_once(' ')).map(|(number, unit)| (number.to_owned(), unit));
    let cards = [
        ("first token", time("ttft_ms")),
        ("answer, without load", time("without_load_ms")),
        ("answer, with load", time("with_load_ms")),
        ("tokens a second", of("tokens_per_second").map(|rate| (format!("{rate:.1}"), ""))),
        ("energy beyond idle", energy),
        ("peak memory", rss),
        ("frames missed", share),
    ];
    let card = |(name, value): (&str, Option<(String, &str)>)| {
        let value = value.map_or_else(
            || "<b class=\"unknown\">unknown</b>".to_owned(),
            |(number, unit)| format!("<b>{number} <small>{unit}</small></b>"),
        );
        format!("<div>{value}<span>{name}</span></div>")
    };
    format!("<div class=\"cards\">{}</div>\n", cards.map(card).concat())
}

/// Every engine beside each other, in the columns of the field's studies; those that nobody knows are left out.
fn engines(record: &Record) -> String {
    let rows = engine_rows(record);
    let columns = columns(&rows);
    let class = |name: &str| if name.ends_with("load") && name != "load" { " class=\"total\"" } else { "" };
    let heads: String = columns.iter().map(|(name, _)| format!("<th{}>{name}</th>", class(name))).collect();
    let mut text = format!(
        "<h2>Engines <small>medians in ms</small></h2>\n<div class=\"wide\"><table><thead><tr><th>engine</th>{heads}\
         <th>runs</th></tr></thead><tbody>\n"
    );
    for row in &rows {
        let cell = |(name, cell): &Column| {
            let value = cell(row).unwrap_or_else(|| "<span class=\"unknown\">–</span>".to_owned());
            format!("<td{}>{value}</td>", class(name))
        };
        let cells: String = columns.iter().map(cell).collect();
        let name = escaped(&row.name);
        text += &format!("<tr><th scope=\"row\">{name}</th>{cells}<td>{}</td></tr>\n", row.runs);
    }
    text += &format!("</tbody></table></div>\n<p class=\"lead\">{}</p>\n", escaped(NESTING));
    for engine in record.engines.iter().filter(|engine| engine.command.is_some()) {
        let command = escaped(engine.command.as_deref().unwrap_or_default());
        text += &format!("<p class=\"lead\">{}: <code>{command}</code></p>\n", escaped(&engine.name));
    }
    text
}

/// Figures of Margay's stages.
fn stages(record: &Record) -> String {
    let Some(engine) = record.engine(MARGAY) else { return String::new() };
    let mut text =
        "<h2>Stages <small>of margay, ms</small></h2>\n<div class=\"wide\"><table><thead><tr><th>stage</th>\
                    <th>mean</th><th>deviation</th><th>p50</th><th>p95</th><th>p99</th><th>runs</th>\
                    <th>also called</th></tr></thead><tbody>\n"
            .to_owned();
    let mut row = |name: &str, values: &[f64], field_name: &str| {
        let cells = match summary(values) {
            Some(s) => {
                let deviation = s.deviation.map_or_else(|| "–".to_owned(), ms);
                let numbers = [ms(s.mean), deviation, ms(s.p50), ms(s.p95), ms(s.p99), s.count.to_string()];
                numbers.map(|number| format!("<td>{number}</td>")).concat()
            }
            None => "<td class=\"unknown\" colspan=\"6\">unknown</td>".to_owned(),
        };
        text += &format!(
            "<tr><th scope=\"row\">{}</th>{cells}<td>{}</td></tr>\n",
            escaped(name),
            escaped(field_name)
        );
    };
    for metric in METRICS.iter().filter(|metric| metric.is_told(engine)) {
        row(metric.name, &metric.values(engine), metric.field_name);
    }
    row("each token", &token_times(engine), "ITL");
    text + "</tbody></table></div>\n"
}

/// A table of cells; the first column names the row.
fn plain_table(header: &[&str], rows: &[Vec<String>]) -> String {
    let heads: String = header.iter().map(|head| format!("<th>{}</th>", escaped(head))).collect();
    let row = |row: &Vec<String>| {
        let cell = |(at, cell): (usize, &String)| match at {
            0 => format!("<th scope=\"row\">{}</th>", escaped(cell)),
            _ => format!("<td>{}</td>", escaped(cell)),
        };
        format!("<tr>{}</tr>\n", row.iter().enumerate().map(cell).collect::<String>())
    };
    let rows: String = rows.iter().map(row).collect();
    format!(
        "<div class=\"wide\"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )
}

fn sustained_part(s: &Sustained) -> String {
    let factor = s.factor.map_or_else(|| "unknown".to_owned(), |factor| format!("{factor:.2}"));
    let mut text = format!(
        "<h2>Sustained <small>factor {factor}: the last rate over the first, {:.0} s each</small></h2>\n\
         <div class=\"wide\"><table><thead><tr><th>at</th><th>tokens/s</th><th>answers/min</th></tr></thead><tbody>\n",
        s.window_seconds
    );
    for mark in &s.marks {
        let rate = mark.tokens_per_second.map_or_else(|| "unknown".to_owned(), |rate| format!("{rate:.1}"));
        text += &format!(
            "<tr><th scope=\"row\">{}</th><td>{rate}</td><td>{:.1}</td></tr>\n",
            super::moment(mark.seconds),
            mark.answers_per_minute
        );
    }
    text + &format!("</tbody></table></div>\n<p class=\"lead\">{}</p>\n", escaped(&s.caps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Engine, Run};

    #[test]
    fn a_page_loads_nothing_and_takes_no_text_for_markup() {
        let mut record = Record::default();
        record.model.name = "<script>alert(1)</script>".to_owned();
        record.question.prompt = "\"><img src=x>".to_owned();
        let run = Run { text: Some("<b>x</b>".to_owned()), ..Run::default() };
        record.engines = vec![
            Engine { name: MARGAY.to_owned(), command: None, runs: vec![run] },
            Engine { name: "command".to_owned(), command: Some("sh -c '<i>'".to_owned()), runs: vec![] },
        ];
        record.protocol.warnings = vec!["<u>".to_owned()];
        let page = page(&record, &[], None, 60.0, None);
        for bad in ["<script", "<img", "<b>x", "<i>", "<u>", "http://", "https://"] {
            assert!(!page.contains(bad), "{bad}");
        }
        assert!(page.contains("unknown") && page.contains("prefers-color-scheme:dark"));
        assert!(page.ends_with("</html>\n"));
    }
}
