//! What a governor keeps: ceilings, direction, bounds; on devices that are not here and on readings that cannot be.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod question;

use margay_device::{
    Actuator, Admission, Bounds, Device, Engine, Firmware, Governor, KvStep, LEAST_SPEED, Limit, Observation,
    Purpose, Resource, Settings, Strategy as Way, Survey, Tick, Trial, Workload,
};
use margay_tensor::DType;
use proptest::prelude::*;
use question::{Tokens, seeing};
use std::{sync::OnceLock, time::Duration};

const GIB: u64 = 1 << 30;
/// A climb waits for 30 s at least, a fall may follow it at once: two falls and a climb in a minute, so three turns.
const TURNS_A_MINUTE: usize = 3;
/// Waits double after each climb that is taken back (30, 60, .. 480 s), which leaves 7 climbs in half an hour.
const TURNS_IN_HALF_AN_HOUR: usize = 16;

fn workload() -> &'static Workload {
    static WORKLOAD: OnceLock<Workload> = OnceLock::new();
    WORKLOAD.get_or_init(|| {
        let tokens = Tokens { prefix: 35, prompt: 60, answer: 64 };
        let shape = "mobilevlm-v2-1.7b";
        question::workload(shape, &seeing(shape), tokens, &|_, _| DType::Q4_0, 2.0)
    })
}

fn second(at: u64) -> Duration {
    Duration::from_secs(at)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Random air, device, engine, ceiling, heat numbers up to 1.4 times either way, sensors that are off by half a kelvin.
    #[test]
    fn half_an_hour_keeps_the_ceiling_without_oscillation(
        id in proptest::sample::select(Device::ids().collect::<Vec<_>>()),
        engine in proptest::sample::select(vec!["llama.cpp", "mllm", "mlc-imp"]),
        air in 5.0..40.0f64,
        room in 15.0..70.0f64,
        factors in proptest::collection::vec((-0.5..0.5f64).prop_map(f64::exp2), 4),
        noise in 0.0..0.5f64,
        threads in any::<bool>(),
        purpose in (any::<bool>(), any::<bool>(), any::<bool>()),
        knows_decode in any::<bool>(),
    ) {
        let (mut device, engine) = (Device::named(id).unwrap(), Engine::named(engine).unwrap());
        for (node, factors) in device.thermal.node.iter_mut().zip(factors.chunks(2)) {
            node.joules_per_kelvin.value *= factors[0];
            node.kelvin_per_watt.value *= factors[1];
        }
        let idle = device.idle_watts.value + device.unit.iter().map(|u| u.idle_watts.value).sum::<f64>();
        // A device that does nothing must be cooler than its ceiling; 15 K are what one answer's begin may take.
        let rest = air + idle * device.thermal.node.last().unwrap().kelvin_per_watt.value;
        let ceiling = (rest + room).min(95.0);
        prop_assume!(ceiling >= rest + 15.0);
        let mut trial = Trial::new(&device, &engine, workload());
        trial.ambient_celsius = air;
        trial.noise = noise;
        trial.actuator = if threads { Actuator::Threads } else { Actuator::Frequency };
        trial.bounds.ceiling_celsius = Some(ceiling);
        let (conversation, frames, tokens_first) = purpose;
        trial.bounds.purpose = Purpose { conversation, frames, tokens_first, ..Purpose::default() };
        if let (true, Ok(speed)) = (knows_decode, trial.decode_speed()) {
            trial.bounds.decode_speed = speed;
        }
        let Ok(run) = trial.run(Way::Governor) else { return Ok(()) };
        prop_assert_eq!(run.seconds_above, 0.0, "peak {} ceiling {}", run.peak_celsius, ceiling);
        prop_assert!(run.reversals_a_minute <= TURNS_A_MINUTE, "{}", run.reversals_a_minute);
        prop_assert!(run.reversals <= TURNS_IN_HALF_AN_HOUR, "{}", run.reversals);
        prop_assert!(run.answers > 0.0 && run.whole <= run.answers);
    }
}

fn any_number() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        Just(None),
        any::<f64>().prop_map(Some),
        (-10.0..120.0f64).prop_map(Some),
        Just(Some(f64::NAN)),
        Just(Some(f64::INFINITY)),
        (0.0..1.0f64).prop_map(Some),
    ]
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let memory = proptest::option::of(prop_oneof![any::<u64>(), 0..2 * GIB]);
    let charging = proptest::option::of(any::<bool>());
    let at = prop_oneof![0..4000u64, any::<u64>()].prop_map(second);
    (at, any_number(), any_number(), memory, any_number(), any_number(), charging, 0..12usize, any_number())
        .prop_map(|(at, temperature, cap, memory, pressure, battery, charging, queue, speed)| Observation {
            at,
            temperature_celsius: temperature,
            cap_fraction: cap,
            memory_available_bytes: memory,
            memory_pressure: pressure,
            battery_percent: battery,
            charging,
            queue,
            tokens_per_second: speed,
        })
}

