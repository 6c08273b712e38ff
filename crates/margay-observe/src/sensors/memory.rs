//! Memory of the watched process and of the machine: `/proc/PID/status`, `/proc/meminfo`.
//!
//! `VmRSS` counts pages of mapped files, a model's among them, which the system can take back at any time; `RssAnon` is
//! what only the process's end gives back. Both are told. Source: Linux, `Documentation/filesystems/proc.rst`, table 1-2.

use super::{Family, Finding, Moment, Sensor, What, process::descendants};
use crate::{Channels, Root, Sample, report::bytes, root::kib_field};

pub(super) const FAMILY: Family = Family {
    id: "memory",
    summary: "memory of the watched process, and what the machine has left",
    probe: |_, what: &What| {
        let status = what.process.folder().map(|folder| folder + "/status");
        Box::new(Memory { status, tree: what.process.tree() })
    },
};

const MEMINFO: &str = "proc/meminfo";

struct Memory {
    status: Option<String>,
    /// The process whose children count as well.
    tree: Option<u32>,
}

impl Sensor for Memory {
    fn read(&mut self, root: &Root, moment: &mut Moment<'_>) {
        let sample = &mut *moment.sample;
        if let Some(status) = self.status.as_ref().and_then(|path| root.read(path)) {
            sample.rss_bytes = kib_field(&status, "VmRSS");
            sample.peak_rss_bytes = kib_field(&status, "VmHWM");
            sample.anonymous_bytes = kib_field(&status, "RssAnon");
            sample.file_bytes = kib_field(&status, "RssFile");
        }
        for pid in self.tree.map(|pid| descendants(root, pid)).unwrap_or_default() {
            let Some(status) = root.read(&format!("proc/{pid}/status")) else { continue };
            let add = |sum: &mut Option<u64>, key: &str| {
                *sum = sum.zip(kib_field(&status, key)).map(|(a, b)| a.saturating_add(b)).or(*sum);
            };
            add(&mut sample.rss_bytes, "VmRSS");
            add(&mut sample.anonymous_bytes, "RssAnon");
            add(&mut sample.file_bytes, "RssFile");
            // Their peaks need not be of one moment.
            sample.peak_rss_bytes = None;
        }
        sample.available_bytes = root.read(MEMINFO).and_then(|text| kib_field(&text, "MemAvailable"));
    }

    fn findings(&self, root: &Root, _: &Channels, sample: &Sample) -> Vec<Finding> {
        let available = Finding::of(
            &FAMILY,
            "available to a new process",
            MEMINFO,
            sample.available_bytes.map(bytes),
            root,
        );
        let Some(status) = &self.status else { return vec![available] };
        let quantities = [
            ("process RSS", sample.rss_bytes),
            ("process RSS, peak", sample.peak_rss_bytes),
            ("process anonymous", sample.anonymous_bytes),
            ("process file pages", sample.file_bytes),
        ];
        let of_process =
            quantities.map(|(name, value)| Finding::of(&FAMILY, name, status, value.map(bytes), root));
        of_process.into_iter().chain([available]).collect()
    }
}
