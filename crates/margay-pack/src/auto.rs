//! `auto`: a format for each weight, from what rounding it costs and what it saves.
//!
//! Of each matrix the relative error of its output is measured on the calibration's sample at every candidate format.
//! The budget goes where it takes away most error for a byte.

use crate::{
    Calibration, PackError, Place, Recipe,
    plan::{Planned, plan},
    quantize::quant,
    report::output_share,
};
use margay::ModelSource;
use margay_graph::Program;
use margay_quant::{
    Choice as Offer, InputStats, Matrix, Rounding, decode_into, decode_tensor, greedy,
    methods::{imatrix::Imatrix, rtn::Rtn},
    storable,
};
use margay_tensor::{DType, Tensor};
use std::{collections::BTreeMap, ops::ControlFlow};

/// From small to large; each has its use between its neighbours.
const CANDIDATES: [DType; 7] =
    [DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K, DType::Q8_0, DType::F16];
/// Rows of a weight on which its error is measured: enough for the share of error of the whole.
const ROWS: usize = 192;

/// A weight with what its formats cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// Name in the file.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Format, bytes and relative error of the output (of the numbers, where its input is not known), smallest first.
    pub at: Vec<(DType, u64, f64)>,
    /// Whether the error is that of the output.
    pub measured_output: bool,
}

/// What each weight's formats cost, and what all others take.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivities {
    /// Weights whose format can be chosen.
    pub weights: Vec<Sensitivity>,
    /// Bytes of those that stay float.
    pub other_bytes: u64,
}

/// Formats that were chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// As a recipe.
    pub recipe: Recipe,
    /// Bytes of all weights.
    pub bytes: u64,
    /// Sum of the relative errors.
    pub error: f64,
    /// Weights that were raised above their smallest format, those that gained most by their last step first: the format
    /// taken, and the error that this step took away for a MiB.
    pub steps: Vec<(String, DType, f64)>,
    /// The step that would gain most of those not taken: weight, format, bytes more.
    pub next: Option<(String, DType, u64)>,
}

/// Measures what every format costs each matrix.
///
/// # Errors
/// [`PackError`]; [`PackError::Stopped`] where `on_step` says so.
pub fn sensitivities(
    source: &ModelSource,
    calibration: &Calibration,
    on_step: crate::OnStep<'_>,
) -> Result<Sensitivities, PackError> {
    let programs = source.config.programs()?;
    let all: Vec<&Program> =
        programs.encode.iter().chain(&programs.project).chain([&programs.text]).collect();
    // What is float in this recipe stays float: the others are what there is to choose.
    let planned = plan(source, &all, &Recipe::plain(DType::Q8_0, Some(DType::Q8_0)), &mut vec![])?;
    let mut found = Sensitivities { weights: vec![], other_bytes: 0 };
    for (done, planned_one) in planned.iter().enumerate() {
        let step = crate::WalkProgress { doing: planned_one.name(), done, of: planned.len() };
        if on_step(&step) == ControlFlow::Break(()) {
            return Err(PackError::Stopped);
        }
        if planned_one.spec.role.is_matrix() {
            found.weights.push(sensitivity(source, calibration, planned_one)?);
        } else {
            found.other_bytes += planned_one.bytes();
        }
    }
    Ok(found)
}

fn sensitivity(
    source: &ModelSource,
    calibration: &Calibration,
    planned: &Planned,
) -> Result<Sensitivity, PackError> {
    let name = planned.name();
    let input = calibration.input(name)?.filter(|input| input.tokens() > 0);
    let tensor = source.weights.tensor(name)?;
    let (values, row) = some_rows(name, &tensor)?;
    let rows = values.len() / row;
    let all_rows = planned.info.shape.elements().unwrap_or(0) / row;
    let mut at: Vec<(DType, u64, f64)> = vec![];
    for wanted in CANDIDATES {
        let (dtype, _) = storable(wanted, row);
        if at.iter().any(|(known, _, _)| *known == dtype) {
            continue;
        }
        let bytes = (dtype.row_bytes(row).unwrap_or(0) * all_rows) as u64;
        let error = error_at(name, &values, rows, row, dtype, input.as_ref())?;
        at.push((dtype, bytes, error));
    }
    at.sort_by_key(|(_, bytes, _)| *bytes);
    // A larger format that errs more is of no use.
    let mut least = f64::INFINITY;
    at.retain(|(_, _, error)| {
        let better = *error < least;
        least = least.min(*error);
        better
    });
    let measured_output = input.is_some_and(|input| !input.sample.is_empty());
    Ok(Sensitivity { name: name.to_owned(), place: planned.place, at, measured_output })
}