fn within_bounds(settings: &Settings) -> bool {
    let part = |value: f64| value > 0.0 && value <= 1.0;
    (LEAST_SPEED..=1.0).contains(&settings.speed)
        && (LEAST_SPEED..=settings.speed).contains(&settings.decode_speed)
        && settings.pace.is_none_or(|pace| pace >= 5.0)
        && part(settings.visual_tokens)
        && part(settings.resolution)
        && (1..=8).contains(&settings.every_frame)
        && match settings.admission {
            Admission::Refuse { retry_after } => (second(1)..=second(480)).contains(&retry_after),
            Admission::Accept => !settings.hold,
            Admission::Queue => true,
        }
}

fn refuses(tick: &Tick) -> bool {
    matches!(tick.settings.admission, Admission::Refuse { .. })
}

proptest! {
    #[test]
    fn garbage_never_leaves_the_bounds_and_never_accepts_where_it_must_refuse(
        all in proptest::collection::vec(any_observation(), 1..200),
        ceiling in any_number(),
        watermark in proptest::option::of(0..2 * GIB),
        mode in any_number(),
    ) {
        let bounds = Bounds {
            ceiling_celsius: ceiling,
            watermark_bytes: watermark,
            battery_percent: mode,
            decode_speed: ceiling,
            purpose: Purpose { conversation: true, frames: true, ..Purpose::default() },
            ..Bounds::default()
        };
        let mut governor = Governor::new(bounds);
        for seen in &all {
            let tick = governor.tick(seen);
            prop_assert!(within_bounds(&tick.settings), "{:?}", tick.settings);
            let short = seen.memory_available_bytes.zip(watermark).is_some_and(|(left, mark)| mark > 0 && left <= mark / 4);
            let believed = seen.battery_percent.filter(|percent| (0.0..=100.0).contains(percent));
            let empty = believed.zip(mode.filter(|mode| *mode > 0.0)).is_some_and(|(left, mode)| left <= mode / 4.0);
            let empty = empty && seen.charging != Some(true);
            prop_assert!(refuses(&tick) || !(short || empty || seen.queue >= bounds.most_waiting), "{:?}", tick);
        }
    }
}

#[test]
fn what_is_unknown_moves_nothing_and_is_told() {
    let mut governor = Governor::new(Bounds {
        ceiling_celsius: Some(80.0),
        watermark_bytes: Some(GIB),
        battery_percent: Some(20.0),
        ..Bounds::default()
    });
    let hot = Observation {
        temperature_celsius: Some(79.0),
        memory_available_bytes: Some(GIB / 2),
        battery_percent: Some(10.0),
        ..Observation::default()
    };
    let before = governor.tick(&hot);
    assert!(before.unknown.is_empty() && before.settings.speed < 1.0);
    for at in 1..2000 {
        let wrong = [None, Some(f64::NAN), Some(4000.0)][at as usize % 3];
        let seen = Observation {
            at: second(at),
            temperature_celsius: wrong,
            battery_percent: wrong,
            ..Observation::default()
        };
        let tick = governor.tick(&seen);
        assert_eq!(tick.events, [], "{at}");
        assert_eq!(tick.settings, before.settings);
        assert_eq!(tick.unknown, Resource::ALL);
    }
    assert_eq!(governor.unknown_ticks(), 1999);
    // What has no bound is not watched, and not unknown.
    let tick = Governor::new(Bounds::default()).tick(&Observation::default());
    assert_eq!((tick.unknown, tick.settings), (vec![], Settings::FULL));
}

