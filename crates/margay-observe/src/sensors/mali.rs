//! Mali GPUs, and others with a file that holds a share: every vendor has a spelling of its own.
//!
//! Each file is the driver's own mean over a window of its choosing (20 to 500 ms). The spellings are those of ten public
//! readers of these files; formats as in `parse::percent`. Sources: ARM's `mali_kbase`, `gpu_utilization_show` of
//! MediaTek's `ged_hal.c` ("loading block idle"), Samsung's `gpu_busy` ("45%"), vendors' devfreq `load`
//! ("45@600000000Hz").

use super::{Family, Finding, Moment, Sensor, told};
use crate::{
    Channels, Root, Sample,
    parse::{hertz_of_load, number, percent, plausible_hertz},
};

pub(super) const FAMILY: Family = Family {
    id: "mali",
    summary: "Mali GPU, and others with one share in a file",
    probe: |root, _| Box::new(Mali::probe(root)),
};

/// Files that are there by this very name.
const FILES: &[&str] = &[
    "sys/class/misc/mali0/device/utilization",
    "sys/class/misc/mali0/device/utilisation",
    "sys/kernel/ged/hal/gpu_utilization",
    "sys/kernel/gpu/gpu_busy",
    "sys/module/mali/parameters/mali_gpu_utilization",
    "sys/module/mali_kbase/parameters/mali_gpu_utilization",
    "sys/class/devfreq/gpufreq/mali_ondemand/utilisation",
    "sys/module/ged/parameters/gpu_loading",
];

/// Folders, what the name of a folder in them must hold, and the file in that.
const SEARCHES: &[(&str, &[&str], &str)] = &[
    ("sys/devices/platform", &[".mali"], "utilization"),
    ("sys/devices/platform", &[".mali"], "utilisation"),
    ("sys/class/devfreq", &["gpu", "mali"], "load"),
];

struct Mali {
    busy: Option<String>,
    clock: Option<String>,
}

impl Mali {
    fn probe(root: &Root) -> Self {
        let searched = SEARCHES.iter().flat_map(|(folder, words, file)| {
            let named = move |name: &String| words.iter().any(|word| name.contains(word));
            let names = root.list(folder).into_iter().filter(named);
            names.map(move |name| format!("{folder}/{name}/{file}"))
        });
        let mut candidates = FILES.iter().map(|path| (*path).to_owned()).chain(searched);
        let busy = candidates.find(|path| root.read(path).is_some_and(|text| percent(&text).is_some()));
        let names = root.list("sys/class/devfreq");
        let gpus = names.iter().filter(|name| name.contains("gpu") || name.contains("mali"));
        let mut clocks = gpus.map(|name| format!("sys/class/devfreq/{name}/cur_freq"));
        let clock = clocks.find(|path| root.read(path).is_some_and(|text| hertz(&text).is_some()));
        Mali { busy, clock }
    }
}

impl Sensor for Mali {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        if moment.channels.gpu.as_ref().is_some_and(|gpu| Some(gpu) != self.busy.as_ref()) {
            return;
        }
        if let Some(path) = &self.busy {
            moment.channels.gpu.get_or_insert_with(|| path.clone());
            let text = root.read(path).unwrap_or_default();
            moment.sample.gpu_percent = percent(&text);
            moment.sample.gpu_hertz = hertz_of_load(&text);
        }
        if let Some(path) = self.clock.as_ref().filter(|_| moment.sample.gpu_hertz.is_none()) {
            moment.sample.gpu_hertz = root.read(path).and_then(|text| hertz(&text));
        }
    }

    fn findings(&self, root: &Root, channels: &Channels, sample: &Sample) -> Vec<Finding> {
        match &self.busy {
            Some(path) if channels.gpu.as_ref() == Some(path) => {
                let clock = sample.gpu_hertz.map(|hertz| format!(" at {:.0} MHz", hertz / 1e6));
                let value = told(sample.gpu_percent, 0, "%").map(|busy| busy + &clock.unwrap_or_default());
                vec![Finding::of(&FAMILY, "GPU", path, value, root)]
            }
            Some(path) => vec![Finding::nowhere(&FAMILY, "GPU", path, "another file tells it")],
            None => {
                let spellings = FILES.len() + SEARCHES.len();
                let why = format!("none of {spellings} spellings is there");
                vec![Finding::nowhere(&FAMILY, "GPU", FILES[0], why)]
            }
        }
    }
}

fn hertz(text: &str) -> Option<f64> {
    plausible_hertz(number(text)?)
}
