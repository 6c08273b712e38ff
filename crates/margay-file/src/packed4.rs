//! Matrices of four bits as AWQ and GPTQ tools publish them, read as the float numbers they stand for.
//!
//! Both store for a linear layer `X` of `in` inputs and `out` outputs, in groups of inputs, the tensors `X.qweight`,
//! `X.qzeros` and `X.scales` in place of `X.weight`: `weight = (code - zero) * scale`.
//!
//! | | `qweight`, I32 | `qzeros`, I32 | `scales` | `g_idx`, I32 |
//! |---|---|---|---|---|
//! | AWQ | `[in, out / 8]` | `[groups, out / 8]` | `[groups, out]` | |
//! | GPTQ | `[in / 8, out]` | `[groups, out / 8]`, less one | `[groups, out]` | `[in]`: the group of an input |
//!
//! Sources: AutoAWQ `packing_utils.py` and `gemm.py`; AutoGPTQ `qlinear_cuda.py`; transformers `quantization_config.py`.

use half::{bf16, f16};
use margay_tensor::{DType, Shape, Storage, Tensor};
use serde_json::Value;

use crate::{FileError, TensorInfo, TensorSource};

/// Bits of a code.
const BITS: u32 = 4;
/// Codes of a word.
const CODES: usize = 8;
/// Which of eight neighbouring outputs each four bits of a word hold. Source: AutoAWQ, `AWQ_ORDER`.
const AWQ_ORDER: [usize; CODES] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Endings of what is stored in place of a weight.
const PARTS: [&str; 4] = [".qweight", ".qzeros", ".scales", ".g_idx"];

/// How the matrices of a checkpoint are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// AutoAWQ's `gemm`.
    Awq,
    /// GPTQ: with zero points stored less one, or (`gptq_v2`) as they are.
    Gptq {
        /// What is added to a stored zero point.
        zero_offset: i32,
        /// The groups of inputs are in no order, so that they have to be told.
        needs_groups: bool,
    },
}

impl Packing {
    /// What `config.json` says; `None` where nothing is quantized.
    ///
    /// # Errors
    /// What is not supported, in words.
    pub(crate) fn of(config: &Value) -> Result<Option<Self>, String> {
        let places = [config, config.get("text_config").unwrap_or(&Value::Null)];
        let Some(said) = places.iter().find_map(|at| at.get("quantization_config").filter(|v| v.is_object()))
        else {
            return Ok(None);
        };
        let text = |key: &str| said.get(key).and_then(Value::as_str).map(str::to_lowercase);
        let flag = |key: &str| said.get(key).and_then(Value::as_bool);
        let bad = |key: &str, what: String| format!("quantization_config: {key}: {what}");
        let method = text("quant_method").unwrap_or_default();
        if !["awq", "gptq"].contains(&method.as_str()) {
            let what = format!(
                "{method:?} is not supported; known are awq and gptq. Take the checkpoint it was made from"
            );
            return Err(bad("quant_method", what));
        }
        let bits = said.get("bits").or_else(|| said.get("w_bit")).map_or(Some(BITS.into()), Value::as_u64);
        if bits != Some(BITS.into()) {
            let bits = bits.map_or("no number".to_owned(), |bits| format!("{bits}"));
            return Err(bad("bits", format!("{bits} is not supported with {method}, expected 4")));
        }
        if method == "awq" {
            let version = text("version").unwrap_or("gemm".to_owned());
            if version != "gemm" {
                return Err(bad(
                    "version",
                    format!("{version:?} is not supported with awq, expected \"gemm\""),
                ));
            }
            if flag("zero_point") == Some(false) {
                return Err(bad("zero_point", "awq without zero points is not supported".to_owned()));
            }
            return Ok(Some(Packing::Awq));
        }
        let format = text("checkpoint_format").unwrap_or("gptq".to_owned());
        let format = if flag("is_marlin_format") == Some(true) { "marlin".to_owned() } else { format };
        let zero_offset = match format.as_str() {
            "gptq" => 1,
            "gptq_v2" => 0,
            _ => {
                let what = format!("{format:?} is not supported; known are gptq and gptq_v2");
                return Err(bad("checkpoint_format", what));
            }
        };
        Ok(Some(Packing::Gptq { zero_offset, needs_groups: flag("desc_act") == Some(true) }))
    }

    /// The weights that `source` packs, with the shapes of their parts checked. Codes and groups are checked when read.
    pub(crate) fn weights(self, source: &dyn TensorSource) -> Result<Vec<PackedWeight>, FileError> {
        let stems = source.names().filter_map(|name| name.strip_suffix(PARTS[0]));
        stems.map(|stem| PackedWeight::new(self, stem, source)).collect()
    }
}

