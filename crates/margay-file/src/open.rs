//! Opens whatever a person hands over as a model, or says what it is instead.

use std::path::{Path, PathBuf};

use margay_tensor::{Storage, Tensor};

use crate::{FileError, Gguf, HfFolder, Origin, TensorInfo, TensorSource, gguf::MAGIC, hf::file_names};

/// An open model.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// GGUF: the text model, and the vision part where there is one. Where one file holds both, both are that file
    /// (see [`Gguf::is_same`]).
    Gguf {
        /// Text model and vocabulary.
        text: Gguf,
        /// Vision tower and projector (keys `clip.*`, tensors `v.*` and `mm.*`).
        vision: Option<Gguf>,
    },
    /// A Hugging Face folder.
    Hf(HfFolder),
}

impl ModelFiles {
    /// A model that is in memory already, in one GGUF file.
    ///
    /// # Errors
    /// [`FileError`] where the bytes break the format or hold no text model.
    pub fn from_bytes(bytes: Storage) -> Result<Self, FileError> {
        from_text(Gguf::from_bytes(bytes)?, None, Path::new("the model in memory"))
    }

    /// The GGUF files, in the order of [`ModelFiles::sources`]; a folder has none.
    pub fn ggufs(&self) -> Vec<&Gguf> {
        match self {
            ModelFiles::Hf(_) => vec![],
            ModelFiles::Gguf { text, vision: Some(vision) } if !vision.is_same(text) => vec![text, vision],
            ModelFiles::Gguf { text, .. } => vec![text],
        }
    }

    /// What tells the present state of its files from another: one for each that holds tensors.
    ///
    /// # Errors
    /// [`FileError::Io`] where the system does not say when a file was changed, or the model is in memory only.
    pub fn origins(&self) -> Result<Vec<Origin>, FileError> {
        match self {
            ModelFiles::Hf(folder) => folder.origins(),
            ModelFiles::Gguf { .. } => self.ggufs().into_iter().map(Origin::of).collect(),
        }
    }

    /// Every tensor source of the model: the text model, then the vision part where it is another file.
    pub fn sources(&self) -> Vec<&dyn TensorSource> {
        match self {
            ModelFiles::Hf(folder) => vec![folder],
            ModelFiles::Gguf { text, vision: Some(vision) } if !vision.is_same(text) => vec![text, vision],
            ModelFiles::Gguf { text, .. } => vec![text],
        }
    }
}

/// All tensors of the model, those of the text part first.
impl TensorSource for ModelFiles {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.sources().into_iter().flat_map(TensorSource::names))
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.sources().into_iter().find_map(|source| source.info(name))
    }

    fn tensor(&self, name: &str) -> Result<Tensor, FileError> {
        let source = self.sources().into_iter().find(|source| source.info(name).is_some());
        source.ok_or_else(|| FileError::missing_tensor(name))?.tensor(name)
    }
}

/// Opens the model at `path`:
/// a GGUF file, with its vision part `mmproj` or the one that lies beside it;
/// a folder that holds one GGUF text model;
/// or a Hugging Face folder.
///
/// The vision part beside a model is the file whose name contains `mmproj`, or else the one that says in its metadata
/// that it is one. Of several, the one whose name has the longest beginning in common with the model's.
///
/// ```no_run
/// use margay_file::{ModelFiles, open_model};
/// match open_model("models/MobileVLM_V2-1.7B-q4_k.gguf", None)? {
///     ModelFiles::Gguf { text, vision } => {
///         let (layers, sees) = (text.metadata().u32("llama.block_count")?, vision.is_some());
///     }
///     ModelFiles::Hf(folder) => {
///         let family = &folder.config()["model_type"];
///     }
/// }
/// # Ok::<(), margay_file::FileError>(())
/// ```
///
/// # Errors
/// [`FileError::NotAModel`] for anything else, [`FileError::Ambiguous`] where it is not clear what is meant, others
/// where a file is broken.
pub fn open_model(path: impl AsRef<Path>, mmproj: Option<&Path>) -> Result<ModelFiles, FileError> {
    let path = path.as_ref();
    let kind = std::fs::metadata(path).map_err(|e| FileError::io("open", path, e))?;
    if !kind.is_dir() {
        return open_gguf(path, mmproj);
    }
    let names = file_names(path)?;
    // Folders of GGUF files often hold the original's config.json, without its tensors.
    let tensors = |name: &String| name.ends_with(".safetensors") || name.ends_with(".bin");
    let checkpoint = names.iter().any(tensors) || !names.iter().any(|name| has_gguf_ending(name));
    if checkpoint && names.iter().any(|name| name == "config.json") {
        if mmproj.is_some() {
            return Err(not_a_model(
                path,
                "a checkpoint folder, with its vision tower inside",
                "leave out --mmproj",
            ));
        }
        return Ok(ModelFiles::Hf(HfFolder::open(path)?));
    }
    open_gguf(&only_text_model(path, &names)?, mmproj)
}

