//! Profiles and engines: the lists are the folders, every number says whence, and what is wrong is named.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

use margay_device::{Device, Engine, Kind, WhatIf};
use std::collections::BTreeSet;

fn files(folder: &str) -> BTreeSet<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| Some(name.to_str()?.strip_suffix(".toml")?.to_owned())).collect()
}

#[test]
fn lists_are_folders_and_all_can_be_read() {
    assert_eq!(files("profiles"), Device::ids().map(str::to_owned).collect());
    assert_eq!(files("engines"), Engine::ids().map(str::to_owned).collect());
    for id in Device::ids() {
        let device = Device::named(id).unwrap_or_else(|e| panic!("{e}"));
        assert!(device.numbers().len() > 20, "{id}");
        let written = serde_json::to_string(&device).unwrap();
        assert_eq!(serde_json::from_str::<Device>(&written).unwrap(), device, "{id}: written and read");
        assert!(device.units(Kind::Cpu).next().is_some() && device.units(Kind::Gpu).next().is_some(), "{id}");
    }
    for id in Engine::ids() {
        Engine::named(id).unwrap_or_else(|e| panic!("{e}"));
    }
    margay_device::Cloud::assumed().unwrap();
    margay_device::Study::load().unwrap();
    assert!(Device::named("nokia").unwrap_err().to_string().contains("oneplus-13r"));
    assert!(Engine::named("x").unwrap_err().to_string().contains("llama.cpp"));
    assert!(WhatIf::list("kv-int8, kv-int4").unwrap_err().to_string().contains("name one"));
    assert!(WhatIf::list("overlap,x").unwrap_err().to_string().contains("kv-int4"));
}

#[test]
fn what_is_wrong_in_a_profile_is_named() {
    let text = include_str!("../profiles/a17-pro.toml");
    assert_eq!(Device::parse("mine", text).unwrap(), Device::named("a17-pro").unwrap());
    for (from, to, part) in [
        ("chip = ", "chop = ", "chop"),
        (", assumed = \"a room\"", "", "neither source"),
        ("assumed = \"a room\"", "assumed = \" \"", "neither source"),
        ("assumed = \"a room\"", "assumed = \"a room\", source = \"x\"", "both"),
        ("value = 25, assumed = \"a room\"", "value = -25, assumed = \"a room\"", "no size"),
        ("kind = \"cpu\"", "kind = \"tpu\"", "tpu"),
        ("kind = \"cpu\"", "kind = \"gpu\"", "no cluster of CPU cores"),
        ("cores = 2", "cores = 0", "no cores"),
        ("int8_gops = { value = 967.7", "int8_gops = { value = 0", "leave out what is unknown"),
        ("bytes_per_second = { value = 5.12e+10", "bytes_per_second = { value = 1", "below 1000 bytes"),
        (
            "value = 1, assumed = \"the top frequency\"",
            "value = 1.5, assumed = \"the top frequency\"",
            "end at 1",
        ),
        ("celsius = { value = 75", "celsius = { value = 90", "not sorted"),
        ("[[thermal.node]]", "[[thermal.knot]]", "node"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = Device::parse("mine", &text.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("mine"), "{from}: {error}");
    }
}

/// Far slower than any device, it ends at once all the same.
#[test]
fn the_slowest_device_that_can_be_written_is_simulated() {
    use margay_device::{Programs, Query, Setup, Workload, simulate};
    let mut device = Device::named("a17-pro").unwrap();
    for unit in &mut device.unit {
        [&mut unit.int8_gops, &mut unit.f16_gops].into_iter().flatten().for_each(|gops| gops.value = 1e-3);
        unit.bytes_per_second.value = 1e3;
    }
    let model = margay_model::shapes::shape("phi-2").unwrap().config().unwrap().programs().unwrap();
    let programs = Programs { vision: None, text: &model.text };
    let format = |_: &margay_graph::Program, _: &margay_graph::WeightSpec| margay_tensor::DType::F16;
    let workload = Workload::count("phi-2", programs, &format, 2.0, Query::text(10, 2)).unwrap();
    let run = simulate(&Setup::new(&device, &Engine::named("margay").unwrap()), &workload).unwrap();
    assert!(run.seconds() > 1e6 && run.seconds().is_finite() && run.joules.is_finite());
}
