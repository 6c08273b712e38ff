//! `cargo xtask tidy`: what must never be, checked. The same rules run as the test at the foot of this file.

mod docs;
mod files;
mod graph;
mod project;
mod registry;
mod source;

use project::Project;

/// The folder of the workspace.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A rule: its name and what breaks it, one finding a line.
type Rule = (&'static str, fn(&Project) -> Vec<String>);

const RULES: &[Rule] = &[
    ("arrows between crates only point down", graph::arrows_point_down),
    ("the architecture page draws the crates", graph::page_shows_the_layers),
    ("every crate takes the workspace's lints", graph::lints_are_shared),
    ("unsafe code lives in few crates", source::unsafe_is_forbidden),
    ("instruction sets are chosen at run time", source::no_compile_time_features),
    ("only margay-observe reads a clock", source::no_clocks),
    ("only the command line reads the environment and prints", source::no_environment),
    ("registries list their folders", registry::registries_list_folders),
    ("files stay short", files::files_stay_short),
    ("nothing is left for later", files::nothing_left_for_later),
    ("no path of one machine", files::no_machine_paths),
    ("no large file", files::no_large_files),
    ("every dependency has its reason", docs::dependencies_have_reasons),
];

/// Prints every finding. `Ok(false)` where there is one.
///
/// # Errors
/// Where the project cannot be read.
pub(crate) fn run() -> anyhow::Result<bool> {
    let findings = check(&Project::read(ROOT.as_ref())?);
    for finding in &findings {
        eprintln!("{finding}");
    }
    println!("{} rules, {} findings", RULES.len(), findings.len());
    Ok(findings.is_empty())
}

fn check(project: &Project) -> Vec<String> {
    RULES
        .iter()
        .flat_map(|(rule, find)| find(project).into_iter().map(move |finding| format!("{rule}: {finding}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_is_tidy() {
        let findings = check(&Project::read(ROOT.as_ref()).unwrap());
        assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    }
}
