//! MME: two questions about each picture, one right and one wrong.

use super::{SHORT, SHORT_TOKENS};
use crate::{
    Answered, Cell, EvalError, Headline, Item, PictureAt, Row, Suite, SuiteEntry, read,
    suite::{Groups, check},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub(crate) const SUITE: SuiteEntry = SuiteEntry {
    id: "mme",
    about: "MME: accuracy and accuracy+ summed over ten tasks of perception (2000) and four of cognition (800)",
    files: "MME_Benchmark_release_version/{task}/ with a .txt beside each picture, or images/ and questions_answers_YN/",
    max_tokens: SHORT_TOKENS,
    open,
};

/// Tasks of perception.
const PERCEPTION: [&str; 10] = [
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
];

/// Tasks of cognition.
const COGNITION: [&str; 4] =
    ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"];

/// Sums of a task: right answers, questions, pictures with both right, pictures.
const COUNTS: usize = 4;

/// Bytes of a picture's two questions at most.
const MAX_PAIR_BYTES: u64 = 1 << 16;

/// Files of a task's folder at most; the largest has 800.
const MAX_FILES: usize = 1 << 16;

/// What ends a question as published, and is replaced by [`SHORT`].
const PUBLISHED_END: &str = " Please answer yes or no.";

struct Mme {
    items: Vec<Item>,
    /// Task of each question, perception first.
    tasks: Vec<usize>,
}

fn open(folder: &Path) -> Result<Box<dyn Suite>, EvalError> {
    let below = folder.join("MME_Benchmark_release_version");
    let root = if below.is_dir() { below } else { folder.to_owned() };
    let mut groups = Groups::default();
    let mut mme = Mme { items: vec![], tasks: vec![] };
    for (task, name) in PERCEPTION.iter().chain(&COGNITION).enumerate() {
        let of_task = root.join(name);
        let (pictures, texts) = match of_task.join("questions_answers_YN") {
            texts if texts.is_dir() => (of_task.join("images"), texts),
            _ => (of_task.clone(), of_task.clone()),
        };
        let pictures = by_stem(&pictures, |ending| ending != "txt")?;
        let texts = by_stem(&texts, |ending| ending == "txt")?;
        if texts.is_empty() {
            return Err(EvalError::content(&of_task, None, "there is no .txt with questions in it"));
        }
        for (stem, path) in texts {
            let Some(picture) = pictures.get(&stem) else {
                return Err(EvalError::content(&path, None, format!("there is no picture {stem:?} for it")));
            };
            let shown = picture.file_name().unwrap_or_default().to_string_lossy();
            let pair = pair(&path)?;
            for (at, (question, yes)) in pair.into_iter().enumerate() {
                let question = question.strip_suffix(PUBLISHED_END).unwrap_or(&question);
                mme.items.push(Item {
                    id: format!("{name}/{shown}/{at}"),
                    group: groups.of(&format!("{name}/{stem}")),
                    picture: Some(PictureAt::File(picture.clone())),
                    prompt: format!("{question}{SHORT}"),
                    truth: if yes { "yes" } else { "no" }.to_owned(),
                });
                mme.tasks.push(task);
            }
        }
    }
    check(&root, &mme.items)?;
    Ok(Box::new(mme))
}

/// The files of a folder whose ending is wanted, by their name without it.
fn by_stem(folder: &Path, wanted: fn(&str) -> bool) -> Result<BTreeMap<String, PathBuf>, EvalError> {
    let failed = |e| EvalError::io("read", folder, e);
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)?.take(MAX_FILES) {
        let path = entry.map_err(failed)?.path();
        let (Some(stem), Some(ending)) = (path.file_stem(), path.extension()) else { continue };
        if wanted(&ending.to_string_lossy().to_lowercase()) {
            files.insert(stem.to_string_lossy().into_owned(), path);
        }
    }
    Ok(files)
}

/// The two questions of a picture, each with whether yes is right.
fn pair(path: &Path) -> Result<[(String, bool); 2], EvalError> {
    let text = read::text_file(path, MAX_PAIR_BYTES)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let asked: Vec<(String, bool)> = lines
        .map(|(at, line)| {
            let fail = |what: &str| EvalError::content(path, Some(at + 1), what);
            let (question, answer) =
                line.split_once('\t').ok_or_else(|| fail("a question, a tab and Yes or No are expected"))?;
            match answer.trim().to_lowercase().as_str() {
                "yes" => Ok((question.to_owned(), true)),
                "no" => Ok((question.to_owned(), false)),
                _ => Err(fail("the answer is neither Yes nor No")),
            }
        })
        .collect::<Result<_, _>>()?;
    let count = asked.len();
    asked
        .try_into()
        .map_err(|_| EvalError::content(path, None, format!("two questions expected, found {count}")))
}

/// Yes, no or neither. Source: calculation.py of MME's eval_tool, `parse_pred_ans`.
fn parsed(text: &str) -> Option<bool> {
    let text = text.to_lowercase();
    let beginning: String = text.chars().take(4).collect();
    if text == "yes" || (text != "no" && beginning.contains("yes")) {
        Some(true)
    } else {
        beginning.contains("no").then_some(false)
    }
}