/// Some rows of a weight, evenly spread.
fn some_rows(name: &str, tensor: &Tensor) -> Result<(Vec<f32>, usize), PackError> {
    let row = tensor.shape().row().max(1);
    let rows = tensor.shape().rows().unwrap_or(0);
    let keep = rows.min(ROWS);
    let bytes = tensor.dtype().row_bytes(row).unwrap_or(0);
    let mut values = vec![0f32; keep * row];
    for (at, out) in values.chunks_exact_mut(row).enumerate() {
        let from = at * rows / keep * bytes;
        decode_into(tensor.dtype(), &tensor.bytes()[from..from + bytes], out).map_err(|e| quant(name, e))?;
    }
    tensor.storage().release();
    Ok((values, row))
}

fn error_at(
    name: &str,
    values: &[f32],
    rows: usize,
    row: usize,
    dtype: DType,
    input: Option<&InputStats>,
) -> Result<f64, PackError> {
    let fail = |e| quant(name, e);
    let matrix = Matrix::new(values, rows, row).map_err(fail)?;
    let mut out = vec![0; dtype.row_bytes(row).unwrap_or(0) * rows];
    let rounding: &dyn Rounding = if input.is_some() && dtype.is_block() { &Imatrix } else { &Rtn };
    rounding.pack(matrix, input, dtype, &mut out).map_err(fail)?;
    let packed = Tensor::new(dtype, [rows, row].into(), margay_tensor::Storage::from_bytes(&out));
    let got = decode_tensor(&packed.map_err(|e| fail(e.into()))?).map_err(fail)?;
    if let Some(share) = output_share(matrix, &got, input).map_err(fail)? {
        return Ok(share);
    }
    let square = |x: f32| f64::from(x) * f64::from(x);
    let size: f64 = values.iter().map(|w| square(*w)).sum();
    let off: f64 = values.iter().zip(&got).map(|(w, g)| square(w - g)).sum();
    Ok(if size > 0.0 { off / size } else { 0.0 })
}

impl Sensitivities {
    /// Bytes of all weights at their smallest formats.
    pub fn least_bytes(&self) -> u64 {
        self.other_bytes + self.weights.iter().filter_map(|w| Some(w.at.first()?.1)).sum::<u64>()
    }

