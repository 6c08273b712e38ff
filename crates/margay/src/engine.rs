//! The compiled programs of a model.

mod lanes;
mod pruned;

use crate::{
    Error, LoadOptions, ModelSource, Pruning, Reduction,
    formats::Formats,
    packed::PackedFiles,
    prune::{Decoder, Split},
    reduce::attention::Attention,
    work::NextToken,
};
use margay_graph::{
    Backend, BackendError, Bindings, Cancel, Executable, InputData, MemoryUse, PackedForm, Program, Segment,
    State, StateOptions, Sym, Watch, WeightSource, passes,
};
use margay_model::{Extra, Feed, ModelConfig, ModelPrograms, VisionConfig};
use margay_prompt::image::Stitch;
use margay_tensor::{Storage, Tensor};

pub(crate) use lanes::TextLane;
pub(crate) use pruned::TailCall;

/// Compiled programs; the vision side only once a picture asks for it.
pub(crate) struct Engine {
    text: Decoder,
    vision: Option<Vision>,
    programs: ModelPrograms,
    extra: Extra,
    packed: PackedFiles,
    batch: usize,
    context: usize,
    outputs: usize,
    ids: Vec<i32>,
    rows: Vec<i32>,
    positions: Vec<i32>,
}

struct Vision {
    encode: Box<dyn Executable>,
    project: Projecting,
    extra: Extra,
}

/// A compiled projector.
pub(crate) struct Projecting {
    executable: Box<dyn Executable>,
    vision: VisionConfig,
}

/// What [`Engine::run_text`] computes.
pub(crate) struct TextCall<'a> {
    /// Ids of the new tokens, negative for visual rows.
    pub ids: &'a [i32],
    /// Their places in time, row and column, which only some models ask for; none where each stands one behind the other.
    pub places: &'a [[i32; 3]],
    /// All visual rows of the conversation, [V, E].
    pub visual: &'a [f32],
    /// Width of a visual row.
    pub width: usize,
    /// Where the first of the new tokens stands in the conversation, tokens that were dropped counted.
    pub position: usize,
    /// Tokens at the start of the context that see one another.
    pub prefix: usize,
}

/// Compiles a program over a model's weights.
pub(crate) type Compile<'a> = &'a dyn Fn(&Program) -> Result<Box<dyn Executable>, Error>;

/// How a text program is compiled for answers.
pub(crate) struct TextPlan {
    text: Program,
    embeddings: bool,
    pruning: Option<Pruning>,
    pub limits: Bindings,
    pub batch: usize,
    pub outputs: usize,
}

impl TextPlan {
    pub(crate) fn new(
        text: &Program,
        config: &ModelConfig,
        options: &LoadOptions,
        context: usize,
    ) -> Result<Self, Error> {
        // Tokens that see one another are computed together.
        let batch = options.batch.max(config.prefix_tokens()).clamp(1, context);
        let outputs = options.outputs.clamp(1, batch);
        let limits =
            Bindings::new().with(Sym::Tokens, batch).with(Sym::Outputs, outputs).with(Sym::Visual, context);
        let (text, pruning) = (text.clone(), options.pruning.clone());
        Ok(TextPlan { text, embeddings: options.embeddings, pruning, limits, batch, outputs })
    }

    /// The programs that are compiled for it.
    pub(crate) fn compile(&self, compile: Compile<'_>) -> Result<Decoder, Error> {
        // Taps are for traces; keeping them would hold every layer's output in memory.
        let wanted = |name: &str| name == "logits" || (name == "embedding" && self.embeddings);
        Ok(match &self.pruning {
            Some(pruning) => Decoder::Split(Box::new(Split::new(&self.text, wanted, pruning, compile)?)),
            None => Decoder::Whole(compile(&passes::optimize(&self.text.with_outputs(wanted)?))?),
        })
    }
}

