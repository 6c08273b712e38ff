//! MMBench: options in every rotation, of which all must be answered.

use super::{LETTER, LETTER_TOKENS};
use crate::{
    Answered, EvalError, Headline, Item, PictureAt, Row, Suite, SuiteEntry, read,
    suite::{Groups, check, percent, share},
};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

pub(crate) const SUITE: SuiteEntry = SuiteEntry {
    id: "mmbench",
    about: "MMBench dev: a question counts where all its rotations are answered (CircularEval)",
    files: "mmbench_dev_20230712.tsv, with the pictures inside",
    max_tokens: LETTER_TOKENS,
    open,
};

/// Options that a question shows.
const OPTIONS: [&str; 4] = ["A", "B", "C", "D"];

/// Letters that count as an answer, whatever options there are.
const LETTERS: [&str; 5] = ["A", "B", "C", "D", "E"];

/// What may stand around a letter. Source: eval_mmbench.py of OpenCompass, `can_infer_option`.
const AROUND: [(&str, &str); 12] = [
    ("", "."),
    ("", ","),
    ("", ":"),
    ("", ")"),
    ("", ")."),
    ("(", ")"),
    ("(", ")."),
    (":", ""),
    (":", ","),
    (":", "."),
    (":", ")"),
    (":", ")."),
];

/// An index below this is a question, above it the rotation of one.
const ROTATIONS_FROM: u64 = 1_000_000;

/// Cells that pandas reads as absent. Source: pandas `STR_NA_VALUES`.
const ABSENT: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
    "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// A picture column shorter than this names the row that holds the picture.
const SHORTEST_PICTURE: usize = 64;

struct MmBench {
    items: Vec<Item>,
    more: Vec<More>,
}

