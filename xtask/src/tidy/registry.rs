//! A registry names every file of its folder, and no other.

use std::collections::BTreeSet;

use super::project::Project;

/// A folder whose files a constant or an enum of the same crate lists.
struct Registry {
    /// The folder, relative to the root.
    folder: &'static str,
    /// How the definition of the list begins: the first of these that the crate holds.
    lists: &'static [&'static str],
}

/// Every registry there is. A folder that does not exist yet is passed over.
const REGISTRIES: &[Registry] = &[
    Registry { folder: "crates/margay-quant/src/formats", lists: &["const FORMATS: &["] },
    Registry { folder: "crates/margay-model/src/families", lists: &["const FAMILIES: &["] },
    Registry { folder: "crates/margay-model/src/decoder", lists: &["const DECODERS: &["] },
    Registry { folder: "crates/margay-model/src/projector", lists: &["const PROJECTORS: &["] },
    Registry { folder: "crates/margay-model/src/vision", lists: &["const TOWERS: &["] },
    Registry { folder: "crates/margay-eval/src/suites", lists: &["const SUITES: &["] },
    Registry { folder: "crates/margay-observe/src/sensors", lists: &["const SENSORS: &["] },
    Registry { folder: "crates/margay-observe/src/power", lists: &["const POWER_SOURCES: &["] },
    Registry { folder: "crates/margay-observe/src/report", lists: &["const WRITERS: &["] },
    Registry { folder: "crates/margay-bench/src/advise", lists: &["const SUGGESTIONS: &["] },
    Registry { folder: "crates/margay-bench/src/peers", lists: &["const PEERS: &["] },
    Registry { folder: "crates/margay-cli/src/commands", lists: &["const COMMANDS: &[", "enum Command"] },
];

/// Path prefixes that name no file.
const NO_FILES: &[&str] = &["crate", "self", "super", "std", "core", "clap"];

/// Each list and its folder agree.
pub(crate) fn registries_list_folders(project: &Project) -> Vec<String> {
    REGISTRIES.iter().flat_map(|registry| compare(project, registry)).collect()
}

fn compare(project: &Project, registry: &Registry) -> Vec<String> {
    let Registry { folder, lists } = registry;
    let below = |path: &str| path.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned);
    let files: BTreeSet<String> = project
        .files
        .iter()
        .filter(|file| file.is("rs"))
        .filter_map(|file| below(&file.path))
        .filter_map(|path| path.split(['/', '.']).next().map(str::to_owned))
        .filter(|stem| stem != "mod")
        .collect();
    if files.is_empty() {
        return Vec::new();
    }
    let src = folder.rsplit_once('/').map_or(*folder, |(src, _)| src);
    let found = lists.iter().find_map(|list| {
        let within = project.files.iter().filter(|file| file.path.starts_with(src));
        within.filter_map(|file| definition(&file.text, list)).next().map(|text| (list, text))
    });
    let Some((list, text)) = found else {
        return vec![format!(
            "{folder} has files, and no `{}` in its crate lists them",
            lists.join("` or `")
        )];
    };
    let last = folder.rsplit('/').next().unwrap_or_default();
    let listed: BTreeSet<String> =
        modules(text).filter(|name| !NO_FILES.contains(&name.as_str()) && name != last).collect();
    let unlisted = files.difference(&listed).map(|name| format!("{folder}/{name}.rs is not in `{list}`"));
    let homeless =
        listed.difference(&files).map(|name| format!("`{list}` lists {name}, {folder} has no such file"));
    unlisted.chain(homeless).collect()
}

/// The definition that begins with `start`, up to the end of a slice or of an item.
fn definition<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    let from = &text[text.find(start)?..];
    let end = [from.find("];"), from.find("\n}")].into_iter().flatten().min()?;
    Some(&from[..end])
}

/// The lower-case names that stand before `::`.
fn modules(text: &str) -> impl Iterator<Item = String> {
    let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.match_indices("::").filter_map(move |(at, _)| {
        let name = text[..at].rsplit(|c| !part(c)).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: (&str, &str) = ("crates/margay-quant/src/formats/q4_0.rs", "");
    const B: (&str, &str) = ("crates/margay-quant/src/formats/f32.rs", "");
    const MOD: &str = "crates/margay-quant/src/formats/mod.rs";

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        registries_list_folders(&Project::of_files(files))
    }

    #[test]
    fn a_file_or_an_entry_without_its_partner_is_found() {
        let both = (MOD, "pub const FORMATS: &[&dyn F] = &[&f32::F32, &crate::formats::q4_0::Q4_0];");
        let one = (MOD, "pub const FORMATS: &[&dyn F] = &[&f32::F32];");
        assert_eq!(findings(&[A, B, both]), [""; 0]);
        assert!(findings(&[A, B, one])[0].contains("q4_0.rs is not in"));
        assert!(findings(&[B, both])[0].contains("lists q4_0"));
        assert!(findings(&[A, B])[0].contains("no `const FORMATS"));
        assert_eq!(findings(&[]), [""; 0]);
    }

    #[test]
    fn an_enum_may_be_the_list() {
        let run = ("crates/margay-cli/src/commands/run.rs", "");
        let main = (
            "crates/margay-cli/src/main.rs",
            "enum Command {\n    Run(commands::run::Run),\n}\nfn a() { b::c() }",
        );
        assert_eq!(findings(&[run, main]), [""; 0]);
        assert!(
            findings(&[run, (main.0, "enum Command {\n}")])[0].contains("run.rs is not in `enum Command`")
        );
    }
}
