//! GPUs of AMD's driver: `gpu_busy_percent` of each card; the busiest counts.
//!
//! Source: Linux, `Documentation/gpu/amdgpu/thermal.rst`, "GPU sysfs power state interfaces".

use super::{Family, Finding, Moment, Sensor, told};
use crate::{Channels, Root, Sample, parse::percent};

pub(super) const FAMILY: Family =
    Family { id: "amdgpu", summary: "GPU of AMD's driver", probe: |root, _| Box::new(Amdgpu::probe(root)) };

const FOLDER: &str = "sys/class/drm";

struct Amdgpu {
    paths: Vec<String>,
}

impl Amdgpu {
    fn probe(root: &Root) -> Self {
        let names = root.list(FOLDER).into_iter();
        // Connectors are listed beside the cards: `card0-DP-1`.
        let cards = names.filter(|name| name.starts_with("card") && !name.contains('-'));
        let paths = cards.map(|card| format!("{FOLDER}/{card}/device/gpu_busy_percent"));
        Amdgpu { paths: paths.filter(|path| root.read(path).is_some()).collect() }
    }
}

impl Sensor for Amdgpu {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let Some(first) = self.paths.first() else { return };
        if moment.channels.gpu.get_or_insert_with(|| first.clone()) == first {
            let shares = self.paths.iter().filter_map(|path| percent(&root.read(path)?));
            moment.sample.gpu_percent = shares.reduce(f64::max);
        }
    }

    fn findings(&self, root: &Root, channels: &Channels, sample: &Sample) -> Vec<Finding> {
        let Some(first) = self.paths.first().filter(|first| channels.gpu.as_ref() == Some(first)) else {
            return Vec::new();
        };
        vec![Finding::of(&FAMILY, "GPU", first, told(sample.gpu_percent, 0, "%"), root)]
    }
}
