//! Plans keep their limits on any device, and are the best there are.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod question;

use margay_device::{
    Device, Engine, Limit, Metric, Outcome, Prefer, Space, Variant, candidates, front, plan, run,
};
use margay_tensor::DType;
use proptest::prelude::*;
use question::{Tokens, seeing, workload};
use std::sync::OnceLock;

/// Two sizes, three formats, two types of keys and values. Qualities are numbers to choose by, of no model.
fn variants() -> &'static [Variant] {
    static VARIANTS: OnceLock<Vec<Variant>> = OnceLock::new();
    VARIANTS.get_or_init(|| {
        let mut all = vec![];
        for (shape, best) in [("mobilevlm-v2-1.7b", 95.0), ("smolvlm-256m", 90.0)] {
            let config = seeing(shape);
            let tokens = Tokens { prefix: 10, prompt: 30, answer: 20 };
            for (dtype, kept) in [(DType::F16, Some(1.0)), (DType::Q8_0, Some(0.999)), (DType::Q4_0, None)] {
                for (kv, bytes) in [("f16", 2.0), ("q8", 1.06)] {
                    let workload = workload(shape, &config, tokens, &|_, _| dtype, bytes);
                    all.push(Variant {
                        model: shape.to_owned(),
                        recipe: dtype.to_string(),
                        formats: dtype.to_string(),
                        kv: kv.to_owned(),
                        picture: "as it is".to_owned(),
                        memory_bytes: Some(workload.bytes(2048) as u64),
                        workload,
                        quality: kept.map(|part| part * best),
                    });
                }
            }
        }
        all
    })
}

fn engines() -> Vec<Engine> {
    ["margay", "mlc-imp"].map(|id| Engine::named(id).unwrap()).to_vec()
}

/// A real device with every speed, power and heat number changed by up to 4 times either way.
fn device() -> impl Strategy<Value = Device> {
    let ids: Vec<&'static str> = Device::ids().collect();
    let factor = (-2.0..2.0f64).prop_map(f64::exp2);
    (proptest::sample::select(ids), proptest::collection::vec(factor, 40)).prop_map(|(id, factors)| {
        let mut device = Device::named(id).unwrap();
        let mut factors = factors.into_iter().cycle();
        let mut scale = |stated: &mut margay_device::Stated| stated.value *= factors.next().unwrap_or(1.0);
        scale(&mut device.idle_watts);
        scale(&mut device.memory.bytes_per_second);
        for node in &mut device.thermal.node {
            scale(&mut node.joules_per_kelvin);
            scale(&mut node.kelvin_per_watt);
        }
        for unit in &mut device.unit {
            [&mut unit.int8_gops, &mut unit.f16_gops].into_iter().flatten().for_each(&mut scale);
            scale(&mut unit.bytes_per_second);
            scale(&mut unit.active_watts);
        }
        device
    })
}

fn limit(metric: Metric, values: std::ops::Range<f64>) -> impl Strategy<Value = Option<Limit>> {
    proptest::option::of(values.prop_map(move |value| Limit { metric, value }))
}

fn limits() -> impl Strategy<Value = Vec<Limit>> {
    let limits = (
        limit(Metric::Ttft, 0.2..20.0),
        limit(Metric::Time, 1.0..60.0),
        limit(Metric::Speed, 1.0..40.0),
        limit(Metric::Power, 0.5..15.0),
        limit(Metric::Memory, 2e8..4e9),
        limit(Metric::Temperature, 30.0..110.0),
        limit(Metric::Quality, 80.0..96.0),
    );
    limits.prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g].into_iter().flatten().collect())
}

fn prefer() -> impl Strategy<Value = Prefer> {
    proptest::sample::select(vec![Prefer::Energy, Prefer::Speed, Prefer::Quality])
}

/// What is compared of two plans, where less is better.
fn score(prefer: Prefer, value: impl Fn(Metric) -> Option<f64>) -> f64 {
    match prefer {
        Prefer::Energy => value(Metric::Energy).unwrap(),
        Prefer::Speed => value(Metric::Time).unwrap(),
        Prefer::Quality => -value(Metric::Quality).unwrap_or(0.0),
    }
}

/// Random devices and limits.
const CASES: u32 = 1000;
/// Of which so many must have a plan, and so many none, for the test to say something.
const LEAST_OF_EACH: u32 = 200;

