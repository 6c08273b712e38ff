//! `margay list`: the families of models that Margay runs.

use crate::{Outcome, output};
use clap::Args;
use margay::rooms::model::{FAMILIES, Family, Published};
use serde_json::json;

const AFTER_HELP: &str = "\
EXAMPLES:
  margay list
  margay list --json | jq '.[].id'";

/// What stands above the tables of `docs/models.md`.
const PAGE_HEAD: &str = "\
# Models

Made by `cargo xtask models` from the registry of families; `margay list` prints the same. Each family was compared,
stage by stage, with the implementation named under \"verified\", on tiny random checkpoints of its true structure.
";

/// List the families of models: sizes, projector, visual tokens, and what each was compared with
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct List {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    /// Print docs/models.md
    #[arg(long, hide = true, conflicts_with = "json")]
    markdown: bool,
}

impl List {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        if self.json {
            output::json(&FAMILIES.iter().map(|family| as_json(family)).collect::<Vec<_>>())?;
        } else if self.markdown {
            output::text(&page())?;
        } else {
            output::text(&table())?;
        }
        Ok(Outcome::Done)
    }
}

fn as_json(family: &Family) -> serde_json::Value {
    let given = |text: &'static str| (!text.is_empty()).then_some(text);
    let model = |model: &Published| {
        json!({
            "name": model.name,
            "vision": given(model.vision),
            "projector": given(model.projector),
            "decoder": model.decoder,
            "picture_tokens": given(model.picture_tokens),
        })
    };
    let gguf = |(architecture, projector): &(&str, Option<&str>)| json!({ "architecture": architecture, "projector": projector });
    json!({
        "id": family.id,
        "summary": family.summary,
        "model_types": family.hf,
        "gguf": family.gguf.iter().map(gguf).collect::<Vec<_>>(),
        "models": family.published.iter().map(model).collect::<Vec<_>>(),
        "verified": family.verified,
    })
}

/// The parts of a model in one column each; a dash where there is none.
fn columns(model: &Published) -> [&'static str; 5] {
    let or_dash = |text: &'static str| if text.is_empty() { "-" } else { text };
    [
        model.name,
        or_dash(model.vision),
        or_dash(model.projector),
        model.decoder,
        or_dash(model.picture_tokens),
    ]
}

fn table() -> String {
    let header = ["family", "model", "vision", "projector", "decoder", "tokens a picture"];
    let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    for family in FAMILIES {
        for (i, model) in family.published.iter().enumerate() {
            let id = if i == 0 { family.id } else { "" };
            rows.push(std::iter::once(id).chain(columns(model)).map(str::to_owned).collect());
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text += "\n";
    }
    text += "\nverified against\n";
    let longest = FAMILIES.iter().map(|family| family.id.len()).max().unwrap_or(0);
    for family in FAMILIES {
        text += &format!("  {:<longest$}  {}\n", family.id, family.verified);
    }
    text
}

fn page() -> String {
    let mut text = PAGE_HEAD.to_owned();
    for family in FAMILIES {
        let quoted = |names: &[&str]| names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        let gguf = family.gguf.iter().map(|(architecture, projector)| match projector {
            Some(projector) => format!("`{architecture}` with `{projector}`"),
            None => format!("`{architecture}`"),
        });
        text += &format!("\n## {}\n\n{}.\n\n", family.id, family.summary);
        if !family.hf.is_empty() {
            text += &format!("* `model_type`: {}\n", quoted(family.hf));
        }
        text += &format!("* GGUF: {}\n", gguf.collect::<Vec<_>>().join(", "));
        text += &format!("* verified: {}\n\n", family.verified);
        text += "| model | vision | projector | decoder | tokens a picture |\n|---|---|---|---|---|\n";
        for model in family.published {
            text += &format!("| {} |\n", columns(model).join(" | "));
        }
    }
    text
}
