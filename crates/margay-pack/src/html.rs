//! The report as one page that needs nothing but itself.

use crate::{Choice, Method, QuantizeReport, Recipe, TensorReport};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;\
color:#222;background:#fff}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}\
td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}td:first-child,\
th:first-child{text-align:left}text{font:11px system-ui,sans-serif;fill:currentColor}.note{color:#666}\
.wide{overflow-x:auto}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}\
td,th{border-color:#444}.note{color:#999}}";

/// Side of a cell of the map, and the room for words beside it, in pixels.
const CELL: usize = 30;
const LEFT: usize = 130;
const TOP: usize = 24;

/// Weights of a choice that are listed.
const STEPS: usize = 12;

/// A page: what was asked for, how formats were chosen where they were, sizes, a map of each stage's errors by layer and
/// role, and every tensor.
pub fn page(
    title: &str,
    recipe: &Recipe,
    method: Method,
    report: &QuantizeReport,
    choice: Option<&Choice>,
) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style><h1>{0}</h1>",
        escaped(title)
    );
    let elements: u64 = report.tensors.iter().map(|t| t.elements).sum();
    let bytes: u64 = report.tensors.iter().map(|t| t.bytes).sum();
    let _ = write!(
        html,
        "<p>{}<br>{}</p><p>{} tensors, {} numbers, {} in all: {:.2} bits a number.</p>",
        escaped(&format!("{}: {}", recipe.id, recipe.about)),
        escaped(&format!("{}: {}", method.id(), method.about())),
        report.tensors.len(),
        elements,
        mebibytes(bytes),
        bytes as f64 * 8.0 / elements.max(1) as f64
    );
    formats(&mut html, report);
    for stage in ["encode", "project", "text"] {
        map(&mut html, stage, report);
    }
    if let Some(choice) = choice {
        chosen(&mut html, choice);
    }
    list(&mut html, report);
    html
}

fn formats(html: &mut String, report: &QuantizeReport) {
    *html += "<h2>Formats</h2><table><tr><th>stage<th>type<th>tensors<th>numbers<th>size";
    let mut sums: BTreeMap<(&str, &str), (usize, u64, u64)> = BTreeMap::new();
    for t in &report.tensors {
        let sum = sums.entry((t.stage, t.dtype)).or_default();
        *sum = (sum.0 + 1, sum.1 + t.elements, sum.2 + t.bytes);
    }
    for ((stage, dtype), (count, elements, bytes)) in sums {
        let _ = write!(html, "<tr><td>{stage}<td>{dtype}<td>{count}<td>{elements}<td>{}", mebibytes(bytes));
    }
    *html += "</table>";
}

/// The steps at which the budget decided.
fn chosen(html: &mut String, choice: &Choice) {
    let _ = write!(
        html,
        "<h2>How the formats were chosen</h2><p class=\"note\">From the smallest formats on, the step was taken that \
         takes away most relative error of an output for a byte. {} weights were raised; those that gained least by \
         their last step:</p><table><tr><th>weight<th>to<th>error less for a MiB",
        choice.steps.len()
    );
    for (name, dtype, gain) in choice.steps.iter().rev().take(STEPS) {
        let _ = write!(html, "<tr><td>{}<td>{dtype}<td>{gain:.2e}", escaped(name));
    }
    *html += "</table>";
    if let Some((name, dtype, bytes)) = &choice.next {
        let name = escaped(name);
        let _ =
            write!(html, "<p class=\"note\">Next would have been {name} as {dtype}, {bytes} bytes more.</p>");
    }
}

