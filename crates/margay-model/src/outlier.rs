//! Columns that a GGUF file keeps in half precision beside a quantized matrix.
//!
//! Which, its metadata say: an array of integers for each such matrix. The columns themselves are a tensor of their own,
//! and stand as zeros in the matrix. Both are Margay's own; see `docs/quantization.md`.

use crate::{ModelError, ModelPrograms, gguf::field};
use margay_file::gguf::Metadata;
use margay_graph::Program;
use std::collections::BTreeMap;

/// Before the name of a weight: its kept columns, ascending.
const KEY: &str = "margay.outlier.";

/// Which columns of which matrices are kept in a matrix of their own: ascending numbers, by the weight's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outliers(BTreeMap<String, Vec<usize>>);

impl Outliers {
    /// Those that the metadata of a model's files name.
    ///
    /// # Errors
    /// [`ModelError::File`] where a value is no array of integers, [`ModelError::Field`] where one is negative.
    pub fn read<'a>(files: impl Iterator<Item = &'a Metadata>) -> Result<Self, ModelError> {
        let mut found = Outliers::default();
        for meta in files {
            for (key, name) in meta.iter().filter_map(|(key, _)| Some((key, key.strip_prefix(KEY)?))) {
                let columns = meta.opt_i32s(key)?.unwrap_or_default();
                let column = |column: &i32| {
                    usize::try_from(*column)
                        .map_err(|_| field(key, format!("{column} is no column, they count from 0")))
                };
                let columns = columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
                // One file that holds both sides is read as both.
                if found.0.insert(name.to_owned(), columns.clone()).is_some_and(|other| other != columns) {
                    return Err(field(key, "the two files of the model say different columns".into()));
                }
            }
        }
        Ok(found)
    }

    /// The kept columns of that weight, ascending; `None` where it is whole.
    pub fn get(&self, name: &str) -> Option<&[usize]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// Whether every weight is whole.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes which columns of that weight are kept.
    pub fn put(meta: &mut Metadata, name: &str, columns: &[usize]) {
        let columns: Vec<i32> = columns.iter().map(|column| *column as i32).collect();
        meta.insert(&format!("{KEY}{name}"), columns);
    }

    /// The programs over weights that lie so.
    ///
    /// # Errors
    /// [`ModelError::Field`] for columns that the weight does not have, that do not ascend or come twice, and for weights
    /// that are no linear layer's own.
    pub(crate) fn apply(&self, programs: ModelPrograms) -> Result<ModelPrograms, ModelError> {
        if self.is_empty() {
            return Ok(programs);
        }
        let all = || programs.encode.iter().chain(&programs.project).chain([&programs.text]);
        for name in self.0.keys() {
            if !all().any(|program| program.weights().iter().any(|spec| spec.name == *name)) {
                return Err(field(&format!("{KEY}{name}"), "the model has no weight of that name".into()));
            }
        }
        let bad = |error: margay_graph::GraphError| field(&format!("{KEY}*"), error.to_string());
        let changed = |program: &Program| program.with_outliers(&self.0).map_err(bad);
        Ok(ModelPrograms {
            encode: programs.encode.as_ref().map(changed).transpose()?,
            project: programs.project.as_ref().map(changed).transpose()?,
            text: changed(&programs.text)?,
        })
    }
}
