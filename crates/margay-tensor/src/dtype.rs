//! Element and block types a tensor may be stored in.

/// How the numbers of a tensor are stored.
///
/// A block type packs [`DType::block_elements`] neighbours of a row into [`DType::block_bytes`] bytes. What the
/// bytes mean is the business of `margay-quant`; here only their sizes are known.
/// Source of names and sizes: `ggml-common.h` (see the type table of the GGUF format).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(
    non_camel_case_types,
    missing_docs,
    reason = "the field's own names; each is described by its table row"
)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ1_S,
    IQ1_M,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

/// One row a type: type, lower-case name, elements a block, bytes a block.
const TABLE: &[(DType, &str, usize, usize)] = &[
    (DType::F64, "f64", 1, 8),
    (DType::F32, "f32", 1, 4),
    (DType::F16, "f16", 1, 2),
    (DType::BF16, "bf16", 1, 2),
    (DType::I64, "i64", 1, 8),
    (DType::I32, "i32", 1, 4),
    (DType::I16, "i16", 1, 2),
    (DType::I8, "i8", 1, 1),
    (DType::U8, "u8", 1, 1),
    (DType::Bool, "bool", 1, 1),
    (DType::Q4_0, "q4_0", 32, 18),
    (DType::Q4_1, "q4_1", 32, 20),
    (DType::Q5_0, "q5_0", 32, 22),
    (DType::Q5_1, "q5_1", 32, 24),
    (DType::Q8_0, "q8_0", 32, 34),
    (DType::Q2_K, "q2_k", 256, 84),
    (DType::Q3_K, "q3_k", 256, 110),
    (DType::Q4_K, "q4_k", 256, 144),
    (DType::Q5_K, "q5_k", 256, 176),
    (DType::Q6_K, "q6_k", 256, 210),
    (DType::IQ2_XXS, "iq2_xxs", 256, 66),
    (DType::IQ2_XS, "iq2_xs", 256, 74),
    (DType::IQ2_S, "iq2_s", 256, 82),
    (DType::IQ3_XXS, "iq3_xxs", 256, 98),
    (DType::IQ3_S, "iq3_s", 256, 110),
    (DType::IQ1_S, "iq1_s", 256, 50),
    (DType::IQ1_M, "iq1_m", 256, 56),
    (DType::IQ4_NL, "iq4_nl", 32, 18),
    (DType::IQ4_XS, "iq4_xs", 256, 136),
    (DType::TQ1_0, "tq1_0", 256, 54),
    (DType::TQ2_0, "tq2_0", 256, 66),
    (DType::MXFP4, "mxfp4", 32, 17),
];

impl DType {
    /// Every type, in table order.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    /// Lower-case name as users type it: `f16`, `q4_0`, `q6_k`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The type of that name, in any letter case.
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// Neighbouring elements that share one block; 1 for plain types.
    pub fn block_elements(self) -> usize {
        self.row().2
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// True where a block holds more than one element.
    pub fn is_block(self) -> bool {
        self.block_elements() > 1
    }

    /// Bytes of a row of `elements`, or `None` where the row is no multiple of the block or the size overflows.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    fn row(self) -> &'static (DType, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("invariant: TABLE lists every DType")
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_are_unique() {
        for dtype in DType::all() {
            assert_eq!(DType::from_name(&dtype.name().to_uppercase()), Some(dtype));
        }
        let names: std::collections::BTreeSet<_> = DType::all().map(DType::name).collect();
        assert_eq!(names.len(), DType::all().count());
    }

    #[test]
    fn row_bytes_refuses_part_blocks() {
        assert_eq!(DType::Q4_0.row_bytes(64), Some(36));
        assert_eq!(DType::Q4_0.row_bytes(33), None);
        assert_eq!(DType::F64.row_bytes(usize::MAX / 2), None);
    }
}
