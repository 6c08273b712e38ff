//! Samples over time: a thread that takes them, and what it gathered.

use crate::{
    Channels, Clock, Finding, Recording, Root, Sample, Sensors, What, power, sensors::Watched,
    thread_cpu_time,
};
use serde::Serialize;
use std::{
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Time between samples in the field's studies.
pub const PERIOD: Duration = Duration::from_millis(100);

/// Most samples that are kept: at ten a second the first merge is after almost seven minutes.
const MOST_SAMPLES: usize = 4096;

/// Samples of one stretch of time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Series {
    /// Seconds between samples, as planned.
    #[serde(rename = "period_seconds", serialize_with = "crate::sample::seconds")]
    pub period: Duration,
    /// How many samples each of `samples` was merged from, the last one perhaps of fewer: 1 unless there were too many to
    /// keep. Each time there are, neighbours are merged in pairs.
    pub merged: usize,
    /// What positions in the samples' lists stand for.
    pub channels: Channels,
    /// In order of time.
    pub samples: Vec<Sample>,
    /// Every quantity that was looked for, as of the last sample.
    pub findings: Vec<Finding>,
    /// What the sampling itself cost; `None` of a replay.
    pub overhead: Option<Overhead>,
}

/// What sampling cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Overhead {
    /// Samples taken.
    pub samples: usize,
    /// Times at which no sample was taken because the one before was late.
    pub missed: usize,
    /// Processor time of the sampling thread, in percent of one core, first look included.
    pub cpu_percent: Option<f64>,
    /// Mean time of one sample from its first file to its last.
    pub mean_wall_seconds: f64,
    /// Longest such time, that of the first look aside.
    pub max_wall_seconds: f64,
}

/// Energy of a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Energy {
    /// All of it.
    pub joules: f64,
    /// Share of the time for which power was known, 0 to 1.
    pub known: f64,
}

impl Series {
    /// An empty series.
    pub fn new(period: Duration) -> Self {
        Series { period, merged: 1, ..Series::default() }
    }

    /// When the first and the last sample were taken; `None` without one.
    pub fn range(&self) -> Option<(Duration, Duration)> {
        Some((self.samples.first()?.at, self.samples.last()?.at))
    }

    /// Energy between two times, by the source that `channels.power` names; `None` where nothing of it is known.
    pub fn energy(&self, from: Duration, to: Duration) -> Option<Energy> {
        let (mut joules, mut known) = (0.0, 0.0);
        for sample in &self.samples {
            let seconds = sample.overlap(from, to);
            if let Some(watts) = sample.power_watts {
                joules += watts * seconds;
                known += seconds;
            }
        }
        let whole = to.saturating_sub(from).as_secs_f64();
        (known > 0.0 && whole > 0.0).then(|| Energy { joules, known: (known / whole).min(1.0) })
    }

    /// Mean power of the whole series, to serve as an idle baseline; `None` where it is known for less than half of the
    /// time.
    pub fn mean_watts(&self) -> Option<f64> {
        let (from, to) = self.range()?;
        let energy = self.energy(from, to).filter(|energy| energy.known >= 0.5)?;
        Some(energy.joules / energy.known / to.saturating_sub(from).as_secs_f64())
    }

    /// How often power changed: the source's own period, or the time of the series over the changes that were seen, which
    /// cannot be less than the time between samples. `None` without a source or a change.
    pub fn power_update(&self) -> Option<Duration> {
        let source = power::power_source(self.channels.power?)?;
        source.update_period().or_else(|| {
            let watts: Vec<f64> = self.samples.iter().filter_map(|sample| sample.power_watts).collect();
            let changes = watts.windows(2).filter(|pair| pair[0] != pair[1]).count();
            let (from, to) = self.range()?;
            (changes > 0).then(|| to.saturating_sub(from) / u32::try_from(changes).unwrap_or(u32::MAX))
        })
    }
}

impl Sample {
    /// Seconds of the time that this sample covers that lie between two times.
    pub(crate) fn overlap(&self, from: Duration, to: Duration) -> f64 {
        let start = self.at.saturating_sub(self.over).max(from);
        self.at.min(to).saturating_sub(start).as_secs_f64()
    }
}

