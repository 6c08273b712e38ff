//! What a record suggests: each suggestion with what was measured, what it would win, and the command that tries it.
//!
//! The kinds follow the advice of the field's guides (high latency, high memory, high CPU, throttling: what to do). Each looks at
//! one thing in the record and says that it is fine, that the record does not tell, or what to do about it.

mod bits;
mod decode_threads;
mod encoder;
mod gpu;
mod heat;
mod kv;
mod prepack;
mod visual_tokens;

use crate::{
    METRICS, Run,
    record::{Begin, MARGAY, Record},
    statistics::median,
};
use margay_device::WhatIf;
use serde::Serialize;

/// Least part of an answer that a stage takes to be worth a change.
const LARGE_PART: f64 = 0.35;
/// Bits of a weight in 4-bit blocks of 32 with a half for a scale.
const FOUR_BIT: f64 = 4.5;
/// Above so many bits a weight, 4 are far fewer.
const MANY_BITS: f64 = 5.5;

/// A kind of suggestion.
#[derive(Debug)]
pub struct Suggestion {
    /// Its name.
    pub id: &'static str,
    /// What it is for: high latency, high memory, high CPU, throttling.
    pub against: &'static str,
    /// Looks at a record.
    look: fn(&Case<'_>) -> Look,
}

/// Every kind.
pub const SUGGESTIONS: &[&Suggestion] = &[
    &bits::BITS,
    &visual_tokens::VISUAL_TOKENS,
    &encoder::ENCODER,
    &gpu::GPU,
    &prepack::PREPACK,
    &kv::KV,
    &decode_threads::DECODE_THREADS,
    &heat::HEAT,
];

/// What a kind found.
#[derive(Clone, Debug, PartialEq)]
enum Look {
    /// There is nothing to do.
    Fine(String),
    /// The record does not tell.
    Unknown(String),
    /// There is.
    Do(Found),
}

/// What to do, before its kind is added.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    what: String,
    evidence: String,
    gain: Option<Gain>,
    command: String,
}

/// What a suggestion would win.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// Of what: `answer`, `peak memory`, `CPU`, `tokens/s`.
    pub of: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Measured.
    pub before: f64,
    /// Predicted.
    pub after: f64,
    /// How that was found.
    pub by: String,
}

impl Gain {
    /// Part of the quantity that is won, 0 to 1.
    pub fn part(&self) -> f64 {
        let (least, most) = (self.before.min(self.after), self.before.max(self.after));
        if most > 0.0 { 1.0 - least / most } else { 0.0 }
    }
}

/// A suggestion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// Its kind.
    pub id: &'static str,
    /// What it is for.
    pub against: &'static str,
    /// What to do.
    pub what: String,
    /// What in the record says so.
    pub evidence: String,
    /// What it would win; `None` where nothing in the record tells.
    pub gain: Option<Gain>,
    /// What to run to see.
    pub command: String,
}

/// What a record suggests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advised {
    /// What to do, most gain first, those without a price last.
    pub advice: Vec<Advice>,
    /// Kinds that found nothing to do, and why.
    pub fine: Vec<(&'static str, String)>,
    /// Kinds that the record tells too little for, and what is missing.
    pub unknown: Vec<(&'static str, String)>,
}

/// Seconds of an answer on a simulated device as it is and with changes; `None` where the device cannot.
pub type Simulate<'a> = &'a dyn Fn(&[WhatIf]) -> Option<(f64, f64)>;

/// What only a device's numbers can price.
#[derive(Clone, Copy)]
pub struct Pricing<'a> {
    /// What a change of where things run would do.
    pub simulate: Simulate<'a>,
    /// How many times as fast its CPU multiplies 8-bit numbers as floats.
    pub int8_over_float: Option<f64>,
}

/// Looks at a record. With `pricing`, where a device and a model are known, more can be said.
pub fn advise(record: &Record, pricing: Option<Pricing<'_>>) -> Advised {
    let case = Case { record, pricing };
    let mut advised = Advised { advice: vec![], fine: vec![], unknown: vec![] };
    for kind in SUGGESTIONS {
        match (kind.look)(&case) {
            Look::Fine(why) => advised.fine.push((kind.id, why)),
            Look::Unknown(why) => advised.unknown.push((kind.id, why)),
            Look::Do(Found { what, evidence, gain, command }) => {
                let (id, against) = (kind.id, kind.against);
                advised.advice.push(Advice { id, against, what, evidence, gain, command });
            }
        }
    }
    let part = |advice: &Advice| advice.gain.as_ref().map_or(-1.0, Gain::part);
    advised.advice.sort_by(|a, b| part(b).total_cmp(&part(a)));
    advised
}

