//! What was measured, as a file that can be compared later: raw numbers of every run, and what they are of.

use crate::BenchError;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io::Read, path::Path};

/// Form of the record; a record of another form is not read.
pub const FORM: &str = "margay-bench/1";

/// Bytes of a record at most: a day of sustained questions is far below.
const MOST_BYTES: u64 = 64 << 20;

/// Name of Margay among a record's engines.
pub const MARGAY: &str = "margay";

/// One measurement. Times are milliseconds, energies joules; what is unknown is `null`, never 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORM`].
    pub form: String,
    /// The machine, as it says itself.
    pub device: Device,
    /// The program that measured.
    pub build: Build,
    /// The model.
    pub model: ModelId,
    /// What was asked.
    pub question: Question,
    /// How the model was loaded and asked, by name.
    pub options: BTreeMap<String, String>,
    /// How it was measured.
    pub protocol: Protocol,
    /// Margay first, then its peers.
    pub engines: Vec<Engine>,
    /// What the question asks of each stage, counted from the programs; empty where it is not counted.
    #[serde(default)]
    pub work: Vec<StageWork>,
    /// What each stage's time goes to, where that was asked for.
    #[serde(default)]
    pub ops: Vec<StageOps>,
    /// What a long run showed, where there was one.
    pub sustained: Option<Sustained>,
    /// True where Ctrl-C ended it before its time.
    pub stopped: bool,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Name of the processor.
    pub cpu: Option<String>,
    /// Cores that share nothing.
    pub physical_cores: Option<usize>,
    /// Processors as the system counts them.
    pub logical_cores: Option<usize>,
    /// Kinds of cores, the fastest first: how many, and their highest clock.
    pub core_kinds: Vec<String>,
    /// Its memory.
    pub memory_bytes: Option<u64>,
    /// Release of its kernel.
    pub kernel: Option<String>,
    /// What chooses clock rates.
    pub governors: Vec<String>,
    /// What its battery holds.
    pub battery_watt_hours: Option<f64>,
}

/// A program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// SHA-256 of its executable file.
    pub executable_sha256: Option<String>,
    /// True of a build with debug assertions, whose speed says little.
    pub debug_assertions: bool,
}

/// A model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelId {
    /// Its own name.
    pub name: String,
    /// Its family.
    pub family: String,
    /// SHA-256 over names, shapes, formats and bytes of its weights.
    pub weights_sha256: Option<String>,
    /// Bytes of its weights as they are stored.
    pub weights_bytes: Option<u64>,
}

/// A question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The words.
    pub prompt: String,
    /// The pictures.
    pub pictures: Vec<PictureId>,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
}

/// A picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PictureId {
    /// Name of its file.
    pub name: String,
    /// Width, pixels.
    pub width: u32,
    /// Height, pixels.
    pub height: u32,
    /// SHA-256 of its file.
    pub sha256: Option<String>,
}

/// How it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Rounds that count.
    pub repeat: usize,
    /// Rounds before them that do not.
    pub warmup: usize,
    /// Milliseconds between samples.
    pub period_ms: f64,
    /// How long the machine was watched idle.
    pub idle_seconds: f64,
    /// Its mean power then.
    pub idle_watts: Option<f64>,
    /// All cores together then: 100 is one core.
    pub idle_cpu_percent: Option<f64>,
    /// Where power was measured.
    pub power_source: Option<String>,
    /// Why it was not.
    pub power_unknown: Option<String>,
    /// Hottest zone before the first run.
    pub start_celsius: Option<f64>,
    /// How the machine cooled down between rounds, in words.
    pub cool_down: String,
    /// Seconds that cooling down took in all.
    pub cooled_seconds: f64,
    /// What a reader should know before believing the numbers.
    pub warnings: Vec<String>,
}

/// A program that answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Engine {
    /// `margay`, `llama.cpp`, `command`.
    pub name: String,
    /// How it was started; `None` of this program itself.
    pub command: Option<String>,
    /// Its runs, in order.
    pub runs: Vec<Run>,
}

