//! The backends: one line each.

use crate::{Error, LoadOptions};
use margay_cpu::{CoreSet, CpuBackend, CpuOptions, Isa};
use margay_graph::Backend;
use margay_observe::{Root, machine};

/// Threads at most: more than any machine Margay is meant for has cores.
const MOST_THREADS: usize = 1024;

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
    Ok(Box::new(cpu_backend(options)?))
}

/// The CPU backend, whichever one the options name, for tools that measure it.
///
/// # Errors
/// [`Error::Unknown`] or [`Error::Option`] where this machine has no such instruction set, not these cores, or the threads are too many.
pub fn cpu_backend(options: &LoadOptions) -> Result<CpuBackend, Error> {
    for (option, threads) in [("threads", options.threads), ("decode_threads", options.decode_threads)] {
        if let Some(threads) = threads.filter(|n| !(1..=MOST_THREADS).contains(n)) {
            let what = format!("{threads} is not within 1 to {MOST_THREADS}");
            return Err(Error::Option { option, what });
        }
    }
    let isa = options.isa.as_deref().map(isa).transpose()?;
    let cores = cores(options)?;
    let threads = options.threads.or_else(|| cores.is_none().then(default_threads));
    if let (Some(threads), Some(cores)) = (threads, &cores)
        && threads > cores.len()
    {
        let what = format!("{threads} is more than the {} cores they shall stay on ({cores})", cores.len());
        return Err(Error::Option { option: "threads", what });
    }
    let LoadOptions { kv, kv_image, decode_threads, int8_encoder, bf16_encoder, .. } = *options;
    let options =
        CpuOptions { threads, decode_threads, cores, isa, kv, kv_image, int8_encoder, bf16_encoder };
    Ok(CpuBackend::new(options)?)
}

fn cores(options: &LoadOptions) -> Result<Option<CoreSet>, Error> {
    let Some(list) = &options.cores else { return Ok(None) };
    let refused = |e: margay_cpu::CoreError| Error::Option { option: "cores", what: e.to_string() };
    let cores: CoreSet = list.parse().map_err(refused)?;
    cores.check().map_err(refused)?;
    Ok(Some(cores))
}

/// Threads where nobody says how many: as many as this machine has cores, two that share a core's arithmetic units counted
/// as one, and no more than this process may use.
pub fn default_threads() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    machine::physical_cores(&Root::system()).map_or(available, |cores| available.min(cores.max(1)))
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
    if options.cores.is_some() || options.decode_threads.is_some() {
        let option = if options.cores.is_some() { "cores" } else { "decode_threads" };
        let what = "the reference does not choose its threads; choose the cpu backend".to_owned();
        return Err(Error::Option { option, what });
    }
    for (option, asked) in [("int8_encoder", options.int8_encoder), ("bf16_encoder", options.bf16_encoder)] {
        if asked {
            let what = "the reference computes in float32 only; choose the cpu backend".to_owned();
            return Err(Error::Option { option, what });
        }
    }
    let quantized =
        |kind: margay_cpu::KvType| !matches!(kind, margay_cpu::KvType::F16 | margay_cpu::KvType::F32);
    if quantized(options.kv) || options.kv_image.is_some_and(quantized) {
        let what = "the reference keeps keys and values in float32 only; choose the cpu backend".to_owned();
        return Err(Error::Option { option: "kv", what });
    }
    if options.eviction.is_some() {
        let what = "the reference drops no tokens; choose the cpu backend".to_owned();
        return Err(Error::Option { option: "evict", what });
    }
    Ok(Box::new(margay_reference::ReferenceBackend::new()))
}
