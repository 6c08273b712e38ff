//! Two models side by side, stage by stage and position by position.

use crate::{EvalError, Paired, divergence::divergence, interval::quantile};
use margay::{Image, Tracer, rooms::tensor::Tensor};
use serde::Serialize;
use std::collections::BTreeMap;

/// What both models are asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Pictures.
    pub images: Vec<Image>,
    /// Words.
    pub prompt: String,
}

/// What stands at a position of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A visual token.
    Visual,
    /// A token of the prompt behind the first visual token.
    Text,
    /// The prompt's last token, or one of the answer: what is predicted there is answered.
    Answer,
}

impl Kind {
    /// All kinds, in the order in which they come.
    pub const ALL: [Kind; 3] = [Kind::Visual, Kind::Text, Kind::Answer];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Visual => "visual",
            Kind::Text => "text",
            Kind::Answer => "answer",
        }
    }
}

/// Sums over the questions measured so far.
#[derive(Default)]
pub struct Comparison {
    questions: usize,
    same_answers: usize,
    /// In the order in which stages come, by their names.
    stages: Vec<(String, Sums)>,
    positions: Vec<Position>,
}

/// What the distance of two vectors is made of.
#[derive(Clone, Copy, Default)]
struct Sums {
    dot: f64,
    of_reference: f64,
    of_candidate: f64,
    of_difference: f64,
}

struct Position {
    kind: Kind,
    /// Place within its kind.
    place: usize,
    kl: f64,
    same: bool,
}

/// How far two models lie apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Questions measured.
    pub questions: usize,
    /// Stages in order.
    pub stages: Vec<StageDistance>,
    /// Next-token distributions at every position from the first visual token on; `None` of nothing.
    pub all: Option<KlFigures>,
    /// The same, kind by kind.
    pub kinds: Vec<(Kind, KlFigures)>,
    /// Mean divergence by kind and place within the kind.
    pub places: Vec<Place>,
    /// Greedy answers that are equal token by token.
    pub same_answers: usize,
}

/// The distance of one stage's numbers over all questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageDistance {
    /// `pixels`, `encode`, `project`, `hidden.<layer>` or `logits`.
    pub stage: String,
    /// Cosine of the two vectors of all numbers; `None` of zeros.
    pub cosine: Option<f64>,
    /// Length of the difference over the length of the reference; `None` of zeros.
    pub relative_error: Option<f64>,
}

/// Divergences of the next-token distributions, KL(reference || candidate) in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KlFigures {
    /// Positions.
    pub positions: usize,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Greatest.
    pub greatest: f64,
    /// Share of positions with the same likeliest token, 0 to 1.
    pub same_top1: f64,
}

/// Mean divergence at one place.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Place {
    /// What stands there.
    pub kind: Kind,
    /// Place within the kind, from 0.
    pub place: usize,
    /// Mean over the questions that have it.
    pub mean: f64,
    /// Those questions.
    pub questions: usize,
}

/// What a candidate may lose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Mean divergence over all positions, nats.
    pub max_kl: Option<f64>,
    /// Loss of the suite's headline, percentage points of its best value.
    pub max_drop: Option<f64>,
}

/// A limit that was broken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// The option that set it.
    pub limit: &'static str,
    /// What it allows.
    pub allowed: f64,
    /// What was measured; `None` where there was nothing to measure.
    pub found: Option<f64>,
}

impl Limits {
    /// The limits that do not hold. What was not measured does not hold either.
    pub fn broken(&self, difference: Option<&Difference>, paired: Option<&Paired>) -> Vec<Gate> {
        let kl = difference.and_then(|d| d.all).map(|kl| kl.mean);
        let drop = paired.and_then(|p| p.drop);
        [("--max-kl", self.max_kl, kl), ("--max-drop", self.max_drop, drop)]
            .into_iter()
            .filter_map(|(limit, allowed, found)| {
                let allowed = allowed?;
                let holds = found.is_some_and(|found| found <= allowed);
                (!holds).then_some(Gate { limit, allowed, found })
            })
            .collect()
    }
}

