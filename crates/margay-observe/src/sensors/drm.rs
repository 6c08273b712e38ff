//! What the GPU did for the watched process: `/proc/PID/fdinfo`, where drivers count nanoseconds of each engine.
//!
//! i915, amdgpu, msm, panfrost, panthor, v3d and others write it, and it needs no root. One open file of a client may be
//! listed under several numbers: a client counts once. Source: Linux, `Documentation/gpu/drm-usage-stats.rst`.

use super::{Family, Finding, Moment, Sensor, What, told};
use crate::{
    Channels, Root, Sample,
    parse::{increase, share},
    root::field,
};
use std::collections::BTreeMap;

pub(super) const FAMILY: Family = Family {
    id: "drm",
    summary: "what the GPU did for the watched process",
    probe: |_, what: &What| {
        let folder = what.process.folder().map(|folder| folder + "/fdinfo");
        Box::new(Drm { folder, files: Vec::new(), looks: 0, before: BTreeMap::new() })
    },
};

/// Open files are looked through for new clients each so many samples: a server may have thousands.
const LOOK_EVERY: u32 = 16;

/// Open files that are looked at.
const MOST_FILES: usize = 1024;

/// Nanoseconds of each engine.
type Engines = BTreeMap<String, u64>;

struct Drm {
    folder: Option<String>,
    /// Those that are of a GPU.
    files: Vec<String>,
    looks: u32,
    before: Engines,
}

impl Sensor for Drm {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let Some(folder) = &self.folder else { return };
        let mut clients: BTreeMap<String, Engines> = BTreeMap::new();
        let files = if self.looks.is_multiple_of(LOOK_EVERY) {
            let names = root.list(folder).into_iter().take(MOST_FILES);
            names.map(|name| format!("{folder}/{name}")).collect()
        } else {
            std::mem::take(&mut self.files)
        };
        self.looks = self.looks.wrapping_add(1);
        for path in files {
            let Some((client, engines)) = root.read(&path).and_then(|text| engines(&text)) else { continue };
            clients.insert(client, engines);
            self.files.push(path);
        }
        let mut now = Engines::new();
        for (engine, nanos) in clients.into_values().flatten() {
            let sum = now.entry(engine).or_default();
            *sum = sum.saturating_add(nanos);
        }
        let shares = now.iter().filter_map(|(engine, nanos)| {
            let spent = increase(*self.before.get(engine)?, *nanos)?;
            share(spent as f64 / 1e9, moment.over_seconds?)
        });
        moment.sample.process_gpu_percent = shares.reduce(f64::max);
        self.before = now;
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let Some(path) = self.files.first() else {
            let why = "the process has no GPU open, or its driver does not count";
            return vec![Finding::nowhere(&FAMILY, "process GPU", folder, why)];
        };
        vec![Finding::of(&FAMILY, "process GPU", path, told(sample.process_gpu_percent, 0, "%"), root)]
    }
}

/// Which client an open file is of, and its engines; `None` of what is no GPU.
pub(crate) fn engines(text: &str) -> Option<(String, Engines)> {
    let driver = field(text, "drm-driver")?;
    let [device, client] =
        ["drm-pdev", "drm-client-id"].map(|key| field(text, key).unwrap_or("?").to_owned());
    let mut engines = Engines::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let Some(engine) = key.trim().strip_prefix("drm-engine-") else { continue };
        if engine.starts_with("capacity-") {
            continue;
        }
        if let Some(nanos) = value.trim().strip_suffix("ns").and_then(|n| n.trim().parse().ok()) {
            engines.insert(format!("{driver}/{device}/{engine}"), nanos);
        }
    }
    Some((format!("{driver}/{device}/{client}"), engines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_read_and_other_files_are_not() {
        let text = "pos:\t0\ndrm-driver:\tv3d\ndrm-client-id:\t81\ndrm-engine-bin: \t4916187 ns\n\
                    drm-engine-render:\t154563573 ns\ndrm-engine-capacity-render:\t2\ndrm-engine-tfu: x ns\n";
        let (client, engines) = engines(text).unwrap();
        assert_eq!(client, "v3d/?/81");
        let expected = [("v3d/?/bin", 4_916_187), ("v3d/?/render", 154_563_573)];
        assert_eq!(engines, expected.map(|(name, nanos)| (name.to_owned(), nanos)).into());
        assert_eq!(super::engines("pos:\t0\nflags:\t02\n"), None);
    }
}
