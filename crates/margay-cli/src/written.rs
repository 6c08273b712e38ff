//! What was written, as text and as JSON.

use crate::output;
use margay::rooms::{
    observe::{
        Root,
        process::peak_rss_bytes,
        report::{bytes, table},
    },
    tensor::DType,
};
use margay_pack::{Choice, PruneMethod, PruneReport, QuantizeReport};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Names of weights that the report lists before it only counts.
const SHOWN_NAMES: usize = 8;

/// Everything.
pub(crate) fn as_json(report: &QuantizeReport) -> Value {
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

/// The same, and every tensor with its errors where they were measured.
pub(crate) fn with_tensors(report: &QuantizeReport) -> Value {
    let tensors = report.tensors.iter().map(|t| {
        json!({
            "name": t.name, "stage": t.stage, "role": t.role, "layer": t.layer, "type": t.dtype,
            "elements": t.elements, "bytes": t.bytes, "bits": t.bits(), "error": t.error,
            "output_error": t.output_error,
        })
    });
    let mut value = as_json(report);
    value["tensors"] = tensors.collect();
    value["rounded_without_method"] = json!(report.plain);
    value["scaled_groups"] = json!(report.folded);
    value["weights_with_outliers"] = json!(report.split);
    value
}

/// For people.
pub(crate) fn describe(report: &QuantizeReport) -> String {
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
    if report.folded > 0 {
        text += &format!("\nmagnitude moved between the weights of {} groups\n", report.folded);
    }
    let counted =
        |why: &str, names: &[&str]| format!("{why} (weights: {}, the first {})", names.len(), names[0]);
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, _, why) in &report.fallbacks {
        reasons.entry(why).or_default().push(name);
    }
    let reasons: Vec<String> = reasons.into_iter().map(|(why, names)| counted(why, &names)).collect();
    list(&mut text, "not stored as asked, because", &reasons);
    let plain = report.plain.iter().map(|(why, names)| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        counted(why, &names)
    });
    list(&mut text, "rounded to nearest instead, because", &plain.collect::<Vec<_>>());
    list(&mut text, "not used by the model, left out", &report.unused);
    list(&mut text, "different elsewhere", &report.notes);
    text
}

/// A pruning: every tensor with its zeros, every layer with the parts that stayed.
pub(crate) fn pruned_as_json(method: PruneMethod, report: &PruneReport) -> Value {
    let files = report.files.iter().map(|(path, size)| json!({ "path": path, "bytes": size }));
    let tensors = report.tensors.iter().map(|t| {
        json!({
            "name": t.name, "from": t.from, "stage": t.stage, "role": t.role, "type": t.dtype, "shape": t.shape,
            "elements": t.elements, "bytes": t.bytes, "zeros": t.zeros, "error": t.error,
            "output_error": t.output_error,
        })
    });
    let kept = report
        .kept
        .iter()
        .map(|k| json!({ "what": k.what, "stage": k.stage, "layer": k.layer, "parts": k.parts }));
    let fallbacks = report
        .fallbacks
        .iter()
        .map(|(name, taken, why)| json!({ "weight": name, "type": taken.name(), "why": why }));
    let ((pruned, zeros), (elements, bytes)) = (report.zeros(), report.after());
    json!({
        "method": method.id(),
        "files": files.collect::<Vec<_>>(),
        "before": { "elements": report.before.0, "bytes": report.before.1 },
        "after": { "elements": elements, "bytes": bytes },
        "pruned_elements": pruned,
        "zeros": zeros,
        "bytes_as_mask_and_values": (pruned > 0).then(|| report.as_mask_bytes()),
        "layers": report.layers,
        "kept": kept.collect::<Vec<_>>(),
        "by_magnitude_alone": report.plain,
        "encoded_again": report.encoded_again,
        "fallbacks": fallbacks.collect::<Vec<_>>(),
        "unused": report.unused,
        "notes": report.notes,
        "resumed_tensors": report.resumed,
        "tensors": tensors.collect::<Vec<_>>(),
        "peak_rss_bytes": peak_rss_bytes(&Root::system()),
    })
}

