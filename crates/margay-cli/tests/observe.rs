//! `margay observe`: what is seen, a recording of it, and its reports.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]
#![cfg(target_os = "linux")]

mod program;

use program::{run, word};
use serde_json::Value;

fn tree(name: &str) -> String {
    format!("{}/../margay-observe/tests/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_recording_of_a_command_is_replayed_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| word(folder.path(), name);
    let (tar, html, trace) = (file("tree.tar"), file("now.html"), file("t.json"));
    let work = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; sleep 0.4";
    let recorded = run(["observe", "record", "-o", &tar, "--period", "50", "--", "sh", "-c", work]);
    assert!(recorded.stderr.contains("the process ended"), "{}", recorded.stderr);
    recorded.ok();

    let report = run(["observe", "report", "--root", &tar, "--json"]).json();
    let samples = report["series"]["samples"].as_array().unwrap();
    assert!(samples.len() >= 6, "{} samples of half a second", samples.len());
    // The shell counted: within the recording it used a core, and at the end it slept.
    let cpu: Vec<f64> = samples.iter().filter_map(|sample| sample["process_cpu_percent"].as_f64()).collect();
    assert!(cpu.iter().any(|percent| *percent > 20.0), "{cpu:?}");
    assert!(samples.iter().any(|sample| sample["rss_bytes"].as_u64() > Some(0)));

    let csv = run(["observe", "report", "--root", &tar, "--csv"]).ok();
    assert_eq!(csv.lines().count(), samples.len() + 1, "a row a sample, and the header");
    let words = run(["observe", "report", "--root", &tar]).ok();
    assert!(words.contains("CPU") && words.contains("unknown"), "{words}");
    let written = run(["observe", "report", "--root", &tar, "--html", &html, "--trace", &trace]);
    assert!(written.stderr.contains("now.html"), "{}", written.stderr);
    assert_eq!(written.ok(), "", "what went into files is not printed as well");
    assert!(std::fs::read_to_string(&html).unwrap().contains("<svg"));
    let trace: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().is_some_and(|events| !events.is_empty()), "{trace}");
    let seen = run(["observe", "--root", &tar, "--json"]).json();
    assert!(!seen["findings"].as_array().unwrap().is_empty());
    // The same recording says the same thing each time.
    assert_eq!(report, run(["observe", "report", "--root", &tar, "--json"]).json());
}

#[test]
fn a_tree_of_another_device_is_looked_at_as_this_machine_is() {
    let phone = run(["observe", "--root", &tree("devices/adreno-phone"), "--json"]);
    let findings = phone.json()["findings"].as_array().unwrap().clone();
    let known = |quantity: &str| {
        findings.iter().any(|f| {
            f["quantity"].as_str().is_some_and(|name| name.contains(quantity)) && !f["value"].is_null()
        })
    };
    assert!(known("GPU") && known("cpu-0-0-0"), "{findings:?}");
    let here = run(["observe"]).ok();
    assert!(here.contains("SEEN") && here.contains("UNKNOWN"), "{here}");
}

#[test]
fn what_is_no_recording_and_no_time_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = word(folder.path(), "garbage.tar");
    std::fs::write(&garbage, "no tar").unwrap();
    run(["observe", "report", "--root", &garbage]).fails(1, &["garbage.tar"]);
    run(["observe", "report", "--root", "no-such.tar"]).fails(1, &["no-such.tar"]);
    let out = word(folder.path(), "t.tar");
    run(["observe", "record", "-o", &out, "--seconds", "nan"]).fails(2, &["no stretch of time"]);
    run(["observe", "record", "-o", &out, "--", "no-such-program"]).fails(1, &["no-such-program"]);
    assert!(!std::path::Path::new(&out).exists(), "nothing half is left");
}
