//! For the terminal.

use super::{EngineRow, NESTING, columns, engine_rows, ms, ms_or_unknown, token_times};
use crate::{
    Begin, Comparison, METRICS, Metric, Record, Verdict, energies,
    record::{MARGAY, Run, Sustained},
    summary,
};
use margay_device::{AT_RATE, AtRate, at_rate};
use margay_observe::report::{bytes, table};

/// Width of a line of words.
const COLUMNS: usize = 100;

/// The whole of a record. `period_seconds` is the time from answer to answer that a battery's life is told for.
pub fn record_text(record: &Record, period_seconds: f64, watt_hours: Option<f64>) -> String {
    let mut text = head(record);
    text += &stages(record);
    text += &work(record);
    text += &ops(record);
    text += &engines(record);
    text += "\n";
    for (name, words) in facts(record, period_seconds, watt_hours) {
        text += &paragraph(&format!("{name:<15}"), &words);
    }
    if let Some(sustained) = &record.sustained {
        text += &sustained_text(sustained);
    }
    if !record.protocol.warnings.is_empty() {
        text += "\nWARNINGS\n";
        for warning in &record.protocol.warnings {
            text += &paragraph("  - ", warning);
        }
    }
    if record.stopped {
        text += "\nStopped by Ctrl-C: these are the runs that were complete.\n";
    }
    text
}

fn head(record: &Record) -> String {
    let (q, p, d) = (&record.question, &record.protocol, &record.device);
    let cores = d.logical_cores.map_or_else(|| "unknown".to_owned(), |cores| cores.to_string());
    let memory = d.memory_bytes.map_or_else(|| "unknown memory".to_owned(), bytes);
    let cpu = d.cpu.as_deref().unwrap_or("unknown processor");
    let mut text = format!("{} on {cpu} ({cores} processors, {memory})\n", record.model.name);
    let pictures: Vec<String> =
        q.pictures.iter().map(|p| format!("{} ({}x{})", p.name, p.width, p.height)).collect();
    let of = if pictures.is_empty() { String::new() } else { format!(" of {}", pictures.join(", ")) };
    text += &format!("{:?}{of}\n", q.prompt);
    let (rounds, period) =
        (record.engines.iter().flat_map(|e| &e.runs).map(|run| run.round + 1).max(), p.period_ms);
    text += &format!(
        "{} of {} rounds after {} that do not count; a sample each {period:.0} ms\n",
        rounds.unwrap_or(0),
        p.repeat,
        p.warmup
    );
    text
}

/// Figures of Margay's stages.
fn stages(record: &Record) -> String {
    let Some(engine) = record.engine(MARGAY) else { return String::new() };
    let row = |metric: &Metric| {
        let summary = summary(&metric.values(engine));
        let cell = |value: Option<f64>| ms_or_unknown(value);
        vec![
            metric.name.to_owned(),
            cell(summary.map(|s| s.mean)),
            summary.map_or_else(|| "unknown".to_owned(), |s| s.deviation.map_or_else(|| "-".to_owned(), ms)),
            cell(summary.map(|s| s.p50)),
            cell(summary.map(|s| s.p95)),
            cell(summary.map(|s| s.p99)),
            summary.map_or(0, |s| s.count).to_string(),
            metric.field_name.to_owned(),
        ]
    };
    let shown = METRICS.iter().filter(|metric| metric.is_told(engine));
    let mut rows: Vec<Vec<String>> = shown.map(row).collect();
    if let Some(all) = summary(&token_times(engine)) {
        let deviation = all.deviation.map_or_else(|| "-".to_owned(), ms);
        let cells = ["each token".to_owned(), ms(all.mean), deviation, ms(all.p50), ms(all.p95), ms(all.p99)];
        rows.push([cells.to_vec(), vec![all.count.to_string(), "ITL".to_owned()]].concat());
    }
    let header = ["margay, ms", "mean", "deviation", "p50", "p95", "p99", "runs", "also called"];
    format!("\n{}", table(&header, &rows))
}

/// What the question asks of each stage, and how fast the warm runs did it.
fn work(record: &Record) -> String {
    let rows: Vec<Vec<String>> = super::work_rows(record);
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(&super::WORK_HEADER, &rows))
}

/// What each stage's time goes to.
fn ops(record: &Record) -> String {
    let of = |stage: &crate::StageOps| {
        let rows: Vec<Vec<String>> = super::op_rows(stage);
        format!("\n{}\n{}", super::ops_title(stage), table(&super::OPS_HEADER, &rows))
    };
    record.ops.iter().map(of).collect()
}

