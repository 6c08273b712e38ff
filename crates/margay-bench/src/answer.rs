//! One answer of Margay, watched.

use crate::{
    BenchError, Plan,
    heartbeat::Beating,
    record::{Begin, Heartbeat, Run, StageMs},
    watched::watch,
};
use margay::{Event, Image, Model, Report, Stage, Stop};
use margay_observe::{Clock, Part, Recorder, Root, Sampler, Span, Timeline, Watched, What};
use std::time::Duration;

/// What an answer was, and what the sensors said meanwhile.
#[derive(Debug)]
pub(crate) struct Answered {
    pub run: Run,
    pub timeline: Timeline,
    pub cancelled: bool,
}

/// Loads the model where there is none in `held`, asks the plan's question in a new session, and watches both.
pub(crate) fn answer(
    plan: &Plan<'_>,
    idle_watts: Option<f64>,
    round: usize,
    held: &mut Option<Model>,
) -> Result<Answered, BenchError> {
    let clock = Clock::start();
    let what = What { process: Watched::Own, threads: true };
    let sampler = Sampler::start(Root::system(), clock, plan.period, what)
        .map_err(|source| BenchError::Start { what: "the sampler's thread".to_owned(), source })?;
    let beating = Beating::start(plan.stop.clone())?;
    let mut asked = Asked { recorder: Recorder::with_clock(clock), clock, ..Asked::new(clock) };
    let result = asked.ask(plan, held, &beating);
    // Both threads end whatever came of it.
    let heartbeat = beating.stop();
    let series = sampler.stop();
    result?;
    let mut timeline = Timeline::new("", &asked.recorder, series);
    timeline.idle_watts = idle_watts;
    let cancelled = asked.report.as_ref().is_none_or(|report| report.stop == Stop::Cancelled);
    let run = asked.run(round, heartbeat, &timeline);
    Ok(Answered { run, timeline, cancelled })
}

impl Answered {
    /// Says of each prefill span what it was of. `parts` are those of the batches, in order.
    pub(crate) fn tell_parts(&mut self, parts: &[Part]) {
        let spans = &mut self.timeline.spans;
        let batches: Vec<&mut Span> = spans.iter_mut().filter(|span| span.stage == Stage::Prefill).collect();
        if batches.len() != parts.len() {
            return;
        }
        let mut sums = [None::<f64>; 3];
        for (span, part) in batches.into_iter().zip(parts) {
            span.part = Some(*part);
            let slot = match part {
                Part::Image => &mut sums[0],
                Part::Text => &mut sums[1],
                Part::Mixed | Part::Token(_) => &mut sums[2],
            };
            *slot = Some(slot.unwrap_or(0.0) + millis(span.duration));
        }
        let stages = &mut self.run.stages;
        match sums {
            [image, text, None] => (stages.image_prefill, stages.text_prefill) = (image, text),
            // Of what is partly told apart the parts are no figures of the whole.
            [_, _, mixed] => stages.mixed_prefill = mixed,
        }
    }
}

/// What is noted while an answer comes about.
struct Asked {
    clock: Clock,
    recorder: Recorder,
    begin: Begin,
    began: Duration,
    /// When the question was put; the model was loaded before.
    question: Duration,
    /// Loading of the vision side, which happens behind the question where it happens.
    late_load: Duration,
    first_text: Option<Duration>,
    end: Duration,
    token_ms: Vec<f64>,
    report: Option<Report>,
}

impl Asked {
    fn new(clock: Clock) -> Self {
        Asked {
            clock,
            recorder: Recorder::with_clock(clock),
            begin: Begin::Warm,
            began: Duration::ZERO,
            question: Duration::ZERO,
            late_load: Duration::ZERO,
            first_text: None,
            end: Duration::ZERO,
            token_ms: Vec::new(),
            report: None,
        }
    }

    fn ask(
        &mut self,
        plan: &Plan<'_>,
        held: &mut Option<Model>,
        beating: &Beating,
    ) -> Result<(), BenchError> {
        let clock = self.clock;
        self.began = clock.now();
        let model = match held {
            Some(model) => model.clone(),
            None => {
                self.begin = Begin::Cold;
                let open = self.recorder.begin(Stage::Load);
                let model = (plan.load)()?;
                self.recorder.end(open);
                held.insert(model).clone()
            }
        };
        self.question = clock.now();
        let mut images = Vec::with_capacity(plan.pictures.len());
        for path in &plan.pictures {
            let open = self.recorder.begin(Stage::Preprocess);
            images.push(Image::open(path)?);
            self.recorder.end(open);
        }
        let mut session = model.session()?;
        if let Some(system) = &plan.system {
            session.system(system);
        }
        beating.answers(session.cancel());
        let mut before = clock.now();
        for event in session.ask_with(&images, &plan.prompt, &plan.ask)? {
            let now = clock.now();
            match event? {
                Event::Stage { stage, took, done, .. } => {
                    self.stage_ended(stage, took, done, before, now);
                    before = now;
                }
                Event::Text(_) => {
                    self.first_text.get_or_insert(now);
                }
                Event::Done(report) => self.report = Some(*report),
                _ => {}
            }
        }
        self.end = clock.now();
        Ok(())
    }

