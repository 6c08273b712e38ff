//! A model that keeps its device within bounds while it answers.
//!
//! The governor itself decides on observations alone ([`margay_device::Governor`]); here they are taken, about once a second
//! and only while somebody asks, and what it decides is done: work waits between steps, in the ratio that the speed asks for,
//! tokens come no faster than the pace, answers are held, and questions are turned away. A step is then short enough for the
//! governor to see what it does to the device.

use crate::Error;
use margay_device::{
    Admission, Bounds, Event as GovernorEvent, Governor, KvStep, Moves, Observation, Settings,
};
use margay_graph::Cancel;
use margay_observe::{Channels, Clock, Root, Sample, Sensors, Watched, What};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);
/// What a step of a prompt or of an encode should take at most, so that there is something to look at in between.
const STEP: Duration = Duration::from_secs(1);
/// Tokens of a prompt in one step at least: fewer would read all weights for little.
const LEAST_CHUNK: usize = 16;
/// The same while nothing is known of how long they take.
const FIRST_CHUNK: usize = 64;
/// A rest is slept in pieces, so that it ends soon after it is cancelled.
const NAP: Duration = Duration::from_millis(20);
/// Events that are kept.
const EVENTS: usize = 256;

/// What a governor does and did.
#[derive(Clone, Debug, PartialEq)]
pub struct GovernorReport {
    /// What it asks for now.
    pub settings: Settings,
    /// Of each rung of [`margay_device::LADDER`], by its id, how often it moved.
    pub moves: Vec<(&'static str, Moves)>,
    /// Its last moves, the latest last.
    pub events: Vec<GovernorEvent>,
    /// What it is to watch and does not know.
    pub unknown: Vec<&'static str>,
    /// Time for which work rested.
    pub rested: Duration,
}

/// A governor, its sensors, and what they said last.
pub(crate) struct Governed(Mutex<State>);

struct State {
    bounds: Bounds,
    governor: Governor,
    clock: Clock,
    times: u32,
    root: Root,
    sensors: Sensors,
    looked: Option<Duration>,
    settings: Settings,
    unknown: Vec<&'static str>,
    events: VecDeque<GovernorEvent>,
    queue: usize,
    tokens_per_second: Option<f64>,
    /// Of a token of a prompt, without rests.
    prefill: Option<Duration>,
    rested: Duration,
}

/// What is done in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// So many tokens of a prompt.
    Prefill(usize),
    /// So many tokens, each behind another or of an answer of its own.
    Decode(usize),
    /// Anything else.
    Other,
}

impl Governed {
    pub(crate) fn new(bounds: Bounds, root: &Root) -> Self {
        Self::faster(1, bounds, root)
    }

    /// Pictures come as a stream of frames, some of which can be left out. It begins anew with that.
    pub(crate) fn watches_frames(&self) {
        let mut state = self.lock();
        if !state.bounds.purpose.frames {
            state.bounds.purpose.frames = true;
            state.governor = Governor::new(state.bounds);
        }
    }

    /// For which time passes so many times as fast, as tests want it.
    fn faster(times: u32, bounds: Bounds, root: &Root) -> Self {
        // The queue has a bound of its own.
        let bounds = Bounds { most_waiting: usize::MAX, ..bounds };
        let what = What { process: Watched::Own, threads: false };
        Governed(Mutex::new(State {
            bounds,
            governor: Governor::new(bounds),
            clock: Clock::start(),
            times,
            root: root.clone(),
            sensors: Sensors::probe(root, &what),
            looked: None,
            settings: Settings::FULL,
            unknown: vec![],
            events: VecDeque::new(),
            queue: 0,
            tokens_per_second: None,
            prefill: None,
            rested: Duration::ZERO,
        }))
    }

