//! What no file of the project may be or hold.

use super::project::{File, Project};

/// Most lines of a source file.
const MOST_LINES: usize = 800;
/// Source files that are tables, so that their length is no sign of two ideas in one file.
const TABLES: &[&str] = &[];
/// Largest file: the shipped model's cap.
const LARGEST_BYTES: u64 = 12 << 20;

/// Words that put work off. Written in halves so that this file may hold them.
const LATER: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimple", "mented!"), concat!("to", "do!(")];
/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/op", "t/"), concat!("/tmp/", "tgt"), concat!("/ro", "ot/")];

/// Rust and Python files stay below the cap.
pub(crate) fn files_stay_short(project: &Project) -> Vec<String> {
    let sources = project.files.iter().filter(|file| file.is("rs") || file.is("py"));
    sources
        .filter(|file| !TABLES.contains(&file.path.as_str()))
        .map(|file| (&file.path, file.text.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{path} has {lines} lines, split it (cap {MOST_LINES})"))
        .collect()
}

/// Code holds no marks of unfinished work.
pub(crate) fn nothing_left_for_later(project: &Project) -> Vec<String> {
    lines_with(project, LATER, |file| ["rs", "py", "sh", "wgsl", "toml"].iter().any(|kind| file.is(kind)))
}

/// Nothing points at one machine's folders.
pub(crate) fn no_machine_paths(project: &Project) -> Vec<String> {
    lines_with(project, MACHINE_PATHS, |file| !file.is("json") && !file.is("lock"))
}

/// No file is larger than the model that ships.
pub(crate) fn no_large_files(project: &Project) -> Vec<String> {
    let large = project.files.iter().filter(|file| file.size_bytes > LARGEST_BYTES);
    large.map(|file| format!("{} has {} bytes (cap {LARGEST_BYTES})", file.path, file.size_bytes)).collect()
}

fn lines_with(project: &Project, words: &[&str], looked_at: impl Fn(&File) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for file in project.files.iter().filter(|file| looked_at(file)) {
        for (number, line) in file.text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                findings.push(format!("{}:{}: {word}", file.path, number + 1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_breach_and_nothing_else() {
        let long = "\n".repeat(MOST_LINES + 1);
        let fits = "\n".repeat(MOST_LINES);
        let later = format!("// {}: later", LATER[0]);
        let path = format!("see {}main", MACHINE_PATHS[0]);
        let mut project = Project::of_files(&[
            ("a.rs", &long),
            ("b.rs", &fits),
            ("c.py", &later),
            ("d.md", &path),
            ("e.json", &path),
        ]);
        assert_eq!(files_stay_short(&project).len(), 1);
        assert_eq!(nothing_left_for_later(&project), [format!("c.py:1: {}", LATER[0])]);
        assert_eq!(no_machine_paths(&project), [format!("d.md:1: {}", MACHINE_PATHS[0])]);
        assert!(no_large_files(&project).is_empty());
        project.files[0].size_bytes = LARGEST_BYTES + 1;
        assert_eq!(no_large_files(&project).len(), 1);
    }
}
