//! Two records: what changed beyond noise.

use crate::{
    BenchError, Better, METRICS, Metric, Shift, Verdict,
    record::{MARGAY, Question, Record},
    shift,
};
use serde::Serialize;

/// One figure of both records.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Key of its [`Metric`].
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Runs of A and of B that know it.
    pub runs: (usize, usize),
    /// How far they are apart; `None` where a side does not know it.
    pub shift: Option<Shift>,
    /// True where B is worse beyond noise, false where it is better, `None` where no difference is shown.
    pub worse: Option<bool>,
}

/// Two records beside each other.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What a reader should know: devices, builds or options that differ, and what was forced.
    pub notes: Vec<String>,
    /// The figures that either record knows.
    pub lines: Vec<Line>,
    /// Work that B's stages do and A's did not, or less of it; empty where it is the same or not counted.
    pub work: Vec<MoreWork>,
}

/// A stage's work in both records, where it is not the same. Counted, not measured: there is no noise in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MoreWork {
    /// Which stage.
    pub stage: String,
    /// `operations` or `bytes`.
    pub of: &'static str,
    /// Of A.
    pub a: u64,
    /// Of B.
    pub b: u64,
}

impl MoreWork {
    /// Whether B does more.
    pub fn more(&self) -> bool {
        self.b > self.a
    }
}

/// A figure that breaks a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Broken {
    /// Its name.
    pub name: &'static str,
    /// B over A.
    pub ratio: f64,
    /// What the ratio is within, at 95 %.
    pub interval: (f64, f64),
}

/// Compares Margay's runs in B with those in A.
///
/// # Errors
/// [`BenchError::Different`] where model or question differ and `force` is not set.
pub fn compare(a: &Record, b: &Record, force: bool) -> Result<Comparison, BenchError> {
    let mut notes = Vec::new();
    for (what, of_a, of_b) in subjects(a, b) {
        if of_a != of_b {
            if !force {
                return Err(BenchError::Different { what, a: of_a, b: of_b });
            }
            notes.push(format!("forced: the {what} differs: {of_a} and {of_b}"));
        }
    }
    for (what, of_a, of_b) in circumstances(a, b) {
        if of_a != of_b {
            notes.push(format!("the {what} differs: {of_a} and {of_b}"));
        }
    }
    let names: std::collections::BTreeSet<&String> = a.options.keys().chain(b.options.keys()).collect();
    for name in names {
        let of = |record: &Record| record.options.get(name).cloned().unwrap_or_else(|| "unset".to_owned());
        if of(a) != of(b) {
            notes.push(format!("the option {name} differs: {} and {}", of(a), of(b)));
        }
    }
    for (name, record) in [("first", a), ("second", b)] {
        if !record.protocol.warnings.is_empty() {
            notes.push(format!("the {name} record has warnings: {}", record.protocol.warnings.join("; ")));
        }
    }
    let lines = METRICS.iter().filter_map(|metric| line(metric, a, b)).collect();
    let (work, uncounted) = works(a, b);
    notes.extend(uncounted);
    Ok(Comparison { notes, lines, work })
}

/// Stages whose work differs, and what cannot be compared.
fn works(a: &Record, b: &Record) -> (Vec<MoreWork>, Vec<String>) {
    let (mut all, mut notes) = (vec![], vec![]);
    for of_b in &b.work {
        let Some(of_a) = a.work.iter().find(|work| work.stage == of_b.stage) else {
            notes.push(format!("the work of {} is not counted in the first record", of_b.stage));
            continue;
        };
        // Answers may end where they like.
        if of_b.stage == "decode" && of_a.tokens != of_b.tokens {
            notes.push("the work of decode is not compared: the answers are of different lengths".to_owned());
            continue;
        }
        let pairs = [("operations", of_a.operations, of_b.operations), ("bytes", of_a.bytes, of_b.bytes)];
        let differ = pairs.into_iter().filter(|(_, a, b)| a != b);
        all.extend(differ.map(|(of, a, b)| MoreWork { stage: of_b.stage.clone(), of, a, b }));
    }
    (all, notes)
}

/// Checks that two questions are one, before half an hour goes into the second.
///
/// # Errors
/// [`BenchError::Different`].
pub(crate) fn same_question(a: &Question, b: &Question) -> Result<(), BenchError> {
    match questions(a, b).into_iter().find(|(_, a, b)| a != b) {
        Some((what, a, b)) => Err(BenchError::Different { what, a, b }),
        None => Ok(()),
    }
}