/// A matrix in parts.
#[derive(Clone, Debug)]
pub(crate) struct PackedWeight {
    packing: Packing,
    stem: String,
    outputs: usize,
    inputs: usize,
    groups: usize,
    /// That of the scales: nothing finer is stored.
    dtype: DType,
}

impl PackedWeight {
    fn new(packing: Packing, stem: &str, source: &dyn TensorSource) -> Result<Self, FileError> {
        let info = |part: &str| {
            let name = format!("{stem}{part}");
            source.info(&name).ok_or_else(|| FileError::missing_tensor(&name))
        };
        let [codes, zeros, scales] = [info(PARTS[0])?, info(PARTS[1])?, info(PARTS[2])?];
        let wrong = |what: String| unsupported(format!("the packed weight {stem}"), what);
        if [codes.dtype, zeros.dtype] != [DType::I32; 2] {
            return Err(wrong(format!(
                "has codes of {} and zero points of {}, expected i32",
                codes.dtype, zeros.dtype
            )));
        }
        if ![DType::F16, DType::BF16, DType::F32].contains(&scales.dtype) {
            return Err(wrong(format!("has scales of {}, expected f16, bf16 or f32", scales.dtype)));
        }
        let (&[rows, columns], &[groups, outputs]) = (codes.shape.dims(), scales.shape.dims()) else {
            return Err(wrong(format!("has codes {} and scales {}", codes.shape, scales.shape)));
        };
        let (inputs, expected) = match packing {
            Packing::Awq => (rows, [rows, outputs / CODES]),
            Packing::Gptq { .. } => (rows.saturating_mul(CODES), [rows, outputs]),
        };
        let fits = [rows, columns] == expected
            && zeros.shape.dims() == [groups, outputs / CODES]
            && outputs.is_multiple_of(CODES)
            && groups > 0
            && groups <= inputs;
        if !fits {
            let what =
                format!("has codes {}, zero points {}, scales {}", codes.shape, zeros.shape, scales.shape);
            return Err(wrong(format!("{what}, which do not belong together")));
        }
        let told = source.info(&format!("{stem}{}", PARTS[3]));
        if let Some(told) = &told
            && (told.dtype != DType::I32 || told.shape.dims() != [inputs])
        {
            return Err(wrong(format!("has groups {} {}, expected i32 [{inputs}]", told.dtype, told.shape)));
        }
        if told.is_none() && matches!(packing, Packing::Gptq { needs_groups: true, .. }) {
            return Err(wrong("was quantized in the order of activations and has no g_idx".to_owned()));
        }
        if told.is_none() && !inputs.is_multiple_of(groups) {
            return Err(wrong(format!(
                "has {groups} groups of {inputs} inputs, which is no whole number each"
            )));
        }
        let weight =
            PackedWeight { packing, stem: stem.to_owned(), outputs, inputs, groups, dtype: scales.dtype };
        // A hostile shape must not overflow later.
        weight.info().size_bytes().map_err(|e| FileError::tensor(stem, e))?;
        Ok(weight)
    }

    /// `X.weight`
    pub(crate) fn name(&self) -> String {
        format!("{}.weight", self.stem)
    }