/// Every engine beside each other, as the study's table of latencies, with totals that are of the same things.
fn engines(record: &Record) -> String {
    let rows = engine_rows(record);
    let columns = columns(&rows);
    let line = |row: &EngineRow| {
        let cells = columns.iter().map(|(_, cell)| cell(row).unwrap_or_else(|| "-".to_owned()));
        std::iter::once(row.name.clone()).chain(cells).chain([row.runs.to_string()]).collect()
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    let names = columns.iter().map(|(name, _)| *name);
    let header: Vec<&str> = std::iter::once("medians, ms").chain(names).chain(["runs"]).collect();
    format!("\n{}{}", table(&header, &lines), paragraph("", NESTING))
}

/// What is told in words: a name, and what there is to say.
pub(super) fn facts(
    record: &Record,
    period_seconds: f64,
    watt_hours: Option<f64>,
) -> Vec<(&'static str, String)> {
    let Some(engine) = record.engine(MARGAY) else { return Vec::new() };
    let warm: Vec<&Run> = engine.runs.iter().filter(|run| run.begin == Begin::Warm).collect();
    let p = &record.protocol;
    let mut facts = vec![("answer", answer(record, engine.runs.last()))];
    facts.push(("energy", energy(record)));
    facts.push(("battery", battery(record, period_seconds, watt_hours.or(record.device.battery_watt_hours))));
    let most = |value: fn(&Run) -> Option<u64>| engine.runs.iter().filter_map(value).max();
    let told = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), bytes);
    let (rss, anonymous) = (most(|run| run.peak_rss_bytes), most(|run| run.peak_anonymous_bytes));
    facts.push((
        "peak memory",
        format!("{} resident, {} of it anonymous (samples of all runs)", told(rss), told(anonymous)),
    ));
    facts.push(("responsiveness", responsiveness(&warm)));
    let celsius = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |c| format!("{c:.1} °C"));
    let peak = engine.runs.iter().filter_map(|run| run.peak_celsius).reduce(f64::max);
    facts.push((
        "temperature",
        format!("{} at the start, {} at most", celsius(p.start_celsius), celsius(peak)),
    ));
    let cooled =
        if p.cooled_seconds >= 0.1 { format!(" ({:.1} s in all)", p.cooled_seconds) } else { String::new() };
    facts.push(("cool-down", format!("{}{cooled}", p.cool_down)));
    let d = &record.device;
    let governor = if d.governors.is_empty() { "unknown".to_owned() } else { d.governors.join(", ") };
    let kernel = d.kernel.as_deref().unwrap_or("unknown");
    let background = p.idle_cpu_percent.map_or_else(|| "unknown".to_owned(), |cpu| format!("{cpu:.0} %"));
    facts.push((
        "machine",
        format!(
            "kernel {kernel}; governor {governor}; CPU {background} before the first run (100 = one core)"
        ),
    ));
    let options: Vec<String> = record.options.iter().map(|(name, value)| format!("{name} {value}")).collect();
    facts.push(("options", options.join(", ")));
    let short = |digest: Option<&String>| {
        digest.map_or_else(|| "unknown".to_owned(), |digest| digest.chars().take(12).collect())
    };
    let (b, m) = (&record.build, &record.model);
    facts.push((
        "digests",
        format!(
            "build {} {}, weights {} ({})",
            b.version,
            short(b.executable_sha256.as_ref()),
            short(m.weights_sha256.as_ref()),
            told(m.weights_bytes)
        ),
    ));
    facts
}

fn answer(record: &Record, run: Option<&Run>) -> String {
    let Some(run) = run else { return "no run was complete".to_owned() };
    let text = run.text.as_deref().unwrap_or("unknown");
    let shown: String = text.chars().take(160).collect();
    let more = if text.chars().nth(160).is_some() { "..." } else { "" };
    let count = |value: Option<usize>| value.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    format!(
        "{shown:?}{more}: {} tokens ({} at most), stop {}; prompt {} tokens, {} of them visual",
        count(run.answer_tokens),
        record.question.max_tokens,
        run.stop.as_deref().unwrap_or("unknown"),
        count(run.prompt_tokens),
        count(run.visual_tokens)
    )
}

fn energy(record: &Record) -> String {
    let p = &record.protocol;
    let Some(source) = &p.power_source else {
        let why = p.power_unknown.as_deref().unwrap_or("no power source");
        return format!("unknown: {why}");
    };
    let e = energies(record);
    let joules = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |j| format!("{j:.3} J"));
    let idle = p.idle_watts.map_or_else(|| "unknown".to_owned(), |watts| format!("{watts:.2} W"));
    format!(
        "beyond idle {} a query, {} a picture, {} a generated token; {} a query with idle; idle {idle}, over {:.1} s; by {source}",
        joules(e.query_joules),
        joules(e.picture_joules),
        joules(e.token_joules),
        joules(e.gross_joules),
        p.idle_seconds
    )
}

