//! The compiled programs of a model.

use crate::{Error, LoadOptions, ModelSource, formats::Formats, packed::PackedFiles};
use margay_graph::{
    Backend, BackendError, Bindings, Cancel, Executable, InputData, MemoryUse, PackedForm, Program, State,
    StateOptions, Sym, WeightSource, passes,
};
use margay_model::{ModelConfig, ModelPrograms};
use margay_prompt::image::Stitch;
use margay_tensor::{Storage, Tensor};

/// Compiled programs; the vision side only once a picture asks for it.
pub(crate) struct Engine {
    text: Box<dyn Executable>,
    vision: Option<Vision>,
    programs: ModelPrograms,
    packed: PackedFiles,
    batch: usize,
    rows: Vec<i32>,
    positions: Vec<i32>,
}

struct Vision {
    encode: Box<dyn Executable>,
    project: Projecting,
}

/// A compiled projector.
pub(crate) struct Projecting {
    executable: Box<dyn Executable>,
    /// Features a side of a tile.
    grid: usize,
}

/// What [`Engine::run_text`] computes.
pub(crate) struct TextCall<'a> {
    /// Ids of the new tokens, negative for visual rows.
    pub ids: &'a [i32],
    /// All visual rows of the conversation, [V, E].
    pub visual: &'a [f32],
    /// Width of a visual row.
    pub width: usize,
    /// Tokens at the start of the context that see one another.
    pub prefix: usize,
}

impl Engine {
    pub(crate) fn new(
        source: &ModelSource,
        backend: &dyn Backend,
        options: &LoadOptions,
        context: usize,
    ) -> Result<Self, Error> {
        let mut programs = source.config.programs()?;
        // Taps are for traces; keeping them would hold every layer's output in memory.
        programs.text = passes::optimize(&programs.text.with_outputs(|name| name == "logits")?);
        // Tokens that see one another are computed together.
        let batch = options.batch.max(source.config.prefix_tokens()).clamp(1, context);
        let limits =
            Bindings::new().with(Sym::Tokens, batch).with(Sym::Outputs, 1).with(Sym::Visual, context);
        // Packed files hold the stored weights, not those quantized at load.
        let packed = if options.packed && source.formats.is_empty() {
            PackedFiles::open(source, backend)
        } else {
            PackedFiles::default()
        };
        let text = compile(source, backend, &programs.text, &limits, &packed, &Cancel::new())?;
        Ok(Engine { text, vision: None, programs, packed, batch, rows: vec![], positions: vec![] })
    }

    pub(crate) fn new_state(&self, capacity: usize) -> Result<Box<dyn State>, Error> {
        Ok(self.text.new_state(StateOptions { capacity })?)
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.packed.notes()
    }

    pub(crate) fn memory(&self) -> MemoryUse {
        let mut sum = self.text.memory();
        for part in self.vision.iter().flat_map(|v| [v.encode.memory(), v.project.executable.memory()]) {
            sum.packed_weight_bytes += part.packed_weight_bytes;
            sum.mapped_weight_bytes += part.mapped_weight_bytes;
            sum.arena_bytes += part.arena_bytes;
            sum.scratch_bytes += part.scratch_bytes;
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
        let encode = compile(source, backend, encode, &Bindings::new(), &self.packed, cancel)?;
        let project = Projecting::new(source, backend, project, &self.packed, cancel)?;
        self.vision = Some(Vision { encode, project });
        Ok(true)
    }

    /// Pixels [3, H, W] to patch features [P, C].
    pub(crate) fn encode(&mut self, pixels: &[f32], cancel: &Cancel) -> Result<&[f32], Error> {
        let encode = &mut self.vision_mut().encode;
        encode.run(&Bindings::new(), &[InputData::F32(pixels)], None, cancel)?;
        Ok(encode.output("encode").expect("invariant: a stage's output bears its name"))
    }

    /// Patch features [P, C] of a tile, or of all that are stitched, to visual tokens [V, E].
    pub(crate) fn project(
        &mut self,
        features: &[f32],
        stitch: Option<Stitch>,
        cancel: &Cancel,
    ) -> Result<&[f32], Error> {
        self.vision_mut().project.run(features, stitch, cancel)
    }

    /// Prompt tokens that are computed together.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Appends at most [`Engine::batch`] tokens and gives the logits of the last one, [vocabulary].
    pub(crate) fn run_text(
        &mut self,
        call: &TextCall<'_>,
        state: &mut dyn State,
        cancel: &Cancel,
    ) -> Result<&[f32], Error> {
        let past = state.len();
        self.positions.clear();
        self.positions.extend((past..past + call.ids.len()).map(|p| p as i32));
        self.rows.clear();
        self.rows.push(call.ids.len() as i32 - 1);
        let bindings = Bindings::new()
            .with(Sym::Tokens, call.ids.len())
            .with(Sym::Outputs, 1)
            .with(Sym::Visual, call.visual.len() / call.width)
            .with(Sym::Prefix, call.prefix);
        let all = [
            InputData::I32(call.ids),
            InputData::I32(&self.positions),
            InputData::I32(&self.rows),
            InputData::F32(call.visual),
        ];
        // A text model has no `visual` input.
        let inputs = &all[..self.text.program().inputs().len()];
        self.text.run(&bindings, inputs, Some(state), cancel)?;
        Ok(self.text.output("logits").expect("invariant: the text program has logits"))
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

impl Projecting {
    pub(crate) fn new(
        source: &ModelSource,
        backend: &dyn Backend,
        program: &Program,
        packed: &PackedFiles,
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        let vision = source.config.vision.as_ref();
        let vision = vision.ok_or_else(|| Error::NoVision { model: source.config.name.clone() })?;
        let executable = compile(source, backend, program, &vision.limits(), packed, cancel)?;
        Ok(Projecting { executable, grid: vision.tower.grid() })
    }

    /// As [`Engine::project`].
    pub(crate) fn run(
        &mut self,
        features: &[f32],
        stitch: Option<Stitch>,
        cancel: &Cancel,
    ) -> Result<&[f32], Error> {
        let grid = self.grid;
        // Below the limits of a picture's tiles, far from what an i32 counts.
        let map: Vec<i32> = stitch.iter().flat_map(|s| s.map(grid)).map(|row| row as i32).collect();
        let size = stitch.map_or([0; 2], |s| s.size(grid).map(|side| side as i32));
        let tiles = stitch.map_or(1, |s| s.tiles());
        let bindings = Bindings::new().with(Sym::Patches, tiles * grid * grid).with(Sym::Outputs, map.len());
        let all = [InputData::F32(features), InputData::I32(&map), InputData::I32(&size)];
        // A projector of single tiles knows nothing of maps.
        let inputs = &all[..self.executable.program().inputs().len()];
        self.executable.run(&bindings, inputs, None, cancel)?;
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
