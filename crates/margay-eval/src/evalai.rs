//! The answer normaliser of the VQA challenges, quirks included.
//!
//! Source: `EvalAIAnswerProcessor` of MMF, as LLaVA carries it in llava/eval/m4c_evaluator.py. Three of its steps never
//! act, and are left out here for that reason: commas and question marks are deleted before the rule that looks for a
//! comma between digits; the look-behind of the rule for full stops is mistyped, so that it always passes; and
//! contractions with a capital never match a text in small letters.

/// Replaced or deleted, each by itself, after commas and question marks are gone.
const PUNCTUATION: [char; 19] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', '!'];

/// Full stops that are deleted at most: the original passes `re.UNICODE`, which is 32, as the number of replacements.
const MOST_STOPS: usize = 32;

const ARTICLES: [&str; 3] = ["a", "an", "the"];

const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

/// Words that lack an apostrophe, by the word they become.
const CONTRACTIONS: &[(&str, &str)] = &[
    ("aint", "ain't"),
    ("arent", "aren't"),
    ("cant", "can't"),
    ("couldve", "could've"),
    ("couldnt", "couldn't"),
    ("couldn'tve", "couldn't've"),
    ("couldnt've", "couldn't've"),
    ("didnt", "didn't"),
    ("doesnt", "doesn't"),
    ("dont", "don't"),
    ("hadnt", "hadn't"),
    ("hadnt've", "hadn't've"),
    ("hadn'tve", "hadn't've"),
    ("hasnt", "hasn't"),
    ("havent", "haven't"),
    ("hed", "he'd"),
    ("hed've", "he'd've"),
    ("he'dve", "he'd've"),
    ("hes", "he's"),
    ("howd", "how'd"),
    ("howll", "how'll"),
    ("hows", "how's"),
    ("isnt", "isn't"),
    ("itd", "it'd"),
    ("itd've", "it'd've"),
    ("it'dve", "it'd've"),
    ("itll", "it'll"),
    ("let's", "let's"),
    ("maam", "ma'am"),
    ("mightnt", "mightn't"),
    ("mightnt've", "mightn't've"),
    ("mightn'tve", "mightn't've"),
    ("mightve", "might've"),
    ("mustnt", "mustn't"),
    ("mustve", "must've"),
    ("neednt", "needn't"),
    ("notve", "not've"),
    ("oclock", "o'clock"),
    ("oughtnt", "oughtn't"),
    ("ow's'at", "'ow's'at"),
    ("'ows'at", "'ow's'at"),
    ("'ow'sat", "'ow's'at"),
    ("shant", "shan't"),
    ("shed've", "she'd've"),
    ("she'dve", "she'd've"),
    ("she's", "she's"),
    ("shouldve", "should've"),
    ("shouldnt", "shouldn't"),
    ("shouldnt've", "shouldn't've"),
    ("shouldn'tve", "shouldn't've"),
    ("somebody'd", "somebodyd"),
    ("somebodyd've", "somebody'd've"),
    ("somebody'dve", "somebody'd've"),
    ("somebodyll", "somebody'll"),
    ("somebodys", "somebody's"),
    ("someoned", "someone'd"),
    ("someoned've", "someone'd've"),
    ("someone'dve", "someone'd've"),
    ("someonell", "someone'll"),
    ("someones", "someone's"),
    ("somethingd", "something'd"),
    ("somethingd've", "something'd've"),
    ("something'dve", "something'd've"),
    ("somethingll", "something'll"),
    ("thats", "that's"),
    ("thered", "there'd"),
    ("thered've", "there'd've"),
    ("there'dve", "there'd've"),
    ("therere", "there're"),
    ("theres", "there's"),
    ("theyd", "they'd"),
    ("theyd've", "they'd've"),
    ("they'dve", "they'd've"),
    ("theyll", "they'll"),
    ("theyre", "they're"),
    ("theyve", "they've"),
    ("twas", "'twas"),
    ("wasnt", "wasn't"),
    ("wed've", "we'd've"),
    ("we'dve", "we'd've"),
    ("weve", "we've"),
    ("werent", "weren't"),
    ("whatll", "what'll"),
    ("whatre", "what're"),
    ("whats", "what's"),
    ("whatve", "what've"),
    ("whens", "when's"),
    ("whered", "where'd"),
    ("wheres", "where's"),
    ("whereve", "where've"),
    ("whod", "who'd"),
    ("whod've", "who'd've"),
    ("who'dve", "who'd've"),
    ("wholl", "who'll"),
    ("whos", "who's"),
    ("whove", "who've"),
    ("whyll", "why'll"),
    ("whyre", "why're"),
    ("whys", "why's"),
    ("wont", "won't"),
    ("wouldve", "would've"),
    ("wouldnt", "wouldn't"),
    ("wouldnt've", "wouldn't've"),
    ("wouldn'tve", "wouldn't've"),
    ("yall", "y'all"),
    ("yall'll", "y'all'll"),
    ("y'allll", "y'all'll"),
    ("yall'd've", "y'all'd've"),
    ("y'alld've", "y'all'd've"),
    ("y'all'dve", "y'all'd've"),
    ("youd", "you'd"),
    ("youd've", "you'd've"),
    ("you'dve", "you'd've"),
    ("youll", "you'll"),
    ("youre", "you're"),
    ("youve", "you've"),
];