/// A record as the kinds look at it.
struct Case<'a> {
    record: &'a Record,
    pricing: Option<Pricing<'a>>,
}

impl Case<'_> {
    /// Median of a figure of Margay's runs.
    fn figure(&self, key: &str) -> Option<f64> {
        let metric = METRICS.iter().find(|metric| metric.key == key)?;
        median(&metric.values(self.record.engine(MARGAY)?))
    }

    /// Median over warm runs of anything else.
    fn warm(&self, value: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        let runs = &self.record.engine(MARGAY)?.runs;
        let warm = runs.iter().filter(|run| run.begin == Begin::Warm);
        median(&warm.filter_map(value).collect::<Vec<_>>())
    }

    /// Milliseconds of a whole answer.
    fn answer(&self) -> Option<f64> {
        self.figure("without_load_ms").filter(|ms| *ms > 0.0)
    }

    /// Part of the answer that takes so many milliseconds.
    fn part(&self, ms: f64) -> Option<f64> {
        Some(ms / self.answer()?)
    }

    /// Bits of a weight that decoding reads: bytes over products, of which each weight takes part in one.
    fn bits(&self) -> Option<f64> {
        let decode = self.record.work.iter().find(|work| work.stage == "decode")?;
        (decode.operations > 0).then(|| 16.0 * decode.bytes as f64 / decode.operations as f64)
    }

    /// Bytes a second that decoding read.
    fn decode_rate(&self) -> Option<f64> {
        let decode = self.record.work.iter().find(|work| work.stage == "decode")?;
        Some(decode.bytes as f64 * 1e3 / self.figure("decode_ms").filter(|ms| *ms > 0.0)?)
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.record.options.get(name).map(String::as_str)
    }

    /// The gain in an answer's time, of a stage that takes `after` in place of `before` milliseconds.
    fn shorter(&self, before: f64, after: f64, by: impl Into<String>) -> Option<Gain> {
        let answer = self.answer()?;
        let by = by.into();
        Some(Gain { of: "answer", unit: "ms", before: answer, after: answer - before + after, by })
    }

    /// The gain in an answer's time that a simulated device shows: its ratio, applied to what was measured.
    fn simulated(&self, changes: &[WhatIf]) -> Option<Gain> {
        let (base, changed) = (self.pricing?.simulate)(changes)?;
        let answer = self.answer()?;
        let names: Vec<&str> = changes.iter().map(|change| change.name()).collect();
        let by = format!(
            "simulated: {} takes {base:.2} s as it is and {changed:.2} s with {}",
            self.record.model.name,
            names.join(",")
        );
        (base > 0.0).then(|| Gain {
            of: "answer",
            unit: "ms",
            before: answer,
            after: answer * changed / base,
            by,
        })
    }
}