struct More {
    category: Option<String>,
    /// Letters and texts, in small letters, of the options there are.
    options: Vec<(&'static str, String)>,
}

/// A row of the table.
struct Line {
    line: usize,
    index: u64,
    cells: HashMap<String, String>,
}

impl Line {
    fn get(&self, column: &str) -> Option<&str> {
        self.cells.get(column).map(String::as_str).filter(|text| !ABSENT.contains(text))
    }
}

fn open(folder: &Path) -> Result<Box<dyn Suite>, EvalError> {
    let path = folder.join("mmbench_dev_20230712.tsv");
    let mut lines = table(&path)?;
    let mut pictures: HashMap<u64, Arc<str>> = HashMap::new();
    for line in &mut lines {
        let holds = |picture: &&mut String| picture.len() >= SHORTEST_PICTURE;
        if let Some(picture) = line.cells.get_mut("image").filter(holds) {
            pictures.insert(line.index, std::mem::take(picture).into());
        }
    }
    let mut groups = Groups::default();
    let mut suite = MmBench { items: vec![], more: vec![] };
    for line in &lines {
        let fail = |what: String| EvalError::content(&path, Some(line.line), what);
        let of_other = || line.get("image").and_then(|other| other.trim().parse::<u64>().ok());
        let picture = pictures.get(&line.index).or_else(|| pictures.get(&of_other()?));
        let picture = picture.ok_or_else(|| fail("there is no picture, and no row that holds it".into()))?;
        let question = line.get("question").ok_or_else(|| fail("there is no question".into()))?;
        let truth = line.get("answer").filter(|answer| LETTERS.contains(answer));
        let truth = truth.ok_or_else(|| fail("the answer is not one of A to E".into()))?;
        suite.items.push(Item {
            id: line.index.to_string(),
            picture: Some(PictureAt::Base64(picture.clone())),
            prompt: prompt(question, line),
            truth: truth.to_owned(),
            group: groups.of(&(line.index % ROTATIONS_FROM).to_string()),
        });
        let options =
            OPTIONS.iter().filter_map(|letter| Some((*letter, line.get(letter)?.to_lowercase()))).collect();
        suite.more.push(More { category: line.get("category").map(str::to_owned), options });
    }
    check(&path, &suite.items)?;
    Ok(Box::new(suite))
}

/// Rows of the file, columns by their names.
fn table(path: &Path) -> Result<Vec<Line>, EvalError> {
    let bytes = read::bytes(path, read::MAX_PICTURES_BYTES)?;
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(bytes.as_slice());
    let fail = |e: csv::Error| {
        let line = e.position().map(|position| position.line() as usize);
        EvalError::content(path, line, e.to_string())
    };
    let names: Vec<String> = reader.headers().map_err(fail)?.iter().map(str::to_owned).collect();
    for needed in ["index", "question", "A", "B", "answer", "image"] {
        if !names.iter().any(|name| name == needed) {
            return Err(EvalError::content(path, Some(1), format!("there is no column {needed:?}")));
        }
    }
    reader
        .records()
        .map(|record| {
            let record = record.map_err(fail)?;
            let line = record.position().map_or(0, |position| position.line() as usize);
            let cells: HashMap<String, String> =
                names.iter().cloned().zip(record.iter().map(str::to_owned)).collect();
            let index = cells["index"].trim();
            // pandas writes whole numbers of a column with gaps as 12.0.
            let index = index.strip_suffix(".0").unwrap_or(index).parse::<u64>();
            let index = index.map_err(|_| EvalError::content(path, Some(line), "the index is no number"))?;
            Ok(Line { line, index, cells })
        })
        .collect()
}

/// Source: LLaVA llava/eval/model_vqa_mmbench.py: options end at the first that is absent.
fn prompt(question: &str, line: &Line) -> String {
    let is_none = |text: &&str| !["nan", "none"].contains(&text.to_lowercase().as_str());
    let mut prompt = String::new();
    if let Some(hint) = line.get("hint").filter(is_none) {
        prompt = format!("{hint}\n");
    }
    prompt += question;
    for letter in OPTIONS {
        let Some(option) = line.get(letter).filter(is_none) else { break };
        prompt += &format!("\n{letter}. {option}");
    }
    prompt + LETTER
}

/// The letter that an answer names, by the ladder of the published script: a letter by itself, a letter with marks around
/// it, the text of one option. What is left the original asks GPT about.
fn chosen<'a>(text: &str, options: &'a [(&'static str, String)]) -> Option<&'a str> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let named = |before: &str, after: &str| {
        let mut found =
            LETTERS.into_iter().filter(|letter| words.contains(&&*format!("{before}{letter}{after}")));
        let first = found.next();
        first.filter(|_| found.next().is_none())
    };
    // "A" among many words may be the article.
    let alone = named("", "").filter(|_| !(words.contains(&"A") && words.len() > 3));
    let marked = || AROUND.into_iter().find_map(|(before, after)| named(before, after));
    let told = || {
        let text = text.to_lowercase();
        let mut found = options.iter().filter(|(_, option)| text.contains(option.as_str()));
        let first = found.next().map(|(letter, _)| *letter);
        first.filter(|_| found.next().is_none())
    };
    alone.or_else(marked).or_else(told)
}

impl MmBench {
    fn right(&self, answer: &Answered<'_>) -> bool {
        let letter = answer.text.and_then(|text| chosen(text, &self.more[answer.item].options));
        letter == Some(self.items[answer.item].truth.as_str())
    }

    /// Groups of which every rotation is right.
    fn hits(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let mut groups: BTreeMap<usize, bool> = BTreeMap::new();
        for answer in answers {
            *groups.entry(self.items[answer.item].group).or_insert(true) &= self.right(answer);
        }
        groups.into_values().map(|hit| f64::from(u8::from(hit))).collect()
    }
}

impl Suite for MmBench {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn prompt(&self) -> &str {
        "LLaVA: hint, question, options, \"Answer with the option's letter ...\""
    }

    fn headline(&self) -> Headline {
        Headline { name: "circular accuracy", of: 100.0, is_share: true }
    }

    fn sums(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let hits = self.hits(answers);
        vec![hits.iter().sum(), hits.len() as f64]
    }

    fn value(&self, sums: &[f64]) -> Option<f64> {
        percent(sums)
    }

    fn worth(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        self.hits(answers)
    }

    fn rows(&self, answers: &[Answered<'_>]) -> Vec<Row> {
        let each: Vec<f64> = answers.iter().map(|a| f64::from(u8::from(self.right(a)))).collect();
        let mut rows = vec![share("every row by itself (vanilla)", "accuracy", &each)];
        let mut categories: BTreeMap<&str, Vec<Answered<'_>>> = BTreeMap::new();
        for answer in answers {
            if let Some(category) = &self.more[answer.item].category {
                categories.entry(category).or_default().push(*answer);
            }
        }
        rows.extend(categories.into_iter().map(|(category, answers)| {
            share(format!("circular {category}"), "accuracy", &self.hits(&answers))
        }));
        rows
    }

    fn notes(&self, answers: &[Answered<'_>]) -> Vec<String> {
        let lost =
            |a: &&Answered<'_>| a.text.is_some_and(|text| chosen(text, &self.more[a.item].options).is_none());
        match answers.iter().filter(lost).count() {
            0 => vec![],
            count => vec![format!(
                "{count} answers name no option; the original asks GPT which one they mean, here they are wrong"
            )],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_takes_a_letter_then_a_marked_letter_then_a_text() {
        let options = vec![("A", "a cat".to_owned()), ("B", "a dog".to_owned()), ("C", "dogs".to_owned())];
        for (text, letter) in [
            ("B", Some("B")),
            ("B or so it seems", Some("B")),
            ("A dog is seen", Some("B")),
            ("A dog", Some("A")),
            ("A B", None),
            ("B.", Some("B")),
            ("(C)", Some("C")),
            ("It is :C).", Some("C")),
            ("A. or B, perhaps", Some("A")),
            ("A cat can be: B)", Some("B")),
            ("E", Some("E")),
            ("F", None),
            ("I see A CAT", Some("A")),
            ("a dog, dogs", None),
            ("b", None),
            ("", None),
        ] {
            assert_eq!(chosen(text, &options), letter, "{text:?}");
        }
    }

    #[test]
    fn options_end_at_the_first_that_is_absent() {
        let cells = [("A", "x"), ("B", "none"), ("C", "y"), ("hint", "Look.")];
        let cells = cells.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let line = Line { line: 2, index: 1, cells };
        assert_eq!(prompt("What?", &line), format!("Look.\nWhat?\nA. x{LETTER}"));
    }
}
