//! One loop an op, one output number at a time.

use super::{Data, NaiveState, Rounding, Weight, call};
use margay_graph::{
    Activation, AdaptivePool, Attention, BackendError, Bindings, Conv2d, Experts, Linear, Mask, Norm,
    NormKind, Op, Pool2d, Program, Rope, RopeStyle, Route, Sym, WeightId,
};

use margay_tensor::DType;

/// What an op reads.
pub(super) struct Frame<'a> {
    pub(super) inputs: Vec<&'a Data>,
    pub(super) input_sizes: Vec<Vec<usize>>,
    pub(super) size: Vec<usize>,
    pub(super) weights: &'a [Weight],
    pub(super) rounding: Rounding,
    pub(super) program: &'a Program,
    pub(super) bindings: &'a Bindings,
}

impl Frame<'_> {
    fn numbers(&self, at: usize) -> Result<&[f64], BackendError> {
        match self.inputs.get(at) {
            Some(Data::F64(x)) => Ok(x),
            _ => Err(call("an op takes numbers here")),
        }
    }

    fn integers(&self, at: usize) -> Result<&[i32], BackendError> {
        match self.inputs.get(at) {
            Some(Data::I32(x)) => Ok(x),
            _ => Err(call("an op takes integers here")),
        }
    }

    fn weight(&self, id: WeightId) -> &[f64] {
        &self.weights[id.index()].values
    }

    /// Result of size [rows, columns], each number by itself.
    fn fill(&self, mut number: impl FnMut(usize, usize) -> f64) -> Vec<f64> {
        let (rows, columns) = (self.size[0], self.size[1]);
        let mut out = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                out.push(number(row, column));
            }
        }
        out
    }
}

pub(super) fn run(op: &Op, frame: &Frame<'_>, cache: &mut NaiveState) -> Result<Vec<f64>, BackendError> {
    Ok(match op {
        Op::Input => return Err(call("an input runs nothing")),
        Op::Param { weight } => frame.weight(*weight).to_vec(),
        Op::Embed { table } => embed(frame, *table)?,
        Op::Linear(l) => linear(frame, l)?,
        Op::Norm(n) => norm(frame, n)?,
        Op::Activation(act) => frame.numbers(0)?.iter().map(|x| activation(*act, *x)).collect(),
        Op::Add => binary(frame, |a, b| a + b)?,
        Op::Mul => binary(frame, |a, b| a * b)?,
        Op::Scale(factor) => frame.numbers(0)?.iter().map(|x| x * f64::from(*factor)).collect(),
        Op::Glu(act) => binary(frame, |gate, up| activation(*act, gate) * up)?,
        Op::Route(r) => route(frame, r)?,
        Op::Experts(e) => experts(frame, e)?,
        Op::Rope(r) => rope(frame, r)?,
        Op::Attention(a) => attention(frame, a, cache)?,
        Op::Patchify { patch } => patchify(frame, *patch)?,
        Op::Conv2d(c) => conv2d(frame, c)?,
        Op::AvgPool2d(p) => avg_pool2d(frame, p)?,
        Op::SpaceToDepth(p) => space_to_depth(frame, p)?,
        Op::JoinRows { .. } => frame.numbers(0)?.to_vec(),
        Op::AdaptivePool(p) => adaptive_pool(frame, p)?,
        Op::MeanRows => {
            let (x, rows) = (frame.numbers(0)?, frame.input_sizes[0][0]);
            frame.fill(|_, c| (0..rows).map(|r| x[r * frame.size[1] + c]).sum::<f64>() / rows as f64)
        }
        Op::ConcatRows => [frame.numbers(0)?, frame.numbers(1)?].concat(),
        Op::ConcatColumns => {
            let (a, b, width) = (frame.numbers(0)?, frame.numbers(1)?, frame.input_sizes[0][1]);
            let width_b = frame.size[1] - width;
            frame.fill(|r, c| if c < width { a[r * width + c] } else { b[r * width_b + c - width] })
        }
        Op::SliceRows { start, .. } => {
            let x = frame.numbers(0)?;
            frame.fill(|r, c| x[(start + r) * frame.size[1] + c])
        }
        Op::SliceColumns { start, .. } => {
            let (x, columns) = (frame.numbers(0)?, frame.input_sizes[0][1]);
            frame.fill(|r, c| x[r * columns + start + c])
        }
        Op::GatherRows => {
            let (x, rows) = (frame.numbers(0)?, frame.integers(1)?);
            frame.fill(|r, c| x[rows[r] as usize * frame.size[1] + c])
        }
        Op::SelectColumns { columns } => {
            let (x, width) = (frame.numbers(0)?, frame.input_sizes[0][1]);
            frame.fill(|r, c| x[r * width + columns[c]])
        }
        Op::ZeroColumns { columns } => {
            let (x, width) = (frame.numbers(0)?, frame.size[1]);
            frame.fill(|r, c| if columns.contains(&c) { 0.0 } else { x[r * width + c] })
        }
    })
}

