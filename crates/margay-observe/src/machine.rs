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

/// Processors that are online; `None` where the system does not say.
pub fn logical_cores(root: &Root) -> Option<usize> {
    let online = root.read("sys/devices/system/cpu/online").and_then(|list| count_cpu_list(list.trim()));
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

/// Number of processors in a kernel list such as `0-3,8,10-11`.
fn count_cpu_list(list: &str) -> Option<usize> {
    let mut count = 0usize;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted_and_nonsense_is_unknown() {
        for (list, count) in [("0", Some(1)), ("0-7", Some(8)), ("0-3,8,10-11", Some(7))] {
            assert_eq!(count_cpu_list(list), count, "{list}");
        }
        for list in ["", "x", "3-1", "0-", "0-18446744073709551615"] {
            assert_eq!(count_cpu_list(list), None, "{list}");
        }
    }
}
