//! What running a model will take, before anything of it is read: the same compilation that loading does, over weights
//! whose matrices are zeros that nobody touches.

use crate::{Error, LoadOptions, ModelSource, backends, default_context, draft, engine::TextPlan};
use margay_graph::{
    Backend, BackendError, Bindings, Executable, MemoryUse, PackedForm, Program, StateOptions, WeightSource,
    WeightSpec,
};
use margay_model::ModelConfig;
use margay_tensor::{DType, Owner, Storage, Tensor};
use memmap2::MmapMut;
use std::{path::Path, sync::Arc};

/// Weights of fewer elements are read: there is little of them, and a backend may look at their values.
const READ_BELOW_ELEMENTS: usize = 1 << 16;

/// Bytes that a model will hold once it has looked at a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPrediction {
    /// The text program.
    pub text: MemoryUse,
    /// The tower; `None` for text models.
    pub encode: Option<MemoryUse>,
    /// The projector.
    pub project: Option<MemoryUse>,
    /// The text program of a draft model ([`LoadOptions::draft_model`]).
    pub draft: Option<MemoryUse>,
    /// The KV cache of a session, a draft model's included.
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
        let mut prediction = predict(&self.config, options, picture, &|backend, program, limits| {
            self.weights.check_program(program)?;
            Ok(backend.compile(program, &OfFiles { source: self, program }, limits)?)
        })?;
        if let Some(path) = &options.draft_model {
            let (draft, cache_bytes) = self.predict_draft(path, options)?;
            prediction.draft = Some(draft);
            prediction.cache_bytes += cache_bytes;
        }
        Ok(prediction)
    }

    /// What a draft model takes, and its cache.
    fn predict_draft(&self, path: &Path, options: &LoadOptions) -> Result<(MemoryUse, usize), Error> {
        let (source, _) = draft::open(path, self)?;
        let context = options.context.unwrap_or_else(|| default_context(&self.config));
        let options = draft::draft_options(options);
        let backend = backends::backend(&options)?;
        let plan = TextPlan::new(&source.config.programs()?.text, &source.config, &options, context)?;
        let text = plan.compile(&|program| {
            source.weights.check_program(program)?;
            Ok(backend.compile(program, &OfFiles { source: &source, program }, &plan.limits)?)
        })?;
        Ok((text.memory(), text.new_state(StateOptions::new(context))?.size_bytes()))
    }
}

/// The same of a model that is not here, without a draft model: of its configuration, and of the format that each weight would
/// have.
///
/// # Errors
/// As loading it.
pub fn predict_shape(
    config: &ModelConfig,
    format: &dyn Fn(&Program, &WeightSpec) -> DType,
    options: &LoadOptions,
    picture: Option<&Bindings>,
) -> Result<MemoryPrediction, Error> {
    predict(config, options, picture, &|backend, program, limits| {
        Ok(backend.compile(program, &OfShape { program, format }, limits)?)
    })
}

/// Compiles a program over weights that nobody touches.
type Dry<'a> = &'a dyn Fn(&dyn Backend, &Program, &Bindings) -> Result<Box<dyn Executable>, Error>;

fn predict(
    config: &ModelConfig,
    options: &LoadOptions,
    picture: Option<&Bindings>,
    dry: Dry<'_>,
) -> Result<MemoryPrediction, Error> {
    let backend = backends::backend(options)?;
    let context = options.context.unwrap_or_else(|| default_context(config));
    let programs = config.programs()?;
    let plan = TextPlan::new(&programs.text, config, options, context)?;
    let text = plan.compile(&|program| dry(&*backend, program, &plan.limits))?;
    let cache = text.new_state(StateOptions::new(context))?;
    let most = config.vision.as_ref().map_or_else(Bindings::new, |vision| vision.limits(context));
    let sizes = picture.unwrap_or(&most);
    let stage = |program: &Option<Program>| -> Result<Option<MemoryUse>, Error> {
        program.as_ref().map(|program| Ok(dry(&*backend, program, sizes)?.memory())).transpose()
    };
    let (encode, project) = (stage(&programs.encode)?, stage(&programs.project)?);
    let cache_bytes = cache.size_bytes();
    Ok(MemoryPrediction { text: text.memory(), encode, project, draft: None, cache_bytes })
}

fn spec<'a>(program: &'a Program, name: &str) -> Result<&'a WeightSpec, BackendError> {
    let spec = program.weights().iter().find(|spec| spec.name == name);
    spec.ok_or_else(|| BackendError::Weight {
        name: name.to_owned(),
        what: "the program does not declare it".to_owned(),
    })
}

/// A weight of that type and shape that nobody touches.
fn untouched(spec: &WeightSpec, dtype: DType) -> Result<Tensor, BackendError> {
    let fail = |what: String| BackendError::Weight { name: spec.name.clone(), what };
    let size = Tensor::size_bytes(dtype, &spec.shape).map_err(|e| fail(e.to_string()))?;
    let zeros = zeros(size).ok_or_else(|| fail(format!("no room for {size} bytes of addresses")))?;
    Tensor::new(dtype, spec.shape.clone(), zeros).map_err(|e| fail(e.to_string()))
}

fn untouched_parts(form: &PackedForm) -> Option<Vec<Storage>> {
    form.part_bytes.iter().map(|bytes| zeros(*bytes)).collect()
}

/// Weights of the types and shapes that files hold; small ones are theirs.
struct OfFiles<'a> {
    source: &'a ModelSource,
    program: &'a Program,
}

impl WeightSource for OfFiles<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let fail = |what: String| BackendError::Weight { name: name.to_owned(), what };
        let spec = spec(self.program, name)?;
        if spec.shape.elements().is_some_and(|elements| elements < READ_BELOW_ELEMENTS) {
            let stored = self.source.weights.for_program(self.program).weight(name)?;
            return self.source.formats.apply(name, stored).map_err(fail);
        }
        let dtype =
            self.source.loaded_format(name).ok_or_else(|| fail("the file does not hold it".to_owned()))?;
        untouched(spec, dtype)
    }

    fn packed(&self, _: &str, form: &PackedForm) -> Option<Vec<Storage>> {
        untouched_parts(form)
    }
}

/// Weights of a shape alone.
struct OfShape<'a> {
    program: &'a Program,
    format: &'a dyn Fn(&Program, &WeightSpec) -> DType,
}

impl WeightSource for OfShape<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let spec = spec(self.program, name)?;
        untouched(spec, (self.format)(self.program, spec))
    }

    fn packed(&self, _: &str, form: &PackedForm) -> Option<Vec<Storage>> {
        untouched_parts(form)
    }
}

/// Zeros of which the system holds no page before it is read. Mapped, not allocated: the C library would keep freed
/// blocks of a model's size for itself, and what is loaded afterwards would come on top of them.
struct Zeros(MmapMut);

impl Owner for Zeros {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn zeros(len: usize) -> Option<Storage> {
    if len == 0 {
        return Some(Storage::from_bytes(&[]));
    }
    Some(Storage::from_owner(Arc::new(Zeros(MmapMut::map_anon(len).ok()?))))
}
