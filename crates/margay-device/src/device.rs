//! A device as numbers: its units, memory, heat and battery.

use crate::{DeviceError, Stated, error::profile};
use serde::{Deserialize, Serialize};

/// Slowest rate that a profile may tell, 10^9 operations a second, and narrowest bandwidth, bytes a second: times stay numbers.
const LEAST_GOPS: f64 = 1e-3;
const LEAST_BANDWIDTH: f64 = 1e3;

/// The profiles inside the program: id and file.
const DEVICES: &[(&str, &str)] = &[
    ("budget-phone", include_str!("../profiles/budget-phone.toml")),
    ("flagship-phone", include_str!("../profiles/flagship-phone.toml")),
    ("tablet", include_str!("../profiles/tablet.toml")),
    ("jetson-orin", include_str!("../profiles/jetson-orin.toml")),
    ("oneplus-13r", include_str!("../profiles/oneplus-13r.toml")),
    ("snapdragon-8-gen-2", include_str!("../profiles/snapdragon-8-gen-2.toml")),
    ("a17-pro", include_str!("../profiles/a17-pro.toml")),
    ("dimensity-9300", include_str!("../profiles/dimensity-9300.toml")),
    ("tensor-g4", include_str!("../profiles/tensor-g4.toml")),
];

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Name for people.
    pub name: String,
    /// Its chip.
    pub chip: String,
    /// One or two sentences: what the profile stands for.
    pub about: String,
    /// What the whole device draws while it does nothing but show a screen.
    pub idle_watts: Stated,
    /// What its class may draw for long, where somebody says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_watts: Option<Stated>,
    /// Memory.
    pub memory: Memory,
    /// `None` where it runs from the mains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub battery: Option<Battery>,
    /// Heat.
    pub thermal: Thermal,
    /// What computes: clusters of CPU cores (the fastest first), GPU, NPU.
    pub unit: Vec<Unit>,
}

/// Memory and storage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// All of it.
    pub bytes: Stated,
    /// What one program may hold before the system ends it.
    pub usable_bytes: Stated,
    /// Of the memory, by its label.
    pub bytes_per_second: Stated,
    /// Energy of a byte that is read from it.
    pub joules_per_byte: Stated,
    /// Sequential reads of the storage.
    pub storage_bytes_per_second: Stated,
}

/// A battery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Battery {
    /// Energy of a charge.
    pub watt_hours: Stated,
}

/// A network of heat capacities and resistances, and what the system does when it is hot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thermal {
    /// Air around it.
    pub ambient_celsius: Stated,
    /// What the die must not pass.
    pub ceiling_celsius: Stated,
    /// From the die outwards: each node passes its heat to the next, the last one to the air.
    pub node: Vec<Node>,
    /// Part of the top frequency that is allowed at a temperature of the die, hotter last; straight lines between.
    pub throttle: Vec<ThrottlePoint>,
}

/// A heat capacity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Name for people: die, case.
    pub name: String,
    /// C
    pub joules_per_kelvin: Stated,
    /// R to the next node, of the last one to the air.
    pub kelvin_per_watt: Stated,
}

/// A point of the throttling curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThrottlePoint {
    /// Of the die.
    pub celsius: Stated,
    /// Of the top frequency, 0 to 1.
    pub fraction: Stated,
}

/// Which kind of unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the field's own words")]
pub enum Kind {
    Cpu,
    Gpu,
    Npu,
}

impl Kind {
    /// `cpu`, `gpu`, `npu`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Cpu => "cpu",
            Kind::Gpu => "gpu",
            Kind::Npu => "npu",
        }
    }
}

/// In which numbers a unit multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the field's own words")]
pub enum Precision {
    Int8,
    F16,
    F32,
}

/// Something that computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Short name.
    pub id: String,
    /// Which kind; several clusters of CPU cores work together.
    pub kind: Kind,
    /// Cores of a cluster; 1 of a GPU or NPU.
    pub cores: usize,
    /// 10^9 operations (2 a multiply-add) a second of all its cores at the top frequency; `None` where it cannot, or nobody
    /// says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8_gops: Option<Stated>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f16_gops: Option<Stated>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f32_gops: Option<Stated>,
    /// Most that it can draw from memory.
    pub bytes_per_second: Stated,
    /// To begin one op.
    pub launch_seconds: Stated,
    /// All its cores computing at the top frequency.
    pub active_watts: Stated,
    /// Doing nothing.
    pub idle_watts: Stated,
    /// Frequencies as parts of the top one, ascending, the last 1.
    pub steps: Vec<Stated>,
}

impl Unit {
    /// Operations a second at the top frequency.
    pub fn rate(&self, precision: Precision) -> Option<f64> {
        let gops = match precision {
            Precision::Int8 => &self.int8_gops,
            Precision::F16 => &self.f16_gops,
            Precision::F32 => &self.f32_gops,
        };
        gops.as_ref().map(|gops| gops.value * 1e9)
    }

    /// The highest step that is not above `fraction`, or the lowest there is.
    pub(crate) fn step(&self, fraction: f64) -> f64 {
        let steps = self.steps.iter().map(|step| step.value);
        let lowest = self.steps.first().map_or(1.0, |step| step.value);
        steps.filter(|step| *step <= fraction + 1e-9).fold(lowest, f64::max)
    }
}

