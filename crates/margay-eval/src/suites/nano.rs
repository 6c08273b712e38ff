//! Questions about the little world of margay-nano, word for word, as `training/nano/evaluate.py` scores them.

use crate::{
    Answered, Cell, EvalError, Headline, Item, PictureAt, Row, Suite, SuiteEntry, read,
    suite::{Groups, check, percent, right_of, share},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// Longer than any answer of that world: a description of five things and a sign takes 60.
const TOKENS: usize = 128;

pub(crate) const SUITE: SuiteEntry = SuiteEntry {
    id: "nano",
    about: "coloured shapes and a sign: exact match per task, beside the level of a guesser",
    files: "questions.jsonl and images/, written by training/nano/suite.py",
    max_tokens: TOKENS,
    open,
};

/// One line of `questions.jsonl`.
#[derive(Deserialize)]
struct Line {
    id: read::Id,
    image: String,
    kind: String,
    question: String,
    answer: String,
    /// How often a guesser is right who knows what is in the picture.
    chance: f64,
}

struct Nano {
    items: Vec<Item>,
    /// Kind and chance of each.
    more: Vec<(String, f64)>,
}

fn open(folder: &Path) -> Result<Box<dyn Suite>, EvalError> {
    let path = folder.join("questions.jsonl");
    let mut groups = Groups::default();
    let mut nano = Nano { items: vec![], more: vec![] };
    for (line, asked) in read::json_lines::<Line>(&path)? {
        let picture = read::picture(&folder.join("images"), &asked.image)
            .map_err(|what| EvalError::content(&path, Some(line), what))?;
        nano.items.push(Item {
            id: asked.id.0,
            group: groups.of(&asked.image),
            picture: Some(PictureAt::File(picture)),
            prompt: asked.question,
            truth: asked.answer,
        });
        nano.more.push((asked.kind, asked.chance));
    }
    check(&path, &nano.items)?;
    Ok(Box::new(nano))
}

impl Suite for Nano {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn prompt(&self) -> &str {
        "the question alone"
    }

    fn headline(&self) -> Headline {
        Headline { name: "exact match", of: 100.0, is_share: true }
    }

    fn sums(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        right_of(&self.worth(answers))
    }

    fn value(&self, sums: &[f64]) -> Option<f64> {
        percent(sums)
    }

    fn worth(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let right = |a: &Answered<'_>| a.text == Some(self.items[a.item].truth.as_str());
        answers.iter().map(|a| f64::from(u8::from(right(a)))).collect()
    }

    fn rows(&self, answers: &[Answered<'_>]) -> Vec<Row> {
        let mut kinds: BTreeMap<&str, Vec<Answered<'_>>> = BTreeMap::new();
        for answer in answers {
            kinds.entry(&self.more[answer.item].0).or_default().push(*answer);
        }
        kinds
            .into_iter()
            .map(|(kind, answers)| {
                let mut row = share(kind, "exact", &self.worth(&answers));
                row.cells.push(Cell { name: "no skill", value: Some(100.0 * self.no_skill(kind, &answers)) });
                row
            })
            .collect()
    }
}

impl Nano {
    /// The better of: always the most frequent answer, or a guess among those that the picture makes possible.
    fn no_skill(&self, kind: &str, answers: &[Answered<'_>]) -> f64 {
        // Yes and no are even over all of these.
        if kind.starts_with("exist") {
            return 0.5;
        }
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for answer in answers {
            *counts.entry(&self.items[answer.item].truth).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0) as f64;
        let chance: f64 = answers.iter().map(|a| self.more[a.item].1).sum();
        chance.max(most) / answers.len() as f64
    }
}