#[test]
fn falling_memory_takes_pictures_and_cache_before_it_takes_questions() {
    let mut governor = Governor::new(Bounds { watermark_bytes: Some(GIB), ..Bounds::default() });
    let kill = GIB / 4;
    let mut first = [None; 4];
    let mut at = 0;
    for left in (0..=2 * GIB).rev().step_by(10 << 20) {
        at += 1;
        let seen =
            Observation { at: second(at), memory_available_bytes: Some(left), ..Observation::default() };
        let tick = governor.tick(&seen);
        let now = tick.settings;
        let given_up =
            [now.visual_tokens < 1.0, now.resolution < 1.0, now.kv != KvStep::AsAsked, refuses(&tick)];
        for (first, given_up) in first.iter_mut().zip(given_up) {
            *first = first.or(given_up.then_some(left));
        }
        assert_eq!(now.speed, 1.0, "slower cores free no memory");
    }
    let [tokens, pixels, cache, refusal] = first.map(Option::unwrap);
    assert!(tokens > pixels && pixels > cache && cache > refusal && refusal > kill, "{first:?}");
    assert!(tokens < GIB + GIB / 16, "nothing is given up far above the watermark: {tokens}");
    // It comes back, but not at once.
    let mut back = None;
    for wait in 0..300 {
        let seen = Observation {
            at: second(at + wait),
            memory_available_bytes: Some(3 * GIB),
            ..Observation::default()
        };
        if governor.tick(&seen).settings == Settings::FULL {
            back = back.or(Some(wait));
        }
    }
    assert!(back.is_some_and(|wait| wait >= 30), "{back:?}");
}

#[test]
fn programs_that_wait_for_memory_are_a_sign_of_their_own() {
    let mut governor = Governor::new(Bounds { watermark_bytes: Some(GIB), ..Bounds::default() });
    let mut at = 0;
    let mut tick = |pressure| {
        at += 1;
        let seen = Observation { at: second(at), memory_pressure: Some(pressure), ..Observation::default() };
        governor.tick(&seen)
    };
    assert_eq!(tick(5.0).settings, Settings::FULL);
    assert!(tick(15.0).settings.visual_tokens < 1.0);
    assert!(refuses(&tick(45.0)));
}

#[test]
fn the_battery_mode_is_slow_and_paced_and_ends_when_it_charges() {
    let purpose = Purpose { conversation: true, frames: true, ..Purpose::default() };
    let mut governor = Governor::new(Bounds { battery_percent: Some(20.0), purpose, ..Bounds::default() });
    let mut at = 0;
    let mut tick = |percent, charging| {
        at += 40;
        let seen = Observation {
            at: second(at),
            battery_percent: Some(percent),
            charging,
            ..Observation::default()
        };
        governor.tick(&seen)
    };
    assert_eq!(tick(50.0, None).settings, Settings::FULL);
    let saving = tick(19.0, Some(false));
    assert!((saving.settings.speed - 0.694).abs() < 1e-3 && saving.settings.pace == Some(5.3), "{saving:?}");
    assert_eq!((saving.settings.visual_tokens, saving.settings.every_frame), (0.5, 2));
    assert_eq!(saving.settings.admission, Admission::Accept);
    assert!(
        saving.events.iter().all(|event| event.resource == Resource::Battery && event.why.contains("19%"))
    );
    // A percent more is no reason to change.
    assert_eq!(tick(21.0, Some(false)).settings, saving.settings);
    assert_eq!(tick(21.0, Some(false)).settings, saving.settings);
    assert!(refuses(&tick(5.0, Some(false))));
    tick(6.0, Some(true));
    let free = tick(6.0, Some(true));
    assert_eq!(free.settings, Settings::FULL);
    assert!(free.events.iter().all(|event| event.resource == Resource::Battery && event.to == 0));
}

#[test]
fn a_reading_that_jumps_every_second_turns_no_rung_more_often_than_the_waits_allow() {
    let bounds = Bounds { watermark_bytes: Some(GIB), ceiling_celsius: Some(80.0), ..Bounds::default() };
    for (short, long) in [(1, 1), (1, 31), (1, 61), (5, 40)] {
        let mut governor = Governor::new(bounds);
        let mut turns: Vec<(&str, u64)> = vec![];
        let mut last = std::collections::BTreeMap::new();
        for at in 0..1800 {
            let bad = at % (short + long) < short;
            let seen = Observation {
                at: second(at),
                memory_available_bytes: Some(if bad { 0 } else { 8 * GIB }),
                temperature_celsius: Some(if bad { 79.0 } else { 30.0 }),
                ..Observation::default()
            };
            for event in governor.tick(&seen).events {
                let down = event.to > event.from;
                if last.insert(event.rung, down).is_some_and(|before| before != down) {
                    turns.push((event.rung, at));
                }
            }
        }
        for (rung, moves) in governor.metrics() {
            let of: Vec<u64> = turns.iter().filter(|(id, _)| *id == rung).map(|(_, at)| *at).collect();
            assert_eq!(moves.reversals, of.len() as u64);
            assert!(of.len() <= TURNS_IN_HALF_AN_HOUR, "{rung}: {}", of.len());
            let a_minute =
                of.iter().map(|from| of.iter().filter(|at| (*from..from + 60).contains(*at)).count());
            assert!(a_minute.max().unwrap_or(0) <= TURNS_A_MINUTE, "{rung} {short} {long}: {of:?}");
        }
    }
}

