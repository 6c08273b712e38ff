//! The backends: one line each.

use crate::{Error, LoadOptions};
use margay_cpu::{CpuBackend, CpuOptions, Isa, KvType};
use margay_graph::Backend;

/// A backend that a model can run on.
pub struct BackendEntry {
    /// Its id.
    pub id: &'static str,
    /// One line for people.
    pub summary: &'static str,
    make: fn(&LoadOptions) -> Result<Box<dyn Backend>, Error>,
}

/// All backends.
pub const BACKENDS: &[BackendEntry] = &[
    BackendEntry { id: "cpu", summary: "SIMD kernels chosen for this CPU", make: cpu },
    #[cfg(feature = "reference")]
    BackendEntry {
        id: "reference",
        summary: "candle in float32: slow, the meaning of every op",
        make: reference,
    },
];

/// The backend that the options name.
///
/// # Errors
/// [`Error::Unknown`] where there is none of that name, or no such instruction set on this machine.
pub fn backend(options: &LoadOptions) -> Result<Box<dyn Backend>, Error> {
    let known = || BACKENDS.iter().map(|b| b.id).collect::<Vec<_>>().join(", ");
    let entry = BACKENDS.iter().find(|b| b.id == options.backend);
    let entry = entry.ok_or_else(|| Error::Unknown {
        what: "the backend",
        name: options.backend.clone(),
        known: known(),
    })?;
    (entry.make)(options)
}

fn cpu(options: &LoadOptions) -> Result<Box<dyn Backend>, Error> {
    let isa = options.isa.as_deref().map(isa).transpose()?;
    let kv = if options.exact_cache { KvType::F32 } else { KvType::F16 };
    let LoadOptions { threads, int8_encoder, bf16_encoder, .. } = *options;
    Ok(Box::new(CpuBackend::new(CpuOptions { threads, isa, kv, int8_encoder, bf16_encoder })?))
}

fn isa(name: &str) -> Result<Isa, Error> {
    let here: Vec<Isa> = Isa::supported().collect();
    Isa::from_name(name).filter(|isa| here.contains(isa)).ok_or_else(|| Error::Unknown {
        what: "for this machine the instruction set",
        name: name.to_owned(),
        known: here.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(feature = "reference")]
fn reference(options: &LoadOptions) -> Result<Box<dyn Backend>, Error> {
    for (option, asked) in [("int8_encoder", options.int8_encoder), ("bf16_encoder", options.bf16_encoder)] {
        if asked {
            let what = "the reference computes in float32 only; choose the cpu backend".to_owned();
            return Err(Error::Option { option, what });
        }
    }
    Ok(Box::new(margay_reference::ReferenceBackend::new()))
}
