//! `margay bench`: how fast answers are on this machine, and how near its limits kernels and stages come.

mod gate;
mod kernels;
mod pipeline;
mod shape;
mod stages;

use crate::{Outcome, interrupt::Interrupt};
use clap::{Args, Subcommand};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay bench                                        the built-in model, words only
  margay bench llava.gguf --image street.png --prompt \"What does the sign say?\" --repeat 5 --warmup 1
  margay bench llava.gguf --image street.png --out today.json --html today.html
  margay bench llava.gguf --image street.png --sustained 30m    what heat leaves of the speed
  margay bench llava.gguf --image street.png --gate baseline.json    fails with exit code 3 where it became slower
  margay bench compare before.json after.json         what changed beyond noise
  margay bench llava.gguf --image street.png --peer llama.cpp=./llama-mtmd-cli --peer command='./other \"$IMAGE\" \"$PROMPT\"'
  margay bench --shape llava-1.5-7b --type q4_0 --image street.png --max-tokens 16
                                                      random weights of the true sizes: this device, no download
  margay bench stages model.gguf                      single stages beside the limits of the machine
  margay bench kernels --quick                        single kernels

ROUNDS:
  A round is a cold run (the model is loaded anew; its time is told apart), a warm one, and each peer once; every other
  round peers go first. Load is never part of a stage or of \"without load\". Percentiles lie on straight lines between
  values (numpy's default). Definitions of all numbers: docs/measuring.md.

SHAPES:
  --shape writes a published model's file with random weights (the same for the same --weights-seed), measures it and
  removes it; --keep FILE keeps it. Times, memory and energy are those of such a model, answers are noise of
  --max-tokens tokens, and the record says that weights are random. Too little memory is said before anything is written.

PEERS:
  llama.cpp=PATH [ARGUMENTS]   llama-mtmd-cli, with its own times; the model is Margay's GGUF unless -m is given.
                               Recent versions tell the times of pictures with -v only
  llama-bench=PATH [ARGUMENTS] llama.cpp's llama-bench: a prompt as long as Margay's and as many tokens, text side only
  onnxruntime=FILE.onnx [PYTHON]
                               a vision encoder, run by the onnxruntime package of that Python (python3 unless given)
  command='...'                any command line, for the time of its whole process; the shell reads it, and $IMAGE,
                               $PROMPT, $MODEL and $MAX_TOKENS say what is asked

EXIT CODES:
  3 where --gate finds a time, or energy, beyond noise and over its threshold";

/// Measure how fast answers are, and how near this machine's limits Margay comes
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true, subcommand_precedence_over_arg = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    pipeline: Box<pipeline::Pipeline>,
}

#[derive(Debug, Subcommand)]
enum What {
    Compare(gate::Compare),
    Kernels(kernels::Kernels),
    Stages(Box<stages::Stages>),
}

impl Bench {
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        match self.what {
            Some(What::Compare(compare)) => compare.run(),
            Some(What::Kernels(kernels)) => kernels.run(),
            Some(What::Stages(stages)) => stages.run(),
            None => self.pipeline.run(interrupt),
        }
    }
}
