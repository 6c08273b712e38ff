//! Stored weights of any type, decoded to float32.

use candle_core::{Device, Tensor};
use margay_graph::{BackendError, Program, WeightId, WeightSource};

/// The weights of one program, by [`WeightId::index`].
pub(crate) struct Weights(Vec<Tensor>);

impl Weights {
    /// Decodes every weight of the program.
    ///
    /// # Errors
    /// [`BackendError::Weight`] where one is missing, of another shape or of a type without a decoder.
    pub(crate) fn load(program: &Program, source: &dyn WeightSource) -> Result<Self, BackendError> {
        let load = |spec: &margay_graph::WeightSpec| {
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
            Tensor::from_vec(values, spec.shape.dims(), &Device::Cpu).map_err(|e| wrong(e.to_string()))
        };
        Ok(Self(program.weights().iter().map(load).collect::<Result<_, _>>()?))
    }

    /// The same weights, each replaced by what `change` makes of it.
    pub(crate) fn try_map<E>(self, change: impl FnMut(Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(Self(self.0.into_iter().map(change).collect::<Result<_, _>>()?))
    }

    pub(crate) fn get(&self, id: WeightId) -> &Tensor {
        &self.0[id.index()]
    }

    pub(crate) fn all(&self) -> &[Tensor] {
        &self.0
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.0.iter().map(|w| w.elem_count() * size_of::<f32>()).sum()
    }
}