/// Keeps samples, and merges neighbours when there are too many.
#[derive(Debug)]
pub(crate) struct Gathering {
    series: Series,
    most: usize,
    pending: Option<(Sample, usize)>,
}

impl Gathering {
    pub(crate) fn new(period: Duration, most: usize) -> Self {
        Gathering { series: Series::new(period), most: most.max(2), pending: None }
    }

    pub(crate) fn push(&mut self, sample: Sample) {
        // The first sample starts the time and has no rates: it is kept as it is.
        if self.series.samples.is_empty() {
            self.series.samples.push(sample);
            return;
        }
        let (sample, count) = match self.pending.take() {
            None => (sample, 1),
            Some((before, count)) => (before.merged(&sample), count + 1),
        };
        if count < self.series.merged {
            self.pending = Some((sample, count));
            return;
        }
        self.series.samples.push(sample);
        if self.series.samples.len() >= self.most {
            let mut samples = std::mem::take(&mut self.series.samples).into_iter();
            self.series.samples.extend(samples.next());
            while let Some(one) = samples.next() {
                match samples.next() {
                    Some(two) => self.series.samples.push(one.merged(&two)),
                    None => self.pending = Some((one, self.series.merged)),
                }
            }
            self.series.merged *= 2;
        }
    }

    pub(crate) fn finish(mut self, sensors: &Sensors, root: &Root) -> Series {
        self.series.samples.extend(self.pending.map(|(sample, _)| sample));
        self.series.channels = sensors.channels().clone();
        self.series.findings = sensors.findings(root);
        self.series
    }
}

/// A thread that takes samples. Dropping it ends the thread and forgets them.
#[derive(Debug)]
pub struct Sampler {
    stop: Sender<()>,
    thread: Option<JoinHandle<Series>>,
}

impl Sampler {
    /// Starts taking samples, the first one at once. `clock` is that of the spans they will be compared with.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(root: Root, clock: Clock, period: Duration, what: What) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let period = period.max(Duration::from_millis(1));
        let (ready, first) = channel();
        let thread = std::thread::Builder::new().name("margay-sampler".to_owned()).spawn(move || {
            let mut work = Work::begin(root, clock, period, &what);
            // Nobody waits where the handle was dropped at once.
            let _ = ready.send(());
            let mut next = clock.now() + period;
            loop {
                let wait = next.saturating_sub(clock.now());
                match stopped.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => work.step(),
                    Ok(()) => {
                        // Up to the very end, so that short stages are covered.
                        work.step();
                        return work.finish();
                    }
                    Err(RecvTimeoutError::Disconnected) => return Series::new(period),
                }
                next += period;
                while next <= clock.now() {
                    next += period;
                    work.overhead.missed += 1;
                }
            }
        })?;
        // The first look finds the files and takes longest: what is measured should begin behind it.
        let _ = first.recv();
        Ok(Sampler { stop, thread: Some(thread) })
    }

    /// Takes a last sample and gives all of them.
    pub fn stop(mut self) -> Series {
        let _ = self.stop.send(());
        let series = self.thread.take().and_then(|thread| thread.join().ok());
        series.unwrap_or_default()
    }
}

/// What the thread does.
struct Work {
    root: Root,
    clock: Clock,
    sensors: Sensors,
    gathering: Gathering,
    overhead: Overhead,
    began: Duration,
    cpu_before: Option<Duration>,
}

impl Work {
    fn begin(root: Root, clock: Clock, period: Duration, what: &What) -> Self {
        let (began, cpu_before) = (clock.now(), thread_cpu_time());
        let mut work = Work {
            sensors: Sensors::probe(&root, what),
            gathering: Gathering::new(period, MOST_SAMPLES),
            overhead: Overhead::default(),
            root,
            clock,
            began,
            cpu_before,
        };
        let sample = work.sensors.sample(&work.root, work.clock.now());
        work.gathering.push(sample);
        work.overhead.samples = 1;
        work
    }

