//! ScienceQA: questions of school science with options.

use super::{LETTER, LETTER_TOKENS};
use crate::{
    Answered, EvalError, Headline, Item, PictureAt, Row, Suite, SuiteEntry, read,
    suite::{check, percent, share},
};
use regex::Regex;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::LazyLock,
};

pub(crate) const SUITE: SuiteEntry = SuiteEntry {
    id: "scienceqa",
    about: "ScienceQA test: accuracy of the questions with a picture (SQA-I), and of all",
    files: "problems.json, pid_splits.json, images/test/{id}/image.png; llava_test_CQM-A.json where there is one",
    max_tokens: LETTER_TOKENS,
    open,
};

/// Source: LLaVA llava/eval/eval_science_qa.py.
const LETTERS: [&str; 5] = ["A", "B", "C", "D", "E"];

#[derive(Deserialize)]
struct Problem {
    question: String,
    choices: Vec<String>,
    answer: usize,
    hint: String,
    image: Option<String>,
    subject: Option<String>,
}

#[derive(Deserialize)]
struct Splits {
    test: Vec<read::Id>,
}

/// An entry of LLaVA's question file.
#[derive(Deserialize)]
struct Published {
    id: read::Id,
    conversations: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    value: String,
}

struct ScienceQa {
    items: Vec<Item>,
    more: Vec<More>,
    prompt: String,
}

struct More {
    choices: usize,
    answer: usize,
    subject: Option<String>,
}

fn open(folder: &Path) -> Result<Box<dyn Suite>, EvalError> {
    let path = folder.join("problems.json");
    let mut problems: HashMap<String, Problem> = read::json(&path)?;
    let splits: Splits = read::json(&folder.join("pid_splits.json"))?;
    let questions = folder.join("llava_test_CQM-A.json");
    let mut published: HashMap<String, String> = HashMap::new();
    let is_published = questions.exists();
    if is_published {
        for entry in read::json::<Vec<Published>>(&questions)? {
            let first = entry.conversations.into_iter().next();
            let said = first.ok_or_else(|| {
                EvalError::content(&questions, None, format!("question {} has no text", entry.id.0))
            })?;
            published.insert(entry.id.0, said.value.replace("<image>", "").trim().to_owned());
        }
    }
    let source =
        if is_published { "of llava_test_CQM-A.json" } else { "in the form of llava_test_CQM-A.json" };
    let mut suite = ScienceQa {
        items: vec![],
        more: vec![],
        prompt: format!(
            "LLaVA: context, question, options ({source}), \"Answer with the option's letter ...\""
        ),
    };
    for read::Id(id) in splits.test {
        let fail = |what: String| EvalError::content(&path, None, format!("problem {id}: {what}"));
        let problem = problems
            .remove(&id)
            .ok_or_else(|| fail("pid_splits.json names it, and it is not there".into()))?;
        if problem.choices.len() > LETTERS.len() || problem.answer >= problem.choices.len() {
            let (answer, choices) = (problem.answer, problem.choices.len());
            return Err(fail(format!(
                "the answer is choice {answer} of {choices}; there are 1 to 5, from 0"
            )));
        }
        let prompt = match published.remove(&id) {
            Some(text) => text,
            None if is_published => {
                let what = format!("question {id} of pid_splits.json is missing");
                return Err(EvalError::content(&questions, None, what));
            }
            None => written(&problem),
        };
        let picture = problem.image.as_ref().map(|name| {
            let images = folder.join("images").join("test");
            read::picture(&images, &format!("{id}/{name}")).map_err(fail)
        });
        suite.items.push(Item {
            picture: picture.transpose()?.map(PictureAt::File),
            prompt: prompt + LETTER,
            truth: LETTERS[problem.answer].to_owned(),
            group: suite.items.len(),
            id,
        });
        suite.more.push(More {
            choices: problem.choices.len(),
            answer: problem.answer,
            subject: problem.subject,
        });
    }
    check(&path, &suite.items)?;
    Ok(Box::new(suite))
}

