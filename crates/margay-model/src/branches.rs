//! Layers that a checkpoint stores as a sum of branches, each with a batch norm, made one convolution with a bias.
//! Source: Ding et al., "RepVGG", arXiv 2101.03697, section 3.3; apple/ml-fastvlm `mci.py`, `_get_kernel_bias`.

use crate::{
    ModelError,
    weights::{floats, missing},
};
use margay_file::TensorInfo;
use margay_tensor::{DType, Shape, Tensor};
use std::collections::BTreeMap;

/// PyTorch's, which no checkpoint says.
const NORM_EPS: f64 = 1e-5;

/// What a stored tensor is in the layer `scale * (sum over the branches of norm(kernel * x)) (+ x)`. A branch without a
/// kernel is the norm of x itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Tells its branch from the others; any number.
    pub number: u8,
    /// What it is there.
    pub part: BranchPart,
    /// The branch is taken away instead of added.
    pub negative: bool,
    /// The layer's input is added to the sum.
    pub shortcut: bool,
}

/// A part of a [`Branch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the field's own words")]
pub enum BranchPart {
    /// `[out, in / groups, k, k]` or `[out, in]`; smaller kernels lie in the middle of the largest.
    Kernel,
    Bias,
    NormWeight,
    NormBias,
    NormMean,
    NormVariance,
    /// A factor for each output of the whole sum.
    Scale,
}

impl Branch {
    /// A part of the only branch.
    pub(crate) fn of(part: BranchPart) -> Self {
        Branch { number: 0, part, negative: false, shortcut: false }
    }
}

/// Name and role of each tensor of a layer.
pub(crate) type Parts = Vec<(Branch, String)>;

/// Which of the two tensors of a merged layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    Weight,
    Bias,
}

/// Type and shape of a tensor of the merged layer `name`.
pub(crate) fn info(
    parts: &Parts,
    which: Merged,
    stored: &dyn Fn(&str) -> Option<TensorInfo>,
) -> Option<TensorInfo> {
    let kernels = parts.iter().filter(|(branch, _)| branch.part == BranchPart::Kernel);
    let shapes = kernels.filter_map(|(_, name)| Some(stored(name)?.shape));
    let shape = shapes.max_by_key(|shape| shape.dims().get(2).copied().unwrap_or(1))?;
    let shape = match which {
        Merged::Weight => shape,
        Merged::Bias => Shape::from([shape.dims().first().copied()?]),
    };
    Some(TensorInfo { dtype: DType::F32, shape })
}

