//! What would change if: the opportunities of the study's section 5.2, alone and together.

use crate::{
    Device, DeviceError, Engine, Kind, Placement, Precision, Run, Setup, Stated, Workload, simulate,
};

/// A change of how a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhatIf {
    /// Tower and projector on the GPU in f16, at the part of its speed that MLC-Imp's prompt evaluation reached in the study.
    GpuEncode,
    /// The same at the part that MLC-Imp's own encoding reached, 55 times less.
    GpuEncodeAsMeasured,
    /// Prefill (attention, feed-forward layers) on the GPU in f16.
    GpuPrompt,
    /// The head on the NPU in int8 while decoding.
    NpuInt8Output,
    /// Keys and values in 8 bits, a scale a head.
    KvInt8,
    /// Keys and values in 4 bits, a scale a head.
    KvInt4,
    /// Text before the picture is computed while the picture is encoded.
    Overlap,
}

/// Bytes of the scale of the key or value of a head, as Margay's q8 keeps them.
const SCALE_BYTES: f64 = 4.0;
/// Bytes of a number in the base.
const F16_BYTES: f64 = 2.0;
/// Engine whose GPU numbers the changes take.
const GPU_ENGINE: &str = "mlc-imp";

impl WhatIf {
    /// All of them.
    pub const ALL: [WhatIf; 7] = [
        WhatIf::GpuEncode,
        WhatIf::GpuEncodeAsMeasured,
        WhatIf::GpuPrompt,
        WhatIf::NpuInt8Output,
        WhatIf::KvInt8,
        WhatIf::KvInt4,
        WhatIf::Overlap,
    ];

    /// As it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            WhatIf::GpuEncode => "gpu-encode",
            WhatIf::GpuEncodeAsMeasured => "gpu-encode-mlc",
            WhatIf::GpuPrompt => "gpu-prompt",
            WhatIf::NpuInt8Output => "npu-int8-output",
            WhatIf::KvInt8 => "kv-int8",
            WhatIf::KvInt4 => "kv-int4",
            WhatIf::Overlap => "overlap",
        }
    }

    /// Reads a list of names with commas between.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`] naming the first that is none; [`DeviceError::Conflict`] for two that say different things of
    /// one.
    pub fn list(text: &str) -> Result<Vec<WhatIf>, DeviceError> {
        let read =
            |name: &str| {
                let known = || WhatIf::ALL.map(WhatIf::name).join(", ");
                WhatIf::ALL.into_iter().find(|change| change.name() == name).ok_or_else(|| {
                    DeviceError::Unknown { what: "change", name: name.to_owned(), known: known() }
                })
            };
        let list = text.split(',').map(|name| read(name.trim())).collect::<Result<Vec<_>, _>>()?;
        for (a, b) in [(WhatIf::GpuEncode, WhatIf::GpuEncodeAsMeasured), (WhatIf::KvInt8, WhatIf::KvInt4)] {
            if list.contains(&a) && list.contains(&b) {
                return Err(DeviceError::Conflict { a: a.name(), b: b.name() });
            }
        }
        Ok(list)
    }
}

/// A base with changes applied.
#[derive(Clone, Debug)]
pub struct Changed {
    engine: Engine,
    head: Option<Placement>,
    overlap: bool,
    /// With keys and values of their size.
    pub workload: Workload,
}

impl Changed {
    /// Applies them to an engine and a workload whose keys and values are f16.
    ///
    /// # Errors
    /// [`DeviceError`] where an engine's file breaks its rules.
    pub fn new(engine: &Engine, workload: &Workload, changes: &[WhatIf]) -> Result<Self, DeviceError> {
        let gpu = Engine::named(GPU_ENGINE)?;
        let mut changed =
            Changed { engine: engine.clone(), head: None, overlap: false, workload: workload.clone() };
        for change in changes {
            match change {
                WhatIf::GpuEncode => changed.engine.encode = gpu.prefill.clone(),
                WhatIf::GpuEncodeAsMeasured => changed.engine.encode = gpu.encode.clone(),
                WhatIf::GpuPrompt => changed.engine.prefill = gpu.prefill.clone(),
                WhatIf::NpuInt8Output => {
                    let why = "nobody measured it; as MLC-Imp's GPU reached in the study";
                    changed.head = Some(Placement {
                        unit: Kind::Npu,
                        precision: Precision::Int8,
                        compute: Stated::assume(gpu.prefill.compute.value, why),
                        bandwidth: Stated::assume(gpu.prefill.bandwidth.value, why),
                    });
                }
                WhatIf::KvInt8 => changed.workload = shrunk(workload, 1.0),
                WhatIf::KvInt4 => changed.workload = shrunk(workload, 0.5),
                WhatIf::Overlap => changed.overlap = true,
            }
        }
        Ok(changed)
    }

    /// Simulates it.
    ///
    /// # Errors
    /// As [`simulate`].
    pub fn run(&self, device: &Device) -> Result<Run, DeviceError> {
        let setup =
            Setup { head: self.head.as_ref(), overlap: self.overlap, ..Setup::new(device, &self.engine) };
        simulate(&setup, &self.workload)
    }
}

/// Keys and values of `bytes` a number and a scale a head, in place of the base's halves.
fn shrunk(base: &Workload, bytes: f64) -> Workload {
    let factor = (bytes + SCALE_BYTES / base.head_dim.max(1) as f64) / F16_BYTES;
    base.clone().with_cache(factor)
}
