//! Recorded devices replay, and say what they should.

use margay_observe::{Recording, Sample, Series, Timeline, replay, report};
use std::{path::PathBuf, sync::Arc};

const DEVICES: &[&str] =
    &["adreno-phone", "mali-phone", "jetson-orin", "raspberry-pi-5", "laptop-rapl", "container"];

fn folder(device: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/devices")).join(device)
}

fn recording(device: &str) -> Recording {
    Recording::open(&folder(device)).expect("the fixture is a recording")
}

fn series(device: &str) -> Series {
    replay(&Arc::new(recording(device)))
}

fn all<T>(series: &Series, value: fn(&Sample) -> T) -> Vec<T> {
    series.samples.iter().map(value).collect()
}

/// Values to a thousandth, so that they can be written down.
fn rounded(series: &Series, value: fn(&Sample) -> Option<f64>) -> Vec<Option<f64>> {
    let round = |value: f64| (value * 1e3).round() / 1e3;
    all(series, value).into_iter().map(|value| value.map(round)).collect()
}

#[test]
fn every_device_reports_as_written_down() {
    // To write the reports anew: MARGAY_BLESS=1, and read the difference.
    let bless = std::env::var_os("MARGAY_BLESS").is_some();
    for device in DEVICES {
        let recording = Arc::new(recording(device));
        let title = recording.about().machine.clone().unwrap_or_else(|| "unknown machine".to_owned());
        let timeline = Timeline::of_samples(title, replay(&recording));
        let said = report::terminal_report(&timeline, 100);
        let golden = folder(device).join("report.txt");
        if bless {
            std::fs::write(&golden, &said).unwrap();
        }
        let golden = std::fs::read_to_string(&golden).unwrap().replace('\r', "");
        assert_eq!(said, golden, "{device}");
    }
}

#[test]
fn adreno_phone() {
    let series = series("adreno-phone");
    let cpu = rounded(&series, |s| s.cpu_percent);
    assert_eq!(cpu, [None, Some(600.0), Some(620.0), Some(640.0), Some(350.0), Some(40.0)]);
    // Ticks and nanoseconds agree within two ticks: the nanoseconds of the two threads count.
    let process = rounded(&series, |s| s.process_cpu_percent);
    assert_eq!(process, [None, Some(559.0), Some(580.0), Some(598.0), Some(300.0), Some(11.0)]);
    let gpu = rounded(&series, |s| s.gpu_percent);
    assert_eq!(gpu, [Some(0.0), Some(52.0), Some(88.0), Some(93.0), Some(12.0), Some(0.0)]);
    assert_eq!(all(&series, |s| s.gpu_hertz)[3], Some(903e6));
    let zones: Vec<&str> = series.channels.zones.iter().map(String::as_str).collect();
    assert_eq!(zones, ["cpu-0-0-0", "cpu-2-0-0", "gpuss-0", "mmw0", "skin-therm"], "no current, no charge");
    assert!(series.samples.iter().all(|s| s.zone_celsius[3].is_none()), "a dead sensor");
    assert_eq!(rounded(&series, |s| s.temperature_celsius)[3], Some(94.6));
    // The gauge moves first in sample 2; until then nobody knows which of the two counts.
    assert_eq!(series.channels.batteries[series.channels.battery.unwrap()], "bms");
    let watts = rounded(&series, |s| s.power_watts);
    assert_eq!(watts, [None, None, Some(11.165), Some(11.165), Some(10.062), Some(10.062)]);
    assert_eq!(all(&series, |s| s.charging)[5], Some(false));
    assert_eq!(all(&series, |s| s.core_cap_hertz[7]).last().unwrap(), &Some(2_702_400_000.0));
    assert_eq!(
        (all(&series, |s| s.npu_percent)[3], all(&series, |s| s.process_gpu_percent)[3]),
        (None, None)
    );
    assert_eq!(all(&series, |s| s.peak_rss_bytes)[3], Some(2_400_000 * 1024));
}

#[test]
fn mali_phone() {
    let series = series("mali-phone");
    let gpu = rounded(&series, |s| s.gpu_percent);
    assert_eq!(gpu, [Some(2.0), Some(63.0), Some(97.0), Some(96.0), Some(21.0), Some(1.0)]);
    assert_eq!(all(&series, |s| s.gpu_hertz)[2], Some(1.3e9));
    assert_eq!(rounded(&series, |s| s.temperature_celsius)[3], Some(78.0), "whole degrees");
    let dead = series.samples.iter().all(|s| s.zone_celsius[2].is_none() && s.zone_celsius[3].is_none());
    assert!(dead, "0 and a million are no temperatures");
    // Milliamperes by millivolts, until a charger feeds the device.
    let watts = rounded(&series, |s| s.power_watts);
    assert_eq!(watts, [None, Some(7.215), Some(8.553), Some(8.48), Some(3.529), None]);
    assert_eq!(all(&series, |s| s.charging)[5], Some(true));
    let why: Vec<_> = series.findings.iter().filter_map(|f| f.why.as_deref()).collect();
    assert!(why.iter().any(|why| why.starts_with("charging")), "{why:?}");
}

