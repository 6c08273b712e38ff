//! Which type a tensor gets.

use margay_tensor::DType;

/// Why a tensor is not stored in the type that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The type asked for.
    pub requested: DType,
    /// The type stored instead.
    pub stored: DType,
    /// Innermost size of the tensor, no multiple of the block of `requested`.
    pub row: usize,
}

impl std::fmt::Display for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fallback { requested, stored, row } = self;
        let block = requested.block_elements();
        write!(
            f,
            "a row of {row} is no multiple of the {block}-element block of {requested}: stored as {stored}"
        )
    }
}

/// The type in which rows of `row` numbers can be stored when `requested` is wanted, and why where it is another.
///
/// The field's rule: a 256-element format falls back to the nearest 32-element format that loses no more, and to F16
/// where that does not divide the row either.
/// Source: `llama_tensor_get_type` in `llama-quant.cpp` of llama.cpp.
pub fn storable(requested: DType, row: usize) -> (DType, Option<Fallback>) {
    let divides = |dtype: &DType| row.is_multiple_of(dtype.block_elements());
    let stored = [requested, smaller_block(requested)].into_iter().find(divides).unwrap_or(DType::F16);
    (stored, (stored != requested).then_some(Fallback { requested, stored, row }))
}

/// The type a converter stores a tensor in: float32 where the tensor must stay float (norms, biases, positions),
/// otherwise what [`storable`] makes of the request.
pub fn plan_type(requested: DType, row: usize, keep_float: bool) -> DType {
    if keep_float { DType::F32 } else { storable(requested, row).0 }
}

fn smaller_block(dtype: DType) -> DType {
    match dtype {
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        DType::IQ4_XS
        | DType::IQ3_S
        | DType::IQ3_XXS
        | DType::IQ2_S
        | DType::IQ2_XS
        | DType::IQ2_XXS
        | DType::IQ1_S
        | DType::IQ1_M => DType::IQ4_NL,
        _ => DType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_rows_fall_back_as_the_field_does() {
        for (requested, row, stored) in [
            (DType::Q4_K, 512, DType::Q4_K),
            (DType::Q4_K, 4304, DType::F16), // 4304 = 134.5 x 32: a SigLIP feed-forward width
            (DType::Q4_K, 1376, DType::Q5_0),
            (DType::Q5_K, 1376, DType::Q5_1),
            (DType::Q6_K, 1376, DType::Q8_0),
            (DType::Q3_K, 1376, DType::Q4_0),
            (DType::IQ4_XS, 1376, DType::IQ4_NL),
            (DType::Q4_0, 588, DType::F16),
            (DType::F16, 588, DType::F16),
            (DType::F32, 1, DType::F32),
        ] {
            let (got, why) = storable(requested, row);
            assert_eq!(got, stored, "{requested} {row}");
            assert_eq!(why.is_some(), got != requested);
        }
        let (_, why) = storable(DType::Q4_K, 1376);
        assert_eq!(
            why.unwrap().to_string(),
            "a row of 1376 is no multiple of the 256-element block of q4_k: stored as q5_0"
        );
    }

    #[test]
    fn whatever_is_stored_divides_the_row() {
        for requested in DType::all() {
            for row in 1..=600 {
                assert!(storable(requested, row).0.row_bytes(row).is_some(), "{requested} {row}");
                assert_eq!(plan_type(requested, row, true), DType::F32);
            }
        }
    }
}