    fn stage_ended(&mut self, stage: Stage, took: Duration, done: usize, before: Duration, now: Duration) {
        let start = now.saturating_sub(took);
        let mut push = |stage, part, start: Duration, end: Duration| {
            self.recorder.push(Span { stage, part, start, duration: end.saturating_sub(start) });
        };
        match stage {
            // What comes before it is the tower's packing, the first time; then it is nothing.
            Stage::Preprocess if self.begin == Begin::Cold && done == 1 => {
                push(Stage::Load, None, before.min(start), start);
                self.late_load += start.saturating_sub(before);
                push(stage, None, start, now);
            }
            // A tile is cut out and resized just before it is encoded.
            Stage::Encode => {
                push(Stage::Preprocess, None, before.min(start), start);
                push(stage, None, start, now);
            }
            Stage::Decode => {
                let number = u32::try_from(done.saturating_sub(1)).unwrap_or(u32::MAX);
                push(stage, Some(Part::Token(number)), start, now);
                self.token_ms.push(millis(took));
            }
            stage => push(stage, None, start, now),
        }
    }

    fn run(self, round: usize, heartbeat: Option<Heartbeat>, timeline: &Timeline) -> Run {
        let (question, end) = (self.question, self.end);
        let mut run = Run { round, begin: self.begin, heartbeat, token_ms: self.token_ms, ..Run::default() };
        // Less the tower's packing, which is loading.
        let since_question =
            |at: Duration| millis(at.saturating_sub(question).saturating_sub(self.late_load));
        if let Some(report) = self.report {
            let s = &report.stages;
            let load = (self.begin == Begin::Cold).then_some(s.load_ms).flatten();
            let without_load = since_question(end);
            let stages = [s.preprocess_ms, s.encode_ms, s.project_ms, s.prefill_ms, s.decode_ms];
            run.stages = StageMs {
                load,
                preprocess: s.preprocess_ms,
                encode: s.encode_ms,
                project: s.project_ms,
                prefill: s.prefill_ms,
                image_prefill: None,
                text_prefill: None,
                mixed_prefill: None,
                decode: s.decode_ms,
                other: Some((without_load - stages.iter().flatten().sum::<f64>()).max(0.0)),
            };
            run.with_load_ms = load.map(|_| millis(end.saturating_sub(self.began)));
            run.without_load_ms = Some(without_load);
            run.ttft_ms = self.first_text.map(since_question);
            run.prompt_tokens = Some(s.prefill_tokens + s.reused_tokens);
            run.visual_tokens = Some(s.visual_tokens);
            run.decode_tokens = Some(s.decode_tokens);
            run.answer_tokens = Some(report.tokens.len());
            run.stop =
                serde_json::to_value(report.stop).ok().and_then(|stop| Some(stop.as_str()?.to_owned()));
            run.text = Some(report.text);
        }
        watch(&mut run, timeline, (question, end));
        run
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_observe::Series;

    fn answered(batches: &[u64]) -> Answered {
        let mut timeline = Timeline::of_samples("", Series::new(Duration::from_millis(100)));
        let span = |ms: &u64| Span {
            stage: Stage::Prefill,
            part: None,
            start: Duration::ZERO,
            duration: Duration::from_millis(*ms),
        };
        timeline.spans = batches.iter().map(span).collect();
        Answered { run: Run::default(), timeline, cancelled: false }
    }

    fn told(batches: &[u64], parts: &[Part]) -> [Option<f64>; 3] {
        let mut answered = answered(batches);
        answered.tell_parts(parts);
        let s = answered.run.stages;
        [s.image_prefill, s.text_prefill, s.mixed_prefill]
    }

    #[test]
    fn parts_of_the_prefill_are_told_only_where_no_batch_holds_both() {
        use Part::{Image, Mixed, Text};
        assert_eq!(told(&[5, 7, 1], &[Image, Image, Text]), [Some(12.0), Some(1.0), None]);
        assert_eq!(told(&[5], &[Text]), [None, Some(5.0), None]);
        assert_eq!(told(&[5, 7], &[Mixed, Text]), [None, None, Some(5.0)]);
        assert_eq!(told(&[5, 7], &[Mixed]), [None; 3], "some of it was in the cache");
    }
}
