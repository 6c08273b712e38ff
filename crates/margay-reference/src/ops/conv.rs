//! Convolution and pooling over feature maps stored channels last.

use super::OpResult;
use crate::{backend::call, run::Context};
use candle_core::{DType, Device, Tensor};
use margay_graph::{AdaptivePool, Conv2d, Pool2d};

/// The sum, over the taps of the kernel, of the shifted map times that tap's weights.
///
/// Not candle's own `conv2d`: its gradient pads a map that is not square wrongly. A unit test compares the two forward.
pub(super) fn conv2d(context: &Context<'_>, conv: &Conv2d) -> OpResult {
    let x = context.tensor(0)?; // [h*w, C]
    let weight = context.weights.get(conv.weight); // [O, C/G, k, k]
    let (out_h, out_w) = conv.output_size();
    let (groups, in_group) = (conv.groups, weight.dim(1)?);
    let out_group = weight.dim(0)? / groups;
    // One row of zeros at the end stands for everything outside the map.
    let zeros = Tensor::zeros((1, x.dim(1)?), DType::F32, &Device::Cpu)?;
    let padded = Tensor::cat(&[x, &zeros], 0)?;

    let mut sum: Option<Tensor> = None;
    for tap_y in 0..conv.kernel {
        for tap_x in 0..conv.kernel {
            let rows = tap_rows(conv, tap_y, tap_x);
            let rows = Tensor::from_vec(rows, out_h * out_w, &Device::Cpu)?;
            let shifted = padded.index_select(&rows, 0)?; // [P', C]
            let shifted = shifted.reshape((out_h * out_w, groups, in_group))?.transpose(0, 1)?; // [G, P', C/G]
            let tap = weight.narrow(2, tap_y, 1)?.narrow(3, tap_x, 1)?;
            let tap = tap.reshape((groups, out_group, in_group))?.transpose(1, 2)?; // [G, C/G, O/G]
            let part = shifted.contiguous()?.matmul(&tap.contiguous()?)?; // [G, P', O/G]
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    let sum = sum.ok_or_else(|| call("a kernel has at least one tap"))?;
    let y = sum.transpose(0, 1)?.contiguous()?.reshape((out_h * out_w, groups * out_group))?;
    match conv.bias {
        Some(bias) => Ok(y.broadcast_add(context.weights.get(bias))?),
        None => Ok(y),
    }
}

/// For each output pixel the row of the map that this tap reads; `height * width` (the row of zeros) outside.
fn tap_rows(conv: &Conv2d, tap_y: usize, tap_x: usize) -> Vec<u32> {
    let (out_h, out_w) = conv.output_size();
    let inside = |out: usize, tap: usize, size: usize| {
        (out * conv.stride + tap).checked_sub(conv.padding).filter(|at| *at < size)
    };
    let row = |y: usize, x: usize| match (inside(y, tap_y, conv.height), inside(x, tap_x, conv.width)) {
        (Some(y), Some(x)) => y * conv.width + x,
        _ => conv.height * conv.width,
    };
    (0..out_h).flat_map(|y| (0..out_w).map(move |x| (y, x))).map(|(y, x)| row(y, x) as u32).collect()
}

/// Mean of each `kernel` x `kernel` square.
pub(super) fn avg_pool2d(x: &Tensor, pool: &Pool2d) -> OpResult {
    let &Pool2d { height, width, kernel } = pool;
    let channels = x.dim(1)?;
    let squares = x.reshape(vec![height / kernel, kernel, width / kernel, kernel, channels])?;
    let mean = (squares.sum((1, 3))? / (kernel * kernel) as f64)?;
    Ok(mean.reshape((height / kernel * (width / kernel), channels))?)
}

/// Each place of the result as the mean of the rows of `x` that its part of the map lists: a product with a matrix of means.
pub(super) fn adaptive_pool(context: &Context<'_>, pool: AdaptivePool) -> OpResult {
    let x = context.tensor(0)?; // [R, C]
    let (map, size) = (context.integers(1)?, context.integers(2)?);
    let rows = x.dim(0)?;
    let sides: Vec<usize> = size.iter().filter_map(|side| usize::try_from(*side).ok()).collect();
    let &[height, width] = sides.as_slice() else {
        return Err(call(format!("a map of the size {size:?}")).into());
    };
    if height == 0 || width == 0 || height.checked_mul(width) != Some(map.len()) {
        return Err(call(format!("{} places are no map of {height} x {width}", map.len())).into());
    }
    let mut means = vec![0.0f32; pool.height * pool.width * rows]; // [h*w, R]
    for (place, means) in means.chunks_exact_mut(rows.max(1)).enumerate() {
        let part = |at: usize, of: usize, size: usize| at * size / of..((at + 1) * size).div_ceil(of);
        let ys = part(place / pool.width, pool.height, height);
        let xs = part(place % pool.width, pool.width, width);
        let share = 1.0 / (ys.len() * xs.len()) as f32;
        for at in ys.flat_map(|y| xs.clone().map(move |x| y * width + x)) {
            let row = usize::try_from(map[at]).ok().filter(|row| *row < rows);
            means[row.ok_or_else(|| call(format!("row {} is outside the {rows} rows", map[at])))?] += share;
        }
    }
    let means = Tensor::from_vec(means, (pool.height * pool.width, rows), &Device::Cpu)?;
    Ok(means.matmul(x)?)
}

/// The pixels of each square side by side.
pub(super) fn space_to_depth(x: &Tensor, pool: &Pool2d) -> OpResult {
    let &Pool2d { height, width, kernel } = pool;
    let channels = x.dim(1)?;
    let squares = x.reshape(vec![height / kernel, kernel, width / kernel, kernel * channels])?;
    let squares = squares.permute(vec![0, 2, 1, 3])?.contiguous()?; // [h/k, w/k, k, k*C]
    Ok(squares.reshape((height / kernel * (width / kernel), kernel * kernel * channels))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run::evaluate, weights::Weights};
    use margay_graph::{BackendError, Bindings, Builder, Cancel, InputData, Role, Stage};

    /// Both sum at most 36 products of numbers below 1 in float32, in another order.
    const REORDERED: f32 = 1e-5;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn taps_equal_candles_conv2d_for_strides_paddings_and_groups() {
        let cases = [
            (4, 6, 1, (5, 7), 3, 1, 1),
            (6, 6, 6, (5, 7), 3, 2, 1),
            (6, 4, 2, (4, 3), 3, 1, 0),
            (2, 8, 2, (4, 4), 2, 2, 0),
            (3, 5, 1, (6, 5), 1, 1, 0),
            (4, 4, 4, (4, 7), 3, 2, 2),
        ];
        for (c_in, c_out, groups, (height, width), kernel, stride, padding) in cases {
            let x = wave(height * width * c_in, 0.37);
            let w = wave(c_out * (c_in / groups) * kernel * kernel, 0.61);
            let mut b = Builder::new(Stage::Project);
            let map = b.input_f32("x", [(height * width).into(), c_in.into()]);
            let weight = b.weight("w", [c_out, c_in / groups, kernel, kernel], Role::Convolution);
            let conv = Conv2d { weight, bias: None, height, width, kernel, stride, padding, groups };
            let y = b.conv2d(map, conv).unwrap();
            b.output("y", y);
            let source = One(w.clone(), vec![c_out, c_in / groups, kernel, kernel]);
            let program = b.finish().unwrap();
            let weights = Weights::load(&program, &source).unwrap();
            let got = evaluate(
                &program,
                &weights,
                &Bindings::new(),
                &[InputData::F32(&x)],
                &mut Default::default(),
                &Cancel::new(),
            )
            .unwrap();

            let x = Tensor::from_vec(x, (height, width, c_in), &Device::Cpu).unwrap();
            let x = x.permute((2, 0, 1)).unwrap().unsqueeze(0).unwrap().contiguous().unwrap();
            let w = Tensor::from_vec(w, (c_out, c_in / groups, kernel, kernel), &Device::Cpu).unwrap();
            let expected = x.conv2d(&w, padding, stride, 1, groups).unwrap();
            let expected = expected.squeeze(0).unwrap().permute((1, 2, 0)).unwrap();
            let expected = expected.contiguous().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(got["y"].len(), expected.len());
            for (a, b) in got["y"].iter().zip(&expected) {
                assert!((a - b).abs() <= REORDERED, "{a} {b}: {c_in} {c_out} {groups} {stride} {padding}");
            }
        }
    }

    struct One(Vec<f32>, Vec<usize>);

    impl margay_graph::WeightSource for One {
        fn weight(&self, _name: &str) -> Result<margay_tensor::Tensor, BackendError> {
            Ok(margay_tensor::Tensor::from_f32(self.1.clone().into(), &self.0).unwrap())
        }
    }
}
