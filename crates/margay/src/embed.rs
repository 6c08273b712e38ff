//! Embeddings of texts and pictures, which can be compared with one another.

use crate::{Content, Image, Turn};

/// The question whose answer's first word would say what texts and pictures are about: what the decoder holds in front of that
/// word is their embedding, and those of texts and of pictures lie together. For [`crate::AskOptions::embed`].
///
/// Source: Jiang et al., E5-V, arXiv 2407.12580, section 3.1 (its prompts for pictures, sentences, and both); there the model is
/// trained for it besides, here it is as it is.
pub fn embedding_turn(images: &[Image], text: &str) -> Turn {
    let of = match (images.is_empty(), text.is_empty()) {
        (true, _) => "sentence",
        (false, true) => "image",
        (false, false) => "image and sentence",
    };
    let mut content: Vec<Content> = images.iter().cloned().map(Content::Image).collect();
    let line = if text.is_empty() { "" } else { "\n" };
    content.push(Content::Text(format!("{text}{line}Summary above {of} in one word: ")));
    Turn { role: "user".to_owned(), content }
}

/// In the same direction; zeros stay.
pub(crate) fn of_length_1(numbers: &[f32]) -> Vec<f32> {
    let length = numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let by = if length > 0.0 { (1.0 / length) as f32 } else { 0.0 };
    numbers.iter().map(|x| x * by).collect()
}