/// The same for people.
pub(crate) fn describe_pruned(report: &PruneReport) -> String {
    let mut text = String::new();
    for (path, size) in &report.files {
        text += &format!("{}  {}\n", path.display(), bytes(*size));
    }
    let ((elements, size), (elements_now, size_now)) = (report.before, report.after());
    text += &format!("\n{elements} numbers in {}, now {elements_now} in {}\n", bytes(size), bytes(size_now));
    let (pruned, zeros) = report.zeros();
    if pruned > 0 {
        text += &format!(
            "{zeros} of the {pruned} numbers of the pruned matrices are zero ({:.1}%)\n\
             the file is no smaller for that; as a mask and the other numbers it would be {}\n",
            100.0 * zeros as f64 / pruned as f64,
            bytes(report.as_mask_bytes())
        );
    }
    let errors: Vec<f64> = report.tensors.iter().filter_map(|t| t.output_error).collect();
    if !errors.is_empty() {
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        text += &format!("mean relative error of the outputs of {} pruned layers: {mean:.4}\n", errors.len());
    }
    if let Some(layers) = &report.layers {
        let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
        text += &format!("layers that stay, by their former numbers: {}\n", layers.join(", "));
    }
    let mut kept: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    for k in &report.kept {
        let entry = kept.entry((k.stage, k.what)).or_default();
        *entry = (entry.0 + 1, k.parts.len());
    }
    for ((stage, what), (layers, parts)) in kept {
        let what = if what == "heads" { "heads (or groups that share keys and values)" } else { what };
        text += &format!("{stage}: {parts} {what} stay in each of {layers} layers (--json lists them)\n");
    }
    if report.encoded_again > 0 {
        text += &format!(
            "{} weights were decoded, pruned and encoded again in the type they had\n",
            report.encoded_again
        );
    }
    let fallbacks: Vec<String> =
        report.fallbacks.iter().map(|(name, _, why)| format!("{name}: {why}")).collect();
    list(&mut text, "not stored as asked", &fallbacks);
    let plain = report
        .plain
        .iter()
        .map(|(why, names)| format!("{why} (weights: {}, the first {})", names.len(), names[0]));
    list(&mut text, "pruned by magnitude alone, because", &plain.collect::<Vec<_>>());
    list(&mut text, "not used by the model, left out", &report.unused);
    list(&mut text, "different elsewhere", &report.notes);
    text
}

/// How formats were chosen.
pub(crate) fn choice_as_json(choice: &Choice, kl: Option<f64>) -> Value {
    let next = choice
        .next
        .as_ref()
        .map(|(name, dtype, bytes)| json!({ "weight": name, "type": dtype.name(), "bytes_more": bytes }));
    let steps: Vec<Value> = choice.steps.iter().map(step_as_json).collect();
    json!({ "bytes": choice.bytes, "error": choice.error, "steps": steps, "next": next, "kl": kl })
}

fn step_as_json((name, dtype, gain): &(String, DType, f64)) -> Value {
    json!({ "weight": name, "type": dtype.name(), "error_less_a_mib": gain })
}

/// The same for people: how many steps, the last of them, and what did not fit.
pub(crate) fn explain(choice: &Choice, kl: Option<f64>) -> String {
    let mut text = format!(
        "{}, {} weights raised above their smallest format where that takes away most error for a byte\n",
        bytes(choice.bytes),
        choice.steps.len()
    );
    if let Some((name, dtype, gain)) = choice.steps.last() {
        text += &format!(
            "  the least gain: {} to {dtype}, {gain:.2e} less error for a MiB\n",
            output::harmless(name)
        );
    }
    if let Some((name, dtype, more)) = &choice.next {
        text += &format!("  the best left: {} to {dtype}, {} more\n", output::harmless(name), bytes(*more));
    }
    if let Some(kl) = kl {
        text += &format!("  mean divergence of the logits from the original's: {kl:.3e} nats\n");
    }
    text += "\n";
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

/// What a conversion drops is gone for good: the model it came from must stay.
pub(crate) fn keep_the_source(
    source: Option<&Path>,
    mmproj: Option<&Path>,
    out: &Path,
) -> anyhow::Result<()> {
    let Some(source) = source else { return Ok(()) };
    // What a folder holds, and vision files beside a model, may be read as well.
    let folder = if source.is_dir() { Some(source) } else { source.parent() };
    let beside = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let may_be_read = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        name.ends_with(".gguf") && (source.is_dir() || name.contains("mmproj"))
    };
    let inputs: Vec<PathBuf> = [Some(source), mmproj]
        .into_iter()
        .flatten()
        .map(Path::to_owned)
        .chain(beside.map(|entry| entry.path()).filter(may_be_read))
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    for out in [out, &margay_pack::mmproj_path(out)] {
        let overwrites = out.canonicalize().is_ok_and(|out| inputs.contains(&out));
        anyhow::ensure!(
            !overwrites,
            "{} may be part of the model being read; choose another output",
            out.display()
        );
    }
    Ok(())
}
