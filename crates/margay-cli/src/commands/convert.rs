//! `margay convert`: a checkpoint into a GGUF file.

use crate::{
    Outcome, hub,
    interrupt::{Interrupt, Late},
    model, output,
    progress::Meter,
    written,
};
use clap::Args;
use margay::{Cancel, rooms::tensor::DType};
use margay_pack::{ConvertOptions, PackError, convert};
use std::{ops::ControlFlow, path::PathBuf};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay convert ./llava-1.5-7b -o llava.gguf                 float16; the vision side in mmproj-llava.gguf
  margay convert ./MobileVLM_V2-1.7B -o m.gguf --type q4_k    four bits a weight
  margay convert ./MobileVLM_V2-1.7B -o m.gguf --type q4_0 --vision-type q8_0 --single

Ctrl-C stops it; no file is left behind. Where it was killed instead, the same command goes on behind
the last whole tensor, after a check of what is there. Memory stays small whatever the model's size.";

/// Convert a checkpoint to GGUF, quantizing it where asked to
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Convert {
    /// A Hugging Face folder or a GGUF file
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The vision file of a GGUF source, where it does not lie beside it
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,
    /// The file to write; a vision side goes to mmproj-FILE beside it
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Format of the decoder's matrices; a row that its blocks do not divide takes the nearest format that does
    #[arg(long = "type", value_name = "TYPE", default_value = "f16", value_parser = model::stored_types())]
    dtype: DType,
    /// Format of the vision side's matrices: the decoder's where that has 8 bits or more, else f16, unless given
    #[arg(long, value_name = "TYPE", value_parser = model::stored_types())]
    vision_type: Option<DType>,
    /// Write one file, with the vision side inside
    #[arg(long)]
    single: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Convert {
    pub(crate) fn run(mut self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        self.source = hub::local(&self.source)?.into_owned();
        written::keep_the_source(Some(&self.source), self.mmproj.as_deref(), &self.out)?;
        let source = model::source(Some(&self.source), self.mmproj.as_deref())?;
        let options =
            ConvertOptions { dtype: self.dtype, vision_dtype: self.vision_type, single: self.single };
        // Waited for rather than left: the unfinished files have to go.
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Wait);
        let mut meter = Meter::start(self.json);
        let result = convert(&source, &self.out, &options, &mut |step| {
            if cancel.is_cancelled() {
                return ControlFlow::Break(());
            }
            meter.update(step.done_bytes, step.of_bytes, step.tensor);
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
        if report.resumed > 0 {
            let tensors = report.resumed;
            output::aside(&format!("went on behind {tensors} tensors of a conversion that was killed"));
        }
        if self.json {
            output::json(&written::as_json(&report))?
        } else {
            output::text(&written::describe(&report))?
        }
        Ok(Outcome::Done)
    }
}
