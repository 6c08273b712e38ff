//! Writes a model as GGUF in one format for each side: the plain recipes, rounded to nearest.

use crate::{Method, PackError, QuantizeOptions, QuantizeReport, Recipe, quantize, quantize::OnProgress};
use margay::ModelSource;
use margay_tensor::DType;
use std::path::Path;

/// How to convert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Format of the decoder's matrices.
    pub dtype: DType,
    /// Format of the vision side's matrices; `None` takes the decoder's where it has 8 bits or more, else f16.
    pub vision_dtype: Option<DType>,
    /// Both sides in one file, rather than a text file and its mmproj.
    pub single: bool,
}

/// Converts a model to GGUF, as [`quantize`] does with a plain recipe and no calibration.
///
/// # Errors
/// As [`quantize`].
pub fn convert(
    source: &ModelSource,
    out: &Path,
    options: &ConvertOptions,
    progress: OnProgress<'_>,
) -> Result<QuantizeReport, PackError> {
    let recipe = Recipe::plain(options.dtype, options.vision_dtype);
    let options = QuantizeOptions {
        recipe: &recipe,
        method: Method::rtn(),
        single: options.single,
        calibration: None,
        prompts: &[],
        measure: false,
    };
    quantize(source, out, &options, progress)
}
