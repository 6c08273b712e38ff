//! Weights as float32.

use margay_graph::BackendError;
use margay_tensor::Tensor;

/// All numbers of a weight.
pub(crate) fn decode(name: &str, tensor: &Tensor) -> Result<Vec<f32>, BackendError> {
    margay_quant::decode_tensor(tensor)
        .map_err(|e| BackendError::Weight { name: name.to_owned(), what: e.to_string() })
}
