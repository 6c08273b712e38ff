//! The same question for long: what heat leaves of the speed.

use crate::{
    BenchError, Plan,
    record::{Mark, Sustained, SustainedAnswer},
};
use margay::{Event, Image, Model, Stage, Stop};
use margay_observe::{Clock, Root, Sampler, Series, Timeline, Watched, What};
use std::time::Duration;

/// Minutes at which the rate is told.
const MINUTES: [f64; 4] = [1.0, 5.0, 10.0, 30.0];

/// Answers until the time is over; `None` where not one was complete.
pub(crate) fn sustain(
    plan: &Plan<'_>,
    model: &Model,
    planned: Duration,
) -> Result<Option<(Sustained, Timeline)>, BenchError> {
    let clock = Clock::start();
    let what = What { process: Watched::Own, threads: false };
    let sampler = Sampler::start(Root::system(), clock, plan.period, what)
        .map_err(|source| BenchError::Start { what: "the sampler's thread".to_owned(), source })?;
    let beating = crate::heartbeat::Beating::start(plan.stop.clone())?;
    let mut answers = Vec::new();
    let result = loop {
        let left = planned.saturating_sub(clock.now());
        if left.is_zero() || plan.stop.is_cancelled() {
            break Ok(());
        }
        (plan.progress)(&format!("sustained: {:.0} s left, {} answers", left.as_secs_f64(), answers.len()));
        match one(plan, model, clock, &beating) {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    beating.stop();
    let series = sampler.stop();
    result?;
    let seconds = clock.now().as_secs_f64();
    let sustained = figures(answers, planned.as_secs_f64(), seconds, &series);
    Ok(sustained.map(|sustained| (sustained, Timeline::of_samples("sustained", series))))
}

fn one(
    plan: &Plan<'_>,
    model: &Model,
    clock: Clock,
    beating: &crate::heartbeat::Beating,
) -> Result<Option<SustainedAnswer>, BenchError> {
    let began = clock.now();
    let images = plan.pictures.iter().map(Image::open).collect::<Result<Vec<_>, _>>()?;
    let mut session = model.session()?;
    if let Some(system) = &plan.system {
        session.system(system);
    }
    beating.answers(session.cancel());
    let mut answer = SustainedAnswer::default();
    for event in session.ask_with(&images, &plan.prompt, &plan.ask)? {
        match event? {
            Event::Stage { stage: Stage::Decode, took, .. } => {
                answer.decode_tokens += 1;
                answer.decode_ms += took.as_secs_f64() * 1e3;
            }
            Event::Done(report) if report.stop == Stop::Cancelled => return Ok(None),
            _ => {}
        }
    }
    let end = clock.now();
    answer.end_seconds = end.as_secs_f64();
    answer.ms = end.saturating_sub(began).as_secs_f64() * 1e3;
    Ok(Some(answer))
}

/// The rates of the answers that were made; `None` where there is none.
pub(crate) fn figures(
    answers: Vec<SustainedAnswer>,
    planned_seconds: f64,
    seconds: f64,
    series: &Series,
) -> Option<Sustained> {
    let last = answers.last()?.end_seconds;
    // A minute, or of shorter runs a third.
    let window_seconds = (seconds / 3.0).min(60.0);
    let minutes = MINUTES.iter().map(|minute| minute * 60.0).filter(|mark| *mark <= seconds);
    let mut times: Vec<f64> = std::iter::once(window_seconds).chain(minutes).chain([last]).collect();
    times.sort_by(f64::total_cmp);
    times.dedup_by(|a, b| (*a - *b).abs() < 0.25 * window_seconds);
    let marks: Vec<Mark> = times.iter().filter_map(|time| mark(&answers, *time, window_seconds)).collect();
    let rate = |mark: &Mark| mark.tokens_per_second.unwrap_or(mark.answers_per_minute);
    let factor = match &marks[..] {
        [first, .., last] if rate(first) > 0.0 => Some(rate(last) / rate(first)),
        _ => None,
    };
    let temperatures = || series.samples.iter().filter_map(|sample| sample.temperature_celsius);
    let (cap_fell_seconds, caps) = caps(series);
    Some(Sustained {
        planned_seconds,
        seconds,
        window_seconds,
        marks,
        factor,
        start_celsius: temperatures().next(),
        peak_celsius: temperatures().reduce(f64::max),
        cap_fell_seconds,
        caps,
        answers,
    })
}

/// Rates of the answers that ended in the window before `time`; `None` where none did.
fn mark(answers: &[SustainedAnswer], time: f64, window: f64) -> Option<Mark> {
    let within: Vec<_> =
        answers.iter().filter(|a| a.end_seconds <= time && a.end_seconds > time - window).collect();
    let ms: f64 = within.iter().map(|answer| answer.ms).sum();
    let (tokens, decode): (usize, f64) =
        within.iter().fold((0, 0.0), |(tokens, ms), a| (tokens + a.decode_tokens, ms + a.decode_ms));
    (ms > 0.0).then(|| Mark {
        seconds: time,
        answers_per_minute: within.len() as f64 * 60_000.0 / ms,
        tokens_per_second: (tokens > 0 && decode > 0.0).then(|| tokens as f64 * 1000.0 / decode),
    })
}

/// When a core's cap was first below where it was, and what is known of caps in words.
fn caps(series: &Series) -> (Option<f64>, String) {
    let Some(start) = series.samples.iter().find(|sample| sample.core_cap_hertz.iter().any(Option::is_some))
    else {
        return (None, "unknown: the system tells no caps on clock rates".to_owned());
    };
    let lower = |now: &&margay_observe::Sample| {
        let pairs = start.core_cap_hertz.iter().zip(&now.core_cap_hertz);
        pairs.into_iter().any(|pair| matches!(pair, (Some(then), Some(now)) if now < then))
    };
    match series.samples.iter().find(lower) {
        Some(sample) => (Some(sample.at.as_secs_f64()), "the cap fell".to_owned()),
        None => (None, "no cap fell".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_observe::Sample;

    #[test]
    fn rates_are_of_the_minute_before_each_mark() {
        // One answer a second for eleven minutes, 10 tokens each; from minute 2 on they take twice as long.
        let answer = |second: u32| SustainedAnswer {
            end_seconds: f64::from(second),
            ms: 1000.0,
            decode_tokens: 10,
            decode_ms: if second <= 120 { 100.0 } else { 200.0 },
        };
        let mut series = Series::new(Duration::from_millis(100));
        let sample = |second: u64, cap: f64| Sample {
            at: Duration::from_secs(second),
            core_cap_hertz: vec![Some(cap)],
            temperature_celsius: Some(40.0 + second as f64 / 10.0),
            ..Sample::default()
        };
        series.samples = vec![sample(0, 2e9), sample(100, 2e9), sample(119, 1.5e9), sample(200, 1e9)];
        let told = figures((1..=660).map(answer).collect(), 660.0, 660.0, &series).unwrap();
        let marks: Vec<_> =
            told.marks.iter().map(|mark| (mark.seconds, mark.tokens_per_second.unwrap())).collect();
        assert_eq!(marks, [(60.0, 100.0), (300.0, 50.0), (600.0, 50.0), (660.0, 50.0)]);
        assert_eq!((told.factor, told.cap_fell_seconds), (Some(0.5), Some(119.0)));
        assert_eq!((told.start_celsius, told.peak_celsius), (Some(40.0), Some(60.0)));
        assert!((told.marks[0].answers_per_minute - 60.0).abs() < 1e-9);
    }

    #[test]
    fn short_runs_compare_their_thirds_and_no_answer_is_no_figure() {
        let answer =
            |second: u32| SustainedAnswer { end_seconds: f64::from(second), ms: 500.0, ..Default::default() };
        let series = Series::new(Duration::from_millis(100));
        let told = figures((1..=12).map(answer).collect(), 12.0, 12.0, &series).unwrap();
        let times: Vec<f64> = told.marks.iter().map(|mark| mark.seconds).collect();
        assert_eq!((times, told.window_seconds), (vec![4.0, 12.0], 4.0));
        assert_eq!((told.factor, told.marks[0].tokens_per_second), (Some(1.0), None));
        assert!(told.caps.starts_with("unknown") && told.peak_celsius.is_none());
        assert_eq!(figures(vec![], 12.0, 12.0, &series), None);
    }
}
