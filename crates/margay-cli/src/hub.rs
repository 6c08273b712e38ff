//! Models of a hub, wherever a command takes a model: `hf:OWNER/REPO[:FILE]`.

use std::{borrow::Cow, path::Path};

/// What marks a model of a hub.
pub(crate) const PREFIX: &str = "hf:";

/// Where a model lies: a model of a hub is pulled first, any other path is itself.
pub(crate) fn local(path: &Path) -> anyhow::Result<Cow<'_, Path>> {
    match path.to_str().and_then(|text| text.strip_prefix(PREFIX)) {
        Some(reference) => Ok(Cow::Owned(pulled(reference)?)),
        None => Ok(Cow::Borrowed(path)),
    }
}

#[cfg(feature = "hub")]
fn pulled(reference: &str) -> anyhow::Result<std::path::PathBuf> {
    use crate::{output, progress::Meter};
    let model = reference.parse().map_err(|e: margay_hub::HubError| crate::Usage(e.to_string()))?;
    let mut meter = Meter::start(false);
    let pulled = margay_hub::pull(&crate::environment::hub()?, &model, &mut |step| {
        meter.update(step.done_bytes, step.of_bytes, step.file);
        std::ops::ControlFlow::Continue(())
    });
    drop(meter);
    let pulled = pulled?;
    pulled.notes.iter().for_each(|note| output::aside(&output::harmless(note)));
    Ok(pulled.path)
}

#[cfg(not(feature = "hub"))]
fn pulled(_: &str) -> anyhow::Result<std::path::PathBuf> {
    anyhow::bail!("this margay was built without the feature `hub`: fetch the model by other means")
}

/// Fetches the bytes at an address, for the server.
#[cfg(feature = "hub")]
pub(crate) fn get() -> anyhow::Result<std::sync::Arc<margay_server::Get>> {
    let fetcher = margay_hub::Fetcher::new(crate::environment::certificates().as_deref())?;
    Ok(std::sync::Arc::new(move |url: &str, most_bytes: u64, time| {
        fetcher.get(url, most_bytes, time).map_err(|e| e.to_string())
    }))
}

#[cfg(not(feature = "hub"))]
pub(crate) fn get() -> anyhow::Result<std::sync::Arc<margay_server::Get>> {
    anyhow::bail!(
        "this margay was built without the feature `hub`: it fetches no pictures; leave --image-host out"
    )
}
