//! Which figures a record has: one list for the terminal, the page, comparisons and gates.

use crate::record::{Begin, Engine, Record, Run};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Less of it.
    Less,
    /// More of it.
    More,
}

/// A figure of each run.
#[derive(Debug)]
pub struct Metric {
    /// Name for programs.
    pub key: &'static str,
    /// Name for people.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What studies of on-device VLMs call it; empty where they have no word.
    pub field_name: &'static str,
    /// The runs that it is of.
    pub begin: Begin,
    /// Which way is better.
    pub better: Better,
    /// True where `--gate` looks at it.
    pub gated: bool,
    /// True of a part of another figure: where it is unknown nothing is said of it.
    pub part: bool,
    /// Its value.
    pub value: fn(&Run) -> Option<f64>,
}

impl Metric {
    /// Its values over an engine's runs that know it, in order.
    pub fn values(&self, engine: &Engine) -> Vec<f64> {
        self.runs(engine).map(|(_, value)| value).collect()
    }

    /// Whether there is something to say of it.
    pub(crate) fn is_told(&self, engine: &Engine) -> bool {
        (self.unit == "ms" || self.unit == "1/s") && (!self.part || self.runs(engine).next().is_some())
    }

    /// The same with the position of each run among the engine's.
    pub fn runs<'e>(&'e self, engine: &'e Engine) -> impl Iterator<Item = (usize, f64)> + 'e {
        let runs = engine.runs.iter().enumerate();
        runs.filter(|(_, run)| run.begin == self.begin).filter_map(|(at, run)| Some((at, (self.value)(run)?)))
    }
}

const fn time(
    key: &'static str,
    name: &'static str,
    field_name: &'static str,
    begin: Begin,
    value: fn(&Run) -> Option<f64>,
) -> Metric {
    Metric { key, name, unit: "ms", field_name, begin, better: Better::Less, gated: true, part: false, value }
}

/// A part of another figure, told where it is known.
const fn part(key: &'static str, name: &'static str, value: fn(&Run) -> Option<f64>) -> Metric {
    Metric { gated: false, part: true, ..time(key, name, "prompt-eval", Begin::Warm, value) }
}

/// Every figure, in the order in which they are told.
pub const METRICS: &[Metric] = &[
    time("load_ms", "load (cold)", "load", Begin::Cold, |run| run.stages.load),
    time("preprocess_ms", "preprocess", "slice-encode", Begin::Warm, |run| run.stages.preprocess),
    time("encode_ms", "encode", "slice-encode", Begin::Warm, |run| run.stages.encode),
    time("project_ms", "project", "slice-encode", Begin::Warm, |run| run.stages.project),
    time("prefill_ms", "prefill", "prompt-eval", Begin::Warm, |run| run.stages.prefill),
    part("prefill_image_ms", "prefill, image", |run| run.stages.image_prefill),
    part("prefill_text_ms", "prefill, text", |run| run.stages.text_prefill),
    part("prefill_mixed_ms", "prefill, mixed", |run| run.stages.mixed_prefill),
    time("decode_ms", "decode", "token-eval", Begin::Warm, |run| run.stages.decode),
    // Some tens of microseconds: no reason to fail anything.
    Metric { gated: false, ..time("other_ms", "other", "", Begin::Warm, |run| run.stages.other) },
    time("without_load_ms", "without load", "", Begin::Warm, |run| run.without_load_ms),
    time("first_answer_ms", "without load (cold)", "", Begin::Cold, |run| run.without_load_ms),
    time("with_load_ms", "with load (cold)", "", Begin::Cold, |run| run.with_load_ms),
    time("ttft_ms", "first token", "TTFT", Begin::Warm, |run| run.ttft_ms),
    // Told by decode already.
    Metric { gated: false, ..time("token_ms", "a token after it", "ITL", Begin::Warm, mean_token) },
    Metric {
        key: "tokens_per_second",
        name: "tokens/s after the first",
        unit: "1/s",
        field_name: "TPS",
        begin: Begin::Warm,
        better: Better::More,
        gated: false,
        part: false,
        value: Run::tokens_per_second,
    },
    Metric {
        key: "net_joules",
        name: "energy beyond idle",
        unit: "J",
        field_name: "",
        begin: Begin::Warm,
        better: Better::Less,
        gated: true,
        part: false,
        value: |run| run.net_joules,
    },
    Metric {
        key: "peak_anonymous_bytes",
        name: "peak anonymous memory",
        unit: "bytes",
        field_name: "",
        begin: Begin::Warm,
        better: Better::Less,
        gated: false,
        part: false,
        value: |run| run.peak_anonymous_bytes.map(|bytes| bytes as f64),
    },
];