#[test]
fn jetson_orin() {
    let series = series("jetson-orin");
    let gpu = rounded(&series, |s| s.gpu_percent);
    assert_eq!(gpu, [Some(0.0), Some(41.2), Some(99.5), Some(99.0), Some(12.0), Some(0.0)]);
    assert_eq!(series.channels.rails, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]);
    // 12 V x 1.5 A + 12 V x 0.35 A + 5 V x 0.8 A; the fourth rail hangs on the third.
    let watts = rounded(&series, |s| s.power_watts);
    assert_eq!(watts, [Some(6.96), Some(15.5), Some(26.2), Some(25.31), Some(11.05), Some(7.19)]);
    assert_eq!(rounded(&series, |s| s.temperature_celsius)[3], Some(55.2));
    assert!(series.samples.iter().all(|s| s.zone_celsius[2].is_none()), "-256000 is a sensor without power");
}

#[test]
fn raspberry_pi_5() {
    let series = series("raspberry-pi-5");
    let low = all(&series, |s| s.undervoltage);
    assert_eq!(low, [false, false, false, true, true, false].map(Some));
    assert_eq!(all(&series, |s| s.throttled_bits)[4], Some(0x50005));
    let gpu = rounded(&series, |s| s.process_gpu_percent);
    assert_eq!(gpu, [None, Some(10.0), Some(25.0), Some(25.0), Some(0.0), Some(0.0)]);
    assert!(all(&series, |s| s.gpu_percent).iter().all(Option::is_none), "v3d counts by process only");
    assert!(all(&series, |s| s.power_watts).iter().all(Option::is_none), "no file tells a Pi's power");
    assert_eq!(all(&series, |s| s.core_cap_hertz[0])[4], Some(1.5e9));
}

#[test]
fn laptop_with_rapl_wraps_within_the_recording() {
    let series = series("laptop-rapl");
    assert_eq!(series.channels.counters, ["package-0", "package-0/core"], "the mmio copy is left out");
    let joules = rounded(&series, |s| s.counter_joules[0]);
    assert_eq!(joules, [0.0, 1.5, 3.0, 5.0, 6.5, 7.0].map(Some), "it wraps behind sample 2");
    let watts = rounded(&series, |s| s.power_watts);
    assert_eq!(watts, [None, Some(15.0), Some(15.0), Some(20.0), Some(15.0), Some(5.0)]);
    let (from, to) = series.range().unwrap();
    let energy = series.energy(from, to).unwrap();
    assert!((energy.joules - 7.0).abs() < 1e-6 && (energy.known - 1.0).abs() < 1e-9, "{energy:?}");
    let npu = rounded(&series, |s| s.npu_percent);
    assert_eq!(npu, [None, Some(0.0), Some(50.0), Some(100.0), Some(25.0), Some(0.0)]);
    assert_eq!(rounded(&series, |s| s.process_gpu_percent)[3], Some(40.0));
    assert_eq!(rounded(&series, |s| s.cpu_pressure_percent)[3], Some(10.0));
    assert_eq!(all(&series, |s| (s.cgroup_bytes, s.cgroup_max_bytes))[2], (Some(715_000_000), None));
    assert_eq!(all(&series, |s| s.battery_watts[0])[1], None, "on external power");
}

#[test]
fn a_container_with_nothing_knows_nothing() {
    let recording = Arc::new(recording("container"));
    let series = replay(&recording);
    assert_eq!(series.samples.len(), 3);
    for sample in &series.samples {
        let empty = Sample { at: sample.at, over: sample.over, ..Sample::default() };
        assert_eq!(*sample, empty);
    }
    assert!(series.findings.iter().all(|finding| finding.value.is_none() && finding.why.is_some()));
}

#[test]
fn every_form_of_report_is_written_of_every_device() {
    for device in DEVICES {
        let timeline = Timeline::of_samples(*device, series(device));
        for writer in report::WRITERS {
            let text = writer.write(&timeline).unwrap();
            match writer.id() {
                "json" | "trace" => {
                    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert!(value.is_object());
                }
                "csv" => assert_eq!(text.lines().count(), timeline.series.samples.len() + 1),
                "html" => {
                    assert!(text.starts_with("<!DOCTYPE html>") && text.ends_with("</html>\n"));
                    assert!(!text.contains("<script") && !text.contains("http"), "nothing is loaded");
                    assert!(!text.contains("NaN") && !text.contains("inf "), "{device}");
                }
                _ => assert!(text.contains(device)),
            }
        }
    }
}
