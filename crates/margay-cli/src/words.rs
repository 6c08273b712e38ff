//! Tells the words of `margay run` apart: pictures, a model, a question.

use crate::Usage;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// File endings of pictures, readable or not: a person who types one means a picture.
const PICTURE_ENDINGS: &[&str] =
    &["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "heic", "avif", "ppm", "svg"];

/// First bytes of picture files.
const PICTURE_MAGICS: &[&[u8]] = &[b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM"];

/// What the words mean.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// A model file or folder.
    pub model: Option<PathBuf>,
    /// Picture files.
    pub pictures: Vec<PathBuf>,
    /// Everything else, joined.
    pub question: Option<String>,
}

/// What one word means.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Picture,
    Model,
    Text,
}

impl Words {
    /// Sorts the words.
    ///
    /// # Errors
    /// Where a word is clearly the path of a file that is not there; [`Usage`] for two models.
    pub(crate) fn sort(words: &[String]) -> anyhow::Result<Self> {
        let mut sorted = Words::default();
        let mut question: Vec<&str> = vec![];
        for word in words {
            match kind(word)? {
                Kind::Picture => sorted.pictures.push(word.into()),
                Kind::Text => question.push(word),
                Kind::Model => {
                    if let Some(first) = sorted.model.replace(word.into()) {
                        let message = format!("{} and {word} are both models; give one", first.display());
                        return Err(Usage(message).into());
                    }
                }
            }
        }
        sorted.question = (!question.is_empty()).then(|| question.join(" "));
        Ok(sorted)
    }
}

fn kind(word: &str) -> anyhow::Result<Kind> {
    let path = Path::new(word);
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    let ends = |endings: &[&str]| ending.as_ref().is_some_and(|e| endings.contains(&e.as_str()));
    // Nobody types a whole question with such an ending: "What is in cat.png" is cut at its spaces.
    let one_word = !word.contains(char::is_whitespace);
    if path.is_dir() || (one_word && word.starts_with(crate::hub::PREFIX)) {
        return Ok(Kind::Model);
    }
    if !path.exists() {
        anyhow::ensure!(!(one_word && ends(PICTURE_ENDINGS)), "no such picture: {word}");
        anyhow::ensure!(!(one_word && ends(&["gguf", "safetensors"])), "no such model: {word}");
        let is_path = ["./", "../", "/", "~"].iter().any(|start| word.starts_with(start));
        anyhow::ensure!(!(one_word && is_path), "no such file or folder: {word}");
        return Ok(Kind::Text);
    }
    match first_bytes(path) {
        Some(start) if start.starts_with(b"GGUF") => Ok(Kind::Model),
        Some(start) if is_picture(&start) || ends(PICTURE_ENDINGS) => Ok(Kind::Picture),
        None if ends(PICTURE_ENDINGS) => Ok(Kind::Picture),
        // A file that is neither is taken for a model: opening it says what it is instead.
        _ if ending.is_some() || word.contains(std::path::MAIN_SEPARATOR) => Ok(Kind::Model),
        _ => Ok(Kind::Text),
    }
}

fn first_bytes(path: &Path) -> Option<Vec<u8>> {
    // A pipe would lose what is read of it, and could wait for ever.
    if !path.is_file() {
        return None;
    }
    let mut start = vec![];
    std::fs::File::open(path).ok()?.take(12).read_to_end(&mut start).ok()?;
    Some(start)
}

fn is_picture(start: &[u8]) -> bool {
    let webp = start.starts_with(b"RIFF") && start.get(8..12) == Some(b"WEBP");
    webp || PICTURE_MAGICS.iter().any(|magic| start.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(words: &[&str]) -> anyhow::Result<Words> {
        Words::sort(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words_are_told_apart_by_what_they_are_not_by_their_place() {
        let folder = std::env::temp_dir().join(format!("margay-words-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let files: [(&str, &[u8]); 4] = [
            ("photo", b"\xff\xd8\xff\xe0"),
            ("text.png", b"hello"),
            ("model.bin", b"GGUF\x03\0\0\0"),
            ("web", b"RIFF\0\0\0\0WEBP"),
        ];
        for (name, bytes) in files {
            std::fs::write(path(name), bytes).unwrap();
        }
        let (photo, text, model, web) = (path("photo"), path("text.png"), path("model.bin"), path("web"));
        let sorted = sort(&[&photo, "What", "is it?", &model, &text, &web]).unwrap();
        assert_eq!(sorted.model, Some(model.clone().into()));
        assert_eq!(sorted.pictures, [photo, text, web].map(PathBuf::from));
        assert_eq!(sorted.question.as_deref(), Some("What is it?"));
        assert!(sort(&[&model, folder.to_str().unwrap()]).unwrap_err().is::<Usage>());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_missing_picture_is_no_question_but_a_sentence_about_one_is() {
        assert_eq!(sort(&["gone.PNG"]).unwrap_err().to_string(), "no such picture: gone.PNG");
        assert_eq!(sort(&["gone.gguf"]).unwrap_err().to_string(), "no such model: gone.gguf");
        assert!(sort(&["./no-such-model"]).unwrap_err().to_string().starts_with("no such file or folder"));
        assert_eq!(sort(&["hf:a/b:m.gguf"]).unwrap().model, Some("hf:a/b:m.gguf".into()));
        assert_eq!(sort(&["hf: what is it?"]).unwrap().model, None);
        assert_eq!(sort(&["What is in cat.png"]).unwrap().question.as_deref(), Some("What is in cat.png"));
        assert_eq!(sort(&[]).unwrap(), Words::default());
    }
}