    /// The formats whose errors are least within so many bytes.
    ///
    /// # Errors
    /// [`PackError::Budget`] where even the smallest formats do not fit.
    pub fn fit(&self, budget: u64) -> Result<Choice, PackError> {
        let least = self.least_bytes();
        if least > budget {
            return Err(PackError::Budget { budget, least });
        }
        let offers = |weight: &Sensitivity| {
            let offer = |(_, bytes, loss): &(DType, u64, f64)| Offer { bytes: *bytes, loss: *loss };
            weight.at.iter().map(offer).collect::<Vec<_>>()
        };
        let offers: Vec<_> = self.weights.iter().map(offers).collect();
        let bought = greedy(&offers, budget - self.other_bytes).map_err(|e| quant("of the budget", e))?;
        let (chosen, bytes) = (bought.choices, bought.bytes + self.other_bytes);
        // What a step from one format to another takes away, for a MiB.
        let gain = |weight: &Sensitivity, from: usize, to: usize| {
            let (from, to) = (weight.at[from], weight.at[to]);
            (from.2 - to.2) / (to.1 - from.1).max(1) as f64 * f64::from(1 << 20)
        };
        let weights = || self.weights.iter().zip(&chosen);
        let raised = weights().filter(|(_, at)| **at > 0);
        let mut steps: Vec<_> = raised
            .map(|(weight, &at)| (weight.name.clone(), weight.at[at].0, gain(weight, at - 1, at)))
            .collect();
        steps.sort_by(|a, b| b.2.total_cmp(&a.2));
        let left = weights().filter(|(weight, at)| **at + 1 < weight.at.len());
        let next = left.max_by(|a, b| gain(a.0, *a.1, a.1 + 1).total_cmp(&gain(b.0, *b.1, b.1 + 1)));
        let next = next.map(|(weight, &at)| {
            (weight.name.clone(), weight.at[at + 1].0, weight.at[at + 1].1 - weight.at[at].1)
        });
        let error = self.weights.iter().zip(&chosen).map(|(weight, at)| weight.at[*at].2).sum();
        let formats: BTreeMap<String, DType> =
            self.weights.iter().zip(&chosen).map(|(w, at)| (w.name.clone(), w.at[*at].0)).collect();
        let about = format!(
            "chosen weight by weight for {:.1} MiB from the error of each output",
            budget as f64 / f64::from(1 << 20)
        );
        Ok(Choice { recipe: Recipe::chosen("auto", about, formats), bytes, error, steps, next })
    }
}

/// A size in words: `1.5GiB`, `800MiB`, `2GB`, or bytes.
///
/// # Errors
/// [`PackError::Size`].
pub fn parse_size(text: &str) -> Result<u64, PackError> {
    let bad = || PackError::Size { text: text.to_owned() };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.trim().parse().map_err(|_| bad())?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" | "k" => 1024.0,
        "mib" | "m" => 1024f64.powi(2),
        "gib" | "g" => 1024f64.powi(3),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(bad()),
    };
    let bytes = number * unit;
    if bytes.is_finite() && bytes >= 1.0 && bytes < 2f64.powi(60) { Ok(bytes as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_graph::{Role, Stage};

    fn weight(name: &str, at: &[(DType, u64, f64)]) -> Sensitivity {
        let place =
            Place { stage: Stage::Text, role: Role::FfnUp, head: false, rank: 2, layer: 0, layers: 1 };
        Sensitivity { name: name.to_owned(), place, at: at.to_vec(), measured_output: true }
    }

    #[test]
    fn the_budget_goes_where_it_takes_away_most_error() {
        let formats = [DType::Q2_K, DType::Q4_K, DType::Q8_0];
        let at = |errors: [f64; 3]| {
            let sizes = formats.iter().zip([100, 200, 400]).zip(errors);
            sizes.map(|((dtype, bytes), error)| (*dtype, bytes, error)).collect::<Vec<_>>()
        };
        let all = Sensitivities {
            weights: vec![weight("robust", &at([0.02, 0.01, 0.0])), weight("touchy", &at([0.9, 0.3, 0.1]))],
            other_bytes: 50,
        };
        let formats = |budget: u64| {
            let choice = all.fit(budget).unwrap();
            assert!(choice.bytes <= budget);
            let place = &all.weights[0].place;
            ["robust", "touchy"].map(|name| choice.recipe.format(name, place))
        };
        assert_eq!(formats(250), [DType::Q2_K, DType::Q2_K]);
        assert_eq!(formats(350), [DType::Q2_K, DType::Q4_K]);
        assert_eq!(formats(550), [DType::Q2_K, DType::Q8_0]);
        assert_eq!(formats(10_000), [DType::Q8_0, DType::Q8_0]);
        let choice = all.fit(400).unwrap();
        assert_eq!(choice.next, Some(("touchy".to_owned(), DType::Q8_0, 200)));
        let error = all.fit(249).unwrap_err().to_string();
        assert!(error.contains("250"), "{error}");
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("1.5GiB", 3 << 29), ("800MiB", 800 << 20), ("2GB", 2_000_000_000), ("64", 64), ("1 kb", 1000)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for wrong in ["", "GiB", "-1MiB", "1e40GiB", "nan", "1 furlong", "0"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
