//! TextVQA: words in pictures, scored against ten people's answers.

use super::{SHORT, SHORT_TOKENS};
use crate::{
    Answered, EvalError, Headline, Item, PictureAt, Row, Suite, SuiteEntry,
    evalai::normalised,
    read,
    suite::{Groups, check, percent, right_of},
};
use serde::Deserialize;
use std::{collections::HashMap, path::Path};

pub(crate) const SUITE: SuiteEntry = SuiteEntry {
    id: "textvqa",
    about: "TextVQA 0.5.1 validation: soft accuracy against ten answers",
    files: "TextVQA_0.5.1_val.json, train_images/; llava_textvqa_val_v051_ocr.jsonl where OCR tokens are to be given",
    max_tokens: SHORT_TOKENS,
    open,
};

/// Answers of people to a question.
const PEOPLE: usize = 10;

#[derive(Deserialize)]
struct File {
    data: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    question: String,
    image_id: String,
    question_id: read::Id,
    answers: Vec<String>,
}

/// A line of LLaVA's question file.
#[derive(Deserialize)]
struct Published {
    question_id: String,
    text: String,
}

struct TextVqa {
    items: Vec<Item>,
    /// What each answer that some person gave is worth, of each question.
    worth: Vec<HashMap<String, f64>>,
    prompt: &'static str,
}

fn open(folder: &Path) -> Result<Box<dyn Suite>, EvalError> {
    let path = folder.join("TextVQA_0.5.1_val.json");
    let file: File = read::json(&path)?;
    let questions = folder.join("llava_textvqa_val_v051_ocr.jsonl");
    let mut groups = Groups::default();
    let mut suite = TextVqa { items: vec![], worth: vec![], prompt: "" };
    let mut add = |annotation: &Annotation, prompt: String, suite: &mut TextVqa| {
        let id = &annotation.question_id.0;
        let fail = |what: String| EvalError::content(&path, None, format!("question {id}: {what}"));
        if annotation.answers.len() != PEOPLE {
            return Err(fail(format!("{} answers, not {PEOPLE}", annotation.answers.len())));
        }
        let name = format!("{}.jpg", annotation.image_id);
        let picture = read::picture(&folder.join("train_images"), &name).map_err(fail)?;
        suite.items.push(Item {
            id: id.clone(),
            group: groups.of(&annotation.image_id),
            picture: Some(PictureAt::File(picture)),
            prompt,
            truth: annotation.answers.join("\n"),
        });
        suite.worth.push(soft_scores(&annotation.answers));
        Ok(())
    };
    if questions.exists() {
        suite.prompt = "LLaVA with OCR tokens: question, \"Reference OCR token: ...\", \
                        \"Answer the question using a single word or phrase.\"";
        let key = |image: &str, question: &str| (image.to_owned(), question.to_lowercase());
        let known: HashMap<_, _> =
            file.data.iter().map(|known| (key(&known.image_id, &known.question), known)).collect();
        for (line, asked) in read::json_lines::<Published>(&questions)? {
            let question = question_of(&asked.text);
            let found = question.and_then(|question| known.get(&key(&asked.question_id, question)));
            let found = found.ok_or_else(|| {
                let what = format!("{} holds no such question about {}", path.display(), asked.question_id);
                EvalError::content(&questions, Some(line), what)
            })?;
            add(found, asked.text.clone(), &mut suite)?;
        }
    } else {
        suite.prompt = "LLaVA without OCR tokens: question, \"Answer the question using a single word or phrase.\" \
                        (published LLaVA figures are with OCR tokens)";
        for annotation in &file.data {
            add(annotation, format!("{}{SHORT}", annotation.question), &mut suite)?;
        }
    }
    check(&path, &suite.items)?;
    Ok(Box::new(suite))
}

/// The question within a prompt. Source: LLaVA llava/eval/eval_textvqa.py, `prompt_processor`.
fn question_of(prompt: &str) -> Option<&str> {
    let lines: Vec<&str> = prompt.split('\n').collect();
    match lines.as_slice() {
        [first, second, _] if prompt.contains("Reference OCR token: ") => {
            Some(if first.starts_with("Reference OCR token:") { second } else { first })
        }
        [first, _] => Some(first),
        _ => None,
    }
}

/// What answers are worth: over the ten people, the mean of how many of the *others* gave it, three being enough. Source:
/// LLaVA llava/eval/m4c_evaluator.py, `_compute_answer_scores`.
fn soft_scores(answers: &[String]) -> HashMap<String, f64> {
    let answers: Vec<String> = answers.iter().map(|answer| normalised(answer)).collect();
    let mut scores = HashMap::new();
    for answer in &answers {
        let same = answers.iter().filter(|other| *other == answer).count();
        let matching = |own: &String| (same - usize::from(own == answer)) as f64;
        let accuracies = answers.iter().map(|own| (matching(own) / 3.0).min(1.0));
        scores.insert(answer.clone(), accuracies.sum::<f64>() / answers.len() as f64);
    }
    scores
}

impl Suite for TextVqa {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn prompt(&self) -> &str {
        self.prompt
    }

    fn headline(&self) -> Headline {
        // A share of soft scores: no count of right ones.
        Headline { name: "accuracy", of: 100.0, is_share: false }
    }

    fn sums(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        right_of(&self.worth(answers))
    }

    fn value(&self, sums: &[f64]) -> Option<f64> {
        percent(sums)
    }

    fn worth(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let worth = |a: &Answered<'_>| {
            let said = a.text.map(normalised)?;
            self.worth[a.item].get(&said).copied()
        };
        answers.iter().map(|a| worth(a).unwrap_or(0.0)).collect()
    }

    fn rows(&self, _: &[Answered<'_>]) -> Vec<Row> {
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_worth_three_tenths_for_each_person_up_to_four() {
        for (people, worth) in [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)] {
            let answers: Vec<String> = (0..PEOPLE)
                .map(|at| if at < people { "Nokia".to_owned() } else { format!("x{at}") })
                .collect();
            let found = soft_scores(&answers)["nokia"];
            assert!((found - worth).abs() < 1e-12, "{people} people: {found}");
        }
    }

    #[test]
    fn the_question_is_found_before_or_behind_the_tokens() {
        let end = "Answer the question using a single word or phrase.";
        assert_eq!(question_of(&format!("what?\nReference OCR token: a, b\n{end}")), Some("what?"));
        assert_eq!(question_of(&format!("Reference OCR token: a, b\nwhat?\n{end}")), Some("what?"));
        assert_eq!(question_of(&format!("what?\n{end}")), Some("what?"));
        assert_eq!(question_of("a\nb\nc"), None);
    }
}