fn mean_token(run: &Run) -> Option<f64> {
    let tokens = run.decode_tokens.filter(|tokens| *tokens > 0)?;
    Some(run.stages.decode? / tokens as f64)
}

/// Energies of answers, means over the runs that know them; each `None` where none does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Energies {
    /// A whole answer, idle included.
    pub gross_joules: Option<f64>,
    /// A whole answer beyond idle.
    pub query_joules: Option<f64>,
    /// Preprocess, encode and project of one picture, beyond idle.
    pub picture_joules: Option<f64>,
    /// Decoding of one token, beyond idle.
    pub token_joules: Option<f64>,
    /// Time of an answer, seconds.
    pub seconds: Option<f64>,
}

/// Energies of Margay's warm answers.
pub fn energies(record: &Record) -> Energies {
    let Some(engine) = record.engine(crate::MARGAY) else { return Energies::default() };
    let pictures = record.question.pictures.len() as f64;
    let mean = |value: &dyn Fn(&Run) -> Option<f64>| {
        let runs = engine.runs.iter().filter(|run| run.begin == Begin::Warm);
        crate::summary(&runs.filter_map(value).collect::<Vec<_>>()).map(|summary| summary.mean)
    };
    Energies {
        gross_joules: mean(&|run| run.gross_joules),
        query_joules: mean(&|run| run.net_joules),
        picture_joules: mean(&|run| {
            run.pictures_net_joules.filter(|_| pictures > 0.0).map(|joules| joules / pictures)
        }),
        token_joules: mean(&|run| {
            let tokens = run.decode_tokens.filter(|tokens| *tokens > 0)?;
            Some(run.decode_net_joules? / tokens as f64)
        }),
        seconds: mean(&|run| run.without_load_ms.map(|ms| ms / 1e3)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{PictureId, Question, StageMs};

    #[test]
    fn a_figure_is_of_its_own_runs_and_keys_are_unique() {
        let run = |begin, decode| Run {
            begin,
            stages: StageMs { decode, ..StageMs::default() },
            decode_tokens: Some(4),
            ..Run::default()
        };
        let runs = vec![run(Begin::Cold, Some(9.0)), run(Begin::Warm, Some(8.0)), run(Begin::Warm, None)];
        let engine = Engine { runs, ..Engine::default() };
        let of = |key: &str| METRICS.iter().find(|metric| metric.key == key).unwrap().values(&engine);
        assert_eq!((of("decode_ms"), of("token_ms")), (vec![8.0], vec![2.0]));
        assert_eq!((of("tokens_per_second"), of("load_ms")), (vec![500.0], vec![]));
        let mut keys: Vec<_> = METRICS.iter().map(|metric| metric.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), METRICS.len());
    }

    #[test]
    fn energy_is_told_a_query_a_picture_and_a_token() {
        let run = |scale: f64| Run {
            gross_joules: Some(20.0 * scale),
            net_joules: Some(10.0 * scale),
            pictures_net_joules: Some(4.0 * scale),
            decode_net_joules: Some(2.0 * scale),
            decode_tokens: Some(8),
            ..Run::default()
        };
        let engine =
            Engine { name: "margay".to_owned(), runs: vec![run(1.0), run(3.0)], ..Engine::default() };
        let pictures = vec![PictureId::default(), PictureId::default()];
        let question = Question { pictures, ..Question::default() };
        let record = Record { engines: vec![engine], question, ..Record::default() };
        let told = energies(&record);
        assert_eq!((told.gross_joules, told.query_joules), (Some(40.0), Some(20.0)));
        assert_eq!((told.picture_joules, told.token_joules, told.seconds), (Some(4.0), Some(0.5), None));
    }
}