impl Engine {
    pub(crate) fn new(
        source: &ModelSource,
        backend: &dyn Backend,
        options: &LoadOptions,
        context: usize,
    ) -> Result<Self, Error> {
        let mut extra = options.reduction.as_ref().map(Reduction::extra).transpose()?.unwrap_or_default();
        extra.some_patches = options.repeated_patches.is_some() && source.config.vision.is_some();
        extra.changed_patches = options.changed_patches && source.config.vision.is_some();
        let programs = source.config.programs_with(extra)?;
        let plan = TextPlan::new(&programs.text, &source.config, options, context)?;
        // Packed files hold the stored weights, not those quantized at load.
        let packed = if options.packed && source.formats.is_empty() {
            PackedFiles::open(source, backend)
        } else {
            PackedFiles::default()
        };
        let text = plan
            .compile(&|program| compile(source, backend, program, &plan.limits, &packed, &Cancel::new()))?;
        let (batch, outputs) = (plan.batch, plan.outputs);
        let (ids, rows, positions) = (vec![], vec![], vec![]);
        Ok(Engine {
            text,
            vision: None,
            programs,
            extra,
            packed,
            batch,
            context,
            outputs,
            ids,
            rows,
            positions,
        })
    }

    /// `most_bits`: see [`StateOptions`].
    pub(crate) fn new_state(&self, capacity: usize, most_bits: Option<u32>) -> Result<Box<dyn State>, Error> {
        Ok(self.text.new_state(StateOptions { capacity, most_bits })?)
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.packed.notes()
    }

    pub(crate) fn memory(&self) -> MemoryUse {
        let mut sum = self.text.memory();
        for part in self.vision.iter().flat_map(|v| [v.encode.memory(), v.project.executable.memory()]) {
            sum += part;
        }
        sum
    }

    /// Compiles the vision side where that is still to do; says whether it was.
    pub(crate) fn prepare_vision(
        &mut self,
        source: &ModelSource,
        backend: &dyn Backend,
        cancel: &Cancel,
    ) -> Result<bool, Error> {
        if self.vision.is_some() {
            return Ok(false);
        }
        let (Some(encode), Some(project)) = (&self.programs.encode, &self.programs.project) else {
            return Err(Error::NoVision { model: source.config.name.clone() });
        };
        let (context, extra) = (self.context, self.extra);
        let limits = source.config.vision.as_ref();
        let limits = limits.map_or_else(Bindings::new, |vision| vision.limits_with(context, extra));
        let encode = compile(source, backend, encode, &limits, &self.packed, cancel)?;
        let project = Projecting::new(source, backend, project, &limits, &self.packed, cancel)?;
        self.vision = Some(Vision { encode, project, extra });
        Ok(true)
    }

    /// A tile through the tower, from step `at` until `pause` says so: gives the step to go on from with the same tile, or none
    /// where [`Engine::encoded`] has its patch features.
    // Never inlined: `cargo xtask instructions` counts by this name, and by the next.
    #[inline(never)]
    pub(crate) fn encode(
        &mut self,
        tile: &Feed<'_>,
        at: usize,
        pause: &mut dyn FnMut() -> bool,
        cancel: &Cancel,
    ) -> Result<Option<usize>, Error> {
        let tower = &mut self.vision_mut().encode;
        let inputs = tile.inputs(tower.program(), &tile.pixels);
        Ok(tower.run_part(&tile.bindings, &inputs, at, pause, cancel)?)
    }

    /// Patch features [P, C] of the tile that went through the tower last.
    pub(crate) fn encoded(&mut self) -> &[f32] {
        self.vision_mut().encode.output("encode").expect("invariant: a stage's output bears its name")
    }

    /// The rows of that name of the tile that went through the tower last, to be kept; see [`Extra::changed_patches`].
    pub(crate) fn new_rows(&mut self, name: &str) -> Option<&[f32]> {
        self.vision_mut().encode.output(name)
    }

    /// What the tile that went through the tower last was looked at, where the program tells.
    pub(crate) fn attention(&mut self) -> Option<Attention> {
        let Vision { encode, project, extra } = self.vision_mut();
        let vision = &project.vision;
        let (heads, square) = (vision.tower.heads()?, vision.square()?);
        let (width, columns, class_token) =
            (vision.tower.width(), vision.tower.grid(), vision.tower.class_token());
        if !extra.attention {
            return None;
        }
        let [queries, keys] = ["queries", "keys"].map(|name| encode.output(name).map(<[f32]>::to_vec));
        Some(Attention { queries: queries?, keys: keys?, width, heads, class_token, columns, square })
    }

