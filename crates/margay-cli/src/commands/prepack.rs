//! `margay prepack`: a model's matrices in the order the kernels read them, in a file beside it.

use crate::{
    Outcome,
    interrupt::{Interrupt, Late},
    model::{self, ThreadArgs},
    output,
    progress::Meter,
};
use clap::Args;
use margay::{Cancel, backend, rooms::observe::report::bytes};
use margay_pack::{PackError, PrepackOutcome, Prepacked, prepack, verify_packed};
use serde_json::json;
use std::{ops::ControlFlow, path::PathBuf};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay prepack llava.gguf            llava.gguf.avx2.packed beside it, and one beside its mmproj
  margay prepack llava.gguf --verify   compares those files with their checksums
  MARGAY_ISA=scalar margay prepack llava.gguf

Commands that load a model use these files where they fit it, and load faster; --no-packed ignores them.
They can be deleted at any time. Ctrl-C stops the work; no file is left behind.";

/// Keep a model's weights packed beside it, so that it loads faster
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Prepack {
    /// A GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The model's vision file, where it does not lie beside the model
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Write even where a file that fits is there, or packing takes no time
    #[arg(long, conflicts_with = "verify")]
    force: bool,
    /// Write nothing: read the files that are there and compare them with their checksums
    #[arg(long)]
    verify: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Prepack {
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let source = model::source(Some(&self.model), self.mmproj.as_deref())?;
        let backend = backend(&self.threads.options())?;
        if self.verify {
            let sound = verify_packed(&source, backend.as_ref())?;
            if self.json {
                output::json(&json!({ "sound": sound }))?;
            } else if sound.is_empty() {
                output::line("there is no packed file; `margay prepack` makes one")?;
            }
            for path in sound.iter().filter(|_| !self.json) {
                output::line(&format!("{}  sound", path.display()))?;
            }
            return Ok(Outcome::Done);
        }
        // Waited for rather than left: the unfinished files have to go.
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Wait);
        let mut meter = Meter::start(self.json);
        let result = prepack(&source, backend.as_ref(), self.force, &mut |step| {
            if cancel.is_cancelled() {
                return ControlFlow::Break(());
            }
            meter.update(step.done_bytes, step.of_bytes, step.weight);
            ControlFlow::Continue(())
        });
        drop(meter);
        let report = match result {
            Err(PackError::Stopped) if watch.pressed() => {
                output::aside("stopped; no file was written");
                return Ok(Outcome::Interrupted);
            }
            result => result?,
        };
        if self.json {
            output::json(&json!({ "files": report.iter().map(as_json).collect::<Vec<_>>() }))?;
        } else {
            report.iter().try_for_each(|file| output::line(&describe(file)))?;
        }
        Ok(Outcome::Done)
    }
}

fn as_json(file: &Prepacked) -> serde_json::Value {
    let (written, weights, bytes, why) = match &file.outcome {
        PrepackOutcome::Written { weights, size_bytes } => (true, Some(weights), Some(size_bytes), None),
        PrepackOutcome::UpToDate => (false, None, None, Some("up_to_date")),
        PrepackOutcome::TooSmall { .. } => (false, None, None, Some("too_small")),
    };
    json!({
        "model": file.model,
        "path": file.path,
        "written": written,
        "weights": weights,
        "bytes": bytes,
        "why_not": why,
    })
}

fn describe(file: &Prepacked) -> String {
    match &file.outcome {
        PrepackOutcome::Written { weights, size_bytes } => {
            format!("{}  {}, {weights} matrices", file.path.display(), bytes(*size_bytes))
        }
        PrepackOutcome::UpToDate => {
            format!("{}  is there and fits; --force makes it anew", file.path.display())
        }
        PrepackOutcome::TooSmall { matrix_bytes } => format!(
            "{}  not written: {} of matrices are packed in no time; --force writes it all the same",
            file.path.display(),
            bytes(*matrix_bytes)
        ),
    }
}