fn embed(frame: &Frame<'_>, table: WeightId) -> Result<Vec<f64>, BackendError> {
    let (ids, width) = (frame.integers(0)?, frame.size[1]);
    let visual = if frame.inputs.len() > 1 { frame.numbers(1)? } else { &[] };
    let table = frame.weight(table);
    Ok(frame.fill(|row, column| match ids[row] {
        id if id >= 0 => table[id as usize * width + column],
        id => visual[(-1 - id) as usize * width + column],
    }))
}

fn linear(frame: &Frame<'_>, l: &Linear) -> Result<Vec<f64>, BackendError> {
    let (x, weight) = (frame.numbers(0)?, frame.weight(l.weight));
    let columns = frame.input_sizes[0][1];
    let rounded = match frame.rounding.int8_block {
        Some(block) if frame.weights[l.weight.index()].quantized => Some(round_to_int8(x, columns, block)),
        _ => None,
    };
    let x = rounded.as_deref().unwrap_or(x);
    let residual = if l.residual { Some(frame.numbers(1)?) } else { None };
    Ok(frame.fill(|row, out| {
        let (x, w) = (&x[row * columns..][..columns], &weight[out * columns..][..columns]);
        let mut y: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
        y += l.bias.map_or(0.0, |b| frame.weight(b)[out]);
        y = l.activation.map_or(y, |act| activation(act, y));
        y + residual.map_or(0.0, |r| r[row * frame.size[1] + out])
    }))
}

/// Each block of a row as multiples of a 127th of its largest magnitude.
fn round_to_int8(x: &[f64], columns: usize, block: usize) -> Vec<f64> {
    let blocks = x.chunks(columns).flat_map(|row| row.chunks(block));
    blocks
        .flat_map(|block| {
            let largest = block.iter().fold(0f64, |m, x| m.max(x.abs()));
            let step = largest / 127.0;
            block.iter().map(move |x| if step > 0.0 { (x / step).round() * step } else { 0.0 })
        })
        .collect()
}

/// As half precision stores them.
fn round_to_half(values: &mut [f64]) {
    for value in values {
        let mut stored = [0; 2];
        let mut back = [0.0];
        // Both take one whole "block" of F16, which is one number.
        margay_quant::encode_into(DType::F16, &[*value as f32], &mut stored)
            .expect("invariant: one number, two bytes");
        margay_quant::decode_into(DType::F16, &stored, &mut back).expect("invariant: one number, two bytes");
        *value = f64::from(back[0]);
    }
}

fn norm(frame: &Frame<'_>, n: &Norm) -> Result<Vec<f64>, BackendError> {
    let (x, columns) = (frame.numbers(0)?, frame.weight(n.weight).len());
    let count = columns as f64;
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(columns) {
        let mean = match n.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => row.iter().sum::<f64>() / count,
        };
        let power = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        for (column, x) in row.iter().enumerate() {
            let bias = n.bias.map_or(0.0, |b| frame.weight(b)[column]);
            out.push((x - mean) / (power + f64::from(n.eps)).sqrt() * frame.weight(n.weight)[column] + bias);
        }
    }
    Ok(out)
}

