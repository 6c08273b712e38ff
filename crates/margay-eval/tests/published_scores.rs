//! Each suite's figures equal those of the published code, transcribed in `golden/make.py`, on small hand-made files.
#![allow(clippy::unwrap_used, reason = "a test")]

use margay_eval::{Entry, Header, Record, SUITES, choose, paired, score, suite_digest, suite_entry};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// Both sides compute with float64, in other orders.
const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Case {
    files: BTreeMap<String, String>,
    answers: BTreeMap<String, String>,
    headline: f64,
    rows: BTreeMap<String, BTreeMap<String, f64>>,
    prompts: BTreeMap<String, String>,
}

fn case(name: &str) -> (Case, tempfile::TempDir) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    let case: Case = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in &case.files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    (case, folder)
}

fn entry(id: &str, answer: &str) -> Entry {
    Entry { id: id.to_owned(), answer: Some(answer.to_owned()), why: None, tokens: 1 }
}

#[test]
fn every_suite_scores_as_published() {
    for suite in SUITES {
        let (case, folder) = case(suite.id);
        let opened = (suite.open)(folder.path()).unwrap();
        let items = opened.items();
        assert_eq!(items.len(), case.answers.len(), "{}", suite.id);
        for (id, prompt) in &case.prompts {
            let item = items.iter().find(|item| item.id == *id).unwrap();
            assert_eq!(item.prompt, *prompt, "{} {id}", suite.id);
        }
        let mut record = Record::in_memory();
        for (id, answer) in &case.answers {
            record.add(entry(id, answer)).unwrap();
        }
        let chosen = choose(items, None);
        let found = score(opened.as_ref(), &chosen, &record);
        let headline = found.headline.value.unwrap();
        assert!(
            (headline - case.headline).abs() < TOLERANCE,
            "{}: {headline}, not {}",
            suite.id,
            case.headline
        );
        let interval = found.headline.interval.unwrap();
        assert!(interval.low < headline && headline < interval.high, "{}: {interval:?}", suite.id);
        assert_eq!(found.rows.len(), case.rows.len(), "{}", suite.id);
        for (row, _) in &found.rows {
            for cell in row.cells.iter().filter(|cell| cell.value.is_some()) {
                let expected = case.rows[&row.task][cell.name];
                let value = cell.value.unwrap();
                assert!(
                    (value - expected).abs() < TOLERANCE,
                    "{} {} {}: {value}",
                    suite.id,
                    row.task,
                    cell.name
                );
            }
        }
        // A model compared with itself loses nothing; one that answers nothing loses all.
        let same = paired(opened.as_ref(), &chosen, &record, &record);
        assert_eq!((same.drop, same.only_reference, same.only_candidate), (Some(0.0), 0, 0), "{}", suite.id);
        let none = paired(opened.as_ref(), &chosen, &record, &Record::in_memory());
        let lost = 100.0 * headline / found.headline.headline.of;
        assert!((none.drop.unwrap() - lost).abs() < TOLERANCE, "{}: {:?}", suite.id, none.drop);
    }
}

#[test]
fn a_file_that_is_missing_or_damaged_is_named_with_its_line() {
    for suite in SUITES {
        let (case, folder) = case(suite.id);
        for name in case.files.keys().filter(|name| !name.starts_with("MME") && !name.starts_with("llava")) {
            let path = folder.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            let short = Path::new(name).file_name().unwrap().to_str().unwrap();
            let why = |bytes: Option<&[u8]>| {
                match bytes {
                    Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                    None => std::fs::remove_file(&path).unwrap(),
                }
                (suite.open)(folder.path())
                    .err()
                    .unwrap_or_else(|| panic!("{}: {name}", suite.id))
                    .to_string()
            };
            assert!(why(None).contains(short), "{}", suite.id);
            assert!(why(Some(b"")).contains(short), "{}", suite.id);
            let cut = why(Some(&whole[..whole.len() / 2]));
            assert!(cut.contains(&format!("{short}:")), "{}: {cut}", suite.id);
            let text = why(Some(b"\xff\xfe"));
            assert!(text.contains(&format!("{short}:1")), "{}: {text}", suite.id);
            std::fs::write(&path, &whole).unwrap();
        }
        assert!((suite.open)(folder.path()).is_ok(), "{}", suite.id);
    }
}

#[test]
fn a_picture_outside_of_the_folder_is_refused() {
    let (case, folder) = case("nano");
    let path = folder.path().join("questions.jsonl");
    let hostile = case.files["questions.jsonl"].replacen("00000.png", "../../secret.png", 1);
    std::fs::write(&path, hostile).unwrap();
    let why = (suite_entry("nano").unwrap().open)(folder.path()).err().unwrap().to_string();
    assert!(why.contains("questions.jsonl:1:") && why.contains("is no picture below"), "{why}");
}

#[test]
fn a_digest_tells_a_changed_truth_and_not_another_folder() {
    let digest = |change: bool| {
        let (case, folder) = case("nano");
        if change {
            let other = case.files["questions.jsonl"].replacen("\"answer\": \"", "\"answer\": \"x", 1);
            std::fs::write(folder.path().join("questions.jsonl"), other).unwrap();
        }
        let suite = (suite_entry("nano").unwrap().open)(folder.path()).unwrap();
        suite_digest("nano", suite.as_ref())
    };
    assert_eq!(digest(false), digest(false));
    assert_ne!(digest(false), digest(true));
    let header = Header {
        suite: "nano".into(),
        suite_digest: digest(false),
        model: "m".into(),
        model_digest: "d".into(),
        options: String::new(),
        max_tokens: 1,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    drop(Record::open(&path, &header).unwrap());
    let other = Header { suite_digest: digest(true), ..header };
    assert!(Record::open(&path, &other).unwrap_err().to_string().contains("another questions of the suite"));
}
