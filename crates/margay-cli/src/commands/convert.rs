//! `margay convert`: a checkpoint into a GGUF file.

use crate::{
    Outcome, hub,
    interrupt::{Interrupt, Late},
    model, output,
    progress::Meter,
};
use clap::Args;
use margay::{
    Cancel,
    rooms::{
        observe::{
            Root,
            process::peak_rss_bytes,
            report::{bytes, table},
        },
        tensor::DType,
    },
};
use margay_pack::{ConvertOptions, ConvertReport, PackError, convert};
use serde_json::json;
use std::{collections::BTreeMap, ops::ControlFlow, path::PathBuf};

/// Names of weights that the report lists before it only counts.
const SHOWN_NAMES: usize = 8;

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
    /// Format of the decoder's matrices
    #[arg(long = "type", value_name = "TYPE", default_value = "f16", value_parser = model::types())]
    dtype: DType,
    /// Format of the vision side's matrices: the decoder's where that has 8 bits or more, else f16, unless given
    #[arg(long, value_name = "TYPE", value_parser = model::types())]
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
        self.keep_the_source()?;
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
            output::json(&as_json(&report))?
        } else {
            output::text(&describe(&report))?
        }
        Ok(Outcome::Done)
    }

    /// What a conversion drops is gone for good: the model it came from must stay.
    fn keep_the_source(&self) -> anyhow::Result<()> {
        // What a folder holds, and vision files beside a model, may be read as well.
        let folder = if self.source.is_dir() { Some(self.source.as_path()) } else { self.source.parent() };
        let beside = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        let may_be_read = |path: &PathBuf| {
            let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
            name.ends_with(".gguf") && (self.source.is_dir() || name.contains("mmproj"))
        };
        let inputs: Vec<PathBuf> = [Some(&self.source), self.mmproj.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .chain(beside.map(|entry| entry.path()).filter(may_be_read))
            .filter_map(|path| path.canonicalize().ok())
            .collect();
        for out in [&self.out, &margay_pack::mmproj_path(&self.out)] {
            let overwrites = out.canonicalize().is_ok_and(|out| inputs.contains(&out));
            anyhow::ensure!(
                !overwrites,
                "{} may be part of the model being read; choose another output",
                out.display()
            );
        }
        Ok(())
    }
}

fn as_json(report: &ConvertReport) -> serde_json::Value {
    let files = report.files.iter().map(|(path, size)| json!({ "path": path, "bytes": size }));
    let formats = report
        .formats
        .iter()
        .map(|(name, (count, size))| (*name, json!({ "tensors": count, "bytes": size })));
    let fallbacks = report
        .fallbacks
        .iter()
        .map(|(name, taken, why)| json!({ "weight": name, "type": taken.name(), "why": why }));
    json!({
        "files": files.collect::<Vec<_>>(),
        "formats": formats.collect::<BTreeMap<_, _>>(),
        "fallbacks": fallbacks.collect::<Vec<_>>(),
        "unused": report.unused,
        "notes": report.notes,
        "resumed_tensors": report.resumed,
        "peak_rss_bytes": peak_rss_bytes(&Root::system()),
    })
}

fn describe(report: &ConvertReport) -> String {
    let mut text = String::new();
    for (path, size) in &report.files {
        text += &format!("{}  {}\n", path.display(), bytes(*size));
    }
    let row = |(name, (count, size)): (&&str, &(usize, u64))| {
        vec![(*name).to_owned(), count.to_string(), bytes(*size)]
    };
    let rows: Vec<_> = report.formats.iter().map(row).collect();
    text += "\n";
    text += &table(&["type", "tensors", "size"], &rows);
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, _, why) in &report.fallbacks {
        reasons.entry(why).or_default().push(name);
    }
    let counted =
        |(why, names): (&str, Vec<&str>)| format!("{why} (weights: {}, the first {})", names.len(), names[0]);
    let reasons: Vec<String> = reasons.into_iter().map(counted).collect();
    list(&mut text, "not stored as asked, because", &reasons);
    list(&mut text, "not used by the model, left out", &report.unused);
    list(&mut text, "different elsewhere", &report.notes);
    text
}

fn list(text: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    *text += &format!("\n{title}:\n");
    for line in lines.iter().take(SHOWN_NAMES) {
        *text += &format!("  {}\n", output::harmless(line));
    }
    if lines.len() > SHOWN_NAMES {
        *text += &format!("  and {} more (--json lists all)\n", lines.len() - SHOWN_NAMES);
    }
}
