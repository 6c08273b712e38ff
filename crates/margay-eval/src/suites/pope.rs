//! POPE: does a model see what is not there?

use super::{SHORT, SHORT_TOKENS};
use crate::{
    Answered, Cell, EvalError, Headline, Item, PictureAt, Row, Suite, SuiteEntry, read,
    suite::{Groups, check},
};
use serde::Deserialize;
use std::path::Path;

pub(crate) const SUITE: SuiteEntry = SuiteEntry {
    id: "pope",
    about: "POPE on COCO: F1 of \"yes\", averaged over random, popular and adversarial questions",
    files: "coco/coco_pope_{random,popular,adversarial}.json and val2014/",
    max_tokens: SHORT_TOKENS,
    open,
};

const CATEGORIES: [&str; 3] = ["random", "popular", "adversarial"];

/// Sums that a category takes: yes said and true, yes said and false, no said and false, no said and true.
const COUNTS: usize = 4;

#[derive(Deserialize)]
struct Line {
    question_id: read::Id,
    image: String,
    text: String,
    label: String,
}

struct Pope {
    items: Vec<Item>,
    /// Category of each question, and whether yes is right.
    more: Vec<(usize, bool)>,
}

fn open(folder: &Path) -> Result<Box<dyn Suite>, EvalError> {
    let mut groups = Groups::default();
    let mut pope = Pope { items: vec![], more: vec![] };
    for (category, name) in CATEGORIES.iter().enumerate() {
        let path = folder.join("coco").join(format!("coco_pope_{name}.json"));
        let before = pope.items.len();
        for (line, asked) in read::json_lines::<Line>(&path)? {
            let fail = |what: String| EvalError::content(&path, Some(line), what);
            let picture = read::picture(&folder.join("val2014"), &asked.image).map_err(fail)?;
            let yes = match asked.label.as_str() {
                "yes" => true,
                "no" => false,
                other => return Err(fail(format!("the label is {other:?}, not \"yes\" or \"no\""))),
            };
            pope.items.push(Item {
                id: format!("{name}/{}", asked.question_id.0),
                group: groups.of(&asked.image),
                picture: Some(PictureAt::File(picture)),
                prompt: asked.text + SHORT,
                truth: asked.label,
            });
            pope.more.push((category, yes));
        }
        check(&path, &pope.items[before..])?;
    }
    Ok(Box::new(pope))
}

/// Whether an answer means yes: what is left of the first full stop says neither "No", "no" nor "not". Source: LLaVA
/// llava/eval/eval_pope.py.
fn says_yes(text: &str) -> bool {
    let first = text.split('.').next().unwrap_or_default().replace(',', "");
    !first.split(' ').any(|word| ["No", "not", "no"].contains(&word))
}

/// F1 of yes; `None` where no question is right or said to be.
fn f1(counts: &[f64]) -> Option<f64> {
    let (hits, false_yes, false_no) = (counts[0], counts[1], counts[2]);
    ratio(2.0 * hits, 2.0 * hits + false_yes + false_no)
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| 100.0 * part / whole)
}

impl Pope {
    fn says_yes(&self, answer: &Answered<'_>) -> bool {
        // What could not be asked is wrong.
        answer.text.map_or(!self.more[answer.item].1, says_yes)
    }
}

impl Suite for Pope {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn prompt(&self) -> &str {
        "LLaVA: question, \"Answer the question using a single word or phrase.\""
    }

    fn headline(&self) -> Headline {
        Headline { name: "mean F1", of: 100.0, is_share: false }
    }

    fn sums(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let mut sums = vec![0.0; CATEGORIES.len() * COUNTS];
        for answer in answers {
            let (category, yes) = self.more[answer.item];
            let place = match (self.says_yes(answer), yes) {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            };
            sums[category * COUNTS + place] += 1.0;
        }
        sums
    }

    fn value(&self, sums: &[f64]) -> Option<f64> {
        let all: Option<Vec<f64>> = sums.chunks(COUNTS).map(f1).collect();
        all.map(|all| all.iter().sum::<f64>() / all.len() as f64)
    }

    fn worth(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let right = |a: &Answered<'_>| self.says_yes(a) == self.more[a.item].1;
        answers.iter().map(|a| f64::from(u8::from(right(a)))).collect()
    }

    fn rows(&self, answers: &[Answered<'_>]) -> Vec<Row> {
        let sums = self.sums(answers);
        CATEGORIES
            .iter()
            .zip(sums.chunks(COUNTS))
            .map(|(name, counts)| {
                let (hits, false_yes, false_no, rejections) = (counts[0], counts[1], counts[2], counts[3]);
                let n = counts.iter().sum::<f64>();
                let cell = |name, value| Cell { name, value };
                Row {
                    task: (*name).to_owned(),
                    n: n as usize,
                    cells: vec![
                        cell("F1", f1(counts)),
                        cell("accuracy", ratio(hits + rejections, n)),
                        cell("precision", ratio(hits, hits + false_yes)),
                        cell("recall", ratio(hits, hits + false_no)),
                        cell("yes", ratio(hits + false_yes, n)),
                    ],
                    right: None,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_is_found_as_a_word_of_the_first_sentence_and_all_else_is_yes() {
        for (text, yes) in [
            ("No", false),
            ("No, there is a cat.", false),
            ("There is not a dog", false),
            ("no", false),
            ("Yes. No.", true),
            // Quirks of the published rule.
            ("NO", true),
            ("No!", true),
            ("No\nnothing", true),
            ("There isn't", true),
            ("", true),
            (". no", true),
            ("I do not know, yes", false),
        ] {
            assert_eq!(says_yes(text), yes, "{text:?}");
        }
    }

    #[test]
    fn f1_is_undefined_only_without_any_yes() {
        assert_eq!(f1(&[0.0, 0.0, 0.0, 5.0]), None);
        assert_eq!(f1(&[0.0, 1.0, 0.0, 5.0]), Some(0.0));
        assert_eq!(f1(&[2.0, 1.0, 1.0, 0.0]), Some(100.0 * 4.0 / 6.0));
    }
}
