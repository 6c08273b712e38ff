//! A conversation in a file, in the form that chat servers take.

use anyhow::Context;
use margay::{Content, Image, Turn};
use serde::Deserialize;
use std::{fs::File, io::Read, path::Path};

/// Bytes of a file of messages at most: more than any context holds.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Parts,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Parts {
    Text(String),
    Several(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
enum Part {
    Text {
        text: String,
    },
    Image {
        #[serde(alias = "path", alias = "url")]
        image: String,
    },
    ImageUrl {
        image_url: Address,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Address {
    Plain(String),
    Object { url: String },
}

/// Reads the messages in a file, and the pictures that they name: paths, relative to the file's folder.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Turn>> {
    let place = || format!("cannot read the messages in {}", path.display());
    let mut bytes = vec![];
    File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).with_context(place)?;
    if bytes.len() as u64 > MAX_BYTES {
        anyhow::bail!("{}: larger than {MAX_BYTES} bytes", place());
    }
    let messages: Vec<Message> = serde_json::from_slice(&bytes).with_context(|| {
        format!("{}: expected [{{\"role\": ..., \"content\": text or parts}}, ...]", place())
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    messages
        .into_iter()
        .map(|message| turn(message, folder))
        .collect::<anyhow::Result<_>>()
        .with_context(place)
}

fn turn(message: Message, folder: &Path) -> anyhow::Result<Turn> {
    let parts = match message.content {
        Parts::Text(text) => vec![Part::Text { text }],
        Parts::Several(parts) => parts,
    };
    let content = parts.into_iter().map(|part| {
        Ok(match part {
            Part::Text { text } => Content::Text(text),
            Part::Image { image: place }
            | Part::ImageUrl { image_url: Address::Plain(place) | Address::Object { url: place } } => {
                Content::Image(picture(&place, folder)?)
            }
        })
    });
    Ok(Turn { role: message.role, content: content.collect::<anyhow::Result<_>>()? })
}

fn picture(place: &str, folder: &Path) -> anyhow::Result<Image> {
    let path = match place.split_once(':') {
        Some(("file", path)) => path.strip_prefix("//").unwrap_or(path),
        // A letter before a colon is a drive.
        Some((scheme @ ("http" | "https" | "data"), _)) => {
            anyhow::bail!("pictures come from files, not from {scheme}: addresses; put its path there")
        }
        _ => place,
    };
    Ok(Image::open(folder.join(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_pictures_come_in_their_order_and_what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let street = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images/street.png");
        std::fs::copy(street, folder.path().join("a.png")).unwrap();
        let read_text = |text: &str| {
            let path = folder.path().join("messages.json");
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        let turns = read_text(
            r#"[{"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "x"},
                    {"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "image_url", "image_url": "a.png"}]}]"#,
        )
        .unwrap();
        let kinds: Vec<_> = turns[1].content.iter().map(|c| matches!(c, Content::Image(_))).collect();
        assert_eq!((turns[0].role.as_str(), kinds), ("system", vec![true, false, true, true]));
        let file = format!("file://{}", folder.path().join("a.png").display());
        assert!(picture(&file, Path::new("elsewhere")).is_ok());
        let why = |text: &str| format!("{:#}", read_text(text).err().unwrap());
        let one =
            |url: &str| format!(r#"[{{"role": "user", "content": [{{"type": "image", "url": "{url}"}}]}}]"#);
        assert!(why(&one("https://a/b.png")).contains("not from https"));
        assert!(why(&one("data:image/png;base64,AAAA")).contains("not from data"));
        assert!(why(&one("missing.png")).contains("missing.png"));
        assert!(why("{}").contains("expected [{"));
        assert!(why(r#"[{"role": "user", "content": [{"type": "audio"}]}]"#).contains("messages.json"));
        assert!(format!("{:#}", read(Path::new("no-such.json")).err().unwrap()).contains("no-such.json"));
    }
}
