//! What a person sees while long work runs: a spinner or a bar on a terminal's stderr, plain lines elsewhere.

use crate::{environment, output};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Between two frames; fast enough to look alive, slow enough to cost nothing.
const FRAME: Duration = Duration::from_millis(100);

/// Whether a progress line stands on the terminal.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// True while a progress line stands on the terminal.
pub(crate) fn is_shown() -> bool {
    SHOWN.load(Ordering::Relaxed)
}

/// A line that says what is being done. Dropping it wipes it.
pub(crate) struct Spinner(ProgressBar);

impl Spinner {
    /// Shows `doing` where a person looks on, nothing elsewhere.
    pub(crate) fn start(doing: &str) -> Self {
        if !environment::stderr_is_terminal() {
            return Spinner(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style("{spinner} {msg} {elapsed:.dim}"));
        bar.set_message(doing.to_owned());
        bar.enable_steady_tick(FRAME);
        SHOWN.store(true, Ordering::Relaxed);
        Spinner(bar)
    }

    /// Changes what it says.
    pub(crate) fn say(&self, doing: String) {
        self.0.set_message(doing);
    }

    /// Wipes the line.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
        SHOWN.store(false, Ordering::Relaxed);
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How far long work is: a bar on a terminal, else a line every tenth of the way.
pub(crate) enum Meter {
    Bar(ProgressBar),
    Lines { tenth: u64 },
    Silent,
}

impl Meter {
    /// A meter of bytes; `silent` where nobody wants to hear.
    pub(crate) fn start(silent: bool) -> Self {
        Self::with(silent, "{bar:30} {percent:>3}% {binary_bytes}/{binary_total_bytes} {eta} {wide_msg:.dim}")
    }

    /// A meter of things that are counted.
    pub(crate) fn counting() -> Self {
        Self::with(false, "{bar:30} {pos}/{len} {elapsed}, {eta} left {wide_msg:.dim}")
    }

    fn with(silent: bool, template: &str) -> Self {
        if silent {
            return Meter::Silent;
        }
        if !environment::stderr_is_terminal() {
            return Meter::Lines { tenth: 0 };
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        bar.set_style(style(template));
        SHOWN.store(true, Ordering::Relaxed);
        Meter::Bar(bar)
    }

    /// So many of `of` are done; `what` is the latest part.
    pub(crate) fn update(&mut self, done: u64, of: u64, what: &str) {
        match self {
            Meter::Bar(bar) => {
                bar.set_length(of);
                bar.set_position(done);
                bar.set_message(output::harmless(what).into_owned());
            }
            Meter::Lines { tenth } => {
                let now = (u128::from(done) * 10).checked_div(u128::from(of)).unwrap_or(10) as u64;
                if now > *tenth {
                    *tenth = now;
                    output::note(&format!("{}% ({what})", now * 10));
                }
            }
            Meter::Silent => {}
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Meter::Bar(bar) = self {
            bar.finish_and_clear();
            SHOWN.store(false, Ordering::Relaxed);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("invariant: the templates are well formed")
}