#[test]
fn without_a_temperature_the_systems_own_cap_is_followed() {
    let mut governor = Governor::new(Bounds { ceiling_celsius: Some(80.0), ..Bounds::default() });
    let seen = Observation { cap_fraction: Some(0.6), ..Observation::default() };
    let tick = governor.tick(&seen);
    assert!((0.58..=0.6).contains(&tick.settings.speed), "{}", tick.settings.speed);
    assert_eq!(tick.unknown, [Resource::Heat]);
}

#[test]
fn limits_of_a_plan_give_the_ceiling() {
    let limits = Limit::list("ttft<=2s, temperature<=70C").unwrap();
    assert_eq!(Bounds::default().with(&limits).ceiling_celsius, Some(70.0));
    let own = Bounds { ceiling_celsius: Some(95.0), ..Bounds::default() };
    assert_eq!(own.with(&[]).ceiling_celsius, Some(95.0));
}

/// One device in full. The numbers are those of this simulator, written down so that a change of it is meant.
#[test]
fn a_flagship_phone_at_30_degrees() {
    let (device, engine) = (Device::named("flagship-phone").unwrap(), Engine::named("llama.cpp").unwrap());
    let trial = Trial { ambient_celsius: 30.0, ..Trial::new(&device, &engine, workload()) };
    let [race, thermostat, governor] = Way::ALL.map(|strategy| trial.run(strategy).unwrap());
    for (run, answers, peak) in [(&race, 140.8, 95.1), (&thermostat, 105.7, 94.4), (&governor, 166.9, 92.8)] {
        assert!((run.answers - answers).abs() < 0.2, "{} {}", run.strategy.name(), run.answers);
        assert!((run.peak_celsius - peak).abs() < 0.1, "{} {}", run.strategy.name(), run.peak_celsius);
    }
    assert!(race.seconds_above > 5.0 && race.reversals > 100, "{} {}", race.seconds_above, race.reversals);
    assert_eq!((governor.seconds_above, governor.reversals, governor.events.len()), (0.0, 0, 10));
    assert_eq!(governor.whole, governor.answers);
    assert!(
        governor.events.iter().all(|event| event.rung == "speed" && event.why.contains("ceiling 95.0 C"))
    );
    // Threads instead of frequency: power falls no faster than speed, and nothing is won over the lowest step.
    let threads = Trial { actuator: Actuator::Threads, ..trial.clone() }.run(Way::Governor).unwrap();
    assert!(threads.answers < governor.answers && threads.seconds_above == 0.0, "{}", threads.answers);
    assert_eq!(trial.run(Way::Governor).unwrap(), governor, "the same input gives the same run");
}

/// A ceiling that the slowest speed would pass: only waiting keeps it, and work goes on.
#[test]
fn a_ceiling_little_above_the_air_is_kept_by_letting_questions_wait() {
    let (device, engine) = (Device::named("flagship-phone").unwrap(), Engine::named("llama.cpp").unwrap());
    let mut trial = Trial { ambient_celsius: 40.0, ..Trial::new(&device, &engine, workload()) };
    trial.bounds.ceiling_celsius = Some(60.0);
    let [race, governor] = [Way::Race, Way::Governor].map(|strategy| trial.run(strategy).unwrap());
    assert!(race.seconds_above > 1700.0, "{}", race.seconds_above);
    assert_eq!(governor.seconds_above, 0.0, "{}", governor.peak_celsius);
    assert!(governor.answers > 10.0, "{}", governor.answers);
}

#[test]
fn a_survey_draws_the_same_trials_and_breaches_none() {
    let survey = Survey {
        devices: &Device::ids().collect::<Vec<_>>(),
        engines: &Engine::ids().collect::<Vec<_>>(),
        ambient_celsius: 5.0..40.0,
        seed: 7,
    };
    let firmware = Firmware::Cliff { release: 10.0 };
    let run = |count| survey.run(count, workload(), firmware, &|_| {}).unwrap();
    let all = run(60);
    assert_eq!(run(5), all[..5]);
    let governed =
        || all.iter().map(|trial| trial.runs.iter().find(|run| run.strategy == Way::Governor).unwrap());
    assert!(governed().all(|run| run.seconds_above == 0.0));
    let hot: Vec<f64> = all.iter().filter(|trial| trial.hot()).map(|trial| trial.gain()).collect();
    assert!(hot.len() >= 20, "{}", hot.len());
    assert!(hot.iter().all(|gain| *gain > 0.95), "{hot:?}");
}
