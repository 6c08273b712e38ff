//! The GPU of NVIDIA's Jetson boards: `load` holds thousandths. NVML does not exist there.
//!
//! Source: public readers of the file on TX2, Xavier and Orin, which agree on 0 to 1000 and on these places.

use super::{Family, Finding, Moment, Sensor, told};
use crate::{Channels, Root, Sample, parse::number};

pub(super) const FAMILY: Family =
    Family { id: "tegra", summary: "GPU of Jetson boards", probe: |root, _| Box::new(Tegra::probe(root)) };

const FILES: &[&str] = &[
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/platform/17000000.ga10b/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
];

struct Tegra {
    path: Option<&'static str>,
}

impl Tegra {
    fn probe(root: &Root) -> Self {
        let mut paths = FILES.iter().copied();
        Tegra { path: paths.find(|path| root.read(path).is_some_and(|text| permille(&text).is_some())) }
    }
}

impl Sensor for Tegra {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let Some(path) = self.path else { return };
        if moment.channels.gpu.get_or_insert_with(|| path.to_owned()) == path {
            moment.sample.gpu_percent = root.read(path).and_then(|text| permille(&text));
        }
    }

    fn findings(&self, root: &Root, channels: &Channels, sample: &Sample) -> Vec<Finding> {
        let Some(path) = self.path.filter(|path| channels.gpu.as_deref() == Some(path)) else {
            return Vec::new();
        };
        vec![Finding::of(&FAMILY, "GPU", path, told(sample.gpu_percent, 1, "%"), root)]
    }
}

/// Thousandths in percent.
pub(crate) fn permille(text: &str) -> Option<f64> {
    number(text).filter(|load| *load <= 1000).map(|load| load as f64 / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_thousandths() {
        assert_eq!(
            (permille("999\n"), permille("0"), permille("1000")),
            (Some(99.9), Some(0.0), Some(100.0))
        );
        assert_eq!((permille("1001"), permille("-1"), permille("45%")), (None, None, None));
    }
}
