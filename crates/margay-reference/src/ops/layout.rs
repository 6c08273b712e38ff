//! Ops that move rows and columns.

use super::OpResult;
use crate::{backend::call, run::Context};
use candle_core::{Device, Tensor};
use margay_graph::{BackendError, WeightId};

/// Rows of the table for ids `>= 0`, row `-1 - id` of the visual rows for negative ones.
pub(super) fn embed(context: &Context<'_>, table: WeightId) -> OpResult {
    let table = context.weights.get(table); // [vocabulary, E]
    let ids = context.integers(0)?;
    let visual = (context.node.inputs.len() > 1).then(|| context.tensor(1)).transpose()?;
    let (vocabulary, visual_rows) = (table.dim(0)?, visual.map_or(Ok(0), |v| v.dim(0))?);
    let mut rows = Vec::with_capacity(ids.len());
    for &id in ids.iter() {
        // Visual rows stand behind the table. -1 - id cannot overflow: it is the bitwise complement.
        let (row, limit, base) =
            if id >= 0 { (id as usize, vocabulary, 0) } else { (!id as usize, visual_rows, vocabulary) };
        if row >= limit {
            let kind = if id >= 0 { "tokens" } else { "visual rows" };
            return Err(call(format!("id {id} is outside the {limit} {kind}")).into());
        }
        rows.push((base + row) as u32);
    }
    let rows = Tensor::from_vec(rows, ids.len(), &Device::Cpu)?;
    match visual {
        Some(visual) if visual_rows > 0 => Ok(Tensor::cat(&[table, visual], 0)?.index_select(&rows, 0)?),
        _ => Ok(table.index_select(&rows, 0)?),
    }
}

/// Each square of the picture as a row, channel by channel, row by row.
pub(super) fn patchify(pixels: &Tensor, patch: usize) -> OpResult {
    let (channels, height, width) = pixels.dims3()?;
    let (rows, columns) = (height / patch, width / patch);
    let whole = pixels.narrow(1, 0, rows * patch)?.narrow(2, 0, columns * patch)?.contiguous()?;
    let squares = whole.reshape(vec![channels, rows, patch, columns, patch])?;
    let squares = squares.permute(vec![1, 3, 0, 2, 4])?.contiguous()?; // [rows, columns, C, patch, patch]
    Ok(squares.reshape((rows * columns, channels * patch * patch))?)
}

/// The mean row.
pub(super) fn mean_rows(x: &Tensor) -> OpResult {
    if x.dim(0)? == 0 {
        return Err(call("no rows have no mean").into());
    }
    Ok(x.mean_keepdim(0)?)
}

/// a's rows, then b's.
pub(super) fn concat_rows(a: &Tensor, b: &Tensor) -> OpResult {
    match (a.dim(0)?, b.dim(0)?) {
        (0, _) => Ok(b.clone()),
        (_, 0) => Ok(a.clone()),
        _ => Ok(Tensor::cat(&[a, b], 0)?),
    }
}

/// `len` rows (`dim` 0) or columns (`dim` 1) from `start`.
pub(super) fn slice(x: &Tensor, dim: usize, start: usize, len: usize) -> OpResult {
    let size = x.dim(dim)?;
    if start.checked_add(len).is_none_or(|end| end > size) {
        return Err(call(format!("{len} from {start} on reach past the end, {size}")).into());
    }
    Ok(x.narrow(dim, start, len)?.contiguous()?)
}

/// The rows that the second input lists.
pub(super) fn gather_rows(context: &Context<'_>) -> OpResult {
    let x = context.tensor(0)?;
    let rows = context.integers(1)?;
    let limit = x.dim(0)?;
    let checked = rows.iter().map(|&row| match u32::try_from(row) {
        Ok(row) if (row as usize) < limit => Ok(row),
        _ => Err(call(format!("row {row} is outside the {limit} rows"))),
    });
    let checked: Vec<u32> = checked.collect::<Result<_, BackendError>>()?;
    Ok(x.index_select(&Tensor::from_vec(checked, rows.len(), &Device::Cpu)?, 0)?)
}

/// Those columns.
pub(super) fn select_columns(x: &Tensor, columns: &[usize]) -> OpResult {
    let width = x.dim(1)?;
    if let Some(column) = columns.iter().find(|column| **column >= width) {
        return Err(call(format!("column {column} is outside the {width} columns")).into());
    }
    let columns: Vec<u32> = columns.iter().map(|column| *column as u32).collect();
    let count = columns.len();
    Ok(x.index_select(&Tensor::from_vec(columns, count, &Device::Cpu)?, 1)?)
}

/// x, with zeros in those columns.
pub(super) fn zero_columns(x: &Tensor, columns: &[usize]) -> OpResult {
    let width = x.dim(1)?;
    let mut kept = vec![1f32; width];
    for column in columns {
        *kept
            .get_mut(*column)
            .ok_or_else(|| call(format!("column {column} is outside the {width} columns")))? = 0.0;
    }
    Ok(x.broadcast_mul(&Tensor::from_vec(kept, (1, width), &Device::Cpu)?)?)
}
