//! NPUs: a node where there is one, otherwise unknown, which on phones is the rule.
//!
//! Intel's driver counts microseconds with work (`npu_busy_time_us`). Qualcomm's DSP may have a devfreq node with a load.
//! Nothing is inferred from clocks or interrupts. Sources: Linux, `drivers/accel/ivpu/ivpu_sysfs.c`; the devfreq names are
//! knowledge of vendors' kernels that was not checked on a device.

use super::{Family, Finding, Moment, Sensor, told};
use crate::{
    Channels, Root, Sample,
    parse::{increase, number, percent, share},
};

pub(super) const FAMILY: Family = Family {
    id: "npu",
    summary: "NPU or DSP, where a node tells it",
    probe: |root, _| Box::new(Npu { node: find(root), before: None }),
};

/// Names of devfreq folders that are of an NPU.
const DEVFREQ: &[&str] = &["cdsp", "npu", "apu", "vpu"];

enum Node {
    Micros(String),
    Load(String),
}

struct Npu {
    node: Option<Node>,
    before: Option<u64>,
}

fn find(root: &Root) -> Option<Node> {
    let accels = root.list("sys/class/accel").into_iter();
    let mut micros = accels.map(|name| format!("sys/class/accel/{name}/device/npu_busy_time_us"));
    let micros = micros.find(|path| root.read(path).is_some_and(|text| number(&text).is_some()));
    micros.map(Node::Micros).or_else(|| {
        let names = root.list("sys/class/devfreq").into_iter();
        let of_npu = names.filter(|name| DEVFREQ.iter().any(|word| name.contains(word)));
        let mut loads = of_npu.map(|name| format!("sys/class/devfreq/{name}/load"));
        loads.find(|path| root.read(path).is_some_and(|text| percent(&text).is_some())).map(Node::Load)
    })
}

impl Sensor for Npu {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let (path, share) = match &self.node {
            None => return,
            Some(Node::Load(path)) => (path, root.read(path).and_then(|text| percent(&text))),
            Some(Node::Micros(path)) => {
                let now = root.read(path).and_then(|text| number(&text));
                let spent = self.before.zip(now).and_then(|(before, now)| increase(before, now));
                self.before = now;
                let share =
                    spent.zip(moment.over_seconds).and_then(|(us, over)| share(us as f64 / 1e6, over));
                (path, share)
            }
        };
        moment.channels.npu.get_or_insert_with(|| path.clone());
        moment.sample.npu_percent = share;
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        let Some(Node::Micros(path) | Node::Load(path)) = &self.node else {
            let why = "no stable node tells how busy an NPU is; vendors' profilers do";
            return vec![Finding::nowhere(&FAMILY, "NPU", "sys/class/accel, sys/class/devfreq", why)];
        };
        vec![Finding::of(&FAMILY, "NPU", path, told(sample.npu_percent, 0, "%"), root)]
    }
}