/// How a run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// With loading the model.
    Cold,
    /// With the model in memory and one answer behind it.
    #[default]
    Warm,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// Which round, from 0.
    pub round: usize,
    /// How it began.
    pub begin: Begin,
    /// What each stage took.
    pub stages: StageMs,
    /// From the start to the last token, loading included.
    pub with_load_ms: Option<f64>,
    /// From the question to the last token.
    pub without_load_ms: Option<f64>,
    /// From the question to the first text.
    pub ttft_ms: Option<f64>,
    /// Time of each token behind the first.
    pub token_ms: Vec<f64>,
    /// Tokens of the prompt, visual ones included.
    pub prompt_tokens: Option<usize>,
    /// Visual tokens.
    pub visual_tokens: Option<usize>,
    /// Tokens that `decode` computed: all but the first.
    pub decode_tokens: Option<usize>,
    /// Tokens of the answer.
    pub answer_tokens: Option<usize>,
    /// The answer.
    pub text: Option<String>,
    /// Why it ended.
    pub stop: Option<String>,
    /// Most resident memory in a sample.
    pub peak_rss_bytes: Option<u64>,
    /// Most of it that no file backs.
    pub peak_anonymous_bytes: Option<u64>,
    /// Mean of the process (and its children): 100 is one core.
    pub process_cpu_percent: Option<f64>,
    /// Energy of the answer, loading excluded, idle included.
    pub gross_joules: Option<f64>,
    /// The same beyond idle.
    pub net_joules: Option<f64>,
    /// Energy beyond idle of preprocess, encode and project, all pictures together.
    pub pictures_net_joules: Option<f64>,
    /// Energy beyond idle of decode.
    pub decode_net_joules: Option<f64>,
    /// What a thread that wakes 60 times a second saw.
    pub heartbeat: Option<Heartbeat>,
    /// Mean share of the time in which something waited for a core.
    pub cpu_pressure_percent: Option<f64>,
    /// The same for memory.
    pub memory_pressure_percent: Option<f64>,
    /// Hottest zone in the first sample.
    pub start_celsius: Option<f64>,
    /// Hottest zone in any sample.
    pub peak_celsius: Option<f64>,
}

/// Times of stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageMs {
    /// Files to packed weights.
    pub load: Option<f64>,
    /// Picture file to pixel values.
    pub preprocess: Option<f64>,
    /// Pixels to patch features; of peers up to visual tokens.
    pub encode: Option<f64>,
    /// Patch features to visual tokens.
    pub project: Option<f64>,
    /// Prompt to the first logits.
    pub prefill: Option<f64>,
    /// The part of `prefill` that is of visual tokens; of Margay where no batch of the prompt holds text as well.
    pub image_prefill: Option<f64>,
    /// The part that is of text, likewise.
    pub text_prefill: Option<f64>,
    /// Batches that hold both, whose time cannot be told apart.
    pub mixed_prefill: Option<f64>,
    /// All tokens behind the first.
    pub decode: Option<f64>,
    /// What lies between: template, tokenizer, KV cache, text.
    pub other: Option<f64>,
}

/// Work of a stage over a whole question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageWork {
    /// `encode`, `project`, `prefill` or `decode`.
    pub stage: String,
    /// Tokens of the text program; `None` of the vision side.
    pub tokens: Option<usize>,
    /// Operations of products, convolutions and attention, 2 a multiply-add.
    pub operations: u64,
    /// Bytes of weights, keys and values that are read.
    pub bytes: u64,
}

/// What one more pass of a stage went to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageOps {
    /// `encode` (a picture, with the projector), `prefill` or `decode`.
    pub stage: String,
    /// Tokens of it.
    pub tokens: Option<usize>,
    /// Its ops, most time first.
    pub ops: Vec<OpMs>,
}

/// Ops of one kind and size within a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpMs {
    /// Their names; of linear layers the columns they read and make, too.
    pub op: String,
    /// How often they ran.
    pub calls: u64,
    /// All of them together.
    pub ms: f64,
    /// Operations of products and attention, 2 a multiply-add.
    pub operations: u64,
}

/// Wakes of a thread that should wake 60 times a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Frames that there was time for.
    pub frames: u64,
    /// Those that came too late.
    pub missed: u64,
    /// Longest time between two wakes.
    pub worst_gap_ms: f64,
}

/// Questions one after the other for long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sustained {
    /// How long it was to last.
    pub planned_seconds: f64,
    /// How long it lasted.
    pub seconds: f64,
    /// Length of the stretch before each mark over which rates are taken.
    pub window_seconds: f64,
    /// Each answer, in order.
    pub answers: Vec<SustainedAnswer>,
    /// Rates at the marks.
    pub marks: Vec<Mark>,
    /// Rate at the last mark over rate at the first.
    pub factor: Option<f64>,
    /// Hottest zone at the start.
    pub start_celsius: Option<f64>,
    /// Hottest zone of all.
    pub peak_celsius: Option<f64>,
    /// When the cap on a core's clock was first lower than at the start.
    pub cap_fell_seconds: Option<f64>,
    /// What is known of caps, in words.
    pub caps: String,
}

/// One answer of a long run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SustainedAnswer {
    /// When it ended, since the start.
    pub end_seconds: f64,
    /// From question to last token.
    pub ms: f64,
    /// Tokens behind the first.
    pub decode_tokens: usize,
    /// What they took.
    pub decode_ms: f64,
}

/// Rates at a time of a long run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub seconds: f64,
    /// Answers a minute.
    pub answers_per_minute: f64,
    /// Tokens a second behind each answer's first.
    pub tokens_per_second: Option<f64>,
}

