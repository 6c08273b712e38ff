//! Scaled dot-product attention.

use super::{OpError, OpResult};
use crate::{
    backend::call,
    run::{Caches, Context},
};
use candle_core::{D, DType, Device, Tensor};
use margay_graph::{Attention, BackendError, Mask};

/// `softmax(scale * Q K^T + mask) V` for each head; query head h reads key head `h / (H/K)`.
pub(super) fn attention(context: &mut Context<'_>, attention: &Attention) -> OpResult {
    let (q, k, v) = (context.tensor(0)?.clone(), context.tensor(1)?.clone(), context.tensor(2)?.clone());
    let (k, v, past) = match attention.cache {
        Some(slot) => {
            let past = context.caches.past;
            let (k, v) = append(context.caches, slot, &k, &v)?;
            (k, v, past)
        }
        None => (k, v, 0),
    };
    let (queries, keys) = (q.dim(0)?, k.dim(0)?);
    if queries == 0 {
        return Ok(Tensor::zeros(context.dims.as_slice(), DType::F32, &Device::Cpu)?);
    }
    if v.dim(0)? != keys || keys == 0 || (attention.mask != Mask::Full && keys != past + queries) {
        let what =
            format!("{queries} queries after {past} tokens do not fit {keys} keys and {} values", v.dim(0)?);
        return Err(call(what).into());
    }
    let &Attention { heads, kv_heads, head_dim, .. } = attention;
    let q = split_heads(&q, heads, head_dim)?; // [H, T, D]
    let k = repeat_heads(&split_heads(&k, kv_heads, head_dim)?, heads / kv_heads)?; // [H, S, D]
    let v = repeat_heads(&split_heads(&v, kv_heads, head_dim)?, heads / kv_heads)?;
    let mut scores = (q.matmul(&k.t()?)? * f64::from(attention.scale))?; // [H, T, S]
    if matches!(attention.mask, Mask::Causal | Mask::Prefix) {
        let prefix = attention.prefix(context.bindings, queries).map_err(BackendError::from)?;
        scores = scores.broadcast_add(&causal_mask(queries, past, prefix)?)?;
    }
    if let Mask::Segments { most } = attention.mask {
        scores = scores.broadcast_add(&segment_mask(&context.integers(3)?, most)?)?;
    }
    // The maximum only keeps exp in range; it cancels, so no gradient flows through it.
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?;
    let weights = shifted.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let y = weights.matmul(&v)?.transpose(0, 1)?; // [T, H, D]
    Ok(y.reshape((queries, heads * head_dim))?)
}

/// Appends this call's rows to a cache slot and gives all rows.
fn append(caches: &mut Caches, slot: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor), OpError> {
    let (past, rows) = (caches.past, k.dim(0)?);
    if let Some(capacity) = caches.capacity
        && past + rows > capacity
    {
        return Err(BackendError::ContextFull { capacity, used: past, wanted: rows }.into());
    }
    if caches.slots.len() <= slot {
        caches.slots.resize(slot + 1, None);
    }
    let all = match (&caches.slots[slot], rows) {
        (Some(held), 0) => held.clone(),
        (Some((held_k, held_v)), _) => (Tensor::cat(&[held_k, k], 0)?, Tensor::cat(&[held_v, v], 0)?),
        (None, 0) => return Ok((k.clone(), v.clone())),
        (None, _) => (k.clone(), v.clone()),
    };
    caches.slots[slot] = Some(all.clone());
    Ok(all)
}

/// [R, H*D] -> [H, R, D]
fn split_heads(x: &Tensor, heads: usize, head_dim: usize) -> OpResult {
    Ok(x.reshape((x.dim(0)?, heads, head_dim))?.transpose(0, 1)?.contiguous()?)
}

/// [K, S, D] -> [K*times, S, D], each head `times` times in a row.
fn repeat_heads(x: &Tensor, times: usize) -> OpResult {
    let (heads, rows, columns) = x.dims3()?;
    let repeated = x.unsqueeze(1)?.broadcast_as((heads, times, rows, columns))?;
    Ok(repeated.contiguous()?.reshape((heads * times, rows, columns))?)
}

/// [T, past + T]: 0 where query i (at position past + i) sees key j, minus infinity where j is later and not in the prefix.
fn causal_mask(queries: usize, past: usize, prefix: usize) -> OpResult {
    let keys = past + queries;
    let mask: Vec<f32> = (0..queries * keys)
        .map(|at| if at % keys >= (past + at / keys + 1).max(prefix) { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Ok(Tensor::from_vec(mask, (queries, keys), &Device::Cpu)?)
}

/// [T, T]: 0 where both rows are of one segment, minus infinity elsewhere.
fn segment_mask(numbers: &[i32], most: usize) -> OpResult {
    let segments: Vec<&[i32]> = numbers.chunk_by(|a, b| a == b).collect();
    if let Some(long) = segments.iter().find(|rows| rows.len() > most) {
        return Err(call(format!("a segment of {} rows, at most {most} were promised", long.len())).into());
    }
    let of: Vec<usize> =
        segments.iter().enumerate().flat_map(|(at, rows)| rows.iter().map(move |_| at)).collect();
    let pair = |at: usize| of[at / of.len()] == of[at % of.len()];
    let mask = (0..of.len() * of.len()).map(|at| if pair(at) { 0.0 } else { f32::NEG_INFINITY });
    Ok(Tensor::from_vec(mask.collect::<Vec<_>>(), (of.len(), of.len()), &Device::Cpu)?)
}
