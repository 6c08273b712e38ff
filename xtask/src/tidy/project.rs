//! The project as the rules see it: its crates and its files.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use serde_json::Value;

/// Folders that hold what a build or a run made, left out where git cannot say so.
const BUILD_FOLDERS: &[&str] = &["target", ".git", "__pycache__", ".pytest_cache", "node_modules"];

/// Crates and files of the workspace.
pub(crate) struct Project {
    /// Every workspace member.
    pub(crate) crates: Vec<Crate>,
    /// Every file that is or could be committed, by path.
    pub(crate) files: Vec<File>,
}

/// A workspace member.
pub(crate) struct Crate {
    /// Name in its manifest.
    pub(crate) name: String,
    /// Folder, relative to the root, with `/` between names.
    pub(crate) folder: String,
    /// Files that a library or program of the crate starts from, relative to the root.
    pub(crate) roots: Vec<String>,
    /// Everything it depends on.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a crate's dependencies.
pub(crate) struct Dependency {
    /// Name of the crate depended on.
    pub(crate) name: String,
    /// Needed by tests only.
    pub(crate) dev: bool,
}

/// A file of the project.
pub(crate) struct File {
    /// Path relative to the root, with `/` between names.
    pub(crate) path: String,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Its text, or empty where it is not UTF-8 (or larger than any text of ours).
    pub(crate) text: String,
}

impl File {
    /// True for the path's last part ending in `.extension`.
    pub(crate) fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }
}

/// Files larger than this are data, not text.
const LARGEST_TEXT_BYTES: u64 = 4 << 20;

impl Project {
    /// Reads the workspace at `root`.
    ///
    /// # Errors
    /// Where cargo cannot describe the workspace or a file cannot be read.
    pub(crate) fn read(root: &Path) -> anyhow::Result<Project> {
        let root = root.canonicalize()?;
        let mut paths = match listed_by_git(&root) {
            Some(paths) => paths,
            None => walk(&root)?,
        };
        paths.sort();
        let mut files = Vec::new();
        for path in paths {
            let full = root.join(&path);
            // A file that git still lists and the working tree has lost is on its way out.
            let Ok(metadata) = full.symlink_metadata() else { continue };
            if !metadata.is_file() {
                continue;
            }
            let mut text = String::new();
            if metadata.len() <= LARGEST_TEXT_BYTES {
                let bytes = std::fs::read(&full).with_context(|| full.display().to_string())?;
                text = String::from_utf8(bytes).unwrap_or_default();
            }
            files.push(File { path, size_bytes: metadata.len(), text });
        }
        Ok(Project { crates: read_crates(&root)?, files })
    }

    /// The file at `path`.
    pub(crate) fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The crate whose folder holds `file`.
    pub(crate) fn owner(&self, file: &File) -> Option<&Crate> {
        self.crates
            .iter()
            .find(|owner| file.path.strip_prefix(&owner.folder).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// Paths that are committed or could be, or `None` where the folder is no checkout of git's.
fn listed_by_git(root: &Path) -> Option<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(root).output().ok()?;
    let paths = String::from_utf8(output.stdout).ok()?;
    let paths: Vec<String> = paths.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    (output.status.success() && paths.iter().any(|path| path == "Cargo.toml")).then_some(paths)
}

fn walk(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = folder.join(&name);
            if !entry.file_type()?.is_dir() {
                paths.push(slashed(&path));
            } else if !BUILD_FOLDERS.contains(&name.as_str()) {
                folders.push(path);
            }
        }
    }
    Ok(paths)
}

fn read_crates(root: &Path) -> anyhow::Result<Vec<Crate>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--offline", "--no-deps", "--format-version", "1"];
    let output = Command::new(cargo).args(arguments).current_dir(root).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages
        .iter()
        .map(|package| read_crate(root, package).context("cargo metadata has another form"))
        .collect()
}

fn read_crate(root: &Path, package: &Value) -> Option<Crate> {
    let relative = |path: &Value| Some(slashed(Path::new(path.as_str()?).strip_prefix(root).ok()?));
    let manifest = relative(&package["manifest_path"])?;
    let shipped = |target: &&Value| {
        let kinds = target["kind"].as_array().into_iter().flatten();
        kinds
            .filter_map(Value::as_str)
            .any(|kind| kind.ends_with("lib") || kind == "bin" || kind == "proc-macro")
    };
    let targets = package["targets"].as_array()?.iter().filter(shipped);
    let dependency = |entry: &Value| {
        Some(Dependency {
            name: entry["name"].as_str()?.to_owned(),
            dev: entry["kind"].as_str() == Some("dev"),
        })
    };
    Some(Crate {
        name: package["name"].as_str()?.to_owned(),
        folder: manifest.strip_suffix("/Cargo.toml")?.to_owned(),
        roots: targets.map(|target| relative(&target["src_path"])).collect::<Option<_>>()?,
        dependencies: package["dependencies"].as_array()?.iter().map(dependency).collect::<Option<_>>()?,
    })
}

fn slashed(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

#[cfg(test)]
impl Project {
    /// A made-up project of one crate, `margay-tensor`, for the rules' own tests.
    pub(crate) fn of_files(files: &[(&str, &str)]) -> Project {
        let owner = |name: &str| Crate {
            name: name.into(),
            folder: format!("crates/{name}"),
            roots: vec![format!("crates/{name}/src/lib.rs")],
            dependencies: Vec::new(),
        };
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).into(),
            size_bytes: text.len() as u64,
            text: (*text).into(),
        };
        Project { crates: vec![owner("margay-tensor")], files: files.iter().map(file).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_is_read_with_and_without_git() {
        let root = Path::new(crate::tidy::ROOT).canonicalize().unwrap();
        let project = Project::read(&root).unwrap();
        let tensor = project.crates.iter().find(|found| found.name == "margay-tensor").unwrap();
        assert_eq!(tensor.folder, "crates/margay-tensor");
        assert_eq!(tensor.roots, ["crates/margay-tensor/src/lib.rs"]);
        assert!(
            tensor.dependencies.iter().any(|dependency| dependency.name == "thiserror" && !dependency.dev)
        );
        let root_file = project.file(&tensor.roots[0]).unwrap();
        assert_eq!(project.owner(root_file).unwrap().name, "margay-tensor");

        let walked = walk(&root).unwrap();
        assert!(walked.contains(&"xtask/src/tidy.rs".to_owned()));
        assert!(!walked.iter().any(|path| path.starts_with("target/") || path.starts_with(".git/")));
    }
}