    /// What it asks for now, and what has moved, where it is time to look again.
    pub(crate) fn look(&self) -> (Settings, Vec<GovernorEvent>) {
        let mut state = self.lock();
        let at = state.clock.now().saturating_mul(state.times);
        if state.looked.is_some_and(|looked| at.saturating_sub(looked) < EVERY) {
            return (state.settings, vec![]);
        }
        let State { sensors, root, .. } = &mut *state;
        let sample = sensors.sample(root, at);
        let seen = observation(&sample, sensors.channels(), at);
        let seen = Observation { queue: state.queue, tokens_per_second: state.tokens_per_second, ..seen };
        let tick = state.governor.tick(&seen);
        state.looked = Some(at);
        state.settings = tick.settings;
        state.unknown = tick.unknown.iter().map(|resource| resource.name()).collect();
        state.events.extend(tick.events.iter().cloned());
        let over = state.events.len().saturating_sub(EVENTS);
        state.events.drain(..over);
        (tick.settings, tick.events)
    }

    /// What it asked for when it looked last.
    pub(crate) fn settings(&self) -> Settings {
        self.lock().settings
    }

    /// Bits of a number of a KV cache that begins now, at most, where that was asked for.
    pub(crate) fn most_bits(&self) -> Option<u32> {
        match self.settings().kv {
            KvStep::AsAsked => None,
            KvStep::Q8 => Some(8),
            KvStep::Q4 => Some(4),
        }
    }