fn route(frame: &Frame<'_>, r: &Route) -> Result<Vec<f64>, BackendError> {
    let logits = frame.numbers(0)?.chunks(frame.size[1]);
    Ok(logits
        .flat_map(|logits| {
            // As many as are greater, or equal and before it, stand before an expert.
            let rank = |n: usize| {
                let before = |(m, other): (usize, &f64)| *other > logits[n] || (*other == logits[n] && m < n);
                logits.iter().enumerate().filter(|pair| before(*pair)).count()
            };
            let stays: Vec<bool> = (0..logits.len()).map(|n| rank(n) < r.used).collect();
            let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let power: Vec<f64> = logits.iter().map(|x| (x - greatest).exp()).collect();
            let counted = |n: &usize| !r.normalised || stays[*n];
            let sum: f64 = (0..logits.len()).filter(counted).map(|n| power[n]).sum();
            (0..logits.len()).map(|n| if stays[n] { power[n] / sum } else { 0.0 }).collect::<Vec<_>>()
        })
        .collect())
}

fn experts(frame: &Frame<'_>, e: &Experts) -> Result<Vec<f64>, BackendError> {
    let (x, shares) = (frame.numbers(0)?, frame.numbers(1)?);
    let (width, count) = (frame.size[1], frame.input_sizes[1][1]);
    let rounded = |x: &[f64], weight: WeightId| match frame.rounding.int8_block {
        Some(block) if frame.weights[weight.index()].quantized => round_to_int8(x, x.len(), block),
        _ => x.to_vec(),
    };
    // Output `o` of the layer of expert `n`.
    let product = |x: &[f64], weight: WeightId, n: usize, o: usize, outputs: usize| -> f64 {
        frame.weight(weight)[(n * outputs + o) * x.len()..].iter().zip(x).map(|(w, x)| w * x).sum()
    };
    let mut out = vec![0.0; x.len()];
    for (row, y) in out.chunks_mut(width.max(1)).enumerate() {
        let x = &x[row * width..][..width];
        for n in (0..count).filter(|n| shares[row * count + n] != 0.0) {
            let ffn = frame.weight(e.gate).len() / (count * width);
            let [for_gate, for_up] = [rounded(x, e.gate), rounded(x, e.up)];
            let hidden = (0..ffn).map(|f| {
                activation(e.activation, product(&for_gate, e.gate, n, f, ffn))
                    * product(&for_up, e.up, n, f, ffn)
            });
            let hidden = rounded(&hidden.collect::<Vec<_>>(), e.down);
            for (column, y) in y.iter_mut().enumerate() {
                *y += shares[row * count + n] * product(&hidden, e.down, n, column, width);
            }
        }
    }
    Ok(out)
}