#[test]
fn no_plan_breaks_a_limit_on_any_of_1000_devices() {
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let engines = engines();
    // Half of the variants keep it fast; which ones does not matter.
    let variants = &variants()[2..8];
    let (plans, none) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let result = proptest::test_runner::TestRunner::new(config).run(
        &(device(), limits(), prefer()),
        |(device, limits, prefer)| {
            let space = Space { device: &device, engines: &engines, variants };
            match plan(&space, &limits, prefer).unwrap() {
                Outcome::Plan { best, .. } => {
                    plans.set(plans.get() + 1);
                    let again = run(&space, &best.candidate).unwrap();
                    for limit in &limits {
                        let value = again.value(limit.metric);
                        prop_assert!(value.is_some_and(|value| limit.holds(value)), "{limit}: {value:?}");
                    }
                }
                Outcome::Infeasible(why) => {
                    none.set(none.get() + 1);
                    prop_assert!(!why.broken.is_empty());
                    let (limit, value) = &why.broken[0];
                    prop_assert!(value.is_none_or(|value| !limit.holds(value)), "{limit}: {value:?}");
                }
            }
            Ok(())
        },
    );
    result.unwrap_or_else(|e| panic!("{e}"));
    assert!(plans.get() >= LEAST_OF_EACH && none.get() >= LEAST_OF_EACH, "{} {}", plans.get(), none.get());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_choice_is_that_of_simulating_everything(
        device in device(), limits in limits(), prefer in prefer()
    ) {
        let engines = engines();
        let space = Space { device: &device, engines: &engines, variants: variants() };
        let kept = candidates(&space)
            .iter()
            .filter_map(|candidate| run(&space, candidate).ok())
            .filter(|planned| planned.keeps(&limits))
            .map(|planned| score(prefer, |metric| planned.value(metric)))
            .min_by(f64::total_cmp);
        match plan(&space, &limits, prefer).unwrap() {
            Outcome::Plan { best, candidates, simulated } => {
                prop_assert_eq!(score(prefer, |metric| best.value(metric)), kept.unwrap());
                prop_assert!(simulated <= candidates);
            }
            Outcome::Infeasible(_) => prop_assert_eq!(kept, None),
        }
    }
}

#[test]
fn pruning_simulates_less_than_everything_and_the_front_holds_the_choice() {
    let device = Device::named("oneplus-13r").unwrap();
    let engines = [Engine::named("margay").unwrap()];
    let space = Space { device: &device, engines: &engines, variants: variants() };
    let limits = Limit::list("quality>=89%, memory<=3GiB").unwrap();
    let Outcome::Plan { best, candidates, simulated } = plan(&space, &limits, Prefer::Speed).unwrap() else {
        panic!("there is one")
    };
    assert!(simulated * 4 < candidates, "{simulated} of {candidates}");
    let front = front(&space, &limits).unwrap();
    assert!(front.iter().any(|planned| planned.run.seconds() == best.run.seconds()));
    assert!(front.len() > 1 && front.iter().all(|planned| planned.keeps(&limits)));
}

#[test]
fn the_tightest_limit_is_named_with_what_is_possible() {
    let device = Device::named("budget-phone").unwrap();
    let engines = [Engine::named("margay").unwrap()];
    let space = Space { device: &device, engines: &engines, variants: variants() };
    let limits = Limit::list("memory<=100MiB, quality>=80%").unwrap();
    let Outcome::Infeasible(why) = plan(&space, &limits, Prefer::Energy).unwrap() else {
        panic!("nothing is that small")
    };
    let (limit, value) = &why.broken[0];
    assert_eq!(limit.metric, Metric::Memory);
    // The smallest that has a measured quality.
    let least = variants().iter().filter(|v| v.quality.is_some()).filter_map(|v| v.memory_bytes).min();
    assert_eq!(value.map(|value| value as u64), least);
    // Of all, whatever their quality.
    let least = variants().iter().filter_map(|v| v.memory_bytes).min();
    assert_eq!(why.alone[0].1.map(|value| value as u64), least);
    let unknown = Limit::list("quality>=99%").unwrap();
    assert!(matches!(plan(&space, &unknown, Prefer::Energy).unwrap(), Outcome::Infeasible(_)));
}