fn open_gguf(path: &Path, mmproj: Option<&Path>) -> Result<ModelFiles, FileError> {
    check_magic(path)?;
    let text = Gguf::open(path)?;
    check_whole(path, &text)?;
    let vision = match mmproj {
        Some(mmproj) => Some(open_vision(mmproj)?),
        None if is_vision(&text) || holds_vision(&text) => None,
        None => find_vision(path)?.map(|found| open_vision(&found)).transpose()?,
    };
    from_text(text, vision, path)
}

/// Joins the parts, after a look at whether the text part is one.
fn from_text(text: Gguf, vision: Option<Gguf>, path: &Path) -> Result<ModelFiles, FileError> {
    if is_vision(&text) {
        let advice = "give the text model as the model, and this file with --mmproj";
        return Err(not_a_model(path, "the vision part (mmproj) of a model", advice));
    }
    if text.architecture().is_none() {
        let kind = text.metadata().get("general.type").and_then(|value| value.as_str());
        let what = format!(
            "a GGUF file without general.architecture ({})",
            kind.unwrap_or("no general.type either")
        );
        return Err(not_a_model(path, what, "give the file that holds the text model"));
    }
    let vision = vision.or_else(|| holds_vision(&text).then(|| text.clone()));
    Ok(ModelFiles::Gguf { text, vision })
}

fn open_vision(path: &Path) -> Result<Gguf, FileError> {
    check_magic(path)?;
    let vision = Gguf::open(path)?;
    if !is_vision(&vision) && !holds_vision(&vision) {
        return Err(FileError::NotAModel {
            path: path.to_owned(),
            what: format!("a {} model without a vision part", vision.architecture().unwrap_or("nameless")),
            advice: "give the mmproj file that was published with the model".to_owned(),
        });
    }
    Ok(vision)
}

/// True for a file that is a vision part and nothing else.
fn is_vision(file: &Gguf) -> bool {
    let kind = file.metadata().get("general.type").and_then(|value| value.as_str());
    kind == Some("mmproj") || file.architecture() == Some("clip")
}

/// True for a text model that has its vision part in the same file.
fn holds_vision(file: &Gguf) -> bool {
    let tower = |name: &str| name.starts_with("v.") || name.starts_with("mm.");
    file.metadata().iter().any(|(key, _)| key.starts_with("clip."))
        && file.tensors().any(|(name, _)| tower(name))
}

/// One part of a model that was split into several files lacks most of its tensors.
fn check_whole(path: &Path, file: &Gguf) -> Result<(), FileError> {
    let count = file.metadata().opt_u64("split.count").map_err(|e| e.in_file(path))?.unwrap_or(1);
    if count > 1 {
        let what = format!("one of {count} parts of a model");
        return Err(not_a_model(path, what, "join them first (llama-gguf-split --merge FIRST_PART OUT)"));
    }
    Ok(())
}

fn only_text_model(folder: &Path, names: &[String]) -> Result<PathBuf, FileError> {
    let gguf: Vec<_> = names.iter().filter(|name| has_gguf_ending(name)).collect();
    let text: Vec<_> = match gguf[..] {
        // With one file there is nothing to choose: a vision part is told apart when it is opened.
        [_] => gguf,
        _ => gguf.into_iter().filter(|name| !is_vision_file(folder, name)).collect(),
    };
    match text[..] {
        [only] => Ok(folder.join(only)),
        [] if names.iter().any(|name| name.ends_with(".safetensors")) => Err(not_a_model(
            folder,
            "a folder of *.safetensors without config.json",
            "add the checkpoint's config.json",
        )),
        [] => {
            let advice = "give a GGUF file, a folder with one, or a checkpoint folder with config.json";
            Err(not_a_model(folder, "a folder without a model", advice))
        }
        _ => Err(FileError::Ambiguous {
            path: folder.to_owned(),
            what: "models",
            candidates: text.into_iter().cloned().collect(),
            advice: "the path of the file",
        }),
    }
}

/// The vision part beside a text model, where there is one.
fn find_vision(model: &Path) -> Result<Option<PathBuf>, FileError> {
    let folder = match model.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let own = model.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // A model can be opened in a folder that cannot be listed; it has no vision part then.
    let Ok(names) = file_names(folder) else { return Ok(None) };
    let others: Vec<_> = names.iter().filter(|name| has_gguf_ending(name) && *name != own).collect();
    let mut candidates: Vec<_> = others.iter().copied().filter(|name| says_mmproj(name)).collect();
    if candidates.is_empty() {
        candidates = others.into_iter().filter(|name| is_vision_file(folder, name)).collect();
    }
    let shared = |name: &str| shared_stem(own, name);
    let longest = candidates.iter().map(|name| shared(name)).max().unwrap_or(0);
    candidates.retain(|name| shared(name) == longest);
    if candidates.len() > 1 {
        return Err(FileError::Ambiguous {
            path: folder.to_owned(),
            what: "vision parts",
            candidates: candidates.into_iter().cloned().collect(),
            advice: "--mmproj FILE",
        });
    }
    Ok(candidates.first().map(|name| folder.join(name)))
}

