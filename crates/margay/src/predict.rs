//! What running a model will take, before anything of it is read: the same compilation that loading does, over weights
//! whose matrices are zeros that nobody touches.

use crate::{Error, LoadOptions, ModelSource, backends, default_context, engine::TextPlan};
use margay_graph::{
    Backend, BackendError, Bindings, Executable, MemoryUse, PackedForm, Program, StateOptions, WeightSource,
};
use margay_tensor::{Owner, Storage, Tensor};
use std::sync::Arc;

/// Weights of fewer elements are read: there is little of them, and a backend may look at their values.
const READ_BELOW_ELEMENTS: usize = 1 << 16;
/// What packed parts are aligned to.
const ALIGN_BYTES: usize = 64;

/// Bytes that a model will hold once it has looked at a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPrediction {
    /// The text program.
    pub text: MemoryUse,
    /// The tower; `None` for text models.
    pub encode: Option<MemoryUse>,
    /// The projector.
    pub project: Option<MemoryUse>,
    /// The KV cache of a session.
    pub cache_bytes: usize,
}

impl ModelSource {
    /// What [`crate::Model::memory`] will say of this model once it has looked at a picture, and the size of a session's
    /// cache. With `picture`, which [`margay_model::VisionConfig::sizes`] gives, what that one takes of it, where the
    /// stages have room for larger ones.
    ///
    /// # Errors
    /// As loading the model.
    pub fn predict_memory(
        &self,
        options: &LoadOptions,
        picture: Option<&Bindings>,
    ) -> Result<MemoryPrediction, Error> {
        let backend = backends::backend(options)?;
        let context = options.context.unwrap_or_else(|| default_context(&self.config));
        let programs = self.config.programs()?;
        let plan = TextPlan::new(&programs.text, &self.config, options, context)?;
        let text = dry(self, backend.as_ref(), &plan.program, &plan.limits)?;
        let cache = text.new_state(StateOptions { capacity: context })?;
        let most = self.config.vision.as_ref().map_or_else(Bindings::new, |vision| vision.limits(context));
        let sizes = picture.unwrap_or(&most);
        let stage = |program: &Option<Program>| -> Result<Option<MemoryUse>, Error> {
            let Some(program) = program else { return Ok(None) };
            Ok(Some(dry(self, backend.as_ref(), program, sizes)?.memory()))
        };
        let (encode, project) = (stage(&programs.encode)?, stage(&programs.project)?);
        Ok(MemoryPrediction { text: text.memory(), encode, project, cache_bytes: cache.size_bytes() })
    }
}

fn dry(
    source: &ModelSource,
    backend: &dyn Backend,
    program: &Program,
    limits: &Bindings,
) -> Result<Box<dyn Executable>, Error> {
    source.weights.check_program(program)?;
    Ok(backend.compile(program, &Untouched { source, program }, limits)?)
}

/// Weights of the right types and shapes.
struct Untouched<'a> {
    source: &'a ModelSource,
    program: &'a Program,
}

impl WeightSource for Untouched<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let fail = |what: String| BackendError::Weight { name: name.to_owned(), what };
        let spec = self.program.weights().iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| fail("the program does not declare it".to_owned()))?;
        if spec.shape.elements().is_some_and(|elements| elements < READ_BELOW_ELEMENTS) {
            let stored = self.source.weights.for_program(self.program).weight(name)?;
            return self.source.formats.apply(name, stored).map_err(fail);
        }
        let dtype =
            self.source.loaded_format(name).ok_or_else(|| fail("the file does not hold it".to_owned()))?;
        let size = Tensor::size_bytes(dtype, &spec.shape).map_err(|e| fail(e.to_string()))?;
        Tensor::new(dtype, spec.shape.clone(), zeros(size)).map_err(|e| fail(e.to_string()))
    }

    fn packed(&self, _: &str, form: &PackedForm) -> Option<Vec<Storage>> {
        Some(form.part_bytes.iter().map(|bytes| zeros(*bytes)).collect())
    }
}

/// Zeros of which the system holds no page before it is read.
struct Zeros(Vec<u8>);

impl Owner for Zeros {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn zeros(len: usize) -> Storage {
    let bytes = vec![0; len + ALIGN_BYTES];
    let skip = bytes.as_ptr().align_offset(ALIGN_BYTES);
    let storage = Storage::from_owner(Arc::new(Zeros(bytes)));
    storage.slice(skip..skip + len).expect("invariant: there is room to align")
}
