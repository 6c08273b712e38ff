//! What this machine is.

use crate::{
    Root,
    root::{field, kib_field},
};
use serde::Serialize;

/// Names of ARM cores by `CPU part`, for implementer 0x41. Source: `arch/arm64/include/asm/cputype.h` of Linux.
const ARM_CORES: &[(u32, &str)] = &[
    (0xd03, "Cortex-A53"),
    (0xd04, "Cortex-A35"),
    (0xd05, "Cortex-A55"),
    (0xd07, "Cortex-A57"),
    (0xd08, "Cortex-A72"),
    (0xd09, "Cortex-A73"),
    (0xd0a, "Cortex-A75"),
    (0xd0b, "Cortex-A76"),
    (0xd0c, "Neoverse-N1"),
    (0xd0d, "Cortex-A77"),
    (0xd40, "Neoverse-V1"),
    (0xd41, "Cortex-A78"),
    (0xd44, "Cortex-X1"),
    (0xd46, "Cortex-A510"),
    (0xd47, "Cortex-A710"),
    (0xd48, "Cortex-X2"),
    (0xd49, "Neoverse-N2"),
    (0xd4d, "Cortex-A715"),
    (0xd4e, "Cortex-X3"),
    (0xd4f, "Neoverse-V2"),
    (0xd80, "Cortex-A520"),
    (0xd81, "Cortex-A720"),
    (0xd82, "Cortex-X4"),
];

/// A list of processors that names more than this is taken for nonsense.
const MOST_CORES: usize = 1 << 16;

/// Memory of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What a new process can take without swapping, where the kernel says.
    pub available_bytes: Option<u64>,
}

/// Name of the processor for people; `None` where the system does not say.
///
/// x86 has it in `/proc/cpuinfo`. ARM names each core by number: the names of the distinct cores are joined, after the
/// board's own name where there is one.
pub fn cpu_name(root: &Root) -> Option<String> {
    let cpuinfo = root.read("proc/cpuinfo")?;
    if let Some(name) = field(&cpuinfo, "model name") {
        return Some(name.to_owned());
    }
    let board = root.read("proc/device-tree/model").map(|m| m.trim_matches(['\0', '\n', ' ']).to_owned());
    let board = board.or_else(|| field(&cpuinfo, "Hardware").map(str::to_owned)).filter(|b| !b.is_empty());
    let cores = arm_cores(&cpuinfo);
    match (board, cores.is_empty()) {
        (Some(board), true) => Some(board),
        (Some(board), false) => Some(format!("{board} ({})", cores.join(", "))),
        (None, false) => Some(cores.join(", ")),
        (None, true) => None,
    }
}

/// Cores that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CoreKind {
    /// The system's numbers of them, in order.
    pub cores: Vec<usize>,
    /// How much work such a core does, by the kernel's account: 1024 is the fastest core of the machine. `None` where the
    /// kernel does not say.
    pub capacity: Option<u64>,
    /// Highest clock rate, kHz; `None` where the kernel does not say.
    pub max_khz: Option<u64>,
}

/// Kinds of cores that are online, the fastest first; empty where the system does not say.
pub fn core_kinds(root: &Root) -> Vec<CoreKind> {
    let mut kinds: Vec<CoreKind> = Vec::new();
    for core in online(root).unwrap_or_default() {
        let number = |file: &str| {
            let text = root.read(&format!("sys/devices/system/cpu/cpu{core}/{file}"))?;
            text.trim().parse::<u64>().ok()
        };
        let (capacity, max_khz) = (number("cpu_capacity"), number("cpufreq/cpuinfo_max_freq"));
        match kinds.iter_mut().find(|k| (k.capacity, k.max_khz) == (capacity, max_khz)) {
            Some(kind) => kind.cores.push(core),
            None => kinds.push(CoreKind { cores: vec![core], capacity, max_khz }),
        }
    }
    kinds.sort_by_key(|k| std::cmp::Reverse((k.capacity, k.max_khz)));
    kinds
}

/// Cores that are online, those that share a core's units counted once; `None` where the system does not say.
pub fn physical_cores(root: &Root) -> Option<usize> {
    let mut firsts = Vec::new();
    for core in online(root)? {
        let siblings =
            root.read(&format!("sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"))?;
        firsts.push(*cpu_list(siblings.trim())?.first()?);
    }
    firsts.sort_unstable();
    firsts.dedup();
    Some(firsts.len())
}

fn online(root: &Root) -> Option<Vec<usize>> {
    cpu_list(root.read("sys/devices/system/cpu/online")?.trim())
}

/// Processors that are online; `None` where the system does not say.
pub fn logical_cores(root: &Root) -> Option<usize> {
    let online = online(root).map(|cores| cores.len());
    online.or_else(|| {
        let cpuinfo = root.read("proc/cpuinfo")?;
        let processors =
            cpuinfo.lines().filter(|l| l.split_once(':').is_some_and(|(k, _)| k.trim() == "processor"));
        Some(processors.count()).filter(|n| *n > 0)
    })
}

