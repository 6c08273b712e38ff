//! The kernels, and the table of those that one instruction set uses.

pub(crate) mod float;
pub(crate) mod math;
pub(crate) mod quant;
pub(crate) mod rows;

use crate::Isa;

/// The kernels of one instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) rows: &'static rows::RowKernels,
    pub(crate) float: &'static float::FloatKernels,
    pub(crate) quant: &'static quant::QuantKernels,
}

impl Kernels {
    /// The kernels of `isa`, or `None` where this processor lacks it.
    pub(crate) fn of(isa: Isa) -> Option<Kernels> {
        isa.is_supported().then(|| Kernels {
            isa,
            rows: rows::table(isa),
            float: float::table(isa),
            quant: quant::table(isa),
        })
    }
}