    /// Whether another question is taken.
    ///
    /// # Errors
    /// [`Error::Refused`] with a time to ask again.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        match self.look().0.admission {
            Admission::Accept | Admission::Queue => Ok(()),
            Admission::Refuse { retry_after } => {
                let state = self.lock();
                let down = state.governor.metrics().filter(|(_, moves)| moves.step > 0).map(|(id, _)| id);
                let down: Vec<_> = down.collect();
                let why = state
                    .events
                    .iter()
                    .rev()
                    .find(|event| down.contains(&event.rung) && event.to > event.from);
                let why = why.map_or("the device is at its limit".to_owned(), |event| {
                    format!("{}: {}", event.resource.name(), event.why)
                });
                Err(Error::Refused { why, retry_after })
            }
        }
    }

    /// Questions that wait, from now on.
    pub(crate) fn set_queue(&self, waiting: usize) {
        self.lock().queue = waiting;
    }

    /// Tokens of a prompt that the next step should take at most.
    pub(crate) fn chunk(&self) -> usize {
        match self.lock().prefill {
            Some(each) => ((STEP.as_nanos() / each.as_nanos().max(1)) as usize).max(LEAST_CHUNK),
            None => FIRST_CHUNK,
        }
    }

    /// What a step of an encode should take at most.
    pub(crate) fn step(&self) -> Duration {
        STEP
    }

    /// Waits a moment: answers are held.
    pub(crate) fn hold(&self) {
        std::thread::sleep(NAP);
        self.lock().rested += NAP;
    }

    /// Waits for as long as a step that took so long asks for, or until it is cancelled.
    pub(crate) fn rest(&self, doing: Doing, took: Duration, cancel: &Cancel) {
        let wait = {
            let mut state = self.lock();
            if let Doing::Prefill(tokens @ 1..) = doing {
                state.prefill = Some(took / u32::try_from(tokens).unwrap_or(u32::MAX));
            }
            let wait = wait(&state.settings, doing, took);
            if let Doing::Decode(tokens @ 1..) = doing {
                state.tokens_per_second = Some(tokens as f64 / (took + wait).as_secs_f64().max(1e-9));
            }
            wait
        };
        let clock = Clock::start();
        while clock.now() < wait && !cancel.is_cancelled() {
            std::thread::sleep(NAP.min(wait.saturating_sub(clock.now())));
        }
        self.lock().rested += clock.now().min(wait);
    }

    pub(crate) fn report(&self) -> GovernorReport {
        let state = self.lock();
        GovernorReport {
            settings: state.settings,
            moves: state.governor.metrics().collect(),
            events: state.events.iter().cloned().collect(),
            unknown: state.unknown.clone(),
            rested: state.rested,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time to wait behind a step: a core that works for a share of the time is as slow as one of that share of the frequency,
/// and takes about that share of the energy.
fn wait(settings: &Settings, doing: Doing, took: Duration) -> Duration {
    let speed = match doing {
        Doing::Decode(_) => settings.decode_speed,
        _ => settings.speed,
    };
    let wait = took.mul_f64((1.0 / speed.clamp(margay_device::LEAST_SPEED, 1.0)) - 1.0);
    match (doing, settings.pace) {
        (Doing::Decode(tokens), Some(pace)) => {
            wait.max(Duration::from_secs_f64(tokens as f64 / pace.max(0.1)).saturating_sub(took))
        }
        _ => wait,
    }
}

/// What a sample says of what the governor watches.
fn observation(sample: &Sample, channels: &Channels, at: Duration) -> Observation {
    let parts = sample.core_cap_hertz.iter().zip(&channels.core_top_hertz).filter_map(|(cap, top)| {
        let (cap, top) = ((*cap)?, (*top)?);
        (top > 0.0).then(|| (cap / top).min(1.0))
    });
    // What a group may still take, where that is less.
    let group = sample
        .cgroup_max_bytes
        .zip(sample.cgroup_bytes)
        .map(|(max, used)| max.saturating_sub(used.saturating_sub(sample.cgroup_file_bytes.unwrap_or(0))));
    Observation {
        at,
        temperature_celsius: sample.temperature_celsius,
        cap_fraction: parts.reduce(f64::min),
        memory_available_bytes: sample.available_bytes.into_iter().chain(group).min(),
        memory_pressure: sample.memory_pressure_percent,
        battery_percent: sample.battery_charge_percent,
        charging: sample.charging,
        queue: 0,
        tokens_per_second: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AskOptions, Event, Image, Job, Model, Scheduler, SchedulerOptions, Session, Stop};
    use std::{fs, path::Path};

    /// A device whose thermometer and memory the test sets: there is no thermometer on most machines that run tests.
    struct Device(tempfile::TempDir);

    impl Device {
        fn new(celsius: f64, available_kib: u64) -> Self {
            let device = Device(tempfile::tempdir().unwrap());
            fs::create_dir_all(device.path().join("sys/class/thermal/thermal_zone0")).unwrap();
            fs::create_dir_all(device.path().join("proc")).unwrap();
            fs::write(device.path().join("sys/class/thermal/thermal_zone0/type"), "soc-thermal\n").unwrap();
            device.set(celsius);
            let meminfo = format!("MemTotal: 8000000 kB\nMemAvailable: {available_kib} kB\n");
            fs::write(device.path().join("proc/meminfo"), meminfo).unwrap();
            device
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        /// With a battery of so many percent, which is not charged.
        fn with_battery(self, percent: u8) -> Self {
            let supply = self.path().join("sys/class/power_supply/BAT0");
            fs::create_dir_all(&supply).unwrap();
            for (file, text) in
                [("type", "Battery\n"), ("status", "Discharging\n"), ("capacity", &format!("{percent}\n"))]
            {
                fs::write(supply.join(file), text).unwrap();
            }
            self
        }

        fn set(&self, celsius: f64) {
            let milli = format!("{:.0}\n", celsius * 1000.0);
            fs::write(self.path().join("sys/class/thermal/thermal_zone0/temp"), milli).unwrap();
        }

        /// A model on it, for which 5 ms are a second.
        fn model(&self, bounds: Bounds) -> Model {
            let model = Model::nano().unwrap();
            model.set_governed(Governed::faster(200, bounds, &Root::new(self.path())));
            model
        }
    }

    fn picture() -> [Image; 1] {
        [Image::filled(64, 64, [200, 30, 30]).unwrap()]
    }

    /// Asks, and tells `seen` of each event.
    fn ask(session: &mut Session, mut seen: impl FnMut(&Event)) -> crate::Report {
        let options = AskOptions { max_tokens: 12, ..AskOptions::default() };
        for event in session.ask_with(&picture(), "What is in this picture?", &options).unwrap() {
            let event = event.unwrap();
            seen(&event);
            if let Event::Done(report) = event {
                return *report;
            }
        }
        unreachable!("an answer ends with its report")
    }

    #[test]
    fn a_device_that_grows_hot_is_slowed_down_and_says_the_same() {
        let alone = ask(&mut Model::nano().unwrap().session().unwrap(), |_| {});
        let device = Device::new(60.0, 4_000_000);
        let model = device.model(Bounds { ceiling_celsius: Some(80.0), ..Bounds::default() });
        let mut celsius = 60.0;
        let mut moved = vec![];
        let report = ask(&mut model.session().unwrap(), |event| {
            match event {
                Event::Governed(event) => moved.push((event.rung, event.resource.name())),
                Event::Stage { .. } => celsius = f64::min(celsius + 3.0, 75.0),
                _ => {}
            }
            device.set(celsius);
            std::thread::sleep(Duration::from_millis(6));
        });
        assert_eq!((&report.text, &report.tokens), (&alone.text, &alone.tokens));
        assert!(moved.contains(&("speed", "heat")), "{moved:?}");
        let told = model.governor().unwrap();
        assert!(told.rested > Duration::ZERO && told.unknown.is_empty());
        assert_eq!(told.events.iter().filter(|event| event.rung == "speed").count(), {
            moved.iter().filter(|(rung, _)| *rung == "speed").count()
        });
    }

    #[test]
    fn above_the_ceiling_answers_are_held_until_it_is_cool_and_can_be_cancelled_meanwhile() {
        let device = Device::new(85.0, 4_000_000);
        let bounds = Bounds { ceiling_celsius: Some(80.0), ..Bounds::default() };
        let model = device.model(bounds);
        let mut session = model.session().unwrap();
        let cancel = session.cancel();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(150));
            cancel.cancel();
        });
        let mut computed = 0;
        let held = ask(&mut session, |event| computed += usize::from(matches!(event, Event::Stage { .. })));
        stopper.join().unwrap();
        assert_eq!((held.stop, computed), (Stop::Cancelled, 0));
        assert!(model.governor().unwrap().settings.hold);

        // It cools while the next answer waits. 30 s of being cool, 150 ms here, let it go on.
        let cooling = std::thread::spawn({
            let path = device.path().join("sys/class/thermal/thermal_zone0/temp");
            move || {
                std::thread::sleep(Duration::from_millis(100));
                fs::write(path, "50000\n").unwrap();
            }
        });
        let went_on = ask(&mut session, |_| {});
        cooling.join().unwrap();
        assert_eq!(went_on.stop, Stop::End);
        assert!(!model.governor().unwrap().settings.hold);
    }

    #[test]
    fn a_device_short_of_memory_refuses_questions_with_a_time_to_ask_again() {
        let device = Device::new(40.0, 50_000);
        let model = device.model(Bounds { watermark_bytes: Some(1 << 30), ..Bounds::default() });
        let refused = model.session().unwrap().ask(&picture(), "What is this?").map(|_| ()).unwrap_err();
        assert!(
            matches!(&refused, Error::Refused { retry_after, .. } if *retry_after >= Duration::from_secs(1))
        );
        for part in ["memory", "49 MiB available", "watermark 1024 MiB", "ask again in"] {
            assert!(refused.to_string().contains(part), "{refused}");
        }
        let scheduler = Scheduler::new(model, SchedulerOptions::default()).unwrap();
        let content = vec![crate::Content::Text("What is this?".to_owned())];
        let turns = vec![crate::Turn { role: "user".to_owned(), content }];
        let job = Job { turns, options: AskOptions::default() };
        assert!(matches!(scheduler.submit(job, Box::new(|_| true)), Err(Error::Refused { .. })));
    }

    #[test]
    fn a_device_that_becomes_short_of_memory_sees_fewer_visual_tokens_and_remembers_none_of_that() {
        let device = Device::new(40.0, 950_000);
        let model =
            Model::nano_with(&crate::LoadOptions { image_cache: 1 << 20, ..Default::default() }).unwrap();
        let watermark_bytes = Some(1_000_000 << 10);
        let bounds = Bounds { watermark_bytes, ..Bounds::default() };
        model.set_governed(Governed::faster(1, bounds, &Root::new(device.path())));
        let report = ask(&mut model.session().unwrap(), |_| {});
        let seen = report.pictures[0];
        assert_eq!((seen.tokens, seen.of, seen.why), (18, 36, Some(crate::Reason::Device)));
        assert_eq!(report.stages.visual_tokens, 18);
        // Once there is memory again, the picture is seen as it is.
        let bounds = Bounds { watermark_bytes: Some(1), ..bounds };
        model.set_governed(Governed::faster(1, bounds, &Root::new(device.path())));
        let report = ask(&mut model.session().unwrap(), |_| {});
        assert_eq!((report.pictures[0].tokens, report.stages.reused_pictures), (36, 0));
    }

    /// A model whose pictures have sizes, and which needs all visual tokens.
    fn of_sizes() -> (Model, Image) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/qwen2vl");
        let options = crate::LoadOptions { kv: crate::KvType::F32, ..Default::default() };
        (Model::load_with(&folder, &options).unwrap(), Image::open(folder.join("large.png")).unwrap())
    }

    fn turns(image: &Image, more: &[&str]) -> Vec<crate::Turn> {
        let words = |text: &str| crate::Content::Text(text.to_owned());
        let mut turns = vec![crate::Turn {
            role: "user".to_owned(),
            content: vec![crate::Content::Image(image.clone()), words("one")],
        }];
        for (at, text) in more.iter().enumerate() {
            let role = if at % 2 == 0 { "assistant" } else { "user" }.to_owned();
            turns.push(crate::Turn { role, content: vec![words(text)] });
        }
        turns
    }

    #[test]
    fn a_device_short_of_memory_sees_smaller_pictures_and_keeps_new_conversations_in_fewer_bits() {
        let (model, image) = of_sizes();
        let options = AskOptions { max_tokens: 6, ..AskOptions::default() };
        let mut free = model.session().unwrap();
        let whole = free.ask_turns(&turns(&image, &[]), &options).unwrap().report().unwrap();

        let device = Device::new(40.0, 550_000);
        let bounds = Bounds { watermark_bytes: Some(1_000_000 << 10), ..Bounds::default() };
        model.set_governed(Governed::faster(1, model.with_purpose(bounds), &Root::new(device.path())));
        let mut session = model.session().unwrap();
        let seen = session.ask_turns(&turns(&image, &[]), &options).unwrap().report().unwrap();
        let told = model.governor().unwrap();
        assert_eq!((told.settings.resolution, told.settings.kv), (0.5, KvStep::Q4));
        assert_eq!(told.settings.visual_tokens, 1.0, "a rung that does nothing is passed over");
        let picture = seen.pictures[0];
        assert_eq!((picture.of, picture.why), (whole.stages.visual_tokens, Some(crate::Reason::Device)));
        assert!(picture.tokens * 3 <= whole.stages.visual_tokens, "{picture:?}");
        assert_eq!(seen.stages.visual_tokens, picture.tokens);
        let form = |session: &Session| session.state.form().unwrap();
        assert!(form(&session).contains("q4_0") && form(&free).contains("f32"));
        assert!(session.cache_bytes() * 2 < free.cache_bytes());

        // A conversation that was going on stays as it is, and this one does when memory is back.
        let more = [seen.text.as_str(), "two"];
        let went_on = free.ask_turns(&turns(&image, &[&whole.text, "two"]), &options).unwrap();
        let went_on = went_on.report().unwrap();
        assert_eq!(went_on.stages.visual_tokens, whole.stages.visual_tokens);
        assert!(went_on.stages.reused_tokens > whole.stages.visual_tokens && went_on.pictures.is_empty());
        model.set_governed(Governed::faster(1, Bounds::default(), &Root::new(device.path())));
        let later = session.ask_turns(&turns(&image, &more), &options).unwrap().report().unwrap();
        assert_eq!((later.stages.visual_tokens, later.stages.reused_pictures), (picture.tokens, 1));
        assert!(later.stages.reused_tokens > picture.tokens);
        // Another conversation is whole again.
        session.clear();
        let again = session.ask_turns(&turns(&image, &[]), &options).unwrap().report().unwrap();
        assert_eq!((again.tokens, again.stages.reused_pictures), (whole.tokens, 0));
        assert!(form(&session).contains("f32"));
    }

    #[test]
    fn a_device_on_its_last_charge_looks_at_every_second_frame() {
        let device = Device::new(40.0, 4_000_000).with_battery(30);
        let model = device.model(Bounds { battery_percent: Some(50.0), ..Bounds::default() });
        let mut clip = crate::Clip::new(&model, crate::ClipOptions::default(), Cancel::new()).unwrap();
        let frame = |at: u8| Image::filled(96, 96, [at * 20, 200 - at * 20, 60]).unwrap();
        let looked: Vec<_> = (0..6).map(|at| clip.push(&frame(at)).unwrap()).collect();
        let every_second = [crate::Looked::Kept, crate::Looked::Skipped];
        assert_eq!(looked, [every_second; 3].concat());
        let report = clip.report();
        assert_eq!((report.frames, report.skipped, report.encoded), (6, 3, 3));
    }

    #[test]
    fn what_no_sensor_tells_moves_nothing() {
        let empty = tempfile::tempdir().unwrap();
        let model = Model::nano().unwrap();
        let bounds = Bounds {
            ceiling_celsius: Some(1.0),
            watermark_bytes: Some(u64::MAX),
            battery_percent: Some(100.0),
            ..Bounds::default()
        };
        model.govern(bounds, &Root::new(empty.path()));
        let report = ask(&mut model.session().unwrap(), |_| {});
        assert_eq!(report.stop, Stop::End);
        let told = model.governor().unwrap();
        assert_eq!((told.settings, told.rested), (Settings::FULL, Duration::ZERO));
        assert_eq!(told.unknown, ["heat", "memory", "battery"]);
    }

    #[test]
    fn a_step_rests_in_the_ratio_of_the_speed_and_a_token_waits_for_its_pace() {
        let second = Duration::from_secs(1);
        let settings = Settings { speed: 0.5, decode_speed: 0.8, pace: Some(0.5), ..Settings::FULL };
        assert_eq!(wait(&Settings::FULL, Doing::Other, second), Duration::ZERO);
        assert_eq!(wait(&settings, Doing::Prefill(64), second), second);
        // Two tokens in four seconds; the speed alone would ask for a quarter of a second.
        assert_eq!(wait(&settings, Doing::Decode(2), second), 3 * second);
        assert_eq!(wait(&Settings { pace: None, ..settings }, Doing::Decode(1), second), second / 4);
    }

    #[test]
    fn the_cap_is_that_of_the_slowest_core_and_memory_what_the_group_leaves() {
        let channels = Channels { core_top_hertz: vec![Some(2e9), Some(3e9), None], ..Channels::default() };
        let sample = Sample {
            core_cap_hertz: vec![Some(2e9), Some(1.5e9), Some(1e9)],
            available_bytes: Some(1000),
            cgroup_bytes: Some(95),
            cgroup_file_bytes: Some(5),
            cgroup_max_bytes: Some(100),
            ..Sample::default()
        };
        let seen = observation(&sample, &channels, Duration::ZERO);
        assert_eq!((seen.cap_fraction, seen.memory_available_bytes), (Some(0.5), Some(10)));
        let nothing = observation(&Sample::default(), &Channels::default(), Duration::ZERO);
        assert_eq!(nothing, Observation::default());
    }
}