/// An answer in the form in which answers are compared.
pub(crate) fn normalised(answer: &str) -> String {
    let text = answer.to_lowercase().replace([',', '?'], "").replace("'s", " 's");
    let text = stripped(&text).replace(['\n', '\t'], " ");
    words(&without_stops(&without_punctuation(stripped(&text))))
}

/// What is next to a space anywhere in the text is deleted everywhere; all other punctuation becomes spaces.
fn without_punctuation(text: &str) -> String {
    let mut out = text.to_owned();
    for mark in PUNCTUATION {
        let lonely = text.contains(&format!("{mark} ")) || text.contains(&format!(" {mark}"));
        out = out.replace(mark, if lonely { "" } else { " " });
    }
    out
}

/// Full stops go unless a digit follows.
fn without_stops(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut deleted = 0;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '.' && deleted < MOST_STOPS && !rest.peek().is_some_and(|next| is_digit(*next)) {
            deleted += 1;
        } else {
            out.push(c);
        }
    }
    out
}

/// Numbers from none to ten as digits, no articles, apostrophes where they belong.
fn words(text: &str) -> String {
    let text = text.to_lowercase();
    let number = |word: &str| NUMBERS.iter().find(|(name, _)| *name == word).map(|(_, digits)| *digits);
    let contraction = |word: &str| CONTRACTIONS.iter().find(|(bare, _)| *bare == word).map(|(_, full)| *full);
    text.split(is_space)
        .filter(|word| !word.is_empty())
        .map(|word| number(word).unwrap_or(word))
        .filter(|word| !ARTICLES.contains(word))
        .map(|word| contraction(word).unwrap_or(word))
        .collect::<Vec<_>>()
        .join(" ")
}

/// What Python takes for white space: four separators more than Unicode's.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn stripped(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// What `\d` matches: decimal digits of any script.
fn is_digit(c: char) -> bool {
    use regex::Regex;
    use std::sync::LazyLock;
    static DIGIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\d$").expect("invariant: a constant"));
    c.is_ascii_digit() || (!c.is_ascii() && DIGIT.is_match(c.encode_utf8(&mut [0; 4])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_and_its_quirks() {
        for (answer, normal) in [
            ("The Nokia, phone?", "nokia phone"),
            ("  YES\n", "yes"),
            ("Two and none", "2 and 0"),
            ("ten", "10"),
            ("eleven", "eleven"),
            // A dash between letters becomes a space, next to a space anywhere it goes everywhere.
            ("coca-cola", "coca cola"),
            ("coca-cola - zero", "cocacola 0"),
            ("12:30", "12:30"),
            ("a/b", "b"),
            // Commas are deleted before anyone asks whether one stands between digits.
            ("1,000", "1000"),
            ("1,000-2", "1000 2"),
            ("3.5", "3.5"),
            ("3.5.", "3.5"),
            ("u.s.a.", "usa"),
            (".5", ".5"),
            ("... .", ""),
            ("7.\u{664}", "7.\u{664}"),
            // 's is split off before contractions are looked for.
            ("what's", "what 's"),
            ("whats", "what's"),
            ("Im", "im"),
            ("dont", "don't"),
            ("somebody'd", "somebodyd"),
            ("the", ""),
            ("thE THE theatre", "theatre"),
            ("x\u{1d}y", "x y"),
            ("ΟΔΟΣ", "οδος"),
        ] {
            assert_eq!(normalised(answer), normal, "{answer:?}");
        }
        let stops = ".".repeat(40);
        assert_eq!(normalised(&format!("a{stops}b")), format!("a{}b", ".".repeat(8)));
    }
}
