//! The crate graph is the layer table of ARCHITECTURE.md.

use super::project::Project;

/// Crates by layer, lowest first. A crate uses layers below its own; siblings do not know each other.
const LAYERS: &[&[&str]] = &[
    &["margay-tensor", "margay-observe"],
    &["margay-quant", "margay-file", "margay-prompt", "margay-hub"],
    &["margay-graph"],
    &["margay-cpu", "margay-gpu", "margay-delegate", "margay-reference", "margay-model", "margay-device"],
    &["margay"],
    &["margay-server", "margay-ffi", "margay-pack", "margay-eval", "margay-bench", "margay-export"],
    &["margay-cli"],
];

/// Crates that are never shipped: only tests may use them.
pub(crate) const DEV: &[&str] = &["margay-testkit", "xtask"];

/// Arrows that point down and are wrong all the same: a model knows no block format.
const FORBIDDEN: &[(&str, &str)] = &[("margay-model", "margay-quant")];

/// The page that draws the layers.
const PAGE: &str = "ARCHITECTURE.md";

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

/// Every crate has a place in the table and uses only what lies below it.
pub(crate) fn arrows_point_down(project: &Project) -> Vec<String> {
    let mut findings = Vec::new();
    for from in &project.crates {
        let dev = DEV.contains(&from.name.as_str());
        if layer(&from.name).is_none() && !dev {
            findings.push(format!("{} is in no layer: give it one in xtask/src/tidy/graph.rs", from.name));
        }
        for to in from.dependencies.iter().filter(|to| !to.dev) {
            if !project.crates.iter().any(|member| member.name == to.name) {
                continue;
            }
            let arrow = format!("{} -> {}", from.name, to.name);
            if DEV.contains(&to.name.as_str()) {
                findings.push(format!("{arrow}: only tests may use it, make it a dev-dependency"));
            } else if FORBIDDEN.contains(&(&from.name, &to.name)) {
                findings.push(format!("{arrow}: the architecture keeps these two apart"));
            } else if let (Some(above), Some(below)) = (layer(&from.name), layer(&to.name))
                && above <= below
            {
                findings.push(format!("{arrow} does not point down (L{above} -> L{below})"));
            }
        }
    }
    findings
}

/// The layers drawn in ARCHITECTURE.md are the crates there are, each in its place.
pub(crate) fn page_shows_the_layers(project: &Project) -> Vec<String> {
    let Some(page) = project.file(PAGE) else { return vec![format!("{PAGE} is missing")] };
    // A drawn line: its label, then names of crates, then (for some) words that explain them.
    let is_label =
        |word: &str| word == "dev" || word.strip_prefix('L').is_some_and(|n| n.parse::<usize>().is_ok());
    let lines = page.text.lines().filter(|line| line.starts_with("    ")).map(str::split_whitespace);
    let drawn: Vec<(String, &str)> = lines
        .filter_map(|mut words| Some((words.next().filter(|label| is_label(label))?.to_owned(), words)))
        .flat_map(|(label, words)| words.map(move |word| (label.clone(), word)))
        .filter(|(_, word)| word.starts_with("margay") || DEV.contains(word))
        .collect();

    let mut findings = Vec::new();
    for member in &project.crates {
        let label = layer(&member.name).map_or("dev".to_owned(), |layer| format!("L{layer}"));
        if !drawn.iter().any(|(found, name)| *found == label && *name == member.name) {
            findings.push(format!("{PAGE} does not draw {} on its line {label}", member.name));
        }
    }
    for (label, name) in &drawn {
        if !project.crates.iter().any(|member| member.name == *name) {
            findings.push(format!("{PAGE} draws {name} on its line {label}, and there is no such crate"));
        }
    }
    findings
}

/// `[lints] workspace = true` stands in every manifest.
pub(crate) fn lints_are_shared(project: &Project) -> Vec<String> {
    let manifest = |folder: &str| format!("{folder}/Cargo.toml");
    let lacks = |path: &String| {
        project.file(path).is_none_or(|file| !file.text.contains("[lints]\nworkspace = true"))
    };
    project.crates.iter().map(|member| manifest(&member.folder)).filter(lacks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::project::{Crate, Dependency};

    fn project(arrows: &[(&str, &str, bool)]) -> Project {
        let mut project = Project::of_files(&[]);
        project.crates.clear();
        for name in arrows.iter().flat_map(|arrow| [arrow.0, arrow.1]) {
            if !project.crates.iter().any(|member| member.name == name) {
                let dependencies = arrows
                    .iter()
                    .filter(|arrow| arrow.0 == name)
                    .map(|arrow| Dependency { name: arrow.1.into(), dev: arrow.2 })
                    .collect();
                project.crates.push(Crate {
                    name: name.into(),
                    folder: name.into(),
                    roots: Vec::new(),
                    dependencies,
                });
            }
        }
        project
    }

    #[test]
    fn only_arrows_that_point_up_or_sideways_are_found() {
        let findings = |from, to, dev| arrows_point_down(&project(&[(from, to, dev)]));
        assert!(findings("margay-cli", "margay-tensor", false).is_empty());
        assert!(findings("margay-testkit", "margay-file", false).is_empty());
        assert!(findings("margay-quant", "margay-testkit", true).is_empty());
        assert!(findings("margay-quant", "margay-cpu", true).is_empty());
        for (from, to) in [
            ("margay-tensor", "margay-cli"),
            ("margay-quant", "margay-file"),
            ("margay-cpu", "margay-testkit"),
            ("margay-model", "margay-quant"),
        ] {
            let found = findings(from, to, false);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(&format!("{from} -> {to}")), "{found:?}");
        }
        assert!(findings("margay-unheard-of", "margay-tensor", false)[0].contains("no layer"));
    }
    #[test]
    fn a_page_that_draws_other_crates_is_found() {
        let findings = |page| page_shows_the_layers(&Project::of_files(&[(PAGE, page)]));
        assert_eq!(findings("    L0  margay-tensor   what an array is\n"), [""; 0]);
        assert!(findings("    L1  margay-tensor\n")[0].contains("on its line L0"));
        assert!(findings("    L0  margay-tensor   margay-gpu\n")[0].contains("no such crate"));
        assert_eq!(findings("L0 margay-tensor is prose").len(), 1);
        assert_eq!(page_shows_the_layers(&Project::of_files(&[])).len(), 1);
    }
}
