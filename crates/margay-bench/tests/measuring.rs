//! Real measurements of the model inside the program, beside a real process.

use margay::{LoadOptions, Model};
use margay_bench::{Begin, BenchError, METRICS, Peer, Plan, Record, compare, measure, report};
use std::{path::PathBuf, time::Duration};

fn picture() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/images/street.png"))
}

fn short<'p>(load: &'p dyn Fn() -> Result<Model, margay::Error>) -> Plan<'p> {
    let mut plan = Plan::new(load, "What does the sign say?");
    plan.pictures = vec![picture()];
    (plan.repeat, plan.warmup, plan.ask.max_tokens) = (2, 1, 6);
    plan.idle = Duration::from_millis(150);
    plan.cool.limit = Duration::ZERO;
    plan
}

#[test]
fn stages_nest_as_they_are_said_to_and_peers_take_their_turns() {
    let load = || Model::nano();
    let mut plan = short(&load);
    // A grandchild that works, so that time and memory of the tree are seen.
    plan.peers = vec![
        Peer::parse("command=(i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done); echo \"$PROMPT\"").unwrap(),
    ];
    let measured = measure(&plan).unwrap();
    let record = &measured.record;
    let [margay, command] = &record.engines[..] else { panic!("two engines were asked for") };
    let begins: Vec<_> = margay.runs.iter().map(|run| (run.round, run.begin)).collect();
    assert_eq!(begins, [(0, Begin::Cold), (0, Begin::Warm), (1, Begin::Cold), (1, Begin::Warm)]);
    for run in &margay.runs {
        let s = &run.stages;
        let inside = [s.preprocess, s.encode, s.project, s.prefill, s.decode, s.other].map(Option::unwrap);
        let whole = run.without_load_ms.unwrap();
        assert!((inside.iter().sum::<f64>() - whole).abs() < 0.5, "{inside:?} {whole}");
        assert_eq!(s.load.is_some(), run.begin == Begin::Cold);
        if let (Some(load), Some(with)) = (s.load, run.with_load_ms) {
            // Both clocks are read apart, so that they agree by microseconds, not exactly.
            assert!((with - whole - load).abs() < 0.2 * with, "{with} {whole} {load}");
        }
        assert_eq!(Some(run.token_ms.len()), run.decode_tokens);
        assert!((run.token_ms.iter().sum::<f64>() - s.decode.unwrap()).abs() < 0.1);
        let before_text = s.preprocess.unwrap() + s.encode.unwrap() + s.project.unwrap() + s.prefill.unwrap();
        assert!(run.ttft_ms.unwrap() >= before_text - 0.1 && run.ttft_ms.unwrap() <= whole, "{run:?}");
        assert!(run.text.as_ref().is_some_and(|text| !text.is_empty()) && run.visual_tokens > Some(0));
        if cfg!(target_os = "linux") {
            assert!(run.peak_rss_bytes > run.peak_anonymous_bytes && run.peak_anonymous_bytes > Some(0));
        }
    }
    assert_eq!(command.runs.len(), 2);
    for run in &command.runs {
        assert_eq!(run.text.as_deref(), Some("What does the sign say?"));
        assert!(
            run.with_load_ms.unwrap() > 1.0 && run.stages.load.is_none() && run.without_load_ms.is_none()
        );
    }
    assert_eq!(measured.timelines.len(), margay.runs.len());
    let spans = &measured.timelines[0].spans;
    assert!(spans.iter().any(|span| span.stage == margay::Stage::Load));
    assert!(
        spans.iter().filter(|span| span.stage == margay::Stage::Decode).count()
            == margay.runs[0].token_ms.len()
    );
    let again = Record::parse(record.to_json().as_bytes(), "x").unwrap();
    assert_eq!(
        compare(record, &again, false).unwrap().lines.len(),
        compare(&again, record, false).unwrap().lines.len()
    );
    let text = report::record_text(record, 60.0, None);
    assert!(METRICS.iter().filter(|m| m.unit == "ms" && !m.part).all(|m| text.contains(m.name)), "{text}");
    let page = report::page(record, &measured.timelines, None, 60.0, None);
    assert!(page.contains("without load") && page.contains("<svg") && page.contains("frames missed"));
}

