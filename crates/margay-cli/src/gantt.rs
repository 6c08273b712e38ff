//! When the stages of an answer ran, as a chart of characters.

use margay::{Schedule, StageRun, rooms::observe::report::table};

/// Columns of a bar that lasts as long as the whole answer.
const COLUMNS: f64 = 40.0;
/// Runs that are shown; a picture of many tiles has more than a person reads.
const MOST_RUNS: usize = 48;

/// One line a run, in the order in which they began, its bar to scale; nothing where nothing ran.
pub(crate) fn chart(schedule: &Schedule) -> String {
    let mut runs: Vec<&StageRun> = schedule.runs.iter().collect();
    runs.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
    let end = runs.iter().fold(0.0f64, |end, run| end.max(run.end_ms));
    let rows: Vec<Vec<String>> = runs.iter().take(MOST_RUNS).map(|run| row(run, end)).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut text = table(&["lane", "stage", "picture", "tokens", "begin ms", "end ms", ""], &rows);
    if runs.len() > MOST_RUNS {
        text += &format!("and {} more runs, all of them in --json\n", runs.len() - MOST_RUNS);
    }
    text
}

fn row(run: &StageRun, end: f64) -> Vec<String> {
    let column = |ms: f64| (ms / end.max(f64::MIN_POSITIVE) * COLUMNS).round() as usize;
    let (from, to) = (column(run.begin_ms), column(run.end_ms));
    let bar = " ".repeat(from) + &"#".repeat((to - from.min(to)).max(1));
    vec![
        run.lane.name().to_owned(),
        run.stage.name().to_owned(),
        run.picture.map_or_else(|| "-".to_owned(), |picture| picture.to_string()),
        if run.tokens == 0 { "-".to_owned() } else { run.tokens.to_string() },
        format!("{:.1}", run.begin_ms),
        format!("{:.1}", run.end_ms),
        // Tables put numbers to the right; a bar begins at the left.
        format!("|{bar:<width$}|", width = COLUMNS as usize + 1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::{Lane, Stage};

    #[test]
    fn bars_lie_at_their_times_and_no_run_is_lost_from_sight() {
        let run = |stage, lane, begin_ms, end_ms| StageRun {
            stage,
            lane,
            picture: Some(1),
            tokens: 0,
            begin_ms,
            end_ms,
        };
        let mut schedule = Schedule::default();
        assert_eq!(chart(&schedule), "");
        schedule.runs.push(run(Stage::Encode, Lane::Vision, 50.0, 100.0));
        schedule.runs.push(run(Stage::Preprocess, Lane::Read, 0.0, 0.1));
        let text = chart(&schedule);
        let bars: Vec<&str> =
            text.lines().skip(1).filter_map(|line| line.split_once('|')).map(|(_, b)| b).collect();
        assert_eq!(bars.len(), 2, "{text}");
        assert!(bars[0].starts_with("# ") && text.lines().nth(1).unwrap().contains("read"), "{text}");
        assert_eq!(bars[1].find('#'), Some(20), "{text}");
        assert_eq!(bars[1].matches('#').count(), 20, "{text}");
        schedule.runs = vec![schedule.runs[0]; MOST_RUNS + 2];
        assert!(chart(&schedule).contains("and 2 more runs"));
    }
}
