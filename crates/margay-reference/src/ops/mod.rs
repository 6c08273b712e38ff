//! What each op means, one file a family of ops.

mod attention;
mod conv;
mod elementwise;
mod experts;
mod layout;
mod rope;

use crate::{backend::call, run::Context};
use candle_core::{DType, Device, Tensor};
use margay_graph::{BackendError, Op};

/// Why an op did not run: the call's fault, or candle's word on it.
pub(crate) struct OpError(BackendError);

impl From<BackendError> for OpError {
    fn from(error: BackendError) -> Self {
        OpError(error)
    }
}

impl From<candle_core::Error> for OpError {
    fn from(error: candle_core::Error) -> Self {
        OpError(call(error.to_string()))
    }
}

pub(crate) type OpResult = Result<Tensor, OpError>;

/// Runs one node.
pub(crate) fn run(context: &mut Context<'_>) -> Result<Tensor, BackendError> {
    let result = dispatch(context).map_err(|e| e.0)?;
    if result.dims() != context.dims {
        let what = format!("the result is {:?}, the program says {:?}", result.dims(), context.dims);
        return Err(call(what));
    }
    // Views would let a strided layout reach an op that reads values in order.
    result.contiguous().map_err(|e| call(e.to_string()))
}

fn dispatch(context: &mut Context<'_>) -> OpResult {
    // No numbers, nothing to compute; candle's kernels need not handle empty tensors. Attention still has to look at
    // its cache, and the mean of no rows is an error.
    let node = context.node;
    if context.dims.contains(&0) && !matches!(node.op, Op::Attention(_)) {
        return Ok(Tensor::zeros(context.dims.as_slice(), DType::F32, &Device::Cpu)?);
    }
    match &node.op {
        Op::Input => Err(call("an input runs nothing").into()),
        Op::Param { weight } => Ok(context.weights.get(*weight).reshape(context.dims.as_slice())?),
        Op::Embed { table } => layout::embed(context, *table),
        Op::Linear(linear) => elementwise::linear(context, linear),
        Op::Norm(norm) => elementwise::norm(context, norm),
        Op::Activation(act) => elementwise::activation(context.tensor(0)?, *act),
        Op::Add => Ok(context.tensor(0)?.broadcast_add(context.tensor(1)?)?),
        Op::Mul => Ok(context.tensor(0)?.broadcast_mul(context.tensor(1)?)?),
        Op::Scale(factor) => Ok((context.tensor(0)? * f64::from(*factor))?),
        Op::Glu(act) => Ok((elementwise::activation(context.tensor(0)?, *act)? * context.tensor(1)?)?),
        Op::Route(route) => experts::route(context.tensor(0)?, *route),
        Op::Experts(experts) => experts::experts(context, experts),
        Op::Rope(rope) => rope::rope(context, rope),
        Op::Attention(attention) => attention::attention(context, attention),
        Op::Patchify { patch } => layout::patchify(context.tensor(0)?, *patch),
        Op::Conv2d(conv) => conv::conv2d(context, conv),
        Op::AvgPool2d(pool) => conv::avg_pool2d(context.tensor(0)?, pool),
        Op::SpaceToDepth(pool) => conv::space_to_depth(context.tensor(0)?, pool),
        Op::JoinRows { .. } => Ok(context.tensor(0)?.reshape(context.dims.as_slice())?),
        Op::AdaptivePool(pool) => conv::adaptive_pool(context, *pool),
        Op::MeanRows => layout::mean_rows(context.tensor(0)?),
        Op::ConcatRows => layout::concat_rows(context.tensor(0)?, context.tensor(1)?),
        Op::ConcatColumns => Ok(Tensor::cat(&[context.tensor(0)?, context.tensor(1)?], 1)?),
        Op::SliceRows { start, .. } => layout::slice(context.tensor(0)?, 0, *start, context.dims[0]),
        Op::SliceColumns { start, len } => layout::slice(context.tensor(0)?, 1, *start, *len),
        Op::GatherRows => layout::gather_rows(context),
        Op::SelectColumns { columns } => layout::select_columns(context.tensor(0)?, columns),
        Op::ZeroColumns { columns } => layout::zero_columns(context.tensor(0)?, columns),
    }
}