#[test]
fn a_wish_to_stop_leaves_a_record_that_says_so() {
    let load = || Model::nano();
    let mut plan = short(&load);
    (plan.warmup, plan.repeat) = (0, 1000);
    let stop = plan.stop.clone();
    let say = move |what: &str| {
        if what.starts_with("round 3") {
            stop.cancel();
        }
    };
    plan.progress = &say;
    let record = measure(&plan).unwrap().record;
    assert!(record.stopped);
    assert_eq!(record.engines[0].runs.len(), 4, "two rounds were complete");
}

#[test]
fn a_peer_that_hangs_is_ended_and_one_that_fails_is_named() {
    let load = || Model::nano();
    let mut plan = short(&load);
    (plan.warmup, plan.repeat, plan.ask.max_tokens) = (0, 1, 1);
    plan.peers = vec![Peer::parse("command=exec sleep 600").unwrap()];
    let stop = plan.stop.clone();
    let say = move |what: &str| {
        if what.ends_with("command") {
            stop.cancel();
        }
    };
    plan.progress = &say;
    let record = measure(&plan).unwrap().record;
    assert!(record.stopped && record.engines[1].runs.is_empty());

    let mut plan = short(&load);
    (plan.warmup, plan.repeat, plan.ask.max_tokens) = (0, 1, 1);
    plan.peers = vec![Peer::parse("command=echo lost it >&2; exit 7").unwrap()];
    let message = measure(&plan).unwrap_err().to_string();
    assert!(message.contains("lost it") && message.contains('7') && message.contains("exit 7"), "{message}");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_runs() {
    let load = || -> Result<Model, margay::Error> { panic!("nothing may be loaded") };
    let mut plan = short(&load);
    plan.pictures = vec![PathBuf::from("no/such.png")];
    assert!(measure(&plan).unwrap_err().to_string().contains("no/such.png"));
    let mut plan = short(&load);
    let baseline = Record::default();
    plan.baseline = Some(&baseline);
    assert!(measure(&plan).unwrap_err().to_string().contains("not of the same prompt"));
    let mut plan = short(&load);
    plan.peers = vec![Peer::parse("llama.cpp=/usr/bin/llama-mtmd-cli").unwrap()];
    let message = measure(&plan).unwrap_err().to_string();
    assert!(matches!(measure(&plan), Err(BenchError::Peer { .. })) && message.contains("GGUF"), "{message}");
}

#[test]
fn sustained_answers_have_their_rates() {
    let load = || Model::nano();
    let mut plan = short(&load);
    (plan.warmup, plan.repeat, plan.ask.max_tokens) = (0, 1, 3);
    plan.cold = 1;
    plan.sustain = Some(Duration::from_millis(900));
    let measured = measure(&plan).unwrap();
    let sustained = measured.record.sustained.unwrap();
    assert!(!sustained.answers.is_empty() && sustained.seconds >= 0.9, "{sustained:?}");
    assert!(sustained.answers.iter().all(|answer| answer.ms > 0.0));
    assert!(measured.sustained.is_some());
}

#[test]
fn work_of_a_prompt_that_is_another_is_not_told() {
    let reduction = margay::Reduction { method: "merge".to_owned(), keep: margay::Keep::Share(0.5) };
    let options = LoadOptions { reduction: Some(reduction), ..LoadOptions::default() };
    let load = || Model::nano_with(&options);
    let measured = measure(&short(&load)).unwrap();
    assert!(measured.record.work.is_empty());
    let warnings = measured.record.protocol.warnings.join("\n");
    assert!(warnings.contains("visual tokens are left out"), "{warnings}");
    let all = || Model::nano();
    assert!(!measure(&short(&all)).unwrap().record.work.is_empty());
}