    /// Names of the tensors that stand for it.
    pub(crate) fn parts(&self) -> impl Iterator<Item = String> + '_ {
        PARTS.iter().map(|part| format!("{}{part}", self.stem))
    }

    pub(crate) fn info(&self) -> TensorInfo {
        TensorInfo { dtype: self.dtype, shape: Shape::from([self.outputs, self.inputs]) }
    }

    /// The numbers. Of the file, no page stays in memory.
    pub(crate) fn tensor(&self, source: &dyn TensorSource) -> Result<Tensor, FileError> {
        let part = |part: &str| source.tensor(&format!("{}{part}", self.stem));
        let [codes, zeros, scales] = [part(PARTS[0])?, part(PARTS[1])?, part(PARTS[2])?];
        let groups = self.groups_of_inputs(source)?;
        let (words, zero_words) = (codes.bytes(), zeros.bytes());
        let zero_offset = if let Packing::Gptq { zero_offset, .. } = self.packing { zero_offset } else { 0 };
        let columns = self.outputs / CODES;
        let info = self.info();
        let size = info.size_bytes().map_err(|e| FileError::tensor(&self.stem, e))?;
        let width = self.dtype.block_bytes();
        let storage = Storage::build(size, |out| {
            let mut of_group = vec![(0i32, 0f32); self.groups];
            for (output, row) in out.chunks_exact_mut(self.inputs * width).enumerate() {
                let (column, lane) = (output / CODES, self.lane(output % CODES));
                for (group, slot) in of_group.iter_mut().enumerate() {
                    let zero = code(zero_words, group * columns + column, lane) + zero_offset;
                    *slot = (zero, number(self.dtype, scales.bytes(), group * self.outputs + output));
                }
                for (input, to) in row.chunks_exact_mut(width).enumerate() {
                    let code = match self.packing {
                        Packing::Awq => code(words, input * columns + column, lane),
                        Packing::Gptq { .. } => {
                            code(words, input / CODES * self.outputs + output, input % CODES)
                        }
                    };
                    let (zero, scale) = of_group[groups[input] as usize];
                    // Exact in float32, so that it is rounded once, as in the half precision of the published kernels.
                    let value = (code - zero) as f32 * scale;
                    match self.dtype {
                        DType::F16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                        DType::BF16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                        _ => to.copy_from_slice(&value.to_le_bytes()),
                    }
                }
            }
        });
        [&codes, &zeros, &scales].iter().for_each(|part| part.storage().release());
        Tensor::new(info.dtype, info.shape, storage).map_err(|e| FileError::tensor(&self.stem, e))
    }

    /// Which four bits of a word hold the n-th of eight outputs.
    fn lane(&self, nth: usize) -> usize {
        match self.packing {
            Packing::Awq => {
                AWQ_ORDER.iter().position(|at| *at == nth).expect("invariant: the order holds all eight")
            }
            Packing::Gptq { .. } => nth,
        }
    }

    fn groups_of_inputs(&self, source: &dyn TensorSource) -> Result<Vec<u32>, FileError> {
        let name = format!("{}{}", self.stem, PARTS[3]);
        if self.packing == Packing::Awq || source.info(&name).is_none() {
            let size = self.inputs / self.groups;
            return Ok((0..self.inputs).map(|input| (input / size) as u32).collect());
        }
        let told = source.tensor(&name)?;
        let groups = told.bytes().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let groups: Vec<u32> = groups.collect();
        match groups.iter().find(|group| **group as usize >= self.groups) {
            None => Ok(groups),
            Some(group) => {
                let what = format!("names group {} of {}", *group as i32, self.groups);
                Err(unsupported(format!("the tensor {name}"), what))
            }
        }
    }
}

/// Four bits of a word.
fn code(words: &[u8], word: usize, lane: usize) -> i32 {
    // Two codes a byte, the lower first.
    let byte = words[word * 4 + lane / 2];
    i32::from(if lane.is_multiple_of(2) { byte & 15 } else { byte >> 4 })
}

fn number(dtype: DType, bytes: &[u8], at: usize) -> f32 {
    match dtype {
        DType::F16 => f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32(),
        _ => f32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]]),
    }
}