impl Comparison {
    /// Asks both models one question: the stages of the prompt, then the answer. The reference's greedy answer, at most
    /// `answer_tokens` of it, is given to both, so that they are compared behind the same tokens.
    ///
    /// # Errors
    /// [`EvalError::Incomparable`] where the two do not see the same tokens or have other sizes, [`EvalError::Engine`].
    pub fn measure(
        &mut self,
        reference: &mut Tracer<'_>,
        candidate: &mut Tracer<'_>,
        question: &Question,
        answer_tokens: usize,
    ) -> Result<(), EvalError> {
        let ours = reference.trace(&question.images, &question.prompt)?;
        let theirs = candidate.trace(&question.images, &question.prompt)?;
        let ids = |tensors: &[(String, Tensor)]| {
            tensors.iter().find(|(name, _)| name == "input_ids").map(|(_, tensor)| i32s(tensor))
        };
        let incomparable = |what: String| EvalError::Incomparable { what };
        let ids_of_both = ids(&ours).zip(ids(&theirs));
        let (ids, others) = ids_of_both.expect("invariant: every trace has its ids");
        if ids != others {
            let (a, b) = (ids.len(), others.len());
            return Err(incomparable(format!(
                "a prompt is {a} tokens of one and {b}, or others, of the other"
            )));
        }
        for (name, tensor) in ours.iter().filter(|(name, _)| name != "input_ids") {
            let other = theirs.iter().find(|(other, _)| other == name).map(|(_, tensor)| tensor);
            let other = other.filter(|other| other.shape() == tensor.shape()).ok_or_else(|| {
                let of_other = other.map_or("none".to_owned(), |other| other.shape().to_string());
                incomparable(format!("{name} is {} of one and {of_other} of the other", tensor.shape()))
            })?;
            let stage = if name == "pixel_values" { "pixels" } else { name };
            self.add_stage(stage, &f32s(tensor), &f32s(other));
        }
        let logits = |tensors: &[(String, Tensor)]| {
            let found = tensors.iter().find(|(name, _)| name == "logits");
            f32s(&found.expect("invariant: every trace has its logits").1)
        };
        let (mut ours, mut theirs) = (logits(&ours), logits(&theirs));
        let vocabulary = ours.len() / ids.len();
        let answer = reference.answer(answer_tokens)?;
        self.same_answers += usize::from(candidate.answer(answer_tokens)? == answer);
        ours.extend(reference.behind(&answer)?);
        theirs.extend(candidate.behind(&answer)?);

        let first = ids.iter().position(|id| *id < 0).unwrap_or(0);
        let mut places = [0; Kind::ALL.len()];
        let rows = ours.chunks_exact(vocabulary).zip(theirs.chunks_exact(vocabulary));
        for (at, (a, b)) in rows.enumerate().skip(first) {
            let kind = match ids.get(at) {
                Some(id) if *id < 0 => Kind::Visual,
                Some(_) if at + 1 < ids.len() => Kind::Text,
                _ => Kind::Answer,
            };
            let (kl, same) = divergence(a, b);
            let place = places[kind as usize];
            places[kind as usize] += 1;
            self.positions.push(Position { kind, place, kl, same });
        }
        self.questions += 1;
        Ok(())
    }

    /// What was measured.
    pub fn difference(&self) -> Difference {
        let stage = |(stage, sums): &(String, Sums)| StageDistance {
            stage: stage.clone(),
            cosine: finite(sums.dot / (sums.of_reference.sqrt() * sums.of_candidate.sqrt())),
            relative_error: finite((sums.of_difference / sums.of_reference).sqrt()),
        };
        let of_kind = |kind: Kind| {
            Some((kind, figures(self.positions.iter().filter(|position| position.kind == kind))?))
        };
        let mut places: BTreeMap<(Kind, usize), (f64, usize)> = BTreeMap::new();
        for position in &self.positions {
            let (sum, count) = places.entry((position.kind, position.place)).or_default();
            (*sum, *count) = (*sum + position.kl, *count + 1);
        }
        let place = |((kind, place), (sum, questions)): ((Kind, usize), (f64, usize))| Place {
            kind,
            place,
            mean: sum / questions as f64,
            questions,
        };
        Difference {
            questions: self.questions,
            stages: self.stages.iter().map(stage).collect(),
            all: figures(self.positions.iter()),
            kinds: Kind::ALL.into_iter().filter_map(of_kind).collect(),
            places: places.into_iter().map(place).collect(),
            same_answers: self.same_answers,
        }
    }

    fn add_stage(&mut self, stage: &str, reference: &[f32], candidate: &[f32]) {
        let at = self.stages.iter().position(|(name, _)| name == stage).unwrap_or_else(|| {
            self.stages.push((stage.to_owned(), Sums::default()));
            self.stages.len() - 1
        });
        let sums = &mut self.stages[at].1;
        for (a, b) in reference.iter().zip(candidate) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            sums.dot += a * b;
            sums.of_reference += a * a;
            sums.of_candidate += b * b;
            sums.of_difference += (a - b) * (a - b);
        }
    }
}