/// What must be the same for a ratio to mean anything.
fn subjects(a: &Record, b: &Record) -> Vec<(&'static str, String, String)> {
    let model = |r: &Record| {
        let digest = r.model.weights_sha256.as_deref().map_or("unknown digest", |d| d.get(..12).unwrap_or(d));
        format!("{} ({digest})", r.model.name)
    };
    let mut all = vec![("model", model(a), model(b))];
    all.extend(questions(&a.question, &b.question));
    all
}

fn questions(a: &Question, b: &Question) -> Vec<(&'static str, String, String)> {
    let pictures = |question: &Question| {
        let one = |p: &crate::PictureId| {
            let digest = p.sha256.as_deref().map_or("unknown digest", |d| d.get(..12).unwrap_or(d));
            format!("{} ({}x{}, {digest})", p.name, p.width, p.height)
        };
        question.pictures.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let picture_digests = |q: &Question| q.pictures.iter().map(|p| p.sha256.clone()).collect::<Vec<_>>();
    let mut all = vec![
        ("prompt", format!("{:?}", a.prompt), format!("{:?}", b.prompt)),
        ("longest answer", a.max_tokens.to_string(), b.max_tokens.to_string()),
    ];
    // A copy under another name is the same picture.
    if picture_digests(a) != picture_digests(b) || picture_digests(a).contains(&None) {
        all.push(("pictures", pictures(a), pictures(b)));
    }
    all
}

/// What a reader of a ratio wants to know.
fn circumstances(a: &Record, b: &Record) -> Vec<(&'static str, String, String)> {
    let unknown = || "unknown".to_owned();
    let device = |r: &Record| {
        let d = &r.device;
        let cores = d.logical_cores.map_or_else(unknown, |cores| cores.to_string());
        format!("{}, {cores} processors", d.cpu.clone().unwrap_or_else(unknown))
    };
    let build = |r: &Record| {
        let digest = r.build.executable_sha256.as_deref().map(|d| d.get(..12).unwrap_or(d));
        format!("{} ({})", r.build.version, digest.unwrap_or("unknown digest"))
    };
    let kind = |r: &Record| if r.build.debug_assertions { "development" } else { "release" }.to_owned();
    vec![
        ("device", device(a), device(b)),
        (
            "kernel",
            a.device.kernel.clone().unwrap_or_else(unknown),
            b.device.kernel.clone().unwrap_or_else(unknown),
        ),
        ("governor", a.device.governors.join(", "), b.device.governors.join(", ")),
        ("build", build(a), build(b)),
        ("kind of build", kind(a), kind(b)),
    ]
}

fn line(metric: &Metric, a: &Record, b: &Record) -> Option<Line> {
    let values =
        |record: &Record| record.engine(MARGAY).map(|engine| metric.values(engine)).unwrap_or_default();
    let (of_a, of_b) = (values(a), values(b));
    if of_a.is_empty() && of_b.is_empty() {
        return None;
    }
    let shift = shift(&of_a, &of_b);
    let worse = shift.and_then(|shift| match (shift.verdict, metric.better) {
        (Verdict::More, Better::Less) | (Verdict::Less, Better::More) => Some(true),
        (Verdict::Less, Better::Less) | (Verdict::More, Better::More) => Some(false),
        (Verdict::NotShown | Verdict::TooFew, _) => None,
    });
    let (key, name, unit) = (metric.key, metric.name, metric.unit);
    Some(Line { key, name, unit, runs: (of_a.len(), of_b.len()), shift, worse })
}

impl Comparison {
    /// Figures of which B is worse than A beyond noise and by more than `percent`.
    pub fn broken(&self, percent: f64) -> Vec<Broken> {
        let gated = |line: &&Line| METRICS.iter().any(|metric| metric.key == line.key && metric.gated);
        let over = |line: &Line| {
            let shift = line.shift.filter(|_| line.worse == Some(true))?;
            let factor = 1.0 + percent / 100.0;
            (shift.ratio > factor).then_some(Broken {
                name: line.name,
                ratio: shift.ratio,
                interval: shift.interval,
            })
        };
        self.lines.iter().filter(gated).filter_map(over).collect()
    }

    /// Stages that do more work in B than in A, by however little.
    pub fn more_work(&self) -> impl Iterator<Item = &MoreWork> {
        self.work.iter().filter(|work| work.more())
    }

    /// True where a gate can say nothing at all: no gated figure had enough runs on both sides.
    pub fn says_nothing(&self) -> bool {
        let tells = |line: &Line| line.shift.is_some_and(|shift| shift.verdict != Verdict::TooFew);
        let gated = |line: &&Line| METRICS.iter().any(|metric| metric.key == line.key && metric.gated);
        !self.lines.iter().filter(gated).any(tells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Begin, Engine, FORM, Run, StageMs, StageWork};

    fn record(encode: f64, rounds: usize) -> Record {
        let run = |round: usize| Run {
            round,
            begin: Begin::Warm,
            stages: StageMs {
                encode: Some(encode + round as f64 * 0.1),
                prefill: Some(50.0 + round as f64 * 0.1),
                decode: Some(10.0),
                ..StageMs::default()
            },
            decode_tokens: Some(4),
            ..Run::default()
        };
        let runs = (0..rounds).map(run).collect();
        let engine = Engine { name: MARGAY.to_owned(), command: None, runs };
        let mut record = Record { form: FORM.to_owned(), engines: vec![engine], ..Record::default() };
        record.model.name = "nano".to_owned();
        record
    }

    fn of<'c>(comparison: &'c Comparison, key: &str) -> &'c Line {
        comparison.lines.iter().find(|line| line.key == key).unwrap()
    }

    #[test]
    fn what_is_slower_beyond_noise_breaks_a_gate_and_the_rest_does_not() {
        let (a, b) = (record(20.0, 5), record(24.0, 5));
        let found = compare(&a, &b, false).unwrap();
        assert_eq!((of(&found, "encode_ms").worse, of(&found, "prefill_ms").worse), (Some(true), None));
        assert!(found.lines.iter().all(|line| line.key != "load_ms"), "nobody knows it");
        let broken = found.broken(10.0);
        assert_eq!(broken.iter().map(|b| b.name).collect::<Vec<_>>(), ["encode"]);
        assert!(found.broken(25.0).is_empty() && !found.says_nothing());
        let back = compare(&b, &a, false).unwrap();
        assert_eq!(of(&back, "encode_ms").worse, Some(false));
        assert!(back.broken(0.0).is_empty(), "faster breaks nothing");
        assert!(compare(&record(20.0, 3), &record(40.0, 3), false).unwrap().says_nothing());
    }

    #[test]
    fn work_is_compared_exactly_and_answers_of_other_lengths_are_not() {
        let stage = |stage: &str, tokens, operations, bytes| StageWork {
            stage: stage.to_owned(),
            tokens,
            operations,
            bytes,
        };
        let (mut a, mut b) = (record(20.0, 5), record(20.0, 5));
        a.work = vec![stage("encode", None, 1000, 50), stage("decode", Some(3), 30, 3)];
        b.work = vec![stage("encode", None, 1001, 40), stage("decode", Some(4), 40, 4)];
        let found = compare(&a, &b, false).unwrap();
        let more: Vec<_> = found.more_work().map(|w| (w.stage.as_str(), w.of, w.a, w.b)).collect();
        assert_eq!(more, [("encode", "operations", 1000, 1001)]);
        assert_eq!(found.work.len(), 2, "less is told too: {:?}", found.work);
        assert!(found.notes.iter().any(|note| note.contains("different lengths")), "{:?}", found.notes);
        a.work.clear();
        let found = compare(&a, &b, false).unwrap();
        assert!(found.work.is_empty() && found.notes.iter().any(|note| note.contains("not counted")));
    }

    #[test]
    fn other_models_and_prompts_are_refused_unless_forced_and_other_devices_are_said() {
        let a = record(20.0, 5);
        let mut b = a.clone();
        b.model.weights_sha256 = Some("00112233445566778899".to_owned());
        let message = compare(&a, &b, false).unwrap_err().to_string();
        assert!(message.contains("model") && message.contains("001122334455") && message.contains("--force"));
        assert!(compare(&a, &b, true).unwrap().notes[0].starts_with("forced: the model"));
        let mut b = a.clone();
        b.question.prompt = "other".to_owned();
        assert!(compare(&a, &b, false).unwrap_err().to_string().contains("prompt"));
        let mut b = a.clone();
        b.device.cpu = Some("A76".to_owned());
        b.options.insert("threads".to_owned(), "2".to_owned());
        b.build.executable_sha256 = Some("ff".to_owned());
        let notes = compare(&a, &b, false).unwrap().notes.join("\n");
        for word in ["device differs", "build differs", "option threads differs: unset and 2"] {
            assert!(notes.contains(word), "{word}: {notes}");
        }
        // A hostile digest is no reason to fail.
        b.build.executable_sha256 = Some("äöüäöüäöüäöü".to_owned());
        assert!(compare(&a, &b, false).is_ok());
    }
}
