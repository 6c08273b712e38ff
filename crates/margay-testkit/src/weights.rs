//! Weights for programs under test.

use crate::random::Rng;
use margay_graph::{BackendError, Program, Role, WeightSource, WeightSpec};
use margay_quant::{encode_tensor, storable};
use margay_tensor::{DType, Shape, Tensor};
use std::collections::BTreeMap;

/// Weights by name.
#[derive(Clone, Debug, Default)]
pub struct MapWeights(BTreeMap<String, Tensor>);

impl MapWeights {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one.
    pub fn insert(&mut self, name: &str, tensor: Tensor) {
        self.0.insert(name.to_owned(), tensor);
    }

    /// Adds or replaces one, packed as `dtype`.
    ///
    /// # Panics
    /// Where shape, type and number of values do not fit.
    pub fn insert_as(&mut self, name: &str, shape: Shape, dtype: DType, values: &[f32]) {
        let tensor = encode_tensor(values, shape, dtype).unwrap_or_else(|e| panic!("weight {name}: {e}"));
        self.insert(name, tensor);
    }

    /// Names and tensors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}

impl WeightSource for MapWeights {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let missing =
            || BackendError::Weight { name: name.to_owned(), what: "not among the test weights".to_owned() };
        self.0.get(name).cloned().ok_or_else(missing)
    }
}

/// Random weights for every weight of a program: matrices, tables and convolutions in `dtype` (or what
/// [`margay_quant::storable`] makes of it), the others in float32. A weight's numbers depend on its name and the seed.
///
/// # Panics
/// Where `dtype` has no encoder.
pub fn random_weights(program: &Program, dtype: DType, seed: u64) -> MapWeights {
    let mut weights = MapWeights::new();
    for spec in program.weights() {
        let values = random_values(spec, seed);
        let quantizable = spec.role.is_matrix() || matches!(spec.role, Role::PatchEmbedding);
        let dtype = if quantizable { storable(dtype, spec.shape.row()).0 } else { DType::F32 };
        weights.insert_as(&spec.name, spec.shape.clone(), dtype, &values);
    }
    weights
}

/// Numbers of the spread a trained weight has: outputs of a layer are about as large as its inputs.
pub fn random_values(spec: &WeightSpec, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(Rng::named(&spec.name).bits() ^ seed);
    let len = spec.shape.elements().unwrap_or(0);
    // A stack of matrices is no convolution: its first size counts experts.
    let is_stack = spec.role.is_matrix() && spec.shape.rank() == 3;
    let fan_in: usize = spec.shape.dims().iter().skip(if is_stack { 2 } else { 1 }).product();
    match spec.role {
        Role::Norm => rng.normals(len, 0.2).into_iter().map(|x| 1.0 + x).collect(),
        Role::RopeFactors => (0..len).map(|_| 1.0 + 7.0 * rng.uniform() as f32).collect(),
        Role::Bias => rng.normals(len, 0.5),
        Role::TokenEmbedding | Role::PositionEmbedding | Role::ClassEmbedding => rng.normals(len, 1.0),
        _ => rng.normals(len, 1.0 / (fan_in.max(1) as f64).sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_graph::{Builder, Stage};

    fn program(names: [&str; 2]) -> Program {
        let mut b = Builder::new(Stage::Project);
        let x = b.input_f32("x", [1.into(), 96.into()]);
        let [first, second] = names.map(|n| b.weight(n, [96, 96], Role::Projector));
        let norm = b.weight("norm", [96], Role::Norm);
        let x = b.linear(x, first, None).unwrap();
        let x = b.linear(x, second, None).unwrap();
        let x = b.norm(x, margay_graph::NormKind::Rms, norm, None, 1e-5).unwrap();
        b.output("y", x);
        b.finish().unwrap()
    }

    #[test]
    fn matrices_get_the_type_or_its_fallback_and_vectors_stay_float() {
        let program = program(["a", "b"]);
        for (requested, stored) in
            [(DType::Q8_0, DType::Q8_0), (DType::Q4_K, DType::Q5_0), (DType::BF16, DType::BF16)]
        {
            let weights = random_weights(&program, requested, 1);
            assert_eq!(weights.weight("a").unwrap().dtype(), stored, "96 is no multiple of 256");
            assert_eq!(weights.weight("norm").unwrap().dtype(), DType::F32);
        }
        assert!(random_weights(&program, DType::F32, 1).weight("c").is_err());
    }

    #[test]
    fn numbers_depend_on_name_and_seed_and_not_on_order() {
        let bytes = |weights: &MapWeights, name: &str| weights.weight(name).unwrap().bytes().to_vec();
        let one = random_weights(&program(["a", "b"]), DType::F32, 1);
        let turned = random_weights(&program(["b", "a"]), DType::F32, 1);
        let other = random_weights(&program(["a", "b"]), DType::F32, 2);
        assert_eq!(bytes(&one, "a"), bytes(&turned, "a"));
        assert_ne!(bytes(&one, "a"), bytes(&one, "b"));
        assert_ne!(bytes(&one, "a"), bytes(&other, "a"));
    }
}