impl Device {
    /// Ids of the profiles inside the program.
    pub fn ids() -> impl Iterator<Item = &'static str> {
        DEVICES.iter().map(|(id, _)| *id)
    }

    /// The profile of that id.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`] where there is none.
    pub fn named(id: &str) -> Result<Self, DeviceError> {
        let Some((id, text)) = DEVICES.iter().find(|(known, _)| *known == id) else {
            let known = Device::ids().collect::<Vec<_>>().join(", ");
            return Err(DeviceError::Unknown { what: "device", name: id.to_owned(), known });
        };
        Self::parse(id, text)
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// [`DeviceError::Profile`] naming what is wrong; every number must say its source, or that it is assumed.
    pub fn parse(name: &str, text: &str) -> Result<Self, DeviceError> {
        let device: Device = toml::from_str(text).map_err(|e| profile(name, e.to_string()))?;
        device.check().map_err(|what| profile(name, what))?;
        Ok(device)
    }

    /// The text that [`Device::parse`] reads as this device: a number a line, each with its origin.
    pub fn to_toml(&self) -> String {
        crate::written::profile(self)
    }

    /// Units of that kind, the fastest first.
    pub fn units(&self, kind: Kind) -> impl Iterator<Item = &Unit> {
        self.unit.iter().filter(move |unit| unit.kind == kind)
    }

    /// Every number with its name, for reports.
    pub fn numbers(&self) -> Vec<(String, &Stated)> {
        let mut all: Vec<(String, &Stated)> = vec![
            ("idle_watts".into(), &self.idle_watts),
            ("memory.bytes".into(), &self.memory.bytes),
            ("memory.usable_bytes".into(), &self.memory.usable_bytes),
            ("memory.bytes_per_second".into(), &self.memory.bytes_per_second),
            ("memory.joules_per_byte".into(), &self.memory.joules_per_byte),
            ("memory.storage_bytes_per_second".into(), &self.memory.storage_bytes_per_second),
            ("thermal.ambient_celsius".into(), &self.thermal.ambient_celsius),
            ("thermal.ceiling_celsius".into(), &self.thermal.ceiling_celsius),
        ];
        all.extend(self.battery.iter().map(|b| ("battery.watt_hours".to_owned(), &b.watt_hours)));
        for node in &self.thermal.node {
            all.push((format!("thermal.{}.joules_per_kelvin", node.name), &node.joules_per_kelvin));
            all.push((format!("thermal.{}.kelvin_per_watt", node.name), &node.kelvin_per_watt));
        }
        for point in &self.thermal.throttle {
            all.push((format!("thermal.throttle at {}", point.celsius.value), &point.fraction));
        }
        for unit in &self.unit {
            let rates =
                [("int8", &unit.int8_gops), ("f16", &unit.f16_gops), ("f32", &unit.f32_gops)].into_iter();
            all.extend(rates.filter_map(|(n, r)| Some((format!("{}.{n}_gops", unit.id), r.as_ref()?))));
            all.push((format!("{}.bytes_per_second", unit.id), &unit.bytes_per_second));
            all.push((format!("{}.launch_seconds", unit.id), &unit.launch_seconds));
            all.push((format!("{}.active_watts", unit.id), &unit.active_watts));
            all.push((format!("{}.idle_watts", unit.id), &unit.idle_watts));
        }
        all
    }

    fn check(&self) -> Result<(), String> {
        let positive = |what: &str, stated: &Stated| match stated.value > 0.0 {
            true => Ok(()),
            false => Err(format!("{what} is 0")),
        };
        let wide = |what: &str, stated: &Stated| match stated.value >= LEAST_BANDWIDTH {
            true => Ok(()),
            false => Err(format!("{what} is below {LEAST_BANDWIDTH} bytes a second")),
        };
        wide("memory.bytes_per_second", &self.memory.bytes_per_second)?;
        wide("memory.storage_bytes_per_second", &self.memory.storage_bytes_per_second)?;
        if self.thermal.node.is_empty() {
            return Err("thermal.node is missing: at least the die".to_owned());
        }
        for node in &self.thermal.node {
            positive("joules_per_kelvin", &node.joules_per_kelvin)?;
            positive("kelvin_per_watt", &node.kelvin_per_watt)?;
        }
        for point in &self.thermal.throttle {
            positive("a throttle fraction", &point.fraction)?;
        }
        let ascends = |of: &[ThrottlePoint]| of.windows(2).all(|w| w[0].celsius.value < w[1].celsius.value);
        if !ascends(&self.thermal.throttle) {
            return Err("thermal.throttle is not sorted by temperature".to_owned());
        }
        if self.units(Kind::Cpu).next().is_none() {
            return Err("unit: no cluster of CPU cores".to_owned());
        }
        for unit in &self.unit {
            wide(&format!("{}.bytes_per_second", unit.id), &unit.bytes_per_second)?;
            let rates = [&unit.int8_gops, &unit.f16_gops, &unit.f32_gops];
            if let Some(slow) = rates.into_iter().flatten().find(|gops| gops.value < LEAST_GOPS) {
                return Err(format!(
                    "{}: {} GOP/s is no rate; leave out what is unknown",
                    unit.id, slow.value
                ));
            }
            if unit.cores == 0 {
                return Err(format!("{}: no cores", unit.id));
            }
            let ascending = unit.steps.windows(2).all(|w| w[0].value < w[1].value);
            if !ascending || unit.steps.first().is_none_or(|s| s.value <= 0.0) {
                return Err(format!("{}.steps do not ascend from above 0", unit.id));
            }
            if unit.steps.last().is_none_or(|s| s.value != 1.0) {
                return Err(format!("{}.steps do not end at 1", unit.id));
            }
        }
        Ok(())
    }
}