fn has_gguf_ending(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

fn says_mmproj(name: &str) -> bool {
    name.to_ascii_lowercase().contains("mmproj")
}

/// True where the name or the metadata says so. A file that is broken is none.
fn is_vision_file(folder: &Path, name: &str) -> bool {
    says_mmproj(name) || Gguf::open(folder.join(name)).is_ok_and(|file| is_vision(&file))
}

/// How many words two file names have in common from the beginning, `mmproj` left out.
fn shared_stem(a: &str, b: &str) -> usize {
    words(a).iter().zip(words(b)).take_while(|(a, b)| *a == b).count()
}

fn words(name: &str) -> Vec<String> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(".gguf").unwrap_or(&name).replace("mmproj", "-");
    let parts = name.split(|c: char| !c.is_alphanumeric());
    parts.filter(|part| !part.is_empty() && *part != "model").map(str::to_owned).collect()
}

/// Bytes that are looked at to tell what a file is.
const SNIFFED_BYTES: usize = 512;

/// Beginnings of files that are often mistaken for a model: bytes, what it is, what to do.
const KINDS: &[(&[u8], &str, &str)] = &[
    (b"\x89PNG\r\n", "a PNG picture", PICTURE),
    (b"\xff\xd8\xff", "a JPEG picture", PICTURE),
    (b"GIF8", "a GIF picture", PICTURE),
    (b"BM", "a BMP picture", PICTURE),
    (b"RIFF", "a RIFF file (a WebP picture or sound)", PICTURE),
    (b"PK\x03\x04", "a zip archive or a pickled PyTorch checkpoint", PICKLE),
    (b"\x80\x02", "a pickled PyTorch checkpoint", PICKLE),
    (b"\x80\x03", "a pickled PyTorch checkpoint", PICKLE),
    (b"\x80\x04", "a pickled PyTorch checkpoint", PICKLE),
    (b"\x89HDF", "an HDF5 file", CONVERT),
    (b"lmgg", "a GGML file from before GGUF", OLD),
    (b"fmgg", "a GGML file from before GGUF", OLD),
    (b"tjgg", "a GGML file from before GGUF", OLD),
    (b"FUGG", "a big-endian GGUF file", OLD),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file (git lfs pull)"),
    (b"<!DOCTYPE", "a web page", DOWNLOAD),
    (b"<!doctype", "a web page", DOWNLOAD),
    (b"<html", "a web page", DOWNLOAD),
    (b"%PDF", "a PDF document", CONVERT),
    (b"\x7fELF", "a program", CONVERT),
];

const PICTURE: &str = "pictures go after the model, or to --image";
const PICKLE: &str =
    "save it as safetensors with transformers and give the folder (Margay runs no code from checkpoints)";
const CONVERT: &str = "give a GGUF file or a Hugging Face folder";
const OLD: &str = "convert the original checkpoint to GGUF";
const DOWNLOAD: &str = "the download went wrong: look at it in an editor and fetch the file again";

/// Says what a file is that does not begin like GGUF.
fn check_magic(path: &Path) -> Result<(), FileError> {
    let start = read_start(path)?;
    if start.starts_with(&MAGIC) {
        return Ok(());
    }
    if start.is_empty() {
        return Err(not_a_model(
            path,
            "an empty file",
            "the download or conversion did not end: fetch it again",
        ));
    }
    if let Some((_, what, advice)) = KINDS.iter().find(|kind| start.starts_with(kind.0)) {
        return Err(not_a_model(path, *what, advice));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.ends_with(".safetensors") || start.get(8..10) == Some(b"{\"") {
        let advice = "give the folder that holds it together with config.json";
        return Err(not_a_model(path, "a safetensors file alone", advice));
    }
    if name.ends_with(".onnx") {
        return Err(not_a_model(path, "an ONNX model", CONVERT));
    }
    // The sample may end in the middle of a character: only bytes that can never be text count.
    let text = match std::str::from_utf8(&start) {
        Ok(_) => true,
        Err(e) => e.error_len().is_none(),
    };
    if text && !start.contains(&0) {
        let json = start.trim_ascii_start().starts_with(b"{");
        return Err(not_a_model(path, if json { "a JSON file" } else { "a text file" }, CONVERT));
    }
    let begin = start[..start.len().min(4)].escape_ascii();
    Err(not_a_model(path, format!("a file of unknown kind (it begins with \"{begin}\")"), CONVERT))
}

fn read_start(path: &Path) -> Result<Vec<u8>, FileError> {
    use std::io::Read;
    let failed = |e| FileError::io("open", path, e);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(not_a_model(path, "a device or pipe", CONVERT));
    }
    let mut start = Vec::with_capacity(SNIFFED_BYTES);
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(SNIFFED_BYTES as u64).read_to_end(&mut start).map_err(failed)?;
    Ok(start)
}

fn not_a_model(path: &Path, what: impl Into<String>, advice: &str) -> FileError {
    FileError::NotAModel { path: path.to_owned(), what: what.into(), advice: advice.to_owned() }
}
