//! The stages of an answer one by one, for measuring.

use crate::{Error, Image, Model, engine::TextCall, session::too_long};
use margay_graph::{BackendError, Cancel, Op, Program, State, Watch, node_cost};
use margay_observe::{Clock, Stopwatch};
use margay_prompt::image::preprocess;
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Runs single stages on the engine that answers questions, with tokens whose meaning does not matter, and times them.
/// Nothing is sampled and nothing is rendered: what is timed is computing.
pub struct Stages {
    model: Model,
    state: Box<dyn State>,
    cancel: Cancel,
}

impl Stages {
    /// With a KV cache of its own, empty.
    ///
    /// # Errors
    /// [`Error::Backend`] where the cache cannot be made.
    pub fn new(model: &Model) -> Result<Self, Error> {
        let state = model.engine()?.new_state(model.context(), None)?;
        Ok(Stages { model: model.clone(), state, cancel: Cancel::new() })
    }

    /// Loads what pictures need; [`Stages::encode`] does it too, outside of what it times.
    ///
    /// # Errors
    /// [`Error::NoVision`], [`Error::Backend`].
    pub fn prepare_vision(&self) -> Result<(), Error> {
        let source = self.model.source();
        self.model.engine()?.prepare_vision(source, self.model.vision_backend(), &self.cancel)?;
        Ok(())
    }

    /// A picture through the tower and the projector; decoding and resizing it is not timed.
    ///
    /// # Errors
    /// [`Error::NoVision`] of a text model, [`Error::Image`] of a picture that cannot be resized, [`Error::Backend`].
    pub fn encode(&mut self, image: &Image) -> Result<Duration, Error> {
        self.prepare_vision()?;
        let config = self.model.config();
        let vision = config.vision.as_ref().ok_or_else(|| Error::NoVision { model: config.name.clone() })?;
        let mut tiles = preprocess(image.picture()?, &vision.image)
            .map_err(|source| Error::Image { place: image.name.clone(), source })?;
        let mut engine = self.model.engine()?;
        let mut took = Duration::ZERO;
        let stitch = self.model.source().picture_layout(image)?.stitch();
        let mut features = vec![];
        while let Some(tile) = tiles.next() {
            let patches = self.model.distinct_patches(&tile)?;
            let tile = self.model.feed(&tile, patches.as_deref())?;
            let clock = Stopwatch::start();
            engine.encode(&tile, 0, &mut || false, &self.cancel)?;
            features.extend_from_slice(engine.encoded());
            let whole = stitch.is_none() || tiles.len() == 0;
            if whole {
                engine.project(&tile, &features, stitch, &self.cancel)?;
                features.clear();
            }
            took += clock.elapsed();
        }
        Ok(took)
    }

    /// A prompt of so many tokens into the emptied cache, in batches as an answer does it, with the logits of the last.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`], [`Error::Backend`].
    pub fn prefill(&mut self, tokens: usize) -> Result<Duration, Error> {
        self.state.truncate(0);
        self.append(tokens, usize::MAX)
    }

    /// So many tokens one after the other behind what the cache holds, which is then as before.
    ///
    /// # Errors
    /// As [`Stages::prefill`].
    pub fn decode(&mut self, tokens: usize) -> Result<Duration, Error> {
        let depth = self.state.len();
        let took = self.append(tokens, 1);
        self.state.truncate(depth);
        took
    }

    /// What a stage's time goes to, most first: steps of the same ops and sizes together.
    /// Looking at the clock between ops costs some tens of nanoseconds each.
    ///
    /// # Errors
    /// As the stage; [`BackendError::Unsupported`] where the backend does not tell.
    pub fn by_op(
        &mut self,
        stage: impl FnOnce(&mut Stages) -> Result<Duration, Error>,
    ) -> Result<Vec<OpTime>, Error> {
        Ok(OpTime::sums(&self.each_op(Clock::start(), stage)?))
    }

    /// Each op of a stage as it ran, begun as that clock counts.
    ///
    /// # Errors
    /// As [`Stages::by_op`].
    pub fn each_op(
        &mut self,
        clock: Clock,
        stage: impl FnOnce(&mut Stages) -> Result<Duration, Error>,
    ) -> Result<Vec<OpRun>, Error> {
        let runs = Arc::new(Mutex::new(vec![]));
        let told = self.model.engine()?.watch(|program| Some(watch(program, clock, runs.clone())));
        let done = if told { stage(self).map(|_| ()) } else { Ok(()) };
        self.model.engine()?.watch(|_| None);
        done?;
        if !told {
            let what = "an op at a time with a clock beside it; use the cpu backend".to_owned();
            return Err(BackendError::Unsupported { backend: self.model.backend().id(), what }.into());
        }
        let runs = std::mem::take(&mut *runs.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(runs)
    }

    fn append(&mut self, tokens: usize, at_once: usize) -> Result<Duration, Error> {
        let (past, context) = (self.state.len(), self.model.context());
        if tokens > context - past {
            return Err(too_long(self.model.config(), past + tokens, 0, context));
        }
        // Ids that differ from their neighbours, past the control tokens where the vocabulary is large enough.
        let vocabulary = self.model.config().text.vocabulary;
        let ids: Vec<i32> = (past..past + tokens).map(|at| ((300 + at % 200) % vocabulary) as i32).collect();
        let width = self.model.config().text.width;
        let mut engine = self.model.engine()?;
        let at_once = at_once.min(engine.batch());
        let clock = Stopwatch::start();
        for ids in ids.chunks(at_once) {
            let position = self.state.len();
            let call = TextCall { ids, places: &[], visual: &[], width, position, prefix: 0 };
            engine.run_text(&call, 1, self.state.as_mut(), &self.cancel)?;
        }
        Ok(clock.elapsed())
    }
}

/// Time that ops of one kind and size took together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpTime {
    /// Names of its ops; of linear layers the columns they read and make, too.
    pub op: String,
    /// How often it ran.
    pub calls: u64,
    /// All of them together.
    pub took: Duration,
    /// Operations of products and attention, 2 a multiply-add.
    pub operations: u64,
}