fn figures<'p>(positions: impl Iterator<Item = &'p Position>) -> Option<KlFigures> {
    let (mut values, mut same) = (vec![], 0usize);
    for position in positions {
        values.push(position.kl);
        same += usize::from(position.same);
    }
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    Some(KlFigures {
        positions: n,
        mean: values.iter().sum::<f64>() / n as f64,
        median: quantile(&values, 0.5)?,
        p99: quantile(&values, 0.99)?,
        greatest: *values.last()?,
        same_top1: same as f64 / n as f64,
    })
}

fn finite(value: f64) -> Option<f64> {
    Some(value).filter(|value| value.is_finite())
}

fn words(tensor: &Tensor) -> impl Iterator<Item = [u8; 4]> {
    tensor.bytes().chunks_exact(4).map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    words(tensor).map(f32::from_le_bytes).collect()
}

fn i32s(tensor: &Tensor) -> Vec<i32> {
    words(tensor).map(i32::from_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::{Model, ModelSource, TraceOptions};
    use std::path::Path;

    fn golden(name: &str) -> ModelSource {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        ModelSource::open(&folder, None).unwrap()
    }

    #[test]
    fn a_model_is_no_distance_from_itself_and_some_from_one_of_fewer_bits() {
        use margay::rooms::tensor::DType;
        let source = golden("mobilevlm-v2");
        let fewer = golden("mobilevlm-v2").with_types(DType::Q4_0, None).unwrap();
        let question = Question {
            images: vec![Image::filled(40, 30, [200, 60, 30]).unwrap()],
            prompt: "What is this?".to_owned(),
        };
        let measure = |other: &ModelSource| {
            let options = TraceOptions::default();
            let mut reference = Tracer::new(&source, &options).unwrap();
            let mut candidate = Tracer::new(other, &options).unwrap();
            let mut comparison = Comparison::default();
            for _ in 0..2 {
                comparison.measure(&mut reference, &mut candidate, &question, 5).unwrap();
            }
            comparison.difference()
        };
        let same = measure(&source);
        let all = same.all.unwrap();
        assert_eq!((same.questions, same.same_answers), (2, 2));
        assert_eq!((all.mean, all.greatest, all.same_top1), (0.0, 0.0, 1.0));
        assert!(same.stages.iter().all(|stage| stage.relative_error == Some(0.0)));
        let names: Vec<&str> = same.stages.iter().map(|stage| stage.stage.as_str()).collect();
        assert_eq!(&names[..4], ["pixels", "encode", "project", "hidden.0"]);
        assert_eq!(names.last(), Some(&"logits"));
        let kinds: usize = same.kinds.iter().map(|(_, figures)| figures.positions).sum();
        assert_eq!((same.kinds.len(), kinds), (3, all.positions));
        assert!(Limits { max_kl: Some(0.0), max_drop: None }.broken(Some(&same), None).is_empty());

        let other = measure(&fewer);
        let all = other.all.unwrap();
        assert!(all.mean > 0.0 && all.p99 >= all.median && all.greatest >= all.p99);
        let encode = &other.stages[1];
        assert!(encode.cosine.unwrap() < 1.0 && encode.relative_error.unwrap() > 0.0);
        assert_eq!(other.stages[0].relative_error, Some(0.0), "pixels have no weights");
        let limits = Limits { max_kl: Some(0.0), max_drop: Some(1.0) };
        let broken: Vec<_> = limits.broken(Some(&other), None).into_iter().map(|gate| gate.limit).collect();
        assert_eq!(broken, ["--max-kl", "--max-drop"], "what was not measured does not hold");
    }

    #[test]
    fn two_models_of_other_shapes_or_words_are_refused() {
        let (source, nano) = (golden("mobilevlm-v2"), Model::nano_source().unwrap());
        let options = TraceOptions::default();
        let mut reference = Tracer::new(&source, &options).unwrap();
        let mut candidate = Tracer::new(&nano, &options).unwrap();
        let question = Question { images: vec![], prompt: "What is this?".to_owned() };
        let error = Comparison::default().measure(&mut reference, &mut candidate, &question, 5).unwrap_err();
        assert!(error.to_string().contains("cannot be compared"), "{error}");
    }
}
