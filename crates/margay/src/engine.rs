//! The compiled programs of a model.

use crate::{Error, LoadOptions, ModelSource, formats::Formats, packed::PackedFiles};
use margay_graph::{
    Backend, BackendError, Bindings, Cancel, Executable, InputData, MemoryUse, PackedForm, Program, State,
    StateOptions, Sym, WeightSource, passes,
};
use margay_model::ModelPrograms;
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
    project: Box<dyn Executable>,
}

/// What [`Engine::run_text`] computes.
pub(crate) struct TextCall<'a> {
    /// Ids of the new tokens, negative for visual rows.
    pub ids: &'a [i32],
    /// All visual rows of the conversation, [V, E].
    pub visual: &'a [f32],
    /// Width of a visual row.
    pub width: usize,
}

/// How a text program is compiled for answers.
pub(crate) struct TextPlan {
    pub program: Program,
    pub limits: Bindings,
    pub batch: usize,
}

impl TextPlan {
    pub(crate) fn new(text: &Program, options: &LoadOptions, context: usize) -> Result<Self, Error> {
        // Taps are for traces; keeping them would hold every layer's output in memory.
        let program = passes::optimize(&text.with_outputs(|name| name == "logits")?);
        let batch = options.batch.clamp(1, context);
        let limits =
            Bindings::new().with(Sym::Tokens, batch).with(Sym::Outputs, 1).with(Sym::Visual, context);
        Ok(TextPlan { program, limits, batch })
    }
}

impl Engine {
    pub(crate) fn new(
        source: &ModelSource,
        backend: &dyn Backend,
        options: &LoadOptions,
        context: usize,
    ) -> Result<Self, Error> {
        let mut programs = source.config.programs()?;
        let TextPlan { program, limits, batch } = TextPlan::new(&programs.text, options, context)?;
        programs.text = program;
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
        for part in self.vision.iter().flat_map(|v| [v.encode.memory(), v.project.memory()]) {
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
        let none = Bindings::new();
        let encode = compile(source, backend, encode, &none, &self.packed, cancel)?;
        let project = compile(source, backend, project, &none, &self.packed, cancel)?;
        self.vision = Some(Vision { encode, project });
        Ok(true)
    }

    /// Pixels [3, H, W] to patch features [P, C].
    pub(crate) fn encode(&mut self, pixels: &[f32], cancel: &Cancel) -> Result<&[f32], Error> {
        run_stage(&mut self.vision_mut().encode, pixels, "encode", cancel)
    }

    /// Patch features [P, C] to visual tokens [V, E].
    pub(crate) fn project(&mut self, features: &[f32], cancel: &Cancel) -> Result<&[f32], Error> {
        run_stage(&mut self.vision_mut().project, features, "project", cancel)
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
            .with(Sym::Visual, call.visual.len() / call.width);
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

fn run_stage<'e>(
    executable: &'e mut Box<dyn Executable>,
    input: &[f32],
    output: &str,
    cancel: &Cancel,
) -> Result<&'e [f32], Error> {
    executable.run(&Bindings::new(), &[InputData::F32(input)], None, cancel)?;
    Ok(executable.output(output).expect("invariant: a stage's output bears its name"))
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