    fn step(&mut self) {
        let before = self.clock.now();
        let sample = self.sensors.sample(&self.root, before);
        self.gathering.push(sample);
        let wall = self.clock.now().saturating_sub(before).as_secs_f64();
        let overhead = &mut self.overhead;
        overhead.samples += 1;
        // The first look is in neither.
        overhead.mean_wall_seconds += (wall - overhead.mean_wall_seconds) / (overhead.samples - 1) as f64;
        overhead.max_wall_seconds = overhead.max_wall_seconds.max(wall);
    }

    fn finish(mut self) -> Series {
        let spent = thread_cpu_time().zip(self.cpu_before).map(|(now, before)| now.saturating_sub(before));
        let whole = self.clock.now().saturating_sub(self.began).as_secs_f64();
        self.overhead.cpu_percent = spent.map(|spent| 100.0 * spent.as_secs_f64() / whole.max(1e-9));
        let mut series = self.gathering.finish(&self.sensors, &self.root);
        series.overhead = Some(self.overhead);
        series
    }
}

/// Plays a recording through the samplers.
pub fn replay(recording: &Arc<Recording>) -> Series {
    let about = recording.about();
    let process = match about.process.as_deref() {
        Some("self") => Watched::Own,
        Some(number) => number.parse().map_or(Watched::None, Watched::Pid),
        None => Watched::None,
    };
    let period = Duration::try_from_secs_f64(about.period_seconds).unwrap_or(PERIOD);
    let mut gathering = Gathering::new(period, MOST_SAMPLES);
    let mut root = Root::recorded(recording.clone(), 0);
    let mut sensors = Sensors::probe(&root, &What { process, threads: true });
    for (moment, at) in recording.moments().iter().enumerate() {
        root = Root::recorded(recording.clone(), moment);
        gathering.push(sensors.sample(&root, *at));
    }
    gathering.finish(&sensors, &root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tick: u64, percent: f64) -> Sample {
        let (at, over) =
            (Duration::from_millis(100 * tick), Duration::from_millis(if tick == 0 { 0 } else { 100 }));
        Sample { at, over, cpu_percent: Some(percent), power_watts: Some(2.0), ..Sample::default() }
    }

    #[test]
    fn too_many_samples_are_merged_in_pairs_and_nothing_is_lost() {
        let mut gathering = Gathering::new(PERIOD, 16);
        for tick in 0..1000u32 {
            gathering.push(sample(u64::from(tick), f64::from(tick)));
        }
        let sensors = Sensors::probe(&Root::new("no-such-tree"), &What::default());
        let series = gathering.finish(&sensors, &Root::new("no-such-tree"));
        assert!(series.samples.len() <= 17, "{}", series.samples.len());
        assert!(series.merged >= 64 && series.merged.is_power_of_two());
        assert_eq!(series.range(), Some((Duration::ZERO, Duration::from_millis(99_900))));
        let covered: Duration = series.samples.iter().map(|sample| sample.over).sum();
        assert_eq!(covered, Duration::from_millis(99_900), "every moment is in one sample");
        let weighted: f64 =
            series.samples.iter().map(|s| s.cpu_percent.unwrap() * s.over.as_secs_f64()).sum();
        assert!((weighted / 99.9 - 500.0).abs() < 1e-6, "the mean stays");
        let energy = series.energy(Duration::ZERO, Duration::from_millis(99_900)).unwrap();
        assert!((energy.joules - 199.8).abs() < 1e-6 && energy.known > 0.999);
    }

    #[test]
    fn energy_of_a_part_counts_the_part_and_unknown_power_is_unknown() {
        let mut series = Series::new(PERIOD);
        series.samples = (0..4).map(|tick| sample(tick, 0.0)).collect();
        let millis = Duration::from_millis;
        let energy = series.energy(millis(50), millis(250)).unwrap();
        assert!((energy.joules - 0.4).abs() < 1e-9 && energy.known == 1.0);
        series.samples[1].power_watts = None;
        let energy = series.energy(millis(0), millis(200)).unwrap();
        assert!((energy.joules - 0.2).abs() < 1e-9 && (energy.known - 0.5).abs() < 1e-9);
        assert_eq!(series.energy(millis(0), millis(100)), None);
    }
}
