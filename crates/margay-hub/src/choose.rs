//! Which files of a repository make the model that is meant.

use crate::{HubError, ModelRef};
use std::collections::BTreeSet;

/// Names the shards of a checkpoint.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Names of candidates that an error lists.
const SHOWN: usize = 12;

/// What to fetch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Files, small ones first.
    pub files: Vec<String>,
    /// The file to open; `None` for a checkpoint folder.
    pub main: Option<String>,
    /// What a person should know.
    pub note: Option<String>,
}

/// Chooses among all files of a repository. Of a checkpoint in several shards, which are named by [`INDEX`], it chooses
/// all but these.
pub(crate) fn choose(model: &ModelRef, files: &[String]) -> Result<Choice, HubError> {
    match &model.file {
        Some(file) => named(model, file, files),
        None => unnamed(model, files),
    }
}

/// The shards that an index names.
pub(crate) fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|e| e.to_string())?;
    Ok(index.weight_map.into_values().collect())
}

fn named(model: &ModelRef, file: &str, files: &[String]) -> Result<Choice, HubError> {
    if files.iter().any(|name| name == file) {
        return Ok(with_vision(file.to_owned(), files));
    }
    let wanted = file.to_lowercase();
    let texts = text_models(files);
    let found: Vec<&String> =
        texts.iter().copied().filter(|name| name.to_lowercase().contains(&wanted)).collect();
    match found[..] {
        [only] => Ok(with_vision(only.clone(), files)),
        [] => {
            let what = if texts.is_empty() { files.iter().collect() } else { texts };
            Err(refuse(model, format!("has no file {file:?}; it has {}", listed(&what))))
        }
        _ => Err(refuse(model, format!("has several files like {file:?}: {}", listed(&found)))),
    }
}

fn unnamed(model: &ModelRef, files: &[String]) -> Result<Choice, HubError> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let at_top = |name: &&String| !name.contains('/');
    let tensors: Vec<&String> =
        files.iter().filter(at_top).filter(|name| name.ends_with(".safetensors")).collect();
    if has("config.json") && (!tensors.is_empty() || has(INDEX)) {
        // Code is never run; some checkpoints say nowhere else which vocabulary they mean.
        let small = |name: &&String| {
            [".json", ".jinja", ".model", ".txt", ".py"].iter().any(|end| name.ends_with(end))
        };
        let mut chosen: Vec<String> = files.iter().filter(at_top).filter(small).cloned().collect();
        if !has(INDEX) {
            // Beside the whole there may be the same weights in another naming.
            let whole = tensors.iter().filter(|name| !has(SINGLE) || name.as_str() == SINGLE);
            chosen.extend(whole.map(|name| (*name).clone()));
        }
        return Ok(Choice { files: chosen, main: None, note: None });
    }
    let texts = text_models(files);
    match texts[..] {
        [only] => Ok(with_vision(only.clone(), files)),
        [] if files
            .iter()
            .any(|name| name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth")) =>
        {
            let why = "holds a pickled checkpoint only, which runs code when it is read; look for one with safetensors or GGUF";
            Err(refuse(model, why.to_owned()))
        }
        [] => Err(refuse(model, "holds no safetensors with their config.json and no GGUF file".to_owned())),
        _ => Err(refuse(model, format!("has several models; choose one with :FILE, of {}", listed(&texts)))),
    }
}

/// A GGUF file with the vision part that lies beside it.
fn with_vision(main: String, files: &[String]) -> Choice {
    if !is_gguf(&main) || is_vision(&main) {
        return Choice { files: vec![main.clone()], main: Some(main), note: None };
    }
    let folder = |name: &str| name.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    let beside = |name: &&String| is_gguf(name) && is_vision(name) && folder(name) == folder(&main);
    let visions: Vec<&String> = files.iter().filter(beside).collect();
    // Published in several formats, float16 is what every runtime reads at full quality.
    let half = visions.iter().find(|name| {
        let name = name.to_lowercase();
        name.contains("f16") && !name.contains("bf16")
    });
    let vision = half.or(visions.first()).map(|name| (*name).clone());
    let note = (visions.len() > 1).then(|| {
        let taken = vision.as_deref().unwrap_or_default();
        format!("of {} vision parts, {taken} was taken", visions.len())
    });
    Choice { files: vision.into_iter().chain([main.clone()]).collect(), main: Some(main), note }
}