fn activation(act: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let relu6 = |x: f64| x.clamp(0.0, 6.0);
    match act {
        Activation::Silu => x * sigmoid(x),
        Activation::GeluErf => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Hardswish => x * relu6(x + 3.0) / 6.0,
        Activation::Hardsigmoid => relu6(x + 3.0) / 6.0,
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// The error function by its Taylor series, `2/sqrt(pi) * sum (-1)^n x^(2n+1) / (n! (2n+1))`, which in float64 is good
/// to 1e-9 up to |x| = 3.5; beyond 3.5 it differs from its limit by less than 8e-7, found with the first terms of the
/// asymptotic series.
fn erf(x: f64) -> f64 {
    let magnitude = x.abs();
    let two_over_root_pi = 2.0 / std::f64::consts::PI.sqrt();
    let value = if magnitude < 3.5 {
        let (mut power, mut sum) = (magnitude, magnitude);
        for n in 1..100 {
            power *= -magnitude * magnitude / f64::from(n);
            sum += power / f64::from(2 * n + 1);
        }
        two_over_root_pi * sum
    } else {
        let square = magnitude * magnitude;
        let series = 1.0 - 0.5 / square + 0.75 / (square * square);
        1.0 - (-square).exp() / (magnitude * std::f64::consts::PI.sqrt()) * series
    };
    value.copysign(x)
}

fn binary(frame: &Frame<'_>, f: impl Fn(f64, f64) -> f64) -> Result<Vec<f64>, BackendError> {
    let (a, b) = (frame.numbers(0)?, frame.numbers(1)?);
    // One row is used for all.
    let one_row = frame.input_sizes[1][0] == 1;
    let columns = frame.size[1];
    Ok(frame.fill(|r, c| f(a[r * columns + c], b[if one_row { c } else { r * columns + c }])))
}

fn rope(frame: &Frame<'_>, r: &Rope) -> Result<Vec<f64>, BackendError> {
    let (x, positions) = (frame.numbers(0)?, frame.integers(1)?);
    let (columns, half) = (frame.size[1], r.rotary / 2);
    Ok(frame.fill(|row, column| {
        let at = |column: usize| x[row * columns + column];
        let in_head = column % r.head_dim;
        if in_head >= r.rotary {
            return at(column);
        }
        // Which pair, where its other member lies, and whether this is the first member.
        let (pair, other, first) = match r.style {
            RopeStyle::Half if in_head < half => (in_head, column + half, true),
            RopeStyle::Half => (in_head - half, column - half, false),
            RopeStyle::Interleaved if in_head.is_multiple_of(2) => (in_head / 2, column + 1, true),
            RopeStyle::Interleaved => (in_head / 2, column - 1, false),
        };
        let factor = r.factors.map_or(1.0, |f| frame.weight(f)[pair]);
        // Its section, and its place there.
        let (mut section, mut within) = (0, pair);
        let axes = r.axes.as_ref();
        while let Some(pairs) = axes.map(|a| a.sections[section]).filter(|pairs| within >= *pairs) {
            (section, within) = (section + 1, within - pairs);
        }
        let (position, part) = match axes {
            None => (positions[row], pair as f64 / half as f64),
            Some(a) if a.restart => {
                (positions[row * a.count + section % a.count], within as f64 / a.sections[section] as f64)
            }
            Some(a) => (positions[row * a.count + section % a.count], pair as f64 / half as f64),
        };
        let frequency = f64::from(r.base).powf(-part) / factor;
        let (sin, cos) = (f64::from(position) * frequency).sin_cos();
        if first { at(column) * cos - at(other) * sin } else { at(column) * cos + at(other) * sin }
    }))
}

fn attention(frame: &Frame<'_>, a: &Attention, cache: &mut NaiveState) -> Result<Vec<f64>, BackendError> {
    let q = frame.numbers(0)?;
    let (mut keys, mut values) = (frame.numbers(1)?.to_vec(), frame.numbers(2)?.to_vec());
    let mut past = 0;
    if let Some(slot) = a.cache {
        past = cache.len;
        if frame.rounding.half_cache {
            round_to_half(&mut keys);
            round_to_half(&mut values);
        }
        let held = &mut cache.slots[slot];
        held.0.append(&mut keys);
        held.1.append(&mut values);
        (keys, values) = held.clone();
    }
    let row = a.kv_heads * a.head_dim;
    let segments = if let Mask::Segments { .. } = a.mask { frame.integers(3)? } else { &[] };
    let prefix = if a.mask == Mask::Prefix { frame.bindings.get(Sym::Prefix)? } else { 0 };
    if prefix > past && (past > 0 || prefix > frame.size[0]) {
        return Err(call("a part of a prefix"));
    }
    let seen = |query: usize| match a.mask {
        Mask::Full => 0..keys.len() / row,
        Mask::Causal => 0..past + query + 1,
        Mask::Prefix if past + query < prefix => 0..prefix,
        Mask::Prefix => 0..past + query + 1,
        Mask::Segments { .. } => {
            let other = |at: &usize| segments[*at] != segments[query];
            let first = (0..query).rev().find(other).map_or(0, |before| before + 1);
            first..(query..segments.len()).find(other).unwrap_or(segments.len())
        }
    };
    let mut out = Vec::with_capacity(q.len());
    for query in 0..frame.size[0] {
        for head in 0..a.heads {
            let kv_head = head / (a.heads / a.kv_heads);
            let q = &q[(query * a.heads + head) * a.head_dim..][..a.head_dim];
            let part = |of: &[f64], key: usize, d: usize| of[key * row + kv_head * a.head_dim + d];
            let score = |key: usize| {
                let product: f64 = (0..a.head_dim).map(|d| q[d] * part(&keys, key, d)).sum();
                product * f64::from(a.scale)
            };
            let scores: Vec<f64> = seen(query).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..a.head_dim {
                let sum: f64 = seen(query).zip(&weights).map(|(key, w)| w * part(&values, key, d)).sum();
                out.push(sum / total);
            }
        }
    }
    Ok(out)
}

fn adaptive_pool(frame: &Frame<'_>, p: &AdaptivePool) -> Result<Vec<f64>, BackendError> {
    let (x, map, size) = (frame.numbers(0)?, frame.integers(1)?, frame.integers(2)?);
    let (height, width) = (size[0] as usize, size[1] as usize);
    // Whether map place `at` of `of` belongs to result place `place` of `places`.
    let inside = |at: usize, of: usize, place: usize, places: usize| {
        let (begin, end) = ((place * of / places), ((place + 1) * of) as f64 / places as f64);
        at >= begin && (at as f64) < end.ceil()
    };
    Ok(frame.fill(|row, column| {
        let (mut sum, mut count) = (0.0, 0.0);
        for (at, source) in map.iter().enumerate() {
            let of_rows = inside(at / width, height, row / p.width, p.height);
            if of_rows && inside(at % width, width, row % p.width, p.width) {
                sum += x[*source as usize * frame.size[1] + column];
                count += 1.0;
            }
        }
        sum / count
    }))
}

fn patchify(frame: &Frame<'_>, patch: usize) -> Result<Vec<f64>, BackendError> {
    let pixels = frame.numbers(0)?;
    let (height, width) = (frame.input_sizes[0][1], frame.input_sizes[0][2]);
    let across = width / patch;
    Ok(frame.fill(|row, column| {
        let (channel, in_patch) = (column / (patch * patch), column % (patch * patch));
        let y = row / across * patch + in_patch / patch;
        let x = row % across * patch + in_patch % patch;
        pixels[(channel * height + y) * width + x]
    }))
}

fn conv2d(frame: &Frame<'_>, c: &Conv2d) -> Result<Vec<f64>, BackendError> {
    let (map, weight) = (frame.numbers(0)?, frame.weight(c.weight));
    let channels = frame.input_sizes[0][1];
    let &[out_channels, in_group, _, _] = frame.program.weight(c.weight).shape.dims() else {
        return Err(call("a convolution's weight has four dimensions"));
    };
    let (_, out_width) = c.output_size();
    let out_group = out_channels / c.groups;
    Ok(frame.fill(|row, out| {
        let mut sum = c.bias.map_or(0.0, |b| frame.weight(b)[out]);
        for ky in 0..c.kernel {
            for kx in 0..c.kernel {
                let y = (row / out_width * c.stride + ky) as isize - c.padding as isize;
                let x = (row % out_width * c.stride + kx) as isize - c.padding as isize;
                if y < 0 || x < 0 || y >= c.height as isize || x >= c.width as isize {
                    continue;
                }
                let pixel = y as usize * c.width + x as usize;
                for i in 0..in_group {
                    let channel = out / out_group * in_group + i;
                    let tap = ((out * in_group + i) * c.kernel + ky) * c.kernel + kx;
                    sum += map[pixel * channels + channel] * weight[tap];
                }
            }
        }
        sum
    }))
}

fn avg_pool2d(frame: &Frame<'_>, p: &Pool2d) -> Result<Vec<f64>, BackendError> {
    let (map, channels) = (frame.numbers(0)?, frame.size[1]);
    let across = p.width / p.kernel;
    Ok(frame.fill(|row, channel| {
        let mut sum = 0.0;
        for y in 0..p.kernel {
            for x in 0..p.kernel {
                let pixel = (row / across * p.kernel + y) * p.width + row % across * p.kernel + x;
                sum += map[pixel * channels + channel];
            }
        }
        sum / (p.kernel * p.kernel) as f64
    }))
}

fn space_to_depth(frame: &Frame<'_>, p: &Pool2d) -> Result<Vec<f64>, BackendError> {
    let (map, channels) = (frame.numbers(0)?, frame.input_sizes[0][1]);
    let across = p.width / p.kernel;
    Ok(frame.fill(|row, column| {
        let (pixel, channel) = (column / channels, column % channels);
        let y = row / across * p.kernel + pixel / p.kernel;
        let x = row % across * p.kernel + pixel % p.kernel;
        map[(y * p.width + x) * channels + channel]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_its_tabled_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, value) in
            [(0.0, 0.0), (0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (3.0, 0.9999779095)]
        {
            assert!((erf(x) - value).abs() < 1e-9, "{x} {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((erf(3.4999999) - erf(3.5000001)).abs() < 1e-9, "the two series meet");
        assert_eq!(erf(40.0), 1.0);
    }
}
