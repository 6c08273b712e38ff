//! Memory of the watched process's control group, version 2.
//!
//! `/proc/PID/cgroup` names the group in its line `0::/PATH`. In a container that line is often `/`, and the group's files
//! lie at the top of the mount. Source: Linux, `Documentation/admin-guide/cgroup-v2.rst`, "Memory Interface Files".

use super::{Family, Finding, Moment, Sensor, What};
use crate::{Channels, Root, Sample, parse::number, report::bytes};

pub(super) const FAMILY: Family = Family {
    id: "cgroup",
    summary: "memory of the process's control group (version 2)",
    probe: |root, what| Box::new(Cgroup::probe(root, what)),
};

/// Where version 2 is mounted: alone, or beside version 1.
const MOUNTS: &[&str] = &["sys/fs/cgroup", "sys/fs/cgroup/unified"];

struct Cgroup {
    folder: Option<String>,
}

impl Cgroup {
    fn probe(root: &Root, what: &What) -> Self {
        let folder = what.process.folder().and_then(|process| {
            let text = root.read(&format!("{process}/cgroup"))?;
            let group = group(&text)?;
            let folders = MOUNTS.iter().map(|mount| format!("{mount}{}", group.trim_end_matches('/')));
            folders.into_iter().find(|folder| root.read(&format!("{folder}/memory.current")).is_some())
        });
        Cgroup { folder }
    }
}

impl Sensor for Cgroup {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let Some(folder) = &self.folder else { return };
        let read = |file: &str| root.read(&format!("{folder}/{file}")).and_then(|text| number(&text));
        moment.sample.cgroup_bytes = read("memory.current");
        moment.sample.cgroup_peak_bytes = read("memory.peak");
        let stat = root.read(&format!("{folder}/memory.stat"));
        moment.sample.cgroup_file_bytes = stat.as_deref().and_then(file_bytes);
        // "max" is no number: no limit.
        moment.sample.cgroup_max_bytes = read("memory.max");
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        let Some(folder) = &self.folder else {
            let path = format!("{}/.../memory.current", MOUNTS[0]);
            let why = "no control group of version 2 with a memory controller";
            return vec![Finding::nowhere(&FAMILY, "group memory", path, why)];
        };
        let quantities = [
            ("group memory", "memory.current", sample.cgroup_bytes),
            ("group memory, peak", "memory.peak", sample.cgroup_peak_bytes),
        ];
        let mut findings: Vec<Finding> = quantities
            .into_iter()
            .map(|(name, file, value)| {
                Finding::of(&FAMILY, name, format!("{folder}/{file}"), value.map(bytes), root)
            })
            .collect();
        let path = format!("{folder}/memory.max");
        let unlimited = root.read(&path).filter(|text| text.trim() == "max").map(|_| "no limit".to_owned());
        let limit = sample.cgroup_max_bytes.map(bytes).or(unlimited);
        findings.push(Finding::of(&FAMILY, "group memory, limit", path, limit, root));
        findings
    }
}

/// The group in the text of `/proc/PID/cgroup`, with its leading slash.
pub(crate) fn group(text: &str) -> Option<&str> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("0::"));
    lines.next().filter(|group| group.starts_with('/'))
}

/// Pages of files in the text of `memory.stat`.
fn file_bytes(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("file ")).and_then(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_files_are_told_from_the_other_lines() {
        assert_eq!(file_bytes("anon 5\nfile 4096\nfile_mapped 7\n"), Some(4096));
        assert_eq!(file_bytes("anon 5\nfile_mapped 7\n"), None);
        assert_eq!(file_bytes("file x\n"), None);
    }

    #[test]
    fn the_line_of_version_2_names_the_group() {
        assert_eq!(group("9:name=systemd:/\n0::/user.slice/a.scope\n"), Some("/user.slice/a.scope"));
        assert_eq!(group("0::/"), Some("/"));
        for text in ["", "4:memory:/x", "0::", "0::x"] {
            assert_eq!(group(text), None, "{text}");
        }
    }
}
