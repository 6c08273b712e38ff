//! The curves of a timeline: one list of what is drawn, for every kind of report.

use crate::{Channels, Finding, Sample, Series, sensors::at};
use serde::Serialize;

/// Cores, zones and rails that are drawn one by one.
const MOST_OF_A_KIND: usize = 64;

/// One curve. Its values are by position those of the series' samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Track {
    /// Name for people.
    pub name: String,
    /// Name for programs, with the unit: `cpu_percent`.
    pub key: String,
    /// Unit for people.
    pub unit: &'static str,
    /// What it is drawn with: `processor`, `temperature`, `power`, `memory`, `clock`, `pressure`.
    pub group: &'static str,
    /// One of several of its kind: a core, a zone, a rail.
    pub detail: bool,
    /// Values; `None` is unknown.
    pub values: Vec<Option<f64>>,
    /// Why all of them are unknown, where they are.
    pub why: Option<String>,
}

/// What a track shows of a sample.
type Value = Box<dyn Fn(&Sample) -> Option<f64>>;

/// Every track of a series: first those that every device should have, known or not, then the details that are known.
pub fn tracks(series: &Series) -> Vec<Track> {
    let channels = &series.channels;
    let mut tracks = Vec::new();
    let mut add = |group, name: String, key: String, unit, detail, why: Option<&str>, value: Value| {
        let values: Vec<Option<f64>> = series.samples.iter().map(value).collect();
        let known = values.iter().any(Option::is_some);
        if !known && why.is_none() {
            return;
        }
        let why = why.filter(|_| !known).map(|quantity| why_unknown(&series.findings, quantity));
        tracks.push(Track { name, key, unit, group, detail, values, why });
    };
    for (group, name, key, unit, quantity, value) in MAIN {
        let value = *value;
        add(*group, (*name).to_owned(), (*key).to_owned(), *unit, false, *quantity, Box::new(value));
    }
    for (group, prefix, key, unit, names, value) in DETAILS {
        for (position, name) in names(channels).into_iter().enumerate().take(MOST_OF_A_KIND) {
            let value = *value;
            let twice = names(channels)[..position].contains(&name);
            // Phones have several zones of one type.
            let part = if twice { format!("{}_{position}", slug(&name)) } else { slug(&name) };
            let key = key.replacen('*', &part, 1);
            let value = move |sample: &Sample| value(sample, position);
            add(*group, format!("{prefix}{name}"), key, *unit, true, None, Box::new(value));
        }
    }
    tracks
}

type Main = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
    fn(&Sample) -> Option<f64>,
);

/// Tracks of a device as a whole. Those with a quantity are told even where they are unknown.
const MAIN: &[Main] = &[
    ("processor", "CPU, all cores", "cpu_percent", "%", Some("CPU, all cores"), |s| s.cpu_percent),
    ("processor", "process", "process_cpu_percent", "%", Some("process CPU"), |s| s.process_cpu_percent),
    ("processor", "GPU", "gpu_percent", "%", Some("GPU"), |s| s.gpu_percent),
    ("processor", "GPU, process", "process_gpu_percent", "%", None, |s| s.process_gpu_percent),
    ("processor", "NPU", "npu_percent", "%", Some("NPU"), |s| s.npu_percent),
    ("temperature", "hottest zone", "temperature_celsius", "°C", Some("temperature"), |s| {
        s.temperature_celsius
    }),
    ("temperature", "battery", "battery_celsius", "°C", None, |s| s.battery_celsius),
    ("power", "power", "power_watts", "W", Some("power"), |s| s.power_watts),
    ("memory", "process RSS", "rss_bytes", "bytes", Some("process RSS"), |s| of_bytes(s.rss_bytes)),
    ("memory", "process anonymous", "anonymous_bytes", "bytes", None, |s| of_bytes(s.anonymous_bytes)),
    ("memory", "process file pages", "file_bytes", "bytes", None, |s| of_bytes(s.file_bytes)),
    ("memory", "group", "cgroup_bytes", "bytes", None, |s| of_bytes(s.cgroup_bytes)),
    ("memory", "available", "available_bytes", "bytes", None, |s| of_bytes(s.available_bytes)),
    ("clock", "GPU clock", "gpu_hertz", "Hz", None, |s| s.gpu_hertz),
    ("pressure", "waiting for CPU", "cpu_pressure_percent", "%", None, |s| s.cpu_pressure_percent),
    ("pressure", "waiting for memory", "memory_pressure_percent", "%", None, |s| s.memory_pressure_percent),
    ("pressure", "waiting for disk", "io_pressure_percent", "%", None, |s| s.io_pressure_percent),
];

type Detail = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    fn(&Channels) -> Vec<String>,
    fn(&Sample, usize) -> Option<f64>,
);

/// Tracks of parts; `*` stands for the part's name.
const DETAILS: &[Detail] = &[
    ("processor", "core ", "core_*_percent", "%", cores, |s, i| at(&s.core_percent, i)),
    ("clock", "core ", "core_*_hertz", "Hz", cores, |s, i| at(&s.core_hertz, i)),
    ("clock", "cap of core ", "core_*_cap_hertz", "Hz", cores, |s, i| at(&s.core_cap_hertz, i)),
    ("temperature", "", "zone_*_celsius", "°C", |c| c.zones.clone(), |s, i| at(&s.zone_celsius, i)),
    ("power", "rail ", "rail_*_watts", "W", |c| c.rails.clone(), |s, i| at(&s.rail_watts, i)),
];

fn cores(channels: &Channels) -> Vec<String> {
    channels.cores.iter().map(u32::to_string).collect()
}

fn of_bytes(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| bytes as f64)
}

/// Why a quantity is unknown, in the words of whoever looked for it.
pub(crate) fn why_unknown(findings: &[Finding], quantity: &str) -> String {
    let of = |finding: &&Finding| match quantity {
        // Each family that could have told power says why it does not.
        "power" => {
            finding.quantity.starts_with("power")
                || finding.quantity.starts_with("energy")
                || finding.quantity == "rail power"
                || finding.quantity == "battery power"
        }
        "temperature" => finding.sensor == "thermal",
        _ => finding.quantity == quantity,
    };
    let mut reasons: Vec<&str> = Vec::new();
    for why in findings.iter().filter(of).filter_map(|finding| finding.why.as_deref()) {
        if !reasons.contains(&why) {
            reasons.push(why);
        }
    }
    match reasons.is_empty() {
        true => "no sample told it".to_owned(),
        false => reasons.join("; "),
    }
}

/// Lower-case letters and digits of a name, the rest as `_`.
pub(crate) fn slug(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}