fn percent(part: f64) -> String {
    format!("{:.0} %", 100.0 * part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Engine, FORM, Heartbeat, Mark, PictureId, Run, StageMs, StageWork, Sustained};

    /// A quick, cool, small answer of a second: nothing takes more than a third, and weights have 4.5 bits.
    fn healthy() -> Record {
        let run = |begin| Run {
            begin,
            stages: StageMs {
                load: (begin == Begin::Cold).then_some(100.0),
                preprocess: Some(20.0),
                encode: Some(330.0),
                project: Some(10.0),
                prefill: Some(330.0),
                decode: Some(310.0),
                ..StageMs::default()
            },
            without_load_ms: Some(1000.0),
            with_load_ms: (begin == Begin::Cold).then_some(1100.0),
            prompt_tokens: Some(100),
            visual_tokens: Some(40),
            decode_tokens: Some(10),
            peak_rss_bytes: Some(1 << 30),
            process_cpu_percent: Some(350.0),
            cpu_pressure_percent: Some(2.0),
            memory_pressure_percent: Some(0.0),
            heartbeat: Some(Heartbeat { frames: 100, missed: 1, worst_gap_ms: 20.0 }),
            ..Run::default()
        };
        let runs = vec![run(Begin::Cold), run(Begin::Warm), run(Begin::Warm)];
        let mut record = Record { form: FORM.to_owned(), ..Record::default() };
        record.engines = vec![Engine { name: MARGAY.to_owned(), command: None, runs }];
        record.device.memory_bytes = Some(8 << 30);
        record.device.logical_cores = Some(4);
        record.question.pictures = vec![PictureId::default()];
        record.model.name = "test".to_owned();
        record.model.weights_bytes = Some(562_500_000);
        record.options.insert("threads".to_owned(), "4".to_owned());
        record.options.insert("kv".to_owned(), "f16".to_owned());
        record.work = vec![work(4.5)];
        record.sustained = Some(sustained(0.99));
        record
    }

    /// Ten tokens of a thousand million weights.
    fn work(bits: f64) -> StageWork {
        let bytes = (10.0 * 1e9 * bits / 8.0) as u64;
        StageWork { stage: "decode".to_owned(), tokens: Some(10), operations: 20_000_000_000, bytes }
    }

    fn sustained(factor: f64) -> Sustained {
        let mark = |seconds, rate| Mark { seconds, answers_per_minute: 60.0, tokens_per_second: Some(rate) };
        Sustained {
            planned_seconds: 600.0,
            seconds: 601.0,
            marks: vec![mark(60.0, 30.0), mark(600.0, 30.0 * factor)],
            factor: Some(factor),
            start_celsius: Some(30.0),
            peak_celsius: Some(90.0),
            caps: "no cap fell".to_owned(),
            ..Sustained::default()
        }
    }

    fn each(record: &mut Record, change: impl Fn(&mut Run)) {
        record.engines[0].runs.iter_mut().for_each(change);
    }

    fn ids(advised: &Advised) -> Vec<&'static str> {
        advised.advice.iter().map(|advice| advice.id).collect()
    }

    #[test]
    fn a_healthy_record_has_nothing_to_gain_and_says_what_was_looked_at() {
        let advised = advise(&healthy(), None);
        assert_eq!(ids(&advised), [""; 0]);
        let unknown: Vec<_> = advised.unknown.iter().map(|(id, _)| *id).collect();
        assert_eq!(unknown, ["gpu"], "nobody gave a device");
        assert_eq!(advised.fine.len() + 1, SUGGESTIONS.len());
    }

    #[test]
    fn decoding_in_many_bits_is_priced_by_its_bytes() {
        let mut record = healthy();
        record.work = vec![work(16.0)];
        each(&mut record, |run| {
            run.stages.decode = Some(3200.0);
            run.without_load_ms = Some(4000.0);
        });
        let advised = advise(&record, None);
        assert_eq!(ids(&advised), ["fewer-bits"]);
        let gain = advised.advice[0].gain.as_ref().unwrap();
        // 3200 ms of 16 bits are 900 of 4.5.
        assert_eq!((gain.before, gain.after), (4000.0, 1700.0));
        assert!(
            advised.advice[0].evidence.contains("80 %") && advised.advice[0].evidence.contains("16.0 bits")
        );
        record.work = vec![work(4.5)];
        assert!(advise(&record, None).advice.is_empty(), "4 bits already");
        record.work.clear();
        assert!(advise(&record, None).unknown.iter().any(|(id, _)| *id == "fewer-bits"));
    }

    #[test]
    fn high_memory_asks_for_fewer_bits_then_for_a_smaller_cache() {
        let mut record = healthy();
        each(&mut record, |run| run.peak_rss_bytes = Some(6 << 30));
        let kv = advise(&record, None);
        assert_eq!(ids(&kv), ["less-memory"]);
        assert!(kv.advice[0].what.contains("8 bits") && kv.advice[0].gain.is_none());
        record.work = vec![work(16.0)];
        record.model.weights_bytes = Some(2_000_000_000);
        let bits = advise(&record, None);
        let gain = bits.advice[0].gain.as_ref().unwrap();
        assert_eq!(gain.before - gain.after, 2e9 * (1.0 - 4.5 / 16.0));
        record.work = vec![work(4.5)];
        record.options.insert("kv".to_owned(), "q8".to_owned());
        assert!(advise(&record, None).advice[0].what.contains("smaller model"));
        each(&mut record, |run| {
            (run.peak_rss_bytes, run.memory_pressure_percent) = (Some(1 << 20), Some(40.0))
        });
        assert!(advise(&record, None).advice[0].evidence.contains("40 %"));
    }

    #[test]
    fn a_run_that_throttled_is_told_by_its_rates() {
        let mut record = healthy();
        record.sustained = Some(sustained(0.5));
        let advised = advise(&record, None);
        assert_eq!(ids(&advised), ["less-heat"]);
        let advice = &advised.advice[0];
        let gain = advice.gain.as_ref().unwrap();
        assert_eq!((gain.before, gain.after, gain.part()), (15.0, 30.0, 0.5));
        assert!(advice.evidence.contains("90 C") && advice.against == "throttling");
        record.sustained = Some(Sustained { cap_fell_seconds: Some(42.0), ..sustained(0.97) });
        assert!(advise(&record, None).advice[0].evidence.contains("fell after 42 s"));
    }

    #[test]
    fn busy_cores_that_make_others_wait_decode_with_fewer_threads() {
        let mut record = healthy();
        each(&mut record, |run| {
            run.process_cpu_percent = Some(390.0);
            run.heartbeat = Some(Heartbeat { frames: 100, missed: 20, worst_gap_ms: 90.0 });
        });
        let advised = advise(&record, None);
        assert_eq!(ids(&advised), ["fewer-decode-threads"]);
        let gain = advised.advice[0].gain.as_ref().unwrap();
        // Half the threads for 31 % of the time.
        assert!((gain.after - 390.0 * (1.0 - 0.155)).abs() < 1e-9);
        assert!(advised.advice[0].command.contains("--decode-threads 2"));
    }

    #[test]
    fn advice_is_ranked_by_its_part_and_what_has_no_price_comes_last() {
        let mut record = healthy();
        record.sustained = Some(sustained(0.8));
        each(&mut record, |run| {
            run.stages.encode = Some(400.0);
            run.stages.prefill = Some(500.0);
            (run.visual_tokens, run.prompt_tokens) = (Some(90), Some(100));
            run.stages.load = run.stages.load.map(|_| 5000.0);
            run.with_load_ms = run.with_load_ms.map(|_| 6000.0);
        });
        let advised = advise(&record, None);
        assert_eq!(ids(&advised), ["prepack", "fewer-visual-tokens", "less-heat", "int8-encoder"]);
        record.options.insert("int8-encoder".to_owned(), "yes".to_owned());
        assert!(!ids(&advise(&record, None)).contains(&"int8-encoder"));
    }

    #[test]
    fn a_device_prices_a_gpu_by_what_is_simulated_and_an_encoder_by_its_rates() {
        let mut record = healthy();
        let half = |changes: &[WhatIf]| Some((10.0, if changes.is_empty() { 10.0 } else { 5.0 }));
        let of = |simulate, ratio| Some(Pricing { simulate, int8_over_float: ratio });
        let advised = advise(&record, of(&half, None));
        let gain = advised.advice[0].gain.as_ref().unwrap();
        assert_eq!((advised.advice[0].id, gain.before, gain.after), ("gpu", 1000.0, 500.0));
        assert!(gain.by.starts_with("simulated"));
        assert!(advise(&record, of(&|_| Some((10.0, 9.8)), None)).advice.is_empty());
        assert!(advise(&record, of(&|_| None, None)).fine.iter().any(|(id, _)| *id == "gpu"));
        each(&mut record, |run| run.stages.encode = Some(400.0));
        let gain = |ratio| advise(&record, of(&|_| None, ratio)).advice[0].gain.clone();
        assert_eq!(gain(Some(4.0)).map(|gain| gain.after), Some(700.0));
        assert_eq!(gain(None), None);
        assert!(advise(&record, of(&|_| None, Some(1.01))).advice.is_empty(), "nothing to win");
    }

    #[test]
    fn kinds_have_their_own_names_and_an_empty_record_tells_of_none() {
        let mut ids: Vec<_> = SUGGESTIONS.iter().map(|kind| kind.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), SUGGESTIONS.len());
        let empty = advise(&Record::default(), None);
        assert!(empty.advice.is_empty());
    }
}