fn battery(record: &Record, period: f64, watt_hours: Option<f64>) -> String {
    let Some(watt_hours) = watt_hours else {
        return "unknown: no battery is told; give --battery-wh".to_owned();
    };
    let e = energies(record);
    let (Some(gross), Some(seconds), Some(idle)) = (e.gross_joules, e.seconds, record.protocol.idle_watts)
    else {
        return format!("{watt_hours} Wh; hours unknown, as energy and idle power are");
    };
    if gross <= 0.0 {
        return format!("{watt_hours} Wh; hours unknown, as no energy was seen");
    }
    match at_rate(watt_hours, period, seconds, gross, idle) {
        AtRate::Hours(hours) => format!(
            "{hours:.1} h with one answer each {period:.0} s: {AT_RATE}; W = ({gross:.3} + {idle:.2} x ({period:.0} - {seconds:.2})) \
             / {period:.0} = {:.2} of {watt_hours} Wh",
            watt_hours / hours
        ),
        AtRate::TooSlow { continuous_hours } => format!(
            "an answer of {seconds:.1} s does not fit into {period:.0} s: {continuous_hours:.1} h without a pause"
        ),
    }
}

fn responsiveness(runs: &[&Run]) -> String {
    let beats = || runs.iter().filter_map(|run| run.heartbeat);
    let frames: u64 = beats().map(|beat| beat.frames).sum();
    if frames == 0 {
        return "unknown: the runs were shorter than a frame".to_owned();
    }
    let missed: u64 = beats().map(|beat| beat.missed).sum();
    let gap = beats().map(|beat| beat.worst_gap_ms).fold(0.0, f64::max);
    let pressure = |value: fn(&Run) -> Option<f64>| {
        let known: Vec<f64> = runs.iter().filter_map(|run| value(run)).collect();
        summary(&known).map_or_else(|| "unknown".to_owned(), |s| format!("{:.1} %", s.mean))
    };
    format!(
        "{missed} of {frames} frames of 60 Hz missed ({:.1} %), longest gap {gap:.0} ms; waiting for CPU {}, for memory {}",
        100.0 * missed as f64 / frames as f64,
        pressure(|run| run.cpu_pressure_percent),
        pressure(|run| run.memory_pressure_percent)
    )
}

fn sustained_text(s: &Sustained) -> String {
    let row = |mark: &crate::Mark| {
        vec![
            super::moment(mark.seconds),
            mark.tokens_per_second.map_or_else(|| "unknown".to_owned(), |rate| format!("{rate:.1}")),
            format!("{:.1}", mark.answers_per_minute),
        ]
    };
    let rows: Vec<Vec<String>> = s.marks.iter().map(row).collect();
    let mut text = format!("\n{}", table(&["at", "tokens/s", "answers/min"], &rows));
    let celsius = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |c| format!("{c:.1} °C"));
    let factor = s.factor.map_or_else(|| "unknown".to_owned(), |factor| format!("{factor:.2}"));
    let cap = s
        .cap_fell_seconds
        .map_or_else(|| s.caps.clone(), |at| format!("the cap on a clock fell after {at:.0} s"));
    text += &paragraph(
        &format!("{:<15}", "sustained"),
        &format!(
            "factor {factor} (last rate over first, over {:.0} s each); {} answers in {:.0} s; {} at the start, {} at most; {cap}",
            s.window_seconds,
            s.answers.len(),
            s.seconds,
            celsius(s.start_celsius),
            celsius(s.peak_celsius)
        ),
    );
    text
}

/// What a comparison says.
pub fn comparison_text(comparison: &Comparison) -> String {
    let row = |line: &crate::Line| {
        let known = |value: &dyn Fn(&crate::Shift) -> String| {
            line.shift.as_ref().map_or_else(|| "unknown".to_owned(), value)
        };
        let cell = |value: f64| if line.unit == "bytes" { bytes(value as u64) } else { ms(value) };
        let verdict = match (line.worse, line.shift.map(|shift| shift.verdict)) {
            (Some(true), _) => "worse",
            (Some(false), _) => "better",
            (None, Some(Verdict::TooFew)) => "too few runs",
            (None, Some(_)) => "no difference shown",
            (None, None) => "unknown",
        };
        vec![
            line.name.to_owned(),
            line.unit.to_owned(),
            known(&|shift| cell(shift.a)),
            known(&|shift| cell(shift.b)),
            known(&|shift| format!("{:.3}", shift.ratio)),
            known(&|shift| format!("{:.3} to {:.3}", shift.interval.0, shift.interval.1)),
            known(&|shift| {
                if shift.chance < 0.001 { "<0.001".to_owned() } else { format!("{:.3}", shift.chance) }
            }),
            format!("{} + {}", line.runs.0, line.runs.1),
            format!("{verdict:<19}"),
        ]
    };
    let rows: Vec<Vec<String>> = comparison.lines.iter().map(row).collect();
    let header =
        ["medians", "unit", "A", "B", "B / A", "95 % within", "chance", "runs", "B is               "];
    let mut text = table(&header, &rows);
    text += &paragraph(
        "",
        "A difference counts where the interval leaves 1 out and the chance of the ranks is at most 0.05.",
    );
    for work in &comparison.work {
        let word = if work.more() { "more" } else { "less" };
        let words = format!("{} of {}: {} in A, {} in B, {word}", work.of, work.stage, work.a, work.b);
        text += &paragraph("work: ", &words);
    }
    for note in &comparison.notes {
        text += &paragraph("note: ", note);
    }
    text
}