/// A question as LLaVA's file has it. Source: LLaVA scripts/convert_sqa_to_llava_base_prompt.py, format CQM-A.
fn written(problem: &Problem) -> String {
    let hint = problem.hint.trim();
    let context = if hint.is_empty() { "N/A" } else { hint };
    let option = |(letter, choice): (&&str, &String)| format!("({letter}) {choice}");
    let options: Vec<String> = LETTERS.iter().zip(&problem.choices).map(option).collect();
    let text =
        format!("Context: {context}\nQuestion: {}\nOptions: {}\n", problem.question, options.join(" "));
    text.replace("  ", " ").trim().to_owned()
}

/// The choice that an answer names. Source: LLaVA llava/eval/eval_science_qa.py.
fn chosen(text: &str, choices: usize) -> Option<usize> {
    static SAID: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("The answer is ([A-Z]).").expect("invariant: a constant"));
    let place = |letter: &str| LETTERS.iter().position(|known| *known == letter);
    let begins = || {
        let (letter, rest) = text.split_at_checked(1)?;
        rest.starts_with(". ").then(|| place(letter)).flatten()
    };
    let said = || {
        let mut found = SAID.captures_iter(text);
        let (first, second) = (found.next()?, found.next());
        second.is_none().then(|| place(&first[1])).flatten()
    };
    let at = place(text).or_else(begins).or_else(said)?;
    (at < choices).then_some(at)
}

impl Suite for ScienceQa {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn headline(&self) -> Headline {
        Headline { name: "IMG-Accuracy", of: 100.0, is_share: true }
    }

    fn sums(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let seeing: Vec<_> =
            answers.iter().copied().filter(|a| self.items[a.item].picture.is_some()).collect();
        vec![self.worth(&seeing).iter().sum(), seeing.len() as f64]
    }

    fn value(&self, sums: &[f64]) -> Option<f64> {
        percent(sums)
    }

    fn worth(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let right = |a: &Answered<'_>| {
            let more = &self.more[a.item];
            a.text.and_then(|text| chosen(text, more.choices)) == Some(more.answer)
        };
        answers.iter().map(|a| f64::from(u8::from(right(a)))).collect()
    }

    fn rows(&self, answers: &[Answered<'_>]) -> Vec<Row> {
        let mut tasks: BTreeMap<String, Vec<Answered<'_>>> = BTreeMap::new();
        for answer in answers {
            let sees = self.items[answer.item].picture.is_some();
            let seen = if sees { "with a picture" } else { "without a picture" };
            let subject = self.more[answer.item].subject.as_ref().map(|name| format!("subject {name}"));
            for task in ["all".to_owned(), seen.to_owned()].into_iter().chain(subject) {
                tasks.entry(task).or_default().push(*answer);
            }
        }
        tasks.into_iter().map(|(task, answers)| share(task, "accuracy", &self.worth(&answers))).collect()
    }

    fn notes(&self, answers: &[Answered<'_>]) -> Vec<String> {
        let failed =
            |a: &&Answered<'_>| a.text.is_some_and(|text| chosen(text, self.more[a.item].choices).is_none());
        match answers.iter().filter(failed).count() {
            0 => vec![],
            count => {
                vec![format!("{count} answers name none of their options; they are wrong, as published")]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_a_letter_with_a_full_stop_or_one_sentence_names_a_choice() {
        for (text, at) in [
            ("B", Some(1)),
            ("B. the sun", Some(1)),
            ("The answer is C.", Some(2)),
            ("So The answer is C, I think", Some(2)),
            // Quirks of the published rule.
            ("B.", None),
            ("b", None),
            ("(B)", None),
            ("E", None),
            ("The answer is B", None),
            ("The answer is B. The answer is B.", None),
            ("The answer is X.", None),
            ("The answer is B\n", None),
            ("É. x", None),
            ("", None),
        ] {
            assert_eq!(chosen(text, 4), at, "{text:?}");
        }
    }

    #[test]
    fn a_question_is_written_as_llava_wrote_it() {
        let problem = Problem {
            question: "What is the name  of the colony shown?".into(),
            choices: ["Maryland", "New Hampshire"].map(str::to_owned).to_vec(),
            answer: 1,
            hint: " ".into(),
            image: None,
            subject: None,
        };
        let expected = "Context: N/A\nQuestion: What is the name of the colony shown?\n\
                        Options: (A) Maryland (B) New Hampshire";
        assert_eq!(written(&problem), expected);
    }
}