/// Memory of the machine; `None` where the system does not say.
pub fn memory(root: &Root) -> Option<Memory> {
    let meminfo = root.read("proc/meminfo")?;
    let total_bytes = kib_field(&meminfo, "MemTotal")?;
    Some(Memory { total_bytes, available_bytes: kib_field(&meminfo, "MemAvailable") })
}

/// The kernel's release, such as `6.1.0-18-arm64`; `None` where the system does not say.
pub fn kernel(root: &Root) -> Option<String> {
    root.read("proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// What chooses the cores' clock rates, each kind once; empty where the system does not say.
pub fn governors(root: &Root) -> Vec<String> {
    let of = |core| root.read(&format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"));
    let mut all: Vec<String> = online(root)
        .unwrap_or_default()
        .into_iter()
        .filter_map(of)
        .map(|text| text.trim().to_owned())
        .collect();
    all.sort();
    all.dedup();
    all
}

/// What the battery holds when full, in watt-hours: `energy_full`, or `charge_full` at the voltage it is designed for. `None`
/// without a battery, with several, and where it does not say. Source: Linux, `Documentation/ABI/testing/sysfs-class-power`
/// (microwatt-hours, microampere-hours, microvolts).
pub fn battery_watt_hours(root: &Root) -> Option<f64> {
    let folder = "sys/class/power_supply";
    let read = |name: &str, file: &str| root.read(&format!("{folder}/{name}/{file}"));
    let is_battery = |name: &String| {
        read(name, "type").is_some_and(|t| t.trim() == "Battery")
            && read(name, "scope").is_none_or(|s| s.trim() != "Device")
    };
    let batteries: Vec<String> = root.list(folder).into_iter().filter(is_battery).collect();
    let [name] = &batteries[..] else { return None };
    let number =
        |file: &str| read(name, file)?.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    let energy = || number("energy_full").map(|micro| micro / 1e6);
    let charge = || {
        let volts = ["voltage_min_design", "voltage_max_design"].iter().find_map(|file| number(file))? / 1e6;
        Some(number("charge_full")? / 1e6 * volts)
    };
    // Less than a watch's or more than a laptop's is a unit that was taken for another.
    energy().or_else(charge).filter(|hours| (0.3..=200.0).contains(hours))
}

/// Distinct cores in the order in which they are listed.
fn arm_cores(cpuinfo: &str) -> Vec<String> {
    let mut cores = Vec::new();
    let mut implementer = None;
    for (key, value) in cpuinfo.lines().filter_map(|l| l.split_once(':')) {
        let number = || u32::from_str_radix(value.trim().trim_start_matches("0x"), 16).ok();
        match key.trim() {
            "CPU implementer" => implementer = number(),
            "CPU part" => {
                let Some(part) = number() else { continue };
                let known =
                    ARM_CORES.iter().find(|(id, _)| implementer == Some(0x41) && *id == part).map(|c| c.1);
                let name = known.map_or_else(
                    || format!("implementer {:#04x} part {part:#05x}", implementer.unwrap_or(0)),
                    str::to_owned,
                );
                if !cores.contains(&name) {
                    cores.push(name);
                }
            }
            _ => {}
        }
    }
    cores
}

/// Processors in a kernel list such as `0-3,8,10-11`, at most 65536 of them.
fn cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST_CORES {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_battery_holds_is_told_in_watt_hours() {
        let folder = tempfile::tempdir().unwrap();
        let supply = |name: &str, files: &[(&str, &str)]| {
            let place = folder.path().join("sys/class/power_supply").join(name);
            std::fs::create_dir_all(&place).unwrap();
            for (file, text) in files {
                std::fs::write(place.join(file), text).unwrap();
            }
        };
        let root = Root::new(folder.path());
        assert_eq!(battery_watt_hours(&root), None);
        supply("mouse", &[("type", "Battery\n"), ("scope", "Device\n"), ("energy_full", "1000000")]);
        supply("ac", &[("type", "Mains\n")]);
        supply("bms", &[("type", "Battery\n"), ("charge_full", "5000000\n")]);
        assert_eq!(battery_watt_hours(&root), None, "no voltage");
        supply("bms", &[("voltage_min_design", "3850000\n")]);
        assert!((battery_watt_hours(&root).unwrap() - 19.25).abs() < 1e-9, "5000 mAh at 3.85 V");
        supply("bms", &[("charge_full", "5000\n")]);
        assert_eq!(battery_watt_hours(&root), None, "milliampere-hours would be read as micro");
        supply("bms", &[("energy_full", "18000000\n")]);
        assert_eq!(battery_watt_hours(&root), Some(18.0));
        supply("other", &[("type", "Battery\n")]);
        assert_eq!(battery_watt_hours(&root), None, "nobody knows which");
    }

    #[test]
    fn cpu_lists_are_read_and_nonsense_is_unknown() {
        for (list, cores) in [("0", &[0][..]), ("0-2", &[0, 1, 2]), ("0-1,8,10-11", &[0, 1, 8, 10, 11])] {
            assert_eq!(cpu_list(list).as_deref(), Some(cores), "{list}");
        }
        for list in ["", "x", "3-1", "0-", "0-18446744073709551615"] {
            assert_eq!(cpu_list(list), None, "{list}");
        }
    }
}