/// Layers from left to right, roles from top to bottom.
fn map(html: &mut String, stage: &str, report: &QuantizeReport) {
    let rounded: Vec<&TensorReport> =
        report.tensors.iter().filter(|t| t.stage == stage && t.error.is_some()).collect();
    if rounded.is_empty() {
        return;
    }
    let outputs = rounded.iter().any(|t| t.output_error.is_some());
    let what = if outputs { "its output on the sample" } else { "its numbers" };
    let roles: Vec<&str> = unique(rounded.iter().map(|t| t.role));
    let layers = rounded.iter().map(|t| t.layer + 1).max().unwrap_or(0);
    let (width, height) = (LEFT + layers * CELL + 10, TOP + roles.len() * CELL + 10);
    let _ = write!(
        html,
        "<h2>Errors: {stage}</h2><p class=\"note\">Each cell is a tensor; the darker, the larger the relative error of \
         {what}, in percent. Layers from left to right.</p><div class=\"wide\"><svg width=\"{width}\" \
         height=\"{height}\" role=\"img\" aria-label=\"errors of {stage} by layer and role\">"
    );
    for layer in 0..layers {
        let _ = write!(
            html,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{layer}</text>",
            LEFT + layer * CELL + CELL / 2,
            TOP - 8
        );
    }
    for (row, role) in roles.iter().enumerate() {
        let y = TOP + row * CELL;
        let _ = write!(html, "<text x=\"0\" y=\"{}\">{role}</text>", y + CELL / 2 + 4);
        for t in rounded.iter().filter(|t| t.role == *role) {
            let root = shown(t).unwrap_or(0.0).sqrt();
            let x = LEFT + t.layer * CELL;
            // From 0.1 % (light) to 100 % (dark), by its logarithm.
            let dark = ((root.max(1e-3).log10() + 3.0) / 3.0).clamp(0.0, 1.0);
            let lightness = 96.0 - 62.0 * dark;
            let ink = if dark > 0.55 { "#fff" } else { "#222" };
            let _ = write!(
                html,
                "<g><title>{}: {}, {:.2} %</title><rect x=\"{x}\" y=\"{y}\" width=\"{3}\" height=\"{3}\" rx=\"3\" \
                 fill=\"hsl(14 75% {lightness:.0}%)\"/><text x=\"{4}\" y=\"{5}\" text-anchor=\"middle\" \
                 style=\"fill:{ink}\">{6}</text></g>",
                escaped(&t.name),
                t.dtype,
                root * 100.0,
                CELL - 2,
                x + CELL / 2 - 1,
                y + CELL / 2 + 3,
                percent(root)
            );
        }
    }
    *html += "</svg></div>";
}

fn list(html: &mut String, report: &QuantizeReport) {
    *html += "<h2>Tensors</h2><div class=\"wide\"><table><tr><th>name<th>role<th>type<th>bits<th>size\
              <th>error of numbers<th>error of output";
    let words = |error: Option<f64>| error.map_or("–".to_owned(), |e| format!("{:.3} %", e.sqrt() * 100.0));
    for t in &report.tensors {
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{:.2}<td>{}<td>{}<td>{}",
            escaped(&t.name),
            t.role,
            t.dtype,
            t.bits(),
            mebibytes(t.bytes),
            words(t.error),
            words(t.output_error)
        );
    }
    *html += "</table></div>";
    for (why, names) in &report.plain {
        let _ = write!(
            html,
            "<p class=\"note\">Rounded to nearest, because {}: {}</p>",
            escaped(why),
            names.len()
        );
    }
}

fn shown(t: &TensorReport) -> Option<f64> {
    t.output_error.or(t.error)
}

fn percent(root: f64) -> String {
    if root < 0.0995 { format!("{:.1}", root * 100.0) } else { format!("{:.0}", root * 100.0) }
}

fn unique<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    words.filter(|word| seen.insert(*word)).collect()
}

fn mebibytes(bytes: u64) -> String {
    let value = bytes as f64 / f64::from(1u32 << 20);
    if value >= 10.0 { format!("{value:.0} MiB") } else { format!("{value:.3} MiB") }
}

/// A name comes from a file.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::DType;

    #[test]
    fn names_cannot_write_markup_and_every_tensor_is_listed() {
        let tensor = |name: &str, error: Option<f64>| TensorReport {
            name: name.to_owned(),
            stage: "text",
            role: "ffn_up",
            layer: 3,
            dtype: "q4_0",
            elements: 64,
            bytes: 36,
            error,
            output_error: None,
        };
        let tensors = vec![tensor("<script>&", Some(0.01)), tensor("plain", None)];
        let report = QuantizeReport { tensors, ..QuantizeReport::default() };
        let html = page("a \"title\"", &Recipe::plain(DType::Q4_0, None), Method::rtn(), &report, None);
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains("&lt;script&gt;&amp;: q4_0, 10.00 %"), "{html}");
        assert!(html.contains("<td>plain<td>ffn_up<td>q4_0<td>4.50"), "{html}");
        assert_eq!(html.matches("<rect").count(), 1, "what was not measured has no cell");
    }
}
