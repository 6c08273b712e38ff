//! GQA: short answers, exact match.

use super::{SHORT, SHORT_TOKENS};
use crate::{
    Answered, EvalError, Headline, Item, PictureAt, Row, Suite, SuiteEntry, read,
    suite::{Groups, check, percent, right_of, share},
};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

pub(crate) const SUITE: SuiteEntry = SuiteEntry {
    id: "gqa",
    about: "GQA test-dev balanced: accuracy by exact match",
    files: "testdev_balanced_questions.json and images/",
    max_tokens: SHORT_TOKENS,
    open,
};

/// A value of the question file, whose keys are question ids.
#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "imageId")]
    image: read::Id,
    question: String,
    answer: String,
    types: Option<Types>,
}

#[derive(Clone, Default, Deserialize)]
struct Types {
    structural: Option<String>,
    semantic: Option<String>,
}

struct Gqa {
    items: Vec<Item>,
    types: Vec<Types>,
}

fn open(folder: &Path) -> Result<Box<dyn Suite>, EvalError> {
    let path = folder.join("testdev_balanced_questions.json");
    let mut groups = Groups::default();
    let mut gqa = Gqa { items: vec![], types: vec![] };
    for (id, asked) in read::json::<BTreeMap<String, Asked>>(&path)? {
        let picture = read::picture(&folder.join("images"), &format!("{}.jpg", asked.image.0))
            .map_err(|what| EvalError::content(&path, None, format!("question {id}: {what}")))?;
        gqa.items.push(Item {
            id,
            group: groups.of(&asked.image.0),
            picture: Some(PictureAt::File(picture)),
            prompt: asked.question + SHORT,
            truth: asked.answer,
        });
        gqa.types.push(asked.types.unwrap_or_default());
    }
    check(&path, &gqa.items)?;
    Ok(Box::new(gqa))
}

/// What is compared with the answer. Source: LLaVA scripts/convert_gqa_for_eval.py.
fn prediction(text: &str) -> String {
    text.trim_end_matches('.').to_lowercase()
}

impl Suite for Gqa {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn prompt(&self) -> &str {
        "LLaVA: question, \"Answer the question using a single word or phrase.\""
    }

    fn headline(&self) -> Headline {
        Headline { name: "accuracy", of: 100.0, is_share: true }
    }

    fn sums(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        right_of(&self.worth(answers))
    }

    fn value(&self, sums: &[f64]) -> Option<f64> {
        percent(sums)
    }

    fn worth(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let right =
            |a: &Answered<'_>| a.text.is_some_and(|text| prediction(text) == self.items[a.item].truth);
        answers.iter().map(|a| f64::from(u8::from(right(a)))).collect()
    }

    fn rows(&self, answers: &[Answered<'_>]) -> Vec<Row> {
        let mut tasks: BTreeMap<String, Vec<Answered<'_>>> = BTreeMap::new();
        for answer in answers {
            let types = &self.types[answer.item];
            if let Some(structural) = &types.structural {
                // The published script calls questions open that ask for a name, and binary those that ask yes or no.
                let kind = if structural == "query" { "open" } else { "binary" };
                tasks.entry(kind.to_owned()).or_default().push(*answer);
                tasks.entry(format!("structural {structural}")).or_default().push(*answer);
            }
            if let Some(semantic) = &types.semantic {
                tasks.entry(format!("semantic {semantic}")).or_default().push(*answer);
            }
        }
        tasks.into_iter().map(|(task, answers)| share(task, "accuracy", &self.worth(&answers))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dots_at_the_end_and_case_are_forgiven() {
        for (text, seen) in
            [("Yes.", "yes"), ("on the left...", "on the left"), (" no", " no"), ("a.b!", "a.b!")]
        {
            assert_eq!(prediction(text), seen);
        }
    }
}