/// A tensor of the merged layer `name`.
///
/// # Errors
/// [`ModelError::Weight`] where a part is missing or of another shape.
pub(crate) fn tensor(
    name: &str,
    parts: &Parts,
    which: Merged,
    fetch: &dyn Fn(&str) -> Result<Tensor, ModelError>,
) -> Result<Tensor, ModelError> {
    let stored = |name: &str| fetch(name).ok().as_ref().map(TensorInfo::from);
    let whole = info(parts, Merged::Weight, &stored).ok_or_else(|| missing(name))?;
    let (out, width, side) = match *whole.shape.dims() {
        [out, width, h, w] if h == w && h > 0 => (out, width, h),
        [out, width] => (out, width, 1),
        _ => return Err(ModelError::weight(name, format!("a kernel of {}", whole.shape))),
    };
    let channel = width * side * side;
    let middle = |o: usize| o * channel + (o % width.max(1)) * side * side + side * side / 2;
    let vector = |stored: &str| -> Result<Vec<f32>, ModelError> {
        let values = floats(stored, &fetch(stored)?)?;
        match values.len() == out {
            true => Ok(values),
            false => Err(ModelError::weight(stored, format!("{} numbers for {out} outputs", values.len()))),
        }
    };
    let mut branches: BTreeMap<u8, BTreeMap<BranchPart, (Branch, &str)>> = BTreeMap::new();
    let mut scale = vec![1.0; out];
    for (branch, stored) in parts {
        match branch.part {
            BranchPart::Scale => scale = vector(stored)?,
            part => {
                branches.entry(branch.number).or_default().insert(part, (*branch, stored));
            }
        }
    }
    let mut kernel = vec![0.0f32; if which == Merged::Weight { out * channel } else { 0 }];
    let mut bias = vec![0.0f64; out];
    for branch in branches.values() {
        let of = |part: BranchPart| branch.get(&part).map(|(_, stored)| vector(stored)).transpose();
        let norm =
            [BranchPart::NormWeight, BranchPart::NormBias, BranchPart::NormMean, BranchPart::NormVariance];
        let sign = if branch.values().any(|(b, _)| b.negative) { -1.0 } else { 1.0 };
        // The norm as a product and a sum.
        let (factors, offsets): (Vec<f64>, Vec<f64>) =
            match [of(norm[0])?, of(norm[1])?, of(norm[2])?, of(norm[3])?] {
                [None, None, None, None] => (vec![1.0; out], vec![0.0; out]),
                [Some(weight), Some(shift), Some(mean), Some(variance)] => (0..out)
                    .map(|o| {
                        let [w, s, m, v] = [&weight, &shift, &mean, &variance].map(|list| f64::from(list[o]));
                        let factor = w / (v + NORM_EPS).sqrt();
                        (factor, s - m * factor)
                    })
                    .unzip(),
                _ => return Err(ModelError::weight(name, "a batch norm of it lacks a part")),
            };
        let own = of(BranchPart::Bias)?.unwrap_or_else(|| vec![0.0; out]);
        for o in 0..out {
            bias[o] += sign * f64::from(scale[o]) * (f64::from(own[o]) * factors[o] + offsets[o]);
        }
        if which == Merged::Bias {
            continue;
        }
        let factor = |o: usize| sign * f64::from(scale[o]) * factors[o];
        match branch.get(&BranchPart::Kernel) {
            None => (0..out).for_each(|o| kernel[middle(o)] += factor(o) as f32),
            Some((_, stored)) => {
                let tensor = fetch(stored)?;
                let small = tensor.shape().dims().get(2).copied().unwrap_or(1);
                let fits = small <= side
                    && (side - small).is_multiple_of(2)
                    && tensor.shape().elements() == Some(out * width * small * small);
                if !fits {
                    let what = format!("a kernel of {} beside one of {}", tensor.shape(), whole.shape);
                    return Err(ModelError::weight(*stored, what));
                }
                let (values, edge) = (floats(stored, &tensor)?, (side - small) / 2);
                tensor.storage().release();
                for (row, values) in values.chunks_exact(small).enumerate() {
                    let (plane, y) = (row / small, row % small);
                    let factor = factor(plane / width);
                    let to = &mut kernel[(plane * side + y + edge) * side + edge..][..small];
                    for (to, value) in to.iter_mut().zip(values) {
                        *to += (f64::from(*value) * factor) as f32;
                    }
                }
            }
        }
    }
    let shape = match which {
        Merged::Bias => {
            let bias: Vec<f32> = bias.into_iter().map(|b| b as f32).collect();
            return Tensor::from_f32(Shape::from([out]), &bias)
                .map_err(|e| ModelError::weight(name, e.to_string()));
        }
        Merged::Weight => whole.shape,
    };
    if parts.iter().any(|(branch, _)| branch.shortcut) {
        (0..out).for_each(|o| kernel[middle(o)] += 1.0);
    }
    Tensor::from_f32(shape, &kernel).map_err(|e| ModelError::weight(name, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor_of(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(Shape::from(shape.to_vec()), values).unwrap()
    }

    /// The merged weight and bias of parts with their tensors.
    fn merge(parts: &[(Branch, &str, Tensor)]) -> Result<[Vec<f32>; 2], ModelError> {
        let names: Parts = parts.iter().map(|(branch, name, _)| (*branch, (*name).to_owned())).collect();
        let fetch = |name: &str| {
            let found = parts.iter().find(|(_, known, _)| *known == name);
            found.map(|(_, _, tensor)| tensor.clone()).ok_or_else(|| missing(name))
        };
        let each = |which| floats("", &tensor("layer", &names, which, &fetch)?);
        Ok([each(Merged::Weight)?, each(Merged::Bias)?])
    }

    #[test]
    fn a_small_kernel_lies_in_the_middle_and_the_rest_follows_the_sum() {
        let part = |number, part| Branch { number, ..Branch::of(part) };
        let mut parts = vec![
            (part(0, BranchPart::Kernel), "large", tensor_of(&[1, 1, 3, 3], &[1.0; 9])),
            (part(0, BranchPart::Bias), "bias", tensor_of(&[1], &[5.0])),
            (part(1, BranchPart::Kernel), "small", tensor_of(&[1, 1, 1, 1], &[10.0])),
            (part(0, BranchPart::Scale), "scale", tensor_of(&[1, 1, 1], &[2.0])),
        ];
        let mut expected = [2.0f32; 9];
        expected[4] = 22.0;
        assert_eq!(merge(&parts).unwrap(), [expected.to_vec(), vec![10.0]]);
        parts[1].0.shortcut = true;
        parts[2].0.negative = true;
        expected[4] = 2.0 - 20.0 + 1.0;
        assert_eq!(merge(&parts).unwrap(), [expected.to_vec(), vec![10.0]]);
    }

    #[test]
    fn a_norm_alone_is_one_of_the_input() {
        let part = |part| Branch { number: 1, ..Branch::of(part) };
        let variance = 4.0 - 1e-5; // a deviation of 2
        let mut parts = vec![
            (Branch::of(BranchPart::Kernel), "kernel", tensor_of(&[2, 2, 1, 1], &[0.0; 4])),
            (part(BranchPart::NormWeight), "w", tensor_of(&[2], &[2.0, 4.0])),
            (part(BranchPart::NormBias), "b", tensor_of(&[2], &[1.0, 1.0])),
            (part(BranchPart::NormMean), "m", tensor_of(&[2], &[3.0, 0.0])),
            (part(BranchPart::NormVariance), "v", tensor_of(&[2], &[variance, variance])),
        ];
        assert_eq!(merge(&parts).unwrap(), [vec![1.0, 0.0, 0.0, 2.0], vec![-2.0, 1.0]]);
        parts.pop();
        assert!(merge(&parts).unwrap_err().to_string().contains("lacks a part"));
    }

    #[test]
    fn kernels_and_vectors_that_do_not_fit_are_refused() {
        let kernel = |number, name, shape: &[usize]| {
            let tensor = tensor_of(shape, &vec![1.0; shape.iter().product()]);
            (Branch { number, ..Branch::of(BranchPart::Kernel) }, name, tensor)
        };
        let bias = (Branch::of(BranchPart::Bias), "bias", tensor_of(&[2], &[1.0; 2]));
        for parts in [
            vec![kernel(0, "a", &[1, 1, 3, 3]), kernel(1, "b", &[1, 1, 2, 2])],
            vec![kernel(0, "a", &[1, 1, 3, 3]), kernel(1, "b", &[2, 1, 1, 1])],
            vec![kernel(0, "a", &[1, 1, 3, 2])],
            vec![kernel(0, "a", &[1, 1, 0, 0])],
            vec![kernel(0, "a", &[1, 1, 3, 3]), bias.clone()],
            vec![bias],
        ] {
            assert!(matches!(merge(&parts), Err(ModelError::Weight { .. })), "{:?}", parts[0]);
        }
    }
}