    /// Patch features [P, C] of `tile`, or of all tiles that are stitched, to visual tokens [V, E].
    #[inline(never)]
    pub(crate) fn project(
        &mut self,
        tile: &Feed<'_>,
        features: &[f32],
        stitch: Option<Stitch>,
        cancel: &Cancel,
    ) -> Result<&[f32], Error> {
        self.vision_mut().project.run(tile, features, stitch, cancel)
    }

    /// KV heads of each layer of a state.
    pub(crate) fn kv_heads(&self) -> Vec<usize> {
        self.text.program().caches().iter().map(|cache| cache.kv_heads).collect()
    }

    /// Prompt tokens that are computed together.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens of which logits can be had in one run.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Appends at most [`Engine::batch`] tokens and gives the logits of the last `outputs` of them, [outputs, vocabulary].
    pub(crate) fn run_text(
        &mut self,
        call: &TextCall<'_>,
        outputs: usize,
        state: &mut dyn State,
        cancel: &Cancel,
    ) -> Result<&[f32], Error> {
        self.text_lane().run(call, outputs, state, cancel)?;
        Ok(self.logits())
    }

    /// The logits that the last run gave.
    pub(crate) fn logits(&self) -> &[f32] {
        self.text.output("logits").expect("invariant: the text program has logits")
    }

    /// What the head read of the last row that was run, [E]; `None` where it was not loaded for that.
    pub(crate) fn embedding(&self, width: usize) -> Option<&[f32]> {
        let rows = self.text.output("embedding")?;
        rows.len().checked_sub(width).map(|last| &rows[last..])
    }

    /// Answers that [`Engine::decode`] can go on with at once.
    pub(crate) fn together(&self) -> usize {
        if self.text.runs_several() { self.outputs } else { 1 }
    }

    /// Appends one token to each of several states and gives the logits behind each, [N, vocabulary]; at most
    /// [`Engine::together`].
    pub(crate) fn decode(
        &mut self,
        tokens: &[NextToken],
        segments: &mut [Segment<'_>],
        cancel: &Cancel,
    ) -> Result<&[f32], Error> {
        self.ids.clear();
        self.positions.clear();
        self.rows.clear();
        let program = self.text.program();
        let mut place = vec![];
        for (row, token) in tokens.iter().enumerate() {
            self.ids.push(token.id);
            positions(program, token.position, 1, &[token.place], &mut place);
            self.positions.extend_from_slice(&place);
            self.rows.push(row as i32);
        }
        let count = tokens.len();
        let bindings = Bindings::new()
            .with(Sym::Tokens, count)
            .with(Sym::Outputs, count)
            .with(Sym::Visual, 0)
            .with(Sym::Prefix, 0);
        let all = [
            InputData::I32(&self.ids),
            InputData::I32(&self.positions),
            InputData::I32(&self.rows),
            InputData::F32(&[]),
        ];
        let inputs = &all[..program.inputs().len()];
        self.text.run_several(&bindings, inputs, segments, cancel)?;
        Ok(self.text.output("logits").expect("invariant: the text program has logits"))
    }

    /// Has the nodes of all programs that are compiled told to what `make` gives for each, or no longer; false where the
    /// backend does not tell.
    pub(crate) fn watch(&mut self, mut make: impl FnMut(&Program) -> Option<Watch>) -> bool {
        let vision = self.vision.iter_mut().flat_map(|v| [&mut v.encode, &mut v.project.executable]);
        self.text.parts_mut().into_iter().chain(vision).all(|executable| {
            let watch = make(executable.program());
            executable.watch(watch)
        })
    }

    fn vision_mut(&mut self) -> &mut Vision {
        self.vision.as_mut().expect("invariant: the vision side is prepared before it runs")
    }
}

pub(crate) fn compile(
    source: &ModelSource,
    backend: &dyn Backend,
    program: &Program,
    limits: &Bindings,
    packed: &PackedFiles,
    cancel: &Cancel,
) -> Result<Box<dyn Executable>, Error> {
    source.weights.check_program(program)?;
    let packed = |name: &str, form: &PackedForm| packed.parts(&source.weights, name, form);
    let weights = source.weights.for_program(program);
    let weights = Stoppable { weights: &weights, formats: &source.formats, packed: &packed, cancel };
    Ok(backend.compile(program, &weights, limits)?)
}

/// Weights until the caller cancels: packing a large tower takes longer than a person wants to wait.
struct Stoppable<'a> {
    weights: &'a dyn WeightSource,
    formats: &'a Formats,
    packed: &'a dyn Fn(&str, &PackedForm) -> Option<Vec<Storage>>,
    cancel: &'a Cancel,
}

