//! Taking a recording: the samplers run, and what they read is kept.

use crate::{
    Clock, Root, Sensors, Series, What, machine,
    recording::{About, RecordingError, Tape, TapeWriter},
    sampler::Gathering,
    sensors::Watched,
};
use std::{io::Write, sync::Arc, time::Duration};

/// Samples of a recording that are kept in memory for its report.
const MOST_SAMPLES: usize = 4096;

/// How to record.
#[derive(Clone, Copy, Debug)]
pub struct RecordOptions {
    /// Time between samples.
    pub period: Duration,
    /// What to look at.
    pub what: What,
    /// Greatest size of the file.
    pub most_bytes: u64,
}

/// A recording that is being taken. [`TreeRecorder::step`] takes a sample; when, is up to the caller.
pub struct TreeRecorder<W: Write> {
    root: Root,
    tape: Arc<Tape>,
    sensors: Sensors,
    gathering: Gathering,
    writer: TapeWriter<W>,
    clock: Clock,
}

impl<W: Write> std::fmt::Debug for TreeRecorder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeRecorder").field("root", &self.root).finish_non_exhaustive()
    }
}

impl<W: Write> TreeRecorder<W> {
    /// Begins a recording of `root` as a tar file on `out`.
    ///
    /// # Errors
    /// Where `out` cannot be written.
    pub fn begin(out: W, root: Root, options: &RecordOptions) -> Result<Self, RecordingError> {
        let process = match options.what.process {
            Watched::None => None,
            Watched::Own => Some("self".to_owned()),
            Watched::Pid(pid) | Watched::Tree(pid) => Some(pid.to_string()),
        };
        let (machine, period_seconds) = (machine::cpu_name(&root), options.period.as_secs_f64());
        let about = About { margay_recording: 1, machine, process, period_seconds };
        let writer = TapeWriter::new(out, &about, options.most_bytes)?;
        let tape = Arc::new(Tape::default());
        let root = root.with_tape(tape.clone());
        Ok(TreeRecorder {
            sensors: Sensors::probe(&root, &options.what),
            gathering: Gathering::new(options.period, MOST_SAMPLES),
            root,
            tape,
            writer,
            clock: Clock::start(),
        })
    }

    /// Takes a sample. `false` where the file is as large as it may be: nothing was added, and nothing more will be.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn step(&mut self) -> Result<bool, RecordingError> {
        let at = self.clock.now();
        let sample = self.sensors.sample(&self.root, at);
        let kept = self.writer.moment(at, &self.tape)?;
        if kept {
            self.gathering.push(sample);
        }
        Ok(kept)
    }

    /// Samples so far.
    pub fn samples(&self) -> usize {
        self.writer.moments()
    }

    /// Ends the file and gives it, with what the samplers said while it was taken.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn finish(self) -> Result<(W, Series), RecordingError> {
        let series = self.gathering.finish(&self.sensors, &self.root);
        Ok((self.writer.finish()?, series))
    }
}
