//! One pass over all weights of the pruned model, which makes and writes each.

use super::{
    PruneMethod, PruneOptions, PruneReport, PruneTarget, PrunedTensor,
    plan::Item,
    zeros::{Scores, count, pruned},
};
use crate::{
    OnProgress, PackError, Progress,
    piece::Packing,
    quantize::{PerChannel, quant},
    report::errors,
};
use margay::ModelSource;
use margay_file::gguf::GgufWriter;
use margay_quant::{Factor, InputStats, Rounding, decode_tensor, methods::rtn::Rtn, pruning::Pattern};
use margay_tensor::{Storage, Tensor};
use std::collections::BTreeMap;

pub(super) struct Pass<'a, 'p> {
    pub(super) source: &'a ModelSource,
    pub(super) options: &'a PruneOptions<'a>,
    /// Each weight, and the file it belongs to.
    pub(super) order: &'a [(usize, &'a Item)],
    gradients: &'a BTreeMap<String, Vec<f32>>,
    writers: &'a mut Vec<GgufWriter>,
    report: &'a mut PruneReport,
    pub(super) progress: OnProgress<'p>,
    /// The next weight.
    pub(super) next: usize,
    done_bytes: u64,
    of_bytes: u64,
    threads: usize,
}

/// How many numbers are zero, and the relative error of the weight and of its output.
type Zeroed = (Option<u64>, (Option<f64>, Option<f64>));

