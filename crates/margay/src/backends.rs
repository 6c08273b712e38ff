//! The backends: one line each.

use crate::{Error, LoadOptions};
use margay_graph::Backend;
use margay_reference::ReferenceBackend;

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
    BackendEntry { id: "cpu", summary: "SIMD kernels chosen for this CPU", make: reference },
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

fn reference(_: &LoadOptions) -> Result<Box<dyn Backend>, Error> {
    Ok(Box::new(ReferenceBackend::new()))
}
