//! Numbers that GGUF files use for tensor types. Source: `enum ggml_type` in ggml's `ggml.h`.

use margay_tensor::DType;

const IDS: &[(u32, DType)] = &[
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (10, DType::Q2_K),
    (11, DType::Q3_K),
    (12, DType::Q4_K),
    (13, DType::Q5_K),
    (14, DType::Q6_K),
    (16, DType::IQ2_XXS),
    (17, DType::IQ2_XS),
    (18, DType::IQ3_XXS),
    (19, DType::IQ1_S),
    (20, DType::IQ4_NL),
    (21, DType::IQ3_S),
    (22, DType::IQ2_S),
    (23, DType::IQ4_XS),
    (24, DType::I8),
    (25, DType::I16),
    (26, DType::I32),
    (27, DType::I64),
    (28, DType::F64),
    (29, DType::IQ1_M),
    (30, DType::BF16),
    (34, DType::TQ1_0),
    (35, DType::TQ2_0),
    (39, DType::MXFP4),
];

/// Types that a file may name and that are none of ours: number, name, why.
const REFUSED: &[(u32, &str, &str)] = &[
    (4, "Q4_2", REMOVED),
    (5, "Q4_3", REMOVED),
    (9, "Q8_1", INTERNAL),
    (15, "Q8_K", INTERNAL),
    (31, "Q4_0_4_4", REPACKED),
    (32, "Q4_0_4_8", REPACKED),
    (33, "Q4_0_8_8", REPACKED),
    (36, "IQ4_NL_4_4", REPACKED),
    (37, "IQ4_NL_4_8", REPACKED),
    (38, "IQ4_NL_8_8", REPACKED),
    (40, "NVFP4", NEWER),
    (41, "Q1_0", NEWER),
    (42, "Q2_0", NEWER),
];

const REMOVED: &str = "was removed from the format in 2023; convert the original model again";
const INTERNAL: &str = "is for intermediate results and never stored in model files";
const REPACKED: &str =
    "was removed from the format in 2024; take the file with the plain type (packing is done on loading)";
const NEWER: &str = "is not supported yet; take a file with q4_0, q4_k, q6_k, q8_0 or f16 tensors";

/// The type of that number, or what to tell the person.
pub(crate) fn dtype_from_id(id: u32) -> Result<DType, String> {
    if let Some(&(_, dtype)) = IDS.iter().find(|row| row.0 == id) {
        return Ok(dtype);
    }
    match REFUSED.iter().find(|row| row.0 == id) {
        Some((_, name, why)) => Err(format!("type {id} ({name}) {why}")),
        None => Err(format!("type {id} is unknown; the file is broken or newer than this program")),
    }
}

/// Number of that type, or `None` where GGUF has none.
pub(crate) fn id_of_dtype(dtype: DType) -> Option<u32> {
    IDS.iter().find(|row| row.1 == dtype).map(|row| row.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_but_u8_and_bool_has_one_number() {
        let without: Vec<_> = DType::all().filter(|&dtype| id_of_dtype(dtype).is_none()).collect();
        assert_eq!(without, [DType::U8, DType::Bool]);
        assert_eq!(IDS.len() + without.len(), DType::all().count());
    }

    #[test]
    fn every_number_up_to_42_is_mapped_or_refused_by_name() {
        for id in 0..=42 {
            match dtype_from_id(id) {
                Ok(dtype) => assert_eq!(id_of_dtype(dtype), Some(id)),
                Err(why) => assert!(why.contains('('), "{why}"),
            }
        }
        assert!(dtype_from_id(43).unwrap_err().contains("unknown"));
        assert!(dtype_from_id(u32::MAX).is_err());
    }
}
