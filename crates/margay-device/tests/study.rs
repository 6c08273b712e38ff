//! The fit of the shipped profile and engines to the study, repeated.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]
#![allow(clippy::print_stderr, reason = "the table that a failure is read from")]

mod question;

use margay_device::{Fitted, Study, Workload};
use margay_graph::Stage;
use margay_tensor::DType;
use question::{Tokens, seeing, workload};
use std::collections::BTreeMap;

/// 4-bit decoder as llama.cpp's q4_0 files have it, head in 6 bits, vision in half precision.
fn workloads(study: &Study) -> BTreeMap<String, Workload> {
    let count = |run: &margay_device::StudyRun| {
        let config = seeing(&run.shape);
        let tokens = Tokens { prefix: 0, prompt: run.prompt_tokens, answer: run.answer_tokens };
        let format = |program: &margay_graph::Program, spec: &margay_graph::WeightSpec| {
            use margay_graph::Role;
            match (program.stage(), spec.role) {
                _ if spec.shape.rank() < 2 => DType::F32,
                (Stage::Encode | Stage::Project, _) => DType::F16,
                (_, Role::Output) => DType::Q6_K,
                _ => DType::Q4_0,
            }
        };
        let workload = workload(&run.name, &config, tokens, &format, 2.0);
        assert_eq!(workload.query.visual_tokens, run.visual_tokens, "{}", run.id);
        (run.id.clone(), workload)
    };
    study.runs.iter().map(count).collect()
}

/// The files keep four digits.
const DIGITS: f64 = 0.01;

#[test]
fn shipped_numbers_are_what_fitting_gives() {
    let study = Study::load().unwrap();
    let workloads = workloads(&study);
    let shipped = Fitted::shipped(&study).unwrap();
    let fit = shipped.clone().calibrated(&study, &workloads).unwrap();
    let near = |what: &str, is: f64, fits: f64| {
        eprintln!("{what}: {is} {fits:.4}");
        (is / fits - 1.0).abs() < DIGITS
    };
    let mut all = true;
    for (id, engine) in &fit.engines {
        let is = &shipped.engines[id];
        all &= near(&format!("{id} load"), is.load.value, engine.load.value);
        for (stage, is, fits) in [
            ("encode", &is.encode, &engine.encode),
            ("prefill", &is.prefill, &engine.prefill),
            ("decode", &is.decode, &engine.decode),
        ] {
            all &= near(&format!("{id} {stage} compute"), is.compute.value, fits.compute.value);
            all &= near(&format!("{id} {stage} bandwidth"), is.bandwidth.value, fits.bandwidth.value);
        }
    }
    for (is, fits) in shipped.device.unit.iter().zip(&fit.device.unit) {
        all &= near(&is.id, is.active_watts.value, fits.active_watts.value);
    }
    let die = |f: &Fitted| f.device.thermal.node[0].kelvin_per_watt.value;
    all &= near("die", die(&shipped), die(&fit));
    for row in fit.residuals(&study, &workloads).unwrap() {
        let ratio = row.simulated / row.paper;
        eprintln!(
            "{} {} {} {:.1} {ratio:.3} {}",
            row.run,
            row.quantity.name(),
            row.paper,
            row.simulated,
            row.fit
        );
        if row.fit {
            assert!((ratio - 1.0).abs() < DIGITS, "{row:?}");
        }
    }
    assert!(all, "the table above is what the files should say");
}
