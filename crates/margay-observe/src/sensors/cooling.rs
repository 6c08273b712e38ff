//! What the kernel does against heat: `/sys/class/thermal/cooling_device*`. State 0 is nothing, the greatest is all it can.
//!
//! Source: Linux, `Documentation/driver-api/thermal/sysfs-api.rst`.

use super::{Family, Finding, Moment, Sensor, at, put};
use crate::{Channels, Root, Sample, parse::number};

pub(super) const FAMILY: Family = Family {
    id: "cooling",
    summary: "cooling devices: fans, and caps on clocks",
    probe: |root, _| Box::new(Cooling::probe(root)),
};

const FOLDER: &str = "sys/class/thermal";

/// Devices that are read.
const MOST_DEVICES: usize = 128;

struct Cooling {
    devices: Vec<Device>,
}

struct Device {
    kind: String,
    path: String,
    max: Option<u64>,
}

impl Cooling {
    fn probe(root: &Root) -> Self {
        let names = root.list(FOLDER).into_iter().filter(|name| name.starts_with("cooling_device"));
        let devices = names.take(MOST_DEVICES).filter_map(|name| {
            let read = |file: &str| root.read(&format!("{FOLDER}/{name}/{file}"));
            read("cur_state").and_then(|text| number(&text))?;
            let kind = read("type").map(|kind| kind.trim().to_owned()).filter(|kind| !kind.is_empty());
            let max = read("max_state").and_then(|text| number(&text));
            let path = format!("{FOLDER}/{name}/cur_state");
            Some(Device { kind: kind.unwrap_or(name), path, max })
        });
        Cooling { devices: devices.collect() }
    }
}

impl Sensor for Cooling {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        if moment.channels.cooling.is_empty() {
            moment.channels.cooling = self.devices.iter().map(|device| device.kind.clone()).collect();
            moment.channels.cooling_max = self.devices.iter().map(|device| device.max).collect();
        }
        for (position, device) in self.devices.iter().enumerate() {
            let state = root.read(&device.path).and_then(|text| number(&text));
            let state = state.filter(|state| device.max.is_none_or(|max| *state <= max));
            put(&mut moment.sample.cooling_state, position, state);
        }
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        if self.devices.is_empty() {
            let path = format!("{FOLDER}/cooling_device*");
            return vec![Finding::nowhere(&FAMILY, "cooling", path, "no cooling device")];
        }
        let of = |(position, device): (usize, &Device)| {
            let max = device.max.map_or_else(String::new, |max| format!(" of {max}"));
            let value = at(&sample.cooling_state, position).map(|state| format!("state {state}{max}"));
            Finding::of(&FAMILY, &device.kind, &device.path, value, root)
        };
        self.devices.iter().enumerate().map(of).collect()
    }
}
