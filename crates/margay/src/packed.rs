//! Weights packed earlier, in files beside the model.

use crate::ModelSource;
use margay_file::{FileError, Gguf, Origin, PackedFile, packed_path};
use margay_graph::{Backend, PackedForm};
use margay_model::Canonical;
use margay_tensor::Storage;
use std::sync::{Mutex, PoisonError};

/// The packed files that lie beside a model's files and fit them. What does not fit is noted, and packed anew.
#[derive(Default)]
pub(crate) struct PackedFiles {
    /// One for each of the model's files.
    files: Vec<Option<PackedFile>>,
    notes: Mutex<Vec<String>>,
}

impl PackedFiles {
    /// Opens those that `backend` can use.
    pub(crate) fn open(source: &ModelSource, backend: &dyn Backend) -> Self {
        let packed = PackedFiles::default();
        let files = source.files.ggufs().into_iter().map(|file| packed.beside(file, backend)).collect();
        PackedFiles { files, ..packed }
    }

    /// The parts of a weight, where a file holds it in this form.
    pub(crate) fn parts(&self, weights: &Canonical, name: &str, form: &PackedForm) -> Option<Vec<Storage>> {
        let (file, stored) = weights.stored(name)?;
        let parts = self.files.get(file)?.as_ref()?.parts(stored, &form.form, &form.part_bytes);
        parts.unwrap_or_else(|e| {
            self.note(format!("{stored} is packed anew: {e}"));
            None
        })
    }

    /// What a person should know: files that were passed over, and why.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, note: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    fn beside(&self, file: &Gguf, backend: &dyn Backend) -> Option<PackedFile> {
        let layout = backend.layout()?;
        let path = packed_path(file.path()?, layout.target);
        if !path.exists() {
            return None;
        }
        let opened =
            Origin::of(file).and_then(|origin| PackedFile::open(&path, &layout.to_string(), &origin));
        let refused = |e: FileError| {
            self.note(format!("packing anew, because {e}; `margay prepack` makes a new one"));
        };
        opened.map_err(refused).ok()
    }
}
