//! `margay trace`: the tensors between the stages, to find the first one that drifts from the original.

use crate::{
    Outcome,
    answering::open_images,
    interrupt::{Interrupt, Late},
    model::LoadArgs,
    output,
    progress::Spinner,
};
use clap::Args;
use margay::{
    Cancel, TraceOptions,
    rooms::{
        file::safetensors::write_safetensors,
        observe::report::table,
        tensor::{DType, Tensor},
    },
};
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf};

const AFTER_HELP: &str = "\
EXAMPLES:
  margay trace llava.gguf --image street.png --prompt \"What is it?\" -o stages.safetensors
  margay trace ./llava -i a.png --raw-prompt -p \"USER: <image>\\nHi ASSISTANT:\" -o a.safetensors
  margay trace --prompt Hello --backend reference --greedy 16 -o hello.safetensors --json

Keys and values are kept in float32, so that stages can be compared closely, unless --kv asks for another type.

TENSORS (float32, ids int32):
  pixel_values    [N, 3, H, W]
  encode          [N, P, C]
  project         [N, V, E]
  hidden.<layer>  [T, E], 0 is the embedding
  logits          [T, vocabulary]
  input_ids       [T], -1 for a visual token
  greedy          [N], with --greedy";

/// Write every stage's tensors to a file
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Trace {
    /// A GGUF file or a Hugging Face folder; the built-in model unless given
    model: Option<PathBuf>,
    /// A picture; may be repeated
    #[arg(long = "image", short = 'i', value_name = "FILE")]
    images: Vec<PathBuf>,
    /// The question
    #[arg(long, short = 'p', value_name = "TEXT")]
    prompt: String,
    /// The safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Use the prompt as it stands, without the chat template; `<image>` marks each picture
    #[arg(long)]
    raw_prompt: bool,
    /// Also write so many tokens of a greedy answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    greedy: usize,
    /// Print the table as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// What a tensor's numbers are like.
#[derive(Debug, Default, PartialEq)]
struct Summary {
    /// Of the finite numbers; `None` where there is none.
    min: Option<f64>,
    max: Option<f64>,
    mean: Option<f64>,
    not_finite: usize,
}

impl Trace {
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        let images = open_images(&self.images)?;
        let spinner = Spinner::start("computing");
        let source = self.load.source(self.model.as_deref())?;
        let options = TraceOptions {
            load: self.load.options(),
            raw_prompt: self.raw_prompt,
            greedy: self.greedy,
            kv: self.load.kv,
        };
        let tensors = source.trace(&images, &self.prompt, &options)?;
        let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let metadata = [
            ("producer", concat!("margay ", env!("CARGO_PKG_VERSION"))),
            ("model", source.config.name.as_str()),
            ("backend", options.load.backend.as_str()),
        ];
        let metadata: BTreeMap<String, String> =
            metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        // Not to be left half way: the unfinished file would stay.
        let whole = interrupt.watch(Cancel::new(), Late::Wait);
        write_safetensors(&self.out, &named, &metadata)?;
        drop(whole);
        spinner.clear();
        if self.json {
            let tensors: Vec<_> = named.iter().map(|(name, tensor)| as_json(name, tensor)).collect();
            output::json(&json!({ "file": self.out, "tensors": tensors }))?;
        } else {
            let rows: Vec<_> = named.iter().map(|(name, tensor)| row(name, tensor)).collect();
            output::text(&table(&["tensor", "type", "shape", "min", "max", "mean", "not finite"], &rows))?;
            output::aside(&format!("written to {}", self.out.display()));
        }
        Ok(Outcome::Done)
    }
}

fn as_json(name: &str, tensor: &Tensor) -> serde_json::Value {
    let Summary { min, max, mean, not_finite } = summary(tensor);
    let (dtype, shape) = (tensor.dtype().name(), tensor.shape().dims());
    json!({
        "name": name, "dtype": dtype, "shape": shape,
        "min": min, "max": max, "mean": mean, "not_finite": not_finite,
    })
}

fn row(name: &str, tensor: &Tensor) -> Vec<String> {
    let Summary { min, max, mean, not_finite } = summary(tensor);
    // Of ids a mean says nothing.
    let (digits, mean) = if tensor.dtype() == DType::I32 { (0, None) } else { (4, mean) };
    let number = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), |n| format!("{n:.digits$}"));
    vec![
        name.to_owned(),
        tensor.dtype().to_string(),
        tensor.shape().to_string(),
        number(min),
        number(max),
        number(mean),
        not_finite.to_string(),
    ]
}

fn summary(tensor: &Tensor) -> Summary {
    let words = tensor.bytes().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    let read = |word: [u8; 4]| match tensor.dtype() {
        DType::I32 => f64::from(i32::from_le_bytes(word)),
        _ => f64::from(f32::from_le_bytes(word)),
    };
    let mut summary = Summary::default();
    let (mut sum, mut count) = (0.0, 0usize);
    for value in words.map(read) {
        if !value.is_finite() {
            summary.not_finite += 1;
            continue;
        }
        summary.min = Some(summary.min.map_or(value, |min| min.min(value)));
        summary.max = Some(summary.max.map_or(value, |max| max.max(value)));
        (sum, count) = (sum + value, count + 1);
    }
    summary.mean = (count > 0).then(|| sum / count as f64);
    summary
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::rooms::tensor::Shape;

    #[test]
    fn what_is_not_finite_is_counted_and_kept_out() {
        let tensor = |values: &[f32]| Tensor::from_f32(Shape::from([values.len()]), values).unwrap();
        let got = summary(&tensor(&[-1.0, f32::NAN, 3.0, f32::INFINITY]));
        assert_eq!(got, Summary { min: Some(-1.0), max: Some(3.0), mean: Some(1.0), not_finite: 2 });
        assert_eq!(summary(&tensor(&[])), Summary::default());
    }
}