impl WeightSource for Stoppable<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        if self.cancel.is_cancelled() {
            return Err(BackendError::Cancelled);
        }
        let fail = |what| BackendError::Weight { name: name.to_owned(), what };
        self.formats.apply(name, self.weights.weight(name)?).map_err(fail)
    }

    fn packed(&self, name: &str, form: &PackedForm) -> Option<Vec<Storage>> {
        (self.packed)(name, form)
    }
}

fn run_stage<'e>(
    executable: &'e mut Box<dyn Executable>,
    tile: &Feed<'_>,
    numbers: &[f32],
    output: &str,
    cancel: &Cancel,
) -> Result<&'e [f32], Error> {
    let inputs = tile.inputs(executable.program(), numbers);
    executable.run(&tile.bindings, &inputs, None, cancel)?;
    Ok(executable.output(output).expect("invariant: a stage's output bears its name"))
}

impl Projecting {
    /// `limits` are those of the vision side.
    pub(crate) fn new(
        source: &ModelSource,
        backend: &dyn Backend,
        program: &Program,
        limits: &Bindings,
        packed: &PackedFiles,
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        let vision = source.config.vision.as_ref();
        let vision = vision.ok_or_else(|| Error::NoVision { model: source.config.name.clone() })?;
        let executable = compile(source, backend, program, limits, packed, cancel)?;
        Ok(Projecting { executable, vision: vision.clone() })
    }

    /// As [`Engine::project`].
    pub(crate) fn run(
        &mut self,
        tile: &Feed<'_>,
        features: &[f32],
        stitch: Option<Stitch>,
        cancel: &Cancel,
    ) -> Result<&[f32], Error> {
        let Some(stitch) = stitch else {
            return run_stage(&mut self.executable, tile, features, "project", cancel);
        };
        let grid = self.vision.tower.grid();
        // Below the limits of a picture's tiles, far from what an i32 counts.
        let map: Vec<i32> = stitch.map(grid).map(|row| row as i32).collect();
        let size = stitch.size(grid).map(|side| side as i32);
        let bindings = self.vision.stitched(stitch);
        let inputs = [InputData::F32(features), InputData::I32(&map), InputData::I32(&size)];
        self.executable.run(&bindings, &inputs, None, cancel)?;
        Ok(self.executable.output("project").expect("invariant: a stage's output bears its name"))
    }
}

/// Tokens at the start of a prompt that see one another: the picture and what stands before it, where the decoder has it
/// so.
pub(crate) fn prefix_of(config: &ModelConfig, ids: &[i32]) -> usize {
    if !config.text.decoder.has_prefix() {
        return 0;
    }
    ids.iter().rposition(|id| *id < 0).map_or(0, |last| last + 1)
}

/// The positions of the tokens behind the first `past`, as the text program takes them: one each, or one each on three
/// axes, which are `places` where they are given.
pub(crate) fn positions(
    program: &Program,
    past: usize,
    count: usize,
    places: &[[i32; 3]],
    positions: &mut Vec<i32>,
) {
    let axes = program.input("positions").map_or(1, |id| program.value(id).dims.len());
    positions.clear();
    let numbered = (past..past + count).map(|p| p as i32);
    match axes {
        1 => positions.extend(numbered),
        _ if places.is_empty() => positions.extend(numbered.flat_map(|p| [p; 3])),
        _ => positions.extend(places.iter().flatten()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::{DType, Shape};

    struct One;

    impl WeightSource for One {
        fn weight(&self, _: &str) -> Result<Tensor, BackendError> {
            let storage = Storage::from_f32(&[0.0]);
            Ok(Tensor::new(DType::F32, Shape::from([1, 1]), storage).expect("one float"))
        }
    }

    #[test]
    fn a_cancelled_caller_is_given_no_more_weights_to_pack() {
        let cancel = Cancel::new();
        let weights =
            Stoppable { weights: &One, formats: &Formats::default(), packed: &|_, _| None, cancel: &cancel };
        assert!(weights.weight("a").is_ok());
        cancel.cancel();
        assert!(matches!(weights.weight("a"), Err(BackendError::Cancelled)));
    }
}
