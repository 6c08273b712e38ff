//! Stored weights of any type, decoded to float32.

use candle_core::{Device, Tensor};
use margay_graph::{BackendError, Program, WeightId, WeightSource, WeightSpec};

/// The weights of one program, by [`WeightId::index`]; those that a walk does not need at the moment are not there.
pub(crate) struct Weights(Vec<Option<Tensor>>);

impl Weights {
    /// Decodes every weight of the program.
    ///
    /// # Errors
    /// [`BackendError::Weight`] where one is missing, of another shape or of a type without a decoder.
    pub(crate) fn load(program: &Program, source: &dyn WeightSource) -> Result<Self, BackendError> {
        let load = |spec: &WeightSpec| Ok(Some(decoded(spec, source)?));
        Ok(Self(program.weights().iter().map(load).collect::<Result<_, BackendError>>()?))
    }

    /// Decodes those weights of the program alone.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub(crate) fn load_only(
        program: &Program,
        wanted: &[WeightId],
        source: &dyn WeightSource,
    ) -> Result<Self, BackendError> {
        let mut weights = vec![None; program.weights().len()];
        for id in wanted {
            weights[id.index()] = Some(decoded(program.weight(*id), source)?);
        }
        Ok(Self(weights))
    }

    /// The same weights, each replaced by what `change` makes of it.
    pub(crate) fn try_map<E>(self, change: impl FnMut(Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        let mut change = change;
        let change = |weight: Option<Tensor>| weight.map(&mut change).transpose();
        Ok(Self(self.0.into_iter().map(change).collect::<Result<_, _>>()?))
    }

    pub(crate) fn get(&self, id: WeightId) -> &Tensor {
        self.0[id.index()].as_ref().expect("invariant: the weights of a node are loaded before it runs")
    }

    /// All that are there, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter().flatten()
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.all().map(|w| w.elem_count() * size_of::<f32>()).sum()
    }
}

/// The weight, decoded.
fn decoded(spec: &WeightSpec, source: &dyn WeightSource) -> Result<Tensor, BackendError> {
    let stored = source.weight(&spec.name)?;
    let wrong = |what: String| BackendError::Weight { name: spec.name.clone(), what };
    if stored.shape() != &spec.shape {
        return Err(wrong(format!(
            "the model file has {}, the program wants {}",
            stored.shape(),
            spec.shape
        )));
    }
    let values = margay_quant::decode_tensor(&stored).map_err(|e| wrong(e.to_string()))?;
    // Of a mapped file, only the numbers are needed from here on.
    stored.storage().release();
    Tensor::from_vec(values, spec.shape.dims(), &Device::Cpu).map_err(|e| wrong(e.to_string()))
}
