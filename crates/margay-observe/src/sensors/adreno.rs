//! Adreno GPUs: Qualcomm's driver `kgsl`.
//!
//! `gpubusy` holds busy and elapsed microseconds of the driver's last window, about a second, as a pair: the ratio is the
//! share. Of a GPU that is off, reading it clears the pair, and `0 0` then means that nothing was measured since: the GPU
//! slept. `gpu_busy_percentage` ("45 %") is the same ratio. Some drivers report a constant 100. Source:
//! `kgsl_pwrctrl_gpubusy_show`, `kgsl_pwrctrl.c` of Qualcomm's kernels.

use super::{Family, Finding, Moment, Sensor, told};
use crate::{
    Channels, Root, Sample,
    parse::{number, percent, plausible_hertz, share},
};

pub(super) const FAMILY: Family = Family {
    id: "adreno",
    summary: "Adreno GPU: busy share and clock",
    probe: |root, _| Box::new(Adreno::probe(root)),
};

const FOLDER: &str = "sys/class/kgsl/kgsl-3d0";

/// How a text is read.
type Parser = fn(&str) -> Option<f64>;

/// Files with the busy share, the best first, and how each is read.
const BUSY: &[(&str, Parser)] =
    &[("gpubusy", pair), ("gpu_busy_percentage", percent), ("devfreq/gpu_load", percent)];

const CLOCKS: &[&str] = &["gpuclk", "devfreq/cur_freq"];

struct Adreno {
    busy: Option<(String, Parser)>,
    clock: Option<String>,
}

impl Adreno {
    fn probe(root: &Root) -> Self {
        let path = |file: &str| format!("{FOLDER}/{file}");
        let mut busy = BUSY.iter().map(|(file, parse)| (path(file), *parse));
        let mut clocks = CLOCKS.iter().map(|file| path(file));
        Adreno {
            busy: busy.find(|(path, parse)| root.read(path).is_some_and(|text| parse(&text).is_some())),
            clock: clocks.find(|path| root.read(path).is_some_and(|text| hertz(&text).is_some())),
        }
    }
}

impl Sensor for Adreno {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        if let Some((path, parse)) = &self.busy {
            moment.channels.gpu.get_or_insert_with(|| path.clone());
            moment.sample.gpu_percent = root.read(path).and_then(|text| parse(&text));
        }
        if let Some(path) = &self.clock {
            moment.sample.gpu_hertz = root.read(path).and_then(|text| hertz(&text));
        }
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some((path, _)) = &self.busy {
            findings.push(Finding::of(&FAMILY, "GPU", path, told(sample.gpu_percent, 0, "%"), root));
        } else {
            // Of another vendor's device there is nothing to say.
            let path = format!("{FOLDER}/{}", BUSY[0].0);
            let finding = Finding::of(&FAMILY, "GPU", path, None, root);
            let absent = ["no such file", "not in the recording"];
            findings
                .extend(Some(finding).filter(|f| !f.why.as_deref().is_some_and(|why| absent.contains(&why))));
        }
        if let Some(path) = &self.clock {
            let clock = told(sample.gpu_hertz.map(|hertz| hertz / 1e6), 0, "MHz");
            findings.push(Finding::of(&FAMILY, "GPU clock", path, clock, root));
        }
        findings
    }
}

/// The share of a pair `busy total`; `0 0` is a GPU that slept.
pub(crate) fn pair(text: &str) -> Option<f64> {
    let mut words = text.split_ascii_whitespace();
    let (busy, total): (u64, u64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    if words.next().is_some() || busy > total {
        return None;
    }
    if total == 0 { Some(0.0) } else { share(busy as f64, total as f64) }
}

fn hertz(text: &str) -> Option<f64> {
    plausible_hertz(number(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pair_is_a_ratio_and_a_sleeping_gpu_is_idle() {
        assert_eq!(pair(" 350000 1000000\n"), Some(35.0));
        assert_eq!(pair("      0       0\n"), Some(0.0), "it was read while the GPU was off");
        for text in ["", "1", "2 1", "-1 5", "1 2 3", "a b"] {
            assert_eq!(pair(text), None, "{text}");
        }
    }
}