/// Words behind a name, broken at blanks; later lines stand below the first's words.
fn paragraph(name: &str, words: &str) -> String {
    let indent = name.chars().count();
    let mut text = name.to_owned();
    let mut column = indent;
    for word in words.split_whitespace() {
        let width = word.chars().count();
        if column > indent && column + 1 + width > COLUMNS {
            text = text.trim_end().to_owned() + "\n" + &" ".repeat(indent);
            column = indent;
        } else if column > indent {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += width;
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compare,
        record::{Engine, Heartbeat, Protocol, StageMs},
    };

    fn record() -> Record {
        let run = |round: usize, begin| Run {
            round,
            begin,
            stages: StageMs { load: Some(30.0), encode: Some(20.0), decode: Some(8.0), ..StageMs::default() },
            without_load_ms: Some(30.0 + round as f64),
            with_load_ms: Some(60.0),
            decode_tokens: Some(4),
            token_ms: vec![2.0; 4],
            heartbeat: Some(Heartbeat { frames: 50, missed: 5, worst_gap_ms: 40.0 }),
            text: Some("a cat".to_owned()),
            ..Run::default()
        };
        let runs = (0..5).flat_map(|round| [run(round, Begin::Cold), run(round, Begin::Warm)]).collect();
        let mut record = Record {
            engines: vec![Engine { name: MARGAY.to_owned(), command: None, runs }],
            protocol: Protocol {
                repeat: 5,
                power_unknown: Some("no such file".to_owned()),
                ..Protocol::default()
            },
            ..Record::default()
        };
        record.model.name = "nano".to_owned();
        record
    }

    #[test]
    fn what_is_unknown_is_said_with_its_reason_and_no_number_stands_in() {
        let text = record_text(&record(), 60.0, Some(19.25));
        assert!(text.lines().all(|line| line.chars().count() <= 150), "{text}");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "energy unknown: no such file",
            "battery 19.25 Wh; hours unknown",
            "prefill unknown unknown unknown unknown unknown 0 prompt-eval",
            "25 of 250 frames of 60 Hz missed (10.0 %), longest gap 40 ms; waiting for CPU unknown",
            "unknown at the start",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let mut stopped = record();
        (stopped.stopped, stopped.engines[0].runs) = (true, vec![]);
        let text = record_text(&stopped, 60.0, None);
        assert!(text.contains("Stopped by Ctrl-C") && text.contains("no run was complete"), "{text}");
    }

    #[test]
    fn known_energy_is_told_with_the_formula_of_the_battery() {
        let mut record = record();
        record.protocol.power_source = Some("rapl (package)".to_owned());
        record.protocol.idle_watts = Some(1.0);
        for run in &mut record.engines[0].runs {
            (run.gross_joules, run.net_joules) = (Some(0.6), Some(0.5));
            (run.without_load_ms, run.decode_net_joules) = (Some(100.0), Some(0.2));
        }
        let text = record_text(&record, 60.0, Some(19.25)).replace('\n', " ").replace("               ", "");
        for part in [
            "0.500 J a query, unknown a picture, 0.050 J a generated token",
            "19.1 h with one answer each 60 s",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn a_comparison_is_told_line_by_line() {
        let (a, mut b) = (record(), record());
        b.engines[0].runs.iter_mut().for_each(|run| run.stages.encode = Some(30.0));
        let text = comparison_text(&compare(&a, &b, false).unwrap());
        let encode = text.lines().find(|line| line.starts_with("encode")).unwrap();
        assert!(encode.contains("1.500") && encode.contains("worse") && encode.contains("5 + 5"), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("decode") && line.contains("no difference shown")),
            "{text}"
        );
    }

    #[test]
    fn paragraphs_break_below_their_words() {
        let text = paragraph("name  ", &"word ".repeat(40));
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS));
        assert!(text.lines().skip(1).all(|line| line.starts_with("      word")), "{text}");
        assert_eq!(paragraph("- ", ""), "- \n");
    }
}