fn unsupported(field: String, why: String) -> FileError {
    FileError::Unsupported { format: "4-bit checkpoint", field, offset: 0, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SafeTensors;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn i32s(dims: [usize; 2], values: &[i32]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let dims = if dims[0] == 0 { vec![dims[1]] } else { dims.to_vec() };
        Tensor::new(DType::I32, Shape::from(dims), Storage::from_bytes(&bytes)).unwrap()
    }

    fn file(parts: &[(&str, Tensor)]) -> SafeTensors {
        let parts: Vec<_> = parts.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let bytes = crate::safetensors::to_bytes(&parts, &BTreeMap::new()).unwrap();
        SafeTensors::from_bytes(Storage::from_bytes(&bytes)).unwrap()
    }

    fn values(packing: Packing, file: &SafeTensors) -> Result<Vec<f32>, FileError> {
        let weights = packing.weights(file)?;
        assert_eq!(weights.len(), 1);
        let tensor = weights[0].tensor(file)?;
        assert_eq!(TensorInfo::from(&tensor), weights[0].info());
        Ok((0..tensor.bytes().len() / 4).map(|i| number(DType::F32, tensor.bytes(), i)).collect())
    }

    #[test]
    fn awq_words_hold_eight_outputs_in_their_own_order() {
        // Two inputs, each its own group; output n has code n for the first, 15 for the second.
        let word = AWQ_ORDER.iter().enumerate().fold(0u32, |word, (i, at)| word | (*at as u32) << (4 * i));
        let scales: Vec<f32> = (0..16).map(|i| if i < 8 { 1.0 } else { 0.5 }).collect();
        let file = file(&[
            ("x.qweight", i32s([2, 1], &[word as i32, -1])),
            ("x.qzeros", i32s([2, 1], &[0, 0x1111_1111])),
            ("x.scales", Tensor::from_f32(Shape::from([2, 8]), &scales).unwrap()),
        ]);
        let expected: Vec<f32> = (0..8).flat_map(|output| [output as f32, 7.0]).collect();
        assert_eq!(values(Packing::Awq, &file).unwrap(), expected);
    }

    #[test]
    fn gptq_words_hold_eight_inputs_and_zero_points_less_one() {
        let v1 = Packing::Gptq { zero_offset: 1, needs_groups: true };
        let parts = |groups: &[i32]| {
            file(&[
                // Input n has code n for every output.
                ("x.qweight", i32s([1, 8], &[0x7654_3210; 8])),
                ("x.qzeros", i32s([2, 1], &[0, 0x1111_1111])),
                ("x.scales", Tensor::from_f32(Shape::from([2, 8]), &[1.0; 16]).unwrap()),
                ("x.g_idx", i32s([0, 8], groups)),
            ])
        };
        // In group 0 the zero point is 1, in group 1 it is 2.
        let row = values(v1, &parts(&[1, 0, 1, 0, 1, 0, 1, 0])).unwrap();
        assert_eq!(row[..8], [-2.0, 0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 6.0]);
        let v2 = Packing::Gptq { zero_offset: 0, needs_groups: true };
        assert_eq!(values(v2, &parts(&[0; 8])).unwrap()[..8], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        for group in [2, -1, i32::MAX] {
            let error = values(v1, &parts(&[0, 0, 0, 0, 0, 0, 0, group])).unwrap_err().to_string();
            assert!(
                error.contains("x.g_idx") && error.contains(&format!("names group {group} of 2")),
                "{error}"
            );
        }
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let scales =
            |dims: [usize; 2]| Tensor::from_f32(Shape::from(dims), &vec![1.0; dims[0] * dims[1]]).unwrap();
        let v1 = Packing::Gptq { zero_offset: 1, needs_groups: true };
        let refused = |packing: Packing, parts: &[(&str, Tensor)]| {
            packing.weights(&file(parts)).unwrap_err().to_string()
        };
        let (codes, zeros) = (("x.qweight", i32s([1, 8], &[0; 8])), ("x.qzeros", i32s([1, 1], &[0])));
        assert!(refused(v1, &[codes.clone(), zeros.clone()]).contains("x.scales"));
        let without = refused(v1, &[codes.clone(), zeros.clone(), ("x.scales", scales([1, 8]))]);
        assert!(without.contains("no g_idx"), "{without}");
        assert!(
            refused(v1, &[codes.clone(), zeros.clone(), ("x.scales", scales([2, 8]))])
                .contains("do not belong")
        );
        assert!(
            refused(Packing::Awq, &[codes.clone(), zeros.clone(), ("x.scales", scales([1, 8]))])
                .contains("do not belong")
        );
        let odd = refused(
            Packing::Awq,
            &[
                ("x.qweight", i32s([3, 1], &[0; 3])),
                ("x.qzeros", i32s([2, 1], &[0; 2])),
                ("x.scales", scales([2, 8])),
            ],
        );
        assert!(odd.contains("2 groups of 3 inputs"), "{odd}");
        let floats = refused(v1, &[("x.qweight", scales([1, 8])), zeros, ("x.scales", scales([1, 8]))]);
        assert!(floats.contains("codes of f32"), "{floats}");
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let of = |quantization: Value| Packing::of(&json!({ "quantization_config": quantization }));
        assert_eq!(Packing::of(&json!({})), Ok(None));
        assert_eq!(
            of(json!({ "quant_method": "awq", "bits": 4, "version": "GEMM" })),
            Ok(Some(Packing::Awq))
        );
        let v2 =
            json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2", "desc_act": false });
        assert_eq!(of(v2), Ok(Some(Packing::Gptq { zero_offset: 0, needs_groups: false })));
        let inner =
            json!({ "text_config": { "quantization_config": { "quant_method": "gptq", "desc_act": true } } });
        assert_eq!(Packing::of(&inner), Ok(Some(Packing::Gptq { zero_offset: 1, needs_groups: true })));
        for (quantization, parts) in [
            (json!({ "quant_method": "gptq", "bits": 3 }), ["bits", "3"]),
            (json!({ "quant_method": "gptq", "bits": "four" }), ["bits", "no number"]),
            (
                json!({ "quant_method": "gptq", "checkpoint_format": "marlin" }),
                ["checkpoint_format", "marlin"],
            ),
            (json!({ "quant_method": "gptq", "is_marlin_format": true }), ["checkpoint_format", "marlin"]),
            (json!({ "quant_method": "awq", "version": "gemv" }), ["version", "gemv"]),
            (json!({ "quant_method": "awq", "zero_point": false }), ["zero_point", "without"]),
            (json!({ "quant_method": "bitsandbytes" }), ["quant_method", "bitsandbytes"]),
            (json!({}), ["quant_method", "known are awq and gptq"]),
        ] {
            let error = of(quantization).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
