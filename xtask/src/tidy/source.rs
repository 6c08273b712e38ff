//! What the Rust sources of the shipped crates may not say.

use super::{
    graph::DEV,
    project::{File, Project},
};

/// Crates that may hold `unsafe`: SIMD and the thread pool; the mapping of files.
const UNSAFE: &[&str] = &["margay-cpu", "margay-file", "margay-gpu", "margay-ffi"];

/// Every other crate forbids unsafe code at its root.
pub(crate) fn unsafe_is_forbidden(project: &Project) -> Vec<String> {
    let crates = project.crates.iter().filter(|member| !UNSAFE.contains(&member.name.as_str()));
    let forbids =
        |path: &&String| project.file(path).is_some_and(|file| file.text.contains("#![forbid(unsafe_code)]"));
    crates
        .flat_map(|member| &member.roots)
        .filter(|path| !forbids(path))
        .map(|path| format!("{path} lacks #![forbid(unsafe_code)]"))
        .collect()
}

/// One binary serves every processor of its architecture.
pub(crate) fn no_compile_time_features(project: &Project) -> Vec<String> {
    let mut findings = find(project, &["margay-cpu"], |line| {
        let words = ["cfg(", "cfg!(", "cfg_attr("];
        line.contains("target_feature") && words.iter().any(|word| line.contains(word))
    });
    for file in project.files.iter().filter(|file| file.path.starts_with(".cargo/")) {
        for flag in ["target-cpu", "target-feature"] {
            if file.text.contains(flag) {
                findings.push(format!("{} sets {flag}", file.path));
            }
        }
    }
    findings
}

/// A `Duration` is a number; an `Instant` is a clock.
pub(crate) fn no_clocks(project: &Project) -> Vec<String> {
    find(project, &["margay-observe"], |line| has_word(line, "Instant") || has_word(line, "SystemTime"))
}

/// Libraries take options and return values.
pub(crate) fn no_environment(project: &Project) -> Vec<String> {
    let prints = ["println!", "print!", "eprintln!", "eprint!"];
    find(project, &["margay-cli"], |line| {
        line.contains("env::var")
            || prints.iter().any(|print| has_word(line, print.trim_end_matches('!')) && line.contains(print))
    })
}

/// Lines of shipped code, outside the crates in `except`, for which `breaks` holds.
fn find(project: &Project, except: &[&str], breaks: impl Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for file in project.files.iter().filter(|file| is_shipped(project, file, except)) {
        for (number, line) in shipped_code(&file.text).lines().enumerate() {
            if breaks(line) {
                findings.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    findings
}

/// Rust below a crate's `src`, the crate neither a development aid nor in `except`.
fn is_shipped(project: &Project, file: &File, except: &[&str]) -> bool {
    let Some(owner) = project.owner(file) else { return false };
    let excepted = DEV.iter().chain(except).any(|name| *name == owner.name);
    file.is("rs") && !excepted && file.path[owner.folder.len()..].starts_with("/src/")
}

/// True where `word` stands in `line` with no letter, digit or underscore beside it.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part)
            && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// The text with comments, the insides of literals and `#[cfg(test)]` items blanked; lines stay where they are.
fn shipped_code(text: &str) -> String {
    let mut code = blank_comments_and_literals(text);
    while let Some(start) = code.find("#[cfg(test)]") {
        let end = item_end(&code, start + "#[cfg(test)]".len());
        let blank: String = code[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        code.replace_range(start..end, &blank);
    }
    code
}

/// Where the item that begins at `start` ends: behind its braces, or behind its semicolon.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return start + at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return start + at + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank_comments_and_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after_word = code.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
        let blank = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest, 1, "\""),
            'r' if !after_word || code.ends_with('b') => raw_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if blank == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..blank].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[blank..];
        }
    }
    code
}

/// Bytes of the (nested) block comment that `text` begins with.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    text.len()
}

/// Bytes of the literal whose inside begins at `open` and ends at an unescaped `close`.
fn string(text: &str, open: usize, close: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at < open) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if text[at..].starts_with(close) => return at + close.len(),
            _ => {}
        }
    }
    text.len()
}

/// Bytes of the raw string that `text` begins with, or 0 where it begins with something else.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    let open = 1 + hashes;
    if !text[open..].starts_with('"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    text[open + 1..].find(&close).map_or(text.len(), |at| open + 1 + at + close.len())
}

/// Bytes of the character literal that `text` begins with, or 0 where the quote begins a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text[1..].chars();
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => string(text, 1, "'"),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "crates/margay-tensor/src/lib.rs";

    fn findings(rule: fn(&Project) -> Vec<String>, path: &str, text: &str) -> usize {
        rule(&Project::of_files(&[(path, text)])).len()
    }

    #[test]
    fn a_root_without_the_attribute_is_found() {
        assert_eq!(findings(unsafe_is_forbidden, LIB, "#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(findings(unsafe_is_forbidden, LIB, "#![deny(unsafe_code)]\n"), 1);
    }

    #[test]
    fn clocks_prints_and_features_are_found_in_code_only() {
        for (rule, line) in [
            (no_clocks as fn(&Project) -> Vec<String>, "let t = std::time::Instant::now();"),
            (no_clocks, "use std::time::{Duration, SystemTime};"),
            (no_environment, "println!(\"x\");"),
            (no_environment, "let v = std::env::var_os(\"X\");"),
            (no_compile_time_features, "#[cfg(target_feature = \"avx2\")]"),
            (no_compile_time_features, "if cfg!(all(unix, target_feature = \"neon\")) {"),
        ] {
            assert_eq!(findings(rule, LIB, line), 1, "{line}");
            assert_eq!(findings(rule, "crates/margay-tensor/tests/a.rs", line), 0, "tests may: {line}");
            assert_eq!(findings(rule, LIB, &format!("/// {line}")), 0, "{line}");
            assert_eq!(findings(rule, LIB, &format!("/* {{ /* {line} */ */")), 0, "{line}");
            assert_eq!(findings(rule, LIB, &format!("let s = r#\"{line}\"#;")), 0, "{line}");
            let in_test = format!(
                "#[cfg(test)]\nmod tests {{ fn f() {{ {line} {} }}",
                "}".repeat(line.matches('{').count().saturating_sub(line.matches('}').count()))
            );
            assert_eq!(findings(rule, LIB, &in_test), 0, "{in_test}");
            let behind = format!("#[cfg(test)]\nmod tests {{ const C: char = '{{'; }}\n{line}");
            assert_eq!(findings(rule, LIB, &behind), 1, "{behind}");
        }
        assert_eq!(findings(no_clocks, LIB, "use std::time::Duration; struct Instantly;"), 0);
        assert_eq!(findings(no_environment, LIB, "const N: &str = env!(\"CARGO_PKG_NAME\");"), 0);
        assert_eq!(
            findings(no_compile_time_features, ".cargo/config.toml", "rustflags = \"-Ctarget-cpu=native\""),
            1
        );
    }

    #[test]
    fn blanking_keeps_lines_and_knows_lifetimes() {
        let text = "fn f<'a>(x: &'a str) -> char { '\"' } // it's \"here\n/* a\nb */ b\"x\\\"y\" r\"\\\" c";
        let code = blank_comments_and_literals(text);
        assert_eq!(code.lines().count(), text.lines().count());
        assert!(code.contains("fn f<'a>(x: &'a str) -> char {") && code.ends_with(" c"), "{code}");
        assert!(!code.contains("here") && !code.contains('x'.to_string().repeat(2).as_str()), "{code}");
    }
}