fn text_models(files: &[String]) -> Vec<&String> {
    files.iter().filter(|name| is_gguf(name) && !is_vision(name)).collect()
}

fn is_gguf(name: &str) -> bool {
    name.to_lowercase().ends_with(".gguf")
}

fn is_vision(name: &str) -> bool {
    name.rsplit('/').next().unwrap_or(name).to_lowercase().contains("mmproj")
}

fn listed(names: &[&String]) -> String {
    let shown: Vec<&str> = names.iter().take(SHOWN).map(|name| name.as_str()).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

fn refuse(model: &ModelRef, why: String) -> HubError {
    HubError::Choice { repo: model.repo.clone(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(reference: &str, files: &[&str]) -> Result<Choice, String> {
        let files: Vec<String> = files.iter().map(|name| (*name).to_owned()).collect();
        choose(&reference.parse().unwrap(), &files).map_err(|e| e.to_string())
    }

    #[test]
    fn a_checkpoint_is_its_weights_and_what_describes_them() {
        let files = [
            "README.md",
            "config.json",
            "model.safetensors",
            "original.safetensors",
            "pytorch_model.bin",
            "modeling.py",
            "tokenizer.model",
            "onnx/model.onnx",
            "onnx/config.json",
            "x.gguf",
        ];
        let choice = chosen("a/b", &files).unwrap();
        assert_eq!(choice.files, ["config.json", "modeling.py", "tokenizer.model", "model.safetensors"]);
        assert_eq!(choice.main, None);
        let choice = chosen("a/b", &["config.json", "model-1.safetensors", INDEX]).unwrap();
        assert_eq!(choice.files, ["config.json", INDEX], "the index names the shards");
        let index =
            br#"{"metadata":{},"weight_map":{"a":"x.safetensors","b":"y.safetensors","c":"x.safetensors"}}"#;
        assert_eq!(
            shards(index).unwrap().into_iter().collect::<Vec<_>>(),
            ["x.safetensors", "y.safetensors"]
        );
        assert!(shards(b"[]").is_err());
    }

    #[test]
    fn a_gguf_file_comes_with_its_vision_part() {
        let files =
            ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-bf16.gguf", "mmproj-f16.gguf", "sub/mmproj-x.gguf"];
        let choice = chosen("a/b:q4_k_m", &files).unwrap();
        assert_eq!(choice.files, ["mmproj-f16.gguf", "m-Q4_K_M.gguf"]);
        assert_eq!(choice.main.as_deref(), Some("m-Q4_K_M.gguf"));
        assert!(choice.note.unwrap().contains("mmproj-f16.gguf"));
        let choice = chosen("a/b:mmproj-bf16.gguf", &files).unwrap();
        assert_eq!(choice.files, ["mmproj-bf16.gguf"]);
        let choice = chosen("a/b", &["only.gguf"]).unwrap();
        assert_eq!((choice.files.len(), choice.note), (1, None));
    }

    #[test]
    fn what_is_not_clear_is_said_with_what_there_is() {
        let files = ["m-Q4_K_M.gguf", "m-Q8_0.gguf"];
        let error = chosen("a/b", &files).unwrap_err();
        assert!(error.contains("choose one with :FILE, of m-Q4_K_M.gguf, m-Q8_0.gguf"), "{error}");
        assert!(chosen("a/b:q", &files).unwrap_err().contains("several files like \"q\""));
        assert!(chosen("a/b:q6", &files).unwrap_err().contains("no file \"q6\"; it has m-Q4"));
        assert!(chosen("a/b", &["config.json", "pytorch_model.bin"]).unwrap_err().contains("pickled"));
        assert!(chosen("a/b", &[]).unwrap_err().contains("no safetensors"));
    }
}
