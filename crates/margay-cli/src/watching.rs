//! A video: its frames looked at one at a time.

use crate::{
    Usage, environment,
    interrupt::{Interrupt, Late},
    model::part,
    output,
    progress::Spinner,
};
use clap::Args;
use margay::{Clip, ClipOptions, ClipReport, Frames, FramesOptions, Model, Session};
use std::{num::NonZeroUsize, path::PathBuf};

/// Which video, and what of it.
#[derive(Clone, Debug, Args)]
pub(crate) struct VideoArgs {
    /// A video file (decoded by ffmpeg) or a folder of frames; the question is about its newest frames that show something new
    #[arg(long, value_name = "FILE|FOLDER", conflicts_with_all = ["images", "messages"])]
    pub video: Option<PathBuf>,
    /// Frames a second taken of a video file; all unless given
    #[arg(long, value_name = "F", requires = "video")]
    pub fps: Option<f64>,
    /// Take every Nth frame
    #[arg(long, value_name = "N", default_value = "1", requires = "video")]
    pub every: NonZeroUsize,
    /// Frames held at most, the newest
    #[arg(long, value_name = "N", default_value = "16", requires = "video")]
    pub max_frames: NonZeroUsize,
    /// Share of a frame that has to differ from the last one looked at; others are left out
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = share, requires = "video")]
    pub least_change: f32,
    /// Visual tokens become means of squares of N x N; 1 keeps each
    #[arg(long, value_name = "N", default_value = "2", requires = "video")]
    pub pool: NonZeroUsize,
    /// Encode of a frame only the patches that changed, and every eighth frame whole: faster, and what did not change does not
    /// see what did (CLIP and SigLIP)
    #[arg(long, requires = "video")]
    pub changed_patches: bool,
}

/// `1%` or `0.01`; 0 looks at every frame.
fn share(text: &str) -> Result<f32, String> {
    let share = part(text).filter(|share| (0.0..=1.0).contains(share));
    share.map(|share| share as f32).ok_or_else(|| "a share is 0% to 100%".to_owned())
}

impl VideoArgs {
    /// Looks at all frames; `None` where Ctrl-C stopped it.
    pub(crate) fn watch(
        &self,
        model: &Model,
        session: &Session,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<Clip>> {
        let Some(path) = &self.video else { return Err(Usage("--video says which".to_owned()).into()) };
        let frames = FramesOptions {
            fps: self.fps,
            every: self.every.get(),
            ffmpeg: environment::ffmpeg(),
            ..FramesOptions::default()
        };
        let options = ClipOptions {
            most_frames: self.max_frames.get(),
            least_change: self.least_change,
            pool: self.pool.get(),
            ..ClipOptions::default()
        };
        let mut clip = Clip::new(model, options, session.cancel())?;
        let frames = Frames::open(path, &frames)?;
        let watch = interrupt.watch(session.cancel(), Late::Leave);
        let spinner = Spinner::start("watching");
        for frame in frames {
            clip.push(&frame?)?;
            if watch.pressed() {
                return Ok(None);
            }
            spinner.say(format!("watching {}", clip.report().frames));
        }
        spinner.clear();
        Ok(Some(clip))
    }
}

/// Says what was looked at; `shown` of the frames held stand in the prompt.
pub(crate) fn tell(report: &ClipReport, shown: usize) {
    let skipped = match report.skipped {
        0 => String::new(),
        frames => format!("{frames} left out by the governor, "),
    };
    let patches = match report.of_patches {
        all if all == report.patches => String::new(),
        all => format!(", {:.0}% of their patches", 100.0 * report.patches as f64 / all.max(1) as f64),
    };
    output::aside(&format!(
        "{} frames, {} hardly differ from the one before, {skipped}{} encoded{patches}; the newest {shown} of {} held are shown, {} visual tokens \
         in {}",
        report.frames,
        report.still,
        report.encoded,
        report.held,
        report.tokens,
        margay::rooms::observe::report::bytes(report.bytes as u64)
    ));
}