impl Record {
    /// Reads a record and checks that it is one.
    ///
    /// # Errors
    /// [`BenchError::Read`] where the file cannot be read, [`BenchError::Record`] where it is no record.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let fail = |source| BenchError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(fail)?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// As [`Record::read`], of bytes; `place` stands in messages.
    ///
    /// # Errors
    /// [`BenchError::Record`].
    pub fn parse(bytes: &[u8], place: &str) -> Result<Self, BenchError> {
        let fail = |what: String| BenchError::Record { place: place.to_owned(), what };
        if bytes.len() as u64 > MOST_BYTES {
            return Err(fail(format!("it has more than {MOST_BYTES} bytes")));
        }
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|e| fail(format!("it is no JSON: {e}")))?;
        match value.get("form").and_then(|form| form.as_str()) {
            Some(FORM) => {}
            Some(other) => return Err(fail(format!("its form is {other:?}, and {FORM:?} is read here"))),
            None => {
                return Err(fail(format!(
                    "it has no \"form\": {FORM:?}; `margay bench --out` writes such files"
                )));
            }
        }
        let record: Record = serde_json::from_value(value).map_err(|e| fail(e.to_string()))?;
        record.check().map_err(fail)?;
        Ok(record)
    }

    /// The whole as JSON, to be read by people too.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("invariant: a record is numbers, texts and lists") + "\n"
    }

    /// The engine of that name.
    pub fn engine(&self, name: &str) -> Option<&Engine> {
        self.engines.iter().find(|engine| engine.name == name)
    }

    /// What a reader of foreign files must not meet later.
    fn check(&self) -> Result<(), String> {
        if self.engine(MARGAY).is_none() {
            return Err("none of its engines is margay".to_owned());
        }
        let runs = self.engines.iter().flat_map(|engine| engine.runs.iter().map(move |run| (engine, run)));
        for (engine, run) in runs {
            let wrong = |what: &str, value: f64| {
                Err(format!(
                    "round {} of {}: {what} is {value}, and no time is negative",
                    run.round, engine.name
                ))
            };
            for (what, value) in run.times() {
                if value.is_some_and(|value| !(0.0..1e15).contains(&value)) {
                    return wrong(what, value.unwrap_or_default());
                }
            }
            if let Some(value) = run.token_ms.iter().find(|value| !(0.0..1e15).contains(*value)) {
                return wrong("token_ms", *value);
            }
        }
        Ok(())
    }
}

impl Run {
    fn times(&self) -> [(&'static str, Option<f64>); 13] {
        let s = &self.stages;
        [
            ("load", s.load),
            ("preprocess", s.preprocess),
            ("encode", s.encode),
            ("project", s.project),
            ("prefill", s.prefill),
            ("image_prefill", s.image_prefill),
            ("text_prefill", s.text_prefill),
            ("mixed_prefill", s.mixed_prefill),
            ("decode", s.decode),
            ("other", s.other),
            ("with_load_ms", self.with_load_ms),
            ("without_load_ms", self.without_load_ms),
            ("ttft_ms", self.ttft_ms),
        ]
    }

    /// Tokens a second, the first not counted.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let (tokens, ms) = (self.decode_tokens?, self.stages.decode?);
        (tokens > 0 && ms > 0.0).then(|| tokens as f64 * 1000.0 / ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let stages = StageMs { load: Some(12.5), decode: Some(40.0), ..StageMs::default() };
        let run = Run { stages, decode_tokens: Some(8), token_ms: vec![5.0; 8], ..Run::default() };
        let engine = Engine { name: MARGAY.to_owned(), command: None, runs: vec![run] };
        Record { form: FORM.to_owned(), engines: vec![engine], ..Record::default() }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let record = record();
        let text = record.to_json();
        assert_eq!(Record::parse(text.as_bytes(), "a").unwrap(), record);
        assert!(text.contains("\"encode\": null"), "what is unknown is null: {text}");
        assert_eq!(record.engines[0].runs[0].tokens_per_second(), Some(200.0));
        assert_eq!(Run::default().tokens_per_second(), None);
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_reason() {
        let good = record().to_json();
        let why = |text: &str| Record::parse(text.as_bytes(), "x.json").unwrap_err().to_string();
        for (text, reason) in [
            ("".to_owned(), "no JSON"),
            ("\u{0}\u{1}garbage".to_owned(), "no JSON"),
            ("[1, 2".to_owned(), "no JSON"),
            ("{}".to_owned(), "has no \"form\""),
            ("[]".to_owned(), "has no \"form\""),
            (good.replace(FORM, "margay-bench/9"), "margay-bench/9"),
            (good.replace("12.5", "NaN"), "no JSON"),
            (good.replace("12.5", "1e999"), "no JSON"),
            (good.replace("12.5", "-3.0"), "load is -3"),
            (good.replace("12.5", "\"12.5\""), "invalid type"),
            (good.replace("\"engines\"", "\"motors\""), "missing field `engines`"),
            (good.replace("\"margay\"", "\"other\""), "none of its engines is margay"),
            (good.replacen("5.0", "-5.0", 1), "token_ms is -5"),
            ("[".repeat(100_000), "no JSON"),
        ] {
            let message = why(&text);
            assert!(message.contains(reason) && message.contains("x.json"), "{reason}: {message}");
        }
        let missing = Record::read(Path::new("no/such.json")).unwrap_err().to_string();
        assert!(missing.contains("no/such.json"), "{missing}");
    }
}