impl OpTime {
    /// Runs of the same ops and sizes together, those that took most first.
    pub fn sums(runs: &[OpRun]) -> Vec<OpTime> {
        let mut sums: BTreeMap<&str, OpTime> = BTreeMap::new();
        for run in runs {
            let sum =
                sums.entry(&run.op).or_insert_with(|| OpTime { op: run.op.clone(), ..OpTime::default() });
            sum.calls += 1;
            sum.took += run.took;
            sum.operations += run.operations;
        }
        let mut sums: Vec<OpTime> = sums.into_values().collect();
        sums.sort_by_key(|sum| std::cmp::Reverse(sum.took));
        sums
    }
}

/// One step of a stage: an op, or several that are computed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpRun {
    /// Names of its ops, as [`OpTime::op`].
    pub op: String,
    /// When it began.
    pub start: Duration,
    /// How long it took.
    pub took: Duration,
    /// Operations of products and attention, 2 a multiply-add.
    pub operations: u64,
}

fn watch(program: &Program, clock: Clock, runs: Arc<Mutex<Vec<OpRun>>>) -> Watch {
    let program = program.clone();
    let mut start = clock.now();
    Box::new(move |nodes, bindings| {
        let took = clock.now().saturating_sub(start);
        if !nodes.is_empty() {
            let op = name(&program, nodes.clone());
            let cost = |node| node_cost(&program, node, bindings).map_or(0, |cost| cost.operations);
            let operations = program.nodes()[nodes].iter().map(cost).sum();
            let run = OpRun { op, start, took, operations };
            runs.lock().unwrap_or_else(PoisonError::into_inner).push(run);
        }
        // What was done here is no op's.
        start = clock.now();
    })
}

/// The ops that compute something, each kind once.
fn name(program: &Program, nodes: Range<usize>) -> String {
    let mut names: Vec<String> = vec![];
    for node in &program.nodes()[nodes] {
        let name = match &node.op {
            Op::Input | Op::Param { .. } => continue,
            Op::Linear(linear) => {
                let shape = &program.weight(linear.weight).shape;
                format!("linear {} to {}", shape.row(), shape.rows().unwrap_or(0))
            }
            Op::Attention(a) => format!("attention {} x {}", a.heads, a.head_dim),
            op => op.name().to_owned(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadOptions;

    #[test]
    fn decoding_leaves_the_cache_as_it_was_and_a_prompt_empties_it() {
        let model = Model::nano_with(&LoadOptions { context: Some(64), ..LoadOptions::default() }).unwrap();
        let mut stages = Stages::new(&model).unwrap();
        assert!(stages.prefill(40).unwrap() > Duration::ZERO);
        assert_eq!(stages.state.len(), 40);
        assert!(stages.decode(24).unwrap() > Duration::ZERO);
        assert_eq!(stages.state.len(), 40);
        assert!(matches!(stages.decode(25), Err(Error::PromptTooLong { prompt: 65, context: 64, .. })));
        stages.prefill(8).unwrap();
        assert_eq!(stages.state.len(), 8);
        let image = Image::filled(20, 30, [10, 200, 30]).unwrap();
        assert!(stages.encode(&image).unwrap() > Duration::ZERO);
    }

    #[test]
    fn a_stage_is_told_by_its_ops() {
        let model = Model::nano_with(&LoadOptions { context: Some(64), ..LoadOptions::default() }).unwrap();
        let mut stages = Stages::new(&model).unwrap();
        let ops = stages.by_op(|stages| stages.prefill(40)).unwrap();
        let layers = model.config().text.layers as u64;
        let attention = ops.iter().find(|time| time.op == "attention 6 x 32").unwrap();
        assert_eq!((attention.calls, attention.operations), (layers, layers * 4 * 40 * 40 * 192));
        assert!(attention.took > Duration::ZERO && ops.is_sorted_by(|a, b| a.took >= b.took));
        let runs = stages.each_op(Clock::start(), |stages| stages.prefill(40)).unwrap();
        assert!(
            runs.windows(2).all(|pair| pair[0].start + pair[0].took <= pair[1].start),
            "one behind the other"
        );
        assert_eq!(OpTime::sums(&runs).iter().map(|sum| sum.calls).sum::<u64>(), runs.len() as u64);
        let image = Image::filled(20, 30, [10, 200, 30]).unwrap();
        stages.prepare_vision().unwrap();
        let ops = stages.by_op(|stages| stages.encode(&image)).unwrap();
        assert!(ops.iter().any(|time| time.op == "linear 192 to 768" && time.calls == 5), "{ops:?}");
    }
}