impl<'a, 'p> Pass<'a, 'p> {
    pub(super) fn new(
        source: &'a ModelSource,
        options: &'a PruneOptions<'a>,
        order: &'a [(usize, &'a Item)],
        gradients: &'a BTreeMap<String, Vec<f32>>,
        writers: &'a mut Vec<GgufWriter>,
        report: &'a mut PruneReport,
        progress: OnProgress<'p>,
    ) -> Self {
        Pass {
            source,
            options,
            order,
            gradients,
            writers,
            report,
            progress,
            next: 0,
            done_bytes: 0,
            of_bytes: order.iter().map(|(_, item)| item.planned.bytes()).sum(),
            threads: margay::default_threads(),
        }
    }

    /// Whether the next weight is there already, left by a run that was killed.
    pub(super) fn is_written(&self) -> bool {
        let (job, _) = self.order[self.next];
        let before = self.order[..self.next].iter().filter(|(other, _)| *other == job).count();
        before < self.writers[job].written()
    }

    /// Makes and writes the next weight. `input` is what a walk saw of its input.
    pub(super) fn write_next(&mut self, input: Option<&mut InputStats>) -> Result<(), PackError> {
        let (_, item) = self.order[self.next];
        let (mut zeros, mut errors) = (None, (None, None));
        if !self.is_written() {
            match self.options.target {
                PruneTarget::Weights { pattern, .. } if item.zeros => {
                    (zeros, errors) = self.write_zeros(item, *pattern, input)?;
                }
                _ => self.write_cut(item)?,
            }
        } else if item.zeros {
            let back = self.read_back_at(self.next)?;
            zeros = Some(count(&decode_tensor(&back).map_err(|e| quant(&item.from, e))?));
        }
        self.report.tensors.push(PrunedTensor::new(item, zeros, errors));
        self.next += 1;
        self.done_bytes += item.planned.bytes();
        let step = self.step(self.next, 0);
        if (self.progress)(&step).is_break() {
            return Err(PackError::Stopped);
        }
        Ok(())
    }

    /// A weight that stays whole, or loses rows and columns.
    fn write_cut(&mut self, item: &Item) -> Result<(), PackError> {
        let cut = match item.cut.is_none() {
            true => self.source.weights.tensor(&item.from)?,
            false => item.cut.apply(&item.from, &self.source.weights.declared(&item.old)?)?,
        };
        let again = cut.dtype() != item.planned.info.dtype
            && self.source.weights.info(&item.from).is_some_and(|i| i.dtype == item.planned.info.dtype);
        self.report.encoded_again += usize::from(again);
        let job = self.order[self.next].0;
        let (next, done_bytes, of_bytes, of) = (self.next, self.done_bytes, self.of_bytes, self.order.len());
        let (progress, writer) = (&mut *self.progress, &mut self.writers[job]);
        let name = item.planned.name();
        packing(item, &cut, self.threads).run(
            &mut |bytes| Ok(writer.write_bytes(name, bytes)?),
            &mut |bytes| {
                progress(&Progress { tensor: name, done: next, of, done_bytes: done_bytes + bytes, of_bytes })
            },
        )
    }

    /// A weight of which some numbers become zero; how many are zero, and what that changes.
    fn write_zeros(
        &mut self,
        item: &Item,
        pattern: Pattern,
        input: Option<&mut InputStats>,
    ) -> Result<Zeroed, PackError> {
        let fail = |e| quant(&item.from, e);
        let tensor = self.source.weights.tensor(&item.from)?;
        let mut stored = match (&input, self.options.calibration) {
            (None, Some(calibration)) => calibration.input(&item.from)?,
            _ => None,
        };
        let mut input = input.or(stored.as_mut()).filter(|input| input.tokens() > 0);
        if let Some(input) = input.as_ref().filter(|input| input.columns != tensor.shape().row()) {
            let (cols, row) = (input.columns, tensor.shape().row());
            let what = format!("the input of {} has {cols} columns, the weight {row}", item.from);
            return Err(PackError::Calibration { what });
        }
        if let (PruneMethod::SparseGpt, Some(input)) = (self.options.method, &mut input)
            && let Some(hessian) = input.hessian.take()
        {
            input.factor = Some(Factor::new(hessian, false).map_err(fail)?);
        }
        let input = input.as_deref();
        let factor = input.and_then(|input| input.factor.as_ref());
        let scores = match (self.options.method, input, factor, self.gradients.get(&item.from)) {
            (PruneMethod::Magnitude, ..) => Ok(Scores::Magnitude),
            (PruneMethod::Wanda, Some(input), ..) => Ok(Scores::Wanda(input)),
            (PruneMethod::SparseGpt, _, Some(factor), _) => Ok(Scores::SparseGpt(factor)),
            (PruneMethod::Taylor, .., Some(gradient)) => Ok(Scores::Taylor(gradient)),
            (PruneMethod::Taylor, ..) => Err("it has no gradient"),
            _ => Err("nothing is known of its input"),
        };
        let scores = scores.unwrap_or_else(|why| {
            self.report.plain.entry(why.to_owned()).or_default().push(item.from.clone());
            Scores::Magnitude
        });
        let step = self.step(self.next, 0);
        let progress = &mut *self.progress;
        let mut go_on = || progress(&step);
        let zeroed = pruned(&item.from, &tensor, pattern, scores, self.threads, &mut go_on)?;
        let packed = packing(item, &zeroed, self.threads).tensor(&mut |_| go_on())?;
        drop(zeroed);
        self.report.encoded_again +=
            usize::from(tensor.dtype().is_block() && packed.dtype() == tensor.dtype());
        let got = decode_tensor(&packed).map_err(fail)?;
        let lost = match self.options.measure {
            true => {
                let wanted = decode_tensor(&tensor).map_err(fail)?;
                errors(&wanted, &got, tensor.shape().row(), input).map_err(fail)?
            }
            false => (None, None),
        };
        tensor.storage().release();
        self.writers[self.order[self.next].0].write_bytes(item.planned.name(), packed.bytes())?;
        Ok((Some(count(&got)), lost))
    }

    /// The weight written last, as it stands in its file.
    pub(super) fn read_back(&mut self) -> Result<Tensor, PackError> {
        self.read_back_at(self.next - 1)
    }

    fn read_back_at(&mut self, at: usize) -> Result<Tensor, PackError> {
        let (job, item) = self.order[at];
        let bytes = self.writers[job].read_back(item.planned.name())?;
        let info = &item.planned.info;
        Tensor::new(info.dtype, info.shape.clone(), Storage::from_bytes(&bytes))
            .map_err(|e| quant(&item.from, e.into()))
    }

    fn step(&self, done: usize, bytes: u64) -> Progress<'a> {
        let at = done.min(self.order.len().saturating_sub(1));
        Progress {
            tensor: self.order[at].1.planned.name(),
            done,
            of: self.order.len(),
            done_bytes: self.done_bytes + bytes,
            of_bytes: self.of_bytes,
        }
    }
}

/// Numbers that are as they shall be, into the format that the weight is stored in.
fn packing<'t>(item: &'t Item, tensor: &'t Tensor, threads: usize) -> Packing<'t> {
    let rounding: &dyn Rounding = if item.planned.per_channel { &PerChannel } else { &Rtn };
    let (name, info) = (item.planned.name(), &item.planned.info);
    Packing { name, tensor, info, fold: None, without: &[], rounding, input: None, threads }
}
