//! Documents say what the project has, no more and no less.

use std::collections::BTreeSet;

use super::project::Project;

const DEPENDENCIES: &str = "docs/dependencies.md";

/// `docs/dependencies.md` has one table row for each dependency of the workspace, and none for another.
pub(crate) fn dependencies_have_reasons(project: &Project) -> Vec<String> {
    let member = |name: &str| project.crates.iter().any(|member| member.name == name);
    let manifest = project.file("Cargo.toml").map_or("", |file| &file.text);
    let used = project
        .crates
        .iter()
        .flat_map(|member| &member.dependencies)
        .map(|dependency| dependency.name.as_str());
    let needed: BTreeSet<&str> = used.chain(declared(manifest)).filter(|name| !member(name)).collect();

    let Some(page) = project.file(DEPENDENCIES) else { return vec![format!("{DEPENDENCIES} is missing")] };
    let rows = page.text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let (reasons, hollow): (Vec<_>, Vec<_>) =
        rows.partition(|(_, reason)| reason.trim_end_matches(" |").len() > 10);
    let explained: BTreeSet<&str> = reasons.iter().map(|(name, _)| *name).collect();

    let missing = needed.difference(&explained).map(|name| format!("{name} has no reason in {DEPENDENCIES}"));
    let stale = explained
        .difference(&needed)
        .map(|name| format!("{DEPENDENCIES} explains {name}, which nobody uses"));
    let hollow = hollow.iter().map(|(name, _)| format!("the reason for {name} in {DEPENDENCIES} is empty"));
    missing.chain(stale).chain(hollow).collect()
}

/// Names under `[workspace.dependencies]`.
fn declared(manifest: &str) -> impl Iterator<Item = &str> {
    let lines = manifest.lines().skip_while(|line| *line != "[workspace.dependencies]").skip(1);
    lines.take_while(|line| !line.starts_with('[')).filter_map(|line| Some(line.split_once('=')?.0.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_stale_and_empty_reasons_are_found() {
        let manifest = (
            "Cargo.toml",
            "[workspace.dependencies]\nmargay-tensor = { path = \"x\" }\nhalf = \"2\"\n\n[x]\na = 1",
        );
        let findings =
            |page| dependencies_have_reasons(&Project::of_files(&[manifest, (DEPENDENCIES, page)]));
        assert_eq!(findings("| `half` | Half precision numbers. |"), [""; 0]);
        assert!(findings("")[0].contains("half has no reason"));
        assert_eq!(
            findings("| `half` | Half precision numbers. |\n| `serde` | Reading and writing. |").len(),
            1
        );
        assert_eq!(findings("| `half` |  |").len(), 2);
        assert_eq!(dependencies_have_reasons(&Project::of_files(&[manifest])).len(), 1);
    }
}
