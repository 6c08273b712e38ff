//! Answers to figures.

use crate::{
    Answered, Headline, Interval, Record, Row, Suite,
    interval::{Unit, bootstrap, mcnemar, wilson},
};
use serde::Serialize;

/// What a suite says of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The figure that tables print.
    pub headline: Figure,
    /// Figures task by task.
    pub rows: Vec<(Row, Option<Interval>)>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// A figure with what it means.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Name, and the best it can be.
    #[serde(flatten)]
    pub headline: Headline,
    /// Its value; `None` where it is not defined.
    pub value: Option<f64>,
    /// 95 % of where it lies.
    pub interval: Option<Interval>,
    /// Questions behind it.
    pub questions: usize,
}

/// Two models on the same questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The headline of the reference.
    pub reference: Figure,
    /// That of the candidate.
    pub candidate: Figure,
    /// How much of the best possible value the candidate loses, in percentage points; negative where it gains.
    pub drop: Option<f64>,
    /// 95 % of where that lies: both models on the same draws of questions.
    pub drop_interval: Option<Interval>,
    /// Units (questions, or groups of them that count as one) that both have right.
    pub both: usize,
    /// Those that only the reference has right.
    pub only_reference: usize,
    /// Those that only the candidate has right.
    pub only_candidate: usize,
    /// Those that neither has.
    pub neither: usize,
    /// McNemar's exact p of these counts; `None` where answers are worth something between right and wrong.
    pub mcnemar_p: Option<f64>,
    /// Questions answered with the same words.
    pub same_answers: usize,
}

impl Paired {
    /// [`Paired::mcnemar_p`] in words.
    pub fn mcnemar_words(&self) -> Option<String> {
        let p = self.mcnemar_p?;
        Some(if p < 0.001 { "McNemar p < 0.001".to_owned() } else { format!("McNemar p = {p:.3}") })
    }
}

/// The answers of a record to the chosen questions; what it lacks counts as not asked.
pub(crate) fn answers<'r>(suite: &dyn Suite, chosen: &[usize], record: &'r Record) -> Vec<Answered<'r>> {
    let text = |at: usize| record.get(&suite.items()[at].id).and_then(|entry| entry.answer.as_deref());
    chosen.iter().map(|at| Answered { item: *at, text: text(*at) }).collect()
}

/// Scores a record's answers to the chosen questions.
pub fn score(suite: &dyn Suite, chosen: &[usize], record: &Record) -> Score {
    let answers = answers(suite, chosen, record);
    let units = units(suite, &answers);
    let rows = suite
        .rows(&answers)
        .into_iter()
        .map(|row| {
            let interval =
                row.right.and_then(|right| wilson(right, row.n as f64)).map(|ends| percent(ends, "wilson"));
            (row, interval)
        })
        .collect();
    let mut notes = suite.notes(&answers);
    let missing = answers.iter().filter(|answer| answer.text.is_none()).count();
    if missing > 0 {
        notes.push(format!(
            "{missing} questions could not be asked (they do not fit the context); they are wrong"
        ));
    }
    Score { headline: figure(suite, &units, answers.len()), rows, notes }
}

/// Compares two records' answers to the same questions.
pub fn paired(suite: &dyn Suite, chosen: &[usize], reference: &Record, candidate: &Record) -> Paired {
    let (first, second) = (answers(suite, chosen, reference), answers(suite, chosen, candidate));
    let (ours, theirs) = (units(suite, &first), units(suite, &second));
    let (reference, candidate) = (figure(suite, &ours, first.len()), figure(suite, &theirs, second.len()));
    let of = suite.headline().of;
    let width = ours.first().map_or(0, |unit| unit.sums.len());
    let drop =
        |sums: &[f64]| Some(100.0 * (suite.value(&sums[..width])? - suite.value(&sums[width..])?) / of);
    let joined: Vec<Unit> = ours
        .iter()
        .zip(&theirs)
        .map(|(a, b)| Unit { stratum: a.stratum, sums: [a.sums.clone(), b.sums.clone()].concat() })
        .collect();
    let ends = bootstrap(&joined, &drop);
    let worth = |answers: &[Answered<'_>]| -> Vec<f64> {
        groups(suite, answers).flat_map(|group| suite.worth(group)).collect()
    };
    let (worth_first, worth_second) = (worth(&first), worth(&second));
    let whole = worth_first.iter().chain(&worth_second).all(|worth| *worth == 0.0 || *worth == 1.0);
    let count = |a: bool, b: bool| {
        let is = |(x, y): &(&f64, &f64)| (**x >= 0.5) == a && (**y >= 0.5) == b;
        worth_first.iter().zip(&worth_second).filter(is).count()
    };
    let (only_reference, only_candidate) = (count(true, false), count(false, true));
    Paired {
        drop: drop(&total(&joined)),
        drop_interval: ends.map(|(low, high)| Interval { low, high, how: "paired bootstrap" }),
        both: count(true, true),
        only_reference,
        only_candidate,
        neither: count(false, false),
        mcnemar_p: whole.then(|| mcnemar(only_reference, only_candidate)),
        same_answers: first.iter().zip(&second).filter(|(a, b)| a.text == b.text).count(),
        reference,
        candidate,
    }
}

fn figure(suite: &dyn Suite, units: &[Unit], questions: usize) -> Figure {
    let headline = suite.headline();
    let sums = total(units);
    let interval = if headline.is_share {
        sums.get(..2).and_then(|sums| wilson(sums[0], sums[1])).map(|ends| percent(ends, "wilson"))
    } else {
        let ends = bootstrap(units, &|sums| suite.value(sums));
        ends.map(|(low, high)| Interval { low, high, how: "bootstrap" })
    };
    let value = if sums.is_empty() { None } else { suite.value(&sums) };
    Figure { headline, value, interval, questions }
}

fn percent((low, high): (f64, f64), how: &'static str) -> Interval {
    Interval { low: 100.0 * low, high: 100.0 * high, how }
}

fn total(units: &[Unit]) -> Vec<f64> {
    let mut sums = vec![0.0; units.first().map_or(0, |unit| unit.sums.len())];
    for unit in units {
        sums.iter_mut().zip(&unit.sums).for_each(|(sum, value)| *sum += value);
    }
    sums
}

fn units(suite: &dyn Suite, answers: &[Answered<'_>]) -> Vec<Unit> {
    let unit = |group: &[Answered<'_>]| Unit { stratum: suite.stratum(group), sums: suite.sums(group) };
    groups(suite, answers).map(unit).collect()
}

/// Answers in the order of [`crate::choose`], group by group.
fn groups<'a, 'r>(
    suite: &'a dyn Suite,
    answers: &'a [Answered<'r>],
) -> impl Iterator<Item = &'a [Answered<'r>]> {
    answers.chunk_by(|a, b| suite.items()[a.item].group == suite.items()[b.item].group)
}