/// Accuracy and accuracy+ of a task's sums, in percent.
fn scores(counts: &[f64]) -> Option<(f64, f64)> {
    let (right, n, both, pictures) = (counts[0], counts[1], counts[2], counts[3]);
    (n > 0.0).then(|| (100.0 * right / n, 100.0 * both / pictures))
}

/// The scores of some tasks added up; `None` where one has no question.
fn total(sums: &[f64]) -> Option<f64> {
    sums.chunks(COUNTS).map(|counts| scores(counts).map(|(acc, plus)| acc + plus)).sum()
}

impl Mme {
    fn right(&self, answer: &Answered<'_>) -> bool {
        let said = answer.text.and_then(parsed).map(|yes| if yes { "yes" } else { "no" });
        said == Some(self.items[answer.item].truth.as_str())
    }

    /// Sums of all 14 tasks over any answers.
    fn all_sums(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        let mut sums = vec![0.0; (PERCEPTION.len() + COGNITION.len()) * COUNTS];
        let mut pictures: BTreeMap<usize, (usize, bool)> = BTreeMap::new();
        for answer in answers {
            let (task, right) = (self.tasks[answer.item], self.right(answer));
            sums[task * COUNTS] += f64::from(u8::from(right));
            sums[task * COUNTS + 1] += 1.0;
            pictures.entry(self.items[answer.item].group).or_insert((task, true)).1 &= right;
        }
        for (task, both) in pictures.into_values() {
            sums[task * COUNTS + 2] += f64::from(u8::from(both));
            sums[task * COUNTS + 3] += 1.0;
        }
        sums
    }
}

impl Suite for Mme {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn prompt(&self) -> &str {
        "LLaVA: question, \"Answer the question using a single word or phrase.\" in place of \"Please answer yes or no.\""
    }

    fn headline(&self) -> Headline {
        Headline { name: "perception", of: 2000.0, is_share: false }
    }

    fn sums(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        self.all_sums(answers)
    }

    fn value(&self, sums: &[f64]) -> Option<f64> {
        total(&sums[..PERCEPTION.len() * COUNTS])
    }

    fn worth(&self, answers: &[Answered<'_>]) -> Vec<f64> {
        answers.iter().map(|a| f64::from(u8::from(self.right(a)))).collect()
    }

    fn stratum(&self, answers: &[Answered<'_>]) -> usize {
        answers.first().map_or(0, |a| self.tasks[a.item])
    }

    fn rows(&self, answers: &[Answered<'_>]) -> Vec<Row> {
        let sums = self.all_sums(answers);
        let row = |task: &str, n: f64, cells: [Option<f64>; 3]| {
            let cell = |(name, value)| Cell { name, value };
            let names = ["score", "acc", "acc+"];
            Row {
                task: task.to_owned(),
                n: n as usize,
                cells: names.into_iter().zip(cells).map(cell).collect(),
                right: None,
            }
        };
        let count = |sums: &[f64]| sums.chunks(COUNTS).map(|counts| counts[1]).sum::<f64>();
        let (perception, cognition) = sums.split_at(PERCEPTION.len() * COUNTS);
        let mut rows = vec![
            row("Perception", count(perception), [total(perception), None, None]),
            row("Cognition", count(cognition), [total(cognition), None, None]),
        ];
        for (name, counts) in PERCEPTION.iter().chain(&COGNITION).zip(sums.chunks(COUNTS)) {
            let cells = match scores(counts) {
                Some((acc, plus)) => [Some(acc + plus), Some(acc), Some(plus)],
                None => [None; 3],
            };
            rows.push(row(name, counts[1], cells));
        }
        rows
    }

    fn notes(&self, answers: &[Answered<'_>]) -> Vec<String> {
        let neither = |a: &&Answered<'_>| a.text.is_some_and(|text| parsed(text).is_none());
        match answers.iter().filter(neither).count() {
            0 => vec![],
            count => vec![format!("{count} answers say neither yes nor no; they are wrong, as published")],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yes_or_no_is_looked_for_in_the_first_four_characters() {
        for (text, said) in [
            ("Yes", Some(true)),
            ("No.", Some(false)),
            ("yes, it is", Some(true)),
            ("not", Some(false)),
            ("noyes", Some(false)),
            ("eyes", Some(true)),
            ("1 no", Some(false)),
            ("It is: yes", None),
            ("y", None),
            ("", None),
            ("Ünös no", None),
        ] {
            assert_eq!(parsed(text), said, "{text:?}");
        }
    }

    #[test]
    fn a_pair_is_two_questions_with_yes_or_no() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            pair(&path).map_err(|e| e.to_string())
        };
        let good = read("Is it red? Please answer yes or no.\tYes\r\n\nIs it blue?\tNo").unwrap();
        assert_eq!(good[1], ("Is it blue?".to_owned(), false));
        assert!(read("a\tYes\n").unwrap_err().contains("a.txt: two questions expected, found 1"));
        assert!(read("a\tYes\nb\tmaybe\n").unwrap_err().contains("a.txt:2: the answer is neither"));
        assert!(read("a Yes\nb\tno\n").unwrap_err().contains("a.txt:1: a question, a tab"));
    }
}
