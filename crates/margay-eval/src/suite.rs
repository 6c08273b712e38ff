//! What a benchmark is.

use crate::EvalError;
use ring::digest::{Context, SHA256};
use serde::Serialize;
use std::{
    collections::HashSet,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A benchmark that can be asked for by name.
#[derive(Clone, Copy, Debug)]
pub struct SuiteEntry {
    /// Its name.
    pub id: &'static str,
    /// What it asks about, in a line.
    pub about: &'static str,
    /// The files it reads, below the folder given.
    pub files: &'static str,
    /// Tokens of an answer at most, as published.
    pub max_tokens: usize,
    /// Reads the folder.
    pub open: fn(&Path) -> Result<Box<dyn Suite>, EvalError>,
}

/// A benchmark, read.
pub trait Suite: Send + Sync {
    /// Its questions; those about one picture follow each other as their groups do.
    fn items(&self) -> &[Item];
    /// How its questions are put: the published variant.
    fn prompt(&self) -> &str;
    /// What its headline is.
    fn headline(&self) -> Headline;
    /// What the answers of one group add to the sums that the headline is made of; always as many.
    fn sums(&self, answers: &[Answered<'_>]) -> Vec<f64>;
    /// The headline of those sums over all groups; `None` of too few.
    fn value(&self, sums: &[f64]) -> Option<f64>;
    /// What one group's answers are worth, 0 to 1, one by one: what two models are compared by.
    fn worth(&self, answers: &[Answered<'_>]) -> Vec<f64>;
    /// Groups of one stratum stand for each other in a bootstrap.
    fn stratum(&self, _: &[Answered<'_>]) -> usize {
        0
    }
    /// Figures task by task.
    fn rows(&self, answers: &[Answered<'_>]) -> Vec<Row>;
    /// What a reader of the figures should know.
    fn notes(&self, _: &[Answered<'_>]) -> Vec<String> {
        vec![]
    }
}

/// A question.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its name within the suite.
    pub id: String,
    /// What it asks about.
    pub picture: Option<PictureAt>,
    /// The words of the user.
    pub prompt: String,
    /// What the scorer compares with, as a text.
    pub truth: String,
    /// Questions of a group are asked, left out and resampled together: those about one picture, the rotations of one.
    pub group: usize,
}

/// Where a picture lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PictureAt {
    /// In a file.
    File(PathBuf),
    /// In the question file, in base64.
    Base64(Arc<str>),
}

/// A question and what was answered; `None` where it could not be asked, which is wrong.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// Place in [`Suite::items`].
    pub item: usize,
    /// The answer, without white space around it.
    pub text: Option<&'a str>,
}

/// What a suite's headline is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Headline {
    /// Its name.
    pub name: &'static str,
    /// The best it can be.
    pub of: f64,
    /// True where it is a share of right answers: the first of two sums over the second, times `of`.
    pub is_share: bool,
}

/// Figures of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The task.
    pub task: String,
    /// Its questions.
    pub n: usize,
    /// Its figures; every row of a suite has the same.
    pub cells: Vec<Cell>,
    /// Right answers where the first figure is their share.
    pub right: Option<f64>,
}

/// A figure of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Its name.
    pub name: &'static str,
    /// Its value; `None` where it is not defined.
    pub value: Option<f64>,
}

/// Cuts a suite down to about `limit` questions: whole groups, evenly spaced over the suite, so that every task has its
/// share. Gives places in [`Suite::items`], group by group.
pub fn choose(items: &[Item], limit: Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|at| items[*at].group);
    let mut groups: Vec<&[usize]> = order.chunk_by(|a, b| items[*a].group == items[*b].group).collect();
    if let Some(limit) = limit.filter(|limit| *limit < items.len()) {
        let kept = (limit * groups.len()).div_ceil(items.len()).max(1);
        groups = (0..kept).map(|at| groups[at * groups.len() / kept]).collect();
    }
    groups.concat()
}

/// SHA-256 over a suite's questions and truths, in hexadecimal: the same for the same benchmark wherever it lies.
pub fn suite_digest(id: &str, suite: &dyn Suite) -> String {
    let mut hash = Context::new(&SHA256);
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    add(id);
    for item in suite.items() {
        add(&item.id);
        add(&item.prompt);
        add(&item.truth);
        match &item.picture {
            // The name alone: where the folder lies does not matter.
            Some(PictureAt::File(path)) => add(&path.file_name().unwrap_or_default().to_string_lossy()),
            Some(PictureAt::Base64(bytes)) => add(bytes),
            None => add(""),
        }
    }
    hex(hash.finish().as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Numbers names in the order in which they come.
#[derive(Default)]
pub(crate) struct Groups(std::collections::HashMap<String, usize>);

impl Groups {
    pub(crate) fn of(&mut self, name: &str) -> usize {
        let next = self.0.len();
        *self.0.entry(name.to_owned()).or_insert(next)
    }
}

/// Refuses a suite without questions, or with two of one name.
pub(crate) fn check(path: &Path, items: &[Item]) -> Result<(), EvalError> {
    if items.is_empty() {
        return Err(EvalError::content(path, None, "there is no question in it"));
    }
    let mut seen = HashSet::new();
    match items.iter().find(|item| !seen.insert(item.id.as_str())) {
        Some(twice) => {
            Err(EvalError::content(path, None, format!("two questions have the id {:?}", twice.id)))
        }
        None => Ok(()),
    }
}

/// Share of right answers in percent, as a row.
pub(crate) fn share(task: impl Into<String>, name: &'static str, worth: &[f64]) -> Row {
    let (right, n) = (worth.iter().sum::<f64>(), worth.len());
    let value = (n > 0).then(|| 100.0 * right / n as f64);
    Row { task: task.into(), n, cells: vec![Cell { name, value }], right: Some(right) }
}

/// Sum and count of what answers are worth: the sums of a headline that is their share.
pub(crate) fn right_of(worth: &[f64]) -> Vec<f64> {
    vec![worth.iter().sum(), worth.len() as f64]
}

/// The first sum of the second, in percent.
pub(crate) fn percent(sums: &[f64]) -> Option<f64> {
    (sums[1] > 0.0).then(|| 100.0 * sums[0] / sums[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(groups: &[usize]) -> Vec<Item> {
        let item = |(at, group): (usize, &usize)| Item {
            id: at.to_string(),
            picture: None,
            prompt: String::new(),
            truth: String::new(),
            group: *group,
        };
        groups.iter().enumerate().map(item).collect()
    }

    #[test]
    fn a_limit_keeps_groups_whole_and_spreads_them() {
        let all = items(&[0, 1, 0, 1, 2, 2, 3, 3]);
        assert_eq!(choose(&all, None), [0, 2, 1, 3, 4, 5, 6, 7]);
        assert_eq!(choose(&all, Some(4)), [0, 2, 4, 5]);
        assert_eq!(choose(&all, Some(1)), [0, 2]);
        assert_eq!(choose(&all, Some(100)).len(), 8);
        assert_eq!(choose(&[], Some(3)), [0; 0]);
    }

    #[test]
    fn a_name_that_comes_twice_is_refused() {
        let path = Path::new("questions.json");
        let mut two = items(&[0, 1]);
        assert!(check(path, &two).is_ok());
        two[1].id = "0".to_owned();
        assert!(check(path, &two).unwrap_err().to_string().contains("two questions have the id \"0\""));
        assert!(check(path, &[]).unwrap_err().to_string().contains("no question"));
    }
}
