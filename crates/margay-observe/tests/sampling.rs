//! The sampler against loads that are known, on Linux.
#![cfg(target_os = "linux")]

use margay_observe::{
    Clock, PERIOD, RecordOptions, Recorder, Recording, Root, Sampler, Stage, Timeline, TreeRecorder, Watched,
    What, replay, report,
};
use std::{sync::Arc, time::Duration};

/// Nanoseconds that the calling thread ran, by the kernel.
fn own_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells it");
    text.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).expect("its first word is a number")
}

fn spin(clock: Clock, until: Duration) {
    while clock.now() < until {
        std::hint::black_box(own_work());
    }
}

fn own_work() -> u64 {
    (0..10_000u64).fold(1, |a, b| a.wrapping_mul(6364136223846793005).wrapping_add(b))
}

/// Of what the kernel says that the thread ran.
const TOLERANCE: f64 = 0.05;
/// Seconds: a tick or two at each edge of the stretch, which may come late where the machine is busy, and what the
/// sampling thread itself ran.
const EDGES: f64 = 0.06;

#[test]
fn one_thread_that_spins_is_seen_as_the_kernel_counts_it() {
    let clock = Clock::start();
    let sampler = Sampler::start(Root::system(), clock, PERIOD, What::default()).unwrap();
    let before = own_nanos();
    spin(clock, clock.now() + Duration::from_millis(1200));
    let ran = (own_nanos() - before) as f64 / 1e9;
    let series = sampler.stop();
    // Percent over time is time on a core: 100 % is one core. Other tests are other processes.
    let seen: f64 = series
        .samples
        .iter()
        .filter_map(|s| Some(s.process_cpu_percent? / 100.0 * s.over.as_secs_f64()))
        .sum();
    assert!((seen - ran).abs() < TOLERANCE * ran + EDGES, "ran {ran} s, seen {seen} s");
    let overhead = series.overhead.unwrap();
    assert!(overhead.samples >= 5 && overhead.cpu_percent.unwrap() < 50.0, "{overhead:?}");
}

#[test]
fn half_a_load_is_half_and_stages_are_told_apart() {
    let clock = Clock::start();
    let sampler = Sampler::start(Root::system(), clock, Duration::from_millis(50), What::default()).unwrap();
    let mut recorder = Recorder::with_clock(clock);
    let mut ran = 0.0;
    recorder.time(Stage::Encode, || {
        for _ in 0..20 {
            let before = own_nanos();
            spin(clock, clock.now() + Duration::from_millis(25));
            ran += (own_nanos() - before) as f64 / 1e9;
            std::thread::sleep(Duration::from_millis(25));
        }
    });
    recorder.time(Stage::Decode, || std::thread::sleep(Duration::from_millis(400)));
    let timeline = Timeline::new("half", &recorder, sampler.stop());
    let statistics = timeline.stage_statistics();
    let [encode, decode, _] = &statistics[..] else { panic!("{statistics:?}") };
    let seen = encode.process_cpu_percent.unwrap().mean / 100.0 * encode.seconds;
    assert!((seen - ran).abs() < TOLERANCE * ran + EDGES, "ran {ran} s, seen {seen} s");
    // A sample that is late covers the end of the one and the beginning of the other.
    let decode = decode.process_cpu_percent.unwrap().mean;
    assert!(decode < 50.0 * ran / encode.seconds, "{decode} %");
    assert!(encode.peak_rss_bytes.unwrap() > 1 << 20);
    assert_eq!(encode.net_joules, None, "nobody measured an idle power");
}

#[test]
fn a_recording_says_on_replay_what_the_samplers_said() {
    let what = What { process: Watched::Own, threads: true };
    let options = RecordOptions { period: Duration::from_millis(20), what, most_bytes: 16 << 20 };
    let mut recorder = TreeRecorder::begin(Vec::new(), Root::system(), &options).unwrap();
    let clock = Clock::start();
    for step in 1..=10 {
        assert!(recorder.step().unwrap());
        spin(clock, Duration::from_millis(20 * step));
    }
    let (tar, live) = recorder.finish().unwrap();
    let recording = Arc::new(Recording::from_tar(&tar[..]).unwrap());
    let replayed = replay(&recording);
    assert_eq!(replayed.samples.len(), 10);
    let json = |series: &margay_observe::Series| {
        report::writer("csv").unwrap().write(&Timeline::of_samples("", series.clone())).unwrap()
    };
    assert_eq!(json(&replayed), json(&live), "the same files through the same samplers");
    assert!(replayed.samples[5].process_cpu_percent.is_some() && replayed.samples[5].rss_bytes.is_some());
}

#[test]
fn a_recording_stops_at_its_cap_and_is_whole() {
    let what = What { process: Watched::Own, threads: true };
    let options = RecordOptions { period: Duration::from_millis(1), what, most_bytes: 200 << 10 };
    let mut recorder = TreeRecorder::begin(Vec::new(), Root::system(), &options).unwrap();
    let mut steps = 0;
    while recorder.step().unwrap() {
        steps += 1;
        std::thread::sleep(Duration::from_millis(1));
        assert!(steps < 10_000, "it never fills");
    }
    let (tar, _) = recorder.finish().unwrap();
    assert!(steps > 1 && tar.len() < 220 << 10, "{steps} {}", tar.len());
    assert_eq!(Recording::from_tar(&tar[..]).unwrap().moments().len(), steps);
}
